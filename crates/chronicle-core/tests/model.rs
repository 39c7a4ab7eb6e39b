//! A stateful property test: any sequence of operations does to a queue what it does to a naive
//! model of one.
//!
//! The model is a list of messages, a number that says how many of them are gone, and a few numbers
//! per reader. Whatever the core may choose for itself (when it rolls, which segments retention can
//! delete) is read off the core and then held against the rules; what it must not choose (contents,
//! order, sequence numbers, gaps, places) comes from the model.
//!
//! `CHRONICLE_FIRE=full` runs ten times as many cases; `CHRONICLE_SEED` sets the seed. A failing
//! case is shrunk and printed as a list of operations.

#![allow(clippy::print_stdout)] // Seeds and counts, for who repeats a run.

use chronicle_core::queue::provision::Chores;
use chronicle_core::queue::writer::MixedBatch;
use chronicle_core::queue::{cursor, inspect, retention};
use chronicle_core::wait::{WaitStrategy, Waited, wait_any};
use chronicle_core::{
    ErrorKind, FanIn, GapReason, MergeMode, Options, Provisioner, Reader, RetentionPolicy, Start,
    Writer,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const CASES_FULL: u32 = 2_000;
const SEED_DEFAULT: u64 = 0x0D0C_2026;
const SEGMENT_BYTES: u64 = 1 << 16;
/// What the cases have met, to show that they reach everything.
static RECORDS: AtomicU64 = AtomicU64::new(0);
static GAPS: AtomicU64 = AtomicU64::new(0);
static DELETED: AtomicU64 = AtomicU64::new(0);

const QUEUES: usize = 2;
const READERS: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Append {
        queue: usize,
        len: usize,
        step_ns: i64,
    },
    AppendMany {
        queue: usize,
        len: usize,
        count: usize,
        step_ns: i64,
    },
    AppendMixed {
        queue: usize,
        lens: Vec<usize>,
        step_ns: i64,
    },
    /// More than fits: refused, and nothing changes.
    AppendTooLarge {
        queue: usize,
    },
    Flush {
        queue: usize,
    },
    ReopenWriter {
        queue: usize,
        provisioned: bool,
    },
    /// Readers `0..QUEUES * 2` are named, two for each queue.
    OpenReader {
        reader: usize,
        start: Where,
    },
    DropReader {
        reader: usize,
    },
    ForgetReader {
        reader: usize,
    },
    Next {
        reader: usize,
        count: usize,
    },
    NextRun {
        reader: usize,
        count: usize,
    },
    Wait {
        reader: usize,
    },
    Commit {
        reader: usize,
    },
    Seek {
        reader: usize,
        start: Where,
    },
    Merge {
        strict: bool,
        count: usize,
    },
    DropMerge,
    Retain {
        queue: usize,
        segments: u64,
    },
    Verify {
        queue: usize,
    },
}

/// A place relative to what the queue holds: `Sequence` and `Time` count in thousandths of it.
#[derive(Clone, Copy, Debug)]
enum Where {
    Resume,
    Earliest,
    Latest,
    Sequence(u64),
    Beyond(u64),
    Time(u64),
}

fn place() -> impl Strategy<Value = Where> {
    prop_oneof![
        3 => Just(Where::Resume),
        2 => Just(Where::Earliest),
        2 => Just(Where::Latest),
        3 => (0..=1_000_u64).prop_map(Where::Sequence),
        1 => (1..3_u64).prop_map(Where::Beyond),
        3 => (0..=1_100_u64).prop_map(Where::Time),
    ]
}

/// Mostly small; sometimes empty, larger than an index block, or all of a segment.
fn payload_len() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 0..400_usize,
        2 => 1_000..5_000_usize,
        1 => 16_000..40_000_usize,
        1 => Just(61_272_usize),
    ]
}

/// Clocks mostly go forwards.
fn step_ns() -> impl Strategy<Value = i64> {
    prop_oneof![6 => 0..50_i64, 1 => -500..0_i64, 1 => 1_000..100_000_i64]
}

