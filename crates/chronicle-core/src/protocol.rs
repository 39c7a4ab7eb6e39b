//! The lock-free protocols of the data plane, each over bare atomics.
//!
//! They stand apart from the mapped memory they run in so that loom can check exactly the code that
//! ships: `tests/loom_protocol.rs` builds the same words out of loom's atomics and calls these
//! functions. Each function is generic over [`Orderings`]; [`Strong`] is what ships, and a test
//! weakens one constant at a time to show that the model would notice.
//!
//! # Orderings
//! - P1 commit: commit word Release store in [`commit`] -> Acquire load in [`committed`]. A reader
//!   that sees a length sees the header and the payload written before it (and, for a roll marker,
//!   the next segment's header and table entry).
//! - P2 wake elision, writer: commit store, full fence in [`Doorbell::must_ring`], `armed` load.
//! - P3 wake elision, waiter: `armed` store, full fence in [`Doorbell::arm`], commit load by the
//!   caller. P2 and P3 together: either the writer sees the flag or the waiter sees the record.
//!   Both fences are needed; a Release store followed by an Acquire load of another word may pass
//!   each other.
//! - P4 ring: `ring` Release increment in [`Doorbell::ring`] -> Acquire load in [`Doorbell::arm`].
//!   A waiter that loads the new count also sees `armed` cleared *before* it sets it again, so its
//!   own flag survives.
//! - P5 hand-over: Release exchange in [`Slot::put`] -> Acquire exchange in [`Slot::take`], or
//!   Acquire load in [`Slot::is_ready`]. Who takes an object, or sees that there is one, sees all
//!   that was done before it was put.
//! - P6 retention: `floor` store, full fence, cursor loads in [`raise_floor`].
//! - P7 joining: cursor store, full fence, `floor` load in [`join_floor`]. P6 and P7 together:
//!   either retention sees the cursor, or the reader sees the floor that passed it.
//! - P8 cursor: sequence store, then position Release store in [`commit_cursor`] -> position
//!   Acquire load in [`raise_floor`] or at resume. Who sees a position sees a sequence at least as
//!   new.
//! - P9 request: `wanted` Release store in [`WakeRequest::ask`] -> Acquire exchange in
//!   [`WakeRequest::take`]. Who takes a request sees the futex word moved, and so does every
//!   sleeper that the kernel lets go to sleep after that wake-up.
//! - P10 asking: `wanted` store, full fence in [`WakeRequest::ask`], `attached` load.
//! - P11 leaving: `attached` decrement, full fence in [`WakeRequest::leave`], `wanted` load. P10 and
//!   P11 together: either the writer sees that nobody serves it, or the worker that leaves sees the
//!   request.
//! - P12 frame of a packet ring, to us: the kernel's store of the status word, behind its barrier ->
//!   Acquire load in [`frame_status`]. Who sees that a frame is ours sees what is in it.
//! - P13 frame, back to the kernel: Release store in [`give_frame_back`] -> the kernel's load of the
//!   status word before it fills the frame again. Our loads from the frame are over by then.

use crate::sync::{Arc, AtomicPtr, AtomicU32, AtomicU64, Ordering, fence, full_fence};
use core::marker::PhantomData;

/// The strength of each numbered pair. Tests override one constant to make a mutant.
pub trait Orderings {
    /// P1, the writer's half.
    const COMMIT_STORE: Ordering = Ordering::Release;
    /// P1, the reader's half.
    const COMMIT_LOAD: Ordering = Ordering::Acquire;
    /// P2.
    const RING_FENCE: Ordering = Ordering::SeqCst;
    /// P3.
    const ARM_FENCE: Ordering = Ordering::SeqCst;
    /// P4, the writer's half.
    const RING_ADD: Ordering = Ordering::Release;
    /// P4, the waiter's half.
    const RING_LOAD: Ordering = Ordering::Acquire;
    /// P5, the giver's half.
    const SLOT_PUT: Ordering = Ordering::Release;
    /// P5, the taker's half.
    const SLOT_TAKE: Ordering = Ordering::Acquire;
    /// P6.
    const FLOOR_FENCE: Ordering = Ordering::SeqCst;
    /// P7.
    const JOIN_FENCE: Ordering = Ordering::SeqCst;
    /// P8, the reader's half.
    const CURSOR_STORE: Ordering = Ordering::Release;
    /// P8, the half of retention and resume.
    const CURSOR_LOAD: Ordering = Ordering::Acquire;
    /// P9, the writer's half.
    const REQUEST_STORE: Ordering = Ordering::Release;
    /// P9, the worker's half.
    const REQUEST_TAKE: Ordering = Ordering::Acquire;
    /// P10.
    const ASK_FENCE: Ordering = Ordering::SeqCst;
    /// P11.
    const LEAVE_FENCE: Ordering = Ordering::SeqCst;
    /// P12.
    const FRAME_LOAD: Ordering = Ordering::Acquire;
    /// P13.
    const FRAME_STORE: Ordering = Ordering::Release;
}

