//! A network of the test's own between two processes: bytes pass, or do not, until it is mended.
//! What is cut loses no byte and closes no connection, as a network that comes back does not either:
//! both ends only hear nothing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The proxy. Dropped, it closes every connection.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    passes: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Begins to listen on a port of the system's choice; [`Proxy::to`] says where it leads.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let target = Arc::<Mutex<Option<SocketAddr>>>::default();
        let (passes, passing) = watch::channel(true);
        let to = Arc::clone(&target);
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let to = *to.lock().unwrap_or_else(PoisonError::into_inner);
                // Nobody is there yet: closed, as a port without a listener would be.
                let Some(to) = to else { continue };
                connections.spawn(carry(near, to, passing.clone()));
            }
        });
        Ok(Self { address, target, passes, serving })
    }

    /// Where it leads from now on.
    pub fn to(&self, target: SocketAddr) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(target);
    }
    /// Nothing passes any more, either way.
    pub fn cut(&self) {
        self.passes.send_replace(false);
    }
    /// All that waited passes, and what comes.
    pub fn mend(&self) {
        self.passes.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn carry(near: TcpStream, to: SocketAddr, passing: watch::Receiver<bool>) {
    let mut waits = passing.clone();
    // A connection that is asked for while it is cut is not made.
    if waits.wait_for(|passes| *passes).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(to).await else { return };
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::select! {
        biased;
        () = one_way(near_read, far_write, passing.clone()) => {}
        () = one_way(far_read, near_write, passing) => {}
    }
}

async fn one_way(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut passing: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let Ok(count) = from.read(&mut bytes).await else { return };
        if count == 0 || passing.wait_for(|passes| *passes).await.is_err() {
            return;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
