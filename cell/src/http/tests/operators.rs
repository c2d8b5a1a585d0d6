use std::sync::atomic::Ordering;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::JobId;
use cellbus_directory::scale::{Decision, Direction, Inputs, Rate};

use super::*;

#[tokio::test]
async fn the_cluster_is_shown() {
    let server = Server::start().await;
    let cells = ok(server.get("/v1/cells").await).await;
    assert_eq!((&cells["items"][0]["id"], &cells["items"][0]["state"]), (&json!("cell-1"), &json!("active")));
    let shards = ok(server.get("/v1/shards").await).await;
    assert_eq!((&shards["items"][0]["state"], &shards["items"][0]["owner"]), (&json!("failed"), &Value::Null));
    assert_eq!(shards["items"][0]["reason"], "damaged (tried 3 times)");
    let managers = ok(server.get("/v1/managers?limit=2").await).await;
    assert_eq!((managers["items"].as_array().unwrap().len(), &managers["next_cursor"]), (2, &json!("vc-2")));
    assert_eq!((&managers["items"][0]["running"], &managers["items"][0]["vms"]), (&json!(3), &json!(1)));
    let rest = ok(server.get("/v1/managers?cursor=vc-2").await).await;
    assert_eq!((&rest["items"][0]["name"], &rest["next_cursor"]), (&json!("vc-3"), &Value::Null));
    let hosts = ok(server.get("/v1/hosts?manager=vc-1&limit=1").await).await;
    assert_eq!((&hosts["items"][0]["manager_name"], &hosts["next_cursor"]), (&json!("vc-1"), &json!("n")));
    let queue = ok(server.get("/v1/queue").await).await;
    assert_eq!((&queue["unread"], &queue["waiting_by_tenant"]["acme"]), (&json!(3), &json!(2)));
    let scale = ok(server.get("/v1/scale").await).await;
    assert_eq!((&scale["mode"], &scale["cells"]), (&json!("auto"), &json!(1)));
    assert_eq!(ok(server.get("/v1/scale/decisions").await).await["items"], json!([]));
}

