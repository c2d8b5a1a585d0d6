//! Simulated managers, and the harness that puts load on a cluster.
//!
//! Cellbus is developed and tested without a data centre: [`Fleet`] holds hundreds
//! of simulated managers with tens of thousands of hosts, durable, with latencies and faults, and
//! counts whatever a control plane must never do. [`load`] plays a workload against a cluster and
//! keeps books of its own. The seeded fault simulation builds on the same managers.
//!
//! ```text
//!  inventory (by size, or CSV) ──▶ Fleet ──▶ driver(manager) ──▶ the cell that fronts it
//!                                    │  └──▶ served over HTTP ──▶ RemoteDriver in other processes
//!                                    ├─ faults(manager): errors, hangs, lost answers, changes behind its back
//!                                    └─ truth(), violations()
//!  trace or rate ──▶ load ──▶ cluster ──▶ outcomes ──▶ report
//! ```

pub mod autoscale;
pub mod cluster;
pub mod drivers;
pub mod inventory;
pub mod load;
pub mod managers;
pub mod plan;
pub mod plot;
pub mod remote;
pub mod simulate;
mod table;
pub mod trace;

pub use cluster::Cluster;
pub use inventory::{HostSpec, Inventory, ManagerSpec};
pub use managers::Fleet;
pub use table::Error as CsvError;
pub use trace::{Trace, TraceAction, TraceEvent};
