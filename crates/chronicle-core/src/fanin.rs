//! Many queues as one, merged by timestamp, in place.
//!
//! # How it works
//!
//! Each source has at most one *head*: the record that it would deliver next, looked at but not
//! moved past. The heads' keys stand in the leaves of a winner tree, one flat array in which each
//! inner node repeats the lesser of its two children: the root is the next message, and a change of
//! any leaf (a source that was idle, not only the last winner, as in a loser tree) costs one
//! comparison per level.
//!
//! The key is `(merge timestamp, source)`. The merge timestamp is the highest timestamp that the
//! source has shown, so that a source whose clock steps back stays sorted, and ties go to the lower
//! source.
//!
//! A source without a head is *idle*. Live mode looks at the idle ones again when no head is left
//! and after every `max(64, sources)` messages, so an idle source costs less than one load per
//! message; strict mode emits a head only if every idle source has already shown a later timestamp.
//!
//! One source alone is read without any of this.
//!
//! A fan-in that was made with a capacity holds all its memory from the start: adding, removing and
//! merging within it touch no heap, so that a hot thread may do all three.
//!
//! A source that fails counts as idle, and its error is handed out once per look. A look goes over
//! all idle sources even if some fail, so that no error keeps a message of another source from its
//! place in the order; further errors wait for the next calls.

use crate::error::{Error, ErrorKind, Result};
use crate::os::futex::WaitWord;
use crate::queue::reader::{Reader, Record};
use crate::queue::segment::RawRecord;
use crate::wait::{self, WaitStrategy, WaitTarget, Waited};
use std::collections::VecDeque;
use std::time::Duration;

/// A reader that a full fan-in gives back.
pub struct NoRoom(pub Reader);

/// What [`FanIn::arm`] has to say to who wants to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Armed {
    /// Do not sleep: there is something to deliver or to look at.
    Ready,
    /// Every source rings.
    All,
    /// Some cannot ring (queues on a read-only mount): sleep for a short time only.
    Some,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeMode {
    /// Never waits for an idle source.
    Live,
    /// Emits only what no source can still precede.
    Strict,
}

/// The order of messages: by timestamp, then by source; an absent head sorts last. One number, so
/// that a match of the tree needs no branch: which side wins cannot be predicted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u128);

const ABSENT: Key = Key(u128::MAX);

impl Key {
    #[inline(always)]
    fn new(timestamp: u64, source: u32) -> Self {
        Self(u128::from(timestamp) << 64 | u128::from(source))
    }

    #[inline(always)]
    fn source(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    fn is_present(self) -> bool {
        self != ABSENT
    }

    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        std::hint::select_unpredictable(other < self, other, self)
    }
}

/// In this order: what a message touches of its source stands in two lines.
#[repr(C, align(64))]
struct Source {
    head: Option<RawRecord>,
    /// Highest timestamp shown.
    watermark: u64,
    has_shown: bool,
    reader: Reader,
}

/// A message, by its source's number and its place.
pub(crate) struct Delivered {
    pub number: usize,
    pub raw: RawRecord,
    /// `raw.len` bytes, mapped as long as the source's reader stays in this segment.
    pub payload: *const u8,
}

impl Delivered {
    #[inline(always)]
    fn new(number: u32, raw: RawRecord, reader: &Reader) -> Self {
        Self { number: number as usize, raw, payload: reader.payload_at(&raw) }
    }

    /// The same, but out of memory: copied whole, it would be kept there by whoever takes it, and
    /// so would every message of a source that is alone.
    #[inline(always)]
    fn by_fields(self) -> Self {
        let RawRecord { offset, len, sequence, timestamp_ns, type_id, flags } = self.raw;
        let raw = RawRecord { offset, len, sequence, timestamp_ns, type_id, flags };
        Self { number: self.number, raw, payload: self.payload }
    }
}

