//! Who may talk to a process, and as whom: TLS of the listener, tokens of callers, certificates of
//! members.
//!
//! ```text
//!  connection ─▶ TLS ─┬─ ALPN of members ─▶ certificate of the members' CA, or no connection ─▶ /members/
//!                     └─ any other ───────▶ Authorization: Bearer … ─▶ Identity ─▶ role of the route
//! ```
//!
//! Promises, each with a test:
//! - files are read again while the process runs. A new certificate, key, CA or list of tokens counts
//!   from then on for what begins; a broken one changes nothing, is logged once as an ERROR and shows
//!   in `cellbus_security_file_broken`;
//! - a member's connection needs a certificate of the members' CA at both ends, and carries nothing
//!   else; no other connection carries what is between members;
//! - tokens are kept as digests only. Neither they nor keys are in logs, errors or `Debug`.
//!
//! The whole picture, for people: `ops/docs/security.md`.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cellbus_bus::Env;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::metrics::security::Metrics;

mod accept;
mod certificates;
#[cfg(feature = "otlp")]
pub(crate) mod collector;
mod identity;
pub mod listener;
mod members;
mod tokens;
mod watch;

pub use accept::{Channel, Stream};
pub use identity::{Identity, Role};
pub use members::{MEMBER_NAME, MembersTls};
pub use tokens::{Tokens, digest};

use watch::Watched;

/// Why files of keys, certificates or tokens cannot be used. No variant repeats what is in a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("{} is not there", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// The system does not give it.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than any such file is.
    #[error("{} has {bytes} bytes, more than the {max} that it may have", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        max: usize,
    },
    /// It is not what it should be.
    #[error("{}: {what}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what should be there.
        what: String,
    },
}

impl Error {
    /// Never: a file must be mended. (It is looked at again all the same.)
    #[must_use]
    pub fn retryable(&self) -> bool {
        false
    }
}

/// All of it, for one process. Cheap to clone; the default is none of it.
#[derive(Clone, Default)]
pub struct Security(Arc<Inner>);

#[derive(Default)]
struct Inner {
    tls: Option<Watched<Arc<ServerConfig>>>,
    tokens: Option<Watched<Tokens>>,
    members: Option<MembersTls>,
    #[cfg(feature = "otlp")]
    collector: Option<Watched<reqwest::Client>>,
    metrics_open: bool,
    metrics: Option<Metrics>,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { tls, tokens, members, .. } = &*self.0;
        write!(f, "Security(tls: {}, tokens: {}, members: {})", tls.is_some(), tokens.is_some(), members.is_some())
    }
}

/// Makes ring the cryptography of every client in this process that does not name its own. Idempotent.
pub fn use_ring() {
    // Only the first counts, and there is no other here.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Security {
    /// Reads what is configured. The files are read again only while [`Security::run`] runs.
    ///
    /// # Errors
    /// [`Error`]: nothing begins with a broken file.
    pub async fn open(config: &config::Config, env: &Env, metrics: Metrics) -> Result<Self, Error> {
        let tls = match &config.tls {
            None => None,
            Some(config::Tls { cert, key }) => {
                let files = vec![cert.clone(), key.clone()];
                let (clock, cert, key) = (env.clone(), cert.clone(), key.clone());
                let read = move |files: &[bytes::Bytes]| certificates::server(&cert, &key, files, &clock);
                Some(Watched::open("tls", files, Box::new(read), env, &metrics).await?)
            }
        };
        let tokens = match &config.auth.tokens {
            None => None,
            Some(path) => {
                let read = {
                    let path = path.clone();
                    move |files: &[bytes::Bytes]| Tokens::of_file(&path, files)
                };
                Some(Watched::open("tokens", vec![path.clone()], Box::new(read), env, &metrics).await?)
            }
        };
        let members = match &config.members_tls {
            None => None,
            Some(files) => Some(MembersTls::open(files, env, &metrics).await?),
        };
        #[cfg(feature = "otlp")]
        let collector = match config.otlp.as_ref().map(|otlp| otlp.tls.clone()) {
            Some(certificates) if certificates != config::OtlpTls::default() => {
                let files = certificates.files();
                let read = move |files: &[bytes::Bytes]| collector::client(&certificates, files);
                Some(Watched::open("collector", files, Box::new(read), env, &metrics).await?)
            }
            Some(_) | None => None,
        };
        let metrics_open = config.auth.metrics_open;
        Ok(Self(Arc::new(Inner {
            tls,
            tokens,
            members,
            #[cfg(feature = "otlp")]
            collector,
            metrics_open,
            metrics: Some(metrics),
        })))
    }

    /// Reads the files again every `every`, until `stop`.
    pub async fn run(self, every: Duration, env: Env, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = env.sleep(every) => {}
            }
            if let Some(tls) = &self.0.tls {
                tls.look(&env).await;
            }
            if let Some(tokens) = &self.0.tokens {
                tokens.look(&env).await;
            }
            if let Some(members) = &self.0.members {
                members.look(&env).await;
            }
            #[cfg(feature = "otlp")]
            if let Some(collector) = &self.0.collector {
                collector.look(&env).await;
            }
        }
    }

    /// `https` where the listener speaks TLS, else `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.0.tls.is_some() { "https" } else { "http" }
    }
    /// How members talk to each other; `None`: in clear, which the configuration allows on loopback only.
    #[must_use]
    pub fn members(&self) -> Option<&MembersTls> {
        self.0.members.as_ref()
    }
    /// A way to the collector of traces by the certificates in force; `None`: there are none for it.
    #[cfg(feature = "otlp")]
    pub(crate) fn collector(&self) -> Option<Arc<reqwest::Client>> {
        self.0.collector.as_ref().map(Watched::now)
    }
    /// The tokens in force; `None` while authentication is off.
    pub(crate) fn tokens(&self) -> Option<Arc<Tokens>> {
        self.0.tokens.as_ref().map(Watched::now)
    }
    /// Whether `/metrics` is for everybody.
    pub(crate) fn metrics_open(&self) -> bool {
        self.0.metrics_open
    }
    pub(crate) fn handshake_failed(&self) {
        if let Some(metrics) = &self.0.metrics {
            metrics.handshake_failed();
        }
    }
}
