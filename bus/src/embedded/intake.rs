//! The way to the committer: writers push requests, the committer takes all that wait at once.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use crate::contract::{Error, Result};
use crate::ids::{Seq, ShardId};

use super::stream::Stream;

/// The most KiB of requests that wait for the committer: one group commit's worth and more, while
/// writers that outrun the disk wait here instead of filling memory.
const WAITING_KIB_MAX: u32 = 64 << 10;
/// The most bytes that one request may have: all that may wait.
pub(super) const REQUEST_BYTES_MAX: usize = (WAITING_KIB_MAX as usize) << 10;

/// What is to be written.
pub(super) enum Write {
    /// A fenced append to a log.
    Append { shard: ShardId, stream: Arc<Stream>, expected: Seq, entry: Bytes },
    /// Messages for streams, in order.
    Publish(Vec<(Arc<Stream>, Vec<Bytes>)>),
    /// Nothing up to and with `through` is needed, but the last message stays.
    Trim { stream: Arc<Stream>, through: Seq },
    /// An ingress message is done with.
    Ack { seq: u64 },
}

/// A write, and who waits for it.
pub(super) struct Request {
    pub(super) write: Write,
    pub(super) answer: oneshot::Sender<Result<Seq>>,
    /// To be given back once answered.
    pub(super) kib: u32,
}

/// Requests on their way.
pub(super) struct Intake {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    /// In KiB.
    room: Semaphore,
}

struct Waiting {
    requests: Vec<Request>,
    closed: bool,
    /// Whether the committer sleeps and must be woken.
    asleep: bool,
}

impl Intake {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting { requests: Vec::new(), closed: false, asleep: false }),
            arrived: Condvar::new(),
            room: Semaphore::new(WAITING_KIB_MAX as usize),
        }
    }

    /// Hands a write of about `bytes` to the committer and waits until it is durable. Dropped
    /// before it waits for the answer, it has written nothing; dropped later, nobody knows.
    pub(super) async fn write(&self, bytes: usize, write: Write) -> Result<Seq> {
        if bytes > REQUEST_BYTES_MAX {
            return Err(Error::TooLarge { bytes, max: REQUEST_BYTES_MAX });
        }
        let kib = u32::try_from(bytes >> 10).map_or(WAITING_KIB_MAX, |kib| (kib + 1).min(WAITING_KIB_MAX));
        let permit = self.room.acquire_many(kib).await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.closed {
                return Err(closed());
            }
            waiting.requests.push(Request { write, answer, kib });
            permit.forget();
            if waiting.asleep {
                waiting.asleep = false;
                self.arrived.notify_one();
            }
        }
        answered.await.unwrap_or_else(|_| Err(Error::Unknown { reason: "the store stopped before it answered".into() }))
    }

    /// The committer's: waits for requests, and for at least `gather`, and moves all of them into
    /// `batch`. False once the intake is closed and empty.
    pub(super) fn take(&self, gather: Duration, batch: &mut Vec<Request>) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !gather.is_zero() {
            // Only closing wakes it: nobody knows it to be asleep.
            let gathering = self.arrived.wait_timeout_while(waiting, gather, |waiting| !waiting.closed);
            waiting = gathering.unwrap_or_else(PoisonError::into_inner).0;
        }
        loop {
            if !waiting.requests.is_empty() {
                std::mem::swap(batch, &mut waiting.requests);
                return true;
            }
            if waiting.closed {
                return false;
            }
            waiting.asleep = true;
            waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The committer's: makes room again.
    pub(super) fn answered(&self, kib: u32) {
        self.room.add_permits(kib as usize);
    }

    /// Takes no more. What waits is still written.
    pub(super) fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.room.close();
        self.arrived.notify_one();
    }

    /// Drops what waits, so that who waits for it is told. For a committer that died.
    pub(super) fn abandon(&self) {
        let abandoned = std::mem::take(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner).requests);
        drop(abandoned);
    }
}

pub(super) fn closed() -> Error {
    Error::Unavailable { reason: "the store is closed".into() }
}
