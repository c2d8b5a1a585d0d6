//! The rules of `ops/alerts/`: what promtool says of them, that what they name exists, that each has its
//! page; and Prometheus and Alertmanager themselves, over a node that loses a manager, and a cluster where one was paused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cellbus_bus::nats::testing::left_out;
use cellbus_tests::cluster::{Cluster, Shape};
use cellbus_tests::process::{Server, event, wait_for};
use cellbus_tests::prometheus::{Tool, Webhook, promtool, tools};
use cellbus_tests::promql::Table;
use cellbus_tests::workspace::{files_below, root};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(120);

fn rule_files() -> Vec<PathBuf> {
    let folder = root().join("ops/alerts");
    files_below(&folder, "yml").into_iter().filter(|path| path.parent() == Some(folder.as_path())).collect()
}

/// One rule.
#[derive(Debug)]
struct Rule {
    record: Option<String>,
    alert: Option<String>,
    expr: String,
    severity: Option<String>,
    runbook: Option<String>,
}

fn rules(text: &str) -> Result<Vec<Rule>> {
    let file: Value = serde_yaml_ng::from_str(text)?;
    let groups = file["groups"].as_array().context("a file of rules has groups")?;
    let all = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten());
    let text = |value: &Value| value.as_str().map(str::to_owned);
    all.map(|rule| {
        Ok(Rule {
            record: text(&rule["record"]),
            alert: text(&rule["alert"]),
            expr: text(&rule["expr"]).context("a rule has an expression")?,
            severity: text(&rule["labels"]["severity"]),
            runbook: text(&rule["annotations"]["runbook_url"]),
        })
    })
    .collect()
}

fn every_rule() -> Result<Vec<Rule>> {
    let mut all = Vec::new();
    for path in rule_files() {
        all.extend(rules(&fs::read_to_string(path)?)?);
    }
    Ok(all)
}

#[test]
fn rules_are_rules_and_pass_their_tests() -> Result<()> {
    let Some(folder) = tools() else { return Ok(()) };
    for path in rule_files() {
        let text = path.to_str().context("paths of tests are UTF-8")?;
        let checked = promtool(&folder, &["check", "rules", text])?;
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        ensure!(checked.status.success(), "{said}\n{}", String::from_utf8_lossy(&checked.stderr));
        let found = rules(&fs::read_to_string(&path)?)?.len();
        ensure!(said.contains(&format!("SUCCESS: {found} rules found")), "{found} rules were read here: {said}");
    }
    let tests = files_below(&root().join("ops/alerts/tests"), "yml");
    ensure!(tests.len() == rule_files().len(), "one file of tests for each of rules");
    for path in &tests {
        let tested = promtool(&folder, &["test", "rules", path.to_str().context("UTF-8")?])?;
        let (out, err) = (String::from_utf8_lossy(&tested.stdout), String::from_utf8_lossy(&tested.stderr));
        ensure!(tested.status.success(), "{out}\n{err}");
    }
    Ok(())
}

/// An alert that no test makes fire might never, and one that no test finds silent might always.
#[test]
fn every_alert_is_seen_to_fire_and_to_be_silent() -> Result<()> {
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for path in files_below(&root().join("ops/alerts/tests"), "yml") {
        let file: Value = serde_yaml_ng::from_str(&fs::read_to_string(path)?)?;
        let tests = file["tests"].as_array().context("a file of tests has tests")?;
        for test in tests.iter().flat_map(|test| test["alert_rule_test"].as_array().into_iter().flatten()) {
            let name = test["alertname"].as_str().context("a test names an alert")?.to_owned();
            match test["exp_alerts"].as_array().map_or(0, Vec::len) {
                0 => silent.insert(name),
                _ => fires.insert(name),
            };
        }
    }
    for rule in every_rule()? {
        let Some(alert) = rule.alert else { continue };
        ensure!(fires.contains(&alert), "{alert} fires in no test");
        ensure!(silent.contains(&alert), "{alert} is silent in no test");
    }
    Ok(())
}

