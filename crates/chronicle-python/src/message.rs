//! What a reader gives out: one message, or a run of them. Both export their bytes and keep the mapping alive.

use chronicle_core::layout::{RECORD_ALIGN, RECORD_HEADER_BYTES};
use chronicle_core::queue::reader::RecordRun;
use chronicle_core::queue::segment::{RawRecord, Segment};
use chronicle_core::sync::Arc;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use std::ffi::c_int;

const _: () = assert!(RECORD_HEADER_BYTES % RECORD_ALIGN == 0);

/// One message, in place: nothing was copied. Its bytes stay valid for as long as this object or a view of it lives, whatever
/// happens to the reader, the queue or the file.
#[pyclass(frozen, freelist = 256, module = "chronicle")]
pub struct Message {
    raw: RawRecord,
    /// A fan-in's number for the source; negative if there is none.
    source: i64,
    segment: Arc<Segment>,
}

impl Message {
    #[inline(always)]
    pub fn new(raw: RawRecord, segment: &Arc<Segment>, source: i64) -> Self {
        Self { raw, source, segment: Arc::clone(segment) }
    }

    fn payload_ptr(&self) -> *mut u8 {
        // SAFETY: the record lies inside the segment: `RawRecord`s are checked when they are made.
        unsafe { self.segment.base().add(self.raw.offset + RECORD_HEADER_BYTES) }
    }
}

#[pymethods]
impl Message {
    #[getter]
    fn seq(&self) -> u64 {
        self.raw.sequence
    }

    #[getter]
    fn timestamp_ns(&self) -> u64 {
        self.raw.timestamp_ns
    }

    #[getter]
    fn type_id(&self) -> u16 {
        self.raw.type_id
    }

    #[getter]
    fn source(&self) -> Option<i64> {
        (self.source >= 0).then_some(self.source)
    }

    #[getter]
    #[inline(always)]
    fn payload<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(slf.as_any())
    }

    #[getter]
    fn position(&self) -> u64 {
        self.segment.geometry.position(self.segment.index, self.raw.offset)
    }

    fn __len__(&self) -> usize {
        self.raw.len
    }

    fn __repr__(&self) -> String {
        let source = if self.source >= 0 { format!(" source={}", self.source) } else { String::new() };
        format!(
            "<Message seq={} timestamp_ns={} type_id={} len={}{source}>",
            self.raw.sequence, self.raw.timestamp_ns, self.raw.type_id, self.raw.len
        )
    }

    /// # Safety
    /// Called by the interpreter with a valid view.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        // SAFETY: the bytes live as long as the exporter, which the view holds.
        unsafe { export(view, &slf, this.payload_ptr(), this.raw.len, flags) }
    }
}

/// A run of messages of one type and size, evenly spaced in the mapping. Exports the bytes from the first record's header
/// to the last payload's end; `chronicle` lays a NumPy array over them.
#[pyclass(frozen, module = "chronicle._core")]
pub struct Run {
    run: RecordRun,
}

impl Run {
    pub fn new(run: RecordRun) -> Self {
        Self { run }
    }
}

#[pymethods]
impl Run {
    #[getter]
    fn count(&self) -> usize {
        self.run.count
    }

    #[getter]
    fn stride(&self) -> usize {
        self.run.stride
    }

    #[getter]
    fn payload_bytes(&self) -> usize {
        self.run.payload_bytes
    }

    #[getter]
    fn type_id(&self) -> u16 {
        self.run.type_id
    }

    #[getter]
    fn first_seq(&self) -> u64 {
        self.run.first_sequence
    }

    fn __len__(&self) -> usize {
        self.run.count
    }

    /// # Safety
    /// Called by the interpreter with a valid view.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let run = &slf.get().run;
        // SAFETY: the run lies inside its segment, as the reader has checked record by record.
        let base = unsafe { run.segment.base().add(run.offset) };
        let len = (run.count - 1) * run.stride + RECORD_HEADER_BYTES + run.payload_bytes;
        // SAFETY: the bytes live as long as the exporter, which the view holds.
        unsafe { export(view, &slf, base, len, flags) }
    }
}

/// # Safety
/// `view` is valid, and the bytes live and do not change as long as `owner` does.
unsafe fn export<T>(
    view: *mut ffi::Py_buffer,
    owner: &Bound<'_, T>,
    base: *mut u8,
    len: usize,
    flags: c_int,
) -> PyResult<()> {
    if view.is_null() {
        return Err(PyBufferError::new_err("no view to fill"));
    }
    // SAFETY: the caller's promise; the call takes its own reference to the owner.
    let rc = unsafe {
        ffi::PyBuffer_FillInfo(view, owner.as_ptr(), base.cast(), len as ffi::Py_ssize_t, 1, flags)
    };
    if rc == 0 { Ok(()) } else { Err(PyErr::fetch(owner.py())) }
}
