//! Faults that other queues are known for, each as a test that it is not ours.
//!
//! Processes that must die or fork are children of this binary: ignored tests that the others start
//! by name.

use chronicle_core::queue::dir::QueueDir;
use chronicle_core::queue::provision::Chores;
use chronicle_core::queue::{cursor, inspect, retention};
use chronicle_core::wait::{WaitStrategy, Waited};
use chronicle_core::{
    ErrorKind, FanIn, GapReason, MergeMode, Options, Provisioner, Reader, Result, RetentionPolicy,
    Start, Writer,
};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SEGMENT_BYTES: u64 = 1 << 16;
const OPTIONS: Options = Options {
    segment_bytes: SEGMENT_BYTES,
    checksum: true,
    segments_max: 64,
    group_readable: false,
};

/// A directory of its own for each test, removed at the end.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("chronicle-faults-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn payload(sequence: u64) -> Vec<u8> {
    sequence.to_le_bytes().repeat(1 + (sequence % 60) as usize)
}

/// Appends until the queue has at least `segments` segments; timestamps are ten times the sequence.
fn fill(writer: &mut Writer, segments: u64) -> u64 {
    while writer.queue().tail_segment() + 1 < segments {
        append(writer);
    }
    writer.next_sequence()
}

fn append(writer: &mut Writer) -> u64 {
    let sequence = writer.next_sequence();
    writer.append(1, &payload(sequence), Some(sequence * 10)).unwrap()
}

/// The next record's sequence; its payload is checked.
fn read(reader: &mut Reader) -> Result<Option<u64>> {
    Ok(reader.next()?.map(|record| {
        assert_eq!(record.payload(), payload(record.raw.sequence));
        record.raw.sequence
    }))
}

fn drain(reader: &mut Reader) -> Vec<u64> {
    let mut sequences = Vec::new();
    while let Some(sequence) = read(reader).unwrap() {
        sequences.push(sequence);
    }
    sequences
}

fn keep(segments: u64) -> RetentionPolicy {
    RetentionPolicy { bytes_max: Some(segments * SEGMENT_BYTES), age_ns_max: None }
}

fn gap_of(result: Result<Option<u64>>) -> (u64, u64) {
    match result.unwrap_err().kind() {
        ErrorKind::Gap { first_missing, next, reason: GapReason::Retention, .. } => {
            (*first_missing, *next)
        }
        other => panic!("{other:?}"),
    }
}

// --- Children ---

fn start_child(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("CHRONICLE_FAULT_ROLE", role)
        .env("CHRONICLE_FAULT_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until the child says the line; stderr, because the harness writes to stdout. Returns what
/// follows the word.
fn hear(lines: &mut impl BufRead, word: &str) -> String {
    let mut all = String::new();
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the child ended without '{word}': {all}");
        if let Some(rest) = line.strip_prefix(word) {
            return rest.trim().to_owned();
        }
        all += &line;
    }
}

fn say(word: &str) {
    std::io::stderr().write_all(format!("{word}\n").as_bytes()).unwrap();
}

fn wait_for_end_of_stdin() {
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).unwrap();
}

/// Forks; the child sleeps until it is killed, and holds every descriptor that it was given.
/// Returns when the child runs.
fn fork_a_sleeper() -> libc::pid_t {
    let (mut started, signal) = std::io::pipe().unwrap();
    // SAFETY: the child calls only async-signal-safe functions.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: one byte of a constant, to a descriptor of ours.
            unsafe {
                libc::write(std::os::fd::AsRawFd::as_raw_fd(&signal), c"x".as_ptr().cast(), 1)
            };
            loop {
                // SAFETY: sleeps until a signal comes.
                unsafe { libc::pause() };
            }
        }
        pid => {
            started.read_exact(&mut [0]).unwrap();
            pid
        }
    }
}

