//! Opening the Kafka bus: what is refused, and what is said about it; signing in, encrypted; access rules.
#![cfg(feature = "kafka")]

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cellbus_bus::env::real;
use cellbus_bus::ids::{Seq, ShardCount, ShardId};
use cellbus_bus::kafka::testing::{KafkaServer, left_out};
use cellbus_bus::kafka::{Auth, Config, Kafka, Mechanism, OpenError, Tls};
use cellbus_bus::secret::Secret;
use cellbus_bus::{Bus as _, Error};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use tokio::runtime::Handle;

#[path = "kafka/acl.rs"]
mod acl;

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

/// A broker that lets in who signs in, over TLS, and then lets `ann`, `bob` and `agent` do everything and
/// others what rules allow.
struct Guarded {
    broker: KafkaServer,
    ca: PathBuf,
    folder: tempfile::TempDir,
}

impl Guarded {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (ca, server) = certificates(folder.path());
        let more = format!(
            "ssl.keystore.type=PEM\nssl.keystore.location={}\n\
             sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512,OAUTHBEARER\n\
             listener.name.client.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
             required user_bob=\"sturgeon\" user_eve=\"halibut\" user_cells=\"perch\";\n\
             listener.name.client.scram-sha-512.sasl.jaas.config=\
             org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
             listener.name.client.oauthbearer.sasl.jaas.config=\
             org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
             unsecuredLoginStringClaim_sub=\"broker\";\n\
             listener.name.client.connections.max.reauth.ms=600000\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS;User:ann;User:bob;User:agent\n",
            server.display()
        );
        Self { broker: KafkaServer::start_with("SASL_SSL", &more, &[("ann", "swordfish")]), ca, folder }
    }

    /// One for all tests of this process.
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Guarded> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn config(&self, auth: Auth) -> Config {
        Config {
            auth,
            tls: Tls { enabled: true, ca_file: Some(self.ca.clone()), client_files: None },
            prefix: KafkaServer::prefix(),
            shards: 1,
            ..self.broker.config()
        }
    }
}

fn user(mechanism: Mechanism, user: &str, password: &str) -> Auth {
    Auth::User { mechanism, user: user.to_owned(), password: Secret::new(password) }
}

