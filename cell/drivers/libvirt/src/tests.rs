//! The driver on libvirt's test driver, and on a real one.

pub(crate) mod trouble;

mod simulated;
