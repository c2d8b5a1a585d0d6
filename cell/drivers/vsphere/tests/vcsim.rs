//! The driver at `vcsim`, the simulator of govmomi (`ops/setup/vcsim`, whose path `CELLBUS_VCSIM` holds):
//! the conformance suite, and what a vCenter has beside. What vcsim cannot show is said in
//! `ops/docs/vsphere.md`.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cellbus_bus::Env;
use cellbus_bus::ids::VmId;
use cellbus_cell::config::{Config, File, Sources};
use cellbus_cell::driver::{Connect, Driver, Factory as _, conformance};
use cellbus_directory::vm::PowerState;
use cellbus_vsphere::VsphereFactory;

#[path = "vcsim/own.rs"]
mod own;

fn env() -> Env {
    cellbus_bus::env::real(tokio::runtime::Handle::current())
}

/// A running vcsim, which ends with this.
struct Vcsim {
    child: Child,
    url: String,
    thumbprint: String,
    control: String,
    dir: Arc<tempfile::TempDir>,
}

impl Vcsim {
    /// `None`, said loudly: it is not set up.
    fn start(arguments: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("password"), "vcsim\n").unwrap();
        Self::start_in(Arc::new(dir), arguments)
    }

    /// Killed, and started again where it was: it has forgotten everything.
    fn again(self, arguments: &[&str]) -> Self {
        let (dir, url) = (Arc::clone(&self.dir), self.url.clone());
        drop(self);
        let listen = ["-listen", url.strip_prefix("https://").unwrap()];
        Self::start_in(dir, &[&listen, arguments].concat()).unwrap()
    }

    fn start_in(dir: Arc<tempfile::TempDir>, arguments: &[&str]) -> Option<Self> {
        let Some(binary) = std::env::var_os("CELLBUS_VCSIM").filter(|path| !path.is_empty()) else {
            assert!(std::env::var_os("CI").is_none(), "CELLBUS_VCSIM is not set: ops/setup/vcsim");
            eprintln!("LEFT OUT: CELLBUS_VCSIM is not set (ops/setup/vcsim)");
            return None;
        };
        let mut child = Command::new(binary)
            .args(["-user", "cellbus", "-password", "vcsim", "-keys"])
            .arg(dir.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = |key: &str| said[key].as_str().unwrap().to_owned();
        Some(Self { child, url: text("url"), thumbprint: text("thumbprint"), control: text("control"), dir })
    }

    /// `[[managers]]` for it.
    fn config(&self, more: &str) -> String {
        format!(
            "[[managers]]\nname = \"vc\"\nkind = \"vsphere\"\naddress = \"{}\"\nvsphere.user = \"cellbus\"\n\
             vsphere.password_file = '{}'\nvsphere.thumbprint = \"{}\"\n{more}",
            self.url,
            self.dir.path().join("password").display(),
            self.thumbprint,
        )
    }

    fn manager(&self, more: &str) -> Arc<dyn Connect> {
        connect(self.config(more))
    }

    /// Asks its controls; gives what they say.
    fn control(&self, path: &str) -> String {
        let host = self.control.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(host).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.split_whitespace().nth(1) == Some("200"), "{path}: {head}");
        body.to_owned()
    }
}

impl Drop for Vcsim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(text: String) -> Arc<dyn Connect> {
    let file = Some(File { name: "cellbus.toml".to_owned(), text });
    let config = Config::load(Sources { file, ..Sources::default() }).unwrap();
    VsphereFactory.manager(&config.managers[0], &env()).unwrap()
}

struct Rig {
    vcsim: Arc<Vcsim>,
    manager: Arc<dyn Connect>,
}

#[async_trait]
impl conformance::Rig for Rig {
    fn env(&self) -> Env {
        env()
    }
    async fn connect(&self) -> Arc<dyn Driver> {
        self.manager.connect()
    }
    fn faults(&self) -> Option<Arc<dyn conformance::Faults>> {
        Some(Arc::new(Controls(Arc::clone(&self.vcsim))))
    }
    /// It forgets everything: `own::a_vcenter_that_came_back_empty_is_left_alone` is about that.
    async fn restart(&self) -> bool {
        false
    }
}

struct Controls(Arc<Vcsim>);

#[async_trait]
impl conformance::Faults for Controls {
    async fn slow(&self, by: Duration) {
        self.0.control(&format!("/slow?ms={}", by.as_millis()));
    }
    async fn lose_next_answer(&self) {
        self.0.control("/lose");
    }
    async fn fail_next(&self) {
        self.0.control("/fail?fault=HostCommunication");
    }
    async fn down(&self) {
        self.0.control("/down");
    }
    async fn heal(&self) {
        self.0.control("/heal");
    }
    async fn set_power(&self, vm: VmId, power: PowerState) {
        self.0.control(&format!("/power?vm={vm}&on={}", power == PowerState::Running));
    }
    async fn delete_vm(&self, vm: VmId) {
        self.0.control(&format!("/delete?vm={vm}"));
    }
    async fn restarts(&self, vm: VmId) -> u32 {
        self.0.control(&format!("/calls?method=ResetVM_Task&vm={vm}")).parse().unwrap()
    }
}

/// Each case of the suite at a vcsim of its own, if there is one.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let Some(vcsim) = Vcsim::start(&[]) else { return };
                let manager = vcsim.manager("");
                let rig = Rig { vcsim: Arc::new(vcsim), manager };
                conformance::$case(&rig).await;
            }
        )*
    };
}

mod conforms {
    use super::*;

    // Not here: `a_copy_brings_its_snapshots`, since a vCenter takes no copies of other managers' VMs yet
    // (`own::no_copy_is_pretended`).
    cases!(
        nothing_is_done_before_open,
        a_newer_session_revokes_the_older,
        what_is_made_is_there,
        a_number_is_done_once,
        lower_numbers_are_refused,
        a_delete_leaves_a_tombstone,
        a_delete_of_nothing_leaves_a_tombstone,
        callers_of_one_number_share_its_end,
        a_dropped_call_is_found_again,
        power_follows_the_rules,
        a_restart_happens_once_a_number,
        snapshots_are_kept_with_the_vm,
        disks_only_grow,
        a_vm_moves_between_hosts,
        a_full_host_takes_no_more,
        hosts_that_are_not_there_take_nothing,
        the_id_belongs_to_one_vm,
        what_is_not_there_is_not_found,
        many_vms_are_made_at_once,
        running_tasks_outlive_their_session,
        a_lost_answer_is_found_again,
        a_passing_failure_leaves_nothing,
        a_manager_that_is_down_says_nothing,
        changes_by_others_are_heard,
        a_revoked_listener_is_told,
        what_was_answered_outlives_a_restart,
    );
}
