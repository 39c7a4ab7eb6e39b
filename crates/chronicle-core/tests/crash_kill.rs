//! Kills writers, readers and recoveries with SIGKILL: at every fail point, and at random moments.
//!
//! This binary is its own child (`CHRONICLE_CHILD` in the environment). A child tells what it has
//! committed through a mapped page, the board, which outlives it: after `append` has returned it
//! stores the sequence number there. After each kill the parent opens the queue again and checks
//! that every committed record is there with exactly its bytes, that sequence and epoch go on, and
//! that its own readers, which are open across all kills, have noticed nothing.
//!
//! `CHRONICLE_FIRE=full` for 5,000 kills, otherwise 500. `CHRONICLE_SEED` for another run.

#![expect(clippy::print_stdout, reason = "what was killed and cut is the report")]

mod fire;

use chronicle_core::layout::Geometry;
use chronicle_core::os::map::Map;
use chronicle_core::queue::dir::QueueDir;
use chronicle_core::queue::provision::Chores;
use chronicle_core::queue::segment::Segment;
use chronicle_core::queue::writer::MixedBatch;
use chronicle_core::queue::{durable, retention, seek};
use chronicle_core::wait::{WaitStrategy, wait_any};
use chronicle_core::{
    ErrorKind, GapReason, Options, Provisioner, Reader, RetentionPolicy, Start, Writer,
};
use fire::{Rng, SEGMENT_BYTES, payload, scaled, timestamp};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Only to fail instead of hanging; far beyond what anything takes.
const HANG: Duration = Duration::from_secs(120);
const POLICY: RetentionPolicy =
    RetentionPolicy { bytes_max: Some(5 * SEGMENT_BYTES), age_ns_max: None };

// --- The board ---

/// Words of the board.
#[derive(Clone, Copy)]
enum Word {
    /// The last record whose append has returned.
    Committed,
    /// Around a reader's commit: the sequence number it stores, before and after.
    CursorTried,
    CursorDone,
    /// What a recovery that came to its end has reported.
    Position,
    NextSequence,
    BytesDiscarded,
    SetAside,
}

struct Board {
    path: PathBuf,
    map: Map,
}

impl Board {
    fn open(path: &Path) -> Self {
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(4096).unwrap();
        Self { path: path.to_owned(), map: Map::new(&file, 4096, true).unwrap() }
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        // SAFETY: the page holds 512 words; the base is page-aligned.
        unsafe { &*self.map.base().cast::<AtomicU64>().add(word as usize) }
    }

    fn get(&self, word: Word) -> u64 {
        self.word(word).load(SeqCst)
    }

    fn set(&self, word: Word, value: u64) {
        self.word(word).store(value, SeqCst);
    }
}

// --- The child ---

