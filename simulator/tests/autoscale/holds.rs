//! What is not known holds the size, and the reason says what is not known.

use std::time::Duration;

use cellbus_bus::Mono;
use cellbus_bus::ids::{Epoch, ShardCount};
use cellbus_directory::scale::{Direction, Mode, Rate};
use cellbus_workflows::autoscale::{Policy, Reading, Tuning, size_max};

use cellbus_simulator::autoscale::{Plant, now, reading, settings};

/// A cluster with much to do, second by second.
fn busy(at_s: u64, cells: u32) -> Reading {
    let done = at_s as f64 * 100.0 * f64::from(cells);
    let oldest = Some(cellbus_bus::env::WallMs(1_700_000_000_000));
    reading(at_s * 1_000, cells, &Plant::default(), 20_000.0, 50.0 * f64::from(cells), done, oldest)
}

fn policy(desired: u32) -> Policy {
    Policy::new(Tuning::default(), ShardCount::DEFAULT, Some(desired))
}

#[test]
fn nothing_read_is_not_nothing_to_do() {
    let mut policy = policy(7);
    for s in 0..600 {
        let decision = policy.decide(now(s * 1_000), &settings(1, 32), None);
        assert_eq!((decision.desired, decision.direction), (7, Direction::Hold));
        assert!(decision.reason.contains("nothing has been read"), "{}", decision.reason);
        assert_eq!((decision.inputs.cells_active, decision.inputs.arrival), (None, None));
    }
}

#[test]
fn a_reading_that_grows_old_holds_and_says_so() {
    let mut policy = policy(1);
    (0..4).for_each(|s| {
        policy.decide(now(s * 1_000), &settings(1, 32), Some(&busy(s, 1)));
    });
    let last = busy(4, 1);
    let before = policy.decide(now(4_000), &settings(1, 32), Some(&last)).desired;
    let mut held = 0;
    for s in 10..300 {
        let decision = policy.decide(now(s * 1_000), &settings(1, 32), Some(&last));
        assert_eq!(decision.desired, before, "{}", decision.reason);
        held += u32::from(decision.reason.contains("s old"));
    }
    assert_eq!(held, 290);
    // The source is back: it goes on.
    let grown = (300..320).map(|s| policy.decide(now(s * 1_000), &settings(1, 32), Some(&busy(s, 1))).desired);
    assert!(grown.max() > Some(before));
}

#[test]
fn shards_that_are_not_known_hold() {
    let mut policy = policy(3);
    for s in 0..60 {
        let mut reading = busy(s, 3);
        reading.shards.pop();
        let decision = policy.decide(now(s * 1_000), &settings(1, 32), Some(&reading));
        assert_eq!((decision.desired, decision.inputs.shards_unknown), (3, 1));
        assert!(decision.reason.contains("1 shards"), "{}", decision.reason);
    }
}

#[test]
fn what_is_on_the_bus_and_not_known_holds() {
    let mut policy = policy(3);
    for s in 0..60 {
        let mut reading = busy(s, 3);
        reading.ingress = None;
        let decision = policy.decide(now(s * 1_000), &settings(1, 32), Some(&reading));
        assert_eq!(decision.desired, 3);
        assert!(decision.reason.contains("on the bus"), "{}", decision.reason);
    }
    // It is known again: nothing of what it lacked looks like work that came.
    let decision = policy.decide(now(60_000), &settings(1, 32), Some(&busy(60, 3)));
    assert_eq!((decision.desired, decision.inputs.arrival), (3, None));
}

#[test]
fn what_is_not_known_for_long_is_trouble() {
    let mut policy = policy(3);
    let mut set = settings(1, 32);
    for s in 0..20 {
        let trouble = policy.decide(now(s * 1_000), &set, None).trouble;
        assert_eq!(trouble.is_some(), s >= 5, "{s} s: {trouble:?}");
        assert!(trouble.is_none_or(|trouble| trouble.contains("nothing has been read")));
    }
    assert_eq!(policy.decide(now(20_000), &set, Some(&busy(20, 3))).trouble, None);
    // Where an operator says how many, nothing needs to be known.
    (set.mode, set.cells) = (Mode::Fixed, 3);
    assert!((21..60).all(|s| policy.decide(now(s * 1_000), &set, None).trouble.is_none()));
}

#[test]
fn what_a_cell_does_is_not_guessed() {
    let mut policy = policy(2);
    for s in 0..60 {
        // Much waits, nothing is done.
        let reading = reading(s * 1_000, 2, &Plant::default(), 10_000.0, 0.0, 0.0, None);
        let decision = policy.decide(now(s * 1_000), &settings(1, 32), Some(&reading));
        assert_eq!(decision.desired, 2);
        assert!(decision.reason.contains("not known yet"), "{}", decision.reason);
    }
}

