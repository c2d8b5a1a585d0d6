//! The ingress: messages from producers, over the one pull consumer that all cells share.
//!
//! One task fetches while somebody waits, ahead by a bounded number, so that a wait that is dropped
//! takes nothing. A second watches over what is out: the server's own time until it gives a message
//! to another cell ([`super::Config::redeliver_after`]) is for cells that died; a live one says of
//! each message that it is still at work on it, until the time that its caller gave it is up, and
//! then gives it back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::{HeaderMap, Subject};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::Notify;

use crate::contract::{DROPPED_FOR, Delivery, Error, REPLY_TO, Result, Unacked};
use crate::env::Mono;
use crate::ids::Seq;

use super::{Shared, answer, closed, kept};

/// The name of the shared consumer.
const CONSUMER: &str = "cells";
/// Messages that one cell fetches ahead at the most: about 10 ms of full speed.
const AHEAD: usize = 256;
/// Messages that all cells together may have out. Above this the server waits for acks.
const OUT_MAX: i64 = 100_000;
/// Requests that may wait at the server: two for each of the most cells that there can be.
const WAITING_MAX: i64 = 4_096;
/// How long one request waits for messages. What the server gives to the request of a process that
/// is stopped or cut off is with it until the server's own time is up, so this is short.
const EXPIRES: Duration = Duration::from_secs(5);
/// Bytes looked at in one go.
const UNACKED_BYTES: usize = 4 << 20;
/// After an error.
const PAUSE: Duration = Duration::from_millis(300);

/// What is out: fetched, and neither acked nor given back.
#[derive(Default)]
pub(super) struct Ingress {
    state: Mutex<State>,
    /// Somebody waits for a message.
    wanted: Notify,
    /// A message has come.
    came: Notify,
    /// Something is due earlier than the watching task knows.
    sooner: Notify,
}

#[derive(Default)]
struct State {
    running: bool,
    waiting: usize,
    next_id: u64,
    ahead: VecDeque<(u64, Parts)>,
    out: BTreeMap<u64, Out>,
    /// Ids by when something is to be done about them.
    due: BTreeSet<(Duration, u64)>,
}

/// A message that is out.
struct Out {
    reply: Subject,
    /// When it is given back.
    until: Mono,
    /// When the server is told again that it is being worked on; none while nobody has it.
    renew_at: Option<Mono>,
}

impl Out {
    fn due(&self) -> Duration {
        self.renew_at.map_or(self.until.0, |renew| renew.0.min(self.until.0))
    }
}

/// A message as its consumer gets it.
struct Parts {
    tenant: String,
    headers: Vec<(String, String)>,
    body: Bytes,
    reply: Subject,
    answer_to: Option<String>,
    waiting: u64,
}

impl Ingress {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn insert(&self, state: &mut State, id: u64, out: Out) {
        let due = out.due();
        let sooner = state.due.first().is_none_or(|(first, _)| due < *first);
        state.due.insert((due, id));
        state.out.insert(id, out);
        if sooner {
            self.sooner.notify_one();
        }
    }
    fn remove(state: &mut State, id: u64) -> Option<Out> {
        let out = state.out.remove(&id)?;
        state.due.remove(&(out.due(), id));
        Some(out)
    }
}

/// Counts a wait for as long as it lasts.
struct Waiting<'a>(&'a Ingress);
impl<'a> Waiting<'a> {
    fn begin(ingress: &'a Ingress) -> Self {
        ingress.state().waiting += 1;
        ingress.wanted.notify_one();
        Self(ingress)
    }
}
impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

/// The next message for a consumer.
pub(super) async fn next(shared: &Arc<Shared>, redeliver_after: Duration) -> Result<Box<dyn Delivery>> {
    let ingress = &shared.ingress;
    start(shared);
    let _waiting = Waiting::begin(ingress);
    loop {
        let mut came = std::pin::pin!(ingress.came.notified());
        came.as_mut().enable();
        if shared.closed.is_cancelled() {
            return Err(closed());
        }
        if let Some(taken) = take(shared, redeliver_after) {
            return Ok(Box::new(taken));
        }
        tokio::select! {
            biased;
            () = shared.closed.cancelled() => return Err(closed()),
            () = came => {}
        }
    }
}

