//! Configuration: defaults, then a TOML file, then variables, then flags.
//!
//! ```text
//!  defaults < cellbus.toml < CELLBUS_SECTION__KEY < flags ──▶ checked, each with its key ──▶ Config
//! ```
//!
//! Every mistake is reported at once, with the key, where it stands (file and line, variable, flag)
//! and what to write instead. Keys, bounds and defaults are one list in `keys`, from which
//! `ops/docs/configuration.md` is made. Nothing here reads files or the environment: the binary
//! does, and hands [`Sources`] in. Secrets are never printed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cellbus_bus::cloudevent::Tenants;
use cellbus_bus::ids::{ShardCount, TenantId};

mod dump;
mod kafka;
mod keys;
mod managers;
mod nats;
pub mod scale;
mod security;
mod source;
#[cfg(test)]
mod tests;
mod traces;
mod value;

pub use kafka::{Kafka, KafkaSignIn};
pub use keys::markdown;
pub use managers::{
    Libvirt, LibvirtBoot, LibvirtDomain, LibvirtHost, Manager, ManagerKind, ManagerLimits, Password, Trust, Vsphere,
};
pub use nats::{Nats, SecretFrom, SignIn};
pub use security::{Auth, MembersTls, Tls};
pub use source::{File, Origin, Override, Sources};
pub use traces::{Otlp, OtlpTls};
pub use value::Secret;
pub(crate) use value::read_time;

use keys::{KEYS, Key, MANAGER_KEYS};
use managers::Clear;
use security::Security;
use source::Set;
use value::Value;

/// One mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// Which key; empty for a file as a whole.
    pub key: String,
    /// Where it stands.
    pub origin: Origin,
    /// What is wrong, and what to write instead.
    pub message: String,
}
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, origin, message } = self;
        if key.is_empty() || matches!(origin, Origin::Variable(name) if name == key) {
            write!(f, "{origin}: {message}")
        } else {
            write!(f, "{origin}: {key}: {message}")
        }
    }
}
impl Error {
    /// Never: the configuration must be mended.
    #[must_use]
    pub fn retryable(&self) -> bool {
        false
    }
}

/// Which transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One process, one disk.
    Embedded,
    /// NATS JetStream.
    Nats,
    /// Kafka.
    Kafka,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// A checked configuration. What each setting means is in `ops/docs/configuration.md`.
#[derive(Clone, Debug)]
pub struct Config {
    /// `bus`
    pub bus: Transport,
    /// `data_dir`
    pub data_dir: PathBuf,
    /// `listen`
    pub listen: SocketAddr,
    /// `advertise`: where other processes reach this one, if not where it listens.
    pub advertise: Option<String>,
    /// `cells`
    pub cells: u32,
    /// `shards`
    pub shards: ShardCount,
    /// `tenants`
    pub tenants: Tenants,
    /// `[lease]`
    pub lease: Lease,
    /// `[jobs]`
    pub jobs: Jobs,
    /// `cell.in_flight_max`
    pub in_flight_max: u32,
    /// `[destructive]`
    pub destructive: Destructive,
    /// `[scale]`
    pub scale: scale::Scale,
    /// `[snapshot]`
    pub snapshot: Snapshot,
    /// `[backup]`: none without `backup.dir`.
    pub backup: Option<crate::backup::Config>,
    /// `[events]`
    pub events: Events,
    /// `disk.free_min`, bytes.
    pub disk_free_min_bytes: u64,
    /// `[directory]`
    pub directory: Directory,
    /// `[circuit]`
    pub circuit: crate::front::circuit::Config,
    /// `[log]`
    pub log: Log,
    /// `[trace.otlp]`: none without `trace.otlp.endpoint`.
    pub otlp: Option<Otlp>,
    /// `[http]`
    pub http: Http,
    /// `[tls]`
    pub tls: Option<Tls>,
    /// `[auth]`
    pub auth: Auth,
    /// `[members.tls]`
    pub members_tls: Option<MembersTls>,
    /// `security.reload_interval`
    pub reload_interval: Duration,
    /// `[nats]`
    pub nats: Nats,
    /// `[kafka]`
    pub kafka: Kafka,
    /// `[[managers]]`
    pub managers: Vec<Manager>,
    settings: BTreeMap<&'static str, (Value, Origin)>,
}

impl Config {
    /// What of it this build lacks, in words for an operator.
    #[must_use]
    pub fn lacks(&self) -> Option<&'static str> {
        if self.otlp.is_some() && !cfg!(feature = "otlp") {
            return Some(
                "this build sends no traces: build it with `--features otlp`, or leave `trace.otlp.endpoint` out",
            );
        }
        self.scale.launcher.lacks()
    }
}

