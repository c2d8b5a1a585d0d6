//! What was acknowledged is there after a restart.

use std::time::Duration;

use crate::contract::{Error, Event, Position, SnapshotId};
use crate::ids::{Epoch, Seq};
use crate::job::Digest;

use super::{NOTHING, Subject, bodies, body, control, jobs, not_yet, numbers, read, shard, soon, texts};

pub(super) async fn what_was_durable_is_there_again(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let last = bus.publish(jobs(1), bodies(0..100)).await.expect("a publish");
    bus.publish_all(vec![(control(1), bodies(0..3)), (jobs(2), bodies(3..5))]).await.expect("a publish");
    let mut end = Seq::ZERO;
    for number in 0..20_u64 {
        end = bus.append(shard(1), end, body(number)).await.expect("an append");
    }
    let snapshot = SnapshotId { shard: shard(1), seq: end, epoch: Epoch(1) };
    bus.write_snapshot(snapshot, body("state")).await.expect("a snapshot");
    let mut live = bus.read_events(None).await.expect("a reader");
    let event =
        |number: u64| Event { id: number.to_string(), tenant: "acme".parse().expect("a tenant"), body: body(number) };
    bus.publish_events((0..5).map(event).collect()).await.expect("events");
    let first_event = soon(&env, "an event", live.next(1)).await.expect("an event").remove(0);
    drop((bus, live));

    subject.reopen().await;
    let (bus, env) = (subject.bus(), subject.env());
    let mut reader = bus.read_queue(jobs(1), NOTHING).await.expect("a reader");
    assert_eq!(texts(&read(&env, &mut *reader, 100).await), numbers(0..100));
    let at_end = Position { seq: last, digest: Digest::of(b"99") };
    let mut follower = bus.read_queue(jobs(1), at_end).await.expect("a reader at its old position");
    not_yet(&env, "a message after the last", follower.next(1)).await;
    assert!(bus.publish(jobs(1), bodies([100])).await.expect("a publish") > last, "sequences go on");
    assert_eq!(texts(&read(&env, &mut *follower, 1).await), numbers([100]));
    for (queue, range) in [(control(1), 0..3), (jobs(2), 3..5)] {
        let mut reader = bus.read_queue(queue, NOTHING).await.expect("a reader");
        assert_eq!(texts(&read(&env, &mut *reader, range.clone().count()).await), numbers(range));
    }
    assert_eq!(bus.depth(control(1), Seq::ZERO).await.expect("a depth").messages, 3);

    assert_eq!(bus.log_end(shard(1)).await.expect("an end"), end);
    let refused = bus.append(shard(1), Seq(end.0 - 1), body("stale")).await;
    assert!(matches!(refused, Err(Error::Fenced { found, .. }) if found == end), "{refused:?}");
    bus.append(shard(1), end, body(20)).await.expect("an append at the true end");
    let mut log = bus.read_log(shard(1), Seq::ZERO).await.expect("a reader");
    assert_eq!(texts(&read(&env, &mut *log, 21).await), numbers(0..21));
    assert_eq!(bus.snapshots(shard(1)).await.expect("a list"), [snapshot]);
    assert_eq!(bus.read_snapshot(snapshot).await.expect("a read"), Some(body("state")));

    let mut events = bus.read_events(Some(first_event.seq)).await.expect("a reader that comes back");
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend(soon(&env, "an event", events.next(4)).await.expect("events"));
    }
    assert_eq!(seen.into_iter().map(|placed| placed.event).collect::<Vec<_>>(), (1..5).map(event).collect::<Vec<_>>());
}

pub(super) async fn sequences_go_on_after_trim_and_restart(subject: &mut dyn Subject) {
    let (mut last, mut end) = (Seq::ZERO, Seq::ZERO);
    for round in 0..3_u64 {
        let (bus, env) = (subject.bus(), subject.env());
        let numbers_of_round = round * 10..round * 10 + 10;
        let seq = bus.publish(jobs(3), bodies(numbers_of_round.clone())).await.expect("a publish");
        assert!(seq > last, "never a sequence twice");
        for number in numbers_of_round {
            end = bus.append(shard(3), end, body(number)).await.expect("the fence survives trim and restart");
        }
        bus.trim_queue(jobs(3), seq).await.expect("a trim");
        bus.trim_log(shard(3), end, 2).await.expect("a trim");
        last = seq;
        drop(bus);
        subject.reopen().await;

        let bus = subject.bus();
        assert_eq!(bus.log_end(shard(3)).await.expect("an end"), end);
        let refused = bus.append(shard(3), Seq::ZERO, body("stale")).await;
        assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
        let at_last = Position { seq: last, digest: Digest::of(&body(round * 10 + 9)) };
        let mut reader = bus.read_queue(jobs(3), at_last).await.expect("a reader at its old position");
        not_yet(&env, "a message after the last", reader.next(1)).await;
    }
}

pub(super) async fn ingress_survives_a_restart(subject: &mut dyn Subject) {
    let long = Duration::from_secs(3600);
    let bus = subject.bus();
    for number in 0..10 {
        bus.ingress_publish("acme", Vec::new(), body(number)).await.expect("a publish");
    }
    let mut taken = Vec::new();
    for number in 0..10 {
        let delivery = soon(&subject.env(), "a delivery", bus.ingress_next(long)).await.expect("a delivery");
        if number % 3 == 0 {
            delivery.ack().await.expect("an ack");
        } else {
            taken.push(delivery);
        }
    }
    drop((bus, taken));
    subject.reopen().await;
    let (bus, env) = (subject.bus(), subject.env());
    let mut again = Vec::new();
    for _ in 0..6 {
        // Where the bus itself lives on, what a dead process had taken comes when its time is up,
        // or at once; here it is the process that held the time.
        let delivery = soon(&env, "a delivery", bus.ingress_next(long)).await.expect("a delivery");
        again.push(String::from_utf8_lossy(delivery.body()).into_owned());
        delivery.ack().await.expect("an ack");
    }
    again.sort();
    assert_eq!(again, numbers([1, 2, 4, 5, 7, 8]), "what was not acked comes again, what was acked does not");
    not_yet(&env, "an acked message", bus.ingress_next(long)).await;
}

pub(super) async fn a_fresh_bus_is_accepting(subject: &mut dyn Subject) {
    subject.bus().accepting().expect("a fresh bus takes jobs");
    subject.reopen().await;
    subject.bus().accepting().expect("a bus that was restarted takes jobs");
}
