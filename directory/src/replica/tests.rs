use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use cellbus_bus::env::WallMs;
use cellbus_bus::ids::OpNumber;
use cellbus_bus::job::Labels;
use proptest::prelude::*;

use super::*;
use crate::fold::Tables;
use crate::record::{Record, VmSummary};
use crate::testing::{self, Ids, Seed};
use crate::vm::{PowerState, VmFacts};
use crate::work::{Outcome, Step, StepResult};

fn two() -> ShardCount {
    ShardCount::new(2).unwrap()
}
fn shard(n: u16) -> ShardId {
    ShardId::new(n, two()).unwrap()
}

/// The rows of a shard as the fold knows them.
pub(crate) fn tables(replica: &Replica, shard: ShardId) -> Tables {
    let part = replica.read(shard).unwrap();
    let vms = part.vms.by_id.iter().map(|key| part.vm(&replica.shared, part.vms.rows.get(key.row()).unwrap()).unwrap());
    let jobs =
        part.jobs.by_id.iter().map(|key| part.job(&replica.shared, part.jobs.rows.get(key.row()).unwrap()).unwrap());
    Tables {
        seq: part.seq,
        fence: part.fence,
        vms: vms.map(|vm| (vm.id, vm)).collect(),
        jobs: jobs.map(|job| (job.id, job)).collect(),
        cordons: part.cordons.clone(),
    }
}

/// Whatever is kept beside the rows says the same as they do.
pub(crate) fn check_indexes(replica: &Replica) {
    let mut vms: Vec<Vm> = Vec::new();
    let mut jobs: Vec<JobRow> = Vec::new();
    for shard in replica.shards().shards() {
        let tables = tables(replica, shard);
        vms.extend(tables.vms.into_values());
        jobs.extend(tables.jobs.into_values());
    }
    assert_eq!(replica.shared.vms.len(), vms.len());
    let stats = replica.stats();
    for (state, count) in &stats.vms {
        assert_eq!(*count, vms.iter().filter(|vm| vm.state() == *state).count(), "{state}");
    }
    for (state, count) in &stats.jobs {
        assert_eq!(*count, jobs.iter().filter(|job| job.state == *state).count(), "{state}");
    }
    for vm in &vms {
        let location = replica.locate(vm.id).unwrap();
        assert_eq!((location.vm(), location.state(), location.place()), (vm.id, vm.state(), vm.home.as_ref()));
        assert_eq!(location.as_of(), vm.as_of);
        assert_eq!(replica.vm(vm.id).as_ref(), Some(vm));
        let named: Vec<VmId> = vms
            .iter()
            .filter(|other| other.tenant == vm.tenant && other.name == vm.name && !other.is_deleted())
            .map(|other| other.id)
            .collect();
        let found = replica.by_name(&vm.tenant, &vm.name);
        assert_eq!(found.len(), named.len().min(2));
        assert!(found.iter().all(|id| named.contains(id)));
    }
    let mut by_manager: BTreeMap<ManagerId, usize> = BTreeMap::new();
    let mut by_host: BTreeMap<(ManagerId, Option<HostId>), usize> = BTreeMap::new();
    for place in vms.iter().filter_map(|vm| vm.home.as_ref()) {
        *by_manager.entry(place.manager).or_default() += 1;
        *by_host.entry((place.manager, place.host.clone())).or_default() += 1;
    }
    for (manager, count) in replica.count_by_manager() {
        assert_eq!(count, by_manager.get(&manager).copied().unwrap_or_default());
        assert_eq!(count, replica.count_of_manager(manager));
        for (host, count) in replica.count_by_host(manager) {
            assert_eq!(by_host.remove(&(manager, host.clone())), Some(count));
            if let Some(host) = &host {
                assert_eq!(replica.count_of_host(manager, host), count);
            }
        }
    }
    assert!(by_host.is_empty());
}

/// All pages of a list, with something done between them.
fn pages(replica: &Replica, filter: &VmFilter, limit: usize, mut between: impl FnMut()) -> Vec<Vm> {
    let mut all = Vec::new();
    let mut cursor = None;
    loop {
        let page = replica.list(filter, limit, cursor.as_deref()).unwrap();
        assert!(page.items.len() <= limit);
        all.extend(page.items);
        cursor = page.next;
        if cursor.is_none() {
            return all;
        }
        between();
    }
}

