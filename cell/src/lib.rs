//! The runtime of a cell: ownership, shard runners, manager fronts, HTTP.
pub mod driver;
