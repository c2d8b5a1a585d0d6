//! What a vCenter has beside the suite: certificates, sessions, templates, hosts in maintenance, faults
//! by name, names and notes that somebody else changed, a vCenter that forgot everything.

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::{Epoch, HostId, JobId, OpNumber, VmId};
use cellbus_bus::job::{Size, StopMode};
use cellbus_cell::driver::conformance::{self, op};
use cellbus_cell::driver::{Change, Connect, Driver, Error, Factory as _, Irregular, Op};
use cellbus_directory::vm::{PowerState, Template};
use cellbus_vsphere::VsphereFactory;
use cellbus_workflows::{Action, CreateSpec};
use futures::future::join_all;

use super::{Config, File, Sources, Vcsim, connect, env, manager};

/// For what is to happen soon, on a machine that is busy with other tests.
pub(super) const SOON: Duration = Duration::from_secs(60);

pub(super) fn vm(index: u32) -> VmId {
    JobId::derive("own", "vsphere", "vm").vm(index)
}
fn spec(index: u32) -> CreateSpec {
    CreateSpec { size: Size { vcpus: 2, memory_mib: 2048, disk_gib: 30 }, ..conformance::spec(index) }
}
pub(super) fn create(index: u32, number: u64, host: &HostId) -> Op {
    Op { host: Some(host.clone()), ..op(vm(index), number, Action::Create(Arc::new(spec(index)))) }
}

pub(super) async fn opened(manager: &Arc<dyn Connect>, epoch: u64) -> (Arc<dyn Driver>, Vec<HostId>) {
    let driver = manager.connect();
    driver.open(Epoch(epoch)).await.unwrap();
    let hosts = driver.inventory().await.unwrap().hosts;
    (driver, hosts.into_iter().map(|host| host.id).collect())
}

#[tokio::test]
async fn its_certificate_is_checked() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let with = |key: &str, value: &str| {
        let text = vcsim.config("vc", "");
        let pinned = format!("vsphere.thumbprint = \"{}\"", vcsim.thumbprint);
        assert!(text.contains(&pinned));
        text.replace(&pinned, &format!("vsphere.{key} = '{value}'"))
    };
    let authority = vcsim.folder().join("ca.pem");
    opened(&connect(with("ca", authority.to_str().unwrap())), 1).await;
    let other = connect(with("thumbprint", &"ab".repeat(32))).connect().open(Epoch(2)).await;
    let Err(Error::Unreachable { detail }) = other else { panic!("{other:?}") };
    assert!(detail.contains(&format!("another thumbprint: {}", vcsim.thumbprint)), "{detail}");
    // Another vCenter's authority.
    let stranger = Vcsim::start(&[]).unwrap();
    let theirs = stranger.folder().join("ca.pem");
    let refused = connect(with("ca", theirs.to_str().unwrap())).connect().open(Epoch(2)).await;
    assert!(matches!(&refused, Err(Error::Unreachable { detail }) if detail.contains("certificate")), "{refused:?}");
    // No file, or one with no certificate, is known at the start.
    for wrong in ["/no/such/file", vcsim.folder().join("password").to_str().unwrap()] {
        let file = Some(File { name: "cellbus.toml".to_owned(), text: with("ca", wrong) });
        let config = Config::load(Sources { file, ..Sources::default() }).unwrap();
        let refused = VsphereFactory.manager(&config.managers[0], &env());
        assert!(refused.is_err_and(|error| error.detail.contains("vsphere.ca")), "{wrong}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_and_a_changed_one_counts() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let to = manager(&vcsim, "");
    let file = vcsim.folder().join("password");
    std::fs::write(&file, "hunter2").unwrap();
    let refused = to.connect().open(Epoch(1)).await;
    assert!(matches!(&refused, Err(Error::Transient { detail }) if detail.contains("InvalidLogin")), "{refused:?}");
    assert!(!format!("{refused:?}").contains("hunter2"));
    // Not again and again, which would lock the account out.
    for _ in 0..5 {
        assert!(to.connect().open(Epoch(1)).await.is_err());
    }
    assert_eq!(vcsim.control("/calls?method=Login"), "1");
    std::fs::remove_file(&file).unwrap();
    let refused = to.connect().open(Epoch(1)).await;
    assert!(matches!(&refused, Err(Error::Transient { detail }) if detail.contains("password_file")), "{refused:?}");
    std::fs::write(&file, "vcsim\n").unwrap();
    opened(&to, 1).await;
}

#[tokio::test]
async fn a_session_that_lapsed_is_renewed() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    for (index, method) in (0..).zip(["FindChild", "CreateVM_Task", "ReconfigVM_Task", "CreateContainerView"]) {
        let _ = vcsim.control(&format!("/fail?fault=NotAuthenticated&method={method}"));
        driver.perform(&create(index, 1, &hosts[0])).await.unwrap();
        driver.inventory().await.unwrap();
    }
    assert_eq!(vcsim.control("/calls?method=Login"), "5");
}

