//! The `cellbus` command.

fn main() {}
