//! Model checks of `chronicle_core::protocol`: loom tries every interleaving, and every value that
//! a load may return under the C11 memory model, of the functions that ship.
//!
//! Each model is generic over [`Orderings`]. It must hold with [`Strong`], and it must fail, in the
//! way that is named, with each mutant of which one constant is weakened: a model that cannot tell
//! the difference would check nothing.
//!
//! # Bounds
//! The models of commit, cursor, slot and of one joiner run to the end. In the others an execution
//! has at most [`PREEMPTIONS`] preemptions (switches away from a thread that could have gone on;
//! switches at a blocked or finished thread are free). The mutants of P4 and P9 fail from three on,
//! all others with one; four leaves one to spare and keeps the whole file far below a minute. Two
//! waiters with two records, the largest model, have three.
//!
//! # What loom cannot show
//! It does not delay a store past a later load of the same thread except through what other threads
//! read (no load buffering), and treats SeqCst accesses as AcqRel; the protocols use SeqCst only
//! for fences, which loom models.
#![cfg(loom)]

use chronicle_core::protocol::{self, Doorbell, Orderings, Slot, Strong, WakeRequest};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use std::any::type_name_of_val;
use std::process::Command;

/// See the head of this file.
const PREEMPTIONS: Option<usize> = Some(4);

fn check(bound: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = bound;
    builder.check(model);
}

/// Asserts that loom finds an execution of the model that fails, and that it fails first of all for
/// the given reason.
///
/// The model runs in a child process, which is this test once more: what loom's objects do in their
/// destructors while a failed model is unwound may panic again, and then the process aborts.
macro_rules! breaks {
    ($bound:expr, $reason:expr, $model:expr) => {{
        fn here() {}
        breaks(type_name_of_val(&here), line!(), $bound, $reason, $model);
    }};
}

/// Tells the child which line's mutant it is to run.
const LINE_VARIABLE: &str = "CHRONICLE_LOOM_MUTANT";

fn breaks(
    here: &str,
    line: u32,
    bound: Option<usize>,
    reason: &str,
    model: impl Fn() + Send + Sync + 'static,
) {
    match std::env::var(LINE_VARIABLE) {
        Ok(wanted) if wanted == line.to_string() => return check(bound, model),
        Ok(_) => return,
        Err(_) => {}
    }
    let test = here.split("::").nth(1).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(LINE_VARIABLE, line.to_string())
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stderr);
    assert!(!child.status.success(), "line {line}: loom cannot tell the mutant from what ships");
    let first = text.lines().skip_while(|l| !l.contains("panicked at")).nth(1).unwrap_or_default();
    assert!(first.contains(reason), "line {line}: not the expected failure: {text}");
}

/// What loom says about two accesses to an `UnsafeCell` that nothing orders.
const RACE: &str = "Causality violation";
/// What loom says when everybody sleeps: here, a lost wake-up.
const ASLEEP: &str = "deadlock";

macro_rules! mutants {
    ($($name:ident: $constant:ident = $ordering:ident;)*) => {
        $(
            struct $name;
            impl Orderings for $name {
                const $constant: Ordering = Ordering::$ordering;
            }
        )*
    };
}

mutants! {
    WeakCommitStore: COMMIT_STORE = Relaxed;
    WeakCommitLoad: COMMIT_LOAD = Relaxed;
    WeakRingFence: RING_FENCE = AcqRel;
    WeakArmFence: ARM_FENCE = AcqRel;
    WeakRingAdd: RING_ADD = Relaxed;
    WeakRingLoad: RING_LOAD = Relaxed;
    WeakSlotPut: SLOT_PUT = Relaxed;
    WeakSlotTake: SLOT_TAKE = Relaxed;
    WeakFloorFence: FLOOR_FENCE = AcqRel;
    WeakJoinFence: JOIN_FENCE = AcqRel;
    WeakCursorStore: CURSOR_STORE = Relaxed;
    WeakCursorLoad: CURSOR_LOAD = Relaxed;
    WeakRequestStore: REQUEST_STORE = Relaxed;
    WeakRequestTake: REQUEST_TAKE = Relaxed;
    WeakAskFence: ASK_FENCE = AcqRel;
    WeakLeaveFence: LEAVE_FENCE = AcqRel;
    WeakFrameLoad: FRAME_LOAD = Relaxed;
    WeakFrameStore: FRAME_STORE = Relaxed;
}

