use std::sync::Arc;

use cellbus_bus::ids::JobId;
use cellbus_bus::job::{Labels, Policy};

use super::*;
use crate::vm::{Doing, Template};
use crate::work::Step;

const READ_AT: WallMs = WallMs(100);

fn manager(n: u8) -> ManagerId {
    ManagerId::derive(&format!("m{n}"))
}
fn host(n: u8) -> HostId {
    format!("h{n}").parse().unwrap()
}
fn vm_id(n: u32) -> VmId {
    JobId::derive("acme", "/", &n.to_string()).vm(0)
}
const SIZE: Size = Size { vcpus: 2, memory_mib: 1024, disk_gib: 10 };

/// A running VM on host 0 of manager `m`.
fn row(n: u32, m: u8) -> Vm {
    let template =
        Template { image: "i".to_owned(), labels: Labels::new(), require: Labels::new(), policy: Policy::default() };
    let job = JobId::from_uuid(vm_id(n).uuid());
    let name = format!("web-{n}").parse().unwrap();
    let mut vm = Vm::planned(vm_id(n), job, "acme".parse().unwrap(), name, SIZE, Arc::new(template), WallMs(1));
    vm.settled = VmState::Running;
    vm.home = Some(Place { manager: manager(m), host: Some(host(0)) });
    vm
}
fn facts() -> VmFacts {
    VmFacts { host: host(0), power: PowerState::Running, size: SIZE, snapshots: Vec::new() }
}

/// An audit of managers 0 and 1, given all rows and what each manager holds.
fn audit(rows: &[Vm], held: [Vec<(VmId, VmFacts)>; 2]) -> Report {
    let mut audit = Audit::new();
    for (m, vms) in (0..).zip(held) {
        let here = rows.iter().filter(|row| home(row) == Some(manager(m))).cloned();
        let inventory = Inventory { manager: manager(m), read_at: READ_AT, vms };
        audit.compare(inventory, here, |id| rows.iter().find(|row| row.id == id).cloned());
    }
    audit.finish()
}

fn only(report: &Report) -> (&Difference, ManagerId) {
    assert_eq!((report.findings.len(), report.in_doubt.len()), (1, 0), "{report:?}");
    (&report.findings[0].difference, report.findings[0].manager)
}

#[test]
fn what_agrees_is_clean() {
    let report = audit(&[row(1, 0), row(2, 1)], [vec![(vm_id(1), facts())], vec![(vm_id(2), facts())]]);
    assert!(report.is_clean());
    assert_eq!((report.managers, report.vms_held, report.vms_listed), (2, 2, 2));
    assert!(report.plan().is_empty());
}

#[test]
fn each_kind_is_found() {
    let missing = audit(&[row(1, 0)], [vec![], vec![]]);
    assert_eq!(only(&missing), (&Difference::Missing { host: Some(host(0)) }, manager(0)));
    assert_eq!(missing.plan(), [Repair::Observe { vm: vm_id(1), manager: manager(0) }]);

    let orphan = audit(&[], [vec![], vec![(vm_id(1), facts())]]);
    assert_eq!(only(&orphan), (&Difference::Orphan { host: host(0), deleted: false }, manager(1)));
    assert!(matches!(&orphan.plan()[..], [Repair::Person { .. }]));

    let mut tombstone = row(1, 0);
    tombstone.never_made(WallMs(2));
    let undead = audit(&[tombstone], [vec![(vm_id(1), facts())], vec![]]);
    assert_eq!(only(&undead), (&Difference::Orphan { host: host(0), deleted: true }, manager(0)));

    let moved = audit(&[row(1, 0)], [vec![], vec![(vm_id(1), facts())]]);
    assert_eq!(only(&moved), (&Difference::WrongManager { expected: manager(0) }, manager(1)));
    assert_eq!(moved.plan(), [Repair::Observe { vm: vm_id(1), manager: manager(0) }]);

    let double = audit(&[row(1, 0)], [vec![(vm_id(1), facts())], vec![(vm_id(1), facts())]]);
    assert_eq!(only(&double), (&Difference::Double { expected: Some(manager(0)) }, manager(1)));

    let twice = audit(&[], [vec![(vm_id(1), facts())], vec![(vm_id(1), facts())]]);
    assert_eq!(twice.findings.len(), 2);
    assert!(twice.findings.iter().all(|f| f.difference == Difference::Double { expected: None }));

    let other_host = audit(&[row(1, 0)], [vec![(vm_id(1), VmFacts { host: host(1), ..facts() })], vec![]]);
    assert_eq!(only(&other_host).0, &Difference::WrongHost { expected: Some(host(0)), found: host(1) });

    let off = audit(&[row(1, 0)], [vec![(vm_id(1), VmFacts { power: PowerState::Stopped, ..facts() })], vec![]]);
    assert_eq!(only(&off).0, &Difference::WrongPower { expected: VmState::Running, found: PowerState::Stopped });

    let size = Size { vcpus: 4, ..SIZE };
    let larger = audit(&[row(1, 0)], [vec![(vm_id(1), VmFacts { size, ..facts() })], vec![]]);
    assert_eq!(only(&larger).0, &Difference::WrongSize { expected: SIZE.into(), found: size.into() });

    let snapshots = vec!["s".parse().unwrap()];
    let snap = audit(&[row(1, 0)], [vec![(vm_id(1), VmFacts { snapshots: snapshots.clone(), ..facts() })], vec![]]);
    assert_eq!(only(&snap).0, &Difference::WrongSnapshots { expected: vec![], found: snapshots });

    for report in [missing, orphan, undead, moved, double, twice, other_host, off, larger, snap] {
        assert!(!report.is_clean());
        assert!(report.findings.iter().all(|finding| finding.to_string().contains(&vm_id(1).to_string())));
        assert!(report.plan().iter().all(|repair| repair.to_string().contains(&vm_id(1).to_string())));
    }
}

