//! From the bus's ingress to the queues of the jobs' homes.
//!
//! A message is acknowledged once its job is durable in the queue of its home; a cell that dies in
//! between leaves it to another, and the home admits it once. What is not a job is put aside as a
//! dead letter, and the producer told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::cloudevent::{self, Limits, Rejection, TenantFrom, TenantRule, Tenants};
use cellbus_bus::contract::{Delivery, Queue, QueueKind};
use cellbus_bus::ids::{ShardId, TenantId};
use cellbus_bus::job::{Digest, Job};
use cellbus_directory::record::DeadLetter;
use cellbus_workflows::{ControlItem, JobItem};
use futures::stream::{FuturesUnordered, StreamExt as _};

use crate::process::Process;

/// A message that is not acknowledged for so long comes again.
const REDELIVER_AFTER: Duration = Duration::from_secs(30);
/// Messages taken and not acknowledged: enough to fill the bus's steps, few enough to lose time on.
const IN_FLIGHT_MAX: usize = 256;
/// How much of a message that is put aside is kept.
const ORIGINAL_BYTES_MAX: usize = 256 << 10;
/// Before the bus is asked again after an error.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes jobs in for ever.
pub(super) async fn run(process: &Process, tenants: &Tenants) {
    let mut doing = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = doing.next() => {}
            next = process.bus.ingress_next(REDELIVER_AFTER), if doing.len() < IN_FLIGHT_MAX => match next {
                Ok(delivery) => doing.push(one(process, tenants, delivery)),
                Err(error) => {
                    tracing::warn!(%error, "ingress cannot be read");
                    process.env.sleep(PAUSE).await;
                }
            },
        }
    }
}

async fn one(process: &Process, tenants: &Tenants, delivery: Box<dyn Delivery>) {
    let rule = TenantRule { from: TenantFrom::Sender(delivery.tenant()), known: tenants };
    let parsed = cloudevent::parse_message(delivery.headers(), delivery.body(), rule, &Limits::default());
    let published = match &parsed {
        Ok(job) => publish(process, job).await,
        Err(rejection) => {
            let tenant = delivery.tenant().parse().ok();
            // Kept without its headers, it could not be tried again.
            let body = cloudevent::in_one_piece(delivery.headers(), delivery.body());
            let body = body.map_or_else(|| delivery.body().clone(), Bytes::from);
            put_aside(process, tenant, body, rejection).await
        }
    };
    if let Err(error) = published {
        // Not acknowledged: it comes again.
        tracing::warn!(%error, "a message from ingress was not taken");
        return;
    }
    if let Err(rejection) = &parsed {
        let refusal = serde_json::json!({ "code": rejection.code.as_str(), "message": rejection.message });
        delivery.reply(refusal.to_string().into()).await;
    }
    if let Err(error) = delivery.ack().await {
        tracing::debug!(%error, "a message from ingress comes again: it was not acknowledged");
    }
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
