//! Calls between cells: one suite for those of one process and those over HTTP, and what only HTTP
//! can meet.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use cellbus_bus::cloudevent;
use cellbus_bus::ids::{CellId, Epoch, JobId, OpNumber, Seq, ShardCount, ShardId};
use cellbus_directory::JobState;
use tokio::sync::{Notify, Semaphore};
use uuid::Uuid;

use super::fake::known;
use super::*;
use crate::driver::{Host, Inventory};
use crate::metrics;
use crate::peers::wire;
use crate::peers::{
    Answered, AskNumber, CallError, Decision, Handed, HttpPeers, JobAnswer, LocalPeers, Peer, Peers, Post, Request,
    Response, Serve, Summary,
};

const CLUSTER: Uuid = Uuid::from_u128(7);
const LONG: Duration = Duration::from_secs(20);

/// A cell that answers as it is told.
struct Cell {
    answer: Box<dyn Fn(Request) -> Response + Send + Sync>,
    /// Answers are given while there are permits.
    gate: Semaphore,
    asked: AtomicU64,
    posts: Mutex<Vec<Post>>,
    posted: Notify,
}
impl Cell {
    fn new(answer: impl Fn(Request) -> Response + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            answer: Box::new(answer),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            asked: AtomicU64::new(0),
            posts: Mutex::default(),
            posted: Notify::new(),
        })
    }
    fn closed(answer: impl Fn(Request) -> Response + Send + Sync + 'static) -> Arc<Self> {
        let cell = Self::new(answer);
        cell.gate.forget_permits(Semaphore::MAX_PERMITS);
        cell
    }
    async fn posts(&self, at_least: usize) -> Vec<Post> {
        let enough = async {
            loop {
                let posted = self.posted.notified();
                let posts = self.posts.lock().unwrap().clone();
                if posts.len() >= at_least {
                    return posts;
                }
                posted.await;
            }
        };
        env().timeout(LONG, enough).await.expect("the posts arrive")
    }
    async fn asked(&self) {
        let asked = async {
            while self.asked.load(Ordering::Relaxed) == 0 {
                env().sleep(Duration::from_millis(1)).await;
            }
        };
        env().timeout(LONG, asked).await.expect("it is asked");
    }
}
#[async_trait]
impl Serve for Cell {
    async fn serve(&self, request: Request) -> Response {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let _open = self.gate.acquire().await.unwrap();
        (self.answer)(request)
    }
    fn take(&self, post: Post) {
        self.posts.lock().unwrap().push(post);
        self.posted.notify_one();
    }
}

/// Two sides: who asks, and the process that is asked.
struct World {
    peers: Arc<dyn Peers>,
    cells: LocalPeers,
    address: String,
    server: Option<Server>,
}

impl World {
    /// Both in one process.
    fn local() -> Self {
        let cells = LocalPeers::default();
        Self { peers: Arc::new(cells.clone()), cells, address: "local".to_owned(), server: None }
    }
    /// Over HTTP.
    async fn http() -> Self {
        let cells = LocalPeers::default();
        let members = Members { cells: cells.clone(), cluster: CLUSTER };
        let server = Server::with(|settings| settings.members = Some(members)).await;
        let peers = Arc::new(http_peers(CLUSTER).0);
        Self { peers, cells, address: server.url(""), server: Some(server) }
    }
    async fn both() -> [Self; 2] {
        [Self::local(), Self::http().await]
    }
    fn join(&self, cell: &str, server: Arc<Cell>) -> Peer {
        let peer = self.peer(cell);
        self.cells.join(peer.cell.clone(), server);
        peer
    }
    fn peer(&self, cell: &str) -> Peer {
        Peer { cell: cell.parse().unwrap(), address: self.address.clone() }
    }
    async fn call(&self, to: &Peer, request: Request) -> Result<Response, CallError> {
        env().timeout(LONG, self.peers.call(to, request)).await.expect("an answer or an error")
    }
}

