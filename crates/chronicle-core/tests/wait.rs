//! Waiting: sleepers are woken, dead ones cost next to nothing, and removed queues and signals are
//! noticed.
//!
//! Processes that must die or give up their rights are children of this binary: the test `child`,
//! started by name.

use chronicle_core::wait::{WaitStrategy, WaitTarget, Waited, wait_any};
use chronicle_core::{ErrorKind, Options, Reader, Start, Writer};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const OPTIONS: Options =
    Options { segment_bytes: 1 << 16, checksum: false, segments_max: 64, group_readable: false };

struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        let name = format!("chronicle-wait-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(path: &Path) -> (Writer, Reader) {
    let writer = Writer::open(path, &OPTIONS).unwrap();
    let reader = Reader::open(path, None, Start::Resume).unwrap();
    (writer, reader)
}

fn sleep_on(target: &WaitTarget) -> chronicle_core::Result<Waited> {
    wait_any(std::slice::from_ref(target), WaitStrategy::Sleep, None)
}

fn armed(writer: &Writer) -> bool {
    writer.queue().control().doorbell.armed.load(Ordering::SeqCst) == 1
}

fn rings(writer: &Writer) -> u32 {
    writer.queue().control().doorbell.ring.load(Ordering::SeqCst)
}

fn until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_micros(100));
    }
}

// --- Children ---

const ROLE_VARIABLE: &str = "CHRONICLE_WAIT_ROLE";

fn start_child(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ROLE_VARIABLE, format!("{role}:{}", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads what the child prints up to a line that ends with `word`.
fn hear(lines: &mut impl BufRead, word: &str) {
    let mut line = String::new();
    while !line.trim_end().ends_with(word) {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the child did not say '{word}'");
    }
}

fn say(word: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "\n{word}").unwrap();
    out.flush().unwrap();
}

/// Does nothing unless it is started by another test.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE_VARIABLE) else {
        return;
    };
    let (role, path) = role.split_once(':').unwrap();
    match role {
        "sleeper" => {
            let mut reader = Reader::open(Path::new(path), None, Start::Resume).unwrap();
            assert_eq!(sleep_on(&reader.wait_target()).unwrap(), Waited::Ready);
            say("woken");
        }
        "reader without rights" => {
            // SAFETY: plain calls; root gives up its rights for good, anybody else has none to give
            // up.
            unsafe {
                if libc::geteuid() == 0 {
                    assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
                    assert_eq!(libc::setresgid(65_534, 65_534, 65_534), 0);
                    assert_eq!(libc::setresuid(65_534, 65_534, 65_534), 0);
                }
            }
            let mut reader = Reader::open(Path::new(path), Some("r"), Start::Resume).unwrap();
            assert!(!reader.queue().is_writable() && !reader.is_registered());
            let target = reader.wait_target();
            let soon = Some(Duration::from_millis(1));
            let waited = wait_any(std::slice::from_ref(&target), WaitStrategy::Sleep, soon);
            assert_eq!(waited.unwrap(), Waited::TimedOut);
            say("waiting");
            assert_eq!(sleep_on(&target).unwrap(), Waited::Ready);
            assert_eq!(reader.next().unwrap().unwrap().payload(), b"x");
            say("read");
        }
        _ => unreachable!("{role}"),
    }
}

// --- Tests ---

#[test]
fn a_sleeping_reader_is_woken_by_each_append() {
    let temp = Temp::new("woken");
    let (mut writer, mut reader) = open(&temp.0);
    for i in 0..100_u64 {
        let target = reader.wait_target();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| sleep_on(&target));
            until(|| armed(&writer));
            writer.append(1, &i.to_le_bytes(), None).unwrap();
            assert_eq!(waiter.join().unwrap().unwrap(), Waited::Ready);
        });
        assert_eq!(reader.next().unwrap().unwrap().payload(), i.to_le_bytes());
        assert!(!armed(&writer), "the writer clears the flag when it rings");
    }
}

#[test]
fn two_that_wake_each_other_both_arrive_across_rolls() {
    let (there, back) = (Temp::new("there"), Temp::new("back"));
    let (mut to, mut from_here) = open(&there.0);
    let (mut to_us, mut from) = open(&back.0);
    const ROUNDS: u64 = 5_000;
    fn wait_for(reader: &mut Reader, sequence: u64) {
        loop {
            match reader.next().unwrap() {
                Some(record) => return assert_eq!(record.raw.sequence, sequence),
                None => drop(sleep_on(&reader.wait_target()).unwrap()),
            }
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for i in 1..=ROUNDS {
                wait_for(&mut from_here, i);
                to_us.append(1, &[0; 64], None).unwrap();
            }
        });
        for i in 1..=ROUNDS {
            to.append(1, &[0; 64], None).unwrap();
            wait_for(&mut from, i);
        }
    });
}

