//! The launcher for Kubernetes against an API server of the test's own, which does what the real one
//! does with a Deployment's scale and with pods: tokens that change, the rights of
//! `ops/deploy/kubernetes/rbac.yaml` and no others, versions, conflicts, refusals, requests that are too many.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use cellbus_bus::contract::{Member, MemberState, Role};
use cellbus_bus::format::Build;
use cellbus_bus::{Env, Mono, WallMs, env};
use cellbus_cell::config::scale::Kubernetes;
use cellbus_cell::controller::launcher::{Asking, Launcher as _, Wanted, kubernetes};
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[path = "support/until.rs"]
mod until;

use until::until;

const SCALE: &str = "/apis/apps/v1/namespaces/cells/deployments/cellbus-cell/scale";
const PODS: &str = "/api/v1/namespaces/cells/pods";

/// What the server holds, and what it was asked.
struct Cluster {
    /// Who is let in.
    token: &'static str,
    /// What they may do.
    rights: Vec<Right>,
    replicas: u32,
    version: u64,
    /// Every size that was written, oldest first.
    applied: Vec<u32>,
    /// Pods by address.
    pods: Vec<(&'static str, &'static str)>,
    marked: Vec<String>,
    asked: u32,
    /// Answers this instead.
    refusal: Option<(u16, &'static str)>,
    /// So often somebody else writes between a read and the write that follows.
    interfere: u32,
    /// Does what it is asked, but so often says nothing.
    silent: u32,
    /// After so many writes a size that is asked for is never told.
    still_after: Option<usize>,
    /// Wants to be left alone for so many seconds, so often, and when it said so last.
    busy: (u64, u32),
    said_busy: Option<Mono>,
    /// How long it was left alone then.
    left_alone: Option<Duration>,
    env: Option<Env>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            token: "let-me-in",
            rights: rights(),
            replicas: 0,
            version: 0,
            applied: Vec::new(),
            pods: Vec::new(),
            marked: Vec::new(),
            asked: 0,
            refusal: None,
            interfere: 0,
            silent: 0,
            still_after: None,
            busy: (0, 0),
            said_busy: None,
            left_alone: None,
            env: None,
        }
    }
}

/// One rule of a Role.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Right {
    api_groups: Vec<String>,
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
    verbs: Vec<String>,
}

/// Those of the controller, as its manifest gives them.
fn rights() -> Vec<Right> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/deploy/kubernetes/rbac.yaml"));
    let documents: Vec<Value> = serde_yaml_ng::Deserializer::from_str(&text.unwrap())
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect();
    let role = documents.into_iter().find(|document| document["kind"] == "Role").unwrap();
    serde_json::from_value(role["rules"].clone()).unwrap()
}

/// What somebody wants to do: verb, group, resource, name.
type Deed<'a> = (&'a str, &'a str, &'a str, &'a str);

impl Right {
    /// As RBAC decides; without names a rule is for all of them.
    fn allows(&self, (verb, group, resource, name): Deed<'_>) -> bool {
        let has = |list: &[String], what: &str| list.iter().any(|one| one == what || one == "*");
        has(&self.verbs, verb)
            && has(&self.api_groups, group)
            && has(&self.resources, resource)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|one| one == name))
    }
}

type Shared = Arc<Mutex<Cluster>>;
type Answer = Response;

fn status(code: u16, reason: &str, message: &str) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code});
    (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
}

fn scale(cluster: &Cluster) -> Answer {
    // As the real one: a size of zero is left out.
    let spec = if cluster.replicas == 0 { json!({}) } else { json!({"replicas": cluster.replicas}) };
    let metadata =
        json!({"name": "cellbus-cell", "namespace": "cells", "resourceVersion": cluster.version.to_string()});
    let body = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec,
        "status": {"replicas": cluster.replicas}});
    Json(body).into_response()
}

