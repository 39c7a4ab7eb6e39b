//! Everything that opens a queue, let loose on a damaged one.

use crate::damage::*;
use crate::fixture::*;
use chronicle_core::layout::*;
use chronicle_core::queue::dir::QueueDir;
use chronicle_core::queue::writer::MixedBatch;
use chronicle_core::queue::{cursor, inspect, retention};
use chronicle_core::{Error, ErrorKind, FanIn, MergeMode, Reader, RetentionPolicy, Start, Writer};

/// More than all records that could stand in all segments of a fixture, with room for repeated
/// errors.
const STEPS_MAX: u64 = 16 * (SEGMENT_BYTES / RECORD_HEADER_BYTES) as u64;

/// What a run met, so that the test can show that it did not only meet errors.
#[derive(Default)]
pub struct Met {
    pub records: u64,
    pub gaps: u64,
    pub errors: u64,
    pub opened: u64,
    pub appended: u64,
}

/// Every error is one that a user can act on.
pub fn note(met: &mut Met, error: &Error) {
    met.errors += 1;
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() < 10_000, "{text}");
}

/// Checks one delivered record against the sequence before it, and against what was written if the
/// queue can vouch for it.
pub fn check_record(
    fixture: &Fixture,
    reader: &Reader,
    sequence: u64,
    payload: &[u8],
    type_id: u16,
) {
    let vouched = fixture.checksum && reader.queue().has_checksums() && !fixture.rewritten.get();
    if vouched && sequence < fixture.sequence_end {
        assert_eq!(payload, payload_of(sequence), "sequence {sequence}");
        assert_eq!(type_id, type_of(sequence));
    }
    // Touch every byte: the guard sees what is out of range.
    std::hint::black_box(payload.iter().fold(0_u8, |sum, b| sum ^ b));
}

/// Reads on until the end or an error that stays.
pub fn read_all(fixture: &Fixture, reader: &mut Reader, met: &mut Met, by_runs: bool) {
    let mut last: Option<u64> = None;
    for step in 0.. {
        assert!(step < STEPS_MAX, "the reader does not come to an end");
        let next = if by_runs {
            reader.next_run(7).map(|run| {
                run.map(|run| {
                    let end = run.offset + run.count * run.stride;
                    assert!(run.count >= 1 && end <= run.segment.geometry.segment_bytes());
                    (run.first_sequence, run.first_sequence.wrapping_add(run.count as u64 - 1))
                })
            })
        } else {
            reader.next().map(|record| {
                record.map(|r| (r.raw.sequence, r.payload().to_vec(), r.raw.type_id)).map(
                    |(sequence, payload, type_id)| {
                        CHECK.with(|c| c.replace(Some((payload, type_id))));
                        (sequence, sequence)
                    },
                )
            })
        };
        match next {
            Ok(Some((first, through))) => {
                if let Some(last) = last {
                    assert_eq!(first, last.wrapping_add(1), "a hole that nobody reported");
                }
                if let Some((payload, type_id)) = CHECK.with(std::cell::RefCell::take) {
                    check_record(fixture, reader, first, &payload, type_id);
                }
                last = Some(through);
                met.records += 1;
            }
            Ok(None) => return,
            Err(error) => {
                note(met, &error);
                if !matches!(error.kind(), ErrorKind::Gap { .. }) {
                    // It stays: nothing is skipped by asking again.
                    assert!(reader.next().is_err());
                    return;
                }
                met.gaps += 1;
                last = None;
            }
        }
    }
}

thread_local! {
    /// The payload just delivered: the borrow of the reader ends before it is checked.
    static CHECK: std::cell::RefCell<Option<(Vec<u8>, u16)>> = const { std::cell::RefCell::new(None) };
}

pub fn starts(fixture: &Fixture, rng: &mut Rng) -> Vec<Start> {
    let sequence = 1 + rng.next() % (fixture.sequence_end + 2);
    vec![
        Start::Resume,
        Start::Earliest,
        Start::Latest,
        Start::Sequence(sequence),
        Start::Sequence(rng.pick(&EDGES)),
        Start::Time(timestamp_of(sequence)),
        Start::Time(rng.pick(&EDGES)),
    ]
}

