//! `/v1/jobs`: submit, follow, list, cancel, and decide on parked ones.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cellbus_bus::cloudevent::{self, Mode, TenantFrom, TenantRule};
use cellbus_bus::ids::JobId;
use cellbus_bus::job::{Job, JobKind, Request};
use cellbus_directory::JobState;
use cellbus_directory::record::ParkedDecision;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::access::Caller;
use super::api::JobQuery;
use super::extract::Name;
use super::owned;
use super::problem::{Member, Problem};
use super::query::Query;
use super::trace;
use super::view::{DryRunView, JobDetail, JobView, JobVm, Page};
use crate::gateway::Submitted;

/// How a job's submission went.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SubmittedView {
    /// Its id: derived from tenant, source and event id, so that anyone can compute it.
    job_id: String,
    /// Where it is on its way; null if it was not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    /// Why it was not taken (in a batch, beside others that were).
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Member>,
}

/// The jobs of a batch, in its order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchView<T> {
    jobs: Vec<T>,
}

/// Submits a job, or a batch of them.
///
/// Answered once each job is durable and decided by its home. The same event again gives the same
/// job. A batch is checked whole: one bad member refuses it, and nothing of it is taken.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs",
    params(
        ("wait" = Option<String>, Query, description = "stay until the job has ended, at most this long (30s)"),
        ("dry_run" = Option<bool>, Query, description = "check it and say where it would go; nothing is submitted"),
    ),
    request_body(description = "a CloudEvent in structured mode, a batch, or `data` with `ce-` headers", content(
        (serde_json::Value = "application/cloudevents+json"),
        (Vec<serde_json::Value> = "application/cloudevents-batch+json"),
        (serde_json::Value = "application/json"),
    )),
    responses(
        (status = 202, description = "durable; for a batch `{jobs: [...]}`", body = SubmittedView),
        (status = 200, description = "with `wait`: it has ended, failed included; with `dry_run`: where it would go", body = JobDetail),
        (status = 400, description = "refused; `errors` has each bad member of a batch", body = Problem),
        (status = 403, description = "unknown_tenant, tenant_mismatch", body = Problem),
        (status = 409, description = "job_conflict: the key was used with other data", body = Problem),
        (status = 413, description = "more than 4 MiB", body = Problem),
        (status = 415, description = "neither JSON nor CloudEvents", body = Problem),
        (status = 429, description = "nothing was taken, as there is no room; see Retry-After", body = Problem),
        (status = 503, description = "nothing was taken, or that is not known and the same may be sent again; see Retry-After", body = Problem),
    ))]
pub(super) async fn submit(
    State(app): State<App>,
    query: Query,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let wait = query.time("wait", app.settings.http.wait_max)?;
    let dry_run = query.flag("dry_run")?;
    let (mut jobs, batch) = match parse(&app, &caller, &headers, &body) {
        Ok(parsed) => parsed,
        Err(problem) => {
            app.metrics.intake("refused", 1);
            return Err(problem);
        }
    };
    drop(body);
    if dry_run {
        return dry(&app, &jobs, batch);
    }
    trace::give(&headers, &mut jobs);
    let jobs: Vec<Arc<Job>> = jobs.into_iter().map(Arc::new).collect();
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    let submitted = app.api.submit(jobs).await.inspect_err(|_| app.metrics.intake("unavailable", ids.len()))?;
    let mut views = Vec::with_capacity(submitted.len());
    let mut refused: Vec<Member> = Vec::new();
    for (index, answer) in submitted.into_iter().enumerate() {
        let (job, state, error) = outcome(index, answer);
        refused.extend(error.clone());
        views.push(SubmittedView { job_id: job.to_string(), state, error });
    }
    app.metrics.intake("conflict", refused.len());
    app.metrics.intake("accepted", views.len() - refused.len());
    if refused.len() == views.len() {
        return Err(none_taken(refused, batch));
    }
    if let Some(limit) = wait {
        return waited(&app, &ids, &refused, limit, batch).await;
    }
    let response = if batch {
        (StatusCode::ACCEPTED, Json(BatchView { jobs: views })).into_response()
    } else {
        (StatusCode::ACCEPTED, Json(views.pop())).into_response()
    };
    Ok(response)
}

