//! Counts what a hot thread does with the heap.
//!
//! A wrapper around an allocator, for a `#[global_allocator]`: on threads that asked for it, each
//! allocation, reallocation and free adds one to a word of the status page. Other threads pay one
//! load of a thread-local word. What does not go through that allocator (a handler in C that calls
//! `malloc`) is not seen.

use crate::hot::block::Placed;
use crate::hot::meter::{Page, Word};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

thread_local! {
    /// The word of this thread, or null. Constant and without a destructor, so that reading it
    /// never allocates, however early or late in the life of the thread.
    static COUNTER: Cell<*const Word> = const { Cell::new(std::ptr::null()) };
}

/// Counts this thread's use of the heap in a status page, while it lives.
pub struct Counted {
    /// Held, so that the word stays where it is even if this is forgotten.
    page: Placed<Page>,
    /// Belongs to the thread.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Counted {
    /// The page is this thread's: it is the one writer.
    pub fn new(page: Placed<Page>) -> Self {
        COUNTER.set(&raw const page.allocations);
        Self { page, not_send: std::marker::PhantomData }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        debug_assert!(COUNTER.get() == &raw const self.page.allocations);
        COUNTER.set(std::ptr::null());
    }
}

#[inline(always)]
fn count() {
    let word = COUNTER.get();
    if !word.is_null() {
        // SAFETY: set by `Counted::new`, which keeps the page alive until it takes this back.
        unsafe { (*word).add(1) };
    }
}

/// The allocator that counts.
pub struct Counting<A>(pub A);

// SAFETY: everything is handed on.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { self.0.realloc(at, layout, len) }
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller's promise.
        unsafe { self.0.dealloc(at, layout) }
    }
}
