//! A vCenter for tests: `vcsim`, the simulator of govmomi, as `ops/setup/vcsim` builds it. It ends with
//! the process that started it.
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
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("password"), "vcsim\n").expect("a file");
        Self::start_in(Arc::new(folder), arguments)
    }

    /// Killed, and started again where it was: it has forgotten everything.
    #[must_use]
    pub fn again(self, arguments: &[&str]) -> Self {
        let (folder, url) = (Arc::clone(&self.folder), self.url.clone());
        drop(self);
        let listen = ["-listen", url.strip_prefix("https://").expect("it listens with TLS")];
        Self::start_in(folder, &[&listen, arguments].concat()).expect("it was there before")
    }

    fn start_in(folder: Arc<tempfile::TempDir>, arguments: &[&str]) -> Option<Self> {
        let binary = cellbus_bus::testing::tool("CELLBUS_VCSIM", "vcsim/vcsim", "vcsim", "ops/setup/vcsim")?;
        let mut child = Command::new(binary)
            .args(["-user", "cellbus", "-password", "vcsim", "-keys"])
            .arg(folder.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("vcsim starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped"))
            .read_line(&mut line)
            .expect("it says where it listens");
        let said: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
        let text = |key: &str| said[key].as_str().expect("a text").to_owned();
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
        let host = self.control.strip_prefix("http://").expect("an address of HTTP");
        let mut stream = TcpStream::connect(host).expect("it is there");
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").expect("a question");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
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
