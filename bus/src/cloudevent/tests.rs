use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::ids::{JobId, ManagerName, VmId};
use crate::job::{
    Digest, JobKind, Labels, Layout, MigrateTo, Notify, Operation, Policy, Power, Provision, Request, Size, StopMode,
    Target,
};

const ANY: TenantRule<'static> = TenantRule { from: TenantFrom::Attribute, known: &Tenants::Any };

fn parse(body: &[u8]) -> Result<Job, Rejection> {
    parse_structured(body, ANY, &Limits::default())
}
fn parse_value(event: &Value) -> Result<Job, Rejection> {
    parse(&serde_json::to_vec(event).unwrap())
}
fn provision() -> Value {
    json!({
        "specversion": "1.0", "id": "order-4711", "source": "/portal/eu", "type": "io.cellbus.job.provision.v1",
        "tenant": "acme", "datacontenttype": "application/json", "traceparent": "00-abc-01",
        "data": {"name": "web", "count": 3, "vcpus": 4, "memory_mib": 8192, "disk_gib": 40, "image": "debian-12",
                 "labels": {"app": "shop"}, "require": {"gear": "g3"}, "policy": {"spread": "manager"},
                 "deadline_seconds": 600}
    })
}
fn operation(kind: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": "op-1", "source": "/t", "tenant": "acme",
           "type": format!("io.cellbus.job.{kind}.v1"), "subject": "web-0", "data": data})
}
fn with(mut event: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    event.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value);
    event
}
fn without(mut event: Value, pointer: &str) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    event.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
    event
}
#[track_caller]
fn refused(body: &[u8], code: Code, pointer: &str) -> Rejection {
    let rejection = parse(body).expect_err("it is refused");
    assert_eq!((rejection.code, rejection.pointer.as_str()), (code, pointer), "{rejection}");
    assert!(rejection.message.len() > 10 && rejection.message.len() < 600, "{rejection}");
    assert!(!rejection.message.chars().any(char::is_control), "{rejection:?}");
    rejection
}
#[track_caller]
fn refused_value(event: &Value, code: Code, pointer: &str) -> Rejection {
    refused(&serde_json::to_vec(event).unwrap(), code, pointer)
}

#[test]
fn the_event_of_the_interface_is_a_job() {
    let job = parse_value(&provision()).unwrap();
    assert_eq!(job.id, JobId::derive("acme", "/portal/eu", "order-4711"));
    assert_eq!(job.extensions.get("traceparent").map(String::as_str), Some("00-abc-01"));
    assert_eq!(job.extensions.len(), 1);
    assert_eq!(job.deadline, Some(std::time::Duration::from_secs(600)));
    let Request::Provision(p) = job.request else { panic!("a provision") };
    assert_eq!((p.count, p.size.vcpus, p.size.memory_mib, p.size.disk_gib), (3, 4, 8192, 40));
    assert_eq!(p.labels.get("app").map(String::as_str), Some("shop"));
    assert_eq!(p.require.get("gear").map(String::as_str), Some("g3"));
    assert_eq!(p.power, Power::On);
}

#[test]
fn every_type_is_taken() {
    for (kind, data, expected) in [
        ("start", json!({}), Operation::Start),
        ("stop", json!({"mode": "hard"}), Operation::Stop(StopMode::Hard)),
        ("restart", json!({}), Operation::Restart(StopMode::Graceful)),
        ("suspend", json!({}), Operation::Suspend),
        ("resume", json!({}), Operation::Resume),
        ("resize", json!({"vcpus": 8}), Operation::Resize { vcpus: Some(8), memory_mib: None, disk_gib: None }),
        ("snapshot", json!({"snapshot": "s1"}), Operation::Snapshot("s1".parse().unwrap())),
        ("revert", json!({"snapshot": "s1"}), Operation::Revert("s1".parse().unwrap())),
        ("snapshot-delete", json!({"snapshot": "s1"}), Operation::SnapshotDelete("s1".parse().unwrap())),
        ("migrate", json!({"host": "h-1"}), Operation::Migrate(MigrateTo::Host("h-1".parse().unwrap()))),
        ("migrate", json!({"manager": "m"}), Operation::Migrate(MigrateTo::Manager("m".parse().unwrap()))),
        ("delete", json!({}), Operation::Delete),
    ] {
        let job = parse_value(&operation(kind, data)).unwrap();
        assert_eq!(job.request.kind().as_str(), kind);
        assert_eq!(job.request, Request::Operate(Target::Name("web-0".parse().unwrap()), expected));
    }
    // No data at all, and a subject that is an id.
    let id = JobId::derive("a", "b", "c").vm(1);
    let event = without(with(operation("delete", json!({})), "/subject", json!(id.to_string())), "/data");
    assert_eq!(parse_value(&event).unwrap().request, Request::Operate(Target::Id(id), Operation::Delete));
    let job = JobId::derive("a", "b", "c");
    let event = with(operation("cancel", json!({})), "/subject", json!(job.to_string()));
    assert_eq!(parse_value(&event).unwrap().request, Request::Cancel(job));
}

