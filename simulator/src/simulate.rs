//! The seeded simulation: the real cells, gateways, workflows and directories, in virtual time, on
//! a simulated bus, network and clocks, over simulated managers, in one thread, from one seed.
//!
//! ```text
//!   producers ─▶ gateways of cells ─┐            ┌─▶ simulated managers (truth)
//!        │                          ▼            │
//!        └─▶ ingress ─▶ simulated bus ◀─▶ cells ─┴─▶ network ─▶ cells      nemesis: breaks any of it
//!        ▲                 │
//!        └── events ◀──────┘        books of the producers + truth of the managers ─▶ what must hold
//! ```
//!
//! [`run`] makes one run: jobs and faults for a while, then everything is mended, then all must
//! come to rest before a deadline, and managers, directories and the producers' books must agree.
//! The same seed and build give the same run, which a hash of its trace shows.
//!
//! [`elastic()`] makes another kind of run: no faults, a load that comes and goes, and the autoscaler;
//! [`idle()`] one without any load: what a cluster asks of its bus all the same.

mod amnesia;
mod books;
mod bus;
mod calm;
mod cells;
mod checks;
mod clock;
mod disk;
mod elastic;
mod env;
mod executor;
mod faults;
mod history;
mod idle;
mod managers;
mod many;
mod nemesis;
mod network;
mod outage;
mod producers;
mod run;
mod sabotage;
mod scaling;
mod shrink;
mod stops;
mod tally;
mod trace;

pub use elastic::{Elapsed, Elastic, Took, Trouble, elastic};
pub use faults::{FaultKind, Faults, InvalidFaults};
pub use idle::{Asked, Idle, idle};
pub use many::run_many;
pub use run::{Config, Report, run};
pub use sabotage::Sabotage;
pub use shrink::{Shrunk, shrink};
