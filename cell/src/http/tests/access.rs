//! Who may call what, over every route that there is.

use std::collections::BTreeSet;
use std::path::PathBuf;

use cellbus_bus::ids::JobId;
use reqwest::{Method, RequestBuilder};

use super::fake::{known, late};
use super::*;
use crate::config::{Config, Override, Sources};
use crate::http::access::Needs;
use crate::metrics;
use crate::security::{Security, digest};

const ACME: &str = "cbt_acme";
const OTHER: &str = "cbt_other";
const OPERATOR: &str = "cbt_operator";
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

pub(super) fn entry(token: &str, entry: &str) -> String {
    format!("{} = {{ {entry} }}\n", digest(token))
}

fn everybody() -> String {
    entry(ACME, "name = \"portal\", tenant = \"acme\"")
        + &entry(OTHER, "name = \"shop\", tenant = \"other\"")
        + &entry(OPERATOR, "name = \"ada\", role = \"operator\"")
}

pub(super) async fn security(set: &[(&str, String)], registry: &Registry, stop: &CancellationToken) -> Security {
    let overrides = set.iter().map(|(key, value)| Override {
        key: (*key).to_owned(),
        value: value.clone(),
        flag: "test".to_owned(),
    });
    let overrides = overrides.collect();
    let config = Config::load(Sources { overrides, ..Sources::default() }).unwrap();
    let metrics = metrics::security::Metrics::new(registry).unwrap();
    let security = Security::open(&config, &env(), metrics).await.unwrap();
    env().spawn("security files", security.clone().run(Duration::from_millis(20), env(), stop.clone()));
    security
}

/// A server with tokens, and the folder that holds them.
struct Guarded {
    server: Server,
    file: PathBuf,
    registry: Registry,
    _dir: tempfile::TempDir,
}

impl Guarded {
    async fn start(set: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens.toml");
        std::fs::write(&file, everybody()).unwrap();
        let mut all = vec![("auth.tokens", file.display().to_string())];
        all.extend(set.iter().cloned());
        let (registry, stop) = (Registry::new(), CancellationToken::new());
        let security = security(&all, &registry, &stop).await;
        let server = Server::with(move |settings| settings.security = security).await;
        let stopped = server.stop.clone();
        env().spawn("end", async move {
            stopped.cancelled().await;
            stop.cancel();
        });
        Self { server, file, registry, _dir: dir }
    }
    fn request(&self, method: &str, path: &str, token: &str) -> RequestBuilder {
        let method: Method = method.parse().unwrap();
        let request = self.server.client.request(method, self.server.url(path));
        if token.is_empty() { request } else { request.bearer_auth(token) }
    }
    async fn get(&self, path: &str, token: &str) -> Response {
        self.request("GET", path, token).send().await.unwrap()
    }
    async fn submit(&self, event: &Value, token: &str) -> Response {
        let request = self.request("POST", "/v1/jobs", token).header("content-type", "application/cloudevents+json");
        request.body(event.to_string()).send().await.unwrap()
    }
    fn metric(&self, name: &str) -> f64 {
        let found = self.registry.gather().into_iter().filter(|family| family.name() == name);
        found
            .flat_map(|family| family.get_metric().to_vec())
            .map(|m| m.get_gauge().get_value() + m.get_counter().get_value())
            .sum()
    }
    async fn until(&self, what: &str, mut check: impl AsyncFnMut() -> bool) {
        for _ in 0..1_000 {
            if check().await {
                return;
            }
            env().sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}");
    }
}

fn filled(path: &str) -> String {
    path.replace("{id}", &known(0).to_string()).replace("{vm}", &known(0).to_string())
}

