//! A listener for members alone: managers that are simulated in a process of their own.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::serve::Listener;
use cellbus_bus::Env;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::accept::Stream;
use super::members::MembersTls;

/// Handshakes at once; more connections wait in the listener's backlog. Each holds some kilobytes.
const HANDSHAKES_MAX: usize = 256;
/// Members are near each other: one that takes longer is none.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// After an accept that failed (no more file descriptors): time for some to be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Handshake = BoxFuture<'static, Option<(Stream<TcpStream>, SocketAddr)>>;

/// Accepts members, or in clear whoever comes. One that is slow to shake hands holds up no other.
pub struct MembersListener {
    listener: TcpListener,
    tls: Option<MembersTls>,
    env: Env,
    shaking: FuturesUnordered<Handshake>,
}

impl std::fmt::Debug for MembersListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MembersListener")
    }
}

impl MembersListener {
    /// Over a listener.
    #[must_use]
    pub fn new(listener: TcpListener, tls: Option<MembersTls>, env: Env) -> Self {
        Self { listener, tls, env, shaking: FuturesUnordered::new() }
    }

    fn begin(&self, stream: TcpStream, peer: SocketAddr) -> Handshake {
        // An answer goes out at once; without it, all is right and only slower.
        let _ = stream.set_nodelay(true);
        let Some(tls) = self.tls.clone() else {
            return Box::pin(std::future::ready(Some((Stream::Clear(stream), peer))));
        };
        let env = self.env.clone();
        Box::pin(async move {
            // Those that do not say so are members all the same: there is nobody else here.
            let shaken = env.timeout(HANDSHAKE_LIMIT, TlsAcceptor::from(tls.server()).accept(stream)).await;
            match shaken {
                Some(Ok(stream)) => Some((Stream::Tls(Box::new(stream)), peer)),
                Some(Err(error)) => {
                    tracing::debug!(%error, %peer, "a connection of no member was refused");
                    None
                }
                None => {
                    tracing::debug!(%peer, "a connection did not become TLS in time");
                    None
                }
            }
        })
    }
}

impl Listener for MembersListener {
    type Io = Stream<TcpStream>;
    type Addr = SocketAddr;

    /// Cancel safe: handshakes that have begun go on with the next call.
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let room = self.shaking.len() < HANDSHAKES_MAX;
            tokio::select! {
                biased;
                Some(shaken) = self.shaking.next() => {
                    if let Some(accepted) = shaken {
                        return accepted;
                    }
                }
                accepted = self.listener.accept(), if room => match accepted {
                    Ok((stream, peer)) => {
                        let handshake = self.begin(stream, peer);
                        self.shaking.push(handshake);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        self.env.sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
