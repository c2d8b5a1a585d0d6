//! What happens to `cellbus up` while its managers, which this process serves, misbehave: jobs that
//! are parked, and operations that outlive the cell that began them; with VMs that nobody asked Cellbus for,
//! by the thousand. And with vCenters (vcsim), one of
//! which forgets everything.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cellbus_bus::ids::{ManagerId, VmId};
use cellbus_simulator::managers::{Config, Fault, Faults, Latency};
use cellbus_simulator::remote::Service;
use cellbus_simulator::{Fleet, Inventory};
use cellbus_tests::process::{Server, event, wait_for};
use cellbus_vsphere::vcsim::Vcsim;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const WAIT: Duration = Duration::from_secs(30);
/// Thousands of VMs, on a busy machine.
const MANY: Duration = Duration::from_secs(240);
/// A vCenter is asked for changes every few seconds, and a circuit opens after some failures.
const VCENTER: Duration = Duration::from_secs(120);

/// Simulated managers in this process, and a configuration that names them.
struct Rig {
    folder: TempDir,
    fleet: Arc<Fleet>,
    /// The first.
    manager: ManagerId,
    stop: CancellationToken,
}
impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Rig {
    async fn new() -> Result<Self> {
        Self::of(Config::new(Inventory::generate(4, 1)?)).await
    }
    async fn of(config: Config) -> Result<Self> {
        let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
        let config = Config { latency: Latency::None, seed: Some(1), ..config };
        let specs = config.inventory.managers.clone();
        let fleet = Fleet::open(config, env.clone()).await?;
        let service = Service::bind(Arc::clone(&fleet), env.clone(), "127.0.0.1:0".parse()?).await?;
        let (folder, stop) = (tempfile::tempdir()?, CancellationToken::new());
        let address = service.address()?;
        let entry = |name| format!("[[managers]]\nname = \"{name}\"\naddress = \"http://{address}\"\n");
        let text: String = specs.iter().map(|spec| entry(&spec.name)).collect();
        std::fs::write(folder.path().join("cellbus.toml"), text)?;
        let stopped = stop.clone();
        env.spawn("simulated managers", async move {
            if let Err(error) = service.run(stopped).await {
                eprintln!("the managers are not served any more: {error}");
            }
        });
        Ok(Self { folder, fleet, manager: specs[0].id(), stop })
    }
    fn faults(&self) -> Result<Faults> {
        self.fleet.faults(self.manager).context("the fleet has its manager")
    }
    async fn up(&self, arguments: &[&str]) -> Result<Server> {
        let text = |path: &Path| path.to_str().map(str::to_owned).context("paths of tests are UTF-8");
        let (data, config) = (self.folder.path().join("data"), text(&self.folder.path().join("cellbus.toml"))?);
        Server::start(&data, &[&["--config", &config, "--cells", "2"], arguments].concat()).await
    }
}

fn provision(name: &str, count: u32) -> Value {
    let data =
        json!({"name": name, "count": count, "vcpus": 1, "memory_mib": 512, "disk_gib": 10, "image": "debian-12"});
    event("provision", name, None, &data)
}

async fn submitted(server: &Server, event: &Value) -> Result<String> {
    let answer = server.submit(event).await?;
    assert_eq!(answer.status, 202, "{answer:?}");
    Ok(answer.body["job_id"].as_str().context("a job has an id")?.to_owned())
}

