//! The load harness against a stand-in for a cluster, which does what it is told to get wrong.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cellbus_bus::Env;
use cellbus_bus::ids::{JobId, VmId};
use cellbus_simulator::Trace;
use cellbus_simulator::load::{
    self, Arrivals, HttpTarget, Mix, Options, Planned, Profile, Report, Shape, Speedup, Task, Workload, workload,
};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

fn env() -> Env {
    cellbus_bus::env::real(tokio::runtime::Handle::current())
}

/// What the stand-in gets wrong.
#[derive(Clone, Default)]
struct Wrong {
    /// This many submissions are answered with 429 first.
    busy: u32,
    /// This many submissions are done, and answered with 500.
    unanswered: u32,
    /// No outcome is told; jobs must be asked after.
    silent: bool,
    /// Every so many events, the stream breaks.
    breaks_every: Option<usize>,
    /// Jobs of this number are forgotten after they were acknowledged.
    forgets: Option<u64>,
    /// A VM of this number is made twice.
    doubles: Option<u64>,
    /// A VM of this number vanishes.
    loses: Option<u64>,
    /// Jobs never end.
    stuck: bool,
    /// The second cell is seen only so often.
    leaves_after: Option<u32>,
    /// Every submission takes so long.
    slow: Duration,
    /// This many audits cannot read a manager.
    opening: u32,
}

#[derive(Default)]
struct Books {
    jobs: BTreeMap<JobId, Value>,
    vms: BTreeMap<VmId, (String, String)>,
    /// Outcomes told, in order; an event's id is its place.
    told: Vec<String>,
    submitted: Vec<Value>,
    streams: u32,
}

#[derive(Clone)]
struct Cluster {
    books: Arc<Mutex<Books>>,
    wrong: Arc<Mutex<Wrong>>,
    news: broadcast::Sender<()>,
}

