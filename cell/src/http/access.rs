//! Who may make a call: the one place that decides.
//!
//! ```text
//!  request ─▶ identify: whose token is it? ─none known─▶ 401 unauthenticated
//!                 └─▶ route ─▶ admit: its role against what the route needs ─▶ 403 forbidden
//!                                └─▶ handler: what of it is the caller's (Caller::scope, `owned`)
//! ```
//!
//! What each route needs stands beside it in `routes`, and as a table in `ops/docs/security.md`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Response, StatusCode};
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use cellbus_bus::cloudevent::Code;
use cellbus_bus::ids::TenantId;
use cellbus_directory::record::Operator;

use super::App;
use super::problem::{Challenge, Problem};
use super::query::Query;
use crate::security::{Identity, Role};

/// What a caller must be for a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Anybody: whether the process lives, and nothing of what it holds.
    Nothing,
    /// A tenant, who sees and changes its own, or an operator.
    Tenant,
    /// An operator.
    Operator,
    /// An operator, or anybody if `auth.metrics` says so.
    Metrics,
}

/// Who makes a request, and from where.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    from: SocketAddr,
    who: Who,
}

#[derive(Clone, Debug)]
enum Who {
    /// Authentication is off: everybody is an operator, and `anonymous`.
    Anybody,
    /// Authentication is on, and the route is for everybody.
    Unknown,
    /// By the token with this digest.
    Known([u8; 32], Arc<Identity>),
}

impl Caller {
    /// As kept with a change.
    pub(super) fn operator(&self) -> Operator {
        let who = match &self.who {
            Who::Anybody | Who::Unknown => "anonymous".to_owned(),
            Who::Known(_, identity) => identity.who(),
        };
        Operator { who, from: self.from.to_string() }
    }
    /// Whose jobs and VMs the caller may see and change; `None`: everybody's.
    pub(super) fn scope(&self) -> Option<&TenantId> {
        match &self.who {
            Who::Known(_, identity) => match &identity.role {
                Role::Tenant(tenant) => Some(tenant),
                Role::Operator => None,
            },
            Who::Anybody | Who::Unknown => None,
        }
    }
    /// The tenant that a list is of: the one that was asked for, which must be the caller's own if
    /// it has one.
    pub(super) fn tenant(&self, query: &Query) -> Result<Option<TenantId>, Problem> {
        match (query.id::<TenantId>("tenant")?, self.scope()) {
            (Some(asked), Some(own)) if asked != *own => {
                let detail = format!("`tenant` is another than {own}, whose token this is; leave it out");
                Err(Problem::new(StatusCode::FORBIDDEN, Code::TenantMismatch.as_str(), detail))
            }
            (asked, own) => Ok(asked.or_else(|| own.cloned())),
        }
    }
    /// Whether the token by which the caller was recognised still says the same. For answers that
    /// go on for long.
    pub(super) fn still_is(&self, app: &App) -> bool {
        match (&self.who, app.settings.security.tokens()) {
            (Who::Known(digest, identity), Some(tokens)) => {
                tokens.holder(digest).is_some_and(|(_, now)| now == *identity)
            }
            (Who::Known(..) | Who::Anybody | Who::Unknown, _) => true,
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(parts.extensions.get::<Self>().cloned().expect("the listener puts the caller on every request"))
    }
}

/// Whether a path is answered to everybody. Known before the body is read, so that a stranger's is
/// never held.
fn is_open(app: &App, path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz") || (path == "/metrics" && app.settings.security.metrics_open())
}

/// Who calls, by the token of the request.
pub(super) fn identify(app: &App, path: &str, headers: &HeaderMap, from: SocketAddr) -> Result<Caller, Problem> {
    let Some(tokens) = app.settings.security.tokens() else { return Ok(Caller { from, who: Who::Anybody }) };
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let token = match (given.next(), given.next()) {
        (Some(value), None) => bearer(value.as_bytes()),
        (Some(_), Some(_)) | (None, _) => None,
    };
    match token.and_then(|token| tokens.find(token)) {
        Some((digest, identity)) => Ok(Caller { from, who: Who::Known(digest, identity) }),
        None if is_open(app, path) => Ok(Caller { from, who: Who::Unknown }),
        None => Err(match headers.contains_key(AUTHORIZATION) {
            true => Problem::unauthenticated(
                Challenge::OtherToken,
                "the token is none that is known here; it may have been replaced",
            ),
            false => Problem::unauthenticated(Challenge::Token, "this call needs a token: Authorization: Bearer ..."),
        }),
    }
}

fn bearer(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '))
}

/// Lets a request through to the handler of a route that needs this.
pub(super) async fn admit(State((app, needs)): State<(App, Needs)>, request: Request, next: Next) -> Response<Body> {
    let caller = request.extensions().get::<Caller>().expect("the listener puts the caller on every request");
    let admitted = match (needs, &caller.who) {
        (Needs::Nothing, _) | (_, Who::Anybody) => true,
        (Needs::Metrics, _) if app.settings.security.metrics_open() => true,
        (_, Who::Unknown) => false,
        (Needs::Tenant, Who::Known(..)) => true,
        (Needs::Operator | Needs::Metrics, Who::Known(_, identity)) => identity.role == Role::Operator,
    };
    if admitted {
        return next.run(request).await;
    }
    let detail = "this call is for operators, and the token is a tenant's";
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).into_response()
}
