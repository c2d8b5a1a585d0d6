//! What `ops/deploy/` and `ops/config/` offer: configurations that are accepted, units that systemd takes
//! and finds hardened, manifests of the right shape. (`nats_deploy` runs the servers of `ops/deploy/nats/`.)

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cellbus_tests::binary::cellbus;
use cellbus_tests::process::command;
use cellbus_tests::promql::Table;
use cellbus_tests::workspace::{all_files, files_below, root};
use serde::Deserialize as _;
use serde_json::Value;

/// Ten is exposed to everything, none to nothing.
const EXPOSURE_MAX: f64 = 2.0;
const ROLES: [&str; 3] = ["cell", "directory", "controller"];

fn accepted(path: &Path) -> Result<()> {
    let checked = command().args(["config", "check", "--config"]).arg(path).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    ensure!(checked.status.success(), "{}: {said}", path.display());
    Ok(())
}

#[test]
fn every_example_is_accepted() -> Result<()> {
    let examples = files_below(&root().join("ops/config"), "toml");
    ensure!(examples.len() >= 4, "{examples:?}");
    let page = fs::read_to_string(root().join("ops/config/README.md"))?;
    for path in &examples {
        accepted(path)?;
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
        ensure!(page.contains(&format!("[{name}]({name})")), "{name} is not on the page of examples");
    }
    // The check can fail.
    let folder = tempfile::tempdir()?;
    let wrong = folder.path().join("wrong.toml");
    fs::write(&wrong, "lisen = \"127.0.0.1:0\"\n")?;
    ensure!(accepted(&wrong).is_err(), "a key that there is not is refused");
    Ok(())
}

fn units() -> Vec<PathBuf> {
    files_below(&root().join("ops/deploy/systemd"), "service")
}

/// The unit with our binary in the place where it would be installed.
fn with_our_binary(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for unit in units() {
        let text = fs::read_to_string(&unit)?.replace("/usr/bin/cellbus", cellbus().to_str().context("UTF-8")?);
        let path = folder.join(unit.file_name().context("a name")?);
        fs::write(&path, text)?;
        written.push(path);
    }
    Ok(written)
}

#[test]
fn systemd_takes_the_units_and_finds_them_hardened() -> Result<()> {
    let there = Command::new("systemd-analyze").arg("--version").output().is_ok_and(|out| out.status.success());
    if !there {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "no systemd-analyze on this machine");
        eprintln!("LEFT OUT: no systemd-analyze on this machine");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let units = with_our_binary(folder.path())?;
    ensure!(units.len() == ROLES.len(), "{units:?}");
    let verified = Command::new("systemd-analyze").arg("verify").args(&units).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    // What it says of other units of the machine is not ours.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("cellbus")).collect();
    ensure!(ours.is_empty(), "{}", ours.join("\n"));
    for unit in &units {
        let mut analyze = Command::new("systemd-analyze");
        let out = analyze.args(["security", "--offline=true", "--no-pager"]).arg(unit).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let level = said.lines().find_map(|line| line.split("exposure level for").nth(1)?.split_whitespace().nth(1));
        let level: f64 = level.with_context(|| format!("{}: {said}", unit.display()))?.parse()?;
        ensure!(level <= EXPOSURE_MAX, "{}: exposed to {level}\n{said}", unit.display());
    }
    Ok(())
}

/// The command lines of the units are those that the binary has.
#[test]
fn units_start_what_there_is() -> Result<()> {
    for unit in units() {
        let text = fs::read_to_string(&unit)?;
        let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/cellbus "));
        let mut words = start.context("a unit starts something")?.split_whitespace();
        let role = words.next().context("a role")?;
        ensure!(ROLES.contains(&role), "{}: {role}", unit.display());
        let help = String::from_utf8(command().args([role, "--help"]).output()?.stdout)?;
        for flag in words.filter(|word| word.starts_with("--")) {
            ensure!(help.contains(flag), "{}: {role} knows no {flag}", unit.display());
        }
    }
    Ok(())
}

