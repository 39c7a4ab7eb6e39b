//! The guard: every system call of a guarded thread is reported or refused, and nothing else about
//! the thread, the process or the call changes.
//!
//! SIGSYS is a matter of the whole process. Tests that need it in a certain state before the first
//! guard, or that end the process, run in child processes.

#[macro_use]
mod support;

mod calls;
mod processes;
mod refusals;
mod signals;
mod takeovers;
mod threads;
