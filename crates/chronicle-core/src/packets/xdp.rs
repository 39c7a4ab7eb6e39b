//! The rings of an XDP socket: frames that the kernel has filled come over one, and go back to it
//! over the other.
//!
//! Each ring has a count of what its one side has put and one of what the other has taken, each
//! stored by one side only. So P12 and P13 of [`crate::protocol`] hold for counts as they do for
//! the status word of a frame: who sees the kernel's count sees the frames behind it (P12), and our
//! own counts are stored when we are done with what they give away (P13).
//!
//! The memory belongs to a socket, and a socket to an interface: where that has gone and come back
//! there is a new socket with new memory. [`Exchange`] hands it over while the reader runs, by P5.

use crate::os::clock::Clock;
use crate::os::xdp::XdpMemory;
use crate::packets::Frame;
use crate::packets::counters::Counters;
use crate::packets::parse::{About, Checksum};
use crate::protocol::{Slot, Strong, frame_status, give_frame_back};
use crate::sync::Arc;

/// Behind the time of arrival in front of a frame, if the program has put it there.
pub const STAMP_MAGIC: u64 = 0x6368_726f_6e69_636c;
/// Of the time and the mark.
pub const STAMP_BYTES: usize = 16;

/// Where the owner of the sockets leaves new memory, and finds the old.
#[derive(Default)]
pub struct Exchange {
    pub new: Slot<XdpMemory>,
    pub old: Slot<XdpMemory>,
}

/// See the module's header.
pub struct XdpRing {
    memory: Arc<XdpMemory>,
    exchange: Arc<Exchange>,
    /// Frames that we have taken, and given back.
    taken: u32,
    given_back: u32,
    /// Where the frame that was looked at begins.
    address: u64,
    clock: Clock,
}

impl XdpRing {
    /// The kernel has all frames.
    pub fn new(memory: Arc<XdpMemory>, exchange: Arc<Exchange>) -> Self {
        let (clock, given_back) = (Clock::new(), memory.frame_count as u32);
        Self { memory, exchange, taken: 0, given_back, address: 0, clock }
    }

    /// The next frame, in place. It stays the next one until [`XdpRing::advance`].
    #[inline]
    pub fn peek(&mut self, counters: &Counters) -> Option<Frame> {
        let received = &self.memory.received;
        if frame_status::<Strong>(received.put()) == self.taken {
            let is_more = self.exchange.new.is_full() && self.take_new();
            return if is_more { self.peek(counters) } else { None };
        }
        // SAFETY: the kernel has stored this one (P12) and leaves it alone until it is taken.
        let entry = unsafe { received.entry(self.taken).read() };
        // The kernel keeps to these; they are compared all the same, since they become an address.
        let all = self.memory.frames.len();
        let start = usize::try_from(entry.address).unwrap_or(all).min(all);
        let stored = (entry.len_bytes as usize).min(all - start);
        self.address = start as u64;
        // SAFETY: inside the memory, as was just compared.
        let bytes = unsafe { self.memory.frames.base().add(start) };
        let about = About {
            len_bytes: stored,
            checksum: Checksum::PerhapsNotFilledIn,
            tag_taken_out: false,
        };
        Some(Frame { bytes, stored, about, timestamp_ns: self.arrival_ns(start, counters) })
    }

    /// When the program has seen the frame, by the clock of the day.
    fn arrival_ns(&mut self, start: usize, counters: &Counters) -> u64 {
        if start >= STAMP_BYTES {
            // SAFETY: inside the memory, before the frame, which is ours; of any alignment.
            let (ns, magic) = unsafe {
                let stamp = self.memory.frames.base().add(start - STAMP_BYTES).cast::<u64>();
                (stamp.read_unaligned(), stamp.add(1).read_unaligned())
            };
            if magic == STAMP_MAGIC {
                return ns.wrapping_add(counters.clock_offset_ns().get());
            }
        }
        // The driver leaves no room for it.
        self.clock.now_ns()
    }

    /// Gives the frame back that [`XdpRing::peek`] has found. P13.
    #[inline(always)]
    pub fn advance(&mut self) {
        let start = self.address as usize;
        if start >= STAMP_BYTES {
            // So that nobody takes the stamp for that of the next frame in this place.
            // SAFETY: as in `arrival_ns`.
            unsafe { self.memory.frames.base().add(start - 8).cast::<u64>().write_unaligned(0) };
        }
        self.taken = self.taken.wrapping_add(1);
        give_frame_back::<Strong>(self.memory.received.taken(), self.taken);
        self.give_back(self.address);
    }

    /// P13. There is room: the ring has as many entries as there are frames.
    #[inline(always)]
    fn give_back(&mut self, address: u64) {
        let free = &self.memory.free;
        let frame = address & !(self.memory.frame_bytes as u64 - 1);
        // SAFETY: the kernel does not read this entry before the count says so.
        unsafe { free.entry(self.given_back).write(frame) };
        self.given_back = self.given_back.wrapping_add(1);
        give_frame_back::<Strong>(free.put(), self.given_back);
    }

