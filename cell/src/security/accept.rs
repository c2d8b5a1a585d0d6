//! What a connection becomes before its first request: in clear, TLS of a caller, TLS of a member.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Security, members};

/// Who can be at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Anybody, and anybody listens in: loopback, or a network that is said to be trusted.
    Clear,
    /// Anybody; the caller's token says who.
    Tls,
    /// A member, by its certificate.
    Member,
}

/// A connection.
pub enum Stream<S> {
    /// As it is.
    Clear(S),
    /// Inside TLS.
    Tls(Box<TlsStream<S>>),
}

impl<S> std::fmt::Debug for Stream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Clear(_) => "Stream::Clear",
            Self::Tls(_) => "Stream::Tls",
        })
    }
}

impl Security {
    /// Shakes hands, where there is TLS. A client that says that it is a member must prove it.
    /// The caller bounds the time.
    pub(crate) async fn accept<S>(&self, stream: S) -> io::Result<(Stream<S>, Channel)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(tls) = &self.0.tls else { return Ok((Stream::Clear(stream), Channel::Clear)) };
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let hello = start.client_hello();
        let member = hello.alpn().is_some_and(|mut names| names.any(|name| name == members::PROTOCOL));
        let (config, channel): (Arc<ServerConfig>, _) = match &self.0.members {
            Some(members) if member => (members.server(), Channel::Member),
            // Without TLS for members none is one: ALPN then finds no protocol, and the handshake ends.
            Some(_) | None => (Arc::clone(&tls.now()), Channel::Tls),
        };
        let stream = start.into_stream(config).await?;
        Ok((Stream::Tls(Box::new(stream)), channel))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Clear(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
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
