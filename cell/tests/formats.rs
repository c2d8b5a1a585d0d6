//! Two builds in one cluster: an older one leaves a shard that holds what it does not know, whole and to a
//! newer one; and what cells write follows the cluster record.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::Bus as _;
use cellbus_bus::contract::{ClusterRecord, Member, MemberState, Queue, QueueKind, Role};
use cellbus_bus::format::Build;
use cellbus_bus::ids::{Seq, ShardId};
use cellbus_cell::gateway::ShardState;
use cellbus_cell::node;
use cellbus_directory::{Entry, JobState};
use cellbus_workflows::JobItem;
use support::{Cluster, provision};

const WAIT: Duration = Duration::from_secs(30);

async fn record(cluster: &Cluster) -> ClusterRecord {
    let (count, known) = (cluster.process.shard_count(), cluster.process.build().formats);
    node::cluster_record(cluster.bus.as_ref(), &cluster.env, count, known).await.unwrap()
}

async fn raise(cluster: &Cluster, record: &ClusterRecord) -> ClusterRecord {
    let raised = ClusterRecord { format: 2, ..record.clone() };
    assert_eq!(cluster.bus.replace_cluster(record, raised.clone()).await.unwrap(), raised);
    raised
}

async fn last_body(cluster: &Cluster, shard: ShardId) -> bytes::Bytes {
    let end = cluster.bus.log_end(shard).await.unwrap();
    let mut reader = cluster.bus.read_log(shard, Seq(end.0 - 1)).await.unwrap();
    reader.next(1).await.unwrap().remove(0).body
}

async fn left_to_a_newer_build(cluster: &Cluster, shard: ShardId) -> String {
    let mut said = String::new();
    cluster
        .until("the shard to be left to a newer build", || async {
            let rows = cluster.gateway.shards().await.map_err(|error| error.to_string())?;
            let others = rows.iter().filter(|row| row.shard != shard);
            match &rows[usize::from(shard.index())].state {
                ShardState::Failed { reason, .. } if reason.contains("shard_newer_format") => {
                    let open = others.filter(|row| row.state == ShardState::Open).count();
                    if open == rows.len() - 1 { Ok(()) } else { Err(format!("{open} others open")) }
                }
                state => Err(format!("{state:?}")),
            }
        })
        .await;
    for row in cluster.gateway.shards().await.unwrap() {
        if let ShardState::Failed { reason, .. } = row.state {
            said = reason;
        }
    }
    said
}

/// Jobs whose home is this shard, or is not.
fn jobs(cluster: &Cluster, of: &str, home: impl Fn(ShardId) -> bool) -> Vec<Arc<cellbus_bus::job::Job>> {
    let count = cluster.process.shard_count();
    (0..100).map(|i| provision(&format!("{of}-{i}"))).filter(|job| home(job.id.shard(count))).take(5).collect()
}

