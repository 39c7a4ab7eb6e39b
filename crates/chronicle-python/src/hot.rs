//! `HotCore`: a hot thread as `chronicle.hot.thread` uses it. Nothing is decided here.
//!
//! The object is shared by whatever threads send to the hot thread, drain it and stop it. A mutex
//! holds the native half; it is held for short, native steps only: Python objects are made, dropped
//! and called outside of it, because any of that may run arbitrary code that comes back here.

use crate::errors::{raise, to_py};
use crate::guard;
use crate::hot_callable::{self, Callback};
use crate::hot_convert as convert;
use crate::numbers::TypeId;
use crate::packets::PacketRing;
use crate::provision::Provisioner;
use crate::reader::QueueReader;
use crate::waiting;
use crate::writer::QueueWriter;
use chronicle_core::MergeMode;
use chronicle_core::hot::abi;
use chronicle_core::hot::abi::{HandlerTable, OnHook, OnMessage};
use chronicle_core::hot::command::{Ack, Command, What};
use chronicle_core::hot::guard::Guard;
use chronicle_core::hot::journal::ENDED_CLEAN;
use chronicle_core::hot::log::LogRecord;
use chronicle_core::hot::meter::{Page, State};
use chronicle_core::hot::run::{LoopOptions, Meter};
use chronicle_core::hot::shared::Shared;
use chronicle_core::hot::thread::{self, HotThread, Options, Program, StartError};
use chronicle_core::os::clock;
use chronicle_core::os::fs::Dir;
use chronicle_core::os::thread::current_id;
use chronicle_core::sync::Arc;
use chronicle_core::wait::WaitStrategy;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use rtrb::Consumer;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

mod lent;

use lent::Lent;

/// What compiled handlers may call: name and address.
#[pyfunction]
pub fn hot_symbols(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let out = PyDict::new(py);
    for (name, address) in abi::symbols() {
        out.set_item(name, address)?;
    }
    Ok(out)
}

/// What somebody needs who reads blocks of a counters file: the words of the status page, which
/// start at byte 72 of a block, and nanoseconds per tick as a fraction of 2^32.
#[pyfunction]
pub fn counters_layout() -> (Vec<&'static str>, u64) {
    let names = Page::default().words().map(|word| word.0).collect();
    (names, clock::meter_ns_per_tick_q32())
}

/// Reports that a guard keeps until they are drained.
const GUARD_REPORTS: usize = 256;

enum Life {
    New,
    /// Being started or joined.
    Changing,
    Running(HotThread),
    /// Joined: its rings may still hold something.
    Ended(HotThread),
}

/// The native half of `chronicle.HotThread`.
#[pyclass(frozen, module = "chronicle._core")]
pub struct HotCore {
    name: String,
    table: HandlerTable,
    state: Mutex<Vec<u8>>,
    outputs: usize,
    counters: usize,
    counters_file: Option<(PathBuf, String, usize)>,
    options: Settings,
    guard: Arc<Guard>,
    callback: Option<Box<Callback>>,
    life: Mutex<Life>,
    lent: Mutex<Lent>,
    shared: OnceLock<Arc<Shared>>,
}

