//! The loop. One turn: commands, then at most [`TURN_MESSAGES_MAX`] messages of the queues, and as
//! many datagrams of each ring; if there was nothing, the idle hook and the wait.
//!
//! Each message is committed as soon as its handler has returned, so what is committed is exactly
//! what was handled. A handler that fails ends the loop; the source of the message is put back
//! before it.
//!
//! # Borrowing
//! While a handler runs it uses [`Services`] through its context. The loop therefore holds those
//! through a pointer and makes references only between calls.

use crate::MergeMode;
use crate::fanin::{Armed, Delivered, FanIn, NoRoom};
use crate::hot::abi::*;
use crate::hot::block::Placed;
use crate::hot::command::{Ack, AckSender, Command, Times};
use crate::hot::failure::{Cause, During, Failure};
use crate::hot::guard::{Armed as Guarded, Guard};
use crate::hot::journal::{self, Input, Journal};
use crate::hot::meter::{self, Page, State};
use crate::hot::services::{Current, Services};
use crate::hot::shared::Shared;
use crate::os::clock::meter_ticks;
use crate::os::futex::{self, WaitWord};
use crate::os::seccomp;
use crate::packets::{Datagram, Next, Ring};
use crate::queue::reader::Reader;
use crate::queue::segment::RawRecord;
use crate::queue::writer::Writer;
use crate::sync::Arc;
use crate::wait::{LOOK, WaitStrategy};
use rtrb::Consumer;

mod commands;

/// Commands are looked at after so many messages at the latest.
pub const TURN_MESSAGES_MAX: u32 = 64;
/// With [`Meter::Loop`], one message of so many is timed.
const SAMPLE_EVERY: u32 = 64;
/// Under a journal, where each idle call is a record, the idle hook runs at most this often.
const JOURNAL_IDLE_NS: u64 = 1_000_000;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meter {
    Off,
    /// Every turn, and one message in 64.
    Loop,
    /// Every turn and every message.
    Full,
}

/// How a loop is to run.
#[derive(Clone, Copy, Debug)]
pub struct LoopOptions {
    pub wait: WaitStrategy,
    pub meter: Meter,
    pub mode: MergeMode,
    /// Whether handled messages are committed.
    pub commit: bool,
    pub sources_max: usize,
}

/// Where a source comes from and how long it took.
#[derive(Clone, Copy, Default)]
struct Origin {
    ticket: u64,
    /// The application's number for it.
    tag: u32,
    times: Times,
    awaits_first: bool,
}

pub(crate) struct Parts {
    pub table: HandlerTable,
    pub shared: Arc<Shared>,
    pub services: Services,
    pub commands: Consumer<Command>,
    pub acks: AckSender,
    pub rings: Vec<Ring>,
    pub journal: Option<Journal>,
    pub guard: Arc<Guard>,
}

pub(crate) struct Loop {
    context: Context,
    on_message: OnMessage,
    table: HandlerTable,
    /// Whether the clock is read before each call.
    reads_clock: bool,
    in_batch: bool,
    sample_every: u32,
    until_sample: u32,
    /// Sources of which the first message is still to be timed.
    awaiting_first: u32,
    asked_to_stop: bool,
    fan: FanIn,
    rings: Box<[Ring]>,
    options: LoopOptions,
    turn_ticks: u64,
    /// When the loop last had something to do; 0 while it has.
    idle_since: u64,
    spin_ticks: u64,
    idle_due_ns: u64,
    pub(crate) shared: Arc<Shared>,
    /// That of `shared`, one load nearer.
    page: Placed<Page>,
    commands: Consumer<Command>,
    commands_max: usize,
    acks: AckSender,
    origins: Box<[Origin]>,
    words: Vec<WaitWord>,
    journal: Option<Journal>,
    guard: Arc<Guard>,
    pub(crate) failure: Option<Failure>,
}

// SAFETY: the context points into boxes that the loop owns (services) or shares (state, counters);
// nothing is tied to a thread.
unsafe impl Send for Loop {}

/// The on_message of a table that has none.
/// # Safety
/// Called by the loop.
unsafe extern "C" fn not_for_me(_: *mut Context, _: *const Message) -> i32 {
    UNHANDLED
}

