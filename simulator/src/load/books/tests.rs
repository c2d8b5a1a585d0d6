use super::super::workload;
use super::*;
use crate::trace::Trace;

fn books(work: Workload) -> Books {
    books_of(Options { seed: 1, ..Options::new("acme".parse().unwrap()) }, work)
}
fn books_of(options: Options, work: Workload) -> Books {
    Books::new("r1", &options, vec!["sim-0000".to_owned()], work, Mono::default())
}
fn take(books: &mut Books) -> (JobId, Value) {
    match books.next(Mono::default()) {
        Next::Send(prepared) => (prepared.job, serde_json::from_str(&prepared.json).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_delete_waits_for_its_create_and_holds_up_what_follows() {
    let csv = "vmid,cpu,memory,time,type\na,1,1,0,0\na,1,1,1,1\nb,1,1,2,0\nc,1,1,2,0\nc,1,1,3,1\n";
    let mut books = books(workload::trace(Trace::read(csv.as_bytes()).unwrap(), workload::Speedup::Max));
    let (create, event) = take(&mut books);
    assert_eq!(event["data"]["labels"], json!({"cellbus-load": "r1", "trace": "a"}));
    assert_eq!(event["data"]["memory_mib"], 1024);
    assert!(matches!(books.next(Mono::default()), Next::Blocked));
    assert!(books.ended(create, &How::Succeeded, Mono::default()));
    assert!(!books.ended(create, &How::Succeeded, Mono::default()), "an outcome may come twice and counts once");
    let (delete, event) = take(&mut books);
    assert_eq!(
        (event["type"].as_str(), event["subject"].as_str()),
        (Some("io.cellbus.job.delete.v1"), Some(create.to_string().as_str()))
    );
    let (_, b) = take(&mut books);
    assert_eq!(b["data"]["labels"]["trace"], "b", "a delete holds up nothing once it is sent");
    let (c, _) = take(&mut books);
    books.ended(delete, &How::Succeeded, Mono::default());
    books.ended(c, &How::Failed("no_room".to_owned(), "full".to_owned()), Mono::default());
    assert!(matches!(books.next(Mono::default()), Next::Over), "the delete of what was never made is left out");
    assert_eq!(
        books.counts,
        Counts { sent: 4, succeeded: 2, failed: 1, skipped: 1, created: 1, deleted: 1, ..Counts::default() }
    );
    assert_eq!(books.failures["no_room"], Failures { count: 1, first: "full".to_owned() });
}

#[test]
fn operations_are_legal_for_the_vm_they_meet() {
    let mix: workload::Mix =
        "start=1,stop=1,restart=1,suspend=1,resume=1,snapshot=1,revert=1,snapshot-delete=1,resize=1,migrate=1"
            .parse()
            .unwrap();
    let mut books = books(workload::operations(2_000, &mix, 3));
    let (mut power, mut snapshots, mut disk) = ("running", Vec::new(), 20);
    let mut kinds = std::collections::BTreeSet::new();
    for turn in 0..2_000 {
        let (job, event) = take(&mut books);
        let kind =
            event["type"].as_str().unwrap().trim_start_matches("io.cellbus.job.").trim_end_matches(".v1").to_owned();
        let snapshot = event["data"]["snapshot"].as_str().map(str::to_owned);
        match kind.as_str() {
            "provision" => assert_eq!(turn, 0),
            "start" | "resume" => {
                assert!(kind == "start" || power != "stopped");
                power = "running";
            }
            "stop" => power = "stopped",
            "restart" => assert_eq!(power, "running"),
            "suspend" => {
                assert_eq!(power, "running");
                power = "suspended";
            }
            "snapshot" => snapshots.push((snapshot.unwrap(), power)),
            "revert" => power = snapshots.iter().find(|(name, _)| Some(name) == snapshot.as_ref()).unwrap().1,
            "snapshot-delete" => snapshots.retain(|(name, _)| Some(name) != snapshot.as_ref()),
            "resize" => {
                assert_ne!(power, "suspended");
                assert!(event["data"]["disk_gib"].as_u64().unwrap() > disk);
                disk = event["data"]["disk_gib"].as_u64().unwrap();
            }
            "migrate" => {
                assert_ne!(power, "suspended");
                assert_eq!(event["data"]["manager"], "sim-0000");
            }
            other => panic!("{other}"),
        }
        kinds.insert(kind);
        assert!(turn == 1_999 || matches!(books.next(Mono::default()), Next::Blocked), "one VM has one job");
        assert!(books.ended(job, &How::Succeeded, Mono::default()));
    }
    assert_eq!(kinds.len(), 11, "{kinds:?}");
    assert_eq!(books.expected().there.len(), 1);
}

#[test]
fn what_is_acknowledged_and_has_no_outcome_is_overdue() {
    let mut books = books(workload::provisions(3, 1));
    let jobs: Vec<_> = (0..3).map(|_| take(&mut books).0).collect();
    let at = |seconds| Mono(Duration::from_secs(seconds));
    books.acknowledged(&jobs[..1], at(5));
    books.acknowledged(&jobs[1..], at(9));
    assert_eq!(books.overdue(at(8), 10), jobs[..1]);
    books.ended(jobs[0], &How::Succeeded, at(9));
    books.refused(jobs[1], "unknown_tenant", "no", at(10));
    assert_eq!(books.overdue(at(10), 10), jobs[2..]);
    assert_eq!((books.open(), books.expected().there.len(), books.expected().unclear.len()), (1, 1, 1));
}

#[test]
fn events_of_others_are_known_by_their_key() {
    let event = json!({"id": "7", "source": "/mine", "type": "io.cellbus.job.provision.v1", "data": {"count": 3}});
    let all = vec![event.clone(), event, json!({"id": "8"})];
    let mut books = books(Box::new(all.into_iter().map(|event| Planned { due: None, task: Task::Event(event) })));
    let (job, sent) = take(&mut books);
    assert_eq!((job, &sent["tenant"]), (JobId::derive("acme", "/mine", "7"), &json!("acme")));
    assert!(matches!(books.next(Mono::default()), Next::Over));
    assert_eq!(books.counts.refused, 2);
    books.ended(job, &How::Succeeded, Mono::default());
    assert_eq!(books.counts.created, 3);
}

#[test]
fn an_open_loop_waits_for_no_vm() {
    let work = || workload::operations(30, &"start=1".parse().unwrap(), 1);
    let mut in_order = books(work());
    take(&mut in_order);
    assert!(matches!(in_order.next(Mono::default()), Next::Blocked));
    let options = Options { pace: Pace::OnTime, ..Options::new("acme".parse().unwrap()) };
    let mut on_time = books_of(options, work());
    let jobs: Vec<_> = (0..30).map(|_| take(&mut on_time)).collect();
    assert!(jobs.iter().all(|(_, event)| event["type"] == "io.cellbus.job.provision.v1"));
    assert_eq!((on_time.counts.turned, on_time.open()), (29, 30), "the first had no VM to wait for");
}

#[test]
fn each_tenant_has_its_share_and_its_own_vms() {
    let mix = "provision=2,stop=1,delete=1".parse().unwrap();
    let tenants = "big=4,small=1".parse().unwrap();
    let options = Options { tenants, pace: Pace::OnTime, ..Options::new("acme".parse().unwrap()) };
    let mut books = books_of(options, workload::operations(5_000, &mix, 1));
    let (mut owner, mut names) = (BTreeMap::new(), std::collections::BTreeSet::new());
    for _ in 0..5_000 {
        let (job, event) = take(&mut books);
        let tenant = event["tenant"].as_str().unwrap().to_owned();
        match event["subject"].as_str() {
            Some(vm) => assert_eq!(owner[vm], tenant, "nobody touches what is another's"),
            None => {
                assert!(names.insert(event["data"]["name"].as_str().unwrap().to_owned()), "a name twice");
                owner.insert(job.vm(0).to_string(), tenant);
            }
        }
        books.ended(job, &How::Succeeded, Mono(Duration::from_millis(7)));
    }
    let by_tenant = books.by_tenant();
    assert!((3_800..4_200).contains(&by_tenant["big"].succeeded), "{by_tenant:?}");
    assert_eq!(by_tenant["big"].succeeded + by_tenant["small"].succeeded, 5_000);
    let by_type = books.by_type();
    assert_eq!(by_type.values().map(|tally| tally.succeeded).sum::<u64>(), 5_000);
    assert!(by_type["stop"].latency_ms.p50 > 6.8 && by_type["stop"].latency_ms.max < 7.2, "{by_type:?}");
    let there = books.expected().there.len() as u64;
    assert_eq!(there, books.counts.created - books.counts.deleted);
    assert!(books.vms.len() as u64 <= there + 2, "{} places for {there} VMs", books.vms.len());
}

#[test]
fn what_is_due_is_in_its_moment_however_late_it_is_taken() {
    let size = Size { vcpus: 1, memory_mib: 1, disk_gib: 1 };
    let at = |seconds| Planned { due: Some(Duration::from_secs(seconds)), task: Task::Create { key: None, size } };
    let mut books = books(Box::new([at(0), at(1), at(1), at(3)].into_iter()));
    let mono = |seconds| Mono(Duration::from_secs(seconds));
    assert!(books.behind(mono(0)));
    let Next::Send(first) = books.next(mono(2)) else { panic!() };
    assert_eq!(first.due, Some(mono(0)));
    for _ in 0..2 {
        assert!(matches!(books.next(mono(2)), Next::Send(_)));
    }
    assert!(!books.behind(mono(2)) && matches!(books.next(mono(2)), Next::NotBefore(_)));
    books.ended(first.job, &How::Succeeded, mono(5));
    let due: Vec<u64> = books.series.moments.iter().map(|moment| moment.due).collect();
    assert_eq!(due, [1, 2, 0, 0, 0, 0]);
    assert!(books.series.moments[0].latency.at(0.5).unwrap() > 4_900.0, "latency counts from when it was due");
    assert_eq!((books.series.moments[5].succeeded, books.series.moments[2].open), (1, 3));
}
