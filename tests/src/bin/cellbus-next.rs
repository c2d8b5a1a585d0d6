//! `cellbus` as the release after this one: it knows a format more. Tests upgrade a cluster to it; it is
//! part of no release.

use std::process::ExitCode;

use cellbus_bus::format::Build;

fn main() -> ExitCode {
    cellbus::main(Build::next())
}
