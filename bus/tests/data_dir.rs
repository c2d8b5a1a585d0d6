//! What can befall a data directory: two processes, damage, a newer format, no room, no right to
//! write, a kill in the middle of a write.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use cellbus_bus::contract::{Position, Queue, QueueKind};
use cellbus_bus::embedded::{Config, Embedded, OpenError};
use cellbus_bus::env::real;
use cellbus_bus::ids::{Seq, ShardCount, ShardId};
use cellbus_bus::{Bus, Error};
use tokio::runtime::Handle;

fn config(dir: &Path) -> Config {
    Config { free_bytes_min: 0, segment_bytes: 16 << 10, tail_bytes: 16 << 10, ..Config::new(dir) }
}
fn open(dir: &Path) -> Result<Arc<Embedded>, OpenError> {
    Embedded::open(config(dir), real(Handle::current()))
}
fn shard(index: u16) -> ShardId {
    ShardId::new(index, ShardCount::DEFAULT).expect("below the default")
}
fn jobs(index: u16) -> Queue {
    Queue { shard: shard(index), kind: QueueKind::Jobs }
}
fn refused(dir: &Path) -> (&'static str, String) {
    let before = contents(dir);
    let Err(error) = open(dir) else { panic!("the directory opened") };
    assert_eq!(contents(dir), before, "nothing was changed");
    (error.code(), error.to_string())
}
/// Every file but the lock, with what it holds.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path);
            } else if !path.ends_with("cellbus.lock") {
                found.insert(path.clone(), fs::read(path).expect("a file"));
            }
        }
    }
    found
}
fn segments(dir: &Path) -> Vec<PathBuf> {
    contents(&dir.join("log")).into_keys().collect()
}
/// A store with several segments, closed.
async fn filled(dir: &Path) {
    let bus = open(dir).expect("the store opens");
    for number in 0..80_u64 {
        bus.publish(jobs(1), vec![Bytes::from(format!("{number:0>1000}"))]).await.expect("a publish");
    }
    bus.close().await;
    assert!(segments(dir).len() > 3);
}
async fn count(bus: &Embedded, queue: Queue) -> u64 {
    bus.depth(queue, Seq::ZERO).await.expect("a depth").messages
}

#[tokio::test]
async fn a_directory_has_one_holder() {
    let dir = tempfile::tempdir().expect("a directory");
    let bus = open(dir.path()).expect("the store opens");
    let (code, sentence) = refused(dir.path());
    assert_eq!(code, "data_dir_locked");
    assert!(sentence.contains(&format!("(pid {})", std::process::id())), "{sentence}");
    bus.publish(jobs(1), vec![Bytes::new()]).await.expect("the holder goes on");
    drop(bus);
    open(dir.path()).expect("a dropped bus lets the directory go");
}

#[tokio::test]
async fn damage_is_an_error_that_names_the_place() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(dir.path()).await;
    let files = segments(dir.path());
    // In the first segment, and in the last but with whole frames behind it.
    for (file, at) in [(&files[0], 10), (&files[0], 5000), (&files[1], 3), (files.last().expect("a segment"), 60)] {
        let good = fs::read(file).expect("a segment");
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(file, bad).expect("damage");
        let (code, sentence) = refused(dir.path());
        assert_eq!(code, "data_dir_corrupt", "{sentence}");
        assert!(sentence.contains("segment") && sentence.contains("at byte"), "{sentence}");
        fs::write(file, good).expect("repair");
    }
    let hidden = dir.path().join("hidden");
    fs::rename(&files[1], &hidden).expect("a segment goes");
    let (code, sentence) = refused(dir.path());
    assert_eq!(code, "data_dir_corrupt");
    assert!(sentence.contains("jobs.1"), "{sentence}");
    fs::rename(&hidden, &files[1]).expect("it is back");
    assert_eq!(count(&open(dir.path()).expect("all is well again"), jobs(1)).await, 80);
}

