//! A real Kafka broker as a child process, for tests: on ports that are kept for it, in a directory of its
//! own, killed when dropped or when the test process dies, its log shown when a test fails. Its JVM
//! is heavy: tests of one process share one, each with a prefix of its own.
//!
//! An edge: it waits in real time for a real process.
#![expect(clippy::disallowed_methods, reason = "a test waits for a child process in real time")]

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;

use super::Config;
use crate::testing::{self, Port};

/// How long a start may take on a busy machine.
const START: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Names the folder with the broker's jars; what `ops/setup/kafka` prints.
const JARS: &str = "CELLBUS_KAFKA";
/// What the broker says when it listens.
const STARTED: &str = "Kafka Server started";
/// Any id does: one broker is one cluster.
const CLUSTER_ID: &str = "Y2VsbGJ1cy1pbi10ZXN0cw";
/// Small, and quick to start.
const JVM: [&str; 4] = [
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server=info",
];

/// The broker's jars: what `CELLBUS_KAFKA` names, or what `ops/setup/kafka` has copied below
/// `target/`.
#[must_use]
pub fn jars() -> Option<PathBuf> {
    testing::named(JARS).or_else(|| Some(testing::target().join("kafka").join("jars"))).filter(|jars| jars.is_dir())
}

/// Whether tests that need a broker are left out, as `ops/test` says where there is none.
///
/// # Panics
/// With `CI=true`, where nothing may be left out.
#[must_use]
pub fn left_out() -> bool {
    testing::left_out(jars().is_some(), "Kafka broker", "ops/setup/kafka", JARS)
}

/// A running broker.
#[derive(Debug)]
pub struct KafkaServer {
    dir: PathBuf,
    port: u16,
    internal: u16,
    /// For as long as it may come back.
    _kept: Vec<Port>,
    heap: &'static [&'static str],
    child: Option<Child>,
}

/// One process of a cluster.
#[derive(Clone, Copy)]
struct Node<'a> {
    id: usize,
    /// For clients, and for brokers and tests.
    ports: [u16; 2],
    /// Of the only controller, which is the first node.
    controller: u16,
    /// How many brokers there are.
    brokers: usize,
    /// What clients speak.
    protocol: &'a str,
}

const HEAP: &[&str] = &["-Xmx512m", "-Xms128m"];
/// Each of several, which have little to do.
const HEAP_OF_SEVERAL: &[&str] = &["-Xmx256m", "-Xms64m"];