/// Merges any number of readers that it owns.
pub struct FanIn {
    mode: MergeMode,
    sources: Vec<Option<Source>>,
    /// Sources that there is room for.
    sources_max: usize,
    /// The winner tree: node `n` has the children `2n` and `2n + 1`, the leaf of source `s` is
    /// `leaves + s`, the root is 1. As long as the highest capacity needs; what lies behind
    /// `2 * leaves` is not in use.
    tree: Vec<Key>,
    /// A power of two, no larger than the sources need.
    leaves: usize,
    idle: Vec<u32>,
    /// The source whose head was delivered and must be replaced before anything else.
    delivered: Option<u32>,
    until_idle_check: usize,
    /// Errors of the last look at the idle sources that were not handed out yet.
    failed: VecDeque<(u32, Error)>,
    /// A source has reported a gap since the last look: its next message is there and may come
    /// before all others.
    gap_reported: bool,
    active: usize,
    /// The number of the source that is alone, with nothing looked at but not delivered; or
    /// [`NONE`].
    only: u32,
}

/// No source.
const NONE: u32 = u32::MAX;

impl FanIn {
    /// A fan-in that grows with its sources.
    pub fn new(mode: MergeMode) -> Self {
        Self::with_capacity(mode, 0)
    }

    /// A fan-in with room for `sources_max` sources. Within that, only [`FanIn::wait`] allocates,
    /// and what makes an error.
    pub fn with_capacity(mode: MergeMode, sources_max: usize) -> Self {
        let mut fan = Self {
            mode,
            sources: Vec::new(),
            sources_max: 0,
            tree: Vec::new(),
            leaves: 1,
            idle: Vec::new(),
            delivered: None,
            until_idle_check: 0,
            failed: VecDeque::new(),
            gap_reported: false,
            active: 0,
            only: NONE,
        };
        fan.reserve(sources_max);
        fan
    }

    /// Makes room for `sources_max` sources in all.
    fn reserve(&mut self, sources_max: usize) {
        let more = |len: usize| sources_max.saturating_sub(len);
        self.sources.reserve(more(self.sources.len()));
        self.idle.reserve(more(self.idle.len()));
        self.failed.reserve(more(self.failed.len()));
        let nodes = 2 * sources_max.next_power_of_two();
        if self.tree.len() < nodes {
            self.tree.resize(nodes, ABSENT);
        }
        self.sources_max = self.sources_max.max(sources_max);
    }

    /// Adds a source; returns its number. Numbers of removed sources are used again. Allocates
    /// where the capacity is used up.
    pub fn add(&mut self, reader: Reader) -> usize {
        if self.active == self.sources_max {
            self.reserve((2 * self.sources_max).max(4));
        }
        let number = self.lowest_free();
        self.put(number, reader);
        number
    }

    /// Adds a source within the capacity, without touching the heap; gives the reader back if there
    /// is no room.
    ///
    /// # Errors
    /// [`NoRoom`], with the reader.
    #[allow(clippy::result_large_err)] // A box would have to be allocated.
    pub fn try_add(&mut self, reader: Reader) -> Result<usize, NoRoom> {
        if self.active == self.sources_max {
            return Err(NoRoom(reader));
        }
        let number = self.lowest_free();
        self.put(number, reader);
        Ok(number)
    }

    fn lowest_free(&self) -> usize {
        self.sources.iter().position(Option::is_none).unwrap_or(self.sources.len())
    }

    fn put(&mut self, number: usize, reader: Reader) {
        let source = Source { reader, head: None, watermark: 0, has_shown: false };
        if number == self.sources.len() {
            self.sources.push(Some(source));
        } else {
            self.sources[number] = Some(source);
        }
        self.active += 1;
        self.note_active();
        self.idle.push(number as u32);
        self.until_idle_check = 0;
    }

    /// Takes a source out and gives it back, placed before its first message that was not
    /// delivered.
    pub fn remove(&mut self, number: usize) -> Option<Reader> {
        let source = self.sources.get_mut(number)?.take()?;
        self.active -= 1;
        self.set_key(number as u32, ABSENT);
        self.idle.retain(|&i| i as usize != number);
        self.failed.retain(|&(i, _)| i as usize != number);
        if self.delivered == Some(number as u32) {
            self.delivered = None;
        }
        while self.sources.last().is_some_and(Option::is_none) {
            self.sources.pop();
        }
        self.note_active();
        Some(source.reader)
    }

