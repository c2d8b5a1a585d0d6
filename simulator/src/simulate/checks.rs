//! What must hold, looked at from outside: the managers' truth and the producers' books.

use std::collections::{BTreeMap, BTreeSet};

use cellbus_bus::ids::{ManagerId, ShardCount, VmId};
use cellbus_bus::job::{JobKind, Size};
use cellbus_cell::driver::HeldVm;
use cellbus_directory::replica::{Replica, VmFilter};
use cellbus_directory::vm::PowerState;
use cellbus_directory::{Entry, VmState};
use cellbus_workflows::{Limits, Shard};

use super::books::{self, Asked, Ended, Pages, Taken};
use super::bus::SimulatedBus;
use crate::managers::Truth;

/// Something that must not be: in words, and the ids that it is about.
pub(super) type Violation = (String, Vec<String>);

/// What a VM must be in the end, as far as its jobs tell.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    power: PowerState,
    size: Size,
    /// With the power that each holds, if it can be told.
    snapshots: Vec<(String, Option<PowerState>)>,
    manager: Option<ManagerId>,
    host: Option<String>,
}

/// `Err`: cannot be told, and why.
fn expected(pages: &Pages, vm: &books::Vm) -> Result<Option<Expected>, &'static str> {
    if let Some(why) = vm.loose {
        return Err(why);
    }
    let mut state: Option<Expected> = None;
    for id in &vm.jobs {
        let Some(job) = pages.jobs.get(id) else { return Err("a job is not known") };
        match pages.ended(id) {
            None => return Err("a job has not ended"),
            // Of several VMs, some may have been made before it was called off.
            Some(Ended::Cancelled) if job.count > 1 => return Err("a job failed half way"),
            Some(Ended::Cancelled) => continue,
            Some(Ended::Failed(code)) => match code.as_str() {
                // Something may have been done, or some of several VMs made.
                "manager_failed" | "children_failed" | "abandoned" | "vm_lost" => return Err("a job failed half way"),
                _ => continue,
            },
            Some(Ended::Succeeded) => {}
        }
        if let Asked::Provision { size, on } = &job.asked {
            let power = if *on { PowerState::Running } else { PowerState::Stopped };
            state = Some(Expected { power, size: *size, snapshots: Vec::new(), manager: None, host: None });
            continue;
        }
        let Some(now) = &mut state else { return Err("a job succeeded on a VM that was not made") };
        match &job.asked {
            Asked::Provision { .. } | Asked::Cancel => {}
            Asked::Start | Asked::Restart | Asked::Resume => now.power = PowerState::Running,
            Asked::Stop => now.power = PowerState::Stopped,
            Asked::Suspend => now.power = PowerState::Suspended,
            Asked::Resize { vcpus, memory_mib, disk_gib } => {
                now.size.vcpus = vcpus.unwrap_or(now.size.vcpus);
                now.size.memory_mib = memory_mib.unwrap_or(now.size.memory_mib);
                now.size.disk_gib = disk_gib.unwrap_or(now.size.disk_gib);
            }
            Asked::Snapshot(name) => now.snapshots.push((name.clone(), Some(now.power))),
            Asked::Revert(name) => {
                if let Some((_, power)) = now.snapshots.iter().find(|(known, _)| known == name) {
                    now.power = power.ok_or("whether its snapshot was copied by a migrate")?;
                }
            }
            Asked::SnapshotDelete(name) => now.snapshots.retain(|(known, _)| known != name),
            Asked::MigrateHost(host) => now.host = Some(host.clone()),
            Asked::MigrateManager(manager) => {
                if now.manager != Some(*manager) {
                    now.host = None;
                    // The copy's snapshots hold the power that it had when it was copied. Was it there
                    // already, nothing was copied.
                    let held = now.power;
                    now.snapshots
                        .iter_mut()
                        .filter(|(_, power)| *power != Some(held))
                        .for_each(|(_, power)| *power = None);
                }
                // A migrate of a VM that is off, for which its target has no room, is said to have
                // succeeded (seed 0 of the small runs): where it is cannot be told until that is mended.
                now.manager = None;
                now.host = None;
            }
            Asked::Delete => state = None,
        }
        if state.is_none() {
            // Whatever came after it failed, or else it is found above.
            continue;
        }
    }
    Ok(state)
}

fn differs(expected: &Expected, manager: ManagerId, held: &HeldVm) -> Option<String> {
    let names: Vec<&str> = expected.snapshots.iter().map(|(name, _)| name.as_str()).collect();
    let found: Vec<&str> = held.facts.snapshots.iter().map(|name| name.as_str()).collect();
    if held.facts.power != expected.power {
        return Some(format!("is {:?} and should be {:?}", held.facts.power, expected.power));
    }
    if held.facts.size != expected.size {
        return Some(format!("has {:?} and should have {:?}", held.facts.size, expected.size));
    }
    if names != found {
        return Some(format!("has snapshots {found:?} and should have {names:?}"));
    }
    if expected.manager.is_some_and(|wanted| wanted != manager) {
        return Some(format!("is on manager {manager} and should be on {:?}", expected.manager));
    }
    if expected.host.as_deref().is_some_and(|wanted| wanted != held.facts.host.as_str()) {
        return Some(format!("is on host {} and should be on {:?}", held.facts.host, expected.host));
    }
    None
}

