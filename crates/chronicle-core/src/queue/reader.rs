//! A reader: maps segments read-only, trusts no byte, and never loses a message silently.
//!
//! `next` is one Acquire load and a few comparisons; it makes no system call and touches no heap,
//! rolls included if a provisioner is attached.
//!
//! Where that provisioner is late, a reader opens the next segment itself. A *patient* reader, as
//! hot threads have them, says "nothing yet" instead, until the provisioner has it.

use crate::error::{Error, ErrorKind, GapReason, Result};
use crate::layout::*;
use crate::os::futex::WaitWord;
use crate::os::process;
use crate::protocol::Strong;
use crate::queue::cursor::Cursor;
use crate::queue::dir::{QueueDir, may_not_write};
use crate::queue::options::Start;
use crate::queue::provision::Endpoint;
use crate::queue::seek::{self, Place};
use crate::queue::segment::{RawRecord, Segment, Slot, slot_at};
use crate::sync::{Arc, prefetch_read};
use crate::wait::WaitTarget;
use std::path::Path;

/// A committed record, in place. Valid until the reader is used again.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    pub raw: RawRecord,
    segment: &'a Arc<Segment>,
}

impl<'a> Record<'a> {
    pub(crate) fn new(raw: RawRecord, segment: &'a Arc<Segment>) -> Self {
        Self { raw, segment }
    }

    #[inline(always)]
    pub fn payload(&self) -> &'a [u8] {
        // SAFETY: `RawRecord`s come from `slot_at` of this segment, which checked the length.
        unsafe {
            std::slice::from_raw_parts(
                self.segment.base().add(self.raw.offset + RECORD_HEADER_BYTES),
                self.raw.len,
            )
        }
    }

    /// The segment that the payload lives in: hold a clone of it to keep the bytes mapped.
    #[inline(always)]
    pub fn segment(&self) -> &'a Arc<Segment> {
        self.segment
    }
}

/// A run of records of one type and size, evenly spaced in one segment.
#[derive(Clone)]
pub struct RecordRun {
    pub segment: Arc<Segment>,
    /// Of the first record's header.
    pub offset: usize,
    pub count: usize,
    pub stride: usize,
    pub payload_bytes: usize,
    pub type_id: u16,
    pub first_sequence: u64,
}

/// How far ahead of itself [`Reader::next_run`] asks for lines: what a CPU does by itself ends with
/// each page.
const RUN_AHEAD_BYTES: usize = 2048;

/// One reader of one queue. `Send`, not `Sync`: one thread at a time.
///
/// In this order: what `next` touches stands in one line.
#[repr(C)]
pub struct Reader {
    base: *const u8,
    offset: usize,
    /// Expected of the next record.
    sequence: u64,
    geometry: Geometry,
    verify: bool,
    /// Waits for its provisioner at a roll instead of making system calls.
    patient: bool,
    /// Set where messages before the next record may be missing for a known reason.
    gap: Option<GapReason>,
    gaps: u64,
    segment: Arc<Segment>,
    queue: Arc<QueueDir>,
    endpoint: Arc<Endpoint>,
    cursor: Option<Cursor>,
    fork_generation: u64,
    name: String,
}

// SAFETY: the raw base pointer belongs to `segment`, which moves along; nothing is tied to a
// thread.
unsafe impl Send for Reader {}

impl Reader {
    /// Opens a reader of a queue that exists. With a name it is registered: it has a cursor, and
    /// while it lives retention waits for it. Where the queue cannot be written to (a read-only
    /// mount), or without a name, it is not.
    ///
    /// # Errors
    /// `NotAQueue`, `Format`; `ReaderActive`; `SequenceNotWritten` for a start beyond the end.
    pub fn open(path: &Path, name: Option<&str>, start: Start) -> Result<Self> {
        let queue = Arc::new(open_queue(path)?);
        let cursor = match name {
            Some(name) => open_cursor(&queue, name)?,
            None => None,
        };
        let place = start_place(&queue, cursor.as_ref(), start)?;
        Ok(Self {
            base: place.segment.base(),
            offset: place.offset,
            geometry: queue.geometry,
            sequence: place.sequence,
            verify: queue.has_checksums(),
            patient: false,
            gap: place.gap,
            gaps: 0,
            endpoint: Arc::new(Endpoint::new(Arc::clone(&queue), false, place.segment.index + 1)),
            segment: place.segment,
            queue,
            cursor,
            fork_generation: process::fork_generation(),
            name: name.unwrap_or("<unregistered>").to_owned(),
        })
    }

