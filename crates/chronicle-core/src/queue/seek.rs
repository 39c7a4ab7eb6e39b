//! Finding a place: by sequence number, by time, at either end.
//!
//! The segment is found in the segment table, the block in the segment's sparse index, the record
//! by walking one block. Table and index are read like everything else: what they say is checked
//! against the records they point at.

use crate::error::{ErrorKind, GapReason, Result};
use crate::layout::*;
use crate::queue::dir::QueueDir;
use crate::queue::options::Start;
use crate::queue::segment::{RawRecord, Segment, Slot};
use crate::sync::{Arc, Ordering};

/// A place between two records.
pub struct Place {
    pub segment: Arc<Segment>,
    pub offset: usize,
    /// The sequence number to expect there. Lower than that of the record that stands there if
    /// `gap` is set.
    pub sequence: u64,
    pub gap: Option<GapReason>,
}

impl Place {
    pub fn position(&self) -> u64 {
        self.segment.geometry.position(self.segment.index, self.offset)
    }
}

/// Finds a place.
///
/// # Errors
/// `SequenceNotWritten` for a sequence number beyond the next one; `Corrupt` where table or index
/// contradict the records.
pub fn find(queue: &QueueDir, start: Start) -> Result<Place> {
    match start {
        Start::Latest => tail(queue),
        Start::Resume | Start::Earliest => by_sequence(queue, 1),
        Start::Sequence(sequence) => by_sequence(queue, sequence.max(1)),
        Start::Time(timestamp_ns) => by_time(queue, timestamp_ns),
    }
}

/// Opens the oldest segment. Retention may delete it while we look; then the next one is tried.
pub fn open_floor(queue: &QueueDir) -> Result<Arc<Segment>> {
    loop {
        let floor = queue.floor_segment();
        match Segment::open(queue, floor, false) {
            Err(e) if e.is_not_found() => vanished(queue, floor)?,
            other => return other,
        }
    }
}

/// A segment that is gone is an error, unless retention has raised the floor above it.
fn vanished(queue: &QueueDir, index: u64) -> Result<()> {
    if queue.floor_segment() > index {
        return Ok(());
    }
    if queue.is_removed() {
        return Err(ErrorKind::QueueRemoved { path: queue.display() }.into());
    }
    if index == 0 && queue.control().epoch.load(Ordering::Acquire) == 0 {
        let why = "its first writer has not finished creating it".to_owned();
        return Err(ErrorKind::NotAQueue { path: queue.display(), why }.into());
    }
    Err(ErrorKind::SegmentMissing { path: queue.display(), index }.into())
}

fn by_sequence(queue: &QueueDir, sequence: u64) -> Result<Place> {
    loop {
        let floor = queue.floor_segment();
        let index = segment_of_sequence(queue, floor, sequence);
        let segment = match Segment::open(queue, index, false) {
            Err(e) if e.is_not_found() => {
                vanished(queue, index)?;
                continue;
            }
            other => other?,
        };
        let first = segment.first_sequence();
        if first == 0 {
            // The writer is about to enter (a fresh queue), or died before it did.
            return not_entered(queue, segment, sequence);
        }
        if sequence < first {
            if index != floor {
                let why = format!(
                    "table says that segment {index} holds sequence {sequence}, it starts with {first}"
                );
                return Err(queue.corrupt(queue.geometry.position(index, 0), why));
            }
            let offset = queue.geometry.data_offset();
            return Ok(Place { segment, offset, sequence, gap: Some(GapReason::Retention) });
        }
        let walked = walk_to(
            queue,
            segment,
            |r| r.sequence >= sequence,
            |e| e.sequence <= sequence,
            |next| {
                if sequence <= next {
                    return Ok(());
                }
                let path = queue.display();
                Err(ErrorKind::SequenceNotWritten { path, sequence, next }.into())
            },
        )?;
        if let Some(place) = walked {
            return Ok(place);
        }
    }
}