/// What a child is to do; travels in the environment.
#[derive(Clone, Debug)]
struct Orders {
    mode: &'static str,
    queue: PathBuf,
    seed: u64,
    operations: u64,
    checksum: bool,
    provisioned: bool,
    /// Lets sleepers fall asleep before each operation.
    pauses: bool,
    reader: String,
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

fn child(mode: &str) {
    let queue = PathBuf::from(env("CHRONICLE_CHILD_QUEUE"));
    let board = Board::open(Path::new(&env("CHRONICLE_CHILD_BOARD")));
    let number = |name| env(name).parse::<u64>().unwrap();
    let options = options(number("CHRONICLE_CHILD_CHECKSUM") == 1);
    let operations = number("CHRONICLE_CHILD_OPERATIONS");
    let rng = Rng(number("CHRONICLE_CHILD_SEED"));
    match mode {
        "open" => child_open(&queue, &options, &board),
        "create" => child_create(&queue, &options, &board),
        "read" => child_read(&queue, &board, rng, operations),
        "write" => {
            let provisioned = number("CHRONICLE_CHILD_PROVISIONED") == 1;
            let pauses = number("CHRONICLE_CHILD_PAUSES") == 1;
            let mut writer = Writer::open(&queue, &options).unwrap();
            child_write(&mut writer, &board, rng, operations, provisioned, pauses);
        }
        other => panic!("no such mode: {other}"),
    }
}

fn options(checksum: bool) -> Options {
    Options { segment_bytes: SEGMENT_BYTES, checksum, segments_max: 4096, ..Options::default() }
}

fn child_open(queue: &Path, options: &Options, board: &Board) {
    let writer = Writer::open(queue, options).unwrap();
    report(board, &writer);
}

fn report(board: &Board, writer: &Writer) {
    let report = writer.recovery();
    let cut = report.cut.as_ref();
    board.set(Word::Position, report.position);
    board.set(Word::NextSequence, report.next_sequence);
    board.set(Word::BytesDiscarded, cut.map_or(u64::MAX, |cut| cut.bytes_discarded));
    board.set(Word::SetAside, cut.map_or(u64::MAX, |cut| cut.set_aside.len() as u64));
}

fn child_create(queue: &Path, options: &Options, board: &Board) {
    let mut writer = Writer::open(queue, options).unwrap();
    for _ in 0..3 {
        append(&mut writer, 50);
        board.set(Word::Committed, writer.next_sequence() - 1);
    }
    let mut reader = Reader::open(queue, Some("cur"), Start::Resume).unwrap();
    while reader.next().unwrap().is_some() {
        reader.commit();
    }
}

fn child_read(queue: &Path, board: &Board, mut rng: Rng, operations: u64) {
    let name = env("CHRONICLE_CHILD_READER");
    let mut reader = Reader::open(queue, Some(&name), Start::Resume).unwrap();
    for _ in 0..operations {
        for _ in 0..=rng.below(3) {
            match reader.next() {
                Ok(Some(r)) => fire::check_record(r.raw.sequence, r.raw.type_id, r.payload()),
                Ok(None) => reader.seek(Start::Earliest).unwrap(),
                Err(e) => assert!(is_gap(&e, GapReason::Retention), "{e}"),
            }
        }
        board.set(Word::CursorTried, reader.next_sequence());
        reader.commit();
        board.set(Word::CursorDone, reader.next_sequence());
    }
}

fn append(writer: &mut Writer, len: usize) {
    let sequence = writer.next_sequence();
    let given = writer.append(1, &payload(sequence, 1, len), Some(timestamp(sequence))).unwrap();
    assert_eq!(given, sequence);
}

fn append_many(writer: &mut Writer, count: u64, len: usize) {
    let first = writer.next_sequence();
    let bytes: Vec<u8> = (0..count).flat_map(|i| payload(first + i, 2, len)).collect();
    assert_eq!(writer.append_many(2, &bytes, len, Some(timestamp(first))).unwrap(), first);
}

fn append_mixed(writer: &mut Writer, count: u64, rng: &mut Rng) {
    let first = writer.next_sequence();
    let (mut buffer, mut offsets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    let (mut type_ids, mut timestamps_ns) = (Vec::new(), Vec::new());
    for sequence in first..first + count {
        let type_id = 3 + (sequence % 2) as u16;
        let bytes = payload(sequence, type_id, rng.payload_bytes());
        offsets.push(buffer.len() as u64);
        lengths.push(bytes.len() as u32);
        type_ids.push(type_id);
        timestamps_ns.push(timestamp(sequence));
        buffer.extend_from_slice(&bytes);
    }
    let batch = MixedBatch {
        buffer: &buffer,
        offsets: &offsets,
        lengths: &lengths,
        type_ids: &type_ids,
        timestamps_ns: &timestamps_ns,
    };
    assert_eq!(writer.append_mixed(batch).unwrap(), first);
}

fn child_write(
    writer: &mut Writer,
    board: &Board,
    mut rng: Rng,
    operations: u64,
    provisioned: bool,
    pauses: bool,
) {
    let provisioner = provisioned.then(|| {
        let provisioner = Provisioner::new().unwrap();
        let flush_interval = Some(Duration::from_micros(rng.below(2_000)));
        let chores = Chores { flush_interval, retention: Some(POLICY) };
        provisioner.attach_writer(writer, chores);
        provisioner
    });
    for _ in 0..operations {
        if pauses {
            std::thread::sleep(Duration::from_micros(500));
        }
        match rng.below(100) {
            0..60 => append(writer, rng.payload_bytes()),
            60..75 => append_many(writer, 1 + rng.below(20), 1 + rng.below(300) as usize),
            75..89 => append_mixed(writer, 1 + rng.below(20), &mut rng),
            // More than one run, and across segments.
            89 => append_many(writer, 800, 90 + rng.below(10) as usize),
            90..94 => drop(writer.flush().unwrap()),
            94..97 => drop(retention::apply(writer.queue(), &POLICY).unwrap()),
            // As if somebody slept.
            _ => drop(writer.queue().control().doorbell.arm::<chronicle_core::protocol::Strong>()),
        }
        board.set(Word::Committed, writer.next_sequence() - 1);
    }
    drop(provisioner);
}

// --- The parent: killing and counting ---

/// How a child ended.
#[derive(Debug, PartialEq)]
enum End {
    /// Killed at this fail point.
    Killed(String),
    /// Killed by the parent.
    KilledFromOutside,
    Finished,
}

struct Fire {
    rng: Rng,
    dir: PathBuf,
    log: PathBuf,
    names: u64,
    /// By fail point.
    kills: BTreeMap<String, u64>,
    kills_random: u64,
    kills_by_scenario: BTreeMap<&'static str, u64>,
    scenario: &'static str,
    /// Highest occurrence that is tried of each point while writing; 0 where it was never reached.
    reach: BTreeMap<String, u64>,
    /// Children that came to their end without reaching this point even once.
    misses: BTreeMap<String, u64>,
}

impl Fire {
    fn total(&self) -> u64 {
        self.kills.values().sum::<u64>() + self.kills_random
    }

    fn new_path(&mut self, what: &str) -> PathBuf {
        self.names += 1;
        self.dir.join(format!("{what}-{}", self.names))
    }

    fn spawn(&self, orders: &Orders, board: &Board, fail: Option<&str>) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .env("CHRONICLE_CHILD", orders.mode)
            .env("CHRONICLE_CHILD_QUEUE", &orders.queue)
            .env("CHRONICLE_CHILD_BOARD", &board.path)
            .env("CHRONICLE_CHILD_SEED", orders.seed.to_string())
            .env("CHRONICLE_CHILD_OPERATIONS", orders.operations.to_string())
            .env("CHRONICLE_CHILD_CHECKSUM", u8::from(orders.checksum).to_string())
            .env("CHRONICLE_CHILD_PROVISIONED", u8::from(orders.provisioned).to_string())
            .env("CHRONICLE_CHILD_PAUSES", u8::from(orders.pauses).to_string())
            .env("CHRONICLE_CHILD_READER", &orders.reader)
            .env("CHRONICLE_FAIL_LOG", &self.log);
        if let Some(fail) = fail {
            command.env("CHRONICLE_FAIL", fail);
        }
        command.spawn().unwrap()
    }

    fn ended(&mut self, status: ExitStatus, from_outside: bool) -> End {
        if status.success() {
            return End::Finished;
        }
        assert_eq!(status.signal(), Some(libc::SIGKILL), "the child has failed: {status}");
        *self.kills_by_scenario.entry(self.scenario).or_default() += 1;
        if from_outside {
            self.kills_random += 1;
            return End::KilledFromOutside;
        }
        let log = std::fs::read_to_string(&self.log).unwrap();
        std::fs::remove_file(&self.log).unwrap();
        let point = log.trim_end().to_owned();
        assert!(!point.is_empty() && !point.contains('\n'), "one kill at a time: {point:?}");
        *self.kills.entry(point.clone()).or_default() += 1;
        End::Killed(point)
    }

    fn run(&mut self, orders: &Orders, board: &Board, fail: &str) -> End {
        let status = self.spawn(orders, board, Some(fail)).wait().unwrap();
        self.ended(status, false)
    }

    /// Kills the recovery again and again, each time a little later, until one comes to its end.
    fn chain(&mut self, orders: &Orders, board: &Board, step: u64) -> Vec<String> {
        let orders = Orders { mode: "open", ..orders.clone() };
        let mut at = 1 + self.rng.below(step);
        let mut points = Vec::new();
        while let End::Killed(point) = self.run(&orders, board, &format!("*:{at}")) {
            points.push(point);
            at += 1 + self.rng.below(step);
        }
        points
    }
}

// --- The life of one queue ---

/// A reader that sleeps in the kernel whenever there is nothing to read.
struct Sleeper {
    seen: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Sleeper {
    fn start(queue: &Path) -> Self {
        let (seen, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut reader = Reader::open(queue, None, Start::Earliest).unwrap();
        let (theirs, stops) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stops.load(SeqCst) {
                let target = reader.wait_target();
                wait_any(&[target], WaitStrategy::Sleep, None).unwrap();
                loop {
                    match reader.next() {
                        Ok(Some(r)) => {
                            fire::check_record(r.raw.sequence, r.raw.type_id, r.payload());
                            theirs.store(r.raw.sequence, SeqCst);
                        }
                        Ok(None) => break,
                        Err(e) => assert!(is_gap(&e, GapReason::Retention), "{e}"),
                    }
                }
            }
        });
        Self { seen, stop, thread }
    }

