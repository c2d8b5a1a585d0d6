//! A bus that lost what it had acknowledged: restored from an older image, or a disk that lied. It
//! cannot be undone here, and it must not go unnoticed: it is said, counted ([`Replica::losses`]),
//! and the shard goes on from what is left.
//!
//! Epochs still only grow. The log that is left may have forgotten some, so that the next one comes
//! after the newest that this process ever read; should a manager know a newer one even so, it
//! refuses this owner, who then claims the shard again. (If it was refused because another owner
//! has come, that claim is fenced, and this owner ends a little earlier.)
//!
//! [`Replica::losses`]: cellbus_directory::replica::Replica::losses

use cellbus_bus::contract::QueueKind;
use cellbus_bus::ids::{Epoch, Seq};
use cellbus_directory::Entry;
use cellbus_directory::replica::Stamp;

use super::Runner;

/// An entry that the bus has acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledged {
    pub(super) seq: Seq,
    pub(super) stamp: Stamp,
}

impl Acknowledged {
    pub(super) fn new(seq: Seq, entry: &Entry) -> Self {
        Self { seq, stamp: Stamp::of(entry) }
    }
    /// Whether it is this one: the same sequence may be given to another by a bus that was put back.
    pub(super) fn is(&self, seq: Seq, entry: &Entry) -> bool {
        self.seq == seq && self.stamp == Stamp::of(entry)
    }
}

impl Runner {
    /// The newest epoch of the shard that is known here; `of_log`: as its log says.
    pub(super) fn newest_epoch(&self, of_log: Epoch) -> Epoch {
        // Own ones are among the routes, which never go back.
        let routed = self.process.routes.of(self.shard).map(|route| route.epoch);
        of_log.max(self.process.directory.epoch_seen(self.shard)).max(routed.unwrap_or_default())
    }

    /// The log was read after `began`, up to `end`: what was acknowledged here must be there. `met`:
    /// it was read, as it was.
    pub(super) fn look_for_loss(&mut self, began: Seq, end: Seq, met: bool) {
        let Some(last) = self.acknowledged else { return };
        // A snapshot that came later stands in for what was before it.
        let seen = met || (last.seq <= began && last.seq <= end);
        if !seen {
            self.log_lost(last.seq, end);
        }
    }

    /// An append was fenced, where the log ends at `found`.
    pub(super) fn fenced(&mut self, found: Seq) {
        self.process.work.fenced();
        if let Some(last) = self.acknowledged.filter(|last| found < last.seq) {
            self.log_lost(last.seq, found);
        }
    }

    /// The log ends before an entry that was acknowledged, or read.
    pub(super) fn log_lost(&mut self, acknowledged: Seq, end: Seq) {
        // Said once.
        self.acknowledged = None;
        self.process.directory.note_loss(self.shard);
        tracing::error!(shard = %self.shard, %acknowledged, %end, "the bus has lost entries of this shard's log that it had acknowledged; the shard goes on from what is left. What managers hold and no record names is found by an audit");
    }

    pub(super) fn queue_lost(&self, queue: QueueKind, read: Seq, first: Seq) {
        self.process.directory.note_loss(self.shard);
        tracing::error!(shard = %self.shard, ?queue, %read, %first, "the bus has lost messages of this queue that it had acknowledged, some that had been read among them; it is read again from its start");
    }
}
