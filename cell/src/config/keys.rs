//! Every setting: its key, what it may be, its default, what it is for. The one list that reading,
//! checking, dumping and the documentation go by.

use std::time::Duration;

use super::value::Kind;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// `section.key`, or `key` at the top level.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    /// As one would write it in a variable. Empty: not set.
    pub(super) default: &'static str,
    pub(super) help: &'static str,
}

const fn key(path: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Key {
    Key { path, kind, default, help }
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
const DAY: u64 = 24 * 3600;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

pub(super) const KEYS: &[Key] = &[
    key("bus", Kind::Choice(&["embedded", "nats", "kafka"]), "embedded", "which transport the cluster runs on"),
    key(
        "data_dir",
        Kind::Text(4_096),
        "cellbus-data",
        "where the embedded bus and the directory's checkpoint are kept; one process alone may use it",
    ),
    key(
        "listen",
        Kind::Text(255),
        "127.0.0.1:7070",
        "address and port of the HTTP API; port 0 takes any free one. Beyond loopback it needs `tls.cert`, `auth.tokens` and, in a cluster of several processes, `members.tls.ca`; or `http.insecure`",
    ),
    key(
        "advertise",
        Kind::Text(255),
        "",
        "where the other processes of a cluster reach this one (`http://host:port`, or `https://` with `tls.cert`); empty: the address listened on",
    ),
    key("cells", Kind::Count(1, 64), "2", "cells in this process"),
    key("shards", Kind::Count(1, 4_096), "256", "shards of a new cluster; fixed once the cluster is made"),
    key("tenants", Kind::Names(1_000), "", "the tenants that may submit jobs; empty: any well-formed one"),
    key("lease.ttl", Kind::Time(ms(500), secs(120)), "3s", "how long a cell that has gone silent keeps its shards"),
    key(
        "lease.beat",
        Kind::Time(ms(50), secs(40)),
        "1s",
        "how often a cell says that it lives; at most a third of `lease.ttl`",
    ),
    key(
        "jobs.accepted_max",
        Kind::Count(1, 10_000_000),
        "200000",
        "jobs accepted and not started in one shard, above which its queue is not read on",
    ),
    key(
        "jobs.in_flight_per_manager_max",
        Kind::Count(1, 100_000),
        "256",
        "calls that one shard has under way at one manager",
    ),
    key("jobs.retention", Kind::Time(secs(60), secs(365 * DAY)), "7d", "how long ended jobs are listed"),
    key(
        "jobs.remember",
        Kind::Time(secs(60), secs(365 * DAY)),
        "14d",
        "how long keys of jobs and tombstones of VMs are remembered; at least `jobs.retention`, and longer than any redelivery",
    ),
    key(
        "jobs.placement_patience",
        Kind::Time(ms(100), secs(DAY)),
        "60s",
        "how long a provision waits for managers that are not known yet before it fails for want of room",
    ),
    key(
        "cell.in_flight_max",
        Kind::Count(1, 1_000_000),
        "1024",
        "calls to managers that one cell has under way at once, over all its shards; more wait, and are what the autoscaler counts",
    ),
    key(
        "destructive.limit",
        Kind::Count(1, 10_000_000),
        "",
        "operations that remove something (delete, revert, snapshot-delete, removals within a migrate or an undo) that may begin in a minute in the whole cluster; more wait. Each manager has an equal share of it. Not set: any number",
    ),
    key(
        "destructive.limit_per_manager",
        Kind::Count(1, 1_000_000),
        "",
        "likewise at one manager; with both the smaller counts. Not set: any number",
    ),
    key(
        "scale.mode",
        Kind::Choice(&["auto", "fixed", "paused"]),
        "auto",
        "who says how many cells there are: the policy, `cells`, or nobody; like all settings up to `scale.latency_objective`, in force until `PUT /v1/scale` sets something else",
    ),
    key("scale.min", Kind::Count(1, 1_024), "", "the fewest cells; not set: as many as `cells`"),
    key(
        "scale.max",
        Kind::Count(1, 1_024),
        "",
        "the most cells; not set: 8, or four times the fewest. Never more than a quarter of the shards",
    ),
    key("scale.drain_target", Kind::Time(ms(100), secs(DAY)), "60s", "how long what waits may take to be gone"),
    key(
        "scale.latency_objective",
        Kind::Time(ms(100), secs(DAY)),
        "5s",
        "99 of 100 jobs are to be started within this; while the oldest has waited longer, what waits is to be gone in half of `scale.drain_target`",
    ),
    key("scale.target_utilisation", Kind::Ratio(0.05, 1.0), "0.8", "how much of what a cell can do is planned with"),
    key("scale.out_window", Kind::Time(ms(100), secs(3_600)), "3s", "how long more cells must have been wanted"),
    key("scale.out_step_max", Kind::Count(1, 1_024), "4", "cells that are added at once"),
    key("scale.out_pause", Kind::Time(ms(100), secs(3_600)), "5s", "from one addition to the next"),
    key("scale.in_window", Kind::Time(ms(100), secs(DAY)), "2m", "how long fewer cells must have been wanted"),
    key(
        "scale.in_step_max",
        Kind::Count(1, 1_024),
        "1",
        "cells that are taken away at once; they leave one after another",
    ),
    key("scale.in_pause", Kind::Time(ms(100), secs(3_600)), "5s", "from one such step to the next"),
    key("scale.rate_window", Kind::Time(ms(500), secs(600)), "5s", "over how long rates are measured"),
    key(
        "scale.stale_after",
        Kind::Time(secs(1), secs(600)),
        "5s",
        "a reading that is older is none, and the size holds",
    ),
    key("scale.trial", Kind::Time(secs(1), secs(3_600)), "20s", "how long added cells have to show that they help"),
    key(
        "scale.undo_hold",
        Kind::Time(secs(1), secs(DAY)),
        "10m",
        "how long a size that made things worse is not tried again",
    ),
    key(
        "scale.launcher",
        Kind::Choice(&["embedded", "none", "process", "command", "kubernetes"]),
        "embedded",
        "who starts cells and has them leave: this process, nobody (the metric `cellbus_cells_desired` advises), the controller as its children, a command of your own, a Deployment (in builds with the feature `kubernetes`)",
    ),
    key(
        "scale.command",
        Kind::Text(4_096),
        "",
        "launcher process: what starts one cell; launcher command: what is told `{desired}`. Words are split at spaces, and no shell is asked",
    ),
    key("scale.command_timeout", Kind::Time(ms(100), secs(3_600)), "30s", "how long your command may take"),
    key(
        "scale.kubernetes.deployment",
        Kind::Text(253),
        "cellbus-cell",
        "launcher kubernetes: the Deployment whose pods are the cells",
    ),
    key(
        "scale.kubernetes.namespace",
        Kind::Text(63),
        "",
        "where that Deployment is; empty: the namespace of the service account, or of the kubeconfig",
    ),
    key(
        "scale.kubernetes.kubeconfig",
        Kind::Text(4_096),
        "",
        "file with address and credentials of the API server; empty: those that Kubernetes gives to a pod",
    ),
    key(
        "scale.kubernetes.timeout",
        Kind::Time(ms(100), secs(600)),
        "10s",
        "how long the API server may take to be asked and to answer",
    ),
    key(
        "scale.controller_lease",
        Kind::Time(secs(1), secs(600)),
        "10s",
        "how long the controller that decides may be silent before another takes over, where there are several processes",
    ),
    key(
        "snapshot.tail_min",
        Kind::Size(64 * KIB, GIB),
        "8MiB",
        "the least log behind a shard's last snapshot that makes a new one due; the last two are kept, and with each new one log and queues are trimmed",
    ),
    key(
        "backup.dir",
        Kind::Text(4_096),
        "",
        "where scheduled backups are put: by `cellbus up`, or by the controller that decides; several controllers need one that they share. Not set: none are taken",
    ),
    key("backup.interval", Kind::Time(secs(1), secs(30 * DAY)), "1h", "how often one is taken"),
    key(
        "backup.keep",
        Kind::Count(1, 10_000),
        "24",
        "how many are kept; an older one is removed only after a new one is whole",
    ),
    key("events.keep_max", Kind::Count(1_000, 100_000_000), "100000", "events kept for readers that come back"),
    key("events.keep_size_max", Kind::Size(MIB, TIB), "256MiB", "what these events take at the most"),
    key(
        "disk.free_min",
        Kind::Size(16 * MIB, TIB),
        "512MiB",
        "free space below which jobs are refused; below a quarter of it everything is",
    ),
    key(
        "directory.checkpoint_dir",
        Kind::Text(4_096),
        "",
        "where the directory's checkpoint is kept; empty: in `data_dir`",
    ),
    key("directory.checkpoint_interval", Kind::Time(secs(1), secs(DAY)), "60s", "how often the checkpoint is written"),
    key(
        "circuit.failures_max",
        Kind::Count(1, 1_000),
        "5",
        "failures of a manager in a row that open the circuit to it",
    ),
    key(
        "circuit.open_first",
        Kind::Time(ms(10), secs(3_600)),
        "1s",
        "how long it is open the first time; doubled with every failed probe",
    ),
    key("circuit.open_max", Kind::Time(ms(10), secs(DAY)), "60s", "how long it is open at the most"),
    key(
        "log.level",
        Kind::Text(1_024),
        "info",
        "what is logged: a level, or directives such as `info,cellbus_cell=debug`; changed at run time by `PUT /v1/log`",
    ),
    key("log.format", Kind::Choice(&["text", "json"]), "text", "how it is logged"),
    key(
        "trace.otlp.endpoint",
        Kind::Text(2_048),
        "",
        "the collector that gets spans of jobs, by OTLP over HTTP, such as `http://127.0.0.1:4318` (`/v1/traces` is added unless a path is named); https by the CAs of the system, or by `trace.otlp.ca`; empty: none are sent",
    ),
    key(
        "trace.otlp.headers_file",
        Kind::Text(4_096),
        "",
        "file with headers for it, one `name: value` a line, such as credentials; read again with each request",
    ),
    key(
        "trace.otlp.ca",
        Kind::Text(4_096),
        "",
        "PEM file with the CA by which an https endpoint is known, and no other; not set: the CAs of the system",
    ),
    key(
        "trace.otlp.cert",
        Kind::Text(4_096),
        "",
        "PEM file with this process's certificate, for a collector that asks for one, its own first, then those that lead to the CA",
    ),
    key("trace.otlp.key", Kind::Text(4_096), "", "PEM file with its private key, not encrypted"),
    key(
        "trace.otlp.ratio",
        Kind::Ratio(0.0, 1.0),
        "1.0",
        "the share of jobs whose spans are sent, the same jobs in every process; of a job whose `traceparent` says that it is not sampled, none are",
    ),
    key(
        "trace.otlp.queue_max",
        Kind::Count(16, 1_000_000),
        "16384",
        "spans that wait to be sent; more are dropped and counted, and no work waits",
    ),
    key("trace.otlp.timeout", Kind::Time(ms(100), secs(60)), "5s", "how long the collector may take to answer"),
    key(
        "http.insecure",
        Kind::Flag,
        "false",
        "listen beyond loopback without TLS and authentication, and talk to members there in clear",
    ),
    key("http.connections_max", Kind::Count(1, 65_536), "4096", "connections held at once; more wait to be accepted"),
    key(
        "http.bodies_max",
        Kind::Size(4 * MIB, 64 * GIB),
        "256MiB",
        "request bodies held at once, all together; more wait",
    ),
    key(
        "http.read_timeout",
        Kind::Time(ms(100), secs(3_600)),
        "30s",
        "how long a client may take to send a request's head, and again its body",
    ),
    key(
        "http.write_timeout",
        Kind::Time(ms(100), secs(3_600)),
        "30s",
        "how long a client may take nothing of its answer before it is cut off",
    ),
    key("http.wait_max", Kind::Time(secs(1), secs(DAY)), "10m", "the longest `wait` of a job's submission"),
    key("http.events_readers_max", Kind::Count(1, 65_536), "1024", "readers of `/v1/events` at once"),
    key(
        "tls.cert",
        Kind::Text(4_096),
        "",
        "PEM file with the certificate of the HTTP API, its own first, then those that lead to a CA of its callers; not set: no TLS",
    ),
    key("tls.key", Kind::Text(4_096), "", "PEM file with its private key, not encrypted"),
    key(
        "auth.tokens",
        Kind::Text(4_096),
        "",
        "file of bearer tokens, a line for each as `cellbus token new` prints it; not set: everybody may do everything",
    ),
    key(
        "auth.metrics",
        Kind::Choice(&["operator", "open"]),
        "operator",
        "who may read `/metrics` where there are tokens: operators, or everybody",
    ),
    key(
        "members.tls.ca",
        Kind::Text(4_096),
        "",
        "PEM file with the CA that signs members' certificates, and nobody else's; needs `tls.cert` too",
    ),
    key(
        "members.tls.cert",
        Kind::Text(4_096),
        "",
        "PEM file with this process's certificate of that CA, for both ends of a connection, with the name `member.cellbus.internal`",
    ),
    key("members.tls.key", Kind::Text(4_096), "", "PEM file with its private key, not encrypted"),
    key(
        "security.reload_interval",
        Kind::Time(ms(50), secs(3_600)),
        "2s",
        "how often the files of `tls`, `auth`, `members.tls` and `trace.otlp` (`ca`, `cert`, `key`) are looked at for changes",
    ),
    key(
        "nats.urls",
        Kind::Names(32),
        "nats://127.0.0.1:4222",
        "where the NATS servers are reached; `tls://` where they encrypt",
    ),
    key("nats.user", Kind::Text(255), "", "the user to sign in as, with `nats.password` or `nats.password_file`"),
    key("nats.password", Kind::Secret, "", "that user's password"),
    key("nats.password_file", Kind::Text(4_096), "", "a file that holds it"),
    key("nats.token", Kind::Secret, "", "a token to sign in with"),
    key("nats.token_file", Kind::Text(4_096), "", "a file that holds it"),
    key("nats.nkey", Kind::Secret, "", "the seed of an nkey to sign in with"),
    key("nats.nkey_file", Kind::Text(4_096), "", "a file that holds it"),
    key("nats.credentials", Kind::Text(4_096), "", "a credentials file to sign in with"),
    key("nats.tls_required", Kind::Flag, "false", "refuse servers that do not encrypt"),
    key("nats.ca", Kind::Text(4_096), "", "a PEM file of authorities that servers' certificates are checked by"),
    key("nats.cert", Kind::Text(4_096), "", "a PEM file with this process's certificate, for servers that ask for one"),
    key("nats.key", Kind::Text(4_096), "", "a PEM file with its key"),
    key(
        "nats.replicas",
        Kind::Count(1, 5),
        "1",
        "how many servers keep each message: 1, 3 or 5. With more than one `lease.ttl` is 12s unless it is set, as an election takes up to 9 s",
    ),
    key(
        "nats.lanes",
        Kind::Count(1, 64),
        "4",
        "streams that queues and logs are spread over; fixed once a cluster is made",
    ),
    key(
        "nats.ingress_size_max",
        Kind::Size(MIB, 1_024 * TIB),
        "",
        "how much the jobs that no cell has taken may take; a producer is refused (`bus_full`) above it. Not set: as much as the servers give",
    ),
    key(
        "nats.lane_size_max",
        Kind::Size(MIB, 1_024 * TIB),
        "",
        "how much each of the streams of queues and logs may take, three for each lane. Not set: as much as the servers give",
    ),
    key(
        "nats.snapshots_size_max",
        Kind::Size(MIB, 1_024 * TIB),
        "",
        "how much all snapshots may take. Not set: as much as the servers give",
    ),
    key(
        "nats.prefix",
        Kind::Text(32),
        "cellbus",
        "what the names of subjects and streams begin with; another one for each further cluster on the same servers",
    ),
    key("kafka.brokers", Kind::Names(32), "127.0.0.1:9092", "where some of the Kafka brokers are reached, `host:port`"),
    key("kafka.tls", Kind::Flag, "false", "encrypt connections to the brokers"),
    key("kafka.ca", Kind::Text(4_096), "", "a PEM file of authorities that brokers' certificates are checked by"),
    key(
        "kafka.cert",
        Kind::Text(4_096),
        "",
        "a PEM file with this process's certificate, for brokers that ask for one",
    ),
    key("kafka.key", Kind::Text(4_096), "", "a PEM file with its key"),
    key(
        "kafka.sasl",
        Kind::Choice(&["none", "plain", "scram-sha-256", "scram-sha-512", "oauthbearer"]),
        "none",
        "how to sign in: `oauthbearer` with `kafka.token_file`, the others with `kafka.user` and a password; `plain` and `oauthbearer` only with `kafka.tls`, or who listens has it",
    ),
    key("kafka.user", Kind::Text(255), "", "the user to sign in as"),
    key("kafka.password", Kind::Secret, "", "that user's password"),
    key("kafka.password_file", Kind::Text(4_096), "", "a file that holds it"),
    key(
        "kafka.token_file",
        Kind::Text(4_096),
        "",
        "a file that holds a token (JWT); it is read again when four fifths of the token's life are over",
    ),
    key(
        "kafka.replicas",
        Kind::Count(1, 5),
        "1",
        "how many brokers keep each message of topics that are made: 1, 3 or 5. With more than one `lease.ttl` is 15s unless it is set, as a broker that dies is noticed after 9 s",
    ),
    key(
        "kafka.tenant_partitions",
        Kind::Count(1, 64),
        "4",
        "partitions of a tenant's topic of jobs where Cellbus makes it; so many cells can take that tenant's jobs at once",
    ),
    key(
        "kafka.prefix",
        Kind::Text(32),
        "cellbus",
        "what the names of topics and groups begin with; another one for each further cluster on the same brokers",
    ),
];

/// The keys of one entry of `[[managers]]`.
pub(super) const MANAGER_KEYS: &[Key] = &[
    key(
        "name",
        Kind::Text(63),
        "",
        "1 to 63 of `[A-Za-z0-9._-]`, the first alphanumeric; required, and each name once",
    ),
    key(
        "kind",
        Kind::Choice(&["simulated", "remote", "vsphere", "libvirt"]),
        "",
        "which driver; not set: `remote` with an `address`, `simulated` without. `vsphere` and `libvirt` are features of the build",
    ),
    key(
        "address",
        Kind::Text(1_024),
        "",
        "where a manager in another process is reached (`https://host:port` with `members.tls`, `http://host:port` on loopback), or a vCenter (`https://host[:port]`); empty: simulated in this process",
    ),
    key(
        "hosts",
        Kind::Count(0, 100_000),
        "100",
        "hosts, in three gear classes, for a manager simulated in this process",
    ),
    key("host_vcpus", Kind::Count(1, 4_096), "64", "CPUs of each of them"),
    key("host_memory", Kind::Size(MIB, 1_024 * TIB), "512GiB", "memory of each of them"),
    key("host_disk", Kind::Size(GIB, 1_048_576 * TIB), "10TiB", "disk of each of them"),
    key(
        "hosts_per_datastore",
        Kind::Count(0, 100_000),
        "0",
        "so many of them, one after the other, share a datastore, which has the disk of all of them; 0: each has its own disk",
    ),
    key("over_commit.cpu", Kind::Ratio(0.1, 100.0), "1.0", "vCPUs given out for each that a host has"),
    key("over_commit.memory", Kind::Ratio(0.1, 10.0), "1.0", "memory given out for what a host has"),
    key(
        "starts_read_only",
        Kind::Flag,
        "false",
        "whether it is only looked at (nothing is placed on it or changed there) until `cellbus managers enable`; what an operator has said since outlives this",
    ),
    key(
        "limits.operations_max",
        Kind::Count(1, 100_000),
        "",
        "operations under way at once; not set: the driver's own",
    ),
    key("limits.creates_max", Kind::Count(1, 100_000), "", "of these, creates and copies"),
    key("limits.relocations_max", Kind::Count(1, 100_000), "", "moves between hosts"),
    key("limits.power_max", Kind::Count(1, 100_000), "", "power operations"),
    key("limits.snapshots_max", Kind::Count(1, 100_000), "", "snapshot operations"),
    key(
        "vsphere.user",
        Kind::Text(256),
        "",
        "who signs in to the vCenter at `address`, such as `cellbus@vsphere.local`",
    ),
    key("vsphere.password_file", Kind::Text(4_096), "", "a file with nothing but the password, read at each sign-in"),
    key("vsphere.password_env", Kind::Text(256), "", "or the variable of the environment that holds it"),
    key(
        "vsphere.ca",
        Kind::Text(4_096),
        "",
        "PEM file with the authorities that the vCenter's certificate may come from",
    ),
    key(
        "vsphere.thumbprint",
        Kind::Text(128),
        "",
        "or the SHA-256 of that certificate itself, as 64 hexadecimal digits with or without colons",
    ),
    key("vsphere.datacenter", Kind::Text(80), "", "the datacenter by name; not set: the only one that there is"),
    key("vsphere.folder", Kind::Text(80), "cellbus", "folder of Cellbus's own for its VMs, which is made by hand"),
    key(
        "vsphere.datastore",
        Kind::Text(80),
        "",
        "where disks lie; not set: of those of the host, the one with most room",
    ),
    key("vsphere.network", Kind::Text(80), "", "what a new VM's network card is on; not set: it has none"),
    key(
        "vsphere.templates",
        Kind::Text(1_024),
        "",
        "folder of templates below the datacenter's VM folder: the one with an image's name is cloned. Not set: VMs are made empty",
    ),
    key(
        "vsphere.linked_clones",
        Kind::Flag,
        "false",
        "whether a clone's disk lies over the current snapshot of its template, in place of a copy of it: made in seconds, and as large as the template's",
    ),
    key(
        "libvirt.hosts",
        Kind::Names(1_000),
        "",
        "hosts of the kind `libvirt`, each `name=uri`: `h1=qemu+tls://h1.example/system`",
    ),
    key(
        "libvirt.out",
        Kind::Names(1_000),
        "",
        "names of those that are gone for good: they are not asked, and what was on them is taken to be gone",
    ),
    key(
        "libvirt.gear",
        Kind::Names(1_000),
        "",
        "gear classes of hosts, each `name=class`: a job that requires `gear` goes to hosts of that class",
    ),
    key(
        "libvirt.domain",
        Kind::Choice(&["kvm", "qemu", "test"]),
        "kvm",
        "what runs the guests: `qemu` does it in software, `test` is libvirt's test driver",
    ),
    key("libvirt.pool", Kind::Text(255), "", "the storage pool for disks; not set: VMs have none"),
    key(
        "libvirt.images",
        Kind::Text(255),
        "",
        "the storage pool with images: the volume with an image's name lies below a VM's disk. Not set: disks are empty",
    ),
    key("libvirt.network", Kind::Text(255), "", "the libvirt network that a new VM's card is on; not set: it has none"),
    key(
        "libvirt.kernel",
        Kind::Text(4_096),
        "",
        "path of a kernel on the hosts that is booted in place of what is on the disk",
    ),
    key(
        "libvirt.seed_from",
        Kind::Text(1_024),
        "",
        "where cloud-init gets user data from: an address of http or https that ends with `/`; guests can read it",
    ),
    key("libvirt.initrd", Kind::Text(4_096), "", "path of its first file system"),
    key("libvirt.cmdline", Kind::Text(1_024), "", "what it is told"),
    key(
        "libvirt.console_dir",
        Kind::Text(4_096),
        "",
        "directory of the hosts that takes what guests write to their serial console",
    ),
    key("libvirt.host_disk", Kind::Size(1 << 30, 1 << 60), "10TiB", "disk of each host, where there is no pool to ask"),
    key(
        "libvirt.shared_storage",
        Kind::Flag,
        "false",
        "whether the pool is the same storage on all hosts: a VM with a disk moves between hosts only then",
    ),
    key(
        "libvirt.cold_moves",
        Kind::Flag,
        "false",
        "whether a running VM that cannot be moved live is shut off, moved and started",
    ),
    key(
        "libvirt.stop_grace",
        Kind::Time(Duration::from_secs(1), Duration::from_secs(3_600)),
        "60s",
        "how long a guest may take to shut down when it is stopped before it is powered off",
    ),
];

/// Managers of one cluster.
pub(super) const MANAGERS_MAX: usize = 10_000;

/// The tables of `ops/docs/configuration.md`, between its markers.
#[must_use]
pub fn markdown() -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let rows = |out: &mut String, keys: &[Key]| {
        out.push_str("| key | may be | default | for |\n|---|---|---|---|\n");
        for key in keys {
            let default = if key.default.is_empty() { "not set".to_owned() } else { format!("`{}`", key.default) };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "| `{}` | {} | {default} | {} |", key.path, key.kind.rule(), key.help);
        }
    };
    rows(&mut out, KEYS);
    out.push_str("\nEach `[[managers]]` has:\n\n");
    rows(&mut out, MANAGER_KEYS);
    out
}
