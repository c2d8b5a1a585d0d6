//! The network between cells: what one sends takes time, may be lost, may come twice, may come
//! when nobody waits for it any more, and may get through one way only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::env::Env;
use cellbus_bus::ids::OpNumber;
use cellbus_cell::peers::{CallError, Decision, Handed, LocalPeers, Peer, Peers, Post, Request, Response};
use cellbus_directory::{JobState, Refusal, RefusalReason};
use cellbus_workflows::{Answer, LaterReason};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::oneshot;

use super::executor::{Executor, NodeId};
use super::history::History;
use super::sabotage::Sabotage;
use super::tally::Tally;

/// How long a caller waits that is never answered, unless it gives up before.
const GIVES_UP_AFTER: Duration = Duration::from_secs(20);

/// What messages meet at present.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    /// How long a message takes at the most, mostly.
    pub(super) delay_max: Duration,
    /// How likely one is lost.
    pub(super) loss: f64,
    /// How likely one comes twice.
    pub(super) duplicates: f64,
    /// How likely one takes up to some seconds, and is overtaken by many.
    pub(super) late: f64,
}

/// A process that can be reached.
#[derive(Clone)]
struct Server {
    node: NodeId,
    env: Env,
    cells: LocalPeers,
}

struct State {
    weather: Weather,
    rng: SmallRng,
    /// By address.
    servers: BTreeMap<String, Server>,
    /// From whom nothing gets through to whom.
    cut: BTreeSet<(NodeId, NodeId)>,
}

/// See the module.
pub(super) struct Network {
    executor: Arc<Executor>,
    env: Env,
    history: Arc<History>,
    sabotage: Option<Sabotage>,
    state: Mutex<State>,
    tally: std::sync::OnceLock<Tally>,
}

/// The way of one message.
struct Way {
    takes: Duration,
    lost: bool,
    /// It comes once more, so much later.
    again: Option<Duration>,
}

impl Network {
    pub(super) fn new(
        executor: &Arc<Executor>,
        env: Env,
        seed: u64,
        history: Arc<History>,
        sabotage: Option<Sabotage>,
    ) -> Arc<Self> {
        let state = State {
            weather: Weather::default(),
            rng: SmallRng::seed_from_u64(seed ^ 0x0e7),
            servers: BTreeMap::new(),
            cut: BTreeSet::new(),
        };
        Arc::new(Self {
            executor: Arc::clone(executor),
            env,
            history,
            sabotage,
            state: Mutex::new(state),
            tally: std::sync::OnceLock::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on, what processes send each other is counted.
    pub(super) fn count(&self, tally: &Tally) {
        self.tally.get_or_init(|| tally.clone());
    }
    fn counted(&self, what: &'static str) {
        if let Some(tally) = self.tally.get() {
            tally.add(what, 1);
        }
    }

    /// A process listens.
    pub(super) fn join(&self, address: String, node: NodeId, env: Env, cells: LocalPeers) {
        self.state().servers.insert(address, Server { node, env, cells });
    }
    /// It does not any more.
    pub(super) fn leave(&self, address: &str) {
        let gone = self.state().servers.remove(address);
        drop(gone);
    }
    pub(super) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }
    /// Nothing gets from one to the other any more, or it does again.
    pub(super) fn cut(&self, from: NodeId, to: NodeId, cut: bool) {
        let mut state = self.state();
        if cut {
            state.cut.insert((from, to));
        } else {
            state.cut.remove(&(from, to));
        }
    }
    /// Everything gets through again.
    pub(super) fn mend(&self) {
        self.state().cut.clear();
    }

    fn server(&self, address: &str) -> Option<Server> {
        self.state().servers.get(address).cloned()
    }

    fn way(&self, from: NodeId, to: NodeId) -> Way {
        let mut state = self.state();
        let lost = state.cut.contains(&(from, to));
        let State { weather, rng, .. } = &mut *state;
        let mut up_to = |most: Duration| match u64::try_from(most.as_nanos()) {
            Ok(0) | Err(_) => Duration::ZERO,
            Ok(most) => Duration::from_nanos(rng.random_range(0..most)),
        };
        let mut takes = up_to(weather.delay_max);
        let late = up_to(Duration::from_secs(8));
        let again = up_to(Duration::from_secs(12));
        let mut meets = |rate: f64| rate > 0.0 && rng.random_bool(rate);
        if meets(weather.late) {
            takes += late;
        }
        Way { takes, lost: lost || meets(weather.loss), again: meets(weather.duplicates).then_some(again) }
    }

    /// Whether the cut is there when the message arrives is what counts for long ways.
    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.state().cut.contains(&(from, to))
    }
}

/// How one node reaches the others.
pub(super) struct NodePeers {
    pub(super) network: Arc<Network>,
    pub(super) node: NodeId,
    /// The cells of its own process.
    pub(super) own: LocalPeers,
}

fn unreachable(to: &Peer, detail: &str) -> CallError {
    CallError::Unreachable { cell: to.cell.clone(), detail: detail.to_owned() }
}
fn not_delivered(to: &Peer) -> CallError {
    CallError::NotDelivered { cell: to.cell.clone(), detail: "nothing listens at its address".to_owned() }
}

#[async_trait]
impl Peers for NodePeers {
    async fn call(&self, to: &Peer, request: Request) -> Result<Response, CallError> {
        if self.own.has(&to.cell) {
            if self.network.sabotage == Some(Sabotage::AnswerBeforeAppend)
                && let Request::HandIn { jobs, .. } = &request
            {
                let known = |handed: &Handed| Decision::Known { state: JobState::Queued, digest: handed.job.digest };
                let said = Response::Decided(jobs.iter().map(known).collect());
                let (own, to) = (self.own.clone(), to.clone());
                self.network.env.spawn("hands in late", async move {
                    // Nobody waits for it.
                    let _ = own.call(&to, request).await;
                });
                return Ok(said);
            }
            return self.own.call(to, request).await;
        }
        self.network.counted("requests");
        let env = &self.network.env;
        let Some(target) = self.network.server(&to.address).map(|server| server.node) else {
            env.sleep(Duration::from_millis(1)).await;
            return Err(not_delivered(to));
        };
        let way = self.network.way(self.node, target);
        env.sleep(way.takes).await;
        if way.lost || self.network.is_cut(self.node, target) {
            env.sleep(GIVES_UP_AFTER).await;
            return Err(unreachable(to, "no answer"));
        }
        let Some((server, cell)) = self
            .network
            .server(&to.address)
            .and_then(|server| Some((server.cells.find(&to.cell)?, server)))
            .map(|(cell, server)| (server, cell))
        else {
            return Err(not_delivered(to));
        };
        if let Some(later) = way.again {
            let (env, cell, request) = (self.network.env.clone(), Arc::clone(&cell), request.clone());
            let there = server.env.clone();
            self.network.env.spawn("a copy of a call", async move {
                env.sleep(later).await;
                there.spawn("answers a copy", async move {
                    // Nobody waits for it.
                    let _ = cell.serve(request).await;
                });
            });
        }
        let (back, answer) = oneshot::channel();
        server.env.spawn("answers a call", async move {
            // The caller may have given up.
            let _ = back.send(cell.serve(request).await);
        });
        let answer = answer.await.map_err(|_| unreachable(to, "it broke the connection"))?;
        let way = self.network.way(target, self.node);
        env.sleep(way.takes).await;
        if way.lost || self.network.is_cut(target, self.node) {
            env.sleep(GIVES_UP_AFTER).await;
            return Err(unreachable(to, "no answer"));
        }
        Ok(answer)
    }

