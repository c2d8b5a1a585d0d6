//! Ingress: competing consumers, acks, redelivery.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::contract::{Bus, DROPPED_FOR, Delivery};
use crate::env::{BoxFuture, Env};
use crate::ids::Seq;

use super::{Subject, at_first_await, at_once, body, not_yet, soon};

/// What comes in a moment comes within this, on the busiest machine.
const SOON: Duration = Duration::from_secs(15);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

async fn next(bus: &Arc<dyn Bus>, env: &Env, redeliver_after: Duration) -> Box<dyn Delivery> {
    soon(env, "a delivery", bus.ingress_next(redeliver_after)).await.expect("a delivery")
}
fn text(delivery: &dyn Delivery) -> String {
    String::from_utf8_lossy(delivery.body()).into_owned()
}

pub(super) async fn each_message_goes_to_one_consumer(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    // Names come in lower case, however a producer writes them.
    let headers = vec![("Ce-Id".to_owned(), "order-4711".to_owned())];
    for number in 0..100 {
        bus.ingress_publish(&format!("tenant-{}", number % 3), headers.clone(), body(number)).await.expect("a publish");
    }
    let consumers = (0..10)
        .map(|_| -> BoxFuture<Vec<(String, String)>> {
            let (bus, env) = (Arc::clone(&bus), env.clone());
            Box::pin(async move {
                let mut taken = Vec::new();
                for _ in 0..10 {
                    let delivery = next(&bus, &env, LONG).await;
                    assert_eq!(delivery.headers(), [("ce-id".to_owned(), "order-4711".to_owned())]);
                    taken.push((text(&*delivery), delivery.tenant().to_owned()));
                    delivery.ack().await.expect("an ack");
                }
                taken
            })
        })
        .collect();
    let taken: BTreeMap<String, String> = at_once(&env, consumers).await.into_iter().flatten().collect();
    assert_eq!(taken.len(), 100, "each message once");
    for (number, tenant) in taken {
        let number: u64 = number.parse().expect("a number");
        assert_eq!(tenant, format!("tenant-{}", number % 3));
    }
    not_yet(&env, "a message that was taken", bus.ingress_next(LONG)).await;
}

pub(super) async fn what_is_not_acked_comes_again(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    bus.ingress_publish("acme", Vec::new(), body("again")).await.expect("a publish");
    let short = Duration::from_millis(200);
    let before = env.mono();
    let first = next(&bus, &env, short).await;
    let second = next(&bus, &env, LONG).await;
    assert!(env.mono().since(before) >= short, "not before its time");
    assert_eq!((text(&*first), text(&*second)), ("again".to_owned(), "again".to_owned()));
    second.ack().await.expect("an ack");
    // The first consumer was only slow: its ack is late and does no harm.
    drop(first.ack().await);
    not_yet(&env, "an acked message", bus.ingress_next(short)).await;
}

pub(super) async fn what_is_dropped_comes_again_in_a_moment(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    bus.ingress_publish("acme", Vec::new(), body("again")).await.expect("a publish");
    for _ in 0..3 {
        let before = env.mono();
        // It is not to be waited for as long as one whose consumer has died.
        let delivery = next(&bus, &env, LONG).await;
        assert_eq!(text(&*delivery), "again");
        drop(delivery);
        let again = next(&bus, &env, LONG).await;
        assert_eq!(text(&*again), "again");
        let after = env.mono().since(before);
        assert!(after >= DROPPED_FOR, "not at once: who drops it again and again must not spin");
        assert!(after < SOON, "{after:?} is as long as for one whose consumer has died");
        drop(again);
    }
    next(&bus, &env, LONG).await.ack().await.expect("an ack");
    not_yet(&env, "an acked message", bus.ingress_next(LONG)).await;
    env.sleep(DROPPED_FOR * 2).await;
    not_yet(&env, "an acked message", bus.ingress_next(LONG)).await;
}

pub(super) async fn what_is_acked_never_comes_again(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    for number in 0..20 {
        bus.ingress_publish("acme", Vec::new(), body(number)).await.expect("a publish");
    }
    let short = Duration::from_millis(100);
    let mut open = Vec::new();
    for number in 0..20 {
        let delivery = next(&bus, &env, LONG).await;
        // Acked out of order, and not all.
        if number % 2 == 1 { delivery.ack().await.expect("an ack") } else { open.push(delivery) }
    }
    env.sleep(short * 2).await;
    not_yet(&env, "a message that others hold or have acked", bus.ingress_next(short)).await;
    for delivery in open {
        delivery.ack().await.expect("an ack");
    }
    not_yet(&env, "an acked message", bus.ingress_next(short)).await;
}

pub(super) async fn a_dropped_wait_takes_nothing(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    for _ in 0..5 {
        not_yet(&env, "a message", bus.ingress_next(LONG)).await;
    }
    bus.ingress_publish("acme", Vec::new(), body("one")).await.expect("a publish");
    for _ in 0..5 {
        // Dropped at its first await; if it was ready before that, it is the message.
        if let Some(delivery) = at_first_await(bus.ingress_next(LONG)).await {
            let delivery = delivery.expect("a delivery");
            assert_eq!(text(&*delivery), "one");
            return;
        }
    }
    assert_eq!(text(&*next(&bus, &env, LONG).await), "one");
}

pub(super) async fn what_is_not_acked_can_be_looked_at(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    assert_eq!(bus.ingress_unacked(Seq::ZERO, 100).await.expect("a look"), []);
    assert_eq!(bus.ingress_depth().await.expect("a depth"), 0);
    let headers = vec![("Ce-Id".to_owned(), "order-4711".to_owned())];
    for number in 0..10 {
        bus.ingress_publish("acme", headers.clone(), body(number)).await.expect("a publish");
    }
    // One is taken and kept, one is acked.
    let _held = next(&bus, &env, LONG).await;
    let done = next(&bus, &env, LONG).await;
    let acked = text(&*done);
    done.ack().await.expect("an ack");
    let (mut seen, began) = (Vec::new(), env.mono());
    while seen.len() != 9 {
        assert!(env.mono().since(began) < super::PATIENCE, "an ack is heard of in the end: {seen:?}");
        seen.clear();
        let mut after = Seq::ZERO;
        loop {
            let some = bus.ingress_unacked(after, 3).await.expect("a look");
            let Some(last) = some.last() else { break };
            assert!(some.len() <= 3 && some[0].seq > after);
            after = last.seq;
            seen.extend(some);
        }
    }
    assert!(
        seen.iter().all(|one| one.tenant == "acme" && one.headers == [("ce-id".to_owned(), "order-4711".to_owned())])
    );
    let texts: Vec<String> = seen.iter().map(|one| String::from_utf8_lossy(&one.body).into_owned()).collect();
    let expected: Vec<String> = (0..10).map(|number: u64| number.to_string()).filter(|one| *one != acked).collect();
    assert_eq!(texts, expected, "in order, and none is taken by it");
    // A topic may be heard of a moment late.
    while bus.ingress_depth().await.expect("a depth") != 9 {
        assert!(env.mono().since(began) < super::PATIENCE, "what is not acked is counted");
        env.sleep(std::time::Duration::from_millis(20)).await;
    }
    subject.reopen().await;
    let seen = subject.bus().ingress_unacked(Seq::ZERO, 100).await.expect("a look");
    assert_eq!(seen.len(), 9);
}
