//! Rows in chunks: an index for each, no moving, no doubling of the whole.

/// Rows of one chunk. Doubling one large vector would waste up to half of it; a chunk wastes less
/// than this many rows a shard.
const CHUNK: usize = 128;

/// Values with an index that stays the same until they are removed.
pub(super) struct Slab<T> {
    chunks: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), len: 0 }
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if let Some(index) = self.free.pop() {
            if let Some(slot) = self.slot(index) {
                *slot = Some(value);
            }
            return index;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let chunk = self.chunks.len() - 1;
        let slots = &mut self.chunks[chunk];
        slots.push(Some(value));
        u32::try_from(chunk * CHUNK + slots.len() - 1).expect("memory ends long before 2^32 rows")
    }

    fn slot(&mut self, index: u32) -> Option<&mut Option<T>> {
        self.chunks.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)
    }

    pub(super) fn get(&self, index: u32) -> Option<&T> {
        self.chunks.get(index as usize / CHUNK)?.get(index as usize % CHUNK)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slot(index)?.as_mut()
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<T> {
        let value = self.slot(index)?.take()?;
        self.free.push(index);
        self.len -= 1;
        Some(value)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_used_again_only_after_its_value_is_gone() {
        let mut slab = Slab::new();
        let indexes: Vec<u32> = (0..300).map(|n| slab.insert(n)).collect();
        assert_eq!(slab.remove(indexes[5]), Some(5));
        assert_eq!((slab.remove(indexes[5]), slab.get(indexes[5]), slab.len()), (None, None, 299));
        assert_eq!(slab.insert(1_000), indexes[5]);
        for (n, index) in indexes.iter().enumerate().filter(|(n, _)| *n != 5) {
            assert_eq!(slab.get(*index), Some(&n));
        }
        *slab.get_mut(indexes[7]).unwrap() = 70;
        assert_eq!((slab.get(indexes[7]), slab.get(9_999)), (Some(&70), None));
    }
}
