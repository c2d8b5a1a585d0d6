use std::cell::Cell;
use std::fs;

use cellbus_bus::env::real;
use cellbus_bus::ids::{Epoch, Seq, ShardId};
use proptest::prelude::*;

use super::*;
use crate::record::Entry;
use crate::replica::tests::{check_indexes, tables};
use crate::testing::{self, Ids, Seed};

fn two() -> ShardCount {
    ShardCount::new(2).unwrap()
}
fn shard(n: u16) -> ShardId {
    ShardId::new(n, two()).unwrap()
}
fn cluster() -> Cluster {
    Cluster { id: uuid::Uuid::from_u128(7), shards: two() }
}
fn empty() -> Arc<Replica> {
    Arc::new(Replica::new(two(), 1))
}

async fn open(dir: &Path, replica: &Arc<Replica>) -> Checkpoint {
    let env = real(tokio::runtime::Handle::current());
    Checkpoint::open(Config::new(dir), cluster(), env, Arc::clone(replica)).await
}

fn fill(replica: &Replica, seeds: &[Vec<Seed>]) {
    for n in 0..2 {
        for (seq, entry) in testing::log(&Ids::of(shard(n), two()), seeds) {
            replica.apply(shard(n), seq, &entry);
        }
    }
}

/// Some rows: provisions, some of them begun.
fn some() -> Vec<Vec<Seed>> {
    (0..30).map(|n| vec![[0, n, 0, n + 1], [10, n, n, 0], [14, n, n, 0], [8, n, n, n]]).collect()
}

fn assert_same(a: &Replica, b: &Replica) {
    for shard in two().shards() {
        assert_eq!(tables(a, shard), tables(b, shard));
    }
    assert_eq!((a.stats(), a.cordons()), (b.stats(), b.cordons()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// What is loaded is what was saved, with all that is kept beside the rows, also after
    /// further savings of shards that have grown or shrunk.
    #[test]
    fn what_is_loaded_is_what_was_saved(seeds in testing::seeds(), cut in any::<prop::sample::Index>()) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let replica = empty();
            let mut checkpoint = open(dir.path(), &replica).await;
            assert_eq!(checkpoint.loaded(), &Loaded::default());
            let cut = cut.index(seeds.len());
            fill(&replica, &seeds[..cut]);
            checkpoint.save().await.unwrap();
            assert_eq!(checkpoint.save().await.unwrap(), Saved::default(), "nothing has changed");
            drop(checkpoint);

            let second = empty();
            let mut checkpoint = open(dir.path(), &second).await;
            assert_eq!(checkpoint.loaded().rebuilt, None);
            assert_same(&second, &replica);
            check_indexes(&second);
            fill(&second, &seeds);
            fill(&replica, &seeds);
            check_indexes(&second);
            checkpoint.save().await.unwrap();
            drop(checkpoint);

            let third = empty();
            let checkpoint = open(dir.path(), &third).await;
            assert_eq!(checkpoint.loaded().rebuilt, None);
            assert_same(&third, &replica);
            check_indexes(&third);
        });
    }
}

thread_local! {
    /// Warnings of this thread: a test's own code runs on the test's thread.
    static WARNINGS: Cell<usize> = const { Cell::new(0) };
}

