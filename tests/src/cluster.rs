//! A cluster of several processes: a NATS server or a Kafka broker, simulated managers, cells, directories, each a
//! child process on a port of its own choice, all of one temporary directory.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::env;
use cellbus_bus::kafka::testing::KafkaServer;
use cellbus_bus::nats::testing::NatsServer;
use cellbus_bus::nats::{self, Nats};
use serde_json::Value;

use crate::binary::cellbus;
use crate::process::{Server, command, end_those_of, wait_for};
use crate::proxy::Proxy;

/// How long a change of members may take to be seen by all, on a busy machine.
const SETTLED: Duration = Duration::from_secs(60);

/// What a cluster runs on.
pub trait Broker: Sized {
    /// What `bus` of the configuration says, which is the name of its section too.
    const BUS: &'static str;
    /// Starts one.
    fn started() -> Self;
    /// The section of the configuration by which it is reached.
    fn section(&self) -> String;
    /// Ends it with no goodbye.
    fn kill(&mut self);
    /// Starts it again after that, on what it had written.
    fn restart(&mut self);
}

impl Broker for NatsServer {
    const BUS: &'static str = "nats";
    fn started() -> Self {
        Self::start()
    }
    fn section(&self) -> String {
        format!("urls = [\"{}\"]\n", self.url())
    }
    fn kill(&mut self) {
        Self::kill(self);
    }
    fn restart(&mut self) {
        Self::restart(self);
    }
}

impl Broker for KafkaServer {
    const BUS: &'static str = "kafka";
    fn started() -> Self {
        Self::start()
    }
    fn section(&self) -> String {
        format!("brokers = [\"{}\"]\n", self.address())
    }
    fn kill(&mut self) {
        Self::kill(self);
    }
    fn restart(&mut self) {
        Self::restart(self);
    }
}

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Simulated managers, all of one process.
    pub managers: usize,
    /// Hosts of each.
    pub hosts_per_manager: usize,
    /// How long they take: `none`, `fast`.
    pub latency: &'static str,
    /// Whether they keep their VMs on disk.
    pub managers_durable: bool,
    /// Operations that each has under way at the most, if that is limited.
    pub operations_max: Option<u32>,
    /// Shards.
    pub shards: u16,
    /// More of the configuration, as TOML.
    pub more: String,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            managers: 6,
            hosts_per_manager: 10,
            latency: "fast",
            managers_durable: true,
            operations_max: None,
            shards: 32,
            more: String::new(),
        }
    }
}

/// A cluster on NATS.
pub type Cluster = ClusterOn<NatsServer>;

/// Dropped, it is gone with whatever runs on it.
struct Folder(tempfile::TempDir);

impl Drop for Folder {
    fn drop(&mut self) {
        end_those_of(self.0.path());
    }
}

/// The cluster. Dropped, everything is killed.
pub struct ClusterOn<B> {
    folder: Folder,
    shape: Shape,
    section: String,
    started: usize,
    /// Of which build the cells and directories are that are started from now on.
    pub binary: PathBuf,
    /// The broker, or the one of several that is not killed.
    pub broker: B,
    /// The managers.
    pub managers: Server,
    /// The cells, in the order in which they were started.
    pub cells: Vec<Server>,
    /// The directory replicas.
    pub directories: Vec<Server>,
}

impl<B: Broker> ClusterOn<B> {
    /// Starts the broker and the managers, then so many cells and directories, and waits until all
    /// are ready.
    ///
    /// # Errors
    /// When one does not start; its log is part of the error.
    pub async fn start(shape: Shape, cells: usize, directories: usize) -> Result<Self> {
        let broker = B::started();
        let section = broker.section();
        Self::start_on(broker, section, shape, cells, directories).await
    }