fn take(shared: &Arc<Shared>, redeliver_after: Duration) -> Option<Taken> {
    let now = shared.env.mono();
    let mut state = shared.ingress.state();
    let (id, parts) = state.ahead.pop_front()?;
    let out = Ingress::remove(&mut state, id)?;
    let renew_at = Some(now.after(shared.config.redeliver_after / 3));
    shared.ingress.insert(&mut state, id, Out { until: now.after(redeliver_after), renew_at, ..out });
    let low = state.ahead.len() < AHEAD / 2;
    drop(state);
    if low {
        shared.ingress.wanted.notify_one();
    }
    Some(Taken { shared: Arc::clone(shared), id, parts })
}

/// The two tasks, once.
fn start(shared: &Arc<Shared>) {
    if std::mem::replace(&mut shared.ingress.state().running, true) {
        return;
    }
    let fetching = Arc::clone(shared);
    shared.env.spawn("nats ingress", async move {
        let closed = fetching.closed.clone();
        tokio::select! {
            biased;
            () = closed.cancelled() => {}
            () = fetch(&fetching) => {}
        }
    });
    let watching = Arc::clone(shared);
    shared.env.spawn("nats ingress watch", async move {
        let closed = watching.closed.clone();
        tokio::select! {
            biased;
            () = closed.cancelled() => {}
            () = watch(&watching) => {}
        }
    });
}