    fn post(&self, to: &Peer, mut post: Post) -> Result<(), CallError> {
        let (history, now) = (&self.network.history, self.network.executor.now());
        history.add(now, || format!("{:?} posts to {}: {post:?}", self.node, to.cell));
        if self.network.sabotage == Some(Sabotage::DoublePlacement) {
            sabotaged(&mut post);
        }
        if self.own.has(&to.cell) {
            return self.own.post(to, post);
        }
        self.network.counted("posts");
        let Some(target) = self.network.server(&to.address).map(|server| server.node) else {
            return Err(not_delivered(to));
        };
        let way = self.network.way(self.node, target);
        if way.lost {
            return Ok(());
        }
        if let Some(later) = way.again {
            self.send(to.clone(), target, way.takes + later, post.clone());
        }
        self.send(to.clone(), target, way.takes, post);
        Ok(())
    }
}

impl NodePeers {
    fn send(&self, to: Peer, target: NodeId, takes: Duration, post: Post) {
        let (network, node) = (Arc::clone(&self.network), self.node);
        self.network.env.spawn("post", async move {
            network.env.sleep(takes).await;
            if network.is_cut(node, target) {
                return;
            }
            let Some(server) = network.server(&to.address) else { return };
            let Some(cell) = server.cells.find(&to.cell) else { return };
            // In the time of whom it is for: one that is paused takes it when it goes on.
            server.env.spawn("takes a post", async move { cell.take(post) });
        });
    }
}

/// A create of which nothing is known is said not to have begun.
fn sabotaged(post: &mut Post) {
    let Post::Answers { answers, .. } = post else { return };
    for answered in answers {
        if let Answer::Later(later) = &answered.answer
            && later.reason == LaterReason::ManagerFailing
            && answered.op == OpNumber(1)
        {
            let manager = cellbus_bus::ids::ManagerId::derive("sim-0000");
            let detail = "sabotage".to_owned();
            answered.answer = Answer::Refused(Refusal { manager, reason: RefusalReason::NotBegun, detail });
        }
    }
}