fn http_peers(cluster: Uuid) -> (HttpPeers, metrics::peers::Metrics) {
    let metrics = metrics::peers::Metrics::new(&Registry::new()).unwrap();
    (HttpPeers::new(LocalPeers::default(), cluster, env(), metrics.clone()), metrics)
}
fn signs(n: u64) -> Post {
    Post::StillRunning { shard: shard(3), calls: vec![(known(0), OpNumber(n))] }
}
fn shard(index: u16) -> ShardId {
    ShardId::new(index, ShardCount::DEFAULT).unwrap()
}
fn by() -> cellbus_directory::record::Operator {
    cellbus_directory::record::Operator { who: "test".to_owned(), from: "here".to_owned() }
}
fn not_delivered(answer: Result<Response, CallError>) -> String {
    match answer {
        Err(CallError::NotDelivered { detail, .. }) => detail,
        other => panic!("{other:?}"),
    }
}
fn unreachable(answer: Result<Response, CallError>) -> String {
    match answer {
        Err(CallError::Unreachable { detail, .. }) => detail,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_question_gets_the_answer_of_the_cell_that_is_meant() {
    for world in World::both().await {
        let ids = vec![JobId::derive("a", "b", "c")];
        let wanted = Request::Jobs { ids, until: crate::peers::Until::Decided, limit: Duration::from_millis(5) };
        let asked = wanted.clone();
        let one = world.join(
            "one",
            Cell::new(move |request| {
                assert_eq!(request, asked);
                Response::Jobs(vec![JobAnswer::Unknown { read: Seq(9) }, JobAnswer::Unread])
            }),
        );
        let summary = Summary { owned: vec![(shard(7), Epoch(3), Seq(11))], managers: vec![], failed: vec![shard(8)] };
        let said = summary.clone();
        let two = world.join("two", Cell::new(move |_| Response::Summary(said.clone())));
        let answer = world.call(&one, wanted).await.unwrap();
        assert_eq!(answer, Response::Jobs(vec![JobAnswer::Unknown { read: Seq(9) }, JobAnswer::Unread]));
        assert_eq!(world.call(&two, Request::Summary).await.unwrap(), Response::Summary(summary));
    }
}

#[tokio::test]
async fn jobs_are_handed_in_whole() {
    let event = r#"{"specversion":"1.0","id":"1","source":"/s","type":"io.cellbus.job.provision.v1",
        "data":{"name":"web","vcpus":1,"memory_mib":1024,"disk_gib":10,"image":"x"}}"#;
    let rule =
        cloudevent::TenantRule { from: cloudevent::TenantFrom::Sender("acme"), known: &cloudevent::Tenants::Any };
    let job = cloudevent::parse_structured(event.as_bytes(), rule, &cloudevent::Limits::default());
    let job = Arc::new(job.expect("a job"));
    for world in World::both().await {
        let jobs = vec![Handed { job: Arc::clone(&job), bytes: 7 }];
        let wanted = Request::HandIn { jobs, limit: Duration::from_millis(5) };
        let said = Response::Decided(vec![Decision::Known { state: JobState::Queued, digest: job.digest }]);
        let (asked, answer) = (wanted.clone(), said.clone());
        let one = world.join(
            "one",
            Cell::new(move |request| {
                assert_eq!(request, asked);
                answer.clone()
            }),
        );
        assert_eq!(world.call(&one, wanted).await.unwrap(), said);
    }
}

#[tokio::test]
async fn posts_arrive_in_order() {
    for world in World::both().await {
        let cell = Cell::new(|_| Response::NotMine);
        let to = world.join("one", Arc::clone(&cell));
        let sent: Vec<Post> = (0..500).map(signs).collect();
        for post in &sent {
            world.peers.post(&to, post.clone()).unwrap();
        }
        assert_eq!(cell.posts(sent.len()).await, sent);
        // All three kinds.
        let from = Arc::new(to.clone());
        let vm = known(0);
        let answer = cellbus_workflows::Answer::Later(cellbus_workflows::Later {
            reason: cellbus_workflows::LaterReason::NoOwner,
            detail: "none".to_owned(),
            after: None,
        });
        let answered = Answered { vm, op: OpNumber(1), shard_epoch: Epoch(2), ask: AskNumber(3), answer };
        let others = [Post::Calls { from, calls: vec![] }, Post::Answers { shard: shard(1), answers: vec![answered] }];
        for post in &others {
            world.peers.post(&to, post.clone()).unwrap();
        }
        assert_eq!(cell.posts(sent.len() + 2).await[sent.len()..], others);
    }
}

#[tokio::test]
async fn a_cell_that_is_gone_was_not_asked() {
    for world in World::both().await {
        let cell = Cell::new(|_| Response::NotMine);
        let to = world.join("one", Arc::clone(&cell));
        world.cells.leave(&to.cell);
        assert!(not_delivered(world.call(&to, Request::Shards).await).contains("not in this process"));
        assert_eq!(cell.asked.load(Ordering::Relaxed), 0);
        // The port is another incarnation's by now: what was meant for the one before is not its.
        let next = Cell::new(|_| Response::NotMine);
        let successor = world.join("one-2", Arc::clone(&next));
        not_delivered(world.call(&to, Request::Drain(by())).await);
        // Posts are refused at once, or as soon as it is known.
        let refused = async {
            while world.peers.post(&to, signs(1)).is_ok() {
                env().sleep(Duration::from_millis(1)).await;
            }
        };
        env().timeout(LONG, refused).await.expect("posts are refused");
        assert_eq!(next.asked.load(Ordering::Relaxed), 0);
        assert_eq!(world.call(&successor, Request::Shards).await.unwrap(), Response::NotMine);
        assert!(next.posts.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_cell_that_is_killed_while_it_is_asked_may_have_done_it() {
    for world in World::both().await {
        let cell = Cell::closed(|_| Response::Released);
        let to = world.join("one", Arc::clone(&cell));
        let kill = async {
            cell.asked().await;
            world.cells.leave(&to.cell);
            cell.gate.add_permits(1);
        };
        let (answer, ()) = tokio::join!(world.call(&to, Request::Shards), kill);
        assert!(unreachable(answer).contains("stopped"));
    }
}

#[tokio::test]
async fn a_slow_cell_holds_up_nobody_else() {
    for world in World::both().await {
        let slow = Cell::closed(|_| Response::Released);
        let to = world.join("slow", Arc::clone(&slow));
        let quick = world.join("quick", Cell::new(|_| Response::NotMine));
        let others = async {
            slow.asked().await;
            for _ in 0..100 {
                assert_eq!(world.call(&quick, Request::Shards).await.unwrap(), Response::NotMine);
            }
            world.peers.post(&to, signs(1)).unwrap();
            slow.posts(1).await;
            slow.gate.add_permits(1);
        };
        let (answer, ()) = tokio::join!(world.call(&to, Request::Shards), others);
        assert_eq!(answer.unwrap(), Response::Released);
        // Who does not want to wait longer stops waiting.
        let given_up = env().timeout(Duration::from_millis(20), world.peers.call(&to, Request::Shards)).await;
        assert!(matches!(given_up, None | Some(Ok(Response::Released))));
    }
}

#[tokio::test]
async fn a_large_answer_arrives_whole() {
    for world in World::both().await {
        let hosts: Vec<Host> = (0..50_000)
            .map(|n| Host {
                id: format!("host-{n:060}").parse().unwrap(),
                vcpus: 64,
                memory_mib: 1 << 19,
                disk_gib: 10_240,
                labels: [("gear".to_owned(), "g3".to_owned())].into(),
                usable: true,
            })
            .collect();
        let inventory = Inventory { hosts, foreign_vms: 3, ..Inventory::default() };
        let held = inventory.clone();
        let to = world.join("one", Cell::new(move |_| Response::Inventory(Box::new(held.clone()))));
        let answer = world.call(&to, Request::Inventory(super::fake::manager())).await.unwrap();
        assert_eq!(answer, Response::Inventory(Box::new(inventory)));
    }
}

// ── what only HTTP can meet ──

#[tokio::test]
async fn an_answer_beyond_the_bound_is_said_to_be_one() {
    let world = World::http().await;
    let detail = "x".repeat(65 << 20);
    let to = world.join("one", Cell::new(move |_| Response::Failed { detail: detail.clone() }));
    let answer = world.call(&to, Request::Shards).await.unwrap();
    assert!(matches!(&answer, Response::Failed { detail } if detail.contains("more than")), "{answer:?}");
}

#[tokio::test]
async fn another_cluster_and_another_format_are_refused_in_words() {
    let world = World::http().await;
    let cell = Cell::new(|_| Response::NotMine);
    let to = world.join("one", Arc::clone(&cell));
    let (strangers, metrics) = http_peers(Uuid::from_u128(8));
    let why = not_delivered(strangers.call(&to, Request::Shards).await);
    assert!(why.contains(&CLUSTER.to_string()) && why.contains(&Uuid::from_u128(8).to_string()), "{why}");
    strangers.post(&to, signs(1)).unwrap();
    until(|| metrics.posts_dropped() == 1).await;

    let server = world.server.as_ref().unwrap();
    let send = async |path: &str, cluster: &str, format: &str, body: &'static [u8]| {
        let url = server.url(&format!("/members/v1/cells/{path}"));
        let request = server.client.post(url).header("cellbus-cluster", cluster).header("cellbus-format", format);
        problem_of(request.body(body).send().await.unwrap()).await
    };
    let (ours, now) = (CLUSTER.to_string(), wire::FORMAT.to_string());
    assert_eq!(send("one/call", &ours, "1", b"").await, (400, "member_format_unknown".to_owned()));
    assert_eq!(send("one/call", &ours, "", b"").await, (400, "member_format_unknown".to_owned()));
    assert_eq!(send("one/call", "", &now, b"").await, (421, "member_of_other_cluster".to_owned()));
    // Garbage, a message of another codec, one with something behind it.
    for garbage in [&b""[..], b"\x01\xff\xff\xff", b"{\"a\":1}", b"\x02\x00", b"\x01\x0a\x00\x00\x00"] {
        assert_eq!(
            send("one/call", &ours, &now, garbage).await,
            (400, "member_message_invalid".to_owned()),
            "{garbage:?}"
        );
        assert_eq!(
            send("one/posts", &ours, &now, garbage).await,
            (400, "member_message_invalid".to_owned()),
            "{garbage:?}"
        );
    }
    assert_eq!(send("two/call", &ours, &now, b"\x01\x02").await.1, "member_message_invalid");
    assert_eq!(send("%20/call", &ours, &now, b"").await, (404, "member_not_here".to_owned()));
    assert_eq!(send("one/else", &ours, &now, b"").await, (404, "not_found".to_owned()));
    let read = server.get("/members/v1/cells/one/call").await;
    assert_eq!(problem_of(read).await, (404, "not_found".to_owned()));
    assert_eq!(cell.asked.load(Ordering::Relaxed), 0);

    // Where no members are configured there is nothing, and nowhere are they part of the API.
    let alone = Server::start().await;
    let url = alone.url("/members/v1/cells/one/call");
    assert_eq!(problem_of(alone.client.post(url).send().await.unwrap()).await.0, 404);
    let document = ok(server.get("/v1/openapi.json").await).await;
    assert!(document["paths"].as_object().unwrap().keys().all(|path| !path.contains("members")));
}

#[tokio::test]
async fn what_is_no_cell_is_no_answer() {
    // Bytes that are no HTTP, HTTP that is no cell's, and a server that closes without a word.
    let huge = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 65 << 20);
    for (said, words) in [
        ("hello\r\n\r\n", ""),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "cannot be read"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope", "as no cell does"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello", ""),
        (huge.as_str(), "more than"),
        ("", ""),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let said = said.to_owned();
        env().spawn("no cell", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0_u8; 1024];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(said.as_bytes()).await;
            }
        });
        let (peers, metrics) = http_peers(CLUSTER);
        let to = Peer { cell: "one".parse().unwrap(), address };
        let why = unreachable(peers.call(&to, Request::Shards).await);
        assert!(why.contains(words), "{why}");
        peers.post(&to, signs(1)).unwrap();
        until(|| metrics.posts_dropped() == 1).await;
    }
    // Nobody listens; an address that is none. Neither was asked.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for address in [format!("http://{free}"), "local:one".to_owned(), "ftp://x:1".to_owned(), String::new()] {
        let to = Peer { cell: "one".parse().unwrap(), address };
        let (peers, metrics) = http_peers(CLUSTER);
        not_delivered(peers.call(&to, Request::Shards).await);
        peers.post(&to, signs(1)).unwrap();
        until(|| metrics.posts_dropped() == 1).await;
        // It is known now, for a moment.
        assert!(matches!(peers.post(&to, signs(2)), Err(CallError::NotDelivered { .. })));
    }
}

