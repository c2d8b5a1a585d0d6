//! Bearer tokens: a TOML file with a line for each.
//!
//! ```toml
//! # SHA-256 of the token = who has it
//! 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 = { name = "portal", tenant = "acme" }
//! 60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752 = { name = "ada", role = "operator" }
//! ```
//!
//! A token has 256 random bits (`cellbus token new`), so a plain digest of it is as good as a slow
//! one, and whoever reads the file cannot call with what is in it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cellbus_bus::ids::TenantId;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use toml::de::{DeTable, DeValue};

use super::{Error, Identity, Role};

/// Tokens of one file: ten for each of the thousand tenants that there may be.
const TOKENS_MAX: usize = 10_000;
/// Bytes of a token as it comes in a request: ours have 68.
const TOKEN_BYTES_MAX: usize = 256;
/// Characters of a name.
const NAME_MAX: usize = 63;

/// SHA-256.
pub(crate) type Digest = [u8; 32];

/// Who has which token.
#[derive(Default)]
pub struct Tokens {
    /// In order.
    known: Vec<(Digest, Arc<Identity>)>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.known.len())
    }
}

/// What stands in the file for a token: its SHA-256, in hexadecimal.
#[must_use]
pub fn digest(token: &str) -> String {
    digest_of(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest_of(token: &str) -> Digest {
    Sha256::digest(token.as_bytes()).into()
}

impl Tokens {
    pub(super) fn of_file(path: &Path, files: &[Bytes]) -> Result<Self, Error> {
        let invalid = |what: String| Error::Invalid { path: path.to_owned(), what };
        let text = files.first().and_then(|file| std::str::from_utf8(file).ok());
        Self::parse(text.ok_or_else(|| invalid("it is no UTF-8 text".to_owned()))?).map_err(invalid)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// The first mistake, with its line. What is in the file is not repeated: it may be a token.
    pub fn parse(text: &str) -> Result<Self, String> {
        let line = |at: usize| 1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count();
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(1, |span| line(span.start));
            format!("line {at}: this is not TOML, or a token is there twice")
        })?;
        if table.get_ref().len() > TOKENS_MAX {
            return Err(format!("{} tokens are more than the {TOKENS_MAX} that there may be", table.get_ref().len()));
        }
        // As a file is while it is being written: nobody would be let in.
        if table.get_ref().is_empty() {
            return Err("there is no token in it".to_owned());
        }
        let mut known: Vec<(Digest, Arc<Identity>)> = Vec::with_capacity(table.get_ref().len());
        for (key, value) in table.get_ref() {
            let at = line(key.span().start);
            let digest = unhex(key.get_ref()).ok_or_else(|| {
                format!(
                    "line {at}: the key is not the SHA-256 of a token in 64 hexadecimal digits, as `cellbus token new` \
                     prints it; the token itself does not stand here"
                )
            })?;
            let identity = entry(value.get_ref()).map_err(|what| format!("line {at}: {what}"))?;
            known.push((digest, Arc::new(identity)));
        }
        known.sort_by_key(|(digest, _)| *digest);
        // Upper and lower case are the same digest.
        if known.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err("a token is there twice".to_owned());
        }
        Ok(Self { known })
    }

    /// Who has this token.
    ///
    /// Where the search goes depends on the token's digest, which a caller cannot steer without
    /// knowing the token; whether a digest is the one that is kept is told in constant time.
    #[must_use]
    pub(crate) fn find(&self, token: &str) -> Option<(Digest, Arc<Identity>)> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        self.holder(&digest_of(token))
    }

    /// As [`Tokens::find`], for who was recognised before.
    #[must_use]
    pub(crate) fn holder(&self, digest: &Digest) -> Option<(Digest, Arc<Identity>)> {
        let from = self.known.partition_point(|(known, _)| known[..8] < digest[..8]);
        let alike = self.known[from..].iter().take_while(|(known, _)| known[..8] == digest[..8]);
        let mut found = None;
        for (known, identity) in alike {
            if bool::from(known.ct_eq(digest)) {
                found = Some((*known, Arc::clone(identity)));
            }
        }
        found
    }
}

fn unhex(text: &str) -> Option<Digest> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let mut digest = Digest::default();
    if pairs.len() != digest.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?;
    }
    Some(digest)
}

