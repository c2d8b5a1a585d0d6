//! TLS of callers and of members, over real sockets: what is let in, what is not, and what changes
//! while connections live on.

use std::sync::atomic::AtomicU32;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

use super::access::security;
use super::certificates::{Ca, Pair, member_files};
use super::*;
use crate::config::MembersTls as Files;
use crate::metrics;
use crate::peers::wire;
use crate::peers::{
    CallError, HttpPeers, LocalPeers, Peer, Peers as _, Post, Request as Asked, Response as Told, Serve,
};
use crate::security::{MEMBER_NAME, MembersTls};

const CLUSTER: Uuid = Uuid::from_u128(7);
const LONG: Duration = Duration::from_secs(20);

/// A server with TLS, and what its files are made of.
struct Secure {
    server: Server,
    ca: Ca,
    members_ca: Ca,
    dir: tempfile::TempDir,
    registry: Registry,
}

/// A cell that counts what it is asked.
#[derive(Default)]
struct Counting(AtomicU32);
#[async_trait::async_trait]
impl Serve for Counting {
    async fn serve(&self, _: Asked) -> Told {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Told::Failed { detail: "it was asked".to_owned() }
    }
    fn take(&self, _: Post) {}
}

impl Secure {
    async fn start(members: bool) -> (Self, Arc<Counting>) {
        let (ca, members_ca, dir) = (Ca::new(), Ca::new(), tempfile::tempdir().unwrap());
        let (cert, key) = ca.localhost().write(dir.path(), "api");
        let show = |path: &std::path::Path| path.display().to_string();
        let mut set = vec![("tls.cert", show(&cert)), ("tls.key", show(&key))];
        if members {
            let files = member_files(dir.path(), "server", &members_ca, &members_ca.member());
            set.extend([
                ("members.tls.ca", show(&files.ca)),
                ("members.tls.cert", show(&files.cert)),
                ("members.tls.key", show(&files.key)),
            ]);
        }
        let (registry, stop) = (Registry::new(), CancellationToken::new());
        let security = security(&set, &registry, &stop).await;
        let (cells, cell) = (LocalPeers::default(), Arc::new(Counting::default()));
        cells.join("one".parse().unwrap(), cell.clone());
        let served = Members { cells, cluster: CLUSTER };
        let server = Server::with(move |settings| {
            settings.security = security;
            settings.members = Some(served);
        })
        .await;
        let stopped = server.stop.clone();
        env().spawn("end", async move {
            stopped.cancelled().await;
            stop.cancel();
        });
        (Self { server, ca, members_ca, dir, registry }, cell)
    }
    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.server.address)
    }
    fn client(&self, ca: &Ca) -> Client {
        let ca = reqwest::Certificate::from_pem(ca.pem().as_bytes()).unwrap();
        Client::builder().no_proxy().timeout(LONG).tls_certs_only([ca]).build().unwrap()
    }
    fn failed_handshakes(&self) -> f64 {
        let families = self.registry.gather();
        let found = families.iter().find(|family| family.name() == "cellbus_tls_handshakes_failed_total").unwrap();
        found.get_metric()[0].get_counter().get_value()
    }
    /// Members' TLS of a process that has these files.
    async fn member(&self, name: &str, ca: &Ca, pair: &Pair) -> (MembersTls, Files) {
        let files = member_files(self.dir.path(), name, ca, pair);
        let metrics = metrics::security::Metrics::new(&Registry::new()).unwrap();
        let tls = MembersTls::open(&files, &env(), &metrics).await.unwrap();
        env().spawn("files", tls.clone().run(Duration::from_millis(20), env(), self.server.stop.clone()));
        (tls, files)
    }
    async fn call(&self, tls: Option<MembersTls>, scheme: &str) -> Result<Told, CallError> {
        let metrics = metrics::peers::Metrics::new(&Registry::new()).unwrap();
        let peers = HttpPeers::with_tls(LocalPeers::default(), CLUSTER, env(), metrics, tls);
        let address = format!("{scheme}://{}", self.server.address);
        peers.call(&Peer { cell: "one".parse().unwrap(), address }, Asked::Parked).await
    }
    /// A connection as a member's, with these certificates or none.
    async fn shaken(&self, trusts: &Ca, own: Option<&Pair>, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusts.pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(Pair { cert, key }) => {
                let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = if protocol == b"http/1.1" { "127.0.0.1" } else { MEMBER_NAME };
        let stream = TcpStream::connect(self.server.address).await.unwrap();
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name).unwrap(), stream).await
    }
    /// What comes back of a request over such a connection; the error, where it is refused.
    async fn asked(&self, own: Option<&Pair>, request: &str) -> std::io::Result<String> {
        let mut stream = self.shaken(&self.members_ca, own, b"cellbus-members/1").await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

fn refused(answer: Result<Told, CallError>) -> String {
    match answer {
        Err(CallError::NotDelivered { detail, .. } | CallError::Unreachable { detail, .. }) => detail,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn callers_get_tls_by_the_right_ca_only() {
    let (secure, _) = Secure::start(false).await;
    let client = secure.client(&secure.ca);
    assert_eq!(client.get(secure.url("/healthz")).send().await.unwrap().status(), 200);
    let large = client
        .post(secure.url("/v1/jobs"))
        .header("content-type", "text/plain")
        .body("x".repeat(3 << 20))
        .send()
        .await
        .unwrap();
    assert_eq!(large.status(), 415, "bodies go through");

    let before = secure.failed_handshakes();
    let error = secure.client(&Ca::new()).get(secure.url("/healthz")).send().await.unwrap_err();
    assert!(format!("{error:?}").contains("UnknownIssuer"), "{error:?}");
    // In clear nothing is answered.
    let answer = secure.server.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(!answer.contains("200"), "{answer}");
    for _ in 0..1_000 {
        if secure.failed_handshakes() >= before + 2.0 {
            return;
        }
        env().sleep(Duration::from_millis(10)).await;
    }
    panic!("{} handshakes failed", secure.failed_handshakes());
}

#[tokio::test]
async fn a_new_certificate_counts_while_old_connections_live_on() {
    let (secure, _) = Secure::start(false).await;
    // Kept open over all of it.
    let mut old = secure.shaken(&secure.ca, None, b"http/1.1").await.unwrap();
    async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut some = [0; 4_096];
        let read = stream.read(&mut some).await.unwrap();
        String::from_utf8_lossy(&some[..read]).into_owned()
    }
    assert!(ask(&mut old).await.starts_with("HTTP/1.1 200"));

    // Broken first: certificate and key are not of each other.
    let other = Ca::new();
    let (first, next) = (other.localhost(), other.localhost());
    std::fs::write(secure.dir.path().join("api.pem"), &first.cert).unwrap();
    let broken = || {
        let families = secure.registry.gather();
        let found = families.iter().find(|family| family.name() == "cellbus_security_file_broken").unwrap();
        found.get_metric()[0].get_gauge().get_value() > 0.0
    };
    for _ in 0..1_000 {
        if broken() {
            break;
        }
        env().sleep(Duration::from_millis(10)).await;
    }
    assert!(broken(), "the pair does not match");
    assert!(secure.client(&secure.ca).get(secure.url("/healthz")).send().await.is_ok(), "the old one stays");

    next.write(secure.dir.path(), "api");
    let mut swapped = false;
    for _ in 0..1_000 {
        swapped = secure.client(&other).get(secure.url("/healthz")).send().await.is_ok();
        if swapped {
            break;
        }
        env().sleep(Duration::from_millis(10)).await;
    }
    assert!(swapped, "the new one counts");
    assert!(secure.client(&secure.ca).get(secure.url("/healthz")).send().await.is_err(), "the old one no more");
    assert!(!broken());
    assert!(ask(&mut old).await.starts_with("HTTP/1.1 200"), "the old connection lives on");
}

#[tokio::test]
async fn members_talk_by_certificates_of_their_ca() {
    let (secure, cell) = Secure::start(true).await;
    let (tls, _) = secure.member("caller", &secure.members_ca, &secure.members_ca.member()).await;
    let told = secure.call(Some(tls.clone()), "https").await.unwrap();
    assert!(matches!(told, Told::Failed { .. }), "{told:?}");
    let asked = || cell.0.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(asked(), 1);
    // Users are there at the same address, and are asked for no certificate.
    assert_eq!(secure.client(&secure.ca).get(secure.url("/healthz")).send().await.unwrap().status(), 200);

    // The address must be of the kind that all members have.
    assert!(refused(secure.call(Some(tls), "http").await).contains("https://"));
    assert!(refused(secure.call(None, "https").await).contains("http://"));

    // Of another CA, in either direction.
    let strangers = Ca::new();
    let (stranger, _) = secure.member("stranger", &strangers, &strangers.member()).await;
    let why = refused(secure.call(Some(stranger), "https").await);
    assert!(why.contains("UnknownIssuer"), "{why}");
    let post = format!(
        "POST /members/v1/cells/one/call HTTP/1.1\r\nhost: x\r\ncellbus-cluster: {CLUSTER}\r\ncellbus-format: {}\r\n\
         content-length: 0\r\nconnection: close\r\n\r\n",
        wire::FORMAT
    );
    let right = secure.members_ca.member();
    let answer = secure.asked(Some(&right), &post).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("member_message_invalid"),
        "it gets to the cell: {answer}"
    );
    let server_only = secure.members_ca.sign(MEMBER_NAME, |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    for (what, own) in [
        ("none", None),
        ("another CA's", Some(strangers.member())),
        ("an expired one", Some(secure.members_ca.expired())),
        ("one that may not call", Some(server_only)),
        ("the API's", Some(secure.ca.localhost())),
    ] {
        let error = secure.asked(own.as_ref(), &post).await.expect_err(what).to_string();
        assert!(error.contains("alert"), "{what}: {error}");
    }
    assert_eq!(asked(), 1, "none of them was heard");
}

#[tokio::test]
async fn what_is_between_members_goes_over_their_connections_and_nothing_else_does() {
    let (secure, cell) = Secure::start(true).await;
    let client = secure.client(&secure.ca);
    for path in ["/members/v1/cells/one/call", "/members/v1/cells/one/posts", "/members/v1/cells/x"] {
        let answer = client.post(secure.url(path)).body("x").send().await.unwrap();
        assert_eq!(problem(answer, 403).await.0, "member_not_verified", "{path}");
    }
    let member = secure.members_ca.member();
    for path in ["/v1/jobs", "/metrics", "/healthz", "/members/", "/nowhere"] {
        let get = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = secure.asked(Some(&member), &get).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("\"forbidden\""), "{path}: {answer}");
    }
    // Without TLS of members nobody is one, whatever it says.
    let (bare, _) = Secure::start(false).await;
    let answer = bare.client(&bare.ca).post(bare.url("/members/v1/cells/one/call")).send().await.unwrap();
    assert_eq!(problem(answer, 403).await.0, "member_not_verified");
    assert!(bare.shaken(&bare.ca, Some(&member), b"cellbus-members/1").await.is_err());
    assert_eq!(cell.0.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_members_ca_is_replaced_while_members_run() {
    let (secure, _) = Secure::start(true).await;
    let (tls, files) = secure.member("caller", &secure.members_ca, &secure.members_ca.member()).await;
    secure.call(Some(tls.clone()), "https").await.unwrap();
    // Both CAs are trusted for a while, at both ends; then certificates of the new one; then it alone.
    let next = Ca::new();
    let both = format!("{}{}", secure.members_ca.pem(), next.pem());
    let server = secure.dir.path().join("server-ca.pem");
    let works = async |what: &str| {
        for _ in 0..500 {
            let now = secure.call(Some(tls.clone()), "https").await;
            assert!(now.is_ok(), "{what}: {now:?}");
            env().sleep(Duration::from_millis(1)).await;
        }
    };
    std::fs::write(&server, &both).unwrap();
    std::fs::write(&files.ca, &both).unwrap();
    works("both are trusted").await;
    next.member().write(secure.dir.path(), "caller");
    next.member().write(secure.dir.path(), "server");
    works("certificates of the new one").await;
    std::fs::write(&server, next.pem()).unwrap();
    std::fs::write(&files.ca, next.pem()).unwrap();
    works("the new one alone").await;
    let old = secure.members_ca.member();
    let gone = secure.shaken(&next, Some(&old), b"cellbus-members/1").await;
    let mut stream = gone.expect("the client's part is done first");
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.ok();
    assert!(stream.read_to_end(&mut Vec::new()).await.is_err(), "the old CA counts no more");
}

#[tokio::test]
async fn files_that_nobody_would_take_are_refused_at_the_start() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let open = async |files: &Files| {
        let metrics = metrics::security::Metrics::new(&Registry::new()).unwrap();
        MembersTls::open(files, &env(), &metrics).await.map(drop).map_err(|error| error.to_string())
    };
    let good = member_files(dir.path(), "good", &ca, &ca.member());
    open(&good).await.unwrap();
    for (name, pair, why) in [
        ("expired", ca.expired(), "for a member that is called"),
        ("named", ca.sign("other.example", |_| {}), "for a member that is called"),
        ("foreign", Ca::new().member(), "for a member that is called"),
        (
            "server",
            ca.sign(MEMBER_NAME, |p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]),
            "for a member that calls",
        ),
        ("mixed", Pair { key: ca.member().key, ..ca.member() }, "the key beside it is that of another"),
        ("keyless", Pair { key: "x".to_owned(), ..ca.member() }, "no private key"),
        ("certless", Pair { cert: ca.member().key, ..ca.member() }, "no certificate in it"),
    ] {
        let key = pair.key.clone();
        let error = open(&member_files(dir.path(), name, &ca, &pair)).await.expect_err(name);
        assert!(error.contains(why), "{name}: {error}");
        let secret = key.lines().nth(1).unwrap_or("never there").trim();
        assert!(!error.contains(secret), "{name} says the key");
    }
    let gone = Files { ca: dir.path().join("nowhere.pem"), ..good };
    assert!(open(&gone).await.unwrap_err().ends_with("nowhere.pem is not there"));
}

#[tokio::test]
async fn one_that_never_shakes_hands_holds_up_nobody() {
    let (secure, _) = Secure::start(true).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(secure.server.address).await.unwrap());
    }
    let answer = env().timeout(LONG, secure.client(&secure.ca).get(secure.url("/healthz")).send()).await;
    assert_eq!(answer.expect("in time").unwrap().status(), 200);
    drop(silent);
}