fn not_entered(queue: &QueueDir, segment: Arc<Segment>, sequence: u64) -> Result<Place> {
    if segment.index != 0 {
        // A segment becomes floor or tail only after the writer has entered it.
        let why =
            format!("segment {} holds nothing, but the control block leads there", segment.index);
        return Err(queue.corrupt(queue.geometry.position(segment.index, 0), why));
    }
    if sequence > 1 {
        let next = 1;
        return Err(ErrorKind::SequenceNotWritten { path: queue.display(), sequence, next }.into());
    }
    let offset = queue.geometry.data_offset();
    Ok(Place { segment, offset, sequence: 1, gap: None })
}

/// The last segment, from `floor` on, that starts at or before `sequence`.
fn segment_of_sequence(queue: &QueueDir, floor: u64, sequence: u64) -> u64 {
    let (mut low, mut high) = (floor, queue.tail_segment().max(floor));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let starts_before = queue.table_entry(middle).is_some_and(|entry| {
            // Relaxed: published by the entry's index.
            entry.first_sequence.load(Ordering::Relaxed) <= sequence
        });
        if starts_before {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

/// The first record, in sequence order, whose timestamp is at least `timestamp_ns`; the end if
/// there is none.
fn by_time(queue: &QueueDir, timestamp_ns: u64) -> Result<Place> {
    let mut index = queue.floor_segment();
    loop {
        let tail = queue.tail_segment();
        while index < tail && is_before(queue, index, timestamp_ns) {
            index += 1;
        }
        let segment = match Segment::open(queue, index, false) {
            Err(e) if e.is_not_found() => {
                vanished(queue, index)?;
                index = index.max(queue.floor_segment());
                continue;
            }
            other => other?,
        };
        if segment.first_sequence() == 0 {
            return not_entered(queue, segment, 1);
        }
        let walked = walk_to(
            queue,
            segment,
            |r| r.timestamp_ns >= timestamp_ns,
            |e| e.timestamp_max < timestamp_ns,
            |_| Ok(()),
        )?;
        if let Some(place) = walked {
            return Ok(place);
        }
        index = index.max(queue.floor_segment());
    }
}

/// Whether all messages of a sealed segment are older.
fn is_before(queue: &QueueDir, index: u64, timestamp_ns: u64) -> bool {
    queue.table_entry(index).is_some_and(|entry| {
        let sealed = entry.end_offset.load(Ordering::Acquire) != 0;
        // Relaxed: published by `end_offset`.
        sealed && entry.timestamp_max.load(Ordering::Relaxed) < timestamp_ns
    })
}

/// The end of the queue: where the next message will stand.
pub fn tail(queue: &QueueDir) -> Result<Place> {
    loop {
        let index = queue.tail_segment().max(queue.floor_segment());
        let segment = match Segment::open(queue, index, false) {
            Err(e) if e.is_not_found() => {
                vanished(queue, index)?;
                continue;
            }
            other => other?,
        };
        if segment.first_sequence() == 0 {
            return not_entered(queue, segment, 1);
        }
        if let Some(place) = walk_to(queue, segment, |_| false, |_| true, |_| Ok(()))? {
            return Ok(place);
        }
    }
}

/// What an index entry says.
pub struct EntryView {
    pub offset: usize,
    pub sequence: u64,
    pub timestamp_max: u64,
}

/// The entry of a block; `None` if it is not there or cannot be true.
fn entry(segment: &Segment, block: usize) -> Option<EntryView> {
    let entry = segment.index_entry(block);
    // Acquire: pairs with the Release in `write_index`.
    let offset = entry.offset.load(Ordering::Acquire) as usize;
    let geometry = segment.geometry;
    // The record starts in or after the block: an entry that points backwards would repeat or hide
    // messages.
    let first = geometry.data_offset().max(block * INDEX_BLOCK_BYTES);
    let plausible =
        offset.is_multiple_of(RECORD_ALIGN) && (first..geometry.data_limit()).contains(&offset);
    plausible.then(|| EntryView {
        offset,
        // Relaxed: published by `offset`.
        sequence: entry.sequence.load(Ordering::Relaxed),
        // Relaxed: published by `offset`.
        timestamp_max: entry.timestamp_max.load(Ordering::Relaxed),
    })
}

/// The record that an index entry points at, checked against it.
pub fn entry_record(queue: &QueueDir, segment: &Segment, block: usize) -> Result<RawRecord> {
    let found = entry(segment, block).and_then(|e| match segment.slot(e.offset) {
        Slot::Record(record) if record.sequence == e.sequence => {
            segment.may_hold(record.sequence).then_some(record)
        }
        _ => None,
    });
    found.ok_or_else(|| {
        let position = queue.geometry.position(segment.index, block * INDEX_BLOCK_BYTES);
        queue.corrupt(position, format!("index entry {block} points at no record"))
    })
}

/// The last block whose entry satisfies `before`, which holds for a prefix of the entries.
fn last_entry(segment: &Segment, before: impl Fn(&EntryView) -> bool) -> Option<usize> {
    let (mut low, mut high) = (0, segment.geometry.index_entries());
    // Invariant: entries below `low` satisfy, entries from `high` on do not (or are missing).
    while low < high {
        let middle = (low + high) / 2;
        if entry(segment, middle).is_some_and(|e| before(&e)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low.checked_sub(1)
}

/// Whether a later segment is being written although this one has no roll marker: a reader would
/// wait here for ever. The writer stores the tail hint just before the marker, so one segment ahead
/// says nothing; and it may have gone on since we looked at the slot, so that is looked at again.
fn is_cut_short(queue: &QueueDir, segment: &Segment, offset: usize) -> bool {
    segment.index + 1 < queue.tail_segment() && segment.slot(offset) == Slot::Empty
}

/// Walks from the last index entry that satisfies `before` to the first record that satisfies
/// `found`, into later segments if it must; at the end asks `at_end` whether the end will do.
/// `None` if retention was faster: then the search starts anew.
///
/// Comes to an end whatever the files hold: offsets grow within a segment, and each further segment
/// has a higher index.
fn walk_to(
    queue: &QueueDir,
    mut segment: Arc<Segment>,
    found: impl Fn(&RawRecord) -> bool,
    before: impl Fn(&EntryView) -> bool,
    at_end: impl Fn(u64) -> Result<()>,
) -> Result<Option<Place>> {
    let geometry = segment.geometry;
    let (mut offset, mut sequence) = match last_entry(&segment, before) {
        Some(block) => {
            let record = entry_record(queue, &segment, block)?;
            (record.offset, record.sequence)
        }
        None => (geometry.data_offset(), segment.first_sequence()),
    };
    loop {
        let bad = |why: String| queue.corrupt(geometry.position(segment.index, offset), why);
        match segment.slot(offset) {
            Slot::Empty if is_cut_short(queue, &segment, offset) => {
                return Err(bad("records end without a roll marker, but the queue goes on".into()));
            }
            Slot::Empty => {
                at_end(sequence)?;
                return Ok(Some(Place { segment, offset, sequence, gap: None }));
            }
            Slot::Record(record) if record.sequence != sequence => {
                return Err(bad(format!("sequence={} expected={sequence}", record.sequence)));
            }
            Slot::Record(record) if found(&record) => {
                return Ok(Some(Place { segment, offset, sequence, gap: None }));
            }
            Slot::Record(record) => {
                offset = record.end();
                sequence += 1;
            }
            Slot::Bad(commit) => {
                return Err(bad(format!("commit word {commit:#x} does not fit the segment")));
            }
            Slot::Roll => {
                let index = segment.index + 1;
                let next = match Segment::open(queue, index, false) {
                    Err(e) if e.is_not_found() => return vanished(queue, index).map(|()| None),
                    other => other?,
                };
                if next.first_sequence() != sequence {
                    return Err(bad(format!(
                        "segment {} starts with {}, expected {sequence}",
                        next.index,
                        next.first_sequence()
                    )));
                }
                segment = next;
                offset = geometry.data_offset();
            }
        }
    }
}
