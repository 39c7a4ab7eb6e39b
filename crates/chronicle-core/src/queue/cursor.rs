//! A named reader's place, in one mapped page.
//!
//! The reader holds a lock on the file while it lives; that lock is what "live" means to retention,
//! whatever the reader does or does not commit.

use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::layout::*;
use crate::os::{clock, fs, fs::ByteLock, map::Map, process};
use crate::protocol::{self, Strong};
use crate::queue::dir::{self, QueueDir, crc_of, expect, expect_magic};
use crate::queue::durable;
use crate::sync::Ordering;
use std::fs::File;
use std::mem::offset_of;

const SUFFIX: &str = ".cursor";
const LOCK_BYTE: i64 = 0;

/// A cursor file that this process owns.
pub struct Cursor {
    map: Map,
    _lock: ByteLock,
}

/// What a cursor says, for those who only look.
#[derive(Clone, Debug)]
pub struct CursorInfo {
    pub name: String,
    pub live: bool,
    pub pid: u32,
    pub placed: bool,
    pub next_sequence: u64,
    pub next_position: u64,
    pub opened_ns: u64,
}

fn file_name(name: &str) -> String {
    format!("{name}{SUFFIX}")
}

impl Cursor {
    /// Opens or creates the cursor and locks it.
    ///
    /// # Errors
    /// `ReaderActive` if another reader of that name lives.
    pub fn open(queue: &QueueDir, name: &str) -> Result<Self> {
        crate::queue::options::check_name("reader name", name)?;
        let file_name = file_name(name);
        let (lock, file) = lock_file(queue, name, &file_name)?;
        failpoint::hit("cursor.locked");
        let len = fs::file_len(&file);
        if len.map_err(|e| Error::io("look at", queue.readers.join(&file_name), e))? == 0 {
            dir::allocate(&queue.readers, &file_name, &file, CURSOR_BYTES as u64)?;
            failpoint::hit("cursor.allocated");
        }
        let bytes = CURSOR_BYTES as u64;
        let map = dir::map_exact(&queue.readers, &file_name, &file, bytes, true)?;
        map.populate().map_err(|e| dir::full_or(e, &queue.readers, &file_name, bytes))?;
        let cursor = Self { map, _lock: lock };
        cursor.check_or_init(queue, &file_name)?;
        // Relaxed: for people.
        cursor.block().pid.store(process::pid(), Ordering::Relaxed);
        // Relaxed: for people.
        cursor.block().opened_ns.store(clock::wall_ns(), Ordering::Relaxed);
        Ok(cursor)
    }

    /// A page whose magic and words are zero is a cursor whose creator died before its header was
    /// complete: the magic is stored last.
    fn check_or_init(&self, queue: &QueueDir, file_name: &str) -> Result<()> {
        // SAFETY: the map is one page, as long as the block.
        let bytes = unsafe { std::slice::from_raw_parts(self.map.base(), CURSOR_BYTES) };
        let words = &bytes[offset_of!(CursorBlock, next_sequence)..];
        if bytes[..8] != [0; 8] || words.iter().any(|&b| b != 0) {
            return check(&queue.readers.join(file_name), self.block(), queue);
        }
        let block = self.map.base().cast::<CursorBlock>();
        let created_ns = clock::wall_ns();
        let crc = header_crc(CURSOR_MAGIC, FORMAT_VERSION, queue.identity.queue_id, created_ns);
        // SAFETY: the page is ours (locked); these fields are plain data that nobody reads before
        // the magic is there. Volatile, so that the magic stays the last store.
        unsafe {
            (&raw mut (*block).version).write_volatile(FORMAT_VERSION);
            (&raw mut (*block).queue_id).write_volatile(queue.identity.queue_id);
            failpoint::hit("cursor.half_header");
            (&raw mut (*block).created_ns).write_volatile(created_ns);
            (&raw mut (*block).header_crc).write_volatile(crc);
            failpoint::hit("cursor.header");
            (&raw mut (*block).magic).write_volatile(CURSOR_MAGIC);
        }
        failpoint::hit("cursor.magic");
        Ok(())
    }

    #[inline(always)]
    fn block(&self) -> &CursorBlock {
        // SAFETY: the map is one page, page-aligned, as long as the block; what changes in it is
        // atomic.
        unsafe { &*self.map.base().cast::<CursorBlock>() }
    }

