//! What Cellbus writes of a VM into its annotation: one line of JSON, changed with the VM itself.

use cellbus_bus::ids::{OpNumber, ShortName, TenantId, VmId, VmName};
use cellbus_workflows::CreateSpec;
use serde::{Deserialize, Serialize};

/// Bytes of an annotation that is looked at.
const BYTES_MAX: usize = 8_192;
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
        }
    }
    /// `None`: this is no annotation of Cellbus's.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let note: Self = (text.len() <= BYTES_MAX).then(|| serde_json::from_str(text.trim()).ok())??;
        (note.cellbus == VERSION).then_some(note)
    }
    /// As the annotation has it.
    pub(crate) fn text(&self) -> String {
        serde_json::to_string(self).expect("names and numbers are JSON")
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

    proptest::proptest! {
        #[test]
        fn anything_may_stand_in_an_annotation(text in ".{0,200}") {
            let _ = Note::read(&text);
        }
    }
}
