//! What the autoscaler promises, with the real controller and real cells at 50,000 hosts in virtual time:
//! a step is drained in time, a square wave does not make it flap, and no job waits because a cell left;
//! and what it does about managers that are saturated, readings that are lost, controllers that die as they
//! decide, and a launcher that fails.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use cellbus_bus::ids::ShardCount;
use cellbus_directory::scale::Decision;
use cellbus_simulator::simulate::{Elapsed, Elastic, Trouble, elastic};

/// Seconds of a half of the square wave.
const HALF: f64 = 60.0;

/// How long the wave lasts: half an hour in the long form, which takes minutes of a core.
fn wave_seconds() -> f64 {
    if std::env::var_os("CELLBUS_LONG").is_some() { 1_800.0 } else { 360.0 }
}

/// One call at a time, of half a second in the middle: about two jobs a second of a cell.
fn config() -> Elastic {
    Elastic {
        seed: 5,
        hosts: 50_000,
        managers: 50,
        shards: ShardCount::new(64).expect("a number of shards"),
        way_max: Duration::from_millis(480),
        in_flight_max: 1,
        duration: Duration::from_secs(200),
        per_second: |_| 0.0,
        drain_target: Duration::from_secs(60),
        cells_stay: false,
        trouble: Trouble::None,
    }
}

/// What one cell does a second, when it has more than it can do.
const CELL_RATE: f64 = 1.9;

fn all_succeed(elapsed: &Elapsed) {
    assert!(elapsed.panics.is_empty(), "{:?}", elapsed.panics);
    let failed: Vec<_> = elapsed.jobs.iter().filter(|job| !job.succeeded).take(5).collect();
    assert!(failed.is_empty(), "of {} jobs: {failed:?}", elapsed.jobs.len());
}

/// Jobs that were submitted and had not ended, every half a second.
fn open(elapsed: &Elapsed) -> Vec<(f64, usize)> {
    let mut changes: Vec<(f64, i64)> = elapsed.jobs.iter().map(|job| (job.at, 1)).collect();
    changes.extend(elapsed.jobs.iter().filter_map(|job| Some((job.at + job.seconds?, -1))));
    changes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut now, mut seen, mut changes) = (0, Vec::new(), changes.into_iter().peekable());
    for half in 0.. {
        let at = f64::from(half) / 2.0;
        while let Some((_, by)) = changes.next_if(|(when, _)| *when <= at) {
            now += by;
        }
        seen.push((at, usize::try_from(now).expect("no job ends before it came")));
        if changes.peek().is_none() {
            break;
        }
    }
    seen
}

/// What is under way and on its way is no backlog: a call takes half a second.
fn backlog(open: usize) -> bool {
    open as f64 > 2.5 * STEP
}

/// Five times what a cell does, from the second minute on.
const STEP: f64 = 5.0 * CELL_RATE;
const STEP_AT: f64 = 60.0;

fn step(at: f64) -> f64 {
    if at < STEP_AT { 0.1 } else { STEP }
}

/// How long after the step there was a backlog; and how much at the most.
fn drained(elapsed: &Elapsed) -> (f64, usize) {
    let open = open(elapsed);
    let most = open.iter().map(|(_, open)| *open).max().unwrap_or_default();
    assert!(backlog(most), "there was none: {most}");
    (open.iter().filter(|(_, open)| backlog(*open)).map(|(at, _)| *at).fold(0.0, f64::max) - STEP_AT, most)
}

#[test]
fn a_step_is_drained_in_time() {
    let elapsed = elastic(&Elastic { per_second: step, ..config() });
    all_succeed(&elapsed);
    let first = elapsed.working.first().copied().expect("a cell came") - STEP_AT;
    let (gone, most) = drained(&elapsed);
    println!(
        "first new cell works after {first:.1} s, backlog of up to {most} gone after {gone:.1} s, sizes {:?}",
        elapsed.sizes
    );
    assert!((0.0..=10.0).contains(&first), "{:?}", elapsed.working);
    assert!((0.0..=75.0).contains(&gone), "{gone} s, {:?}", elapsed.sizes);
}

