//! Producers that keep sending while a test does things to the cluster.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::books::Books;
use crate::cluster::{Broker, ClusterOn};
use crate::process::wait_for;

/// Submitters at once: enough that every fault finds calls, appends and submissions under way.
const SUBMITTERS: u64 = 8;

/// Producers that send events to whichever server answers, and keep books, until they are stopped.
pub struct Producers {
    urls: Arc<Mutex<Vec<String>>>,
    books: Arc<Mutex<Books>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Producers {
    /// Starts them.
    pub fn start<B: Broker>(cluster: &ClusterOn<B>, seed: u64) -> Self {
        let urls = Arc::new(Mutex::new(urls(cluster)));
        let (books, stop) = (Arc::<Mutex<Books>>::default(), Arc::<AtomicBool>::default());
        let task = |me| tokio::spawn(produce(Arc::clone(&urls), Arc::clone(&books), Arc::clone(&stop), me, seed));
        let tasks = (0..SUBMITTERS).map(task).collect();
        Self { urls, books, stop, tasks }
    }
    /// The servers have changed.
    pub fn look_again<B: Broker>(&self, cluster: &ClusterOn<B>) {
        *self.urls.lock().unwrap_or_else(PoisonError::into_inner) = urls(cluster);
    }
    /// The events that have been acknowledged, and the jobs that they became.
    pub fn acknowledged(&self) -> Vec<(String, String)> {
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let known = books.jobs.iter().filter_map(|(key, job)| Some((key.clone(), job.acknowledged.clone()?)));
        known.collect()
    }
    /// Waits until so many more events have been acknowledged.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn progress(&self, more: usize) -> Result<()> {
        let count = || {
            let books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
            books.jobs.values().filter(|job| job.acknowledged.is_some()).count()
        };
        let wanted = count() + more;
        let taken = async || Ok(if count() >= wanted { Ok(()) } else { Err(format!("{} of {wanted}", count())) });
        wait_for("more jobs to be taken", Duration::from_secs(120), taken).await
    }
    /// Stops them, and gives the books.
    ///
    /// # Errors
    /// When one has failed.
    pub async fn end(self) -> Result<Books> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await?;
        }
        Ok(Arc::into_inner(self.books).context("producers have ended")?.into_inner()?)
    }
}

fn urls<B: Broker>(cluster: &ClusterOn<B>) -> Vec<String> {
    cluster.servers().map(|server| server.url.clone()).collect()
}

async fn produce(urls: Arc<Mutex<Vec<String>>>, books: Arc<Mutex<Books>>, stop: Arc<AtomicBool>, me: u64, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed ^ me);
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().expect("a client");
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // A second round on what the first has left is other work.
        let key = format!("{seed:x}-{me}-{number}");
        let event = books.lock().expect("no holder panics").next(&mut rng, &key);
        // Asked again, elsewhere, until somebody takes it: what was not answered may have been taken.
        for _ in 0..20 {
            let url = {
                let urls = urls.lock().expect("no holder panics");
                urls[rng.random_range(0..urls.len())].clone()
            };
            let request = http.post(format!("{url}/v1/jobs")).header("content-type", "application/cloudevents+json");
            let answer = request.body(event.to_string()).send().await;
            if let Ok(answer) = answer
                && answer.status() == 202
                && let Ok(body) = answer.json::<serde_json::Value>().await
            {
                let id = body["job_id"].as_str().expect("an acknowledged job has an id");
                books.lock().expect("no holder panics").acknowledged(&key, id).expect("one event is one job");
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The seed of a test: that of `CELLBUS_SEED`, or a new one. It is printed.
pub fn seed() -> u64 {
    let seed = std::env::var("CELLBUS_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| SmallRng::from_os_rng().random());
    println!("seed {seed} (CELLBUS_SEED={seed} plays it again, as far as real processes do)");
    seed
}
