//! A bounded box that many put into and one long-lived task empties, all at once.
//!
//! A channel wakes its reader and hands over one item at a time; here one wake-up hands over
//! everything that has come meanwhile, which is what makes batches grow when there is much to do.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Full: the item is given back.
#[derive(Debug)]
pub(crate) struct Full<T>(pub(crate) T);

/// See the module.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    /// `None` once it is closed.
    items: Mutex<Option<Vec<T>>>,
    max: usize,
    ready: Notify,
}

impl<T> Mailbox<T> {
    /// That holds up to `max` items.
    #[must_use]
    pub(crate) fn new(max: usize) -> Self {
        Self { items: Mutex::new(Some(Vec::new())), max, ready: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<T>>> {
        // Nothing that can panic runs under this lock.
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one in.
    ///
    /// # Errors
    /// When there is no room, or it is closed.
    pub(crate) fn put(&self, item: T) -> Result<(), Full<T>> {
        let mut items = self.lock();
        let Some(kept) = items.as_mut().filter(|kept| kept.len() < self.max) else { return Err(Full(item)) };
        kept.push(item);
        let first = kept.len() == 1;
        drop(items);
        if first {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Takes out all that there is.
    #[must_use]
    pub(crate) fn take(&self) -> Vec<T> {
        self.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes out all that there is, and no more goes in: nothing is left lying in it unseen.
    pub(crate) fn close(&self) -> Vec<T> {
        self.lock().take().unwrap_or_default()
    }

    /// Waits until there is something to take. Cancel safe. One waiter at a time.
    pub(crate) async fn ready(&self) {
        loop {
            if self.lock().as_ref().is_some_and(|items| !items.is_empty()) {
                return;
            }
            self.ready.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn one_wake_up_hands_over_all() {
        let mailbox = Arc::new(Mailbox::new(3));
        let waiting = {
            let mailbox = Arc::clone(&mailbox);
            async move {
                mailbox.ready().await;
                mailbox.take()
            }
        };
        let put = async {
            (1..=3).for_each(|i| mailbox.put(i).unwrap());
            assert_eq!(mailbox.put(4).unwrap_err().0, 4);
        };
        let (taken, ()) = futures::join!(waiting, put);
        assert_eq!(taken, [1, 2, 3]);
        mailbox.put(5).unwrap();
        mailbox.ready().await;
        mailbox.ready().await;
        assert_eq!(mailbox.take(), [5]);
        mailbox.put(6).unwrap();
        assert_eq!(mailbox.close(), [6]);
        assert!(mailbox.put(7).is_err() && mailbox.take().is_empty());
    }
}
