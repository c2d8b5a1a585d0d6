//! A partition that is kept by key, as a table: read from its start, then followed. Who asks for it
//! gets at least what was written before.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::contract::{Error, Result};
use crate::env::Mono;

use super::Shared;
use super::feed::{Feed, Stop};
use super::layout::Place;

/// What stands under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) offset: i64,
    /// When this process saw it.
    pub(super) seen: Mono,
    pub(super) body: Bytes,
}

#[derive(Default)]
pub(super) struct Table(tokio::sync::Mutex<Option<State>>);

struct State {
    feed: Feed,
    rows: BTreeMap<Bytes, Row>,
}

impl Shared {
    /// All that stands in a table.
    pub(super) async fn rows(&self, table: &Table, place: &Place) -> Result<BTreeMap<Bytes, Row>> {
        self.reachable()?;
        let mut state = table.0.lock().await;
        loop {
            let (low, high) = self.watermarks(place).await?;
            let read = match &mut *state {
                // The brokers have lost what they had, or all of it has aged.
                Some(known) if known.feed.next > high || (known.feed.next < low && low == high) => Err(Stop::Gone),
                Some(known) => {
                    let follow = self.follow(known, high);
                    let followed = self.env.timeout(self.config.answer_timeout, follow).await;
                    followed.unwrap_or_else(|| {
                        Err(Stop::Failed(Error::Unavailable { reason: format!("Kafka, read {place}: no answer") }))
                    })
                }
                None => {
                    let feed = self.readers.open(place.clone(), low).await?;
                    *state = Some(State { feed, rows: BTreeMap::new() });
                    continue;
                }
            };
            match read {
                Ok(()) => return Ok(state.as_ref().map(|known| known.rows.clone()).unwrap_or_default()),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Gone) => *state = None,
            }
        }
    }

    async fn follow(&self, state: &mut State, to: i64) -> std::result::Result<(), Stop> {
        let mut ready = VecDeque::new();
        while state.feed.next < to {
            state.feed.more(&mut ready).await?;
            let seen = self.env.mono();
            for came in ready.drain(..) {
                let Some(key) = came.key else { continue };
                match came.body {
                    Some(body) => {
                        state.rows.insert(key, Row { offset: came.offset, seen, body });
                    }
                    None => {
                        state.rows.remove(&key);
                    }
                }
            }
        }
        Ok(())
    }
}
