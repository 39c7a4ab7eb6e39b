//! What can go wrong, as data. Messages say what failed, `name=value`, and what to do next.
//!
//! `Error` is one pointer, so that `Result`s on the hot path stay in registers; the box is only
//! allocated when something did go wrong.

use crate::os::packet;
use std::{fmt, io};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why messages are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// Retention deleted them, as its policy allows.
    Retention,
    /// Recovery after a power loss cut them off; their sequence numbers are used again.
    Cut,
    /// A segment file or a stretch of one is missing or damaged, and the reader was told to go past
    /// it.
    Damage,
}

impl GapReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Cut => "cut",
            Self::Damage => "damage",
        }
    }
}

#[derive(Debug)]
pub enum ErrorKind {
    Io { what: &'static str, path: String, source: io::Error },
    DiskFull { path: String, needed_bytes: u64 },
    WriterActive { path: String, pid: u32 },
    ReaderActive { path: String, name: String, pid: u32 },
    NotAQueue { path: String, why: String },
    Format { path: String, field: &'static str, found: String, expected: String },
    Corrupt { path: String, position: u64, why: String },
    Gap { path: String, name: String, first_missing: u64, next: u64, reason: GapReason },
    TooLarge { len_bytes: usize, len_bytes_max: usize },
    QueueFull { path: String, segments: u64, segments_max: u64 },
    QueueRemoved { path: String },
    SegmentMissing { path: String, index: u64 },
    SequenceNotWritten { path: String, sequence: u64, next: u64 },
    BadArgument { what: &'static str, found: String, expected: String },
    Network { what: &'static str, about: String, source: io::Error },
    Forked,
}

/// A boxed [`ErrorKind`].
pub struct Error(Box<ErrorKind>);

impl Error {
    pub fn kind(&self) -> &ErrorKind {
        &self.0
    }

    pub fn io(what: &'static str, path: impl Into<String>, source: io::Error) -> Self {
        ErrorKind::Io { what, path: path.into(), source }.into()
    }

    pub fn bad(what: &'static str, found: impl ToString, expected: impl ToString) -> Self {
        ErrorKind::BadArgument { what, found: found.to_string(), expected: expected.to_string() }
            .into()
    }

    pub fn network(what: &'static str, about: impl Into<String>, source: io::Error) -> Self {
        ErrorKind::Network { what, about: about.into(), source }.into()
    }

    /// The error number, if the kernel said no.
    pub fn errno(&self) -> Option<i32> {
        match self.kind() {
            ErrorKind::Io { source, .. } | ErrorKind::Network { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self.kind(), ErrorKind::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl From<ErrorKind> for Error {
    #[cold]
    fn from(kind: ErrorKind) -> Self {
        Self(Box::new(kind))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            ErrorKind::Io { what, path, source } => write!(f, "cannot {what} '{path}': {source}"),
            ErrorKind::DiskFull { path, needed_bytes } => write!(
                f,
                "no room to preallocate a segment of queue '{path}': needed_bytes={needed_bytes}; \
                 free some space or set a retention policy, then append again: nothing was lost"
            ),
            ErrorKind::WriterActive { path, pid } => write!(
                f,
                "queue '{path}' has a live writer: pid={pid}; a queue has one writer at a time, \
                 stop that process or publish to a queue of your own and merge with a fan-in"
            ),
            ErrorKind::ReaderActive { path, name, pid } => write!(
                f,
                "reader '{name}' of queue '{path}' is open already: pid={pid}; close it there, or give each reader a name of its own"
            ),
            ErrorKind::NotAQueue { path, why } => write!(
                f,
                "'{path}' is not a queue: {why}; check the path, or create it with open_publisher"
            ),
            ErrorKind::Format { path, field, found, expected } => write!(
                f,
                "'{path}' cannot be read by this version: {field}={found} expected={expected}; \
                 use the version that wrote it, or restore the file"
            ),
            ErrorKind::Corrupt { path, position, why } => write!(
                f,
                "queue '{path}' is damaged at position={position:#x}: {why}; \
                 `chronicle doctor` shows how far it reaches, `seek` goes past it"
            ),
            ErrorKind::Gap { path, name, first_missing, next, reason } => write!(
                f,
                "reader '{name}' of queue '{path}' missed messages: first_missing={first_missing} next={next} reason={}; {}",
                reason.as_str(),
                match reason {
                    GapReason::Retention => "raise the retention limit or commit more often",
                    GapReason::Cut =>
                        "they were lost with the power before they were flushed; flush more often or use checksums",
                    GapReason::Damage => "`chronicle doctor` shows what is damaged",
                }
            ),
            ErrorKind::TooLarge { len_bytes, len_bytes_max } => write!(
                f,
                "payload does not fit into a segment: len_bytes={len_bytes} len_bytes_max={len_bytes_max}; \
                 split it, or create the queue with larger segments"
            ),
            ErrorKind::QueueFull { path, segments, segments_max } => write!(
                f,
                "queue '{path}' holds as many segments as its table: segments={segments} segments_max={segments_max}; \
                 set a retention policy or create it with a larger segments_max"
            ),
            ErrorKind::QueueRemoved { path } => write!(
                f,
                "queue '{path}' was removed while it was open; close this object and open the queue that replaces it"
            ),
            ErrorKind::SegmentMissing { path, index } => write!(
                f,
                "queue '{path}' has lost a segment file: index={index}; it was not retention; \
                 restore the file, or `seek` to a later message"
            ),
            ErrorKind::SequenceNotWritten { path, sequence, next } => write!(
                f,
                "queue '{path}' has no message with that number yet: sequence={sequence} next={next}; \
                 seek to 'latest' to wait for new messages"
            ),
            ErrorKind::BadArgument { what, found, expected } => {
                write!(f, "bad {what}: found={found} expected={expected}")
            }
            ErrorKind::Network { what, about, source } => {
                write!(f, "cannot {what} '{about}': {source}; {}", packet::advice(source))
            }
            ErrorKind::Forked => write!(
                f,
                "this object belongs to the parent process; open queues and rings after fork(), not before"
            ),
        }
    }
}