#[test]
fn the_image_runs_as_nobody_and_drains() -> Result<()> {
    let text = fs::read_to_string(root().join("ops/deploy/container/Containerfile"))?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let all = |word: &str| lines.iter().filter_map(|line| line.strip_prefix(word)).collect::<Vec<_>>();
    ensure!(all("FROM ").len() == 2, "one stage builds, one runs");
    ensure!(all("USER ") == ["10001:10001"], "{:?}", all("USER "));
    ensure!(all("STOPSIGNAL ") == ["SIGTERM"], "{:?}", all("STOPSIGNAL "));
    ensure!(all("ENTRYPOINT ") == ["[\"/usr/bin/cellbus\"]"], "{:?}", all("ENTRYPOINT "));
    let rust = all("FROM ")[0].split_once("rust:").and_then(|(_, rest)| rest.split('-').next()).context("rust")?;
    let wanted = fs::read_to_string(root().join("Cargo.toml"))?;
    ensure!(wanted.contains(&format!("rust-version = \"{rust}\"")), "it builds with Rust {rust}");
    Ok(())
}

/// Every document of every manifest, by kind and name.
fn manifests() -> Result<BTreeMap<(String, String), Value>> {
    let mut found = BTreeMap::new();
    for path in all_files(&root().join("ops/deploy/kubernetes")) {
        let text = fs::read_to_string(&path)?;
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let value = Value::deserialize(document).with_context(|| path.display().to_string())?;
            let word = |value: &Value| value.as_str().map(str::to_owned).with_context(|| path.display().to_string());
            let key = (word(&value["kind"])?, word(&value["metadata"]["name"])?);
            word(&value["apiVersion"])?;
            ensure!(found.insert(key.clone(), value).is_none(), "{key:?} is there twice");
        }
    }
    Ok(found)
}

#[test]
fn manifests_fit_together() -> Result<()> {
    let all = manifests()?;
    let get =
        |kind: &str, name: &str| all.get(&(kind.to_owned(), name.to_owned())).with_context(|| format!("{kind} {name}"));
    let config = get("ConfigMap", "cellbus")?["data"]["cellbus.toml"].as_str().context("a configuration")?.to_owned();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("cellbus.toml");
    fs::write(&file, &config)?;
    accepted(&file)?;
    for role in ROLES {
        let deployment = get("Deployment", &format!("cellbus-{role}"))?;
        let (spec, pod) = (&deployment["spec"], &deployment["spec"]["template"]["spec"]);
        ensure!(spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"], "{role}: the selector");
        ensure!(pod["securityContext"]["runAsNonRoot"] == true, "{role} runs as root");
        // Longer than a drain takes.
        ensure!(pod["terminationGracePeriodSeconds"].as_u64() >= Some(45), "{role} is killed while it drains");
        let container = &pod["containers"][0];
        ensure!(container["args"][0] == role, "{role}: {}", container["args"]);
        ensure!(container["securityContext"]["readOnlyRootFilesystem"] == true, "{role} may write to its image");
        ensure!(container["securityContext"]["capabilities"]["drop"][0] == "ALL", "{role} has capabilities");
        for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
            ensure!(container[probe]["httpGet"]["path"] == path, "{role}: {probe}");
        }
        let names = |list: &Value| -> BTreeSet<String> {
            list.as_array().into_iter().flatten().filter_map(|v| Some(v["name"].as_str()?.to_owned())).collect()
        };
        ensure!(names(&container["volumeMounts"]) == names(&pod["volumes"]), "{role}: mounts and volumes differ");
        // Whatever file the configuration names lies in what is mounted.
        let mounts: Vec<&str> = container["volumeMounts"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|m| m["mountPath"].as_str())
            .collect();
        for path in config.split('"').filter(|text| text.starts_with('/')) {
            ensure!(mounts.iter().any(|mount| path.starts_with(mount)), "{role}: {path} is not mounted");
        }
    }
    let service = &get("Service", "cellbus")?["spec"]["selector"];
    ensure!(
        *service == get("Deployment", "cellbus-directory")?["spec"]["selector"]["matchLabels"],
        "the service finds directories"
    );
    Ok(())
}