#[tokio::test]
async fn hosts_in_maintenance_or_away_take_nothing() {
    let Some(vcsim) = Vcsim::start(&["-hosts", "3"]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    let _ = vcsim.control(&format!("/host?host={}&maintenance=true", hosts[0]));
    let _ = vcsim.control(&format!("/host?host={}&connected=false", hosts[1]));
    let told = async { while !driver.changes().await.unwrap().contains(&Change::Hosts) {} };
    env().timeout(SOON, told).await.expect("hosts changed");
    let usable: Vec<bool> = driver.inventory().await.unwrap().hosts.iter().map(|host| host.usable).collect();
    assert_eq!(usable, [false, false, true]);
    for host in &hosts[..2] {
        let refused = driver.perform(&create(0, 1, host)).await;
        assert!(matches!(refused, Err(Error::NoRoom { .. })), "{refused:?}");
    }
    driver.perform(&create(0, 1, &hosts[2])).await.unwrap();
}

#[tokio::test]
async fn vms_are_cloned_from_templates() {
    let Some(vcsim) = Vcsim::start(&["-template", "debian-12"]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, "vsphere.templates = \"templates\"\n"), 1).await;
    let before = driver.inventory().await.unwrap().foreign_vms;
    let facts = driver.perform(&create(0, 1, &hosts[1])).await.unwrap().unwrap();
    assert_eq!((facts.size, facts.power), (spec(0).size, PowerState::Running));
    assert_eq!(facts.host, hosts[1]);
    let inventory = driver.inventory().await.unwrap();
    assert_eq!((inventory.vms.len(), inventory.foreign_vms), (1, before));
    let mut other = spec(1);
    let template = Template { image: "no-such".to_owned(), ..spec(1).template.as_ref().clone() };
    other.template = Arc::new(template);
    let ask = Op { host: Some(hosts[0].clone()), ..op(vm(1), 1, Action::Create(Arc::new(other))) };
    assert!(matches!(driver.perform(&ask).await, Err(Error::Invalid { .. })));
}

