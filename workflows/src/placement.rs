//! Which manager a new VM is asked of. Which host takes it is that manager's owner's choice alone.
//!
//! Power of k choices over summaries that are about a second old (Mitzenmacher, "The Power of Two
//! Choices in Randomized Load Balancing", 2001): a few managers drawn at random, the best of them
//! taken, so that many cells that decide at once do not all pick the same one, and a decision costs
//! the same at 1 and at 1,000 managers. Only when the draw finds nothing are all looked at.

use std::collections::BTreeMap;

use cellbus_bus::ids::{ManagerId, ManagerName, TenantId};
use cellbus_bus::job::{Layout, Provision, Size};
use cellbus_directory::work::{Step, Task};
use cellbus_directory::{Failure, FailureCode, Refusal, RefusalReason, Template, Work};
use serde::Serialize;

use crate::input::Context;
use crate::view::{CapacityView, ClassSummary, Health, ManagerSummary};

/// Managers drawn at random.
const DRAWN: u64 = 4;
/// Refusing managers that a failure names one by one.
const NAMED_MAX: usize = 3;

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// For whom.
    pub tenant: &'a TenantId,
    /// How large.
    pub size: Size,
    /// Labels, requirements, policy.
    pub template: &'a Template,
    /// The only manager that may be chosen.
    pub only: Option<ManagerId>,
    /// Managers that have refused it already.
    pub refusals: &'a [&'a Refusal],
    /// Which of the VMs of one job it is.
    pub sibling: Option<Sibling>,
    /// Whether to wait for managers that are not known yet.
    pub patient: bool,
}

/// One of several VMs of a job. They are placed by shards that know nothing of each other, and are
/// kept apart all the same: each draws from managers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sibling {
    /// Its place among them.
    pub index: u32,
    /// How many there are.
    pub of: u32,
    /// The same for all of them, and different for another job.
    pub job: u64,
}
impl Sibling {
    /// Of work that makes one of several VMs.
    pub(crate) fn of(work: &Work) -> Option<Self> {
        match &work.task {
            Task::Create { of, .. } if *of > 1 => {
                let (job, _) = work.job.uuid().as_u64_pair();
                Some(Self { index: work.index, of: *of, job })
            }
            Task::Create { .. }
            | Task::Operate(_)
            | Task::Inspect
            | Task::Failover { .. }
            | Task::Adopt(_)
            | Task::Rehome { .. }
            | Task::DropStray { .. } => None,
        }
    }
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// There.
    Manager(ManagerId),
    /// Managers have room, and all of them as many calls under way as they may.
    Crowded,
    /// Not known yet: look again after a while. Why, in words.
    Later(String),
    /// Nowhere, and why.
    Nowhere(Failure),
}

/// Why one manager is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuledOut {
    /// An operator keeps new VMs off it: it is cordoned, read-only or leaving.
    Cordoned,
    /// An operator has paused all work at it.
    Paused,
    /// It fails: the circuit to it is open.
    CircuitOpen,
    /// Nothing is known of it yet.
    Unknown,
    /// No host with the labels that are required.
    NoMatch,
    /// No host with as much free.
    NoRoom,
    /// Its owner has refused this VM.
    Refused,
    /// Another manager was asked for.
    NotAsked,
}

impl RuledOut {
    const fn words(self) -> &'static str {
        match self {
            Self::Cordoned => "take no new VMs (cordoned, read-only or leaving)",
            Self::Paused => "are paused",
            Self::CircuitOpen => "are failing",
            Self::Unknown => "are not known yet",
            Self::NoMatch => "have no host with the required labels",
            Self::NoRoom => "have no host with as much free",
            Self::Refused => "have refused it",
            Self::NotAsked => "are not the one asked for",
        }
    }
}