/// Whether the caller is who it should be and may do this, and what is answered if not.
fn refused(cluster: &mut Cluster, headers: &HeaderMap, deed: Deed<'_>) -> Option<Answer> {
    cluster.asked += 1;
    let now = cluster.env.as_ref().map(Env::mono);
    if let (Some(now), Some(said)) = (now, cluster.said_busy.take()) {
        cluster.left_alone = Some(now.since(said));
    }
    if cluster.busy.1 > 0 {
        // As priority and fairness does it: before anything else, and not in JSON.
        cluster.busy.1 -= 1;
        cluster.said_busy = now;
        let text = "Too many requests, please try again later.";
        let seconds = cluster.busy.0.to_string();
        return Some((StatusCode::TOO_MANY_REQUESTS, [("retry-after", seconds)], text).into_response());
    }
    if headers.get("authorization").is_none_or(|value| value != &format!("Bearer {}", cluster.token)) {
        return Some(status(401, "Unauthorized", "Unauthorized"));
    }
    if !cluster.rights.iter().any(|right| right.allows(deed)) {
        let (verb, group, resource, name) = deed;
        let message = format!("{resource} \"{name}\" is forbidden: cannot {verb} resource in API group \"{group}\"");
        return Some(status(403, "Forbidden", &message));
    }
    cluster.refusal.map(|(code, message)| status(code, "", message))
}

const READ: Deed<'_> = ("get", "apps", "deployments/scale", "cellbus-cell");
const WRITE: Deed<'_> = ("patch", "apps", "deployments/scale", "cellbus-cell");

async fn read(State(shared): State<Shared>, headers: HeaderMap) -> Answer {
    let still = |cluster: &Cluster| cluster.still_after.is_some_and(|writes| cluster.applied.len() >= writes);
    if still(&shared.lock().unwrap()) {
        std::future::pending::<()>().await;
    }
    let mut cluster = shared.lock().unwrap();
    refused(&mut cluster, &headers, READ).unwrap_or_else(|| scale(&cluster))
}

async fn write(State(shared): State<Shared>, headers: HeaderMap, uri: Uri, body: Bytes) -> Answer {
    let silent = {
        let mut cluster = shared.lock().unwrap();
        if let Some(answer) = refused(&mut cluster, &headers, WRITE) {
            return answer;
        }
        assert!(uri.query().is_some_and(|query| query.contains("fieldManager=cellbus-controller")), "{uri}");
        assert_eq!(headers["content-type"], "application/merge-patch+json");
        let patch: Value = serde_json::from_slice(&body).unwrap();
        if cluster.interfere > 0 {
            cluster.interfere -= 1;
            cluster.version += 1;
        }
        if patch["metadata"]["resourceVersion"].as_str() != Some(&cluster.version.to_string()) {
            return status(
                409,
                "Conflict",
                "the object has been modified; please apply your changes to the latest version",
            );
        }
        cluster.replicas = u32::try_from(patch["spec"]["replicas"].as_u64().unwrap()).unwrap();
        cluster.version += 1;
        let replicas = cluster.replicas;
        cluster.applied.push(replicas);
        let silent = cluster.silent > 0;
        cluster.silent = cluster.silent.saturating_sub(1);
        silent
    };
    if silent {
        std::future::pending::<()>().await;
    }
    scale(&shared.lock().unwrap())
}

#[derive(serde::Deserialize)]
struct Selected {
    #[serde(rename = "fieldSelector")]
    field: String,
}

async fn pods(State(shared): State<Shared>, headers: HeaderMap, Query(selected): Query<Selected>) -> Answer {
    let mut cluster = shared.lock().unwrap();
    if let Some(answer) = refused(&mut cluster, &headers, ("list", "", "pods", "")) {
        return answer;
    }
    // It gives whole pods to whoever does not ask for less.
    assert!(headers["accept"].to_str().unwrap().contains("as=PartialObjectMetadataList"));
    let address = selected.field.strip_prefix("status.podIP=").unwrap();
    let found = cluster.pods.iter().filter(|(of, _)| *of == address);
    let items: Vec<Value> = found.map(|(_, name)| json!({"metadata": {"name": name, "namespace": "cells"}})).collect();
    let list =
        json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items});
    Json(list).into_response()
}

async fn mark(State(shared): State<Shared>, headers: HeaderMap, uri: Uri, body: Bytes) -> Answer {
    let mut cluster = shared.lock().unwrap();
    let name = uri.path().rsplit('/').next().unwrap().to_owned();
    if let Some(answer) = refused(&mut cluster, &headers, ("patch", "", "pods", &name)) {
        return answer;
    }
    let patch: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(patch, json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}}));
    cluster.marked.push(name.clone());
    Json(json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": name}}))
        .into_response()
}

