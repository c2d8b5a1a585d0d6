//! Jobs as commands make them: the CloudEvent, its key, its submission, and the wait for its end.

use std::time::Duration;

use cellbus_bus::Env;
use clap::Args;
use futures::stream::{self, StreamExt as _};
use reqwest::StatusCode;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::client::{Answer, Client};
use crate::exit::{Error, Result, note};
use crate::output::{Printer, line};
use crate::table::{self, Column, column};

/// How long the server is asked to hold an answer back; it answers sooner when the job ends sooner.
const WAIT_PER_CALL: &str = "30s";
const POLL_FIRST: Duration = Duration::from_millis(50);
const POLL_LONGEST: Duration = Duration::from_secs(2);
/// How many jobs are asked about at once: enough to hide the round trip, few enough to be polite.
const POLLS_AT_ONCE: usize = 16;
/// Members of one batch: small against the 4 MiB of a body, and soon refused whole if one is bad.
const BATCH: usize = 500;

const COLUMNS: &[Column] = &[
    column("JOB", "job_id|id"),
    column("TYPE", "type"),
    column("STATE", "state"),
    column("VMS", "vms_total"),
    column("ERROR", "error.code|outcome.error.code"),
    column("MESSAGE", "error.message|outcome.error.message"),
];

/// Who asks, and under which key.
#[derive(Clone, Debug, Args)]
pub(crate) struct Key {
    /// Whose VMs [default: for a VM given by its id, its own tenant; otherwise `default`]
    #[arg(long, value_name = "TENANT", env = "CELLBUS_TENANT")]
    pub(crate) tenant: Option<String>,
    /// First half of the idempotency key: the same source and id again give the same job
    #[arg(long, value_name = "SOURCE", default_value = "/cellbus/cli")]
    pub(crate) source: String,
    /// Second half of the idempotency key [default: a random one, which is printed]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
}

impl Key {
    /// The id, made up (and said, so that the command can be repeated safely) if none was given.
    pub(crate) fn id_or_random(&self, env: &Env) -> String {
        self.id.clone().unwrap_or_else(|| {
            let id = random_id(env);
            note(&format!("key: --source {} --id {id} (the same again gives the same job)", self.source));
            id
        })
    }
    /// The event that asks for `kind`.
    pub(crate) fn event(&self, kind: &str, id: &str, target: Option<&Target>, data: &Map<String, Value>) -> Value {
        let tenant = target.map_or_else(|| self.tenant(), |target| &target.tenant);
        let mut event = json!({
            "specversion": "1.0", "id": id, "source": self.source, "tenant": tenant,
            "type": format!("io.cellbus.job.{kind}.v1"), "datacontenttype": "application/json", "data": data,
        });
        if let Some(target) = target {
            event["subject"] = target.vm.as_str().into();
        }
        event
    }
    /// The tenant, where no VM's own counts.
    pub(crate) fn tenant(&self) -> &str {
        self.tenant.as_deref().unwrap_or("default")
    }
}

/// The VM that a job is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its id, or its name.
    pub(crate) vm: String,
    /// Whose it is.
    pub(crate) tenant: String,
}

/// A version 4 UUID.
fn random_id(env: &Env) -> String {
    let bytes = (u128::from(env.random_u64()) << 64 | u128::from(env.random_u64())).to_be_bytes();
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

/// A command's way to the jobs of a server.
pub(crate) struct Jobs<'a> {
    pub(crate) client: &'a Client,
    pub(crate) printer: &'a Printer,
    pub(crate) env: &'a Env,
}