fn op() -> impl Strategy<Value = Op> {
    let (queue, reader) = (0..QUEUES, 0..READERS);
    prop_oneof![
        6 => (queue.clone(), payload_len(), step_ns())
            .prop_map(|(queue, len, step_ns)| Op::Append { queue, len, step_ns }),
        6 => (queue.clone(), 1..400_usize, 1..600_usize, step_ns())
            .prop_map(|(queue, len, count, step_ns)| Op::AppendMany { queue, len, count, step_ns }),
        4 => (queue.clone(), prop::collection::vec(payload_len(), 0..20), step_ns())
            .prop_map(|(queue, lens, step_ns)| Op::AppendMixed { queue, lens, step_ns }),
        1 => queue.clone().prop_map(|queue| Op::AppendTooLarge { queue }),
        1 => queue.clone().prop_map(|queue| Op::Flush { queue }),
        2 => (queue.clone(), any::<bool>())
            .prop_map(|(queue, provisioned)| Op::ReopenWriter { queue, provisioned }),
        4 => (reader.clone(), place()).prop_map(|(reader, start)| Op::OpenReader { reader, start }),
        2 => reader.clone().prop_map(|reader| Op::DropReader { reader }),
        1 => reader.clone().prop_map(|reader| Op::ForgetReader { reader }),
        8 => (reader.clone(), 1..800_usize).prop_map(|(reader, count)| Op::Next { reader, count }),
        3 => (reader.clone(), 1..300_usize).prop_map(|(reader, count)| Op::NextRun { reader, count }),
        1 => reader.clone().prop_map(|reader| Op::Wait { reader }),
        4 => reader.clone().prop_map(|reader| Op::Commit { reader }),
        4 => (reader.clone(), place()).prop_map(|(reader, start)| Op::Seek { reader, start }),
        5 => (any::<bool>(), 1..600_usize).prop_map(|(strict, count)| Op::Merge { strict, count }),
        1 => Just(Op::DropMerge),
        4 => (queue.clone(), 0..6_u64).prop_map(|(queue, segments)| Op::Retain { queue, segments }),
        1 => queue.prop_map(|queue| Op::Verify { queue }),
    ]
}

// --- The model ---

#[derive(Clone, PartialEq, Eq, Debug)]
struct Message {
    type_id: u16,
    timestamp_ns: u64,
    payload: Vec<u8>,
}

/// What a queue is: message `i` has the sequence number `i + 1`.
#[derive(Default)]
struct ModelQueue {
    messages: Vec<Message>,
    /// The lowest sequence number that still exists.
    first: u64,
    now_ns: u64,
    epoch: u64,
}

impl ModelQueue {
    fn next(&self) -> u64 {
        self.messages.len() as u64 + 1
    }

    fn get(&self, sequence: u64) -> Option<&Message> {
        self.messages.get(sequence.checked_sub(1)? as usize)
    }

    fn tick(&mut self, step_ns: i64) -> u64 {
        self.now_ns = self.now_ns.saturating_add_signed(step_ns);
        self.now_ns
    }

    fn new_message(&self, len: usize, timestamp_ns: u64, type_id: u16) -> Message {
        let salt = self.next();
        let payload = (0..len as u64).map(|i| (salt * 131 + i * 7) as u8).collect();
        Message { type_id, timestamp_ns, payload }
    }
}

/// What a reader is: the next sequence number, and what was committed under its name.
#[derive(Default)]
struct ModelReader {
    next: u64,
    committed: Option<u64>,
}

// --- Model and core side by side ---

struct Side {
    path: PathBuf,
    writer: Option<Writer>,
    model: ModelQueue,
}

struct World {
    root: PathBuf,
    provisioner: Provisioner,
    sides: Vec<Side>,
    readers: Vec<(Option<Reader>, ModelReader)>,
    merge: Option<Merge>,
}

/// A fan-in over all queues, registered as `merge`.
struct Merge {
    fan: FanIn,
    next: Vec<u64>,
}

