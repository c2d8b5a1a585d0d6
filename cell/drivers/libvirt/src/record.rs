//! What Cellbus keeps in the metadata of a domain: one element in a namespace of its own.

use cellbus_bus::ids::{Epoch, HostId, OpNumber, ShortName, TenantId, VmId, VmName};
use uuid::Uuid;

use crate::xml::{Element, Invalid};

/// The namespace of the element. Its number changes when the element can no longer be read by
/// those who know the one before.
pub(crate) const NAMESPACE: &str = "urn:cellbus:libvirt:1";
/// What the namespace is called where libvirt writes it.
pub(crate) const PREFIX: &str = "cellbus";

/// What a domain of ours is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A VM.
    Vm(Box<VmRecord>),
    /// What is left of one.
    Gone(Tombstone),
    /// Who owns the host.
    Owner(Owner),
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmRecord {
    pub(crate) id: VmId,
    /// The UUID of its domain, where that is not the VM's id: somebody else made it, and it was adopted.
    /// A copy of the domain has another, and so is known not to be the VM.
    pub(crate) domain: Option<Uuid>,
    /// The last operation that was done to its end. `None` while it is being made.
    pub(crate) done: Option<OpNumber>,
    /// The one that was begun after it, and may have been done in part.
    pub(crate) begun: Option<Begun>,
    pub(crate) tenant: TenantId,
    pub(crate) name: VmName,
    pub(crate) affinity: Option<ShortName>,
    pub(crate) anti_affinity: Option<ShortName>,
    /// Under which epoch this was written.
    pub(crate) epoch: Epoch,
    pub(crate) disk_gib: u64,
    /// The host that was called dead when the VM was brought here from it, or made here in its place: whatever of the
    /// VM is on that host, with no higher number, was left behind.
    pub(crate) left: Option<HostId>,
}

/// An operation that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) op: OpNumber,
    /// The number that libvirt gave to the run of the domain then: a restart that was done has
    /// another after it.
    pub(crate) run: Option<u32>,
}

/// What is left of a VM that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tombstone {
    pub(crate) id: VmId,
    pub(crate) op: OpNumber,
    /// Milliseconds since 1970, by which the oldest are dropped.
    pub(crate) at_ms: u64,
    /// A host that may have something of the VM still ([`VmRecord::left`]): until that is read, this is not dropped.
    pub(crate) left: Option<HostId>,
}

/// Who owns a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The manager's name: a host belongs to one.
    pub(crate) manager: String,
    pub(crate) epoch: Epoch,
}

impl VmRecord {
    /// The UUID of its domain.
    pub(crate) fn uuid(&self) -> Uuid {
        self.domain.unwrap_or_else(|| self.id.uuid())
    }
    pub(crate) fn adopted(&self) -> bool {
        self.domain.is_some()
    }
    /// The highest number that it has seen.
    pub(crate) fn last(&self) -> OpNumber {
        let begun = self.begun.map(|begun| begun.op);
        begun.max(self.done).unwrap_or(OpNumber(0))
    }
}

impl Record {
    pub(crate) fn element(&self) -> Element {
        match self {
            Self::Vm(vm) => {
                let mut element = Element::new("vm");
                element.put("id", vm.id);
                if let Some(domain) = vm.domain {
                    element.put("domain", domain);
                }
                if let Some(done) = vm.done {
                    element.put("op", done.0);
                }
                if let Some(begun) = vm.begun {
                    element.put("begun", begun.op.0);
                    if let Some(run) = begun.run {
                        element.put("run", run);
                    }
                }
                element.put("tenant", &vm.tenant);
                element.put("name", &vm.name);
                if let Some(group) = &vm.affinity {
                    element.put("affinity", group);
                }
                if let Some(group) = &vm.anti_affinity {
                    element.put("anti_affinity", group);
                }
                element.put("epoch", vm.epoch.0);
                element.put("disk_gib", vm.disk_gib);
                if let Some(left) = &vm.left {
                    element.put("left", left);
                }
                element
            }
            Self::Gone(gone) => {
                let mut element = Element::new("gone");
                element.put("id", gone.id);
                element.put("op", gone.op.0);
                element.put("at_ms", gone.at_ms);
                if let Some(left) = &gone.left {
                    element.put("left", left);
                }
                element
            }
            Self::Owner(owner) => {
                let mut element = Element::new("owner");
                element.put("manager", &owner.manager);
                element.put("epoch", owner.epoch.0);
                element
            }
        }
    }