/// The orderings that ship.
pub struct Strong;
impl Orderings for Strong {}

#[inline(always)]
fn fence_of(ordering: Ordering) {
    if ordering == Ordering::SeqCst {
        full_fence();
    } else {
        fence(ordering);
    }
}

/// Publishes a record (or a roll marker) whose bytes are all written. Wait-free, one store. P1.
#[inline(always)]
pub fn commit<O: Orderings>(word: &AtomicU32, value: u32) {
    word.store(value, O::COMMIT_STORE);
}

/// The commit word as a reader may use it: non-zero means that what it announces is visible. P1.
#[inline(always)]
pub fn committed<O: Orderings>(word: &AtomicU32) -> u32 {
    word.load(O::COMMIT_LOAD)
}

/// The status word of a frame in a ring that the kernel fills. P12.
#[inline(always)]
pub fn frame_status<O: Orderings>(word: &AtomicU32) -> u32 {
    word.load(O::FRAME_LOAD)
}

/// Gives a frame back: the kernel may fill it again. Wait-free, one store. P13.
#[inline(always)]
pub fn give_frame_back<O: Orderings>(word: &AtomicU32, status: u32) {
    word.store(status, O::FRAME_STORE);
}

/// Two words in the control block over which waiters ask to be woken.
///
/// `armed` is a flag, not a count: the writer that rings clears it and woken waiters set it again,
/// so a waiter that was killed costs one spurious wake and nothing after that.
#[repr(C)]
pub struct Doorbell {
    /// 1 while somebody may be asleep.
    pub armed: AtomicU32,
    /// The futex word: counts rings.
    pub ring: AtomicU32,
}

impl Doorbell {
    /// Whether the writer must ring, after its commit. Costs one fence and one load. P2.
    #[inline(always)]
    pub fn must_ring<O: Orderings>(&self) -> bool {
        fence_of(O::RING_FENCE);
        // Relaxed: P2's fence orders it after the commit; nothing is read through it.
        self.armed.load(Ordering::Relaxed) != 0
    }

    /// Clears the flag and moves the futex word; the caller then wakes its sleepers. P4.
    pub fn ring<O: Orderings>(&self) {
        // Relaxed: P4's Release on `ring` publishes it; only the flag's own modification order
        // matters.
        self.armed.store(0, Ordering::Relaxed);
        #[cfg(not(loom))]
        crate::failpoint::hit("ring.cleared");
        self.ring.fetch_add(1, O::RING_ADD);
    }

    /// Asks to be woken; returns the value to sleep on. The caller must look at its commit word
    /// again before it sleeps. P3, P4.
    pub fn arm<O: Orderings>(&self) -> u32 {
        let seen = self.ring.load(O::RING_LOAD);
        // Relaxed: P3's fence orders it before the caller's commit load.
        self.armed.store(1, Ordering::Relaxed);
        fence_of(O::ARM_FENCE);
        seen
    }
}

/// Asks another thread for a wake-up: a hot writer rings its doorbell but leaves the system call to
/// the worker that serves it. Wait-free on both sides.
#[derive(Debug)]
pub struct WakeRequest {
    wanted: AtomicU32,
}

impl Default for WakeRequest {
    fn default() -> Self {
        Self { wanted: AtomicU32::new(0) }
    }
}

impl WakeRequest {
    /// Asks for a wake-up, after [`Doorbell::ring`]. `attached` counts the workers. `false` if there
    /// is none: the caller then wakes the sleepers itself. P9, P10.
    pub fn ask<O: Orderings>(&self, attached: &AtomicU32) -> bool {
        self.wanted.store(1, O::REQUEST_STORE);
        fence_of(O::ASK_FENCE);
        // Relaxed: P10's fence orders it after the request; nothing is read through it.
        attached.load(Ordering::Relaxed) != 0
    }

    /// Whether a wake-up is asked for; the caller then wakes the sleepers. P9.
    #[inline]
    pub fn take<O: Orderings>(&self) -> bool {
        // Relaxed: a look that costs no exclusive line; the exchange decides.
        self.wanted.load(Ordering::Relaxed) != 0 && self.wanted.swap(0, O::REQUEST_TAKE) != 0
    }

    /// A worker stops serving: takes itself off the count, and says whether it still has to wake
    /// the sleepers. P11.
    pub fn leave<O: Orderings>(&self, attached: &AtomicU32) -> bool {
        // Relaxed: P11's fence orders it before the look at the request.
        attached.fetch_sub(1, Ordering::Relaxed);
        fence_of(O::LEAVE_FENCE);
        self.take::<O>()
    }
}