fn entry(value: &DeValue<'_>) -> Result<Identity, String> {
    let table = value.as_table().ok_or("it is no table such as { name = \"portal\", tenant = \"acme\" }")?;
    let (mut name, mut role, mut tenant) = (None, None, None);
    for (key, value) in table {
        let place = match key.get_ref().as_ref() {
            "name" => &mut name,
            "role" => &mut role,
            "tenant" => &mut tenant,
            _ => return Err("it has `name`, `role` and `tenant`, and nothing else".to_owned()),
        };
        *place = Some(value.get_ref().as_str().ok_or("`name`, `role` and `tenant` are texts")?);
    }
    let name = name.filter(|name| {
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-@".contains(&c);
        (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain)
    });
    let name = name.ok_or_else(|| format!("it has no `name` of 1 to {NAME_MAX} of [A-Za-z0-9._@-]"))?.to_owned();
    let role = match (role, tenant) {
        (Some("operator"), None) => Role::Operator,
        (Some("operator"), Some(_)) => return Err("an operator has no `tenant`".to_owned()),
        (Some("tenant") | None, Some(tenant)) => {
            Role::Tenant(tenant.parse::<TenantId>().map_err(|error| format!("`tenant`: {error}"))?)
        }
        (Some("tenant") | None, None) => return Err("it has neither `tenant` nor `role = \"operator\"`".to_owned()),
        (Some(_), _) => return Err("`role` is \"tenant\" or \"operator\"".to_owned()),
    };
    Ok(Identity { name, role })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(token: &str, entry: &str) -> String {
        format!("{} = {{ {entry} }}\n", digest(token))
    }

    #[test]
    fn a_token_is_found_by_its_digest_only() {
        let text = line("cbt_one", "name = \"portal\", tenant = \"acme\"")
            + &line("cbt_two", "name = \"ada@example\", role = \"operator\"")
                .to_uppercase()
                .replace("NAME = \"ADA@EXAMPLE\", ROLE = \"OPERATOR\"", "name = \"ada@example\", role = \"operator\"");
        let tokens = Tokens::parse(&text).unwrap();
        let who = |token: &str| tokens.find(token).map(|(_, identity)| identity.who());
        assert_eq!(who("cbt_one").as_deref(), Some("acme/portal"));
        assert_eq!(who("cbt_two").as_deref(), Some("ada@example"));
        for wrong in ["", "cbt_on", "cbt_onee", "CBT_ONE", &digest("cbt_one"), &"x".repeat(1_000)] {
            assert_eq!(who(wrong), None);
        }
        assert!(!format!("{tokens:?}").contains("acme"));
    }

    #[test]
    fn mistakes_are_named_with_their_line_and_nothing_of_the_file() {
        let good = line("a", "name = \"portal\", tenant = \"acme\"");
        for (text, what) in [
            (format!("{good}cbt_secret = {{ name = \"x\", tenant = \"acme\" }}\n"), "line 2: the key is not"),
            (format!("{good}\ncbt_secret == 3"), "line 3: this is not TOML"),
            ("# nobody\n".to_owned(), "there is no token in it"),
            (format!("{good}{good}"), "twice"),
            (good.clone() + &good.replace("acme", "other").replace(&digest("a"), &digest("a").to_uppercase()), "twice"),
            (line("a", "name = \"portal\""), "line 1: it has neither"),
            (line("a", "name = \"portal\", tenant = \"Cbt_secret\""), "`tenant`"),
            (line("a", "name = \"portal\", role = \"cbt_secret\""), "`role` is"),
            (line("a", "name = \"cbt secret\", role = \"operator\""), "no `name`"),
            (line("a", "name = \"x\", role = \"operator\", tenant = \"acme\""), "an operator has no"),
            (line("a", "name = \"x\", role = \"operator\", cbt_secret = 1"), "nothing else"),
            (format!("{} = 3", digest("a")), "no table"),
        ] {
            let error = Tokens::parse(&text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
            assert!(!error.contains("cbt_secret") && !error.contains(&digest("a")), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}") {
            let _ = Tokens::parse(&text);
            let _ = Tokens::parse(&format!("{} = {text}", digest("a")));
        }
    }
}