#[test]
#[ignore = "run by other tests, in a process of its own"]
fn child() {
    let Ok(role) = std::env::var("CHRONICLE_FAULT_ROLE") else { return };
    let path = PathBuf::from(std::env::var_os("CHRONICLE_FAULT_PATH").unwrap());
    match role.as_str() {
        "writer" => {
            let mut writer = Writer::open(&path, &OPTIONS).unwrap();
            fill(&mut writer, 2);
            say("ready");
            wait_for_end_of_stdin();
        }
        "writer-with-forked-child" => {
            let mut writer = Writer::open(&path, &OPTIONS).unwrap();
            let mut reader = Reader::open(&path, Some("forked"), Start::Latest).unwrap();
            append(&mut writer);
            read(&mut reader).unwrap();
            let pid = fork_a_sleeper();
            say(&format!("ready {pid}"));
            wait_for_end_of_stdin();
        }
        "spinning-reader" => {
            let mut reader = Reader::open(&path, Some("spinner"), Start::Resume).unwrap();
            drain(&mut reader);
            say("ready");
            loop {
                std::hint::black_box(reader.next().unwrap().is_some());
            }
        }
        other => panic!("no such role: {other}"),
    }
}

// --- Sequence, epoch, retention ---

#[test]
fn sequence_and_epoch_survive_a_restart() {
    let temp = Temp::new("restart");
    let mut next = 1;
    for round in 1..=5 {
        let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
        assert_eq!((writer.next_sequence(), writer.epoch()), (next, round));
        for _ in 0..500 {
            assert_eq!(append(&mut writer), next);
            next += 1;
        }
    }
    let mut reader = Reader::open(&temp.0, None, Start::Earliest).unwrap();
    assert_eq!(drain(&mut reader), (1..next).collect::<Vec<_>>());
}

#[test]
fn nothing_is_deleted_without_a_policy_whatever_readers_do() {
    let temp = Temp::new("no-policy");
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    let provisioner = Provisioner::new().unwrap();
    provisioner.attach_writer(&writer, Chores::default());
    let mut reader = Reader::open(&temp.0, Some("fast"), Start::Resume).unwrap();
    provisioner.attach_reader(&reader);
    let next = fill(&mut writer, 8);
    drain(&mut reader);
    reader.commit();
    drop(reader);
    cursor::remove(writer.queue(), "fast").unwrap();
    let report = retention::apply(writer.queue(), &RetentionPolicy::default()).unwrap();
    assert_eq!((report.segments_deleted, report.floor_segment), (0, 0));
    drop((provisioner, writer));
    let mut late = Reader::open(&temp.0, Some("late"), Start::Earliest).unwrap();
    assert_eq!(drain(&mut late), (1..next).collect::<Vec<_>>());
}

#[test]
fn a_late_joiner_after_retention_gets_the_oldest_message_and_a_gap_and_pins_nothing() {
    let temp = Temp::new("late");
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    fill(&mut writer, 10);
    assert_eq!(retention::apply(writer.queue(), &keep(4)).unwrap().floor_segment, 6);
    let oldest = inspect::info(&temp.0).unwrap().segments[0].first_sequence;
    assert!(oldest > 1);
    let mut late = Reader::open(&temp.0, Some("late"), Start::Earliest).unwrap();
    assert_eq!(gap_of(read(&mut late)), (1, oldest));
    assert_eq!(read(&mut late).unwrap(), Some(oldest));
    assert_eq!(late.gaps(), 1);
    // It holds what it has yet to read, from its own place on, and nothing older.
    let report = retention::apply(writer.queue(), &keep(2)).unwrap();
    assert_eq!((report.floor_segment, report.held_by.as_deref()), (6, Some("late")));
    drain(&mut late);
    late.commit();
    assert_eq!(retention::apply(writer.queue(), &keep(2)).unwrap().floor_segment, 8);
    // Dead, it holds nothing at all, although its cursor remains.
    drop(late);
    fill(&mut writer, 14);
    assert_eq!(retention::apply(writer.queue(), &keep(1)).unwrap().floor_segment, 13);
}

