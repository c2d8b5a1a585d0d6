//! A list that only grows, and is read without a lock.

use std::sync::{Mutex, OnceLock, PoisonError};

/// The first chunk has this many slots, each one after it twice as many as the one before.
const FIRST: usize = 64;
/// Enough chunks for 2^32 values.
const CHUNKS: usize = 27;

/// A list that only grows: a value never moves, so a reader may keep a reference to it.
pub(super) struct Grow<T> {
    chunks: [OnceLock<Box<[OnceLock<T>]>>; CHUNKS],
    len: Mutex<usize>,
}

impl<T> Grow<T> {
    pub(super) fn new() -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS], len: Mutex::new(0) }
    }

    fn place_of(index: usize) -> (usize, usize) {
        let chunk = (index / FIRST + 1).ilog2() as usize;
        (chunk, index - FIRST * ((1 << chunk) - 1))
    }

    /// Adds a value and gives its index.
    pub(super) fn push(&self, value: T) -> u32 {
        let mut len = self.len.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, offset) = Self::place_of(*len);
        let slots = self.chunks[chunk].get_or_init(|| (0..FIRST << chunk).map(|_| OnceLock::new()).collect());
        let _ = slots[offset].set(value);
        let index = u32::try_from(*len).expect("memory ends long before 2^32 of these");
        *len += 1;
        index
    }

    /// The value at this index, once there is one.
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        let (chunk, offset) = Self::place_of(index as usize);
        self.chunks.get(chunk)?.get()?.get(offset)?.get()
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        let len = *self.len.lock().unwrap_or_else(PoisonError::into_inner);
        u32::try_from(len).expect("push gave each an index of 32 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_index() {
        let list = Grow::new();
        for n in 0..1_000_u32 {
            assert_eq!(list.get(n), None);
            assert_eq!(list.push(n * 2), n);
        }
        for n in 0..1_000_u32 {
            assert_eq!(list.get(n), Some(&(n * 2)));
        }
        assert_eq!((list.len(), list.get(1_000), list.get(u32::MAX)), (1_000, None, None));
    }
}