    /// # Errors
    /// [`Invalid`]: somebody else has written it, or changed it.
    pub(crate) fn read(element: &Element) -> Result<Self, Invalid> {
        match element.name.as_str() {
            "vm" => {
                let begun = element.number("begun")?.map(OpNumber);
                let run = element.number("run")?.map(|run| u32::try_from(run).map_err(|_| Invalid::value("run")));
                let run = run.transpose()?;
                Ok(Self::Vm(Box::new(VmRecord {
                    id: element.required("id")?,
                    domain: element.optional("domain")?,
                    done: element.number("op")?.map(OpNumber),
                    begun: begun.map(|op| Begun { op, run }),
                    tenant: element.required("tenant")?,
                    name: element.required("name")?,
                    affinity: element.optional("affinity")?,
                    anti_affinity: element.optional("anti_affinity")?,
                    epoch: Epoch(element.required("epoch")?),
                    disk_gib: element.required("disk_gib")?,
                    left: element.optional("left")?,
                })))
            }
            "gone" => Ok(Self::Gone(Tombstone {
                id: element.required("id")?,
                op: OpNumber(element.required("op")?),
                at_ms: element.required("at_ms")?,
                left: element.optional("left")?,
            })),
            "owner" => Ok(Self::Owner(Owner {
                manager: element.required("manager")?,
                epoch: Epoch(element.required("epoch")?),
            })),
            _ => Err(Invalid::value("the name of the element")),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use cellbus_bus::ids::JobId;

    use super::*;

    pub(crate) fn vm() -> VmRecord {
        VmRecord {
            id: JobId::derive("t", "s", "e").vm(0),
            domain: None,
            done: Some(OpNumber(3)),
            begun: Some(Begun { op: OpNumber(4), run: Some(7) }),
            tenant: "acme".parse().unwrap(),
            name: "web-1".parse().unwrap(),
            affinity: Some("together".parse().unwrap()),
            anti_affinity: None,
            epoch: Epoch(9),
            disk_gib: 10,
            left: Some("h1.example".parse().unwrap()),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bare = VmRecord { done: None, begun: None, affinity: None, left: None, ..vm() };
        let adopted = VmRecord { domain: Some(Uuid::from_u128(7)), ..vm() };
        assert_eq!((bare.uuid(), adopted.uuid()), (vm().id.uuid(), Uuid::from_u128(7)));
        let gone = Tombstone { id: vm().id, op: OpNumber(u64::MAX), at_ms: 5, left: None };
        let missed = Tombstone { left: vm().left, ..gone.clone() };
        let owner = Owner { manager: "racks <&\"'>".to_owned(), epoch: Epoch(2) };
        let vms = [vm(), bare.clone(), adopted].map(|vm| Record::Vm(Box::new(vm)));
        for record in vms.into_iter().chain([Record::Gone(gone), Record::Gone(missed), Record::Owner(owner)]) {
            assert_eq!(Record::read(&record.element()).unwrap(), record);
        }
        assert_eq!((vm().last(), bare.last()), (OpNumber(4), OpNumber(0)));
    }

    #[test]
    fn what_somebody_else_wrote_is_refused() {
        let good = Record::Vm(Box::new(vm())).element();
        for (key, value) in [
            ("id", "x"),
            ("domain", "web"),
            ("op", "-1"),
            ("op", "18446744073709551616"),
            ("run", "4294967296"),
            ("tenant", ""),
            ("name", "a b"),
            ("epoch", ""),
            ("affinity", "a/b"),
            ("disk_gib", "1.5"),
            ("left", ""),
        ] {
            let mut bad = good.clone();
            bad.put(key, value);
            assert!(Record::read(&bad).is_err(), "{key} = {value}");
        }
        assert!(Record::read(&Element::new("vm")).is_err());
        assert!(Record::read(&Element::new("else")).is_err());
    }
}
