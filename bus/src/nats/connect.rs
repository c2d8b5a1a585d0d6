//! The connection: servers, sign-in, encryption, and coming back with jitter.

use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use tokio::sync::watch;

use crate::env::Env;

use super::config::{Auth, Config};
use super::error::OpenError;

/// The first wait before a server is tried again.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
/// The longest. Below a lease: a server that is back must not wait for its cells.
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// Messages that may wait to be written to the connection.
const SENDING_MAX: usize = 4096;

/// Connects, trying each address once.
///
/// `connected` counts the connections: what waited on an old one may wait for ever.
pub(super) async fn connect(config: &Config, env: &Env, connected: watch::Sender<u64>) -> Result<Client, OpenError> {
    let jitter = env.clone();
    let mut options = ConnectOptions::new()
        .name(&config.name)
        .connection_timeout(config.connect_timeout)
        .request_timeout(Some(config.answer_timeout))
        // Noticed within three of these where the network itself says nothing.
        .ping_interval(Duration::from_secs(5))
        .client_capacity(SENDING_MAX)
        .reconnect_delay_callback(move |attempt| delay(attempt, jitter.random_u64()))
        .event_callback(move |event| {
            tell(&event);
            if matches!(event, Event::Connected) {
                connected.send_modify(|times| *times += 1);
            }
            std::future::ready(())
        });
    options = match &config.auth {
        Auth::None => options,
        Auth::Token(token) => options.token(token.expose().to_owned()),
        Auth::User { user, password } => options.user_and_password(user.clone(), password.expose().to_owned()),
        Auth::Nkey(seed) => options.nkey(seed.expose().trim().to_owned()),
        // What is wrong with it is not told: an error could quote it.
        Auth::Credentials(content) => options
            .credentials(content.expose())
            .map_err(|_| OpenError::Config { field: "credentials", rule: "the content of a credentials file" })?,
    };
    if config.tls.required {
        options = options.require_tls(true);
    }
    if config.tls.first {
        options = options.tls_first();
    }
    if let Some(file) = &config.tls.ca_file {
        options = options.add_root_certificates(file.clone());
    }
    if let Some((certificate, key)) = &config.tls.client_files {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    let connected = env.timeout(config.connect_timeout * 2, options.connect(config.servers.as_slice())).await;
    let servers = config.servers.iter().map(|server| without_secrets(server)).collect::<Vec<_>>().join(", ");
    let Some(connected) = connected else {
        return Err(OpenError::Unreachable { servers, source: "no answer in time".into() });
    };
    connected.map_err(|error| match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            OpenError::SignIn { source: Box::new(error) }
        }
        ConnectErrorKind::Tls => OpenError::Tls { source: Box::new(error) },
        ConnectErrorKind::ServerParse => {
            OpenError::Config { field: "servers", rule: "addresses such as nats://host:4222" }
        }
        ConnectErrorKind::Dns | ConnectErrorKind::TimedOut | ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => {
            OpenError::Unreachable { servers, source: Box::new(error) }
        }
    })
}

/// An address may carry a user and a password.
fn without_secrets(server: &str) -> String {
    match server.rsplit_once('@') {
        Some((before, host)) => match before.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://{host}"),
            None => host.to_owned(),
        },
        None => server.to_owned(),
    }
}

/// Between half of a doubling wait and the whole of it, so that the cells of a server that comes
/// back do not all come at once.
fn delay(attempt: usize, random: u64) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let whole = RECONNECT_MIN.saturating_mul(1 << doublings).min(RECONNECT_MAX);
    let half = whole / 2;
    half + half.mul_f64(random as f64 / u64::MAX as f64)
}

fn tell(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("the connection to NATS is lost; trying again"),
        Event::LameDuckMode => tracing::info!("the NATS server is about to stop; its clients move"),
        Event::SlowConsumer(_) => tracing::debug!("a reader of NATS is slow; it reads again where it was"),
        Event::ServerError(error) => tracing::warn!(%error, "the NATS server reports an error"),
        Event::ClientError(error) => tracing::debug!(%error, "the NATS client reports an error"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "the connection to NATS ends"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        assert_eq!(delay(1, 0), RECONNECT_MIN / 2);
        assert_eq!(delay(1, u64::MAX), RECONNECT_MIN);
        assert_eq!(delay(usize::MAX, u64::MAX), RECONNECT_MAX);
        assert!(delay(usize::MAX, 0) >= RECONNECT_MAX / 2);
    }

    #[test]
    fn passwords_in_addresses_are_not_shown() {
        assert_eq!(without_secrets("nats://ann:sword@fish@host:4222"), "nats://host:4222");
        assert_eq!(without_secrets("ann:swordfish@host"), "host");
        assert_eq!(without_secrets("tls://host:4222"), "tls://host:4222");
    }
}
