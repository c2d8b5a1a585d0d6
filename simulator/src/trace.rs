//! A recorded workload: when which VM came and went.
//!
//! Two formats of CSV are read, told apart by their header (ops/docs/interface.md, "A VM trace"):
//!
//! - one row a VM: `name,cpu_milli,memory_mib,creation_time,deletion_time`; with no deletion time
//!   the VM lives on;
//! - one row an event: `vmid,cpu,memory,time,type`, type 0 a create and 1 a delete.
//!
//! Times are seconds on any scale. Parts of a vCPU round up to a whole one, memory to a whole MiB,
//! and a memory of 0 is taken as 1 MiB. `memory` without unit is GiB. Disk is 1 GiB.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::job::Size;

use crate::table::{Column, Error, Table};

/// More than any trace that fits in memory beside a cluster.
const EVENTS_MAX: u64 = 20_000_000;
/// Three thousand years: any scale that begins at some epoch fits.
const TIME_SECONDS_MAX: f64 = 1e11;
const VCPUS_MAX: f64 = 1e6;
const MEMORY_MIB_MAX: f64 = 1e12;
const DISK_GIB: u64 = 1;
const NAME: &str = "a name of 1 to 253 characters without controls";

/// A trace: its events in the order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Oldest first. At one time: deletes of older VMs, then creates, then deletes of VMs that are
    /// made at that very time; among equals, the order of the file.
    pub events: Vec<TraceEvent>,
    /// How many VMs it makes.
    pub vms: usize,
}

/// Something that happened to one VM.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceEvent {
    /// How long after the first event.
    pub at: Duration,
    /// Which VM, as the trace calls it.
    pub name: Arc<str>,
    /// What.
    pub what: TraceAction,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceAction {
    /// It came, with this size.
    Create(Size),
    /// It went.
    Delete,
}

struct Raw {
    seconds: f64,
    /// Order among events at one time: see [`Trace::events`].
    class: u8,
    name: Arc<str>,
    what: TraceAction,
}

impl Trace {
    /// Reads either format.
    ///
    /// # Errors
    /// What is wrong with the file, with its line and column.
    pub fn read(file: impl io::Read) -> Result<Self, Error> {
        let table = Table::open(file)?;
        let mut raw = if table.find(&["creation_time"]).is_none() && table.find(&["vmid"]).is_some() {
            events_of(table)?
        } else {
            lives_of(table)?
        };
        raw.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.class.cmp(&b.class)));
        let first = raw.first().map_or(0.0, |event| event.seconds);
        let vms = raw.iter().filter(|event| matches!(event.what, TraceAction::Create(_))).count();
        let events = raw
            .into_iter()
            .map(|event| TraceEvent {
                // Never negative, as the first is the smallest, and far below Duration's limit.
                at: Duration::from_secs_f64(event.seconds - first),
                name: event.name,
                what: event.what,
            })
            .collect();
        Ok(Self { events, vms })
    }
}

fn lives_of<R: io::Read>(mut table: Table<R>) -> Result<Vec<Raw>, Error> {
    let name = table.need(&["name"])?;
    let (cpu, memory) = (table.need(&["cpu_milli"])?, table.need(&["memory_mib"])?);
    let (made, gone) = (table.need(&["creation_time"])?, table.need(&["deletion_time"])?);
    let mut events = Vec::new();
    let mut lines: BTreeMap<Arc<str>, u64> = BTreeMap::new();
    while table.advance()? {
        bounded(&table, events.len())?;
        let vm = name_in(&table, name)?;
        if let Some(line) = lines.insert(Arc::clone(&vm), table.line()) {
            return Err(table.refuse(format!("the VM {vm} is in line {line} already")));
        }
        let size = size(table.number(cpu, 0.0..=VCPUS_MAX * 1e3)? / 1e3, table.number(memory, 0.0..=MEMORY_MIB_MAX)?);
        let from = table.number(made, -TIME_SECONDS_MAX..=TIME_SECONDS_MAX)?;
        events.push(Raw { seconds: from, class: 1, name: Arc::clone(&vm), what: TraceAction::Create(size) });
        if table.text(gone).is_empty() {
            continue;
        }
        let until = table.number(gone, -TIME_SECONDS_MAX..=TIME_SECONDS_MAX)?;
        if until < from {
            return Err(table.refuse(format!("the VM {vm} is deleted at {until}, before it is created at {from}")));
        }
        let class = if until > from { 0 } else { 2 };
        events.push(Raw { seconds: until, class, name: vm, what: TraceAction::Delete });
    }
    Ok(events)
}

