//! Values that many rows share, kept once and counted.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash};
use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};

use cellbus_bus::codec;
use cellbus_bus::ids::{JobId, TenantId};
use foldhash::fast::FixedState;
use smallvec::SmallVec;

use crate::vm::Template;

/// Cheap to clone, and with a digest by which an equal one is found.
pub(super) trait Shared: Clone + Eq {
    fn digest(&self) -> u64;
}
impl Shared for TenantId {
    fn digest(&self) -> u64 {
        hash(self)
    }
}
impl Shared for JobId {
    fn digest(&self) -> u64 {
        hash(self)
    }
}
impl Shared for Arc<str> {
    fn digest(&self) -> u64 {
        hash(self)
    }
}
impl Shared for Arc<Template> {
    // Its stored form names all its fields, in one order.
    fn digest(&self) -> u64 {
        hash(&codec::encode(self.as_ref()))
    }
}
fn hash(value: &(impl Hash + ?Sized)) -> u64 {
    FixedState::default().hash_one(value)
}

/// Values by number. A value is dropped when the last row that has its number lets go of it, so
/// memory follows the rows that there are, not those that there were.
pub(super) struct Interner<T> {
    inner: RwLock<Inner<T>>,
}

struct Inner<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    by_digest: HashMap<u64, SmallVec<[u32; 2]>, FixedState>,
}

struct Slot<T> {
    value: Option<T>,
    digest: u64,
    refs: u32,
}

impl<T: Shared> Interner<T> {
    pub(super) fn new() -> Self {
        Self { inner: RwLock::new(Inner { slots: Vec::new(), free: Vec::new(), by_digest: HashMap::default() }) }
    }

    /// The number of this value, held once more.
    pub(super) fn acquire(&self, value: &T) -> NonZeroU32 {
        self.acquire_many(value, 1)
    }

    /// The number of this value, held `refs` times more.
    pub(super) fn acquire_many(&self, value: &T, refs: u32) -> NonZeroU32 {
        let digest = value.digest();
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let inner = &mut *inner;
        let known = inner.by_digest.get(&digest).and_then(|found| {
            found.iter().copied().find(|slot| inner.slots[*slot as usize].value.as_ref() == Some(value))
        });
        let slot = known.unwrap_or_else(|| {
            let slot = inner.free.pop().unwrap_or_else(|| {
                inner.slots.push(Slot { value: None, digest: 0, refs: 0 });
                u32::try_from(inner.slots.len() - 1).expect("memory ends long before 2^32 values")
            });
            inner.slots[slot as usize] = Slot { value: Some(value.clone()), digest, refs: 0 };
            inner.by_digest.entry(digest).or_default().push(slot);
            slot
        });
        inner.slots[slot as usize].refs += refs;
        NonZeroU32::MIN.saturating_add(slot)
    }

    /// One row less has this number.
    pub(super) fn release(&self, number: NonZeroU32) {
        let index = number.get() - 1;
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = inner.slots.get_mut(index as usize) else { return };
        slot.refs = slot.refs.saturating_sub(1);
        if slot.refs > 0 {
            return;
        }
        slot.value = None;
        let digest = slot.digest;
        if let Some(found) = inner.by_digest.get_mut(&digest) {
            found.retain(|slot| *slot != index);
            if found.is_empty() {
                inner.by_digest.remove(&digest);
            }
        }
        inner.free.push(index);
    }

    /// The value with this number, while a row holds it.
    pub(super) fn get(&self, number: NonZeroU32) -> Option<T> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.slots.get(number.get() as usize - 1)?.value.clone()
    }

    /// The number of this value, if some row has it. Does not hold it.
    pub(super) fn find(&self, value: &T) -> Option<NonZeroU32> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let found = inner.by_digest.get(&value.digest())?;
        let slot = found.iter().copied().find(|slot| inner.slots[*slot as usize].value.as_ref() == Some(value))?;
        Some(NonZeroU32::MIN.saturating_add(slot))
    }

    /// How many values are held.
    pub(super) fn len(&self) -> usize {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.slots.len() - inner.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_kept_once_and_as_long_as_a_row_has_it() {
        let interner: Interner<TenantId> = Interner::new();
        let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let first = interner.acquire(&a);
        assert_eq!(interner.acquire(&a), first);
        let second = interner.acquire(&b);
        assert_ne!(first, second);
        interner.release(first);
        assert_eq!((interner.get(first), interner.find(&a), interner.len()), (Some(a.clone()), Some(first), 2));
        interner.release(first);
        assert_eq!((interner.get(first), interner.find(&a), interner.len()), (None, None, 1));
        assert_eq!(interner.acquire(&a), first, "its number is free for another value");
    }
}