#[test]
fn a_late_subscriber_never_misses_silently() {
    let temp = Temp::new("silent");
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    let mut reader = Reader::open(&temp.0, Some("r"), Start::Resume).unwrap();
    for _ in 0..10 {
        append(&mut writer);
        read(&mut reader).unwrap();
    }
    reader.commit();
    drop(reader);
    let next = fill(&mut writer, 9);
    retention::apply(writer.queue(), &keep(3)).unwrap();
    let oldest = inspect::info(&temp.0).unwrap().segments[0].first_sequence;
    // By every way in, the hole is named exactly once, and nothing is missing besides.
    for start in [Start::Resume, Start::Sequence(11)] {
        let mut reader = Reader::open(&temp.0, Some("r"), start).unwrap();
        assert_eq!(gap_of(read(&mut reader)), (11, oldest));
        assert_eq!(drain(&mut reader), (oldest..next).collect::<Vec<_>>());
    }
    // A reader that is overtaken while it is open (unregistered, so that nothing waits for it)
    // learns the same at the roll.
    let mut slow = Reader::open(&temp.0, None, Start::Earliest).unwrap();
    assert_eq!(gap_of(read(&mut slow)).1, oldest);
    let end = fill(&mut writer, 20);
    retention::apply(writer.queue(), &keep(3)).unwrap();
    let (mut seen, mut missing) = (Vec::new(), 0);
    loop {
        match read(&mut slow) {
            Ok(Some(sequence)) => seen.push(sequence),
            Ok(None) => break,
            Err(error) => {
                let (first_missing, next) = gap_of(Err(error));
                assert_eq!(first_missing, seen.last().unwrap() + 1);
                missing += next - first_missing;
            }
        }
    }
    assert!(missing > 0);
    assert_eq!(seen.len() as u64 + missing, end - oldest);
}

// --- Fan-in ---

#[test]
fn a_fan_in_commit_never_covers_undelivered_messages() {
    let temp = Temp::new("fan-commit");
    let paths = [temp.0.join("a"), temp.0.join("b")];
    let open = |path: &PathBuf| Reader::open(path, Some("merge"), Start::Resume).unwrap();
    for (source, path) in paths.iter().enumerate() {
        std::fs::create_dir_all(&temp.0).unwrap();
        let mut writer = Writer::open(path, &OPTIONS).unwrap();
        for i in 0..700 {
            writer.append(1, &payload(i + 1), Some(i * 2 + source as u64)).unwrap();
        }
    }
    // After every message: commit, close, open again; the merge goes on with exactly the next one.
    for delivered in 0..1400_u64 {
        let mut fan = FanIn::new(MergeMode::Live);
        for path in &paths {
            fan.add(open(path));
        }
        let (source, record) = fan.next().map_err(|e| e.1).unwrap().unwrap();
        assert_eq!((source as u64, record.raw.timestamp_ns), (delivered % 2, delivered));
        fan.commit();
    }
    let mut fan = FanIn::new(MergeMode::Live);
    for path in &paths {
        fan.add(open(path));
    }
    assert!(fan.next().map_err(|e| e.1).unwrap().is_none());
}

#[test]
fn a_fan_in_wait_wakes_for_any_source() {
    let temp = Temp::new("fan-wait");
    // More sources than one call of the kernel can wait for.
    for count in [1, 3, 140_usize] {
        let _ = std::fs::remove_dir_all(&temp.0);
        std::fs::create_dir_all(&temp.0).unwrap();
        let mut writers: Vec<_> = (0..count)
            .map(|i| Writer::open(&temp.0.join(i.to_string()), &OPTIONS).unwrap())
            .collect();
        let mut fan = FanIn::new(MergeMode::Live);
        for i in 0..count {
            fan.add(Reader::open(&temp.0.join(i.to_string()), Some("m"), Start::Resume).unwrap());
        }
        for source in [0, count / 2, count - 1] {
            std::thread::scope(|scope| {
                let writer = &mut writers[source];
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(20));
                    append(writer);
                });
                let waited = fan.wait(WaitStrategy::Sleep, Some(Duration::from_secs(60))).unwrap();
                assert_eq!(waited, Waited::Ready, "{source} of {count}");
            });
            let (found, _) = fan.next().map_err(|e| e.1).unwrap().unwrap();
            assert_eq!(found, source);
        }
    }
}

