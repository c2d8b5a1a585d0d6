//! When room runs out, at the growth that there was: a straight line through what was free, with an
//! honest word on how much that is worth. Pure.
//!
//! Ordinary least squares. How sure the slope is follows from how far the samples lie from the line
//! (twice its standard error, which is about 95 of 100 for samples that are independent of each other;
//! room an hour later is not, so the true range is wider). A line is all that is assumed: a fleet that
//! is filled or emptied at once makes none, and the range says so.

use std::time::Duration;

use cellbus_bus::env::WallMs;

/// Less history than this says nothing.
pub const HISTORY_MIN: Duration = Duration::from_secs(24 * 3_600);
/// Fewer samples than this say nothing either.
pub const SAMPLES_MIN: usize = 8;
/// What is further away is not foretold.
pub const HORIZON: Duration = Duration::from_secs(365 * 24 * 3_600);

const DAY_MS: f64 = 24.0 * 3_600_000.0;

/// What is foretold.
#[derive(Clone, Debug, PartialEq)]
pub enum Outlook {
    /// It cannot be told, and why.
    Unknown(String),
    /// None is left already.
    Out,
    /// It runs out.
    RunsOut {
        /// By the line.
        at: WallMs,
        /// At the earliest, as far as the line is sure.
        earliest: WallMs,
        /// At the latest; `None`: perhaps not at all within [`HORIZON`].
        latest: Option<WallMs>,
    },
    /// Not within [`HORIZON`].
    Lasts {
        /// At the earliest, as far as the line is sure; `None`: not within it either.
        earliest: Option<WallMs>,
    },
}

/// What is foretold of one kind of room, and what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// What is free now; `None`: there is no sample.
    pub free: Option<u64>,
    /// By how much it falls in a day; `None` where that cannot be told.
    pub falls_per_day: Option<f64>,
    /// What follows.
    pub outlook: Outlook,
    /// Samples that it rests on.
    pub samples: usize,
    /// From the first of them to the last.
    pub history: Duration,
}

/// Foretells from what was free when, oldest first.
#[must_use]
pub fn forecast(points: &[(WallMs, u64)]) -> Forecast {
    let (Some((first, _)), Some((last, free))) = (points.first(), points.last()) else {
        let outlook = Outlook::Unknown("there is no history yet".to_owned());
        return Forecast { free: None, falls_per_day: None, outlook, samples: 0, history: Duration::ZERO };
    };
    let history = last.since(*first);
    let base =
        Forecast { free: Some(*free), falls_per_day: None, outlook: Outlook::Out, samples: points.len(), history };
    if *free == 0 {
        return base;
    }
    let unknown = |why: String| Forecast { outlook: Outlook::Unknown(why), ..base.clone() };
    if history < HISTORY_MIN {
        return unknown(format!("less than a day of history: {:.1} hours", history.as_secs_f64() / 3_600.0));
    }
    if points.len() < SAMPLES_MIN {
        return unknown(format!("{} samples are too few", points.len()));
    }
    let Some(Line { slope, error }) = Line::through(points, *first) else {
        return unknown("all samples are of one time".to_owned());
    };
    // Days until nothing is left, if it falls by so much a day.
    let left = *free as f64;
    let in_days = |falls: f64| (falls > 0.0).then(|| left / falls);
    let when = |falls: f64| {
        let ms = in_days(falls)? * DAY_MS;
        let horizon = HORIZON.as_millis() as f64;
        // The cast is within the horizon.
        (ms <= horizon).then(|| WallMs(last.0.saturating_add(ms as u64)))
    };
    let earliest = when(-slope + 2.0 * error);
    let outlook = match (when(-slope), earliest) {
        (Some(at), Some(earliest)) => Outlook::RunsOut { at, earliest, latest: when(-slope - 2.0 * error) },
        (Some(at), None) => Outlook::RunsOut { at, earliest: at, latest: when(-slope - 2.0 * error) },
        (None, earliest) => Outlook::Lasts { earliest },
    };
    Forecast { falls_per_day: Some(-slope), outlook, ..base }
}

struct Line {
    /// A day.
    slope: f64,
    /// Its standard error.
    error: f64,
}

