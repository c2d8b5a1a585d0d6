//! Answers to one question that come from several shards, each in its own time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Slots that are filled one by one; whoever waits goes on when all are.
#[derive(Debug)]
pub(crate) struct Gather<T> {
    slots: Mutex<(Vec<Option<T>>, usize)>,
    full: Notify,
}

impl<T> Gather<T> {
    pub(crate) fn new(len: usize) -> Self {
        Self { slots: Mutex::new(((0..len).map(|_| None).collect(), len)), full: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<Option<T>>, usize)> {
        // Nothing that can panic runs under this lock.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills a slot; the first answer counts.
    pub(crate) fn fill(&self, index: usize, value: T) {
        let mut slots = self.lock();
        let (values, missing) = &mut *slots;
        if let Some(slot @ None) = values.get_mut(index) {
            *slot = Some(value);
            *missing -= 1;
            if *missing == 0 {
                drop(slots);
                self.full.notify_one();
            }
        }
    }

    /// Waits until all slots are full. One waiter. Cancel safe.
    pub(crate) async fn full(&self) {
        while self.lock().1 > 0 {
            self.full.notified().await;
        }
    }

    /// What has come; slots are empty afterwards.
    pub(crate) fn take(&self) -> Vec<Option<T>> {
        let mut slots = self.lock();
        slots.1 = 0;
        std::mem::take(&mut slots.0)
    }
}
