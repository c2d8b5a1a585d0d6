//! What a fault of vSphere means to Cellbus.

use cellbus_cell::driver::Error;

use crate::soap::{Failure, Fault};

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoAnswer(detail) => Self::Unreachable { detail },
            Failure::Fault(fault) => meaning(&fault),
            Failure::Revoked => Self::Revoked,
            Failure::Refused(error) => error,
        }
    }
}

/// Which error a fault is. What is not listed is for a person: it is not tried again.
fn meaning(fault: &Fault) -> Error {
    let detail = fault.to_string();
    match fault.kind.as_str() {
        "ManagedObjectNotFound" => Error::NotFound,

        // The host, the pool or the datastore has no room, or does not take part.
        "InsufficientResourcesFault"
        | "InsufficientHostCapacityFault"
        | "InsufficientHostCpuCapacityFault"
        | "InsufficientHostMemoryCapacityFault"
        | "InsufficientPerCpuCapacity"
        | "InsufficientCpuResourcesFault"
        | "InsufficientMemoryResourcesFault"
        | "InsufficientFailoverResourcesFault"
        | "InsufficientGraphicsResourcesFault"
        | "InsufficientVFlashResourcesFault"
        | "InsufficientStorageSpace"
        | "InsufficientStandbyResource"
        | "InsufficientDisks"
        | "NumVirtualCpusExceedsLimit"
        | "MemorySizeNotSupported"
        | "MemorySizeNotSupportedByDatastore"
        | "NotEnoughCpus"
        | "NotEnoughLogicalCpus"
        | "VmLimitLicense"
        | "NoDiskSpace"
        | "NoSpaceFault"
        | "NoCompatibleHost"
        | "NoCompatibleDatastore"
        | "NoHost"
        | "HostNotConnected"
        | "HostNotReachable"
        | "HostInMaintenanceMode"
        | "InvalidHostState"
        | "InaccessibleDatastore"
        | "DatastoreNotWritableOnHost"
        | "QuarantineModeFault" => Error::NoRoom { detail },

        // Others are at it: later.
        "TaskInProgress"
        | "ResourceInUse"
        | "FileLocked"
        | "ConcurrentAccess"
        | "TooManyConcurrentNativeClones"
        | "TooManyTasks" => Error::Busy { detail },

        // It may pass.
        "HostCommunication"
        | "Timedout"
        | "RequestCanceled"
        | "SystemError"
        | "PlatformConfigFault"
        | "HostConnectFault"
        | "VimFault"
        | "RuntimeFault"
        | "MethodFault"
        | "NotAuthenticated"
        | "InvalidLogin"
        | "SessionLimitExceeded"
        | "GenericVmConfigFault"
        | "StorageError"
        | "DatacenterMismatch" => Error::Transient { detail },

        // It makes no sense for the VM as it is.
        "InvalidPowerState"
        | "InvalidState"
        | "InvalidArgument"
        | "InvalidRequest"
        | "InvalidVmConfig"
        | "InvalidVmState"
        | "InvalidDeviceSpec"
        | "InvalidDeviceOperation"
        | "InvalidDatastore"
        | "InvalidName"
        | "InvalidSnapshotState"
        | "InvalidSnapshotFormat"
        | "SnapshotFault"
        | "SnapshotDisabled"
        | "SnapshotIncompatibleDeviceInVm"
        | "TooManySnapshotLevels"
        | "MultipleSnapshotsNotSupported"
        | "NotFound"
        | "NotSupported"
        | "CpuHotPlugNotSupported"
        | "MemoryHotPlugNotSupported"
        | "CannotModifyConfigCpuRequirements"
        | "VmConfigFault"
        | "ToolsUnavailable"
        | "MethodDisabled" => Error::Invalid { detail },

        // Forbidden, and whatever is not known.
        "NoPermission" | "RestrictedVersion" | "RestrictedByAdministrator" | "NotEnoughLicenses" => {
            Error::Permanent { detail: format!("not allowed: {detail}") }
        }
        _ => Error::Permanent { detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::Element;

    fn of(kind: &str) -> Error {
        Failure::Fault(Fault { kind: kind.to_owned(), message: String::new(), detail: Box::new(Element::default()) })
            .into()
    }

    #[test]
    fn each_family_of_faults_has_its_meaning() {
        assert_eq!(of("ManagedObjectNotFound"), Error::NotFound);
        for kind in ["InsufficientMemoryResourcesFault", "NoDiskSpace", "HostNotConnected", "NoCompatibleHost"] {
            assert!(matches!(of(kind), Error::NoRoom { .. }), "{kind}");
        }
        for kind in ["TaskInProgress", "ResourceInUse", "ConcurrentAccess"] {
            assert!(matches!(of(kind), Error::Busy { .. }) && of(kind).retryable(), "{kind}");
        }
        for kind in ["HostCommunication", "Timedout", "SystemError", "InvalidLogin"] {
            assert!(matches!(of(kind), Error::Transient { .. }) && of(kind).retryable(), "{kind}");
        }
        for kind in ["InvalidPowerState", "InvalidDeviceSpec", "SnapshotFault", "NotSupported"] {
            assert!(matches!(of(kind), Error::Invalid { .. }) && !of(kind).retryable(), "{kind}");
        }
        for kind in ["NoPermission", "NotEnoughLicenses"] {
            assert!(matches!(of(kind), Error::Permanent { detail } if detail.contains("not allowed")), "{kind}");
        }
        assert!(matches!(of("SomethingNew"), Error::Permanent { .. }));
        assert!(matches!(Error::from(Failure::NoAnswer("x".to_owned())), Error::Unreachable { .. }));
    }
}