// --- P1: commit and read ---

const ROLL: u32 = u32::MAX;

/// A segment of two records: commit words, payloads, a header that is plain data.
struct Segment {
    header: UnsafeCell<u64>,
    words: [AtomicU32; 3],
    payloads: [UnsafeCell<u64>; 2],
}

impl Segment {
    fn new() -> Self {
        Self {
            header: UnsafeCell::new(0),
            words: std::array::from_fn(|_| AtomicU32::new(0)),
            payloads: std::array::from_fn(|_| UnsafeCell::new(0)),
        }
    }

    fn fill(&self, at: usize, payload: u64) {
        // SAFETY: loom checks that the access is exclusive.
        self.payloads[at].with_mut(|p| unsafe { *p = payload });
    }

    fn payload(&self, at: usize) -> u64 {
        // SAFETY: loom checks that no write is concurrent.
        self.payloads[at].with(|p| unsafe { *p })
    }
}

/// Reads as far as records are committed, as `Reader::peek` does; gives the payloads.
fn read_all<O: Orderings>(segments: &[Segment; 2], seen: &mut Vec<u64>) {
    let (mut segment, mut at) = (0, 0);
    let mut found = Vec::new();
    loop {
        match protocol::committed::<O>(&segments[segment].words[at]) {
            0 => break,
            ROLL => {
                (segment, at) = (segment + 1, 0);
                // SAFETY: loom checks that no write is concurrent.
                let first = segments[segment].header.with(|p| unsafe { *p });
                assert_eq!(first, found.len() as u64 + 1, "torn header");
            }
            length => {
                assert_eq!(length, 9, "torn length");
                found.push(segments[segment].payload(at));
                at += 1;
            }
        }
    }
    assert!(found.len() >= seen.len(), "a committed record went away");
    assert!(found.iter().copied().eq(1..=found.len() as u64), "torn payload");
    *seen = found;
}

fn commit_and_read<O: Orderings>() {
    let segments = Arc::new([Segment::new(), Segment::new()]);
    let theirs = Arc::clone(&segments);
    let writer = thread::spawn(move || {
        for at in 0..2 {
            theirs[0].fill(at, at as u64 + 1);
            protocol::commit::<O>(&theirs[0].words[at], 9);
        }
        // SAFETY: loom checks that the access is exclusive.
        theirs[1].header.with_mut(|p| unsafe { *p = 3 });
        protocol::commit::<O>(&theirs[0].words[2], ROLL);
        theirs[1].fill(0, 3);
        protocol::commit::<O>(&theirs[1].words[0], 9);
    });
    let mut seen = Vec::new();
    read_all::<O>(&segments, &mut seen);
    read_all::<O>(&segments, &mut seen);
    writer.join().unwrap();
    read_all::<O>(&segments, &mut seen);
    assert_eq!(seen, [1, 2, 3]);
}

/// A run is filled with its inner commit words set, and its first commit word is stored last.
fn commit_run_and_read<O: Orderings>() {
    let segment = Arc::new(Segment::new());
    let theirs = Arc::clone(&segment);
    let writer = thread::spawn(move || {
        theirs.fill(0, 1);
        theirs.fill(1, 2);
        protocol::commit::<O>(&theirs.words[1], 9);
        protocol::commit::<O>(&theirs.words[0], 9);
    });
    if protocol::committed::<O>(&segment.words[0]) != 0 {
        assert_eq!(segment.payload(0), 1);
        assert_eq!(protocol::committed::<O>(&segment.words[1]), 9, "half a run is visible");
        assert_eq!(segment.payload(1), 2);
    }
    writer.join().unwrap();
}

