//! On real ones: `libvirtd` started by the tests in directories of their own, as a user of its own, and
//! QEMU in software. They need what `ops/setup/libvirt` installs, and leave themselves out without it.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::Epoch;
use cellbus_bus::job::{Size, StopMode};
use cellbus_cell::config::{Libvirt, LibvirtBoot, LibvirtDomain, LibvirtHost};
use cellbus_cell::driver::{Change, Driver, Error, Op, conformance};
use cellbus_directory::vm::PowerState;
use cellbus_workflows::Action;
use virt::connect::Connect;
use virt::storage_pool::StoragePool;

use super::{create, env, op, vm};
use crate::domain;
use crate::driver::{LibvirtDriver, Manager};

mod adopting;
mod fenced;
mod machines;
mod networks;
mod ssh;

/// On a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(240);
/// Who runs them where the tests are root: QEMU drops no rights of its own then.
const NOBODY: u32 = 65_534;
const UP: &str = "cellbus guest is up";

/// The folder with the guest.
fn guest() -> Option<PathBuf> {
    cellbus_bus::testing::tool("CELLBUS_LIBVIRT", "libvirt", "libvirt", "ops/setup/libvirt")
}

/// One libvirtd with everything of its own.
struct Daemon {
    dir: PathBuf,
    index: u32,
    setup: Setup,
    process: Mutex<Child>,
}

/// What one has beside that.
#[derive(Default)]
struct Setup {
    /// More of its configuration, and of QEMU's.
    conf: String,
    qemu_conf: String,
    /// Whether it listens to the network.
    listens: bool,
    /// The network namespace that it is in.
    namespace: Option<String>,
}

fn hand_over(path: &Path) {
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

impl Daemon {
    async fn start(dir: PathBuf, index: u32, setup: Setup) -> Self {
        for part in ["", "config", "config/libvirt", "run", "cache", "data", "console"] {
            std::fs::create_dir_all(dir.join(part)).unwrap();
            hand_over(&dir.join(part));
        }
        let qemu = format!("stdio_handler = \"file\"\nsecurity_driver = \"none\"\n{}", setup.qemu_conf);
        std::fs::write(dir.join("config/libvirt/qemu.conf"), qemu).unwrap();
        let host =
            format!("host_uuid = \"0ce11b05-0000-4000-8000-{index:012}\"\nlog_outputs = \"2:stderr\"\n{}", setup.conf);
        std::fs::write(dir.join("libvirtd.conf"), host).unwrap();
        let daemon = Self { process: Mutex::new(Self::spawn(&dir, &setup)), dir, index, setup };
        daemon.answers().await;
        daemon
    }
    fn spawn(dir: &Path, setup: &Setup) -> Child {
        let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
        let mut command = match &setup.namespace {
            // It goes there first, and drops its rights itself.
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{namespace}"));
                command.args([format!("--setuid={NOBODY}"), format!("--setgid={NOBODY}"), "libvirtd".to_owned()]);
                command
            }
            None => {
                let mut command = Command::new("libvirtd");
                if is_root {
                    command.uid(NOBODY).gid(NOBODY);
                }
                command
            }
        };
        if setup.listens {
            command.arg("--listen");
        }
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
        command
            .args(["--config".as_ref(), dir.join("libvirtd.conf").as_os_str()])
            .args(["--pid-file".as_ref(), dir.join("pid").as_os_str()])
            .env_clear()
            .env("PATH", path)
            .env("HOME", dir)
            .env("XDG_CONFIG_HOME", dir.join("config"))
            .env("XDG_RUNTIME_DIR", dir.join("run"))
            .env("XDG_CACHE_HOME", dir.join("cache"))
            .env("XDG_DATA_HOME", dir.join("data"))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(dir.join("log")).unwrap());
        command.spawn().expect("libvirtd starts")
    }
    fn uri(&self) -> String {
        format!("qemu+unix:///session?socket={}/run/libvirt/libvirt-sock", self.dir.display())
    }
    async fn answers(&self) {
        wait_for(
            || Connect::open(Some(&self.uri())).is_ok(),
            || std::fs::read_to_string(self.dir.join("log")).unwrap_or_default(),
        )
        .await;
    }
    fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        let _ = process.kill();
        let _ = process.wait();
    }
    async fn restart(&self) {
        self.kill();
        self.start_again().await;
    }
    async fn start_again(&self) {
        *self.process.lock().unwrap() = Self::spawn(&self.dir, &self.setup);
        self.answers().await;
    }
    fn host(&self) -> LibvirtHost {
        LibvirtHost { name: format!("h{}", self.index).parse().unwrap(), uri: self.uri(), out: false, gear: None }
    }
    /// What somebody does by hand.
    fn virsh(&self, arguments: &[&str]) -> String {
        let done = Command::new("virsh").args(["-c", &self.uri()]).args(arguments).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    }
    fn make_pool(&self, name: &str, path: &Path) {
        let connection = Connect::open(Some(&self.uri())).unwrap();
        let path = path.display();
        let xml = format!("<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>");
        let pool = StoragePool::define_xml(&connection, &xml, 0).unwrap();
        pool.set_autostart(true).unwrap();
        pool.create(0).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Guests outlive their libvirtd, and may not outlive the test.
        if let Ok(connection) = Connect::open(Some(&self.uri())) {
            for domain in connection.list_all_domains(0).unwrap_or_default() {
                let _ = domain.destroy();
            }
        }
        self.kill();
        if std::thread::panicking() {
            eprintln!(
                "libvirtd {}:\n{}",
                self.index,
                std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
            );
        }
    }
}