#[tokio::test]
async fn every_route_of_the_document_needs_what_it_says() {
    let guarded = Guarded::start(&[]).await;
    let document = ok(guarded.get("/v1/openapi.json", ACME).await).await;
    let mut routes = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            routes += 1;
            let method = method.to_uppercase();
            let what = format!("{method} {path}");
            let guarded_by = &item[method.to_lowercase()]["security"];
            assert_eq!(guarded_by == &json!([{"bearer": []}]), !OPEN.contains(&path.as_str()), "{what}: {guarded_by}");
            let status = async |token: &str| {
                guarded.request(&method, &filled(path), token).send().await.unwrap().status().as_u16()
            };
            if OPEN.contains(&path.as_str()) {
                assert_eq!(status("").await, 200, "{what}");
                continue;
            }
            for stranger in ["", "cbt_unknown", &digest(ACME), "cbt_acme x"] {
                let answer = guarded.request(&method, &filled(path), stranger).send().await.unwrap();
                let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
                assert!(challenge.starts_with("Bearer realm=\"cellbus\""), "{what}: {challenge}");
                assert_eq!(challenge.contains("invalid_token"), !stranger.is_empty(), "{what}: {challenge}");
                assert_eq!(problem(answer, 401).await.0, "unauthenticated", "{what} {stranger}");
            }
            let route = routes::ROUTES.iter().find(|route| route.method == method && route.path == path).unwrap();
            match route.needs {
                Needs::Tenant => assert!(![401, 403].contains(&status(ACME).await), "{what}"),
                Needs::Operator | Needs::Metrics => {
                    let answer = guarded.request(&method, &filled(path), ACME).send().await.unwrap();
                    assert_eq!(problem(answer, 403).await.0, "forbidden", "{what}");
                }
                Needs::Nothing => panic!("{what} is open"),
            }
            assert!(![401, 403].contains(&status(OPERATOR).await), "{what}");
        }
    }
    assert!(routes > 40, "{routes}");
    // What is nowhere, and what another method is for, is not told apart for strangers.
    assert_eq!(guarded.get("/v1/nowhere", "").await.status(), 401);
    assert_eq!(guarded.get("/v1/nowhere", ACME).await.status(), 404);
    assert_eq!(guarded.request("DELETE", "/v1/jobs", ACME).send().await.unwrap().status(), 405);
    // HEAD is GET without its body, and as closed.
    assert_eq!(guarded.request("HEAD", "/v1/cells", ACME).send().await.unwrap().status(), 403);
    assert_eq!(guarded.request("HEAD", "/v1/cells", "").send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn the_documented_table_is_the_one_in_force() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/docs/security.md")).unwrap();
    let row = |line: &str| {
        let (call, who) = line.strip_prefix("| `")?.split_once("` | ")?;
        let (method, path) = call.split_once(' ')?;
        path.starts_with('/').then(|| (method.to_owned(), path.to_owned(), who.trim_end_matches(" |").to_owned()))
    };
    let documented: BTreeSet<_> = page.lines().filter_map(row).collect();
    let word = |needs| match needs {
        Needs::Nothing => "everybody",
        Needs::Tenant => "tenant",
        Needs::Operator => "operator",
        Needs::Metrics => "operator, or everybody with `auth.metrics = \"open\"`",
    };
    let served: BTreeSet<_> = routes::ROUTES
        .iter()
        .map(|route| (route.method.to_owned(), route.path.to_owned(), word(route.needs).to_owned()))
        .collect();
    let wanted: Vec<String> =
        routes::ROUTES.iter().map(|r| format!("| `{} {}` | {} |", r.method, r.path, word(r.needs))).collect();
    assert_eq!(documented, served, "ops/docs/security.md should have:\n{}", wanted.join("\n"));
}

