//! Which calls are not the supervisor's to decide, and why.

use super::masks::bit;
use crate::os::seccomp::NATIVE_ARCH;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// What the supervisor says.
    Free,
    /// Refused, whatever it says: the call would leave the thread, or a child of it, with the filter
    /// and without its handler, or means another call than its number says.
    Refused,
    /// Made, whatever it says: it does not wait for anybody, and its refusal would hang other
    /// threads, break the heap, or have a crash go round in circles.
    Made,
    /// Made, and no doing of the thread's own code: the C library changes the ids of user and group
    /// in every thread, because some other thread has asked for it.
    Foreign,
}

/// The rule for a call that is made while the thread's signal mask is `mask`.
pub(super) fn rule(number: i32, arch: u32, args: &[u64; 6], mask: u64) -> Rule {
    if arch != NATIVE_ARCH || is_x32(number) || must_refuse(number, args) {
        Rule::Refused
    } else if is_id_change_of_all(mask) && may_change_ids(number, args) {
        Rule::Foreign
    } else if must_make(number, args) {
        Rule::Made
    } else {
        Rule::Free
    }
}

/// A call of the x32 interface, which shares the architecture but not all numbers.
fn is_x32(number: i32) -> bool {
    const X32_BIT: i32 = 0x4000_0000;
    cfg!(target_arch = "x86_64") && number >= 0 && number & X32_BIT != 0
}

/// Arguments that the kernel takes as an `int`: it does not look at their upper half.
const fn int(arg: u64) -> i32 {
    arg as i32
}

fn must_refuse(number: i32, args: &[u64; 6]) -> bool {
    match i64::from(number) {
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_execve | libc::SYS_execveat => true,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork | libc::SYS_vfork => true,
        libc::SYS_rt_sigaction => int(args[0]) == libc::SIGSYS && args[1] != 0,
        // A filter on top of ours decides over ours, and with TSYNC hands ours to every thread.
        libc::SYS_seccomp => [libc::SECCOMP_SET_MODE_STRICT, libc::SECCOMP_SET_MODE_FILTER]
            .contains(&(int(args[0]) as u32)),
        libc::SYS_prctl => int(args[0]) == libc::PR_SET_SECCOMP,
        _ => false,
    }
}

fn must_make(number: i32, args: &[u64; 6]) -> bool {
    match i64::from(number) {
        // Others wait for these.
        libc::SYS_futex => is_wake(args),
        SYS_FUTEX_WAKE | SYS_FUTEX_REQUEUE => true,
        // `abort`, `raise` and crash handlers: they try again until it works.
        libc::SYS_rt_sigaction
        | libc::SYS_rt_sigprocmask
        | libc::SYS_tgkill
        | libc::SYS_tkill
        | libc::SYS_getpid
        | libc::SYS_gettid => true,
        // The C library ends the process if the threads' ids differ.
        _ if is_change_of_ids(number) => true,
        // The heap. A refused `brk` does not even look like one: it returns where the break is, so
        // that an error number counts as success.
        libc::SYS_brk
        | libc::SYS_mmap
        | libc::SYS_munmap
        | libc::SYS_mremap
        | libc::SYS_mprotect
        | libc::SYS_madvise => true,
        _ => false,
    }
}

fn is_wake(args: &[u64; 6]) -> bool {
    [
        libc::FUTEX_WAKE,
        libc::FUTEX_WAKE_OP,
        libc::FUTEX_WAKE_BITSET,
        libc::FUTEX_REQUEUE,
        libc::FUTEX_CMP_REQUEUE,
        libc::FUTEX_CMP_REQUEUE_PI,
        libc::FUTEX_UNLOCK_PI,
    ]
    .contains(&(int(args[1]) & libc::FUTEX_CMD_MASK))
}

fn is_change_of_ids(number: i32) -> bool {
    [
        libc::SYS_setuid,
        libc::SYS_setgid,
        libc::SYS_setreuid,
        libc::SYS_setregid,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
    ]
    .contains(&i64::from(number))
}

/// What glibc's handler of SIGSETXID calls (nptl/nptl_setxid.c).
fn may_change_ids(number: i32, args: &[u64; 6]) -> bool {
    match i64::from(number) {
        libc::SYS_getpid => true,
        libc::SYS_futex => is_wake(args),
        _ => is_change_of_ids(number),
    }
}

