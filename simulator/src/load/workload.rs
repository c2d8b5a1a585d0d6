//! What is asked of a cluster, and when: at a rate, from a trace, or all at once.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::job::{JobKind, Size};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use super::arrivals::Arrivals;
use super::shape::Shape;
use crate::trace::{Trace, TraceAction};

/// One thing to be asked for. A workload is an iterator of these, in the order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// When, counted from the start; `None`: as soon as it may.
    pub due: Option<Duration>,
    /// What.
    pub task: Task,
}

/// What is to be asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Make a VM.
    Create {
        /// What the trace calls it. A VM with no key is anybody's for [`Task::Operate`].
        key: Option<Arc<str>>,
        /// Its shape.
        size: Size,
    },
    /// Remove the VM that was made under this key, once it has been made. What comes after waits.
    Delete {
        /// Which.
        key: Arc<str>,
    },
    /// Do this to some VM of this run that is there and idle. Where the kind would be illegal for
    /// that VM, it is one that is legal (start instead of restart); with no VM at all, a create.
    Operate(JobKind),
    /// A CloudEvent as somebody wrote it.
    Event(Value),
}

/// A workload.
pub type Workload = Box<dyn Iterator<Item = Planned> + Send>;

/// Shapes of generated VMs: small ones are frequent.
const SIZES: [Size; 4] = [
    Size { vcpus: 1, memory_mib: 2 * 1024, disk_gib: 20 },
    Size { vcpus: 2, memory_mib: 4 * 1024, disk_gib: 40 },
    Size { vcpus: 2, memory_mib: 8 * 1024, disk_gib: 40 },
    Size { vcpus: 4, memory_mib: 16 * 1024, disk_gib: 80 },
];

fn size(rng: &mut SmallRng) -> Size {
    SIZES[rng.random_range(0..SIZES.len())]
}

/// `count` VMs, all at once.
#[must_use]
pub fn provisions(count: u64, seed: u64) -> Workload {
    let mut rng = SmallRng::seed_from_u64(seed);
    Box::new((0..count).map(move |_| Planned { due: None, task: Task::Create { key: None, size: size(&mut rng) } }))
}

/// `count` operations drawn from `mix`, all at once. Where the mix has provisions, they are among them.
#[must_use]
pub fn operations(count: u64, mix: &Mix, seed: u64) -> Workload {
    let (mix, mut rng) = (mix.clone(), SmallRng::seed_from_u64(seed));
    Box::new((0..count).map(move |_| Planned { due: None, task: mix.draw(&mut rng) }))
}

/// Jobs drawn from `mix`, due as `shape` and `arrivals` say.
#[must_use]
pub fn shaped(shape: Shape, arrivals: Arrivals, mix: &Mix, seed: u64) -> Workload {
    // Times and tasks come from streams of their own, so that one mix meets the same times as another.
    let (mix, mut rng) = (mix.clone(), SmallRng::seed_from_u64(seed));
    Box::new(arrivals.times(shape, !seed).map(move |due| Planned { due: Some(due), task: mix.draw(&mut rng) }))
}

/// How fast a trace is played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speedup {
    /// So many times as fast as it was recorded.
    Times(f64),
    /// As fast as the cluster takes it.
    Max,
}

/// The text is no speed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a speedup is max, or how many times as fast: a number from 0.001 to 1000000000")]
pub struct InvalidSpeedup;

impl FromStr for Speedup {
    type Err = InvalidSpeedup;
    fn from_str(text: &str) -> Result<Self, InvalidSpeedup> {
        if text == "max" {
            return Ok(Self::Max);
        }
        text.parse().ok().filter(|times: &f64| (0.001..=1e9).contains(times)).map(Self::Times).ok_or(InvalidSpeedup)
    }
}

/// A trace, in its order of time.
#[must_use]
pub fn trace(trace: Trace, speedup: Speedup) -> Workload {
    Box::new(trace.events.into_iter().map(move |event| Planned {
        due: match speedup {
            Speedup::Max => None,
            Speedup::Times(times) => Some(event.at.div_f64(times)),
        },
        task: match event.what {
            TraceAction::Create(size) => Task::Create { key: Some(event.name), size },
            TraceAction::Delete => Task::Delete { key: event.name },
        },
    }))
}

/// Which kinds of jobs, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Weights, none of them zero.
    weights: BTreeMap<JobKind, u32>,
    total: u32,
}

/// Why a text is no mix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{part:?}: a mix is kind=weight, separated by commas: provision=60,start=10,delete=30; weights are 1 to 1000000, and cancel is none of the kinds"
)]
pub struct InvalidMix {
    /// What is not understood.
    part: String,
}

