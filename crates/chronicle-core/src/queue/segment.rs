//! One segment file: creating and publishing it, opening and checking it.

use crate::error::{ErrorKind, Result};
use crate::failpoint;
use crate::layout::*;
use crate::os::map::Map;
use crate::queue::dir::{self, QueueDir, crc_of, expect, expect_magic};
use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering, prefetch_write};

pub fn file_name(index: u64) -> String {
    format!("{index:020}.seg")
}

/// The index that a file name stands for, if it is a segment's.
pub fn index_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

/// A mapped segment whose header was checked.
pub struct Segment {
    pub index: u64,
    pub geometry: Geometry,
    map: Map,
}

impl Segment {
    #[inline(always)]
    pub fn base(&self) -> *mut u8 {
        self.map.base()
    }

    pub fn map(&self) -> &Map {
        &self.map
    }

    pub fn header(&self) -> &SegmentHeader {
        // SAFETY: a segment is larger than its header and page-aligned; the header's plain fields
        // never change after the file is published, the rest is atomic.
        unsafe { &*self.base().cast::<SegmentHeader>() }
    }

    /// The sequence number of the first record; 0 while the writer has not entered.
    pub fn first_sequence(&self) -> u64 {
        // Acquire: pairs with the Release in `enter`.
        self.header().first_sequence.load(Ordering::Acquire)
    }