#[test]
fn an_operator_needs_no_readings() {
    let mut policy = policy(2);
    let mut set = settings(1, 32);
    (set.mode, set.cells) = (Mode::Fixed, 9);
    let decision = policy.decide(now(0), &set, None);
    assert_eq!((decision.desired, decision.before, decision.direction), (9, 2, Direction::Out));
    set.cells = 10_000;
    assert_eq!(policy.decide(now(1_000), &set, None).desired, size_max(ShardCount::DEFAULT));
    set.mode = Mode::Paused;
    let decision = policy.decide(now(2_000), &set, Some(&busy(2, 1)));
    assert_eq!((decision.desired, decision.direction), (64, Direction::Hold));
    assert!(decision.reason.contains("paused"));
    // Bounds are an operator's too: at once.
    assert_eq!(policy.decide(now(3_000), &settings(1, 12), Some(&busy(3, 1))).desired, 12);
}

#[test]
fn unread_jobs_of_a_shard_full_of_blocked_work_are_not_counted() {
    let mut policy = policy(1);
    for s in 0..120 {
        let mut reading = reading(s * 1_000, 1, &Plant::default(), 10_000.0, 40.0, s as f64 * 80.0, None);
        (reading.shards[0].waiting_for_managers, reading.shards[0].full, reading.shards[0].unread) =
            (9_500, true, 50_000);
        let decision = policy.decide(now(s * 1_000), &settings(1, 32), Some(&reading));
        assert_eq!(decision.inputs.blocked, 59_500);
        assert!(decision.desired <= 3, "{}", decision.reason);
    }
    // One that still reads is counted.
    let mut reading = reading(200_000, 1, &Plant::default(), 10_000.0, 40.0, 16_000.0, None);
    (reading.shards[0].waiting_for_managers, reading.shards[0].unread) = (9_500, 50_000);
    assert_eq!(policy.decide(now(200_000), &settings(1, 32), Some(&reading)).inputs.blocked, 9_500);
}

#[test]
fn cells_that_are_full_of_calls_in_line_at_managers_are_no_reason_for_more() {
    let mut policy = policy(1);
    for s in 0..120 {
        let mut reading = reading(s * 1_000, 1, &Plant::default(), 5_000.0, 50.0, s as f64 * 10.0, None);
        reading.in_line = 40;
        let decision = policy.decide(now(s * 1_000), &settings(1, 32), Some(&reading));
        assert_eq!((decision.desired, decision.inputs.blocked), (1, 5_000), "{}", decision.reason);
    }
}

#[test]
fn shards_that_move_do_not_look_like_work_that_is_done() {
    let mut policy = policy(4);
    let (mut done, mut at) = (0.0, 0);
    for s in 0..30 {
        done += 100.0;
        at = s * 1_000;
        let mut reading = reading(at, 4, &Plant::default(), 0.0, 50.0, done, None);
        if s >= 20 {
            // Opened by another cell, which counts from nothing.
            (reading.shards[0].epoch, reading.shards[0].ended) = (Epoch(2), (s - 20) * 100);
        }
        policy.decide(now(at), &settings(1, 32), Some(&reading));
    }
    let decision = policy.decide(now(at), &settings(1, 32), None);
    assert_eq!(decision.inputs.completion, None, "without a reading nothing is claimed");
    let mut last = reading(at + 1_000, 4, &Plant::default(), 0.0, 50.0, 0.0, None);
    (last.shards[0].epoch, last.shards[0].ended) = (Epoch(2), 1_000);
    let decision = policy.decide(now(at + 1_000), &settings(1, 32), Some(&last));
    assert_eq!(decision.inputs.completion, Some(Rate(100_000)));
    assert_eq!(Mono(Duration::ZERO), Mono::default());
}

#[test]
fn jobs_that_no_cell_has_taken_count() {
    let shown = |ingress, blocked: bool| {
        let mut policy = policy(2);
        let decisions = (0..60).map(|s| {
            let mut reading = reading(s * 1_000, 2, &Plant::default(), 1_000.0, 100.0, s as f64 * 200.0, None);
            reading.ingress = Some(ingress);
            if blocked {
                for shard in &mut reading.shards {
                    shard.waiting_for_managers = shard.waiting;
                }
            }
            policy.decide(now(s * 1_000), &settings(1, 32), Some(&reading))
        });
        decisions.last().unwrap()
    };
    let (none, many) = (shown(0, false), shown(40_000, false));
    assert_eq!(many.inputs.unread, none.inputs.unread + 40_000);
    assert!(many.desired > none.desired, "{} and {}", none.reason, many.reason);
    // What all the rest waits for, they wait for too.
    let blocked = shown(40_000, true);
    assert_eq!(blocked.inputs.blocked, 41_000);
    assert!(blocked.desired <= none.desired, "{}", blocked.reason);
}
