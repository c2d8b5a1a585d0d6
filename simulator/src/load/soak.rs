//! A long run held against limits: does the server grow, do its queues or latencies creep, and was the harness
//! itself fit to tell?
//!
//! The first quarter of a run is warming up, and is not looked at. Growth of memory is counted for each job that
//! ended, as a server keeps the jobs of some time past (`jobs.retention`): it is the median of the slopes between
//! pairs of moments (Theil and Sen), which single peaks do not move. What may creep is compared between the second
//! quarter and the last, where as much was asked for in both.

use std::time::Duration;

use super::latencies::Latencies;
use super::report::Report;
use super::series::Moment;
use super::verdict::Check;

/// What a soak is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Memory that the server may keep for each job that has ended, bytes.
    pub growth_bytes_per_job: f64,
    /// How many times as long as in the second quarter the slowest hundredth of jobs may take in the last.
    pub latency_times: f64,
    /// How many times as many jobs as in the second quarter may be open in the last.
    pub backlog_times: f64,
    /// Processor time of the harness, cores.
    pub own_cpu: f64,
    /// Memory of the harness.
    pub own_rss_mib: f64,
    /// How late 99 of 100 jobs may be sent.
    pub late: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Measured: 5.3 KiB over half an hour's worth of jobs, all of which were kept.
            growth_bytes_per_job: 8_192.0,
            latency_times: 1.5,
            backlog_times: 2.0,
            own_cpu: 0.5,
            own_rss_mib: 512.0,
            late: Duration::from_millis(50),
        }
    }
}

/// With fewer moments a quarter says nothing.
const MOMENTS_MIN: usize = 40;
/// Pairs grow with the square of what they are of.
const SLOPE_POINTS: usize = 200;
/// Quarters in which the jobs that were due differ by more are not compared.
const SAME_LOAD: f64 = 0.15;
/// So many jobs more or less are no backlog, and so many milliseconds no creeping.
const JOBS_SLACK: f64 = 10.0;
const LATENCY_SLACK_MS: f64 = 10.0;

pub(super) fn checks(report: &Report, limits: &Limits) -> Vec<Check> {
    let moments = &report.details.series.moments;
    // The last is cut short by the end of the run.
    let moments = &moments[..moments.len().saturating_sub(1)];
    let long = moments.len() >= MOMENTS_MIN;
    let mut checks = Vec::new();
    let names = ["soak: the server's memory", "soak: latency does not creep", "soak: no backlog builds up"];
    if long {
        let quarter = moments.len() / 4;
        checks.push(growth(names[0], &moments[quarter..], jobs_before(&moments[..quarter]), limits));
        let [second, last] = [&moments[quarter..2 * quarter], &moments[moments.len() - quarter..]];
        checks.extend(creeping(&names[1..], second, last, limits));
    } else {
        let why = format!("the run has {} moments, and {MOMENTS_MIN} are needed", moments.len());
        checks.extend(names.iter().map(|name| Check::not_done(name, &why)));
    }
    checks.extend(own(report, moments, limits));
    checks
}

fn jobs(moment: &Moment) -> f64 {
    (moment.succeeded + moment.failed) as f64
}
fn jobs_before(moments: &[Moment]) -> f64 {
    moments.iter().map(jobs).sum()
}

fn growth(name: &str, moments: &[Moment], before: f64, limits: &Limits) -> Check {
    let mut ended = before;
    let points: Vec<(f64, f64)> = moments
        .iter()
        .filter_map(|moment| {
            ended += jobs(moment);
            moment.server_rss_mib.map(|mib| (ended, mib * 1_048_576.0))
        })
        .collect();
    let every = points.len().div_ceil(SLOPE_POINTS).max(1);
    let points: Vec<(f64, f64)> = points.into_iter().step_by(every).collect();
    let Some(bytes_per_job) = slope(&points) else {
        return Check::not_done(name, "the server did not say its memory, or no job ended");
    };
    let [first, last] =
        [points.first(), points.last()].map(|point| point.map_or(0.0, |(_, bytes)| bytes / 1_048_576.0));
    let limit = limits.growth_bytes_per_job;
    let found = format!(
        "{bytes_per_job:.0} bytes more for each job that ended (at most {limit:.0}); from {first:.0} to {last:.0} MiB \
         after the first quarter"
    );
    Check::of(name, bytes_per_job <= limit, found)
}

