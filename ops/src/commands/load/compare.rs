//! `cellbus load --compare`.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cellbus_simulator::load::{Comparison, Recording, Row, Verdict, compare};
use serde_json::{Value, json};

use crate::exit::{Error, Result};
use crate::output::{self, Format};
use crate::table::{self, Column, column};

/// Far above what `--json` writes of the longest run.
const RECORDING_BYTES_MAX: u64 = 256 << 20;

const COLUMNS: &[Column] = &[
    column("WHAT", "what"),
    column("FIRST", "first"),
    column("SECOND", "second"),
    column("CHANGE", "change"),
    column("SPREAD", "spread"),
    column("VERDICT", "verdict"),
];

/// Prints what the second did better or worse than the first.
pub(super) fn run(files: &[PathBuf], format: Format) -> Result<()> {
    let [first, second] = files else {
        return Err(Error::Usage("--compare takes two files that --json has written".to_owned()));
    };
    let comparison = compare(&read(first)?, &read(second)?);
    match format {
        Format::Json => output::line(&serde_json::to_string(&comparison).context("a comparison is plain data")?),
        Format::Table => output::text(&shown(&comparison)),
    }
}

fn read(path: &Path) -> Result<Recording> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut text = String::new();
    BufReader::new(file)
        .take(RECORDING_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    // Any object has the fields of a recording, all of which may be left out; only a recording has this one.
    if value.get("series").is_none() {
        let sentence = format!("{} was not written by cellbus load --json", path.display());
        return Err(Error::Failed(sentence));
    }
    Ok(serde_json::from_value(value).with_context(|| format!("{} is no recording of a run", path.display()))?)
}

fn shown(comparison: &Comparison) -> String {
    let rows: Vec<Value> = comparison.rows.iter().map(row).collect();
    let mut out = table::rows(&rows, COLUMNS);
    let mut list = |head: &str, lines: &[String]| {
        if !lines.is_empty() {
            out.push_str(&format!("\n{head}\n"));
            lines.iter().for_each(|line| out.push_str(&format!("  {line}\n")));
        }
    };
    list("not the same in both:", &comparison.differences);
    list("take care:", &comparison.warnings);
    out.push_str(&format!("\n{}\n", comparison.method));
    out
}

fn row(row: &Row) -> Value {
    let percent = |part: f64| format!("{:+.1} %", part * 100.0);
    json!({
        "what": row.what,
        "first": number(row.a),
        "second": number(row.b),
        "change": row.change.map(percent),
        "spread": row.spread.map(|(low, high)| format!("{} to {}", percent(low), percent(high))),
        "verdict": match row.verdict {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::NoClearDifference => "no clear difference",
            Verdict::Unknown => "-",
        },
    })
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "-".to_owned()
    } else if value >= 100.0 || value == value.trunc() {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_for_people() {
        let told = row(&Row {
            what: "latency p50, ms".to_owned(),
            a: 20.0,
            b: 25.123,
            change: Some(0.25),
            spread: Some((0.2, 0.304)),
            verdict: Verdict::Worse,
        });
        assert_eq!(
            told,
            json!({"what": "latency p50, ms", "first": "20", "second": "25.12", "change": "+25.0 %",
                "spread": "+20.0 % to +30.4 %", "verdict": "worse"})
        );
        assert_eq!((number(f64::NAN), number(1_234.5)), ("-".to_owned(), "1234".to_owned()));
    }
}
