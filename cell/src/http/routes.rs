//! Every route: method, path, the parameters it knows, and its handler. One list makes the router,
//! the check of parameters, and the tests that no route is without documentation.

use axum::Router;
use axum::routing::{delete, get, post, put};

use super::{
    App, audit, cells, changes, dead_letters, events, explain, health, hosts, jobs, locate, log, managers, openapi,
    queue, scale, shards, vms,
};

/// One route.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    /// In upper case.
    pub(super) method: &'static str,
    /// As axum and OpenAPI write it.
    pub(super) path: &'static str,
    /// Query parameters that it knows; any other is refused.
    pub(super) parameters: &'static [&'static str],
}

macro_rules! routes {
    ($($method:ident $name:literal $path:literal [$($parameter:literal),*] $handler:expr;)*) => {
        /// Every route.
        pub(super) const ROUTES: &[Route] =
            &[$(Route { method: $name, path: $path, parameters: &[$($parameter),*] }),*];
        /// All of them.
        pub(super) fn router() -> Router<App> {
            Router::new()$(.route($path, $method($handler)))*
        }
    };
}

routes! {
    post "POST" "/v1/jobs" ["wait", "dry_run"] jobs::submit;
    get "GET" "/v1/jobs" ["tenant", "state", "type", "limit", "cursor"] jobs::list;
    get "GET" "/v1/jobs/{id}" [] jobs::show;
    get "GET" "/v1/jobs/{id}/vms" ["limit", "cursor"] jobs::vms;
    post "POST" "/v1/jobs/{id}/cancel" [] jobs::cancel;
    post "POST" "/v1/jobs/{id}/retry" [] jobs::retry;
    post "POST" "/v1/jobs/{id}/abandon" [] jobs::abandon;
    get "GET" "/v1/vms" ["tenant", "state", "manager", "host", "name", "label", "limit", "cursor"] vms::list;
    get "GET" "/v1/vms/{id}" [] vms::show;
    get "GET" "/v1/vms/{id}/live" [] vms::live;
    get "GET" "/v1/locate/{vm}" [] locate::one;
    post "POST" "/v1/locate" [] locate::many;
    get "GET" "/v1/explain/{id}" [] explain::show;
    get "GET" "/v1/cells" [] cells::list;
    post "POST" "/v1/cells/{id}/drain" [] cells::drain;
    get "GET" "/v1/shards" [] shards::list;
    get "GET" "/v1/managers" ["limit", "cursor"] managers::list;
    post "POST" "/v1/managers/{id}/cordon" [] managers::cordon;
    post "POST" "/v1/managers/{id}/uncordon" [] managers::uncordon;
    post "POST" "/v1/managers/{id}/evacuate" ["round"] managers::evacuate;
    get "GET" "/v1/hosts" ["manager", "limit", "cursor"] hosts::list;
    post "POST" "/v1/hosts/{id}/cordon" [] hosts::cordon;
    post "POST" "/v1/hosts/{id}/uncordon" [] hosts::uncordon;
    post "POST" "/v1/hosts/{id}/evacuate" ["round"] hosts::evacuate;
    get "GET" "/v1/queue" [] queue::show;
    get "GET" "/v1/scale" [] scale::show;
    put "PUT" "/v1/scale" [] scale::set;
    get "GET" "/v1/scale/decisions" ["limit", "cursor"] scale::decisions;
    get "GET" "/v1/dead-letters" ["limit", "cursor"] dead_letters::list;
    get "GET" "/v1/dead-letters/{id}" [] dead_letters::show;
    delete "DELETE" "/v1/dead-letters/{id}" [] dead_letters::remove;
    post "POST" "/v1/dead-letters/{id}/retry" [] dead_letters::retry;
    post "POST" "/v1/audit" [] audit::start;
    get "GET" "/v1/audit/{id}" [] audit::show;
    post "POST" "/v1/audit/{id}/repair" [] audit::repair;
    get "GET" "/v1/events" ["tenant"] events::stream;
    get "GET" "/v1/changes" ["limit"] changes::list;
    get "GET" "/v1/log" [] log::show;
    put "PUT" "/v1/log" [] log::set;
    get "GET" "/v1/openapi.json" [] openapi::show;
    get "GET" "/metrics" [] health::metrics;
    get "GET" "/healthz" [] health::alive;
    get "GET" "/readyz" [] health::ready;
}
