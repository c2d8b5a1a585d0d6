//! How many cells there are to be: what operators set, and what was decided, as records.
//!
//! Kept on the shard of the cluster's own key. The policy that decides is in `workflows`; the types
//! are here because the log is written in them. Numbers with a fraction are whole numbers of a
//! smaller unit, so that records compare and replay exactly.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::{ControllerId, Term};
use serde::{Deserialize, Serialize};

/// Decisions that are kept. The controller writes one a minute at least, so a quiet day does not fit;
/// a day of changes does.
pub const DECISIONS_MAX: usize = 1_000;
/// Characters of a reason that are kept.
pub const REASON_CHARS_MAX: usize = 600;

/// Who says how many cells there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The policy, between the bounds.
    Auto,
    /// An operator: this many.
    Fixed,
    /// Nobody: it stays as it is.
    Paused,
}
impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Fixed, Self::Paused];
    /// As in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fixed => "fixed",
            Self::Paused => "paused",
        }
    }
}
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a mode is auto, fixed or paused")]
pub struct InvalidMode;
impl FromStr for Mode {
    type Err = InvalidMode;
    fn from_str(text: &str) -> Result<Self, InvalidMode> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text).ok_or(InvalidMode)
    }
}

/// What an operator sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Who says how many.
    pub mode: Mode,
    /// How many, in [`Mode::Fixed`].
    pub cells: u32,
    /// The least, in [`Mode::Auto`].
    pub min: u32,
    /// The most, in [`Mode::Auto`]. A quarter of the shards bounds it too.
    pub max: u32,
    /// How long what waits may take to be gone.
    pub drain_target: Duration,
    /// 99 of 100 jobs are to be started within this.
    pub latency_objective: Duration,
}

/// Jobs in time, in thousandths of a job a second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(pub u64);
impl Rate {
    /// Of jobs a second. What is negative or no number is none.
    #[must_use]
    pub fn per_second(jobs: f64) -> Self {
        // The cast saturates, and makes 0 of NaN.
        Self((jobs * 1_000.0).round() as u64)
    }
    /// Jobs a second.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0 as f64 / 1_000.0
    }
}
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}/s", self.get())
    }
}
impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rate({self})")
    }
}

/// What a decision rests on. `None`: not known, which is never taken for zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// What operators had set.
    pub settings: Settings,
    /// How old the reading was; `None` if there was none.
    pub age: Option<Duration>,
    /// Cells that take shards.
    pub cells_active: Option<u32>,
    /// Cells that hand theirs over.
    pub cells_draining: Option<u32>,
    /// Jobs that no owner has read, with those that no cell has taken from the bus.
    pub unread: u64,
    /// Work accepted and not started.
    pub waiting: u64,
    /// Of both: what waits for managers that are saturated, failing or not known. More cells would not help.
    pub blocked: u64,
    /// Work under way.
    pub running: u64,
    /// How much may be under way in all active cells; `None` if nothing limits it.
    pub running_max: Option<u64>,
    /// How long the oldest work that has not started has waited.
    pub oldest: Option<Duration>,
    /// What comes.
    pub arrival: Option<Rate>,
    /// What is done.
    pub completion: Option<Rate>,
    /// What one busy cell does.
    pub cell_rate: Option<Rate>,
    /// Shards of which nothing recent is known.
    pub shards_unknown: u32,
    /// What the formula gave, before windows and steps; `None` where it could not be worked out.
    pub wanted: Option<u32>,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// As many as before.
    Hold,
    /// More.
    Out,
    /// Fewer.
    In,
    /// Fewer, as more had made things worse.
    Undo,
}
impl Direction {
    /// As in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Out => "out",
            Self::In => "in",
            Self::Undo => "undo",
        }
    }
}

/// One decision, with all that it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When.
    pub at: WallMs,
    /// How many cells there are to be.
    pub desired: u32,
    /// How many there were to be before.
    pub before: u32,
    /// Which way that is.
    pub direction: Direction,
    /// Why, in words, with the numbers.
    pub reason: String,
    /// What keeps cells from coming or going, in words; `None` if nothing does.
    pub trouble: Option<String>,
    /// What it rests on.
    pub inputs: Inputs,
}

/// Who may decide: one controller at a time. What one of an older term decides is void.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Which.
    pub controller: ControllerId,
    /// Grows with every other controller.
    pub term: Term,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Record;
    use crate::record::Operator;

    #[test]
    fn rates_are_exact_to_a_thousandth() {
        assert_eq!(Rate::per_second(1.0 / 3.0), Rate(333));
        assert_eq!((Rate::per_second(-1.0), Rate::per_second(f64::NAN)), (Rate(0), Rate(0)));
        assert_eq!(Rate(1_250).to_string(), "1.2/s");
    }

    /// What is written today must be read for ever: these bytes never change.
    #[test]
    fn the_bytes_of_the_records_are_pinned() {
        let settings = Settings {
            mode: Mode::Fixed,
            cells: 3,
            min: 1,
            max: 300,
            drain_target: Duration::from_secs(60),
            latency_objective: Duration::from_millis(5_500),
        };
        let leader = Leader { controller: "c-1".parse().unwrap(), term: Term(2) };
        let inputs = Inputs {
            settings: settings.clone(),
            age: Some(Duration::from_millis(250)),
            cells_active: Some(3),
            cells_draining: None,
            unread: 4,
            waiting: 5,
            blocked: 6,
            running: 7,
            running_max: Some(8),
            oldest: None,
            arrival: Some(Rate(1_500)),
            completion: None,
            cell_rate: Some(Rate(9)),
            shards_unknown: 10,
            wanted: Some(11),
        };
        let decision = Decision {
            at: WallMs(1_000),
            desired: 12,
            before: 13,
            direction: Direction::Undo,
            reason: "why".to_owned(),
            trouble: Some("no".to_owned()),
            inputs,
        };
        let hex = |record: Record| -> String {
            cellbus_bus::codec::encode(&record).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let by = Operator { who: "a".to_owned(), from: "b".to_owned() };
        let decided = Record::ScaleDecided { term: Term(2), decision: decision.into() };
        let written = [hex(Record::ScaleSet { settings, by }), hex(Record::ScaleLed { leader }), hex(decided)];
        assert_eq!(written, PINNED);
    }
    const PINNED: [&str; 3] = [
        "0122010301fb2c013c0005fc0065cd1d01610162",
        "012303632d3102",
        "012402fbe8030c0d030377687901026e6f010301fb2c013c0005fc0065cd1d0100fc80b2e60e0103000405060701080001fbdc050001090a010b",
    ];

    #[test]
    fn modes_are_read_as_they_are_written() {
        for mode in Mode::ALL {
            assert_eq!(mode.as_str().parse(), Ok(mode));
        }
        assert_eq!("Auto".parse::<Mode>(), Err(InvalidMode));
    }
}
