//! The queue's directory: creating it, opening it, its control block and its segment table.

use crate::error::{Error, ErrorKind, Result};
use crate::failpoint;
use crate::layout::*;
use crate::os::{clock, fs, fs::Dir, map::Map, process};
use crate::queue::durable;
use crate::queue::options::Options;
use crate::sync::{AtomicU64, Ordering, prefetch_write};
use std::fs::File;
use std::mem::size_of;
use std::path::Path;

pub const CONTROL_FILE: &str = "control";
pub const TABLE_FILE: &str = "segments.table";
pub const LOCK_FILE: &str = "writer.lock";
pub const SEGMENTS_DIR: &str = "segments";
pub const READERS_DIR: &str = "readers";

/// Byte of the lock file that the writer holds.
pub const LOCK_BYTE_WRITER: i64 = 0;
/// Byte of the lock file that whoever deletes segments holds.
pub const LOCK_BYTE_RETENTION: i64 = 1;

/// An open queue directory. Shared by everything that is open on the queue in this process.
pub struct QueueDir {
    pub root: Dir,
    pub segments: Dir,
    pub readers: Dir,
    pub identity: Identity,
    pub geometry: Geometry,
    pub file_mode: u32,
    control_file: File,
    control: Map,
    table: Map,
}

impl QueueDir {
    /// Opens the queue, or creates it if the directory holds none. For writers.
    pub fn open_or_create(path: &Path, options: &Options) -> Result<Self> {
        match Self::open(path, true) {
            Err(e) if e.is_not_found() => {}
            other => return other,
        }
        create(path, options)?;
        Self::open(path, true)
    }

    /// Opens a queue that exists. A reader asks for `writable` to be able to sleep on the doorbell;
    /// where that is not allowed the maps are read-only (see [`QueueDir::is_writable`]).
    pub fn open(path: &Path, writable: bool) -> Result<Self> {
        let root = Dir::open(path)?;
        let (control_file, writable) = match root.open_file(CONTROL_FILE, writable) {
            Ok(file) => (file, writable),
            Err(e) if writable && may_not_write(&e) => {
                (root.open_file(CONTROL_FILE, false)?, false)
            }
            Err(e) => return Err(e),
        };
        let control =
            map_exact(&root, CONTROL_FILE, &control_file, CONTROL_BYTES as u64, writable)?;
        // SAFETY: the map is a page long and page-aligned; `Identity` is plain data at its start,
        // which never changes.
        let identity = unsafe { control.base().cast::<Identity>().read() };
        check_identity(&root.join(CONTROL_FILE), &identity)?;
        let table_file = root.open_file(TABLE_FILE, writable)?;
        let table_bytes = table_bytes(identity.table_capacity);
        let table = map_exact(&root, TABLE_FILE, &table_file, table_bytes, writable)?;
        check_table(&root.join(TABLE_FILE), &table, &identity)?;
        // Metadata only: whoever made the control file decided who may read.
        let mode = control_file.metadata().map(|m| std::os::unix::fs::MetadataExt::mode(&m));
        Ok(Self {
            segments: root.subdir(SEGMENTS_DIR)?,
            readers: root.subdir(READERS_DIR)?,
            geometry: Geometry { segment_shift: identity.segment_shift },
            file_mode: mode.unwrap_or(0o600) & 0o666,
            identity,
            root,
            control_file,
            control,
            table,
        })
    }

    #[inline(always)]
    pub fn control(&self) -> &ControlBlock {
        // SAFETY: the map is `CONTROL_BYTES` long and page-aligned; beyond the identity it consists
        // of atomics only.
        unsafe { &*self.control.base().cast::<ControlBlock>() }
    }

    pub fn control_map(&self) -> &Map {
        &self.control
    }

    pub fn table_map(&self) -> &Map {
        &self.table
    }

    pub fn table_capacity(&self) -> u64 {
        self.identity.table_capacity.into()
    }

    /// The slot that a segment's entry uses. Which segment it describes is for the caller to check.
    pub fn table_slot(&self, segment: u64) -> &TableEntry {
        let slot = (segment % self.table_capacity()) as usize;
        // SAFETY: `slot` is below the capacity that the map's length was checked against; entries
        // consist of atomics and are 8-aligned (64-byte header, 40-byte entries).
        unsafe {
            &*self
                .table
                .base()
                .add(TABLE_HEADER_BYTES + slot * size_of::<TableEntry>())
                .cast::<TableEntry>()
        }
    }

    /// The entry of a segment, if the table has it.
    pub fn table_entry(&self, segment: u64) -> Option<&TableEntry> {
        let entry = self.table_slot(segment);
        // A damaged hint may name any segment; the highest has no entry (0 would be an empty slot).
        let index_plus_1 = segment.checked_add(1)?;
        // Acquire: pairs with the Release in `write_table_entry`; the other fields are older.
        (entry.index_plus_1.load(Ordering::Acquire) == index_plus_1).then_some(entry)
    }

