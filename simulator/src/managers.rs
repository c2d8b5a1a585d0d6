//! Simulated hypervisor managers: hosts, VMs, tasks that take time, and every way to fail.
//!
//! A [`Fleet`] is all managers of a process over one durable store. Each is driven through
//! [`Fleet::driver`], which keeps the promises of [`Driver`] to the letter: sessions by epoch,
//! operations once by number (tombstones included), answers only once the state is on disk.
//!
//! ```text
//!  driver.perform(op) ─▶ session? ─▶ number? ─▶ limits, room ─▶ [task: latency] ─▶ change in memory
//!                                                                                     │ record
//!                                       answer ◀── durable ◀── one flush for all that wait
//! ```
//!
//! Time, tasks and randomness go through [`Env`], so that a fleet runs in virtual time too; with no
//! directory it keeps nothing on disk. From one seed the same calls give the same answers.
//!
//! Where real managers differ, a simulated one does as vCenter: a suspended VM can be stopped and
//! started, a VM that is off can be neither suspended, resumed nor rebooted, a snapshot holds the
//! memory, so that a revert brings the power of its time back, and every VM takes its room on the
//! host whether it runs or not. Beyond vCenter: a VM of any power can be resized and deleted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cellbus_bus::Env;
use cellbus_bus::ids::{Epoch, ManagerId, ManagerName, VmId};
use cellbus_bus::job::Size;
use cellbus_cell::driver::{Driver, Drivers, Limits};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use uuid::Uuid;

use crate::inventory::{Inventory, ManagerSpec};

mod changes;
mod driver;
mod faults;
mod holdings;
mod latency;
mod manager;
mod placements;
mod record;
mod store;
mod truth;

use driver::SimulatedDriver;
pub use faults::{Backup, Fault, Faults};
use holdings::Holdings;
pub use holdings::PutBack;
pub use latency::{Latency, UnknownLatency};
pub(crate) use manager::Manager;
use manager::Parts;
use placements::Placements;
use record::Record;
pub use store::Error;
use store::Store;
pub use truth::{Truth, Violations};

/// The shape of a foreign VM that stands there from the start.
const FOREIGN: Size = Size { vcpus: 1, memory_mib: 512, disk_gib: 4 };

/// How much more of a host may be given out than it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overcommit {
    /// vCPUs, as a ratio.
    pub vcpus: f64,
    /// Memory, as a ratio.
    pub memory: f64,
}
impl Default for Overcommit {
    fn default() -> Self {
        Self { vcpus: 1.0, memory: 1.0 }
    }
}

/// How a fleet is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where its state is kept; `None` keeps it in memory only.
    pub dir: Option<PathBuf>,
    /// Its managers and hosts.
    pub inventory: Inventory,
    /// How long operations take.
    pub latency: Latency,
    /// How many operations each manager takes at once; by the latency where it is `None`.
    pub limits: Option<Limits>,
    /// For managers that [`Config::overcommit_of`] does not name.
    pub overcommit: Overcommit,
    /// For these.
    pub overcommit_of: BTreeMap<ManagerName, Overcommit>,
    /// VMs that stand on each manager and are not Cellbus's, small ones. Those that were adopted, or removed
    /// afterwards, do not come back.
    pub foreign: u32,
    /// Of latencies and faults; drawn from the environment where it is `None`.
    pub seed: Option<u64>,
}

impl Config {
    /// In memory, fast, with nothing over-committed.
    #[must_use]
    pub fn new(inventory: Inventory) -> Self {
        Self {
            dir: None,
            inventory,
            latency: Latency::Fast,
            limits: None,
            overcommit: Overcommit::default(),
            overcommit_of: BTreeMap::new(),
            foreign: 0,
            seed: None,
        }
    }
}

/// The simulated managers of one process.
pub struct Fleet {
    managers: BTreeMap<ManagerId, Arc<Manager>>,
    inventory: Inventory,
    placements: Arc<Placements>,
    store: Arc<Store>,
}

impl Fleet {
    /// Opens the fleet, with what its directory holds from before. Managers that the inventory no
    /// longer names stay in the directory and are left alone.
    ///
    /// # Errors
    /// When the directory is in use, cannot be read or written, or is damaged.
    pub async fn open(config: Config, env: Env) -> Result<Arc<Self>, Error> {
        let (store, held) = Store::open(config.dir.as_deref(), &env).await?;
        let damaged = |detail| Error::Damaged { dir: config.dir.clone().unwrap_or_default(), detail };
        let mut held = record::read(held).map_err(damaged)?;
        let (store, placements) = (Arc::new(store), Arc::new(Placements::new()));
        let seed = config.seed.unwrap_or_else(|| env.random_u64());
        let managers = config.inventory.managers.iter().map(|spec| {
            let held = held.remove(&spec.id()).unwrap_or_default();
            let mut parts = Self::restore(&config, spec, held, seed, &placements, &env);
            stand(&mut parts.holdings, spec, config.foreign, &store);
            (parts.id, Arc::new(Manager::new(parts, Arc::clone(&store), Arc::clone(&placements), env.clone())))
        });
        let managers: BTreeMap<_, _> = managers.collect();
        if !held.is_empty() {
            tracing::warn!(
                managers = held.len(),
                "the directory holds simulated managers that the inventory does not name"
            );
        }
        Ok(Arc::new(Self { managers, inventory: config.inventory, placements, store }))
    }

