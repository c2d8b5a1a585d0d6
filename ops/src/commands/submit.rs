//! `cellbus submit`.

use std::fs::File;
use std::io::{self, BufReader, Read};

use anyhow::Context as _;
use cellbus_bus::Env;
use clap::Args;
use serde_json::value::RawValue;

use crate::client::{Answer, Client};
use crate::exit::{Error, Result, note};
use crate::jobs::Jobs;
use crate::output::Remote;
use crate::table;

/// Submit jobs: CloudEvents, one JSON a line; a JSON array is taken or refused as a whole
///
/// They are submitted in their order, each when the one before it is durable, and the first
/// refusal ends it. The same file again gives the same jobs.
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    remote: Remote,
    /// The file, or - for standard input
    file: String,
    /// Stay until all jobs have ended; exit code 1 if one did not succeed
    #[arg(long)]
    wait: bool,
}

impl Command {
    pub(super) async fn run(self, env: &Env) -> Result<()> {
        let (client, printer) = self.remote.open()?;
        let jobs = Jobs { client: &client, printer: &printer, env };
        let source: Box<dyn Read> = if self.file == "-" {
            Box::new(io::stdin().lock())
        } else {
            Box::new(File::open(&self.file).with_context(|| format!("cannot read {}", self.file))?)
        };
        let mut ids = Vec::new();
        let mut events = 0_u64;
        for event in serde_json::Deserializer::from_reader(BufReader::new(source)).into_iter::<Box<RawValue>>() {
            events += 1;
            let event = event.map_err(|error| Error::Failed(format!("{}: event {events}: {error}", self.file)))?;
            let answer = match submit(&client, event.get()).await {
                Ok(answer) => answer,
                Err(error) => {
                    printer.refusal(&error)?;
                    note(&format!("cellbus: {}: event {events}, and what comes after it, was not taken:", self.file));
                    return Err(error);
                }
            };
            if self.wait {
                ids.extend(table::items(&answer.value).iter().filter_map(crate::jobs::job_id).map(str::to_owned));
            } else {
                jobs.show(&[answer])?;
            }
        }
        match (events, self.wait) {
            (0, _) => Err(Error::Usage(format!("{} holds no event", self.file))),
            (_, true) => jobs.wait_and_show(&ids, None).await,
            (_, false) => Ok(()),
        }
    }
}

async fn submit(client: &Client, event: &str) -> Result<Answer> {
    client.submit(event.to_owned(), event.starts_with('['), &[]).await
}
