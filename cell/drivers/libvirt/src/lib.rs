//! The driver of libvirt: a manager that is a set of host connections.
//!
//! ```text
//!  cell's front ─▶ Driver ─▶ one operation a VM at a time ─▶ calls, a bounded number at once,
//!                                                           off the async threads
//!                                                             │ qemu+tls, qemu+ssh, qemu, test
//!                    changes ◀─ events by callback ◀──────── hosts
//! ```
//!
//! libvirt has no sessions to end, no tasks to find again and nowhere to keep what Cellbus must not
//! forget. So all of that lies in the domains themselves, as an element of a namespace of its own in
//! their metadata:
//! - a VM is a domain with the VM's id as its UUID and in its name, whose record has the number of
//!   the operation that it is at: written before the operation changes anything, and again after it;
//! - a VM that was adopted is a domain that somebody else made, with its UUID and its name, and a record
//!   that says whose id it has;
//! - what was deleted leaves a domain with nothing in it that never starts: its tombstone;
//! - who owns a host is said by a domain of that kind too, which is looked at before each change.
//!
//! What that can promise, and what it cannot, is in `ops/docs/libvirt.md`.
//!
//! Without the feature `libvirt` there is no driver here, only what it writes and reads: building it
//! needs libvirt's C library.
#![cfg_attr(
    not(feature = "libvirt"),
    allow(dead_code, reason = "what is written and read is of use to the driver alone")
)]

mod domain;
mod record;
mod xml;

#[cfg(feature = "libvirt")]
mod adopted;
#[cfg(feature = "libvirt")]
mod calls;
#[cfg(feature = "libvirt")]
mod changes;
#[cfg(feature = "libvirt")]
mod config;
#[cfg(feature = "libvirt")]
mod driver;
#[cfg(feature = "libvirt")]
mod errors;
#[cfg(feature = "libvirt")]
mod events;
#[cfg(feature = "libvirt")]
mod fences;
#[cfg(feature = "libvirt")]
mod foreign;
#[cfg(feature = "libvirt")]
mod hosts;
#[cfg(feature = "libvirt")]
mod leftovers;
#[cfg(feature = "libvirt")]
mod perform;
#[cfg(feature = "libvirt")]
mod reading;
#[cfg(feature = "libvirt")]
mod room;

#[cfg(all(test, feature = "libvirt"))]
mod tests;

#[cfg(feature = "libvirt")]
pub use config::Libvirt;
