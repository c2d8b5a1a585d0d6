//! Jobs from the ingress are handed to the owners of their homes, past the queues.
//!
//! A queue is written and read so that a job outlives the cell that took it in. A message of the
//! ingress does that by itself until it is acknowledged, so where the home's owner answers that the job
//! is in its log, nothing need be written in between: three messages of the broker less for each job,
//! and no wait for them. Where it does not answer (it is moving, full, stopped, or of an older build),
//! the job goes by the queue, and if both ways have come to something, its home admits it once.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cellbus_bus::ids::CellId;
use cellbus_bus::{Env, Mono};

use crate::peers::{Decision, Handed, Peer, Peers, Request, Response};

/// How long an owner has. An append takes some milliseconds, on a busy machine some hundred.
const LIMIT: Duration = Duration::from_secs(1);
/// How long nothing is handed to a cell that did not answer in time: what waits for it holds up what
/// is for others. A lease is about as long.
const SHUT: Duration = Duration::from_secs(3);

/// The way to the owners, and which of them did not answer.
pub(super) struct Hands<'a> {
    env: &'a Env,
    peers: &'a dyn Peers,
    shut: Mutex<BTreeMap<CellId, Mono>>,
}

impl<'a> Hands<'a> {
    pub(super) fn new(env: &'a Env, peers: &'a dyn Peers) -> Self {
        Self { env, peers, shut: Mutex::default() }
    }

    fn shut(&self) -> MutexGuard<'_, BTreeMap<CellId, Mono>> {
        // Nothing that can panic runs under this lock.
        self.shut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a cell is to be handed anything.
    pub(super) fn open(&self, peer: &Peer) -> bool {
        let mut shut = self.shut();
        let Some(until) = shut.get(&peer.cell) else { return true };
        let over = self.env.mono() >= *until;
        if over {
            shut.remove(&peer.cell);
        }
        over
    }

    /// Hands jobs to a cell; what is [`Decision::Known`] is in the log of its home. One answer a job, in
    /// order. Dropped, the jobs may be taken all the same.
    pub(super) async fn hand_in(&self, peer: &Peer, jobs: Vec<Handed>) -> Vec<Decision> {
        let count = jobs.len();
        let asked = self.peers.call(peer, Request::HandIn { jobs, limit: LIMIT });
        let mut answers = match self.env.timeout(LIMIT * 2, asked).await {
            Some(Ok(Response::Decided(answers))) => answers,
            // It is of an older build, or gone, or its answer is late.
            Some(Ok(_) | Err(_)) | None => Vec::new(),
        };
        answers.resize(count, Decision::Unknown);
        // One that is not the owner, or takes no jobs, says so at once: no reason to leave it alone.
        if answers.contains(&Decision::Unknown) {
            tracing::debug!(cell = %peer.cell, "jobs were handed in and not taken in time; they go by the queue");
            let (now, mut shut) = (self.env.mono(), self.shut());
            // Cells that are gone for good are asked for no more.
            shut.retain(|_, until| *until > now);
            shut.insert(peer.cell.clone(), now.after(SHUT));
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use cellbus_bus::cloudevent::{self, TenantFrom, TenantRule, Tenants};
    use cellbus_bus::env::real;
    use cellbus_directory::JobState;
    use tokio::runtime::Handle;

    use super::*;
    use crate::peers::{CallError, Post};

    /// Answers the same whatever it is asked.
    struct Says(Option<Vec<Decision>>);
    #[async_trait]
    impl Peers for Says {
        async fn call(&self, to: &Peer, _: Request) -> Result<Response, CallError> {
            match &self.0 {
                Some(answers) => Ok(Response::Decided(answers.clone())),
                None => Err(CallError::NotDelivered { cell: to.cell.clone(), detail: "it has gone".to_owned() }),
            }
        }
        fn post(&self, _: &Peer, _: Post) -> Result<(), CallError> {
            Ok(())
        }
    }

    fn handed() -> Handed {
        let event = r#"{"specversion":"1.0","id":"1","source":"/s","type":"io.cellbus.job.provision.v1",
            "data":{"name":"web","vcpus":1,"memory_mib":1024,"disk_gib":10,"image":"x"}}"#;
        let rule = TenantRule { from: TenantFrom::Sender("acme"), known: &Tenants::Any };
        let job = cloudevent::parse_structured(event.as_bytes(), rule, &cloudevent::Limits::default());
        Handed { job: Arc::new(job.expect("a job")), bytes: 1 }
    }

    #[tokio::test]
    async fn who_does_not_answer_is_left_alone_and_who_refuses_is_not() {
        let env = real(Handle::current());
        let peer = Peer { cell: "c1".parse().expect("a cell"), address: String::new() };
        let known = Decision::Known { state: JobState::Queued, digest: handed().job.digest };
        let answered = [
            (Some(vec![known.clone(), known.clone()]), vec![known.clone(), known.clone()], true),
            (Some(vec![known.clone(), Decision::NotMine]), vec![known.clone(), Decision::NotMine], true),
            (Some(vec![known.clone(), Decision::Unknown]), vec![known.clone(), Decision::Unknown], false),
            // Fewer or more answers than jobs are no answers to the others.
            (Some(vec![known.clone()]), vec![known.clone(), Decision::Unknown], false),
            (Some(vec![known.clone(); 3]), vec![known.clone(), known], true),
            (None, vec![Decision::Unknown; 2], false),
        ];
        for (says, wanted, open) in answered {
            let peers = Says(says);
            let hands = Hands::new(&env, &peers);
            assert_eq!(hands.hand_in(&peer, vec![handed(), handed()]).await, wanted);
            assert_eq!(hands.open(&peer), open, "{wanted:?}");
            hands.shut().insert(peer.cell.clone(), env.mono());
            assert!(hands.open(&peer) && hands.shut().is_empty(), "after a while it is tried again");
        }
    }
}
