//! The scripts in `tests/cli/`, each a session with the real binary.

use cellbus_tests::script;
use cellbus_tests::workspace::{files_below, root};

#[test]
fn scripts_print_what_they_say() {
    let scripts = files_below(&root().join("tests/cli"), "script");
    assert!(scripts.len() > 3, "the scripts are not where they are looked for");
    let wrong: String = scripts.iter().map(|path| script::differences(path)).collect();
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// A check of the checker: a script that expects something else is told apart.
#[test]
fn a_script_can_fail() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.script");
    std::fs::write(&path, "$ cellbus cells\nnothing of the kind\n").unwrap();
    assert!(script::differences(&path).contains("this came instead"));
}

/// A run that never was leaves no file, and one that was there before stays as it was.
#[test]
fn a_load_without_a_server_writes_no_report() {
    let folder = tempfile::tempdir().unwrap();
    let (page, old) = (folder.path().join("page.html"), folder.path().join("old.json"));
    std::fs::write(&old, "kept").unwrap();
    let mut load = cellbus_tests::process::command();
    load.args(["load", "--server", "http://127.0.0.1:1", "--rate", "5", "--report"]).arg(&page).arg("--json").arg(&old);
    let ended = load.output().unwrap();
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    assert!(!page.exists(), "an empty page was left");
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "kept");
}
