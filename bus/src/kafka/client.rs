//! librdkafka's clients: what they are told, and what they say beside their answers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::OAuthToken;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::util::Timeout;
use rdkafka::{ClientContext, Statistics};

use crate::env::Mono;

use super::config::{Auth, Config};
use super::token::TokenFile;

/// So long without an answer to any client.
const DOWN_AFTER: Duration = Duration::from_secs(3);

/// What all clients of a bus have heard.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// One of the clients has lost all brokers, and none has heard of one since.
    down: AtomicBool,
    /// When one of them was last answered, in milliseconds of [`crate::env::Mono`].
    answered_ms: AtomicU64,
    /// The error that tells most of those that no call of ours was told, the last of several.
    last: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

/// How much an error tells of why no broker can be reached. Clients try again and again and several are
/// at it, so that what follows a refusal must not hide it.
fn tells(code: RDKafkaErrorCode, reason: &str) -> u8 {
    match code {
        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed | RDKafkaErrorCode::SSL => 3,
        RDKafkaErrorCode::BrokerTransportFailure if is_tls(reason) => 2,
        RDKafkaErrorCode::AllBrokersDown => 0,
        _ => 1,
    }
}

/// Whether a connection failed at its encryption: what the other side answers at once fails inside the
/// connect, which has a code of its own for it.
pub(super) fn is_tls(reason: &str) -> bool {
    reason.contains("SSL routines")
}

impl Heard {
    /// A broker has answered.
    pub(super) fn answered(&self, now: Mono) {
        self.down.store(false, Ordering::Relaxed);
        self.answered_ms.store(u64::try_from(now.0.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    /// Whether no broker can be reached. A client that notices late what is over says nothing about the
    /// others, which beat once a second.
    pub(super) fn is_down(&self, now: Mono) -> bool {
        let answered = Mono(Duration::from_millis(self.answered_ms.load(Ordering::Relaxed)));
        self.down.load(Ordering::Relaxed) && now.since(answered) > DOWN_AFTER
    }
    pub(super) fn last(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// What was heard so far is over.
    pub(super) fn forget(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
    fn hear(&self, code: RDKafkaErrorCode, reason: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(known, said)| tells(code, reason) >= tells(*known, said)) {
            *last = Some((code, reason.to_owned()));
        }
    }
}

/// Hears a client's log and errors, and gives it tokens.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) heard: Arc<Heard>,
    pub(super) token: Option<Arc<TokenFile>>,
}

impl Context {
    pub(super) fn new(config: &Config) -> Self {
        let token = match &config.auth {
            Auth::Token { file } => Some(Arc::new(TokenFile::new(file.clone()))),
            Auth::None | Auth::User { .. } => None,
        };
        Self { heard: Arc::new(Heard::default()), token }
    }
}

impl ClientContext for Context {
    /// Only clients of `OAUTHBEARER` ask.
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        let Some(token) = &self.token else { return Err("no file of tokens is configured".into()) };
        // A small file of this machine, seldom: a thread that it holds up waits for it in any case.
        Ok(token.read()?)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, message, "librdkafka");
            }
            // A broker that is away is said once, below; its client goes on trying.
            RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning
            | RDKafkaLogLevel::Notice
            | RDKafkaLogLevel::Info
            | RDKafkaLogLevel::Debug => tracing::debug!(facility, message, "librdkafka"),
        }
    }

    fn stats(&self, _statistics: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        self.heard.hear(code, reason);
        if code == RDKafkaErrorCode::AllBrokersDown {
            if !self.heard.down.swap(true, Ordering::Relaxed) {
                tracing::warn!(reason, "no Kafka broker can be reached; trying again");
            }
        } else {
            tracing::debug!(%code, reason, "the Kafka client reports an error");
        }
    }
}

impl ConsumerContext for Context {
    /// The queue of events is read by a task of its own; nothing here waits in a poll.
    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::After(Duration::from_millis(100))
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().max(1).to_string()
}

