//! What tests across crates share. The tests themselves lie in `tests/tests/`:
//!
//! - `repository`: what the compiler and clippy can't check of the code as a whole.

pub mod workspace;
