//! Gives a handler inputs that were written down, outside of any hot thread.
//!
//! The handler runs on the caller's thread, with the clock of the journal; what it publishes goes
//! into ordinary writers. Nothing here knows where inputs come from.

use crate::hot::abi::*;
use crate::hot::block::Parts;
use crate::hot::capture::Capture;
use crate::hot::failure::{Cause, During, Failure};
use crate::hot::journal::*;
use crate::hot::log::{LogRecord, LogWriter};
use crate::hot::services::Services;
use crate::hot::shared::Shared;
use crate::queue::writer::Writer;
use crate::sync::Arc;
use rtrb::Consumer;

/// A handler under replay.
pub struct Replay {
    table: HandlerTable,
    context: Context,
    services: Box<Services>,
    pub shared: Arc<Shared>,
    pub logs: Consumer<LogRecord>,
}

// SAFETY: the context points into what the replay owns; nothing is tied to a thread.
unsafe impl Send for Replay {}

impl Replay {
    /// `outputs` are in the handler's order.
    pub fn new(
        table: HandlerTable,
        state: &[u8],
        counters: usize,
        outputs: Vec<Option<Writer>>,
        log_records: usize,
    ) -> Self {
        let shared = Arc::new(Shared::new(state, Parts::on_heap(counters)));
        let page = shared.page.clone();
        let (log, logs) = LogWriter::new(log_records, page.clone(), &mut Vec::new());
        let mut services = Box::new(Services::new(outputs.len(), true, log, page));
        services.outputs = outputs;
        let context = Context::new(&shared, std::ptr::null_mut());
        Self { table, context, services, shared, logs }
    }

    /// Gives one input to the handler; whether it took it. The tag is the source's, the payload is the record's, the
    /// command's or the event's.
    ///
    /// # Errors
    /// [`Failure`], as the hot thread's.
    pub fn feed(&mut self, input: Input, tag: u32, payload: &[u8]) -> Result<bool, Failure> {
        self.context.now_ns = input.now_ns;
        self.context.services = &raw mut *self.services;
        let message = Message {
            payload: payload.as_ptr(),
            len_bytes: payload.len() as u32,
            selector: Selector::new(input.kind, input.type_id),
            source: input.source,
            tag,
            sequence: input.sequence,
            timestamp_ns: input.timestamp_ns,
        };
        let context = &raw mut self.context;
        let hook = match input.kind {
            KIND_IDLE => Some((During::Idle, self.table.on_idle)),
            KIND_START => Some((During::Start, self.table.on_start)),
            KIND_STOP => Some((During::Stop, self.table.on_stop)),
            KIND_BATCH_BEGIN => Some((During::Batch, self.table.on_batch_begin)),
            KIND_BATCH_END => Some((During::Batch, self.table.on_batch_end)),
            _ => None,
        };
        let (during, returned) = if let Some((during, hook)) = hook {
            // SAFETY: here and below: the table's promise; context and message are valid for the
            // call, and nothing else uses what the context points at.
            (during, hook.map_or(UNHANDLED, |hook| unsafe { hook(context) }))
        } else {
            let during = match input.kind {
                KIND_DATA => During::Message,
                KIND_COMMAND => During::Command,
                _ => During::Event,
            };
            let returned = match self.table.on_message {
                // SAFETY: as above.
                Some(on_message) => unsafe { on_message(context, &message) },
                None => UNHANDLED,
            };
            (during, returned)
        };
        self.context.flags = 0;
        match returned {
            HANDLED => Ok(true),
            UNHANDLED => Ok(false),
            _ => Err(Failure {
                during,
                source: (input.source != NO_SOURCE).then_some(input.source),
                sequence: input.sequence,
                type_id: input.type_id,
                cause: Cause::Handler {
                    returned,
                    info: self.context.fail_info as usize,
                    code: self.context.fail_code,
                    append: self.services.append_error.take(),
                },
            }),
        }
    }

    /// Outputs without a writer are captured from now on.
    pub fn set_capture(&mut self, capture: Capture) {
        self.services.capture = Some(Box::new(capture));
    }

    pub fn capture(&mut self) -> Option<&mut Capture> {
        self.services.capture.as_deref_mut()
    }

    /// The outputs, in the handler's order.
    pub fn outputs(&self) -> &[Option<Writer>] {
        &self.services.outputs
    }

    /// The outputs, in the handler's order.
    pub fn into_outputs(self) -> Vec<Option<Writer>> {
        self.services.outputs
    }
}
