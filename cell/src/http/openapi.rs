//! `/v1/openapi.json`: made from the handlers.

use axum::Json;
use utoipa::OpenApi;
use utoipa::openapi::ResponseBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};

use super::access::Needs;
use super::problem::Problem;
use super::query::Query;
use super::routes::{ROUTES, Route};
use super::{
    adopt, audit, cells, changes, dead_letters, events, explain, forecast, health, hosts, jobs, locate, log, managers,
    pauses, queue, scale, shards, upgrade, vms,
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
        managers::enable,
        managers::read_only,
        managers::decommission_plan,
        managers::decommission,
        hosts::list,
        hosts::cordon,
        hosts::uncordon,
        hosts::fenced,
        hosts::unfenced,
        hosts::evacuate,
        queue::show,
        pauses::list,
        pauses::pause,
        pauses::resume,
        forecast::show,
        scale::show,
        scale::set,
        scale::decisions,
        upgrade::show,
        upgrade::finalize,
        dead_letters::list,
        dead_letters::show,
        dead_letters::remove,
        dead_letters::retry,
        adopt::adopt,
        adopt::show,
        audit::start,
        audit::show,
        audit::repair,
        audit::accept,
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
    let mut document = Document::openapi();
    ROUTES.iter().for_each(|route| guard(&mut document, route));
    if let Some(components) = &mut document.components {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.security_schemes.insert(SCHEME.to_owned(), SecurityScheme::Http(bearer));
    }
    Json(document)
}

/// What the token that `auth.tokens` asks for is called in the document.
const SCHEME: &str = "bearer";

/// Says of a call who may make it, where there are tokens.
fn guard(document: &mut utoipa::openapi::OpenApi, route: &Route) {
    let refused = match route.needs {
        Needs::Nothing => return,
        Needs::Tenant => None,
        Needs::Operator | Needs::Metrics => Some("forbidden: this call is for operators"),
    };
    let item = document.paths.paths.get_mut(route.path);
    let operation = item.and_then(|item| match route.method {
        "GET" => item.get.as_mut(),
        "POST" => item.post.as_mut(),
        "PUT" => item.put.as_mut(),
        "DELETE" => item.delete.as_mut(),
        _ => None,
    });
    let Some(operation) = operation else { return };
    operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(SCHEME, [])]);
    let mut says = |status: &str, what: &str| {
        let response = ResponseBuilder::new().description(what).build();
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
    };
    says("401", "unauthenticated: no token, or none that is known");
    if let Some(what) = refused {
        says("403", what);
    }
}
