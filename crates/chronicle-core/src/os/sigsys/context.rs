//! The context that the kernel saved and restores when the handler returns, and memory that the
//! interrupted code named.

use super::{Bounds, STACK_WORDS};
#[cfg(target_arch = "x86_64")]
use crate::os::seccomp::NATIVE_ARCH;
use crate::os::seccomp::allowed_syscall;

pub(super) type Errno = libc::c_int;

#[repr(transparent)]
pub(super) struct Saved(libc::ucontext_t);

impl Saved {
    /// The arguments, in the registers of that instruction set's calls.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn args(&self, arch: u32) -> [u64; 6] {
        let value = |register| self.0.uc_mcontext.gregs[register as usize] as u64;
        if arch == NATIVE_ARCH {
            let registers = [
                libc::REG_RDI,
                libc::REG_RSI,
                libc::REG_RDX,
                libc::REG_R10,
                libc::REG_R8,
                libc::REG_R9,
            ];
            return registers.map(value);
        }
        let registers = [
            libc::REG_RBX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_RBP,
        ];
        registers.map(|register| value(register) & u64::from(u32::MAX))
    }

    #[cfg(target_arch = "aarch64")]
    pub(super) fn args(&self, _arch: u32) -> [u64; 6] {
        std::array::from_fn(|i| self.0.uc_mcontext.regs[i])
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn stack_pointer(&self) -> usize {
        self.0.uc_mcontext.gregs[libc::REG_RSP as usize] as usize
    }

    #[cfg(target_arch = "aarch64")]
    pub(super) fn stack_pointer(&self) -> usize {
        self.0.uc_mcontext.sp as usize
    }

    /// The words at the stack pointer; on aarch64 after the register that holds the return address
    /// of a function that calls no other. Where the kernel may not copy, those of the thread's own
    /// stack only: behind the end of another one there may be nothing.
    pub(super) fn copy_stack(&self, into: &mut [usize; STACK_WORDS], own: Bounds) {
        #[cfg(target_arch = "x86_64")]
        let words = &mut into[..];
        #[cfg(target_arch = "aarch64")]
        let words = {
            into[0] = self.0.uc_mcontext.regs[30] as usize;
            &mut into[1..]
        };
        let (from, len_bytes) = (self.stack_pointer(), size_of_val(words));
        let copied =
            ask_to_copy(libc::SYS_process_vm_readv, words.as_mut_ptr() as usize, from, len_bytes);
        if is_forbidden(copied) && own.low <= from && from < own.high {
            let count = words.len().min((own.high - from) / size_of::<usize>());
            // SAFETY: from the stack pointer to the end of the stack that it points into, all is
            // mapped; the buffer has room for `count` words.
            unsafe { std::ptr::copy(from as *const usize, words.as_mut_ptr(), count) };
        } else if copied != len_bytes as isize {
            words.fill(0);
        }
    }

    /// Sets what the call returns.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn set_result(&mut self, result: isize) {
        self.0.uc_mcontext.gregs[libc::REG_RAX as usize] = result as i64;
    }

    #[cfg(target_arch = "aarch64")]
    pub(super) fn set_result(&mut self, result: isize) {
        self.0.uc_mcontext.regs[0] = result as u64;
    }

    /// The kernel's part of the mask: 64 signals, at the start of the C library's.
    pub(super) fn mask(&mut self) -> &mut u64 {
        // SAFETY: the C library's set is larger and at least as aligned.
        unsafe { &mut *std::ptr::from_mut(&mut self.0.uc_sigmask).cast() }
    }

    pub(super) fn signal_stack(&mut self) -> &mut libc::stack_t {
        &mut self.0.uc_stack
    }
}
/// Copies from an address that the interrupted code named; EFAULT instead of a crash if it is bad.
pub(super) fn read_memory(from: usize, into: *mut u8, len_bytes: usize) -> Result<(), Errno> {
    copy(libc::SYS_process_vm_readv, into as usize, from, len_bytes)
}

pub(super) fn write_memory(to: usize, from: *const u8, len_bytes: usize) -> Result<(), Errno> {
    copy(libc::SYS_process_vm_writev, from as usize, to, len_bytes)
}

fn copy(number: i64, ours: usize, theirs: usize, len_bytes: usize) -> Result<(), Errno> {
    match ask_to_copy(number, ours, theirs, len_bytes) {
        n if n == len_bytes as isize => Ok(()),
        n if is_forbidden(n) => {
            // Then a bad address faults here, as it would have in the code that named it.
            let (from, to) = match number == libc::SYS_process_vm_readv {
                true => (theirs, ours),
                false => (ours, theirs),
            };
            // SAFETY: one side is our buffer of that length, the other what the caller has named.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len_bytes) };
            Ok(())
        }
        _ => Err(libc::EFAULT),
    }
}

/// What the kernel says to a copy between a buffer of ours and an address that may be bad.
fn ask_to_copy(number: i64, ours: usize, theirs: usize, len_bytes: usize) -> isize {
    let (ours, theirs) = ([ours, len_bytes], [theirs, len_bytes]);
    let (ours_at, theirs_at) = (ours.as_ptr() as usize, theirs.as_ptr() as usize);
    // SAFETY: `struct iovec` is an address and a length; our side is a buffer of that length, and
    // the kernel checks the other. A thread's id will do, and the first thread's may be gone.
    unsafe {
        let own = allowed_syscall(libc::SYS_gettid as usize, [0; 6]) as usize;
        allowed_syscall(number as usize, [own, ours_at, 1, theirs_at, 1, 0])
    }
}

/// Some containers forbid the call.
fn is_forbidden(result: isize) -> bool {
    result == -(libc::ENOSYS as isize) || result == -(libc::EPERM as isize)
}
