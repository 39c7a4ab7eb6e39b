//! Sleeping on words in shared memory: futex(2) and futex_waitv(2). Never the private flavour:
//! waiters and wakers are different processes.
//!
//! Kernels before 5.16 have no futex_waitv, and some sandboxes forbid it; [`wait_any`] then naps
//! for [`NAP`] and lets the caller look again.

use crate::sync::AtomicU32;
use std::io;
use std::time::Duration;

/// Most words that one `futex_waitv` takes (FUTEX_WAITV_MAX in linux/futex.h).
pub const WAITV_MAX: usize = 128;

/// How long a waiter that cannot be rung sleeps between looks.
pub const NAP: Duration = Duration::from_micros(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Rung, or the word had moved already.
    Yes,
    TimedOut,
    /// A signal handler ran; the caller decides whether to go on.
    Interrupted,
}

/// Sleeps until the word is rung, unless it no longer holds `seen`. `None` waits for ever.
pub fn wait(word: &AtomicU32, seen: u32, timeout: Option<Duration>) -> io::Result<Woken> {
    let limit = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs() as libc::time_t,
        tv_nsec: t.subsec_nanos().into(),
    });
    let limit_ptr = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word and the time outlive the call; FUTEX_WAIT only reads them.
    let rc =
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, limit_ptr) };
    outcome(rc)
}

/// Sleeps for the time, on a word that nobody rings. Unlike `thread::sleep` it tells of a signal.
pub fn nap(time: Duration) -> io::Result<Woken> {
    wait(&AtomicU32::new(0), 0, Some(time))
}

/// Wakes all sleepers of the word.
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE only looks the address up.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// A word to sleep on, and the value at which sleep makes sense: `struct futex_waitv`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WaitWord {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

impl WaitWord {
    /// Names the word; does not keep it alive. The kernel only ever reads it, and answers EFAULT
    /// where there is nothing.
    pub fn new(word: &AtomicU32, seen: u32) -> Self {
        let address = word.as_ptr() as u64;
        Self { value: seen.into(), address, flags: FUTEX2_SIZE_U32, reserved: 0 }
    }
}

/// FUTEX2_SIZE_U32 (linux/futex.h, 6.7; the same value as FUTEX_32 before).
const FUTEX2_SIZE_U32: u32 = 2;

/// Sleeps until any of at most [`WAITV_MAX`] words is rung.
pub fn wait_any(words: &[(&AtomicU32, u32)], timeout: Option<Duration>) -> io::Result<Woken> {
    assert!(words.len() <= WAITV_MAX, "futex_waitv takes {WAITV_MAX} words");
    let waiters: Vec<_> = words.iter().map(|(word, seen)| WaitWord::new(word, *seen)).collect();
    let limit = timeout.map(deadline);
    let limit_ptr = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array and the time outlive the call; the kernel only reads them and the words.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            waiters.as_ptr(),
            waiters.len() as u32,
            0_u32,
            limit_ptr,
            libc::CLOCK_MONOTONIC,
        )
    };
    outcome(rc.min(0)).or_else(|error| match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM) => {
            let left = timeout.map_or(NAP, |t| t.min(NAP));
            // Whether the time is up, and whether anything was rung, is for the caller to see.
            nap(left).map(|woken| if woken == Woken::TimedOut { Woken::Yes } else { woken })
        }
        _ => Err(error),
    })
}

/// futex_waitv takes an absolute time, of CLOCK_MONOTONIC.
fn deadline(timeout: Duration) -> libc::timespec {
    let at = u128::from(super::clock::monotonic_ns()) + timeout.as_nanos();
    libc::timespec {
        tv_sec: (at / 1_000_000_000) as libc::time_t,
        tv_nsec: (at % 1_000_000_000) as libc::c_long,
    }
}

/// How a system call is made: number and arguments in, what the kernel returns out (an error as its
/// negative number). The hot thread's guard lets calls pass that come from one place of its own.
pub type RawCall = unsafe fn(usize, [usize; 6]) -> isize;

/// How long a hot thread sleeps between looks where it cannot sleep on all of its words.
pub const PARK_NAP: Duration = Duration::from_micros(50);

/// Sleeps until one of the words is rung, something else wakes this thread, or the time is up: the
/// caller looks again in any case. One system call, made through `call`; no allocation. More than
/// [`WAITV_MAX`] words, or a kernel without futex_waitv: sleeps for [`PARK_NAP`].
pub fn park(words: &[WaitWord], timeout: Duration, call: RawCall) {
    if !words.is_empty() && words.len() <= WAITV_MAX {
        let limit = deadline(timeout);
        let arguments = [
            words.as_ptr() as usize,
            words.len(),
            0,
            &raw const limit as usize,
            libc::CLOCK_MONOTONIC as usize,
            0,
        ];
        // SAFETY: the array and the time outlive the call; the kernel only reads them and the
        // words.
        let rc = unsafe { call(libc::SYS_futex_waitv as usize, arguments) };
        if rc != -(libc::ENOSYS as isize) && rc != -(libc::EPERM as isize) {
            return;
        }
    }
    let nap = timeout.min(PARK_NAP);
    let limit = libc::timespec { tv_sec: 0, tv_nsec: nap.subsec_nanos().into() };
    let word = AtomicU32::new(0);
    let arguments =
        [word.as_ptr() as usize, libc::FUTEX_WAIT as usize, 0, &raw const limit as usize, 0, 0];
    // SAFETY: word and time outlive the call; FUTEX_WAIT only reads them.
    unsafe { call(libc::SYS_futex as usize, arguments) };
}

fn outcome(rc: libc::c_long) -> io::Result<Woken> {
    if rc == 0 {
        return Ok(Woken::Yes);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Ok(Woken::Yes),
        Some(libc::ETIMEDOUT) => Ok(Woken::TimedOut),
        Some(libc::EINTR) => Ok(Woken::Interrupted),
        _ => Err(error),
    }
}