/// Chooses. `has_slot` says whether another call may be made to a manager now.
pub fn choose(ctx: &Context<'_>, asked: &Asked<'_>, has_slot: impl Fn(ManagerId) -> bool) -> Choice {
    let managers = &ctx.view.managers;
    if let Some(only) = asked.only {
        return match managers.iter().find(|m| m.id == only) {
            Some(manager) => match ruled_out(ctx, manager, asked) {
                None if has_slot(only) => Choice::Manager(only),
                None => Choice::Crowded,
                Some(RuledOut::Unknown | RuledOut::CircuitOpen | RuledOut::Paused) => {
                    Choice::Later(format!("manager {} takes no calls now", manager.name))
                }
                Some(_) => nowhere(ctx, asked),
            },
            None => Choice::Later(format!("manager {only} is not known yet")),
        };
    }
    if let Some(group) = &asked.template.policy.affinity {
        // The same group begins its search at the same manager, in every cell: best effort between jobs.
        let start = cellbus_bus::job::Digest::of(format!("{}/{group}", asked.tenant).as_bytes()).0;
        let start =
            u64::from_be_bytes([start[0], start[1], start[2], start[3], start[4], start[5], start[6], start[7]]);
        return in_order(ctx, asked, has_slot, start);
    }
    match asked.template.policy.managers {
        Layout::Pack => in_order(ctx, asked, has_slot, 0),
        Layout::Spread => drawn(ctx, asked, has_slot),
    }
}

/// The manager for all VMs of a job that must share a host.
pub(crate) fn for_group(ctx: &Context<'_>, tenant: &TenantId, p: &Provision) -> Option<ManagerId> {
    let template = Template::of(p);
    // All of them on one host: it must have room for the sum.
    let times = |each: u64| each.saturating_mul(u64::from(p.count));
    let sum = Size {
        vcpus: p.size.vcpus.saturating_mul(p.count),
        memory_mib: times(p.size.memory_mib),
        disk_gib: times(p.size.disk_gib),
    };
    let asked =
        |size| Asked { tenant, size, template: &template, only: None, refusals: &[], sibling: None, patient: false };
    let pick = |size| match choose(ctx, &asked(size), |_| true) {
        Choice::Manager(manager) => Some(manager),
        Choice::Crowded | Choice::Later(_) | Choice::Nowhere(_) => None,
    };
    // If the sum fits nowhere, any manager that takes one will say so, VM by VM; unless one that is
    // paused may have room.
    let paused = |m: &ManagerSummary| ctx.pauses.hold(Step::Create, Some(m.id)).is_some();
    let any = || ctx.view.managers.first().filter(|_| !ctx.view.managers.iter().any(paused)).map(|m| m.id);
    pick(sum).or_else(|| pick(p.size)).or_else(any)
}

fn drawn(ctx: &Context<'_>, asked: &Asked<'_>, has_slot: impl Fn(ManagerId) -> bool) -> Choice {
    let managers = &ctx.view.managers;
    let count = managers.len() as u64;
    // Every so many-th manager, from the so many-th on: all, but for one of several siblings.
    let (every, from) = match asked.sibling {
        Some(sibling) if u64::from(sibling.of) <= count => {
            (u64::from(sibling.of), sibling.job.wrapping_add(u64::from(sibling.index)) % u64::from(sibling.of))
        }
        Some(_) | None => (1, 0),
    };
    let mut random = ctx.random;
    let mut best: Option<(&ManagerSummary, u64)> = None;
    if !managers.is_empty() {
        let own = (count - from).div_ceil(every);
        for _ in 0..DRAWN {
            random = splitmix(random);
            // Below the length, which is a usize.
            let manager = &managers[(from + random % own * every) as usize];
            if ruled_out(ctx, manager, asked).is_none() && has_slot(manager.id) {
                let free = emptiness(manager);
                if best.is_none_or(|(_, most)| free > most) {
                    best = Some((manager, free));
                }
            }
        }
    }
    match best {
        Some((manager, _)) => Choice::Manager(manager.id),
        None => in_order(ctx, asked, has_slot, splitmix(random)),
    }
}

/// The first that will do, beginning somewhere.
fn in_order(ctx: &Context<'_>, asked: &Asked<'_>, has_slot: impl Fn(ManagerId) -> bool, start: u64) -> Choice {
    let managers = &ctx.view.managers;
    let (mut crowded, mut unknown, mut paused) = (false, 0_usize, 0_usize);
    let start = if managers.is_empty() { 0 } else { (start % managers.len() as u64) as usize };
    for manager in managers[start..].iter().chain(&managers[..start]) {
        match ruled_out(ctx, manager, asked) {
            None if has_slot(manager.id) => return Choice::Manager(manager.id),
            None => crowded = true,
            Some(RuledOut::Unknown) => unknown += 1,
            Some(RuledOut::Paused) => paused += 1,
            Some(
                RuledOut::Cordoned
                | RuledOut::CircuitOpen
                | RuledOut::NoMatch
                | RuledOut::NoRoom
                | RuledOut::Refused
                | RuledOut::NotAsked,
            ) => {}
        }
    }
    if crowded {
        Choice::Crowded
    } else if paused > 0 {
        // One of them may have the room that no other has: nothing fails for a pause.
        Choice::Later(format!("{paused} of {} managers are paused by an operator", managers.len()))
    } else if asked.patient && (unknown > 0 || managers.is_empty()) {
        Choice::Later(format!("{unknown} of {} managers are not known yet", managers.len()))
    } else {
        nowhere(ctx, asked)
    }
}

