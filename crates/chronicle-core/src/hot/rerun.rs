//! Runs a journal again: reads inputs, fetches their messages, feeds the handler, compares what it
//! publishes with what was published.
//!
//! It goes on until something comes up that the caller has to decide: a record of the caller's own
//! (head, source, output, final), a message that is not there any more, a difference. The caller
//! may then go on, or not. Queues are only read.

use crate::error::{Error, ErrorKind, GapReason, Result};
use crate::hot::abi::{HandlerTable, KIND_COMMAND, KIND_DATA, KIND_EVENT};
use crate::hot::capture::{Appended, Capture};
use crate::hot::failure::Failure;
use crate::hot::journal::*;
use crate::hot::replay::Replay;
use crate::queue::options::Start;
use crate::queue::reader::Reader;
use crate::queue::segment::RawRecord;
use std::collections::BTreeMap;

/// One message of an output, as it is or as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub type_id: u16,
    pub timestamp_ns: u64,
    pub payload: Vec<u8>,
}

/// Why a message cannot be given to the handler.
#[derive(Debug)]
pub enum Missing {
    /// The caller gave no reader for this source.
    NoReader,
    /// The queue ends before it.
    NotWritten,
    /// There is a message of this number, but another one.
    Other { type_id: u16, timestamp_ns: u64 },
    /// The queue says why.
    Refused(Error),
}

/// Why [`Rerun::run`] came back.
#[derive(Debug)]
pub enum Pause {
    /// As many records were read as was asked for.
    Enough,
    /// The journal has no more records.
    End,
    /// A record for the caller.
    Record { type_id: u16, sequence: u64, bytes: Vec<u8> },
    /// A record of the journal that cannot be true.
    Damaged { sequence: u64, why: &'static str },
    /// The input's message cannot be read; the input was not fed.
    Missing { input: Input, why: Missing },
    /// The handler published something else: what was published by the run that was written down
    /// (`None`: nothing any more), and now.
    Differs { output: u32, sequence: u64, expected: Option<Published>, found: Published },
    /// An output cannot be read; it is not compared any more.
    Unreadable { output: u32, error: Error },
    /// The handler failed on the last input.
    Failed(Failure),
}

/// What an output is compared with.
#[derive(Default)]
pub struct Compared {
    reader: Option<Reader>,
    /// Messages that were equal.
    pub equal: u64,
    /// Messages that could not be compared, because nobody has the ones before any more.
    pub skipped: u64,
    /// The last gap that was met: first missing, next, why.
    pub gap: Option<(u64, u64, GapReason)>,
}

/// See the module's header.
pub struct Rerun {
    replay: Replay,
    journal: Reader,
    sources: BTreeMap<u32, Reader>,
    /// By source, also of those that are gone: the event that tells so has the tag as well.
    tags: BTreeMap<u32, u32>,
    outputs: Vec<Compared>,
    /// Of what the last input has published, so many are compared.
    compared: usize,
    failed: Option<Failure>,
    inputs: [u64; KINDS_COUNT],
    last: Option<(u64, Input)>,
    payload: Vec<u8>,
}

/// Is what was published what is published now?
fn same(raw: &RawRecord, payload: &[u8], now: &Appended, published: &[u8]) -> bool {
    raw.sequence == now.sequence
        && raw.type_id == now.type_id
        && raw.timestamp_ns == now.timestamp_ns
        && payload == published
}

impl Rerun {
    /// The journal's reader stands where the run begins.
    pub fn new(
        table: HandlerTable,
        state: &[u8],
        counters: usize,
        outputs: usize,
        journal: Reader,
    ) -> Self {
        let mut replay =
            Replay::new(table, state, counters, (0..outputs).map(|_| None).collect(), 1);
        replay.set_capture(Capture::new(outputs));
        Self {
            replay,
            journal,
            sources: BTreeMap::new(),
            tags: BTreeMap::new(),
            outputs: (0..outputs).map(|_| Compared::default()).collect(),
            compared: 0,
            failed: None,
            inputs: [0; KINDS_COUNT],
            last: None,
            payload: Vec::new(),
        }
    }

    /// What a source stands for from now on.
    pub fn set_source(&mut self, source: u32, tag: u32, reader: Option<Reader>) {
        self.tags.insert(source, tag);
        match reader {
            Some(reader) => drop(self.sources.insert(source, reader)),
            None => drop(self.sources.remove(&source)),
        }
    }

    /// The output gives this number next (0: has no writer), and what it publishes is compared with
    /// what the reader reads. There must be such an output.
    pub fn set_output(&mut self, output: usize, next: u64, reader: Option<Reader>) {
        self.outputs[output].reader = reader;
        if let Some(capture) = self.replay.capture() {
            capture.set_next(output, next);
        }
    }

    /// Outputs that the handler has.
    pub fn outputs_count(&self) -> usize {
        self.outputs.len()
    }

    /// The output is not compared any more.
    pub fn leave_output(&mut self, output: usize) {
        if let Some(compared) = self.outputs.get_mut(output) {
            compared.reader = None;
        }
    }

    pub fn outputs(&self) -> &[Compared] {
        &self.outputs
    }

    /// The number that an output gives next; 0 without a writer.
    pub fn output_next(&mut self, output: usize) -> u64 {
        self.replay.capture().map_or(0, |capture| capture.next(output))
    }

    /// Inputs that were fed, by kind.
    pub fn inputs(&self) -> &[u64; KINDS_COUNT] {
        &self.inputs
    }

    /// The input that was fed last: its number in the journal, itself, its payload.
    pub fn last(&self) -> Option<(u64, Input, &[u8])> {
        self.last.map(|(sequence, input)| (sequence, input, &self.payload[..]))
    }

