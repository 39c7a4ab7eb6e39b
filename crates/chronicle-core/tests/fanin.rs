//! The fan-in against oracles that are obviously right: a sort, and a merge that looks at every
//! source for every message.

use chronicle_core::fanin::NoRoom;
use chronicle_core::queue::retention;
use chronicle_core::wait::{WaitStrategy, Waited};
use chronicle_core::{
    ErrorKind, FanIn, MergeMode, Options, Reader, RetentionPolicy, Start, Writer,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const OPTIONS: Options =
    Options { segment_bytes: 1 << 16, checksum: false, segments_max: 64, group_readable: false };

/// A directory of its own for each test case, removed at the end.
struct Temp(PathBuf);

impl Temp {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only uniqueness matters.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("chronicle-fanin-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn queue(&self, number: usize) -> PathBuf {
        self.0.join(format!("q{number}"))
    }

    fn writers(&self, count: usize) -> Vec<Writer> {
        (0..count).map(|i| Writer::open(&self.queue(i), &OPTIONS).unwrap()).collect()
    }

    fn reader(&self, number: usize) -> Reader {
        Reader::open(&self.queue(number), Some("fan"), Start::Resume).unwrap()
    }

    fn fan_in(&self, mode: MergeMode, count: usize) -> FanIn {
        let mut fan = FanIn::new(mode);
        for i in 0..count {
            assert_eq!(fan.add(self.reader(i)), i);
        }
        fan
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `(timestamp of the record, source, sequence)`.
type Message = (u64, usize, u64);

fn try_next(fan: &mut FanIn) -> Result<Option<Message>, (usize, chronicle_core::Error)> {
    let got = fan.next()?;
    Ok(got.map(|(source, record)| {
        let mut payload = record.payload().chunks_exact(8);
        let word = u64::from_le_bytes(payload.next().unwrap().try_into().unwrap());
        assert_eq!(word, record.raw.sequence, "the payload belongs to another message");
        (record.raw.timestamp_ns, source, record.raw.sequence)
    }))
}

fn next(fan: &mut FanIn) -> Option<Message> {
    try_next(fan).map_err(|(source, e)| format!("source {source}: {e}")).unwrap()
}

fn drain(fan: &mut FanIn) -> Vec<Message> {
    std::iter::from_fn(|| next(fan)).collect()
}

/// Writes a message whose payload is its sequence number, over and over. Now and then a long one,
/// so that queues roll.
fn append(writer: &mut Writer, timestamp_ns: u64) -> u64 {
    let sequence = writer.next_sequence();
    let words = if sequence % 7 == 3 { 1_000 } else { 1 + sequence as usize % 5 };
    writer.append(1, &sequence.to_le_bytes().repeat(words), Some(timestamp_ns)).unwrap()
}

fn append_all(writer: &mut Writer, timestamps: impl IntoIterator<Item = u64>) {
    for timestamp_ns in timestamps {
        append(writer, timestamp_ns);
    }
}

/// What each source holds, as a model: timestamps in the order of the sequence.
#[derive(Clone, Default)]
struct Model {
    sources: Vec<Vec<u64>>,
}

impl Model {
    /// All messages by (running maximum of the timestamps, source, sequence).
    fn sorted(&self) -> Vec<Message> {
        let mut all = Vec::new();
        for (source, timestamps) in self.sources.iter().enumerate() {
            let mut highest = 0;
            for (i, &timestamp) in timestamps.iter().enumerate() {
                highest = timestamp.max(highest);
                all.push((highest, source, i as u64 + 1, timestamp));
            }
        }
        all.sort_unstable();
        all.into_iter().map(|(_, source, sequence, t)| (t, source, sequence)).collect()
    }

    /// What strict mode delivers from `done` (messages delivered of each source) on.
    fn strict(&self, done: &mut [usize]) -> Vec<Message> {
        let mut out = Vec::new();
        loop {
            let highest = |s: usize, count: usize| self.sources[s][..count].iter().copied().max();
            let heads = (0..done.len()).filter(|&s| done[s] < self.sources[s].len());
            let Some((key, source)) = heads.map(|s| (highest(s, done[s] + 1).unwrap(), s)).min()
            else {
                return out;
            };
            let idle = (0..done.len()).filter(|&s| done[s] == self.sources[s].len());
            let is_safe = |s| highest(s, done[s]).is_some_and(|w| (key, source) < (w, s));
            if !idle.into_iter().all(is_safe) {
                return out;
            }
            out.push((self.sources[source][done[source]], source, done[source] as u64 + 1));
            done[source] += 1;
        }
    }
}

fn timestamps() -> impl Strategy<Value = Vec<Vec<u64>>> {
    prop::collection::vec(prop::collection::vec(0..40_u64, 0..60), 1..9)
}

/// A number of sources, and `(source, timestamp)` for an append or `None` for "deliver all you
/// can".
fn script() -> impl Strategy<Value = (usize, Vec<Option<(usize, u64)>>)> {
    (1..6_usize).prop_flat_map(|count| {
        let append = (0..count, 0..40_u64).prop_map(Some);
        let step = prop_oneof![4 => append, 1 => Just(None)];
        (Just(count), prop::collection::vec(step, 0..120))
    })
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        source: usize,
        timestamp: u64,
    },
    Next {
        count: usize,
    },
    Commit,
    Remove {
        source: usize,
    },
    Add {
        source: usize,
    },
    /// Closes everything and comes back: what was delivered since the last commit comes again.
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let source = 0..4_usize;
    let step = prop_oneof![
        8 => (source.clone(), 0..40_u64).prop_map(|(source, timestamp)| Step::Append { source, timestamp }),
        5 => (1..12_usize).prop_map(|count| Step::Next { count }),
        2 => Just(Step::Commit),
        1 => source.clone().prop_map(|source| Step::Remove { source }),
        2 => source.prop_map(|source| Step::Add { source }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..150)
}

/// Sources that come and go, against counters.
struct Stateful {
    temp: Temp,
    writers: Vec<Writer>,
    mode: MergeMode,
    /// Whether the fan-in was made for four sources, and must not grow.
    bounded: bool,
    fan: FanIn,
    /// Source number in the fan-in, by queue, and back.
    number_of: BTreeMap<usize, usize>,
    queue_of: BTreeMap<usize, usize>,
    delivered: [u64; 4],
    committed: [u64; 4],
}

impl Stateful {
    fn new(mode: MergeMode, bounded: bool) -> Self {
        let temp = Temp::new();
        Self {
            writers: temp.writers(4),
            temp,
            mode,
            bounded,
            fan: Self::fan(mode, bounded),
            number_of: BTreeMap::new(),
            queue_of: BTreeMap::new(),
            delivered: [0; 4],
            committed: [0; 4],
        }
    }

    fn fan(mode: MergeMode, bounded: bool) -> FanIn {
        if bounded { FanIn::with_capacity(mode, 4) } else { FanIn::new(mode) }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append { source, timestamp } => {
                append(&mut self.writers[source], timestamp);
            }
            Step::Next { count } => {
                for _ in 0..count {
                    if self.next().is_none() {
                        break;
                    }
                }
            }
            Step::Commit => {
                self.fan.commit();
                for &queue in self.number_of.keys() {
                    self.committed[queue] = self.delivered[queue];
                }
            }
            Step::Remove { source } => self.remove(source),
            Step::Add { source } => self.add(source),
            Step::Reopen => {
                self.fan = Self::fan(self.mode, self.bounded);
                let queues: Vec<_> = self.number_of.keys().copied().collect();
                self.number_of.clear();
                self.queue_of.clear();
                queues.into_iter().for_each(|queue| self.add(queue));
            }
        }
        assert_eq!(self.fan.len(), self.number_of.len());
    }

    fn next(&mut self) -> Option<Message> {
        let message = next(&mut self.fan)?;
        let queue = self.queue_of[&message.1];
        self.delivered[queue] += 1;
        assert_eq!(message.2, self.delivered[queue], "lost, twice or out of order");
        Some(message)
    }

    fn add(&mut self, queue: usize) {
        if self.number_of.contains_key(&queue) {
            return;
        }
        let reader = self.temp.reader(queue);
        let number = match self.bounded {
            true => self.fan.try_add(reader).map_err(|_| "no room").unwrap(),
            false => self.fan.add(reader),
        };
        assert!(self.queue_of.insert(number, queue).is_none(), "a source number in use");
        self.number_of.insert(queue, number);
        self.delivered[queue] = self.committed[queue];
    }

    fn remove(&mut self, queue: usize) {
        let Some(number) = self.number_of.remove(&queue) else {
            return;
        };
        self.queue_of.remove(&number);
        let mut reader = self.fan.remove(number).unwrap();
        assert!(self.fan.remove(number).is_none());
        let next = reader.next().unwrap().map(|record| record.raw.sequence);
        let exists = self.delivered[queue] + 1 < self.writers[queue].next_sequence();
        assert_eq!(next, exists.then_some(self.delivered[queue] + 1), "not where it was left");
    }

    /// With every source back and (for strict mode) a last message in each, everything comes but
    /// what holds up the rest.
    fn finish(&mut self) {
        (0..4).for_each(|queue| self.add(queue));
        while self.next().is_some() {}
        if self.mode == MergeMode::Live {
            let written: Vec<_> = self.writers.iter().map(|w| w.next_sequence() - 1).collect();
            assert_eq!(self.delivered.as_slice(), written);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn live_delivers_what_is_there_already_as_a_sort_would(sources in timestamps()) {
        let temp = Temp::new();
        let model = Model { sources };
        let mut writers = temp.writers(model.sources.len());
        for (writer, timestamps) in writers.iter_mut().zip(&model.sources) {
            append_all(writer, timestamps.iter().copied());
        }
        let mut fan = temp.fan_in(MergeMode::Live, writers.len());
        prop_assert_eq!(drain(&mut fan), model.sorted());
        prop_assert_eq!(next(&mut fan), None);
    }

    #[test]
    fn strict_delivers_exactly_what_no_source_can_precede((count, script) in script()) {
        let temp = Temp::new();
        let mut writers = temp.writers(count);
        let mut fan = temp.fan_in(MergeMode::Strict, count);
        let mut model = Model { sources: vec![Vec::new(); count] };
        let mut done = vec![0; count];
        let mut all = Vec::new();
        for step in script {
            match step {
                Some((source, timestamp)) => {
                    append(&mut writers[source], timestamp);
                    model.sources[source].push(timestamp);
                }
                None => {
                    let got = drain(&mut fan);
                    prop_assert_eq!(&got, &model.strict(&mut done));
                    all.extend(got);
                }
            }
        }
        all.extend(drain(&mut fan));
        let sorted = model.sorted();
        prop_assert_eq!(all.as_slice(), &sorted[..all.len()], "a later message preceded one that was delivered");
    }

    #[test]
    fn live_loses_nothing_while_sources_come_go_commit_and_come_back(steps in steps(), bounded: bool) {
        let mut state = Stateful::new(MergeMode::Live, bounded);
        steps.iter().for_each(|step| state.step(step));
        state.finish();
    }

    #[test]
    fn strict_loses_nothing_while_sources_come_go_commit_and_come_back(steps in steps(), bounded: bool) {
        let mut state = Stateful::new(MergeMode::Strict, bounded);
        steps.iter().for_each(|step| state.step(step));
        state.finish();
    }

    #[test]
    fn a_commit_covers_delivered_messages_only(sources in timestamps(), delivered in 0..400_usize) {
        let temp = Temp::new();
        let model = Model { sources };
        let mut writers = temp.writers(model.sources.len());
        for (writer, timestamps) in writers.iter_mut().zip(&model.sources) {
            append_all(writer, timestamps.iter().copied());
        }
        let mut fan = temp.fan_in(MergeMode::Live, writers.len());
        let mut expected = vec![1; writers.len()];
        for _ in 0..delivered {
            if let Some((_, source, sequence)) = next(&mut fan) {
                expected[source] = sequence + 1;
            }
        }
        fan.commit();
        // Delivered, but after the commit.
        next(&mut fan);
        drop(fan);
        for (source, expected) in expected.into_iter().enumerate() {
            prop_assert_eq!(temp.reader(source).next_sequence(), expected);
        }
    }
}

#[test]
fn an_idle_source_is_looked_at_within_its_bound() {
    for count in [3, 100] {
        let temp = Temp::new();
        let mut writers = temp.writers(count);
        append_all(&mut writers[0], 100..1_100);
        let mut fan = temp.fan_in(MergeMode::Live, count);
        for round in 0..4 {
            assert_eq!(next(&mut fan).unwrap().1, 0);
            let late = 1 + round % (count - 1);
            append(&mut writers[late], 1);
            let before = (0..).take_while(|_| next(&mut fan).unwrap().1 == 0).count();
            assert!(before <= count.max(64), "{before} messages came first");
        }
    }
}

fn damage_first_record(queue: &Path) {
    use std::os::unix::fs::FileExt;
    let file =
        std::fs::File::options().write(true).open(queue.join("segments/00000000000000000000.seg"));
    let geometry = OPTIONS.geometry().unwrap();
    // A commit word that is longer than the segment.
    file.unwrap()
        .write_all_at(&0x00ff_ffff_u32.to_le_bytes(), geometry.data_offset() as u64)
        .unwrap();
}

#[test]
fn sources_that_fail_keep_no_message_of_others_from_its_place() {
    let temp = Temp::new();
    let mut writers = temp.writers(8);
    for round in 0..100_u64 {
        for (i, writer) in writers.iter_mut().enumerate() {
            append(writer, 10 * round + 7 - i as u64);
        }
    }
    let mut fan = temp.fan_in(MergeMode::Live, 8);
    let bad = [0, 3, 7];
    bad.iter().for_each(|&i| damage_first_record(&temp.queue(i)));
    let (mut messages, mut errors) = (Vec::new(), [0; 8]);
    // Each look at the idle sources reports each bad one once; there are some ten looks.
    for _ in 0..1_000 {
        match try_next(&mut fan) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => panic!("sources that fail are not reported any more"),
            Err((source, e)) => {
                assert!(matches!(e.kind(), ErrorKind::Corrupt { .. }), "{e}");
                errors[source] += 1;
            }
        }
    }
    assert_eq!(messages.len(), 500);
    assert!(messages.is_sorted(), "an error changed the order");
    assert!(bad.iter().all(|&i| errors[i] > 3));
    assert_eq!(errors.iter().filter(|&&n| n > 0).count(), bad.len());
    // Without them all is quiet.
    bad.iter().for_each(|&i| drop(fan.remove(i)));
    assert_eq!(next(&mut fan), None);
    append(&mut writers[5], 5_000);
    assert_eq!(next(&mut fan), Some((5_000, 5, 101)));
}

#[test]
fn a_gap_is_reported_once_and_what_follows_it_comes_in_its_place() {
    let temp = Temp::new();
    let mut writers = temp.writers(3);
    // Readers before retention, so that the gaps are found while the fan-in runs.
    let mut fan = FanIn::new(MergeMode::Live);
    for i in 0..3 {
        fan.add(Reader::open(&temp.queue(i), None, Start::Earliest).unwrap());
    }
    for (i, writer) in writers.iter_mut().enumerate() {
        while writer.queue().tail_segment() < 5 {
            let t = 10 * writer.next_sequence() + i as u64;
            append(writer, t);
        }
    }
    let policy = RetentionPolicy { bytes_max: Some(3 << 16), ..RetentionPolicy::default() };
    for i in [0, 2] {
        assert_eq!(retention::apply(writers[i].queue(), &policy).unwrap().floor_segment, 3);
    }
    let (mut messages, mut gaps) = (Vec::new(), Vec::new());
    loop {
        match try_next(&mut fan) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => break,
            Err((source, e)) => match e.kind() {
                ErrorKind::Gap { first_missing, next, .. } => {
                    gaps.push((source, *first_missing, *next));
                }
                _ => panic!("{e}"),
            },
        }
    }
    gaps.sort_unstable();
    assert_eq!(gaps.iter().map(|g| g.0).collect::<Vec<_>>(), [0, 2]);
    for (source, writer) in writers.iter().enumerate() {
        let got: Vec<_> = messages.iter().filter(|m| m.1 == source).map(|m| m.2).collect();
        let gap = gaps.iter().find(|g| g.0 == source).map_or((0, 0), |g| (g.1, g.2));
        let expected: Vec<_> =
            (1..writer.next_sequence()).filter(|s| !(gap.0..gap.1).contains(s)).collect();
        assert_eq!(got, expected);
    }
    assert!(messages.is_sorted(), "a gap changed the order");
}

/// Waits until the doorbells of all queues are armed.
fn until_armed(writers: &[Writer]) {
    let armed = |w: &Writer| w.queue().control().doorbell.armed.load(Ordering::SeqCst) == 1;
    while !writers.iter().all(armed) {
        std::thread::yield_now();
    }
}

#[test]
fn a_sleeping_wait_over_two_hundred_sources_wakes_for_any_of_them() {
    let temp = Temp::new();
    let mut writers = temp.writers(200);
    let mut fan = temp.fan_in(MergeMode::Live, 200);
    for source in [0, 1, 63, 126, 127, 128, 129, 198, 199] {
        let targets = fan.wait_targets();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                chronicle_core::wait::wait_any(
                    &targets,
                    WaitStrategy::Sleep,
                    Some(Duration::from_secs(600)),
                )
            });
            until_armed(&writers);
            append(&mut writers[source], 1);
            assert_eq!(waiter.join().unwrap().unwrap(), Waited::Ready);
        });
        assert_eq!(next(&mut fan).unwrap().1, source);
        assert_eq!(next(&mut fan), None);
        // What the other sources still have armed costs one ring each, and then nothing.
        writers.iter().for_each(|w| w.queue().control().doorbell.armed.store(0, Ordering::SeqCst));
    }
    assert_eq!(
        fan.wait(WaitStrategy::default(), Some(Duration::from_millis(20))).unwrap(),
        Waited::TimedOut
    );
}

