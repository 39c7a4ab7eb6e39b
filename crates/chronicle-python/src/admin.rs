//! Looking at queues and looking after them, for tools.

use crate::errors::to_py;
use crate::reader::hex;
use chronicle_core::RetentionPolicy;
use chronicle_core::os::clock;
use chronicle_core::queue::dir::QueueDir;
use chronicle_core::queue::{cursor, inspect as core_inspect, retention};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::path::PathBuf;

/// The wall clock that timestamps default to, in nanoseconds since 1970-01-01 UTC.
///
/// Examples
/// --------
/// >>> import chronicle, time
/// >>> abs(chronicle.clock_ns() - time.time_ns()) < 10**9
/// True
#[pyfunction]
pub fn clock_ns() -> u64 {
    clock::wall_ns()
}

macro_rules! dict {
    ($py:expr, $($name:literal: $value:expr),* $(,)?) => {{
        let out = PyDict::new($py);
        $(out.set_item($name, $value)?;)*
        out
    }};
}

/// Everything that can be said about a queue without reading its messages. Touches nothing.
///
/// Examples
/// --------
/// >>> import chronicle, tempfile
/// >>> folder = tempfile.TemporaryDirectory()
/// >>> path = f"{folder.name}/ticks"
/// >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
/// >>> writer.append(1, b"hello")
/// 1
/// >>> facts = chronicle.inspect(path)
/// >>> facts["writer_live"], facts["segment_bytes"], len(facts["segments"])
/// (True, 65536, 1)
/// >>> writer.close(); folder.cleanup()
#[pyfunction]
pub fn inspect(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let info = py.detach(|| core_inspect::info(&path)).map_err(to_py)?;
    let segments = PyList::empty(py);
    for s in &info.segments {
        segments.append(dict!(py,
            "index": s.index, "first_seq": s.first_sequence, "sealed": s.sealed,
            "timestamp_max_ns": s.timestamp_max, "data_bytes": s.data_bytes, "error": s.error.as_deref(),
        ))?;
    }
    let readers = PyList::empty(py);
    for reader in &info.readers {
        readers.append(match reader {
            Ok(r) => dict!(py,
                "name": &r.name, "live": r.live, "pid": r.pid, "placed": r.placed,
                "next_seq": r.next_sequence, "next_position": r.next_position,
                "opened_ns": r.opened_ns, "error": None::<&str>,
            ),
            Err((name, error)) => dict!(py, "name": name, "live": false, "error": error),
        })?;
    }
    let id = &info.identity;
    let queue_id = hex(&id.queue_id);
    Ok(dict!(py,
        "queue_id": queue_id, "version": id.version, "created_ns": id.created_ns,
        "segment_bytes": 1_u64 << id.segment_shift, "segments_max": id.table_capacity,
        "checksum": id.flags & chronicle_core::layout::CONTROL_FLAG_CRC != 0,
        "epoch": info.epoch, "writer_live": info.writer_live, "writer_pid": info.writer_pid,
        "writer_opened_ns": info.opened_ns, "floor_segment": info.floor_segment,
        "tail_segment": info.tail_segment, "durable_seq": info.durable_sequence,
        "durable_position": info.durable_position, "rolls": info.rolls,
        "rolls_inline": info.rolls_inline, "recoveries": info.recoveries, "cuts": info.cuts,
        "cut_bytes": info.cut_bytes, "segments_deleted": info.segments_deleted,
        "segments": segments, "readers": readers, "set_aside": info.set_aside,
    ))
}

/// Reads every message, checksums included, and tells what is damaged. `progress(done, total)` is
/// called before each segment.
///
/// Examples
/// --------
/// >>> import chronicle, tempfile
/// >>> folder = tempfile.TemporaryDirectory()
/// >>> path = f"{folder.name}/ticks"
/// >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
/// >>> writer.append(1, b"hello")
/// 1
/// >>> report = chronicle.verify(path)
/// >>> report["records"], report["damage"]
/// (1, [])
/// >>> writer.close(); folder.cleanup()
#[pyfunction]
#[pyo3(signature = (path, progress = None))]
pub fn verify(
    py: Python<'_>,
    path: PathBuf,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'_, PyDict>> {
    let mut failure = None;
    let report = py
        .detach(|| {
            core_inspect::verify(&path, |done, total| {
                if let Some(progress) = &progress
                    && failure.is_none()
                {
                    failure = Python::attach(|py| progress.call1(py, (done, total)).err());
                }
            })
        })
        .map_err(to_py)?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    Ok(dict!(py,
        "records": report.records, "first_seq": report.first_sequence,
        "next_seq": report.next_sequence, "payload_bytes": report.payload_bytes,
        "timestamp_first_ns": report.timestamp_first, "timestamp_max_ns": report.timestamp_max,
        "damage": report.damage,
    ))
}

/// Deletes the segments that the policy lets go and no live reader needs.
///
/// Examples
/// --------
/// >>> import chronicle, tempfile
/// >>> folder = tempfile.TemporaryDirectory()
/// >>> path = f"{folder.name}/ticks"
/// >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
/// >>> writer.append(1, b"hello")
/// 1
/// >>> report = chronicle.apply_retention(path, bytes_max=1 << 20)
/// >>> report["segments_deleted"], report["held_by"]
/// (0, None)
/// >>> writer.close(); folder.cleanup()
#[pyfunction]
#[pyo3(signature = (path, *, bytes_max = None, age_ns_max = None))]
pub fn apply_retention(
    py: Python<'_>,
    path: PathBuf,
    bytes_max: Option<u64>,
    age_ns_max: Option<u64>,
) -> PyResult<Bound<'_, PyDict>> {
    let policy = RetentionPolicy { bytes_max, age_ns_max };
    let report =
        py.detach(|| retention::apply(&QueueDir::open(&path, true)?, &policy)).map_err(to_py)?;
    Ok(dict!(py,
        "segments_deleted": report.segments_deleted, "floor_segment": report.floor_segment,
        "allowed_segment": report.allowed_segment, "held_by": report.held_by,
    ))
}

/// Forgets where a reader was.
///
/// Examples
/// --------
/// >>> import chronicle, tempfile
/// >>> folder = tempfile.TemporaryDirectory()
/// >>> path = f"{folder.name}/ticks"
/// >>> writer = chronicle.Queue.open_publisher(path, segment_bytes=1 << 16)
/// >>> writer.append(1, b"hello")
/// 1
/// >>> chronicle.Queue.open_subscriber(path, "old").close()
/// >>> chronicle.remove_reader(path, "old")
/// >>> chronicle.inspect(path)["readers"]
/// []
/// >>> writer.close(); folder.cleanup()
#[pyfunction]
pub fn remove_reader(py: Python<'_>, path: PathBuf, name: &str) -> PyResult<()> {
    py.detach(|| cursor::remove(&QueueDir::open(&path, true)?, name)).map_err(to_py)
}
