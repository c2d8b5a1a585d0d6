//! Spans of jobs on their way, for a collector of traces.
//!
//! ```text
//!  producer ─▶ job ─┬─▶ submit, ingress   where it came in
//!                   ├─▶ step              its VM's home: from the call on the manager to the answer
//!                   │    └─▶ operation    the cell that fronts the manager: what the hypervisor did
//!                   └─▶ outcome           the event that says how it ended
//! ```
//!
//! No job and no call carries anything for this: the id of a span that others are parts of is made of
//! what it is about, so that every process knows it. The trace is the one that the job brought along:
//! it is in the job's durable record until its outcome is out, and the process of its home remembers it
//! for a while after that. Others ask there, in the background. A job that brought none has a trace
//! whose id is its own.
//!
//! Work is never held up: a span that finds the queue full is dropped and counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cellbus_bus::WallMs;
use cellbus_bus::ids::{JobId, OpNumber, VmId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::metrics::spans::{Dropped, Metrics};

#[cfg(feature = "otlp")]
mod encode;
#[cfg(feature = "otlp")]
mod otlp;

#[cfg(feature = "otlp")]
pub(crate) use otlp::Exporter;

/// The extension under which a job carries the trace that it belongs to (CloudEvents' Distributed
/// Tracing extension).
pub(crate) const TRACEPARENT: &str = "traceparent";

/// Jobs whose traces a process remembers: the newest, some seconds' worth at full speed.
const KNOWN_MAX: usize = 65_536;

/// Where spans go. Off until somebody opens it; then it costs a look at a flag.
#[derive(Clone)]
pub(crate) struct Spans {
    open: Arc<OnceLock<Open>>,
    metrics: Metrics,
}

struct Open {
    queue: mpsc::Sender<Span>,
    known: Mutex<Known>,
    /// The share of jobs whose spans are wanted.
    ratio: f64,
}

/// One span, ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Span {
    /// Of which job.
    pub(crate) job: JobId,
    /// What of it.
    pub(crate) part: Part,
    /// When it ended.
    pub(crate) ended: WallMs,
    /// How long it took.
    pub(crate) took: Duration,
    /// What failed, in words.
    pub(crate) failed: Option<String>,
    /// More about it.
    pub(crate) attributes: Vec<(&'static str, String)>,
}

/// What of a job a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it, from accepted to ended. Its type.
    Job(&'static str),
    /// It came in over HTTP.
    Submit,
    /// It came in by the bus.
    Ingress,
    /// A call on a manager, as its VM's home sees it. Which step.
    Step(&'static str, VmId, OpNumber),
    /// The same, as the cell sees it that fronts the manager. Which kind.
    Operation(&'static str, VmId, OpNumber),
    /// The event about its end.
    Outcome,
}

impl Spans {
    /// Of no process that sends any yet.
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { open: Arc::default(), metrics }
    }

    /// Whether the spans of this job are wanted: all processes say the same of one job.
    pub(crate) fn want(&self, job: &JobId) -> bool {
        self.open.get().is_some_and(|open| share(job) < open.ratio)
    }

    /// Remembers which trace a job belongs to, if its spans are wanted.
    pub(crate) fn learn(&self, job: &JobId, extensions: &BTreeMap<String, String>) {
        if self.want(job) {
            self.learn_of(*job, Context::of(extensions));
        }
    }
    fn learn_of(&self, job: JobId, context: Option<Context>) {
        if let Some(mut known) = self.known() {
            known.learn(job, context);
        }
    }
    /// Which trace a job belongs to: `Some(None)` if it brought none along; `None` if it is not known here.
    pub(crate) fn trace(&self, job: &JobId) -> Option<Option<Context>> {
        self.known()?.traces.get(job).copied()
    }
    fn known(&self) -> Option<MutexGuard<'_, Known>> {
        // Nothing that can panic runs under this lock.
        self.open.get().map(|open| open.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Hands one over if it is wanted. Does not block.
    pub(crate) fn end(&self, span: Span) {
        let Some(open) = self.open.get().filter(|open| share(&span.job) < open.ratio) else { return };
        if open.queue.try_send(span).is_err() {
            self.metrics.dropped(Dropped::Full, 1);
        }
    }

    /// What is handed over from now on is received here. Only the first time.
    #[cfg(feature = "otlp")]
    fn open(&self, ratio: f64, queue_max: usize) -> Option<mpsc::Receiver<Span>> {
        let (queue, received) = mpsc::channel(queue_max);
        self.open.set(Open { queue, known: Mutex::default(), ratio }).ok().map(|()| received)
    }
}

/// The traces of jobs, the newest of them.
#[derive(Default)]
struct Known {
    traces: BTreeMap<JobId, Option<Context>>,
    order: VecDeque<JobId>,
}

impl Known {
    fn learn(&mut self, job: JobId, context: Option<Context>) {
        if self.traces.insert(job, context).is_none() {
            self.order.push_back(job);
        }
        while self.order.len() > KNOWN_MAX {
            let oldest = self.order.pop_front();
            oldest.and_then(|job| self.traces.remove(&job));
        }
    }
}

/// A number from 0 to 1 that stands for a job, evenly spread.
fn share(job: &JobId) -> f64 {
    let [.., a, b, c, d] = *job.uuid().as_bytes();
    f64::from(u32::from_be_bytes([a, b, c, d])) / (f64::from(u32::MAX) + 1.0)
}

/// Trace and parent of what a job brought along: W3C Trace Context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Of the trace.
    pub trace: [u8; 16],
    /// The producer's span.
    pub parent: [u8; 8],
    /// Whether whoever began the trace keeps it.
    pub sampled: bool,
}

impl Context {
    /// What a job with these extensions brought along, if anything that the standard allows.
    pub(crate) fn of(extensions: &BTreeMap<String, String>) -> Option<Self> {
        extensions.get(TRACEPARENT).and_then(|text| Self::parse(text))
    }

    /// Reads `version-trace id-parent id-flags`, in lower case hexadecimal. What is not so is to be
    /// ignored, as the standard says.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let [version] = hex::<1>(parts.next()?)?;
        let (trace, parent) = (hex::<16>(parts.next()?)?, hex::<8>(parts.next()?)?);
        let [flags] = hex::<1>(parts.next()?)?;
        // Later versions may add parts; this one has none.
        let more = parts.next().is_some();
        let valid =
            version != 0xff && (version != 0 || !more) && trace != [0; 16] && parent != [0; 8] && text.len() <= 512;
        valid.then_some(Self { trace, parent, sampled: flags & 1 == 1 })
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut read = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in read.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(*pair.first()?)? << 4 | digit(*pair.last()?)?;
    }
    Some(read)
}

/// The id of a span that others are parts of.
fn span_id(job: &JobId, step: Option<(VmId, OpNumber)>) -> [u8; 8] {
    let mut hasher = Sha256::new();
    hasher.update(job.uuid().as_bytes());
    if let Some((vm, op)) = step {
        hasher.update(vm.uuid().as_bytes());
        hasher.update(op.0.to_be_bytes());
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let mut id = [0; 8];
    id.copy_from_slice(&digest[..8]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_standard_allows_is_taken() {
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let read = Context::parse(&format!("00-{trace}-{parent}-01")).unwrap();
        assert_eq!((read.trace[..2].to_vec(), read.parent[7], read.sampled), (vec![0x0a, 0xf7], 0x31, true));
        assert!(!Context::parse(&format!("00-{trace}-{parent}-00")).unwrap().sampled);
        assert!(Context::parse(&format!("01-{trace}-{parent}-01-more")).is_some(), "a later version");
        for bad in [
            format!("00-{trace}-{parent}-01-more"),
            format!("00-{trace}-{parent}"),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            format!("00-{trace}-{parent}-é"),
            "00-abc-01".to_owned(),
            String::new(),
        ] {
            assert_eq!(Context::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_share_of_the_jobs_is_the_same_everywhere() {
        let jobs: Vec<JobId> = (0..2_000).map(|n| JobId::derive("acme", "/portal", &n.to_string())).collect();
        let tenth = jobs.iter().filter(|job| share(job) < 0.1).count();
        assert!((150..250).contains(&tenth), "{tenth} of 2,000");
        assert!(jobs.iter().all(|job| (0.0..1.0).contains(&share(job))));
    }

    #[test]
    fn each_step_has_an_id_of_its_own() {
        let (job, vm) = (JobId::derive("a", "b", "c"), JobId::derive("a", "b", "c").vm(0));
        let ids = [None, Some((vm, OpNumber(1))), Some((vm, OpNumber(2)))].map(|step| span_id(&job, step));
        assert!(ids[0] != ids[1] && ids[1] != ids[2], "{ids:?}");
        assert_eq!(ids[1], span_id(&job, Some((vm, OpNumber(1)))));
    }

    #[test]
    fn the_newest_traces_are_remembered() {
        let spans = Spans::new(Metrics::new(&prometheus::Registry::new()).unwrap());
        let (queue, _received) = mpsc::channel(2);
        assert!(spans.open.set(Open { queue, known: Mutex::default(), ratio: 1.0 }).is_ok());
        let jobs: Vec<JobId> = (0..=KNOWN_MAX).map(|n| JobId::derive("a", "b", &n.to_string())).collect();
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned();
        let with = BTreeMap::from([(TRACEPARENT.to_owned(), text.clone())]);
        spans.learn(&jobs[0], &with);
        assert_eq!(spans.trace(&jobs[0]), Some(Context::parse(&text)));
        jobs[1..].iter().for_each(|job| spans.learn(job, &BTreeMap::new()));
        assert_eq!((spans.trace(&jobs[0]), spans.trace(&jobs[1])), (None, Some(None)));
    }

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_and_counted() {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let (spans, job) = (Spans::new(metrics.clone()), JobId::derive("a", "b", "c"));
        let span = |took| Span {
            job,
            part: Part::Submit,
            ended: WallMs(1),
            took: Duration::from_millis(took),
            failed: None,
            attributes: Vec::new(),
        };
        assert!(!spans.want(&job));
        spans.end(span(0));
        let (queue, mut received) = mpsc::channel(2);
        assert!(spans.open.set(Open { queue, known: Mutex::default(), ratio: 1.0 }).is_ok());
        (1..=5).for_each(|took| spans.end(span(took)));
        assert_eq!(metrics.count_dropped(Dropped::Full), 3);
        assert_eq!(received.recv().await, Some(span(1)));
    }
}
