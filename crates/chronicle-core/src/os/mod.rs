//! The only home of system calls. Each file wraps one family of them and turns errors into
//! [`crate::Error`].

pub mod clock;
pub mod fs;
pub mod futex;
pub mod link;
pub mod map;
pub mod packet;
pub mod process;
pub mod seccomp;
pub mod sigsys;
pub mod thread;
pub mod xdp;
