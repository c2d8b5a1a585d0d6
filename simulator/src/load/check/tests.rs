use std::sync::Mutex;

use async_trait::async_trait;
use cellbus_bus::ids::JobId;
use tokio::sync::mpsc;

use super::super::target::{Cluster, Heard, JobView, Refused, Sample, SubmitError, VmPage};
use super::*;

#[test]
fn what_is_missing_too_much_or_there_twice_is_counted() {
    let vm = |index| JobId::derive("t", "s", "e").vm(index);
    let expected = Expected { there: vec![vm(0), vm(1), vm(2)], unclear: vec![vm(3)] };
    let listed = [(0, "a"), (1, "b"), (3, "d"), (4, "e"), (5, "a")].map(|(index, name)| (vm(index), name.to_owned()));
    assert_eq!(difference(&expected, &listed), Difference { listed: 5, missing: 1, unexpected: 2, duplicates: 1 });
    assert_eq!(difference(&expected, &listed[..0]).missing, 3);
}

/// Lists nothing, and answers audits with these, one after another.
struct Scripted(Mutex<Vec<Result<Audited, TargetError>>>);

#[async_trait]
impl Target for Scripted {
    async fn audit(&self) -> Result<Audited, TargetError> {
        self.0.lock().unwrap().remove(0)
    }
    async fn vms(&self, _: &str, _: (&str, &str), _: Option<&str>) -> Result<VmPage, TargetError> {
        Ok(VmPage::default())
    }
    async fn submit(&self, _: &[String]) -> Result<Vec<Refused>, SubmitError> {
        unreachable!("a check submits nothing")
    }
    async fn listen(&self, _: Option<&str>, _: &mpsc::Sender<Heard>) -> Result<(), TargetError> {
        unreachable!("a check hears nothing")
    }
    async fn job(&self, _: JobId) -> Result<Option<JobView>, TargetError> {
        unreachable!("a check asks after no job")
    }
    async fn locate(&self, _: &[VmId]) -> Result<usize, TargetError> {
        unreachable!("there is none to look up")
    }
    async fn cluster(&self) -> Result<Cluster, TargetError> {
        unreachable!("known before")
    }
    async fn sample(&self) -> Result<Sample, TargetError> {
        unreachable!("asked elsewhere")
    }
}

/// The report after a check whose audits are answered so, and how many answers are left.
async fn checked(audits: Vec<Result<Audited, TargetError>>) -> (Report, bool, usize) {
    let target = Scripted(Mutex::new(audits));
    let (options, stop) = (Options::new("acme".parse().unwrap()), CancellationToken::new());
    let env = cellbus_bus::env::real(tokio::runtime::Handle::current());
    let check = Check { target: &target, options: &options, progress: &(), stop: &stop, env: &env };
    let mut report = Report::default();
    let (_, audited) = check.all("run", &Expected { there: Vec::new(), unclear: Vec::new() }, &mut report).await;
    let left = target.0.lock().unwrap().len();
    (report, audited, left)
}

#[tokio::test]
async fn a_cluster_that_is_not_ready_is_audited_when_it_is() {
    let not_now = Err(TargetError { detail: "not ready yet".to_owned(), later: true });
    let opening = Ok(Audited { vms: 1, unread: 2, ..Audited::default() });
    let good = Ok(Audited { vms: 3, ..Audited::default() });
    let (report, audited, left) = checked(vec![not_now, opening, good]).await;
    assert_eq!((audited, left, report.directory_entries, report.directory_mismatches), (true, 0, 3, 0), "{report:?}");
    assert!(report.clean(), "{report:?}");
}

#[tokio::test]
async fn what_asking_again_does_not_mend_is_told() {
    let broken = || Err(TargetError { detail: "there is no audit".to_owned(), later: false });
    let (report, audited, left) = checked(vec![broken(), broken()]).await;
    assert_eq!((audited, left, report.unchecked.len()), (false, 1, 1), "{report:?}");
    assert!(!report.clean());
}