    /// The sequence number to resume at; `None` for a new cursor.
    pub fn resume_sequence(&self) -> Option<u64> {
        // Acquire: pairs with the Release in `place`.
        let placed = self.block().placed.load(Ordering::Acquire) == 1;
        // Relaxed: our own word, under our lock; a former owner's store was visible before its lock
        // was freed.
        placed.then(|| self.block().next_sequence.load(Ordering::Relaxed))
    }

    /// Joins at a position, or tells the floor that has passed it. P7.
    pub fn place(&self, queue: &QueueDir, sequence: u64, position: u64) -> Result<(), u64> {
        let block = self.block();
        let floor = &queue.control().floor_segment;
        let shift = queue.geometry.segment_shift;
        protocol::join_floor::<Strong>(&block.next_position, floor, position, shift)?;
        failpoint::hit("cursor.placed_position");
        // Relaxed: published by the Release below.
        block.next_sequence.store(sequence, Ordering::Relaxed);
        failpoint::hit("cursor.placed_sequence");
        block.placed.store(1, Ordering::Release);
        failpoint::hit("cursor.placed");
        Ok(())
    }

    /// Where a recovery has cut the queue below this cursor, and the reader has not been told yet.
    pub fn cut_sequence(&self) -> Option<u64> {
        // Relaxed: our own word, under our lock; recovery stored it before the queue had a writer
        // again.
        let sequence = self.block().cut_sequence.load(Ordering::Relaxed);
        (sequence != 0).then_some(sequence)
    }

    /// The reader has been told of the cut, or has gone elsewhere.
    pub fn clear_cut(&self) {
        // Relaxed: our own word, under our lock.
        self.block().cut_sequence.store(0, Ordering::Relaxed);
    }

    /// Two stores. P8.
    #[inline(always)]
    pub fn commit(&self, sequence: u64, position: u64) {
        let block = self.block();
        protocol::commit_cursor::<Strong>(
            &block.next_sequence,
            &block.next_position,
            sequence,
            position,
        );
    }

    /// Makes the place durable. Blocks on the device.
    pub fn sync(&self) -> std::io::Result<()> {
        self.map.sync(0, CURSOR_BYTES)
    }
}

/// Opens or creates the file and locks it; gives a second descriptor of the same file, to be
/// mapped.
///
/// The file that is locked must not be the one that is mapped: a mapping keeps the open file
/// description alive, and with it the lock. A child that its reader forked has the mapping and
/// would hold the lock beyond the reader's death.
fn lock_file(queue: &QueueDir, name: &str, file_name: &str) -> Result<(ByteLock, File)> {
    let io = |what, e| Error::io(what, queue.readers.join(file_name), e);
    loop {
        let file = queue.readers.open_or_create(file_name, queue.file_mode)?;
        let taken = ByteLock::try_take(file, LOCK_BYTE).map_err(|e| io("lock", e))?;
        match taken {
            // Removed between our open and our lock: retention would not see this file, nor another
            // reader of that name. Each further round needs another removal.
            Ok(lock) if fs::is_unlinked(lock.file()) => drop(lock),
            Ok(lock) => {
                let file = queue.readers.open_file(file_name, true)?;
                if fs::is_same(lock.file(), &file).map_err(|e| io("look at", e))? {
                    return Ok((lock, file));
                }
            }
            Err(_) => {
                let pid = inspect(queue, name).map_or(0, |i| i.pid);
                let (path, name) = (queue.display(), name.to_owned());
                return Err(ErrorKind::ReaderActive { path, name, pid }.into());
            }
        }
    }
}

fn header_crc(magic: [u8; 8], version: u32, queue_id: [u8; 16], created_ns: u64) -> u32 {
    let mut head = [0_u8; 36];
    head[..8].copy_from_slice(&magic);
    head[8..12].copy_from_slice(&version.to_le_bytes());
    head[12..28].copy_from_slice(&queue_id);
    head[28..36].copy_from_slice(&created_ns.to_le_bytes());
    crc_of(&head, head.len())
}

fn block_crc(block: &CursorBlock) -> u32 {
    header_crc(block.magic, block.version, block.queue_id, block.created_ns)
}

