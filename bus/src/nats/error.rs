//! Why the NATS bus could not be opened, with what to do about it.

use std::error::Error as StdError;

use crate::contract::MESSAGE_BYTES_MAX;

/// What async-nats said.
pub type Source = Box<dyn StdError + Send + Sync>;

/// Why [`super::Nats::open`] did not open the bus.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration cannot work.
    #[error("the NATS setting {field} must be {rule}")]
    Config {
        /// Which setting.
        field: &'static str,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// No server answered.
    #[error("no NATS server of {servers} can be reached")]
    Unreachable {
        /// The addresses that were tried.
        servers: String,
        /// What went wrong last.
        #[source]
        source: Source,
    },
    /// A server does not let this process in.
    #[error("the NATS server refuses to sign this process in; check user, token, nkey or credentials file")]
    SignIn {
        /// What the server said.
        #[source]
        source: Source,
    },
    /// No encrypted connection came about.
    #[error(
        "no encrypted connection to the NATS server; check its certificate, the CA file and the client certificate"
    )]
    Tls {
        /// What went wrong.
        #[source]
        source: Source,
    },
    /// Older servers silently ignore what the fence and the limits rest on.
    #[error("the NATS server has version {found}, and 2.11 or newer is needed; upgrade it")]
    TooOld {
        /// Its version.
        found: String,
    },
    /// JetStream is off, or not for this account.
    #[error("the NATS server has no JetStream for this account; set `jetstream` in its configuration")]
    NoJetStream {
        /// What the server said.
        #[source]
        source: Source,
    },
    /// A whole message of Cellbus does not fit into one of the server's.
    #[error(
        "the NATS server takes messages of up to {found} bytes, and Cellbus needs {}; set `max_payload: 8MB` in its configuration",
        super::PAYLOAD_BYTES_MIN
    )]
    MaxPayload {
        /// Its limit.
        found: usize,
    },
    /// A stream or bucket is there, and is not what this process needs.
    #[error("the NATS stream {stream} has {field} {found}, and {wanted} is wanted; {remedy}")]
    Differs {
        /// Which stream; that of a bucket begins with `KV_`.
        stream: String,
        /// Which field of its configuration.
        field: &'static str,
        /// What it has.
        found: String,
        /// What is wanted.
        wanted: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Nothing of Cellbus is on this server.
    #[error(
        "there is no Cellbus cluster on this NATS server (no stream {stream}); check the address, the account and nats.prefix"
    )]
    NoCluster {
        /// What was looked for.
        stream: String,
    },
    /// The number of lanes is fixed for the life of a cluster.
    #[error(
        "this cluster was made with {stored} lanes and this process is configured for {wanted}; configure {stored}, the number cannot change"
    )]
    Lanes {
        /// In the record.
        stored: u16,
        /// Configured.
        wanted: u16,
    },
    /// The layout was written by a build that knows more than this one.
    #[error(
        "this cluster's streams have layout {found}, and this build knows up to {}; run a newer build",
        super::layout::LAYOUT
    )]
    NewerLayout {
        /// In the record.
        found: u32,
    },
    /// The server refused to make a stream, or to tell about one.
    #[error("the NATS server refuses {doing}: {reason}")]
    Refused {
        /// What was asked.
        doing: String,
        /// What it said.
        reason: String,
    },
    /// No answer in time.
    #[error("the NATS server gave no answer to {doing}")]
    NoAnswer {
        /// What was asked.
        doing: String,
        /// What went wrong.
        #[source]
        source: Source,
    },
}

const _: () = assert!(super::PAYLOAD_BYTES_MIN > MESSAGE_BYTES_MAX);

impl OpenError {
    /// The stable code that `ops/docs/errors/` has a page for.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config { .. } => "nats_config_invalid",
            Self::Unreachable { .. } => "nats_unreachable",
            Self::SignIn { .. } => "nats_sign_in_refused",
            Self::Tls { .. } => "nats_tls_failed",
            Self::TooOld { .. } => "nats_server_too_old",
            Self::NoJetStream { .. } => "nats_no_jetstream",
            Self::MaxPayload { .. } => "nats_max_payload",
            Self::Differs { .. } => "nats_stream_differs",
            Self::NoCluster { .. } => "nats_no_cluster",
            Self::Lanes { .. } => "nats_lanes_differ",
            Self::NewerLayout { .. } => "nats_newer_layout",
            Self::Refused { .. } => "nats_refused",
            Self::NoAnswer { .. } => "nats_no_answer",
        }
    }
    /// Whether opening may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoAnswer { .. } => true,
            Self::Config { .. }
            | Self::SignIn { .. }
            | Self::Tls { .. }
            | Self::TooOld { .. }
            | Self::NoJetStream { .. }
            | Self::MaxPayload { .. }
            | Self::Differs { .. }
            | Self::NoCluster { .. }
            | Self::Lanes { .. }
            | Self::NewerLayout { .. }
            | Self::Refused { .. } => false,
        }
    }
}