fn filters() -> Vec<VmFilter> {
    let tenant = |n: u8| Some(format!("t{n}").parse().unwrap());
    let labels = Labels::from([("app".to_owned(), "a1".to_owned())]);
    vec![
        VmFilter::default(),
        VmFilter { tenant: tenant(1), ..VmFilter::default() },
        VmFilter { tenant: tenant(9), ..VmFilter::default() },
        VmFilter { state: Some(VmState::Deleted), ..VmFilter::default() },
        VmFilter { state: Some(VmState::Running), tenant: tenant(2), ..VmFilter::default() },
        VmFilter { manager: Some(testing::manager(1)), ..VmFilter::default() },
        VmFilter { manager: Some(testing::manager(1)), host: Some(testing::host(2)), ..VmFilter::default() },
        VmFilter { host: Some(testing::host(2)), ..VmFilter::default() },
        VmFilter {
            manager: Some(testing::manager(0)),
            tenant: tenant(0),
            labels: labels.clone(),
            ..VmFilter::default()
        },
        VmFilter { labels, ..VmFilter::default() },
    ]
}

fn passes(filter: &VmFilter, vm: &Vm) -> bool {
    filter.tenant.as_ref().is_none_or(|t| vm.tenant == *t)
        && filter.state.map_or(vm.state() != VmState::Deleted, |s| vm.state() == s)
        && filter.manager.is_none_or(|m| vm.home.as_ref().is_some_and(|p| p.manager == m))
        && filter.host.as_ref().is_none_or(|h| vm.home.as_ref().is_some_and(|p| p.host.as_ref() == Some(h)))
        && filter.labels.iter().all(|(k, v)| vm.template.labels.get(k) == Some(v))
}

