//! Signal masks, signal stacks, and handlers that interrupt the guard's.

use crate::support::*;
use chronicle_core::hot::guard::GuardMode;
use chronicle_core::os::seccomp::allowed_syscall;
use chronicle_core::os::sigsys::{self, Call, Decision, Supervisor};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

fn pending_mask(how: i32, set: u64) -> u64 {
    let mut old = 0_u64;
    let args = [how as usize, at(&set), std::ptr::from_mut(&mut old) as usize, 8, 0, 0];
    assert_eq!(call(libc::SYS_rt_sigprocmask, args), Ok(0));
    old
}

fn own_mask() -> u64 {
    let mut old = 0_u64;
    let args = [0, 0, std::ptr::from_mut(&mut old) as usize, 8, 0, 0];
    assert_eq!(call(libc::SYS_rt_sigprocmask, args), Ok(0));
    old
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

#[test]
fn changes_of_the_signal_mask_last_and_never_block_sigsys() {
    let outcome = guarded(GuardMode::Observe, 64, |_| {
        let (usr1, usr2, sys) = (bit(libc::SIGUSR1), bit(libc::SIGUSR2), bit(libc::SIGSYS));
        pending_mask(libc::SIG_SETMASK, usr1 | sys);
        assert_eq!(own_mask(), usr1);
        assert_eq!(pending_mask(libc::SIG_BLOCK, usr2 | sys), usr1);
        assert_eq!(own_mask(), usr1 | usr2);
        assert_eq!(pending_mask(libc::SIG_UNBLOCK, usr1), usr1 | usr2);
        assert_eq!(own_mask(), usr2);
        // Everything, as the C library does before it starts or ends a thread.
        pending_mask(libc::SIG_SETMASK, u64::MAX);
        let all = !(sys | bit(libc::SIGKILL) | bit(libc::SIGSTOP));
        assert_eq!(own_mask(), all);
        // The kernel agrees.
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        assert_eq!(u64::from_str_radix(blocked, 16).unwrap(), all);
    });
    assert_eq!(outcome.guard.counts().refused, 0);
}

#[test]
fn bad_arguments_of_emulated_calls_fail_as_they_would_have() {
    let bad = 8_usize;
    let good = at(Box::leak(Box::new([0_u64; 3])));
    for (number, args) in [
        (libc::SYS_rt_sigprocmask, [0, bad, 0, 8, 0, 0]),
        (libc::SYS_rt_sigprocmask, [0, 0, bad, 8, 0, 0]),
        (libc::SYS_rt_sigprocmask, [0, good, 0, 7, 0, 0]),
        (libc::SYS_rt_sigprocmask, [99, good, 0, 8, 0, 0]),
        (libc::SYS_sigaltstack, [bad, 0, 0, 0, 0, 0]),
        (libc::SYS_sigaltstack, [0, bad, 0, 0, 0, 0]),
        (libc::SYS_sigaltstack, [good, 0, 0, 0, 0, 0]),
        (libc::SYS_write, [1, bad, 1, 0, 0, 0]),
    ] {
        let plain = std::thread::spawn(move || call(number, args)).join().unwrap();
        let outcome = guarded(GuardMode::Observe, 8, move |_| call(number, args));
        assert!(plain.is_err());
        assert_eq!(outcome.value, plain, "{number} {args:?}");
    }
}

#[test]
fn a_signal_stack_set_under_guard_is_the_one_that_handlers_get() {
    static SEEN: AtomicI64 = AtomicI64::new(0);
    extern "C" fn note(_: i32) {
        let here = 0_u8;
        SEEN.store(std::ptr::from_ref(&here) as i64, SeqCst);
    }
    handle(libc::SIGUSR2, note, libc::SA_ONSTACK);
    let outcome = guarded(GuardMode::Observe, 64, |_| {
        let memory = Box::leak(vec![0_u8; 1 << 16].into_boxed_slice());
        let stack =
            libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
        // SAFETY: plain data; the stack outlives the thread.
        let told = unsafe {
            assert_eq!(libc::sigaltstack(&stack, std::ptr::null_mut()), 0);
            let mut told: libc::stack_t = std::mem::zeroed();
            assert_eq!(libc::sigaltstack(std::ptr::null(), &mut told), 0);
            libc::raise(libc::SIGUSR2);
            // Back to none, or the thread's end would leave it.
            let off = libc::stack_t { ss_flags: libc::SS_DISABLE, ..stack };
            assert_eq!(libc::sigaltstack(&off, std::ptr::null_mut()), 0);
            told
        };
        let start = memory.as_ptr() as i64;
        (told.ss_sp as i64 == start, told.ss_flags, SEEN.load(SeqCst) - start)
    });
    let (same, flags, offset) = outcome.value;
    assert!(same && flags == 0 && (0..1 << 16).contains(&offset), "{:?}", outcome.value);
}

#[test]
fn a_signal_stack_that_is_disarmed_while_in_use_survives_calls() {
    const SS_AUTODISARM: i32 = 1 << 31;
    static INSIDE: AtomicI64 = AtomicI64::new(0);
    extern "C" fn note(_: i32) {
        let here = 0_u8;
        INSIDE.store(std::ptr::from_ref(&here) as i64, SeqCst);
        call(libc::SYS_getppid, [0; 6]).unwrap();
    }
    handle(libc::SIGTTIN, note, libc::SA_ONSTACK);
    let run = || {
        let memory = Box::leak(vec![0_u8; 1 << 16].into_boxed_slice());
        let start = memory.as_mut_ptr();
        let stack =
            libc::stack_t { ss_sp: start.cast(), ss_flags: SS_AUTODISARM, ss_size: memory.len() };
        let mut seen = Vec::new();
        // SAFETY: plain data; the stack outlives the thread.
        unsafe {
            assert_eq!(libc::sigaltstack(&stack, std::ptr::null_mut()), 0);
            for _ in 0..3 {
                let mut told: libc::stack_t = std::mem::zeroed();
                assert_eq!(libc::sigaltstack(std::ptr::null(), &mut told), 0);
                assert_eq!(libc::raise(libc::SIGTTIN), 0);
                let offset = INSIDE.load(SeqCst) - start as i64;
                let is_there = (0..1 << 16).contains(&offset);
                seen.push((told.ss_sp == stack.ss_sp, told.ss_flags, is_there));
            }
            // Replaced by another, which says what was there before.
            let (other, mut before) =
                (libc::stack_t { ss_flags: 0, ..stack }, std::mem::zeroed::<libc::stack_t>());
            assert_eq!(libc::sigaltstack(&other, &mut before), 0);
            seen.push((before.ss_sp == stack.ss_sp, before.ss_flags, true));
            assert_eq!(libc::raise(libc::SIGTTIN), 0);
            assert_eq!(libc::sigaltstack(std::ptr::null(), &mut before), 0);
            seen.push((before.ss_sp == stack.ss_sp, before.ss_flags, true));
            let off = libc::stack_t { ss_flags: libc::SS_DISABLE, ..stack };
            assert_eq!(libc::sigaltstack(&off, std::ptr::null_mut()), 0);
        }
        seen
    };
    let plain = std::thread::spawn(run).join().unwrap();
    assert_eq!(plain[0], (true, SS_AUTODISARM, true));
    assert_eq!(guarded(GuardMode::Observe, 64, move |_| run()).value, plain);
}

#[test]
fn calls_of_a_signal_handler_that_interrupts_a_call_are_reported_too() {
    extern "C" fn call_in_handler(_: i32) {
        call(libc::SYS_getppid, [0; 6]).unwrap();
    }
    handle(libc::SIGURG, call_in_handler, 0);
    let outcome = guarded(GuardMode::Observe, 64, |_| {
        let args = [std::process::id() as usize, thread_id(), libc::SIGURG as usize, 0, 0, 0];
        call(libc::SYS_tgkill, args)
    });
    assert_eq!(outcome.value, Ok(0));
    // The signal arrives inside of the SIGSYS handler that makes tgkill.
    let expected = [libc::SYS_getpid, libc::SYS_gettid, libc::SYS_tgkill, libc::SYS_getppid];
    assert_eq!(numbers(&outcome.reports), expected);
}

#[test]
fn signals_that_come_while_a_call_is_being_reported_lose_and_mix_up_nothing() {
    const SIGNALS: i64 = 300;
    static TARGET: AtomicI64 = AtomicI64::new(0);
    static IN_HANDLER: AtomicI64 = AtomicI64::new(0);
    extern "C" fn call_with_a_count(_: i32) {
        let count = IN_HANDLER.load(SeqCst);
        let args = [1 << 30 | count as usize, 0, 0, 0, 0, 0];
        assert_eq!(call(libc::SYS_close, args), Err(libc::EBADF));
        IN_HANDLER.store(count + 1, SeqCst);
    }
    handle(libc::SIGWINCH, call_with_a_count, 0);
    let sender = std::thread::spawn(|| {
        let pid = std::process::id() as usize;
        while TARGET.load(SeqCst) == 0 {
            std::hint::spin_loop();
        }
        let target = TARGET.load(SeqCst) as usize;
        let mut sent = 0;
        while IN_HANDLER.load(SeqCst) < SIGNALS {
            // The next one once the last was taken: they would merge.
            if IN_HANDLER.load(SeqCst) == sent {
                call(libc::SYS_tgkill, [pid, target, libc::SIGWINCH as usize, 0, 0, 0]).unwrap();
                sent += 1;
            }
            std::thread::yield_now();
        }
    });
    let outcome = guarded(GuardMode::Observe, 1 << 16, |_| {
        TARGET.store(thread_id() as i64, SeqCst);
        let mut made = 0_u64;
        while IN_HANDLER.load(SeqCst) < SIGNALS {
            assert_eq!(call(libc::SYS_close, [1 << 29, 0, 0, 0, 0, 0]), Err(libc::EBADF));
            made += 1;
        }
        made
    });
    sender.join().unwrap();
    let counts = outcome.guard.counts();
    assert_eq!(counts.seen, 1 + outcome.value + SIGNALS as u64);
    assert_eq!(counts.seen, counts.dropped + outcome.reports.len() as u64);
    let closes = outcome.reports.iter().filter(|report| report.args[0] & 1 << 30 != 0);
    let order: Vec<u64> = closes.map(|report| report.args[0] & !(1 << 30)).collect();
    assert!(order.is_sorted_by(|a, b| a < b), "each is reported once, in the order of the calls");
    if counts.dropped == 0 {
        assert_eq!(order.len(), SIGNALS as usize);
    }
}

#[test]
fn a_supervisor_is_not_interrupted_by_a_signal_while_it_is_told_of_a_call() {
    static DEPTH: AtomicI64 = AtomicI64::new(0);
    static DEEPEST: AtomicI64 = AtomicI64::new(0);
    static HANDLED: AtomicI64 = AtomicI64::new(0);
    struct Raising;
    impl Supervisor for Raising {
        fn trapped(&self, _: &Call) -> Decision {
            DEEPEST.fetch_max(DEPTH.fetch_add(1, SeqCst) + 1, SeqCst);
            let raise = |number: i64, args| {
                // SAFETY: numbers only.
                unsafe { allowed_syscall(number as usize, args) as usize }
            };
            let pid = raise(libc::SYS_getpid, [0; 6]);
            let thread = raise(libc::SYS_gettid, [0; 6]);
            if DEPTH.load(SeqCst) == 1 && HANDLED.load(SeqCst) == 0 {
                raise(libc::SYS_tgkill, [pid, thread, libc::SIGIO as usize, 0, 0, 0]);
            }
            DEPTH.fetch_sub(1, SeqCst);
            Decision::Pass
        }
    }
    extern "C" fn call_in_handler(_: i32) {
        HANDLED.fetch_add(1, SeqCst);
        call(libc::SYS_getppid, [0; 6]).unwrap();
    }
    handle(libc::SIGIO, call_in_handler, 0);
    std::thread::spawn(|| {
        let _armed = sigsys::arm(Arc::new(Raising)).unwrap();
        call(libc::SYS_getppid, [0; 6]).unwrap();
        assert_eq!((HANDLED.load(SeqCst), DEEPEST.load(SeqCst)), (1, 1));
    })
    .join()
    .unwrap();
}

#[test]
fn a_blocking_call_is_interrupted_by_a_signal_as_without_a_guard() {
    extern "C" fn nothing(_: i32) {}
    static SLEEPER: AtomicI64 = AtomicI64::new(0);
    handle(libc::SIGUSR1, nothing, 0);
    let interrupter = std::thread::spawn(|| {
        let pid = std::process::id() as usize;
        loop {
            let thread = SLEEPER.load(SeqCst);
            match thread {
                -1 => break,
                0 => {}
                id => drop(call(libc::SYS_tgkill, [pid, id as usize, 10, 0, 0, 0])),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let outcome = guarded(GuardMode::Observe, 8, |_| {
        let id = thread_id();
        SLEEPER.store(id as i64, SeqCst);
        let long = libc::timespec { tv_sec: 1000, tv_nsec: 0 };
        let result = call(libc::SYS_nanosleep, [at(&long), 0, 0, 0, 0, 0]);
        SLEEPER.store(-1, SeqCst);
        result
    });
    interrupter.join().unwrap();
    assert_eq!(libc::SIGUSR1, 10);
    assert_eq!(outcome.value, Err(libc::EINTR));
}
