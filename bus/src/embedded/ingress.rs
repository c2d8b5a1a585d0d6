//! The ingress: messages from producers, each given to one consumer at a time until it is acked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::codec;
use crate::contract::{DROPPED_FOR, Delivery, Error, Message, Result, Unacked};
use crate::env::Mono;
use crate::ids::Seq;

use super::Shared;
use super::intake::Write;
use super::stream::{Found, Stream, StreamId};

/// Which messages are out, and which are done with.
pub(super) struct Ingress {
    state: Mutex<State>,
}

struct State {
    /// Taken and not acked: until when.
    taken: BTreeMap<u64, Mono>,
    /// The same, by time.
    by_deadline: BTreeSet<(Duration, u64)>,
    /// Acked, beyond the first message that is not.
    acked: BTreeSet<u64>,
    /// The next that nobody has taken yet.
    fresh: u64,
}

impl State {
    fn take(&mut self, seq: u64, until: Mono) {
        self.forget(seq);
        self.taken.insert(seq, until);
        self.by_deadline.insert((until.0, seq));
    }
    /// What is still out comes again then, if not earlier.
    fn give_back(&mut self, seq: u64, at: Mono) {
        if let Some(until) = self.taken.get(&seq).copied()
            && until > at
        {
            self.take(seq, at);
        }
    }
    fn forget(&mut self, seq: u64) {
        if let Some(until) = self.taken.remove(&seq) {
            self.by_deadline.remove(&(until.0, seq));
        }
    }
}

/// What a consumer finds.
enum Pick {
    Message(u64),
    /// Nothing now; a message comes again at this time, if nothing new comes before.
    Wait(Option<Duration>),
}

impl Ingress {
    pub(super) fn new(acked: BTreeSet<u64>) -> Self {
        Self { state: Mutex::new(State { taken: BTreeMap::new(), by_deadline: BTreeSet::new(), acked, fresh: 0 }) }
    }
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pick(&self, stream: &Stream, now: Mono, redeliver_after: Duration) -> Pick {
        let mut state = self.state();
        let due = state.by_deadline.first().copied();
        if let Some((until, seq)) = due
            && until <= now.0
        {
            state.take(seq, now.after(redeliver_after));
            return Pick::Message(seq);
        }
        let (first, next) = {
            let kept = stream.state();
            (kept.first, kept.next)
        };
        state.fresh = state.fresh.max(first);
        while state.fresh < next {
            let seq = state.fresh;
            state.fresh += 1;
            if !state.acked.contains(&seq) {
                state.take(seq, now.after(redeliver_after));
                return Pick::Message(seq);
            }
        }
        Pick::Wait(due.map(|(until, _)| until.saturating_sub(now.0)))
    }

    /// The committer's: these are durably done with. Gives the first message that is not.
    pub(super) fn acked(&self, seqs: impl Iterator<Item = u64>, stream: &Stream) -> u64 {
        let mut state = self.state();
        let mut first = stream.state().first;
        for seq in seqs {
            state.forget(seq);
            if seq >= first {
                state.acked.insert(seq);
            }
        }
        while state.acked.remove(&first) {
            first += 1;
        }
        first
    }

    /// How many messages are not done with.
    pub(super) fn depth(&self, stream: &Stream) -> u64 {
        let acked = u64::try_from(self.state().acked.len()).unwrap_or(u64::MAX);
        let kept = stream.state();
        kept.next.saturating_sub(kept.first).saturating_sub(acked)
    }

    pub(super) fn each_acked(&self, tell: impl FnMut(u64)) {
        self.state().acked.iter().copied().for_each(tell);
    }
}

/// A message that was picked and not yet handed out: dropped, it is to be had again at once.
struct Picked<'a> {
    shared: &'a Shared,
    stream: &'a Stream,
    seq: Option<u64>,
}
impl Drop for Picked<'_> {
    fn drop(&mut self) {
        if let Some(seq) = self.seq {
            self.shared.ingress.state().take(seq, Mono(Duration::ZERO));
            self.stream.changed.notify_waiters();
        }
    }
}

