//! Which metrics and labels a query of Prometheus names, and which `ops/docs/metrics.md` has. Whether a query
//! is one at all, promtool says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::workspace::root;

/// What Prometheus puts on every series itself.
const ALWAYS: &[&str] = &["instance", "job"];
/// Words of the language that are no metrics where no bracket follows.
const WORDS: &[&str] = &["and", "or", "unless", "bool", "offset", "inf", "nan", "atan2"];
/// Words that a list of labels follows.
const LISTS: &[&str] = &["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Metrics that a query names, with the labels that it asks of each, and labels that it groups by.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// By metric.
    pub metrics: BTreeMap<String, BTreeSet<String>>,
    /// In `by`, `on` and the like.
    pub groups: BTreeSet<String>,
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// Whether what comes next makes an aggregation of the word before it.
fn by_or_without(rest: &[char]) -> bool {
    let word: String = rest.iter().take_while(|c| is_name(**c)).collect();
    word == "by" || word == "without"
}

/// Takes a query apart.
#[must_use]
pub fn named(query: &str) -> Named {
    let chars: Vec<char> = query.chars().collect();
    let mut named = Named::default();
    let mut at = 0;
    // The names up to a closing bracket; what stands in quotes is a value.
    let list = |from: usize, close: char| {
        let (mut names, mut name, mut at, mut quote) = (BTreeSet::new(), String::new(), from, None);
        while at < chars.len() && (quote.is_some() || chars[at] != close) {
            match (quote, chars[at]) {
                (Some(_), '\\') => at += 1,
                (Some(open), c) if c == open => quote = None,
                (Some(_), _) => {}
                (None, c @ ('"' | '\'')) => quote = Some(c),
                (None, c) if is_name(c) => name.push(c),
                (None, _) => {
                    names.insert(std::mem::take(&mut name));
                }
            }
            at += 1;
        }
        names.insert(name);
        names.remove("");
        (names, at + 1)
    };
    while at < chars.len() {
        let c = chars[at];
        if c == '"' || c == '\'' {
            at += 1;
            while at < chars.len() && chars[at] != c {
                at += 1;
            }
            at += 1;
            continue;
        }
        if !is_name(c) {
            at += 1;
            continue;
        }
        let begin = at;
        while at < chars.len() && is_name(chars[at]) {
            at += 1;
        }
        let word: String = chars[begin..at].iter().collect();
        let next = (at..chars.len()).find(|i| !chars[*i].is_whitespace());
        let followed = next.map(|i| chars[i]);
        if LISTS.contains(&word.as_str()) {
            if let Some(open) = next.filter(|i| chars[*i] == '(') {
                let (labels, end) = list(open + 1, ')');
                named.groups.extend(labels);
                at = end;
            }
        } else if c.is_ascii_digit()
            || c == ':'
            || followed == Some('(')
            || WORDS.contains(&word.to_lowercase().as_str())
            || next.is_some_and(|i| by_or_without(&chars[i..]))
        {
            // A number, a duration, the step of a subquery, a function, `max by (...)`, a word of the language.
        } else {
            let labels = named.metrics.entry(word).or_default();
            if let Some(open) = next.filter(|i| chars[*i] == '{') {
                let (asked, end) = list(open + 1, '}');
                labels.extend(asked);
                at = end;
            }
        }
    }
    named
}

/// The table of metrics, read from its page.
#[derive(Debug)]
pub struct Table {
    /// By metric: its labels. Histograms are there as what they are queried by.
    metrics: BTreeMap<String, BTreeSet<String>>,
}

impl Table {
    /// Of `ops/docs/metrics.md`.
    ///
    /// # Panics
    /// When there is no such page, or it has no table.
    #[must_use]
    pub fn read() -> Self {
        let page = fs::read_to_string(root().join("ops/docs/metrics.md")).expect("the page of metrics is there");
        let mut metrics = BTreeMap::new();
        for line in page.lines() {
            let columns: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, name, kind, _, _, labels, ..] = columns.as_slice() else { continue };
            let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else { continue };
            let labels: BTreeSet<String> = labels
                .split(',')
                .map(|label| label.trim().trim_matches('`').to_owned())
                .filter(|l| !l.is_empty())
                .collect();
            if *kind == "histogram" {
                let with_le = labels.iter().cloned().chain(["le".to_owned()]).collect();
                metrics.insert(format!("{name}_bucket"), with_le);
                metrics.insert(format!("{name}_sum"), labels.clone());
                metrics.insert(format!("{name}_count"), labels);
            } else {
                metrics.insert(name.to_owned(), labels);
            }
        }
        assert!(metrics.len() > 50, "ops/docs/metrics.md has a table of {} metrics", metrics.len());
        Self { metrics }
    }

    /// The labels of a series, as it is called in `/metrics`; `None`: it is not in the table.
    #[must_use]
    pub fn labels(&self, metric: &str) -> Option<&BTreeSet<String>> {
        self.metrics.get(metric)
    }

    /// What a query names that does not exist. `recorded`: names of recording rules, whose labels are not
    /// known here.
    #[must_use]
    pub fn strangers(&self, query: &str, recorded: &BTreeSet<String>) -> Vec<String> {
        let named = named(query);
        let always = |label: &String| ALWAYS.contains(&label.as_str());
        let mut wrong = Vec::new();
        for (metric, labels) in &named.metrics {
            if metric == "up" || recorded.contains(metric) {
                continue;
            }
            match self.metrics.get(metric) {
                None => wrong.push(format!("no metric {metric}")),
                Some(has) => wrong.extend(
                    labels
                        .iter()
                        .filter(|label| !has.contains(*label) && !always(label))
                        .map(|label| format!("{metric} has no label {label}")),
                ),
            }
        }
        let any = |label: &String| self.metrics.values().any(|labels| labels.contains(label));
        wrong.extend(
            named.groups.iter().filter(|l| !any(l) && !always(l)).map(|l| format!("no metric has a label {l}")),
        );
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_words_and_values() {
        let named = named(
            "sum by (le, manager) (rate(a_bucket{le=\"5\", x=~'b{,c\"'}[5m] offset 1h)) > bool 2 * max(b) unless on (job) c:d:e",
        );
        let metric = |name: &str, labels: &[&str]| (name.to_owned(), labels.iter().map(|l| (*l).to_owned()).collect());
        assert_eq!(
            named.metrics,
            BTreeMap::from([metric("a_bucket", &["le", "x"]), metric("b", &[]), metric("c:d:e", &[])])
        );
        assert_eq!(named.groups, ["job", "le", "manager"].map(str::to_owned).into());
        assert_eq!(super::named("changes(a[1h:1m]) >= 6").metrics.len(), 1);
    }

    #[test]
    fn what_does_not_exist_is_said() {
        let table = Table::read();
        let none = BTreeSet::new();
        assert_eq!(
            table.strangers("max(cellbus_cells) + sum(rate(cellbus_job_seconds_bucket{le=\"5\"}[5m]))", &none),
            [""; 0]
        );
        assert_eq!(
            table.strangers("max by (colour) (cellbus_cell{x=\"1\"}) + cellbus_cells{tenant=\"a\"}", &none),
            ["no metric cellbus_cell", "cellbus_cells has no label tenant", "no metric has a label colour"]
        );
    }
}
