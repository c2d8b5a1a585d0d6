//! A member that takes no shards: it beats, so that others find it.

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::contract::{Member, MemberState, Role};
use cellbus_bus::ids::CellId;
use cellbus_bus::{Bus, Env};
use tokio_util::sync::CancellationToken;

/// See the module.
pub(super) struct Presence {
    pub(super) bus: Arc<dyn Bus>,
    pub(super) env: Env,
    pub(super) id: CellId,
    pub(super) address: String,
    pub(super) role: Role,
    pub(super) every: Duration,
    pub(super) ttl: Duration,
}

impl Presence {
    /// Beats until `stop`, then says goodbye.
    pub(super) async fn run(self, stop: CancellationToken) {
        let joined_at = self.env.wall();
        for beat in 0.. {
            let member = Member {
                cell: self.id.clone(),
                role: self.role,
                address: self.address.clone(),
                state: MemberState::Active,
                joined_at,
                beat,
            };
            match self.env.timeout(self.ttl, self.bus.beat(member, self.ttl)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::warn!(%error, member = %self.id, "no beat: the bus does not answer"),
                None => tracing::warn!(member = %self.id, "no beat: the bus does not answer in time"),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.env.sleep(self.every) => {}
            }
        }
        // Nobody depends on it: without a goodbye it is gone when its beats run out.
        let _ = self.env.timeout(self.ttl, self.bus.leave(&self.id)).await;
    }
}
