//! From the bus's ingress to the queues of the jobs' homes.
//!
//! A message is acknowledged once its job is durable in the queue of its home; a cell that dies in
//! between leaves it to another, and the home admits it once. What is not a job is put aside as a
//! dead letter. A producer that waits for an answer gets it when the job's home has decided, beside
//! what comes in: a home that is slow to decide holds up no other message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::cloudevent::{self, EventKind, Limits, OutgoingEvent, Rejection, TenantFrom, TenantRule, Tenants};
use cellbus_bus::contract::{Delivery, Queue, QueueKind};
use cellbus_bus::ids::{JobId, ShardId, TenantId};
use cellbus_bus::job::{Digest, Job};
use cellbus_directory::record::DeadLetter;
use cellbus_workflows::{ControlItem, JobItem};
use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use serde::Serialize;

use crate::gateway::{Gateway, Submitted};
use crate::process::Process;
use crate::spans::{Part, Span};

/// A message that is not acknowledged for so long comes again.
const REDELIVER_AFTER: Duration = Duration::from_secs(30);
/// Bytes of messages taken and not acknowledged, beside one message that there always may be. How many there are is
/// the bus's to say.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// Answers that are waited for at once. They are a service to producers, which may ask again.
const ANSWERS_MAX: usize = 4_096;
/// How much of a message that is put aside is kept.
const ORIGINAL_BYTES_MAX: usize = 256 << 10;
/// Before the bus is asked again after an error.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes jobs in for ever.
pub(super) async fn run(process: Process, tenants: &Tenants) {
    let gateway = Gateway::new(process.clone());
    let (mut doing, mut answering) = (FuturesUnordered::new(), FuturesUnordered::new());
    let (in_flight_max, mut bytes_in_flight) = (process.bus.ingress_in_flight(), 0);
    loop {
        let room = doing.len() < in_flight_max && bytes_in_flight < IN_FLIGHT_BYTES_MAX;
        tokio::select! {
            biased;
            Some((bytes, owed)) = doing.next() => {
                bytes_in_flight -= bytes;
                match owed {
                    Some(owed) if answering.len() < ANSWERS_MAX => answering.push(answer(&gateway, owed)),
                    Some(Owed { to, .. }) => {
                        tracing::warn!(to, "a producer is not answered: too many wait for answers");
                    }
                    None => {}
                }
            }
            Some(()) = answering.next() => {}
            next = process.bus.ingress_next(REDELIVER_AFTER), if room => match next {
                Ok(delivery) => {
                    let bytes = delivery.body().len();
                    bytes_in_flight += bytes;
                    doing.push(one(&process, tenants, delivery).map(move |owed| (bytes, owed)));
                }
                Err(error) => {
                    tracing::warn!(%error, "ingress cannot be read");
                    process.env.sleep(PAUSE).await;
                }
            },
        }
    }
}

/// An answer that a producer waits for.
struct Owed {
    to: String,
    said: Said,
}
enum Said {
    /// It is for the job's home to say.
    Job(Arc<Job>),
    /// It is no job.
    Refused { tenant: TenantId, rejection: Rejection },
}

/// Takes one message in; gives the answer that is owed for it.
async fn one(process: &Process, tenants: &Tenants, delivery: Box<dyn Delivery>) -> Option<Owed> {
    let rule = TenantRule { from: TenantFrom::Sender(delivery.tenant()), known: tenants };
    let began = process.env.mono();
    let parsed = cloudevent::parse_message(delivery.headers(), delivery.body(), rule, &Limits::default());
    let tenant: Option<TenantId> = delivery.tenant().parse().ok();
    let (published, said) = match parsed {
        Ok(job) => {
            let job = Arc::new(job);
            let published = publish(process, &job).await;
            if process.spans.want(&job.id) {
                process.spans.learn(&job.id, &job.extensions);
                process.spans.end(Span {
                    job: job.id,
                    part: Part::Ingress,
                    ended: process.env.wall(),
                    took: process.env.mono().since(began),
                    failed: published.as_ref().err().map(ToString::to_string),
                    attributes: vec![("cellbus.tenant", job.tenant.to_string())],
                });
            }
            (published, Some(Said::Job(job)))
        }
        Err(rejection) => {
            // Kept without its headers, it could not be tried again.
            let body = cloudevent::in_one_piece(delivery.headers(), delivery.body());
            let body = body.map_or_else(|| delivery.body().clone(), Bytes::from);
            let put = put_aside(process, tenant.clone(), body, &rejection).await;
            (put, tenant.map(|tenant| Said::Refused { tenant, rejection }))
        }
    };
    if let Err(error) = published {
        // Not acknowledged: it comes again.
        tracing::warn!(%error, "a message from ingress was not taken");
        return None;
    }
    let to = delivery.reply_to().map(str::to_owned);
    if let Err(error) = delivery.ack().await {
        tracing::debug!(%error, "a message from ingress comes again: it was not acknowledged");
    }
    Some(Owed { to: to?, said: said? })
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
        Said::Job(job) => {
            let id = job.id.to_string();
            let told = |kind: EventKind, what, state, error| {
                let event = format!("{id}/{what}");
                told(kind, &event, &job.tenant, &id, &job.extensions, Answer { job_id: Some(job.id), state, error })
            };
            match gateway.decision(job).await {
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

async fn publish(process: &Process, job: &Job) -> cellbus_bus::Result<()> {
    let queue = Queue { shard: job.id.shard(process.count), kind: QueueKind::Jobs };
    let item = JobItem::Job(Arc::new(job.clone())).encode();
    process.bus.publish(queue, vec![item]).await.map(|_| ())
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
