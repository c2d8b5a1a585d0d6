//! Why an event is not taken: a stable code, the place, and a sentence that says what to do.

use std::fmt;

use serde::Serialize;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident => $text:literal),* $(,)?) => {
        /// The stable code of a refusal. Each has a page in `ops/docs/errors/`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[$doc])* $variant,)* }
        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            /// As in problem documents, refusals and dead letters.
            #[must_use]
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $text),* } }
        }
    };
}
codes! {
    /// The body is not JSON (or not UTF-8).
    NotJson => "not_json",
    /// One object has the same key twice.
    DuplicateKey => "duplicate_key",
    /// Objects or lists inside one another, too many levels of them.
    TooDeep => "too_deep",
    /// The body, the batch or one object is larger than it may be.
    TooLarge => "too_large",
    /// JSON, and not a CloudEvent (or not a list of them where a batch is expected).
    NotAnEvent => "not_an_event",
    /// A CloudEvents version other than 1.0.
    UnsupportedSpecversion => "unsupported_specversion",
    /// Data that is not JSON.
    UnsupportedContentType => "unsupported_content_type",
    /// A required attribute of the event is not there.
    MissingAttribute => "missing_attribute",
    /// An attribute of the event breaks its rule.
    InvalidAttribute => "invalid_attribute",
    /// The subject is not a VM id, VM name or job id.
    InvalidSubject => "invalid_subject",
    /// No such job type.
    UnknownType => "unknown_type",
    /// `data` has a field that its type does not know.
    UnknownField => "unknown_field",
    /// A required field of `data` is not there.
    MissingField => "missing_field",
    /// Text where a number is wanted, or the like.
    WrongType => "wrong_type",
    /// The value is none of those that the field may have.
    InvalidValue => "invalid_value",
    /// A number below zero.
    NegativeNumber => "negative_number",
    /// A number below the field's minimum, such as a size of zero.
    BelowMinimum => "below_minimum",
    /// A number above the field's maximum.
    AboveMaximum => "above_maximum",
    /// `count` is not 1 to 10,000.
    CountOutOfRange => "count_out_of_range",
    /// A name that breaks its rule.
    InvalidName => "invalid_name",
    /// A name or text longer than it may be.
    NameTooLong => "name_too_long",
    /// A control character where none may be.
    ControlCharacter => "control_character",
    /// Labels that break their rules.
    InvalidLabel => "invalid_label",
    /// A policy that asks for two things that cannot both be.
    ContradictoryPolicy => "contradictory_policy",
    /// A resize that names no size.
    NothingToChange => "nothing_to_change",
    /// A tenant that is not configured.
    UnknownTenant => "unknown_tenant",
    /// A `tenant` attribute that differs from the tenant that the sender speaks for.
    TenantMismatch => "tenant_mismatch",
    /// Two members of one batch with the same key and other data.
    BatchConflict => "batch_conflict",
    /// At least one member of a batch is refused, and so the batch.
    InvalidBatch => "invalid_batch",
}
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One event is refused. Sending the same event again gives the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{code} at {}: {message}", if pointer.is_empty() { "the whole body" } else { pointer })]
pub struct Rejection {
    /// Stable.
    pub code: Code,
    /// Where: a JSON pointer (RFC 6901) into the event; empty for the whole. Long keys are cut.
    pub pointer: String,
    /// What is wrong and what to do, for a person.
    pub message: String,
}

impl Rejection {
    pub(super) fn new(code: Code, pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code, pointer: pointer.into(), message: message.into() }
    }
    /// Never: the event itself must change.
    #[must_use]
    pub fn retryable(&self) -> bool {
        false
    }
}

/// A batch is refused, and nothing of it is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchRejection {
    /// It is no batch at all.
    #[error(transparent)]
    Whole(Rejection),
    /// Some of its members are refused: (index, why), every one of them, in order.
    #[error("{} members of the batch are refused, so nothing of it is taken", .0.len())]
    Members(Vec<(usize, Rejection)>),
}

impl BatchRejection {
    /// Stable.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Whole(rejection) => rejection.code,
            Self::Members(_) => Code::InvalidBatch,
        }
    }
    /// Never: the batch itself must change.
    #[must_use]
    pub fn retryable(&self) -> bool {
        false
    }
}

/// The most characters of a sender's text that a message repeats.
const SHOWN_CHARS_MAX: usize = 48;

/// A sender's text as a message may repeat it: short, and without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

/// `/key`, escaped as RFC 6901 says and cut like [`shown`].
pub(super) fn pointer_step(key: &str) -> String {
    format!("/{}", shown(key).replace('~', "~0").replace('/', "~1"))
}

/// "; did you mean `x`?" if one of `known` is near, else nothing.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    // Longer than any known word by far: no need to compare a 2 MiB key.
    if word.len() > 64 {
        return String::new();
    }
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(word, k), k))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, k)| *distance <= k.chars().count().div_ceil(3).max(1))
        .map(|(_, k)| format!("; did you mean `{k}`?"))
        .unwrap_or_default()
}
