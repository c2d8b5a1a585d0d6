//! A cluster of two "processes" in one: cells, gateway, directory and HTTP server each of their own,
//! one bus, and nothing between them but HTTP.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cellbus_bus::embedded::{Config as BusConfig, Embedded};
use cellbus_bus::env::Task;
use cellbus_bus::ids::{CellId, ShardCount};
use cellbus_bus::{Bus, Env, env};
use cellbus_cell::cell::{self, Cell, Handle};
use cellbus_cell::gateway::Submitted;
use cellbus_cell::http::{App, FixedLogLevel, Members, Served, Settings, serve};
use cellbus_cell::metrics::{self, Metrics};
use cellbus_cell::peers::{HttpPeers, LocalPeers};
use cellbus_cell::{Gateway, Process, front};
use cellbus_directory::record::Operator;
use cellbus_directory::tail::Tail;
use cellbus_directory::{JobState, Replica};
use cellbus_workflows::ManagerNames;
use support::{FakeDrivers, FakeManager, job, provision};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const WAIT: Duration = Duration::from_secs(60);
const SHARDS: u16 = 16;

/// What all processes share, as machines of a network would.
struct World {
    env: Env,
    bus: Arc<Embedded>,
    managers: Vec<Arc<FakeManager>>,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(managers: &[&str]) -> Self {
        let env = env::real(tokio::runtime::Handle::current());
        let dir = tempfile::tempdir().unwrap();
        let config = BusConfig { free_bytes_min: 1 << 20, ..BusConfig::new(dir.path()) };
        let bus = Embedded::open(config, env.clone()).unwrap();
        let managers = managers.iter().map(|name| FakeManager::new(env.clone(), name, 20, 64)).collect();
        Self { env, bus, managers, _dir: dir }
    }
    fn made_twice(&self) -> usize {
        self.managers.iter().map(|manager| manager.made_twice()).sum()
    }
}

/// One process.
struct Side {
    gateway: Gateway,
    cells: Vec<Handle>,
    server: Task,
    stop: CancellationToken,
    posts: metrics::peers::Metrics,
}

impl Side {
    async fn start(world: &World, name: &str, cells: usize, of: usize) -> Self {
        let env = &world.env;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (local, cluster) = (LocalPeers::default(), Uuid::from_u128(1));
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        let posts = metrics::peers::Metrics::new(metrics.registry()).unwrap();
        let peers = Arc::new(HttpPeers::new(local.clone(), cluster, env.clone(), posts.clone()));
        let names = Arc::new(ManagerNames::new(world.managers.iter().map(|manager| manager.name.clone())));
        let replica = Arc::new(Replica::new(ShardCount::new(SHARDS).unwrap(), 7));
        let bus: Arc<dyn Bus> = world.bus.clone();
        let stop = CancellationToken::new();
        let (tail, _) = Tail::new(Arc::clone(&bus), env.clone(), Arc::clone(&replica));
        env.spawn("tail", tail.run(stop.clone()));
        let process = Process::new(env.clone(), bus, peers, local.clone(), names, replica);
        let (running, token) = (process.clone(), stop.clone());
        env.spawn("process", async move { running.run(token).await });
        let gateway = Gateway::new(process.clone());
        let app = App::new(
            Arc::new(Served::new(gateway.clone())),
            env.clone(),
            Settings { members: Some(Members { cells: local, cluster }), ..Settings::default() },
            metrics,
            Arc::new(FixedLogLevel),
        );
        let server = env.spawn("http", serve(app, listener, stop.clone()));
        let drivers = Arc::new(FakeDrivers(world.managers.iter().map(|m| (m.id(), Arc::clone(m))).collect()));
        let start = |n: usize| {
            let id: CellId = format!("{name}-{n}").parse().unwrap();
            let fronts = world.managers.iter().map(|manager| front::Config::new(manager.name.clone()));
            let config = cell::Config {
                address: address.clone(),
                lease: Duration::from_millis(900),
                gather: (of, Duration::from_secs(10)),
                settle: Duration::from_millis(900),
                ..cell::Config::local(id, fronts.collect())
            };
            let (cell, handle) = Cell::new(config, process.clone(), drivers.clone());
            env.spawn("cell", cell.run(stop.clone()));
            handle
        };
        let cells = (0..cells).map(start).collect();
        Self { gateway, cells, server, stop, posts }
    }
    /// With no goodbye: its cells, and its server with all connections.
    fn kill(&self) {
        self.cells.iter().for_each(Handle::kill);
        self.server.abort();
        self.stop.cancel();
    }
    fn shards_open(&self) -> usize {
        self.cells.iter().map(Handle::shards_open).sum()
    }
}

async fn until<F: Future<Output = Result<(), String>>>(env: &Env, what: &str, mut check: impl FnMut() -> F) {
    let mut last = String::new();
    for _ in 0..3_000 {
        match check().await {
            Ok(()) => return,
            Err(state) => last = state,
        }
        env.sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}: still {last}");
}