#[tokio::test]
async fn a_tenant_cannot_tell_anothers_from_what_is_not_there() {
    let guarded = Guarded::start(&[]).await;
    let job = JobId::derive("acme", "/t", "theirs").to_string();
    assert_eq!(guarded.submit(&provision("theirs"), ACME).await.status(), 202);
    let (vm, late, nobody) = (known(0).to_string(), late().to_string(), uuid::Uuid::from_u128(9).to_string());

    for (method, path, id) in [
        ("GET", "/v1/jobs/{id}", &job),
        ("GET", "/v1/jobs/{id}/vms", &job),
        ("POST", "/v1/jobs/{id}/cancel", &job),
        ("GET", "/v1/explain/{id}", &job),
        ("GET", "/v1/vms/{id}", &vm),
        ("GET", "/v1/vms/{id}/live", &vm),
        ("GET", "/v1/locate/{id}", &vm),
        ("GET", "/v1/locate/{id}?", &vm),
        ("GET", "/v1/locate/{id}", &late),
    ] {
        let call = async |id: &str, token: &str| {
            let answer = guarded.request(method, &path.replace("{id}", id), token).send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        };
        let (status, theirs) = call(id, OTHER).await;
        let (_, nothing) = call(&nobody, OTHER).await;
        assert_eq!(status, 404, "{method} {path}: {theirs}");
        assert_eq!(theirs.replace(id.as_str(), "ID"), nothing.replace(&nobody, "ID"), "{method} {path}");
        if *id != late {
            assert!(call(id, ACME).await.0 < 300, "{method} {path}: its own");
        }
        assert!(call(id, OPERATOR).await.0 < 300, "{method} {path}: an operator");
    }

    // Many at once: theirs are among the missing, in both forms.
    let many = async |token: &str| {
        let request = guarded.request("POST", "/v1/locate", token).json(&json!([vm, late, nobody]));
        let found = ok(request.send().await.unwrap()).await;
        let ids: Vec<u8> = [known(0), super::fake::late()].iter().flat_map(|id| *id.as_bytes()).collect();
        let request = guarded.request("POST", "/v1/locate", token).header("content-type", "application/octet-stream");
        let bytes = request.body(ids).send().await.unwrap().bytes().await.unwrap();
        (found["items"].as_array().unwrap().len(), found["missing"].as_array().unwrap().len(), bytes[16])
    };
    assert_eq!(many(OTHER).await, (0, 3, 0));
    assert_eq!(many(OPERATOR).await, (2, 1, 1));
    assert_eq!(many(ACME).await, (1, 2, 1), "the fake's home does not know whose the late one is");

    // Lists are of the own tenant, and nobody else's can be asked for.
    for list in ["/v1/jobs", "/v1/vms", "/v1/events"] {
        let refused = problem(guarded.get(&format!("{list}?tenant=acme"), OTHER).await, 403).await;
        assert_eq!(refused.0, "tenant_mismatch", "{list}");
    }
    let jobs = async |token: &str| ok(guarded.get("/v1/jobs", token).await).await["items"].as_array().unwrap().len();
    assert_eq!((jobs(OTHER).await, jobs(ACME).await, jobs(OPERATOR).await), (0, 1, 1));
    let asked = || guarded.server.fake.asked_vms.lock().unwrap().clone();
    ok(guarded.get("/v1/vms?label=a=b", OTHER).await).await;
    assert_eq!(asked().and_then(|query| query.tenant).map(|t| t.to_string()).as_deref(), Some("other"));
    ok(guarded.get("/v1/vms?label=a=b", OPERATOR).await).await;
    assert_eq!(asked().unwrap().tenant, None);
}

#[tokio::test]
async fn jobs_are_of_the_tenant_whose_token_it_is() {
    let guarded = Guarded::start(&[]).await;
    assert_eq!(problem(guarded.submit(&provision("1"), OTHER).await, 403).await.0, "tenant_mismatch");
    let mut event = provision("1");
    event.as_object_mut().unwrap().remove("tenant");
    let made = ok(guarded.submit(&event, OTHER).await).await;
    assert_eq!(made["job_id"], JobId::derive("other", "/t", "1").to_string());
    // An operator says for whom.
    assert_eq!(guarded.submit(&provision("1"), OPERATOR).await.status(), 202);
    assert_eq!(problem(guarded.submit(&event, OPERATOR).await, 400).await.0, "missing_attribute");
    assert_eq!(problem(guarded.submit(&event, "").await, 401).await.0, "unauthenticated");

    // Who changed something is who the token says, and never the token.
    let cancel = format!("/v1/jobs/{}/cancel", JobId::derive("other", "/t", "1"));
    assert_eq!(guarded.request("POST", &cancel, OTHER).send().await.unwrap().status(), 202);
    assert_eq!(guarded.request("POST", "/v1/cells/cell-1/drain", OPERATOR).send().await.unwrap().status(), 202);
    let changes = guarded.server.fake.changes.lock().unwrap().clone();
    let who: Vec<&str> = changes.iter().map(|change| change.by.who.as_str()).collect();
    assert_eq!(who, ["other/shop", "ada"]);
    assert!(!format!("{changes:?}").contains("cbt_"));
}