fn router(shared: &Shared) -> Router {
    Router::new()
        .route(SCALE, get(read).patch(write))
        .route(PODS, get(pods))
        .route(&format!("{PODS}/{{pod}}"), axum::routing::patch(mark))
        .with_state(Arc::clone(shared))
}

/// A kubeconfig, as a person has it; its token is a file beside it, as pods have theirs.
fn kubeconfig(folder: &Path, server: &str, ca: Option<&Path>) -> Kubernetes {
    let ca = ca.map_or_else(String::new, |path| format!(", certificate-authority: {}", path.display()));
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         clusters: [{{name: here, cluster: {{server: \"{server}\"{ca}}}}}]\n\
         users: [{{name: me, user: {{tokenFile: token}}}}]\n\
         contexts: [{{name: here, context: {{cluster: here, user: me, namespace: cells}}}}]\n"
    );
    std::fs::write(folder.join("token"), "let-me-in").unwrap();
    let file = folder.join("kubeconfig");
    std::fs::write(&file, text).unwrap();
    Kubernetes {
        namespace: String::new(),
        deployment: "cellbus-cell".to_owned(),
        kubeconfig: Some(file),
        time_limit: Duration::from_secs(20),
    }
}

struct Here {
    env: Env,
    cluster: Shared,
    launcher: Arc<Asking>,
    folder: tempfile::TempDir,
}

/// A server that answers, and a launcher that knows it.
async fn here(cluster: Cluster, time_limit: Duration) -> Here {
    let (env, folder) = (env::real(tokio::runtime::Handle::current()), tempfile::tempdir().unwrap());
    let cluster = Arc::new(Mutex::new(Cluster { env: Some(env.clone()), ..cluster }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    env.spawn("api server", serve(listener, router(&cluster)));
    let config = Kubernetes { time_limit, ..kubeconfig(folder.path(), &server, None) };
    let launcher = kubernetes::start(env.clone(), config);
    Here { env, cluster, launcher, folder }
}

async fn serve(listener: TcpListener, router: Router) {
    axum::serve(listener, router).await.unwrap();
}

impl Here {
    fn cluster<T>(&self, look: impl FnOnce(&mut Cluster) -> T) -> T {
        look(&mut self.cluster.lock().unwrap())
    }
    async fn until<T: std::fmt::Debug>(
        &self,
        what: &str,
        look: impl Fn(&mut Cluster) -> T,
        holds: impl Fn(&T) -> bool,
    ) {
        until(&self.env, what, || self.cluster(&look), holds).await;
    }
    async fn trouble(&self, begins: &str) -> String {
        let begun = |trouble: &Option<String>| trouble.as_ref().is_some_and(|trouble| trouble.starts_with(begins));
        until(&self.env, begins, || self.launcher.trouble(), begun).await.unwrap()
    }
    async fn no_trouble(&self) {
        until(&self.env, "all is well", || self.launcher.trouble(), Option::is_none).await;
    }
}

const PATIENT: Duration = Duration::from_secs(20);

fn cell(k: u64, state: MemberState) -> Member {
    Member {
        cell: format!("cell-{k}").parse().unwrap(),
        role: Role::Cell,
        address: format!("https://10.0.0.{k}:7070"),
        state,
        joined_at: WallMs(k),
        beat: 1,
        build: Build::current(),
    }
}

fn wanted(desired: u32) -> Wanted {
    Wanted { desired, members: Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deployment_has_what_is_wanted_and_is_written_once() {
    let here = here(Cluster { replicas: 1, ..Cluster::default() }, PATIENT).await;
    here.launcher.want(wanted(4));
    here.until("four", |cluster| cluster.replicas, |replicas| *replicas == 4).await;
    here.no_trouble().await;
    // Read again, and not written again.
    (0..50).for_each(|_| here.launcher.want(wanted(4)));
    let asked = here.cluster(|cluster| cluster.asked);
    here.until("read again", |cluster| cluster.asked, |now| *now > asked).await;
    assert_eq!(here.cluster(|cluster| cluster.applied.clone()), [4]);
    // A size that somebody else sets is put right.
    here.cluster(|cluster| (cluster.replicas, cluster.version) = (2, cluster.version + 1));
    here.until("four again", |cluster| cluster.applied.clone(), |applied| *applied == [4, 4]).await;
    here.launcher.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_is_shown_and_tried_again_with_the_newest() {
    let here = here(Cluster { replicas: 1, interfere: 2, ..Cluster::default() }, PATIENT).await;
    here.launcher.want(wanted(4));
    let trouble = here.trouble("kubernetes_conflict: ").await;
    assert!(trouble.contains("deployments/scale cells/cellbus-cell"), "{trouble}");
    here.launcher.want(wanted(6));
    here.until("six", |cluster| cluster.replicas, |replicas| *replicas == 6).await;
    assert_eq!(here.cluster(|cluster| cluster.applied.clone()), [6], "what was overtaken is never written");
    here.no_trouble().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_has_a_code_and_its_words_and_is_tried_again() {
    let refusals = [
        (403, "kubernetes_forbidden: ", "User \"cellbus\" cannot patch resource \"deployments/scale\""),
        (404, "kubernetes_not_found: ", "deployments.apps \"cellbus-cell\" not found"),
        (422, "kubernetes_refused: ", "Deployment is invalid"),
        (503, "kubernetes_unreachable: ", "etcd is away"),
    ];
    for (code, begins, said) in refusals {
        let here = here(Cluster { replicas: 1, refusal: Some((code, said)), ..Cluster::default() }, PATIENT).await;
        here.launcher.want(wanted(3));
        let trouble = here.trouble(begins).await;
        assert!(trouble.contains(said), "{trouble}");
        here.cluster(|cluster| cluster.refusal = None);
        here.until("three", |cluster| cluster.replicas, |replicas| *replicas == 3).await;
        here.no_trouble().await;
    }
    let pages = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/docs/errors");
    for code in kubernetes::CODES {
        assert!(Path::new(&format!("{pages}/{code}.md")).exists(), "{code} has no page");
    }
}

/// A pod's token is replaced in its file every hour or so, and the old one ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_ended_is_read_again_from_its_file() {
    let here = here(Cluster { replicas: 1, ..Cluster::default() }, PATIENT).await;
    here.launcher.want(wanted(2));
    here.until("two", |cluster| cluster.replicas, |replicas| *replicas == 2).await;
    here.cluster(|cluster| cluster.token = "the-next");
    here.launcher.want(wanted(3));
    here.trouble("kubernetes_forbidden: ").await;
    // As a projected volume does it: all at once.
    let token = here.folder.path().join("token");
    std::fs::write(token.with_extension("new"), "the-next").unwrap();
    std::fs::rename(token.with_extension("new"), &token).unwrap();
    here.until("three", |cluster| cluster.replicas, |replicas| *replicas == 3).await;
    here.no_trouble().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_too_much_to_do_is_left_alone_for_as_long_as_it_says() {
    // Longer than the first pause after a failure.
    let here = here(Cluster { replicas: 1, busy: (4, 1), ..Cluster::default() }, PATIENT).await;
    here.launcher.want(wanted(3));
    let trouble = here.trouble("kubernetes_unreachable: ").await;
    assert!(trouble.contains("429: Too many requests"), "{trouble}");
    here.launcher.want(wanted(5));
    here.until("five", |cluster| cluster.applied.clone(), |applied| *applied == [5]).await;
    let left_alone = here.cluster(|cluster| cluster.left_alone).unwrap();
    assert!(left_alone >= Duration::from_secs(4), "it was asked again after {left_alone:?}");
    here.no_trouble().await;
}

/// Without the right to look at pods the size is set all the same, and chance says which one goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_told() {
    let mut rights = rights();
    rights.retain(|right| !right.resources.contains(&"pods".to_owned()));
    let pods = vec![("10.0.0.2", "cell-b")];
    // A turn that finds nothing to do would have nothing to tell.
    let cluster = Cluster { replicas: 2, pods, rights, still_after: Some(1), ..Cluster::default() };
    let here = here(cluster, Duration::from_secs(600)).await;
    let members = (1..=2).map(|k| cell(k, MemberState::Active)).collect();
    here.launcher.want(Wanted { desired: 1, members });
    here.until("one", |cluster| cluster.applied.clone(), |applied| *applied == [1]).await;
    let trouble = here.trouble("kubernetes_forbidden: ").await;
    assert!(trouble.contains("pods"), "{trouble}");
    assert!(here.cluster(|cluster| cluster.marked.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_is_not_made_again() {
    let here = here(Cluster { replicas: 1, silent: 1, ..Cluster::default() }, Duration::from_secs(2)).await;
    here.launcher.want(wanted(5));
    let trouble = here.trouble("kubernetes_unreachable: ").await;
    assert!(trouble.contains("within 2.0 s"), "{trouble}");
    here.no_trouble().await;
    assert_eq!(here.cluster(|cluster| cluster.applied.clone()), [5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_asked_again_until_it_is_there() {
    let (env, folder) = (env::real(tokio::runtime::Handle::current()), tempfile::tempdir().unwrap());
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = kubeconfig(folder.path(), &format!("http://{free}"), None);
    // Neither its file nor the server is there.
    let file = config.kubeconfig.clone().unwrap();
    let text = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let launcher = kubernetes::start(env.clone(), config);
    launcher.want(wanted(2));
    let begins = |with: &'static str| move |said: &Option<String>| said.as_ref().is_some_and(|s| s.starts_with(with));
    until(&env, "no file", || launcher.trouble(), begins("kubernetes_credentials: ")).await;
    std::fs::write(&file, text).unwrap();
    until(&env, "no server", || launcher.trouble(), begins("kubernetes_unreachable: ")).await;
    let cluster = Shared::default();
    env.spawn("api server", serve(TcpListener::bind(free).await.unwrap(), router(&cluster)));
    until(&env, "two", || cluster.lock().unwrap().applied.clone(), |applied| *applied == [2]).await;
    until(&env, "all is well", || launcher.trouble(), Option::is_none).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_youngest_cell_leaves_first_and_one_at_a_time() {
    let pods = vec![("10.0.0.1", "cell-a"), ("10.0.0.2", "cell-b"), ("10.0.0.3", "cell-c")];
    let here = here(Cluster { replicas: 3, pods, ..Cluster::default() }, PATIENT).await;
    use MemberState::{Active, Draining};
    let mut members = vec![cell(1, Active), cell(2, Active), cell(3, Active)];
    here.launcher.want(Wanted { desired: 1, members: members.clone() });
    here.until("one goes", |cluster| cluster.applied.clone(), |applied| *applied == [2]).await;
    members[2] = cell(3, Draining);
    here.launcher.want(Wanted { desired: 1, members: members.clone() });
    let asked = here.cluster(|cluster| cluster.asked);
    here.until("looked again", |cluster| cluster.asked, |now| *now > asked).await;
    assert_eq!(here.cluster(|cluster| cluster.applied.clone()), [2], "one still drains");
    members.pop();
    here.launcher.want(Wanted { desired: 1, members });
    here.until("the next goes", |cluster| cluster.applied.clone(), |applied| *applied == [2, 1]).await;
    assert_eq!(here.cluster(|cluster| cluster.marked.clone()), ["cell-c", "cell-b"]);
    here.no_trouble().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_trusted_by_its_own_ca() {
    let (env, folder) = (env::real(tokio::runtime::Handle::current()), tempfile::tempdir().unwrap());
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, key.cert.pem()).unwrap();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let cluster = Shared::default();
    let (serving, running) = (router(&cluster), env.clone());
    env.spawn("api server", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, router) = (acceptor.clone(), serving.clone());
            running.spawn("connection", async move {
                // One that does not trust it goes away.
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper_util::service::TowerToHyperService::new(router);
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            });
        }
    });
    let server = format!("https://localhost:{port}");
    let strange = kubernetes::start(env.clone(), kubeconfig(folder.path(), &server, None));
    strange.want(wanted(9));
    let begins = |said: &Option<String>| said.as_ref().is_some_and(|s| s.starts_with("kubernetes_"));
    let trouble = until(&env, "not trusted", || strange.trouble(), begins).await.unwrap();
    assert!(trouble.to_lowercase().contains("certificate"), "{trouble}");
    strange.stop().await;
    let launcher = kubernetes::start(env.clone(), kubeconfig(folder.path(), &server, Some(&ca)));
    launcher.want(wanted(2));
    until(&env, "two", || cluster.lock().unwrap().applied.clone(), |applied| *applied == [2]).await;
}