#[test]
fn a_reader_that_sees_a_commit_sees_the_record_and_behind_a_marker_the_next_segment() {
    check(None, commit_and_read::<Strong>);
}

#[test]
fn a_run_appears_at_once() {
    check(None, commit_run_and_read::<Strong>);
}

#[test]
fn a_relaxed_commit_store_shows_torn_records() {
    breaks!(None, RACE, commit_and_read::<WeakCommitStore>);
    breaks!(None, RACE, commit_run_and_read::<WeakCommitStore>);
}

#[test]
fn a_relaxed_commit_load_shows_torn_records() {
    breaks!(None, RACE, commit_and_read::<WeakCommitLoad>);
    breaks!(None, RACE, commit_run_and_read::<WeakCommitLoad>);
}

// --- P2, P3, P4: wake elision ---

/// The kernel's side of a futex: the word is compared under the lock of the wait queue, and `wake`
/// takes that lock too. The lock is all that it orders: what a sleeper did before it took the lock
/// is not ordered against what the waker did.
struct Futex {
    queue: Mutex<()>,
    sleepers: Condvar,
}

impl Futex {
    fn new() -> Self {
        Self { queue: Mutex::new(()), sleepers: Condvar::new() }
    }

    fn wait(&self, word: &AtomicU32, seen: u32) {
        let queue = self.queue.lock().unwrap();
        // Relaxed: the kernel reads the word with a plain load under its lock.
        if word.load(Ordering::Relaxed) == seen {
            drop(self.sleepers.wait(queue).unwrap());
        }
    }

    fn wake_all(&self) {
        let _queue = self.queue.lock().unwrap();
        self.sleepers.notify_all();
    }
}

/// A queue that is only commit words, its doorbell, and the kernel.
struct Queue {
    words: [AtomicU32; 3],
    bell: Doorbell,
    futex: Futex,
}

impl Queue {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            words: std::array::from_fn(|_| AtomicU32::new(0)),
            bell: Doorbell { armed: AtomicU32::new(0), ring: AtomicU32::new(0) },
            futex: Futex::new(),
        })
    }

    /// What the writer does; tells whether it rang.
    fn append<O: Orderings>(&self, at: usize) -> bool {
        protocol::commit::<O>(&self.words[at], 1);
        let rings = self.bell.must_ring::<O>();
        if rings {
            self.ring::<O>();
        }
        rings
    }

    fn ring<O: Orderings>(&self) {
        self.bell.ring::<O>();
        self.futex.wake_all();
    }

    /// What a waiter does.
    fn wait<O: Orderings>(&self, at: usize) {
        while protocol::committed::<O>(&self.words[at]) == 0 {
            let seen = self.bell.arm::<O>();
            if protocol::committed::<O>(&self.words[at]) != 0 {
                break;
            }
            self.futex.wait(&self.bell.ring, seen);
        }
    }
}

/// `waiters` threads wait for each of `records` records. A lost wake-up leaves one of them asleep.
fn wake_elision<O: Orderings>(waiters: usize, records: usize) {
    let queue = Queue::new();
    let threads: Vec<_> = (0..waiters)
        .map(|_| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || (0..records).for_each(|at| queue.wait::<O>(at)))
        })
        .collect();
    for at in 0..records {
        queue.append::<O>(at);
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
}

/// One waiter is killed after it has armed the bell; `alive` others wait for the last record.
fn killed_waiter<O: Orderings>(alive: usize) {
    let queue = Queue::new();
    let killed = Arc::clone(&queue);
    let killed = thread::spawn(move || {
        killed.bell.arm::<O>();
    });
    let alive: Vec<_> = (0..alive)
        .map(|_| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.wait::<O>(0))
        })
        .collect();
    let alive_count = alive.len();
    let rings = (0..3).filter(|&at| queue.append::<O>(at)).count();
    killed.join().unwrap();
    alive.into_iter().for_each(|t| t.join().unwrap());
    // A waiter that lives arms once per time it is woken, and only the ring of the one that died
    // wakes it for nothing.
    assert!(rings <= 1 + 2 * alive_count, "the writer rings for the dead: {rings}");
}

