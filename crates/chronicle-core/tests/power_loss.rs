//! Takes the power away: builds what a disk may hold afterwards, and recovers it.
//!
//! The core tells this test of each fail point it passes and of each sync it has made. From that a
//! model of the disk is kept: every page of every file in all its versions, and for each the moment
//! of its last sync. A disk image takes each page, or each sector of 512 bytes, from any moment
//! since then; it may lack names that were created after the last sync of their directory, still
//! have those that were removed after it, and give files that never were synced a length of zero.
//! Then the boot id is changed and the writer opens the image.
//!
//! It must succeed on every image, with a prefix of what was written that holds all that was
//! flushed and retention has not taken. Some recovered images are written on, and lose their power
//! again.
//!
//! `CHRONICLE_FIRE=full` for 20,000 images, otherwise 2,000. `CHRONICLE_SEED` for another run.

#![expect(clippy::print_stdout, reason = "what was killed and cut is the report")]

mod fire;

use chronicle_core::failpoint::{self, Event};
use chronicle_core::layout::{
    CURSOR_MAGIC, ControlBlock, CursorBlock, Geometry, INDEX_BLOCK_BYTES, PAGE_BYTES, record_stride,
};
use chronicle_core::queue::recovery::{Cut, RecoveryReport};
use chronicle_core::queue::retention;
use chronicle_core::queue::segment::{self, Segment};
use chronicle_core::queue::writer::MixedBatch;
use chronicle_core::{ErrorKind, GapReason, Options, Reader, RetentionPolicy, Start, Writer};
use fire::{Rng, SEGMENT_BYTES, Seen, payload, scaled, timestamp};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Once;
use std::time::Instant;

const POLICY: RetentionPolicy =
    RetentionPolicy { bytes_max: Some(3 * SEGMENT_BYTES), age_ns_max: None };
const GEOMETRY: Geometry = Geometry { segment_shift: SEGMENT_BYTES.trailing_zeros() };
const CURSOR: &str = "readers/c.cursor";

// --- The disk ---

type Page = Rc<[u8; PAGE_BYTES]>;

/// All versions of a page, oldest first, and the moment of its last sync.
struct PageHistory {
    versions: Vec<(u64, Page)>,
    synced: u64,
}

struct FileHistory {
    created: u64,
    removed: Option<u64>,
    pages: Vec<PageHistory>,
}

/// What stands in the files, as bytes.
type Files = BTreeMap<String, Vec<u8>>;

/// The model of the disk below one queue directory.
struct Disk {
    root: PathBuf,
    /// Counts what was looked at.
    now: u64,
    files: BTreeMap<String, FileHistory>,
    /// By directory, the moment at which its names were synced.
    names_synced: BTreeMap<String, u64>,
    /// Files that were synced under another name.
    synced_as_tmp: Vec<String>,
    rng: Rng,
}

