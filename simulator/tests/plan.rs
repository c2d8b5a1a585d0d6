//! The runs that a plan is held against, on a cluster of a few hosts.

use cellbus_cell::config::{Config, Override, Sources};
use cellbus_simulator::load::Usage;
use cellbus_simulator::plan::runs::{Step, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_makes_its_vms_and_waits_for_the_takeover() {
    let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
    let data = tempfile::tempdir().expect("a directory");
    let lease = Override { key: "lease.ttl".to_owned(), value: "1s".to_owned(), flag: "--test".to_owned() };
    let beat = Override { key: "lease.beat".to_owned(), value: "200ms".to_owned(), flag: "--test".to_owned() };
    let config = Config::load(Sources { overrides: vec![lease, beat], ..Sources::default() }).expect("sound");
    let step = Step { hosts: 20, vms: vec![50, 120] };
    let mut told = 0;
    let ran = run(&step, 2.0, config, data.path(), &env, Usage::default, |_| told += 1).await.expect("it runs");
    assert_eq!((ran.len(), told), (2, 2));
    assert_eq!(ran.iter().map(|one| (one.hosts, one.vms)).collect::<Vec<_>>(), [(20, 50), (20, 120)]);
    for one in &ran {
        // The model adds to the lease what is read and replayed.
        assert!(one.jobs_per_second > 0.0 && one.takeover_seconds_planned > 1.0, "{one:?}");
    }
}