/// The writer dies after it has cleared the flag (`moved`: and moved the futex word) but before it
/// wakes anybody; the next writer rings once as it opens the queue, without looking at the flag.
fn killed_writer<O: Orderings>(moved: bool) {
    let queue = Queue::new();
    let theirs = Arc::clone(&queue);
    let waiter = thread::spawn(move || (0..2).for_each(|at| theirs.wait::<O>(at)));
    protocol::commit::<O>(&queue.words[0], 1);
    if queue.bell.must_ring::<O>() {
        // Relaxed: as in `Doorbell::ring`.
        queue.bell.armed.store(0, Ordering::Relaxed);
        if moved {
            queue.bell.ring.fetch_add(1, O::RING_ADD);
        }
    }
    // The next writer.
    queue.ring::<O>();
    queue.append::<O>(1);
    waiter.join().unwrap();
}

#[test]
fn a_sleeping_waiter_is_woken_for_every_record() {
    check(PREEMPTIONS, || wake_elision::<Strong>(1, 2));
    check(PREEMPTIONS, || wake_elision::<Strong>(1, 3));
}

#[test]
fn two_sleeping_waiters_are_woken() {
    check(PREEMPTIONS, || wake_elision::<Strong>(2, 1));
}

#[test]
fn two_waiters_and_two_records_that_may_ring_for_each_other() {
    check(Some(3), || wake_elision::<Strong>(2, 2));
}

#[test]
fn a_waiter_that_was_killed_costs_one_ring_and_wakes_the_living() {
    check(PREEMPTIONS, || killed_waiter::<Strong>(0));
    check(PREEMPTIONS, || killed_waiter::<Strong>(1));
}

#[test]
fn the_next_writer_makes_up_for_one_that_was_killed_while_it_rang() {
    check(PREEMPTIONS, || killed_writer::<Strong>(false));
    check(PREEMPTIONS, || killed_writer::<Strong>(true));
}

#[test]
fn without_the_full_fence_of_the_writer_a_wake_up_is_lost() {
    breaks!(PREEMPTIONS, ASLEEP, || wake_elision::<WeakRingFence>(1, 1));
}

#[test]
fn without_the_full_fence_of_the_waiter_a_wake_up_is_lost() {
    breaks!(PREEMPTIONS, ASLEEP, || wake_elision::<WeakArmFence>(1, 1));
}

#[test]
fn with_a_relaxed_ring_the_writer_clears_a_flag_that_was_set_after_it() {
    breaks!(PREEMPTIONS, ASLEEP, || wake_elision::<WeakRingAdd>(1, 2));
}

#[test]
fn with_a_relaxed_look_at_the_ring_the_writer_clears_a_flag_that_was_set_after_it() {
    breaks!(PREEMPTIONS, ASLEEP, || wake_elision::<WeakRingLoad>(1, 2));
}

// --- P9, P10, P11: a wake-up that another thread makes ---

/// A hot writer rings, and leaves the system call to its worker, which makes `turns` turns and then
/// leaves. A request that nobody takes leaves the waiter asleep.
fn deferred_wake<O: Orderings>(records: usize, turns: usize) {
    let queue = Queue::new();
    let request = Arc::new((WakeRequest::default(), AtomicU32::new(1)));
    let waiting = Arc::clone(&queue);
    let waiter = thread::spawn(move || (0..records).for_each(|at| waiting.wait::<O>(at)));
    let (served, theirs) = (Arc::clone(&queue), Arc::clone(&request));
    let worker = thread::spawn(move || {
        let (request, attached) = &*theirs;
        for _ in 0..turns {
            if request.take::<O>() {
                served.futex.wake_all();
            }
        }
        if request.leave::<O>(attached) {
            served.futex.wake_all();
        }
    });
    for at in 0..records {
        protocol::commit::<O>(&queue.words[at], 1);
        if queue.bell.must_ring::<O>() {
            queue.bell.ring::<O>();
            if !request.0.ask::<O>(&request.1) {
                queue.futex.wake_all();
            }
        }
    }
    worker.join().unwrap();
    waiter.join().unwrap();
}

