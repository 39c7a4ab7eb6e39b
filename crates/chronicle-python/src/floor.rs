//! What a native call costs when it does nothing: the floor that benchmarks of the Python interface
//! are measured against.

use pyo3::prelude::*;

/// Empty methods with the signatures of `QueueWriter.append` and `QueueReader.next`.
#[pyclass(frozen, module = "chronicle._core")]
pub struct Floor;

#[pymethods]
impl Floor {
    #[new]
    fn new() -> Self {
        Self
    }

    /// Takes the arguments of `append`, as Python passes them, and does nothing.
    #[pyo3(signature = (type_id, payload, *, timestamp_ns = None))]
    fn append(&self, type_id: u16, payload: &Bound<'_, PyAny>, timestamp_ns: Option<u64>) {
        let _ = (type_id, payload, timestamp_ns);
    }

    /// Takes nothing and does nothing.
    fn next(&self) {}
}
