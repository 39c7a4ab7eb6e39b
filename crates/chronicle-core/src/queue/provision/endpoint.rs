//! Where a hot writer or reader and the worker meet: slots, words, and what each side may do.
//!
//! # Orderings
//! - B1: `building` Release store in the drop of [`Building`] -> Acquire exchange in
//!   `try_building`. Who may build sees what the one before has left in the slot.
//! - B2: `waiting` Release store in `must_wait` -> Acquire load in `is_waited_for`. A worker that sees
//!   a hot reader wait sees the queue at least as that reader saw it: with the segment behind the
//!   marker, unless retention has deleted it since.
//! - B3: `closed` Release store in `close` -> Acquire load in `is_closed`. A worker that sees the
//!   owner gone sees what it has left in the slots.
//! - B4: `wanted` Release store in `want` -> Acquire loads in `serve`. What the hot side did to the
//!   segments before came before; nothing is read through the number itself.

use crate::error::Result;
use crate::os::futex;
use crate::protocol::{Doorbell, Slot, Strong, WakeRequest};
use crate::queue::dir::QueueDir;
use crate::queue::seek;
use crate::queue::segment::Segment;
use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering, prefetch_write};
use std::sync::Mutex;
use std::time::Duration;

/// Mappings that may wait for the worker.
const RETIRED_SLOTS: usize = 4;
/// How long an inline roll sleeps between looks at a worker that is building its segment.
const LATE_NAP: Duration = Duration::from_micros(50);

/// Where a hot writer or reader and the worker meet.
///
/// In this order: what a roll touches, and a worker looks at, stands in one line, so that a roll
/// gets at most one from another core.
#[repr(C, align(64))]
pub struct Endpoint {
    ready: Slot<Segment>,
    retired: [Slot<Segment>; RETIRED_SLOTS],
    /// Index of the segment to have ready.
    wanted: AtomicU64,
    /// Workers that serve this endpoint; normally 0 or 1.
    attached: AtomicU32,
    closed: AtomicU32,
    /// 1 while somebody builds the wanted segment. B1.
    building: AtomicU32,
    is_writer: bool,
    queue: Arc<QueueDir>,
    /// Mappings that the hot side had to unmap itself, and segments it had to open itself, while a
    /// worker was attached.
    late: AtomicU64,
    errors: AtomicU64,
    /// Of these, segments that could not be prepared.
    failures: AtomicU64,
    /// 1 while the owner is a hot thread.
    hot: AtomicU32,
    /// 1 while a hot owner stands at a roll and has nothing to roll into.
    waiting: AtomicU32,
    /// `failures` when the owner began to wait; nobody else touches it.
    failures_seen: AtomicU64,
    wake: WakeRequest,
    /// Wake-ups that a hot owner had to make itself.
    wakes_inline: AtomicU64,
    /// What a hot owner has left behind.
    kept: Mutex<Vec<Arc<Segment>>>,
}

const _: () = assert!(std::mem::offset_of!(Endpoint, building) < 64);

impl Endpoint {
    pub fn new(queue: Arc<QueueDir>, is_writer: bool, wanted: u64) -> Self {
        Self {
            queue,
            is_writer,
            wanted: AtomicU64::new(wanted),
            ready: Slot::default(),
            retired: Default::default(),
            attached: AtomicU32::new(0),
            closed: AtomicU32::new(0),
            building: AtomicU32::new(0),
            late: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            hot: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            failures_seen: AtomicU64::new(0),
            wake: WakeRequest::default(),
            wakes_inline: AtomicU64::new(0),
            kept: Mutex::default(),
        }
    }

    /// Whether a worker serves this endpoint.
    pub fn is_attached(&self) -> bool {
        // Relaxed: a hint; either answer is handled.
        self.attached.load(Ordering::Relaxed) != 0
    }

    /// The segment `index`, if the worker has left it. No system call, no allocation.
    #[inline]
    pub fn take_ready(&self, index: u64) -> Option<Arc<Segment>> {
        self.take(|found| found == index)
    }

