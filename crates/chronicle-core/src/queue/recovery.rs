//! How the writer comes back: find the tail, cut what cannot be trusted, leave the files as if
//! nothing had happened.
//!
//! Two cases, told apart by the boot id that the last writer left in the control block.
//!
//! *Same boot.* The last writer died or closed, the page cache lived on. Its stores are all there,
//! in program order. The tail is the first commit word that is zero; a roll that was cut short just
//! before its marker is completed.
//!
//! *Other boot.* Each page may come from another moment. From the durable position on a record
//! counts only if it carries the next sequence number, fits, and passes its CRC; without checksums
//! nothing after the durable position counts. The first record that fails is the cut. What is cut
//! off is kept beside as `*.cut`, never silently dropped, and the cursors that stand behind the cut
//! are told.
//!
//! What a power loss may leave, and what therefore is no error: any page, sector or name that was
//! changed after the last flush in its old state, in its new one, or in one between. What the
//! durable watermark and the floor promise was synced before they were stored; a file that is
//! missing against that promise is an error.
//!
//! Only the writer recovers, under its lock. Running it twice, or dying inside of it, changes
//! nothing: each step either repeats or was already done. The files that a recovery sets aside
//! carry the epoch in their names, so that a recovery that repeats finds and reports what its
//! forerunner has set aside.

use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::layout::*;
use crate::os::process;
use crate::queue::dir::{self, QueueDir};
use crate::queue::segment::{self, RawRecord, Segment, Slot};
use crate::queue::writer::{IndexNote, write_index};
use crate::queue::{cursor, durable};
use crate::sync::{Arc, Ordering};

/// What was cut off after a power loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub position: u64,
    pub next_sequence: u64,
    /// Bytes behind the cut that were not zero, in the segment of the cut and in those set aside.
    pub bytes_discarded: u64,
    /// Files that hold what was cut off.
    pub set_aside: Vec<String>,
    pub why: String,
    /// The cut lies before the durable position: the device lost what it had promised to keep.
    pub below_durable: bool,
}

/// What the writer found when it opened the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    pub same_boot: bool,
    pub next_sequence: u64,
    pub position: u64,
    pub cut: Option<Cut>,
}

/// Where the writer goes on.
pub struct Tail {
    pub segment: Arc<Segment>,
    pub offset: usize,
    pub next_sequence: u64,
    pub index_due: usize,
    pub timestamp_max: u64,
    pub report: RecoveryReport,
}

/// A walk over the records of one segment.
struct Walk {
    offset: usize,
    sequence: u64,
    timestamp_max: u64,
    index_due: usize,
}

enum End {
    Empty,
    Roll,
    Untrusted(String),
}

/// How much a walk demands of a record.
#[derive(Clone, Copy)]
struct Demand {
    crc: bool,
    /// Records at or after this offset are not trusted.
    limit: usize,
}

/// Finds the tail and makes the files ready for the next append. The caller holds the writer lock.
pub fn recover(queue: &Arc<QueueDir>) -> Result<Tail> {
    let control = queue.control();
    let present = segments_present(queue)?;
    // The first open syncs the epoch before the first append; so while it is zero, nothing was ever
    // appended.
    if present.is_empty() && control.epoch.load(Ordering::Acquire) == 0 {
        let segment = Segment::prepare(queue, 0)?;
        failpoint::hit("create.prepared");
        return enter_first(queue, segment);
    }
    // Relaxed: a counter for people.
    control.recoveries.fetch_add(1, Ordering::Relaxed);
    if is_same_boot(queue) { same_boot(queue, &present) } else { other_boot(queue, &present) }
}

/// Whether the last writer opened the queue in this boot, so that the page cache holds all its
/// stores.
///
/// A zero id counts as another boot: either the first writer died before it was through with its
/// open (then there is nothing to lose), or the kernel does not tell (then nothing is certain).
pub fn is_same_boot(queue: &QueueDir) -> bool {
    let boot = process::boot_id();
    // Relaxed: written at the writer's open only, and a writer's lock was free since; for others it
    // is a hint.
    let last = [0, 1].map(|i| queue.control().boot_id[i].load(Ordering::Relaxed));
    boot == last && boot != [0, 0]
}