/// [`Options`] without the name.
#[derive(Clone, Copy)]
struct Settings {
    core: Option<usize>,
    fifo_priority: Option<i32>,
    lock_memory: bool,
    strict: bool,
    commands_max: usize,
    log_records: usize,
    run: LoopOptions,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bad(what: &str, found: &str, expected: &str) -> PyErr {
    raise("BadArgument", format!("bad {what}: found={found} expected={expected}"), &[])
}

/// The functions of a table, by address; 0 is none.
pub fn table(addresses: [usize; 6], flags: u32) -> HandlerTable {
    let [on_message, hooks @ ..] = addresses;
    // SAFETY: a null address is none, any other is what the caller says is such a function: calling
    // it is what `NativeHandler` and compiled handlers are for. Nothing is called here.
    let on_message = unsafe { std::mem::transmute::<usize, Option<OnMessage>>(on_message) };
    // SAFETY: as above.
    let hooks = hooks.map(|hook| unsafe { std::mem::transmute::<usize, Option<OnHook>>(hook) });
    let [on_idle, on_start, on_stop, on_batch_begin, on_batch_end] = hooks;
    HandlerTable {
        flags,
        on_message,
        on_idle,
        on_start,
        on_stop,
        on_batch_begin,
        on_batch_end,
        ..HandlerTable::default()
    }
}

fn wait_strategy(name: &str, spin_ns: u64) -> PyResult<WaitStrategy> {
    Ok(match waiting::strategy(name)? {
        WaitStrategy::Hybrid { .. } => WaitStrategy::Hybrid { spin_ns },
        other => other,
    })
}

#[pymethods]
impl HotCore {
    #[new]
    #[pyo3(signature = (
        name, addresses, flags, state, outputs, counters, *, callback, core, fifo_priority,
        lock_memory, strict, wait, spin_ns, meter, mode, commit, sources_max, commands_max,
        log_records, guard, counters_file=None
    ))]
    #[allow(clippy::too_many_arguments)] // All by name, from one place.
    fn new(
        name: String,
        addresses: [usize; 6],
        flags: u32,
        state: Vec<u8>,
        outputs: usize,
        counters: usize,
        callback: Option<Py<PyAny>>,
        core: Option<usize>,
        fifo_priority: Option<i32>,
        lock_memory: bool,
        strict: bool,
        wait: &str,
        spin_ns: u64,
        meter: &str,
        mode: &str,
        commit: bool,
        sources_max: usize,
        commands_max: usize,
        log_records: usize,
        guard: &str,
        counters_file: Option<(PathBuf, String, usize)>,
    ) -> PyResult<Self> {
        let meter = match meter {
            "off" => Meter::Off,
            "loop" => Meter::Loop,
            "full" => Meter::Full,
            other => return Err(bad("meter", &format!("{other:?}"), "'loop', 'full' or 'off'")),
        };
        let mode = match mode {
            "live" => MergeMode::Live,
            "strict" => MergeMode::Strict,
            other => return Err(bad("merge mode", &format!("{other:?}"), "'live' or 'strict'")),
        };
        let wait = wait_strategy(wait, spin_ns)?;
        let guard = Guard::new(guard::mode(guard)?, GUARD_REPORTS)?;
        let run = LoopOptions { wait, meter, mode, commit, sources_max };
        let options =
            Settings { core, fifo_priority, lock_memory, strict, commands_max, log_records, run };
        let callback = callback.map(Callback::new);
        let (table, state) = match &callback {
            Some(callback) => (hot_callable::table(), callback.state().to_vec()),
            None => (table(addresses, flags), state),
        };
        Ok(Self {
            name,
            table,
            state: Mutex::new(state),
            outputs,
            counters,
            counters_file,
            options,
            guard,
            callback,
            life: Mutex::new(Life::New),
            lent: Mutex::default(),
            shared: OnceLock::new(),
        })
    }

    /// Takes everything over and starts the thread; gives what the kernel refused. If it fails,
    /// everything is given back, and the failure is returned instead.
    #[pyo3(signature = (readers, writers, rings, provisioner, journal, journal_head))]
    #[allow(clippy::too_many_arguments)] // All that a thread starts with, from one place.
    fn start<'py>(
        &self,
        py: Python<'py>,
        readers: Vec<(u64, u32, Py<QueueReader>)>,
        writers: Vec<(u32, Py<QueueWriter>)>,
        rings: Vec<Py<PacketRing>>,
        provisioner: &Bound<'py, Provisioner>,
        journal: Option<Py<QueueWriter>>,
        journal_head: Vec<u8>,
    ) -> PyResult<(Vec<String>, Option<Bound<'py, PyDict>>)> {
        {
            let mut life = lock(&self.life);
            if !matches!(*life, Life::New) {
                drop(life);
                let text =
                    format!("hot thread '{}' was started before; make a new HotThread", self.name);
                return Err(raise("Closed", text, &[]));
            }
            *life = Life::Changing;
        }
        let counters_file = match self.open_counters_file() {
            Ok(file) => file,
            Err(error) => {
                *lock(&self.life) = Life::New;
                return Err(error);
            }
        };
        let journal = journal.map(|journal| (journal, journal_head));
        let cargo = match self.load(py, (readers, writers, rings, journal), provisioner) {
            Ok(cargo) => cargo,
            Err(error) => {
                *lock(&self.life) = Life::New;
                return Err(error);
            }
        };
        let state = lock(&self.state).clone();
        let program = Program {
            table: self.table,
            state: &state,
            outputs: self.outputs,
            counters: self.counters,
            counters_file,
        };
        let options = self.options();
        match py.detach(|| thread::start(program, options, cargo)) {
            Ok(hot) => {
                // Set once: a core starts once.
                let _ = self.shared.set(Arc::clone(&hot.shared));
                let warnings = hot.warnings.clone();
                *lock(&self.life) = Life::Running(hot);
                Ok((warnings, None))
            }
            Err(not_started) => {
                self.give_back(py, not_started.cargo);
                *lock(&self.life) = Life::New;
                self.start_error(py, not_started.error).map(|failure| (Vec::new(), Some(failure)))
            }
        }
    }

    /// Asks the thread to stop; does not wait.
    fn ask_to_stop(&self) {
        if let Life::Running(hot) = &*lock(&self.life) {
            hot.ask_to_stop();
        }
    }

    /// Wakes the thread if it sleeps.
    fn nudge(&self) {
        if let Life::Running(hot) = &*lock(&self.life) {
            hot.nudge();
        }
    }

    /// Whether `join` will not wait for the thread.
    fn is_finished(&self) -> bool {
        match &*lock(&self.life) {
            Life::Running(hot) => hot.is_finished(),
            Life::Changing => false,
            Life::New | Life::Ended(_) => true,
        }
    }

    /// Waits for the end of the thread and gives everything back: the failure, the tickets of
    /// commands that were not taken, and what went wrong with the journal. `None` if there is
    /// nothing to join.
    #[allow(clippy::type_complexity)]
    fn join<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<Option<(Option<Bound<'py, PyDict>>, Vec<u64>, Option<Py<PyAny>>)>> {
        let taken = {
            let mut life = lock(&self.life);
            match std::mem::replace(&mut *life, Life::Changing) {
                Life::Running(hot) => Some(hot),
                other => {
                    *life = other;
                    None
                }
            }
        };
        let Some(mut hot) = taken else { return Ok(None) };
        let (hot, mut ended) = py.detach(move || {
            let ended = hot.join();
            (hot, ended)
        });
        let state = hot.shared.state.snapshot();
        let counters: Vec<u64> = hot.shared.counters.iter().map(|c| c.get()).collect();
        let how = ended.failure.as_ref().map_or(ENDED_CLEAN, |failure| failure.ended());
        let mut outputs = vec![0; self.outputs];
        for (output, writer) in &ended.writers {
            outputs[*output as usize] = writer.next_sequence();
        }
        let journal = ended.journal.take().map(|j| j.finish(how, &state, &counters, &outputs));
        let (journal, journal_error) = match journal {
            Some((writer, written)) => (Some((writer, Vec::new())), written.err()),
            None => (None, None),
        };
        let failure = ended.failure.take();
        let mut lost = Vec::new();
        let late: Vec<Ack> = std::mem::take(&mut ended.acks);
        let cargo = self.unload(py, ended, &mut lost, journal);
        self.give_back(py, cargo);
        *lock(&self.life) = Life::Ended(hot);
        for ack in late {
            self.late_ack(py, ack);
        }
        let raised = self.callback.as_ref().and_then(|callback| {
            // SAFETY: the thread has been joined.
            unsafe { callback.finish(py) }
        });
        let failure = failure.map(|failure| convert::failure(py, failure)).transpose()?;
        if let (Some(failure), Some(raised)) = (&failure, raised) {
            failure.set_item("error", raised.into_value(py))?;
        }
        let journal_error = journal_error.map(|e| to_py(e).into_value(py).into_any());
        Ok(Some((failure, lost, journal_error)))
    }

    /// Sends a message; `false` if the channel is full.
    fn send(&self, ticket: u64, type_id: TypeId, payload: &[u8]) -> PyResult<bool> {
        convert::check_bytes(payload.len())?;
        let what = What::Message { type_id: type_id.0, bytes: payload.into() };
        match self.try_send(ticket, what) {
            Ok(()) => Ok(true),
            Err((_, error)) => error.map_or(Ok(false), Err),
        }
    }

    /// Asks for a stop behind all that was sent before; `false` if the channel is full.
    fn send_stop(&self, ticket: u64) -> PyResult<bool> {
        match self.try_send(ticket, What::Stop) {
            Ok(()) => Ok(true),
            Err((_, error)) => error.map_or(Ok(false), Err),
        }
    }

    /// Asks for a source back; `false` if the channel is full.
    fn remove_reader(&self, ticket: u64, source: u32) -> PyResult<bool> {
        match self.try_send(ticket, What::RemoveReader { source }) {
            Ok(()) => Ok(true),
            Err((_, error)) => error.map_or(Ok(false), Err),
        }
    }

    /// Hands a reader over; `false` if the channel is full.
    fn add_reader(
        &self,
        py: Python<'_>,
        ticket: u64,
        reader: &Bound<'_, QueueReader>,
        tag: u32,
        provisioner: &Bound<'_, Provisioner>,
        about: &[u8],
    ) -> PyResult<bool> {
        convert::check_bytes(about.len())?;
        let native = self.take_reader(py, reader, provisioner)?;
        let lent = (reader.clone().unbind(), Arc::clone(native.endpoint()));
        lock(&self.lent).readers.insert(ticket, lent);
        let what = What::AddReader { reader: native, tag, about: about.into() };
        match self.try_send(ticket, what) {
            Ok(()) => Ok(true),
            Err((what, error)) => {
                self.take_back(py, ticket, what);
                error.map_or(Ok(false), Err)
            }
        }
    }

    /// Asks for the writer of an output back; `false` if the channel is full.
    fn remove_writer(&self, ticket: u64, output: u32) -> PyResult<bool> {
        match self.try_send(ticket, What::RemoveWriter { output }) {
            Ok(()) => Ok(true),
            Err((_, error)) => error.map_or(Ok(false), Err),
        }
    }

    /// Hands a writer over; `false` if the channel is full.
    fn add_writer(
        &self,
        py: Python<'_>,
        ticket: u64,
        output: u32,
        writer: &Bound<'_, QueueWriter>,
        provisioner: &Bound<'_, Provisioner>,
        about: &[u8],
    ) -> PyResult<bool> {
        convert::check_bytes(about.len())?;
        let native = self.take_writer(py, writer, provisioner)?;
        let lent = (writer.clone().unbind(), Arc::clone(native.endpoint()));
        lock(&self.lent).writers_sent.insert(ticket, lent);
        let what = What::AddWriter { output, writer: native, about: about.into() };
        match self.try_send(ticket, what) {
            Ok(()) => Ok(true),
            Err((what, error)) => {
                self.take_back(py, ticket, what);
                error.map_or(Ok(false), Err)
            }
        }
    }

    /// All acks that are there now, oldest first.
    fn drain_acks<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let mut acks = Vec::new();
        if let Life::Running(hot) | Life::Ended(hot) = &mut *lock(&self.life) {
            // No more than are there now, so that it ends however fast new ones come.
            for _ in 0..hot.acks.slots() {
                acks.extend(hot.acks.pop());
            }
        }
        acks.into_iter().map(|ack| self.ack(py, ack)).collect()
    }

    /// At most `count_max` log records, 64 bytes each, oldest first.
    fn drain_log<'py>(&self, py: Python<'py>, count_max: usize) -> Bound<'py, PyBytes> {
        let bytes = match &mut *lock(&self.life) {
            Life::Running(hot) | Life::Ended(hot) => log_bytes(&mut hot.logs, count_max),
            Life::New | Life::Changing => Vec::new(),
        };
        PyBytes::new(py, &bytes)
    }

    /// Whether another library's handler of SIGSYS was found in the place of ours.
    fn guard_lost(&self) -> bool {
        self.guard.counts().lost
    }

    /// All reports of the guard there are, oldest first; see `GuardReport.from_native`.
    fn drain_guard(&self, py: Python<'_>) -> PyResult<Vec<Py<PyTuple>>> {
        guard::drain(py, &self.guard)
    }

    /// Every word of the status page, and the state as text.
    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        let Some(shared) = self.shared.get() else {
            out.set_item("state", State::New.as_str())?;
            return Ok(out);
        };
        out.set_item("state", shared.page.state().as_str())?;
        for (name, value) in shared.page.words() {
            out.set_item(name, value)?;
        }
        let (late, inline, kept) = self.endpoint_counts();
        out.set_item("rolls_late", late)?;
        out.set_item("wakes_inline", inline)?;
        out.set_item("segments_kept", kept)?;
        let counts = self.guard.counts();
        out.set_item("guard_seen", counts.seen)?;
        out.set_item("guard_refused", counts.refused)?;
        out.set_item("guard_made", counts.made)?;
        out.set_item("guard_dropped", counts.dropped)?;
        out.set_item("guard_lost", counts.lost)?;
        Ok(out)
    }

    /// Of `"loop_gap"` and `"handler_time"`: buckets (highest ns, count), and the highest ns.
    fn histogram(&self, name: &str) -> PyResult<(Vec<(u64, u64)>, u64)> {
        let Some(shared) = self.shared.get() else { return Ok((Vec::new(), 0)) };
        match name {
            "loop_gap" => Ok(shared.loop_gap.snapshot()),
            "handler_time" => Ok(shared.handler_time.snapshot()),
            other => Err(bad("histogram", &format!("{other:?}"), "'loop_gap' or 'handler_time'")),
        }
    }

    /// The handler's counters.
    fn counters(&self) -> Vec<u64> {
        match self.shared.get() {
            Some(shared) => shared.counters.iter().map(|counter| counter.get()).collect(),
            None => vec![0; self.counters],
        }
    }

    /// A copy of the handler's state; exact when the thread does not run.
    fn state<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        match self.shared.get() {
            Some(shared) => PyBytes::new(py, &shared.state.snapshot()),
            None => PyBytes::new(py, &lock(&self.state)),
        }
    }

    /// Unmaps what the hot thread has left behind; gives the number of segments. Interrupts the hot
    /// thread's core.
    fn release_retired(&self, py: Python<'_>) -> usize {
        let endpoints = self.endpoints();
        py.detach(|| endpoints.iter().map(|endpoint| endpoint.release_retired()).sum())
    }

    #[getter]
    fn commands_max(&self) -> usize {
        self.options.commands_max
    }
}