fn parse(app: &App, caller: &Caller, headers: &HeaderMap, body: &[u8]) -> Result<(Vec<Job>, bool), Problem> {
    // Only what the parser looks at; a value that is no text cannot be an attribute.
    let mut relevant: Vec<(&str, &str)> = Vec::new();
    for (name, value) in headers {
        if name == "content-type" || name.as_str().starts_with("ce-") {
            let value = value.to_str().map_err(|_| {
                let detail = format!("the header `{name}` is not ASCII; percent-encode it as UTF-8");
                Problem::bad_request(cloudevent::Code::InvalidAttribute.as_str(), detail)
            })?;
            relevant.push((name.as_str(), value));
        }
    }
    let limits = &app.settings.intake;
    // An operator's jobs, and everybody's while nobody is told from others, say whose they are.
    let from = caller.scope().map_or(TenantFrom::Attribute, |tenant| TenantFrom::Sender(tenant.as_str()));
    let tenant = TenantRule { from, known: &app.settings.tenants };
    Ok(match cloudevent::mode(&relevant)? {
        Mode::Structured => (vec![cloudevent::parse_structured(body, tenant, limits)?], false),
        Mode::Binary => (vec![cloudevent::parse_binary(&relevant, body, tenant, limits)?], false),
        Mode::Batch => (cloudevent::parse_batch(body, tenant, limits)?, true),
    })
}

fn dry(app: &App, jobs: &[Job], batch: bool) -> Result<Response, Problem> {
    let mut views = Vec::with_capacity(jobs.len());
    for job in jobs {
        let id = job.id.to_string();
        views.push(match &job.request {
            Request::Provision(_) => DryRunView::of(&*app.api, id, app.api.dry_run(job)?),
            Request::Operate(..) | Request::Cancel(_) => DryRunView::of_other(id),
        });
    }
    Ok(if batch { Json(BatchView { jobs: views }).into_response() } else { Json(views.pop()).into_response() })
}

fn outcome(index: usize, answer: Submitted) -> (JobId, Option<&'static str>, Option<Member>) {
    match answer {
        Submitted::Accepted { job, state } => (job, Some(state.as_str()), None),
        Submitted::Conflict { job } => {
            let detail = format!(
                "the key (tenant, source, id) was used before with other data, by job {job}; take another id for other work"
            );
            (job, None, Some(Member { index, code: "job_conflict".to_owned(), pointer: None, detail }))
        }
        Submitted::Refused { job, code, message } => {
            (job, None, Some(Member { index, code, pointer: None, detail: message }))
        }
    }
}

fn none_taken(mut refused: Vec<Member>, batch: bool) -> Problem {
    let conflict = refused.iter().all(|member| member.code == "job_conflict");
    let (status, code) = if conflict {
        (StatusCode::CONFLICT, "job_conflict".to_owned())
    } else {
        (StatusCode::UNPROCESSABLE_ENTITY, refused.first().map_or_else(|| "job_refused".to_owned(), |m| m.code.clone()))
    };
    let detail = if batch {
        "no job of the batch was taken".to_owned()
    } else {
        refused.first().map(|member| member.detail.clone()).unwrap_or_default()
    };
    let mut problem = Problem::new(status, code, detail);
    if batch {
        problem.errors = std::mem::take(&mut refused);
    }
    problem
}

async fn waited(
    app: &App,
    ids: &[JobId],
    refused: &[Member],
    limit: std::time::Duration,
    batch: bool,
) -> Result<Response, Problem> {
    let taken: Vec<JobId> = ids
        .iter()
        .enumerate()
        .filter(|(index, _)| refused.binary_search_by_key(index, |member| member.index).is_err())
        .map(|(_, id)| *id)
        .collect();
    let jobs = tokio::select! {
        biased;
        // The server stops: the jobs go on without us.
        () = app.closing.cancelled() => app.api.wait_jobs(&taken, std::time::Duration::ZERO).await?,
        jobs = app.api.wait_jobs(&taken, limit) => jobs?,
    };
    // A job that was taken is known, if not yet here; then it has not ended either.
    let ended = jobs.iter().all(|job| job.as_ref().is_some_and(|job| job.row.state.ended()));
    let status = if ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut views: Vec<WaitedView> = taken
        .iter()
        .zip(jobs)
        .map(|(id, job)| match job {
            Some(job) => WaitedView::Known(Box::new(JobDetail::of(&*app.api, &job))),
            None => WaitedView::OnItsWay(SubmittedView {
                job_id: id.to_string(),
                state: Some(JobState::Queued.as_str()),
                error: None,
            }),
        })
        .collect();
    Ok(if batch {
        (status, Json(BatchView { jobs: views })).into_response()
    } else {
        (status, Json(views.pop())).into_response()
    })
}

/// A job that was waited for.
#[derive(Serialize)]
#[serde(untagged)]
enum WaitedView {
    Known(Box<JobDetail>),
    OnItsWay(SubmittedView),
}

