//! The dashboards of `ops/dashboards/`: every query is one, by promtool, and names only what exists.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use cellbus_tests::prometheus::{promtool, tools};
use cellbus_tests::promql::{Table, named};
use cellbus_tests::workspace::{files_below, root};
use serde_json::{Value, json};

/// Title of dashboard and panel, query, legend.
struct Query {
    at: String,
    expr: String,
    legend: String,
}

fn dashboards() -> Result<Vec<(String, Value)>> {
    let paths = files_below(&root().join("ops/dashboards"), "json");
    ensure!(paths.len() >= 3, "overview, bus, autoscaler: {paths:?}");
    paths
        .iter()
        .map(|path| {
            let name = path.file_stem().and_then(|stem| stem.to_str()).context("a name")?.to_owned();
            Ok((name, serde_json::from_str(&fs::read_to_string(path)?)?))
        })
        .collect()
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().into_iter().flatten()
}

fn queries() -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    for (name, dashboard) in dashboards()? {
        for panel in panels(&dashboard).filter(|panel| panel["type"] != "row") {
            let at = format!("{name}: {}", panel["title"].as_str().context("a panel has a title")?);
            let targets = panel["targets"].as_array().context("a panel has queries")?;
            ensure!(!targets.is_empty(), "{at} shows nothing");
            for target in targets {
                let expr = target["expr"].as_str().context("a query has an expression")?.to_owned();
                let legend = target["legendFormat"].as_str().unwrap_or_default().to_owned();
                queries.push(Query { at: at.clone(), expr, legend });
            }
        }
    }
    Ok(queries)
}

fn recorded() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for path in files_below(&root().join("ops/alerts"), "yml") {
        let file: Value = serde_yaml_ng::from_str(&fs::read_to_string(path)?)?;
        let groups = file["groups"].as_array().into_iter().flatten();
        let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
        names.extend(rules.filter_map(|rule| Some(rule["record"].as_str()?.to_owned())));
    }
    Ok(names)
}

#[test]
fn every_query_is_one() -> Result<()> {
    let Some(folder) = tools() else { return Ok(()) };
    let queries = queries()?;
    // As rules, which promtool knows how to check. JSON is YAML.
    let rules: Vec<Value> =
        (0..).zip(&queries).map(|(n, q)| json!({"record": format!("q:{n}"), "expr": q.expr})).collect();
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), json!({"groups": [{"name": "queries", "rules": rules}]}).to_string())?;
    let checked = promtool(&folder, &["check", "rules", file.path().to_str().context("UTF-8")?])?;
    let said = String::from_utf8_lossy(&checked.stdout);
    ensure!(checked.status.success(), "{said}\n{}", String::from_utf8_lossy(&checked.stderr));
    ensure!(said.contains(&format!("SUCCESS: {} rules found", queries.len())), "{said}");
    Ok(())
}

#[test]
fn what_queries_name_exists() -> Result<()> {
    let (table, recorded) = (Table::read(), recorded()?);
    let mut wrong = Vec::new();
    for query in queries()? {
        wrong.extend(table.strangers(&query.expr, &recorded).into_iter().map(|what| format!("{}: {what}", query.at)));
        // What a legend shows must be left by the query, or be on the series.
        let groups = named(&query.expr).groups;
        for label in query.legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}")) {
            let label = label.0;
            if !groups.contains(label) && label != "instance" {
                wrong.push(format!("{}: the legend shows {label}, which the query does not keep", query.at));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// And have ids of their own.
#[test]
fn panels_lie_beside_each_other() -> Result<()> {
    for (name, dashboard) in dashboards()? {
        ensure!(dashboard["uid"] == name.as_str(), "{name}: its uid is {}", dashboard["uid"]);
        let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
        for panel in panels(&dashboard) {
            ensure!(ids.insert(panel["id"].as_u64()), "{name}: the id {} is there twice", panel["id"]);
            let side = |key: &str| panel["gridPos"][key].as_u64().with_context(|| format!("{name}: {panel}"));
            let (x, y, w, h) = (side("x")?, side("y")?, side("w")?, side("h")?);
            ensure!(x + w <= 24, "{name}: {} is too wide", panel["title"]);
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                ensure!(cells.insert(cell), "{name}: {} lies on another", panel["title"]);
            }
            if panel["type"] != "row" {
                ensure!(
                    panel["datasource"]["uid"] == "${datasource}",
                    "{name}: {} has a data source of its own",
                    panel["title"]
                );
            }
        }
    }
    Ok(())
}
