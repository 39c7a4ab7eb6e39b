//! The hot thread with a handler written by hand: dispatch, commands and acks, full rings, gaps,
//! failures, and what is given back.

mod fire;

use chronicle_core::hot::abi::*;
use chronicle_core::hot::command::{Ack, Command, Refusal, What};
use chronicle_core::hot::failure::{Cause, During};
use chronicle_core::hot::guard::{Guard, GuardMode};
use chronicle_core::hot::meter::State;
use chronicle_core::hot::run::{Ended, LoopOptions, Meter};
use chronicle_core::hot::thread::{
    self, Cargo, HotThread, NotStarted, Options, Program, StartError,
};
use chronicle_core::queue::retention;
use chronicle_core::wait::WaitStrategy;
use chronicle_core::{
    ErrorKind, GapReason, MergeMode, Options as QueueOptions, Provisioner, Reader, RetentionPolicy,
    Start, Writer,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the handler keeps, as its state record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    sum: u64,
    messages: u64,
    commands: u64,
    command_bytes: u64,
    events: [u64; 3],
    last_event: [u64; 3],
    idles: u64,
    started: u64,
    stopped: u64,
    last_now_ns: u64,
}

const TYPE_SUM: u16 = 1;
/// The handler fails.
const TYPE_FAIL: u16 = 2;
/// The handler asks to stop.
const TYPE_STOP: u16 = 3;
/// The handler appends to an output that it does not have.
const TYPE_BAD_OUTPUT: u16 = 4;
/// The handler returns a number that means nothing.
const TYPE_NONSENSE: u16 = 5;
const TYPE_UNKNOWN: u16 = 99;

/// # Safety
/// Called by the loop.
unsafe fn state<'a>(context: *mut Context) -> &'a mut Seen {
    // SAFETY: the tests give the program a state of this size.
    unsafe { &mut *(*context).state.cast::<Seen>() }
}

/// # Safety
/// Called by the loop.
unsafe extern "C" fn on_message(context: *mut Context, message: *const Message) -> i32 {
    // SAFETY: called by the loop with valid pointers.
    let (seen, message) = unsafe { (state(context), &*message) };
    // SAFETY: as above.
    let payload = match message.len_bytes {
        0 => &[],
        // SAFETY: the loop's promise.
        len => unsafe { std::slice::from_raw_parts(message.payload, len as usize) },
    };
    // SAFETY: as above.
    seen.last_now_ns = unsafe { (*context).now_ns };
    match (message.kind(), message.type_id()) {
        (KIND_DATA, TYPE_SUM) => {
            seen.messages += 1;
            seen.sum += u64::from_le_bytes(payload[..8].try_into().unwrap());
            // SAFETY: counters and context are valid; the payload is the message's.
            unsafe {
                *(*context).counters += 1;
                let sequence = chr_hot_append(context, 0, 7, message.payload, message.len_bytes);
                let args = [seen.sum, sequence as u64, 3];
                chr_hot_log(context, 5, 3, 0x222, args.as_ptr());
                if sequence < 0 { FAILED } else { HANDLED }
            }
        }
        (KIND_DATA, TYPE_FAIL) => {
            // SAFETY: as above.
            unsafe {
                (*context).fail_info = 77 as *const _;
                (*context).fail_code = -5;
            }
            FAILED
        }
        (_, TYPE_STOP) => {
            // SAFETY: as above.
            unsafe { (*context).flags |= CONTEXT_STOP };
            HANDLED
        }
        (KIND_DATA, TYPE_BAD_OUTPUT) => {
            // SAFETY: as above.
            let rc = unsafe { chr_hot_append(context, 9, 7, message.payload, message.len_bytes) };
            if rc < 0 { FAILED } else { HANDLED }
        }
        (KIND_DATA, TYPE_NONSENSE) => -3,
        (KIND_COMMAND, TYPE_SUM) => {
            seen.commands += 1;
            seen.command_bytes += payload.iter().map(|&b| u64::from(b)).sum::<u64>();
            HANDLED
        }
        (KIND_COMMAND, TYPE_FAIL) => FAILED,
        (KIND_EVENT, EVENT_SOURCE_ADDED..=EVENT_SOURCE_GAP) => {
            seen.events[usize::from(message.type_id() - EVENT_SOURCE_ADDED)] += 1;
            for (word, bytes) in seen.last_event.iter_mut().zip(payload.chunks(8)) {
                let mut whole = [0; 8];
                whole[..bytes.len()].copy_from_slice(bytes);
                *word = u64::from_le_bytes(whole);
            }
            HANDLED
        }
        _ => UNHANDLED,
    }
}

