//! The binary `cellbus`. Everything is in the library, so that tests can make another of the next release.

use std::process::ExitCode;

use cellbus_bus::format::Build;

fn main() -> ExitCode {
    cellbus::main(Build::current())
}