#[test]
fn a_lost_vm_is_known_to_be_lost_until_it_turns_up() {
    let mut lost = row(1, 0);
    lost.settled = VmState::Lost;
    let report = audit(&[lost.clone()], [vec![], vec![]]);
    assert!(report.is_clean());
    assert_eq!(report.vms_lost, 1);
    let found = audit(&[lost], [vec![(vm_id(1), facts())], vec![]]);
    assert_eq!(only(&found).0, &Difference::WrongPower { expected: VmState::Lost, found: PowerState::Running });
}

#[test]
fn work_under_way_is_in_doubt_until_it_stays() {
    let mut busy = row(1, 0);
    busy.step_begun(Doing { op: OpNumber(3), step: Step::Delete, manager: manager(0) }, WallMs(5));
    let first = audit(&[busy.clone()], [vec![], vec![]]);
    assert_eq!((first.findings.len(), first.in_doubt.len()), (0, 1));
    assert!(!first.is_clean() && first.plan().is_empty());
    // Nothing has moved: it stays so.
    let again = audit(&[busy.clone()], [vec![], vec![]]).confirm(&first);
    assert_eq!((again.findings.len(), again.in_doubt.len()), (1, 0));
    // The next step has begun: it is another matter.
    busy.step_begun(Doing { op: OpNumber(4), step: Step::Delete, manager: manager(0) }, WallMs(6));
    let moved = audit(&[busy], [vec![], vec![]]).confirm(&first);
    assert_eq!((moved.findings.len(), moved.in_doubt.len()), (0, 1));
}

#[test]
fn what_changed_after_the_manager_was_read_is_in_doubt() {
    let mut fresh = row(1, 0);
    fresh.as_of = WallMs(READ_AT.0 + 1);
    let report = audit(&[fresh], [vec![], vec![]]);
    assert_eq!((report.findings.len(), report.in_doubt.len()), (0, 1));
}

#[test]
fn both_ends_of_a_migrate_know_of_it() {
    let mut moving = row(1, 0);
    moving.step_begun(Doing { op: OpNumber(3), step: Step::Copy, manager: manager(1) }, WallMs(5));
    let report = audit(&[moving], [vec![(vm_id(1), facts())], vec![(vm_id(1), facts())]]);
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn a_vm_that_is_not_placed_yet_is_missing_nowhere() {
    let mut planned = row(1, 0);
    planned.settled = VmState::Creating;
    planned.home = None;
    assert!(audit(&[planned.clone()], [vec![], vec![]]).is_clean());
    // Its manager may have it before the directory hears of it.
    let report = audit(&[planned], [vec![(vm_id(1), facts())], vec![]]);
    assert_eq!((report.findings.len(), report.in_doubt.len()), (0, 1));
}

#[test]
fn a_manager_that_was_not_read_leaves_the_audit_open() {
    let mut audit = Audit::new();
    audit.unread(manager(0), "no answer");
    let report = audit.finish();
    assert!(!report.is_clean() && report.findings.is_empty());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["unread"][0][1], "no answer");
}

#[test]
fn findings_read_well_as_json() {
    let report = audit(&[row(1, 0)], [vec![], vec![]]);
    let json = serde_json::to_value(&report.findings[0]).unwrap();
    assert_eq!((&json["kind"], &json["host"], &json["name"]), (&"missing".into(), &"h0".into(), &"web-1".into()));
    assert_eq!(serde_json::from_value::<Finding>(json).unwrap(), report.findings[0]);
    assert_eq!(serde_json::to_value(&report.plan()[0]).unwrap()["repair"], "observe");
}
