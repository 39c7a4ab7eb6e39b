//! What all benchmarks share: pinning, the counter as a common clock, scratch directories, results.

use chronicle_core::os::clock::monotonic_ns;
use chronicle_core::os::{fs, map::Map};
use chronicle_core::sync::{AtomicU64, Ordering};
use hdrhistogram::Histogram;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

/// Sizes of a run.
#[derive(Clone)]
pub struct Run {
    pub dir: PathBuf,
    pub quick: bool,
}

impl Run {
    /// A size: the full one, or the one for a test.
    pub fn size(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// A directory for one queue, empty and removed when dropped.
    pub fn scratch(&self, name: &str) -> Scratch {
        let path = self.dir.join(name);
        let scratch = Scratch(path);
        scratch.remove();
        scratch
    }
}

/// A path that is removed when dropped, with all below it.
pub struct Scratch(pub PathBuf);

impl Scratch {
    fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.0);
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Ends this process when its parent ends.
pub fn die_with_parent() {
    // SAFETY: plain numbers; changes only what becomes of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Pins the calling thread. On a machine with one core that is the first for everybody.
pub fn pin(core: usize) {
    // SAFETY: `sysconf` has no preconditions.
    let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1) as usize;
    // SAFETY: `cpu_set_t` is plain data, for which zeros are the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the core is far below the 1024 that the set has room for.
    unsafe { libc::CPU_SET(core % cores, &mut set) };
    // SAFETY: a valid set of the right size; 0 is the calling thread.
    let rc = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
    assert_eq!(rc, 0, "cannot pin to core {core}");
}

/// The common clock of all cores and processes: the time-stamp counter where there is one.
#[inline(always)]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the counter and Linux lets user space read it.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    monotonic_ns()
}

/// Nanoseconds per tick, measured over a tenth of a second.
pub fn ns_per_tick() -> f64 {
    let pair = || {
        (0..32)
            .map(|_| {
                let (before, ns, after) = (ticks(), monotonic_ns(), ticks());
                (after - before, before + (after - before) / 2, ns)
            })
            .min()
            .unwrap()
    };
    let (_, ticks_0, ns_0) = pair();
    while monotonic_ns() < ns_0 + 100_000_000 {
        std::hint::spin_loop();
    }
    let (_, ticks_1, ns_1) = pair();
    (ns_1 - ns_0) as f64 / (ticks_1 - ticks_0).max(1) as f64
}

/// A fresh file, allocated, mapped and prefaulted, as a segment is.
pub fn fresh_map(path: &Path, bytes: usize) -> Map {
    let _ = std::fs::remove_file(path);
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).open(path).expect("create");
    file.set_len(bytes as u64).expect("size");
    let map = Map::new(&file, bytes, true).expect("map");
    // Large pages where segments get them, so that the floor is no worse off.
    if !map.try_huge(&file).expect("try") {
        fs::allocate(&file, bytes as u64).expect("allocate");
    }
    map.populate().expect("populate");
    map
}

/// A page that two processes map: words on lines of their own (two apart, because lines are fetched
/// in pairs).
pub struct SharedPage(Map);

impl SharedPage {
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .expect("open page");
        fs::allocate(&file, 4096).expect("allocate page");
        let map = Map::new(&file, 4096, true).expect("map page");
        map.populate().expect("populate page");
        Self(map)
    }

    #[inline(always)]
    pub fn word(&self, line: usize) -> &AtomicU64 {
        assert!(line < 32);
        // SAFETY: inside the page, 8-aligned, and used as an atomic by both processes.
        unsafe { &*self.0.base().add(line * 128).cast::<AtomicU64>() }
    }

    /// Waits until both processes have come here for the `round`-th time. Panics if the other does
    /// not come for a minute.
    pub fn meet(&self, mine: usize, theirs: usize, round: u64) {
        self.word(mine).store(round, Ordering::Release);
        let start_ns = monotonic_ns();
        while self.word(theirs).load(Ordering::Acquire) < round {
            std::hint::spin_loop();
            assert!(monotonic_ns() - start_ns < 60_000_000_000, "the other process is gone");
        }
    }
}

pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds")
}

/// What a benchmark found: flat, in order, as JSON.
#[derive(Default)]
pub struct Report(Vec<(String, f64)>);

impl Report {
    pub fn put(&mut self, name: impl Into<String>, value: f64) {
        self.0.push((name.into(), value));
    }

    /// p50 to max of a histogram, each as `<prefix>_p.._ns`.
    pub fn put_quantiles(&mut self, prefix: &str, histogram: &Histogram<u64>) {
        let quantiles =
            [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("p9999", 0.9999)];
        for (name, quantile) in quantiles {
            self.put(format!("{prefix}_{name}_ns"), histogram.value_at_quantile(quantile) as f64);
        }
        self.put(format!("{prefix}_max_ns"), histogram.max() as f64);
        self.put(format!("{prefix}_count"), histogram.len() as f64);
    }

    /// Median, least and greatest of some rounds.
    pub fn put_rounds(&mut self, name: &str, unit: &str, rounds: &[f64]) {
        let sorted = sorted(rounds);
        self.put(format!("{name}_median_{unit}"), median(rounds));
        self.put(format!("{name}_min_{unit}"), sorted[0]);
        self.put(format!("{name}_max_{unit}"), sorted[sorted.len() - 1]);
    }

    pub fn json(&self) -> String {
        let mut text = String::from("{");
        for (i, (name, value)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let _ = write!(text, "{comma}\"{name}\": {value:.6}");
        }
        text + "}"
    }
}

pub fn sorted(rounds: &[f64]) -> Vec<f64> {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

pub fn median(rounds: &[f64]) -> f64 {
    let sorted = sorted(rounds);
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

/// The median of candidate / floor, each pair measured in the same round.
pub fn median_ratio(candidate: &[f64], floor: &[f64]) -> f64 {
    let ratios: Vec<f64> = candidate.iter().zip(floor).map(|(c, f)| c / f).collect();
    median(&ratios)
}
