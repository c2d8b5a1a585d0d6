//! Events: on `<prefix>.events.<tenant>`, as CloudEvents in structured mode.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::contract::{Event, Result, check_size};
use crate::ids::Seq;

use super::feed::{Feed, Source};
use super::reader::Events;
use super::{Shared, answer, publish};

/// The event's stable id, so that it need not be looked for in its body.
pub(super) const EVENT_ID: &str = "Cellbus-Event-Id";
/// What CloudEvents' binding for NATS wants of structured mode.
const CONTENT_TYPE: (&str, &str) = ("content-type", "application/cloudevents+json");

impl Shared {
    pub(super) async fn publish_events(&self, events: Vec<Event>) -> Result<()> {
        for event in &events {
            check_size(&event.body)?;
        }
        if events.is_empty() {
            return Ok(());
        }
        self.connected()?;
        let items = events.into_iter().map(|event| {
            let bytes = event.body.len();
            // What cannot stand in a header cannot be an id of ours.
            let id: String = event.id.chars().filter(|c| !c.is_control()).collect();
            let message =
                publish::message(event.body).header(EVENT_ID, id.as_str()).header(CONTENT_TYPE.0, CONTENT_TYPE.1);
            (self.layout.event_subject(event.tenant.as_str()), message, bytes)
        });
        self.publish_all(items).await.map(drop)
    }
}

pub(super) async fn read(shared: &Arc<Shared>, after: Option<Seq>) -> Result<Events> {
    shared.connected()?;
    let info = shared.events.get_info().await.map_err(|error| answer::unavailable("ask for events", &error))?;
    let last = info.state.last_sequence;
    let next = match after {
        None => last + 1,
        // Not from this stream: what is kept is all that can be offered.
        Some(after) if after.0 > last => 1,
        Some(after) => after.0 + 1,
    };
    let mut feed = Feed::new(Arc::clone(shared), Source::Events, next);
    feed.begin().await?;
    Ok(Events { feed, ready: VecDeque::new() })
}
