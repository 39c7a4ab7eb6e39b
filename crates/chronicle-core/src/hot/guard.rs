//! The guard of a hot thread: tells of every system call that the thread makes, or refuses it.
//!
//! [`Guard::arm`] puts the calling thread under a filter (`os::seccomp`). Each call of that thread
//! then becomes a [`Report`] in a bounded ring, which any other thread drains; in
//! [`GuardMode::Observe`] the call is made all the same, in [`GuardMode::Enforce`] it is refused,
//! unless that would harm others ([`Rule::Made`]), and the thread is told to stop. The thread never waits for whoever drains: a full ring drops
//! and counts. As long as there is nothing to report, a guard costs the thread one load per
//! [`Guard::must_stop`].
//!
//! The ring's producer belongs to the signal handler of the one armed thread. `os::sigsys` blocks
//! signals, SIGSYS included, while it is told of a call, so the producer is never entered twice, which it could not
//! bear. A guard is armed once, so the producer never passes from one thread to another.
//!
//! # Orderings
//! None: what this module shares are counts and two flags that publish nothing; each is Relaxed and
//! says so. Reports are published by the ring.

use crate::os::clock;
use crate::os::sigsys::{self, Call, Decision, Rule, Supervisor};
use crate::sync::{Arc, AtomicU32, AtomicU64, Ordering};
use std::cell::UnsafeCell;
use std::io;
use std::sync::{Mutex, PoisonError};

pub use crate::os::sigsys::STACK_WORDS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardMode {
    /// No filter.
    Off,
    /// System calls are reported and made.
    Observe,
    /// System calls are reported and refused, and the thread is to stop. Made all the same are those
    /// whose refusal would endanger the process: see [`Rule::Made`].
    Enforce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardAction {
    /// The call was made.
    Allowed,
    /// The call was made, because its refusal would endanger the process; it is a violation as any
    /// other, and the thread stops.
    MadeStopping,
    /// The call returned EPERM, or from a wait on a futex EAGAIN.
    Refused,
}

/// One system call of the guarded thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Number in the table of `arch`.
    pub number: u32,
    /// AUDIT_ARCH_* of linux/audit.h.
    pub arch: u32,
    pub args: [u64; 6],
    /// Address behind the instruction that made the call.
    pub call_site: usize,
    /// What stood at the stack pointer and above; among it, who called.
    pub stack: [usize; STACK_WORDS],
    /// Wall clock.
    pub timestamp_ns: u64,
    pub action: GuardAction,
}

/// Reports and counts of one thread's system calls.
pub struct Guard {
    mode: GuardMode,
    /// Touched only by the armed thread's handler.
    producer: UnsafeCell<rtrb::Producer<Report>>,
    consumer: Mutex<rtrb::Consumer<Report>>,
    used: AtomicU32,
    must_stop: AtomicU32,
    seen: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    made: AtomicU64,
    /// Another library's handler was found in the place of ours while the thread was armed.
    lost: AtomicU32,
    /// Not 0 while [`Guard::arm`] looks whether the clock can be read: [`TRYING`], and one more for
    /// each call.
    tried: AtomicU32,
}

/// In `tried`: no call so far.
const TRYING: u32 = 1;

/// States of `used`.
const NEW: u32 = 0;
const ARMED: u32 = 1;
const ENDED: u32 = 2;

// SAFETY: the one field that is not `Sync` is the producer. Only `trapped` touches it, which runs in
// the signal handler of the one thread that `used` lets in, with signals blocked.
unsafe impl Sync for Guard {}

/// How many calls a guard has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuardCounts {
    /// All.
    pub seen: u64,
    /// Of these, refused.
    pub refused: u64,
    /// Of these, made under [`GuardMode::Enforce`] although they stop the thread.
    pub made: u64,
    /// Of these, not in the ring, because it was full.
    pub dropped: u64,
    /// Another library has installed its handler of SIGSYS over ours: from then on calls of the
    /// thread are not counted, and return whatever that handler leaves.
    pub lost: bool,
}

