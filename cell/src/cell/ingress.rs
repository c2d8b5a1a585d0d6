//! From the bus's ingress to the homes of the jobs.
//!
//! A message is acknowledged once its job is durable: in the log of its home, if the home's owner takes
//! it ([`super::handing`]), or in the queue of its home. A cell that dies in between leaves it to
//! another, and the home admits it once. What is not a job is put aside as a dead letter. A producer
//! that waits for an answer gets it when the job's home has decided, beside what comes in: a home that
//! is slow to decide holds up no other message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::Mono;
use cellbus_bus::cloudevent::{self, EventKind, Limits, OutgoingEvent, Rejection, TenantFrom, TenantRule, Tenants};
use cellbus_bus::contract::{Delivery, Queue, QueueKind};
use cellbus_bus::ids::{JobId, ShardId, TenantId};
use cellbus_bus::job::{Digest, Job};
use cellbus_directory::record::DeadLetter;
use cellbus_workflows::ControlItem;
use futures::FutureExt as _;
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use serde::Serialize;

use super::handing::Hands;
use crate::gateway::{Gateway, Submitted};
use crate::peers::{Decision, Handed, Peer};
use crate::process::Process;
use crate::spans::{Part, Span};

/// A message that is not acknowledged for so long comes again.
const REDELIVER_AFTER: Duration = Duration::from_secs(30);
/// Bytes of messages taken and not acknowledged, beside one message that there always may be. How many there are is
/// the bus's to say.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// Messages that go on together, if so many are there: as many as the bus fetches ahead, or about.
const TOGETHER_MAX: usize = 256;
/// Bytes of them, beside one message that there always may be: far below what one call between cells may have.
const TOGETHER_BYTES_MAX: usize = 2 << 20;
/// Answers that are waited for at once. They are a service to producers, which may ask again.
const ANSWERS_MAX: usize = 4_096;
/// How much of a message that is put aside is kept.
const ORIGINAL_BYTES_MAX: usize = 256 << 10;
/// Before the bus is asked again after an error.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes jobs in for ever.
pub(super) async fn run(process: Process, tenants: &Tenants) {
    let (gateway, hands) = (Gateway::new(process.clone()), Hands::new(&process.env, process.peers.as_ref()));
    let (mut doing, mut answering) = (FuturesUnordered::new(), FuturesUnordered::new());
    let in_flight_max = process.bus.ingress_in_flight();
    let (mut in_flight, mut bytes_in_flight) = (0, 0);
    loop {
        let room = in_flight < in_flight_max && bytes_in_flight < IN_FLIGHT_BYTES_MAX;
        tokio::select! {
            biased;
            Some(Done { messages, bytes, owed }) = doing.next() => {
                in_flight -= messages;
                bytes_in_flight -= bytes;
                for owed in owed {
                    if answering.len() < ANSWERS_MAX {
                        answering.push(answer(&gateway, owed));
                    } else {
                        tracing::warn!(to = owed.to, "a producer is not answered: too many wait for answers");
                    }
                }
            }
            Some(()) = answering.next() => {}
            next = process.bus.ingress_next(REDELIVER_AFTER), if room => match next {
                Ok(first) => {
                    let together = together(&process, first, TOGETHER_MAX.min(in_flight_max - in_flight));
                    let waiting = together.last().map_or(0, |last| last.waiting());
                    process.pace.took(process.env.mono(), together.len() as u64, waiting);
                    for group in groups(&process, tenants, &hands, together) {
                        in_flight += group.messages();
                        bytes_in_flight += group.bytes();
                        doing.push(take_in(&gateway, &hands, group));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "ingress cannot be read");
                    process.env.sleep(PAUSE).await;
                }
            },
        }
    }
}

/// What is there already, up to so many.
fn together(process: &Process, first: Box<dyn Delivery>, max: usize) -> Vec<Box<dyn Delivery>> {
    let mut bytes = first.body().len();
    let mut all = vec![first];
    while all.len() < max
        && bytes < TOGETHER_BYTES_MAX
        // An error comes again, where it is waited for.
        && let Some(Ok(next)) = process.bus.ingress_next(REDELIVER_AFTER).now_or_never()
    {
        bytes += next.body().len();
        all.push(next);
    }
    all
}

/// A message that is a job.
struct Taken {
    delivery: Box<dyn Delivery>,
    job: Arc<Job>,
}