#[tokio::test]
async fn a_linked_clone_lies_over_the_snapshot_of_its_template() {
    let Some(vcsim) = Vcsim::start(&["-template", "debian-12"]) else { return };
    let more = "vsphere.templates = \"templates\"\nvsphere.linked_clones = true\n";
    let (driver, hosts) = opened(&manager(&vcsim, more), 1).await;
    let of_size = |index, disk_gib| {
        let size = Size { disk_gib, ..spec(index).size };
        let spec = CreateSpec { size, ..spec(index) };
        Op { host: Some(hosts[1].clone()), ..op(vm(index), 1, Action::Create(Arc::new(spec))) }
    };
    // The disk of vcsim's VMs has 10 GiB: it stays as it is.
    let refused = driver.perform(&of_size(0, 11)).await;
    assert!(matches!(&refused, Err(Error::Invalid { detail }) if detail.contains("10 GiB")), "{refused:?}");
    assert_eq!(vcsim.control("/calls?method=CloneVM_Task"), "0");
    let facts = driver.perform(&of_size(0, 5)).await.unwrap().unwrap();
    assert_eq!((facts.size.disk_gib, facts.power), (10, PowerState::Running));
    let asked = vcsim.control("/body?method=CloneVM_Task");
    assert!(asked.contains("<diskMoveType>createNewChildDiskBacking</diskMoveType>"), "{asked}");
    assert!(asked.contains("<snapshot type=\"VirtualMachineSnapshot\">"), "{asked}");
    // A host that has not the datastore of the template cannot take it.
    let _ = vcsim.control(&format!("/unmount?host={}&datastore=LocalDS_0", hosts[1]));
    let told = async { while !driver.inventory().await.unwrap().hosts.iter().any(|host| !host.usable) {} };
    env().timeout(SOON, told).await.expect("it has no datastore");
    let refused = driver.perform(&of_size(1, 5)).await;
    assert!(matches!(refused, Err(Error::NoRoom { .. })), "{refused:?}");
}

#[tokio::test]
async fn disks_go_along_to_the_datastore_that_is_to_be_used() {
    let Some(vcsim) = Vcsim::start(&["-hosts", "2", "-datastores", "2"]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    let on = |index| vcsim.control(&format!("/datastore?vm={}", vm(index)));
    driver.perform(&create(0, 1, &hosts[0])).await.unwrap();
    let before = on(0);
    let relocate =
        |number, host: &HostId| Op { host: Some(host.clone()), ..op(vm(0), number, Action::Relocate(host.clone())) };
    // Both hosts have it: nothing is copied.
    driver.perform(&relocate(2, &hosts[1])).await.unwrap();
    assert!(!vcsim.control("/body?method=RelocateVM_Task").contains("<datastore"));
    assert_eq!(on(0), before);
    // The host has it not, or the manager is not to use it any more. (vcsim cannot do without one that a VM
    // was made on, so it is the latter here.)
    let other = if before == "LocalDS_0" { "LocalDS_1" } else { "LocalDS_0" };
    let (driver, _) = opened(&manager(&vcsim, &format!("vsphere.datastore = \"{other}\"\n")), 2).await;
    let facts = driver.perform(&relocate(3, &hosts[0])).await.unwrap().unwrap();
    assert_eq!((facts.host, on(0).as_str()), (hosts[0].clone(), other));
}

#[tokio::test]
async fn a_password_may_stand_in_a_variable() {
    // One that every process has.
    let password = std::env::var("PATH").unwrap();
    let Some(vcsim) = Vcsim::start(&["-password", &password]) else { return };
    let in_variable = |name: &str| {
        let file = format!("vsphere.password_file = '{}'", vcsim.folder().join("password").display());
        let text = vcsim.config("vc", "");
        assert!(text.contains(&file));
        connect(text.replace(&file, &format!("vsphere.password_env = \"{name}\"")))
    };
    let missing = in_variable("CELLBUS_NO_SUCH_VARIABLE").connect().open(Epoch(1)).await;
    assert!(
        matches!(&missing, Err(Error::Transient { detail }) if detail.contains("CELLBUS_NO_SUCH_VARIABLE")),
        "{missing:?}"
    );
    let wrong = in_variable("HOME").connect().open(Epoch(1)).await;
    assert!(matches!(&wrong, Err(Error::Transient { detail }) if detail.contains("InvalidLogin")), "{wrong:?}");
    opened(&in_variable("PATH"), 1).await;
}

#[tokio::test]
async fn faults_of_a_vcenter_mean_what_they_say() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    let family = |error: Error| match error {
        Error::Transient { .. } => "transient",
        Error::Busy { .. } => "busy",
        Error::NoRoom { .. } => "no room",
        Error::NotFound => "not found",
        Error::Invalid { .. } => "invalid",
        Error::Permanent { .. } => "permanent",
        Error::Revoked | Error::Unreachable { .. } | Error::Superseded { .. } => "another",
    };
    for (fault, expected) in [
        ("HostCommunication", "transient"),
        ("Timedout", "transient"),
        ("TaskInProgress", "busy"),
        ("ResourceInUse", "busy"),
        ("ConcurrentAccess", "busy"),
        ("InsufficientMemoryResourcesFault", "no room"),
        ("NoDiskSpace", "no room"),
        ("HostNotConnected", "no room"),
        ("ManagedObjectNotFound", "not found"),
        ("InvalidVmConfig", "invalid"),
        ("NotSupported", "invalid"),
        ("NoPermission", "permanent"),
        ("LicenseServerUnavailable", "permanent"),
    ] {
        let _ = vcsim.control(&format!("/fail?fault={fault}&method=CreateVM_Task"));
        let refused = driver.perform(&create(0, 1, &hosts[0])).await.unwrap_err();
        assert_eq!(family(refused.clone()), expected, "{fault}: {refused}");
        assert_eq!(driver.inspect(vm(0)).await.unwrap(), None);
    }
    driver.perform(&create(0, 1, &hosts[0])).await.unwrap();
}

