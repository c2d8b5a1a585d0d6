//! The launcher for Kubernetes against an API server of the test's own, which does what the real one
//! does with a Deployment's scale and with pods: versions, conflicts, refusals.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::get;
use axum::{Json, Router};
use cellbus_bus::contract::{Member, MemberState, Role};
use cellbus_bus::format::Build;
use cellbus_bus::{Env, WallMs, env};
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
#[derive(Default)]
struct Cluster {
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
}

type Shared = Arc<Mutex<Cluster>>;
type Answer = (StatusCode, Json<Value>);

fn status(code: u16, message: &str) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code});
    (StatusCode::from_u16(code).unwrap(), Json(body))
}

fn scale(cluster: &Cluster) -> Answer {
    // As the real one: a size of zero is left out.
    let spec = if cluster.replicas == 0 { json!({}) } else { json!({"replicas": cluster.replicas}) };
    let metadata =
        json!({"name": "cellbus-cell", "namespace": "cells", "resourceVersion": cluster.version.to_string()});
    let body = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec,
        "status": {"replicas": cluster.replicas}});
    (StatusCode::OK, Json(body))
}

/// Whether the caller is who it should be, and what is answered if not.
fn refused(cluster: &mut Cluster, headers: &HeaderMap) -> Option<Answer> {
    cluster.asked += 1;
    if headers.get("authorization").is_none_or(|value| value != "Bearer let-me-in") {
        return Some(status(401, "Unauthorized"));
    }
    cluster.refusal.map(|(code, message)| status(code, message))
}

async fn read(State(shared): State<Shared>, headers: HeaderMap) -> Answer {
    let mut cluster = shared.lock().unwrap();
    refused(&mut cluster, &headers).unwrap_or_else(|| scale(&cluster))
}

async fn write(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Answer {
    let silent = {
        let mut cluster = shared.lock().unwrap();
        if let Some(answer) = refused(&mut cluster, &headers) {
            return answer;
        }
        assert_eq!(headers["content-type"], "application/merge-patch+json");
        let patch: Value = serde_json::from_slice(&body).unwrap();
        if cluster.interfere > 0 {
            cluster.interfere -= 1;
            cluster.version += 1;
        }
        if patch["metadata"]["resourceVersion"].as_str() != Some(&cluster.version.to_string()) {
            return status(409, "the object has been modified; please apply your changes to the latest version");
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
    if let Some(answer) = refused(&mut cluster, &headers) {
        return answer;
    }
    let address = selected.field.strip_prefix("status.podIP=").unwrap();
    let found = cluster.pods.iter().filter(|(of, _)| *of == address);
    let items: Vec<Value> = found.map(|(_, name)| json!({"metadata": {"name": name, "namespace": "cells"}})).collect();
    let list =
        json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items});
    (StatusCode::OK, Json(list))
}

async fn mark(State(shared): State<Shared>, headers: HeaderMap, uri: Uri, body: Bytes) -> Answer {
    let mut cluster = shared.lock().unwrap();
    if let Some(answer) = refused(&mut cluster, &headers) {
        return answer;
    }
    let patch: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(patch, json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}}));
    let name = uri.path().rsplit('/').next().unwrap().to_owned();
    cluster.marked.push(name.clone());
    (
        StatusCode::OK,
        Json(json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": name}})),
    )
}

fn router(shared: &Shared) -> Router {
    Router::new()
        .route(SCALE, get(read).patch(write))
        .route(PODS, get(pods))
        .route(&format!("{PODS}/{{pod}}"), axum::routing::patch(mark))
        .with_state(Arc::clone(shared))
}

/// A kubeconfig, as a person has it.
fn kubeconfig(folder: &Path, server: &str, ca: Option<&Path>) -> Kubernetes {
    let ca = ca.map_or_else(String::new, |path| format!(", certificate-authority: {}", path.display()));
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         clusters: [{{name: here, cluster: {{server: \"{server}\"{ca}}}}}]\n\
         users: [{{name: me, user: {{token: let-me-in}}}}]\n\
         contexts: [{{name: here, context: {{cluster: here, user: me, namespace: cells}}}}]\n"
    );
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
    _folder: tempfile::TempDir,
}

/// A server that answers, and a launcher that knows it.
async fn here(cluster: Cluster, time_limit: Duration) -> Here {
    let (env, folder) = (env::real(tokio::runtime::Handle::current()), tempfile::tempdir().unwrap());
    let cluster = Arc::new(Mutex::new(cluster));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    env.spawn("api server", serve(listener, router(&cluster)));
    let config = Kubernetes { time_limit, ..kubeconfig(folder.path(), &server, None) };
    let launcher = kubernetes::start(env.clone(), config);
    Here { env, cluster, launcher, _folder: folder }
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
    let cell = |k: u64, state| Member {
        cell: format!("cell-{k}").parse().unwrap(),
        role: Role::Cell,
        address: format!("https://10.0.0.{k}:7070"),
        state,
        joined_at: WallMs(k),
        beat: 1,
        build: Build::current(),
    };
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
