//! The fence on a real broker: what a zombie's record does, wherever it comes to lie.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::fence::FOLLOWS;
use super::produce::{Record, To};
use super::testing::{KafkaServer, left_out};
use super::{Config, Kafka, OpenError};
use crate::contract::{Bus, ClusterRecord, Error, Message, Reader as _, Result};
use crate::env::{WallMs, real};
use crate::ids::{Seq, ShardCount, ShardId};

fn shard(index: u16) -> ShardId {
    ShardId::new(index, ShardCount::DEFAULT).expect("below the default")
}

/// Two processes on one cluster.
async fn owners() -> (Arc<Kafka>, Arc<Kafka>) {
    let config = Config { prefix: KafkaServer::prefix(), ..KafkaServer::shared().config() };
    let env = real(Handle::current());
    let first = Kafka::open(config.clone(), env.clone()).await.expect("the bus opens");
    (first, Kafka::open(config, env).await.expect("the bus opens"))
}

/// A record that its writer sent when it took `follows` for the last, and that lands now.
async fn lands(bus: &Kafka, shard: ShardId, follows: Seq, body: &'static str) -> i64 {
    let place = bus.shared.layout.log(shard);
    let record = Record { headers: vec![(FOLLOWS, follows.to_string().into())], ..Record::new(body.into()) };
    bus.shared.write(To::Place(place), record).await.expect("a write").expect("its place")
}

async fn log(bus: &Kafka, shard: ShardId, entries: usize) -> Vec<(Seq, String)> {
    let mut reader = super::fence::read_log(&bus.shared, shard, Seq::ZERO).await.expect("a reader");
    let mut read: Vec<Message> = Vec::new();
    while read.len() < entries {
        read.extend(reader.next(entries).await.expect("entries"));
    }
    read.into_iter().map(|entry| (entry.seq, String::from_utf8_lossy(&entry.body).into_owned())).collect()
}

fn fenced(outcome: Result<Seq>, at: Seq) {
    assert!(matches!(outcome, Err(Error::Fenced { found, .. }) if found == at), "{outcome:?}, and the end is {at}");
}