#[tokio::test]
async fn what_somebody_else_changed_is_not_taken_for_ours() {
    let Some(vcsim) = Vcsim::start(&["-vms", "2"]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    assert_eq!(driver.inventory().await.unwrap().foreign_vms, 2);
    driver.perform(&create(0, 1, &hosts[0])).await.unwrap();
    driver.perform(&create(1, 1, &hosts[0])).await.unwrap();
    // A note of another VM: nothing is done to it, least of all deleted.
    let note = format!(
        "%7B%22cellbus%22:1,%22vm%22:%22{}%22,%22op%22:1,%22tenant%22:%22acme%22,%22name%22:%22x%22,%22disk_gib%22:1%7D",
        vm(9)
    );
    let _ = vcsim.control(&format!("/annotate?vm={}&to={note}", vm(0)));
    let wait = async {
        while driver.perform(&op(vm(0), 2, Action::Stop(StopMode::Hard))).await.is_ok() {
            env().sleep(Duration::from_millis(50)).await;
        }
    };
    env().timeout(SOON, wait).await.expect("its note was changed");
    let refused = driver.perform(&op(vm(0), 9, Action::Delete)).await;
    assert!(matches!(refused, Err(Error::Permanent { .. })), "{refused:?}");
    // No note at all: it is there, and not said to be gone.
    let _ = vcsim.control(&format!("/annotate?vm={}&to=mine", vm(1)));
    let wait = async {
        while driver.inspect(vm(1)).await.is_ok() {
            env().sleep(Duration::from_millis(50)).await;
        }
    };
    env().timeout(SOON, wait).await.expect("its note was taken away");
    assert!(matches!(driver.inspect(vm(1)).await, Err(Error::Transient { .. })));
    let inventory = driver.inventory().await.unwrap();
    assert_eq!(inventory.foreign_vms, 3, "{:?}", inventory.vms);
}

/// Waits until what is told of ids that are not beyond doubt is so.
pub(super) async fn told(driver: &Arc<dyn Driver>, is: impl Fn(&Irregular) -> bool) {
    let wait = async {
        while !is(&driver.irregular()) {
            // What concerns no VM of ours is not among the changes.
            let _ = env().timeout(Duration::from_millis(100), driver.changes()).await;
        }
    };
    env().timeout(SOON, wait).await.unwrap_or_else(|| panic!("{:?}", driver.irregular()));
}

#[tokio::test]
async fn an_id_that_is_not_beyond_doubt_is_told() {
    let Some(vcsim) = Vcsim::start(&["-vms", "1"]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    for index in 0..3 {
        driver.perform(&create(index, 1, &hosts[0])).await.unwrap();
    }
    told(&driver, |irregular| irregular.vms == 0).await;
    // Two with one id: ours is the one in our folder.
    let _ = vcsim.control(&format!("/copy?vm={0}&name={0}", vm(0)));
    let twice = format!("2 VMs have the id {}", vm(0));
    told(&driver, |irregular| irregular.detail.contains(&twice)).await;
    let inventory = driver.inventory().await.unwrap();
    let held = inventory.vms.iter().find(|held| held.id == vm(0)).unwrap();
    assert_eq!((inventory.vms.len(), held.facts.power), (3, PowerState::Running));
    // A copy under another name.
    let _ = vcsim.control(&format!("/copy?vm={}&name=web", vm(1)));
    told(&driver, |irregular| irregular.detail.contains(&format!("web carries the note of {}", vm(1)))).await;
    // Another id, as vCenters give one that is registered twice.
    let _ = vcsim.control(&format!("/uuid?vm={}&to=f44dec3f-0dad-599c-bfc4-bbe000698666", vm(1)));
    told(&driver, |irregular| irregular.detail.contains(&format!("knows {} by another id", vm(1)))).await;
    // A name that somebody gave it: it is the same VM for all that.
    let _ = vcsim.control(&format!("/rename?vm={}&to=db", vm(2)));
    told(&driver, |irregular| irregular.detail.contains(&format!("{} was given the name db", vm(2)))).await;
    assert_eq!(driver.inspect(vm(2)).await.unwrap().unwrap().op, OpNumber(1));
    let stopped = driver.perform(&op(vm(2), 2, Action::Stop(StopMode::Hard))).await.unwrap().unwrap();
    assert_eq!(stopped.power, PowerState::Stopped);
    assert_eq!(driver.inventory().await.unwrap().vms.len(), 3);
    driver.perform(&op(vm(2), 3, Action::Delete)).await.unwrap();
    told(&driver, |irregular| !irregular.detail.contains("was given the name")).await;
    // The next owner is told the same.
    let (next, _) = opened(&manager(&vcsim, ""), 2).await;
    told(&next, |irregular| irregular.vms == driver.irregular().vms).await;
}

#[tokio::test]
async fn no_copy_is_pretended() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    let copy = CreateSpec { copy_of: Some(PowerState::Running), ..spec(0) };
    let ask = Op { host: Some(hosts[0].clone()), ..op(vm(0), 1, Action::Create(Arc::new(copy))) };
    assert!(matches!(driver.perform(&ask).await, Err(Error::Invalid { .. })));
    assert_eq!(driver.inspect(vm(0)).await.unwrap(), None);
}

/// As a vCenter is that was put back from an old image: nothing is concluded from what is not there.
#[tokio::test]
async fn a_vcenter_that_came_back_empty_is_left_alone() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let to = manager(&vcsim, "");
    let (driver, hosts) = opened(&to, 3).await;
    driver.perform(&create(0, 1, &hosts[0])).await.unwrap();
    let mut vcsim = vcsim;
    for arguments in [["-folder", ""], ["-folder", "cellbus"]] {
        vcsim = vcsim.again(&arguments);
        // Not while one of them signs in, either.
        join_all((1..=8).map(|pause| {
            let driver = &driver;
            async move {
                for _ in 0..40 {
                    env().sleep(Duration::from_millis(pause)).await;
                    let answer = driver.tasks().await;
                    assert!(matches!(answer, Err(Error::Unreachable { .. } | Error::Transient { .. })), "{answer:?}");
                }
            }
        }))
        .await;
        for answer in [
            driver.inspect(vm(0)).await.err(),
            driver.inventory().await.err(),
            driver.tasks().await.err(),
            driver.changes().await.err(),
            driver.perform(&op(vm(0), 2, Action::Delete)).await.err(),
            // Nor does the next owner in this process take it for new.
            to.connect().open(Epoch(4)).await.err(),
        ] {
            assert!(matches!(answer, Some(Error::Unreachable { .. } | Error::Transient { .. })), "{answer:?}");
        }
    }
    let Err(Error::Unreachable { detail }) = to.connect().open(Epoch(4)).await else { panic!("it opened") };
    assert!(detail.contains("cellbus-epoch-3"), "{detail}");
    // An operator who knows better says so, with a folder of that name.
    let _ = vcsim.control("/folder?name=cellbus-epoch-3");
    let (next, _) = opened(&to, 4).await;
    assert_eq!(next.inspect(vm(0)).await.unwrap(), None);
}