impl Disk {
    /// Whatever is in the directory is on disk.
    fn new(root: &Path, rng: Rng) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            now: 0,
            files: BTreeMap::new(),
            names_synced: BTreeMap::new(),
            synced_as_tmp: Vec::new(),
            rng,
        };
        disk.look();
        for file in disk.files.values_mut() {
            file.created = 0;
            for page in &mut file.pages {
                page.versions.drain(..page.versions.len() - 1);
                page.versions[0].0 = 0;
            }
        }
        disk
    }

    /// Notes everything that has changed since the last look.
    fn look(&mut self) {
        self.now += 1;
        let found = read_files(&self.root);
        for (name, file) in &mut self.files {
            if file.removed.is_none() && !found.contains_key(name) {
                file.removed = Some(self.now);
            }
        }
        for (name, bytes) in found {
            self.note(name, &bytes);
        }
    }

    fn note(&mut self, name: String, bytes: &[u8]) {
        let now = self.now;
        let synced = if self.synced_as_tmp.contains(&name) { now } else { 0 };
        let file = self.files.entry(name).or_insert_with(|| FileHistory {
            created: now,
            removed: None,
            pages: Vec::new(),
        });
        if file.removed.take().is_some() {
            // Another file under an old name.
            *file = FileHistory { created: now, removed: None, pages: Vec::new() };
        }
        for (i, chunk) in bytes.chunks(PAGE_BYTES).enumerate() {
            let mut page = [0; PAGE_BYTES];
            page[..chunk.len()].copy_from_slice(chunk);
            if file.pages.len() <= i {
                let zeros = (0, Rc::new([0; PAGE_BYTES]));
                file.pages.push(PageHistory { versions: vec![zeros], synced });
            }
            let versions = &mut file.pages[i].versions;
            if *versions[versions.len() - 1].1 != page {
                versions.push((now, Rc::new(page)));
            }
        }
    }

    fn relative(&self, path: &str) -> String {
        let path = Path::new(path).strip_prefix(&self.root).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn synced(&mut self, path: &str, offset: usize, len: usize) {
        let name = self.relative(path);
        if let Some(name) = name.strip_suffix(".tmp") {
            return self.synced_as_tmp.push(name.to_owned());
        }
        self.look();
        let now = self.now;
        // A file that was removed meanwhile need not be anywhere.
        let Some(file) = self.files.get_mut(&name) else { return };
        let end = offset.saturating_add(len);
        for (i, page) in file.pages.iter_mut().enumerate() {
            if i * PAGE_BYTES < end && (i + 1) * PAGE_BYTES > offset {
                page.synced = now;
            }
        }
    }

    fn names_synced(&mut self, path: &str) {
        let dir = self.relative(path);
        self.look();
        self.names_synced.insert(dir, self.now);
    }

    /// What may be there if the power fails now.
    fn image(&mut self) -> Files {
        let rng = &mut self.rng;
        let by_sector = rng.chance(2);
        // How pages are picked: 0 evenly, 1 mostly the newest, 2 mostly the oldest, 3 all or
        // nothing.
        let taste = rng.below(4);
        let loses_names = rng.chance(2);
        let mut files = Files::new();
        for (name, file) in &self.files {
            let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
            let names_synced = self.names_synced.get(dir).copied().unwrap_or(0);
            if file.removed.is_some_and(|at| at <= names_synced || !rng.chance(2)) {
                continue;
            }
            if file.created > names_synced && loses_names && rng.chance(3) {
                continue;
            }
            if file.pages.iter().all(|p| p.synced == 0) && file.created > 0 && rng.chance(12) {
                files.insert(name.clone(), Vec::new());
                continue;
            }
            let bytes =
                file.pages.iter().flat_map(|page| pick(page, taste, by_sector, rng)).collect();
            files.insert(name.clone(), bytes);
        }
        files
    }
}

/// One page as it may be on disk.
fn pick(page: &PageHistory, taste: u64, by_sector: bool, rng: &mut Rng) -> Vec<u8> {
    // From the version at the last sync on.
    let first = page.versions.iter().rposition(|(at, _)| *at <= page.synced).unwrap_or(0);
    let choice = &page.versions[first..];
    let mut one = || {
        let extreme = !rng.chance(8);
        let i = match taste {
            1 if extreme => choice.len() - 1,
            2 if extreme => 0,
            3 if rng.chance(2) => choice.len() - 1,
            3 => 0,
            _ => rng.below(choice.len() as u64) as usize,
        };
        &choice[i].1
    };
    if !by_sector {
        return one().to_vec();
    }
    (0..PAGE_BYTES).step_by(512).flat_map(|at| one()[at..at + 512].to_vec()).collect()
}

