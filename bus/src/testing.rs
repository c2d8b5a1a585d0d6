//! What the helpers that start real servers for tests have in common.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

mod ports;

pub use ports::Port;

/// How much of a log is shown when a test fails.
const LOG_SHOWN: usize = 8 << 10;

/// Runs a server until standard input ends, which it also does when this process is killed.
const WATCHED: &str = r#"
log=$1; shift
"$@" >>"$log" 2>&1 &
pid=$!
cat >/dev/null
kill -9 "$pid" 2>/dev/null
wait "$pid" 2>/dev/null
"#;

/// A command that runs the server of the arguments that are added to it, until this process ends or
/// [`kill`] is called. What it says goes to `log`.
pub(crate) fn watched(log: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", WATCHED, "sh"]).arg(log).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// `kill -9`.
pub(crate) fn kill(mut watching: Child) -> io::Result<()> {
    // The end of its input makes the watching shell kill the server.
    drop(watching.stdin.take());
    watching.wait().map(drop)
}

/// A folder for a server of this name, that no other has.
pub(crate) fn folder(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("cellbus-{name}-{}-{number}", std::process::id()))
}

/// The folder that `ops/setup` installs things in.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("target"),
        PathBuf::from,
    )
}

/// What a variable names, if it is set.
pub(crate) fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|name| !name.is_empty()).map(PathBuf::from)
}

/// What `setup` has installed for tests: what the variable names, else what lies there below the target folder.
/// `None`, said loudly, where it is not: the test is left out.
///
/// # Panics
/// With `CI=true`, where nothing may be left out.
#[must_use]
pub fn tool(variable: &str, below_target: &str, what: &str, setup: &str) -> Option<PathBuf> {
    let tool = named(variable).unwrap_or_else(|| target().join(below_target));
    (!left_out(tool.exists(), what, setup, variable)).then_some(tool)
}

/// Whether tests that need what is not `there` are left out, as `ops/test` says where it is not. Said
/// loudly, since a test that is left out looks like one that passes.
///
/// # Panics
/// With `CI=true`, where nothing may be left out.
pub(crate) fn left_out(there: bool, what: &str, setup: &str, variable: &str) -> bool {
    if there {
        return false;
    }
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "no {what}: run {setup}");
    eprintln!("LEFT OUT: no {what}; run {setup}, or set {variable}");
    true
}

/// The end of a log.
pub(crate) fn log_end(log: &Path) -> String {
    let log = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_SHOWN)..]).into_owned()
}
