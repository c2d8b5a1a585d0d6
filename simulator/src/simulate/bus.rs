//! A bus in memory that keeps the contract ([`cellbus_bus::Bus`]) through whatever it is made to suffer.
//!
//! A call travels to it, takes effect in one moment, and its answer travels back. Calls and
//! answers may be lost on the way (then nobody knows whether a write took place), the bus may be
//! away for a while, and a node may be cut off from it. A restart loses what had not taken effect
//! and breaks every connection; what took effect stays, acknowledged or not, unless the bus is put
//! back to an older state, which breaks the contract and is a fault of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::contract::SnapshotId;
use cellbus_bus::env::Env;
use cellbus_bus::ids::{Epoch, Seq, ShardId};
use cellbus_directory::{Entry, Record};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::executor::{Executor, NodeId};
use super::history::History;
use super::sabotage::Sabotage;
use super::tally::Tally;

mod client;
mod store;

pub(super) use client::Client;
pub(super) use store::Forgets;
use store::Store;

/// What calls to the bus meet at present.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    /// How long a call takes at the most, on its way there.
    pub(super) delay_max: Duration,
    /// How likely a call is lost, and its answer.
    pub(super) loss: f64,
    /// How likely it is refused for want of room.
    pub(super) full: f64,
    /// How likely a message is late for its reader, by up to a second.
    pub(super) late: f64,
}

struct State {
    store: Store,
    weather: Weather,
    rng: SmallRng,
    down: bool,
    /// Grows with every restart: connections of before are broken.
    connections: u64,
    /// Nodes that cannot reach it.
    cut: Vec<NodeId>,
    /// Nodes that are not told what is in a log.
    deaf: Vec<(NodeId, ShardId)>,
    /// Bytes of each log for which there is room, if that has a limit.
    log_room: Option<u64>,
    checks: Checks,
    /// Who is to be woken by what has just taken effect, whatever becomes of its answer.
    woken: Vec<Waker>,
}

/// What is checked of every entry that is appended.
#[derive(Default)]
struct Checks {
    /// By shard: the epoch of the last entry that counts.
    epochs: std::collections::BTreeMap<ShardId, Epoch>,
    violations: Vec<String>,
    /// Every entry there ever was, trimmed ones too; `None`: not kept.
    shadow: Option<std::collections::BTreeMap<ShardId, Vec<(Seq, Bytes)>>>,
    appends: u64,
    records: u64,
    /// Entries are not a shard's: nothing is looked at.
    unread: bool,
}

/// The bus itself, as the world sees it.
#[derive(Clone)]
pub(super) struct SimulatedBus {
    executor: Arc<Executor>,
    /// The world's: travel takes the world's time.
    env: Env,
    history: Arc<History>,
    sabotage: Option<Sabotage>,
    state: Arc<Mutex<State>>,
    tally: Arc<std::sync::OnceLock<Tally>>,
}

