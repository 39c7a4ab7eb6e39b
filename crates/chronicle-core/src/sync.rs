//! The only home of atomics. Under `cfg(loom)` they are loom's, so that the protocols can be
//! model-checked.
//!
//! The one addition is [`full_fence`]: a sequentially consistent fence that costs a locked
//! read-modify-write of the stack on x86-64 instead of `mfence`, which also waits for
//! non-temporal stores that we never make (Agner Fog's tables; measured in decisions.md).
//! It touches the red zone and not the word at the stack pointer: that is a return address or a
//! spilled register, and the load that needs it next would wait for the locked store.

#[cfg(loom)]
pub use loom::sync::{
    Arc,
    atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(not(loom))]
pub use std::sync::{
    Arc,
    atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence},
};

/// Asks for the line at an address, to read it soon. A hint: any address will do, none faults.
#[inline(always)]
pub fn prefetch_read(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch of any address, mapped or not, changes nothing but caches.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, readonly));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = address;
}

/// Asks for the line at an address, to write to it soon: no other core keeps a copy. A hint, as
/// [`prefetch_read`].
#[inline(always)]
pub fn prefetch_write(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: as in `prefetch_read`.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_ET0 }>(address.cast());
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as in `prefetch_read`.
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{}]", in(reg) address, options(nostack, readonly));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = address;
}

/// Orders every earlier store before every later load, as seen by all threads that do the same.
#[inline(always)]
pub fn full_fence() {
    #[cfg(all(target_arch = "x86_64", not(loom), not(miri)))]
    // SAFETY: changes no bit of a word in the red zone, the 128 bytes below the stack pointer that
    // the ABI reserves for the running function, signal handlers or not (System V ABI for x86-64,
    // 3.2.2); the memory clobber (no `nomem`) makes it a compiler fence as well.
    unsafe {
        core::arch::asm!("lock or dword ptr [rsp - 120], 0", options(nostack));
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom), not(miri))))]
    fence(Ordering::SeqCst);
}