/// # Safety
/// Called by the loop.
unsafe extern "C" fn on_idle(context: *mut Context) -> i32 {
    // SAFETY: called by the loop.
    unsafe { state(context).idles += 1 };
    HANDLED
}

/// # Safety
/// Called by the loop.
unsafe extern "C" fn on_start(context: *mut Context) -> i32 {
    // SAFETY: called by the loop.
    unsafe { state(context).started += 1 };
    HANDLED
}

/// # Safety
/// Called by the loop.
unsafe extern "C" fn on_stop(context: *mut Context) -> i32 {
    // SAFETY: called by the loop.
    unsafe { state(context).stopped += 1 };
    HANDLED
}

/// # Safety
/// Called by the loop.
unsafe extern "C" fn fails(_: *mut Context) -> i32 {
    FAILED
}

fn table() -> HandlerTable {
    HandlerTable {
        on_message: Some(on_message),
        on_idle: Some(on_idle),
        on_start: Some(on_start),
        on_stop: Some(on_stop),
        ..HandlerTable::default()
    }
}

const NAPPING: WaitStrategy = WaitStrategy::Hybrid { spin_ns: 10_000 };

fn options() -> Options {
    Options {
        name: "test".into(),
        core: None,
        fifo_priority: None,
        lock_memory: true,
        strict: false,
        commands_max: 8,
        log_records: 16,
        guard: Guard::new(GuardMode::Enforce, 64).unwrap(),
        run: LoopOptions {
            wait: NAPPING,
            meter: Meter::Full,
            mode: MergeMode::Live,
            commit: true,
            sources_max: 4,
        },
    }
}

fn program(table: HandlerTable) -> Program<'static> {
    Program { table, state: &[0; size_of::<Seen>()], outputs: 2, counters: 1, counters_file: None }
}

fn seen(hot: &HotThread) -> Seen {
    let bytes = hot.shared.state.snapshot();
    assert_eq!(bytes.len(), size_of::<Seen>());
    // SAFETY: as many bytes as the record has; any are a valid record.
    unsafe { bytes.as_ptr().cast::<Seen>().read_unaligned() }
}

/// A directory, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(fire::scratch(&format!("hot-{name}")))
    }

    fn writer(&self, name: &str) -> Writer {
        let options = QueueOptions { segment_bytes: 1 << 16, ..QueueOptions::default() };
        Writer::open(&self.0.join(name), &options).unwrap()
    }

    fn reader(&self, queue: &str, name: &str) -> Reader {
        Reader::open(&self.0.join(queue), Some(name), Start::Resume).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Nothing passes or fails by being slow, but for a hang.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < end, "it never happened: {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn next_ack(hot: &mut HotThread) -> Ack {
    let mut found = None;
    until("an ack", || {
        found = hot.acks.pop().ok();
        found.is_some()
    });
    found.unwrap()
}

fn send(hot: &mut HotThread, ticket: u64, what: What) {
    assert!(hot.commands.try_send(Command { ticket, sent_ns: 1, what }).is_ok(), "full");
}

fn message(type_id: u16, bytes: &[u8]) -> What {
    What::Message { type_id, bytes: bytes.into() }
}

