//! One setting's value: how it is written, what bounds it, how it is shown.

use std::time::Duration;

pub use cellbus_bus::secret::Secret;

/// What a setting may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Up to so many characters, no controls.
    Text(usize),
    /// A whole number.
    Count(u64, u64),
    /// A number with a fraction.
    Ratio(f64, f64),
    /// A length of time: `250ms`, `30s`, `10m`, `12h`, `7d`.
    Time(Duration, Duration),
    /// A size in bytes: `512KiB`, `64MiB`, `1GiB`, `10TiB`.
    Size(u64, u64),
    /// `true` or `false`.
    Flag,
    /// Up to so many names.
    Names(usize),
    /// A text that is never printed, and never stands in the file.
    Secret,
}

impl Kind {
    /// What a person may write.
    pub(super) fn rule(&self) -> String {
        match self {
            Self::Choice(words) => words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(" or "),
            Self::Text(max) => format!("a text of up to {max} characters"),
            Self::Count(min, max) => format!("{min} to {max}"),
            Self::Ratio(min, max) => format!("a number from {min} to {max}"),
            Self::Time(min, max) => format!("a time such as \"{}\", up to \"{}\"", time(*min), time(*max)),
            Self::Size(min, max) => format!("a size such as \"{}\", up to \"{}\"", size(*min), size(*max)),
            Self::Flag => "true or false".to_owned(),
            Self::Names(max) => format!("a list of up to {max} names"),
            Self::Secret => "a secret, from the environment or a file of its own".to_owned(),
        }
    }
}

/// A setting as it came: TOML says what it is, the environment and flags are text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    /// From the environment or a flag: to be read as whatever the setting is.
    Loose(String),
    Text(String),
    Number(String),
    Flag(bool),
    List(Vec<String>),
    /// Something that no setting is.
    Other(&'static str),
}

/// A setting that has been checked.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Count(u64),
    Ratio(f64),
    Time(Duration),
    Size(u64),
    Flag(bool),
    Names(Vec<String>),
    Secret(Secret),
}

impl Value {
    /// As TOML.
    pub(super) fn toml(&self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Count(n) => n.to_string(),
            Self::Ratio(n) => format!("{n:?}"),
            Self::Time(t) => quoted(&time(*t)),
            Self::Size(n) => quoted(&size(*n)),
            Self::Flag(b) => b.to_string(),
            Self::Names(names) => format!("[{}]", names.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(", ")),
            Self::Secret(_) => "(secret)".to_owned(),
        }
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Checks one value.
pub(super) fn check(kind: &Kind, raw: &Raw) -> Result<Value, String> {
    let wrong = |what: &str| Err(format!("{what} is not {}", kind.rule()));
    let text = match raw {
        Raw::Loose(text) | Raw::Text(text) => Some(text.as_str()),
        Raw::Number(_) | Raw::Flag(_) | Raw::List(_) | Raw::Other(_) => None,
    };
    // A text where TOML wants a number is a mistake there; in a variable it is the only way.
    let number = match raw {
        Raw::Loose(text) | Raw::Number(text) => Some(text.replace('_', "")),
        Raw::Text(_) | Raw::Flag(_) | Raw::List(_) | Raw::Other(_) => None,
    };
    match kind {
        Kind::Choice(words) => match text.filter(|t| words.contains(t)) {
            Some(text) => Ok(Value::Text(text.to_owned())),
            None => wrong(&shown(raw)),
        },
        Kind::Text(max) => match text {
            Some(t) if t.chars().count() <= *max && !t.chars().any(char::is_control) => Ok(Value::Text(t.to_owned())),
            Some(_) | None => wrong(&shown(raw)),
        },
        Kind::Count(min, max) => match number.as_deref().map(str::parse::<u64>) {
            Some(Ok(n)) if (*min..=*max).contains(&n) => Ok(Value::Count(n)),
            Some(_) | None => wrong(&shown(raw)),
        },
        Kind::Ratio(min, max) => match number.as_deref().map(str::parse::<f64>) {
            Some(Ok(n)) if (*min..=*max).contains(&n) => Ok(Value::Ratio(n)),
            Some(_) | None => wrong(&shown(raw)),
        },
        Kind::Time(min, max) => match text.and_then(read_time) {
            Some(t) if (*min..=*max).contains(&t) => Ok(Value::Time(t)),
            Some(_) | None => wrong(&shown(raw)),
        },
        Kind::Size(min, max) => match text.and_then(read_size) {
            Some(n) if (*min..=*max).contains(&n) => Ok(Value::Size(n)),
            Some(_) | None => wrong(&shown(raw)),
        },
        Kind::Flag => match raw {
            Raw::Flag(b) => Ok(Value::Flag(*b)),
            Raw::Loose(t) if t == "true" => Ok(Value::Flag(true)),
            Raw::Loose(t) if t == "false" => Ok(Value::Flag(false)),
            Raw::Loose(_) | Raw::Text(_) | Raw::Number(_) | Raw::List(_) | Raw::Other(_) => wrong(&shown(raw)),
        },
        Kind::Names(max) => {
            let names: Vec<String> = match raw {
                Raw::List(names) => names.clone(),
                Raw::Loose(text) => {
                    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
                }
                Raw::Text(_) | Raw::Number(_) | Raw::Flag(_) | Raw::Other(_) => return wrong(&shown(raw)),
            };
            if names.len() > *max { wrong(&format!("a list of {}", names.len())) } else { Ok(Value::Names(names)) }
        }
        Kind::Secret => match raw {
            Raw::Loose(text) if !text.is_empty() && text.len() <= 4_096 => Ok(Value::Secret(Secret::new(text))),
            // What it holds is not repeated.
            Raw::Loose(_) => Err("the secret is empty or longer than 4096 bytes".to_owned()),
            Raw::Text(_) | Raw::Number(_) | Raw::Flag(_) | Raw::List(_) | Raw::Other(_) => Err(
                "a secret does not stand in the configuration file; give it in the environment or in a file of its own"
                    .to_owned(),
            ),
        },
    }
}

fn shown(raw: &Raw) -> String {
    let cut = |text: &str| -> String {
        let mut out: String = text.chars().take(48).flat_map(char::escape_debug).collect();
        if text.chars().nth(48).is_some() {
            out.push('…');
        }
        out
    };
    match raw {
        Raw::Loose(text) | Raw::Text(text) => format!("\"{}\"", cut(text)),
        Raw::Number(text) => cut(text),
        Raw::Flag(b) => b.to_string(),
        Raw::List(_) => "a list".to_owned(),
        Raw::Other(what) => (*what).to_owned(),
    }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..at].parse().ok()?, text[at..].trim_start()))
}

/// `30s`, `250ms`, `7d`.
pub(crate) fn read_time(text: &str) -> Option<Duration> {
    let (n, unit) = split_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    n.checked_mul(millis).map(Duration::from_millis)
}

/// `1GiB`, `512 MiB`, `100B`.
pub(super) fn read_size(text: &str) -> Option<u64> {
    let (n, unit) = split_unit(text)?;
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    n.checked_mul(1 << shift)
}

pub(super) fn time(t: Duration) -> String {
    let millis = t.as_millis();
    for (unit, each) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if millis >= each && millis.is_multiple_of(each) {
            return format!("{}{unit}", millis / each);
        }
    }
    format!("{millis}ms")
}

pub(super) fn size(n: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if n >= 1 << shift && n.is_multiple_of(1 << shift) {
            return format!("{}{unit}", n >> shift);
        }
    }
    format!("{n}B")
}
