//! What handlers take from a request beside its parameters.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use bytes::Bytes;
use cellbus_bus::ids::InvalidId;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::query::shown;

/// The one variable part of a path, decoded.
#[derive(Clone, Debug)]
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(_) => Err(Problem::bad_request("invalid_id", "the path holds escapes that are no UTF-8")),
        }
    }
}

impl Name {
    /// As an id of this kind.
    pub(super) fn id<T: FromStr<Err = InvalidId>>(&self) -> Result<T, Problem> {
        self.0.parse().map_err(|error: InvalidId| {
            Problem::bad_request("invalid_id", format!("`{}` is not one: {error}", shown(&self.0)))
        })
    }
    /// As a UUID.
    pub(super) fn uuid(&self) -> Result<uuid::Uuid, Problem> {
        uuid::Uuid::try_parse(&self.0).map_err(|_| {
            let detail = format!("`{}` is no UUID such as f44dec3f-0dad-599c-bfc4-bbe000698666", shown(&self.0));
            Problem::bad_request("invalid_id", detail)
        })
    }
}

/// A small JSON body of a known form.
pub(super) fn json<'b, T: Deserialize<'b>>(body: &'b Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request("invalid_body", format!("the body is not what this call takes: {error}")))
}

/// [`json`], or the default where there is no body.
pub(super) fn json_or_default<T: DeserializeOwned + Default>(body: &Bytes) -> Result<T, Problem> {
    if body.is_empty() { Ok(T::default()) } else { json(body) }
}
