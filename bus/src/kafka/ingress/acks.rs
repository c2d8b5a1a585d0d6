//! What of an ingress partition is done with. Kafka keeps one offset for a group and a partition, and
//! jobs are done with in any order; so the offset is that of the first job that is not, and beside it,
//! in the text that Kafka keeps with an offset, stands which later ones are.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// How far past the first open job others may be taken: what the text, which brokers let be 4,096
/// characters long by default, can say of at four jobs a character.
pub(super) const WINDOW: i64 = 8192;
/// What the text begins with.
const VERSION: &str = "1:";

/// What a group has done of a partition, as it is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Done {
    /// All below this.
    pub(in super::super) below: i64,
    /// And these.
    pub(in super::super) also: BTreeSet<i64>,
}

impl Done {
    /// As Kafka has it. A text that cannot be read says nothing: then jobs come again.
    pub(in super::super) fn read(offset: i64, text: &str) -> Self {
        let below = offset.max(0);
        let mut also = BTreeSet::new();
        for (place, digit) in (0_i64..).zip(text.strip_prefix(VERSION).unwrap_or_default().chars()) {
            let Some(bits) = digit.to_digit(16) else { break };
            also.extend((0..4).filter(|bit| bits & (8 >> bit) != 0).map(|bit| below + 1 + place * 4 + bit));
        }
        Self { below, also }
    }

    /// The text for Kafka.
    pub(super) fn text(&self) -> String {
        let Some(last) = self.also.last() else { return String::new() };
        let digits = usize::try_from((last - self.below - 1) / 4 + 1).unwrap_or(0);
        let mut bits = vec![0_u8; digits];
        for offset in &self.also {
            let place = offset - self.below - 1;
            if let Some(digit) = usize::try_from(place / 4).ok().and_then(|digit| bits.get_mut(digit)) {
                *digit |= 8 >> (place % 4);
            }
        }
        let mut text = String::from(VERSION);
        for digit in bits {
            // Writing to a string cannot fail.
            let _ = write!(text, "{digit:x}");
        }
        text
    }

    pub(super) fn has(&self, offset: i64) -> bool {
        offset < self.below || self.also.contains(&offset)
    }
}

/// A partition that this process has.
#[derive(Clone, Debug)]
pub(super) struct Acks {
    done: Done,
    /// Taken, and not done with.
    open: BTreeSet<i64>,
    /// What comes next.
    next: i64,
    /// Whether there is something to commit.
    dirty: bool,
    /// Up to where it has been dropped by this process.
    pub(super) dropped: i64,
}

impl Acks {
    pub(super) fn new(done: Done) -> Self {
        Self { next: done.below, dropped: done.below, done, open: BTreeSet::new(), dirty: false }
    }

    /// A message has come. Whether it is to be worked on.
    pub(super) fn came(&mut self, offset: i64) -> bool {
        self.next = self.next.max(offset + 1);
        !self.done.has(offset) && self.open.insert(offset)
    }

    pub(super) fn ack(&mut self, offset: i64) {
        if self.open.remove(&offset) {
            self.done.also.insert(offset);
            self.dirty = true;
        }
    }

    /// The first that is not done with.
    fn point(&self) -> i64 {
        self.open.first().copied().unwrap_or(self.next).max(self.done.below)
    }

    /// Whether no more may be taken until the first open one is done with.
    pub(super) fn is_full(&self) -> bool {
        self.next - self.point() >= WINDOW
    }

    /// What is to be committed, if there is something new.
    pub(super) fn take_done(&mut self) -> Option<Done> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        let point = self.point();
        self.done.also = self.done.also.split_off(&point);
        self.done.below = point;
        Some(self.done.clone())
    }

    /// All below this is done with, and was to be committed.
    pub(super) fn committed(&self) -> i64 {
        self.done.below
    }

    /// The commit has failed.
    pub(super) fn again(&mut self) {
        self.dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_done_out_of_order_is_said() {
        let mut acks = Acks::new(Done::default());
        assert!((0..10).all(|offset| acks.came(offset)));
        [0, 1, 3, 9].into_iter().for_each(|offset| acks.ack(offset));
        let done = acks.take_done().unwrap();
        assert_eq!(done, Done { below: 2, also: BTreeSet::from([3, 9]) });
        assert_eq!(done.text(), "1:82");
        assert_eq!(Done::read(2, "1:82"), done);
        assert_eq!(acks.take_done(), None, "nothing new");
        let mut next = Acks::new(done);
        let again: Vec<i64> = (2..12).filter(|offset| next.came(*offset)).collect();
        assert_eq!(again, [2, 4, 5, 6, 7, 8, 10, 11]);
    }

    #[test]
    fn strange_texts_say_nothing() {
        for text in ["", "1:", "2:ff", "no", "1:zz", "1:é"] {
            assert_eq!(Done::read(5, text), Done { below: 5, also: BTreeSet::new() }, "{text}");
        }
        assert_eq!(Done::read(-1001, "").below, 0, "nothing committed");
    }

    #[test]
    fn holes_are_done_with() {
        // Marks of transactions are no messages.
        let mut acks = Acks::new(Done::read(3, ""));
        assert!(acks.came(5) && acks.came(8));
        acks.ack(5);
        assert_eq!(acks.take_done().unwrap().below, 8);
        acks.ack(8);
        assert_eq!(acks.take_done().unwrap().below, 9);
    }

    proptest! {
        #[test]
        fn the_text_says_all_and_fits(below in 0_i64..1_000_000, also in prop::collection::btree_set(1..WINDOW, 0..500)) {
            let done = Done { below, also: also.into_iter().map(|after| below + after).collect() };
            let text = done.text();
            prop_assert!(text.len() <= 4096);
            prop_assert_eq!(Done::read(below, &text), done);
        }
    }
}
