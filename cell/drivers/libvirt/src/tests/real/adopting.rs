//! A domain that somebody has made by hand is taken in while it runs.

use cellbus_bus::ids::ShortName;

use super::*;
use crate::tests::{adopt, host_id};

const KEY: &str = "4d6a2c1e-0b5f-4c3a-9d52-0e1f2a3b4c5d";

impl Rig {
    /// A domain made by hand, with things that no job asks for, whose disk is this file. It runs and has said so.
    async fn by_hand(&self, disk: &Path, cache: &str) {
        let dir = self.dir.path();
        let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(disk).arg("1G").output().unwrap();
        assert!(made.status.success(), "{made:?}");
        hand_over(disk);
        let document = dir.join("legacy.xml");
        let text = format!(
            "<domain type='qemu'><name>legacy db (2)</name><uuid>{KEY}</uuid><title>do not touch</title>\
             <metadata><app:x xmlns:app='urn:app' kept='yes'/></metadata><memory unit='MiB'>128</memory><vcpu>1</vcpu>\
             <os><type>hvm</type><kernel>{dir}/vmlinuz</kernel><initrd>{dir}/initramfs.gz</initrd>\
             <cmdline>console=ttyS0 quiet panic=1</cmdline></os><features><acpi/></features><devices>\
             <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='{cache}'/><source file='{disk}'/>\
             <target dev='vda' bus='virtio'/></disk>\
             <serial type='file'><source path='{console}' append='on'/></serial>\
             <graphics type='vnc' socket='{dir}/vnc' passwd='hush'/></devices></domain>",
            dir = dir.display(),
            disk = disk.display(),
            console = self.by_hand_console().display(),
        );
        std::fs::write(&document, text).unwrap();
        self.daemons[0].virsh(&["define", document.to_str().unwrap()]);
        self.daemons[0].virsh(&["start", KEY]);
        wait_for(|| self.by_hand_says().contains("tick 2"), || self.by_hand_says()).await;
    }
    fn by_hand_console(&self) -> PathBuf {
        self.dir.path().join("0/console/legacy.log")
    }
    fn by_hand_says(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.by_hand_console()).unwrap_or_default()).into_owned()
    }
    /// Of its QEMU.
    fn by_hand_pid(&self, host: usize) -> u32 {
        let path = self.daemons[host].dir.join("run/libvirt/qemu/run/legacy db (2).pid");
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }
}