/// Messages that go one way together.
enum Group {
    /// To the owner of their homes, or, where nobody is known to be that, to their queues.
    Jobs { to: Option<Arc<Peer>>, taken: Vec<Taken>, began: Mono },
    /// Aside: it is no job.
    Aside { delivery: Box<dyn Delivery>, rejection: Rejection },
}
impl Group {
    fn messages(&self) -> usize {
        match self {
            Self::Jobs { taken, .. } => taken.len(),
            Self::Aside { .. } => 1,
        }
    }
    fn bytes(&self) -> usize {
        match self {
            Self::Jobs { taken, .. } => taken.iter().map(|taken| taken.delivery.body().len()).sum(),
            Self::Aside { delivery, .. } => delivery.body().len(),
        }
    }
}

fn groups(process: &Process, tenants: &Tenants, hands: &Hands<'_>, together: Vec<Box<dyn Delivery>>) -> Vec<Group> {
    let began = process.env.mono();
    let mut jobs: BTreeMap<Option<Arc<Peer>>, Vec<Taken>> = BTreeMap::new();
    let mut groups = Vec::new();
    for delivery in together {
        let rule = TenantRule { from: TenantFrom::Sender(delivery.tenant()), known: tenants };
        match cloudevent::parse_message(delivery.headers(), delivery.body(), rule, &Limits::default()) {
            Ok(job) => {
                let route = process.routes.of(job.id.shard(process.count));
                let to = route.map(|route| Arc::clone(&route.peer)).filter(|peer| hands.open(peer));
                jobs.entry(to).or_default().push(Taken { delivery, job: Arc::new(job) });
            }
            Err(rejection) => groups.push(Group::Aside { delivery, rejection }),
        }
    }
    groups.extend(jobs.into_iter().map(|(to, taken)| Group::Jobs { to, taken, began }));
    groups
}

/// What has become of a group.
struct Done {
    messages: usize,
    bytes: usize,
    owed: Vec<Owed>,
}

/// An answer that a producer waits for.
struct Owed {
    to: String,
    said: Said,
}
enum Said {
    /// It is for the job's home to say, if it has not been said.
    Job(Arc<Job>, Decision),
    /// It is no job.
    Refused { tenant: TenantId, rejection: Rejection },
}

/// Takes messages in; gives the answers that are owed for them.
async fn take_in(gateway: &Gateway, hands: &Hands<'_>, group: Group) -> Done {
    let (messages, bytes) = (group.messages(), group.bytes());
    let owed = match group {
        Group::Jobs { to, taken, began } => jobs(gateway, hands, to.as_deref(), taken, began).await,
        Group::Aside { delivery, rejection } => {
            aside(gateway.process(), delivery, rejection).await.into_iter().collect()
        }
    };
    Done { messages, bytes, owed }
}

async fn jobs(gateway: &Gateway, hands: &Hands<'_>, to: Option<&Peer>, taken: Vec<Taken>, began: Mono) -> Vec<Owed> {
    let process = gateway.process();
    let decisions = match to {
        Some(peer) => hands.hand_in(peer, taken.iter().map(handed).collect()).await,
        None => vec![Decision::Unknown; taken.len()],
    };
    let (in_logs, others): (Vec<_>, Vec<_>) =
        taken.into_iter().zip(decisions).partition(|(_, decision)| matches!(decision, Decision::Known { .. }));
    let mut owed = acknowledge(process, in_logs, began).await;
    if others.is_empty() {
        return owed;
    }
    let queued: Vec<_> = others.iter().map(|(taken, _)| Arc::clone(&taken.job)).collect();
    match gateway.put_on_queues(&queued).await {
        Ok(()) => owed.extend(acknowledge(process, others, began).await),
        Err(error) => {
            for job in &queued {
                span(process, job, began, Some(error.to_string()));
            }
            // Not acknowledged, they come again.
            tracing::warn!(%error, messages = queued.len(), "messages from ingress were not taken");
        }
    }
    owed
}

fn handed(Taken { delivery, job }: &Taken) -> Handed {
    Handed { job: Arc::clone(job), bytes: u32::try_from(delivery.body().len()).unwrap_or(u32::MAX) }
}

/// Acknowledges messages whose jobs are durable.
async fn acknowledge(process: &Process, durable: Vec<(Taken, Decision)>, began: Mono) -> Vec<Owed> {
    let acked = durable.into_iter().map(|(Taken { delivery, job }, decision)| {
        span(process, &job, began, None);
        async move {
            let to = delivery.reply_to().map(str::to_owned);
            ack(delivery).await;
            Some(Owed { to: to?, said: Said::Job(job, decision) })
        }
    });
    join_all(acked).await.into_iter().flatten().collect()
}

