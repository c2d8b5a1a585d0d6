//! Bad input over real HTTP: each case has its own code, and the server is none the worse for it.

use anyhow::Result;
use cellbus_tests::process::{Server, event};
use serde_json::{Value, json};

fn provision(change: impl FnOnce(&mut Value)) -> String {
    let mut event = event(
        "provision",
        "bad",
        None,
        &json!({"name": "web", "vcpus": 1, "memory_mib": 512, "disk_gib": 1, "image": "debian-12"}),
    );
    change(&mut event);
    event.to_string()
}

#[tokio::test]
async fn every_bad_input_has_its_code() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let arguments = ["--cells", "1", "--hosts", "4", "--managers", "2", "--latency", "none"];
    let server = Server::start(&folder.path().join("data"), &arguments).await?;
    let good = server.submit_text(provision(|event| event["id"] = "good".into())).await?;
    assert_eq!(good.status, 202, "{good:?}");

    let deep = format!("{}{}", "{\"a\":".repeat(5_000), "1") + &"}".repeat(5_000);
    let twice = provision(|_| {}).replacen("\"vcpus\":1", "\"vcpus\":1,\"vcpus\":2", 1);
    let long = "x".repeat(2 << 20);
    let cases: Vec<(&str, u16, &str, String)> = vec![
        ("not JSON", 400, "not_json", "{\"specversion\":".to_owned()),
        ("nothing", 400, "not_json", String::new()),
        ("not an event", 400, "not_an_event", "[1]".to_owned()),
        ("no id", 400, "missing_attribute", provision(|e| e["id"] = Value::Null)),
        ("a wrong type", 400, "wrong_type", provision(|e| e["data"]["vcpus"] = "four".into())),
        ("an unknown field", 400, "unknown_field", provision(|e| e["data"]["vcpu"] = 4.into())),
        ("a size of zero", 400, "below_minimum", provision(|e| e["data"]["memory_mib"] = 0.into())),
        ("a negative size", 400, "negative_number", provision(|e| e["data"]["disk_gib"] = (-1).into())),
        (
            "10^18 MiB",
            400,
            "above_maximum",
            provision(|e| e["data"]["memory_mib"] = 1_000_000_000_000_000_000_u64.into()),
        ),
        ("a 2 MiB name", 400, "name_too_long", provision(|e| e["data"]["name"] = long.into())),
        ("a control character", 400, "control_character", provision(|e| e["data"]["image"] = "a\u{7}b".into())),
        ("a count of 10^9", 400, "count_out_of_range", provision(|e| e["data"]["count"] = 1_000_000_000.into())),
        ("a count of zero", 400, "count_out_of_range", provision(|e| e["data"]["count"] = 0.into())),
        ("a bad tenant", 400, "invalid_name", provision(|e| e["tenant"] = "Acme!".into())),
        ("an unknown type", 400, "unknown_type", provision(|e| e["type"] = "io.cellbus.job.explode.v1".into())),
        ("another specversion", 400, "unsupported_specversion", provision(|e| e["specversion"] = "0.3".into())),
        ("deep nesting", 400, "too_deep", deep),
        ("the same key twice", 400, "duplicate_key", twice),
        ("a bad subject", 400, "invalid_subject", event("start", "x", Some("no such/vm"), &json!({})).to_string()),
        ("a resize of nothing", 400, "nothing_to_change", event("resize", "x", Some("web"), &json!({})).to_string()),
        ("a body over 4 MiB", 413, "too_large", provision(|e| e["data"]["name"] = "x".repeat(5 << 20).into())),
    ];
    let mut wrong = Vec::new();
    for (what, status, code, body) in cases {
        // A body that is too large may be cut off while it is sent: that is a refusal too, but
        // then there is nothing to read.
        match server.submit_text(body).await {
            Ok(answer) if answer.status == status && answer.body["code"] == code => {
                if !answer.body["detail"].is_string() {
                    wrong.push(format!("{what}: no sentence in {}", answer.body));
                }
            }
            Err(_) if status == 413 => {}
            other => wrong.push(format!("{what}: wanted {status} {code}, got {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // A batch with one bad member: refused whole, with its index, and nothing is taken.
    let member = |id: &str, vcpus: i64| {
        event(
            "provision",
            id,
            None,
            &json!({"name": "batch", "vcpus": vcpus, "memory_mib": 512, "disk_gib": 1, "image": "debian-12"}),
        )
    };
    let batch = Value::from(vec![member("b1", 1), member("b2", -1), member("b3", 1)]).to_string();
    let file = folder.path().join("batch.json");
    std::fs::write(&file, batch)?;
    let done = server.run(&["submit", file.to_str().expect("UTF-8"), "--output", "json"])?;
    let body: Value = serde_json::from_slice(&done.stdout)?;
    assert_eq!((done.status.code(), body["code"].as_str()), (Some(1), Some("invalid_batch")));
    assert!(String::from_utf8_lossy(&done.stderr).contains("member 1: negative_number"), "{done:?}");

    // VMs and jobs that are not there, and lists asked for wrongly.
    let absent = "f44dec3f-0dad-599c-bfc4-bbe000698666";
    for (path, status) in [
        (format!("/v1/vms/{absent}"), 404),
        (format!("/v1/jobs/{absent}"), 404),
        (format!("/v1/locate/{absent}"), 404),
        (format!("/v1/explain/{absent}"), 404),
        ("/v1/vms/not-an-id".to_owned(), 400),
        ("/v1/vms?limit=0".to_owned(), 400),
        ("/v1/vms?limit=1001".to_owned(), 400),
        ("/v1/vms?state=bogus".to_owned(), 400),
        ("/v1/vms?cursor=%00nonsense".to_owned(), 400),
        ("/v1/nothing".to_owned(), 404),
    ] {
        let answer = server.get(&path).await?;
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(answer.body["code"].is_string(), "{path}: {}", answer.body);
    }

    // A VM of another tenant is not there for this one.
    let vm = good.body["job_id"].as_str().expect("a job id");
    server.succeed(&["job", "wait", vm])?;
    let mut other = event("stop", "theirs", Some(vm), &json!({}));
    other["tenant"] = "beta".into();
    let answer = server.submit(&other).await?;
    if answer.status == 202 {
        let job = answer.body["job_id"].as_str().expect("a job id");
        let done = server.run(&["job", "wait", job, "--output", "json"])?;
        let job: Value = serde_json::from_slice(&done.stdout)?;
        assert_eq!(job["error"]["code"], "vm_not_found", "{job}");
    } else {
        assert_eq!(answer.body["code"], "vm_not_found", "{answer:?}");
    }

    // Nothing of all that was taken, and it serves as before.
    assert_eq!(server.all("/v1/vms").await?.len(), 1);
    assert_eq!(server.get("/healthz").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_tenant_that_is_not_configured_is_unknown() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("cellbus.toml");
    std::fs::write(&config, "tenants = [\"acme\"]\n")?;
    let config = config.to_str().expect("UTF-8");
    let arguments = ["--config", config, "--cells", "1", "--hosts", "4", "--managers", "1", "--latency", "none"];
    let server = Server::start(&folder.path().join("data"), &arguments).await?;
    assert_eq!(server.submit_text(provision(|_| {})).await?.status, 202);
    let other = server.submit_text(provision(|event| event["tenant"] = "beta".into())).await?;
    assert_eq!(other.body["code"], "unknown_tenant", "{other:?}");
    Ok(())
}
