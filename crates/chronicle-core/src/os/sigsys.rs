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
//! - `rt_sigprocmask` changes what the return from the handler restores, so it is carried out on the
//!   saved context. `sigaltstack` is refused by the kernel, and so is its restoration, to who is on
//!   the signal stack, which the handler may be: it is made with the caller's stack pointer.
//! - SIGSYS must never be blocked while the filter is on: the kernel kills a process whose trap
//!   cannot be delivered. It is left out of every mask that the thread sets.
//! - `clone`, `fork`, `vfork` would hand the filter to a child that has no supervisor, `execve` to a
//!   program without the handler; and a SIGSYS handler of its own would take the thread out of our
//!   hands. These are refused always.
//! - Waking the waiters of a futex, and putting back a signal's default action, as crash handlers
//!   do, are told to the supervisor as calls that must pass: refused, they would hang whoever waits
//!   for a lock of this thread, or have the crash handler run for ever.
//! - A call of another instruction set (32-bit on x86-64) has other numbers, and is refused.
//!
//! Known limits: a signal handler that was installed with SIGSYS in its `sa_mask`, or that runs
//! inside `sigsuspend`, `ppoll` and the like with a mask that blocks SIGSYS, must make no system call
//! on a guarded thread. Hot threads block signals, so no handler runs there.
//!
//! # Orderings
//! - S1: `supervisor` Release store in [`arm`] -> Acquire load in the handler, and Acquire exchange by
//!   whoever takes it away: the armed thread itself, or who takes over the place of one that is
//!   gone. Who has the pointer sees what it points at. It is the hand-over of P5 in
//!   `docs/internals/ordering.md`.
//!
//! `thread_id` publishes nothing: of those who want a place, one wins the exchange, and the handler
//! looks for the id that its own thread stored.

use super::seccomp::{NATIVE_ARCH, allowed_syscall, allowed_syscall_on, install};
use crate::sync::{Arc, AtomicPtr, AtomicU32, Ordering};
use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::sync::{Mutex, OnceLock};

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
    /// Whether the call is refused whatever the supervisor says.
    pub must_refuse: bool,
    /// Whether refusing the call would hang other threads, or this one as it crashes.
    pub must_pass: bool,
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
    supervisor: AtomicPtr<Arc<dyn Supervisor>>,
}

static PLACES: [Place; THREADS_MAX] = [const {
    Place { thread_id: AtomicU32::new(0), supervisor: AtomicPtr::new(std::ptr::null_mut()) }
}; THREADS_MAX];

thread_local! {
    /// The place whose filter this thread has. Not for the handler.
    static OWN_PLACE: Cell<Option<usize>> = const { Cell::new(None) };
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
        let left = place.supervisor.swap(std::ptr::null_mut(), Ordering::Acquire); // S1
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
    signal_stack: SignalStack,
    no_new_privs: bool,
    /// The filter belongs to the thread.
    not_send: PhantomData<*const ()>,
}

/// Guards the calling thread from here to its end.
///
/// # Errors
/// If filters are not allowed here, another library has taken over SIGSYS, too many threads are
/// guarded, or this one already is.
pub fn arm(supervisor: Arc<dyn Supervisor>) -> io::Result<Armed> {
    install_handler()?;
    let known = OWN_PLACE.get();
    let index = match known {
        Some(index) => index,
        None => claim()?,
    };
    let place = &PLACES[index];
    if !place.supervisor.load(Ordering::Acquire).is_null() {
        return Err(io::Error::other(
            "this thread is guarded already; drop the first guard before",
        )); // S1
    }
    let mut armed = Armed {
        place: index,
        signal_stack: SignalStack::install()?,
        no_new_privs: false,
        not_send: PhantomData,
    };
    unblock_sigsys();
    let supervisor = Box::into_raw(Box::new(supervisor));
    place.supervisor.store(supervisor, Ordering::Release); // S1
    if known.is_none() {
        OWN_PLACE.set(Some(index));
        // Refused: dropping `armed` takes the supervisor back, and the place stays for a next try.
        armed.no_new_privs = install(MARK | index as u16).inspect_err(|_| OWN_PLACE.set(None))?;
    }
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
        let supervisor = PLACES[self.place].supervisor.swap(null, Ordering::Acquire); // S1
        self.signal_stack.remove();
        if !supervisor.is_null() {
            // SAFETY: `arm` put it there; the handler, on this thread, no longer finds it.
            drop(unsafe { Box::from_raw(supervisor) });
        }
    }
}