fn start(cargo: Cargo) -> HotThread {
    match thread::start(program(table()), options(), cargo) {
        Ok(hot) => hot,
        Err(not_started) => panic!("{:?}", not_started.error),
    }
}

fn stop(mut hot: HotThread) -> (Ended, Seen) {
    hot.ask_to_stop();
    let ended = hot.join();
    let seen = seen(&hot);
    (ended, seen)
}

fn sequences(path: &Path) -> Vec<u64> {
    let mut reader = Reader::open(path, None, Start::Earliest).unwrap();
    std::iter::from_fn(|| reader.next().unwrap().map(|r| r.raw.sequence)).collect()
}

#[test]
fn messages_are_dispatched_in_order_and_outputs_counters_and_logs_arrive() {
    let scratch = Scratch::new("dispatch");
    let mut input = scratch.writer("in");
    let output = scratch.writer("out");
    for n in 1..=10_u64 {
        input.append(TYPE_SUM, &n.to_le_bytes(), Some(n)).unwrap();
    }
    input.append(TYPE_UNKNOWN, b"", None).unwrap();
    let readers = vec![(1, 0, scratch.reader("in", "hot"))];
    let writers = vec![(0, output)];
    let mut hot = start(Cargo { readers, writers, ..Cargo::default() });
    until("all messages", || hot.shared.page.messages.get() == 11);
    assert_eq!(hot.shared.counters[0].get(), 10);
    for n in 1..=10 {
        let record = hot.logs.pop().unwrap();
        assert_eq!((record.site, record.count, record.tags), (5, 3, 0x222));
        assert_eq!(record.args, [n * (n + 1) / 2, n, 3, 0, 0]);
        assert!(record.ns > 0);
    }
    assert_eq!(hot.shared.page.unhandled.get(), 1);
    assert_eq!(hot.shared.handler_time.snapshot().0.iter().map(|b| b.1).sum::<u64>(), 11);
    let (mut ended, seen) = stop(hot);
    assert!(ended.failure.is_none());
    assert_eq!((seen.sum, seen.messages, seen.started, seen.stopped), (55, 10, 1, 1));
    assert_eq!(sequences(&scratch.path("out")), (1..=10).collect::<Vec<_>>());
    // Given back, and as good as before.
    let (ticket, source, reader) = &mut ended.readers[0];
    assert_eq!((*ticket, *source, reader.next_sequence()), (1, 0, 12));
    input.append(TYPE_SUM, b"more", None).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().raw.sequence, 12);
    assert_eq!(ended.writers[0].1.append(1, b"x", None).unwrap(), 11);
    // What was handled was committed.
    drop(ended);
    assert_eq!(scratch.reader("in", "hot").next_sequence(), 12);
}

#[test]
fn a_parked_thread_is_woken_by_data_by_commands_and_by_stop() {
    let scratch = Scratch::new("park");
    let mut input = scratch.writer("in");
    let readers = vec![(1, 0, scratch.reader("in", "hot"))];
    let mut hot = start(Cargo { readers, ..Cargo::default() });
    for n in 1..=3_u64 {
        until("it sleeps", || hot.shared.page.state() == State::Parked);
        input.append(TYPE_SUM, &n.to_le_bytes(), None).unwrap();
        until("it woke", || hot.shared.page.messages.get() == n);
        until("it sleeps again", || hot.shared.page.state() == State::Parked);
        send(&mut hot, n, message(TYPE_SUM, &[1, 2]));
        until("the command", || hot.shared.page.commands.get() == n);
    }
    until("it sleeps", || hot.shared.page.state() == State::Parked);
    let (ended, seen) = stop(hot);
    assert_eq!((seen.commands, seen.command_bytes, seen.sum), (3, 9, 6));
    assert!(ended.failure.is_none());
}

