//! Counts what is allocated, as glibc's malloc rounds it. The allocator is the binary's.
#![expect(unsafe_code, reason = "a global allocator is an unsafe trait; this one hands everything on to mimalloc")]

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicI64, Ordering};

use mimalloc::MiMalloc;

/// Bytes allocated and not freed.
pub(crate) static BYTES: AtomicI64 = AtomicI64::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A chunk: eight bytes before what was asked for, in steps of sixteen, at least 32.
fn chunk(layout: Layout) -> i64 {
    ((layout.size() as i64 + 8 + 15) & !15).max(32)
}

// SAFETY: every call goes on to mimalloc with the layout that came in.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(chunk(layout), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { MiMalloc.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(chunk(layout), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let new = Layout::from_size_align(new_size, layout.align()).map_or(layout, |new| new);
        BYTES.fetch_add(chunk(new) - chunk(layout), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `realloc`.
        unsafe { MiMalloc.realloc(pointer, layout, new_size) }
    }
}
