//! The ring of a packet socket: frames one behind the other, each with a header whose status word
//! says whose it is.
//!
//! The kernel fills frames in turn and skips none: while the next one is still ours it drops (and
//! counts). So the reader, too, looks at one place only. It reads a frame where it stands and gives
//! it back when it is done. P12 and P13 of [`crate::protocol`] are all there is to it.

use crate::error::{Error, Result};
use crate::os::map::Map;
use crate::os::packet::{
    FrameHeader, PacketSocket, STATUS_CHECKSUM_NOT_READY, STATUS_CHECKSUM_VALID, STATUS_KERNEL,
    STATUS_USER, STATUS_VLAN_VALID,
};
use crate::packets::parse::{About, Checksum};
use crate::packets::{Frame, Shape};
use crate::protocol::{Strong, frame_status, give_frame_back};
use crate::sync::{AtomicU32, prefetch_read};
use std::mem::offset_of;

/// The kernel allocates the ring in blocks of at least this; a frame never crosses two.
const BLOCK_BYTES_MIN: usize = 64 << 10;

const NS_PER_S: u64 = 1_000_000_000;

/// See the module's header.
pub struct MappedRing {
    map: Map,
    frame_bytes: usize,
    /// Frames less one: their number is a power of two.
    mask: usize,
    /// Counts frames; its low bits are the place of the next one.
    at: usize,
}

const _: () = {
    assert!(offset_of!(FrameHeader, tp_status) == 0);
    assert!(align_of::<FrameHeader>() == 4);
};

impl MappedRing {
    pub fn new(socket: &PacketSocket, shape: Shape) -> Result<Self> {
        let Shape { frames, frame_bytes } = shape;
        let block_bytes = frame_bytes.max(BLOCK_BYTES_MIN).min(frames * frame_bytes);
        let map = socket.map_ring(frames, frame_bytes, block_bytes).map_err(|source| {
            let what = format!("frames={frames} frame_bytes={frame_bytes}");
            Error::network("make a ring of packets", what, source)
        })?;
        Ok(Self { map, frame_bytes, mask: frames - 1, at: 0 })
    }

    #[inline(always)]
    fn slot(&self, at: usize) -> *mut u8 {
        // SAFETY: the mapping holds `mask + 1` frames.
        unsafe { self.map.base().add((at & self.mask) * self.frame_bytes) }
    }

    #[inline(always)]
    fn status(&self) -> &AtomicU32 {
        // SAFETY: the first word of a frame, which is aligned to more than that, in a mapping that
        // we own; the kernel stores there as one word.
        unsafe { AtomicU32::from_ptr(self.slot(self.at).cast()) }
    }

    /// The next frame, in place. It stays the next one, and does not change, until
    /// [`MappedRing::advance`].
    #[inline(always)]
    pub fn peek(&self) -> Option<Frame> {
        let status = frame_status::<Strong>(self.status());
        if status & STATUS_USER == 0 {
            return None;
        }
        let slot = self.slot(self.at);
        // SAFETY: the frame is ours (P12): the kernel has written the header and changes nothing.
        let header = unsafe { slot.cast::<FrameHeader>().read() };
        // The kernel keeps to this; it is compared all the same, since it is an address.
        let start = usize::from(header.tp_mac).min(self.frame_bytes);
        let stored = (header.tp_snaplen as usize).min(self.frame_bytes - start);
        let checksum = if status & STATUS_CHECKSUM_NOT_READY != 0 {
            Checksum::NotFilledIn
        } else if status & STATUS_CHECKSUM_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Unknown
        };
        let about = About {
            len_bytes: header.tp_len as usize,
            checksum,
            tag_taken_out: status & STATUS_VLAN_VALID != 0,
        };
        let timestamp_ns = u64::from(header.tp_sec) * NS_PER_S + u64::from(header.tp_nsec);
        // SAFETY: inside the frame, as was just compared.
        let bytes = unsafe { slot.add(start) };
        Some(Frame { bytes, stored, about, timestamp_ns })
    }

    /// Gives the frame back that [`MappedRing::peek`] has found. P13.
    #[inline(always)]
    pub fn advance(&mut self) {
        give_frame_back::<Strong>(self.status(), STATUS_KERNEL);
        self.at = self.at.wrapping_add(1);
        prefetch_read(self.slot(self.at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::process;
    use crate::packets::lines::Lines;
    use crate::packets::{Frames, Next, Ring};
    use crate::sync::Arc;

    const FRAMES: usize = 16;
    const FRAME_BYTES: usize = 512;

    /// A ring full of frames without a byte, which looks at `frames_count` of them at a time.
    fn full_of_nothing(frames_count: usize) -> Ring {
        let map = Map::shared_memory(FRAMES * FRAME_BYTES).unwrap();
        let mut frames = MappedRing { map, frame_bytes: FRAME_BYTES, mask: FRAMES - 1, at: 0 };
        for at in 0..FRAMES {
            frames.at = at;
            give_frame_back::<Strong>(frames.status(), STATUS_USER);
        }
        frames.at = 0;
        Ring {
            frames: Frames::Mapped(frames),
            lines: Lines::new(&["10.0.0.1:5".parse().unwrap()]),
            counters: Arc::default(),
            verify: true,
            frames_count,
            released: 0,
            fork_generation: process::fork_generation(),
        }
    }

    #[test]
    fn no_header_leads_out_of_its_frame() {
        let map = Map::shared_memory(FRAMES * FRAME_BYTES).unwrap();
        let ring = MappedRing { map, frame_bytes: FRAME_BYTES, mask: FRAMES - 1, at: FRAMES - 1 };
        let slot = ring.slot(FRAMES - 1);
        for (tp_mac, tp_snaplen) in [
            (80, 60),
            (80, u32::MAX),
            (FRAME_BYTES as u16, 1),
            (u16::MAX, u32::MAX),
            (0, FRAME_BYTES as u32 + 1),
        ] {
            // SAFETY: the last frame, which nobody else has; zeros are a header.
            unsafe {
                let mut header: FrameHeader = std::mem::zeroed();
                (header.tp_mac, header.tp_snaplen, header.tp_len) = (tp_mac, tp_snaplen, u32::MAX);
                slot.cast::<FrameHeader>().write(header);
            }
            give_frame_back::<Strong>(ring.status(), STATUS_USER);
            let found = ring.peek().unwrap();
            let start = found.bytes as usize - slot as usize;
            assert!(start + found.stored <= FRAME_BYTES, "{tp_mac} {tp_snaplen}");
        }
    }

    #[test]
    fn what_is_passed_over_ends_where_the_ring_does() {
        let mut ring = full_of_nothing(FRAMES);
        assert_eq!(ring.skip_dropped(), FRAMES);
        assert!(matches!(ring.peek(), Next::Empty));
        assert_eq!(ring.counters().not_ours().get(), FRAMES as u64);
    }

    #[test]
    fn what_is_passed_over_ends_although_the_kernel_puts_more() {
        // As if the frames behind these had come meanwhile.
        let mut ring = full_of_nothing(FRAMES / 2);
        assert_eq!(ring.skip_dropped(), FRAMES / 2);
        assert!(matches!(ring.peek(), Next::Dropped));
    }
}
