//! Every byte on disk. All integers are little-endian; all offsets are in bytes.
//!
//! ```text
//! record (8-byte aligned)                         segment file
//!  0 u32 commit  0 none, length+1, or ROLL         0     SegmentHeader            one page
//!  4 u16 type id                                   4096  IndexEntry x blocks      one per 16 KiB
//!  6 u16 flags   bit 0: crc is valid               data_offset  records ...
//!  8 u64 sequence                                  size - 8     room for the last roll marker
//! 16 u64 timestamp, ns since 1970-01-01 UTC
//! 24 u32 CRC-32C of length, bytes 4..24, payload
//! 28 u32 spare, zero
//! 32 payload
//! ```
//!
//! A file is trusted only after its magic, version, queue id and header CRC are checked; a record
//! only after its length is checked against the segment. See `docs/internals/format.md` for the
//! page that people read.

use crate::protocol::Doorbell;
use crate::sync::{AtomicU32, AtomicU64};
use std::mem::{offset_of, size_of};

pub const FORMAT_VERSION: u32 = 1;
pub const CONTROL_MAGIC: [u8; 8] = *b"CHRNCTL1";
pub const SEGMENT_MAGIC: [u8; 8] = *b"CHRNSEG1";
pub const CURSOR_MAGIC: [u8; 8] = *b"CHRNCUR1";
pub const TABLE_MAGIC: [u8; 8] = *b"CHRNTBL1";

pub const PAGE_BYTES: usize = 4096;
pub const CONTROL_BYTES: usize = PAGE_BYTES;
pub const CURSOR_BYTES: usize = PAGE_BYTES;

pub const SEGMENT_SHIFT_MIN: u32 = 16;
pub const SEGMENT_SHIFT_MAX: u32 = 30;
pub const SEGMENT_SHIFT_DEFAULT: u32 = 26;

/// Records start at multiples of this; see decisions.md for the measurement.
pub const RECORD_ALIGN: usize = 8;
pub const RECORD_HEADER_BYTES: usize = 32;
/// Kept free at the end of each segment for a roll marker.
pub const ROLL_RESERVE_BYTES: usize = 8;
/// Commit word that says "the next record stands in the next segment".
pub const COMMIT_ROLL: u32 = u32::MAX;
/// Record flag: the CRC field is valid.
pub const FLAG_CRC: u16 = 1;
pub const FLAGS_KNOWN: u16 = FLAG_CRC;

/// Sequence numbers stay below this (a segment that starts at or above it is refused), so that
/// counting on never overflows.
pub const SEQUENCE_LIMIT: u64 = 1 << 62;

/// One sparse index entry per block of this many bytes.
pub const INDEX_BLOCK_BYTES: usize = 16 * 1024;

/// Segment table slots, by default and at most.
pub const TABLE_CAPACITY_DEFAULT: u32 = 8192;
pub const TABLE_CAPACITY_MAX: u32 = 1 << 20;
pub const TABLE_HEADER_BYTES: usize = 64;

/// Control flag: records carry a CRC-32C.
pub const CONTROL_FLAG_CRC: u32 = 1;

/// What never changes in the control block; the CRC covers all of it before itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub magic: [u8; 8],
    pub version: u32,
    pub segment_shift: u32,
    pub queue_id: [u8; 16],
    pub created_ns: u64,
    pub flags: u32,
    pub table_capacity: u32,
    pub header_crc: u32,
    pub spare: u32,
}

