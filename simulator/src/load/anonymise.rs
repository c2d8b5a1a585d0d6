//! An operator's own job log as a trace that can be shared: names replaced, sizes and times kept.
//!
//! The log is JSON, one object a line, in any order, of either kind:
//!
//! - **CloudEvents**: jobs as they were submitted (`io.cellbus.job.provision.v1`, `...delete.v1`; others are
//!   left out), with the `time` attribute, and outcomes as Cellbus sends them (`...succeeded.v1` and so on).
//!   A provision that failed, was cancelled or refused made no VM; without its submission, a success tells
//!   the VMs, but not their size;
//! - **jobs as the API lists them** (`cellbus job list --output json`, a page or a job a line): times and VMs,
//!   but no sizes.
//!
//! A VM whose size the log does not tell has 1 vCPU and 1 GiB, and is counted as such. What comes out is a
//! trace (ops/docs/interface.md): a row for each VM, named by its place in the order of creation, tenants
//! likewise, times in seconds from the first. Nothing else of the log goes into it. VMs that are deleted and
//! never made are older than the log, and left out.
//!
//! Lines are read one by one and bounded; what is held is some hundred bytes for each VM.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Read as _, Write};

use cellbus_bus::cloudevent::type_of;
use cellbus_bus::ids::{JobId, VmId};
use cellbus_bus::job::JobKind;
use foldhash::fast::FixedState;
use serde::Deserialize;
use serde_json::Value;

/// As many as a trace may have.
const VMS_MAX: usize = 10_000_000;
/// A page of 1,000 jobs, or the largest event.
const LINE_BYTES_MAX: u64 = 4 << 20;
const COUNT_MAX: u64 = 10_000;
const UNKNOWN: Shape = Shape { vcpus: 1, memory_mib: 1_024, disk_gib: 1 };

/// Why a log is no log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("the log cannot be read")]
    Read(#[source] io::Error),
    /// The trace cannot be written.
    #[error("the trace cannot be written")]
    Write(#[source] io::Error),
    /// A line makes no sense.
    #[error("line {line}: {problem}")]
    Line {
        /// Which, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    /// A log is as it is: reading it again gives the same.
    #[must_use]
    pub fn retryable(&self) -> bool {
        false
    }
}

/// What was done with a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Lines that hold something.
    pub lines: u64,
    /// VMs in the trace.
    pub vms: u64,
    /// Of these, deleted again.
    pub deleted: u64,
    /// Of these, of unknown size.
    pub unknown_size: u64,
    /// Tenants in the trace.
    pub tenants: u64,
    /// Jobs that make or delete no VM, or are there twice.
    pub left_out: u64,
    /// VMs of jobs that did not succeed.
    pub never_made: u64,
    /// Deletes of VMs that are not in the log.
    pub older: u64,
}

#[derive(Clone, Copy)]
struct Shape {
    vcpus: u32,
    memory_mib: u64,
    disk_gib: u64,
}

struct Vm {
    job: JobId,
    tenant: u32,
    from: f64,
    until: Option<f64>,
    shape: Option<Shape>,
}

type Fixed<K, V> = HashMap<K, V, FixedState>;

#[derive(Default)]
struct Log {
    vms: Vec<Vm>,
    by_id: Fixed<VmId, u32>,
    by_name: Fixed<(u32, String), Vec<u32>>,
    tenants: Fixed<String, u32>,
    jobs: HashSet<JobId, FixedState>,
    /// Provisions that made nothing.
    failed: HashSet<JobId, FixedState>,
    /// Submissions of deletes, to be forgotten where they failed.
    deletes: Vec<(JobId, Doomed, f64)>,
    summary: Summary,
}

/// Which VM a delete is about.
enum Doomed {
    Id(VmId),
    Named(u32, String),
}

/// Reads a log and writes the trace.
///
/// # Errors
/// [`Error`] says which line makes no sense; then nothing has been written.
pub fn anonymise(log: impl io::Read, out: impl Write) -> Result<Summary, Error> {
    let mut read = Log::default();
    let mut reader = io::BufReader::new(log);
    let (mut bytes, mut number) = (Vec::new(), 0);
    loop {
        bytes.clear();
        let got = reader.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes).map_err(Error::Read)?;
        if got == 0 {
            break;
        }
        number += 1;
        let refuse = |problem: String| Error::Line { line: number, problem };
        if bytes.len() as u64 > LINE_BYTES_MAX {
            return Err(refuse(format!("it is longer than {LINE_BYTES_MAX} bytes")));
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| refuse(format!("it is no JSON: {error}")))?;
        read.summary.lines += 1;
        read.line(&value).map_err(refuse)?;
    }
    read.write(out)
}

/// A job as the API lists it.
#[derive(Deserialize)]
struct Listed {
    job_id: JobId,
    tenant: String,
    #[serde(rename = "type")]
    kind: String,
    state: String,
    vm: Option<VmId>,
    #[serde(default = "one")]
    vms_total: u64,
    accepted_at: String,
}
fn one() -> u64 {
    1
}

