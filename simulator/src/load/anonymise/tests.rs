use serde_json::json;

use super::*;
use crate::trace::Trace;

fn at(second: u32) -> String {
    format!("2026-03-01T12:{:02}:{:02}.250+02:00", second / 60, second % 60)
}
fn event(kind: &str, id: &str, second: u32, subject: Option<&str>, data: Value) -> Value {
    let mut event = json!({"specversion": "1.0", "id": id, "source": "/secret/portal", "tenant": "acme-secret",
        "type": format!("io.cellbus.job.{kind}.v1"), "time": at(second), "data": data, "subject": subject});
    event.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    event
}
fn provision(id: &str, second: u32, name: &str, count: u64) -> Value {
    let data = json!({"name": name, "count": count, "vcpus": 4, "memory_mib": 8_192, "disk_gib": 40,
        "image": "secret-image", "labels": {"secret-owner": "secret person"}});
    event("provision", id, second, None, data)
}
fn outcome(state: &str, job: JobId, kind: &str, second: u32, vms: &Value) -> Value {
    let data = json!({"job_id": job, "type": kind, "state": state, "vms": vms});
    json!({"specversion": "1.0", "id": "x", "source": "/cellbus", "type": format!("io.cellbus.job.{state}.v1"),
        "tenant": "acme-secret", "time": at(second), "data": data})
}
fn job(id: &str) -> JobId {
    JobId::derive("acme-secret", "/secret/portal", id)
}
fn run(lines: &[Value]) -> (String, Summary) {
    let log: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let mut out = Vec::new();
    let summary = anonymise(log.as_bytes(), &mut out).unwrap();
    (String::from_utf8(out).unwrap(), summary)
}
fn problem(log: &str) -> String {
    anonymise(log.as_bytes(), io::sink()).unwrap_err().to_string()
}

#[test]
fn sizes_and_times_are_kept_and_names_are_not() {
    let lines = [
        provision("secret-1", 60, "secret-web", 2),
        event("stop", "secret-2", 61, Some("secret-web-0"), json!({})),
        provision("secret-3", 30, "secret-db", 1),
        event("delete", "secret-4", 90, Some("secret-web-1"), json!({})),
        event("delete", "secret-5", 95, Some(&job("secret-3").vm(0).to_string()), json!({})),
        event("delete", "secret-6", 96, Some("secret-older"), json!({})),
        outcome(
            "succeeded",
            job("secret-1"),
            "provision",
            62,
            &json!([{"id": job("secret-1").vm(0), "name": "secret-web-0"}]),
        ),
        // Sent twice, as its first answer was lost.
        provision("secret-1", 64, "secret-web", 2),
    ];
    let (out, summary) = run(&lines);
    assert_eq!(
        out,
        "name,tenant,cpu_milli,memory_mib,disk_gib,creation_time,deletion_time\n\
         vm-0,t-0,4000,8192,40,0.000,65.000\n\
         vm-1,t-0,4000,8192,40,30.000,\n\
         vm-2,t-0,4000,8192,40,30.000,60.000\n"
    );
    assert_eq!(
        summary,
        Summary { lines: 8, vms: 3, deleted: 2, tenants: 1, left_out: 2, older: 1, ..Summary::default() }
    );
    assert_eq!(Trace::read(out.as_bytes()).unwrap().vms, 3, "it is a trace");
}

