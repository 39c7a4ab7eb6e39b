//! A refusal under `enforce` endangers nobody: no other thread, no heap, no crash.

use crate::support::*;
use chronicle_core::hot::guard::{Guard, GuardAction, GuardMode};
use chronicle_core::os::process::block_signals;
use chronicle_core::os::seccomp::allowed_syscall;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

fn run_child(name: &str) -> (ExitStatus, String) {
    crate::support::run_child(module_path!(), name)
}

/// As in a process of Python: the Rust runtime's handlers are only in Rust programs.
fn default_actions() {
    // SAFETY: no handlers of ours.
    unsafe {
        libc::signal(libc::SIGSEGV, libc::SIG_DFL);
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}

/// Waits until a thread of this process sleeps: proc_pid_stat(5).
fn wait_until_asleep(thread_id: usize) {
    loop {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread_id}/stat")).unwrap();
        if stat[stat.rfind(')').unwrap() + 2..].starts_with('S') {
            return;
        }
        std::thread::yield_now();
    }
}

#[repr(align(64))]
struct Semaphore([u64; 8]);

impl Semaphore {
    fn new() -> &'static mut Self {
        let semaphore = Box::leak(Box::new(Self([0; 8])));
        // SAFETY: there is room for one; it is never freed.
        assert_eq!(unsafe { libc::sem_init(semaphore.0.as_mut_ptr().cast(), 0, 0) }, 0);
        semaphore
    }

    fn at(&self) -> usize {
        self.0.as_ptr() as usize
    }
}

child!(child_wakes, {
    default_actions();
    static WAITER: AtomicU32 = AtomicU32::new(0);
    let semaphore = Semaphore::new().at();
    // SAFETY: an initialised semaphore, here and below.
    let wait = move || unsafe {
        WAITER.store(thread_id() as u32, SeqCst);
        libc::sem_wait(semaphore as *mut _)
    };
    let waiter = std::thread::spawn(wait);
    while WAITER.load(SeqCst) == 0 {
        std::thread::yield_now();
    }
    wait_until_asleep(WAITER.load(SeqCst) as usize);
    let posted = guarded(GuardMode::Enforce, 8, move |guard| {
        // SAFETY: as above.
        (unsafe { libc::sem_post(semaphore as *mut _) }, guard.must_stop())
    });
    assert_eq!(posted.value, (0, true));
    assert_eq!(waiter.join().unwrap(), 0);
    // The standard library's channels.
    let (send, receive) = std::sync::mpsc::channel();
    WAITER.store(0, SeqCst);
    let waiter = std::thread::spawn(move || {
        WAITER.store(thread_id() as u32, SeqCst);
        receive.recv()
    });
    while WAITER.load(SeqCst) == 0 {
        std::thread::yield_now();
    }
    wait_until_asleep(WAITER.load(SeqCst) as usize);
    guarded(GuardMode::Enforce, 8, move |_| {
        send.send(7).unwrap();
        std::mem::forget(send);
    });
    assert_eq!(waiter.join().unwrap(), Ok(7));
    exit(42)
});

#[test]
fn threads_that_wait_for_a_guarded_one_are_woken() {
    let (status, text) = run_child("child_wakes");
    assert_eq!(status.code(), Some(42), "{text}");
}

child!(child_waits, {
    default_actions();
    let semaphore = Semaphore::new().at();
    let guard = Guard::new(GuardMode::Enforce, 8).unwrap();
    let on_thread = Arc::clone(&guard);
    let thread = std::thread::spawn(move || {
        let _armed = on_thread.arm().unwrap();
        // SAFETY: an initialised semaphore.
        unsafe { libc::sem_wait(semaphore as *mut _) }
    });
    while !guard.must_stop() {
        std::thread::yield_now();
    }
    // SAFETY: as above.
    assert_eq!(unsafe { libc::sem_post(semaphore as *mut _) }, 0);
    assert_eq!(thread.join().unwrap(), 0);
    exit(42)
});

#[test]
fn a_refused_wait_on_a_futex_does_not_end_the_process() {
    let (status, text) = run_child("child_waits");
    assert_eq!(status.code(), Some(42), "{text}");
}

child!(child_panics, {
    default_actions();
    let outcome = guarded(GuardMode::Enforce, 64, |guard| {
        // The first panic of the process: the unwinder has yet to find its tables.
        let caught = std::panic::catch_unwind(|| panic!("on purpose"));
        (caught.is_err(), guard.must_stop())
    });
    assert_eq!(outcome.value, (true, true));
    exit(42)
});

#[test]
fn a_panic_under_enforce_can_be_caught() {
    let (status, text) = run_child("child_panics");
    assert_eq!(status.code(), Some(42), "{text}");
}

