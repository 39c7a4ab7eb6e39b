//! `QueueReader`: one reader of one queue.

use crate::errors::{raise, to_py};
use crate::message::{Message, Pool, Run};
use crate::owned::Owned;
use crate::waiting;
use chronicle_core::queue::segment::Segment;
use chronicle_core::sync::Arc;
use chronicle_core::wait::WaitStrategy;
use chronicle_core::{Reader, Start};
use pyo3::prelude::*;
use std::path::PathBuf;

pub struct Inner {
    pub reader: Reader,
    pool: Pool,
}

impl Inner {
    pub fn new(reader: Reader) -> Self {
        Self { reader, pool: Pool::default() }
    }
}

/// One reader of one queue. Python gives it its documentation and its batch methods.
#[pyclass(frozen, subclass, module = "chronicle._core")]
pub struct QueueReader {
    pub inner: Owned<Inner>,
    strategy: WaitStrategy,
    name: Option<String>,
    path: PathBuf,
}

/// An id as text.
pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A start as Python gives it: a word, or a kind and a number.
pub fn parse_start(kind: &str, value: u64) -> PyResult<Start> {
    match kind {
        "resume" => Ok(Start::Resume),
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        "sequence" => Ok(Start::Sequence(value)),
        "time" => Ok(Start::Time(value)),
        other => Err(raise(
            "BadArgument",
            format!(
                "bad start: found={other:?} expected='resume', 'earliest', 'latest', a sequence number or a time"
            ),
            &[],
        )),
    }
}

/// A segment of which the rest is still to be entered into the page table. Works wherever the
/// reader has gone meanwhile.
#[pyclass(frozen, module = "chronicle")]
pub struct Prefault(Arc<Segment>);

#[pymethods]
impl Prefault {
    /// Does it. Blocks, for some ten microseconds per MiB or more; without the interpreter lock.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.map().populate()).map_err(PyErr::from)
    }
}

#[pymethods]
impl QueueReader {
    #[new]
    #[pyo3(signature = (path, name, start_kind, start_value, wait_strategy))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        name: Option<String>,
        start_kind: &str,
        start_value: u64,
        wait_strategy: &str,
    ) -> PyResult<Self> {
        let start = parse_start(start_kind, start_value)?;
        let strategy = waiting::strategy(wait_strategy)?;
        let reader = py.detach(|| Reader::open(&path, name.as_deref(), start)).map_err(to_py)?;
        Ok(Self { inner: Owned::new("reader", Inner::new(reader)), strategy, name, path })
    }

    /// The next message, or `None`. Never waits. Raises `Gap` once where messages are missing.
    #[inline(always)]
    fn next(&self, py: Python<'_>) -> PyResult<Option<Py<Message>>> {
        self.inner.with(py, |inner| match inner.reader.next() {
            Ok(None) => inner.pool.guess(py, &inner.reader).map(|()| None),
            Ok(Some(record)) => inner.pool.message(py, record.raw, record.segment(), -1).map(Some),
            Err(error) => Err(to_py(error)),
        })
    }

    /// Waits until there is something to read, in seconds; whether there is. Without the
    /// interpreter lock, and answers Ctrl-C.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let timeout = waiting::timeout(timeout)?;
        // The target does not borrow the reader: another thread may read, or close it, meanwhile.
        let target = self.inner.with(py, |inner| Ok(inner.reader.wait_target()))?;
        waiting::wait_any(py, &[target], self.strategy, timeout)
    }

    /// At most `count_max` messages of one type and size, as they stand in memory, or `None`.
    #[pyo3(signature = (*, count_max))]
    fn next_run(&self, py: Python<'_>, count_max: usize) -> PyResult<Option<Run>> {
        self.inner.with(py, |inner| {
            let run = py.detach(|| inner.reader.next_run(count_max.max(1))).map_err(to_py)?;
            Ok(run.map(Run::new))
        })
    }

    /// Remembers that everything that was delivered is done with: two stores.
    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        self.inner.with(py, |inner| {
            inner.reader.check_owner().map_err(to_py)?;
            inner.reader.commit();
            Ok(())
        })
    }

    /// Enters the next `ahead_bytes` of the segment that the reader is in, and the control block,
    /// into the page table: who reads there takes no fault. What it returns does the rest.
    #[pyo3(signature = (*, ahead_bytes))]
    fn _prefault(&self, py: Python<'_>, ahead_bytes: usize) -> PyResult<Prefault> {
        self.inner.with(py, |inner| {
            let reader = &mut inner.reader;
            let segment = Arc::clone(reader.segment());
            let offset = segment.geometry.offset_of(reader.position());
            let rest = Prefault(Arc::clone(&segment));
            py.detach(move || {
                segment.map().populate_range(offset, ahead_bytes)?;
                // The header and the index.
                segment.map().populate_range(0, segment.geometry.data_offset())?;
                reader.queue().control_map().populate()
            })
            .map_err(PyErr::from)?;
            Ok(rest)
        })
    }

    fn _seek(&self, py: Python<'_>, start_kind: &str, start_value: u64) -> PyResult<()> {
        let start = parse_start(start_kind, start_value)?;
        self.inner.with(py, |inner| py.detach(|| inner.reader.seek(start)).map_err(to_py))
    }

    /// Gives the name free. What was committed stays.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.inner.close(py)
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        self.inner.is_closed(py)
    }

    /// The name that it is registered under, or `None`.
    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The queue's directory.
    #[getter]
    fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The number of the message that `next` returns next.
    #[getter]
    fn next_seq(&self, py: Python<'_>) -> PyResult<u64> {
        self.inner.with(py, |inner| Ok(inner.reader.next_sequence()))
    }

    /// Where that message is, or will be: segment index and offset in one number.
    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<u64> {
        self.inner.with(py, |inner| Ok(inner.reader.position()))
    }

    /// Whether retention waits for this reader.
    #[getter]
    fn registered(&self, py: Python<'_>) -> PyResult<bool> {
        self.inner.with(py, |inner| Ok(inner.reader.is_registered()))
    }

    /// Of the queue, in hexadecimal digits.
    #[getter]
    fn queue_id(&self, py: Python<'_>) -> PyResult<String> {
        self.inner.with(py, |inner| Ok(hex(&inner.reader.queue().identity.queue_id)))
    }

    /// How often messages were missing.
    #[getter]
    fn gaps(&self, py: Python<'_>) -> PyResult<u64> {
        self.inner.with(py, |inner| Ok(inner.reader.gaps()))
    }
}
