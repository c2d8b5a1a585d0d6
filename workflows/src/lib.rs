//! The shard state machine: what Cellbus decides, with no clock, no randomness and no I/O.
//!
//! A [`Shard`] is the state of one shard: the jobs and VMs whose home it is, the workflows under
//! way, and the effects that are still open. Its owner feeds it [`Input`]s and carries out
//! [`Effect`]s; the state machine decides what is recorded.
//!
//! ```text
//!            Input ──▶ Shard::handle ──▶ records (applied at once, in memory)
//!                                          │ take_batch
//!                                          ▼
//!                         one fenced append to the shard's log ──▶ appended ──▶ Effects carried out
//!                                                                                │
//!            Input::Answered ◀───────────────────────────────────────────────────┘
//! ```
//!
//! Promises, each with a test:
//! - Records are decided from state and input alone; replaying them gives the same state.
//! - No effect is handed out before the records it follows from; every effect is an *intent* in
//!   the state until a later record closes it, and [`Shard::opened`] gives all of them again after
//!   a replay. Whoever carries them out is idempotent.
//! - One workflow a VM at a time, in the order accepted.

pub mod action;
pub mod autoscale;
mod event;
pub mod forecast;
pub mod input;
pub mod item;
pub mod pack;
pub mod placement;
mod sagas;
pub mod shard;
pub mod transition;
pub mod view;

pub use action::{Action, AdoptSpec, Answer, Call, CreateSpec, Later, LaterReason};
pub use input::{Batch, Context, Effect, EffectAnswer, EffectKind, Input, Released};
pub use item::{ControlItem, JobItem};
pub use shard::{
    Carried, Change, JobStatus, Kept, KnownJobs, Limits, ON_HOST_FAILURE, RESTART, Scale, ScaleSet, Shard, Stats,
    VmExplanation, Way, generation, pauses_in, restarts_elsewhere,
};
pub use view::{CapacityView, ClassSummary, Health, ManagerNames, ManagerSummary};
