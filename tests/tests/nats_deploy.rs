//! The three servers of `ops/deploy/nats/`, from the files as they are shipped: a cluster runs on them,
//! its tenants are kept apart, and one server may be lost.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::nats::testing::{NatsServer, left_out};
use cellbus_bus::testing::Port;
use cellbus_tests::cluster::{Cluster, Shape};
use cellbus_tests::process::wait_for;
use cellbus_tests::workspace::{python, root};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair as TlsKey,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const SERVERS: usize = 3;
/// What the servers' variables give a place to, for each: clients, routes, monitoring.
const PORTS_EACH: usize = 3;

/// The servers, and what one needs to sign in to them.
struct Deployed {
    folder: TempDir,
    servers: Vec<NatsServer>,
    monitors: Vec<u16>,
    /// Where they listen.
    _kept: Vec<Port>,
}

impl Deployed {
    /// Starts the three with `variables`, which `server.env.example` names, and waits until they agree.
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        pair(folder.path(), "server", &[ExtendedKeyUsagePurpose::ServerAuth])?;
        pair(folder.path(), "route", &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])?;
        let members = nkeys::KeyPair::new_user();
        std::fs::write(folder.path().join("members.nkey"), format!("{}\n", members.seed()?))?;
        let kept = Port::several(SERVERS * PORTS_EACH);
        let ports: Vec<u16> = kept.iter().map(Port::number).collect();
        let ports: Vec<&[u16]> = ports.chunks(PORTS_EACH).collect();
        let mut servers = Vec::new();
        for (number, own) in ports.iter().enumerate() {
            let mut variables = vec![
                ("NAME".to_owned(), format!("nats-{number}")),
                ("ZONE".to_owned(), format!("az:{number}")),
                ("LISTEN".to_owned(), format!("127.0.0.1:{}", own[0])),
                ("ROUTES_LISTEN".to_owned(), format!("127.0.0.1:{}", own[1])),
                ("MONITOR".to_owned(), format!("127.0.0.1:{}", own[2])),
                ("STORE".to_owned(), at(&format!("store-{number}"))),
                // As in the example, so that the sizes of README.md are seen to fit.
                ("STORE_MAX".to_owned(), "200GB".to_owned()),
                ("MEMORY_MAX".to_owned(), "1GB".to_owned()),
                ("CERT".to_owned(), at("server.pem")),
                ("KEY".to_owned(), at("server.key")),
                ("ROUTES_CERT".to_owned(), at("route.pem")),
                ("ROUTES_KEY".to_owned(), at("route.key")),
                ("ROUTES_CA".to_owned(), at("route-ca.pem")),
                ("MEMBERS_NKEY".to_owned(), members.public_key()),
            ];
            for (user, variable) in
                [("operator", "OPERATOR"), ("system", "SYSTEM"), ("acme", "TENANT_ACME"), ("globex", "TENANT_GLOBEX")]
            {
                variables.push((format!("{variable}_PASSWORD"), password(user)));
            }
            for (other, theirs) in ports.iter().enumerate() {
                variables.push((format!("ROUTE_{}", other + 1), format!("tls://127.0.0.1:{}", theirs[1])));
            }
            let variables: Vec<_> =
                variables.into_iter().map(|(name, value)| (format!("CELLBUS_NATS_{name}"), value)).collect();
            all_are_documented(&variables)?;
            servers.push(NatsServer::start_file(&shipped("nats-server.conf"), variables));
        }
        let monitors = ports.iter().map(|own| own[2]).collect();
        let deployed = Self { folder, servers, monitors, _kept: kept };
        deployed.healthy().await?;
        Ok(deployed)
    }

    /// Every server has found the others, and a leader with them.
    async fn healthy(&self) -> Result<()> {
        cellbus_cell::security::use_ring();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
        wait_for("the servers to be healthy", Duration::from_secs(120), async || {
            for port in &self.monitors {
                let asked = http.get(format!("http://127.0.0.1:{port}/jsz?raft=false")).send().await;
                let Ok(answer) = asked else { return Ok(Err(format!("no answer at {port}"))) };
                let said: Value = answer.json().await?;
                if said["meta_cluster"]["leader"].as_str().is_none_or(str::is_empty) {
                    return Ok(Err(said.to_string()));
                }
            }
            Ok(Ok(()))
        })
        .await
        .with_context(|| self.servers.iter().map(NatsServer::log).collect::<String>())
    }

    fn urls(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.url().replace("nats://", "tls://")).collect()
    }

    /// The `[nats]` of README.md, for these servers.
    fn section(&self) -> Result<String> {
        let readme = std::fs::read_to_string(shipped("README.md"))?;
        let block = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
        let mut table: toml::Table = block.context("the page shows a [nats]")?.parse()?;
        ensure!(table["bus"].as_str() == Some("nats"), "the page's bus is {}", table["bus"]);
        let section = table["nats"].as_table_mut().context("a table")?;
        section["urls"] = toml::Value::try_from(self.urls())?;
        section["ca"] = self.file("server-ca.pem").display().to_string().into();
        section["nkey_file"] = self.file("members.nkey").display().to_string().into();
        Ok(section.to_string())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the producer as `user`.
    fn producer(&self, python: &Path, user: &str, password: &str, arguments: &[&str]) -> Result<(bool, String)> {
        let mut command = Command::new(python);
        command.arg(root().join("tests/producers/nats_tenant.py")).arg(self.urls().join(","));
        command.arg(self.file("server-ca.pem")).arg(user).args(arguments);
        let done = command.env("PASSWORD", password).stdin(Stdio::null()).output()?;
        let text = if done.status.success() { done.stdout } else { done.stderr };
        Ok((done.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    fn as_user(&self, python: &Path, user: &str, arguments: &[&str]) -> Result<Value> {
        let (success, text) = self.producer(python, user, &password(user), arguments)?;
        ensure!(success, "{user} {arguments:?}:\n{text}");
        serde_json::from_str(&text).with_context(|| format!("{user} {arguments:?} printed {text}"))
    }

    /// A job of `tenant` is answered, told of and kept.
    fn job(&self, python: &Path, tenant: &str, name: &str) -> Result<()> {
        let seen = self.as_user(python, tenant, &["job", name])?;
        ensure!(seen["answer"]["type"] == "io.cellbus.job.accepted.v1", "{seen}");
        for outcome in ["told", "kept"] {
            ensure!(seen[outcome]["type"] == "io.cellbus.job.succeeded.v1", "{outcome}: {seen}");
            ensure!(seen[outcome]["data"]["job_id"] == seen["answer"]["data"]["job_id"], "{outcome}: {seen}");
        }
        Ok(())
    }
}

fn shipped(name: &str) -> PathBuf {
    root().join("ops/deploy/nats").join(name)
}

fn password(user: &str) -> String {
    format!("of-{user}-in-tests")
}

/// What a server reads is what the example lists, and nothing else.
fn all_are_documented(variables: &[(String, String)]) -> Result<()> {
    let example = std::fs::read_to_string(shipped("server.env.example"))?;
    let names = example.lines().filter(|line| line.starts_with("CELLBUS_")).filter_map(|line| line.split('=').next());
    let (mut listed, mut given): (Vec<_>, Vec<_>) = (names.collect(), variables.iter().map(|(name, _)| name).collect());
    listed.sort_unstable();
    given.sort_unstable();
    ensure!(listed == given, "server.env.example lists {listed:?}, and this test gives {given:?}");
    Ok(())
}

/// Writes an authority (`<name>-ca.pem`) and a certificate of it for loopback (`<name>.pem`, `.key`).
fn pair(folder: &Path, name: &str, usages: &[ExtendedKeyUsagePurpose]) -> Result<()> {
    let mut authority = CertificateParams::new([])?;
    authority.distinguished_name.push(DnType::CommonName, format!("{name} CA"));
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, TlsKey::generate()?)?;
    let mut own = CertificateParams::new(["127.0.0.1".to_owned()])?;
    own.extended_key_usages = usages.to_vec();
    let key = TlsKey::generate()?;
    std::fs::write(folder.join(format!("{name}-ca.pem")), authority.pem())?;
    std::fs::write(folder.join(format!("{name}.pem")), own.signed_by(&key, &authority)?.pem())?;
    std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    Ok(())
}

/// What is another's, or the cluster's own: to be refused to `tenant`, of whom `other` is one more.
fn foreign(tenant: &str, other: &str) -> Vec<String> {
    let fixed = [
        "sub:>",
        "sub:cellbus.>",
        "sub:cellbus.events.*",
        "sub:cellbus.log.>",
        "sub:cellbus.queue.>",
        "sub:cellbus.jobs.>",
        "sub:$KV.>",
        "sub:_INBOX.>",
        "sub:$JS.ACK.>",
        "pub:cellbus.log.0.1",
        "pub:cellbus.queue.jobs.0.1",
        "pub:$KV.cellbus_state.cluster",
        "pub:_INBOX.x",
        "pub:$JS.API.INFO",
        "pub:$JS.API.STREAM.MSG.GET.cellbus_log_0",
        "pub:$JS.API.DIRECT.GET.KV_cellbus_state",
        "pub:$JS.API.STREAM.PURGE.cellbus_jobs",
        "pub:$JS.API.STREAM.DELETE.cellbus_events",
        "pub:$JS.API.CONSUMER.CREATE.cellbus_log_0",
        "pub:$JS.API.CONSUMER.CREATE.cellbus_log_0.mine.cellbus.log.>",
        "pub:$JS.API.CONSUMER.MSG.NEXT.cellbus_jobs.cells",
        "pub:$JS.ACK.cellbus_jobs.cells.1.1.1.1.1",
    ];
    let theirs = [
        format!("sub:cellbus.events.{other}"),
        format!("sub:cellbus.jobs.{other}"),
        format!("sub:_INBOX_{other}.>"),
        format!("pub:cellbus.jobs.{other}"),
        format!("pub:cellbus.events.{other}"),
        format!("pub:cellbus.events.{tenant}"),
        format!("pub:_INBOX_{other}.x"),
        format!("pub:$JS.API.CONSUMER.CREATE.cellbus_events.mine.cellbus.events.{other}"),
        format!("pub:$JS.API.CONSUMER.DURABLE.CREATE.cellbus_events.{other}"),
        format!("pub:$JS.API.CONSUMER.INFO.cellbus_events.{other}"),
        format!("pub:$JS.API.CONSUMER.MSG.NEXT.cellbus_events.{other}"),
        format!("pub:$JS.ACK.cellbus_events.{other}.1.1.1.1.1"),
    ];
    fixed.into_iter().map(str::to_owned).chain(theirs).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shipped_servers_keep_tenants_apart_and_lose_one_of_them() -> Result<()> {
    let Some(python) = python() else { return Ok(()) };
    if left_out() {
        return Ok(());
    }
    let mut deployed = Deployed::start().await?;
    let section = deployed.section()?;
    // The cluster keeps one of the servers; any will do.
    let first = deployed.servers.remove(0);
    let shape = Shape { managers: 2, shards: 8, ..Shape::default() };
    let cluster = Cluster::start_on(first, section, shape, 1, 1).await?;

    // Streams are as README.md sizes them, three times each.
    let streams = ["limits", "cellbus_jobs", "cellbus_log_3", "cellbus_queue_jobs_0", "cellbus_snapshots"];
    let seen = deployed.as_user(&python, "operator", &streams)?;
    let (gib, copies) = (1_u64 << 30, SERVERS);
    ensure!(seen == json!([[10 * gib, copies], [10 * gib, copies], [10 * gib, copies], [20 * gib, copies]]), "{seen}");

    // Each tenant by itself.
    deployed.as_user(&python, "operator", &["readers", "acme", "globex"])?;
    deployed.job(&python, "acme", "one")?;
    deployed.job(&python, "globex", "one")?;

    // What is another's is refused, in words, and what is one's own is not.
    for (tenant, other) in [("acme", "globex"), ("globex", "acme")] {
        let own = [format!("sub:cellbus.events.{tenant}"), format!("sub:_INBOX_{tenant}.x")];
        let all: Vec<String> = foreign(tenant, other).into_iter().chain(own.clone()).collect();
        let arguments: Vec<&str> = std::iter::once("try").chain(all.iter().map(String::as_str)).collect();
        let seen = deployed.as_user(&python, tenant, &arguments)?;
        for what in all {
            let wanted = if own.contains(&what) { "let through" } else { "refused" };
            ensure!(seen[&what] == wanted, "{tenant}, {what}: {}, not {wanted}", seen[&what]);
        }
    }
    // Nor can a tenant have the servers write for it where it may not: an acknowledgement stays in its account.
    let nowhere = ["cellbus.log.0.9999", "cellbus.queue.jobs.0.9999"];
    for subject in nowhere {
        let seen = deployed.as_user(&python, "acme", &["misuse", subject])?;
        ensure!(seen["answer"]["type"] == "io.cellbus.job.refused.v1", "{seen}");
    }
    let asked = [&["written", "cellbus.events.acme"][..], &nowhere].concat();
    let seen = deployed.as_user(&python, "operator", &asked)?;
    ensure!(seen == json!({"written": ["cellbus.events.acme"]}), "{seen}");
    // Whom the servers do not know.
    for (user, password) in [("acme", "wrong"), ("nobody", "of-acme-in-tests")] {
        let (success, text) = deployed.producer(&python, user, password, &["try", "sub:_INBOX_acme.x"])?;
        ensure!(!success && text.to_lowercase().contains("authorization violation"), "{text}");
    }

    // One server less: jobs go on, at the others.
    deployed.servers[0].kill();
    deployed.job(&python, "acme", "two")?;
    deployed.servers[0].restart();
    deployed.healthy().await?;
    deployed.job(&python, "acme", "three")?;
    cluster.ready().await?;
    // A replica whose readers were at that server begins again when it has heard nothing for 6 s.
    wait_for("the replica to have all three", Duration::from_secs(60), async || {
        let seen = cluster.directories[0].all("/v1/vms?tenant=acme").await?.len();
        Ok(if seen == 3 { Ok(()) } else { Err(format!("{seen} of 3")) })
    })
    .await?;
    cluster.audit().await
}
