//! The guard: every system call of a guarded thread is reported or refused, and nothing else about
//! the thread, the process or the call changes.
//!
//! SIGSYS is a matter of the whole process. Tests that need it in a certain state before the first
//! guard, or that end the process, run in child processes: this binary, asked for one ignored test.

use chronicle_core::hot::guard::{Guard, GuardAction, GuardCounts, GuardMode, Report};
use chronicle_core::os::process::block_signals;
use chronicle_core::os::seccomp::allowed_syscall;
use chronicle_core::os::sigsys::{self, Call, Decision, Supervisor};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

macro_rules! child {
    ($name:ident, $run:expr) => {
        #[test]
        #[ignore = "run by a test of its own, in a process of its own"]
        fn $name() {
            if is_child() {
                $run
            }
        }
    };
}

const BOTH: [GuardMode; 2] = [GuardMode::Observe, GuardMode::Enforce];

struct Outcome<T> {
    value: T,
    guard: Arc<Guard>,
    reports: Vec<Report>,
}

/// Runs `body` on a guarded thread of its own.
fn guarded<T: Send + 'static>(
    mode: GuardMode,
    capacity: usize,
    body: impl FnOnce(&Guard) -> T + Send + 'static,
) -> Outcome<T> {
    let guard = Guard::new(mode, capacity).unwrap();
    let on_thread = Arc::clone(&guard);
    let thread = std::thread::spawn(move || {
        let armed = on_thread.arm().unwrap();
        let value = body(&on_thread);
        drop(armed);
        value
    });
    let value = thread.join().unwrap();
    let mut reports = Vec::new();
    guard.drain(|report| reports.push(report));
    Outcome { value, guard, reports }
}

/// The call as any code would make it: through the C library's instruction.
fn call(number: i64, args: [usize; 6]) -> Result<i64, i32> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: each caller passes what its call expects.
    let rc = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if rc == -1 { Err(errno()) } else { Ok(rc) }
}

fn errno() -> i32 {
    // SAFETY: a word of this thread.
    unsafe { *libc::__errno_location() }
}

fn set_errno(value: i32) {
    // SAFETY: a word of this thread.
    unsafe { *libc::__errno_location() = value };
}

fn numbers(reports: &[Report]) -> Vec<i64> {
    reports.iter().map(|report| i64::from(report.number)).collect()
}

fn at<T>(value: &T) -> usize {
    std::ptr::from_ref(value) as usize
}

