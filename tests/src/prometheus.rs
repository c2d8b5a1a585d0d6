//! Prometheus, its tool and its Alertmanager, as `ops/setup/prometheus` has them: child processes on
//! ports of their own choice, killed when dropped; and a webhook that remembers what it was told.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cellbus_bus::testing::tool;
use serde_json::Value;

use crate::process::wait_for;
use crate::workspace::root;

const START: Duration = Duration::from_secs(60);
/// Far above what Alertmanager sends of a few alerts.
const BODY_MAX: usize = 4 << 20;

/// The folder with the tools; `None`, said loudly, where they are not.
///
/// # Panics
/// With `CI=true`, where nothing may be left out.
#[must_use]
pub fn tools() -> Option<PathBuf> {
    tool("CELLBUS_PROMETHEUS", "prometheus/bin", "Prometheus and Alertmanager", "ops/setup/prometheus")
}

/// Runs promtool.
///
/// # Errors
/// When it cannot be run.
pub fn promtool(folder: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(folder.join("promtool"));
    Ok(command.args(arguments).current_dir(root()).stdin(Stdio::null()).output()?)
}

/// A server of theirs.
#[derive(Debug)]
pub struct Tool {
    child: Child,
    log: PathBuf,
    /// `127.0.0.1:port`.
    pub address: String,
    http: reqwest::Client,
}

impl Tool {
    /// Starts one, with its log as `log`, and waits until it says where it listens.
    ///
    /// # Errors
    /// When it does not in time; its log is part of the error.
    pub async fn start(program: &Path, arguments: &[&str], log: PathBuf) -> Result<Self> {
        let output = File::create(&log)?;
        let child = Command::new(program)
            .args(arguments)
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| program.display().to_string())?;
        cellbus_cell::security::use_ring();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?;
        let mut tool = Self { child, log, address: String::new(), http };
        tool.address = wait_for("it to listen", START, async || {
            let log = std::fs::read_to_string(&tool.log)?;
            let line = log.lines().find(|line| line.contains("msg=\"Listening on\""));
            let address = line.and_then(|line| line.split("address=").nth(1)?.split_whitespace().next());
            Ok(address.map(str::to_owned).ok_or(log))
        })
        .await?;
        Ok(tool)
    }

    /// `GET` of JSON; null for any other answer, such as that of a server that has just begun.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.http.get(format!("http://{}{path}", self.address)).send().await?;
        Ok(serde_json::from_slice(&answer.bytes().await?).unwrap_or_default())
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("── {} ──\n{}", self.log.display(), std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// A webhook: it takes what Alertmanager posts, and keeps it. It lives as long as the test process.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// `http://127.0.0.1:port/`.
    pub url: String,
    told: Arc<Mutex<Vec<Value>>>,
}

impl Webhook {
    /// Begins to listen on a port of the system's choice.
    ///
    /// # Errors
    /// When it cannot.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let webhook = Self { url: format!("http://{}/", listener.local_addr()?), told: Arc::default() };
        let told = Arc::clone(&webhook.told);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if let Ok(body) = take(stream) {
                    told.lock().unwrap_or_else(PoisonError::into_inner).push(body);
                }
            }
        });
        Ok(webhook)
    }

    /// Every alert that it was told of, oldest first: each as Alertmanager gives it, with `status`,
    /// `labels`, `annotations`.
    #[must_use]
    pub fn alerts(&self) -> Vec<Value> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().filter_map(|body| body["alerts"].as_array()).flatten().cloned().collect()
    }
}

fn take(mut stream: TcpStream) -> Result<Value> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse()?;
        }
    }
    anyhow::ensure!(length <= BODY_MAX, "{length} bytes are too many");
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    Ok(serde_json::from_slice(&body)?)
}