fn check(path: &str, block: &CursorBlock, queue: &QueueDir) -> Result<()> {
    expect_magic(path, block.magic, CURSOR_MAGIC)?;
    expect(path, "version", block.version, FORMAT_VERSION)?;
    expect(path, "queue_id", block.queue_id, queue.identity.queue_id)?;
    expect(path, "header_crc", block.header_crc, block_crc(block))
}

/// Names of all cursors.
pub fn names(queue: &QueueDir) -> Result<Vec<String>> {
    let mut names: Vec<String> = queue
        .readers
        .list()?
        .into_iter()
        .filter_map(|n| n.strip_suffix(SUFFIX).map(str::to_owned))
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Whether a reader of that name lives, whatever its file says.
pub fn is_live(queue: &QueueDir, name: &str) -> Result<bool> {
    let file = queue.readers.open_file(&file_name(name), false)?;
    fs::is_locked(&file, LOCK_BYTE)
        .map_err(|e| Error::io("look at", queue.readers.join(&file_name(name)), e))
}

/// Looks at a cursor without touching it.
pub fn inspect(queue: &QueueDir, name: &str) -> Result<CursorInfo> {
    let file_name = file_name(name);
    let file = queue.readers.open_file(&file_name, false)?;
    let path = queue.readers.join(&file_name);
    let live = is_live(queue, name)?;
    let mut info = CursorInfo {
        name: name.to_owned(),
        live,
        pid: 0,
        placed: false,
        next_sequence: 0,
        next_position: 0,
        opened_ns: 0,
    };
    if fs::file_len(&file).map_err(|e| Error::io("look at", &path, e))? == 0 {
        return Ok(info);
    }
    let map = dir::map_exact(&queue.readers, &file_name, &file, CURSOR_BYTES as u64, false)?;
    // SAFETY: the map is one page, as long as the block.
    let block = unsafe { &*map.base().cast::<CursorBlock>() };
    if block.magic == [0; 8] {
        return Ok(info);
    }
    check(&path, block, queue)?;
    // Acquire: pairs with the Release in `place`.
    info.placed = block.placed.load(Ordering::Acquire) == 1;
    info.next_position = protocol::cursor_position::<Strong>(&block.next_position);
    // Relaxed: P8 makes it at least as new as the position.
    info.next_sequence = block.next_sequence.load(Ordering::Relaxed);
    // Relaxed: for people.
    info.pid = block.pid.load(Ordering::Relaxed);
    // Relaxed: for people.
    info.opened_ns = block.opened_ns.load(Ordering::Relaxed);
    Ok(info)
}

/// Tells the cursor of a cut: messages from `next_sequence` on are gone. Whether the cursor stood
/// behind it. One that cannot be read is left to its reader, which reports it.
pub fn mark_cut(queue: &QueueDir, name: &str, next_sequence: u64) -> Result<bool> {
    match inspect(queue, name) {
        Ok(info) if info.placed && info.next_sequence > next_sequence => {}
        _ => return Ok(false),
    }
    let file_name = file_name(name);
    let file = queue.readers.open_file(&file_name, true)?;
    let map = dir::map_exact(&queue.readers, &file_name, &file, CURSOR_BYTES as u64, true)?;
    // SAFETY: the map is one page, as long as the block; only atomics are used.
    let word = unsafe { &(*map.base().cast::<CursorBlock>()).cut_sequence };
    // Relaxed: one recovery at a time, and the reader looks after it.
    let before = word.load(Ordering::Relaxed);
    if before == 0 || before > next_sequence {
        // Relaxed: as above.
        word.store(next_sequence, Ordering::Relaxed);
        failpoint::hit("cursor.cut_marked");
        durable::sync_range(&queue.readers, &file_name, &map, 0, CURSOR_BYTES)?;
    }
    Ok(true)
}

/// Forgets a reader's place.
///
/// # Errors
/// `ReaderActive` if that reader lives.
pub fn remove(queue: &QueueDir, name: &str) -> Result<()> {
    crate::queue::options::check_name("reader name", name)?;
    let cursor = Cursor::open(queue, name)?;
    queue.readers.remove(&file_name(name))?;
    drop(cursor);
    Ok(())
}

const _: () = assert!(offset_of!(CursorBlock, created_ns) == 32);
