//! The one writer of a queue.
//!
//! An append is a copy, one Release store and one fence; a roll is a handful of stores if a
//! provisioner has the next segment ready. Neither makes a system call nor touches the heap (unless
//! a reader sleeps and must be woken, or the roll is done inline, which is counted). The writer of a
//! hot thread leaves even that to its provisioner, if it has one.

use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::layout::*;
use crate::os::{clock, clock::Clock, fs, fs::ByteLock, futex, process};
use crate::protocol::{self, Strong};
use crate::queue::dir::{self, LOCK_BYTE_WRITER, LOCK_FILE, QueueDir};
use crate::queue::durable;
use crate::queue::options::Options;
use crate::queue::provision::{Building, Endpoint};
use crate::queue::recovery::{self, RecoveryReport};
use crate::queue::segment::Segment;
use crate::sync::{Arc, AtomicU32, Ordering, prefetch_read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Records of one call appear to readers in runs of at most this many bytes.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// The lines that a roll stores into are asked for once more this far before the end: what a
/// worker's look takes away in between is back then.
const NEAR_ROLL_BYTES: usize = 512;

/// What [`Writer::make_room`] and the roll in it take, about. More than that is other code.
const ROLL_CODE_BYTES: usize = 1152;

/// How long a hot writer waits for its provisioner at a roll. Longer than any busy machine keeps a
/// worker from running: under an enforcing guard the writer that helps itself is stopped.
const WORKER_PATIENCE_NS: u64 = if cfg!(test) { 20_000_000 } else { 30_000_000_000 };

/// Where the writer stands. Small and together: this is all that an append touches besides the
/// segment.
struct Head {
    base: *mut u8,
    /// Of the next record.
    offset: usize,
    limit: usize,
    /// Of the next record.
    sequence: u64,
    /// Offset at which the next index entry is due.
    index_due: usize,
    /// Offset from which on a record ends with [`Writer::look`].
    look_due: usize,
    /// Highest timestamp in this segment.
    timestamp_max: u64,
    flags: u16,
}

/// The exclusive writer. `Send`, not `Sync`: one thread at a time.
pub struct Writer {
    head: Head,
    clock: Clock,
    fork_generation: u64,
    /// Belongs to a hot thread.
    hot: bool,
    queue: Arc<QueueDir>,
    segment: Arc<Segment>,
    /// The next segment, taken from the endpoint shortly before the roll.
    next: Option<Arc<Segment>>,
    endpoint: Arc<Endpoint>,
    recovery: RecoveryReport,
    _lock: ByteLock,
}

// SAFETY: the raw base pointer belongs to `segment`, which moves along; nothing is tied to a
// thread.
unsafe impl Send for Writer {}

/// One record of a mixed batch, as offsets into a common buffer.
#[derive(Clone, Copy)]
pub struct MixedBatch<'a> {
    pub buffer: &'a [u8],
    pub offsets: &'a [u64],
    pub lengths: &'a [u32],
    pub type_ids: &'a [u16],
    /// One per record, or empty: then all carry the clock's time.
    pub timestamps_ns: &'a [u64],
}

