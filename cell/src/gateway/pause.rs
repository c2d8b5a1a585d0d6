//! The emergency stop: what operators pause and let go on.

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::ShardId;
use cellbus_directory::Pauses;
use cellbus_directory::pause::{REASON_CHARS_MAX, Scope};
use cellbus_directory::record::Operator;
use cellbus_workflows::ControlItem;

use super::{Error, Gateway, Result};

/// How long an order is waited for until it is in force: longer than the cluster's shard is without an
/// owner after a crash, with the usual leases.
const ORDER_LIMIT: Duration = Duration::from_secs(15);
/// Between two looks.
const ORDER_POLL: Duration = Duration::from_millis(20);

/// What is paused, as this process knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PausesShown {
    /// What.
    pub pauses: Arc<Pauses>,
    /// How long ago that was all that was paused.
    pub known_ago: Duration,
}

impl Gateway {
    /// What is paused.
    ///
    /// # Errors
    /// [`Error::NotReady`] while this process has never known.
    pub fn pauses(&self) -> Result<PausesShown> {
        let process = &self.inner.process;
        // In this order: what is known is never older than it is said to be.
        let as_of = process.pauses.as_of();
        let Some(as_of) = as_of else {
            return Err(Error::NotReady { reason: "what operators have paused has not been read yet".to_owned() });
        };
        Ok(PausesShown { pauses: process.pauses.pauses(), known_ago: process.env.mono().since(as_of) })
    }

    /// Stops work. On return it is in force: no destructive operation in its scope begins anywhere after
    /// another [`crate::pauses::KNOWN_FOR`], whatever becomes of cells and of the network. What is under
    /// way ends. Paused already, it stays as it was ordered first.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] `invalid_pause`; [`Error::NotConfirmed`]: the order is
    /// durable, and nobody has carried it out yet; as [`Gateway::submit`].
    pub async fn pause(&self, scope: Scope, reason: String, by: Operator) -> Result<PausesShown> {
        if reason.chars().count() > REASON_CHARS_MAX || reason.chars().any(char::is_control) {
            let message = format!("a reason is up to {REASON_CHARS_MAX} characters on one line");
            return Err(Error::Invalid { code: "invalid_pause", message });
        }
        self.order(scope, true, ControlItem::Pause { scope, reason, by }).await
    }

    /// Lets work go on: what was paused by exactly this scope.
    ///
    /// # Errors
    /// As [`Gateway::pause`].
    pub async fn resume(&self, scope: Scope, by: Operator) -> Result<PausesShown> {
        self.order(scope, false, ControlItem::Resume { scope, by }).await
    }

    async fn order(&self, scope: Scope, paused: bool, order: ControlItem) -> Result<PausesShown> {
        if let Some(manager) = scope.manager {
            self.known(manager)?;
        }
        let process = &self.inner.process;
        self.control(ShardId::of_cluster(process.count), order).await?;
        let began = process.env.mono();
        while process.pauses.pauses().get(&scope).is_some() != paused || process.pauses.as_of().is_none() {
            if process.env.mono().since(began) > ORDER_LIMIT {
                return Err(Error::NotConfirmed);
            }
            process.env.sleep(ORDER_POLL).await;
        }
        self.pauses()
    }
}