#[test]
fn a_wake_up_that_is_left_to_a_worker_is_made_even_if_the_worker_leaves() {
    check(PREEMPTIONS, || deferred_wake::<Strong>(1, 0));
    check(PREEMPTIONS, || deferred_wake::<Strong>(1, 1));
    check(Some(3), || deferred_wake::<Strong>(2, 1));
}

#[test]
fn with_a_relaxed_request_the_sleeper_may_not_see_that_it_was_rung() {
    breaks!(PREEMPTIONS, ASLEEP, || deferred_wake::<WeakRequestStore>(1, 1));
}

#[test]
fn with_a_relaxed_take_the_sleeper_may_not_see_that_it_was_rung() {
    breaks!(PREEMPTIONS, ASLEEP, || deferred_wake::<WeakRequestTake>(1, 1));
}

#[test]
fn without_the_full_fence_of_who_asks_a_request_is_left_to_a_worker_that_is_gone() {
    breaks!(PREEMPTIONS, ASLEEP, || deferred_wake::<WeakAskFence>(1, 0));
}

#[test]
fn without_the_full_fence_of_a_worker_that_leaves_a_request_is_lost() {
    breaks!(PREEMPTIONS, ASLEEP, || deferred_wake::<WeakLeaveFence>(1, 0));
}

// --- P5: hand-over ---

/// How often each mapping was dropped. Not loom's: only looked at when all threads are gone.
type Drops = std::sync::Arc<[std::sync::atomic::AtomicUsize; 3]>;

/// A mapping: used by whoever holds it, gone when it is dropped.
struct Mapping {
    index: usize,
    bytes: UnsafeCell<u64>,
    drops: Drops,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: loom checks that all other accesses came before.
        self.bytes.with_mut(|p| unsafe { *p = u64::MAX });
        // Relaxed: loom runs one thread at a time.
        self.drops[self.index].fetch_add(1, Ordering::Relaxed);
    }
}

impl Mapping {
    fn store(&self, value: u64) {
        // SAFETY: loom checks that the access is exclusive.
        self.bytes.with_mut(|p| unsafe { *p = value });
    }

    fn load(&self) -> u64 {
        // SAFETY: loom checks that no write is concurrent.
        self.bytes.with(|p| unsafe { *p })
    }
}

/// The worker fills `ready` and empties `retired`; the hot side enters each segment, from the slot
/// or (when the worker is late) by itself, and retires the one before. Each mapping is taken once
/// and dropped once, after its last use.
fn hand_over<O: Orderings>() {
    let drops = Drops::default();
    let slots = Arc::new([Slot::<Mapping>::default(), Slot::default()]);
    let (theirs, their_drops) = (Arc::clone(&slots), drops.clone());
    let worker = thread::spawn(move || {
        for index in 0..3 {
            let mapping =
                Arc::new(Mapping { index, bytes: UnsafeCell::new(0), drops: their_drops.clone() });
            mapping.store(index as u64 + 7);
            // Late: the one before was not taken. It goes with its slot.
            drop(theirs[0].put::<O>(mapping));
            drop(theirs[1].take::<O>());
        }
    });
    for _ in 0..3 {
        if let Some(mapping) = slots[0].take::<O>() {
            assert_eq!(mapping.load(), mapping.index as u64 + 7, "the mapping is not filled");
            mapping.store(1);
            // All slots taken: unmapped here.
            drop(slots[1].put::<O>(mapping));
        }
    }
    worker.join().unwrap();
    drop(slots);
    // Relaxed: all threads are gone.
    assert!(drops.iter().all(|d| d.load(Ordering::Relaxed) == 1), "a mapping leaked or went twice");
}

