//! A message that made the state machine panic.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use cellbus_bus::contract::QueueKind;
use cellbus_bus::env::panic_text;
use cellbus_bus::ids::Seq;
use cellbus_workflows::pack::unpack;

/// See the module. A shard is opened anew after a panic, and comes to the same message again. Where it
/// carries many items they are handed in one by one from then on, so that each panic shows its item; those
/// that are known are put aside, the others are as good as any.
#[derive(Clone, Debug)]
pub(super) struct Poison {
    queue: QueueKind,
    seq: Seq,
    /// Which are put aside, and why.
    items: BTreeMap<usize, String>,
}

impl Poison {
    /// The message here has made it panic with these words.
    pub(super) fn new(queue: QueueKind, seq: Seq, message: &Bytes, reason: String) -> Self {
        let alone = unpack(queue, message).len() == 1;
        Self { queue, seq, items: alone.then_some((0, reason)).into_iter().collect() }
    }

    pub(super) fn is_at(&self, queue: QueueKind, seq: Seq) -> bool {
        self.queue == queue && self.seq == seq
    }

    /// Gives the items of the message to `each`, and with those that are to be put aside the reason.
    ///
    /// # Errors
    /// With what `each` has panicked, if it did: that item is put aside the next time.
    pub(super) fn hand_in(
        &mut self,
        message: &Bytes,
        mut each: impl FnMut(Bytes, Option<&str>),
    ) -> Result<(), Box<dyn Any + Send>> {
        for (index, item) in unpack(self.queue, message).into_iter().enumerate() {
            let aside = self.items.get(&index).map(String::as_str);
            // The shard is thrown away and read again if this panics.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| each(item, aside))) {
                self.items.insert(index, super::panic_reason(panic_text(panic.as_ref())));
                return Err(panic);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cellbus_workflows::pack::pack;

    use super::*;

    /// Hands the message in until nothing panics, as a runner that opens its shard anew each time: what was
    /// taken and what was put aside at the last, and how often it was opened.
    fn handed_in(items: &[&'static str], panics: impl Fn(&[u8]) -> bool) -> (Vec<Bytes>, Vec<(Bytes, String)>, usize) {
        let items: Vec<Bytes> = items.iter().map(|item| Bytes::from_static(item.as_bytes())).collect();
        let message = pack(QueueKind::Control, items).remove(0);
        let mut poison = Poison::new(QueueKind::Control, Seq(7), &message, "first".to_owned());
        for opened in 1.. {
            let (mut taken, mut aside) = (Vec::new(), Vec::new());
            let handed = poison.hand_in(&message, |item, reason| match reason {
                Some(reason) => aside.push((item, reason.to_owned())),
                None if panics(&item) => panic!("cannot digest {}", String::from_utf8_lossy(&item)),
                None => taken.push(item),
            });
            if handed.is_ok() {
                return (taken, aside, opened);
            }
        }
        unreachable!("it ends")
    }

    #[test]
    fn a_message_alone_is_put_aside_at_once() {
        let (taken, aside, opened) = handed_in(&["bad"], |item| item == b"bad");
        assert_eq!((taken, opened), (vec![], 1));
        assert_eq!(aside, [(Bytes::from_static(b"bad"), "first".to_owned())]);
    }

    #[test]
    fn of_a_pack_only_those_items_are_put_aside_that_panic() {
        let (taken, aside, opened) = handed_in(&["a", "bad", "b", "bad too", "c"], |item| item.starts_with(b"bad"));
        assert_eq!(taken, ["a", "b", "c"]);
        assert_eq!(opened, 3, "each panic shows one");
        let (items, reasons): (Vec<_>, Vec<_>) = aside.into_iter().unzip();
        assert_eq!(items, ["bad", "bad too"]);
        assert!(reasons[1].contains("cannot digest bad too"), "{reasons:?}");
    }

    #[test]
    fn a_pack_that_panics_only_as_a_whole_is_taken_item_by_item() {
        let (taken, aside, opened) = handed_in(&["a", "b"], |_| false);
        assert_eq!((taken.len(), aside.len(), opened), (2, 0, 1));
    }
}
