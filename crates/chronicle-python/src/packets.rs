//! `PacketRing`: a ring of datagrams that the kernel fills.

use crate::errors::{raise, to_py};
use crate::owned::Owned;
use chronicle_core::ErrorKind;
use chronicle_core::hot::abi::Message;
use chronicle_core::os::link::Questions;
use chronicle_core::os::process;
use chronicle_core::packets::control::{self, Backend, Control, Options};
use chronicle_core::packets::counters::Counters;
use chronicle_core::packets::lines::Lines;
use chronicle_core::packets::{Next, Ring, Shape};
use chronicle_core::sync::Arc;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Mutex, PoisonError};

/// One UDP datagram; its payload is a copy.
///
/// Examples
/// --------
/// >>> import chronicle
/// >>> [name for name in dir(chronicle.Datagram) if not name.startswith("_")]
/// ['line', 'number', 'payload', 'source', 'timestamp_ns']
#[pyclass(frozen, module = "chronicle")]
pub struct Datagram {
    payload: Py<PyBytes>,
    line: u16,
    timestamp_ns: u64,
    number: u64,
    source: Option<u32>,
}

impl Datagram {
    /// Of a message of the kind.
    ///
    /// # Safety
    /// The message's payload is valid.
    pub unsafe fn of_message(py: Python<'_>, message: &Message) -> Self {
        // SAFETY: the caller's promise; the ring gives a pointer for an empty payload as well.
        let payload =
            unsafe { std::slice::from_raw_parts(message.payload, message.len_bytes as usize) };
        Self {
            payload: PyBytes::new(py, payload).unbind(),
            line: message.type_id(),
            timestamp_ns: message.timestamp_ns,
            number: message.sequence,
            source: Some(message.source),
        }
    }
}

#[pymethods]
impl Datagram {
    /// The bytes behind the UDP header.
    #[getter]
    fn payload(&self, py: Python<'_>) -> Py<PyBytes> {
        self.payload.clone_ref(py)
    }

    /// Which of the ring's lines it came on.
    #[getter]
    fn line(&self) -> u16 {
        self.line
    }

    /// When the kernel got it, in nanoseconds since 1970 UTC.
    #[getter]
    fn timestamp_ns(&self) -> u64 {
        self.timestamp_ns
    }

    /// How many datagrams the ring has handed out, this one included.
    #[getter]
    fn number(&self) -> u64 {
        self.number
    }

    /// The place of the ring in the hot thread's `packets`; `None` when the ring was read by hand.
    #[getter]
    fn source(&self) -> Option<u32> {
        self.source
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!(
            "<Datagram number={} line={} timestamp_ns={} len={}>",
            self.number,
            self.line,
            self.timestamp_ns,
            self.payload.as_bytes(py).len()
        )
    }
}

/// A ring of datagrams. Python gives it its documentation.
#[pyclass(frozen, subclass, module = "chronicle._core")]
pub struct PacketRing {
    pub inner: Owned<Ring>,
    counters: Arc<Counters>,
    /// Held for short, native steps only, without the interpreter lock: so another thread may have
    /// had it when a child was forked, where it is never free again. `None` once it was closed.
    control: Mutex<Option<Control>>,
    fork_generation: u64,
}

/// What is behind an interface (its device's place on a bus, or `None`) and how many receive queues
/// it has; `None` if there is no interface of the name. Of the calling thread's network namespace.
#[pyfunction]
pub fn interface_facts(py: Python<'_>, name: String) -> PyResult<Option<(Option<String>, u32)>> {
    let facts = py.detach(|| Questions::open()?.facts(&name))?;
    Ok(facts.map(|facts| (facts.device, facts.receive_queues)))
}

fn closed() -> PyErr {
    raise("Closed", "this packet ring is closed; open a new one".to_owned(), &[])
}

