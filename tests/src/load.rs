//! Jobs that come so many a second, each followed by its producer to its end, and what is seen of a
//! cluster whose size follows them. Times are seconds since the load began.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::task::JoinSet;

use crate::process::{Door, Server, event};

/// How long a job may take to be taken and to end, on a busy machine.
const WITHIN: Duration = Duration::from_secs(240);

/// What became of a job.
#[derive(Clone, Debug)]
pub struct Took {
    /// Its id.
    pub job: String,
    /// When it was submitted.
    pub at: f64,
    /// Seconds until its producer knew its end.
    pub seconds: f64,
}

/// The load. Dropped, nobody waits for what it has sent.
pub struct Load {
    began: Instant,
    /// Jobs sent.
    pub sent: usize,
    due: f64,
    last: f64,
    per_second: fn(f64) -> f64,
    door: Door,
    producers: JoinSet<Result<Took>>,
}

impl Load {
    /// One that begins now, so many jobs a second by the second, at this server.
    #[must_use]
    pub fn new(server: &Server, per_second: fn(f64) -> f64) -> Self {
        let (door, producers) = (server.door(), JoinSet::new());
        Self { began: Instant::now(), sent: 0, due: 0.0, last: 0.0, per_second, door, producers }
    }
    /// Seconds since it began.
    #[must_use]
    pub fn at(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
    /// Submits what has become due, and waits for none of it: a shard that moves holds up its own jobs alone.
    pub fn send(&mut self) {
        let now = self.at();
        self.due += (self.per_second)(now) * (now - self.last);
        self.last = now;
        while self.due >= 1.0 {
            self.due -= 1.0;
            self.producers.spawn(produce(self.door.clone(), self.sent, self.began));
            self.sent += 1;
        }
    }
    /// Waits until all have ended; each must have succeeded. In the order in which they were submitted.
    ///
    /// # Errors
    /// What became of the first that did not succeed, or is not told in time.
    pub async fn all(&mut self) -> Result<Vec<Took>> {
        let mut jobs = Vec::new();
        while let Some(done) = self.producers.join_next().await {
            jobs.push(done??);
        }
        jobs.sort_by(|a, b| a.at.total_cmp(&b.at));
        Ok(jobs)
    }
}

async fn produce(door: Door, number: usize, began: Instant) -> Result<Took> {
    let name = format!("vm-{number}");
    let data = json!({"name": name, "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x", "power": "off"});
    let job = event("provision", &name, None, &data);
    let at = began.elapsed().as_secs_f64();
    let ended = door.succeed(&job, WITHIN).await.with_context(|| format!("the job of {at:.1} s"))?;
    let seconds = began.elapsed().as_secs_f64() - at;
    let job = ended["job_id"].as_str().context("a job has an id")?.to_owned();
    Ok(Took { job, at, seconds })
}

/// What the cluster was seen to be.
#[derive(Default)]
pub struct Seen {
    /// Jobs that had not ended.
    pub open: Vec<(f64, f64)>,
    /// Every size that was decided, and when it was first seen.
    pub sizes: Vec<(f64, u64)>,
    /// When a second cell had opened a shard.
    pub second_works: Option<f64>,
}

impl Seen {
    /// Looks at it.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn look(&mut self, at: f64, server: &Server) -> Result<()> {
        // A shard that is just moving does not answer: it is looked again.
        if let Some(open) = server.get("/v1/queue").await?.body["jobs_open"].as_f64() {
            self.open.push((at, open));
        }
        if let Some(size) = server.get("/v1/scale").await?.body["cells"].as_u64()
            && self.sizes.last().is_none_or(|(_, last)| *last != size)
        {
            self.sizes.push((at, size));
        }
        if self.second_works.is_none() {
            let shards = crate::cluster::rows(&server.get("/v1/shards").await?.body);
            let open = shards.iter().filter(|row| row["state"] == "open");
            let owners: BTreeSet<String> = open.map(|row| row["owner"].to_string()).collect();
            self.second_works = (owners.len() > 1).then_some(at);
        }
        Ok(())
    }
    /// Jobs that had not ended when it was looked last.
    #[must_use]
    pub fn open_now(&self) -> f64 {
        self.open.last().map_or(0.0, |(_, open)| *open)
    }
    /// When the size turned: more after fewer, or fewer after more.
    #[must_use]
    pub fn turns(&self) -> Vec<f64> {
        let grows: Vec<(f64, bool)> = self.sizes.windows(2).map(|pair| (pair[1].0, pair[1].1 > pair[0].1)).collect();
        grows.windows(2).filter(|pair| pair[0].1 != pair[1].1).map(|pair| pair[1].0).collect()
    }
    /// When fewer cells were decided.
    #[must_use]
    pub fn left(&self) -> Vec<f64> {
        self.sizes.windows(2).filter(|pair| pair[1].1 < pair[0].1).map(|pair| pair[1].0).collect()
    }
}

/// How long the longest of them took; 0 if there is none.
#[must_use]
pub fn longest<'a>(jobs: impl Iterator<Item = &'a Took>) -> f64 {
    jobs.map(|job| job.seconds).fold(0.0, f64::max)
}
