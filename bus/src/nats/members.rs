//! Members: one key a cell in a bucket that forgets.
//!
//! The bucket's own age limit only clears away what is long dead. Whether a member lives is judged
//! by each process with its own clock: a beat counts for as long as its member has said, from when
//! this process first saw it. No two clocks are compared, and a process that has just begun gives
//! everybody one time to live.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::contract::{Error, Member, Result};
use crate::env::Mono;
use crate::ids::CellId;

use super::layout::Layout;
use super::{Shared, answer, publish};

/// A beat as it is stored: JSON, since every build that is alive must be able to read it, whatever
/// else it says.
#[derive(Serialize, Deserialize)]
struct Beat {
    member: Member,
    /// How long it counts.
    ttl_ms: u64,
}

/// By cell: the revision last seen, and when it was seen first.
#[derive(Default)]
pub(super) struct Members {
    seen: Mutex<BTreeMap<CellId, (u64, Mono)>>,
}

impl Members {
    /// Those of `beats` that live, by cell id.
    fn live(&self, beats: Vec<(u64, Member, Duration)>, now: Mono) -> Vec<Member> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *seen);
        let mut live = BTreeMap::new();
        for (revision, member, ttl) in beats {
            let first = match before.get(&member.cell) {
                Some((known, first)) if *known == revision => *first,
                Some(_) | None => now,
            };
            seen.insert(member.cell.clone(), (revision, first));
            if now.since(first) < ttl {
                live.insert(member.cell.clone(), member);
            }
        }
        live.into_values().collect()
    }
}

/// The latest message of a subject.
pub(super) struct Latest {
    pub(super) subject: String,
    pub(super) seq: u64,
    pub(super) body: Bytes,
    deleted: bool,
}

impl Shared {
    pub(super) async fn beat(&self, member: Member, ttl: Duration) -> Result<()> {
        let subject = format!("$KV.{}.{}", self.layout.members(), Layout::member_key(&member.cell));
        let beat = Beat { member, ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) };
        let value = serde_json::to_vec(&beat).expect("strings and numbers are JSON");
        self.publish_one(subject, publish::message(value.into())).await.map(drop).map_err(|error| match error {
            // Written or not, the next beat makes up for it.
            Error::Unknown { reason } | Error::Full { reason } => Error::Unavailable { reason },
            other => other,
        })
    }

    pub(super) async fn leave(&self, cell: &CellId) -> Result<()> {
        self.connected()?;
        let subject = format!("$KV.{}.{}", self.layout.members(), Layout::member_key(cell));
        let purged = self.members_stream.purge().filter(subject).await;
        purged.map(drop).map_err(|error| answer::unavailable("leave", &error))
    }

    pub(super) async fn members(&self) -> Result<Vec<Member>> {
        let bucket = self.layout.members();
        let latest = self.latest(&bucket, format!("$KV.{bucket}.>")).await?;
        let now = self.env.mono();
        let mut beats = Vec::with_capacity(latest.len());
        for beat in latest.into_iter().filter(|beat| !beat.deleted) {
            match serde_json::from_slice::<Beat>(&beat.body) {
                Ok(Beat { member, ttl_ms }) => beats.push((beat.seq, member, Duration::from_millis(ttl_ms))),
                // A newer build's, or somebody else's: it must not hide the others.
                Err(error) => tracing::warn!(subject = beat.subject, %error, "a member cannot be read"),
            }
        }
        Ok(self.members.live(beats, now))
    }

    /// The latest message of each subject below `subjects` in a bucket: one request, answered by
    /// any replica.
    pub(super) async fn latest(&self, bucket: &str, subjects: String) -> Result<Vec<Latest>> {
        self.connected()?;
        let doing = "read a bucket";
        let inbox = self.client.new_inbox();
        let subscribed = self.client.subscribe(inbox.clone()).await;
        let mut answers = subscribed.map_err(|error| answer::unavailable(doing, &error))?;
        let request = serde_json::json!({ "multi_last": [subjects] }).to_string();
        let asked = self.client.publish_with_reply(format!("$JS.API.DIRECT.GET.KV_{bucket}"), inbox, request.into());
        asked.await.map_err(|error| answer::unavailable(doing, &error))?;
        let mut latest = Vec::new();
        loop {
            let answer = self.env.timeout(self.config.answer_timeout, answers.next()).await.flatten();
            let Some(answer) = answer else {
                return Err(Error::Unavailable { reason: format!("NATS, {doing}: no answer") });
            };
            match answer.status.map(|status| status.as_u16()) {
                // The end, or nothing there.
                Some(204 | 404) => return Ok(latest),
                None | Some(200) => {}
                Some(status) => {
                    let said = answer.description.unwrap_or_default();
                    return Err(Error::Unavailable { reason: format!("NATS, {doing}: {status} {said}") });
                }
            }
            let header = |name: &str| answer.headers.as_ref().and_then(|headers| headers.get(name));
            let (Some(subject), Some(seq)) = (header("Nats-Subject"), header("Nats-Sequence")) else { continue };
            latest.push(Latest {
                subject: subject.as_str().to_owned(),
                seq: seq.as_str().parse().unwrap_or(0),
                deleted: header("KV-Operation").is_some(),
                body: answer.payload,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{MemberState, Role};
    use crate::env::WallMs;
    use crate::format::{Build, Formats};

    #[test]
    fn a_beat_counts_from_when_it_was_first_seen() {
        let member = Member {
            cell: "a".parse().unwrap(),
            role: Role::Cell,
            address: "http://a".to_owned(),
            state: MemberState::Active,
            joined_at: WallMs(0),
            beat: 1,
            build: Build::current(),
        };
        let ttl = Duration::from_secs(3);
        let members = Members::default();
        let at = |seconds, revision| {
            members.live(vec![(revision, member.clone(), ttl)], Mono(Duration::from_secs(seconds))).len()
        };
        assert_eq!(at(100, 7), 1, "seen for the first time");
        assert_eq!(at(102, 7), 1);
        assert_eq!(at(103, 7), 0, "silent for its time to live");
        assert_eq!(at(104, 8), 1, "it beats again");
        assert_eq!(members.live(Vec::new(), Mono(Duration::from_secs(105))).len(), 0);
        assert_eq!(at(200, 8), 1, "what is gone is forgotten");
    }

    #[test]
    fn members_of_other_builds_are_read() {
        let older = r#"{"member":{"cell":"a","role":"cell","address":"http://a","state":"active","joined_at":7,"beat":1},"ttl_ms":3000}"#;
        let beat: Beat = serde_json::from_str(older).unwrap();
        assert_eq!(beat.member.build, Build::default(), "what it does not say");
        let newer = r#"{"member":{"cell":"a","role":"cell","address":"http://a","state":"active","joined_at":7,"beat":1,
            "build":{"version":"9.0.0","formats":{"oldest":3,"newest":9},"since":1},"mood":"good"},"ttl_ms":3000,"x":[]}"#;
        let beat: Beat = serde_json::from_str(newer).unwrap();
        assert_eq!(beat.member.build.formats, Formats { oldest: 3, newest: 9 });
    }
}