    /// Announces a segment that the writer is about to enter. Stores only.
    pub fn write_table_entry(&self, segment: u64, first_sequence: u64) {
        let entry = self.table_slot(segment);
        // Relaxed: the entry is invalid while its index is being changed; the Release below
        // publishes it.
        entry.index_plus_1.store(0, Ordering::Relaxed);
        failpoint::hit("table.cleared");
        entry.end_offset.store(0, Ordering::Release);
        // Relaxed: published by the Release below.
        entry.timestamp_max.store(0, Ordering::Relaxed);
        // Relaxed: published by the Release below.
        entry.timestamp_first.store(0, Ordering::Relaxed);
        // Relaxed: published by the Release below.
        entry.first_sequence.store(first_sequence, Ordering::Relaxed);
        failpoint::hit("table.filled");
        entry.index_plus_1.store(segment + 1, Ordering::Release);
    }

    /// Completes the entry of a segment that is full. Stores only.
    pub fn seal_table_entry(&self, segment: u64, timestamp_max: u64, end_offset: usize) {
        let entry = self.table_slot(segment);
        // Relaxed: published by the Release below.
        entry.timestamp_max.store(timestamp_max, Ordering::Relaxed);
        failpoint::hit("table.half_sealed");
        entry.end_offset.store(end_offset as u64, Ordering::Release);
    }

    /// Asks for the lines that a roll to `segment` stores into.
    pub fn prefetch_roll(&self, segment: u64) {
        // An entry may reach into a second line.
        let entry = self.table_slot(segment);
        prefetch_write(std::ptr::from_ref(entry).cast());
        prefetch_write(std::ptr::from_ref(&entry.end_offset).cast());
        prefetch_write(std::ptr::from_ref(self.table_slot(segment.wrapping_sub(1))).cast());
        prefetch_write(std::ptr::from_ref(&self.control().tail_segment).cast());
        prefetch_write(std::ptr::from_ref(&self.control().rolls).cast());
    }

    pub fn has_checksums(&self) -> bool {
        self.identity.flags & CONTROL_FLAG_CRC != 0
    }

    /// Whether this process may store into the control block (a read-only mount or a foreign owner
    /// forbids it).
    pub fn is_writable(&self) -> bool {
        self.control.is_writable()
    }

    /// Whether the queue was removed. Costs a system call.
    pub fn is_removed(&self) -> bool {
        fs::is_unlinked(&self.control_file)
    }

    pub fn display(&self) -> String {
        self.root.display()
    }

    /// Oldest segment that exists.
    #[inline]
    pub fn floor_segment(&self) -> u64 {
        // Acquire: pairs with the Release in `raise_floor`.
        self.control().floor_segment.load(Ordering::Acquire)
    }

    /// The segment that the writer is in, or was in a moment ago.
    #[inline]
    pub fn tail_segment(&self) -> u64 {
        // Acquire: pairs with the Release at the roll; the segment's file and table entry exist.
        self.control().tail_segment.load(Ordering::Acquire)
    }

    pub fn corrupt(&self, position: u64, why: impl Into<String>) -> Error {
        ErrorKind::Corrupt { path: self.display(), position, why: why.into() }.into()
    }

    /// The pid that the last writer left in the lock file; 0 if there is none.
    pub fn writer_pid(&self) -> u32 {
        // Relaxed: for messages only.
        self.control().writer_pid.load(Ordering::Relaxed)
    }
}

pub fn may_not_write(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io { source, .. } if fs::is_read_only(source))
}

fn table_bytes(capacity: u32) -> u64 {
    let bytes = TABLE_HEADER_BYTES + capacity as usize * size_of::<TableEntry>();
    bytes.next_multiple_of(PAGE_BYTES) as u64
}

/// Maps a file that must have exactly this size: a shorter one would turn a load into a SIGBUS.
///
/// The size is looked at after the mapping is made and before it is used, so that a file which is
/// replaced or being built meanwhile is refused. Against somebody who may write the file and
/// truncates it later, nothing helps but the file's mode.
pub fn map_exact(dir: &Dir, name: &str, file: &File, bytes: u64, writable: bool) -> Result<Map> {
    let map = Map::new(file, bytes as usize, writable)
        .map_err(|e| Error::io("map", dir.join(name), e))?;
    let found = fs::file_len(file).map_err(|e| Error::io("look at", dir.join(name), e))?;
    if found != bytes {
        return Err(ErrorKind::Format {
            path: dir.join(name),
            field: "file_bytes",
            found: found.to_string(),
            expected: bytes.to_string(),
        }
        .into());
    }
    Ok(map)
}