pub fn use_reader(fixture: &Fixture, rng: &mut Rng, met: &mut Met) {
    let starts = starts(fixture, rng);
    let name = rng.pick(&[Some("r"), Some("r"), Some("new"), None]);
    let first = rng.below(starts.len());
    let mut opened = None;
    for i in 0..starts.len() {
        match Reader::open(&fixture.root, name, starts[(first + i) % starts.len()]) {
            Ok(reader) => {
                opened = Some(reader);
                break;
            }
            Err(error) => note(met, &error),
        }
    }
    let Some(mut reader) = opened else { return };
    met.opened += 1;
    read_all(fixture, &mut reader, met, rng.one_in(4));
    reader.commit();
    for _ in 0..3 {
        let start = rng.pick(&starts);
        match reader.seek(start) {
            Ok(()) => {
                let _ = reader.wait_target().is_ready();
                look_at_first(fixture, &mut reader, start, met);
            }
            Err(error) => note(met, &error),
        }
    }
    if rng.one_in(3) && reader.seek(Start::Earliest).is_ok() {
        read_all(fixture, &mut reader, met, rng.one_in(4));
    }
    reader.commit();
}

/// After a seek by sequence the record is that one, or there is an error, or it is yet to be
/// written.
pub fn look_at_first(fixture: &Fixture, reader: &mut Reader, start: Start, met: &mut Met) {
    let expected = reader.next_sequence();
    match reader.next() {
        Ok(Some(record)) => {
            let sequence = record.raw.sequence;
            let (payload, type_id) = (record.payload().to_vec(), record.raw.type_id);
            assert_eq!(sequence, expected);
            if let Start::Sequence(wanted) = start {
                assert_eq!(sequence, wanted.max(1));
            }
            check_record(fixture, reader, sequence, &payload, type_id);
            met.records += 1;
        }
        Ok(None) => {}
        Err(error) => note(met, &error),
    }
}

pub fn use_fan_in(fixture: &Fixture, other: &Fixture, rng: &mut Rng, met: &mut Met) {
    let mut fan = FanIn::new(rng.pick(&[MergeMode::Live, MergeMode::Strict]));
    for (root, name) in [(&fixture.root, Some("r")), (&other.root, None), (&fixture.root, None)] {
        match Reader::open(root, name, rng.pick(&[Start::Earliest, Start::Resume])) {
            Ok(reader) => drop(fan.add(reader)),
            Err(error) => note(met, &error),
        }
    }
    let mut last = [None; 3];
    let mut errors = [0; 3];
    for step in 0.. {
        assert!(step < 4 * STEPS_MAX, "the fan-in does not come to an end");
        match fan.next() {
            Ok(Some((source, record))) => {
                if let Some(last) = last[source] {
                    assert_eq!(record.raw.sequence, last + 1_u64, "a hole that nobody reported");
                }
                last[source] = Some(record.raw.sequence);
                std::hint::black_box(record.payload().iter().fold(0_u8, |sum, b| sum ^ b));
                met.records += 1;
            }
            Ok(None) => break,
            Err((source, error)) => {
                note(met, &error);
                last[source] = None;
                errors[source] += 1;
                if errors[source] > 3 {
                    fan.remove(source);
                }
            }
        }
    }
    fan.commit();
    let wait = chronicle_core::wait::WaitStrategy::Spin;
    if let Err(error) = fan.wait(wait, Some(std::time::Duration::ZERO)) {
        note(met, &error);
    }
}

