//! The handler of SIGSYS is the process's: others install theirs, send the signal, or block it.

use crate::support::*;
use chronicle_core::hot::guard::{Guard, GuardMode};
use chronicle_core::os::process::block_signals;
use chronicle_core::os::seccomp::allowed_syscall;
use chronicle_core::os::sigsys::{self, Call, Decision, Supervisor};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

fn run_child(name: &str) -> (ExitStatus, String) {
    crate::support::run_child(module_path!(), name)
}

static CALLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn call_in_handler(_: i32) {
    CALLED.fetch_add(1, SeqCst);
    call(libc::SYS_getppid, [0; 6]).unwrap();
}

extern "C" fn deaf(_: i32) {}

/// Sends a signal to the calling thread, unseen by the guard.
fn raise_unseen(signal: i32) {
    // SAFETY: numbers only.
    unsafe {
        let pid = allowed_syscall(libc::SYS_getpid as usize, [0; 6]) as usize;
        let thread = allowed_syscall(libc::SYS_gettid as usize, [0; 6]) as usize;
        let args = [pid, thread, signal as usize, 0, 0, 0];
        assert_eq!(allowed_syscall(libc::SYS_tgkill as usize, args), 0);
    }
}

child!(child_handler_lost, {
    static STATE: AtomicU32 = AtomicU32::new(0);
    let go_on = |state| {
        STATE.store(state, SeqCst);
        while STATE.load(SeqCst) == state {
            std::hint::spin_loop();
        }
    };
    let guard = Guard::new(GuardMode::Observe, 8).unwrap();
    assert!(!guard.counts().lost, "it has not begun");
    let on_thread = Arc::clone(&guard);
    let thread = std::thread::spawn(move || {
        let armed = on_thread.arm().unwrap();
        go_on(1);
        drop(armed);
        go_on(3);
    });
    let reach = |state| {
        while STATE.load(SeqCst) != state {
            std::thread::yield_now();
        }
    };
    reach(1);
    let ended = Guard::new(GuardMode::Observe, 8).unwrap();
    let on_other = Arc::clone(&ended);
    std::thread::spawn(move || drop(on_other.arm().unwrap())).join().unwrap();
    assert!(!guard.counts().lost);
    // SAFETY: plain data, filled in by the calls.
    let ours = unsafe {
        let mut ours: libc::sigaction = std::mem::zeroed();
        assert_eq!(libc::sigaction(libc::SIGSYS, std::ptr::null(), &mut ours), 0);
        ours
    };
    handle(libc::SIGSYS, deaf, 0);
    assert!(!sigsys::is_installed());
    assert_eq!(guard.drain(|_| ()), 0);
    // SAFETY: the action that was there.
    unsafe { assert_eq!(libc::sigaction(libc::SIGSYS, &ours, std::ptr::null_mut()), 0) };
    assert!(guard.counts().lost, "what was lost stays lost");
    assert!(!ended.counts().lost, "its thread no longer needs a handler");
    STATE.store(2, SeqCst);
    reach(3);
    STATE.store(4, SeqCst);
    thread.join().unwrap();
    exit(42)
});

#[test]
fn a_handler_that_another_library_has_replaced_is_noticed() {
    let (status, text) = run_child("child_handler_lost");
    assert_eq!(status.code(), Some(42), "{text}");
}

