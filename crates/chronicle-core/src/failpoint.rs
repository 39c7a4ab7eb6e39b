//! Places where a test kills the process, or looks at the disk. Compiled to nothing without the
//! feature `failpoints`.
//!
//! `CHRONICLE_FAIL=name:n` in the environment kills the process (SIGKILL, no unwinding, no
//! flushing) the n-th time that it reaches the point `name`; `CHRONICLE_FAIL=*:n` counts every
//! point. `CHRONICLE_FAIL_LOG=path` appends the name of the point to a file first, so that a test
//! can count what it has killed where.
//!
//! A test that plays the disk instead calls `observe`: it is told of each point, and of each sync
//! when it is done.

#[cfg(feature = "failpoints")]
mod armed {
    use crate::os::fs::Dir;
    use crate::sync::{AtomicU64, Ordering};
    use std::sync::OnceLock;

    /// What an observer is told.
    pub enum Event<'a> {
        /// This point was reached.
        Hit(&'a str),
        /// So many bytes of this file are on disk.
        Synced { path: String, offset: usize, len: usize },
        /// The names in this directory are on disk.
        NamesSynced { path: String },
    }

    type Observer = Box<dyn Fn(Event<'_>) + Send + Sync>;

    static PLAN: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static HITS: AtomicU64 = AtomicU64::new(0);
    static OBSERVER: OnceLock<Observer> = OnceLock::new();

    fn plan() -> &'static Option<(String, u64)> {
        PLAN.get_or_init(|| {
            let text = std::env::var("CHRONICLE_FAIL").ok()?;
            let (name, count) = text.rsplit_once(':')?;
            Some((name.to_owned(), count.parse().ok()?))
        })
    }

    fn log(name: &str) {
        let Some(path) = std::env::var_os("CHRONICLE_FAIL_LOG") else { return };
        let line = format!("{name}\n");
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        let written =
            file.and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()));
        // A test that misses a line would take the kill for another point's.
        assert!(written.is_ok(), "cannot write CHRONICLE_FAIL_LOG");
    }

    /// Calls `observer` at each point and after each sync, from now on. Once per process.
    ///
    /// # Panics
    /// On the second call.
    pub fn observe(observer: Observer) {
        assert!(OBSERVER.set(observer).is_ok(), "there is an observer already");
    }

    pub fn hit(name: &str) {
        if let Some(observer) = OBSERVER.get() {
            observer(Event::Hit(name));
        }
        let Some((wanted, at)) = plan() else { return };
        if wanted != "*" && wanted != name {
            return;
        }
        // Relaxed: a counter for one test process.
        if HITS.fetch_add(1, Ordering::Relaxed) + 1 == *at {
            log(name);
            crate::os::process::kill_self();
        }
    }

    pub fn synced(dir: &Dir, name: &str, offset: usize, len: usize) {
        if let Some(observer) = OBSERVER.get() {
            observer(Event::Synced { path: dir.join(name), offset, len });
        }
    }

    pub fn names_synced(dir: &Dir) {
        if let Some(observer) = OBSERVER.get() {
            observer(Event::NamesSynced { path: dir.display() });
        }
    }
}

#[cfg(feature = "failpoints")]
pub use armed::{Event, hit, names_synced, observe, synced};

/// Does nothing: the feature `failpoints` is off.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_name: &str) {}

/// Does nothing: the feature `failpoints` is off.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn synced(_dir: &crate::os::fs::Dir, _name: &str, _offset: usize, _len: usize) {}

/// Does nothing: the feature `failpoints` is off.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn names_synced(_dir: &crate::os::fs::Dir) {}
