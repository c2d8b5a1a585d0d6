//! The configuration in force, as TOML.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::keys::{KEYS, Key};
use super::source::Origin;
use super::value::{Kind, Value};
use super::{Config, ManagerKind, value};

pub(super) fn dump(config: &Config, settings: &BTreeMap<&'static str, (Value, Origin)>) -> String {
    let mut out = String::from("# The configuration in force. What is not marked is the default.\n");
    let mut section = "";
    for key in KEYS {
        let (at, name) = key.path.split_once('.').unwrap_or(("", key.path));
        if at != section {
            // Writing to a String cannot fail.
            let _ = write!(out, "\n[{at}]\n");
            section = at;
        }
        line(&mut out, key, name, settings.get(key.path));
    }
    for manager in &config.managers {
        let _ = write!(out, "\n[[managers]]\nname = \"{}\"\n", manager.name);
        match &manager.kind {
            ManagerKind::Simulated { hosts, host_vcpus, host_memory_mib, host_disk_gib, hosts_per_datastore } => {
                let memory = value::size(host_memory_mib << 20);
                let disk = value::size(host_disk_gib << 30);
                let _ = write!(
                    out,
                    "hosts = {hosts}\nhost_vcpus = {host_vcpus}\nhost_memory = \"{memory}\"\nhost_disk = \"{disk}\"\nhosts_per_datastore = {hosts_per_datastore}\n"
                );
            }
            ManagerKind::Remote { address } => {
                let _ = writeln!(out, "address = {}", toml::Value::String(address.clone()));
            }
            ManagerKind::Vsphere(vsphere) => {
                out.push_str("kind = \"vsphere\"\n");
                for (key, value) in vsphere.keys() {
                    let _ = writeln!(out, "{key} = {value}");
                }
            }
            ManagerKind::Libvirt(libvirt) => {
                out.push_str("kind = \"libvirt\"\n");
                for (key, value) in libvirt.keys() {
                    let _ = writeln!(out, "{key} = {value}");
                }
            }
        }
        let _ = writeln!(
            out,
            "over_commit = {{ cpu = {:?}, memory = {:?} }}",
            manager.over_commit_cpu, manager.over_commit_memory
        );
        if manager.starts_read_only {
            out.push_str("starts_read_only = true\n");
        }
        let limits = &manager.limits;
        for (name, limit) in [
            ("operations_max", limits.operations_max),
            ("creates_max", limits.creates_max),
            ("relocations_max", limits.relocations_max),
            ("power_max", limits.power_max),
            ("snapshots_max", limits.snapshots_max),
        ] {
            if let Some(limit) = limit {
                let _ = writeln!(out, "limits.{name} = {limit}");
            }
        }
    }
    out
}

fn line(out: &mut String, key: &Key, name: &str, setting: Option<&(Value, Origin)>) {
    let _ = match (setting, &key.kind) {
        (Some((_, origin)), Kind::Secret) => writeln!(out, "# {name} is set ({origin}) and not shown"),
        (None, _) => writeln!(out, "# {name} is not set"),
        (Some((value, Origin::Default)), _) => writeln!(out, "{name} = {}", value.toml()),
        (Some((value, origin)), _) => {
            writeln!(out, "{name} = {}  # {}", value.toml(), origin.to_string().escape_debug())
        }
    };
}
