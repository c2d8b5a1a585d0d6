//! `/v1/openapi.json`: made from the handlers.

use axum::Json;
use utoipa::OpenApi;

use super::problem::Problem;
use super::query::Query;
use super::{
    audit, cells, changes, dead_letters, events, explain, health, hosts, jobs, locate, log, managers, queue, scale,
    shards, vms,
};

/// The document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Cellbus",
        description = "A control plane for very large fleets of virtual machines. Errors are problem documents (RFC 9457) with a stable `code`; ops/docs/errors has a page for each."
    ),
    paths(
        jobs::submit,
        jobs::list,
        jobs::show,
        jobs::vms,
        jobs::cancel,
        jobs::retry,
        jobs::abandon,
        vms::list,
        vms::show,
        vms::live,
        locate::one,
        locate::many,
        explain::show,
        cells::list,
        cells::drain,
        shards::list,
        managers::list,
        managers::cordon,
        managers::uncordon,
        managers::evacuate,
        hosts::list,
        hosts::cordon,
        hosts::uncordon,
        hosts::evacuate,
        queue::show,
        scale::show,
        scale::set,
        scale::decisions,
        dead_letters::list,
        dead_letters::show,
        dead_letters::remove,
        dead_letters::retry,
        audit::start,
        audit::show,
        audit::repair,
        events::stream,
        changes::list,
        log::show,
        log::set,
        show,
        health::metrics,
        health::alive,
        health::ready,
    ),
    components(schemas(Problem))
)]
pub(super) struct Document;

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "process", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn show(_: Query) -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