fn logs(seeds: &[Vec<Seed>]) -> Vec<(ShardId, Vec<(Seq, Entry)>)> {
    (0..2).map(|n| (shard(n), testing::log(&Ids::of(shard(n), two()), seeds))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// The tight rows are the plain rows.
    #[test]
    fn a_replica_has_the_rows_of_the_plain_fold(seeds in testing::seeds()) {
        let replica = Replica::new(two(), 1);
        for (shard, log) in logs(&seeds) {
            let mut plain = Tables::default();
            for (seq, entry) in &log {
                let counts = plain.apply(*seq, entry);
                let applied = replica.apply(shard, *seq, entry);
                prop_assert_eq!(applied, if counts { Applied::Counted } else { Applied::Void });
            }
            prop_assert_eq!(tables(&replica, shard), plain);
        }
        check_indexes(&replica);
    }

    /// A snapshot may be loaded over whatever was there, and the log goes on from it.
    #[test]
    fn a_loaded_snapshot_replaces_all_rows(
        seeds in testing::seeds(), others in testing::seeds(), cut in any::<prop::sample::Index>(),
    ) {
        let replica = Replica::new(two(), 2);
        for (shard, log) in logs(&others) {
            for (seq, entry) in &log {
                replica.apply(shard, *seq, entry);
            }
        }
        for (shard, log) in logs(&seeds) {
            let (head, tail) = log.split_at(cut.index(log.len()));
            let mut plain = Tables::default();
            for (seq, entry) in head {
                plain.apply(*seq, entry);
            }
            replica.load(shard, plain.snapshot());
            prop_assert_eq!(&tables(&replica, shard), &plain);
            for (seq, entry) in tail {
                plain.apply(*seq, entry);
                replica.apply(shard, *seq, entry);
            }
            prop_assert_eq!(tables(&replica, shard), plain);
            prop_assert_eq!(replica.applied(shard), log.last().unwrap().0);
        }
        check_indexes(&replica);
    }

    /// What is shared is let go of with the last row.
    #[test]
    fn no_row_leaves_anything_behind(seeds in testing::seeds()) {
        let replica = Replica::new(two(), 3);
        for (shard, log) in logs(&seeds) {
            for (seq, entry) in &log {
                replica.apply(shard, *seq, entry);
            }
            replica.load(shard, Tables::default().snapshot());
        }
        let stats = replica.stats();
        prop_assert_eq!((stats.tenants, stats.templates), (0, 0));
        prop_assert_eq!((replica.shared.jobs.len(), replica.shared.sources.len(), replica.shared.vms.len()), (0, 0, 0));
        for shard in two().shards() {
            let part = replica.read(shard).unwrap();
            prop_assert_eq!((part.texts.len(), part.vm_extras.len(), part.job_extras.len()), (0, 0, 0));
        }
        check_indexes(&replica);
    }

    /// A list shows what passes its filter, in one order; a row that passes from the first page
    /// to the last is shown exactly once, whatever is folded between the pages.
    #[test]
    fn lists_are_complete_under_changes(seeds in testing::seeds(), limit in 1_usize..5, cut in any::<prop::sample::Index>()) {
        for filter in filters() {
            let replica = Replica::new(two(), 4);
            let mut rest = Vec::new();
            for (shard, log) in logs(&seeds) {
                let (head, tail) = log.split_at(cut.index(log.len()));
                head.iter().for_each(|(seq, entry)| { replica.apply(shard, *seq, entry); });
                rest.extend(tail.iter().map(|(seq, entry)| (*seq, shard, entry.clone())));
            }
            rest.sort_by_key(|(seq, shard, _)| (*seq, *shard));

            let all = |replica: &Replica| -> Vec<Vm> {
                two().shards().flat_map(|s| tables(replica, s).vms.into_values()).filter(|vm| passes(&filter, vm)).collect()
            };
            let still = pages(&replica, &filter, limit, || ());
            prop_assert_eq!(&still, &all(&replica));

            let mut throughout: Vec<VmId> = still.iter().map(|vm| vm.id).collect();
            let mut rest = rest.into_iter();
            let listed = pages(&replica, &filter, limit, || {
                for (seq, shard, entry) in rest.by_ref().take(3) {
                    replica.apply(shard, seq, &entry);
                    let now: Vec<VmId> = all(&replica).iter().map(|vm| vm.id).collect();
                    throughout.retain(|id| now.contains(id));
                }
            });
            let listed: Vec<VmId> = listed.iter().map(|vm| vm.id).collect();
            for id in &throughout {
                prop_assert_eq!(listed.iter().filter(|other| *other == id).count(), 1);
            }
            let mut once = listed.clone();
            once.sort_by_key(|id| (id.shard(two()), *id));
            once.dedup();
            prop_assert_eq!(listed, once);
        }
    }

    /// The same of jobs.
    #[test]
    fn job_lists_page_through_everything(seeds in testing::seeds(), limit in 1_usize..5) {
        let replica = Replica::new(two(), 5);
        for (shard, log) in logs(&seeds) {
            log.iter().for_each(|(seq, entry)| { replica.apply(shard, *seq, entry); });
        }
        for (state, open) in
            [(None, false), (Some(JobState::Failed), false), (Some(JobState::Running), false), (None, true)]
        {
            for tenant in [None, Some("t1".parse().unwrap())] {
                let filter = JobFilter { tenant, state, open, kind: None };
                let mut listed = Vec::new();
                let mut cursor = None;
                loop {
                    let page = replica.jobs(&filter, limit, cursor.as_deref()).unwrap();
                    listed.extend(page.items);
                    cursor = page.next;
                    if cursor.is_none() { break; }
                }
                let all: Vec<JobRow> = two().shards()
                    .flat_map(|s| tables(&replica, s).jobs.into_keys())
                    .filter_map(|id| replica.job(id))
                    .filter(|job| filter.state.is_none_or(|s| job.state == s) && !(open && job.state.ended()))
                    .filter(|job| filter.tenant.as_ref().is_none_or(|t| job.tenant == *t))
                    .collect();
                prop_assert_eq!(listed, all);
            }
        }
    }

    /// No text is taken for a cursor that is none, and none panics.
    #[test]
    fn only_cursors_are_taken(text in ".{0,60}|[0-9a-f]{52}") {
        let replica = Replica::new(two(), 6);
        prop_assert_eq!(replica.list(&VmFilter::default(), 10, Some(&text)), Err(ListError::Cursor));
    }
}

fn opened(at: u64) -> Entry {
    entry(Seq::ZERO, at, vec![Record::Opened { cell: "c".parse().unwrap(), address: String::new() }])
}
fn entry(prev: Seq, at: u64, records: Vec<Record>) -> Entry {
    Entry { epoch: Epoch(1), prev, at: WallMs(at), jobs: None, control: None, records }
}

/// VMs of shard 0 on manager 0, which are then moved from host to host.
fn placed(replica: &Replica, vms: usize) -> Vec<VmId> {
    let ids: Vec<VmId> = (0_u32..)
        .map(|n| JobId::derive("acme", "/placed", &n.to_string()))
        .filter(|job| job.shard(two()) == shard(0))
        .map(|job| job.vm(0))
        .take(vms)
        .collect();
    let template = Arc::new(Template {
        image: "i".to_owned(),
        labels: Labels::new(),
        require: Labels::new(),
        policy: cellbus_bus::job::Policy::default(),
    });
    let size = cellbus_bus::job::Size { vcpus: 1, memory_mib: 1, disk_gib: 1 };
    let planned = ids.iter().map(|id| {
        let job = JobId::from_uuid(id.uuid());
        let mut vm = Vm::planned(
            *id,
            job,
            "acme".parse().unwrap(),
            "web".parse().unwrap(),
            size,
            Arc::clone(&template),
            WallMs(1),
        );
        vm.settled = VmState::Running;
        vm.home = Some(crate::vm::Place { manager: testing::manager(0), host: Some(testing::host(0)) });
        (*id, vm)
    });
    let tables = Tables { seq: Seq(1), vms: planned.collect(), ..Tables::default() };
    replica.load(shard(0), tables.snapshot());
    ids
}

#[test]
#[expect(clippy::disallowed_methods, reason = "what is tested is what threads see")]
fn a_vm_that_moves_within_its_manager_is_in_every_list_of_it() {
    let replica = Replica::new(two(), 7);
    let ids = placed(&replica, 300);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut prev = Seq(1);
            for n in 0..3_000_u64 {
                let vm = ids[(n as usize * 7) % ids.len()];
                let facts = VmFacts {
                    host: testing::host((n % 4) as u8),
                    power: PowerState::Running,
                    size: cellbus_bus::job::Size { vcpus: 1, memory_mib: 1, disk_gib: 1 },
                    snapshots: Vec::new(),
                };
                let records = vec![
                    Record::StepBegun {
                        vm,
                        op: OpNumber(n + 1),
                        step: Step::Inspect,
                        manager: testing::manager(0),
                        host: None,
                    },
                    Record::StepEnded { vm, op: OpNumber(n + 1), result: StepResult::Present(facts) },
                ];
                assert_eq!(replica.apply(shard(0), prev.next(), &entry(prev, n, records)), Applied::Counted);
                prev = prev.next();
            }
            done.store(true, Ordering::Release);
        });
        let filter = VmFilter { manager: Some(testing::manager(0)), ..VmFilter::default() };
        while !done.load(Ordering::Acquire) {
            let listed = pages(&replica, &filter, 37, || ());
            assert!(listed.iter().map(|vm| vm.id).eq({
                let mut all = ids.clone();
                all.sort_unstable();
                all
            }));
            assert!(ids.iter().all(|id| replica.locate(*id).is_some()));
        }
    });
    check_indexes(&replica);
}

