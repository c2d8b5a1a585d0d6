//! The digest of a job: what makes the same key with other data a conflict.
//!
//! It covers type, subject, `after` and `data` with defaults filled in, so the order of keys, white
//! space, and a default spelled out make no difference. Only what differs from its default is
//! written, each part under a tag of its own: a field that a later version adds changes no digest
//! of an event that does not use it.

use std::time::Duration;

use crate::ids::JobId;
use crate::job::{Digest, Labels, Layout, MigrateTo, Operation, Power, Provision, Request, StopMode, Target};

struct Canonical(Vec<u8>);

impl Canonical {
    fn bytes(&mut self, tag: u8, value: &[u8]) {
        self.0.push(tag);
        // Values are bounded at the edge (a few KiB at most), so the length always fits.
        self.0.extend_from_slice(&(value.len() as u32).to_be_bytes());
        self.0.extend_from_slice(value);
    }
    fn text(&mut self, tag: u8, value: &str) {
        self.bytes(tag, value.as_bytes());
    }
    fn number(&mut self, tag: u8, value: u64) {
        self.bytes(tag, &value.to_be_bytes());
    }
    fn labels(&mut self, tag: u8, labels: &Labels) {
        for (key, value) in labels {
            self.text(tag, key);
            self.text(tag, value);
        }
    }
}

/// Of a job's type, subject, `after` and data.
pub(super) fn digest(request: &Request, after: Option<&JobId>, deadline: Option<Duration>) -> Digest {
    let mut out = Canonical(Vec::with_capacity(192));
    out.text(1, request.kind().as_str());
    if let Some(after) = after {
        out.bytes(2, after.as_bytes());
    }
    if let Some(deadline) = deadline {
        out.number(3, deadline.as_secs());
    }
    match request {
        Request::Provision(provision) => provisioned(&mut out, provision),
        Request::Operate(target, operation) => {
            match target {
                Target::Id(id) => out.bytes(4, id.as_bytes()),
                Target::Name(name) => out.text(5, name.as_str()),
            }
            operated(&mut out, operation);
        }
        Request::Cancel(job) => out.bytes(6, job.as_bytes()),
    }
    Digest::of(&out.0)
}

fn provisioned(out: &mut Canonical, provision: &Provision) {
    let Provision { name, count, size, image, labels, require, policy, power } = provision;
    out.text(16, name.as_str());
    if *count != 1 {
        out.number(17, u64::from(*count));
    }
    out.number(18, u64::from(size.vcpus));
    out.number(19, size.memory_mib);
    out.number(20, size.disk_gib);
    out.text(21, image);
    out.labels(22, labels);
    out.labels(23, require);
    if policy.hosts == Layout::Pack {
        out.number(24, 1);
    }
    if policy.managers == Layout::Pack {
        out.number(25, 1);
    }
    if let Some(group) = &policy.affinity {
        out.text(26, group.as_str());
    }
    if let Some(group) = &policy.anti_affinity {
        out.text(27, group.as_str());
    }
    if *power == Power::Off {
        out.number(28, 1);
    }
}

fn operated(out: &mut Canonical, operation: &Operation) {
    match operation {
        Operation::Start | Operation::Suspend | Operation::Resume | Operation::Delete => {}
        Operation::Stop(mode) | Operation::Restart(mode) => {
            if *mode == StopMode::Hard {
                out.number(32, 1);
            }
        }
        Operation::Resize { vcpus, memory_mib, disk_gib } => {
            for (tag, value) in [(33, vcpus.map(u64::from)), (34, *memory_mib), (35, *disk_gib)] {
                if let Some(value) = value {
                    out.number(tag, value);
                }
            }
        }
        Operation::Snapshot(name) | Operation::Revert(name) | Operation::SnapshotDelete(name) => {
            out.text(36, name.as_str());
        }
        Operation::Migrate(MigrateTo::Host(host)) => out.text(37, host.as_str()),
        Operation::Migrate(MigrateTo::Manager(manager)) => out.text(38, manager.as_str()),
    }
}
