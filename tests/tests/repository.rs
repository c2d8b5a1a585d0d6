//! What must hold of the source tree as a whole, and what no compiler checks.

use std::collections::BTreeMap;
use std::fs;

use cellbus_tests::workspace::{files_below, root};

/// The crates, each of which may depend on those before it only.
const ORDER: &[(&str, &str)] = &[
    ("bus", "cellbus-bus"),
    ("directory", "cellbus-directory"),
    ("workflows", "cellbus-workflows"),
    ("cell", "cellbus-cell"),
    ("cell/drivers/vsphere", "cellbus-vsphere"),
    ("cell/drivers/libvirt", "cellbus-libvirt"),
    ("simulator", "cellbus-simulator"),
    ("ops", "cellbus"),
    ("tests", "cellbus-tests"),
];

fn manifest(folder: &str) -> toml::Table {
    let path = root().join(folder).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Name and value of every dependency, of whatever kind, for whatever target; not a crate's own
/// name, by which its tests ask for a feature of it.
fn dependencies(manifest: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut tables = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        tables.extend(targets.values().filter_map(toml::Value::as_table));
    }
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    tables
        .iter()
        .flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind).and_then(toml::Value::as_table)))
        .flat_map(|table| table.iter().map(|(name, value)| (name.clone(), value.clone())))
        .filter(|(name, _)| manifest.get("package").is_none_or(|own| own["name"].as_str() != Some(name)))
        .collect()
}

/// Which of `dependencies` are crates of ours that crate number `place` may not use.
fn against_the_order(place: usize, dependencies: &[(String, toml::Value)]) -> Vec<String> {
    let ours: BTreeMap<&str, usize> = ORDER.iter().enumerate().map(|(place, (_, name))| (*name, place)).collect();
    dependencies
        .iter()
        .filter(|(name, _)| ours.get(name.as_str()).is_some_and(|used| *used >= place))
        .map(|(name, _)| name.clone())
        .collect()
}

#[test]
fn dependencies_point_one_way() {
    let members = manifest(".")["workspace"]["members"].as_array().unwrap().clone();
    let known: Vec<toml::Value> = ORDER.iter().map(|(folder, _)| toml::Value::from(*folder)).collect();
    assert_eq!(members, known, "a crate came or went: give it a place in ORDER");
    for (place, (folder, name)) in ORDER.iter().enumerate() {
        let manifest = manifest(folder);
        assert_eq!(manifest["package"]["name"].as_str(), Some(*name));
        let wrong = against_the_order(place, &dependencies(&manifest));
        assert!(wrong.is_empty(), "{folder}/Cargo.toml depends on {wrong:?}, which comes after it in {ORDER:?}");
    }
    // The check itself can fail.
    let backwards = [("cellbus-cell".to_owned(), toml::Value::from("1")), ("serde".to_owned(), toml::Value::from("1"))];
    assert_eq!(against_the_order(0, &backwards), ["cellbus-cell"]);
}

#[test]
fn versions_are_written_in_one_place() {
    for (folder, _) in ORDER {
        for (name, value) in dependencies(&manifest(folder)) {
            let from_workspace = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
            assert!(from_workspace, "{folder}/Cargo.toml: {name} must say `{name}.workspace = true`");
        }
    }
}

/// The first words of each `select!` in `source` that does not begin with `biased;`.
fn unbiased_selects(source: &str) -> Vec<String> {
    let code: String = source.lines().filter(|line| !line.trim_start().starts_with("//")).fold(
        String::with_capacity(source.len()),
        |mut code, line| {
            code.push_str(line);
            code.push('\n');
            code
        },
    );
    code.match_indices("select!")
        .map(|(at, _)| code[at + "select!".len()..].trim_start())
        .filter(|rest| rest.starts_with('{') || rest.starts_with('('))
        .filter(|rest| !rest[1..].trim_start().starts_with("biased;"))
        .map(|rest| rest.lines().take(2).collect::<Vec<_>>().join(" "))
        .collect()
}

/// Without `biased;` the branches of a `select!` are polled in a random order, which no seed fixes.
#[test]
fn every_select_is_biased() {
    assert_eq!(unbiased_selects("tokio::select! {\n a = b => {} }").len(), 1, "the check itself can fail");
    assert_eq!(unbiased_selects("tokio::select! {\n    biased;\n a = b => {} }").len(), 0);
    let mut wrong = Vec::new();
    for (folder, _) in ORDER.iter().filter(|(folder, _)| *folder != "tests") {
        for path in files_below(&root().join(folder), "rs") {
            let source = fs::read_to_string(&path).unwrap();
            wrong.extend(unbiased_selects(&source).into_iter().map(|s| format!("{}: {s}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "select! without `biased;`:\n{}", wrong.join("\n"));
}

/// The top level is what the design says, and no more.
#[test]
fn the_top_level_stays_small() {
    let allowed =
        ["Cargo.toml", "README.md", "LICENSE", "Cargo.lock", "clippy.toml", "rustfmt.toml", "deny.toml", "target"];
    let mut found: Vec<String> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .filter(|name| !allowed.contains(&name.as_str()) && !ORDER.iter().any(|(folder, _)| folder == name))
        .collect();
    found.sort();
    assert!(found.is_empty(), "not in ops/docs/design.md, \"Layout\": {found:?}");
}
