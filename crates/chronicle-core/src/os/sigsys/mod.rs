//! What happens when a guarded thread makes a system call: the process's SIGSYS handler, the table
//! of guarded threads, and how a trapped call is made after all.
//!
//! # How it works
//!
//! [`arm`] puts a [`Supervisor`] for the calling thread into a table, installs the filter of
//! [`super::seccomp`] and gives the thread a signal stack. From then on each system call of that
//! thread raises SIGSYS before it does anything. The handler runs *on that thread*, tells the
//! supervisor, and either makes the call itself, from the instruction that the filter lets pass, or
//! refuses it with EPERM. Nobody else takes part, so there is nobody to wait for.
//!
//! The filter's traps carry a mark and the number of the thread's place in the table (`si_errno`),
//! and the place holds the thread's id. A trap of another filter, on a thread that is not ours,
//! fits neither: it goes to the handler that was there before. The id is asked for only if the mark
//! is ours, since the other filter may trap that call as well.
//!
//! Dropping [`Armed`] ends the supervision, not the filter, which the kernel never takes off: what
//! the thread still calls until it ends (destructors, the C library's own clean-up) is passed on
//! without a word. The place is used again once the kernel says that the thread is gone.
//!
//! # What the handler may do
//!
//! It can interrupt anything, the allocator and the dynamic linker included. So it calls nothing of
//! the C library, touches neither `errno` nor thread-local variables (in a shared object their first
//! use may allocate), takes no lock and allocates nothing. It may itself be interrupted by other
//! signals, whose handlers may make calls that are trapped in turn (SA_NODEFER); only while the
//! supervisor is told, signals are blocked, so a supervisor is never entered twice.
//!
//! # Calls that need care
//!
//! Which calls are refused or made whatever the supervisor says is in `rules`. Beside these:
//!
//! - `rt_sigprocmask` changes what the return from the handler restores, so it is carried out on the
//!   saved context. `sigaltstack` is refused by the kernel, and so is its restoration, to who is on
//!   the signal stack, which the handler may be: it is made with the caller's stack pointer.
//! - SIGSYS must never be blocked while the filter is on: the kernel kills a process whose trap
//!   cannot be delivered. It is left out of every mask that the thread sets, waits with, or gives a
//!   handler.
//!
//! # Known limits
//!
//! A handler that *another* thread installed with SIGSYS in its `sa_mask` must make no call on a
//! guarded thread. A SIGSYS that somebody sends is handed on like any other that is not ours, but
//! our handler does not block it, as the one before may have relied on; and a trap that meets one
//! that is already pending is lost: that call returns its own number. Hot threads block other
//! signals, so no handlers run there.
//!
//! # Orderings
//! - S1: `guarded` Release store in [`arm`] -> Acquire load in the handler, and Acquire exchange by
//!   whoever takes it away: the armed thread itself, or who takes over the place of one that is
//!   gone. Who has the pointer sees what it points at. It is the hand-over of P5 in
//!   `docs/internals/ordering.md`.
//!
//! `thread_id` publishes nothing: of those who want a place, one wins the exchange, and the handler
//! looks for the id that its own thread stored. `signal_stack` is only used by who has the place.

mod context;
mod handler;
mod masks;
mod rules;

pub use handler::is_installed;
pub use rules::Rule;

use super::seccomp::install;
use crate::sync::{Arc, AtomicPtr, AtomicU32, Ordering};
use handler::install_handler;
use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;

/// Words of the stack that are kept with a call.
pub const STACK_WORDS: usize = 64;

/// One trapped system call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Number in the table of `arch`.
    pub number: u32,
    /// AUDIT_ARCH_* of linux/audit.h.
    pub arch: u32,
    pub args: [u64; 6],
    /// Address behind the instruction that made the call.
    pub call_site: usize,
    /// What stood at the stack pointer and above: return addresses are among it. Zeros where the
    /// kernel would not read.
    pub stack: [usize; STACK_WORDS],
    /// Wall clock.
    pub timestamp_ns: u64,
    /// Whether the supervisor's word counts.
    pub rule: Rule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Pass,
    /// The caller gets EPERM; from a wait on a futex EAGAIN, since the C library ends the process if
    /// such a wait fails in a way that it does not know.
    Refuse,
}

/// Decides about the calls of one thread. Runs in a signal handler on that thread, with signals
/// blocked: the limits in the module's documentation hold for it.
pub trait Supervisor: Send + Sync {
    fn trapped(&self, call: &Call) -> Decision;
}

// --- The table of guarded threads ---

/// Guarded threads that a process can have at a time.
pub const THREADS_MAX: usize = 256;

/// In the upper byte of our filters' data; the lower is the place.
const MARK: u16 = 0xC700;

struct Place {
    /// Who has it; 0 nobody yet.
    thread_id: AtomicU32,
    /// What the handler needs; null before the guard and after it.
    guarded: AtomicPtr<Guarded>,
    /// Mapped for the first thread that has the place, and used by all that have it later: a thread
    /// needs it to its very end, which nobody is told of.
    signal_stack: AtomicPtr<c_void>,
}

struct Guarded {
    supervisor: Arc<dyn Supervisor>,
    /// The thread's own.
    stack: Bounds,
}

/// From the lowest address to the one behind the highest.
#[derive(Clone, Copy)]
struct Bounds {
    low: usize,
    high: usize,
}

static PLACES: [Place; THREADS_MAX] = [const {
    Place {
        thread_id: AtomicU32::new(0),
        guarded: AtomicPtr::new(std::ptr::null_mut()),
        signal_stack: AtomicPtr::new(std::ptr::null_mut()),
    }
}; THREADS_MAX];

thread_local! {
    /// The place whose filter this thread has, and whether it gave up gaining privileges for it. Not
    /// for the handler.
    static OWN_PLACE: Cell<Option<(usize, bool)>> = const { Cell::new(None) };
}