/// A signal stack that has room for nested handlers: a frame alone can be 4 KiB with AVX-512.
struct SignalStack {
    memory: *mut c_void,
    before: libc::stack_t,
}

const SIGNAL_STACK_BYTES: usize = 64 * 1024;

impl SignalStack {
    fn install() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_POPULATE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping that nobody else knows; its lowest page catches overflows; the
        // thread's signal stack is set to the rest.
        unsafe {
            let guard = page_bytes();
            let len = SIGNAL_STACK_BYTES + guard;
            let memory = libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0);
            if memory == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            libc::mprotect(memory, guard, libc::PROT_NONE);
            let stack = libc::stack_t {
                ss_sp: memory.byte_add(guard),
                ss_flags: 0,
                ss_size: SIGNAL_STACK_BYTES,
            };
            let mut this = Self { memory, before: std::mem::zeroed() };
            if libc::sigaltstack(&stack, &mut this.before) != 0 {
                let error = io::Error::last_os_error();
                libc::munmap(memory, len);
                return Err(error);
            }
            Ok(this)
        }
    }

    fn remove(&mut self) {
        let len = SIGNAL_STACK_BYTES + page_bytes();
        let before = std::ptr::from_ref(&self.before) as usize;
        // SAFETY: `before` is what the thread had; the mapping is ours, and no handler is on it:
        // this runs outside of handlers.
        unsafe {
            allowed_syscall(libc::SYS_sigaltstack as usize, [before, 0, 0, 0, 0, 0]);
            allowed_syscall(libc::SYS_munmap as usize, [self.memory as usize, len, 0, 0, 0, 0]);
        }
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

// --- The process's handler ---

static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

fn install_handler() -> io::Result<()> {
    static INSTALL: Mutex<()> = Mutex::new(());
    let _lock = INSTALL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let ours = on_sigsys as *const () as usize;
    // SAFETY: plain data, filled in by the calls. The handler keeps to what handlers may do.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGSYS, std::ptr::null(), &mut current) != 0 {
            return Err(io::Error::last_os_error());
        }
        if current.sa_sigaction == ours {
            return Ok(());
        }
        let is_function = ![libc::SIG_DFL, libc::SIG_IGN].contains(&current.sa_sigaction);
        if PREVIOUS.get().is_some() && is_function {
            // It may hand on to ours; were ours put on top again, the two would call each other.
            let text = "another library has taken over SIGSYS after the first guard was armed; \
                        install its handler before chronicle's, or use no guard";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        // Known before the handler can run.
        PREVIOUS.get_or_init(|| current);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ours;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The head of `siginfo_t` for SIGSYS (`_sigsys` in asm-generic/siginfo.h), on 64-bit systems.
#[repr(C)]
#[derive(Clone, Copy)]
struct SigsysInfo {
    signal: i32,
    errno: i32,
    code: i32,
    _padding: i32,
    call_address: usize,
    number: i32,
    arch: u32,
}

/// `si_code` of a seccomp filter's trap (SYS_SECCOMP).
const CODE_SECCOMP: i32 = 1;

/// # Safety
/// For the kernel only, as the handler of SIGSYS with SA_SIGINFO.
unsafe extern "C" fn on_sigsys(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    // SAFETY: with SA_SIGINFO the kernel passes both, valid until the handler returns; the head of
    // `siginfo_t` has this layout for every code, only its last fields mean something else.
    // Copied, because the C library's `ucontext_t` is longer than the kernel's and overlaps it.
    let sigsys = unsafe { *info.cast::<SigsysInfo>() };
    match place_of(&sigsys) {
        // SAFETY: this thread's saved context, which nobody else looks at.
        Some(place) => on_trap(place, &sigsys, unsafe { &mut *context.cast::<Saved>() }),
        // SAFETY: as the kernel passed them.
        None => unsafe { hand_on(signal, info, context) },
    }
}

fn place_of(info: &SigsysInfo) -> Option<&'static Place> {
    if info.code != CODE_SECCOMP || info.errno & 0xFF00 != i32::from(MARK) {
        return None;
    }
    let place = &PLACES[(info.errno & 0xFF) as usize];
    // SAFETY: no arguments.
    let own = unsafe { allowed_syscall(libc::SYS_gettid as usize, [0; 6]) } as u32;
    // Relaxed: this thread stored it before it installed the filter; in any other case it differs
    // from the id of this thread, whatever is loaded.
    (place.thread_id.load(Ordering::Relaxed) == own).then_some(place)
}

fn on_trap(place: &Place, info: &SigsysInfo, saved: &mut Saved) {
    let supervisor = place.supervisor.load(Ordering::Acquire); // S1
    let args = saved.args();
    let mut call = Call {
        number: info.number as u32,
        arch: info.arch,
        args,
        call_site: info.call_address,
        stack: [0; STACK_WORDS],
        timestamp_ns: 0,
        must_refuse: info.arch != NATIVE_ARCH || must_refuse(info.number, &args),
        must_pass: info.arch == NATIVE_ARCH && must_pass(info.number, &args),
    };
    let mut decision = Decision::Pass;
    if !supervisor.is_null() {
        call.timestamp_ns = wall_ns();
        saved.copy_stack(&mut call.stack);
        let mask = set_mask(!SYNCHRONOUS);
        // SAFETY: not null, so `arm` put it there, and this thread has not taken it back.
        decision = unsafe { (*supervisor).trapped(&call) };
        set_mask(mask);
    }
    let result = match (decision, call.must_refuse) {
        (Decision::Pass, false) => perform(call.number, &args, saved),
        _ if call.arch == NATIVE_ARCH && is_wait(info.number, &args) => -(libc::EAGAIN as isize),
        _ => -(libc::EPERM as isize),
    };
    saved.set_result(result);
}

/// What would leave the thread, or a child of it, with a filter and without its handler.
fn must_refuse(number: i32, args: &[u64; 6]) -> bool {
    match i64::from(number) {
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_execve | libc::SYS_execveat => true,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork | libc::SYS_vfork => true,
        libc::SYS_rt_sigaction => args[0] == libc::SIGSYS as u64 && args[1] != 0,
        _ => false,
    }
}

/// See [`Call::must_pass`].
fn must_pass(number: i32, args: &[u64; 6]) -> bool {
    match i64::from(number) {
        libc::SYS_futex => {
            let command = args[1] as libc::c_int & libc::FUTEX_CMD_MASK;
            [
                libc::FUTEX_WAKE,
                libc::FUTEX_WAKE_OP,
                libc::FUTEX_WAKE_BITSET,
                libc::FUTEX_REQUEUE,
                libc::FUTEX_CMP_REQUEUE,
                libc::FUTEX_CMP_REQUEUE_PI,
                libc::FUTEX_UNLOCK_PI,
            ]
            .contains(&command)
        }
        SYS_FUTEX_WAKE | SYS_FUTEX_REQUEUE => true,
        libc::SYS_rt_sigaction => !must_refuse(number, args),
        _ => false,
    }
}

/// Whether it is a wait on a futex, which may always be told that the word has changed.
fn is_wait(number: i32, args: &[u64; 6]) -> bool {
    match i64::from(number) {
        libc::SYS_futex => {
            let command = args[1] as libc::c_int & libc::FUTEX_CMD_MASK;
            command == libc::FUTEX_WAIT || command == libc::FUTEX_WAIT_BITSET
        }
        libc::SYS_futex_waitv | SYS_FUTEX_WAIT => true,
        _ => false,
    }
}

/// Since 6.7, with the same numbers on all architectures.
const SYS_FUTEX_WAKE: i64 = 454;
const SYS_FUTEX_WAIT: i64 = 455;
const SYS_FUTEX_REQUEUE: i64 = 456;

/// Makes the call in the name of the interrupted code.
fn perform(number: u32, args: &[u64; 6], saved: &mut Saved) -> isize {
    match i64::from(number) {
        libc::SYS_rt_sigprocmask => {
            change_mask(args, saved).map_or_else(|error| -(error as isize), |()| 0)
        }
        libc::SYS_sigaltstack => change_signal_stack(args, saved),
        // SAFETY: the interrupted code wanted exactly this call.
        _ => unsafe { allowed_syscall(number as usize, args.map(|arg| arg as usize)) },
    }
}

/// Hands a signal that is not ours to whom it would have gone without us. Its `sa_mask` is not
/// applied: that would be a system call, which the other filter may trap.
///
/// # Safety
/// The arguments are the kernel's.
unsafe fn hand_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let (handler, flags) =
        PREVIOUS.get().map_or((libc::SIG_DFL, 0), |p| (p.sa_sigaction, p.sa_flags));
    // SAFETY: plain data that the kernel filled in.
    let is_trap = unsafe { (*info).si_code } == CODE_SECCOMP;
    match handler {
        // The kernel kills a process that ignores a trap.
        libc::SIG_IGN if !is_trap => {}
        libc::SIG_IGN | libc::SIG_DFL => die(),
        _ if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the previous owner installed it as a function of three arguments.
            unsafe {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
        }
        _ => {
            // SAFETY: the previous owner installed it as a function of one argument.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// What SIGSYS does by default: ends the process, with that signal as the reason.
fn die() {
    static DYING: AtomicU32 = AtomicU32::new(0);
    // Relaxed: asks whether this very thread has been here before; if it was another, the process
    // is about to end in any case.
    if DYING.swap(1, Ordering::Relaxed) != 0 {
        // The other filter traps the calls below as well.
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an invalid instruction, which ends the process.
        unsafe {
            std::arch::asm!("ud2", options(noreturn, nostack));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("udf #0", options(noreturn, nostack));
        }
    }
    let default = KernelAction::default();
    let action = std::ptr::from_ref(&default) as usize;
    // SAFETY: plain data that outlives the call; numbers.
    unsafe {
        let args = [libc::SIGSYS as usize, action, 0, MASK_BYTES, 0, 0];
        allowed_syscall(libc::SYS_rt_sigaction as usize, args);
        let pid = allowed_syscall(libc::SYS_getpid as usize, [0; 6]) as usize;
        let thread = allowed_syscall(libc::SYS_gettid as usize, [0; 6]) as usize;
        let args = [pid, thread, libc::SIGSYS as usize, 0, 0, 0];
        allowed_syscall(libc::SYS_tgkill as usize, args);
    }
}

/// `struct kernel_sigaction`: all zero is the default action.
#[repr(C)]
#[derive(Default)]
struct KernelAction {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

// --- Signal masks and stacks, as the kernel sees them ---

const MASK_BYTES: usize = 8;

const fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

/// Raised by an instruction of the thread: blocking one of these kills the process instead.
const SYNCHRONOUS: u64 = bit(libc::SIGSYS)
    | bit(libc::SIGSEGV)
    | bit(libc::SIGBUS)
    | bit(libc::SIGILL)
    | bit(libc::SIGFPE)
    | bit(libc::SIGTRAP);

/// Sets the mask of this thread, while it is in the handler; returns the one before.
fn set_mask(mask: u64) -> u64 {
    let mut before = 0_u64;
    let (new, old) = (std::ptr::from_ref(&mask) as usize, std::ptr::from_mut(&mut before) as usize);
    let args = [libc::SIG_SETMASK as usize, new, old, MASK_BYTES, 0, 0];
    // SAFETY: both words outlive the call.
    unsafe { allowed_syscall(libc::SYS_rt_sigprocmask as usize, args) };
    before
}

type Errno = libc::c_int;

/// `rt_sigprocmask(how, set, old, size)` on the saved mask.
fn change_mask(args: &[u64; 6], saved: &mut Saved) -> Result<(), Errno> {
    let [how, set, old, size, ..] = args.map(|arg| arg as usize);
    if size != MASK_BYTES {
        return Err(libc::EINVAL);
    }
    let before = *saved.mask();
    if set != 0 {
        let mut given = 0_u64;
        read_memory(set, std::ptr::from_mut(&mut given).cast(), MASK_BYTES)?;
        let wanted = match how as libc::c_int {
            libc::SIG_BLOCK => before | given,
            libc::SIG_UNBLOCK => before & !given,
            libc::SIG_SETMASK => given,
            _ => return Err(libc::EINVAL),
        };
        *saved.mask() = wanted & !(bit(libc::SIGSYS) | bit(libc::SIGKILL) | bit(libc::SIGSTOP));
    }
    if old != 0 {
        write_memory(old, std::ptr::from_ref(&before).cast(), MASK_BYTES)?;
    }
    Ok(())
}

/// `sigaltstack(new, old)`, which asks where the caller's stack pointer is: the kernel refuses to
/// change a signal stack that is in use, and this handler may be on it.
fn change_signal_stack(args: &[u64; 6], saved: &mut Saved) -> isize {
    let number = libc::SYS_sigaltstack as usize;
    let mask = set_mask(!SYNCHRONOUS);
    // SAFETY: what the interrupted code wanted; nothing is stored through its stack pointer, since
    // signals are blocked.
    let result =
        unsafe { allowed_syscall_on(saved.stack_pointer(), number, args.map(|arg| arg as usize)) };
    // What the return from the handler restores, as far as the kernel lets it: the same.
    let now = std::ptr::from_mut(saved.signal_stack()) as usize;
    // SAFETY: the saved context is ours to write.
    unsafe { allowed_syscall_on(saved.stack_pointer(), number, [0, now, 0, 0, 0, 0]) };
    set_mask(mask);
    result
}

// --- Memory that may not be there ---

/// Copies from an address that the interrupted code named; EFAULT instead of a crash if it is bad.
fn read_memory(from: usize, into: *mut u8, len_bytes: usize) -> Result<(), Errno> {
    copy(libc::SYS_process_vm_readv, into as usize, from, len_bytes)
}

fn write_memory(to: usize, from: *const u8, len_bytes: usize) -> Result<(), Errno> {
    copy(libc::SYS_process_vm_writev, from as usize, to, len_bytes)
}

fn copy(number: i64, ours: usize, theirs: usize, len_bytes: usize) -> Result<(), Errno> {
    let (ours, theirs) = ([ours, len_bytes], [theirs, len_bytes]);
    let (ours_at, theirs_at) = (ours.as_ptr() as usize, theirs.as_ptr() as usize);
    // SAFETY: `struct iovec` is an address and a length; our side is a buffer of that length, and
    // the kernel checks the other.
    let copied = unsafe {
        let pid = allowed_syscall(libc::SYS_getpid as usize, [0; 6]) as usize;
        allowed_syscall(number as usize, [pid, ours_at, 1, theirs_at, 1, 0])
    };
    match copied {
        n if n == len_bytes as isize => Ok(()),
        n if n == -(libc::ENOSYS as isize) || n == -(libc::EPERM as isize) => {
            // Some containers forbid the call. Then a bad address faults here, as it would have in
            // the code that named it.
            let (from, to) = match number == libc::SYS_process_vm_readv {
                true => (theirs[0], ours[0]),
                false => (ours[0], theirs[0]),
            };
            // SAFETY: see above: one side is our buffer, the other what the caller has named.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len_bytes) };
            Ok(())
        }
        _ => Err(libc::EFAULT),
    }
}

fn wall_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let at = std::ptr::from_mut(&mut now) as usize;
    // SAFETY: a valid out pointer. The call itself, since the vDSO is not known to be safe here.
    unsafe {
        let args = [libc::CLOCK_REALTIME as usize, at, 0, 0, 0, 0];
        allowed_syscall(libc::SYS_clock_gettime as usize, args);
    }
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

// --- The context that the kernel saved, and restores when the handler returns ---

#[repr(transparent)]
struct Saved(libc::ucontext_t);

impl Saved {
    #[cfg(target_arch = "x86_64")]
    fn args(&self) -> [u64; 6] {
        let registers = [
            libc::REG_RDI,
            libc::REG_RSI,
            libc::REG_RDX,
            libc::REG_R10,
            libc::REG_R8,
            libc::REG_R9,
        ];
        registers.map(|register| self.0.uc_mcontext.gregs[register as usize] as u64)
    }

    #[cfg(target_arch = "aarch64")]
    fn args(&self) -> [u64; 6] {
        std::array::from_fn(|i| self.0.uc_mcontext.regs[i])
    }

    #[cfg(target_arch = "x86_64")]
    fn stack_pointer(&self) -> usize {
        self.0.uc_mcontext.gregs[libc::REG_RSP as usize] as usize
    }

    #[cfg(target_arch = "aarch64")]
    fn stack_pointer(&self) -> usize {
        self.0.uc_mcontext.sp as usize
    }

    /// The words at the stack pointer; on aarch64 after the register that holds the return address
    /// of a function that calls no other.
    fn copy_stack(&self, into: &mut [usize; STACK_WORDS]) {
        #[cfg(target_arch = "x86_64")]
        let words = &mut into[..];
        #[cfg(target_arch = "aarch64")]
        let words = {
            into[0] = self.0.uc_mcontext.regs[30] as usize;
            &mut into[1..]
        };
        let len_bytes = size_of_val(words);
        if read_memory(self.stack_pointer(), words.as_mut_ptr().cast(), len_bytes).is_err() {
            words.fill(0);
        }
    }

    /// Sets what the call returns.
    #[cfg(target_arch = "x86_64")]
    fn set_result(&mut self, result: isize) {
        self.0.uc_mcontext.gregs[libc::REG_RAX as usize] = result as i64;
    }

    #[cfg(target_arch = "aarch64")]
    fn set_result(&mut self, result: isize) {
        self.0.uc_mcontext.regs[0] = result as u64;
    }

    /// The kernel's part of the mask: 64 signals, at the start of the C library's.
    fn mask(&mut self) -> &mut u64 {
        // SAFETY: the C library's set is larger and at least as aligned.
        unsafe { &mut *std::ptr::from_mut(&mut self.0.uc_sigmask).cast() }
    }

    fn signal_stack(&mut self) -> &mut libc::stack_t {
        &mut self.0.uc_stack
    }
}
