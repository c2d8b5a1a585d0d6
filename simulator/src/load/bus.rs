//! A cluster behind its bus: jobs go in as producers in any language put them there.
//!
//! Acknowledged is what the bus has made durable. What a cell then finds to be no job is told in an
//! inbox, where the transport has them and answers are asked for; elsewhere it ends among those of
//! which nothing is heard.
//! Outcomes come from the events on the bus. VMs, audits and all else are asked for over HTTP.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cellbus_bus::contract::{Bus, Error, Inbox, REPLY_TO};
use cellbus_bus::ids::{JobId, Seq, VmId};
use futures::future::join_all;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::outcome::{outcome, refusal};
use super::target::{
    Audited, Cluster, Ended, Heard, JobView, ManagerSeen, Refused, Sample, SubmitError, Target, TargetError, VmPage,
};

/// Events taken from the bus at once.
const EVENTS_MAX: usize = 500;
/// Messages whose answer is remembered to be due; above it the oldest are forgotten, and if they are
/// refused, that is not heard.
const ANSWERS_DUE_MAX: usize = 200_000;
/// A full bus is given so long before it is tried again.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// Which jobs ask for an answer of the cell that takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All.
    Each,
    /// None: a producer that reads outcomes has no need of it.
    None,
}

/// Jobs and outcomes over a bus, the rest over another target.
pub struct BusTarget {
    bus: Arc<dyn Bus>,
    rest: Arc<dyn Target>,
    /// Where answers come in.
    inbox: Option<tokio::sync::Mutex<Box<dyn Inbox>>>,
    /// Its address, for whoever sends while it is listened at.
    address: Option<String>,
    due: Mutex<Due>,
}

/// Which messages answers are due for.
#[derive(Default)]
struct Due {
    next: u64,
    jobs: BTreeMap<u64, JobId>,
}

impl Due {
    fn add(&mut self, job: JobId) -> u64 {
        let number = self.next;
        self.next += 1;
        self.jobs.insert(number, job);
        if self.jobs.len() > ANSWERS_DUE_MAX {
            self.jobs.pop_first();
        }
        number
    }
}

/// What a job is known by.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    tenant: Cow<'a, str>,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
}

fn failed(error: Error) -> TargetError {
    TargetError { detail: error.to_string(), later: error.retryable() }
}

impl BusTarget {
    /// Submits over `bus`, and asks `rest` for all but outcomes. Each job asks for an `answer`, or
    /// does without, which spares the cells, the broker and this process a message each.
    ///
    /// # Errors
    /// When the bus opens no inbox.
    pub async fn new(bus: Arc<dyn Bus>, rest: Arc<dyn Target>, answer: Answer) -> Result<Self, TargetError> {
        let inbox = match answer {
            Answer::Each => bus.inbox().await.map_err(failed)?,
            Answer::None => None,
        };
        let address = inbox.as_ref().map(|inbox| inbox.address().to_owned());
        Ok(Self { bus, rest, inbox: inbox.map(tokio::sync::Mutex::new), address, due: Mutex::default() })
    }

    /// Puts one event on the bus; `Some` if it is refused here.
    async fn put(&self, index: usize, event: &str) -> Result<Option<Refused>, Error> {
        let refused = |code: &str, words: String| Ok(Some(Refused { index, code: code.to_owned(), words }));
        let Ok(named) = serde_json::from_str::<Named<'_>>(event) else {
            return refused("not_a_job", "an event needs a tenant, a source and an id".to_owned());
        };
        let mut headers = vec![("content-type".to_owned(), "application/cloudevents+json".to_owned())];
        if let Some(address) = &self.address {
            let number = self.due().add(JobId::derive(&named.tenant, &named.source, &named.id));
            headers.push((REPLY_TO.to_owned(), format!("{address}.{number}")));
        }
        match self.bus.ingress_publish(&named.tenant, headers, Bytes::copy_from_slice(event.as_bytes())).await {
            Ok(()) => Ok(None),
            Err(error @ Error::TooLarge { .. }) => refused("too_large", error.to_string()),
            Err(error) => Err(error),
        }
    }

    /// What an answer says, if it refuses a job of ours.
    fn refused(&self, number: u64, answer: &[u8]) -> Option<Heard> {
        let job = self.due().jobs.remove(&number)?;
        let (code, words) = refusal(answer)?;
        Some(Heard::Refused(job, code, words))
    }

    fn due(&self) -> std::sync::MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next answer; never one where there is no inbox.
async fn answer(inbox: Option<&mut Box<dyn Inbox>>) -> Result<(u64, Bytes), Error> {
    match inbox {
        Some(inbox) => inbox.next().await,
        None => std::future::pending().await,
    }
}

#[async_trait]
impl Target for BusTarget {
    async fn submit(&self, events: &[String]) -> Result<Vec<Refused>, SubmitError> {
        let put = join_all(events.iter().enumerate().map(|(index, event)| self.put(index, event))).await;
        let mut all = Vec::new();
        for one in put {
            match one {
                Ok(refused) => all.extend(refused),
                Err(error) => {
                    let after = matches!(error, Error::Full { .. }).then_some(FULL_PAUSE);
                    return Err(SubmitError::Later { after, detail: error.to_string() });
                }
            }
        }
        Ok(all)
    }

    async fn listen(&self, after: Option<&str>, heard: &mpsc::Sender<Heard>) -> Result<(), TargetError> {
        let after = after.and_then(|after| after.parse().ok()).map(Seq);
        let mut events = self.bus.read_events(after).await.map_err(failed)?;
        let mut inbox = match &self.inbox {
            Some(inbox) => Some(inbox.lock().await),
            None => None,
        };
        if heard.send(Heard::Connected).await.is_err() {
            return Ok(());
        }
        loop {
            let told: Vec<Heard> = tokio::select! {
                biased;
                () = heard.closed() => return Ok(()),
                placed = events.next(EVENTS_MAX) => {
                    let placed = placed.map_err(failed)?;
                    let ended: Vec<Ended> = placed.iter().filter_map(|placed| outcome(&placed.event.body)).collect();
                    // After what it covers, so that a broken connection loses nothing.
                    let last = placed.last().map(|last| Heard::At(last.seq.to_string()));
                    [Heard::Ended(ended)].into_iter().chain(last).collect()
                }
                said = answer(inbox.as_deref_mut()) => {
                    let (number, said) = said.map_err(failed)?;
                    self.refused(number, &said).into_iter().collect()
                }
            };
            for one in told {
                if heard.send(one).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    async fn job(&self, job: JobId) -> Result<Option<JobView>, TargetError> {
        self.rest.job(job).await
    }
    async fn vms(&self, tenant: &str, label: (&str, &str), cursor: Option<&str>) -> Result<VmPage, TargetError> {
        self.rest.vms(tenant, label, cursor).await
    }
    async fn locate(&self, vms: &[VmId]) -> Result<usize, TargetError> {
        self.rest.locate(vms).await
    }
    async fn audit(&self) -> Result<Audited, TargetError> {
        self.rest.audit().await
    }
    async fn cluster(&self) -> Result<Cluster, TargetError> {
        self.rest.cluster().await
    }
    async fn sample(&self) -> Result<Sample, TargetError> {
        self.rest.sample().await
    }
    async fn managers(&self) -> Result<Vec<ManagerSeen>, TargetError> {
        self.rest.managers().await
    }
}
