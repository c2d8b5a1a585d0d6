//! `cellbus token`.

use cellbus_cell::security::{self, Tokens};
use clap::{ArgGroup, Args, Subcommand};

use crate::exit::{Error, Result, note};
use crate::output;

/// What tokens of ours begin with, so that one that has got out is recognised as one.
const PREFIX: &str = "cbt_";

/// Make tokens for callers of the HTTP API
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print a new token, and the line for the file that auth.tokens names, which holds its digest only
    New(New),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("role").args(["tenant", "operator"]).required(true)))]
struct New {
    /// Who is to have it: kept with every change that is made with it
    #[arg(long, value_name = "NAME")]
    name: String,
    /// It shows and changes what is this tenant's
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// It shows and changes everything
    #[arg(long)]
    operator: bool,
}

impl Command {
    pub(super) fn run(self) -> Result<()> {
        match self.action {
            Action::New(new) => new.run(),
        }
    }
}

impl New {
    fn run(self) -> Result<()> {
        let mut bytes = [0_u8; 32];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut bytes).map_err(|_| Error::Failed("the system gives no random numbers".to_owned()))?;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = format!("{PREFIX}{hex}");
        let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let role = match &self.tenant {
            Some(tenant) => format!("tenant = {}", text(tenant)),
            None => "role = \"operator\"".to_owned(),
        };
        let line = format!("{} = {{ name = {}, {role} }}", security::digest(&token), text(&self.name));
        // As a server will read it.
        if let Err(wrong) = Tokens::parse(&line) {
            let wrong = wrong.strip_prefix("line 1: ").unwrap_or(&wrong);
            return Err(Error::Usage(format!("--name, --tenant: {wrong}")));
        }
        output::line(&token)?;
        output::line(&line)?;
        note(
            "the first line is the token, which is kept nowhere; the second goes into the file that auth.tokens names",
        );
        Ok(())
    }
}