/// The worker may take a mapping back out of `ready` when it is not wanted any more: two takers,
/// one gets it.
fn two_takers<O: Orderings>() {
    let drops = Drops::default();
    let slot = Arc::new(Slot::<Mapping>::default());
    let (theirs, their_drops) = (Arc::clone(&slot), drops.clone());
    let worker = thread::spawn(move || {
        let mapping =
            Arc::new(Mapping { index: 0, bytes: UnsafeCell::new(0), drops: their_drops.clone() });
        mapping.store(7);
        drop(theirs.put::<O>(mapping));
        theirs.take::<O>().inspect(|m| assert_eq!(m.load(), 7)).is_some()
    });
    let ours = slot.take::<O>().inspect(|m| assert_eq!(m.load(), 7)).is_some();
    let theirs = worker.join().unwrap();
    assert!(ours != theirs, "both or neither took the mapping");
    // Relaxed: all threads are gone.
    assert_eq!(drops[0].load(Ordering::Relaxed), 1);
}

/// An XDP socket goes: its last frame was counted before the memory of the next socket is put. A
/// reader that has found no frame, and then sees that memory, must see the count before it leaves.
fn last_count<O: Orderings>() {
    let (count, slot) = (Arc::new(AtomicU32::new(0)), Arc::new(Slot::<u32>::default()));
    let (their_count, theirs) = (Arc::clone(&count), Arc::clone(&slot));
    let other = thread::spawn(move || {
        protocol::give_frame_back::<O>(&their_count, 1);
        drop(theirs.put::<O>(Arc::new(7)));
    });
    if slot.is_ready::<O>() {
        let seen = protocol::frame_status::<O>(&count);
        assert_eq!(seen, 1, "the last frame is overlooked");
    }
    other.join().unwrap();
}

#[test]
fn who_sees_that_something_was_put_sees_what_came_before() {
    check(None, last_count::<Strong>);
}

#[test]
fn with_a_relaxed_put_or_look_the_last_frame_is_overlooked() {
    breaks!(None, "the last frame is overlooked", last_count::<WeakSlotPut>);
    breaks!(None, "the last frame is overlooked", last_count::<WeakSlotTake>);
}

#[test]
fn a_mapping_is_handed_over_whole_both_ways_and_dropped_once() {
    check(None, hand_over::<Strong>);
}

#[test]
fn of_two_takers_one_gets_the_mapping() {
    check(None, two_takers::<Strong>);
}

#[test]
fn a_relaxed_put_hands_over_a_mapping_that_is_not_filled() {
    breaks!(None, RACE, hand_over::<WeakSlotPut>);
}

#[test]
fn a_relaxed_take_hands_over_a_mapping_that_is_not_filled() {
    breaks!(None, RACE, hand_over::<WeakSlotTake>);
}

// --- P6, P7: retention against cursors ---

const SHIFT: u32 = 16;

/// Three segments that retention may delete, and a cursor per reader. The cursors stand far ahead
/// at first, as those of readers that come back and start over: retention then has no other sign of
/// them than the position.
struct Retained {
    floor: AtomicU64,
    positions: [AtomicU64; 2],
    sequences: [AtomicU64; 2],
    /// Whether the file is deleted. A race here is a segment deleted under its reader.
    deleted: [UnsafeCell<bool>; 3],
}

