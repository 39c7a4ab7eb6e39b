//! The child: opens, creates, reads or writes a queue as it was told, until somebody kills it.

use crate::board::{Board, Word};
use crate::fire::{self, Rng, SEGMENT_BYTES, payload, timestamp};
use crate::life::is_gap;
use chronicle_core::queue::provision::Chores;
use chronicle_core::queue::retention;
use chronicle_core::queue::writer::MixedBatch;
use chronicle_core::{GapReason, Options, Provisioner, Reader, RetentionPolicy, Start, Writer};
use std::path::{Path, PathBuf};
use std::time::Duration;

const POLICY: RetentionPolicy =
    RetentionPolicy { bytes_max: Some(5 * SEGMENT_BYTES), age_ns_max: None };

/// What a child is to do; travels in the environment.
#[derive(Clone, Debug)]
pub struct Orders {
    pub mode: &'static str,
    pub queue: PathBuf,
    pub seed: u64,
    pub operations: u64,
    pub checksum: bool,
    pub provisioned: bool,
    /// Lets sleepers fall asleep before each operation.
    pub pauses: bool,
    pub reader: String,
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

pub fn child(mode: &str) {
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

pub fn options(checksum: bool) -> Options {
    Options { segment_bytes: SEGMENT_BYTES, checksum, segments_max: 4096, ..Options::default() }
}

fn child_open(queue: &Path, options: &Options, board: &Board) {
    let writer = Writer::open(queue, options).unwrap();
    report(board, &writer);
}

pub fn report(board: &Board, writer: &Writer) {
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

pub fn append(writer: &mut Writer, len: usize) {
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
