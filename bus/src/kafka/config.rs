//! What the Kafka transport is told: where the brokers are, who it is, how its topics are kept.

use std::path::PathBuf;
use std::time::Duration;

use crate::ids::ShardCount;
use crate::secret::Secret;

/// The most partitions that a tenant's topic of jobs is made with.
pub const TENANT_PARTITIONS_MAX: u16 = 64;

/// How this process signs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Not at all, or by the client certificate alone.
    #[default]
    None,
    /// SASL with a user and a password.
    User {
        /// How the password is shown.
        mechanism: Mechanism,
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// SASL OAUTHBEARER with the token (a JWT) that stands in this file, which is read again each time
    /// that a client needs a new one.
    Token {
        /// The file.
        file: PathBuf,
    },
}

/// A SASL mechanism for a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// As it is. Only over TLS, or who listens has it.
    Plain,
    /// By a proof of it, SHA-256.
    ScramSha256,
    /// By a proof of it, SHA-512.
    ScramSha512,
}

impl Mechanism {
    /// As Kafka calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// How connections are encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whether they are.
    pub enabled: bool,
    /// Certificates (PEM) of authorities to trust in the place of those of the system.
    pub ca_file: Option<PathBuf>,
    /// Client certificate (PEM) and its key (PEM), for brokers that verify.
    pub client_files: Option<(PathBuf, PathBuf)>,
}

/// Everything that [`super::Kafka::open`] wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses (`host:port`) of some of the brokers.
    pub brokers: Vec<String>,
    /// What the brokers call this client.
    pub name: String,
    /// How this process signs in.
    pub auth: Auth,
    /// Encryption.
    pub tls: Tls,
    /// How many brokers keep each message of topics that are made: 1, 3 or 5.
    pub replicas: u16,
    /// How many shards there are: each has a partition of queues, log and snapshots. Fixed once a
    /// cluster is made.
    pub shards: u16,
    /// Partitions of a tenant's topics that are made here.
    pub tenant_partitions: u16,
    /// What all names begin with, so that several clusters can share brokers. Producers write to
    /// `<prefix>.jobs.<tenant>`.
    pub prefix: String,
    /// How long events are kept for readers that come back.
    pub events_age_max: Duration,
    /// Bytes of events that are kept, of all tenants together and of each.
    pub events_bytes_max: u64,
    /// How long one answer of a broker may take; what was written is then unknown.
    pub answer_timeout: Duration,
    /// How long the first connect may take.
    pub connect_timeout: Duration,
    /// How often is looked for topics of new tenants.
    pub discover_every: Duration,
    /// After so long without word from a dead cell, the brokers give its ingress partitions to others.
    pub session_timeout: Duration,
    /// How often acknowledged ingress messages are written down, and what is done with is dropped.
    pub commit_every: Duration,
}

impl Config {
    /// The defaults, with these brokers.
    #[must_use]
    pub fn new(brokers: Vec<String>) -> Self {
        Self {
            brokers,
            name: "cellbus".to_owned(),
            auth: Auth::None,
            tls: Tls::default(),
            replicas: 1,
            shards: ShardCount::DEFAULT.get(),
            tenant_partitions: 4,
            prefix: "cellbus".to_owned(),
            events_age_max: Duration::from_secs(24 * 3600),
            events_bytes_max: 1 << 30,
            answer_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            discover_every: Duration::from_secs(5),
            session_timeout: Duration::from_secs(10),
            commit_every: Duration::from_millis(100),
        }
    }

    /// What is wrong with it: the field, and the rule that it breaks.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let prefix_fits = (1..=32).contains(&self.prefix.len())
            && self.prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        // A comma would be the next address, and a control character nothing that a name has.
        let plain = |text: &String| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b',');
        if self.brokers.is_empty() || !self.brokers.iter().all(plain) {
            Err(("brokers", "at least one host:port"))
        } else if !prefix_fits {
            Err(("prefix", "1 to 32 of [A-Za-z0-9_-]"))
        } else if !matches!(self.replicas, 1 | 3 | 5) {
            Err(("replicas", "1, 3 or 5"))
        } else if ShardCount::new(self.shards).is_none() {
            Err(("shards", "1 to 4096"))
        } else if !(1..=TENANT_PARTITIONS_MAX).contains(&self.tenant_partitions) {
            Err(("tenant_partitions", "1 to 64"))
        } else if self.answer_timeout.is_zero() || self.connect_timeout.is_zero() || self.discover_every.is_zero() {
            Err(("timeouts", "above zero"))
        } else if self.session_timeout < Duration::from_secs(6) {
            Err(("session_timeout", "6 s or more, as brokers want it"))
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
        let auth =
            Auth::User { mechanism: Mechanism::Plain, user: "ann".to_owned(), password: Secret::new("swordfish") };
        let config = Config { auth, ..Config::new(vec!["localhost:9092".to_owned()]) };
        assert!(!format!("{config:?}").contains("swordfish"));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let sound = Config::new(vec!["localhost:9092".to_owned()]);
        assert_eq!(sound.check(), Ok(()));
        let wrong = [
            ("brokers", Config { brokers: Vec::new(), ..sound.clone() }),
            ("brokers", Config { brokers: vec!["a:1,b:2".to_owned()], ..sound.clone() }),
            ("prefix", Config { prefix: "a.b".to_owned(), ..sound.clone() }),
            ("replicas", Config { replicas: 2, ..sound.clone() }),
            ("shards", Config { shards: 0, ..sound.clone() }),
            ("tenant_partitions", Config { tenant_partitions: 0, ..sound.clone() }),
            ("timeouts", Config { answer_timeout: Duration::ZERO, ..sound.clone() }),
            ("session_timeout", Config { session_timeout: Duration::from_secs(1), ..sound }),
        ];
        for (field, config) in wrong {
            assert_eq!(config.check().map_err(|(field, _)| field), Err(field));
        }
    }
}
