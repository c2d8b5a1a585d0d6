use super::fake::known;
use super::*;

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let server = Server::start().await;
    assert_eq!(problem(server.get("/v2/jobs").await, 404).await.0, "not_found");
    assert_eq!(problem(server.get("/v1/jobs/").await, 404).await.0, "not_found");
    let answer = server.client.delete(server.url("/v1/jobs")).send().await.unwrap();
    assert!(answer.headers()["allow"].to_str().unwrap().contains("GET"));
    assert_eq!(problem(answer, 405).await.0, "method_not_allowed");
    assert_eq!(problem(server.post(&format!("/v1/locate/{}", known(0))).await, 405).await.0, "method_not_allowed");
    assert_eq!(problem(server.get("/v1/vms/%ff").await, 400).await.0, "invalid_id");
}

#[tokio::test]
async fn parameters_that_no_route_knows_are_refused() {
    let server = Server::start().await;
    for route in routes::ROUTES {
        let path = route.path.replace("{id}", &known(0).to_string()).replace("{vm}", &known(0).to_string());
        let method = reqwest::Method::from_bytes(route.method.as_bytes()).unwrap();
        let answer = server.client.request(method, server.url(&format!("{path}?bogus=1"))).send().await.unwrap();
        let (code, value) = problem(answer, 400).await;
        assert_eq!(code, "unknown_parameter", "{} {}", route.method, route.path);
        assert!(value["detail"].as_str().unwrap().contains("bogus"));
    }
}

#[tokio::test]
async fn long_uris_and_heads_are_refused() {
    let server = Server::start().await;
    let answer = server.get(&format!("/v1/vms?name={}", "x".repeat(9_000))).await;
    assert_eq!(problem(answer, 414).await.0, "uri_too_long");
    let request = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "y".repeat(100_000));
    let answer = server.raw(request.as_bytes()).await;
    // The answer may be lost when the server closes while we still write: never a 200.
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_body_is_read_to_its_end_even_when_refused() {
    let server = Server::start().await;
    // 4 MiB to a path that is not there, and then the same connection goes on.
    let body = vec![b'x'; 4 << 20];
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("POST /v1/nothing HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(answer.contains("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn larger_bodies_are_refused_unread() {
    let server = Server::start().await;
    // Declared: refused before a byte of it came.
    let answer = server.raw(b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 4194305\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\"too_large\""), "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    // Not declared: refused when it has become too large.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = [b"100000\r\n".as_slice(), &[b'x'; 0x100000], b"\r\n"].concat();
    for _ in 0..5 {
        // The server may have closed after the fourth.
        if stream.write_all(&chunk).await.is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn slow_clients_are_not_waited_for() {
    let server = Server::with(|settings| settings.http.read_timeout = Duration::from_millis(100)).await;
    let answer = server.raw(b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc").await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("\"body_timeout\""), "{answer}");
    // A head that never ends: closed, with or without a word.
    let answer = server.raw(b"GET /healthz HTTP/1.1\r\nhost:").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn bodies_in_flight_are_bounded_all_together() {
    let server = Server::with(|settings| {
        // Room for one body of 4 MiB.
        settings.http.bodies_max_bytes = 4 << 20;
        settings.http.read_timeout = Duration::from_millis(300);
    })
    .await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first.write_all(b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 4194304\r\n\r\nx").await.unwrap();
    // The second waits for room, which the first gives back when it is given up; it is then served.
    let answer = server.submit("/v1/jobs", &provision("1")).await;
    assert_eq!(answer.status(), 202);
}

#[tokio::test]
async fn without_room_for_a_body_the_client_hears_so() {
    let server = Server::with(|settings| settings.http.bodies_max_bytes = 4 << 20).await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first.write_all(b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 4194304\r\n\r\nx").await.unwrap();
    // The first holds all the room for longer than a second may wait. Asked again until it does.
    loop {
        let answer = server.submit("/v1/jobs", &provision("1")).await;
        if answer.status() == 429 {
            assert_eq!(problem(answer, 429).await.0, "too_many_requests");
            return;
        }
    }
}

#[tokio::test]
async fn head_takes_what_get_takes() {
    let server = Server::start().await;
    let head = |path: &str| server.client.head(server.url(path)).send();
    assert_eq!(head("/v1/vms?limit=2").await.unwrap().status(), 200);
    assert_eq!(head("/v1/vms?limt=2").await.unwrap().status(), 400);
}

#[tokio::test]
async fn connections_are_bounded() {
    let server = Server::with(|settings| {
        settings.http.connections_max = 1;
        settings.http.read_timeout = Duration::from_secs(20);
    })
    .await;
    let first = TcpStream::connect(server.address).await.unwrap();
    let (second, request) = (server.address, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut second = TcpStream::connect(second).await.unwrap();
    second.write_all(request).await.unwrap();
    let mut byte = [0; 1];
    let waiting = tokio::select! {
        biased;
        _ = second.read(&mut byte) => false,
        () = env().sleep(Duration::from_millis(100)) => true,
    };
    assert!(waiting, "served beside the one connection that there may be");
    drop(first);
    let mut answer = String::new();
    second.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("200 OK"), "{answer}");
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let server = Server::start().await;
    let answer = server.raw(b"hello\r\n\r\n").await;
    // Refused, or just closed: never taken.
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(server.get("/healthz").await.status(), 200);
}