/// Refuses one field of a file's header.
pub fn out_of_range<T>(
    path: String,
    field: &'static str,
    found: u64,
    expected: String,
) -> Result<T> {
    Err(ErrorKind::Format { path, field, found: found.to_string(), expected }.into())
}

/// Compares one field of a file's header.
pub fn expect<T: PartialEq + std::fmt::Debug>(
    path: &str,
    field: &'static str,
    found: T,
    expected: T,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(ErrorKind::Format {
        path: path.to_owned(),
        field,
        found: format!("{found:?}"),
        expected: format!("{expected:?}"),
    }
    .into())
}

/// Compares a magic, shown as text.
pub fn expect_magic(path: &str, found: [u8; 8], expected: [u8; 8]) -> Result<()> {
    let text = |m: [u8; 8]| m.escape_ascii().to_string();
    expect(path, "magic", text(found), text(expected))
}

fn identity_crc(identity: &Identity) -> u32 {
    // SAFETY: `Identity` is plain data without padding before `header_crc` (offsets are asserted in
    // layout).
    let bytes = unsafe {
        std::slice::from_raw_parts(
            std::ptr::from_ref(identity).cast::<u8>(),
            std::mem::offset_of!(Identity, header_crc),
        )
    };
    crc32c::crc32c(bytes)
}

fn check_identity(path: &str, identity: &Identity) -> Result<()> {
    expect_magic(path, identity.magic, CONTROL_MAGIC)?;
    expect(path, "version", identity.version, FORMAT_VERSION)?;
    expect(path, "header_crc", identity.header_crc, identity_crc(identity))?;
    let shift = identity.segment_shift;
    if !(SEGMENT_SHIFT_MIN..=SEGMENT_SHIFT_MAX).contains(&shift) {
        return expect(path, "segment_shift", shift, SEGMENT_SHIFT_DEFAULT);
    }
    if !(2..=TABLE_CAPACITY_MAX).contains(&identity.table_capacity) {
        return expect(path, "table_capacity", identity.table_capacity, TABLE_CAPACITY_DEFAULT);
    }
    Ok(())
}

fn table_header(identity: &Identity) -> TableHeader {
    let mut header = TableHeader {
        magic: TABLE_MAGIC,
        version: FORMAT_VERSION,
        capacity: identity.table_capacity,
        queue_id: identity.queue_id,
        header_crc: 0,
        spare: [0; 28],
    };
    header.header_crc = crc_of(&header, std::mem::offset_of!(TableHeader, header_crc));
    header
}

fn check_table(path: &str, table: &Map, identity: &Identity) -> Result<()> {
    // SAFETY: the map is at least a page long; the header is plain data that never changes.
    let found = unsafe { table.base().cast::<TableHeader>().read() };
    let expected = table_header(identity);
    expect_magic(path, found.magic, expected.magic)?;
    expect(path, "version", found.version, expected.version)?;
    expect(path, "queue_id", found.queue_id, expected.queue_id)?;
    expect(path, "capacity", found.capacity, expected.capacity)?;
    expect(path, "header_crc", found.header_crc, expected.header_crc)
}

/// CRC of the first `len` bytes of a header. The header types have no padding there.
pub fn crc_of<T>(header: &T, len: usize) -> u32 {
    assert!(len <= size_of::<T>());
    // SAFETY: `len` bytes of an initialised value of a `repr(C)` type without padding in that
    // range.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(header).cast::<u8>(), len) };
    crc32c::crc32c(bytes)
}

/// Makes an empty queue. Everything is in place before `control` appears, by rename.
fn create(path: &Path, options: &Options) -> Result<()> {
    let geometry = options.geometry()?;
    make_directory(path, options.dir_mode())?;
    failpoint::hit("create.directory");
    let root = Dir::open(path)?;
    refuse_foreign(&root)?;
    // Two creators may meet here: the lock lets one of them build, the other then finds the result.
    let lock = root.open_or_create(LOCK_FILE, options.file_mode())?;
    let lock = fs::ByteLock::try_take(lock, LOCK_BYTE_WRITER)
        .map_err(|e| Error::io("lock", root.join(LOCK_FILE), e))?;
    let Ok(_lock) = lock else {
        return Err(ErrorKind::WriterActive { path: root.display(), pid: 0 }.into());
    };
    if root.open_file(CONTROL_FILE, false).is_ok() {
        return Ok(());
    }
    failpoint::hit("create.locked");
    root.make_subdir(SEGMENTS_DIR, options.dir_mode())?;
    failpoint::hit("create.segments");
    refuse_orphans(&root)?;
    root.make_subdir(READERS_DIR, options.dir_mode())?;
    failpoint::hit("create.readers");
    let identity = new_identity(&root, options, geometry)?;
    write_new(
        &root,
        TABLE_FILE,
        options.file_mode(),
        table_bytes(identity.table_capacity),
        |map| {
            // SAFETY: the new map is at least a page long and nobody else has it.
            unsafe { map.base().cast::<TableHeader>().write(table_header(&identity)) };
        },
    )?;
    write_new(&root, CONTROL_FILE, options.file_mode(), CONTROL_BYTES as u64, |map| {
        // SAFETY: the new map is a page long and nobody else has it; the rest of the page is zero.
        unsafe { map.base().cast::<Identity>().write(identity) };
    })
}