/// All files but those that are being built and the lock.
fn read_files(root: &Path) -> Files {
    let mut files = Files::new();
    for dir in ["", "segments", "readers"] {
        let Ok(entries) = std::fs::read_dir(root.join(dir)) else { continue };
        for entry in entries.map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_file()
                && name != "writer.lock"
                && !name.ends_with(".tmp")
            {
                let name = if dir.is_empty() { name } else { format!("{dir}/{name}") };
                files.insert(name, std::fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

fn write_files(root: &Path, files: &Files) {
    let _ = std::fs::remove_dir_all(root);
    for dir in ["segments", "readers"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::write(root.join("writer.lock"), b"").unwrap();
    for (name, bytes) in files {
        std::fs::write(root.join(name), bytes).unwrap();
    }
    fire::forget_boot(root);
}

// --- Listening to the core ---

/// What an image is checked against.
#[derive(Clone, Default)]
struct Truth {
    /// All that was ever committed, or was about to be; number 1 first.
    committed: Vec<Seen>,
    /// Up to here by a flush (or a recovery) that has come to its end.
    flushed: u64,
    /// Taken while a writer was being opened.
    in_open: bool,
}

#[derive(Default)]
struct Tap {
    disk: Option<Disk>,
    truth: Truth,
    /// Images that were taken between two stores.
    images: Vec<(Files, Truth)>,
    /// Panic at the point with this number, as a stand-in for a kill.
    die_at: Option<u64>,
    hits: u64,
}

thread_local! {
    static TAP: RefCell<Tap> = RefCell::default();
}

fn tap<T>(f: impl FnOnce(&mut Tap) -> T) -> T {
    TAP.with(|tap| f(&mut tap.borrow_mut()))
}

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        failpoint::observe(Box::new(|event| {
            let dies = tap(|tap| {
                tap.hits += 1;
                tap.hear(&event);
                tap.die_at == Some(tap.hits)
            });
            if dies {
                std::panic::resume_unwind(Box::new("the power is gone"));
            }
        }));
    });
}

impl Tap {
    fn hear(&mut self, event: &Event<'_>) {
        let Some(disk) = &mut self.disk else { return };
        match event {
            Event::Synced { path, offset, len } => disk.synced(path, *offset, *len),
            Event::NamesSynced { path } => disk.names_synced(path),
            Event::Hit(name) => {
                // Rare points are worth more than the many of an append.
                let is_common =
                    ["append", "fill", "batch", "index"].iter().any(|p| name.starts_with(p));
                if disk.rng.chance(if is_common { 100 } else { 4 }) {
                    disk.look();
                    // Before the control file is durable there is no queue.
                    let is_queue = disk.files.get("control").is_some_and(|control| {
                        disk.names_synced.get("").copied().unwrap_or(0) >= control.created
                    });
                    if is_queue && disk.rng.chance(8) {
                        self.images.push((disk.image(), self.truth.clone()));
                    }
                }
            }
        }
    }
}

// --- A history of a queue ---

fn options(checksum: bool) -> Options {
    Options { segment_bytes: SEGMENT_BYTES, checksum, segments_max: 64, ..Options::default() }
}

struct Story {
    path: PathBuf,
    checksum: bool,
    writer: Option<Writer>,
    rng: Rng,
}

impl Story {
    /// Opens the writer with the disk listening from the first store on.
    fn start(path: &Path, checksum: bool, mut rng: Rng, truth: Truth) -> Self {
        let disk = Disk::new(path, Rng(rng.next()));
        tap(|tap| {
            tap.disk = Some(disk);
            tap.truth = truth;
        });
        let mut story = Self { path: path.to_owned(), checksum, writer: None, rng };
        story.open();
        // Whatever was cut off must not come back from here on, and what was recovered is durable.
        tap(|tap| {
            let next = story.writer().next_sequence();
            tap.truth.committed.truncate(next as usize - 1);
            tap.truth.flushed = next - 1;
        });
        story
    }

    fn open(&mut self) {
        tap(|tap| tap.truth.in_open = true);
        self.writer = None;
        self.writer = Some(Writer::open(&self.path, &options(self.checksum)).unwrap());
        tap(|tap| tap.truth.in_open = false);
    }

    fn writer(&mut self) -> &mut Writer {
        self.writer.as_mut().unwrap()
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..45 => self.append(),
            45..65 => {
                let (count, len) = (1 + self.rng.below(60), 1 + self.rng.below(400) as usize);
                self.append_many(count, len);
            }
            65..78 => self.append_mixed(),
            78..87 => {
                let flushed = self.writer().flush().unwrap();
                tap(|tap| tap.truth.flushed = flushed);
            }
            87..91 => drop(retention::apply(self.writer().queue(), &POLICY).unwrap()),
            91..95 => self.read(),
            95 => self.open(),
            _ => self.die_in_a_batch(),
        }
        tap(|tap| {
            if let Some(disk) = &mut tap.disk
                && disk.rng.chance(3)
            {
                disk.look();
            }
        });
    }

    /// What the next call will write, so that images from within know of it.
    fn will_write(&mut self, records: impl Iterator<Item = (u16, usize, u64)>) {
        let next = self.writer().next_sequence();
        let records = records.enumerate().map(|(i, (type_id, len, timestamp_ns))| Seen {
            sequence: next + i as u64,
            timestamp_ns,
            type_id,
            len,
        });
        tap(|tap| tap.truth.committed.extend(records));
    }

    fn append(&mut self) {
        let (sequence, len) = (self.writer().next_sequence(), self.rng.payload_bytes());
        let time = timestamp(sequence);
        self.will_write(std::iter::once((1, len, time)));
        self.writer().append(1, &payload(sequence, 1, len), Some(time)).unwrap();
    }

    fn append_many(&mut self, count: u64, len: usize) {
        let first = self.writer().next_sequence();
        let bytes: Vec<u8> = (first..first + count).flat_map(|s| payload(s, 2, len)).collect();
        let time = timestamp(first);
        self.will_write((0..count).map(|_| (2, len, time)));
        self.writer().append_many(2, &bytes, len, Some(time)).unwrap();
    }

    fn append_mixed(&mut self) {
        let first = self.writer().next_sequence();
        let count = 1 + self.rng.below(20);
        let (mut buffer, mut offsets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        let (mut type_ids, mut timestamps_ns) = (Vec::new(), Vec::new());
        for sequence in first..first + count {
            let bytes = payload(sequence, 3, self.rng.payload_bytes());
            offsets.push(buffer.len() as u64);
            lengths.push(bytes.len() as u32);
            type_ids.push(3);
            timestamps_ns.push(timestamp(sequence));
            buffer.extend_from_slice(&bytes);
        }
        let lens: Vec<_> = lengths.iter().map(|&len| len as usize).collect();
        self.will_write(lens.iter().zip(&timestamps_ns).map(|(&len, &time)| (3, len, time)));
        let (buffer, offsets, lengths) = (&buffer[..], &offsets[..], &lengths[..]);
        let (type_ids, timestamps_ns) = (&type_ids[..], &timestamps_ns[..]);
        let batch = MixedBatch { buffer, offsets, lengths, type_ids, timestamps_ns };
        self.writer().append_mixed(batch).unwrap();
    }

    /// A reader comes, reads a while, commits and goes.
    fn read(&mut self) {
        let mut reader = Reader::open(&self.path, Some("c"), Start::Resume).unwrap();
        for _ in 0..self.rng.below(600) {
            match reader.next() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(e) => assert!(matches!(e.kind(), ErrorKind::Gap { .. }), "{e}"),
            }
        }
        reader.commit();
    }

    /// The writer is killed when a batch is written, but for its first commit word; the next one
    /// writes records of the same size and number there. The old ones, whole and with good
    /// checksums, must never turn up.
    fn die_in_a_batch(&mut self) {
        // Small, so that now and then one ends where a page or a sector does.
        let (count, len) = (50 + self.rng.below(100), 1 + self.rng.below(8) as usize);
        let first = self.writer().next_sequence();
        let position = self.writer().next_position();
        let (index, offset) = (GEOMETRY.segment_of(position), GEOMETRY.offset_of(position));
        let end = offset + count as usize * record_stride(len);
        // Neither a roll nor an index entry: that would be stored after the commit.
        let segment = Segment::open(self.writer().queue(), index, true).unwrap();
        let entry = segment.index_entry(offset / INDEX_BLOCK_BYTES);
        let is_indexed = entry.offset.load(std::sync::atomic::Ordering::Acquire) != 0;
        let one_block = offset / INDEX_BLOCK_BYTES == end / INDEX_BLOCK_BYTES;
        if !is_indexed || !one_block || end > GEOMETRY.data_limit() {
            return;
        }
        let disk = tap(|tap| tap.disk.take());
        let bytes: Vec<u8> = (first..first + count).flat_map(|s| payload(s, 9, len)).collect();
        self.writer().append_many(9, &bytes, len, Some(timestamp(first))).unwrap();
        // SAFETY: the position of a record; nobody else is at work.
        let word = unsafe { segment.commit_word(offset) };
        word.store(0, std::sync::atomic::Ordering::Release);
        tap(|tap| tap.disk = disk);
        tap(|tap| tap.disk.as_mut().unwrap().look());
        self.open();
        assert_eq!(self.writer().next_sequence(), first);
        self.append_many(count, len);
        tap(|tap| {
            let disk = tap.disk.as_mut().unwrap();
            disk.look();
            for _ in 0..4 {
                tap.images.push((disk.image(), tap.truth.clone()));
            }
        });
    }
}

// --- Checking an image ---

#[derive(Default)]
struct Tally {
    images: u64,
    whole: u64,
    cut: u64,
    fresh: u64,
    below_floor: u64,
    within_open: u64,
    killed_recoveries: u64,
    recovery_kills: u64,
    cursors_behind: u64,
    generations: u64,
    records: u64,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap()))
}