/// Fetches for as long as somebody waits.
async fn fetch(shared: &Arc<Shared>) {
    let ingress = &shared.ingress;
    let mut consumer: Option<Consumer<pull::Config>> = None;
    loop {
        let wanted = ingress.wanted.notified();
        let room = {
            let state = ingress.state();
            if state.waiting > 0 && state.ahead.len() < AHEAD / 2 { AHEAD - state.ahead.len() } else { 0 }
        };
        if room == 0 {
            wanted.await;
            continue;
        }
        let fetched = match &consumer {
            Some(consumer) => {
                let mut connects = shared.connects();
                tokio::select! {
                    biased;
                    // The request is gone with the old connection.
                    Ok(()) = connects.changed() => Ok(()),
                    fetched = batch(shared, consumer, room) => fetched,
                }
            }
            None => match shared_consumer(shared).await {
                Ok(made) => {
                    consumer = Some(made);
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        if let Err(error) = fetched {
            tracing::debug!(%error, "ingress is fetched again");
            consumer = None;
            shared.env.sleep(PAUSE / 2 + PAUSE.mul_f64(shared.env.random_u64() as f64 / u64::MAX as f64 / 2.0)).await;
        }
    }
}

/// Makes the consumer that all cells share, or finds it.
async fn shared_consumer(shared: &Shared) -> Result<Consumer<pull::Config>> {
    let config = pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: shared.config.redeliver_after,
        max_deliver: -1,
        max_ack_pending: OUT_MAX,
        max_waiting: WAITING_MAX,
        ..pull::Config::default()
    };
    let doing = "open the ingress";
    shared.ingress_stream.create_consumer(config).await.map_err(|error| answer::unavailable(doing, &error))
}

/// One request, until it is answered in full or has expired.
///
/// Without heartbeats: async-nats 0.51 forgets to wait on after one (`Batch::poll_next`), and what then
/// comes is lost until the server's own time is up. A request that the server has forgotten ends five
/// seconds after it should have expired.
async fn batch(shared: &Arc<Shared>, consumer: &Consumer<pull::Config>, room: usize) -> Result<()> {
    let messages = consumer.batch().max_messages(room).expires(EXPIRES).messages().await;
    let mut messages = messages.map_err(|error| answer::unavailable("fetch", &error))?;
    while let Some(message) = messages.next().await {
        let message = message.map_err(|error| Error::Unavailable { reason: format!("NATS, fetch: {error}") })?;
        let waiting = message.info().map_or(0, |info| info.pending);
        let message = message.message;
        let Some(reply) = message.reply else { continue };
        let tenant = message.subject.rsplit('.').next().unwrap_or_default().to_owned();
        let (headers, answer_to) = headers(message.headers.as_ref(), &tenant);
        let parts = Parts { tenant, headers, body: message.payload, reply: reply.clone(), answer_to, waiting };
        // Given back before the server gives it to another by itself.
        let until = shared.env.mono().after(shared.config.redeliver_after / 2);
        let mut state = shared.ingress.state();
        let id = state.next_id;
        state.next_id += 1;
        state.ahead.push_back((id, parts));
        shared.ingress.insert(&mut state, id, Out { reply, until, renew_at: None });
        drop(state);
        shared.ingress.came.notify_one();
    }
    Ok(())
}

/// Names in lower case, in a fixed order, without those that are between a client and the server;
/// and where the producer waits for an answer.
fn headers(map: Option<&HeaderMap>, tenant: &str) -> (Vec<(String, String)>, Option<String>) {
    let (mut headers, mut answer_to) = (Vec::new(), None);
    for (name, values) in map.into_iter().flat_map(HeaderMap::iter) {
        let name = AsRef::<str>::as_ref(name).to_ascii_lowercase();
        for value in values {
            if name == REPLY_TO {
                answer_to = Some(value.as_str().to_owned()).filter(|subject| is_inbox(subject, tenant));
            } else if !name.starts_with("nats-") {
                headers.push((name.clone(), value.as_str().to_owned()));
            }
        }
    }
    headers.sort();
    (headers, answer_to)
}

/// A cell may publish where its producers may not, so it answers to inboxes only: the common ones,
/// or those that are the tenant's own.
fn is_inbox(subject: &str, tenant: &str) -> bool {
    let mut tokens = subject.split('.');
    let first = tokens.next().unwrap_or_default();
    let known = first == "_INBOX" || first.strip_prefix("_INBOX_") == Some(tenant);
    let rest: Vec<&str> = tokens.collect();
    let literal = |token: &&str| {
        !token.is_empty() && !token.contains(['*', '>']) && token.bytes().all(|byte| byte.is_ascii_graphic())
    };
    known && subject.len() <= 256 && !rest.is_empty() && rest.iter().all(literal)
}

/// Says of what is out that it is worked on, and gives back what has been out for too long.
async fn watch(shared: &Arc<Shared>) {
    let ingress = &shared.ingress;
    loop {
        let sooner = ingress.sooner.notified();
        let now = shared.env.mono();
        let mut said = Vec::new();
        let wait = {
            let mut state = ingress.state();
            loop {
                let Some((due, id)) = state.due.first().copied() else { break None };
                if due > now.0 {
                    break Some(due - now.0);
                }
                let Some(out) = Ingress::remove(&mut state, id) else {
                    state.due.remove(&(due, id));
                    continue;
                };
                if out.until <= now {
                    // Only what nobody has taken is still among those ahead, and it is the oldest.
                    state.ahead.retain(|(ahead, _)| *ahead != id);
                    said.push((out.reply, "-NAK"));
                } else {
                    said.push((out.reply.clone(), "+WPI"));
                    let renew_at = Some(now.after(shared.config.redeliver_after / 3));
                    ingress.insert(&mut state, id, Out { renew_at, ..out });
                }
            }
        };
        for (reply, word) in said {
            shared.say(reply, word).await;
        }
        match wait {
            None => sooner.await,
            Some(wait) => {
                let due = shared.env.sleep(wait);
                tokio::select! {
                    biased;
                    () = sooner => {}
                    () = due => {}
                }
            }
        }
    }
}

impl Shared {
    /// Best effort: what the server does not hear, it does by itself when its own time is up.
    async fn say(&self, reply: Subject, word: &'static str) {
        if let Err(error) = self.client.publish(reply, Bytes::from_static(word.as_bytes())).await {
            tracing::debug!(%error, word, "not said to NATS");
        }
    }

    /// What no cell has acked, looked at and not taken: a consumer would have to be the one that all share.
    pub(super) async fn unacked(&self, after: Seq, max: usize) -> Result<Vec<Unacked>> {
        self.connected()?;
        let all = self.layout.ingress_subject("*");
        let (mut found, mut bytes, mut from) = (Vec::new(), 0, after.0.saturating_add(1));
        while found.len() < max && bytes < UNACKED_BYTES {
            let Some(kept) = kept::next(&self.ingress_stream, &all, from).await? else { break };
            from = kept.seq + 1;
            bytes += kept.body.len();
            let tenant = kept.subject.rsplit('.').next().unwrap_or_default().to_owned();
            let (headers, _) = headers(Some(&kept.headers), &tenant);
            found.push(Unacked { seq: Seq(kept.seq), tenant, headers, body: kept.body });
        }
        Ok(found)
    }

    /// How many messages no cell has acked: what is acked is no longer there.
    pub(super) async fn ingress_depth(&self) -> Result<u64> {
        self.connected()?;
        let info = self.ingress_stream.get_info().await;
        Ok(info.map_err(|error| answer::unavailable("ask for a stream", &error))?.state.messages)
    }

    /// Gives back all that is out, so that others get it at once.
    pub(super) async fn give_back(&self) {
        let out = {
            let mut state = self.ingress.state();
            state.ahead.clear();
            state.due.clear();
            std::mem::take(&mut state.out)
        };
        for (_, out) in out {
            self.say(out.reply, "-NAK").await;
        }
    }
}

struct Taken {
    shared: Arc<Shared>,
    id: u64,
    parts: Parts,
}

/// Not acked, it is given back in a moment by the watching task. One that is acked is not out any more.
impl Drop for Taken {
    fn drop(&mut self) {
        let ingress = &self.shared.ingress;
        let mut state = ingress.state();
        let Some(out) = Ingress::remove(&mut state, self.id) else { return };
        let until = out.until.min(self.shared.env.mono().after(DROPPED_FOR));
        ingress.insert(&mut state, self.id, Out { until, renew_at: None, ..out });
    }
}

#[async_trait]
impl Delivery for Taken {
    fn tenant(&self) -> &str {
        &self.parts.tenant
    }
    fn headers(&self) -> &[(String, String)] {
        &self.parts.headers
    }
    fn body(&self) -> &Bytes {
        &self.parts.body
    }
    /// Not answered by the server: an ack that is lost with the connection means that the message
    /// comes again, as after the death of its consumer.
    async fn ack(self: Box<Self>) -> Result<()> {
        self.shared.connected()?;
        let sent = self.shared.client.publish(self.parts.reply.clone(), Bytes::from_static(b"+ACK")).await;
        sent.map_err(|error| answer::unavailable("ack", &error))?;
        Ingress::remove(&mut self.shared.ingress.state(), self.id);
        Ok(())
    }
    fn reply_to(&self) -> Option<&str> {
        self.parts.answer_to.as_deref()
    }
    fn waiting(&self) -> u64 {
        self.parts.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_inboxes_are_answered() {
        for inbox in ["_INBOX.abc", "_INBOX.abc.1", "_INBOX_acme.x"] {
            assert!(is_inbox(inbox, "acme"), "{inbox}");
        }
        for other in
            ["", "_INBOX", "_INBOX.", "_INBOX.a..b", "_INBOX.>", "_INBOX.a b", "cellbus.jobs.evil", "_INBOX_evil.x"]
        {
            assert!(!is_inbox(other, "acme"), "{other}");
        }
    }

    #[test]
    fn headers_are_in_lower_case() {
        let mut map = HeaderMap::new();
        map.insert("Ce-Id", "1");
        map.insert("Nats-Msg-Id", "2");
        map.insert("Cellbus-Reply-To", "_INBOX.x");
        let (headers, answer_to) = headers(Some(&map), "acme");
        assert_eq!(headers, [("ce-id".to_owned(), "1".to_owned())]);
        assert_eq!(answer_to.as_deref(), Some("_INBOX.x"));
    }
}
