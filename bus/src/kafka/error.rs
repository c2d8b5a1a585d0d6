//! Why the Kafka bus could not be opened, with what to do about it.

use rdkafka::error::RDKafkaErrorCode as Code;

/// Why [`super::Kafka::open`] did not open the bus.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration cannot work.
    #[error("the Kafka setting {field} must be {rule}")]
    Config {
        /// Which setting.
        field: &'static str,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// librdkafka does not take what it is told: a file that cannot be read, mostly.
    #[error("the Kafka client cannot be made: {reason}")]
    Client {
        /// What it says.
        reason: String,
    },
    /// No broker answered.
    #[error("no Kafka broker of {brokers} can be reached: {reason}")]
    Unreachable {
        /// The addresses that were tried.
        brokers: String,
        /// What went wrong last.
        reason: String,
    },
    /// The brokers do not let this process in.
    #[error(
        "the Kafka brokers refuse to sign this process in; check kafka.sasl, user and password, or the token: {reason}"
    )]
    SignIn {
        /// What was said.
        reason: String,
    },
    /// No encrypted connection came about.
    #[error(
        "no encrypted connection to the Kafka brokers; check their certificates, kafka.ca and the client certificate: {reason}"
    )]
    Tls {
        /// What went wrong.
        reason: String,
    },
    /// A topic is there, and is not what this process needs.
    #[error("the Kafka topic {topic} has {field} {found}, and {wanted} is wanted; {remedy}")]
    Differs {
        /// Which topic.
        topic: String,
        /// What of it.
        field: &'static str,
        /// What it has.
        found: String,
        /// What is wanted.
        wanted: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Nothing of Cellbus is on these brokers.
    #[error(
        "there is no Cellbus cluster on these Kafka brokers (no topic {topic}); check the addresses and kafka.prefix"
    )]
    NoCluster {
        /// What was looked for.
        topic: String,
    },
    /// The layout was written by a build that knows more than this one.
    #[error(
        "this cluster's topics have layout {found}, and this build knows up to {}; run a newer build",
        super::layout::LAYOUT
    )]
    NewerLayout {
        /// In the record.
        found: u32,
    },
    /// The brokers refused to make a topic, or to tell about one.
    #[error("the Kafka brokers refuse {doing}: {reason}")]
    Refused {
        /// What was asked.
        doing: String,
        /// What they said.
        reason: String,
        /// The more exact code, where there is one.
        code: Option<&'static str>,
    },
    /// No answer in time.
    #[error("the Kafka brokers gave no answer when they were asked {doing}: {reason}")]
    NoAnswer {
        /// What was asked.
        doing: String,
        /// What went wrong.
        reason: String,
    },
}

impl OpenError {
    /// A request that failed.
    pub(super) fn request(doing: &str, code: Option<Code>, reason: String) -> Self {
        let doing = doing.to_owned();
        match code {
            // The last three pass with an election.
            None
            | Some(
                Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::BrokerTransportFailure
                | Code::NotController
                | Code::BrokerNotAvailable
                | Code::NetworkException,
            ) => Self::NoAnswer { doing, reason },
            Some(code) => Self::Refused { doing, reason, code: super::answer::words(code).map(|(name, _)| name) },
        }
    }

    /// The stable code that `ops/docs/errors/` has a page for.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config { .. } => "kafka_config_invalid",
            Self::Client { .. } => "kafka_client_failed",
            Self::Unreachable { .. } => "kafka_unreachable",
            Self::SignIn { .. } => "kafka_sign_in_refused",
            Self::Tls { .. } => "kafka_tls_failed",
            Self::Differs { .. } => "kafka_topic_differs",
            Self::NoCluster { .. } => "kafka_no_cluster",
            Self::NewerLayout { .. } => "kafka_newer_layout",
            Self::Refused { code, .. } => code.unwrap_or("kafka_refused"),
            Self::NoAnswer { .. } => "kafka_no_answer",
        }
    }
    /// Whether opening may succeed later with nothing mended by hand.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoAnswer { .. } => true,
            Self::Config { .. }
            | Self::Client { .. }
            | Self::SignIn { .. }
            | Self::Tls { .. }
            | Self::Differs { .. }
            | Self::NoCluster { .. }
            | Self::NewerLayout { .. }
            | Self::Refused { .. } => false,
        }
    }
}
