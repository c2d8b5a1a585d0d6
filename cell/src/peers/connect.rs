//! Connections to other cells: plain TCP, with a limit on how long one may take to be made.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Uri;
use cellbus_bus::Env;
use futures::future::BoxFuture;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// In one data centre a connection takes milliseconds; who needs longer is as good as away.
const LIMIT: Duration = Duration::from_secs(2);

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    env: Env,
}

impl Connector {
    pub(super) fn new(env: Env) -> Self {
        Self { env }
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<Stream>> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("the address has no {what}"));
        let host = uri.host().ok_or_else(|| invalid("host"))?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().ok_or_else(|| invalid("port"))?;
        let made = async {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            // A question is not to wait for more.
            stream.set_nodelay(true)?;
            io::Result::Ok(Stream { stream })
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {} s", LIMIT.as_secs()));
        self.env.timeout(LIMIT, made).await.ok_or_else(late)?.map(TokioIo::new)
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Stream>>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection.
pub(super) struct Stream {
    stream: TcpStream,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}
impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
