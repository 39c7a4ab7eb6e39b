//! What a ring counts: one half is stored by whoever reads the ring, the other by whoever looks
//! after its socket.

use crate::packets::parse::Drop;
use crate::word::Word;

macro_rules! counters {
    ($($name:ident,)*) => {
        impl Counters {
            /// Every count with its name.
            pub fn words(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name().get()),)*].into_iter()
            }
        }
    };
}

/// Stored by the reader of the ring.
#[repr(C, align(64))]
#[derive(Debug, Default)]
struct Read {
    datagrams: Word,
    bytes: Word,
    not_ours: Word,
    malformed: Word,
    fragments: Word,
    truncated: Word,
    bad_checksums: Word,
}

/// Stored by the owner of the socket.
#[repr(C, align(64))]
#[derive(Debug, Default)]
struct Kept {
    drops: Word,
    rebinds: Word,
    clock_offset_ns: Word,
}

/// See the module's header. Every frame that was read is in exactly one of the first and the five
/// reasons.
#[derive(Debug, Default)]
pub struct Counters {
    read: Read,
    kept: Kept,
}

counters! {
    datagrams,
    bytes,
    not_ours,
    malformed,
    fragments,
    truncated,
    bad_checksums,
    drops,
    rebinds,
}

impl Counters {
    /// Datagrams that were handed out.
    #[inline(always)]
    pub fn datagrams(&self) -> &Word {
        &self.read.datagrams
    }

    /// Bytes of their payloads.
    #[inline(always)]
    pub fn bytes(&self) -> &Word {
        &self.read.bytes
    }

    /// What the filter let pass and the second look did not.
    pub fn not_ours(&self) -> &Word {
        &self.read.not_ours
    }

    pub fn malformed(&self) -> &Word {
        &self.read.malformed
    }

    pub fn fragments(&self) -> &Word {
        &self.read.fragments
    }

    pub fn truncated(&self) -> &Word {
        &self.read.truncated
    }

    pub fn bad_checksums(&self) -> &Word {
        &self.read.bad_checksums
    }

    /// What the kernel had no free frame for.
    pub fn drops(&self) -> &Word {
        &self.kept.drops
    }

    /// Times that the socket was bound anew.
    pub fn rebinds(&self) -> &Word {
        &self.kept.rebinds
    }

    /// From the monotonic clock to that of the day, as it was at the last look.
    #[inline(always)]
    pub fn clock_offset_ns(&self) -> &Word {
        &self.kept.clock_offset_ns
    }

    /// Only the reader of the ring calls this.
    #[cold]
    pub fn count_drop(&self, reason: Drop) {
        match reason {
            Drop::NotOurs => self.not_ours(),
            Drop::Malformed => self.malformed(),
            Drop::Fragment => self.fragments(),
            Drop::Truncated => self.truncated(),
            Drop::BadChecksum => self.bad_checksums(),
        }
        .add(1);
    }
}
