//! `[nats]`: where the servers are, how a process signs in, how much is kept how often.

use std::path::PathBuf;
use std::time::Duration;

use super::value::{Secret, Value};
use super::{Error, Settings};

/// The shortest lease where three servers vote: an election takes 4 to 9 s (`ops/docs/design.md`,
/// "The bus"), during which nobody can beat.
const LEASE_OF_THREE: Duration = Duration::from_secs(12);

/// `[nats]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nats {
    /// Addresses of the servers.
    pub urls: Vec<String>,
    /// How this process signs in.
    pub sign_in: SignIn,
    /// Servers that do not encrypt are refused.
    pub tls_required: bool,
    /// Authorities to trust, a PEM file.
    pub ca: Option<PathBuf>,
    /// This process's certificate and its key, PEM files.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// How many servers keep each message.
    pub replicas: u16,
    /// Over how many streams queues and logs are spread; fixed once a cluster is made.
    pub lanes: u16,
    /// What the names of its subjects and streams begin with.
    pub prefix: String,
    /// Bytes of jobs that no cell has taken; `None`: as much as the servers give, here and below.
    pub ingress_bytes_max: Option<u64>,
    /// Bytes of each stream of queues and of logs.
    pub lane_bytes_max: Option<u64>,
    /// Bytes of all snapshots.
    pub snapshots_bytes_max: Option<u64>,
}

/// How a process signs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignIn {
    /// Not at all, or by its certificate.
    None,
    /// With a token.
    Token(SecretFrom),
    /// With user and password.
    User(String, SecretFrom),
    /// With the seed of an nkey.
    Nkey(SecretFrom),
    /// With a credentials file.
    Credentials(PathBuf),
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretFrom {
    /// It came in the environment.
    Given(Secret),
    /// It stands in a file of its own.
    File(PathBuf),
}

impl Settings {
    /// A secret that came in the environment, or the file that holds it.
    pub(super) fn secret_from(&self, key: &str, file: &str) -> Option<SecretFrom> {
        match self.0.get(key) {
            Some((Value::Secret(secret), _)) => Some(SecretFrom::Given(secret.clone())),
            _ => self.path(file).map(SecretFrom::File),
        }
    }

    /// `[nats]`, and what it asks of other settings.
    pub(super) fn nats(&mut self, errors: &mut Vec<Error>) -> Nats {
        let mut wrong = |settings: &Self, key: &str, message: &str| {
            errors.push(Error { key: key.to_owned(), origin: settings.origin(key), message: message.to_owned() });
        };
        let urls = match self.0.get("nats.urls") {
            Some((Value::Names(urls), _)) => urls.clone(),
            _ => Vec::new(),
        };
        let scheme = |url: &String| ["nats://", "tls://"].iter().any(|scheme| url.starts_with(scheme));
        if urls.is_empty() || !urls.iter().all(scheme) {
            wrong(self, "nats.urls", "each address is nats://host:port or tls://host:port, and there is at least one");
        }
        if urls.iter().any(|url| url.contains('@')) {
            wrong(self, "nats.urls", "an address carries no user and no secret: see nats.user and nats.token");
        }
        let replicas = self.count("nats.replicas") as u16;
        if !matches!(replicas, 1 | 3 | 5) {
            wrong(self, "nats.replicas", "it is 1, 3 or 5: an even number survives no more than the odd one below");
        }
        if let (true, Some((ttl, super::Origin::Default))) = (replicas > 1, self.0.get_mut("lease.ttl")) {
            *ttl = Value::Time(LEASE_OF_THREE);
        }
        let certificate = match (self.path("nats.cert"), self.path("nats.key")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                wrong(self, "nats.cert", "a certificate needs its key, and a key its certificate");
                None
            }
        };
        let user = self.text("nats.user");
        let password = self.secret_from("nats.password", "nats.password_file");
        if user.is_empty() != password.is_none() {
            wrong(
                self,
                "nats.user",
                "a user needs a password (nats.password or nats.password_file), and a password a user",
            );
        }
        let ways = [
            self.secret_from("nats.token", "nats.token_file").map(SignIn::Token),
            password.filter(|_| !user.is_empty()).map(|password| SignIn::User(user, password)),
            self.secret_from("nats.nkey", "nats.nkey_file").map(SignIn::Nkey),
            self.path("nats.credentials").map(SignIn::Credentials),
        ];
        let mut ways = ways.into_iter().flatten();
        let sign_in = ways.next().unwrap_or(SignIn::None);
        if ways.next().is_some() {
            wrong(self, "nats", "there are two ways to sign in: keep a token, a user, an nkey or a credentials file");
        }
        Nats {
            urls,
            sign_in,
            tls_required: self.flag("nats.tls_required"),
            ca: self.path("nats.ca"),
            certificate,
            replicas,
            lanes: self.count("nats.lanes") as u16,
            prefix: self.text("nats.prefix"),
            ingress_bytes_max: self.count_if_set("nats.ingress_size_max"),
            lane_bytes_max: self.count_if_set("nats.lane_size_max"),
            snapshots_bytes_max: self.count_if_set("nats.snapshots_size_max"),
        }
    }
}