#[test]
fn a_strict_wait_is_ready_exactly_when_next_has_something_to_do() {
    let temp = Temp::new();
    let mut writers = temp.writers(3);
    let mut fan = temp.fan_in(MergeMode::Strict, 3);
    let wait = |fan: &mut FanIn| fan.wait(WaitStrategy::Sleep, Some(Duration::ZERO)).unwrap();
    assert_eq!(wait(&mut fan), Waited::TimedOut);
    append(&mut writers[0], 5);
    append(&mut writers[2], 7);
    // Something to look at, but nothing to deliver.
    assert_eq!(wait(&mut fan), Waited::Ready);
    assert_eq!(next(&mut fan), None);
    assert_eq!(wait(&mut fan), Waited::TimedOut);
    // The source that holds the merge up goes: all others have heads, nobody will ring.
    let reader = fan.remove(1).unwrap();
    assert_eq!(fan.wait(WaitStrategy::Sleep, None).unwrap(), Waited::Ready);
    assert_eq!(next(&mut fan), Some((5, 0, 1)));
    assert_eq!(next(&mut fan), None);
    assert_eq!(wait(&mut fan), Waited::TimedOut);
    // It comes back, behind the others.
    assert_eq!(fan.add(reader), 1);
    append(&mut writers[1], 8);
    append(&mut writers[0], 9);
    assert_eq!(wait(&mut fan), Waited::Ready);
    assert_eq!(next(&mut fan), Some((7, 2, 1)));
    assert_eq!(next(&mut fan), None);
    assert_eq!(wait(&mut fan), Waited::TimedOut);
    append(&mut writers[2], 8);
    assert_eq!(wait(&mut fan), Waited::Ready);
    assert_eq!(next(&mut fan), Some((8, 1, 1)));
    assert_eq!(next(&mut fan), None);
}