/// Lists jobs.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs",
    params(
        ("tenant" = Option<String>, Query, description = "only of this tenant"),
        ("state" = Option<String>, Query, description = "only in this state"),
        ("type" = Option<String>, Query, description = "only of this type, such as provision"),
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 if not given"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
    ),
    responses((status = 200, body = Page<JobView>), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn list(State(app): State<App>, query: Query, caller: Caller) -> Result<Json<Page<JobView>>, Problem> {
    let limit = query.limit()?;
    let filter = JobQuery {
        tenant: caller.tenant(&query)?,
        state: query.choice("state", JobState::ALL, JobState::as_str)?,
        kind: query.choice("type", JobKind::ALL, JobKind::as_str)?,
    };
    let page = app.api.jobs(&filter, limit, query.cursor()).await?;
    Ok(Json(Page { items: page.items.iter().map(JobView::of).collect(), next_cursor: page.next }))
}

/// Shows a job.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "the job's id")),
    responses((status = 200, body = JobDetail), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn show(
    State(app): State<App>,
    id: Name,
    _: Query,
    caller: Caller,
) -> Result<Json<JobDetail>, Problem> {
    let status = owned::job(&app, &caller, id.id()?).await?;
    Ok(Json(JobDetail::of(&*app.api, &status)))
}

/// Lists all VMs of a job.
#[utoipa::path(get, path = "/v1/jobs/{id}/vms", tag = "jobs",
    params(
        ("id" = String, Path, description = "the job's id"),
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 if not given"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
    ),
    responses((status = 200, body = Page<JobVm>), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn vms(
    State(app): State<App>,
    id: Name,
    query: Query,
    caller: Caller,
) -> Result<Json<Page<JobVm>>, Problem> {
    let limit = query.limit()?;
    let from = match query.cursor() {
        None => 0,
        Some(text) => text.parse::<u32>().map_err(|_| {
            Problem::bad_request("invalid_cursor", "the cursor is not one of this list; begin again without it")
        })?,
    };
    let id = id.id()?;
    owned::check_job(&app, &caller, id).await?;
    let (vms, next) = app.api.job_vms(id, from, limit).await?;
    let items = vms.iter().map(|vm| JobVm::of(&*app.api, vm)).collect();
    Ok(Json(Page { items, next_cursor: next.map(|next| next.to_string()) }))
}

/// Calls a job off, as far as it can still be.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", tag = "jobs",
    params(("id" = String, Path, description = "the job's id")),
    responses((status = 202, description = "the job as it is a moment later", body = JobDetail),
        (status = 404, body = Problem), (status = 409, description = "not_cancellable", body = Problem)))]
pub(super) async fn cancel(
    State(app): State<App>,
    id: Name,
    _: Query,
    caller: Caller,
) -> Result<(StatusCode, Json<JobDetail>), Problem> {
    let id = id.id()?;
    owned::check_job(&app, &caller, id).await?;
    let status = app.api.cancel_job(id, caller.operator()).await?;
    Ok((StatusCode::ACCEPTED, Json(JobDetail::of(&*app.api, &status))))
}

/// Tries a parked job again.
#[utoipa::path(post, path = "/v1/jobs/{id}/retry", tag = "jobs",
    params(("id" = String, Path, description = "the job's id")),
    responses((status = 202, body = JobDetail), (status = 404, body = Problem),
        (status = 409, description = "not_parked", body = Problem)))]
pub(super) async fn retry(
    State(app): State<App>,
    id: Name,
    _: Query,
    caller: Caller,
) -> Result<(StatusCode, Json<JobDetail>), Problem> {
    unpark(&app, &id, ParkedDecision::Retry, caller).await
}

/// Gives a parked job up; what it made may be left behind.
#[utoipa::path(post, path = "/v1/jobs/{id}/abandon", tag = "jobs",
    params(("id" = String, Path, description = "the job's id")),
    responses((status = 202, body = JobDetail), (status = 404, body = Problem),
        (status = 409, description = "not_parked", body = Problem)))]
pub(super) async fn abandon(
    State(app): State<App>,
    id: Name,
    _: Query,
    caller: Caller,
) -> Result<(StatusCode, Json<JobDetail>), Problem> {
    unpark(&app, &id, ParkedDecision::Abandon, caller).await
}

async fn unpark(
    app: &App,
    id: &Name,
    decision: ParkedDecision,
    caller: Caller,
) -> Result<(StatusCode, Json<JobDetail>), Problem> {
    let status = app.api.unpark_job(id.id()?, decision, caller.operator()).await?;
    Ok((StatusCode::ACCEPTED, Json(JobDetail::of(&*app.api, &status))))
}