fn entries(expected: &[(u64, &str)]) -> Vec<(Seq, String)> {
    expected.iter().map(|(seq, body)| (Seq(*seq), (*body).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_is_fenced_wherever_its_record_lands() {
    if left_out() {
        return;
    }
    let (old, new) = owners().await;

    // After the new owner's: void for all, and the new owner goes on without having seen it.
    let of = shard(1);
    let first = old.append(of, Seq::ZERO, "a".into()).await.unwrap();
    let opened = new.append(of, first, "opened".into()).await.unwrap();
    fenced(old.append(of, first, "zombie".into()).await, opened);
    // The record lies at 3; the new owner expects what counts, and finds the hole by the offset.
    let next = new.append(of, opened, "b".into()).await.unwrap();
    assert_eq!(log(&old, of, 3).await, entries(&[(1, "a"), (2, "opened"), (4, "b")]));
    assert_eq!((next, new.log_end(of).await.unwrap(), old.log_end(of).await.unwrap()), (Seq(4), next, next));

    // Before the new owner's: it counts, and the new owner is refused and reads again.
    let of = shard(2);
    let first = old.append(of, Seq::ZERO, "a".into()).await.unwrap();
    assert_eq!(new.log_end(of).await.unwrap(), first);
    let last = old.append(of, first, "b".into()).await.unwrap();
    fenced(new.append(of, first, "opened".into()).await, last);
    new.append(of, last, "opened".into()).await.unwrap();
    assert_eq!(log(&old, of, 3).await, entries(&[(1, "a"), (2, "b"), (4, "opened")]));

    // On its way for long, and landing between two of the new owner's: void, though nothing is between.
    let of = shard(3);
    let first = old.append(of, Seq::ZERO, "a".into()).await.unwrap();
    let opened = new.append(of, first, "opened".into()).await.unwrap();
    lands(&old, of, first, "late").await;
    lands(&old, of, Seq::ZERO, "later").await;
    lands(&old, of, Seq(3), "after a void one").await;
    let next = new.append(of, opened, "b".into()).await.unwrap();
    assert_eq!(next, Seq(6));
    assert_eq!(log(&new, of, 3).await, entries(&[(1, "a"), (2, "opened"), (6, "b")]));

    // A whole chain of a zombie's, each following its last, is void from its first on.
    let of = shard(4);
    let first = old.append(of, Seq::ZERO, "a".into()).await.unwrap();
    let opened = new.append(of, first, "opened".into()).await.unwrap();
    let mut follows = first;
    for _ in 0..3 {
        follows = super::layout::seq(lands(&old, of, follows, "zombie").await);
    }
    let next = new.append(of, opened, "b".into()).await.unwrap();
    fenced(old.append(of, follows, "zombie".into()).await, next);
    assert_eq!(log(&old, of, 3).await, entries(&[(1, "a"), (2, "opened"), (6, "b")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_with_void_records_is_trimmed_to_one_that_counts() {
    if left_out() {
        return;
    }
    let (old, new) = owners().await;
    let of = shard(5);
    let first = old.append(of, Seq::ZERO, "a".into()).await.unwrap();
    let second = old.append(of, first, "b".into()).await.unwrap();
    lands(&old, of, first, "void").await;
    let fourth = new.append(of, second, "c".into()).await.unwrap();
    assert_eq!(fourth, Seq(4));
    // Nobody would ask for a void one, but for its place: all up to it.
    new.trim_log(of, Seq(3), 2).await.unwrap();
    let fresh = owners_of(&new).await;
    assert_eq!(fresh.log_end(of).await.unwrap(), fourth, "known from what is kept alone");
    let mut reader = super::fence::read_log(&fresh.shared, of, second).await.unwrap();
    assert_eq!(reader.next(10).await.unwrap()[0].seq, fourth);
    let last = fresh.append(of, fourth, "d".into()).await.unwrap();
    fresh.trim_log(of, fourth, 2).await.unwrap();
    let early = super::fence::read_log(&old.shared, of, second).await.map(drop);
    assert!(matches!(early, Err(Error::Trimmed { first }) if first == fourth), "{early:?}");
    fenced(old.append(of, fourth, "zombie".into()).await, last);
}

/// A third process on the cluster of another.
async fn owners_of(bus: &Kafka) -> Arc<Kafka> {
    Kafka::open(bus.shared.config.clone(), bus.shared.env.clone()).await.expect("the bus opens")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layout_of_a_newer_build_is_refused() {
    if left_out() {
        return;
    }
    let (bus, other) = owners().await;
    let initial = ClusterRecord {
        cluster_id: uuid::Uuid::from_u128(1),
        shards: ShardCount::DEFAULT,
        hash_scheme: 1,
        format: 1,
        created_at: WallMs(0),
    };
    let stored = bus.cluster(initial).await.expect("a record");
    // Of this build, or of one that said nothing yet.
    owners_of(&bus).await;
    let place = bus.shared.layout.cluster();
    let next = |layout: &'static str, follows: Seq| Record {
        headers: vec![(FOLLOWS, follows.to_string().into()), (super::cluster::HEADER, layout.into())],
        ..Record::new(crate::codec::encode(&stored).into())
    };
    bus.shared.write(To::Place(place.clone()), next("1", Seq(1))).await.expect("a write");
    owners_of(&bus).await;
    bus.shared.write(To::Place(place.clone()), next("2", Seq(2))).await.expect("a write");
    let refused = Kafka::open(bus.shared.config.clone(), bus.shared.env.clone()).await.map(drop);
    let code = refused.as_ref().map_err(|error| (error.code(), error.retryable()));
    assert_eq!(code, Err(("kafka_newer_layout", false)), "{refused:?}");
    // A process that was there before does not work with it either.
    let read = other.cluster_record().await;
    assert!(matches!(&read, Err(Error::Damaged { what }) if what.contains("layout 2")), "{read:?}");
    bus.shared.write(To::Place(place), next("seven", Seq(3))).await.expect("a write");
    let refused = Kafka::attach(bus.shared.config.clone(), bus.shared.env.clone()).await.map(drop);
    assert!(matches!(refused, Err(OpenError::NewerLayout { .. })), "{refused:?}");
}