/// Index and bytes of the segments, by name.
fn segments(files: &Files) -> Vec<(u64, &Vec<u8>)> {
    let index = |name: &String| segment::index_of(name.strip_prefix("segments/")?);
    files.iter().filter_map(|(name, bytes)| Some((index(name)?, bytes))).collect()
}

fn count_words(bytes: &[u8], from: usize) -> u64 {
    let behind = bytes.get(from..).unwrap_or_default();
    behind.chunks(8).filter(|w| w.iter().any(|&b| b != 0)).count() as u64 * 8
}

/// The bytes behind a position that are not zero.
fn bytes_behind(files: &Files, position: u64) -> u64 {
    let cut = GEOMETRY.segment_of(position);
    let from =
        |i: u64| if i == cut { GEOMETRY.offset_of(position) } else { GEOMETRY.data_offset() };
    segments(files)
        .into_iter()
        .filter(|(i, _)| *i >= cut)
        .map(|(i, b)| count_words(b, from(i)))
        .sum()
}

fn open(path: &Path, checksum: bool) -> Writer {
    Writer::open(path, &options(checksum)).unwrap_or_else(|e| panic!("no justified error: {e}"))
}

/// The first number that retention cannot have taken in this image.
fn first_kept(files: &Files, truth: &Truth, floor: u64) -> u64 {
    let header =
        segments(files).into_iter().find(|(i, _)| *i == floor).map_or(0, |(_, b)| word(b, 48));
    // A header that did not reach the disk: then the segment was never flushed.
    if floor == 0 {
        1
    } else if header == 0 {
        truth.flushed + 1
    } else {
        header
    }
}

