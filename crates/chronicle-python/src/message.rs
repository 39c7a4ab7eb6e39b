//! What a reader gives out: one message, or a run of them. Both export their bytes and keep the
//! mapping alive.

use chronicle_core::Reader;
use chronicle_core::layout::{RECORD_ALIGN, RECORD_HEADER_BYTES, record_stride};
use chronicle_core::queue::reader::RecordRun;
use chronicle_core::queue::segment::{RawRecord, Segment};
use chronicle_core::sync::Arc;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use std::cell::UnsafeCell;
use std::ffi::c_int;

const _: () = assert!(RECORD_HEADER_BYTES.is_multiple_of(RECORD_ALIGN));

/// One message, in place: nothing was copied. Its bytes stay valid for as long as this object or a
/// view of it lives, whatever happens to the reader, the queue or the file.
///
/// Examples
/// --------
/// >>> import chronicle, tempfile
/// >>> folder = tempfile.TemporaryDirectory()
/// >>> path = f"{folder.name}/ticks"
/// >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
/// >>> writer.append(1, b"hello")
/// 1
/// >>> with chronicle.Queue.open_subscriber(path, None) as reader:
/// ...     message = reader.next()
/// >>> message.seq, message.type_id, bytes(message.payload)
/// (1, 1, b'hello')
/// >>> writer.close(); folder.cleanup()
#[pyclass(frozen, module = "chronicle")]
pub struct Message {
    /// Changed only by [`Pool`], while nobody but the pool holds the object.
    place: UnsafeCell<Place>,
    /// The payload's view, if it was made ahead; the first who asks for it takes it.
    view: Ahead,
}

struct Place {
    raw: RawRecord,
    /// A fan-in's number for the source; negative if there is none.
    source: i64,
    segment: Arc<Segment>,
}

// SAFETY: the place is written only by `Pool::message`, which holds the only reference then; all
// other uses are reads. The view is only touched by threads that are attached to the interpreter,
// and where that does not make them take turns, not at all.
unsafe impl Sync for Message {}

/// A slot for a view that was made before its message came.
#[derive(Default)]
struct Ahead(UnsafeCell<Option<Py<PyMemoryView>>>);

impl Ahead {
    #[inline(always)]
    fn is_there(&self, _attached: Python<'_>) -> bool {
        // SAFETY: as in `replace`.
        !cfg!(Py_GIL_DISABLED) && unsafe { (*self.0.get()).is_some() }
    }

    #[inline(always)]
    fn replace(
        &self,
        _attached: Python<'_>,
        view: Option<Py<PyMemoryView>>,
    ) -> Option<Py<PyMemoryView>> {
        if cfg!(Py_GIL_DISABLED) {
            return None;
        }
        // SAFETY: we hold the interpreter lock, and nothing runs between these two moves.
        unsafe { std::mem::replace(&mut *self.0.get(), view) }
    }
}

impl Message {
    #[inline(always)]
    fn place(&self) -> &Place {
        // SAFETY: whoever calls this holds a reference besides the pool's, so nobody writes.
        unsafe { &*self.place.get() }
    }

    fn payload_ptr(&self) -> *mut u8 {
        let place = self.place();
        // SAFETY: the record lies inside the segment: `RawRecord`s are checked when they are made.
        unsafe { place.segment.base().add(place.raw.offset + RECORD_HEADER_BYTES) }
    }
}

/// Messages that a reader has given out and may use again.
///
/// A caller that keeps a message keeps a reference to it; most drop it before they ask for the next
/// but one. An object to which only the pool refers is filled anew instead of being freed and
/// allocated again, which is what makes `next` cost about what an empty call does. Free-threaded
/// builds, where a count of one proves less, always allocate.
#[derive(Default)]
pub struct Pool {
    given: [Option<Py<Message>>; 2],
    turn: usize,
    ahead: Option<Guess>,
    /// Where the last guess was made, so that one place is guessed at once.
    guessed_at: u64,
    len_last: Option<usize>,
}

/// A view made while there was nothing to read, for the next message if that is as long as the one
/// before. It shows bytes that may not be written yet; nobody gets it before they are committed.
struct Guess {
    segment: Arc<Segment>,
    offset: usize,
    len: usize,
    view: Py<PyMemoryView>,
}

impl Pool {
    #[inline(always)]
    pub fn message(
        &mut self,
        py: Python<'_>,
        raw: RawRecord,
        segment: &Arc<Segment>,
        source: i64,
    ) -> PyResult<Py<Message>> {
        self.turn ^= 1;
        self.len_last = Some(raw.len);
        let view = if self.ahead.is_some() { self.take_guess(&raw, segment) } else { None };
        if cfg!(not(Py_GIL_DISABLED))
            && let Some(given) = &self.given[self.turn]
            // SAFETY: a live object; we are attached.
            && unsafe { ffi::Py_REFCNT(given.as_ptr()) } == 1
        {
            // SAFETY: the pool's reference is the only one, and it does not leave this thread
            // before we return: nobody reads.
            let place = unsafe { &mut *given.get().place.get() };
            place.raw = raw;
            place.source = source;
            if !Arc::ptr_eq(&place.segment, segment) {
                place.segment = Arc::clone(segment);
            }
            if view.is_some() || given.get().view.is_there(py) {
                drop(given.get().view.replace(py, view));
            }
            return Ok(given.clone_ref(py));
        }
        let place = Place { raw, source, segment: Arc::clone(segment) };
        let view = Ahead(UnsafeCell::new(view));
        let fresh = Py::new(py, Message { place: UnsafeCell::new(place), view })?;
        self.given[self.turn] = Some(fresh.clone_ref(py));
        Ok(fresh)
    }

