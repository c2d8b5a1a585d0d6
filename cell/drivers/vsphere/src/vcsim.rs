//! A vCenter for tests: `vcsim`, the simulator of govmomi, as `ops/setup/vcsim` builds it. It ends with
//! the process that started it.
#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]
#![allow(clippy::missing_panics_doc, reason = "all of it panics where a test cannot go on")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// A running vcsim.
#[derive(Debug)]
pub struct Vcsim {
    child: Child,
    url: String,
    /// The SHA-256 of its certificate.
    pub thumbprint: String,
    control: String,
    folder: Arc<tempfile::TempDir>,
}

impl Vcsim {
    /// Starts one. `None`, said loudly: it is not set up; with `CI=true` that is a failure.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("password"), "vcsim\n").unwrap();
        Self::start_in(Arc::new(folder), arguments)
    }

    /// Killed, and started again where it was: it has forgotten everything.
    #[must_use]
    pub fn again(self, arguments: &[&str]) -> Self {
        let (folder, url) = (Arc::clone(&self.folder), self.url.clone());
        drop(self);
        let listen = ["-listen", url.strip_prefix("https://").unwrap()];
        Self::start_in(folder, &[&listen, arguments].concat()).unwrap()
    }

    fn start_in(folder: Arc<tempfile::TempDir>, arguments: &[&str]) -> Option<Self> {
        let Some(binary) = std::env::var_os("CELLBUS_VCSIM").filter(|path| !path.is_empty()) else {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "no vcsim: run ops/setup/vcsim");
            eprintln!("LEFT OUT: CELLBUS_VCSIM is not set; run ops/setup/vcsim");
            return None;
        };
        let mut child = Command::new(binary)
            .args(["-user", "cellbus", "-password", "vcsim", "-keys"])
            .arg(folder.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = |key: &str| said[key].as_str().unwrap().to_owned();
        Some(Self { child, url: text("url"), thumbprint: text("thumbprint"), control: text("control"), folder })
    }

    /// What it keeps its password (`password`) and the certificate of its authority (`ca.pem`) in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One of `[[managers]]`, of this name and with what more is said of it.
    #[must_use]
    pub fn config(&self, name: &str, more: &str) -> String {
        format!(
            "[[managers]]\nname = \"{name}\"\nkind = \"vsphere\"\naddress = \"{}\"\nvsphere.user = \"cellbus\"\n\
             vsphere.password_file = '{}'\nvsphere.thumbprint = \"{}\"\n{more}",
            self.url,
            self.folder().join("password").display(),
            self.thumbprint,
        )
    }

    /// Asks its controls (`ops/setup/vcsim-module/main.go`); gives what they say.
    #[must_use]
    pub fn control(&self, path: &str) -> String {
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
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