fn check_prefix(
    path: &Path,
    files: &Files,
    truth: &Truth,
    next: u64,
    tally: &mut Tally,
) -> Vec<Seen> {
    assert!(next > truth.flushed, "next={next} but flushed={}", truth.flushed);
    let most = truth.committed.len() as u64;
    assert!(next <= most + 1, "next={next} but only {most} were ever written");
    let seen = fire::scan(path);
    for record in &seen {
        let written = truth.committed[record.sequence as usize - 1];
        assert_eq!(*record, written, "this record was never committed");
    }
    let floor = word(&files["control"], offset_of!(ControlBlock, floor_segment));
    let kept = first_kept(files, truth, floor);
    match (seen.first(), seen.last()) {
        (Some(first), Some(last)) => {
            assert!(first.sequence <= kept, "starts at {} instead of {kept}", first.sequence);
            assert_eq!(last.sequence + 1, next);
        }
        _ => {
            assert!(truth.flushed < kept, "flushed={} kept from {kept}", truth.flushed);
            assert!(floor > 0 || next == 1, "next={next}");
            tally.fresh += 1;
        }
    }
    tally.below_floor += u64::from(floor > 0);
    tally.records += seen.len() as u64;
    seen
}

fn check_cut(files: &Files, truth: &Truth, report: &RecoveryReport) {
    if truth.in_open {
        // A recovery before may have done some of the work.
        return;
    }
    let behind = bytes_behind(files, report.position);
    let Some(cut) = &report.cut else {
        assert_eq!(behind, 0, "a cut that was not reported");
        return;
    };
    assert_eq!((cut.position, cut.next_sequence), (report.position, report.next_sequence));
    assert_eq!(cut.bytes_discarded, behind, "{cut:?}");
    assert!(!cut.below_durable, "{cut:?}");
    assert_eq!(cut.set_aside.is_empty(), behind == 0, "{cut:?}");
    for (index, bytes) in segments(files) {
        let is_behind = index > GEOMETRY.segment_of(cut.position);
        if !is_behind || count_words(bytes, GEOMETRY.data_offset()) == 0 {
            continue;
        }
        let name = segment::file_name(index);
        let kept = cut.set_aside.iter().find(|p| p.contains(&name)).expect("a file that was kept");
        let kept = std::fs::read(kept).unwrap();
        assert!(
            kept[GEOMETRY.data_offset()..] == bytes[GEOMETRY.data_offset()..],
            "{name} has changed"
        );
    }
}