async fn wait_for(mut done: impl FnMut() -> bool, mut state: impl FnMut() -> String) {
    let env = env();
    let began = env.mono();
    while !done() {
        assert!(env.mono().since(began) < PATIENCE, "it did not come to be: {}", state());
        env.sleep(Duration::from_millis(100)).await;
    }
}

struct Rig {
    config: Libvirt,
    daemons: Vec<Daemon>,
    manager: Mutex<Arc<Manager>>,
    dir: tempfile::TempDir,
}

async fn rig(guest: &Path, hosts: u32) -> Rig {
    rig_with(guest, hosts, |_, _| ()).await
}
async fn rig_with(guest: &Path, hosts: u32, change: impl FnOnce(&mut Libvirt, &Path)) -> Rig {
    rig_of(guest, (0..hosts).map(|_| Setup::default()).collect(), change).await
}
async fn rig_of(guest: &Path, setups: Vec<Setup>, change: impl FnOnce(&mut Libvirt, &Path)) -> Rig {
    // Not below the target folder: a socket's path is short, and nobody must come through. On a disk, as
    // memory takes no direct writes everywhere.
    let dir = tempfile::Builder::new().prefix("cb-virt").tempdir_in("/var/tmp").unwrap();
    hand_over(dir.path());
    for file in ["vmlinuz", "initramfs.gz"] {
        std::fs::copy(guest.join(file), dir.path().join(file)).unwrap();
        hand_over(&dir.path().join(file));
    }
    for pool in ["disks", "images"] {
        std::fs::create_dir(dir.path().join(pool)).unwrap();
        hand_over(&dir.path().join(pool));
    }
    let mut daemons = Vec::new();
    for (index, setup) in (0..).zip(setups) {
        let daemon = Daemon::start(dir.path().join(index.to_string()), index, setup).await;
        daemon.make_pool("disks", &dir.path().join("disks"));
        daemons.push(daemon);
    }
    let mut config = config(dir.path(), daemons.iter().map(Daemon::host).collect());
    change(&mut config, dir.path());
    Rig { manager: Mutex::new(manager(&config)), config, daemons, dir }
}

