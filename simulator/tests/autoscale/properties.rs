//! What holds whatever comes.

use cellbus_bus::ids::ShardCount;
use cellbus_directory::scale::Direction;
use cellbus_workflows::autoscale::{Policy, Tuning, size_max};
use proptest::prelude::*;

use cellbus_simulator::autoscale::{Ours, Plant, now, play, reading, settings};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Within the bounds, in steps, and without a panic, whatever is read.
    #[test]
    fn sizes_keep_to_bounds_and_steps(
        min in 0_u32..80, max in 0_u32..80, start in 1_u32..80,
        seen in prop::collection::vec((0_u64..1_000_000, 0_u64..100_000, 0_u64..1_000_000, 0_u32..80, 0_u32..3, any::<bool>()), 1..80),
    ) {
        let tuning = Tuning::default();
        let most = size_max(ShardCount::DEFAULT);
        let (low, high) = (min.clamp(1, max.clamp(1, most)), max.clamp(1, most));
        let mut policy = Policy::new(tuning.clone(), ShardCount::DEFAULT, Some(start));
        let mut done = 0;
        for (s, (waiting, running, ended, cells, draining, known)) in seen.into_iter().enumerate() {
            done += ended;
            let at = s as u64 * 1_000;
            let mut read = reading(at, cells, &Plant::default(), waiting as f64, running as f64, done as f64, None);
            read.cells_draining = draining;
            let decision = policy.decide(now(at), &settings(min, max), known.then_some(&read));
            let (before, desired) = (decision.before, decision.desired);
            if decision.direction == Direction::Hold && !known {
                prop_assert_eq!(before, desired);
            }
            if (low..=high).contains(&before) {
                prop_assert!((low..=high).contains(&desired), "{}", decision.reason);
                prop_assert!(desired <= before + tuning.out.step_max, "{}", decision.reason);
                if decision.direction != Direction::Undo {
                    prop_assert!(desired + tuning.r#in.step_max >= before, "{}", decision.reason);
                }
            }
            prop_assert!(!decision.reason.is_empty());
        }
    }

    /// Any steady load that the most cells can carry is carried, and not by many more than it needs.
    #[test]
    fn a_steady_load_is_carried(load in 1.0_f64..2_000.0, limited in any::<bool>()) {
        let plant = Plant { in_flight_max: limited.then_some(50), ..Plant::default() };
        let outcome = play(&plant, 1, 600, |_| load, &mut Ours::new(1, 40));
        prop_assert!(outcome.backlog_end < load, "{outcome:?}");
        let needs = (load / 80.0).ceil() as u32;
        let last = *outcome.cells.last().unwrap();
        prop_assert!(last <= needs + 1 + needs / 4, "{last} for {load}");
    }

    /// The same readings give the same decisions.
    #[test]
    fn it_depends_on_what_it_is_given_alone(loads in prop::collection::vec(0.0_f64..900.0, 1..20)) {
        let run = || {
            let mut ours = Ours::new(1, 32);
            let outcome = play(&Plant::default(), 1, 120, |at| loads[(at / 7.0) as usize % loads.len()], &mut ours);
            (outcome.cells, ours.reasons)
        };
        prop_assert_eq!(run(), run());
    }
}