/// The named reader goes on where it was, or is told that what it had read was cut off.
fn check_cursor(path: &Path, files: &Files, next: u64, first: Option<u64>, tally: &mut Tally) {
    let Some(bytes) = files.get(CURSOR) else { return };
    let is_placed =
        bytes.starts_with(&CURSOR_MAGIC) && word(bytes, offset_of!(CursorBlock, pid)) >> 32 == 1;
    let at = word(bytes, offset_of!(CursorBlock, next_sequence));
    let mut reader = Reader::open(path, Some("c"), Start::Resume).unwrap();
    if !is_placed {
        return;
    }
    let marked = word(bytes, offset_of!(CursorBlock, cut_sequence));
    let answer = reader.next();
    if at > next || marked != 0 {
        let told = answer.err().expect("a gap");
        let expected = if marked != 0 { marked.min(at).min(next) } else { next };
        let is_cut = matches!(told.kind(), ErrorKind::Gap { reason: GapReason::Cut, next, .. } if *next == expected);
        let is_gone = matches!(told.kind(), ErrorKind::Gap { reason: GapReason::Retention, .. });
        assert!(
            is_cut || (is_gone && first.is_some_and(|f| f > expected)),
            "at={at} next={next}: {told}"
        );
        tally.cursors_behind += 1;
    } else if first.is_none_or(|first| at < first) {
        assert!(answer.is_err() || first.is_none(), "below the oldest message without a gap");
    } else {
        assert_eq!(answer.unwrap().map(|r| r.raw.sequence), Some(at));
    }
}

/// Recovers an image, and checks that it can be lived with.
fn check_image(
    path: &Path,
    files: &Files,
    truth: &Truth,
    checksum: bool,
    rng: &mut Rng,
    tally: &mut Tally,
) {
    write_files(path, files);
    let mut writer = open(path, checksum);
    let report = writer.recovery().clone();
    let next = writer.next_sequence();
    tally.images += 1;
    tally.within_open += u64::from(truth.in_open);
    if report.cut.is_some() {
        tally.cut += 1
    } else {
        tally.whole += 1
    }
    let mut all = check_prefix(path, files, truth, next, tally);
    check_cut(files, truth, &report);
    for sequence in next..next + 1 + rng.below(6) {
        let (len, time) = (rng.payload_bytes(), timestamp(sequence));
        assert_eq!(writer.append(7, &payload(sequence, 7, len), Some(time)).unwrap(), sequence);
        all.push(Seen { sequence, timestamp_ns: time, type_id: 7, len });
    }
    check_cursor(path, files, next, all.first().map(|r| r.sequence), tally);
    if !checksum || rng.chance(2) {
        writer.flush().unwrap();
    }
    let after = (writer.next_sequence(), writer.next_position());
    let epoch = writer.epoch();
    drop(writer);
    for boot_is_another in [false, true] {
        if boot_is_another {
            fire::forget_boot(path);
        }
        let writer = open(path, checksum);
        assert_eq!(writer.recovery().cut, None, "a second cut");
        assert_eq!((writer.next_sequence(), writer.next_position()), after);
        assert!(writer.epoch() > epoch);
    }
    assert_eq!(fire::scan(path), all);
    fire::check_seeks(path, &all, rng, 3);
}