/// What every client is told.
pub(super) fn common(config: &Config) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set_log_level(RDKafkaLogLevel::Warning);
    client
        .set("bootstrap.servers", config.brokers.join(","))
        .set("client.id", &config.name)
        .set("socket.timeout.ms", millis(config.answer_timeout))
        .set("socket.connection.setup.timeout.ms", millis(config.connect_timeout))
        .set("socket.nagle.disable", "true")
        .set("socket.keepalive.enable", "true")
        // Below a lease: a broker that is back must not wait for its cells.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("topic.metadata.refresh.interval.ms", millis(config.discover_every))
        .set("metadata.max.age.ms", millis(config.discover_every * 3));
    let sasl = !matches!(config.auth, Auth::None);
    let protocol = match (config.tls.enabled, sasl) {
        (false, false) => "PLAINTEXT",
        (true, false) => "SSL",
        (false, true) => "SASL_PLAINTEXT",
        (true, true) => "SASL_SSL",
    };
    client.set("security.protocol", protocol);
    if let Some(file) = &config.tls.ca_file {
        client.set("ssl.ca.location", file.to_string_lossy());
    }
    if let Some((certificate, key)) = &config.tls.client_files {
        client.set("ssl.certificate.location", certificate.to_string_lossy());
        client.set("ssl.key.location", key.to_string_lossy());
    }
    match &config.auth {
        Auth::None => {}
        Auth::User { mechanism, user, password } => {
            client
                .set("sasl.mechanism", mechanism.name())
                .set("sasl.username", user)
                .set("sasl.password", password.expose());
        }
        Auth::Token { .. } => {
            client.set("sasl.mechanism", "OAUTHBEARER");
        }
    }
    client
}

/// A producer: what it says is written is on all replicas in sync, in order, once.
pub(super) fn producer(config: &Config) -> ClientConfig {
    let mut client = common(config);
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // Calls that have something to say come in crowds by themselves, while others are on their way.
        .set("linger.ms", "0")
        .set("message.timeout.ms", millis(config.answer_timeout))
        .set("request.timeout.ms", millis(config.answer_timeout))
        .set("retry.backoff.ms", "50")
        .set("message.max.bytes", super::layout::MESSAGE_BYTES.to_string())
        .set("queue.buffering.max.messages", "1000000")
        .set("queue.buffering.max.kbytes", (512 << 10).to_string());
    client
}

/// A consumer whose partitions are given to it. `wait`: how long a broker holds its answer where there
/// is nothing; what is newly asked for waits for so long.
pub(super) fn reader(config: &Config, wait: Duration) -> ClientConfig {
    let mut client = consumer(config);
    client
        .set("group.id", format!("{}.readers", config.prefix))
        .set("auto.offset.reset", "error")
        .set("fetch.wait.max.ms", millis(wait));
    client
}

/// The consumer that shares producers' jobs with those of the other cells.
pub(super) fn ingress(config: &Config, group: &str) -> ClientConfig {
    let mut client = consumer(config);
    client
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", millis(config.session_timeout))
        .set("heartbeat.interval.ms", millis((config.session_timeout / 4).min(Duration::from_secs(3))))
        .set("fetch.wait.max.ms", "100");
    client
}

fn consumer(config: &Config) -> ClientConfig {
    let mut client = common(config);
    client
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        .set("fetch.message.max.bytes", (1 << 20).to_string())
        .set("fetch.error.backoff.ms", "100")
        .set("fetch.queue.backoff.ms", "20")
        .set("queued.min.messages", "4096")
        // Of each partition; one message more than that there always may be.
        .set("queued.max.messages.kbytes", (4 << 10).to_string());
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_most_is_kept() {
        let heard = Heard::default();
        let last = || heard.last().map(|(code, _)| code);
        heard.hear(RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down");
        heard.hear(RDKafkaErrorCode::BrokerTransportFailure, "Connection refused");
        heard.hear(RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down");
        assert_eq!(last(), Some(RDKafkaErrorCode::BrokerTransportFailure));
        heard.hear(RDKafkaErrorCode::Authentication, "no");
        heard.hear(RDKafkaErrorCode::BrokerTransportFailure, "Disconnected");
        assert_eq!(last(), Some(RDKafkaErrorCode::Authentication), "another client is only cut off");
        heard.forget();
        heard.hear(RDKafkaErrorCode::BrokerTransportFailure, "error:0A000418:SSL routines::tlsv1 alert unknown ca");
        heard.hear(RDKafkaErrorCode::BrokerTransportFailure, "Disconnected");
        assert!(heard.last().is_some_and(|(_, reason)| is_tls(&reason)));
    }
}
