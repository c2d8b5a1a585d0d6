//! Signing in with a token (SASL OAUTHBEARER). The token is a JWT in a file, which somebody else renews:
//! an agent of the identity provider, Kubernetes. Clients ask for it when they start and when four fifths
//! of its life are over, and then the file is read again; so a new token is taken up in time if it is
//! there before the old one ends.
//!
//! librdkafka asks by an event, which whoever polls the client answers. The admin client of the Rust
//! binding polls no events, so that its token is handed to it here.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::bindings::rd_kafka_oauthbearer_set_token;
use rdkafka::client::{Client, ClientContext, OAuthToken};
use rdkafka::types::RDKafkaRespErr;
use serde::Deserialize;

use super::Shared;

/// Far above any token.
const BYTES_MAX: u64 = 64 << 10;
/// After a token that could not be had, as librdkafka waits too.
const AGAIN: Duration = Duration::from_secs(10);
/// Between two at the least.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The file that the token stands in.
#[derive(Debug)]
pub(super) struct TokenFile(PathBuf);

/// What of a token's claims concerns a client. The brokers check all of them.
#[derive(Deserialize)]
struct Claims {
    /// When it ends, in seconds since 1970.
    exp: f64,
    sub: Option<String>,
}

impl TokenFile {
    pub(super) fn new(file: PathBuf) -> Self {
        Self(file)
    }

    /// The token that stands there now. What is wrong with it is said without a part of it.
    pub(super) fn read(&self) -> Result<OAuthToken, String> {
        let wrong = |what: &str| format!("the token in {}: {what}", self.0.display());
        let mut text = String::new();
        fs::File::open(&self.0)
            .and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text))
            .map_err(|error| wrong(&error.to_string()))?;
        token(text.trim()).map_err(wrong)
    }
}

fn token(text: &str) -> Result<OAuthToken, &'static str> {
    const NOT_ONE: &str = "it is no JWT";
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let mut parts = text.split('.');
    let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(NOT_ONE);
    };
    if !text.bytes().all(plain) {
        return Err(NOT_ONE);
    }
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| NOT_ONE)?;
    let claims: Claims = serde_json::from_slice(&claims).map_err(|_| "it does not say when it ends (exp)")?;
    // Further off than any clock goes is as good as never.
    let lifetime_ms = (claims.exp * 1_000.0).clamp(0.0, 1e15) as i64;
    // Shown in librdkafka's log; brokers go by the token.
    let principal_name = claims.sub.filter(|sub| !sub.contains('\0')).unwrap_or_else(|| "cellbus".to_owned());
    Ok(OAuthToken { token: text.to_owned(), principal_name, lifetime_ms })
}

/// Gives a token to a client that asks nobody for it.
pub(super) fn hand_over<C: ClientContext>(client: &Client<C>, token: OAuthToken) -> Result<(), String> {
    let text = |text: String| CString::new(text).map_err(|_| "a token with a zero byte".to_owned());
    let (value, principal) = (text(token.token)?, text(token.principal_name)?);
    let mut said = [0_u8; 512];
    #[expect(unsafe_code, reason = "the binding has no safe way to give a token to an admin client")]
    // SAFETY: the client lives for the whole call, the texts end with a zero byte and are copied by it, there
    // are no extensions, and it writes into `said` no more than its length, with a zero byte at the end.
    let outcome = unsafe {
        rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            value.as_ptr(),
            token.lifetime_ms,
            principal.as_ptr(),
            std::ptr::null_mut(),
            0,
            said.as_mut_ptr().cast(),
            said.len(),
        )
    };
    if outcome == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Ok(());
    }
    let said = CStr::from_bytes_until_nul(&said).map(CStr::to_string_lossy).unwrap_or_default();
    Err(format!("the client does not take the token: {said}"))
}

/// Keeps the admin client's token fresh.
pub(super) async fn renew(shared: std::sync::Weak<Shared>) {
    loop {
        let Some(now) = shared.upgrade() else { return };
        let Some(file) = now.context.token.clone() else { return };
        let (env, closed) = (now.env.clone(), now.closed.clone());
        let handed = env.blocking("kafka token", move || {
            let token = file.read()?;
            let ends = token.lifetime_ms;
            hand_over(now.admin.inner(), token).map(|()| ends)
        });
        let pause = match handed.await {
            Some(Ok(ends)) => {
                let left = u64::try_from(ends).unwrap_or(0).saturating_sub(env.wall().0);
                (Duration::from_millis(left) * 4 / 5).max(PAUSE_MIN)
            }
            Some(Err(reason)) => {
                tracing::warn!(reason, "no new token to sign in to Kafka with; trying again");
                AGAIN
            }
            None => return,
        };
        tokio::select! {
            biased;
            () = closed.cancelled() => return,
            () = env.sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn tokens_say_when_they_end() {
        let read = token(&jwt(r#"{"sub": "ann", "exp": 1700000000, "aud": ["kafka"]}"#)).unwrap();
        assert_eq!((read.principal_name.as_str(), read.lifetime_ms), ("ann", 1_700_000_000_000));
        let nobody = token(&jwt(r#"{"exp": 1.5e300}"#)).unwrap();
        assert_eq!((nobody.principal_name.as_str(), nobody.lifetime_ms), ("cellbus", 1_000_000_000_000_000));
    }

    #[test]
    fn what_is_no_token_is_not_taken() {
        let wrong = ["", "swordfish", "a.b", "a.b.c.d", "e30.{}.c", "e30.e30.a b", "e30.%%.c"];
        for text in wrong.map(str::to_owned).into_iter().chain([jwt("{}"), jwt("[]"), jwt(r#"{"exp": "soon"}"#)]) {
            assert!(token(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_is_read_anew_and_its_secret_not_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let of = TokenFile::new(file.clone());
        assert!(of.read().map(drop).unwrap_err().contains("No such file"));
        for exp in [1, 2] {
            fs::write(&file, jwt(&format!(r#"{{"exp": {exp}}}"#)) + "\n").unwrap();
            assert_eq!(of.read().unwrap().lifetime_ms, exp * 1_000);
        }
        fs::write(&file, "swordfish").unwrap();
        let wrong = of.read().map(drop).unwrap_err();
        assert!(wrong.contains("no JWT") && !wrong.contains("swordfish"), "{wrong}");
    }
}