/// What the managers hold, against what was asked for. `left`: copies that are left for a person.
pub(super) fn truth_against_books(truth: &Truth, pages: &Pages, left: impl Fn(&books::Vm) -> bool) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut places: BTreeMap<VmId, Vec<(ManagerId, &HeldVm)>> = BTreeMap::new();
    for (manager, vms) in &truth.managers {
        for vm in vms {
            places.entry(vm.id).or_default().push((*manager, vm));
        }
    }
    for (id, held) in &places {
        if held.len() > 1 && !pages.vms.get(id).is_some_and(&left) {
            let managers: Vec<String> = held.iter().map(|(manager, _)| manager.to_string()).collect();
            found.push((format!("VM {id} is on {} managers: {managers:?}", held.len()), vec![id.to_string()]));
        }
        if !pages.vms.contains_key(id) {
            found.push((format!("VM {id} is there, and nobody asked for it"), vec![id.to_string()]));
        }
    }
    for (id, vm) in &pages.vms {
        let about = || {
            let mut about = vec![id.to_string(), vm.job.to_string()];
            about.extend(vm.jobs.iter().map(ToString::to_string));
            about
        };
        let Ok(expected) = expected(pages, vm) else { continue };
        match (&expected, places.get(id).and_then(|held| held.first())) {
            (None, None) => {}
            (Some(expected), Some((manager, held))) => {
                if let Some(how) = differs(expected, *manager, held) {
                    found.push((format!("VM {id} {how}, by the jobs that succeeded on it"), about()));
                }
            }
            (Some(_), None) => found.push((format!("VM {id} is lost: no manager has it"), about())),
            (None, Some((manager, _))) => {
                found.push((format!("VM {id} should not be there, and manager {manager} has it"), about()));
            }
        }
    }
    found
}

/// A directory, against what the managers hold, except VMs that are `loose`.
pub(super) fn directory_against_truth(
    whose: &str,
    replica: &Replica,
    truth: &Truth,
    loose: impl Fn(&VmId) -> bool,
) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut there: BTreeSet<VmId> = BTreeSet::new();
    for (manager, vms) in &truth.managers {
        for held in vms.iter().filter(|held| !loose(&held.id)) {
            let vm = replica.vm(held.id);
            there.insert(held.id);
            let about = vec![held.id.to_string()];
            let Some(vm) = vm else {
                found.push((format!("{whose}: the directory does not know VM {} of {manager}", held.id), about));
                continue;
            };
            let state = match held.facts.power {
                PowerState::Running => VmState::Running,
                PowerState::Stopped => VmState::Stopped,
                PowerState::Suspended => VmState::Suspended,
            };
            let home = vm.home.as_ref();
            let right = vm.state() == state
                && home.is_some_and(|home| {
                    home.manager == *manager && home.host.as_ref().is_some_and(|host| *host == held.facts.host)
                })
                && vm.size == held.facts.size
                && vm.snapshots == held.facts.snapshots;
            if !right {
                let said = format!(
                    "{whose}: the directory says of VM {} {:?} {:?} {:?} {:?}, and manager {manager} holds {:?}",
                    held.id,
                    vm.state(),
                    vm.home,
                    vm.size,
                    vm.snapshots,
                    held.facts
                );
                found.push((said, about));
            }
        }
    }
    let mut from = None;
    while let Ok(page) = replica.list(&VmFilter::default(), 1_000, from.as_deref()) {
        for vm in page.items {
            let gone = matches!(vm.state(), VmState::Deleted | VmState::Lost);
            if !gone && !loose(&vm.id) && !there.contains(&vm.id) {
                let said =
                    format!("{whose}: the directory lists VM {} as {:?}, and no manager has it", vm.id, vm.state());
                found.push((said, vec![vm.id.to_string()]));
            }
        }
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    found
}

/// Jobs, against what became of them.
pub(super) fn jobs(pages: &Pages) -> Vec<Violation> {
    let mut found = Vec::new();
    for (id, job) in &pages.jobs {
        if job.taken == Taken::Accepted && job.ended.is_empty() {
            found
                .push((format!("job {id} ({:?}) was acknowledged and has not ended", job.asked), vec![id.to_string()]));
        }
        if let Taken::Refused(code) = &job.taken
            && job.kind != JobKind::Cancel
        {
            found.push((format!("job {id} ({:?}) was refused: {code}", job.asked), vec![id.to_string()]));
        }
    }
    found
}

/// A log read from its beginning gives the same state as its snapshot and what came after.
pub(super) fn replays(bus: &SimulatedBus, count: ShardCount, limits: &Limits) -> Vec<Violation> {
    let mut found = Vec::new();
    for (shard, entries) in bus.shadow() {
        let Some((id, body)) = bus.newest_snapshot(shard) else { continue };
        let whole = entries.iter().try_fold(Shard::new(shard, count, limits.clone()), |mut whole, (seq, body)| {
            whole.apply(*seq, &Entry::decode(body).ok()?);
            Some(whole)
        });
        let part = cellbus_directory::ShardSnapshot::decode(&body)
            .ok()
            .and_then(|snapshot| Shard::restore(shard, count, limits.clone(), snapshot).ok())
            .and_then(|part| {
                entries.iter().filter(|(seq, _)| *seq > id.seq).try_fold(part, |mut part, (seq, body)| {
                    part.apply(*seq, &Entry::decode(body).ok()?);
                    Some(part)
                })
            });
        let end = entries.last().map(|(seq, _)| *seq).unwrap_or_default();
        let same = match (&whole, &part) {
            (Some(whole), Some(part)) => whole.snapshot(end).encode() == part.snapshot(end).encode(),
            (Some(_) | None, Some(_) | None) => false,
        };
        if !same {
            found
                .push((format!("shard {shard}: its log and its snapshot {id:?} with what follows differ"), Vec::new()));
        }
    }
    found
}
