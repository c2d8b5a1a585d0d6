//! The side of the cells.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, HostId, ManagerId, ManagerName, VmId};
use cellbus_cell::driver::{
    Change, Driver, Drivers, Error, FencedHost, ForeignVm, HeldVm, Inventory, Limits, Op, RunningTask,
};
use cellbus_cell::security::{self, MembersTls};
use cellbus_directory::VmFacts;
use reqwest::{StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::managers::Latency;

use super::operations::Operations;
use super::wire::{
    ChangesAnswer, ChangesRequest, ErrorAnswer, FencedRequest, InspectRequest, ManagerInfo, MayBeFencedRequest,
    OpenAnswer, OpenRequest, ReadRequest,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A reading that takes longer is given up: the manager is as good as away. Operations have no
/// bound here, as their callers have one.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than the server holds a request for changes.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(60);
/// How soon a server that vanished without a word is noticed.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Far above the inventory of one manager.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Why there is no connection to simulated managers.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is none.
    #[error(
        "{url:?} is no address of simulated managers; it looks like https://host:7080 with certificates of members, and \
         like http://127.0.0.1:7080 without"
    )]
    Address {
        /// What was given.
        url: String,
    },
    /// They did not answer, or something else did.
    #[error("the simulated managers at {url} give no answer")]
    NoAnswer {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: Error,
    },
}

impl ConnectError {
    /// Whether they may answer later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Address { .. } => false,
            Self::NoAnswer { .. } => true,
        }
    }
}

/// Simulated managers in another process.
#[derive(Clone, Debug)]
pub struct RemoteFleet {
    http: reqwest::Client,
    base: Url,
    managers: BTreeMap<ManagerId, ManagerInfo>,
    operations: Operations,
    env: Env,
}

impl RemoteFleet {
    /// Asks which managers are served at `url` (`http://127.0.0.1:7080`). Cancel safe.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(url: &str, env: Env) -> Result<Self, ConnectError> {
        Self::connect_with(url, None, env).await
    }

    /// As [`RemoteFleet::connect`]; with certificates of members, at `https://host:7080` too.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect_with(url: &str, tls: Option<&MembersTls>, env: Env) -> Result<Self, ConnectError> {
        let mut fleet = Self::at(url, tls, env)?;
        let request = fleet.http.get(fleet.url(&["managers"]));
        let managers: Vec<ManagerInfo> = limited(&fleet.env, READ_TIMEOUT, send(request))
            .await
            .map_err(|source| ConnectError::NoAnswer { url: url.to_owned(), source })?;
        fleet.managers = managers.into_iter().map(|info| (info.id, info)).collect();
        Ok(fleet)
    }

    /// Takes it that these managers are served at `url`, without asking: they may be away for now.
    /// Their limits are taken to be the usual ones.
    ///
    /// # Errors
    /// [`ConnectError::Address`].
    pub fn unasked(
        url: &str,
        managers: impl IntoIterator<Item = ManagerName>,
        tls: Option<&MembersTls>,
        env: Env,
    ) -> Result<Self, ConnectError> {
        let info = |name: ManagerName| ManagerInfo {
            id: ManagerId::derive(name.as_str()),
            name,
            hosts: 0,
            limits: Latency::Fast.limits(),
        };
        let managers = managers.into_iter().map(info).map(|info| (info.id, info)).collect();
        Ok(Self { managers, ..Self::at(url, tls, env)? })
    }

    fn at(url: &str, tls: Option<&MembersTls>, env: Env) -> Result<Self, ConnectError> {
        // Whether `http` will do is the configuration's to say.
        let scheme = |base: &Url| base.scheme() == "http" || (base.scheme() == "https" && tls.is_some());
        let base = Url::parse(url).ok().filter(|base| base.has_host() && scheme(base));
        let base = base.ok_or_else(|| ConnectError::Address { url: url.to_owned() })?;
        // Managers are reached directly: what HTTP_PROXY says is meant for the web.
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .tcp_nodelay(true);
        let http = match tls {
            Some(tls) => http.tls_backend_preconfigured(tls.client_of_any_protocol()),
            None => {
                // Nobody's certificate is asked for, so no CA is.
                security::use_ring();
                http.tls_certs_only([])
            }
        };
        let no_answer = |error| ConnectError::NoAnswer { url: url.to_owned(), source: unreachable(&error) };
        let http = http.build().map_err(no_answer)?;
        let operations = Operations::new(http.clone(), url_of(&base, &["perform"]), env.clone());
        Ok(Self { http, base, managers: BTreeMap::new(), operations, env })
    }

    /// The managers that were served when it connected.
    pub fn managers(&self) -> impl Iterator<Item = &ManagerInfo> {
        self.managers.values()
    }

    /// A new connection to a manager, not yet opened; `None` if there is no such manager.
    #[must_use]
    pub fn driver(&self, manager: ManagerId) -> Option<Arc<dyn Driver>> {
        let info = self.managers.get(&manager)?;
        Some(Arc::new(RemoteDriver { fleet: self.clone(), info: info.clone(), session: Mutex::default() }))
    }

    fn url(&self, path: &[&str]) -> Url {
        url_of(&self.base, path)
    }
}

