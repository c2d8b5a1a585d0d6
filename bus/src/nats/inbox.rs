//! The inbox of a producer in this process: a subject of its own on plain NATS.

use std::sync::Arc;

use async_nats::{Client, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::contract::{Inbox, Result};

use super::{Shared, answer, closed};

/// One subscription for all answers. The client library renews it on a new connection.
pub(super) struct Answers {
    subject: String,
    came: Subscriber,
    closed: CancellationToken,
}

impl Answers {
    pub(super) async fn open(shared: &Arc<Shared>) -> Result<Self> {
        shared.connected()?;
        let client: &Client = &shared.client;
        let subject = client.new_inbox();
        let came = client
            .subscribe(format!("{subject}.*"))
            .await
            .map_err(|error| answer::unavailable("subscribe to an inbox", &error))?;
        Ok(Self { subject, came, closed: shared.closed.clone() })
    }
}

#[async_trait]
impl Inbox for Answers {
    fn address(&self) -> &str {
        &self.subject
    }

    async fn next(&mut self) -> Result<(u64, Bytes)> {
        loop {
            let came = tokio::select! {
                biased;
                () = self.closed.cancelled() => None,
                came = self.came.next() => came,
            };
            let message = came.ok_or_else(closed)?;
            // Whoever else writes here is not heard.
            if let Some(number) = message.subject.rsplit('.').next().and_then(|number| number.parse().ok()) {
                return Ok((number, message.payload));
            }
        }
    }
}