#[test]
fn a_fan_in_without_sources_has_nothing_and_waits_no_longer_than_asked() {
    for mode in [MergeMode::Live, MergeMode::Strict] {
        let mut fan = FanIn::new(mode);
        assert!(fan.is_empty());
        assert_eq!(next(&mut fan), None);
        let timeout = Some(Duration::from_millis(1));
        assert_eq!(fan.wait(WaitStrategy::Sleep, timeout).unwrap(), Waited::TimedOut);
        assert!(fan.remove(0).is_none());
    }
}

#[test]
fn a_full_fan_in_gives_the_reader_back_and_has_room_when_one_goes() {
    let temp = Temp::new();
    let mut writers = temp.writers(3);
    for (i, writer) in writers.iter_mut().enumerate() {
        append(writer, 10 - i as u64);
    }
    let mut fan = FanIn::with_capacity(MergeMode::Live, 2);
    assert_eq!(fan.try_add(temp.reader(0)).map_err(|_| ()), Ok(0));
    assert_eq!(fan.try_add(temp.reader(1)).map_err(|_| ()), Ok(1));
    let Err(NoRoom(mut back)) = fan.try_add(temp.reader(2)) else { panic!("there was room") };
    assert_eq!(back.next().unwrap().unwrap().raw.timestamp_ns, 8);
    back.seek(Start::Sequence(1)).unwrap();
    assert_eq!(next(&mut fan), Some((9, 1, 1)));
    drop(fan.remove(0));
    assert_eq!(fan.try_add(back).map_err(|_| ()), Ok(0));
    assert_eq!(next(&mut fan), Some((8, 0, 1)));
    assert_eq!(next(&mut fan), None);
    // `add` grows where `try_add` does not.
    assert_eq!(fan.add(temp.reader(0)), 2);
    assert_eq!(next(&mut fan), Some((10, 2, 1)));
}