    /// Puts the message that was delivered last back, as if it had not been: the source's reader
    /// stands before it again. Nothing if something else has happened since. The message is named by
    /// its place in the segment and its number.
    pub fn undeliver(&mut self, offset: usize, sequence: u64) {
        let Some(number) = self.delivered.take() else { return };
        if let Some(source) = self.sources[number as usize].as_mut() {
            source.reader.step_back(offset, sequence);
        }
        self.set_key(number, ABSENT);
        self.idle.push(number);
        self.until_idle_check = 0;
    }

    /// The next message and its source, or `None` if there is none that may be delivered now.
    ///
    /// # Errors
    /// As [`Reader::next`], with the number of the source that failed; the others go on at the next
    /// call.
    #[inline]
    #[allow(clippy::should_implement_trait)] // An iterator cannot lend records.
    pub fn next(&mut self) -> Result<Option<(usize, Record<'_>)>, (usize, Error)> {
        let Some(Delivered { number, raw, .. }) = self.next_in_place()? else { return Ok(None) };
        let source = self.sources.get(number).and_then(Option::as_ref);
        Ok(source.map(|source| (number, Record::new(raw, source.reader.segment()))))
    }

    /// As [`FanIn::next`], for who borrows nothing and looks up nothing.
    ///
    /// # Errors
    /// As [`FanIn::next`].
    #[inline(always)]
    pub(crate) fn next_in_place(&mut self) -> Result<Option<Delivered>, (usize, Error)> {
        if self.only != NONE {
            return self.next_of_one();
        }
        let next = self.next_of_many();
        if self.active == 1 {
            self.note_only();
        }
        Ok(next?.map(Delivered::by_fields))
    }

    /// With one source there is nothing to merge: its next record is the next message, and the tree
    /// is left alone.
    #[inline(always)]
    fn next_of_one(&mut self) -> Result<Option<Delivered>, (usize, Error)> {
        let number = self.only;
        let Some(source) = self.sources[number as usize].as_mut() else { return Ok(None) };
        debug_assert!(source.head.is_none() && self.failed.is_empty());
        let looked = source.reader.peek();
        let Ok(Some(raw)) = looked else {
            self.rest(number);
            return match looked {
                Err(error) => Err(self.report(number, error)),
                _ => Ok(None),
            };
        };
        source.reader.advance(&raw);
        source.watermark = source.watermark.max(raw.timestamp_ns);
        source.has_shown = true;
        if self.delivered.is_none() {
            self.idle.clear();
            self.delivered = Some(number);
        }
        Ok(Some(Delivered::new(number, raw, &source.reader)))
    }

    /// The source that is alone has nothing now: it is idle.
    #[inline(always)]
    fn rest(&mut self, number: u32) {
        if self.delivered.take().is_some() {
            self.set_key(number, ABSENT);
            self.idle.push(number);
        }
    }

    /// Out of line: what it returns is in memory, and would be there for one source as well.
    #[inline(never)]
    fn next_of_many(&mut self) -> Result<Option<Delivered>, (usize, Error)> {
        if let Some(number) = self.delivered.take() {
            self.refill(number)?;
        }
        let mut key = self.winner_key();
        if self.until_idle_check == 0 || !self.may_deliver(key) {
            self.check_idle()?;
            key = self.winner_key();
            if !self.may_deliver(key) {
                self.until_idle_check = 0;
                return Ok(None);
            }
        }
        self.until_idle_check -= 1;
        let number = key.source();
        let Some(source) = self.sources[number as usize].as_mut() else {
            return Ok(None);
        };
        let Some(head) = source.head.take() else {
            return Ok(None);
        };
        source.reader.advance(&head);
        self.delivered = Some(number);
        Ok(Some(Delivered::new(number, head, &source.reader)))
    }

