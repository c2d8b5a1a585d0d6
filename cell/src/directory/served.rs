//! A process of the directory among the members, and what it answers to the others.

use std::sync::Arc;

use async_trait::async_trait;
use cellbus_directory::tail;
use tokio_util::sync::CancellationToken;

use super::{Answer, Directory};
use crate::gateway::BUS_SILENT_MAX;
use crate::peers::{Post, Request, Response, Serve};
use crate::presence::Presence;
use crate::process::Process;

/// Takes part in the cluster as a directory until `stop`: others find it among the members, and it
/// answers what its replica knows, which `tail` feeds. Dropped, it is gone when its last beat runs out.
pub async fn serve(presence: Presence, tail: tail::Handle, stop: CancellationToken) {
    let (process, id) = (presence.process.clone(), presence.id.clone());
    process.local().join(id.clone(), Arc::new(Served { process: process.clone(), tail }));
    presence.run(stop).await;
    process.local().leave(&id);
}

struct Served {
    process: Process,
    tail: tail::Handle,
}

impl Served {
    /// Why it cannot say what is there, if so: what it does not know may be there all the same.
    fn not_ready(&self) -> Option<String> {
        if !self.tail.ready() {
            return Some("it still reads the logs".to_owned());
        }
        let silent = self.process.bus_silent();
        (silent > BUS_SILENT_MAX).then(|| format!("the bus has given it no answer for {} s", silent.as_secs()))
    }
}

#[async_trait]
impl Serve for Served {
    async fn serve(&self, request: Request) -> Response {
        let (Request::Directory(ask), Directory::Here(here)) = (request, &*self.process.directory) else {
            return Response::NotMine;
        };
        let answer = match self.not_ready() {
            Some(reason) => Answer::NotReady { reason },
            None => here.answer(*ask).await,
        };
        Response::Directory(Box::new(answer))
    }
    fn take(&self, _: Post) {
        // Nobody posts to a directory: calls of managers go to cells, and are asked again.
    }
}
