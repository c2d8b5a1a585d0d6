//! `kill -9` of `cellbus up` at random moments under load, over and over the same data. After it
//! all, every job that was acknowledged has one outcome, which never changes; no VM is there
//! twice; the audit is clean.

#![expect(clippy::disallowed_methods, reason = "it drives the real binary from outside, in real time")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cellbus_tests::books::{Books, all_end, no_vm_twice};
use cellbus_tests::process::{Server, long};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

const ARGUMENTS: &[&str] = &["--cells", "3", "--hosts", "60", "--managers", "6", "--latency", "fast"];
/// Submitters at once: enough that every kill finds calls, appends and submissions under way.
const SUBMITTERS: u64 = 8;

/// Sends events until the server is gone.
async fn submitter(server: Arc<Server>, books: Arc<Mutex<Books>>, round: u64, me: u64, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed ^ round << 8 ^ me);
    for number in 0_u64.. {
        let key = format!("{round}-{me}-{number}");
        let event = books.lock().expect("no holder panics").next(&mut rng, &key);
        let Ok(answer) = server.submit(&event).await else { return };
        if answer.status == 202 {
            let id = answer.body["job_id"].as_str().expect("an acknowledged job has an id");
            books.lock().expect("no holder panics").acknowledged(&key, id).expect("one event is one job");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_job_survives_kills() -> Result<()> {
    let kills = if long() { 20 } else { 5 };
    let seed = std::env::var("CELLBUS_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| SmallRng::from_os_rng().random());
    println!("seed {seed} (CELLBUS_SEED={seed} plays it again, as far as real processes do)");
    let mut rng = SmallRng::seed_from_u64(seed);
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let books = Arc::new(Mutex::new(Books::default()));

    for round in 0..kills {
        // Every fourth time it is killed while it starts: replay, takeover and inventory are under way.
        if round % 4 == 3 {
            let starting = Server::listening(&data, ARGUMENTS)?;
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..200))).await;
            starting.kill()?;
        }
        let server = Arc::new(Server::start(&data, ARGUMENTS).await?);
        let submitters: Vec<_> =
            (0..SUBMITTERS).map(|me| tokio::spawn(submitter(server.clone(), books.clone(), round, me, seed))).collect();
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..2_000))).await;
        server.signal(rustix::process::Signal::KILL)?;
        for submitter in submitters {
            submitter.await?;
        }
        Arc::into_inner(server).context("submitters have ended")?.ended(Duration::from_secs(10)).await?;
    }

    let server = Server::start(&data, ARGUMENTS).await?;
    let mut books = Arc::into_inner(books).context("submitters have ended")?.into_inner()?;
    books.send_all_again(&server).await?;
    println!("{} jobs over {kills} kills", books.jobs.len());
    ensure!(books.jobs.len() > 20, "the submitters did next to nothing");
    all_end(&server, &mut books).await.with_context(|| server.log_tail())?;
    no_vm_twice(&server).await?;
    server.succeed(&["audit"])?;
    // Seen once more: outcomes have not changed.
    all_end(&server, &mut books).await?;
    Ok(())
}
