//! `FanInReader`: many readers as one.

use crate::errors::{raise, to_py};
use crate::message::{Message, Pool};
use crate::owned::Owned;
use crate::reader::{self, QueueReader};
use crate::waiting;
use chronicle_core::wait::WaitStrategy;
use chronicle_core::{FanIn, MergeMode};
use pyo3::prelude::*;

struct Inner {
    fan: FanIn,
    /// The Python objects whose readers are here, by source, to give them back.
    lent: Vec<Option<Py<QueueReader>>>,
    pool: Pool,
}

/// Merges any number of readers by timestamp.
#[pyclass(frozen, subclass, module = "chronicle._core")]
pub struct FanInReader {
    inner: Owned<Inner>,
    strategy: WaitStrategy,
}

#[pymethods]
impl FanInReader {
    #[new]
    #[pyo3(signature = (mode, wait_strategy))]
    fn new(mode: &str, wait_strategy: &str) -> PyResult<Self> {
        let mode = match mode {
            "live" => MergeMode::Live,
            "strict" => MergeMode::Strict,
            other => {
                let text = format!("bad merge mode: found={other:?} expected='live' or 'strict'");
                return Err(raise("BadArgument", text, &[]));
            }
        };
        let inner = Inner { fan: FanIn::new(mode), lent: Vec::new(), pool: Pool::default() };
        Ok(Self { inner: Owned::new("fan-in", inner), strategy: waiting::strategy(wait_strategy)? })
    }

    /// Takes a reader over; returns the number of the source.
    fn add_reader(&self, py: Python<'_>, reader: &Bound<'_, QueueReader>) -> PyResult<usize> {
        self.inner.with(py, |inner| {
            let source = inner.fan.add(reader.get().inner.take(py, "a fan-in")?.reader);
            if inner.lent.len() <= source {
                inner.lent.resize_with(source + 1, || None);
            }
            inner.lent[source] = Some(reader.clone().unbind());
            Ok(source)
        })
    }

    /// Gives the reader of a source back.
    fn remove_reader(&self, py: Python<'_>, source: usize) -> PyResult<Py<QueueReader>> {
        self.inner.with(py, |inner| {
            let absent = || {
                let text = format!(
                    "this fan-in has no source {source}; sources are numbered by add_reader"
                );
                raise("BadArgument", text, &[])
            };
            let reader = inner.fan.remove(source).ok_or_else(absent)?;
            let object = inner.lent.get_mut(source).and_then(Option::take).ok_or_else(absent)?;
            object.get().inner.restore_surely(py, reader::Inner::new(reader));
            Ok(object)
        })
    }

    /// The next message of all sources, or `None`. Never waits.
    #[inline(always)]
    fn next(&self, py: Python<'_>) -> PyResult<Option<Py<Message>>> {
        self.inner.with(py, |inner| match inner.fan.next() {
            Ok(None) => Ok(None),
            Ok(Some((source, record))) => {
                inner.pool.message(py, record.raw, record.segment(), source as i64).map(Some)
            }
            Err((source, error)) => Err(with_source(to_py(error), source)),
        })
    }

    /// Waits until any source has something, in seconds; whether one has.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let timeout = waiting::timeout(timeout)?;
        let targets = self.inner.with(py, |inner| Ok(inner.fan.wait_targets()))?;
        waiting::wait_any(py, &targets, self.strategy, timeout)
    }

    /// Commits, on each source, exactly what was delivered.
    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        self.inner.with(py, |inner| {
            inner.fan.check_owner().map_err(to_py)?;
            inner.fan.commit();
            Ok(())
        })
    }

    /// Gives every reader back, closed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.inner.close(py)
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        self.inner.is_closed(py)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.inner.with(py, |inner| Ok(inner.fan.len()))
    }

    /// Every source's number and reader, which is `Moved` as long as it is here.
    #[getter]
    fn sources(&self, py: Python<'_>) -> PyResult<Vec<(usize, Py<QueueReader>)>> {
        self.inner.with(py, |inner| {
            let lent = inner.lent.iter().enumerate();
            Ok(lent.filter_map(|(i, r)| Some((i, r.as_ref()?.clone_ref(py)))).collect())
        })
    }
}

/// Says which source an error came from.
fn with_source(error: PyErr, source: usize) -> PyErr {
    Python::attach(|py| match error.value(py).setattr("source", source) {
        Ok(()) => error,
        Err(failure) => failure,
    })
}
