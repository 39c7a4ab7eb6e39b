//! The log ring: a handler's log call stores 64 bytes; whoever drains the ring formats them.
//!
//! The ring is the crate rtrb's: one producer, the hot thread, and one consumer. When it is full,
//! the record is dropped and counted: a slow drain costs log lines, never time.

use crate::hot::block::Placed;
use crate::hot::command;
use crate::hot::meter::Page;
use crate::hot::thread::Range;
use rtrb::{Consumer, Producer};

/// Arguments of one record.
pub const ARGUMENTS_MAX: usize = 5;

/// Tags of four bits, the first argument's lowest.
pub const TAG_NONE: u64 = 0;
pub const TAG_I64: u64 = 1;
pub const TAG_U64: u64 = 2;
pub const TAG_F64: u64 = 3;
/// Up to eight bytes of text, padded with zeros.
pub const TAG_TEXT: u64 = 4;
pub const TAG_BOOL: u64 = 5;

/// One line of a log. In one cache line of its own.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogRecord {
    pub ns: u64,
    /// Which log call: format string and level stand in the handler's description.
    pub site: u32,
    pub count: u8,
    pub level: u8,
    pub spare: u16,
    pub tags: u64,
    pub args: [u64; ARGUMENTS_MAX],
}

pub const LOG_RECORD_BYTES: usize = size_of::<LogRecord>();
const _: () = assert!(LOG_RECORD_BYTES == 64);

impl LogRecord {
    /// As it stands in memory.
    pub fn to_bytes(&self) -> [u8; LOG_RECORD_BYTES] {
        let mut bytes = [0; LOG_RECORD_BYTES];
        bytes[..8].copy_from_slice(&self.ns.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.site.to_le_bytes());
        bytes[12] = self.count;
        bytes[13] = self.level;
        bytes[14..16].copy_from_slice(&self.spare.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.tags.to_le_bytes());
        for (place, arg) in bytes[24..].chunks_exact_mut(8).zip(self.args) {
            place.copy_from_slice(&arg.to_le_bytes());
        }
        bytes
    }
}

/// The hot thread's end.
pub struct LogWriter {
    ring: Producer<LogRecord>,
    page: Placed<Page>,
}

impl LogWriter {
    /// A ring for so many records, all its memory faulted in and noted in `ranges`.
    pub fn new(
        records: usize,
        page: Placed<Page>,
        ranges: &mut Vec<Range>,
    ) -> (Self, Consumer<LogRecord>) {
        let (ring, consumer) = command::faulted_in(records, LogRecord::default, ranges);
        (Self { ring, page }, consumer)
    }

    /// Wait-free; drops and counts when the ring is full.
    #[inline(always)]
    pub fn push(&mut self, ns: u64, site: u32, tags: u64, args: &[u64]) {
        let mut record =
            LogRecord { ns, site, count: args.len() as u8, tags, ..LogRecord::default() };
        record.args[..args.len()].copy_from_slice(args);
        let counter = match self.ring.push(record) {
            Ok(()) => &self.page.log_records,
            Err(_) => &self.page.log_drops,
        };
        counter.add(1);
    }
}
