//! The driver of a manager: what Cellbus needs of a hypervisor manager, and what a driver promises.
//!
//! A cell that fronts a manager holds one driver for it and is the only one that uses it. Real
//! drivers (vSphere, libvirt) and the simulated one implement the same trait and pass the same
//! conformance suite.

use async_trait::async_trait;
use cellbus_bus::ids::{Epoch, ForeignKey, HostId, OpNumber, ShortName, TenantId, VmId, VmName};
use cellbus_bus::job::Labels;
use cellbus_directory::VmFacts;
use cellbus_workflows::Action;
use serde::{Deserialize, Serialize};

#[cfg(feature = "conformance")]
pub mod conformance;

/// One operation, with the host chosen by the manager's owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// On which VM.
    pub vm: VmId,
    /// Its number. Recorded by the manager with the VM (an annotation), so that it is done once.
    pub number: OpNumber,
    /// What.
    pub action: Action,
    /// For [`Action::Create`] and [`Action::Relocate`]: the host.
    pub host: Option<HostId>,
    /// The datastore on which a disk that the operation makes is to lie, where the host sees some.
    #[serde(default)]
    pub datastore: Option<String>,
}

/// Why an operation did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Error {
    /// A newer session has been opened: this driver may change nothing any more.
    #[error("a newer owner has opened this manager")]
    Revoked,
    /// The manager could not be reached, or did not answer: what was asked may have been done.
    #[error("no answer from the manager: {detail}")]
    Unreachable {
        /// In words.
        detail: String,
    },
    /// It answered that it failed, in a way that may pass. What was asked was not done.
    #[error("the manager failed: {detail}")]
    Transient {
        /// In words.
        detail: String,
    },
    /// It has as many operations of this kind under way as it takes. Nothing was done.
    #[error("the manager is busy: {detail}")]
    Busy {
        /// In words.
        detail: String,
    },
    /// The host has no room, is gone or in maintenance. Nothing was done.
    #[error("the host cannot take it: {detail}")]
    NoRoom {
        /// In words.
        detail: String,
    },
    /// The manager does not have the VM.
    #[error("the manager has no such VM")]
    NotFound,
    /// What was asked makes no sense for the VM as it is (a snapshot that is not there).
    #[error("the manager refuses: {detail}")]
    Invalid {
        /// In words.
        detail: String,
    },
    /// It tried, failed, and trying again is of no use. Something may have been done.
    #[error("the manager failed for good: {detail}")]
    Permanent {
        /// In words.
        detail: String,
    },
    /// A lower op number than the last one that the VM carries.
    #[error("operation {asked} is older than {last}, the last one on this VM")]
    Superseded {
        /// The number asked for.
        asked: OpNumber,
        /// The last one.
        last: OpNumber,
    },
}

impl Error {
    /// Whether the same operation may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Transient { .. } | Self::Busy { .. } => true,
            Self::Revoked
            | Self::NoRoom { .. }
            | Self::NotFound
            | Self::Invalid { .. }
            | Self::Permanent { .. }
            | Self::Superseded { .. } => false,
        }
    }
    /// Whether it says that the manager itself is ill, which opens its circuit in the end.
    #[must_use]
    pub fn ill(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Transient { .. } => true,
            Self::Revoked
            | Self::Busy { .. }
            | Self::NoRoom { .. }
            | Self::NotFound
            | Self::Invalid { .. }
            | Self::Permanent { .. }
            | Self::Superseded { .. } => false,
        }
    }
}

/// A host, as its manager describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub id: HostId,
    /// Physical CPUs (threads), before over-commit.
    pub vcpus: u32,
    /// MiB, before over-commit.
    pub memory_mib: u64,
    /// GiB of its own. It counts only where the host sees none of [`Inventory::datastores`].
    pub disk_gib: u64,
    /// Its labels, `gear` among them.
    pub labels: Labels,
    /// Whether it takes VMs (connected, not in maintenance).
    pub usable: bool,
}

