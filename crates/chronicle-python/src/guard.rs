//! Trying code under a guard: a C function on a fresh guarded thread. For tests and for
//! `chronicle audit --trial`.

use crate::errors::raise;
use chronicle_core::hot::guard::{Armed, Guard, GuardAction, GuardMode, Report};
use chronicle_core::os::{process, thread};
use chronicle_core::sync::Arc;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::ffi::c_void;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The mode of that name.
pub fn mode(name: &str) -> PyResult<GuardMode> {
    match name {
        "off" => Ok(GuardMode::Off),
        "observe" => Ok(GuardMode::Observe),
        "enforce" => Ok(GuardMode::Enforce),
        _ => {
            let text =
                format!("bad guard mode: found='{name}' expected='off', 'observe' or 'enforce'");
            Err(raise("BadArgument", text, &[]))
        }
    }
}

/// A report as Python takes it (`chronicle.hot.guard.GuardReport.from_native`): number, arch, args,
/// call_site, stack, timestamp_ns, action.
pub fn to_tuple<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyTuple>> {
    (
        report.number,
        report.arch,
        PyTuple::new(py, report.args)?,
        report.call_site,
        PyTuple::new(py, report.stack)?,
        report.timestamp_ns,
        match report.action {
            GuardAction::Allowed => "allowed",
            GuardAction::MadeStopping => "made, stopping",
            GuardAction::Refused => "refused",
        },
    )
        .into_pyobject(py)
}

/// Takes what a guard has reported so far.
pub fn drain(py: Python<'_>, guard: &Guard) -> PyResult<Vec<Py<PyTuple>>> {
    let mut reports = Vec::new();
    guard.drain(|report| reports.push(report));
    reports.iter().map(|report| Ok(to_tuple(py, report)?.unbind())).collect()
}

type Function = extern "C" fn(*mut c_void) -> i64;

/// Told once the thread is armed: its id, and whether it had to give up gaining privileges. Setting it
/// makes no system call as long as nobody blocks on it, so it is not part of the trial.
type Started = OnceLock<(u32, Result<bool, String>)>;

/// A guarded thread that runs one C function.
#[pyclass(frozen, module = "chronicle._core")]
pub struct GuardTrial {
    guard: Arc<Guard>,
    thread_id: u32,
    no_new_privs: bool,
    thread: Mutex<Option<JoinHandle<i64>>>,
}

#[pymethods]
impl GuardTrial {
    /// Starts the thread, and returns once its guard is armed and the function about to run.
    #[new]
    #[pyo3(signature = (function, argument = 0, *, mode = "observe", capacity = 1024))]
    fn new(
        py: Python<'_>,
        function: usize,
        argument: usize,
        mode: &str,
        capacity: usize,
    ) -> PyResult<Self> {
        if function == 0 {
            let text = "bad function: found=0 expected=the address of a C function";
            return Err(raise("BadArgument", text.to_owned(), &[]));
        }
        let guard = Guard::new(self::mode(mode)?, capacity)
            .map_err(|error| raise("BadArgument", error.to_string(), &[]))?;
        let started = Arc::new(Started::new());
        let (on_thread, tell) = (Arc::clone(&guard), Arc::clone(&started));
        let thread = std::thread::Builder::new()
            .spawn(move || run(&on_thread, function, argument, &tell))?;
        py.detach(|| {
            while started.get().is_none() && !thread.is_finished() {
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        match started.get() {
            Some((thread_id, Ok(no_new_privs))) => {
                let (thread_id, no_new_privs) = (*thread_id, *no_new_privs);
                Ok(Self { guard, thread_id, no_new_privs, thread: Mutex::new(Some(thread)) })
            }
            Some((_, Err(text))) => Err(PyOSError::new_err(text.clone())),
            None => Err(PyOSError::new_err("the thread of the trial ended before it began")),
        }
    }

    /// The kernel's id of the thread.
    #[getter]
    fn thread_id(&self) -> u32 {
        self.thread_id
    }

    /// Whether the thread had to give up gaining privileges, for want of CAP_SYS_ADMIN.
    #[getter]
    fn no_new_privs(&self) -> bool {
        self.no_new_privs
    }

    /// Whether there was a call that `enforce` forbids.
    #[getter]
    fn must_stop(&self) -> bool {
        self.guard.must_stop()
    }

    /// Calls seen, refused, made although they stop the thread, and dropped because the ring was full.
    #[getter]
    fn counts(&self) -> (u64, u64, u64, u64) {
        let counts = self.guard.counts();
        (counts.seen, counts.refused, counts.made, counts.dropped)
    }

    /// Whether another library's handler of SIGSYS was found in the place of ours.
    #[getter]
    fn lost(&self) -> bool {
        self.guard.counts().lost
    }

    /// The reports so far, each as a tuple; see `GuardReport.from_native`.
    fn drain(&self, py: Python<'_>) -> PyResult<Vec<Py<PyTuple>>> {
        drain(py, &self.guard)
    }

    /// Waits for the function's end; what it returned.
    fn join(&self, py: Python<'_>) -> PyResult<i64> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else {
            return Err(raise("Closed", "the trial was joined already".to_owned(), &[]));
        };
        let panicked = |_| PyOSError::new_err("the thread of the trial panicked");
        py.detach(|| thread.join()).map_err(panicked)
    }
}

fn run(guard: &Arc<Guard>, function: usize, argument: usize, started: &Started) -> i64 {
    let _blocked = process::block_signals();
    // SAFETY: the caller of `GuardTrial` names a function `int64_t (*)(void *)` and its argument.
    let function: Function = unsafe { std::mem::transmute(function) };
    let thread_id = thread::current_id();
    let armed = thread::set_name("chr-trial").and_then(|()| guard.arm());
    let told = armed.as_ref().map(Armed::no_new_privs).map_err(ToString::to_string);
    let _ = started.set((thread_id, told));
    match armed {
        Ok(_armed) => {
            thread::clear_stack();
            function(argument as *mut c_void)
        }
        Err(_) => 0,
    }
}