child!(child_sent_while_told, {
    static DEPTH: AtomicU32 = AtomicU32::new(0);
    static DEEPEST: AtomicU32 = AtomicU32::new(0);
    static TOLD: AtomicU32 = AtomicU32::new(0);
    struct Sending;
    impl Supervisor for Sending {
        fn trapped(&self, _: &Call) -> Decision {
            DEEPEST.fetch_max(DEPTH.fetch_add(1, SeqCst) + 1, SeqCst);
            if TOLD.fetch_add(1, SeqCst) == 0 {
                raise_unseen(libc::SIGSYS);
            }
            DEPTH.fetch_sub(1, SeqCst);
            Decision::Pass
        }
    }
    // It was there before, and its call is trapped.
    handle(libc::SIGSYS, call_in_handler, 0);
    std::thread::spawn(|| {
        let _armed = sigsys::arm(Arc::new(Sending)).unwrap();
        call(libc::SYS_getppid, [0; 6]).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(CALLED.load(SeqCst), 1);
    assert_eq!((TOLD.load(SeqCst), DEEPEST.load(SeqCst)), (2, 1));
    exit(42)
});

#[test]
fn a_sigsys_that_somebody_sends_does_not_enter_a_supervisor_twice() {
    let (status, text) = run_child("child_sent_while_told");
    assert_eq!(status.code(), Some(42), "{text}");
}

/// A signal waits to be taken until a call waits with a mask that blocks all others.
fn wait_with_mask(number: i64, args: impl Fn(&u64) -> [usize; 6] + Send + 'static) {
    let outcome = guarded(GuardMode::Observe, 64, move |_| {
        let usr1 = 1_u64 << (libc::SIGUSR1 - 1);
        let mut before = 0_u64;
        let old = std::ptr::from_mut(&mut before) as usize;
        let block = [libc::SIG_BLOCK as usize, at(&usr1), old, 8, 0, 0];
        call(libc::SYS_rt_sigprocmask, block).unwrap();
        raise_unseen(libc::SIGUSR1);
        assert_eq!(call(number, args(&!usr1)), Err(libc::EINTR), "{number}");
        before
    });
    let expected = [libc::SYS_rt_sigprocmask, number, libc::SYS_getppid];
    assert_eq!(numbers(&outcome.reports), expected);
}

child!(child_masked_waits, {
    handle(libc::SIGUSR1, call_in_handler, 0);
    let epoll = call(libc::SYS_epoll_create1, [0; 6]).unwrap() as usize;
    let event = Box::leak(Box::new([0_u64; 2])).as_ptr() as usize;
    let forever = usize::MAX;
    wait_with_mask(libc::SYS_rt_sigsuspend, |mask| [at(mask), 8, 0, 0, 0, 0]);
    wait_with_mask(libc::SYS_ppoll, |mask| [0, 0, 0, at(mask), 8, 0]);
    wait_with_mask(libc::SYS_epoll_pwait, move |mask| [epoll, event, 1, forever, at(mask), 8]);
    wait_with_mask(libc::SYS_epoll_pwait2, move |mask| [epoll, event, 1, 0, at(mask), 8]);
    wait_with_mask(libc::SYS_pselect6, |mask| {
        [0, 0, 0, 0, 0, Box::leak(Box::new([at(mask), 8])).as_ptr() as usize]
    });
    assert_eq!(CALLED.load(SeqCst), 5);
    exit(42)
});

#[test]
fn a_wait_that_would_block_sigsys_lets_handlers_make_calls() {
    let (status, text) = run_child("child_masked_waits");
    assert_eq!(status.code(), Some(42), "{text}");
}

#[test]
fn bad_masks_of_waits_fail_as_they_would_have() {
    let bad = 8_usize;
    let time = at(Box::leak(Box::new([0_u64; 2])));
    let good = at(Box::leak(Box::new(0_u64)));
    let pack = at(Box::leak(Box::new([bad, 8])));
    for (number, args) in [
        (libc::SYS_rt_sigsuspend, [bad, 8, 0, 0, 0, 0]),
        (libc::SYS_rt_sigsuspend, [good, 7, 0, 0, 0, 0]),
        (libc::SYS_ppoll, [0, 0, time, bad, 8, 0]),
        (libc::SYS_ppoll, [0, 0, time, good, 4, 0]),
        (libc::SYS_pselect6, [0, 0, 0, 0, time, bad]),
        (libc::SYS_pselect6, [0, 0, 0, 0, time, pack]),
        (libc::SYS_rt_sigaction, [libc::SIGUSR2 as usize, bad, 0, 8, 0, 0]),
        (libc::SYS_rt_sigaction, [libc::SIGUSR2 as usize, 0, bad, 8, 0, 0]),
        (libc::SYS_rt_sigaction, [libc::SIGUSR2 as usize, 0, 0, 7, 0, 0]),
    ] {
        let plain = std::thread::spawn(move || call(number, args)).join().unwrap();
        let outcome = guarded(GuardMode::Observe, 8, move |_| call(number, args));
        assert!(plain.is_err(), "{number} {args:?}");
        assert_eq!(outcome.value, plain, "{number} {args:?}");
    }
}

child!(child_masking_handler, {
    let outcome = guarded(GuardMode::Observe, 64, |_| {
        // SAFETY: plain data; a handler that makes a call and a store.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = call_in_handler as *const () as usize;
            libc::sigfillset(&mut action.sa_mask);
            assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
        }
        raise_unseen(libc::SIGUSR1);
        CALLED.load(SeqCst)
    });
    assert_eq!(outcome.value, 1);
    assert_eq!(numbers(&outcome.reports), [libc::SYS_rt_sigaction, libc::SYS_getppid]);
    exit(42)
});

#[test]
fn a_handler_that_a_guarded_thread_installs_does_not_block_sigsys() {
    let (status, text) = run_child("child_masking_handler");
    assert_eq!(status.code(), Some(42), "{text}");
}

child!(child_profiler, {
    for signal in [libc::SIGPROF, libc::SIGABRT] {
        handle(signal, call_in_handler, libc::SA_RESTART);
    }
    let guard = Guard::new(GuardMode::Enforce, 8).unwrap();
    std::thread::spawn(move || {
        let blocked = block_signals();
        let armed = guard.arm().unwrap();
        raise_unseen(libc::SIGPROF);
        raise_unseen(libc::SIGABRT);
        assert_eq!((guard.must_stop(), CALLED.load(SeqCst)), (false, 0));
        drop(armed);
        // Now they are taken.
        drop(blocked);
        assert_eq!(CALLED.load(SeqCst), 2);
    })
    .join()
    .unwrap();
    exit(42)
});

#[test]
fn a_profiler_s_signal_does_not_stop_a_hot_thread() {
    let (status, text) = run_child("child_profiler");
    assert_eq!(status.code(), Some(42), "{text}");
}

fn signals_after_the_guard(flags: i32) {
    handle(libc::SIGUSR1, call_in_handler, flags);
    let guard = Guard::new(GuardMode::Observe, 64).unwrap();
    std::thread::spawn(move || {
        drop(guard.arm().unwrap());
        let args = [std::process::id() as usize, thread_id(), libc::SIGUSR1 as usize, 0, 0, 0];
        for count in 1..=3 {
            // The handler runs inside of the trap of this call, and its own call is a trap.
            call(libc::SYS_tgkill, args).unwrap();
            assert_eq!(CALLED.load(SeqCst), count);
        }
    })
    .join()
    .unwrap();
    exit(42)
}

child!(child_signals_after, signals_after_the_guard(0));
child!(child_signals_on_the_stack_after, signals_after_the_guard(libc::SA_ONSTACK));

#[test]
fn handlers_have_room_on_the_signal_stack_after_the_guard_too() {
    for name in ["child_signals_after", "child_signals_on_the_stack_after"] {
        let (status, text) = run_child(name);
        assert_eq!(status.code(), Some(42), "{name}: {text}");
    }
}

child!(child_first_thread_gone, {
    extern "C" fn end_thread(_: i32) {
        // SAFETY: ends this thread only, and runs nothing of it.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
    // The tests run on a thread of their own; the first one waits for it.
    handle(libc::SIGUSR2, end_thread, 0);
    let pid = std::process::id() as usize;
    assert_ne!(thread_id(), pid);
    call(libc::SYS_tgkill, [pid, pid, libc::SIGUSR2 as usize, 0, 0, 0]).unwrap();
    let stat = || std::fs::read_to_string(format!("/proc/self/task/{pid}/stat")).unwrap();
    while !stat().contains(") Z ") {
        std::thread::yield_now();
    }
    let outcome = guarded(GuardMode::Observe, 8, |_| {
        let mut old = 0_u64;
        let args = [0, 0, std::ptr::from_mut(&mut old) as usize, 8, 0, 0];
        call(libc::SYS_rt_sigprocmask, args)
    });
    assert_eq!(outcome.value, Ok(0));
    assert!(outcome.reports[0].stack.iter().any(|word| *word != 0));
    exit(42)
});

#[test]
fn a_guard_works_after_the_first_thread_of_the_process_has_ended() {
    let (status, text) = run_child("child_first_thread_gone");
    assert_eq!(status.code(), Some(42), "{text}");
}
