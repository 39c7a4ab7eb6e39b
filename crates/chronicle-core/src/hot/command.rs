//! Commands to a hot thread, and what it answers.
//!
//! Both ways are rings of the crate rtrb: one producer, one consumer, wait-free. Objects travel in
//! the ring itself and come back in an ack, so the hot thread neither allocates nor frees. A command
//! is taken only while the ack ring has room; acks that nobody asked for (a source that failed) wait
//! in an outbox that has room for as many as there can be.
//!
//! A sender rings the page's doorbell after it has pushed. That is wake elision as for queues (P2,
//! P3): rtrb's Release store of its tail is the commit, its Acquire load of it the last look.

use crate::error::{Error, GapReason};
use crate::hot::block::Placed;
use crate::hot::meter::Page;
use crate::hot::thread::Range;
use crate::queue::reader::Reader;
use crate::queue::writer::Writer;
use rtrb::{Consumer, Producer, RingBuffer};
use std::collections::VecDeque;

/// When a command was sent and taken: wall clock, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub sent_ns: u64,
    pub taken_ns: u64,
}

#[allow(clippy::large_enum_variant)] // A box would have to be freed by the hot thread.
pub enum What {
    /// A message for the handler.
    Message { type_id: u16, bytes: Box<[u8]> },
    /// Take this source over; its messages carry `tag`. `about` goes into the journal.
    AddReader { reader: Reader, tag: u32, about: Box<[u8]> },
    /// Give this source back.
    RemoveReader { source: u32 },
    /// Write to this output from now on. `about` goes into the journal.
    AddWriter { output: u32, writer: Writer, about: Box<[u8]> },
    /// Give the writer of this output back.
    RemoveWriter { output: u32 },
    /// Stop, once all before it is done.
    Stop,
}

pub struct Command {
    pub ticket: u64,
    pub sent_ns: u64,
    pub what: What,
}

/// Why a command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    FanInFull { sources_max: usize },
    NoSuchSource { source: u32 },
    NoSuchOutput { output: u32 },
    NoWriter { output: u32 },
}

#[allow(clippy::large_enum_variant)] // As for commands.
pub enum Ack {
    /// The handler has seen the message; `handled` unless it has no method for it.
    Done {
        ticket: u64,
        times: Times,
        handled: bool,
        bytes: Box<[u8]>,
    },
    Added {
        ticket: u64,
        times: Times,
        source: u32,
        about: Box<[u8]>,
    },
    /// The first message of a source that was added has been handled.
    FirstMessage {
        ticket: u64,
        times: Times,
        source: u32,
        first_message_ns: u64,
    },
    /// A source is given back. `added` is the ticket that it was added with.
    Removed {
        ticket: u64,
        times: Times,
        source: u32,
        added: u64,
        reader: Reader,
    },
    WriterAdded {
        ticket: u64,
        times: Times,
        output: u32,
        old: Option<Writer>,
        about: Box<[u8]>,
    },
    /// An output has no writer any more; this was it.
    WriterRemoved {
        ticket: u64,
        times: Times,
        output: u32,
        writer: Writer,
    },
    Refused {
        ticket: u64,
        times: Times,
        refusal: Refusal,
        what: What,
    },
    /// A source failed and was taken out.
    SourceFailed {
        source: u32,
        added: u64,
        reader: Reader,
        error: Error,
    },
    /// Messages of a source are gone; `handled` if the handler was told.
    Gap {
        source: u32,
        first_missing: u64,
        next: u64,
        reason: GapReason,
        handled: bool,
    },
}

/// The sidecar's end of the command ring. One thread at a time.
pub struct CommandSender {
    ring: Producer<Command>,
    page: Placed<Page>,
    capacity: usize,
}

