//! The autoscaling policy in virtual time: what it promises, on traces that try to break it.

mod holds;
mod properties;

use cellbus_simulator::autoscale::{Keda, Ours, Plant, play};

fn turns_in(turns: &[f64], from: f64, to: f64) -> usize {
    turns.iter().filter(|at| (from..to).contains(*at)).count()
}

/// From one cell's worth of nothing to five times what a cell does: gone within the drain target plus a
/// quarter, and the first new cell works within 10 s.
#[test]
fn a_step_to_five_times_is_drained_in_time() {
    let mut ours = Ours::new(1, 32);
    let step = |at: f64| if at < 60.0 { 5.0 } else { 500.0 };
    let outcome = play(&Plant::default(), 1, 400, step, &mut ours);
    let log = ours.reasons.join("\n");
    assert!(outcome.first_new_s.is_some_and(|at| at - 60.0 <= 10.0), "{:?}\n{log}", outcome.first_new_s);
    assert!(outcome.last_backlog_s - 60.0 <= 75.0, "{} s\n{log}", outcome.last_backlog_s - 60.0);
    assert!(outcome.backlog_end < 1.0 && outcome.cells_max <= 12, "{outcome:?}\n{log}");
    assert!(outcome.turns.len() <= 1, "{:?}\n{log}", outcome.turns);
}

/// The same where nothing limits what a cell has under way, so that its rate is known only from when it
/// has more to do than it can.
#[test]
fn a_step_is_drained_in_time_without_a_limit_of_concurrent_work() {
    let plant = Plant { in_flight_max: None, ..Plant::default() };
    let mut ours = Ours::new(1, 32);
    let outcome = play(&plant, 1, 400, |at| if at < 60.0 { 5.0 } else { 500.0 }, &mut ours);
    let log = ours.reasons.join("\n");
    assert!(outcome.last_backlog_s - 60.0 <= 75.0, "{} s\n{log}", outcome.last_backlog_s - 60.0);
    assert!(outcome.turns.len() <= 1, "{:?}\n{log}", outcome.turns);
}

/// Thirty minutes of a square wave of two: no more than one change of direction in each half of it.
#[test]
fn a_square_wave_does_not_make_it_flap() {
    for (low, high) in [(20.0, 450.0), (0.0, 700.0), (150.0, 250.0)] {
        let mut ours = Ours::new(1, 32);
        let wave = |at: f64| if ((at / 60.0) as u64).is_multiple_of(2) { low } else { high };
        let outcome = play(&Plant::default(), 1, 1_800, wave, &mut ours);
        for half in 0..30 {
            let turns = turns_in(&outcome.turns, f64::from(half) * 60.0, f64::from(half + 1) * 60.0);
            assert!(turns <= 1, "{low} to {high}, half {half}: {:?}\n{}", outcome.turns, ours.reasons.join("\n"));
        }
        assert!(outcome.backlog_end < 1_000.0, "{low} to {high}: {outcome:?}");
    }
}

/// It empties: the size goes back to the least, step by step.
#[test]
fn what_is_not_needed_any_more_goes() {
    let mut ours = Ours::new(2, 32);
    let outcome = play(&Plant::default(), 2, 600, |at| if at < 120.0 { 500.0 } else { 0.0 }, &mut ours);
    assert_eq!(outcome.cells.last(), Some(&2), "{}", ours.reasons.join("\n"));
    let steps = outcome.cells.windows(2).filter(|pair| pair[1] < pair[0]);
    assert!(steps.clone().count() > 3 && steps.clone().all(|pair| pair[0] - pair[1] == 1), "one at a time");
}

/// Work that waits for saturated managers: not one cell more, however much it is.
#[test]
fn backlog_that_waits_for_managers_does_not_scale_out() {
    let plant = Plant { blocked: 20_000.0, ..Plant::default() };
    let mut ours = Ours::new(1, 32);
    let outcome = play(&plant, 1, 300, |_| 50.0, &mut ours);
    assert_eq!(outcome.cells_max, 1, "{}", ours.reasons.join("\n"));
}

/// One machine: from four cells on, each more makes all of them slower. It tries, sees that, undoes it,
/// and does not try again for a while.
#[test]
fn a_scale_out_that_made_things_worse_is_undone() {
    let plant = Plant {
        together_max: Some(|cells| if cells <= 4.0 { 400.0 } else { (400.0 - 60.0 * (cells - 4.0)).max(100.0) }),
        in_flight_max: None,
        ..Plant::default()
    };
    let mut ours = Ours::new(4, 32);
    let outcome = play(&plant, 4, 400, |_| 600.0, &mut ours);
    let log = ours.reasons.join("\n");
    assert!(log.contains("not tried again"), "{log}");
    assert_eq!(outcome.cells.last(), Some(&4), "{log}");
    assert!(outcome.cells_max > 4 && outcome.changes <= 12, "{log}");
    // The check can fail: with a size that helps, nothing is undone.
    let mut helped = Ours::new(4, 32);
    let _ = play(&Plant { in_flight_max: None, ..Plant::default() }, 4, 400, |_| 600.0, &mut helped);
    assert!(!helped.reasons.join("\n").contains("not tried again"), "{}", helped.reasons.join("\n"));
}

/// Against KEDA's plain rule on the same traces: late for less time. `cellbus simulate --scale` prints it all.
#[test]
fn it_is_late_for_less_time_than_the_plain_rule() {
    let step = |at: f64| if at < 60.0 { 5.0 } else { 500.0 };
    let ours = play(&Plant::default(), 1, 900, step, &mut Ours::new(1, 32));
    let keda = play(&Plant::default(), 1, 900, step, &mut Keda::new(500.0, 1, 32));
    assert!(ours.late_seconds < keda.late_seconds, "{} against {}", ours.late_seconds, keda.late_seconds);
}
