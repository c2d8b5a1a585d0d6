//! A real nats-server as a child process, for tests: on a port that is kept for it, in a directory of
//! its own, killed when dropped or when the test process dies, its log shown when a test fails.
//!
//! An edge: it waits in real time for a real process.
#![expect(clippy::disallowed_methods, reason = "a test waits for a child process in real time")]

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::Config;
use crate::testing::{self, Port};

pub mod bare;

/// How long a start may take on a busy machine.
const START: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// Names the binary; what `ops/setup/nats` prints.
const BINARY: &str = "CELLBUS_NATS_SERVER";

/// The server's binary: what `CELLBUS_NATS_SERVER` names, the one that `ops/setup/nats` has
/// installed under `target/`, or one on `PATH`.
#[must_use]
pub fn binary() -> Option<PathBuf> {
    if let Some(named) = testing::named(BINARY) {
        return Some(named);
    }
    let installed = testing::target().join("nats").join("bin").join("nats-server");
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&on_path).map(|dir| dir.join("nats-server"));
    std::iter::once(installed).chain(on_path).find(|path| path.is_file())
}

/// Whether tests that need a server are left out, as `ops/test` says where there is none.
///
/// # Panics
/// With `CI=true`, where nothing may be left out.
#[must_use]
pub fn left_out() -> bool {
    testing::left_out(binary().is_some(), "nats-server", "ops/setup/nats", BINARY)
}

/// A running server.
#[derive(Debug)]
pub struct NatsServer {
    dir: PathBuf,
    /// Where it listens.
    port: u16,
    /// What is kept for it, for as long as it may come back.
    _kept: Vec<Port>,
    child: Option<Child>,
    /// A configuration that somebody else has written, and the variables that it reads. It says
    /// itself where the server listens.
    given: Option<(PathBuf, Vec<(String, String)>)>,
}

impl NatsServer {
    /// Starts one with JetStream, and the limit for messages that Cellbus needs.
    ///
    /// # Panics
    /// When it does not start: nothing can be tested then.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("max_payload: 8MB\njetstream { store_dir: \"$STORE\" }\n")
    }

    /// Starts one with this configuration; `$STORE` stands for its own directory.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_with(configuration: &str) -> Self {
        Self::start_keeping(configuration, Vec::new())
    }

    fn start_keeping(configuration: &str, mut kept: Vec<Port>) -> Self {
        let port = Port::hold();
        let number = port.number();
        kept.push(port);
        let mut server = Self::new(number, kept, None);
        let started = fs::create_dir_all(server.dir.join("ports")).and_then(|()| {
            let store = server.dir.join("store");
            let text = configuration.replace("$STORE", &store.to_string_lossy());
            fs::write(server.dir.join("server.conf"), text)?;
            server.run()
        });
        if let Err(error) = started {
            panic!("nats-server does not start: {error}\n{}", server.log());
        }
        server
    }

    /// Starts one with this file as it is, which reads these variables of the environment. It is to
    /// listen on a port of loopback.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_file(configuration: &Path, variables: Vec<(String, String)>) -> Self {
        let mut server = Self::new(0, Vec::new(), Some((configuration.to_owned(), variables)));
        if let Err(error) = fs::create_dir_all(server.dir.join("ports")).and_then(|()| server.run()) {
            panic!("nats-server does not start: {error}\n{}", server.log());
        }
        server
    }

    fn new(port: u16, kept: Vec<Port>, given: Option<(PathBuf, Vec<(String, String)>)>) -> Self {
        Self { dir: testing::folder("nats"), port, _kept: kept, child: None, given }
    }

    /// Starts so many that form a cluster.
    ///
    /// # Panics
    /// When one does not start.
    #[must_use]
    pub fn cluster(servers: usize) -> Vec<Self> {
        Self::cluster_with(servers, "")
    }

    /// The same with these options of JetStream.
    ///
    /// # Panics
    /// When one does not start.
    #[must_use]
    pub fn cluster_with(servers: usize, jetstream: &str) -> Vec<Self> {
        // Each must know where the others will be.
        let ports = Port::several(servers);
        let route = |port: &Port| format!("nats-route://127.0.0.1:{}", port.number());
        let routes = ports.iter().map(route).collect::<Vec<_>>().join(", ");
        let configuration = |number: usize, port: u16| {
            format!(
                "server_name: n{number}\nmax_payload: 8MB\njetstream {{ store_dir: \"$STORE\"; {jetstream} }}\n\
                 cluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}\n"
            )
        };
        let start =
            |(number, port): (usize, Port)| Self::start_keeping(&configuration(number, port.number()), vec![port]);
        ports.into_iter().enumerate().map(start).collect()
    }

    /// One server for all tests of this process, each of which has a prefix of its own.
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<NatsServer> = OnceLock::new();
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
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The configuration of a bus on this server, with short waits.
    #[must_use]
    pub fn config(&self) -> Config {
        Config { connect_timeout: Duration::from_secs(20), ..Config::new(vec![self.url()]) }
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(&mut self) {
        if let Some(child) = self.child.take() {
            testing::kill(child).expect("the shell that watches the server ends");
        }
    }

    /// Starts it again, after [`NatsServer::kill`], on the same port and store.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.kill();
        if let Err(error) = self.run() {
            panic!("nats-server does not start again: {error}\n{}", self.log());
        }
    }

    fn run(&mut self) -> io::Result<()> {
        let binary = binary().ok_or_else(|| io::Error::other("there is none; run ops/setup/nats"))?;
        let ports = self.dir.join("ports");
        for file in fs::read_dir(&ports)? {
            fs::remove_file(file?.path())?;
        }
        let port = self.port.to_string();
        let mut command = testing::watched(&self.dir.join("log"));
        command.arg(binary).arg("-c");
        match &self.given {
            Some((configuration, variables)) => {
                command.arg(configuration).envs(variables.iter().map(|(name, value)| (name, value)));
            }
            None => {
                command.arg(self.dir.join("server.conf")).args(["-a", "127.0.0.1", "-p", &port]);
            }
        }
        let mut ports_option = OsString::from("--ports_file_dir=");
        ports_option.push(&ports);
        self.child = Some(command.arg(ports_option).spawn()?);
        let began = Instant::now();
        while began.elapsed() < START {
            if let Some(port) = Self::port_in(&ports) {
                self.port = port;
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        Err(io::Error::other("it did not say which port it listens on"))
    }

    /// The port in the file that the server writes once it listens.
    fn port_in(ports: &Path) -> Option<u16> {
        let file = fs::read_dir(ports)
            .ok()?
            .filter_map(Result::ok)
            .find(|file| file.path().extension().is_some_and(|extension| extension == "ports"))?;
        let text = fs::read_to_string(file.path()).ok()?;
        let ports: serde_json::Value = serde_json::from_str(&text).ok()?;
        ports.get("nats")?.get(0)?.as_str()?.rsplit(':').next()?.parse().ok()
    }

    /// Its process, while it runs: what is measured, and not the shell that watches it.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        // nats-server_1234.ports
        let file = fs::read_dir(self.dir.join("ports")).ok()?.filter_map(Result::ok).next()?;
        file.path().file_stem()?.to_str()?.rsplit('_').next()?.parse().ok()
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        testing::log_end(&self.dir.join("log"))
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of nats-server:\n{}", self.log());
        }
        self.kill();
        // A directory that stays takes room and does no harm.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