#[repr(C, align(4096))]
pub struct ControlBlock {
    pub identity: Identity,
    _pad0: [u8; 72],
    // Offset 128: the writer's line, stored at open and at rolls only.
    pub epoch: AtomicU64,
    pub tail_segment: AtomicU64,
    pub writer_pid: AtomicU32,
    _pad1: u32,
    pub boot_id: [AtomicU64; 2],
    pub opened_ns: AtomicU64,
    _pad2: [u8; 80],
    // Offset 256: waiters and the writer meet here.
    pub doorbell: Doorbell,
    _pad3: [u8; 120],
    // Offset 384: retention's line.
    pub floor_segment: AtomicU64,
    _pad4: [u8; 120],
    // Offset 512: what is on disk for certain.
    pub durable_sequence: AtomicU64,
    pub durable_position: AtomicU64,
    _pad5: [u8; 112],
    // Offset 640: counters, for people.
    pub rolls: AtomicU64,
    pub rolls_inline: AtomicU64,
    pub recoveries: AtomicU64,
    pub cuts: AtomicU64,
    pub cut_bytes: AtomicU64,
    pub segments_deleted: AtomicU64,
    _pad6: [u8; 3408],
}

#[repr(C)]
pub struct SegmentHeader {
    pub magic: [u8; 8],
    pub version: u32,
    pub segment_shift: u32,
    pub queue_id: [u8; 16],
    pub index: u64,
    pub header_crc: u32,
    pub spare: u32,
    /// 0 until the writer enters the segment. Offset 48.
    pub first_sequence: AtomicU64,
}

/// `offset` is stored last (Release): 0 means that the entry is not there yet.
#[repr(C)]
pub struct IndexEntry {
    /// Of the first record that starts in or after this block, from the start of the segment.
    pub offset: AtomicU64,
    pub sequence: AtomicU64,
    /// Highest timestamp of the records of this segment before that record; 0 if there are none.
    pub timestamp_max: AtomicU64,
}

#[repr(C)]
pub struct TableEntry {
    /// Segment index + 1, stored last (Release); 0 is an empty slot.
    pub index_plus_1: AtomicU64,
    pub first_sequence: AtomicU64,
    /// Of the whole segment; valid once `end_offset` is non-zero.
    pub timestamp_max: AtomicU64,
    pub timestamp_first: AtomicU64,
    /// Where the roll marker stands; 0 while the segment is written.
    pub end_offset: AtomicU64,
}

#[repr(C)]
pub struct TableHeader {
    pub magic: [u8; 8],
    pub version: u32,
    pub capacity: u32,
    pub queue_id: [u8; 16],
    pub header_crc: u32,
    pub spare: [u8; 28],
}

#[repr(C, align(4096))]
pub struct CursorBlock {
    pub magic: [u8; 8],
    pub version: u32,
    pub header_crc: u32,
    pub queue_id: [u8; 16],
    pub created_ns: u64,
    _pad0: [u8; 88],
    // Offset 128: the reader's line.
    pub next_sequence: AtomicU64,
    pub next_position: AtomicU64,
    pub pid: AtomicU32,
    /// 1 once the reader has placed itself; before that the two words above mean nothing.
    pub placed: AtomicU32,
    pub opened_ns: AtomicU64,
    /// Where a recovery has cut the queue below this cursor: the next sequence number there; 0 if
    /// it has not. The reader clears it when it has reported the gap.
    pub cut_sequence: AtomicU64,
    _pad1: [u8; 3928],
}

#[repr(C)]
pub struct RecordHeader {
    pub commit: AtomicU32,
    pub type_id: u16,
    pub flags: u16,
    pub sequence: u64,
    pub timestamp_ns: u64,
    pub crc: u32,
    pub spare: u32,
}