impl KafkaServer {
    /// Starts one that lets everybody in.
    ///
    /// # Panics
    /// When it does not start: nothing can be tested then.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("PLAINTEXT", "", &[])
    }

    /// Starts one whose clients speak this security protocol, with more lines of configuration, and with
    /// users (name, password) that sign in by SCRAM-SHA-512.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_with(protocol: &str, more: &str, users: &[(&str, &str)]) -> Self {
        let kept = Port::several(3);
        let [port, internal, controller] = [0, 1, 2].map(|nth: usize| kept[nth].number());
        let node = Node { id: 1, ports: [port, internal], controller, brokers: 1, protocol };
        Self::of(node, kept, HEAP, more, users)
    }

    fn of(node: Node<'_>, kept: Vec<Port>, heap: &'static [&'static str], more: &str, users: &[(&str, &str)]) -> Self {
        let [port, internal] = node.ports;
        let mut server = Self { dir: testing::folder("kafka"), port, internal, _kept: kept, heap, child: None };
        let started = fs::create_dir_all(&server.dir).and_then(|()| {
            let dir = server.dir.to_string_lossy();
            fs::write(server.properties(), configuration(node, &dir) + more)?;
            server.format(node.id == 1, users)?;
            server.run()
        });
        if let Err(error) = started {
            panic!("Kafka does not start: {error}\n{}", server.log());
        }
        server
    }

    /// One broker for all tests of this process, each of which has a prefix of its own.
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<KafkaServer> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// A prefix that no other test of this process has.
    #[must_use]
    pub fn prefix() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The address for clients.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The address of the listener that lets everybody in, whatever clients speak.
    #[must_use]
    pub fn internal_address(&self) -> String {
        format!("127.0.0.1:{}", self.internal)
    }

    /// The configuration of a bus on this broker, with short waits and few partitions.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            connect_timeout: Duration::from_secs(30),
            discover_every: Duration::from_millis(250),
            shards: 16,
            tenant_partitions: 1,
            ..Config::new(vec![self.address()])
        }
    }

    /// Makes topics of this many partitions, as an operator does.
    ///
    /// # Panics
    /// When one is not made.
    pub async fn make_topics(&self, names: &[String], partitions: i32) {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.internal_address());
        let admin: AdminClient<DefaultClientContext> = client.create().expect("an admin client");
        // Many at once are more than a small broker does within one answer.
        for some in names.chunks(100) {
            let topics: Vec<NewTopic<'_>> =
                some.iter().map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(1))).collect();
            let options = AdminOptions::new().request_timeout(Some(START)).operation_timeout(Some(START));
            let made = admin.create_topics(&topics, &options).await.expect("an answer");
            made.into_iter().for_each(|one| drop(one.expect("a topic")));
        }
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(&mut self) {
        if let Some(child) = self.child.take() {
            testing::kill(child).expect("the shell that watches the broker ends");
        }
    }

    /// Starts it again, after [`KafkaServer::kill`], on the same port and store.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.kill();
        if let Err(error) = self.run() {
            panic!("Kafka does not start again: {error}\n{}", self.log());
        }
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        testing::log_end(&self.log_file())
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }
    fn properties(&self) -> PathBuf {
        self.dir.join("server.properties")
    }

    /// Makes its store. A controller is the only one.
    fn format(&self, controller: bool, users: &[(&str, &str)]) -> io::Result<()> {
        let user = |(name, password): &(&str, &str)| {
            ["--add-scram".to_owned(), format!("SCRAM-SHA-512=[name={name},password={password}]")]
        };
        let output = Command::new("java")
            .args(java(self.heap)?)
            .args(["kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID, "--config"])
            .arg(self.properties())
            .args(controller.then_some("--standalone"))
            .args(users.iter().flat_map(user))
            .stdin(Stdio::null())
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("formatting its store: {}", String::from_utf8_lossy(&output.stderr))))
    }

    fn run(&mut self) -> io::Result<()> {
        let log = self.log_file();
        fs::write(&log, "")?;
        let mut command = testing::watched(&log);
        command.arg("java").args(java(self.heap)?).arg("kafka.Kafka").arg(self.properties());
        self.child = Some(command.spawn()?);
        let began = Instant::now();
        while began.elapsed() < START {
            if fs::read(&log)?.windows(STARTED.len()).any(|words| words == STARTED.as_bytes()) {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        Err(io::Error::other("it did not say that it has started"))
    }
}

/// The arguments of `java` before the class.
fn java(heap: &[&str]) -> io::Result<Vec<OsString>> {
    let jars = jars().ok_or_else(|| io::Error::other("there is none; run ops/setup/kafka"))?;
    let mut arguments: Vec<OsString> = heap.iter().chain(&JVM).map(OsString::from).collect();
    arguments.push("-cp".into());
    arguments.push(jars.join("*").into());
    Ok(arguments)
}

/// A broker; the first is the controller too. Topics are made by whoever means them; a group does not
/// wait for more members.
fn configuration(node: Node<'_>, dir: &str) -> String {
    let Node { id, ports: [port, internal], controller, brokers, protocol } = node;
    let (roles, control) = match id {
        1 => ("broker,controller", format!(",CONTROLLER://127.0.0.1:{controller}")),
        _ => ("broker", String::new()),
    };
    format!(
        "process.roles={roles}\n\
         node.id={id}\n\
         controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
         listeners=CLIENT://127.0.0.1:{port},INTERNAL://127.0.0.1:{internal}{control}\n\
         advertised.listeners=CLIENT://127.0.0.1:{port},INTERNAL://127.0.0.1:{internal}\n\
         listener.security.protocol.map=CLIENT:{protocol},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         controller.listener.names=CONTROLLER\n\
         inter.broker.listener.name=INTERNAL\n\
         log.dirs={dir}/store\n\
         auto.create.topics.enable=false\n\
         group.initial.rebalance.delay.ms=0\n\
         offsets.topic.num.partitions=4\n\
         offsets.topic.replication.factor={brokers}\n\
         transaction.state.log.num.partitions=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         log.index.size.max.bytes=65536\n\
         log.cleaner.dedupe.buffer.size=8388608\n\
         num.network.threads=2\n\
         num.io.threads=4\n"
    )
}

impl Drop for KafkaServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of Kafka:\n{}", self.log());
        }
        self.kill();
        // A directory that stays takes room and does no harm.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Three brokers, the first of which is the only controller: the others can be lost.
#[derive(Debug)]
pub struct KafkaCluster {
    nodes: Vec<KafkaServer>,
    /// Of all, since each is told of others before they run.
    _kept: Vec<Port>,
}

impl KafkaCluster {
    /// Starts it. A broker that dies is noticed soon.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start() -> Self {
        let kept = Port::several(7);
        let ports: Vec<u16> = kept.iter().map(Port::number).collect();
        let node = |id: usize| Node {
            id,
            ports: [ports[2 * id - 1], ports[2 * id]],
            controller: ports[0],
            brokers: 3,
            protocol: "PLAINTEXT",
        };
        let more = "broker.session.timeout.ms=4000\nbroker.heartbeat.interval.ms=500\n";
        let start = |id| KafkaServer::of(node(id), Vec::new(), HEAP_OF_SEVERAL, more, &[]);
        let first = start(1);
        let others = std::thread::scope(|scope| {
            let starting = [2, 3].map(|id| scope.spawn(move || start(id)));
            starting.map(|one| one.join().expect("a broker starts"))
        });
        Self { nodes: std::iter::once(first).chain(others).collect(), _kept: kept }
    }

    /// One of its brokers, by its number from 1 on.
    #[must_use]
    pub fn node(&mut self, id: usize) -> &mut KafkaServer {
        &mut self.nodes[id - 1]
    }

    /// The configuration of a bus whose messages are on all three.
    #[must_use]
    pub fn config(&self) -> Config {
        let brokers = self.nodes.iter().map(KafkaServer::address).collect();
        Config { brokers, replicas: 3, ..self.nodes[0].config() }
    }
}
