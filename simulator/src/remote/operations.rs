//! Operations on their way to one process of managers: those that wait go together.
//!
//! A request for each would cost more than all else that a cell does for a job. One request is on
//! its way out at a time, and takes what has come up meanwhile; so a lone operation goes at once,
//! and many go in few requests. Answers come as the operations end, in any order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, ManagerId};
use cellbus_cell::driver::{Error, Op};
use cellbus_directory::VmFacts;
use reqwest::{Response, StatusCode, Url};
use tokio::sync::oneshot;

use super::client::{read, refusal, unreachable};
use super::wire::{PERFORM_MAX, PerformAnswer, PerformRequest};

/// A line tells of one VM: far below this.
const LINE_BYTES_MAX: usize = 1 << 20;

type Answer = Result<Option<VmFacts>, Error>;

/// The way there.
#[derive(Clone, Debug)]
pub(super) struct Operations(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    http: reqwest::Client,
    url: Url,
    env: Env,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Whether a task is sending.
    sending: bool,
}

#[derive(Debug)]
struct Waiting {
    request: PerformRequest,
    answer: oneshot::Sender<Answer>,
}

/// Who waits for an answer of a request.
type Asked = BTreeMap<usize, oneshot::Sender<Answer>>;

impl Operations {
    pub(super) fn new(http: reqwest::Client, url: Url, env: Env) -> Self {
        Self(Arc::new(Shared { http, url, env, state: Mutex::default() }))
    }

    /// Carries one out. Dropped before it was sent, it is not; later, nobody knows.
    pub(super) async fn perform(&self, manager: ManagerId, session: Option<Epoch>, op: &Op) -> Answer {
        let (answer, answered) = oneshot::channel();
        let request = PerformRequest { number: 0, manager, session, op: op.clone() };
        {
            let mut state = self.0.state();
            state.waiting.push_back(Waiting { request, answer });
            if !std::mem::replace(&mut state.sending, true) {
                let shared = Arc::clone(&self.0);
                self.0.env.spawn("operations of managers", send(shared));
            }
        }
        answered.await.unwrap_or_else(|_| Err(Error::Unreachable { detail: "the request was given up".to_owned() }))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes next; `None` once nothing waits, and then nobody sends.
    fn take(&self) -> Option<(Vec<PerformRequest>, Asked)> {
        let mut state = self.state();
        let (mut requests, mut asked) = (Vec::new(), Asked::new());
        while requests.len() < PERFORM_MAX
            && let Some(Waiting { mut request, answer }) = state.waiting.pop_front()
        {
            if !answer.is_closed() {
                request.number = requests.len();
                asked.insert(request.number, answer);
                requests.push(request);
            }
        }
        state.sending = !requests.is_empty();
        state.sending.then_some((requests, asked))
    }
}

async fn send(shared: Arc<Shared>) {
    while let Some((requests, asked)) = shared.take() {
        match shared.http.post(shared.url.clone()).json(&requests).send().await {
            Ok(response) if response.status() == StatusCode::OK => {
                shared.env.spawn("answers of managers", hear(response, asked));
            }
            Ok(response) => {
                let status = response.status();
                fail(asked, &read(response).await.map_or_else(|error| error, |body| refusal(status, &body)));
            }
            Err(error) => fail(asked, &unreachable(&error)),
        }
    }
}

fn fail(asked: Asked, error: &Error) {
    for answer in asked.into_values() {
        // Who asked may have gone.
        let _ = answer.send(Err(error.clone()));
    }
}

/// Hands on each answer as it comes, to the end: a connection whose answer is not read to its end
/// is of no use for another.
async fn hear(mut response: Response, mut asked: Asked) {
    let mut heard = BytesMut::new();
    let ended = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => heard.extend_from_slice(&chunk),
            Ok(None) => break "the answer ended before its time".to_owned(),
            Err(error) => break unreachable(&error).to_string(),
        }
        while let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
            let line = heard.split_to(end + 1);
            let Ok(PerformAnswer { number, result }) = serde_json::from_slice(&line) else { continue };
            if let Some(answer) = asked.remove(&number) {
                let _ = answer.send(result);
            }
        }
        if heard.len() > LINE_BYTES_MAX {
            break "the answer is larger than any of a simulated manager's".to_owned();
        }
    };
    fail(asked, &Error::Unreachable { detail: ended });
}
