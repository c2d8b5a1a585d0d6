//! The directory of other processes, asked over the network.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use cellbus_bus::Env;
use cellbus_bus::contract::{Member, Role};

use super::Told;
use super::ask::{Answer, Ask};
use crate::gateway::{Error, Result};
use crate::peers::{Peer, Peers, Request, Response, Summary};

/// How long a replica may take, beyond what it is to wait for.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// See the module.
pub(crate) struct Elsewhere {
    env: Env,
    peers: Arc<dyn Peers>,
    /// The replicas among the members, as they were last read.
    replicas: ArcSwap<Vec<Arc<Peer>>>,
    /// The one that answered last: it is asked first.
    answered: ArcSwapOption<Peer>,
    /// Up to where it has been told what cells say.
    told: Mutex<Option<Told>>,
    losses: AtomicU64,
}

impl Elsewhere {
    pub(crate) fn new(env: Env, peers: Arc<dyn Peers>) -> Self {
        Self {
            env,
            peers,
            replicas: ArcSwap::default(),
            answered: ArcSwapOption::empty(),
            told: Mutex::default(),
            losses: AtomicU64::new(0),
        }
    }

    /// The members have been read.
    pub(crate) fn learn(&self, members: &[Member]) {
        let replicas = members.iter().filter(|member| member.role == Role::Directory);
        let peer = |member: &Member| Arc::new(Peer { cell: member.cell.clone(), address: member.address.clone() });
        self.replicas.store(Arc::new(replicas.map(peer).collect()));
    }

    /// What has changed of what cells say of themselves since this was last asked. Not cancel safe: ask
    /// from one task.
    ///
    /// # Errors
    /// [`Error::NotReady`]: then each cell must be asked.
    pub(crate) async fn summaries(&self) -> Result<Vec<(Peer, Summary)>> {
        let since = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match self.ask(Ask::Summaries { since }).await? {
            Answer::Summaries { told, cells } => {
                *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
                Ok(cells)
            }
            other => Err(super::unanswered(other)),
        }
    }

    pub(super) fn note_loss(&self) {
        self.losses.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Those to ask, in order: first the one that answered last, and as long as none has, a random one, so
    /// that many cells spread over the replicas.
    fn order(&self) -> Vec<Arc<Peer>> {
        let mut order = self.replicas.load_full().as_ref().clone();
        let preferred = self.answered.load_full().and_then(|last| order.iter().position(|peer| *peer == last));
        if !order.is_empty() {
            let len = order.len() as u64;
            let first = preferred.unwrap_or_else(|| (self.env.random_u64() % len) as usize);
            order.rotate_left(first);
        }
        order
    }

    /// Asks one replica after the other until one can say.
    ///
    /// # Errors
    /// [`Error::NotReady`] if none can.
    pub(super) async fn ask(&self, ask: Ask) -> Result<Answer> {
        let mut reason =
            "no process of the directory is among the members: start one with `cellbus directory`".to_owned();
        let limit = ANSWER_LIMIT + ask.waits();
        for peer in self.order() {
            let request = Request::Directory(Box::new(ask.clone()));
            match self.env.timeout(limit, self.peers.call(&peer, request)).await {
                Some(Ok(Response::Directory(answer))) => match *answer {
                    Answer::NotReady { reason: why } => reason = format!("{} says: {why}", peer.cell),
                    answer => {
                        if self.answered.load().as_ref() != Some(&peer) {
                            self.answered.store(Some(peer));
                        }
                        return Ok(answer);
                    }
                },
                Some(Ok(_)) => reason = format!("{} has no directory", peer.cell),
                Some(Err(error)) => reason = error.to_string(),
                None => reason = format!("{} did not answer in time", peer.cell),
            }
        }
        Err(Error::NotReady { reason })
    }
}
