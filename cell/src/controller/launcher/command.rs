//! An operator's own command, told how many cells there are to be.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::contract::MemberState;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use super::Wanted;
use super::asking::{Ask, Asking};

/// While there are not as many cells as were asked for, the command is told again so often: whoever
/// starts them may have forgotten.
const REMIND: Duration = Duration::from_secs(60);
/// Of what the command prints, the rest being thrown away.
const OUTPUT_BYTES_MAX: u64 = 4_096;

struct Call {
    env: Env,
    command: Vec<String>,
    time_limit: Duration,
}

/// Has `command` called: a program and its arguments, in which `{desired}` is replaced. It is called
/// with the newest number, one call at a time, again after a failure, and killed when it takes longer
/// than `time_limit`.
#[must_use]
pub fn start(env: Env, command: Vec<String>, time_limit: Duration) -> Arc<Asking> {
    Asking::start(env.clone(), Box::new(Call { env, command, time_limit }))
}

#[async_trait]
impl Ask for Call {
    fn name(&self) -> &'static str {
        "command"
    }
    fn every(&self) -> Duration {
        REMIND
    }
    async fn ask(&self, wanted: &Wanted, again: bool) -> Result<Option<String>, String> {
        let active = wanted.members.iter().filter(|member| member.state == MemberState::Active).count();
        if !again || active != wanted.desired as usize {
            self.call(wanted.desired).await?;
        }
        Ok(None)
    }
}

impl Call {
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