/// Counts warnings. One for all tests: callsites are told once whether anybody listens.
struct Warnings;
impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("cellbus")
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        if *event.metadata().level() <= tracing::Level::WARN {
            WARNINGS.set(WARNINGS.get() + 1);
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// A directory with a checkpoint of [`some`] rows, done something to, and opened again: it must
/// be rebuilt with one warning, then be as good as new.
async fn rebuilds(spoil: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let replica = empty();
    let mut checkpoint = open(dir.path(), &replica).await;
    fill(&replica, &some());
    checkpoint.save().await.unwrap();
    drop(checkpoint);
    spoil(dir.path());

    // Another test may have set it already.
    let _ = tracing::subscriber::set_global_default(Warnings);
    let second = empty();
    WARNINGS.set(0);
    let mut checkpoint = open(dir.path(), &second).await;
    let why = checkpoint.loaded().rebuilt.clone().expect("it was not taken as it was");
    assert_eq!(WARNINGS.get(), 1);
    // The tail brings what is missing, and the next start has it.
    fill(&second, &some());
    assert_same(&second, &replica);
    check_indexes(&second);
    checkpoint.save().await.unwrap();
    drop(checkpoint);
    let third = empty();
    assert_eq!(open(dir.path(), &third).await.loaded().rebuilt, None);
    assert_same(&third, &replica);
    check_indexes(&third);
    why
}

fn store_of(dir: &Path) -> PathBuf {
    storage::numbers(dir).unwrap().pop().unwrap().1
}

fn change(dir: &Path, key: &[u8], value: Option<&[u8]>) {
    // Its lock is let go a while after it was closed.
    let db = (0..200)
        .find_map(|_| {
            sled::open(store_of(dir)).ok().or_else(|| {
                std::thread::yield_now();
                None
            })
        })
        .unwrap();
    match value {
        Some(value) => drop(db.insert(key, value).unwrap()),
        None => drop(db.remove(key).unwrap()),
    }
    db.flush().unwrap();
}

#[tokio::test]
async fn a_missing_checkpoint_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("not/yet/there");
    assert!(!exists(&path));
    let replica = empty();
    let mut checkpoint = open(&path, &replica).await;
    assert_eq!(checkpoint.loaded(), &Loaded::default());
    fill(&replica, &some());
    assert_eq!(checkpoint.save().await.unwrap().shards, 2);
    assert!(exists(&path));
}

#[tokio::test]
async fn one_of_another_cluster_is_rebuilt() {
    let why = rebuilds(|dir| {
        change(dir, b"meta", Some(&store::testing::meta(super::FORMAT, uuid::Uuid::from_u128(8), 2)));
    });
    assert!(why.await.contains("cluster 00000000-0000-0000-0000-000000000008"));
}

#[tokio::test]
async fn one_with_another_number_of_shards_is_rebuilt() {
    let why = rebuilds(|dir| change(dir, b"meta", Some(&store::testing::meta(super::FORMAT, cluster().id, 4))));
    assert!(why.await.contains("4 shards"));
}

#[tokio::test]
async fn one_of_another_format_is_rebuilt() {
    for format in [0, super::FORMAT + 1] {
        let why = rebuilds(|dir| change(dir, b"meta", Some(&store::testing::meta(format, cluster().id, 2))));
        assert!(why.await.contains(&format!("format {format}")));
    }
}

#[tokio::test]
async fn damaged_values_are_rebuilt() {
    for key in [&b"meta"[..], b"s\0\0", b"v\0\x01\0\0\0\0", b"j\0\x01\0\0\0\0", b"p\0\0\0\0"] {
        for value in [Some(&b"no such thing"[..]), Some(b""), None] {
            let why = rebuilds(|dir| change(dir, key, value));
            // A shard without a head is one that was never saved.
            if key != b"s\0\0" || value.is_some() {
                assert!(!why.await.is_empty());
            }
        }
    }
}