/// It is listed, taken in without having been touched, and then lives and dies by jobs. Its disk is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_made_by_hand_is_taken_in_while_it_runs() {
    let Some(guest) = guest() else { return };
    let rig = rig(&guest, 1).await;
    let disk = rig.dir.path().join("legacy.qcow2");
    rig.by_hand(&disk, "none").await;
    rig.daemons[0].virsh(&["snapshot-create-as", KEY, "of-old"]);
    let pid = rig.by_hand_pid(0);

    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    assert_eq!(driver.inventory().await.unwrap().foreign_vms, 1);
    let listed = driver.foreign().await.unwrap();
    let [found] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((found.key.as_str(), found.name.as_str(), &found.unfit), (KEY, "legacy db (2)", &None));
    assert_eq!((found.facts.host.as_str(), found.facts.power), ("h0", PowerState::Running));
    assert_eq!(found.facts.size, Size { vcpus: 1, memory_mib: 128, disk_gib: 1 });
    let of_old: ShortName = "of-old".parse().unwrap();
    assert_eq!(found.facts.snapshots, std::slice::from_ref(&of_old));

    // The answer is lost; the same is asked again, and again by another process.
    driver.manager.hosts.trouble.lose_after(0);
    let lost = driver.perform(&adopt(0, 1, KEY)).await;
    assert!(matches!(lost, Err(Error::Unreachable { .. })), "{lost:?}");
    assert_eq!(driver.perform(&adopt(0, 1, KEY)).await, Ok(Some(found.facts.clone())));
    *rig.manager.lock().unwrap() = manager(&rig.config);
    let driver = rig.driver();
    driver.open(Epoch(2)).await.unwrap();
    assert_eq!(driver.perform(&adopt(0, 1, KEY)).await, Ok(Some(found.facts.clone())));
    assert_eq!((driver.inventory().await.unwrap().foreign_vms, driver.foreign().await.unwrap()), (0, Vec::new()));
    let held = driver.inspect(vm(0)).await.unwrap().unwrap();
    assert_eq!((held.name.as_str(), held.op.0, &held.facts), ("old-0", 1, &found.facts));
    // What libvirtd keeps of a domain that runs, and what it starts from next, both say so.
    for kept in ["--live", "--config"] {
        let record = rig.daemons[0].virsh(&["metadata", KEY, crate::record::NAMESPACE, kept]);
        assert!(record.contains(&format!("domain=\"{KEY}\"")), "{kept}: {record}");
    }
    rig.daemons[0].restart().await;
    assert_eq!(driver.inspect(vm(0)).await.unwrap().unwrap().facts, found.facts);
    assert_eq!(rig.by_hand_pid(0), pid, "another QEMU");
    let ticks = |says: String| says.matches("tick").count();
    let at = ticks(rig.by_hand_says());
    wait_for(|| ticks(rig.by_hand_says()) > at + 1, || rig.by_hand_says()).await;
    assert_eq!(rig.by_hand_says().matches(UP).count(), 1, "it has booted once");

    // Its time with Cellbus.
    let power = |answer: Result<Option<cellbus_directory::VmFacts>, Error>| answer.unwrap().unwrap().power;
    assert_eq!(power(driver.perform(&op(0, 2, Action::Suspend)).await), PowerState::Suspended);
    assert_eq!(power(driver.perform(&op(0, 3, Action::Resume)).await), PowerState::Running);
    let refused = driver.perform(&op(0, 4, Action::Revert(of_old.clone()))).await;
    assert!(
        matches!(&refused, Err(Error::Invalid { detail }) if detail.contains("before the VM was adopted")),
        "{refused:?}"
    );
    driver.perform(&op(0, 5, Action::SnapshotDelete(of_old))).await.unwrap();
    let mine: ShortName = "mine".parse().unwrap();
    driver.perform(&op(0, 6, Action::Snapshot(mine.clone()))).await.unwrap();
    assert_eq!(power(driver.perform(&op(0, 7, Action::Revert(mine.clone()))).await), PowerState::Running);
    assert_eq!(driver.inspect(vm(0)).await.unwrap().unwrap().op.0, 7);
    driver.perform(&op(0, 8, Action::SnapshotDelete(mine))).await.unwrap();
    assert_eq!(power(driver.perform(&op(0, 9, Action::Stop(StopMode::Graceful))).await), PowerState::Stopped);
    let more = Size { vcpus: 2, memory_mib: 192, disk_gib: 1 };
    assert_eq!(driver.perform(&op(0, 10, Action::Resize(more))).await.unwrap().unwrap().size, more);
    let document = rig.daemons[0].virsh(&["dumpxml", KEY, "--security-info"]);
    for kept in ["passwd='hush'", "urn:app", "<title>do not touch</title>", "<name>legacy db (2)</name>"] {
        assert!(document.contains(kept), "{kept}: {document}");
    }
    assert_eq!(power(driver.perform(&op(0, 11, Action::Start)).await), PowerState::Running);
    assert_eq!(driver.perform(&op(0, 12, Action::Delete)).await, Ok(None));
    assert_eq!(rig.domains(), [domain::name_of(vm(0)), domain::OWNER_NAME.to_owned()]);
    let tombstone = rig.daemons[0].virsh(&["desc", &domain::name_of(vm(0))]);
    assert!(tombstone.contains(&disk.display().to_string()), "{tombstone}");
    assert!(disk.exists(), "it is not Cellbus's");
    assert_eq!(driver.inventory().await.unwrap().vms, []);
}

/// It is moved live where its disk is on storage that hosts share, and not at all where it is elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_that_was_taken_in_moves_while_it_runs() {
    let Some(guest) = guest() else { return };
    let cases = [
        ("legacy.qcow2", "none", Some("not in the pool")),
        ("disks/legacy.qcow2", "writeback", Some("has a cache")),
        ("disks/legacy.qcow2", "none", None),
    ];
    for (disk, cache, refused) in cases {
        let rig = rig(&guest, 2).await;
        rig.by_hand(&rig.dir.path().join(disk), cache).await;
        let driver = rig.driver();
        driver.open(Epoch(1)).await.unwrap();
        driver.inventory().await.unwrap();
        driver.perform(&adopt(0, 1, KEY)).await.unwrap();
        let to = host_id("h1");
        let moved = driver.perform(&Op { host: Some(to.clone()), ..op(0, 2, Action::Relocate(to)) }).await;
        let held = driver.inspect(vm(0)).await.unwrap().unwrap();
        assert_eq!(held.facts.power, PowerState::Running);
        if let Some(why) = refused {
            assert!(matches!(&moved, Err(Error::Permanent { detail }) if detail.contains(why)), "{moved:?}");
            assert_eq!(held.facts.host.as_str(), "h0");
            continue;
        }
        assert_eq!((moved, held.op.0, held.facts.host.as_str()), (Ok(Some(held.facts.clone())), 2, "h1"));
        let ticks = |says: String| says.matches("tick").count();
        let at = ticks(rig.by_hand_says());
        wait_for(|| ticks(rig.by_hand_says()) > at + 1, || rig.by_hand_says()).await;
        assert_eq!(rig.by_hand_says().matches(UP).count(), 1, "it has booted once");
        let left: Vec<String> = rig.domains().into_iter().filter(|name| name.starts_with("legacy")).collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(driver.perform(&op(0, 3, Action::Delete)).await, Ok(None));
    }
}
