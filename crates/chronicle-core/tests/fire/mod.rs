//! What the two tests "under fire" share: sizes, seeds, records that show when they are torn, and a
//! scan that checks all.

#![allow(dead_code)] // Each test uses its part.

use chronicle_core::layout::{CONTROL_BYTES, ControlBlock};
use chronicle_core::{ErrorKind, GapReason, Reader, Start};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub const SEGMENT_BYTES: u64 = 1 << 16;

/// The full size if `CHRONICLE_FIRE=full`, otherwise a tenth.
pub fn scaled(full: usize) -> usize {
    if std::env::var("CHRONICLE_FIRE").is_ok_and(|v| v == "full") {
        full
    } else {
        full.div_ceil(10)
    }
}

/// `CHRONICLE_SEED`, or the test's own.
pub fn seed(default: u64) -> u64 {
    std::env::var("CHRONICLE_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and any seed will do.
#[derive(Clone)]
pub struct Rng(pub u64);

pub fn mix(value: u64) -> u64 {
    let z = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// 0 to `limit - 1`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// 1 to `limit`, small values more often.
    pub fn small(&mut self, limit: u64) -> u64 {
        let bits = u64::from(64 - limit.max(1).leading_zeros());
        let top = 1 << self.below(bits + 1);
        1 + self.below(limit.min(top))
    }

    /// The length of a payload: mostly small, sometimes longer than an index block.
    pub fn payload_bytes(&mut self) -> usize {
        (match self.below(100) {
            0..90 => self.below(200),
            90..99 => self.below(3_000),
            _ => self.below(30_000),
        }) as usize
    }
}

/// The only payload that a record of this number, type and length may have: a keyed hash, so that
/// bytes of another record, of another attempt or of none show.
pub fn payload(sequence: u64, type_id: u16, len: usize) -> Vec<u8> {
    const KEY: u64 = 0x6368_726f_6e69_636c;
    let mut rng = Rng(mix(KEY ^ sequence) ^ mix(u64::from(type_id) << 32 | len as u64));
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Rises, but for a step back now and then.
pub fn timestamp(sequence: u64) -> u64 {
    let step_back = if mix(sequence).is_multiple_of(16) { 500 } else { 0 };
    1_000_000 + sequence * 10 - step_back
}

pub fn check_record(sequence: u64, type_id: u16, found: &[u8]) {
    let expected = payload(sequence, type_id, found.len());
    assert!(
        found == expected,
        "torn record: sequence={sequence} type={type_id} len={}",
        found.len()
    );
}

/// One record of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub sequence: u64,
    pub timestamp_ns: u64,
    pub type_id: u16,
    pub len: usize,
}

/// Reads all there is from the oldest record on, and checks numbers and contents.
pub fn scan(path: &Path) -> Vec<Seen> {
    let mut reader = Reader::open(path, None, Start::Earliest).unwrap();
    let mut seen: Vec<Seen> = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(record)) => {
                let raw = record.raw;
                if let Some(before) = seen.last() {
                    assert_eq!(raw.sequence, before.sequence + 1, "numbers are not contiguous");
                }
                check_record(raw.sequence, raw.type_id, record.payload());
                let (sequence, timestamp_ns) = (raw.sequence, raw.timestamp_ns);
                seen.push(Seen { sequence, timestamp_ns, type_id: raw.type_id, len: raw.len });
            }
            Ok(None) => return seen,
            // The oldest messages were deleted; that is told once, before the first record.
            Err(e) => {
                let told = matches!(e.kind(), ErrorKind::Gap { reason: GapReason::Retention, .. });
                assert!(told && seen.is_empty(), "after {:?}: {e}", seen.last());
            }
        }
    }
}

/// Index and table agree with a naive search in what a scan has found.
pub fn check_seeks(path: &Path, seen: &[Seen], rng: &mut Rng, count: usize) {
    let (Some(first), Some(last)) = (seen.first(), seen.last()) else { return };
    let mut reader = Reader::open(path, None, Start::Latest).unwrap();
    assert_eq!(reader.next_sequence(), last.sequence + 1);
    assert!(reader.next().unwrap().is_none());
    for _ in 0..count {
        let sequence = first.sequence + rng.below(seen.len() as u64);
        reader.seek(Start::Sequence(sequence)).unwrap();
        let found = reader.next().unwrap().map(|r| r.raw.sequence);
        assert_eq!(found, Some(sequence));
        let time = seen[rng.below(seen.len() as u64) as usize].timestamp_ns + rng.below(3) - 1;
        reader.seek(Start::Time(time)).unwrap();
        let found = reader.next().unwrap().map(|r| r.raw.sequence);
        let naive = seen.iter().find(|s| s.timestamp_ns >= time).map(|s| s.sequence);
        assert_eq!(found, naive, "seek to time {time}");
    }
}

/// Memory, if there is a file system for it: nothing here is about the device.
pub fn scratch(name: &str) -> PathBuf {
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    let path = base.join(format!("chronicle-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Makes the next writer believe that the machine has been rebooted since the last.
pub fn forget_boot(queue: &Path) {
    let control = std::fs::OpenOptions::new().write(true).open(queue.join("control")).unwrap();
    assert_eq!(control.metadata().unwrap().len(), CONTROL_BYTES as u64);
    control.write_all_at(&[0xab; 16], offset_of!(ControlBlock, boot_id) as u64).unwrap();
}

pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Every fail point that the sources name.
pub fn named_points() -> Vec<String> {
    fn visit(dir: &Path, names: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, names);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let calls = text.split("failpoint::hit(\"").skip(1);
                names.extend(calls.map(|rest| rest.split('"').next().unwrap().to_owned()));
            }
        }
    }
    let mut names = Vec::new();
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    names.sort_unstable();
    names.dedup();
    names
}
