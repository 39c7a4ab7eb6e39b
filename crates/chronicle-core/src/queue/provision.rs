//! The native worker that makes rolls free of system calls.
//!
//! Each writer and reader has an [`Endpoint`]: a slot with the next segment, mapped and prefaulted,
//! and slots for the mappings it has left behind. A [`Provisioner`] is one thread that fills the
//! one and empties the others. The hot side only exchanges pointers; where the worker is late it
//! does the work itself, or waits for it if it has begun, and counts that.
//!
//! # When both do the same work
//!
//! A writer that is faster than its worker would build each segment beside it, and both would take
//! twice as long. So one of them marks that it builds, and the other waits (an inline roll) or
//! comes back later (a worker).
//!
//! Workers and readers' rolls may still prepare the same segment. Whoever renames first has made
//! the file, the other opens it, and both mappings are good. What the worker then leaves in the
//! slot is not wanted any more; it takes it back itself, because it would keep the wanted segment
//! out and so make the next roll late as well. Everything else goes through slots (P5 in
//! [`crate::protocol`]).
//!
//! # Hot threads
//!
//! An endpoint of a hot thread never makes its owner do the work: at a roll the owner waits, by
//! looking, until the worker has the segment (it says so, and the worker comes at its next turn),
//! and helps itself only if the worker fails or goes. What the owner retires is *kept* mapped:
//! unmapping in the same process interrupts the owner's core (TLB shootdown). And the owner leaves
//! the system call that wakes sleeping readers to the worker (P9 to P11).
//!
//! # Orderings
//! - B1: `building` Release store in the drop of [`Building`] -> Acquire exchange in
//!   `try_building`. Who may build sees what the one before has left in the slot.
//! - B2: `waiting` Release store in `must_wait` -> Acquire load in `is_waited_for`. A worker that sees
//!   a hot reader wait sees the queue at least as that reader saw it: with the segment behind the
//!   marker, unless retention has deleted it since.