#[tokio::test]
async fn operators_are_noted() {
    let server = Server::start().await;
    ok(server.post("/v1/managers/vc-1/cordon").await).await;
    ok(server.post("/v1/managers/vc-1/uncordon").await).await;
    ok(server.post("/v1/hosts/vc-1%2Fhost-7/cordon").await).await;
    ok(server.post("/v1/cells/cell-1/drain").await).await;
    let evacuation = ok(server.post("/v1/hosts/vc-1%2Fhost-7/evacuate?round=r1").await).await;
    assert_eq!((&evacuation["jobs_total"], &evacuation["round"]), (&json!(3), &json!("r1")));
    assert_eq!((&evacuation["stays_total"], &evacuation["stays"][0]["why"]), (&json!(1), &json!("no room")));
    let changes = ok(server.get("/v1/changes?limit=10").await).await;
    let what: Vec<&str> = changes["items"].as_array().unwrap().iter().map(|c| c["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["evacuate r1", "drain", "host-7 true", "uncordon", "cordon"]);
    assert_eq!(changes["items"][0]["by"]["who"], "anonymous");
    assert!(changes["items"][0]["by"]["from"].as_str().unwrap().starts_with("127.0.0.1:"));

    let fenced = "/v1/hosts/vc-1%2Fhost-7/fenced";
    assert_eq!(problem(server.post(fenced).await, 400).await.0, "fence_not_confirmed");
    assert_eq!(problem(server.post(&format!("{fenced}?it_is_off=false")).await, 400).await.0, "fence_not_confirmed");
    let dead = ok(server.post(&format!("{fenced}?it_is_off=true")).await).await;
    assert_eq!((&dead["fenced"], &dead["vms"], &dead["restarts"]), (&json!(true), &json!(5), &json!(2)));
    assert_eq!(ok(server.post("/v1/hosts/vc-1%2Fhost-7/unfenced").await).await["fenced"], false);
    let changes = ok(server.get("/v1/changes?limit=2").await).await;
    assert_eq!(
        (&changes["items"][1]["what"], &changes["items"][0]["what"]),
        (&json!("host-7 is dead"), &json!("host-7 is back"))
    );

    assert_eq!(problem(server.post("/v1/managers/none/cordon").await, 404).await.0, "manager_not_found");
    assert_eq!(problem(server.post("/v1/hosts/host-1/cordon").await, 409).await.0, "name_ambiguous");
    assert_eq!(problem(server.post("/v1/cells/none/drain").await, 404).await.0, "cell_not_found");
    assert_eq!(problem(server.post("/v1/managers/vc-1/evacuate?round=a%20b").await, 400).await.0, "invalid_parameter");
}

#[tokio::test]
async fn managers_are_taken_in_and_out() {
    let server = Server::start().await;
    assert_eq!(ok(server.post("/v1/managers/vc-1/read-only").await).await["mode"], "read-only");
    assert_eq!(ok(server.post("/v1/managers/vc-1/enable").await).await["mode"], "enabled");
    assert_eq!(ok(server.get("/v1/managers").await).await["items"][0]["mode"], "enabled");
    let plan = ok(server.get("/v1/managers/vc-1/decommission").await).await;
    assert_eq!(
        (&plan["moves"][0], &plan["stays"][0]["why"]),
        (&json!({"manager": "vc-1", "vms": 2}), &json!("no room"))
    );
    assert_eq!((&plan["may_leave"], &plan["round"]), (&json!(false), &Value::Null));
    let released = ok(server.get("/v1/managers/vc-1/decommission?release=true").await).await;
    assert_eq!((&released["releases"], &released["moves"]), (&json!(3), &json!([])));
    let begun = ok(server.post("/v1/managers/vc-1/decommission?round=r1").await).await;
    assert_eq!((&begun["jobs_total"], &begun["round"], &begun["mode"]), (&json!(2), &json!("r1"), &json!("leaving")));
    let changes = ok(server.get("/v1/changes?limit=10").await).await;
    let what: Vec<&str> = changes["items"].as_array().unwrap().iter().map(|c| c["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["decommission r1", "enabled", "read-only"]);
    let refused = problem(server.post("/v1/managers/vc-1/decommission?release=maybe").await, 400).await;
    assert_eq!(refused.0, "invalid_parameter");
    assert_eq!(problem(server.get("/v1/managers/none/decommission").await, 404).await.0, "manager_not_found");
}

#[tokio::test]
async fn work_is_paused_and_goes_on() {
    let server = Server::start().await;
    let post = |path: &'static str, body: &'static str| server.send(path, "application/json", body);
    let all = ok(server.post("/v1/pause").await).await;
    assert_eq!((&all["items"][0]["work"], &all["items"][0]["manager"]), (&json!("all"), &Value::Null));
    let one = r#"{"manager":"vc-1","destructive":true,"reason":"a producer runs wild"}"#;
    let both = ok(post("/v1/pause", one).await).await;
    assert_eq!((both["items"].as_array().unwrap().len(), &both["in_force_within_seconds"]), (2, &json!(5.0)));
    let left = ok(post("/v1/resume", r#"{"destructive":false}"#).await).await;
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    let shown = ok(server.get("/v1/pauses").await).await;
    let pause = &shown["items"][0];
    assert_eq!((&pause["manager"], &pause["work"]), (&json!("vc-1"), &json!("destructive")));
    assert_eq!((&pause["by"]["who"], &pause["reason"]), (&json!("anonymous"), &json!("a producer runs wild")));
    let managers = ok(server.get("/v1/managers?limit=1").await).await;
    assert_eq!(managers["items"][0]["paused"], "destructive");
    assert_eq!(problem(post("/v1/pause", r#"{"manager":"none"}"#).await, 404).await.0, "manager_not_found");
    assert_eq!(problem(post("/v1/pause", r#"{"destructiv":true}"#).await, 400).await.0, "invalid_body");
    assert_eq!(problem(post("/v1/resume", r#"{"reason":"x"}"#).await, 400).await.0, "invalid_body");
    server.fake.not_ready.store(true, Ordering::Relaxed);
    assert_eq!(problem(post("/v1/pause", "").await, 503).await.0, "pause_not_confirmed");
}

#[tokio::test]
async fn it_is_foretold_when_room_runs_out() {
    let server = Server::start().await;
    let forecast = ok(server.get("/v1/forecast").await).await;
    let (whole, manager) = (&forecast["items"][0], &forecast["items"][1]);
    assert_eq!(
        (&whole["of"], &whole["name"], &whole["outlook"]),
        (&json!("cluster"), &Value::Null, &json!("runs_out"))
    );
    assert!(whole["runs_out_at"].as_str().unwrap().starts_with("2023-11-19T02:13:20"), "{whole}");
    assert_eq!((&manager["name"], &manager["outlook"]), (&json!("vc-1"), &json!("unknown")));
    assert_eq!(manager["why"], "less than a day of history: 7.0 hours");
}

#[tokio::test]
async fn jobs_are_cancelled_and_decided_on() {
    let server = Server::start().await;
    server.submit("/v1/jobs", &provision("1")).await;
    let id = JobId::derive("acme", "/t", "1");
    assert_eq!(server.post(&format!("/v1/jobs/{id}/cancel")).await.status(), 202);
    server.fake.ends.store(true, Ordering::Relaxed);
    server.submit("/v1/jobs?wait=1s", &provision("1")).await;
    assert_eq!(problem(server.post(&format!("/v1/jobs/{id}/cancel")).await, 409).await.0, "not_cancellable");
    assert_eq!(problem(server.post(&format!("/v1/jobs/{id}/retry")).await, 409).await.0, "not_parked");
    assert_eq!(problem(server.post(&format!("/v1/jobs/{id}/abandon")).await, 409).await.0, "not_parked");
    let none = JobId::derive("x", "y", "z");
    assert_eq!(problem(server.get(&format!("/v1/jobs/{none}")).await, 404).await.0, "job_not_found");
    assert_eq!(problem(server.get(&format!("/v1/jobs/{none}/vms?cursor=x")).await, 400).await.0, "invalid_cursor");
    assert_eq!(problem(server.get("/v1/jobs?cursor=zzz").await, 400).await.0, "invalid_cursor");
    assert_eq!(problem(server.get("/v1/jobs?type=make").await, 400).await.0, "invalid_parameter");
}

#[tokio::test]
async fn dead_letters_are_shown_and_dropped() {
    let server = Server::start().await;
    let id = uuid::Uuid::from_u128(1);
    let page = ok(server.get("/v1/dead-letters").await).await;
    assert_eq!((&page["items"][0]["code"], page["items"][0].get("original")), (&json!("not_json"), None));
    let letter = ok(server.get(&format!("/v1/dead-letters/{id}")).await).await;
    assert_eq!((&letter["original"], &letter["original_bytes"]), (&json!("\u{fffd}abc"), &json!(4)));
    assert_eq!(problem(server.post(&format!("/v1/dead-letters/{id}/retry")).await, 409).await.0, "cannot_retry");
    let dropped = server.client.delete(server.url(&format!("/v1/dead-letters/{id}"))).send().await.unwrap();
    assert_eq!(ok(dropped).await["dropped"], true);
    let other = uuid::Uuid::from_u128(2);
    assert_eq!(problem(server.get(&format!("/v1/dead-letters/{other}")).await, 404).await.0, "dead_letter_not_found");
    assert_eq!(problem(server.get("/v1/dead-letters/x").await, 400).await.0, "invalid_id");
}

#[tokio::test]
async fn audits_run_and_are_repaired() {
    let server = Server::start().await;
    let begun = server.post("/v1/audit").await;
    assert_eq!(begun.status(), 202);
    let begun = ok(begun).await;
    let path = format!("/v1/audit/{}", begun["id"].as_str().unwrap());
    let audit = ok(server.get(&path).await).await;
    assert_eq!((&audit["findings_total"], &audit["unreachable"]), (&json!(1), &json!(["vc-1"])));
    assert_eq!(audit["findings"][0]["kind"], "missing");
    let repair = |body: &'static str| {
        server.send("/v1/audit/00000000-0000-0000-0000-000000000001/repair", "application/json", body)
    };
    let plan = ok(repair("{\"mode\":\"plan\"}").await).await;
    assert!(plan["plan"].as_str().unwrap().starts_with("1 findings"));
    assert_eq!((&plan["repair"]["read"], &plan["repair"]["destroyed"]), (&json!(1), &json!(0)));
    assert_eq!(audit["kinds"], json!({"missing": 1}));
    assert_eq!(ok(repair("").await).await["repairs"], 1);
    let plan = ok(repair("{\"mode\":\"plan\",\"orphans\":\"destroy\"}").await).await;
    assert_eq!(plan["repair"]["destroyed"], 1);
    assert_eq!(problem(repair("{\"orphans\":\"destroy\"}").await, 409).await.0, "count_differs");
    assert_eq!(ok(repair("{\"orphans\":\"destroy\",\"confirm\":1}").await).await["repairs"], 1);
    assert_eq!(problem(repair("{\"mode\":\"now\"}").await, 400).await.0, "invalid_body");
    assert_eq!(ok(server.post(&format!("{path}/accept")).await).await["id"], begun["id"]);
    let none = "/v1/audit/00000000-0000-0000-0000-000000000009/accept";
    assert_eq!(problem(server.post(none).await, 404).await.0, "audit_not_found");
    server.fake.not_ready.store(true, Ordering::Relaxed);
    assert_eq!(problem(server.post("/v1/audit").await, 429).await.0, "too_many_requests");
}

#[tokio::test]
async fn an_adoption_is_planned_then_applied_and_followed() {
    let server = Server::start().await;
    let adopt = |body: &'static str| server.send("/v1/adopt", "application/json", body);
    let plan = ok(adopt("{\"tenant\":\"acme\"}").await).await;
    assert_eq!((&plan["id"], &plan["total"], &plan["left_out"]), (&Value::Null, &json!(0), &json!(7)));
    assert_eq!(plan["unread"][0]["manager"], "vc-1");
    let begun = adopt("{\"tenant\":\"acme\",\"mode\":\"apply\",\"confirm\":0,\"match\":\"web-*\"}").await;
    assert_eq!(begun.status(), 202);
    let id = ok(begun).await["id"].as_str().unwrap().to_owned();
    let far = ok(server.get(&format!("/v1/adopt/{id}")).await).await;
    assert_eq!((&far["total"], &far["adopted"], &far["failed"]), (&json!(3), &json!(1), &json!(1)));
    for (body, status, code) in [
        ("{\"tenant\":\"acme\",\"mode\":\"apply\",\"confirm\":1}", 409, "count_differs"),
        ("{\"tenant\":\"acme\",\"mode\":\"apply\"}", 400, "invalid_adoption"),
        ("{\"tenant\":\"acme\",\"limit\":10001}", 400, "invalid_adoption"),
        ("{\"tenant\":\"ACME\"}", 400, "invalid_name"),
        ("{\"tenant\":\"acme\",\"labels\":{\"a b\":\"\"}}", 400, "invalid_label"),
        ("{\"tenant\":\"acme\",\"manager\":\"nobody\"}", 404, "manager_not_found"),
        ("{}", 400, "invalid_body"),
        ("", 400, "invalid_body"),
    ] {
        assert_eq!(problem(adopt(body).await, status).await.0, code, "{body}");
    }
    let none = format!("/v1/adopt/{}", uuid::Uuid::from_u128(9));
    assert_eq!(problem(server.get(&none).await, 404).await.0, "adoption_not_found");
}

#[tokio::test]
async fn the_log_level_is_changed_at_run_time_and_noted() {
    let server = Server::start().await;
    let put = |body: &'static str| server.client.put(server.url("/v1/log")).body(body).send();
    assert_eq!(ok(put("{\"level\":\"info,x=debug\"}").await.unwrap()).await["level"], "info,x=debug");
    assert_eq!(ok(server.get("/v1/log").await).await["level"], "info,x=debug");
    assert_eq!(server.fake.changes.lock().unwrap()[0].what, "log level set to info,x=debug");
    assert_eq!(problem(put("{\"level\":\"loud\"}").await.unwrap(), 400).await.0, "invalid_log_level");
    assert_eq!(problem(put("{\"levle\":\"info\"}").await.unwrap(), 400).await.0, "invalid_body");
}

#[tokio::test]
async fn an_upgrade_is_shown_and_not_finished_while_somebody_hinders_it() {
    let server = Server::start().await;
    let shown = ok(server.get("/v1/upgrade").await).await;
    assert_eq!((&shown["format"], &shown["newest"]), (&json!(1), &json!(2)));
    assert_eq!((&shown["state"], &shown["hindered_by"]), (&json!("hindered"), &json!(["old"])));
    let old = &shown["members"][1];
    assert_eq!((&old["id"], &old["role"], &old["state"]), (&json!("old"), &json!("cell"), &json!("active")));
    assert_eq!((&old["version"], &old["keeps_up"]), (&json!("0.1.0"), &json!(false)));
    assert_eq!((&old["format_oldest"], &old["format_newest"]), (&json!(1), &json!(1)));
    let (code, problem) = problem(server.post("/v1/upgrade/finalize").await, 409).await;
    assert_eq!(code, "upgrade_hindered");
    assert!(problem["detail"].as_str().unwrap().contains("not read by old"), "{problem}");
    let text = server.get("/metrics").await.text().await.unwrap();
    assert!(text.contains("cellbus_shards_unreadable 0"), "{text}");
}

#[tokio::test]
async fn the_size_is_set_and_every_decision_is_shown() {
    let server = Server::start().await;
    let put = |body: &'static str| server.client.put(server.url("/v1/scale")).body(body).send();
    let set = ok(put("{\"mode\":\"fixed\",\"cells\":5,\"drain_target_seconds\":12.5}").await.unwrap()).await;
    assert_eq!((&set["mode"], &set["cells"], &set["drain_target_seconds"]), (&json!("fixed"), &json!(5), &json!(12.5)));
    assert!(set["set_by"]["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{set}");
    assert_eq!(server.fake.changes.lock().unwrap()[0].what, "scale");
    assert_eq!(problem(put("{\"max\":99}").await.unwrap(), 400).await.0, "invalid_scale");
    assert_eq!(problem(put("{\"drain_target_seconds\":-1}").await.unwrap(), 400).await.0, "invalid_scale");
    for bad in ["{\"mode\":\"Auto\"}", "{\"cell\":5}", "{\"cells\":-5}", "{\"cells\":5.5}", "[]", "", "{"] {
        assert_eq!(problem(put(bad).await.unwrap(), 400).await.0, "invalid_body", "{bad}");
    }

    let decision = |desired| {
        let inputs = Inputs {
            settings: crate::config::scale::Scale::default().settings,
            age: Some(Duration::from_millis(1_500)),
            cells_active: Some(2),
            cells_draining: None,
            unread: 7,
            waiting: 0,
            blocked: 0,
            running: 0,
            running_max: None,
            oldest: None,
            arrival: Some(Rate(1_500)),
            completion: None,
            cell_rate: None,
            shards_unknown: 0,
            wanted: Some(desired),
        };
        Arc::new(Decision {
            at: WallMs(0),
            desired,
            before: 2,
            direction: Direction::Out,
            reason: format!("{desired} cells"),
            trouble: None,
            inputs,
        })
    };
    {
        let mut scale = server.fake.scale.lock().unwrap();
        scale.decisions.extend((3..8).map(decision));
        // There were more before.
        scale.decided = 12;
    }
    let page = ok(server.get("/v1/scale/decisions?limit=3").await).await;
    let numbers = |page: &Value| -> Vec<u64> {
        page["items"].as_array().unwrap().iter().map(|row| row["number"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(&page), [12, 11, 10]);
    let first = &page["items"][0];
    assert_eq!(
        (&first["desired"], &first["direction"], &first["reason"]),
        (&json!(7), &json!("out"), &json!("7 cells"))
    );
    assert_eq!(
        (&first["inputs"]["arrival_per_second"], &first["inputs"]["completion_per_second"]),
        (&json!(1.5), &Value::Null)
    );
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = ok(server.get(&format!("/v1/scale/decisions?limit=3&cursor={cursor}")).await).await;
    assert_eq!((numbers(&rest), &rest["next_cursor"]), (vec![9, 8], &Value::Null));
    assert_eq!(problem(server.get("/v1/scale/decisions?cursor=x").await, 400).await.0, "invalid_cursor");
    let text = server.get("/metrics").await.text().await.unwrap();
    assert!(text.contains("cellbus_cells_desired 7"), "{text}");
}

#[tokio::test]
async fn health_and_metrics() {
    let server = Server::start().await;
    assert_eq!(server.get("/healthz").await.status(), 200);
    assert_eq!(server.get("/readyz").await.status(), 200);
    server.get("/v1/none").await;
    server.fake.not_ready.store(true, Ordering::Relaxed);
    let (code, value) = problem(server.get("/readyz").await, 503).await;
    assert_eq!(code, "not_ready");
    assert!(value["detail"].as_str().unwrap().contains("3 shards are still opening"));
    assert_eq!(server.get("/healthz").await.status(), 200, "alive all the same");
    let answer = server.get("/metrics").await;
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = answer.text().await.unwrap();
    for line in [
        "cellbus_directory_vms{state=\"running\"} 3",
        "cellbus_queue_jobs{stage=\"unread\"} 3",
        "cellbus_managers{health=\"healthy\"} 3",
        "cellbus_http_requests_total{resource=\"healthz\",status=\"2xx\"} 2",
        "cellbus_http_requests_total{resource=\"other\",status=\"4xx\"} 1",
        "cellbus_http_request_seconds_count{resource=\"readyz\"} 2",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
