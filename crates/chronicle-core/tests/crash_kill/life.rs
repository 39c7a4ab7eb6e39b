//! The life of one queue, over many kills: what must be true after each of them.

use crate::board::{Board, Word};
use crate::child::{Orders, append, options};
use crate::fire::{self, Rng};
use crate::parent::Fire;
use chronicle_core::wait::{WaitStrategy, wait_any};
use chronicle_core::{ErrorKind, GapReason, Reader, Start, Writer};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Only to fail instead of hanging; far beyond what anything takes.
pub const HANG: Duration = Duration::from_secs(120);

/// A reader that sleeps in the kernel whenever there is nothing to read.
pub struct Sleeper {
    seen: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Sleeper {
    pub fn start(queue: &Path) -> Self {
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
    pub fn must_see(&self, sequence: u64) {
        let start = Instant::now();
        while self.seen.load(SeqCst) < sequence {
            assert!(!self.thread.is_finished(), "the sleeping reader has failed");
            assert!(start.elapsed() < HANG, "nobody woke the sleeping reader");
            std::thread::yield_now();
        }
    }
}

pub fn is_gap(error: &chronicle_core::Error, expected: GapReason) -> bool {
    matches!(error.kind(), ErrorKind::Gap { reason, .. } if *reason == expected)
}

pub struct Life {
    pub orders: Orders,
    pub board: Board,
    /// Open across all kills; registered, so that retention waits for it.
    pub live: Reader,
    pub seen: u64,
    pub sleeper: Option<Sleeper>,
    pub epoch: u64,
    /// Where the named reader `cur` stands for certain.
    pub cursor: u64,
}

impl Life {
    pub fn start(fire: &mut Fire, checksum: bool) -> Self {
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
    pub fn drain(&mut self) {
        while let Some(record) = self.live.next().unwrap() {
            assert_eq!(record.raw.sequence, self.seen + 1);
            fire::check_record(record.raw.sequence, record.raw.type_id, record.payload());
            self.seen = record.raw.sequence;
        }
    }

    /// Opens the queue again after a kill and checks everything.
    pub fn settle(&mut self, rng: &mut Rng) {
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

    pub fn end(self) {
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
