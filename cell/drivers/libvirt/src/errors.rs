//! What libvirt's errors mean for an operation.

use cellbus_cell::driver::Error;
use virt::error::ErrorNumber as N;

use crate::xml::Invalid;

/// Why a call did not do what it was to do.
#[derive(Debug)]
pub(crate) enum Failure {
    /// libvirt says so. Its text may quote a guest's name or a path, never a secret.
    Libvirt(virt::error::Error),
    /// We say so.
    Ours(Error),
}
impl From<virt::error::Error> for Failure {
    fn from(error: virt::error::Error) -> Self {
        Self::Libvirt(error)
    }
}
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}
impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::Ours(Error::Permanent { detail: invalid.to_string() })
    }
}

/// As the trait says it.
pub(crate) fn of(host: &str, failure: Failure) -> Error {
    match failure {
        Failure::Libvirt(error) => mean(error.code(), format!("host {host}: {}", error.message())),
        Failure::Ours(error) => error,
    }
}

/// Whether there is no such domain (volume, snapshot), which callers ask about.
pub(crate) fn absent(error: &virt::error::Error) -> bool {
    matches!(error.code(), N::NoDomain | N::NoNetwork | N::NoStorageVolume | N::NoDomainSnapshot | N::NoDomainMetadata)
}

/// Whether there must be somebody on the host, of whom this is said or who says so. That it is not so means nothing:
/// one who hangs up on us is not told from a connection that breaks.
pub(crate) fn was_said(error: &virt::error::Error) -> bool {
    matches!(error.code(), N::AuthFailed | N::AuthCancelled | N::AuthUnavailable | N::AccessDenied | N::OperationDenied)
}

fn mean(code: N, detail: String) -> Error {
    match code {
        // The connection broke, or cannot be had: what was asked may have been done.
        N::Rpc
        | N::SystemError
        | N::NoConnect
        | N::InvalidConn
        | N::GnutlsError
        | N::AuthFailed
        | N::AuthCancelled
        | N::AuthUnavailable
        | N::Ssh
        | N::Libssh
        | N::OpenFailed
        | N::NoServer
        | N::NoClient
        | N::OperationAborted
        | N::MigratePersistFailed
        | N::MigrateFinishOk => Error::Unreachable { detail },
        // Another call has the domain: nothing was done.
        N::OperationTimeout | N::ResourceBusy | N::BlockCopyActive => Error::Busy { detail },
        N::NoDomain => Error::NotFound,
        N::NoMemory | N::NoNetwork | N::NoStoragePool | N::NoStorage | N::NoNetworkStart | N::NoNode => {
            Error::NoRoom { detail }
        }
        N::OperationInvalid
        | N::InvalidArg
        | N::NoDomainSnapshot
        | N::InvalidDomainSnapshot
        | N::SnapshotRevertRisky
        | N::MigrateUnsafe
        | N::Overflow
        | N::NoStorageVolume => Error::Invalid { detail },
        // It never will: what the host lacks, or what we may not do there.
        N::NoSupport
        | N::OperationUnsupported
        | N::ArgumentUnsupported
        | N::ConfigUnsupported
        | N::CpuIncompatible
        | N::XmlError
        | N::XmlDetail
        | N::XmlInvalidSchema
        | N::AccessDenied
        | N::OperationDenied
        | N::DomExist
        | N::StorageVolExist => Error::Permanent { detail },
        _ => Error::Transient { detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_libvirt_has_a_meaning() {
        let of = |code| mean(code, "h1: x".to_owned());
        for code in [N::Rpc, N::SystemError, N::NoConnect, N::GnutlsError, N::AuthFailed, N::Ssh, N::NoClient] {
            assert!(matches!(of(code), Error::Unreachable { .. }), "{code:?}");
        }
        for code in [N::OperationTimeout, N::ResourceBusy, N::BlockCopyActive] {
            assert!(matches!(of(code), Error::Busy { .. }) && of(code).retryable(), "{code:?}");
        }
        for code in [N::NoMemory, N::NoNetwork, N::NoStoragePool] {
            assert!(matches!(of(code), Error::NoRoom { .. }), "{code:?}");
        }
        for code in
            [N::OperationInvalid, N::InvalidArg, N::NoDomainSnapshot, N::SnapshotRevertRisky, N::NoStorageVolume]
        {
            assert!(matches!(of(code), Error::Invalid { .. }), "{code:?}");
        }
        for code in [N::NoSupport, N::ConfigUnsupported, N::AccessDenied, N::XmlError, N::CpuIncompatible] {
            assert!(matches!(of(code), Error::Permanent { .. }), "{code:?}");
        }
        for code in [N::OperationFailed, N::InternalError, N::AgentUnresponsive, N::Last] {
            assert!(matches!(of(code), Error::Transient { .. }), "{code:?}");
        }
        assert_eq!(of(N::NoDomain), Error::NotFound);
    }
}
