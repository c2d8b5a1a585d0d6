//! The API as a client meets it, over real sockets, with a process behind it that is made up.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cellbus_bus::cloudevent::Tenants;
use prometheus::Registry;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::log::LogLevel;
use super::*;

mod access;
mod certificates;
mod documents;
mod edges;
mod fake;
mod intake;
mod lookups;
mod members;
mod operators;
mod tls;

use fake::Fake;

/// A server on a port of the system's choice, stopped when dropped.
struct Server {
    address: SocketAddr,
    fake: Arc<Fake>,
    client: Client,
    stop: CancellationToken,
}

#[derive(Default)]
struct Level(Mutex<String>);
impl LogLevel for Level {
    fn level(&self) -> String {
        self.0.lock().unwrap().clone()
    }
    fn set(&self, level: &str) -> Result<(), String> {
        if level.contains("loud") {
            return Err("no such level".to_owned());
        }
        *self.0.lock().unwrap() = level.to_owned();
        Ok(())
    }
}

impl Server {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }
    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let fake = Arc::new(Fake::default());
        let mut settings = Settings::default();
        change(&mut settings);
        let metrics = Arc::new(Metrics::new(Registry::new()).unwrap());
        let app = App::new(Arc::clone(&fake) as _, env(), settings, metrics, Arc::new(Level::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        env().spawn("server", serve(app, listener, stop.clone()));
        crate::security::use_ring();
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        Self { address, fake, client, stop }
    }
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
    async fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }
    async fn post(&self, path: &str) -> Response {
        self.client.post(self.url(path)).send().await.unwrap()
    }
    async fn send(&self, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Response {
        self.client.post(self.url(path)).header("content-type", content_type).body(body).send().await.unwrap()
    }
    async fn submit(&self, path: &str, event: &Value) -> Response {
        self.send(path, "application/cloudevents+json", event.to_string()).await
    }
    /// Bytes as they are, and all that comes back until the server closes.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // The server may close while we would still write: what it said before counts.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}
impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn ok(response: Response) -> Value {
    let status = response.status();
    let text = response.text().await.unwrap();
    assert!(status.is_success(), "{status} {text}");
    serde_json::from_str(&text).unwrap()
}

/// Checks the form of a problem document and gives its code.
async fn problem(response: Response, status: u16) -> (String, Value) {
    let found = response.status();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let retry_after = response.headers().get("retry-after").cloned();
    let value: Value = response.json().await.unwrap();
    assert_eq!(found, StatusCode::from_u16(status).unwrap(), "{value}");
    assert_eq!(value["status"], status);
    let code = value["code"].as_str().unwrap().to_owned();
    assert_eq!(value["type"], format!("urn:cellbus:error:{code}"));
    assert!(value["title"].as_str().is_some_and(|t| !t.is_empty()));
    assert!(value["detail"].as_str().is_some_and(|t| t.len() > 5), "{value}");
    assert_eq!(retry_after.is_some(), status == 429 || status == 503, "Retry-After goes with 429 and 503");
    (code, value)
}

fn provision(id: &str) -> Value {
    json!({
        "specversion": "1.0", "id": id, "source": "/t", "type": "io.cellbus.job.provision.v1", "tenant": "acme",
        "data": {"name": "web", "vcpus": 1, "memory_mib": 64, "disk_gib": 1, "image": "debian-12"}
    })
}

fn env() -> Env {
    cellbus_bus::env::real(tokio::runtime::Handle::current())
}
