//! TLS between members: cells of several processes, and managers that are simulated in others.
//!
//! One private CA signs members and nobody else. Each end shows a certificate of it and demands one;
//! that of whoever is called carries the name [`MEMBER_NAME`], whatever its address: cells come and
//! go, and their addresses come from the bus. Why on the listener of the API, and told apart by ALPN:
//! `ops/docs/decisions/0008-members-tls.md`.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cellbus_bus::Env;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider as _;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::certificates::{EnvTime, Pair, chain, pair, provider, roots, unusable};
use super::watch::Watched;
use crate::config;
use crate::metrics::security::Metrics;

/// The DNS name in the certificate of every member that is called.
pub const MEMBER_NAME: &str = "member.cellbus.internal";
/// What members choose by ALPN.
pub(super) const PROTOCOL: &[u8] = b"cellbus-members/1";

/// How a process talks to other members, and they to it. Cheap to clone.
#[derive(Clone)]
pub struct MembersTls {
    now: Arc<Watched<Now>>,
    env: Env,
}

impl fmt::Debug for MembersTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MembersTls")
    }
}

/// What the files hold.
struct Now {
    server: Arc<ServerConfig>,
    own: Arc<CertifiedKey>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl MembersTls {
    /// Reads CA, certificate and key, and checks that the CA vouches for the certificate now.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open(files: &config::MembersTls, env: &Env, metrics: &Metrics) -> Result<Self, Error> {
        let paths = vec![files.ca.clone(), files.cert.clone(), files.key.clone()];
        let (clock, names) = (env.clone(), paths.clone());
        let read = move |files: &[Bytes]| Now::of(&names, files, &clock);
        let now = Watched::open("members", paths, Box::new(read), env, metrics).await?;
        Ok(Self { now: Arc::new(now), env: env.clone() })
    }

    /// Reads the files again every `every`, until `stop`. For processes that have nothing but this;
    /// others run [`Security`](super::Security).
    pub async fn run(self, every: Duration, env: Env, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = env.sleep(every) => self.look(&env).await,
            }
        }
    }

    /// Looks whether the files hold something else.
    pub(super) async fn look(&self, env: &Env) {
        self.now.look(env).await;
    }

    /// For connections to other members that begin now.
    #[must_use]
    pub fn client(&self) -> ClientConfig {
        let mut config = self.client_of_any_protocol();
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config
    }

    /// As [`MembersTls::client`], for listeners that serve members alone and need not be told.
    /// Certificate and CA are those in force when a connection begins, so one is enough for ever.
    #[must_use]
    pub fn client_of_any_protocol(&self) -> ClientConfig {
        let mut config = ClientConfig::builder_with_details(provider(), Arc::new(EnvTime(self.env.clone())))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has the ciphers of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.clone()))
            .with_client_cert_resolver(Arc::new(self.clone()));
        // Every connection is judged by the certificates in force.
        config.resumption = Resumption::disabled();
        config
    }

    /// For connections of other members that begin now.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.now.now().server)
    }
}

impl Now {
    fn of(paths: &[PathBuf], files: &[Bytes], env: &Env) -> Result<Self, Error> {
        let ([ca, cert, key], [ca_file, cert_file, key_file]) = (paths, files) else {
            unreachable!("three files are watched")
        };
        let roots = roots(ca, ca_file)?;
        let no_ca = |error: rustls::client::VerifierBuilderError| Error::Invalid {
            path: ca.clone(),
            what: format!("it cannot be the members' CA: {error}"),
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider());
        let verifier = verifier.build().map_err(no_ca)?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(no_ca)?;
        let time = EnvTime(env.clone());
        let now = time.current_time().unwrap_or_else(|| UnixTime::since_unix_epoch(std::time::Duration::ZERO));

        // A process that nobody would talk to, or that could talk to nobody, is better known now.
        let own_chain = chain(cert, cert_file)?;
        let name = ServerName::try_from(MEMBER_NAME).expect("it is a DNS name");
        let (own, others) = own_chain.split_first().expect("a chain has one at the least");
        let refused = |as_what: &str, error: &rustls::Error| Error::Invalid {
            path: cert.clone(),
            what: format!("other members would not take it {as_what}: {error}"),
        };
        verifier
            .verify_server_cert(own, others, &name, &[], now)
            .map_err(|error| refused("for a member that is called", &error))?;
        clients.verify_client_cert(own, others, now).map_err(|error| refused("for a member that calls", &error))?;

        let Pair { chain, key } = pair(cert, key, cert_file, key_file)?;
        let own = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
            .map_err(|error| unusable(cert, &error))?;
        let mut server = ServerConfig::builder_with_details(provider(), Arc::new(time))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has the ciphers of TLS 1.3")
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .map_err(|error| unusable(cert, &error))?;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        // Every connection is judged by its certificate, none by an earlier one.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self { server: Arc::new(server), own: Arc::new(own), verifier })
    }
}

/// A member that is called is known by the CA and the one name, not by its address.
impl ServerCertVerifier for MembersTls {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = ServerName::try_from(MEMBER_NAME).expect("it is a DNS name");
        self.now.now().verifier.verify_server_cert(end_entity, intermediates, &name, ocsp, now)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now.now().verifier.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now.now().verifier.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now.now().verifier.supported_verify_schemes()
    }
}

impl ResolvesClientCert for MembersTls {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.now.now().own))
    }
    fn has_certs(&self) -> bool {
        true
    }
}
