//! The whole path through the real binary: `cellbus up`, jobs in, VMs on hosts, look-ups, audit.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cellbus_tests::process::{Server, event, wait_for};
use serde_json::{Value, json};

const SMALL: &[&str] = &["--cells", "2", "--hosts", "40", "--managers", "4", "--latency", "none"];

fn provision(name: &str, count: u32) -> Value {
    json!({"name": name, "count": count, "vcpus": 2, "memory_mib": 2048, "disk_gib": 10, "image": "debian-12",
           "labels": {"app": name}})
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not one JSON value ({error}): {text}"))
}

#[tokio::test]
async fn jobs_make_vms_that_are_listed_located_and_operated() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let server = Server::start(&data, SMALL).await?;

    // From a file, one event a line, and until they have ended.
    let file = folder.path().join("jobs.jsonl");
    let events = [
        event("provision", "one", None, &provision("one", 1)),
        event("provision", "many", None, &provision("web", 12)),
    ];
    std::fs::write(&file, events.map(|event| event.to_string()).join("\n"))?;
    let file = file.to_str().expect("temporary paths are UTF-8");
    let printed = server.succeed(&["submit", file, "--wait", "--output", "json"])?;
    let ended: Vec<Value> = printed.lines().map(parsed).collect();
    assert_eq!(ended.len(), 2);
    assert!(ended.iter().all(|job| job["state"] == "succeeded"), "{printed}");

    // The same again: the same jobs, and no new VMs.
    let again = server.succeed(&["submit", file, "--wait", "--output", "json"])?;
    let ids = |text: &str| {
        text.lines()
            .map(|line| parsed(line)["job_id"].as_str().expect("a job has an id").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&printed), ids(&again));
    let vms = server.all("/v1/vms?tenant=acme").await?;
    assert_eq!(vms.len(), 13);
    assert!(vms.iter().all(|vm| vm["state"] == "running" && vm["as_of"].is_string()), "{vms:?}");

    // The same key with other data is refused.
    let conflict = server.submit(&event("provision", "one", None, &provision("two", 1))).await?;
    assert_eq!((conflict.status, conflict.body["code"].as_str()), (409, Some("job_conflict")));

    // By name, by id, one and many.
    let shown = parsed(&server.succeed(&["vm", "show", "one", "--tenant", "acme", "--output", "json"])?);
    let id = shown["id"].as_str().expect("a VM has an id");
    let place = parsed(&server.succeed(&["vm", "locate", id, "--output", "json"])?);
    for part in ["vm", "manager", "host", "shard", "cell", "address", "epoch", "as_of"] {
        assert!(!place[part].is_null(), "{part} is missing in {place}");
    }
    let every: Vec<&str> = vms.iter().filter_map(|vm| vm["id"].as_str()).collect();
    let places = server.post("/v1/locate", &json!(every)).await?;
    assert_eq!(places.status, 200);
    let live = parsed(&server.succeed(&["vm", "live", id, "--output", "json"])?);
    assert_eq!(live["vm"], id, "{live}");

    // Operations, in the order accepted.
    for step in [&["stop"][..], &["resize", "--vcpus", "4"], &["start"], &["suspend"], &["resume"]] {
        let mut command = vec!["vm"];
        command.extend(step);
        command.extend([id, "--wait"]);
        server.succeed(&command)?;
    }
    server.succeed(&["vm", "snapshot", id, "--snapshot", "before", "--wait"])?;
    server.succeed(&["vm", "revert", id, "--snapshot", "before", "--wait"])?;
    server.succeed(&["vm", "snapshot-delete", id, "--snapshot", "before", "--wait"])?;
    let failed = server.run(&["vm", "revert", id, "--snapshot", "before", "--wait"])?;
    assert_eq!(failed.status.code(), Some(1));
    let shown = parsed(&server.succeed(&["vm", "show", id, "--output", "json"])?);
    assert_eq!(shown["state"], "running");

    // To another manager.
    let managers = server.all("/v1/managers").await?;
    let target = managers
        .iter()
        .filter_map(|manager| manager["name"].as_str())
        .find(|name| place["manager_name"] != *name && place["manager"] != *name)
        .expect("there are four managers");
    server.succeed(&["vm", "migrate", id, "--manager", target, "--wait"])?;
    let moved = parsed(&server.succeed(&["vm", "locate", id, "--output", "json"])?);
    assert_ne!(moved["manager"], place["manager"]);

    // Many by label, with the count to confirm.
    assert_eq!(server.run(&["vm", "stop", "--label", "app=web"])?.status.code(), Some(2));
    server.succeed(&["vm", "stop", "--label", "app=web", "--confirm", "12", "--wait"])?;
    assert_eq!(server.all("/v1/vms?tenant=acme&state=stopped").await?.len(), 12);
    server.succeed(&["vm", "delete", "--label", "app=web", "--confirm", "12", "--wait"])?;
    assert_eq!(server.all("/v1/vms?tenant=acme").await?.len(), 1);
    assert_eq!(server.all("/v1/vms?tenant=acme&state=deleted").await?.len(), 12);

    server.succeed(&["audit"])?;
    for look in ["cells", "shards", "managers", "hosts", "queue"] {
        assert!(!server.succeed(&[look])?.is_empty());
        parsed(&server.succeed(&[look, "--output", "json"])?);
    }
    let metrics = server.text("/metrics").await?;
    for (name, least) in [
        ("cellbus_bus_messages_total", 100.0),
        ("cellbus_bus_syncs_total", 1.0),
        ("cellbus_bus_segments", 1.0),
        ("cellbus_bus_segment_bytes", 1.0),
        ("cellbus_bus_live_bytes", 1.0),
        ("cellbus_bus_free_bytes", 1.0),
    ] {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        assert!(line >= Some(least), "{name}: {line:?}\n{metrics}");
    }
    for explained in [["vm", "explain", id], ["job", "explain", id]] {
        server.succeed(&explained)?;
    }

    // It drains, ends with 0, and finds everything again, its managers included.
    assert_eq!(server.terminate(Duration::from_secs(30)).await?.code(), Some(0));
    let server = Server::start(&data, &["--cells", "1"]).await?;
    assert_eq!(server.all("/v1/hosts").await?.len(), 40);
    let shown = parsed(&server.succeed(&["vm", "show", id, "--output", "json"])?);
    assert_eq!(shown["state"], "running");
    server.succeed(&["audit"])?;
    Ok(())
}