#[test]
fn a_source_that_fails_for_ever_does_not_hold_up_the_others() {
    let temp = Temp::new("fan-bad");
    let paths = ["a", "b", "c"].map(|n| temp.0.join(n));
    let mut fan = FanIn::new(MergeMode::Live);
    for (i, path) in paths.iter().enumerate() {
        std::fs::create_dir_all(&temp.0).unwrap();
        let mut writer = Writer::open(path, &OPTIONS).unwrap();
        for _ in 0..300 {
            append(&mut writer);
        }
        let reader = Reader::open(path, None, Start::Earliest).unwrap();
        if i == 1 {
            let first = reader.position();
            damage(&path.join("segments/00000000000000000000.seg"), first, &[0xFF, 0xFF, 0, 0]);
        }
        fan.add(reader);
    }
    let (mut delivered, mut errors) = ([0; 3], 0);
    for _ in 0..2_000 {
        match fan.next() {
            Ok(Some((source, _))) => delivered[source] += 1,
            Ok(None) => break,
            Err((source, error)) => {
                assert_eq!(source, 1);
                assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }));
                errors += 1;
            }
        }
    }
    assert_eq!(delivered, [300, 0, 300]);
    assert!(errors > 0);
}

fn damage(file: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    std::fs::OpenOptions::new().write(true).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

// --- Who lives ---

#[test]
fn a_spinning_reader_that_never_commits_stays_registered_as_alive() {
    let temp = Temp::new("spinner");
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    fill(&mut writer, 2);
    let mut child = start_child("spinning-reader", &temp.0);
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    hear(&mut lines, "ready");
    fill(&mut writer, 8);
    assert!(cursor::is_live(writer.queue(), "spinner").unwrap());
    let report = retention::apply(writer.queue(), &keep(1)).unwrap();
    assert_eq!((report.floor_segment, report.held_by.as_deref()), (0, Some("spinner")));
    let taken = Reader::open(&temp.0, Some("spinner"), Start::Resume);
    assert!(
        matches!(taken.err().unwrap().kind(), ErrorKind::ReaderActive { pid, .. } if *pid == child.id())
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!cursor::is_live(writer.queue(), "spinner").unwrap());
    assert_eq!(retention::apply(writer.queue(), &keep(1)).unwrap().floor_segment, 7);
}

#[test]
fn an_idle_writer_stays_alive_and_two_writers_never_coexist_across_processes() {
    let temp = Temp::new("two-writers");
    let mut child = start_child("writer", &temp.0);
    hear(&mut BufReader::new(child.stderr.take().unwrap()), "ready");
    for _ in 0..50 {
        let refused = Writer::open(&temp.0, &OPTIONS).err().unwrap();
        assert!(
            matches!(refused.kind(), ErrorKind::WriterActive { pid, .. } if *pid == child.id()),
            "{refused}"
        );
        assert!(inspect::info(&temp.0).unwrap().writer_live);
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // A dead one does not block the next, not for a moment.
    assert!(!inspect::info(&temp.0).unwrap().writer_live);
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    append(&mut writer);
}

#[test]
fn two_writers_never_coexist_in_one_process() {
    let temp = Temp::new("two-here");
    let writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    let second = std::thread::scope(|s| s.spawn(|| Writer::open(&temp.0, &OPTIONS).err()).join());
    let second = second.unwrap().unwrap();
    assert!(matches!(second.kind(), ErrorKind::WriterActive { .. }));
    drop(writer);
    Writer::open(&temp.0, &OPTIONS).unwrap();
}

#[test]
fn of_many_that_open_at_once_exactly_one_becomes_the_writer() {
    for round in 0..20 {
        let temp = Temp::new(&format!("race-{round}"));
        let barrier = std::sync::Barrier::new(8);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        let opened = Writer::open(&temp.0, &OPTIONS);
                        barrier.wait();
                        opened.map(drop).map_err(|e| format!("{:?}", e.kind()))
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let winners = opened.iter().filter(|o| o.is_ok()).count();
        assert!(winners <= 1, "{opened:?}");
        assert!(
            opened.iter().flat_map(|o| o.as_ref().err()).all(|e| e.contains("WriterActive")),
            "{opened:?}"
        );
    }
}

#[test]
fn a_forked_child_cannot_write_with_its_parents_writer_and_does_not_take_its_lock_along() {
    let temp = Temp::new("fork");
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    let mut reader = Reader::open(&temp.0, Some("r"), Start::Resume).unwrap();
    append(&mut writer);
    let before = writer.next_sequence();
    // SAFETY: the child uses the core and ends by `_exit`; the core takes no lock that another
    // thread may hold.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let refused = |r: Result<u64>| r.is_err_and(|e| matches!(e.kind(), ErrorKind::Forked));
        let fine = refused(writer.append(1, b"child", None))
            && refused(writer.append_many(1, b"child", 1, None))
            && refused(writer.flush());
        reader.commit();
        drop((writer, reader));
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(if fine { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(status, 0, "the child was not refused");
    // The child dropped its copies; the locks are still the parent's.
    let refused = Writer::open(&temp.0, &OPTIONS).err().unwrap();
    assert!(matches!(refused.kind(), ErrorKind::WriterActive { .. }));
    assert!(cursor::is_live(writer.queue(), "r").unwrap());
    assert_eq!(append(&mut writer), before);
    assert_eq!(drain(&mut reader), vec![1, 2]);
}

#[test]
fn a_writer_that_was_killed_blocks_nobody_while_a_forked_child_of_it_lives_on() {
    let temp = Temp::new("fork-killed");
    let mut child = start_child("writer-with-forked-child", &temp.0);
    let sleeper: i32 =
        hear(&mut BufReader::new(child.stderr.take().unwrap()), "ready").parse().unwrap();
    assert!(matches!(
        Writer::open(&temp.0, &OPTIONS).err().unwrap().kind(),
        ErrorKind::WriterActive { .. }
    ));
    child.kill().unwrap();
    child.wait().unwrap();
    let opened = Writer::open(&temp.0, &OPTIONS);
    let queue = QueueDir::open(&temp.0, true).unwrap();
    let reader_live = cursor::is_live(&queue, "forked").unwrap();
    // SAFETY: the forked sleeper still lives (nobody else reaps it before its new parent does);
    // signal 0 only asks.
    assert_eq!(unsafe { libc::kill(sleeper, 0) }, 0);
    // SAFETY: as above.
    unsafe { libc::kill(sleeper, libc::SIGKILL) };
    assert_eq!(append(&mut opened.unwrap()), 2);
    assert!(!reader_live);
}

#[test]
fn a_provisioner_that_was_inherited_by_fork_can_be_dropped_in_the_child() {
    let temp = Temp::new("fork-provisioner");
    let writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    let provisioner = Provisioner::new().unwrap();
    provisioner.attach_writer(&writer, Chores::default());
    // SAFETY: the child only drops what it inherited, and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // A safety net, so that a hang of the child becomes its death.
        // SAFETY: our own process.
        unsafe { libc::alarm(60) };
        drop((provisioner, writer));
        // SAFETY: as above.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    assert_eq!(status, 0);
}

#[test]
fn a_program_that_the_writer_starts_does_not_inherit_its_lock() {
    let temp = Temp::new("exec");
    let writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    let mut other = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
    drop(writer);
    let next = Writer::open(&temp.0, &OPTIONS);
    other.kill().unwrap();
    other.wait().unwrap();
    next.unwrap();
}

// --- Readers only read ---

fn contents(path: &Path, skip: &[&str]) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path, skip));
        } else if !skip.iter().any(|s| path.to_string_lossy().ends_with(s)) {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn a_reader_never_repairs_or_writes_what_it_reads() {
    let temp = Temp::new("read-only");
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    fill(&mut writer, 4);
    drop(writer);
    // As a killed writer leaves it: half a record behind the tail; and a damaged record, a missing
    // index entry, an odd table.
    let place = |name: &str| temp.0.join("segments").join(name);
    let mut reader = Reader::open(&temp.0, None, Start::Latest).unwrap();
    let tail = reader.position() % SEGMENT_BYTES;
    assert_eq!(read(&mut reader).unwrap(), None);
    drop(reader);
    damage(&place("00000000000000000003.seg"), tail + 8, &[0x5A; 40]);
    damage(&place("00000000000000000001.seg"), 40_000, &[0x5A; 40]);
    damage(&place("00000000000000000002.seg"), 4096 + 24, &[0; 24]);
    damage(&temp.0.join("segments.table"), 64 + 40, &[0; 40]);
    let before = contents(&temp.0, &[".cursor"]);
    for start in [Start::Earliest, Start::Latest, Start::Sequence(700), Start::Time(9_000)] {
        for name in [Some("r"), None] {
            let Ok(mut reader) = Reader::open(&temp.0, name, start) else { continue };
            while let Ok(Some(_)) = reader.next() {}
            reader.commit();
            for start in [Start::Earliest, Start::Time(1), Start::Sequence(2), Start::Latest] {
                let _ = reader.seek(start);
                let _ = reader.next();
            }
            let _ = reader.next_run(1000);
        }
    }
    inspect::info(&temp.0).unwrap();
    assert!(!inspect::verify(&temp.0, |_, _| {}).unwrap().damage.is_empty());
    assert!(contents(&temp.0, &[".cursor"]) == before, "a reader changed a file");
    // One that may sleep touches the doorbell in the control block, and nothing else.
    let mut sleeper = Reader::open(&temp.0, Some("r"), Start::Latest).unwrap();
    let targets = [sleeper.wait_target()];
    let waited = chronicle_core::wait::wait_any(
        &targets,
        WaitStrategy::Sleep,
        Some(Duration::from_millis(1)),
    );
    assert_eq!(waited.unwrap(), Waited::TimedOut);
    let (mut before, mut after) = (before, contents(&temp.0, &[".cursor"]));
    for files in [&mut before, &mut after] {
        files.get_mut(&temp.0.join("control")).unwrap()[256..264].fill(0);
    }
    assert!(after == before, "a waiting reader changed more than the doorbell");
}

// --- Seeking ---

#[test]
fn seeks_by_sequence_across_segments_land_exactly() {
    let temp = Temp::new("seek-sequence");
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    let next = fill(&mut writer, 6);
    let firsts: Vec<u64> =
        inspect::info(&temp.0).unwrap().segments.iter().map(|s| s.first_sequence).collect();
    let mut reader = Reader::open(&temp.0, Some("r"), Start::Earliest).unwrap();
    let edges = firsts.iter().flat_map(|&f| [f.saturating_sub(1), f, f + 1]);
    for sequence in
        edges.chain((1..next).step_by(7)).chain([1, next - 1]).filter(|s| (1..next).contains(s))
    {
        reader.seek(Start::Sequence(sequence)).unwrap();
        assert_eq!(read(&mut reader).unwrap(), Some(sequence));
        assert_eq!(
            Reader::open(&temp.0, None, Start::Sequence(sequence)).unwrap().next_sequence(),
            sequence
        );
    }
    // Before the first there is nothing to miss; at the end the next message is waited for; beyond
    // it, an error.
    reader.seek(Start::Sequence(0)).unwrap();
    assert_eq!(read(&mut reader).unwrap(), Some(1));
    reader.seek(Start::Sequence(next)).unwrap();
    assert_eq!(read(&mut reader).unwrap(), None);
    for beyond in [next + 1, u64::MAX] {
        let refused = reader.seek(Start::Sequence(beyond)).unwrap_err();
        assert!(
            matches!(refused.kind(), ErrorKind::SequenceNotWritten { sequence, next: n, .. } if *sequence == beyond && *n == next)
        );
    }
    // The refused seek has not moved the reader.
    append(&mut writer);
    assert_eq!(read(&mut reader).unwrap(), Some(next));
}

#[test]
fn seeks_by_time_across_segments_land_exactly() {
    let temp = Temp::new("seek-time");
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    let next = fill(&mut writer, 6);
    let firsts: Vec<u64> =
        inspect::info(&temp.0).unwrap().segments.iter().map(|s| s.first_sequence).collect();
    let mut reader = Reader::open(&temp.0, Some("r"), Start::Earliest).unwrap();
    let mut land = |timestamp: u64| {
        reader.seek(Start::Time(timestamp)).unwrap();
        read(&mut reader).unwrap()
    };
    for sequence in firsts.iter().copied().chain((2..next).step_by(11)).chain([next - 1]) {
        // Equal, between (both sides).
        assert_eq!(land(sequence * 10), Some(sequence));
        assert_eq!(land(sequence * 10 - 5), Some(sequence));
        assert_eq!(land(sequence * 10 + 1), (sequence + 1 < next).then_some(sequence + 1));
    }
    // Before the first, after the last.
    assert_eq!(land(0), Some(1));
    assert_eq!(land((next - 1) * 10 + 1), None);
    assert_eq!(land(u64::MAX), None);
}

#[test]
fn of_equal_timestamps_a_seek_finds_the_first_even_if_they_fill_segments() {
    let temp = Temp::new("seek-equal");
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    for i in 0..3_000_u64 {
        writer.append(1, &payload(i + 1), Some(i / 1_000 * 1_000)).unwrap();
    }
    assert!(writer.queue().tail_segment() >= 8);
    let mut reader = Reader::open(&temp.0, None, Start::Earliest).unwrap();
    for (timestamp, sequence) in
        [(0, 1), (1, 1_001), (1_000, 1_001), (1_001, 2_001), (2_000, 2_001)]
    {
        reader.seek(Start::Time(timestamp)).unwrap();
        assert_eq!(read(&mut reader).unwrap(), Some(sequence));
    }
}

#[test]
fn clock_steps_backwards_break_nothing() {
    let temp = Temp::new("clock");
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    // Back by an hour in the middle, to zero, to the end of time, and a random walk besides.
    let timestamp = |sequence: u64| match sequence {
        1_000 => 0,
        1_500 => u64::MAX,
        s if s > 1_200 => 1_000_000 + s * 10 - 3_600,
        s => 1_000_000 + s * 10 - if s % 13 == 0 { 400 } else { 0 },
    };
    let count = 3_000_u64;
    for sequence in 1..=count {
        writer.append(1, &payload(sequence), Some(timestamp(sequence))).unwrap();
    }
    let mut reader = Reader::open(&temp.0, Some("r"), Start::Earliest).unwrap();
    assert_eq!(drain(&mut reader), (1..=count).collect::<Vec<_>>());
    let wanted = (1_000_000..1_031_000).step_by(97).chain([0, 1, u64::MAX - 1, u64::MAX]);
    for wanted in wanted {
        let expected = (1..=count).find(|&s| timestamp(s) >= wanted);
        reader.seek(Start::Time(wanted)).unwrap();
        assert_eq!(read(&mut reader).unwrap(), expected, "time {wanted}");
    }
    // A fan-in over it loses nothing, and its order per source is the order of writing.
    let mut fan = FanIn::new(MergeMode::Strict);
    fan.add(Reader::open(&temp.0, None, Start::Earliest).unwrap());
    for sequence in 1..=count {
        let (_, record) = fan.next().map_err(|e| e.1).unwrap().unwrap();
        assert_eq!(record.raw.sequence, sequence);
    }
    // The writer's own clock survives a restart whose queue holds times of the future.
    drop(writer);
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    assert_eq!(writer.append(1, &payload(count + 1), None).unwrap(), count + 1);
    reader.seek(Start::Sequence(count + 1)).unwrap();
    assert_eq!(read(&mut reader).unwrap(), Some(count + 1));
    let policy = RetentionPolicy { bytes_max: None, age_ns_max: Some(1) };
    let report = retention::apply(writer.queue(), &policy).unwrap();
    // The segment that holds the message from the end of time, and what follows it, are not old.
    assert!(report.floor_segment < report.allowed_segment + 1 && report.floor_segment <= 6);
}

// --- What is removed ---

#[test]
fn removing_a_queue_under_a_live_reader_and_writer_is_an_error_and_not_a_crash() {
    for provisioned in [false, true] {
        let temp = Temp::new(&format!("removed-{provisioned}"));
        let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
        let mut reader = Reader::open(&temp.0, Some("r"), Start::Resume).unwrap();
        let provisioner = Provisioner::new().unwrap();
        if provisioned {
            provisioner.attach_writer(&writer, Chores::default());
            provisioner.attach_reader(&reader);
        }
        append(&mut writer);
        assert_eq!(read(&mut reader).unwrap(), Some(1));
        // A provisioner may be adding a segment just now.
        while std::fs::remove_dir_all(&temp.0).is_err() && temp.0.exists() {}
        // What is mapped still works; the next roll, or a wait, tells.
        append(&mut writer);
        assert_eq!(read(&mut reader).unwrap(), Some(2));
        reader.commit();
        let waited = chronicle_core::wait::wait_any(
            &[reader.wait_target()],
            WaitStrategy::Sleep,
            Some(Duration::from_millis(1)),
        );
        assert!(matches!(waited.unwrap_err().kind(), ErrorKind::QueueRemoved { .. }));
        let error = (0..100_000).find_map(|_| writer.append(1, &[0; 512], None).err()).unwrap();
        assert!(matches!(error.kind(), ErrorKind::QueueRemoved { .. }), "{error}");
        // The reader gets everything that was written, then waits or is told; it never crashes.
        loop {
            match reader.next() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::QueueRemoved { .. }), "{error}");
                    break;
                }
            }
        }
        let error = reader.seek(Start::Earliest).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::QueueRemoved { .. }), "{error}");
        // A new queue in its place is another queue.
        let mut new = Writer::open(&temp.0, &OPTIONS).unwrap();
        assert_eq!(append(&mut new), 1);
        assert!(reader.queue().is_removed() && !new.queue().is_removed());
    }
}

#[test]
fn a_view_outlives_its_reader_its_queue_and_its_file() {
    let temp = Temp::new("view");
    let mut writer = Writer::open(&temp.0, &OPTIONS).unwrap();
    fill(&mut writer, 5);
    let mut reader = Reader::open(&temp.0, Some("r"), Start::Resume).unwrap();
    let mut views = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        views.push((std::sync::Arc::clone(record.segment()), record.raw));
    }
    assert!(views.len() > 500);
    drop(reader);
    retention::apply(writer.queue(), &keep(1)).unwrap();
    drop(writer);
    std::fs::remove_dir_all(&temp.0).unwrap();
    let check = |views: Vec<(std::sync::Arc<_>, chronicle_core::queue::segment::RawRecord)>| {
        for (segment, raw) in views {
            let segment: std::sync::Arc<chronicle_core::queue::segment::Segment> = segment;
            assert_eq!(segment.payload(&raw), payload(raw.sequence));
        }
    };
    // From another thread, too.
    let half = views.split_off(views.len() / 2);
    std::thread::spawn(move || check(half)).join().unwrap();
    check(views);
}
