//! Members, and the cluster record.

use std::sync::Arc;
use std::time::Duration;

use crate::contract::{ClusterRecord, Member, MemberState, Role};
use crate::env::{BoxFuture, WallMs};
use crate::format::Build;
use crate::ids::ShardCount;

use super::{PATIENCE, Subject, at_once};

fn member(cell: &str, beat: u64) -> Member {
    Member {
        cell: cell.parse().expect("a cell id"),
        role: Role::Cell,
        address: format!("local:{cell}"),
        state: MemberState::Active,
        joined_at: WallMs(1),
        beat,
        build: Build::current(),
    }
}

pub(super) async fn a_member_lives_as_long_as_it_beats(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let (ttl, long) = (Duration::from_millis(400), Duration::from_secs(3600));
    bus.beat(member("cell-b", 1), long).await.expect("a beat");
    bus.beat(member("cell-a", 1), ttl).await.expect("a beat");
    bus.beat(member("cell-c", 1), long).await.expect("a beat");
    let draining = Member { state: MemberState::Draining, ..member("cell-b", 2) };
    bus.beat(draining.clone(), long).await.expect("a beat");
    assert_eq!(bus.members().await.expect("members"), [member("cell-a", 1), draining.clone(), member("cell-c", 1)]);
    bus.leave(&member("cell-c", 1).cell).await.expect("a leave");
    bus.leave(&member("cell-x", 1).cell).await.expect("a leave of nobody");

    // Kept up by its beats, well past its ttl...
    for beat in 2..8 {
        env.sleep(ttl / 4).await;
        bus.beat(member("cell-a", beat), ttl).await.expect("a beat");
        assert_eq!(bus.members().await.expect("members"), [member("cell-a", beat), draining.clone()]);
    }
    // ... and gone without them.
    let silent_since = env.mono();
    while bus.members().await.expect("members").len() > 1 {
        assert!(env.mono().since(silent_since) < PATIENCE, "a silent member is forgotten");
        env.sleep(ttl / 8).await;
    }
    assert_eq!(bus.members().await.expect("members"), [draining]);
}

pub(super) async fn a_member_may_have_any_id(subject: &mut dyn Subject) {
    let bus = subject.bus();
    let long = Duration::from_secs(3600);
    // All that an id may hold, whatever a transport makes a key of it.
    let ids = ["9", "A", "a", "a-b", "a.", "a..b", "a.b", "a_b", &"x".repeat(63)];
    for id in ids {
        bus.beat(member(id, 1), long).await.expect("a beat");
    }
    assert_eq!(bus.members().await.expect("members"), ids.map(|id| member(id, 1)));
    bus.leave(&member("a.b", 1).cell).await.expect("a leave");
    let left: Vec<_> = ids.iter().filter(|id| **id != "a.b").map(|id| member(id, 1)).collect();
    assert_eq!(bus.members().await.expect("members"), left, "only the one is gone");
}

fn record(number: u128) -> ClusterRecord {
    ClusterRecord {
        cluster_id: uuid::Uuid::from_u128(number),
        shards: ShardCount::DEFAULT,
        hash_scheme: 1,
        format: 1,
        created_at: WallMs(7),
    }
}

pub(super) async fn a_cluster_record_is_replaced_by_who_knows_it(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let raised = |format| ClusterRecord { format, ..record(1) };
    assert_eq!(bus.cluster_record().await.expect("an answer"), None);
    assert!(bus.replace_cluster(&record(1), raised(2)).await.is_err(), "there is none to be replaced");
    assert_eq!(bus.cluster_record().await.expect("an answer"), None, "and none was made");
    bus.cluster(record(1)).await.expect("a record");
    assert_eq!(bus.cluster_record().await.expect("an answer"), Some(record(1)));

    assert_eq!(bus.replace_cluster(&record(9), raised(5)).await.expect("an answer"), record(1), "another is there");
    let calls = (2..=9)
        .map(|format| -> BoxFuture<ClusterRecord> {
            let (bus, raised) = (Arc::clone(&bus), raised(format));
            // Refused while another write is under way: asked again, as a person would.
            Box::pin(async move {
                for _ in 0..100 {
                    if let Ok(stored) = bus.replace_cluster(&record(1), raised.clone()).await {
                        return stored;
                    }
                }
                panic!("no answer in 100 tries");
            })
        })
        .collect();
    let got = at_once(&env, calls).await;
    assert!((2..=9).any(|format| got[0] == raised(format)), "one of those that were offered");
    assert!(got.iter().all(|other| *other == got[0]), "exactly one was written: {got:?}");

    let last = ClusterRecord { format: 10, ..got[0].clone() };
    assert_eq!(bus.replace_cluster(&got[0], last.clone()).await.expect("an answer"), last);
    subject.reopen().await;
    let bus = subject.bus();
    assert_eq!(bus.cluster_record().await.expect("an answer"), Some(last.clone()), "durable");
    assert_eq!(bus.cluster(record(99)).await.expect("a record"), last);
}

pub(super) async fn of_many_cluster_records_one_is_kept(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let calls = (1..=16)
        .map(|number| -> BoxFuture<ClusterRecord> {
            let bus = Arc::clone(&bus);
            Box::pin(async move { bus.cluster(record(number)).await.expect("a record") })
        })
        .collect();
    let got = at_once(&env, calls).await;
    assert!((1..=16).any(|number| got[0] == record(number)), "one of those that were offered");
    assert!(got.iter().all(|other| *other == got[0]), "everybody gets the same: {got:?}");
    subject.reopen().await;
    assert_eq!(subject.bus().cluster(record(99)).await.expect("a record"), got[0]);
}