async fn ack(delivery: Box<dyn Delivery>) {
    if let Err(error) = delivery.ack().await {
        tracing::debug!(%error, "a message from ingress comes again: it was not acknowledged");
    }
}

/// A job has come in, or has not.
fn span(process: &Process, job: &Job, began: Mono, failed: Option<String>) {
    if process.spans.want(&job.id) {
        process.spans.learn(&job.id, &job.extensions);
        process.spans.end(Span {
            job: job.id,
            part: Part::Ingress,
            ended: process.env.wall(),
            took: process.env.mono().since(began),
            failed,
            attributes: vec![("cellbus.tenant", job.tenant.to_string())],
        });
    }
}

async fn aside(process: &Process, delivery: Box<dyn Delivery>, rejection: Rejection) -> Option<Owed> {
    let tenant: Option<TenantId> = delivery.tenant().parse().ok();
    // Kept without its headers, it could not be tried again.
    let body = cloudevent::in_one_piece(delivery.headers(), delivery.body());
    let body = body.map_or_else(|| delivery.body().clone(), Bytes::from);
    if let Err(error) = put_aside(process, tenant.clone(), body, &rejection).await {
        // Not acknowledged, it comes again.
        tracing::warn!(%error, "a message from ingress was not taken");
        return None;
    }
    let to = delivery.reply_to().map(str::to_owned);
    ack(delivery).await;
    Some(Owed { to: to?, said: Said::Refused { tenant: tenant?, rejection } })
}

/// Tells a producer what became of its message: for a job, once its home has decided.
async fn answer(gateway: &Gateway, owed: Owed) {
    let process = gateway.process();
    let nothing = BTreeMap::new();
    let told =
        |kind, id: &str, tenant: &TenantId, subject: &str, extensions: &BTreeMap<String, String>, data: Answer<'_>| {
            OutgoingEvent { id, kind, tenant, subject, time: process.env.wall(), extensions, data }.encode()
        };
    let body = match &owed.said {
        Said::Refused { tenant, rejection } => {
            let error = Why { code: rejection.code.as_str(), message: &rejection.message };
            let id = uuid::Uuid::from_u64_pair(process.env.random_u64(), process.env.random_u64()).to_string();
            told(
                EventKind::Refused,
                &id,
                tenant,
                "",
                &nothing,
                Answer { job_id: None, state: None, error: Some(error) },
            )
        }
        Said::Job(job, decision) => {
            let id = job.id.to_string();
            let told = |kind: EventKind, what, state, error| {
                let event = format!("{id}/{what}");
                told(kind, &event, &job.tenant, &id, &job.extensions, Answer { job_id: Some(job.id), state, error })
            };
            match gateway.decision(job, decision).await {
                Submitted::Accepted { state, .. } => told(EventKind::Accepted, "accepted", Some(state.as_str()), None),
                Submitted::Conflict { .. } => {
                    let message =
                        "the key (tenant, source, id) was used before with other data; take another id for other work";
                    told(EventKind::Refused, "refused", None, Some(Why { code: "job_conflict", message }))
                }
                Submitted::Refused { code, message, .. } => {
                    told(EventKind::Refused, "refused", None, Some(Why { code: &code, message: &message }))
                }
            }
        }
    };
    process.bus.reply(&owed.to, body).await;
}

/// `data` of an answer.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Why<'a>>,
}
#[derive(Serialize)]
struct Why<'a> {
    code: &'a str,
    message: &'a str,
}

async fn put_aside(
    process: &Process,
    tenant: Option<TenantId>,
    body: Bytes,
    rejection: &Rejection,
) -> cellbus_bus::Result<()> {
    let id = uuid::Uuid::from_bytes(Digest::of(&body).0);
    let letter = DeadLetter {
        id,
        at: process.env.wall(),
        tenant,
        code: rejection.code.as_str().to_owned(),
        reason: rejection.message.clone(),
        from: "ingress".to_owned(),
        original: body.slice(..body.len().min(ORIGINAL_BYTES_MAX)),
    };
    let queue = Queue { shard: ShardId::of(id, process.count), kind: QueueKind::Control };
    process.bus.publish(queue, vec![ControlItem::DeadLetter(Arc::new(letter)).encode()]).await.map(|_| ())
}
