//! What a transport carries in a second, whatever it is: the rounds that the benchmarks of transports
//! have in common.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cellbus_bus::Bus;
use cellbus_bus::contract::{Delivery, Event, Position, Queue, QueueKind};
use cellbus_bus::ids::{ShardCount, ShardId, TenantId};
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

pub(crate) const BODY: usize = 512;
pub(crate) const ROUNDS: usize = 3;
pub(crate) const MESSAGES: u64 = 40_000;
pub(crate) const SHARDS: u16 = 256;
/// After which a message that is not acked comes again.
const REDELIVER_AFTER: Duration = Duration::from_secs(30);
/// Groups that wait for an owner; with more the intake waits.
const HANDED_MAX: usize = 4_096;
/// Messages of the ingress that go on together, as in a cell.
const TOGETHER: u64 = 256;

pub(crate) fn payload() -> Bytes {
    Bytes::from(vec![7; BODY])
}
pub(crate) fn shard(index: u64) -> ShardId {
    ShardId::new((index % u64::from(SHARDS)) as u16, ShardCount::DEFAULT).expect("below the default")
}
pub(crate) fn jobs(index: u64) -> Queue {
    Queue { shard: shard(index), kind: QueueKind::Jobs }
}
fn shard_of(index: u64, count: ShardCount) -> ShardId {
    ShardId::new((index % u64::from(count.get())) as u16, count).expect("below the count")
}

/// The median rate of some rounds, after one that warms up.
pub(crate) async fn measure(messages: u64, mut round: impl AsyncFnMut()) -> f64 {
    let mut rates = Vec::new();
    for number in 0..=ROUNDS {
        let began = Instant::now();
        round().await;
        if number > 0 {
            rates.push(messages as f64 / began.elapsed().as_secs_f64());
        }
    }
    rates.sort_by(f64::total_cmp);
    rates[ROUNDS / 2]
}

