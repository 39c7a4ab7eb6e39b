//! A plain Python callable as the handler of a hot thread: the interpreter lock is taken once per
//! batch of messages.
//!
//! The thread gets its interpreter state as it starts and keeps it, so that taking the lock does not
//! make one each time; as its last act it gives it back. Nobody else may: from CPython 3.12 on,
//! deleting another thread's state takes the caller's own away from `PyGILState_Ensure`.

use crate::message::Pool;
use crate::packets::Datagram;
use chronicle_core::hot::abi::{
    Context, FAILED, HANDLED, HandlerTable, KIND_DATA, KIND_DATAGRAM, Message, TABLE_BATCHED,
    TABLE_UNAUDITED, UNHANDLED,
};
use chronicle_core::hot::current;
use pyo3::ffi;
use pyo3::prelude::*;
use std::cell::UnsafeCell;

/// A callable and what its calls need. Used by the hot thread while that runs, by its joiner then.
pub struct Callback {
    inner: UnsafeCell<Inner>,
}

struct Inner {
    callable: Py<PyAny>,
    pool: Pool,
    /// What the callable raised.
    error: Option<PyErr>,
    /// The hot thread's, which it does not hold between batches.
    thread_state: *mut ffi::PyThreadState,
    /// Of the batch.
    lock: Option<ffi::PyGILState_STATE>,
    /// Of the whole life of the thread.
    first: Option<ffi::PyGILState_STATE>,
}

// SAFETY: only one thread at a time uses the inner part: the hot thread until it has been joined,
// then who has joined it.
unsafe impl Send for Callback {}
// SAFETY: as above.
unsafe impl Sync for Callback {}

impl Callback {
    /// Boxed: the handler's state holds its address.
    pub fn new(callable: Py<PyAny>) -> Box<Self> {
        let inner = Inner {
            callable,
            pool: Pool::default(),
            error: None,
            thread_state: std::ptr::null_mut(),
            lock: None,
            first: None,
        };
        Box::new(Self { inner: UnsafeCell::new(inner) })
    }

    /// The initial state of the handler: where this is.
    pub fn state(&self) -> [u8; size_of::<usize>()] {
        std::ptr::from_ref(self).expose_provenance().to_ne_bytes()
    }

    /// Lets go of the callable, which may refer to its hot thread; gives what it raised.
    ///
    /// # Safety
    /// The thread has been joined, or never started.
    pub unsafe fn finish(&self, py: Python<'_>) -> Option<PyErr> {
        // SAFETY: the caller's promise: nobody else uses it.
        let inner = unsafe { &mut *self.inner.get() };
        inner.callable = py.None();
        inner.pool = Pool::default();
        inner.error.take()
    }
}

/// The functions that the loop calls.
pub fn table() -> HandlerTable {
    HandlerTable {
        flags: TABLE_BATCHED | TABLE_UNAUDITED,
        on_message: Some(on_message),
        on_start: Some(on_start),
        on_batch_begin: Some(on_batch_begin),
        on_batch_end: Some(on_batch_end),
        on_end: Some(on_end),
        ..HandlerTable::default()
    }
}

/// # Safety
/// Called by the loop, whose state record holds the address of a callback.
unsafe fn inner<'a>(context: *mut Context) -> &'a mut Inner {
    // SAFETY: the caller's promise; `HotCore` keeps the callback until the thread has been joined,
    // and the hot thread is the only one that uses it until then.
    unsafe {
        let callback = (*context).state.cast::<*const Callback>().read();
        &mut *(*callback).inner.get()
    }
}

/// # Safety
/// Called by the loop.
unsafe extern "C" fn on_start(context: *mut Context) -> i32 {
    // SAFETY: called by the loop. The thread has no interpreter state yet: it gets one, and lets go
    // of the lock.
    unsafe {
        inner(context).first = Some(ffi::PyGILState_Ensure());
        inner(context).thread_state = ffi::PyEval_SaveThread();
    }
    HANDLED
}

/// # Safety
/// Called by the loop.
unsafe extern "C" fn on_end(context: *mut Context) -> i32 {
    // SAFETY: called by the loop, on the thread that `on_start` was called on, if that was called:
    // the state is this thread's, and is taken again before it is given back.
    unsafe {
        let inner = inner(context);
        let Some(first) = inner.first.take() else { return HANDLED };
        // A batch that a panic has cut off.
        if let Some(lock) = inner.lock.take() {
            ffi::PyGILState_Release(lock);
        }
        ffi::PyEval_RestoreThread(inner.thread_state);
        inner.thread_state = std::ptr::null_mut();
        ffi::PyGILState_Release(first);
    }
    HANDLED
}

/// # Safety
/// Called by the loop.
unsafe extern "C" fn on_batch_begin(context: *mut Context) -> i32 {
    // SAFETY: called by the loop, on a thread that has an interpreter state.
    unsafe { inner(context).lock = Some(ffi::PyGILState_Ensure()) };
    HANDLED
}

/// # Safety
/// Called by the loop.
unsafe extern "C" fn on_batch_end(context: *mut Context) -> i32 {
    // SAFETY: called by the loop, after `on_batch_begin`.
    unsafe {
        if let Some(lock) = inner(context).lock.take() {
            ffi::PyGILState_Release(lock);
        }
    }
    HANDLED
}

/// # Safety
/// Called by the loop.
unsafe extern "C" fn on_message(context: *mut Context, message: *const Message) -> i32 {
    // SAFETY: called by the loop with valid pointers.
    let (inner, message) = unsafe { (inner(context), &*message) };
    // The lock is held since `on_batch_begin`; attaching only tells PyO3 so.
    let called = match message.kind() {
        KIND_DATA => {
            // SAFETY: called by the loop, which has set the record of this very call.
            let Some((raw, segment)) = (unsafe { current(context) }) else {
                return FAILED;
            };
            Python::attach(|py| {
                let object = inner.pool.message(py, raw, segment, i64::from(message.source))?;
                inner.callable.call1(py, (object,))
            })
        }
        KIND_DATAGRAM => Python::attach(|py| {
            // SAFETY: called by the loop with a valid message.
            let object = unsafe { Datagram::of_message(py, message) };
            inner.callable.call1(py, (object,))
        }),
        _ => return UNHANDLED,
    };
    match called {
        Ok(_) => HANDLED,
        Err(error) => {
            inner.error = Some(error);
            FAILED
        }
    }
}
