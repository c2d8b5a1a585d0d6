//! The circuit to one manager: after a few failures in a row nothing is asked of it, and a probe
//! now and then finds out when it is well again. Pure: time and randomness are arguments.

use std::time::Duration;

use cellbus_bus::env::Mono;

/// When a circuit opens, and how long it stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Failures in a row that open it.
    pub failures_max: u32,
    /// How long it is open the first time; doubled each time that a probe fails.
    pub open_first: Duration,
    /// How long it is open at the most.
    pub open_max: Duration,
}
impl Default for Config {
    fn default() -> Self {
        Self { failures_max: 5, open_first: Duration::from_secs(1), open_max: Duration::from_secs(60) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Mono, reason: String },
    HalfOpen { reason: String },
}

/// One manager's circuit.
#[derive(Clone, Debug)]
pub struct Circuit {
    config: Config,
    state: State,
    /// Failures in a row.
    failures: u32,
    /// How often it has opened since the last operation that succeeded.
    openings: u32,
}

/// What may be asked of the manager now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Anything.
    Go,
    /// Nothing for so long, for this reason.
    Wait(Duration, String),
    /// Nothing but one probe, which is due.
    Probe,
}

impl Circuit {
    /// Closed.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, state: State::Closed, failures: 0, openings: 0 }
    }

    /// What may be asked now.
    #[must_use]
    pub fn verdict(&self, now: Mono) -> Verdict {
        match &self.state {
            State::Closed => Verdict::Go,
            State::Open { until, .. } if *until <= now => Verdict::Probe,
            State::Open { until, reason } => Verdict::Wait(until.since(now), reason.clone()),
            State::HalfOpen { reason } => Verdict::Wait(self.config.open_first, reason.clone()),
        }
    }

    /// Whether anything may be asked.
    #[must_use]
    pub fn closed(&self) -> bool {
        self.state == State::Closed
    }

    /// What it looks like to a person.
    #[must_use]
    pub fn shown(&self, now: Mono) -> crate::gateway::CircuitState {
        use crate::gateway::CircuitState;
        match &self.state {
            State::Closed => CircuitState::Closed,
            State::Open { until, reason } => {
                CircuitState::Open { next_probe_in: until.since(now), reason: reason.clone() }
            }
            State::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    /// A probe begins.
    pub fn probing(&mut self) {
        if let State::Open { reason, .. } = &mut self.state {
            self.state = State::HalfOpen { reason: std::mem::take(reason) };
        }
    }

    /// The probe succeeded. One failure opens the circuit again, for longer, until an operation
    /// has succeeded: a manager may answer probes and fail at everything else.
    pub fn probe_succeeded(&mut self) {
        self.state = State::Closed;
        self.failures = self.config.failures_max.saturating_sub(1);
    }

    /// An operation was answered, be it with a refusal: the manager is well.
    pub fn well(&mut self) {
        self.failures = 0;
        // One that was under way when the circuit opened says nothing about now.
        if self.state == State::Closed {
            self.openings = 0;
        }
    }

    /// An operation or a probe failed in a way that says that the manager is ill, or hung.
    /// Whether the circuit opened with it.
    pub fn ill(&mut self, now: Mono, random: u64, reason: &str) -> bool {
        self.failures = self.failures.saturating_add(1);
        let opens = match self.state {
            State::Closed => self.failures >= self.config.failures_max,
            State::Open { .. } => false,
            State::HalfOpen { .. } => true,
        };
        if opens {
            self.open(now, random, reason);
        }
        opens
    }

    /// Nothing may be asked until a probe has succeeded.
    pub fn open(&mut self, now: Mono, random: u64, reason: &str) {
        let doubled = self.config.open_first.saturating_mul(1 << self.openings.min(16)).min(self.config.open_max);
        // Between half and all of it, so that the circuits of many managers do not probe in step.
        let part = 500 + (random % 501) as u32;
        self.state = State::Open { until: now.after(doubled / 1000 * part), reason: reason.to_owned() };
        self.openings = self.openings.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(Duration::from_millis(ms))
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_a_probe_closes_it() {
        let mut circuit = Circuit::new(Config::default());
        for _ in 0..4 {
            assert!(!circuit.ill(at(0), 0, "no answer"));
        }
        circuit.well();
        for _ in 0..4 {
            assert!(!circuit.ill(at(0), 0, "no answer"));
        }
        assert_eq!(circuit.verdict(at(0)), Verdict::Go);
        assert!(circuit.ill(at(0), 500, "no answer"));
        assert_eq!(circuit.verdict(at(0)), Verdict::Wait(Duration::from_secs(1), "no answer".to_owned()));
        assert!(!circuit.ill(at(1), 0, "one that was under way"));
        assert_eq!(circuit.verdict(at(1000)), Verdict::Probe);
        circuit.probing();
        assert!(matches!(circuit.verdict(at(1000)), Verdict::Wait(..)), "one probe at a time");
        circuit.probe_succeeded();
        assert_eq!(circuit.verdict(at(1000)), Verdict::Go);
    }

    #[test]
    fn probes_become_rarer_while_nothing_else_succeeds() {
        let mut circuit = Circuit::new(Config::default());
        for _ in 0..5 {
            circuit.ill(at(0), 500, "down");
        }
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let Verdict::Wait(pause, _) = circuit.verdict(at(now)) else { panic!("open") };
            pauses.push(pause.as_secs());
            now += u64::try_from(pause.as_millis()).unwrap();
            circuit.probing();
            // The probe succeeds, but the next operation fails.
            circuit.probe_succeeded();
            assert!(circuit.ill(at(now), 500, "still down"));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        circuit.probing();
        circuit.probe_succeeded();
        circuit.well();
        for _ in 0..4 {
            assert!(!circuit.ill(at(now), 500, "down"), "after a success it takes as many failures as at first");
        }
    }
}