impl Jobs<'_> {
    /// Submits one event, and stays until its job has ended if `wait`.
    pub(crate) async fn submit(&self, event: String, wait: bool, dry_run: bool) -> Result<Answer> {
        let mut query = Vec::new();
        if dry_run {
            query.push(("dry_run", "true".to_owned()));
        } else if wait {
            query.push(("wait", WAIT_PER_CALL.to_owned()));
        }
        let answer = self.client.submit(event, false, &query).await?;
        if !wait || dry_run || answer.status != StatusCode::ACCEPTED {
            return Ok(answer);
        }
        self.wait(known_id(&answer.value)?, None).await
    }

    /// Submits one event, prints what came of it, and fails if the job did.
    pub(crate) async fn submit_and_show(&self, event: &Value, wait: bool, dry_run: bool) -> Result<()> {
        let answer = self.submit(event.to_string(), wait, dry_run).await?;
        if dry_run { self.printer.one(&answer) } else { self.show(&[answer]) }
    }

    /// Submits many events in batches, prints what came of them, and fails if any job did.
    pub(crate) async fn submit_many(&self, events: &[Value], wait: bool) -> Result<()> {
        let mut ids = Vec::with_capacity(events.len());
        let mut answers = Vec::new();
        for batch in events.chunks(BATCH) {
            let answer = self.client.submit(Value::from(batch).to_string(), true, &[]).await.inspect_err(|_| {
                note(&format!("cellbus: {} of {} were submitted before this", ids.len(), events.len()));
            })?;
            for job in table::items(&answer.value) {
                ids.push(known_id(job)?.to_owned());
            }
            answers.push(answer);
        }
        if !wait {
            return self.show(&answers);
        }
        self.wait_and_show(&ids, None).await
    }

    /// Waits for each of `ids`, then prints them in that order; fails if any did.
    pub(crate) async fn wait_and_show(&self, ids: &[String], at_most: Option<Duration>) -> Result<()> {
        let answers: Vec<Result<Answer>> =
            stream::iter(ids).map(|id| self.wait(id, at_most)).buffered(POLLS_AT_ONCE).collect().await;
        let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
        self.show(&answers)?;
        match answers.iter().filter(|answer| !ended(&answer.value)).count() {
            0 => Ok(()),
            late => Err(Error::Failed(format!("{late} of {} jobs had not ended in time", answers.len()))),
        }
    }

    /// Waits until the job has ended, or `at_most`; gives its last answer.
    pub(crate) async fn wait(&self, id: &str, at_most: Option<Duration>) -> Result<Answer> {
        let began = self.env.mono();
        let mut pause = POLL_FIRST;
        loop {
            match self.client.get(&["v1", "jobs", id], &[]).await {
                Ok(answer) if ended(&answer.value) => return Ok(answer),
                Ok(answer) => {
                    if at_most.is_some_and(|most| self.env.mono().since(began) >= most) {
                        return Ok(answer);
                    }
                }
                // A shard that moves answers so for a moment; the job is not lost.
                Err(Error::Refused(problem)) if problem.passes() => {
                    pause = problem.retry_after.unwrap_or(pause).min(POLL_LONGEST);
                }
                Err(error) => return Err(error),
            }
            self.env.sleep(pause).await;
            pause = (pause * 3 / 2).min(POLL_LONGEST);
        }
    }

    /// Prints what came of jobs; fails if one did not succeed.
    pub(crate) fn show(&self, answers: &[Answer]) -> Result<()> {
        if self.printer.is_json() {
            answers.iter().try_for_each(|answer| line(&answer.text))?;
        } else {
            let rows: Vec<Value> = answers.iter().flat_map(|answer| table::items(&answer.value)).cloned().collect();
            // Columns that only ended jobs fill would be a row of dashes for those just accepted.
            let filled = |column: &&Column| rows.iter().any(|row| column.has_value(row));
            let columns: Vec<Column> = COLUMNS.iter().filter(filled).copied().collect();
            crate::output::text(&table::rows(&rows, &columns))?;
        }
        verdict(answers.iter().flat_map(|answer| table::items(&answer.value)))
    }
}

/// An error when one of `jobs` has ended otherwise than asked.
fn verdict<'a>(jobs: impl Iterator<Item = &'a Value>) -> Result<()> {
    let (mut bad, mut all) = (0_u64, 0_u64);
    for job in jobs {
        all += 1;
        if matches!(job.get("state").and_then(Value::as_str), Some("failed" | "cancelled")) {
            bad += 1;
        }
    }
    match (bad, all) {
        (0, _) => Ok(()),
        (1, 1) => Err(Error::Failed("the job did not succeed".to_owned())),
        (bad, all) => Err(Error::Failed(format!("{bad} of {all} jobs did not succeed"))),
    }
}

fn ended(job: &Value) -> bool {
    matches!(job.get("state").and_then(Value::as_str), Some("succeeded" | "failed" | "cancelled"))
}

/// The id in a job, or in what a submission was answered with.
pub(crate) fn job_id(answer: &Value) -> Option<&str> {
    answer.get("job_id").or_else(|| answer.get("id")).and_then(Value::as_str)
}

fn known_id(answer: &Value) -> Result<&str> {
    job_id(answer).ok_or_else(|| Error::Failed(format!("the server's answer names no job: {answer}")))
}

/// Whether `text` is an id of a VM or job rather than a name.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 36 && Uuid::try_parse(text).is_ok()
}

/// `key=value`.
pub(crate) fn key_value(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("must be KEY=VALUE".to_owned()),
    }
}

/// A length of time: `500ms`, `30s`, `5m`, `2h`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> std::result::Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let seconds_each = match &text[digits..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("must be a length of time such as 500ms, 30s, 5m or 2h".to_owned()),
    };
    let number: f64 = text[..digits].parse().map_err(|_| "must begin with a number".to_owned())?;
    Duration::try_from_secs_f64(number * seconds_each).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "-1s", "1d", "1e400", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_job_that_did_not_succeed_is_an_error() {
        let job = |state: &str| json!({"state": state});
        assert!(verdict([job("succeeded"), job("running")].iter()).is_ok());
        assert!(verdict([job("succeeded"), job("cancelled")].iter()).is_err());
    }
}
