//! `/members/v1/`: where the cells of other processes ask and post. No part of the users' API: not
//! routed, not documented in OpenAPI, and there only where [`Members`] are configured.

use std::fmt;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use axum::response::IntoResponse as _;
use cellbus_bus::ids::CellId;
use uuid::Uuid;

use super::problem::Problem;
use super::query::shown;
use crate::peers::{CallError, LocalPeers, Peer, Peers as _, wire};

/// What is served to other members of the cluster.
#[derive(Clone)]
pub struct Members {
    /// The cells of this process.
    pub cells: LocalPeers,
    /// The cluster that they belong to.
    pub cluster: Uuid,
}
impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Members of {}", self.cluster)
    }
}

impl Members {
    /// Answers what came to `path`, the part behind [`wire::PREFIX`].
    pub(super) async fn answer(&self, method: &Method, path: &str, headers: &HeaderMap, body: &[u8]) -> Response<Body> {
        match self.dispatch(method, path, headers, body).await {
            Ok(response) => response,
            Err(problem) => {
                tracing::debug!(code = %problem.code, detail = %problem.detail, "a member's request was refused");
                problem.into_response()
            }
        }
    }

    async fn dispatch(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Body>, Problem> {
        let kind = match path.split_once('/') {
            Some((cell, what)) if *method == Method::POST => [wire::Kind::Call, wire::Kind::Posts]
                .into_iter()
                .find(|kind| kind.as_str() == what)
                .map(|kind| (cell, kind)),
            Some(_) | None => None,
        };
        let Some((cell, kind)) = kind else {
            return Err(Problem::new(
                StatusCode::NOT_FOUND,
                "not_found",
                "members call and post; there is nothing else",
            ));
        };
        self.check(headers)?;
        let cell: Option<CellId> = cell.parse().ok();
        let not_here = || {
            let detail = format!("the cell is not in this process{}", cell.as_ref().map_or("", |_| ": it has ended"));
            Problem::new(StatusCode::NOT_FOUND, wire::NOT_HERE, detail)
        };
        let peer = Peer { cell: cell.clone().ok_or_else(not_here)?, address: String::new() };
        match kind {
            wire::Kind::Call => {
                let request = wire::read_request(body).map_err(|error| invalid(&error))?;
                match self.cells.call(&peer, request).await {
                    Ok(response) => {
                        let mut answer = Response::new(Body::from(wire::response(&response)));
                        let octets = HeaderValue::from_static("application/octet-stream");
                        answer.headers_mut().insert(CONTENT_TYPE, octets);
                        Ok(answer)
                    }
                    Err(CallError::NotDelivered { .. }) => Err(not_here()),
                    Err(CallError::Unreachable { detail, .. }) => {
                        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, wire::STOPPED, detail))
                    }
                }
            }
            wire::Kind::Posts => {
                for post in wire::read_posts(body).map_err(|error| invalid(&error))? {
                    self.cells.post(&peer, post).map_err(|_| not_here())?;
                }
                Ok(kind.answered().into_response())
            }
        }
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let value = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
        let (cluster, format) = (value(wire::CLUSTER), value(wire::FORMAT_NAME));
        if format != wire::FORMAT.to_string() {
            let detail = format!(
                "the caller speaks format `{}` and this process format {}; run builds of the same release",
                shown(format),
                wire::FORMAT
            );
            return Err(Problem::bad_request(wire::WRONG_FORMAT, detail));
        }
        if cluster != self.cluster.to_string() {
            let detail = format!(
                "the caller is of cluster `{}` and this process of {}; give each cluster addresses of its own",
                shown(cluster),
                self.cluster
            );
            return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, wire::WRONG_CLUSTER, detail));
        }
        Ok(())
    }
}

fn invalid(error: &cellbus_bus::codec::Error) -> Problem {
    Problem::bad_request(wire::INVALID, format!("the body is no message of this format: {error}"))
}
