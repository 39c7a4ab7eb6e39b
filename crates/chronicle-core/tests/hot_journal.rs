//! The input journal: what is written in which order, and that a handler that is given the same
//! inputs again ends in the same state, with the same outputs.

mod fire;

use chronicle_core::hot::abi::*;
use chronicle_core::hot::command::{Command, What};
use chronicle_core::hot::failure::{Cause, During};
use chronicle_core::hot::guard::{Guard, GuardMode};
use chronicle_core::hot::journal::*;
use chronicle_core::hot::replay::Replay;
use chronicle_core::hot::run::{LoopOptions, Meter};
use chronicle_core::hot::thread::{self, Cargo, HotThread, Options, Program};
use chronicle_core::queue::provision::Chores;
use chronicle_core::wait::WaitStrategy;
use chronicle_core::{MergeMode, Options as QueueOptions, Provisioner, Reader, Start, Writer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const STATE_BYTES: usize = 24;

/// Folds everything that it can see into its state, and publishes that.
///
/// # Safety
/// Called by the loop, or by a replay.
unsafe extern "C" fn folds(context: *mut Context, message: *const Message) -> i32 {
    // SAFETY: valid pointers, and a state of STATE_BYTES.
    unsafe {
        let (message, state) = (&*message, &mut *(*context).state.cast::<[u64; 3]>());
        let mut payload: &[u8] = &[];
        if message.len_bytes > 0 {
            payload = std::slice::from_raw_parts(message.payload, message.len_bytes as usize);
        }
        let mut fold = |word: u64| state[0] = (state[0] ^ word).wrapping_mul(0x100_0000_01b3);
        for word in [
            u64::from(message.kind()),
            u64::from(message.type_id()),
            u64::from(message.source),
            message.sequence,
            message.timestamp_ns,
            (*context).now_ns,
        ] {
            fold(word);
        }
        payload.iter().for_each(|&byte| fold(byte.into()));
        state[1] += 1;
        *(*context).counters += u64::from(message.kind() == KIND_DATA);
        if message.type_id() == 66 {
            return FAILED;
        }
        let bytes = state[0].to_le_bytes();
        chr_hot_append(context, 0, 8, bytes.as_ptr(), 8);
    }
    HANDLED
}

/// # Safety
/// As [`folds`].
unsafe extern "C" fn ticks(context: *mut Context) -> i32 {
    // SAFETY: as above.
    unsafe {
        let state = &mut *(*context).state.cast::<[u64; 3]>();
        state[0] = (state[0] ^ (*context).now_ns).wrapping_mul(3);
        state[2] += 1;
    }
    HANDLED
}

fn table() -> HandlerTable {
    HandlerTable {
        on_message: Some(folds),
        on_idle: Some(ticks),
        on_start: Some(ticks),
        on_stop: Some(ticks),
        ..HandlerTable::default()
    }
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Scratch {
    fn writer(&self, name: &str) -> Writer {
        let options = QueueOptions { segment_bytes: 1 << 16, ..QueueOptions::default() };
        Writer::open(&self.0.join(name), &options).unwrap()
    }

    fn reader(&self, queue: &str, name: &str) -> Reader {
        Reader::open(&self.0.join(queue), Some(name), Start::Resume).unwrap()
    }
}

fn start(cargo: Cargo) -> HotThread {
    let program = Program {
        table: table(),
        state: &[0; STATE_BYTES],
        outputs: 1,
        counters: 1,
        counters_file: None,
    };
    let options = Options {
        name: "journal".into(),
        core: None,
        fifo_priority: None,
        lock_memory: true,
        strict: false,
        commands_max: 64,
        log_records: 16,
        guard: Guard::new(GuardMode::Observe, 64).unwrap(),
        run: LoopOptions {
            wait: WaitStrategy::Hybrid { spin_ns: 10_000 },
            meter: Meter::Loop,
            mode: MergeMode::Live,
            commit: true,
            sources_max: 4,
        },
    };
    thread::start(program, options, cargo).map_err(|e| e.error).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < end, "it never happened: {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// All records of a queue: type, timestamp, payload.
fn records(path: &Path) -> Vec<(u16, u64, Vec<u8>)> {
    let mut reader = Reader::open(path, None, Start::Earliest).unwrap();
    let mut all = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        all.push((record.raw.type_id, record.raw.timestamp_ns, record.payload().to_vec()));
    }
    all
}

/// Replays a journal into the queue `again`; gives state and counters at the end.
fn replay(scratch: &Scratch, journal: &[(u16, u64, Vec<u8>)]) -> (Vec<u8>, u64) {
    let mut replay =
        Replay::new(table(), &[0; STATE_BYTES], 1, vec![Some(scratch.writer("again"))], 16);
    let mut sources: BTreeMap<u32, Reader> = BTreeMap::new();
    let mut opened = 0;
    for (type_id, _, bytes) in journal {
        let given = match *type_id {
            JOURNAL_HEAD => {
                assert_eq!(bytes, b"head");
                sources.insert(0, scratch.reader("in-0", "replay"));
                continue;
            }
            JOURNAL_FINAL => continue,
            _ => Input::read(bytes).unwrap(),
        };
        let (input, rest) = given;
        match *type_id {
            JOURNAL_SOURCE => {
                assert_eq!(rest, b"in-1");
                opened += 1;
                let name = format!("replay-{opened}");
                sources.insert(input.source, scratch.reader("in-1", &name));
            }
            JOURNAL_OUTPUT => assert_eq!(rest, b"out"),
            JOURNAL_INPUT if input.kind == KIND_DATA => {
                let reader = sources.get_mut(&input.source).unwrap();
                let record = loop {
                    let record = reader.next().unwrap().expect("a record for each input");
                    if record.raw.sequence == input.sequence {
                        break record;
                    }
                };
                assert_eq!(record.raw.timestamp_ns, input.timestamp_ns);
                replay.feed(input, 0, record.payload()).unwrap();
            }
            _ => drop(replay.feed(input, 0, rest).unwrap()),
        }
    }
    let state = replay.shared.state.snapshot();
    let counter = replay.shared.counters[0].get();
    drop(replay.into_outputs());
    (state, counter)
}

#[test]
fn a_replay_of_the_journal_ends_in_the_same_state_with_the_same_outputs() {
    let scratch = Scratch(fire::scratch("hot-journal"));
    let provisioner = Provisioner::new().unwrap();
    let journal = scratch.writer("journal");
    provisioner.attach_writer(&journal, Chores::default());
    let mut inputs = [scratch.writer("in-0"), scratch.writer("in-1")];
    let readers = vec![(1, 0, scratch.reader("in-0", "hot"))];
    let journal = Some((journal, b"head".to_vec()));
    let cargo = Cargo { readers, journal, ..Cargo::default() };
    let mut hot = start(cargo);
    let mut ticket = 1;
    let mut send = |hot: &mut HotThread, what| {
        ticket += 1;
        assert!(hot.commands.try_send(Command { ticket, sent_ns: 1, what }).is_ok());
        until("an ack", || hot.acks.pop().is_ok());
    };
    let output = scratch.writer("out");
    send(&mut hot, What::AddWriter { output: 0, writer: output, about: Box::from(*b"out") });
    let (mut rng, mut sent) = (fire::Rng(fire::seed(11)), 0);
    for round in 0..200_u64 {
        for _ in 0..rng.below(10) {
            let bytes = rng.next().to_le_bytes();
            let len = rng.below(9) as usize;
            let to = if round < 50 { 0 } else { rng.below(2) as usize };
            inputs[to].append(1 + round as u16 % 9, &bytes[..len], None).unwrap();
            sent += 1;
        }
        if round % 3 == 0 {
            send(&mut hot, What::Message { type_id: 5, bytes: Box::from(round.to_le_bytes()) });
        }
        if round == 50 || round == 120 {
            let reader = scratch.reader("in-1", "hot");
            send(&mut hot, What::AddReader { reader, tag: 7, about: Box::from(*b"in-1") });
        }
        if round == 110 {
            until("what came so far", || hot.shared.page.messages.get() == sent);
            send(&mut hot, What::RemoveReader { source: 1 });
            while hot.acks.pop().is_ok() {}
        }
    }
    until("all messages", || hot.shared.page.messages.get() == sent);
    until("an idle turn", || hot.shared.page.idles.get() > 2);
    hot.ask_to_stop();
    let mut ended = hot.join();
    assert!(ended.failure.is_none());
    let state = hot.shared.state.snapshot();
    let counters = [hot.shared.counters[0].get()];
    let next = ended.writers[0].1.next_sequence();
    let journal = ended.journal.take().unwrap();
    let (writer, written) = journal.finish(ENDED_CLEAN, &state, &counters, &[next]);
    written.unwrap();
    drop((writer, ended));

    let journal = records(&scratch.0.join("journal"));
    assert_eq!(journal.len() as u64, hot.shared.page.journal_records.get() + 2);
    let (type_id, _, last) = journal.last().unwrap();
    assert_eq!(*type_id, JOURNAL_FINAL);
    let head: Vec<u8> =
        [0_u32, STATE_BYTES as u32, 1, 1].into_iter().flat_map(u32::to_le_bytes).collect();
    assert_eq!(&last[..FINAL_BYTES], head);
    assert_eq!(&last[FINAL_BYTES..FINAL_BYTES + STATE_BYTES], state);
    let numbers = [counters[0].to_le_bytes(), next.to_le_bytes()].concat();
    assert_eq!(last[FINAL_BYTES + STATE_BYTES..], numbers);
    let data = |(t, _, b): &&(u16, u64, Vec<u8>)| *t == JOURNAL_INPUT && b[0] == 0;
    assert_eq!(journal.iter().filter(data).count() as u64, sent);

    let (again, counter) = replay(&scratch, &journal);
    assert_eq!((again, counter), (state, counters[0]));
    let outputs = records(&scratch.0.join("out"));
    assert!(outputs.len() as u64 > sent);
    // The timestamps too: what is published has the time of its cause.
    assert_eq!(records(&scratch.0.join("again")), outputs);
}

#[test]
fn an_input_that_cannot_be_written_down_is_not_given_to_the_handler() {
    let scratch = Scratch(fire::scratch("hot-journal-full"));
    let options =
        QueueOptions { segment_bytes: 1 << 16, segments_max: 2, ..QueueOptions::default() };
    let journal = Writer::open(&scratch.0.join("journal"), &options).unwrap();
    let mut input = scratch.writer("in");
    for _ in 0..4_000 {
        input.append(1, b"x", None).unwrap();
    }
    let cargo = Cargo {
        readers: vec![(1, 0, scratch.reader("in", "hot"))],
        journal: Some((journal, Vec::new())),
        ..Cargo::default()
    };
    let mut hot = start(cargo);
    until("it failed", || hot.is_finished());
    let mut ended = hot.join();
    let failure = ended.failure.take().unwrap();
    assert!(matches!(failure.cause, Cause::Journal(_)), "{failure:?}");
    assert_eq!((failure.during, failure.source), (During::Message, Some(0)));
    let handled = hot.shared.page.messages.get();
    assert_eq!(failure.sequence, handled + 1);
    assert_eq!(hot.shared.counters[0].get(), handled);
    assert_eq!(ended.readers[0].2.next_sequence(), handled + 1);
    // The journal still reads, up to there.
    let journal = records(&scratch.0.join("journal"));
    let data = |(t, _, b): &&(u16, u64, Vec<u8>)| *t == JOURNAL_INPUT && b[0] == 0;
    assert_eq!(journal.iter().filter(data).count() as u64, handled);
}

#[test]
fn a_replay_names_the_input_that_its_handler_fails_on() {
    let mut replay = Replay::new(table(), &[0; STATE_BYTES], 1, vec![None], 16);
    let input =
        Input { kind: KIND_DATA, type_id: 66, source: 3, sequence: 9, timestamp_ns: 2, now_ns: 1 };
    let failure = replay.feed(input, 0, b"").unwrap_err();
    assert_eq!((failure.during, failure.source), (During::Message, Some(3)));
    assert_eq!((failure.sequence, failure.type_id), (9, 66));
    // An output without a writer drops and counts.
    assert!(replay.feed(Input { type_id: 1, ..input }, 0, b"").unwrap());
    assert_eq!(replay.shared.page.appends_dropped.get(), 1);
}
