//! The hot thread: a native loop that runs a compiled handler and does nothing else.
//!
//! # The idea
//!
//! A thread that must react in microseconds may not do anything whose time it does not know: enter
//! the kernel, allocate, take a lock, wait for an interpreter. So all of that is done by others (the
//! *sidecar*: ordinary threads), and the two sides meet only in bounded, lock-free channels, at
//! which neither ever waits for the other:
//!
//! | what | by what | if it is full |
//! |---|---|---|
//! | commands to the hot thread | a ring (`command`) | the sender is told |
//! | acks, and what comes back | a ring (`command`) | commands stay where they are |
//! | log records | a ring (`log`) | dropped and counted |
//! | status, histograms | words (`meter`) | |
//! | mapped segments, wake-ups | endpoints' slots (`queue::provision`) | the hot side waits by looking |
//!
//! Objects that move between the sides move whole: a reader is opened, mapped and placed by the
//! sidecar, travels in the command ring, is read by the hot thread alone, and travels back in the
//! ack ring, to be closed by the sidecar. The hot thread never frees what others have allocated.
//!
//! # The modules
//!
//! - [`abi`]: the C ABI between loop and handler; what compiled code may rely on.
//! - `services`: what a handler reaches through its context: outputs, log, clock.
//! - [`run`]: the loop. [`thread`]: starting it, stopping it, getting everything back.
//! - [`command`], [`log`], [`meter`], [`shared`]: the channels. [`block`]: where the counts live.
//! - [`journal`], [`replay`], [`rerun`], [`capture`]: every input written down, given to a handler
//!   once more, and what it publishes compared.
//! - [`guard`]: tells of every system call that the thread makes, or refuses it.
//! - [`heap`]: counts what the hot thread does with the heap. [`failure`]: why it ended.
//!
//! What the loop does in which order, what is committed when, and what handlers may do is said in
//! `docs/internals/hot-thread.md`.

pub mod abi;
pub mod block;
pub mod capture;
pub mod command;
pub mod failure;
pub mod guard;
pub mod heap;
pub mod journal;
pub mod log;
pub mod meter;
pub mod replay;
pub mod rerun;
pub mod run;
mod services;
pub mod shared;
pub mod thread;

pub use abi::HandlerTable;
pub use services::{AppendError, Services, current};