#[test]
fn a_roll_marker_is_not_taken_for_a_message() {
    let temp = Temp::new("marker");
    let (mut writer, mut reader) = open(&temp.0);
    let before = reader.wait_target();
    while writer.queue().tail_segment() == 0 {
        writer.append(1, &[0; 1_000], None).unwrap();
    }
    assert!(before.is_ready());
    while reader.next().unwrap().is_some() {}
    assert!(!reader.wait_target().is_ready());
}

#[test]
fn a_waiter_that_is_killed_costs_at_most_one_ring() {
    let temp = Temp::new("killed");
    let (mut writer, _reader) = open(&temp.0);
    let mut child = start_child("sleeper", &temp.0);
    until(|| armed(&writer));
    child.kill().unwrap();
    child.wait().unwrap();
    let before = rings(&writer);
    for _ in 0..100 {
        writer.append(1, b"x", None).unwrap();
    }
    assert_eq!(rings(&writer), before + 1);
    assert!(!armed(&writer));
}

#[test]
fn a_sleeper_of_another_process_is_woken() {
    let temp = Temp::new("process");
    let (mut writer, _reader) = open(&temp.0);
    let mut child = start_child("sleeper", &temp.0);
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    until(|| armed(&writer));
    writer.append(1, b"x", None).unwrap();
    hear(&mut lines, "woken");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_may_not_ring_waits_as_well() {
    let temp = Temp::new("read-only");
    let (mut writer, reader) = open(&temp.0);
    drop(reader);
    let chmod = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for dir in ["", "segments", "readers"] {
        chmod(&temp.0.join(dir), 0o755);
    }
    for file in ["control", "segments.table", "segments/00000000000000000000.seg"] {
        chmod(&temp.0.join(file), 0o444);
    }
    let mut child = start_child("reader without rights", &temp.0);
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    hear(&mut lines, "waiting");
    writer.append(1, b"x", None).unwrap();
    hear(&mut lines, "read");
    assert!(child.wait().unwrap().success());
    assert!(!armed(&writer));
}

#[test]
fn a_removed_queue_is_noticed_however_long_the_wait() {
    let strategies = [WaitStrategy::Sleep, WaitStrategy::default(), WaitStrategy::Spin];
    let timeouts = [None, Some(Duration::MAX), Some(Duration::from_millis(50))];
    std::thread::scope(|scope| {
        for (i, strategy) in strategies.into_iter().enumerate() {
            for (j, timeout) in timeouts.into_iter().enumerate() {
                let temp = Temp::new(&format!("removed-{i}-{j}"));
                let (_writer, mut reader) = open(&temp.0);
                let target = [reader.wait_target()];
                scope.spawn(move || {
                    let error = wait_any(&target, strategy, timeout).unwrap_err();
                    assert!(matches!(error.kind(), ErrorKind::QueueRemoved { .. }), "{error}");
                });
                std::thread::sleep(Duration::from_millis(5));
                std::fs::remove_dir_all(&temp.0).unwrap();
            }
        }
    });
}

#[test]
fn a_wait_ends_in_time_and_polls_once_if_there_is_none() {
    let temp = Temp::new("time");
    let (mut writer, mut reader) = open(&temp.0);
    for strategy in [WaitStrategy::Sleep, WaitStrategy::default(), WaitStrategy::Spin] {
        for ms in [0, 1, 20] {
            let target = [reader.wait_target()];
            let waited = wait_any(&target, strategy, Some(Duration::from_millis(ms)));
            assert_eq!(waited.unwrap(), Waited::TimedOut);
        }
    }
    writer.append(1, b"x", None).unwrap();
    let target = [reader.wait_target()];
    assert_eq!(wait_any(&target, WaitStrategy::Spin, Some(Duration::ZERO)).unwrap(), Waited::Ready);
}

extern "C" fn on_signal(_signal: libc::c_int) {}

#[test]
fn a_signal_interrupts_a_sleep_over_one_over_some_and_over_many_queues() {
    // SAFETY: a handler that does nothing, for a signal that nobody else uses; plain data, filled
    // in.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    let temp = Temp::new("signal");
    std::fs::create_dir_all(&temp.0).unwrap();
    let mut open: Vec<_> = (0..200).map(|i| open(&temp.0.join(i.to_string()))).collect();
    let targets: Vec<_> = open.iter_mut().map(|(_, reader)| reader.wait_target()).collect();
    for count in [0, 1, 2, 128, 129, 200] {
        let done = AtomicBool::new(false);
        let targets = &targets[..count];
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let done = &done;
            let waiter = scope.spawn(move || {
                // SAFETY: no arguments.
                tell.send(unsafe { libc::pthread_self() }).unwrap();
                let waited = wait_any(targets, WaitStrategy::Sleep, None);
                done.store(true, Ordering::SeqCst);
                waited
            });
            // One that comes before the thread sleeps is not noticed; so more than one.
            let thread = told.recv().unwrap();
            while !done.load(Ordering::SeqCst) {
                // SAFETY: the thread is not joined yet, so its handle is good.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(waiter.join().unwrap().unwrap(), Waited::Interrupted, "{count} queues");
        });
    }
}
