//! The source tree, for tests that read it.

use std::fs;
use std::path::{Path, PathBuf};

use cellbus_bus::testing::tool;

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies one level below the root").to_owned()
}

/// Every file below `folder`, in order.
#[must_use]
pub fn all_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map_while(Result::ok).map(|entry| entry.path()) {
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Every file below `folder` whose name ends in `.extension`, in order.
#[must_use]
pub fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = all_files(folder);
    found.retain(|path| path.extension().is_some_and(|e| e == extension));
    found
}

/// The Python that `ops/setup/producers` has installed, with clients of brokers that are not ours;
/// `None`, said loudly, where there is none.
///
/// # Panics
/// With `CI=true`, where nothing may be left out.
#[must_use]
pub fn python() -> Option<PathBuf> {
    tool("CELLBUS_PRODUCERS_PYTHON", "producers/bin/python", "Python with producers' clients", "ops/setup/producers")
}

/// The kcat that `ops/setup/kcat` has found or unpacked; `None`, said loudly, where there is none.
///
/// # Panics
/// With `CI=true`, where nothing may be left out.
#[must_use]
pub fn kcat() -> Option<PathBuf> {
    tool("CELLBUS_KCAT", "kcat/bin/kcat", "kcat", "ops/setup/kcat")
}