    /// Waits until it has seen this record, which is committed.
    fn must_see(&self, sequence: u64) {
        let start = Instant::now();
        while self.seen.load(SeqCst) < sequence {
            assert!(!self.thread.is_finished(), "the sleeping reader has failed");
            assert!(start.elapsed() < HANG, "nobody woke the sleeping reader");
            std::thread::yield_now();
        }
    }
}

fn is_gap(error: &chronicle_core::Error, expected: GapReason) -> bool {
    matches!(error.kind(), ErrorKind::Gap { reason, .. } if *reason == expected)
}

struct Life {
    orders: Orders,
    board: Board,
    /// Open across all kills; registered, so that retention waits for it.
    live: Reader,
    seen: u64,
    sleeper: Option<Sleeper>,
    epoch: u64,
    /// Where the named reader `cur` stands for certain.
    cursor: u64,
}

impl Life {
    fn start(fire: &mut Fire, checksum: bool) -> Self {
        let queue = fire.new_path("queue");
        let board = Board::open(&fire.new_path("board"));
        let writer = Writer::open(&queue, &options(checksum)).unwrap();
        let orders = Orders {
            mode: "write",
            queue: queue.clone(),
            seed: 0,
            operations: 0,
            checksum,
            provisioned: fire.rng.chance(2),
            pauses: false,
            reader: "cur".into(),
        };
        Self {
            live: Reader::open(&queue, Some("live"), Start::Resume).unwrap(),
            seen: 0,
            sleeper: fire.rng.chance(2).then(|| Sleeper::start(&queue)),
            epoch: writer.epoch(),
            cursor: 1,
            orders,
            board,
        }
    }

