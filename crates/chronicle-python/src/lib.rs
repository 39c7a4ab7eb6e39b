//! The native half of `chronicle`: PyO3 bindings of `chronicle-core`, and the one place where its
//! errors become Python's.
//!
//! Nothing is decided here. Objects are frozen classes around an [`owned::Owned`] cell, so they do
//! not rely on the interpreter lock and can be declared safe for free-threaded builds.

mod admin;
mod channel;
mod errors;
mod fanin;
mod floor;
mod guard;
mod hot;
mod hot_callable;
mod hot_convert;
mod hot_replay;
mod message;
mod numbers;
mod owned;
mod packets;
mod provision;
mod reader;
mod waiting;
mod writer;

use chronicle_core::hot::heap::Counting;
use pyo3::prelude::*;
use std::alloc::System;

/// The system's allocator, counted on hot threads.
#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

/// Native core of chronicle. Private: import from `chronicle`.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use crate::{
        admin::{apply_retention, clock_ns, inspect, remove_reader, verify},
        channel::{Receiver, Sender, channel},
        fanin::FanInReader,
        floor::Floor,
        guard::GuardTrial,
        hot::{HotCore, counters_layout, hot_symbols},
        hot_replay::Replay,
        message::{Message, Run},
        packets::{Datagram, PacketRing, interface_facts},
        provision::Provisioner,
        reader::{Prefault, QueueReader},
        writer::QueueWriter,
    };
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("FORMAT_VERSION", chronicle_core::layout::FORMAT_VERSION)?;
        module.add("RECORD_HEADER_BYTES", chronicle_core::layout::RECORD_HEADER_BYTES)?;
        module.add("XDP_STAMP_BYTES", chronicle_core::packets::STAMP_BYTES)?;
        module.add("XDP_STAMP_MAGIC", chronicle_core::packets::STAMP_MAGIC)
    }
}
