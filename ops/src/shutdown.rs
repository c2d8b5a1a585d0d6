//! The first SIGTERM or Ctrl-C asks for an orderly end, the second is one.

use anyhow::Context as _;
use cellbus_bus::Env;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// As a shell counts an end by signal: 128 + SIGINT.
const STOPPED_BY_SIGNAL: i32 = 130;

/// A token that the first signal cancels.
pub(crate) fn on_signal(env: &Env) -> anyhow::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let token = CancellationToken::new();
    let asked = token.clone();
    env.spawn("signals", async move {
        for count in 0_u32.. {
            tokio::select! {
                biased;
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if count > 0 {
                tracing::warn!("stopping at once: what is under way is taken up at the next start");
                // Nothing needs a destructor: everything acknowledged is on disk.
                std::process::exit(STOPPED_BY_SIGNAL);
            }
            asked.cancel();
        }
    });
    Ok(token)
}