impl Retained {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            floor: AtomicU64::new(0),
            positions: std::array::from_fn(|_| AtomicU64::new(9 << SHIFT)),
            sequences: std::array::from_fn(|_| AtomicU64::new(9)),
            deleted: std::array::from_fn(|_| UnsafeCell::new(false)),
        })
    }

    fn read(&self, segment: u64) {
        // SAFETY: loom checks that no write is concurrent.
        let deleted = self.deleted[segment as usize].with(|p| unsafe { *p });
        assert!(!deleted, "a segment was deleted under its reader");
    }

    /// A reader joins at the oldest segment, reads, and commits its way forward.
    fn join_and_read<O: Orderings>(&self, reader: usize, segments: u64) {
        let position = &self.positions[reader];
        let mut segment = 0;
        while let Err(floor) =
            protocol::join_floor::<O>(position, &self.floor, segment << SHIFT, SHIFT)
        {
            assert!(floor > segment);
            segment = floor;
        }
        for _ in 0..segments {
            if segment > 2 {
                break;
            }
            self.read(segment);
            segment += 1;
            let sequence = &self.sequences[reader];
            protocol::commit_cursor::<O>(sequence, position, segment, segment << SHIFT);
        }
    }

    /// Retention lets everything below `wanted` go that no cursor needs.
    fn retain<O: Orderings>(&self, wanted: u64, readers: usize) {
        let lowest = || {
            let positions = self.positions[..readers].iter();
            positions.map(|p| protocol::cursor_position::<O>(p) >> SHIFT).min()
        };
        let below = protocol::raise_floor::<O>(&self.floor, wanted, lowest);
        for deleted in &self.deleted[..below as usize] {
            // SAFETY: loom checks that the access is exclusive.
            deleted.with_mut(|p| unsafe { *p = true });
        }
    }
}

/// One reader joins and reads on while retention wants first one, then two segments.
fn one_joiner<O: Orderings>() {
    let queue = Retained::new();
    let theirs = Arc::clone(&queue);
    let reader = thread::spawn(move || theirs.join_and_read::<O>(0, 2));
    queue.retain::<O>(1, 1);
    queue.retain::<O>(2, 1);
    reader.join().unwrap();
}

fn two_joiners<O: Orderings>() {
    let queue = Retained::new();
    let readers: Vec<_> = (0..2)
        .map(|reader| {
            let theirs = Arc::clone(&queue);
            thread::spawn(move || theirs.join_and_read::<O>(reader, 1))
        })
        .collect();
    queue.retain::<O>(1, 2);
    readers.into_iter().for_each(|t| t.join().unwrap());
}

/// The one before was killed after it had raised the floor, before it looked at the cursors again.
/// The reader had joined by then, or joins now.
fn killed_retention<O: Orderings>() {
    let queue = Retained::new();
    let theirs = Arc::clone(&queue);
    let reader = thread::spawn(move || theirs.join_and_read::<O>(0, 1));
    queue.floor.store(2, Ordering::Release);
    // Killed. The next one, under the same lock:
    queue.retain::<O>(2, 1);
    reader.join().unwrap();
}

#[test]
fn a_segment_is_never_deleted_under_a_reader_that_joined() {
    check(None, one_joiner::<Strong>);
}

#[test]
fn a_segment_is_never_deleted_under_two_readers_that_joined() {
    check(PREEMPTIONS, two_joiners::<Strong>);
}

#[test]
fn retention_that_was_killed_half_way_deletes_nothing_later_that_a_reader_needs() {
    check(None, killed_retention::<Strong>);
}

#[test]
fn without_the_full_fence_of_retention_a_segment_is_deleted_under_its_reader() {
    breaks!(PREEMPTIONS, RACE, one_joiner::<WeakFloorFence>);
    breaks!(PREEMPTIONS, RACE, two_joiners::<WeakFloorFence>);
}

#[test]
fn without_the_full_fence_of_a_joiner_a_segment_is_deleted_under_it() {
    breaks!(PREEMPTIONS, RACE, one_joiner::<WeakJoinFence>);
    breaks!(PREEMPTIONS, RACE, two_joiners::<WeakJoinFence>);
}

// --- P8: the two words of a cursor ---

/// A reader commits twice; somebody looks. The record's bytes stand for what the reader does with
/// them before it commits.
fn cursor_pair<O: Orderings>() {
    let queue = Retained::new();
    let theirs = Arc::clone(&queue);
    let reader = thread::spawn(move || {
        for n in 10..12 {
            let (sequence, position) = (&theirs.sequences[0], &theirs.positions[0]);
            protocol::commit_cursor::<O>(sequence, position, n, n << SHIFT);
        }
    });
    let position = protocol::cursor_position::<O>(&queue.positions[0]) >> SHIFT;
    // Relaxed: P8 alone must make it new enough.
    let sequence = queue.sequences[0].load(Ordering::Relaxed);
    assert!(sequence >= position, "the sequence is older than the position");
    reader.join().unwrap();
}

