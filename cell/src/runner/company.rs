//! Answers that wait for company before they go into the log.
//!
//! That an event or a report is out need not be durable at once: an owner that dies before it is tells it
//! again, under the same id, which those that it is for know. So such an answer is handed in with the next
//! input, and by itself only after [`WAIT`]: a job needs an append less wherever its shard is at work.

use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::env::BoxFuture;
use cellbus_directory::record::IntentKey;
use cellbus_workflows::{EffectAnswer, Input};

/// How long one waits at the most: short beside what a new owner has to tell again anyhow, long beside what
/// passes between two inputs of a shard that is at work.
const WAIT: Duration = Duration::from_millis(200);
/// So many do not wait: they are an append's worth by themselves.
const WAITING_MAX: usize = 256;

/// Those that wait.
#[derive(Default)]
pub(super) struct Company {
    waiting: Vec<Input>,
    due: Option<BoxFuture<()>>,
}

impl Company {
    /// Keeps an answer that may wait: nothing follows from it but that it is not told again. Any other it gives back,
    /// to be handed in.
    pub(super) fn keep(&mut self, env: &Env, intent: IntentKey, answer: EffectAnswer) -> Option<Input> {
        let bookkeeping =
            matches!(intent, IntentKey::OutcomeEvent(_) | IntentKey::AcceptedEvent(_) | IntentKey::Report(..));
        let waits = bookkeeping && matches!(answer, EffectAnswer::Published) && self.waiting.len() < WAITING_MAX;
        let input = Input::Answered { intent, answer };
        if !waits {
            return Some(input);
        }
        self.due.get_or_insert_with(|| env.sleep(WAIT));
        self.waiting.push(input);
        None
    }

    /// All of them: something goes into the log.
    pub(super) fn take(&mut self) -> Vec<Input> {
        self.due = None;
        std::mem::take(&mut self.waiting)
    }

    /// Waits until the first of them has waited long enough; for ever if there is none. Cancel safe.
    pub(super) async fn due(&mut self) {
        match &mut self.due {
            Some(due) => due.await,
            None => std::future::pending().await,
        }
    }
}
