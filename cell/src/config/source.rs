//! Where settings come from: a TOML text, variables, flags. Each value keeps its origin.

use std::fmt;

use toml::de::{DeTable, DeValue};

use super::Error;
use super::keys::{KEYS, MANAGER_KEYS, MANAGERS_MAX};
use super::value::Raw;

/// Bytes of a configuration file.
const FILE_BYTES_MAX: usize = 1 << 20;
/// What begins the names of variables.
const PREFIX: &str = "CELLBUS_";

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is the default.
    Default,
    /// A line of the configuration file.
    File {
        /// The file, as it was named.
        name: String,
        /// From 1.
        line: usize,
    },
    /// A variable of the environment.
    Variable(String),
    /// A flag of the command line.
    Flag(String),
}
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Variable(name) => write!(f, "{name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// What a configuration is read from, weakest first.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The configuration file, if there is one.
    pub file: Option<File>,
    /// Variables of the environment, all of them: those that count are picked out.
    pub variables: Vec<(String, String)>,
    /// Flags of the command line.
    pub overrides: Vec<Override>,
}

/// A configuration file that was read.
#[derive(Clone, Debug)]
pub struct File {
    /// As it was named.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// A flag that sets one key.
#[derive(Clone, Debug)]
pub struct Override {
    /// The key, such as `disk.free_min`.
    pub key: String,
    /// As one would write it in a variable.
    pub value: String,
    /// The flag, such as `--listen`, for messages.
    pub flag: String,
}

/// A value for a key, not yet checked.
#[derive(Clone, Debug)]
pub(super) struct Set {
    pub(super) key: &'static super::keys::Key,
    pub(super) raw: Raw,
    pub(super) origin: Origin,
}

/// All that the sources say, weakest first; managers apart.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) sets: Vec<Set>,
    pub(super) managers: Vec<(Origin, Vec<Set>)>,
    pub(super) errors: Vec<Error>,
}

pub(super) fn gather(sources: &Sources) -> Gathered {
    let mut out = Gathered::default();
    if let Some(file) = &sources.file {
        out.file(file);
    }
    let mut variables: Vec<_> = sources.variables.iter().collect();
    variables.sort();
    for (name, value) in variables {
        out.variable(name, value);
    }
    for Override { key, value, flag } in &sources.overrides {
        let origin = Origin::Flag(flag.clone());
        match KEYS.iter().find(|k| k.path == key) {
            Some(key) => out.sets.push(Set { key, raw: Raw::Loose(value.clone()), origin }),
            None => out.unknown(key, KEYS.iter().map(|k| k.path.to_owned()), origin),
        }
    }
    out
}

/// `jobs.remember` as a variable: `CELLBUS_JOBS__REMEMBER`; `members.tls.ca`:
/// `CELLBUS_MEMBERS__TLS__CA`; `bus`: `CELLBUS__BUS`.
pub(super) fn variable_name(path: &str) -> String {
    let name = path.to_ascii_uppercase().replace('.', "__");
    if path.contains('.') { format!("{PREFIX}{name}") } else { format!("{PREFIX}_{name}") }
}