#[test]
fn what_is_not_json_is_refused() {
    refused(b"", Code::NotJson, "");
    refused(b"{", Code::NotJson, "");
    refused(b"\xff\xfe", Code::NotJson, "");
    refused(br#"{"specversion":"1.0"} x"#, Code::NotJson, "");
    refused(br#"{"specversion":"\ud800"}"#, Code::NotJson, "");
    refused(br#"{"a":{"b":tru}}"#, Code::NotJson, "");
    refused(b"[]", Code::NotAnEvent, "");
    refused(b"17", Code::NotAnEvent, "");
    refused(b"null", Code::NotAnEvent, "");
}

#[test]
fn a_key_that_is_there_twice_is_refused_wherever_it_is() {
    refused(br#"{"id":"1","id":"1"}"#, Code::DuplicateKey, "/id");
    refused(br#"{"id":"1","data":{"name":"a","na\u006de":"b"}}"#, Code::DuplicateKey, "/data/name");
    refused(br#"{"data":{"labels":{"a":"1","a":"2"}},"id":"1"}"#, Code::DuplicateKey, "/data/labels/a");
}

#[test]
fn deep_nesting_is_refused() {
    for depth in [20, 127, 129, 100_000] {
        let body = format!("{}1{}", r#"{"data":"#.repeat(depth), "}".repeat(depth));
        let rejection = parse(body.as_bytes()).unwrap_err();
        assert_eq!(rejection.code, Code::TooDeep, "{depth}");
        // Lists are never wanted, so they are skipped and refused as such.
        let body = format!(r#"{{"data":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert_eq!(parse(body.as_bytes()).unwrap_err().code, Code::MissingAttribute, "{depth}");
    }
}

#[test]
fn what_is_too_large_is_refused() {
    let body = vec![b' '; (4 << 20) + 1];
    refused(&body, Code::TooLarge, "");
    let many: Labels = (0..300).map(|i| (format!("k{i}"), String::new())).collect();
    refused_value(&with(provision(), "/data/labels", json!(many)), Code::TooLarge, "/data/labels");
    let many: Labels = (0..65).map(|i| (format!("k{i}"), String::new())).collect();
    refused_value(&with(provision(), "/data/labels", json!(many)), Code::InvalidLabel, "/data/labels");
    let mut event = provision();
    for i in 0..33 {
        event = with(event, &format!("/x{i}"), json!("y"));
    }
    assert_eq!(parse_value(&event).unwrap_err().code, Code::TooLarge);
}

#[test]
fn attributes_are_checked() {
    for name in ["specversion", "id", "source", "type", "tenant"] {
        let pointer = format!("/{name}");
        refused_value(&without(provision(), &pointer), Code::MissingAttribute, &pointer);
        refused_value(&with(provision(), &pointer, Value::Null), Code::MissingAttribute, &pointer);
        refused_value(&with(provision(), &pointer, json!({"a": 1})), Code::InvalidAttribute, &pointer);
    }
    refused_value(&with(provision(), "/specversion", json!("0.3")), Code::UnsupportedSpecversion, "/specversion");
    refused_value(&with(provision(), "/id", json!("")), Code::InvalidAttribute, "/id");
    refused_value(&with(provision(), "/id", json!("x".repeat(256))), Code::NameTooLong, "/id");
    refused_value(&with(provision(), "/source", json!("a\u{0}b")), Code::ControlCharacter, "/source");
    refused_value(&with(provision(), "/source", json!("x".repeat(513))), Code::NameTooLong, "/source");
    refused_value(&with(provision(), "/time", json!("yesterday")), Code::InvalidAttribute, "/time");
    parse_value(&with(provision(), "/time", json!("2026-11-21T12:00:00Z"))).unwrap();
    refused_value(&with(provision(), "/after", json!("order-1")), Code::InvalidAttribute, "/after");
    let own = JobId::derive("acme", "/portal/eu", "order-4711").to_string();
    refused_value(&with(provision(), "/after", json!(own)), Code::InvalidAttribute, "/after");
    refused_value(&with(provision(), "/notify", json!("all")), Code::InvalidAttribute, "/notify");
    assert_eq!(parse_value(&with(provision(), "/notify", json!("accepted"))).unwrap().notify, Notify::Accepted);
    let event = with(provision(), "/datacontenttype", json!("application/xml"));
    refused_value(&event, Code::UnsupportedContentType, "/datacontenttype");
    refused_value(&with(provision(), "/data_base64", json!("e30=")), Code::UnsupportedContentType, "/data_base64");
    let hint = refused_value(&with(provision(), "/Subject", json!("x")), Code::InvalidAttribute, "/Subject");
    assert!(hint.message.contains("did you mean `subject`"), "{hint}");
    refused_value(&with(provision(), "/x-y", json!("x")), Code::InvalidAttribute, "/x-y");
    refused_value(&with(provision(), "/xy", json!("x".repeat(1025))), Code::NameTooLong, "/xy");
    refused_value(&with(provision(), "/xy", json!("\n")), Code::ControlCharacter, "/xy");
    refused_value(&with(provision(), "/xy", json!(1.5)), Code::InvalidAttribute, "/xy");
    assert_eq!(parse_value(&with(provision(), "/xy", json!(-5))).unwrap().extensions["xy"], "-5");
    let unknown = with(provision(), "/type", json!("io.cellbus.job.provison.v1"));
    let hint = refused_value(&unknown, Code::UnknownType, "/type");
    assert!(hint.message.contains("did you mean `io.cellbus.job.provision.v1`"), "{hint}");
    refused_value(&with(provision(), "/type", json!("io.cellbus.job..v1")), Code::UnknownType, "/type");
}

#[test]
fn subjects_are_checked() {
    refused_value(&without(operation("start", json!({})), "/subject"), Code::MissingAttribute, "/subject");
    refused_value(&with(operation("start", json!({})), "/subject", json!("")), Code::InvalidSubject, "/subject");
    refused_value(&with(operation("start", json!({})), "/subject", json!("a b")), Code::InvalidSubject, "/subject");
    refused_value(&with(operation("cancel", json!({})), "/subject", json!("web")), Code::InvalidSubject, "/subject");
    refused_value(&without(operation("cancel", json!({})), "/subject"), Code::MissingAttribute, "/subject");
}

#[test]
fn fields_are_checked() {
    let hint = refused_value(&with(provision(), "/data/vcpu", json!(4)), Code::UnknownField, "/data/vcpu");
    assert!(hint.message.contains("did you mean `vcpus`"), "{hint}");
    refused_value(&operation("start", json!({"mode": "hard"})), Code::UnknownField, "/data/mode");
    let cancel = with(
        operation("cancel", json!({"deadline_seconds": 1})),
        "/subject",
        json!(JobId::derive("a", "b", "c").to_string()),
    );
    refused_value(&cancel, Code::UnknownField, "/data/deadline_seconds");
    for name in ["name", "vcpus", "memory_mib", "disk_gib", "image"] {
        let pointer = format!("/data/{name}");
        refused_value(&without(provision(), &pointer), Code::MissingField, &pointer);
        refused_value(&with(provision(), &pointer, json!([1])), Code::WrongType, &pointer);
    }
    refused_value(&without(provision(), "/data"), Code::MissingField, "/data/name");
    refused_value(&with(provision(), "/data", json!("x")), Code::WrongType, "/data");
    for name in ["vcpus", "memory_mib", "disk_gib"] {
        let pointer = format!("/data/{name}");
        refused_value(&with(provision(), &pointer, json!("4")), Code::WrongType, &pointer);
        refused_value(&with(provision(), &pointer, json!(4.5)), Code::WrongType, &pointer);
        refused_value(&with(provision(), &pointer, json!(true)), Code::WrongType, &pointer);
        refused_value(&with(provision(), &pointer, json!(0)), Code::BelowMinimum, &pointer);
        refused_value(&with(provision(), &pointer, json!(-1)), Code::NegativeNumber, &pointer);
        refused_value(&with(provision(), &pointer, json!(1_000_000_000_000_000_000_u64)), Code::AboveMaximum, &pointer);
        refused_value(&with(provision(), &pointer, json!(1e40)), Code::AboveMaximum, &pointer);
    }
    let body = serde_json::to_string(&provision()).unwrap().replace("8192", "1e999");
    refused(body.as_bytes(), Code::AboveMaximum, "/data/memory_mib");
    for count in [json!(0), json!(-3), json!(10_001), json!(1_000_000_000)] {
        refused_value(&with(provision(), "/data/count", count), Code::CountOutOfRange, "/data/count");
    }
    refused_value(&with(provision(), "/data/power", json!("maybe")), Code::InvalidValue, "/data/power");
    refused_value(&with(provision(), "/data/deadline_seconds", json!(0)), Code::BelowMinimum, "/data/deadline_seconds");
    refused_value(
        &with(provision(), "/data/deadline_seconds", json!(2_592_001)),
        Code::AboveMaximum,
        "/data/deadline_seconds",
    );
    refused_value(&with(provision(), "/data/image", json!("")), Code::InvalidValue, "/data/image");
    refused_value(&with(provision(), "/data/image", json!("é".repeat(256))), Code::NameTooLong, "/data/image");
    refused_value(&with(provision(), "/data/image", json!("a\u{7f}")), Code::ControlCharacter, "/data/image");
    refused_value(&operation("resize", json!({})), Code::NothingToChange, "/data");
    refused_value(&operation("snapshot", json!({})), Code::MissingField, "/data/snapshot");
    refused_value(&operation("migrate", json!({})), Code::MissingField, "/data");
    refused_value(&operation("migrate", json!({"host": "h", "manager": "m"})), Code::InvalidValue, "/data/manager");
    refused_value(&operation("stop", json!({"mode": 7})), Code::WrongType, "/data/mode");
}

#[test]
fn names_are_checked() {
    refused_value(&with(provision(), "/data/name", json!("a".repeat(2 << 20))), Code::NameTooLong, "/data/name");
    refused_value(&with(provision(), "/data/name", json!("a".repeat(64))), Code::NameTooLong, "/data/name");
    refused_value(&with(provision(), "/data/name", json!("a\nb")), Code::ControlCharacter, "/data/name");
    refused_value(&with(provision(), "/data/name", json!("-a")), Code::InvalidName, "/data/name");
    refused_value(&with(provision(), "/data/name", json!("")), Code::InvalidName, "/data/name");
    // The VMs' own names must be names too: web...-2 has 64.
    refused_value(&with(provision(), "/data/name", json!("a".repeat(62))), Code::NameTooLong, "/data/name");
    parse_value(&with(provision(), "/data/name", json!("a".repeat(61)))).unwrap();
    refused_value(&with(provision(), "/tenant", json!("Acme")), Code::InvalidName, "/tenant");
}

#[test]
fn labels_are_checked() {
    refused_value(&with(provision(), "/data/labels", json!({"a b": "x"})), Code::InvalidLabel, "/data/labels/a b");
    refused_value(&with(provision(), "/data/labels", json!({"": "x"})), Code::InvalidLabel, "/data/labels/");
    refused_value(&with(provision(), "/data/labels", json!({"a/b": 1})), Code::WrongType, "/data/labels/a~1b");
    refused_value(
        &with(provision(), "/data/require", json!({"a": "x".repeat(256)})),
        Code::NameTooLong,
        "/data/require/a",
    );
    refused_value(&with(provision(), "/data/require", json!({"a": "\t"})), Code::ControlCharacter, "/data/require/a");
    refused_value(&with(provision(), "/data/require", json!("gear")), Code::WrongType, "/data/require");
}

#[test]
fn policies_are_read_and_checked() {
    let policy_of = |policy: Value| match parse_value(&with(provision(), "/data/policy", policy)).unwrap().request {
        Request::Provision(p) => p.policy,
        Request::Operate(..) | Request::Cancel(_) => panic!("a provision"),
    };
    assert_eq!(policy_of(json!({})), Policy::default());
    assert_eq!(policy_of(json!({"pack": "host"})), Policy { hosts: Layout::Pack, ..Policy::default() });
    assert_eq!(
        policy_of(json!({"pack": "manager", "spread": "host"})),
        Policy { managers: Layout::Pack, ..Policy::default() }
    );
    let groups = policy_of(json!({"affinity": "g", "anti_affinity": "h"}));
    assert_eq!(groups.affinity, Some("g".parse().unwrap()));
    let policy = |policy| with(provision(), "/data/policy", policy);
    refused_value(&policy(json!({"pack": "host", "spread": "host"})), Code::ContradictoryPolicy, "/data/policy/pack");
    refused_value(
        &policy(json!({"affinity": "g", "anti_affinity": "g"})),
        Code::ContradictoryPolicy,
        "/data/policy/anti_affinity",
    );
    refused_value(&policy(json!({"pack": "rack"})), Code::InvalidValue, "/data/policy/pack");
    refused_value(&policy(json!({"speard": "host"})), Code::UnknownField, "/data/policy/speard");
    refused_value(&policy(json!("spread")), Code::WrongType, "/data/policy");
}

#[test]
fn the_tenant_is_the_senders() {
    let body = serde_json::to_vec(&provision()).unwrap();
    let from = |tenant| TenantRule { from: TenantFrom::Sender(tenant), known: &Tenants::Any };
    assert!(parse_structured(&body, from("acme"), &Limits::default()).is_ok());
    let other = parse_structured(&body, from("globex"), &Limits::default()).unwrap_err();
    assert_eq!((other.code, other.pointer.as_str()), (Code::TenantMismatch, "/tenant"));
    let silent = serde_json::to_vec(&without(provision(), "/tenant")).unwrap();
    let job = parse_structured(&silent, from("globex"), &Limits::default()).unwrap();
    assert_eq!(job.tenant.as_str(), "globex");
    assert_eq!(job.id, JobId::derive("globex", "/portal/eu", "order-4711"));

    let known = Tenants::Listed(BTreeSet::from(["acme2".parse().unwrap()]));
    let rule = TenantRule { from: TenantFrom::Attribute, known: &known };
    let unknown = parse_structured(&body, rule, &Limits::default()).unwrap_err();
    assert_eq!((unknown.code, unknown.pointer.as_str()), (Code::UnknownTenant, "/tenant"));
}

#[test]
fn the_digest_depends_on_what_is_asked_for_only() {
    let digest = |event: &Value| parse_value(event).unwrap().digest;
    let one = digest(&provision());
    assert_eq!(one, digest(&with(provision(), "/time", json!("2026-11-21T12:00:00Z"))));
    assert_eq!(one, digest(&with(provision(), "/traceparent", json!("00-def-01"))));
    assert_eq!(one, digest(&with(provision(), "/data/power", json!("on"))));
    assert_eq!(one, digest(&with(provision(), "/data/policy", Value::Null)));
    for other in [
        with(provision(), "/data/count", json!(4)),
        with(provision(), "/data/vcpus", json!(5)),
        with(provision(), "/data/labels/app", json!("shop2")),
        with(provision(), "/data/power", json!("off")),
        with(provision(), "/data/deadline_seconds", json!(601)),
        with(provision(), "/after", json!(JobId::derive("a", "b", "c").to_string())),
    ] {
        assert_ne!(one, digest(&other), "{other}");
    }
    // Labels and requirements are told apart, and so are keys and values.
    let a = with(with(provision(), "/data/labels", json!({"x": "y"})), "/data/require", json!({}));
    let b = with(with(provision(), "/data/require", json!({"x": "y"})), "/data/labels", json!({}));
    assert_ne!(digest(&a), digest(&b));
    // Remembered for weeks, over upgrades: it must not change between builds.
    assert_eq!(format!("{one:?}"), "358356144c007cfac11311acd05fe538");
}

#[test]
fn binary_mode_is_the_same_job() {
    let limits = Limits::default();
    let data = serde_json::to_vec(&provision()["data"]).unwrap();
    let headers = |prefix: &str| -> Vec<(String, String)> {
        let mut headers: Vec<(String, String)> = [
            ("specversion", "1.0"),
            ("id", "order-4711"),
            ("source", "/portal/eu"),
            ("type", "io.cellbus.job.provision.v1"),
            ("tenant", "acme"),
            ("traceparent", "00-abc-01"),
        ]
        .map(|(name, value)| (format!("{prefix}{name}"), value.to_owned()))
        .into();
        headers.push(("content-type".to_owned(), "application/json; charset=utf-8".to_owned()));
        headers.push(("accept".to_owned(), "*/*".to_owned()));
        headers
    };
    let expected = parse_value(&provision()).unwrap();
    for prefix in ["ce-", "ce_"] {
        assert_eq!(mode(&headers(prefix)).unwrap(), Mode::Binary);
        assert_eq!(parse_binary(&headers(prefix), &data, ANY, &limits).unwrap(), expected);
        assert_eq!(parse_message(&headers(prefix), &data, ANY, &limits).unwrap(), expected);
    }
    // In one piece it needs no headers.
    for prefix in ["ce-", "ce_"] {
        let piece = in_one_piece(&headers(prefix), &data).unwrap();
        assert_eq!(parse_structured(&piece, ANY, &limits).unwrap(), expected);
    }
    assert_eq!(in_one_piece(&headers("ce-"), b"no json"), None);
    assert_eq!(in_one_piece(&[("content-type", "application/cloudevents+json")], &data), None);
    // Percent-encoding is of HTTP and NATS, not of Kafka.
    let mut encoded = headers("ce-");
    encoded[2].1 = "/%C3%BC%25".to_owned();
    assert_eq!(parse_binary(&encoded, &data, ANY, &limits).unwrap().source, "/ü%");
    let mut raw = headers("ce_");
    raw[2].1 = "/%C3".to_owned();
    assert_eq!(parse_binary(&raw, &data, ANY, &limits).unwrap().source, "/%C3");
    encoded[2].1 = "/%C3".to_owned();
    let bad = parse_binary(&encoded, &data, ANY, &limits).unwrap_err();
    assert_eq!((bad.code, bad.pointer.as_str()), (Code::InvalidAttribute, "/source"));

    let mut twice = headers("ce-");
    twice.push(("ce_id".to_owned(), "other".to_owned()));
    assert_eq!(parse_binary(&twice, &data, ANY, &limits).unwrap_err().code, Code::DuplicateKey);
    let bad = parse_binary(&headers("ce-"), b"{\"name\":1,\"name\":2}", ANY, &limits).unwrap_err();
    assert_eq!((bad.code, bad.pointer.as_str()), (Code::DuplicateKey, "/data/name"));

    let content = |value: &str| vec![("content-type".to_owned(), value.to_owned())];
    assert_eq!(mode(&content("application/cloudevents+json; charset=UTF-8")).unwrap(), Mode::Structured);
    assert_eq!(mode(&content("application/cloudevents-batch+json")).unwrap(), Mode::Batch);
    assert_eq!(mode(&content("application/json")).unwrap(), Mode::Structured);
    assert_eq!(mode::<&str, &str>(&[]).unwrap(), Mode::Structured);
    assert_eq!(mode(&content("application/cloudevents+avro")).unwrap_err().code, Code::UnsupportedContentType);
    assert_eq!(mode(&content("text/csv")).unwrap_err().code, Code::UnsupportedContentType);
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    let batch = |events: &[Value]| parse_batch(&serde_json::to_vec(events).unwrap(), ANY, &Limits::default());
    let second = with(provision(), "/id", json!("order-4712"));
    assert_eq!(batch(&[provision(), second.clone()]).unwrap().len(), 2);
    // The same event twice is the same job.
    assert_eq!(batch(&[provision(), provision()]).unwrap().len(), 2);

    let zero = with(second.clone(), "/data/vcpus", json!(0));
    let BatchRejection::Members(members) = batch(&[provision(), zero, json!(7), second.clone()]).unwrap_err() else {
        panic!("members are refused")
    };
    let seen: Vec<_> = members.iter().map(|(index, r)| (*index, r.code, r.pointer.as_str())).collect();
    assert_eq!(seen, [(1, Code::BelowMinimum, "/1/data/vcpus"), (2, Code::NotAnEvent, "/2")]);

    // A member that cannot even be read does not hide the others.
    let body =
        format!(r#"[{{"id":"1","id":"2"}},{},{{"data":{}1{}}}]"#, provision(), r#"{"a":"#.repeat(99), "}".repeat(99));
    let BatchRejection::Members(members) = parse_batch(body.as_bytes(), ANY, &Limits::default()).unwrap_err() else {
        panic!("members are refused")
    };
    let seen: Vec<_> = members.iter().map(|(index, r)| (*index, r.code)).collect();
    assert_eq!(seen, [(0, Code::DuplicateKey), (2, Code::TooDeep)]);

    let other = with(provision(), "/data/vcpus", json!(5));
    let BatchRejection::Members(members) = batch(&[provision(), other]).unwrap_err() else { panic!("a conflict") };
    assert_eq!((members[0].0, members[0].1.code), (1, Code::BatchConflict));

    let whole = |body: &[u8], limits: &Limits| match parse_batch(body, ANY, limits).unwrap_err() {
        BatchRejection::Whole(rejection) => rejection.code,
        BatchRejection::Members(members) => panic!("{members:?}"),
    };
    let limits = Limits::default();
    assert_eq!(whole(b"[]", &limits), Code::NotAnEvent);
    assert_eq!(whole(b"{}", &limits), Code::NotAnEvent);
    assert_eq!(whole(b"[{}", &limits), Code::NotJson);
    assert_eq!(whole(b"[{}] 1", &limits), Code::NotJson);
    assert_eq!(whole(b"[1,2,3]", &Limits { batch_max: 2, ..limits }), Code::TooLarge);
    assert_eq!(whole(b"[1,2,3]", &Limits { body_bytes_max: 2, ..limits }), Code::TooLarge);
    let number = format!("[{}]", provision()).replace("8192", "1e999");
    let BatchRejection::Whole(number) = parse_batch(number.as_bytes(), ANY, &limits).unwrap_err() else {
        panic!("whole")
    };
    assert_eq!((number.code, number.pointer.as_str()), (Code::AboveMaximum, "/0/data/memory_mib"));
}

#[test]
fn outgoing_events_are_cloudevents() {
    let job = parse_value(&with(provision(), "/subjectx", json!("kept"))).unwrap();
    let name = "web-0".parse().unwrap();
    let data = OutcomeData {
        job_id: job.id,
        vms: vec![VmData { id: job.id.vm(0), name: &name, manager: Some("m-1".into()), host: None, state: "running" }],
        vms_total: 1,
        error: None,
    };
    let event = OutgoingEvent {
        id: "x/succeeded",
        kind: EventKind::Succeeded,
        tenant: &job.tenant,
        subject: &job.id.to_string(),
        time: crate::WallMs(0),
        extensions: &job.extensions,
        data,
    };
    let value: Value = serde_json::from_slice(&event.encode()).unwrap();
    assert_eq!(value["type"], "io.cellbus.job.succeeded.v1");
    assert_eq!(value["time"], "1970-01-01T00:00:00.000Z");
    assert_eq!(value["subjectx"], "kept");
    assert_eq!(value["traceparent"], "00-abc-01");
    assert_eq!(value["data"]["vms"][0]["manager"], "m-1");
    assert!(value["data"].get("error").is_none());
}

#[test]
fn the_documented_table_is_the_one_in_force() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/docs/jobs.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- fields: begin -->\n", "<!-- fields: end -->");
    let (head, rest) = page.split_once(begin).unwrap();
    let (table, tail) = rest.split_once(end).unwrap();
    let wanted = format!("\n{}\n", fields::markdown());
    if std::env::var_os("CELLBUS_BLESS").is_some() {
        std::fs::write(path, format!("{head}{begin}{wanted}{end}{tail}")).unwrap();
        return;
    }
    assert!(
        table == wanted,
        "ops/docs/jobs.md is out of date: run this test with CELLBUS_BLESS=1 and look at what changed"
    );
}

#[test]
fn codes_are_all_different() {
    let codes: BTreeSet<&str> = Code::ALL.iter().map(|c| c.as_str()).collect();
    assert_eq!(codes.len(), Code::ALL.len());
}

// ── properties ──

fn short() -> impl Strategy<Value = String> {
    "[A-Za-z0-9][A-Za-z0-9._-]{0,20}"
}
fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map("[A-Za-z0-9._/-]{1,63}", "[^\\p{Cc}]{0,40}", 0..5)
}
fn a_request() -> impl Strategy<Value = Request> {
    let size = (1..=fields::VCPUS_MAX, 1..=fields::MEMORY_MIB_MAX, 1..=fields::DISK_GIB_MAX);
    let layout = prop_oneof![
        Just((Layout::Spread, Layout::Spread)),
        Just((Layout::Pack, Layout::Spread)),
        Just((Layout::Spread, Layout::Pack))
    ];
    let provision = (short(), 1..=10_000_u32, size, "[^\\p{Cc}]{1,255}", labels(), labels(), layout, any::<bool>())
        .prop_map(|(name, count, (vcpus, memory_mib, disk_gib), image, labels, require, (hosts, managers), on)| {
            Request::Provision(Provision {
                name: name.parse().unwrap(),
                count,
                size: Size { vcpus, memory_mib, disk_gib },
                image,
                labels,
                require,
                policy: Policy { hosts, managers, affinity: None, anti_affinity: Some("g".parse().unwrap()) },
                power: if on { Power::On } else { Power::Off },
            })
        });
    let operation = prop_oneof![
        Just(Operation::Start),
        Just(Operation::Stop(StopMode::Hard)),
        Just(Operation::Restart(StopMode::Graceful)),
        Just(Operation::Suspend),
        Just(Operation::Resume),
        Just(Operation::Delete),
        (1..=1024_u32).prop_map(|v| Operation::Resize {
            vcpus: Some(v),
            memory_mib: None,
            disk_gib: Some(u64::from(v))
        }),
        short().prop_map(|s| Operation::Snapshot(s.parse().unwrap())),
        short().prop_map(|s| Operation::Revert(s.parse().unwrap())),
        short().prop_map(|s| Operation::SnapshotDelete(s.parse().unwrap())),
        short().prop_map(|s| Operation::Migrate(MigrateTo::Host(s.parse().unwrap()))),
        short().prop_map(|s| Operation::Migrate(MigrateTo::Manager(s.parse::<ManagerName>().unwrap()))),
    ];
    let target = prop_oneof![
        any::<u128>().prop_map(|n| Target::Id(VmId::from_uuid(uuid::Uuid::from_u128(n)))),
        short().prop_map(|s| Target::Name(s.parse().unwrap())),
    ];
    prop_oneof![
        provision,
        (target, operation).prop_map(|(target, operation)| Request::Operate(target, operation)),
        any::<u128>().prop_map(|n| Request::Cancel(JobId::from_uuid(uuid::Uuid::from_u128(n)))),
    ]
}

/// An event with one place broken by something odd.
fn nearly_an_event() -> impl Strategy<Value = Vec<u8>> {
    let odd = prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!({})),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        ".*".prop_map(|s| json!(s)),
    ];
    let places = prop::sample::select(vec![
        "/id",
        "/type",
        "/subject",
        "/after",
        "/data",
        "/data/name",
        "/data/count",
        "/data/vcpus",
        "/data/labels",
        "/data/policy",
        "/data/labels/app",
        "/data/deadline_seconds",
        "/time",
        "/x",
    ]);
    (places, odd, any::<prop::sample::Index>(), any::<u8>(), any::<bool>()).prop_map(|(place, odd, at, byte, flip)| {
        let mut body = serde_json::to_vec(&with(provision(), place, odd)).unwrap();
        if flip {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&body);
        let _ = parse_batch(&body, ANY, &Limits::default());
        let headers = [("ce-id", "1"), ("ce-source", "s"), ("ce-specversion", "1.0"), ("ce-tenant", "a"), ("ce-type", "io.cellbus.job.delete.v1")];
        let _ = parse_binary(&headers, &body, ANY, &Limits::default());
    }

    #[test]
    fn nearly_events_never_panic_and_batches_agree(body in nearly_an_event()) {
        let one = parse(&body);
        let batch = [b"[", body.as_slice(), b"]"].concat();
        match (one, parse_batch(&batch, ANY, &Limits::default())) {
            (Ok(job), Ok(jobs)) => prop_assert_eq!(vec![job], jobs),
            (Err(_), Err(_)) => {}
            (one, batch) => prop_assert!(std::str::from_utf8(&body).is_err() || body[0] != b'{', "{one:?} {batch:?}"),
        }
    }

    #[test]
    fn headers_never_panic(name in "(ce-|ce_)?[a-z%]{0,9}", value in ".*") {
        let headers = [("ce-id".to_owned(), "1".to_owned()), (name, value)];
        let _ = mode(&headers);
        let _ = parse_message(&headers, b"{}", ANY, &Limits::default());
    }

    #[test]
    fn a_job_written_as_an_event_is_read_as_the_same_job(
        request in a_request(), tenant in "[a-z0-9-]{1,63}", source in "[^\\p{Cc}]{1,100}", id in "[^\\p{Cc}]{1,60}",
        after in prop::option::of(any::<u128>()), deadline in prop::option::of(1..=2_592_000_u64),
        extensions in prop::collection::btree_map("x[a-z0-9]{1,19}", "[^\\p{Cc}]{0,100}", 0..4),
    ) {
        let deadline = deadline.filter(|_| request.kind() != JobKind::Cancel).map(std::time::Duration::from_secs);
        let job = Job {
            id: JobId::derive(&tenant, &source, &id), tenant: tenant.parse().unwrap(), source, event_id: id,
            digest: Digest::default(), after: after.map(|n| JobId::from_uuid(uuid::Uuid::from_u128(n))), notify: Notify::Outcome,
            deadline, extensions, request,
        };
        let read = parse_value(&job_event(&job)).unwrap();
        prop_assert_eq!(Job { digest: Digest::default(), ..read.clone() }, job);
        prop_assert_eq!(parse_value(&job_event(&read)).unwrap(), read);
    }
}