/// The command, and an error unless the channel was just full.
type NotSent = (What, Option<PyErr>);

impl HotCore {
    fn options(&self) -> Options {
        let Settings { core, fifo_priority, lock_memory, strict, commands_max, log_records, run } =
            self.options;
        let name = self.name.clone();
        let guard = Arc::clone(&self.guard);
        Options {
            name,
            core,
            fifo_priority,
            lock_memory,
            strict,
            commands_max,
            log_records,
            guard,
            run,
        }
    }

    fn open_counters_file(&self) -> PyResult<Option<(File, usize)>> {
        let Some((directory, name, offset)) = &self.counters_file else { return Ok(None) };
        let file = Dir::open(directory).and_then(|dir| dir.open_file(name, true));
        Ok(Some((file.map_err(to_py)?, *offset)))
    }

    fn owner(&self) -> String {
        format!("hot thread '{}'", self.name)
    }

    #[allow(clippy::result_large_err)] // The refused value comes back whole.
    fn try_send(&self, ticket: u64, what: What) -> Result<(), NotSent> {
        let command = Command { ticket, sent_ns: clock::wall_ns(), what };
        let sent = match &mut *lock(&self.life) {
            Life::Running(hot) => hot.commands.try_send(command).map_err(|back| (back, true)),
            _ => Err((command, false)),
        };
        // Not under the lock: making an error runs Python, which may let go of the interpreter lock
        // to a thread that waits for ours.
        sent.map_err(|(command, is_running)| {
            let text = format!("hot thread '{}' is not running; nothing was sent", self.name);
            (command.what, (!is_running).then(|| raise("Closed", text, &[])))
        })
    }