    /// Goes over to the new memory, if all of the old has been read; whether there is something to
    /// look at. Who sees the new memory sees the last count of the old one (P5), into which nothing
    /// comes any more: the look that found nothing may have been before that.
    #[cold]
    fn take_new(&mut self) -> bool {
        if self.exchange.old.is_full() || !self.exchange.new.is_ready::<Strong>() {
            return false;
        }
        if frame_status::<Strong>(self.memory.received.put()) != self.taken {
            return true;
        }
        let Some(new) = self.exchange.new.take::<Strong>() else { return false };
        let old = std::mem::replace(&mut self.memory, new);
        // The place is free: only this side fills it.
        let put = self.exchange.old.put::<Strong>(old);
        debug_assert!(put.is_ok(), "the place was free");
        (self.taken, self.given_back) = (0, self.memory.frame_count as u32);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::xdp::Descriptor;

    const FRAMES: usize = 16;
    const FRAME_BYTES: usize = 2048;
    /// Both counts go around 2^32 early on.
    const START: u32 = u32::MAX - 20;

    /// The other side of the rings.
    struct Kernel {
        memory: Arc<XdpMemory>,
        taken: u32,
        put: u32,
    }

    impl Kernel {
        fn free(&self) -> usize {
            frame_status::<Strong>(self.memory.free.put()).wrapping_sub(self.taken) as usize
        }

        fn take(&mut self) -> u64 {
            assert_ne!(self.free(), 0);
            // SAFETY: the test has both sides; an entry that was put.
            let frame = unsafe { self.memory.free.entry(self.taken).read() };
            self.taken = self.taken.wrapping_add(1);
            frame
        }

        fn put(&mut self, address: u64, len_bytes: u32) {
            let descriptor = Descriptor { address, len_bytes, options: 0 };
            // SAFETY: as above.
            unsafe { self.memory.received.entry(self.put).write(descriptor) };
            self.put = self.put.wrapping_add(1);
            give_frame_back::<Strong>(self.memory.received.put(), self.put);
        }
    }

    fn rings() -> (Kernel, XdpRing) {
        let memory = XdpMemory::without_kernel(FRAMES, FRAME_BYTES, START).unwrap();
        let memory = Arc::new(memory);
        let mut ring = XdpRing::new(Arc::clone(&memory), Arc::default());
        (ring.taken, ring.given_back) = (START, START);
        for frame in 0..FRAMES {
            ring.give_back((frame * FRAME_BYTES) as u64);
        }
        (Kernel { memory, taken: START, put: START }, ring)
    }

    #[test]
    fn no_frame_is_lost_or_given_back_twice_when_the_counts_go_around() {
        let (mut kernel, mut ring) = rings();
        let counters = Counters::default();
        for turn in 0..100 {
            let count = turn % FRAMES + 1;
            let mut frames: Vec<u64> = (0..count).map(|_| kernel.take()).collect();
            for &frame in &frames {
                kernel.put(frame + 256, 60);
            }
            for &frame in &frames {
                let found = ring.peek(&counters).unwrap();
                let start = found.bytes as u64 - kernel.memory.frames.base() as u64;
                assert_eq!((start, found.stored), (frame + 256, 60));
                ring.advance();
            }
            assert!(ring.peek(&counters).is_none());
            assert_eq!(kernel.free(), FRAMES);
            // Whose they are now: each once.
            frames = (0..FRAMES).map(|_| kernel.take()).collect();
            frames.sort_unstable();
            assert!(frames.iter().enumerate().all(|(n, &at)| at == (n * FRAME_BYTES) as u64));
            frames.into_iter().for_each(|frame| ring.give_back(frame));
        }
        assert!(ring.taken < START, "the counts have gone around");
    }

    #[test]
    fn a_frame_that_came_after_the_look_is_read_before_the_memory_is_left() {
        let (mut kernel, mut ring) = rings();
        let counters = Counters::default();
        assert!(ring.peek(&counters).is_none());
        // What may happen behind that look: a last frame, the end of the socket, a new one.
        let frame = kernel.take();
        kernel.put(frame + 256, 60);
        let new = XdpMemory::without_kernel(FRAMES, FRAME_BYTES, 0).unwrap();
        assert!(ring.exchange.new.put::<Strong>(Arc::new(new)).is_ok());
        assert!(ring.take_new());
        assert_eq!(ring.peek(&counters).map(|found| found.stored), Some(60));
        ring.advance();
        assert!(ring.peek(&counters).is_none());
        let old = ring.exchange.old.take::<Strong>().unwrap();
        assert_eq!((old.untaken(), Arc::ptr_eq(&old, &kernel.memory)), (0, true));
    }

    #[test]
    fn no_descriptor_leads_out_of_the_memory() {
        let (mut kernel, mut ring) = rings();
        let counters = Counters::default();
        let all = FRAMES * FRAME_BYTES;
        for (address, len_bytes) in [
            (all as u64 - 1, u32::MAX),
            (all as u64, 1),
            (u64::MAX, u32::MAX),
            (0, u32::MAX),
            (8, 100),
        ] {
            kernel.put(address, len_bytes);
            let found = ring.peek(&counters).unwrap();
            let start = found.bytes as usize - kernel.memory.frames.base() as usize;
            assert!(start + found.stored <= all, "{address} {len_bytes}");
            // SAFETY: inside the memory, as was just asserted.
            let bytes = unsafe { std::slice::from_raw_parts(found.bytes, found.stored) };
            std::hint::black_box(bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>());
            ring.advance();
        }
    }

    #[test]
    fn a_stamp_is_taken_once_and_none_is_the_time_of_reading() {
        let (mut kernel, mut ring) = rings();
        let counters = Counters::default();
        counters.clock_offset_ns().set(1_000);
        let frame = kernel.take() as usize + 256;
        // SAFETY: inside the memory, of any alignment.
        unsafe {
            let stamp = kernel.memory.frames.base().add(frame - STAMP_BYTES).cast::<u64>();
            stamp.write_unaligned(234);
            stamp.add(1).write_unaligned(STAMP_MAGIC);
        }
        for expected in [true, false] {
            kernel.put(frame as u64, 60);
            let found = ring.peek(&counters).unwrap();
            assert_eq!(found.timestamp_ns == 1_234, expected);
            ring.advance();
        }
    }
}
