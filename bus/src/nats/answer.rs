//! What the server's answers mean for the contract: was it written, was it not, or is it unknown?

use std::error::Error as _;

use async_nats::jetstream::Error as Refusal;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};

use crate::contract::Error;

/// The server's own words, where there are any.
fn refusal(error: &PublishError) -> Option<&Refusal> {
    error.source().and_then(|source| source.downcast_ref::<Refusal>())
}

/// Whether the expected last sequence was not the last. With three replicas there are two codes for
/// it: the second says that an append of another is on its way.
pub(super) fn is_wrong_last(error: &PublishError) -> bool {
    error.kind() == PublishErrorKind::WrongLastSequence
        || refusal(error).is_some_and(|said| said.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)
}

/// What a publish that failed means. Not for [`is_wrong_last`].
pub(super) fn publish_error(error: &PublishError, payload_bytes_max: usize) -> Error {
    if let Some(said) = refusal(error) {
        return refused(said);
    }
    let reason = || error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    match error.kind() {
        // Nobody listens on the subject: the stream has no leader, or is gone.
        PublishErrorKind::StreamNotFound => {
            Error::Unavailable { reason: "the stream has no leader for now".to_owned() }
        }
        PublishErrorKind::MaxPayloadExceeded => {
            // The client itself has refused it. It tells the size in words only.
            Error::TooLarge { bytes: payload_bytes_max.saturating_add(1), max: payload_bytes_max }
        }
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => Error::Unknown { reason: reason() },
        PublishErrorKind::MaxAckPending => Error::Unavailable { reason: reason() },
        PublishErrorKind::WrongLastMessageId | PublishErrorKind::WrongLastSequence | PublishErrorKind::Other => {
            Error::Unknown { reason: reason() }
        }
    }
}

/// What a refusal means: nothing was written.
pub(super) fn refused(said: &Refusal) -> Error {
    const FULL: [ErrorCode; 7] = [
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::MEMORY_RESOURCES_EXCEEDED,
        // The limits of the stream itself, with `discard: new`; also a disk that is full.
        ErrorCode::STREAM_STORE_FAILED,
        ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED,
        ErrorCode::STREAM_LIMITS,
    ];
    if FULL.contains(&said.error_code()) {
        return Error::Full { reason: format!("NATS refuses it: {said}; make room, or raise the limit of the stream") };
    }
    Error::Unavailable { reason: format!("NATS refuses it: {said}") }
}

/// A read or a request that failed: nothing was changed by it, or a repetition does no harm.
pub(super) fn unavailable(doing: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut reason = format!("NATS, {doing}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !reason.ends_with(&text) {
            reason.push_str(": ");
            reason.push_str(&text);
        }
        source = cause.source();
    }
    Error::Unavailable { reason }
}
