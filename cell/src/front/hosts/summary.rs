//! What is free, by class, for whoever places VMs and whoever counts.

use cellbus_workflows::ClassSummary;

use super::Hosts;

impl Hosts {
    /// What is free, by class. A datastore that hosts of several classes see is divided among them by how many
    /// of its hosts each has, so that sums over classes count it once.
    #[must_use]
    pub fn summary(&self) -> Vec<ClassSummary> {
        let mut classes: Vec<ClassSummary> = self
            .classes
            .iter()
            .map(|class| ClassSummary {
                labels: class.labels.as_ref().clone(),
                hosts: class.hosts,
                hosts_open: 0,
                vcpus_total: 0,
                vcpus_free: 0,
                memory_mib_total: 0,
                memory_mib_free: 0,
                disk_gib_total: 0,
                disk_gib_free: 0,
                vcpus_free_max: 0,
                memory_mib_free_max: 0,
                disk_gib_free_max: 0,
            })
            .collect();
        let stores = self.stores.all().count();
        // For each datastore: its hosts in each class, and those of them that take VMs.
        let mut seen_by = vec![vec![(0_u64, 0_u64); classes.len()]; stores];
        let full = self.networks.full().is_some();
        for (index, host) in self.indexed() {
            let class = &mut classes[host.class];
            class.vcpus_total += host.total.vcpus;
            class.memory_mib_total += host.total.memory_mib;
            class.disk_gib_total += host.total.disk_gib;
            // What is free on a host that takes nothing is not free for anybody.
            let open = host.open() && !full;
            for store in &host.stores {
                let (all, takes) = &mut seen_by[store.0 as usize][host.class];
                *all += 1;
                *takes += u64::from(open);
            }
            if !open {
                continue;
            }
            let free = host.free();
            class.hosts_open += 1;
            class.vcpus_free += free.vcpus;
            class.memory_mib_free += free.memory_mib;
            class.disk_gib_free += free.disk_gib;
            class.vcpus_free_max = class.vcpus_free_max.max(free.vcpus);
            class.memory_mib_free_max = class.memory_mib_free_max.max(free.memory_mib);
            class.disk_gib_free_max = class.disk_gib_free_max.max(self.disk_free_max(index));
        }
        for (index, store) in self.stores.all() {
            let seen_by = &seen_by[index.0 as usize];
            for (class, gib) in shares(store.total, seen_by.iter().map(|(all, _)| *all)).into_iter().enumerate() {
                classes[class].disk_gib_total += gib;
            }
            for (class, gib) in shares(store.free(), seen_by.iter().map(|(_, open)| *open)).into_iter().enumerate() {
                classes[class].disk_gib_free += gib;
            }
        }
        classes
    }
}

/// So much, divided in the proportion of these weights, with nothing left over; nothing where all are 0.
fn shares(whole: u64, weights: impl Iterator<Item = u64> + Clone) -> Vec<u64> {
    let sum: u64 = weights.clone().sum();
    let up_to = |weight: u64| {
        // Below `whole`, as `weight` is at most `sum`.
        (u128::from(whole) * u128::from(weight)).checked_div(u128::from(sum)).unwrap_or(0) as u64
    };
    let mut before = 0;
    let share = |weight: u64| {
        let from = before;
        before += weight;
        up_to(before) - up_to(from)
    };
    weights.map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn nothing_is_lost_or_made_by_dividing() {
        for whole in [0, 1, 2, 3, 100, u64::MAX] {
            for weights in [&[1_u64, 1, 1][..], &[0, 5], &[7], &[1, 0, 1_000_000]] {
                assert_eq!(shares(whole, weights.iter().copied()).iter().sum::<u64>(), whole, "{weights:?}");
            }
        }
        assert_eq!(shares(10, [0, 0].into_iter()), [0, 0]);
        assert_eq!(shares(90, [2, 1].into_iter()), [60, 30]);
    }
}
