//! Acks and failures of a hot thread, as plain Python values. `chronicle.hot.thread` gives them
//! their classes.

use crate::errors::{raise, to_py};
use chronicle_core::hot::AppendError;
use chronicle_core::hot::command::{Refusal, Times};
use chronicle_core::hot::failure::{Cause, Failure};
use chronicle_core::hot::journal::COMMAND_BYTES_MAX;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// A failure as a dict.
pub fn failure<'py>(py: Python<'py>, failure: Failure) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("during", failure.during.as_str())?;
    out.set_item("source", failure.source)?;
    out.set_item("seq", failure.sequence)?;
    out.set_item("type_id", failure.type_id)?;
    let (cause, text, returned, info, code, error) = match failure.cause {
        Cause::Handler { returned, info, code, append } => {
            let (text, error) = append.map_or((String::new(), None), of_append);
            ("handler", text, returned, info, code, error)
        }
        Cause::Journal(error) => {
            let text = format!("the journal cannot be written: {error}");
            ("journal", text, 0, 0, 0, Some(to_py(error)))
        }
        Cause::Guard => ("guard", String::new(), 0, 0, 0, None),
        Cause::Refused(text) => ("refused", text, 0, 0, 0, None),
        Cause::Panic(text) => ("panic", text, 0, 0, 0, None),
    };
    out.set_item("cause", cause)?;
    out.set_item("text", text)?;
    out.set_item("returned", returned)?;
    out.set_item("info", info)?;
    out.set_item("code", code)?;
    out.set_item("error", error.map(|error| error.into_value(py)))?;
    Ok(out)
}

fn of_append(error: AppendError) -> (String, Option<PyErr>) {
    match error {
        AppendError::NoSuchOutput { output } => {
            (format!("the handler appended to output={output}, which it does not have"), None)
        }
        AppendError::BadTypeId { output, type_id } => {
            let text = format!(
                "bad type_id: found={type_id} expected=1 to 65535; appended to output={output}"
            );
            (text, None)
        }
        AppendError::Refused { output, error } => {
            (format!("output={output} cannot be written: {error}"), Some(to_py(error)))
        }
    }
}

pub fn refusal(refusal: Refusal) -> String {
    match refusal {
        Refusal::FanInFull { sources_max } => format!(
            "this hot thread has as many sources as it can: sources_max={sources_max}; \
             remove one, or start it with more"
        ),
        Refusal::NoSuchSource { source } => {
            format!("this hot thread has no source={source}; sources are numbered by `Added`")
        }
        Refusal::NoWriter { output } => format!("output={output} has no writer"),
        Refusal::NoSuchOutput { output } => format!("this hot thread has no output={output}"),
    }
}

/// `(kind, ticket, sent_ns, taken_ns, *rest)`.
pub fn ack<'py>(
    py: Python<'py>,
    kind: &str,
    ticket: u64,
    times: Times,
    rest: Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyTuple>> {
    let head = (kind, ticket, times.sent_ns, times.taken_ns).into_pyobject(py)?;
    head.as_sequence().concat(rest.as_sequence())?.to_tuple()
}

/// Whether a command may be as long as that.
pub fn check_bytes(len_bytes: usize) -> PyResult<()> {
    if len_bytes <= COMMAND_BYTES_MAX {
        return Ok(());
    }
    let text = format!(
        "a command is too large: len_bytes={len_bytes} len_bytes_max={COMMAND_BYTES_MAX}; \
         send large data through a queue"
    );
    let fields = [
        ("len_bytes", (len_bytes as u64).into()),
        ("len_bytes_max", (COMMAND_BYTES_MAX as u64).into()),
    ];
    Err(raise("TooLarge", text, &fields))
}