    /// The segment `index`, or the oldest that exists if that one is gone and the worker has found
    /// out for a hot reader.
    #[inline]
    pub fn take_from(&self, index: u64) -> Option<Arc<Segment>> {
        let may_jump = self.is_hot();
        // What is ahead of the floor is left over from before a seek, and no reason to jump.
        let is_floor = |found| found > index && found <= self.queue.floor_segment();
        self.take(|found| found == index || (may_jump && is_floor(found)))
    }

    #[inline]
    fn take(&self, is_wanted: impl Fn(u64) -> bool) -> Option<Arc<Segment>> {
        let taken = self.ready.take::<Strong>();
        match taken {
            Some(segment) if is_wanted(segment.index) => return Some(segment),
            // Left over from before a seek.
            Some(stale) => self.retire(stale),
            None => {}
        }
        if self.is_attached() {
            // Relaxed: a counter for people.
            self.late.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    /// For a hot owner at a roll: whether it should look again later, because a worker is there and
    /// has not failed since the owner came here. No system call.
    #[inline]
    pub fn must_wait(&self) -> bool {
        if self.is_ready() || !self.is_attached() {
            // Relaxed: a hint for the worker.
            self.waiting.store(0, Ordering::Relaxed);
            return false;
        }
        // Relaxed: counters and hints; what the worker has done comes through the slot (P5).
        let failures = self.failures.load(Ordering::Relaxed);
        // Relaxed: as above.
        if self.waiting.load(Ordering::Relaxed) == 0 {
            // Relaxed: the owner's own word.
            self.failures_seen.store(failures, Ordering::Relaxed);
            self.waiting.store(1, Ordering::Release); // B2
            // Relaxed: a counter for people.
            self.late.fetch_add(1, Ordering::Relaxed);
        }
        // Relaxed: the owner's own word.
        let failed = failures != self.failures_seen.load(Ordering::Relaxed);
        if failed {
            // Relaxed: a hint for the worker.
            self.waiting.store(0, Ordering::Relaxed);
        }
        !failed
    }

    /// The owner has waited long enough, and helps itself.
    pub fn stop_waiting(&self) {
        // Relaxed: a hint for the worker.
        self.waiting.store(0, Ordering::Relaxed);
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Acquire) != 0 // B2
    }

    /// Says whether the owner is a hot thread. What was kept for one is let go when it no longer
    /// is.
    pub fn set_hot(&self, hot: bool) {
        // Relaxed: a mode; whoever looks too early acts as before.
        self.hot.store(hot.into(), Ordering::Relaxed);
        if !hot {
            // Relaxed: a hint for the worker.
            self.waiting.store(0, Ordering::Relaxed);
            self.release_retired();
        }
    }

    fn is_hot(&self) -> bool {
        // Relaxed: as in `set_hot`.
        self.hot.load(Ordering::Relaxed) != 0
    }

    /// Lets go of what a hot owner has left behind, and gives the number of segments. Unmaps, here
    /// and now, unless somebody else still uses them.
    pub fn release_retired(&self) -> usize {
        let kept = std::mem::take(&mut *self.kept());
        kept.len()
    }

    /// Segments that are kept mapped for a hot owner.
    pub fn kept_count(&self) -> usize {
        self.kept().len()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Segment>>> {
        // A poisoned list is still a list.
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Rings for a hot owner: the system call is the worker's, if there is one. P9, P10.
    pub fn ring_later(&self, bell: &Doorbell) {
        bell.ring::<Strong>();
        if !self.wake.ask::<Strong>(&self.attached) {
            // Relaxed: a counter for people.
            self.wakes_inline.fetch_add(1, Ordering::Relaxed);
            futex::wake_all(&bell.ring);
        }
    }

    /// Makes the wake-up that was asked for, if one was. P9.
    pub(super) fn wake_sleepers(&self) -> bool {
        let wanted = self.wake.take::<Strong>();
        if wanted {
            futex::wake_all(&self.queue.control().doorbell.ring);
        }
        wanted
    }

    /// Wake-ups that a hot owner had to make itself, for want of a worker.
    pub fn wakes_inline(&self) -> u64 {
        // Relaxed: a counter for people.
        self.wakes_inline.load(Ordering::Relaxed)
    }

    pub fn queue(&self) -> &Arc<QueueDir> {
        &self.queue
    }

    /// Hands a mapping back; unmaps it here only if no worker is attached or all slots are full.
    #[inline]
    pub fn retire(&self, segment: Arc<Segment>) {
        if !self.is_attached() {
            return;
        }
        let mut segment = segment;
        for slot in &self.retired {
            match slot.put::<Strong>(segment) {
                Ok(()) => return,
                Err(back) => segment = back,
            }
        }
        // Relaxed: a counter for people.
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks for the line that a roll stores into.
    pub fn prefetch(&self) {
        prefetch_write(std::ptr::from_ref(self).cast());
    }

    fn try_building(self: &Arc<Self>) -> Option<Building> {
        // Relaxed on failure: nothing is read then.
        let free = self.building.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
        // Not `then_some`: a right that was not got must not be given back.
        free.is_ok().then(|| Building(Arc::clone(self)))
    }

    /// For an inline roll: keeps the worker from building what the caller builds; if the worker is
    /// at it, waits for it and gives what it has built. Waits as long as that takes: building it
    /// twice at once would take longer. The caller keeps the right until it wants another segment;
    /// given back any earlier, the worker would begin with the one that is in use by then.
    pub fn build_alone(self: &Arc<Self>, index: u64) -> (Building, Option<Arc<Segment>>) {
        loop {
            if let Some(building) = self.try_building() {
                // The worker may have finished since the caller looked.
                let ready = if self.ready.is_full() { self.take_ready(index) } else { None };
                return (building, ready);
            }
            std::thread::sleep(LATE_NAP);
        }
    }

    /// Says which segment comes next.
    #[inline]
    pub fn want(&self, index: u64) {
        // B4.
        self.wanted.store(index, Ordering::Release);
    }

    /// A worker serves this endpoint from now on.
    pub(super) fn attach(&self) {
        // Relaxed: a hint for the hot side; what passes through the slots is ordered by them.
        self.attached.fetch_add(1, Ordering::Relaxed);
    }

    /// It no longer does. Makes the wake-up that was left to it last. P11.
    pub(super) fn detach(&self) {
        if self.wake.leave::<Strong>(&self.attached) {
            futex::wake_all(&self.queue.control().doorbell.ring);
        }
        self.empty_retired();
    }

    /// The owner is gone.
    pub fn close(&self) {
        // B3.
        self.closed.store(1, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        // B3.
        self.closed.load(Ordering::Acquire) != 0
    }

    /// Whether the next segment lies ready.
    pub fn is_ready(&self) -> bool {
        self.ready.is_full()
    }

    /// Times the hot side had to help itself although a worker was attached.
    pub fn late(&self) -> u64 {
        // Relaxed: a counter for people.
        self.late.load(Ordering::Relaxed)
    }

    /// Times the worker failed to prepare a segment or to do a chore.
    pub fn errors(&self) -> u64 {
        // Relaxed: a counter for people.
        self.errors.load(Ordering::Relaxed)
    }

    pub(super) fn note_error(&self) {
        // Relaxed: a counter for people.
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// A segment could not be prepared: an owner that waits for it helps itself.
    pub(super) fn note_failure(&self) {
        self.note_error();
        // Relaxed: as in `must_wait`.
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The worker's part: empty the retired slots, fill the ready one.
    pub(super) fn serve(self: &Arc<Self>, done: &mut u64) -> Result<Served> {
        let worked = if self.empty_retired() { Served::Worked } else { Served::Nothing };
        // B4.
        let wanted = self.wanted.load(Ordering::Acquire);
        // An owner that waits all the same has thrown the segment away, and come back to want it.
        if *done == wanted && (self.ready.is_full() || !self.is_waited_for()) {
            return Ok(worked);
        }
        if let Some(segment) = self.ready.take::<Strong>()
            && segment.index == wanted
        {
            // Another worker's. If the slot was filled meanwhile, this one goes.
            *done = wanted;
            drop(self.ready.put::<Strong>(segment));
            return Ok(worked);
        }
        let Some(_building) = self.try_building() else {
            // An inline roll is at it.
            return Ok(worked);
        };
        let prepared = if self.is_writer {
            Segment::prepare(&self.queue, wanted).map(Some)
        } else {
            self.open_prefaulted(wanted)
        };
        // B4.
        if self.wanted.load(Ordering::Acquire) != wanted {
            // The hot side was faster. An error says no more than that (a segment that has been
            // entered is no longer new).
            return Ok(Served::Worked);
        }
        let Some(segment) = prepared? else {
            return Ok(Served::Missing);
        };
        *done = wanted;
        drop(self.ready.put::<Strong>(segment));
        Ok(Served::Worked)
    }

    /// A reader's next segment; `None` if the writer has not prepared it yet, or retention was
    /// faster.
    fn open_prefaulted(&self, index: u64) -> Result<Option<Arc<Segment>>> {
        // Before the look: who began to wait before it had seen the marker by then. B2
        let is_waited_for = self.is_waited_for();
        let segment = match Segment::open(&self.queue, index, false) {
            // A hot reader has seen the marker, so the segment was there. If retention has deleted
            // it, the oldest that exists comes next; otherwise the reader is told to look itself.
            Err(e) if e.is_not_found() && is_waited_for => {
                if self.queue.floor_segment() <= index {
                    return Err(e);
                }
                seek::open_floor(&self.queue)?
            }
            Err(e) if e.is_not_found() => return Ok(None),
            other => other?,
        };
        let populated = segment.map().populate();
        populated.map_err(|e| crate::Error::io("prefault", self.queue.display(), e))?;
        Ok(Some(segment))
    }

    /// Keeps what a hot owner has left behind; unmaps what another has.
    fn keep(&self, segment: Arc<Segment>) {
        // Looked at under the lock: `set_hot` stores the mode before it takes it.
        let mut kept = self.kept();
        if self.is_hot() {
            kept.push(segment);
        }
    }

    fn empty_retired(&self) -> bool {
        let mut worked = false;
        for slot in &self.retired {
            // To look first leaves the line with the hot side.
            if slot.is_full()
                && let Some(segment) = slot.take::<Strong>()
            {
                worked = true;
                self.keep(segment);
            }
        }
        worked
    }
}

/// The right to build the wanted segment.
pub struct Building(Arc<Endpoint>);

impl Drop for Building {
    fn drop(&mut self) {
        // B1.
        self.0.building.store(0, Ordering::Release);
    }
}

/// What came out of serving an endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    Nothing,
    Worked,
    /// The wanted segment does not exist yet.
    Missing,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::options::Start;
    use crate::queue::provision::tests::with_queue;
    use crate::queue::reader::Reader;
    use crate::queue::writer::Writer;

    #[test]
    fn a_segment_that_came_too_late_does_not_make_the_next_one_late() {
        with_queue("late", |writer, _| {
            let endpoint = Arc::new(Endpoint::new(Arc::clone(writer.queue()), true, 1));
            let mut done = u64::MAX;
            assert!(endpoint.serve(&mut done).unwrap() == Served::Worked);
            // The hot side did not see it in time, rolled inline and wants the next one.
            endpoint.want(2);
            assert!(endpoint.serve(&mut done).unwrap() == Served::Worked);
            assert_eq!(endpoint.take_ready(2).unwrap().index, 2);
            // Taken, but not yet asked for the next: nothing to do.
            assert!(endpoint.serve(&mut done).unwrap() == Served::Nothing);
            assert!(!endpoint.is_ready());
        });
    }

    #[test]
    fn what_another_worker_left_is_left_alone() {
        with_queue("two", |writer, _| {
            let endpoint = Arc::new(Endpoint::new(Arc::clone(writer.queue()), true, 1));
            let (mut ours, mut theirs) = (u64::MAX, u64::MAX);
            assert!(endpoint.serve(&mut theirs).unwrap() == Served::Worked);
            assert!(endpoint.serve(&mut ours).unwrap() == Served::Nothing);
            assert_eq!(endpoint.take_ready(1).unwrap().index, 1);
        });
    }

    #[test]
    fn a_reader_is_ahead_of_the_writer_without_an_error() {
        with_queue("missing", |_, path| {
            let reader = Reader::open(path, None, Start::Resume).unwrap();
            let mut done = u64::MAX;
            assert!(reader.endpoint().serve(&mut done).unwrap() == Served::Missing);
        });
    }

    /// A hot reader of a queue whose writer has rolled `segments` times, and a worker that does
    /// nothing unless it is told to.
    fn hot_reader(writer: &mut Writer, path: &std::path::Path, segments: u64) -> Reader {
        let mut reader = Reader::open(path, None, Start::Resume).unwrap();
        reader.set_hot(true);
        // Relaxed: nobody else looks.
        reader.endpoint().attached.fetch_add(1, Ordering::Relaxed);
        while writer.queue().tail_segment() < segments {
            writer.append(1, &[0; 1_000], None).unwrap();
        }
        reader
    }

    fn drain(reader: &mut Reader) -> Result<u64> {
        while reader.next()?.is_some() {}
        Ok(reader.segment().index)
    }

    #[test]
    fn a_hot_reader_waits_at_a_roll_until_its_worker_has_the_segment() {
        with_queue("patient", |writer, path| {
            let mut reader = hot_reader(writer, path, 2);
            let mut done = u64::MAX;
            for index in 0..2 {
                assert_eq!(drain(&mut reader).unwrap(), index);
                assert_eq!(drain(&mut reader).unwrap(), index);
                assert!(reader.endpoint().is_waited_for());
                assert!(reader.endpoint().serve(&mut done).unwrap() == Served::Worked);
            }
            assert_eq!(drain(&mut reader).unwrap(), 2);
            // Each wait is counted once, and what was left behind stays mapped.
            assert_eq!(reader.endpoint().late(), 2);
            assert!(reader.endpoint().empty_retired());
            assert_eq!(reader.endpoint().kept_count(), 2);
            assert_eq!(reader.endpoint().release_retired(), 2);
            assert_eq!(reader.endpoint().kept_count(), 0);
        });
    }

    #[test]
    fn a_hot_reader_helps_itself_when_its_worker_fails_or_goes() {
        with_queue("failing", |writer, path| {
            let mut reader = hot_reader(writer, path, 2);
            assert_eq!(drain(&mut reader).unwrap(), 0);
            let name = crate::queue::segment::file_name(1);
            let (here, away) = (path.join("segments").join(&name), path.join("away"));
            std::fs::rename(&here, &away).unwrap();
            let mut done = u64::MAX;
            assert!(reader.endpoint().serve(&mut done).is_err());
            reader.endpoint().note_failure();
            // It meets the worker's error itself, and reports it.
            let error = drain(&mut reader).unwrap_err();
            assert!(matches!(error.kind(), crate::ErrorKind::SegmentMissing { .. }), "{error}");
            std::fs::rename(&away, &here).unwrap();
            assert_eq!(drain(&mut reader).unwrap(), 0, "it waits again");
            assert!(!reader.endpoint().wake.leave::<Strong>(&reader.endpoint().attached));
            assert_eq!(drain(&mut reader).unwrap(), 2, "nobody is there to wait for");
        });
    }

    #[test]
    fn a_hot_writer_helps_itself_when_its_worker_gives_no_sign_of_life() {
        with_queue("stuck", |writer, _| {
            let endpoint = Arc::clone(writer.endpoint());
            // A worker that was stopped while it builds the next segment.
            endpoint.attached.store(1, Ordering::Relaxed);
            let building = endpoint.try_building().unwrap();
            writer.set_hot(true);
            let payload = [7; 1024];
            while writer.queue().control().rolls_inline.load(Ordering::Relaxed) < 2 {
                writer.append(1, &payload, None).unwrap();
            }
            assert!(endpoint.late() >= 2);
            // It goes on: what it has built is not wanted any more.
            drop(building);
            let mut done = u64::MAX;
            assert!(endpoint.serve(&mut done).unwrap() == Served::Worked);
            assert_eq!(endpoint.take_ready(3).unwrap().index, 3);
        });
    }

    /// A hot reader in segment 2 of 5, for whom 3 was ready before it went back and came again.
    fn reader_that_came_back(
        path: &std::path::Path,
        writer: &mut Writer,
        done: &mut u64,
    ) -> Reader {
        let mut reader = Reader::open(path, None, Start::Resume).unwrap();
        // Relaxed: nobody else looks.
        reader.endpoint().attached.fetch_add(1, Ordering::Relaxed);
        while writer.queue().tail_segment() < 5 {
            writer.append(1, &[0; 1_000], None).unwrap();
        }
        while reader.segment().index < 2 {
            reader.next().unwrap().unwrap();
        }
        reader.endpoint().serve(done).unwrap();
        assert!(reader.is_provisioned());
        reader
    }

    fn read_to_the_end(reader: &mut Reader, done: &mut u64) {
        // Twice for each segment: once to throw away what is stale, once for the right one.
        for _ in 0..12 {
            while reader.next().unwrap().is_some() {}
            reader.endpoint().serve(done).unwrap();
        }
        assert_eq!(reader.segment().index, 5);
    }

    #[test]
    fn what_lay_ready_before_a_seek_is_no_gap_for_a_hot_reader() {
        with_queue("stale", |writer, path| {
            let mut done = u64::MAX;
            let mut reader = reader_that_came_back(path, writer, &mut done);
            reader.seek(Start::Earliest).unwrap();
            reader.set_hot(true);
            read_to_the_end(&mut reader, &mut done);
            assert_eq!(reader.gaps(), 0);
        });
    }

    #[test]
    fn what_lay_ready_before_a_seek_forward_is_thrown_away_without_a_system_call() {
        with_queue("behind", |writer, path| {
            let mut done = u64::MAX;
            let mut reader = reader_that_came_back(path, writer, &mut done);
            while reader.segment().index < 4 {
                reader.next().unwrap().unwrap();
            }
            let there = reader.next_sequence();
            reader.seek(Start::Earliest).unwrap();
            reader.endpoint().serve(&mut done).unwrap();
            reader.seek(Start::Sequence(there)).unwrap();
            reader.set_hot(true);
            while reader.next().unwrap().is_some() {}
            assert_eq!(reader.segment().index, 4, "it waits for its worker");
            read_to_the_end(&mut reader, &mut done);
        });
    }

    #[test]
    fn a_segment_that_was_thrown_away_and_is_wanted_again_is_made_again() {
        with_queue("again", |writer, path| {
            let mut done = u64::MAX;
            let mut reader = reader_that_came_back(path, writer, &mut done);
            let here = reader.next_sequence();
            reader.seek(Start::Earliest).unwrap();
            while reader.segment().index < 1 {
                // The roll throws 3 away.
                reader.next().unwrap().unwrap();
            }
            reader.seek(Start::Sequence(here)).unwrap();
            assert_eq!(reader.segment().index, 2);
            reader.set_hot(true);
            read_to_the_end(&mut reader, &mut done);
        });
    }
}