#[test]
fn commands_are_acknowledged_in_order_with_their_bytes() {
    let mut hot = start(Cargo::default());
    send(&mut hot, 11, message(TYPE_SUM, b"abc"));
    send(&mut hot, 12, message(TYPE_UNKNOWN, b""));
    match next_ack(&mut hot) {
        Ack::Done { ticket: 11, handled: true, bytes, times } => {
            assert_eq!(&*bytes, b"abc");
            assert!(times.sent_ns == 1 && times.taken_ns > 1);
        }
        _ => panic!("not the ack"),
    }
    assert!(matches!(next_ack(&mut hot), Ack::Done { ticket: 12, handled: false, .. }));
    let (_, seen) = stop(hot);
    assert_eq!(seen.commands, 1);
}

/// A reader of the queue `in`, to be handed over.
fn reader_to_add(scratch: &Scratch, name: &str) -> What {
    let mut reader = scratch.reader("in", name);
    reader.set_hot(true);
    What::AddReader { reader, tag: 7, about: Box::default() }
}

#[test]
fn readers_and_writers_come_and_go_while_it_runs() {
    let scratch = Scratch::new("come-and-go");
    let mut input = scratch.writer("in");
    let mut hot = start(Cargo::default());
    input.append(TYPE_SUM, &5_u64.to_le_bytes(), None).unwrap();
    // An output without a writer drops and counts.
    send(&mut hot, 1, reader_to_add(&scratch, "a"));
    assert!(matches!(next_ack(&mut hot), Ack::Added { ticket: 1, source: 0, .. }));
    match next_ack(&mut hot) {
        Ack::FirstMessage { ticket: 1, source: 0, times, first_message_ns } => {
            assert!(first_message_ns >= times.taken_ns);
        }
        _ => panic!("not the ack"),
    }
    assert_eq!(hot.shared.page.appends_dropped.get(), 1);
    let writer =
        What::AddWriter { output: 0, writer: scratch.writer("out"), about: Box::default() };
    send(&mut hot, 2, writer);
    assert!(matches!(next_ack(&mut hot), Ack::WriterAdded { ticket: 2, output: 0, old: None, .. }));
    input.append(TYPE_SUM, &6_u64.to_le_bytes(), None).unwrap();
    until("the append", || hot.shared.page.appends.get() == 1);
    // Another writer replaces it, and the old one comes back.
    let other = scratch.writer("other");
    send(&mut hot, 3, What::AddWriter { output: 0, writer: other, about: Box::default() });
    match next_ack(&mut hot) {
        Ack::WriterAdded { ticket: 3, old: Some(old), .. } => assert_eq!(old.next_sequence(), 2),
        _ => panic!("not the ack"),
    }
    // An output that loses its writer is one without a writer; there is nothing to give back twice.
    send(&mut hot, 30, What::RemoveWriter { output: 0 });
    match next_ack(&mut hot) {
        Ack::WriterRemoved { ticket: 30, output: 0, mut writer, .. } => {
            assert_eq!(writer.next_sequence(), 1);
            writer.append(1, b"still good", None).unwrap();
        }
        _ => panic!("not the ack"),
    }
    for (output, expected) in
        [(0, Refusal::NoWriter { output: 0 }), (7, Refusal::NoSuchOutput { output: 7 })]
    {
        send(&mut hot, 31, What::RemoveWriter { output });
        match next_ack(&mut hot) {
            Ack::Refused { ticket: 31, refusal, what: What::RemoveWriter { .. }, .. } => {
                assert_eq!(refusal, expected);
            }
            _ => panic!("not the ack"),
        }
    }
    send(&mut hot, 4, What::RemoveReader { source: 0 });
    match next_ack(&mut hot) {
        Ack::Removed { ticket: 4, source: 0, added: 1, mut reader, .. } => {
            assert_eq!(reader.next_sequence(), 3);
            input.append(TYPE_SUM, &7_u64.to_le_bytes(), None).unwrap();
            reader.set_hot(false);
            assert_eq!(reader.next().unwrap().unwrap().raw.sequence, 3);
        }
        _ => panic!("not the ack"),
    }
    for n in 0..5_u64 {
        send(&mut hot, 10 + n, reader_to_add(&scratch, &format!("r{n}")));
        match next_ack(&mut hot) {
            Ack::Added { source, .. } => assert_eq!(u64::from(source), n),
            Ack::Refused { refusal, what: What::AddReader { reader, .. }, .. } => {
                assert_eq!((n, refusal), (4, Refusal::FanInFull { sources_max: 4 }));
                assert_eq!(reader.name(), "r4");
            }
            _ => panic!("not the ack"),
        }
        until("its first messages", || hot.shared.page.messages.get() >= 2 + 3 * (n.min(3) + 1));
        while hot.acks.pop().is_ok() {}
    }
    let (ended, seen) = stop(hot);
    assert_eq!(seen.events, [5, 1, 0]);
    assert_eq!(ended.readers.iter().map(|r| r.0).collect::<Vec<_>>(), [10, 11, 12, 13]);
}