    /// Called when there is nothing to read: makes the view of the next message's payload, which
    /// is half of what it costs Python to receive one, so that this is done when the message comes.
    #[inline(always)]
    pub fn guess(&mut self, py: Python<'_>, reader: &Reader) -> PyResult<()> {
        if cfg!(Py_GIL_DISABLED) || self.guessed_at == reader.position() {
            return Ok(());
        }
        self.make_guess(py, reader)
    }

    #[inline(never)]
    fn take_guess(&mut self, raw: &RawRecord, segment: &Arc<Segment>) -> Option<Py<PyMemoryView>> {
        let guess = self.ahead.take()?;
        let is_right = guess.offset == raw.offset
            && guess.len == raw.len
            && Arc::ptr_eq(&guess.segment, segment);
        is_right.then_some(guess.view)
    }

    #[cold]
    fn make_guess(&mut self, py: Python<'_>, reader: &Reader) -> PyResult<()> {
        self.guessed_at = reader.position();
        let segment = reader.segment();
        let geometry = segment.geometry;
        let offset = geometry.offset_of(self.guessed_at);
        self.ahead = match self.len_last {
            Some(len) if offset + record_stride(len) <= geometry.data_limit() => {
                let bytes = Bytes { segment: Arc::clone(segment), offset, len };
                let view = PyMemoryView::from(Bound::new(py, bytes)?.as_any())?.unbind();
                Some(Guess { segment: Arc::clone(segment), offset, len, view })
            }
            _ => None,
        };
        Ok(())
    }
}

/// The payload that a [`Guess`] is for. Exports its bytes and keeps the mapping alive.
#[pyclass(frozen, module = "chronicle._core")]
struct Bytes {
    segment: Arc<Segment>,
    offset: usize,
    len: usize,
}

#[pymethods]
impl Bytes {
    /// # Safety
    /// Called by the interpreter with a valid view.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        // SAFETY: `Pool::make_guess` has checked that such a record would lie inside the segment.
        let base = unsafe { this.segment.base().add(this.offset + RECORD_HEADER_BYTES) };
        // SAFETY: the bytes live as long as the exporter, which the view holds, and do not change
        // once they are committed, before which nobody is given the view.
        unsafe { export(view, &slf, base, this.len, flags) }
    }
}

#[pymethods]
impl Message {
    /// Its number in its queue, from 1.
    #[getter]
    fn seq(&self) -> u64 {
        self.place().raw.sequence
    }

    /// When it was published, in nanoseconds since 1970 UTC, or what the writer gave.
    #[getter]
    fn timestamp_ns(&self) -> u64 {
        self.place().raw.timestamp_ns
    }

    /// What it is: 1 to 65,535.
    #[getter]
    fn type_id(&self) -> u16 {
        self.place().raw.type_id
    }

    /// The source of the fan-in that it came from; `None` from a reader.
    #[getter]
    fn source(&self) -> Option<i64> {
        (self.place().source >= 0).then_some(self.place().source)
    }

    /// Its bytes: a read-only view of the mapping.
    #[getter]
    #[inline(always)]
    fn payload<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        match slf.get().view.replace(slf.py(), None) {
            Some(view) => Ok(view.into_bound(slf.py())),
            None => PyMemoryView::from(slf.as_any()),
        }
    }

    /// Where it is: segment index and offset in one number.
    #[getter]
    fn position(&self) -> u64 {
        self.place().segment.geometry.position(self.place().segment.index, self.place().raw.offset)
    }

    fn __len__(&self) -> usize {
        self.place().raw.len
    }

    fn __repr__(&self) -> String {
        let source = if self.place().source >= 0 {
            format!(" source={}", self.place().source)
        } else {
            String::new()
        };
        format!(
            "<Message seq={} timestamp_ns={} type_id={} len={}{source}>",
            self.place().raw.sequence,
            self.place().raw.timestamp_ns,
            self.place().raw.type_id,
            self.place().raw.len
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
        unsafe { export(view, &slf, this.payload_ptr(), this.place().raw.len, flags) }
    }
}

/// A run of messages of one type and size, evenly spaced in the mapping. Exports the bytes from the
/// first record's header to the last payload's end; `chronicle` lays a NumPy array over them.
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
    if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
        return Err(PyBufferError::new_err(
            "messages are read-only; copy the payload to change it",
        ));
    }
    // What PyBuffer_FillInfo would store, without the call: this is half the cost of
    // `Message.payload`.
    // SAFETY: the caller's promise; the view takes its own reference to the owner.
    unsafe {
        ffi::Py_INCREF(owner.as_ptr());
        (*view).obj = owner.as_ptr();
        (*view).buf = base.cast();
        (*view).len = len as ffi::Py_ssize_t;
        (*view).readonly = 1;
        (*view).itemsize = 1;
        (*view).ndim = 1;
        let has = |flag: c_int| flags & flag == flag;
        (*view).format =
            if has(ffi::PyBUF_FORMAT) { c"B".as_ptr().cast_mut() } else { std::ptr::null_mut() };
        (*view).shape =
            if has(ffi::PyBUF_ND) { &raw mut (*view).len } else { std::ptr::null_mut() };
        (*view).strides =
            if has(ffi::PyBUF_STRIDES) { &raw mut (*view).itemsize } else { std::ptr::null_mut() };
        (*view).suboffsets = std::ptr::null_mut();
        (*view).internal = std::ptr::null_mut();
    }
    Ok(())
}
