//! Many tenants: their topics are found, and soon after they are made.

use std::collections::BTreeSet;
use std::time::Duration;

use cellbus_bus::Bus as _;
use cellbus_bus::env::real;
use cellbus_bus::kafka::testing::{KafkaServer, left_out};
use cellbus_bus::kafka::{Config, Kafka};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::runtime::Handle;

/// The stated limit, for the long form.
const TENANTS: usize = 1_000;
/// Within so long a new topic is found, on a machine that is not busy with other tests.
const FOUND: Duration = Duration::from_secs(10);
/// Far above what anything here takes on a busy one.
const LIMIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_of_many_tenants_are_found() {
    if left_out() {
        return;
    }
    let long = std::env::var_os("CELLBUS_LONG").is_some();
    let tenants = if long { TENANTS } else { TENANTS / 10 };
    // So many topics are no one else's burden.
    let server = KafkaServer::start();
    let defaults = Config::new(Vec::new());
    let config = Config { discover_every: defaults.discover_every, ..server.config() };
    let env = real(Handle::current());
    let bus = Kafka::open(config.clone(), env.clone()).await.expect("the bus opens");
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", server.address()).set("acks", "all").create().expect("a producer");
    let topic = |number: usize| format!("{}.jobs.tenant-{number}", config.prefix);
    let produce = async |number: usize| {
        let (topic, body) = (topic(number), format!("job of {number}"));
        let record: FutureRecord<'_, [u8], str> = FutureRecord::to(&topic).payload(&body);
        producer.send(record, LIMIT).await.expect("a job");
    };
    // Takes jobs until so many tenants have had one.
    let take = async |wanted: usize| {
        let mut seen = BTreeSet::new();
        while seen.len() < wanted {
            let next = env.timeout(LIMIT, bus.ingress_next(Duration::from_secs(300))).await;
            let job = next.unwrap_or_else(|| panic!("{} of {wanted} were found", seen.len())).expect("a job");
            seen.insert(job.tenant().to_owned());
            assert_eq!(job.body(), &format!("job of {}", job.tenant().trim_start_matches("tenant-")));
            job.ack().await.expect("an ack");
        }
    };
    // The group is there before the topics are.
    let early = env.timeout(Duration::from_millis(200), bus.ingress_next(LIMIT)).await;
    assert!(early.is_none(), "there is no job yet");
    let most: Vec<String> = (0..tenants - 1).map(topic).collect();
    let began = env.mono();
    server.make_topics(&most, 1).await;
    let made = env.mono().since(began);
    let began = env.mono();
    for number in 0..tenants - 1 {
        produce(number).await;
    }
    take(tenants - 1).await;
    let all = env.mono().since(began);
    server.make_topics(&[topic(tenants - 1)], 1).await;
    let began = env.mono();
    produce(tenants - 1).await;
    take(1).await;
    let last = env.mono().since(began);
    println!(
        "{} tenants: topics made in {made:.1?}, a job of each taken in {all:.1?}, of one more in {last:.1?}",
        tenants - 1
    );
    assert!(last < if long { FOUND } else { LIMIT }, "the last made was found after {last:?}");
    // What waits is counted over all of them.
    while bus.ingress_depth().await.expect("a depth") > 0 {
        assert!(env.mono().since(began) < LIMIT, "all is acked");
        env.sleep(Duration::from_millis(100)).await;
    }
    let figures = bus.figures().await.expect("figures");
    let jobs = figures.topics.iter().find(|topic| topic.topic == "jobs").expect("jobs");
    let tenants = u64::try_from(tenants).expect("few");
    assert_eq!((jobs.partitions, jobs.messages, jobs.end, figures.ingress), (tenants, tenants, tenants, 0));
    let log = figures.topics.iter().find(|topic| topic.topic == "log").expect("the logs");
    assert_eq!((log.partitions, log.messages), (16, 0));
}