#[tokio::test]
async fn connections_are_kept_and_cells_of_the_own_process_need_none() {
    let world = World::http().await;
    let to = world.join("one", Cell::new(|_| Response::NotMine));
    for _ in 0..50 {
        world.call(&to, Request::Shards).await.unwrap();
    }
    let text = world.server.as_ref().unwrap().get("/metrics").await.text().await.unwrap();
    // The one of the calls, and that of this request.
    assert!(text.contains("cellbus_http_connections 2\n"), "{text}");
    assert!(text.contains("cellbus_http_requests_total{resource=\"members\",status=\"2xx\"} 50"), "{text}");

    let own = LocalPeers::default();
    let id: CellId = "own".parse().unwrap();
    own.join(id.clone(), Cell::new(|_| Response::NotMine));
    let peers = HttpPeers::new(own, CLUSTER, env(), metrics::peers::Metrics::new(&Registry::new()).unwrap());
    let to = Peer { cell: id, address: "no address at all".to_owned() };
    assert_eq!(peers.call(&to, Request::Shards).await.unwrap(), Response::NotMine);
    peers.post(&to, signs(1)).unwrap();
}

async fn until(check: impl Fn() -> bool) {
    let checked = async {
        while !check() {
            env().sleep(Duration::from_millis(2)).await;
        }
    };
    env().timeout(LONG, checked).await.expect("it comes about");
}
async fn problem_of(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let value: Value = response.json().await.unwrap();
    (status, value["code"].as_str().unwrap().to_owned())
}