impl Writer {
    /// Opens the queue for writing; creates it if it is not there, and recovers it if its last
    /// writer died.
    ///
    /// # Errors
    /// `WriterActive` if another writer lives; `DiskFull` if no segment can be allocated; `Format`
    /// for files of another version or kind. `options` other than the defaults are ignored for a
    /// queue that exists.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let queue = Arc::new(QueueDir::open_or_create(path, options)?);
        if !queue.is_writable() {
            return Err(Error::io("write to queue", queue.display(), fs::read_only()));
        }
        let lock = take_lock(&queue)?;
        // A roll stores into the table; its pages must not fault then.
        let table = queue.table_map();
        let table_bytes = table.len() as u64;
        table.populate().map_err(|e| dir::full_or(e, &queue.root, dir::TABLE_FILE, table_bytes))?;
        let tail = recovery::recover(&queue)?;
        let control = queue.control();
        failpoint::hit("open.recovered");
        control.epoch.fetch_add(1, Ordering::AcqRel);
        failpoint::hit("open.epoch");
        let boot = process::boot_id();
        // Relaxed: read by the next writer only, behind the lock.
        control.boot_id[0].store(boot[0], Ordering::Relaxed);
        // Relaxed: as above.
        control.boot_id[1].store(boot[1], Ordering::Relaxed);
        failpoint::hit("open.boot_id");
        // Relaxed: for messages only.
        control.opened_ns.store(clock::wall_ns(), Ordering::Relaxed);
        // Before the first append, so that a control block with epoch zero, or with an epoch that
        // files set aside carry already, cannot turn up beside newer records after a power loss.
        durable::sync_control(&queue)?;
        failpoint::hit("open.synced");
        // The last writer may have died between a commit and its wake-up, or with the flag cleared
        // and nobody woken.
        ring_slowly(&control.doorbell);
        let head = Head {
            base: tail.segment.base(),
            offset: tail.offset,
            limit: queue.geometry.data_limit(),
            sequence: tail.next_sequence,
            index_due: tail.index_due,
            look_due: tail.index_due,
            timestamp_max: tail.timestamp_max,
            flags: if queue.has_checksums() { FLAG_CRC } else { 0 },
        };
        Ok(Self {
            head,
            clock: Clock::new(),
            fork_generation: process::fork_generation(),
            hot: false,
            endpoint: Arc::new(Endpoint::new(Arc::clone(&queue), true, tail.segment.index + 1)),
            segment: tail.segment,
            next: None,
            recovery: tail.report,
            queue,
            _lock: lock,
        })
    }

    /// Appends one record; returns its sequence number. `timestamp_ns` defaults to the wall clock.
    ///
    /// # Errors
    /// `TooLarge`; `DiskFull`, `QueueFull` or `QueueRemoved` at an inline roll. Nothing is written
    /// then and the call may be repeated.
    #[inline(always)]
    pub fn append(
        &mut self,
        type_id: u16,
        payload: &[u8],
        timestamp_ns: Option<u64>,
    ) -> Result<u64> {
        let stride = record_stride(payload.len());
        if self.head.offset + stride > self.head.limit
            || self.fork_generation != process::fork_generation()
        {
            self.make_room(payload.len())?;
        }
        let timestamp_ns = match timestamp_ns {
            Some(given) => given,
            None => self.clock.now_ns(),
        };
        // SAFETY: the record fits below the limit, and a payload of this length has a commit word
        // that is not ROLL.
        unsafe {
            self.head.fill(type_id, payload, timestamp_ns);
            failpoint::hit("append.filled");
            self.head.commit_word().store_len(payload.len());
        }
        failpoint::hit("append.committed");
        if self.head.offset >= self.head.look_due {
            self.look();
        }
        let sequence = self.head.sequence;
        self.head.step(stride, timestamp_ns);
        self.ring();
        Ok(sequence)
    }

    /// Appends `payloads.len() / len` records of `len` bytes each, with one fence per 256 KiB.
    /// Returns the first sequence number, which is the next one if there are no records.
    ///
    /// # Errors
    /// As [`Writer::append`]; records before the one that did not fit are published then, and
    /// [`Writer::next_sequence`] tells how many.
    pub fn append_many(
        &mut self,
        type_id: u16,
        payloads: &[u8],
        len: usize,
        timestamp_ns: Option<u64>,
    ) -> Result<u64> {
        let first = self.head.sequence;
        if len == 0 || !payloads.len().is_multiple_of(len) {
            return Err(Error::bad(
                "batch",
                payloads.len(),
                format!("a multiple of the record length {len} > 0"),
            ));
        }
        let timestamp_ns = timestamp_ns.unwrap_or_else(|| self.clock.now_ns());
        let mut run = Run::default();
        let filled = payloads
            .chunks_exact(len)
            .try_for_each(|payload| self.append_to_run(&mut run, type_id, payload, timestamp_ns));
        self.publish_run(&mut run);
        filled.map(|()| first)
    }

    /// Appends records of different types and sizes in order. See [`Writer::append_many`].
    ///
    /// # Errors
    /// As [`Writer::append_many`], and `BadArgument` if the columns differ in length or a record
    /// reaches out of the buffer; that is checked before anything is written.
    pub fn append_mixed(&mut self, batch: MixedBatch<'_>) -> Result<u64> {
        let first = self.head.sequence;
        batch.check(self.queue.geometry.payload_bytes_max())?;
        self.append_columns(&batch).map(|()| first)
    }

    /// Columns of one length. What they say is checked again as it is used: they may be another
    /// program's memory, which it changes meanwhile, and a panic would leave a hole in the queue.
    fn append_columns(&mut self, batch: &MixedBatch<'_>) -> Result<()> {
        let now_ns = self.clock.now_ns();
        let mut run = Run::default();
        let filled = (0..batch.offsets.len()).try_for_each(|i| {
            let timestamp_ns = batch.timestamps_ns.get(i).copied().unwrap_or(now_ns);
            self.append_to_run(&mut run, batch.type_ids[i], batch.payload(i)?, timestamp_ns)
        });
        self.publish_run(&mut run);
        filled
    }

    /// Writes a record whose commit readers cannot reach yet: the run's first commit word is still
    /// zero.
    #[inline]
    fn append_to_run(
        &mut self,
        run: &mut Run,
        type_id: u16,
        payload: &[u8],
        timestamp_ns: u64,
    ) -> Result<()> {
        let stride = record_stride(payload.len());
        let full = self.head.offset + stride > self.head.limit;
        if full
            || run.bytes + stride > BATCH_BYTES_MAX
            || self.fork_generation != process::fork_generation()
        {
            self.publish_run(run);
            if full || self.fork_generation != process::fork_generation() {
                self.make_room(payload.len())?;
            }
        }
        // SAFETY: the record fits below the limit, and a payload of this length has a commit word
        // that is not ROLL.
        unsafe {
            self.head.fill(type_id, payload, timestamp_ns);
            failpoint::hit("batch.filled");
            if run.bytes == 0 {
                run.first_offset = self.head.offset;
                run.first_len = payload.len();
            } else {
                self.head.commit_word().store_len(payload.len());
                failpoint::hit("batch.inner_commit");
            }
        }
        if self.head.offset >= self.head.index_due {
            run.note_index(&self.head);
        }
        self.head.step(stride, timestamp_ns);
        run.bytes += stride;
        Ok(())
    }

    /// Makes the run visible: one Release store for all of it. P1.
    fn publish_run(&mut self, run: &mut Run) {
        if run.bytes == 0 {
            return;
        }
        // SAFETY: the run's first record stands at `first_offset` of this segment.
        let word = unsafe { CommitWord::at(self.head.base, run.first_offset) };
        word.store_len(run.first_len);
        failpoint::hit("batch.committed");
        for entry in &run.entries[..run.entry_count] {
            self.head.index_due = write_index(&self.segment, entry);
        }
        if self.head.offset >= self.head.look_due {
            self.prepare_roll();
        }
        *run = Run::default();
        self.ring();
    }

    /// What is due once in a while, after the commit: indexes the record, prepares the roll.
    #[cold]
    #[inline(never)]
    fn look(&mut self) {
        if self.head.offset >= self.head.index_due {
            self.head.index_due = write_index(&self.segment, &self.head.index_note());
        }
        self.prepare_roll();
    }

    /// In the segment's last block, and again shortly before its end: takes the next segment, if
    /// the worker has it, and fetches the lines that the roll will store into. They were last
    /// touched by other cores, or never; fetched one after another at the roll they would make it
    /// several times as long as any other append.
    fn prepare_roll(&mut self) {
        let near_roll = self.head.limit - NEAR_ROLL_BYTES;
        self.head.look_due = match self.head.index_due {
            due if due < near_roll => due,
            _ if self.head.offset < near_roll => near_roll,
            _ => usize::MAX,
        };
        if self.head.offset + INDEX_BLOCK_BYTES < self.head.limit {
            return;
        }
        let index = self.segment.index + 1;
        if self.next.is_none() && self.endpoint.is_ready() {
            self.next = self.endpoint.take_ready(index);
        }
        if let Some(next) = &self.next {
            next.warm();
        }
        self.queue.prefetch_roll(index);
        self.endpoint.prefetch();
        prefetch_code(Self::make_room as *const (), ROLL_CODE_BYTES);
    }

    /// Wakes sleeping readers, if there are any. P2, P4.
    #[inline(always)]
    fn ring(&self) {
        if self.queue.control().doorbell.must_ring::<Strong>() {
            self.wake_sleepers();
        }
    }

    #[cold]
    #[inline(never)]
    fn wake_sleepers(&self) {
        let bell = &self.queue.control().doorbell;
        if self.hot {
            self.endpoint.ring_later(bell);
        } else {
            ring_slowly(bell);
        }
    }

    /// Makes the writer fit for a hot thread, or for others again: its provisioner makes the system
    /// calls that wake sleeping readers, it waits for that provisioner at rolls, and what it leaves
    /// behind stays mapped until it is let go.
    pub fn set_hot(&mut self, hot: bool) {
        self.hot = hot;
        self.endpoint.set_hot(hot);
    }

    /// Rolls, if the record would fit into any segment at all.
    #[cold]
    fn make_room(&mut self, payload_bytes: usize) -> Result<()> {
        if self.fork_generation != process::fork_generation() {
            return Err(ErrorKind::Forked.into());
        }
        let len_bytes_max = self.queue.geometry.payload_bytes_max();
        if payload_bytes > len_bytes_max {
            return Err(ErrorKind::TooLarge { len_bytes: payload_bytes, len_bytes_max }.into());
        }
        self.roll()
    }

    /// Goes on in the next segment. The order of the stores is what recovery relies on: the marker
    /// comes last.
    fn roll(&mut self) -> Result<()> {
        let index = self.segment.index + 1;
        let waited = !self.hot || self.next.is_some() || self.wait_for_worker();
        let taken = self.next.take().or_else(|| self.endpoint.take_ready(index));
        let is_inline = taken.is_none();
        let (next, building) = match taken {
            Some(next) => (next, None),
            None => self.prepare_inline(index, waited)?,
        };
        failpoint::hit("roll.taken");
        next.enter(self.head.sequence);
        failpoint::hit("roll.entered");
        self.queue.write_table_entry(index, self.head.sequence);
        failpoint::hit("roll.table");
        self.queue.seal_table_entry(self.segment.index, self.head.timestamp_max, self.head.offset);
        failpoint::hit("roll.sealed");
        let control = self.queue.control();
        control.tail_segment.store(index, Ordering::Release);
        failpoint::hit("roll.tail");
        // SAFETY: ROLL_RESERVE_BYTES are kept free behind the limit.
        let word = unsafe { CommitWord::at(self.head.base, self.head.offset) };
        word.store(COMMIT_ROLL);
        failpoint::hit("roll.marked");
        let counter = if is_inline { &control.rolls_inline } else { &control.rolls };
        // Relaxed: a counter for people.
        counter.fetch_add(1, Ordering::Relaxed);
        failpoint::hit("roll.counted");
        let old = std::mem::replace(&mut self.segment, next);
        self.endpoint.retire(old);
        self.endpoint.want(index + 1);
        drop(building);
        self.head.base = self.segment.base();
        self.head.offset = self.queue.geometry.data_offset();
        self.head.index_due = 0;
        self.head.look_due = 0;
        self.head.timestamp_max = 0;
        self.ring();
        Ok(())
    }

    /// Waits for the worker's segment, without a system call; `false` if the worker gives no sign
    /// of life. A worker that a debugger has stopped must not hold a hot thread for ever: that one
    /// then helps itself, and its guard tells of the system calls.
    #[cold]
    fn wait_for_worker(&self) -> bool {
        let patience = u128::from(WORKER_PATIENCE_NS) << 32;
        let patience = (patience / u128::from(clock::meter_ns_per_tick_q32())) as u64;
        let start = clock::meter_ticks();
        while self.endpoint.must_wait() {
            if clock::meter_ticks().wrapping_sub(start) > patience {
                self.endpoint.stop_waiting();
                return false;
            }
            std::hint::spin_loop();
        }
        true
    }

    /// Builds the next segment here, or takes the one that a worker is just building. Not if that
    /// worker has been waited for in vain.
    #[cold]
    fn prepare_inline(
        &self,
        index: u64,
        may_wait: bool,
    ) -> Result<(Arc<Segment>, Option<Building>)> {
        if self.queue.is_removed() {
            return Err(ErrorKind::QueueRemoved { path: self.queue.display() }.into());
        }
        if !may_wait {
            return Ok((Segment::prepare(&self.queue, index)?, None));
        }
        // While a worker is at it, a second segment would only make both late.
        let (building, built) = self.endpoint.build_alone(index);
        let segment = built.map_or_else(|| Segment::prepare(&self.queue, index), Ok)?;
        Ok((segment, Some(building)))
    }

    /// Whether this process opened the writer, and not the parent that it was forked from.
    ///
    /// # Errors
    /// `Forked`.
    pub fn check_owner(&self) -> Result<()> {
        if self.fork_generation == process::fork_generation() {
            return Ok(());
        }
        Err(ErrorKind::Forked.into())
    }

    /// Makes everything that was appended durable; returns the last durable sequence number. Blocks
    /// on the device.
    ///
    /// # Errors
    /// `Io` if the device reports one: nothing more is durable than before.
    pub fn flush(&mut self) -> Result<u64> {
        if self.fork_generation != process::fork_generation() {
            return Err(ErrorKind::Forked.into());
        }
        durable::flush_to(&self.queue, self.next_position(), self.head.sequence)?;
        Ok(self.head.sequence - 1)
    }

    /// The sequence number that the next record gets.
    #[inline]
    pub fn next_sequence(&self) -> u64 {
        self.head.sequence
    }

    /// The position of the next record.
    pub fn next_position(&self) -> u64 {
        self.queue.geometry.position(self.segment.index, self.head.offset)
    }

    /// Writers that ever opened this queue, this one included.
    pub fn epoch(&self) -> u64 {
        self.queue.control().epoch.load(Ordering::Acquire)
    }

    /// What was found when this writer opened the queue.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    pub fn queue(&self) -> &Arc<QueueDir> {
        &self.queue
    }

    /// Whether the next segment lies mapped and ready, so that the next roll makes no system call.
    pub fn is_provisioned(&self) -> bool {
        self.next.is_some() || self.endpoint.is_ready()
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.endpoint.close();
    }
}