#[test]
fn cursors_belong_to_one_list_and_filter() {
    let replica = Replica::new(two(), 8);
    placed(&replica, 5);
    let filter = VmFilter::default();
    let cursor = replica.list(&filter, 2, None).unwrap().next.unwrap();
    assert_eq!(replica.list(&filter, 1_000, Some(&cursor)).unwrap().items.len(), 3);
    let other = VmFilter { tenant: Some("acme".parse().unwrap()), ..VmFilter::default() };
    assert_eq!(replica.list(&other, 2, Some(&cursor)), Err(ListError::Cursor));
    assert_eq!(replica.jobs(&JobFilter::default(), 2, Some(&cursor)), Err(ListError::Cursor));
    assert_eq!(replica.list(&filter, 2, Some(&cursor.to_uppercase())), Err(ListError::Cursor));
    let mut damaged = cursor.clone().into_bytes();
    damaged[20] = if damaged[20] == b'0' { b'1' } else { b'0' };
    assert_eq!(replica.list(&filter, 2, Some(std::str::from_utf8(&damaged).unwrap())), Err(ListError::Cursor));
    for limit in [0, 1_001, usize::MAX] {
        assert_eq!(replica.list(&filter, limit, None), Err(ListError::Limit { limit }));
    }
    // Another replica takes it too, whatever its rows' indexes are.
    let second = Replica::new(two(), 9);
    placed(&second, 5);
    assert_eq!(second.list(&filter, 1_000, Some(&cursor)), replica.list(&filter, 1_000, Some(&cursor)));
    // The last page says that it is the last, also when it is full.
    assert_eq!(replica.list(&filter, 5, None).unwrap().next, None);
}