fn events_of<R: io::Read>(mut table: Table<R>) -> Result<Vec<Raw>, Error> {
    let vmid = table.need(&["vmid"])?;
    let (cpu, memory) = (table.need(&["cpu"])?, table.need(&["memory"])?);
    let (time, kind) = (table.need(&["time"])?, table.need(&["type"])?);
    let mut events = Vec::new();
    let mut lives: BTreeMap<Arc<str>, Life> = BTreeMap::new();
    while table.advance()? {
        bounded(&table, events.len())?;
        let vm = name_in(&table, vmid)?;
        let seconds = table.number(time, -TIME_SECONDS_MAX..=TIME_SECONDS_MAX)?;
        let what = match table.whole(kind, 0..=1)? {
            0 => TraceAction::Create(size(
                table.number(cpu, 0.0..=VCPUS_MAX)?,
                table.number(memory, 0.0..=MEMORY_MIB_MAX / 1024.0)? * 1024.0,
            )),
            _ => TraceAction::Delete,
        };
        let life = lives.entry(Arc::clone(&vm)).or_default();
        let (slot, done) = match what {
            TraceAction::Create(_) => (&mut life.made, "created"),
            TraceAction::Delete => (&mut life.gone, "deleted"),
        };
        if let Some((line, _)) = slot.replace((table.line(), seconds)) {
            return Err(table.refuse(format!("the VM {vm} is {done} in line {line} already")));
        }
        events.push(Raw { seconds, class: 1, name: vm, what });
    }
    for (vm, life) in &lives {
        match (life.made, life.gone) {
            (None, Some((line, _))) => {
                return Err(Error::Row { line, problem: format!("the VM {vm} is deleted and never created") });
            }
            (Some((made, from)), Some((line, until))) if until < from => {
                return Err(Error::Row {
                    line,
                    problem: format!("the VM {vm} is deleted at {until}, before it is created at {from} (line {made})"),
                });
            }
            (None | Some(_), None | Some(_)) => {}
        }
    }
    for event in &mut events {
        if event.what == TraceAction::Delete {
            let at_once =
                lives.get(&event.name).and_then(|life| life.made).is_some_and(|(_, from)| from == event.seconds);
            event.class = if at_once { 2 } else { 0 };
        }
    }
    Ok(events)
}

/// Line and time of a VM's two events.
#[derive(Default)]
struct Life {
    made: Option<(u64, f64)>,
    gone: Option<(u64, f64)>,
}

fn bounded<R: io::Read>(table: &Table<R>, events: usize) -> Result<(), Error> {
    if (events as u64) < EVENTS_MAX {
        Ok(())
    } else {
        Err(Error::TooMany { line: table.line(), max: EVENTS_MAX, what: "events" })
    }
}

fn name_in<R: io::Read>(table: &Table<R>, column: Column) -> Result<Arc<str>, Error> {
    table.parse(column, NAME, |text| {
        ((1..=253).contains(&text.chars().count()) && !text.chars().any(char::is_control)).then(|| Arc::from(text))
    })
}

fn size(vcpus: f64, memory_mib: f64) -> Size {
    // Both are bounded above and not negative, so that they are exact as integers.
    Size { vcpus: vcpus.ceil().max(1.0) as u32, memory_mib: memory_mib.ceil().max(1.0) as u64, disk_gib: DISK_GIB }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Trace, String> {
        Trace::read(text.as_bytes()).map_err(|error| error.to_string())
    }
    fn told(trace: &Trace) -> Vec<String> {
        trace
            .events
            .iter()
            .map(|event| {
                let what = match event.what {
                    TraceAction::Create(size) => format!("+{}/{}/{}", size.vcpus, size.memory_mib, size.disk_gib),
                    TraceAction::Delete => "-".to_owned(),
                };
                format!("{} {}{what}", event.at.as_secs_f64(), event.name)
            })
            .collect()
    }

    #[test]
    fn lives_become_events_in_time_order() {
        let trace = read(
            "name,qos,cpu_milli,memory_mib,creation_time,deletion_time\n\
                          late,x,1500,0,30,\n\
                          early,x,500,1024,10,30\n\
                          brief,x,4000,2048.5,30,30\n",
        )
        .unwrap();
        assert_eq!(told(&trace), ["0 early+1/1024/1", "20 early-", "20 late+2/1/1", "20 brief+4/2049/1", "20 brief-"]);
        assert_eq!(trace.vms, 3);
    }

    #[test]
    fn events_are_read_too_and_memory_is_gib() {
        let trace = read("vmid,cpu,memory,time,type\n7,2,0.5,100,0\n8,1,4,100,0\n7,2,0.5,160.5,1\n").unwrap();
        assert_eq!(told(&trace), ["0 7+2/512/1", "0 8+1/4096/1", "60.5 7-"]);
    }

    #[test]
    fn errors_say_where() {
        let lives = "name,cpu_milli,memory_mib,creation_time,deletion_time\n";
        let events = "vmid,cpu,memory,time,type\n";
        let cases = [
            (format!("{lives}a,1000,1,5,4\n"), "line 2: the VM a is deleted at 4, before"),
            (format!("{lives}a,1000,1,5,\na,1000,1,6,\n"), "line 3: the VM a is in line 2 already"),
            (format!("{lives}a,1000,1,soon,\n"), "line 2, column creation_time: \"soon\" is not a number"),
            (format!("{lives}a,-1,1,1,\n"), "line 2, column cpu_milli"),
            (format!("{lives}a,1,inf,1,\n"), "line 2, column memory_mib"),
            (format!("{lives},1,1,1,\n"), "line 2, column name"),
            (format!("{events}a,1,1,1,2\n"), "line 2, column type"),
            (format!("{events}a,1,1,1,0\na,1,1,2,0\n"), "line 3: the VM a is created in line 2 already"),
            (format!("{events}a,1,1,1,1\n"), "line 2: the VM a is deleted and never created"),
            (
                format!("{events}a,1,1,1,1\na,1,1,2,0\n"),
                "line 2: the VM a is deleted at 1, before it is created at 2 (line 3)",
            ),
            ("who,what\n".to_owned(), "there is no column name"),
        ];
        for (text, expected) in cases {
            let error = read(&text).unwrap_err();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
        assert_eq!(read(lives).unwrap().events, []);
    }
}
