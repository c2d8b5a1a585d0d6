//! What operators have said of a manager, as its shard keeps it, and what its front makes of it.

use std::collections::BTreeSet;

use cellbus_bus::ids::HostId;
use cellbus_directory::ManagerMode;

use super::{Config, Front, Work};
use crate::gateway::ManagerRow;

/// What operators have said of a manager.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// What is kept off it (`None`), or off its hosts.
    pub(crate) cordons: Vec<Option<HostId>>,
    /// Whether it is used; `None`: nobody has said.
    pub(crate) mode: Option<ManagerMode>,
    /// Hosts of it that are called dead.
    pub(crate) fenced: BTreeSet<HostId>,
}

impl Orders {
    /// Whether it is used.
    pub(super) fn mode(&self, config: &Config) -> ManagerMode {
        let until_said = if config.starts_read_only { ManagerMode::ReadOnly } else { ManagerMode::Enabled };
        self.mode.unwrap_or(until_said)
    }

    /// What must take no new VMs.
    fn closed(&self, config: &Config) -> Vec<Option<HostId>> {
        let all = (!self.mode(config).takes_vms()).then_some(None);
        self.cordons.iter().cloned().chain(self.fenced.iter().cloned().map(Some)).chain(all).collect()
    }

    /// The row of a manager of which nothing else is known.
    pub(super) fn shown(&self, config: &Config, row: ManagerRow) -> ManagerRow {
        let cordoned = self.closed(config).contains(&None);
        ManagerRow { cordoned, mode: self.mode(config), ..row }
    }
}

impl Front {
    /// What operators have said holds from here on; what is under way ends.
    pub(super) fn obey(&self, work: &mut Work) {
        work.desk.holdings.hosts.set_cordons(&self.orders.closed(&self.config));
        work.desk.read_only = self.looks || self.orders.mode(&self.config) == ManagerMode::ReadOnly;
        work.desk.gate_changed(self.env.mono());
        work.dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_as_configured_until_an_operator_has_said_otherwise() {
        let host: HostId = "h1".parse().unwrap();
        let config = Config::new("vc-1".parse().unwrap());
        let read_only = Config { starts_read_only: true, ..config.clone() };
        let said = |mode| Orders { cordons: vec![Some(host.clone())], mode, ..Orders::default() };
        assert_eq!(said(None).mode(&config), ManagerMode::Enabled);
        assert_eq!(said(None).closed(&config), [Some(host.clone())]);
        assert_eq!(said(None).mode(&read_only), ManagerMode::ReadOnly);
        assert_eq!(said(None).closed(&read_only), [Some(host.clone()), None]);
        assert_eq!(said(Some(ManagerMode::Enabled)).mode(&read_only), ManagerMode::Enabled);
        assert_eq!(said(Some(ManagerMode::Enabled)).closed(&read_only), [Some(host.clone())]);
        assert_eq!(said(Some(ManagerMode::Leaving)).closed(&config), [Some(host.clone()), None]);
        let dead = Orders { fenced: BTreeSet::from([host.clone()]), ..Orders::default() };
        assert_eq!(dead.closed(&config), [Some(host)], "nothing is put on it");
    }
}
