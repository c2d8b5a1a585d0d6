//! When each job is due: a shape's jobs, evenly or at random.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::shape::Shape;

/// How jobs are spread under a shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrivals {
    /// Each as far from the next as the rate of the moment says.
    #[default]
    Even,
    /// As if from very many senders that know nothing of each other: gaps are exponential, so that
    /// there are clusters and lulls.
    Poisson,
}

impl Arrivals {
    /// When the jobs of a shape are due, counted from the start, in order. The same seed gives the
    /// same times.
    pub(super) fn times(self, shape: Shape, seed: u64) -> impl Iterator<Item = Duration> + Send + use<> {
        // Both are the same walk along the shape's curve: at each step the number of jobs that are
        // due grows by 1, or by an exponential of mean 1.
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut count, mut last) = (0.0, 0.0);
        let mut first = true;
        std::iter::from_fn(move || {
            count += match self {
                Self::Even if first => 0.0,
                Self::Even => 1.0,
                Self::Poisson => -(1.0 - rng.random::<f64>()).ln(),
            };
            first = false;
            last = shape.time_of(count, last)?;
            // Whole microseconds: below what anything here can measure.
            Some(Duration::from_micros((last * 1e6).round() as u64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::Profile;
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn even_arrivals_are_spaced_as_the_rate_says() {
        let constant = Shape::new(Profile::Constant, 4.0, 4.0, Duration::from_secs(2)).unwrap();
        let times: Vec<u128> = Arrivals::Even.times(constant, 1).map(|at| at.as_millis()).collect();
        assert_eq!(times, [0, 250, 500, 750, 1_000, 1_250, 1_500, 1_750]);
        // Nothing is due between bursts, and all of each burst is in it.
        let burst = Shape::new(Profile::Burst { period: MINUTE, duty: 0.1 }, 0.0, 10.0, 3 * MINUTE).unwrap();
        let times: Vec<f64> = Arrivals::Even.times(burst, 1).map(|at| at.as_secs_f64()).collect();
        assert_eq!(times.len(), 180);
        assert!(times.iter().all(|at| at % 60.0 < 5.95), "{times:?}");
        // Twice as many in the second half of a ramp's time than in a third of it.
        let ramp = Shape::new(Profile::Ramp, 0.0, 100.0, MINUTE).unwrap();
        let times: Vec<Duration> = Arrivals::Even.times(ramp, 1).collect();
        let early = times.iter().filter(|at| **at < MINUTE / 2).count();
        assert_eq!((times.len(), early), (3_000, 750));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_one() {
        let shape = Shape::new(Profile::Constant, 50.0, 50.0, 20 * MINUTE).unwrap();
        let times: Vec<f64> = Arrivals::Poisson.times(shape, 7).map(|at| at.as_secs_f64()).collect();
        assert!((59_000..61_000).contains(&times.len()), "{}", times.len());
        assert!(times.is_sorted());
        let mut counts = vec![0.0_f64; 1_200];
        times.iter().for_each(|at| counts[*at as usize] += 1.0);
        // The variance of the counts of a second is their mean.
        let variance = counts.iter().map(|count| (count - 50.0).powi(2)).sum::<f64>() / 1_200.0;
        assert!((42.0..58.0).contains(&variance), "{variance}");
        let again = |seed| Arrivals::Poisson.times(shape, seed).take(50).collect::<Vec<_>>();
        assert_eq!(again(7), again(7));
        assert_ne!(again(7), again(8));
    }
}
