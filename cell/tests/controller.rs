//! The autoscaling controller over real cells: one decides, kills lose nothing, what is not known holds.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::env::Task;
use cellbus_cell::config::scale::Scale as Configured;
use cellbus_cell::controller::{Config, Handle, Launcher, Service, Wanted};
use cellbus_cell::gateway::ScaleChange;
use cellbus_directory::record::Operator;
use cellbus_directory::scale::{Mode, Settings};
use cellbus_workflows::Scale;
use support::Cluster;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct Told {
    desired: Mutex<Vec<u32>>,
    trouble: Mutex<Option<String>>,
}

#[async_trait]
impl Launcher for Told {
    fn name(&self) -> &'static str {
        "told"
    }
    fn want(&self, wanted: Wanted) {
        self.desired.lock().unwrap().push(wanted.desired);
    }
    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap().clone()
    }
}

impl Told {
    fn last(&self) -> Option<u32> {
        self.desired.lock().unwrap().last().copied()
    }
}

fn settings() -> Settings {
    Settings { min: 1, max: 4, ..Configured::default().settings }
}

fn controller(cluster: &Cluster, id: &str, lease: Duration) -> (Task, Handle, Arc<Told>) {
    let told = Arc::new(Told::default());
    let config = Config {
        id: id.parse().unwrap(),
        member: None,
        configured: settings(),
        tuning: Configured::default().tuning,
        lease,
    };
    let (service, handle) = Service::new(config, cluster.gateway.clone(), Arc::clone(&told) as Arc<dyn Launcher>);
    let task = cluster.env.spawn("controller", service.run(CancellationToken::new()));
    (task, handle, told)
}

fn operator() -> Operator {
    Operator { who: "anonymous".to_owned(), from: "127.0.0.1:1".to_owned() }
}

async fn fix(cluster: &Cluster, cells: u32) {
    let change = ScaleChange { mode: Some(Mode::Fixed), cells: Some(cells), ..ScaleChange::default() };
    let shown = cluster.gateway.set_scale(&settings(), &change, operator()).await.unwrap();
    assert_eq!((shown.settings.mode, shown.settings.cells), (Mode::Fixed, cells));
}

async fn kept(cluster: &Cluster) -> Scale {
    cluster.gateway.scale(1_000, None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_decides_and_the_next_goes_on_when_it_is_killed() {
    let cluster = Cluster::start(2, 32, &[("vc-1", 4, 16)]).await;
    let lease = Duration::from_millis(1_500);
    let (first, _, told_first) = controller(&cluster, "first", lease);
    cluster.until("first decides", || async { told_first.last().map(|_| ()).ok_or("nothing".to_owned()) }).await;
    let (_second, second, told_second) = controller(&cluster, "second", lease);
    fix(&cluster, 5).await;
    let wants = |told: &Arc<Told>, desired| {
        let last = told.last();
        async move { if last == Some(desired) { Ok(()) } else { Err(format!("{last:?}")) } }
    };
    cluster.until("five are wanted", || wants(&told_first, 5)).await;
    assert!(!second.status().leads && told_second.last().is_none(), "one decides at a time");

    // Killed at whatever it is doing, right after something was asked of it.
    fix(&cluster, 7).await;
    first.abort();
    cluster.until("the other goes on", || wants(&told_second, 7)).await;
    let scale = kept(&cluster).await;
    let leader = scale.leader.clone().unwrap();
    assert_eq!((leader.controller.as_str(), leader.term.0), ("second", 2));
    // Every decision follows from the one before it, over the change of controllers too.
    let decisions: Vec<_> = scale.decisions.iter().map(|decision| (decision.before, decision.desired)).collect();
    assert!(decisions.windows(2).all(|pair| pair[0].1 == pair[1].0), "{decisions:?}");
    assert_eq!(decisions.last().map(|last| last.1), Some(7));
    let set = scale.set.unwrap();
    assert_eq!((set.by, set.settings.cells), (operator(), 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_launcher_fails_with_is_kept_and_shown() {
    let cluster = Cluster::start(1, 32, &[("vc-1", 4, 16)]).await;
    let (_task, _, told) = controller(&cluster, "one", Duration::ZERO);
    *told.trouble.lock().unwrap() = Some("no more machines".to_owned());
    fix(&cluster, 3).await;
    cluster
        .until("trouble is kept", || async {
            let last = kept(&cluster).await.decisions.back().cloned();
            let trouble = last.as_ref().and_then(|last| last.trouble.clone());
            if trouble.as_deref() == Some("no more machines") { Ok(()) } else { Err(format!("{last:?}")) }
        })
        .await;
    cluster
        .until("three are wanted", || async { told.last().filter(|d| *d == 3).map(|_| ()).ok_or(String::new()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_readings_hold_the_size() {
    let cluster = Cluster::start(2, 32, &[("vc-1", 4, 16)]).await;
    let (_task, handle, told) = controller(&cluster, "one", Duration::ZERO);
    cluster.until("it decides", || async { told.last().map(|_| ()).ok_or("nothing".to_owned()) }).await;
    cluster.members_away(true);
    // The cells' leases run out, and with them what can be read.
    let env = &cluster.env;
    let began = env.mono();
    while env.mono().since(began) < Duration::from_secs(7) {
        env.sleep(Duration::from_millis(100)).await;
        let desired = told.desired.lock().unwrap().clone();
        assert!(desired.iter().all(|desired| *desired == 2), "{desired:?}");
    }
    cluster.members_away(false);
    fix(&cluster, 3).await;
    cluster.until("it goes on", || async { told.last().filter(|d| *d == 3).map(|_| ()).ok_or(String::new()) }).await;
    assert!(handle.status().leads);
}
