//! What a handler reaches through its context: its outputs, the log, the clock.
//!
//! Lives in a box of its own, which the loop uses through a pointer: while a handler runs, it is the
//! handler that uses it, and the loop holds no reference.

use crate::error::Error;
use crate::hot::abi::Context;
use crate::hot::block::Placed;
use crate::hot::capture::Capture;
use crate::hot::log::LogWriter;
use crate::hot::meter::Page;
use crate::os::clock::Clock;
use crate::queue::segment::{RawRecord, Segment};
use crate::queue::writer::Writer;
use crate::sync::Arc;

/// Why an append failed.
#[derive(Debug)]
pub enum AppendError {
    /// The handler named an output that it does not have.
    NoSuchOutput { output: u32 },
    /// Type ids are 1 to 65,535.
    BadTypeId { output: u32, type_id: u32 },
    /// The queue refused.
    Refused { output: u32, error: Error },
}

/// The record that a batched handler is called with, to make an object of it that outlives the
/// call.
#[derive(Clone, Copy)]
pub(super) struct Current {
    pub raw: RawRecord,
    pub segment: *const Arc<Segment>,
}

/// The record that a batched handler is being called with.
///
/// # Safety
/// `context` is the one that the handler was called with, on the same thread, before that call
/// returns; and so long lives what is returned.
pub unsafe fn current<'a>(context: *mut Context) -> Option<(RawRecord, &'a Arc<Segment>)> {
    // SAFETY: the caller's promise. The loop holds no reference to its services while a handler
    // runs, and the segment is the fan-in's, which does not change meanwhile.
    unsafe {
        let current = (*(*context).services).current?;
        Some((current.raw, &*current.segment))
    }
}

/// What handlers reach through their context; see the module's header.
pub struct Services {
    pub outputs: Vec<Option<Writer>>,
    pub clock: Clock,
    /// Whether the handler has a clock, which then also times what it publishes.
    pub uses_clock: bool,
    pub append_error: Option<AppendError>,
    /// Takes what goes to outputs without a writer, under replay.
    pub capture: Option<Box<Capture>>,
    /// Set while a batched handler is called with a record.
    pub(super) current: Option<Current>,
    log: LogWriter,
    page: Placed<Page>,
}

impl Services {
    pub fn new(outputs: usize, uses_clock: bool, log: LogWriter, page: Placed<Page>) -> Self {
        Self {
            outputs: std::iter::repeat_with(|| None).take(outputs).collect(),
            clock: Clock::new(),
            uses_clock,
            append_error: None,
            capture: None,
            current: None,
            log,
            page,
        }
    }

    /// See [`crate::hot::abi::chr_hot_append`].
    #[inline(always)]
    pub fn append(&mut self, output: u32, type_id: u32, payload: &[u8], now_ns: u64) -> i64 {
        let Some(place) = self.outputs.get_mut(output as usize) else {
            return self.refuse(AppendError::NoSuchOutput { output });
        };
        let Some(writer) = place else {
            return self.append_nowhere(output, type_id, payload, now_ns);
        };
        let type_id_word = type_id as u16;
        if type_id_word == 0 || u32::from(type_id_word) != type_id {
            return self.refuse(AppendError::BadTypeId { output, type_id });
        }
        match writer.append(type_id_word, payload, self.uses_clock.then_some(now_ns)) {
            Ok(sequence) => {
                self.page.appends.add(1);
                sequence as i64
            }
            Err(error) => self.refuse(AppendError::Refused { output, error }),
        }
    }

    #[cold]
    fn append_nowhere(&mut self, output: u32, type_id: u32, payload: &[u8], now_ns: u64) -> i64 {
        let Some(capture) = self.capture.as_mut().filter(|c| c.takes(output)) else {
            self.page.appends_dropped.add(1);
            return 0;
        };
        match u16::try_from(type_id) {
            Ok(type_id) if type_id != 0 => {
                self.page.appends.add(1);
                capture.append(output, type_id, payload, now_ns) as i64
            }
            _ => self.refuse(AppendError::BadTypeId { output, type_id }),
        }
    }

    #[cold]
    fn refuse(&mut self, error: AppendError) -> i64 {
        self.append_error = Some(error);
        -1
    }

    /// See [`crate::hot::abi::chr_hot_log`].
    #[inline(always)]
    pub fn log(&mut self, site: u32, tags: u64, args: &[u64], now_ns: u64) {
        let ns = if self.uses_clock { now_ns } else { self.clock.now_ns() };
        self.log.push(ns, site, tags, args);
    }
}