    fn restore(
        config: &Config,
        spec: &ManagerSpec,
        held: Vec<Record>,
        seed: u64,
        placements: &Placements,
        env: &Env,
    ) -> Parts {
        let overcommit = config.overcommit_of.get(&spec.name).copied().unwrap_or(config.overcommit);
        let mut holdings = Holdings::new(&spec.hosts, overcommit);
        let mut epoch: Option<Epoch> = None;
        for record in held {
            match record {
                Record::Epoch(last) => epoch = Some(last),
                Record::Vm(id, host, body) => {
                    placements.restored(id);
                    holdings.restore_vm(id, &host, body);
                }
                Record::Gone(id, op) => holdings.restore_gone(id, op),
                Record::Host(id, state) => holdings.restore_host(&id, state),
                Record::Foreign(id, foreign) => holdings.restore_foreign(id, foreign),
            }
        }
        let id = spec.id();
        // A stream of its own for each manager: what one does changes nothing for the others.
        let (own, _) = id.uuid().as_u64_pair();
        Parts {
            id,
            holdings,
            epoch,
            latency: config.latency,
            limits: config.limits.clone().unwrap_or_else(|| config.latency.limits()),
            rng: SmallRng::seed_from_u64(seed ^ own),
            origin: env.random_u64() as u32,
        }
    }

    /// Its managers, as they were given.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// A new connection to a manager, not yet opened; `None` if there is no such manager.
    #[must_use]
    pub fn driver(&self, manager: ManagerId) -> Option<Arc<dyn Driver>> {
        self.managers
            .get(&manager)
            .map(|manager| Arc::new(SimulatedDriver::new(Arc::clone(manager))) as Arc<dyn Driver>)
    }

    pub(crate) fn manager(&self, id: ManagerId) -> Option<&Arc<Manager>> {
        self.managers.get(&id)
    }

    /// Faults of a manager; `None` if there is no such manager.
    #[must_use]
    pub fn faults(&self, manager: ManagerId) -> Option<Faults> {
        self.managers.get(&manager).map(|manager| Faults { manager: Arc::clone(manager) })
    }

    /// What all managers have seen since the fleet was opened.
    #[must_use]
    pub fn violations(&self) -> Violations {
        let mut seen = Violations { double_creates: self.placements.doubles(), ..Violations::default() };
        for manager in self.managers.values() {
            seen.revoked_operations += manager.counters.revoked_operations.load(Ordering::Relaxed);
            seen.superseded_operations += manager.counters.superseded_operations.load(Ordering::Relaxed);
            seen.overfill_attempts += manager.counters.overfill_attempts.load(Ordering::Relaxed);
            seen.overfilled_hosts += manager.state().holdings.overfilled().count() as u64;
        }
        seen
    }

    /// The first VM that was made although a manager had it and it was no migrate.
    #[must_use]
    pub fn first_double(&self) -> Option<cellbus_bus::ids::VmId> {
        self.placements.first_double()
    }

    /// What all managers hold. It copies everything.
    #[must_use]
    pub fn truth(&self) -> Truth {
        let mut truth = Truth::default();
        for (id, manager) in &self.managers {
            let state = manager.state();
            let restarted = state.holdings.vm_ids().filter_map(|vm| {
                state
                    .holdings
                    .vm(&vm)
                    .filter(|found| found.body.restarts > 0)
                    .map(|found| ((*id, vm), found.body.restarts))
            });
            truth.restarts.extend(restarted);
            truth.overfilled.extend(state.holdings.overfilled().map(|host| (*id, host)));
            truth.managers.insert(*id, state.holdings.held_vms().collect());
        }
        truth
    }

    /// How many VMs all managers hold.
    #[must_use]
    pub fn vms(&self) -> usize {
        self.managers.values().map(|manager| manager.state().holdings.vm_ids().count()).sum()
    }

    /// How many operations all managers have under way.
    #[must_use]
    pub fn tasks_running(&self) -> usize {
        self.managers.values().map(|manager| manager.tasks_running()).sum()
    }

    /// Writes what waits and lets the directory go; operations answer `Unreachable` from now on.
    pub async fn close(&self) {
        self.store.close().await
    }
}

/// So many foreign VMs stand on the manager, the same at every start.
fn stand(holdings: &mut Holdings, spec: &ManagerSpec, foreign: u32, store: &Store) {
    let manager = spec.id();
    for (index, host) in (0..foreign).zip(spec.hosts.iter().cycle()) {
        let id = Uuid::new_v5(&manager.uuid(), format!("foreign-{index}").as_bytes());
        let adopted = VmId::adopted(manager, &id.to_string().parse().expect("a UUID is a key"));
        let known =
            holdings.has_foreign(&id) || holdings.vm(&adopted).is_some() || holdings.tombstone(&adopted).is_some();
        if !known && let Some(foreign) = holdings.add_foreign(id, &host.id, FOREIGN) {
            store.put(record::foreign(manager, id, foreign));
        }
    }
}

impl Drivers for Fleet {
    fn connect(&self, manager: ManagerId) -> Option<Arc<dyn Driver>> {
        self.driver(manager)
    }
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fleet({} managers)", self.managers.len())
    }
}
