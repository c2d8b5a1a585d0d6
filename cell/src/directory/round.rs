//! What many ask for at once is looked up once for all of them.
//!
//! To have caught up, a directory asks for the end of every log, and one pass over a cell's managers has each of them ask:
//! with 256 shards and 500 managers that would be 128,000 requests to the bus at the same moment. An answer holds for
//! whoever asked before the look began; those who come while it is under way share the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// See the module.
pub(super) struct Round<T> {
    /// Looks that have begun.
    begun: AtomicU64,
    /// The last that has succeeded: its number, and what it found.
    last: Mutex<(u64, Option<Arc<T>>)>,
}

impl<T> Default for Round<T> {
    fn default() -> Self {
        Self { begun: AtomicU64::new(0), last: Mutex::new((0, None)) }
    }
}

impl<T> Round<T> {
    /// What a look finds that begins after this call. Looks are made one after the other. Cancel safe: whoever waits for a
    /// look that is dropped makes one.
    ///
    /// # Errors
    /// Those of `look`, to the one who made it; the others look again.
    pub(super) async fn look<E>(&self, look: impl AsyncFnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let begun = self.begun.load(Ordering::Acquire);
        let mut last = self.last.lock().await;
        if let (number, Some(found)) = &*last
            && *number > begun
        {
            return Ok(Arc::clone(found));
        }
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let found = Arc::new(look().await?);
        *last = (number, Some(Arc::clone(&found)));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::future::join_all;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_together_share_a_look_that_began_after_they_had_asked() {
        let (round, looks, now) = (Round::default(), Cell::new(0), Cell::new(0));
        let asked = (0..50).map(async |_| {
            let asked = now.get();
            let look = async || {
                looks.set(looks.get() + 1);
                let began = now.get();
                // Time goes on meanwhile, and others come.
                for _ in 0..3 {
                    yield_now().await;
                    now.set(now.get() + 1);
                }
                Ok::<_, ()>(began)
            };
            let found = *round.look(look).await.unwrap();
            assert!(found >= asked, "asked at {asked}, found what was there at {found}");
        });
        join_all(asked).await;
        assert!(looks.get() <= 3, "{} looks for 50", looks.get());
        // Nobody gets what was found before.
        let again = round.look(async || Ok::<_, ()>(-1)).await.unwrap();
        assert_eq!(*again, -1);
    }

    #[tokio::test]
    async fn a_look_that_fails_or_is_dropped_is_nobody_elses() {
        let round = Round::default();
        let fails = round.look(async || Err::<u8, _>("away"));
        let works = round.look(async || Ok::<_, &str>(7));
        let (failed, worked) = futures::join!(fails, works);
        assert_eq!((failed.unwrap_err(), *worked.unwrap()), ("away", 7));
        let dropped = round.look(async || -> Result<u8, &str> { std::future::pending().await });
        assert!(futures::poll!(Box::pin(dropped)).is_pending());
        assert_eq!(*round.look(async || Ok::<_, &str>(8)).await.unwrap(), 8);
    }
}
