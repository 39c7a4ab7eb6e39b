//! What a queue is created with, and where a reader starts.

use crate::error::{Error, Result};
use crate::layout::{
    Geometry, SEGMENT_SHIFT_DEFAULT, SEGMENT_SHIFT_MAX, SEGMENT_SHIFT_MIN, TABLE_CAPACITY_DEFAULT,
    TABLE_CAPACITY_MAX,
};

/// Fixed at creation. Opening a queue that exists takes what it was created with.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub segment_bytes: u64,
    pub checksum: bool,
    pub segments_max: u32,
    /// Group members may read (0750/0640 instead of 0700/0600).
    pub group_readable: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << SEGMENT_SHIFT_DEFAULT,
            checksum: false,
            segments_max: TABLE_CAPACITY_DEFAULT,
            group_readable: false,
        }
    }
}

impl Options {
    pub fn geometry(&self) -> Result<Geometry> {
        let (min, max) = (1_u64 << SEGMENT_SHIFT_MIN, 1_u64 << SEGMENT_SHIFT_MAX);
        if !self.segment_bytes.is_power_of_two() || !(min..=max).contains(&self.segment_bytes) {
            return Err(Error::bad(
                "segment_bytes",
                self.segment_bytes,
                format!("a power of two from {min} to {max}"),
            ));
        }
        if !(2..=TABLE_CAPACITY_MAX).contains(&self.segments_max) {
            return Err(Error::bad(
                "segments_max",
                self.segments_max,
                format!("2 to {TABLE_CAPACITY_MAX}"),
            ));
        }
        Ok(Geometry { segment_shift: self.segment_bytes.trailing_zeros() })
    }

    pub fn dir_mode(&self) -> u32 {
        if self.group_readable { 0o750 } else { 0o700 }
    }

    pub fn file_mode(&self) -> u32 {
        if self.group_readable { 0o640 } else { 0o600 }
    }
}

/// Where a reader starts or seeks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// After the last commit under this name; a new name starts like [`Start::Earliest`].
    Resume,
    /// At the first message ever. If it was deleted, the first `next` reports the gap.
    Earliest,
    /// At the next message to be written.
    Latest,
    /// At this sequence number.
    Sequence(u64),
    /// At the first message, in sequence order, whose timestamp is at least this.
    Time(u64),
}

/// Queue parts and readers are named by `[A-Za-z0-9._-]+`, at most 128 bytes, not starting with a
/// dot.
pub fn check_name(what: &'static str, name: &str) -> Result<()> {
    let fine = !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if fine {
        return Ok(());
    }
    Err(Error::bad(what, format!("{name:?}"), "1 to 128 of [A-Za-z0-9._-], not starting with '.'"))
}