use crate::error::Result;
use crate::os::futex;
use crate::os::process;
use crate::protocol::{Doorbell, Slot, Strong, WakeRequest};
use crate::queue::dir::QueueDir;
use crate::queue::reader::Reader;
use crate::queue::retention::{self, RetentionPolicy};
use crate::queue::segment::Segment;
use crate::queue::writer::Writer;
use crate::queue::{durable, seek};
use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering, prefetch_write};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Mappings that may wait for the worker.
const RETIRED_SLOTS: usize = 4;
/// How long the worker sleeps when there is nothing to do.
const IDLE: Duration = Duration::from_micros(250);
/// How long it lets an endpoint alone whose segment could not be prepared.
const BACKOFF: Duration = Duration::from_millis(50);
/// The same for a reader whose next segment does not exist yet: this for each client of the worker,
/// between the two limits. So a few readers are served at once, and many do not keep the worker
/// busy with looking.
const MISSING_PER_CLIENT: Duration = Duration::from_micros(100);
const MISSING_MIN: Duration = IDLE;
const MISSING_MAX: Duration = Duration::from_millis(20);

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

    fn is_waited_for(&self) -> bool {
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
    fn wake_sleepers(&self) -> bool {
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
        self.wanted.store(index, Ordering::Release);
    }

    /// The owner is gone.
    pub fn close(&self) {
        self.closed.store(1, Ordering::Release);
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

    fn note_error(&self) {
        // Relaxed: a counter for people.
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// A segment could not be prepared: an owner that waits for it helps itself.
    fn note_failure(&self) {
        self.note_error();
        // Relaxed: as in `must_wait`.
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The worker's part: empty the retired slots, fill the ready one.
    fn serve(self: &Arc<Self>, done: &mut u64) -> Result<Served> {
        let worked = if self.empty_retired() { Served::Worked } else { Served::Nothing };
        // Acquire: what the hot side did to the segments before came before; it is theirs, nothing
        // is read through the number.
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
enum Served {
    Nothing,
    Worked,
    /// The wanted segment does not exist yet.
    Missing,
}

/// What the worker does besides, for the queue of one writer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chores {
    /// Make the queue durable this often.
    pub flush_interval: Option<Duration>,
    /// Apply this policy after rolls and at least every second.
    pub retention: Option<RetentionPolicy>,
}

/// An endpoint as the worker sees it. Dropping it detaches the endpoint.
struct Client {
    endpoint: Arc<Endpoint>,
    /// The index that was last put into the slot.
    done: u64,
    /// What the reader stood in when it was attached: nobody has prefaulted that.
    unfaulted: Option<Arc<Segment>>,
    not_before: Instant,
    chores: Chores,
    flush_due: Instant,
    retention_due: Instant,
}

#[derive(Default)]
struct Shared {
    /// Attached since the worker last looked. The worker keeps its clients to itself, so that
    /// attaching never waits for its work.
    new_clients: Mutex<Vec<Client>>,
    stop: AtomicU32,
}

/// One worker thread for any number of writers and readers. Dropping it stops the thread; its
/// clients then roll inline.
pub struct Provisioner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    fork_generation: u64,
}

impl Provisioner {
    pub fn new() -> std::io::Result<Self> {
        process::watch_forks();
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        // Signals are for the threads that wait for them; here they would only interrupt system
        // calls.
        let _blocked = process::block_signals();
        let thread =
            std::thread::Builder::new().name("chr-provision".into()).spawn(move || theirs.run())?;
        Ok(Self { shared, thread: Some(thread), fork_generation: process::fork_generation() })
    }

    pub fn attach_writer(&self, writer: &Writer, chores: Chores) {
        self.attach(Arc::clone(writer.endpoint()), None, chores);
    }

    pub fn attach_reader(&self, reader: &Reader) {
        let segment = Some(Arc::clone(reader.segment()));
        self.attach(Arc::clone(reader.endpoint()), segment, Chores::default());
    }

    fn attach(&self, endpoint: Arc<Endpoint>, unfaulted: Option<Arc<Segment>>, chores: Chores) {
        if self.is_inherited() {
            // There is no worker here: this client rolls inline.
            return;
        }
        // Relaxed: a hint for the hot side; what passes through the slots is ordered by them.
        endpoint.attached.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let client = Client {
            endpoint,
            done: u64::MAX,
            unfaulted,
            not_before: now,
            chores,
            flush_due: now + chores.flush_interval.unwrap_or_default(),
            retention_due: now,
        };
        self.shared.lock().push(client);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Whether this process was forked from the one that has the thread.
    fn is_inherited(&self) -> bool {
        self.fork_generation != process::fork_generation()
    }

    /// Stops the thread and waits for it. What is still to be flushed at an interval is flushed
    /// first.
    pub fn stop(&mut self) {
        if self.is_inherited() {
            // A forked child has neither the thread, which it would wait for in vain, nor a list
            // that is surely unlocked.
            std::mem::forget(self.thread.take());
            return;
        }
        self.shared.stop.store(1, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of the worker has been printed by the panic hook; there is nothing to add.
            drop(thread.join());
        }
        // Attached too late for the thread to see.
        for mut client in self.shared.lock().drain(..) {
            client.flush_last();
        }
    }
}

impl Drop for Provisioner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Client>> {
        // A poisoned list is still a list: nothing that is done under the lock leaves it half done.
        self.new_clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn run(&self) {
        let mut clients = Vec::new();
        while self.stop.load(Ordering::Acquire) == 0 {
            clients.append(&mut *self.lock());
            clients.retain_mut(|client| !client.is_finished());
            let now = Instant::now();
            let mut worked = false;
            let missing_pause = MISSING_PER_CLIENT.saturating_mul(clients.len() as u32);
            let missing_pause = missing_pause.clamp(MISSING_MIN, MISSING_MAX);
            for i in 0..clients.len() {
                // A segment may take long to build: sleepers do not wait for it.
                worked |= wake_all_sleepers(&clients);
                worked |= clients[i].serve(now, missing_pause);
            }
            // A chore may wait for the device: one at a time, the one that is most overdue, and all
            // segments are served in between.
            let due = clients.iter_mut().filter(|c| c.due().is_some_and(|due| due <= now));
            if let Some(client) = due.min_by_key(|c| c.due()) {
                client.do_chores(now);
                worked = true;
            }
            if !worked {
                std::thread::park_timeout(IDLE);
            }
        }
        clients.iter_mut().for_each(Client::flush_last);
    }
}

fn wake_all_sleepers(clients: &[Client]) -> bool {
    clients.iter().fold(false, |worked, client| worked | client.endpoint.wake_sleepers())
}

impl Client {
    /// Whether the owner is gone, and all is done for it.
    fn is_finished(&mut self) -> bool {
        let closed = self.endpoint.closed.load(Ordering::Acquire) != 0;
        if closed {
            self.flush_last();
        }
        closed
    }

    fn serve(&mut self, now: Instant, missing_pause: Duration) -> bool {
        if now < self.not_before && !self.endpoint.is_waited_for() {
            return false;
        }
        let served = self.endpoint.serve(&mut self.done);
        if let Some(segment) = self.unfaulted.take() {
            // Where this fails, the reader does without, at a fault for each few pages.
            if segment.map().populate().is_err() {
                self.endpoint.note_error();
            }
        }
        match served {
            Ok(Served::Nothing) => false,
            Ok(Served::Worked) => {
                if self.chores.retention.is_some() {
                    self.retention_due = now;
                }
                true
            }
            Ok(Served::Missing) => {
                self.not_before = now + missing_pause;
                false
            }
            Err(_) => {
                // The hot side meets the same error when it helps itself, and reports it there.
                self.endpoint.note_failure();
                self.not_before = now + BACKOFF;
                false
            }
        }
    }

    /// When the next chore is due, if there are any.
    fn due(&self) -> Option<Instant> {
        let flush = self.chores.flush_interval.map(|_| self.flush_due);
        let retention = self.chores.retention.map(|_| self.retention_due);
        flush.into_iter().chain(retention).min()
    }

    /// Does what is due. What fails is tried again later, and does not keep the segments from being
    /// served.
    fn do_chores(&mut self, now: Instant) {
        if let Some(policy) = &self.chores.retention
            && now >= self.retention_due
        {
            self.retention_due = now + Duration::from_secs(1);
            if retention::apply(&self.endpoint.queue, policy).is_err() {
                self.endpoint.note_error();
            }
        }
        if let Some(interval) = self.chores.flush_interval
            && now >= self.flush_due
        {
            let flushed = flush(&self.endpoint.queue);
            let pause = if flushed.is_ok() { interval } else { interval.max(BACKOFF) };
            if flushed.is_err() {
                self.endpoint.note_error();
            }
            self.flush_due = Instant::now() + pause;
        }
    }

    /// Nobody will flush after this: the last interval ends now.
    fn flush_last(&mut self) {
        if self.chores.flush_interval.is_some() && flush(&self.endpoint.queue).is_err() {
            self.endpoint.note_error();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // P11.
        if self.endpoint.wake.leave::<Strong>(&self.endpoint.attached) {
            futex::wake_all(&self.endpoint.queue.control().doorbell.ring);
        }
        self.endpoint.empty_retired();
    }
}

fn flush(queue: &QueueDir) -> Result<()> {
    let place = seek::tail(queue)?;
    durable::flush_to(queue, place.position(), place.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::options::{Options, Start};

    fn with_queue(name: &str, test: impl FnOnce(&mut Writer, &std::path::Path)) {
        let name = format!("chronicle-provision-{}-{name}", process::pid());
        let path = std::env::temp_dir().join(name);
        let options = Options { segment_bytes: 1 << 16, segments_max: 64, ..Options::default() };
        test(&mut Writer::open(&path, &options).unwrap(), &path);
        std::fs::remove_dir_all(&path).unwrap();
    }

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

    #[test]
    fn endpoints_are_detached_when_the_worker_stops_and_served_by_the_next() {
        with_queue("stop", |writer, _| {
            for round in 1..=3 {
                let provisioner = Provisioner::new().unwrap();
                provisioner.attach_writer(writer, Chores::default());
                assert!(writer.endpoint().is_attached());
                while !writer.is_provisioned() {
                    std::thread::yield_now();
                }
                while writer.queue().tail_segment() < round {
                    writer.append(1, &[0; 1_000], None).unwrap();
                }
                drop(provisioner);
                assert!(!writer.endpoint().is_attached());
            }
            // Relaxed: nobody else counts.
            assert_eq!(writer.queue().control().rolls_inline.load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn what_was_written_in_the_last_interval_is_flushed_when_the_writer_closes() {
        with_queue("flush", |writer, path| {
            let provisioner = Provisioner::new().unwrap();
            let path = path.join("closing");
            let options = Options { segment_bytes: 1 << 16, ..Options::default() };
            let mut closing = Writer::open(&path, &options).unwrap();
            let chores =
                Chores { flush_interval: Some(Duration::from_secs(3_600)), retention: None };
            provisioner.attach_writer(&closing, chores);
            let sequence = closing.append(1, b"x", None).unwrap();
            let queue = Arc::clone(closing.queue());
            drop(closing);
            drop(provisioner);
            assert_eq!(queue.control().durable_sequence.load(Ordering::Acquire), sequence);
            assert!(writer.endpoint().errors() == 0);
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
    fn a_hot_writer_whose_worker_cannot_build_gets_the_error_and_goes_on_with_room() {
        with_queue("full", |_, path| {
            let path = path.join("small");
            let options = Options { segment_bytes: 1 << 16, segments_max: 3, ..Options::default() };
            let mut writer = Writer::open(&path, &options).unwrap();
            let provisioner = Provisioner::new().unwrap();
            provisioner.attach_writer(&writer, Chores::default());
            writer.set_hot(true);
            let error = loop {
                if let Err(error) = writer.append(1, &[0; 1_000], None) {
                    break error;
                }
            };
            assert!(matches!(error.kind(), crate::ErrorKind::QueueFull { .. }), "{error}");
            let sequence = writer.next_sequence();
            let policy = RetentionPolicy { bytes_max: Some(1 << 16), ..RetentionPolicy::default() };
            retention::apply(writer.queue(), &policy).unwrap();
            assert_eq!(writer.append(1, b"x", None).unwrap(), sequence);
            // What it has left behind is kept, until it is hot no more.
            while writer.endpoint().kept_count() == 0 {
                std::thread::yield_now();
            }
            writer.set_hot(false);
            assert_eq!(writer.endpoint().kept_count(), 0);
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
