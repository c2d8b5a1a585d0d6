//! Why the API server did not do as it was asked.

use std::error::Error as _;
use std::fmt::Write as _;
use std::time::Duration;

/// Every code that [`Error::code`] gives: each has a page in `ops/docs/errors/`.
pub const CODES: &[&str] = &[
    "kubernetes_conflict",
    "kubernetes_credentials",
    "kubernetes_forbidden",
    "kubernetes_not_found",
    "kubernetes_refused",
    "kubernetes_unreachable",
];

/// See the module. All are tried again, with growing pauses: what is wrong is put right outside.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address and credentials can be read.
    #[error("there are no usable credentials for Kubernetes")]
    Credentials(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The API server cannot be reached, fails, or gives no sensible answer.
    #[error("the Kubernetes API server cannot be reached or fails")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It took longer than it may.
    #[error("the Kubernetes API server has not answered within {:.1} s", limit.as_secs_f64())]
    NoAnswer {
        /// `scale.kubernetes.timeout`
        limit: Duration,
    },
    /// The credentials are not known, or may not do this.
    #[error("the Kubernetes API server does not allow {what}: {said}")]
    Forbidden {
        /// On what.
        what: String,
        /// In its own words.
        said: String,
    },
    /// There is no such Deployment.
    #[error("Kubernetes has no {what}: {said}")]
    NotFound {
        /// On what.
        what: String,
        /// In its own words.
        said: String,
    },
    /// Somebody else has changed it since it was read. It is read again.
    #[error("somebody else has just changed {what}: {said}")]
    Conflict {
        /// On what.
        what: String,
        /// In its own words.
        said: String,
    },
    /// Another refusal.
    #[error("the Kubernetes API server refuses {what} ({status}): {said}")]
    Refused {
        /// On what.
        what: String,
        /// HTTP's.
        status: u16,
        /// In its own words.
        said: String,
    },
}

impl Error {
    /// The stable code that `ops/docs/errors/` has a page for.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Credentials(_) => "kubernetes_credentials",
            Self::Unreachable(_) | Self::NoAnswer { .. } => "kubernetes_unreachable",
            Self::Forbidden { .. } => "kubernetes_forbidden",
            Self::NotFound { .. } => "kubernetes_not_found",
            Self::Conflict { .. } => "kubernetes_conflict",
            Self::Refused { .. } => "kubernetes_refused",
        }
    }

    pub(super) fn credentials(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Credentials(source.into())
    }

    /// What came of a request about `what`.
    pub(super) fn of(error: kube::Error, what: String) -> Self {
        let kube::Error::Api(status) = error else { return Self::Unreachable(error.into()) };
        let said = if status.message.is_empty() { status.reason.clone() } else { status.message.clone() };
        match status.code {
            401 | 403 => Self::Forbidden { what, said },
            404 => Self::NotFound { what, said },
            409 => Self::Conflict { what, said },
            429 | 500.. => Self::Unreachable(format!("{}: {said}", status.code).into()),
            status => Self::Refused { what, status, said },
        }
    }

    /// Whether another client, with files that are read anew, may fare better.
    pub(super) fn may_be_the_client(&self) -> bool {
        match self {
            Self::Credentials(_) | Self::Unreachable(_) | Self::NoAnswer { .. } | Self::Forbidden { .. } => true,
            Self::NotFound { .. } | Self::Conflict { .. } | Self::Refused { .. } => false,
        }
    }

    /// With its code and all that led to it.
    pub(super) fn in_full(&self) -> String {
        let mut text = format!("{}: {self}", self.code());
        let mut source = self.source();
        while let Some(error) = source {
            // A String takes whatever is written.
            let _ = write!(text, ": {error}");
            source = error.source();
        }
        text
    }
}