/// Indices of the segment files, ascending. Half-built files of dead processes are removed.
fn segments_present(queue: &QueueDir) -> Result<Vec<u64>> {
    let mut present = Vec::new();
    for name in queue.segments.list()? {
        if let Some(index) = segment::index_of(&name) {
            present.push(index);
        } else if name.ends_with(".tmp") {
            queue.segments.remove(&name)?;
        }
    }
    present.sort_unstable();
    Ok(present)
}

/// Starts at sequence 1 in a segment that holds nothing.
fn enter_first(queue: &QueueDir, segment: Arc<Segment>) -> Result<Tail> {
    segment.enter(1);
    failpoint::hit("create.entered");
    queue.write_table_entry(segment.index, 1);
    let walk = Walk::start_of(&segment, 1);
    Ok(tail(queue, segment, walk, true, None))
}

fn tail(
    queue: &QueueDir,
    segment: Arc<Segment>,
    walk: Walk,
    same_boot: bool,
    cut: Option<Cut>,
) -> Tail {
    Tail {
        offset: walk.offset,
        next_sequence: walk.sequence,
        index_due: walk.index_due,
        timestamp_max: walk.timestamp_max,
        report: RecoveryReport {
            same_boot,
            next_sequence: walk.sequence,
            position: queue.geometry.position(segment.index, walk.offset),
            cut,
        },
        segment,
    }
}

fn same_boot(queue: &Arc<QueueDir>, present: &[u64]) -> Result<Tail> {
    let hint = queue.tail_segment();
    if !present.contains(&hint) {
        return Err(ErrorKind::SegmentMissing { path: queue.display(), index: hint }.into());
    }
    let floor = queue.floor_segment();
    if floor > hint {
        // One of the two is damaged; and what is written below the floor would be deleted as a
        // leftover.
        let why = format!("the oldest segment is said to be {floor}, the newest {hint}");
        return Err(queue.corrupt(queue.geometry.position(hint, 0), why));
    }
    // The segment before the hint may lack its marker: the hint is stored first. Not below the floor: retention lets nothing go that
    // lacks its marker, and a file that is left there after a power loss may hold anything.
    let before = (hint > queue.floor_segment()).then(|| hint - 1).filter(|i| present.contains(i));
    let mut index = before.unwrap_or(hint);
    loop {
        let segment = match Segment::open(queue, index, true) {
            // Retention took it in the meantime, which it does only if the marker is there.
            Err(e) if e.is_not_found() && index < queue.floor_segment() => {
                index += 1;
                continue;
            }
            other => other?,
        };
        if index == 0 && segment.is_virgin() {
            return enter_first(queue, segment);
        }
        let mut walk = Walk::from_last_entry(queue, &segment)?;
        let demand = Demand { crc: false, limit: usize::MAX };
        match walk.run(&segment, demand) {
            End::Untrusted(why) => {
                return Err(queue.corrupt(queue.geometry.position(index, walk.offset), why));
            }
            End::Roll => index += 1,
            End::Empty if index < hint => {
                complete_roll(queue, &segment, &walk)?;
                index += 1;
            }
            End::Empty => {
                failpoint::hit("recovery.tail");
                if index > hint {
                    // Only a damaged hint is behind; retention and seeks must not go by it.
                    queue.control().tail_segment.store(index, Ordering::Release);
                }
                zero_behind(queue, &segment, walk.offset)?;
                reset_next(queue, index + 1, present)?;
                mend_table_entry(queue, &segment);
                return Ok(tail(queue, segment, walk, true, None));
            }
        }
    }
}

/// The tail's entry is missing if the first writer died just after it had entered segment 0, and
/// looks complete if a writer died in a roll: then the segment goes on.
fn mend_table_entry(queue: &QueueDir, segment: &Segment) {
    let fine = queue.table_entry(segment.index).is_some_and(|entry| {
        // Relaxed: published by the entry's index.
        entry.first_sequence.load(Ordering::Relaxed) == segment.first_sequence()
            && entry.end_offset.load(Ordering::Acquire) == 0
    });
    if !fine {
        queue.write_table_entry(segment.index, segment.first_sequence());
        failpoint::hit("recovery.entry_mended");
    }
}

