//! The wall clock in nanoseconds, without a system call.
//!
//! On x86-64 with an invariant counter, a [`Clock`] reads the time-stamp counter and extrapolates
//! from the last `clock_gettime` by at most [`RESYNC_NS`]; then it reads that clock again (through
//! the vDSO, which makes no system call where the kernel's clock source is the counter itself).
//! Elsewhere it is `clock_gettime`. The time of one `Clock` never steps back because of a resync;
//! it does if the wall clock itself is set back by more than a resync can hide.

const RESYNC_NS: u64 = 1_000_000;

/// `clock_gettime(CLOCK_REALTIME)` in nanoseconds.
#[inline]
pub fn wall_ns() -> u64 {
    gettime(libc::CLOCK_REALTIME)
}

/// `clock_gettime(CLOCK_MONOTONIC)` in nanoseconds.
#[inline]
pub fn monotonic_ns() -> u64 {
    gettime(libc::CLOCK_MONOTONIC)
}

/// From the monotonic clock to that of the day. Of some tries the one counts that took the least
/// time: a thread that was interrupted between two clocks would be off by as much.
pub fn wall_offset_ns() -> u64 {
    let compared = || {
        let before = monotonic_ns();
        let wall = wall_ns();
        let took = monotonic_ns() - before;
        (took, wall.wrapping_sub(before + took / 2))
    };
    (0..8).map(|_| compared()).min().map_or(0, |(_, offset)| offset)
}

#[inline]
fn gettime(id: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid out pointer; these clock ids always exist.
    unsafe { libc::clock_gettime(id, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A wall clock owned by one thread.
pub struct Clock {
    base_ns: u64,
    base_ticks: u64,
    /// Ticks after which the next read resynchronises; 0 if the counter cannot be used.
    resync_ticks: u64,
    /// Nanoseconds per tick, as a fraction of 2^32.
    ns_per_tick_q32: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    pub fn new() -> Self {
        let ns_per_tick_q32 = calibration();
        let resync_ticks = (RESYNC_NS << 32).checked_div(ns_per_tick_q32).unwrap_or(0);
        Self { base_ns: wall_ns(), base_ticks: ticks(), resync_ticks, ns_per_tick_q32 }
    }

    /// Nanoseconds since 1970-01-01 UTC. No system call where the vDSO serves the clock.
    #[inline(always)]
    pub fn now_ns(&mut self) -> u64 {
        let since = ticks().wrapping_sub(self.base_ticks);
        if since < self.resync_ticks {
            return self.base_ns + ((since * self.ns_per_tick_q32) >> 32);
        }
        self.resync()
    }

    #[cold]
    fn resync(&mut self) -> u64 {
        if self.resync_ticks == 0 {
            return wall_ns();
        }
        let since = ticks().wrapping_sub(self.base_ticks);
        let extrapolated =
            self.base_ns + ((u128::from(since) * u128::from(self.ns_per_tick_q32)) >> 32) as u64;
        let ticks_before = ticks();
        let now = wall_ns();
        self.base_ticks = ticks_before;
        // A resync corrects drift; small corrections backwards are absorbed so that one clock reads
        // monotonically.
        let absorb = extrapolated > now && extrapolated - now < RESYNC_NS;
        self.base_ns = if absorb { extrapolated } else { now };
        self.base_ns
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn ticks() -> u64 {
    // SAFETY: every x86-64 has the counter; user space may read it unless the kernel forbids it,
    // which Linux does only for processes that ask for that (prctl PR_SET_TSC).
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn ticks() -> u64 {
    0
}

/// Nanoseconds per tick as a fraction of 2^32, or 0 if the counter does not run at a constant rate.
/// Measured once per process.
fn calibration() -> u64 {
    static ONCE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *ONCE.get_or_init(|| if counter_is_invariant() { measure_rate() } else { 0 })
}

/// Ticks of the counter that is cheapest to read, for measuring stretches of time on one core. What
/// a tick is, [`meter_ns_per_tick_q32`] says.
#[inline(always)]
pub fn meter_ticks() -> u64 {
    if cfg!(target_arch = "x86_64") { ticks() } else { monotonic_ns() }
}

/// Nanoseconds per tick of [`meter_ticks`], as a fraction of 2^32. The first call takes two
/// milliseconds.
pub fn meter_ns_per_tick_q32() -> u64 {
    static ONCE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *ONCE.get_or_init(|| {
        let rate = if cfg!(target_arch = "x86_64") { measure_rate() } else { 0 };
        // A counter that stands still tells nothing: then a tick counts as a nanosecond.
        if rate == 0 { 1 << 32 } else { rate }
    })
}

#[cfg(target_arch = "x86_64")]
fn counter_is_invariant() -> bool {
    // CPUID 0x8000_0007 EDX bit 8 (Intel SDM 19.17.1, AMD APM 3 E.4.5).
    let highest = core::arch::x86_64::__cpuid(0x8000_0000).eax;
    highest >= 0x8000_0007 && core::arch::x86_64::__cpuid(0x8000_0007).edx & (1 << 8) != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn counter_is_invariant() -> bool {
    false
}

/// Two milliseconds give the rate to a few parts per million; a resync every millisecond keeps the
/// error in nanoseconds.
fn measure_rate() -> u64 {
    let pair = || {
        // Of some tries the one with the least counter time around the clock read is the best pair.
        (0..8)
            .map(|_| {
                let before = ticks();
                let ns = monotonic_ns();
                let after = ticks();
                (after - before, before + (after - before) / 2, ns)
            })
            .min()
            .map_or((0, 0), |(_, ticks, ns)| (ticks, ns))
    };
    let (ticks_0, ns_0) = pair();
    while monotonic_ns() < ns_0 + 2_000_000 {
        std::hint::spin_loop();
    }
    let (ticks_1, ns_1) = pair();
    if ticks_1 <= ticks_0 {
        return 0;
    }
    (u128::from(ns_1 - ns_0) << 32).checked_div(u128::from(ticks_1 - ticks_0)).unwrap_or(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_follows_the_wall_clock_and_never_reads_backwards() {
        let mut clock = Clock::new();
        let mut last = 0;
        let end = monotonic_ns() + 20_000_000;
        while monotonic_ns() < end {
            let before = wall_ns();
            let now = clock.now_ns();
            let after = wall_ns();
            assert!(now >= last);
            // A descheduled thread widens [before, after]; drift within one resync is far below 100
            // us.
            assert!(now + 100_000 >= before && now <= after + 100_000, "{before} {now} {after}");
            last = now;
        }
    }
}