/// KEDA has cells as many as the metric says, which exists; and nothing else says how many there are.
#[test]
fn keda_follows_the_controller() -> Result<()> {
    let all = manifests()?;
    let get = |kind: &str| all.get(&(kind.to_owned(), "cellbus-cell".to_owned())).context("cellbus-cell");
    let (scaled, cells) = (&get("ScaledObject")?["spec"], &get("Deployment")?["spec"]);
    ensure!(scaled["scaleTargetRef"]["name"] == "cellbus-cell", "{scaled}");
    ensure!(cells["replicas"].is_null(), "the manifest would undo what KEDA does");
    let trigger = &scaled["triggers"][0];
    ensure!(trigger["type"] == "prometheus" && trigger["metricType"] == "AverageValue", "{trigger}");
    ensure!(trigger["metadata"]["threshold"] == "1", "a cell for each that is wanted");
    let query = trigger["metadata"]["query"].as_str().context("a query")?;
    let strangers = Table::read().strangers(query, &BTreeSet::new());
    ensure!(strangers.is_empty(), "{query}: {strangers:?}");
    let config =
        all[&("ConfigMap".to_owned(), "cellbus".to_owned())]["data"]["cellbus.toml"].as_str().context("a text")?;
    let parsed: toml::Table = config.parse()?;
    let bound = |key: &str| parsed["scale"][key].as_integer().context("a number");
    ensure!(scaled["minReplicaCount"].as_i64() <= Some(bound("min")?), "KEDA's least is above the controller's");
    ensure!(scaled["maxReplicaCount"].as_i64() >= Some(bound("max")?), "KEDA's most is below the controller's");
    Ok(())
}

/// The controller may do what its launcher does, with the Deployment that it is told, and nothing else.
#[test]
fn the_controller_may_scale_the_cells_and_no_more() -> Result<()> {
    let all = manifests()?;
    let get =
        |kind: &str, name: &str| all.get(&(kind.to_owned(), name.to_owned())).with_context(|| format!("{kind} {name}"));
    let config = get("ConfigMap", "cellbus")?["data"]["cellbus.toml"].as_str().context("a text")?.to_owned();
    let scale = config.parse::<toml::Table>()?["scale"].clone();
    ensure!(scale["launcher"].as_str() == Some("kubernetes"), "{scale}");
    let target = scale["kubernetes"]["deployment"].as_str().context("a Deployment")?;
    get("Deployment", target)?;
    let pod = &get("Deployment", "cellbus-controller")?["spec"]["template"]["spec"];
    let account = pod["serviceAccountName"].as_str().context("a service account")?;
    get("ServiceAccount", account)?;
    ensure!(pod["automountServiceAccountToken"] == true, "without its token it is nobody");
    for role in ["cell", "directory"] {
        let pod = &get("Deployment", &format!("cellbus-{role}"))?["spec"]["template"]["spec"];
        ensure!(pod["serviceAccountName"].is_null() && pod["automountServiceAccountToken"] == false, "{role}");
    }
    let binding = all.values().find(|value| value["kind"] == "RoleBinding").context("a binding")?;
    ensure!(binding["subjects"] == serde_json::json!([{"kind": "ServiceAccount", "name": account}]), "{binding}");
    let role = get("Role", binding["roleRef"]["name"].as_str().context("a role")?)?;
    let wanted = serde_json::json!([
        {"apiGroups": ["apps"], "resources": ["deployments/scale"], "resourceNames": [target], "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "patch"]},
    ]);
    ensure!(role["rules"] == wanted, "{}", role["rules"]);
    ensure!(!all.keys().any(|(kind, _)| kind.starts_with("ClusterRole")), "one namespace is enough");
    let image = fs::read_to_string(root().join("ops/deploy/container/Containerfile"))?;
    ensure!(image.contains("-p cellbus --features kubernetes"), "the image has no launcher for it");
    Ok(())
}