    /// Why a start failed, as a dict, or as the error itself where it is the caller's.
    fn start_error<'py>(&self, py: Python<'py>, error: StartError) -> PyResult<Bound<'py, PyDict>> {
        match error {
            StartError::Failed(failure) => {
                let out = convert::failure(py, failure)?;
                // SAFETY: the thread has been joined.
                let raised = self.callback.as_ref().and_then(|c| unsafe { c.finish(py) });
                if let Some(raised) = raised {
                    out.set_item("error", raised.into_value(py))?;
                }
                Ok(out)
            }
            StartError::TooMany { what, found, limit } => {
                Err(bad(what, &found.to_string(), &format!("at most {limit}")))
            }
            StartError::Journal(error) => Err(to_py(error)),
            StartError::Counters(error) => Err(error.into()),
            StartError::JournalWithRings => {
                Err(bad("journal", "a writer, and packets", "one of both"))
            }
            StartError::Spawn(error) => Err(error.into()),
        }
    }

    /// One ack as a tuple; what comes back is put into its object.
    fn ack<'py>(&self, py: Python<'py>, ack: Ack) -> PyResult<Bound<'py, PyTuple>> {
        match ack {
            Ack::Done { ticket, times, handled, .. } => {
                convert::ack(py, "done", ticket, times, (handled,).into_pyobject(py)?)
            }
            Ack::Added { ticket, times, source, .. } => {
                convert::ack(py, "added", ticket, times, (source,).into_pyobject(py)?)
            }
            Ack::FirstMessage { ticket, times, source, first_message_ns } => {
                let rest = (source, first_message_ns).into_pyobject(py)?;
                convert::ack(py, "first", ticket, times, rest)
            }
            Ack::Removed { ticket, times, source, added, reader } => {
                let object = self.restore_reader(py, added, reader);
                convert::ack(py, "removed", ticket, times, (source, object).into_pyobject(py)?)
            }
            Ack::WriterAdded { ticket, times, output, old, .. } => {
                let old = self.exchange_writer(py, ticket, output, old);
                convert::ack(py, "writer", ticket, times, (output, old).into_pyobject(py)?)
            }
            Ack::WriterRemoved { ticket, times, output, writer } => {
                let object = self.return_writer(py, output, writer);
                let rest = (output, object).into_pyobject(py)?;
                convert::ack(py, "writer_removed", ticket, times, rest)
            }
            Ack::Refused { ticket, times, refusal, what } => {
                let object = self.take_back(py, ticket, what);
                let rest = (convert::refusal(refusal), object).into_pyobject(py)?;
                convert::ack(py, "refused", ticket, times, rest)
            }
            Ack::SourceFailed { source, added, reader, error } => {
                let object = self.restore_reader(py, added, reader);
                let error = to_py(error).into_value(py);
                ("failed", added, source, object, error).into_pyobject(py)
            }
            Ack::Gap { source, first_missing, next, reason, handled } => {
                ("gap", source, first_missing, next, reason.as_str(), handled).into_pyobject(py)
            }
        }
    }

    /// Acks for which there was no room when the loop ended: what they carry is put back. Nobody
    /// gets to see them any more.
    fn late_ack(&self, py: Python<'_>, ack: Ack) {
        match ack {
            Ack::Removed { added, reader, .. } | Ack::SourceFailed { added, reader, .. } => {
                self.restore_reader(py, added, reader);
            }
            Ack::WriterAdded { ticket, output, old, .. } => {
                self.exchange_writer(py, ticket, output, old);
            }
            Ack::WriterRemoved { output, writer, .. } => {
                self.return_writer(py, output, writer);
            }
            Ack::Refused { ticket, what, .. } => {
                self.take_back(py, ticket, what);
            }
            Ack::Done { .. } | Ack::Added { .. } | Ack::FirstMessage { .. } | Ack::Gap { .. } => {}
        }
    }
}

