//! Cells in one process over the embedded bus: jobs end once, whatever happens to the cells.

mod support;

use std::time::Duration;

use cellbus_bus::Bus as _;
use cellbus_bus::cloudevent::Tenants;
use cellbus_bus::contract::{Error as BusError, Queue, QueueKind};
use cellbus_bus::ids::{Epoch, Seq, ShardCount};
use cellbus_cell::gateway::Submitted;
use cellbus_directory::{Entry, JobFilter, JobState, Outcome, Record, VmState};
use support::{Cluster, job, provision};

const WAIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provision_succeeds_and_its_vm_is_found() {
    let cluster = Cluster::start(1, 8, &[("vc-1", 4, 16)]).await;
    let wanted = provision("one");
    let submitted = cluster.gateway.submit(vec![wanted.clone()]).await.unwrap();
    assert!(matches!(submitted[..], [Submitted::Accepted { .. }]), "{submitted:?}");
    let ended = cluster.gateway.wait_job(wanted.id, WAIT).await.unwrap();
    assert_eq!(ended.row.state, JobState::Succeeded, "{ended:?}");
    let vm = cluster.gateway.vm(wanted.id.vm(0)).await.unwrap();
    assert_eq!(vm.state, VmState::Running);
    let located = cluster.gateway.locate(vm.id).await.unwrap();
    assert_eq!(located.manager, Some(cluster.managers[0].id()));
    assert_eq!(cluster.managers[0].facts(&vm.id).unwrap().host, located.host.unwrap());

    // The same key again is the same job; with other data it is a conflict.
    let again = cluster.gateway.submit(vec![wanted.clone()]).await.unwrap();
    assert!(matches!(again[..], [Submitted::Accepted { state: JobState::Succeeded, .. }]), "{again:?}");
    let other = job(
        "provision",
        "one",
        None,
        serde_json::json!({"name": "db", "vcpus": 2, "memory_mib": 1024, "disk_gib": 10, "image": "x"}),
    );
    let conflict = cluster.gateway.submit(vec![other]).await.unwrap();
    assert!(matches!(conflict[..], [Submitted::Conflict { .. }]), "{conflict:?}");

    // An operation by name, and one by id.
    let stop = job("stop", "two", Some("web"), serde_json::json!({}));
    cluster.gateway.submit(vec![stop.clone()]).await.unwrap();
    let ended = cluster.gateway.wait_job(stop.id, WAIT).await.unwrap();
    assert_eq!(ended.row.state, JobState::Succeeded, "{ended:?}");
    assert_eq!(cluster.gateway.vm(vm.id).await.unwrap().state, VmState::Stopped);
    let delete = job("delete", "three", Some(&vm.id.to_string()), serde_json::json!({}));
    cluster.gateway.submit(vec![delete.clone()]).await.unwrap();
    assert_eq!(cluster.gateway.wait_job(delete.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    assert!(cluster.vms().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_cell_loses_nothing() {
    let mut cluster =
        Cluster::start(3, 32, &[("vc-1", 20, 64), ("vc-2", 20, 64), ("vc-3", 20, 64), ("vc-4", 20, 64)]).await;
    cluster.managers.iter().for_each(|m| m.takes_ms.store(20, std::sync::atomic::Ordering::Relaxed));
    let jobs: Vec<_> = (0..1200).map(|i| provision(&format!("job-{i}"))).collect();
    for (i, some) in jobs.chunks(100).enumerate() {
        if i == 4 {
            cluster.cells.remove(1).kill();
        }
        if i == 8 {
            cluster.add_cell();
        }
        for submitted in cluster.gateway.submit(some.to_vec()).await.unwrap() {
            assert!(matches!(submitted, Submitted::Accepted { .. }), "{submitted:?}");
        }
    }
    for job in &jobs {
        let ended = cluster.gateway.wait_job(job.id, WAIT).await.unwrap();
        assert_eq!(ended.row.state, JobState::Succeeded, "{ended:?}");
    }
    assert_eq!(cluster.vms().len(), jobs.len());
    assert_eq!(cluster.made_twice(), 0);
    assert!(cluster.managers.iter().all(|m| m.overfilled() == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_drains_hands_over_without_a_gap() {
    let mut cluster = Cluster::start(2, 16, &[("vc-1", 20, 64), ("vc-2", 20, 64)]).await;
    let leaving = cluster.cells.remove(0);
    let jobs: Vec<_> = (0..300).map(|i| provision(&format!("job-{i}"))).collect();
    cluster.gateway.submit(jobs[..100].to_vec()).await.unwrap();
    leaving.drain();
    let mut slowest = Duration::ZERO;
    for job in &jobs[100..] {
        let began = cluster.env.mono();
        cluster.gateway.submit(vec![job.clone()]).await.unwrap();
        slowest = slowest.max(cluster.env.mono().since(began));
    }
    for job in &jobs {
        assert_eq!(cluster.gateway.wait_job(job.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    cluster
        .until("the cell has left", || async {
            let cells = cluster.gateway.cells().await.map_err(|e| e.to_string())?;
            if cells.len() == 1 { Ok(()) } else { Err(format!("{cells:?}")) }
        })
        .await;
    assert_eq!(cluster.made_twice(), 0);
    eprintln!("slowest submission during the hand-over: {slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_hangs_holds_up_nobody_else() {
    let cluster = Cluster::start(2, 16, &[("vc-1", 4, 64), ("vc-2", 4, 64)]).await;
    cluster.managers[0].hangs.store(true, std::sync::atomic::Ordering::Relaxed);
    let bound = |i| {
        let data = serde_json::json!({"name": "web", "vcpus": 1, "memory_mib": 1024, "disk_gib": 10, "image": "x",
            "require": {"manager": "vc-1"}});
        job("provision", &format!("bound-{i}"), None, data)
    };
    let stuck: Vec<_> = (0..30).map(bound).collect();
    cluster.gateway.submit(stuck.clone()).await.unwrap();
    let others: Vec<_> = (0..60).map(|i| provision(&format!("job-{i}"))).collect();
    cluster
        .until("the circuit opens", || async {
            let rows = cluster.gateway.managers().await.map_err(|e| e.to_string())?;
            if rows[0].health == cellbus_workflows::Health::CircuitOpen { Ok(()) } else { Err(format!("{rows:?}")) }
        })
        .await;
    let began = cluster.env.mono();
    cluster.gateway.submit(others.clone()).await.unwrap();
    for job in &others {
        assert_eq!(cluster.gateway.wait_job(job.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    assert!(cluster.env.mono().since(began) < Duration::from_secs(10), "they waited for the one that hangs");
    let mut waiting = 0;
    for job in &stuck {
        let status = cluster.gateway.job(job.id).await.unwrap();
        waiting += usize::from(!status.row.state.ended());
    }
    assert!(waiting >= 16, "what may have been made waits for its manager: {waiting}");
    cluster.managers[0].hangs.store(false, std::sync::atomic::Ordering::Relaxed);
    let mut made = 0;
    for job in &stuck {
        let ended = cluster.gateway.wait_job(job.id, WAIT).await.unwrap();
        match ended.row.outcome {
            Some(Outcome::Succeeded) => made += 1,
            // Never sent to it, and no other manager would do.
            Some(Outcome::Failed(failure)) => assert!(failure.retryable, "{failure}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(made >= waiting);
    assert_eq!(cluster.made_twice(), 0);
    assert_eq!(cluster.vms().len(), 60 + made);
}

/// Nothing is asked of it, so no operation can fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_manager_that_is_gone_is_noticed_and_then_heard_of_again() {
    use cellbus_workflows::Health;
    let cluster = Cluster::start(1, 4, &[("vc-1", 4, 64), ("vc-2", 4, 64)]).await;
    let healths = || async {
        let rows = cluster.gateway.managers().await.map_err(|e| e.to_string())?;
        Ok::<_, String>((rows[0].health, rows[1].health))
    };
    let until = async |what: &str, wanted: (Health, Health)| {
        let said =
            || async { healths().await.and_then(|is| if is == wanted { Ok(()) } else { Err(format!("{is:?}")) }) };
        cluster.until(what, said).await;
    };
    cluster.managers[0].set_gone(true);
    until("the circuit to open", (Health::CircuitOpen, Health::Healthy)).await;
    cluster.managers[0].set_gone(false);
    until("the circuit to close", (Health::Healthy, Health::Healthy)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capacity_is_never_overfilled_and_then_it_is_no_room() {
    let cluster = Cluster::start(2, 16, &[("vc-1", 3, 8), ("vc-2", 3, 8)]).await;
    let jobs: Vec<_> = (0..60).map(|i| provision(&format!("job-{i}"))).collect();
    cluster.gateway.submit(jobs.clone()).await.unwrap();
    let mut failed = 0;
    for job in &jobs {
        let ended = cluster.gateway.wait_job(job.id, WAIT).await.unwrap();
        if ended.row.state == JobState::Failed {
            failed += 1;
        }
    }
    assert_eq!((cluster.vms().len(), failed), (48, 12));
    assert!(cluster.managers.iter().all(|m| m.overfilled() == 0 && m.under_way_max() <= 16));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_behind_our_back_is_seen_and_an_audit_is_clean() {
    let cluster = Cluster::start(1, 8, &[("vc-1", 4, 16)]).await;
    let wanted = provision("one");
    cluster.gateway.submit(vec![wanted.clone()]).await.unwrap();
    cluster.gateway.wait_job(wanted.id, WAIT).await.unwrap();
    cluster.managers[0].stop_behind_our_back(&wanted.id.vm(0));
    cluster
        .until("seen as stopped", || async {
            let vm = cluster.gateway.vm(wanted.id.vm(0)).await.map_err(|e| e.to_string())?;
            if vm.state == VmState::Stopped { Ok(()) } else { Err(format!("{vm:?}")) }
        })
        .await;
    let by = || cellbus_directory::record::Operator { who: "test".into(), from: "here".into() };
    let audit = cluster.gateway.audit_start(by()).await.unwrap();
    cluster
        .until("the audit ends", || async {
            let audit = cluster.gateway.audit(audit).map_err(|e| e.to_string())?;
            if audit.ended_at.is_some() && audit.findings_total == 0 && audit.vms == 1 {
                Ok(())
            } else {
                Err(format!("{audit:?}"))
            }
        })
        .await;
    let shards = cluster.gateway.shards().await.unwrap();
    assert_eq!(shards.len(), 8);
    let hosts = cluster.gateway.hosts(None, None, 3).await.unwrap();
    assert_eq!((hosts.items.len(), hosts.next.is_some()), (3, true));
    let rest = cluster.gateway.hosts(None, hosts.next.as_deref(), 3).await.unwrap();
    assert_eq!((rest.items.len(), rest.next), (1, None));
    assert_eq!(
        cluster.gateway.live(wanted.id.vm(0)).await.unwrap().held.unwrap().facts.power,
        cellbus_directory::PowerState::Stopped
    );
    assert_eq!(cluster.gateway.queue().await.unwrap().shards_unknown, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn depths_of_many_shards_are_asked_for_at_once_and_not_all() {
    let mut cluster = Cluster::start(1, 128, &[("vc-1", 4, 16)]).await;
    cluster.depths_at_once();
    assert_eq!(cluster.gateway.shards().await.unwrap().len(), 128);
    let owned = cluster.depths_at_once();
    assert!((9..=64).contains(&owned), "{owned} at once, asked by their owner");
    // And by the gateway, where nobody owns them.
    cluster.cells.remove(0).kill();
    cluster
        .until("the cell to be forgotten", || async {
            let rows = cluster.gateway.shards().await.map_err(|error| error.to_string())?;
            let owned = rows.iter().filter(|row| row.owner.is_some()).count();
            if owned == 0 { Ok(()) } else { Err(format!("{owned} owned")) }
        })
        .await;
    cluster.depths_at_once();
    assert_eq!(cluster.gateway.shards().await.unwrap().len(), 128);
    let unowned = cluster.depths_at_once();
    assert!((9..=64).contains(&unowned), "{unowned} at once, asked by the gateway");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_overtaken_is_fenced_and_nothing_is_lost() {
    let cluster = Cluster::start(1, 4, &[("vc-1", 20, 64)]).await;
    let jobs: Vec<_> = (0..200).map(|i| provision(&format!("job-{i}"))).collect();
    let mut stolen = 0;
    for some in jobs.chunks(20) {
        cluster.gateway.submit(some.to_vec()).await.unwrap();
        // Another cell, which nobody has heard of, opens a shard: what the owner writes next is refused.
        let shard = some[0].id.shard(cluster.process.shard_count());
        loop {
            let end = cluster.bus.log_end(shard).await.unwrap();
            let entry = Entry {
                epoch: Epoch(1_000 + stolen),
                prev: end,
                at: cluster.env.wall(),
                jobs: None,
                control: None,
                records: vec![Record::Opened { cell: "thief".parse().unwrap(), address: "nowhere".into() }],
            };
            match cluster.bus.append(shard, end, entry.encode()).await {
                Ok(_) => break,
                Err(BusError::Fenced { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        stolen += 10;
    }
    for job in &jobs {
        let ended = cluster.gateway.wait_job(job.id, WAIT).await.unwrap();
        assert_eq!(ended.row.state, JobState::Succeeded, "{ended:?}");
    }
    assert_eq!((cluster.vms().len(), cluster.made_twice()), (200, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_opened_from_their_snapshots() {
    let mut cluster = Cluster::start_with(1, 4, &[("vc-1", 20, 64)], 8 << 10).await;
    let jobs: Vec<_> = (0..300).map(|i| provision(&format!("job-{i}"))).collect();
    for some in jobs.chunks(10) {
        cluster.gateway.submit(some.to_vec()).await.unwrap();
    }
    for job in &jobs {
        assert_eq!(cluster.gateway.wait_job(job.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    let mut trimmed = 0;
    for shard in cluster.process.shard_count().shards() {
        let kept = cluster.bus.snapshots(shard).await.unwrap();
        assert!((1..=2).contains(&kept.len()), "{shard}: {kept:?}");
        trimmed += usize::from(matches!(cluster.bus.read_log(shard, Seq(1)).await, Err(BusError::Trimmed { .. })));
    }
    assert!(trimmed > 0, "what lies before the last two snapshots is dropped");
    cluster.cells.remove(0).kill();
    let next = cluster.add_cell();
    cluster
        .until("the next cell has opened them", || async {
            if next.shards_open() == 4 { Ok(()) } else { Err(format!("{}", next.shards_open())) }
        })
        .await;
    for job in &jobs {
        assert_eq!(cluster.gateway.job(job.id).await.unwrap().row.state, JobState::Succeeded);
    }
    let stop = job("stop", "after", Some(&jobs[7].id.vm(0).to_string()), serde_json::json!({}));
    cluster.gateway.submit(vec![stop.clone()]).await.unwrap();
    assert_eq!(cluster.gateway.wait_job(stop.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    assert_eq!((cluster.vms().len(), cluster.made_twice()), (300, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_cannot_beat_suspends_and_goes_on_where_it_was() {
    let cluster = Cluster::start(1, 8, &[("vc-1", 20, 64)]).await;
    let jobs: Vec<_> = (0..100).map(|i| provision(&format!("job-{i}"))).collect();
    cluster.gateway.submit(jobs[..50].to_vec()).await.unwrap();
    cluster.members_away(true);
    cluster
        .until("it is suspended", || async {
            match cluster.gateway.ready() {
                Ok(()) if cluster.cells[0].shards_open() > 0 => Err(format!("{} open", cluster.cells[0].shards_open())),
                Ok(()) | Err(_) => Ok(()),
            }
        })
        .await;
    // Durable, and not yet decided: the queue takes it all the same.
    cluster.gateway.submit(jobs[50..].to_vec()).await.unwrap();
    cluster.members_away(false);
    for job in &jobs {
        let ended = cluster.gateway.wait_job(job.id, WAIT).await.unwrap();
        assert_eq!(ended.row.state, JobState::Succeeded, "{ended:?}");
    }
    assert_eq!((cluster.vms().len(), cluster.made_twice()), (100, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_takes_its_share_while_jobs_go_on() {
    let mut cluster = Cluster::start(1, 16, &[("vc-1", 20, 64), ("vc-2", 20, 64)]).await;
    let jobs: Vec<_> = (0..200).map(|i| provision(&format!("job-{i}"))).collect();
    let newcomer = cluster.add_cell();
    let mut slowest = Duration::ZERO;
    for job in &jobs {
        let began = cluster.env.mono();
        cluster.gateway.submit(vec![job.clone()]).await.unwrap();
        slowest = slowest.max(cluster.env.mono().since(began));
    }
    cluster
        .until("the newcomer has its share", || async {
            let open = (cluster.cells[0].shards_open(), newcomer.shards_open());
            if open.0 + open.1 == 16 && open.1 >= 6 { Ok(()) } else { Err(format!("{open:?}")) }
        })
        .await;
    for job in &jobs {
        assert_eq!(cluster.gateway.wait_job(job.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    assert_eq!((cluster.vms().len(), cluster.made_twice()), (200, 0));
    eprintln!("slowest submission while shards moved: {slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ingress_is_taken_in_and_what_is_no_job_is_put_aside() {
    let cluster = Cluster::start(2, 8, &[("vc-1", 4, 16)]).await;
    let event = serde_json::json!({
        "specversion": "1.0", "id": "from-outside", "source": "/test", "type": "io.cellbus.job.provision.v1",
        "data": {"name": "web", "vcpus": 1, "memory_mib": 1024, "disk_gib": 10, "image": "debian-12"},
    });
    let headers = || vec![("content-type".to_owned(), "application/cloudevents+json".to_owned())];
    for body in [event.to_string(), event.to_string(), "{\"not\": \"a job\"}".to_owned()] {
        cluster.bus.ingress_publish("acme", headers(), body.into()).await.unwrap();
    }
    let id = cellbus_bus::ids::JobId::derive("acme", "/test", "from-outside");
    cluster
        .until("the job is known", || async { cluster.gateway.job(id).await.map(drop).map_err(|e| e.to_string()) })
        .await;
    assert_eq!(cluster.gateway.wait_job(id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    assert_eq!(cluster.vms().len(), 1, "sent twice, done once");
    cluster
        .until("the letter is kept", || async {
            let letters = cluster.gateway.dead_letters(None, 10).await.map_err(|e| e.to_string())?.items;
            if letters.len() == 1 && letters[0].from == "ingress" { Ok(()) } else { Err(format!("{letters:?}")) }
        })
        .await;
    let letter = cluster.gateway.dead_letters(None, 10).await.unwrap().items.remove(0);
    let by = cellbus_directory::record::Operator { who: "test".into(), from: "here".into() };
    cluster.gateway.drop_dead_letter(letter.id, by.clone()).await.unwrap();
    cluster
        .until("the letter is gone", || async {
            let letters = cluster.gateway.dead_letters(None, 10).await.map_err(|e| e.to_string())?.items;
            if letters.is_empty() { Ok(()) } else { Err(format!("{letters:?}")) }
        })
        .await;

    // A host that is evacuated is empty in the end, and takes nothing new.
    let host = cluster.gateway.locate(id.vm(0)).await.unwrap().host.unwrap();
    let manager = cluster.managers[0].id();
    let round = cluster.gateway.evacuate(manager, Some(host.clone()), "round-1", by.clone()).await.unwrap();
    assert_eq!((round.vms, round.jobs_total), (1, 1));
    for job in &round.jobs {
        let ended = cluster.gateway.wait_job(*job, WAIT).await.unwrap();
        assert_eq!(ended.row.state, JobState::Succeeded, "{ended:?}");
    }
    assert_ne!(cluster.managers[0].facts(&id.vm(0)).unwrap().host, host);
    let (_, found) = cluster.gateway.find_host(&format!("vc-1/{host}")).await.unwrap();
    cluster
        .until("it is cordoned", || async {
            let rows = cluster.gateway.hosts(Some(manager), None, 100).await.map_err(|e| e.to_string())?.items;
            if rows.iter().any(|row| row.id == found && row.cordoned) { Ok(()) } else { Err(format!("{rows:?}")) }
        })
        .await;
    assert!(cluster.gateway.changes(10).await.unwrap().iter().any(|change| change.what.contains("evacuate")));

    // There is no other manager: what stays is told, and why.
    let round = cluster.gateway.evacuate(manager, None, "round-2", by).await.unwrap();
    assert_eq!((round.vms, round.jobs_total, round.stays_total), (1, 0, 1));
    assert!(round.stays[0].vm == id.vm(0) && !round.stays[0].why.is_empty(), "{round:?}");
}

/// Jobs for VMs of other shards, and those with children: their homes hear of them only at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_shows_how_far_it_is_wherever_its_vms_live() {
    let cluster = Cluster::start(2, 8, &[("vc-1", 4, 64)]).await;
    let made = provision("made");
    cluster.gateway.submit(vec![made.clone()]).await.unwrap();
    assert_eq!(cluster.gateway.wait_job(made.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    let vm = made.id.vm(0);
    let homes = cluster.process.shard_count();
    // A job whose home is another shard than its VM's.
    let elsewhere = |kind: &str, data: serde_json::Value| {
        let made = (0..).map(|i| job(kind, &format!("{kind}-{i}"), Some(&vm.to_string()), data.clone()));
        made.into_iter().find(|job| job.id.shard(homes) != vm.shard(homes)).unwrap()
    };
    cluster.managers[0].hangs.store(true, std::sync::atomic::Ordering::Relaxed);
    let stop = elsewhere("stop", serde_json::json!({}));
    let start = elsewhere("start", serde_json::json!({}));
    let data =
        serde_json::json!({"name": "many", "count": 3, "vcpus": 1, "memory_mib": 1024, "disk_gib": 10, "image": "x"});
    let many = job("provision", "many", None, data);
    for job in [&stop, &start, &many] {
        cluster.gateway.submit(vec![job.clone()]).await.unwrap();
    }
    let listed = |state| {
        let gateway = cluster.gateway.clone();
        async move {
            let filter = JobFilter { state, ..JobFilter::default() };
            let page = gateway.jobs(filter, 100, None).await.unwrap();
            page.items.into_iter().map(|row| (row.id, row.state)).collect::<std::collections::BTreeMap<_, _>>()
        }
    };
    // A call that hangs is given up after two seconds, waits, and is made again.
    for state in [JobState::Running, JobState::Waiting] {
        cluster
            .until("the stop and the provision are shown so", || async {
                let shown = listed(None).await;
                if [&stop, &many].iter().all(|job| shown[&job.id] == state) {
                    Ok(())
                } else {
                    Err(format!("{shown:?}"))
                }
            })
            .await;
    }
    cluster
        .until("each is shown so by itself, with the reason", || async {
            let stop = cluster.gateway.job(stop.id).await.unwrap();
            let many = cluster.gateway.job(many.id).await.unwrap();
            let waits = |status: &cellbus_workflows::JobStatus| {
                status.row.state == JobState::Waiting && status.waits_for.starts_with("manager_failing")
            };
            if waits(&stop) && waits(&many) { Ok(()) } else { Err(format!("{stop:?} {many:?}")) }
        })
        .await;
    let behind = cluster.gateway.job(start.id).await.unwrap();
    assert_eq!((behind.row.state, behind.waits_for), (JobState::Accepted, format!("job {} on the same VM", stop.id)));
    let accepted = listed(Some(JobState::Accepted)).await;
    assert_eq!(accepted.keys().collect::<Vec<_>>(), [&start.id]);
    assert!(!listed(Some(JobState::Succeeded)).await.contains_key(&stop.id));
    cluster.managers[0].hangs.store(false, std::sync::atomic::Ordering::Relaxed);
    for job in [&stop, &start, &many] {
        assert_eq!(cluster.gateway.wait_job(job.id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    assert_eq!(listed(Some(JobState::Running)).await.len(), 0);
}

/// A job of a tenant that was not known is put aside, and taken once it is.
/// Messages that were ever put on the `jobs` queues.
async fn queued(cluster: &Cluster, shards: u16) -> u64 {
    let count = ShardCount::new(shards).expect("a number of shards");
    let mut sum = 0;
    for shard in count.shards() {
        let depth = cluster.bus.depth(Queue { shard, kind: QueueKind::Jobs }, Seq::ZERO).await;
        sum += depth.expect("a depth").messages;
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_from_the_ingress_go_past_the_queue_if_their_home_takes_them() {
    const JOBS: u64 = 100;
    let mut cluster = Cluster::start(2, 8, &[("vc-1", 20, 64)]).await;
    let event = |n: u64| {
        let event = serde_json::json!({
            "specversion": "1.0", "id": format!("j{n}"), "source": "/test", "type": "io.cellbus.job.provision.v1",
            "data": {"name": format!("web-{n}"), "vcpus": 1, "memory_mib": 1024, "disk_gib": 10, "image": "x"},
        });
        event.to_string()
    };
    for n in 0..JOBS {
        cluster.bus.ingress_publish("acme", Vec::new(), event(n).into()).await.unwrap();
    }
    for n in 0..JOBS {
        let id = cellbus_bus::ids::JobId::derive("acme", "/test", &format!("j{n}"));
        let known = || async { cluster.gateway.job(id).await.map(drop).map_err(|e| e.to_string()) };
        cluster.until("the job is known", known).await;
        assert_eq!(cluster.gateway.wait_job(id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    assert_eq!((cluster.vms().len(), cluster.made_twice()), (100, 0));
    // On a machine that stands still for a second some go the other way.
    let past = JOBS - queued(&cluster, 8).await;
    assert!(past > JOBS / 2, "{past} of {JOBS}");

    // Homes that take no jobs find them on their queues when they do.
    cluster.cells.drain(..).for_each(|cell| cell.kill());
    cluster.accepted_max = Some(0);
    cluster.add_cell();
    for n in JOBS..2 * JOBS {
        cluster.bus.ingress_publish("acme", Vec::new(), event(n).into()).await.unwrap();
    }
    let all = || async {
        let queued = queued(&cluster, 8).await;
        if queued + past == 2 * JOBS { Ok(()) } else { Err(format!("{queued} are queued")) }
    };
    cluster.until("all are on queues", all).await;
    cluster.cells.drain(..).for_each(|cell| cell.kill());
    cluster.accepted_max = None;
    cluster.add_cell();
    for n in JOBS..2 * JOBS {
        let id = cellbus_bus::ids::JobId::derive("acme", "/test", &format!("j{n}"));
        let known = || async { cluster.gateway.job(id).await.map(drop).map_err(|e| e.to_string()) };
        cluster.until("the job is known", known).await;
        assert_eq!(cluster.gateway.wait_job(id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    }
    assert_eq!((cluster.vms().len(), cluster.made_twice()), (200, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_tried_again() {
    let mut cluster = Cluster::start(1, 8, &[("vc-1", 4, 16)]).await;
    let first = cluster.cells.remove(0);
    cluster.tenants = Tenants::Listed(["other".parse().unwrap()].into());
    let second = cluster.add_cell();
    first.kill();
    cluster.cells.clear();
    let gateway = cluster.gateway.clone();
    let letters = || async { gateway.dead_letters(None, 10).await.map_err(|e| e.to_string()) };
    cluster
        .until("the second has everything", || async {
            if second.shards_open() == 8 { Ok(()) } else { Err(second.shards_open().to_string()) }
        })
        .await;

    let event = serde_json::json!({
        "specversion": "1.0", "id": "late", "source": "/test", "type": "io.cellbus.job.provision.v1",
        "data": {"name": "web", "vcpus": 1, "memory_mib": 1024, "disk_gib": 10, "image": "x"},
    });
    cluster.bus.ingress_publish("acme", Vec::new(), event.to_string().into()).await.unwrap();
    cluster
        .until("the message is put aside", || async {
            let letters = letters().await?.items;
            let there = letters.len() == 1 && letters[0].code == "unknown_tenant";
            if there { Ok(()) } else { Err(format!("{letters:?}")) }
        })
        .await;
    let letter = letters().await.unwrap().items.remove(0);
    let by = cellbus_directory::record::Operator { who: "test".into(), from: "here".into() };

    // Nothing has changed: it comes back.
    let id = cellbus_bus::ids::JobId::derive("acme", "/test", "late");
    cluster.gateway.retry_dead_letter(letter.id, by.clone()).await.unwrap();
    cluster
        .until("it is put aside again", || async {
            let changes = cluster.gateway.changes(10).await.map_err(|e| e.to_string())?;
            let back = letters().await?.items.first().is_some_and(|again| again.at > letter.at);
            if back && changes.iter().any(|c| c.what.contains(&letter.id.to_string())) {
                Ok(())
            } else {
                Err(format!("{changes:?}"))
            }
        })
        .await;

    cluster.tenants = Tenants::Any;
    let third = cluster.add_cell();
    second.drain();
    cluster
        .until("the third has everything", || async {
            if third.shards_open() == 8 { Ok(()) } else { Err(third.shards_open().to_string()) }
        })
        .await;
    cluster.gateway.retry_dead_letter(letter.id, by.clone()).await.unwrap();
    cluster
        .until("its job is known", || async { cluster.gateway.job(id).await.map(|_| ()).map_err(|e| e.to_string()) })
        .await;
    assert_eq!(cluster.gateway.wait_job(id, WAIT).await.unwrap().row.state, JobState::Succeeded);
    cluster
        .until("the letter is gone", || async {
            let letters = letters().await?.items;
            if letters.is_empty() { Ok(()) } else { Err(format!("{letters:?}")) }
        })
        .await;
    assert_eq!(cluster.vms().len(), 1);
    assert!(cluster.gateway.retry_dead_letter(letter.id, by).await.is_err(), "there is none any more");
}