/// A token as the brokers' check for tests takes it: nobody has signed it.
fn token(sub: &str, lives: Duration) -> String {
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    let now = real(Handle::current()).wall().0 / 1_000;
    let claims = format!(r#"{{"sub":"{sub}","iat":{},"exp":{}}}"#, now - 10, now + lives.as_secs());
    format!("{}.{}.", part(r#"{"alg":"none"}"#.to_owned()), part(claims))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_sign_in_with_tokens_which_are_read_anew() {
    if left_out() {
        return;
    }
    let guarded = Guarded::shared();
    let file = guarded.folder.path().join("token");
    let with_token = || guarded.config(Auth::Token { file: file.clone() });
    let none = refused(with_token()).await;
    assert_eq!(none.code(), "kafka_client_failed", "{none}");
    assert!(none.to_string().contains("No such file"), "{none}");
    std::fs::write(&file, "swordfish").expect("a file");
    let no_token = refused(with_token()).await;
    assert_eq!(no_token.code(), "kafka_client_failed", "{no_token}");
    assert!(!no_token.to_string().contains("swordfish"), "{no_token}");
    std::fs::write(&file, token("agent", Duration::ZERO)).expect("a file");
    let over = refused(with_token()).await;
    assert_eq!(over.code(), "kafka_sign_in_refused", "{over}");

    // Soon over: the next is taken up from the file, and clients that are made later have it.
    let lives = Duration::from_secs(30);
    std::fs::write(&file, token("agent", lives)).expect("a file");
    let env = real(Handle::current());
    let began = env.mono();
    let bus = Kafka::open(with_token(), env.clone()).await.expect("it signs in");
    std::fs::write(&file, token("agent", Duration::from_secs(3_600))).expect("a file");
    let shard = ShardId::new(0, ShardCount::new(1).expect("one")).expect("the first");
    let mut end = Seq::ZERO;
    loop {
        let appended = bus.append(shard, end, "entry".into()).await;
        match appended {
            Ok(seq) if env.mono().since(began) > lives + Duration::from_secs(5) => {
                end = seq;
                break;
            }
            Ok(seq) => end = seq,
            // A connection that was shown the old token too long is cut off, at worst.
            Err(error) => {
                assert!(env.mono().since(began) < lives * 4, "with the next token nothing is written: {error}");
                end = bus.log_end(shard).await.unwrap_or(end);
            }
        }
        env.sleep(Duration::from_millis(200)).await;
    }
    bus.ingress_publish("acme", Vec::new(), "job".into()).await.expect("a topic is made, and written to");
    assert_eq!(bus.ingress_unacked(Seq::ZERO, 10).await.expect("a look").len(), 1);
    let taken = env.timeout(Duration::from_secs(60), bus.ingress_next(Duration::from_secs(30))).await;
    taken.expect("in time").expect("a job").ack().await.expect("an ack");
    bus.trim_log(shard, end, 1).await.expect("the admin client's token is a new one too");

    // Who has no right, has none with a token.
    std::fs::write(&file, token("eve", Duration::from_secs(3_600))).expect("a file");
    let eve = refused(with_token()).await;
    assert_eq!(eve.code(), "kafka_not_authorised", "{eve}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_rules_are_heard_of() {
    if left_out() {
        return;
    }
    let guarded = Guarded::shared();
    let eve = refused(guarded.config(user(Mechanism::Plain, "eve", "halibut"))).await;
    assert_eq!((eve.code(), eve.retryable()), ("kafka_not_authorised", false), "{eve}");

    // What `ops/docs/kafka.md` says that cells need is enough.
    let config = guarded.config(user(Mechanism::Plain, "cells", "perch"));
    let rules = |resource, name: &str, pattern, operations: &[u8], allowed| -> Vec<acl::Rule> {
        let rule = |operation: &u8| acl::Rule {
            resource,
            name: name.to_owned(),
            pattern,
            principal: "User:cells".to_owned(),
            operation: *operation,
            allowed,
        };
        operations.iter().map(rule).collect()
    };
    let prefix = format!("{}.", config.prefix);
    let on_topics = [acl::READ, acl::WRITE, acl::DESCRIBE, acl::DESCRIBE_CONFIGS, acl::CREATE, acl::DELETE];
    let mut needed = rules(acl::TOPIC, &prefix, acl::PREFIXED, &on_topics, true);
    needed.extend(rules(acl::GROUP, &prefix, acl::PREFIXED, &[acl::READ], true));
    let broker = guarded.broker.internal_address();
    acl::make(&broker, &needed);
    let env = real(Handle::current());
    let bus = Kafka::open(config.clone(), env.clone()).await.expect("it opens");
    let shard = ShardId::new(0, ShardCount::new(1).expect("one")).expect("the first");
    let mut end = bus.append(shard, Seq::ZERO, "a".into()).await.expect("an append");
    end = bus.append(shard, end, "b".into()).await.expect("an append");
    bus.trim_log(shard, end, 1).await.expect("a trim");
    bus.ingress_publish("acme", Vec::new(), "job".into()).await.expect("a topic is made, and written to");
    assert_eq!(bus.ingress_unacked(Seq::ZERO, 10).await.expect("a look").len(), 1);
    let taken = env.timeout(Duration::from_secs(60), bus.ingress_next(Duration::from_secs(30))).await;
    taken.expect("in time").expect("a job").ack().await.expect("an ack");

    // Somebody takes a right away from a process that runs.
    acl::make(&broker, &rules(acl::TOPIC, &format!("{prefix}log"), acl::LITERAL, &[acl::WRITE], false));
    let began = env.mono();
    let refused = loop {
        // Not all of the broker's threads may have heard of the rule yet.
        match bus.append(shard, end, "c".into()).await {
            Ok(seq) => end = seq,
            Err(error) => break error,
        }
        assert!(env.mono().since(began) < Duration::from_secs(60), "it is written all the same");
    };
    assert!(matches!(&refused, Error::Unavailable { reason } if reason.contains("kafka_not_authorised")), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_sign_in_over_tls() {
    if left_out() {
        return;
    }
    let guarded = Guarded::shared();
    let config = |mechanism, name: &str, password: &str, trusted: bool| {
        let config =
            Config { connect_timeout: Duration::from_secs(15), ..guarded.config(user(mechanism, name, password)) };
        let ca_file = config.tls.ca_file.clone().filter(|_| trusted);
        Config { tls: Tls { ca_file, ..config.tls.clone() }, ..config }
    };
    for (mechanism, user, password) in
        [(Mechanism::ScramSha512, "ann", "swordfish"), (Mechanism::Plain, "bob", "sturgeon")]
    {
        let patient = Config { connect_timeout: Duration::from_secs(30), ..config(mechanism, user, password, true) };
        let bus = Kafka::open(patient, real(Handle::current())).await.expect("it signs in");
        assert_eq!(bus.cluster_record().await.expect("an answer"), None);
    }
    // Each takes the whole time; and a busy machine has to hear of a refusal within it.
    let (wrong, untrusted) = tokio::join!(
        refused(config(Mechanism::ScramSha512, "ann", "halibut", true)),
        refused(config(Mechanism::ScramSha512, "ann", "swordfish", false)),
    );
    assert_eq!(wrong.code(), "kafka_sign_in_refused", "{wrong}");
    assert!(!wrong.to_string().contains("halibut"), "{wrong}");
    assert_eq!(untrusted.code(), "kafka_tls_failed", "{untrusted}");
}
