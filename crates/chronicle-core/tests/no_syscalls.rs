//! The hot path makes no system call, no heap allocation and, on a memory file system, takes no
//! page fault: append, next, commit, the fan-in's next, and rolls on both sides.
//!
//! # How it works
//!
//! The kernel counts, not we: in a child process the hot thread installs a seccomp filter for
//! itself that traps *every* system call, and goes through more than a hundred rolls while a
//! provisioner (a thread without the filter) serves it. The trap's handler notes the number of the
//! call and stops the thread. The main thread watches, reads the hot thread's page faults from
//! `/proc` before and after, and ends the process; the hot thread itself could not even exit. A
//! thread may always install such a filter (with `PR_SET_NO_NEW_PRIVS`), so no privilege is needed.
//!
//! Allocations are counted per thread by the global allocator of this binary.
//!
//! The hot thread waits for the provisioner only by looking at `is_provisioned`. That the trap
//! works is shown by the same run without a provisioner, which must be caught.
//!
//! `CHRONICLE_FIRE=full` makes ten times as many rolls.

#![allow(clippy::print_stdout)] // Seeds and counts, for who repeats a run.

use chronicle_core::queue::provision::Chores;
use chronicle_core::queue::writer::MixedBatch;
use chronicle_core::{FanIn, MergeMode, Options, Provisioner, Reader, Start, Writer};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

const ROLLS: u64 = 120;
const WARM_UP_ROLLS: u64 = 8;
const SOURCES: usize = 5;

// --- Counting allocations ---

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is being torn down has no counter any more, and nothing to count.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, len) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// --- The trap ---

/// What the hot thread has to say, in words that need no call.
#[derive(Default)]
struct Stage {
    /// 0 warming up, 1 waits to be measured, 2 measured, 3 done.
    stage: AtomicU32,
    thread_id: AtomicI64,
    allocations: AtomicU64,
    operations: AtomicU64,
    rolls: AtomicU64,
}

static STAGE: Stage = Stage {
    stage: AtomicU32::new(0),
    thread_id: AtomicI64::new(0),
    allocations: AtomicU64::new(0),
    operations: AtomicU64::new(0),
    rolls: AtomicU64::new(0),
};

/// The system call that was trapped, plus one.
static TRAPPED: AtomicI64 = AtomicI64::new(0);

extern "C" fn on_trap(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: for SIGSYS the kernel fills in { call address, i32 number, arch } behind three words
    // (sigaction(2), si_syscall); on 64-bit systems the number stands at offset 24.
    let number = unsafe { info.cast::<u8>().add(24).cast::<i32>().read_unaligned() };
    TRAPPED.store(i64::from(number) + 1, Ordering::SeqCst);
    // Returning would be a system call.
    loop {
        std::hint::spin_loop();
    }
}

/// From here on every system call of this thread ends in [`on_trap`].
fn forbid_system_calls() {
    let trap_all = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_TRAP,
    }];
    let program = libc::sock_fprog { len: 1, filter: trap_all.as_ptr().cast_mut() };
    // SAFETY: plain data for `sigaction`, filled in below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_trap as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: a handler that makes no call; a filter program that outlives the call.
    unsafe {
        assert_eq!(libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()), 0);
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let rc = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program);
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Runs `step` (which returns how many rolls it has seen so far) over the warm-up, then over the
/// measured rolls with every system call forbidden.
fn run_hot(rolls: u64, mut step: impl FnMut() -> u64) -> ! {
    while step() < WARM_UP_ROLLS {}
    // SAFETY: no arguments.
    STAGE.thread_id.store(unsafe { libc::syscall(libc::SYS_gettid) }, Ordering::SeqCst);
    forbid_system_calls();
    STAGE.stage.store(1, Ordering::SeqCst);
    while STAGE.stage.load(Ordering::SeqCst) != 2 {
        std::hint::spin_loop();
    }
    let allocations = ALLOCATIONS.with(Cell::get);
    let mut operations = 0;
    let mut seen;
    loop {
        seen = step();
        operations += 1;
        if seen >= WARM_UP_ROLLS + rolls {
            break;
        }
    }
    STAGE.allocations.store(ALLOCATIONS.with(Cell::get) - allocations, Ordering::SeqCst);
    STAGE.operations.store(operations, Ordering::SeqCst);
    STAGE.rolls.store(seen - WARM_UP_ROLLS, Ordering::SeqCst);
    STAGE.stage.store(3, Ordering::SeqCst);
    loop {
        std::hint::spin_loop();
    }
}

