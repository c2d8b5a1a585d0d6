//! [`Env`] on real time, the tokio runtime, the operating system's randomness and the file system.
//!
//! An edge: the only place in the libraries where the methods that `clippy.toml` forbids are
//! called, each with its reason.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::FutureExt as _;
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};
use tokio::runtime::Handle;
use tracing::Instrument as _;

use super::{BoxFuture, Clock, Disk, Env, Mono, Random, Spawner, Task, WallMs, panic_text};

/// The real environment. Tasks run on the runtime of `handle`, each in a `task` span (level
/// debug) that carries its name.
///
/// Of a task that panics nothing is left but a line in the log; see [`of_a_server`].
#[must_use]
pub fn real(handle: Handle) -> Env {
    with(handle, |_| {})
}

/// The real environment of a process that serves: a task that panics ends it, by `SIGABRT`. Without that task the
/// process would do half its work, and hold what others could take over; as it is, its supervisor starts it
/// again, and what it held is taken over as after any crash.
#[must_use]
pub fn of_a_server(handle: Handle) -> Env {
    with(handle, |task| {
        tracing::error!(task, "the process ends: it would go on without this task");
        std::process::abort();
    })
}

fn with(handle: Handle, lost: fn(&'static str)) -> Env {
    Env::new(
        Arc::new(RealClock::new()),
        Arc::new(TokioSpawner { handle, lost }),
        Arc::new(OsSeeded::new()),
        Arc::new(FileSystem::default()),
    )
}

/// The real file system, for putting an [`Env`] together by hand.
#[must_use]
pub fn disk() -> Arc<dyn Disk> {
    Arc::new(FileSystem::default())
}

struct RealClock {
    began: Instant,
    /// That this process may use. Affinity and a container's quota count.
    processors: u32,
}
impl RealClock {
    #[expect(clippy::disallowed_methods, reason = "this is what stands behind Env::mono")]
    fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
        Self { began: Instant::now(), processors: u32::try_from(processors).unwrap_or(u32::MAX) }
    }
}
impl Clock for RealClock {
    #[expect(clippy::disallowed_methods, reason = "this is what stands behind Env::wall")]
    fn wall(&self) -> WallMs {
        // A clock set before 1970 reads as 1970: wall time is for people and retention only.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
    fn mono(&self) -> Mono {
        Mono(self.began.elapsed())
    }
    #[expect(clippy::disallowed_methods, reason = "this is what stands behind Env::sleep")]
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep(duration))
    }
    fn busy(&self) -> Duration {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::try_from(used).unwrap_or_default() / self.processors
    }
}

struct TokioSpawner {
    handle: Handle,
    /// What to do when a task has panicked.
    lost: fn(&'static str),
}
impl Spawner for TokioSpawner {
    #[expect(clippy::disallowed_methods, reason = "this is what stands behind Env::spawn")]
    fn spawn(&self, name: &'static str, future: BoxFuture<()>) -> Task {
        let span = tracing::debug_span!(parent: None, "task", task = name);
        let lost = self.lost;
        let future = async move {
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                fault(name, panic_text(&*panic));
                lost(name);
            }
        };
        let task =
            if span.is_disabled() { self.handle.spawn(future) } else { self.handle.spawn(future.instrument(span)) };
        let abort = task.abort_handle();
        Task::new(move || abort.abort())
    }
    #[expect(clippy::disallowed_methods, reason = "this is what stands behind Env::blocking")]
    fn blocking(&self, name: &'static str, work: Box<dyn FnOnce() + Send + 'static>) -> BoxFuture<()> {
        let work = self.handle.spawn_blocking(work);
        Box::pin(async move {
            if let Err(error) = work.await {
                // Env::blocking gives None to its caller, who decides what that means.
                tracing::debug!(task = name, %error, "blocking work did not end");
            }
        })
    }
    fn panicked(&self, name: &'static str, why: &str) {
        fault(name, why);
    }
}

fn fault(task: &'static str, why: &str) {
    tracing::error!(task, why, "a fault of this build: a task has panicked; please report it with the lines before");
}

struct OsSeeded {
    // Uncontended in practice: a random number is drawn for a back-off or a choice, not for each message.
    rng: Mutex<SmallRng>,
}
impl OsSeeded {
    #[expect(clippy::disallowed_methods, reason = "this is what stands behind Env::random_u64")]
    fn new() -> Self {
        Self { rng: Mutex::new(SmallRng::from_os_rng()) }
    }
}
impl Random for OsSeeded {
    fn next_u64(&self) -> u64 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }
}

#[derive(Default)]
struct FileSystem {
    /// One replacement at a time, so that the temporary name can be a fixed one: what a crash
    /// leaves behind is then overwritten by the next replacement, and never piles up.
    replacing: Mutex<()>,
}