pub fn use_tools(fixture: &Fixture, rng: &mut Rng, met: &mut Met) {
    match inspect::info(&fixture.root) {
        Ok(info) => assert!(info.segments.len() < 100),
        Err(error) => note(met, &error),
    }
    let mut calls = 0;
    let verified = inspect::verify(&fixture.root, |done, of| {
        assert!(done < of);
        calls += 1;
        assert!(calls < 10_000, "verify does not come to an end");
    });
    match verified {
        Ok(report) => assert!(report.damage.len() < 100, "{}", report.damage.len()),
        Err(error) => note(met, &error),
    }
    match QueueDir::open(&fixture.root, true) {
        Ok(queue) => {
            let live = rng.one_in(2).then(|| Reader::open(&fixture.root, Some("r"), Start::Resume));
            let policy = RetentionPolicy {
                bytes_max: rng.pick(&[None, Some(0), Some(1 << 17), Some(u64::MAX)]),
                age_ns_max: rng.pick(&[None, Some(0), Some(1), Some(u64::MAX)]),
            };
            if let Err(error) = retention::apply(&queue, &policy) {
                note(met, &error);
            }
            drop(live);
            if let Err(error) = cursor::remove(&queue, "other") {
                note(met, &error);
            }
        }
        Err(error) => note(met, &error),
    }
}

pub fn use_writer(fixture: &Fixture, rng: &mut Rng, met: &mut Met) {
    let mut writer = match Writer::open(&fixture.root, &options(fixture.checksum)) {
        Ok(writer) => writer,
        Err(error) => return note(met, &error),
    };
    let mut reader =
        match Reader::open(&fixture.root, None, Start::Sequence(writer.next_sequence())) {
            Ok(reader) => Some(reader),
            Err(error) => {
                note(met, &error);
                None
            }
        };
    let first = writer.next_sequence();
    for _ in 0..1 + rng.below(24) {
        if let Err(error) = append_something(&mut writer, rng) {
            note(met, &error);
            break;
        }
    }
    if rng.one_in(4)
        && let Err(error) = writer.flush()
    {
        note(met, &error);
    }
    met.appended += writer.next_sequence().wrapping_sub(first);
    let Some(reader) = &mut reader else { return };
    let mut expected = first;
    loop {
        match reader.next() {
            Ok(Some(record)) => {
                assert_eq!(record.raw.sequence, expected, "what was appended is read back");
                expected += 1;
            }
            Ok(None) => {
                assert_eq!(expected, writer.next_sequence(), "what was appended is read back");
                return;
            }
            Err(error) => return note(met, &error),
        }
    }
}

pub fn append_something(writer: &mut Writer, rng: &mut Rng) -> Result<(), Error> {
    let buffer = [0xA5_u8; 8192];
    match rng.below(4) {
        0 => {
            let len = rng.pick(&[0, 1, 8, 100, 8000, GEOMETRY.payload_bytes_max(), 70_000]);
            writer.append(1, &vec![0x5A; len], None).map(drop).or_else(|error| match error.kind() {
                ErrorKind::TooLarge { .. } => Ok(()),
                _ => Err(error),
            })
        }
        1 => writer.append_many(2, &buffer, rng.pick(&[8, 64, 4096]), Some(rng.next())).map(drop),
        2 => writer
            .append_mixed(MixedBatch {
                buffer: &buffer,
                offsets: &[0, 8, 8000],
                lengths: &[8, 7000, 0],
                type_ids: &[1, 2, 3],
                timestamps_ns: &[],
            })
            .map(drop),
        _ => writer.append(3, &buffer[..rng.below(4000)], Some(rng.next())).map(drop),
    }
}

/// One mutation: damage, use, mend.
pub fn run_one(fixtures: &mut [Fixture; 2], seed: u64, number: u64, met: &mut Met) {
    let mut rng = Rng::of(seed, number);
    let which = rng.below(2);
    let (fixture, other) = (&fixtures[which], &fixtures[1 - which]);
    damage(fixture, &mut rng);
    fixture.rewritten.set(false);
    use_reader(fixture, &mut rng, met);
    if rng.one_in(5) {
        use_fan_in(fixture, other, &mut rng, met);
    }
    if rng.one_in(4) {
        use_tools(fixture, &mut rng, met);
    }
    if rng.one_in(3) {
        use_writer(fixture, &mut rng, met);
        fixture.rewritten.set(true);
        if rng.one_in(4) {
            // What the writer has made of it is hostile, too.
            use_reader(fixture, &mut rng, met);
        }
    }
    fixtures[which].mend();
}
