//! What is reported, and what the caller gets.

use crate::support::*;
use chronicle_core::hot::guard::{Guard, GuardAction, GuardCounts, GuardMode};
use chronicle_core::os::seccomp::allowed_syscall;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// Twelve calls with what they must return when they are made.
fn seeded() -> Vec<(i64, [usize; 6], Option<i64>)> {
    static TIME: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 1000 };
    static WORD: AtomicU32 = AtomicU32::new(7);
    static PATH: &std::ffi::CStr = c"/dev/null";
    let page = 4096;
    let leak = |len: usize| Box::leak(vec![0_u8; len].into_boxed_slice()).as_mut_ptr() as usize;
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    vec![
        (libc::SYS_getpid, [0; 6], Some(i64::from(std::process::id()))),
        (libc::SYS_clock_gettime, [0, leak(16), 0, 0, 0, 0], Some(0)),
        (libc::SYS_openat, [-100_isize as usize, PATH.as_ptr() as usize, 2, 0, 0, 0], None),
        (libc::SYS_write, [2, leak(1), 0, 0, 0, 0], Some(0)),
        (libc::SYS_pread64, [usize::MAX, leak(8), 8, 0, 0, 0], None),
        (libc::SYS_mmap, [0, page, 3, private, usize::MAX, 0], None),
        (libc::SYS_munmap, [0, page, 0, 0, 0, 0], Some(0)),
        (libc::SYS_futex, [at(&WORD), libc::FUTEX_WAIT as usize, 6, 0, 0, 0], None),
        (libc::SYS_nanosleep, [at(&TIME), 0, 0, 0, 0, 0], Some(0)),
        (libc::SYS_sched_yield, [0; 6], Some(0)),
        (libc::SYS_getrandom, [leak(8), 8, 0, 0, 0, 0], Some(8)),
        (libc::SYS_ioctl, [usize::MAX, libc::TCGETS as usize, 0, 0, 0, 0], None),
    ]
}

#[test]
fn each_observed_call_is_reported_and_returns_what_it_would_have() {
    for (number, args, expected) in seeded() {
        let plain = call(number, args);
        let outcome = guarded(GuardMode::Observe, 8, move |guard| {
            let result = call(number, args);
            (result, guard.must_stop())
        });
        let (result, must_stop) = outcome.value;
        match expected {
            Some(expected) => assert_eq!(result, Ok(expected), "{number}"),
            None => assert_eq!(result.is_err(), plain.is_err(), "{number}: {result:?} {plain:?}"),
        }
        assert_eq!(result.err(), plain.err());
        assert!(!must_stop);
        let [report] = outcome.reports[..] else { panic!("{:?}", outcome.reports) };
        assert_eq!(i64::from(report.number), number);
        assert_eq!(report.args, args.map(|arg| arg as u64));
        assert_eq!(report.action, GuardAction::Allowed);
        assert!(report.timestamp_ns > 0);
        assert_in_libc(report.call_site);
        assert!(report.stack.iter().any(|word| *word != 0));
    }
}

fn assert_in_libc(address: usize) {
    // SAFETY: a plain struct that the call fills in.
    let name = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        assert_ne!(libc::dladdr(address as *const _, &mut info), 0);
        std::ffi::CStr::from_ptr(info.dli_fname).to_str().unwrap()
    };
    assert!(name.contains("libc"), "{name}");
}

#[test]
fn each_enforced_call_is_reported_fails_and_stops_the_thread() {
    let made = [libc::SYS_getpid, libc::SYS_mmap, libc::SYS_munmap];
    for (number, args, expected) in seeded() {
        let is_made = made.contains(&number);
        let outcome = guarded(GuardMode::Enforce, 8, move |guard| {
            let before = guard.must_stop();
            (before, call(number, args), guard.must_stop())
        });
        let (before, result, after) = outcome.value;
        assert_eq!((before, after), (false, true), "{number}");
        match (is_made, expected) {
            (true, Some(expected)) => assert_eq!(result, Ok(expected), "{number}"),
            (true, None) => assert!(result.is_ok(), "{number}"),
            (false, _) if number == libc::SYS_futex => assert_eq!(result, Err(libc::EAGAIN)),
            (false, _) => assert_eq!(result, Err(libc::EPERM), "{number}"),
        }
        assert_eq!(numbers(&outcome.reports), [number]);
        let action = if is_made { GuardAction::MadeStopping } else { GuardAction::Refused };
        assert_eq!(outcome.reports[0].action, action);
        let (made, refused) = (u64::from(is_made), u64::from(!is_made));
        let counts = GuardCounts { seen: 1, refused, made, ..GuardCounts::default() };
        assert_eq!(outcome.guard.counts(), counts);
    }
}