    /// Commits, on every source, what was delivered and nothing more. Two stores per source.
    pub fn commit(&self) {
        for source in self.sources.iter().flatten() {
            source.reader.commit();
        }
    }

    /// Commits what was delivered of one source. Two stores; nothing if there is no such source.
    #[inline(always)]
    pub fn commit_source(&self, number: usize) {
        if let Some(Some(source)) = self.sources.get(number) {
            source.reader.commit();
        }
    }

    /// As [`Reader::check_owner`], for all sources.
    ///
    /// # Errors
    /// `Forked`.
    pub fn check_owner(&self) -> Result<()> {
        self.sources.iter().flatten().try_for_each(|source| source.reader.check_owner())
    }

    /// Waits until a source that may have something new has it. `Ready` at once if a message can be
    /// delivered now.
    pub fn wait(&mut self, strategy: WaitStrategy, timeout: Option<Duration>) -> Result<Waited> {
        wait::wait_any(&self.wait_targets(), strategy, timeout)
    }

    /// What to wait for: in strict mode only the sources that hold the merge up, otherwise all. One
    /// of them is ready if a message can be delivered now, or an error handed out.
    pub fn wait_targets(&mut self) -> Vec<WaitTarget> {
        // The key of the source that was delivered last is still in the tree, and that source is a
        // target, ready if it has more. If it has none, nothing that sorts after it is safe.
        let is_held_up = self.mode == MergeMode::Strict
            && (self.delivered.is_some() || !self.may_deliver(self.winner_key()));
        self.sources
            .iter_mut()
            .flatten()
            .filter(|s| !is_held_up || s.head.is_none())
            .map(|s| s.reader.wait_target())
            .collect()
    }

    /// Arms the doorbells of the sources that may have something new, and puts their words into
    /// `words`, which has room for all of them. The caller sleeps on them unless it is told not to.
    /// Touches no heap. P3.
    pub fn arm(&mut self, words: &mut Vec<WaitWord>) -> Armed {
        let is_held_up = self.mode == MergeMode::Strict && !self.may_deliver(self.winner_key());
        let can_deliver = !is_held_up && self.winner_key().is_present();
        if can_deliver || self.delivered.is_some() || !self.failed.is_empty() {
            return Armed::Ready;
        }
        let mut armed = Armed::All;
        for source in self.sources.iter_mut().flatten().filter(|s| s.head.is_none()) {
            if source.reader.can_be_rung() {
                words.push(source.reader.arm());
            } else {
                armed = Armed::Some;
            }
        }
        // Only now, behind the fences of all.
        let mut idle = self.sources.iter_mut().flatten().filter(|s| s.head.is_none());
        if idle.any(|s| s.reader.has_something()) { Armed::Ready } else { armed }
    }

    pub fn reader(&self, number: usize) -> Option<&Reader> {
        self.sources.get(number)?.as_ref().map(|s| &s.reader)
    }

    /// Numbers in use are below this.
    pub fn numbers_end(&self) -> usize {
        self.sources.len()
    }

    pub fn len(&self) -> usize {
        self.active
    }

    pub fn is_empty(&self) -> bool {
        self.active == 0
    }

    #[inline(always)]
    fn winner_key(&self) -> Key {
        self.tree[1]
    }

    /// Looks at a source's next record and puts its key into the tree.
    #[inline]
    fn refill(&mut self, number: u32) -> Result<(), (usize, Error)> {
        let looked = self.look(number);
        let key = *looked.as_ref().unwrap_or(&ABSENT);
        self.set_key(number, key);
        if !key.is_present() {
            self.idle.push(number);
        }
        looked.map(drop).map_err(|error| self.report(number, error))
    }

    #[inline]
    fn look(&mut self, number: u32) -> Result<Key> {
        let Some(source) = self.sources[number as usize].as_mut() else {
            return Ok(ABSENT);
        };
        source.head = source.reader.peek()?;
        Ok(match &source.head {
            Some(head) => {
                source.watermark = source.watermark.max(head.timestamp_ns);
                source.has_shown = true;
                // The record behind is looked at when this one is delivered. More sources are more
                // streams than a CPU follows by itself.
                source.reader.prefetch_behind(head);
                Key::new(source.watermark, number)
            }
            None => ABSENT,
        })
    }

