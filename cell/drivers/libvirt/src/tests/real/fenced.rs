//! A host dies: its libvirtd and its QEMU are killed, an operator says so, and what it ran boots elsewhere.

use cellbus_cell::driver::{FencedHost, HeldVm};

use super::*;
use crate::tests::host_id;

/// A QEMU whose libvirtd is killed, which may not outlive the test either.
struct Orphan(String);

impl Orphan {
    /// That of the VM on this host.
    fn of(rig: &Rig, host: usize) -> Self {
        let path = rig.daemons[host].dir.join(format!("run/libvirt/qemu/run/{}.pid", domain::name_of(vm(0))));
        Self(std::fs::read_to_string(path).unwrap().trim().to_owned())
    }
    fn process(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.0))
    }
    fn is_there(&self) -> bool {
        let command = std::fs::read(self.process().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&domain::name_of(vm(0)))
    }
    /// As by a power cut.
    async fn dies(self) {
        assert!(self.is_there());
        let killed = Command::new("kill").args(["-KILL", &self.0]).status().unwrap();
        assert!(killed.success());
        wait_for(|| !self.is_there(), || format!("{} lives", self.0)).await;
    }
}
impl Drop for Orphan {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = Command::new("kill").args(["-KILL", &self.0]).status();
        }
    }
}

impl Rig {
    fn names_on(&self, host: usize) -> Vec<String> {
        let listed = self.daemons[host].virsh(&["list", "--all", "--name"]);
        let mut names: Vec<String> = listed.split_whitespace().map(str::to_owned).collect();
        names.sort();
        names
    }
}
fn dead(vms: &[HeldVm]) -> Vec<FencedHost> {
    vec![FencedHost { id: host_id("h0"), vms: vms.to_vec() }]
}
fn qemu_io(disk: &Path, command: &str) {
    let done = Command::new("qemu-io").args(["-f", "qcow2", "-c", command]).arg(disk).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && !said.contains("verification failed"), "{command}: {done:?}");
}

/// It boots on the other host with the disk that it had, once; and never beside the guest that still has that disk,
/// should the operator have been wrong. The host comes back without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_host_ran_boots_elsewhere() {
    let Some(guest) = guest() else { return };
    let rig = rig(&guest, 2).await;
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    driver.perform(&create(0, 1, "h0")).await.unwrap();
    rig.says("tick 2").await;
    driver.perform(&op(0, 2, Action::Stop(StopMode::Hard))).await.unwrap();
    let disk = rig.dir.path().join("disks").join(domain::volume_of(vm(0)));
    qemu_io(&disk, "write -P 0x5a 1M 64k");
    driver.perform(&op(0, 3, Action::Start)).await.unwrap();
    let ups = || rig.console(0).matches(UP).count();
    wait_for(|| ups() == 2, || rig.console(0)).await;
    let mine = domain::name_of(vm(0));
    assert!(
        rig.daemons[0]
            .virsh(&["dominfo", &mine])
            .lines()
            .any(|line| line.contains("Autostart") && line.contains("disable"))
    );
    let held = driver.inspect(vm(0)).await.unwrap().unwrap();
    let refused = driver.may_be_fenced(&host_id("h0")).await;
    assert!(matches!(&refused, Err(Error::Invalid { detail }) if detail.contains("answers")), "{refused:?}");
    drop(driver);

    // Its libvirtd is gone, and another owner knows of nothing but what it is told.
    let orphan = Orphan::of(&rig, 0);
    rig.daemons[0].kill();
    *rig.manager.lock().unwrap() = manager(&rig.config);
    let driver = rig.driver();
    assert_eq!(driver.may_be_fenced(&host_id("h0")).await, Ok(()));
    driver.open(Epoch(2)).await.unwrap();
    assert!(matches!(driver.inventory().await, Err(Error::Unreachable { .. })));
    driver.fenced(dead(std::slice::from_ref(&held))).await.unwrap();
    let inventory = driver.inventory().await.unwrap();
    assert_eq!(inventory.vms, std::slice::from_ref(&held));
    assert_eq!(driver.dead_hosts().await, Ok(vec![host_id("h0")]));

    let to_h1 = Op { host: Some(host_id("h1")), ..op(0, 4, Action::Relocate(host_id("h1"))) };
    for answer in 0..2 {
        driver.manager.hosts.trouble.lose_after(0);
        let lost = driver.perform(&to_h1).await;
        assert!(matches!(lost, Err(Error::Unreachable { .. })), "answer {answer}: {lost:?}");
    }
    for _ in 0..2 {
        let facts = driver.perform(&to_h1).await.unwrap().unwrap();
        assert_eq!((facts.host.as_str(), facts.power, facts.size), ("h1", PowerState::Stopped, held.facts.size));
    }
    assert_eq!(rig.names_on(1), [mine.clone(), domain::OWNER_NAME.to_owned()]);

    // The operator was wrong: the guest lives without its libvirtd, and holds its disk.
    let twice = driver.perform(&op(0, 5, Action::Start)).await;
    assert!(matches!(&twice, Err(error) if error.to_string().contains("lock")), "{twice:?}");
    orphan.dies().await;
    let facts = driver.perform(&op(0, 5, Action::Start)).await.unwrap().unwrap();
    assert_eq!((facts.host.as_str(), facts.power), ("h1", PowerState::Running));
    wait_for(|| ups() == 3, || rig.console(0)).await;

    rig.daemons[0].start_again().await;
    assert_eq!(rig.names_on(0), [mine.clone(), domain::OWNER_NAME.to_owned()], "it comes back with what it had");
    driver.fenced(Vec::new()).await.unwrap();
    let inventory = driver.inventory().await.unwrap();
    let [vm_now] = &inventory.vms[..] else { panic!("{inventory:?}") };
    assert_eq!((vm_now.facts.host.as_str(), vm_now.facts.power), ("h1", PowerState::Running));
    assert!(inventory.hosts.iter().all(|host| host.usable));
    wait_for(|| rig.names_on(0) == [domain::OWNER_NAME], || format!("{:?}", rig.names_on(0))).await;
    assert_eq!(driver.inventory().await.unwrap().vms.len(), 1);
    assert_eq!(driver.irregular().vms, 0);
    assert_eq!(ups(), 3, "it has booted once there");

    driver.perform(&op(0, 6, Action::Stop(StopMode::Hard))).await.unwrap();
    qemu_io(&disk, "read -P 0x5a 1M 64k");
    assert_eq!(driver.perform(&op(0, 7, Action::Delete)).await, Ok(None));
    assert!(!disk.exists());
}
