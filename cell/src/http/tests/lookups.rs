use std::sync::atomic::Ordering;

use cellbus_bus::ids::{JobId, ShardCount, VmId};
use futures::StreamExt as _;

use super::fake::{known, late, manager};
use super::*;

fn expected(vm: VmId) -> Value {
    json!({
        "vm": vm.to_string(), "manager": manager().to_string(), "manager_name": "vc-1", "host": "host-7",
        "cell": "cell-1", "address": "http://10.0.0.1:7070/\"x\"", "shard": vm.shard(ShardCount::DEFAULT).index(),
        "epoch": 3, "as_of": cellbus_bus::WallMs(1_795_000_000_123).rfc3339()
    })
}

#[tokio::test]
async fn a_vm_is_located() {
    let server = Server::start().await;
    assert_eq!(ok(server.get(&format!("/v1/locate/{}", known(0))).await).await, expected(known(0)));
    // What the directory does not know, its home may.
    assert_eq!(ok(server.get(&format!("/v1/locate/{}", late())).await).await, expected(late()));
    let gone = JobId::derive("x", "y", "z");
    assert_eq!(problem(server.get(&format!("/v1/locate/{gone}")).await, 404).await.0, "vm_not_found");
    assert_eq!(problem(server.get("/v1/locate/web-0").await, 400).await.0, "invalid_id");
    assert_eq!(problem(server.get(&format!("/v1/locate/{}?x=1", known(0))).await, 400).await.0, "unknown_parameter");
    server.fake.not_ready.store(true, Ordering::Relaxed);
    assert_eq!(problem(server.get(&format!("/v1/locate/{gone}")).await, 503).await.0, "not_ready");
}

#[tokio::test]
async fn many_vms_are_located_in_order() {
    let server = Server::start().await;
    let gone: VmId = JobId::derive("x", "y", "z").vm(0);
    let ids = [known(5), late(), gone, known(4), late(), known(5)];
    let texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let answer = ok(server.send("/v1/locate", "application/json", json!(texts).to_string()).await).await;
    let items: Vec<Value> = [known(5), late(), known(4), late(), known(5)].map(expected).into();
    assert_eq!(answer, json!({"items": items, "missing": [gone.to_string()]}));
    let empty = ok(server.send("/v1/locate", "application/json", "[]").await).await;
    assert_eq!(empty, json!({"items": [], "missing": []}));
    let two = ok(server.send("/v1/locate", "application/json", json!([gone, gone]).to_string()).await).await;
    assert_eq!(two["missing"].as_array().unwrap().len(), 2);

    let send = |body: String| server.send("/v1/locate", "application/json", body);
    assert_eq!(problem(send(json!(["x"]).to_string()).await, 400).await.0, "invalid_id");
    assert_eq!(problem(send("{}".to_owned()).await, 400).await.0, "invalid_body");
    let many = vec![known(0).to_string(); 10_001];
    assert_eq!(problem(send(json!(many).to_string()).await, 400).await.0, "too_many_ids");
}

#[tokio::test]
async fn the_binary_form_says_the_same() {
    let server = Server::start().await;
    let gone: VmId = JobId::derive("x", "y", "z").vm(0);
    let ids = [known(5), gone, late(), known(6)];
    let body: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
    let answer = server.send("/v1/locate", "application/octet-stream", body).await;
    assert_eq!(answer.headers()["content-type"], "application/octet-stream");
    let bytes = answer.bytes().await.unwrap();
    let number = |at: usize, len: usize| bytes[at..at + len].iter().fold(0_usize, |n, b| n << 8 | usize::from(*b));
    assert_eq!(&bytes[0..4], b"CBLO");
    assert_eq!((number(4, 2), number(6, 2), number(8, 4)), (1, 56, 4));
    let names = 16 + 4 * 56;
    assert_eq!(bytes.len(), names + number(12, 4));
    let text = |at: usize, len: usize| std::str::from_utf8(&bytes[names + at..names + at + len]).unwrap();
    for (index, id) in ids.iter().enumerate() {
        let at = 16 + index * 56;
        if *id == gone {
            assert_eq!(&bytes[at..at + 56], &[0; 56]);
            continue;
        }
        assert_eq!(bytes[at], 1);
        assert_eq!(number(at + 2, 2), usize::from(id.shard(ShardCount::DEFAULT).index()));
        assert_eq!(text(number(at + 4, 4), number(at + 8, 2)), "host-7");
        assert_eq!(text(number(at + 12, 4), number(at + 10, 2)), "cell-1");
        assert_eq!(&bytes[at + 16..at + 32], manager().as_bytes());
        assert_eq!((number(at + 32, 8), number(at + 40, 8)), (3, 1_795_000_000_123));
        assert_eq!(text(number(at + 48, 4), number(at + 52, 2)), "http://10.0.0.1:7070/\"x\"");
    }
    let send = |body: Vec<u8>| server.send("/v1/locate", "application/octet-stream", body);
    assert_eq!(problem(send(vec![0; 17]).await, 400).await.0, "invalid_body");
    assert_eq!(problem(send(vec![0; 160_016]).await, 400).await.0, "too_many_ids");
}

