//! The input journal: what the handler was given, in the order in which it was given it.
//!
//! The loop appends one record per input, before the handler sees it, to a queue of its own. The
//! payloads of messages are not copied: they are in their queues, which source records name. A
//! replay feeds the same inputs, with the same clock, to the same handler.
//!
//! ```text
//! HEAD     bytes of the caller: handler, initial state, sources, outputs
//! INPUT    Input                      a message, an idle call, start, stop
//! COMMAND  Input, then the command's bytes          (kind 1)
//! EVENT    Input, then the event's bytes            (kind 2)
//! SOURCE   Input, then bytes of the caller: which queue this source number now stands for
//! OUTPUT   Input, then bytes of the caller: which queue this output now writes to; none: no more
//! FINAL    Final, then the state, then the counters, then the outputs' next sequence numbers
//! ```
//!
//! All numbers are little-endian, as everything else on disk. A journal may hold several runs, one
//! behind the other; each begins with its head. One without a final record was cut off.

use crate::error::{Error, ErrorKind, Result};
use crate::hot::abi::{KIND_COMMAND, KIND_DATA, KIND_DATAGRAM, KIND_EVENT};
use crate::queue::writer::Writer;

pub const JOURNAL_HEAD: u16 = 65_101;
pub const JOURNAL_INPUT: u16 = 65_102;
pub const JOURNAL_COMMAND: u16 = 65_103;
pub const JOURNAL_EVENT: u16 = 65_104;
pub const JOURNAL_SOURCE: u16 = 65_105;
pub const JOURNAL_OUTPUT: u16 = 65_106;
pub const JOURNAL_FINAL: u16 = 65_107;

/// [`Input::kind`] besides those of [`crate::hot::abi`].
pub const KIND_IDLE: u16 = 3;
pub const KIND_START: u16 = 4;
pub const KIND_STOP: u16 = 5;
pub const KIND_BATCH_BEGIN: u16 = 6;
pub const KIND_BATCH_END: u16 = 7;
/// Kinds are below this.
pub const KINDS_COUNT: usize = 8;

// No number has two meanings: those of a journal are its places in this list, and that of a
// datagram, which is never written down, is none of them.
const _: () = {
    let kinds = [
        KIND_DATA,
        KIND_COMMAND,
        KIND_EVENT,
        KIND_IDLE,
        KIND_START,
        KIND_STOP,
        KIND_BATCH_BEGIN,
        KIND_BATCH_END,
    ];
    assert!(kinds.len() == KINDS_COUNT);
    let mut at = 0;
    while at < KINDS_COUNT {
        assert!(kinds[at] as usize == at);
        at += 1;
    }
    assert!(KIND_DATAGRAM as usize >= KINDS_COUNT);
};

/// Most bytes that a command may carry; what `about` may be as well. So much is kept ready.
pub const COMMAND_BYTES_MAX: usize = 64 * 1024;

/// One input of the handler.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Input {
    pub kind: u16,
    pub type_id: u16,
    /// Of an output record the output.
    pub source: u32,
    /// Of the message; of a command its ticket; of an output record the number that the writer
    /// before would have given next, 0 if there was none.
    pub sequence: u64,
    /// Of the record; of a command when it was sent.
    pub timestamp_ns: u64,
    /// The handler's clock in this call.
    pub now_ns: u64,
}

pub const INPUT_BYTES: usize = size_of::<Input>();
const _: () = assert!(INPUT_BYTES == 32);
const _: () = assert!(cfg!(target_endian = "little"));

/// The thread was stopped, or its handler asked for it. How a thread ended, in [`Final::ended`].
pub const ENDED_CLEAN: u32 = 0;
/// The handler failed on the last input.
pub const ENDED_HANDLER: u32 = 1;
/// An output refused what the handler published on the last input.
pub const ENDED_OUTPUT: u32 = 2;
/// Something else failed, between calls of the handler.
pub const ENDED_OTHER: u32 = 3;

