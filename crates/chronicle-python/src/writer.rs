//! `QueueWriter`: the one writer of a queue.

use crate::errors::{raise, to_py};
use crate::numbers::{TimestampNs, TypeId};
use crate::owned::Owned;
use crate::reader::hex;
use chronicle_core::queue::writer::MixedBatch;
use chronicle_core::{Options, Writer};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::path::PathBuf;

/// The one writer of a queue. Python gives it its documentation and its typed methods.
#[pyclass(frozen, subclass, module = "chronicle._core")]
pub struct QueueWriter {
    pub inner: Owned<Writer>,
    path: PathBuf,
}

/// The bytes of a C-contiguous buffer. Valid while the buffer is held.
fn bytes_of<T: Element>(buffer: &PyBuffer<T>) -> PyResult<&[u8]> {
    if !buffer.is_c_contiguous() {
        return Err(strided());
    }
    if buffer.len_bytes() == 0 {
        return Ok(&[]);
    }
    // SAFETY: the exporter keeps `len_bytes` contiguous bytes at this address until the buffer is
    // released. That nobody writes to them meanwhile is the caller's business, as with every
    // buffer: a torn copy would be published, memory stays safe.
    Ok(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.len_bytes()) })
}

#[cold]
fn strided() -> PyErr {
    let text = "bad buffer: found=strided memory expected=C-contiguous; copy it first";
    raise("BadArgument", text.to_owned(), &[])
}

fn items_of<T: Element>(buffer: &PyBuffer<T>) -> PyResult<&[T]> {
    let bytes = bytes_of(buffer)?;
    if bytes.is_empty() {
        return Ok(&[]);
    }
    // SAFETY: `PyBuffer<T>` has checked format and alignment; the length is whole items.
    Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), buffer.item_count()) })
}