    pub fn state(&self) -> Vec<u8> {
        self.replay.shared.state.snapshot()
    }

    pub fn counters(&self) -> Vec<u64> {
        self.replay.shared.counters.iter().map(|c| c.get()).collect()
    }

    /// The type of the journal's next record.
    ///
    /// # Errors
    /// As [`Reader::peek`].
    pub fn peek(&mut self) -> Result<Option<u16>> {
        Ok(self.journal.peek()?.map(|raw| raw.type_id))
    }

    /// Goes on, over at most so many records.
    ///
    /// # Errors
    /// What the journal's reader says.
    pub fn run(&mut self, count_max: u64) -> Result<Pause> {
        if let Some(pause) = self.settle() {
            return Ok(pause);
        }
        for _ in 0..count_max {
            if let Some(pause) = self.step()? {
                return Ok(pause);
            }
        }
        Ok(Pause::Enough)
    }

    /// Compares what the last input has published, then tells whether it failed.
    fn settle(&mut self) -> Option<Pause> {
        self.compare().or_else(|| self.failed.take().map(Pause::Failed))
    }

    fn step(&mut self) -> Result<Option<Pause>> {
        let Some(record) = self.journal.next()? else { return Ok(Some(Pause::End)) };
        let (type_id, sequence) = (record.raw.type_id, record.raw.sequence);
        if !matches!(type_id, JOURNAL_INPUT | JOURNAL_COMMAND | JOURNAL_EVENT) {
            let bytes = record.payload().to_vec();
            return Ok(Some(Pause::Record { type_id, sequence, bytes }));
        }
        let damaged = |why| Ok(Some(Pause::Damaged { sequence, why }));
        let Some((input, rest)) = Input::read(record.payload()) else {
            return damaged("it is shorter than an input");
        };
        match type_id {
            JOURNAL_INPUT if !rest.is_empty() => return damaged("it is longer than an input"),
            JOURNAL_INPUT if matches!(input.kind, KIND_COMMAND | KIND_EVENT) => {
                return damaged("a command or event without its bytes");
            }
            JOURNAL_COMMAND if input.kind != KIND_COMMAND => return damaged("no command"),
            JOURNAL_EVENT if input.kind != KIND_EVENT => return damaged("no event"),
            _ if usize::from(input.kind) >= KINDS_COUNT => return damaged("no kind of input"),
            _ => {}
        }
        self.payload.clear();
        self.payload.extend_from_slice(rest);
        if input.kind == KIND_DATA
            && let Err(why) = self.fetch(&input)
        {
            return Ok(Some(Pause::Missing { input, why }));
        }
        self.inputs[usize::from(input.kind)] += 1;
        self.last = Some((sequence, input));
        let tag = self.tags.get(&input.source).copied().unwrap_or(0);
        self.failed = self.replay.feed(input, tag, &self.payload).err();
        Ok(self.settle())
    }

    /// Reads the input's message.
    fn fetch(&mut self, input: &Input) -> Result<(), Missing> {
        let reader = self.sources.get_mut(&input.source).ok_or(Missing::NoReader)?;
        if reader.next_sequence() != input.sequence {
            reader.seek(Start::Sequence(input.sequence)).map_err(|error| match error.kind() {
                ErrorKind::SequenceNotWritten { .. } => Missing::NotWritten,
                _ => Missing::Refused(error),
            })?;
        }
        let record = reader.next().map_err(Missing::Refused)?.ok_or(Missing::NotWritten)?;
        let (type_id, timestamp_ns) = (record.raw.type_id, record.raw.timestamp_ns);
        if (type_id, timestamp_ns) != (input.type_id, input.timestamp_ns)
            || record.raw.sequence != input.sequence
        {
            return Err(Missing::Other { type_id, timestamp_ns });
        }
        self.payload.extend_from_slice(record.payload());
        Ok(())
    }

    fn compare(&mut self) -> Option<Pause> {
        let capture = self.replay.capture()?;
        while let Some(now) = capture.records().get(self.compared) {
            self.compared += 1;
            let found = capture.payload(now);
            let pause = self.outputs[now.output as usize].compare(now, found);
            if pause.is_some() {
                return pause;
            }
        }
        capture.clear();
        self.compared = 0;
        None
    }
}

impl Compared {
    fn compare(&mut self, now: &Appended, published: &[u8]) -> Option<Pause> {
        let (output, sequence) = (now.output, now.sequence);
        let found = || Published {
            type_id: now.type_id,
            timestamp_ns: now.timestamp_ns,
            payload: published.to_vec(),
        };
        loop {
            let Some(reader) = self.reader.as_mut().filter(|r| r.next_sequence() <= sequence)
            else {
                self.skipped += 1;
                return None;
            };
            let expected = match reader.next() {
                Ok(Some(record)) if same(&record.raw, record.payload(), now, published) => {
                    self.equal += 1;
                    return None;
                }
                Ok(Some(record)) => Some(Published {
                    type_id: record.raw.type_id,
                    timestamp_ns: record.raw.timestamp_ns,
                    payload: record.payload().to_vec(),
                }),
                Ok(None) => None,
                Err(error) => {
                    if let ErrorKind::Gap { first_missing, next, reason, .. } = error.kind() {
                        self.gap = Some((*first_missing, *next, *reason));
                        continue;
                    }
                    self.reader = None;
                    return Some(Pause::Unreadable { output, error });
                }
            };
            return Some(Pause::Differs { output, sequence, expected, found: found() });
        }
    }
}