/// `[lease]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// How long a silent cell keeps its shards.
    pub ttl: Duration,
    /// How often a cell says that it lives.
    pub beat: Duration,
}

/// `[jobs]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jobs {
    /// Accepted and not started in one shard.
    pub accepted_max: usize,
    /// Calls of one shard under way at one manager.
    pub in_flight_per_manager_max: usize,
    /// How long ended jobs are listed.
    pub retention: Duration,
    /// How long keys and tombstones are remembered.
    pub remember: Duration,
    /// How long a provision waits for managers that are not known.
    pub placement_patience: Duration,
}

/// `[destructive]`: how many operations that remove something may begin in a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destructive {
    /// In the whole cluster; `None`: any number.
    pub limit: Option<u32>,
    /// At one manager; `None`: any number.
    pub limit_per_manager: Option<u32>,
}
impl Destructive {
    /// At each of so many managers. The shares add up to the limit whoever fronts which manager, also
    /// while cells come and go or cannot hear of each other; what one manager does not use is nobody's.
    #[must_use]
    pub fn per_manager(self, managers: usize) -> Option<f64> {
        let share = self.limit.map(|limit| f64::from(limit) / managers.max(1) as f64);
        let own = self.limit_per_manager.map(f64::from);
        share.into_iter().chain(own).reduce(f64::min)
    }
}

/// `[snapshot]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The least log behind the last snapshot that makes a new one due, bytes.
    pub tail_min_bytes: u64,
}

/// `[events]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// How many are kept.
    pub keep_max: u64,
    /// What they take at the most, bytes.
    pub keep_max_bytes: u64,
}

/// `[directory]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Where its checkpoint is kept.
    pub checkpoint_dir: PathBuf,
    /// How often the checkpoint is written.
    pub checkpoint_interval: Duration,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level, or directives.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
}

/// `[http]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http {
    /// Listen beyond loopback without TLS and authentication.
    pub insecure: bool,
    /// Connections held at once.
    pub connections_max: usize,
    /// Bytes of request bodies held at once.
    pub bodies_max_bytes: u64,
    /// For a request's head, and again for its body.
    pub read_timeout: Duration,
    /// For a client to take some of its answer.
    pub write_timeout: Duration,
    /// The longest `wait`.
    pub wait_max: Duration,
    /// Readers of events at once.
    pub events_readers_max: usize,
}

impl Default for Http {
    fn default() -> Self {
        Config::load(Sources::default()).expect("the defaults are sound, which a test checks").http
    }
}

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// Every mistake, in the order of the sources.
    pub fn load(sources: Sources) -> Result<Self, Vec<Error>> {
        let gathered = source::gather(&sources);
        let mut errors = gathered.errors;
        let settings = Settings::of(KEYS, gathered.sets, "", &mut errors);
        let clear = Clear { anywhere: settings.flag("http.insecure"), tls: settings.path("members.tls.ca").is_some() };
        let mut managers = Vec::new();
        for (index, (origin, sets)) in gathered.managers.into_iter().enumerate() {
            let prefix = format!("managers[{index}].");
            let settings = Settings::of(MANAGER_KEYS, sets, &prefix, &mut errors);
            if let Some(manager) = settings.manager(&prefix, &origin, clear, &mut errors) {
                if managers.iter().any(|known: &Manager| known.name == manager.name) {
                    let message = format!("there is another manager named `{}`; each name stands once", manager.name);
                    errors.push(Error { key: format!("{prefix}name"), origin, message });
                } else {
                    managers.push(manager);
                }
            }
        }
        let config = settings.config(managers, &mut errors);
        // What does not come from a file has no line: it stays behind, in the order found.
        errors.sort_by_key(|e| match &e.origin {
            Origin::File { line, .. } => (0, *line),
            Origin::Default | Origin::Variable(_) | Origin::Flag(_) => (1, 0),
        });
        match config {
            Some(config) if errors.is_empty() => Ok(config),
            Some(_) | None => Err(errors),
        }
    }

    /// The same with its data elsewhere: for those who choose the directory themselves.
    #[must_use]
    pub fn in_directory(mut self, data_dir: &Path) -> Self {
        let checkpoint = &mut self.directory.checkpoint_dir;
        if let Ok(within) = checkpoint.strip_prefix(&self.data_dir) {
            *checkpoint = data_dir.join(within);
        }
        data_dir.clone_into(&mut self.data_dir);
        self
    }

    /// The configuration in force, as TOML that gives the same again. Secrets are left out.
    #[must_use]
    pub fn dump(&self) -> String {
        dump::dump(self, &self.settings)
    }
}

