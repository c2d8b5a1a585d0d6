//! `cellbus controller`.

use cellbus_bus::Env;
use cellbus_bus::contract::Role;
use cellbus_bus::format::Build;
use clap::Args;

use crate::exit::Result;
use crate::role;
use crate::settings::Settings;

/// The autoscaler of a cluster of several processes, until it is stopped
///
/// It reads what there is to do, decides how many cells there are to be, keeps the decision with its
/// reasons, and has scale.launcher bring cells or take them away. Any number may run: one decides,
/// and another takes over when it has been silent for a lease.
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    settings: Settings,
}

impl Command {
    pub(super) async fn run(self, build: Build, env: &Env) -> Result<()> {
        role::run(&self.settings, Role::Controller, build, env).await
    }
}
