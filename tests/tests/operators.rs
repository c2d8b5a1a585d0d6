//! What happens to `cellbus up` while its managers, which this process serves, misbehave: jobs that
//! are parked, and operations that outlive the cell that began them. And with vCenters (vcsim), one of
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
/// A vCenter is asked for changes every few seconds, and a circuit opens after some failures.
const VCENTER: Duration = Duration::from_secs(120);

/// One simulated manager in this process, and a configuration that names it.
struct Rig {
    folder: TempDir,
    fleet: Arc<Fleet>,
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
        let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
        let config = Config { latency: Latency::None, seed: Some(1), ..Config::new(Inventory::generate(4, 1)?) };
        let spec = config.inventory.managers[0].clone();
        let fleet = Fleet::open(config, env.clone()).await?;
        let service = Service::bind(Arc::clone(&fleet), env.clone(), "127.0.0.1:0".parse()?).await?;
        let (folder, stop) = (tempfile::tempdir()?, CancellationToken::new());
        let text = format!("[[managers]]\nname = \"{}\"\naddress = \"http://{}\"\n", spec.name, service.address()?);
        std::fs::write(folder.path().join("cellbus.toml"), text)?;
        let stopped = stop.clone();
        env.spawn("simulated managers", async move {
            if let Err(error) = service.run(stopped).await {
                eprintln!("the managers are not served any more: {error}");
            }
        });
        Ok(Self { folder, fleet, manager: spec.id(), stop })
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