/// Checked values by key.
struct Settings(BTreeMap<&'static str, (Value, Origin)>);

impl Settings {
    fn of(keys: &'static [Key], sets: Vec<Set>, prefix: &str, errors: &mut Vec<Error>) -> Self {
        let mut values = BTreeMap::new();
        for key in keys.iter().filter(|key| !key.default.is_empty()) {
            let value = value::check(&key.kind, &value::Raw::Loose(key.default.to_owned()));
            values.insert(key.path, (value.expect("a test reads every default"), Origin::Default));
        }
        for Set { key, raw, origin } in sets {
            match value::check(&key.kind, &raw) {
                Ok(value) => {
                    values.insert(key.path, (value, origin));
                }
                Err(message) => errors.push(Error { key: format!("{prefix}{}", key.path), origin, message }),
            }
        }
        Self(values)
    }
    fn origin(&self, path: &str) -> Origin {
        self.0.get(path).map_or(Origin::Default, |(_, origin)| origin.clone())
    }
    fn text(&self, path: &str) -> String {
        match self.0.get(path) {
            Some((Value::Text(text), _)) => text.clone(),
            _ => String::new(),
        }
    }
    fn count(&self, path: &str) -> u64 {
        self.count_if_set(path).expect("counts that are always read have a default")
    }
    fn count_if_set(&self, path: &str) -> Option<u64> {
        match self.0.get(path) {
            Some((Value::Count(n) | Value::Size(n), _)) => Some(*n),
            _ => None,
        }
    }
    fn u32(&self, path: &str) -> u32 {
        u32::try_from(self.count(path)).expect("bounds of the key are below a u32")
    }
    fn u32_if_set(&self, path: &str) -> Option<u32> {
        self.count_if_set(path).map(|n| u32::try_from(n).expect("bounds of the key are below a u32"))
    }
    fn usize(&self, path: &str) -> usize {
        usize::try_from(self.count(path)).expect("bounds of the key are below a usize")
    }
    fn ratio(&self, path: &str) -> f64 {
        match self.0.get(path) {
            Some((Value::Ratio(n), _)) => *n,
            _ => 1.0,
        }
    }
    fn time(&self, path: &str) -> Duration {
        match self.0.get(path) {
            Some((Value::Time(t), _)) => *t,
            _ => Duration::ZERO,
        }
    }
    fn names(&self, path: &str) -> Vec<String> {
        match self.0.get(path) {
            Some((Value::Names(names), _)) => names.clone(),
            _ => Vec::new(),
        }
    }
    fn flag(&self, path: &str) -> bool {
        matches!(self.0.get(path), Some((Value::Flag(true), _)))
    }
    fn path(&self, path: &str) -> Option<PathBuf> {
        Some(self.text(path)).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn config(mut self, managers: Vec<Manager>, errors: &mut Vec<Error>) -> Option<Config> {
        let nats = self.nats(errors);
        let kafka = self.kafka(errors);
        let several = self.text("bus") != "embedded";
        let mut wrong = |key: &str, message: String| {
            errors.push(Error { key: key.to_owned(), origin: self.origin(key), message });
        };
        let Security { tls, auth, members_tls } = self.security(several, &mut wrong);
        let listen = listen_address(&self.text("listen"));
        match &listen {
            Ok(address) if !address.ip().is_loopback() && !self.flag("http.insecure") => {
                let lacks: Vec<&str> = [
                    ("no TLS (`tls.cert`, `tls.key`)", self.path("tls.cert").is_none()),
                    ("no authentication (`auth.tokens`)", auth.tokens.is_none()),
                    ("no TLS between members (`members.tls.ca`)", several && self.path("members.tls.ca").is_none()),
                ]
                .into_iter()
                .filter_map(|(what, lacks)| lacks.then_some(what))
                .collect();
                if !lacks.is_empty() {
                    let message = format!(
                        "{address} is reached from beyond this machine, and there is {}; set that, listen on loopback, \
                         or set `http.insecure` (--insecure) if the network is trusted",
                        lacks.join(" and ")
                    );
                    wrong("listen", message);
                }
            }
            Ok(_) => {}
            Err(message) => wrong("listen", message.clone()),
        }
        let advertise = self.text("advertise");
        if !advertise.is_empty() && !["http://", "https://"].iter().any(|scheme| advertise.starts_with(scheme)) {
            wrong("advertise", "it begins with http:// or https:// and names host and port".to_owned());
        }
        let mut listed = std::collections::BTreeSet::new();
        if let Some((Value::Names(names), _)) = self.0.get("tenants") {
            for name in names {
                match name.parse::<TenantId>() {
                    Ok(tenant) => {
                        if !listed.insert(tenant) {
                            wrong("tenants", format!("`{name}` is there twice; keep one"));
                        }
                    }
                    Err(error) => wrong("tenants", format!("`{}`: {error}", name.escape_debug())),
                }
            }
        }
        let lease = Lease { ttl: self.time("lease.ttl"), beat: self.time("lease.beat") };
        if lease.beat * 3 > lease.ttl {
            wrong(
                "lease.beat",
                format!(
                    "three beats ({} each) do not fit into lease.ttl ({})",
                    value::time(lease.beat),
                    value::time(lease.ttl)
                ),
            );
        }
        let (retention, remember) = (self.time("jobs.retention"), self.time("jobs.remember"));
        if remember < retention {
            wrong("jobs.remember", format!("it is shorter than jobs.retention ({})", value::time(retention)));
        }
        let circuit = crate::front::circuit::Config {
            failures_max: self.u32("circuit.failures_max"),
            open_first: self.time("circuit.open_first"),
            open_max: self.time("circuit.open_max"),
        };
        if circuit.open_max < circuit.open_first {
            wrong(
                "circuit.open_max",
                format!("it is shorter than circuit.open_first ({})", value::time(circuit.open_first)),
            );
        }
        let shards = u16::try_from(self.count("shards")).ok().and_then(ShardCount::new);
        let scale = self.scale(self.u32("cells"), shards?, &mut wrong);
        let otlp = self.otlp(&mut wrong);
        let level = self.text("log.level");
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&level) {
            wrong("log.level", format!("`{}` is no level and no directives: {error}", level.escape_debug()));
        }
        let data_dir = PathBuf::from(self.text("data_dir"));
        if data_dir.as_os_str().is_empty() {
            wrong("data_dir", "it is empty; name a directory".to_owned());
        }
        let checkpoint_dir = match self.text("directory.checkpoint_dir") {
            dir if dir.is_empty() => data_dir.join("directory"),
            dir => PathBuf::from(dir),
        };
        Some(Config {
            bus: match self.text("bus").as_str() {
                "nats" => Transport::Nats,
                "kafka" => Transport::Kafka,
                _ => Transport::Embedded,
            },
            data_dir,
            listen: listen.ok()?,
            advertise: (!advertise.is_empty()).then_some(advertise),
            cells: self.u32("cells"),
            shards: shards?,
            tenants: if listed.is_empty() { Tenants::Any } else { Tenants::Listed(listed) },
            lease,
            jobs: Jobs {
                accepted_max: self.usize("jobs.accepted_max"),
                in_flight_per_manager_max: self.usize("jobs.in_flight_per_manager_max"),
                retention,
                remember,
                placement_patience: self.time("jobs.placement_patience"),
            },
            in_flight_max: self.u32("cell.in_flight_max"),
            destructive: Destructive {
                limit: self.u32_if_set("destructive.limit"),
                limit_per_manager: self.u32_if_set("destructive.limit_per_manager"),
            },
            scale,
            snapshot: Snapshot { tail_min_bytes: self.count("snapshot.tail_min") },
            backup: self.path("backup.dir").map(|dir| crate::backup::Config {
                dir,
                every: self.time("backup.interval"),
                keep: self.usize("backup.keep"),
            }),
            events: Events {
                keep_max: self.count("events.keep_max"),
                keep_max_bytes: self.count("events.keep_size_max"),
            },
            disk_free_min_bytes: self.count("disk.free_min"),
            directory: Directory { checkpoint_dir, checkpoint_interval: self.time("directory.checkpoint_interval") },
            circuit,
            otlp,
            log: Log {
                level,
                format: if self.text("log.format") == "json" { LogFormat::Json } else { LogFormat::Text },
            },
            http: Http {
                insecure: self.flag("http.insecure"),
                connections_max: self.usize("http.connections_max"),
                bodies_max_bytes: self.count("http.bodies_max"),
                read_timeout: self.time("http.read_timeout"),
                write_timeout: self.time("http.write_timeout"),
                wait_max: self.time("http.wait_max"),
                events_readers_max: self.usize("http.events_readers_max"),
            },
            nats,
            kafka,
            tls,
            auth,
            members_tls,
            reload_interval: self.time("security.reload_interval"),
            managers,
            settings: self.0,
        })
    }
}

/// Whether a host is this machine, by what is written.
#[must_use]
pub fn on_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An address and port; `localhost` is loopback, other names are not looked up.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse::<u16>().ok()) {
        return Ok(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port));
    }
    Err(format!("`{}` is no address with port, such as 127.0.0.1:7070 or [::1]:7070", text.escape_debug()))
}
