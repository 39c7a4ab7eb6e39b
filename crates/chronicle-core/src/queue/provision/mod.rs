//! The native worker that makes rolls free of system calls.
//!
//! Each writer and reader has an [`Endpoint`]: a slot with the next segment, mapped and prefaulted,
//! and slots for the mappings it has left behind. A [`Provisioner`] is one thread that fills the
//! one and empties the others. The hot side only exchanges pointers; where the worker is late it
//! does the work itself, or waits for it if it has begun, and counts that.
//!
//! # When both do the same work
//!
//! A writer that is faster than its worker would build each segment beside it, and both would take
//! twice as long. So one of them marks that it builds, and the other waits (an inline roll) or
//! comes back later (a worker).
//!
//! Workers and readers' rolls may still prepare the same segment. Whoever renames first has made
//! the file, the other opens it, and both mappings are good. What the worker then leaves in the
//! slot is not wanted any more; it takes it back itself, because it would keep the wanted segment
//! out and so make the next roll late as well. Everything else goes through slots (P5 in
//! [`crate::protocol`]).
//!
//! # Hot threads
//!
//! An endpoint of a hot thread never makes its owner do the work: at a roll the owner waits, by
//! looking, until the worker has the segment (it says so, and the worker comes at its next turn),
//! and helps itself only if the worker fails or goes. What the owner retires is *kept* mapped:
//! unmapping in the same process interrupts the owner's core (TLB shootdown). And the owner leaves
//! the system call that wakes sleeping readers to the worker (P9 to P11).
//!
//! - `endpoint`: where the two sides meet, and what each may do there.
//! - `worker`: the thread, its clients, and what it does for them besides.

mod endpoint;
mod worker;

pub use endpoint::{Building, Endpoint};
pub use worker::{Chores, Provisioner};

#[cfg(test)]
mod tests {
    use crate::os::process;
    use crate::queue::options::Options;
    use crate::queue::writer::Writer;
    use std::path::Path;

    /// Runs a test with the writer of a new queue, and where that is.
    pub fn with_queue(name: &str, test: impl FnOnce(&mut Writer, &Path)) {
        let name = format!("chronicle-provision-{}-{name}", process::pid());
        let path = std::env::temp_dir().join(name);
        let options = Options { segment_bytes: 1 << 16, segments_max: 64, ..Options::default() };
        test(&mut Writer::open(&path, &options).unwrap(), &path);
        std::fs::remove_dir_all(&path).unwrap();
    }
}
