//! The `cellbus` binary under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::workspace::{files_below, root};

/// Where it lies: what `CELLBUS_BIN` names, or the one beside this test, built anew if any source
/// is newer than it.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn cellbus() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("CELLBUS_BIN") {
            return PathBuf::from(path);
        }
        // target/<profile>/deps/<this test>
        let test = std::env::current_exe().expect("a test knows where it lies");
        let profile = test.parent().and_then(Path::parent).expect("a test lies in target/<profile>/deps");
        let binary = profile.join("cellbus");
        if modified(&binary) < newest_source() {
            build(profile);
        }
        assert!(binary.exists(), "{} was not built", binary.display());
        binary
    })
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn newest_source() -> SystemTime {
    ["bus", "directory", "workflows", "cell", "simulator", "ops"]
        .iter()
        .flat_map(|folder| files_below(&root().join(folder).join("src"), "rs"))
        .map(|path| modified(&path))
        .max()
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn build(profile: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.arg("build").current_dir(root());
    if profile.ends_with("release") {
        // For benchmarks.
        command.args(["--release", "--package", "cellbus"]);
    } else {
        // The whole workspace, so that features are those of the test run and nothing is built twice.
        command.args(["--workspace", "--all-targets"]);
    }
    let status = command.status().expect("cargo runs, as it has run this test");
    assert!(status.success(), "cargo build failed");
}
