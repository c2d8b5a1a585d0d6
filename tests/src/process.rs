//! `cellbus up` as a child process: on a port of its own choice, in a directory of the test's,
//! killed when dropped, its log shown when the test fails.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::binary::cellbus;

/// How long a start, with replay and inventory, may take on a busy machine.
const START: Duration = Duration::from_secs(120);
/// How much of the log is shown when a test fails.
const LOG_SHOWN: usize = 8 << 10;

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
    /// `http://127.0.0.1:port`.
    pub url: String,
    http: reqwest::Client,
}

/// Where jobs go in, for a producer that lives on its own.
#[derive(Clone, Debug)]
pub struct Door {
    url: String,
    http: reqwest::Client,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, null if it is not JSON.
    pub body: Value,
}

/// The command, with none of the surroundings that change what it does.
#[must_use]
pub fn command() -> Command {
    command_of(cellbus())
}

/// As [`command`], of another build.
#[must_use]
pub fn command_of(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CELLBUS_") {
            command.env_remove(name);
        }
    }
    command.env_remove("COLUMNS").env_remove("RUST_LOG");
    command
}

impl Server {
    /// Starts `cellbus up` over `data` and waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time; its log is part of the error.
    pub async fn start(data: &Path, arguments: &[&str]) -> Result<Self> {
        let server = Self::listening(data, arguments)?;
        server.ready().await?;
        Ok(server)
    }

    /// Starts `cellbus up` and waits until it says where it listens.
    ///
    /// # Errors
    /// When it ends before; its log is part of the error.
    pub fn listening(data: &Path, arguments: &[&str]) -> Result<Self> {
        let data_text = data.to_str().context("paths of tests are UTF-8")?;
        let up = ["up", "--listen", "127.0.0.1:0", "--data", data_text];
        Self::spawn(data, &[&up[..], arguments].concat())
    }

