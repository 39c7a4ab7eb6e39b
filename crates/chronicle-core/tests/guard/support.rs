//! Guarded threads, calls as any code makes them, and processes of their own for what may end one:
//! this binary, asked for one ignored test.

use chronicle_core::hot::guard::{Guard, GuardMode, Report};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// The body of a child process.
macro_rules! child {
    ($name:ident, $run:expr) => {
        #[test]
        #[ignore = "run by a test of its own, in a process of its own"]
        fn $name() {
            if crate::support::is_child() {
                $run
            }
        }
    };
}

pub fn is_child() -> bool {
    std::env::var_os("CHRONICLE_GUARD_CHILD").is_some()
}

/// Runs a child to its end; how it ended, and what it wrote.
pub fn run_child(module: &str, name: &str) -> (ExitStatus, String) {
    let (_, module) = module.split_once("::").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{name}"), "--ignored", "--nocapture"])
        .env("CHRONICLE_GUARD_CHILD", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Some would never end if what they test did not work.
    let patience = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > patience {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("{name} hangs: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

pub fn exit(code: i32) -> ! {
    // SAFETY: ends the process; nothing is flushed.
    unsafe { libc::_exit(code) }
}

/// Installs a handler of one argument.
pub fn handle(signal: i32, handler: extern "C" fn(i32), flags: i32) {
    // SAFETY: plain data; the handlers of these tests make calls and stores only.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}
