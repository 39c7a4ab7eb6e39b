//! The worker: one thread for any number of endpoints, and what it does for a queue besides.
//!
//! # Orderings
//! - W1: `stop` Release store in [`Provisioner::stop`] -> Acquire load in `Shared::run`. What its
//!   owner did before the end came before; clients go through a lock of their own.

use super::endpoint::{Endpoint, Served};
use crate::error::Result;
use crate::os::{clock, process};
use crate::queue::dir::QueueDir;
use crate::queue::reader::Reader;
use crate::queue::retention::{self, RetentionPolicy};
use crate::queue::segment::Segment;
use crate::queue::writer::Writer;
use crate::queue::{durable, seek};
use crate::sync::{Arc, AtomicU32, Ordering};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
        // A writer that waits for its next segment measures its patience in ticks. What a tick is
        // takes two milliseconds to find out, and whoever asks meanwhile waits in the kernel.
        clock::meter_ns_per_tick_q32();
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
        endpoint.attach();
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
        // W1.
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
        // W1.
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
        let closed = self.endpoint.is_closed();
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
            if retention::apply(self.endpoint.queue(), policy).is_err() {
                self.endpoint.note_error();
            }
        }
        if let Some(interval) = self.chores.flush_interval
            && now >= self.flush_due
        {
            let flushed = flush(self.endpoint.queue());
            let pause = if flushed.is_ok() { interval } else { interval.max(BACKOFF) };
            if flushed.is_err() {
                self.endpoint.note_error();
            }
            self.flush_due = Instant::now() + pause;
        }
    }

    /// Nobody will flush after this: the last interval ends now.
    fn flush_last(&mut self) {
        if self.chores.flush_interval.is_some() && flush(self.endpoint.queue()).is_err() {
            self.endpoint.note_error();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.endpoint.detach();
    }
}

fn flush(queue: &QueueDir) -> Result<()> {
    let place = seek::tail(queue)?;
    durable::flush_to(queue, place.position(), place.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::options::Options;
    use crate::queue::provision::tests::with_queue;

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
}
