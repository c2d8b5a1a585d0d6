//! Opening the Kafka bus: what is refused, and what is said about it; signing in, encrypted.
#![cfg(feature = "kafka")]

use std::path::PathBuf;
use std::time::Duration;

use cellbus_bus::Bus as _;
use cellbus_bus::env::real;
use cellbus_bus::kafka::testing::{KafkaServer, left_out};
use cellbus_bus::kafka::{Auth, Config, Kafka, Mechanism, OpenError, Tls};
use cellbus_bus::secret::Secret;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use tokio::runtime::Handle;

fn on_shared() -> Config {
    Config { prefix: KafkaServer::prefix(), ..KafkaServer::shared().config() }
}

async fn refused(config: Config) -> OpenError {
    match Kafka::open(config, real(Handle::current())).await {
        Ok(_) => panic!("it opens"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_said() {
    if left_out() {
        return;
    }
    let nobody = Config { connect_timeout: Duration::from_secs(1), ..Config::new(vec!["127.0.0.1:1".to_owned()]) };
    let error = refused(nobody).await;
    assert_eq!((error.code(), error.retryable()), ("kafka_unreachable", true), "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");

    let config = on_shared();
    let attached = Kafka::attach(config.clone(), real(Handle::current())).await.map(drop);
    assert!(matches!(&attached, Err(error) if error.code() == "kafka_no_cluster"), "{attached:?}");
    Kafka::open(config.clone(), real(Handle::current())).await.expect("it makes what is missing");
    // Who is no part of it goes by what is there.
    let other = Config { shards: 3, ..config.clone() };
    Kafka::attach(other.clone(), real(Handle::current())).await.expect("a cluster is there");
    let error = refused(other).await;
    assert_eq!(error.code(), "kafka_topic_differs");
    assert!(error.to_string().contains("partitions 16, and 3 is wanted"), "{error}");
    assert_eq!(refused(Config { replicas: 3, ..on_shared() }).await.code(), "kafka_refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_would_lose_data_is_refused() {
    if left_out() {
        return;
    }
    let config = on_shared();
    Kafka::open(config.clone(), real(Handle::current())).await.expect("it opens");
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", KafkaServer::shared().address())
        .create()
        .expect("an admin client");
    let log = format!("{}.log", config.prefix);
    // What is not named goes back to the broker's default.
    let change = AlterConfig::new(ResourceSpecifier::Topic(&log))
        .set("retention.ms", "60000")
        .set("max.message.bytes", "6356992");
    let changed = admin.alter_configs([&change], &AdminOptions::new()).await.expect("an answer");
    changed.into_iter().for_each(|one| drop(one.expect("a change")));
    let error = refused(config).await;
    assert_eq!(error.code(), "kafka_topic_differs", "{error}");
    assert!(error.to_string().contains("retention.ms 60000, and -1 is wanted"), "{error}");
}

/// An authority, and a server's certificate and key of it.
fn certificates(folder: &std::path::Path) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL takes a certificate whose subject is its issuer for one that signs itself.
    authority.distinguished_name.push(DnType::CommonName, "the authority of a test");
    let ca = authority.self_signed(&key).expect("a certificate");
    let issuer = Issuer::new(authority, key);
    let server_key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    let server = server.signed_by(&server_key, &issuer).expect("a certificate");
    let (ca_file, server_file) = (folder.join("ca.pem"), folder.join("server.pem"));
    std::fs::write(&ca_file, ca.pem()).expect("a file");
    std::fs::write(&server_file, server_key.serialize_pem() + &server.pem()).expect("a file");
    (ca_file, server_file)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_sign_in_over_tls() {
    if left_out() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (ca, server) = certificates(folder.path());
    let more = format!(
        "ssl.keystore.type=PEM\nssl.keystore.location={}\nsasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512\n\
         listener.name.client.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
         required user_bob=\"sturgeon\";\n\
         listener.name.client.scram-sha-512.sasl.jaas.config=\
         org.apache.kafka.common.security.scram.ScramLoginModule required;\n",
        server.display()
    );
    let broker = KafkaServer::start_with("SASL_SSL", &more, &[("ann", "swordfish")]);
    let config = |mechanism, user: &str, password: &str, ca: Option<&PathBuf>| Config {
        auth: Auth::User { mechanism, user: user.to_owned(), password: Secret::new(password) },
        tls: Tls { enabled: true, ca_file: ca.cloned(), client_files: None },
        shards: 1,
        connect_timeout: Duration::from_secs(5),
        ..broker.config()
    };
    for (mechanism, user, password) in
        [(Mechanism::ScramSha512, "ann", "swordfish"), (Mechanism::Plain, "bob", "sturgeon")]
    {
        let patient =
            Config { connect_timeout: Duration::from_secs(30), ..config(mechanism, user, password, Some(&ca)) };
        let bus = Kafka::open(patient, real(Handle::current())).await.expect("it signs in");
        assert_eq!(bus.cluster_record().await.expect("an answer"), None);
    }
    let wrong = refused(config(Mechanism::ScramSha512, "ann", "halibut", Some(&ca))).await;
    assert_eq!(wrong.code(), "kafka_sign_in_refused", "{wrong}");
    assert!(!wrong.to_string().contains("halibut"), "{wrong}");
    let untrusted = refused(config(Mechanism::ScramSha512, "ann", "swordfish", None)).await;
    assert_eq!(untrusted.code(), "kafka_tls_failed", "{untrusted}");
}