/// The writer died between the tail hint and the marker: everything that the marker announces is
/// there.
fn complete_roll(queue: &QueueDir, segment: &Segment, walk: &Walk) -> Result<()> {
    let next = Segment::open(queue, segment.index + 1, true)?;
    if next.first_sequence() != walk.sequence {
        let why = format!(
            "segment {} starts with {}, expected {}",
            next.index,
            next.first_sequence(),
            walk.sequence
        );
        return Err(queue.corrupt(queue.geometry.position(segment.index, walk.offset), why));
    }
    zero_behind(queue, segment, walk.offset)?;
    failpoint::hit("recovery.roll_zeroed");
    // SAFETY: the walk ended at an aligned offset at or below the data limit.
    let word = unsafe { segment.commit_word(walk.offset) };
    crate::protocol::commit::<crate::protocol::Strong>(word, COMMIT_ROLL);
    failpoint::hit("recovery.roll_marked");
    Ok(())
}

/// A segment that was entered but never reached by a marker holds nothing: it is prepared again.
fn reset_next(queue: &QueueDir, index: u64, present: &[u64]) -> Result<()> {
    if !present.contains(&index) {
        return Ok(());
    }
    let next = Segment::open(queue, index, true)?;
    if next.first_sequence() != 0 {
        next.enter(0);
        failpoint::hit("recovery.next_reset");
    }
    if !next.is_virgin() {
        let why = format!("segment {index} holds records that no roll marker leads to");
        return Err(queue.corrupt(queue.geometry.position(index, 0), why));
    }
    Ok(())
}

fn other_boot(queue: &Arc<QueueDir>, present: &[u64]) -> Result<Tail> {
    let first = first_to_check(queue, present)?;
    let mut checker = Checker::new(queue, first);
    let mut index = first;
    while present.contains(&index) && checker.check(index)? {
        index += 1;
    }
    checker.finish(present)
}

/// Where the check begins: the segment of the durable position, or the oldest one.
///
/// The floor is synced before a segment below it is removed. So what is missing from there up to
/// the durable position was not taken by retention; and a durable position below the floor speaks
/// of messages that are gone.
fn first_to_check(queue: &QueueDir, present: &[u64]) -> Result<u64> {
    let control = queue.control();
    let floor = queue.floor_segment();
    // Acquire: as `store_max`.
    let durable = control.durable_position.load(Ordering::Acquire);
    let durable_segment = queue.geometry.segment_of(durable);
    if durable == 0 || durable_segment < floor {
        return Ok(floor);
    }
    if !present.contains(&durable_segment) {
        return Err(
            ErrorKind::SegmentMissing { path: queue.display(), index: durable_segment }.into()
        );
    }
    for &index in present.iter().filter(|&&i| i >= floor && i < durable_segment) {
        // What cannot be opened is for readers to report: it does not keep the writer from going
        // on.
        if let Ok(segment) = Segment::open(queue, index, true) {
            mend_durable(queue, &segment, index + 1 == durable_segment)?;
        }
    }
    Ok(durable_segment)
}

/// Mends what a flush may have caught halfway in a segment that is durable itself: the marker, if
/// the flush ran (in another thread) just before the writer stored it; the table entry, if its slot
/// was just taken over by another segment.
fn mend_durable(queue: &QueueDir, segment: &Segment, is_last: bool) -> Result<()> {
    let fine = queue.table_entry(segment.index).is_some_and(|entry| {
        // Relaxed: published by the entry's index.
        entry.first_sequence.load(Ordering::Relaxed) == segment.first_sequence()
            && entry.end_offset.load(Ordering::Acquire) != 0
    });
    if fine && !is_last {
        return Ok(());
    }
    let mut walk =
        Walk { index_due: usize::MAX, ..Walk::start_of(segment, segment.first_sequence()) };
    let end = walk.run(segment, Demand { crc: false, limit: usize::MAX });
    if is_last && matches!(end, End::Empty) {
        complete_roll(queue, segment, &walk)?;
        sync_segment(queue, segment)?;
        failpoint::hit("recovery.durable_marked");
    }
    if !fine && !matches!(end, End::Untrusted(_)) {
        queue.write_table_entry(segment.index, segment.first_sequence());
        queue.seal_table_entry(segment.index, walk.timestamp_max, walk.offset);
    }
    Ok(())
}

fn sync_segment(queue: &QueueDir, segment: &Segment) -> Result<()> {
    let map = segment.map();
    durable::sync_range(&queue.segments, &segment::file_name(segment.index), map, 0, map.len())
}