/// The median of the slopes between all pairs of points.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let mut slopes: Vec<f64> = Vec::with_capacity(points.len() * points.len() / 2);
    for (index, (x, y)) in points.iter().enumerate() {
        let after = points[index + 1..].iter().filter(|(later, _)| later > x);
        slopes.extend(after.map(|(later, above)| (above - y) / (later - x)));
    }
    let middle = slopes.len() / 2;
    (!slopes.is_empty()).then(|| *slopes.select_nth_unstable_by(middle, f64::total_cmp).1)
}

fn creeping(names: &[&str], second: &[Moment], last: &[Moment], limits: &Limits) -> Vec<Check> {
    let due = |moments: &[Moment]| moments.iter().map(|moment| moment.due).sum::<u64>() as f64;
    let [before, after] = [due(second), due(last)];
    if before == 0.0 || (after / before - 1.0).abs() > SAME_LOAD {
        let why =
            format!("not as much was asked for in the second quarter ({before:.0} jobs) as in the last ({after:.0})");
        return names.iter().map(|name| Check::not_done(name, &why)).collect();
    }
    let p99 = |moments: &[Moment]| {
        let mut all = Latencies::default();
        moments.iter().for_each(|moment| all.absorb(&moment.latency));
        all.at(0.99).unwrap_or_default()
    };
    let open = |moments: &[Moment]| {
        let mut open: Vec<u64> = moments.iter().map(|moment| moment.open).collect();
        open.sort_unstable();
        open.get(open.len() / 2).map_or(0.0, |open| *open as f64)
    };
    let held = |name: &str, what: &str, before: f64, after: f64, times: f64, slack: f64| {
        let limit = before * times + slack;
        let found = format!("{what} {before:.1} in the second quarter, {after:.1} in the last (at most {limit:.1})");
        Check::of(name, after <= limit, found)
    };
    vec![
        held(names[0], "p99, ms:", p99(second), p99(last), limits.latency_times, LATENCY_SLACK_MS),
        held(names[1], "open jobs, median:", open(second), open(last), limits.backlog_times, JOBS_SLACK),
    ]
}

fn own(report: &Report, moments: &[Moment], limits: &Limits) -> Vec<Check> {
    let told = |of: fn(&Moment) -> Option<f64>| moments.iter().filter_map(of).collect::<Vec<f64>>();
    let (cpu, rss) = (told(|moment| moment.own_cpu), told(|moment| moment.own_rss_mib));
    let names = ["soak: the harness's processor time", "soak: the harness's memory"];
    let mut checks = if cpu.is_empty() {
        names.map(|name| Check::not_done(name, "this system does not tell it")).to_vec()
    } else {
        let (mean, most) = (cpu.iter().sum::<f64>() / cpu.len() as f64, rss.iter().copied().fold(0.0, f64::max));
        vec![
            Check::of(
                names[0],
                mean <= limits.own_cpu,
                format!("{mean:.2} cores in the mean (at most {})", limits.own_cpu),
            ),
            Check::of(
                names[1],
                most <= limits.own_rss_mib,
                format!("{most:.0} MiB at the most (at most {})", limits.own_rss_mib),
            ),
        ]
    };
    let (p99, limit) = (report.late_ms.p99, limits.late.as_secs_f64() * 1e3);
    checks.push(Check::of(
        "soak: the harness was on time",
        p99 <= limit && report.limit_reached_seconds == 0.0,
        format!(
            "99 of 100 jobs were sent within {p99:.1} ms of when they were due (at most {limit:.0}); held up by the bound \
             on open jobs for {:.1} s (never)",
            report.limit_reached_seconds
        ),
    ));
    checks
}