impl SimulatedBus {
    pub(super) fn new(
        executor: &Arc<Executor>,
        env: Env,
        seed: u64,
        history: Arc<History>,
        sabotage: Option<Sabotage>,
        shadow: bool,
    ) -> Self {
        let state = State {
            store: Store::default(),
            weather: Weather::default(),
            rng: SmallRng::seed_from_u64(seed ^ 0xb05),
            down: false,
            connections: 0,
            cut: Vec::new(),
            deaf: Vec::new(),
            log_room: None,
            checks: Checks { shadow: shadow.then(Default::default), ..Checks::default() },
            woken: Vec::new(),
        };
        Self {
            executor: Arc::clone(executor),
            env,
            history,
            sabotage,
            state: Arc::new(Mutex::new(state)),
            tally: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to it of one node.
    pub(super) fn client(&self, node: NodeId) -> Arc<Client> {
        Arc::new(Client::new(self, node, false))
    }
    /// The same, for the directory of a node.
    pub(super) fn directory_client(&self, node: NodeId) -> Arc<Client> {
        Arc::new(Client::new(self, node, true))
    }

    /// From here on, what is asked of it is counted.
    pub(super) fn count(&self, tally: &Tally) {
        self.tally.get_or_init(|| tally.clone());
    }
    fn counted(&self, what: &'static str, times: usize) {
        if let Some(tally) = self.tally.get() {
            tally.add(what, times);
        }
    }

    // ── faults ──

    /// Owners are told that each log has room for so much. What does not fit is taken all the same.
    pub(super) fn set_log_room(&self, bytes: u64) {
        self.state().log_room = Some(bytes);
    }
    pub(super) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }
    /// It stops. What has taken effect stays.
    pub(super) fn stop(&self) {
        let woken = {
            let mut state = self.state();
            state.down = true;
            state.connections += 1;
            state.store.restarted()
        };
        self.executor.note("bus down", 0);
        woken.into_iter().for_each(Waker::wake);
    }
    pub(super) fn start(&self) {
        self.state().down = false;
        self.executor.note("bus up", 0);
    }
    /// Everything that it holds now.
    pub(super) fn image(&self) -> Image {
        Image(self.state().store.clone())
    }
    /// What it acknowledged since the image was taken is lost. Gives the shards whose logs have lost
    /// entries, and where those end now.
    pub(super) fn put_back(&self, image: Image, what: Forgets) -> Vec<(ShardId, Seq)> {
        let (woken, lost) = {
            let mut state = self.state();
            let shards = state.store.shards();
            let before: Vec<(ShardId, Seq)> =
                shards.into_iter().map(|shard| (shard, state.store.log(shard).last())).collect();
            let mut woken = state.store.put_back(image.0, what);
            woken.append(&mut state.store.restarted());
            let mut lost = Vec::new();
            for (shard, end) in before {
                let now = state.store.log(shard).last();
                if now < end {
                    lost.push((shard, now));
                }
                let State { store, checks, .. } = &mut *state;
                checks.put_back(shard, now, store.entries(shard).last().map(|(_, body)| body));
            }
            (woken, lost)
        };
        self.executor.note("bus put back", 0);
        woken.into_iter().for_each(Waker::wake);
        lost
    }
    /// A node is cut off, or not any more.
    pub(super) fn cut(&self, node: NodeId, cut: bool) {
        let woken = {
            let mut state = self.state();
            state.cut.retain(|known| *known != node);
            if cut {
                state.cut.push(node);
            }
            state.store.all_waiting()
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// A node is not told any more what is in a log, or is told again.
    pub(super) fn deafen(&self, node: NodeId, log: ShardId, deaf: bool) {
        let mut state = self.state();
        state.deaf.retain(|known| *known != (node, log));
        if deaf {
            state.deaf.push((node, log));
        }
    }
    /// Everybody is told everything again.
    pub(super) fn hear_again(&self) {
        self.state().deaf.clear();
    }

    // ── what became of it ──

    pub(super) fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.state().checks.violations)
    }
    /// Appends and records so far.
    pub(super) fn appended(&self) -> (u64, u64) {
        let state = self.state();
        (state.checks.appends, state.checks.records)
    }
    pub(super) fn ingress_open(&self) -> usize {
        self.state().store.ingress_open()
    }
    /// All entries of all logs from their beginnings, where they are kept.
    pub(super) fn shadow(&self) -> std::collections::BTreeMap<ShardId, Vec<(Seq, Bytes)>> {
        self.state().checks.shadow.clone().unwrap_or_default()
    }
    /// All entries of one log, likewise.
    pub(super) fn shadow_of(&self, shard: ShardId) -> Vec<Bytes> {
        let state = self.state();
        let log = state.checks.shadow.as_ref().and_then(|logs| logs.get(&shard));
        log.map(|log| log.iter().map(|(_, body)| body.clone()).collect()).unwrap_or_default()
    }
    /// The newest snapshot of a shard that its log names, and the entries after it.
    pub(super) fn newest_snapshot(&self, shard: ShardId) -> Option<(SnapshotId, Bytes)> {
        let state = self.state();
        let named = |id: &SnapshotId| {
            state.store.entries(shard).any(|(_, body)| {
                Entry::decode(body).is_ok_and(|entry| {
                    entry.records.iter().any(|record| matches!(record, Record::Snapshot { id: of } if of == id))
                })
            })
        };
        let id = state.store.snapshots(shard).into_iter().rev().find(named)?;
        Some((id, state.store.read_snapshot(id)?))
    }
    /// Where the log of each shard ends.
    pub(super) fn ends(&self) -> Vec<(ShardId, Seq)> {
        let mut state = self.state();
        let shards = state.store.shards();
        shards.into_iter().map(|shard| (shard, state.store.log(shard).last())).collect()
    }
}

/// All that a bus held at one moment.
pub(super) struct Image(Store);

impl Checks {
    /// The log of a shard ends with this entry now.
    fn put_back(&mut self, shard: ShardId, end: Seq, last: Option<&Bytes>) {
        let epoch = last.and_then(|body| Entry::decode(body).ok()).map(|entry| entry.epoch);
        self.epochs.insert(shard, epoch.unwrap_or_default());
        if let Some(entries) = self.shadow.as_mut().and_then(|shadow| shadow.get_mut(&shard)) {
            entries.retain(|(seq, _)| *seq <= end);
        }
    }
    /// Looks at an entry that has been taken.
    fn appended(&mut self, shard: ShardId, expected: Seq, seq: Seq, body: &Bytes, history: &History, at: u64) {
        self.appends += 1;
        if self.unread {
            return;
        }
        if let Some(shadow) = &mut self.shadow {
            shadow.entry(shard).or_default().push((seq, body.clone()));
        }
        let entry = match Entry::decode(body) {
            Ok(entry) => entry,
            Err(error) => {
                self.violations.push(format!("shard {shard}: entry {seq} cannot be read: {error}"));
                return;
            }
        };
        self.records += entry.records.len() as u64;
        if entry.prev != expected {
            self.violations.push(format!(
                "shard {shard}: entry {seq} says that it follows {}, and was appended after {expected}",
                entry.prev
            ));
        }
        let last = self.epochs.entry(shard).or_default();
        let opened = matches!(entry.records.first(), Some(Record::Opened { .. }));
        let right = if opened { entry.epoch > *last } else { entry.epoch == *last };
        if !right {
            self.violations.push(format!(
                "shard {shard}: entry {seq} of epoch {} was taken after epoch {last} had opened",
                entry.epoch
            ));
        }
        *last = (*last).max(entry.epoch);
        history.add(at, || {
            let records: Vec<String> = entry.records.iter().map(|record| format!("{record:?}")).collect();
            format!("shard {shard} epoch {} appends {seq}: {}", entry.epoch, records.join(" | "))
        });
    }
}

#[cfg(test)]
mod tests;
