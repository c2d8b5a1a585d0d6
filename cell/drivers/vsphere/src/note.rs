//! What Cellbus writes of a VM into its annotation: one line of JSON, changed with the VM itself. Whatever
//! else stands there is its owner's, and is kept below.

use cellbus_bus::ids::{OpNumber, ShortName, TenantId, VmId, VmName};
use cellbus_workflows::{AdoptSpec, CreateSpec};
use serde::{Deserialize, Serialize};

/// Bytes of a line that is looked at.
const BYTES_MAX: usize = 8_192;
/// What a note begins with, as it is written.
const BEGINS: &str = "{\"cellbus\":";
/// The form of what is written.
const VERSION: u32 = 1;

/// The annotation of a VM of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) cellbus: u32,
    pub(crate) vm: VmId,
    /// The last operation.
    pub(crate) op: OpNumber,
    /// It has begun and is not known to have ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) doing: bool,
    pub(crate) tenant: TenantId,
    pub(crate) name: VmName,
    /// The size of its disk, GiB: reading the devices of thousands of VMs would take MiB.
    pub(crate) disk_gib: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) affinity: Option<ShortName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) anti_affinity: Option<ShortName>,
    /// Of a VM that was adopted: the instance UUID by which it is known. It keeps that, and its name and folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) adopted: Option<String>,
    /// What its owner has written into the annotation.
    #[serde(skip)]
    pub(crate) below: String,
}

impl Note {
    /// Of a VM that is being made.
    pub(crate) fn of(vm: VmId, op: OpNumber, spec: &CreateSpec) -> Self {
        let policy = &spec.template.policy;
        Self {
            cellbus: VERSION,
            vm,
            op,
            doing: true,
            tenant: spec.tenant.clone(),
            name: spec.name.clone(),
            disk_gib: spec.size.disk_gib,
            affinity: policy.affinity.clone(),
            anti_affinity: policy.anti_affinity.clone(),
            adopted: None,
            below: String::new(),
        }
    }
    /// Of a VM that somebody else made, which the vCenter knows by `uuid` and whose annotation is `below`.
    pub(crate) fn adopting(
        (vm, op): (VmId, OpNumber),
        spec: &AdoptSpec,
        uuid: &str,
        disk_gib: u64,
        below: &str,
    ) -> Self {
        Self {
            cellbus: VERSION,
            vm,
            op,
            // It is one change, which is there or is not.
            doing: false,
            tenant: spec.tenant.clone(),
            name: spec.name.clone(),
            disk_gib,
            affinity: None,
            anti_affinity: None,
            adopted: Some(uuid.to_owned()),
            below: below.to_owned(),
        }
    }
    /// `None`: no line of this annotation is Cellbus's.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let ours = |line: &str| {
            let line = Some(line.trim()).filter(|line| line.starts_with(BEGINS) && line.len() <= BYTES_MAX)?;
            serde_json::from_str::<Self>(line).ok().filter(|note| note.cellbus == VERSION)
        };
        // People write above it, too.
        let (at, mut note) = text.split('\n').enumerate().find_map(|(at, line)| Some((at, ours(line)?)))?;
        let others: Vec<&str> =
            text.split('\n').enumerate().filter_map(|(other, line)| (other != at).then_some(line)).collect();
        note.below = others.join("\n");
        Some(note)
    }
    /// As the annotation has it.
    pub(crate) fn text(&self) -> String {
        let note = serde_json::to_string(self).expect("names and numbers are JSON");
        if self.below.is_empty() { note } else { format!("{note}\n{}", self.below) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let text = "{\"cellbus\":1,\"vm\":\"f44dec3f-0dad-599c-bfc4-bbe000698666\",\"op\":3,\"tenant\":\"acme\",\"name\":\"web-0\",\"disk_gib\":40}";
        let note = Note::read(text).unwrap();
        assert!(!note.doing);
        assert_eq!(note.text(), text);
        for other in ["", "made by hand", "{}", &text.replace("\"cellbus\":1", "\"cellbus\":2"), &" ".repeat(9_000)] {
            assert_eq!(Note::read(other), None, "{other}");
        }
    }

    #[test]
    fn what_its_owner_wrote_stays() {
        let spec = AdoptSpec { tenant: "acme".parse().unwrap(), name: "web-0".parse().unwrap(), foreign: None };
        let vm = "f44dec3f-0dad-599c-bfc4-bbe000698666".parse().unwrap();
        let uuid = "5029c440-85ee-c2a1-e9dd-b63e39364603";
        for theirs in ["", "cost centre 7", "two\n\nparts\n", "{\"theirs\":1}"] {
            let note = Note::adopting((vm, OpNumber(3)), &spec, uuid, 40, theirs);
            let text = note.text();
            assert_eq!(Note::read(&text).as_ref(), Some(&note), "{text}");
            assert_eq!(text.lines().next().unwrap().contains(theirs), theirs.is_empty());
            // And so does what is written above, which goes below with the next change.
            let above = Note::read(&format!("call Bob\r\n{text}")).unwrap();
            assert_eq!((above.vm, above.text().contains("call Bob\r")), (vm, true));
            assert!(above.text().ends_with(theirs));
        }
    }

    proptest::proptest! {
        #[test]
        fn anything_may_stand_in_an_annotation(text in ".{0,200}") {
            let _ = Note::read(&text);
        }
    }
}