/// How the thread ended, and the lengths of what follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Final {
    pub ended: u32,
    pub state_bytes: u32,
    pub counters: u32,
    pub outputs: u32,
}

pub const FINAL_BYTES: usize = size_of::<Final>();
const _: () = assert!(FINAL_BYTES == 16);

impl Input {
    /// Reads an input and what follows it; `None` if it is cut short.
    pub fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = bytes.split_first_chunk::<INPUT_BYTES>()?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&head[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let first = word(0);
        let input = Self {
            kind: first as u16,
            type_id: (first >> 16) as u16,
            source: (first >> 32) as u32,
            sequence: word(8),
            timestamp_ns: word(16),
            now_ns: word(24),
        };
        Some((input, rest))
    }

    pub fn to_bytes(self) -> [u8; INPUT_BYTES] {
        let mut bytes = [0; INPUT_BYTES];
        bytes[0..2].copy_from_slice(&self.kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.type_id.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.source.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.timestamp_ns.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.now_ns.to_le_bytes());
        bytes
    }
}

/// The journal of one hot thread, which owns its writer.
pub struct Journal {
    writer: Writer,
    /// Input and bytes, put together.
    scratch: Vec<u8>,
}

impl Journal {
    /// Begins with the head record.
    ///
    /// # Errors
    /// As [`Writer::append`], with the writer.
    pub fn begin(mut writer: Writer, head: &[u8]) -> Result<Self, Box<(Error, Writer)>> {
        match writer.append(JOURNAL_HEAD, head, None) {
            Ok(_) => writer.set_hot(true),
            Err(error) => return Err(Box::new((error, writer))),
        }
        let mut scratch = vec![0; INPUT_BYTES + COMMAND_BYTES_MAX];
        scratch.clear();
        Ok(Self { writer, scratch })
    }

    /// Writes an input that needs no bytes. No system call, no allocation.
    #[inline]
    pub fn input(&mut self, input: Input) -> Result<()> {
        self.writer.append(JOURNAL_INPUT, &input.to_bytes(), Some(input.now_ns)).map(drop)
    }

    /// Writes an input and its bytes, at most [`COMMAND_BYTES_MAX`].
    pub fn input_with(&mut self, type_id: u16, input: Input, bytes: &[u8]) -> Result<()> {
        if bytes.len() > COMMAND_BYTES_MAX {
            let (len_bytes, len_bytes_max) = (bytes.len(), COMMAND_BYTES_MAX);
            return Err(ErrorKind::TooLarge { len_bytes, len_bytes_max }.into());
        }
        self.scratch.clear();
        self.scratch.extend_from_slice(&input.to_bytes());
        self.scratch.extend_from_slice(bytes);
        self.writer.append(type_id, &self.scratch, Some(input.now_ns)).map(drop)
    }

    /// Writes the final record and gives the writer back. `outputs` are their next sequence
    /// numbers, 0 without a writer. Not for the hot thread: allocates.
    pub fn finish(
        mut self,
        ended: u32,
        state: &[u8],
        counters: &[u64],
        outputs: &[u64],
    ) -> (Writer, Result<()>) {
        let head = [ended, state.len() as u32, counters.len() as u32, outputs.len() as u32];
        let head = head.into_iter().flat_map(u32::to_le_bytes);
        let numbers = counters.iter().chain(outputs).copied().flat_map(u64::to_le_bytes);
        let bytes: Vec<u8> = head.chain(state.iter().copied()).chain(numbers).collect();
        let written = self.writer.append(JOURNAL_FINAL, &bytes, None).map(drop);
        (self.writer, written)
    }

    /// The writer, without a final record: nothing has happened.
    pub fn into_writer(self) -> Writer {
        self.writer
    }

    /// The writer is an ordinary one again.
    pub(crate) fn set_cold(&mut self) {
        self.writer.set_hot(false);
    }
}
