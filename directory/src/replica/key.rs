//! How rows are ordered in indexes and lists, in eight bytes.

use cellbus_bus::ids::{JobId, ShardCount, ShardId, VmId};

/// Bits of a key that hold the row's index in its shard.
const ROW_BITS: u32 = 28;
/// Bits that hold the head of the row's id.
const HEAD_BITS: u32 = 24;

/// Lists go by shard, then by id: the same order on every replica, whatever else changes. A key
/// holds the shard (12 bits), the first 24 bits of the id, and the row's index in the shard, so an
/// index needs no second look-up and a third of the memory of ids. Rows whose keys differ in
/// the index only (their *group*) are put in the order of their whole ids by whoever reads them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key(u64);

/// An id that rows are listed by.
pub(super) trait Id: Copy + Ord {
    fn bytes(&self) -> &[u8; 16];
    fn home(&self, count: ShardCount) -> ShardId;
}
impl Id for VmId {
    fn bytes(&self) -> &[u8; 16] {
        self.as_bytes()
    }
    fn home(&self, count: ShardCount) -> ShardId {
        self.shard(count)
    }
}
impl Id for JobId {
    fn bytes(&self) -> &[u8; 16] {
        self.as_bytes()
    }
    fn home(&self, count: ShardCount) -> ShardId {
        self.shard(count)
    }
}

impl Key {
    pub(super) const MIN: Self = Self(0);

    /// Of the row at `row` of `shard`, whose id is `id`.
    pub(super) fn new(shard: ShardId, id: &impl Id, row: u32) -> Self {
        let [a, b, c, ..] = *id.bytes();
        let head = u64::from(u32::from_be_bytes([0, a, b, c]));
        Self((u64::from(shard.index()) << (HEAD_BITS + ROW_BITS)) | (head << ROW_BITS) | u64::from(row))
    }
    /// The least key of those that share shard and head of the id.
    pub(super) fn group_start(self) -> Self {
        Self(self.group() << ROW_BITS)
    }
    /// The least key after that group.
    pub(super) fn after_group(self) -> Self {
        Self((self.group() + 1) << ROW_BITS)
    }
    /// What keys of one group share.
    pub(super) const fn group(self) -> u64 {
        self.0 >> ROW_BITS
    }
    /// The index of the shard.
    pub(super) const fn shard(self) -> u16 {
        (self.0 >> (HEAD_BITS + ROW_BITS)) as u16
    }
    /// The index of the row in its shard.
    pub(super) const fn row(self) -> u32 {
        (self.0 & ((1 << ROW_BITS) - 1)) as u32
    }
}

/// Rows a shard may have.
pub(super) const ROWS_MAX: usize = 1 << ROW_BITS;

const _: () = assert!(ShardCount::MAX as u64 <= 1 << (64 - HEAD_BITS - ROW_BITS));

/// Where a list goes on: after this row.
#[derive(Clone, Copy, Debug)]
pub(super) struct After<I> {
    start: Key,
    id: I,
}

impl<I: Id> After<I> {
    pub(super) fn new(id: I, count: ShardCount) -> Self {
        Self { start: Key::new(id.home(count), &id, 0), id }
    }
    /// Before any row of a later group may come this key.
    pub(super) fn start(self) -> Key {
        self.start
    }
    /// Whether the row comes later. Its key must not be less than [`After::start`].
    fn leaves(self, key: Key, id: I) -> bool {
        key.group() != self.start.group() || id > self.id
    }
}

/// Walks rows in the order of their ids: `keys` in their own order, each group sorted by id.
/// `id` gives the id of a row, or `None` for one that is not there any more; rows up to and with
/// `after` are left out. `visit` says whether to go on; so does the result.
pub(super) fn walk<I: Id>(
    keys: impl Iterator<Item = Key>,
    after: Option<After<I>>,
    mut id: impl FnMut(Key) -> Option<I>,
    mut visit: impl FnMut(Key, I) -> bool,
) -> bool {
    let mut group: smallvec::SmallVec<[(I, Key); 4]> = smallvec::SmallVec::new();
    let mut keys = keys.peekable();
    while let Some(key) = keys.next() {
        if let Some(id) = id(key).filter(|id| after.is_none_or(|after| after.leaves(key, *id))) {
            group.push((id, key));
        }
        if keys.peek().is_some_and(|next| next.group() == key.group()) {
            continue;
        }
        group.sort_unstable();
        for (id, key) in group.drain(..) {
            if !visit(key, id) {
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(head: u32, tail: u8) -> VmId {
        let mut bytes = [0; 16];
        bytes[..3].copy_from_slice(&head.to_be_bytes()[1..]);
        bytes[15] = tail;
        VmId::from_uuid(uuid::Uuid::from_bytes(bytes))
    }

    #[test]
    fn a_walk_is_in_the_order_of_whole_ids() {
        let count = ShardCount::new(1).unwrap();
        let shard = id(0, 0).home(count);
        // Rows 0..3 share a head; their indexes are not in the order of their ids.
        let ids = [id(7, 3), id(7, 1), id(7, 2), id(9, 0), id(1, 9)];
        let mut keys: Vec<Key> = ids.iter().zip(0..).map(|(id, row)| Key::new(shard, id, row)).collect();
        keys.sort_unstable();
        let walked = |after: Option<VmId>| {
            let after = after.map(|id| After::new(id, count));
            let mut seen = Vec::new();
            let from = after.map_or(Key::MIN, After::start);
            walk(
                keys.iter().copied().filter(|k| *k >= from),
                after,
                |k| Some(ids[k.row() as usize]),
                |_, id| {
                    seen.push(id);
                    true
                },
            );
            seen
        };
        let mut all = ids.to_vec();
        all.sort_unstable();
        assert_eq!(walked(None), all);
        for (n, id) in all.iter().enumerate() {
            assert_eq!(walked(Some(*id)), all[n + 1..]);
        }
    }
}