#[tokio::test]
async fn damage_after_the_start_is_noticed_by_who_reads() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(dir.path()).await;
    let bus = open(dir.path()).expect("the store opens");
    let file = &segments(dir.path())[0];
    let mut bad = fs::read(file).expect("a segment");
    bad[5000] ^= 1;
    fs::write(file, bad).expect("damage");
    let nothing = Position::default();
    let mut reader = bus.read_queue(jobs(1), nothing).await.expect("a reader");
    let read = reader.next(80).await;
    assert!(matches!(&read, Err(Error::Damaged { what }) if what.contains("jobs.1")), "{read:?}");
}

#[tokio::test]
async fn an_unfinished_write_is_cut_off() {
    let dir = tempfile::tempdir().expect("a directory");
    {
        let bus = open(dir.path()).expect("the store opens");
        for number in 0..3 {
            bus.publish(jobs(1), vec![Bytes::from(format!("message {number}"))]).await.expect("a publish");
        }
        bus.close().await;
    }
    let file = segments(dir.path()).remove(0);
    let whole = fs::read(&file).expect("a segment");
    let mut counts = Vec::new();
    // A segment gets its name only once its header and an empty first frame are durable. Zeros
    // follow the last frame.
    let (born, end) = (32 + 24, whole.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    for length in 0..born {
        fs::write(&file, &whole[..length]).expect("a cut");
        assert_eq!(refused(dir.path()).0, "data_dir_corrupt");
    }
    for length in born..=end {
        fs::write(&file, &whole[..length]).expect("a cut");
        let bus = open(dir.path()).unwrap_or_else(|error| panic!("cut to {length} bytes: {error}"));
        counts.push(count(&bus, jobs(1)).await);
        // And it takes more.
        bus.publish(jobs(2), vec![Bytes::new()]).await.expect("a publish");
        bus.close().await;
    }
    assert!(counts.is_sorted(), "{counts:?}");
    assert_eq!((counts[0], counts[end - born - 1], counts[end - born]), (0, 2, 3));
}

#[tokio::test]
async fn the_format_is_checked() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(dir.path()).await;
    let format = dir.path().join("cellbus.format");
    let good = fs::read(&format).expect("a format");
    assert_eq!(good, b"cellbus data directory, format 1\n");
    for (content, expected) in [
        ("cellbus data directory, format 2\n", "data_dir_newer_format"),
        ("something else\n", "data_dir_corrupt"),
        ("", "data_dir_corrupt"),
    ] {
        fs::write(&format, content).expect("another format");
        assert_eq!(refused(dir.path()).0, expected, "{content:?}");
    }
    fs::remove_file(&format).expect("no format");
    assert_eq!(refused(dir.path()).0, "data_dir_corrupt");
    fs::write(&format, good).expect("the format again");
    open(dir.path()).expect("all is well again");
}

#[tokio::test]
async fn a_file_is_no_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    fs::write(&path, b"not ours").expect("a file");
    assert_eq!(refused(&path).0, "data_dir_unusable");
    assert_eq!(fs::read(&path).expect("the file"), b"not ours");
}

/// Runs this test again in a process of its own, as `role`, inside mounts that nobody else sees.
/// `None` where the system does not allow that.
fn in_mounts(test: &str, role: &str, mounts: &str, dir: &Path) -> Option<std::process::Output> {
    let allowed = |flags: &[&str]| {
        let probe = Command::new("unshare").args(flags).args(["sh", "-c", mounts, "sh"]).arg(dir).output();
        probe
            .is_ok_and(|output| output.status.success())
            .then(|| flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    };
    let Some(flags) = allowed(&["--mount"]).or_else(|| allowed(&["--mount", "--map-root-user"])) else {
        eprintln!("skipped: this system lets us make no mounts of our own");
        return None;
    };
    let exe = std::env::current_exe().expect("this test");
    let script = format!("{mounts} && exec \"$2\" --exact \"$3\" --nocapture");
    let output = Command::new("unshare")
        .args(flags)
        .args(["sh", "-c", &script, "sh"])
        .arg(dir)
        .arg(exe)
        .arg(test)
        .env("CELLBUS_TEST_ROLE", role)
        .env("CELLBUS_TEST_DIR", dir)
        .output()
        .expect("unshare runs");
    Some(output)
}
fn role() -> Option<(String, PathBuf)> {
    Some((std::env::var("CELLBUS_TEST_ROLE").ok()?, PathBuf::from(std::env::var("CELLBUS_TEST_DIR").ok()?)))
}
fn assert_child(output: Option<std::process::Output>) {
    if let Some(output) = output {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}");
        assert!(out.contains("1 passed"), "the child ran: {out}");
    }
}

