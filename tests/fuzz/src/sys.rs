//! The counters of the compiler's coverage instrumentation (SanitizerCoverage of LLVM, inline 8-bit
//! counters). There are none unless `cargo xtask fuzz` built the program.

use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

static START: AtomicPtr<AtomicU8> = AtomicPtr::new(std::ptr::null_mut());
static END: AtomicPtr<AtomicU8> = AtomicPtr::new(std::ptr::null_mut());

/// One for each edge of the program, or none.
pub(crate) fn counters() -> &'static [AtomicU8] {
    let (start, end) = (START.load(Ordering::Acquire), END.load(Ordering::Acquire));
    let count = end.addr().saturating_sub(start.addr());
    if count == 0 {
        return &[];
    }
    // SAFETY: `start` to `end` is the linker's section of all counters, handed to us by the
    // constructor below: mapped and initialised while the program runs, of `count` bytes, aligned as
    // bytes are. Only atomics of ours and byte stores of the instrumentation go there.
    unsafe { std::slice::from_raw_parts(start, count) }
}

/// Called before `main`, once for each unit of code, always with the whole section.
#[cfg(coverage_guided)]
// SAFETY: the name is the one that SanitizerCoverage calls, and nobody else defines it.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut AtomicU8, end: *mut AtomicU8) {
    START.store(start, Ordering::Release);
    END.store(end, Ordering::Release);
}
