//! Structured logs on stderr, as text or JSON, whose level can be changed while it runs.

use std::io::{self, IsTerminal as _};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use cellbus_cell::config::LogFormat;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// The level of the running process.
#[derive(Clone)]
pub(crate) struct Level {
    handle: Arc<reload::Handle<EnvFilter, Registry>>,
}

/// Begins to log. Once a process.
pub(crate) fn init(format: LogFormat, filter: &str) -> anyhow::Result<Level> {
    let filter = parse(filter).map_err(|error| anyhow!(error))?;
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let coloured = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match format {
        LogFormat::Text => registry.with(fmt::layer().with_writer(io::stderr).with_ansi(coloured)).try_init(),
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init(),
    }
    .context("logging has begun already")?;
    Ok(Level { handle: Arc::new(handle) })
}

impl Level {
    /// What is logged from now on: a level, or directives such as `info,cellbus_cell=debug`.
    pub(crate) fn change(&self, filter: &str) -> Result<(), String> {
        self.handle.reload(parse(filter)?).map_err(|error| error.to_string())
    }
    /// What is logged.
    pub(crate) fn get(&self) -> String {
        self.handle.with_current(ToString::to_string).unwrap_or_default()
    }
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(filter).map_err(|error| {
        format!("'{filter}' is no log filter ({error}); it looks like info or info,cellbus_cell=debug")
    })
}