#[test]
fn entries_count_once_and_holes_are_seen() {
    let replica = Replica::new(two(), 10);
    assert_eq!(replica.apply(shard(0), Seq(3), &opened(1)), Applied::Counted);
    assert_eq!(replica.apply(shard(0), Seq(3), &opened(1)), Applied::Old);
    assert_eq!(replica.apply(shard(0), Seq(7), &entry(Seq(5), 2, Vec::new())), Applied::Hole { applied: Seq(3) });
    assert_eq!(replica.apply(shard(0), Seq(5), &entry(Seq(3), 2, Vec::new())), Applied::Counted);
    assert_eq!(
        (replica.applied(shard(0)), replica.applied(shard(1)), replica.epoch(shard(0))),
        (Seq(5), Seq(0), Epoch(1))
    );
}

#[test]
fn a_job_is_shown_as_ended_when_its_vms_are_listed() {
    let replica = Replica::new(two(), 11);
    // A job of shard 0 about a VM of shard 1, which was changed by entry 5 there.
    let job = (0..).map(|n| JobId::derive("t1", "/", &n.to_string())).find(|job| job.shard(two()) == shard(0)).unwrap();
    let vm =
        (0..).map(|n| JobId::derive("t1", "/vm", &n.to_string()).vm(0)).find(|vm| vm.shard(two()) == shard(1)).unwrap();
    let accepted = cellbus_bus::job::Job {
        id: job,
        tenant: "t1".parse().unwrap(),
        source: "/".to_owned(),
        event_id: "e".to_owned(),
        digest: cellbus_bus::job::Digest::default(),
        after: None,
        notify: cellbus_bus::job::Notify::Outcome,
        deadline: None,
        extensions: BTreeMap::new(),
        request: cellbus_bus::job::Request::Operate(
            cellbus_bus::job::Target::Id(vm),
            cellbus_bus::job::Operation::Start,
        ),
    };
    let summary = VmSummary { id: vm, name: "web".parse().unwrap(), home: None, state: VmState::Running, seq: Seq(5) };
    let mut records = opened(1).records;
    records.push(Record::JobAccepted { job: Arc::new(accepted) });
    records.push(Record::JobEnded { job, outcome: Outcome::Succeeded, vms: vec![summary] });
    replica.apply(shard(0), Seq(1), &entry(Seq::ZERO, 1, records));
    let state = |filter: Option<JobState>| {
        let page = replica.jobs(&JobFilter { state: filter, ..JobFilter::default() }, 10, None).unwrap();
        page.items.first().map(|row| (row.state, row.ended_at))
    };
    assert_eq!(replica.job(job).unwrap().state, JobState::Running);
    assert_eq!((state(None), state(Some(JobState::Succeeded))), (Some((JobState::Running, None)), None));
    replica.load(shard(1), Tables { seq: Seq(5), ..Tables::default() }.snapshot());
    assert_eq!(replica.job(job).unwrap().outcome, Some(Outcome::Succeeded));
    assert_eq!(state(Some(JobState::Succeeded)), Some((JobState::Succeeded, Some(WallMs(1)))));
    assert_eq!(state(Some(JobState::Running)), None);
}

#[tokio::test]
async fn waiting_ends_when_the_entry_is_there() {
    let replica = Arc::new(Replica::new(two(), 12));
    replica.wait_for(shard(0), Seq::ZERO).await;
    let mut waiting = Box::pin(replica.wait_for(shard(0), Seq(2)));
    assert!(futures::poll!(&mut waiting).is_pending());
    // A wait that is given up leaves nothing behind.
    drop(Box::pin(replica.wait_for(shard(0), Seq(9))));
    replica.apply(shard(0), Seq(1), &opened(1));
    assert!(futures::poll!(&mut waiting).is_pending());
    replica.apply(shard(0), Seq(2), &entry(Seq(1), 2, Vec::new()));
    waiting.await;
}
