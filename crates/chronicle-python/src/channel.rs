//! `channel`: a bounded, lock-free channel of Python objects between threads of one process.

use crate::errors::raise;
use crate::waiting;
use chronicle_core::sync::{Arc, AtomicU32, Ordering};
use crossbeam_queue::ArrayQueue;
use pyo3::prelude::*;
use std::time::{Duration, Instant};

struct Shared {
    queue: ArrayQueue<Py<PyAny>>,
    receivers: AtomicU32,
}

/// Makes a channel for at most `capacity` objects.
///
/// Examples
/// --------
/// >>> import chronicle
/// >>> sender, receiver = chronicle.channel(16)
/// >>> sender.send({"limit": 5})
/// >>> receiver.try_recv()
/// {'limit': 5}
/// >>> receiver.try_recv() is None
/// True
#[pyfunction]
pub fn channel(capacity: usize) -> PyResult<(Sender, Receiver)> {
    if capacity == 0 || capacity > 1 << 24 {
        let text = format!("bad capacity: found={capacity} expected=1 to {}", 1 << 24);
        return Err(raise("BadArgument", text, &[]));
    }
    let shared =
        Arc::new(Shared { queue: ArrayQueue::new(capacity), receivers: AtomicU32::new(1) });
    Ok((Sender { shared: Arc::clone(&shared) }, Receiver { shared }))
}

/// The sending end. Any thread may use it.
///
/// Examples
/// --------
/// >>> import chronicle
/// >>> sender, receiver = chronicle.channel(1)
/// >>> sender.send("a")
/// >>> try:
/// ...     sender.send("b", timeout=0.001)
/// ... except chronicle.ChannelFull:
/// ...     print("full")
/// full
#[pyclass(frozen, module = "chronicle")]
pub struct Sender {
    shared: Arc<Shared>,
}

/// The receiving end. Any thread may use it.
///
/// Examples
/// --------
/// >>> import chronicle
/// >>> sender, receiver = chronicle.channel(2)
/// >>> sender.send("a"); sender.send("b")
/// >>> receiver.try_recv(), receiver.try_recv(), receiver.try_recv()
/// ('a', 'b', None)
#[pyclass(frozen, module = "chronicle")]
pub struct Receiver {
    shared: Arc<Shared>,
}

#[pymethods]
impl Sender {
    /// Sends an object; waits at most `timeout` seconds for room, by default not at all.
    #[pyo3(signature = (item, *, timeout = None))]
    fn send(&self, py: Python<'_>, item: Py<PyAny>, timeout: Option<f64>) -> PyResult<()> {
        let end = waiting::timeout(timeout)?.map(|t| Instant::now() + t);
        let mut item = item;
        loop {
            if self.shared.receivers.load(Ordering::Acquire) == 0 {
                let text = "the receiver of this channel is gone; nobody would read what is sent";
                return Err(raise("Closed", text.to_owned(), &[]));
            }
            item = match self.shared.queue.push(item) {
                Ok(()) => return Ok(()),
                Err(back) => back,
            };
            if end.is_none_or(|end| Instant::now() >= end) {
                let capacity = self.shared.queue.capacity();
                let text = format!(
                    "the channel is full: capacity={capacity}; the receiver is slow or stopped, send later or with a timeout"
                );
                return Err(raise("ChannelFull", text, &[("capacity", (capacity as u64).into())]));
            }
            py.detach(|| std::thread::sleep(Duration::from_micros(50)));
            py.check_signals()?;
        }
    }

    /// How many objects it can hold.
    #[getter]
    fn capacity(&self) -> usize {
        self.shared.queue.capacity()
    }

    fn __len__(&self) -> usize {
        self.shared.queue.len()
    }
}

#[pymethods]
impl Receiver {
    /// The oldest object, or `None`. Never waits.
    fn try_recv(&self) -> Option<Py<PyAny>> {
        self.shared.queue.pop()
    }

    /// How many objects it can hold.
    #[getter]
    fn capacity(&self) -> usize {
        self.shared.queue.capacity()
    }

    fn __len__(&self) -> usize {
        self.shared.queue.len()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.receivers.store(0, Ordering::Release);
    }
}