    /// The reader that is open all the time sees each message once, in order, and never an error.
    fn drain(&mut self) {
        while let Some(record) = self.live.next().unwrap() {
            assert_eq!(record.raw.sequence, self.seen + 1);
            fire::check_record(record.raw.sequence, record.raw.type_id, record.payload());
            self.seen = record.raw.sequence;
        }
    }

    /// Opens the queue again after a kill and checks everything.
    fn settle(&mut self, rng: &mut Rng) {
        self.drain();
        let committed = self.board.get(Word::Committed).max(self.seen);
        let mut writer = Writer::open(&self.orders.queue, &options(self.orders.checksum)).unwrap();
        let (next, report) = (writer.next_sequence(), writer.recovery());
        assert!(next > committed, "committed={committed} but next={next}");
        assert!(!report.same_boot || report.cut.is_none(), "{report:?}");
        assert!(writer.epoch() > self.epoch, "the epoch does not go on");
        self.epoch = writer.epoch();
        if let Some(sleeper) = &self.sleeper {
            sleeper.must_see(next - 1);
        }
        self.drain();
        assert_eq!(self.seen, next - 1);
        for _ in 0..rng.below(5) {
            append(&mut writer, rng.payload_bytes());
        }
        self.drain();
        assert_eq!(self.seen, writer.next_sequence() - 1);
        self.board.set(Word::Committed, self.seen);
        if rng.chance(2) {
            self.live.commit();
        }
        let all = fire::scan(&self.orders.queue);
        assert_eq!(all.last().map_or(0, |r| r.sequence), self.seen);
        fire::check_seeks(&self.orders.queue, &all, rng, 3);
    }

