use std::sync::atomic::Ordering;

use cellbus_bus::ids::JobId;

use super::*;

#[tokio::test]
async fn a_job_is_submitted_followed_and_listed() {
    let server = Server::start().await;
    let answer = server.submit("/v1/jobs", &provision("1")).await;
    assert_eq!(answer.status(), 202);
    let answer = ok(answer).await;
    let id = JobId::derive("acme", "/t", "1").to_string();
    assert_eq!(answer, json!({"job_id": id, "state": "accepted"}));

    let job = ok(server.get(&format!("/v1/jobs/{id}")).await).await;
    assert_eq!((&job["job_id"], &job["type"], &job["state"]), (&json!(id), &json!("provision"), &json!("accepted")));
    assert_eq!(job["accepted_at"], "1970-01-01T00:00:00.005Z");
    let page = ok(server.get("/v1/jobs?tenant=acme&limit=1").await).await;
    assert_eq!(page["items"][0]["job_id"], id);
    assert_eq!(page["next_cursor"], "page-2");
    let vms = ok(server.get(&format!("/v1/jobs/{id}/vms?limit=4")).await).await;
    assert_eq!((vms["items"].as_array().unwrap().len(), &vms["next_cursor"]), (4, &json!("4")));
    let rest = ok(server.get(&format!("/v1/jobs/{id}/vms?limit=40&cursor=4")).await).await;
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next_cursor"]), (6, &Value::Null));

    // The same again is the same; with other data it is a conflict.
    assert_eq!(server.submit("/v1/jobs", &provision("1")).await.status(), 202);
    let mut other = provision("1");
    other["data"]["vcpus"] = json!(2);
    let (code, value) = problem(server.submit("/v1/jobs", &other).await, 409).await;
    assert_eq!(code, "job_conflict");
    assert!(value["detail"].as_str().unwrap().contains(&id));
}

#[tokio::test]
async fn wait_is_answered_when_the_job_has_ended() {
    let server = Server::start().await;
    // It does not end in time: 202, with the job as it is.
    let answer = server.submit("/v1/jobs?wait=10ms", &provision("1")).await;
    assert_eq!(answer.status(), 202);
    assert_eq!(ok(answer).await["state"], "accepted");
    server.fake.ends.store(true, Ordering::Relaxed);
    let answer = server.submit("/v1/jobs?wait=30s", &provision("1")).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(ok(answer).await["state"], "succeeded");
    assert_eq!(problem(server.submit("/v1/jobs?wait=11m", &provision("1")).await, 400).await.0, "invalid_parameter");
    assert_eq!(problem(server.submit("/v1/jobs?wait=long", &provision("1")).await, 400).await.0, "invalid_parameter");

    let batch = json!([provision("1"), provision("2")]).to_string();
    let answer = server.send("/v1/jobs?wait=30s", "application/cloudevents-batch+json", batch).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(ok(answer).await["jobs"][1]["state"], "succeeded");
}

#[tokio::test]
async fn a_dry_run_submits_nothing() {
    let server = Server::start().await;
    let answer = ok(server.submit("/v1/jobs?dry_run=true", &provision("1")).await).await;
    assert_eq!(answer["managers"], json!(["vc-1", null]));
    assert_eq!(answer["dry_run"], true);
    assert_eq!(server.fake.submitted.load(Ordering::Relaxed), 0);
    let mut bad = provision("1");
    bad["data"]["vcpus"] = json!(0);
    assert_eq!(problem(server.submit("/v1/jobs?dry_run=true", &bad).await, 400).await.0, "below_minimum");
}

#[tokio::test]
async fn a_batch_is_checked_whole() {
    let server = Server::start().await;
    let send = |events: Value| server.send("/v1/jobs", "application/cloudevents-batch+json", events.to_string());
    let answer = ok(send(json!([provision("1"), provision("2")])).await).await;
    assert_eq!(answer["jobs"].as_array().unwrap().len(), 2);
    assert_eq!(answer["jobs"][1]["job_id"], JobId::derive("acme", "/t", "2").to_string());

    let before = server.fake.submitted.load(Ordering::Relaxed);
    let mut bad = provision("4");
    bad["data"]["vcpus"] = json!(0);
    let (code, value) = problem(send(json!([provision("3"), bad, 7])).await, 400).await;
    assert_eq!(code, "invalid_batch");
    assert_eq!((&value["errors"][0]["index"], &value["errors"][0]["code"]), (&json!(1), &json!("below_minimum")));
    assert_eq!(value["errors"][0]["pointer"], "/1/data/vcpus");
    assert_eq!((&value["errors"][1]["index"], &value["errors"][1]["code"]), (&json!(2), &json!("not_an_event")));
    assert_eq!(server.fake.submitted.load(Ordering::Relaxed), before, "nothing of it is taken");

    // A conflict is decided by the job's home, and tells of itself beside those that were taken.
    let mut other = provision("1");
    other["data"]["vcpus"] = json!(2);
    let answer = ok(send(json!([other.clone(), provision("5")])).await).await;
    assert_eq!(answer["jobs"][0]["error"]["code"], "job_conflict");
    assert!(answer["jobs"][0].get("state").is_none());
    assert_eq!(answer["jobs"][1]["state"], "accepted");
    let (code, value) = problem(send(json!([other])).await, 409).await;
    assert_eq!((code.as_str(), &value["errors"][0]["index"]), ("job_conflict", &json!(0)));
}

