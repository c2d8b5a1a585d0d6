//! Logs: the fence, order, trim.

use std::sync::Arc;

use crate::contract::Error;
use crate::env::BoxFuture;
use crate::ids::Seq;

use super::{Subject, at_once, body, not_yet, numbers, read, shard, soon, texts};

pub(super) async fn append_is_fenced(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    assert_eq!(bus.log_end(shard(1)).await.expect("an end"), Seq::ZERO);
    let first = bus.append(shard(1), Seq::ZERO, body(0)).await.expect("the first append");
    let second = bus.append(shard(1), first, body(1)).await.expect("the second append");
    assert!(second > first);
    for stale in [Seq::ZERO, first, Seq(second.0 + 1)] {
        match bus.append(shard(1), stale, body("stale")).await {
            Err(Error::Fenced { shard: of, expected, found }) => {
                assert_eq!((of, expected, found), (shard(1), stale, second));
            }
            other => panic!("an append at {stale} gave {other:?}"),
        }
    }
    assert_eq!(bus.log_end(shard(1)).await.expect("an end"), second);
    assert_eq!(bus.log_end(shard(2)).await.expect("an end"), Seq::ZERO, "another shard's log is another log");
    let mut reader = bus.read_log(shard(1), Seq::ZERO).await.expect("a reader");
    assert_eq!(texts(&read(&env, &mut *reader, 2).await), numbers(0..2));
    not_yet(&env, "a refused entry", reader.next(1)).await;
}

pub(super) async fn of_many_appends_to_one_end_one_wins(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let mut end = Seq::ZERO;
    for round in 0..20_u64 {
        let appends = (0..32_u64)
            .map(|owner| -> BoxFuture<_> {
                let bus = Arc::clone(&bus);
                Box::pin(async move { bus.append(shard(3), end, body(round * 100 + owner)).await })
            })
            .collect();
        let outcomes = at_once(&env, appends).await;
        let won: Vec<Seq> = outcomes.iter().filter_map(|outcome| outcome.clone().ok()).collect();
        assert_eq!(won.len(), 1, "exactly one of {outcomes:?}");
        let fenced = |outcome: &&Result<Seq, Error>| matches!(outcome, Err(Error::Fenced { .. }));
        assert_eq!(outcomes.iter().filter(fenced).count(), 31, "{outcomes:?}");
        end = won[0];
        assert_eq!(bus.log_end(shard(3)).await.expect("an end"), end);
    }
    let mut reader = bus.read_log(shard(3), Seq::ZERO).await.expect("a reader");
    assert_eq!(read(&env, &mut *reader, 20).await.last().map(|entry| entry.seq), Some(end));
}

pub(super) async fn the_fence_holds_in_every_race(subject: &mut dyn Subject) {
    // Eight owners of one shard, each of which takes the end from its last refusal, as zombies
    // and new owners do. Every entry names the end that its owner expected: a chain without a fork.
    let (bus, env) = (subject.bus(), subject.env());
    let owners = (0..8)
        .map(|_| -> BoxFuture<Vec<(Seq, Seq)>> {
            let bus = Arc::clone(&bus);
            Box::pin(async move {
                let (mut end, mut won) = (Seq::ZERO, Vec::new());
                for _ in 0..50 {
                    match bus.append(shard(4), end, body(end)).await {
                        Ok(seq) => {
                            won.push((end, seq));
                            end = seq;
                        }
                        Err(Error::Fenced { found, .. }) => end = found,
                        Err(other) => panic!("{other}"),
                    }
                }
                won
            })
        })
        .collect();
    let mut won: Vec<(Seq, Seq)> = at_once(&env, owners).await.into_iter().flatten().collect();
    won.sort_unstable();
    let mut reader = bus.read_log(shard(4), Seq::ZERO).await.expect("a reader");
    let entries = read(&env, &mut *reader, won.len()).await;
    let mut end = Seq::ZERO;
    for (entry, (expected, seq)) in entries.iter().zip(&won) {
        assert_eq!((*expected, entry.seq), (end, *seq));
        assert_eq!(entry.body, body(end), "the entry is the one that was acknowledged");
        end = *seq;
    }
    assert_eq!(bus.log_end(shard(4)).await.expect("an end"), end);
}

