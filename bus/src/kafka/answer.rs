//! What the brokers' answers mean for the contract: was it written, was it not, or is it unknown? And
//! what they mean for an operator: words, with a code that `ops/docs/errors/` has a page for.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::contract::{Error, MESSAGE_BYTES_MAX};

/// What an operator is told about a broker's refusal: the stable code, and what it means.
pub(super) fn words(code: Code) -> Option<(&'static str, &'static str)> {
    Some(match code {
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            ("kafka_topic_unknown", "the topic or partition is not there")
        }
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            ("kafka_not_enough_replicas", "fewer brokers have it in sync than min.insync.replicas wants")
        }
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => {
            ("kafka_not_authorised", "an access rule of the brokers forbids it to this user")
        }
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => {
            ("kafka_message_too_large", "it is larger than max.message.bytes of the topic")
        }
        Code::Authentication | Code::SaslAuthenticationFailed => {
            ("kafka_sign_in_refused", "the brokers do not let this process in")
        }
        Code::SSL => ("kafka_tls_failed", "no encrypted connection came about"),
        Code::KafkaStorageError => ("kafka_storage_failed", "a disk of a broker has failed, or is full"),
        Code::PolicyViolation | Code::InvalidConfig | Code::InvalidReplicationFactor => {
            ("kafka_refused", "the brokers do not allow it")
        }
        _ => return None,
    })
}

/// What a failed call says, in one line.
pub(super) fn describe(doing: &str, error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(code) => describe_code(doing, code),
        None => format!("Kafka, {doing}: {error}"),
    }
}

pub(super) fn describe_code(doing: &str, code: Code) -> String {
    match words(code) {
        Some((name, words)) => format!("Kafka, {doing}: {words} ({name}: {code})"),
        None => format!("Kafka, {doing}: {code}"),
    }
}

/// A write that failed: was anything written?
pub(super) fn write_error(doing: &str, error: &KafkaError, bytes: usize) -> Error {
    let Some(code) = error.rdkafka_error_code() else {
        return Error::Unknown { reason: describe(doing, error) };
    };
    match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => {
            Error::TooLarge { bytes: bytes.max(MESSAGE_BYTES_MAX + 1), max: MESSAGE_BYTES_MAX }
        }
        // The client's own buffer: nothing was sent.
        Code::QueueFull => Error::Full { reason: describe(doing, error) },
        // Refusals before anything is written.
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::NotEnoughReplicas
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::PolicyViolation
        | Code::InvalidTopic
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::AllBrokersDown => Error::Unavailable { reason: describe(doing, error) },
        _ => Error::Unknown { reason: describe(doing, error) },
    }
}

/// A read or a request that failed: nothing was changed by it, or a repetition does no harm.
pub(super) fn unavailable(doing: &str, error: &KafkaError) -> Error {
    Error::Unavailable { reason: describe(doing, error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_come_in_words_with_a_code() {
        let refused = |code| write_error("append", &KafkaError::MessageProduction(code), 1);
        let Error::Unavailable { reason } = refused(Code::NotEnoughReplicas) else { panic!("nothing was written") };
        assert!(reason.contains("kafka_not_enough_replicas") && reason.contains("min.insync.replicas"), "{reason}");
        // It is on the leader's disk, and may be kept.
        assert!(matches!(refused(Code::NotEnoughReplicasAfterAppend), Error::Unknown { .. }));
        assert!(matches!(refused(Code::MessageTimedOut), Error::Unknown { .. }));
        assert!(matches!(refused(Code::MessageSizeTooLarge), Error::TooLarge { .. }));
        assert!(matches!(refused(Code::QueueFull), Error::Full { .. }));
        let Error::Unavailable { reason } = refused(Code::TopicAuthorizationFailed) else { panic!("refused") };
        assert!(reason.contains("kafka_not_authorised"), "{reason}");
    }
}
