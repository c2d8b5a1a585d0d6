//! What a command prints: tables for people, or the HTTP bodies as they are.

use std::io::{self, Write as _};

use clap::ValueEnum;

use crate::client::Answer;
use crate::exit::Result;
use crate::table::{self, Column};

/// How a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people. May change.
    Table,
    /// The bodies of the HTTP API, one a line. Stable.
    Json,
}

/// Standard output. Every write may find that its reader has gone, which ends the command quietly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    format: Format,
}

impl Printer {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }
    /// Whether bodies are printed as they are.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }
    /// A list: the body, or a row for each item of it.
    pub(crate) fn list(&self, answer: &Answer, columns: &[Column]) -> Result<()> {
        match self.format {
            Format::Json => line(&answer.text),
            Format::Table => text(&table::rows(table::items(&answer.value), columns)),
        }
    }
    /// What comes after a list: the body, or rows without a head.
    pub(crate) fn more(&self, answer: &Answer, columns: &[Column]) -> Result<()> {
        match self.format {
            Format::Json => line(&answer.text),
            Format::Table => text(&table::more_rows(table::items(&answer.value), columns)),
        }
    }
    /// One thing: the body, or its fields under each other.
    pub(crate) fn one(&self, answer: &Answer) -> Result<()> {
        match self.format {
            Format::Json => line(&answer.text),
            Format::Table => text(&table::fields(&answer.value)),
        }
    }
    /// After a change: the body, or a sentence.
    pub(crate) fn done(&self, answer: &Answer, sentence: &str) -> Result<()> {
        match self.format {
            Format::Json => line(&answer.text),
            Format::Table => line(sentence),
        }
    }
}

/// A line on standard output.
pub(crate) fn line(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.trim_end_matches('\n').as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Text that ends its own lines.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
