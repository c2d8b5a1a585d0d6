//! A bus that has lost what it had acknowledged: nothing that Cellbus promises holds then, but that
//! it is noticed by everybody who knew better, that no epoch comes twice, and that it goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cellbus_bus::ids::{CellId, Seq, ShardId};
use cellbus_directory::replica::Replica;

use super::bus::{Forgets, Image, SimulatedBus};
use super::cells::Cells;
use super::checks::Violation;
use super::executor::NodeId;

/// A directory that had read what the bus has lost.
struct Witness {
    node: NodeId,
    cell: CellId,
    replica: Arc<Replica>,
    shard: ShardId,
    /// Where the log ended when the bus had lost the rest.
    end: Seq,
    /// What it had noticed before.
    noticed: u64,
}

/// All losses of a run.
#[derive(Default)]
pub(super) struct Amnesia {
    happened: AtomicBool,
    witnesses: Mutex<Vec<Witness>>,
}

impl Amnesia {
    /// The bus, which is down, comes back as it was.
    pub(super) fn strike(&self, bus: &SimulatedBus, cells: &Cells, image: Image, what: Forgets) {
        self.happened.store(true, Ordering::Relaxed);
        let lost = bus.put_back(image, what);
        let mut witnesses = self.witnesses.lock().unwrap_or_else(PoisonError::into_inner);
        for cell in cells.all() {
            let knew = lost.iter().filter(|(shard, end)| cell.replica.applied(*shard) > *end);
            witnesses.extend(knew.map(|(shard, end)| Witness {
                node: cell.node,
                cell: cell.id.clone(),
                replica: Arc::clone(&cell.replica),
                shard: *shard,
                end: *end,
                noticed: cell.replica.losses(*shard),
            }));
        }
    }

    pub(super) fn happened(&self) -> bool {
        self.happened.load(Ordering::Relaxed)
    }

    /// Witnesses that still live and have not noticed.
    pub(super) fn unnoticed(&self, cells: &Cells) -> Vec<Violation> {
        let witnesses = self.witnesses.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = witnesses.iter().filter(|witness| {
            cells.get(witness.node).is_some_and(|now| now.id == witness.cell)
                && witness.replica.losses(witness.shard) <= witness.noticed
        });
        silent
            .map(|witness| {
                let Witness { cell, shard, end, .. } = witness;
                let said = format!(
                    "{cell} knew more of the log of shard {shard} than was left up to {end}, and noticed nothing"
                );
                (said, vec![format!("shard {shard} ")])
            })
            .collect()
    }
}
