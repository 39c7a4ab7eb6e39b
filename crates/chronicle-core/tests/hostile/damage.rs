//! The ways to damage a queue.

use crate::fixture::*;
use chronicle_core::layout::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub const EDGES: [u64; 30] = [
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

pub fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn write_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub fn write_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub fn seal(bytes: &mut [u8], crc_at: usize) {
    let crc = crc32c::crc32c(&bytes[..crc_at]);
    write_u32(bytes, crc_at, crc);
}

/// A word that somebody would choose who wants to do harm.
pub fn harmful(rng: &mut Rng, now: u64) -> u64 {
    match rng.below(6) {
        0 => now.wrapping_add(1),
        1 => now.wrapping_sub(1),
        2 => now.wrapping_add(rng.below(200) as u64).wrapping_sub(100),
        3 => now ^ (1 << rng.below(64)),
        _ => rng.pick(&EDGES),
    }
}

/// Word offsets of the control block that mean something.
pub const CONTROL_WORDS: [usize; 18] =
    [128, 136, 136, 136, 144, 152, 160, 168, 256, 384, 384, 384, 512, 520, 520, 640, 648, 664];

pub fn damage_control(fixture: &Fixture, rng: &mut Rng) {
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
pub fn reboot(fixture: &Fixture, rng: &mut Rng) {
    let Some(&control) = fixture.find(|n| n == "control").first() else { return };
    write_u64(fixture.bytes(control), 152, rng.next());
    if rng.one_in(2) {
        write_u64(fixture.bytes(control), 512, 0);
        write_u64(fixture.bytes(control), 520, 0);
    }
}

pub fn pick_segment(fixture: &Fixture, rng: &mut Rng) -> usize {
    let segments = fixture.find(|n| n.starts_with("segments/"));
    rng.pick(&segments)
}

pub fn damage_segment_header(fixture: &Fixture, rng: &mut Rng) {
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

pub fn damage_index(fixture: &Fixture, rng: &mut Rng) {
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

pub fn damage_record(fixture: &Fixture, rng: &mut Rng) {
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

pub fn damage_table(fixture: &Fixture, rng: &mut Rng) {
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

pub fn damage_cursor(fixture: &Fixture, rng: &mut Rng) {
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

pub fn damage_anywhere(fixture: &Fixture, rng: &mut Rng) {
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
pub fn damage_structure(fixture: &Fixture, rng: &mut Rng) {
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

pub fn swap(a: &Path, b: &Path) {
    let aside = a.with_extension("aside");
    let _ = std::fs::rename(a, &aside);
    let _ = std::fs::rename(b, a);
    let _ = std::fs::rename(&aside, b);
}

pub fn make_fifo(path: &Path) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a NUL-terminated path.
    unsafe { libc::mkfifo(path.as_ptr(), 0o600) };
}

pub fn replace_by_other_kind(path: &Path, rng: &mut Rng) {
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

pub fn add_or_replace_tree(fixture: &Fixture, rng: &mut Rng) {
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
            // Segments with numbers at the end of the numbers, with right headers, and words that
            // lead there.
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
pub fn poke(path: &Path, at: u64, value: u64) {
    if let Ok(file) = OpenOptions::new().write(true).open(path) {
        let _ = file.write_all_at(&value.to_le_bytes(), at);
    }
}

pub fn damage(fixture: &Fixture, rng: &mut Rng) {
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