/// Four managers that take one operation at a time each do about eight a second. A cell with calls in line there
/// could do many times as much, and all that waits would be gone in time with more of them, if it were theirs to do.
#[test]
fn managers_that_are_saturated_bring_no_cells() {
    let elapsed = elastic(&Elastic {
        managers: 4,
        in_flight_max: 16,
        drain_target: Duration::from_secs(5),
        // What a cell does is known when it begins.
        per_second: |at| if at < 20.0 { 2.0 } else { 14.0 },
        duration: Duration::from_secs(90),
        trouble: Trouble::Managers { operations_max: 1 },
        ..config()
    });
    all_succeed(&elapsed);
    let most = open(&elapsed).iter().map(|(_, open)| *open).max().unwrap_or_default();
    let blocked = elapsed.decisions.iter().map(|(_, decision)| decision.inputs.blocked).max().unwrap_or_default();
    println!("up to {most} open, up to {blocked} wait for managers; sizes {:?}", elapsed.sizes);
    assert!(most > 200 && blocked > 100, "they are not saturated: {most} open, {blocked} wait for them");
    assert!(elapsed.sizes.iter().all(|(_, size)| *size == 1), "{:?}", elapsed.sizes);
}

/// Much more comes while it is not known.
#[test]
fn readings_that_are_lost_hold_the_size_and_say_so() {
    const LOST: f64 = 100.0;
    const FOUND: f64 = 150.0;
    let elapsed = elastic(&Elastic {
        per_second: |at| if at < LOST + 5.0 { 1.6 * CELL_RATE } else { 8.0 * CELL_RATE },
        trouble: Trouble::Readings { from: LOST, until: FOUND },
        ..config()
    });
    all_succeed(&elapsed);
    println!("sizes {:?}", elapsed.sizes);
    let size_at = |when: f64| elapsed.sizes.iter().rfind(|(at, _)| *at <= when).map(|(_, size)| *size);
    // What was read is good for five seconds.
    assert!(size_at(LOST) > Some(1), "{:?}", elapsed.sizes);
    assert_eq!(size_at(LOST + 6.0), size_at(FOUND), "{:?}", elapsed.sizes);
    assert!(size_at(FOUND + 20.0) > size_at(FOUND), "it goes on: {:?}", elapsed.sizes);
    // While it can keep what it decides it says what it does not know; then the trouble is over.
    let said = |from: f64, to: f64| {
        let within = elapsed.decisions.iter().filter(move |(at, _)| (from..to).contains(at));
        within.filter_map(|(_, decision)| decision.trouble.clone()).collect::<Vec<_>>()
    };
    assert_eq!(said(0.0, LOST), Vec::<String>::new());
    let unknown = said(LOST, FOUND);
    assert!(!unknown.is_empty() && unknown.iter().all(|why| why.contains("shards hold is not known")), "{unknown:?}");
    assert_eq!(elapsed.decisions.last().and_then(|(_, decision)| decision.trouble.clone()), None);
}

/// Up by four fifths of what a cell does, six times.
fn stairs(at: f64) -> f64 {
    (at / 20.0).ceil().clamp(1.0, 6.0) * 0.8 * CELL_RATE
}

/// Each of the first decisions is its controller's last act.
#[test]
fn controllers_that_die_as_they_decide_leave_whole_decisions_or_none() {
    const TIMES: usize = 5;
    let elapsed = elastic(&Elastic { per_second: stairs, trouble: Trouble::Controllers { times: TIMES }, ..config() });
    all_succeed(&elapsed);
    let kept = |decision: &&Decision| elapsed.decisions.iter().any(|(_, of)| **of == **decision);
    let (died, kept) = (elapsed.cut_off.len(), elapsed.cut_off.iter().filter(kept).count());
    let left = open(&elapsed).iter().rfind(|(at, _)| *at < 200.0).map_or(0, |(_, open)| *open);
    println!(
        "{died} died as they decided, {kept} of these decisions were kept; {left} open in the end; sizes {:?}",
        elapsed.sizes
    );
    assert_eq!(died, TIMES, "{:?}", elapsed.sizes);
    assert!((1..TIMES).contains(&kept), "some are kept, some are not: {kept}");
    // Each goes on from the last that was kept, and what is acted on was kept.
    for pair in elapsed.decisions.windows(2) {
        assert_eq!(pair[1].1.before, pair[0].1.desired, "{pair:?}");
    }
    for (at, size) in elapsed.sizes.iter().skip(1) {
        let kept = elapsed.decisions.iter().any(|(kept, decision)| kept <= at && decision.desired == *size);
        assert!(kept, "{size} cells at {at} s, which was never decided: {:?}", elapsed.decisions);
    }
    // In the end there are as many as it takes.
    assert!(!backlog(left), "{left} are open, {:?}", elapsed.sizes);
}

