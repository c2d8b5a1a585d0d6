//! `[[managers]]`: the managers by name, which driver each has, and how much it does at once.

use cellbus_bus::ids::ManagerName;

use super::{Error, Origin, Settings, on_loopback};

mod libvirt;
mod vsphere;

pub use libvirt::{Libvirt, LibvirtBoot, LibvirtDomain, LibvirtHost};
pub use vsphere::{Password, Trust, Vsphere};

/// One of `[[managers]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Manager {
    /// Its name.
    pub name: ManagerName,
    /// Which driver.
    pub kind: ManagerKind,
    /// vCPUs given out for each that a host has.
    pub over_commit_cpu: f64,
    /// Memory given out for what a host has.
    pub over_commit_memory: f64,
    /// Whether it is only looked at until an operator enables it.
    pub starts_read_only: bool,
    /// How much at once, where it differs from what the driver says.
    pub limits: ManagerLimits,
}

/// Which driver a manager has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagerKind {
    /// Simulated in this process.
    Simulated {
        /// How many hosts.
        hosts: u32,
        /// CPUs of each.
        host_vcpus: u32,
        /// Memory of each, MiB.
        host_memory_mib: u64,
        /// Disk of each, GiB.
        host_disk_gib: u64,
        /// How many hosts share one datastore, which has the disk of all of them; 0: each has its own disk.
        hosts_per_datastore: u32,
    },
    /// Simulated in another process.
    Remote {
        /// Where it is reached.
        address: String,
    },
    /// A vCenter, by the driver of the feature `vsphere`.
    Vsphere(Box<Vsphere>),
    /// Hosts with libvirt, by the driver of the feature `libvirt`.
    Libvirt(Box<Libvirt>),
}

impl ManagerKind {
    /// As `kind` says it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Simulated { .. } => "simulated",
            Self::Remote { .. } => "remote",
            Self::Vsphere(_) => "vsphere",
            Self::Libvirt(_) => "libvirt",
        }
    }
    /// The networks that each new VM is put on.
    #[must_use]
    pub fn networks(&self) -> Vec<String> {
        let network = match self {
            Self::Vsphere(vsphere) => vsphere.network.clone(),
            Self::Libvirt(libvirt) => libvirt.network.clone(),
            Self::Simulated { .. } | Self::Remote { .. } => None,
        };
        network.into_iter().collect()
    }
}

/// How much a manager does at once. `None`: as its driver says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ManagerLimits {
    /// Operations of all kinds.
    pub operations_max: Option<u32>,
    /// Creates and copies.
    pub creates_max: Option<u32>,
    /// Moves between hosts.
    pub relocations_max: Option<u32>,
    /// Power operations.
    pub power_max: Option<u32>,
    /// Snapshot operations.
    pub snapshots_max: Option<u32>,
}

impl ManagerLimits {
    /// The driver's own limits, with what is configured in their place.
    #[must_use]
    pub fn over(&self, own: crate::driver::Limits) -> crate::driver::Limits {
        crate::driver::Limits {
            operations_max: self.operations_max.unwrap_or(own.operations_max),
            creates_max: self.creates_max.unwrap_or(own.creates_max),
            relocations_max: self.relocations_max.unwrap_or(own.relocations_max),
            power_max: self.power_max.unwrap_or(own.power_max),
            snapshots_max: self.snapshots_max.unwrap_or(own.snapshots_max),
            revokes: own.revokes,
        }
    }
}

/// How other members may be talked to.
#[derive(Clone, Copy)]
pub(super) struct Clear {
    /// In clear, wherever they are.
    pub(super) anywhere: bool,
    /// With TLS.
    pub(super) tls: bool,
}

impl Settings {
    /// One of `[[managers]]`, whose keys begin with `prefix` where they are told to people.
    pub(super) fn manager(
        &self,
        prefix: &str,
        origin: &Origin,
        clear: Clear,
        errors: &mut Vec<Error>,
    ) -> Option<Manager> {
        let name = self.text("name");
        let name = match name.parse::<ManagerName>() {
            Ok(name) => name,
            Err(error) => {
                let origin = if name.is_empty() { origin.clone() } else { self.origin("name") };
                errors.push(Error { key: format!("{prefix}name"), origin, message: error.to_string() });
                return None;
            }
        };
        let kind = self.manager_kind(prefix, clear, errors)?;
        Some(Manager {
            name,
            kind,
            over_commit_cpu: self.ratio("over_commit.cpu"),
            over_commit_memory: self.ratio("over_commit.memory"),
            starts_read_only: self.flag("starts_read_only"),
            limits: ManagerLimits {
                operations_max: self.u32_if_set("limits.operations_max"),
                creates_max: self.u32_if_set("limits.creates_max"),
                relocations_max: self.u32_if_set("limits.relocations_max"),
                power_max: self.u32_if_set("limits.power_max"),
                snapshots_max: self.u32_if_set("limits.snapshots_max"),
            },
        })
    }
}

impl Settings {
    fn manager_kind(&self, prefix: &str, clear: Clear, errors: &mut Vec<Error>) -> Option<ManagerKind> {
        let mut wrong = |key: &str, message: String| {
            errors.push(Error { key: format!("{prefix}{key}"), origin: self.origin(key), message });
        };
        let address = self.text("address");
        match self.text("kind").as_str() {
            "vsphere" => {
                return match self.vsphere(&address) {
                    Ok(vsphere) => Some(ManagerKind::Vsphere(Box::new(vsphere))),
                    Err((key, message)) => {
                        wrong(key, message);
                        None
                    }
                };
            }
            "libvirt" => {
                return match self.libvirt() {
                    Ok(libvirt) => Some(ManagerKind::Libvirt(Box::new(libvirt))),
                    Err((key, message)) => {
                        wrong(key, message);
                        None
                    }
                };
            }
            "remote" if address.is_empty() => {
                wrong("address", "a manager in another process has an address".to_owned());
                return None;
            }
            // Simulated in the process of the address, if there is one.
            _ => {}
        }
        if address.is_empty() {
            return Some(ManagerKind::Simulated {
                hosts: self.u32("hosts"),
                host_vcpus: self.u32("host_vcpus"),
                host_memory_mib: self.count("host_memory") >> 20,
                host_disk_gib: self.count("host_disk") >> 30,
                hosts_per_datastore: self.u32("hosts_per_datastore"),
            });
        }
        match manager_address(&address, clear) {
            Ok(()) => Some(ManagerKind::Remote { address }),
            Err(message) => {
                wrong("address", message);
                None
            }
        }
    }
}

/// Where a manager of another process is, and whether it may be talked to so.
fn manager_address(address: &str, clear: Clear) -> Result<(), String> {
    let uri: Option<axum::http::Uri> = address.parse().ok();
    let scheme = uri.as_ref().and_then(|uri| uri.scheme_str());
    match (scheme, uri.as_ref().and_then(|uri| uri.host())) {
        (Some("https"), Some(_)) if clear.tls => Ok(()),
        (Some("https"), Some(_)) => {
            Err("members talk TLS with certificates of their own: set `members.tls.ca`, `.cert` and `.key`".to_owned())
        }
        (Some("http"), Some(host)) if clear.anywhere || on_loopback(host) => Ok(()),
        (Some("http"), Some(_)) => Err(
            "whoever is in between could do anything to this manager: write https:// and set `members.tls`, or set \
             `http.insecure` (--insecure) if the network is trusted"
                .to_owned(),
        ),
        (_, _) => Err("an address begins with http:// or https:// and names host and port".to_owned()),
    }
}