#[tokio::test]
async fn a_read_only_directory_is_refused() {
    if let Some((_, dir)) = role() {
        assert_eq!(refused(&dir).0, "data_dir_read_only");
        assert_eq!(refused(&dir.join("new")).0, "data_dir_read_only");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    filled(dir.path()).await;
    let mounts = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\"";
    assert_child(in_mounts("a_read_only_directory_is_refused", "reader", mounts, dir.path()));
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_lost() {
    if let Some((_, dir)) = role() {
        return on_a_small_disk(&dir).await;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mounts = "mount -t tmpfs -o size=4m tmpfs \"$1\"";
    assert_child(in_mounts("a_full_disk_is_told_and_nothing_is_lost", "writer", mounts, dir.path()));
}

async fn on_a_small_disk(dir: &Path) {
    let data = dir.join("data");
    let mut config = config(&data);
    config.free_bytes_min = 2 << 20;
    let bus = Embedded::open(config.clone(), real(Handle::current())).expect("the store opens");
    // The threshold first: jobs are refused while half of the disk is free.
    let body = Bytes::from(vec![7; 10_000]);
    loop {
        match (bus.publish(jobs(1), vec![body.clone()]).await, bus.accepting()) {
            (Err(Error::Full { reason }), Err(Error::Full { .. })) => {
                assert!(reason.contains("below the threshold"), "{reason}");
                break;
            }
            // Between two readings of the free space the bus reckons on the safe side.
            (Ok(_) | Err(Error::Full { .. }), _) => {}
            (Err(other), _) => panic!("{other}"),
        }
    }
    let kept = count(&bus, jobs(1)).await;
    assert!(kept > 50, "{kept}");
    bus.append(shard(1), Seq::ZERO, Bytes::from_static(b"goes on")).await.expect("an append below the threshold");
    bus.close().await;

    // Then with no threshold, to the last byte.
    config.free_bytes_min = 0;
    let bus = Embedded::open(config.clone(), real(Handle::current())).expect("the store opens");
    let mut end = bus.log_end(shard(1)).await.expect("an end");
    let full = loop {
        match bus.append(shard(1), end, body.clone()).await {
            Ok(seq) => end = seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, Error::Full { .. }), "{full}");
    assert_eq!(bus.log_end(shard(1)).await.expect("an end"), end);
    assert_eq!(count(&bus, jobs(1)).await, kept);
    // What is there can be read, and given up to make room again.
    let mut reader = bus.read_queue(jobs(1), Position::default()).await.expect("a reader");
    assert_eq!(reader.next(10).await.expect("messages")[0].body, body);
    bus.close().await;
    let fillers: Vec<PathBuf> = (0..2000).map(|number| dir.join(format!("filler-{number}"))).collect();
    let filled = fillers.iter().any(|filler| fs::write(filler, [0; 4096]).is_err());
    assert!(filled, "the disk is full");
    let opened = Embedded::open(config.clone(), real(Handle::current()));
    let bus = opened.expect("a full disk does not keep what is there from being opened");
    let refused = bus.append(shard(1), end, body.clone()).await;
    assert!(matches!(refused, Err(Error::Full { .. })), "{refused:?}");
    assert!(
        Embedded::open(Config::new(dir.join("another")), real(Handle::current()))
            .is_err_and(|error| error.code() == "data_dir_full")
    );
    for entry in fs::read_dir(dir).expect("the disk") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            fs::remove_file(path).expect("room again");
        }
    }
    bus.trim_queue(jobs(1), Seq(kept)).await.expect("a trim");
    end = bus.append(shard(1), end, Bytes::from_static(b"again")).await.expect("it goes on by itself");
    bus.close().await;
    let bus = Embedded::open(config, real(Handle::current())).expect("the store opens");
    assert_eq!(bus.log_end(shard(1)).await.expect("an end"), end);
}

/// Writes for ever, telling on standard output what was acknowledged: `q <queue> <number>` or
/// `l <shard> <seq>`.
async fn write_for_ever(dir: &Path) {
    use std::io::Write as _;
    let bus = open(dir).expect("the store opens");
    let env = real(Handle::current());
    for index in 0..4_u16 {
        let (publisher, appender) = (Arc::clone(&bus), Arc::clone(&bus));
        env.spawn("publishes", async move {
            let mut number = publisher.depth(jobs(index), Seq::ZERO).await.expect("a depth").messages;
            loop {
                let batch = (number + 1..=number + 3).map(|number| queue_body(index, number)).collect();
                let last = publisher.publish(jobs(index), batch).await.expect("a publish");
                number += 3;
                assert_eq!(last.0, number);
                let mut out = std::io::stdout().lock();
                writeln!(out, "q {index} {number}").and_then(|()| out.flush()).expect("a reader");
            }
        });
        env.spawn("appends", async move {
            let mut end = appender.log_end(shard(index)).await.expect("an end");
            loop {
                end = appender.append(shard(index), end, queue_body(index, end.0 + 1)).await.expect("an append");
                if end.0 % 7 == 0 {
                    appender.trim_log(shard(index), Seq(end.0 - 3), 2).await.expect("a trim");
                }
                let mut out = std::io::stdout().lock();
                writeln!(out, "l {index} {end}").and_then(|()| out.flush()).expect("a reader");
            }
        });
    }
    std::future::pending::<()>().await;
}
fn queue_body(index: u16, number: u64) -> Bytes {
    Bytes::from(format!("{index} {number} {}", "x".repeat((number % 300) as usize)))
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_nine() {
    if let Some((_, dir)) = role() {
        return write_for_ever(&dir).await;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut acked: BTreeMap<(String, u16), u64> = BTreeMap::new();
    for round in 0..8_u64 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "what_was_acknowledged_survives_kill_nine", "--nocapture"])
            .env("CELLBUS_TEST_ROLE", "writer")
            .env("CELLBUS_TEST_DIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("a child");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut left = 100 + round * 137;
        let mut note = |line: &str| {
            let mut words = line.split(' ');
            let kind = words.next().filter(|kind| matches!(*kind, "q" | "l"));
            if let (Some(kind), Some(index), Some(number)) = (kind, words.next(), words.next()) {
                acked.insert((kind.to_owned(), index.parse().expect("an index")), number.parse().expect("a number"));
            }
        };
        while left > 0 {
            let line = lines.next().expect("the child goes on").expect("a line");
            note(&line);
            left -= 1;
        }
        child.kill().expect("a kill");
        child.wait().expect("its end");
        // What it said before it died counts too.
        lines.map_while(Result::ok).for_each(|line| note(&line));

        let bus = open(dir.path()).expect("the store opens after a kill");
        for ((kind, index), number) in &acked {
            if kind == "q" {
                let end = count(&bus, jobs(*index)).await;
                assert!(end >= *number, "queue {index} has {end} of {number}");
                let mut reader = bus.read_queue(jobs(*index), Position::default()).await.expect("a reader");
                let mut next = 1;
                while next <= end {
                    for message in reader.next(1000).await.expect("messages") {
                        assert_eq!((message.seq.0, message.body), (next, queue_body(*index, next)));
                        next += 1;
                    }
                }
            } else {
                let end = bus.log_end(shard(*index)).await.expect("an end").0;
                assert!(end >= *number, "log {index} has {end} of {number}");
                let after = match bus.read_log(shard(*index), Seq::ZERO).await {
                    Ok(_) => 0,
                    Err(Error::Trimmed { first }) => first.0 - 1,
                    Err(other) => panic!("{other}"),
                };
                let mut reader = bus.read_log(shard(*index), Seq(after)).await.expect("a reader");
                let mut next = after + 1;
                while next <= end {
                    for message in reader.next(1000).await.expect("entries") {
                        assert_eq!((message.seq.0, message.body), (next, queue_body(*index, next)));
                        next += 1;
                    }
                }
            }
        }
        bus.close().await;
    }
}
