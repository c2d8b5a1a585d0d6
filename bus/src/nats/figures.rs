//! How full the streams are.

use futures::future::join_all;

use super::layout::Family;
use super::{Nats, answer, kept};
use crate::contract::Result;
use crate::env::WallMs;

/// What one stream holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFigures {
    /// Its name without the prefix: `jobs`, `events`, `snapshots`, `queue_jobs_0`, `log_0`, ...
    pub stream: String,
    /// Messages kept.
    pub messages: u64,
    /// Their size, as the server counts it.
    pub bytes: u64,
    /// At how many bytes it is full; `None`: it has no limit of its own.
    pub bytes_max: Option<u64>,
    /// The lowest sequence that is kept: what is below was trimmed, taken or given up.
    pub first_seq: u64,
    /// The last sequence that was given out.
    pub last_seq: u64,
    /// When the oldest message that is kept was written; `None` where there is none.
    pub oldest_at: Option<WallMs>,
}

impl Nats {
    /// What each stream holds, ingress, events, snapshots and all lanes, asked at once.
    ///
    /// # Errors
    /// [`crate::contract::Error::Unavailable`] when one is not answered for.
    pub async fn figures(&self) -> Result<Vec<StreamFigures>> {
        let shared = &self.shared;
        shared.connected()?;
        let mut streams = vec![
            ("jobs".to_owned(), &shared.ingress_stream),
            ("events".to_owned(), &shared.events),
            ("snapshots".to_owned(), &shared.snapshots),
        ];
        for family in Family::ALL {
            for lane in 0..shared.layout.lanes {
                if let Some(stream) = shared.lanes.get(&(family, lane)) {
                    streams.push((family.lane(lane), stream));
                }
            }
        }
        let asked = streams.into_iter().map(|(name, stream)| async move {
            let info = stream.get_info().await.map_err(|error| answer::unavailable("ask for a stream", &error))?;
            let state = info.state;
            Ok(StreamFigures {
                stream: name,
                messages: state.messages,
                bytes: state.bytes,
                bytes_max: u64::try_from(info.config.max_bytes).ok().filter(|max| *max > 0),
                first_seq: state.first_sequence,
                last_seq: state.last_sequence,
                oldest_at: (state.messages > 0).then(|| kept::wall(state.first_timestamp.unix_timestamp_nanos())),
            })
        });
        join_all(asked).await.into_iter().collect()
    }
}
