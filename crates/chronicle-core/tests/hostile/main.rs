//! Hostile files: whatever stands in a queue's directory, nothing crashes, hangs or reads out of
//! bounds.
//!
//! # How it works
//!
//! A small queue lies on a memory file system, and a copy of all its bytes in the heap. A
//! *mutation* damages it in one to four ways, then everything that opens a queue is let loose on
//! it, then the bytes are put back. Each mutation has its own random numbers, made from the seed
//! and its number, so any one of them can be repeated alone.
//!
//! The mutations run in child processes: a crash of a child is a test failure that names the seed
//! and the number. Every mapping of a file lies between two stretches of forbidden addresses
//! ([`guard`]), so that a read past either end is a crash and not a look at a neighbour. A count of
//! steps finds loops in the reader; an alarm ends a child that hangs elsewhere (a safety net: no
//! time is asserted).
//!
//! What a reader delivers is checked as well: sequences without holes unless a gap was reported,
//! and, where the queue has checksums, exactly the bytes that were written.
//!
//! `CHRONICLE_FIRE=full` runs a million mutations, otherwise a tenth; `CHRONICLE_SEED` sets the
//! seed; `CHRONICLE_HOSTILE_COUNT` sets the number of mutations (a memory checker is slow).
//! `CHRONICLE_HOSTILE_ONE=n` repeats mutation `n` in this process.

#![allow(clippy::print_stdout)] // Seeds and counts, for who repeats a run.

mod damage;
mod exercise;
mod fixture;
mod guard;

use chronicle_core::layout::RECORD_ALIGN;
use exercise::{Met, run_one};
use fixture::{Fixture, SEGMENT_BYTES};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MUTATIONS_FULL: u64 = 1_000_000;
const SEED_DEFAULT: u64 = 0x0C_4A05_2026;
const CHILDREN: u64 = 2;
/// Of one mutation; the longest takes a few milliseconds.
const ALARM_SECONDS: i64 = 120;

fn shared_memory() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

fn env_u64(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let text = text.trim();
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn arm_alarm() {
    let limit = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: ALARM_SECONDS, tv_usec: 0 },
    };
    // SAFETY: a valid timer description; nothing is written back.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &limit, std::ptr::null_mut()) };
}

/// Runs the mutations `first, first + step, ...` below `end`; writes each number to `progress`
/// before it begins.
fn run_range(seed: u64, first: u64, step: u64, end: u64, progress: &File) -> Met {
    arm_alarm();
    let base = shared_memory().join(format!("chronicle-hostile-{}", std::process::id()));
    let mut fixtures =
        [Fixture::new(base.join("checksums"), true, 0), Fixture::new(base.join("plain"), false, 2)];
    let mut met = Met::default();
    let mut number = first;
    while number < end {
        progress.write_all_at(&number.to_le_bytes(), 0).unwrap();
        arm_alarm();
        run_one(&mut fixtures, seed, number, &mut met);
        number += step;
    }
    drop(fixtures);
    std::fs::remove_dir_all(base).unwrap();
    met
}

#[test]
#[ignore = "run by the driver, in a process of its own"]
fn child() {
    let Ok(plan) = std::env::var("CHRONICLE_HOSTILE_PLAN") else { return };
    let mut parts = plan.splitn(5, ',');
    let mut number = || parts.next().unwrap().parse().unwrap();
    let (seed, first, step, end) = (number(), number(), number(), number());
    let progress = OpenOptions::new().write(true).open(parts.next().unwrap()).unwrap();
    let met = run_range(seed, first, step, end, &progress);
    for (i, count) in
        [met.records, met.gaps, met.errors, met.opened, met.appended].iter().enumerate()
    {
        progress.write_all_at(&count.to_le_bytes(), 8 + 8 * i as u64).unwrap();
    }
}

fn child_command(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

#[test]
fn no_mutation_of_a_queue_crashes_hangs_or_reads_out_of_range() {
    let seed = env_u64("CHRONICLE_SEED").unwrap_or(SEED_DEFAULT);
    if let Some(one) = env_u64("CHRONICLE_HOSTILE_ONE") {
        let progress = tempfile("one");
        std::fs::remove_file(&progress.1).unwrap();
        run_range(seed, one, 1, one + 1, &progress.0);
        return;
    }
    let full = std::env::var("CHRONICLE_FIRE").is_ok_and(|v| v == "full");
    let count = env_u64("CHRONICLE_HOSTILE_COUNT").unwrap_or(if full {
        MUTATIONS_FULL
    } else {
        MUTATIONS_FULL / 10
    });
    println!("seed={seed:#x} mutations={count}");
    let children: Vec<_> = (0..CHILDREN)
        .map(|i| {
            let (file, path) = tempfile(&i.to_string());
            let plan = format!("{seed},{i},{CHILDREN},{count},{}", path.display());
            let child = child_command("child")
                .env("CHRONICLE_HOSTILE_PLAN", plan)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            (child, file, path)
        })
        .collect();
    let mut met = [0; 5];
    let mut failures = String::new();
    for (mut child, file, path) in children {
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = child.wait().unwrap();
        let word = |i: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, 8 * i).map_or(0, |()| u64::from_le_bytes(bytes))
        };
        if !status.success() {
            let how = status.signal().map_or(format!("{status}"), |s| format!("signal {s}"));
            failures += &format!(
                "mutation {} ended its process: {how}\n  again: CHRONICLE_SEED={seed} CHRONICLE_HOSTILE_ONE={}\n{stderr}\n",
                word(0),
                word(0)
            );
            let _ = std::fs::remove_dir_all(
                shared_memory().join(format!("chronicle-hostile-{}", child.id())),
            );
        }
        for (i, sum) in met.iter_mut().enumerate() {
            *sum += word(1 + i as u64);
        }
        std::fs::remove_file(path).unwrap();
    }
    assert!(failures.is_empty(), "{failures}");
    let [records, gaps, errors, opened, appended] = met;
    println!("records={records} gaps={gaps} errors={errors} readers={opened} appended={appended}");
    assert!(
        records > count
            && errors > count / 10
            && opened > count / 10
            && appended > count / 10
            && gaps > 0
    );
}

fn tempfile(name: &str) -> (File, PathBuf) {
    let path = shared_memory().join(format!("chronicle-hostile-{}-{name}", std::process::id()));
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    (file, path)
}

/// The guard itself: without it, a read past the end of a mapping could find a neighbour and go
/// unseen.
#[test]
#[ignore = "run by the driver, in a process of its own"]
fn child_that_reads_past_the_end() {
    if std::env::var("CHRONICLE_HOSTILE_PAST_END").is_err() {
        return;
    }
    arm_alarm();
    let (file, path) = tempfile("past");
    file.set_len(8192).unwrap();
    std::fs::remove_file(path).unwrap();
    let map = chronicle_core::os::map::Map::new(&file, 8192, false).unwrap();
    // SAFETY: it is not: this is the mistake that the guard must turn into a crash.
    std::hint::black_box(unsafe { map.base().add(8192).read_volatile() });
}

#[test]
fn a_read_past_the_end_of_a_mapping_is_a_crash_in_these_tests() {
    let status = child_command("child_that_reads_past_the_end")
        .env("CHRONICLE_HOSTILE_PAST_END", "1")
        .stderr(Stdio::null())
        .status()
        .unwrap();
    // A signal, or the exit code of a memory checker that caught it.
    assert!(!status.success(), "{status}");
    assert_eq!(SEGMENT_BYTES % RECORD_ALIGN, 0);
}
