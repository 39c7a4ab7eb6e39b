//! The queue that is damaged, and what it should hold.

use crate::guard;
use chronicle_core::layout::{Geometry, record_stride};
use chronicle_core::queue::retention;
use chronicle_core::queue::segment::Segment;
use chronicle_core::{Options, Reader, RetentionPolicy, Start, Writer};
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub const SEGMENT_SHIFT: u32 = 16;
pub const SEGMENT_BYTES: usize = 1 << SEGMENT_SHIFT;
pub const GEOMETRY: Geometry = Geometry { segment_shift: SEGMENT_SHIFT };

/// SplitMix64 (Steele, Lea, Flood 2014): any two seeds give unrelated numbers.
pub struct Rng(pub u64);

impl Rng {
    pub fn of(seed: u64, number: u64) -> Self {
        let mut rng = Self(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        rng.next();
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

pub fn payload_of(sequence: u64) -> Vec<u8> {
    let len = 24 + (sequence * 37 % 400) as usize;
    (0..len as u64).map(|i| (sequence.wrapping_mul(31).wrapping_add(i * 7)) as u8).collect()
}

pub fn timestamp_of(sequence: u64) -> u64 {
    // Steps back now and then.
    1_000_000 + sequence * 10 - if sequence.is_multiple_of(7) { 35 } else { 0 }
}

pub fn type_of(sequence: u64) -> u16 {
    (sequence % 5) as u16
}

/// One file of the queue, with the bytes that it should have.
pub struct Original {
    pub name: String,
    pub pristine: Vec<u8>,
    pub inode: u64,
    /// A mapping of ours, writable, through which the file is damaged and mended.
    pub base: *mut u8,
    /// Offsets of the records, for segments.
    pub records: Vec<usize>,
}

pub struct Fixture {
    pub root: PathBuf,
    pub files: Vec<Original>,
    /// The same files of another queue.
    pub foreign: Vec<Vec<u8>>,
    pub checksum: bool,
    pub sequence_end: u64,
    /// Whether a writer of this mutation may have replaced what was written.
    pub rewritten: std::cell::Cell<bool>,
}

pub fn options(checksum: bool) -> Options {
    Options {
        segment_bytes: SEGMENT_BYTES as u64,
        checksum,
        // A page of table, and a ring that comes round.
        segments_max: 64,
        ..Options::default()
    }
}

/// Fills a queue with three written segments and a prepared one. `skip` segments are written first
/// and given to retention.
pub fn build(root: &Path, checksum: bool, skip: u64) -> u64 {
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

pub fn files_below(root: &Path) -> Vec<String> {
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

pub fn records_of(name: &str, bytes: &[u8]) -> Vec<usize> {
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
    pub fn new(root: PathBuf, checksum: bool, skip: u64) -> Self {
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

    pub fn path(&self, file: usize) -> PathBuf {
        self.root.join(&self.files[file].name)
    }

    /// Makes the directory anew from the copy.
    pub fn rebuild(&mut self) {
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
    pub fn is_intact(&self) -> bool {
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

    pub fn mend(&mut self) {
        if !self.is_intact() {
            self.rebuild();
            return;
        }
        for original in &self.files {
            if !original.base.is_null() {
                // SAFETY: our own mapping of that length, and the file has its whole length
                // (`is_intact`).
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
    pub fn bytes(&self, file: usize) -> &mut [u8] {
        let original = &self.files[file];
        if original.base.is_null() {
            return &mut [];
        }
        // SAFETY: our own mapping of that length; nothing of the code under test is open while it
        // is damaged.
        unsafe { std::slice::from_raw_parts_mut(original.base, original.pristine.len()) }
    }

    pub fn find(&self, wanted: impl Fn(&str) -> bool) -> Vec<usize> {
        (0..self.files.len()).filter(|&i| wanted(&self.files[i].name)).collect()
    }
}

pub fn remove_anything(path: &Path) {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}
