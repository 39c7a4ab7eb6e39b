//! How the writer comes back: find the tail, cut what cannot be trusted, leave the files as if nothing had happened.
//!
//! Two cases, told apart by the boot id that the last writer left in the control block.
//!
//! *Same boot.* The last writer died or closed, the page cache lived on. Its stores are all there, in program order. The tail is the first
//! commit word that is zero; a roll that was cut short just before its marker is completed.
//!
//! *Other boot.* Each page may come from another moment. From the durable position on a record counts only if it carries
//! the next sequence number, fits, and passes its CRC; without checksums nothing after the durable position counts.
//! The first record that fails is the cut. What is cut off is kept beside as `*.cut`, never silently dropped.
//!
//! Only the writer recovers, under its lock. Running it twice, or dying inside of it, changes nothing: each
//! step either repeats or was already done.

use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::layout::*;
use crate::os::process;
use crate::queue::dir::QueueDir;
use crate::queue::segment::{self, RawRecord, Segment, Slot};
use crate::queue::writer::{IndexNote, write_index};
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
    if present.is_empty() {
        return start_empty(queue);
    }
    let boot = process::boot_id();
    // Relaxed: written by the last writer; its lock was free when we took it.
    let last_boot = [0, 1].map(|i| control.boot_id[i].load(Ordering::Relaxed));
    // Relaxed: a counter for people.
    control.recoveries.fetch_add(1, Ordering::Relaxed);
    // A zero id means that the first writer died before it was through with its open, or that the kernel has no such id.
    let never_opened = control.epoch.load(Ordering::Acquire) == 0;
    if (boot == last_boot && boot != [0, 0]) || never_opened {
        same_boot(queue, &present)
    } else {
        other_boot(queue, &present)
    }
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

fn start_empty(queue: &Arc<QueueDir>) -> Result<Tail> {
    let control = queue.control();
    // Acquire: as `store_max`.
    let durable = control.durable_sequence.load(Ordering::Acquire);
    if durable > 0 || queue.tail_segment() > 0 {
        let index = queue.tail_segment();
        return Err(ErrorKind::SegmentMissing { path: queue.display(), index }.into());
    }
    let segment = Segment::prepare(queue, 0)?;
    failpoint::hit("create.prepared");
    enter_first(queue, segment)
}

/// Starts at sequence 1 in a segment that holds nothing.
fn enter_first(queue: &QueueDir, segment: Arc<Segment>) -> Result<Tail> {
    segment.enter(1);
    failpoint::hit("create.entered");
    queue.write_table_entry(segment.index, 1);
    let walk = Walk::start_of(&segment, 1);
    Ok(tail(queue, segment, walk, true, None))
}

fn tail(queue: &QueueDir, segment: Arc<Segment>, walk: Walk, same_boot: bool, cut: Option<Cut>) -> Tail {
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
    let missing = |index| Error::from(ErrorKind::SegmentMissing { path: queue.display(), index });
    if !present.contains(&hint) {
        return Err(missing(hint));
    }
    // The segment before the hint may lack its marker: the hint is stored first.
    let mut index = if hint > queue.floor_segment() { hint - 1 } else { hint };
    if !present.contains(&index) {
        index = hint;
    }
    loop {
        let segment = Segment::open(queue, index, true)?;
        if index == 0 && segment.first_sequence() == 0 && segment.is_virgin() {
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
                zero_behind(&segment, walk.offset);
                reset_next(queue, index + 1, present)?;
                return Ok(tail(queue, segment, walk, true, None));
            }
        }
    }
}

/// The writer died between the tail hint and the marker: everything that the marker announces is there.
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
    zero_behind(segment, walk.offset);
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
    let control = queue.control();
    // Acquire: as `store_max`.
    let durable = control.durable_position.load(Ordering::Acquire);
    let first = first_to_check(queue, present, durable)?;
    let mut checker = Checker { queue, durable, walk: None, why: String::new() };
    let mut index = first;
    while present.contains(&index) && checker.check(index)? {
        index += 1;
    }
    checker.finish(present)
}

