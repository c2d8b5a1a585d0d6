//! One suite for every transport: what [`crate::contract`] says MUST hold, checked.
//!
//! A transport implements [`Subject`] and expands [`crate::bus_conformance!`] in a test file; that
//! gives one test for each promise. [`run`] runs them all in turn, for a simulated bus whose
//! [`Env`] has virtual time: nothing here uses any other clock, task or random source.
//!
//! Where the contract leaves a transport a choice (a trim may drop messages or not), the checks
//! take both.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::contract::{Bus, Message, Position, Queue, QueueKind, Reader};
use crate::env::{BoxFuture, Env};
use crate::ids::{Seq, ShardCount, ShardId};
use crate::job::Digest;

mod events;
mod ingress;
mod log;
mod members;
mod queue;
mod restart;
mod snapshot;

/// A bus under test, empty at first and nobody else's.
#[async_trait]
pub trait Subject: Send {
    /// The bus.
    fn bus(&self) -> Arc<dyn Bus>;
    /// The environment that it runs in.
    fn env(&self) -> Env;
    /// How many shards it has room for: at least 16.
    fn shards(&self) -> u16 {
        ShardCount::DEFAULT.get()
    }
    /// Lets go of the bus and comes back to it, as a process that was restarted. What was durable
    /// MUST be there again.
    async fn reopen(&mut self);
}

/// A promise: its name, and what checks it.
pub type Promise = (&'static str, fn(&mut dyn Subject) -> BoxFutureOn<'_>);
/// A future that borrows its subject.
pub type BoxFutureOn<'a> = std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// How long a check waits for what must come. Long, for busy machines: it is waited for only when
/// a check fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a check looks whether something comes that must not.
const GLANCE: Duration = Duration::from_millis(50);

macro_rules! promises {
    ($($module:ident :: $name:ident),* $(,)?) => {
        /// Every promise.
        pub const PROMISES: &[Promise] = &[$((stringify!($name), |subject| Box::pin($module::$name(subject)))),*];

        /// One `#[tokio::test]` for each promise of the bus contract. Takes an async function
        /// without arguments that makes a fresh [`Subject`](cellbus_bus::conformance::Subject), and
        /// may take another that says whether what it needs is missing and all are left out.
        #[macro_export]
        macro_rules! bus_conformance {
            ($make:path) => {
                fn never_left_out() -> bool {
                    false
                }
                $crate::bus_conformance!($make, never_left_out);
            };
            ($make:path, $left_out:path) => {
                $(
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $name() {
                        if !$left_out() {
                            $crate::conformance::check(stringify!($name), &mut $make().await).await;
                        }
                    }
                )*
            };
        }
    };
}

// `$` can't be written in the inner macro's repetition twice over, so the list stands once here
// and the outer macro fills it into both.
promises! {
    queue::items_come_in_order_each_once,
    queue::concurrent_publishers_keep_their_order,
    queue::a_reader_waits_and_is_woken,
    queue::a_read_is_bounded_and_never_empty,
    queue::a_dropped_read_takes_nothing,
    queue::queues_are_apart,
    queue::a_queue_has_an_end,
    queue::publish_all_reaches_every_queue,
    queue::a_position_with_the_right_digest_goes_on,
    queue::a_position_with_a_wrong_digest_begins_again,
    queue::a_position_beyond_the_end_begins_again,
    queue::depth_counts_what_comes_after,
    queue::trim_keeps_the_last_message,
    queue::a_reader_never_skips_what_was_trimmed,
    queue::a_message_has_a_largest_size,
    log::append_is_fenced,
    log::of_many_appends_to_one_end_one_wins,
    log::the_fence_holds_in_every_race,
    log::a_log_is_read_in_order_and_followed,
    log::trim_keeps_the_fence,
    log::a_trimmed_log_says_so,
    snapshot::snapshots_are_read_back,
    snapshot::snapshots_are_listed_oldest_first_and_trimmed,
    snapshot::a_snapshot_is_whole_or_not_there,
    events::events_come_in_order_after_a_place,
    events::events_from_now_on,
    events::events_after_no_place_begin_with_the_oldest,
    ingress::each_message_goes_to_one_consumer,
    ingress::what_is_not_acked_comes_again,
    ingress::what_is_dropped_comes_again_in_a_moment,
    ingress::what_is_acked_never_comes_again,
    ingress::a_dropped_wait_takes_nothing,
    ingress::what_is_not_acked_can_be_looked_at,
    members::a_member_lives_as_long_as_it_beats,
    members::a_member_may_have_any_id,
    members::of_many_cluster_records_one_is_kept,
    members::a_cluster_record_is_replaced_by_who_knows_it,
    restart::what_was_durable_is_there_again,
    restart::sequences_go_on_after_trim_and_restart,
    restart::ingress_survives_a_restart,
    restart::a_fresh_bus_is_accepting,
}

