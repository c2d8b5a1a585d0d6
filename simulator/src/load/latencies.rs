//! Latencies, counted in buckets that are cheap to keep, to add up and to write down.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets for each doubling: neighbours differ by 2.2 %.
const PER_DOUBLING: f64 = 32.0;

/// How the buckets are to be read, for whoever reads the JSON.
pub(super) const EXPLAINED: &str =
    "latencies are pairs [bucket, jobs]; bucket b holds those from 2^(b/32) to 2^((b+1)/32) microseconds";

/// How many jobs took how long: `(bucket, jobs)`, in the order of time. Bucket `b` holds latencies
/// from 2^(b/32) to 2^((b+1)/32) microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Latencies(Vec<(u16, u64)>);

impl Latencies {
    /// One more.
    pub(super) fn add(&mut self, latency: Duration) {
        let micros = (latency.as_secs_f64() * 1e6).max(1.0);
        // A Duration has at most 2^84 microseconds, so that a bucket is below 2,700.
        self.put((micros.log2() * PER_DOUBLING) as u16, 1);
    }
    fn put(&mut self, bucket: u16, jobs: u64) {
        match self.0.binary_search_by_key(&bucket, |(known, _)| *known) {
            Ok(place) => self.0[place].1 += jobs,
            Err(place) => self.0.insert(place, (bucket, jobs)),
        }
    }
    /// All of another's.
    pub(super) fn absorb(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
        } else {
            other.0.iter().for_each(|(bucket, jobs)| self.put(*bucket, *jobs));
        }
    }
    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, jobs)| jobs).sum()
    }
    /// The latency that this part (0 to 1) of them do not exceed, milliseconds, to 1 %; `None`
    /// where there are none.
    #[must_use]
    pub fn at(&self, part: f64) -> Option<f64> {
        let wanted = (self.count() as f64 * part).ceil().max(1.0);
        let mut seen = 0;
        self.0.iter().find_map(|(bucket, jobs)| {
            seen += jobs;
            (seen as f64 >= wanted).then(|| Self::middle_of(*bucket))
        })
    }
    /// As they are kept: bucket, jobs.
    pub(super) fn pairs(&self) -> &[(u16, u64)] {
        &self.0
    }
    /// What stands for a bucket, milliseconds.
    pub(super) fn middle_of(bucket: u16) -> f64 {
        millis(f64::from(bucket) + 0.5)
    }
    /// Each bucket's upper end, milliseconds, and how many are in it.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        self.0.iter().map(|(bucket, jobs)| (millis(f64::from(*bucket) + 1.0), *jobs))
    }
}

fn millis(bucket: f64) -> f64 {
    (bucket / PER_DOUBLING).exp2() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_a_percent() {
        let (mut all, mut odd) = (Latencies::default(), Latencies::default());
        for millis in 1..=10_000 {
            let into = if millis % 2 == 0 { &mut all } else { &mut odd };
            into.add(Duration::from_millis(millis));
        }
        assert_eq!((all.at(0.5).is_some(), Latencies::default().at(0.5)), (true, None));
        all.absorb(&odd);
        assert_eq!(all.count(), 10_000);
        for part in [0.001, 0.5, 0.9, 0.99, 1.0] {
            let (got, wanted) = (all.at(part).unwrap(), part * 10_000.0);
            assert!((got / wanted - 1.0).abs() < 0.0112, "{part}: {got}");
        }
        let mut ends = Latencies::default();
        ends.add(Duration::ZERO);
        ends.add(Duration::MAX);
        assert_eq!(ends.count(), 2, "nothing is too short or too long to be counted");
    }
}