impl FileSystem {
    fn sync_directory_of(path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            Some(_) | None => File::open(".")?.sync_all(),
        }
    }
    fn temporary_for(path: &Path) -> io::Result<PathBuf> {
        let mut name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?.to_owned();
        name.push(".new");
        Ok(path.with_file_name(name))
    }
}

impl Disk for FileSystem {
    fn read(&self, path: &Path) -> io::Result<Option<Bytes>> {
        match fs::read(path) {
            Ok(content) => Ok(Some(Bytes::from(content))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let _one_at_a_time = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let temporary = Self::temporary_for(path)?;
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(content)?;
            // Before the rename, or a crash could leave the new name with no content.
            file.sync_all()
        });
        if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
            // The first error is the one to tell; the leftover is overwritten next time.
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        Self::sync_directory_of(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Ok(()) => Self::sync_directory_of(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        // Blocks that an unprivileged process may still take: the rest is root's reserve.
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_run_and_can_be_aborted() {
        let env = real(Handle::current());
        let (send, receive) = tokio::sync::oneshot::channel();
        env.spawn("answers", async move { send.send(7).unwrap() });
        assert_eq!(receive.await, Ok(7));
        assert_eq!(env.blocking("adds", || 1 + 1).await, Some(2));

        let (send, receive) = tokio::sync::oneshot::channel::<()>();
        let task = env.spawn("waits for ever", async move {
            std::future::pending::<()>().await;
            drop(send);
        });
        task.abort();
        assert!(receive.await.is_err(), "the aborted task dropped its end");
    }

    #[tokio::test]
    async fn who_panics_is_lost_alone_where_it_is_caught() {
        static LOST: Mutex<Vec<&str>> = Mutex::new(Vec::new());
        let env = with(Handle::current(), |task| LOST.lock().unwrap().push(task));
        let (send, receive) = tokio::sync::oneshot::channel();
        let part = env.clone();
        env.spawn("careful", async move {
            let caught = part.caught("careful", async { panic!("one message") }).await;
            send.send(caught).unwrap();
        });
        assert_eq!(receive.await, Ok(Err::<(), _>("one message".to_owned())));
        env.spawn("lost", async { panic!("all of it") });
        while LOST.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(*LOST.lock().unwrap(), ["lost"]);
    }

    /// Runs itself once more, as the process that ends.
    #[test]
    fn a_server_that_loses_a_task_ends() {
        use std::os::unix::process::ExitStatusExt as _;
        const LOSES: &str = "CELLBUS_TEST_LOSES_A_TASK";
        if std::env::var_os(LOSES).is_some() {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            of_a_server(runtime.handle().clone()).spawn("lost", async { panic!("all of it") });
            return runtime.block_on(std::future::pending());
        }
        let this = std::env::current_exe().unwrap();
        let test = format!("{}::a_server_that_loses_a_task_ends", module_path!().split_once("::").unwrap().1);
        let ended = std::process::Command::new(this).args(["--exact", &test, "--nocapture"]).env(LOSES, "1").output();
        let ended = ended.unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{said}");
        assert!(said.contains("all of it"), "{said}");
    }

    #[tokio::test]
    async fn a_busy_process_is_seen_to_be() {
        let clock = RealClock::new();
        let (began, idle) = (clock.mono(), clock.busy());
        while clock.busy().saturating_sub(idle) < Duration::from_millis(5) {
            assert!(clock.mono().since(began) < Duration::from_secs(60), "it has used {:?} more", clock.busy() - idle);
        }
    }

    #[tokio::test]
    async fn the_monotonic_clock_advances_over_a_sleep() {
        let env = real(Handle::current());
        let before = env.mono();
        env.sleep(Duration::from_millis(5)).await;
        assert!(env.mono().since(before) >= Duration::from_millis(5));
        assert_eq!(env.timeout(Duration::from_millis(5), std::future::pending::<()>()).await, None);
        assert!(env.wall().rfc3339().starts_with("20"));
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileSystem::default();
        let path = dir.path().join("checkpoint");
        assert_eq!(disk.read(&path).unwrap(), None);
        disk.replace(&path, b"one").unwrap();
        disk.replace(&path, b"two").unwrap();
        assert_eq!(disk.read(&path).unwrap().unwrap(), "two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        disk.remove(&path).unwrap();
        disk.remove(&path).unwrap();
        assert_eq!(disk.read(&path).unwrap(), None);
        assert!(disk.replace(&dir.path().join("absent/file"), b"x").is_err());
        assert!(disk.free_bytes(dir.path()).unwrap() > 0);
    }

    #[test]
    fn two_environments_draw_different_numbers() {
        let (a, b) = (OsSeeded::new(), OsSeeded::new());
        assert_ne!((a.next_u64(), a.next_u64()), (b.next_u64(), b.next_u64()));
    }
}
