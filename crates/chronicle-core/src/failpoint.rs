//! Places where a test kills the process. Compiled to nothing without the feature `failpoints`.
//!
//! `CHRONICLE_FAIL=name:n` in the environment kills the process (SIGKILL, no unwinding, no flushing) the n-th
//! time that it reaches the point `name`; `CHRONICLE_FAIL=*:n` counts every point.

#[cfg(feature = "failpoints")]
mod armed {
    use crate::sync::{AtomicU64, Ordering};
    use std::sync::OnceLock;

    static PLAN: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static HITS: AtomicU64 = AtomicU64::new(0);

    fn plan() -> &'static Option<(String, u64)> {
        PLAN.get_or_init(|| {
            let text = std::env::var("CHRONICLE_FAIL").ok()?;
            let (name, count) = text.rsplit_once(':')?;
            Some((name.to_owned(), count.parse().ok()?))
        })
    }

    pub fn hit(name: &str) {
        let Some((wanted, at)) = plan() else { return };
        if wanted != "*" && wanted != name {
            return;
        }
        // Relaxed: a counter for one test process.
        if HITS.fetch_add(1, Ordering::Relaxed) + 1 == *at {
            crate::os::process::kill_self();
        }
    }
}

#[cfg(feature = "failpoints")]
pub use armed::hit;

/// Does nothing: the feature `failpoints` is off.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_name: &str) {}
