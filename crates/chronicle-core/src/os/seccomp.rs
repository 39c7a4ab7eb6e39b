//! The filter that makes every system call of one thread a signal, and the one instruction from
//! which that thread still reaches the kernel.
//!
//! The program (classic BPF, seccomp(2)) lets pass what comes from [`allowed_syscall`], whose single
//! `syscall` instruction it knows by address, and three calls that a thread must be able to make
//! from anywhere: `rt_sigreturn` (the end of a signal handler), `exit` and `exit_group`. Everything
//! else is `SECCOMP_RET_TRAP`: SIGSYS at once, on that thread, before the call does anything. What
//! happens then is in [`super::sigsys`].
//!
//! This is an instrument, not a sandbox: code that wants to can jump to our instruction.

use std::io;

// One function, since one instruction: number, arguments, and the stack pointer that the kernel is to
// see, or 0. The return address of a `syscall` instruction is what the kernel calls the instruction
// pointer of the call, so its label stands behind it.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .text.chronicle_allowed_syscall, \"ax\", @progbits",
    ".hidden chronicle_allowed_syscall",
    ".globl chronicle_allowed_syscall",
    ".type chronicle_allowed_syscall, @function",
    "chronicle_allowed_syscall:",
    ".cfi_startproc",
    "push r12",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r12, 0",
    "mov r12, rsp",
    ".cfi_def_cfa_register r12",
    "test rdx, rdx",
    "cmovnz rsp, rdx",
    "mov rax, rdi",
    "mov rdi, [rsi]",
    "mov rdx, [rsi + 16]",
    "mov r10, [rsi + 24]",
    "mov r8, [rsi + 32]",
    "mov r9, [rsi + 40]",
    "mov rsi, [rsi + 8]",
    "syscall",
    ".hidden chronicle_allowed_syscall_end",
    ".globl chronicle_allowed_syscall_end",
    "chronicle_allowed_syscall_end:",
    "mov rsp, r12",
    ".cfi_def_cfa_register rsp",
    "pop r12",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore r12",
    "ret",
    ".cfi_endproc",
    ".size chronicle_allowed_syscall, . - chronicle_allowed_syscall",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".pushsection .text.chronicle_allowed_syscall, \"ax\", @progbits",
    ".hidden chronicle_allowed_syscall",
    ".globl chronicle_allowed_syscall",
    ".type chronicle_allowed_syscall, @function",
    "chronicle_allowed_syscall:",
    ".cfi_startproc",
    "stp x19, x30, [sp, #-16]!",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset x19, -16",
    ".cfi_offset x30, -8",
    "mov x19, sp",
    ".cfi_def_cfa_register x19",
    "cbz x2, 1f",
    "mov sp, x2",
    "1:",
    "mov x8, x0",
    "mov x9, x1",
    "ldp x0, x1, [x9]",
    "ldp x2, x3, [x9, #16]",
    "ldp x4, x5, [x9, #32]",
    "svc #0",
    ".hidden chronicle_allowed_syscall_end",
    ".globl chronicle_allowed_syscall_end",
    "chronicle_allowed_syscall_end:",
    "mov sp, x19",
    ".cfi_def_cfa_register sp",
    "ldp x19, x30, [sp], #16",
    ".cfi_def_cfa_offset 0",
    ".cfi_restore x19",
    ".cfi_restore x30",
    "ret",
    ".cfi_endproc",
    ".size chronicle_allowed_syscall, . - chronicle_allowed_syscall",
    ".popsection",
);

// SAFETY: declared as they are defined above.
unsafe extern "C" {
    fn chronicle_allowed_syscall(number: usize, args: *const usize, stack_pointer: usize) -> isize;
    /// No function: its address is the return address of the instruction before it.
    fn chronicle_allowed_syscall_end();
}

