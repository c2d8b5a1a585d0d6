//! Three brokers: what a lost one costs, and what too few of them mean.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cellbus_bus::env::real;
use cellbus_bus::ids::{Seq, ShardCount, ShardId};
use cellbus_bus::kafka::testing::{KafkaCluster, left_out};
use cellbus_bus::kafka::{Config, Kafka};
use cellbus_bus::{Bus, Env};
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const SHARDS: u16 = 4;
/// Far above what anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

fn shard(index: u16) -> ShardId {
    ShardId::new(index, ShardCount::new(SHARDS).expect("within the limits")).expect("one of them")
}

/// What one owner of a shard appends, and what it was told.
#[derive(Default)]
struct Told {
    acknowledged: Mutex<BTreeMap<Seq, String>>,
    count: AtomicUsize,
    /// The last that an append failed with.
    failed: Mutex<String>,
}

/// Appends one entry after the other, as an owner does: after a failure it asks for the end, and goes on
/// from there.
fn owner(
    bus: &Arc<Kafka>,
    env: &Env,
    shard: ShardId,
    told: &Arc<Told>,
    stop: &CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let (bus, env, told, stop) = (Arc::clone(bus), env.clone(), Arc::clone(told), stop.clone());
    async move {
        let (mut end, mut number) = (Seq::ZERO, 0);
        while !stop.is_cancelled() {
            let entry = format!("{shard}-{number}");
            number += 1;
            match bus.append(shard, end, entry.clone().into()).await {
                Ok(seq) => {
                    end = seq;
                    told.acknowledged.lock().expect("no test has failed").insert(seq, entry);
                    told.count.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => {
                    *told.failed.lock().expect("no test has failed") = error.to_string();
                    match bus.log_end(shard).await {
                        Ok(found) => end = found,
                        Err(_) => env.sleep(Duration::from_millis(50)).await,
                    }
                }
            }
        }
    }
}

async fn until(env: &Env, what: &str, mut holds: impl FnMut() -> bool) {
    let began = env.mono();
    while !holds() {
        assert!(env.mono().since(began) < LIMIT, "not within {LIMIT:?}: {what}");
        env.sleep(Duration::from_millis(20)).await;
    }
}

/// A shard whose log is led by one of the brokers that may be lost, and that broker.
async fn led_by_another(config: &Config, env: &Env) -> (u16, usize) {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", config.brokers.join(","));
    let topic = format!("{}.log", config.prefix);
    let found = env.blocking("metadata", move || {
        let admin: AdminClient<DefaultClientContext> = client.create().expect("a client");
        let metadata = admin.inner().fetch_metadata(Some(&topic), Duration::from_secs(30)).expect("an answer");
        let partitions = metadata.topics()[0].partitions();
        let other = partitions.iter().find(|partition| partition.leader() > 1).expect("leaders are spread");
        (u16::try_from(other.id()).expect("small"), usize::try_from(other.leader()).expect("small"))
    });
    found.await.expect("not stopped")
}

async fn whole_log(bus: &Arc<Kafka>, env: &Env, shard: ShardId) -> BTreeMap<Seq, String> {
    let end = bus.log_end(shard).await.expect("an end");
    let mut reader = bus.read_log(shard, Seq::ZERO).await.expect("a reader");
    let mut read = BTreeMap::new();
    while !read.contains_key(&end) {
        let more = env.timeout(LIMIT, reader.next(1_000)).await.expect("in time").expect("entries");
        read.extend(more.into_iter().map(|entry| (entry.seq, String::from_utf8_lossy(&entry.body).into_owned())));
    }
    read
}

/// A job goes in, and is taken and acked.
async fn jobs_pass(bus: &Arc<Kafka>, env: &Env, round: &str) {
    let began = env.mono();
    while let Err(error) = bus.ingress_publish("acme", Vec::new(), round.to_owned().into()).await {
        assert!(env.mono().since(began) < LIMIT, "{round}: {error}");
    }
    loop {
        let delivery = env.timeout(LIMIT, bus.ingress_next(Duration::from_secs(30))).await;
        let delivery = delivery.unwrap_or_else(|| panic!("{round}: no job")).expect("a job");
        let body = delivery.body().clone();
        delivery.ack().await.expect("an ack");
        // Of an earlier round, whose answer did not come.
        if &body[..] == round.as_bytes() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_are_lost_and_nothing_that_was_acknowledged_is() {
    if left_out() {
        return;
    }
    let mut brokers = KafkaCluster::start();
    let env = real(Handle::current());
    let config = Config { shards: SHARDS, answer_timeout: Duration::from_secs(5), ..brokers.config() };
    let bus = Kafka::open(config.clone(), env.clone()).await.expect("the bus opens");
    let stop = CancellationToken::new();
    let told: Vec<Arc<Told>> = (0..SHARDS).map(|_| Arc::default()).collect();
    let owners = TaskTracker::new();
    for (index, told) in (0..SHARDS).zip(&told) {
        env.spawn("owner", owners.track_future(owner(&bus, &env, shard(index), told, &stop)));
    }
    owners.close();
    let counts = || -> Vec<usize> { told.iter().map(|told| told.count.load(Ordering::SeqCst)).collect() };
    let all_go_on = async |after: &str| {
        let before = counts();
        let what = format!("every shard is appended to {after}");
        until(&env, &what, || counts().iter().zip(&before).all(|(now, before)| *now >= before + 20)).await;
    };
    all_go_on("with all brokers").await;
    jobs_pass(&bus, &env, "all brokers").await;

    // The leader of a shard's log, under load.
    let (of, leader) = led_by_another(&config, &env).await;
    brokers.node(leader).kill();
    all_go_on(&format!("after broker {leader}, which led shard {of}, was lost")).await;
    jobs_pass(&bus, &env, "two brokers").await;

    // With one broker of three nothing may be acknowledged, and why is said in words.
    let other = 5 - leader;
    brokers.node(other).kill();
    let said = |told: &Arc<Told>| told.failed.lock().expect("no test has failed").clone();
    let in_words = || told.iter().all(|told| said(told).contains("kafka_not_enough_replicas"));
    until(&env, "too few replicas are said in words", in_words).await;
    let before = counts();
    println!("with one broker of three: {}", said(&told[0]));

    brokers.node(other).restart();
    all_go_on("once there are two again").await;
    assert!(counts().iter().zip(&before).all(|(now, before)| now > before));
    jobs_pass(&bus, &env, "two brokers again").await;
    brokers.node(leader).restart();
    all_go_on("with all again").await;
    stop.cancel();
    assert!(env.timeout(LIMIT, owners.wait()).await.is_some(), "owners end");

    // Another process sees the same: what was acknowledged is there, at its place.
    let fresh = Kafka::open(config, env.clone()).await.expect("the bus opens");
    for (index, told) in (0..SHARDS).zip(&told) {
        let log = whole_log(&fresh, &env, shard(index)).await;
        let acknowledged = told.acknowledged.lock().expect("no test has failed").clone();
        for (seq, entry) in &acknowledged {
            assert_eq!(log.get(seq), Some(entry), "shard {index}, {seq}");
        }
        println!("shard {index}: {} acknowledged, {} in the log", acknowledged.len(), log.len());
    }
}
