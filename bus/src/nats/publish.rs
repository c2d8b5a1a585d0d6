//! Writing: many messages on their way at once, each acknowledged by the server.

use std::collections::VecDeque;

use async_nats::jetstream::context::{PublishAckFuture, PublishError};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use crate::contract::{Error, Result};

use super::{Shared, answer};

/// Messages of one call on their way at once: enough to fill the way there and back.
const WINDOW: usize = 1024;
/// Bytes of one call on their way at once, beside the one message that there always may be.
const WINDOW_BYTES: usize = 32 << 20;

/// What a conditional publish came to.
pub(super) enum Conditional {
    /// Written, at this sequence.
    Written(u64),
    /// Something else was the last of the subject.
    Refused,
}

impl Shared {
    /// Writes all, in order on each subject, and gives the sequence of the last. On an error the others may
    /// be there; a plain refusal means that none is.
    pub(super) async fn publish_all(
        &self,
        items: impl IntoIterator<Item = (String, PublishMessage, usize)>,
    ) -> Result<u64> {
        let mut on_their_way: VecDeque<(PublishAckFuture, usize)> = VecDeque::new();
        let (mut bytes_on_their_way, mut last, mut failed) = (0, 0_u64, None);
        for (subject, message, bytes) in items {
            while on_their_way.len() >= WINDOW
                || (!on_their_way.is_empty() && bytes_on_their_way + bytes > WINDOW_BYTES)
            {
                let Some((ack, bytes)) = on_their_way.pop_front() else { break };
                bytes_on_their_way -= bytes;
                self.settle(ack.await, &mut last, &mut failed);
            }
            match self.jetstream.send_publish(subject, message).await {
                Ok(ack) => {
                    bytes_on_their_way += bytes;
                    on_their_way.push_back((ack, bytes));
                }
                Err(error) => {
                    failed.get_or_insert_with(|| self.publish_error(&error));
                }
            }
        }
        for (ack, _) in on_their_way {
            self.settle(ack.await, &mut last, &mut failed);
        }
        match failed {
            None => Ok(last),
            Some(Error::Full { reason } | Error::Unavailable { reason }) if last > 0 => {
                Err(Error::Unknown { reason: format!("a part was written, and then no more: {reason}") })
            }
            Some(error) => Err(error),
        }
    }

    fn settle(
        &self,
        outcome: std::result::Result<async_nats::jetstream::publish::PublishAck, PublishError>,
        last: &mut u64,
        failed: &mut Option<Error>,
    ) {
        match outcome {
            Ok(ack) => *last = ack.sequence,
            // The first is the one to tell, but that something is unknown outweighs a plain refusal.
            Err(error) => {
                let error = self.publish_error(&error);
                if failed.is_none() || matches!(error, Error::Unknown { .. }) {
                    *failed = Some(error);
                }
            }
        }
    }

    /// Writes one message.
    pub(super) async fn publish_one(&self, subject: String, message: PublishMessage) -> Result<u64> {
        self.connected()?;
        match self.jetstream.send_publish(subject, message).await {
            Ok(ack) => ack.await.map(|ack| ack.sequence).map_err(|error| self.publish_error(&error)),
            Err(error) => Err(self.publish_error(&error)),
        }
    }

    /// Writes one message if `expected` is the last of its subject.
    pub(super) async fn publish_if(
        &self,
        subject: String,
        message: PublishMessage,
        expected: u64,
    ) -> Result<Conditional> {
        self.connected()?;
        let message = message.expected_last_subject_sequence(expected);
        let outcome = match self.jetstream.send_publish(subject, message).await {
            Ok(ack) => ack.await.map(|ack| ack.sequence),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(seq) => Ok(Conditional::Written(seq)),
            Err(error) if answer::is_wrong_last(&error) => Ok(Conditional::Refused),
            Err(error) => Err(self.publish_error(&error)),
        }
    }

    pub(super) fn publish_error(&self, error: &PublishError) -> Error {
        let error = answer::publish_error(error, self.client.max_payload());
        if matches!(error, Error::Full { .. }) {
            self.filled();
        }
        error
    }
}

/// A message of these bytes.
pub(super) fn message(body: Bytes) -> PublishMessage {
    PublishMessage::build().payload(body)
}