impl Drop for HotCore {
    fn drop(&mut self) {
        let life = std::mem::replace(
            self.life.get_mut().unwrap_or_else(PoisonError::into_inner),
            Life::Changing,
        );
        let hot = match life {
            Life::Running(hot) => hot,
            // It was joined: nothing is left to stop, and its counts may be another thread's now.
            Life::Ended(_) | Life::New | Life::Changing => return,
        };
        if hot.is_inherited() {
            // A forked child: the thread, and all that is with it, is the parent's.
            std::mem::forget(hot);
            return;
        }
        if u64::from(current_id()) == hot.shared.page.thread_id.get() {
            // The last reference went on the hot thread itself (a callable held it): it cannot wait
            // for its own end. It stops, and what it still uses is never freed.
            hot.ask_to_stop();
            std::mem::forget((hot, self.callback.take()));
            return;
        }
        Python::attach(|py| {
            // The thread may be waiting for the lock that we hold.
            py.detach(|| drop(hot));
            if let Some(callback) = &self.callback {
                // SAFETY: the thread has been joined.
                drop(unsafe { callback.finish(py) });
            }
        });
    }
}

/// At most `count_max` records, as they stand in memory.
pub fn log_bytes(logs: &mut Consumer<LogRecord>, count_max: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count_max {
        let Ok(record) = logs.pop() else { break };
        bytes.extend_from_slice(&record.to_bytes());
    }
    bytes
}