impl CommandSender {
    /// Sends, or gives the command back if the ring is full. Wakes the hot thread if it sleeps.
    ///
    /// # Errors
    /// The command itself.
    #[allow(clippy::result_large_err)] // The refused value comes back whole.
    pub fn try_send(&mut self, command: Command) -> Result<(), Command> {
        match self.ring.push(command) {
            Ok(()) => {
                self.page.ring();
                Ok(())
            }
            Err(rtrb::PushError::Full(command)) => Err(command),
        }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

/// A ring of which every page has been touched, and whose memory is noted in `ranges`.
pub(crate) fn faulted_in<T>(
    capacity: usize,
    blank: impl Fn() -> T,
    ranges: &mut Vec<Range>,
) -> (Producer<T>, Consumer<T>) {
    let (mut ring, mut consumer) = RingBuffer::new(capacity);
    if let Ok(mut chunk) = ring.write_chunk_uninit(capacity) {
        let (all, _) = chunk.as_mut_slices();
        ranges.push(Range(all.as_ptr().cast(), size_of_val(all)));
    }
    while ring.push(blank()).is_ok() {}
    while consumer.pop().is_ok() {}
    (ring, consumer)
}

/// The command ring, all its memory faulted in and noted in `ranges`.
pub fn commands(
    capacity: usize,
    page: Placed<Page>,
    ranges: &mut Vec<Range>,
) -> (CommandSender, Consumer<Command>) {
    let blank = || Command { ticket: 0, sent_ns: 0, what: What::Stop };
    let (ring, consumer) = faulted_in(capacity, blank, ranges);
    (CommandSender { ring, page, capacity }, consumer)
}

/// The hot thread's end of the ack ring.
pub struct AckSender {
    ring: Producer<Ack>,
    /// What did not fit; room for `sources_max` sources that failed, and no more is put in.
    outbox: VecDeque<Ack>,
    outbox_max: usize,
}

/// The ack ring, all its memory faulted in and noted in `ranges`.
pub fn acks(
    capacity: usize,
    outbox_max: usize,
    ranges: &mut Vec<Range>,
) -> (AckSender, Consumer<Ack>) {
    let blank = || Ack::Gap {
        source: 0,
        first_missing: 0,
        next: 0,
        reason: GapReason::Retention,
        handled: true,
    };
    let (ring, consumer) = faulted_in(capacity, blank, ranges);
    let mut outbox = VecDeque::with_capacity(outbox_max);
    outbox.extend(std::iter::repeat_with(blank).take(outbox_max));
    outbox.clear();
    (AckSender { ring, outbox, outbox_max }, consumer)
}

impl AckSender {
    /// Whether the ack of one command can be stored.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.outbox.is_empty() && !self.ring.is_full()
    }

    /// Whether acks wait for room.
    #[inline(always)]
    pub fn is_behind(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Moves what waits into the ring, as far as there is room.
    pub fn catch_up(&mut self) {
        while let Some(ack) = self.outbox.pop_front() {
            if let Err(rtrb::PushError::Full(ack)) = self.ring.push(ack) {
                self.outbox.push_front(ack);
                return;
            }
        }
    }

    /// Stores an ack that carries something, or waits with it: the caller has made sure of room in
    /// the ring or in the outbox.
    pub fn send(&mut self, ack: Ack) {
        self.catch_up();
        if self.outbox.is_empty() {
            match self.ring.push(ack) {
                Ok(()) => {}
                Err(rtrb::PushError::Full(ack)) => self.outbox.push_back(ack),
            }
        } else {
            self.outbox.push_back(ack);
        }
    }

    /// Stores an ack that only tells something; `false` if there is no room. Leaves the outbox to
    /// those that carry something.
    pub fn try_tell(&mut self, ack: Ack) -> bool {
        self.catch_up();
        self.outbox.is_empty() && self.ring.push(ack).is_ok()
    }

    /// What still waits, when the loop is over.
    pub fn take_rest(&mut self) -> VecDeque<Ack> {
        debug_assert!(self.outbox.len() <= self.outbox_max);
        std::mem::take(&mut self.outbox)
    }
}
