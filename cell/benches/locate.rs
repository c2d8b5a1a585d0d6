//! Look-ups over HTTP, beside their load generator on the same two processors: `GET /v1/locate/{vm}`
//! over 64 connections, and `POST /v1/locate` of 10,000 ids in JSON and in the binary form. The
//! server is the real one, over a directory that real jobs have filled. What bounds each figure:
//! for single look-ups system calls and hyper, on both sides; for many at once the directory's
//! tables, and the bytes of the answer.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on may stop")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::ids::VmId;
use cellbus_cell::http::{App, FixedLogLevel, Served, Settings, serve};
use cellbus_cell::metrics::Metrics;
use futures::StreamExt as _;
use support::{Cluster, job};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const CONNECTIONS: usize = 64;

/// Writes a request, reads its answer to the end, and gives the bytes of the body.
async fn call(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> usize {
    stream.write_all(request).await.unwrap();
    buffer.clear();
    loop {
        assert!(stream.read_buf(buffer).await.unwrap() > 0, "the server closed");
        let Some(head) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head]).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let length =
            text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse::<usize>().unwrap();
        while buffer.len() < head + 4 + length {
            assert!(stream.read_buf(buffer).await.unwrap() > 0, "the server closed");
        }
        return length;
    }
}

async fn single(cluster: &Cluster, address: SocketAddr, ids: &Arc<Vec<VmId>>, total: usize) {
    let began = cluster.env.mono();
    let each = (0..CONNECTIONS).map(|connection| {
        let (ids, env) = (Arc::clone(ids), cluster.env.clone());
        let (send, receive) = tokio::sync::oneshot::channel();
        cluster.env.spawn("client", async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut buffer = Vec::with_capacity(4096);
            let mut latencies = Vec::with_capacity(total / CONNECTIONS);
            for n in 0..total / CONNECTIONS {
                let id = ids[(connection * 7_919 + n * 104_729) % ids.len()];
                let request = format!("GET /v1/locate/{id} HTTP/1.1\r\nhost: cellbus\r\n\r\n");
                let sent = env.mono();
                call(&mut stream, request.as_bytes(), &mut buffer).await;
                latencies.push(env.mono().since(sent));
            }
            let _ = send.send(latencies);
        });
        receive
    });
    let mut latencies: Vec<Duration> =
        futures::future::join_all(each).await.into_iter().flat_map(Result::unwrap).collect();
    let took = cluster.env.mono().since(began);
    latencies.sort_unstable();
    let pick = |part: usize| latencies[(latencies.len() - 1) * part / 100];
    println!(
        "GET /v1/locate/{{vm}}: {} over {CONNECTIONS} connections: {:.0} a second; p50 {:?} p99 {:?}",
        latencies.len(),
        latencies.len() as f64 / took.as_secs_f64(),
        pick(50),
        pick(99)
    );
}

async fn many(cluster: &Cluster, address: SocketAddr, kind: &str, body: &[u8], ids: usize, calls: usize) {
    let head = format!(
        "POST /v1/locate HTTP/1.1\r\nhost: cellbus\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = Arc::new([head.as_bytes(), body].concat());
    let began = cluster.env.mono();
    let each = (0..2).map(|_| {
        let request = Arc::clone(&request);
        let (send, receive) = tokio::sync::oneshot::channel();
        cluster.env.spawn("client", async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let mut buffer = Vec::with_capacity(8 << 20);
            let mut bytes = 0;
            for _ in 0..calls / 2 {
                bytes = call(&mut stream, &request, &mut buffer).await;
            }
            let _ = send.send(bytes);
        });
        receive
    });
    let bytes = futures::future::join_all(each).await.remove(0).unwrap();
    let took = cluster.env.mono().since(began);
    println!(
        "POST /v1/locate, {kind}: {calls} calls of {ids} ids over 2 connections: {:.0} ids a second; {:.1} ms a call, {} bytes an answer",
        (calls * ids) as f64 / took.as_secs_f64(),
        took.as_secs_f64() * 1e3 * 2.0 / calls as f64,
        bytes
    );
}

fn main() {
    // `cargo test` runs this too, to see that it works; `cargo bench` says so.
    let measured = std::env::args().any(|arg| arg == "--bench");
    let vms = if measured { 100_000_u32 } else { 100 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let names: Vec<String> = (0..100).map(|i| format!("vc-{i:03}")).collect();
        let managers: Vec<(&str, u32, u32)> = names.iter().map(|name| (name.as_str(), 25, 64)).collect();
        let cluster = Cluster::start(4, 64, &managers).await;
        let jobs: Vec<_> = (0..vms.div_ceil(100))
            .map(|n| {
                let data = serde_json::json!({"name": "web", "count": 100, "vcpus": 1, "memory_mib": 1024, "disk_gib": 10, "image": "debian-12"});
                job("provision", &format!("job-{n}"), None, data)
            })
            .collect();
        futures::stream::iter(&jobs)
            .for_each_concurrent(16, |job| {
                let cluster = &cluster;
                async move {
                    cluster.gateway.submit(vec![Arc::clone(job)]).await.unwrap();
                    let ended = cluster.gateway.wait_job(job.id, Duration::from_secs(120)).await.unwrap();
                    assert_eq!(ended.row.state, cellbus_directory::JobState::Succeeded, "{ended:?}");
                }
            })
            .await;
        let ids: Arc<Vec<VmId>> = Arc::new(jobs.iter().flat_map(|job| (0..100).map(|n| job.id.vm(n))).collect());

        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        let served = Arc::new(Served::new(cluster.gateway.clone()));
        let app = App::new(served, cluster.env.clone(), Settings::default(), metrics, Arc::new(FixedLogLevel));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        cluster.env.spawn("http", serve(app, listener, stop.clone()));

        println!("{} VMs on 100 managers, 4 cells; server and clients share two worker threads", ids.len());
        let (singles, calls) = if measured { (500_000, 400) } else { (640, 2) };
        for _ in 0..if measured { 2 } else { 1 } {
            single(&cluster, address, &ids, singles).await;
            // Spread over the directory, as no caller's ids lie together.
            let some: Vec<VmId> = (0..10_000).map(|n| ids[(n * 104_729) % ids.len()]).collect();
            let binary: Vec<u8> = some.iter().flat_map(|id| *id.as_bytes()).collect();
            many(&cluster, address, "application/octet-stream", &binary, some.len(), calls).await;
            let texts: Vec<String> = some.iter().map(ToString::to_string).collect();
            let json = serde_json::to_vec(&texts).unwrap();
            many(&cluster, address, "application/json", &json, some.len(), calls).await;
        }
        stop.cancel();
    });
}