    fn end(self) {
        if let Some(sleeper) = self.sleeper {
            sleeper.stop.store(true, SeqCst);
            let mut writer = Writer::open(&self.orders.queue, &options(true)).unwrap();
            append(&mut writer, 8);
            drop(writer);
            sleeper.thread.join().unwrap();
        }
        std::fs::remove_dir_all(&self.orders.queue).unwrap();
    }
}

// --- Scenarios ---

/// A writer is killed at the point that was hit least, at some occurrence of it.
fn kill_at_point(fire: &mut Fire, life: &mut Life) -> End {
    let kills = |name: &str| fire.kills.get(name).copied().unwrap_or(0);
    // Of a random half, so that one which is hard to reach does not take all the attempts.
    let mut rng = fire.rng.clone();
    let (name, &reach) = fire
        .reach
        .iter()
        .filter(|(_, reach)| **reach > 0)
        .min_by_key(|(name, _)| (rng.below(2), kills(name)))
        .expect("some point is reachable");
    let name = name.clone();
    let n = fire.rng.small(reach);
    life.orders.seed = fire.rng.next();
    life.orders.operations = 300;
    let end = fire.run(&life.orders, &life.board, &format!("{name}:{n}"));
    if end == End::Finished {
        let misses = fire.misses.entry(name.clone()).or_default();
        *misses += u64::from(n == 1);
        fire.reach.insert(name, if *misses < 12 { n.max(2) - 1 } else { 0 });
    }
    end
}

/// A writer is killed between a commit and the wake-up that follows, while a reader sleeps.
fn kill_before_wake(fire: &mut Fire, life: &mut Life) -> End {
    let points =
        ["append.committed", "batch.committed", "ring.cleared", "ring.moved", "roll.marked"];
    let point = points[fire.rng.below(5) as usize];
    let n = fire.rng.small(8);
    let seed = fire.rng.next();
    let orders = Orders { seed, operations: 30, pauses: true, ..life.orders.clone() };
    fire.run(&orders, &life.board, &format!("{point}:{n}"))
}

/// A writer is killed once its readers have seen so many records.
fn kill_at_random(fire: &mut Fire, life: &mut Life) -> End {
    life.orders.seed = fire.rng.next();
    life.orders.operations = u64::MAX;
    let until = life.seen + fire.rng.small(4_000) - 1;
    let mut child = fire.spawn(&life.orders, &life.board, None);
    let start = Instant::now();
    while life.seen < until {
        life.drain();
        assert!(start.elapsed() < HANG, "the child does not write");
        assert!(child.try_wait().unwrap().is_none(), "the child has failed");
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    fire.ended(status, true)
}

/// A reader is killed around its commits, or while it creates its cursor.
fn kill_reader(fire: &mut Fire, life: &mut Life) {
    let mut writer = Writer::open(&life.orders.queue, &options(life.orders.checksum)).unwrap();
    for _ in 0..20 {
        append(&mut writer, 40);
    }
    life.epoch = writer.epoch();
    drop(writer);
    let is_new = fire.rng.chance(3);
    fire.names += 1;
    let name = if is_new { format!("cur{}", fire.names) } else { "cur".to_owned() };
    let before = if is_new { 1 } else { life.cursor };
    life.board.set(Word::CursorTried, before);
    life.board.set(Word::CursorDone, before);
    let fail = match fire.rng.below(4) {
        0 => format!("*:{}", 1 + fire.rng.below(12)),
        _ => format!("cursor.sequence:{}", fire.rng.small(300)),
    };
    let seed = fire.rng.next();
    let orders =
        Orders { mode: "read", seed, operations: 200, reader: name.clone(), ..life.orders.clone() };
    fire.run(&orders, &life.board, &fail);
    let (done, tried) = (life.board.get(Word::CursorDone), life.board.get(Word::CursorTried));
    let mut reader = Reader::open(&life.orders.queue, Some(&name), Start::Resume).unwrap();
    let at = reader.next_sequence();
    assert!(at == done || at == tried, "resumed at {at}, committed {done}, or {tried}");
    for i in 0..5 {
        match reader.next() {
            Ok(Some(r)) => {
                fire::check_record(r.raw.sequence, r.raw.type_id, r.payload());
            }
            Ok(None) => break,
            Err(e) => assert!(i == 0 && is_gap(&e, GapReason::Retention), "{e}"),
        }
    }
    reader.commit();
    if !is_new {
        life.cursor = reader.next_sequence();
    }
}

/// A provisioner's flush comes in the middle of a roll, and the machine reboots: the marker before
/// the durable position is missing.
fn flush_and_forget(fire: &mut Fire, life: &Life) {
    let queue = QueueDir::open(&life.orders.queue, true).unwrap();
    let place = seek::tail(&queue).unwrap();
    durable::flush_to(&queue, place.position(), place.sequence).unwrap();
    fire::forget_boot(&life.orders.queue);
    let orders = Orders { mode: "open", ..life.orders.clone() };
    fire.run(&orders, &life.board, "recovery.durable_marked:1");
}

fn one_life(fire: &mut Fire, goal: u64) {
    let checksum = fire.rng.chance(2);
    let mut life = Life::start(fire, checksum);
    for _ in 0..25 {
        if fire.total() >= goal {
            break;
        }
        if fire.rng.chance(6) {
            fire.scenario = "reader";
            kill_reader(fire, &mut life);
            life.settle(&mut fire.rng);
            continue;
        }
        fire.scenario = "writer";
        let end = if life.sleeper.is_some() && fire.rng.chance(4) {
            kill_before_wake(fire, &mut life)
        } else if fire.rng.chance(4) {
            kill_at_random(fire, &mut life)
        } else {
            kill_at_point(fire, &mut life)
        };
        let in_roll = matches!(&end, End::Killed(point) if point.starts_with("roll."));
        fire.scenario = "recovery";
        if in_roll && life.orders.checksum && fire.rng.chance(2) {
            flush_and_forget(fire, &life);
        }
        if life.orders.checksum && fire.rng.chance(if in_roll { 3 } else { 20 }) {
            fire::forget_boot(&life.orders.queue);
            fire.chain(&life.orders, &life.board, 4);
        } else if (in_roll && fire.rng.chance(3)) || fire.rng.chance(20) {
            fire.chain(&life.orders, &life.board, 2);
        }
        life.settle(&mut fire.rng);
    }
    life.end();
}

/// A queue's creation is killed at every point in turn; each time another writer finishes it.
fn creation(fire: &mut Fire, goal: u64) {
    fire.scenario = "creation";
    let board = Board::open(&fire.new_path("board"));
    let checksum = fire.rng.chance(2);
    for at in 1.. {
        let queue = fire.new_path("created").join("with").join("parents");
        board.set(Word::Committed, 0);
        let orders = Orders {
            mode: "create",
            queue: queue.clone(),
            seed: 0,
            operations: 0,
            checksum,
            provisioned: false,
            pauses: false,
            reader: String::new(),
        };
        let end = fire.run(&orders, &board, &format!("*:{at}"));
        if fire.rng.chance(8) {
            fire.chain(&orders, &board, 4);
        }
        let mut writer = Writer::open(&queue, &options(checksum)).unwrap();
        let next = writer.next_sequence();
        assert!(next > board.get(Word::Committed) && next <= 4, "next={next}");
        append(&mut writer, 99);
        let all = fire::scan(&queue);
        assert_eq!(all.len() as u64, next);
        fire::check_seeks(&queue, &all, &mut fire.rng, 2);
        let mut reader = Reader::open(&queue, Some("cur"), Start::Resume).unwrap();
        while let Some(record) = reader.next().unwrap() {
            assert!(record.raw.sequence <= next);
        }
        assert_eq!(reader.next_sequence(), next + 1);
        std::fs::remove_dir_all(queue.parent().unwrap().parent().unwrap()).unwrap();
        if end == End::Finished || fire.total() >= goal {
            return;
        }
    }
}

/// A queue as a power loss may leave it: flushed up to a point, damaged behind it.
fn damaged_queue(fire: &mut Fire, headless: bool) -> (PathBuf, u64) {
    let queue = fire.new_path("power");
    let mut writer = Writer::open(&queue, &options(true)).unwrap();
    let never_flushed = headless || fire.rng.chance(4);
    let flushed_at = if never_flushed { 0 } else { fire.rng.below(600) };
    for i in 0..900_u64 {
        append(&mut writer, 200 + fire.rng.below(200) as usize);
        if i + 1 == flushed_at {
            assert_eq!(writer.flush().unwrap(), flushed_at);
        }
    }
    let mut reader = Reader::open(&queue, Some("cur"), Start::Latest).unwrap();
    assert!(reader.next().unwrap().is_none());
    reader.commit();
    let dir = QueueDir::open(&queue, true).unwrap();
    let geometry: Geometry = dir.geometry;
    let tail = dir.tail_segment();
    let place = seek::find(&dir, Start::Sequence(flushed_at + 1)).unwrap();
    // The prepared next segment, which holds nothing.
    Segment::prepare(&dir, tail + 1).unwrap();
    drop((writer, reader));
    let spoil = |index: u64, offset: usize, len: usize| {
        let segment = Segment::open(&dir, index, true).unwrap();
        // SAFETY: in range by the callers below; nobody else has the queue open.
        unsafe { segment.base().add(offset).write_bytes(0, len) };
    };
    if headless || (never_flushed && fire.rng.chance(2)) {
        // Not even the first header has reached the disk.
        spoil(0, 0, 4096);
    } else {
        let first = place.segment.index;
        let index = first + fire.rng.below(tail - first + 1);
        let from = if index == first { place.offset } else { geometry.data_offset() };
        let sealed = dir.table_entry(index).unwrap().end_offset.load(SeqCst) as usize;
        let end = if index == tail { seek::tail(&dir).unwrap().offset } else { sealed };
        let at = from + fire.rng.below((end - from) as u64 / 8) as usize * 8;
        spoil(index, at, (geometry.segment_bytes() - at).min(4096));
        if index < tail && fire.rng.chance(2) {
            spoil(tail, 0, 4096);
        }
    }
    fire::forget_boot(&queue);
    (queue, flushed_at)
}

/// A recovery after a power loss is killed at every point in turn, and ends where one that was left
/// alone ends.
fn recovery_after_power_loss(fire: &mut Fire, aim: &str) {
    fire.scenario = "recovery after power loss";
    let (queue, flushed) = damaged_queue(fire, aim == "recovery.fresh");
    let alone = fire.new_path("alone");
    fire::copy_tree(&queue, &alone);
    let expected = Board::open(&fire.new_path("board"));
    report(&expected, &Writer::open(&alone, &options(true)).unwrap());
    let board = Board::open(&fire.new_path("board"));
    let orders = Orders {
        mode: "open",
        queue: queue.clone(),
        seed: 0,
        operations: 0,
        checksum: true,
        provisioned: false,
        pauses: false,
        reader: String::new(),
    };
    // First where few were yet, then everywhere.
    fire.run(&orders, &board, &format!("{aim}:1"));
    let points = fire.chain(&orders, &board, 1);
    assert_ne!(expected.get(Word::BytesDiscarded), u64::MAX, "the cut was not reported");
    // With the new epoch the work was done, and whoever came later found a queue in order.
    let was_done = points.iter().any(|p| p.starts_with("open.") && p != "open.recovered");
    let all = [Word::Position, Word::NextSequence, Word::BytesDiscarded, Word::SetAside];
    for word in &all[..if was_done { 2 } else { 4 }] {
        assert_eq!(board.get(*word), expected.get(*word), "after {points:?}");
    }
    assert_eq!(kept_files(&queue), kept_files(&alone), "after {points:?}");
    let (ours, theirs) = (fire::scan(&queue), fire::scan(&alone));
    assert_eq!(ours, theirs);
    assert!(ours.len() as u64 >= flushed);
    // The reader whose cursor stands behind the cut is told, even if the numbers are in use again.
    let mut writer = Writer::open(&queue, &options(true)).unwrap();
    assert!(writer.recovery().cut.is_none());
    let next = writer.next_sequence();
    for _ in 0..fire.rng.below(2) * 1_000 {
        append(&mut writer, 20);
    }
    append(&mut writer, 20);
    let mut reader = Reader::open(&queue, Some("cur"), Start::Resume).unwrap();
    let told = reader.next().err().expect("a gap");
    assert!(is_gap(&told, GapReason::Cut), "{told}");
    assert_eq!(reader.next().unwrap().unwrap().raw.sequence, next);
    std::fs::remove_dir_all(&queue).unwrap();
    std::fs::remove_dir_all(&alone).unwrap();
}

/// Retention runs while the last full segment has no marker yet. Whoever stands at its end,
/// unregistered, must get on.
fn retention_before_recovery(fire: &mut Fire) {
    fire.scenario = "retention before recovery";
    let mut life = Life::start(fire, false);
    // The registered reader would hold the segment.
    drop(std::mem::replace(
        &mut life.live,
        Reader::open(&life.orders.queue, None, Start::Earliest).unwrap(),
    ));
    let sleeper = life.sleeper.get_or_insert_with(|| Sleeper::start(&life.orders.queue));
    let n = 1 + fire.rng.below(3);
    let orders = Orders { seed: fire.rng.next(), operations: 300, ..life.orders.clone() };
    fire.run(&orders, &life.board, &format!("roll.tail:{n}"));
    let queue = QueueDir::open(&life.orders.queue, true).unwrap();
    let all = RetentionPolicy { bytes_max: Some(SEGMENT_BYTES), age_ns_max: None };
    retention::apply(&queue, &all).unwrap();
    let mut writer = Writer::open(&life.orders.queue, &options(false)).unwrap();
    append(&mut writer, 10);
    sleeper.must_see(writer.next_sequence() - 1);
    drop(writer);
    life.end();
}

fn rarest_of_recovery(fire: &mut Fire, points: &[String]) -> String {
    let rng = &mut fire.rng;
    let kills = |name: &str| fire.kills.get(name).copied().unwrap_or(0);
    let ours = points.iter().filter(|p| p.starts_with("recovery.") || *p == "cursor.cut_marked");
    ours.min_by_key(|p| (kills(p), rng.next())).expect("recovery has fail points").clone()
}

/// Kills at this point, or comes near it.
fn aim_at(fire: &mut Fire, point: &str) {
    let before = match point {
        "recovery.roll_zeroed" | "recovery.roll_marked" | "recovery.durable_marked" => "roll.tail",
        "recovery.next_reset" => "roll.entered",
        "recovery.entry_mended" => "roll.sealed",
        "recovery.tail" | "recovery.zeroed" | "recovery.zeros_synced" => "append.filled",
        "cursor.cut_marked" => return recovery_after_power_loss(fire, point),
        _ if point.starts_with("recovery.") => return recovery_after_power_loss(fire, point),
        _ => point,
    };
    fire.scenario = "aimed";
    let mut life = Life::start(fire, true);
    let of_creation = ["create.", "file.", "cursor."].iter().any(|p| before.starts_with(p));
    let (mode, queue) = if of_creation {
        ("create", fire.new_path("aimed"))
    } else {
        ("write", life.orders.queue.clone())
    };
    let orders = Orders { mode, queue, operations: 300, ..life.orders.clone() };
    let orders = Orders { seed: fire.rng.next(), ..orders };
    let board = Board::open(&fire.new_path("board"));
    if point.starts_with("retention.") {
        // There must be something to delete.
        fire.run(&orders, &life.board, "nowhere:1");
        life.drain();
        life.live.commit();
    }
    fire.run(&orders, &board, &format!("{before}:1"));
    if point == "recovery.durable_marked" {
        flush_and_forget(fire, &life);
    } else if before != point {
        fire.run(&Orders { mode: "open", ..orders }, &board, &format!("{point}:1"));
    }
    life.settle(&mut fire.rng);
    life.end();
}

/// Name and size of what was set aside.
fn kept_files(queue: &Path) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir(queue.join("segments")).unwrap().map(Result::unwrap);
    let mut kept: Vec<_> = entries
        .map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len()))
        .filter(|(name, _)| name.ends_with(".cut"))
        .collect();
    kept.sort_unstable();
    kept
}