    /// Starts a command that serves, with its log beside `near`, and waits until it says where it
    /// listens.
    ///
    /// # Errors
    /// When it ends before; its log is part of the error.
    pub fn spawn(near: &Path, arguments: &[&str]) -> Result<Self> {
        Self::spawn_of(cellbus(), near, arguments)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it has had.
    ///
    /// # Errors
    /// When it has gone.
    pub fn cpu(&self) -> Result<Duration> {
        cpu_of(self.pid())
    }

    /// Where jobs go in.
    #[must_use]
    pub fn door(&self) -> Door {
        Door { url: format!("{}/v1/jobs", self.url), http: self.http.clone() }
    }

    /// As [`Server::spawn`], of another build.
    ///
    /// # Errors
    /// When it ends before; its log is part of the error.
    pub fn spawn_of(binary: &Path, near: &Path, arguments: &[&str]) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = near.with_extension(format!("{}-{number}.log", std::process::id()));
        let mut child = command_of(binary)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?);
        let mut server = Self { child, log, url: String::new(), http: client()? };
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                let status = server.child.wait()?;
                bail!("cellbus {} ended with {status} before it listened:\n{}", arguments[0], server.log_tail());
            }
            if let Some(url) = line.trim_end().strip_prefix("listening on ") {
                url.clone_into(&mut server.url);
                break;
            }
        }
        // The pipe is kept empty, or a server that prints more would stop at a full one.
        thread::spawn(move || {
            let mut rest = Vec::new();
            lines.read_to_end(&mut rest)
        });
        Ok(server)
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn ready(&self) -> Result<()> {
        wait_for("the server to be ready", START, async || {
            let answer = self.get("/readyz").await?;
            Ok(if answer.status == 200 { Ok(()) } else { Err(format!("{} {}", answer.status, answer.body)) })
        })
        .await
        .with_context(|| self.log_tail())
    }

    /// `GET`.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        answer(self.http.get(format!("{}{path}", self.url))).await
    }
    /// `GET` of text.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn text(&self, path: &str) -> Result<String> {
        Ok(self.http.get(format!("{}{path}", self.url)).send().await?.text().await?)
    }
    /// `POST` of JSON.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        answer(self.http.post(format!("{}{path}", self.url)).json(body)).await
    }
    /// `PUT` of JSON.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Answer> {
        answer(self.http.put(format!("{}{path}", self.url)).json(body)).await
    }
    /// `POST /v1/jobs` of one event.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn submit(&self, event: &Value) -> Result<Answer> {
        self.submit_text(event.to_string()).await
    }
    /// `POST /v1/jobs` of whatever is said to be one event.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn submit_text(&self, event: impl Into<reqwest::Body>) -> Result<Answer> {
        answer(self.door().request("").body(event)).await
    }
    /// Every item of a list, over all its pages.
    ///
    /// # Errors
    /// When a page is refused.
    pub async fn all(&self, path: &str) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let joint = if path.contains('?') { '&' } else { '?' };
            let page = self.get(&format!("{path}{joint}limit=1000{cursor}")).await?;
            if page.status != 200 {
                bail!("{path}: {} {}", page.status, page.body);
            }
            items.extend(page.body["items"].as_array().context("a page has items")?.iter().cloned());
            match page.body["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(items),
            }
        }
    }
    /// Runs a client command against this server.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        Ok(command().args(arguments).env("CELLBUS_SERVER", &self.url).stdin(Stdio::null()).output()?)
    }
    /// Runs a client command that must succeed; gives what it prints.
    ///
    /// # Errors
    /// When it does not succeed.
    pub fn succeed(&self, arguments: &[&str]) -> Result<String> {
        let done = self.run(arguments)?;
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        if !done.status.success() {
            bail!("cellbus {arguments:?}: {}\n{out}\n{err}\n{}", done.status, self.log_tail());
        }
        Ok(out.into_owned())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it has gone already.
    pub fn kill(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it had ended before it was killed, with {status}:\n{}", self.log_tail());
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
    /// SIGTERM, and the wait for its end.
    ///
    /// # Errors
    /// When it does not end within `within`.
    pub async fn terminate(mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended(within).await
    }
    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("a pid is above zero")?;
        Ok(kill_process(pid, signal)?)
    }
    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within `within`.
    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > within {
                bail!("it still runs after {within:?}:\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    /// Its log.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_SHOWN)..];
        format!("── {} ──\n{}", self.log.display(), String::from_utf8_lossy(tail))
    }
}

impl Door {
    fn request(&self, query: &str) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{query}", self.url)).header("content-type", "application/cloudevents+json")
    }
    /// `POST /v1/jobs?wait` of one event: 200 once its job has ended, 202 when that took too long.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn submit_and_wait(&self, event: impl Into<reqwest::Body>) -> Result<Answer> {
        answer(self.request("?wait=50s").body(event)).await
    }
    /// Submits a job, again if it was not taken or has not ended in time, until it has ended; gives it as it ended.
    ///
    /// # Errors
    /// When it has not ended `within`, or there is no answer.
    pub async fn end(&self, event: &Value, within: Duration) -> Result<Value> {
        let (began, event) = (Instant::now(), event.to_string());
        loop {
            let Answer { status, body } = self.submit_and_wait(event.clone()).await?;
            if status == 200 {
                return Ok(body);
            }
            ensure!(began.elapsed() < within, "after {within:?} it is still: {status} {body}: {event}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    /// As [`Door::end`], of one that must succeed.
    ///
    /// # Errors
    /// When it ends otherwise, too.
    pub async fn succeed(&self, event: &Value, within: Duration) -> Result<Value> {
        let ended = self.end(event, within).await?;
        ensure!(ended["state"] == "succeeded", "{event}: {ended}");
        Ok(ended)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

fn client() -> Result<reqwest::Client> {
    cellbus_cell::security::use_ring();
    Ok(reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build()?)
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Answer> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let body = serde_json::from_slice(&response.bytes().await?).unwrap_or_default();
    Ok(Answer { status, body })
}

/// CPU time that a process has had.
///
/// # Errors
/// When it has gone.
pub fn cpu_of(pid: u32) -> Result<Duration> {
    /// What Linux tells user space on every architecture of today.
    const TICKS_A_SECOND: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    // Behind the name, which may hold anything, utime and stime are the 12th and 13th.
    let behind = stat.rsplit(')').next().unwrap_or_default();
    let mut ticks = 0_u64;
    for field in behind.split_ascii_whitespace().skip(11).take(2) {
        ticks += field.parse::<u64>()?;
    }
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_A_SECOND))
}

/// Ends whatever was started with this folder among its arguments: cells of a controller that was killed are
/// nobody's children any more, and would slow down every test after this one.
pub fn end_those_of(folder: &Path) {
    let folder = folder.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if arguments.windows(folder.len()).any(|part| part == folder) {
            // It may have ended since.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Tries until `condition` gives `Ok`; what it says otherwise is the last known state.
///
/// # Errors
/// When that takes longer than `deadline`, with the last state; and any error of the condition.
pub async fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        match condition().await? {
            Ok(value) => return Ok(value),
            Err(state) if began.elapsed() > deadline => bail!("waited {deadline:?} for {what}; it is still: {state}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Whether long forms of tests are asked for (`ops/test --long`).
#[must_use]
pub fn long() -> bool {
    std::env::var_os("CELLBUS_LONG").is_some_and(|value| value == "1")
}

/// A CloudEvent of `kind`, of tenant `acme`.
#[must_use]
pub fn event(kind: &str, id: &str, subject: Option<&str>, data: &Value) -> Value {
    let mut event = serde_json::json!({
        "specversion": "1.0", "id": id, "source": "/tests", "tenant": "acme",
        "type": format!("io.cellbus.job.{kind}.v1"), "data": data,
    });
    if let Some(subject) = subject {
        event["subject"] = subject.into();
    }
    event
}
