//! The NATS transport with a server that is killed, fills up, and has clients of other kinds.
#![cfg(feature = "nats")]

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use cellbus_bus::contract::{Error, Event, Message, Position, Queue, QueueKind, REPLY_TO, Reader};
use cellbus_bus::env::real;
use cellbus_bus::ids::{Seq, ShardCount, ShardId};
use cellbus_bus::job::Digest;
use cellbus_bus::nats::testing::{NatsServer, left_out};
use cellbus_bus::nats::{Config, Nats};
use cellbus_bus::{Bus, Env};
use futures::StreamExt as _;
use tokio::runtime::Handle;

/// Long, for busy machines: waited for only when a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn env() -> Env {
    real(Handle::current())
}
fn fresh(server: &NatsServer) -> Config {
    let mut config = Config { prefix: NatsServer::prefix(), ..server.config() };
    config.limits.events_bytes_max = 1 << 20;
    config
}
async fn open(config: &Config) -> Arc<Nats> {
    Nats::open(config.clone(), env()).await.expect("the bus opens")
}
async fn client(config: &Config) -> async_nats::Client {
    async_nats::connect(config.servers[0].as_str()).await.expect("a client connects")
}
fn shard(index: u16) -> ShardId {
    ShardId::new(index, ShardCount::DEFAULT).expect("below the default")
}
fn jobs(index: u16) -> Queue {
    Queue { shard: shard(index), kind: QueueKind::Jobs }
}
fn control(index: u16) -> Queue {
    Queue { shard: shard(index), kind: QueueKind::Control }
}
fn body(text: impl std::fmt::Display) -> Bytes {
    Bytes::from(text.to_string())
}
async fn soon<T>(future: impl Future<Output = T>) -> T {
    env().timeout(PATIENCE, future).await.expect("it comes in time")
}
async fn read(reader: &mut dyn Reader, count: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    while messages.len() < count {
        messages.extend(soon(reader.next(count - messages.len())).await.expect("a read"));
    }
    messages
}
/// Again until it is done: a server that is away comes back.
async fn until_done<T>(mut call: impl AsyncFnMut() -> Result<T, Error>) -> T {
    soon(async {
        loop {
            match call().await {
                Ok(value) => return value,
                Err(error) => assert!(error.retryable(), "{error}"),
            }
            env().sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_that_was_acked() {
    if left_out() {
        return;
    }
    let mut server = NatsServer::start();
    let config = Config { answer_timeout: Duration::from_secs(2), ..fresh(&server) };
    let bus = open(&config).await;
    let mut queue_reader = bus.read_queue(jobs(1), Position::default()).await.unwrap();
    let mut idle_reader = bus.read_queue(control(1), Position::default()).await.unwrap();
    let mut log_reader = bus.read_log(shard(1), Seq::ZERO).await.unwrap();
    let mut events = bus.read_events(None).await.unwrap();
    let (mut end, mut published) = (Seq::ZERO, 0);
    for round in 0..3_u64 {
        for number in 0..20 {
            published += 1;
            until_done(async || bus.publish(jobs(1), vec![body(round * 20 + number)]).await).await;
            end = bus.append(shard(1), end, body(round * 20 + number)).await.expect("an append");
        }
        bus.ingress_publish("acme", Vec::new(), body(round)).await.expect("a publish");
        let event = Event { id: round.to_string(), tenant: "acme".parse().unwrap(), body: body(round) };
        bus.publish_events(vec![event]).await.expect("an event");
        let tail = read(&mut *queue_reader, 20).await;
        assert_eq!(tail.last().map(|message| message.body.clone()), Some(body(round * 20 + 19)));

        server.kill();
        let stale = bus.append(shard(1), end, body("lost?")).await;
        assert!(matches!(stale, Err(Error::Unavailable { .. } | Error::Unknown { .. })), "{stale:?}");
        let unknown = matches!(stale, Err(Error::Unknown { .. }));
        soon(async {
            while bus.accepting().is_ok() {
                env().sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        server.restart();

        let found = until_done(async || bus.log_end(shard(1)).await).await;
        assert!(found == end || unknown, "what was refused is not there");
        // The fence: whoever expects an older end is refused, also just after the restart.
        let refused = until_done(async || match bus.append(shard(1), Seq(end.0 - 1), body("stale")).await {
            Err(Error::Fenced { found, .. }) => Ok(found),
            Ok(_) => panic!("a stale append got in"),
            Err(other) => Err(other),
        })
        .await;
        assert!(refused >= end);
        end = refused;
    }
    // Readers go on by themselves.
    assert_eq!(read(&mut *log_reader, 60).await.len(), 60);
    bus.publish(control(1), vec![body("after")]).await.expect("a publish");
    assert_eq!(read(&mut *idle_reader, 1).await[0].body, body("after"));
    bus.publish(jobs(1), vec![body("last")]).await.expect("a publish");
    assert_eq!(read(&mut *queue_reader, 1).await[0].body, body("last"));
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(soon(events.next(10)).await.expect("events"));
    }
    let mut taken = Vec::new();
    for _ in 0..3 {
        let delivery = soon(bus.ingress_next(PATIENCE)).await.expect("a delivery");
        taken.push(delivery.body().clone());
        delivery.ack().await.expect("an ack");
    }
    taken.sort();
    assert_eq!(taken, [body(0), body(1), body(2)]);
    let mut again = bus.read_queue(jobs(1), Position::default()).await.unwrap();
    assert_eq!(read(&mut *again, published + 1).await.len(), published + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_lane_refuses_and_loses_nothing() {
    if left_out() {
        return;
    }
    let mut config = fresh(NatsServer::shared());
    config.lanes = 1;
    config.limits.lane_bytes_max = Some(256 << 10);
    config.trim_every = Duration::ZERO;
    let bus = open(&config).await;
    let item = Bytes::from(vec![7; 10_000]);
    let mut last = Seq::ZERO;
    let error = loop {
        match bus.publish(jobs(3), vec![item.clone()]).await {
            Ok(seq) => last = seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Full { .. }) && error.retryable(), "{error:?}");
    assert!(matches!(bus.accepting(), Err(Error::Full { .. })));
    bus.publish(control(3), vec![item.clone()]).await.expect("control has room of its own");
    let both = bus.publish_all(vec![(jobs(3), vec![item.clone()]), (control(3), vec![item.clone()])]).await;
    assert!(matches!(both, Err(Error::Unknown { .. })), "a part of it is there: {both:?}");
    assert_eq!(bus.depth(control(3), Seq::ZERO).await.unwrap().messages, 2, "the control part is taken");
    let depth = bus.depth(jobs(3), Seq::ZERO).await.unwrap();
    assert_eq!(depth.messages, last.0, "nothing was dropped for what was refused");
    bus.trim_queue(jobs(3), last).await.expect("a trim");
    bus.publish(jobs(3), vec![item]).await.expect("there is room again");
    soon(async {
        while bus.accepting().is_err() {
            env().sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_is_trimmed_to_its_lowest_floor() {
    if left_out() {
        return;
    }
    let config = Config { lanes: 1, trim_every: Duration::from_millis(400), ..fresh(NatsServer::shared()) };
    let bus = open(&config).await;
    let context = jetstream::new(client(&config).await);
    let stream = context.get_stream_no_info(format!("{}_queue_jobs_0", config.prefix)).await.unwrap();
    let kept = async || stream.get_info().await.unwrap().state.messages;
    let mut last = [Seq::ZERO; 2];
    for number in 0..100 {
        for index in [0, 1] {
            last[usize::from(index)] = bus.publish(jobs(index), vec![body(number)]).await.unwrap();
        }
    }
    let mut behind = bus.read_queue(jobs(0), Position::default()).await.unwrap();
    assert_eq!(read(&mut *behind, 1).await[0].body, body(0));
    // One shard that needs its messages pins the lane; then both have read all.
    bus.trim_queue(jobs(0), last[0]).await.unwrap();
    env().sleep(config.trim_every * 2).await;
    for _ in 0..2 {
        bus.trim_queue(jobs(0), last[0]).await.unwrap();
    }
    assert_eq!(kept().await, 200);
    soon(async {
        while kept().await > 3 {
            bus.trim_queue(jobs(1), last[1]).await.unwrap();
            env().sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    // The last of each is always there, and the reader that was behind does not go on over the hole.
    for index in [0, 1] {
        let known = Position { seq: last[usize::from(index)], digest: Digest::of(&body(99)) };
        assert_eq!(bus.depth(jobs(index), Seq::ZERO).await.unwrap().messages, 1);
        bus.read_queue(jobs(index), known).await.unwrap();
    }
    loop {
        match soon(behind.next(1000)).await {
            Ok(messages) => assert!(messages.iter().all(|message| message.seq < last[0]), "over the hole"),
            Err(Error::Trimmed { first }) => break assert_eq!(first, last[0]),
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_and_readers_of_other_kinds() {
    if left_out() {
        return;
    }
    let config = fresh(NatsServer::shared());
    let bus = open(&config).await;
    let producer = client(&config).await;
    let context = jetstream::new(producer.clone());
    let inbox = producer.new_inbox();
    let mut answers = producer.subscribe(inbox.clone()).await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Ce-Id", "order-4711");
    headers.insert("Cellbus-Reply-To", inbox.as_str());
    let subject = format!("{}.jobs.acme", config.prefix);
    context
        .publish_with_headers(subject, headers, "work".into())
        .await
        .unwrap()
        .await
        .expect("it is acked by the server");
    let delivery = soon(bus.ingress_next(PATIENCE)).await.unwrap();
    assert_eq!((delivery.tenant(), delivery.body().as_ref()), ("acme", &b"work"[..]));
    assert_eq!(delivery.headers(), [("ce-id".to_owned(), "order-4711".to_owned())]);
    let answer_to = delivery.reply_to().expect("the inbox of the header").to_owned();
    bus.reply(&answer_to, body("accepted")).await;
    delivery.ack().await.unwrap();
    assert_eq!(soon(answers.next()).await.expect("an answer").payload, body("accepted"));

    // The same by way of the contract, as somebody who is no part of the cluster.
    let visitor = Nats::attach(config.clone(), env()).await.expect("the cluster is there");
    let mut inbox = visitor.inbox().await.unwrap().expect("NATS has inboxes");
    let headers = vec![(REPLY_TO.to_owned(), format!("{}.7", inbox.address()))];
    visitor.ingress_publish("acme", headers, body("more")).await.unwrap();
    let delivery = soon(bus.ingress_next(PATIENCE)).await.unwrap();
    bus.reply(delivery.reply_to().expect("an inbox"), body("refused")).await;
    delivery.ack().await.unwrap();
    assert_eq!(soon(inbox.next()).await.unwrap(), (7, body("refused")));
    visitor.close().await;
    assert!(soon(inbox.next()).await.is_err(), "a closed bus answers nobody");

    let mut listener = producer.subscribe(format!("{}.events.acme", config.prefix)).await.unwrap();
    producer.flush().await.unwrap();
    let mut events = bus.read_events(None).await.unwrap();
    // Somebody else's message is no event, and does not stop its readers.
    context.publish(format!("{}.events.acme", config.prefix), "noise".into()).await.unwrap().await.unwrap();
    let event = Event { id: "e1".to_owned(), tenant: "acme".parse().unwrap(), body: body("{}") };
    bus.publish_events(vec![event.clone()]).await.unwrap();
    assert_eq!(soon(events.next(5)).await.unwrap()[0].event, event);
    soon(listener.next()).await.expect("the noise");
    let heard = soon(listener.next()).await.expect("the event");
    let kind = heard.headers.as_ref().and_then(|headers| headers.get("content-type")).map(|kind| kind.as_str());
    assert_eq!((heard.payload, kind), (body("{}"), Some("application/cloudevents+json")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_says_how_many_wait_behind_it() {
    const MESSAGES: u64 = 9;
    if left_out() {
        return;
    }
    let server = NatsServer::start();
    let bus = open(&fresh(&server)).await;
    for number in 0..MESSAGES {
        bus.ingress_publish("acme", Vec::new(), body(number)).await.unwrap();
    }
    for behind in (0..MESSAGES).rev() {
        let delivery = soon(bus.ingress_next(PATIENCE)).await.unwrap();
        assert_eq!(delivery.waiting(), behind);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visitor_makes_nothing_and_takes_the_lanes_as_they_are() {
    if left_out() {
        return;
    }
    let config = fresh(NatsServer::shared());
    let refused = Nats::attach(config.clone(), env()).await.err().expect("there is no cluster");
    assert_eq!((refused.code(), refused.retryable()), ("nats_no_cluster", false), "{refused}");
    let context = jetstream::new(client(&config).await);
    let made = context.get_stream(format!("{}_jobs", config.prefix)).await;
    assert!(made.is_err(), "a visitor has made a stream");

    let bus = open(&Config { lanes: 3, ..config.clone() }).await;
    bus.publish(jobs(5), vec![body("work")]).await.unwrap();
    let visitor = Nats::attach(Config { lanes: 1, ..config.clone() }, env()).await.expect("the cluster is there");
    assert_eq!(visitor.depth(jobs(5), Seq(0)).await.unwrap().messages, 1, "it looks into the right lane");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_a_lull_is_delivered_at_once() {
    if left_out() {
        return;
    }
    // What a request loses comes again only when nobody waits here any more.
    let config = Config { redeliver_after: PATIENCE * 10, ..fresh(NatsServer::shared()) };
    let bus = open(&config).await;
    // Longer than a request waits: one is begun in the lull.
    for lull in [Duration::ZERO, Duration::from_secs(3), Duration::from_secs(8)] {
        let waiting = soon(bus.ingress_next(PATIENCE));
        let publish = async {
            env().sleep(lull).await;
            bus.ingress_publish("acme", Vec::new(), body(lull.as_secs())).await.unwrap();
        };
        let (delivery, ()) = futures::join!(waiting, publish);
        let delivery = delivery.unwrap();
        assert_eq!(*delivery.body(), body(lull.as_secs()));
        delivery.ack().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_share_the_ingress_and_one_dies() {
    if left_out() {
        return;
    }
    let config = Config { redeliver_after: Duration::from_millis(600), ..fresh(NatsServer::shared()) };
    let (dies, lives) = (open(&config).await, open(&config).await);
    for number in 0..20 {
        lives.ingress_publish("acme", Vec::new(), body(number)).await.unwrap();
    }
    let held = soon(dies.ingress_next(PATIENCE)).await.unwrap();
    // Dead: it says nothing any more, and its messages come again when the server's time is up.
    drop((held, dies));
    let mut seen = std::collections::BTreeSet::new();
    soon(async {
        while seen.len() < 20 {
            let delivery = lives.ingress_next(PATIENCE).await.unwrap();
            seen.insert(delivery.body().clone());
            delivery.ack().await.unwrap();
        }
    })
    .await;
    // Held for longer than the server's time by a process that lives, it does not come again.
    lives.ingress_publish("acme", Vec::new(), body("long")).await.unwrap();
    let held = soon(lives.ingress_next(PATIENCE)).await.unwrap();
    let again = env().timeout(config.redeliver_after * 3, lives.ingress_next(PATIENCE)).await;
    assert!(again.is_none(), "somebody is at work on it");
    held.ack().await.unwrap();
}

/// How many readers each stream of logs or queues may have.
async fn readers_allowed(config: &Config) -> Vec<i32> {
    let jetstream = jetstream::new(client(config).await);
    let lanes = ["queue_jobs", "queue_control", "log"].map(|family| format!("{}_{family}_0", config.prefix));
    let mut allowed = Vec::new();
    for lane in lanes {
        allowed.push(jetstream.get_stream(lane).await.expect("the stream").cached_info().config.max_consumers);
    }
    allowed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_has_more_readers_than_a_server_gives_by_itself() {
    if left_out() {
        return;
    }
    let config = Config { lanes: 1, ..fresh(NatsServer::shared()) };
    let bus = open(&config).await;
    assert_eq!(readers_allowed(&config).await, [100_000; 3]);
    // From 2.15 on: 1,000.
    let readers = (0..1_100).map(|index| bus.read_queue(jobs(index % 256), Position::default()));
    let mut readers = futures::stream::iter(readers).buffered(64);
    let mut opened = 0;
    while let Some(reader) = readers.next().await {
        reader.expect("a reader");
        opened += 1;
    }
    assert_eq!(opened, 1_100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_an_older_build_get_more_readers() {
    if left_out() {
        return;
    }
    let config = Config { lanes: 1, ..fresh(NatsServer::shared()) };
    drop(open(&config).await);
    // As they were made before.
    let jetstream = jetstream::new(client(&config).await);
    let name = format!("{}_log_0", config.prefix);
    let mut found = jetstream.get_stream(&name).await.expect("the stream").cached_info().config.clone();
    found.max_consumers = -1;
    jetstream.delete_stream(&name).await.expect("it goes");
    jetstream.create_stream(found).await.expect("it is made again");
    drop(open(&config).await);
    assert_eq!(readers_allowed(&config).await, [100_000; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_with_few_readers_is_no_obstacle() {
    if left_out() {
        return;
    }
    let server = NatsServer::start_with(
        "max_payload: 8MB\njetstream { store_dir: \"$STORE\" }\nno_auth_user: cell\n\
         accounts { A { jetstream { max_mem: 1G, max_file: 10G, max_streams: 100, max_consumers: 50 }\n\
         users: [{ user: cell, password: x }] } }\n",
    );
    let config = Config { lanes: 1, ..fresh(&server) };
    let bus = open(&config).await;
    assert_eq!(readers_allowed(&config).await, [50; 3]);
    bus.read_queue(jobs(1), Position::default()).await.expect("a reader");
    drop(bus);
    // And so at every start.
    drop(open(&config).await);
}