impl Mix {
    /// Many creates, some power operations, some deletes.
    #[must_use]
    pub fn lively() -> Self {
        use JobKind::{Delete, Provision, Resize, Restart, Resume, Snapshot, Start, Stop, Suspend};
        Self::of(
            [
                (Provision, 50),
                (Start, 8),
                (Stop, 8),
                (Restart, 5),
                (Suspend, 3),
                (Resume, 3),
                (Resize, 2),
                (Snapshot, 1),
                (Delete, 20),
            ]
            .into(),
        )
    }
    /// As many deletes as creates, and power operations: the number of VMs stays about what it is.
    #[must_use]
    pub fn steady() -> Self {
        use JobKind::{Delete, Provision, Restart, Start, Stop};
        Self::of([(Provision, 20), (Delete, 20), (Start, 20), (Stop, 20), (Restart, 20)].into())
    }
    /// Power operations only.
    #[must_use]
    pub fn power() -> Self {
        use JobKind::{Restart, Resume, Start, Stop, Suspend};
        Self::of([(Start, 30), (Stop, 30), (Restart, 20), (Suspend, 10), (Resume, 10)].into())
    }

    fn of(weights: BTreeMap<JobKind, u32>) -> Self {
        let total = weights.values().sum();
        Self { weights, total }
    }

    fn draw(&self, rng: &mut SmallRng) -> Task {
        let mut left = rng.random_range(0..self.total);
        for (kind, weight) in &self.weights {
            if left < *weight {
                return match kind {
                    JobKind::Provision => Task::Create { key: None, size: size(rng) },
                    kind => Task::Operate(*kind),
                };
            }
            left -= weight;
        }
        // Weights sum to the total, so that one of them was drawn.
        Task::Create { key: None, size: size(rng) }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kind, weight)) in self.weights.iter().enumerate() {
            write!(f, "{}{}={weight}", if index > 0 { "," } else { "" }, kind.as_str())?;
        }
        Ok(())
    }
}

impl FromStr for Mix {
    type Err = InvalidMix;
    fn from_str(text: &str) -> Result<Self, InvalidMix> {
        let mut weights = BTreeMap::new();
        for part in text.split(',') {
            let weight = part.split_once('=').and_then(|(name, weight)| {
                let kind =
                    JobKind::ALL.iter().find(|kind| kind.as_str() == name.trim() && **kind != JobKind::Cancel)?;
                let weight = weight.trim().parse().ok().filter(|weight| (1..=1_000_000).contains(weight))?;
                Some((*kind, weight))
            });
            let (kind, weight) = weight.ok_or_else(|| InvalidMix { part: part.chars().take(64).collect() })?;
            weights.insert(kind, weight);
        }
        Ok(Self::of(weights))
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::Profile;
    use super::*;

    #[test]
    fn a_shape_says_when_and_a_mix_says_what() {
        let shape = Shape::new(Profile::Constant, 4.0, 4.0, Duration::from_secs(2)).unwrap();
        let planned: Vec<_> = shaped(shape, Arrivals::Even, &Mix::lively(), 1).collect();
        assert_eq!(planned.len(), 8);
        assert_eq!(planned[6].due, Some(Duration::from_millis(1_500)));
        let tasks = |arrivals| shaped(shape, arrivals, &Mix::lively(), 1).map(|planned| planned.task).take(4);
        assert!(tasks(Arrivals::Even).eq(tasks(Arrivals::Poisson)), "other times, the same tasks");
    }

    #[test]
    fn a_mix_is_drawn_by_its_weights_and_from_its_seed() {
        let mix: Mix = "provision=3, delete=1".parse().unwrap();
        let drawn: Vec<_> = operations(4_000, &mix, 7).collect();
        let creates = drawn.iter().filter(|planned| matches!(planned.task, Task::Create { .. })).count();
        assert!((2_800..3_200).contains(&creates), "{creates}");
        assert_eq!(drawn, operations(4_000, &mix, 7).collect::<Vec<_>>());
        assert_eq!(mix.to_string().parse::<Mix>().unwrap().to_string(), "provision=3,delete=1");
        for bad in ["", "provision", "provision=0", "provision=-1", "cancel=1", "sleep=1", "start=1,,stop=1"] {
            assert!(bad.parse::<Mix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_trace_is_played_at_its_speed() {
        let csv = "name,cpu_milli,memory_mib,creation_time,deletion_time\na,1000,1,0,100\n";
        let read = Trace::read(csv.as_bytes()).unwrap();
        let dues = |speedup: &str| {
            trace(read.clone(), speedup.parse().unwrap()).map(|planned| planned.due).collect::<Vec<_>>()
        };
        assert_eq!(dues("10"), [Some(Duration::ZERO), Some(Duration::from_secs(10))]);
        assert_eq!(dues("max"), [None, None]);
        for bad in ["0", "-1", "inf", "NaN", "fast", ""] {
            assert_eq!(bad.parse::<Speedup>(), Err(InvalidSpeedup), "{bad}");
        }
    }
}