/// Checks segment after segment until one is not complete.
struct Checker<'a> {
    queue: &'a Arc<QueueDir>,
    /// Where the check begins.
    first: u64,
    durable: u64,
    durable_sequence: u64,
    /// The last segment with a trusted start, and how far it can be trusted.
    walk: Option<(Arc<Segment>, Walk)>,
    why: String,
}

impl<'a> Checker<'a> {
    fn new(queue: &'a Arc<QueueDir>, first: u64) -> Self {
        let control = queue.control();
        Self {
            queue,
            first,
            // Acquire: as `store_max`.
            durable: control.durable_position.load(Ordering::Acquire),
            // Acquire: as `store_max`.
            durable_sequence: control.durable_sequence.load(Ordering::Acquire),
            walk: None,
            why: String::new(),
        }
    }

    /// Whether a flush has promised (some of) this segment.
    fn is_durable(&self, index: u64) -> bool {
        self.durable > 0 && index <= self.queue.geometry.segment_of(self.durable)
    }

    /// Walks one segment. `true` if it ends with a marker, so that the next one counts.
    fn check(&mut self, index: u64) -> Result<bool> {
        let queue = self.queue;
        let segment = match Segment::open(queue, index, true) {
            Ok(segment) => segment,
            // Its name reached the disk, its header did not.
            Err(e) if matches!(e.kind(), ErrorKind::Format { .. }) && !self.is_durable(index) => {
                self.why = e.to_string();
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        let first_sequence = match &self.walk {
            Some((_, before)) => before.sequence,
            None => self.first_sequence_of(&segment)?,
        };
        let demand = Demand {
            crc: queue.has_checksums(),
            limit: match queue.geometry.segment_of(self.durable) {
                _ if queue.has_checksums() => usize::MAX,
                s if index < s => usize::MAX,
                s if index == s => queue.geometry.offset_of(self.durable),
                _ => 0,
            },
        };
        clear_index(&segment);
        failpoint::hit("recovery.index_cleared");
        segment.enter(first_sequence);
        queue.write_table_entry(index, first_sequence);
        let mut walk = Walk::start_of(&segment, first_sequence);
        let end = walk.run(&segment, demand);
        let whole = match end {
            End::Roll => {
                queue.seal_table_entry(index, walk.timestamp_max, walk.offset);
                // The durable position is about to move past this segment, and the new index with
                // it.
                sync_segment(queue, &segment)?;
                failpoint::hit("recovery.checked");
                true
            }
            End::Empty => false,
            End::Untrusted(why) => {
                self.why = why;
                false
            }
        };
        self.walk = Some((segment, walk));
        Ok(whole)
    }

    /// The number of the first record of the segment that the check begins with. Its header is
    /// certain only if it was flushed; before that a record with a good checksum knows better.
    ///
    /// # Errors
    /// `Corrupt` if a header that was flushed contradicts the record behind it: to go on by either
    /// could use numbers again.
    fn first_sequence_of(&self, segment: &Segment) -> Result<u64> {
        let header = segment.first_sequence();
        if self.is_durable(segment.index) {
            let data_offset = segment.geometry.data_offset();
            if self.durable > segment.geometry.position(segment.index, data_offset)
                && let Slot::Record(record) = segment.slot(data_offset)
                && record.sequence != header
                && (!self.queue.has_checksums() || segment.crc_holds(&record))
            {
                let why = format!(
                    "segment starts with sequence={header}, its first record is {}",
                    record.sequence
                );
                return Err(self.queue.corrupt(segment.geometry.position(segment.index, 0), why));
            }
            return Ok(header.max(1));
        }
        if self.queue.has_checksums()
            && let Slot::Record(record) = segment.slot(segment.geometry.data_offset())
            && record.flags & FLAG_CRC != 0
            && (1..SEQUENCE_LIMIT).contains(&record.sequence)
            && segment.crc_holds(&record)
        {
            return Ok(record.sequence);
        }
        Ok(if header > 0 { header } else { self.fresh_sequence(segment.index) })
    }

    /// The number to go on with in a segment of which nothing is left: never one that was flushed,
    /// and the true one if the table still knows it.
    fn fresh_sequence(&self, index: u64) -> u64 {
        let entry = self.queue.table_entry(index);
        // Relaxed: published by the entry's index.
        let known = entry.map_or(0, |entry| entry.first_sequence.load(Ordering::Relaxed));
        let known = if known < SEQUENCE_LIMIT { known } else { 0 };
        known.max(self.durable_sequence.min(SEQUENCE_LIMIT - 2) + 1)
    }

    /// Cuts behind the last trusted record and syncs what was changed.
    fn finish(mut self, present: &[u64]) -> Result<Tail> {
        let queue = self.queue;
        let hint = queue.tail_segment();
        self.set_aside(present)?;
        let (segment, walk) = match self.walk.take() {
            Some(found) => found,
            None => self.start_fresh()?,
        };
        let cursors_behind = mark_cursors(queue, walk.sequence)?;
        failpoint::hit("recovery.cursors_marked");
        zero_behind(queue, &segment, walk.offset)?;
        // The table entry was sealed only if a marker was found; there is none behind the cut.
        queue.write_table_entry(segment.index, segment.first_sequence());
        sync_segment(queue, &segment)?;
        durable::sync_names(&queue.segments)?;
        failpoint::hit("recovery.cut_synced");
        let position = queue.geometry.position(segment.index, walk.offset);
        let below_durable = self.is_durable(self.first) && position < self.durable;
        let (set_aside, bytes_discarded) = aside(queue, &segment, walk.offset)?;
        let is_cut =
            !set_aside.is_empty() || below_durable || cursors_behind || hint > segment.index;
        let cut = is_cut.then(|| Cut {
            position,
            next_sequence: walk.sequence,
            bytes_discarded,
            set_aside,
            why: if self.why.is_empty() {
                "what follows did not reach the disk".into()
            } else {
                self.why
            },
            below_durable,
        });
        store_watermarks(queue, position, walk.sequence, cut.as_ref())?;
        Ok(tail(queue, segment, walk, false, cut))
    }

    /// Keeps what is cut off. It must be safe before it is overwritten.
    fn set_aside(&self, present: &[u64]) -> Result<()> {
        let first_untrusted = match &self.walk {
            Some((segment, walk)) => {
                copy_aside(self.queue, segment, walk.offset)?;
                segment.index + 1
            }
            None => self.first,
        };
        for &index in present.iter().filter(|&&i| i >= first_untrusted) {
            set_segment_aside(self.queue, index)?;
        }
        durable::sync_names(&self.queue.segments)?;
        failpoint::hit("recovery.set_aside");
        Ok(())
    }

    /// Nothing is left of the segment that the check should begin with, and no flush has promised
    /// it.
    fn start_fresh(&self) -> Result<(Arc<Segment>, Walk)> {
        let segment = Segment::prepare(self.queue, self.first)?;
        let sequence = self.fresh_sequence(self.first);
        segment.enter(sequence);
        failpoint::hit("recovery.fresh");
        let walk = Walk::start_of(&segment, sequence);
        Ok((segment, walk))
    }
}

/// Everything up to the cut is on disk: says so in the control block, and syncs that. The durable
/// position may go back here.
fn store_watermarks(
    queue: &QueueDir,
    position: u64,
    next_sequence: u64,
    cut: Option<&Cut>,
) -> Result<()> {
    let control = queue.control();
    control.tail_segment.store(queue.geometry.segment_of(position), Ordering::Release);
    failpoint::hit("recovery.hint");
    control.durable_sequence.store(next_sequence - 1, Ordering::Release);
    failpoint::hit("recovery.durable_sequence");
    control.durable_position.store(position, Ordering::Release);
    failpoint::hit("recovery.durable_position");
    if let Some(cut) = cut {
        // Relaxed: counters for people.
        control.cuts.fetch_add(1, Ordering::Relaxed);
        // Relaxed: as above.
        control.cut_bytes.fetch_add(cut.bytes_discarded, Ordering::Relaxed);
    }
    durable::sync_maps(queue)?;
    failpoint::hit("recovery.synced");
    Ok(())
}

/// Tells the cursors behind the cut; their readers then see a gap, even if by then there are new
/// messages with the old numbers. Whether there were any.
fn mark_cursors(queue: &QueueDir, next_sequence: u64) -> Result<bool> {
    let mut any = false;
    for name in cursor::names(queue)? {
        any |= cursor::mark_cut(queue, &name, next_sequence)?;
    }
    Ok(any)
}

/// Renames a segment behind the cut, or removes it if it holds nothing.
fn set_segment_aside(queue: &QueueDir, index: u64) -> Result<()> {
    let name = segment::file_name(index);
    // The slot may belong to another segment: the table is a ring.
    if let Some(entry) = queue.table_entry(index) {
        entry.index_plus_1.store(0, Ordering::Release);
        failpoint::hit("recovery.entry_cleared");
    }
    if bytes_in_file(queue, &name, queue.geometry.data_offset())? == 0 {
        queue.segments.remove(&name)?;
        failpoint::hit("recovery.removed");
    } else {
        queue.segments.rename(&name, &cut_name(queue, &name))?;
        failpoint::hit("recovery.renamed");
    }
    Ok(())
}

fn cut_suffix(queue: &QueueDir) -> String {
    format!(".{}.cut", queue.control().epoch.load(Ordering::Acquire))
}

fn cut_name(queue: &QueueDir, name: &str) -> String {
    format!("{name}{}", cut_suffix(queue))
}

/// Keeps a copy of the segment in which the cut lies, if anything stands behind the cut. A disk too
/// full for the copy is an error: nothing has been cut yet then. A copy that a recovery before this
/// one has completed stays: it may hold more.
fn copy_aside(queue: &QueueDir, segment: &Segment, offset: usize) -> Result<()> {
    let name = cut_name(queue, &segment::file_name(segment.index));
    if count_behind(segment, offset) == 0 || queue.segments.open_file(&name, false).is_ok() {
        return Ok(());
    }
    let tmp = format!("{name}.tmp");
    queue.segments.remove(&tmp)?;
    let mut file = queue.segments.create_new(&tmp, queue.file_mode)?;
    failpoint::hit("recovery.copy_created");
    // SAFETY: the whole mapping, which nobody stores into: we hold the writer lock.
    let bytes = unsafe { std::slice::from_raw_parts(segment.base(), segment.map().len()) };
    std::io::Write::write_all(&mut file, bytes)
        .map_err(|e| dir::full_or(e, &queue.segments, &tmp, bytes.len() as u64))?;
    durable::sync_file(&queue.segments, &tmp, &file)?;
    failpoint::hit("recovery.copied");
    queue.segments.rename(&tmp, &name)
}

/// The files that this recovery, or one before it that did not come to its end, has set aside, and
/// how many of their bytes are cut off.
fn aside(queue: &QueueDir, segment: &Segment, offset: usize) -> Result<(Vec<String>, u64)> {
    let suffix = cut_suffix(queue);
    let mut names = queue.segments.list()?;
    names.retain(|name| name.ends_with(&suffix));
    names.sort_unstable();
    let of_the_cut = cut_name(queue, &segment::file_name(segment.index));
    let mut bytes = 0;
    for name in &names {
        let from = if *name == of_the_cut { offset } else { queue.geometry.data_offset() };
        bytes += bytes_in_file(queue, name, from)?;
    }
    Ok((names.iter().map(|name| queue.segments.join(name)).collect(), bytes))
}

/// Bytes of a file, from `offset` on, in words that are not zero.
fn bytes_in_file(queue: &QueueDir, name: &str, offset: usize) -> Result<u64> {
    let mut file = queue.segments.open_file(name, false)?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes)
        .map_err(|e| Error::io("read", queue.segments.join(name), e))?;
    let behind = bytes.get(offset..).unwrap_or_default();
    Ok(behind.chunks(8).filter(|word| word.iter().any(|&b| b != 0)).count() as u64 * 8)
}

fn clear_index(segment: &Segment) {
    for block in 0..segment.geometry.index_entries() {
        segment.index_entry(block).offset.store(0, Ordering::Release);
    }
}

fn words_behind(segment: &Segment, offset: usize) -> &[u64] {
    let len = segment.geometry.segment_bytes() - offset;
    // SAFETY: inside the mapping, 8-aligned (offsets are multiples of RECORD_ALIGN); nobody stores
    // there while we hold the writer lock.
    unsafe { std::slice::from_raw_parts(segment.base().add(offset).cast::<u64>(), len / 8) }
}

/// Bytes behind `offset` in words that are not zero.
fn count_behind(segment: &Segment, offset: usize) -> u64 {
    words_behind(segment, offset).iter().filter(|&&w| w != 0).count() as u64 * 8
}

/// Makes everything behind the tail zero: half a record may stand there, and its bytes must not be
/// taken for commit words later. Clean pages are only read.
///
/// What was not zero is synced. Otherwise a power loss could bring back the old page behind newer
/// ones, with records of a batch that was never committed: their checksums hold, and their sequence
/// numbers may be just the ones that are expected there.
fn zero_behind(queue: &QueueDir, segment: &Segment, offset: usize) -> Result<()> {
    let mut at = offset;
    let mut dirty: Option<(usize, usize)> = None;
    while at < segment.geometry.segment_bytes() {
        let end = (at / PAGE_BYTES + 1) * PAGE_BYTES;
        if words_behind(segment, at)[..(end - at) / 8].iter().any(|&w| w != 0) {
            // SAFETY: inside the mapping, which is writable for the writer; readers poll only the
            // commit word at the tail, which is zero already (or, at a cut, there are no readers:
            // the machine has rebooted).
            unsafe { segment.base().add(at).write_bytes(0, end - at) };
            failpoint::hit("recovery.zeroed");
            dirty = Some((dirty.map_or(at, |(first, _)| first), end));
        }
        at = end;
    }
    if let Some((first, end)) = dirty {
        let name = segment::file_name(segment.index);
        durable::sync_range(&queue.segments, &name, segment.map(), first, end - first)?;
        failpoint::hit("recovery.zeros_synced");
    }
    Ok(())
}

impl Walk {
    fn start_of(segment: &Segment, first_sequence: u64) -> Self {
        Self {
            offset: segment.geometry.data_offset(),
            sequence: first_sequence,
            timestamp_max: 0,
            index_due: 0,
        }
    }

