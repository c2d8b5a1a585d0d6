//! Every route: method, path, who may call it, the parameters it knows, and its handler. One list
//! makes the router, the checks of callers and parameters, and the tests that no route is without
//! documentation, and none open that should not be.

use axum::routing::{delete, get, post, put};
use axum::{Router, middleware};

use super::access::{self, Needs};
use super::{
    App, adopt, audit, cells, changes, dead_letters, events, explain, forecast, health, hosts, jobs, locate, log,
    managers, openapi, pauses, queue, scale, shards, upgrade, vms,
};

/// One route.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    /// In upper case.
    pub(super) method: &'static str,
    /// As axum and OpenAPI write it.
    pub(super) path: &'static str,
    /// Who may call it.
    pub(super) needs: Needs,
    /// Query parameters that it knows; any other is refused.
    pub(super) parameters: &'static [&'static str],
}

macro_rules! routes {
    ($($method:ident $name:literal $path:literal $needs:ident [$($parameter:literal),*] $handler:expr;)*) => {
        /// Every route.
        pub(super) const ROUTES: &[Route] =
            &[$(Route { method: $name, path: $path, needs: Needs::$needs, parameters: &[$($parameter),*] }),*];
        /// All of them, each behind what it needs.
        pub(super) fn router(app: &App) -> Router<App> {
            let behind = |needs| middleware::from_fn_with_state((app.clone(), needs), access::admit);
            Router::new()$(.route($path, $method($handler).route_layer(behind(Needs::$needs))))*
        }
    };
}

routes! {
    post "POST" "/v1/jobs" Tenant ["wait", "dry_run"] jobs::submit;
    get "GET" "/v1/jobs" Tenant ["tenant", "state", "type", "limit", "cursor"] jobs::list;
    get "GET" "/v1/jobs/{id}" Tenant [] jobs::show;
    get "GET" "/v1/jobs/{id}/vms" Tenant ["limit", "cursor"] jobs::vms;
    post "POST" "/v1/jobs/{id}/cancel" Tenant [] jobs::cancel;
    post "POST" "/v1/jobs/{id}/retry" Operator [] jobs::retry;
    post "POST" "/v1/jobs/{id}/abandon" Operator [] jobs::abandon;
    get "GET" "/v1/vms" Tenant ["tenant", "state", "manager", "host", "name", "label", "limit", "cursor"] vms::list;
    get "GET" "/v1/vms/{id}" Tenant [] vms::show;
    get "GET" "/v1/vms/{id}/live" Tenant [] vms::live;
    get "GET" "/v1/locate/{vm}" Tenant [] locate::one;
    post "POST" "/v1/locate" Tenant [] locate::many;
    get "GET" "/v1/explain/{id}" Tenant [] explain::show;
    get "GET" "/v1/cells" Operator [] cells::list;
    post "POST" "/v1/cells/{id}/drain" Operator [] cells::drain;
    get "GET" "/v1/shards" Operator [] shards::list;
    get "GET" "/v1/managers" Operator ["limit", "cursor"] managers::list;
    post "POST" "/v1/managers/{id}/cordon" Operator [] managers::cordon;
    post "POST" "/v1/managers/{id}/uncordon" Operator [] managers::uncordon;
    post "POST" "/v1/managers/{id}/evacuate" Operator ["round"] managers::evacuate;
    post "POST" "/v1/managers/{id}/enable" Operator [] managers::enable;
    post "POST" "/v1/managers/{id}/read-only" Operator [] managers::read_only;
    get "GET" "/v1/managers/{id}/decommission" Operator ["release"] managers::decommission_plan;
    post "POST" "/v1/managers/{id}/decommission" Operator ["release", "round"] managers::decommission;
    get "GET" "/v1/hosts" Operator ["manager", "limit", "cursor"] hosts::list;
    post "POST" "/v1/hosts/{id}/cordon" Operator [] hosts::cordon;
    post "POST" "/v1/hosts/{id}/uncordon" Operator [] hosts::uncordon;
    post "POST" "/v1/hosts/{id}/evacuate" Operator ["round"] hosts::evacuate;
    post "POST" "/v1/hosts/{id}/fenced" Operator ["it_is_off"] hosts::fenced;
    post "POST" "/v1/hosts/{id}/unfenced" Operator [] hosts::unfenced;
    get "GET" "/v1/queue" Operator [] queue::show;
    get "GET" "/v1/pauses" Operator [] pauses::list;
    post "POST" "/v1/pause" Operator [] pauses::pause;
    post "POST" "/v1/resume" Operator [] pauses::resume;
    get "GET" "/v1/forecast" Operator [] forecast::show;
    get "GET" "/v1/scale" Operator [] scale::show;
    put "PUT" "/v1/scale" Operator [] scale::set;
    get "GET" "/v1/scale/decisions" Operator ["limit", "cursor"] scale::decisions;
    get "GET" "/v1/upgrade" Operator [] upgrade::show;
    post "POST" "/v1/upgrade/finalize" Operator [] upgrade::finalize;
    get "GET" "/v1/dead-letters" Operator ["limit", "cursor"] dead_letters::list;
    get "GET" "/v1/dead-letters/{id}" Operator [] dead_letters::show;
    delete "DELETE" "/v1/dead-letters/{id}" Operator [] dead_letters::remove;
    post "POST" "/v1/dead-letters/{id}/retry" Operator [] dead_letters::retry;
    post "POST" "/v1/adopt" Operator [] adopt::adopt;
    get "GET" "/v1/adopt/{id}" Operator [] adopt::show;
    post "POST" "/v1/audit" Operator [] audit::start;
    get "GET" "/v1/audit/{id}" Operator [] audit::show;
    post "POST" "/v1/audit/{id}/repair" Operator [] audit::repair;
    post "POST" "/v1/audit/{id}/accept" Operator [] audit::accept;
    get "GET" "/v1/events" Tenant ["tenant"] events::stream;
    get "GET" "/v1/changes" Operator ["limit"] changes::list;
    get "GET" "/v1/log" Operator [] log::show;
    put "PUT" "/v1/log" Operator [] log::set;
    get "GET" "/v1/openapi.json" Tenant [] openapi::show;
    get "GET" "/metrics" Metrics [] health::metrics;
    get "GET" "/healthz" Nothing [] health::alive;
    get "GET" "/readyz" Nothing [] health::ready;
}