fn options() -> Options {
    Options {
        segment_bytes: SEGMENT_BYTES,
        checksum: true,
        segments_max: 4096,
        ..Options::default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // It would go on adding segments to what is being removed.
        self.provisioner.stop();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

impl World {
    fn new() -> Self {
        static UNIQUE: AtomicU64 = AtomicU64::new(0);
        let unique = UNIQUE.fetch_add(1, Ordering::Relaxed);
        let shm = PathBuf::from("/dev/shm");
        let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
        let root = base.join(format!("chronicle-model-{}-{unique}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(&root).unwrap();
        let sides = (0..QUEUES)
            .map(|i| {
                let path = root.join(i.to_string());
                let writer = Some(Writer::open(&path, &options()).unwrap());
                let model =
                    ModelQueue { first: 1, now_ns: 1_000, epoch: 1, ..ModelQueue::default() };
                Side { path, writer, model }
            })
            .collect();
        let readers = (0..READERS).map(|_| (None, ModelReader::default())).collect();
        Self { root, provisioner: Provisioner::new().unwrap(), sides, readers, merge: None }
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Append { queue, len, step_ns } => self.append(*queue, *len, *step_ns),
            Op::AppendMany { queue, len, count, step_ns } => {
                self.append_many(*queue, *len, *count, *step_ns);
            }
            Op::AppendMixed { queue, lens, step_ns } => self.append_mixed(*queue, lens, *step_ns),
            Op::AppendTooLarge { queue } => self.append_too_large(*queue),
            Op::Flush { queue } => {
                let side = &mut self.sides[*queue];
                assert_eq!(side.writer.as_mut().unwrap().flush().unwrap(), side.model.next() - 1);
            }
            Op::ReopenWriter { queue, provisioned } => self.reopen_writer(*queue, *provisioned),
            Op::OpenReader { reader, start } => self.open_reader(*reader, *start),
            Op::DropReader { reader } => self.readers[*reader].0 = None,
            Op::ForgetReader { reader } => self.forget_reader(*reader),
            Op::Next { reader, count } => self.next(*reader, *count),
            Op::NextRun { reader, count } => self.next_run(*reader, *count),
            Op::Wait { reader } => self.wait(*reader),
            Op::Commit { reader } => {
                if let (Some(reader), model) = &mut self.readers[*reader] {
                    reader.commit();
                    model.committed = Some(model.next);
                }
            }
            Op::Seek { reader, start } => self.seek(*reader, *start),
            Op::Merge { strict, count } => self.run_merge(*strict, *count),
            Op::DropMerge => self.merge = None,
            Op::Retain { queue, segments } => self.retain(*queue, *segments),
            Op::Verify { queue } => self.verify(*queue),
        }
    }

    fn append(&mut self, queue: usize, len: usize, step_ns: i64) {
        let Side { writer, model, .. } = &mut self.sides[queue];
        let timestamp_ns = model.tick(step_ns);
        let message = model.new_message(len, timestamp_ns, 7);
        let writer = writer.as_mut().unwrap();
        let sequence = writer.append(7, &message.payload, Some(timestamp_ns)).unwrap();
        assert_eq!(sequence, model.next());
        model.messages.push(message);
        assert_eq!(writer.next_sequence(), model.next());
    }

    fn append_many(&mut self, queue: usize, len: usize, count: usize, step_ns: i64) {
        let Side { writer, model, .. } = &mut self.sides[queue];
        let timestamp_ns = model.tick(step_ns);
        let first = model.next();
        let mut payloads = Vec::new();
        for _ in 0..count {
            let message = model.new_message(len, timestamp_ns, 8);
            payloads.extend_from_slice(&message.payload);
            model.messages.push(message);
        }
        let writer = writer.as_mut().unwrap();
        assert_eq!(writer.append_many(8, &payloads, len, Some(timestamp_ns)).unwrap(), first);
        assert_eq!(writer.next_sequence(), model.next());
    }

    fn append_mixed(&mut self, queue: usize, lens: &[usize], step_ns: i64) {
        let Side { writer, model, .. } = &mut self.sides[queue];
        let first = model.next();
        let (mut buffer, mut offsets, mut lengths) = (vec![0xEE; 3], Vec::new(), Vec::new());
        let (mut type_ids, mut timestamps_ns) = (Vec::new(), Vec::new());
        for (i, &len) in lens.iter().enumerate() {
            let message = model.new_message(len, model.now_ns, i as u16);
            model.tick(step_ns);
            offsets.push(buffer.len() as u64);
            lengths.push(len as u32);
            type_ids.push(message.type_id);
            timestamps_ns.push(message.timestamp_ns);
            buffer.extend_from_slice(&message.payload);
            buffer.push(0xEE);
            model.messages.push(message);
        }
        let batch = MixedBatch {
            buffer: &buffer,
            offsets: &offsets,
            lengths: &lengths,
            type_ids: &type_ids,
            timestamps_ns: &timestamps_ns,
        };
        let writer = writer.as_mut().unwrap();
        assert_eq!(writer.append_mixed(batch).unwrap(), first);
        assert_eq!(writer.next_sequence(), model.next());
    }

    fn append_too_large(&mut self, queue: usize) {
        let writer = self.sides[queue].writer.as_mut().unwrap();
        let before = (writer.next_sequence(), writer.next_position());
        let error = writer.append(1, &vec![0; SEGMENT_BYTES as usize], None).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }));
        assert_eq!((writer.next_sequence(), writer.next_position()), before);
    }

    fn reopen_writer(&mut self, queue: usize, provisioned: bool) {
        let Side { path, writer, model } = &mut self.sides[queue];
        *writer = None;
        model.epoch += 1;
        let opened = Writer::open(path, &options()).unwrap();
        assert_eq!((opened.next_sequence(), opened.epoch()), (model.next(), model.epoch));
        assert!(opened.recovery().same_boot && opened.recovery().cut.is_none());
        if provisioned {
            self.provisioner.attach_writer(&opened, Chores::default());
        }
        *writer = Some(opened);
    }

    /// The place as the core is told it.
    fn start_of(&self, queue: usize, start: Where) -> Start {
        let model = &self.sides[queue].model;
        match start {
            Where::Resume => Start::Resume,
            Where::Earliest => Start::Earliest,
            Where::Latest => Start::Latest,
            Where::Sequence(thousandths) => Start::Sequence(model.next() * thousandths / 1_000),
            Where::Beyond(n) => Start::Sequence(model.next() + n),
            Where::Time(thousandths) => Start::Time(model.now_ns * thousandths / 1_000),
        }
    }

    /// The next sequence number after going there; `None` where the core must refuse.
    fn expected_next(&self, queue: usize, committed: Option<u64>, start: Start) -> Option<u64> {
        let model = &self.sides[queue].model;
        let sequence = match start {
            Start::Resume => committed.unwrap_or(1),
            Start::Earliest => 1,
            Start::Latest => model.next(),
            Start::Sequence(sequence) => sequence.max(1),
            Start::Time(timestamp_ns) => (model.first..model.next())
                .find(|&s| model.get(s).unwrap().timestamp_ns >= timestamp_ns)
                .unwrap_or(model.next()),
        };
        (sequence <= model.next()).then_some(sequence)
    }

    fn open_reader(&mut self, number: usize, start: Where) {
        let queue = number % QUEUES;
        let start = self.start_of(queue, start);
        let expected = self.expected_next(queue, self.readers[number].1.committed, start);
        let name = format!("reader-{number}");
        let opened = Reader::open(&self.sides[queue].path, Some(&name), start);
        let (reader, model) = &mut self.readers[number];
        if reader.is_some() {
            let error = opened.err().unwrap();
            assert!(matches!(error.kind(), ErrorKind::ReaderActive { .. }), "{error}");
            return;
        }
        match (opened, expected) {
            (Ok(opened), Some(next)) => {
                assert_eq!(opened.next_sequence(), next);
                // Opening places the cursor: that is where a later resume goes on.
                *model = ModelReader { next, committed: Some(next) };
                if number.is_multiple_of(2) {
                    self.provisioner.attach_reader(&opened);
                }
                *reader = Some(opened);
            }
            (Err(error), None) => {
                assert!(matches!(error.kind(), ErrorKind::SequenceNotWritten { .. }), "{error}");
            }
            (opened, expected) => panic!("{:?} but expected {expected:?}", opened.map(drop)),
        }
    }

    fn forget_reader(&mut self, number: usize) {
        let queue = self.sides[number % QUEUES].writer.as_ref().unwrap().queue();
        let (reader, model) = &mut self.readers[number];
        let removed = cursor::remove(queue, &format!("reader-{number}"));
        match reader {
            Some(_) => {
                let error = removed.unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::ReaderActive { .. }), "{error}");
            }
            None => {
                removed.unwrap();
                model.committed = None;
            }
        }
    }

    fn seek(&mut self, number: usize, start: Where) {
        let queue = number % QUEUES;
        let start = self.start_of(queue, start);
        let expected = self.expected_next(queue, self.readers[number].1.committed, start);
        let (Some(reader), model) = &mut self.readers[number] else { return };
        match (reader.seek(start), expected) {
            (Ok(()), Some(next)) => model.next = next,
            (Err(error), None) => {
                assert!(matches!(error.kind(), ErrorKind::SequenceNotWritten { .. }), "{error}");
            }
            (found, expected) => panic!("{found:?} but expected {expected:?}"),
        }
        assert_eq!(reader.next_sequence(), model.next);
    }

    fn next(&mut self, number: usize, count: usize) {
        let queue = &self.sides[number % QUEUES].model;
        let (Some(reader), model) = &mut self.readers[number] else { return };
        for _ in 0..count {
            match reader.next() {
                Ok(Some(record)) => {
                    let found = Message {
                        type_id: record.raw.type_id,
                        timestamp_ns: record.raw.timestamp_ns,
                        payload: record.payload().to_vec(),
                    };
                    assert_eq!(record.raw.sequence, model.next);
                    assert_eq!(Some(&found), queue.get(model.next));
                    model.next += 1;
                    RECORDS.fetch_add(1, Ordering::Relaxed);
                }
                Ok(None) => {
                    assert_eq!(model.next, queue.next(), "the reader stopped too early");
                    return;
                }
                Err(error) => check_gap(&error, queue, &mut model.next),
            }
        }
    }

    fn next_run(&mut self, number: usize, count: usize) {
        let queue = &self.sides[number % QUEUES].model;
        let (Some(reader), model) = &mut self.readers[number] else { return };
        match reader.next_run(count) {
            Ok(Some(run)) => {
                assert!((1..=count).contains(&run.count));
                assert_eq!(run.first_sequence, model.next);
                for i in 0..run.count {
                    let expected = queue.get(model.next).unwrap();
                    let at =
                        run.offset + i * run.stride + chronicle_core::layout::RECORD_HEADER_BYTES;
                    // SAFETY: the run holds its segment, and the reader has checked that its
                    // records lie in it.
                    let payload = unsafe {
                        std::slice::from_raw_parts(run.segment.base().add(at), run.payload_bytes)
                    };
                    assert_eq!((run.type_id, payload), (expected.type_id, &expected.payload[..]));
                    model.next += 1;
                }
            }
            Ok(None) => assert_eq!(model.next, queue.next()),
            Err(error) => check_gap(&error, queue, &mut model.next),
        }
    }

    fn wait(&mut self, number: usize) {
        let queue = &self.sides[number % QUEUES].model;
        let (Some(reader), model) = &mut self.readers[number] else { return };
        let waited = wait_any(&[reader.wait_target()], WaitStrategy::Sleep, Some(Duration::ZERO));
        let expected = if model.next < queue.next() { Waited::Ready } else { Waited::TimedOut };
        assert_eq!(waited.unwrap(), expected);
    }

    fn run_merge(&mut self, strict: bool, count: usize) {
        let sides = &self.sides;
        let merge = self.merge.get_or_insert_with(|| {
            let mode = if strict { MergeMode::Strict } else { MergeMode::Live };
            let mut merge = Merge { fan: FanIn::new(mode), next: Vec::new() };
            for side in sides {
                let reader = Reader::open(&side.path, Some("merge"), Start::Resume).unwrap();
                merge.next.push(reader.next_sequence());
                merge.fan.add(reader);
            }
            merge
        });
        for _ in 0..count {
            match merge.fan.next() {
                Ok(Some((source, record))) => {
                    let expected = sides[source].model.get(merge.next[source]).unwrap();
                    assert_eq!(record.raw.sequence, merge.next[source]);
                    assert_eq!(record.payload(), expected.payload);
                    merge.next[source] += 1;
                }
                Ok(None) => break,
                Err((source, error)) => {
                    check_gap(&error, &sides[source].model, &mut merge.next[source]);
                }
            }
        }
        merge.fan.commit();
        // Committed is what was delivered, and not what was looked at.
        for (source, side) in sides.iter().enumerate() {
            let info = cursor::inspect(side.writer.as_ref().unwrap().queue(), "merge").unwrap();
            assert_eq!(info.next_sequence, merge.next[source]);
        }
    }

    fn retain(&mut self, queue: usize, segments: u64) {
        let merge_next = self.merge.as_ref().map(|m| m.next[queue]);
        let side = &mut self.sides[queue];
        let handle = side.writer.as_ref().unwrap().queue();
        let policy = match segments {
            // No policy, no deletion.
            0 => RetentionPolicy::default(),
            n => RetentionPolicy { bytes_max: Some(n * SEGMENT_BYTES), age_ns_max: None },
        };
        let (before, first_before) = (handle.floor_segment(), side.model.first);
        let report = retention::apply(handle, &policy).unwrap();
        // More files than the floor has moved by: a provisioner whose writer was closed may have
        // published a segment that the next writer has long passed.
        assert!(report.segments_deleted >= report.floor_segment - before);
        DELETED.fetch_add(report.segments_deleted, Ordering::Relaxed);
        assert!(report.floor_segment <= report.allowed_segment.max(before));
        assert!(segments != 0 || report.floor_segment == before);
        let info = inspect::info(&side.path).unwrap();
        let kept: Vec<_> = info.segments.iter().filter(|s| s.first_sequence != 0).collect();
        assert_eq!(kept[0].index, report.floor_segment);
        side.model.first = kept[0].first_sequence;
        // No live reader loses what it has not committed, as far as it existed when the reader
        // came.
        let live = self.readers.iter().skip(queue).step_by(QUEUES).filter(|(r, _)| r.is_some());
        for committed in live.filter_map(|(_, model)| model.committed).chain(merge_next) {
            assert!(side.model.first <= committed.max(first_before));
        }
        // And if nobody holds it, it does as it was told.
        if report.held_by.is_none() {
            assert_eq!(report.floor_segment, report.allowed_segment.max(before));
        }
    }

    fn verify(&mut self, queue: usize) {
        let Side { path, model, .. } = &self.sides[queue];
        let report = inspect::verify(path, |_, _| {}).unwrap();
        assert!(report.damage.is_empty(), "{report:?}");
        assert_eq!(report.next_sequence, model.next());
        assert_eq!(report.records, model.next() - model.first);
        let left = &model.messages[model.first as usize - 1..];
        assert_eq!(report.payload_bytes, left.iter().map(|m| m.payload.len() as u64).sum::<u64>());
        assert_eq!(report.timestamp_max, left.iter().map(|m| m.timestamp_ns).max().unwrap_or(0));
    }
}

