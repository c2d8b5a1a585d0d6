//! Why no host will do, in words.

use cellbus_bus::ids::HostId;
use cellbus_directory::{Refusal, RefusalReason};

use super::{Amount, Hosts, Wanted};

/// Datastores that a refusal names one by one.
const NAMED_MAX: usize = 3;

impl Hosts {
    pub(super) fn refusal(&self, reason: RefusalReason, detail: String) -> Refusal {
        Refusal { manager: self.manager, reason, detail }
    }

    /// Looks at every host, to say why none will do.
    pub(super) fn explain(&self, amount: &Amount, wanted: &Wanted<'_>) -> Refusal {
        let named = wanted.host.map(HostId::as_str).or_else(|| wanted.require.get("host").map(String::as_str));
        let (mut unlabelled, mut cordoned, mut unusable, mut grouped, mut full) = (0_u32, 0_u32, 0_u32, 0_u32, 0_u32);
        let (mut off, mut crowded) = ((0_u32, ""), (0_u32, Vec::new()));
        for (index, host) in self.indexed() {
            if named.is_some_and(|name| name != host.id.as_str()) || !self.has_labels(&host.labels, wanted.require) {
                unlabelled += 1;
            } else if host.cordoned {
                cordoned += 1;
            } else if !host.usable {
                unusable += 1;
            } else if let Some(network) = self.networks.missing(&host.id) {
                off = (off.0 + 1, network);
            } else if !amount.computes(&host.free()) {
                full += 1;
            } else if self.place_for(index, amount.disk_gib, wanted.lies).is_none() {
                if host.stores.is_empty() {
                    full += 1;
                } else {
                    crowded.0 += 1;
                    crowded.1.extend(&host.stores);
                }
            } else {
                // All else would do, so it must be the groups (or a doubted host, which is full).
                if host.doubted { full += 1 } else { grouped += 1 }
            }
        }
        let reason = if grouped > 0 {
            RefusalReason::Affinity
        } else if full + crowded.0 > 0 || self.hosts.is_empty() {
            RefusalReason::NoRoom
        } else if cordoned + unusable > 0 {
            RefusalReason::Cordoned
        } else {
            RefusalReason::NoMatch
        };
        let mut parts = Vec::new();
        let mut part = |count: u32, text: String| {
            if count > 0 {
                parts.push(format!("{count} {text}"));
            }
        };
        part(
            unlabelled,
            match named {
                Some(name) => format!("are not host {name} or lack its labels"),
                None => format!(
                    "lack the labels {}",
                    wanted.require.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
                ),
            },
        );
        part(cordoned, "are cordoned".to_owned());
        part(unusable, "are not usable".to_owned());
        part(off.0, format!("are not on network {}", off.1));
        part(grouped, "are ruled out by affinity".to_owned());
        part(
            full,
            format!("have no room for {} vCPUs, {} MiB, {} GiB", amount.vcpus, amount.memory_mib, amount.disk_gib),
        );
        crowded.1.sort_unstable();
        crowded.1.dedup();
        let stores = crowded.1.iter().take(NAMED_MAX).map(|store| {
            let store = self.stores.get(*store);
            format!("datastore {} has {}", store.name, store.free())
        });
        let stores = stores.chain((crowded.1.len() > NAMED_MAX).then(|| "...".to_owned())).collect::<Vec<_>>();
        part(crowded.0, format!("see no datastore with {} GiB free ({})", amount.disk_gib, stores.join(", ")));
        let why = if parts.is_empty() { "it has none".to_owned() } else { parts.join(", ") };
        self.refusal(reason, format!("looked at {} hosts of {}: {why}", self.hosts.len(), self.name))
    }
}
