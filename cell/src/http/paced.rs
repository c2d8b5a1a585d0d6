//! A connection whose client must go on reading: one that takes nothing of its answer for too long is
//! cut off, so that the answer is not held for ever.
//!
//! Progress is what the system takes into its own buffer, which it does in steps of about a third of
//! that buffer: a client that reads a byte now and then makes none.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use cellbus_bus::Env;
use cellbus_bus::env::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

pub(super) struct Paced {
    stream: TcpStream,
    env: Env,
    /// How long a write may take to make progress.
    limit: Duration,
    /// Runs out when the write that waits has waited too long.
    waiting: Option<BoxFuture<()>>,
}

impl Paced {
    pub(super) fn new(stream: TcpStream, env: Env, limit: Duration) -> Self {
        Self { stream, env, limit, waiting: None }
    }

    fn paced<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.waiting = None;
            return write;
        }
        let (env, limit) = (&self.env, self.limit);
        ready!(self.waiting.get_or_insert_with(|| env.sleep(limit)).as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }
}

impl AsyncRead for Paced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.paced(cx, write)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.paced(cx, write)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket has nothing to flush, so this says nothing about the client.
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shutdown = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.paced(cx, shutdown)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn env() -> Env {
        cellbus_bus::env::real(tokio::runtime::Handle::current())
    }

    async fn pair(limit: Duration) -> (Paced, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (Paced::new(server, env(), limit), client)
    }

    /// More than both ends' systems buffer.
    const ANSWER: usize = 64 << 20;

    #[tokio::test]
    async fn a_client_that_does_not_read_is_cut_off() {
        let (mut server, _client) = pair(Duration::from_millis(200)).await;
        let written = env().timeout(Duration::from_secs(20), server.write_all(&vec![b'x'; ANSWER])).await;
        let error = written.expect("it is cut off").expect_err("nobody reads it");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn one_that_reads_slowly_is_served() {
        let limit = Duration::from_secs(2);
        let (mut server, mut client) = pair(limit).await;
        let read = async {
            let (mut total, mut some) = (0, vec![0; 4 << 20]);
            while total < ANSWER {
                // Together longer than the limit, each time shorter.
                env().sleep(limit / 20).await;
                total += client.read(&mut some).await.unwrap();
            }
        };
        let (env, answer) = (env(), vec![b'x'; ANSWER]);
        let began = env.mono();
        let (written, ()) = tokio::join!(server.write_all(&answer), read);
        written.unwrap();
        assert!(env.mono().since(began) > limit / 2, "read at once: it proves nothing");
    }
}