    /// Looks at every idle source once, unless errors of the last look are still to be handed out.
    #[cold]
    fn check_idle(&mut self) -> Result<(), (usize, Error)> {
        if self.failed.is_empty() {
            self.look_at_idle();
        }
        self.until_idle_check = self.active.max(64);
        let Some((number, error)) = self.failed.pop_front() else {
            return Ok(());
        };
        let reported = self.report(number, error);
        if !self.failed.is_empty() || self.gap_reported {
            self.until_idle_check = 0;
        }
        Err(reported)
    }

    fn look_at_idle(&mut self) {
        self.gap_reported = false;
        let mut i = 0;
        while i < self.idle.len() {
            let number = self.idle[i];
            // Almost always nothing: one load of what the reader waits for says so, and nothing of
            // the source is written to. With hundreds of sources that is most of a look's cost.
            let source = self.sources[number as usize].as_ref();
            if !source.is_some_and(|source| source.reader.has_something()) {
                i += 1;
                continue;
            }
            match self.look(number) {
                Ok(key) if key.is_present() => {
                    self.idle.swap_remove(i);
                    self.set_key(number, key);
                    continue;
                }
                Ok(_) => {}
                Err(error) => self.failed.push_back((number, error)),
            }
            i += 1;
        }
    }

    /// A gap is over once it is reported: what follows it is looked at before anything later is
    /// delivered. Other errors stay, and do not hold up the other sources.
    #[cold]
    fn report(&mut self, number: u32, error: Error) -> (usize, Error) {
        if matches!(error.kind(), ErrorKind::Gap { .. }) {
            self.gap_reported = true;
            self.until_idle_check = 0;
        }
        (number as usize, error)
    }

    #[inline]
    fn may_deliver(&self, key: Key) -> bool {
        key.is_present() && (self.mode == MergeMode::Live || self.is_safe(key))
    }

    /// Whether no idle source can still show something that sorts before `key`.
    fn is_safe(&self, key: Key) -> bool {
        self.idle.iter().all(|&number| {
            self.sources[number as usize]
                .as_ref()
                .is_some_and(|source| source.has_shown && key < Key::new(source.watermark, number))
        })
    }

    /// Changes a leaf and plays its matches up to the root.
    #[inline]
    fn set_key(&mut self, number: u32, key: Key) {
        let mut node = self.leaves + number as usize;
        self.tree[node] = key;
        while node > 1 {
            node /= 2;
            self.tree[node] = self.tree[2 * node].lesser(self.tree[2 * node + 1]);
        }
    }

    /// After a source has come or gone.
    fn note_active(&mut self) {
        self.note_only();
        self.fit_tree();
    }

    /// A source is alone once nothing is left over from before: neither its own head, nor errors.
    #[cold]
    fn note_only(&mut self) {
        let mut sources = self.sources.iter().enumerate();
        self.only = match sources.find_map(|(number, source)| Some((number, source.as_ref()?))) {
            Some((number, source))
                if self.active == 1 && source.head.is_none() && self.failed.is_empty() =>
            {
                number as u32
            }
            _ => NONE,
        };
    }

    /// Gives the tree as many leaves as the sources need, and plays all matches.
    fn fit_tree(&mut self) {
        let leaves = self.sources.len().next_power_of_two();
        if leaves == self.leaves {
            return;
        }
        let kept = self.leaves.min(leaves);
        self.tree.copy_within(self.leaves..self.leaves + kept, leaves);
        self.tree[leaves + kept..2 * leaves].fill(ABSENT);
        for node in (1..leaves).rev() {
            self.tree[node] = self.tree[2 * node].lesser(self.tree[2 * node + 1]);
        }
        self.leaves = leaves;
    }
}
