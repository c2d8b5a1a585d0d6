//! `cellbus directory`.

use cellbus_bus::Env;
use cellbus_bus::contract::Role;
use cellbus_bus::format::Build;
use clap::Args;

use crate::exit::Result;
use crate::role;
use crate::settings::Settings;

/// A directory replica of a cluster of several processes, until it is stopped
///
/// It follows the logs of all shards, so that it knows every VM, and serves the whole HTTP API:
/// look-ups and lists from its own memory, jobs and operators' calls by passing them on. It runs no
/// shard. Its checkpoint, in data_dir, only makes its next start quick.
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    settings: Settings,
}

impl Command {
    pub(super) async fn run(self, build: Build, env: &Env) -> Result<()> {
        role::run(&self.settings, Role::Directory, build, env).await
    }
}