impl Loop {
    pub fn new(parts: Parts, options: LoopOptions) -> Self {
        let Parts { table, shared, services, commands, acks, rings, journal, guard } = parts;
        let sample_every = match options.meter {
            Meter::Off => 0,
            Meter::Loop => SAMPLE_EVERY,
            Meter::Full => 1,
        };
        let spin_ticks = match options.wait {
            WaitStrategy::Spin => u64::MAX,
            WaitStrategy::Hybrid { spin_ns } => meter::ticks_of(spin_ns),
            WaitStrategy::Sleep => 0,
        };
        let sources_max = options.sources_max;
        let context = Context::new(&shared, Box::into_raw(Box::new(services)));
        Self {
            context,
            on_message: table.on_message.unwrap_or(not_for_me),
            reads_clock: table.flags & TABLE_USES_CLOCK != 0 || journal.is_some(),
            table,
            in_batch: false,
            sample_every,
            until_sample: sample_every,
            awaiting_first: 0,
            asked_to_stop: false,
            fan: FanIn::with_capacity(options.mode, sources_max),
            rings: rings.into(),
            options,
            turn_ticks: 0,
            idle_since: 0,
            spin_ticks,
            idle_due_ns: 0,
            page: shared.page.clone(),
            shared,
            commands_max: commands.buffer().capacity(),
            commands,
            acks,
            origins: vec![Origin::default(); sources_max].into(),
            words: Vec::with_capacity(sources_max + 1),
            journal,
            guard,
            failure: None,
        }
    }

    /// Between calls of the handler only.
    #[inline(always)]
    pub fn services(&mut self) -> &mut Services {
        // SAFETY: from a box that we own; no handler runs, so nobody else uses it.
        unsafe { &mut *self.context.services }
    }

    /// Takes a source over before the loop starts; `Err` if there is no room.
    #[allow(clippy::result_large_err)] // The refused value comes back whole.
    pub fn add_first(&mut self, ticket: u64, tag: u32, reader: Reader) -> Result<u32, Reader> {
        let source = self.fan.try_add(reader).map_err(|NoRoom(reader)| reader)?;
        self.origins[source] = Origin { ticket, tag, ..Origin::default() };
        self.shared.page.sources.add(1);
        Ok(source as u32)
    }

    pub fn start(&mut self) {
        let result = self.call_hook(self.table.on_start, journal::KIND_START, During::Start);
        self.note(result);
    }

    /// Runs until it is asked to stop, or something fails.
    pub fn run(&mut self) {
        self.turn_ticks = meter_ticks();
        while self.failure.is_none() && !self.asked_to_stop && !self.page.must_stop() {
            let result = self.turn();
            self.note(result);
            if self.guard.must_stop() && self.failure.is_none() {
                self.failure = Some(Failure::of_loop(Cause::Guard));
            }
        }
    }

    /// The system calls of this thread are guarded from now on, until the result is dropped.
    pub fn arm(&mut self) -> Option<Guarded> {
        match self.guard.arm() {
            Ok(armed) => Some(armed),
            Err(error) => {
                let text = format!("the guard cannot be armed: {error}");
                self.failure = Some(Failure::of_loop(Cause::Refused(text)));
                None
            }
        }
    }

    /// After a clean run.
    pub fn stop(&mut self) {
        if self.failure.is_none() {
            let result = self.call_hook(self.table.on_stop, journal::KIND_STOP, During::Stop);
            self.note(result);
        }
    }