fn config(dir: &Path, hosts: Vec<LibvirtHost>) -> Libvirt {
    Libvirt {
        hosts,
        domain: LibvirtDomain::Qemu,
        pool: Some("disks".to_owned()),
        images: None,
        network: None,
        boot: Some(LibvirtBoot {
            kernel: dir.join("vmlinuz").display().to_string(),
            initrd: Some(dir.join("initramfs.gz").display().to_string()),
            cmdline: "console=ttyS0 quiet panic=1".to_owned(),
        }),
        console_dir: Some(dir.join("0/console").display().to_string()),
        host_disk_gib: 10_240,
        shared_storage: true,
        cold_moves: true,
        // The guest knows no power button.
        stop_grace: Duration::from_secs(1),
        seed_from: None,
    }
}

fn manager(config: &Libvirt) -> Arc<Manager> {
    Arc::new(Manager::new(&"racks".parse().unwrap(), config, (64.0, 8.0), env()))
}

impl Rig {
    fn driver(&self) -> LibvirtDriver {
        LibvirtDriver::new(Arc::clone(&self.manager.lock().unwrap()))
    }
    fn console(&self, index: u32) -> String {
        let path = self.dir.path().join(format!("0/console/{}.log", domain::name_of(vm(index))));
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }
    fn domains(&self) -> Vec<String> {
        let mut names = Vec::new();
        for daemon in &self.daemons {
            let connection = Connect::open(Some(&daemon.uri())).unwrap();
            names.extend(connection.list_all_domains(0).unwrap().iter().map(|domain| domain.get_name().unwrap()));
        }
        names.sort();
        names
    }
    async fn says(&self, what: &str) {
        wait_for(|| self.console(0).contains(what), || self.console(0)).await;
    }
}

#[async_trait]
impl conformance::Rig for Rig {
    fn env(&self) -> Env {
        env()
    }
    async fn connect(&self) -> Arc<dyn Driver> {
        Arc::new(self.driver())
    }
    fn faults(&self) -> Option<Arc<dyn conformance::Faults>> {
        None
    }
    /// Every libvirtd is killed and started again, and the driver knows nothing any more.
    async fn restart(&self) -> bool {
        for daemon in &self.daemons {
            daemon.restart().await;
        }
        *self.manager.lock().unwrap() = manager(&self.config);
        true
    }
}

async fn guest_rig() -> Option<Rig> {
    match guest() {
        Some(guest) => Some(rig(&guest, 2).await),
        None => None,
    }
}

mod conforms {
    // A host of the size of a test machine is not filled, there are no means to make it fail, a migrate's
    // copy between managers is refused, and how domains of others are adopted is in `adopting`.
    cellbus_cell::driver_conformance!(
        super::guest_rig().await,
        left_out: [
            a_full_host_takes_no_more, many_vms_are_made_at_once, running_tasks_outlive_their_session,
            a_lost_answer_is_found_again, a_passing_failure_leaves_nothing, a_manager_that_is_down_says_nothing,
            changes_by_others_are_heard, a_revoked_listener_is_told, a_copy_brings_its_snapshots,
            what_others_made_is_listed_and_adopted, an_adoption_is_found_again, adopting_never_makes_a_vm,
        ]
    );
}

