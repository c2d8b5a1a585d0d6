//! Errors as users meet them: `application/problem+json` (RFC 9457) with a stable code.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use cellbus_bus::cloudevent::{self, BatchRejection, Rejection};
use serde::Serialize;
use utoipa::{PartialSchema, ToSchema};

use crate::gateway::{self, Kind};

/// Codes that only the HTTP layer gives.
pub const CODES: &[&str] = &[
    "fence_not_confirmed",
    "not_found",
    "method_not_allowed",
    "uri_too_long",
    "unknown_parameter",
    "invalid_parameter",
    "invalid_limit",
    "invalid_cursor",
    "invalid_id",
    "body_timeout",
    "body_broken",
    "invalid_body",
    "job_conflict",
    "job_refused",
    "invalid_log_level",
    "member_not_here",
    "member_of_other_cluster",
    "member_format_unknown",
    "member_message_invalid",
    "member_stopped",
    "member_not_verified",
    "unauthenticated",
    "forbidden",
];

/// A refusal, or a fault.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    status: StatusCode,
    pub(super) code: Cow<'static, str>,
    pub(super) detail: String,
    pointer: Option<String>,
    pub(super) errors: Vec<Member>,
    retry_after_seconds: Option<u32>,
    /// How to sign in, where that is what lacks (RFC 6750).
    challenge: Option<Challenge>,
}

/// What a caller that is not recognised is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Challenge {
    /// To sign in.
    Token,
    /// To sign in with another token.
    OtherToken,
}
impl Challenge {
    fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Token => "Bearer realm=\"cellbus\"",
            Self::OtherToken => "Bearer realm=\"cellbus\", error=\"invalid_token\"",
        })
    }
}

/// A problem document (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
struct ProblemView<'p> {
    /// A URI that names the code: `urn:cellbus:error:<code>`.
    #[serde(rename = "type")]
    kind: String,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong and what to do, for a person.
    detail: &'p str,
    /// Stable; each has a page in `ops/docs/errors/`.
    code: &'p str,
    /// Where in the body: a JSON pointer (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<&'p str>,
    /// Of a batch: every member that is refused.
    #[serde(skip_serializing_if = "<[Member]>::is_empty")]
    errors: &'p [Member],
}

impl PartialSchema for Problem {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        ProblemView::schema()
    }
}
impl ToSchema for Problem {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Problem")
    }
    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>) {
        ProblemView::schemas(schemas);
    }
}

/// A member of a batch that is refused.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Member {
    /// From 0.
    pub(super) index: usize,
    /// Stable.
    pub(super) code: String,
    /// Where in the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pointer: Option<String>,
    /// What is wrong and what to do.
    pub(super) detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            detail: detail.into(),
            pointer: None,
            errors: Vec::new(),
            // Every 429 and 503 says when to come again.
            retry_after_seconds: matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
                .then_some(1),
            challenge: None,
        }
    }
    pub(super) fn unauthenticated(challenge: Challenge, detail: &str) -> Self {
        Self { challenge: Some(challenge), ..Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail) }
    }
    pub(super) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }
    pub(super) fn at(mut self, pointer: impl Into<String>) -> Self {
        self.pointer = Some(pointer.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        if self.status.is_server_error() && self.retry_after_seconds.is_none() {
            tracing::error!(code = %self.code, detail = %self.detail, "a request failed");
        }
        let view = ProblemView {
            kind: format!("urn:cellbus:error:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: &self.code,
            pointer: self.pointer.as_deref(),
            errors: &self.errors,
        };
        // Texts and numbers only.
        let body = serde_json::to_vec(&view).expect("a problem is always JSON");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, challenge.header());
        }
        response
    }
}

impl From<gateway::Error> for Problem {
    fn from(error: gateway::Error) -> Self {
        let status = match error.kind() {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut problem = Self::new(status, error.code(), error.to_string());
        if let Some(after) = error.retry_after() {
            problem.retry_after_seconds = Some(u32::try_from(after.as_secs()).unwrap_or(u32::MAX).max(1));
        }
        problem
    }
}

fn status_of(code: cloudevent::Code) -> StatusCode {
    use cloudevent::Code;
    match code {
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::UnsupportedContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::UnknownTenant | Code::TenantMismatch => StatusCode::FORBIDDEN,
        Code::NotJson
        | Code::DuplicateKey
        | Code::TooDeep
        | Code::NotAnEvent
        | Code::UnsupportedSpecversion
        | Code::MissingAttribute
        | Code::InvalidAttribute
        | Code::InvalidSubject
        | Code::UnknownType
        | Code::UnknownField
        | Code::MissingField
        | Code::WrongType
        | Code::InvalidValue
        | Code::NegativeNumber
        | Code::BelowMinimum
        | Code::AboveMaximum
        | Code::CountOutOfRange
        | Code::InvalidName
        | Code::NameTooLong
        | Code::ControlCharacter
        | Code::InvalidLabel
        | Code::ContradictoryPolicy
        | Code::NothingToChange
        | Code::BatchConflict
        | Code::InvalidBatch => StatusCode::BAD_REQUEST,
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        let problem = Self::new(status_of(rejection.code), rejection.code.as_str(), rejection.message);
        if rejection.pointer.is_empty() { problem } else { problem.at(rejection.pointer) }
    }
}

impl From<BatchRejection> for Problem {
    fn from(rejection: BatchRejection) -> Self {
        let detail = rejection.to_string();
        match rejection {
            BatchRejection::Whole(rejection) => rejection.into(),
            BatchRejection::Members(members) => {
                let mut problem = Self::bad_request(cloudevent::Code::InvalidBatch.as_str(), detail);
                problem.errors = members
                    .into_iter()
                    .map(|(index, rejection)| Member {
                        index,
                        code: rejection.code.as_str().to_owned(),
                        pointer: Some(rejection.pointer),
                        detail: rejection.message,
                    })
                    .collect();
                problem
            }
        }
    }
}
