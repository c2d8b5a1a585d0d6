//! The NATS transport on three replicas: leaders die while owners race.
#![cfg(feature = "nats")]

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use cellbus_bus::contract::{Error, Message, Position, Queue, QueueKind, Reader};
use cellbus_bus::env::real;
use cellbus_bus::ids::{Seq, ShardCount, ShardId};
use cellbus_bus::nats::testing::{NatsServer, left_out};
use cellbus_bus::nats::{Config, Nats};
use cellbus_bus::{Bus, Env};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Long: elections take seconds on a busy machine. Waited for only when a test fails.
const PATIENCE: Duration = Duration::from_secs(120);

fn env() -> Env {
    real(Handle::current())
}
fn shard() -> ShardId {
    ShardId::new(1, ShardCount::DEFAULT).expect("below the default")
}
fn queue() -> Queue {
    Queue { shard: shard(), kind: QueueKind::Jobs }
}
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match env().timeout(PATIENCE, future).await {
        Some(value) => value,
        None => panic!("{what}: not within {PATIENCE:?}"),
    }
}
async fn open(config: &Config) -> Arc<Nats> {
    soon("the bus opens", async {
        loop {
            match Nats::open(config.clone(), env()).await {
                Ok(bus) => return bus,
                Err(error) => assert!(error.retryable(), "{error}: {error:?}"),
            }
            env().sleep(Duration::from_millis(200)).await;
        }
    })
    .await
}
async fn read(reader: &mut dyn Reader, count: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    while messages.len() < count {
        messages.extend(soon("a message", reader.next(count - messages.len())).await.expect("a read"));
    }
    messages
}

/// Appends until `stop`, and until it has been acked so many times, taking the end from its refusals, as
/// owners and zombies do. Gives what was acked: the end that was expected, and the sequence.
async fn owner(bus: Arc<Nats>, name: u64, acks: usize, stop: CancellationToken) -> Vec<(Seq, Seq)> {
    let (mut won, mut end) = (Vec::new(), Seq::ZERO);
    while won.len() < acks || !stop.is_cancelled() {
        match bus.append(shard(), end, Bytes::from(format!("{name} after {end}"))).await {
            Ok(seq) => {
                won.push((end, seq));
                end = seq;
                // Others get a turn.
                env().sleep(Duration::from_millis(3)).await;
            }
            Err(Error::Fenced { found, .. }) => end = found,
            Err(error) => {
                assert!(error.retryable(), "{error}");
                env().sleep(Duration::from_millis(50)).await;
                if let Ok(found) = bus.log_end(shard()).await {
                    end = found;
                }
            }
        }
    }
    won
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fence_holds_while_leaders_die() {
    if left_out() {
        return;
    }
    let mut servers = NatsServer::cluster(3);
    let mut config = Config {
        servers: servers.iter().map(NatsServer::url).collect(),
        replicas: 3,
        lanes: 1,
        answer_timeout: Duration::from_secs(2),
        ..servers[0].config()
    };
    config.limits.events_bytes_max = 1 << 20;
    let bus = open(&config).await;
    let mut queue_reader = bus.read_queue(queue(), Position::default()).await.expect("a reader");
    let mut follower = bus.read_log(shard(), Seq::ZERO).await.expect("a reader");
    // Owners that were done before a leader dies would leave nobody to append without it.
    let stop = CancellationToken::new();
    let owners: Vec<_> = (0..4)
        .map(|name| {
            let stop = stop.clone();
            let (send, receive) = tokio::sync::oneshot::channel();
            let config = config.clone();
            env().spawn("owner", async move {
                let bus = open(&config).await;
                let _ = send.send(owner(bus, name, 150, stop).await);
            });
            receive
        })
        .collect();

    let watcher = async_nats::connect(config.servers.as_slice()).await.unwrap();
    let stream = jetstream::new(watcher).get_stream_no_info("cellbus_log_0").await.unwrap();
    for round in 0..2_u64 {
        let before = bus.log_end(shard()).await.unwrap_or_default();
        let leader = soon("a leader", async {
            loop {
                if let Ok(info) = stream.get_info().await
                    && let Some(leader) = info.cluster.and_then(|cluster| cluster.leader)
                {
                    return leader;
                }
                env().sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        let number: usize = leader.trim_start_matches('n').parse().expect("n0, n1, n2");
        servers[number].kill();
        soon("appends go on without the leader", async {
            while !bus.log_end(shard()).await.is_ok_and(|end| end > before) {
                env().sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        soon("a publish without the leader", async {
            while bus.publish(queue(), vec![Bytes::from(round.to_string())]).await.is_err() {
                env().sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        servers[number].restart();
    }

    stop.cancel();
    let mut acked = Vec::new();
    for outcome in owners {
        acked.extend(soon("an owner", outcome).await.expect("it ends"));
    }
    acked.sort_unstable();
    // What is in the log is a chain, and every ack is a link of it. An append without an answer may
    // be one too.
    let end = soon("an end", async {
        loop {
            if let Ok(end) = bus.log_end(shard()).await {
                return end;
            }
            env().sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let (mut entries, mut last) = (std::collections::BTreeMap::new(), Seq::ZERO);
    while last < end {
        for entry in read(&mut *follower, 1).await {
            let text = String::from_utf8(entry.body.to_vec()).unwrap();
            assert!(text.ends_with(&format!("after {last}")), "a fork: {text:?} follows {last}");
            entries.insert(entry.seq, last);
            last = entry.seq;
        }
    }
    for (expected, seq) in acked {
        assert_eq!(entries.get(&seq), Some(&expected), "an acked entry is there");
    }
    let texts: Vec<Bytes> = read(&mut *queue_reader, 2).await.into_iter().map(|message| message.body).collect();
    assert!(texts.contains(&Bytes::from("0")), "{texts:?}");
}

/// An owner whose log nobody else writes to is not told of others: an append that comes right behind the one before
/// may reach a leader that has acknowledged that one and not yet put it out of its hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_alone_appends_as_fast_as_it_can() {
    const SHARDS: u16 = 128;
    const APPENDS: usize = 200;
    if left_out() {
        return;
    }
    let servers = NatsServer::cluster_with(3, "sync_interval: always");
    let mut config =
        Config { servers: servers.iter().map(NatsServer::url).collect(), replicas: 3, lanes: 1, ..servers[0].config() };
    config.limits.events_bytes_max = 1 << 20;
    let bus = open(&config).await;
    let owners = (0..SHARDS).map(|index| {
        let (bus, shard) = (Arc::clone(&bus), ShardId::new(index, ShardCount::DEFAULT).expect("below the default"));
        let (send, receive) = tokio::sync::oneshot::channel();
        env().spawn("owner", async move {
            let mut end = Seq::ZERO;
            let mut refused = Vec::new();
            for _ in 0..APPENDS {
                match bus.append(shard, end, Bytes::from_static(&[7; 4_096])).await {
                    Ok(seq) => end = seq,
                    Err(error) => refused.push(error.to_string()),
                }
            }
            let _ = send.send(refused);
        });
        receive
    });
    for owner in futures::future::join_all(owners).await {
        let refused = owner.expect("it ends");
        assert!(refused.is_empty(), "{refused:?}");
    }
}
