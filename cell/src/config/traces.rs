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
        })
    }
}