/// The next message for a consumer.
pub(super) async fn next(shared: &Arc<Shared>, redeliver_after: Duration) -> Result<Box<dyn Delivery>> {
    let stream = shared.streams.get(StreamId::INGRESS);
    loop {
        let mut changed = std::pin::pin!(stream.changed.notified());
        changed.as_mut().enable();
        shared.running()?;
        match shared.ingress.pick(&stream, shared.env.mono(), redeliver_after) {
            Pick::Message(seq) => {
                let mut picked = Picked { shared, stream: &stream, seq: Some(seq) };
                let found = read_one(shared, &stream, seq).await?;
                picked.seq = None;
                let Some(message) = found else {
                    // Acked between the pick and the read.
                    shared.ingress.state().forget(seq);
                    continue;
                };
                let (tenant, headers, body) = decode(&message)?;
                return Ok(Box::new(Taken { shared: Arc::clone(shared), seq, tenant, headers, body }));
            }
            Pick::Wait(None) => changed.await,
            Pick::Wait(Some(wait)) => {
                let again = shared.env.sleep(wait);
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = again => {}
                }
            }
        }
    }
}

async fn read_one(shared: &Shared, stream: &Stream, seq: u64) -> Result<Option<Message>> {
    let mut messages = match stream.read(seq, 1, usize::MAX, &shared.segments) {
        Found::Messages(messages) => messages,
        Found::OnDisk(read) => shared.read(read).await?,
        Found::AtEnd | Found::Trimmed(_) => return Ok(None),
    };
    Ok(messages.pop())
}

/// What is not acked, looked at and not taken.
pub(super) async fn unacked(shared: &Arc<Shared>, after: Seq, max: usize) -> Result<Vec<Unacked>> {
    let stream = shared.streams.get(StreamId::INGRESS);
    let mut from = after.0.saturating_add(1);
    let mut found = Vec::new();
    while found.is_empty() {
        from = from.max(stream.state().first);
        let messages = match stream.read(from, max, READ_BYTES, &shared.segments) {
            Found::Messages(messages) => messages,
            Found::OnDisk(read) => shared.read(read).await?,
            Found::AtEnd => break,
            // Acked since the look at where it begins.
            Found::Trimmed(_) => continue,
        };
        let Some(last) = messages.last() else { break };
        from = last.seq.0 + 1;
        for message in messages {
            if shared.ingress.state().acked.contains(&message.seq.0) {
                continue;
            }
            let (tenant, headers, body) = decode(&message)?;
            found.push(Unacked { seq: message.seq, tenant, headers, body });
        }
    }
    Ok(found)
}

fn decode(message: &Message) -> Result<Stored> {
    codec::decode(&message.body)
        .map_err(|error| Error::Damaged { what: format!("message {} of ingress: {error}", message.seq) })
}

/// Bytes read at once.
const READ_BYTES: usize = 4 << 20;

/// Tenant, headers, body.
type Stored = (String, Vec<(String, String)>, Bytes);

/// A message for the ingress stream.
pub(super) fn encode(tenant: &str, headers: Vec<(String, String)>, body: Bytes) -> Bytes {
    let headers = headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let stored: Stored = (tenant.to_owned(), headers, body);
    codec::encode(&stored).into()
}

struct Taken {
    shared: Arc<Shared>,
    seq: u64,
    tenant: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

/// Not acked, it comes again soon. One that is acked was forgotten before.
impl Drop for Taken {
    fn drop(&mut self) {
        let at = self.shared.env.mono().after(DROPPED_FOR);
        self.shared.ingress.state().give_back(self.seq, at);
        self.shared.streams.get(StreamId::INGRESS).changed.notify_waiters();
    }
}

#[async_trait]
impl Delivery for Taken {
    fn tenant(&self) -> &str {
        &self.tenant
    }
    fn headers(&self) -> &[(String, String)] {
        &self.headers
    }
    fn body(&self) -> &Bytes {
        &self.body
    }
    async fn ack(self: Box<Self>) -> Result<()> {
        self.shared.failed()?;
        self.shared.intake.write(16, Write::Ack { seq: self.seq }).await.map(drop)
    }
    /// The embedded transport has no reply inboxes: who submits over HTTP is answered there.
    fn reply_to(&self) -> Option<&str> {
        None
    }
}