#[tokio::test]
async fn a_strangers_body_is_read_and_not_held() {
    let guarded = Guarded::start(&[]).await;
    let large = "x".repeat(2 << 20);
    for _ in 0..3 {
        let request = guarded.request("POST", "/v1/jobs", "").body(large.clone());
        assert_eq!(problem(request.send().await.unwrap(), 401).await.0, "unauthenticated");
    }
    let head = "POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\ncontent-length: 99999999\r\n\r\n";
    let answer = guarded.server.raw(head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn events_are_the_tenants_own_and_end_with_its_token() {
    let guarded = Guarded::start(&[]).await;
    let mut stream = guarded.get("/v1/events", OTHER).await;
    guarded.server.fake.event(1, "acme", "{\"of\":\"acme\"}");
    guarded.server.fake.event(2, "other", "{\"of\":\"other\"}");
    let mut seen = String::new();
    while !seen.contains("id: 2") {
        seen.push_str(&String::from_utf8_lossy(&stream.chunk().await.unwrap().expect("it goes on")));
    }
    assert!(!seen.contains("acme"), "{seen}");

    std::fs::write(&guarded.file, entry(ACME, "name = \"portal\", tenant = \"acme\"")).unwrap();
    guarded.until("the token is taken away", async || guarded.get("/v1/jobs", OTHER).await.status() == 401).await;
    guarded.server.fake.event(3, "other", "{\"of\":\"other\"}");
    let rest = async {
        while let Ok(Some(chunk)) = stream.chunk().await {
            assert!(!String::from_utf8_lossy(&chunk).contains("id: 3"), "told to a token that is none any more");
        }
    };
    env().timeout(Duration::from_secs(20), rest).await.expect("the stream ends");
}

#[tokio::test]
async fn tokens_are_read_again_and_a_broken_file_changes_nothing() {
    let guarded = Guarded::start(&[]).await;
    assert_eq!(guarded.get("/v1/jobs", ACME).await.status(), 200);
    std::fs::write(&guarded.file, "cbt_new = { name = \"x\", tenant = \"acme\" }\n").unwrap();
    guarded.until("it is seen to be broken", async || guarded.metric("cellbus_security_file_broken") > 0.0).await;
    assert_eq!(guarded.get("/v1/jobs", ACME).await.status(), 200, "the old ones stay in force");
    std::fs::write(&guarded.file, entry("cbt_new", "name = \"portal\", tenant = \"acme\"")).unwrap();
    guarded.until("the new one counts", async || guarded.get("/v1/jobs", "cbt_new").await.status() == 200).await;
    assert_eq!(guarded.get("/v1/jobs", ACME).await.status(), 401, "the old one counts no more");
    assert_eq!(guarded.metric("cellbus_security_file_broken"), 0.0);
    assert_eq!(guarded.metric("cellbus_security_files_read_total"), 1.0);
    // Gone altogether: as broken.
    std::fs::remove_file(&guarded.file).unwrap();
    guarded.until("it is seen to be gone", async || guarded.metric("cellbus_security_file_broken") > 0.0).await;
    assert_eq!(guarded.get("/v1/jobs", "cbt_new").await.status(), 200);
}

#[tokio::test]
async fn metrics_are_open_where_that_is_said() {
    let guarded = Guarded::start(&[("auth.metrics", "open".to_owned())]).await;
    for token in ["", "cbt_unknown", ACME, OPERATOR] {
        assert_eq!(guarded.get("/metrics", token).await.status(), 200, "{token}");
    }
    assert_eq!(guarded.get("/v1/cells", "").await.status(), 401);
}