/// A recovery that is killed again and again ends where one that is left alone ends.
fn check_killed_recovery(
    dir: &Path,
    files: &Files,
    checksum: bool,
    rng: &mut Rng,
    tally: &mut Tally,
) {
    let (alone, killed) = (dir.join("alone"), dir.join("killed"));
    write_files(&alone, files);
    write_files(&killed, files);
    let expected = open(&alone, checksum).recovery().clone();
    let step = 1 + rng.below(6);
    let mut at = 1 + rng.below(step);
    // Once the new epoch is there, the work is done and the report is the next writer's.
    let epoch = offset_of!(ControlBlock, epoch);
    let before = word(&files["control"], epoch);
    let mut was_done = false;
    let report = loop {
        tap(|tap| (tap.hits, tap.die_at) = (0, Some(at)));
        let opened = catch_unwind(AssertUnwindSafe(|| open(&killed, checksum)));
        tap(|tap| tap.die_at = None);
        match opened {
            Ok(writer) => break writer.recovery().clone(),
            Err(cause) if cause.is::<&str>() => tally.recovery_kills += 1,
            Err(cause) => std::panic::resume_unwind(cause),
        }
        was_done |= word(&std::fs::read(killed.join("control")).unwrap(), epoch) > before;
        at += 1 + rng.below(step);
    };
    tally.killed_recoveries += 1;
    assert_eq!(
        (report.position, report.next_sequence),
        (expected.position, expected.next_sequence)
    );
    let bare = |cut: &Option<Cut>, root: &Path| {
        let root = root.to_str().unwrap().to_owned();
        let names = |c: &Cut| c.set_aside.iter().map(|p| p.replace(&root, "")).collect::<Vec<_>>();
        cut.as_ref().map(|c| (c.position, c.bytes_discarded, names(c)))
    };
    if !was_done && expected.cut.as_ref().is_none_or(|c| !c.set_aside.is_empty()) {
        assert_eq!(bare(&report.cut, &killed), bare(&expected.cut, &alone));
    }
    assert_eq!(fire::scan(&killed), fire::scan(&alone));
}

// --- The run ---

fn run(name: &str, checksum: bool, goal: u64, seed: u64) {
    println!("power_loss {name}: {goal} images, CHRONICLE_SEED={seed}");
    listen();
    let start = Instant::now();
    let dir = fire::scratch(&format!("power-{name}"));
    let mut rng = Rng(seed);
    let mut tally = Tally::default();
    let mut next_life: Option<(Files, Truth)> = None;
    while tally.images < goal {
        let path = dir.join("queue");
        let _ = std::fs::remove_dir_all(&path);
        let truth = match next_life.take() {
            Some((files, truth)) => {
                write_files(&path, &files);
                tally.generations += 1;
                truth
            }
            None => {
                std::fs::create_dir_all(&path).unwrap();
                Truth::default()
            }
        };
        let mut story = Story::start(&path, checksum, Rng(rng.next()), truth);
        for _ in 0..20 + rng.below(150) {
            story.step();
            let mut images = tap(|tap| {
                let disk = tap.disk.as_mut().unwrap();
                let count = rng.below(4);
                let extra: Vec<_> = (0..count).map(|_| (disk.image(), tap.truth.clone())).collect();
                tap.images.extend(extra);
                std::mem::take(&mut tap.images)
            });
            // Checking is silent: it is not this queue's disk.
            let disk = tap(|tap| tap.disk.take());
            for (files, truth) in &images {
                check_image(&dir.join("image"), files, truth, checksum, &mut rng, &mut tally);
                if rng.chance(12) {
                    check_killed_recovery(&dir, files, checksum, &mut rng, &mut tally);
                }
            }
            tap(|tap| tap.disk = disk);
            if tally.images >= goal {
                break;
            }
            if rng.chance(100) {
                next_life = images.pop();
                break;
            }
        }
        tap(|tap| *tap = Tap::default());
    }
    println!(
        "power_loss {name}: {} images ({} within an open): {} whole, {} cut, {} with nothing left; \
         {} with deleted segments, {} recovered and written on; {} cursors behind the cut; \
         {} recoveries killed {} times; {} records checked; {:.0?}",
        tally.images,
        tally.within_open,
        tally.whole,
        tally.cut,
        tally.fresh,
        tally.below_floor,
        tally.generations,
        tally.cursors_behind,
        tally.killed_recoveries,
        tally.recovery_kills,
        tally.records,
        start.elapsed()
    );
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn whatever_the_disk_kept_recovers_to_a_valid_prefix() {
    run("checksums", true, scaled(17_000) as u64, fire::seed(1));
}

#[test]
fn without_checksums_all_that_was_flushed_is_kept() {
    run("plain", false, scaled(3_000) as u64, fire::seed(2));
}