#[test]
fn a_launcher_that_fails_is_told_of_and_the_work_goes_on() {
    const MENDED: f64 = 110.0;
    let elapsed = elastic(&Elastic { per_second: step, trouble: Trouble::Launcher { until: MENDED }, ..config() });
    all_succeed(&elapsed);
    let (gone, most) = drained(&elapsed);
    println!("backlog of up to {most} gone after {gone:.1} s, sizes {:?}", elapsed.sizes);
    let wanted = |(at, decision): &&(f64, Arc<Decision>)| *at < MENDED && decision.desired > 1;
    let told = elapsed
        .decisions
        .iter()
        .filter(wanted)
        .all(|(_, decision)| decision.trouble.as_ref().is_some_and(|why| why.contains("no machine")));
    assert!(told && elapsed.decisions.iter().any(|decision| wanted(&decision)), "{:?}", elapsed.decisions);
    assert!(elapsed.working.first().is_some_and(|first| *first >= MENDED), "{:?}", elapsed.working);
    let meanwhile = elapsed.jobs.iter().filter_map(|job| Some(job.at + job.seconds?));
    let meanwhile = meanwhile.filter(|ended| (STEP_AT..MENDED).contains(ended)).count();
    assert!(meanwhile as f64 > 0.8 * CELL_RATE * (MENDED - STEP_AT), "the one cell did {meanwhile}");
    assert!(elapsed.decisions.last().is_some_and(|(_, decision)| decision.trouble.is_none()));
    // All that waits by then is to be gone in time.
    assert!(gone <= MENDED - STEP_AT + 75.0, "{gone} s, {:?}", elapsed.sizes);
}

fn wave(at: f64) -> f64 {
    let low = at >= wave_seconds() || ((at / HALF) as u64).is_multiple_of(2);
    if low { 0.3 } else { 3.6 * CELL_RATE }
}

fn square_wave() -> Elastic {
    Elastic { per_second: wave, duration: Duration::from_secs_f64(wave_seconds() + 240.0), ..config() }
}

/// Two tests look at it.
static WAVE: LazyLock<Elapsed> = LazyLock::new(|| elastic(&square_wave()));

#[test]
fn a_square_wave_does_not_make_it_flap() {
    let elapsed = &*WAVE;
    all_succeed(elapsed);
    let turns = elapsed.turns();
    println!("{} jobs; turns {turns:?}; sizes {:?}", elapsed.jobs.len(), elapsed.sizes);
    for half in 0..(wave_seconds() / HALF) as u32 {
        let (from, to) = (f64::from(half) * HALF, f64::from(half + 1) * HALF);
        let within = turns.iter().filter(|at| (from..to).contains(*at)).count();
        assert!(within <= 1, "half {half}: {turns:?} of {:?}", elapsed.sizes);
    }
    assert!(elapsed.left.len() >= 2, "cells leave once it is over: {:?}", elapsed.sizes);
}

/// Runs the same load twice, once with no cell ever leaving, and holds what the longest job took around each
/// time that a cell was told to leave against what the longest took there.
fn nobody_waits(config: &Elastic, elapsed: &Elapsed) {
    all_succeed(elapsed);
    let stayed = elastic(&Elastic { cells_stay: true, ..*config });
    all_succeed(&stayed);
    assert!(stayed.left.is_empty() && stayed.jobs.len() == elapsed.jobs.len());
    assert!(!elapsed.left.is_empty(), "no cell left: {:?}", elapsed.sizes);
    println!("{} jobs; sizes {:?}", elapsed.jobs.len(), elapsed.sizes);
    for left in &elapsed.left {
        let longest = |of: &Elapsed| {
            let near = of.jobs.iter().filter(|job| (left - 5.0..left + 20.0).contains(&job.at));
            near.map(|job| job.seconds.unwrap_or(f64::MAX)).fold(0.0, f64::max)
        };
        let (longest, usual) = (longest(elapsed), longest(&stayed));
        println!("a cell left at {left:.1} s: longest {longest:.2} s, {usual:.2} s had none left");
        assert!(longest <= usual + 1.0, "{longest} s, where it takes {usual} s if none leaves, at {left} s");
    }
}

#[test]
fn no_job_waits_because_a_cell_left() {
    nobody_waits(&square_wave(), &WAVE);
}

/// From what five cells do to what one does, a step a minute: cells leave while all have work.
fn falling(at: f64) -> f64 {
    ((5.0 - at / 60.0) * 0.75).clamp(0.2, 4.0) * CELL_RATE
}

#[test]
fn no_job_waits_because_a_cell_left_at_work() {
    let seeds = if std::env::var_os("CELLBUS_LONG").is_some() { 5 } else { 1 };
    for seed in 1..=seeds {
        let config = Elastic { seed, per_second: falling, duration: Duration::from_secs(300), ..config() };
        nobody_waits(&config, &elastic(&config));
    }
}
