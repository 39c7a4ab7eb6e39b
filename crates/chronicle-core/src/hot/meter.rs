//! What the hot thread tells about itself: words that it alone stores and anybody may load.
//!
//! Histograms are log-linear (as HdrHistogram's): 32 buckets per power of two, so a value is known
//! to 3 %. They are arrays of such words instead of the crate hdrhistogram's, whose counts nobody
//! may read while they are written.
//!
//! # Orderings
//! - M1: `stop` Release store in [`Page::ask_to_stop`] -> Acquire load in [`Page::must_stop`], and
//!   P2 and P3 of [`crate::protocol`] between that store and the sleeper's last look.
//! - M2: `state` Release store in [`Page::set_state`] -> Acquire load in [`Page::state`]. Who sees
//!   a state sees what was written before it was reached.

use crate::os::{clock, futex};
use crate::protocol::{Doorbell, Strong};
use crate::sync::{AtomicU32, Ordering};

pub use crate::word::Word;

/// Where a hot thread is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    New = 0,
    Starting = 1,
    Running = 2,
    /// Sleeps until something is there.
    Parked = 3,
    Stopped = 4,
    Failed = 5,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Parked => "parked",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

macro_rules! page {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The status page: what others ask of the hot thread, and what it counts.
        #[repr(C, align(4096))]
        pub struct Page {
            /// On a line of its own: others store here.
            asked: Asked,
            state: AtomicU32,
            $($(#[$doc])* pub $name: Word,)*
        }

        impl Page {
            /// Every counted word with its name.
            pub fn words(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.get()),)*].into_iter()
            }
        }

        impl Default for Page {
            fn default() -> Self {
                Self {
                    asked: Asked::default(),
                    state: AtomicU32::new(State::New as u32),
                    $($name: Word::default(),)*
                }
            }
        }
    };
}

page! {
    /// Rounds of the loop.
    turns,
    /// Records of queues that were dispatched.
    messages,
    /// Datagrams of rings that were dispatched.
    datagrams,
    /// Commands that were taken.
    commands,
    /// Events that the loop made.
    events,
    /// Messages and commands that the handler had no method for.
    unhandled,
    /// Stretches of messages that were gone.
    gaps,
    /// Gaps that could not be put into the ack ring, and that the handler did not take either.
    gaps_unreported,
    /// Sources that failed and were taken out.
    sources_failed,
    /// Sources now.
    sources,
    /// Times the loop went to sleep.
    parks,
    /// Records that handlers appended.
    appends,
    /// Appends to outputs that had no writer.
    appends_dropped,
    log_records,
    log_drops,
    /// Allocations, reallocations and frees of the extension on the hot thread.
    allocations,
    /// Calls of the idle hook.
    idles,
    /// Records of the journal.
    journal_records,
    /// The kernel's id of the thread.
    thread_id,
    started_ns,
}

const _: () = {
    assert!(size_of::<Page>() == 4096);
    assert!(std::mem::offset_of!(Page, state) == 64);
    assert!(std::mem::offset_of!(Page, turns) == 72);
};

#[repr(C, align(64))]
struct Asked {
    stop: AtomicU32,
    bell: Doorbell,
}

impl Default for Asked {
    fn default() -> Self {
        let bell = Doorbell { armed: AtomicU32::new(0), ring: AtomicU32::new(0) };
        Self { stop: AtomicU32::new(0), bell }
    }
}

impl Page {
    /// M2.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::New,
            1 => State::Starting,
            2 => State::Running,
            3 => State::Parked,
            4 => State::Stopped,
            _ => State::Failed,
        }
    }

    /// M2.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// M1.
    #[inline(always)]
    pub fn must_stop(&self) -> bool {
        self.asked.stop.load(Ordering::Acquire) != 0
    }

    /// Asks the hot thread to stop, and wakes it. M1.
    pub fn ask_to_stop(&self) {
        self.asked.stop.store(1, Ordering::Release);
        self.ring();
    }

    /// Wakes the hot thread if it sleeps, after something was put where it looks. P2, P4.
    pub fn ring(&self) {
        let bell = &self.asked.bell;
        if bell.must_ring::<Strong>() {
            bell.ring::<Strong>();
            futex::wake_all(&bell.ring);
        }
    }

    /// Asks to be rung; the hot thread looks at commands and `stop` once more before it sleeps. P3.
    pub fn arm(&self) -> futex::WaitWord {
        let bell = &self.asked.bell;
        futex::WaitWord::new(&bell.ring, bell.arm::<Strong>())
    }
}