impl Cluster {
    async fn serve(wrong: Wrong) -> (Self, HttpTarget) {
        let cluster =
            Self { books: Arc::default(), wrong: Arc::new(Mutex::new(wrong)), news: broadcast::channel(16).0 };
        let routes = Router::new()
            .route("/v1/jobs", post(submit))
            .route("/v1/jobs/{id}", get(job))
            .route("/v1/events", get(events))
            .route("/v1/vms", get(vms))
            .route("/v1/locate", post(locate))
            .route("/v1/audit", post(audit))
            .route(
                "/v1/managers",
                get(|| async {
                    Json(
                        json!({"items": [{"name": "m1", "hosts": 3}, {"name": "m2", "hosts": 4}], "next_cursor": null}),
                    )
                }),
            )
            .route(
                "/v1/cells",
                get(|State(cluster): State<Cluster>| async move {
                    let mut wrong = cluster.wrong.lock().unwrap();
                    let there = wrong.leaves_after.as_mut().is_none_or(|left| {
                        *left = left.saturating_sub(1);
                        *left > 0
                    });
                    let cells = if there { json!([{"id": "c1"}, {"id": "c2"}]) } else { json!([{"id": "c1"}]) };
                    Json(json!({"items": cells, "next_cursor": null}))
                }),
            )
            .route("/metrics", get(|| async { "process_resident_memory_bytes 52428800\n" }))
            .with_state(cluster.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        env().spawn("stand-in", async move { axum::serve(listener, routes).await.unwrap() });
        (cluster, HttpTarget::new(&url, env()).unwrap())
    }

    /// Takes a job and ends it at once.
    fn take(&self, event: &Value) {
        let wrong = self.wrong.lock().unwrap().clone();
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        let job = JobId::derive(&text("tenant"), &text("source"), &text("id"));
        let number: u64 = text("id").rsplit('-').next().unwrap().parse().unwrap();
        let mut books = self.books.lock().unwrap();
        books.submitted.push(event.clone());
        if books.jobs.contains_key(&job) || wrong.forgets == Some(number) {
            return;
        }
        let mut kind = "succeeded";
        let mut error = Value::Null;
        match text("type").as_str() {
            "io.cellbus.job.provision.v1" => {
                let (name, run) = (
                    event["data"]["name"].as_str().unwrap(),
                    event["data"]["labels"]["cellbus-load"].as_str().unwrap_or("-"),
                );
                if event["data"]["vcpus"] == 999 {
                    (kind, error) = ("failed", json!({"code": "no_room", "message": "too large"}));
                } else if wrong.loses != Some(number) {
                    books.vms.insert(job.vm(0), (name.to_owned(), run.to_owned()));
                }
                if wrong.doubles == Some(number) {
                    books.vms.insert(job.vm(77), (name.to_owned(), run.to_owned()));
                }
            }
            kind_of => {
                let vm: VmId = text("subject").parse().unwrap();
                assert!(books.vms.contains_key(&vm), "{kind_of} of a VM that is not there: {event}");
                if kind_of == "io.cellbus.job.delete.v1" {
                    books.vms.remove(&vm);
                }
            }
        }
        if wrong.stuck {
            books.jobs.insert(job, json!({"id": job, "state": "running"}));
            return;
        }
        books.jobs.insert(job, json!({"id": job, "state": kind, "error": error}));
        let outcome = json!({"id": "x", "type": format!("io.cellbus.job.{kind}.v1"), "data": {"job_id": job, "vms": [], "error": error}});
        if !wrong.silent {
            books.told.push(outcome.to_string());
        }
        drop(books);
        let _ = self.news.send(());
    }
}

fn problem(status: StatusCode, code: &str, errors: Value) -> Response {
    (status, [("retry-after", "0")], Json(json!({"code": code, "detail": "words", "errors": errors}))).into_response()
}

async fn submit(State(cluster): State<Cluster>, headers: HeaderMap, body: Bytes) -> Response {
    assert_eq!(headers["content-type"], "application/cloudevents-batch+json");
    let events: Vec<Value> = serde_json::from_slice(&body).unwrap();
    let slow = cluster.wrong.lock().unwrap().slow;
    env().sleep(slow).await;
    let unanswered = {
        let mut wrong = cluster.wrong.lock().unwrap();
        if wrong.busy > 0 {
            wrong.busy -= 1;
            return problem(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", json!([]));
        }
        let unanswered = wrong.unanswered > 0;
        wrong.unanswered = wrong.unanswered.saturating_sub(1);
        unanswered
    };
    let bad: Vec<Value> = events
        .iter()
        .enumerate()
        .filter(|(_, event)| event["data"]["vcpus"] == 0)
        .map(|(index, _)| json!({"index": index, "code": "invalid_size", "detail": "at least one"}))
        .collect();
    if !bad.is_empty() {
        return problem(StatusCode::BAD_REQUEST, "batch_refused", bad.into());
    }
    let mut answers = Vec::new();
    for event in &events {
        if event["data"]["vcpus"] == 998 {
            answers.push(
                json!({"job_id": "x", "state": null, "error": {"index": 0, "code": "job_conflict", "detail": "taken"}}),
            );
        } else {
            cluster.take(event);
            answers.push(json!({"job_id": "x", "state": "accepted"}));
        }
    }
    if unanswered {
        return problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", json!([]));
    }
    (StatusCode::ACCEPTED, Json(json!({ "jobs": answers }))).into_response()
}

async fn job(State(cluster): State<Cluster>, Path(id): Path<JobId>) -> Response {
    match cluster.books.lock().unwrap().jobs.get(&id) {
        Some(job) => Json(job.clone()).into_response(),
        None => problem(StatusCode::NOT_FOUND, "job_not_found", json!([])),
    }
}

async fn events(State(cluster): State<Cluster>, headers: HeaderMap) -> Response {
    let from = match headers.get("last-event-id") {
        Some(id) => id.to_str().unwrap().parse().unwrap(),
        None => cluster.books.lock().unwrap().told.len(),
    };
    cluster.books.lock().unwrap().streams += 1;
    let breaks_at = cluster.wrong.lock().unwrap().breaks_every.map(|every| from + every);
    let news = cluster.news.subscribe();
    let pieces = futures::stream::unfold((cluster, from, news), move |(cluster, at, mut news)| async move {
        loop {
            if breaks_at.is_some_and(|end| at >= end) {
                return None;
            }
            let next = cluster.books.lock().unwrap().told.get(at).cloned();
            if let Some(data) = next {
                let piece = format!("id: {}\ndata: {data}\n\n", at + 1);
                return Some((Ok::<_, std::io::Error>(piece), (cluster, at + 1, news)));
            }
            // Lagging behind is news too.
            let _ = news.recv().await;
        }
    });
    Body::from_stream(pieces).into_response()
}

async fn vms(State(cluster): State<Cluster>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let run = query["label"].strip_prefix("cellbus-load=").unwrap();
    assert_eq!(query["tenant"], "acme");
    let after = query.get("cursor").map(|cursor| cursor.parse::<VmId>().unwrap());
    let books = cluster.books.lock().unwrap();
    let mine = books.vms.iter().filter(|(id, (_, of))| of == run && after.is_none_or(|after| **id > after));
    // Pages of 7, whatever was asked for: a limit is the most that a page may have.
    let items: Vec<Value> =
        mine.take(7).map(|(id, (name, _))| json!({"id": id, "name": name, "state": "running"})).collect();
    let next = if items.len() == 7 { items[6]["id"].clone() } else { Value::Null };
    Json(json!({"items": items, "next_cursor": next})).into_response()
}

async fn locate(State(cluster): State<Cluster>, headers: HeaderMap, body: Bytes) -> Vec<u8> {
    assert_eq!(headers["content-type"], "application/octet-stream");
    let books = cluster.books.lock().unwrap();
    let (ids, rest) = body.as_chunks::<16>();
    assert!(rest.is_empty());
    let mut answer = b"CBLO\0\x01\0\x02".to_vec();
    answer.extend_from_slice(&u32::try_from(ids.len()).unwrap().to_be_bytes());
    answer.extend_from_slice(&[0; 4]);
    for id in ids {
        answer.extend_from_slice(&[u8::from(books.vms.contains_key(&VmId::from_uuid(uuid::Uuid::from_bytes(*id)))), 0]);
    }
    answer
}

async fn audit(State(cluster): State<Cluster>) -> Response {
    let vms = cluster.books.lock().unwrap().vms.len();
    let mut wrong = cluster.wrong.lock().unwrap();
    let unreachable: &[&str] = if wrong.opening > 0 { &["m1"] } else { &[] };
    wrong.opening = wrong.opening.saturating_sub(1);
    Json(json!({"id": "f44dec3f-0dad-599c-bfc4-bbe000698666", "ended_at": "now", "unreachable": unreachable, "vms": vms, "findings_total": 0, "findings": []})).into_response()
}

fn options() -> Options {
    Options {
        run: Some("r1".to_owned()),
        lookups: Duration::from_millis(20),
        ask_after: Duration::from_millis(10),
        ..Options::new("acme".parse().unwrap())
    }
}

async fn play(wrong: Wrong, work: Workload, options: Options) -> (Report, Cluster) {
    let (cluster, target) = Cluster::serve(wrong).await;
    let report =
        load::run(work, Arc::new(target), options, Arc::new(()), CancellationToken::new(), env()).await.unwrap();
    (report, cluster)
}

#[tokio::test]
async fn a_clean_run_is_reported_as_one() {
    let (report, _) = play(Wrong::default(), workload::provisions(1_203, 1), Options { senders: 4, ..options() }).await;
    assert!(report.clean(), "{report:?}");
    let got = (report.jobs_submitted, report.jobs_succeeded, report.vms_created, report.directory_entries);
    assert_eq!(got, (1_203, 1_203, 1_203, 1_203));
    assert_eq!((report.hosts, report.managers, report.cells_peak, report.rss_mib), (7, 2, 2, 50));
    assert!(
        report.lookups_per_second > 0.0 && report.jobs_per_second > 0.0 && report.latency_ms.max > 0.0,
        "{report:?}"
    );
}

#[tokio::test]
async fn a_trace_is_played_in_order() {
    let rows: String = (0..300).map(|vm| format!("pod-{vm},1000,0,{vm},{}\n", vm + 3)).collect();
    let csv = format!("name,cpu_milli,memory_mib,creation_time,deletion_time\n{rows}");
    let trace = Trace::read(csv.as_bytes()).unwrap();
    let order: Vec<String> = trace.events.iter().map(|event| event.name.to_string()).collect();
    let (report, cluster) =
        play(Wrong { busy: 2, ..Wrong::default() }, workload::trace(trace, Speedup::Max), options()).await;
    assert!(report.clean(), "{report:?}");
    assert_eq!((report.vms_created, report.vms_deleted, report.directory_entries), (300, 300, 0));
    let books = cluster.books.lock().unwrap();
    let mut names = BTreeMap::new();
    let submitted: Vec<String> = books
        .submitted
        .iter()
        .map(|event| match event["data"]["labels"]["trace"].as_str() {
            Some(name) => {
                let job = JobId::derive("acme", event["source"].as_str().unwrap(), event["id"].as_str().unwrap());
                names.insert(job.to_string(), name.to_owned());
                name.to_owned()
            }
            None => names[event["subject"].as_str().unwrap()].clone(),
        })
        .collect();
    assert_eq!(submitted, order);
}

#[tokio::test]
async fn operations_meet_vms_that_are_there() {
    let work = workload::provisions(40, 1).chain(workload::operations(600, &Mix::lively(), 2));
    let (report, cluster) = play(Wrong::default(), Box::new(work), options()).await;
    assert!(report.clean() && report.vms_deleted > 50, "{report:?}");
    assert_eq!(cluster.books.lock().unwrap().vms.len() as u64, report.vms_created - report.vms_deleted);
}

#[tokio::test]
async fn what_is_not_answered_is_sent_again_unchanged() {
    let (report, cluster) =
        play(Wrong { busy: 3, unanswered: 3, ..Wrong::default() }, workload::provisions(100, 1), options()).await;
    assert!(report.clean(), "{report:?}");
    assert_eq!(report.jobs_submitted, 100);
    assert!(cluster.books.lock().unwrap().submitted.len() > 100);
}

#[tokio::test]
async fn a_stream_that_breaks_goes_on_where_it_was() {
    let (report, cluster) =
        play(Wrong { breaks_every: Some(30), ..Wrong::default() }, workload::provisions(100, 1), options()).await;
    assert!(report.clean(), "{report:?}");
    assert!(cluster.books.lock().unwrap().streams >= 3);
}

#[tokio::test]
async fn jobs_of_which_nothing_is_heard_are_asked_after() {
    let (report, _) = play(Wrong { silent: true, ..Wrong::default() }, workload::provisions(70, 1), options()).await;
    assert!(report.clean(), "{report:?}");
}

#[tokio::test]
async fn what_is_lost_or_doubled_is_found() {
    let patience = Duration::from_millis(2_500);
    let wrong = Wrong { forgets: Some(3), doubles: Some(5), loses: Some(7), ..Wrong::default() };
    let (report, _) =
        play(wrong, workload::provisions(20, 1), Options { patience, lookups: Duration::ZERO, ..options() }).await;
    assert!(!report.clean());
    assert_eq!(
        (report.jobs_lost, report.vms_missing, report.lost, report.duplicates, report.vms_unexpected),
        (1, 1, 2, 1, 1),
        "{report:?}"
    );
    assert_eq!((report.jobs_submitted, report.jobs_succeeded, report.jobs_unfinished), (20, 19, 0));
}

fn shaped(rate: f64, millis: u64) -> Workload {
    let shape = Shape::new(Profile::Constant, rate, rate, Duration::from_millis(millis)).unwrap();
    workload::shaped(shape, Arrivals::Poisson, &Mix::lively(), 1)
}

#[tokio::test]
async fn a_slow_cluster_does_not_slow_the_clock() {
    let slow = Duration::from_millis(700);
    let lookups = Duration::from_millis(20);
    let open = Options { run: Some("r1".to_owned()), lookups, ..Options::on_time("acme".parse().unwrap()) };
    let (report, _) = play(Wrong { slow, ..Wrong::default() }, shaped(60.0, 2_000), open.clone()).await;
    assert!(report.clean(), "{report:?}");
    assert!(report.latency_ms.p50 >= 700.0, "{report:?}");
    // Of an answer that takes 0.7 s, the jobs of at least half a second are open at one time.
    assert!(report.in_flight_max > 30 && report.turned > 0, "{report:?}");
    assert!(report.late_ms.p50 < 100.0, "each went when it was due: {report:?}");
    assert_eq!(report.limit_reached_seconds, 0.0);
    let moments = &report.details.series.moments;
    assert_eq!(moments.iter().map(|moment| moment.due).sum::<u64>(), report.jobs_submitted);
    assert!(moments[..2].iter().all(|moment| (35..85).contains(&moment.due)), "{moments:?}");

    // The valve: reached, it holds jobs up, and the report says so. Latency still counts from when they were due.
    let (report, _) =
        play(Wrong { slow, ..Wrong::default() }, shaped(60.0, 1_000), Options { in_flight: 10, ..open }).await;
    assert!(report.clean() && report.in_flight_max == 10, "{report:?}");
    assert!(report.limit_reached_seconds > 1.0 && report.late_ms.max > 1_000.0, "{report:?}");
    assert!(report.latency_ms.p99 > report.late_ms.p99, "{report:?}");
    let due = report.details.series.moments.iter().take(1).map(|moment| moment.due).sum::<u64>();
    assert_eq!(due, report.jobs_submitted, "each is in the moment in which it was due");
}

#[tokio::test]
async fn a_manager_that_is_being_opened_is_audited_again() {
    let (report, _) = play(Wrong { opening: 2, ..Wrong::default() }, workload::provisions(10, 1), options()).await;
    assert_eq!((report.directory_mismatches, report.directory_entries), (0, 10));
}

#[tokio::test]
async fn a_lull_ends_no_run_and_what_happens_to_cells_is_marked() {
    let size = cellbus_bus::job::Size { vcpus: 1, memory_mib: 1, disk_gib: 1 };
    let at = |millis| Planned { due: Some(Duration::from_millis(millis)), task: Task::Create { key: None, size } };
    let options = Options { patience: Duration::from_millis(500), ..options() };
    let wrong = Wrong { leaves_after: Some(2), ..Wrong::default() };
    let (report, _) = play(wrong, Box::new([at(0), at(2_600)].into_iter()), options).await;
    assert!(report.clean() && report.jobs_submitted == 2, "{report:?}");
    let marks: Vec<&str> = report.details.marks.iter().map(|mark| mark.what.as_str()).collect();
    assert_eq!(marks, ["cell c2 left"]);
    assert!(report.details.marks[0].at_seconds > 1.5, "{report:?}");
    assert_eq!(report.cells_peak, 2);
}

#[tokio::test]
async fn failures_and_refusals_are_counted_by_code() {
    let create = |vcpus| {
        let size = cellbus_bus::job::Size { vcpus, memory_mib: 1, disk_gib: 1 };
        Planned { due: None, task: Task::Create { key: None, size } }
    };
    let work = vec![create(1), create(0), create(999), create(998), create(2), create(0)];
    let (report, _) = play(Wrong::default(), Box::new(work.into_iter()), options()).await;
    assert_eq!(
        (report.jobs_submitted, report.jobs_succeeded, report.jobs_failed, report.jobs_refused),
        (3, 2, 1, 3),
        "{report:?}"
    );
    assert_eq!(report.failures["job_conflict"].count, 1);
    assert_eq!((report.failures["invalid_size"].count, report.failures["no_room"].first.as_str()), (2, "too large"));
    assert_eq!((report.lost, report.vms_missing, report.jobs_unfinished), (0, 0, 0));
}

#[tokio::test]
async fn a_run_that_is_broken_off_gives_its_report_so_far() {
    let (cluster, target) = Cluster::serve(Wrong { stuck: true, ..Wrong::default() }).await;
    let stop = CancellationToken::new();
    let breaks = async {
        while cluster.books.lock().unwrap().jobs.len() < 256 {
            env().sleep(Duration::from_millis(2)).await;
        }
        stop.cancel();
    };
    let work = workload::provisions(10_000, 1);
    let (report, ()) =
        futures::join!(load::run(work, Arc::new(target), options(), Arc::new(()), stop.clone(), env()), breaks);
    let report = report.unwrap();
    assert!(report.interrupted && !report.clean(), "{report:?}");
    assert_eq!((report.jobs_unfinished, report.lost), (256, 0), "{report:?}");
    assert_eq!(cluster.books.lock().unwrap().submitted.len(), 256, "no more than may be in flight");
}

#[tokio::test]
async fn without_a_cluster_there_is_no_run() {
    let target = HttpTarget::new("http://127.0.0.1:1", env()).unwrap();
    let refused = load::run(
        workload::provisions(1, 1),
        Arc::new(target.clone()),
        options(),
        Arc::new(()),
        CancellationToken::new(),
        env(),
    )
    .await;
    assert!(refused.unwrap_err().retryable());
    let named = Options { run: Some("No Name".to_owned()), ..options() };
    let refused =
        load::run(workload::provisions(1, 1), Arc::new(target), named, Arc::new(()), CancellationToken::new(), env())
            .await;
    assert_eq!(refused.unwrap_err(), load::Error::RunName);
    assert!(HttpTarget::new("nonsense", env()).is_err());
}
