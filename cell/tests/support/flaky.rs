//! A bus whose membership can be taken away while all else works: beats are lost, queues are not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cellbus_bus::contract::*;
use cellbus_bus::ids::{CellId, Seq, ShardId};
use cellbus_bus::{Bus, Result};

pub struct Flaky {
    pub inner: Arc<dyn Bus>,
    pub members_away: AtomicBool,
    /// It does not say what is in logs; all else works.
    pub logs_silent: Arc<AtomicBool>,
    /// Counts the questions for depths.
    pub depths: Depths,
}

/// Questions for depths that are under way at once.
#[derive(Default)]
pub struct Depths {
    now: AtomicUsize,
    pub most: AtomicUsize,
}

impl Flaky {
    fn members_there(&self) -> Result<()> {
        if self.members_away.load(Ordering::Relaxed) {
            Err(Error::Unavailable { reason: "taken away".into() })
        } else {
            Ok(())
        }
    }
}

fn logs_there(silent: &AtomicBool) -> Result<()> {
    if silent.load(Ordering::Relaxed) { Err(Error::Unavailable { reason: "silent".into() }) } else { Ok(()) }
}

struct FlakyReader {
    reader: Box<dyn Reader>,
    silent: Arc<AtomicBool>,
}
#[async_trait]
impl Reader for FlakyReader {
    async fn next(&mut self, max: usize) -> Result<Vec<Message>> {
        let messages = self.reader.next(max).await?;
        logs_there(&self.silent)?;
        Ok(messages)
    }
}

#[async_trait]
impl Bus for Flaky {
    async fn cluster(&self, initial: ClusterRecord) -> Result<ClusterRecord> {
        self.inner.cluster(initial).await
    }
    async fn cluster_record(&self) -> Result<Option<ClusterRecord>> {
        self.inner.cluster_record().await
    }
    async fn replace_cluster(&self, expected: &ClusterRecord, new: ClusterRecord) -> Result<ClusterRecord> {
        self.inner.replace_cluster(expected, new).await
    }
    async fn ingress_unacked(&self, after: Seq, max: usize) -> Result<Vec<Unacked>> {
        self.inner.ingress_unacked(after, max).await
    }
    async fn ingress_depth(&self) -> Result<u64> {
        self.inner.ingress_depth().await
    }
    async fn queue_end(&self, queue: Queue) -> Result<Seq> {
        self.inner.queue_end(queue).await
    }
    async fn ingress_publish(&self, tenant: &str, headers: Vec<(String, String)>, body: Bytes) -> Result<()> {
        self.inner.ingress_publish(tenant, headers, body).await
    }
    async fn ingress_next(&self, redeliver_after: Duration) -> Result<Box<dyn Delivery>> {
        self.inner.ingress_next(redeliver_after).await
    }
    async fn publish(&self, queue: Queue, items: Vec<Bytes>) -> Result<Seq> {
        self.inner.publish(queue, items).await
    }
    async fn publish_all(&self, items: Vec<(Queue, Vec<Bytes>)>) -> Result<()> {
        self.inner.publish_all(items).await
    }
    async fn read_queue(&self, queue: Queue, after: Position) -> Result<Box<dyn Reader>> {
        self.inner.read_queue(queue, after).await
    }
    async fn depth(&self, queue: Queue, after: Seq) -> Result<Depth> {
        let depths = &self.depths;
        let now = depths.now.fetch_add(1, Ordering::SeqCst) + 1;
        depths.most.fetch_max(now, Ordering::SeqCst);
        // Others get their turn.
        tokio::task::yield_now().await;
        let depth = self.inner.depth(queue, after).await;
        depths.now.fetch_sub(1, Ordering::SeqCst);
        depth
    }
    async fn trim_queue(&self, queue: Queue, through: Seq) -> Result<()> {
        self.inner.trim_queue(queue, through).await
    }
    async fn append(&self, shard: ShardId, expected: Seq, entry: Bytes) -> Result<Seq> {
        self.inner.append(shard, expected, entry).await
    }
    async fn log_end(&self, shard: ShardId) -> Result<Seq> {
        logs_there(&self.logs_silent)?;
        self.inner.log_end(shard).await
    }
    async fn reply(&self, to: &str, body: Bytes) {
        self.inner.reply(to, body).await;
    }
    async fn read_log(&self, shard: ShardId, after: Seq) -> Result<Box<dyn Reader>> {
        logs_there(&self.logs_silent)?;
        let reader = self.inner.read_log(shard, after).await?;
        Ok(Box::new(FlakyReader { reader, silent: Arc::clone(&self.logs_silent) }))
    }
    async fn write_snapshot(&self, id: SnapshotId, body: Bytes) -> Result<()> {
        self.inner.write_snapshot(id, body).await
    }
    async fn snapshots(&self, shard: ShardId) -> Result<Vec<SnapshotId>> {
        self.inner.snapshots(shard).await
    }
    async fn read_snapshot(&self, id: SnapshotId) -> Result<Option<Bytes>> {
        self.inner.read_snapshot(id).await
    }
    fn log_fullness(&self, shard: ShardId) -> Option<f64> {
        self.inner.log_fullness(shard)
    }
    fn queue_fullness(&self, queue: Queue) -> Option<f64> {
        self.inner.queue_fullness(queue)
    }
    async fn trim_log(&self, shard: ShardId, through: Seq, keep: usize) -> Result<()> {
        self.inner.trim_log(shard, through, keep).await
    }
    async fn beat(&self, member: Member, ttl: Duration) -> Result<()> {
        self.members_there()?;
        self.inner.beat(member, ttl).await
    }
    async fn leave(&self, cell: &CellId) -> Result<()> {
        self.inner.leave(cell).await
    }
    async fn members(&self) -> Result<Vec<Member>> {
        self.members_there()?;
        self.inner.members().await
    }
    async fn publish_events(&self, events: Vec<Event>) -> Result<()> {
        self.inner.publish_events(events).await
    }
    async fn read_events(&self, after: Option<Seq>) -> Result<Box<dyn EventReader>> {
        self.inner.read_events(after).await
    }
    fn accepting(&self) -> Result<()> {
        self.inner.accepting()
    }
}
