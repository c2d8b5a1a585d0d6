//! A line that is fair between tenants: each gets its turn, however much another has waiting.

use std::collections::{BTreeMap, VecDeque};

use cellbus_bus::ids::{TenantId, VmId};

/// Round robin over the tenants that have something waiting; in order within a tenant.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    by_tenant: BTreeMap<TenantId, VecDeque<VmId>>,
    last: Option<TenantId>,
    len: usize,
}

impl FairQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push(&mut self, tenant: &TenantId, vm: VmId) {
        self.len += 1;
        if let Some(line) = self.by_tenant.get_mut(tenant) {
            line.push_back(vm);
        } else {
            self.by_tenant.insert(tenant.clone(), VecDeque::from([vm]));
        }
    }

    /// Back to where it came from: the head of its tenant's line.
    pub(crate) fn push_front(&mut self, tenant: &TenantId, vm: VmId) {
        self.len += 1;
        self.by_tenant.entry(tenant.clone()).or_default().push_front(vm);
    }

    pub(crate) fn pop(&mut self) -> Option<VmId> {
        use std::ops::Bound::{Excluded, Unbounded};
        let tenant = match &self.last {
            Some(last) => self
                .by_tenant
                .range::<TenantId, _>((Excluded(last), Unbounded))
                .next()
                .or_else(|| self.by_tenant.iter().next())
                .map(|(t, _)| t.clone()),
            None => self.by_tenant.keys().next().cloned(),
        }?;
        let line = self.by_tenant.get_mut(&tenant)?;
        let vm = line.pop_front();
        if line.is_empty() {
            self.by_tenant.remove(&tenant);
        }
        self.len -= usize::from(vm.is_some());
        self.last = Some(tenant);
        vm
    }

    /// The head of each tenant's line.
    pub(crate) fn heads(&self) -> impl Iterator<Item = (&TenantId, &VmId, usize)> {
        self.by_tenant.iter().filter_map(|(tenant, line)| line.front().map(|vm| (tenant, vm, line.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(n: u128) -> VmId {
        VmId::from_uuid(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn a_burst_of_one_tenant_does_not_hold_up_another() {
        let (noisy, quiet): (TenantId, TenantId) = ("noisy".parse().unwrap(), "quiet".parse().unwrap());
        let mut line = FairQueue::default();
        for n in 0..100_000 {
            line.push(&noisy, vm(n));
        }
        line.push(&quiet, vm(1 << 64));
        let served: Vec<VmId> = std::iter::from_fn(|| line.pop()).take(2).collect();
        assert!(served.contains(&vm(1 << 64)), "the quiet tenant's only job is among the first two");
        assert_eq!(line.len(), 99_999);
    }

    #[test]
    fn order_holds_within_a_tenant() {
        let tenant: TenantId = "a".parse().unwrap();
        let mut line = FairQueue::default();
        (0..10).for_each(|n| line.push(&tenant, vm(n)));
        let first = line.pop().unwrap();
        line.push_front(&tenant, first);
        assert_eq!(std::iter::from_fn(|| line.pop()).collect::<Vec<_>>(), (0..10).map(vm).collect::<Vec<_>>());
        assert!(line.is_empty());
    }
}