const _: () = {
    assert!(size_of::<Identity>() == 56);
    assert!(offset_of!(Identity, header_crc) == 48);
    assert!(size_of::<ControlBlock>() == CONTROL_BYTES);
    assert!(offset_of!(ControlBlock, epoch) == 128);
    assert!(offset_of!(ControlBlock, tail_segment) == 136);
    assert!(offset_of!(ControlBlock, writer_pid) == 144);
    assert!(offset_of!(ControlBlock, boot_id) == 152);
    assert!(offset_of!(ControlBlock, doorbell) == 256);
    assert!(offset_of!(ControlBlock, floor_segment) == 384);
    assert!(offset_of!(ControlBlock, durable_sequence) == 512);
    assert!(offset_of!(ControlBlock, rolls) == 640);
    assert!(size_of::<Doorbell>() == 8);
    assert!(size_of::<SegmentHeader>() == 56);
    assert!(offset_of!(SegmentHeader, header_crc) == 40);
    assert!(offset_of!(SegmentHeader, first_sequence) == 48);
    assert!(size_of::<IndexEntry>() == 24);
    assert!(size_of::<TableEntry>() == 40);
    assert!(size_of::<TableHeader>() == TABLE_HEADER_BYTES);
    assert!(offset_of!(TableHeader, header_crc) == 32);
    assert!(size_of::<CursorBlock>() == CURSOR_BYTES);
    assert!(offset_of!(CursorBlock, next_sequence) == 128);
    assert!(offset_of!(CursorBlock, cut_sequence) == 160);
    assert!(size_of::<RecordHeader>() == RECORD_HEADER_BYTES);
    assert!(offset_of!(RecordHeader, sequence) == 8);
    assert!(offset_of!(RecordHeader, crc) == 24);
    assert!(cfg!(target_endian = "little"));
};

/// The numbers that follow from a segment's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub segment_shift: u32,
}

impl Geometry {
    #[inline(always)]
    pub fn segment_bytes(self) -> usize {
        1 << self.segment_shift
    }

    #[inline(always)]
    pub fn index_entries(self) -> usize {
        self.segment_bytes() / INDEX_BLOCK_BYTES
    }

    /// Where the first record stands.
    #[inline(always)]
    pub fn data_offset(self) -> usize {
        (PAGE_BYTES + self.index_entries() * size_of::<IndexEntry>()).next_multiple_of(64)
    }

    /// Records must end at or before this.
    #[inline(always)]
    pub fn data_limit(self) -> usize {
        self.segment_bytes() - ROLL_RESERVE_BYTES
    }

    pub fn payload_bytes_max(self) -> usize {
        (self.data_limit() - self.data_offset() - RECORD_HEADER_BYTES) / RECORD_ALIGN * RECORD_ALIGN
    }

    #[inline(always)]
    pub fn position(self, segment: u64, offset: usize) -> u64 {
        segment << self.segment_shift | offset as u64
    }

    /// The highest segment index whose positions fit into 64 bits. One more never overflows an
    /// index.
    pub fn segment_index_max(self) -> u64 {
        u64::MAX >> self.segment_shift
    }

    /// More records than this do not fit into a segment.
    pub fn records_max(self) -> u64 {
        (self.segment_bytes() / RECORD_HEADER_BYTES) as u64
    }

    #[inline(always)]
    pub fn segment_of(self, position: u64) -> u64 {
        position >> self.segment_shift
    }

    #[inline(always)]
    pub fn offset_of(self, position: u64) -> usize {
        (position & (self.segment_bytes() as u64 - 1)) as usize
    }
}

/// Bytes from the start of a record to the start of the next.
#[inline(always)]
pub fn record_stride(payload_bytes: usize) -> usize {
    // As `next_multiple_of`, which the compiler does not see through: a branch less per record.
    const { assert!(RECORD_ALIGN.is_power_of_two()) };
    (RECORD_HEADER_BYTES + payload_bytes + RECORD_ALIGN - 1) & !(RECORD_ALIGN - 1)
}

/// The CRC-32C of a record: over its length, its header without commit word and CRC, and its
/// payload.
pub fn record_crc(
    type_id: u16,
    flags: u16,
    sequence: u64,
    timestamp_ns: u64,
    payload: &[u8],
) -> u32 {
    let mut head = [0_u8; 24];
    head[0..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    head[4..6].copy_from_slice(&type_id.to_le_bytes());
    head[6..8].copy_from_slice(&flags.to_le_bytes());
    head[8..16].copy_from_slice(&sequence.to_le_bytes());
    head[16..24].copy_from_slice(&timestamp_ns.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), payload)
}