async fn all_succeed(cluster: &Cluster, jobs: &[Arc<cellbus_bus::job::Job>]) {
    for job in jobs {
        let ended = cluster.gateway.wait_job(job.id, WAIT).await.unwrap();
        assert_eq!(ended.row.state, JobState::Succeeded, "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_a_newer_build_is_left_as_it_is_and_taken_by_one() {
    let mut cluster = Cluster::start(1, 4, &[("vc-1", 20, 64)]).await;
    let first = record(&cluster).await;
    let shard = provision("one").id.shard(cluster.process.shard_count());
    cluster.gateway.submit(vec![provision("one")]).await.unwrap();
    all_succeed(&cluster, &[provision("one")]).await;
    cluster.cells.remove(0).kill();

    // A newer build has had it meanwhile.
    let before: Entry = Entry::decode(&last_body(&cluster, shard).await).unwrap();
    let end = cluster.bus.log_end(shard).await.unwrap();
    let newer = Entry { prev: end, jobs: None, control: None, records: vec![], ..before };
    let end = cluster.bus.append(shard, end, newer.encode_as(2)).await.unwrap();
    let waiting = jobs(&cluster, "waits", |home| home == shard);
    let queue = Queue { shard, kind: QueueKind::Jobs };
    let items = waiting.iter().map(|job| JobItem::Job(Arc::clone(job)).encode()).collect();
    cluster.bus.publish(queue, items).await.unwrap();

    let old = cluster.add_cell();
    let said = left_to_a_newer_build(&cluster, shard).await;
    assert!(said.contains("format 2 is not known to this build, which reads format 1; run a newer build"), "{said}");
    assert_eq!(cluster.process.shards_unreadable(), 1, "for the metric");
    // The others go on.
    let elsewhere = jobs(&cluster, "else", |home| home != shard);
    cluster.gateway.submit(elsewhere.clone()).await.unwrap();
    all_succeed(&cluster, &elsewhere).await;
    assert_eq!(cluster.bus.log_end(shard).await.unwrap(), end, "nothing was written");
    assert!(cluster.bus.read_log(shard, Seq::ZERO).await.is_ok(), "nor trimmed");
    assert_eq!(old.shards_open(), 3);

    // The record says so, and the older one hands over and leaves by itself.
    let raised = raise(&cluster, &first).await;
    let new = cluster.add_cell_of_build(Build::next(), &raised);
    cluster
        .until("the newer build to have every shard", || async {
            if new.shards_open() == 4 { Ok(()) } else { Err(format!("{} open", new.shards_open())) }
        })
        .await;
    all_succeed(&cluster, &waiting).await;
    cluster
        .until("the older cell to have left", || async {
            let members = cluster.bus.members().await.map_err(|error| error.to_string())?;
            if members.len() == 1 { Ok(()) } else { Err(format!("{members:?}")) }
        })
        .await;
    assert_eq!(cluster.process.outdated().unwrap().code(), "cluster_newer_format");
    assert_eq!(last_body(&cluster, shard).await[0], 2, "in the format of the record");
    assert_eq!(cluster.made_twice(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_of_a_newer_build_stops_its_shard_and_is_not_put_aside() {
    let cluster = Cluster::start(1, 4, &[("vc-1", 20, 64)]).await;
    let shard = provision("one").id.shard(cluster.process.shard_count());
    let mut item = JobItem::Job(provision("one")).encode().to_vec();
    item[0] = 2;
    cluster.bus.publish(Queue { shard, kind: QueueKind::Jobs }, vec![item.into()]).await.unwrap();
    let said = left_to_a_newer_build(&cluster, shard).await;
    assert!(said.contains("item"), "{said}");
    assert_eq!(cluster.gateway.queue().await.unwrap().dead_letters, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_follows_the_record() {
    let mut cluster = Cluster::start_with(0, 4, &[("vc-1", 20, 64)], 1 << 10).await;
    let first = record(&cluster).await;
    let new = cluster.add_cell_of_build(Build::next(), &first);
    cluster
        .until("every shard to be open", || async {
            if new.shards_open() == 4 { Ok(()) } else { Err(format!("{} open", new.shards_open())) }
        })
        .await;
    let before = jobs(&cluster, "before", |_| true);
    cluster.gateway.submit(before.clone()).await.unwrap();
    all_succeed(&cluster, &before).await;
    let shard = before[0].id.shard(cluster.process.shard_count());
    assert_eq!(last_body(&cluster, shard).await[0], 1, "what the older build reads");

    raise(&cluster, &first).await;
    // One job at a time, so that what is written meanwhile is little: the next snapshot is due early.
    let mut numbers = 0..1_000;
    let mut one_more = async |cluster: &Cluster| {
        let number = numbers.next().expect("the new format long before");
        let more = jobs(cluster, &format!("after-{number}"), |home| home == shard).remove(0);
        cluster.gateway.submit(vec![Arc::clone(&more)]).await.unwrap();
        all_succeed(cluster, &[more]).await;
    };
    while last_body(&cluster, shard).await[0] == 1 {
        cluster.env.sleep(Duration::from_millis(100)).await;
        one_more(&cluster).await;
    }
    loop {
        one_more(&cluster).await;
        if let Some(id) = cluster.bus.snapshots(shard).await.unwrap().pop()
            && cluster.bus.read_snapshot(id).await.unwrap().unwrap()[0] == 2
        {
            break;
        }
    }
    // Opened again from it.
    new.kill();
    let raised = cluster.bus.cluster_record().await.unwrap().unwrap();
    let next = cluster.add_cell_of_build(Build::next(), &raised);
    cluster
        .until("every shard to be open", || async {
            if next.shards_open() == 4 { Ok(()) } else { Err(format!("{} open", next.shards_open())) }
        })
        .await;
    all_succeed(&cluster, &before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_read_what_is_written_owns_nothing() {
    let mut cluster = Cluster::start_with(0, 16, &[("vc-1", 20, 64)], 1 << 20).await;
    let first = record(&cluster).await;
    // An old one that lives, and does nothing.
    let old = Member {
        cell: "old".parse().unwrap(),
        role: Role::Cell,
        address: "local:old".to_owned(),
        state: MemberState::Active,
        joined_at: cluster.env.wall(),
        beat: 1,
        build: Build::current(),
    };
    cluster.bus.beat(old, Duration::from_secs(3600)).await.unwrap();
    let new = cluster.add_cell_of_build(Build::next(), &first);
    cluster
        .until("the new cell to have its share", || async {
            // Bounded load: half, give or take a few.
            if (6..=10).contains(&new.shards_open()) { Ok(()) } else { Err(format!("{} open", new.shards_open())) }
        })
        .await;
    raise(&cluster, &first).await;
    cluster
        .until("the new cell to have all", || async {
            if new.shards_open() == 16 { Ok(()) } else { Err(format!("{} open", new.shards_open())) }
        })
        .await;
}
