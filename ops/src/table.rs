//! JSON for people: lists as tables, single things as fields under each other.
//!
//! On a terminal that is too narrow for a list, each item is shown as its fields under each other: an
//! id that is cut into pieces can be neither read nor copied. Anywhere else nothing wraps and nothing
//! is coloured, so that `| grep` and `| awk` see one row a line; `COLUMNS` asks for a width there too.

use std::io::{self, IsTerminal as _};

use comfy_table::{Attribute, Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde_json::Value;

/// A column: its head, and where its value lies in an item (`a.b`, or `a|b` for the first there is).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    head: &'static str,
    path: &'static str,
}

impl Column {
    /// Whether `item` has something to show in it.
    pub(crate) fn has_value(&self, item: &Value) -> bool {
        find(item, self.path).is_some()
    }
}

/// A column.
pub(crate) const fn column(head: &'static str, path: &'static str) -> Column {
    Column { head, path }
}

/// The rows of a list, whatever it is wrapped in: a page, a batch, or bare.
pub(crate) fn items(body: &Value) -> &[Value] {
    let inner = match body {
        Value::Object(map) => map
            .get("items")
            .or_else(|| map.get("jobs"))
            .or_else(|| if map.len() == 1 { map.values().next() } else { None })
            .unwrap_or(body),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => body,
    };
    match inner {
        Value::Array(items) => items,
        Value::Null => &[],
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => std::slice::from_ref(inner),
    }
}

/// A table of `items`. A last line says so when there are none.
pub(crate) fn rows(items: &[Value], columns: &[Column]) -> String {
    if items.is_empty() {
        return "none\n".to_owned();
    }
    let mut table = Table::new();
    let bold = styled();
    table.set_header(columns.iter().map(|column| {
        let cell = Cell::new(column.head);
        if bold { cell.add_attribute(Attribute::Bold) } else { cell }
    }));
    filled(table, items, columns, width())
}

/// The rows of `items` alone, as they follow a table of [`rows`].
pub(crate) fn more_rows(items: &[Value], columns: &[Column]) -> String {
    if items.is_empty() {
        return String::new();
    }
    filled(Table::new(), items, columns, width())
}

/// The table whole, or, where that is wider than there is room for, item by item.
fn filled(mut table: Table, items: &[Value], columns: &[Column], room: Option<u16>) -> String {
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !styled() {
        table.force_no_tty();
    }
    for item in items {
        table.add_row(columns.iter().map(|column| {
            let value = find(item, column.path);
            let cell = Cell::new(shown(value));
            if value.is_some_and(Value::is_number) { cell.set_alignment(CellAlignment::Right) } else { cell }
        }));
    }
    // As wide as their heads, so that rows which follow later stand under them too.
    for (column, shown) in table.column_iter_mut().zip(columns) {
        let width = u16::try_from(shown.head.len()).unwrap_or(u16::MAX) + column.padding_width();
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
    }
    let whole = finished(&table);
    let widest = whole.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    if room.is_some_and(|room| widest > usize::from(room)) { stacked(items, columns) } else { whole }
}

/// Each item's fields under each other, and an empty line between items.
fn stacked(items: &[Value], columns: &[Column]) -> String {
    let head = columns.iter().map(|column| column.head.len()).max().unwrap_or(0);
    let mut out = String::new();
    for item in items {
        for column in columns {
            out.push_str(&format!("{:head$}  {}\n", column.head, shown(find(item, column.path))));
        }
        out.push('\n');
    }
    out
}

/// The fields of one thing under each other; lists of things in it become tables of their own.
pub(crate) fn fields(body: &Value) -> String {
    let mut out = String::new();
    section(&mut out, "", body);
    out
}

/// Rows of words under each other, all but the first column to the right where they are figures.
pub(crate) fn grid(rows: &[Vec<String>]) -> String {
    let mut table = plain();
    for row in rows {
        table.add_row(row);
    }
    finished(&table)
}

fn section(out: &mut String, title: &str, body: &Value) {
    if !title.is_empty() {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(title);
        out.push_str(":\n");
    }
    match body {
        Value::Object(map) => {
            let mut table = plain();
            let mut nested = Vec::new();
            for (key, value) in map {
                match value {
                    Value::Array(items) if items.iter().any(Value::is_object) => nested.push((key, value)),
                    Value::Object(inner) if inner.values().any(|v| v.is_object() || v.is_array()) => {
                        nested.push((key, value));
                    }
                    Value::Null => {}
                    Value::Array(_) | Value::Object(_) | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                        table.add_row([key.as_str(), &shown(Some(value))]);
                    }
                }
            }
            if table.row_iter().next().is_some() {
                out.push_str(&finished(&table));
            }
            for (key, value) in nested {
                section(out, key, value);
            }
        }
        Value::Array(items) => out.push_str(&sequence(items)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&shown(Some(body)));
            out.push('\n');
        }
    }
}

