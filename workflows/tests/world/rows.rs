//! The rows that a shard writes into its snapshots are those that a directory has from the same log.

use cellbus_bus::ids::{Seq, ShardCount};
use cellbus_directory::fold::Tables;
use cellbus_directory::{Entry, Replica, ShardSnapshot};
use cellbus_workflows::{Limits, Shard};

/// Compares them all along each log, and in the end with a replica that has read every log, or
/// loaded every snapshot.
pub(super) fn check(
    shards: &[Shard],
    logs: &[Vec<Entry>],
    bases: &[Option<ShardSnapshot>],
    count: ShardCount,
    limits: &Limits,
) {
    let (followed, loaded) = (Replica::new(count, 1), Replica::new(count, 1));
    for ((shard, log), base) in shards.iter().zip(logs).zip(bases) {
        let id = shard.id();
        let mut machine = Shard::new(id, count, limits.clone());
        let mut tables = Tables::default();
        if let Some(base) = base {
            machine = Shard::restore(id, count, limits.clone(), base.clone()).expect("restores");
            tables = Tables::of(base.clone());
            followed.load(id, base.clone());
        }
        for (n, entry) in log.iter().enumerate().skip(usize::from(base.is_some())) {
            let seq = Seq(n as u64 + 1);
            machine.apply(seq, entry);
            tables.apply(seq, entry);
            followed.apply(id, seq, entry);
            if n % 16 == 0 {
                assert_eq!(Tables::of(machine.snapshot(seq)), tables, "shard {id} after entry {seq}");
            }
        }
        let end = Seq(log.len() as u64);
        assert_eq!(Tables::of(shard.snapshot(end)), tables, "shard {id}");
        loaded.load(id, shard.snapshot(end));
    }
    for shard in shards {
        let snapshot = shard.snapshot(Seq(1));
        for replica in [&followed, &loaded] {
            for vm in &snapshot.vms {
                assert_eq!(replica.vm(vm.id).as_ref(), Some(vm));
            }
            for job in &snapshot.jobs {
                assert_eq!(replica.job(job.id).as_ref(), Some(job));
            }
        }
    }
    let rows = |rows: fn(&Tables) -> usize| -> usize {
        shards.iter().map(|shard| rows(&Tables::of(shard.snapshot(Seq(1))))).sum()
    };
    for replica in [&followed, &loaded] {
        let stats = replica.stats();
        assert_eq!(stats.vms.iter().map(|(_, n)| n).sum::<usize>(), rows(|tables| tables.vms.len()));
        assert_eq!(stats.jobs.iter().map(|(_, n)| n).sum::<usize>(), rows(|tables| tables.jobs.len()));
    }
}
