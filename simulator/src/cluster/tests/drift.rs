//! What somebody does at a manager while nobody fronts it.

use std::time::Duration;

use cellbus_bus::ids::HostId;
use cellbus_directory::VmState;

use super::one_manager::{WAIT, made, place, started, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_while_nobody_looked_is_known_to_the_next_owner() {
    let folder = tempfile::tempdir().unwrap();
    let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
    let (mut cluster, manager) = started(folder.path(), &env).await;
    let faults = cluster.fleet().faults(manager).unwrap();
    let [goes, gone, stays] = ["goes", "gone", "stays"];
    let vms =
        [made(&cluster, goes, false).await, made(&cluster, gone, false).await, made(&cluster, stays, false).await];
    let before = [place(&cluster, vms[0]).await.0, place(&cluster, vms[2]).await.0];
    let rows = cluster.gateway().hosts(Some(manager), None, 10).await.unwrap().items;
    let to: HostId = rows.into_iter().map(|row| row.id).find(|id| *id != before[0]).unwrap();

    // Its owner dies, and the next one reads what has become of them, as if it had always been so.
    cluster.kill_cell().unwrap();
    assert!(faults.move_vm(vms[0], &to) && faults.delete_vm(vms[1]));
    cluster.add_cell();
    cluster.ready(WAIT).await.unwrap();
    until(&env, "the homes know", || async {
        let ((at, _), (_, state)) = (place(&cluster, vms[0]).await, place(&cluster, vms[1]).await);
        if at == to && state == VmState::Lost { Ok(()) } else { Err(format!("{at}, {state}")) }
    })
    .await;
    // Of what is as it was nobody asks.
    let explained = cluster.gateway().explain_vm(vms[2]).await.unwrap().vm.unwrap();
    assert!(!explained.history.iter().any(|(_, what)| what.contains("inspect")), "{:?}", explained.history);
    assert_eq!(place(&cluster, vms[2]).await, (before[1].clone(), VmState::Running));
    cluster.stop(Duration::from_secs(10)).await;
}