/// The only error a reader may report here: a gap from where it stood to the oldest message that
/// exists.
fn check_gap(error: &chronicle_core::Error, queue: &ModelQueue, next: &mut u64) {
    let ErrorKind::Gap { first_missing, next: found, reason, .. } = error.kind() else {
        panic!("{error}")
    };
    assert_eq!((*first_missing, *reason), (*next, GapReason::Retention));
    // Unregistered places may lie between two deletions: the gap ends at what was the oldest when
    // the reader found out.
    assert!(*found > *next && *found <= queue.first, "{error}; the oldest is {}", queue.first);
    *next = *found;
    GAPS.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn any_sequence_of_operations_does_to_a_queue_what_it_does_to_the_model() {
    let full = std::env::var("CHRONICLE_FIRE").is_ok_and(|v| v == "full");
    let cases = if full { CASES_FULL } else { CASES_FULL / 10 };
    let seed = std::env::var("CHRONICLE_SEED").map_or(SEED_DEFAULT, |s| s.parse().unwrap());
    println!("seed={seed} cases={cases}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let operations = prop::collection::vec(op(), 1..120);
    TestRunner::new_with_rng(config, rng)
        .run(&operations, |operations| {
            let mut world = World::new();
            for op in &operations {
                world.run(op);
            }
            for queue in 0..QUEUES {
                world.verify(queue);
            }
            Ok(())
        })
        .unwrap();
    let [records, gaps, deleted] = [&RECORDS, &GAPS, &DELETED].map(|n| n.load(Ordering::Relaxed));
    println!("records={records} gaps={gaps} segments_deleted={deleted}");
    assert!(records > 0 && gaps > 0 && deleted > 0, "the operations do not reach everything");
}