/// As Python's faulthandler: puts the default back and raises the signal again.
extern "C" fn crash_handler(signal: i32) {
    // SAFETY: no handler of ours; a signal for this thread.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

fn abort_under_enforce() {
    guarded::<()>(GuardMode::Enforce, 64, |_| {
        let _blocked = block_signals();
        // SAFETY: ends the process.
        unsafe { libc::abort() };
    });
}

fn crash_under_enforce() {
    guarded(GuardMode::Enforce, 64, |_| {
        let nowhere = std::ptr::null::<u8>().with_addr(64);
        // SAFETY: there is none: the process ends here.
        unsafe { nowhere.read_volatile() }
    });
}

child!(child_aborts, {
    default_actions();
    abort_under_enforce()
});
child!(child_aborts_with_a_crash_handler, {
    for signal in [libc::SIGSEGV, libc::SIGABRT, libc::SIGILL] {
        handle(signal, crash_handler, libc::SA_NODEFER);
    }
    abort_under_enforce()
});
child!(child_crashes, {
    default_actions();
    crash_under_enforce()
});
child!(child_crashes_with_a_crash_handler, {
    handle(libc::SIGSEGV, crash_handler, libc::SA_NODEFER);
    crash_under_enforce()
});

#[test]
fn a_crash_under_enforce_ends_the_process_with_its_own_signal() {
    for (name, signal) in [
        ("child_aborts", libc::SIGABRT),
        ("child_aborts_with_a_crash_handler", libc::SIGABRT),
        ("child_crashes", libc::SIGSEGV),
        ("child_crashes_with_a_crash_handler", libc::SIGSEGV),
    ] {
        let (status, text) = run_child(name);
        assert_eq!(status.signal(), Some(signal), "{name}: {status} {text}");
    }
}

child!(child_allocates, {
    default_actions();
    let outcome = guarded(GuardMode::Enforce, 64, |guard| {
        let large = std::hint::black_box(vec![1_u8; 64 << 20]).len();
        // SAFETY: more of the heap; nobody else in this process uses the break meanwhile.
        let (before, after) = unsafe { (libc::sbrk(1 << 20) as usize, libc::sbrk(0) as usize) };
        (large, after.wrapping_sub(before), after, guard.must_stop())
    });
    let (large, grown, end, must_stop) = outcome.value;
    assert_eq!((large, grown, must_stop), (64 << 20, 1 << 20, true));
    // The kernel agrees with the C library.
    // SAFETY: asks only.
    let real = unsafe { allowed_syscall(libc::SYS_brk as usize, [0; 6]) };
    assert_eq!(end, real as usize);
    assert!(outcome.reports.iter().all(|report| report.action == GuardAction::MadeStopping));
    exit(42)
});

#[test]
fn the_heap_works_under_enforce_and_the_thread_is_told_to_stop() {
    let (status, text) = run_child("child_allocates");
    assert_eq!(status.code(), Some(42), "{text}");
}

fn change_ids_under(mode: GuardMode) {
    default_actions();
    static STATE: AtomicU32 = AtomicU32::new(0);
    let guard = Guard::new(mode, 64).unwrap();
    let on_thread = Arc::clone(&guard);
    let thread = std::thread::spawn(move || {
        let _blocked = block_signals();
        let _armed = on_thread.arm().unwrap();
        STATE.store(1, SeqCst);
        while STATE.load(SeqCst) == 1 {
            std::hint::spin_loop();
        }
        on_thread.must_stop()
    });
    while STATE.load(SeqCst) == 0 {
        std::thread::yield_now();
    }
    // SAFETY: the group that the process has.
    assert_eq!(unsafe { libc::setgid(libc::getgid()) }, 0);
    STATE.store(2, SeqCst);
    assert!(!thread.join().unwrap(), "what another thread asked for is no violation");
    let mut reports = Vec::new();
    guard.drain(|report| reports.push(report));
    assert!(reports.iter().all(|report| report.action == GuardAction::Allowed), "{reports:?}");
    assert!(numbers(&reports).contains(&libc::SYS_setgid));
    exit(42)
}

#[cfg(target_env = "gnu")]
child!(child_ids_observe, change_ids_under(GuardMode::Observe));
#[cfg(target_env = "gnu")]
child!(child_ids_enforce, change_ids_under(GuardMode::Enforce));

#[cfg(target_env = "gnu")]
#[test]
fn another_thread_may_change_the_ids_of_the_process_beside_a_guarded_one() {
    for name in ["child_ids_observe", "child_ids_enforce"] {
        let (status, text) = run_child(name);
        assert_eq!(status.code(), Some(42), "{name}: {text}");
    }
}
