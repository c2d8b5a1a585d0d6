//! What waits to be posted to one cell: bounded, in order, and sent all together.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cellbus_bus::Mono;
use tokio::sync::Notify;

/// Bytes that wait for one cell: some seconds of a burst. A cell that is further behind is asked
/// again later anyway.
const BYTES_MAX: usize = 32 << 20;
/// Bytes sent in one request, if a single post is not larger.
const BATCH_BYTES: usize = 1 << 20;

/// The posts of one peer.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    filled: Notify,
}

/// Why a post is not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// The cell was not there a moment ago.
    #[error("{0}")]
    NotThere(String),
    /// So many bytes wait.
    #[error("{0} bytes wait for it already")]
    Full(usize),
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Bytes>,
    bytes: usize,
    /// Until then nothing is taken, and why: the peer was certainly not there a moment ago.
    shut: Option<(Mono, String)>,
}

impl Outbox {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a post behind the others.
    ///
    /// # Errors
    /// Why it is not sent.
    pub(super) fn put(&self, post: Bytes, now: Mono) -> Result<(), Refused> {
        let mut state = self.state();
        if let Some((until, why)) = &state.shut {
            if now < *until {
                return Err(Refused::NotThere(why.clone()));
            }
            state.shut = None;
        }
        // A single post always has room: its own bound is that of a request.
        if state.bytes + post.len() > BYTES_MAX && !state.waiting.is_empty() {
            return Err(Refused::Full(state.bytes));
        }
        state.bytes += post.len();
        state.waiting.push_back(post);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Ready when something waits. Cancel safe.
    pub(super) async fn filled(&self) {
        while self.is_empty() {
            self.filled.notified().await;
        }
    }
    pub(super) fn is_empty(&self) -> bool {
        self.state().waiting.is_empty()
    }

    /// Takes what goes into one request: all that waits, up to a bound.
    pub(super) fn batch(&self) -> Vec<Bytes> {
        let mut state = self.state();
        let mut batch: Vec<Bytes> = Vec::new();
        let mut bytes = 0;
        while let Some(next) = state.waiting.front()
            && (batch.is_empty() || bytes + next.len() <= BATCH_BYTES)
        {
            bytes += next.len();
            batch.extend(state.waiting.pop_front());
        }
        state.bytes -= bytes;
        batch
    }

    /// The peer is not there: what waits is dropped, and so is what comes before `until`. Gives how
    /// many were dropped.
    pub(super) fn shut(&self, until: Mono, why: String) -> usize {
        let mut state = self.state();
        state.shut = Some((until, why));
        state.bytes = 0;
        std::mem::take(&mut state.waiting).len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_is_bounded_keeps_order_and_gives_all_that_waits() {
        let (outbox, now) = (Outbox::default(), Mono::default());
        for n in 0..3_u8 {
            outbox.put(Bytes::from(vec![n; 10]), now).unwrap();
        }
        let batch = outbox.batch();
        assert_eq!(batch.iter().map(|post| post[0]).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(outbox.is_empty() && outbox.batch().is_empty());

        // A large one goes alone; together they have a bound.
        let large = Bytes::from(vec![0; BATCH_BYTES]);
        for _ in 0..BYTES_MAX / BATCH_BYTES {
            outbox.put(large.clone(), now).unwrap();
        }
        assert_eq!(outbox.put(Bytes::from_static(b"x"), now), Err(Refused::Full(BYTES_MAX)));
        assert_eq!(outbox.batch().len(), 1);
        outbox.put(Bytes::from_static(b"x"), now).unwrap();

        // Not there: all is dropped, and for a while nothing is taken.
        let later = now.after(Duration::from_secs(1));
        assert_eq!(outbox.shut(later, "gone".to_owned()), BYTES_MAX / BATCH_BYTES);
        assert_eq!(outbox.put(Bytes::from_static(b"x"), now), Err(Refused::NotThere("gone".to_owned())));
        outbox.put(Bytes::from_static(b"x"), later).unwrap();
        assert_eq!(outbox.batch().len(), 1);
    }
}
