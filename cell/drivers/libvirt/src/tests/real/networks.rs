//! Hosts that are reached over a network: by TLS, and each in a network namespace of its own.

use cellbus_bus::testing::Port;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::*;

// ── TLS ──

/// A CA.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "the tests of Cellbus");
        let key = KeyPair::generate().unwrap();
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }
    /// What it vouches for, as libvirt calls the files: `cacert.pem`, `<name>cert.pem`, `<name>key.pem`.
    fn write(&self, folder: &Path, name: &str, names: &[&str], usage: ExtendedKeyUsagePurpose) {
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::create_dir_all(folder).unwrap();
        hand_over(folder);
        let files = [
            ("cacert.pem".to_owned(), self.pem.clone()),
            (format!("{name}cert.pem"), cert.pem()),
            (format!("{name}key.pem"), key.serialize_pem()),
        ];
        for (file, pem) in files {
            let path = folder.join(file);
            std::fs::write(&path, pem).unwrap();
            hand_over(&path);
        }
    }
}

/// A VM lives on a host that is reached by TLS; whoever is not known to the other side gets nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_reached_by_tls() {
    let Some(guest) = guest() else { return };
    let pki = tempfile::Builder::new().prefix("cb-pki").tempdir_in("/var/tmp").unwrap();
    hand_over(pki.path());
    let (ours, theirs) = (Authority::new(), Authority::new());
    let folder = |name: &str| pki.path().join(name);
    ours.write(&folder("server"), "server", &["127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth);
    ours.write(&folder("known"), "client", &[], ExtendedKeyUsagePurpose::ClientAuth);
    // Vouched for by others; and one who is known, and knows others.
    theirs.write(&folder("unknown"), "client", &[], ExtendedKeyUsagePurpose::ClientAuth);
    std::fs::write(folder("unknown").join("cacert.pem"), &ours.pem).unwrap();
    ours.write(&folder("astray"), "client", &[], ExtendedKeyUsagePurpose::ClientAuth);
    std::fs::write(folder("astray").join("cacert.pem"), &theirs.pem).unwrap();

    let kept = Port::hold();
    let port = kept.number();
    let conf = format!(
        "listen_tls = 1\nlisten_tcp = 0\nlisten_addr = \"127.0.0.1\"\ntls_port = \"{port}\"\nauth_tls = \"none\"\n\
         key_file = \"{dir}/serverkey.pem\"\ncert_file = \"{dir}/servercert.pem\"\nca_file = \"{dir}/cacert.pem\"\n",
        dir = folder("server").display()
    );
    let uri = |name: &str| format!("qemu+tls://127.0.0.1:{port}/session?pkipath={}", folder(name).display());
    let setup = Setup { conf, listens: true, ..Setup::default() };
    let rig = rig_of(&guest, vec![setup], |config, _| config.hosts[0].uri = uri("known")).await;
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    let connection = driver.manager.hosts.all[0].connected().unwrap();
    assert!(connection.is_encrypted().unwrap() && connection.is_secure().unwrap());
    assert!(connection.get_uri().unwrap().starts_with("qemu+tls://127.0.0.1"), "{:?}", connection.get_uri());

    driver.perform(&create(0, 1, "h0")).await.unwrap();
    rig.says(UP).await;
    driver.perform(&op(0, 2, Action::Suspend)).await.unwrap();
    while env().timeout(Duration::from_millis(500), driver.changes()).await.is_some() {}
    rig.daemons[0].virsh(&["destroy", &domain::name_of(vm(0))]);
    let hear = async { while !driver.changes().await.unwrap().contains(&Change::Vm(vm(0))) {} };
    assert!(env().timeout(PATIENCE, hear).await.is_some(), "events come by TLS too");
    assert_eq!(driver.inspect(vm(0)).await.unwrap().unwrap().facts.power, PowerState::Stopped);

    for stranger in ["unknown", "astray"] {
        let mut config = rig.config.clone();
        config.hosts[0].uri = uri(stranger);
        let refused = LibvirtDriver::new(manager(&config)).open(Epoch(2)).await;
        assert!(matches!(refused, Err(Error::Unreachable { .. })), "{stranger}: {refused:?}");
    }
    // Past what libvirt sees of that before it connects: a host that is there, and that we turn away, is not dead.
    let mut config = rig.config.clone();
    config.hosts[0].uri = format!("{}&no_sanity=1", uri("astray"));
    let alive = LibvirtDriver::new(manager(&config)).may_be_fenced(&crate::tests::host_id("h0")).await;
    assert!(
        matches!(&alive, Err(Error::Invalid { detail }) if detail.contains("if only to turn us away")),
        "{alive:?}"
    );
    driver.perform(&op(0, 3, Action::Delete)).await.unwrap();
}

// ── network namespaces ──

/// Two network namespaces with a cable between them, which go with it.
struct Cable {
    names: [String; 2],
}

const ENDS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

fn ip(arguments: &[&str]) -> Result<(), String> {
    let done = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()) }
}

impl Cable {
    /// # Errors
    /// In words: this machine has none, or we may not make them.
    fn lay() -> Result<Self, String> {
        let pid = std::process::id();
        let cable = Self { names: [0, 1].map(|end| format!("cb-{pid}-{end}")) };
        for name in &cable.names {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        let [one, other] = &cable.names;
        ip(&["-n", one, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", other])?;
        for (name, address) in cable.names.iter().zip(ENDS) {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", "cable"])?;
            ip(&["-n", name, "link", "set", "cable", "up"])?;
        }
        Ok(cable)
    }
    /// Bytes that came in at its second end.
    fn bytes(&self) -> u64 {
        let path = "/sys/class/net/cable/statistics/rx_bytes";
        let read = Command::new("ip").args(["netns", "exec", &self.names[1], "cat", path]).output().unwrap();
        String::from_utf8(read.stdout).unwrap().trim().parse().unwrap()
    }
}
impl Drop for Cable {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

/// A guest's memory goes from one host to the other over the network that is between them, and nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_moves_over_a_network() {
    let Some(guest) = guest() else { return };
    let cable = match Cable::lay() {
        Ok(cable) => cable,
        Err(why) => {
            eprintln!("LEFT OUT: live moves between network namespaces, which this machine does not allow: {why}");
            return;
        }
    };
    let setups = cable.names.iter().zip(ENDS).map(|(name, address)| Setup {
        namespace: Some(name.clone()),
        qemu_conf: format!("migration_host = \"{address}\"\n"),
        ..Setup::default()
    });
    let rig = rig_of(&guest, setups.collect(), |config, _| config.cold_moves = false).await;
    let driver = rig.driver();
    driver.open(Epoch(1)).await.unwrap();
    driver.inventory().await.unwrap();
    driver.perform(&create(0, 1, "h0")).await.unwrap();
    rig.says("tick 2").await;
    let before = cable.bytes();
    moves_and_ticks_on(&rig, &driver).await;
    let moved = cable.bytes() - before;
    assert!(moved > 1 << 20, "{moved} bytes came over the cable");
    assert_eq!(driver.perform(&op(0, 3, Action::Delete)).await, Ok(None));
}