#[tokio::test]
async fn binary_mode_and_plain_json_are_taken() {
    let server = Server::start().await;
    let event = provision("1");
    let request = server.client.post(server.url("/v1/jobs")).header("content-type", "application/json");
    let request = request.header("ce-specversion", "1.0").header("ce-id", "1").header("ce-source", "/t");
    let request = request.header("ce-type", "io.cellbus.job.provision.v1").header("CE-Tenant", "acme");
    let answer = ok(request.body(event["data"].to_string()).send().await.unwrap()).await;
    assert_eq!(answer["job_id"], JobId::derive("acme", "/t", "1").to_string());
    let answer = server.send("/v1/jobs", "application/json", event.to_string()).await;
    assert_eq!(answer.status(), 202);
    let (code, _) = problem(server.send("/v1/jobs", "text/csv", "a,b").await, 415).await;
    assert_eq!(code, "unsupported_content_type");
}

#[tokio::test]
async fn tenants_are_those_that_are_listed() {
    let server = Server::with(|settings| {
        settings.tenants = Tenants::Listed(["globex".parse().unwrap()].into());
    })
    .await;
    let (code, value) = problem(server.submit("/v1/jobs", &provision("1")).await, 403).await;
    assert_eq!((code.as_str(), &value["pointer"]), ("unknown_tenant", &json!("/tenant")));
}

/// The list of bad input that a door must stand: each has a code of its own.
#[tokio::test]
async fn bad_input_is_refused_each_with_its_own_code() {
    let server = Server::start().await;
    let with = |pointer: &str, value: Value| {
        let mut event = provision("1");
        *event["data"].as_object_mut().unwrap().entry(pointer).or_insert(Value::Null) = value;
        event.to_string()
    };
    let deep = format!("{}1{}", "{\"a\":".repeat(5_000), "}".repeat(5_000));
    let cases: Vec<(&str, String)> = vec![
        ("not_json", "{".to_owned()),
        ("wrong_type", with("vcpus", json!("four"))),
        ("unknown_field", with("vcpu", json!(4))),
        ("below_minimum", with("memory_mib", json!(0))),
        ("negative_number", with("memory_mib", json!(-5))),
        ("above_maximum", with("memory_mib", json!(1_000_000_000_000_000_000_u64))),
        ("name_too_long", with("name", json!("n".repeat(2 << 20)))),
        ("control_character", with("name", json!("a\u{7}b"))),
        ("count_out_of_range", with("count", json!(1_000_000_000))),
        ("too_deep", deep),
        ("duplicate_key", provision("1").to_string().replace("\"vcpus\":1", "\"vcpus\":1,\"vcpus\":1")),
        ("invalid_name", with("name", json!("a b"))),
        ("unknown_type", provision("1").to_string().replace("provision", "provide")),
        ("missing_attribute", provision("1").to_string().replace("\"tenant\":\"acme\",", "")),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for (expected, body) in cases {
        let answer = server.send("/v1/jobs", "application/cloudevents+json", body).await;
        let (code, _) = problem(answer, 400).await;
        assert_eq!(code, expected);
        assert!(seen.insert(code), "{expected} is told apart from the others");
    }
    assert_eq!(server.fake.submitted.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn when_nothing_is_taken_it_says_when_to_come_again() {
    let server = Server::start().await;
    server.fake.full.store(true, Ordering::Relaxed);
    let answer = server.submit("/v1/jobs", &provision("1")).await;
    assert_eq!(answer.headers()["retry-after"], "10");
    let (code, value) = problem(answer, 429).await;
    assert_eq!(code, "bus_full");
    assert!(value["detail"].as_str().unwrap().contains("make room"));
    let text = server.get("/metrics").await.text().await.unwrap();
    assert!(text.contains("cellbus_intake_jobs_total{result=\"unavailable\"} 1"), "{text}");
}
