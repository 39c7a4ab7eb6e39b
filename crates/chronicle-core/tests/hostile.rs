//! Hostile files: whatever stands in a queue's directory, nothing crashes, hangs or reads out of bounds.
//!
//! # How it works
//!
//! A small queue lies on a memory file system, and a copy of all its bytes in the heap. A *mutation* damages it in one to
//! four ways, then everything that opens a queue is let loose on it, then the bytes are put back. Each mutation has its
//! own random numbers, made from the seed and its number, so any one of them can be repeated alone.
//!
//! The mutations run in child processes: a crash of a child is a test failure that names the seed and the number. Every
//! mapping of a file lies between two stretches of forbidden addresses ([`guard`]), so that a read past either end is a
//! crash and not a look at a neighbour. A count of steps finds loops in the reader; an alarm ends a child that hangs
//! elsewhere (a safety net: no time is asserted).
//!
//! What a reader delivers is checked as well: sequences without holes unless a gap was reported, and, where the queue has
//! checksums, exactly the bytes that were written.
//!
//! `CHRONICLE_FIRE=full` runs a million mutations, otherwise a tenth; `CHRONICLE_SEED` sets the seed;
//! `CHRONICLE_HOSTILE_COUNT` sets the number of mutations (a memory checker is slow).
//! `CHRONICLE_HOSTILE_ONE=n` repeats mutation `n` in this process.

#![allow(clippy::print_stdout)] // Seeds and counts, for who repeats a run.

use chronicle_core::layout::{
    CONTROL_BYTES, CURSOR_BYTES, Geometry, RECORD_ALIGN, RECORD_HEADER_BYTES, record_stride,
};
use chronicle_core::queue::dir::QueueDir;
use chronicle_core::queue::segment::Segment;
use chronicle_core::queue::writer::MixedBatch;
use chronicle_core::queue::{cursor, inspect, retention};
use chronicle_core::{
    Error, ErrorKind, FanIn, MergeMode, Options, Reader, RetentionPolicy, Start, Writer,
};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const MUTATIONS_FULL: u64 = 1_000_000;
const SEED_DEFAULT: u64 = 0x0C_4A05_2026;
const CHILDREN: u64 = 2;
/// Of one mutation; the longest takes a few milliseconds.
const ALARM_SECONDS: i64 = 120;
const SEGMENT_SHIFT: u32 = 16;
const SEGMENT_BYTES: usize = 1 << SEGMENT_SHIFT;
const GEOMETRY: Geometry = Geometry { segment_shift: SEGMENT_SHIFT };
/// More than all records that could stand in all segments of a fixture, with room for repeated errors.
const STEPS_MAX: u64 = 16 * (SEGMENT_BYTES / RECORD_HEADER_BYTES) as u64;

/// Puts every mapping of a file between two stretches of addresses that must not be touched.
///
/// The test binary's `mmap` and `munmap` take the place of libc's for all Rust code in it; the code under test is unchanged.
mod guard {
    use std::collections::BTreeMap;
    use std::ffi::{c_int, c_void};
    use std::sync::Mutex;

    const GUARD_BYTES: usize = 1 << 20;
    const NOWHERE: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

    /// Address ranges that were reserved, guards included.
    struct Areas {
        /// Start of the mapping -> length of the mapping.
        used: BTreeMap<usize, usize>,
        /// Length -> starts. Kept, so that a mapping costs one call and not three.
        free: BTreeMap<usize, Vec<usize>>,
    }

    static AREAS: Mutex<Areas> = Mutex::new(Areas { used: BTreeMap::new(), free: BTreeMap::new() });