async fn ready(world: &World, sides: &[&Side]) {
    for side in sides {
        until(&world.env, "ready", || async { side.gateway.ready().map_err(|e| e.to_string()) }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_are_one_cluster_and_one_goes_on_alone() {
    let world = World::new(&["vc-1", "vc-2", "vc-3", "vc-4"]);
    let (one, two) = tokio::join!(Side::start(&world, "one", 2, 3), Side::start(&world, "two", 1, 3));
    ready(&world, &[&one, &two]).await;
    assert!(one.shards_open() > 0 && two.shards_open() > 0 && one.shards_open() + two.shards_open() == 16);

    // Whichever process is asked: jobs run, wherever their homes and managers are.
    let jobs: Vec<_> = (0..400).map(|n| provision(&format!("job-{n}"))).collect();
    for (n, some) in jobs.chunks(50).enumerate() {
        let side = if n % 2 == 0 { &one } else { &two };
        for submitted in side.gateway.submit(some.to_vec()).await.unwrap() {
            assert!(matches!(submitted, Submitted::Accepted { .. }), "{submitted:?}");
        }
    }
    for (n, job) in jobs.iter().enumerate() {
        let side = if n % 2 == 0 { &two } else { &one };
        let ended = side.gateway.wait_job(job.id, WAIT).await.unwrap();
        assert_eq!(ended.row.state, JobState::Succeeded, "{ended:?}");
    }
    assert_eq!((one.posts.posts_dropped(), two.posts.posts_dropped()), (0, 0));

    // Every question that cells ask each other.
    for side in [&one, &two] {
        let gateway = &side.gateway;
        let shards = gateway.shards().await.unwrap();
        assert!(shards.len() == 16 && shards.iter().all(|row| row.owner.is_some()), "{shards:?}");
        assert_eq!(gateway.cells().await.unwrap().len(), 3);
        let managers = gateway.managers().await.unwrap();
        assert!(managers.len() == 4 && managers.iter().all(|row| row.cell.is_some()), "{managers:?}");
        assert_eq!(gateway.hosts(None, None, 1_000).await.unwrap().items.len(), 80);
        assert_eq!(gateway.queue().await.unwrap().shards_unknown, 0);
        assert!(gateway.dead_letters(None, 10).await.unwrap().items.is_empty());
        assert!(gateway.changes(10).await.unwrap().is_empty());
        for job in &jobs[..40] {
            let vm = job.id.vm(0);
            assert!(gateway.live(vm).await.unwrap().held.is_some());
            let why = gateway.explain_vm(vm).await.unwrap();
            assert!(why.vm.is_some() && why.owner.is_some(), "{why:?}");
            let place = gateway.locate(vm).await.unwrap();
            assert!(place.address.is_some_and(|address| address.starts_with("http://127.0.0.1:")));
        }
    }
    let by = Operator { who: "test".to_owned(), from: "here".to_owned() };
    let audit = two.gateway.audit_start(by).await.unwrap();
    until(&world.env, "the audit is clean", || async {
        let audit = two.gateway.audit(audit).map_err(|e| e.to_string())?;
        let clean = audit.ended_at.is_some() && audit.findings_total == 0 && audit.vms == 400;
        if clean { Ok(()) } else { Err(format!("{audit:?}")) }
    })
    .await;

    // One is killed while jobs run; the other takes over, and nothing is lost or made twice.
    world.managers.iter().for_each(|manager| manager.takes_ms.store(20, Ordering::Relaxed));
    let more: Vec<_> = (0..400).map(|n| provision(&format!("more-{n}"))).collect();
    for some in more.chunks(50) {
        two.gateway.submit(some.to_vec()).await.unwrap();
    }
    one.kill();
    for job in &more {
        let ended = two.gateway.wait_job(job.id, WAIT).await.unwrap();
        assert_eq!(ended.row.state, JobState::Succeeded, "{ended:?}");
    }
    assert_eq!(two.shards_open(), 16);
    assert_eq!(world.made_twice(), 0);
    assert!(world.managers.iter().all(|manager| manager.overfilled() == 0));
    assert_eq!(world.managers.iter().map(|manager| manager.vms().len()).sum::<usize>(), 800);
    two.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_drains_hands_over_to_the_other() {
    let world = World::new(&["vc-1", "vc-2"]);
    let (one, two) = tokio::join!(Side::start(&world, "one", 1, 2), Side::start(&world, "two", 1, 2));
    ready(&world, &[&one, &two]).await;
    let jobs: Vec<_> = (0..100).map(|n| provision(&format!("job-{n}"))).collect();
    one.gateway.submit(jobs.clone()).await.unwrap();
    // Asked of the one process, for a cell of the other.
    let by = Operator { who: "test".to_owned(), from: "here".to_owned() };
    one.gateway.drain_cell(two.cells[0].id(), by).await.unwrap();
    for job in &jobs {
        assert_eq!(two.gateway.wait_job(job.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    until(&world.env, "handed over", || async {
        let open = (one.shards_open(), two.shards_open());
        if open == (16, 0) { Ok(()) } else { Err(format!("{open:?}")) }
    })
    .await;
    // What is asked of it still works: the shards are elsewhere.
    let vm = jobs[0].id.vm(0).to_string();
    let stop = job("stop", "stop", Some(&vm), serde_json::json!({}));
    two.gateway.submit(vec![stop.clone()]).await.unwrap();
    assert_eq!(two.gateway.wait_job(stop.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    assert_eq!(world.made_twice(), 0);
    one.kill();
    two.kill();
}