/// Makes a system call that the filter lets pass. Returns what the kernel returns: a negative error
/// number if it failed. Does not touch `errno`, so it may be used in signal handlers.
///
/// # Safety
/// As the system call itself: pointers among the arguments must be what the call expects.
#[inline]
pub unsafe fn allowed_syscall(number: usize, args: [usize; 6]) -> isize {
    // SAFETY: the caller's promise; the arguments outlive the call.
    unsafe { chronicle_allowed_syscall(number, args.as_ptr(), 0) }
}

/// The same, with another stack pointer while the kernel looks.
///
/// # Safety
/// As [`allowed_syscall`]; signals must be blocked, since a handler would run there.
pub unsafe fn allowed_syscall_on(stack_pointer: usize, number: usize, args: [usize; 6]) -> isize {
    // SAFETY: the caller's promise; the arguments outlive the call.
    unsafe { chronicle_allowed_syscall(number, args.as_ptr(), stack_pointer) }
}

/// AUDIT_ARCH_* of linux/audit.h: the ELF machine, 64-bit, little-endian.
#[cfg(target_arch = "x86_64")]
pub const NATIVE_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
pub const NATIVE_ARCH: u32 = 0xC000_00B7;

/// Offsets in `struct seccomp_data` of linux/seccomp.h.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const POINTER_LOW: u32 = 8;
const POINTER_HIGH: u32 = 12;

const PROGRAM_LEN: usize = 12;

/// The program. `data` arrives with the signal (`si_errno`), so that the handler knows our traps
/// from those of other filters.
fn program(data: u16) -> [libc::sock_filter; PROGRAM_LEN] {
    const ALLOW: usize = PROGRAM_LEN - 2;
    const TRAP: usize = PROGRAM_LEN - 1;
    let op = |code: u32, jt: usize, jf: usize, k: u32| libc::sock_filter {
        code: code as u16,
        jt: jt as u8,
        jf: jf as u8,
        k,
    };
    let load = |offset| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let give = |action| op(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    // Jump to `yes` or `no`, from the instruction that stands at `at`; distances count from the
    // next one.
    let equal = |at: usize, k: u32, yes: usize, no: usize| {
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes - at - 1, no - at - 1, k)
    };
    let end = chronicle_allowed_syscall_end as *const () as usize as u64;
    [
        load(ARCH),
        equal(1, NATIVE_ARCH, 2, TRAP),
        load(NUMBER),
        equal(3, libc::SYS_rt_sigreturn as u32, ALLOW, 4),
        equal(4, libc::SYS_exit as u32, ALLOW, 5),
        equal(5, libc::SYS_exit_group as u32, ALLOW, 6),
        load(POINTER_LOW),
        equal(7, end as u32, 8, TRAP),
        load(POINTER_HIGH),
        equal(9, (end >> 32) as u32, ALLOW, TRAP),
        give(libc::SECCOMP_RET_ALLOW),
        give(libc::SECCOMP_RET_TRAP | u32::from(data)),
    ]
}

