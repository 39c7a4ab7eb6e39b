//! What a hot thread and its sidecar both see: the status page, the histograms, the handler's
//! counters and its state.

use crate::hot::block::Parts;
use crate::hot::thread::Range;
use crate::sync::{AtomicU64, Ordering};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Deref;

/// A handler's state: one record, aligned to a cache line. The handler stores into it by address.
pub struct StateRecord {
    base: *mut u8,
    len: usize,
}

// SAFETY: plain bytes; who may touch them when is said at each function.
unsafe impl Send for StateRecord {}
// SAFETY: as above; `snapshot` is the only use that is shared.
unsafe impl Sync for StateRecord {}

const STATE_ALIGN: usize = 64;

impl StateRecord {
    pub fn new(initial: &[u8]) -> Self {
        let base = {
            let layout = Self::layout(initial.len());
            // SAFETY: the layout is never empty.
            let base = unsafe { alloc_zeroed(layout) };
            if base.is_null() {
                handle_alloc_error(layout);
            }
            base
        };
        // SAFETY: at least as long as `initial`, and new.
        unsafe { base.copy_from_nonoverlapping(initial.as_ptr(), initial.len()) };
        Self { base, len: initial.len() }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.max(1).next_multiple_of(STATE_ALIGN);
        Layout::from_size_align(bytes, STATE_ALIGN).expect("longer than any slice can be")
    }

    pub fn base(&self) -> *mut u8 {
        self.base
    }

    pub fn range(&self) -> Range {
        Range(self.base, Self::layout(self.len).size())
    }

    /// A copy. While the handler runs each word is whole, but words may be of different moments.
    pub fn snapshot(&self) -> Vec<u8> {
        let words = self.len.div_ceil(8);
        let mut bytes = Vec::with_capacity(words * 8);
        for word in 0..words {
            // SAFETY: inside the record, which is padded to whole words and aligned; the handler's
            // stores are the machine's plain ones, which these loads may meet.
            let word = unsafe { AtomicU64::from_ptr(self.base.cast::<u64>().add(word)) };
            // Relaxed: a copy for people; exact once the thread has been joined.
            bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        bytes.truncate(self.len);
        bytes
    }
}

impl Drop for StateRecord {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.base, Self::layout(self.len)) };
    }
}

/// See the module's header.
pub struct Shared {
    pub counts: Parts,
    pub state: StateRecord,
}

impl Shared {
    pub fn new(state: &[u8], counts: Parts) -> Self {
        Self { counts, state: StateRecord::new(state) }
    }

    /// What the loop stores into, to be kept in place.
    pub fn ranges(&self) -> Vec<Range> {
        vec![self.counts.range(), self.state.range()]
    }
}

impl Deref for Shared {
    type Target = Parts;

    #[inline(always)]
    fn deref(&self) -> &Parts {
        &self.counts
    }
}