pub(super) async fn a_log_is_read_in_order_and_followed(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let mut follower = bus.read_log(shard(5), Seq::ZERO).await.expect("a reader");
    not_yet(&env, "an entry of an empty log", follower.next(1)).await;
    let beyond = bus.read_log(shard(5), Seq(1)).await.map(drop);
    assert!(matches!(beyond, Err(Error::Damaged { .. })), "a reader beyond the end would wait in silence: {beyond:?}");
    let mut ends = vec![Seq::ZERO];
    for number in 0..50_u64 {
        let end = ends.last().copied().unwrap_or_default();
        ends.push(bus.append(shard(5), end, body(number)).await.expect("an append"));
        assert_eq!(texts(&read(&env, &mut *follower, 1).await), numbers([number]));
    }
    for from in [0, 1, 25, 49] {
        let mut reader = bus.read_log(shard(5), ends[from]).await.expect("a reader");
        assert_eq!(texts(&read(&env, &mut *reader, 50 - from).await), numbers(from as u64..50));
    }
}

pub(super) async fn trim_keeps_the_fence(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    bus.trim_log(shard(6), Seq(3), 2).await.expect("a trim of an empty log");
    let mut end = Seq::ZERO;
    for number in 0..10 {
        end = bus.append(shard(6), end, body(number)).await.expect("an append");
    }
    bus.trim_log(shard(6), end, 2).await.expect("a trim");
    assert_eq!(bus.log_end(shard(6)).await.expect("an end"), end);
    for stale in [Seq::ZERO, Seq(end.0 - 1)] {
        let refused = bus.append(shard(6), stale, body("stale")).await;
        assert!(matches!(refused, Err(Error::Fenced { found, .. }) if found == end), "{refused:?}");
    }
    let mut reader = bus.read_log(shard(6), end).await.expect("a reader at the end");
    bus.append(shard(6), end, body(10)).await.expect("an append at the true end");
    assert_eq!(texts(&read(&env, &mut *reader, 1).await), numbers([10]));
}

pub(super) async fn a_trimmed_log_says_so(subject: &mut dyn Subject) {
    let (bus, env) = (subject.bus(), subject.env());
    let mut behind = bus.read_log(shard(7), Seq::ZERO).await.expect("a reader");
    let mut ends = Vec::new();
    for number in 0..10_u64 {
        let end = ends.last().copied().unwrap_or_default();
        ends.push(bus.append(shard(7), end, body(number)).await.expect("an append"));
    }
    bus.trim_log(shard(7), ends[4], 2).await.expect("a trim");
    // A trim may take place or not; a hole must never go unnoticed.
    match soon(&env, "an entry", behind.next(100)).await {
        Ok(entries) => assert_eq!(entries.first().map(|entry| entry.seq), Some(ends[0])),
        Err(Error::Trimmed { first }) => assert!(first <= ends[5]),
        Err(other) => panic!("{other}"),
    }
    let first = match bus.read_log(shard(7), Seq::ZERO).await {
        Err(Error::Trimmed { first }) => first,
        Ok(mut reader) => match soon(&env, "an entry", reader.next(1)).await {
            Ok(entries) => entries[0].seq,
            Err(Error::Trimmed { first }) => first,
            Err(other) => panic!("{other}"),
        },
        Err(other) => panic!("{other}"),
    };
    assert!(first <= ends[5], "nothing above what was asked for is dropped");
    let mut reader = bus.read_log(shard(7), ends[4]).await.expect("what was not trimmed can be read");
    assert_eq!(texts(&read(&env, &mut *reader, 5).await), numbers(5..10));
}
