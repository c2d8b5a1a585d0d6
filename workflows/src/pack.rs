//! Several items of a queue in one message: what a bus does for a message it then does once for all of them.
//!
//! A job for 10,000 VMs puts one item for each on the queues of their shards, and gets one back for each. They
//! are put there together, so they travel together: up to [`ITEMS_MAX`] in a message. A pack is taken whole,
//! in one append, so a position in a queue stays the number of a message. Its items are kept as they would
//! travel alone, and are put aside alone.

use bytes::Bytes;
use cellbus_bus::contract::QueueKind;
use serde::{Deserialize, Serialize};

use crate::item::{ControlItem, JobItem};

/// The most items of one message. What it costs to publish, keep and deliver a message is a tenth of the
/// items' own cost by then, and a shard that stops reading has taken little more than it wanted.
pub const ITEMS_MAX: usize = 64;
/// The most bytes of items in one message that has more than one.
pub const BYTES_MAX: usize = 64 << 10;

/// Messages that carry these items of one queue, in their order. One that is alone stays as it is.
#[must_use]
pub fn pack(kind: QueueKind, items: Vec<Bytes>) -> Vec<Bytes> {
    if items.len() < 2 {
        return items;
    }
    let mut messages = Vec::with_capacity(items.len().div_ceil(ITEMS_MAX));
    let (mut part, mut bytes) = (Vec::new(), 0);
    for item in items {
        if part.len() == ITEMS_MAX || bytes + item.len() > BYTES_MAX {
            messages.extend(message(kind, std::mem::take(&mut part)));
            bytes = 0;
        }
        bytes += item.len();
        part.push(item);
    }
    messages.extend(message(kind, part));
    messages
}

fn message(kind: QueueKind, mut items: Vec<Bytes>) -> Option<Bytes> {
    if items.len() < 2 {
        return items.pop();
    }
    Some(match kind {
        QueueKind::Jobs => JobItem::Pack(items).encode(),
        QueueKind::Control => ControlItem::Pack(items).encode(),
    })
}

/// The items of a message. One that is no pack, or cannot be read, is its only item.
#[must_use]
pub fn unpack(kind: QueueKind, message: &Bytes) -> Vec<Bytes> {
    let items = match kind {
        QueueKind::Jobs => match JobItem::decode(message) {
            Ok(JobItem::Pack(items)) => items,
            Ok(JobItem::Job(_) | JobItem::Work(_)) | Err(_) => Vec::new(),
        },
        QueueKind::Control => match ControlItem::decode(message) {
            Ok(ControlItem::Pack(items)) => items,
            Ok(_) | Err(_) => Vec::new(),
        },
    };
    if items.is_empty() { vec![message.clone()] } else { items }
}

/// How many items a message of a queue has, going by the last few that were read: a bus counts messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerMessage {
    messages: u64,
    items: u64,
}

/// So many messages are gone by; at twice as many, the older ones count half. Few, so that it follows what comes.
const REMEMBERED: u64 = 32;

impl PerMessage {
    /// One more was read.
    pub(crate) fn read(&mut self, items: usize) {
        self.messages += 1;
        self.items += items as u64;
        if self.messages == 2 * REMEMBERED {
            (self.messages, self.items) = (self.messages / 2, self.items / 2);
        }
    }

    /// How many items so many messages have, about.
    #[must_use]
    pub fn items(self, messages: u64) -> u64 {
        match u128::from(messages) * u128::from(self.items) / u128::from(self.messages.max(1)) {
            0 => messages,
            items => u64::try_from(items).unwrap_or(u64::MAX).max(messages),
        }
    }

    /// How many messages have so many items, about; one at the least. While none was read, as if all were full.
    #[must_use]
    pub fn messages(self, items: usize) -> usize {
        if self.messages == 0 {
            return items.div_ceil(ITEMS_MAX);
        }
        let messages = u128::from(items as u64) * u128::from(self.messages) / u128::from(self.items.max(1));
        usize::try_from(messages).map_or(items, |messages| messages.min(items)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(count: usize, bytes: usize) -> Vec<Bytes> {
        (0..count).map(|number| Bytes::from(vec![u8::try_from(number % 251).unwrap_or(0); bytes])).collect()
    }
    fn round(kind: QueueKind, items: &[Bytes]) -> Vec<usize> {
        let messages = pack(kind, items.to_vec());
        let unpacked: Vec<Vec<Bytes>> = messages.iter().map(|message| unpack(kind, message)).collect();
        assert_eq!(unpacked.concat(), items, "each, once, in their order");
        unpacked.iter().map(Vec::len).collect()
    }

    #[test]
    fn items_travel_together_up_to_a_number_and_a_size() {
        for kind in [QueueKind::Jobs, QueueKind::Control] {
            assert_eq!(round(kind, &[]), [0; 0]);
            assert_eq!(round(kind, &items(1, 100)), [1]);
            assert_eq!(round(kind, &items(ITEMS_MAX, 100)), [ITEMS_MAX]);
            assert_eq!(round(kind, &items(2 * ITEMS_MAX + 1, 100)), [ITEMS_MAX, ITEMS_MAX, 1]);
            assert_eq!(round(kind, &items(5, BYTES_MAX / 2)), [2, 2, 1]);
            assert_eq!(round(kind, &items(3, BYTES_MAX + 1)), [1, 1, 1], "too large for company");
        }
    }

    #[test]
    fn one_alone_travels_as_it_is() {
        let alone = items(1, 100);
        assert_eq!(pack(QueueKind::Jobs, alone.clone()), alone);
    }

    #[test]
    fn what_cannot_be_read_is_its_own_only_item() {
        let damaged = Bytes::from_static(b"\x01\xff\xff");
        assert_eq!(unpack(QueueKind::Jobs, &damaged), std::slice::from_ref(&damaged));
        assert_eq!(unpack(QueueKind::Control, &damaged), std::slice::from_ref(&damaged));
    }

    #[test]
    fn messages_are_counted_in_items_by_what_was_read_lately() {
        let mut read = PerMessage::default();
        assert_eq!((read.items(10), read.messages(512)), (10, 8), "nothing is known yet");
        (0..4 * REMEMBERED).for_each(|_| read.read(1));
        assert_eq!((read.items(10), read.messages(512)), (10, 512));
        (0..20 * REMEMBERED).for_each(|_| read.read(64));
        assert_eq!((read.items(10), read.messages(512), read.messages(1)), (639, 8, 1));
        assert_eq!(read.items(u64::MAX), u64::MAX);
    }
}