#[test]
fn what_cannot_be_done_comes_back() {
    let scratch = Scratch::new("comes-back");
    let mut hot = start(Cargo::default());
    send(&mut hot, 5, What::RemoveReader { source: 0 });
    let refused = next_ack(&mut hot);
    let no_such = |r| matches!(r, Refusal::NoSuchSource { source: 0 });
    assert!(matches!(refused, Ack::Refused { ticket: 5, refusal, .. } if no_such(refusal)));
    let nowhere = scratch.writer("nowhere");
    send(&mut hot, 6, What::AddWriter { output: 7, writer: nowhere, about: Box::default() });
    match next_ack(&mut hot) {
        Ack::Refused { ticket: 6, refusal, what: What::AddWriter { mut writer, .. }, .. } => {
            assert_eq!(refusal, Refusal::NoSuchOutput { output: 7 });
            writer.append(1, b"still good", None).unwrap();
        }
        _ => panic!("not the ack"),
    }
    stop(hot);
}

#[test]
fn a_failing_message_stops_the_thread_and_is_named_and_not_committed() {
    let scratch = Scratch::new("fail");
    let mut input = scratch.writer("in");
    let mut other = scratch.writer("other");
    for n in 1..=3_u64 {
        input.append(TYPE_SUM, &n.to_le_bytes(), Some(n)).unwrap();
    }
    input.append(TYPE_FAIL, b"bad", Some(4)).unwrap();
    input.append(TYPE_SUM, &9_u64.to_le_bytes(), Some(5)).unwrap();
    other.append(TYPE_SUM, &100_u64.to_le_bytes(), Some(2)).unwrap();
    let readers = vec![(1, 0, scratch.reader("other", "hot")), (2, 0, scratch.reader("in", "hot"))];
    let mut hot = start(Cargo { readers, ..Cargo::default() });
    until("it failed", || hot.is_finished());
    assert_eq!(hot.shared.page.state(), State::Failed);
    let mut ended = hot.join();
    let failure = ended.failure.unwrap();
    assert_eq!(failure.during, During::Message);
    assert_eq!((failure.source, failure.sequence, failure.type_id), (Some(1), 4, TYPE_FAIL));
    assert!(
        matches!(
            failure.cause,
            Cause::Handler { returned: FAILED, info: 77, code: -5, append: None }
        ),
        "{failure:?}"
    );
    let seen = seen(&hot);
    assert_eq!((seen.sum, seen.stopped), (106, 0));
    // The reader stands before the message, in memory and in its cursor.
    assert_eq!(ended.readers[1].2.next().unwrap().unwrap().raw.sequence, 4);
    drop(ended.readers);
    assert_eq!(scratch.reader("in", "hot").next_sequence(), 4);
    assert_eq!(scratch.reader("other", "hot").next_sequence(), 2);
    // Once more: nothing is left to join.
    assert!(hot.join().readers.is_empty());
}