/// Whether that handler runs. It is known by the mask: the signal is blocked, as any is while its
/// handler runs, but not the other one that glibc keeps for itself. Nobody else blocks either:
/// glibc takes both out of every mask that it is given, and blocks both if it blocks all.
fn is_id_change_of_all(mask: u64) -> bool {
    const SIGCANCEL: i32 = 32;
    const SIGSETXID: i32 = 33;
    cfg!(target_env = "gnu") && mask & (bit(SIGCANCEL) | bit(SIGSETXID)) == bit(SIGSETXID)
}

/// Whether it is a wait on a futex, which may always be told that the word has changed.
pub(super) fn is_wait(number: i32, args: &[u64; 6]) -> bool {
    match i64::from(number) {
        libc::SYS_futex => {
            let command = int(args[1]) & libc::FUTEX_CMD_MASK;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn native(number: i64, args: [u64; 6]) -> Rule {
        rule(number as i32, NATIVE_ARCH, &args, 0)
    }

    #[test]
    fn numbers_of_other_instruction_sets_are_refused() {
        let getpid = libc::SYS_getpid as i32;
        assert_eq!(rule(getpid, 0x4000_0003, &[0; 6], 0), Rule::Refused);
        let x32 = if cfg!(target_arch = "x86_64") { Rule::Refused } else { Rule::Free };
        assert_eq!(native(libc::SYS_getppid | 0x4000_0000, [0; 6]), x32);
        // No call at all: the kernel says so itself.
        assert_eq!(native(-1, [0; 6]), Rule::Free);
    }

    #[test]
    fn the_kernel_s_view_of_an_int_counts() {
        let rubbish = 0xDEAD_BEEF_0000_0000;
        let sigsys = rubbish | libc::SIGSYS as u64;
        assert_eq!(native(libc::SYS_rt_sigaction, [sigsys, 1, 0, 8, 0, 0]), Rule::Refused);
        assert_eq!(native(libc::SYS_rt_sigaction, [sigsys, 0, 1, 8, 0, 0]), Rule::Made);
        let prctl = rubbish | libc::PR_SET_SECCOMP as u64;
        assert_eq!(native(libc::SYS_prctl, [prctl, 2, 0, 0, 0, 0]), Rule::Refused);
        let set_name = libc::PR_SET_NAME as u64;
        assert_eq!(native(libc::SYS_prctl, [set_name, 0, 0, 0, 0, 0]), Rule::Free);
        for (operation, expected) in
            [(0, Rule::Refused), (1, Rule::Refused), (2, Rule::Free), (rubbish | 1, Rule::Refused)]
        {
            assert_eq!(native(libc::SYS_seccomp, [operation, 0, 0, 0, 0, 0]), expected);
        }
    }

    #[test]
    fn a_change_of_ids_is_foreign_only_while_its_signal_alone_is_blocked() {
        let (cancel, setxid) = (bit(32), bit(33));
        let under = |mask| rule(libc::SYS_setgid as i32, NATIVE_ARCH, &[0; 6], mask);
        assert_eq!(under(0), Rule::Made);
        assert_eq!(under(cancel), Rule::Made);
        assert_eq!(under(u64::MAX), Rule::Made);
        if cfg!(target_env = "gnu") {
            assert_eq!(under(setxid), Rule::Foreign);
            assert_eq!(under(!cancel), Rule::Foreign);
            let other = rule(libc::SYS_write as i32, NATIVE_ARCH, &[0; 6], setxid);
            assert_eq!(other, Rule::Free);
        }
    }

    #[test]
    fn waits_and_wakes_on_a_futex_are_told_apart_whatever_their_flags() {
        for command in 0..16_u64 {
            for flags in [0, 128, 256, 384, 1 << 32] {
                let args = [0, command | flags, 0, 0, 0, 0];
                let made = native(libc::SYS_futex, args) == Rule::Made;
                assert_eq!(made, [1, 3, 4, 5, 7, 10, 12].contains(&command), "{command}");
                assert_eq!(is_wait(libc::SYS_futex as i32, &args), [0, 9].contains(&command));
            }
        }
    }
}
