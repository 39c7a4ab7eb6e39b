//! UDP datagrams from the network, in place: rings in memory that the kernel fills and a hot thread
//! reads without a system call.
//!
//! A ring has two halves. [`Ring`] walks over the frames; it has one owner, usually a hot thread,
//! and only loads and stores. [`control::Control`] has the sockets: it opens, binds, joins, binds
//! anew when the interface has come back, and asks for the kernel's counts; it stays with whoever
//! opened the ring. They share [`counters::Counters`], of which each stores its own half.
//!
//! - [`lines`]: what is ours. [`parse`]: a frame, a datagram. Both pure.
//! - `mapped`: the ring of a packet socket. `xdp`: those of an XDP socket.
//!
//! What a ring promises is said in `docs/internals/packet-ring.md`.

pub mod control;
pub mod counters;
pub mod lines;
mod mapped;
pub mod parse;
mod xdp;

use crate::error::{Error, ErrorKind, Result};
use crate::os::process;
use crate::packets::counters::Counters;
use crate::packets::lines::Lines;
use crate::packets::mapped::MappedRing;
use crate::packets::parse::About;
use crate::packets::xdp::XdpRing;
use crate::sync::Arc;

pub use crate::packets::xdp::{STAMP_BYTES, STAMP_MAGIC};

/// How large a ring is: powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub frames: usize,
    pub frame_bytes: usize,
}

impl Shape {
    pub const FRAMES_MIN: usize = 16;
    pub const FRAMES_MAX: usize = 1 << 20;
    pub const FRAME_BYTES_MIN: usize = 512;
    pub const FRAME_BYTES_MAX: usize = 1 << 17;
    /// The kernel takes a number of bytes of 32 bits, signed in places.
    pub const BYTES_MAX: usize = 1 << 30;

    /// # Errors
    /// If there is no such ring.
    pub fn new(frames: usize, frame_bytes: usize) -> Result<Self> {
        let check = |what, found: usize, low: usize, high: usize| {
            if found.is_power_of_two() && (low..=high).contains(&found) {
                return Ok(());
            }
            Err(Error::bad(what, found, format!("a power of two, {low} to {high}")))
        };
        check("frames", frames, Self::FRAMES_MIN, Self::FRAMES_MAX)?;
        check("frame_bytes", frame_bytes, Self::FRAME_BYTES_MIN, Self::FRAME_BYTES_MAX)?;
        if frames * frame_bytes > Self::BYTES_MAX {
            let found = format!("{frames} frames of {frame_bytes} bytes");
            let expected = format!("at most {} bytes in all", Self::BYTES_MAX);
            return Err(Error::bad("size of a ring", found, expected));
        }
        Ok(Self { frames, frame_bytes })
    }

    /// # Errors
    /// If an XDP socket cannot have it: its frames lie within pages, two of them or one in each.
    fn check_xdp(self) -> Result<()> {
        let page_bytes = crate::layout::PAGE_BYTES;
        if [page_bytes / 2, page_bytes].contains(&self.frame_bytes) {
            return Ok(());
        }
        let expected = format!("{} or {page_bytes} with backend 'xdp'", page_bytes / 2);
        Err(Error::bad("frame_bytes", self.frame_bytes, expected))
    }
}

/// A frame as the kernel has stored it: valid until the ring goes on.
pub(crate) struct Frame {
    bytes: *const u8,
    stored: usize,
    about: About,
    timestamp_ns: u64,
}

/// A datagram, in place: valid until [`Ring::release`].
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    pub payload: *const u8,
    pub len_bytes: usize,
    pub line: u16,
    /// Counts the datagrams of the ring, from 1.
    pub number: u64,
    /// When it arrived, by the kernel's clock of the day.
    pub timestamp_ns: u64,
}

/// What a look at a ring has found.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// It stays the next one until [`Ring::release`].
    Datagram(Datagram),
    /// A frame that held none; it was counted and given back.
    Dropped,
    Empty,
}

/// Where frames come from.
enum Frames {
    Mapped(MappedRing),
    Xdp(Box<XdpRing>),
}

impl Frames {
    #[inline(always)]
    fn peek(&mut self, counters: &Counters) -> Option<Frame> {
        match self {
            Self::Mapped(ring) => ring.peek(),
            Self::Xdp(ring) => ring.peek(counters),
        }
    }

    #[inline(always)]
    fn advance(&mut self) {
        match self {
            Self::Mapped(ring) => ring.advance(),
            Self::Xdp(ring) => ring.advance(),
        }
    }
}

/// The half of a ring that reads. Never makes a system call.
///
/// A forked child has no frames: only a ring that [`Ring::check_owner`] lets pass may be read.
pub struct Ring {
    frames: Frames,
    lines: Lines,
    counters: Arc<Counters>,
    /// Whether checksums are verified.
    verify: bool,
    /// Frames of the ring.
    frames_count: usize,
    /// Datagrams that were released.
    released: u64,
    fork_generation: u64,
}

impl Ring {
    /// Looks at the next frame. Wait-free; costs the checksum over the datagram, where the kernel
    /// has not verified it.
    #[inline]
    pub fn peek(&mut self) -> Next {
        let Some(frame) = self.frames.peek(&self.counters) else { return Next::Empty };
        // SAFETY: the frame stays ours, and as it is, until we go on, below or in `release`.
        let bytes = unsafe { std::slice::from_raw_parts(frame.bytes, frame.stored) };
        match parse::parse(bytes, &frame.about, &self.lines, self.verify) {
            Ok(found) => Next::Datagram(Datagram {
                payload: bytes[found.start..].as_ptr(),
                len_bytes: found.len_bytes,
                line: found.line,
                number: self.released + 1,
                timestamp_ns: frame.timestamp_ns,
            }),
            Err(reason) => {
                self.counters.count_drop(reason);
                self.frames.advance();
                Next::Dropped
            }
        }
    }

    /// Passes over frames that hold no datagram, at most as many as the ring has: so everything that
    /// was there when this was called has been looked at, however fast the kernel puts more. Gives
    /// their number.
    pub fn skip_dropped(&mut self) -> usize {
        let mut skipped = 0;
        while skipped < self.frames_count && matches!(self.peek(), Next::Dropped) {
            skipped += 1;
        }
        skipped
    }

    /// Gives the frame of the datagram back that [`Ring::peek`] has returned last.
    #[inline]
    pub fn release(&mut self, datagram: &Datagram) {
        debug_assert_eq!(datagram.number, self.released + 1, "released once, in order");
        self.released = datagram.number;
        self.counters.datagrams().add(1);
        self.counters.bytes().add(datagram.len_bytes as u64);
        self.frames.advance();
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// # Errors
    /// `Forked` in a child of the process that opened it: both would take the same frames.
    pub fn check_owner(&self) -> Result<()> {
        let is_ours = self.fork_generation == process::fork_generation();
        if is_ours { Ok(()) } else { Err(ErrorKind::Forked.into()) }
    }
}
