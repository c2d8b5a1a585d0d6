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
