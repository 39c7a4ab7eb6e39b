//! Looking at a queue without touching it: what tools and `doctor` show.

use crate::error::Result;
use crate::layout::*;
use crate::os::fs;
use crate::queue::cursor::{self, CursorInfo};
use crate::queue::dir::{LOCK_BYTE_WRITER, LOCK_FILE, QueueDir};
use crate::queue::segment::{self, Segment, Slot};
use crate::sync::{Arc, Ordering};
use std::path::Path;

#[derive(Clone, Debug)]
pub struct QueueInfo {
    pub identity: Identity,
    pub epoch: u64,
    pub writer_live: bool,
    pub writer_pid: u32,
    pub opened_ns: u64,
    pub floor_segment: u64,
    pub tail_segment: u64,
    pub durable_sequence: u64,
    pub durable_position: u64,
    pub rolls: u64,
    pub rolls_inline: u64,
    pub recoveries: u64,
    pub cuts: u64,
    pub cut_bytes: u64,
    pub segments_deleted: u64,
    pub segments: Vec<SegmentInfo>,
    pub readers: Vec<std::result::Result<CursorInfo, (String, String)>>,
    /// Files that are neither segments nor being built: what recovery has set aside.
    pub set_aside: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct SegmentInfo {
    pub index: u64,
    pub first_sequence: u64,
    pub sealed: bool,
    pub timestamp_max: u64,
    pub data_bytes: u64,
    /// Why the file cannot be read.
    pub error: Option<String>,
}

/// Everything that can be said without reading records.
pub fn info(path: &Path) -> Result<QueueInfo> {
    let queue = QueueDir::open(path, false)?;
    let control = queue.control();
    let lock = queue.root.open_file(LOCK_FILE, false)?;
    let writer_live = fs::is_locked(&lock, LOCK_BYTE_WRITER)
        .map_err(|e| crate::Error::io("look at", queue.root.join(LOCK_FILE), e))?;
    // Relaxed: each of these is a counter or a hint on its own.
    let load = |word: &crate::sync::AtomicU64| word.load(Ordering::Relaxed);
    let readers = cursor::names(&queue)?
        .into_iter()
        .map(|name| cursor::inspect(&queue, &name).map_err(|e| (name, e.to_string())))
        .collect();
    let mut set_aside = Vec::new();
    let mut indices = Vec::new();
    for name in queue.segments.list()? {
        match segment::index_of(&name) {
            Some(index) => indices.push(index),
            None if name.ends_with(".cut") => set_aside.push(name),
            None => {}
        }
    }
    indices.sort_unstable();
    set_aside.sort_unstable();
    Ok(QueueInfo {
        identity: queue.identity,
        epoch: load(&control.epoch),
        writer_live,
        writer_pid: queue.writer_pid(),
        opened_ns: load(&control.opened_ns),
        floor_segment: queue.floor_segment(),
        tail_segment: queue.tail_segment(),
        durable_sequence: load(&control.durable_sequence),
        durable_position: load(&control.durable_position),
        rolls: load(&control.rolls),
        rolls_inline: load(&control.rolls_inline),
        recoveries: load(&control.recoveries),
        cuts: load(&control.cuts),
        cut_bytes: load(&control.cut_bytes),
        segments_deleted: load(&control.segments_deleted),
        segments: indices.into_iter().map(|index| segment_info(&queue, index)).collect(),
        readers,
        set_aside,
    })
}

fn segment_info(queue: &QueueDir, index: u64) -> SegmentInfo {
    let mut info = SegmentInfo {
        index,
        first_sequence: 0,
        sealed: false,
        timestamp_max: 0,
        data_bytes: 0,
        error: None,
    };
    match Segment::open(queue, index, false) {
        Ok(segment) => info.first_sequence = segment.first_sequence(),
        Err(e) => info.error = Some(e.to_string()),
    }
    if let Some(entry) = queue.table_entry(index) {
        let end = entry.end_offset.load(Ordering::Acquire);
        info.sealed = end != 0;
        // Relaxed: published by `end_offset`.
        info.timestamp_max = entry.timestamp_max.load(Ordering::Relaxed);
        info.data_bytes = end.saturating_sub(queue.geometry.data_offset() as u64);
    }
    info
}

/// What reading every record of a queue has found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    pub records: u64,
    pub first_sequence: u64,
    pub next_sequence: u64,
    pub payload_bytes: u64,
    pub timestamp_first: u64,
    pub timestamp_max: u64,
    /// Position and reason of each stretch that cannot be read; several missing segments in a row
    /// are one. Reading goes on in the next segment that exists.
    pub damage: Vec<(u64, String)>,
}

