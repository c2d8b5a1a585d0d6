//! What a command that serves is told: the configuration, and the flags that override it.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use cellbus_cell::config::{self, Config, Override, Sources};
use clap::Args;

use crate::exit::{Error, Result};

/// Read where no file is named, if it is there.
const DEFAULT_FILE: &str = "cellbus.toml";

/// Where the configuration is.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Source {
    /// The configuration file [default: cellbus.toml here, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting, such as nats.urls=nats://host:4222; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = crate::jobs::key_value)]
    set: Vec<(String, String)>,
}

impl Source {
    /// Reads and checks everything: every mistake is in the error, a line each.
    fn load(&self, flags: Vec<Override>) -> Result<std::result::Result<Config, String>> {
        let others = self.set.iter().map(|(key, value)| Override {
            key: key.clone(),
            value: value.clone(),
            flag: format!("--set {key}"),
        });
        let overrides = flags.into_iter().chain(others).collect();
        let sources = Sources { file: self.file()?, variables: variables(), overrides };
        Ok(Config::load(sources).map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            lines.join("\n")
        }))
    }

    /// The configuration, for a command that serves nothing.
    pub(crate) fn load_or_refuse(&self) -> Result<Config> {
        refuse(self.load(Vec::new())?)
    }

    /// The configuration, with another place for data.
    pub(crate) fn load_with_data(&self, data: Option<&str>) -> Result<Config> {
        let flag =
            data.map(|data| Override { key: "data_dir".to_owned(), value: data.to_owned(), flag: "--data".to_owned() });
        refuse(self.load(flag.into_iter().collect())?)
    }

    fn file(&self) -> Result<Option<config::File>> {
        let (path, named) = match &self.config {
            Some(path) => (path.clone(), true),
            None => (PathBuf::from(DEFAULT_FILE), false),
        };
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(config::File { name: path.display().to_string(), text })),
            Err(error) if error.kind() == ErrorKind::NotFound && !named => Ok(None),
            Err(error) => Err(Error::Other(
                anyhow::Error::new(error).context(format!("cannot read the configuration file {}", path.display())),
            )),
        }
    }
}

fn refuse(loaded: std::result::Result<Config, String>) -> Result<Config> {
    loaded.map_err(|errors| Error::Usage(format!("the configuration has mistakes:\n{errors}")))
}

/// The configuration, and flags that are stronger than it.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    source: Source,
    /// Where data is kept (data_dir)
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Where the HTTP API listens (listen); port 0 takes any free one
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Cells in this process (cells)
    #[arg(long, value_name = "N")]
    cells: Option<String>,
    /// Listen beyond loopback without TLS and authentication, and talk to members in clear (http.insecure)
    #[arg(long)]
    insecure: bool,
    /// What is logged: a level or directives (log.level)
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How it is logged: text or json (log.format)
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl Settings {
    /// Reads and checks everything: every mistake is in the error, a line each.
    pub(crate) fn load(&self) -> Result<std::result::Result<Config, String>> {
        self.source.load(self.flags())
    }

    /// As [`Settings::load`], for a command that cannot go on without.
    pub(crate) fn load_or_refuse(&self) -> Result<Config> {
        refuse(self.load()?)
    }

    fn flags(&self) -> Vec<Override> {
        let flags = [
            ("data_dir", "--data", self.data.clone()),
            ("listen", "--listen", self.listen.clone()),
            ("cells", "--cells", self.cells.clone()),
            ("http.insecure", "--insecure", self.insecure.then(|| "true".to_owned())),
            ("log.level", "--log-level", self.log_level.clone()),
            ("log.format", "--log-format", self.log_format.clone()),
        ];
        let named = flags.into_iter().filter_map(|(key, flag, value)| {
            Some(Override { key: key.to_owned(), value: value?, flag: flag.to_owned() })
        });
        named.collect()
    }
}

/// Names and values that are not UTF-8 cannot be settings of ours.
fn variables() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