#[tokio::test]
async fn vms_are_shown_and_listed() {
    let server = Server::start().await;
    let vm = ok(server.get(&format!("/v1/vms/{}", known(0))).await).await;
    assert_eq!((&vm["tenant"], &vm["size"]["vcpus"], &vm["manager_name"]), (&json!("acme"), &json!(1), &json!("vc-1")));
    assert!(vm["as_of"].as_str().unwrap().ends_with('Z'));
    let page = ok(server.get("/v1/vms?tenant=acme&manager=vc-1&state=running&limit=2").await).await;
    assert_eq!((page["items"].as_array().unwrap().len(), &page["next_cursor"]), (2, &Value::Null));
    let page = ok(server.get("/v1/vms?label=app%3Dshop&label=tier%3Dweb").await).await;
    assert_eq!(page["items"], json!([]));
    let page = ok(server.get("/v1/vms?tenant=acme&name=web-0&limit=2").await).await;
    assert_eq!(page["items"][0]["id"], known(0).to_string());
    for (query, code, status) in [
        ("state=up", "invalid_parameter", 400),
        ("limit=0", "invalid_limit", 400),
        ("limit=1001", "invalid_limit", 400),
        ("tenant=Acme", "invalid_parameter", 400),
        ("label=app", "invalid_parameter", 400),
        ("name=web-0", "invalid_parameter", 400),
        ("manager=none", "manager_not_found", 404),
        ("offset=10", "unknown_parameter", 400),
    ] {
        assert_eq!(problem(server.get(&format!("/v1/vms?{query}")).await, status).await.0, code, "{query}");
    }
    let live = ok(server.get(&format!("/v1/vms/{}/live", known(0))).await).await;
    assert_eq!((&live["held"], &live["manager_name"]), (&json!(false), &json!("vc-1")));
    assert_eq!(problem(server.get(&format!("/v1/vms/{}/live", known(1))).await, 503).await.0, "manager_away");
}

#[tokio::test]
async fn jobs_and_vms_are_explained() {
    let server = Server::start().await;
    server.submit("/v1/jobs", &provision("1")).await;
    let id = JobId::derive("acme", "/t", "1");
    let why = ok(server.get(&format!("/v1/explain/{id}")).await).await;
    assert_eq!((&why["owner"], &why["epoch"], &why["job"]["state"]), (&json!("cell-1"), &json!(2), &json!("accepted")));
    assert_eq!(problem(server.get(&format!("/v1/explain/{}", late())).await, 404).await.0, "vm_not_found");
}

#[tokio::test]
async fn events_are_streamed_from_where_one_left_off() {
    let server = Server::start().await;
    for (seq, tenant) in [(1, "acme"), (2, "globex"), (3, "acme")] {
        server.fake.event(seq, tenant, &format!("{{\"n\":{seq}}}"));
    }
    let request = server.client.get(server.url("/v1/events?tenant=acme")).header("last-event-id", "1");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut stream = answer.bytes_stream();
    let mut seen = String::new();
    while !seen.contains("id: 3") {
        seen.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
    }
    server.fake.event(4, "acme", "{\"n\":\n4}");
    while !seen.contains("id: 4") {
        seen.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
    }
    assert_eq!(seen, "retry: 1000\n: cellbus\n\nid: 3\ndata: {\"n\":3}\n\nid: 4\ndata: {\"n\":\ndata: 4}\n\n");
    // The server's end is the stream's end, not a time-out.
    server.stop.cancel();
    assert!(stream.next().await.is_none_or(|rest| rest.is_err() || rest.unwrap().is_empty()));
}

#[tokio::test]
async fn readers_of_events_are_bounded() {
    let server = Server::with(|settings| settings.http.events_readers_max = 1).await;
    let first = server.get("/v1/events").await;
    assert_eq!(first.status(), 200);
    assert_eq!(problem(server.get("/v1/events").await, 429).await.0, "too_many_requests");
    let bad = server.client.get(server.url("/v1/events")).header("last-event-id", "x").send().await.unwrap();
    assert_eq!(problem(bad, 400).await.0, "invalid_parameter");
    let text = server.get("/metrics").await.text().await.unwrap();
    assert!(text.contains("cellbus_http_event_readers 1"), "{text}");
}
