//! `Replay`: gives a handler inputs that were written down, for `chronicle replay`.

use crate::hot;
use crate::hot_convert as convert;
use crate::owned::Owned;
use crate::writer::QueueWriter;
use chronicle_core::hot::journal::Input;
use chronicle_core::hot::replay::Replay as Core;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::sync::{Mutex, PoisonError};

/// A handler under replay. It runs on the calling thread, which keeps the interpreter lock.
#[pyclass(frozen, module = "chronicle._core")]
pub struct Replay {
    core: Owned<Core>,
    /// The Python objects of the outputs' writers, in the handler's order.
    lent: Mutex<Vec<Option<Py<QueueWriter>>>>,
}

#[pymethods]
impl Replay {
    /// `addresses`, `flags`, `state` and the number of counters are the program's; `outputs` are
    /// writers in the handler's order.
    #[new]
    fn new(
        py: Python<'_>,
        addresses: [usize; 6],
        flags: u32,
        state: Vec<u8>,
        counters: usize,
        outputs: Vec<Option<Py<QueueWriter>>>,
        log_records: usize,
    ) -> PyResult<Self> {
        let mut writers = Vec::with_capacity(outputs.len());
        for (taken, output) in outputs.iter().enumerate() {
            let taking = output.as_ref().map(|o| o.get().inner.take(py, "a replay")).transpose();
            match taking {
                Ok(writer) => writers.push(writer),
                Err(error) => {
                    give_back(py, &outputs[..taken], writers);
                    return Err(error);
                }
            }
        }
        let table = hot::table(addresses, flags);
        let core = Core::new(table, &state, counters, writers, log_records);
        Ok(Self { core: Owned::new("replay", core), lent: Mutex::new(outputs) })
    }

    /// Gives one input to the handler: whether it took it, and the failure if it failed.
    #[allow(clippy::too_many_arguments)] // The fields of an input.
    fn feed<'py>(
        &self,
        py: Python<'py>,
        kind: u16,
        type_id: u16,
        source: u32,
        sequence: u64,
        timestamp_ns: u64,
        now_ns: u64,
        payload: &[u8],
    ) -> PyResult<(bool, Option<Bound<'py, PyDict>>)> {
        let input = Input { kind, type_id, source, sequence, timestamp_ns, now_ns };
        self.core.with(py, |core| match core.feed(input, payload) {
            Ok(handled) => Ok((handled, None)),
            Err(failure) => Ok((false, Some(convert::failure(py, failure)?))),
        })
    }

    /// The handler's state now.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.core.with(py, |core| Ok(PyBytes::new(py, &core.shared.state.snapshot())))
    }

    /// The handler's counters now.
    fn counters(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        self.core.with(py, |core| Ok(core.shared.counters.iter().map(|c| c.get()).collect()))
    }

    /// At most `count_max` log records, 64 bytes each, oldest first.
    fn drain_log<'py>(&self, py: Python<'py>, count_max: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.core.with(py, |core| Ok(PyBytes::new(py, &hot::log_bytes(&mut core.logs, count_max))))
    }

    /// Sequence numbers that the outputs give next; `None` where there is no writer.
    fn next_seqs(&self, py: Python<'_>) -> PyResult<Vec<Option<u64>>> {
        self.core.with(py, |core| {
            Ok(core.outputs().iter().map(|w| w.as_ref().map(|w| w.next_sequence())).collect())
        })
    }

    /// Gives the writers back.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let core = match self.core.take(py, "nobody: it is closed") {
            Ok(core) => core,
            Err(_) if self.core.is_closed(py)? => return Ok(()),
            Err(error) => return Err(error),
        };
        let lent = std::mem::take(&mut *self.lent.lock().unwrap_or_else(PoisonError::into_inner));
        give_back(py, &lent, core.into_outputs());
        Ok(())
    }
}

fn give_back(
    py: Python<'_>,
    lent: &[Option<Py<QueueWriter>>],
    writers: Vec<Option<chronicle_core::Writer>>,
) {
    for (object, writer) in lent.iter().zip(writers) {
        if let (Some(object), Some(writer)) = (object, writer) {
            object.get().inner.restore_surely(py, writer);
        }
    }
}
