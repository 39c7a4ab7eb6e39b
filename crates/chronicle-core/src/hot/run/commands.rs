//! What the loop does when it is told something: commands, and what becomes of its sources.

use super::{Loop, Origin};
use crate::fanin::NoRoom;
use crate::hot::abi::*;
use crate::hot::command::{Ack, Command, Refusal, Times, What};
use crate::hot::failure::{Cause, During, Failure};
use crate::hot::journal::{self, Input};
use crate::queue::reader::Reader;
use crate::queue::writer::Writer;
use crate::{Error, ErrorKind, GapReason};

impl Loop {
    /// Takes what was sent, as far as acks can be stored.
    #[cold]
    pub(super) fn take_commands(&mut self) -> Result<u32, Failure> {
        self.acks.catch_up();
        let mut taken = 0;
        while (taken as usize) < self.commands_max && self.acks.has_room() && !self.asked_to_stop {
            let Ok(command) = self.commands.pop() else { break };
            taken += 1;
            self.page.commands.add(1);
            self.execute(command)?;
        }
        Ok(taken)
    }

    fn execute(&mut self, command: Command) -> Result<(), Failure> {
        let Command { ticket, sent_ns, what } = command;
        let times = Times { sent_ns, taken_ns: self.services().clock.now_ns() };
        match what {
            What::Message { type_id, bytes } => self.command(ticket, times, type_id, bytes),
            What::AddReader { reader, tag, about } => {
                let origin = Origin { ticket, tag, times, awaits_first: true };
                self.add_reader(origin, reader, about)
            }
            What::RemoveReader { source } => self.remove_reader(ticket, times, source),
            What::AddWriter { output, writer, about } => {
                self.add_writer(ticket, times, output, writer, about)
            }
            What::RemoveWriter { output } => self.remove_writer(ticket, times, output),
            What::Stop => {
                self.asked_to_stop = true;
                Ok(())
            }
        }
    }

    fn add_writer(
        &mut self,
        ticket: u64,
        times: Times,
        output: u32,
        writer: Writer,
        about: Box<[u8]>,
    ) -> Result<(), Failure> {
        let Some(place) = self.services().outputs.get_mut(output as usize) else {
            let refusal = Refusal::NoSuchOutput { output };
            let what = What::AddWriter { output, writer, about };
            self.acks.send(Ack::Refused { ticket, times, refusal, what });
            return Ok(());
        };
        let old = place.replace(writer);
        let before = old.as_ref().map_or(0, Writer::next_sequence);
        let written = self.write_down(journal::JOURNAL_OUTPUT, output, before, times, &about);
        self.acks.send(Ack::WriterAdded { ticket, times, output, old, about });
        written
    }

    /// The output is one without a writer from now on: what goes there is counted.
    fn remove_writer(&mut self, ticket: u64, times: Times, output: u32) -> Result<(), Failure> {
        let place = self.services().outputs.get_mut(output as usize);
        let refusal = match &place {
            None => Refusal::NoSuchOutput { output },
            Some(_) => Refusal::NoWriter { output },
        };
        let Some(writer) = place.and_then(Option::take) else {
            let what = What::RemoveWriter { output };
            self.acks.send(Ack::Refused { ticket, times, refusal, what });
            return Ok(());
        };
        let before = writer.next_sequence();
        // Without bytes behind it: no queue.
        let written = self.write_down(journal::JOURNAL_OUTPUT, output, before, times, &[]);
        self.acks.send(Ack::WriterRemoved { ticket, times, output, writer });
        written
    }

    fn command(
        &mut self,
        ticket: u64,
        times: Times,
        type_id: u16,
        bytes: Box<[u8]>,
    ) -> Result<(), Failure> {
        let message = Message {
            payload: bytes.as_ptr(),
            len_bytes: bytes.len() as u32,
            selector: Selector::new(KIND_COMMAND, type_id),
            source: NO_SOURCE,
            tag: 0,
            sequence: ticket,
            timestamp_ns: times.sent_ns,
        };
        let result = self.give(&message, During::Command);
        let handled = *result.as_ref().unwrap_or(&false);
        self.acks.send(Ack::Done { ticket, times, handled, bytes });
        result.map(drop)
    }

    /// Gives a command or an event to the handler; whether it took it.
    fn give(&mut self, message: &Message, during: During) -> Result<bool, Failure> {
        if self.reads_clock {
            self.prepare(message, during)?;
        }
        let returned = self.call(message);
        if self.is_plain(returned) {
            return Ok(true);
        }
        self.unusual(returned, message, during)
    }

    fn event(
        &mut self,
        type_id: u16,
        source: u32,
        tag: u32,
        bytes: &[u8],
    ) -> Result<bool, Failure> {
        self.page.events.add(1);
        // An event within a batch is no record of a queue.
        self.services().current = None;
        let message = Message {
            payload: bytes.as_ptr(),
            len_bytes: bytes.len() as u32,
            selector: Selector::new(KIND_EVENT, type_id),
            source,
            tag,
            sequence: 0,
            timestamp_ns: self.services().clock.now_ns(),
        };
        self.give(&message, During::Event)
    }