/// The data of an outcome.
#[derive(Deserialize)]
struct OutcomeData {
    job_id: JobId,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vms: Vec<Named>,
}
#[derive(Deserialize)]
struct Named {
    id: VmId,
}

/// What an event's type says.
enum Kind {
    Job(JobKind),
    Succeeded,
    /// Failed, cancelled, refused.
    CameToNothing,
    Other,
}

impl Kind {
    fn of(kind: &str) -> Self {
        match kind {
            "io.cellbus.job.succeeded.v1" => Self::Succeeded,
            "io.cellbus.job.failed.v1" | "io.cellbus.job.cancelled.v1" | "io.cellbus.job.refused.v1" => {
                Self::CameToNothing
            }
            kind => JobKind::ALL
                .iter()
                .find(|known| type_of(**known) == kind)
                .map_or(Self::Other, |known| Self::Job(*known)),
        }
    }
}

impl Log {
    fn line(&mut self, value: &Value) -> Result<(), String> {
        if let Some(items) = value.get("items") {
            let items = items.as_array().ok_or("items is no list")?;
            return items.iter().try_for_each(|item| self.listed(item));
        }
        match value.get("specversion") {
            Some(_) => self.event(value),
            None if value.get("job_id").is_some() => self.listed(value),
            None => Err("it is neither a CloudEvent (specversion) nor a job as the API lists it (job_id)".to_owned()),
        }
    }

    fn listed(&mut self, item: &Value) -> Result<(), String> {
        let job = Listed::deserialize(item).map_err(|error| format!("it is no job as the API lists it: {error}"))?;
        let at = seconds(&job.accepted_at)?;
        let kind = JobKind::ALL.iter().find(|kind| kind.as_str() == job.kind);
        let gone = ["failed", "cancelled"].contains(&job.state.as_str());
        match (kind, job.vm) {
            (Some(JobKind::Provision), _) => {
                if gone {
                    self.failed.insert(job.job_id);
                }
                self.provision(job.job_id, &job.tenant, job.vms_total, at, None, None)
            }
            (Some(JobKind::Delete), Some(vm)) if !gone => {
                self.delete(job.job_id, Doomed::Id(vm), at);
                Ok(())
            }
            (Some(_) | None, _) => {
                self.summary.left_out += 1;
                Ok(())
            }
        }
    }

    fn event(&mut self, event: &Value) -> Result<(), String> {
        let text = |name: &str| event.get(name).and_then(Value::as_str).ok_or(format!("the event has no {name}"));
        let data = event.get("data");
        let outcome = || {
            let data = data.ok_or("the outcome has no data")?;
            OutcomeData::deserialize(data).map_err(|error| format!("it is no outcome: {error}"))
        };
        match Kind::of(text("type")?) {
            Kind::Job(kind @ (JobKind::Provision | JobKind::Delete)) => {
                let (tenant, source, id) = (text("tenant")?, text("source")?, text("id")?);
                let at = seconds(text("time").map_err(|_| "the event has no time, so that nothing says when it was")?)?;
                let job = JobId::derive(tenant, source, id);
                if kind == JobKind::Delete {
                    let subject = text("subject")?;
                    let tenant = self.tenant(tenant);
                    let doomed = match subject.parse() {
                        Ok(vm) => Doomed::Id(vm),
                        Err(_) => Doomed::Named(tenant, subject.to_owned()),
                    };
                    self.delete(job, doomed, at);
                    return Ok(());
                }
                let number = |name: &str| data.and_then(|data| data.get(name)).and_then(Value::as_u64);
                let needed = |name: &str| number(name).ok_or(format!("the provision has no {name}"));
                let shape = Shape {
                    vcpus: u32::try_from(needed("vcpus")?).map_err(|_| "vcpus is out of bounds")?,
                    memory_mib: needed("memory_mib")?,
                    disk_gib: number("disk_gib").unwrap_or(UNKNOWN.disk_gib),
                };
                let name = data.and_then(|data| data.get("name")).and_then(Value::as_str);
                self.provision(job, tenant, number("count").unwrap_or(1), at, Some(shape), name)
            }
            Kind::CameToNothing => {
                self.failed.insert(outcome()?.job_id);
                Ok(())
            }
            Kind::Succeeded => {
                let told = outcome()?;
                let provision = told.kind.as_deref() == Some("provision");
                if self.jobs.contains(&told.job_id) || !provision || told.vms.is_empty() {
                    return Ok(());
                }
                // Its submission may come later in the log, with what is known better: see `provision`.
                let (tenant, at) = (text("tenant")?, seconds(text("time")?)?);
                let tenant = self.tenant(tenant);
                for vm in &told.vms {
                    self.vm(vm.id, Vm { job: told.job_id, tenant, from: at, until: None, shape: None })?;
                }
                Ok(())
            }
            Kind::Job(_) | Kind::Other => {
                self.summary.left_out += 1;
                Ok(())
            }
        }
    }

