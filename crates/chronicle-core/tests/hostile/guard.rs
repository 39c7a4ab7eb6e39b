//! Puts every mapping of a file between two stretches of addresses that must not be touched.
//!
//! The test binary's `mmap` and `munmap` take the place of libc's for all Rust code in it; the code
//! under test is unchanged.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::Mutex;

const GUARD_BYTES: usize = 1 << 20;
const NOWHERE: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Address ranges that were reserved, guards included.
struct Areas {
    /// Start of the mapping -> length of the mapping.
    used: BTreeMap<usize, usize>,
    /// Length -> starts. Kept, so that a mapping costs one call and not three.
    free: BTreeMap<usize, Vec<usize>>,
}

static AREAS: Mutex<Areas> = Mutex::new(Areas { used: BTreeMap::new(), free: BTreeMap::new() });

fn areas() -> std::sync::MutexGuard<'static, Areas> {
    AREAS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// # Safety
/// As mmap(2).
unsafe fn kernel_mmap(
    at: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_mmap, at, len, protection, flags, fd, offset) as *mut c_void }
}

/// # Safety
/// As mmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    at: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    if fd < 0 || !at.is_null() {
        // SAFETY: the caller's promise.
        return unsafe { kernel_mmap(at, len, protection, flags, fd, offset) };
    }
    let pages = len.next_multiple_of(4096);
    let hole = areas().free.get_mut(&pages).and_then(Vec::pop);
    if let Some(hole) = hole {
        let flags = flags | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: replaces nothing: fails if somebody else has got the addresses in the meantime.
        let base = unsafe { kernel_mmap(hole as _, len, protection, flags, fd, offset) };
        if base != libc::MAP_FAILED {
            areas().used.insert(base as usize, pages);
            return base;
        }
    }
    let (nothing, span) = (std::ptr::null_mut(), pages + 2 * GUARD_BYTES);
    // SAFETY: new addresses of the kernel's choice.
    let area = unsafe { kernel_mmap(nothing, span, libc::PROT_NONE, NOWHERE, -1, 0) };
    if area == libc::MAP_FAILED {
        return area;
    }
    let inside = area.wrapping_byte_add(GUARD_BYTES);
    // SAFETY: replaces the middle of the area that was just reserved.
    let base = unsafe { kernel_mmap(inside, len, protection, flags | libc::MAP_FIXED, fd, offset) };
    if base != libc::MAP_FAILED {
        areas().used.insert(base as usize, pages);
    }
    base
}

/// # Safety
/// As munmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(at: *mut c_void, len: usize) -> c_int {
    let pages = areas().used.remove(&(at as usize));
    assert!(pages.is_none_or(|pages| pages == len.next_multiple_of(4096)), "unmapped as a whole");
    // SAFETY: the caller's promise.
    let rc = unsafe { libc::syscall(libc::SYS_munmap, at, len) as c_int };
    if let Some(pages) = pages {
        // The guards stay; the hole between them is used again if it is still one.
        areas().free.entry(pages).or_default().push(at as usize);
    }
    rc
}