fn take_lock(queue: &QueueDir) -> Result<ByteLock> {
    let file = queue.root.open_file(LOCK_FILE, true)?;
    let io = |e| Error::io("lock", queue.root.join(LOCK_FILE), e);
    match ByteLock::try_take(file, LOCK_BYTE_WRITER).map_err(io)? {
        Ok(lock) => {
            let pid = process::pid();
            let text = format!("{pid:<19}\n");
            match lock.file().write_all_at(text.as_bytes(), 0) {
                // For people; it must not keep a writer from opening that needs no more room.
                Err(e) if fs::is_full(&e) => {}
                written => written.map_err(io)?,
            }
            // Relaxed: for messages only.
            queue.control().writer_pid.store(pid, Ordering::Relaxed);
            Ok(lock)
        }
        Err(_) => {
            Err(ErrorKind::WriterActive { path: queue.display(), pid: queue.writer_pid() }.into())
        }
    }
}

#[cold]
#[inline(never)]
fn ring_slowly(bell: &protocol::Doorbell) {
    bell.ring::<Strong>();
    failpoint::hit("ring.moved");
    futex::wake_all(&bell.ring);
}

/// Asks for the code of a function, which last ran a segment ago.
fn prefetch_code(function: *const (), bytes: usize) {
    for line in (0..bytes).step_by(64) {
        prefetch_read(function.cast::<u8>().wrapping_add(line));
    }
}

