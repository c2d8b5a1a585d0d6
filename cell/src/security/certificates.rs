//! Certificates and keys of PEM files, as rustls takes them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cellbus_bus::Env;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig};

use super::Error;

/// Certificates of one file.
const CERTIFICATES_MAX: usize = 100;

/// What callers of the API may choose by ALPN. One that names nothing gets the same.
const API_PROTOCOL: &[u8] = b"http/1.1";

/// The one provider of cryptography that there is in this build.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The clock by which certificates are judged.
#[derive(Debug)]
pub(super) struct EnvTime(pub(super) Env);
impl TimeProvider for EnvTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(self.0.wall().0)))
    }
}

/// A certificate and its key.
pub(super) struct Pair {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// The certificates of a file, its own first.
pub(super) fn chain(path: &Path, file: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let invalid = |what: String| Error::Invalid { path: path.to_owned(), what };
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(file) {
        chain.push(certificate.map_err(|error| invalid(format!("a certificate in it is no PEM: {error}")))?);
        if chain.len() > CERTIFICATES_MAX {
            return Err(invalid(format!("it has more than {CERTIFICATES_MAX} certificates")));
        }
    }
    if chain.is_empty() {
        return Err(invalid("there is no certificate in it (-----BEGIN CERTIFICATE-----)".to_owned()));
    }
    Ok(chain)
}

/// The key of a file. What the file holds is not repeated in an error.
fn key(path: &Path, file: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(file).map_err(|_| Error::Invalid {
        path: path.to_owned(),
        what: "there is no private key in it that is not itself encrypted (-----BEGIN PRIVATE KEY-----)".to_owned(),
    })
}

pub(super) fn pair(cert: &Path, key_path: &Path, cert_file: &[u8], key_file: &[u8]) -> Result<Pair, Error> {
    Ok(Pair { chain: chain(cert, cert_file)?, key: key(key_path, key_file)? })
}

/// Those whose certificates count.
pub(super) fn roots(path: &Path, file: &[u8]) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(path, file)? {
        roots.add(certificate).map_err(|error| Error::Invalid {
            path: path.to_owned(),
            what: format!("a certificate in it cannot vouch for others: {error}"),
        })?;
    }
    Ok(Arc::new(roots))
}

/// Of the API: a certificate of its own, none asked of callers.
pub(super) fn server(cert: &Path, key: &Path, files: &[Bytes], env: &Env) -> Result<Arc<ServerConfig>, Error> {
    let [cert_file, key_file] = files else { unreachable!("two files are watched") };
    let Pair { chain, key } = pair(cert, key, cert_file, key_file)?;
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(EnvTime(env.clone())))
        .with_safe_default_protocol_versions()
        .expect("ring has the ciphers of TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| unusable(cert, &error))?;
    config.alpn_protocols = vec![API_PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}

/// Certificate and key that do not go together, or a kind that is not known.
pub(super) fn unusable(cert: &Path, error: &rustls::Error) -> Error {
    let what = match error {
        rustls::Error::InconsistentKeys(_) => "the key beside it is that of another certificate".to_owned(),
        other => format!("it cannot be used with its key: {other}"),
    };
    Error::Invalid { path: cert.to_owned(), what }
}