/// Minor and major faults of a thread of ours: fields 10 and 12 of proc_pid_stat(5).
fn faults(thread_id: i64) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread_id}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    (fields[7].parse().unwrap(), fields[9].parse().unwrap())
}

fn wait_for_stage(wanted: u32) {
    while STAGE.stage.load(Ordering::SeqCst) != wanted {
        let trapped = TRAPPED.load(Ordering::SeqCst);
        if trapped != 0 {
            eprintln!("system call {} at stage {wanted}", trapped - 1);
            exit(SYSTEM_CALL_MADE);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

const SYSTEM_CALL_MADE: i32 = 77;

/// Ends the process at once: the hot thread spins and can be joined by nobody.
fn exit(code: i32) -> ! {
    // SAFETY: ends the process; nothing is flushed, and stderr is not buffered.
    unsafe { libc::_exit(code) }
}

/// Watches the hot thread and reports in one line: operations, rolls, allocations, minor and major
/// faults.
fn watch() -> ! {
    wait_for_stage(1);
    let thread_id = STAGE.thread_id.load(Ordering::SeqCst);
    let before = faults(thread_id);
    STAGE.stage.store(2, Ordering::SeqCst);
    wait_for_stage(3);
    let after = faults(thread_id);
    eprintln!(
        "operations={} rolls={} allocations={} minor_faults={} major_faults={}",
        STAGE.operations.load(Ordering::SeqCst),
        STAGE.rolls.load(Ordering::SeqCst),
        STAGE.allocations.load(Ordering::SeqCst),
        after.0 - before.0,
        after.1 - before.1,
    );
    exit(0)
}

// --- The hot loops, each in a child process ---

fn options(checksum: bool) -> Options {
    Options { segment_bytes: 1 << 16, checksum, ..Options::default() }
}

fn dir() -> PathBuf {
    PathBuf::from(std::env::var_os("CHRONICLE_HOT_DIR").unwrap())
}

fn rolls() -> u64 {
    if std::env::var("CHRONICLE_FIRE").is_ok_and(|v| v == "full") { 10 * ROLLS } else { ROLLS }
}

fn is_child() -> bool {
    std::env::var_os("CHRONICLE_HOT_DIR").is_some()
}

fn spin_until(ready: impl Fn() -> bool) {
    while !ready() {
        std::hint::spin_loop();
    }
}

/// One writer and one registered reader of one queue in one thread.
fn write_and_read(checksum: bool, provisioned: bool) -> ! {
    let path = dir().join("queue");
    let mut writer = Writer::open(&path, &options(checksum)).unwrap();
    let mut reader = Reader::open(&path, Some("hot"), Start::Resume).unwrap();
    let provisioner = provisioned.then(|| Provisioner::new().unwrap());
    if let Some(provisioner) = &provisioner {
        provisioner.attach_writer(&writer, Chores::default());
        provisioner.attach_reader(&reader);
    }
    std::thread::spawn(move || {
        let payload = [7_u8; 200];
        let mixed_offsets = [0, 50, 100];
        run_hot(rolls(), || {
            if provisioned {
                spin_until(|| writer.is_provisioned() && reader.is_provisioned());
            }
            writer.append(1, &payload, None).unwrap();
            writer.append_many(2, &payload, 50, None).unwrap();
            writer
                .append_mixed(MixedBatch {
                    buffer: &payload,
                    offsets: &mixed_offsets,
                    lengths: &[50, 40, 100],
                    type_ids: &[1, 2, 3],
                    timestamps_ns: &[],
                })
                .unwrap();
            while let Some(record) = reader.next().unwrap() {
                std::hint::black_box(record.payload());
                reader.commit();
            }
            reader.segment().index
        })
    });
    let _keep = provisioner;
    watch()
}

/// Some queues, written and merged in one thread.
fn merge(mode: MergeMode) -> ! {
    let provisioner = Provisioner::new().unwrap();
    let mut writers = Vec::new();
    let mut fan = FanIn::with_capacity(mode, SOURCES);
    for source in 0..SOURCES {
        let path = dir().join(format!("queue-{source}"));
        let mut writer = Writer::open(&path, &options(false)).unwrap();
        // The bells that the fan-in arms are rung by the worker.
        writer.set_hot(true);
        let reader = Reader::open(&path, Some("merge"), Start::Resume).unwrap();
        provisioner.attach_writer(&writer, Chores::default());
        provisioner.attach_reader(&reader);
        writers.push(writer);
        fan.add(reader);
    }
    std::thread::spawn(move || {
        let payload = [7_u8; 200];
        let mut timestamp_ns = 0;
        let mut words = Vec::with_capacity(SOURCES);
        let mut turn = 0;
        run_hot(rolls(), || {
            spin_until(|| {
                writers.iter().all(Writer::is_provisioned)
                    && (0..SOURCES).all(|s| fan.reader(s).is_some_and(Reader::is_provisioned))
            });
            for (source, writer) in writers.iter_mut().enumerate() {
                timestamp_ns += 1;
                // Not all sources are active in all rounds: some become idle, and come back.
                if source == 0 || timestamp_ns % 3 != 0 {
                    writer.append(1, &payload, Some(timestamp_ns)).unwrap();
                }
            }
            while let Some((source, record)) = fan.next().map_err(|e| e.1).unwrap() {
                std::hint::black_box((source, record.payload()));
                fan.commit_source(source);
            }
            // Sources go and come back, and all doorbells are armed.
            turn = (turn + 1) % SOURCES;
            let reader = fan.remove(turn).unwrap();
            assert_eq!(fan.try_add(reader).map_err(|_| "full").unwrap(), turn);
            words.clear();
            std::hint::black_box(fan.arm(&mut words));
            (0..SOURCES).map(|s| fan.reader(s).map_or(0, |r| r.segment().index)).sum()
        })
    });
    let _keep = provisioner;
    watch()
}

macro_rules! child {
    ($name:ident, $run:expr) => {
        #[test]
        #[ignore = "run by the driver, in a process of its own"]
        fn $name() {
            if is_child() {
                $run
            }
        }
    };
}

child!(child_plain, write_and_read(false, true));
child!(child_checksum, write_and_read(true, true));
child!(child_unprovisioned, write_and_read(false, false));
child!(child_merge_live, merge(MergeMode::Live));
child!(child_merge_strict, merge(MergeMode::Strict));

// --- The driver ---

fn shared_memory() -> Option<PathBuf> {
    let shm = Path::new("/dev/shm");
    shm.is_dir().then(|| shm.to_owned())
}

fn run_child(name: &str, below: &Path) -> (i32, String) {
    let dir = below.join(format!("chronicle-hot-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("CHRONICLE_HOT_DIR", &dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().unwrap_or(-output.status.signal().unwrap_or(0));
    (code, text)
}

fn field(text: &str, name: &str) -> u64 {
    let at = text.find(&format!("{name}=")).unwrap_or_else(|| panic!("no {name} in: {text}"));
    let digits: String =
        text[at + name.len() + 1..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

fn assert_no_call_no_allocation_no_fault(name: &str) {
    let memory = shared_memory();
    let below = memory.clone().unwrap_or_else(std::env::temp_dir);
    let (code, text) = run_child(name, &below);
    let line = text.lines().find(|l| l.starts_with("operations=")).unwrap_or_default();
    println!("{name} on {}: {line}", below.display());
    assert_eq!(code, 0, "{text}");
    assert!(field(&text, "rolls") >= ROLLS, "{text}");
    assert_eq!(field(&text, "allocations"), 0, "{text}");
    if memory.is_some() {
        assert_eq!(field(&text, "minor_faults") + field(&text, "major_faults"), 0, "{text}");
    }
}

#[test]
fn append_next_commit_and_roll_make_no_system_call_and_no_allocation() {
    assert_no_call_no_allocation_no_fault("child_plain");
}

#[test]
fn append_next_commit_and_roll_with_checksums_make_no_system_call_and_no_allocation() {
    assert_no_call_no_allocation_no_fault("child_checksum");
}

#[test]
fn a_live_fan_in_and_its_rolls_make_no_system_call_and_no_allocation() {
    assert_no_call_no_allocation_no_fault("child_merge_live");
}

#[test]
fn a_strict_fan_in_and_its_rolls_make_no_system_call_and_no_allocation() {
    assert_no_call_no_allocation_no_fault("child_merge_strict");
}

/// On a file system with a device behind it: the same, but pages that were written back fault once
/// more when they are stored to again (the kernel must learn that they are dirty), so faults are
/// reported and not asserted.
#[test]
fn on_the_temporary_directory_the_hot_path_makes_no_system_call_either() {
    let (code, text) = run_child("child_plain", &std::env::temp_dir());
    println!("{text}");
    assert_eq!(code, 0, "{text}");
    assert_eq!(field(&text, "allocations"), 0, "{text}");
}

/// What this test would miss if the trap did not work.
#[test]
fn a_roll_without_a_provisioner_is_caught_by_the_trap() {
    let below = shared_memory().unwrap_or_else(std::env::temp_dir);
    let (code, text) = run_child("child_unprovisioned", &below);
    assert_eq!(code, SYSTEM_CALL_MADE, "{text}");
}
