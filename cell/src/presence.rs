//! A member that takes no shards: it beats, so that others find it.

use std::time::Duration;

use cellbus_bus::contract::{Member, MemberState, Role};
use cellbus_bus::ids::CellId;
use tokio_util::sync::CancellationToken;

use crate::Process;

/// See the module.
pub struct Presence {
    /// Whose.
    pub process: Process,
    /// Under which id.
    pub id: CellId,
    /// Where others reach it.
    pub address: String,
    /// What it is there for.
    pub role: Role,
    /// Between two beats.
    pub every: Duration,
    /// How long others believe a beat.
    pub ttl: Duration,
}

impl Presence {
    /// Beats until `stop`, or until its build may not take part any more, then says goodbye.
    pub async fn run(self, stop: CancellationToken) {
        let Process { env, bus, .. } = &self.process;
        let joined_at = env.wall();
        for beat in 0.. {
            if self.process.outdated().is_some() {
                break;
            }
            let member = Member {
                cell: self.id.clone(),
                role: self.role,
                address: self.address.clone(),
                state: MemberState::Active,
                joined_at,
                beat,
                build: self.process.build().clone(),
            };
            match env.timeout(self.ttl, bus.beat(member, self.ttl)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::warn!(%error, member = %self.id, "no beat: the bus does not answer"),
                None => tracing::warn!(member = %self.id, "no beat: the bus does not answer in time"),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = env.sleep(self.every) => {}
            }
        }
        // Nobody depends on it: without a goodbye it is gone when its beats run out.
        let _ = env.timeout(self.ttl, bus.leave(&self.id)).await;
    }
}