/// A commit word of the segment that is being written.
struct CommitWord<'a>(&'a AtomicU32);

impl CommitWord<'_> {
    /// # Safety
    /// `offset` is 4-aligned and inside the mapping, which outlives the word.
    #[inline(always)]
    unsafe fn at<'a>(base: *mut u8, offset: usize) -> CommitWord<'a> {
        // SAFETY: the caller's promise.
        CommitWord(unsafe { &*base.add(offset).cast::<AtomicU32>() })
    }

    #[inline(always)]
    fn store(&self, value: u32) {
        protocol::commit::<Strong>(self.0, value);
    }

    #[inline(always)]
    fn store_len(&self, len: usize) {
        self.store(len as u32 + 1);
    }
}

impl Head {
    /// # Safety
    /// The offset is below the limit.
    #[inline(always)]
    unsafe fn commit_word(&self) -> CommitWord<'_> {
        // SAFETY: the caller's promise; the segment outlives the head.
        unsafe { CommitWord::at(self.base, self.offset) }
    }

    /// Writes all of a record but its commit word: the payload first, because a reader polls the
    /// header's line. Taken from it any earlier, that line would go back and forth while the
    /// others are fetched.
    ///
    /// # Safety
    /// The record fits below the limit.
    #[inline(always)]
    unsafe fn fill(&self, type_id: u16, payload: &[u8], timestamp_ns: u64) {
        let crc = if self.flags & FLAG_CRC == 0 {
            0
        } else {
            record_crc(type_id, self.flags, self.sequence, timestamp_ns, payload)
        };
        // SAFETY: in range by the caller's promise; no reader looks behind a commit word that is
        // zero, and we are the only writer.
        unsafe {
            let at = self.base.add(self.offset);
            std::ptr::copy_nonoverlapping(
                payload.as_ptr(),
                at.add(RECORD_HEADER_BYTES),
                payload.len(),
            );
            failpoint::hit("fill.payload");
            let header = at.cast::<RecordHeader>();
            (&raw mut (*header).type_id).write(type_id);
            (&raw mut (*header).flags).write(self.flags);
            (&raw mut (*header).sequence).write(self.sequence);
            failpoint::hit("fill.sequence");
            (&raw mut (*header).timestamp_ns).write(timestamp_ns);
            failpoint::hit("fill.timestamp");
            (&raw mut (*header).crc).write(crc);
            failpoint::hit("fill.header");
        }
    }

    /// Moves behind the record just filled.
    #[inline(always)]
    fn step(&mut self, stride: usize, timestamp_ns: u64) {
        self.offset += stride;
        self.sequence += 1;
        self.timestamp_max = self.timestamp_max.max(timestamp_ns);
    }

    fn index_note(&self) -> IndexNote {
        IndexNote {
            offset: self.offset,
            sequence: self.sequence,
            timestamp_max: self.timestamp_max,
        }
    }
}

