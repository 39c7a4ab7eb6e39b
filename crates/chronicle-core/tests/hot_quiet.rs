//! A hot thread makes no system call, uses no heap and (on a memory file system) takes no page fault,
//! while both its sides roll, readers come and go, commands and log records pass, and sleeping
//! readers of its output are woken.
//!
//! The kernel counts: system calls become signals by the guard's filter, page faults are in `/proc`.
//! The heap is counted by the allocator that the Python extension has as well. That both see
//! something is shown by the same thread without a provisioner, and by a handler that allocates.
//!
//! `CHRONICLE_FIRE=full` makes ten times as many rolls.

mod fire;

use chronicle_core::hot::abi::*;
use chronicle_core::hot::command::{Ack, Command, What};
use chronicle_core::hot::guard::{Guard, GuardMode};
use chronicle_core::hot::heap::Counting;
use chronicle_core::hot::run::{LoopOptions, Meter};
use chronicle_core::hot::thread::{self, Cargo, HotThread, Options, Program};
use chronicle_core::queue::provision::Chores;
use chronicle_core::sync::Arc;
use chronicle_core::wait::{self, WaitStrategy};
use chronicle_core::{MergeMode, Options as QueueOptions, Provisioner, Reader, Start, Writer};
use std::alloc::System;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

const PAYLOAD_BYTES: usize = 1_000;
const TYPE_COPY: u16 = 1;
const TYPE_ALLOCATE: u16 = 2;

