//! The watch over a real bus: what it knows, since when, and what it does when it cannot know.

use cellbus_bus::Bus;
use cellbus_bus::embedded::{Config, Embedded};
use cellbus_bus::env::{self, Env, WallMs};
use cellbus_bus::ids::{Epoch, ShardCount};
use cellbus_directory::record::{Operator, Record};
use cellbus_directory::replica::Replica;

use super::*;

const ALL: Scope = Scope { manager: None, paused: Paused::All };
const DESTRUCTIVE: Scope = Scope { manager: None, paused: Paused::Destructive };

fn by() -> Operator {
    Operator { who: "ada".to_owned(), from: "127.0.0.1".to_owned() }
}
fn order(scope: Scope) -> Record {
    Record::Paused { scope, reason: "why".to_owned(), by: by() }
}
pub(crate) fn paused(scopes: &[Scope]) -> Pauses {
    let mut pauses = Pauses::default();
    scopes.iter().for_each(|scope| pauses.apply(WallMs(1), &order(*scope)));
    pauses
}

struct World {
    _dir: tempfile::TempDir,
    bus: Arc<dyn Bus>,
    env: Env,
    process: Process,
    following: env::Task,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let env = env::real(tokio::runtime::Handle::current());
        let bus = Embedded::open(Config { free_bytes_min: 0, ..Config::new(dir.path()) }, env.clone()).unwrap();
        Self::over(dir, bus, env)
    }
    fn over(dir: tempfile::TempDir, bus: Arc<dyn Bus>, env: Env) -> Self {
        let replica = Arc::new(Replica::new(ShardCount::new(4).unwrap(), 1));
        let process = Process::alone(env.clone(), Arc::clone(&bus), Arc::default(), replica);
        let watched = process.clone();
        let following = env.spawn("pauses", async move { match follow(&watched).await {} });
        Self { _dir: dir, bus, env, process, following }
    }
    fn shard(&self) -> ShardId {
        ShardId::of_cluster(self.process.count)
    }
    async fn append(&self, epoch: u64, records: Vec<Record>) -> Seq {
        let end = self.bus.log_end(self.shard()).await.unwrap();
        let entry = Entry { epoch: Epoch(epoch), prev: end, at: WallMs(1), jobs: None, control: None, records };
        self.bus.append(self.shard(), end, entry.encode()).await.unwrap()
    }
    async fn until(&self, what: &str, mut holds: impl FnMut(&Watch) -> bool) {
        let began = self.env.mono();
        while !holds(&self.process.pauses) {
            assert!(self.env.mono().since(began) < Duration::from_secs(30), "{what}: {:?}", self.process.pauses);
            self.env.sleep(Duration::from_millis(5)).await;
        }
    }
    fn opened(&self) -> Record {
        Record::Opened { cell: "c".parse().unwrap(), address: "a".to_owned() }
    }
}

#[tokio::test]
async fn it_is_known_from_the_log_and_what_an_overtaken_owner_wrote_is_not() {
    let world = World::new();
    world.until("an empty log is read", |watch| watch.as_of().is_some()).await;
    world.append(5, vec![world.opened(), order(DESTRUCTIVE)]).await;
    world.until("the pause", |watch| watch.pauses().get(&DESTRUCTIVE).is_some()).await;
    world.append(4, vec![order(ALL)]).await;
    world.append(5, vec![Record::Resumed { scope: DESTRUCTIVE, by: by() }]).await;
    world.until("the end of it", |watch| watch.pauses().get(&DESTRUCTIVE).is_none()).await;
    assert!(world.process.pauses.pauses().is_empty(), "what is void counts for nothing");
    let before = world.process.pauses.as_of();
    world.until("it is looked again and again", |watch| watch.as_of() > before).await;
}

#[tokio::test]
async fn a_new_process_reads_the_snapshot_and_what_comes_after_it() {
    let world = World::new();
    world.append(1, vec![world.opened(), order(DESTRUCTIVE)]).await;
    let count = world.process.count;
    let limits = cellbus_workflows::Limits::for_shards(count);
    let mut shard = cellbus_workflows::Shard::new(world.shard(), count, limits);
    let mut reader = world.bus.read_log(world.shard(), Seq::ZERO).await.unwrap();
    let first = reader.next(1).await.unwrap().remove(0);
    shard.apply(first.seq, &Entry::decode(&first.body).unwrap());
    let id = cellbus_bus::contract::SnapshotId { shard: world.shard(), seq: first.seq, epoch: Epoch(1) };
    world.bus.write_snapshot(id, shard.snapshot(first.seq).encode()).await.unwrap();
    world.append(1, vec![Record::Snapshot { id }]).await;
    world.append(1, vec![order(ALL)]).await;
    world.bus.trim_log(world.shard(), first.seq, 2).await.unwrap();
    world.following.abort();
    let World { _dir, bus, env, .. } = world;
    let world = World::over(_dir, bus, env);
    world.until("both", |watch| watch.as_of().is_some()).await;
    assert_eq!(*world.process.pauses.pauses(), paused(&[ALL, DESTRUCTIVE]));
}

#[tokio::test]
async fn a_log_that_cannot_be_read_lets_nothing_be_removed_and_all_else_go_on() {
    let world = World::new();
    let mut gate = Gate::new(ManagerId::derive("vc-1"));
    let names = ManagerNames::default();
    let end = world.bus.append(world.shard(), Seq::ZERO, bytes::Bytes::from_static(&[31, 1, 2])).await.unwrap();
    world.until("it is said", |watch| watch.known.load().unreadable.is_some()).await;
    assert!(world.process.pauses.refresh(&mut gate, &names));
    let now = world.env.mono();
    let why = gate.shut(now, StepKind::Removes).unwrap().into_owned();
    assert!(why.contains(&format!("entry {end} of its log")), "{why}");
    assert_eq!((gate.shut(now, StepKind::Changes), gate.shut(now, StepKind::Reads)), (None, None));
}