impl Gathered {
    fn unknown(&mut self, name: &str, known: impl Iterator<Item = String>, origin: Origin) {
        let hint = known
            .map(|k| (strsim::damerau_levenshtein(name, &k), k))
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, k)| format!("; the nearest key is `{k}`"))
            .unwrap_or_default();
        self.errors.push(Error {
            key: name.chars().take(80).collect(),
            origin,
            message: format!("there is no such key{hint}"),
        });
    }

    fn variable(&mut self, name: &str, value: &str) {
        // `CELLBUS_SERVER` and the like are no configuration: only names with `__` count.
        let Some(rest) = name.strip_prefix(PREFIX).filter(|_| name[PREFIX.len() - 1..].contains("__")) else { return };
        let origin = Origin::Variable(name.to_owned());
        match KEYS.iter().find(|k| variable_name(k.path) == name) {
            Some(key) => self.sets.push(Set { key, raw: Raw::Loose(value.to_owned()), origin }),
            None if rest.starts_with("MANAGERS__") => {
                let message = "managers are set in the configuration file only".to_owned();
                self.errors.push(Error { key: "managers".to_owned(), origin, message });
            }
            None => self.unknown(name, KEYS.iter().map(|k| variable_name(k.path)), origin),
        }
    }

    fn file(&mut self, file: &File) {
        let whole = |line, message: String| Error {
            key: String::new(),
            origin: Origin::File { name: file.name.clone(), line },
            message,
        };
        if file.text.len() > FILE_BYTES_MAX {
            self.errors.push(whole(
                1,
                format!("{} bytes are more than the {FILE_BYTES_MAX} that it may have", file.text.len()),
            ));
            return;
        }
        let origin = |offset: usize| Origin::File { name: file.name.clone(), line: line_of(&file.text, offset) };
        let table = match DeTable::parse(&file.text) {
            Ok(table) => table,
            Err(error) => {
                let line = error.span().map_or(1, |span| line_of(&file.text, span.start));
                self.errors.push(whole(line, format!("this is not TOML: {}", error.message().replace('\n', "; "))));
                return;
            }
        };
        for (name, value) in table.get_ref() {
            let at = name.span().start;
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("managers", DeValue::Array(managers)) => {
                    if managers.len() > MANAGERS_MAX {
                        let message =
                            format!("{} managers are more than the {MANAGERS_MAX} that there may be", managers.len());
                        self.errors.push(Error { key: "managers".to_owned(), origin: origin(at), message });
                        continue;
                    }
                    for manager in managers {
                        let start = origin(manager.span().start);
                        match manager.get_ref().as_table() {
                            Some(table) => {
                                let mut sets = Vec::new();
                                self.walk("", table, MANAGER_KEYS, "managers.", &origin, &mut sets);
                                self.managers.push((start, sets));
                            }
                            None => self.errors.push(Error {
                                key: "managers".to_owned(),
                                origin: start,
                                message: "each manager is a table: [[managers]]".to_owned(),
                            }),
                        }
                    }
                }
                ("managers", _) => self.errors.push(Error {
                    key: "managers".to_owned(),
                    origin: origin(at),
                    message: "managers are a list of tables: [[managers]]".to_owned(),
                }),
                _ => {}
            }
        }
        let mut sets = Vec::new();
        self.walk("", table.get_ref(), KEYS, "", &origin, &mut sets);
        self.sets.append(&mut sets);
    }

    fn walk(
        &mut self,
        prefix: &str,
        table: &DeTable<'_>,
        keys: &'static [super::keys::Key],
        shown: &str,
        origin: &impl Fn(usize) -> Origin,
        sets: &mut Vec<Set>,
    ) {
        for (name, value) in table {
            let path = format!("{prefix}{}", name.get_ref());
            if prefix.is_empty() && shown.is_empty() && path == "managers" {
                continue;
            }
            let at = origin(name.span().start);
            if let Some(key) = keys.iter().find(|k| k.path == path) {
                sets.push(Set { key, raw: raw(value.get_ref()), origin: at });
                continue;
            }
            match value.get_ref() {
                DeValue::Table(inner) if keys.iter().any(|k| k.path.starts_with(&format!("{path}."))) => {
                    self.walk(&format!("{path}."), inner, keys, shown, origin, sets);
                }
                DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_)
                | DeValue::Table(_) => {
                    self.unknown(&format!("{shown}{path}"), keys.iter().map(|k| format!("{shown}{}", k.path)), at);
                }
            }
        }
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        // Other radixes than ten are left as they are written, and refused as no number.
        DeValue::Integer(n) => Raw::Number(n.to_string()),
        DeValue::Float(n) => Raw::Number(n.to_string()),
        DeValue::Boolean(b) => Raw::Flag(*b),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
        DeValue::Array(items) => items
            .iter()
            .map(|item| item.get_ref().as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map_or(Raw::Other("a list of other things than texts"), Raw::List),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count()
}
