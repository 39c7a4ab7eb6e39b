//! Facts about this process and this boot, and how to die for a test.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

static FORKS: AtomicU64 = AtomicU64::new(0);

/// Descriptors (plus one) that a forked child closes; 0 is a free place.
static CLOSE_IN_CHILD: [AtomicU32; 16_384] = [const { AtomicU32::new(0) }; 16_384];

/// Runs in the child before `fork` returns there.
extern "C" fn after_fork_in_child() {
    // Relaxed: the child has one thread when this runs.
    FORKS.fetch_add(1, Ordering::Relaxed);
    for place in &CLOSE_IN_CHILD {
        // Relaxed: as above.
        let fd = place.load(Ordering::Relaxed);
        // Only looked at where it is 0, so that the pages stay shared with the parent.
        if fd != 0 {
            // Relaxed: as above.
            place.store(0, Ordering::Relaxed);
            // SAFETY: the descriptor is our copy of a lock file; its owner object knows that it is
            // gone. `close` is async-signal-safe.
            unsafe { libc::close(fd as libc::c_int - 1) };
        }
    }
}

/// How often this process image was forked since it first opened a queue. A handle that was opened
/// at another count belongs to the parent. Costs one load.
#[inline(always)]
pub fn fork_generation() -> u64 {
    // Relaxed: changed only by the fork itself, before any thread of the child runs.
    FORKS.load(Ordering::Relaxed)
}

/// From now on [`fork_generation`] counts. Everything that compares it calls this (or opens a lock,
/// which does) first.
pub fn watch_forks() {
    static HOOK: OnceLock<()> = OnceLock::new();
    HOOK.get_or_init(|| {
        // SAFETY: the handler is async-signal-safe: atomics and `close`.
        unsafe { libc::pthread_atfork(None, None, Some(after_fork_in_child)) };
    });
}

/// While it lives, this thread takes no signals; threads that it starts meanwhile never do.
pub struct BlockedSignals {
    before: libc::sigset_t,
    /// The mask belongs to the thread.
    not_send: std::marker::PhantomData<*const ()>,
}

/// Blocks every signal that some other thread can take as well. Those that an instruction of this
/// very thread raises stay. `abort` works all the same: it lets its own signal through.
pub fn block_signals() -> BlockedSignals {
    const LEFT: [libc::c_int; 6] =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];
    // SAFETY: signal sets are plain data, filled in by the calls; none of them can fail with these
    // arguments.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut mask);
        for signal in LEFT {
            libc::sigdelset(&mut mask, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &mask, &mut before);
        BlockedSignals { before, not_send: std::marker::PhantomData }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set was filled in by `block_signals`, on this thread.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

/// A descriptor that a forked child closes as it starts.
pub struct CloseInChild {
    place: usize,
    generation: u64,
}

impl CloseInChild {
    pub fn register(fd: libc::c_int) -> std::io::Result<Self> {
        watch_forks();
        let free = CLOSE_IN_CHILD.iter().position(|place| {
            // Relaxed: the place carries one number and nothing is read through it.
            place.compare_exchange(0, fd as u32 + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        });
        let full = || std::io::Error::other("more than 16384 queue files are open in this process");
        Ok(Self { place: free.ok_or_else(full)?, generation: fork_generation() })
    }

    /// Whether this process registered it (and not the parent it was forked from).
    pub fn is_ours(&self) -> bool {
        self.generation == fork_generation()
    }

    pub fn forget(&self) {
        // Relaxed: as in `register`.
        CLOSE_IN_CHILD[self.place].store(0, Ordering::Relaxed);
    }
}

/// A descriptor of one process: a forked child closes its copy as it starts.
pub struct OwnDescriptor {
    fd: ManuallyDrop<OwnedFd>,
    registered: CloseInChild,
}

impl OwnDescriptor {
    pub fn new(fd: OwnedFd) -> std::io::Result<Self> {
        let registered = CloseInChild::register(fd.as_raw_fd())?;
        Ok(Self { fd: ManuallyDrop::new(fd), registered })
    }

    /// Whether this process opened it, and not the parent it was forked from.
    pub fn is_ours(&self) -> bool {
        self.registered.is_ours()
    }
}

impl AsFd for OwnDescriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for OwnDescriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for OwnDescriptor {
    fn drop(&mut self) {
        if self.registered.is_ours() {
            self.registered.forget();
            // SAFETY: dropped once, here; in a forked child it was closed already.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

pub fn pid() -> u32 {
    std::process::id()
}

/// The id of this boot of the kernel, as two words; zeros where the kernel does not tell.
pub fn boot_id() -> [u64; 2] {
    static ID: OnceLock<[u64; 2]> = OnceLock::new();
    *ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        match u128::from_str_radix(&hex, 16) {
            Ok(id) => [(id >> 64) as u64, id as u64],
            Err(_) => [0, 0],
        }
    })
}

/// Random bytes for a queue id.
pub fn random_id() -> std::io::Result<[u8; 16]> {
    let mut id = [0_u8; 16];
    // SAFETY: the buffer is 16 writable bytes.
    let got = unsafe { libc::getrandom(id.as_mut_ptr().cast(), id.len(), 0) };
    if got == id.len() as isize { Ok(id) } else { Err(std::io::Error::last_os_error()) }
}

/// Kills this process at once, as a power switch would: nothing is unwound or flushed.
#[cfg(feature = "failpoints")]
pub fn kill_self() -> ! {
    // SAFETY: sends a signal to ourselves; it cannot be caught.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    loop {
        std::thread::park();
    }
}