    fn provision(
        &mut self,
        job: JobId,
        tenant: &str,
        count: u64,
        at: f64,
        shape: Option<Shape>,
        name: Option<&str>,
    ) -> Result<(), String> {
        if !(1..=COUNT_MAX).contains(&count) {
            return Err(format!("a job makes 1 to {COUNT_MAX} VMs, not {count}"));
        }
        if !self.jobs.insert(job) {
            self.summary.left_out += 1;
            return Ok(());
        }
        let tenant = self.tenant(tenant);
        for index in 0..count as u32 {
            let vm = self.vm(job.vm(index), Vm { job, tenant, from: at, until: None, shape })?;
            if let Some(name) = name {
                let name = if count > 1 { format!("{name}-{index}") } else { name.to_owned() };
                self.by_name.entry((tenant, name)).or_default().push(vm);
            }
        }
        Ok(())
    }

    /// A VM, or what is known better of one that is known.
    fn vm(&mut self, id: VmId, vm: Vm) -> Result<u32, String> {
        if let Some(known) = self.by_id.get(&id) {
            let there = &mut self.vms[*known as usize];
            there.from = there.from.min(vm.from);
            there.shape = there.shape.or(vm.shape);
            return Ok(*known);
        }
        if self.vms.len() >= VMS_MAX {
            return Err(format!("the log has more than {VMS_MAX} VMs"));
        }
        let place = self.vms.len() as u32;
        self.by_id.insert(id, place);
        self.vms.push(vm);
        Ok(place)
    }

    fn delete(&mut self, job: JobId, doomed: Doomed, at: f64) {
        if self.jobs.insert(job) {
            self.deletes.push((job, doomed, at));
        } else {
            self.summary.left_out += 1;
        }
    }

    fn tenant(&mut self, name: &str) -> u32 {
        if let Some(known) = self.tenants.get(name) {
            return *known;
        }
        let next = self.tenants.len() as u32;
        self.tenants.insert(name.to_owned(), next);
        next
    }

    /// Which VM a delete is about: of those that had the name, the last that was made before.
    fn doomed(&self, doomed: &Doomed, at: f64) -> Option<u32> {
        match doomed {
            Doomed::Id(vm) => self.by_id.get(vm).copied(),
            Doomed::Named(tenant, name) => {
                let named = self.by_name.get(&(*tenant, name.clone()))?;
                let before = named.iter().filter(|vm| self.vms[**vm as usize].from <= at);
                before.max_by(|a, b| self.vms[**a as usize].from.total_cmp(&self.vms[**b as usize].from)).copied()
            }
        }
    }

    fn write(mut self, out: impl Write) -> Result<Summary, Error> {
        for (job, doomed, at) in std::mem::take(&mut self.deletes) {
            if self.failed.contains(&job) {
                self.summary.left_out += 1;
                continue;
            }
            match self.doomed(&doomed, at) {
                Some(vm) => {
                    let vm = &mut self.vms[vm as usize];
                    vm.until = Some(vm.until.map_or(at, |until| until.min(at)));
                }
                None => self.summary.older += 1,
            }
        }
        let Self { mut vms, failed, mut summary, .. } = self;
        let all = vms.len();
        vms.retain(|vm| !failed.contains(&vm.job));
        summary.never_made = (all - vms.len()) as u64;
        // Where two were made at one time, they stay in the order of the log.
        vms.sort_by(|a, b| a.from.total_cmp(&b.from));
        let first = vms.first().map_or(0.0, |vm| vm.from);
        let mut tenants: Fixed<u32, usize> = HashMap::default();
        let mut out = io::BufWriter::new(out);
        let write = |out: &mut io::BufWriter<_>, line: &str| out.write_all(line.as_bytes()).map_err(Error::Write);
        write(&mut out, "name,tenant,cpu_milli,memory_mib,disk_gib,creation_time,deletion_time\n")?;
        for (number, vm) in vms.iter().enumerate() {
            let next = tenants.len();
            let tenant = *tenants.entry(vm.tenant).or_insert(next);
            let Shape { vcpus, memory_mib, disk_gib } = vm.shape.unwrap_or(UNKNOWN);
            summary.unknown_size += u64::from(vm.shape.is_none());
            // Clocks of two senders may differ: nothing is deleted before it is made.
            let until = vm.until.map(|until| format!("{:.3}", until.max(vm.from) - first)).unwrap_or_default();
            summary.deleted += u64::from(vm.until.is_some());
            let (cpu, from) = (u64::from(vcpus) * 1_000, vm.from - first);
            write(&mut out, &format!("vm-{number},t-{tenant},{cpu},{memory_mib},{disk_gib},{from:.3},{until}\n"))?;
        }
        out.flush().map_err(Error::Write)?;
        summary.vms = vms.len() as u64;
        summary.tenants = tenants.len() as u64;
        Ok(summary)
    }
}

fn seconds(time: &str) -> Result<f64, String> {
    let at: jiff::Timestamp = time.parse().map_err(|_| "the time is none of RFC 3339".to_owned())?;
    Ok(at.as_millisecond() as f64 / 1e3)
}

#[cfg(test)]
mod tests;