#[tokio::test]
async fn cordons_keep_vms_off_and_are_kept() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let arguments = ["--cells", "2", "--hosts", "6", "--managers", "2", "--latency", "none"];
    let server = Server::start(&data, &arguments).await?;
    let managers = server.all("/v1/managers").await?;
    let name = |index: usize| managers[index]["name"].as_str().expect("a manager has a name").to_owned();
    server.succeed(&["managers", "cordon", &name(0)])?;
    wait_for("the cordon to be seen", Duration::from_secs(20), async || {
        let rows = server.all("/v1/managers").await?;
        Ok(if rows[0]["cordoned"] == true { Ok(()) } else { Err(rows[0].to_string()) })
    })
    .await?;
    server.succeed(&["vm", "provision", "web", "--tenant", "acme", "--count", "8", "--wait"])?;
    let vms = server.all("/v1/vms?tenant=acme").await?;
    assert!(vms.iter().all(|vm| vm["manager"] == managers[1]["id"] || vm["manager_name"] == name(1)), "{vms:?}");

    server.terminate(Duration::from_secs(30)).await?;
    let server = Server::start(&data, &arguments).await?;
    let rows = server.all("/v1/managers").await?;
    assert_eq!((&rows[0]["cordoned"], &rows[1]["cordoned"]), (&json!(true), &json!(false)));
    server.succeed(&["managers", "uncordon", &name(0)])?;
    Ok(())
}