#[test]
fn without_a_guard_nothing_is_filtered_and_nothing_reported() {
    let outcome = guarded(GuardMode::Off, 8, |guard| {
        (call(libc::SYS_getppid, [0; 6]).is_ok(), guard.must_stop(), seccomp_mode())
    });
    assert_eq!(outcome.value, (true, false, 0));
    assert!(outcome.reports.is_empty());
    assert_eq!(outcome.guard.counts(), GuardCounts::default());
}

#[test]
fn what_would_take_the_guard_off_or_hand_it_on_is_refused_in_both_modes() {
    let action = [0_u64; 4];
    let action = at(Box::leak(Box::new(action)));
    let sigsys = libc::SIGSYS as usize;
    for (number, args) in [
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_fork, [0; 6]),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_vfork, [0; 6]),
        (libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0, 0]),
        (libc::SYS_clone3, [0; 6]),
        (libc::SYS_execve, [0; 6]),
        (libc::SYS_execveat, [0; 6]),
        (libc::SYS_rt_sigaction, [sigsys, action, 0, 8, 0, 0]),
        // The kernel takes an int.
        (libc::SYS_rt_sigaction, [1 << 32 | sigsys, action, 0, 8, 0, 0]),
        (libc::SYS_seccomp, [libc::SECCOMP_SET_MODE_STRICT as usize, 0, 0, 0, 0, 0]),
        (libc::SYS_seccomp, [libc::SECCOMP_SET_MODE_FILTER as usize, 1, action, 0, 0, 0]),
        (libc::SYS_prctl, [libc::PR_SET_SECCOMP as usize, 2, action, 0, 0, 0]),
        // Of the x32 interface: fork, and a call that others have as well.
        #[cfg(target_arch = "x86_64")]
        (0x4000_0000 | libc::SYS_fork, [0; 6]),
        #[cfg(target_arch = "x86_64")]
        (0x4000_0000 | libc::SYS_getpid, [0; 6]),
    ] {
        for mode in BOTH {
            let outcome = guarded(mode, 8, move |guard| (call(number, args), guard.must_stop()));
            assert_eq!(outcome.value, (Err(libc::EPERM), mode == GuardMode::Enforce), "{number}");
            assert_eq!(numbers(&outcome.reports), [number]);
            assert_eq!(outcome.reports[0].action, GuardAction::Refused);
        }
    }
}

#[test]
fn calls_whose_refusal_would_harm_are_made_under_enforce_and_stop_the_thread() {
    static WORD: AtomicU32 = AtomicU32::new(0);
    let (futex, word) = (libc::SYS_futex, at(&WORD));
    let private = libc::FUTEX_PRIVATE_FLAG;
    let pid = std::process::id() as usize;
    for (number, args) in [
        (futex, [word, libc::FUTEX_WAKE as usize, 1, 0, 0, 0]),
        (futex, [word, (libc::FUTEX_WAKE | private) as usize, 1, 0, 0, 0]),
        (futex, [word, (libc::FUTEX_WAKE_BITSET | private) as usize, 1, 0, 0, 1]),
        (futex, [word, libc::FUTEX_REQUEUE as usize, 1, 0, word, 0]),
        (libc::SYS_rt_sigaction, [libc::SIGUSR2 as usize, 0, 0, 8, 0, 0]),
        (libc::SYS_rt_sigprocmask, [0, 0, 0, 8, 0, 0]),
        (libc::SYS_tgkill, [pid, pid, 0, 0, 0, 0]),
        (libc::SYS_tkill, [pid, 0, 0, 0, 0, 0]),
        (libc::SYS_setregid, [usize::MAX, usize::MAX, 0, 0, 0, 0]),
        (libc::SYS_madvise, [0; 6]),
    ] {
        let outcome =
            guarded(GuardMode::Enforce, 8, move |guard| (call(number, args), guard.must_stop()));
        assert_eq!(outcome.value, (Ok(0), true), "{number} {args:?}");
        assert_eq!(numbers(&outcome.reports), [number]);
        assert_eq!(outcome.reports[0].action, GuardAction::MadeStopping);
        let counts = GuardCounts { seen: 1, made: 1, ..GuardCounts::default() };
        assert_eq!(outcome.guard.counts(), counts);
    }
}