fn url_of(base: &Url, path: &[&str]) -> Url {
    let mut url = base.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(["sim", "v1"]).extend(path);
    }
    url
}

impl Drivers for RemoteFleet {
    fn connect(&self, manager: ManagerId) -> Option<Arc<dyn Driver>> {
        self.driver(manager)
    }
}

pub(super) fn unreachable(error: &dyn std::error::Error) -> Error {
    // The outer error says only that a request failed; its cause says why.
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    Error::Unreachable { detail: format!("{error}{cause}") }
}

async fn limited<T>(env: &Env, limit: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = || Error::Unreachable { detail: format!("no answer within {} s", limit.as_secs()) };
    env.timeout(limit, call).await.ok_or_else(late)?
}

async fn send<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, Error> {
    let response = request.send().await.map_err(|error| unreachable(&error))?;
    let status = response.status();
    let body = read(response).await?;
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|_| garbled(status));
    }
    Err(refusal(status, &body))
}

/// What an answer says that is no success.
pub(super) fn refusal(status: StatusCode, body: &[u8]) -> Error {
    serde_json::from_slice::<ErrorAnswer>(body).map_or_else(|_| garbled(status), |answer| answer.error)
}
fn garbled(status: StatusCode) -> Error {
    Error::Unreachable { detail: format!("the answer ({status}) is none of a simulated manager's") }
}

pub(super) async fn read(mut response: reqwest::Response) -> Result<Bytes, Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(Error::Unreachable {
                detail: "the answer is larger than any of a simulated manager's".to_owned(),
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

struct RemoteDriver {
    fleet: RemoteFleet,
    info: ManagerInfo,
    session: Mutex<Session>,
}

#[derive(Clone, Copy, Default)]
struct Session {
    epoch: Option<Epoch>,
    /// How far changes have been heard.
    heard: u64,
}

impl RemoteDriver {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn epoch(&self) -> Option<Epoch> {
        self.session().epoch
    }

    async fn call<T: DeserializeOwned>(&self, what: &str, request: &impl Serialize) -> Result<T, Error> {
        let url = self.fleet.url(&["managers", &self.info.id.to_string(), what]);
        send(self.fleet.http.post(url).json(request)).await
    }
    async fn read<T: DeserializeOwned>(&self, what: &str, request: &impl Serialize) -> Result<T, Error> {
        limited(&self.fleet.env, READ_TIMEOUT, self.call(what, request)).await
    }
}

#[async_trait]
impl Driver for RemoteDriver {
    async fn open(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        let answer: OpenAnswer = self.read("open", &OpenRequest { epoch }).await?;
        let mut session = self.session();
        if session.epoch != Some(epoch) {
            *session = Session { epoch: Some(epoch), heard: answer.cursor };
        }
        Ok(answer.tasks)
    }
    async fn inventory(&self) -> Result<Inventory, Error> {
        self.read("inventory", &ReadRequest { session: self.epoch() }).await
    }
    async fn tasks(&self) -> Result<Vec<RunningTask>, Error> {
        self.read("tasks", &ReadRequest { session: self.epoch() }).await
    }
    async fn perform(&self, op: &Op) -> Result<Option<VmFacts>, Error> {
        self.fleet.operations.perform(self.info.id, self.epoch(), op).await
    }
    async fn inspect(&self, vm: VmId) -> Result<Option<HeldVm>, Error> {
        self.read("inspect", &InspectRequest { session: self.epoch(), vm }).await
    }
    async fn changes(&self) -> Result<Vec<Change>, Error> {
        loop {
            let Session { epoch, heard } = *self.session();
            let request = ChangesRequest { session: epoch, cursor: heard };
            let call = self.call("changes", &request);
            let answer: ChangesAnswer = limited(&self.fleet.env, LISTEN_TIMEOUT, call).await?;
            // There is no await from here on, so that changes that were taken are given.
            let mut session = self.session();
            if session.epoch == epoch {
                session.heard = answer.cursor;
            }
            drop(session);
            if !answer.changes.is_empty() {
                return Ok(answer.changes);
            }
        }
    }
    async fn dead_hosts(&self) -> Result<Vec<HostId>, Error> {
        self.read("dead-hosts", &ReadRequest { session: self.epoch() }).await
    }
    async fn may_be_fenced(&self, host: &HostId) -> Result<(), Error> {
        self.read("may-be-fenced", &MayBeFencedRequest { host: host.clone() }).await
    }
    async fn fenced(&self, hosts: Vec<FencedHost>) -> Result<(), Error> {
        // Once it is open it is told again.
        let Some(session) = self.epoch() else { return Ok(()) };
        let hosts = hosts.into_iter().map(|host| host.id).collect();
        self.read("fenced", &FencedRequest { session, hosts }).await
    }
    async fn foreign(&self) -> Result<Vec<ForeignVm>, Error> {
        self.read("foreign", &ReadRequest { session: self.epoch() }).await
    }
    fn limits(&self) -> Limits {
        self.info.limits.clone()
    }
}