/// A mailbox for one shared object, between one giver and any number of takers. Wait-free on both
/// sides; never allocates.
pub struct Slot<T> {
    held: AtomicPtr<T>,
    /// The slot owns an `Arc<T>`, and may cross threads only where that may; a bare `AtomicPtr`
    /// always may.
    owns: PhantomData<Arc<T>>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { held: AtomicPtr::new(core::ptr::null_mut()), owns: PhantomData }
    }
}

impl<T> Slot<T> {
    /// Leaves `object` in the slot, or gives it back if the slot is taken. P5.
    pub fn put<O: Orderings>(&self, object: Arc<T>) -> Result<(), Arc<T>> {
        let raw = Arc::into_raw(object).cast_mut();
        // Relaxed on failure: nothing was taken, nothing is read through the pointer.
        match self.held.compare_exchange(core::ptr::null_mut(), raw, O::SLOT_PUT, Ordering::Relaxed)
        {
            Ok(_) => Ok(()),
            // SAFETY: `raw` came from `into_raw` above and the exchange failed, so it is still
            // ours.
            Err(_) => Err(unsafe { Arc::from_raw(raw) }),
        }
    }

    /// Takes what is in the slot. P5.
    pub fn take<O: Orderings>(&self) -> Option<Arc<T>> {
        let raw = self.held.swap(core::ptr::null_mut(), O::SLOT_TAKE);
        if raw.is_null() {
            return None;
        }
        // SAFETY: a non-null pointer was put by `put` from `Arc::into_raw`, and the exchange made
        // us its only owner.
        Some(unsafe { Arc::from_raw(raw) })
    }

    /// Whether there is something to take; who sees that sees all that was done before it was put.
    /// The answer may be old when it arrives. P5.
    pub fn is_ready<O: Orderings>(&self) -> bool {
        !self.held.load(O::SLOT_TAKE).is_null()
    }

    /// Whether there is something to take. A hint: the answer may be old when it arrives.
    pub fn is_full(&self) -> bool {
        // Relaxed: a hint, nothing is read through the pointer.
        !self.held.load(Ordering::Relaxed).is_null()
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        drop(self.take::<Strong>());
    }
}

/// Remembers that everything before `sequence` (at `position`) is done with. Two stores. P8.
#[inline(always)]
pub fn commit_cursor<O: Orderings>(
    sequence_word: &AtomicU64,
    position_word: &AtomicU64,
    sequence: u64,
    position: u64,
) {
    // Relaxed: P8's Release on the position publishes it.
    sequence_word.store(sequence, Ordering::Relaxed);
    #[cfg(not(loom))]
    crate::failpoint::hit("cursor.sequence");
    position_word.store(position, O::CURSOR_STORE);
}

/// Places a joining reader's cursor at `position`, or tells the floor that has already passed it.
/// P7.
pub fn join_floor<O: Orderings>(
    position_word: &AtomicU64,
    floor: &AtomicU64,
    position: u64,
    segment_shift: u32,
) -> Result<(), u64> {
    position_word.store(position, O::CURSOR_STORE);
    fence_of(O::JOIN_FENCE);
    // Acquire: the segments that the floor names were complete before it was stored.
    let floor = floor.load(Ordering::Acquire);
    if position >> segment_shift < floor { Err(floor) } else { Ok(()) }
}

/// Raises the floor to `wanted`, or as far as live cursors allow. Only segments below the returned
/// index may be deleted; it is at most the floor in force, and lower where a cursor stands below
/// the floor. P6.
///
/// `lowest_cursor` must look at every live cursor that exists when it is called; it gives the
/// lowest segment index that one of them still needs. It is called twice. The first look keeps the
/// floor from being raised further than it will stay: a reader that joins meanwhile would take such
/// a floor for the truth and report a gap over messages that exist. The second, after the fence, is
/// the one that counts.
///
/// A caller that is killed in between may leave the floor above a cursor that has joined. Therefore
/// the second look is made even if there is nothing to raise, and bounds what is returned.
pub fn raise_floor<O: Orderings>(
    floor: &AtomicU64,
    wanted: u64,
    mut lowest_cursor: impl FnMut() -> Option<u64>,
) -> u64 {
    // Relaxed: only retention (one at a time, under its lock) writes the floor.
    let before = floor.load(Ordering::Relaxed);
    let raised = lowest_cursor().map_or(wanted, |lowest| lowest.min(wanted)).max(before);
    if raised != before {
        floor.store(raised, Ordering::Release);
    }
    fence_of(O::FLOOR_FENCE);
    let lowest = lowest_cursor().unwrap_or(u64::MAX);
    let agreed = lowest.clamp(before, raised);
    if agreed != raised {
        floor.store(agreed, Ordering::Release);
    }
    lowest.min(agreed)
}

/// The position of a cursor as retention and resume may use it. P8.
pub fn cursor_position<O: Orderings>(position_word: &AtomicU64) -> u64 {
    position_word.load(O::CURSOR_LOAD)
}