/// An index entry that may be stored once its record is committed.
#[derive(Clone, Copy, Default)]
pub(super) struct IndexNote {
    pub offset: usize,
    pub sequence: u64,
    pub timestamp_max: u64,
}

/// Stores the entries of all blocks up to the record's that are still missing; returns the offset
/// at which the next is due.
#[cold]
#[inline(never)]
pub(super) fn write_index(segment: &Segment, note: &IndexNote) -> usize {
    let last = note.offset / INDEX_BLOCK_BYTES;
    // Walk back to the first missing one: a record larger than a block leaves several.
    let mut first = last;
    // Relaxed: the writer reads back its own stores.
    while first > 0 && segment.index_entry(first - 1).offset.load(Ordering::Relaxed) == 0 {
        first -= 1;
    }
    for block in first..=last {
        let entry = segment.index_entry(block);
        // Relaxed: published by the Release below.
        entry.sequence.store(note.sequence, Ordering::Relaxed);
        // Relaxed: published by the Release below.
        entry.timestamp_max.store(note.timestamp_max, Ordering::Relaxed);
        failpoint::hit("index.filled");
        entry.offset.store(note.offset as u64, Ordering::Release);
        failpoint::hit("index.stored");
    }
    (last + 1) * INDEX_BLOCK_BYTES
}

