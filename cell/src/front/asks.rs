//! Which asks a front may take: each once, in the order in which its shard sent them. Pure.
//!
//! A copy of an ask may come at any time: after the call was refused and its VM made at another
//! manager, or after what it made was deleted again. To carry it out then would make a VM twice, or
//! one that nobody knows. Remembering every refusal and every delete for as long as a copy may live
//! has no bound that is safe. What is kept instead is one line a shard: the last ask that was taken.
//! A shard numbers its asks and believes only the answer to the last one of a call, so
//! - whatever it acted upon was the answer to an ask that was counted here, or to a later one: every
//!   copy of that call has a number that is over, and is not taken;
//! - an ask that is overtaken by a newer one on its way is not taken either. Its shard hears that it
//!   should ask again, which costs a round, no more.
//!
//! A new owner of the slice (another cell, or this one after a restart) begins with no such lines and
//! needs none: asks name the epoch of the owner that they are meant for, so those of the owners before
//! it are not taken, and calls still open are asked again under its epoch. For the manager itself,
//! [`crate::driver::Driver::open`] revokes what an older owner has begun. After the shard that asks has
//! been opened anew its epoch is higher and it asks again whatever is open; answers to the asks before
//! are not believed.
//!
//! Not covered: a manager that cannot revoke sessions and on which an operation of an older owner
//! begins after the new owner has read its tasks. Audit finds what that leaves.

use std::collections::BTreeMap;

use cellbus_bus::ids::{Epoch, ShardId};
use cellbus_workflows::{Answer, Later, LaterReason};

use crate::peers::{Answered, AskNumber, Asked};

/// See the module.
#[derive(Debug)]
pub(super) struct Asks {
    /// That of the front.
    slice_epoch: Epoch,
    /// Of each shard that has asked: at the most one line for each shard of the cluster.
    last: BTreeMap<ShardId, (Epoch, AskNumber)>,
}

impl Asks {
    pub(super) fn new(slice_epoch: Epoch) -> Self {
        Self { slice_epoch, last: BTreeMap::new() }
    }

    pub(super) fn slice_epoch(&self) -> Epoch {
        self.slice_epoch
    }

    /// Counts an ask that has come.
    ///
    /// # Errors
    /// Why it must not be carried out, in words: it may be a copy of one that is over.
    pub(super) fn take(&mut self, asked: &Asked) -> Result<(), &'static str> {
        if asked.slice_epoch != self.slice_epoch {
            return Err("it was asked of another owner of the manager");
        }
        let (epoch, number) = self.last.entry(asked.call.shard).or_default();
        if asked.call.shard_epoch < *epoch {
            return Err("a newer owner of the shard has called");
        }
        if (asked.call.shard_epoch, asked.number) <= (*epoch, *number) {
            return Err("the shard has asked again, or for something else, since");
        }
        (*epoch, *number) = (asked.call.shard_epoch, asked.number);
        Ok(())
    }

    /// An ask comes that cannot be looked at now. It is counted all the same: its shard may give the
    /// call up, and then no copy of it may be carried out.
    pub(super) fn put_off(&mut self, asked: &Asked, later: Later) -> Answered {
        asked.answered(Answer::Later(match self.take(asked) {
            Ok(()) => later,
            Err(why) => stale(why),
        }))
    }
}

/// What the shard is told of an ask that is not taken.
pub(super) fn stale(why: &str) -> Later {
    Later { reason: LaterReason::StaleOwner, detail: why.to_owned(), after: None }
}