#[tokio::test]
async fn a_pipe_whose_reader_has_gone_ends_a_command_quietly() -> Result<()> {
    use std::process::Stdio;
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), SMALL).await?;
    let mut child = cellbus_tests::process::command()
        .args(["shards", "--server", &server.url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(child.stdout.take());
    let done = child.wait_with_output()?;
    assert_eq!((done.status.code(), String::from_utf8_lossy(&done.stderr).as_ref()), (Some(0), ""));
    Ok(())
}

/// What a script reads of a demo: one JSON object on standard output, and nothing else there.
#[test]
fn a_small_demo_keeps_every_promise() -> Result<()> {
    let done = cellbus_tests::process::command()
        .args(["demo", "--hosts", "60", "--managers", "6", "--vms", "300", "--cells", "3", "--latency", "none"])
        .args(["--output", "json"])
        .output()?;
    let (out, err) = (String::from_utf8(done.stdout)?, String::from_utf8_lossy(&done.stderr).into_owned());
    assert_eq!(done.status.code(), Some(0), "{out}\n{err}");
    let report = parsed(&out);
    assert_eq!(out.lines().count(), 1, "{out}");
    for (field, value) in [
        ("hosts", 60),
        ("managers", 6),
        ("jobs_failed", 0),
        ("vms_created", 300),
        ("duplicates", 0),
        ("lost", 0),
        ("directory_entries", 300),
        ("directory_mismatches", 0),
    ] {
        assert_eq!(report[field], value, "{field}: {report}");
    }
    assert!(report["jobs_submitted"].as_u64() >= Some(300), "{report}");
    assert!(err.contains("killed cell-"), "no cell was killed: {err}");
    Ok(())
}

/// A trace over HTTP: every create and delete, in order, none failed, audit clean.
#[tokio::test]
async fn a_trace_is_played_to_its_end() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (hosts, trace) = (folder.path().join("hosts.csv"), folder.path().join("trace.csv"));
    let mut rows = "sn,cpu_milli,memory_mib,gpu,model\n".to_owned();
    (0..20).for_each(|n| rows.push_str(&format!("node-{n},32000,131072,0,{}\n", if n % 2 == 0 { "T4" } else { "" })));
    std::fs::write(&hosts, rows)?;
    let mut rows = "name,cpu_milli,memory_mib,creation_time,deletion_time\n".to_owned();
    (0..200).for_each(|n| {
        let deleted = if n % 4 == 0 { String::new() } else { (n * 10 + 55).to_string() };
        rows.push_str(&format!("pod-{n},{},{},{},{deleted}\n", 500 + n * 10, n % 7 * 100, n * 10));
    });
    std::fs::write(&trace, rows)?;
    let path = |path: &std::path::Path| path.to_str().expect("temporary paths are UTF-8").to_owned();
    let arguments = ["--inventory", &path(&hosts), "--managers", "4", "--cells", "2", "--latency", "none"];
    let server = Server::start(&folder.path().join("data"), &arguments).await?;
    let printed = server.succeed(&["load", "--trace", &path(&trace), "--speedup", "max", "--output", "json"])?;
    let report = parsed(&printed);
    assert_eq!((&report["vms_created"], &report["vms_deleted"]), (&json!(200), &json!(150)), "{report}");
    assert_eq!((&report["jobs_failed"], &report["directory_mismatches"]), (&json!(0), &json!(0)), "{report}");
    assert_eq!((&report["cells_peak"], &report["hosts"]), (&json!(2), &json!(20)), "{report}");
    assert!(report["rss_mib"].as_u64() > Some(0), "{report}");
    Ok(())
}

/// Load at a rate leaves a page and a recording, and two recordings are compared.
#[tokio::test]
async fn load_is_recorded_and_compared() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let arguments = ["--hosts", "40", "--managers", "2", "--cells", "2", "--latency", "none"];
    let server = Server::start(&folder.path().join("data"), &arguments).await?;
    let path = |name: &str| folder.path().join(name).to_str().expect("temporary paths are UTF-8").to_owned();
    let load = ["load", "--rate", "20", "--shape", "burst", "--peak", "80", "--period", "1s", "--duration", "2s"];
    let more = ["--arrivals", "poisson", "--tenants", "big=3,small=1", "--output", "json", "--json"];
    let mut reports = Vec::new();
    for name in ["a", "b"] {
        let (recording, page) = (path(&format!("{name}.json")), path(&format!("{name}.html")));
        let arguments = [&load[..], &more[..], &[&recording, "--report", &page]].concat();
        let printed = parsed(&server.succeed(&arguments)?);
        assert_eq!((&printed["jobs_failed"], &printed["lost"]), (&json!(0), &json!(0)), "{printed}");
        assert!(
            printed["by_tenant"]["big"]["succeeded"].as_u64() > printed["by_tenant"]["small"]["succeeded"].as_u64()
        );
        let written = parsed(&std::fs::read_to_string(&recording)?);
        assert_eq!(written["jobs_submitted"], printed["jobs_submitted"]);
        let due = |moment: &Value| moment["due"].as_u64().expect("a count");
        let moments = written["series"]["moments"].as_array().expect("a series has moments");
        assert_eq!(Some(moments.iter().map(due).sum::<u64>()), printed["jobs_submitted"].as_u64());
        assert!(
            written["about"]["versions"]["server"].is_string() && moments[1]["own_rss_mib"].is_number(),
            "{written}"
        );
        let page = std::fs::read_to_string(&page)?;
        assert!(page.contains("Arrivals and completions") && page.contains("</html>"));
        reports.push(recording);
    }
    let compared = server.succeed(&["load", "--compare", &reports[0], &reports[1], "--output", "json"])?;
    let compared = parsed(&compared);
    // Two seconds are too few to tell a spread from.
    assert_eq!((&compared["rows"][0]["verdict"], &compared["differences"]), (&json!("unknown"), &json!([])));
    // A busy machine may add that the harness was late.
    let warnings = compared["warnings"].as_array().context("a list")?;
    let short =
        warnings.iter().filter(|warning| warning.as_str().is_some_and(|text| text.contains("fewer than 10 moments")));
    assert_eq!(short.count(), 2, "{compared}");
    Ok(())
}