// --- What is reported, and what the caller gets ---

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
fn each_enforced_call_is_reported_returns_eperm_and_stops_the_thread() {
    for (number, args, _) in seeded() {
        let outcome = guarded(GuardMode::Enforce, 8, move |guard| {
            let before = guard.must_stop();
            (before, call(number, args), guard.must_stop())
        });
        assert_eq!(outcome.value, (false, Err(libc::EPERM), true), "{number}");
        assert_eq!(numbers(&outcome.reports), [number]);
        assert_eq!(outcome.reports[0].action, GuardAction::Refused);
        assert_eq!(outcome.guard.counts(), GuardCounts { seen: 1, refused: 1, dropped: 0 });
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

/// From proc_pid_status(5): 0 none, 2 filter. Of the calling thread.
fn seccomp_mode() -> u32 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("Seccomp:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn starting_threads_and_processes_and_taking_sigsys_is_refused_in_both_modes() {
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
    assert_eq!(outcome.guard.counts(), GuardCounts { seen: 10, refused: 0, dropped: 6 });
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

// --- Signals ---

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

fn handle(signal: i32, handler: extern "C" fn(i32), flags: i32) {
    // SAFETY: plain data; the handlers of these tests make calls and stores only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
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

fn thread_id() -> usize {
    call(libc::SYS_gettid, [0; 6]).unwrap() as usize
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

/// By the 32-bit way into the kernel, with a number of the 32-bit table (20 is getpid).
#[cfg(target_arch = "x86_64")]
fn call_32_bit(number: i64) -> i64 {
    let result: i64;
    // SAFETY: the call takes nothing and changes the registers that are named.
    unsafe {
        std::arch::asm!("int 0x80", inout("rax") number => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result
}

#[cfg(target_arch = "x86_64")]
child!(child_32_bit, {
    // Ends by a signal here where the kernel has no such way.
    assert_eq!(call_32_bit(20), i64::from(std::process::id()));
    for mode in BOTH {
        let outcome = guarded(mode, 8, |guard| (call_32_bit(20), guard.must_stop()));
        let refused = -i64::from(libc::EPERM);
        // umask, whose number is that of a call which may come from anywhere.
        assert_eq!(guarded(mode, 8, |_| call_32_bit(libc::SYS_exit)).value, refused);
        assert_eq!(outcome.value, (refused, mode == GuardMode::Enforce));
        let [report] = outcome.reports[..] else { panic!("{:?}", outcome.reports) };
        assert_eq!((report.number, report.arch), (20, 0x4000_0003));
        assert_eq!(report.action, GuardAction::Refused);
    }
    exit(42)
});

#[cfg(target_arch = "x86_64")]
#[test]
fn a_32_bit_call_is_refused_in_both_modes_since_its_number_means_another_call() {
    let (status, text) = run_child("child_32_bit");
    if status.signal() == Some(libc::SIGSEGV) {
        eprintln!("skipped: this kernel makes no 32-bit calls (CONFIG_IA32_EMULATION)");
        return;
    }
    assert_eq!(status.code(), Some(42), "{text}");
}

// --- Threads: whose calls are concerned, and how they end ---

#[test]
fn other_threads_are_not_filtered() {
    let outcome = guarded(GuardMode::Enforce, 8, |_| {
        static GO: AtomicU32 = AtomicU32::new(0);
        GO.store(1, SeqCst);
    });
    assert!(outcome.reports.is_empty());
    assert_eq!(seccomp_mode(), 0);
    std::thread::spawn(|| assert_eq!(seccomp_mode(), 0)).join().unwrap();
}

#[test]
fn a_guarded_thread_ends_cleanly_in_every_mode_with_its_destructors() {
    struct Noisy(std::sync::mpsc::Sender<u32>);
    impl Drop for Noisy {
        fn drop(&mut self) {
            std::fs::metadata("/").unwrap();
            self.0.send(1).unwrap();
        }
    }
    thread_local! {
        static LAST: std::cell::RefCell<Option<Noisy>> = const { std::cell::RefCell::new(None) };
    }
    for mode in [GuardMode::Off, GuardMode::Observe, GuardMode::Enforce] {
        let (send, receive) = std::sync::mpsc::channel();
        let outcome = guarded(mode, 8, move |_| LAST.set(Some(Noisy(send))));
        assert_eq!(receive.recv(), Ok(1));
        assert!(outcome.reports.is_empty(), "what comes after the guard is not its business");
    }
}

#[test]
fn a_thread_that_ends_while_still_guarded_ends_cleanly() {
    for mode in BOTH {
        let guard = Guard::new(mode, 64).unwrap();
        let on_thread = Arc::clone(&guard);
        std::thread::spawn(move || std::mem::forget(on_thread.arm().unwrap())).join().unwrap();
        // Its place is taken over, and its supervisor freed, by some later thread.
        assert!(guard.counts().seen > 0);
    }
}

#[test]
fn places_of_ended_threads_are_used_again() {
    for _ in 0..600 {
        let outcome = guarded(GuardMode::Observe, 1, |_| call(libc::SYS_getppid, [0; 6]).is_ok());
        assert!(outcome.value);
        assert_eq!(outcome.reports.len(), 1);
    }
}

#[test]
fn a_thread_can_be_guarded_again_but_not_twice_at_once() {
    let (first, second) =
        (Guard::new(GuardMode::Observe, 8).unwrap(), Guard::new(GuardMode::Enforce, 8).unwrap());
    let (one, two) = (Arc::clone(&first), Arc::clone(&second));
    std::thread::spawn(move || {
        let armed = one.arm().unwrap();
        assert!(two.arm().is_err(), "one thread, two guards");
        drop(armed);
        let mut before = 0;
        one.drain(|_| before += 1);
        call(libc::SYS_getppid, [0; 6]).unwrap();
        assert_eq!(one.drain(|_| ()), 0, "between two guards nothing is reported");
        let armed = two.arm().unwrap();
        assert_eq!(call(libc::SYS_getppid, [0; 6]), Err(libc::EPERM));
        drop(armed);
        call(libc::SYS_getppid, [0; 6]).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(second.counts().seen, 1);
}

#[test]
fn one_guard_serves_one_thread_once() {
    let guard = Guard::new(GuardMode::Observe, 8).unwrap();
    for used in [false, true] {
        let on_thread = Arc::clone(&guard);
        std::thread::spawn(move || assert_eq!(on_thread.arm().is_err(), used)).join().unwrap();
    }
}

#[test]
fn a_bad_capacity_is_refused() {
    for capacity in [0, (1 << 16) + 1, usize::MAX] {
        assert!(Guard::new(GuardMode::Observe, capacity).is_err());
    }
}

#[test]
fn a_thread_without_privileges_can_be_guarded_and_says_what_it_gave_up() {
    let guard = Guard::new(GuardMode::Observe, 8).unwrap();
    let on_thread = Arc::clone(&guard);
    std::thread::spawn(move || {
        // SAFETY: plain data for capset(2), version 3; this thread only.
        unsafe {
            let header = [0x2008_0522_u32, 0];
            let none = [0_u32; 6];
            assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()), 0);
        }
        let armed = on_thread.arm().unwrap();
        assert!(armed.no_new_privs());
        call(libc::SYS_getppid, [0; 6]).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(guard.counts().seen, 1);
}

// --- In processes of their own ---

fn is_child() -> bool {
    std::env::var_os("CHRONICLE_GUARD_CHILD").is_some()
}

fn run_child(name: &str) -> (ExitStatus, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("CHRONICLE_GUARD_CHILD", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status, text)
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the process; nothing is flushed.
    unsafe { libc::_exit(code) }
}

/// Puts a filter on this thread that is not ours: it traps getppid, or (`all`) everything.
fn foreign_filter(all: bool) {
    foreign_filter_with(all, 5);
}

fn foreign_filter_with(all: bool, data: u32) {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let trap = op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_TRAP | data);
    let some = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_getppid as u32),
        trap,
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let every = [trap];
    let filter: &[libc::sock_filter] = if all { &every } else { &some };
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let rc = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program);
        assert_eq!(rc, 0);
    }
}

static FOREIGN: AtomicI64 = AtomicI64::new(0);

extern "C" fn foreign_handler(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: as the kernel passed them.
    unsafe {
        FOREIGN.store(i64::from((*info).si_errno) << 32 | i64::from((*info).si_code), SeqCst);
        let context = &mut *context.cast::<libc::ucontext_t>();
        #[cfg(target_arch = "x86_64")]
        {
            context.uc_mcontext.gregs[libc::REG_RAX as usize] = 4711;
        }
        #[cfg(target_arch = "aarch64")]
        {
            context.uc_mcontext.regs[0] = 4711;
        }
    }
}

child!(child_previous_handler, {
    // SAFETY: plain data; a handler that stores.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = foreign_handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()), 0);
    }
    let outcome = guarded(GuardMode::Observe, 8, |_| call(libc::SYS_getppid, [0; 6]));
    assert_eq!(outcome.reports.len(), 1);
    assert_eq!(FOREIGN.load(SeqCst), 0, "a call of a guarded thread is not the other handler's");
    std::thread::spawn(|| {
        foreign_filter(false);
        assert_eq!(call(libc::SYS_getppid, [0; 6]), Ok(4711));
        assert_eq!(FOREIGN.load(SeqCst), 5 << 32 | 1);
    })
    .join()
    .unwrap();
    // Even if it marks its traps as we mark ours, for whatever place.
    for data in (0..256).map(|place| 0xC700 + place) {
        std::thread::spawn(move || {
            foreign_filter_with(false, data);
            assert_eq!(call(libc::SYS_getppid, [0; 6]), Ok(4711));
            assert_eq!(FOREIGN.load(SeqCst), i64::from(data) << 32 | 1);
        })
        .join()
        .unwrap();
    }
    // A signal that somebody sent.
    FOREIGN.store(-1, SeqCst);
    // SAFETY: sends a signal to this thread.
    unsafe { libc::raise(libc::SIGSYS) };
    assert_ne!(FOREIGN.load(SeqCst), -1);
    // On a guarded thread as well.
    FOREIGN.store(-1, SeqCst);
    guarded(GuardMode::Observe, 8, |_| {
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGSYS) }
    });
    assert_ne!(FOREIGN.load(SeqCst), -1);
    exit(42)
});

#[test]
fn the_handler_that_was_there_before_is_called_for_what_is_not_ours() {
    let (status, text) = run_child("child_previous_handler");
    assert_eq!(status.code(), Some(42), "{text}");
}

child!(child_foreign_trap_without_handler, {
    guarded(GuardMode::Observe, 8, |_| ());
    std::thread::spawn(|| {
        foreign_filter(false);
        let _ = call(libc::SYS_getppid, [0; 6]);
        exit(1)
    })
    .join()
    .unwrap();
});

#[test]
fn a_trap_of_another_filter_without_a_handler_kills_the_process_as_without_a_guard() {
    let (status, text) = run_child("child_foreign_trap_without_handler");
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{text}");
}

child!(child_foreign_trap_of_everything, {
    guarded(GuardMode::Observe, 8, |_| ());
    std::thread::spawn(|| {
        foreign_filter(true);
        let _ = call(libc::SYS_getppid, [0; 6]);
    })
    .join()
    .unwrap();
});

#[test]
fn a_filter_that_traps_every_call_does_not_hang_the_handler() {
    let (status, text) = run_child("child_foreign_trap_of_everything");
    assert_eq!(status.signal(), Some(libc::SIGILL), "{text}");
}

child!(child_sent_signal, {
    guarded(GuardMode::Observe, 8, |_| ());
    // SAFETY: sends a signal to this thread.
    unsafe { libc::raise(libc::SIGSYS) };
    exit(1)
});

#[test]
fn a_sigsys_that_somebody_sends_kills_the_process_as_without_a_guard() {
    let (status, text) = run_child("child_sent_signal");
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{text}");
}

child!(child_handler_taken_over, {
    guarded(GuardMode::Observe, 8, |_| ());
    // SAFETY: plain data; a handler that stores.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = foreign_handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()), 0);
    }
    let guard = Guard::new(GuardMode::Observe, 8).unwrap();
    let error = std::thread::spawn(move || guard.arm().map(drop)).join().unwrap().unwrap_err();
    assert!(error.to_string().contains("another library has taken over SIGSYS"), "{error}");
    // SAFETY: the default action is no handler that could be in a chain: it is replaced.
    unsafe { libc::signal(libc::SIGSYS, libc::SIG_DFL) };
    let outcome = guarded(GuardMode::Observe, 8, |_| call(libc::SYS_getppid, [0; 6]).is_ok());
    assert!(outcome.value && outcome.reports.len() == 1);
    exit(42)
});

#[test]
fn arming_after_another_library_took_sigsys_is_an_error_that_says_so() {
    let (status, text) = run_child("child_handler_taken_over");
    assert_eq!(status.code(), Some(42), "{text}");
}

/// A guarded thread that spins, in each mode, and the process ends under it.
fn exit_under(mode: GuardMode, by_return: bool) {
    let guard = Guard::new(mode, 8).unwrap();
    let (ready, is_ready) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _blocked = block_signals();
        ready.send(()).unwrap();
        drop(ready);
        let _armed = guard.arm().unwrap();
        loop {
            std::hint::spin_loop();
        }
    });
    is_ready.recv().unwrap();
    std::thread::sleep(Duration::from_millis(5));
    if !by_return {
        // SAFETY: as `return` from main: runs the exit handlers.
        unsafe { libc::exit(42) };
    }
    exit(42)
}

