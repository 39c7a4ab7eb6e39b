//! `Replay`: runs a journal again, for `chronicle.hot.replay`. Nothing is decided here.

use crate::errors::{raise, to_py};
use crate::hot;
use crate::hot_convert as convert;
use crate::owned::Owned;
use crate::reader::QueueReader;
use chronicle_core::hot::rerun::{Missing, Pause, Published, Rerun};
use chronicle_core::{Error, Reader};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

/// A handler under replay. It runs on the calling thread, without the interpreter lock.
#[pyclass(frozen, module = "chronicle._core")]
pub struct Replay {
    core: Owned<Rerun>,
}

/// What an output is compared with: the number that it gives next, how many messages were equal and
/// were skipped, and the last gap.
type Compared = (u64, u64, u64, Option<(u64, u64, &'static str)>);

#[pymethods]
impl Replay {
    /// `addresses`, `flags`, `state` and the numbers of counters and outputs are the program's; the
    /// journal's reader, which is taken over, stands where the run begins.
    #[new]
    fn new(
        py: Python<'_>,
        addresses: [usize; 6],
        flags: u32,
        state: Vec<u8>,
        counters: usize,
        outputs: usize,
        journal: &Bound<'_, QueueReader>,
    ) -> PyResult<Self> {
        let journal = take(py, journal)?;
        let table = hot::table(addresses, flags);
        let core = Rerun::new(table, &state, counters, outputs, journal);
        Ok(Self { core: Owned::new("replay", core) })
    }

    /// What a source stands for from now on; the reader is taken over.
    fn set_source(
        &self,
        py: Python<'_>,
        source: u32,
        tag: u32,
        reader: Option<&Bound<'_, QueueReader>>,
    ) -> PyResult<()> {
        self.core.with(py, |core| {
            let reader = reader.map(|reader| take(py, reader)).transpose()?;
            core.set_source(source, tag, reader);
            Ok(())
        })
    }

    /// What number an output gives next (0: it has no writer), and what it is compared with.
    fn set_output(
        &self,
        py: Python<'_>,
        output: usize,
        next_seq: u64,
        reader: Option<&Bound<'_, QueueReader>>,
    ) -> PyResult<()> {
        self.core.with(py, |core| {
            if output >= core.outputs_count() {
                let text = format!("the handler has no output={output}");
                return Err(raise("BadArgument", text, &[]));
            }
            let reader = reader.map(|reader| take(py, reader)).transpose()?;
            core.set_output(output, next_seq, reader);
            Ok(())
        })
    }

    /// The output is not compared any more.
    fn leave_output(&self, py: Python<'_>, output: usize) -> PyResult<()> {
        self.core.with(py, |core| {
            core.leave_output(output);
            Ok(())
        })
    }

    /// Goes on over at most `count_max` records: why it came back, and what belongs to that.
    fn run<'py>(&self, py: Python<'py>, count_max: u64) -> PyResult<Bound<'py, PyTuple>> {
        let pause = self.core.with(py, |core| py.detach(|| core.run(count_max)).map_err(to_py))?;
        tuple(py, pause)
    }

    /// The type of the journal's next record.
    fn peek(&self, py: Python<'_>) -> PyResult<Option<u16>> {
        self.core.with(py, |core| core.peek().map_err(to_py))
    }

    /// The input that was fed last: its number in the journal, kind, type, source, sequence number,
    /// timestamp, clock and payload.
    #[allow(clippy::type_complexity)] // The fields of an input.
    fn last<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<Option<(u64, u16, u16, u32, u64, u64, u64, Bound<'py, PyBytes>)>> {
        self.core.with(py, |core| {
            Ok(core.last().map(|(number, i, payload)| {
                let payload = PyBytes::new(py, payload);
                let (sequence, timestamp_ns) = (i.sequence, i.timestamp_ns);
                (number, i.kind, i.type_id, i.source, sequence, timestamp_ns, i.now_ns, payload)
            }))
        })
    }

    /// Inputs that were fed, by kind.
    fn inputs(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        self.core.with(py, |core| Ok(core.inputs().to_vec()))
    }

    /// How each output compares.
    fn outputs(&self, py: Python<'_>) -> PyResult<Vec<Compared>> {
        self.core.with(py, |core| {
            let all = (0..core.outputs().len()).map(|output| {
                let next = core.output_next(output);
                let found = &core.outputs()[output];
                let gap = found.gap.map(|(first, next, reason)| (first, next, reason.as_str()));
                (next, found.equal, found.skipped, gap)
            });
            Ok(all.collect())
        })
    }

    /// The handler's state now.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.core.with(py, |core| Ok(PyBytes::new(py, &core.state())))
    }

    /// The handler's counters now.
    fn counters(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        self.core.with(py, |core| Ok(core.counters()))
    }

    /// Closes all readers.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.core.close(py)
    }
}

fn take(py: Python<'_>, reader: &Bound<'_, QueueReader>) -> PyResult<Reader> {
    reader.get().inner.with(py, |inner| inner.reader.check_owner().map_err(to_py))?;
    Ok(reader.get().inner.take(py, "a replay")?.reader)
}

fn tuple(py: Python<'_>, pause: Pause) -> PyResult<Bound<'_, PyTuple>> {
    match pause {
        Pause::Enough => ("enough",).into_pyobject(py),
        Pause::End => ("end",).into_pyobject(py),
        Pause::Record { type_id, sequence, bytes } => {
            ("record", type_id, sequence, PyBytes::new(py, &bytes)).into_pyobject(py)
        }
        Pause::Damaged { sequence, why } => ("damaged", sequence, why).into_pyobject(py),
        Pause::Missing { input, why } => {
            let (text, error) = missing(py, why);
            ("missing", input.source, input.sequence, text, error).into_pyobject(py)
        }
        Pause::Differs { output, sequence, expected, found } => {
            let expected = expected.map(|expected| published(py, &expected));
            ("differs", output, sequence, expected, published(py, &found)).into_pyobject(py)
        }
        Pause::Unreadable { output, error } => {
            ("unreadable", output, value(py, error)).into_pyobject(py)
        }
        Pause::Failed(failure) => ("failed", convert::failure(py, failure)?).into_pyobject(py),
    }
}

fn value(py: Python<'_>, error: Error) -> Py<PyAny> {
    to_py(error).into_value(py).into_any()
}

fn missing(py: Python<'_>, why: Missing) -> (String, Option<Py<PyAny>>) {
    match why {
        Missing::NoReader => ("no reader".into(), None),
        Missing::NotWritten => ("the queue ends before it".into(), None),
        Missing::Other { type_id, timestamp_ns } => {
            let text = format!(
                "another message has its number: type_id={type_id} timestamp_ns={timestamp_ns}"
            );
            (text, None)
        }
        Missing::Refused(error) => (error.to_string(), Some(value(py, error))),
    }
}

fn published<'py>(py: Python<'py>, message: &Published) -> (u16, u64, Bound<'py, PyBytes>) {
    (message.type_id, message.timestamp_ns, PyBytes::new(py, &message.payload))
}
