//! A way to the collector of traces: by whom it is known, and as whom this process comes to it.

use bytes::Bytes;
use reqwest::{Certificate, Client, ClientBuilder, Identity};
use rustls::sign::CertifiedKey;

use super::Error;
use super::certificates::{Pair, pair, provider, roots, unusable};
use crate::config;

/// Of clients that go where the configuration says, and nowhere else.
pub(crate) fn builder() -> ClientBuilder {
    super::use_ring();
    Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none())
}

/// With what the files hold, in the order of [`config::OtlpTls::files`].
pub(super) fn client(certificates: &config::OtlpTls, files: &[Bytes]) -> Result<Client, Error> {
    let (mut builder, mut files) = (builder(), files.iter());
    let mut next = || files.next().expect("every file that is configured is watched");
    if let Some(path) = &certificates.ca {
        let file = next();
        roots(path, file)?;
        let unread =
            |_| Error::Invalid { path: path.clone(), what: "a certificate in it cannot vouch for others".to_owned() };
        builder = builder.tls_certs_only(Certificate::from_pem_bundle(file).map_err(unread)?);
    }
    let mut named = certificates.ca.as_ref();
    if let Some((cert, key)) = &certificates.own {
        let (cert_file, key_file) = (next(), next());
        // In words first: the client would not say which file is wrong.
        let Pair { chain, key: private } = pair(cert, key, cert_file, key_file)?;
        CertifiedKey::from_der(chain, private, &provider()).map_err(|error| unusable(cert, &error))?;
        let both = [cert_file, b"\n".as_slice(), key_file].concat();
        let unusable = |_| Error::Invalid { path: cert.clone(), what: "it cannot be used with its key".to_owned() };
        builder = builder.identity(Identity::from_pem(&both).map_err(unusable)?);
        named = named.or(Some(cert));
    }
    let path = named.cloned().unwrap_or_default();
    builder.build().map_err(|error| Error::Invalid { path, what: format!("no client can be made with it: {error}") })
}