/// A list inside a thing: its columns are whatever its members have, in the order first met.
fn sequence(items: &[Value]) -> String {
    let mut heads: Vec<&str> = Vec::new();
    for key in items.iter().filter_map(Value::as_object).flat_map(serde_json::Map::keys) {
        if !heads.contains(&key.as_str()) {
            heads.push(key);
        }
    }
    let mut table = plain();
    table.set_header(heads.iter().map(|head| head.to_uppercase()));
    for item in items {
        table.add_row(heads.iter().map(|head| shown(item.get(head))));
    }
    finished(&table)
}

fn find<'a>(item: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('|').find_map(|path| {
        let found = path.split('.').try_fold(item, |value, key| value.get(key))?;
        (!found.is_null()).then_some(found)
    })
}

fn shown(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(true)) => "yes".to_owned(),
        Some(Value::Bool(false)) => "no".to_owned(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Array(list)) => list.iter().map(|v| shown(Some(v))).collect::<Vec<_>>().join(" "),
        Some(Value::Object(map)) => {
            map.iter().map(|(key, v)| format!("{key}={}", shown(Some(v)))).collect::<Vec<_>>().join(" ")
        }
    };
    // What a producer wrote must not move the cursor of the person who reads it.
    if text.is_empty() { "-".to_owned() } else { text.replace(|c: char| c.is_control(), "\u{fffd}") }
}

/// Whether standard output is a terminal that wants colours.
fn styled() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// The columns that there are, where that is known: of the terminal, or as `COLUMNS` says.
fn width() -> Option<u16> {
    if io::stdout().is_terminal() {
        return Table::new().width();
    }
    std::env::var("COLUMNS").ok().and_then(|text| text.parse::<u16>().ok()).filter(|n| *n >= 20)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    match width() {
        Some(width) => {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        None => {
            table.force_no_tty().set_content_arrangement(ContentArrangement::Disabled);
        }
    }
    table
}

/// Without the padding at either end of each line, which only gets in the way of copying.
fn finished(table: &Table) -> String {
    let mut out = String::new();
    for line in table.lines() {
        out.push_str(line.strip_prefix(' ').unwrap_or(&line).trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_a_table_with_a_row_a_line() {
        let body = json!({"items": [
            {"id": "a", "size": {"vcpus": 4}, "name": "web", "spare": null},
            {"id": "b\u{1b}[2J", "size": {"vcpus": 16}},
        ], "next_cursor": null});
        let columns = [column("ID", "id"), column("VCPUS", "size.vcpus"), column("NAME", "spare|name")];
        let text = rows(items(&body), &columns);
        assert_eq!(text, "ID     VCPUS  NAME\na          4  web\nb\u{fffd}[2J     16  -\n");
        assert_eq!(rows(&[], &columns), "none\n");
    }

    #[test]
    fn what_is_too_wide_is_shown_item_by_item() {
        let items = [json!({"id": "a-long-id", "n": 1}), json!({"id": "b"})];
        let columns = [column("ID", "id"), column("NUMBER", "n")];
        let at = |room| filled(Table::new(), &items, &columns, Some(room));
        assert_eq!(at(17), "a-long-id       1\nb          -\n");
        assert_eq!(at(16), "ID      a-long-id\nNUMBER  1\n\nID      b\nNUMBER  -\n\n");
    }

    #[test]
    fn lists_are_found_in_what_wraps_them() {
        for body in [json!([1, 2]), json!({"items": [1, 2]}), json!({"jobs": [1, 2]}), json!({"cells": [1, 2]})] {
            assert_eq!(items(&body).len(), 2, "{body}");
        }
        assert_eq!(items(&Value::Null).len(), 0);
        assert_eq!(items(&json!({"job_id": "x", "state": "accepted"})).len(), 1);
    }

    #[test]
    fn one_thing_is_its_fields_and_then_its_lists() {
        let body =
            json!({"id": "a", "labels": {"app": "shop"}, "history": [{"at": 1, "what": "x"}, {"at": 2}], "none": null});
        assert_eq!(fields(&body), "id      a\nlabels  app=shop\n\nhistory:\nAT  WHAT\n1   x\n2   -\n");
    }
}