    /// The same on a broker that runs, or one of several that do, reached as `section` says, the
    /// section of the configuration that is the bus's.
    ///
    /// # Errors
    /// When one does not start; its log is part of the error.
    pub async fn start_on(broker: B, section: String, shape: Shape, cells: usize, directories: usize) -> Result<Self> {
        let folder = Folder(tempfile::tempdir()?);
        let (managers, hosts) = (shape.managers.to_string(), shape.hosts_per_manager.to_string());
        let data = folder.0.path().join("managers");
        let arguments = ["sim-managers", "--listen", "127.0.0.1:0", "--managers", &managers, "--hosts-per-manager"];
        let more = [hosts.as_str(), "--latency", shape.latency];
        let data = ["--data", data.to_str().context("UTF-8")?];
        let data = if shape.managers_durable { &data[..] } else { &[] };
        let arguments = [&arguments[..], &more, data].concat();
        let managers = Server::spawn(&folder.0.path().join("sim-managers"), &arguments)?;
        let mut cluster = Self {
            folder,
            shape,
            section,
            started: 0,
            binary: cellbus().to_owned(),
            broker,
            managers,
            cells: Vec::new(),
            directories: Vec::new(),
        };
        fs::write(cluster.config(), cluster.toml())?;
        for _ in 0..cells {
            cluster.add_cell()?;
        }
        for _ in 0..directories {
            cluster.add_directory()?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    /// How many shards it has.
    pub fn shards(&self) -> u16 {
        self.shape.shards
    }

    /// Where its files are; gone with it.
    pub fn folder(&self) -> &Path {
        self.folder.0.path()
    }

    /// The configuration that all its processes have.
    pub fn config(&self) -> PathBuf {
        self.folder.0.path().join("cellbus.toml")
    }

    fn toml(&self) -> String {
        let Shape { managers, operations_max, shards, more, .. } = &self.shape;
        let mut text = format!(
            "bus = \"{bus}\"\nlisten = \"127.0.0.1:0\"\ncells = 1\nshards = {shards}\n{more}\n[{bus}]\n{}",
            self.section,
            bus = B::BUS,
        );
        for manager in 0..*managers {
            // A write to a String cannot fail.
            let _ = write!(text, "[[managers]]\nname = \"sim-{manager:04}\"\naddress = \"{}\"\n", self.managers.url);
            if let Some(most) = operations_max {
                let _ = writeln!(text, "limits.operations_max = {most}");
            }
        }
        text
    }

    /// Starts one more process of `role` with more settings (`key=value`), which is not counted among
    /// the cells or directories.
    ///
    /// # Errors
    /// When it does not start.
    pub fn spawn(&mut self, role: &str, more: &[String]) -> Result<Server> {
        self.started += 1;
        let own = self.folder.0.path().join(format!("{role}-{}", self.started));
        let (config, data) = (self.config(), own.clone());
        let text = |path: &PathBuf| path.to_str().map(str::to_owned).context("paths of tests are UTF-8");
        let (config, data) = (text(&config)?, text(&data)?);
        let more = more.iter().flat_map(|set| ["--set", set.as_str()]);
        let arguments: Vec<&str> = [role, "--config", &config, "--data", &data].into_iter().chain(more).collect();
        Server::spawn_of(&self.binary, &own, &arguments)
    }

    /// Starts one more cell; it is ready a little later.
    ///
    /// # Errors
    /// When it does not start.
    pub fn add_cell(&mut self) -> Result<()> {
        let cell = self.spawn("cell", &[])?;
        self.cells.push(cell);
        Ok(())
    }

    /// Starts one more directory; it is ready a little later.
    ///
    /// # Errors
    /// When it does not start.
    pub fn add_directory(&mut self) -> Result<()> {
        let directory = self.spawn("directory", &[])?;
        self.directories.push(directory);
        Ok(())
    }

    /// Every process that serves the HTTP API.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        self.cells.iter().chain(&self.directories)
    }

    /// Waits until all are ready, and cells know of a directory where there is one: a cell that has just
    /// begun is ready before it has read who else is there.
    ///
    /// # Errors
    /// When one is not in time; its log is part of the error.
    pub async fn ready(&self) -> Result<()> {
        for server in self.servers() {
            server.ready().await?;
            if self.directories.is_empty() {
                continue;
            }
            wait_for("a directory to be found", SETTLED, async || {
                let answer = server.get("/v1/vms?limit=1").await?;
                Ok(if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) })
            })
            .await
            .with_context(|| server.log_tail())?;
        }
        Ok(())
    }

    /// Waits until every shard is open at one of as many cells as run here.
    ///
    /// # Errors
    /// When that takes too long.
    pub async fn settled(&self) -> Result<()> {
        let asked = self.directories.first().or(self.cells.first()).context("something runs")?;
        let cells = self.cells.len();
        wait_for("every shard to be open at a cell that lives", SETTLED, async || {
            let (seen, shards) = (asked.get("/v1/cells").await?, asked.get("/v1/shards").await?);
            let seen = rows(&seen.body);
            let open = rows(&shards.body).iter().filter(|shard| shard["state"] == "open").count();
            let good = seen.len() == cells && open == usize::from(self.shape.shards);
            Ok(if good { Ok(()) } else { Err(format!("{} of {cells} cells, {open} shards open", seen.len())) })
        })
        .await
        .with_context(|| self.log_tails())
    }

    /// The end of every process's log.
    fn log_tails(&self) -> String {
        self.servers().map(Server::log_tail).collect::<Vec<_>>().join("\n")
    }

    /// Runs a command that needs no server, with the configuration of the processes; gives what it prints.
    ///
    /// # Errors
    /// When it does not succeed.
    pub fn offline(&self, arguments: &[&str]) -> Result<String> {
        let done = command().args(arguments).arg("--config").arg(self.config()).stdin(Stdio::null()).output()?;
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        ensure!(done.status.success(), "cellbus {arguments:?}: {}\n{out}\n{err}", done.status);
        Ok(out.into_owned())
    }

    /// The broker is lost, and every process with it, all at once; managers go on. There is a new broker,
    /// of this kind or another, that holds nothing, and the configuration names it, and another number of
    /// shards.
    ///
    /// # Errors
    /// When a process had ended before.
    pub fn lose_the_bus<Other: Broker>(mut self, shards: u16) -> Result<ClusterOn<Other>> {
        drop(self.broker);
        for server in self.cells.drain(..).chain(self.directories.drain(..)) {
            server.kill()?;
        }
        let broker = Other::started();
        let cluster = ClusterOn {
            section: broker.section(),
            shape: Shape { shards, ..self.shape },
            broker,
            folder: self.folder,
            started: self.started,
            binary: self.binary,
            managers: self.managers,
            cells: Vec::new(),
            directories: Vec::new(),
        };
        fs::write(cluster.config(), cluster.toml())?;
        Ok(cluster)
    }

    /// Directory against managers, from each process: nothing may differ. While shards still move, a
    /// manager may be read by nobody for a moment: then it is asked again.
    ///
    /// # Errors
    /// What differs.
    pub async fn audit(&self) -> Result<()> {
        for server in self.servers() {
            wait_for("an audit of every manager", SETTLED, async || {
                let out = server.run(&["audit", "--output", "json"])?;
                if out.status.success() {
                    return Ok(Ok(()));
                }
                let text = String::from_utf8_lossy(&out.stdout).into_owned();
                let said: Value = serde_json::from_str(&text).unwrap_or_default();
                let unread = said["findings_total"] == 0 || said["code"] == "not_ready";
                ensure!(unread, "the audit found: {text}");
                Ok(Err(text))
            })
            .await
            .with_context(|| server.log_tail())?;
        }
        Ok(())
    }

    /// What the managers themselves know must never be: a VM made on two of them, a full host.
    ///
    /// # Errors
    /// What they saw, or that they do not answer.
    pub async fn no_violations(&self) -> Result<()> {
        let status = self.managers.get("/sim/v1/status").await?;
        let seen = &status.body["violations"];
        for what in ["double_creates", "overfilled_hosts"] {
            ensure!(seen[what].as_u64() == Some(0), "{what}: {}", status.body);
        }
        ensure!(status.body["doubles"].as_array().is_some_and(Vec::is_empty), "twice: {}", status.body);
        Ok(())
    }
}

