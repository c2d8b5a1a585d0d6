//! What goes into the state machine and what comes out.

use std::sync::Arc;

use bytes::Bytes;
use cellbus_bus::contract::{Event, Position, Queue};
use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{JobId, TenantId, VmId, VmName};
use cellbus_bus::job::Job;
use cellbus_directory::Pauses;
use cellbus_directory::record::{Entry, IntentKey};

use crate::action::{Answer, Call};
use crate::view::{CapacityView, ManagerNames};

/// What a decision may depend on beside the state: read once by the caller.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The wall clock.
    pub now: WallMs,
    /// 64 random bits, fresh for this input.
    pub random: u64,
    /// What is known of the managers.
    pub view: &'a CapacityView,
    /// Which manager has which name.
    pub names: &'a ManagerNames,
    /// What operators have paused, as far as it is known here: work is not begun in vain. What is held
    /// to it is the owner of each manager.
    pub pauses: &'a Pauses,
}

impl Context<'_> {
    /// The same, with random bits of this VM's own: one message may bring work for many, which are not to
    /// look for a place at the same managers.
    pub(crate) fn of(self, vm: VmId) -> Self {
        Self { random: self.random ^ vm.uuid().as_u64_pair().1, ..self }
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The next message of the `jobs` queue.
    Jobs {
        /// Where it lies.
        at: Position,
        /// Its body.
        body: Bytes,
    },
    /// The next message of the `control` queue.
    Control {
        /// Where it lies.
        at: Position,
        /// Its body.
        body: Bytes,
    },
    /// A job that was handed in past the queue. Whoever did keeps it until it is in the log; then
    /// it is as if it had been read from the queue, which may have it too.
    Handed {
        /// The job.
        job: Arc<Job>,
        /// About how large it is.
        bytes: usize,
    },
    /// An effect was carried out, or could not be.
    Answered {
        /// Which.
        intent: IntentKey,
        /// How.
        answer: EffectAnswer,
    },
    /// Time has passed: [`crate::Shard::next_wake`] is due.
    Tick,
}

/// How an effect went.
#[derive(Clone, Debug)]
pub enum EffectAnswer {
    /// [`Effect::Call`]: what the manager's owner said.
    Call(Answer),
    /// [`Effect::Publish`], [`Effect::Event`]: durable.
    Published,
    /// [`Effect::Resolve`]: the ids of the tenant's VMs with that name, two at the most.
    Resolved(Vec<VmId>),
    /// It could not be carried out now; try again after a while.
    Failed {
        /// Why, for `explain`.
        detail: String,
    },
}

/// Something to be done, once the records before it are durable.
#[derive(Clone, Debug)]
pub struct Effect {
    /// The intent that it carries out; answers name it.
    pub intent: IntentKey,
    /// What is to be done.
    pub what: EffectKind,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum EffectKind {
    /// Ask the cell that fronts the manager.
    Call(Call),
    /// Put items on queues.
    Publish(Vec<(Queue, Vec<Bytes>)>),
    /// Find a VM by name, from a directory that has caught up with the present.
    Resolve {
        /// In this tenant.
        tenant: TenantId,
        /// The name.
        name: VmName,
    },
    /// Publish an event.
    Event(Event),
}

/// What has been decided and waits for its append.
///
/// The runner appends `entry` (it fills in `prev`); when that is durable it calls
/// [`crate::Shard::appended`] and carries out what that gives.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The entry.
    pub entry: Entry,
}

/// What follows when a batch is durable, or at once where nothing had to be recorded.
#[derive(Clone, Debug, Default)]
pub struct Released {
    /// To be carried out now.
    pub effects: Vec<Effect>,
    /// Jobs that were decided on, moved on or ended: those who wait for them look again.
    pub touched: Vec<JobId>,
}
