//! `Provisioner`: the native worker, and what it does besides.

use crate::errors::raise;
use crate::owned::Owned;
use crate::reader::QueueReader;
use crate::waiting;
use crate::writer::QueueWriter;
use chronicle_core::RetentionPolicy;
use chronicle_core::queue::provision::Chores;
use pyo3::prelude::*;

/// One native thread that keeps the next segment of every attached writer and reader mapped and
/// ready.
///
/// Examples
/// --------
/// >>> import chronicle, tempfile
/// >>> folder = tempfile.TemporaryDirectory()
/// >>> with chronicle.Provisioner() as provisioner:
/// ...     writer = chronicle.Queue.open_publisher(
/// ...         f"{folder.name}/ticks", segment_bytes=1 << 16, provisioner=provisioner
/// ...     )
/// ...     writer.append(1, b"hello")
/// ...     writer.close()
/// 1
/// >>> folder.cleanup()
#[pyclass(frozen, module = "chronicle")]
pub struct Provisioner {
    pub inner: Owned<chronicle_core::Provisioner>,
}

#[pymethods]
impl Provisioner {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self { inner: Owned::new("provisioner", chronicle_core::Provisioner::new()?) })
    }

    /// Serves a writer or a reader from now on: the next segment, and for a writer what else was
    /// asked for.
    #[pyo3(signature = (target, *, flush_interval = None, retention_bytes = None, retention_age = None))]
    fn attach(
        &self,
        py: Python<'_>,
        target: &Bound<'_, PyAny>,
        flush_interval: Option<f64>,
        retention_bytes: Option<u64>,
        retention_age: Option<f64>,
    ) -> PyResult<()> {
        let age = waiting::timeout(retention_age)?.map(|age| age.as_nanos() as u64);
        let has_policy = retention_bytes.is_some() || age.is_some();
        let chores = Chores {
            flush_interval: waiting::timeout(flush_interval)?,
            retention: has_policy
                .then_some(RetentionPolicy { bytes_max: retention_bytes, age_ns_max: age }),
        };
        self.inner.with(py, |provisioner| {
            if let Ok(writer) = target.cast::<QueueWriter>() {
                return writer.get().inner.with(py, |w| {
                    provisioner.attach_writer(w, chores);
                    Ok(())
                });
            }
            if let Ok(reader) = target.cast::<QueueReader>() {
                if has_policy || flush_interval.is_some() {
                    let text =
                        "flush_interval and retention belong to the writer; attach that with them";
                    return Err(raise("BadArgument", text.to_owned(), &[]));
                }
                return reader.get().inner.with(py, |r| {
                    provisioner.attach_reader(&r.reader);
                    Ok(())
                });
            }
            let found = target.get_type().name()?.to_string();
            let text =
                format!("cannot provision: found={found} expected=a QueueWriter or QueueReader");
            Err(raise("BadArgument", text, &[]))
        })
    }

    /// Stops the thread. What was attached rolls inline from then on.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.inner.close(py)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _exception: &Bound<'_, pyo3::types::PyTuple>,
    ) -> PyResult<()> {
        self.close(py)
    }
}
