//! `cellbus load --anonymise`.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::Context as _;
use cellbus_simulator::load::anonymise::{Error as Refused, Summary, anonymise};

use crate::exit::{Error, Result, note};

/// Writes the trace on standard output, and on standard error what was made of the log.
pub(super) fn run(log: &Path) -> Result<()> {
    let log_file: Box<dyn io::Read> = if log.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(log).with_context(|| format!("cannot read the job log {}", log.display()))?)
    };
    match anonymise(log_file, io::stdout().lock()) {
        Ok(summary) => {
            note(&said(&summary));
            Ok(())
        }
        Err(Refused::Write(error)) => Err(error.into()),
        Err(error @ (Refused::Read(_) | Refused::Line { .. })) => {
            let name = if log.as_os_str() == "-" { "standard input".to_owned() } else { log.display().to_string() };
            Err(Error::Other(anyhow::Error::from(error).context(name)))
        }
    }
}

fn said(summary: &Summary) -> String {
    let mut said = format!(
        "{} VMs of {} tenants from {} lines, {} of them deleted again",
        summary.vms, summary.tenants, summary.lines, summary.deleted
    );
    for (count, what) in [
        (summary.unknown_size, "have 1 vCPU and 1 GiB, as the log does not tell their size"),
        (summary.never_made, "were never made, as their jobs failed"),
        (summary.older, "deletes are of VMs older than the log, and left out"),
        (summary.left_out, "other jobs, or jobs that are there twice, are left out"),
    ] {
        if count > 0 {
            said.push_str(&format!("; {count} {what}"));
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_of_a_log_is_said() {
        let summary = Summary { lines: 9, vms: 5, deleted: 2, tenants: 1, older: 3, ..Summary::default() };
        assert_eq!(
            said(&summary),
            "5 VMs of 1 tenants from 9 lines, 2 of them deleted again; 3 deletes are of VMs older than the log, and left out"
        );
    }
}
