//! `cellbus cell`.

use cellbus_bus::Env;
use cellbus_bus::contract::Role;
use cellbus_bus::format::Build;
use clap::Args;

use crate::exit::Result;
use crate::role;
use crate::settings::Settings;

/// Cells of a cluster of several processes, until they are stopped or drained
///
/// They find each other on the bus (bus = "nats"), share the shards out among them, and front the
/// managers that the configuration names. Any number may run; each keeps nothing that is not on the
/// bus, so that one may be killed at any time. The first SIGTERM or Ctrl-C hands its shards over.
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    settings: Settings,
}

impl Command {
    pub(super) async fn run(self, build: Build, env: &Env) -> Result<()> {
        role::run(&self.settings, Role::Cell, build, env).await
    }
}
