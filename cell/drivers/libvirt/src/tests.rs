//! The driver on libvirt's test driver, and on a real one.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::sync::Arc;

use cellbus_bus::Env;
use cellbus_bus::ids::{HostId, JobId, OpNumber, VmId};
use cellbus_bus::job::Size;
use cellbus_cell::driver::{Op, conformance};
use cellbus_workflows::{Action, AdoptSpec, CreateSpec};

pub(crate) mod trouble;

mod real;
mod simulated;

fn env() -> Env {
    cellbus_bus::env::real(tokio::runtime::Handle::current())
}
fn vm(index: u32) -> VmId {
    JobId::derive("libvirt", "driver", "vm").vm(index)
}
fn spec() -> CreateSpec {
    CreateSpec {
        name: "web".parse().unwrap(),
        size: Size { vcpus: 1, memory_mib: 128, disk_gib: 1 },
        ..conformance::spec(0)
    }
}
fn op(index: u32, number: u64, action: Action) -> Op {
    Op { vm: vm(index), number: OpNumber(number), action, host: None, datastore: None }
}
fn create(index: u32, number: u64, host: &str) -> Op {
    Op { host: Some(host_id(host)), ..op(index, number, Action::Create(Arc::new(spec()))) }
}
/// The domain with this key becomes the VM.
fn adopt(index: u32, number: u64, key: &str) -> Op {
    let spec = AdoptSpec {
        tenant: "acme".parse().unwrap(),
        name: format!("old-{index}").parse().unwrap(),
        foreign: Some(key.parse().unwrap()),
    };
    op(index, number, Action::Adopt(Arc::new(spec)))
}
fn host_id(name: &str) -> HostId {
    name.parse().unwrap()
}
