//! Where every VM is: the records of the shard logs, and the directory that is folded from them.
//!
//! ```text
//!  log of shard 0 ──┐
//!  log of shard 1 ──┼─▶ fold ─▶ VM -> manager, host, state        ─▶ look-ups and lists
//!  log of shard … ──┘          job -> state, outcome              ─▶ audit against managers
//! ```
//!
//! The log is the truth; a directory is a projection that any number of replicas can make. The
//! types that the log is written in live here ([`record`], [`work`], [`vm`], [`job`]), because both the
//! shard's owner and every replica fold them, with the same code.

pub mod audit;
pub mod capacity;
pub mod checkpoint;
pub mod failure;
pub mod fold;
pub mod job;
pub mod manager;
pub mod pause;
pub mod record;
pub mod replica;
pub mod scale;
pub mod snapshot;
mod spoken;
pub mod tail;
#[cfg(test)]
mod testing;
pub mod vm;
pub mod work;

pub use checkpoint::Checkpoint;
pub use failure::{Failure, FailureCode, Refusal, RefusalReason};
pub use fold::{Fence, Tables};
pub use job::{JobRow, JobState};
pub use manager::ManagerMode;
pub use pause::Pauses;
pub use record::{Entry, IntentKey, Record, VmSummary};
pub use replica::{Applied, JobFilter, ListError, Location, Page, Replica, Stats, VmFilter};
pub use snapshot::ShardSnapshot;
pub use tail::Tail;
pub use vm::{Place, PowerState, Template, Vm, VmFacts, VmState};
pub use work::{Adoption, Outcome, Step, StepKind, StepResult, Task, Work};
