//! The simulation can fail: each deliberate bug is caught within a stated number of seeds.

use cellbus_simulator::simulate::{Config, Sabotage, run};

/// Within how many seeds of small runs each bug is caught.
fn seeds(bug: Sabotage) -> u64 {
    match bug {
        Sabotage::SkipTheFence => 10,
        Sabotage::AckBeforePublish => 20,
        Sabotage::ReadPositionOffByOne => 10,
        Sabotage::DropACompensation => 40,
        Sabotage::DoublePlacement => 10,
        Sabotage::KeepOldSessions => 20,
        Sabotage::StaleDirectory => 3,
        Sabotage::ForgetOutcomes => 10,
    }
}

fn caught(bug: Sabotage) {
    for seed in 0..seeds(bug) {
        let report = run(&Config { sabotage: Some(bug), ..Config::small(seed) });
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
    a_read_position_off_by_one => ReadPositionOffByOne,
    a_dropped_compensation => DropACompensation,
    a_double_placement => DoublePlacement,
    sessions_that_are_not_revoked => KeepOldSessions,
    a_stale_directory => StaleDirectory,
    forgotten_outcomes => ForgetOutcomes,
}
