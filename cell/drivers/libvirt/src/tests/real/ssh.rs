//! A host that is reached by ssh: an sshd of the test's own, which runs as who runs libvirtd.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::*;

/// It stops with the test.
struct Sshd(Child);

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts an sshd whose users are others. `$0` is its folder, `$1` who it runs as, `$2` its binary.
const IN_ITS_OWN: &str = "for file in passwd shadow; do mount --bind \"$0/$file\" /etc/$file || exit 1; done; \
    exec setpriv --reuid=\"$1\" --regid=\"$1\" --clear-groups \"$2\" -D -e -f \"$0/sshd_config\"";

fn keygen(path: &Path) -> String {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    std::fs::read_to_string(path.with_extension("pub")).unwrap()
}

/// A user that may not log in here may there, as `nobody` is said to have a shell in a mount namespace of the sshd's
/// own. Where the test is not root, its user logs in.
fn sshd(unpacked: &Path, dir: &Path, runtime: &Path, port: u16) -> (Sshd, String) {
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let known = keygen(&dir.join("host"));
    std::fs::copy(dir.join("client.pub"), dir.join("authorized")).unwrap();
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/authorized\nStrictModes no\n\
         PidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n\
         SetEnv XDG_RUNTIME_DIR={runtime}\n",
        dir = dir.display(),
        runtime = runtime.display()
    );
    std::fs::write(dir.join("sshd_config"), config).unwrap();
    for file in ["host", "authorized", "sshd_config"] {
        hand_over(&dir.join(file));
    }
    let user = if is_root { "nobody".to_owned() } else { std::env::var("USER").unwrap() };
    // With a shell, and a password that is none.
    let passwd = format!("nobody:x:{NOBODY}:{NOBODY}:nobody:{}:/bin/sh\n", dir.display());
    std::fs::write(dir.join("passwd"), passwd).unwrap();
    std::fs::write(dir.join("shadow"), "nobody:*:20000:0:99999:7:::\n").unwrap();
    let binary = unpacked.join("usr/sbin/sshd");
    let mut command = if is_root {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", IN_ITS_OWN]);
        command.arg(dir).arg(NOBODY.to_string()).arg(&binary);
        command
    } else {
        let mut command = Command::new(&binary);
        command.args(["-D", "-e", "-f"]).arg(dir.join("sshd_config"));
        command
    };
    let libraries = ["usr/lib", "lib"].map(|lib| unpacked.join(lib).join("x86_64-linux-gnu").display().to_string());
    let log = File::options().create(true).append(true).open(dir.join("sshd.log")).unwrap();
    command.env("LD_LIBRARY_PATH", libraries.join(":")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let running = Sshd(command.spawn().unwrap());
    std::fs::write(dir.join("known"), format!("[127.0.0.1]:{port} {known}")).unwrap();
    (running, user)
}

/// A VM lives on a host that is reached by ssh; one with another host key is not spoken to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_reached_by_ssh() {
    let Some(guest) = guest() else { return };
    let unpacked = guest.join("ssh");
    if !unpacked.join("usr/sbin/sshd").exists() {
        eprintln!("LEFT OUT: qemu+ssh: {} has no sshd; run ops/setup/libvirt", unpacked.display());
        return;
    }
    let keys = tempfile::Builder::new().prefix("cb-ssh").tempdir_in("/var/tmp").unwrap();
    let dir = keys.path();
    hand_over(dir);
    keygen(&dir.join("client"));
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut running = None;
    let mut rig = rig_with(&guest, 1, |_, of_rig| {
        running = Some(sshd(&unpacked, dir, &of_rig.join("0/run"), port));
    })
    .await;
    let (_sshd, user) = running.unwrap();
    let log = || std::fs::read_to_string(dir.join("sshd.log")).unwrap_or_default();
    wait_for(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(), log).await;

    // What ssh is told stands where libvirt has no words for it.
    let by = |name: &str, known: &str| {
        let command = dir.join(name);
        let said = format!(
            "#!/bin/sh\nexec ssh -F none -i {dir}/client -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes \
             -o GlobalKnownHostsFile=/dev/null -o UserKnownHostsFile={dir}/{known} \"$@\"\n",
            dir = dir.display()
        );
        std::fs::write(&command, said).unwrap();
        std::fs::set_permissions(&command, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        format!("qemu+ssh://{user}@127.0.0.1:{port}/session?command={}", command.display())
    };
    rig.config.hosts[0].uri = by("ssh", "known");
    *rig.manager.lock().unwrap() = manager(&rig.config);
    let driver = rig.driver();
    let opened = driver.open(Epoch(1)).await;
    assert!(opened.is_ok(), "{opened:?}: {}", log());
    driver.inventory().await.unwrap();
    let connection = driver.manager.hosts.all[0].connected().unwrap();
    assert!(connection.is_secure().unwrap());
    driver.perform(&create(0, 1, "h0")).await.unwrap();
    rig.says(UP).await;
    while env().timeout(Duration::from_millis(500), driver.changes()).await.is_some() {}
    rig.daemons[0].virsh(&["destroy", &domain::name_of(vm(0))]);
    let hear = async { while !driver.changes().await.unwrap().contains(&Change::Vm(vm(0))) {} };
    assert!(env().timeout(PATIENCE, hear).await.is_some(), "events come by ssh too");
    assert_eq!(driver.perform(&op(0, 2, Action::Delete)).await, Ok(None));

    std::fs::write(dir.join("other"), format!("[127.0.0.1]:{port} {}", keygen(&dir.join("another")))).unwrap();
    let mut config = rig.config.clone();
    config.hosts[0].uri = by("astray", "other");
    let refused = LibvirtDriver::new(manager(&config)).open(Epoch(2)).await;
    assert!(matches!(refused, Err(Error::Unreachable { .. })), "{refused:?}");
}
