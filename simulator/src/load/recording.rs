//! All that is kept of a run: its report, how it went, and what it was run on. Written as JSON, read again to
//! be compared, and shown as a page.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::latencies::Latencies;
use super::marks::Mark;
use super::report::{Details, Report};
use super::series::Series;

/// What was run, where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// The cluster, as it was named.
    pub server: String,
    /// When it began (RFC 3339).
    pub began_at: String,
    /// What was asked for, by flag.
    pub configuration: BTreeMap<String, String>,
    /// Of the programs.
    pub versions: BTreeMap<String, String>,
    /// The machine that the harness ran on.
    pub machine: BTreeMap<String, String>,
}

/// A run, whole. In JSON it is the object of [`Report`] with more fields; they are only ever added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recording {
    /// What it came to.
    #[serde(flatten)]
    pub report: Report,
    /// What was run, where.
    pub about: About,
    /// How it went.
    pub series: Series,
    /// Latencies of each type of job.
    pub latency_by_type: BTreeMap<String, Latencies>,
    /// What happened to the cluster meanwhile.
    pub marks: Vec<Mark>,
    /// As much more happened, and is not kept.
    pub marks_dropped: u64,
}

impl Recording {
    /// Of a run that has ended.
    #[must_use]
    pub fn new(mut report: Report, about: About) -> Self {
        let Details { series, latency_by_type, marks, marks_dropped } = std::mem::take(&mut report.details);
        Self { report, about, series, latency_by_type, marks, marks_dropped }
    }

    /// Latencies of all jobs.
    pub(super) fn latencies(&self) -> Latencies {
        let mut all = Latencies::default();
        self.series.moments.iter().for_each(|moment| all.absorb(&moment.latency));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_recording_is_read_as_it_was_written() {
        let mut series = Series::default();
        series.at(Duration::from_secs(2)).latency.add(Duration::from_millis(3));
        series.at(Duration::from_secs(1)).own_cpu = Some(0.25);
        let marks = vec![Mark { at_seconds: 1.5, what: "cell a left".to_owned() }];
        let details = Details { series, marks, marks_dropped: 2, ..Details::default() };
        let report = Report { jobs_submitted: 7, lost: 1, details, ..Report::default() };
        let about = About { server: "here".to_owned(), ..About::default() };
        let recording = Recording::new(report, about);
        let text = serde_json::to_string(&recording).unwrap();
        assert_eq!(serde_json::from_str::<Recording>(&text).unwrap(), recording);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        // What scripts read is where it is on standard output, too.
        assert_eq!((&value["jobs_submitted"], &value["lost"]), (&7.into(), &1.into()));
        assert_eq!(value["series"]["moments"][2]["latency"][0][1], 1, "{value}");
        assert_eq!(recording.latencies().count(), 1);
        // What an older one does not have is as if nothing had been.
        assert_eq!(serde_json::from_str::<Recording>("{}").unwrap(), Recording::default());
    }
}