    fn areas() -> std::sync::MutexGuard<'static, Areas> {
        AREAS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// # Safety
    /// As mmap(2).
    unsafe fn kernel_mmap(
        at: *mut c_void,
        len: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void {
        // SAFETY: the caller's promise.
        unsafe {
            libc::syscall(libc::SYS_mmap, at, len, protection, flags, fd, offset) as *mut c_void
        }
    }

    /// # Safety
    /// As mmap(2).
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn mmap(
        at: *mut c_void,
        len: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void {
        if fd < 0 || !at.is_null() {
            // SAFETY: the caller's promise.
            return unsafe { kernel_mmap(at, len, protection, flags, fd, offset) };
        }
        let pages = len.next_multiple_of(4096);
        let hole = areas().free.get_mut(&pages).and_then(Vec::pop);
        if let Some(hole) = hole {
            let flags = flags | libc::MAP_FIXED_NOREPLACE;
            // SAFETY: replaces nothing: fails if somebody else has got the addresses in the meantime.
            let base = unsafe { kernel_mmap(hole as _, len, protection, flags, fd, offset) };
            if base != libc::MAP_FAILED {
                areas().used.insert(base as usize, pages);
                return base;
            }
        }
        let (nothing, span) = (std::ptr::null_mut(), pages + 2 * GUARD_BYTES);
        // SAFETY: new addresses of the kernel's choice.
        let area = unsafe { kernel_mmap(nothing, span, libc::PROT_NONE, NOWHERE, -1, 0) };
        if area == libc::MAP_FAILED {
            return area;
        }
        let inside = area.wrapping_byte_add(GUARD_BYTES);
        // SAFETY: replaces the middle of the area that was just reserved.
        let base =
            unsafe { kernel_mmap(inside, len, protection, flags | libc::MAP_FIXED, fd, offset) };
        if base != libc::MAP_FAILED {
            areas().used.insert(base as usize, pages);
        }
        base
    }

    /// # Safety
    /// As munmap(2).
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn munmap(at: *mut c_void, len: usize) -> c_int {
        let pages = areas().used.remove(&(at as usize));
        assert!(
            pages.is_none_or(|pages| pages == len.next_multiple_of(4096)),
            "unmapped as a whole"
        );
        // SAFETY: the caller's promise.
        let rc = unsafe { libc::syscall(libc::SYS_munmap, at, len) as c_int };
        if let Some(pages) = pages {
            // The guards stay; the hole between them is used again if it is still one.
            areas().free.entry(pages).or_default().push(at as usize);
        }
        rc
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): any two seeds give unrelated numbers.
struct Rng(u64);

impl Rng {
    fn of(seed: u64, number: u64) -> Self {
        let mut rng = Self(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        rng.next();
        rng
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

// --- The queue that is damaged ---

fn payload_of(sequence: u64) -> Vec<u8> {
    let len = 24 + (sequence * 37 % 400) as usize;
    (0..len as u64).map(|i| (sequence.wrapping_mul(31).wrapping_add(i * 7)) as u8).collect()
}

fn timestamp_of(sequence: u64) -> u64 {
    // Steps back now and then.
    1_000_000 + sequence * 10 - if sequence.is_multiple_of(7) { 35 } else { 0 }
}

fn type_of(sequence: u64) -> u16 {
    (sequence % 5) as u16
}

/// One file of the queue, with the bytes that it should have.
struct Original {
    name: String,
    pristine: Vec<u8>,
    inode: u64,
    /// A mapping of ours, writable, through which the file is damaged and mended.
    base: *mut u8,
    /// Offsets of the records, for segments.
    records: Vec<usize>,
}

struct Fixture {
    root: PathBuf,
    files: Vec<Original>,
    /// The same files of another queue.
    foreign: Vec<Vec<u8>>,
    checksum: bool,
    sequence_end: u64,
    /// Whether a writer of this mutation may have replaced what was written.
    rewritten: std::cell::Cell<bool>,
}

fn options(checksum: bool) -> Options {
    Options {
        segment_bytes: SEGMENT_BYTES as u64,
        checksum,
        // A page of table, and a ring that comes round.
        segments_max: 64,
        ..Options::default()
    }
}

/// Fills a queue with three written segments and a prepared one. `skip` segments are written first and given to retention.
fn build(root: &Path, checksum: bool, skip: u64) -> u64 {
    let _ = std::fs::remove_dir_all(root);
    let mut writer = Writer::open(root, &options(checksum)).unwrap();
    let mut reader = None;
    while writer.next_position() < GEOMETRY.position(skip + 2, SEGMENT_BYTES / 2) {
        let sequence = writer.next_sequence();
        writer
            .append(type_of(sequence), &payload_of(sequence), Some(timestamp_of(sequence)))
            .unwrap();
        if reader.is_none() && writer.next_position() > GEOMETRY.position(skip, SEGMENT_BYTES / 2) {
            reader = Some(Reader::open(root, Some("r"), Start::Latest).unwrap());
            Reader::open(root, Some("other"), Start::Latest).unwrap();
        }
    }
    if skip > 0 {
        let policy =
            RetentionPolicy { bytes_max: Some(3 * SEGMENT_BYTES as u64), age_ns_max: None };
        let report = retention::apply(writer.queue(), &policy).unwrap();
        assert_eq!(report.floor_segment, skip);
    }
    writer.flush().unwrap();
    Segment::prepare(writer.queue(), skip + 3).unwrap();
    writer.next_sequence()
}

fn files_below(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for sub in ["", "segments", "readers"] {
        for entry in std::fs::read_dir(root.join(sub)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let name = entry.file_name().into_string().unwrap();
                names.push(if sub.is_empty() { name } else { format!("{sub}/{name}") });
            }
        }
    }
    names.sort();
    names
}

fn records_of(name: &str, bytes: &[u8]) -> Vec<usize> {
    let mut records = Vec::new();
    if name.starts_with("segments/") {
        let mut at = GEOMETRY.data_offset();
        loop {
            records.push(at);
            let commit = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            if commit == 0 || commit == u32::MAX {
                return records;
            }
            at += record_stride(commit as usize - 1);
        }
    }
    records
}

impl Fixture {
    fn new(root: PathBuf, checksum: bool, skip: u64) -> Self {
        build(&root, checksum, skip);
        let foreign =
            files_below(&root).iter().map(|n| std::fs::read(root.join(n)).unwrap()).collect();
        let sequence_end = build(&root, checksum, skip);
        let files = files_below(&root)
            .into_iter()
            .map(|name| {
                let pristine = std::fs::read(root.join(&name)).unwrap();
                let records = records_of(&name, &pristine);
                Original { name, pristine, inode: 0, base: std::ptr::null_mut(), records }
            })
            .collect();
        let rewritten = std::cell::Cell::new(false);
        let mut fixture = Self { root, files, foreign, checksum, sequence_end, rewritten };
        fixture.rebuild();
        fixture
    }

    fn path(&self, file: usize) -> PathBuf {
        self.root.join(&self.files[file].name)
    }

    /// Makes the directory anew from the copy.
    fn rebuild(&mut self) {
        remove_anything(&self.root);
        std::fs::create_dir_all(self.root.join("segments")).unwrap();
        std::fs::create_dir_all(self.root.join("readers")).unwrap();
        for i in 0..self.files.len() {
            let path = self.path(i);
            std::fs::write(&path, &self.files[i].pristine).unwrap();
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let original = &mut self.files[i];
            original.inode = file.metadata().unwrap().ino();
            let len = original.pristine.len();
            if !original.base.is_null() {
                // SAFETY: our own mapping of that length, not used after.
                unsafe { guard::munmap(original.base.cast(), len) };
            }
            if len == 0 {
                continue;
            }
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping.
            let base = unsafe {
                guard::mmap(
                    std::ptr::null_mut(),
                    len,
                    access,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    0,
                )
            };
            assert!(base != libc::MAP_FAILED);
            original.base = base.cast();
        }
    }

    /// Whether every file stands where it should, with its length, and no other.
    fn is_intact(&self) -> bool {
        let mut entries = 0;
        for sub in ["", "segments", "readers"] {
            match std::fs::read_dir(self.root.join(sub)) {
                Ok(found) => entries += found.count(),
                Err(_) => return false,
            }
        }
        entries == self.files.len() + 2
            && self.files.iter().enumerate().all(|(i, original)| {
                std::fs::symlink_metadata(self.path(i)).is_ok_and(|meta| {
                    meta.ino() == original.inode && meta.len() == original.pristine.len() as u64
                })
            })
    }

    fn mend(&mut self) {
        if !self.is_intact() {
            self.rebuild();
            return;
        }
        for original in &self.files {
            if !original.base.is_null() {
                // SAFETY: our own mapping of that length, and the file has its whole length (`is_intact`).
                unsafe {
                    original.base.copy_from_nonoverlapping(
                        original.pristine.as_ptr(),
                        original.pristine.len(),
                    );
                }
            }
        }
    }

    /// A file's bytes, to be damaged in place. Only while it has its whole length.
    #[allow(clippy::mut_from_ref)] // The bytes are shared with everybody else anyway; one thread runs this.
    fn bytes(&self, file: usize) -> &mut [u8] {
        let original = &self.files[file];
        if original.base.is_null() {
            return &mut [];
        }
        // SAFETY: our own mapping of that length; nothing of the code under test is open while it is damaged.
        unsafe { std::slice::from_raw_parts_mut(original.base, original.pristine.len()) }
    }

    fn find(&self, wanted: impl Fn(&str) -> bool) -> Vec<usize> {
        (0..self.files.len()).filter(|&i| wanted(&self.files[i].name)).collect()
    }
}

fn remove_anything(path: &Path) {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

// --- Damage ---

const EDGES: [u64; 30] = [
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    4095,
    4096,
    4224,
    16_384,
    65_504,
    65_528,
    65_535,
    65_536,
    i32::MAX as u64,
    u32::MAX as u64 - 1,
    u32::MAX as u64,
    1 << 32,
    (1 << 47) - 1,
    (1 << 48) - 1,
    1 << 48,
    i64::MAX as u64,
    1 << 63,
    u64::MAX >> 16,
    u64::MAX - 65_536,
    u64::MAX - 2,
    u64::MAX - 1,
    u64::MAX,
];

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn write_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn write_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn seal(bytes: &mut [u8], crc_at: usize) {
    let crc = crc32c::crc32c(&bytes[..crc_at]);
    write_u32(bytes, crc_at, crc);
}

/// A word that somebody would choose who wants to do harm.
fn harmful(rng: &mut Rng, now: u64) -> u64 {
    match rng.below(6) {
        0 => now.wrapping_add(1),
        1 => now.wrapping_sub(1),
        2 => now.wrapping_add(rng.below(200) as u64).wrapping_sub(100),
        3 => now ^ (1 << rng.below(64)),
        _ => rng.pick(&EDGES),
    }
}

/// Word offsets of the control block that mean something.
const CONTROL_WORDS: [usize; 18] =
    [128, 136, 136, 136, 144, 152, 160, 168, 256, 384, 384, 384, 512, 520, 520, 640, 648, 664];

fn damage_control(fixture: &Fixture, rng: &mut Rng) {
    let Some(&control) = fixture.find(|n| n == "control").first() else { return };
    let bytes = fixture.bytes(control);
    assert!(bytes.len() == CONTROL_BYTES);
    if rng.one_in(4) {
        // A header that lies with a right checksum.
        let at = rng.pick(&[0, 8, 12, 12, 16, 40, 40, 44, 44]);
        let value = if rng.one_in(2) { rng.below(40) as u32 } else { rng.next() as u32 };
        write_u32(bytes, at, value);
        if !rng.one_in(8) {
            seal(bytes, 48);
        }
        return;
    }
    let at = rng.pick(&CONTROL_WORDS);
    let value = if at == 520 && rng.one_in(2) {
        // A durable position that might be.
        GEOMETRY.position(rng.below(8) as u64, rng.below(SEGMENT_BYTES))
    } else {
        harmful(rng, read_u64(bytes, at))
    };
    write_u64(bytes, at, value);
}

/// Another boot, so that the writer's recovery trusts nothing.
fn reboot(fixture: &Fixture, rng: &mut Rng) {
    let Some(&control) = fixture.find(|n| n == "control").first() else { return };
    write_u64(fixture.bytes(control), 152, rng.next());
    if rng.one_in(2) {
        write_u64(fixture.bytes(control), 512, 0);
        write_u64(fixture.bytes(control), 520, 0);
    }
}

fn pick_segment(fixture: &Fixture, rng: &mut Rng) -> usize {
    let segments = fixture.find(|n| n.starts_with("segments/"));
    rng.pick(&segments)
}

fn damage_segment_header(fixture: &Fixture, rng: &mut Rng) {
    let file = pick_segment(fixture, rng);
    let bytes = fixture.bytes(file);
    if rng.one_in(2) {
        let value = harmful(rng, read_u64(bytes, 48));
        write_u64(bytes, 48, value);
        return;
    }
    let at = rng.pick(&[0, 8, 12, 16, 32, 36]);
    let value = if rng.one_in(2) { rng.below(6) as u32 } else { rng.next() as u32 };
    write_u32(bytes, at, value);
    if !rng.one_in(4) {
        seal(bytes, 40);
    }
}

fn damage_index(fixture: &Fixture, rng: &mut Rng) {
    let file = pick_segment(fixture, rng);
    let bytes = fixture.bytes(file);
    let entry = |block: usize| 4096 + 24 * block;
    let block = rng.below(GEOMETRY.index_entries());
    if rng.one_in(4) {
        // Somebody else's entry, whole: it points backwards, or forwards.
        let from = entry(rng.below(GEOMETRY.index_entries()));
        bytes.copy_within(from..from + 24, entry(block));
        return;
    }
    let at = entry(block) + 8 * rng.below(3);
    let value = if rng.one_in(3) {
        rng.pick(&fixture.files[file].records) as u64
    } else {
        harmful(rng, read_u64(bytes, at))
    };
    write_u64(bytes, at, value);
    if rng.one_in(4) {
        // An entry that agrees with a record, but not with its block.
        let record = rng.pick(&fixture.files[file].records);
        write_u64(bytes, entry(block), record as u64);
        let sequence = read_u64(bytes, record + 8);
        write_u64(bytes, entry(block) + 8, sequence);
    }
}

fn damage_record(fixture: &Fixture, rng: &mut Rng) {
    let file = pick_segment(fixture, rng);
    let bytes = fixture.bytes(file);
    let record = rng.pick(&fixture.files[file].records);
    match rng.below(8) {
        0..=3 => {
            let room = GEOMETRY.data_limit().saturating_sub(record + RECORD_HEADER_BYTES) as u32;
            let value = match rng.below(5) {
                0 => room.wrapping_add(1).wrapping_add(rng.below(20) as u32).wrapping_sub(10),
                1 => rng.pick(&EDGES) as u32,
                2 => 0,
                3 => u32::MAX,
                _ => rng.below(SEGMENT_BYTES) as u32,
            };
            write_u32(bytes, record, value);
        }
        4 => {
            let value = harmful(rng, read_u64(bytes, record + 8));
            write_u64(bytes, record + 8, value);
        }
        5 => {
            let value = harmful(rng, read_u64(bytes, record + 16));
            write_u64(bytes, record + 16, value);
        }
        6 => bytes[record + 4 + rng.below(4)] ^= 1 << rng.below(8),
        _ => {
            // The room for the last roll marker, and the words before it.
            let at = SEGMENT_BYTES - 8 * (1 + rng.below(4));
            let value = rng.pick(&EDGES);
            write_u64(bytes, at, value);
        }
    }
}

fn damage_table(fixture: &Fixture, rng: &mut Rng) {
    let Some(&table) = fixture.find(|n| n == "segments.table").first() else { return };
    let bytes = fixture.bytes(table);
    let entry = |slot: usize| 64 + 40 * slot;
    match rng.below(6) {
        0 => {
            let at = rng.pick(&[0, 8, 12, 16, 32]);
            let value = rng.next() as u32;
            write_u32(bytes, at, value);
            if rng.one_in(2) {
                seal(bytes, 32);
            }
        }
        1 => {
            let (from, to) = (entry(rng.below(8)), entry(rng.below(8)));
            bytes.copy_within(from..from + 40, to);
        }
        _ => {
            let at = entry(rng.below(8)) + 8 * rng.below(5);
            let value = harmful(rng, read_u64(bytes, at));
            write_u64(bytes, at, value);
        }
    }
}

fn damage_cursor(fixture: &Fixture, rng: &mut Rng) {
    let cursors = fixture.find(|n| n.starts_with("readers/"));
    let bytes = fixture.bytes(rng.pick(&cursors));
    assert!(bytes.len() == CURSOR_BYTES);
    match rng.below(4) {
        0 => {
            let at = rng.pick(&[0, 8, 12, 16, 32]);
            let value = rng.next() as u32;
            write_u32(bytes, at, value);
            if rng.one_in(2) {
                let (head, tail) = (bytes[..12].to_vec(), bytes[16..40].to_vec());
                let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &tail);
                write_u32(bytes, 12, crc);
            }
        }
        1 if rng.one_in(2) => bytes.fill(0),
        _ => {
            let at = rng.pick(&[128, 128, 136, 136, 144]);
            let value = harmful(rng, read_u64(bytes, at));
            write_u64(bytes, at, value);
        }
    }
}

fn damage_anywhere(fixture: &Fixture, rng: &mut Rng) {
    let file = rng.below(fixture.files.len());
    let bytes = fixture.bytes(file);
    if bytes.is_empty() {
        return;
    }
    let at = rng.below(bytes.len());
    let len = (1 + rng.below(256)).min(bytes.len() - at);
    match rng.below(6) {
        0 | 1 => bytes[at] ^= 1 << rng.below(8),
        2 => bytes[at..at + len].fill(rng.pick(&[0, 1, 0x80, 0xFF])),
        3 => bytes[at..at + len].fill_with(|| rng.next() as u8),
        4 => {
            let from = rng.below(bytes.len() - len + 1);
            bytes.copy_within(from..from + len, at);
        }
        _ => {
            // A page of another moment, or of another file.
            let other = rng.below(fixture.files.len());
            let source = &fixture.files[other].pristine;
            let (page, from) = (at / 4096 * 4096, rng.below(source.len() / 4096 + 1) * 4096);
            let n = 4096.min(bytes.len() - page).min(source.len().saturating_sub(from));
            bytes[page..page + n].copy_from_slice(&source[from..from + n]);
        }
    }
}

/// Lengths, kinds and names of files. Runs after the damage in place, which needs whole files.
fn damage_structure(fixture: &Fixture, rng: &mut Rng) {
    let file = rng.below(fixture.files.len());
    let path = fixture.path(file);
    let len = fixture.files[file].pristine.len() as u64;
    match rng.below(10) {
        0..=2 => {
            let lens = [
                0,
                1,
                40,
                4095,
                4096,
                4097,
                len / 2,
                len.wrapping_sub(1),
                len + 1,
                len + 4096,
                2 * len,
            ];
            let new_len = rng.pick(&lens).min(1 << 24);
            let Ok(file) = OpenOptions::new().write(true).open(&path) else { return };
            file.set_len(new_len).unwrap();
        }
        3 => {
            // Cut in front: every field stands in the wrong place.
            let kept = fixture.files[file].pristine.get(8..).unwrap_or_default();
            remove_anything(&path);
            std::fs::write(&path, kept).unwrap();
        }
        4 => {
            let bytes = fixture.foreign.get(file).cloned().unwrap_or_default();
            remove_anything(&path);
            std::fs::write(&path, bytes).unwrap();
        }
        5 => {
            let names = fixture.find(|n| n.starts_with("segments/"));
            swap(&fixture.path(rng.pick(&names)), &fixture.path(rng.pick(&names)));
        }
        6 => swap(&path, &fixture.path(rng.below(fixture.files.len()))),
        7 => replace_by_other_kind(&path, rng),
        8 => remove_anything(&path),
        _ => add_or_replace_tree(fixture, rng),
    }
}

fn swap(a: &Path, b: &Path) {
    let aside = a.with_extension("aside");
    let _ = std::fs::rename(a, &aside);
    let _ = std::fs::rename(b, a);
    let _ = std::fs::rename(&aside, b);
}

fn make_fifo(path: &Path) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a NUL-terminated path.
    unsafe { libc::mkfifo(path.as_ptr(), 0o600) };
}

fn replace_by_other_kind(path: &Path, rng: &mut Rng) {
    let kept = path.with_extension("kept");
    let kind = rng.below(6);
    if kind == 0 {
        let _ = std::fs::rename(path, &kept);
        std::os::unix::fs::symlink(&kept, path).unwrap();
        return;
    }
    remove_anything(path);
    match kind {
        1 => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        2 => std::os::unix::fs::symlink(path, path).unwrap(),
        3 => make_fifo(path),
        4 => std::fs::create_dir(path).unwrap(),
        _ => drop(std::os::unix::net::UnixListener::bind(path)),
    }
}

fn add_or_replace_tree(fixture: &Fixture, rng: &mut Rng) {
    let root = &fixture.root;
    match rng.below(6) {
        0 => {
            let sub = root.join(rng.pick(&["segments", "readers"]));
            let aside = root.join("moved");
            let _ = std::fs::rename(&sub, &aside);
            if rng.one_in(2) {
                std::os::unix::fs::symlink(&aside, &sub).unwrap();
            }
        }
        1 => {
            // Segments with numbers at the end of the numbers, with right headers, and words that lead there.
            let index =
                rng.pick(&[u64::MAX, u64::MAX - 1, u64::MAX >> 16, (u64::MAX >> 16) + 1, 1 << 47]);
            let file = pick_segment(fixture, rng);
            let mut bytes = fixture.files[file].pristine.clone();
            write_u64(&mut bytes, 32, index);
            seal(&mut bytes, 40);
            let _ = std::fs::write(root.join(format!("segments/{index:020}.seg")), bytes);
            if let (Some(&control), true) =
                (fixture.find(|n| n == "control").first(), rng.one_in(2))
            {
                let at = rng.pick(&[136, 384]);
                poke(&fixture.path(control), at, index);
                if rng.one_in(2) {
                    poke(&fixture.path(control), 520 - at + 136 - 136, index);
                }
            }
        }
        2 => {
            let name = rng.pick(&[
                "x.seg",
                ".cursor",
                "a b.cursor",
                "00000000000000000009.seg",
                "x.tmp",
                "x.cut",
            ]);
            let sub = rng.pick(&["segments", "readers"]);
            let path = root.join(sub).join(name);
            match rng.below(3) {
                0 => drop(std::fs::write(path, [0; 4096])),
                1 => make_fifo(&path),
                _ => drop(std::fs::create_dir(path)),
            }
        }
        3 => drop(std::fs::remove_dir_all(root.join("segments"))),
        4 => {
            // A copy of a segment under another number.
            let file = pick_segment(fixture, rng);
            let _ = std::fs::write(
                root.join(format!("segments/{:020}.seg", rng.below(9))),
                &fixture.files[file].pristine,
            );
        }
        _ => remove_anything(root),
    }
}

/// Stores a word through the file, which may be shorter than it was.
fn poke(path: &Path, at: u64, value: u64) {
    if let Ok(file) = OpenOptions::new().write(true).open(path) {
        let _ = file.write_all_at(&value.to_le_bytes(), at);
    }
}

fn damage(fixture: &Fixture, rng: &mut Rng) {
    for _ in 0..1 + rng.below(4) {
        match rng.below(16) {
            0..=2 => damage_control(fixture, rng),
            3 | 4 => damage_segment_header(fixture, rng),
            5 | 6 => damage_index(fixture, rng),
            7..=9 => damage_record(fixture, rng),
            10 | 11 => damage_table(fixture, rng),
            12 | 13 => damage_cursor(fixture, rng),
            _ => damage_anywhere(fixture, rng),
        }
    }
    if rng.one_in(3) {
        reboot(fixture, rng);
    }
    if rng.one_in(8) {
        damage_structure(fixture, rng);
    }
}

// --- Everything that opens a queue ---

/// What a run met, so that the test can show that it did not only meet errors.
#[derive(Default)]
struct Met {
    records: u64,
    gaps: u64,
    errors: u64,
    opened: u64,
    appended: u64,
}

/// Every error is one that a user can act on.
fn note(met: &mut Met, error: &Error) {
    met.errors += 1;
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() < 10_000, "{text}");
}

/// Checks one delivered record against the sequence before it, and against what was written if the queue can vouch for it.
fn check_record(fixture: &Fixture, reader: &Reader, sequence: u64, payload: &[u8], type_id: u16) {
    let vouched = fixture.checksum && reader.queue().has_checksums() && !fixture.rewritten.get();
    if vouched && sequence < fixture.sequence_end {
        assert_eq!(payload, payload_of(sequence), "sequence {sequence}");
        assert_eq!(type_id, type_of(sequence));
    }
    // Touch every byte: the guard sees what is out of range.
    std::hint::black_box(payload.iter().fold(0_u8, |sum, b| sum ^ b));
}

/// Reads on until the end or an error that stays.
fn read_all(fixture: &Fixture, reader: &mut Reader, met: &mut Met, by_runs: bool) {
    let mut last: Option<u64> = None;
    for step in 0.. {
        assert!(step < STEPS_MAX, "the reader does not come to an end");
        let next = if by_runs {
            reader.next_run(7).map(|run| {
                run.map(|run| {
                    let end = run.offset + run.count * run.stride;
                    assert!(run.count >= 1 && end <= run.segment.geometry.segment_bytes());
                    (run.first_sequence, run.first_sequence.wrapping_add(run.count as u64 - 1))
                })
            })
        } else {
            reader.next().map(|record| {
                record.map(|r| (r.raw.sequence, r.payload().to_vec(), r.raw.type_id)).map(
                    |(sequence, payload, type_id)| {
                        CHECK.with(|c| c.replace(Some((payload, type_id))));
                        (sequence, sequence)
                    },
                )
            })
        };
        match next {
            Ok(Some((first, through))) => {
                if let Some(last) = last {
                    assert_eq!(first, last.wrapping_add(1), "a hole that nobody reported");
                }
                if let Some((payload, type_id)) = CHECK.with(std::cell::RefCell::take) {
                    check_record(fixture, reader, first, &payload, type_id);
                }
                last = Some(through);
                met.records += 1;
            }
            Ok(None) => return,
            Err(error) => {
                note(met, &error);
                if !matches!(error.kind(), ErrorKind::Gap { .. }) {
                    // It stays: nothing is skipped by asking again.
                    assert!(reader.next().is_err());
                    return;
                }
                met.gaps += 1;
                last = None;
            }
        }
    }
}

thread_local! {
    /// The payload just delivered: the borrow of the reader ends before it is checked.
    static CHECK: std::cell::RefCell<Option<(Vec<u8>, u16)>> = const { std::cell::RefCell::new(None) };
}

fn starts(fixture: &Fixture, rng: &mut Rng) -> Vec<Start> {
    let sequence = 1 + rng.next() % (fixture.sequence_end + 2);
    vec![
        Start::Resume,
        Start::Earliest,
        Start::Latest,
        Start::Sequence(sequence),
        Start::Sequence(rng.pick(&EDGES)),
        Start::Time(timestamp_of(sequence)),
        Start::Time(rng.pick(&EDGES)),
    ]
}

fn use_reader(fixture: &Fixture, rng: &mut Rng, met: &mut Met) {
    let starts = starts(fixture, rng);
    let name = rng.pick(&[Some("r"), Some("r"), Some("new"), None]);
    let first = rng.below(starts.len());
    let mut opened = None;
    for i in 0..starts.len() {
        match Reader::open(&fixture.root, name, starts[(first + i) % starts.len()]) {
            Ok(reader) => {
                opened = Some(reader);
                break;
            }
            Err(error) => note(met, &error),
        }
    }
    let Some(mut reader) = opened else { return };
    met.opened += 1;
    read_all(fixture, &mut reader, met, rng.one_in(4));
    reader.commit();
    for _ in 0..3 {
        let start = rng.pick(&starts);
        match reader.seek(start) {
            Ok(()) => {
                let _ = reader.wait_target().is_ready();
                look_at_first(fixture, &mut reader, start, met);
            }
            Err(error) => note(met, &error),
        }
    }
    if rng.one_in(3) && reader.seek(Start::Earliest).is_ok() {
        read_all(fixture, &mut reader, met, rng.one_in(4));
    }
    reader.commit();
}

/// After a seek by sequence the record is that one, or there is an error, or it is yet to be written.
fn look_at_first(fixture: &Fixture, reader: &mut Reader, start: Start, met: &mut Met) {
    let expected = reader.next_sequence();
    match reader.next() {
        Ok(Some(record)) => {
            let sequence = record.raw.sequence;
            let (payload, type_id) = (record.payload().to_vec(), record.raw.type_id);
            assert_eq!(sequence, expected);
            if let Start::Sequence(wanted) = start {
                assert_eq!(sequence, wanted.max(1));
            }
            check_record(fixture, reader, sequence, &payload, type_id);
            met.records += 1;
        }
        Ok(None) => {}
        Err(error) => note(met, &error),
    }
}

fn use_fan_in(fixture: &Fixture, other: &Fixture, rng: &mut Rng, met: &mut Met) {
    let mut fan = FanIn::new(rng.pick(&[MergeMode::Live, MergeMode::Strict]));
    for (root, name) in [(&fixture.root, Some("r")), (&other.root, None), (&fixture.root, None)] {
        match Reader::open(root, name, rng.pick(&[Start::Earliest, Start::Resume])) {
            Ok(reader) => drop(fan.add(reader)),
            Err(error) => note(met, &error),
        }
    }
    let mut last = [None; 3];
    let mut errors = [0; 3];
    for step in 0.. {
        assert!(step < 4 * STEPS_MAX, "the fan-in does not come to an end");
        match fan.next() {
            Ok(Some((source, record))) => {
                if let Some(last) = last[source] {
                    assert_eq!(record.raw.sequence, last + 1_u64, "a hole that nobody reported");
                }
                last[source] = Some(record.raw.sequence);
                std::hint::black_box(record.payload().iter().fold(0_u8, |sum, b| sum ^ b));
                met.records += 1;
            }
            Ok(None) => break,
            Err((source, error)) => {
                note(met, &error);
                last[source] = None;
                errors[source] += 1;
                if errors[source] > 3 {
                    fan.remove(source);
                }
            }
        }
    }
    fan.commit();
    let wait = chronicle_core::wait::WaitStrategy::Spin;
    if let Err(error) = fan.wait(wait, Some(std::time::Duration::ZERO)) {
        note(met, &error);
    }
}

fn use_tools(fixture: &Fixture, rng: &mut Rng, met: &mut Met) {
    match inspect::info(&fixture.root) {
        Ok(info) => assert!(info.segments.len() < 100),
        Err(error) => note(met, &error),
    }
    let mut calls = 0;
    let verified = inspect::verify(&fixture.root, |done, of| {
        assert!(done < of);
        calls += 1;
        assert!(calls < 10_000, "verify does not come to an end");
    });
    match verified {
        Ok(report) => assert!(report.damage.len() < 100, "{}", report.damage.len()),
        Err(error) => note(met, &error),
    }
    match QueueDir::open(&fixture.root, true) {
        Ok(queue) => {
            let live = rng.one_in(2).then(|| Reader::open(&fixture.root, Some("r"), Start::Resume));
            let policy = RetentionPolicy {
                bytes_max: rng.pick(&[None, Some(0), Some(1 << 17), Some(u64::MAX)]),
                age_ns_max: rng.pick(&[None, Some(0), Some(1), Some(u64::MAX)]),
            };
            if let Err(error) = retention::apply(&queue, &policy) {
                note(met, &error);
            }
            drop(live);
            if let Err(error) = cursor::remove(&queue, "other") {
                note(met, &error);
            }
        }
        Err(error) => note(met, &error),
    }
}

fn use_writer(fixture: &Fixture, rng: &mut Rng, met: &mut Met) {
    let mut writer = match Writer::open(&fixture.root, &options(fixture.checksum)) {
        Ok(writer) => writer,
        Err(error) => return note(met, &error),
    };
    let mut reader =
        match Reader::open(&fixture.root, None, Start::Sequence(writer.next_sequence())) {
            Ok(reader) => Some(reader),
            Err(error) => {
                note(met, &error);
                None
            }
        };
    let first = writer.next_sequence();
    for _ in 0..1 + rng.below(24) {
        if let Err(error) = append_something(&mut writer, rng) {
            note(met, &error);
            break;
        }
    }
    if rng.one_in(4)
        && let Err(error) = writer.flush()
    {
        note(met, &error);
    }
    met.appended += writer.next_sequence().wrapping_sub(first);
    let Some(reader) = &mut reader else { return };
    let mut expected = first;
    loop {
        match reader.next() {
            Ok(Some(record)) => {
                assert_eq!(record.raw.sequence, expected, "what was appended is read back");
                expected += 1;
            }
            Ok(None) => {
                assert_eq!(expected, writer.next_sequence(), "what was appended is read back");
                return;
            }
            Err(error) => return note(met, &error),
        }
    }
}

fn append_something(writer: &mut Writer, rng: &mut Rng) -> Result<(), Error> {
    let buffer = [0xA5_u8; 8192];
    match rng.below(4) {
        0 => {
            let len = rng.pick(&[0, 1, 8, 100, 8000, GEOMETRY.payload_bytes_max(), 70_000]);
            writer.append(1, &vec![0x5A; len], None).map(drop).or_else(|error| match error.kind() {
                ErrorKind::TooLarge { .. } => Ok(()),
                _ => Err(error),
            })
        }
        1 => writer.append_many(2, &buffer, rng.pick(&[8, 64, 4096]), Some(rng.next())).map(drop),
        2 => writer
            .append_mixed(MixedBatch {
                buffer: &buffer,
                offsets: &[0, 8, 8000],
                lengths: &[8, 7000, 0],
                type_ids: &[1, 2, 3],
                timestamps_ns: &[],
            })
            .map(drop),
        _ => writer.append(3, &buffer[..rng.below(4000)], Some(rng.next())).map(drop),
    }
}

/// One mutation: damage, use, mend.
fn run_one(fixtures: &mut [Fixture; 2], seed: u64, number: u64, met: &mut Met) {
    let mut rng = Rng::of(seed, number);
    let which = rng.below(2);
    let (fixture, other) = (&fixtures[which], &fixtures[1 - which]);
    damage(fixture, &mut rng);
    fixture.rewritten.set(false);
    use_reader(fixture, &mut rng, met);
    if rng.one_in(5) {
        use_fan_in(fixture, other, &mut rng, met);
    }
    if rng.one_in(4) {
        use_tools(fixture, &mut rng, met);
    }
    if rng.one_in(3) {
        use_writer(fixture, &mut rng, met);
        fixture.rewritten.set(true);
        if rng.one_in(4) {
            // What the writer has made of it is hostile, too.
            use_reader(fixture, &mut rng, met);
        }
    }
    fixtures[which].mend();
}

// --- Children and their driver ---

fn shared_memory() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

fn env_u64(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let text = text.trim();
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn arm_alarm() {
    let limit = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: ALARM_SECONDS, tv_usec: 0 },
    };
    // SAFETY: a valid timer description; nothing is written back.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &limit, std::ptr::null_mut()) };
}

/// Runs the mutations `first, first + step, ...` below `end`; writes each number to `progress` before it begins.
fn run_range(seed: u64, first: u64, step: u64, end: u64, progress: &File) -> Met {
    arm_alarm();
    let base = shared_memory().join(format!("chronicle-hostile-{}", std::process::id()));
    let mut fixtures =
        [Fixture::new(base.join("checksums"), true, 0), Fixture::new(base.join("plain"), false, 2)];
    let mut met = Met::default();
    let mut number = first;
    while number < end {
        progress.write_all_at(&number.to_le_bytes(), 0).unwrap();
        arm_alarm();
        run_one(&mut fixtures, seed, number, &mut met);
        number += step;
    }
    drop(fixtures);
    std::fs::remove_dir_all(base).unwrap();
    met
}

#[test]
#[ignore = "run by the driver, in a process of its own"]
fn child() {
    let Ok(plan) = std::env::var("CHRONICLE_HOSTILE_PLAN") else { return };
    let mut parts = plan.splitn(5, ',');
    let mut number = || parts.next().unwrap().parse().unwrap();
    let (seed, first, step, end) = (number(), number(), number(), number());
    let progress = OpenOptions::new().write(true).open(parts.next().unwrap()).unwrap();
    let met = run_range(seed, first, step, end, &progress);
    for (i, count) in
        [met.records, met.gaps, met.errors, met.opened, met.appended].iter().enumerate()
    {
        progress.write_all_at(&count.to_le_bytes(), 8 + 8 * i as u64).unwrap();
    }
}

fn child_command(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

#[test]
fn no_mutation_of_a_queue_crashes_hangs_or_reads_out_of_range() {
    let seed = env_u64("CHRONICLE_SEED").unwrap_or(SEED_DEFAULT);
    if let Some(one) = env_u64("CHRONICLE_HOSTILE_ONE") {
        let progress = tempfile("one");
        std::fs::remove_file(&progress.1).unwrap();
        run_range(seed, one, 1, one + 1, &progress.0);
        return;
    }
    let full = std::env::var("CHRONICLE_FIRE").is_ok_and(|v| v == "full");
    let count = env_u64("CHRONICLE_HOSTILE_COUNT").unwrap_or(if full {
        MUTATIONS_FULL
    } else {
        MUTATIONS_FULL / 10
    });
    println!("seed={seed:#x} mutations={count}");
    let children: Vec<_> = (0..CHILDREN)
        .map(|i| {
            let (file, path) = tempfile(&i.to_string());
            let plan = format!("{seed},{i},{CHILDREN},{count},{}", path.display());
            let child = child_command("child")
                .env("CHRONICLE_HOSTILE_PLAN", plan)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            (child, file, path)
        })
        .collect();
    let mut met = [0; 5];
    let mut failures = String::new();
    for (mut child, file, path) in children {
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = child.wait().unwrap();
        let word = |i: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, 8 * i).map_or(0, |()| u64::from_le_bytes(bytes))
        };
        if !status.success() {
            let how = status.signal().map_or(format!("{status}"), |s| format!("signal {s}"));
            failures += &format!(
                "mutation {} ended its process: {how}\n  again: CHRONICLE_SEED={seed} CHRONICLE_HOSTILE_ONE={}\n{stderr}\n",
                word(0),
                word(0)
            );
            let _ = std::fs::remove_dir_all(
                shared_memory().join(format!("chronicle-hostile-{}", child.id())),
            );
        }
        for (i, sum) in met.iter_mut().enumerate() {
            *sum += word(1 + i as u64);
        }
        std::fs::remove_file(path).unwrap();
    }
    assert!(failures.is_empty(), "{failures}");
    let [records, gaps, errors, opened, appended] = met;
    println!("records={records} gaps={gaps} errors={errors} readers={opened} appended={appended}");
    assert!(
        records > count
            && errors > count / 10
            && opened > count / 10
            && appended > count / 10
            && gaps > 0
    );
}

fn tempfile(name: &str) -> (File, PathBuf) {
    let path = shared_memory().join(format!("chronicle-hostile-{}-{name}", std::process::id()));
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    (file, path)
}

/// The guard itself: without it, a read past the end of a mapping could find a neighbour and go unseen.
#[test]
#[ignore = "run by the driver, in a process of its own"]
fn child_that_reads_past_the_end() {
    if std::env::var("CHRONICLE_HOSTILE_PAST_END").is_err() {
        return;
    }
    arm_alarm();
    let (file, path) = tempfile("past");
    file.set_len(8192).unwrap();
    std::fs::remove_file(path).unwrap();
    let map = chronicle_core::os::map::Map::new(&file, 8192, false).unwrap();
    // SAFETY: it is not: this is the mistake that the guard must turn into a crash.
    std::hint::black_box(unsafe { map.base().add(8192).read_volatile() });
}

#[test]
fn a_read_past_the_end_of_a_mapping_is_a_crash_in_these_tests() {
    let status = child_command("child_that_reads_past_the_end")
        .env("CHRONICLE_HOSTILE_PAST_END", "1")
        .stderr(Stdio::null())
        .status()
        .unwrap();
    // A signal, or the exit code of a memory checker that caught it.
    assert!(!status.success(), "{status}");
    assert_eq!(SEGMENT_BYTES % RECORD_ALIGN, 0);
}
