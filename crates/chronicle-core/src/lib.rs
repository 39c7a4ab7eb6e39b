//! Persisted single-writer, many-reader queues in memory-mapped files.
//!
//! This crate is the data plane: it knows nothing of Python. The modules stand in layers, lowest
//! first:
//!
//! - [`sync`]: the only home of atomics; loom's stand in for them under `cfg(loom)`.
//! - [`protocol`]: the lock-free protocols, each a few lines over atomics, model-checked on their
//!   own.
//! - `os`: the only home of system calls.
//! - `layout`: every byte on disk.
//! - `queue`: writer, reader, cursors, recovery, segments, retention, provisioner.
//! - `fanin`, `wait`: many queues as one, and sleeping without losing a wake-up.
//! - `packets`: rings of UDP datagrams that the kernel fills; `word`: numbers with one writer.
//! - `hot`: the hot thread: loop, commands, log ring, meter, the C ABI of handlers, the guard.
//!
//! Under `cfg(loom)` only the two lowest exist: loom's atomics cannot stand in mapped memory.

pub mod protocol;
pub mod sync;

#[cfg(not(loom))]
pub mod error;
#[cfg(not(loom))]
pub mod failpoint;
#[cfg(not(loom))]
pub mod fanin;
#[cfg(not(loom))]
pub mod hot;
#[cfg(not(loom))]
pub mod layout;
#[cfg(not(loom))]
pub mod os;
#[cfg(not(loom))]
pub mod packets;
#[cfg(not(loom))]
pub mod queue;
#[cfg(not(loom))]
pub mod wait;
#[cfg(not(loom))]
pub mod word;

#[cfg(not(loom))]
pub use error::{Error, ErrorKind, GapReason, Result};
#[cfg(not(loom))]
pub use fanin::{FanIn, MergeMode};
#[cfg(not(loom))]
pub use queue::{
    options::{Options, Start},
    provision::Provisioner,
    reader::{Reader, Record},
    retention::{RetentionPolicy, RetentionReport},
    writer::Writer,
};
