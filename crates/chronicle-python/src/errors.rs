//! The one place where the core's errors become Python's. The classes themselves live in
//! `chronicle.errors`.

use chronicle_core::{Error, ErrorKind};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyModule};

/// A keyword that an error carries besides its message.
pub enum Value {
    Text(String),
    Number(u64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

/// Makes `chronicle.errors.<class>(text, **fields)`.
#[cold]
pub fn raise(class: &str, text: String, fields: &[(&str, Value)]) -> PyErr {
    Python::attach(|py| build(py, class, text, fields).unwrap_or_else(|failure| failure))
}

fn build(py: Python<'_>, class: &str, text: String, fields: &[(&str, Value)]) -> PyResult<PyErr> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || py.import("chronicle.errors").map(Bound::unbind))?;
    let keywords = PyDict::new(py);
    for (name, value) in fields {
        match value {
            Value::Text(text) => keywords.set_item(name, text)?,
            Value::Number(number) => keywords.set_item(name, number)?,
        }
    }
    let error = module.bind(py).getattr(class)?.call((text,), Some(&keywords))?;
    Ok(PyErr::from_value(error))
}

/// Maps an error of the core.
#[cold]
pub fn to_py(error: Error) -> PyErr {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::Io { source, path, .. } => match source.raw_os_error() {
            // The built-in subclasses (FileNotFoundError, PermissionError) come from the number.
            Some(number) => PyOSError::new_err((number, text, path.clone())),
            None => PyOSError::new_err(text),
        },
        // As above; the text says what it is about, which is no path.
        ErrorKind::Network { source, .. } => match source.raw_os_error() {
            Some(number) => PyOSError::new_err((number, text)),
            None => PyOSError::new_err(text),
        },
        ErrorKind::DiskFull { needed_bytes, .. } => {
            raise("DiskFull", text, &[("needed_bytes", (*needed_bytes).into())])
        }
        ErrorKind::WriterActive { pid, .. } => {
            raise("WriterActive", text, &[("pid", u64::from(*pid).into())])
        }
        ErrorKind::ReaderActive { name, pid, .. } => raise(
            "ReaderActive",
            text,
            &[("name", name.clone().into()), ("pid", u64::from(*pid).into())],
        ),
        ErrorKind::NotAQueue { .. } => raise("NotAQueue", text, &[]),
        ErrorKind::Format { field, found, expected, .. } => raise(
            "FormatError",
            text,
            &[
                ("field", (*field).into()),
                ("found", found.clone().into()),
                ("expected", expected.clone().into()),
            ],
        ),
        ErrorKind::Corrupt { position, .. } => {
            raise("CorruptRecord", text, &[("position", (*position).into())])
        }
        ErrorKind::Gap { first_missing, next, reason, .. } => raise(
            "Gap",
            text,
            &[
                ("first_missing", (*first_missing).into()),
                ("next", (*next).into()),
                ("reason", reason.as_str().into()),
            ],
        ),
        ErrorKind::TooLarge { len_bytes, len_bytes_max } => raise(
            "TooLarge",
            text,
            &[
                ("len_bytes", (*len_bytes as u64).into()),
                ("len_bytes_max", (*len_bytes_max as u64).into()),
            ],
        ),
        ErrorKind::QueueFull { .. } => raise("QueueFull", text, &[]),
        ErrorKind::QueueRemoved { .. } => raise("QueueRemoved", text, &[]),
        ErrorKind::SegmentMissing { index, .. } => {
            raise("SegmentMissing", text, &[("index", (*index).into())])
        }
        ErrorKind::SequenceNotWritten { sequence, next, .. } => raise(
            "SequenceNotWritten",
            text,
            &[("sequence", (*sequence).into()), ("next", (*next).into())],
        ),
        ErrorKind::BadArgument { .. } => raise("BadArgument", text, &[]),
        ErrorKind::Forked => raise("Forked", text, &[]),
    }
}
