//! Events: once on the topic of all, in one order, for those who come back with a place in it, and once
//! on the tenant's own, which is what producers may read.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::contract::{Event, EventReader, PlacedEvent, Result, check_size};
use crate::ids::Seq;

use super::Shared;
use super::feed::{Came, Feed, Stop};
use super::layout::{after, seq};
use super::produce::{Record, To};

/// The event's id, so that it need not be looked for in its body.
const EVENT_ID: &str = "cellbus-event-id";
/// Whose it is.
const TENANT: &str = "cellbus-tenant";
/// What CloudEvents' binding for Kafka wants of structured mode.
const CONTENT_TYPE: (&str, &[u8]) = ("content-type", b"application/cloudevents+json");

impl Shared {
    pub(super) async fn publish_events(&self, events: Vec<Event>) -> Result<()> {
        for event in &events {
            check_size(&event.body)?;
        }
        if events.is_empty() {
            return Ok(());
        }
        self.reachable()?;
        let mut records = Vec::with_capacity(events.len() * 2);
        for event in events {
            let topic = self.layout.tenant_events_topic(&self.config, event.tenant.as_str());
            let topic = self.tenant_topic(topic).await?;
            let id = Bytes::from(event.id);
            let content_type = (CONTENT_TYPE.0, Bytes::from_static(CONTENT_TYPE.1));
            let of_tenant = Record {
                headers: vec![(EVENT_ID, id.clone()), content_type.clone()],
                ..Record::new(event.body.clone())
            };
            let tenant = Bytes::from(event.tenant.as_str().to_owned());
            let of_all =
                Record { headers: vec![(EVENT_ID, id), (TENANT, tenant), content_type], ..Record::new(event.body) };
            records.push((To::Topic(topic), of_tenant));
            records.push((To::Place(self.layout.events()), of_all));
        }
        self.write_all(records).await.map(drop)
    }
}

/// A reader of events. What has made room for newer ones is left out.
pub(super) struct Events {
    shared: Arc<Shared>,
    feed: Feed,
    ready: VecDeque<Came>,
}

pub(super) async fn read(shared: &Arc<Shared>, from: Option<Seq>) -> Result<Events> {
    shared.reachable()?;
    let place = shared.layout.events();
    let (low, high) = shared.watermarks(&place).await?;
    let next = match from {
        None => high,
        // Not from this topic, or older than what is kept: what is kept is all that can be offered.
        Some(from) if after(from) > high || after(from) < low => low,
        Some(from) => after(from),
    };
    let feed = shared.readers.open(place, next).await?;
    Ok(Events { shared: Arc::clone(shared), feed, ready: VecDeque::new() })
}

#[async_trait]
impl EventReader for Events {
    async fn next(&mut self, max: usize) -> Result<Vec<PlacedEvent>> {
        loop {
            let mut placed = Vec::new();
            while placed.len() < max.max(1) {
                let Some(came) = self.ready.pop_front() else { break };
                placed.extend(event(came));
            }
            if !placed.is_empty() {
                return Ok(placed);
            }
            match self.feed.more(&mut self.ready).await {
                Ok(()) => {}
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Gone) => {
                    let place = self.shared.layout.events();
                    let (low, _) = self.shared.watermarks(&place).await?;
                    self.feed = self.shared.readers.open(place, low).await?;
                }
            }
        }
    }
}

/// The event of a message; none for what somebody else has written there.
fn event(came: Came) -> Option<PlacedEvent> {
    let text = |name: &str| came.header(name).and_then(|value| std::str::from_utf8(value).ok());
    let id = text(EVENT_ID).map(str::to_owned);
    let tenant = text(TENANT).and_then(|tenant| tenant.parse().ok());
    match (id, tenant, came.body) {
        (Some(id), Some(tenant), Some(body)) => {
            Some(PlacedEvent { seq: seq(came.offset), event: Event { id, tenant, body } })
        }
        _ => {
            tracing::warn!(offset = came.offset, "an event of somebody else is left out");
            None
        }
    }
}
