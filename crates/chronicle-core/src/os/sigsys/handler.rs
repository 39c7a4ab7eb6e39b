//! The process's SIGSYS handler.
//!
//! # Orderings
//! - S2: `PREVIOUS` Release store by who installs the handler -> Acquire load in the handler, which
//!   reads the action behind it.
//!
//! S1 is in the parent module.

use super::context::Saved;
use super::masks::{
    KernelAction, MASK_BYTES, SYNCHRONOUS, bit, change_action, change_mask, change_signal_stack,
    select_with_mask, set_mask, wait_with_mask,
};
use super::rules::{Rule, is_wait, rule};
use super::{Call, Decision, MARK, PLACES, Place, STACK_WORDS};
use crate::os::seccomp::{NATIVE_ARCH, allowed_syscall};
use crate::sync::{AtomicPtr, AtomicU32, Ordering};
use std::ffi::c_void;
use std::io;
use std::sync::Mutex;

/// The action that was there before ours; null before the first guard. Never freed: a handler may
/// be reading it.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());

pub(super) fn install_handler() -> io::Result<()> {
    static INSTALL: Mutex<()> = Mutex::new(());
    let _lock = INSTALL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let current = exchange_action(None)?;
    if is_ours(&current) {
        return Ok(());
    }
    let is_function = ![libc::SIG_DFL, libc::SIG_IGN].contains(&current.sa_sigaction);
    if !PREVIOUS.load(Ordering::Acquire).is_null() && is_function {
        // It may hand on to ours; were ours put on top again, the two would call each other.
        let text = "another library has taken over SIGSYS after the first guard was armed; \
                    install its handler before chronicle's, or use no guard";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text)); // S2
    }
    let keep = |action| Box::into_raw(Box::new(action));
    // Known before the handler can run.
    let was_first = PREVIOUS.load(Ordering::Acquire).is_null(); // S2
    if was_first {
        PREVIOUS.store(keep(current), Ordering::Release); // S2
    }
    // SAFETY: plain data.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigsys as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
    let replaced = exchange_action(Some(&action))?;
    if was_first && replaced.sa_sigaction != current.sa_sigaction {
        // Somebody else has installed theirs since we looked.
        PREVIOUS.store(keep(replaced), Ordering::Release); // S2
    }
    Ok(())
}

/// Whether the process's SIGSYS handler is ours. If another library has put its own in the place of
/// ours, guarded threads' calls are not made, and return what that handler leaves.
pub fn is_installed() -> bool {
    exchange_action(None).is_ok_and(|action| is_ours(&action))
}

fn is_ours(action: &libc::sigaction) -> bool {
    action.sa_sigaction == on_sigsys as *const () as usize
}

/// Sets the action of SIGSYS, if one is given, and returns the one before.
fn exchange_action(new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: plain data, filled in by the call. The handler keeps to what handlers may do.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        match libc::sigaction(libc::SIGSYS, new, &mut before) {
            0 => Ok(before),
            _ => Err(io::Error::last_os_error()),
        }
    }
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
    let guarded = place.guarded.load(Ordering::Acquire); // S1
    let args = saved.args(info.arch);
    let mut call = Call {
        number: info.number as u32,
        arch: info.arch,
        args,
        call_site: info.call_address,
        stack: [0; STACK_WORDS],
        timestamp_ns: 0,
        rule: rule(info.number, info.arch, &args, *saved.mask()),
    };
    let mut decision = Decision::Pass;
    if !guarded.is_null() {
        // SAFETY: not null, so `arm` put it there, and this thread has not taken it back.
        let guarded = unsafe { &*guarded };
        call.timestamp_ns = wall_ns();
        saved.copy_stack(&mut call.stack, guarded.stack);
        // SIGSYS as well: one that somebody sends goes to a handler whose calls are trapped.
        let mask = set_mask(!SYNCHRONOUS | bit(libc::SIGSYS));
        decision = guarded.supervisor.trapped(&call);
        set_mask(mask);
    }
    let is_made = match call.rule {
        Rule::Free => decision == Decision::Pass,
        Rule::Refused => false,
        Rule::Made | Rule::Foreign => true,
    };
    let result = if is_made {
        perform(call.number, &args, saved)
    } else if call.arch == NATIVE_ARCH && is_wait(info.number, &args) {
        -(libc::EAGAIN as isize)
    } else {
        -(libc::EPERM as isize)
    };
    saved.set_result(result);
}

/// Makes the call in the name of the interrupted code.
fn perform(number: u32, args: &[u64; 6], saved: &mut Saved) -> isize {
    match i64::from(number) {
        libc::SYS_rt_sigprocmask => {
            change_mask(args, saved).map_or_else(|error| -(error as isize), |()| 0)
        }
        libc::SYS_sigaltstack => change_signal_stack(args, saved),
        libc::SYS_rt_sigaction => change_action(args),
        libc::SYS_rt_sigsuspend => wait_with_mask(number, args, 0),
        libc::SYS_ppoll => wait_with_mask(number, args, 3),
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => wait_with_mask(number, args, 4),
        libc::SYS_pselect6 => select_with_mask(number, args),
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
    // SAFETY: whoever has stored the address has never freed what is there.
    let previous = unsafe { PREVIOUS.load(Ordering::Acquire).as_ref() }; // S2
    let (handler, flags) = previous.map_or((libc::SIG_DFL, 0), |p| (p.sa_sigaction, p.sa_flags));
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