    /// Writes into the journal what a source or an output now stands for.
    fn write_down(
        &mut self,
        type_id: u16,
        number: u32,
        sequence: u64,
        times: Times,
        about: &[u8],
    ) -> Result<(), Failure> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        self.page.journal_records.add(1);
        let input = Input {
            kind: KIND_COMMAND,
            type_id: 0,
            source: number,
            sequence,
            timestamp_ns: times.sent_ns,
            now_ns: times.taken_ns,
        };
        let written = journal.input_with(type_id, input, about);
        written.map_err(|error| Failure::of_loop(Cause::Journal(error)))
    }

    fn add_reader(
        &mut self,
        origin: Origin,
        reader: Reader,
        about: Box<[u8]>,
    ) -> Result<(), Failure> {
        let Origin { ticket, tag, times, .. } = origin;
        let source = match self.fan.try_add(reader) {
            Ok(source) => source,
            Err(NoRoom(reader)) => {
                let refusal = Refusal::FanInFull { sources_max: self.options.sources_max };
                let what = What::AddReader { reader, tag, about };
                self.acks.send(Ack::Refused { ticket, times, refusal, what });
                return Ok(());
            }
        };
        self.origins[source] = origin;
        self.awaiting_first += 1;
        self.page.sources.add(1);
        let number = source as u32;
        let written = self.write_down(journal::JOURNAL_SOURCE, number, ticket, times, &about);
        self.acks.send(Ack::Added { ticket, times, source: number, about });
        written?;
        self.event(EVENT_SOURCE_ADDED, number, tag, &number.to_le_bytes()).map(drop)
    }

    fn remove_reader(&mut self, ticket: u64, times: Times, source: u32) -> Result<(), Failure> {
        let Some((origin, reader)) = self.take_source(source) else {
            let refusal = Refusal::NoSuchSource { source };
            let what = What::RemoveReader { source };
            self.acks.send(Ack::Refused { ticket, times, refusal, what });
            return Ok(());
        };
        let added = origin.ticket;
        self.acks.send(Ack::Removed { ticket, times, source, added, reader });
        self.tell_removed(source, origin.tag, REMOVED_ASKED)
    }

    /// Takes a source out.
    pub(super) fn take_source(&mut self, source: u32) -> Option<(Origin, Reader)> {
        let reader = self.fan.remove(source as usize)?;
        let origin = std::mem::take(&mut self.origins[source as usize]);
        self.awaiting_first -= u32::from(origin.awaits_first);
        self.page.sources.set(self.fan.len() as u64);
        Some((origin, reader))
    }

    fn tell_removed(&mut self, source: u32, tag: u32, reason: u32) -> Result<(), Failure> {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&source.to_le_bytes());
        bytes[4..].copy_from_slice(&reason.to_le_bytes());
        self.event(EVENT_SOURCE_REMOVED, source, tag, &bytes).map(drop)
    }

    /// A gap is told to the handler, and to the sidecar in any case; a source that fails otherwise
    /// goes back to the sidecar.
    #[cold]
    pub(super) fn source_error(&mut self, source: u32, error: Error) -> Result<(), Failure> {
        if let ErrorKind::Gap { first_missing, next, reason, .. } = error.kind() {
            let (first_missing, next, reason) = (*first_missing, *next, *reason);
            self.page.gaps.add(1);
            let code = match reason {
                GapReason::Retention => GAP_RETENTION,
                GapReason::Cut => GAP_CUT,
                GapReason::Damage => GAP_DAMAGE,
            };
            let mut bytes = [0; 24];
            bytes[..8].copy_from_slice(&first_missing.to_le_bytes());
            bytes[8..16].copy_from_slice(&next.to_le_bytes());
            bytes[16..20].copy_from_slice(&source.to_le_bytes());
            bytes[20..].copy_from_slice(&code.to_le_bytes());
            let tag = self.origins[source as usize].tag;
            let handled = self.event(EVENT_SOURCE_GAP, source, tag, &bytes);
            let was_handled = *handled.as_ref().unwrap_or(&false);
            let ack = Ack::Gap { source, first_missing, next, reason, handled: was_handled };
            if !self.acks.try_tell(ack) && !was_handled {
                self.page.gaps_unreported.add(1);
            }
            return handled.map(drop);
        }
        let Some((origin, reader)) = self.take_source(source) else { return Ok(()) };
        let added = origin.ticket;
        self.page.sources_failed.add(1);
        self.acks.send(Ack::SourceFailed { source, added, reader, error });
        self.tell_removed(source, origin.tag, REMOVED_FAILED)
    }
}