impl Line {
    fn through(points: &[(WallMs, u64)], origin: WallMs) -> Option<Self> {
        let n = points.len() as f64;
        // Days since the first, so that numbers stay small.
        let xy = || points.iter().map(|(at, free)| ((at.0.saturating_sub(origin.0)) as f64 / DAY_MS, *free as f64));
        let (sum_x, sum_y) = xy().fold((0.0, 0.0), |(x, y), (px, py)| (x + px, y + py));
        let (mean_x, mean_y) = (sum_x / n, sum_y / n);
        let (xx, xy_) = xy()
            .fold((0.0, 0.0), |(xx, xy), (x, y)| (xx + (x - mean_x) * (x - mean_x), xy + (x - mean_x) * (y - mean_y)));
        if xx <= 0.0 {
            return None;
        }
        let slope = xy_ / xx;
        let residuals: f64 = xy().map(|(x, y)| (y - mean_y - slope * (x - mean_x)).powi(2)).sum();
        let error = (residuals / (n - 2.0) / xx).sqrt();
        Some(Self { slope, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const DAY: u64 = 24 * HOUR;

    fn hourly(hours: u64, free: impl Fn(u64) -> u64) -> Vec<(WallMs, u64)> {
        (0..=hours).map(|hour| (WallMs(1_700_000_000_000 + hour * HOUR), free(hour))).collect()
    }
    fn days_ahead(points: &[(WallMs, u64)], at: WallMs) -> f64 {
        at.since(points[points.len() - 1].0).as_secs_f64() / 86_400.0
    }

    #[test]
    fn what_falls_evenly_runs_out_when_it_does() {
        // Ten a day, a hundred left.
        let points = hourly(48, |hour| (1_200 - 10 * hour) * 10 / 24 - 200);
        let forecast = forecast(&points);
        let Outlook::RunsOut { at, earliest, latest } = forecast.outlook else { panic!("{forecast:?}") };
        let free = points[48].1 as f64;
        assert!((forecast.falls_per_day.unwrap() - 100.0).abs() < 0.5, "{forecast:?}");
        assert!((days_ahead(&points, at) - free / 100.0).abs() < 0.05, "{forecast:?}");
        assert!(earliest <= at && latest.unwrap() >= at);
        assert!(days_ahead(&points, latest.unwrap()) - days_ahead(&points, earliest) < 0.1, "an even fall is sure");
        assert_eq!((forecast.samples, forecast.history), (49, Duration::from_secs(48 * 3_600)));
    }

    #[test]
    fn too_little_is_unknown_and_says_why() {
        let unknown = |points: &[(WallMs, u64)]| match forecast(points).outlook {
            Outlook::Unknown(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(unknown(&[]), "there is no history yet");
        assert_eq!(unknown(&hourly(23, |hour| 1_000 - hour)), "less than a day of history: 23.0 hours");
        assert_eq!(unknown(&[(WallMs(0), 9), (WallMs(2 * DAY), 5)]), "2 samples are too few");
        assert_eq!(forecast(&hourly(1, |_| 0)).outlook, Outlook::Out, "no history is needed to see nothing");
    }

    #[test]
    fn what_does_not_fall_lasts_and_noise_makes_the_range_wide() {
        assert_eq!(forecast(&hourly(100, |_| 500)).outlook, Outlook::Lasts { earliest: None });
        assert!(matches!(forecast(&hourly(100, |hour| 500 + hour)).outlook, Outlook::Lasts { earliest: None }));
        // So slowly that it is beyond the horizon.
        let slow = hourly(24 * 29, |hour| 1_000_000 - hour);
        assert!(matches!(forecast(&slow).outlook, Outlook::Lasts { .. }));
        // Up and down by far more than it falls.
        let noise = |hour: u64| 10_000 - hour + if hour.is_multiple_of(2) { 3_000 } else { 0 };
        let points = hourly(72, noise);
        match forecast(&points).outlook {
            Outlook::RunsOut { at, earliest, latest } => {
                assert!(days_ahead(&points, earliest) < days_ahead(&points, at) / 2.0);
                assert_eq!(latest, None, "perhaps never");
            }
            Outlook::Lasts { earliest } => assert!(earliest.is_some(), "it may run out all the same"),
            other => panic!("{other:?}"),
        }
    }

    proptest::proptest! {
        #[test]
        fn any_history_gives_some_answer(points in proptest::collection::vec((0_u64..u64::MAX / 4, 0_u64..u64::MAX), 0..60)) {
            let mut points: Vec<(WallMs, u64)> = points.into_iter().map(|(at, free)| (WallMs(at), free)).collect();
            points.sort();
            let forecast = forecast(&points);
            if let Outlook::RunsOut { at, earliest, latest } = forecast.outlook {
                proptest::prop_assert!(earliest <= at && latest.is_none_or(|latest| latest >= at));
            }
        }
    }
}
