//! A cell for what one thread at a time may use: present, moved to another owner, or closed.
//!
//! # Orderings
//! - B1: `busy` Release store in the guard's drop -> Acquire in `try_mark_busy`. Whoever enters
//!   sees what the one before did. Where threads take turns under the interpreter lock a load and a
//!   store will do (nobody can come between them); in a free-threaded build it is an exchange.

use crate::errors::{raise, to_py};
use chronicle_core::ErrorKind;
use chronicle_core::os::process;
use chronicle_core::sync::{AtomicU32, Ordering};
use pyo3::prelude::*;
use std::borrow::Cow;
use std::cell::UnsafeCell;

enum State<T> {
    Present(T),
    Moved(Cow<'static, str>),
    Closed,
}

impl<T> State<T> {
    /// Who has the value, if somebody has.
    #[cold]
    fn owner(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Moved(owner) => Some(owner.clone()),
            Self::Present(_) | Self::Closed => None,
        }
    }
}

/// See the module's header. `what` names the object in messages.
pub struct Owned<T> {
    busy: AtomicU32,
    state: UnsafeCell<State<T>>,
    what: &'static str,
    /// A child that was forked while another thread was inside finds it busy for ever.
    fork_generation: u64,
}

// SAFETY: the state is only touched between B1's exchange and store, by one thread at a time.
unsafe impl<T: Send> Sync for Owned<T> {}

/// B1. The caller is attached to the interpreter.
#[inline(always)]
fn try_mark_busy(busy: &AtomicU32) -> bool {
    #[cfg(not(Py_GIL_DISABLED))]
    {
        let free = busy.load(Ordering::Acquire) == 0;
        if free {
            // Relaxed: threads that enter later do so after a change of the interpreter lock's
            // holder.
            busy.store(1, Ordering::Relaxed);
        }
        free
    }
    #[cfg(Py_GIL_DISABLED)]
    // Relaxed on failure: nothing is read then.
    busy.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// The right to use the state, until dropped.
struct Entered<'a, T>(&'a Owned<T>);

impl<T> Entered<'_, T> {
    #[inline(always)]
    fn state(&mut self) -> &mut State<T> {
        // SAFETY: `busy` makes us the only one inside until we are dropped, and the borrow ends
        // before that.
        unsafe { &mut *self.0.state.get() }
    }
}

impl<T> Drop for Entered<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // B1.
        self.0.busy.store(0, Ordering::Release);
    }
}

impl<T> Owned<T> {
    pub fn new(what: &'static str, value: T) -> Self {
        process::watch_forks();
        Self {
            busy: AtomicU32::new(0),
            state: UnsafeCell::new(State::Present(value)),
            what,
            fork_generation: process::fork_generation(),
        }
    }

    /// Whether it is the parent's, and this process a forked child.
    fn is_inherited(&self) -> bool {
        self.fork_generation != process::fork_generation()
    }

    #[inline(always)]
    fn enter(&self, _attached: Python<'_>) -> PyResult<Entered<'_, T>> {
        if try_mark_busy(&self.busy) { Ok(Entered(self)) } else { Err(self.busy_error()) }
    }

    /// Runs `f` on the value, alone.
    ///
    /// # Errors
    /// `Busy` if another thread is using it, `Forked` if one was when this child was forked, `Moved`
    /// or `Closed` if it is not here.
    #[inline(always)]
    pub fn with<R>(&self, py: Python<'_>, f: impl FnOnce(&mut T) -> PyResult<R>) -> PyResult<R> {
        let mut entered = self.enter(py)?;
        let state = entered.state();
        match state {
            State::Present(value) => f(value),
            other => {
                let owner = other.owner();
                // Making an error runs Python, which may come back to this very object.
                drop(entered);
                Err(self.absent_error(owner))
            }
        }
    }

    /// Takes the value out for another owner.
    pub fn take(&self, py: Python<'_>, new_owner: impl Into<Cow<'static, str>>) -> PyResult<T> {
        let mut entered = self.enter(py)?;
        let state = entered.state();
        match std::mem::replace(state, State::Moved(new_owner.into())) {
            State::Present(value) => Ok(value),
            other => {
                let owner = other.owner();
                *state = other;
                // As in `with`.
                drop(entered);
                Err(self.absent_error(owner))
            }
        }
    }

    /// Gives the value back.
    pub fn restore(&self, py: Python<'_>, value: T) -> PyResult<()> {
        *self.enter(py)?.state() = State::Present(value);
        Ok(())
    }

    /// Gives the value back even if another thread is just being told that it is not here.
    pub fn restore_surely(&self, py: Python<'_>, value: T)
    where
        T: Send,
    {
        loop {
            if let Ok(mut entered) = self.enter(py) {
                *entered.state() = State::Present(value);
                return;
            }
            py.detach(std::thread::yield_now);
        }
    }

    /// Drops the value, without the interpreter lock: that may unmap or wait. Closing twice is
    /// fine; what was moved stays with its new owner, and what a thread of the parent was using when
    /// this child was forked is left alone.
    pub fn close(&self, py: Python<'_>) -> PyResult<()>
    where
        T: Send,
    {
        let mut entered = match self.enter(py) {
            Err(_) if self.is_inherited() => return Ok(()),
            entered => entered?,
        };
        let state = entered.state();
        if matches!(state, State::Present(_)) {
            let old = std::mem::replace(state, State::Closed);
            py.detach(|| drop(old));
        }
        Ok(())
    }

    /// Who has the value, if it was handed to somebody.
    pub fn owner(&self, py: Python<'_>) -> PyResult<Option<Cow<'static, str>>> {
        Ok(self.enter(py)?.state().owner())
    }

    pub fn is_closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(!matches!(self.enter(py)?.state(), State::Present(_)))
    }

    #[cold]
    fn busy_error(&self) -> PyErr {
        if self.is_inherited() {
            return to_py(ErrorKind::Forked.into());
        }
        let text = format!(
            "this {} is in use by another thread; use it from one thread at a time, or open one for each",
            self.what
        );
        raise("Busy", text, &[])
    }

    #[cold]
    fn absent_error(&self, owner: Option<Cow<'static, str>>) -> PyErr {
        let what = self.what;
        match owner {
            Some(owner) => {
                let text =
                    format!("this {what} was handed to {owner}; use that, or take it back first");
                raise("Moved", text, &[("owner", owner.into_owned().into())])
            }
            None => raise("Closed", format!("this {what} is closed; open a new one"), &[]),
        }
    }
}
