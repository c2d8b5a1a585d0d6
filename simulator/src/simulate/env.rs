//! [`Env`] of a simulated node: virtual time at its own rate, tasks that die with it, randomness
//! and files of its own.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::env::{BoxFuture, Clock, Disk, Env, Mono, Random, Spawner, Task, WallMs};
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};

use super::executor::{Executor, NodeId, TimerId};

/// The environment of a node as it is now; once it crashes, nothing runs in it any more.
pub(super) fn of(executor: &Arc<Executor>, node: NodeId, seed: u64) -> Env {
    with_disk(executor, node, seed, Arc::new(MemoryDisk::default()))
}

/// The same with a disk that outlives the node.
pub(super) fn with_disk(executor: &Arc<Executor>, node: NodeId, seed: u64, disk: Arc<dyn Disk>) -> Env {
    let incarnation = executor.incarnation(node);
    let stream = seed ^ (u64::from(node.0) << 40) ^ (incarnation << 52);
    Env::new(
        Arc::new(NodeClock { executor: Arc::clone(executor), node }),
        Arc::new(NodeSpawner { executor: Arc::clone(executor), node, incarnation }),
        Arc::new(Stream { rng: Mutex::new(SmallRng::seed_from_u64(stream)) }),
        disk,
    )
}

struct NodeClock {
    executor: Arc<Executor>,
    node: NodeId,
}
impl Clock for NodeClock {
    fn wall(&self) -> WallMs {
        WallMs(self.executor.clocks(self.node).1)
    }
    fn mono(&self) -> Mono {
        Mono(Duration::from_nanos(self.executor.clocks(self.node).0))
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let (now, _) = self.executor.clocks(self.node);
        let until = now.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
        Box::pin(Sleep { executor: Arc::clone(&self.executor), node: self.node, until, timer: None })
    }
}

struct Sleep {
    executor: Arc<Executor>,
    node: NodeId,
    until: u64,
    timer: Option<TimerId>,
}
impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.executor.due(this.node, this.until, &mut this.timer, context.waker()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            self.executor.forget(timer);
        }
    }
}

struct NodeSpawner {
    executor: Arc<Executor>,
    node: NodeId,
    incarnation: u64,
}
impl Spawner for NodeSpawner {
    fn spawn(&self, name: &'static str, future: BoxFuture<()>) -> Task {
        let task = self.executor.spawn(self.node, self.incarnation, name, future);
        let executor = Arc::downgrade(&self.executor);
        Task::new(move || {
            if let (Some(executor), Some(task)) = (executor.upgrade(), task) {
                executor.abort(task);
            }
        })
    }
    fn blocking(&self, _name: &'static str, work: Box<dyn FnOnce() + Send + 'static>) -> BoxFuture<()> {
        Box::pin(async move { work() })
    }
    /// Caught or not, it is a fault.
    fn panicked(&self, name: &'static str, why: &str) {
        self.executor.panicked(name, why);
    }
}

struct Stream {
    rng: Mutex<SmallRng>,
}
impl Random for Stream {
    fn next_u64(&self) -> u64 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }
}

/// Files in memory. It keeps what was replaced whole, as the contract of [`Disk`] says; writes
/// fail while it is told so.
#[derive(Default)]
pub(super) struct MemoryDisk {
    files: Mutex<BTreeMap<PathBuf, Bytes>>,
    failing: Mutex<bool>,
}
impl MemoryDisk {
    /// Whether writes fail from now on. No part of a cell writes files today: what its directory
    /// checkpoints goes past [`Env`], and runs have none.
    #[cfg(test)]
    pub(super) fn fail(&self, failing: bool) {
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = failing;
    }
    fn writable(&self) -> io::Result<()> {
        if *self.failing.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(io::Error::other("a simulated disk fails"));
        }
        Ok(())
    }
}
impl Disk for MemoryDisk {
    fn read(&self, path: &Path) -> io::Result<Option<Bytes>> {
        Ok(self.files.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned())
    }
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.writable()?;
        let content = Bytes::copy_from_slice(content);
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), content);
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.writable()?;
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        Ok(())
    }
    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(1 << 40)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_disk_leaves_what_was_there() {
        let disk = MemoryDisk::default();
        let path = Path::new("checkpoint");
        disk.replace(path, b"one").unwrap();
        disk.fail(true);
        assert!(disk.replace(path, b"two").is_err());
        assert!(disk.remove(path).is_err());
        assert_eq!(disk.read(path).unwrap().unwrap(), "one");
        disk.fail(false);
        disk.remove(path).unwrap();
        assert_eq!(disk.read(path).unwrap(), None);
    }
}
