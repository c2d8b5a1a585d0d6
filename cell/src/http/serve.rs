//! Connections: accepted up to a bound, each served by hyper with its own limits on head and time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::paced::Paced;
use super::{App, Handler};

/// Bytes of a request's head. Headers in it are at most 100, hyper's own bound.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long requests under way may take once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// After an accept that failed (no more file descriptors): time for some to be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, then lets requests under way end, up to 10 s. Streams of events end at once,
/// and waits with what is known. An [`App`] is served once.
pub async fn serve(app: App, listener: TcpListener, stop: CancellationToken) {
    let connections = TaskTracker::new();
    // Made once: a router's clones share its tables.
    let handler = app.handler();
    loop {
        // A connection beyond the bound stays in the listener's backlog.
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&app, &listener) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else {
            app.env.sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Small answers are not to wait for more.
        let _ = stream.set_nodelay(true);
        let (connection_app, handler, stop) = (app.clone(), handler.clone(), stop.clone());
        let task = connections.track_future(async move {
            connection_app.metrics.connections(1);
            // A request that brings out a fault costs its connection; all the same it is told.
            let served = connection(&connection_app, handler, stream, peer, stop);
            let _ = connection_app.env.caught("http connection", served).await;
            connection_app.metrics.connections(-1);
            drop(permit);
        });
        app.env.spawn("http connection", task);
    }
    app.closing.cancel();
    connections.close();
    if app.env.timeout(DRAIN, connections.wait()).await.is_none() {
        tracing::warn!(left = connections.len(), "requests under way were cut off");
    }
}

type Accepted = (tokio::net::TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(app: &App, listener: &TcpListener) -> Option<Accepted> {
    let permit = Arc::clone(&app.connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, permit)),
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            None
        }
    }
}

async fn connection(
    app: &App,
    handler: Handler,
    stream: tokio::net::TcpStream,
    peer: SocketAddr,
    stop: CancellationToken,
) {
    let stream = Paced::new(stream, app.env.clone(), app.settings.http.write_timeout);
    // A handshake is to a connection what the head is to a request.
    let shaken = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        shaken = app.env.timeout(app.settings.http.read_timeout, app.settings.security.accept(stream)) => shaken,
    };
    let (stream, by) = match shaken {
        Some(Ok(accepted)) => accepted,
        Some(Err(error)) => {
            // Scanners, clients without TLS or with another CA: theirs to notice, ours to count.
            tracing::debug!(%error, %peer, "a connection did not become TLS");
            return app.settings.security.handshake_failed();
        }
        None => {
            tracing::debug!(%peer, "a connection did not become TLS in time");
            return app.settings.security.handshake_failed();
        }
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let mut handler = handler.clone();
        async move { Ok::<_, Infallible>(handler.answer(request.map(Body::new), peer, by).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(app.settings.http.read_timeout)
        .max_header_size(HEAD_BYTES_MAX)
        .pipeline_flush(true);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients come and go; what matters was answered.
        tracing::debug!(%error, %peer, "a connection ended early");
    }
}
