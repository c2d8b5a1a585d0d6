//! Backups on a schedule, by one process of the cluster.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cellbus_bus::env::WallMs;
use cellbus_bus::{Bus, Env};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::file::PARTIAL;
use super::{Error, Result, Taken, take};
use crate::metrics::backup::Metrics;

/// How often it is looked whether one is due, at the least.
const LOOK: Duration = Duration::from_secs(1);
/// The pause after one that failed, at the most.
const AGAIN_MAX: Duration = Duration::from_secs(60);
const SUFFIX: &str = ".backup";

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where backups are put. Made if it is not there.
    pub dir: PathBuf,
    /// From the beginning of one to that of the next.
    pub every: Duration,
    /// How many are kept.
    pub keep: usize,
}

/// Takes backups until it is stopped.
pub struct Service {
    config: Config,
    bus: Arc<dyn Bus>,
    env: Env,
    cluster: Uuid,
    metrics: Metrics,
    /// Whether it is this process's to do.
    mine: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Service {
    /// For the cluster with this id. `mine` says whether it is this process that takes backups now:
    /// of several exactly one should.
    pub fn new(
        config: Config,
        bus: Arc<dyn Bus>,
        env: Env,
        cluster: Uuid,
        metrics: Metrics,
        mine: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { config, bus, env, cluster, metrics, mine: Box::new(mine) }
    }

    /// Runs until it is stopped. The first one is due when the newest that is there is old enough.
    pub async fn run(self, stop: CancellationToken) {
        let mut due = None;
        loop {
            let wait = self.env.sleep(LOOK.min(self.config.every));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = wait => {}
            }
            if !(self.mine)() {
                due = None;
                continue;
            }
            let now = self.env.wall();
            let at = match due {
                Some(at) => at,
                None => self.newest().await.map_or(now, |newest| newest.after(self.config.every)),
            };
            due = Some(at);
            if at > now {
                continue;
            }
            let taken = tokio::select! {
                biased;
                // What was begun is left, and replaced by the next one.
                () = stop.cancelled() => return,
                taken = self.once(now) => taken,
            };
            due = Some(match taken {
                Ok(taken) => {
                    self.metrics.taken(&taken);
                    now.after(self.config.every)
                }
                Err(error) => {
                    self.metrics.failed();
                    tracing::error!(code = error.code(), error = %chain(&error), "no backup was taken; it is tried again");
                    self.env.wall().after(self.config.every.min(AGAIN_MAX))
                }
            });
        }
    }

    async fn once(&self, now: WallMs) -> Result<Taken> {
        let dir = self.config.dir.clone();
        let made = self.env.blocking("make directory", move || fs::create_dir_all(dir)).await.ok_or(Error::Stopped)?;
        made.map_err(|source| Error::Write { path: self.config.dir.clone(), source })?;
        let path = self.config.dir.join(name_of(self.cluster, now));
        let taken = take(self.bus.as_ref(), &self.env, &path).await?;
        tracing::info!(file = %path.display(), bytes = taken.summary.bytes, "a backup was taken");
        // Only now: until then the old ones were all there was.
        let (dir, cluster, keep) = (self.config.dir.clone(), self.cluster, self.config.keep);
        match self.env.blocking("drop old backups", move || prune(&dir, cluster, keep)).await {
            Some(Ok(())) | None => {}
            Some(Err(error)) => tracing::warn!(%error, "an old backup was not removed"),
        }
        Ok(taken)
    }

