//! Where a hot thread's counts live: one block of fixed layout, on the heap or in a counters file.
//!
//! A counters file lets any process look at the counts of all hot threads of a system, at any time,
//! without asking anybody: the hot thread stores as it always does. The layout is in
//! `docs/internals/format.md`; the rest of such a file is written and read by Python.

use crate::hot::meter::{Histogram, Page, Word};
use crate::hot::thread::Range;
use crate::os::{fs, map::Map};
use crate::sync::Arc;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;

/// How many counters a handler may have.
pub const COUNTERS_MAX: usize = 1024;
/// What a block takes of a counters file.
pub const BLOCK_BYTES: usize = 1 << 16;

/// All zeros is a block of a thread that has not started.
#[repr(C, align(4096))]
struct Block {
    page: Page,
    loop_gap: Histogram,
    handler_time: Histogram,
    counters: [Word; COUNTERS_MAX],
}

const _: () = {
    assert!(size_of::<Block>() <= BLOCK_BYTES);
    assert!(std::mem::offset_of!(Block, page) == 0);
    assert!(std::mem::offset_of!(Block, loop_gap) == 4096);
    assert!(std::mem::offset_of!(Block, handler_time) == 19520);
    assert!(std::mem::offset_of!(Block, counters) == 34944);
};

/// The memory of one block.
struct Memory {
    block: NonNull<Block>,
    /// `None` if it is on the heap.
    map: Option<Map>,
}

// SAFETY: a block is made of atomics; the map is only kept.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.map.is_none() {
            // SAFETY: allocated by `Memory::on_heap` with this layout.
            unsafe { dealloc(self.block.as_ptr().cast(), Layout::new::<Block>()) };
        }
    }
}

impl Memory {
    fn on_heap() -> Self {
        let layout = Layout::new::<Block>();
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(block) = NonNull::new(base.cast()) else { handle_alloc_error(layout) };
        Self { block, map: None }
    }

    /// The block at `offset`, emptied.
    fn in_file(file: &File, offset: usize) -> io::Result<Self> {
        let len = offset.saturating_add(BLOCK_BYTES);
        let is_whole = usize::try_from(fs::file_len(file)?).is_ok_and(|found| found >= len);
        if !offset.is_multiple_of(BLOCK_BYTES) || !is_whole {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a block of this file"));
        }
        let map = Map::new(file, len, true)?;
        // Allocated now, so that a full disk shows here.
        map.populate_range(offset, BLOCK_BYTES)?;
        let base = map.base().wrapping_add(offset);
        // SAFETY: inside the map, which is writable; no thread has the block yet, and who looks
        // from another process sees words that are old or zero.
        unsafe { base.write_bytes(0, BLOCK_BYTES) };
        let block = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("map at null"))?;
        Ok(Self { block, map: Some(map) })
    }
}

/// A part of a block, and a share in its memory.
pub struct Placed<T: ?Sized + 'static> {
    part: NonNull<T>,
    memory: Arc<Memory>,
}

// SAFETY: a shared reference to what is made of atomics.
unsafe impl<T: ?Sized + Sync> Send for Placed<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Sync> Sync for Placed<T> {}

impl<T: ?Sized> Clone for Placed<T> {
    fn clone(&self) -> Self {
        Self { part: self.part, memory: Arc::clone(&self.memory) }
    }
}

impl<T: ?Sized> Deref for Placed<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the part lies in the block, which lives as long as this share in it.
        unsafe { self.part.as_ref() }
    }
}

impl Default for Placed<Page> {
    /// Of a block of its own, on the heap.
    fn default() -> Self {
        Parts::of(Memory::on_heap(), 0).page
    }
}

/// A block's parts.
pub struct Parts {
    pub page: Placed<Page>,
    /// From one turn's start to the next.
    pub loop_gap: Placed<Histogram>,
    /// What handler calls take.
    pub handler_time: Placed<Histogram>,
    pub counters: Placed<[Word]>,
}

impl Parts {
    /// On the heap. At most `COUNTERS_MAX` counters; more are not there.
    pub fn on_heap(counters: usize) -> Self {
        Self::of(Memory::on_heap(), counters)
    }

    /// In a counters file, at the offset of a block that no other thread has.
    ///
    /// # Errors
    /// Of the kernel; `InvalidInput` if there is no such block.
    pub fn in_file(file: &File, offset: usize, counters: usize) -> io::Result<Self> {
        Ok(Self::of(Memory::in_file(file, offset)?, counters))
    }

    fn of(memory: Memory, counters: usize) -> Self {
        let memory = Arc::new(memory);
        // SAFETY: zeroed memory of this layout, which is a block; it lives as long as `memory`.
        let block: &'static Block = unsafe { memory.block.as_ref() };
        Self {
            page: placed(&block.page, &memory),
            loop_gap: placed(&block.loop_gap, &memory),
            handler_time: placed(&block.handler_time, &memory),
            counters: placed(&block.counters[..counters.min(COUNTERS_MAX)], &memory),
        }
    }

    /// What the loop stores into, to be kept in place.
    pub fn range(&self) -> Range {
        Range(self.page.memory.block.as_ptr().cast_const().cast(), size_of::<Block>())
    }
}

/// The part must lie in the block of that memory.
fn placed<T: ?Sized>(part: &'static T, memory: &Arc<Memory>) -> Placed<T> {
    Placed { part: NonNull::from(part), memory: Arc::clone(memory) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// A file without a name.
    fn blocks(count: u64, label: &str) -> File {
        let path = std::env::temp_dir().join(format!("blocks-{}-{label}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(count * BLOCK_BYTES as u64).unwrap();
        file
    }

    #[test]
    fn what_is_counted_in_a_file_is_in_its_bytes() {
        let file = blocks(3, "3");
        file.write_all_at(&[0xAA; BLOCK_BYTES], 2 * BLOCK_BYTES as u64).unwrap();
        let parts = Parts::in_file(&file, 2 * BLOCK_BYTES, 3).unwrap();
        parts.counters[2].add(7);
        parts.loop_gap.record(5);
        let word = |at: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, 2 * BLOCK_BYTES as u64 + at).unwrap();
            u64::from_ne_bytes(bytes)
        };
        assert_eq!([word(34944), word(34952), word(34960)], [0, 0, 7]);
        assert_eq!([word(4096), word(4096 + 64 + 5 * 8)], [5, 1]);
        assert_eq!(parts.counters.len(), 3);
    }

    #[test]
    fn what_is_no_block_of_the_file_is_refused() {
        let file = blocks(2, "2");
        for offset in [2 * BLOCK_BYTES, BLOCK_BYTES / 2, usize::MAX] {
            let error = Parts::in_file(&file, offset, 1).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{offset}");
        }
    }

    #[test]
    fn a_part_keeps_its_memory() {
        let page = Parts::on_heap(0).page;
        page.turns.add(1);
        assert_eq!(page.clone().turns.get(), 1);
    }
}
