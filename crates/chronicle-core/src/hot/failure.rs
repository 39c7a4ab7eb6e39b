//! What ended a hot thread that was not asked to stop.

use crate::error::Error;
use crate::hot::journal::{ENDED_HANDLER, ENDED_OTHER, ENDED_OUTPUT};
use crate::hot::services::AppendError;

/// What the loop was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum During {
    Message,
    Command,
    Event,
    Idle,
    Start,
    Stop,
    Batch,
    /// Not in a call of the handler.
    Loop,
}

impl During {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Command => "command",
            Self::Event => "event",
            Self::Idle => "idle",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Batch => "batch",
            Self::Loop => "loop",
        }
    }
}

/// Why.
#[derive(Debug)]
pub enum Cause {
    /// The handler returned this. `info` and `code` are what it left in its context.
    Handler { returned: i32, info: usize, code: i64, append: Option<AppendError> },
    /// The journal could not be written, so the input was not given to the handler.
    Journal(Error),
    /// The thread made a system call that its guard forbids.
    Guard,
    /// The kernel refused what the thread asked for, and the caller insists.
    Refused(String),
    /// Code of the core panicked: a bug.
    Panic(String),
}

#[derive(Debug)]
pub struct Failure {
    pub during: During,
    pub source: Option<u32>,
    /// Of the message; of a command its ticket.
    pub sequence: u64,
    pub type_id: u16,
    pub cause: Cause,
}

impl Failure {
    /// As the journal's final record says it.
    pub fn ended(&self) -> u32 {
        match &self.cause {
            Cause::Handler { append: Some(AppendError::Refused { .. }), .. } => ENDED_OUTPUT,
            Cause::Handler { .. } => ENDED_HANDLER,
            _ => ENDED_OTHER,
        }
    }

    /// One that no input is to blame for.
    pub fn of_loop(cause: Cause) -> Self {
        Self { during: During::Loop, source: None, sequence: 0, type_id: 0, cause }
    }
}
