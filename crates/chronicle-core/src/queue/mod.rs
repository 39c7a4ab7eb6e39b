//! One queue: a directory, its writer, its readers.
//!
//! - `options`: what a queue is created with, and where a reader starts.
//! - `dir`: the directory, its control block and its segment table.
//! - `segment`: one segment file: create, publish, open, check.
//! - `writer`, `recovery`, `durable`: the one writer, how it comes back, and what is on disk.
//! - `reader`, `seek`, `cursor`: readers, how they find their place, and how they keep it.
//! - `provision`: the native worker that makes rolls free of system calls.
//! - `retention`: deletes what nobody needs. `inspect`: looks without touching.

pub mod cursor;
pub mod dir;
pub mod durable;
pub mod inspect;
pub mod options;
pub mod provision;
pub mod reader;
pub mod recovery;
pub mod retention;
pub mod seek;
pub mod segment;
pub mod writer;
