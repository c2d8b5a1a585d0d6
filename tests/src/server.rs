//! A server that answers as a script says and remembers what it was asked: the other end of the
//! HTTP contract for tests of commands.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What to answer a call with.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

#[derive(Default)]
struct State {
    /// By `METHOD /path?query`. The last reply of a call is given again and again.
    replies: BTreeMap<String, VecDeque<Reply>>,
    asked: Vec<String>,
}

/// The server. It lives as long as the test process; a script has one of its own.
#[derive(Clone)]
pub struct FakeServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl FakeServer {
    /// Begins to listen on a port of the system's choice.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let server = Self { address, state: Arc::default() };
        let serving = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A client that goes away in the middle is the client's test to judge.
                let _ = serving.answer(stream);
            }
        });
        server
    }
    /// `http://address`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
    /// From now on the call is answered with these, one after the other, and then with the last.
    ///
    /// # Panics
    /// When the server has panicked.
    pub fn reply(&self, call: &str, replies: Vec<Reply>) {
        self.state.lock().expect("no holder panics").replies.insert(call.to_owned(), replies.into());
    }
    /// Takes what was asked since the last time: `METHOD /path?query body`.
    ///
    /// # Panics
    /// When the server has panicked.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().expect("no holder panics").asked)
    }

    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let call = first.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body);
        let reply = {
            let mut state = self.state.lock().expect("no holder panics");
            state.asked.push(format!("{call} {body}").trim_end().to_owned());
            match state.replies.get_mut(&call) {
                Some(replies) if replies.len() > 1 => replies.pop_front(),
                Some(replies) => replies.front().cloned(),
                None => None,
            }
        };
        let reply = reply.unwrap_or_else(|| Reply {
            status: 404,
            body: r#"{"code":"not_found","detail":"the script has no reply for this call"}"#.to_owned(),
        });
        let mut stream = stream;
        write!(
            stream,
            "HTTP/1.1 {} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}",
            reply.status,
            reply.body.len(),
            reply.body
        )
    }
}
