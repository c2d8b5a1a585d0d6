//! Cells, directories and managers as processes of their own on a real NATS server, killed, stopped
//! and cut off under load. In the end every acknowledged job has one outcome, no VM is there twice,
//! and directory and managers agree.

#![expect(clippy::disallowed_methods, reason = "it drives the real binary from outside, in real time")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::nats::testing::{NatsServer, left_out};
use cellbus_bus::nats::{Config, Nats};
use cellbus_tests::books::all_is_well;
use cellbus_tests::cluster::{Cluster, Shape, rows};
use cellbus_tests::kills;
use cellbus_tests::process::{Server, event, long, wait_for};
use cellbus_tests::producers::{Producers, seed};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_and_directories_are_killed_and_nothing_is_lost() -> Result<()> {
    if left_out() { Ok(()) } else { kills::cells_and_directories::<NatsServer>().await }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_was_stopped_past_its_lease_writes_nothing() -> Result<()> {
    if left_out() { Ok(()) } else { kills::zombie::<NatsServer>().await }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_server_is_killed_and_started_again() -> Result<()> {
    if left_out() { Ok(()) } else { kills::broker::<NatsServer>(2).await }
}

/// Of three servers each leads a part of the streams: killed one after the other, every stream loses
/// its leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_of_three_are_killed_one_after_the_other() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let mut servers = NatsServer::cluster(3);
    let urls: Vec<String> = servers.iter().map(NatsServer::url).collect();
    // Three that have just started elect first.
    let config = Config { servers: urls.clone(), replicas: 3, ..servers[0].config() };
    wait_for("three servers to agree", Duration::from_secs(120), async || {
        let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
        match Nats::open(config.clone(), env).await {
            Ok(bus) => {
                bus.close().await;
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error.to_string())),
        }
    })
    .await?;
    let section = format!("urls = {urls:?}\nreplicas = 3\n");
    let mut cluster = Cluster::start_on(servers.remove(0), section, Shape::default(), 2, 1).await?;
    let producers = Producers::start(&cluster, seed());
    for killed in 0..=servers.len() {
        let server = if killed == 0 { &mut cluster.broker } else { &mut servers[killed - 1] };
        producers.progress(30).await?;
        server.kill();
        // Two of three are enough.
        producers.progress(30).await?;
        server.restart();
        producers.progress(30).await?;
        cluster.settled().await?;
    }
    let books = producers.end().await?;
    all_is_well(&cluster, books).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_come_and_are_drained_while_jobs_run() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let most = if long() { 12 } else { 4 };
    let mut cluster = Cluster::start(Shape::default(), 2, 1).await?;
    let producers = Producers::start(&cluster, seed());
    while cluster.cells.len() < most {
        cluster.add_cell()?;
    }
    cluster.ready().await?;
    producers.look_again(&cluster);
    cluster.settled().await?;
    producers.progress(50).await?;
    while cluster.cells.len() > 2 {
        let cell = cluster.cells.remove(0);
        producers.look_again(&cluster);
        let drained = Instant::now();
        let status = cell.terminate(Duration::from_secs(60)).await?;
        ensure!(status.success(), "a drained cell ended with {status}");
        let took = drained.elapsed();
        // Not a bound on speed: a drain that nobody answers ends after 20 s, with a warning.
        ensure!(took < Duration::from_secs(18), "it was not handed over, but left after {took:?}");
        cluster.settled().await?;
    }
    producers.progress(20).await?;
    let books = producers.end().await?;
    all_is_well(&cluster, books).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_job_has_made_is_found_at_every_replica() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let cluster = Cluster::start(Shape::default(), 2, 2).await?;
    let data = json!({"name": "web", "count": 40, "vcpus": 1, "memory_mib": 256, "disk_gib": 1, "image": "debian-12"});
    let answer = cluster.cells[0].submit(&event("provision", "web", None, &data)).await?;
    ensure!(answer.status == 202, "{answer:?}");
    let job = answer.body["job_id"].as_str().context("a job id")?.to_owned();
    cluster.cells[1].succeed(&["job", "wait", &job])?;
    for server in cluster.servers() {
        // A miss asks the VM's home, so a replica that is behind finds it all the same.
        let located = server.get(&format!("/v1/locate/{job}")).await?;
        ensure!(located.status == 200, "{located:?}");
        wait_for("the replica to list them", Duration::from_secs(30), async || {
            let seen = server.all("/v1/vms?tenant=acme").await?.len();
            Ok(if seen == 40 { Ok(()) } else { Err(format!("{seen} of 40")) })
        })
        .await?;
    }
    cluster.audit().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_hold_no_directory_and_ask_one() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let mut cluster = Cluster::start(Shape::default(), 1, 2).await?;
    let data = json!({"name": "web", "count": 20, "vcpus": 1, "memory_mib": 256, "disk_gib": 1, "image": "debian-12"});
    let answer = cluster.cells[0].submit(&event("provision", "web", None, &data)).await?;
    let job = answer.body["job_id"].as_str().context("a job id")?.to_owned();
    // Whoever sees its end at the cell finds at the cell what it has made.
    cluster.cells[0].succeed(&["job", "wait", &job])?;
    ensure!(cluster.cells[0].all("/v1/vms?tenant=acme").await?.len() == 20);
    let found = cluster.cells[0].all("/v1/vms?tenant=acme&name=web-7").await?;
    ensure!(found.len() == 1, "{found:?}");
    // A name in a job is looked up by the job's home, which is a cell.
    let stop = cluster.cells[0].submit(&event("stop", "stop-7", Some("web-7"), &json!({}))).await?;
    let stop = stop.body["job_id"].as_str().context("a job id")?.to_owned();
    cluster.cells[0].succeed(&["job", "wait", &stop])?;

    // Whichever answers: the other stands in for one that is gone.
    drop(cluster.directories.remove(0));
    ensure!(cluster.cells[0].all("/v1/vms?tenant=acme").await?.len() == 20);
    ensure!(cluster.cells[0].all("/v1/jobs?tenant=acme").await?.len() == 2);

    // With none, lists are refused in words. What has an id is known at its home, and jobs go on.
    drop(cluster.directories.remove(0));
    let refused = cluster.cells[0].get("/v1/vms?tenant=acme").await?;
    ensure!(refused.status == 503 && refused.body["code"] == "not_ready", "{refused:?}");
    ensure!(cluster.cells[0].get(&format!("/v1/locate/{job}")).await?.status == 200);
    let more = cluster.cells[0].submit(&event("provision", "more", None, &data)).await?;
    let more = more.body["job_id"].as_str().context("a job id")?.to_owned();
    cluster.cells[0].succeed(&["job", "wait", &more])?;
    // One that comes later is found, and has everything.
    cluster.add_directory()?;
    wait_for("the cell to list them", Duration::from_secs(60), async || {
        let answer = cluster.cells[0].get("/v1/vms?tenant=acme&limit=100").await?;
        let seen = answer.body["items"].as_array().map_or(0, Vec::len);
        Ok(if answer.status == 200 && seen == 40 { Ok(()) } else { Err(format!("{answer:?}")) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_is_cut_off_writes_nothing_and_comes_back() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let mut cluster = Cluster::start(Shape::default(), 2, 1).await?;
    let (broker, cells) = cluster.add_apart("cell").await?;
    cluster.ready().await?;
    cluster.settled().await?;
    let producers = Producers::start(&cluster, seed());
    for _ in 0..if long() { 10 } else { 1 } {
        producers.progress(50).await?;
        // From the broker: the others take over.
        let apart = cluster.cells.remove(2);
        producers.look_again(&cluster);
        broker.cut();
        cluster.settled().await?;
        producers.progress(20).await?;
        broker.mend();
        cluster.cells.push(apart);
        cluster.settled().await?;
        producers.look_again(&cluster);
        producers.progress(20).await?;
        // From the other cells only: it lives on, and what is asked of it is asked again.
        cells.cut();
        producers.progress(20).await?;
        cells.mend();
        cluster.settled().await?;
    }
    let books = producers.end().await?;
    all_is_well(&cluster, books).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_says_so_and_catches_up() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let mut cluster = Cluster::start(Shape::default(), 1, 0).await?;
    let (broker, _cells) = cluster.add_apart("directory").await?;
    cluster.ready().await?;
    let replica = &cluster.directories[0];
    broker.cut();
    wait_for("the replica not to call itself ready", Duration::from_secs(60), async || {
        let answer = replica.get("/readyz").await?;
        let said = answer.status == 503 && answer.body["detail"].as_str().is_some_and(|text| text.contains("the bus"));
        Ok(if said { Ok(()) } else { Err(format!("{answer:?}")) })
    })
    .await
    .with_context(|| replica.log_tail())?;
    let data = json!({"name": "web", "count": 20, "vcpus": 1, "memory_mib": 256, "disk_gib": 1, "image": "debian-12"});
    let answer = cluster.cells[0].submit(&event("provision", "web", None, &data)).await?;
    let job = answer.body["job_id"].as_str().context("a job id")?.to_owned();
    cluster.cells[0].succeed(&["job", "wait", &job])?;
    broker.mend();
    replica.ready().await?;
    wait_for("the replica to catch up", Duration::from_secs(60), async || {
        let seen = replica.all("/v1/vms").await?.len();
        Ok(if seen == 20 { Ok(()) } else { Err(format!("{seen} of 20")) })
    })
    .await
    .with_context(|| replica.log_tail())
}

// ── the emergency stop ──

/// Operations that remove something that may begin in a minute, at all managers together.
const REMOVALS_PER_MINUTE: f64 = 60.0;
const DESTRUCTIVE: &str = "cellbus_pauses{at=\"cluster\",work=\"destructive\"}";
const AT_ONE: &str = "cellbus_pauses{at=\"manager\",work=\"all\"}";

async fn value(server: &Server, name: &str) -> Result<f64> {
    let text = server.text("/metrics").await?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.map_or(Ok(0.0), str::parse)?)
}

async fn held(cluster: &Cluster) -> Result<u64> {
    cluster.managers.get("/sim/v1/status").await?.body["vms"].as_u64().context("how many VMs there are")
}

/// Waits until every process shows this many pauses of this kind, and no others.
async fn every_process_shows(cluster: &Cluster, kind: &str, pauses: f64) -> Result<()> {
    for server in cluster.servers() {
        wait_for("the pause to be shown", Duration::from_secs(120), async || {
            let (seen, listed) = (value(server, kind).await?, server.get("/v1/pauses").await?.body);
            let listed = listed["items"].as_array().map_or(usize::MAX, Vec::len);
            let good = seen == pauses && listed == pauses as usize;
            Ok(good.then_some(()).ok_or(format!("{seen}, {listed} listed")))
        })
        .await?;
    }
    Ok(())
}

/// The VMs of these whose work waits as it is paused.
async fn paused(cluster: &Cluster, vms: &[String]) -> Result<Vec<String>> {
    let mut paused = Vec::new();
    for vm in vms {
        let explained = cluster.cells[0].get(&format!("/v1/explain/{vm}")).await?.body;
        if explained.to_string().contains("paused") {
            paused.push(vm.clone());
        }
    }
    Ok(paused)
}

/// A producer deletes what it should keep: an order holds it everywhere within five seconds, over a
/// restart of everything; and once it is lifted the limit holds it, which a metric shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emergency_stop_holds_everywhere_and_outlives_everything() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    const VMS: usize = 24;
    let shape = Shape { more: format!("destructive.limit = {REMOVALS_PER_MINUTE}\n"), ..Shape::default() };
    let mut cluster = Cluster::start(shape, 3, 1).await?;
    let data = json!({"name": "web", "count": VMS, "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x"});
    let answer = cluster.cells[0].submit(&event("provision", "web", None, &data)).await?;
    let job = answer.body["job_id"].as_str().context("a job id")?.to_owned();
    cluster.cells[0].succeed(&["job", "wait", &job])?;
    let made = cluster.cells[0].all(&format!("/v1/jobs/{job}/vms")).await?;
    let vms: Vec<String> = made.iter().filter_map(|vm| vm["id"].as_str().map(str::to_owned)).collect();
    ensure!(vms.len() == VMS, "{made:?}");

    // The runaway begins; the order is given at one process, of several.
    let delete = async |cluster: &Cluster, vm: &str| -> Result<()> {
        let job = event("delete", &format!("away-{vm}"), Some(vm), &json!({}));
        wait_for("a delete to be taken", Duration::from_secs(120), async || {
            let answer = cluster.cells[1].submit(&job).await?;
            Ok((answer.status == 202).then_some(()).ok_or(answer.body.to_string()))
        })
        .await
    };
    for vm in &vms[..4] {
        delete(&cluster, vm).await?;
    }
    let said = cluster.cells[2].succeed(&["pause", "--destructive", "--reason", "runaway"])?;
    ensure!(said.contains("5 s from now"), "{said}");
    for vm in &vms[4..] {
        delete(&cluster, vm).await?;
    }
    // Deletes that had begun end, and every VM that is there then is kept.
    let waiting = wait_for("what is left to be held back", Duration::from_secs(120), async || {
        let (paused, left) = (paused(&cluster, &vms).await?, held(&cluster).await?);
        Ok((paused.len() as u64 == left).then_some(paused.clone()).ok_or(format!("{} of {left}", paused.len())))
    })
    .await?;
    let kept = waiting.len() as u64;
    ensure!(kept > 0, "nothing is left to be kept");
    every_process_shows(&cluster, DESTRUCTIVE, 1.0).await?;
    let listed = cluster.directories[0].succeed(&["pauses"])?;
    ensure!(listed.contains("destructive") && listed.contains("runaway"), "{listed}");
    // Other work goes on.
    let more = event(
        "provision",
        "more",
        None,
        &json!({"name": "more", "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x"}),
    );
    let answer = cluster.cells[0].submit(&more).await?;
    cluster.cells[0].succeed(&["job", "wait", answer.body["job_id"].as_str().context("a job id")?])?;

    // Everything goes, the bus too, and comes again.
    for server in cluster.cells.drain(..).chain(cluster.directories.drain(..)) {
        server.kill()?;
    }
    cluster.broker.kill();
    cluster.broker.restart();
    for _ in 0..2 {
        cluster.add_cell()?;
    }
    cluster.add_directory()?;
    cluster.ready().await?;
    every_process_shows(&cluster, DESTRUCTIVE, 1.0).await?;
    wait_for("every delete to wait again", Duration::from_secs(120), async || {
        let paused = paused(&cluster, &waiting).await?;
        Ok((paused == waiting).then_some(()).ok_or(format!("{} of {kept}", paused.len())))
    })
    .await?;
    ensure!(held(&cluster).await? == kept + 1, "after the restart something was removed");

    // A producer goes on where nobody stops it, and the limit holds it.
    let began = Instant::now();
    cluster.cells[1].succeed(&["resume", "--destructive"])?;
    every_process_shows(&cluster, DESTRUCTIVE, 0.0).await?;
    let put_off = "cellbus_destructive_operations_total{result=\"put_off\"}";
    let begun = "cellbus_destructive_operations_total{result=\"begun\"}";
    wait_for("every delete to be done", Duration::from_secs(300), async || {
        let mut removed = 0.0;
        for cell in &cluster.cells {
            removed += value(cell, begun).await?;
        }
        // A tenth of a minute's may begin at once, and each new owner of a manager begins with that.
        let most = REMOVALS_PER_MINUTE / 60.0 * began.elapsed().as_secs_f64() + 2.0 * REMOVALS_PER_MINUTE / 10.0;
        ensure!(removed <= most, "{removed} had begun after {:?}", began.elapsed());
        let left = held(&cluster).await?;
        Ok((left == 1).then_some(()).ok_or(format!("{left} left, {removed} begun")))
    })
    .await?;
    let mut waited = 0.0;
    for cell in &cluster.cells {
        waited += value(cell, put_off).await?;
    }
    ensure!(waited > 0.0, "the limit put nothing off");
    println!("{kept} VMs kept, then deleted in {:.1} s, put off {waited} times", began.elapsed().as_secs_f64());
    cluster.audit().await
}

/// VMs at one manager, once they run.
async fn provisioned(cluster: &Cluster, manager: &str, count: usize) -> Result<Vec<String>> {
    let data = json!({"name": manager, "count": count, "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x",
        "require": {"manager": manager}});
    let answer = cluster.cells[0].submit(&event("provision", manager, None, &data)).await?;
    let job = answer.body["job_id"].as_str().with_context(|| format!("{answer:?}"))?.to_owned();
    cluster.cells[0].succeed(&["job", "wait", &job])?;
    let made = cluster.cells[0].all(&format!("/v1/jobs/{job}/vms")).await?;
    let vms: Vec<String> = made.iter().filter_map(|vm| vm["id"].as_str().map(str::to_owned)).collect();
    ensure!(vms.len() == count, "{made:?}");
    Ok(vms)
}

/// Waits until every process shows a manager with this pause, by its owner's word.
async fn every_process_shows_manager(cluster: &Cluster, manager: &str, paused: Option<&str>) -> Result<Value> {
    let mut row = Value::Null;
    for server in cluster.servers() {
        row = wait_for("the manager's row to tell the pause", Duration::from_secs(120), async || {
            let rows = server.all("/v1/managers").await?;
            let row = rows.into_iter().find(|row| row["name"] == manager).unwrap_or_default();
            let good = row["paused"].as_str() == paused && row["health"] == "healthy";
            Ok(if good { Ok(row) } else { Err(row.to_string()) })
        })
        .await?;
    }
    Ok(row)
}

/// How many of these a manager itself says to run.
async fn running(cluster: &Cluster, vms: &[String]) -> Result<usize> {
    let mut running = 0;
    for vm in vms {
        let live = wait_for("the manager's own word", Duration::from_secs(120), async || {
            let answer = cluster.cells[0].get(&format!("/v1/vms/{vm}/live")).await?;
            Ok(if answer.status == 200 { Ok(answer.body) } else { Err(format!("{answer:?}")) })
        })
        .await?;
        running += usize::from(live["power"] == "running");
    }
    Ok(running)
}

/// One manager is paused: nothing changes there, whichever cell fronts it, and all else goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_of_one_manager_holds_whoever_fronts_it() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    const PAUSED: &str = "sim-0000";
    let mut cluster = Cluster::start(Shape { managers: 3, ..Shape::default() }, 3, 1).await?;
    cluster.settled().await?;
    let (here, elsewhere) = (provisioned(&cluster, PAUSED, 6).await?, provisioned(&cluster, "sim-0001", 3).await?);

    let said = cluster.cells[2].succeed(&["pause", "--manager", PAUSED, "--reason", "its storage is ill"])?;
    ensure!(said.contains(PAUSED) && said.contains("5 s from now"), "{said}");
    every_process_shows(&cluster, AT_ONE, 1.0).await?;
    let row = every_process_shows_manager(&cluster, PAUSED, Some("all")).await?;
    ensure!(row["paused_why"].as_str().is_some_and(|why| why.contains("its storage is ill")), "{row}");
    every_process_shows_manager(&cluster, "sim-0001", None).await?;

    // Each process takes work for it, and it waits; that of the others is done.
    for (index, vm) in here.iter().chain(&elsewhere).enumerate() {
        let stop = event("stop", &format!("stop-{vm}"), Some(vm), &json!({}));
        let answer = cluster.cells[index % 3].submit(&stop).await?;
        ensure!(answer.status == 202, "{answer:?}");
        if elsewhere.contains(vm) {
            let job = answer.body["job_id"].as_str().context("a job id")?;
            cluster.directories[0].succeed(&["job", "wait", job])?;
        }
    }
    ensure!(running(&cluster, &elsewhere).await? == 0);
    let all_wait = async |cluster: &Cluster| {
        wait_for("every stop to wait", Duration::from_secs(120), async || {
            let waiting = paused(cluster, &here).await?.len();
            Ok((waiting == here.len()).then_some(()).ok_or(format!("{waiting} wait")))
        })
        .await
    };
    all_wait(&cluster).await?;
    // New VMs go where they may.
    let data = json!({"name": "new", "count": 6, "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "x"});
    let answer = cluster.cells[0].submit(&event("provision", "new", None, &data)).await?;
    let job = answer.body["job_id"].as_str().context("a job id")?.to_owned();
    cluster.cells[0].succeed(&["job", "wait", &job])?;
    let made = cluster.cells[0].all(&format!("/v1/jobs/{job}/vms")).await?;
    ensure!(made.len() == 6 && made.iter().all(|vm| vm["manager_name"] != PAUSED), "{made:?}");

    // Its owner is killed: the next one holds it too.
    let owner = row["cell"].as_str().context("somebody fronts it")?;
    let cells = rows(&cluster.cells[0].get("/v1/cells").await?.body);
    let address = cells.iter().find(|cell| cell["id"] == owner).context("its owner is a member")?["address"].clone();
    let port = address.as_str().and_then(|address| address.rsplit(':').next()).context("a port")?.to_owned();
    let fronting = cluster.cells.iter().position(|cell| cell.url.ends_with(&port)).context("it is one of ours")?;
    cluster.cells.remove(fronting).kill()?;
    cluster.settled().await?;
    let row = every_process_shows_manager(&cluster, PAUSED, Some("all")).await?;
    ensure!(row["cell"] != owner, "{row}");
    all_wait(&cluster).await?;
    ensure!(running(&cluster, &here).await? == here.len(), "something was stopped where all was paused");

    // Another order lifts it not; the same one does.
    let said = cluster.cells[0].succeed(&["resume"])?;
    ensure!(said.contains("1 other pause stays in force"), "{said}");
    every_process_shows(&cluster, AT_ONE, 1.0).await?;
    ensure!(paused(&cluster, &here).await?.len() == here.len(), "the pause of another scope was lifted");
    cluster.cells[1].succeed(&["resume", "--manager", PAUSED])?;
    every_process_shows(&cluster, AT_ONE, 0.0).await?;
    wait_for("every stop to be done", Duration::from_secs(120), async || {
        let left = running(&cluster, &here).await?;
        Ok((left == 0).then_some(()).ok_or(format!("{left} run")))
    })
    .await?;
    cluster.no_violations().await?;
    cluster.audit().await
}