/// As above, but it has its folder, and an owner has come since who knows of it by the manager's shard only.
#[tokio::test]
async fn a_vcenter_that_came_back_older_is_known_by_whoever_owns_it_then() {
    let Some(vcsim) = Vcsim::start(&[]) else { return };
    let (driver, hosts) = opened(&manager(&vcsim, ""), 1).await;
    assert_eq!(driver.mark().await.unwrap(), Some(1));
    driver.perform(&create(0, 1, &hosts[0])).await.unwrap();
    // An answer that was lost: what was left counts, and the next is newer.
    let _ = vcsim.control("/lose?method=Rename_Task");
    assert!(matches!(driver.mark().await, Err(Error::Unreachable { .. })));
    assert_eq!(driver.mark().await.unwrap(), Some(3));
    // An image of it from the time of the first mark.
    let vcsim = vcsim.again(&[]);
    let _ = vcsim.control("/folder?name=cellbus-epoch-1");
    let _ = vcsim.control("/folder?name=cellbus-mark-1");
    // Whoever had it open sees it by the mark alone: it holds the epoch.
    let seen = async {
        loop {
            for answer in [driver.inspect(vm(0)).await.err(), driver.perform(&op(vm(0), 2, Action::Delete)).await.err()]
            {
                // At first a connection that is broken says no more.
                let Some(Error::Unreachable { detail }) = &answer else { panic!("{answer:?}") };
                if detail.contains("cellbus-mark-3") {
                    return detail.clone();
                }
            }
        }
    };
    let detail = env().timeout(SOON, seen).await.expect("it is known to be older");
    assert!(!detail.contains("cellbus-epoch"), "{detail}");
    // And so does a process that was started since.
    let to = manager(&vcsim, "");
    let next = to.connect();
    next.expect(3);
    for _ in 0..2 {
        let Err(Error::Unreachable { detail }) = next.open(Epoch(2)).await else { panic!("it opened") };
        assert!(detail.contains("cellbus-mark-3"), "{detail}");
    }
    assert_eq!(vcsim.control("/calls?method=Destroy_Task"), "0");
    // An operator says that it is to be taken as it is.
    let _ = vcsim.control("/folder?name=cellbus-mark-3");
    next.open(Epoch(2)).await.unwrap();
    assert_eq!(next.inspect(vm(0)).await.unwrap(), None);
    assert_eq!(next.mark().await.unwrap(), Some(4));
    // One that holds more than its shard knows is fine: the last mark may not have come to it.
    let after = to.connect();
    after.expect(3);
    after.open(Epoch(3)).await.unwrap();
    // Whoever was there before leaves none any more.
    assert_eq!(next.mark().await, Err(Error::Revoked));
}

#[tokio::test]
async fn without_its_folder_nothing_is_opened() {
    let Some(vcsim) = Vcsim::start(&["-folder", ""]) else { return };
    let refused = manager(&vcsim, "").connect().open(Epoch(1)).await;
    assert!(matches!(&refused, Err(Error::Transient { detail }) if detail.contains("folder cellbus")), "{refused:?}");
}
