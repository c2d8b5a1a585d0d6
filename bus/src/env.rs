//! `Env`: the one door through which a cell reaches time, randomness, tasks and files.
//!
//! Decision code takes these as arguments; code that must act (cells, directory, controller) is
//! handed an [`Env`] and uses nothing else. So the same cell runs on real time in production and
//! on virtual time, single-threaded and from one seed, in the simulator. `clippy.toml` forbids
//! the ways around it. Calls to other cells go through `cell::Peers`, and durable messages
//! through [`crate::Bus`], which are handed in beside it.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use serde::{Deserialize, Serialize};

mod real;

pub use real::{disk, of_a_server, real};

/// A future that owns what it needs, on the heap.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Milliseconds since the Unix epoch, as this machine believes. For people, deadlines and
/// retention; never for leases, which go by [`Mono`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallMs(pub u64);

impl WallMs {
    /// At least this much later; saturating. A part of a millisecond counts as a whole one: what is
    /// put off for less would else be due at once, and again, for as long as the clock shows the same.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)))
    }
    /// How long ago `earlier` was; zero if it is in the future.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
    /// RFC 3339 in UTC with milliseconds, as the API shows times.
    #[must_use]
    pub fn rfc3339(self) -> String {
        let millis = i64::try_from(self.0).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_millisecond(millis) {
            Ok(time) => format!("{time:.3}"),
            Err(_) => jiff::Timestamp::MAX.to_string(),
        }
    }
}
impl fmt::Debug for WallMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

/// A reading of a monotonic clock: time since that clock began. Only differences mean anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Mono(pub Duration);

impl Mono {
    /// How long ago `earlier` was; zero if it is later than this.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
    /// This much later.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

/// Time. An implementer MUST keep `mono` from ever going back; `wall` may jump.
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn wall(&self) -> WallMs;
    /// The monotonic clock.
    fn mono(&self) -> Mono;
    /// Ready once `mono` has advanced by `duration`. Cancel safe: dropping it forgets the timer.
    fn sleep(&self, duration: Duration) -> BoxFuture<()>;
    /// Processor time of this process so far, over all its threads, divided by the processors it may use:
    /// it advances as fast as `mono` while all of them are busy with it. Zero where that is not known.
    fn busy(&self) -> Duration {
        Duration::ZERO
    }
}

/// Tasks. The name is for logs and for the simulator's trace.
pub trait Spawner: Send + Sync {
    /// Runs `future` beside the caller until it ends or the [`Task`] is aborted.
    fn spawn(&self, name: &'static str, future: BoxFuture<()>) -> Task;
    /// Runs blocking work (a store, a hypervisor library) off the async threads. In the
    /// simulator it runs in place.
    fn blocking(&self, name: &'static str, work: Box<dyn FnOnce() + Send + 'static>) -> BoxFuture<()>;
    /// A part of the task of this name has panicked, and the task goes on without it ([`Env::caught`]).
    fn panicked(&self, name: &'static str, why: &str);
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    said.unwrap_or("without a message")
}

/// A spawned task. Dropping it detaches the task; [`Task::abort`] stops it at its next await.
pub struct Task {
    abort: Box<dyn Fn() + Send + Sync>,
}
impl Task {
    /// From whatever stops the task.
    pub fn new(abort: impl Fn() + Send + Sync + 'static) -> Self {
        Self { abort: Box::new(abort) }
    }
    /// Stops the task at its next await. Idempotent.
    pub fn abort(&self) {
        (self.abort)()
    }
}
impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task")
    }
}

/// Randomness. In the simulator, a stream of the run's seed.
pub trait Random: Send + Sync {
    /// The next 64 bits.
    fn next_u64(&self) -> u64;
}

/// Small files that can be rebuilt (the directory's checkpoint). Calls block; run them through
/// [`Spawner::blocking`].
pub trait Disk: Send + Sync {
    /// The whole file, or `None` if there is none.
    ///
    /// # Errors
    /// What the file system says.
    fn read(&self, path: &Path) -> io::Result<Option<Bytes>>;
    /// Replaces the file by `content`, whole or not at all, and durable on return.
    ///
    /// # Errors
    /// What the file system says; the old file is then untouched.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Removes the file if it is there.
    ///
    /// # Errors
    /// What the file system says.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Bytes that may still be written below `path`.
    ///
    /// # Errors
    /// What the file system says.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// Everything that a running part may reach outside itself. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    clock: Arc<dyn Clock>,
    spawner: Arc<dyn Spawner>,
    random: Arc<dyn Random>,
    disk: Arc<dyn Disk>,
}

impl Env {
    /// Puts an environment together from its parts.
    pub fn new(clock: Arc<dyn Clock>, spawner: Arc<dyn Spawner>, random: Arc<dyn Random>, disk: Arc<dyn Disk>) -> Self {
        Self { clock, spawner, random, disk }
    }
    /// The wall clock.
    #[must_use]
    pub fn wall(&self) -> WallMs {
        self.clock.wall()
    }
    /// The monotonic clock.
    #[must_use]
    pub fn mono(&self) -> Mono {
        self.clock.mono()
    }
    /// Processor time of this process so far, as a share of all it may use ([`Clock::busy`]).
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.clock.busy()
    }
    /// Waits. Cancel safe.
    pub fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        self.clock.sleep(duration)
    }
    /// Starts a task.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> Task {
        self.spawner.spawn(name, Box::pin(future))
    }
    /// Runs a part of a task, which is lost alone if it panics: what it worked on is to be thrown away then.
    /// For parts that one message or one manager's answer may bring down, again and again; a task
    /// that panics otherwise is not there any more, which in a real process ends the process.
    ///
    /// # Errors
    /// What the panic said.
    pub async fn caught<T>(&self, name: &'static str, part: impl Future<Output = T>) -> Result<T, String> {
        AssertUnwindSafe(part).catch_unwind().await.map_err(|panic| {
            let why = panic_text(&*panic).to_owned();
            self.spawner.panicked(name, &why);
            why
        })
    }
    /// Tells of a panic that was caught by other means than [`Env::caught`].
    pub fn panicked(&self, name: &'static str, why: &str) {
        self.spawner.panicked(name, why);
    }
    /// Runs blocking work off the async threads and gives its result; `None` if it panicked or
    /// the runtime is shutting down.
    pub async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (send, receive) = tokio::sync::oneshot::channel();
        self.spawner
            .blocking(
                name,
                Box::new(move || {
                    // The receiver is gone only when the caller was cancelled; nobody wants the result then.
                    let _ = send.send(work());
                }),
            )
            .await;
        receive.await.ok()
    }
    /// The next 64 random bits.
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        self.random.next_u64()
    }
    /// Files.
    #[must_use]
    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk)
    }
    /// `future`, or `None` once `limit` has passed. Cancel safe if `future` is.
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        let sleep = self.sleep(limit);
        tokio::select! {
            biased;
            output = future => Some(output),
            () = sleep => None,
        }
    }
}
impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_off_is_never_due_at_once() {
        assert_eq!(WallMs(5).after(Duration::ZERO), WallMs(5));
        assert_eq!(WallMs(5).after(Duration::from_nanos(1)), WallMs(6));
        assert_eq!(WallMs(5).after(Duration::from_millis(2)), WallMs(7));
        assert_eq!(WallMs(5).after(Duration::MAX), WallMs(u64::MAX));
    }
}
