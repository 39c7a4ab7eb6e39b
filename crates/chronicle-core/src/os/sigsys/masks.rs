//! Signal masks, actions and stacks, as the kernel sees them: calls about them are not made as they
//! are, since the handler's return would undo them, or SIGSYS be blocked.

use super::context::{Errno, Saved, read_memory, write_memory};
use crate::os::seccomp::{allowed_syscall, allowed_syscall_on};

pub(super) const MASK_BYTES: usize = 8;

pub(super) const fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

/// Raised by an instruction of the thread: blocking one of these kills the process instead.
pub(super) const SYNCHRONOUS: u64 = bit(libc::SIGSYS)
    | bit(libc::SIGSEGV)
    | bit(libc::SIGBUS)
    | bit(libc::SIGILL)
    | bit(libc::SIGFPE)
    | bit(libc::SIGTRAP);

/// Sets the mask of this thread, while it is in the handler; returns the one before.
pub(super) fn set_mask(mask: u64) -> u64 {
    let mut before = 0_u64;
    let (new, old) = (std::ptr::from_ref(&mask) as usize, std::ptr::from_mut(&mut before) as usize);
    let args = [libc::SIG_SETMASK as usize, new, old, MASK_BYTES, 0, 0];
    // SAFETY: both words outlive the call.
    unsafe { allowed_syscall(libc::SYS_rt_sigprocmask as usize, args) };
    before
}

/// `rt_sigprocmask(how, set, old, size)` on the saved mask.
pub(super) fn change_mask(args: &[u64; 6], saved: &mut Saved) -> Result<(), Errno> {
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
pub(super) fn change_signal_stack(args: &[u64; 6], saved: &mut Saved) -> isize {
    let stack_pointer = saved.stack_pointer();
    // SAFETY: nothing is stored through the other stack pointer, since signals are blocked; each use
    // below says what it passes.
    let make =
        |args| unsafe { allowed_syscall_on(stack_pointer, libc::SYS_sigaltstack as usize, args) };
    let mask = set_mask(!SYNCHRONOUS);
    // Such a stack is none while a handler runs on it. The interrupted code has it all the same.
    let disarmed = saved.signal_stack().ss_flags & SS_AUTODISARM != 0;
    if disarmed {
        // The saved context's own description of it.
        make([std::ptr::from_mut(saved.signal_stack()) as usize, 0, 0, 0, 0, 0]);
    }
    // What the interrupted code wanted.
    let result = make(args.map(|arg| arg as usize));
    // What the return from the handler restores, as far as the kernel lets it: the same.
    make([0, std::ptr::from_mut(saved.signal_stack()) as usize, 0, 0, 0, 0]);
    if disarmed {
        // Or the next handler's frame would start where this one's is.
        let none =
            libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        make([std::ptr::from_ref(&none) as usize, 0, 0, 0, 0, 0]);
    }
    set_mask(mask);
    result
}

/// linux/signal.h; not in the crate `libc`.
const SS_AUTODISARM: libc::c_int = 1 << 31;

/// Makes a call that waits with another signal mask, the argument `at` and the size behind it, but
/// lets SIGSYS through: a handler that runs meanwhile may make a call.
pub(super) fn wait_with_mask(number: u32, args: &[u64; 6], at: usize) -> isize {
    let mut args = args.map(|arg| arg as usize);
    let mut mask = 0_u64;
    // A mask that cannot be read is the kernel's to complain about.
    if args[at + 1] == MASK_BYTES && read_word(args[at], &mut mask) {
        mask &= !bit(libc::SIGSYS);
        args[at] = std::ptr::from_ref(&mask) as usize;
    }
    // SAFETY: what the interrupted code wanted; the mask outlives the call.
    unsafe { allowed_syscall(number as usize, args) }
}

/// `pselect6`, whose last argument points at the address of the mask and its size.
pub(super) fn select_with_mask(number: u32, args: &[u64; 6]) -> isize {
    let mut args = args.map(|arg| arg as usize);
    let (mut pack, mut mask) = ([0_u64; 2], 0_u64);
    let size = size_of_val(&pack);
    let has_pack = args[5] != 0
        && read_memory(args[5], std::ptr::from_mut(&mut pack).cast(), size).is_ok()
        && pack[1] == MASK_BYTES as u64;
    if has_pack && read_word(pack[0] as usize, &mut mask) {
        mask &= !bit(libc::SIGSYS);
        pack[0] = std::ptr::from_ref(&mask) as u64;
        args[5] = std::ptr::from_ref(&pack) as usize;
    }
    // SAFETY: as in `wait_with_mask`; pack and mask outlive the call.
    unsafe { allowed_syscall(number as usize, args) }
}

/// `rt_sigaction`, but the new handler does not block SIGSYS while it runs.
pub(super) fn change_action(args: &[u64; 6]) -> isize {
    let mut args = args.map(|arg| arg as usize);
    let mut action = KernelAction::default();
    let into = std::ptr::from_mut(&mut action).cast();
    let given = args[1] != 0
        && args[3] == MASK_BYTES
        && read_memory(args[1], into, size_of::<KernelAction>()).is_ok();
    if given {
        action.mask &= !bit(libc::SIGSYS);
        args[1] = std::ptr::from_ref(&action) as usize;
    }
    // SAFETY: what the interrupted code wanted; the action outlives the call.
    unsafe { allowed_syscall(libc::SYS_rt_sigaction as usize, args) }
}

fn read_word(from: usize, into: &mut u64) -> bool {
    from != 0 && read_memory(from, std::ptr::from_mut(into).cast(), MASK_BYTES).is_ok()
}

/// `struct kernel_sigaction`: all zero is the default action.
#[repr(C)]
#[derive(Default)]
pub(super) struct KernelAction {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}