#[pymethods]
impl QueueWriter {
    #[new]
    #[pyo3(signature = (path, *, segment_bytes, checksum, segments_max, group_readable))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        segment_bytes: u64,
        checksum: bool,
        segments_max: u32,
        group_readable: bool,
    ) -> PyResult<Self> {
        let options = Options { segment_bytes, checksum, segments_max, group_readable };
        let writer = py.detach(|| Writer::open(&path, &options)).map_err(to_py)?;
        Ok(Self { inner: Owned::new("writer", writer), path })
    }

    /// Publishes one message; returns its sequence number. `payload` is any C-contiguous buffer;
    /// without `timestamp_ns` the message gets the wall clock.
    #[pyo3(signature = (type_id, payload, *, timestamp_ns = None))]
    #[inline(always)]
    fn append(
        &self,
        py: Python<'_>,
        type_id: TypeId,
        payload: &Bound<'_, PyAny>,
        timestamp_ns: Option<TimestampNs>,
    ) -> PyResult<u64> {
        let (type_id, timestamp_ns) = (type_id.0, timestamp_ns.map(|t| t.0));
        self.inner.with(py, |writer| {
            if let Ok(bytes) = payload.cast_exact::<PyBytes>() {
                return writer.append(type_id, content_of(bytes), timestamp_ns).map_err(to_py);
            }
            append_buffer(writer, type_id, payload, timestamp_ns)
        })
    }

    #[pyo3(signature = (type_id, payloads, len_bytes, timestamp_ns = None))]
    fn _append_many(
        &self,
        py: Python<'_>,
        type_id: TypeId,
        payloads: PyBuffer<u8>,
        len_bytes: usize,
        timestamp_ns: Option<TimestampNs>,
    ) -> PyResult<u64> {
        let (type_id, timestamp_ns) = (type_id.0, timestamp_ns.map(|t| t.0));
        let bytes = bytes_of(&payloads)?;
        self.inner.with(py, |writer| {
            py.detach(|| writer.append_many(type_id, bytes, len_bytes, timestamp_ns)).map_err(to_py)
        })
    }

    /// Publishes many messages from one buffer, with types and times of their own; returns the
    /// number of the last one. They appear in runs of up to 256 KiB.
    #[pyo3(signature = (buffer, offsets, lengths, type_ids, timestamps_ns = None))]
    fn append_mixed(
        &self,
        py: Python<'_>,
        buffer: PyBuffer<u8>,
        offsets: PyBuffer<u64>,
        lengths: PyBuffer<u32>,
        type_ids: PyBuffer<u16>,
        timestamps_ns: Option<PyBuffer<u64>>,
    ) -> PyResult<u64> {
        let batch = MixedBatch {
            buffer: bytes_of(&buffer)?,
            offsets: items_of(&offsets)?,
            lengths: items_of(&lengths)?,
            type_ids: items_of(&type_ids)?,
            timestamps_ns: timestamps_ns.as_ref().map_or(Ok(&[][..]), items_of)?,
        };
        if batch.type_ids.contains(&0) {
            let text = "bad batch: found=a type_id of 0 expected=1 to 65535; 0 is reserved";
            return Err(raise("BadArgument", text.to_owned(), &[]));
        }
        self.inner.with(py, |writer| py.detach(|| writer.append_mixed(batch)).map_err(to_py))
    }

    /// Makes everything that was published durable; returns the last durable number. Blocks on the
    /// device.
    fn flush(&self, py: Python<'_>) -> PyResult<u64> {
        self.inner.with(py, |writer| py.detach(|| writer.flush()).map_err(to_py))
    }

    /// Gives the queue free for another writer. Does not flush.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.inner.close(py)
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        self.inner.is_closed(py)
    }

    /// The queue's directory.
    #[getter]
    fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The number that the next message gets.
    #[getter]
    fn next_seq(&self, py: Python<'_>) -> PyResult<u64> {
        self.inner.with(py, |writer| Ok(writer.next_sequence()))
    }

    /// Where the next message goes: segment index and offset in one number.
    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<u64> {
        self.inner.with(py, |writer| Ok(writer.next_position()))
    }

    /// How many writers have ever opened the queue, this one included.
    #[getter]
    fn epoch(&self, py: Python<'_>) -> PyResult<u64> {
        self.inner.with(py, |writer| Ok(writer.epoch()))
    }

    /// Of the queue, in hexadecimal digits.
    #[getter]
    fn queue_id(&self, py: Python<'_>) -> PyResult<String> {
        self.inner.with(py, |writer| Ok(hex(&writer.queue().identity.queue_id)))
    }

    /// What the open found: a dict, for `chronicle.Recovery`.
    fn _recovery<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.inner.with(py, |writer| {
            let report = writer.recovery();
            let out = PyDict::new(py);
            out.set_item("same_boot", report.same_boot)?;
            out.set_item("next_seq", report.next_sequence)?;
            out.set_item("position", report.position)?;
            if let Some(cut) = &report.cut {
                out.set_item("bytes_discarded", cut.bytes_discarded)?;
                out.set_item("set_aside", cut.set_aside.clone())?;
                out.set_item("why", &cut.why)?;
                out.set_item("below_durable", cut.below_durable)?;
            }
            Ok(out)
        })
    }
}

/// `PyBytes::as_bytes` with one call into the interpreter instead of two.
#[inline(always)]
fn content_of<'a>(bytes: &'a Bound<'_, PyBytes>) -> &'a [u8] {
    let (mut start, mut len) = (std::ptr::null_mut(), 0);
    // SAFETY: it is a `bytes` object, for which this cannot fail; what it gives is immutable and
    // lives as long as the object.
    unsafe {
        ffi::PyBytes_AsStringAndSize(bytes.as_ptr(), &raw mut start, &raw mut len);
        std::slice::from_raw_parts(start.cast(), len as usize)
    }
}

/// Apart from the path of `bytes`, whose registers it would take.
#[inline(never)]
fn append_buffer(
    writer: &mut Writer,
    type_id: u16,
    payload: &Bound<'_, PyAny>,
    timestamp_ns: Option<u64>,
) -> PyResult<u64> {
    let buffer = PyBuffer::<u8>::get(payload).or_else(|_| as_bytes(payload))?;
    writer.append(type_id, bytes_of(&buffer)?, timestamp_ns).map_err(to_py)
}

/// A buffer of items that are not bytes (an array of floats, a structured array), as bytes.
fn as_bytes(payload: &Bound<'_, PyAny>) -> PyResult<PyBuffer<u8>> {
    let view = pyo3::types::PyMemoryView::from(payload)?;
    if !view.getattr("c_contiguous")?.is_truthy()? {
        return Err(strided());
    }
    PyBuffer::<u8>::get(&view.call_method1("cast", ("B",))?)
}
