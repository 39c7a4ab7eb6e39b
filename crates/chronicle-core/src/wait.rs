//! Waiting for data: spin, spin then sleep, or sleep. Never loses a wake-up (P2 and P3 in
//! [`crate::protocol`]).
//!
//! A removed queue rings nobody, so every wait, however long, looks at the queue's files once per
//! [`LOOK`].

use crate::error::{Error, ErrorKind, Result};
use crate::os::{clock, futex, futex::Woken, process};
use crate::protocol::{Doorbell, Strong};
use crate::queue::dir::QueueDir;
use crate::queue::segment::Segment;
use crate::sync::{Arc, AtomicU32, Ordering};
use std::time::Duration;

/// How to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStrategy {
    /// Poll without pause. The lowest latency, one core. No system call, except for one look per
    /// second at each queue's files.
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

/// How often a wait looks whether a queue was removed, and the longest time that it sleeps at once.
pub const LOOK: Duration = Duration::from_secs(1);

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
    /// A signal handler ran while this thread slept. The caller decides whether to wait on. A
    /// handler that ran just before, or while this thread polled, is not noticed; so callers that
    /// must answer signals wait in slices.
    Interrupted,
}

/// Waits until one of the targets has something to read.
///
/// # Errors
/// `QueueRemoved` if a queue was removed, noticed when the wait times out and once per [`LOOK`].
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
    let end_ns = timeout.map(|t| start_ns.saturating_add(saturating_ns(t)));
    let spin_until_ns = match strategy {
        WaitStrategy::Spin => u64::MAX,
        WaitStrategy::Hybrid { spin_ns } => start_ns.saturating_add(spin_ns),
        WaitStrategy::Sleep => start_ns,
    };
    let mut watch = Watch { end_ns, look_ns: start_ns.saturating_add(saturating_ns(LOOK)) };
    loop {
        let now_ns = clock::monotonic_ns();
        if watch.is_over(targets, now_ns)? {
            return Ok(Waited::TimedOut);
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
    sleep(targets, watch)
}

fn saturating_ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// When to give up, and when to look at the queue's files next.
struct Watch {
    end_ns: Option<u64>,
    look_ns: u64,
}

impl Watch {
    /// Whether the time is up. Looks at the files then, and when it is time for that.
    fn is_over(&mut self, targets: &[WaitTarget], now_ns: u64) -> Result<bool> {
        let is_over = self.end_ns.is_some_and(|end| now_ns >= end);
        if is_over || now_ns >= self.look_ns {
            self.look_ns = now_ns.saturating_add(saturating_ns(LOOK));
            if let Some(gone) = targets.iter().find(|t| t.queue.is_removed()) {
                return Err(ErrorKind::QueueRemoved { path: gone.queue.display() }.into());
            }
        }
        Ok(is_over)
    }

    /// The longest time to sleep now.
    fn left(&self, now_ns: u64) -> Duration {
        let until = self.end_ns.map_or(self.look_ns, |end| end.min(self.look_ns));
        Duration::from_nanos(until.saturating_sub(now_ns))
    }
}

fn sleep(targets: &[WaitTarget], mut watch: Watch) -> Result<Waited> {
    let can_arm = targets.iter().all(|t| t.queue.is_writable());
    loop {
        let now_ns = clock::monotonic_ns();
        if watch.is_over(targets, now_ns)? {
            return Ok(Waited::TimedOut);
        }
        let left = watch.left(now_ns);
        let slept = if can_arm {
            let armed: Vec<_> = targets
                .iter()
                .map(|t| (&t.doorbell().ring, t.doorbell().arm::<Strong>()))
                .collect();
            if targets.iter().any(WaitTarget::is_ready) {
                return Ok(Waited::Ready);
            }
            sleep_on(&armed, left)
        } else {
            // A read-only mount: nobody can ring for us.
            futex::nap(left.min(futex::NAP))
        };
        let woken = slept.map_err(|e| Error::io("wait for", describe(targets), e))?;
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
fn sleep_on(armed: &[(&AtomicU32, u32)], left: Duration) -> std::io::Result<Woken> {
    match armed {
        [] => futex::nap(left),
        [(word, seen)] => futex::wait(word, *seen, Some(left)),
        few if few.len() <= futex::WAITV_MAX => futex::wait_any(few, Some(left)),
        many => sleep_on_many(many, left),
    }
}

/// More words than one call takes: a short-lived thread sleeps on each further group, and all
/// groups also sleep on one word of our own, which whoever wakes first rings for the others.
///
/// If a thread cannot be started, the words that would be its are not slept on; then nobody sleeps
/// for longer than a nap.
fn sleep_on_many(armed: &[(&AtomicU32, u32)], left: Duration) -> std::io::Result<Woken> {
    let done = AtomicU32::new(0);
    let sleep_on_group = |group: &[(&AtomicU32, u32)], left: Duration| {
        let mut words = group.to_vec();
        words.push((&done, 0));
        let woken = futex::wait_any(&words, Some(left));
        done.store(1, Ordering::Release);
        futex::wake_all(&done);
        woken
    };
    std::thread::scope(|scope| {
        let mut groups = armed.chunks(futex::WAITV_MAX - 1);
        let first = groups.next().unwrap_or_default();
        // A signal must interrupt the caller's sleep, not a helper's.
        let blocked = process::block_signals();
        let others: Vec<_> = groups
            .map(|group| {
                let helper = std::thread::Builder::new().name("chr-wait".into());
                helper.spawn_scoped(scope, move || sleep_on_group(group, left))
            })
            .collect();
        drop(blocked);
        let all_sleep = others.iter().all(std::io::Result::is_ok);
        let left = if all_sleep { left } else { left.min(futex::NAP) };
        let mut result = sleep_on_group(first, left);
        for helper in others.into_iter().flatten() {
            let woken =
                helper.join().unwrap_or_else(|_| Err(std::io::Error::other("waiter panicked")));
            result = more_important(result, woken);
        }
        result
    })
}

/// An error, else an interruption, else a wake-up.
fn more_important(a: std::io::Result<Woken>, b: std::io::Result<Woken>) -> std::io::Result<Woken> {
    let (a, b) = (a?, b?);
    let is_either = |woken| a == woken || b == woken;
    Ok([Woken::Interrupted, Woken::Yes]
        .into_iter()
        .find(|&w| is_either(w))
        .unwrap_or(Woken::TimedOut))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No look at anything but the words, and no end to the sleep: a lost wake-up hangs.
    #[test]
    fn whichever_of_many_words_is_rung_ends_the_sleep() {
        let words: Vec<_> = (0..300).map(|_| AtomicU32::new(7)).collect();
        let armed: Vec<_> = words.iter().map(|word| (word, 7)).collect();
        for rung in [0, 1, 126, 127, 128, 253, 254, 255, 299] {
            for sleeps_first in [false, true] {
                let woken = std::thread::scope(|scope| {
                    let sleeper = scope.spawn(|| sleep_on(&armed, Duration::from_secs(3_600)));
                    if sleeps_first {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    words[rung].store(8, Ordering::SeqCst);
                    futex::wake_all(&words[rung]);
                    sleeper.join().unwrap()
                });
                assert_eq!(woken.unwrap(), Woken::Yes);
                words[rung].store(7, Ordering::SeqCst);
            }
        }
        // A group whose time is up wakes the others.
        let woken = sleep_on(&armed, Duration::from_millis(2)).unwrap();
        assert!(matches!(woken, Woken::TimedOut | Woken::Yes));
    }

    #[test]
    fn of_the_outcomes_of_several_sleepers_the_most_important_counts() {
        use Woken::{Interrupted, TimedOut, Yes};
        for (a, b, expected) in [
            (Yes, Interrupted, Interrupted),
            (TimedOut, Yes, Yes),
            (TimedOut, Interrupted, Interrupted),
            (TimedOut, TimedOut, TimedOut),
        ] {
            assert_eq!(more_important(Ok(a), Ok(b)).unwrap(), expected);
            assert_eq!(more_important(Ok(b), Ok(a)).unwrap(), expected);
        }
        assert!(more_important(Ok(Yes), Err(std::io::Error::other("no"))).is_err());
    }
}