#[test]
fn what_rules_name_exists() -> Result<()> {
    let (table, all) = (Table::read(), every_rule()?);
    let recorded: BTreeSet<String> = all.iter().filter_map(|rule| rule.record.clone()).collect();
    let mut wrong = Vec::new();
    for rule in &all {
        let name = rule.alert.as_ref().or(rule.record.as_ref()).context("a rule has a name")?;
        ensure!(!rule.expr.is_empty(), "{name} has no expression");
        wrong.extend(table.strangers(&rule.expr, &recorded).into_iter().map(|what| format!("{name}: {what}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn every_alert_has_its_page_and_every_page_its_alert() -> Result<()> {
    let mut alerts = BTreeSet::new();
    for rule in every_rule()? {
        let Some(alert) = rule.alert else { continue };
        let page = format!("ops/docs/runbooks/{alert}.md");
        ensure!(rule.runbook.as_deref() == Some(page.as_str()), "{alert}: runbook_url is {:?}", rule.runbook);
        ensure!(matches!(rule.severity.as_deref(), Some("page" | "ticket")), "{alert}: severity {:?}", rule.severity);
        let text = fs::read_to_string(root().join(&page)).with_context(|| page.clone())?;
        ensure!(text.starts_with(&format!("# {alert}\n\n**What it means.** ")), "{page} begins with what it means");
        for part in ["\n**What to look at.**\n```\n", "\n**What to do.**\n- "] {
            ensure!(text.contains(part), "{page} has no part {part:?}");
        }
        alerts.insert(alert);
    }
    let pages: BTreeSet<String> = files_below(&root().join("ops/docs/runbooks"), "md")
        .iter()
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        // The others are of what an operator does, not of what calls one.
        .filter(|page| page.starts_with("Cellbus"))
        .collect();
    ensure!(alerts == pages, "alerts and pages differ: {:?}", alerts.symmetric_difference(&pages).collect::<Vec<_>>());
    Ok(())
}

/// A node with one manager in a process of its own.
struct Rig {
    folder: tempfile::TempDir,
    managers: Option<Server>,
    up: Server,
}

impl Rig {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("managers");
        let managers =
            ["sim-managers", "--listen", "127.0.0.1:0", "--managers", "2", "--hosts-per-manager", "4", "--latency"];
        let more = ["none", "--data", data.to_str().context("UTF-8")?];
        let managers = Server::spawn(&folder.path().join("sim-managers"), &[&managers[..], &more[..]].concat())?;
        let config = folder.path().join("cellbus.toml");
        // One of the two: the other is this process's own, and stays well.
        fs::write(&config, format!("[[managers]]\nname = \"sim-0001\"\naddress = \"{}\"\n", managers.url))?;
        let config = config.to_str().context("UTF-8")?;
        let own = ["--config", config, "--cells", "2", "--managers", "1", "--hosts", "4"];
        let up = Server::start(&folder.path().join("data"), &own).await?;
        Ok(Self { folder, managers: Some(managers), up })
    }
}

/// Everything in a process's metrics is in the table, with these labels; how many series there are.
fn documented(text: &str) -> Result<usize> {
    let table = Table::read();
    let mut shown = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').context("a series has a value")?.0;
        let (metric, labels) = series.split_once('{').unwrap_or((series, ""));
        let has = table.labels(metric).with_context(|| format!("{metric} is not in ops/docs/metrics.md"))?;
        let labels: BTreeSet<String> =
            labels.split("\",").filter_map(|part| Some(part.split_once("=\"")?.0.to_owned())).collect();
        ensure!(labels == *has, "{line}: {labels:?}, {has:?}");
        shown += 1;
    }
    Ok(shown)
}

fn has_lines(text: &str, wanted: &[&str]) -> Result<()> {
    let lines: BTreeSet<&str> = text.lines().collect();
    for line in wanted {
        ensure!(lines.contains(line), "{line} is missing in\n{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_shows_is_documented_and_true() -> Result<()> {
    let rig = Rig::start().await?;
    let job = json!({"name": "web", "count": 3, "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "debian-12"});
    let id = rig.up.submit(&event("provision", "one", None, &job)).await?.body["job_id"]
        .as_str()
        .context("an id")?
        .to_owned();
    rig.up.succeed(&["job", "wait", &id])?;
    let text = rig.up.text("/metrics").await?;
    let shown = documented(&text)?;
    ensure!(shown > 500, "{shown} series");
    has_lines(
        &text,
        &[
            "cellbus_manager_up{manager=\"sim-0001\"} 1",
            "cellbus_manager_capacity{manager=\"sim-0001\",resource=\"vcpus\"} 256",
            "cellbus_shards{state=\"open\"} 256",
            "cellbus_shard_openings_total{from=\"nobody\"} 256",
            "cellbus_cluster_read_failed{what=\"queue\"} 0",
            "cellbus_cells 2",
            "cellbus_jobs_accepted_total{type=\"provision\"} 1",
            "cellbus_jobs_ended_total{state=\"succeeded\",type=\"provision\"} 1",
            "cellbus_job_seconds_count{type=\"provision\"} 1",
            "cellbus_job_start_seconds_count 3",
            "cellbus_step_seconds_count{step=\"create\"} 3",
            "cellbus_directory_vms{state=\"running\"} 3",
        ],
    )
}

/// Of a cluster on NATS: each manager once, streams from every process.
#[tokio::test(flavor = "multi_thread")]
async fn processes_of_a_cluster_share_what_they_show() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let cluster = Cluster::start(Shape { shards: 8, ..Shape::default() }, 2, 1).await?;
    cluster.settled().await?;
    let mut managers = Vec::new();
    for server in cluster.servers() {
        let text = server.text("/metrics").await?;
        documented(&text)?;
        has_lines(
            &text,
            &[
                "cellbus_cells 2",
                "cellbus_shards{state=\"open\"} 8",
                "cellbus_bus_stream_max_bytes{stream=\"log_0\"} 0",
            ],
        )?;
        let up = text.lines().filter_map(|line| line.strip_prefix("cellbus_manager_up{manager=\"")?.split('"').next());
        managers.extend(up.map(str::to_owned));
    }
    managers.sort();
    let all: Vec<String> = (0..6).map(|n| format!("sim-{n:04}")).collect();
    ensure!(managers == all, "{managers:?}");
    Ok(())
}

/// Our rules, faster: what is awaited for minutes is awaited for two seconds.
fn fast_rules(into: &Path) -> Result<()> {
    for path in rule_files() {
        let text = fs::read_to_string(&path)?;
        let text: String = text
            .lines()
            .map(|line| match line.split_once("for: ") {
                Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 2s\n"),
                Some(_) | None => format!("{line}\n"),
            })
            .collect();
        fs::write(into.join(path.file_name().context("a file has a name")?), text)?;
    }
    Ok(())
}

/// Prometheus over these processes, with our rules, and an Alertmanager that tells a webhook.
struct Watch {
    webhook: Webhook,
    prometheus: Tool,
    _alertmanager: Tool,
}

impl Watch {
    /// It begins to look, with its files in `folder`.
    async fn start(tools: &Path, folder: &Path, servers: &[&Server]) -> Result<Self> {
        let webhook = Webhook::start()?;
        let path = |name: &str| folder.join(name).to_str().map(str::to_owned).context("paths of tests are UTF-8");
        let fast = folder.join("rules");
        fs::create_dir(&fast)?;
        fast_rules(&fast)?;
        let config = path("alertmanager.yml")?;
        let route = "route: {receiver: us, group_by: [alertname, manager], group_wait: 0s, group_interval: 1s}";
        fs::write(
            &config,
            format!("{route}\nreceivers: [{{name: us, webhook_configs: [{{url: \"{}\"}}]}}]\n", webhook.url),
        )?;
        let (file, data) = (format!("--config.file={config}"), format!("--storage.path={}", path("alertmanager")?));
        let arguments = [file.as_str(), &data, "--cluster.listen-address="];
        let alertmanager =
            Tool::start(&tools.join("alertmanager"), &arguments, folder.join("alertmanager.log")).await?;

        let config = path("prometheus.yml")?;
        let targets: Option<Vec<&str>> = servers.iter().map(|server| server.url.strip_prefix("http://")).collect();
        let yaml = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [\"{}/*.yml\"]\n\
             alerting: {{alertmanagers: [{{static_configs: [{{targets: [\"{}\"]}}]}}]}}\n\
             scrape_configs: [{{job_name: cellbus, static_configs: [{{targets: {:?}}}]}}]\n",
            fast.display(),
            alertmanager.address,
            targets.context("addresses")?,
        );
        fs::write(&config, yaml)?;
        let (file, data) = (format!("--config.file={config}"), format!("--storage.tsdb.path={}", path("prometheus")?));
        let log = folder.join("prometheus.log");
        let prometheus = Tool::start(&tools.join("prometheus"), &[&file, &data], log).await?;
        let watch = Self { webhook, prometheus, _alertmanager: alertmanager };
        watch.every_rule_is_evaluated().await?;
        Ok(watch)
    }

    async fn every_rule_is_evaluated(&self) -> Result<()> {
        wait_for("every rule to be evaluated", WAIT, async || {
            let answer = self.prometheus.get("/api/v1/rules").await?;
            let health = health(&answer);
            let all = every_rule()?.len();
            Ok(if health.get("ok") == Some(&all) { Ok(()) } else { Err(format!("{health:?} of {all}: {answer}")) })
        })
        .await
    }

    /// What the webhook was told of this alert with this status.
    fn told(&self, alert: &str, status: &str) -> Vec<Value> {
        let mut alerts = self.webhook.alerts();
        alerts.retain(|told| told["labels"]["alertname"] == alert && told["status"] == status);
        alerts
    }

    /// The first time that it is told.
    async fn hears(&self, alert: &str, status: &str) -> Result<Value> {
        wait_for("the alert at the webhook", WAIT, async || {
            let told = self.told(alert, status).first().cloned();
            Ok(told.ok_or_else(|| format!("{:?}", self.webhook.alerts())))
        })
        .await
    }
}

/// A manager's process is killed: the alert comes to the webhook with its page. The manager is
/// cordoned, as before maintenance: the alert ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_manager_is_heard_of_and_a_cordon_silences_it() -> Result<()> {
    const ALERT: &str = "CellbusManagerDown";
    let Some(folder) = tools() else { return Ok(()) };
    let mut rig = Rig::start().await?;
    let watch = Watch::start(&folder, rig.folder.path(), &[&rig.up]).await?;
    ensure!(watch.told(ALERT, "firing").is_empty(), "it fires while the manager is well");

    rig.managers.take().context("the managers run")?.kill()?;
    let alert = watch.hears(ALERT, "firing").await.with_context(|| rig.up.log_tail())?;
    assert_eq!(alert["labels"]["manager"], "sim-0001");
    assert_eq!(alert["labels"]["severity"], "page");
    assert_eq!(alert["annotations"]["runbook_url"], "ops/docs/runbooks/CellbusManagerDown.md");
    ensure!(
        alert["annotations"]["summary"].as_str().is_some_and(|text| text.starts_with("Manager sim-0001 ")),
        "{alert}"
    );

    rig.up.succeed(&["managers", "cordon", "sim-0001"])?;
    watch.hears(ALERT, "resolved").await?;
    // It ended as the manager is in maintenance, not as it is well.
    let text = rig.up.text("/metrics").await?;
    has_lines(
        &text,
        &["cellbus_manager_up{manager=\"sim-0001\"} 0", "cellbus_manager_cordoned{manager=\"sim-0001\"} 1"],
    )
}

/// One manager of a cluster of processes is paused and forgotten: that is heard of, once for all of them,
/// and not any more when it is resumed.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_one_manager_that_was_forgotten_is_heard_of() -> Result<()> {
    const ALERT: &str = "CellbusPaused";
    let Some(folder) = tools() else { return Ok(()) };
    if left_out() {
        return Ok(());
    }
    let cluster = Cluster::start(Shape { shards: 8, ..Shape::default() }, 2, 1).await?;
    cluster.settled().await?;
    let servers: Vec<&Server> = cluster.servers().collect();
    let watch = Watch::start(&folder, cluster.folder(), &servers).await?;
    ensure!(watch.told(ALERT, "firing").is_empty(), "it fires while nothing is paused");

    // Ordered at one process, read at the others too.
    cluster.cells[1].succeed(&["pause", "--manager", "sim-0003", "--reason", "its storage is ill"])?;
    let alert = watch.hears(ALERT, "firing").await.with_context(|| cluster.cells[0].log_tail())?;
    assert_eq!((&alert["labels"]["at"], &alert["labels"]["work"]), (&json!("manager"), &json!("all")));
    assert_eq!(alert["labels"]["severity"], "ticket");
    assert_eq!(alert["annotations"]["runbook_url"], "ops/docs/runbooks/CellbusPaused.md");
    ensure!(alert["annotations"]["summary"].as_str().is_some_and(|text| text.starts_with("1 pauses of all work")));
    ensure!(watch.told("CellbusPausesUnknown", "firing").is_empty(), "somebody does not know what is paused");
    let fires: BTreeSet<String> = watch.told(ALERT, "firing").iter().map(|told| told["labels"].to_string()).collect();
    ensure!(fires.len() == 1, "it is told for each process: {fires:?}");

    cluster.directories[0].succeed(&["resume", "--manager", "sim-0003"])?;
    watch.hears(ALERT, "resolved").await?;
    Ok(())
}

/// How many rules are of which health.
fn health(answer: &Value) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for group in answer["data"]["groups"].as_array().into_iter().flatten() {
        for rule in group["rules"].as_array().into_iter().flatten() {
            *counts.entry(rule["health"].as_str().unwrap_or("none").to_owned()).or_default() += 1;
        }
    }
    counts
}