/// Whatever is in a log, only what this writes is in the trace.
#[test]
fn nothing_of_the_log_s_words_is_left() {
    let listed = json!({"items": [{"job_id": job("l"), "tenant": "other-secret", "type": "provision", "state": "succeeded",
        "source": "/secret", "event_id": "secret", "vm": job("l").vm(0), "vms_total": 2, "accepted_at": at(5), "ended_at": null,
        "error": null}], "next_cursor": "secret"});
    let delete = json!({"job_id": job("m"), "tenant": "other-secret", "type": "delete", "state": "succeeded", "source": "/secret",
        "event_id": "secret", "vm": job("l").vm(1), "vms_total": 1, "accepted_at": at(9)});
    // Newest first, as jobs are listed.
    let (out, summary) = run(&[delete, listed, provision("secret-1", 3, "secret,\n\"name", 1)]);
    assert_eq!((summary.vms, summary.unknown_size, summary.deleted, summary.tenants), (3, 2, 1, 2), "{out}");
    assert!(out.contains("vm-0,t-0,4000") && out.contains("vm-2,t-1,1000,1024,1,2.000,6.000"), "{out}");
    let words: std::collections::BTreeSet<&str> = out.split(['\n', ',']).collect();
    for word in words {
        let known = ["name", "tenant", "cpu_milli", "memory_mib", "disk_gib", "creation_time", "deletion_time"];
        let numbered = word.trim_start_matches("vm-").trim_start_matches("t-");
        assert!(known.contains(&word) || numbered.is_empty() || numbered.parse::<f64>().is_ok(), "{word}");
    }
}

#[test]
fn what_failed_was_never_there() {
    let lines = [
        outcome("failed", job("a"), "provision", 9, &json!([])),
        provision("a", 1, "one", 3),
        provision("b", 2, "two", 1),
        event("delete", "c", 8, Some("two"), json!({})),
        outcome("failed", job("c"), "delete", 9, &json!([])),
        // Only its outcome is in the log.
        outcome("succeeded", job("d"), "provision", 7, &json!([{"id": job("d").vm(0), "name": "three"}])),
    ];
    let (out, summary) = run(&lines);
    assert_eq!((summary.never_made, summary.vms, summary.deleted, summary.unknown_size), (3, 2, 0, 1), "{out}");
    assert!(out.contains("vm-0,t-0,4000,8192,40,0.000,\nvm-1,t-0,1000,1024,1,5.000,\n"), "{out}");
}

#[test]
fn a_name_that_is_used_again_is_another_vm() {
    let lines = [
        event("delete", "d2", 40, Some("web"), json!({})),
        provision("p1", 10, "web", 1),
        event("delete", "d1", 20, Some("web"), json!({})),
        provision("p2", 30, "web", 1),
    ];
    let (out, _) = run(&lines);
    assert!(out.ends_with("vm-0,t-0,4000,8192,40,0.000,10.000\nvm-1,t-0,4000,8192,40,20.000,30.000\n"), "{out}");
}

#[test]
fn bad_lines_say_where_they_are() {
    let good = provision("a", 1, "one", 1).to_string();
    let without = |field: &str| {
        let mut event = provision("b", 1, "two", 1);
        event.as_object_mut().unwrap().remove(field);
        format!("{good}\n\n{event}\n")
    };
    assert_eq!(problem(&without("time")), "line 3: the event has no time, so that nothing says when it was");
    assert_eq!(problem(&without("tenant")), "line 3: the event has no tenant");
    assert!(problem(&without("data")).starts_with("line 3: the provision has no vcpus"));
    assert!(problem(&format!("{good}\n{{\n")).starts_with("line 2: it is no JSON"));
    assert!(problem("[]\n").starts_with("line 1: it is neither a CloudEvent"));
    assert!(problem("{\"items\": 5}").starts_with("line 1: items is no list"));
    assert!(problem("{\"items\": [{}]}").starts_with("line 1: it is no job as the API lists it"));
    assert!(problem(&provision("a", 1, "one", 10_001).to_string()).contains("1 to 10000 VMs, not 10001"));
    let late = good.replace("2026-03-01T", "yesterday ");
    assert_eq!(problem(&late), "line 1: the time is none of RFC 3339");
    let long = format!("{good}\n\"{}\"\n", "x".repeat(LINE_BYTES_MAX as usize));
    assert_eq!(problem(&long), "line 2: it is longer than 4194304 bytes");
    assert_eq!(run(&[]).1, Summary::default());
}
