//! Events: order, places, readers that come back.

use crate::contract::{Event, EventReader, PlacedEvent};
use crate::env::Env;
use crate::ids::Seq;

use super::{Subject, body, not_yet, soon};

fn event(number: u64) -> Event {
    Event { id: format!("event-{number}"), tenant: "acme".parse().expect("a tenant"), body: body(number) }
}
async fn read(env: &Env, reader: &mut dyn EventReader, count: usize) -> Vec<PlacedEvent> {
    let mut events = Vec::new();
    while events.len() < count {
        let more = soon(env, "an event", reader.next(count - events.len())).await.expect("a read");
        assert!(!more.is_empty());
        events.extend(more);
    }
    events
}
fn plain(events: &[PlacedEvent]) -> Vec<Event> {
    events.iter().map(|placed| placed.event.clone()).collect()
}

pub(super) async fn events_come_in_order_after_a_place(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let mut live = bus.read_events(None).await.expect("a reader");
    for batch in 0..10 {
        bus.publish_events((batch * 3..batch * 3 + 3).map(event).collect()).await.expect("a publish");
    }
    let events = read(&env, &mut *live, 30).await;
    assert_eq!(plain(&events), (0..30).map(event).collect::<Vec<_>>());
    assert!(events.is_sorted_by(|a, b| a.seq < b.seq));
    for index in [0, 14, 28] {
        let mut again = bus.read_events(Some(events[index].seq)).await.expect("a reader that comes back");
        assert_eq!(read(&env, &mut *again, 29 - index).await, events[index + 1..]);
    }
}

pub(super) async fn events_after_no_place_begin_with_the_oldest(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let mut live = bus.read_events(None).await.expect("a reader");
    bus.publish_events((0..3).map(event).collect()).await.expect("a publish");
    let last = read(&env, &mut *live, 3).await[2].seq;
    // The place of another bus, or of one that has lost events.
    let mut beyond = bus.read_events(Some(Seq(last.0 + 1000))).await.expect("a reader");
    assert_eq!(plain(&read(&env, &mut *beyond, 3).await), (0..3).map(event).collect::<Vec<_>>());
    let mut at_end = bus.read_events(Some(last)).await.expect("a reader");
    not_yet(&env, "an event after the last", at_end.next(1)).await;
}

pub(super) async fn events_from_now_on(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    bus.publish_events(vec![event(0)]).await.expect("a publish");
    let mut live = bus.read_events(None).await.expect("a reader");
    not_yet(&env, "an old event", live.next(1)).await;
    bus.publish_events(vec![event(1)]).await.expect("a publish");
    assert_eq!(plain(&read(&env, &mut *live, 1).await), [event(1)]);
}