/// Reads every record, checksums included. Takes as long as reading the files does. `progress` is
/// told how many of how many segments are done.
pub fn verify(path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<VerifyReport> {
    let queue = Arc::new(QueueDir::open(path, false)?);
    let (floor, tail) = (queue.floor_segment(), queue.tail_segment());
    let mut report = VerifyReport::default();
    let mut expected = 0;
    if floor > tail {
        let why = format!("the oldest segment is said to be {floor}, the newest {tail}");
        report.damage.push((0, why));
    }
    // By the files, not by counting: a damaged tail may be any number.
    let mut present: Vec<u64> = queue
        .segments
        .list()?
        .iter()
        .filter_map(|name| segment::index_of(name))
        .filter(|index| (floor..=tail).contains(index))
        .collect();
    present.sort_unstable();
    let mut due = floor;
    for (done, &index) in present.iter().enumerate() {
        progress(done as u64, present.len() as u64);
        if note_missing(&queue, due, index, &mut report) {
            expected = 0;
        }
        due = index.saturating_add(1);
        let segment = match Segment::open(&queue, index, false) {
            Ok(segment) => segment,
            Err(e) if e.is_not_found() && index < queue.floor_segment() => continue,
            Err(e) => {
                report.damage.push((queue.geometry.position(index, 0), e.to_string()));
                expected = 0;
                continue;
            }
        };
        expected = verify_segment(&queue, &segment, expected, index == tail, &mut report);
    }
    note_missing(&queue, due, tail.saturating_add(1), &mut report);
    report.next_sequence = expected.max(1);
    Ok(report)
}

/// Notes that the segments from `due` to before `index` are missing, if that is not retention's
/// doing.
fn note_missing(queue: &QueueDir, due: u64, index: u64, report: &mut VerifyReport) -> bool {
    let due = due.max(queue.floor_segment());
    if due >= index {
        return false;
    }
    let why = format!("the files of segments {due} to {} are missing", index - 1);
    report.damage.push((queue.geometry.position(due, 0), why));
    true
}

/// Whether a segment without a roll marker is one that the writer is leaving just now, or was about
/// to leave when it died: the tail hint is stored before the marker.
fn is_being_left(queue: &QueueDir, segment: &Segment, sequence: u64) -> bool {
    Segment::open(queue, segment.index + 1, false)
        .is_ok_and(|next| next.index == queue.tail_segment() && next.first_sequence() == sequence)
}

/// Returns the sequence number expected next; 0 if damage has hidden it.
fn verify_segment(
    queue: &QueueDir,
    segment: &Segment,
    expected: u64,
    is_tail: bool,
    report: &mut VerifyReport,
) -> u64 {
    let first = segment.first_sequence();
    let at = |offset| queue.geometry.position(segment.index, offset);
    if expected != 0 && first != expected {
        report
            .damage
            .push((at(0), format!("segment starts with sequence={first} expected={expected}")));
    }
    let mut sequence = first;
    let mut offset = queue.geometry.data_offset();
    loop {
        let why = match segment.slot(offset) {
            Slot::Empty if is_tail || is_being_left(queue, segment, sequence) => return sequence,
            Slot::Empty => "records end without a roll marker".to_owned(),
            Slot::Roll => return sequence,
            Slot::Bad(commit) => format!("commit word {commit:#x} does not fit the segment"),
            Slot::Record(r) if r.sequence != sequence => {
                format!("sequence={} expected={sequence}", r.sequence)
            }
            Slot::Record(r) if r.flags & !FLAGS_KNOWN != 0 => {
                format!("unknown flags {:#x}", r.flags)
            }
            Slot::Record(r)
                if queue.has_checksums() && (r.flags & FLAG_CRC == 0 || !segment.crc_holds(&r)) =>
            {
                format!("checksum of sequence={sequence} does not hold")
            }
            Slot::Record(r) => {
                if report.records == 0 {
                    report.first_sequence = sequence;
                    report.timestamp_first = r.timestamp_ns;
                }
                report.records += 1;
                report.payload_bytes += r.len as u64;
                report.timestamp_max = report.timestamp_max.max(r.timestamp_ns);
                sequence += 1;
                offset = r.end();
                continue;
            }
        };
        report.damage.push((at(offset), why));
        return 0;
    }
}