/// Puts the filter on the calling thread, for the rest of its life. Other threads are not touched.
///
/// Returns whether the thread had to give up gaining privileges (`PR_SET_NO_NEW_PRIVS`), which the
/// kernel asks of those without CAP_SYS_ADMIN: programs that this thread would start could not be
/// set-user-id; it starts none.
///
/// # Errors
/// If the kernel has no seccomp filters, or a sandbox forbids to add one.
pub fn install(data: u16) -> io::Result<bool> {
    let program = program(data);
    let filter = libc::sock_fprog { len: PROGRAM_LEN as u16, filter: program.as_ptr().cast_mut() };
    let mut no_new_privs = false;
    // Without SPEC_ALLOW, kernels before 5.16 turn on mitigations that slow the thread down even
    // where it makes no call (ssbd, stibp: Documentation/admin-guide/hw-vuln/spectre.rst). Kernels
    // before 4.17 do not know the flag.
    let mut flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    loop {
        // SAFETY: the program outlives the call, which copies it.
        let rc = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &filter)
        };
        if rc == 0 {
            return Ok(no_new_privs);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EACCES) if !no_new_privs => {
                // SAFETY: sets a flag of this thread; takes no pointers.
                let rc = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
                if rc != 0 {
                    return Err(io::Error::last_os_error());
                }
                no_new_privs = true;
            }
            Some(libc::EINVAL) if flags != 0 => flags = 0,
            _ => {
                let text = format!(
                    "cannot guard the thread: seccomp: {error}; this kernel or container allows no \
                     seccomp filters: allow them (CONFIG_SECCOMP_FILTER, the container's profile), \
                     or turn the guard off"
                );
                return Err(io::Error::new(error.kind(), text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowed_call_returns_what_the_kernel_says_and_leaves_errno_alone() {
        // SAFETY: errno is a word of this thread; getpid takes nothing, close takes a number.
        unsafe {
            *libc::__errno_location() = 1234;
            let pid = allowed_syscall(libc::SYS_getpid as usize, [0; 6]);
            assert_eq!(pid, libc::getpid() as isize);
            let rc = allowed_syscall(libc::SYS_close as usize, [usize::MAX, 0, 0, 0, 0, 0]);
            assert_eq!(rc, -(libc::EBADF as isize));
            assert_eq!(*libc::__errno_location(), 1234);
        }
    }

    #[test]
    fn all_six_arguments_arrive_in_order() {
        // mmap takes six, and each of them shows.
        // SAFETY: a private anonymous mapping that is unmapped below.
        unsafe {
            let file = std::fs::File::open("/proc/self/exe").unwrap();
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file) as usize;
            let wish = 0x5a5a_0000_0000_usize;
            let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE) as usize;
            let args = [wish, 4096, libc::PROT_READ as usize, flags, fd, 4096];
            let at = allowed_syscall(libc::SYS_mmap as usize, args);
            assert_eq!(at as usize, wish);
            let mapped = std::slice::from_raw_parts(wish as *const u8, 4096);
            assert_eq!(mapped, &std::fs::read("/proc/self/exe").unwrap()[4096..8192]);
            assert_eq!(libc::munmap(wish as *mut _, 4096), 0);
        }
    }

    /// What the kernel's interpreter makes of the program, for one call.
    fn verdict(number: i64, arch: u32, pointer: u64) -> u32 {
        let data = [number as u32, arch, pointer as u32, (pointer >> 32) as u32];
        let program = program(7);
        let (mut at, mut loaded) = (0, 0);
        loop {
            let op = program[at];
            at += 1;
            match u32::from(op.code) & 7 {
                libc::BPF_LD => loaded = data[op.k as usize / 4],
                libc::BPF_JMP => at += usize::from(if loaded == op.k { op.jt } else { op.jf }),
                _ => return op.k,
            }
        }
    }

    #[test]
    fn the_program_allows_our_instruction_and_three_calls_and_traps_all_else() {
        const TRAP: u32 = libc::SECCOMP_RET_TRAP | 7;
        const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
        let ours = chronicle_allowed_syscall_end as *const () as usize as u64;
        let others =
            [ours + 1, ours - 1, ours ^ 1 << 31, ours ^ 1 << 32, ours ^ 1 << 46, 0, u64::MAX];
        let anywhere = [libc::SYS_rt_sigreturn, libc::SYS_exit, libc::SYS_exit_group];
        for number in 0..500 {
            assert_eq!(verdict(number, NATIVE_ARCH, ours), ALLOW);
            for other in others {
                let expected = if anywhere.contains(&number) { ALLOW } else { TRAP };
                assert_eq!(verdict(number, NATIVE_ARCH, other), expected, "{number} {other:#x}");
            }
            // Of another instruction set nothing, wherever it comes from.
            assert_eq!(verdict(number, 0x4000_0003, ours), TRAP);
        }
    }
}
