//! Which store the embedded bus should stand on: the same load, through fjall and through a bare
//! segment file, with the processor time of all threads. See
//! `ops/docs/decisions/0003-embedded-store.md`.
//!
//! The load: commits of `BATCH` messages of 512 bytes over 512 streams, made durable one after
//! the other; each message is removed again `LAG` messages later, as queues are.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads the clock and prints")]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::{Duration, Instant};

use fjall::{Database, KeyspaceCreateOptions, PersistMode};

const MESSAGES: u64 = 1_000_000;
const LAG: u64 = 100_000;
const BODY: [u8; 512] = {
    let mut body = [0; 512];
    let mut i = 0;
    let mut x = 7_u32;
    while i < 512 {
        // Half of it compresses, as JSON does.
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        body[i] = if i % 2 == 0 { b'a' } else { (x >> 24) as u8 };
        i += 1;
    }
    body
};

fn cpu() -> Duration {
    // utime and stime, in ticks of 10 ms.
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let after = stat.rsplit(')').next().expect("a name in parentheses");
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}
fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") / 1024
}

fn report(name: &str, batch: u64, wall: Duration, cpu: Duration, disk: u64) {
    println!(
        "{name:<22} batch {batch:>5}: {:>9.0} durable messages/s, {:>6.2} us of CPU each (all threads), {:>6} MiB on disk, peak {} MiB",
        MESSAGES as f64 / wall.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / MESSAGES as f64,
        disk >> 20,
        rss_mib(),
    );
}

fn key(message: u64) -> [u8; 11] {
    let mut key = [0; 11];
    key[..2].copy_from_slice(&((message % 256) as u16).to_be_bytes());
    key[2] = ((message >> 8) % 2) as u8;
    key[3..].copy_from_slice(&(message / 512).to_be_bytes());
    key
}

fn fjall(batch: u64, weak: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let db = Database::builder(dir.path())
        .worker_threads(1)
        .cache_size(16 << 20)
        .max_journaling_size(128 << 20)
        .manual_journal_persist(true)
        .open()
        .expect("open");
    let queues = db
        .keyspace("queues", || {
            KeyspaceCreateOptions::default().max_memtable_size(32 << 20).manual_journal_persist(true)
        })
        .expect("keyspace");
    let (began, cpu_began) = (Instant::now(), cpu());
    let mut next = 0;
    while next < MESSAGES {
        let mut writes = db.batch().durability(Some(PersistMode::SyncData));
        for message in next..next + batch {
            writes.insert(&queues, key(message), BODY);
            if message >= LAG {
                if weak {
                    writes.remove_weak(&queues, key(message - LAG))
                } else {
                    writes.remove(&queues, key(message - LAG))
                }
            }
        }
        writes.commit().expect("commit");
        next += batch;
    }
    report(
        if weak { "fjall, weak removes" } else { "fjall" },
        batch,
        began.elapsed(),
        cpu() - cpu_began,
        db.disk_space().unwrap_or(0),
    );
}

fn segment(batch: u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut file = OpenOptions::new().create(true).append(true).open(dir.path().join("segment")).expect("open");
    let (began, cpu_began) = (Instant::now(), cpu());
    let mut next = 0;
    let mut frame = Vec::new();
    while next < MESSAGES {
        frame.clear();
        for message in next..next + batch {
            frame.extend_from_slice(&key(message));
            frame.extend_from_slice(&BODY);
        }
        let crc = crc32fast::hash(&frame);
        frame.extend_from_slice(&crc.to_be_bytes());
        file.write_all(&frame).expect("write");
        file.sync_data().expect("sync");
        next += batch;
    }
    report("bare segment file", batch, began.elapsed(), cpu() - cpu_began, file.metadata().map_or(0, |m| m.len()));
}

fn main() {
    for batch in [100, 1_000] {
        segment(batch);
        fjall(batch, false);
        fjall(batch, true);
    }
}