    /// Starts at the last index entry that is there.
    fn from_last_entry(queue: &QueueDir, segment: &Segment) -> Result<Self> {
        let geometry = segment.geometry;
        let last = (0..geometry.index_entries())
            // Acquire: pairs with the Release in `write_index`.
            .take_while(|&b| segment.index_entry(b).offset.load(Ordering::Acquire) != 0)
            .last();
        let first_sequence = segment.first_sequence();
        if first_sequence == 0 {
            let why = format!(
                "segment {} holds nothing, but the control block leads there",
                segment.index
            );
            return Err(queue.corrupt(geometry.position(segment.index, 0), why));
        }
        let Some(block) = last else {
            return Ok(Self::start_of(segment, first_sequence));
        };
        let record = super::seek::entry_record(queue, segment, block)?;
        // Relaxed: published by the entry's offset.
        let timestamp_max = segment.index_entry(block).timestamp_max.load(Ordering::Relaxed);
        Ok(Self {
            offset: record.offset,
            sequence: record.sequence,
            timestamp_max,
            index_due: (block + 1) * INDEX_BLOCK_BYTES,
        })
    }

    /// Walks while records can be trusted, and writes index entries that are missing.
    fn run(&mut self, segment: &Segment, demand: Demand) -> End {
        loop {
            let record = match segment.slot(self.offset) {
                Slot::Empty => return End::Empty,
                _ if self.offset >= demand.limit => {
                    return End::Untrusted(
                        "the queue has no checksums, so nothing behind the last flush can be verified".into(),
                    );
                }
                Slot::Roll => return End::Roll,
                Slot::Bad(commit) => {
                    return End::Untrusted(format!(
                        "commit word {commit:#x} does not fit the segment"
                    ));
                }
                Slot::Record(record) => record,
            };
            if let Some(why) = self.objection(segment, &record, demand) {
                return End::Untrusted(why);
            }
            if self.offset >= self.index_due {
                let note = IndexNote {
                    offset: self.offset,
                    sequence: self.sequence,
                    timestamp_max: self.timestamp_max,
                };
                self.index_due = write_index(segment, &note);
            }
            self.timestamp_max = self.timestamp_max.max(record.timestamp_ns);
            self.sequence += 1;
            self.offset = record.end();
        }
    }

    fn objection(&self, segment: &Segment, record: &RawRecord, demand: Demand) -> Option<String> {
        if record.sequence != self.sequence {
            return Some(format!("sequence={} expected={}", record.sequence, self.sequence));
        }
        if demand.crc && (record.flags & FLAG_CRC == 0 || !segment.crc_holds(record)) {
            return Some(format!("checksum of sequence={} does not hold", record.sequence));
        }
        None
    }
}
