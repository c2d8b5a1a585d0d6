//! The front of a manager: the one place in the cluster that talks to it.

pub mod circuit;
pub mod hosts;
pub mod limits;
