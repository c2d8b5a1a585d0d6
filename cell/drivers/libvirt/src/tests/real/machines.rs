//! What a guest is given: a disk over an image, what cloud-init reads, and a new shape.

use super::*;

/// What the image says on the serial port, once it has written a sector to its disk.
const IMAGE_UP: &str = "image is up";

/// The first sector of an image, which the BIOS starts: it writes itself to the sector after it, says so, and halts.
fn boot_sector() -> [u8; 512] {
    const CODE: &[u8] = &[
        0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // segments are 0
        0xbc, 0x00, 0x7c, // the stack ends where this is
        0xb8, 0x01, 0x03, 0xb9, 0x02, 0x00, 0xb6, 0x00, 0xbb, 0x00, 0x7c, 0xcd, 0x13, // write one sector
        0xbe, 0x35, 0x7c, // the text
        0xac, 0x84, 0xc0, 0x74, 0x12, // its next byte; 0 ends it
        0x88, 0xc4, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, // wait for the serial port
        0xba, 0xf8, 0x03, 0x88, 0xe0, 0xee, 0xeb, 0xe9, // send it, and on
        0xf4, 0xeb, 0xfd, // halt
    ];
    assert_eq!(CODE.len(), 0x35, "the text is where the code looks for it");
    let mut sector = [0; 512];
    sector[..CODE.len()].copy_from_slice(CODE);
    sector[CODE.len()..][..IMAGE_UP.len()].copy_from_slice(IMAGE_UP.as_bytes());
    sector[CODE.len() + IMAGE_UP.len()] = b'\n';
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn qemu_img(arguments: &[&str]) -> String {
    let done = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// A VM's disk lies over the image that its job names: the guest starts from it, writes to its own, and leaves the
/// image as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_lies_over_an_image_that_nobody_changes() {
    let Some(guest) = guest() else { return };
    let rig = rig_with(&guest, 1, |config, _| {
        config.images = Some("images".to_owned());
        config.boot = None;
    })
    .await;
    let (raw, images) = (rig.dir.path().join("raw"), rig.dir.path().join("images"));
    let mut bytes = vec![0; 1 << 20];
    bytes[..512].copy_from_slice(&boot_sector());
    std::fs::write(&raw, &bytes).unwrap();
    let image = images.join("debian-12.qcow2");
    let (raw, image) = (raw.to_str().unwrap(), image.to_str().unwrap());
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw, image]);
    qemu_img(&["create", "-q", "-f", "qcow2", images.join("large.qcow2").to_str().unwrap(), "2G"]);
    rig.daemons[0].make_pool("images", &images);
    let before = std::fs::read(image).unwrap();

    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    for (index, name) in [(1, "no-such"), (2, "large"), (3, "../raw")] {
        let mut wrong = create(index, 1, "h0");
        let Action::Create(spec) = &mut wrong.action else { panic!("it creates") };
        Arc::make_mut(&mut Arc::make_mut(spec).template).image = name.to_owned();
        let refused = driver.perform(&wrong).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{name}: {refused:?}");
    }
    assert_eq!(rig.domains(), [domain::OWNER_NAME], "nothing is left of those");
    for index in 0..2 {
        driver.perform(&create(index, 1, "h0")).await.unwrap();
    }
    for index in 0..2 {
        wait_for(|| rig.console(index).contains(IMAGE_UP), || rig.console(index)).await;
        driver.perform(&op(index, 2, Action::Stop(StopMode::Hard))).await.unwrap();
    }
    let disks = rig.dir.path().join("disks");
    let disk = disks.join(domain::volume_of(vm(0)));
    let info = qemu_img(&["info", disk.to_str().unwrap()]);
    for said in
        ["file format: qcow2", "virtual size: 1 GiB", &format!("backing file: {image}"), "backing file format: qcow2"]
    {
        assert!(info.contains(said), "{said}: {info}");
    }
    let second = rig.dir.path().join("second");
    let (from, to) = (format!("if={}", disk.display()), format!("of={}", second.display()));
    qemu_img(&["dd", "-f", "qcow2", "-O", "raw", "bs=512", "count=2", "skip=1", &from, &to]);
    assert_eq!(std::fs::read(&second).unwrap()[..512], boot_sector(), "what the guest wrote is on its own disk");

    // A disk grows over its image; the image of a VM that is deleted is another's too.
    let more = Size { vcpus: 1, memory_mib: 128, disk_gib: 2 };
    assert_eq!(driver.perform(&op(0, 3, Action::Resize(more))).await.unwrap().unwrap().size, more);
    assert!(qemu_img(&["info", disk.to_str().unwrap()]).contains("virtual size: 2 GiB"));
    driver.perform(&op(0, 4, Action::Delete)).await.unwrap();
    assert!(!disk.exists() && disks.join(domain::volume_of(vm(1))).exists());
    assert_eq!(std::fs::read(image).unwrap(), before, "the image is as it was");
    driver.perform(&op(1, 3, Action::Delete)).await.unwrap();
    assert_eq!(std::fs::read_dir(&disks).unwrap().count(), 0);
}

/// cloud-init reads who it is, and where its user data is, from where the guest's firmware has its serial number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_reads_its_seed() {
    let Some(guest) = guest() else { return };
    let rig = rig_with(&guest, 1, |config, _| config.seed_from = Some("http://seeds.example/".to_owned())).await;
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    driver.perform(&create(0, 1, "h0")).await.unwrap();
    rig.says(&format!("seed ds=nocloud;i={};h=web;s=http://seeds.example/", vm(0))).await;
    driver.perform(&op(0, 2, Action::Delete)).await.unwrap();
}

/// A guest that runs goes on as it is: its disk is larger at once, its CPUs and memory from its next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_runs_has_its_new_shape_from_its_next_start() {
    let Some(guest) = guest() else { return };
    let rig = rig(&guest, 1).await;
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    driver.perform(&create(0, 1, "h0")).await.unwrap();
    rig.says("tick 1").await;
    let name = domain::name_of(vm(0));
    let virsh = |arguments: &[&str]| rig.daemons[0].virsh(arguments);
    let run = virsh(&["domid", &name]);
    let more = Size { vcpus: 2, memory_mib: 192, disk_gib: 2 };
    let facts = driver.perform(&op(0, 2, Action::Resize(more))).await.unwrap().unwrap();
    assert_eq!((facts.size, facts.power), (more, PowerState::Running));
    assert_eq!(virsh(&["domid", &name]), run, "it was not started anew");
    assert!(virsh(&["domblkinfo", &name, domain::DISK]).contains(&(2_u64 << 30).to_string()));
    let vcpus = |of: &str| virsh(&["vcpucount", &name, "--maximum", of]).trim().to_owned();
    assert_eq!((vcpus("--live"), vcpus("--config")), ("1".to_owned(), "2".to_owned()));
    driver.perform(&op(0, 3, Action::Restart(StopMode::Hard))).await.unwrap();
    assert_eq!(vcpus("--live"), "2");
    assert!(virsh(&["dommemstat", &name]).contains(&format!("actual {}", 192 << 10)));
    let shrunk = driver.perform(&op(0, 4, Action::Resize(Size { disk_gib: 1, ..more }))).await;
    assert!(matches!(shrunk, Err(Error::Invalid { .. })), "{shrunk:?}");
    driver.perform(&op(0, 5, Action::Delete)).await.unwrap();
}