    async fn newest(&self) -> Option<WallMs> {
        let (dir, cluster) = (self.config.dir.clone(), self.cluster);
        let newest = self.env.blocking("look for backups", move || {
            let newest = of_cluster(&dir, cluster)?.pop();
            newest.map(|path| fs::metadata(path)?.modified()).transpose()
        });
        let modified = newest.await?.ok()??.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(WallMs(u64::try_from(modified.as_millis()).ok()?))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Names sort as they follow in time.
fn name_of(cluster: Uuid, at: WallMs) -> String {
    let time: String = at.rfc3339().chars().filter(char::is_ascii_alphanumeric).collect();
    format!("cellbus-{cluster}-{time}{SUFFIX}")
}

/// The backups of a cluster that are whole, oldest first.
fn of_cluster(dir: &Path, cluster: Uuid) -> io::Result<Vec<PathBuf>> {
    let prefix = format!("cellbus-{cluster}-");
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(&prefix) && name.ends_with(SUFFIX)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Removes all but the newest, and what was left half way before them.
fn prune(dir: &Path, cluster: Uuid, keep: usize) -> io::Result<()> {
    let whole = of_cluster(dir, cluster)?;
    for old in &whole[..whole.len().saturating_sub(keep.max(1))] {
        fs::remove_file(old)?;
    }
    let prefix = format!("cellbus-{cluster}-");
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let left = path.file_name().and_then(|name| name.to_str());
        if left.is_some_and(|name| name.starts_with(&prefix) && name.ends_with(&format!("{SUFFIX}{PARTIAL}"))) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use cellbus_bus::embedded::{self, Embedded};
    use cellbus_bus::format::Formats;
    use cellbus_bus::ids::ShardCount;
    use prometheus::Registry;

    use super::*;

    /// Waits until the metric is at least this.
    async fn at_least(env: &Env, registry: &Registry, name: &str, least: f64) {
        let value = || {
            let families = registry.gather();
            let family = families.iter().find(|family| family.name() == name).expect("it is registered");
            family.get_metric()[0].get_counter().get_value()
        };
        let reached = async {
            while value() < least {
                env.sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = env.timeout(Duration::from_secs(60), reached).await;
        assert!(in_time.is_some(), "{name} is {}, and {least} was waited for", value());
    }

    #[tokio::test]
    async fn they_are_taken_by_the_one_whose_turn_it_is_and_again_after_a_failure() {
        let (folder, env) = (tempfile::tempdir().unwrap(), cellbus_bus::env::real(tokio::runtime::Handle::current()));
        let bus = Embedded::open(embedded::Config::new(folder.path().join("bus")), env.clone()).unwrap();
        let shards = ShardCount::new(2).unwrap();
        let record = crate::node::cluster_record(bus.as_ref(), &env, shards, Formats::KNOWN).await.unwrap();
        let (dir, registry, stop) = (folder.path().join("backups"), Registry::new(), CancellationToken::new());
        // In the way of the directory.
        fs::write(&dir, "").unwrap();
        let mine = Arc::new(AtomicBool::new(false));
        let config = Config { dir: dir.clone(), every: Duration::from_millis(10), keep: 2 };
        let turn = Arc::clone(&mine);
        let service = Service::new(
            config,
            bus.clone(),
            env.clone(),
            record.cluster_id,
            Metrics::new(&registry).unwrap(),
            move || turn.load(Ordering::Relaxed),
        );
        let story = async {
            mine.store(true, Ordering::Relaxed);
            at_least(&env, &registry, "cellbus_backups_failed_total", 2.0).await;
            fs::remove_file(&dir).unwrap();
            at_least(&env, &registry, "cellbus_backups_taken_total", 4.0).await;
            stop.cancel();
        };
        futures::join!(service.run(stop.clone()), story);
        let left = of_cluster(&dir, record.cluster_id).unwrap();
        // The last may have been stopped before it dropped what is too old.
        assert!((2..=3).contains(&left.len()), "{left:?}");
        let empty = Embedded::open(embedded::Config::new(folder.path().join("new")), env.clone()).unwrap();
        let restored = super::super::restore(empty.as_ref(), &env, &left[0], shards).await.unwrap();
        assert_eq!(restored.record.shards, shards);
    }

    #[test]
    fn the_newest_backups_of_the_cluster_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let at = |n: u64| WallMs(1_700_000_000_000 + n * 3_600_000);
        for n in 0..5 {
            fs::write(dir.path().join(name_of(mine, at(n))), "x").unwrap();
        }
        let others = [name_of(other, at(0)), "notes.backup".to_owned(), format!("cellbus-{mine}-x.txt")];
        others.iter().for_each(|name| fs::write(dir.path().join(name), "x").unwrap());
        fs::write(dir.path().join(format!("{}{PARTIAL}", name_of(mine, at(1)))), "x").unwrap();
        prune(dir.path(), mine, 2).unwrap();
        let mut left: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        let mut expected = vec![name_of(mine, at(3)), name_of(mine, at(4))];
        expected.extend(others);
        expected.sort();
        assert_eq!(left, expected);
    }
}