#[test]
fn a_thread_cannot_be_started_from_a_guarded_one() {
    let outcome = guarded(GuardMode::Observe, 64, |_| {
        std::thread::Builder::new().spawn(|| ()).map(drop).unwrap_err().raw_os_error()
    });
    assert_eq!(outcome.value, Some(libc::EPERM));
    assert_eq!(outcome.guard.counts().refused, 1);
}

#[test]
fn a_call_through_the_allowed_instruction_is_made_and_not_reported() {
    for mode in BOTH {
        let outcome = guarded(mode, 8, |guard| {
            let word = AtomicU32::new(1);
            let time = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
            let args = [at(&word), libc::FUTEX_WAIT as usize, 1, at(&time), 0, 0];
            // SAFETY: the word and the time outlive the call.
            let parked = unsafe { allowed_syscall(libc::SYS_futex as usize, args) };
            (parked, guard.must_stop())
        });
        assert_eq!(outcome.value, (-(libc::ETIMEDOUT as isize), false));
        assert!(outcome.reports.is_empty());
    }
}

#[test]
fn what_the_virtual_call_page_answers_is_no_system_call() {
    // Only where the kernel's clock is one that the page can read; else it falls back to a call.
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let name = std::fs::read_to_string(clock).unwrap_or_default();
    let outcome = guarded(GuardMode::Enforce, 8, |_| chronicle_core::os::clock::monotonic_ns());
    if ["tsc\n", "kvm-clock\n", "arch_sys_counter\n"].contains(&name.as_str()) {
        assert!(outcome.reports.is_empty(), "{:?}", numbers(&outcome.reports));
        assert_ne!(outcome.value, 0);
    } else {
        assert_eq!(numbers(&outcome.reports), [libc::SYS_clock_gettime]);
    }
}

#[test]
fn the_handler_leaves_errno_to_the_caller() {
    let outcome = guarded(GuardMode::Observe, 8, |_| {
        set_errno(1234);
        call(libc::SYS_getppid, [0; 6]).unwrap();
        errno()
    });
    assert_eq!(outcome.value, 1234);
}

#[test]
fn a_full_ring_drops_and_counts_and_the_calls_are_made() {
    let outcome = guarded(GuardMode::Observe, 4, |_| {
        (0..10).filter(|_| call(libc::SYS_getppid, [0; 6]).is_ok()).count()
    });
    assert_eq!(outcome.value, 10);
    assert_eq!(outcome.reports.len(), 4);
    assert_eq!(
        outcome.guard.counts(),
        GuardCounts { seen: 10, dropped: 6, ..GuardCounts::default() }
    );
}

#[test]
fn draining_while_the_thread_calls_loses_and_repeats_nothing() {
    let guard = Guard::new(GuardMode::Observe, 1 << 12).unwrap();
    let on_thread = Arc::clone(&guard);
    let thread = std::thread::spawn(move || {
        let armed = on_thread.arm().unwrap();
        for i in 0..2_000 {
            assert_eq!(call(libc::SYS_close, [1 << 30 | i, 0, 0, 0, 0, 0]), Err(libc::EBADF));
        }
        drop(armed);
    });
    let mut seen = Vec::new();
    while seen.len() < 2_000 {
        if guard.drain(|report| seen.push(report.args[0] & 0xFFFF)) == 0 && thread.is_finished() {
            break;
        }
        std::thread::yield_now();
    }
    thread.join().unwrap();
    assert_eq!(seen, (0..2_000).collect::<Vec<u64>>());
}
