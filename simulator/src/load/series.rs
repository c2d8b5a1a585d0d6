//! How a run went, moment by moment.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::latencies::{EXPLAINED, Latencies};

/// Moments at the most: above it two become one. A second each for 20 minutes, about a minute each
/// for a day; more than a screen shows says nothing.
const MOMENTS_MAX: usize = 1_200;

/// A run in moments of equal length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Series {
    /// How long each is.
    pub every_seconds: f64,
    /// How latencies are written.
    pub note: String,
    /// From the start on, without holes.
    pub moments: Vec<Moment>,
}

/// What happened in one moment. Counts are of the moment; what has no count is as it was last seen
/// in it, and 0 or `None` where it was not looked at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Moment {
    /// Jobs that were due.
    pub due: u64,
    /// Jobs handed to a connection.
    pub sent: u64,
    /// Jobs that the cluster acknowledged.
    pub acknowledged: u64,
    /// Jobs that ended as asked.
    pub succeeded: u64,
    /// Jobs that ended otherwise, or were refused.
    pub failed: u64,
    /// Jobs that were due and have not ended, at the most.
    pub open: u64,
    /// The longest that a job waited here, in the harness, from when it was due.
    pub late_ms: f64,
    /// Of the jobs that were due in this moment, from then to their outcome.
    pub latency: Latencies,
    /// Cells.
    pub cells: Option<u64>,
    /// Memory of the server.
    pub server_rss_mib: Option<f64>,
    /// Jobs that the server has and has not ended.
    pub server_jobs: Option<u64>,
    /// Processor time of the harness; 1 is one core.
    pub own_cpu: Option<f64>,
    /// Memory of the harness.
    pub own_rss_mib: Option<f64>,
}

impl Moment {
    fn absorb(&mut self, later: Self) {
        self.due += later.due;
        self.sent += later.sent;
        self.acknowledged += later.acknowledged;
        self.succeeded += later.succeeded;
        self.failed += later.failed;
        self.open = self.open.max(later.open);
        self.late_ms = self.late_ms.max(later.late_ms);
        self.latency.absorb(&later.latency);
        self.cells = later.cells.or(self.cells);
        self.server_rss_mib = later.server_rss_mib.or(self.server_rss_mib);
        self.server_jobs = later.server_jobs.or(self.server_jobs);
        self.own_cpu = later.own_cpu.or(self.own_cpu);
        self.own_rss_mib = later.own_rss_mib.or(self.own_rss_mib);
    }
}

impl Default for Series {
    fn default() -> Self {
        Self { every_seconds: 1.0, note: EXPLAINED.to_owned(), moments: Vec::new() }
    }
}

impl Series {
    /// The moment so long after the start.
    pub(super) fn at(&mut self, since_start: Duration) -> &mut Moment {
        let index = |every: f64| (since_start.as_secs_f64() / every) as usize;
        while index(self.every_seconds) >= MOMENTS_MAX {
            self.every_seconds *= 2.0;
            let mut halved = Vec::with_capacity(MOMENTS_MAX);
            let mut moments = std::mem::take(&mut self.moments).into_iter();
            while let Some(mut moment) = moments.next() {
                if let Some(later) = moments.next() {
                    moment.absorb(later);
                }
                halved.push(moment);
            }
            self.moments = halved;
        }
        let index = index(self.every_seconds);
        if self.moments.len() <= index {
            self.moments.resize_with(index + 1, Moment::default);
        }
        &mut self.moments[index]
    }

    /// Each moment with its middle, seconds from the start.
    pub fn timed(&self) -> impl Iterator<Item = (f64, &Moment)> {
        self.moments.iter().enumerate().map(|(index, moment)| ((index as f64 + 0.5) * self.every_seconds, moment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_has_longer_moments_and_loses_nothing() {
        let mut series = Series::default();
        for second in 0..5_000 {
            let moment = series.at(Duration::from_secs(second));
            moment.due += 1;
            moment.open = second;
            moment.latency.add(Duration::from_millis(second));
        }
        assert_eq!(series.every_seconds, 8.0);
        assert_eq!(series.moments.len(), 625);
        assert_eq!(series.moments.iter().map(|moment| moment.due).sum::<u64>(), 5_000);
        assert_eq!(series.moments.iter().map(|moment| moment.latency.count()).sum::<u64>(), 5_000);
        assert_eq!((series.moments[0].open, series.moments[624].open), (7, 4_999));
        assert_eq!(series.timed().nth(1).unwrap().0, 12.0);
        // Far ahead at once, and back again.
        series.at(Duration::from_secs(3_600 * 24 * 365)).sent += 1;
        assert!(series.moments.len() <= MOMENTS_MAX);
        series.at(Duration::ZERO).sent += 1;
        assert_eq!(series.moments[0].sent, 1);
    }
}