fn ruled_out(ctx: &Context<'_>, manager: &ManagerSummary, asked: &Asked<'_>) -> Option<RuledOut> {
    if asked.only.is_some_and(|only| only != manager.id) {
        return Some(RuledOut::NotAsked);
    }
    // A refusal because no calls were taken says nothing about room.
    let refused = |r: &&Refusal| r.manager == manager.id && r.reason != RefusalReason::NotBegun;
    if asked.refusals.iter().any(refused) {
        return Some(RuledOut::Refused);
    }
    match manager.health {
        Health::Unknown => return Some(RuledOut::Unknown),
        Health::CircuitOpen => return Some(RuledOut::CircuitOpen),
        Health::Healthy => {}
    }
    if manager.cordoned {
        return Some(RuledOut::Cordoned);
    }
    if ctx.pauses.hold(Step::Create, Some(manager.id)).is_some() {
        return Some(RuledOut::Paused);
    }
    let mut matching = manager.classes.iter().filter(|class| matches(manager, class, asked.template)).peekable();
    if matching.peek().is_none() {
        return Some(RuledOut::NoMatch);
    }
    if matching.any(|class| has_room(class, &asked.size)) { None } else { Some(RuledOut::NoRoom) }
}

fn matches(manager: &ManagerSummary, class: &ClassSummary, template: &Template) -> bool {
    template.require.iter().all(|(key, value)| match key.as_str() {
        "manager" => manager.name == *value,
        // Only the manager's owner knows its hosts by name.
        "host" => true,
        key => class.labels.get(key) == Some(value),
    })
}

fn has_room(class: &ClassSummary, size: &Size) -> bool {
    class.hosts_open > 0
        && class.vcpus_free_max >= u64::from(size.vcpus)
        && class.memory_mib_free_max >= size.memory_mib
        && class.disk_gib_free_max >= size.disk_gib
}

/// Counts what is placed as taken, in a view by which much is placed in one go. About: which host takes it is
/// its owner's choice.
pub fn take_room(view: &mut CapacityView, chosen: ManagerId, asked: &Asked<'_>) {
    let Some(manager) = view.managers.iter_mut().find(|manager| manager.id == chosen) else { return };
    let takes = |class: &ClassSummary| matches(manager, class, asked.template) && has_room(class, &asked.size);
    let Some(place) = manager.classes.iter().position(takes) else { return };
    let class = &mut manager.classes[place];
    for (free, most, taken) in [
        (&mut class.vcpus_free, &mut class.vcpus_free_max, u64::from(asked.size.vcpus)),
        (&mut class.memory_mib_free, &mut class.memory_mib_free_max, asked.size.memory_mib),
    ] {
        *free = free.saturating_sub(taken);
        *most = (*most).min(*free);
    }
    // A datastore that hosts of several classes see is divided among them: what one has not, others have.
    let mut gib = asked.size.disk_gib;
    let shared = class.disk_gib_free_max > class.disk_gib_free;
    let from = |class: &mut ClassSummary, gib: u64| {
        let taken = gib.min(class.disk_gib_free);
        class.disk_gib_free -= taken;
        gib - taken
    };
    gib = from(class, gib);
    class.disk_gib_free_max = if shared {
        class.disk_gib_free_max.saturating_sub(asked.size.disk_gib)
    } else {
        class.disk_gib_free_max.min(class.disk_gib_free)
    };
    for other in &mut manager.classes {
        gib = from(other, gib);
    }
}

/// How empty a manager is, in 1/65536 of its scarcest resource.
fn emptiness(manager: &ManagerSummary) -> u64 {
    let sum = |of: fn(&ClassSummary) -> u64| manager.classes.iter().map(of).fold(0, u64::saturating_add);
    let share =
        |free: u64, total: u64| if total == 0 { 0 } else { ((u128::from(free) << 16) / u128::from(total)) as u64 };
    share(sum(|c| c.vcpus_free), sum(|c| c.vcpus_total))
        .min(share(sum(|c| c.memory_mib_free), sum(|c| c.memory_mib_total)))
        .min(share(sum(|c| c.disk_gib_free), sum(|c| c.disk_gib_total)))
}

