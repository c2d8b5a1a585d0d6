//! The memory allocator of every Cellbus process, and the one setting of it that is not its default.
//!
//! A provision makes some hundred small allocations, most of which another thread frees: with the
//! system's allocator they were a fifth of its time. By itself mimalloc 2 gives
//! pages that are empty back to the system after 10 ms, while here each burst of a shard's work wants the same pages again a moment
//! later. What that costs, and how the two versions of mimalloc and its like compare, is in
//! `ops/docs/decisions/0019-allocator.md`.

use std::ffi::{c_int, c_long};

pub use mimalloc::MiMalloc as Allocator;

/// How long pages stay with the process once they are empty, in milliseconds. Whole segments (32 MiB)
/// stay ten times as long.
const KEPT_MS: c_long = 1_000;

/// `mi_option_purge_delay` of `mimalloc.h`, of which the binding has no constant.
const PURGE_DELAY: c_int = 15;

/// Has empty pages kept for [`KEPT_MS`], for a process whose global allocator is [`Allocator`]. Called once, before there is
/// a second thread. `MIMALLOC_PURGE_DELAY` in the environment overrides it.
#[expect(unsafe_code, reason = "the settings of a C library")]
pub fn keep_freed_pages() {
    // SAFETY: a store to a static; the caller has no second thread yet.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, KEPT_MS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "the settings of a C library")]
    fn the_number_is_that_of_the_delay() {
        // SAFETY: a load of a static, which no other test of this process touches.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay(), 10, "mimalloc's own default: look up its number in mimalloc.h");
        keep_freed_pages();
        assert_eq!(delay(), KEPT_MS);
    }
}
