//! Numbers that Python passes, checked so that a wrong one gets the error that says what is right.

use crate::errors::raise;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

/// A message's type id: 1 to 65_535. 0 is reserved.
#[derive(Clone, Copy)]
pub struct TypeId(pub u16);

/// Nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy)]
pub struct TimestampNs(pub u64);

impl<'a, 'py> FromPyObject<'a, 'py> for TypeId {
    type Error = PyErr;

    #[inline(always)]
    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<u16>() {
            Ok(id) if id != 0 => Ok(Self(id)),
            Ok(_) => Err(out_of_range("type_id", object, "1 to 65535; 0 is reserved")),
            Err(error) => Err(explain(error, "type_id", object, "1 to 65535")),
        }
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for TimestampNs {
    type Error = PyErr;

    #[inline(always)]
    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<u64>() {
            Ok(ns) => Ok(Self(ns)),
            Err(error) => Err(explain(error, "timestamp_ns", object, "0 to 2**64 - 1")),
        }
    }
}

#[cold]
fn explain(error: PyErr, what: &str, found: Borrowed<'_, '_, PyAny>, expected: &str) -> PyErr {
    // Something that is no number at all stays a TypeError.
    if error.is_instance_of::<PyTypeError>(found.py()) {
        return error;
    }
    out_of_range(what, found, expected)
}

#[cold]
fn out_of_range(what: &str, found: Borrowed<'_, '_, PyAny>, expected: &str) -> PyErr {
    let found = found.str().map_or_else(|_| "a number".to_owned(), |text| text.to_string());
    raise("BadArgument", format!("bad {what}: found={found} expected={expected}"), &[])
}