/// # Safety
/// Called by the loop.
unsafe extern "C" fn copies(context: *mut Context, message: *const Message) -> i32 {
    // SAFETY: called by the loop with valid pointers.
    unsafe {
        let message = &*message;
        match (message.kind(), message.type_id()) {
            (KIND_DATA, TYPE_COPY) => {
                *(*context).counters += 1;
                let args = [message.sequence, message.timestamp_ns, 7];
                chr_hot_log(context, 0, 3, 0x222, args.as_ptr());
                let sequence = chr_hot_append(context, 0, 1, message.payload, message.len_bytes);
                if sequence < 0 { FAILED } else { HANDLED }
            }
            (KIND_COMMAND, TYPE_ALLOCATE) => {
                drop(std::hint::black_box(vec![1_u8; 100]));
                HANDLED
            }
            (KIND_COMMAND | KIND_EVENT, _) => HANDLED,
            _ => UNHANDLED,
        }
    }
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(path: &Path) -> Writer {
    let options = QueueOptions { segment_bytes: 1 << 16, ..QueueOptions::default() };
    Writer::open(path, &options).unwrap()
}

fn start(guard: &Arc<Guard>, wait: WaitStrategy, cargo: Cargo) -> HotThread {
    let table = HandlerTable { on_message: Some(copies), ..HandlerTable::default() };
    let program = Program { table, state: &[0; 64], outputs: 1, counters: 1, counters_file: None };
    let options = Options {
        name: "quiet".into(),
        core: None,
        fifo_priority: None,
        lock_memory: true,
        strict: true,
        commands_max: 64,
        log_records: 1024,
        guard: Arc::clone(guard),
        run: LoopOptions {
            wait,
            meter: Meter::Full,
            mode: MergeMode::Live,
            commit: true,
            sources_max: 8,
        },
    };
    match thread::start(program, options, cargo) {
        Ok(hot) => hot,
        Err(not_started) => panic!("{:?}", not_started.error),
    }
}

/// Minor and major faults of a thread of ours: fields 10 and 12 of proc_pid_stat(5).
fn faults(hot: &HotThread) -> (u64, u64) {
    let path = format!("/proc/self/task/{}/stat", hot.shared.page.thread_id.get());
    let stat = std::fs::read_to_string(path).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    (fields[7].parse().unwrap(), fields[9].parse().unwrap())
}

/// The sidecar of the test: what it has done so far.
struct Side {
    path: PathBuf,
    provisioner: Provisioner,
    input: Writer,
    hot: HotThread,
    /// Sent, acknowledged, log records drained, readers that came back.
    sent: u64,
    acked: u64,
    logged: u64,
    given_back: Vec<Reader>,
}

impl Side {
    /// One round: messages for a roll and more, a reader that comes and one that goes, commands.
    fn round(&mut self, round: u64) {
        let path = self.path.join("in");
        for n in 0..80 {
            // The writer's worker keeps up: what is shown here is the hot thread.
            self.input.append(TYPE_COPY, &[n; PAYLOAD_BYTES], None).unwrap();
        }
        let mut reader =
            Reader::open(&path, Some(&format!("r{}", round % 4)), Start::Latest).unwrap();
        self.provisioner.attach_reader(&reader);
        reader.set_hot(true);
        self.send(What::AddReader { reader, tag: 0, about: Box::default() });
        self.send(What::Message { type_id: 9, bytes: Box::from([1, 2, 3]) });
        let source = loop {
            match self.next_ack() {
                Ack::Added { source, .. } => break source,
                _ => continue,
            }
        };
        self.send(What::RemoveReader { source });
        while self.given_back.is_empty() {
            let ack = self.next_ack();
            self.take(ack);
        }
        self.given_back.clear();
        let wanted = self.input.next_sequence() - 1;
        until("all messages", || {
            self.drain();
            self.hot.shared.counters[0].get() >= wanted
        });
    }

    fn send(&mut self, what: What) {
        self.sent += 1;
        let mut command = Some(Command { ticket: self.sent, sent_ns: 1, what });
        until("room", || match self.hot.commands.try_send(command.take().unwrap()) {
            Ok(()) => true,
            Err(back) => {
                command = Some(back);
                false
            }
        });
    }

    fn next_ack(&mut self) -> Ack {
        let mut found = None;
        until("an ack", || {
            found = self.hot.acks.pop().ok();
            found.is_some()
        });
        found.unwrap()
    }

    fn take(&mut self, ack: Ack) {
        self.acked += 1;
        match ack {
            Ack::Removed { mut reader, .. } => {
                reader.set_hot(false);
                self.given_back.push(reader);
            }
            Ack::SourceFailed { error, .. } => panic!("{error}"),
            Ack::Refused { refusal, .. } => panic!("{refusal:?}"),
            _ => {}
        }
    }

    fn drain(&mut self) {
        while let Ok(ack) = self.hot.acks.pop() {
            self.take(ack);
        }
        while self.hot.logs.pop().is_ok() {
            self.logged += 1;
        }
        assert!(!self.hot.is_finished(), "the thread ended");
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < end, "it never happened: {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Reads everything, sleeping in between; gives how many.
fn sleeper(path: &Path, stop: &AtomicBool) -> u64 {
    let mut reader = Reader::open(path, Some("sleeper"), Start::Earliest).unwrap();
    let mut count = 0;
    loop {
        while let Some(record) = reader.next().unwrap() {
            count += 1;
            assert_eq!(record.raw.sequence, count, "lost, twice or out of order");
            assert_eq!(record.payload().len(), PAYLOAD_BYTES);
        }
        if stop.load(Ordering::Acquire) {
            return count;
        }
        let timeout = Some(Duration::from_millis(100));
        wait::wait_any(&[reader.wait_target()], WaitStrategy::Sleep, timeout).unwrap();
    }
}

#[test]
fn with_a_provisioner_there_is_no_system_call_no_allocation_and_no_fault() {
    let scratch = Scratch(fire::scratch("hot-quiet"));
    let path = scratch.0.clone();
    let provisioner = Provisioner::new().unwrap();
    let (input, output) = (open(&path.join("in")), open(&path.join("out")));
    let reader = Reader::open(&path.join("in"), Some("hot"), Start::Earliest).unwrap();
    provisioner.attach_writer(&input, Chores::default());
    provisioner.attach_writer(&output, Chores::default());
    provisioner.attach_reader(&reader);
    let guard = Guard::new(GuardMode::Observe, 64).unwrap();
    let cargo =
        Cargo { readers: vec![(0, 0, reader)], writers: vec![(0, output)], ..Cargo::default() };
    let hot = start(&guard, WaitStrategy::Spin, cargo);
    let mut side = Side {
        path: path.clone(),
        provisioner,
        input,
        hot,
        sent: 0,
        acked: 0,
        logged: 0,
        given_back: Vec::new(),
    };
    let stop = AtomicBool::new(false);
    // Asserted after the scope, which waits for the sleeper.
    let (slept, allocated, faulted, reports, seen) = std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| sleeper(&path.join("out"), &stop));
        (0..8).for_each(|round| side.round(round));
        let before = faults(&side.hot);
        let heap = side.hot.shared.page.allocations.get();
        let rounds = fire::scaled(1_200) as u64;
        (8..8 + rounds).for_each(|round| side.round(round));
        let allocated = side.hot.shared.page.allocations.get() - heap;
        let faulted = (before, faults(&side.hot));
        let mut reports = Vec::new();
        guard.drain(|report| reports.push(report));
        let seen = guard.counts().seen;
        stop.store(true, Ordering::Release);
        (sleeper.join().unwrap(), allocated, faulted, reports, seen)
    });
    assert_eq!(allocated, 0);
    if path.starts_with("/dev/shm") {
        assert_eq!(faulted.1, faulted.0, "faults, minor and major");
    }
    assert_eq!(seen, 0, "{reports:?}");
    let rolls = side.input.queue().tail_segment();
    assert!(rolls >= fire::scaled(1_200) as u64, "{rolls} rolls");
    side.hot.ask_to_stop();
    let ended = side.hot.join();
    side.drain_rest();
    assert!(ended.failure.is_none());
    let sent = side.input.next_sequence() - 1;
    assert_eq!((slept, side.hot.shared.page.messages.get()), (sent, sent));
    assert_eq!(side.logged + side.hot.shared.page.log_drops.get(), sent);
    assert_eq!(ended.writers[0].1.queue().tail_segment(), rolls);
    assert_eq!(ended.writers[0].1.endpoint().wakes_inline(), 0);
    assert_eq!(guard.counts().seen, 0, "the thread's own end is no violation");
}