    #[inline(always)]
    fn note(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.failure = Some(failure);
        }
    }

    #[inline]
    fn turn(&mut self) -> Result<(), Failure> {
        self.page.turns.add(1);
        if self.sample_every != 0 {
            let now = meter_ticks();
            self.shared.loop_gap.record(now.saturating_sub(self.turn_ticks));
            self.turn_ticks = now;
        }
        let mut worked = false;
        if !self.commands.is_empty() || self.acks.is_behind() {
            worked = self.take_commands()? > 0;
        }
        let mut drained = self.drain_sources(&mut worked);
        if !self.rings.is_empty() && drained.is_ok() {
            drained = self.drain_rings(&mut worked);
        }
        if self.in_batch {
            self.end_batch()?;
        }
        drained?;
        if worked {
            self.idle_since = 0;
            return Ok(());
        }
        self.idle()
    }

    // --- Messages ---

    #[inline]
    fn drain_sources(&mut self, worked: &mut bool) -> Result<(), Failure> {
        for _ in 0..TURN_MESSAGES_MAX {
            let Delivered { number: source, raw, payload } = match self.fan.next_in_place() {
                Ok(Some(delivered)) => delivered,
                Ok(None) => return Ok(()),
                Err((source, error)) => {
                    *worked = true;
                    self.source_error(source as u32, error)?;
                    continue;
                }
            };
            *worked = true;
            let message = Message {
                payload,
                len_bytes: raw.len as u32,
                selector: Selector::new(KIND_DATA, raw.type_id),
                source: source as u32,
                tag: self.origins[source].tag,
                sequence: raw.sequence,
                timestamp_ns: raw.timestamp_ns,
            };
            let mut handled = Ok(());
            if self.table.flags & TABLE_BATCHED != 0 {
                handled = self.enter_batch_with(source, raw);
            }
            if let Err(failure) = handled.and_then(|()| self.data(&message)) {
                self.fan.undeliver(raw.offset, raw.sequence);
                return Err(failure);
            }
            self.page.messages.add(1);
            if self.options.commit {
                self.fan.commit_source(source);
            }
            if self.awaiting_first != 0 {
                self.note_first(source);
            }
            if self.asked_to_stop || self.page.must_stop() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Out of line: what it needs would take the registers from [`Loop::drain_sources`].
    #[inline(never)]
    fn drain_rings(&mut self, worked: &mut bool) -> Result<(), Failure> {
        for place in 0..self.rings.len() {
            for _ in 0..TURN_MESSAGES_MAX {
                if self.asked_to_stop || self.page.must_stop() {
                    return Ok(());
                }
                let datagram = match self.rings[place].peek() {
                    Next::Datagram(datagram) => datagram,
                    Next::Dropped => {
                        *worked = true;
                        continue;
                    }
                    Next::Empty => break,
                };
                *worked = true;
                self.datagram(place, &datagram)?;
                self.rings[place].release(&datagram);
                self.page.datagrams.add(1);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn datagram(&mut self, place: usize, datagram: &Datagram) -> Result<(), Failure> {
        if self.table.flags & TABLE_BATCHED != 0 {
            self.enter_batch(None)?;
        }
        let message = Message {
            payload: datagram.payload,
            len_bytes: datagram.len_bytes as u32,
            selector: Selector::new(KIND_DATAGRAM, datagram.line),
            source: place as u32,
            tag: 0,
            sequence: datagram.number,
            timestamp_ns: datagram.timestamp_ns,
        };
        self.data(&message)
    }

    #[inline(always)]
    fn data(&mut self, message: &Message) -> Result<(), Failure> {
        if self.reads_clock {
            self.prepare(message, During::Message)?;
        }
        let returned = self.call_timed(message);
        if self.is_plain(returned) {
            return Ok(());
        }
        self.unusual(returned, message, During::Message).map(drop)
    }

    /// Reads the clock, and writes the input into the journal if there is one.
    #[inline]
    fn prepare(&mut self, message: &Message, during: During) -> Result<(), Failure> {
        let now_ns = self.services().clock.now_ns();
        self.context.now_ns = now_ns;
        if let Some(journal) = &mut self.journal {
            let input = Input {
                kind: message.kind(),
                type_id: message.type_id(),
                source: message.source,
                sequence: message.sequence,
                timestamp_ns: message.timestamp_ns,
                now_ns,
            };
            let written = if message.kind() == KIND_DATA {
                journal.input(input)
            } else {
                let type_id = match message.kind() {
                    KIND_COMMAND => journal::JOURNAL_COMMAND,
                    _ => journal::JOURNAL_EVENT,
                };
                // SAFETY: commands and events point at bytes of ours for the length of the call.
                let bytes = unsafe { payload_of(message) };
                journal.input_with(type_id, input, bytes)
            };
            self.page.journal_records.add(1);
            written.map_err(|error| failure(message, during, Cause::Journal(error)))?;
        }
        Ok(())
    }

    /// Handled, and nothing else to look at: one branch for all three.
    #[inline(always)]
    fn is_plain(&self, returned: i32) -> bool {
        const { assert!(HANDLED == 0) };
        returned as u32 | self.context.flags | u32::from(self.guard.must_stop()) == 0
    }

    #[inline(always)]
    fn call_timed(&mut self, message: &Message) -> i32 {
        self.until_sample = self.until_sample.wrapping_sub(1);
        if self.until_sample != 0 {
            return self.call(message);
        }
        self.call_and_time(message)
    }

    #[inline(never)]
    fn call_and_time(&mut self, message: &Message) -> i32 {
        // Unmetered it is zero, which comes again after four billion messages.
        self.until_sample = self.sample_every;
        if self.sample_every == 0 {
            return self.call(message);
        }
        let before = meter_ticks();
        let returned = self.call(message);
        self.shared.handler_time.record(meter_ticks().saturating_sub(before));
        returned
    }

    #[inline(always)]
    fn call(&mut self, message: &Message) -> i32 {
        let context = &raw mut self.context;
        // SAFETY: the table's promise; context and message are valid for the call, and what the
        // context points at is not touched by us meanwhile.
        unsafe { (self.on_message)(context, message) }
    }

    /// Everything but "handled, nothing else": whether the handler took it.
    #[cold]
    fn unusual(
        &mut self,
        returned: i32,
        message: &Message,
        during: During,
    ) -> Result<bool, Failure> {
        if self.context.flags & CONTEXT_STOP != 0 {
            self.context.flags &= !CONTEXT_STOP;
            self.asked_to_stop = true;
        }
        if self.guard.must_stop() {
            return Err(failure(message, during, Cause::Guard));
        }
        match returned {
            HANDLED => Ok(true),
            UNHANDLED => {
                if message.kind() != KIND_EVENT {
                    self.page.unhandled.add(1);
                }
                Ok(false)
            }
            _ => {
                let cause = self.cause(returned);
                Err(failure(message, during, cause))
            }
        }
    }

    fn cause(&mut self, returned: i32) -> Cause {
        let append = self.services().append_error.take();
        let (info, code) = (self.context.fail_info as usize, self.context.fail_code);
        Cause::Handler { returned, info, code, append }
    }

    #[cold]
    fn note_first(&mut self, source: usize) {
        let origin = self.origins[source];
        if !origin.awaits_first {
            return;
        }
        let first_message_ns = self.services().clock.now_ns();
        let (ticket, times) = (origin.ticket, origin.times);
        let source_number = source as u32;
        let ack = Ack::FirstMessage { ticket, times, source: source_number, first_message_ns };
        if self.acks.try_tell(ack) {
            self.origins[source].awaits_first = false;
            self.awaiting_first -= 1;
        }
    }

    // --- Batches ---

    #[inline(never)]
    fn enter_batch_with(&mut self, source: usize, raw: RawRecord) -> Result<(), Failure> {
        let segment = self.fan.reader(source).map(|reader| std::ptr::from_ref(reader.segment()));
        self.enter_batch(segment.map(|segment| Current { raw, segment }))
    }

    #[inline]
    fn enter_batch(&mut self, current: Option<Current>) -> Result<(), Failure> {
        self.services().current = current;
        if !self.in_batch {
            self.in_batch = true;
            let hook = self.table.on_batch_begin;
            self.call_hook(hook, journal::KIND_BATCH_BEGIN, During::Batch)?;
        }
        Ok(())
    }

    fn end_batch(&mut self) -> Result<(), Failure> {
        self.in_batch = false;
        self.services().current = None;
        let hook = self.table.on_batch_end;
        let ended = self.call_hook(hook, journal::KIND_BATCH_END, During::Batch);
        if let Err(Failure { cause: Cause::Journal(_), .. }) = &ended {
            // Not called yet; it may hold something that others wait for.
            drop(self.plain_hook(hook, During::Batch));
        }
        ended
    }

    /// The last call of the handler, however the loop ended.
    pub fn end(&mut self) {
        if let Some(on_end) = self.table.on_end {
            let context = &raw mut self.context;
            // SAFETY: as in `call`.
            unsafe { on_end(context) };
        }
    }

    // --- Hooks ---

    fn call_hook(
        &mut self,
        hook: Option<OnHook>,
        kind: u16,
        during: During,
    ) -> Result<(), Failure> {
        if hook.is_none() {
            return Ok(());
        }
        if self.reads_clock {
            let now_ns = self.services().clock.now_ns();
            self.context.now_ns = now_ns;
            if let Some(journal) = &mut self.journal {
                let input = Input { kind, source: NO_SOURCE, now_ns, ..Input::default() };
                self.page.journal_records.add(1);
                let failed = |error| Failure { during, ..Failure::of_loop(Cause::Journal(error)) };
                journal.input(input).map_err(failed)?;
            }
        }
        self.plain_hook(hook, during)
    }

    fn plain_hook(&mut self, hook: Option<OnHook>, during: During) -> Result<(), Failure> {
        let Some(hook) = hook else { return Ok(()) };
        let context = &raw mut self.context;
        // SAFETY: as in `call`.
        let returned = unsafe { hook(context) };
        if returned == HANDLED && self.context.flags == 0 {
            return Ok(());
        }
        if self.context.flags & CONTEXT_STOP != 0 {
            self.context.flags &= !CONTEXT_STOP;
            self.asked_to_stop = true;
        }
        match returned {
            HANDLED | UNHANDLED => Ok(()),
            _ => {
                let cause = self.cause(returned);
                Err(Failure { during, ..Failure::of_loop(cause) })
            }
        }
    }

    // --- Nothing to do ---

    fn idle(&mut self) -> Result<(), Failure> {
        if let Some(hook) = self.table.on_idle {
            self.call_idle(hook)?;
        }
        match self.options.wait {
            WaitStrategy::Spin => {}
            WaitStrategy::Sleep => self.park(),
            WaitStrategy::Hybrid { .. } => {
                let now = meter_ticks();
                if self.idle_since == 0 {
                    self.idle_since = now;
                } else if now.saturating_sub(self.idle_since) >= self.spin_ticks {
                    self.park();
                }
                std::hint::spin_loop();
            }
        }
        Ok(())
    }

    fn call_idle(&mut self, hook: OnHook) -> Result<(), Failure> {
        if self.journal.is_some() {
            let now_ns = self.services().clock.now_ns();
            if now_ns < self.idle_due_ns {
                return Ok(());
            }
            self.idle_due_ns = now_ns + JOURNAL_IDLE_NS;
        }
        self.page.idles.add(1);
        self.call_hook(Some(hook), journal::KIND_IDLE, During::Idle)
    }

    /// Sleeps until something is there, or a second is over. P3.
    #[cold]
    fn park(&mut self) {
        self.words.clear();
        let armed = self.fan.arm(&mut self.words);
        let page = &self.page;
        self.words.push(page.arm());
        // With the ack ring full, commands stay where they are.
        let is_stuck = !self.acks.has_room();
        if armed == Armed::Ready || page.must_stop() || (!self.commands.is_empty() && !is_stuck) {
            return;
        }
        // A datagram rings nothing.
        let can_be_rung = armed == Armed::All && !is_stuck && self.rings.is_empty();
        let limit = if can_be_rung { LOOK } else { futex::PARK_NAP };
        page.parks.add(1);
        page.set_state(State::Parked);
        // Through the one instruction that the guard's filter lets pass.
        futex::park(&self.words, limit, seccomp::allowed_syscall);
        page.set_state(State::Running);
        // Sleep is no gap.
        self.turn_ticks = meter_ticks();
    }

    // --- The end ---

    /// Takes the loop apart. Not for the hot thread: allocates.
    pub fn into_ended(mut self: Box<Self>) -> Ended {
        let mut ended = Ended {
            readers: Vec::new(),
            writers: Vec::new(),
            rings: std::mem::take(&mut self.rings).into_vec(),
            commands: Vec::new(),
            acks: Vec::new(),
            journal: self.journal.take(),
            failure: self.failure.take(),
        };
        for source in 0..self.fan.numbers_end() {
            if let Some((origin, reader)) = self.take_source(source as u32) {
                ended.readers.push((origin.ticket, source as u32, reader));
            }
        }
        for (output, place) in self.services().outputs.iter_mut().enumerate() {
            ended.writers.extend(place.take().map(|writer| (output as u32, writer)));
        }
        while let Ok(command) = self.commands.pop() {
            ended.commands.push(command);
        }
        ended.acks.extend(self.acks.take_rest());
        ended.set_cold();
        ended
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` in `new`, and given to nobody who outlives us.
        drop(unsafe { Box::from_raw(self.context.services) });
    }
}

/// What a loop leaves behind.
#[derive(Default)]
pub struct Ended {
    /// The ticket each was added with, its number, the reader.
    pub readers: Vec<(u64, u32, Reader)>,
    pub writers: Vec<(u32, Writer)>,
    /// In the order that they were handed over in.
    pub rings: Vec<Ring>,
    /// Sent, but not taken any more.
    pub commands: Vec<Command>,
    /// Acks for which there was no room.
    pub acks: Vec<Ack>,
    pub journal: Option<Journal>,
    pub failure: Option<Failure>,
}

impl Ended {
    /// All readers and writers are ordinary ones again: what was kept mapped for them is let go.
    fn set_cold(&mut self) {
        self.readers.iter_mut().for_each(|(_, _, reader)| reader.set_hot(false));
        self.writers.iter_mut().for_each(|(_, writer)| writer.set_hot(false));
        self.journal.iter_mut().for_each(Journal::set_cold);
    }
}

/// # Safety
/// The message's payload is valid.
unsafe fn payload_of(message: &Message) -> &[u8] {
    if message.len_bytes == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(message.payload, message.len_bytes as usize) }
}

fn failure(message: &Message, during: During, cause: Cause) -> Failure {
    let source = (message.source != NO_SOURCE).then_some(message.source);
    Failure { during, source, sequence: message.sequence, type_id: message.type_id(), cause }
}