/// The next number of a splitmix64 sequence (Steele, Lea and Flood, 2014).
fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What was looked at, and what ruled each manager out.
#[must_use]
pub fn survey(ctx: &Context<'_>, asked: &Asked<'_>) -> Survey {
    let mut counts: BTreeMap<RuledOut, usize> = BTreeMap::new();
    let mut candidates = Vec::new();
    for manager in &ctx.view.managers {
        match ruled_out(ctx, manager, asked) {
            None => candidates.push(manager.name.clone()),
            Some(why) => *counts.entry(why).or_default() += 1,
        }
    }
    Survey { managers: ctx.view.managers.len(), candidates, ruled_out: counts }
}

/// What a dry run of a placement gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// How many managers there are.
    pub managers: usize,
    /// Those that would be asked.
    pub candidates: Vec<String>,
    /// How many others each reason rules out.
    pub ruled_out: BTreeMap<RuledOut, usize>,
}

fn nowhere(ctx: &Context<'_>, asked: &Asked<'_>) -> Choice {
    let survey = survey(ctx, asked);
    let mut message = format!(
        "no host for {} vCPUs, {} MiB, {} GiB: of {} managers",
        asked.size.vcpus, asked.size.memory_mib, asked.size.disk_gib, survey.managers,
    );
    let parts: Vec<String> = survey.ruled_out.iter().map(|(why, n)| format!("{n} {}", why.words())).collect();
    message.push(' ');
    message.push_str(&if parts.is_empty() { "none is configured".to_owned() } else { parts.join(", ") });
    for refusal in asked.refusals.iter().rev().take(NAMED_MAX) {
        let name = ctx.names.name(&refusal.manager).map_or_else(|| refusal.manager.to_string(), ManagerName::to_string);
        message.push_str(&format!("; {name}: {}", refusal.detail));
    }
    let passing = [RuledOut::CircuitOpen, RuledOut::Unknown].iter().any(|why| survey.ruled_out.contains_key(why));
    let code = FailureCode::NoRoom;
    Choice::Nowhere(if passing { Failure::passing(code, message) } else { Failure::lasting(code, message) })
}

#[cfg(test)]
mod tests {
    use cellbus_bus::ids::ManagerId;

    use super::*;

    fn class(gear: &str, disk_gib_free: u64, disk_gib_free_max: u64) -> ClassSummary {
        ClassSummary {
            labels: [("gear".to_owned(), gear.to_owned())].into(),
            hosts: 1,
            hosts_open: 1,
            vcpus_total: 100,
            vcpus_free: 100,
            memory_mib_total: 100,
            memory_mib_free: 100,
            disk_gib_total: 100,
            disk_gib_free,
            vcpus_free_max: 100,
            memory_mib_free_max: 100,
            disk_gib_free_max,
        }
    }

    #[test]
    fn what_is_taken_of_a_datastore_that_classes_share_is_taken_of_all() {
        // 90 GiB, of which each of three classes counts a third.
        let id = ManagerId::derive("vc-1");
        let manager = ManagerSummary {
            id,
            name: "vc-1".to_owned(),
            health: Health::Healthy,
            cordoned: false,
            classes: ["g1", "g2", "g3"].map(|gear| class(gear, 30, 90)).into(),
            running: 0,
            waiting: 0,
            running_max: 10,
        };
        let mut view = CapacityView { managers: vec![manager], ..CapacityView::default() };
        let template = Template {
            image: "x".into(),
            labels: Default::default(),
            require: [("gear".to_owned(), "g1".to_owned())].into(),
            policy: Default::default(),
        };
        let tenant = "acme".parse().unwrap();
        let size = Size { vcpus: 1, memory_mib: 1, disk_gib: 50 };
        let asked = Asked {
            tenant: &tenant,
            size,
            template: &template,
            only: None,
            refusals: &[],
            sibling: None,
            patient: false,
        };
        take_room(&mut view, id, &asked);
        let left: Vec<u64> = view.managers[0].classes.iter().map(|class| class.disk_gib_free).collect();
        assert_eq!(left, [0, 10, 30]);
        assert_eq!(view.managers[0].classes[0].disk_gib_free_max, 40);
        take_room(&mut view, id, &asked);
        assert_eq!(view.managers[0].classes[0].disk_gib_free_max, 40, "another of 50 has no room");
    }
}