/// Buckets per power of two.
const LINEAR: u64 = 32;
const LINEAR_SHIFT: u32 = LINEAR.trailing_zeros();
pub const BUCKETS: usize = (64 - LINEAR_SHIFT as usize + 1) * LINEAR as usize;

/// Counts of ticks, each bucket 3 % wide.
#[repr(C, align(64))]
pub struct Histogram {
    max: Max,
    counts: [Word; BUCKETS],
}

/// The highest value, on a line of its own.
#[repr(C, align(64))]
#[derive(Default)]
struct Max(Word);

impl Default for Histogram {
    fn default() -> Self {
        Self { max: Max::default(), counts: std::array::from_fn(|_| Word::default()) }
    }
}

/// The bucket of a value: below LINEAR each has its own; above, the place of the highest bit gives
/// the group, and the five bits behind it the bucket within.
#[inline(always)]
pub fn bucket_of(value: u64) -> usize {
    if value < LINEAR {
        return value as usize;
    }
    let group = 63 - value.leading_zeros() - (LINEAR_SHIFT - 1);
    let within = (value >> (group - 1)) & (LINEAR - 1);
    ((u64::from(group) << LINEAR_SHIFT) + within) as usize
}

/// The lowest value of a bucket.
pub fn bucket_low(bucket: usize) -> u64 {
    let (group, within) = (bucket as u64 >> LINEAR_SHIFT, bucket as u64 & (LINEAR - 1));
    if group == 0 { within } else { (LINEAR + within) << (group - 1) }
}

/// The highest value of a bucket.
pub fn bucket_high(bucket: usize) -> u64 {
    if bucket + 1 >= BUCKETS { u64::MAX } else { bucket_low(bucket + 1) - 1 }
}

impl Histogram {
    /// Only the one writer calls this.
    #[inline(always)]
    pub fn record(&self, value: u64) {
        self.counts[bucket_of(value)].add(1);
        if value > self.max.0.get() {
            self.max.0.set(value);
        }
    }

    /// The buckets that are not empty (highest value in nanoseconds, count), lowest first, and the
    /// highest value. Disturbs nobody.
    pub fn snapshot(&self) -> (Vec<(u64, u64)>, u64) {
        let max = self.max.0.get();
        let counts = self.counts.iter().map(Word::get).enumerate().filter(|&(_, count)| count > 0);
        let buckets =
            counts.map(|(bucket, count)| (nanoseconds(bucket_high(bucket).min(max)), count));
        (buckets.collect(), nanoseconds(max))
    }
}

/// Ticks as nanoseconds.
pub fn nanoseconds(ticks: u64) -> u64 {
    let ns = (u128::from(ticks) * u128::from(clock::meter_ns_per_tick_q32())) >> 32;
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Nanoseconds as ticks.
pub fn ticks_of(ns: u64) -> u64 {
    let ticks = (u128::from(ns) << 32) / u128::from(clock::meter_ns_per_tick_q32());
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_buckets_are_three_percent_wide() {
        let mut values: Vec<u64> = (0..5_000).collect();
        for shift in 5..64 {
            for step in 0..32_u64 {
                values.push((1 << shift) + (step << (shift - 5)));
                values.push(((1_u64 << shift) + (step << (shift - 5))).wrapping_sub(1));
            }
        }
        values.push(u64::MAX);
        for value in values {
            let bucket = bucket_of(value);
            assert!(bucket < BUCKETS, "{value}");
            let (low, high) = (bucket_low(bucket), bucket_high(bucket));
            assert!(low <= value && value <= high, "{value}: {low} to {high}");
            assert!((high - low) as f64 <= low as f64 / 31.0, "{value}: {low} to {high}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert!((1..BUCKETS).all(|b| bucket_low(b) == bucket_high(b - 1) + 1));
    }

    #[test]
    fn a_histogram_gives_back_what_was_put_in() {
        let histogram = Histogram::default();
        for value in [3, 3, 1_000, 70_000_000] {
            histogram.record(value);
        }
        let (buckets, max) = histogram.snapshot();
        assert_eq!(buckets.iter().map(|b| b.1).collect::<Vec<_>>(), [2, 1, 1]);
        assert_eq!(max, nanoseconds(70_000_000));
        assert_eq!(buckets.last().unwrap().0, max);
    }

    #[test]
    fn a_state_survives_its_word() {
        let page = Page::default();
        for state in [
            State::New,
            State::Starting,
            State::Running,
            State::Parked,
            State::Stopped,
            State::Failed,
        ] {
            page.set_state(state);
            assert_eq!(page.state(), state);
        }
        page.parks.add(2);
        assert!(page.words().any(|word| word == ("parks", 2)));
    }
}
