//! `[kafka]`: where the brokers are, how a process signs in, how topics are made.

use std::path::PathBuf;
use std::time::Duration;

use cellbus_bus::kafka::Mechanism;

use super::nats::SecretFrom;
use super::value::Value;
use super::{Error, Settings};

/// The shortest lease where several brokers keep a partition: one that dies is noticed after 9 s, unless
/// its operator says otherwise, during which nobody can write to what it leads.
const LEASE_OF_SEVERAL: Duration = Duration::from_secs(15);

/// `[kafka]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kafka {
    /// Addresses of some brokers.
    pub brokers: Vec<String>,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// Authorities to trust, a PEM file.
    pub ca: Option<PathBuf>,
    /// This process's certificate and its key, PEM files.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// How this process signs in.
    pub sign_in: Option<KafkaSignIn>,
    /// How many brokers keep each message of topics that are made.
    pub replicas: u16,
    /// Partitions of a tenant's topic of jobs that is made.
    pub tenant_partitions: u16,
    /// What the names of topics begin with.
    pub prefix: String,
}

/// How a process signs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KafkaSignIn {
    /// With user and password.
    User {
        /// How the password is shown.
        mechanism: Mechanism,
        /// The user.
        user: String,
        /// The password.
        password: SecretFrom,
    },
    /// With the token in a file, which is read again.
    Token(PathBuf),
}

impl Settings {
    /// `[kafka]`, and what it asks of other settings.
    pub(super) fn kafka(&mut self, errors: &mut Vec<Error>) -> Kafka {
        let mut wrong = |settings: &Self, key: &str, message: &str| {
            errors.push(Error { key: key.to_owned(), origin: settings.origin(key), message: message.to_owned() });
        };
        let brokers = match self.0.get("kafka.brokers") {
            Some((Value::Names(brokers), _)) => brokers.clone(),
            _ => Vec::new(),
        };
        let address = |broker: &String| {
            let (host, port) = broker.rsplit_once(':').unwrap_or_default();
            let plain =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
            !host.is_empty() && host.bytes().all(plain) && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        if brokers.is_empty() || !brokers.iter().all(address) {
            wrong(self, "kafka.brokers", "each address is host:port, without a scheme, and there is at least one");
        }
        let replicas = self.count("kafka.replicas") as u16;
        if !matches!(replicas, 1 | 3 | 5) {
            wrong(self, "kafka.replicas", "it is 1, 3 or 5: an even number survives no more than the odd one below");
        }
        let on_kafka = self.text("bus") == "kafka";
        if let (true, true, Some((ttl, super::Origin::Default))) = (on_kafka, replicas > 1, self.0.get_mut("lease.ttl"))
        {
            *ttl = Value::Time(LEASE_OF_SEVERAL);
        }
        let tls = self.flag("kafka.tls");
        let certificate = match (self.path("kafka.cert"), self.path("kafka.key")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                wrong(self, "kafka.cert", "a certificate needs its key, and a key its certificate");
                None
            }
        };
        let ca = self.path("kafka.ca");
        if !tls && (ca.is_some() || certificate.is_some()) {
            wrong(self, "kafka.tls", "there are certificates, and no encryption that they are for: set it to true");
        }
        let sasl = self.text("kafka.sasl");
        let mechanism = match sasl.as_str() {
            "plain" => Some(Mechanism::Plain),
            "scram-sha-256" => Some(Mechanism::ScramSha256),
            "scram-sha-512" => Some(Mechanism::ScramSha512),
            _ => None,
        };
        let user = self.text("kafka.user");
        let password = self.secret_from("kafka.password", "kafka.password_file");
        let token = self.path("kafka.token_file");
        let sign_in = match (mechanism, user.is_empty(), password, token) {
            (Some(mechanism), false, Some(password), None) => Some(KafkaSignIn::User { mechanism, user, password }),
            (None, true, None, Some(file)) if sasl == "oauthbearer" => Some(KafkaSignIn::Token(file)),
            (None, true, None, None) if sasl == "none" => None,
            _ => {
                let rule = "kafka.sasl, kafka.user and a password (kafka.password or kafka.password_file) go together; \
                            with kafka.sasl = \"oauthbearer\" it is kafka.token_file alone";
                wrong(self, "kafka.sasl", rule);
                None
            }
        };
        Kafka {
            brokers,
            tls,
            ca,
            certificate,
            sign_in,
            replicas,
            tenant_partitions: self.count("kafka.tenant_partitions") as u16,
            prefix: self.text("kafka.prefix"),
        }
    }
}
