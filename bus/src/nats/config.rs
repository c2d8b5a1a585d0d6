//! What the NATS transport is told: where the servers are, who it is, how its streams are kept.

use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// The number of lanes that a new cluster gets: 1, 4 and 16 carry alike, and 64 are slower.
pub const LANES_DEFAULT: u16 = 4;
/// The most lanes that a cluster may have. Each is three streams.
pub const LANES_MAX: u16 = 64;

/// How this process signs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Not at all, or by the client certificate alone.
    #[default]
    None,
    /// A token.
    Token(Secret),
    /// User and password.
    User {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// The seed of an nkey (`SU...`).
    Nkey(Secret),
    /// The content of a credentials file: a JWT and the seed of its nkey.
    Credentials(Secret),
}

/// How the connection is encrypted. The files are read again at every connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Refuses servers that do not encrypt. A `tls://` address does too.
    pub required: bool,
    /// Encrypts before the server has said anything (its `handshake_first`).
    pub first: bool,
    /// Certificates (PEM) of authorities to trust beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// Client certificate (PEM) and its key (PEM), for servers that verify.
    pub client_files: Option<(PathBuf, PathBuf)>,
}

/// How much the streams take. A stream that is full refuses; only old events make room for new ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of jobs that no cell has taken yet. `None`: as much as the server gives.
    pub ingress_bytes_max: Option<u64>,
    /// Bytes of each lane of queues, and of logs. `None`: as much as the server gives.
    pub lane_bytes_max: Option<u64>,
    /// Bytes of all snapshots. `None`: as much as the server gives.
    pub snapshots_bytes_max: Option<u64>,
    /// How many events are kept for readers that come back.
    pub events_keep: u64,
    /// Bytes of events that are kept.
    pub events_bytes_max: u64,
    /// How long events are kept.
    pub events_age_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ingress_bytes_max: None,
            lane_bytes_max: None,
            snapshots_bytes_max: None,
            events_keep: 1_000_000,
            events_bytes_max: 1 << 30,
            events_age_max: Duration::from_secs(24 * 3600),
        }
    }
}

/// Everything that [`super::Nats::open`] wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses (`nats://host:port`, `tls://host:port`), tried in an order of chance.
    pub servers: Vec<String>,
    /// What the server calls this connection.
    pub name: String,
    /// How this process signs in.
    pub auth: Auth,
    /// Encryption.
    pub tls: Tls,
    /// How many servers keep each message: 1, 3 or 5.
    pub replicas: u16,
    /// How many lanes queues and logs are spread over. Fixed once a cluster is made.
    pub lanes: u16,
    /// What all names begin with, so that several clusters can share a server. Producers publish on
    /// `<prefix>.jobs.<tenant>`.
    pub prefix: String,
    /// Limits.
    pub limits: Limits,
    /// How long one answer of the server may take; what was written is then unknown.
    pub answer_timeout: Duration,
    /// How long a connect may take, and the whole of [`super::Nats::open`]'s first one.
    pub connect_timeout: Duration,
    /// After so long without word from a dead cell, the server gives its ingress messages to others.
    pub redeliver_after: Duration,
    /// The most that a member's time to live can be: the bucket forgets a member after so long.
    pub member_ttl_max: Duration,
    /// What was trimmed is dropped by rounds, at most one in so long. What is asked to be trimmed in
    /// one round is dropped in a later one, so that readers elsewhere hear of it in between.
    pub trim_every: Duration,
}

impl Config {
    /// The defaults, with these servers.
    #[must_use]
    pub fn new(servers: Vec<String>) -> Self {
        Self {
            servers,
            name: "cellbus".to_owned(),
            auth: Auth::None,
            tls: Tls::default(),
            replicas: 1,
            lanes: LANES_DEFAULT,
            prefix: "cellbus".to_owned(),
            limits: Limits::default(),
            answer_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            redeliver_after: Duration::from_secs(30),
            member_ttl_max: Duration::from_secs(120),
            trim_every: Duration::from_secs(60),
        }
    }

    /// What is wrong with it: the field, and the rule that it breaks.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let prefix_fits = (1..=32).contains(&self.prefix.len())
            && self.prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if self.servers.is_empty() {
            Err(("servers", "at least one address"))
        } else if !prefix_fits {
            Err(("prefix", "1 to 32 of [A-Za-z0-9_-]"))
        } else if !matches!(self.replicas, 1 | 3 | 5) {
            Err(("replicas", "1, 3 or 5"))
        } else if !(1..=LANES_MAX).contains(&self.lanes) {
            Err(("lanes", "1 to 64"))
        } else if self.redeliver_after < Duration::from_millis(100) {
            Err(("redeliver_after", "100 ms or more"))
        } else if self.answer_timeout.is_zero() || self.connect_timeout.is_zero() || self.member_ttl_max.is_zero() {
            Err(("timeouts", "above zero"))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let config = Config {
            auth: Auth::User { user: "ann".to_owned(), password: Secret::new("swordfish") },
            ..Config::new(vec!["nats://localhost".to_owned()])
        };
        assert!(!format!("{config:?}").contains("swordfish"));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let sound = Config::new(vec!["nats://localhost".to_owned()]);
        assert_eq!(sound.check(), Ok(()));
        let wrong = [
            ("servers", Config { servers: Vec::new(), ..sound.clone() }),
            ("prefix", Config { prefix: "a.b".to_owned(), ..sound.clone() }),
            ("replicas", Config { replicas: 2, ..sound.clone() }),
            ("lanes", Config { lanes: 0, ..sound.clone() }),
            ("redeliver_after", Config { redeliver_after: Duration::ZERO, ..sound.clone() }),
            ("timeouts", Config { answer_timeout: Duration::ZERO, ..sound }),
        ];
        for (field, config) in wrong {
            assert_eq!(config.check().map_err(|(field, _)| field), Err(field));
        }
    }
}
