//! The void rule: which records of a log count.
//!
//! Kafka has no compare-and-set. But a partition has one order, which all see alike; so every record
//! names the record that its writer took for the last, and counts only if that was the last that
//! counts before it. All others are void, for every reader, for ever. It is compare-and-set, decided
//! by the order in which records came to lie.
//!
//! ```text
//!  offset     0      1      2      3      4      5
//!  follows    0      1      2      2      3      5        (sequences: offset + 1; 0: the beginning)
//!  counts     yes    yes    yes    void   yes?   ...
//!                                  a zombie's, which had read up to 2; 3 was written before it
//! ```
//!
//! A writer that finds its record right after the last that counts need read nothing back.

use crate::ids::Seq;

use super::layout::{after, seq};

/// Which records count, up to some place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// The last that counts; zero for none.
    pub(super) end: Seq,
    /// The first offset that has not been judged.
    pub(super) next: i64,
}

impl Chain {
    /// From a record that counts on, or from the beginning.
    pub(super) fn from(end: Seq) -> Self {
        Self { end, next: after(end) }
    }
    /// From the first record that is kept, at this offset. Logs are trimmed to records that count.
    pub(super) fn from_first_kept(low: i64) -> Self {
        if low == 0 { Self::from(Seq::ZERO) } else { Self::from(seq(low)) }
    }
    /// Judges the record at an offset that follows another, and gives whether it counts.
    pub(super) fn judge(&mut self, offset: i64, follows: Option<Seq>) -> bool {
        self.next = offset + 1;
        let counts = follows == Some(self.end);
        if counts {
            self.end = seq(offset);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_follows_something_older_is_void() {
        let mut chain = Chain::from(Seq::ZERO);
        let counts: Vec<bool> = [0, 1, 2, 2, 3, 4, 5, 0]
            .iter()
            .enumerate()
            .map(|(offset, follows)| chain.judge(offset as i64, Some(Seq(*follows))))
            .collect();
        assert_eq!(counts, [true, true, true, false, true, false, true, false]);
        assert_eq!(chain, Chain { end: Seq(7), next: 8 });
        assert!(!chain.judge(8, None), "what names nothing is not ours");
    }

    /// An owner: it appends to the end that it knows of, and learns from what it is told.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// Its record, which names what it takes for the end, lands now.
        Lands,
        /// It reads the log.
        Reads,
        /// It sends a record that lands at some later time.
        Sends,
        /// The oldest of those that are on their way lands.
        Late,
    }

    proptest! {
        /// Whatever lands when, the log is what compare-and-set would have made of it, and a reader
        /// from any record that counts sees the same.
        #[test]
        fn it_is_compare_and_set(steps in prop::collection::vec((0_usize..3, prop_oneof![
            Just(Step::Lands), Just(Step::Reads), Just(Step::Sends), Just(Step::Late)
        ]), 0..200)) {
            let mut log: Vec<Seq> = Vec::new();
            let mut model = Seq::ZERO;
            let mut counted = Vec::new();
            let mut known = [Seq::ZERO; 3];
            let mut on_their_way: [std::collections::VecDeque<Seq>; 3] = Default::default();
            for (owner, step) in steps {
                let lands = match step {
                    Step::Lands => Some(known[owner]),
                    Step::Late => on_their_way[owner].pop_front(),
                    Step::Sends => {
                        on_their_way[owner].push_back(known[owner]);
                        None
                    }
                    Step::Reads => {
                        known[owner] = model;
                        None
                    }
                };
                if let Some(follows) = lands {
                    log.push(follows);
                    // Compare and set.
                    if follows == model {
                        model = Seq(log.len() as u64);
                        counted.push(model);
                        known[owner] = model;
                    }
                }
            }
            for from in std::iter::once(Seq::ZERO).chain(counted.iter().copied()) {
                let mut chain = Chain::from(from);
                let seen: Vec<Seq> = (after(from)..log.len() as i64)
                    .filter(|offset| chain.judge(*offset, Some(log[*offset as usize])))
                    .map(seq)
                    .collect();
                let expected: Vec<Seq> = counted.iter().copied().filter(|one| *one > from).collect();
                prop_assert_eq!(seen, expected);
                prop_assert_eq!(chain.end, model);
            }
        }
    }
}