/// Every file of the store, damaged in several ways. sled may refuse it, lose part of it or
/// panic: the directory must not.
#[tokio::test]
async fn damaged_files_are_rebuilt() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 5] = [
        ("emptied", Vec::clear),
        ("cut in half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("zeroed", |bytes| bytes.fill(0)),
        ("overwritten", |bytes| bytes.fill(0xa5)),
        ("sprinkled", |bytes| bytes.iter_mut().step_by(997).for_each(|byte| *byte ^= 0x55)),
    ];
    for (what, damage) in damages {
        for name in ["conf", "db"] {
            let dir = tempfile::tempdir().unwrap();
            let replica = empty();
            let mut checkpoint = open(dir.path(), &replica).await;
            fill(&replica, &some());
            checkpoint.save().await.unwrap();
            drop(checkpoint);
            let path = store_of(dir.path()).join(name);
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();

            let second = empty();
            let mut checkpoint = open(dir.path(), &second).await;
            fill(&second, &some());
            for n in 0..2 {
                assert_eq!(tables(&second, shard(n)), tables(&replica, shard(n)), "{name} {what}");
            }
            checkpoint.save().await.unwrap_or_else(|error| panic!("{name} {what}: {error}"));
            drop(checkpoint);
            let third = empty();
            let checkpoint = open(dir.path(), &third).await;
            assert_eq!(checkpoint.loaded().rebuilt, None, "{name} {what}");
            assert_same(&third, &replica);
        }
    }
}

#[tokio::test]
async fn the_directory_of_another_process_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let replica = empty();
    let mut checkpoint = open(dir.path(), &replica).await;
    fill(&replica, &some());
    checkpoint.save().await.unwrap();
    let second = empty();
    let mut other = open(dir.path(), &second).await;
    assert!(other.loaded().rebuilt.as_ref().unwrap().contains("another process"));
    fill(&second, &some());
    assert!(matches!(other.save().await, Err(Error::InUse { .. })));
    drop((checkpoint, other));
    let third = empty();
    assert_eq!(open(dir.path(), &third).await.loaded().rebuilt, None);
    assert_same(&third, &replica);
}

#[tokio::test]
async fn a_place_that_cannot_be_written_costs_a_warning_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "no directory").unwrap();
    let replica = empty();
    let mut checkpoint = open(&path, &replica).await;
    assert!(checkpoint.loaded().rebuilt.is_some());
    fill(&replica, &some());
    assert!(checkpoint.save().await.unwrap_err().retryable());
    // Once it can be, it is.
    fs::remove_file(&path).unwrap();
    assert_eq!(checkpoint.save().await.unwrap().shards, 2);
}

#[tokio::test]
async fn a_store_that_has_grown_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let replica = empty();
    let env = real(tokio::runtime::Handle::current());
    let config = Config { renew_bytes_min: 0, ..Config::new(dir.path()) };
    let mut checkpoint = Checkpoint::open(config, cluster(), env, Arc::clone(&replica)).await;
    let first = store_of(dir.path());
    for n in 1..=20 {
        fill(&replica, &some()[..n]);
        checkpoint.save().await.unwrap();
    }
    // An empty store of sled has more than four times what these rows need.
    assert_ne!(store_of(dir.path()), first);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the old ones are gone");
    drop(checkpoint);
    let second = empty();
    assert_eq!(open(dir.path(), &second).await.loaded().rebuilt, None);
    assert_same(&second, &replica);
    check_indexes(&second);
}

#[tokio::test]
async fn a_clean_stop_writes_everything() {
    let dir = tempfile::tempdir().unwrap();
    let replica = empty();
    let checkpoint = open(dir.path(), &replica).await;
    let stop = CancellationToken::new();
    let (run, fills) = (checkpoint.run(stop.clone()), async {
        fill(&replica, &some());
        stop.cancel();
    });
    futures::join!(run, fills);
    let second = empty();
    assert_eq!(open(dir.path(), &second).await.loaded().rebuilt, None);
    assert_same(&second, &replica);
    // The position is there too: the tail goes on from it.
    for n in 0..2 {
        assert_eq!(second.applied(shard(n)), replica.applied(shard(n)));
        let next = Entry {
            epoch: Epoch(99),
            prev: replica.applied(shard(n)),
            at: cellbus_bus::env::WallMs(1),
            jobs: None,
            control: None,
            records: Vec::new(),
        };
        let seq = Seq(replica.applied(shard(n)).0 + 1);
        assert_eq!(second.apply(shard(n), seq, &next), crate::replica::Applied::Counted);
    }
}
