//! Which faults a run has, and how often.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident => $text:literal),* $(,)?) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum FaultKind { $($(#[$doc])* $variant,)* }
        impl FaultKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            /// As on the command line.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $text),* } }
        }
    };
}
kinds! {
    /// A cell dies with its process, and is started again under a new id a while later.
    Crash => "crash",
    /// A cell stands still for up to 15 s, longer than its lease, and goes on as if nothing had been.
    Pause => "pause",
    /// A cell's clocks run up to a tenth too fast or too slow, or its wall clock is set wrong.
    Clock => "clock",
    /// A cell cannot reach the bus, the managers or other cells, one way too.
    Partition => "partition",
    /// Messages between cells and to managers are lost, late, overtaken or come twice.
    Network => "network",
    /// The bus loses calls and answers, has no room, or is away for a while.
    Bus => "bus",
    /// Managers fail, hang, are slow, or do the work and lose the answer.
    Managers => "managers",
    /// A host is lost with its VMs, takes none, does not answer, is off for certain, or loses its power, which an
    /// operator says then, and comes back.
    Hosts => "hosts",
    /// Somebody else changes, moves or deletes VMs.
    Behind => "behind",
    /// A third of all hosts loses power and comes back, and all its VMs are started at once.
    Power => "power",
    /// Operators cordon hosts and managers, and call jobs off.
    Operators => "operators",
    /// Cells join, and leave in order.
    Members => "members",
    /// A cell's disk, which its directory's checkpoint is on, fails, tears or loses writes, or lets
    /// what it holds rot.
    Disk => "disk",
    /// A manager comes back from a backup some seconds old.
    Backup => "backup",
    /// The bus comes back as it was some seconds ago, without what it has acknowledged since. Not one
    /// of `all`: only that it is noticed can be asked for then.
    Amnesia => "amnesia",
    /// Controllers decide how many cells there are, have them start and leave, and die or stand still
    /// themselves; operators say otherwise.
    Autoscaler => "autoscaler",
    /// Operators pause work, all of it or what removes something, and let it go on; meanwhile the bus
    /// may not tell a cell what the log of pauses holds.
    Stops => "stops",
}
impl FaultKind {
    /// Whether it is one of `all`.
    #[must_use]
    pub const fn usual(self) -> bool {
        !matches!(self, Self::Amnesia)
    }
    fn all() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|kind| kind.usual())
    }
}
impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How often each fault happens: 1 is as often as usual, 0 never.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    rates: BTreeMap<FaultKind, f64>,
}

/// The text names no faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{part:?}: faults are all, none, or a list of kind or kind=rate separated by commas, as in crash,bus=0.5; a rate is 0 to 100 and 1 is usual. Kinds: {}",
    FaultKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ")
)]
pub struct InvalidFaults {
    part: String,
}

impl Faults {
    /// None at all.
    #[must_use]
    pub fn none() -> Self {
        Self { rates: BTreeMap::new() }
    }
    /// Every kind that is usual, as often as usual.
    #[must_use]
    pub fn all() -> Self {
        Self { rates: FaultKind::all().map(|kind| (kind, 1.0)).collect() }
    }
    /// This kind alone.
    #[must_use]
    pub fn only(kind: FaultKind) -> Self {
        Self { rates: BTreeMap::from([(kind, 1.0)]) }
    }
    /// How often; 0 for never.
    #[must_use]
    pub fn rate(&self, kind: FaultKind) -> f64 {
        self.rates.get(&kind).copied().unwrap_or(0.0)
    }
    /// The same with this kind at this rate.
    #[must_use]
    pub fn with(mut self, kind: FaultKind, rate: f64) -> Self {
        if rate > 0.0 {
            self.rates.insert(kind, rate);
        } else {
            self.rates.remove(&kind);
        }
        self
    }
    /// Kinds that happen.
    pub fn kinds(&self) -> impl Iterator<Item = FaultKind> + '_ {
        self.rates.keys().copied()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rates.is_empty() {
            return f.write_str("none");
        }
        if *self == Self::all() {
            return f.write_str("all");
        }
        let part = |(kind, rate): (&FaultKind, &f64)| {
            if *rate == 1.0 { kind.to_string() } else { format!("{kind}={rate}") }
        };
        f.write_str(&self.rates.iter().map(part).collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Faults {
    type Err = InvalidFaults;
    fn from_str(text: &str) -> Result<Self, InvalidFaults> {
        let mut faults = Self::none();
        for part in text.split(',') {
            let (name, rate) = part.split_once('=').unwrap_or((part, "1"));
            let rate = rate.trim().parse().ok().filter(|rate: &f64| (0.0..=100.0).contains(rate));
            let found = match name.trim() {
                "none" => rate.map(|_| Vec::new()),
                "all" => rate.map(|_| FaultKind::all().collect()),
                name => FaultKind::ALL.iter().find(|kind| kind.as_str() == name).map(|kind| vec![*kind]),
            };
            let (Some(rate), Some(kinds)) = (rate, found) else {
                return Err(InvalidFaults { part: part.chars().take(64).collect() });
            };
            faults = kinds.into_iter().fold(faults, |faults, kind| faults.with(kind, rate));
        }
        Ok(faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_printed_alike() {
        for text in ["all", "none", "crash,bus=0.5", "pause"] {
            assert_eq!(text.parse::<Faults>().unwrap().to_string(), text);
        }
        assert_eq!("all,crash=0".parse::<Faults>().unwrap().rate(FaultKind::Crash), 0.0);
        assert_eq!("all".parse::<Faults>().unwrap().rate(FaultKind::Amnesia), 0.0);
        assert_eq!("all,amnesia".parse::<Faults>().unwrap().rate(FaultKind::Amnesia), 1.0);
        assert_eq!("all,crash=0".parse::<Faults>().unwrap().rate(FaultKind::Bus), 1.0);
        for bad in ["", "crush", "crash=-1", "crash=NaN", "crash=101", "crash,,bus"] {
            assert!(bad.parse::<Faults>().is_err(), "{bad}");
        }
    }
}