/// Records that are written but not yet visible.
struct Run {
    bytes: usize,
    first_offset: usize,
    first_len: usize,
    entry_count: usize,
    entries: [IndexNote; BATCH_BYTES_MAX / INDEX_BLOCK_BYTES + 2],
    index_due: usize,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            bytes: 0,
            first_offset: 0,
            first_len: 0,
            entry_count: 0,
            entries: [IndexNote::default(); BATCH_BYTES_MAX / INDEX_BLOCK_BYTES + 2],
            index_due: 0,
        }
    }
}

impl Run {
    /// Keeps the entry for [`Writer::publish_run`]: an index entry must not point at what is not
    /// committed.
    fn note_index(&mut self, head: &Head) {
        if head.offset >= self.index_due {
            self.entries[self.entry_count] = head.index_note();
            self.entry_count += 1;
            self.index_due = (head.offset / INDEX_BLOCK_BYTES + 1) * INDEX_BLOCK_BYTES;
        }
    }
}

impl MixedBatch<'_> {
    fn check(&self, len_bytes_max: usize) -> Result<()> {
        let n = self.offsets.len();
        let same = self.lengths.len() == n
            && self.type_ids.len() == n
            && (self.timestamps_ns.is_empty() || self.timestamps_ns.len() == n);
        if !same {
            let found = format!(
                "{n} offsets, {} lengths, {} type_ids, {} timestamps",
                self.lengths.len(),
                self.type_ids.len(),
                self.timestamps_ns.len()
            );
            return Err(Error::bad("batch", found, "columns of one length"));
        }
        for i in 0..n {
            let len_bytes = self.payload(i)?.len();
            if len_bytes > len_bytes_max {
                return Err(ErrorKind::TooLarge { len_bytes, len_bytes_max }.into());
            }
        }
        Ok(())
    }

    #[inline]
    fn payload(&self, i: usize) -> Result<&[u8]> {
        let (offset, len) = (self.offsets[i], self.lengths[i]);
        let start = usize::try_from(offset).ok();
        let payload = start.and_then(|at| self.buffer.get(at..at.checked_add(len as usize)?));
        payload.ok_or_else(|| {
            let found = format!("record {i} at {offset} of {len} bytes");
            let expected = format!("records inside the buffer of {} bytes", self.buffer.len());
            Error::bad("batch", found, expected)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::options::Start;
    use crate::queue::reader::Reader;

    #[test]
    fn columns_that_change_after_they_were_checked_are_an_error_and_leave_no_hole() {
        let path = std::env::temp_dir().join(format!("columns-{}", std::process::id()));
        let options = Options { segment_bytes: 1 << 16, ..Options::default() };
        let mut writer = Writer::open(&path, &options).unwrap();
        let mut reader = Reader::open(&path, None, Start::Earliest).unwrap();
        let mut expected = Vec::new();
        for (offset, len) in [(9, 1), (u64::MAX, 1), (0, u32::MAX), (5, 5)] {
            let batch = MixedBatch {
                buffer: b"12345678",
                offsets: &[0, 3, offset, 0],
                lengths: &[3, 0, len, 1],
                type_ids: &[1, 2, 3, 4],
                timestamps_ns: &[],
            };
            // As if they had been good when they were checked.
            let error = writer.append_columns(&batch).unwrap_err();
            assert!(error.to_string().contains("record 2 at"), "{error}");
            writer.append(9, b"behind it", None).unwrap();
            expected.extend([(1, b"123".to_vec()), (2, vec![]), (9, b"behind it".to_vec())]);
        }
        let mut found = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            found.push((record.raw.type_id, record.payload().to_vec()));
        }
        assert_eq!(found, expected);
        std::fs::remove_dir_all(&path).unwrap();
    }
}