impl Guard {
    /// A guard whose ring holds `capacity` reports (of about 600 bytes), allocated and touched here.
    ///
    /// # Errors
    /// If the capacity is 0 or above 65,536.
    pub fn new(mode: GuardMode, capacity: usize) -> io::Result<Arc<Self>> {
        if capacity == 0 || capacity > 1 << 16 {
            let text = format!("bad guard capacity: found={capacity} expected=1 to {}", 1 << 16);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let (mut producer, mut consumer) = rtrb::RingBuffer::new(capacity);
        // Once around, so that the first report takes no page fault.
        while producer.push(Report::BLANK).is_ok() {}
        while consumer.pop().is_ok() {}
        Ok(Arc::new(Self {
            mode,
            producer: UnsafeCell::new(producer),
            consumer: Mutex::new(consumer),
            used: AtomicU32::new(NEW),
            must_stop: AtomicU32::new(0),
            seen: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            made: AtomicU64::new(0),
            lost: AtomicU32::new(0),
            tried: AtomicU32::new(0),
        }))
    }

    pub fn mode(&self) -> GuardMode {
        self.mode
    }

    /// Guards the calling thread until the result is dropped. The filter itself stays for the rest of
    /// the thread's life; what the thread calls after the drop is made and not reported.
    ///
    /// Call it last, on a thread that blocks asynchronous signals and that ends soon after the
    /// guard does. A guard serves one thread, once.
    ///
    /// # Errors
    /// If filters are not allowed here, another library has taken over SIGSYS, the guard was used
    /// already, or the thread is guarded. The thread has no filter then, or no other than before.
    ///
    /// In [`GuardMode::Enforce`] it is an error too if reading the clock is a system call here: the
    /// loop reads it all the time.
    pub fn arm(self: &Arc<Self>) -> io::Result<Armed> {
        self.arm_and_try(|| {
            clock::wall_ns();
            clock::monotonic_ns();
        })
    }

    /// As [`Self::arm`]; `clocks` reads them, and must make no call under [`GuardMode::Enforce`].
    fn arm_and_try(self: &Arc<Self>, clocks: impl FnOnce()) -> io::Result<Armed> {
        if self.mode == GuardMode::Off {
            return Ok(Armed { inner: None, guard: Arc::clone(self) });
        }
        // Relaxed, here and below: nothing is read through it; whoever got the guard itself sees
        // the producer as it was made.
        if self.used.compare_exchange(NEW, ARMED, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Err(io::Error::other("the guard was armed before; make one for each thread"));
        }
        let supervisor: Arc<dyn Supervisor> = Arc::<Self>::clone(self);
        // Relaxed: as above; a thread that could not be armed has not touched the producer.
        let unused = |_: &io::Error| self.used.store(NEW, Ordering::Relaxed);
        let inner = sigsys::arm(supervisor).inspect_err(unused)?;
        let armed = Armed { inner: Some(inner), guard: Arc::clone(self) };
        if self.mode == GuardMode::Enforce {
            // Relaxed, all three: only this thread and its handler use them.
            self.tried.store(TRYING, Ordering::Relaxed);
            clocks();
            if self.tried.swap(0, Ordering::Relaxed) != TRYING {
                drop(armed);
                return Err(clock_needs_calls());
            }
            crate::os::thread::clear_stack();
        }
        Ok(armed)
    }

    /// Whether there was a call in [`GuardMode::Enforce`]. One load.
    #[inline(always)]
    pub fn must_stop(&self) -> bool {
        // Relaxed: the armed thread sees its own handler's store; others only show it.
        self.must_stop.load(Ordering::Relaxed) != 0
    }

    /// How many calls there were. Also looks whether the handler is still ours: not for the armed
    /// thread.
    pub fn counts(&self) -> GuardCounts {
        self.look_for_handler();
        // Relaxed: for show; each is exact on its own.
        let [seen, refused, made, dropped] = [&self.seen, &self.refused, &self.made, &self.dropped]
            .map(|count| count.load(Ordering::Relaxed));
        // Relaxed: as above.
        let lost = self.lost.load(Ordering::Relaxed) != 0;
        GuardCounts { seen, refused, made, dropped, lost }
    }

    /// One system call while the thread is armed.
    fn look_for_handler(&self) {
        // Relaxed: a flag that publishes nothing; seen late, the next look finds it.
        if self.used.load(Ordering::Relaxed) == ARMED && !sigsys::is_installed() {
            // Relaxed: as above.
            self.lost.store(1, Ordering::Relaxed);
        }
    }

    /// Takes the reports that are there, oldest first, and returns how many. Any thread may call it;
    /// it waits only for others that drain. The armed thread never waits for it.
    pub fn drain(&self, mut take: impl FnMut(Report)) -> usize {
        self.look_for_handler();
        let mut consumer = self.consumer.lock().unwrap_or_else(PoisonError::into_inner);
        // No more than were there at first, so that it ends however fast new ones come.
        let count = consumer.slots();
        for _ in 0..count {
            match consumer.pop() {
                Ok(report) => take(report),
                Err(_) => break,
            }
        }
        count
    }
}

impl Supervisor for Guard {
    fn trapped(&self, call: &Call) -> Decision {
        // Relaxed, both: see `arm_and_try`.
        if self.tried.load(Ordering::Relaxed) != 0 {
            self.tried.fetch_add(1, Ordering::Relaxed);
            return Decision::Pass;
        }
        let enforce = self.mode == GuardMode::Enforce;
        let action = match call.rule {
            Rule::Refused => GuardAction::Refused,
            Rule::Free if enforce => GuardAction::Refused,
            Rule::Made if enforce => GuardAction::MadeStopping,
            Rule::Free | Rule::Made | Rule::Foreign => GuardAction::Allowed,
        };
        let refuse = action == GuardAction::Refused;
        let made = action == GuardAction::MadeStopping;
        let report = Report {
            number: call.number,
            arch: call.arch,
            args: call.args,
            call_site: call.call_site,
            stack: call.stack,
            timestamp_ns: call.timestamp_ns,
            action,
        };
        // Counted first: whoever drains has not taken more than were seen.
        // Relaxed, all of them: counts and a flag; the reports are published by the ring.
        self.seen.fetch_add(1, Ordering::Relaxed);
        self.refused.fetch_add(u64::from(refuse), Ordering::Relaxed);
        self.made.fetch_add(u64::from(made), Ordering::Relaxed);
        // SAFETY: see `Sync`: nobody else is here.
        let pushed = unsafe { (*self.producer.get()).push(report).is_ok() };
        self.dropped.fetch_add(u64::from(!pushed), Ordering::Relaxed);
        if enforce && call.rule != Rule::Foreign {
            self.must_stop.store(1, Ordering::Relaxed);
        }
        if refuse { Decision::Refuse } else { Decision::Pass }
    }
}

/// While it lives, the thread that made it is guarded.
#[must_use = "the guard ends when it is dropped"]
pub struct Armed {
    /// `None` if the mode is off.
    inner: Option<sigsys::Armed>,
    guard: Arc<Guard>,
}

impl Drop for Armed {
    fn drop(&mut self) {
        if self.inner.take().is_some() {
            // Relaxed: tells only that the handler matters no more.
            self.guard.used.store(ENDED, Ordering::Relaxed);
        }
    }
}

impl Armed {
    /// Whether the thread had to give up gaining privileges, for want of CAP_SYS_ADMIN.
    pub fn no_new_privs(&self) -> bool {
        self.inner.as_ref().is_some_and(sigsys::Armed::no_new_privs)
    }
}

#[cold]
fn clock_needs_calls() -> io::Error {
    let file = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = std::fs::read_to_string(file).unwrap_or_default();
    let text = format!(
        "the guard cannot enforce: reading the clock is a system call here: clocksource='{}'; use \
         guard='observe', or a clock source that programs read by themselves (tsc, kvm-clock, \
         arch_sys_counter)",
        source.trim()
    );
    io::Error::new(io::ErrorKind::Unsupported, text)
}

impl Report {
    const BLANK: Self = Self {
        number: 0,
        arch: 0,
        args: [0; 6],
        call_site: 0,
        stack: [0; STACK_WORDS],
        timestamp_ns: 0,
        action: GuardAction::Allowed,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arms a guard on a machine whose clocks make `calls` system calls.
    fn arm_with(mode: GuardMode, calls: u32) -> (Result<(), String>, GuardCounts, bool) {
        let guard = Guard::new(mode, 8).unwrap();
        let on_thread = Arc::clone(&guard);
        let clocks = move || {
            for _ in 0..calls {
                crate::os::thread::current_id();
            }
        };
        let thread = std::thread::spawn(move || on_thread.arm_and_try(clocks).map(drop));
        let armed = thread.join().unwrap().map_err(|error| error.to_string());
        (armed, guard.counts(), guard.must_stop())
    }

    #[test]
    fn enforcing_where_the_clock_is_a_system_call_is_refused_with_the_reason() {
        for calls in [1, 2] {
            let (armed, counts, must_stop) = arm_with(GuardMode::Enforce, calls);
            let text = armed.unwrap_err();
            assert!(text.contains("clocksource='") && text.contains("guard='observe'"), "{text}");
            assert_eq!((counts, must_stop), (GuardCounts::default(), false));
        }
        assert_eq!(arm_with(GuardMode::Enforce, 0).0, Ok(()));
        assert_eq!(arm_with(GuardMode::Observe, 1).0, Ok(()), "it may make calls");
    }
}
