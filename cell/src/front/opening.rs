//! A front before its manager is open: it is opened and read, and callers are put off meanwhile.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::ShardId;
use cellbus_directory::ManagerMode;
use cellbus_workflows::{Later, LaterReason};

use super::operation::fault;
use super::{Front, Message, Work, unknown_row, unknown_summary};
use crate::driver::{Error, Inventory, RunningTask};
use crate::gateway::ManagerRow;
use crate::peers::{Answered, Peer};

/// How often a shard is told that a manager refuses its epoch: a successor has fenced it long before,
/// as a rule.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Before a manager whose front has panicked is opened anew: what has brought it down may be there still, and its
/// shard is to do something else meanwhile.
const FAULT_PAUSE: Duration = Duration::from_secs(5);

/// Why a front does nothing any more.
pub(super) enum Why {
    /// A newer owner has opened the manager.
    Revoked,
    /// It has panicked; what the panic said.
    Fault(String),
}

impl Front {
    /// Opens the manager and reads it, however often that takes; `None` when a newer owner has it.
    pub(super) async fn open(&mut self) -> Option<(Vec<RunningTask>, Inventory)> {
        let mut pause = Duration::from_millis(100);
        let mut idle = self.idle;
        loop {
            let driver = Arc::clone(&self.driver);
            let epoch = self.epoch;
            // Where nothing of ours is under way, the inventory is the same before and after the opening.
            let early = std::mem::take(&mut idle);
            let untold = self.orders.fenced.is_empty() && self.fenced_at_opening.is_empty();
            let fences = (!untold).then(|| self.telling_of_fences());
            self.fenced_at_opening.clone_from(&self.orders.fenced);
            let looks = self.orders.mode(&self.config) == ManagerMode::ReadOnly;
            let opening: Pin<Box<dyn Future<Output = Result<_, Error>> + Send>> = Box::pin(async move {
                if let Some(fences) = fences {
                    fences.await?;
                }
                let open = async { if looks { driver.look(epoch).await } else { driver.open(epoch).await } };
                if early {
                    let (tasks, inventory) = futures::future::join(open, driver.inventory()).await;
                    let tasks = tasks?;
                    // A manager that is only read once it is open says so.
                    if let Ok(inventory) = inventory
                        && tasks.is_empty()
                    {
                        return Ok((tasks, inventory));
                    }
                    return Ok((tasks, driver.inventory().await?));
                }
                let tasks = open.await?;
                Ok((tasks, driver.inventory().await?))
            });
            let deadline = self.config.read_timeout.saturating_mul(2);
            match self.answering_opening(deadline, opening).await {
                Some(Ok(read)) => {
                    self.looks = looks;
                    return Some(read);
                }
                Some(Err(Error::Revoked)) => return None,
                Some(Err(error)) => self.not_open(&error.to_string()),
                None => self.not_open("no answer while it was opened"),
            }
            let jitter = pause / 2 + pause / 1000 * (self.env.random_u64() % 501) as u32;
            let nothing = std::future::pending::<()>();
            self.answering_opening(jitter, Box::pin(nothing)).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    }

    /// Whether the manager was connected to for looking at it alone, and is to be used by now. Not while it is
    /// being handed over: its next owner will open it.
    pub(super) fn must_open(&self, work: &Work) -> bool {
        self.looks && self.orders.mode(&self.config) != ManagerMode::ReadOnly && work.finishing.is_none()
    }

    /// Ends what is read of a manager that was looked at, which is about to be opened: whoever asked asks again.
    pub(super) async fn leave_off(&mut self, work: &mut Work) {
        self.asks = work.desk.leave_off();
        self.settle(work).await;
        // What was read meanwhile may be older than the opening.
        self.idle = false;
        self.row.store(Arc::new(self.closed_row("its owner is opening it")));
    }

    fn not_open(&self, why: &str) {
        tracing::warn!(manager = %self.config.name, why, "manager cannot be opened; trying again");
        let row = self.closed_row(why);
        self.row.store(Arc::new(row));
        self.shared.board.publish(self.epoch, unknown_summary(&self.config.name));
    }

    /// Awaits `what`, for `limit` at the most, and answers those who call meanwhile.
    async fn answering_opening<T>(
        &mut self,
        limit: Duration,
        mut what: Pin<Box<dyn Future<Output = T> + Send>>,
    ) -> Option<T> {
        let mut deadline = self.env.sleep(limit);
        loop {
            tokio::select! {
                biased;
                output = &mut what => return Some(output),
                () = &mut deadline => return None,
                () = self.mailbox.ready() => {
                    let messages = self.mailbox.take();
                    self.put_off(messages, LaterReason::Opening, "its owner is opening it", Some(Duration::from_millis(200)));
                }
            }
        }
    }

    /// What is shown of a manager that is not open, its cordon included: one that is switched off for
    /// maintenance is not to raise an alarm with each new owner.
    fn closed_row(&self, why: &str) -> ManagerRow {
        self.orders.shown(&self.config, unknown_row(&self.config.name, Some(self.cell.clone()), self.epoch, why))
    }

    fn put_off(&mut self, messages: Vec<Message>, reason: LaterReason, detail: &str, after: Option<Duration>) {
        let mut batches: BTreeMap<(Arc<Peer>, ShardId), Vec<Answered>> = BTreeMap::new();
        for message in messages {
            match message {
                Message::Calls { from, calls } => {
                    for asked in calls {
                        let answered = self.asks.put_off(&asked, Later { reason, detail: detail.to_owned(), after });
                        batches.entry((Arc::clone(&from), asked.call.shard)).or_default().push(answered);
                    }
                }
                Message::Orders(orders) => {
                    self.orders = orders;
                    let detail = self.row.load().detail.clone();
                    self.row.store(Arc::new(self.closed_row(&detail)));
                }
                Message::MayBeFenced(host, back) => self.may_be_fenced(host, back),
                // Whoever asks is told by the dropped sender. Nothing is under way here.
                Message::Hosts(_)
                | Message::Live(..)
                | Message::Inventory(_)
                | Message::Foreign(_)
                | Message::Finish(_) => {}
            }
        }
        for ((to, shard), answers) in batches {
            self.outside.answers(&to, shard, answers);
        }
    }

    /// Nothing is done any more until this front is dropped: the shard is told to claim itself again, now and
    /// again. Where a newer owner has opened the manager, it is fenced then. If there is none, or this front has
    /// panicked, a new front opens the manager under the shard's next epoch, as after a crash: what this one
    /// knew of the asks that it had taken may be wrong, and holds for its epoch alone.
    pub(super) async fn refuse_all(mut self, why: Why) {
        let (detail, tell_every) = match &why {
            Why::Revoked => {
                tracing::info!(manager = %self.config.name, epoch = %self.epoch, "a newer owner has opened the manager");
                ("a newer owner has opened it".to_owned(), TELL_EVERY)
            }
            Why::Fault(why) => {
                tracing::error!(manager = %self.config.name, why, again_in = ?FAULT_PAUSE, "the front of a manager failed by a fault");
                (fault(why), FAULT_PAUSE)
            }
        };
        self.shared.board.withdraw(&self.id(), self.epoch);
        self.row.store(Arc::new(self.closed_row(&detail)));
        let mut tell = self.env.sleep(tell_every);
        loop {
            tokio::select! {
                biased;
                () = self.mailbox.ready() => {}
                () = &mut tell => {
                    tell = self.env.sleep(tell_every);
                    self.outside.revoked(self.id(), self.epoch);
                }
            }
            let messages = self.mailbox.take();
            match &why {
                Why::Revoked => {
                    self.put_off(messages, LaterReason::StaleOwner, "a newer owner has opened the manager", None)
                }
                Why::Fault(_) => self.put_off(messages, LaterReason::Opening, &detail, Some(FAULT_PAUSE)),
            }
        }
    }
}