/// Managers that another process serves, as the configuration says.
#[tokio::test]
async fn managers_of_another_process() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let managers = Server::spawn(
        &folder.path().join("managers"),
        &[
            "sim-managers",
            "--listen",
            "127.0.0.1:0",
            "--managers",
            "2",
            "--hosts-per-manager",
            "5",
            "--latency",
            "none",
        ],
    )?;
    let config = folder.path().join("cellbus.toml");
    let entry = |name: &str| format!("[[managers]]\nname = \"{name}\"\naddress = \"{}\"\n\n", managers.url);
    std::fs::write(&config, entry("sim-0000") + &entry("sim-0001"))?;
    let config = config.to_str().expect("temporary paths are UTF-8");
    let data = folder.path().join("data");
    let server = Server::start(&data, &["--config", config, "--cells", "2"]).await?;
    server.succeed(&["vm", "provision", "web", "--tenant", "acme", "--count", "6", "--wait"])?;
    assert_eq!(server.all("/v1/vms?tenant=acme").await?.len(), 6);
    server.succeed(&["audit"])?;
    assert_eq!(server.all("/v1/hosts").await?.len(), 10);
    assert_eq!(server.terminate(Duration::from_secs(30)).await?.code(), Some(0));
    // The managers have gone on, and hold what they held.
    let status = managers.get("/sim/v1/status").await?;
    assert_eq!(status.body["vms"], 6, "{status:?}");
    assert_eq!(managers.terminate(Duration::from_secs(10)).await?.code(), Some(0));
    Ok(())
}

/// The level changes while it runs, and logs are JSON, one object a line.
#[tokio::test]
async fn logs_are_structured_and_their_level_changes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let arguments = ["--cells", "2", "--hosts", "4", "--managers", "1", "--latency", "none", "--log-format", "json"];
    let server = Server::start(&folder.path().join("data"), &arguments).await?;
    assert_eq!(server.get("/v1/log").await?.body["level"], "info");
    assert_eq!(server.put("/v1/log", &json!({"level": "nonsense=what"})).await?.status, 400);
    assert_eq!(server.put("/v1/log", &json!({"level": "debug"})).await?.status, 200);
    // A cell that leaves is worth a line of level debug, from whoever takes its shards.
    let cells = server.get("/v1/cells").await?;
    server.succeed(&["cells", "drain", cells.body["items"][0]["id"].as_str().expect("a cell has an id")])?;
    wait_for("a line of level debug", Duration::from_secs(10), async || {
        let lines: Vec<Value> = server.log().lines().map(parsed).collect();
        Ok(if lines.iter().any(|line| line["level"] == "DEBUG") {
            Ok(())
        } else {
            Err(format!("{} lines", lines.len()))
        })
    })
    .await?;
    // Who changed it is kept.
    let changes = server.all("/v1/changes").await?;
    assert!(
        changes.iter().any(|change| change["what"].as_str().is_some_and(|what| what.contains("log level"))),
        "{changes:?}"
    );
    Ok(())
}