/// Storage for disks, which one host sees or several share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datastore {
    /// What tells it from all others of the manager, as people call it there. Any text.
    pub name: String,
    /// GiB in all.
    pub total_gib: u64,
    /// GiB that are free as the manager says, whoever wrote the rest.
    pub free_gib: u64,
    /// Whether it takes new disks (accessible, not in maintenance).
    pub usable: bool,
    /// Which hosts see it.
    pub hosts: Vec<HostId>,
}

/// A network that a VM's card can be on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// As people call it at the manager. Any text.
    pub name: String,
    /// How many more cards it takes; `None`: any number.
    pub ports_free: Option<u64>,
    /// Which hosts are on it.
    pub hosts: Vec<HostId>,
}

/// A VM of ours, as its manager holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldVm {
    /// Its id, from the annotation (or name) that Cellbus gave it.
    pub id: VmId,
    /// Host, power, shape, snapshots.
    pub facts: VmFacts,
    /// Whose, from the annotation.
    pub tenant: TenantId,
    /// Its name.
    pub name: VmName,
    /// The last operation that changed it.
    pub op: OpNumber,
    /// Its affinity group, from the annotation.
    pub affinity: Option<ShortName>,
    /// Its anti-affinity group, from the annotation.
    pub anti_affinity: Option<ShortName>,
    /// The datastore with its disk. `None`: not known, or its host's own.
    #[serde(default)]
    pub datastore: Option<String>,
}

/// A VM that stands at a manager and is not Cellbus's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignVm {
    /// What tells it from all others there, for as long as it lives.
    pub key: ForeignKey,
    /// What people call it there. Any text.
    pub name: String,
    /// Host, power, shape, snapshots.
    pub facts: VmFacts,
    /// Why it cannot be taken in as it is, in words.
    pub unfit: Option<String>,
}

/// All that a manager holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Its hosts.
    pub hosts: Vec<Host>,
    /// The VMs that carry one of our ids.
    pub vms: Vec<HeldVm>,
    /// How many VMs it has beside those.
    pub foreign_vms: u64,
    /// Where disks lie. A host that sees none has a disk of its own.
    #[serde(default)]
    pub datastores: Vec<Datastore>,
    /// The networks that new VMs are put on, and any others.
    #[serde(default)]
    pub networks: Vec<Network>,
}

/// A host that an operator has called dead: it runs nothing, and will start nothing of what it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencedHost {
    /// Its name.
    pub id: HostId,
    /// The VMs that the directory knows there, as it knows them: their manager may not be able to say.
    pub vms: Vec<HeldVm>,
}

/// An operation that the manager has under way: started by this session or an older one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTask {
    /// On which VM.
    pub vm: VmId,
    /// Its number.
    pub number: OpNumber,
    /// For a create or a relocate: the host that it goes on.
    pub host: Option<HostId>,
}

/// Something that happened at the manager, which may have been our own doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The VM was made, changed or moved, or is gone.
    Vm(VmId),
    /// Hosts came, went or changed: read the inventory again.
    Hosts,
    /// Changes were missed: read the inventory again.
    Missed,
}

/// What a person has to see to at a manager: VMs whose id is not beyond doubt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Irregular {
    /// How many there are.
    pub vms: u64,
    /// The first of them, in words; empty if there are none.
    pub detail: String,
}