/// A guest lives: it boots, is suspended, goes on, goes back, is stopped and deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_lives_from_its_first_line_to_its_end() {
    let Some(guest) = guest() else { return };
    let rig = rig(&guest, 1).await;
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    let facts = driver.perform(&create(0, 1, "h0")).await.unwrap().unwrap();
    assert_eq!((facts.power, facts.host.as_str()), (PowerState::Running, "h0"));
    rig.says(UP).await;
    rig.says("tick 2").await;

    let power = |answer: Result<Option<cellbus_directory::VmFacts>, Error>| answer.unwrap().unwrap().power;
    assert_eq!(power(driver.perform(&op(0, 2, Action::Suspend)).await), PowerState::Suspended);
    let silent = rig.console(0);
    env().sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.console(0), silent, "a guest that is suspended says nothing");
    assert_eq!(power(driver.perform(&op(0, 3, Action::Resume)).await), PowerState::Running);
    wait_for(|| rig.console(0).len() > silent.len(), || rig.console(0)).await;

    let name: cellbus_bus::ids::ShortName = "before".parse().unwrap();
    let facts = driver.perform(&op(0, 4, Action::Snapshot(name.clone()))).await.unwrap().unwrap();
    assert_eq!(facts.snapshots, std::slice::from_ref(&name));
    let at = rig.console(0).matches("tick").count();
    wait_for(|| rig.console(0).matches("tick").count() > at + 3, || rig.console(0)).await;
    let facts = driver.perform(&op(0, 5, Action::Revert(name.clone()))).await.unwrap().unwrap();
    assert_eq!((facts.power, facts.snapshots.as_slice()), (PowerState::Running, std::slice::from_ref(&name)));
    // It goes on from the memory that the snapshot has: it counts a number again, and does not boot again.
    let again = |console: &str| {
        let ticks: Vec<u32> =
            console.lines().filter_map(|line| line.trim().strip_prefix("tick ")?.parse().ok()).collect();
        ticks.windows(2).any(|pair| pair[1] <= pair[0])
    };
    wait_for(|| again(&rig.console(0)), || rig.console(0)).await;
    assert_eq!(rig.console(0).matches(UP).count(), 1);
    let held = driver.inspect(vm(0)).await.unwrap().unwrap();
    assert_eq!(held.op.0, 5, "the number is not that of the time of the snapshot");
    let late = driver.perform(&op(0, 4, Action::Suspend)).await;
    assert!(matches!(late, Err(Error::Superseded { .. })), "{late:?}");

    let disk = rig.dir.path().join("disks").join(domain::volume_of(vm(0)));
    assert!(disk.exists());
    assert_eq!(power(driver.perform(&op(0, 6, Action::Stop(StopMode::Graceful))).await), PowerState::Stopped);
    let more = Size { vcpus: 2, memory_mib: 192, disk_gib: 2 };
    assert_eq!(driver.perform(&op(0, 7, Action::SnapshotDelete(name))).await.unwrap().unwrap().snapshots, []);
    assert_eq!(driver.perform(&op(0, 8, Action::Resize(more))).await.unwrap().unwrap().size, more);
    assert_eq!(driver.perform(&op(0, 9, Action::Delete)).await, Ok(None));
    assert!(!disk.exists(), "its disk goes with it");
    assert_eq!(driver.inventory().await.unwrap().vms, []);
}

/// A guest moves while it runs: it goes on counting, and does not boot again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_moves_while_it_runs() {
    let Some(guest) = guest() else { return };
    let mut rig = rig(&guest, 2).await;
    rig.config.cold_moves = false;
    *rig.manager.lock().unwrap() = manager(&rig.config);
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    driver.perform(&create(0, 1, "h0")).await.unwrap();
    rig.says("tick 2").await;
    moves_and_ticks_on(&rig, &driver).await;
    assert_eq!(driver.perform(&op(0, 3, Action::Delete)).await, Ok(None));
}

/// The VM 0 is moved to the host h1 by its operation 2.
async fn moves_and_ticks_on(rig: &Rig, driver: &LibvirtDriver) {
    let to = super::host_id("h1");
    let moved = driver.perform(&Op { host: Some(to.clone()), ..op(0, 2, Action::Relocate(to)) }).await;
    let facts = moved.unwrap().unwrap();
    assert_eq!((facts.host.as_str(), facts.power), ("h1", PowerState::Running));
    let ticks = |console: &str| console.matches("tick").count();
    let at = ticks(&rig.console(0));
    wait_for(|| ticks(&rig.console(0)) > at + 2, || rig.console(0)).await;
    assert_eq!(rig.console(0).matches(UP).count(), 1, "{}", rig.console(0));
    let held = driver.inspect(vm(0)).await.unwrap().unwrap();
    assert_eq!((held.op.0, held.facts.host.as_str()), (2, "h1"));
    let mine = domain::name_of(vm(0));
    assert_eq!(rig.domains(), [mine.as_str(), domain::OWNER_NAME, domain::OWNER_NAME]);
}

