//! Connections to other cells: TLS with members' certificates, or TCP in clear where none are
//! configured; with a limit on how long one may take to be made.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Uri;
use cellbus_bus::Env;
use futures::future::BoxFuture;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::security::{MEMBER_NAME, MembersTls};

/// In one data centre a connection takes milliseconds; who needs longer is as good as away.
const LIMIT: Duration = Duration::from_secs(2);

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    env: Env,
    tls: Option<MembersTls>,
}

impl Connector {
    pub(super) fn new(env: Env, tls: Option<MembersTls>) -> Self {
        Self { env, tls }
    }

    /// What addresses of members begin with.
    pub(super) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<Stream>> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("the address has no {what}"));
        let host = uri.host().ok_or_else(|| invalid("host"))?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().ok_or_else(|| invalid("port"))?;
        let made = async {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            // A question is not to wait for more.
            stream.set_nodelay(true)?;
            let Some(tls) = &self.tls else { return io::Result::Ok(Stream::Clear(stream)) };
            let name = MEMBER_NAME.try_into().map_err(io::Error::other)?;
            let shaken = TlsConnector::from(Arc::new(tls.client())).connect(name, stream).await?;
            Ok(Stream::Tls(Box::new(shaken)))
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
pub(super) enum Stream {
    /// As it is.
    Clear(TcpStream),
    /// Inside TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}
impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
