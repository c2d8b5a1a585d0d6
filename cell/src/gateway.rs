//! The one way in for users: HTTP handlers and the command line in the same process call this.
//!
//! A [`Gateway`] belongs to a process, not to a shard: it puts jobs on the queue of their home,
//! asks whoever owns a shard or fronts a manager (in this process or another), and looks VMs up
//! in the directory: the replica beside it, or that of another process. It decides nothing about jobs itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cellbus_bus::contract::{Member, Queue, QueueKind, Role};
use cellbus_bus::ids::ShardId;
use cellbus_directory::Replica;
use cellbus_workflows::ControlItem;

use crate::directory::Directory;
use crate::peers::{Peer, Request, Response};
use crate::process::Process;

mod adopt;
mod audit;
mod cluster;
mod decommission;
mod elsewhere;
mod error;
mod fences;
mod forecast;
mod jobs;
mod letters;
mod operators;
mod pause;
mod progress;
mod repair;
mod rows;
mod scale;
mod upgrade;
mod vms;

pub use adopt::{ADOPT_MAX, AdoptPlan, AdoptQuery, Adopting, Candidate};
pub(crate) use cluster::DEPTHS_AT_ONCE;
pub use decommission::{Decommission, Decommissioning};
pub use error::{CODES, Error, Kind, What};
pub use fences::Fenced;
pub use forecast::{ForecastRow, RoomOf};
pub use pause::PausesShown;
pub use repair::{Doubles, Orphans, RepairPlan, Repairs};
pub use rows::{
    Audit, CellRow, CircuitState, DatastoreRow, DryRun, Evacuation, Explained, Finding, FreeOf, HostRow, Live, Located,
    ManagerRow, Page, QueueRow, ShardRow, ShardState, Stays, Submitted, VmRow,
};
pub use scale::{ScaleChange, ScaleShown};
pub use upgrade::Upgrade;

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The most ids that one look-up may name.
pub const LOCATE_MAX: usize = 10_000;

/// How long a shard whose owner is changing is waited for.
const OWNER_LIMIT: Duration = Duration::from_secs(5);
/// Between two tries to find it.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long the bus may be silent before this process no longer calls itself ready: it is asked once
/// a second, and an election on the broker's side may take as long as a lease of three replicas.
pub(crate) const BUS_SILENT_MAX: Duration = Duration::from_secs(15);
/// How long one cell may take to answer a question about itself.
const CELL_LIMIT: Duration = Duration::from_secs(5);

/// A handle on the cluster, cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {
    process: Process,
    audits: Mutex<VecDeque<Arc<audit::Running>>>,
    adoptions: Mutex<VecDeque<Arc<adopt::Asked>>>,
}

impl Gateway {
    /// The gateway of a process.
    #[must_use]
    pub fn new(process: Process) -> Self {
        Self { inner: Arc::new(Inner { process, audits: Mutex::default(), adoptions: Mutex::default() }) }
    }

    /// The replica of the directory beside it, if it has one, for look-ups that must cost next to nothing.
    #[must_use]
    pub fn replica(&self) -> Option<&Arc<Replica>> {
        self.inner.process.directory.replica()
    }
    /// The directory, wherever it is.
    pub(crate) fn directory(&self) -> &Directory {
        &self.inner.process.directory
    }
    /// The process that it belongs to.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.inner.process
    }

    /// Puts an item on a shard's control queue. Durable on return.
    ///
    /// # Errors
    /// As [`Gateway::submit`].
    pub async fn control(&self, shard: ShardId, item: ControlItem) -> Result<()> {
        let queue = Queue { shard, kind: QueueKind::Control };
        self.inner.process.bus.publish(queue, vec![item.encode()]).await?;
        Ok(())
    }

    /// Whether this process serves: every shard is open somewhere or reported failed, every manager
    /// has been read or reported as not answering, and the directory, if it is here, has read what was
    /// there.
    ///
    /// # Errors
    /// [`Error::NotReady`], with what is awaited.
    pub fn ready(&self) -> Result<()> {
        let process = &self.inner.process;
        let silent = process.bus_silent();
        if silent > BUS_SILENT_MAX {
            let seconds = silent.as_secs();
            let reason = format!("the bus has given no answer for {seconds} s: what is known here may be out of date");
            return Err(Error::NotReady { reason });
        }
        let missing = process.routes.missing();
        if missing > 0 {
            return Err(Error::NotReady { reason: format!("{missing} shards are neither open nor reported failed") });
        }
        let behind = self.replica().map_or(0, |replica| {
            let behind = |shard: &ShardId| replica.applied(*shard) < process.routes.opened_at(*shard);
            // What the bus has lost will never be read.
            process.count.shards().filter(behind).filter(|shard| replica.losses(*shard) == 0).count()
        });
        if behind > 0 {
            return Err(Error::NotReady { reason: format!("the directory still reads the logs of {behind} shards") });
        }
        let silent = process.board.silent();
        if silent > 0 {
            return Err(Error::NotReady {
                reason: format!("the inventories of {silent} managers are still being read"),
            });
        }
        Ok(())
    }

    /// Asks the owner of a shard, wherever it is by then.
    async fn ask_owner(&self, shard: ShardId, request: Request) -> Result<Response> {
        let process = &self.inner.process;
        let began = process.env.mono();
        let mut reason = "nobody has opened it yet".to_owned();
        loop {
            if let Some(route) = process.routes.of(shard) {
                match self.ask(&route.peer, request.clone()).await {
                    Ok(Response::NotMine) => reason = format!("cell {} does not own it any more", route.peer.cell),
                    Ok(Response::Failed { detail }) => reason = detail,
                    Ok(response) => return Ok(response),
                    Err(error) => reason = error,
                }
            }
            if process.env.mono().since(began) >= OWNER_LIMIT {
                return Err(Error::ShardAway { shard, reason });
            }
            process.env.sleep(ASK_AGAIN).await;
        }
    }

    /// Asks one cell.
    async fn ask(&self, peer: &Peer, request: Request) -> Result<Response, String> {
        let process = &self.inner.process;
        // What is waited for inside the request comes on top.
        let limit = CELL_LIMIT + request.waits();
        let answer = process.env.timeout(limit, process.peers.call(peer, request)).await;
        match answer {
            Some(answer) => answer.map_err(|error| error.to_string()),
            None => Err(format!("cell {} did not answer in time", peer.cell)),
        }
    }

    /// The members that are cells.
    async fn live_cells(&self) -> Result<Vec<Member>> {
        let members = self.inner.process.bus.members().await?;
        Ok(members.into_iter().filter(|member| member.role == Role::Cell).collect())
    }

    /// Asks every live cell at once; `None` for those that did not answer.
    async fn ask_all(&self, request: Request) -> Result<Vec<(Member, Option<Response>)>> {
        let asked = self.live_cells().await?.into_iter().map(|member| {
            let request = request.clone();
            async move {
                let peer = Peer { cell: member.cell.clone(), address: member.address.clone() };
                let response = self.ask(&peer, request).await.ok();
                (member, response)
            }
        });
        Ok(futures::future::join_all(asked).await)
    }
}

/// Another cell answered something that was not asked.
fn confused() -> Error {
    Error::Internal { message: "a cell answered another question than was asked".to_owned() }
}