async fn until_state(server: &Server, job: &str, state: &str) -> Result<Value> {
    wait_for(&format!("job {job} to be {state}"), WAIT, async || {
        let job = server.get(&format!("/v1/jobs/{job}")).await?.body;
        Ok(if job["state"] == state { Ok(job) } else { Err(job.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn parked_jobs_are_tried_again_or_given_up() -> Result<()> {
    let rig = Rig::new().await?;
    let server = rig.up(&[]).await?;
    // Neither a create nor its undoing works: only a person can say what next.
    rig.faults()?.rate(Fault::Permanent, 1.0);
    let one = submitted(&server, &provision("one", 1)).await?;
    let two = submitted(&server, &provision("two", 1)).await?;
    let many = submitted(&server, &provision("many", 3)).await?;
    for job in [&one, &two, &many] {
        let job = until_state(&server, job, "parked").await?;
        assert!(job["waits_for"].as_str().is_some_and(|why| why.starts_with("an operator")), "{job}");
    }
    let listed = server.succeed(&["job", "list", "--state", "parked", "--output", "json"])?;
    let mut listed: Vec<String> = serde_json::from_str::<Value>(&listed)?["items"]
        .as_array()
        .context("a list has items")?
        .iter()
        .filter_map(|job| job["job_id"].as_str().map(str::to_owned))
        .collect();
    listed.sort();
    let mut wanted = vec![one.clone(), two.clone(), many.clone()];
    wanted.sort();
    assert_eq!(listed, wanted);

    // Tried again while nothing is better, it is parked again.
    server.succeed(&["job", "retry", &one])?;
    until_state(&server, &one, "parked").await?;

    rig.faults()?.heal();
    server.succeed(&["job", "retry", &one])?;
    let ended = until_state(&server, &one, "failed").await?;
    assert_eq!(ended["error"]["code"], "manager_failed", "it ends as it would have, undone: {ended}");
    assert_eq!(rig.fleet.truth().vm(one.parse::<VmId>()?).count(), 0, "nothing of it is left");
    let answer = server.post(&format!("/v1/jobs/{two}/abandon"), &Value::Null).await?;
    assert_eq!(answer.status, 202, "{answer:?}");
    let ended = until_state(&server, &two, "failed").await?;
    assert_eq!(ended["error"]["code"], "abandoned", "{ended}");
    // All children at once.
    server.succeed(&["job", "retry", &many])?;
    until_state(&server, &many, "failed").await?;

    // There is nothing more to decide.
    let refused = server.post(&format!("/v1/jobs/{one}/retry"), &Value::Null).await?;
    assert_eq!((refused.status, refused.body["code"].as_str()), (409, Some("not_parked")));
    assert_eq!(server.run(&["job", "abandon", &many])?.status.code(), Some(1));
    assert_eq!(server.all("/v1/jobs?state=parked").await?.len(), 0);
    // Who decided is kept.
    let changes = server.all("/v1/changes").await?;
    for decided in [format!("retried parked work of VM {one}"), format!("abandoned parked work of VM {two}")] {
        assert!(changes.iter().any(|change| change["what"] == decided.as_str()), "{decided}: {changes:?}");
    }
    // What the abandoned one left behind is found, and put right.
    server.run(&["audit", "--repair", "apply"])?;
    wait_for("a clean audit", WAIT, async || {
        let audit = server.run(&["audit"])?;
        Ok(if audit.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&audit.stdout).into_owned()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_operation_that_outlives_its_cell_is_adopted() -> Result<()> {
    let rig = Rig::new().await?;
    let debug = ["--log-level", "info,cellbus_cell=debug"];
    let server = rig.up(&debug).await?;
    let web = submitted(&server, &provision("web", 1)).await?;
    until_state(&server, &web, "succeeded").await?;

    // Long enough that the cell is killed, started again and open well before its end.
    rig.faults()?.slow(Duration::from_secs(12));
    let restart = submitted(&server, &event("restart", "slow", Some(&web), &json!({"mode": "hard"}))).await?;
    let new = submitted(&server, &provision("new", 1)).await?;
    wait_for("the manager to be at both", WAIT, async || {
        let running = rig.fleet.tasks_running();
        Ok(if running == 2 { Ok(()) } else { Err(format!("{running} tasks")) })
    })
    .await?;
    until_state(&server, &restart, "running").await?;
    server.kill()?;
    let server = rig.up(&debug).await?;
    assert!(rig.fleet.truth().restarts.is_empty(), "it was over before the new owner could adopt it");
    let log = server.log();
    let opened = log.lines().find(|line| line.contains("manager open")).context("the manager was opened")?;
    assert!(opened.contains("tasks=2"), "{opened}");

    // Both go on where they were, and were done once.
    for job in [&restart, &new] {
        until_state(&server, job, "succeeded").await?;
    }
    let truth = rig.fleet.truth();
    assert_eq!(truth.restarts.get(&(rig.manager, web.parse()?)), Some(&1), "{:?}", truth.restarts);
    assert_eq!(truth.vms(), 2);
    let violations = rig.fleet.violations();
    assert_eq!((violations.double_creates, violations.overfilled_hosts), (0, 0), "{violations:?}");
    rig.faults()?.heal();
    server.succeed(&["audit"])?;
    Ok(())
}

/// An audit that has ended, whatever it found.
async fn audited(server: &Server) -> Result<Value> {
    let begun = server.post("/v1/audit", &Value::Null).await?;
    let path = format!("/v1/audit/{}", begun.body["id"].as_str().context("an audit has an id")?);
    wait_for("the audit to end", MANY, async || {
        let audit = server.get(&path).await?.body;
        Ok(if audit["ended_at"].is_null() { Err(audit.to_string()) } else { Ok(audit) })
    })
    .await
}

/// A vCenter as one that Cellbus is new to: an account that may only read, and VMs that others made.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn vms_of_a_vcenter_that_is_looked_at_first_are_adopted_by_the_thousand() -> Result<()> {
    const VMS: u32 = 1_000;
    let Some(vcsim) = Vcsim::start(&["-hosts", "4", "-vms", &VMS.to_string()]) else { return Ok(()) };
    let _ = vcsim.control("/forbid");
    let folder = tempfile::tempdir()?;
    let (config, data) = (folder.path().join("cellbus.toml"), folder.path().join("data"));
    std::fs::write(&config, vcsim.config("vc-1", "starts_read_only = true\n"))?;
    let server = Server::start(&data, &["--config", config.to_str().context("paths of tests are UTF-8")?]).await?;
    let row = async || -> Result<Value> {
        server.all("/v1/managers").await?.into_iter().next().context("there is one manager")
    };
    let plan = ["adopt", "--tenant", "acme", "--plan", "--output", "json"];
    wait_for("a plan that names them all", MANY, async || {
        let plan: Value = serde_json::from_str(&server.succeed(&plan)?)?;
        Ok(if plan["total"] == VMS { Ok(()) } else { Err(format!("{} {}", plan["total"], plan["unread"])) })
    })
    .await?;
    assert_eq!(row().await?["mode"], "read-only");
    assert_eq!(vcsim.control("/calls?method=CreateFolder"), "0");

    // To be used, its account must be able to do more, which is said.
    server.succeed(&["managers", "enable", "vc-1"])?;
    wait_for("what its account lacks", VCENTER, async || {
        let detail = row().await?["detail"].to_string();
        Ok(if detail.contains("may not write into the folder cellbus") { Ok(()) } else { Err(detail) })
    })
    .await?;
    let _ = vcsim.control("/forbid?what=nothing");
    wait_for("it to be well", VCENTER, async || {
        let row = row().await?;
        Ok(if row["health"] == "healthy" { Ok(()) } else { Err(row.to_string()) })
    })
    .await?;
    let count = VMS.to_string();
    let asked = ["adopt", "--tenant", "acme", "--confirm", &count, "--wait", "--output", "json"];
    let done: Value = serde_json::from_str(&server.succeed(&asked)?)?;
    assert_eq!((&done["adopted"], &done["failed"]), (&json!(VMS), &json!(0)), "{done}");
    assert_eq!(vcsim.control("/calls?method=ReconfigVM_Task"), count);
    until_clean(&server).await?;

    let mine = server.all("/v1/vms?tenant=acme").await?.into_iter().next().context("there is one")?;
    let id = mine["id"].as_str().context("a VM has an id")?;
    for operation in ["stop", "start", "delete"] {
        server.succeed(&["vm", operation, id, "--wait"])?;
    }
    assert_eq!(vcsim.control("/calls?method=Destroy_Task"), "1");
    until_clean(&server).await
}

async fn until_clean(server: &Server) -> Result<()> {
    wait_for("a clean audit", MANY, async || {
        let audit = audited(server).await?;
        Ok(if audit["findings_total"] == 0 { Ok(()) } else { Err(audit["kinds"].to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn vms_that_stand_there_already_are_adopted_by_the_thousand_across_a_kill() -> Result<()> {
    const EACH: u32 = 1_000;
    let rig = Rig::of(Config { foreign: EACH, ..Config::new(Inventory::generate(80, 2)?) }).await?;
    let server = rig.up(&[]).await?;
    let plan: Value =
        serde_json::from_str(&server.succeed(&["adopt", "--tenant", "acme", "--plan", "--output", "json"])?)?;
    assert_eq!((&plan["total"], &plan["left_out"]), (&json!(2 * EACH), &json!(0)));
    let first = &plan["items"][0];
    assert!(first["name"].as_str().is_some_and(|name| name.starts_with("foreign-")), "{first}");
    // Without the right count nothing is done.
    for (confirm, code) in [(None, 2), (Some("1999"), 1)] {
        let count: Vec<&str> = confirm.map(|count| vec!["--confirm", count]).unwrap_or_default();
        let ended = server.run(&[&["adopt", "--tenant", "acme"], &count[..]].concat())?;
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
    }
    assert_eq!(rig.fleet.vms(), 0);

    // Those of one manager, and no sooner is that durable than everything is killed.
    let one = rig.manager.to_string();
    let some = ["adopt", "--tenant", "acme", "--manager", &one, "--prefix", "old-", "--label", "from=legacy"];
    server.succeed(&[&some[..], &["--confirm", "1000"]].concat())?;
    server.kill()?;
    let server = rig.up(&[]).await?;
    wait_for("what was accepted to go on", MANY, async || {
        let held = rig.fleet.vms();
        let listed = server.all("/v1/vms?tenant=acme&label=from=legacy").await?;
        let there = listed.iter().filter(|vm| vm["state"] == "running").count();
        Ok(if (held, there) == (1_000, 1_000) {
            Ok(())
        } else {
            Err(format!("{held} held, {there} of {} there", listed.len()))
        })
    })
    .await?;
    // Again: there is nothing left of it. The rest, under another name.
    server.succeed(&[&some[..], &["--confirm", "0"]].concat())?;
    let done = server.succeed(&[
        "adopt",
        "--tenant",
        "globex",
        "--match",
        "foreign *",
        "--confirm",
        "1000",
        "--wait",
        "--output",
        "json",
    ])?;
    let done: Value = serde_json::from_str(&done)?;
    assert_eq!((&done["adopted"], &done["failed"]), (&json!(1_000), &json!(0)), "{done}");
    assert_eq!(rig.fleet.vms(), 2_000);
    assert_eq!(rig.fleet.truth().doubles().len(), 0);
    until_clean(&server).await?;

    // They are VMs like any other.
    let mine = server.all("/v1/vms?tenant=acme").await?.into_iter().next().context("there is one")?;
    let id = mine["id"].as_str().context("a VM has an id")?;
    assert!(mine["name"].as_str().is_some_and(|name| name.starts_with("old-foreign-")), "{mine}");
    for operation in ["stop", "start", "delete"] {
        server.succeed(&["vm", operation, id, "--wait"])?;
    }
    assert_eq!(rig.fleet.vms(), 1_999);
    until_clean(&server).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_thousand_each_of_orphans_ghosts_doubles_and_moved_vms_are_found_and_repaired() -> Result<()> {
    const EACH: u32 = 1_000;
    let rig = Rig::of(Config::new(Inventory::generate(200, 2)?)).await?;
    let server = rig.up(&[]).await?;
    let mut vms: Vec<Vec<VmId>> = Vec::new();
    for kind in ["ghost", "double", "moved"] {
        let job = submitted(&server, &provision(kind, EACH)).await?;
        wait_for(&format!("{kind}s to be made"), MANY, async || {
            let job = server.get(&format!("/v1/jobs/{job}")).await?.body;
            Ok(if job["state"] == "succeeded" { Ok(()) } else { Err(job.to_string()) })
        })
        .await?;
        let job: cellbus_bus::ids::JobId = job.parse()?;
        vms.push((0..EACH).map(|index| job.vm(index)).collect());
    }
    let [ghosts, doubles, moved] = &vms[..] else { anyhow::bail!("three kinds") };
    // Nobody hears of it.
    server.kill()?;
    let managers: Vec<ManagerId> = rig.fleet.inventory().managers.iter().map(|spec| spec.id()).collect();
    let faults = |id: &ManagerId| rig.fleet.faults(*id).context("a manager");
    let [one, two] = [faults(&managers[0])?, faults(&managers[1])?];
    let at = |vm: &VmId| if one.held(*vm).is_some() { (&one, &two, 1) } else { (&two, &one, 0) };
    for vm in ghosts {
        assert!(at(vm).0.delete_vm(*vm));
    }
    let host = |index: usize| rig.fleet.inventory().managers[index].hosts[0].id.clone();
    for (vm, goes) in doubles.iter().map(|vm| (vm, false)).chain(moved.iter().map(|vm| (vm, true))) {
        let (here, there, index) = at(vm);
        let mut copy = here.held(*vm).context("it is there")?;
        copy.facts.host = host(index);
        assert!(there.plant(&copy) && (!goes || here.delete_vm(*vm)));
    }
    let like = one.held(doubles[0]).context("it is on both")?;
    let orphan = cellbus_bus::ids::JobId::derive("nobody", "/before", "1");
    for index in 0..EACH {
        let name = format!("orphan-{index}").parse()?;
        assert!(one.plant(&cellbus_cell::driver::HeldVm { id: orphan.vm(index), name, ..like.clone() }));
    }

    let server = rig.up(&[]).await?;
    let audit = audited(&server).await?;
    let each = json!({"missing": EACH, "duplicate": EACH, "moved": EACH, "unknown": EACH});
    assert_eq!(audit["kinds"], each, "{}", audit["findings_total"]);
    let located = server.get(&format!("/v1/locate/{}", moved[0])).await?.body;
    assert!(located["manager"].is_string(), "{located}");

    // What is safe is repaired when asked; the rest is left.
    server.run(&["audit", "--repair", "apply"])?;
    wait_for("ghosts to be lost, and what has moved to be known there", MANY, async || {
        let kinds = audited(&server).await?["kinds"].clone();
        Ok(if kinds == json!({"duplicate": EACH, "unknown": EACH}) { Ok(()) } else { Err(kinds.to_string()) })
    })
    .await?;
    assert_eq!(server.all("/v1/vms?state=lost").await?.len(), EACH as usize);
    for vm in [&moved[0], &moved[999]] {
        let shown = server.get(&format!("/v1/vms/{vm}")).await?.body;
        let holder = if one.held(*vm).is_some() { managers[0] } else { managers[1] };
        assert_eq!((&shown["manager"], &shown["state"]), (&json!(holder.to_string()), &json!("running")), "{shown}");
    }

    // Destroying needs its count.
    let asked = ["audit", "--repair", "apply", "--orphans", "adopt", "--doubles", "destroy"];
    let refused = server.run(&[&asked[..], &["--confirm", "7"]].concat())?;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    server.succeed(&[&asked[..], &["--confirm", "1000"]].concat())?;
    until_clean(&server).await?;
    assert_eq!(rig.fleet.truth().doubles().len(), 0);
    assert_eq!(rig.fleet.vms(), 3_000, "doubles, moved VMs and orphans, each once");
    assert_eq!(server.get(&format!("/v1/vms/{}", orphan.vm(7))).await?.body["name"], "orphan-7");

    // And those that nobody wants are removed, by delete jobs.
    for index in EACH..EACH + 5 {
        let name = format!("orphan-{index}").parse()?;
        assert!(two.plant(&cellbus_cell::driver::HeldVm {
            id: orphan.vm(index),
            name,
            facts: cellbus_directory::VmFacts { host: host(1), ..like.facts.clone() },
            ..like.clone()
        }));
    }
    server.succeed(&["audit", "--repair", "apply", "--orphans", "destroy", "--confirm", "5"])?;
    until_clean(&server).await?;
    assert_eq!(rig.fleet.vms(), 3_000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_registration_moved_while_cellbus_looks_on_is_followed_without_a_gap() -> Result<()> {
    let rig = Rig::of(Config::new(Inventory::generate(4, 2)?)).await?;
    let server = rig.up(&[]).await?;
    let job = submitted(&server, &provision("web", 1)).await?;
    until_state(&server, &job, "succeeded").await?;
    let vm: VmId = job.parse()?;
    let managers = rig.fleet.inventory().managers.clone();
    for round in 0..4 {
        let is_here = |index: usize| rig.fleet.faults(managers[index].id()).is_some_and(|it| it.held(vm).is_some());
        let (from, to) = if is_here(0) { (0, 1) } else { (1, 0) };
        let (old, new) = (rig.fleet.faults(managers[from].id()), rig.fleet.faults(managers[to].id()));
        let (old, new) = (old.context("a manager")?, new.context("a manager")?);
        let mut held = old.held(vm).context("it is there")?;
        held.facts.host = managers[to].hosts[0].id.clone();
        // In either order.
        if round % 2 == 0 {
            assert!(old.delete_vm(vm) && new.plant(&held));
        } else {
            assert!(new.plant(&held) && old.delete_vm(vm));
        }
        let wanted = managers[to].id().to_string();
        wait_for("the VM to be known at its new manager", WAIT * 2, async || {
            let located = server.get(&format!("/v1/locate/{vm}")).await?;
            // It is somewhere at every moment.
            assert!(located.status == 200 && located.body["manager"].is_string(), "{located:?}");
            let shown = server.get(&format!("/v1/vms/{vm}")).await?.body;
            let there = located.body["manager"] == wanted.as_str() && shown["state"] == "running";
            Ok(if there { Ok(()) } else { Err(format!("{} {shown}", located.body)) })
        })
        .await?;
    }
    server.succeed(&["vm", "stop", &job, "--wait"])?;
    until_clean(&server).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn two_vcenters_are_managers_and_one_that_forgets_is_left_alone() -> Result<()> {
    let (Some(one), Some(two)) = (Vcsim::start(&["-hosts", "4"]), Vcsim::start(&["-hosts", "4"])) else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let (config, data) = (folder.path().join("cellbus.toml"), folder.path().join("data"));
    std::fs::write(&config, format!("{}{}", one.config("vc-1", ""), two.config("vc-2", "")))?;
    let arguments = ["--config", config.to_str().context("paths of tests are UTF-8")?, "--cells", "2"];
    let server = Server::start(&data, &arguments).await?;
    let job = submitted(&server, &provision("web", 6)).await?;
    until_state(&server, &job, "succeeded").await?;
    server.succeed(&["vm", "stop", "web-0", "--tenant", "acme", "--wait"])?;
    server.succeed(&["vm", "snapshot", "web-1", "--snapshot", "one", "--tenant", "acme", "--wait"])?;
    server.succeed(&["vm", "delete", "web-2", "--tenant", "acme", "--wait"])?;
    server.succeed(&["audit"])?;
    server.kill()?;

    // The next owner signs in under a newer epoch, and finds all of it.
    let server = Server::start(&data, &arguments).await?;
    server.succeed(&["vm", "start", "web-0", "--tenant", "acme", "--wait"])?;
    server.succeed(&["audit"])?;
    let vms = server.all("/v1/vms?tenant=acme").await?;
    assert_eq!(vms.len(), 5, "{vms:?}");
    let theirs = vms.iter().find(|vm| vm["state"] == "running").context("a VM runs")?;
    let id = theirs["id"].as_str().context("a VM has an id")?;
    let name = theirs["manager_name"].as_str().context("a VM has a manager")?;
    let (vcsim, _other) = if name == "vc-1" { (one, two) } else { (two, one) };

    // What somebody else does is seen.
    let power = |id: &str, state: &str| {
        let (path, state) = (format!("/v1/vms/{id}"), state.to_owned());
        let server = &server;
        async move {
            wait_for(&format!("{path} to be {state}"), VCENTER, async || {
                let vm = server.get(&path).await?.body;
                Ok(if vm["state"] == state { Ok(()) } else { Err(vm.to_string()) })
            })
            .await
        }
    };
    let _ = vcsim.control(&format!("/power?vm={id}&on=false"));
    power(id, "stopped").await?;

    // It answers, and has nothing: no VM is taken for lost, and nothing is done there.
    let vcsim = vcsim.again(&["-hosts", "4", "-folder", ""]);
    wait_for("its circuit to be open", VCENTER, async || {
        let managers = server.all("/v1/managers").await?;
        let health = managers.iter().find(|manager| manager["name"] == name).map(|it| it["health"].clone());
        Ok(if health == Some("circuit_open".into()) { Ok(()) } else { Err(format!("{health:?}")) })
    })
    .await?;
    let kept = server.all("/v1/vms?tenant=acme").await?;
    assert!(kept.len() == 5 && kept.iter().all(|vm| vm["state"] != "lost"), "{kept:?}");
    let audit = server.run(&["audit"])?;
    assert!(String::from_utf8_lossy(&audit.stdout).contains(name), "{audit:?}");
    assert!(server.log().contains("came back without what was left there"), "{}", server.log_tail());
    assert_eq!(vcsim.control("/calls?method=Destroy_Task"), "0");
    Ok(())
}