impl Cluster {
    /// Starts one more process of `role` (`cell`, `directory`), which reaches the broker through the
    /// first of the proxies that it gives, and is reached by the others through the second.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn add_apart(&mut self, role: &str) -> Result<(Proxy, Proxy)> {
        let (out, back) = (Proxy::start().await?, Proxy::start().await?);
        let address = |url: &str| url.rsplit('/').next().unwrap_or_default().parse();
        out.to(address(&self.broker.url()).context("the broker's address")?);
        let settings = [format!("nats.urls=nats://{}", out.address), format!("advertise=http://{}", back.address)];
        let server = self.spawn(role, &settings)?;
        back.to(address(&server.url).context("the server's address")?);
        match role {
            "cell" => self.cells.push(server),
            _ => self.directories.push(server),
        }
        Ok((out, back))
    }

    /// Where its shards' logs are: the bus, as somebody has it who is no part of the cluster.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn bus(&self) -> Result<Arc<Nats>> {
        let config = nats::Config::new(vec![self.broker.url()]);
        Ok(Nats::attach(config, env::real(tokio::runtime::Handle::current())).await?)
    }
}

/// The rows of a list that has no pages.
#[must_use]
pub fn rows(body: &Value) -> Vec<Value> {
    let items = body.as_array().or_else(|| body["items"].as_array());
    items.cloned().unwrap_or_default()
}
