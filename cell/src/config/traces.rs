//! `[trace.otlp]`: where spans of jobs go.

use std::path::PathBuf;
use std::time::Duration;

/// A collector of traces, and how much it gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Otlp {
    /// Where requests go, path included.
    pub endpoint: String,
    /// A file with a header a line, such as credentials.
    pub headers_file: Option<PathBuf>,
    /// The share of jobs whose spans it gets.
    pub ratio: f64,
    /// Spans that wait for it.
    pub queue_max: usize,
    /// How long it may take to answer.
    pub time_limit: Duration,
    /// How an https endpoint is known, and as whom this process comes to it.
    pub tls: OtlpTls,
}

/// Certificates for a collector of traces. None: it is known by the CAs of the system, and this process
/// shows none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtlpTls {
    /// By whom the collector is vouched for, and nobody else.
    pub ca: Option<PathBuf>,
    /// This process's certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

#[cfg(any(test, feature = "otlp"))]
impl OtlpTls {
    /// Its files: the CA, the certificate, the key, as far as they are configured.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let own = self.own.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca.iter().chain(own).cloned().collect()
    }
}

impl super::Settings {
    /// `None`: no spans are sent.
    pub(super) fn otlp(&self, wrong: &mut impl FnMut(&str, String)) -> Option<Otlp> {
        let named = self.text("trace.otlp.endpoint");
        if named.is_empty() {
            return None;
        }
        let headers_file = self.path("trace.otlp.headers_file");
        let uri: Option<axum::http::Uri> = named.parse().ok();
        let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
        let Some(uri) = uri.filter(|uri| !uri.authority().is_some_and(|of| of.as_str().contains('@'))) else {
            let advice =
                "an endpoint is http://host:port or https://host:port; credentials go into trace.otlp.headers_file";
            wrong("trace.otlp.endpoint", advice.to_owned());
            return None;
        };
        let near = uri.host().is_some_and(|host| {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        });
        if headers_file.is_some() && uri.scheme_str() == Some("http") && !near {
            let advice = "beyond this machine its headers would go out in clear: take an https:// endpoint";
            wrong("trace.otlp.headers_file", advice.to_owned());
        }
        let tls = self.otlp_tls(uri.scheme_str() == Some("https"), wrong);
        // The standard's path, unless another is named.
        let endpoint = match uri.path() {
            "" | "/" => format!("{}/v1/traces", named.trim_end_matches('/')),
            _ => named,
        };
        Some(Otlp {
            endpoint,
            headers_file,
            ratio: self.ratio("trace.otlp.ratio"),
            queue_max: self.usize("trace.otlp.queue_max"),
            time_limit: self.time("trace.otlp.timeout"),
            tls,
        })
    }

    fn otlp_tls(&self, encrypted: bool, wrong: &mut impl FnMut(&str, String)) -> OtlpTls {
        let [ca_key, cert_key, key_key] = ["trace.otlp.ca", "trace.otlp.cert", "trace.otlp.key"];
        let [ca, cert, key] = [ca_key, cert_key, key_key].map(|key| self.path(key));
        if !encrypted {
            for (name, file) in [(ca_key, &ca), (cert_key, &cert), (key_key, &key)] {
                if file.is_some() {
                    wrong(name, "certificates are of use only with an https:// endpoint".to_owned());
                }
            }
        }
        let own = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                let advice = "a certificate is of use only with its key: set `trace.otlp.key` too";
                wrong(cert_key, advice.to_owned());
                None
            }
            (None, Some(_)) => {
                let advice = "a key is of use only with its certificate: set `trace.otlp.cert` too";
                wrong(key_key, advice.to_owned());
                None
            }
        };
        OtlpTls { ca, own }
    }
}