#[pymethods]
impl PacketRing {
    #[new]
    #[pyo3(signature = (interface, lines, program, backend, shape, checksums))]
    fn new(
        py: Python<'_>,
        interface: String,
        lines: Vec<(u32, u16)>,
        program: Vec<u8>,
        backend: &str,
        shape: (usize, usize),
        checksums: bool,
    ) -> PyResult<Self> {
        let line = |(address, port)| SocketAddrV4::new(Ipv4Addr::from_bits(address), port);
        let lines = Lines::new(&lines.into_iter().map(line).collect::<Vec<_>>());
        let shape = Shape::new(shape.0, shape.1).map_err(to_py)?;
        let backend = match backend {
            "packet" => Backend::Packet,
            "xdp" => Backend::Xdp { native_only: false },
            "xdp-native" => Backend::Xdp { native_only: true },
            other => {
                let text = format!("bad backend: found='{other}' expected='packet' or 'xdp'");
                return Err(raise("BadArgument", text, &[]));
            }
        };
        let options = Options { backend, interface, lines, program, shape, verify: checksums };
        let (ring, control) = py.detach(|| control::open(options)).map_err(to_py)?;
        Ok(Self {
            counters: Arc::clone(ring.counters()),
            inner: Owned::new("packet ring", ring),
            control: Mutex::new(Some(control)),
            fork_generation: process::fork_generation(),
        })
    }

    /// The next datagram, or `None` if none was there. Frames without one are counted on the way,
    /// without the interpreter lock: they may be as many as the ring has.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Datagram>> {
        self.inner.with(py, |ring| {
            ring.check_owner().map_err(to_py)?;
            let mut found = ring.peek();
            if matches!(found, Next::Dropped) {
                py.detach(|| ring.skip_dropped());
                found = ring.peek();
            }
            // One more frame without a datagram has come meanwhile, like all behind it.
            let Next::Datagram(datagram) = found else { return Ok(None) };
            // SAFETY: the payload stays as it is until the release below.
            let payload =
                unsafe { std::slice::from_raw_parts(datagram.payload, datagram.len_bytes) };
            let made = Datagram {
                payload: PyBytes::new(py, payload).unbind(),
                line: datagram.line,
                timestamp_ns: datagram.timestamp_ns,
                number: datagram.number,
                source: None,
            };
            ring.release(&datagram);
            Ok(Some(made))
        })
    }

    /// Looks after the interface; gives `"up"`, `"down"` or `"absent"`.
    fn look(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.with_control(py, Control::look).map(control::State::as_str)
    }

    /// All counts by name, with the kernel's of this moment, and the last state of the interface.
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        // After the end the last counts stay.
        let state = match self.with_control(py, |control| {
            control.count_drops()?;
            Ok(control.state().as_str())
        }) {
            Ok(state) => state,
            Err(_) if !self.is_inherited() && py.detach(|| self.is_closed()) => "closed",
            Err(error) => return Err(error),
        };
        let out = PyDict::new(py);
        for (name, value) in self.counters.words() {
            out.set_item(name, value)?;
        }
        out.set_item("state", state)?;
        Ok(out)
    }

    /// Closes sockets and ring, unless another owner has the ring. Twice is fine.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.inner.close(py)?;
        // A forked child has nothing to close.
        if !self.is_inherited() && self.inner.owner(py)?.is_none() {
            py.detach(|| {
                if let Some(mut control) = self.lock().take() {
                    // The last ones, as far as they can be had.
                    let _ = control.count_drops();
                }
            });
        }
        Ok(())
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        self.inner.is_closed(py)
    }
}

impl PacketRing {
    fn is_inherited(&self) -> bool {
        self.fork_generation != process::fork_generation()
    }

    /// Not in a forked child.
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Control>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.lock().is_none()
    }

    fn with_control<R: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut Control) -> chronicle_core::Result<R> + Send,
    ) -> PyResult<R> {
        if self.is_inherited() {
            return Err(to_py(ErrorKind::Forked.into()));
        }
        py.detach(|| self.lock().as_mut().map(f)).ok_or_else(closed)?.map_err(to_py)
    }
}
