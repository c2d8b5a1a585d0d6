//! Queues: order, no gaps, positions, depth, trim.

use std::sync::Arc;

use bytes::Bytes;

use crate::contract::{Error, MESSAGE_BYTES_MAX, Message, Position};
use crate::env::BoxFuture;
use crate::ids::Seq;
use crate::job::Digest;

use super::{
    NOTHING, Subject, at_first_await, at_once, bodies, body, control, jobs, not_yet, numbers, position, read, soon,
    texts,
};

pub(super) async fn items_come_in_order_each_once(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let mut last = Seq::ZERO;
    for batch in 0..10 {
        let seq = bus.publish(jobs(1), bodies(batch * 7..batch * 7 + 7)).await.expect("a publish");
        assert!(seq > last);
        last = seq;
    }
    let mut reader = bus.read_queue(jobs(1), NOTHING).await.expect("a reader");
    let messages = read(&env, &mut *reader, 70).await;
    assert_eq!(texts(&messages), numbers(0..70));
    assert_eq!(messages[69].seq, last, "publish gives the sequence of the last");
    let mut again = bus.read_queue(jobs(1), NOTHING).await.expect("a second reader");
    assert_eq!(read(&env, &mut *again, 70).await, messages, "readers do not take messages from each other");
}

pub(super) async fn concurrent_publishers_keep_their_order(subject: &mut dyn Subject) {
    const PUBLISHERS: u64 = 16;
    const EACH: u64 = 50;
    let (bus, env) = (subject.bus(), subject.env());
    let mut reader = bus.read_queue(jobs(2), NOTHING).await.expect("a reader");
    let publishers = (0..PUBLISHERS)
        .map(|publisher| -> BoxFuture<()> {
            let bus = Arc::clone(&bus);
            Box::pin(async move {
                for item in 0..EACH {
                    bus.publish(jobs(2), vec![body(publisher * 1000 + item)]).await.expect("a publish");
                }
            })
        })
        .collect();
    at_once(&env, publishers).await;
    let messages = read(&env, &mut *reader, (PUBLISHERS * EACH) as usize).await;
    let mut next = vec![0; PUBLISHERS as usize];
    for text in texts(&messages) {
        let number: u64 = text.parse().expect("a number");
        let publisher = (number / 1000) as usize;
        assert_eq!(number % 1000, next[publisher], "items of one publisher stay in order, each once");
        next[publisher] += 1;
    }
    not_yet(&env, "a message that nobody sent", reader.next(1)).await;
}

pub(super) async fn a_reader_waits_and_is_woken(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let mut reader = bus.read_queue(control(3), NOTHING).await.expect("a reader");
    not_yet(&env, "a message of an empty queue", reader.next(1)).await;
    for number in 0..20 {
        let sender = Arc::clone(&bus);
        let sent: BoxFuture<()> = Box::pin(async move {
            sender.publish(control(3), vec![body(number)]).await.expect("a publish");
        });
        let (messages, _) = futures::join!(read(&env, &mut *reader, 1), at_once(&env, vec![sent]));
        assert_eq!(texts(&messages), numbers([number]));
    }
}

pub(super) async fn a_read_is_bounded_and_never_empty(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    bus.publish(jobs(4), bodies(0..1000)).await.expect("a publish");
    let mut reader = bus.read_queue(jobs(4), NOTHING).await.expect("a reader");
    let mut seen = 0;
    while seen < 1000 {
        let messages = soon(&env, "a message", reader.next(64)).await.expect("a read");
        assert!((1..=64).contains(&messages.len()), "{} messages", messages.len());
        seen += messages.len();
    }
    // About 4 MiB at once at the most, and at least one message however large it is.
    bus.publish(jobs(4), vec![Bytes::from(vec![7; 3 << 20]); 4]).await.expect("a publish");
    let messages = soon(&env, "a large message", reader.next(4)).await.expect("a read");
    assert!((1..=2).contains(&messages.len()), "{} messages of 3 MiB", messages.len());
}

pub(super) async fn a_dropped_read_takes_nothing(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let mut reader = bus.read_queue(jobs(5), NOTHING).await.expect("a reader");
    let publisher = Arc::clone(&bus);
    env.spawn("conformance", async move {
        for number in 0..300 {
            publisher.publish(jobs(5), vec![body(number)]).await.expect("a publish");
        }
    });
    let mut seen = Vec::new();
    let mut waits = 0;
    while seen.len() < 300 {
        // Many calls are dropped at their first await, wherever that is.
        if let Some(messages) = at_first_await(reader.next(3)).await {
            seen.extend(texts(&messages.expect("a read")));
            continue;
        }
        waits += 1;
        if waits % 50 == 0 {
            seen.extend(texts(&soon(&env, "a message", reader.next(3)).await.expect("a read")));
        } else {
            env.sleep(std::time::Duration::from_micros(100)).await;
        }
    }
    assert_eq!(seen, numbers(0..300));
}

