//! `cellbus submit`.

use std::fs::File;
use std::io::{self, BufReader, Read};

use anyhow::Context as _;
use cellbus_bus::Env;
use clap::Args;
use serde_json::value::RawValue;

use crate::exit::{Error, Result, note};
use crate::jobs::{Jobs, job_id};
use crate::remote::Remote;
use crate::table::{self, Column, column};

const SUBMITTED: &[Column] = &[column("JOB", "job_id|id"), column("STATE", "state")];

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
        let (name, source): (&str, Box<dyn Read>) = if self.file == "-" {
            ("standard input", Box::new(io::stdin().lock()))
        } else {
            let file = File::open(&self.file).with_context(|| format!("cannot read {}", self.file))?;
            (&self.file, Box::new(file))
        };
        let mut ids = Vec::new();
        let mut events = 0_u64;
        for event in serde_json::Deserializer::from_reader(BufReader::new(source)).into_iter::<Box<RawValue>>() {
            events += 1;
            let event = event.map_err(|error| Error::Failed(format!("{name}: event {events} is not JSON: {error}")))?;
            let batch = event.get().starts_with('[');
            let answer = client.submit(event.get().to_owned(), batch, &[]).await.inspect_err(|_| {
                note(&format!("cellbus: {name}: event {events}, and what comes after it, was not taken"));
            })?;
            if self.wait {
                ids.extend(table::items(&answer.value).iter().filter_map(job_id).map(str::to_owned));
            } else if events == 1 {
                printer.list(&answer, SUBMITTED)?;
            } else {
                printer.more(&answer, SUBMITTED)?;
            }
        }
        match (events, self.wait) {
            (0, _) => Err(Error::Usage(format!("{name} holds no event"))),
            (_, true) => jobs.wait_and_show(&ids, None).await,
            (_, false) => Ok(()),
        }
    }
}
