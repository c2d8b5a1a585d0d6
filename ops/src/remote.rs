//! The server that a command talks to: where it is, whom to believe that it is it, who we are.
//!
//! A token is never a flag: what is on a command line, everybody on the machine can read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cellbus_cell::config::{Secret, on_loopback};
use cellbus_cell::security;
use clap::Args;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Certificate, ClientBuilder, Url};

use crate::client::Client;
use crate::exit::{Error, Result};
use crate::output::{Format, Printer};

/// The token itself, for where a file is one thing too many.
const TOKEN_VARIABLE: &str = "CELLBUS_TOKEN";
/// Bytes of a file with a token.
const TOKEN_FILE_BYTES_MAX: usize = 4_096;

/// What every command that talks to a server takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Remote {
    /// Where the server listens
    #[arg(long, global = true, value_name = "URL", env = "CELLBUS_SERVER", default_value = "http://127.0.0.1:7070")]
    server: String,
    /// Believe an https:// server by this CA (PEM), and by no other [default: the CAs of the system]
    #[arg(long, global = true, value_name = "FILE", env = "CELLBUS_CA")]
    ca: Option<PathBuf>,
    /// Sign in with the token in this file [default: the token in CELLBUS_TOKEN, if it is set]
    #[arg(long, global = true, value_name = "FILE", env = "CELLBUS_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// How to print; json is the body of the HTTP answer, and stable
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

impl Remote {
    /// The client and the printer that they describe.
    pub(crate) fn open(&self) -> Result<(Client, Printer)> {
        let (base, http) = (self.url()?, self.http()?);
        Ok((Client::new(base, http, self.output == Format::Json)?, Printer::new(self.output)))
    }
    /// The URL as it was given.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }
    /// How to print.
    pub(crate) fn format(&self) -> Format {
        self.output
    }

    fn url(&self) -> Result<Url> {
        let given = &self.server;
        let text = if given.contains("://") { given.clone() } else { format!("http://{given}") };
        let url = Url::parse(&text)
            .map_err(|error| Error::Usage(format!("--server {given}: {error}; it looks like http://127.0.0.1:7070")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Error::Usage(format!("--server {given}: only https:// and http:// are served")));
        }
        if !url.username().is_empty() || url.password().is_some() {
            // Not repeated: it may be a secret.
            return Err(Error::Usage(
                "--server: names and passwords do not go into the URL; see --token-file".to_owned(),
            ));
        }
        Ok(url)
    }

    /// A client that believes whom it should and signs in; what else it is to be is the caller's.
    pub(crate) fn http(&self) -> Result<ClientBuilder> {
        security::use_ring();
        let url = self.url()?;
        let mut http = reqwest::Client::builder();
        if url.scheme() == "http" {
            // Nobody shows a certificate, so no CA is asked for.
            http = http.tls_certs_only([]);
        } else if let Some(path) = &self.ca {
            http = http.tls_certs_only(certificates(path)?);
        }
        if let Some(token) = self.token()? {
            let far = url.scheme() == "http" && !url.host_str().is_some_and(on_loopback);
            if far {
                return Err(Error::Usage(format!(
                    "--server {}: a token would go there in clear for everybody to read; the server needs https://",
                    self.server
                )));
            }
            let invalid = |_| Error::Usage("the token has characters that no token has".to_owned());
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(invalid)?;
            value.set_sensitive(true);
            http = http.default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)]));
        }
        Ok(http)
    }

    fn token(&self) -> Result<Option<Secret>> {
        let text = match &self.token_file {
            Some(path) => {
                let text =
                    fs::read_to_string(path).with_context(|| format!("cannot read the token in {}", path.display()))?;
                if text.len() > TOKEN_FILE_BYTES_MAX {
                    return Err(Error::Usage(format!("--token-file {}: it is no file of one token", path.display())));
                }
                text
            }
            None => match std::env::var(TOKEN_VARIABLE) {
                Ok(text) => text,
                Err(_) => return Ok(None),
            },
        };
        let token = text.trim();
        if token.is_empty() || token.contains(char::is_whitespace) {
            return Err(Error::Usage("the token is empty, or more than one word".to_owned()));
        }
        Ok(Some(Secret::new(token)))
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate>> {
    let text = fs::read(path).with_context(|| format!("cannot read the CA in {}", path.display()))?;
    let none = || Error::Usage(format!("--ca {}: there is no certificate in it", path.display()));
    let certificates = Certificate::from_pem_bundle(&text).map_err(|_| none())?;
    if certificates.is_empty() { Err(none()) } else { Ok(certificates) }
}