pub(super) async fn queues_are_apart(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    for (number, queue) in (0..).zip([jobs(6), control(6), jobs(7), control(7)]) {
        bus.publish(queue, vec![body(number)]).await.expect("a publish");
    }
    for (number, queue) in (0..).zip([jobs(6), control(6), jobs(7), control(7)]) {
        let mut reader = bus.read_queue(queue, NOTHING).await.expect("a reader");
        assert_eq!(texts(&read(&env, &mut *reader, 1).await), numbers([number]), "{queue}");
        not_yet(&env, "a message of another queue", reader.next(1)).await;
    }
}

pub(super) async fn a_queue_has_an_end(subject: &mut dyn Subject) {
    let bus = subject.bus();
    assert_eq!(bus.queue_end(jobs(1)).await.expect("an end"), Seq::ZERO);
    let last = bus.publish(jobs(1), bodies(0..3)).await.expect("a publish");
    bus.publish(control(1), bodies(0..9)).await.expect("a publish");
    assert_eq!(bus.queue_end(jobs(1)).await.expect("an end"), last);
    bus.trim_queue(jobs(1), last).await.expect("a trim");
    assert_eq!(bus.queue_end(jobs(1)).await.expect("an end"), last, "the last is kept");
}

pub(super) async fn publish_all_reaches_every_queue(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let queues = subject.shards().min(200);
    let items = (0..queues).map(|index| (jobs(index), bodies([u64::from(index), 1000 + u64::from(index)]))).collect();
    bus.publish_all(items).await.expect("a publish to many");
    bus.publish_all(vec![(control(0), bodies(0..1)), (control(0), bodies(1..2)), (control(1), Vec::new())])
        .await
        .expect("a queue may be named twice, or have nothing to take");
    for index in 0..queues {
        let mut reader = bus.read_queue(jobs(index), NOTHING).await.expect("a reader");
        let number = u64::from(index);
        assert_eq!(texts(&read(&env, &mut *reader, 2).await), numbers([number, 1000 + number]));
    }
    let mut reader = bus.read_queue(control(0), NOTHING).await.expect("a reader");
    assert_eq!(texts(&read(&env, &mut *reader, 2).await), numbers(0..2));
}

pub(super) async fn a_position_with_the_right_digest_goes_on(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    bus.publish(jobs(8), bodies(0..10)).await.expect("a publish");
    let mut reader = bus.read_queue(jobs(8), NOTHING).await.expect("a reader");
    let messages = read(&env, &mut *reader, 10).await;
    for (index, message) in messages.iter().enumerate().take(9) {
        let mut reader = bus.read_queue(jobs(8), position(message)).await.expect("a reader");
        assert_eq!(read(&env, &mut *reader, 9 - index).await, messages[index + 1..]);
    }
    let mut at_end = bus.read_queue(jobs(8), position(&messages[9])).await.expect("a reader");
    not_yet(&env, "a message after the last", at_end.next(1)).await;
}

pub(super) async fn a_position_with_a_wrong_digest_begins_again(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let last = bus.publish(jobs(9), bodies(0..10)).await.expect("a publish");
    for seq in [Seq(1), last] {
        let wrong = Position { seq, digest: Digest::of(b"another message") };
        let mut reader = bus.read_queue(jobs(9), wrong).await.expect("a reader");
        assert_eq!(texts(&read(&env, &mut *reader, 10).await), numbers(0..10));
    }
}

pub(super) async fn a_position_beyond_the_end_begins_again(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let last = bus.publish(jobs(10), bodies(0..3)).await.expect("a publish");
    let beyond = Position { seq: Seq(last.0 + 100), digest: Digest::of(b"2") };
    let mut reader = bus.read_queue(jobs(10), beyond).await.expect("a reader");
    assert_eq!(texts(&read(&env, &mut *reader, 3).await), numbers(0..3));
}