/// Takes a place that nobody has, or whose thread is gone.
fn claim() -> io::Result<usize> {
    let own = super::thread::current_id();
    for (index, place) in PLACES.iter().enumerate() {
        // Relaxed, both: see the module's header.
        let holder = place.thread_id.load(Ordering::Relaxed);
        // This thread has no place, so its id in the table is that of a dead one.
        if holder != 0 && holder != own && is_alive(holder) {
            continue;
        }
        let taken =
            place.thread_id.compare_exchange(holder, own, Ordering::Relaxed, Ordering::Relaxed);
        if taken.is_err() {
            continue;
        }
        let left = place.guarded.swap(std::ptr::null_mut(), Ordering::Acquire); // S1
        if !left.is_null() {
            // SAFETY: `arm` put it there, and its thread ended without taking it back.
            drop(unsafe { Box::from_raw(left) });
        }
        return Ok(index);
    }
    let text =
        format!("{THREADS_MAX} threads of this process are guarded; stop some, or use no guard");
    Err(io::Error::other(text))
}

fn is_alive(thread_id: u32) -> bool {
    // SAFETY: signal 0 only asks.
    let rc = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread_id, 0) };
    rc == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

// --- Arming ---

/// While it lives, the calls of this thread go to the supervisor.
#[must_use = "the supervision ends when it is dropped"]
pub struct Armed {
    place: usize,
    no_new_privs: bool,
    /// The filter belongs to the thread.
    not_send: PhantomData<*const ()>,
}

/// Guards the calling thread from here to its end. The thread keeps the signal stack that it gets,
/// since every call that it makes to its end is a signal.
///
/// # Errors
/// If filters are not allowed here, another library has taken over SIGSYS, too many threads are
/// guarded, or this one already is. No filter is on then, or no other than before.
pub fn arm(supervisor: Arc<dyn Supervisor>) -> io::Result<Armed> {
    install_handler()?;
    let known = OWN_PLACE.get();
    let index = match known {
        Some((index, _)) => index,
        None => claim()?,
    };
    let place = &PLACES[index];
    if !place.guarded.load(Ordering::Acquire).is_null() {
        return Err(io::Error::other(
            "this thread is guarded already; drop the first guard before",
        )); // S1
    }
    // Without bounds only reports have less to say, and only where copies are forbidden.
    let (low, high) = super::thread::stack_bounds().unwrap_or((0, 0));
    let guarded = Guarded { supervisor, stack: Bounds { low, high } };
    let before = use_signal_stack(place)?;
    unblock_sigsys();
    place.guarded.store(Box::into_raw(Box::new(guarded)), Ordering::Release); // S1
    let mut armed = Armed { place: index, no_new_privs: false, not_send: PhantomData };
    armed.no_new_privs = match known {
        Some((_, no_new_privs)) => no_new_privs,
        // Refused: dropping `armed` takes the supervisor back, and the place stays for a next try.
        None => install(MARK | index as u16).inspect_err(|_| {
            // SAFETY: what the thread had before.
            unsafe { libc::sigaltstack(&before, std::ptr::null_mut()) };
        })?,
    };
    OWN_PLACE.set(Some((index, armed.no_new_privs)));
    super::thread::clear_stack();
    Ok(armed)
}

impl Armed {
    /// Whether the thread had to give up gaining privileges (`PR_SET_NO_NEW_PRIVS`).
    pub fn no_new_privs(&self) -> bool {
        self.no_new_privs
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        let null = std::ptr::null_mut();
        let guarded = PLACES[self.place].guarded.swap(null, Ordering::Acquire); // S1
        if !guarded.is_null() {
            // SAFETY: `arm` put it there; the handler, on this thread, no longer finds it.
            drop(unsafe { Box::from_raw(guarded) });
        }
    }
}

/// Room for nested handlers: a frame alone can be 4 KiB with AVX-512, and larger with what comes
/// after it, which the kernel tells.
fn signal_stack_bytes() -> usize {
    // SAFETY: asks for a constant, without a system call; 0 from kernels that do not tell.
    let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
    (64 * 1024).max((8 * frame).next_multiple_of(page_bytes()))
}

/// Gives the calling thread the signal stack of its place; returns the one that it had.
fn use_signal_stack(place: &Place) -> io::Result<libc::stack_t> {
    // Relaxed: the address alone, what is in the mapping does not matter; seen late, there is one
    // mapping more.
    let mut memory = place.signal_stack.load(Ordering::Relaxed);
    if memory.is_null() {
        memory = map_signal_stack()?;
        // Relaxed: as above.
        place.signal_stack.store(memory, Ordering::Relaxed);
    }
    let stack = libc::stack_t {
        ss_sp: memory.wrapping_byte_add(page_bytes()),
        ss_flags: 0,
        ss_size: signal_stack_bytes(),
    };
    // SAFETY: plain data. The mapping is never removed, and whoever used it before is this thread or
    // is gone.
    unsafe {
        let mut before: libc::stack_t = std::mem::zeroed();
        match libc::sigaltstack(&stack, &mut before) {
            0 => Ok(before),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// A new signal stack, behind a page that catches overflows.
fn map_signal_stack() -> io::Result<*mut c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_POPULATE;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let len = page_bytes() + signal_stack_bytes();
    // SAFETY: a new mapping that nobody else knows.
    unsafe {
        let memory = libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0);
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        libc::mprotect(memory, page_bytes(), libc::PROT_NONE);
        Ok(memory)
    }
}

fn page_bytes() -> usize {
    // SAFETY: asks for a constant, without a system call.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

fn unblock_sigsys() {
    // SAFETY: a signal set is plain data, filled in by the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGSYS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}
