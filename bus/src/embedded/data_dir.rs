//! The data directory itself: who holds it, and which format it has.
//!
//! ```text
//! cellbus.lock     held (flock) by the process that has it open; holds its pid
//! cellbus.format   "cellbus data directory, format 1"
//! cluster          the cluster record
//! log/             segments
//! snapshots/       one file each
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use crate::env::Disk;

use super::error::OpenError;

/// The format of the directory that this build writes, and the newest that it reads.
pub(super) const FORMAT: u32 = 1;

const FORMAT_FILE: &str = "cellbus.format";
const FORMAT_WORDS: &str = "cellbus data directory, format ";

/// A holder may just be letting go, and a child that a process is starting holds its parent's
/// locks until it runs: so a lock that is held is asked for again, for half a second.
const LOCK_TRIES: u32 = 20;

#[expect(clippy::disallowed_methods, reason = "opening blocks, before there is anything that could wait otherwise")]
fn wait_a_little() {
    std::thread::sleep(std::time::Duration::from_millis(25));
}

/// Held as long as this process uses the directory; the system takes it away from a dead one.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Makes the directory if it is not there.
pub(super) fn create(dir: &Path) -> Result<(), OpenError> {
    fs::create_dir_all(dir).map_err(|error| OpenError::io(dir, "making it", error))
}

/// Takes the directory for this process alone.
pub(super) fn lock(dir: &Path) -> Result<Lock, OpenError> {
    let cannot = |error| OpenError::io(dir, "taking its lock", error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join("cellbus.lock"))
        .map_err(cannot)?;
    for tries_left in (0..LOCK_TRIES).rev() {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if tries_left > 0 => wait_a_little(),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The pid is a help for a person only.
                let _ = (&file).take(32).read_to_string(&mut pid);
                return Err(OpenError::Locked { dir: dir.to_owned(), holder: pid.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(cannot)?;
    Ok(Lock { _file: file })
}

/// Checks the format, writing it into a directory that has none.
pub(super) fn check_format(dir: &Path, disk: &dyn Disk) -> Result<(), OpenError> {
    let path = dir.join(FORMAT_FILE);
    let Some(content) = disk.read(&path).map_err(|error| OpenError::io(dir, "reading its format", error))? else {
        for name in ["log", "snapshots", "cluster"] {
            match fs::symlink_metadata(dir.join(name)) {
                Ok(_) => return Err(OpenError::corrupt(dir, format!("it has a {name} but no {FORMAT_FILE}"))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(OpenError::io(dir, "reading it", error)),
            }
        }
        return disk
            .replace(&path, format!("{FORMAT_WORDS}{FORMAT}\n").as_bytes())
            .map_err(|error| OpenError::io(dir, "writing its format", error));
    };
    let found =
        std::str::from_utf8(&content).ok().and_then(|text| text.trim_end().strip_prefix(FORMAT_WORDS)?.parse().ok());
    match found {
        Some(FORMAT) => Ok(()),
        Some(found) if found > FORMAT => Err(OpenError::NewerFormat { dir: dir.to_owned(), found }),
        Some(_) | None => Err(OpenError::corrupt(dir, format!("{FORMAT_FILE} does not name a format"))),
    }
}
