//! What is told of an append whose answer was lost, and of subjects that hold what they should not.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::fence::Found;
use super::testing::{NatsServer, left_out};
use super::{Config, Nats, publish};
use crate::contract::{Bus as _, Error};
use crate::env::real;
use crate::ids::{Seq, ShardCount, ShardId};
use crate::nats::layout::Track;

async fn open() -> Arc<Nats> {
    let mut config = Config { prefix: NatsServer::prefix(), lanes: 1, ..NatsServer::shared().config() };
    config.limits.events_bytes_max = 1 << 20;
    config.trim_every = std::time::Duration::ZERO;
    Nats::open(config, real(Handle::current())).await.expect("the bus opens")
}
fn shard() -> ShardId {
    ShardId::new(3, ShardCount::DEFAULT).expect("below the default")
}

#[tokio::test]
async fn an_append_without_an_answer_is_looked_for() {
    if left_out() {
        return;
    }
    let bus = open().await;
    let shared = &bus.shared;
    // As `append` writes it, with marks that are known here.
    let write = async |expected: Seq, mark: &str| {
        let message = publish::message(Bytes::from("entry")).header(super::fence::MARK, mark);
        match shared.publish_if(shared.layout.subject(Track::log(shard())), message, expected.0).await.unwrap() {
            publish::Conditional::Written(seq) => Seq(seq),
            publish::Conditional::Refused => panic!("refused"),
        }
    };
    let found = async |expected: Seq, mark: &str| shared.found(shard(), expected, mark).await.unwrap();
    assert_eq!(found(Seq::ZERO, "mine").await, Found::Nothing, "it may still come");
    let first = write(Seq::ZERO, "mine").await;
    assert_eq!(found(Seq::ZERO, "mine").await, Found::Own(first));
    assert_eq!(found(Seq::ZERO, "theirs").await, Found::Other(first), "it never will be written");
    assert_eq!(found(first, "later").await, Found::Nothing);
    let second = write(first, "theirs").await;
    assert_eq!(found(Seq::ZERO, "mine").await, Found::Own(first), "another has gone on from it");
    assert_eq!(found(first, "mine").await, Found::Other(second));
    assert_eq!(found(Seq(second.0 + 5), "mine").await, Found::Other(second), "never an end of this log");
    bus.trim_log(shard(), second, 1).await.unwrap();
    assert_eq!(found(Seq::ZERO, "mine").await, Found::Untold(second), "trimmed: nobody can tell");
    // A refusal is one in any case.
    let refused = bus.append(shard(), Seq::ZERO, Bytes::from("late")).await;
    assert!(matches!(refused, Err(Error::Fenced { found, .. }) if found == second), "{refused:?}");
}

#[tokio::test]
async fn an_entry_that_is_no_appends_is_a_hole() {
    if left_out() {
        return;
    }
    let bus = open().await;
    let end = bus.append(shard(), Seq::ZERO, Bytes::from("entry")).await.unwrap();
    let subject = bus.shared.layout.subject(Track::log(shard()));
    bus.shared.publish_one(subject, publish::message(Bytes::from("noise"))).await.unwrap();
    let mut reader = bus.read_log(shard(), Seq::ZERO).await.unwrap();
    assert_eq!(reader.next(10).await.unwrap().last().map(|entry| entry.seq), Some(end));
    let noise = reader.next(10).await;
    assert!(matches!(noise, Err(Error::Trimmed { .. })), "{noise:?}");
}

#[tokio::test]
async fn streams_say_how_full_they_are() {
    if left_out() {
        return;
    }
    let bus = open().await;
    let named = |figures: &[super::StreamFigures], name: &str| {
        figures.iter().find(|figures| figures.stream == name).cloned().expect("every stream is there")
    };
    let empty = bus.figures().await.unwrap();
    let names: Vec<&str> = empty.iter().map(|figures| figures.stream.as_str()).collect();
    assert_eq!(names, ["jobs", "events", "snapshots", "queue_jobs_0", "queue_control_0", "log_0"]);
    let log = named(&empty, "log_0");
    assert_eq!((log.messages, log.bytes, log.oldest_at, log.bytes_max), (0, 0, None, None));
    assert_eq!(named(&empty, "events").bytes_max, Some(1 << 20));

    let first = bus.append(shard(), Seq::ZERO, Bytes::from("entry")).await.unwrap();
    let second = bus.append(shard(), first, Bytes::from("entry")).await.unwrap();
    let log = named(&bus.figures().await.unwrap(), "log_0");
    assert_eq!((log.messages, log.first_seq, log.last_seq), (2, first.0, second.0));
    assert!(log.bytes > 0 && log.oldest_at.is_some(), "{log:?}");
}
