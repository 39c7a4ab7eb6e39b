//! Guarded threads, and calls as any code makes them.

use chronicle_core::hot::guard::{Guard, GuardMode, Report};
use std::sync::Arc;

pub const BOTH: [GuardMode; 2] = [GuardMode::Observe, GuardMode::Enforce];

pub struct Outcome<T> {
    pub value: T,
    pub guard: Arc<Guard>,
    pub reports: Vec<Report>,
}

/// Runs `body` on a guarded thread of its own.
pub fn guarded<T: Send + 'static>(
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
pub fn call(number: i64, args: [usize; 6]) -> Result<i64, i32> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: each caller passes what its call expects.
    let rc = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if rc == -1 { Err(errno()) } else { Ok(rc) }
}

pub fn errno() -> i32 {
    // SAFETY: a word of this thread.
    unsafe { *libc::__errno_location() }
}

pub fn set_errno(value: i32) {
    // SAFETY: a word of this thread.
    unsafe { *libc::__errno_location() = value };
}

pub fn numbers(reports: &[Report]) -> Vec<i64> {
    reports.iter().map(|report| i64::from(report.number)).collect()
}

pub fn at<T>(value: &T) -> usize {
    std::ptr::from_ref(value) as usize
}

pub fn thread_id() -> usize {
    call(libc::SYS_gettid, [0; 6]).unwrap() as usize
}

/// From proc_pid_status(5): 0 none, 2 filter. Of the calling thread.
pub fn seccomp_mode() -> u32 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("Seccomp:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