child!(child_exit_off, exit_under(GuardMode::Off, false));
child!(child_exit_observe, exit_under(GuardMode::Observe, false));
child!(child_exit_enforce, exit_under(GuardMode::Enforce, false));
child!(child_hard_exit_enforce, exit_under(GuardMode::Enforce, true));

#[test]
fn the_process_ends_under_a_guarded_thread_in_every_mode() {
    for name in
        ["child_exit_off", "child_exit_observe", "child_exit_enforce", "child_hard_exit_enforce"]
    {
        let (status, text) = run_child(name);
        assert_eq!(status.code(), Some(42), "{name}: {text}");
    }
}

/// The guarded thread itself ends the process, which the filter lets pass.
fn exit_from_guarded(mode: GuardMode) {
    let guard = Guard::new(mode, 8).unwrap();
    std::thread::spawn(move || {
        let _armed = guard.arm().unwrap();
        exit(43)
    })
    .join()
    .unwrap();
}

child!(child_exits_itself_observe, exit_from_guarded(GuardMode::Observe));
child!(child_exits_itself_enforce, exit_from_guarded(GuardMode::Enforce));

#[test]
fn a_guarded_thread_can_end_the_process() {
    for name in ["child_exits_itself_observe", "child_exits_itself_enforce"] {
        let (status, text) = run_child(name);
        assert_eq!(status.code(), Some(43), "{name}: {text}");
    }
}

child!(child_forked, {
    let guard = Guard::new(GuardMode::Observe, 8).unwrap();
    let (ready, is_ready) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _armed = guard.arm().unwrap();
        ready.send(()).unwrap();
        loop {
            std::hint::spin_loop();
        }
    });
    is_ready.recv().unwrap();
    // SAFETY: the child makes calls of the C library that are allowed there, and threads, which
    // glibc allows in practice.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            // The table still holds the parent's thread, whose place is free here.
            let outcome = guarded(GuardMode::Observe, 8, |_| call(libc::SYS_getppid, [0; 6]));
            let unfiltered = seccomp_mode() == 0;
            exit(if outcome.reports.len() == 1 && unfiltered { 44 } else { 1 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        exit(libc::WEXITSTATUS(status))
    }
});

#[test]
fn a_process_forked_beside_a_guarded_thread_is_free_and_can_guard_its_own() {
    let (status, text) = run_child("child_forked");
    assert_eq!(status.code(), Some(44), "{text}");
}