#[cfg(test)]
mod tests {
    use super::super::report::{Details, LatencyMs};
    use super::super::series::Series;
    use super::super::verdict::Outcome;
    use super::*;

    /// A run of 400 s, each as this says.
    fn run(of: impl Fn(usize, &mut Moment)) -> Report {
        let mut series = Series::default();
        for second in 0..400 {
            let moment = series.at(Duration::from_secs(second as u64));
            (moment.due, moment.succeeded, moment.open) = (50, 50, 20);
            (moment.own_cpu, moment.own_rss_mib, moment.server_rss_mib) = (Some(0.1), Some(40.0), Some(200.0));
            (0..50).for_each(|job| moment.latency.add(Duration::from_millis(20 + job)));
            of(second, moment);
        }
        Report { details: Details { series, ..Details::default() }, ..Report::default() }
    }
    fn outcomes(report: &Report) -> Vec<Outcome> {
        checks(report, &Limits::default()).into_iter().map(|check| check.outcome).collect()
    }
    const GOOD: [Outcome; 6] = [Outcome::Passed; 6];
    /// All good but these.
    fn but(wrong: &[usize], outcome: Outcome) -> Vec<Outcome> {
        GOOD.iter().enumerate().map(|(index, good)| if wrong.contains(&index) { outcome } else { *good }).collect()
    }

    #[test]
    fn a_steady_run_passes_and_so_does_what_is_kept_for_a_job() {
        assert_eq!(outcomes(&run(|_, _| {})), GOOD);
        // 4 KiB a job, after a steep start, with a peak now and then.
        let kept = run(|second, moment| {
            let (start, peak) = (second.min(98) as f64, if second % 17 == 0 { 60.0 } else { 0.0 });
            moment.server_rss_mib =
                (second % 9 > 0).then_some(100.0 + 5.0 * start + peak + second as f64 * 50.0 / 256.0);
        });
        assert_eq!(outcomes(&kept), GOOD);
        let said = &checks(&kept, &Limits::default())[0].found;
        assert!(said.starts_with("4096 bytes more for each job") && said.contains("from 610 to"), "{said}");
    }

    #[test]
    fn each_limit_is_held() {
        let leaks = run(|second, moment| moment.server_rss_mib = Some(100.0 + second as f64 * 50.0 / 100.0));
        assert_eq!(outcomes(&leaks), but(&[0], Outcome::Failed), "10 KiB a job");
        let silent = run(|_, moment| moment.server_rss_mib = None);
        assert_eq!(outcomes(&silent), but(&[0], Outcome::NotDone));
        let slower = run(|second, moment| {
            (0..second as u64 / 8).for_each(|_| moment.latency.add(Duration::from_millis(20 + second as u64)));
        });
        assert_eq!(outcomes(&slower), but(&[1], Outcome::Failed));
        let backlog = run(|second, moment| moment.open = second as u64);
        assert_eq!(outcomes(&backlog), but(&[2], Outcome::Failed));
        let ramp = run(|second, moment| moment.due = second as u64);
        assert_eq!(outcomes(&ramp), but(&[1, 2], Outcome::NotDone));
        let busy = run(|_, moment| (moment.own_cpu, moment.own_rss_mib) = (Some(0.7), Some(600.0)));
        assert_eq!(outcomes(&busy), but(&[3, 4], Outcome::Failed));
        let late = Report { late_ms: LatencyMs { p99: 80.0, ..LatencyMs::default() }, ..run(|_, _| {}) };
        assert_eq!(outcomes(&late), but(&[5], Outcome::Failed));
        let held = Report { limit_reached_seconds: 0.5, ..run(|_, _| {}) };
        assert_eq!(outcomes(&held), but(&[5], Outcome::Failed));
        let mut short = run(|_, _| {});
        short.details.series.moments.truncate(MOMENTS_MIN);
        assert_eq!(outcomes(&short), but(&[0, 1, 2], Outcome::NotDone));
    }
}
