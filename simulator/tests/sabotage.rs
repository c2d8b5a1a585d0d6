//! The simulation can fail: each deliberate bug is caught within a stated number of seeds.

use cellbus_bus::ids::ShardCount;
use cellbus_simulator::simulate::{Config, FaultKind, Faults, Sabotage, run};

/// Within how many seeds of small runs each bug is caught.
fn seeds(bug: Sabotage) -> u64 {
    match bug {
        Sabotage::SkipTheFence => 10,
        Sabotage::AckBeforePublish | Sabotage::AnswerBeforeAppend => 20,
        Sabotage::ReadPositionOffByOne => 10,
        Sabotage::DropACompensation => 40,
        Sabotage::DoublePlacement => 60,
        Sabotage::KeepOldSessions => 20,
        Sabotage::StaleDirectory => 3,
        Sabotage::ForgetOutcomes => 10,
        Sabotage::ForgetDedupe => 10,
        Sabotage::UncheckedCheckpoint => 60,
        Sabotage::BlindDirectory => 20,
        Sabotage::ActOnTheUnkept => 40,
        Sabotage::GoOnUnknowing => 20,
    }
}

/// Every usual fault, unless the bug shows only in another.
fn faults(bug: Sabotage) -> Faults {
    match bug {
        Sabotage::SkipTheFence
        | Sabotage::AckBeforePublish
        | Sabotage::AnswerBeforeAppend
        | Sabotage::ReadPositionOffByOne
        | Sabotage::DropACompensation
        | Sabotage::DoublePlacement
        | Sabotage::KeepOldSessions
        | Sabotage::StaleDirectory
        | Sabotage::ForgetOutcomes
        | Sabotage::ForgetDedupe => Faults::all(),
        Sabotage::UncheckedCheckpoint => Faults::only(FaultKind::Disk).with(FaultKind::Disk, 3.0),
        Sabotage::BlindDirectory => Faults::only(FaultKind::Amnesia),
        Sabotage::ActOnTheUnkept => "autoscaler=6,bus=12".parse().expect("a list of faults"),
        Sabotage::GoOnUnknowing => Faults::only(FaultKind::Stops).with(FaultKind::Stops, 10.0),
    }
}

fn caught(bug: Sabotage) {
    for seed in 0..seeds(bug) {
        let small = Config { sabotage: Some(bug), faults: faults(bug), ..Config::small(seed) };
        // A quarter of the shards is the most cells, and two of them are too few to choose from.
        let many = bug == Sabotage::ActOnTheUnkept;
        let shards = if many { ShardCount::new(32).expect("is a number of shards") } else { small.shards };
        let report = run(&Config { shards, ..small });
        if !report.good() {
            println!("{bug:?}: seed {seed}: {}", report.violations[0]);
            return;
        }
    }
    panic!("{bug:?} was not caught in {} seeds", seeds(bug));
}

macro_rules! bugs {
    ($($name:ident => $bug:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                caught(Sabotage::$bug);
            }
        )*
        #[test]
        fn every_bug_has_its_test() {
            assert_eq!(Sabotage::ALL, [$(Sabotage::$bug),*]);
        }
    };
}
bugs! {
    a_skipped_fence => SkipTheFence,
    an_ack_before_the_publish => AckBeforePublish,
    an_answer_before_the_append => AnswerBeforeAppend,
    a_read_position_off_by_one => ReadPositionOffByOne,
    a_dropped_compensation => DropACompensation,
    a_double_placement => DoublePlacement,
    sessions_that_are_not_revoked => KeepOldSessions,
    a_stale_directory => StaleDirectory,
    forgotten_outcomes => ForgetOutcomes,
    forgotten_keys => ForgetDedupe,
    an_unchecked_checkpoint => UncheckedCheckpoint,
    a_blind_directory => BlindDirectory,
    a_decision_that_was_not_kept => ActOnTheUnkept,
    a_stop_that_cannot_be_known => GoOnUnknowing,
}