/// Runs every promise, each on a subject of its own.
///
/// # Panics
/// When one does not hold.
pub async fn run<S: Subject>(mut make: impl AsyncFnMut() -> S) {
    for (name, _) in PROMISES {
        check(name, &mut make().await).await;
    }
}

/// Checks the promise of this name.
///
/// # Panics
/// When it does not hold, or there is none of this name.
pub async fn check(name: &str, subject: &mut dyn Subject) {
    let (_, promise) = PROMISES.iter().find(|(known, _)| *known == name).expect("a known promise");
    promise(subject).await;
}

/// What must come, soon.
async fn soon<T>(env: &Env, what: &str, future: impl Future<Output = T>) -> T {
    match env.timeout(PATIENCE, future).await {
        Some(value) => value,
        None => panic!("{what}: nothing came within {PATIENCE:?}"),
    }
}

/// What must not come.
async fn not_yet<T>(env: &Env, what: &str, future: impl Future<Output = T>) {
    assert!(env.timeout(GLANCE, future).await.is_none(), "{what}: came too early");
}

/// Polls `future` once and drops it: what it gives if it needs no waiting.
async fn at_first_await<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    futures::future::poll_fn(|context| match future.as_mut().poll(context) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

/// Runs `futures` as tasks at once, and gives what they give, in order.
async fn at_once<T: Send + 'static>(env: &Env, futures: Vec<BoxFuture<T>>) -> Vec<T> {
    let mut answers = Vec::new();
    for future in futures {
        let (send, receive) = tokio::sync::oneshot::channel();
        env.spawn("conformance", async move {
            let _ = send.send(future.await);
        });
        answers.push(receive);
    }
    let mut values = Vec::new();
    for answer in answers {
        values.push(soon(env, "a concurrent call", answer).await.expect("the task ends with an answer"));
    }
    values
}

fn shard(index: u16) -> ShardId {
    ShardId::new(index, ShardCount::DEFAULT).expect("below the default count")
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
fn bodies(texts: impl IntoIterator<Item = u64>) -> Vec<Bytes> {
    texts.into_iter().map(body).collect()
}
fn position(message: &Message) -> Position {
    Position { seq: message.seq, digest: Digest::of(&message.body) }
}

/// The next `count` messages; sequences must grow.
async fn read(env: &Env, reader: &mut dyn Reader, count: usize) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    while messages.len() < count {
        let more = soon(env, "a message", reader.next(count - messages.len())).await.expect("a read");
        assert!(!more.is_empty(), "a read gives at least one message");
        messages.extend(more);
    }
    assert!(messages.is_sorted_by(|a, b| a.seq < b.seq), "sequences grow");
    messages
}
fn texts(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8_lossy(&message.body).into_owned()).collect()
}
fn numbers(range: impl IntoIterator<Item = u64>) -> Vec<String> {
    range.into_iter().map(|number| number.to_string()).collect()
}
const NOTHING: Position = Position { seq: Seq::ZERO, digest: Digest([0; 16]) };
