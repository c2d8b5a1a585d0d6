//! Which load: the flags that say when how many jobs are due.

use std::time::Duration;

use cellbus_simulator::load::{Arrivals, Profile, Shape};
use clap::{Args, ValueEnum};

use crate::exit::{Error, Result};
use crate::jobs::duration;

/// What has no rate.
const OTHERS: [&str; 3] = ["trace", "anonymise", "compare"];

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// So many jobs a second, drawn from --mix; for other shapes than constant, where the rate begins
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<f64>,
    /// What the rate does: step and ramp go from --rate to --peak; burst alternates between --peak and --rate; daily
    /// swings between them
    #[arg(long, value_enum, value_name = "SHAPE", default_value = "constant", conflicts_with_all = OTHERS)]
    shape: Kind,
    /// The other rate of a shape, jobs a second
    #[arg(long, value_name = "N", conflicts_with_all = OTHERS)]
    peak: Option<f64>,
    /// Levels of --shape step
    #[arg(long, value_name = "N", default_value_t = 5, conflicts_with_all = OTHERS)]
    steps: u32,
    /// From burst to burst (60s if not given), or how long a day of --shape daily is (24h)
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = OTHERS)]
    period: Option<Duration>,
    /// How long each burst is; half of the period if not given
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = OTHERS)]
    burst: Option<Duration>,
    /// even: jobs as far apart as the rate says; poisson: at random, as from many senders
    #[arg(long, value_enum, value_name = "KIND", default_value = "even", conflicts_with_all = OTHERS)]
    arrivals: Spread,
    /// For how long, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s", conflicts_with_all = OTHERS)]
    duration: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Constant,
    Step,
    Ramp,
    Burst,
    Daily,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Spread {
    Even,
    Poisson,
}

const BURST_PERIOD: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3_600);

impl Flags {
    pub(super) fn arrivals(&self) -> Arrivals {
        match self.arrivals {
            Spread::Even => Arrivals::Even,
            Spread::Poisson => Arrivals::Poisson,
        }
    }

    /// The shape that they describe.
    pub(super) fn shape(&self) -> Result<Shape> {
        let rate = self.rate.unwrap_or_default();
        if !(0.0..=1e6).contains(&rate) || (self.shape == Kind::Constant && rate == 0.0) {
            return Err(Error::Usage(format!("--rate {rate}: jobs a second, above 0 and at most 1000000")));
        }
        let periodic = match self.shape {
            Kind::Constant | Kind::Step | Kind::Ramp => false,
            Kind::Burst | Kind::Daily => true,
        };
        let unused = [
            (self.peak.is_some() && self.shape == Kind::Constant, "--peak is for --shape step, ramp, burst and daily"),
            (self.period.is_some() && !periodic, "--period is for --shape burst and daily"),
            (self.burst.is_some() && self.shape != Kind::Burst, "--burst is for --shape burst"),
        ];
        if let Some((_, sentence)) = unused.iter().find(|(unused, _)| *unused) {
            return Err(Error::Usage((*sentence).to_owned()));
        }
        let peak = match (self.shape, self.peak) {
            (Kind::Constant, _) => rate,
            (_, Some(peak)) => peak,
            (Kind::Step | Kind::Ramp | Kind::Burst | Kind::Daily, None) => {
                let message = format!("--shape {} goes between two rates: --peak says the other", self.name());
                return Err(Error::Usage(message));
            }
        };
        let profile = match self.shape {
            Kind::Constant => Profile::Constant,
            Kind::Step => Profile::Step { steps: self.steps },
            Kind::Ramp => Profile::Ramp,
            Kind::Burst => {
                let period = self.period.unwrap_or(BURST_PERIOD);
                let burst = self.burst.unwrap_or(period / 2);
                if burst.is_zero() || burst >= period {
                    return Err(Error::Usage(
                        "--burst: a burst is longer than nothing and shorter than --period".to_owned(),
                    ));
                }
                Profile::Burst { period, duty: burst.as_secs_f64() / period.as_secs_f64() }
            }
            Kind::Daily => Profile::Daily { period: self.period.unwrap_or(DAY) },
        };
        Shape::new(profile, rate, peak, self.duration).map_err(|invalid| Error::Usage(invalid.to_string()))
    }

    fn name(&self) -> &'static str {
        match self.shape {
            Kind::Constant => "constant",
            Kind::Step => "step",
            Kind::Ramp => "ramp",
            Kind::Burst => "burst",
            Kind::Daily => "daily",
        }
    }

    /// In words, for the report.
    pub(super) fn described(&self) -> String {
        let arrivals = match self.arrivals {
            Spread::Even => "evenly spaced",
            Spread::Poisson => "Poisson arrivals",
        };
        let (rate, peak) = (self.rate.unwrap_or_default(), self.peak.unwrap_or_default());
        let shape = match self.shape {
            Kind::Constant => format!("{rate} jobs a second"),
            Kind::Step => format!("from {rate} to {peak} jobs a second in {} steps", self.steps),
            Kind::Ramp => format!("from {rate} to {peak} jobs a second in a straight line"),
            Kind::Burst => {
                let period = self.period.unwrap_or(BURST_PERIOD);
                let burst = self.burst.unwrap_or(period / 2);
                format!("every {period:?}, {burst:?} of {peak} jobs a second, {rate} else")
            }
            Kind::Daily => {
                let period = self.period.unwrap_or(DAY);
                format!("between {rate} and {peak} jobs a second in a wave of {period:?}")
            }
        };
        format!("{shape}, {arrivals}, for {:?}", self.duration)
    }
}
