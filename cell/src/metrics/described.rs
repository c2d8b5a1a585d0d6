//! What a metric is called and what it means, written once: `/metrics` and `ops/docs/metrics.md` both
//! come from here, and nothing else can be registered.

use prometheus::core::Collector;
use prometheus::{Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use prometheus::{Opts, Registry, Result};

/// What its values do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grow, from 0 at the start of the process.
    Counter,
    /// Go up and down.
    Gauge,
    /// Are counted in buckets.
    Histogram,
}

/// What it speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The process that is asked: add them up.
    Process,
    /// The whole cluster, as the process that is asked sees it: take the largest, never the sum.
    Cluster,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// With its unit at the end.
    pub name: &'static str,
    /// What its values do.
    pub kind: Kind,
    /// What it counts or measures.
    pub unit: &'static str,
    /// Its labels, each with few values that are known beforehand.
    pub labels: &'static [&'static str],
    /// What it speaks of.
    pub scope: Scope,
    /// What it means.
    pub help: &'static str,
    /// What to do about it, or what it is for.
    pub advice: &'static str,
}

impl Described {
    const fn new(
        kind: Kind,
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        advice: &'static str,
    ) -> Self {
        Self { name, kind, unit, labels, scope: Scope::Process, help, advice }
    }
    /// A counter of this process.
    pub(super) const fn counter(
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        advice: &'static str,
    ) -> Self {
        Self::new(Kind::Counter, name, unit, labels, help, advice)
    }
    /// A gauge of this process.
    pub(super) const fn gauge(
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        advice: &'static str,
    ) -> Self {
        Self::new(Kind::Gauge, name, unit, labels, help, advice)
    }
    /// A histogram of this process.
    pub(super) const fn histogram(
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        advice: &'static str,
    ) -> Self {
        Self::new(Kind::Histogram, name, unit, labels, help, advice)
    }
    /// The same of the whole cluster.
    pub(super) const fn of_cluster(self) -> Self {
        Self { scope: Scope::Cluster, ..self }
    }

    fn opts(&self) -> Opts {
        Opts::new(self.name, self.help)
    }
    pub(super) fn int_counter(&self) -> Result<IntCounter> {
        IntCounter::with_opts(self.opts())
    }
    pub(super) fn int_counters(&self) -> Result<IntCounterVec> {
        IntCounterVec::new(self.opts(), self.labels)
    }
    pub(super) fn int_gauge(&self) -> Result<IntGauge> {
        IntGauge::with_opts(self.opts())
    }
    pub(super) fn int_gauges(&self) -> Result<IntGaugeVec> {
        IntGaugeVec::new(self.opts(), self.labels)
    }
    pub(super) fn float_gauge(&self) -> Result<Gauge> {
        Gauge::with_opts(self.opts())
    }
    pub(super) fn observed(&self, buckets: &[f64]) -> Result<Histogram> {
        Histogram::with_opts(HistogramOpts::from(self.opts()).buckets(buckets.to_vec()))
    }
    pub(super) fn observed_by(&self, buckets: &[f64]) -> Result<HistogramVec> {
        HistogramVec::new(HistogramOpts::from(self.opts()).buckets(buckets.to_vec()), self.labels)
    }
}

/// Registers a metric and gives it back.
pub(super) fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: Result<M>) -> Result<M> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// As a gauge takes it.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