    /// The next record, or `None` if there is none yet. Never waits.
    ///
    /// # Errors
    /// `Gap` once for each stretch of missing messages, then reading goes on behind it. `Corrupt`
    /// for a record that cannot be true; the reader stays there until it seeks.
    #[inline(always)]
    #[allow(clippy::should_implement_trait)] // An iterator cannot lend records.
    pub fn next(&mut self) -> Result<Option<Record<'_>>> {
        match self.peek()? {
            Some(raw) => {
                self.advance(&raw);
                Ok(Some(Record { raw, segment: &self.segment }))
            }
            None => Ok(None),
        }
    }

    /// The next record without moving past it. It stands in [`Reader::segment`].
    #[inline(always)]
    pub fn peek(&mut self) -> Result<Option<RawRecord>> {
        loop {
            // SAFETY: the base is our mapped segment's, and the offset comes from a record that
            // ended at or below the limit.
            match unsafe { slot_at(self.base, self.geometry, self.offset) } {
                Slot::Empty => return Ok(None),
                Slot::Record(raw) => {
                    if raw.sequence == self.sequence && !self.verify && raw.flags == 0 {
                        return Ok(Some(raw));
                    }
                    return self.examine().map(Some);
                }
                Slot::Roll => {
                    if !self.roll()? {
                        return Ok(None);
                    }
                }
                Slot::Bad(commit) => return Err(self.bad_commit(commit)),
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn bad_commit(&self, commit: u32) -> Error {
        self.corrupt(format!("commit word {commit:#x} does not fit the segment"))
    }

    /// Moves past a record that [`Reader::peek`] gave.
    #[inline(always)]
    pub fn advance(&mut self, raw: &RawRecord) {
        debug_assert!(raw.offset == self.offset);
        self.offset = raw.end();
        // Wrapping: only a damaged file holds the highest number, and then no record follows it.
        self.sequence = raw.sequence.wrapping_add(1);
    }

    /// Where the payload of a record of this segment begins.
    #[inline(always)]
    pub(crate) fn payload_at(&self, raw: &RawRecord) -> *const u8 {
        self.base.wrapping_add(raw.offset + RECORD_HEADER_BYTES)
    }

    /// Asks for the record behind `raw`: for its header and the first of its payload.
    #[inline(always)]
    pub(crate) fn prefetch_behind(&self, raw: &RawRecord) {
        let next = self.base.wrapping_add(raw.end());
        prefetch_read(next);
        prefetch_read(next.wrapping_add(64));
    }

    /// Checks the next record, which is not plainly the expected one. Reads it by itself: a record
    /// that is passed by reference would be kept in memory by whoever delivers plain ones, and read
    /// back before it is written (docs/internals/decisions.md).
    #[inline(never)]
    fn examine(&mut self) -> Result<RawRecord> {
        // SAFETY: as in `peek`.
        let slot = unsafe { slot_at(self.base, self.geometry, self.offset) };
        let Slot::Record(raw) = slot else {
            return Err(self.corrupt("the record was changed after it was committed".to_owned()));
        };
        if raw.flags & !FLAGS_KNOWN != 0 {
            return Err(self.corrupt(format!("unknown flags {:#x}", raw.flags)));
        }
        if self.verify && (raw.flags & FLAG_CRC == 0 || !self.segment.crc_holds(&raw)) {
            return Err(
                self.corrupt(format!("checksum of sequence={} does not hold", raw.sequence))
            );
        }
        if raw.sequence == self.sequence {
            return Ok(raw);
        }
        let Some(reason) = self.gap.filter(|&reason| self.may_be_gap(&raw, reason)) else {
            let why = format!("sequence={} expected={}", raw.sequence, self.sequence);
            return Err(self.corrupt(why));
        };
        self.gap = None;
        if let Some(cursor) = &self.cursor {
            cursor.clear_cut();
        }
        let first_missing = self.sequence.min(raw.sequence);
        self.sequence = raw.sequence;
        self.gaps += 1;
        Err(ErrorKind::Gap {
            path: self.queue.display(),
            name: self.name.clone(),
            first_missing,
            next: raw.sequence,
            reason,
        }
        .into())
    }

    /// Whether a gap explains this record: the segment must agree with its number, and retention
    /// only ever skips forward (a cut uses numbers again).
    fn may_be_gap(&self, raw: &RawRecord, reason: GapReason) -> bool {
        let stands_right = if self.offset == self.geometry.data_offset() {
            raw.sequence == self.segment.first_sequence()
        } else {
            self.segment.may_hold(raw.sequence)
        };
        stands_right && (reason != GapReason::Retention || raw.sequence > self.sequence)
    }

    /// Goes on in the next segment; past a deleted one, in the oldest that exists. `false` if a
    /// patient reader has to wait for its provisioner.
    #[cold]
    fn roll(&mut self) -> Result<bool> {
        let index = self.segment.index + 1;
        if self.patient && self.endpoint.must_wait() {
            return Ok(false);
        }
        let was_ready = self.endpoint.is_ready();
        if let Some(segment) = self.endpoint.take_from(index) {
            if segment.index > index {
                self.gap = Some(GapReason::Retention);
            }
            self.enter(segment);
            return Ok(true);
        }
        if self.patient && was_ready {
            // It was left over from before a seek; the next look asks for the right one.
            return Ok(false);
        }
        match Segment::open(&self.queue, index, false) {
            Ok(segment) => self.enter(segment),
            Err(e) if e.is_not_found() => self.jump(index)?,
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    fn jump(&mut self, index: u64) -> Result<()> {
        if self.queue.is_removed() {
            return Err(ErrorKind::QueueRemoved { path: self.queue.display() }.into());
        }
        if self.queue.floor_segment() <= index {
            return Err(ErrorKind::SegmentMissing { path: self.queue.display(), index }.into());
        }
        let segment = seek::open_floor(&self.queue)?;
        self.gap = Some(GapReason::Retention);
        self.enter(segment);
        Ok(())
    }

    fn enter(&mut self, segment: Arc<Segment>) {
        self.endpoint.want(segment.index + 1);
        self.base = segment.base();
        self.offset = self.geometry.data_offset();
        let old = std::mem::replace(&mut self.segment, segment);
        self.endpoint.retire(old);
    }

    fn corrupt(&self, why: String) -> Error {
        self.queue.corrupt(self.position(), why)
    }

    /// The longest run of records from here on, at most `count_max`, that have one type and size
    /// and stand evenly spaced in one segment; moves past it. `None` if there is no record.
    ///
    /// # Errors
    /// As [`Reader::next`]. A bad record behind good ones ends the run; the next call reports it.
    pub fn next_run(&mut self, count_max: usize) -> Result<Option<RecordRun>> {
        let Some(first) = self.peek()? else { return Ok(None) };
        let stride = record_stride(first.len);
        let mut run = RecordRun {
            segment: Arc::clone(&self.segment),
            offset: first.offset,
            count: 0,
            stride,
            payload_bytes: first.len,
            type_id: first.type_id,
            first_sequence: first.sequence,
        };
        self.advance(&first);
        let (mut offset, mut sequence) = (self.offset, self.sequence);
        let mut count = 1;
        while count < count_max {
            prefetch_read(self.base.wrapping_add(offset + RUN_AHEAD_BYTES));
            // SAFETY: as in `peek`: each offset is the end of a record that `slot_at` has checked.
            match unsafe { slot_at(self.base, self.geometry, offset) } {
                Slot::Record(raw)
                    if raw.len == first.len
                        && raw.type_id == first.type_id
                        && raw.sequence == sequence
                        && raw.flags == first.flags
                        && (!self.verify || self.segment.crc_holds(&raw)) =>
                {
                    offset += stride;
                    // Wrapping: as in `advance`.
                    sequence = sequence.wrapping_add(1);
                    count += 1;
                }
                _ => break,
            }
        }
        (self.offset, self.sequence) = (offset, sequence);
        run.count = count;
        Ok(Some(run))
    }

    /// Remembers that everything delivered so far is done with. Two stores; nothing for an
    /// unregistered reader.
    #[inline(always)]
    pub fn commit(&self) {
        if let Some(cursor) = &self.cursor
            && self.fork_generation == process::fork_generation()
        {
            cursor.commit(self.sequence, self.position());
        }
    }

    /// Whether this process opened the reader, and not the parent that it was forked from.
    ///
    /// # Errors
    /// `Forked`.
    #[inline(always)]
    pub fn check_owner(&self) -> Result<()> {
        if self.fork_generation == process::fork_generation() {
            return Ok(());
        }
        Err(ErrorKind::Forked.into())
    }

    /// Moves to another place. Does not commit: the cursor stays until the next commit.
    ///
    /// # Errors
    /// `SequenceNotWritten` for a sequence beyond the next one; the reader stays where it was.
    pub fn seek(&mut self, start: Start) -> Result<()> {
        let place = match start {
            Start::Resume => start_place(&self.queue, self.cursor.as_ref(), Start::Resume)?,
            other => {
                let place = seek::find(&self.queue, other)?;
                if let Some(cursor) = &self.cursor {
                    cursor.clear_cut();
                }
                place
            }
        };
        self.enter(place.segment);
        self.offset = place.offset;
        self.sequence = place.sequence;
        self.gap = place.gap;
        Ok(())
    }

    /// What a waiter needs; does not borrow the reader. Follows roll markers first, so that a
    /// marker is not taken for a message.
    pub fn wait_target(&mut self) -> WaitTarget {
        // SAFETY: as in `peek`.
        while unsafe { slot_at(self.base, self.geometry, self.offset) } == Slot::Roll {
            if !self.roll().is_ok_and(|rolled| rolled) {
                // The target is ready then; `next` meets the same error and reports it, or waits
                // for the provisioner.
                break;
            }
        }
        WaitTarget::new(Arc::clone(&self.segment), self.offset, Arc::clone(&self.queue))
    }

    /// Whether a writer can ring for this reader: not on a read-only mount.
    pub(crate) fn can_be_rung(&self) -> bool {
        self.queue.is_writable()
    }

    /// Asks to be rung; gives the word to sleep on. P3.
    pub(crate) fn arm(&self) -> WaitWord {
        let bell = &self.queue.control().doorbell;
        WaitWord::new(&bell.ring, bell.arm::<Strong>())
    }

    /// Whether `next` has something to do. P1.
    pub(crate) fn has_something(&self) -> bool {
        // SAFETY: as in `peek`.
        unsafe { slot_at(self.base, self.geometry, self.offset) != Slot::Empty }
    }

    /// Goes back before the record at `offset`, if that stands in this segment and was the last
    /// that was moved past.
    pub(crate) fn step_back(&mut self, offset: usize, sequence: u64) {
        // Behind a roll the reader stands at the first place for records.
        if offset < self.offset && sequence.wrapping_add(1) == self.sequence {
            self.offset = offset;
            self.sequence = sequence;
        }
    }

    /// Makes the reader fit for a hot thread, or for others again: it waits for its provisioner at
    /// rolls, and what it leaves behind stays mapped until it is let go.
    pub fn set_hot(&mut self, hot: bool) {
        self.patient = hot;
        self.endpoint.set_hot(hot);
    }

    /// The sequence number that the next record should have.
    #[inline]
    pub fn next_sequence(&self) -> u64 {
        self.sequence
    }

    #[inline(always)]
    pub fn position(&self) -> u64 {
        self.geometry.position(self.segment.index, self.offset)
    }

    #[inline(always)]
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn is_registered(&self) -> bool {
        self.cursor.is_some()
    }

    /// Gaps reported so far.
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    pub fn queue(&self) -> &Arc<QueueDir> {
        &self.queue
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Whether the next segment lies mapped and ready.
    pub fn is_provisioned(&self) -> bool {
        self.endpoint.is_ready()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.endpoint.close();
    }
}

fn open_queue(path: &Path) -> Result<QueueDir> {
    QueueDir::open(path, true).map_err(|e| {
        if e.is_not_found() {
            let why = "there is no control file".to_owned();
            ErrorKind::NotAQueue { path: path.display().to_string(), why }.into()
        } else {
            e
        }
    })
}

fn open_cursor(queue: &QueueDir, name: &str) -> Result<Option<Cursor>> {
    crate::queue::options::check_name("reader name", name)?;
    if !queue.is_writable() {
        return Ok(None);
    }
    match Cursor::open(queue, name) {
        Ok(cursor) => Ok(Some(cursor)),
        Err(e) if may_not_write(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Finds the place to start at and puts the cursor there, where it cannot be overtaken by
/// retention. P7.
fn start_place(queue: &Arc<QueueDir>, cursor: Option<&Cursor>, start: Start) -> Result<Place> {
    let resumes = start == Start::Resume;
    let resume_sequence = cursor.and_then(Cursor::resume_sequence);
    let cut_sequence = cursor.filter(|_| resumes).and_then(Cursor::cut_sequence);
    let start = match (start, resume_sequence, cut_sequence) {
        (Start::Resume, Some(sequence), cut) => {
            Start::Sequence(cut.unwrap_or(sequence).min(sequence))
        }
        (Start::Resume, None, _) => Start::Earliest,
        (other, _, _) => other,
    };
    loop {
        let mut place = match seek::find(queue, start) {
            // The cursor is ahead of the queue, and recovery could not tell it so.
            Err(e)
                if resumes
                    && matches!(e.kind(), ErrorKind::SequenceNotWritten { .. })
                    && was_cut(queue) =>
            {
                let mut place = seek::tail(queue)?;
                place.sequence = resume_sequence.unwrap_or(place.sequence);
                place.gap = Some(GapReason::Cut);
                place
            }
            other => other?,
        };
        if let Some(cursor) = cursor
            && cursor.place(queue, place.sequence, place.position()).is_err()
        {
            continue;
        }
        match (cut_sequence, cursor) {
            // The numbers from here on were used before: whatever comes, it is not what this reader
            // expects.
            (Some(_), _) if place.gap.is_none() => {
                place.sequence = resume_sequence.unwrap_or(0).max(place.sequence + 1);
                place.gap = Some(GapReason::Cut);
            }
            (None, Some(cursor)) => cursor.clear_cut(),
            _ => {}
        }
        return Ok(place);
    }
}

fn was_cut(queue: &QueueDir) -> bool {
    // Relaxed: a counter that only a recovery long past has moved.
    queue.control().cuts.load(crate::sync::Ordering::Relaxed) > 0
}