/// Large calls, to many queues at once.
pub(crate) async fn publish_all(bus: &Arc<dyn Bus>) -> f64 {
    measure(MESSAGES, async || {
        let mut tasks = JoinSet::new();
        for worker in 0..4_u64 {
            let bus = Arc::clone(bus);
            tasks.spawn(async move {
                for _ in 0..MESSAGES / 4_000 {
                    let items = (0..250).map(|index| (jobs(index + worker), vec![payload(); 4])).collect();
                    bus.publish_all(items).await.expect("a publish");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task");
        }
    })
    .await
}

/// Each publish waits for its ack, so many at once.
pub(crate) async fn publishes(bus: &Arc<dyn Bus>, at_once: u64) -> f64 {
    measure(MESSAGES, async || {
        let mut tasks = JoinSet::new();
        for worker in 0..at_once {
            let bus = Arc::clone(bus);
            tasks.spawn(async move {
                for _ in 0..MESSAGES / at_once {
                    bus.publish(jobs(worker), vec![payload()]).await.expect("a publish");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task");
        }
    })
    .await
}

/// Ingress as a cell does it, from the first publish to the last ack.
pub(crate) async fn intake<F: Future<Output = ()> + Send + 'static>(
    bus: &Arc<dyn Bus>,
    publish: impl Fn() -> F,
) -> f64 {
    measure(MESSAGES, async || {
        let publishing = tokio::spawn(publish());
        take_in(bus, MESSAGES, ShardCount::DEFAULT).await;
        publishing.await.expect("the producer ends");
    })
    .await
}

/// Takes jobs in as a cell does: to the queue of their home, then acked; so many at once.
async fn take_in(bus: &Arc<dyn Bus>, messages: u64, count: ShardCount) {
    let mut doing = FuturesUnordered::new();
    for number in 0..messages {
        while doing.len() >= bus.ingress_in_flight() {
            doing.next().await;
        }
        let delivery = bus.ingress_next(REDELIVER_AFTER).await.expect("a delivery");
        doing.push(async move {
            let queue = Queue { shard: shard_of(number, count), kind: QueueKind::Jobs };
            bus.publish(queue, vec![delivery.body().clone()]).await.expect("a publish");
            delivery.ack().await.expect("an ack");
        });
    }
    while doing.next().await.is_some() {}
}

/// Fenced appends, one on its way for each of 256 shards.
pub(crate) async fn appends(bus: &Arc<dyn Bus>) -> f64 {
    measure(MESSAGES, async || {
        let mut tasks = JoinSet::new();
        for index in 0..u64::from(SHARDS) {
            let bus = Arc::clone(bus);
            tasks.spawn(async move {
                let mut end = bus.log_end(shard(index)).await.expect("an end");
                for _ in 0..MESSAGES / u64::from(SHARDS) {
                    end = bus.append(shard(index), end, payload()).await.expect("an append");
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task");
        }
    })
    .await
}

/// 256 readers from the start of their queues to the end.
pub(crate) async fn reads(bus: &Arc<dyn Bus>) -> (f64, f64) {
    let each = MESSAGES / u64::from(SHARDS);
    for _ in 0..each {
        let items = (0..u64::from(SHARDS)).map(|index| (jobs(index), vec![payload()])).collect();
        bus.publish_all(items).await.expect("a publish");
    }
    let mut opened = 0.0;
    let rate = measure(MESSAGES, async || {
        let began = Instant::now();
        let readers = futures::future::join_all(
            (0..u64::from(SHARDS)).map(|index| bus.read_queue(jobs(index), Position::default())),
        )
        .await;
        opened = began.elapsed().as_secs_f64();
        let mut tasks = JoinSet::new();
        for reader in readers {
            let mut reader = reader.expect("a reader");
            tasks.spawn(async move {
                let mut seen = 0;
                while seen < each {
                    seen += reader.next(256).await.expect("messages").len() as u64;
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task");
        }
    })
    .await;
    (rate, opened)
}

/// Jobs that were taken from the ingress together, for one shard, and who waits until they are in its log.
struct Handed {
    jobs: usize,
    logged: oneshot::Sender<()>,
}

/// The bus's part of the whole way, as a cell goes it whose jobs' homes it has itself: what is there in the ingress
/// goes to the shards' owners, who append it, fenced, whereupon it is acked; nothing is done; a second fenced append
/// says so, for what was read together; an event each.
pub(crate) async fn whole_way<F: Future<Output = ()> + Send + 'static>(
    bus: &Arc<dyn Bus>,
    publish: impl Fn() -> F,
    count: ShardCount,
) -> f64 {
    let (done, mut outcomes) = mpsc::channel::<u64>(1_000);
    // Dropped with this, so that the next round has no owners beside it.
    let mut owners = JoinSet::new();
    let mut hands = Vec::new();
    for index in 0..u64::from(count.get()) {
        let (hand, handed) = mpsc::channel(HANDED_MAX);
        owners.spawn(own(Arc::clone(bus), shard_of(index, count), handed, done.clone()));
        hands.push(hand);
    }
    let hands: Arc<[_]> = hands.into();
    measure(MESSAGES, async || {
        let publishing = tokio::spawn(publish());
        let taking = {
            let (bus, hands) = (Arc::clone(bus), Arc::clone(&hands));
            tokio::spawn(async move { hand_in(&bus, MESSAGES, &hands).await })
        };
        let mut ended = 0;
        while ended < MESSAGES {
            ended += outcomes.recv().await.expect("an outcome");
        }
        publishing.await.expect("the producer ends");
        taking.await.expect("the intake ends");
    })
    .await
}

/// Takes jobs in as a cell does: what is there together, to the owners of the shards, then acked.
async fn hand_in(bus: &Arc<dyn Bus>, messages: u64, hands: &[mpsc::Sender<Handed>]) {
    let mut doing = FuturesUnordered::new();
    let (mut taken, mut in_flight) = (0, 0);
    while taken < messages {
        while in_flight >= bus.ingress_in_flight() {
            in_flight -= doing.next().await.expect("those that are in flight");
        }
        let mut groups: Vec<Vec<Box<dyn Delivery>>> = hands.iter().map(|_| Vec::new()).collect();
        let mut next = Some(bus.ingress_next(REDELIVER_AFTER).await);
        let until = taken + TOGETHER;
        while let Some(delivery) = next {
            groups[taken as usize % hands.len()].push(delivery.expect("a delivery"));
            taken += 1;
            next = (taken < until).then(|| bus.ingress_next(REDELIVER_AFTER).now_or_never()).flatten();
        }
        for (hand, group) in hands.iter().zip(groups).filter(|(_, group)| !group.is_empty()) {
            let (jobs, (logged, done)) = (group.len(), oneshot::channel());
            hand.send(Handed { jobs, logged }).await.expect("the owner is there");
            in_flight += jobs;
            doing.push(async move {
                done.await.expect("an append");
                let acks = group.into_iter().map(|delivery| async { delivery.ack().await.expect("an ack") });
                futures::future::join_all(acks).await;
                jobs
            });
        }
    }
    while doing.next().await.is_some() {}
}

/// What the owner of a shard asks of the bus, until nobody hands it anything.
async fn own(bus: Arc<dyn Bus>, shard: ShardId, mut handed: mpsc::Receiver<Handed>, done: mpsc::Sender<u64>) {
    let tenant: TenantId = "acme".parse().expect("a tenant");
    let mut end = bus.log_end(shard).await.expect("an end");
    let mut together = Vec::new();
    while handed.recv_many(&mut together, 256).await > 0 {
        let jobs = together.iter().map(|handed| handed.jobs).sum::<usize>();
        let entry = || Bytes::from(vec![7; BODY / 2 * jobs]);
        end = bus.append(shard, end, entry()).await.expect("an append");
        for handed in together.drain(..) {
            // Whoever does not wait any more has ended with an error of its own.
            let _ = handed.logged.send(());
        }
        end = bus.append(shard, end, entry()).await.expect("an append");
        let event = |number| Event { id: format!("e{number}"), tenant: tenant.clone(), body: payload() };
        bus.publish_events((0..jobs).map(event).collect()).await.expect("events");
        if done.send(jobs as u64).await.is_err() {
            return;
        }
    }
}