/// Makes the directory and those above it, and syncs the names: what is flushed into a queue must
/// be found again.
fn make_directory(path: &Path, mode: u32) -> Result<()> {
    let io = |what, path: &Path, e| Error::io(what, path.display().to_string(), e);
    let missing: Vec<_> =
        path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
    std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), mode)
        .create(path)
        .map_err(|e| io("create directory", path, e))?;
    for made in missing {
        let parent = match made.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| io("sync", parent, e))?;
    }
    Ok(())
}

fn new_identity(root: &Dir, options: &Options, geometry: Geometry) -> Result<Identity> {
    let queue_id = process::random_id().map_err(|e| Error::io("name", root.display(), e))?;
    let mut identity = Identity {
        magic: CONTROL_MAGIC,
        version: FORMAT_VERSION,
        segment_shift: geometry.segment_shift,
        queue_id,
        created_ns: clock::wall_ns(),
        flags: if options.checksum { CONTROL_FLAG_CRC } else { 0 },
        table_capacity: options.segments_max,
        header_crc: 0,
        spare: 0,
    };
    identity.header_crc = identity_crc(&identity);
    Ok(identity)
}

/// A directory that holds other people's files does not become a queue by accident.
fn refuse_foreign(root: &Dir) -> Result<()> {
    let ours = [TABLE_FILE, LOCK_FILE, SEGMENTS_DIR, READERS_DIR, CONTROL_FILE, "queue.json"];
    match root.list()?.into_iter().find(|n| !ours.contains(&n.as_str()) && !n.ends_with(".tmp")) {
        None => Ok(()),
        Some(name) => Err(ErrorKind::NotAQueue {
            path: root.display(),
            why: format!("the directory has no control file but holds '{name}'"),
        }
        .into()),
    }
}

/// Segments without a control file are a queue that lost it. A new control file would give the
/// directory another identity, and nothing could read those segments again.
fn refuse_orphans(root: &Dir) -> Result<()> {
    match root.subdir(SEGMENTS_DIR)?.list()?.into_iter().find(|n| !n.ends_with(".tmp")) {
        None => Ok(()),
        Some(name) => Err(ErrorKind::NotAQueue {
            path: root.display(),
            why: format!("the control file is missing, but there is '{SEGMENTS_DIR}/{name}'"),
        }
        .into()),
    }
}

/// Creates a file of `bytes` zeros, lets `fill` write into it, makes it durable and publishes it by
/// rename.
pub fn write_new(
    dir: &Dir,
    name: &str,
    mode: u32,
    bytes: u64,
    fill: impl FnOnce(&Map),
) -> Result<()> {
    let tmp = format!("{name}.tmp");
    dir.remove(&tmp)?;
    let file = dir.create_new(&tmp, mode)?;
    failpoint::hit("file.created");
    let made = (|| {
        allocate(dir, name, &file, bytes)?;
        failpoint::hit("file.allocated");
        let map = map_exact(dir, &tmp, &file, bytes, true)?;
        fill(&map);
        failpoint::hit("file.filled");
        durable::sync_file(dir, &tmp, &file)?;
        failpoint::hit("file.synced");
        dir.rename(&tmp, name)?;
        failpoint::hit("file.renamed");
        durable::sync_names(dir)
    })();
    if made.is_err() {
        dir.remove(&tmp)?;
    }
    made
}

/// `fallocate` with the error that users act on.
pub fn allocate(dir: &Dir, name: &str, file: &File, bytes: u64) -> Result<()> {
    fs::allocate(file, bytes).map_err(|e| full_or(e, dir, name, bytes))
}

/// Turns "no space" in its many forms into one typed error.
pub fn full_or(error: std::io::Error, dir: &Dir, name: &str, needed_bytes: u64) -> Error {
    if fs::is_full(&error) {
        ErrorKind::DiskFull { path: dir.display(), needed_bytes }.into()
    } else {
        Error::io("preallocate", dir.join(name), error)
    }
}

/// Stores the maximum of what is there and `value`.
pub fn store_max(word: &AtomicU64, value: u64) {
    // AcqRel: the durable watermark must not be seen before the data it speaks of was synced by the
    // same thread.
    word.fetch_max(value, Ordering::AcqRel);
}