/// A manager.
///
/// An implementer MUST:
/// - do nothing that changes the manager before [`Driver::open`] has succeeded ([`Driver::look`] is not
///   enough), and nothing after a newer `open` elsewhere ([`Error::Revoked`]), where the manager can tell;
/// - make every operation idempotent by (VM, op number): the number is stored with the VM as part of
///   the change itself; the same number again joins a task that still runs, or gives what the first
///   gave; a lower number is refused as [`Error::Superseded`]. Where that cannot be had, say so in
///   [`Driver::limits`];
/// - answer [`Error::Unreachable`] whenever it does not know whether the operation was done, and never
///   any other error in that case.
///
/// All methods are cancel safe in this sense: a dropped call may still take effect, as after
/// [`Error::Unreachable`].
#[async_trait]
pub trait Driver: Send + Sync {
    /// Takes the manager over under this slice epoch: revokes older sessions and gives the tasks
    /// that still run. Opening again under the same epoch is fine; under an older one it is refused.
    ///
    /// # Errors
    /// [`Error::Revoked`], [`Error::Unreachable`], [`Error::Transient`].
    async fn open(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error>;
    /// Connects to a manager that is read-only, to look at it: what reads works from here on, and what changes
    /// something does not, until it is opened, under the same epoch. An account that may only read is enough, and
    /// nothing is left there, unless an owner before has changed something: its session must be ended, which is
    /// what opening is for. A driver for which that makes no difference opens it.
    ///
    /// # Errors
    /// As [`Driver::open`].
    async fn look(&self, epoch: Epoch) -> Result<Vec<RunningTask>, Error> {
        self.open(epoch).await
    }
    /// Everything that the manager holds now. It is asked for before [`Driver::open`] has succeeded too,
    /// where nothing of ours is under way there; a manager that cannot be read then says any error.
    ///
    /// # Errors
    /// [`Error::Revoked`], [`Error::Unreachable`], [`Error::Transient`].
    async fn inventory(&self) -> Result<Inventory, Error>;
    /// Tasks under way now.
    ///
    /// # Errors
    /// [`Error::Revoked`], [`Error::Unreachable`], [`Error::Transient`].
    async fn tasks(&self) -> Result<Vec<RunningTask>, Error>;
    /// Carries the operation out, to its end. `None`: the VM is not there (after a delete).
    ///
    /// # Errors
    /// Any [`Error`].
    async fn perform(&self, op: &Op) -> Result<Option<VmFacts>, Error>;
    /// What the manager holds of one VM now; `None` if it is not there.
    ///
    /// # Errors
    /// [`Error::Revoked`], [`Error::Unreachable`], [`Error::Transient`].
    async fn inspect(&self, vm: VmId) -> Result<Option<HeldVm>, Error>;
    /// Waits for changes, then gives them, oldest first. At most one caller. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Revoked`], [`Error::Unreachable`], [`Error::Transient`]; changes may then have been missed.
    async fn changes(&self) -> Result<Vec<Change>, Error>;
    /// Hosts of which the manager is certain that they run nothing and will start nothing of what they ran:
    /// powered off, or fenced; or of which it was told so ([`Driver::fenced`]). One that only does not answer is
    /// none of these. A VM on such a host is brought to another by [`Action::Relocate`], and is off there. Where a
    /// manager starts VMs of dead hosts itself, or cannot be certain, there are none.
    ///
    /// # Errors
    /// [`Error::Revoked`], [`Error::Unreachable`], [`Error::Transient`].
    async fn dead_hosts(&self) -> Result<Vec<HostId>, Error> {
        Ok(Vec::new())
    }
    /// Whether an operator may call this host dead, which runs nothing then and starts nothing of what it ran
    /// until the word is taken back. A host that answers is not dead. A driver that would do nothing with the
    /// word says so ([`Error::Invalid`]), and that is what it does unless it says otherwise.
    ///
    /// It is asked before [`Driver::open`] has succeeded too: a dead host may be why it has not.
    ///
    /// # Errors
    /// [`Error::Invalid`] with a reason, [`Error::Unreachable`], [`Error::Transient`].
    async fn may_be_fenced(&self, _host: &HostId) -> Result<(), Error> {
        Err(no_fences())
    }
    /// All the hosts that operators call dead, from here on, in the place of those that were named before. A driver
    /// that goes by it does not speak to them, holds of them what is given here, and names them in
    /// [`Driver::dead_hosts`]. Said before [`Driver::open`], after it, and again as it changes.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Transient`]: it is said again.
    async fn fenced(&self, _hosts: Vec<FencedHost>) -> Result<(), Error> {
        Ok(())
    }
    /// The VMs that stand there and are not Cellbus's, for [`Action::Adopt`]. A driver that has no adoption
    /// says so ([`Error::Invalid`]), here and to the operation; that is what it does unless it says otherwise.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Revoked`], [`Error::Unreachable`], [`Error::Transient`].
    async fn foreign(&self) -> Result<Vec<ForeignVm>, Error> {
        Err(no_adoption())
    }
    /// What it can do at once, and what it cannot promise.
    fn limits(&self) -> Limits;
    /// The newest mark ([`Driver::mark`]) that was left at the manager, by this owner or one before: where it
    /// is not there, the manager is older than it was (put back from a backup, say), nothing is done to it,
    /// and every call is answered as [`Error::Unreachable`]. Said before [`Driver::open`].
    fn expect(&self, _mark: u64) {}
    /// Leaves a mark at the manager, newer than any that was left there. `None`: it takes none.
    ///
    /// # Errors
    /// [`Error::Revoked`], [`Error::Unreachable`], [`Error::Transient`].
    async fn mark(&self) -> Result<Option<u64>, Error> {
        Ok(None)
    }
    /// VMs that carry an id of ours in a way that is not as it must be, as far as this session has heard:
    /// two of one id, one whose id was changed. They are shown, and nothing is done about them. Cheap: it is
    /// looked at once a second.
    fn irregular(&self) -> Irregular {
        Irregular::default()
    }
}

/// What a driver says that cannot take in VMs which stand at its managers already.
#[must_use]
pub fn no_adoption() -> Error {
    Error::Invalid { detail: "managers of this kind cannot have their VMs adopted yet".to_owned() }
}

/// What a driver says that would do nothing with the word that a host is dead.
#[must_use]
pub fn no_fences() -> Error {
    Error::Invalid {
        detail: "a manager of this kind is not told that a host is dead: it knows, or restarts VMs itself".to_owned(),
    }
}

/// What a manager can do at once, and what it cannot promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Operations under way at once, all kinds together.
    pub operations_max: u32,
    /// Of these, creates and copies.
    pub creates_max: u32,
    /// Relocations.
    pub relocations_max: u32,
    /// Power operations (start, stop, restart, suspend, resume).
    pub power_max: u32,
    /// Snapshot operations.
    pub snapshots_max: u32,
    /// Whether a second session is revoked by the manager itself.
    pub revokes: bool,
}

