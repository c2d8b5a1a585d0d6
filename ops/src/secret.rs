//! Secrets that a broker is shown, from where the configuration says that they are.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use cellbus_bus::secret::Secret;
use cellbus_cell::config::SecretFrom;

use crate::exit::{Error, Result};

/// Far above any token, password, seed or credentials file.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// A secret.
pub(crate) fn secret(from: &SecretFrom) -> Result<Secret> {
    match from {
        SecretFrom::Given(secret) => Ok(secret.clone()),
        SecretFrom::File(file) => from_file(file),
    }
}

/// What the file holds, without the newline that editors leave behind it.
pub(crate) fn from_file(file: &Path) -> Result<Secret> {
    let mut text = String::new();
    fs::File::open(file)
        .and_then(|opened| opened.take(SECRET_BYTES_MAX).read_to_string(&mut text))
        .with_context(|| format!("cannot read the secret in {}", file.display()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(Error::Usage(format!("{} is empty: it is to hold a secret", file.display())));
    }
    Ok(Secret::new(text))
}