impl Side {
    fn drain_rest(&mut self) {
        while self.hot.logs.pop().is_ok() {
            self.logged += 1;
        }
    }
}

/// What the test above would miss if guard and allocator did not count.
#[test]
fn without_a_provisioner_calls_are_seen_and_an_allocation_is_counted() {
    let scratch = Scratch(fire::scratch("hot-loud"));
    let (mut input, output) = (open(&scratch.0.join("in")), open(&scratch.0.join("out")));
    let reader = Reader::open(&scratch.0.join("in"), Some("hot"), Start::Earliest).unwrap();
    let guard = Guard::new(GuardMode::Observe, 64).unwrap();
    let cargo =
        Cargo { readers: vec![(0, 0, reader)], writers: vec![(0, output)], ..Cargo::default() };
    let wait = WaitStrategy::Hybrid { spin_ns: 1_000 };
    let mut hot = start(&guard, wait, cargo);
    let command = What::Message { type_id: TYPE_ALLOCATE, bytes: Box::default() };
    assert!(hot.commands.try_send(Command { ticket: 1, sent_ns: 1, what: command }).is_ok());
    until("the command", || hot.acks.pop().is_ok());
    // An allocation and a free.
    assert_eq!(hot.shared.page.allocations.get(), 2);
    assert_eq!(guard.counts().seen, 0, "its park is no violation");
    for _ in 0..100 {
        input.append(TYPE_COPY, &[1; PAYLOAD_BYTES], None).unwrap();
    }
    until("all messages", || hot.shared.page.messages.get() == 100);
    assert!(guard.counts().seen > 0, "rolls of both sides, made inline");
    hot.ask_to_stop();
    assert!(hot.join().failure.is_none());
}

/// A reader that sleeps on the output of a hot thread without a provisioner is woken all the same.
#[test]
fn without_a_provisioner_sleepers_are_woken_inline_and_that_is_counted() {
    let scratch = Scratch(fire::scratch("hot-inline-wake"));
    let (mut input, output) = (open(&scratch.0.join("in")), open(&scratch.0.join("out")));
    let reader = Reader::open(&scratch.0.join("in"), Some("hot"), Start::Earliest).unwrap();
    let endpoint = Arc::clone(output.endpoint());
    let guard = Guard::new(GuardMode::Observe, 64).unwrap();
    let cargo =
        Cargo { readers: vec![(0, 0, reader)], writers: vec![(0, output)], ..Cargo::default() };
    let mut hot = start(&guard, WaitStrategy::Hybrid { spin_ns: 1_000 }, cargo);
    let mut sleeper = Reader::open(&scratch.0.join("out"), None, Start::Earliest).unwrap();
    let target = [sleeper.wait_target()];
    std::thread::scope(|scope| {
        let woken = scope.spawn(|| {
            wait::wait_any(&target, WaitStrategy::Sleep, Some(Duration::from_secs(600))).unwrap()
        });
        let bell = &endpoint.queue().control().doorbell;
        until("it sleeps", || bell.armed.load(Ordering::SeqCst) == 1);
        input.append(TYPE_COPY, &[1; PAYLOAD_BYTES], None).unwrap();
        assert_eq!(woken.join().unwrap(), wait::Waited::Ready);
    });
    assert!(sleeper.next().unwrap().is_some());
    // The futex call, unless the sleeper had armed its bell and not yet gone to sleep: it is made in
    // any case.
    assert_eq!(endpoint.wakes_inline(), 1);
    hot.ask_to_stop();
    assert!(hot.join().failure.is_none());
}