#[test]
fn who_sees_a_position_sees_a_sequence_at_least_as_new() {
    check(None, cursor_pair::<Strong>);
}

#[test]
fn with_a_relaxed_cursor_store_the_sequence_may_be_older() {
    breaks!(None, "older than the position", cursor_pair::<WeakCursorStore>);
    breaks!(PREEMPTIONS, RACE, one_joiner::<WeakCursorStore>);
}

#[test]
fn with_a_relaxed_cursor_load_the_sequence_may_be_older() {
    breaks!(None, "older than the position", cursor_pair::<WeakCursorLoad>);
    breaks!(PREEMPTIONS, RACE, one_joiner::<WeakCursorLoad>);
}

// --- P12 and P13: frames of a packet ring ---

const OF_KERNEL: u32 = 0;
const OF_USER: u32 = 1;

/// A ring of two frames.
struct PacketRing {
    status: [AtomicU32; 2],
    frames: [UnsafeCell<u64>; 2],
    steps: AtomicU32,
}

impl PacketRing {
    /// Where either side may be overtaken by the other. loom tries both orders of two accesses only
    /// if it remembers both, and of a word that one side loads and then stores it remembers the
    /// last access; these it does remember.
    fn step(&self) {
        // Relaxed: it must order nothing.
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}

/// The kernel's half, as net/packet/af_packet.c has it: it looks whether the next frame is its own,
/// fills it, and hands it over behind a barrier; if the frame is not free it drops. Returns what it
/// has dropped.
fn kernel_fills(ring: &PacketRing, packets: u64) -> u64 {
    let mut at = 0;
    let mut dropped = 0;
    for packet in 1..=packets {
        ring.step();
        if ring.status[at % 2].load(Ordering::Acquire) != OF_KERNEL {
            dropped += 1;
            continue;
        }
        // SAFETY: loom checks that the access is exclusive.
        ring.frames[at % 2].with_mut(|p| unsafe { *p = packet });
        ring.status[at % 2].store(OF_USER, Ordering::Release);
        at += 1;
    }
    dropped
}

/// Three packets into a ring of two: one frame is used twice, if the reader is quick.
fn packet_ring<O: Orderings>() {
    const PACKETS: u64 = 3;
    let ring = Arc::new(PacketRing {
        status: std::array::from_fn(|_| AtomicU32::new(OF_KERNEL)),
        frames: std::array::from_fn(|_| UnsafeCell::new(0)),
        steps: AtomicU32::new(0),
    });
    let theirs = Arc::clone(&ring);
    let kernel = thread::spawn(move || kernel_fills(&theirs, PACKETS));
    let mut found = Vec::new();
    let mut read = |looks: usize| {
        for _ in 0..looks {
            let at = found.len() % 2;
            ring.step();
            if protocol::frame_status::<O>(&ring.status[at]) == OF_USER {
                // SAFETY: loom checks that no write is concurrent.
                found.push(ring.frames[at].with(|p| unsafe { *p }));
                protocol::give_frame_back::<O>(&ring.status[at], OF_KERNEL);
            }
        }
    };
    read(3);
    let dropped = kernel.join().unwrap();
    read(3);
    assert_eq!(found.len() as u64 + dropped, PACKETS, "a packet is neither there nor dropped");
    assert!(found.is_sorted(), "packets out of order");
}

#[test]
fn a_frame_is_read_whole_and_is_over_before_it_is_filled_again() {
    check(None, packet_ring::<Strong>);
}

#[test]
fn with_a_relaxed_load_of_its_status_a_frame_may_not_be_filled_yet() {
    breaks!(None, RACE, packet_ring::<WeakFrameLoad>);
}

#[test]
fn with_a_relaxed_return_a_frame_is_filled_again_while_it_is_read() {
    breaks!(None, RACE, packet_ring::<WeakFrameStore>);
}
