//! The native worker that makes rolls free of system calls.
//!
//! Each writer and reader has an [`Endpoint`]: a slot with the next segment, mapped and prefaulted, and slots for the mappings it has
//! left behind. A [`Provisioner`] is one thread that fills the one and empties the others. The hot side only exchanges
//! pointers; it never waits, and where the worker is late it does the work itself and counts that.

use crate::error::Result;
use crate::os::process;
use crate::protocol::{Slot, Strong};
use crate::queue::dir::QueueDir;
use crate::queue::reader::Reader;
use crate::queue::retention::{self, RetentionPolicy};
use crate::queue::segment::Segment;
use crate::queue::writer::Writer;
use crate::queue::{durable, seek};
use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Mappings that may wait for the worker.
const RETIRED_SLOTS: usize = 4;
/// How long the worker sleeps when there is nothing to do.
const IDLE: Duration = Duration::from_micros(250);
/// How long it lets an endpoint alone whose segment could not be prepared.
const BACKOFF: Duration = Duration::from_millis(50);

/// Where a hot writer or reader and the worker meet.
pub struct Endpoint {
    queue: Arc<QueueDir>,
    is_writer: bool,
    /// Index of the segment to have ready.
    wanted: AtomicU64,
    ready: Slot<Segment>,
    retired: [Slot<Segment>; RETIRED_SLOTS],
    attached: AtomicU32,
    closed: AtomicU32,
    /// Mappings that the hot side had to unmap itself, and segments it had to open itself, while a worker was attached.
    late: AtomicU64,
    errors: AtomicU64,
}

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
            late: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    fn is_attached(&self) -> bool {
        // Relaxed: a hint; either answer is handled.
        self.attached.load(Ordering::Relaxed) != 0
    }

    /// The segment `index`, if the worker has left it. No system call, no allocation.
    #[inline]
    pub fn take_ready(&self, index: u64) -> Option<Arc<Segment>> {
        let taken = self.ready.take::<Strong>();
        match taken {
            Some(segment) if segment.index == index => return Some(segment),
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

    /// The worker's part: empty the retired slots, fill the ready one. `true` if there was something to do.
    fn serve(&self, done: &mut u64) -> Result<bool> {
        let mut worked = false;
        for slot in &self.retired {
            if let Some(segment) = slot.take::<Strong>() {
                drop(segment);
                worked = true;
            }
        }
        let wanted = self.wanted.load(Ordering::Acquire);
        if self.ready.is_full() || *done == wanted {
            return Ok(worked);
        }
        let segment = if self.is_writer {
            Segment::prepare(&self.queue, wanted)?
        } else {
            match Segment::open(&self.queue, wanted, false) {
                Ok(segment) => segment,
                // The writer has not prepared it yet, or retention was faster.
                Err(e) if e.is_not_found() => return Ok(worked),
                Err(e) => return Err(e),
            }
        };
        if !self.is_writer {
            segment.map().populate().map_err(|e| crate::Error::io("prefault", self.queue.display(), e))?;
        }
        if self.wanted.load(Ordering::Acquire) == wanted {
            *done = wanted;
            drop(self.ready.put::<Strong>(segment));
        }
        Ok(true)
    }
}

/// What the worker does besides, for the queue of one writer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chores {
    /// Make the queue durable this often.
    pub flush_interval: Option<Duration>,
    /// Apply this policy after rolls and at least every second.
    pub retention: Option<RetentionPolicy>,
}

struct Client {
    endpoint: Arc<Endpoint>,
    /// The index that was last put into the slot.
    done: u64,
    not_before: Instant,
    chores: Chores,
    flush_due: Instant,
    retention_due: Instant,
}

#[derive(Default)]
struct Shared {
    clients: Mutex<Vec<Client>>,
    stop: AtomicU32,
}

/// One worker thread for any number of writers and readers. Dropping it stops the thread; its clients then roll inline.
pub struct Provisioner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    fork_generation: u64,
}

impl Provisioner {
    pub fn new() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("chr-provision".into())
            .spawn(move || theirs.run())?;
        Ok(Self { shared, thread: Some(thread), fork_generation: process::fork_generation() })
    }

    pub fn attach_writer(&self, writer: &Writer, chores: Chores) {
        self.attach(Arc::clone(writer.endpoint()), chores);
    }

    pub fn attach_reader(&self, reader: &Reader) {
        self.attach(Arc::clone(reader.endpoint()), Chores::default());
    }

    fn attach(&self, endpoint: Arc<Endpoint>, chores: Chores) {
        endpoint.attached.store(1, Ordering::Release);
        let now = Instant::now();
        let client = Client {
            endpoint,
            done: u64::MAX,
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

    /// Stops the thread and waits for it.
    pub fn stop(&mut self) {
        if self.fork_generation != process::fork_generation() {
            // A forked child has neither the thread, which it would wait for in vain, nor a list that is surely unlocked.
            std::mem::forget(self.thread.take());
            return;
        }
        self.shared.stop.store(1, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of the worker has been printed by the panic hook; there is nothing to add.
            drop(thread.join());
        }
        for client in self.shared.lock().drain(..) {
            client.endpoint.attached.store(0, Ordering::Release);
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
        // A poisoned list is still a list: the worker's own panic is the only way to poison it.
        self.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn run(&self) {
        while self.stop.load(Ordering::Acquire) == 0 {
            let mut worked = false;
            {
                let mut clients = self.lock();
                clients.retain(|c| c.endpoint.closed.load(Ordering::Acquire) == 0);
                for client in clients.iter_mut() {
                    worked |= client.serve();
                }
            }
            if !worked {
                std::thread::park_timeout(IDLE);
            }
        }
    }
}

impl Client {
    fn serve(&mut self) -> bool {
        let now = Instant::now();
        if now < self.not_before {
            return false;
        }
        let served = self.endpoint.serve(&mut self.done);
        let served = served.and_then(|worked| self.do_chores(now, worked).map(|()| worked));
        served.unwrap_or_else(|_| {
            // The hot side meets the same error when it helps itself, and reports it there.
            // Relaxed: a counter for people.
            self.endpoint.errors.fetch_add(1, Ordering::Relaxed);
            self.not_before = now + BACKOFF;
            false
        })
    }

    fn do_chores(&mut self, now: Instant, rolled: bool) -> Result<()> {
        let queue = &self.endpoint.queue;
        if let Some(policy) = &self.chores.retention
            && (rolled || now >= self.retention_due)
        {
            self.retention_due = now + Duration::from_secs(1);
            retention::apply(queue, policy)?;
        }
        if let Some(interval) = self.chores.flush_interval
            && now >= self.flush_due
        {
            let place = seek::tail(queue)?;
            durable::flush_to(queue, place.position(), place.sequence)?;
            self.flush_due = Instant::now() + interval;
        }
        Ok(())
    }
}