#[test]
fn outputs_that_do_not_exist_and_returns_that_mean_nothing_are_failures() {
    for (type_id, expected) in [(TYPE_BAD_OUTPUT, FAILED), (TYPE_NONSENSE, -3)] {
        let scratch = Scratch::new(&format!("odd-{type_id}"));
        let mut input = scratch.writer("in");
        input.append(type_id, b"12345678", None).unwrap();
        let readers = vec![(1, 0, scratch.reader("in", "hot"))];
        let mut hot = start(Cargo { readers, ..Cargo::default() });
        until("it failed", || hot.is_finished());
        match hot.join().failure.unwrap().cause {
            Cause::Handler { returned, append, .. } => {
                assert_eq!(returned, expected);
                assert_eq!(append.is_some(), type_id == TYPE_BAD_OUTPUT);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_command_that_fails_comes_back_and_its_ticket_is_named() {
    let mut hot = start(Cargo::default());
    send(&mut hot, 21, message(TYPE_FAIL, b"xyz"));
    until("it failed", || hot.is_finished());
    assert!(
        matches!(next_ack(&mut hot), Ack::Done { ticket: 21, handled: false, bytes, .. } if &*bytes == b"xyz")
    );
    let failure = hot.join().failure.unwrap();
    assert_eq!((failure.during, failure.source, failure.sequence), (During::Command, None, 21));
}

#[test]
fn a_handler_may_ask_to_stop_and_so_may_a_command_behind_others() {
    let scratch = Scratch::new("asks");
    let mut input = scratch.writer("in");
    for type_id in [TYPE_SUM, TYPE_STOP, TYPE_SUM] {
        input.append(type_id, &1_u64.to_le_bytes(), None).unwrap();
    }
    let readers = vec![(1, 0, scratch.reader("in", "hot"))];
    let mut hot = start(Cargo { readers, ..Cargo::default() });
    until("it stopped", || hot.is_finished());
    assert_eq!(hot.shared.page.state(), State::Stopped);
    let ended = hot.join();
    // What made it stop was handled, and what came behind was not.
    assert_eq!(ended.readers[0].2.next_sequence(), 3);
    assert_eq!(seen(&hot).stopped, 1);

    let mut hot = start(Cargo::default());
    send(&mut hot, 1, message(TYPE_SUM, b"a"));
    send(&mut hot, 2, What::Stop);
    send(&mut hot, 3, message(TYPE_SUM, b"b"));
    until("it stopped", || hot.is_finished());
    let ended = hot.join();
    assert_eq!(seen(&hot).commands, 1);
    assert_eq!(ended.commands.iter().map(|c| c.ticket).collect::<Vec<_>>(), [3]);
}

#[test]
fn a_full_command_ring_is_an_error_at_once_and_a_full_ack_ring_holds_commands_back() {
    let mut hot = start(Cargo::default());
    // Nobody drains acks: the ack ring (twice the size) fills, then the command ring.
    let mut sent = 0;
    let refused = loop {
        let what = message(TYPE_SUM, &[1]);
        match hot.commands.try_send(Command { ticket: sent, sent_ns: 1, what }) {
            Ok(()) => sent += 1,
            Err(command) if sent >= 24 => break command,
            // The thread has not taken them yet.
            Err(_) => std::thread::sleep(Duration::from_micros(50)),
        }
    };
    assert_eq!((sent, refused.ticket), (24, 24));
    assert_eq!(hot.shared.page.commands.get(), 16);
    // The loop is alive, and goes on as soon as there is room.
    let turns = hot.shared.page.turns.get();
    until("turns", || hot.shared.page.turns.get() > turns);
    for ticket in 0..24 {
        assert!(matches!(next_ack(&mut hot), Ack::Done { ticket: t, .. } if t == ticket));
    }
    assert_eq!(hot.commands.capacity(), 8);
    let (_, seen) = stop(hot);
    assert_eq!(seen.commands, 24);
}

#[test]
fn a_full_log_ring_drops_and_counts() {
    let scratch = Scratch::new("log");
    let mut input = scratch.writer("in");
    for _ in 0..100 {
        input.append(TYPE_SUM, &1_u64.to_le_bytes(), None).unwrap();
    }
    let readers = vec![(1, 0, scratch.reader("in", "hot"))];
    let mut hot = start(Cargo { readers, ..Cargo::default() });
    until("all messages", || hot.shared.page.messages.get() == 100);
    assert_eq!(hot.shared.page.log_records.get(), 16);
    assert_eq!(hot.shared.page.log_drops.get(), 84);
    assert_eq!((0..).take_while(|_| hot.logs.pop().is_ok()).count(), 16);
}

#[test]
fn a_gap_is_told_to_the_handler_and_in_an_ack() {
    let scratch = Scratch::new("gap");
    let mut input = scratch.writer("in");
    let reader = Reader::open(&scratch.path("in"), None, Start::Earliest).unwrap();
    while input.queue().tail_segment() < 5 {
        input.append(TYPE_UNKNOWN, &[0; 1_000], None).unwrap();
    }
    let policy = RetentionPolicy { bytes_max: Some(3 << 16), ..RetentionPolicy::default() };
    assert_eq!(retention::apply(input.queue(), &policy).unwrap().floor_segment, 3);
    // Whose worker jumps for the reader: the thread itself makes no system call, under `enforce`.
    let provisioner = Provisioner::new().unwrap();
    provisioner.attach_reader(&reader);
    let mut hot = start(Cargo { readers: vec![(1, 0, reader)], ..Cargo::default() });
    let (first_missing, next) = match next_ack(&mut hot) {
        Ack::Gap { source: 0, first_missing, next, reason, handled: true } => {
            assert_eq!(reason, GapReason::Retention);
            (first_missing, next)
        }
        _ => panic!("not the ack"),
    };
    let last = input.next_sequence() - 1;
    // The first segment was mapped by the reader before it was deleted.
    until("the rest", || hot.shared.page.messages.get() == last - (next - first_missing));
    assert_eq!(hot.shared.page.gaps.get(), 1);
    let (ended, seen) = stop(hot);
    assert_eq!(seen.events, [0, 0, 1]);
    assert_eq!(seen.last_event, [first_missing, next, u64::from(GAP_RETENTION) << 32]);
    assert_eq!(ended.readers[0].2.gaps(), 1);
}

#[test]
fn a_source_that_fails_is_taken_out_and_the_others_go_on() {
    use std::os::unix::fs::FileExt;
    let scratch = Scratch::new("corrupt");
    let mut bad = scratch.writer("bad");
    let mut good = scratch.writer("good");
    bad.append(TYPE_SUM, &1_u64.to_le_bytes(), None).unwrap();
    let readers = vec![(7, 0, scratch.reader("bad", "hot")), (8, 0, scratch.reader("good", "hot"))];
    let geometry = bad.queue().geometry;
    let segment = scratch.path("bad").join("segments/00000000000000000000.seg");
    let file = std::fs::File::options().write(true).open(segment).unwrap();
    file.write_all_at(&0x00ff_ffff_u32.to_le_bytes(), geometry.data_offset() as u64).unwrap();
    let mut hot = start(Cargo { readers, ..Cargo::default() });
    match next_ack(&mut hot) {
        Ack::SourceFailed { source: 0, added: 7, error, .. } => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }), "{error}");
        }
        _ => panic!("not the ack"),
    }
    good.append(TYPE_SUM, &3_u64.to_le_bytes(), None).unwrap();
    until("the good one", || hot.shared.page.messages.get() == 1);
    assert_eq!((hot.shared.page.sources.get(), hot.shared.page.sources_failed.get()), (1, 1));
    let (ended, seen) = stop(hot);
    assert_eq!((seen.sum, seen.events), (3, [0, 1, 0]));
    assert_eq!(seen.last_event[0], u64::from(REMOVED_FAILED) << 32);
    assert_eq!(ended.readers.len(), 1);
}

