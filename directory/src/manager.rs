//! Whether a manager is used: what an operator has said of it, as records on the shard of its id.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether a manager is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManagerMode {
    /// It takes VMs and all work on them.
    #[default]
    Enabled,
    /// It is looked at only: nothing is placed on it, and no operation that changes something begins there.
    ReadOnly,
    /// It is being decommissioned: it takes no new VMs, and those that it has move away.
    Leaving,
}

impl ManagerMode {
    /// As in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::ReadOnly => "read-only",
            Self::Leaving => "leaving",
        }
    }
    /// Whether new VMs may be put on it.
    #[must_use]
    pub const fn takes_vms(self) -> bool {
        match self {
            Self::Enabled => true,
            Self::ReadOnly | Self::Leaving => false,
        }
    }
}
impl fmt::Display for ManagerMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_one_name_each() {
        for mode in [ManagerMode::Enabled, ManagerMode::ReadOnly, ManagerMode::Leaving] {
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.as_str());
        }
    }
}