// --- The run ---

/// How often a point can be expected while a child writes; lowered as children come to their end
/// without reaching it.
fn first_reach(name: &str) -> u64 {
    match name.split('.').next().unwrap() {
        "append" | "fill" | "batch" => 2_000,
        "index" => 100,
        "roll" | "table" | "segment" | "flush" | "retention" => 20,
        _ => 8,
    }
}

fn main() {
    if let Ok(mode) = std::env::var("CHRONICLE_CHILD") {
        return child(&mode);
    }
    // The questions that test runners ask.
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    let goal = scaled(5_000) as u64;
    let seed = fire::seed(20_260_715);
    println!("crash_kill: {goal} kills, CHRONICLE_SEED={seed}");
    let points = fire::named_points();
    let dir = fire::scratch("kill");
    let mut fire = Fire {
        rng: Rng(seed),
        log: dir.join("log"),
        dir: dir.clone(),
        names: 0,
        kills: BTreeMap::new(),
        kills_random: 0,
        kills_by_scenario: BTreeMap::new(),
        scenario: "",
        misses: BTreeMap::new(),
        reach: points.iter().map(|p| (p.clone(), first_reach(p))).collect(),
    };
    let start = Instant::now();
    while fire.total() < goal {
        match fire.rng.below(12) {
            0 if fire.rng.chance(2) => retention_before_recovery(&mut fire),
            0 => creation(&mut fire, goal),
            1 | 2 => {
                let aim = rarest_of_recovery(&mut fire, &points);
                recovery_after_power_loss(&mut fire, &aim);
            }
            _ => one_life(&mut fire, goal),
        }
    }
    // A small run may not have been everywhere.
    for point in &points {
        for _ in 0..30 {
            if !fire.kills.contains_key(point) {
                aim_at(&mut fire, point);
            }
        }
    }
    println!("kills at random moments: {}", fire.kills_random);
    for (name, count) in &fire.kills {
        println!("kills at {name}: {count}");
    }
    println!("kills by scenario: {:?}", fire.kills_by_scenario);
    let missed: Vec<_> = points.iter().filter(|p| !fire.kills.contains_key(*p)).collect();
    let total = fire.total();
    println!(
        "{total} kills, {} of {} points, {:.0?}",
        fire.kills.len(),
        points.len(),
        start.elapsed()
    );
    assert!(missed.is_empty(), "no kill at {missed:?}");
    std::fs::remove_dir_all(&dir).unwrap();
}
