//! Waiting for data: spin, spin then sleep, or sleep. Never loses a wake-up (P2 and P3 in [`crate::protocol`]).

use crate::error::{Error, ErrorKind, Result};
use crate::os::{clock, futex, futex::Woken};
use crate::protocol::{Doorbell, Strong};
use crate::queue::dir::QueueDir;
use crate::queue::segment::Segment;
use crate::sync::{Arc, AtomicU32, Ordering};
use std::time::Duration;

/// How to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStrategy {
    /// Poll without pause. The lowest latency, one core. No system call.
    Spin,
    /// Poll for so many nanoseconds, then sleep until rung.
    Hybrid { spin_ns: u64 },
    /// Sleep at once.
    Sleep,
}

impl Default for WaitStrategy {
    fn default() -> Self {
        Self::Hybrid { spin_ns: 20_000 }
    }
}

/// How long a waiter that may not touch the doorbell (a read-only mount) sleeps between looks.
const READ_ONLY_NAP: Duration = Duration::from_micros(200);

/// What a waiter of one queue looks at. Holds the segment mapped; does not borrow the reader.
pub struct WaitTarget {
    segment: Arc<Segment>,
    offset: usize,
    queue: Arc<QueueDir>,
}

impl WaitTarget {
    pub(crate) fn new(segment: Arc<Segment>, offset: usize, queue: Arc<QueueDir>) -> Self {
        Self { segment, offset, queue }
    }

    /// Whether there is something to read. P1.
    #[inline]
    pub fn is_ready(&self) -> bool {
        // SAFETY: a reader's offset is aligned and at most the data limit of its segment.
        let word = unsafe { self.segment.commit_word(self.offset) };
        word.load(Ordering::Acquire) != 0
    }

    fn doorbell(&self) -> &Doorbell {
        &self.queue.control().doorbell
    }
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    Ready,
    TimedOut,
    /// A signal handler ran. The caller decides whether to wait on.
    Interrupted,
}

/// Waits until one of the targets has something to read.
///
/// # Errors
/// `QueueRemoved` if a queue was removed, noticed when the wait times out.
pub fn wait_any(
    targets: &[WaitTarget],
    strategy: WaitStrategy,
    timeout: Option<Duration>,
) -> Result<Waited> {
    let any_ready = || targets.iter().any(WaitTarget::is_ready);
    if any_ready() {
        return Ok(Waited::Ready);
    }
    let start_ns = clock::monotonic_ns();
    let end_ns = timeout.map(|t| start_ns.saturating_add(t.as_nanos() as u64));
    let spin_until_ns = match strategy {
        WaitStrategy::Spin => u64::MAX,
        WaitStrategy::Hybrid { spin_ns } => start_ns.saturating_add(spin_ns),
        WaitStrategy::Sleep => start_ns,
    };
    loop {
        let now_ns = clock::monotonic_ns();
        if end_ns.is_some_and(|end| now_ns >= end) {
            return timed_out(targets);
        }
        if now_ns >= spin_until_ns {
            break;
        }
        for _ in 0..32 {
            if any_ready() {
                return Ok(Waited::Ready);
            }
            std::hint::spin_loop();
        }
    }
    sleep(targets, end_ns)
}

fn timed_out(targets: &[WaitTarget]) -> Result<Waited> {
    match targets.iter().find(|t| t.queue.is_removed()) {
        Some(gone) => Err(ErrorKind::QueueRemoved { path: gone.queue.display() }.into()),
        None => Ok(Waited::TimedOut),
    }
}

fn sleep(targets: &[WaitTarget], end_ns: Option<u64>) -> Result<Waited> {
    let can_arm = targets.iter().all(|t| t.queue.is_writable());
    loop {
        let left = match end_ns {
            None => None,
            Some(end) => match end.checked_sub(clock::monotonic_ns()) {
                None | Some(0) => return timed_out(targets),
                Some(left) => Some(Duration::from_nanos(left)),
            },
        };
        let woken = if can_arm {
            let armed: Vec<_> = targets
                .iter()
                .map(|t| (&t.doorbell().ring, t.doorbell().arm::<Strong>()))
                .collect();
            if targets.iter().any(WaitTarget::is_ready) {
                return Ok(Waited::Ready);
            }
            sleep_on(&armed, left).map_err(|e| Error::io("wait for", describe(targets), e))?
        } else {
            std::thread::sleep(left.map_or(READ_ONLY_NAP, |l| l.min(READ_ONLY_NAP)));
            Woken::Yes
        };
        if targets.iter().any(WaitTarget::is_ready) {
            return Ok(Waited::Ready);
        }
        if woken == Woken::Interrupted {
            return Ok(Waited::Interrupted);
        }
    }
}

fn describe(targets: &[WaitTarget]) -> String {
    targets.first().map_or_else(String::new, |t| t.queue.display())
}

/// Sleeps on one word, on up to 128, or on more.
fn sleep_on(armed: &[(&AtomicU32, u32)], left: Option<Duration>) -> std::io::Result<Woken> {
    match armed {
        [] => {
            std::thread::sleep(left.unwrap_or(Duration::from_millis(100)));
            Ok(Woken::TimedOut)
        }
        [(word, seen)] => futex::wait(word, *seen, left),
        few if few.len() <= futex::WAITV_MAX => futex::wait_any(few, left),
        many => sleep_on_many(many, left),
    }
}

/// More words than one call takes: a short-lived thread sleeps on each further group, and all groups also sleep on one word of
/// our own, which whoever wakes first rings for the others.
fn sleep_on_many(armed: &[(&AtomicU32, u32)], left: Option<Duration>) -> std::io::Result<Woken> {
    let done = AtomicU32::new(0);
    let sleep_on_group = |group: &[(&AtomicU32, u32)]| {
        let mut words = group.to_vec();
        words.push((&done, 0));
        let woken = futex::wait_any(&words, left);
        done.store(1, Ordering::Release);
        futex::wake_all(&done);
        woken
    };
    std::thread::scope(|scope| {
        let mut groups = armed.chunks(futex::WAITV_MAX - 1);
        let first = groups.next().unwrap_or_default();
        let others: Vec<_> =
            groups.map(|group| scope.spawn(move || sleep_on_group(group))).collect();
        let mut result = sleep_on_group(first);
        for other in others {
            let woken = other.join().unwrap_or_else(|_| Err(std::io::Error::other("waiter panicked")));
            if result.is_ok() && !matches!(woken, Ok(Woken::TimedOut)) {
                result = woken;
            }
        }
        result
    })
}
