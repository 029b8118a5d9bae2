//! Counts what is allocated, to show that a length that a peer announces allocates nothing.

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::cell::Cell;

/// Runs `call`, which has been given `bytes` bytes of a peer until now. Fails if `call` allocates a block that is far
/// larger than these bytes.
///
/// A list of events is the worst that a peer can ask for honestly: one event of 80 bytes for 17 bytes, and a list doubles
/// when it grows. The rest is room for errors and for lists that begin.
#[track_caller]
pub(crate) fn no_more_than_given<T>(bytes: usize, call: impl FnOnce() -> T) -> T {
    LARGEST.set(0);
    let result = call();
    let (largest, limit) = (LARGEST.get(), 16 * bytes + 8192);
    assert!(largest <= limit, "a block of {largest} bytes was allocated for {bytes} bytes of the peer");
    result
}

thread_local! {
    /// The largest block that this thread has allocated since it was last set to 0, in bytes.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// The allocator of the system, which notes sizes.
struct Noting;

impl Noting {
    fn note(len: usize) {
        // A thread that ends allocates when its variables are gone already.
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(len)));
    }
}

// SAFETY: every call goes to `System` as it came. Noting a size allocates nothing, and does not unwind.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        Self::note(len);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(block, layout, len) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}
