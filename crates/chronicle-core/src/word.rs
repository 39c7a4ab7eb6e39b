//! A number that one thread counts and any other may read.

use crate::sync::{AtomicU64, Ordering};

/// A word with one writer.
///
/// It is counted up by a load and a store, not by a locked instruction: there is one writer. A
/// reader sees each word whole, and words of different moments beside each other; that is what a
/// status is for. Nothing else is read through these words, so all of it is Relaxed.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Word(AtomicU64);

impl Word {
    /// Only the one writer calls this.
    #[inline(always)]
    pub fn add(&self, more: u64) {
        // Relaxed: one writer, and nothing is read through the word.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Only the one writer calls this.
    #[inline(always)]
    pub fn set(&self, value: u64) {
        // Relaxed: as in `add`.
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline(always)]
    pub fn get(&self) -> u64 {
        // Relaxed: as in `add`.
        self.0.load(Ordering::Relaxed)
    }
}