    /// The commit word at an offset.
    ///
    /// # Safety
    /// `offset` is 4-aligned and at least 4 bytes before the end of the segment.
    #[inline(always)]
    pub unsafe fn commit_word(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(4) && offset + 4 <= self.geometry.segment_bytes());
        // SAFETY: in range and aligned by the caller's promise.
        unsafe { &*self.base().add(offset).cast::<AtomicU32>() }
    }

    pub fn index_entry(&self, block: usize) -> &IndexEntry {
        assert!(block < self.geometry.index_entries());
        // SAFETY: the index area holds `index_entries` entries after the header page; entries are
        // atomics, 8-aligned.
        unsafe { &*self.base().add(PAGE_BYTES).cast::<IndexEntry>().add(block) }
    }

    /// Whether the writer has never entered this segment.
    pub fn is_virgin(&self) -> bool {
        // SAFETY: the data offset is aligned and far from the end.
        let word = unsafe { self.commit_word(self.geometry.data_offset()) };
        // Acquire: as `first_sequence`.
        self.first_sequence() == 0 && word.load(Ordering::Acquire) == 0
    }

    /// Opens a published segment for reading (or, for the writer, for writing) and checks its
    /// header.
    ///
    /// # Errors
    /// `Format` for anything else than a segment of this queue with this index; that its numbers
    /// fit is checked here, so that positions, `index + 1` and sequence numbers can be computed
    /// without a check later.
    pub fn open(queue: &QueueDir, index: u64, writable: bool) -> Result<Arc<Self>> {
        let name = file_name(index);
        let index_max = queue.geometry.segment_index_max();
        if index > index_max {
            let path = queue.segments.join(&name);
            return dir::out_of_range(path, "segment_index", index, format!("at most {index_max}"));
        }
        let file = queue.segments.open_file(&name, writable)?;
        let bytes = queue.geometry.segment_bytes() as u64;
        let map = dir::map_exact(&queue.segments, &name, &file, bytes, writable)?;
        let segment = Self { index, geometry: queue.geometry, map };
        segment.check(queue, &name)?;
        Ok(Arc::new(segment))
    }

    fn check(&self, queue: &QueueDir, name: &str) -> Result<()> {
        let path = queue.segments.join(name);
        let header = self.header();
        expect_magic(&path, header.magic, SEGMENT_MAGIC)?;
        expect(&path, "version", header.version, FORMAT_VERSION)?;
        expect(&path, "queue_id", header.queue_id, queue.identity.queue_id)?;
        expect(&path, "segment_index", header.index, self.index)?;
        expect(&path, "segment_shift", header.segment_shift, queue.geometry.segment_shift)?;
        expect(&path, "header_crc", header.header_crc, header_crc(header))?;
        let first = self.first_sequence();
        if first >= SEQUENCE_LIMIT {
            let expected = format!("less than {SEQUENCE_LIMIT}");
            return dir::out_of_range(path, "first_sequence", first, expected);
        }
        Ok(())
    }

    /// Whether a record with that number can stand in this segment.
    pub fn may_hold(&self, sequence: u64) -> bool {
        let nth = sequence.checked_sub(self.first_sequence());
        nth.is_some_and(|nth| nth < self.geometry.records_max())
    }

    /// Gives the writer a segment that it has not entered: creates and publishes it, or takes the
    /// one that was prepared earlier. All pages are allocated and mapped when this returns.
    pub fn prepare(queue: &QueueDir, index: u64) -> Result<Arc<Self>> {
        let floor = queue.floor_segment();
        if index.saturating_sub(floor) >= queue.table_capacity() {
            return Err(ErrorKind::QueueFull {
                path: queue.display(),
                segments: index - floor,
                segments_max: queue.table_capacity(),
            }
            .into());
        }
        match Self::open(queue, index, true) {
            Ok(segment) => return segment.virgin(queue),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        Self::create(queue, index)
    }

    fn virgin(self: Arc<Self>, queue: &QueueDir) -> Result<Arc<Self>> {
        if !self.is_virgin() {
            let why = format!(
                "segment {} was written although the writer has not reached it",
                self.index
            );
            return Err(queue.corrupt(self.geometry.position(self.index, 0), why));
        }
        self.populate(queue)?;
        Ok(self)
    }

    fn populate(&self, queue: &QueueDir) -> Result<()> {
        let bytes = self.geometry.segment_bytes() as u64;
        self.map
            .populate()
            .map_err(|e| dir::full_or(e, &queue.segments, &file_name(self.index), bytes))
    }

    fn create(queue: &QueueDir, index: u64) -> Result<Arc<Self>> {
        static UNIQUE: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only uniqueness matters.
        let unique = UNIQUE.fetch_add(1, Ordering::Relaxed);
        let name = file_name(index);
        let tmp = format!("{name}.{}-{unique}.tmp", crate::os::process::pid());
        let made = Self::create_as(queue, index, &tmp);
        let published = made.and_then(|segment| {
            failpoint::hit("segment.before_rename");
            let published = queue.segments.rename_new(&tmp, &name)?;
            failpoint::hit("segment.after_rename");
            // The provisioner and an inline roll may both have built it; the first to rename wins.
            if published { Ok(segment) } else { Self::open(queue, index, true)?.virgin(queue) }
        });
        if published.is_err() || queue.segments.open_file(&tmp, false).is_ok() {
            queue.segments.remove(&tmp)?;
        }
        published
    }

    fn create_as(queue: &QueueDir, index: u64, tmp: &str) -> Result<Arc<Self>> {
        queue.segments.remove(tmp)?;
        let file = queue.segments.create_new(tmp, queue.file_mode)?;
        failpoint::hit("segment.created");
        let bytes = queue.geometry.segment_bytes() as u64;
        let full_or = |e| dir::full_or(e, &queue.segments, tmp, bytes);
        file.set_len(bytes).map_err(full_or)?;
        let map = dir::map_exact(&queue.segments, tmp, &file, bytes, true)?;
        let segment = Self { index, geometry: queue.geometry, map };
        // `fallocate` takes small pages on a tmpfs that waits for advice about large ones, and what
        // is there stays.
        if segment.map.try_huge(&file).map_err(full_or)? {
            segment.populate(queue)?;
        }
        dir::allocate(&queue.segments, tmp, &file, bytes)?;
        failpoint::hit("segment.allocated");
        segment.populate(queue)?;

        let mut header = SegmentHeader {
            magic: SEGMENT_MAGIC,
            version: FORMAT_VERSION,
            segment_shift: queue.geometry.segment_shift,
            queue_id: queue.identity.queue_id,
            index,
            header_crc: 0,
            spare: 0,
            first_sequence: AtomicU64::new(0),
        };
        header.header_crc = header_crc(&header);
        // SAFETY: the map is ours alone until the rename, and larger than a header.
        unsafe { segment.base().cast::<SegmentHeader>().write(header) };
        failpoint::hit("segment.header");
        Ok(Arc::new(segment))
    }

    /// Fetches the lines that a writer stores into when it enters. It stores the zeros that are
    /// there: a prefetch is a hint, and was seen to be dropped for lines of cold pages.
    ///
    /// Only for the writer, and only before it enters.
    pub fn warm(&self) {
        // SAFETY: the data offset is aligned and far from the end.
        let word = unsafe { self.commit_word(self.geometry.data_offset()) };
        // Relaxed, all of them: nothing changes, so there is nothing to publish.
        self.header().first_sequence.store(0, Ordering::Relaxed);
        // Relaxed: as above.
        self.index_entry(0).sequence.store(0, Ordering::Relaxed);
        // Relaxed: as above.
        word.store(0, Ordering::Relaxed);
        prefetch_write(self.base().wrapping_add(self.geometry.data_offset() + 64));
    }

    /// The writer enters: from now on the segment counts. Stores only.
    pub fn enter(&self, first_sequence: u64) {
        self.header().first_sequence.store(first_sequence, Ordering::Release);
    }
}