pub(super) async fn depth_counts_what_comes_after(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let empty = bus.depth(jobs(11), Seq::ZERO).await.expect("a depth");
    assert_eq!((empty.messages, empty.oldest_at), (0, None));
    bus.publish(jobs(11), bodies(0..10)).await.expect("a publish");
    let mut reader = bus.read_queue(jobs(11), NOTHING).await.expect("a reader");
    let messages = read(&env, &mut *reader, 10).await;
    let all = bus.depth(jobs(11), Seq::ZERO).await.expect("a depth");
    assert_eq!((all.messages, all.oldest_at), (10, Some(messages[0].at)));
    for (index, message) in messages.iter().enumerate() {
        let depth = bus.depth(jobs(11), message.seq).await.expect("a depth");
        assert_eq!(depth.messages, 9 - index as u64);
        assert_eq!(depth.oldest_at, messages.get(index + 1).map(|next| next.at));
    }
}

pub(super) async fn trim_keeps_the_last_message(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    bus.trim_queue(jobs(12), Seq(5)).await.expect("a trim of an empty queue");
    let last = bus.publish(jobs(12), bodies(0..10)).await.expect("a publish");
    for _ in 0..2 {
        bus.trim_queue(jobs(12), last).await.expect("a trim, also a second time");
    }
    let known = Position { seq: last, digest: Digest::of(b"9") };
    let mut reader = bus.read_queue(jobs(12), known).await.expect("a reader");
    not_yet(&env, "a message after the last", reader.next(1)).await;
    let mut from_start = bus.read_queue(jobs(12), NOTHING).await.expect("a reader");
    // A read gives what is there, which need not be all.
    let mut kept = Vec::new();
    while kept.last().is_none_or(|message: &Message| message.seq < last) {
        kept.extend(soon(&env, "the last message", from_start.next(100)).await.expect("a read"));
    }
    assert_eq!(kept.last().map(|message| (message.seq, message.body.clone())), Some((last, body(9))));
    assert_eq!(bus.depth(jobs(12), last).await.expect("a depth").messages, 0);

    let next = bus.publish(jobs(12), bodies([10])).await.expect("a publish after the trim");
    assert!(next > last);
    assert_eq!(texts(&read(&env, &mut *reader, 1).await), numbers([10]));
}

pub(super) async fn a_reader_never_skips_what_was_trimmed(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let mut behind = bus.read_queue(jobs(13), NOTHING).await.expect("a reader");
    let last = bus.publish(jobs(13), bodies(0..10)).await.expect("a publish");
    bus.trim_queue(jobs(13), last).await.expect("a trim");
    // A trim may take place or not, but a reader that was before it must not go on as if nothing
    // were missing.
    match soon(&env, "a message", behind.next(1)).await {
        Ok(messages) => assert_eq!(texts(&messages), numbers([0])),
        Err(Error::Trimmed { first }) => assert!(first <= last),
        Err(other) => panic!("{other}"),
    }
}

pub(super) async fn a_message_has_a_largest_size(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let too_large = Bytes::from(vec![1; MESSAGE_BYTES_MAX + 1]);
    for result in [
        bus.publish(jobs(14), vec![body(0), too_large.clone()]).await.map(drop),
        bus.publish_all(vec![(jobs(14), vec![too_large.clone()])]).await,
        bus.append(super::shard(14), Seq::ZERO, too_large.clone()).await.map(drop),
        bus.ingress_publish("acme", Vec::new(), too_large).await,
    ] {
        assert!(matches!(result, Err(Error::TooLarge { bytes: _, max: MESSAGE_BYTES_MAX })), "{result:?}");
    }
    assert_eq!(bus.log_end(super::shard(14)).await.expect("an end"), Seq::ZERO);
    let largest = Bytes::from(vec![2; MESSAGE_BYTES_MAX]);
    bus.publish(jobs(14), vec![largest.clone()]).await.expect("the largest message");
    let mut reader = bus.read_queue(jobs(14), NOTHING).await.expect("a reader");
    let messages = read(&env, &mut *reader, 1).await;
    assert!(messages[0].body == largest, "of the refused batch nothing was written");
    // A log entry and a producer's message of that size too, whatever a transport adds to them.
    let end = bus.append(super::shard(14), Seq::ZERO, largest.clone()).await.expect("the largest entry");
    let mut log = bus.read_log(super::shard(14), Seq::ZERO).await.expect("a reader");
    let entries = read(&env, &mut *log, 1).await;
    assert!(entries[0].seq == end && entries[0].body == largest);
    bus.ingress_publish("acme", Vec::new(), largest.clone()).await.expect("the largest job");
    let delivery = soon(&env, "a delivery", bus.ingress_next(super::PATIENCE)).await.expect("a delivery");
    assert!(*delivery.body() == largest);
}
