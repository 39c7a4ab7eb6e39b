//! Waiting without the interpreter lock, in slices, so that Ctrl-C is answered.

use crate::errors::{raise, to_py};
use chronicle_core::wait::{self, WaitStrategy, WaitTarget, Waited};
use pyo3::prelude::*;
use std::time::{Duration, Instant};

/// Longest stretch without a look at pending signals: a signal that arrives just before the kernel
/// starts to sleep does not interrupt that sleep.
const SLICE: Duration = Duration::from_millis(50);

/// A hundred years: longer than any process lives, and no clock's time plus this overflows.
const TIMEOUT_MAX_S: f64 = 3.2e9;

/// A timeout in seconds, as Python gives it. Less than nothing is nothing.
pub fn timeout(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(seconds) = seconds else { return Ok(None) };
    if seconds.is_nan() {
        let text = "bad timeout: found=nan expected=seconds, 0 or more, or None";
        return Err(raise("BadArgument", text.to_owned(), &[]));
    }
    Ok(Some(Duration::from_secs_f64(seconds.clamp(0.0, TIMEOUT_MAX_S))))
}

/// `"spin"`, `"sleep"` or `"hybrid"`.
pub fn strategy(name: &str) -> PyResult<WaitStrategy> {
    match name {
        "spin" => Ok(WaitStrategy::Spin),
        "sleep" => Ok(WaitStrategy::Sleep),
        "hybrid" => Ok(WaitStrategy::default()),
        other => Err(raise(
            "BadArgument",
            format!("bad wait strategy: found={other:?} expected='spin', 'hybrid' or 'sleep'"),
            &[],
        )),
    }
}

/// Waits until one of the targets is ready; `false` when the time is up.
pub fn wait_any(
    py: Python<'_>,
    targets: &[WaitTarget],
    strategy: WaitStrategy,
    timeout: Option<Duration>,
) -> PyResult<bool> {
    if targets.iter().any(WaitTarget::is_ready) {
        return Ok(true);
    }
    let end = timeout.map(|t| Instant::now() + t);
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let slice = left.map_or(SLICE, |left| left.min(SLICE));
        let waited = py.detach(|| wait::wait_any(targets, strategy, Some(slice))).map_err(to_py)?;
        if waited == Waited::Ready {
            return Ok(true);
        }
        py.check_signals()?;
        // After a signal that raised nothing, what is left of the time is waited for.
        if waited == Waited::TimedOut && left.is_some_and(|left| left <= slice) {
            return Ok(false);
        }
    }
}