/// Where the check begins: the segment of the durable position, or the oldest one there is. Also mends the floor, whose page may be older than
/// the removal of the segments below it.
fn first_to_check(queue: &QueueDir, present: &[u64], durable: u64) -> Result<u64> {
    let control = queue.control();
    let floor = queue.floor_segment();
    let durable_segment = queue.geometry.segment_of(durable);
    let oldest = present.iter().copied().find(|&i| i >= floor);
    let Some(oldest) = oldest.or_else(|| present.first().copied()) else {
        return Ok(floor);
    };
    if durable > 0 && !present.contains(&durable_segment) {
        return Err(ErrorKind::SegmentMissing { path: queue.display(), index: durable_segment }.into());
    }
    if oldest != floor {
        control.floor_segment.store(oldest, Ordering::Release);
    }
    Ok(if durable > 0 { durable_segment } else { oldest })
}

/// Checks segment after segment until one is not complete.
struct Checker<'a> {
    queue: &'a Arc<QueueDir>,
    durable: u64,
    /// The last segment with a trusted start, and how far it can be trusted.
    walk: Option<(Arc<Segment>, Walk)>,
    why: String,
}

impl Checker<'_> {
    /// Walks one segment. `true` if it ends with a marker, so that the next one counts.
    fn check(&mut self, index: u64) -> Result<bool> {
        let queue = self.queue;
        let segment = match Segment::open(queue, index, true) {
            Ok(segment) => segment,
            Err(e) if matches!(e.kind(), ErrorKind::Format { .. }) && self.walk.is_some() => {
                self.why = e.to_string();
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        let first_sequence = match &self.walk {
            Some((_, before)) => before.sequence,
            None => segment.first_sequence().max(1),
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
        segment.enter(first_sequence);
        queue.write_table_entry(index, first_sequence);
        let mut walk = Walk::start_of(&segment, first_sequence);
        let end = walk.run(&segment, demand);
        let whole = match end {
            End::Roll => {
                queue.seal_table_entry(index, walk.timestamp_max, walk.offset);
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

    /// Cuts behind the last trusted record and syncs what was changed.
    fn finish(self, present: &[u64]) -> Result<Tail> {
        let queue = self.queue;
        let (segment, walk) = self.walk.ok_or_else(|| {
            Error::from(ErrorKind::SegmentMissing { path: queue.display(), index: queue.floor_segment() })
        })?;
        let position = queue.geometry.position(segment.index, walk.offset);
        let mut set_aside = Vec::new();
        let mut bytes_discarded = count_behind(&segment, walk.offset);
        for &index in present.iter().filter(|&&i| i > segment.index) {
            bytes_discarded += set_segment_aside(queue, index, &mut set_aside)?;
        }
        if bytes_discarded > 0 {
            set_aside.extend(copy_aside(queue, &segment)?);
        }
        failpoint::hit("recovery.set_aside");
        zero_behind(&segment, walk.offset);
        // The table entry was sealed only if a marker was found; there is none behind the cut.
        queue.write_table_entry(segment.index, segment.first_sequence());
        let control = queue.control();
        control.tail_segment.store(segment.index, Ordering::Release);
        let map = segment.map();
        map.sync(0, map.len())
            .map_err(|e| Error::io("sync", queue.segments.join(&segment::file_name(segment.index)), e))?;
        queue.segments.sync()?;
        failpoint::hit("recovery.cut_synced");
        let below_durable = position < self.durable;
        control.durable_position.store(position, Ordering::Release);
        control.durable_sequence.store(walk.sequence - 1, Ordering::Release);
        let cut = (bytes_discarded > 0 || below_durable).then(|| Cut {
            position,
            next_sequence: walk.sequence,
            bytes_discarded,
            set_aside,
            why: if self.why.is_empty() { "what follows cannot be verified".into() } else { self.why },
            below_durable,
        });
        if let Some(cut) = &cut {
            // Relaxed: counters for people.
            control.cuts.fetch_add(1, Ordering::Relaxed);
            // Relaxed: as above.
            control.cut_bytes.fetch_add(cut.bytes_discarded, Ordering::Relaxed);
        }
        super::durable::sync_maps(queue)?;
        Ok(tail(queue, segment, walk, false, cut))
    }
}

/// Renames a segment behind the cut, or removes it if it holds nothing. Returns its non-zero data bytes.
fn set_segment_aside(queue: &QueueDir, index: u64, set_aside: &mut Vec<String>) -> Result<u64> {
    let name = segment::file_name(index);
    let bytes = match Segment::open(queue, index, false) {
        Ok(segment) => count_behind(&segment, queue.geometry.data_offset()),
        // Not even its header survived: keep all of it.
        Err(_) => queue.geometry.segment_bytes() as u64,
    };
    let slot = queue.table_slot(index);
    slot.index_plus_1.store(0, Ordering::Release);
    if bytes == 0 {
        queue.segments.remove(&name)?;
        return Ok(0);
    }
    let kept = cut_name(queue, &name);
    queue.segments.rename(&name, &kept)?;
    set_aside.push(queue.segments.join(&kept));
    Ok(bytes)
}

fn cut_name(queue: &QueueDir, name: &str) -> String {
    format!("{name}.{}.cut", queue.control().epoch.load(Ordering::Acquire))
}

/// Keeps a copy of the segment in which the cut lies. A disk too full for the copy is an error: nothing has been cut yet then.
fn copy_aside(queue: &QueueDir, segment: &Segment) -> Result<Option<String>> {
    let name = cut_name(queue, &segment::file_name(segment.index));
    queue.segments.remove(&name)?;
    let mut file = queue.segments.create_new(&name, queue.file_mode)?;
    // SAFETY: the whole mapping, which nobody stores into: we hold the writer lock.
    let bytes = unsafe { std::slice::from_raw_parts(segment.base(), segment.map().len()) };
    let written = std::io::Write::write_all(&mut file, bytes).and_then(|()| file.sync_all());
    written.map_err(|e| super::dir::full_or(e, &queue.segments, &name, bytes.len() as u64))?;
    Ok(Some(queue.segments.join(&name)))
}

fn clear_index(segment: &Segment) {
    for block in 0..segment.geometry.index_entries() {
        segment.index_entry(block).offset.store(0, Ordering::Release);
    }
}

fn words_behind(segment: &Segment, offset: usize) -> &[u64] {
    let len = segment.geometry.segment_bytes() - offset;
    // SAFETY: inside the mapping, 8-aligned (offsets are multiples of RECORD_ALIGN); nobody stores there while we hold
    // the writer lock.
    unsafe { std::slice::from_raw_parts(segment.base().add(offset).cast::<u64>(), len / 8) }
}

/// Bytes behind `offset` in words that are not zero.
fn count_behind(segment: &Segment, offset: usize) -> u64 {
    words_behind(segment, offset).iter().filter(|&&w| w != 0).count() as u64 * 8
}

/// Makes everything behind the tail zero: half a record may stand there, and its bytes must not be taken for commit words
/// later. Clean pages are only read.
fn zero_behind(segment: &Segment, offset: usize) {
    let mut at = offset;
    while at < segment.geometry.segment_bytes() {
        let end = (at / PAGE_BYTES + 1) * PAGE_BYTES;
        if words_behind(segment, at)[..(end - at) / 8].iter().any(|&w| w != 0) {
            // SAFETY: inside the mapping, which is writable for the writer; readers poll only the commit word at the
            // tail, which is zero already (or, at a cut, there are no readers: the machine has rebooted).
            unsafe { segment.base().add(at).write_bytes(0, end - at) };
            failpoint::hit("recovery.zeroed");
        }
        at = end;
    }
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
                    return End::Untrusted(format!("commit word {commit:#x} does not fit the segment"));
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