/// Where a cell gets its drivers from.
pub trait Drivers: Send + Sync {
    /// A new connection to a manager, not yet opened; `None` if there is no such manager. A front
    /// takes a new one each time that it opens its manager, so that a session is one owner's alone.
    fn connect(&self, manager: cellbus_bus::ids::ManagerId) -> Option<std::sync::Arc<dyn Driver>>;
}

/// Makes connections to the managers of one kind: what a crate with a real driver hands to the binary.
pub trait Factory: Send + Sync {
    /// The kind, as `kind` of `[[managers]]` says it.
    fn kind(&self) -> &'static str;
    /// How this manager, which is of that kind, is connected to. It is not asked anything yet: whether
    /// it answers is found out when it is opened.
    ///
    /// # Errors
    /// [`FactoryError`], when what is configured can never work (a file that is not there, say).
    fn manager(
        &self,
        manager: &crate::config::Manager,
        env: &cellbus_bus::Env,
    ) -> Result<std::sync::Arc<dyn Connect>, FactoryError>;
}

/// A manager that can be connected to.
pub trait Connect: Send + Sync {
    /// A new connection, not yet opened.
    fn connect(&self) -> std::sync::Arc<dyn Driver>;
}

/// What is configured of a manager can never work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct FactoryError {
    /// In words, with the key.
    pub detail: String,
}

/// The factories that a build has, each for one kind.
pub type Factories = Vec<std::sync::Arc<dyn Factory>>;