/// What somebody does with virsh is heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_do_is_heard() {
    let Some(guest) = guest() else { return };
    let rig = rig(&guest, 1).await;
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    driver.perform(&create(0, 1, "h0")).await.unwrap();
    let heard = async |what: Change| {
        let hear = async { while !driver.changes().await.unwrap().contains(&what) {} };
        assert!(env().timeout(PATIENCE, hear).await.is_some(), "{what:?} was not heard");
    };
    heard(Change::Vm(vm(0))).await;
    // Whatever is still to be heard of the create, before it is done behind our back.
    while env().timeout(Duration::from_millis(500), driver.changes()).await.is_some() {}
    rig.daemons[0].virsh(&["destroy", &domain::name_of(vm(0))]);
    heard(Change::Vm(vm(0))).await;
    assert_eq!(driver.inspect(vm(0)).await.unwrap().unwrap().facts.power, PowerState::Stopped);
    // A libvirtd that is gone may have done anything since.
    rig.daemons[0].kill();
    heard(Change::Missed).await;
    assert!(matches!(driver.inspect(vm(0)).await, Err(Error::Unreachable { .. })));
    rig.daemons[0].start_again().await;
    assert!(driver.inspect(vm(0)).await.unwrap().is_some(), "it is connected to again");
}

/// The other process of the test below: it makes a VM and never gets to its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_to_be_killed() {
    let Ok(dir) = std::env::var("CELLBUS_LIBVIRT_KILLED") else { return };
    let uri = format!("qemu+unix:///session?socket={dir}/0/run/libvirt/libvirt-sock");
    let host = LibvirtHost { name: "h0".parse().unwrap(), uri, out: false, gear: None };
    let manager = manager(&config(Path::new(&dir), vec![host]));
    let driver = LibvirtDriver::new(Arc::clone(&manager));
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    manager.hosts.trouble.stand_still_after(std::env::var("CELLBUS_LIBVIRT_CHANGES").unwrap().parse().unwrap());
    let _ = driver.perform(&create(0, 1, "h0")).await;
}

/// A cell that is killed between a create and its answer leaves one domain, wherever in it that is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_within_a_create_leaves_one_domain() {
    let Some(guest) = guest() else { return };
    let rig = rig(&guest, 1).await;
    // Defined; with a disk; started.
    for changes in 1..=3_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["tests::real::a_process_that_is_to_be_killed", "--exact", "--nocapture"])
            .env("CELLBUS_LIBVIRT_KILLED", rig.dir.path())
            .env("CELLBUS_LIBVIRT_CHANGES", changes.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let world = env();
        let stands = world.blocking("reads the child", move || {
            use std::io::BufRead;
            std::io::BufReader::new(stdout).lines().map_while(Result::ok).any(|line| line.contains("stands still"))
        });
        assert_eq!(world.timeout(PATIENCE, stands).await, Some(Some(true)), "it comes to its change {changes}");
        child.kill().unwrap();
        child.wait().unwrap();
        let mine = domain::name_of(vm(0));
        assert_eq!(rig.domains(), [mine.clone(), domain::OWNER_NAME.to_owned()]);

        *rig.manager.lock().unwrap() = manager(&rig.config);
        let driver = rig.driver();
        driver.open(Epoch(2 * changes)).await.unwrap();
        driver.inventory().await.unwrap();
        let facts = driver.perform(&create(0, 1, "h0")).await.unwrap().unwrap();
        assert_eq!(facts.power, PowerState::Running);
        assert_eq!(rig.domains(), [mine, domain::OWNER_NAME.to_owned()]);
        assert_eq!(driver.perform(&op(0, 2, Action::Delete)).await, Ok(None));
        // For the next round, as if it had never been.
        let connection = Connect::open(Some(&rig.daemons[0].uri())).unwrap();
        for domain in connection.list_all_domains(0).unwrap() {
            domain.undefine().unwrap();
        }
    }
}