#[test]
fn a_start_that_fails_gives_everything_back() {
    let scratch = Scratch::new("start");
    let mut input = scratch.writer("in");
    input.append(TYPE_SUM, &1_u64.to_le_bytes(), None).unwrap();
    let cargo = || Cargo {
        readers: vec![(5, 0, scratch.reader("in", "hot"))],
        writers: vec![(1, scratch.writer("out"))],
        ..Cargo::default()
    };
    let check = |error_is: fn(&StartError) -> bool, table: HandlerTable, options: Options| {
        let Err(not_started) = thread::start(program(table), options, cargo()) else {
            panic!("it started")
        };
        let NotStarted { error, cargo: mut back } = *not_started;
        assert!(error_is(&error), "{error:?}");
        assert_eq!(back.readers[0].0, 5);
        assert_eq!(back.readers[0].2.next().unwrap().unwrap().raw.sequence, 1);
        assert_eq!(back.writers[0].0, 1);
        back.writers[0].1.append(1, b"x", None).unwrap();
    };
    let failing = HandlerTable { on_start: Some(fails), ..table() };
    check(|e| matches!(e, StartError::Failed(f) if f.during == During::Start), failing, options());
    let nowhere = Options { core: Some(100_000), strict: true, ..options() };
    check(
        |e| matches!(e, StartError::Failed(f) if matches!(&f.cause, Cause::Refused(text) if text.contains("core=100000"))),
        table(),
        nowhere,
    );
    let mut small = options();
    small.run.sources_max = 0;
    check(
        |e| matches!(e, StartError::TooMany { what: "readers", found: 1, limit: 0 }),
        table(),
        small,
    );
    // Without insisting it starts, and says what it lacks.
    let lacking = Options { core: Some(100_000), ..options() };
    let hot = thread::start(program(table()), lacking, cargo()).map_err(|e| e.error).unwrap();
    assert_eq!(hot.warnings.len(), 1, "{:?}", hot.warnings);
}

