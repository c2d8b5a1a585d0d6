//! An operator's own command, told how many cells there are to be.

use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::contract::MemberState;
use cellbus_bus::{Env, Mono};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Launcher, Wanted};

/// The first pause after a failure; doubled each time.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
/// The longest.
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// While there are not as many cells as were asked for, the command is told again so often: whoever
/// starts them may have forgotten.
const REMIND: Duration = Duration::from_secs(60);
/// Of what the command prints, the rest being thrown away.
const OUTPUT_BYTES_MAX: u64 = 4_096;

/// See the module. It is called with the newest number, one call at a time, again after a failure,
/// and killed when it takes too long.
pub struct CommandLauncher {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    command: Vec<String>,
    time_limit: Duration,
    state: Mutex<State>,
    changed: Notify,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    desired: Option<u32>,
    /// Whether as many cells are there.
    as_wanted: bool,
    trouble: Option<String>,
}

impl CommandLauncher {
    /// That calls `command`: a program and its arguments, in which `{desired}` is replaced.
    #[must_use]
    pub fn start(env: Env, command: Vec<String>, time_limit: Duration) -> Arc<Self> {
        let inner = Arc::new(Inner {
            env,
            command,
            time_limit,
            state: Mutex::default(),
            changed: Notify::new(),
            stop: CancellationToken::new(),
        });
        let running = Arc::clone(&inner);
        inner.env.spawn("scale command", async move { running.run().await });
        Arc::new(Self { inner })
    }
}

#[async_trait]
impl Launcher for CommandLauncher {
    fn name(&self) -> &'static str {
        "command"
    }
    fn want(&self, wanted: Wanted) {
        let active = wanted.members.iter().filter(|member| member.state == MemberState::Active).count();
        let mut state = self.inner.state();
        state.as_wanted = active == wanted.desired as usize;
        if state.desired.replace(wanted.desired) != Some(wanted.desired) {
            self.inner.changed.notify_one();
        }
    }
    fn trouble(&self) -> Option<String> {
        self.inner.state().trouble.clone()
    }
    async fn stop(&self) {
        self.inner.stop.cancel();
    }
}

impl Drop for CommandLauncher {
    fn drop(&mut self) {
        self.inner.stop.cancel();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self) {
        let mut told: Option<(u32, Mono)> = None;
        let mut pause = AGAIN_FIRST;
        loop {
            let (desired, as_wanted) = {
                let state = self.state();
                (state.desired, state.as_wanted)
            };
            let due = desired.filter(|desired| {
                told.is_none_or(|(last, at)| last != *desired || (!as_wanted && self.env.mono().since(at) >= REMIND))
            });
            let wait = match due {
                None => REMIND,
                Some(desired) => {
                    let called = tokio::select! {
                        biased;
                        () = self.stop.cancelled() => return,
                        called = self.call(desired) => called,
                    };
                    match called {
                        Ok(()) => {
                            (told, pause) = (Some((desired, self.env.mono())), AGAIN_FIRST);
                            self.state().trouble = None;
                            continue;
                        }
                        Err(trouble) => {
                            tracing::warn!(desired, trouble, "the command that starts cells failed; trying again");
                            self.state().trouble = Some(trouble);
                            (told, pause) = (None, (pause * 2).min(AGAIN_MAX));
                            pause / 2
                        }
                    }
                }
            };
            // A failure waits its pause out, whatever is wanted meanwhile.
            let failed = self.state().trouble.is_some();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.changed.notified(), if !failed => {}
                () = self.env.sleep(wait) => {}
            }
        }
    }

    /// Calls it once; why it failed.
    async fn call(&self, desired: u32) -> Result<(), String> {
        let mut words = self.command.iter().map(|word| word.replace("{desired}", &desired.to_string()));
        let program = words.next().unwrap_or_default();
        let mut child = Command::new(&program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Whoever stops waiting stops it.
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{program} cannot be started: {error}"))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let ended = async {
            let (_, said, ended) = futures::join!(first_of(out), first_of(err), child.wait());
            (said, ended)
        };
        let Some((said, ended)) = self.env.timeout(self.time_limit, ended).await else {
            return Err(format!("{program} took longer than {:.1} s and was stopped", self.time_limit.as_secs_f64()));
        };
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{program} ended with {status}: {}", said.trim())),
            Err(error) => Err(format!("{program}: {error}")),
        }
    }
}

/// The beginning of what it prints; the rest is read, so that it is not held up, and thrown away.
async fn first_of(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut kept = Vec::new();
    // What cannot be read was not said.
    let _ = (&mut stream).take(OUTPUT_BYTES_MAX).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}
