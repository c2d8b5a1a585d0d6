//! What the autoscaler promises, with the real controller and real cells at 50,000 hosts in virtual time:
//! a step is drained in time, a square wave does not make it flap, and no job waits because a cell left.

use std::sync::LazyLock;
use std::time::Duration;

use cellbus_bus::ids::ShardCount;
use cellbus_simulator::simulate::{Elapsed, Elastic, elastic};

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

#[test]
fn a_step_is_drained_in_time() {
    let rate = 5.0 * CELL_RATE;
    let step = |at: f64| if at < 60.0 { 0.1 } else { 5.0 * CELL_RATE };
    let elapsed = elastic(&Elastic { per_second: step, ..config() });
    all_succeed(&elapsed);
    let first = elapsed.working.first().copied().expect("a cell came") - 60.0;
    // What is under way and on its way is no backlog: a call takes half a second.
    let backlog = |open: usize| open as f64 > 2.5 * rate;
    let open = open(&elapsed);
    let most = open.iter().map(|(_, open)| *open).max().unwrap_or_default();
    let gone = open.iter().filter(|(_, open)| backlog(*open)).map(|(at, _)| *at).fold(0.0, f64::max) - 60.0;
    println!(
        "first new cell works after {first:.1} s, backlog of up to {most} gone after {gone:.1} s, sizes {:?}",
        elapsed.sizes
    );
    assert!((0.0..=10.0).contains(&first), "{:?}", elapsed.working);
    assert!(backlog(most), "there was none: {most}");
    assert!((0.0..=75.0).contains(&gone), "{gone} s, {:?}", elapsed.sizes);
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