#[test]
fn a_thread_that_is_dropped_while_it_runs_is_stopped() {
    let scratch = Scratch::new("drop");
    let input = scratch.writer("in");
    drop(start(Cargo { readers: vec![(1, 0, scratch.reader("in", "hot"))], ..Cargo::default() }));
    // The reader is gone with it: its name is free.
    drop(scratch.reader("in", "hot"));
    drop(input);
}

#[test]
fn a_handler_without_functions_runs_and_takes_nothing() {
    let scratch = Scratch::new("empty");
    let mut input = scratch.writer("in");
    input.append(1, b"x", None).unwrap();
    let cargo = Cargo { readers: vec![(1, 0, scratch.reader("in", "hot"))], ..Cargo::default() };
    let hot = thread::start(program(HandlerTable::default()), options(), cargo)
        .map_err(|e| e.error)
        .unwrap();
    until("the message", || hot.shared.page.unhandled.get() == 1);
    let (ended, seen) = stop(hot);
    assert!(ended.failure.is_none());
    assert_eq!(seen, Seen::default());
}

#[test]
fn with_the_clock_each_message_has_its_time_and_publishes_with_it() {
    let scratch = Scratch::new("clock");
    let mut input = scratch.writer("in");
    input.append(TYPE_SUM, &1_u64.to_le_bytes(), Some(5)).unwrap();
    let table = HandlerTable { flags: TABLE_USES_CLOCK, ..table() };
    let cargo = Cargo {
        readers: vec![(1, 0, scratch.reader("in", "hot"))],
        writers: vec![(0, scratch.writer("out"))],
        ..Cargo::default()
    };
    let hot = thread::start(program(table), options(), cargo).map_err(|e| e.error).unwrap();
    until("the message", || hot.shared.page.appends.get() == 1);
    let now_ns = seen(&hot).last_now_ns;
    drop(hot);
    let mut reader = Reader::open(&scratch.path("out"), None, Start::Earliest).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().raw.timestamp_ns, now_ns);
}