fn header_crc(header: &SegmentHeader) -> u32 {
    crc_of(header, std::mem::offset_of!(SegmentHeader, header_crc))
}

/// What stands at an offset of a segment, as far as it can be told without the record before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Nothing is committed here yet.
    Empty,
    /// The next record stands in the next segment.
    Roll,
    /// A record whose length fits; nothing else of it was checked.
    Record(RawRecord),
    /// The commit word cannot be true.
    Bad(u32),
}

/// A record by its header. `offset` and `len` are checked against the segment, so the payload may
/// be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRecord {
    pub offset: usize,
    pub len: usize,
    pub sequence: u64,
    pub timestamp_ns: u64,
    pub type_id: u16,
    pub flags: u16,
}

impl RawRecord {
    #[inline(always)]
    pub fn end(&self) -> usize {
        self.offset + record_stride(self.len)
    }
}

/// Reads what stands at `offset`, which must be 8-aligned and at most `data_limit`. Never reads
/// outside of the segment. P1.
///
/// # Safety
/// `base` is the start of a mapped segment of this geometry.
#[inline(always)]
pub unsafe fn slot_at(base: *const u8, geometry: Geometry, offset: usize) -> Slot {
    debug_assert!(offset.is_multiple_of(RECORD_ALIGN) && offset <= geometry.data_limit());
    // SAFETY: aligned, and at least ROLL_RESERVE_BYTES before the end of the mapping.
    let word = unsafe { &*base.add(offset).cast::<AtomicU32>() };
    let commit = crate::protocol::committed::<crate::protocol::Strong>(word);
    if commit == 0 {
        return Slot::Empty;
    }
    if commit == COMMIT_ROLL {
        return Slot::Roll;
    }
    let len = commit as usize - 1;
    if offset + record_stride(len) > geometry.data_limit() {
        return Slot::Bad(commit);
    }
    // SAFETY: the whole record is inside the segment (checked above) and was published before its
    // commit word (P1), so the plain header fields behind the commit word may be read.
    unsafe {
        let at = base.add(offset).cast::<RecordHeader>();
        Slot::Record(RawRecord {
            offset,
            len,
            sequence: (&raw const (*at).sequence).read(),
            timestamp_ns: (&raw const (*at).timestamp_ns).read(),
            type_id: (&raw const (*at).type_id).read(),
            flags: (&raw const (*at).flags).read(),
        })
    }
}

impl Segment {
    /// [`slot_at`] for code that is not hot. Panics on a misaligned or too large offset.
    pub fn slot(&self, offset: usize) -> Slot {
        assert!(offset.is_multiple_of(RECORD_ALIGN) && offset <= self.geometry.data_limit());
        // SAFETY: our own mapping and geometry; the offset was just checked.
        unsafe { slot_at(self.base(), self.geometry, offset) }
    }

    /// The payload of a record of this segment.
    pub fn payload(&self, record: &RawRecord) -> &[u8] {
        assert!(record.end() <= self.geometry.data_limit());
        // SAFETY: in range; the record is committed, and committed bytes do not change while a
        // reader may look (recovery zeroes only what was never committed).
        unsafe {
            std::slice::from_raw_parts(
                self.base().add(record.offset + RECORD_HEADER_BYTES),
                record.len,
            )
        }
    }

    /// Whether the record's CRC holds. True for records that carry none.
    pub fn crc_holds(&self, record: &RawRecord) -> bool {
        if record.flags & FLAG_CRC == 0 {
            return true;
        }
        // SAFETY: the header is inside the segment, as `RawRecord` promises and `payload` asserts.
        let found = unsafe {
            (&raw const (*self.base().add(record.offset).cast::<RecordHeader>()).crc).read()
        };
        let payload = self.payload(record);
        found
            == record_crc(
                record.type_id,
                record.flags,
                record.sequence,
                record.timestamp_ns,
                payload,
            )
    }
}