#[test]
fn what_is_undelivered_comes_again_in_its_place() {
    let temp = Temp::new();
    for count in [1, 3] {
        let mut writers = temp.writers(count);
        for writer in &mut writers {
            append_all(writer, [5, 7, 9]);
        }
        let mut fan = temp.fan_in(MergeMode::Live, count);
        let mut all = Vec::new();
        while let Some((_, record)) = fan.next().map_err(|e| e.1).unwrap() {
            let raw = record.raw;
            fan.undeliver(raw.offset, raw.sequence);
            // Twice is once.
            fan.undeliver(raw.offset, raw.sequence);
            let again = next(&mut fan).unwrap();
            assert_eq!(again.2, raw.sequence);
            all.push(again);
        }
        assert_eq!(all.len(), 3 * count);
        assert!(all.is_sorted());
        drop(fan);
        std::fs::remove_dir_all(temp.queue(0)).unwrap();
    }
}

#[test]
fn a_commit_of_one_source_leaves_the_others_where_they_are() {
    let temp = Temp::new();
    let mut writers = temp.writers(2);
    for writer in &mut writers {
        append_all(writer, [1, 2]);
    }
    let mut fan = temp.fan_in(MergeMode::Live, 2);
    while next(&mut fan).is_some() {}
    fan.commit_source(1);
    fan.commit_source(7);
    drop(fan);
    assert_eq!(temp.reader(0).next_sequence(), 1);
    assert_eq!(temp.reader(1).next_sequence(), 3);
}

#[test]
fn arming_says_whether_there_is_something_and_rings_for_every_source_without_a_head() {
    use chronicle_core::fanin::Armed;
    for mode in [MergeMode::Live, MergeMode::Strict] {
        let temp = Temp::new();
        let mut writers = temp.writers(2);
        let mut fan = temp.fan_in(mode, 2);
        let mut words = Vec::new();
        assert_eq!((fan.arm(&mut words), words.len()), (Armed::All, 2));
        append(&mut writers[1], 5);
        words.clear();
        assert_eq!(fan.arm(&mut words), Armed::Ready);
        let delivered = next(&mut fan).is_some();
        assert_eq!(delivered, mode == MergeMode::Live);
        while next(&mut fan).is_some() {}
        words.clear();
        // Strict: the head of source 1 is held up by source 0, the only one to wait for.
        let waited_for = if mode == MergeMode::Live { 2 } else { 1 };
        assert_eq!((fan.arm(&mut words), words.len()), (Armed::All, waited_for));
    }
}
