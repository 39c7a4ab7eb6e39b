//! What the hot thread adds to a message: dispatch, a counter, a log call, an append; what an empty
//! command channel and an idle turn cost.
//!
//! Each is the difference between two handlers, or to a bare loop over the same queue, in the same
//! round. The handlers are functions behind pointers, as compiled ones are.

use crate::tool::{Report, Run, Scratch, median, ns_per_tick, pin, ticks};
use chronicle_core::hot::abi::*;
use chronicle_core::hot::guard::{Guard, GuardMode};
use chronicle_core::hot::run::{LoopOptions, Meter};
use chronicle_core::hot::thread::{self, Cargo, HotThread, Options, Program};
use chronicle_core::wait::WaitStrategy;
use chronicle_core::{FanIn, MergeMode, Options as QueueOptions, Reader, Start, Writer};

const PAYLOAD_BYTES: usize = 64;

/// The state record: sum, messages, ticks at the first and the last.
type State = [u64; 4];

/// # Safety
/// Called by the loop, with a state of [`State`] and payloads of [`PAYLOAD_BYTES`].
#[inline(always)]
unsafe fn note(context: *mut Context, message: *const Message) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let state = &mut *(*context).state.cast::<State>();
        let word = (*message).payload.cast::<u64>().read_unaligned();
        state[0] += word;
        state[1] += 1;
        if word & 0xffff == 1 {
            if state[2] == 0 {
                state[2] = ticks();
            }
            state[3] = ticks();
        }
        word
    }
}

/// # Safety
/// As [`note`].
unsafe extern "C" fn sums(context: *mut Context, message: *const Message) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { note(context, message) };
    HANDLED
}

/// # Safety
/// As [`note`].
unsafe extern "C" fn counts(context: *mut Context, message: *const Message) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        note(context, message);
        *(*context).counters += 1;
    }
    HANDLED
}

/// # Safety
/// As [`note`].
unsafe extern "C" fn logs(context: *mut Context, message: *const Message) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        let word = note(context, message);
        let args = [word, 2, 3];
        chr_hot_log(context, 1, 3, 0x222, args.as_ptr());
    }
    HANDLED
}

/// # Safety
/// As [`note`].
unsafe extern "C" fn appends(context: *mut Context, message: *const Message) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        note(context, message);
        chr_hot_append(context, 0, 1, (*message).payload, PAYLOAD_BYTES as u32);
    }
    HANDLED
}

fn hot(
    on_message: OnMessage,
    flags: u32,
    meter: Meter,
    readers: Vec<(u64, u32, Reader)>,
    output: Option<Writer>,
    log_records: usize,
) -> HotThread {
    let table = HandlerTable { flags, on_message: Some(on_message), ..HandlerTable::default() };
    let state = [0; size_of::<State>()];
    let program = Program { table, state: &state, outputs: 1, counters: 1, counters_file: None };
    let options = Options {
        name: "figures".into(),
        core: Some(0),
        fifo_priority: None,
        lock_memory: true,
        strict: false,
        commands_max: 64,
        log_records,
        guard: Guard::new(GuardMode::Observe, 64).expect("guard"),
        run: LoopOptions {
            wait: WaitStrategy::Spin,
            meter,
            mode: MergeMode::Live,
            commit: true,
            sources_max: 64,
        },
    };
    let writers = output.map(|writer| (0, writer)).into_iter().collect();
    let cargo = Cargo { readers, writers, ..Cargo::default() };
    match thread::start(program, options, cargo) {
        Ok(hot) => hot,
        Err(not_started) => panic!("{:?}", not_started.error),
    }
}

fn state(hot: &HotThread) -> State {
    let bytes = hot.shared.state.snapshot();
    std::array::from_fn(|i| {
        u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("8 bytes"))
    })
}

/// Ticks per message of a handler over the whole queue.
fn handler_ticks(
    queue: &Scratch,
    count: usize,
    flags: u32,
    on_message: OnMessage,
    output: Option<&Scratch>,
) -> f64 {
    let reader = Reader::open(&queue.0, None, Start::Earliest).expect("open");
    reader.segment().map().populate().expect("populate");
    let writer = output.map(|path| {
        let options =
            QueueOptions { segment_bytes: segment_bytes(count), ..QueueOptions::default() };
        Writer::open(&path.0, &options).expect("open")
    });
    let mut hot = hot(on_message, flags, Meter::Loop, vec![(1, 0, reader)], writer, 2 * count);
    while hot.shared.page.messages.get() < count as u64 {
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    hot.ask_to_stop();
    drop(hot.join());
    let [sum, messages, first, last] = state(&hot);
    assert_eq!((sum, messages), (expected_sum(count), count as u64));
    (last - first) as f64 / (count - (1 << 16)) as f64
}

fn expected_sum(count: usize) -> u64 {
    (1..=count as u64).sum()
}

/// The same sum, with nothing between the reader and it.
fn bare_ticks(queue: &Scratch, count: usize) -> f64 {
    let mut reader = Reader::open(&queue.0, None, Start::Earliest).expect("open");
    reader.segment().map().populate().expect("populate");
    let (mut sum, mut first, mut last) = (0, 0, 0);
    while let Some(record) = reader.next().expect("read") {
        let word = u64::from_le_bytes(record.payload()[..8].try_into().expect("8 bytes"));
        sum += word;
        if word & 0xffff == 1 {
            if first == 0 {
                first = ticks();
            }
            last = ticks();
        }
    }
    assert_eq!(sum, expected_sum(count));
    (last - first) as f64 / (count - (1 << 16)) as f64
}

/// The same through a fan-in, with commits.
fn bare_fan_ticks(queue: &Scratch, count: usize) -> f64 {
    let reader = Reader::open(&queue.0, None, Start::Earliest).expect("open");
    reader.segment().map().populate().expect("populate");
    let mut fan = FanIn::with_capacity(MergeMode::Live, 64);
    fan.add(reader);
    let (mut sum, mut first, mut last) = (0, 0, 0);
    while let Some((source, record)) = fan.next().map_err(|(_, e)| e).expect("read") {
        let word = u64::from_le_bytes(record.payload()[..8].try_into().expect("8 bytes"));
        sum += word;
        if word & 0xffff == 1 {
            if first == 0 {
                first = ticks();
            }
            last = ticks();
        }
        fan.commit_source(source);
    }
    assert_eq!(sum, expected_sum(count));
    (last - first) as f64 / (count - (1 << 16)) as f64
}

/// Ticks per idle turn, with so many sources.
fn idle_ticks(run: &Run, queue: &Scratch, sources: usize, meter: Meter) -> f64 {
    let readers = (0..sources as u64)
        .map(|n| (n, 0, Reader::open(&queue.0, None, Start::Latest).expect("open")))
        .collect();
    let mut hot = hot(sums, 0, meter, readers, None, 16);
    let pair = |hot: &HotThread| (hot.shared.page.turns.get(), ticks());
    std::thread::sleep(std::time::Duration::from_millis(2));
    let before = pair(&hot);
    std::thread::sleep(std::time::Duration::from_millis(run.size(40, 2) as u64));
    let mut after = pair(&hot);
    while after.0 == before.0 {
        // On a busy machine it may not have got its core at all.
        std::thread::sleep(std::time::Duration::from_millis(1));
        after = pair(&hot);
    }
    hot.ask_to_stop();
    drop(hot.join());
    (after.1 - before.1) as f64 / (after.0 - before.0) as f64
}

/// Ticks of a look at an empty command channel.
fn poll_ticks(run: &Run) -> f64 {
    let (_sender, receiver) = chronicle_core::hot::command::commands(
        64,
        chronicle_core::hot::block::Parts::on_heap(0).page,
        &mut Vec::new(),
    );
    let rounds = run.size(1 << 22, 1 << 10);
    let start = ticks();
    for _ in 0..rounds {
        assert!(std::hint::black_box(&receiver).is_empty());
    }
    (ticks() - start) as f64 / rounds as f64
}

fn segment_bytes(count: usize) -> u64 {
    (count * 96 + 65_536).next_power_of_two().max(1 << 16) as u64
}

pub fn measure(run: &Run) -> Report {
    let ns = ns_per_tick();
    let count = run.size(1 << 19, 1 << 17);
    let queue = run.scratch("hot-in");
    let options = QueueOptions { segment_bytes: segment_bytes(count), ..QueueOptions::default() };
    let mut writer = Writer::open(&queue.0, &options).expect("open");
    for n in 1..=count as u64 {
        let mut payload = [0_u8; PAYLOAD_BYTES];
        payload[..8].copy_from_slice(&n.to_le_bytes());
        writer.append(1, &payload, None).expect("append");
    }
    let mut fan = vec![];
    let (mut bare, mut sum, mut clock, mut counter, mut log, mut append) =
        (vec![], vec![], vec![], vec![], vec![], vec![]);
    let (mut idle_0, mut idle_1, mut idle_64, mut idle_off, mut poll) =
        (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..run.size(9, 1) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pin(0);
                bare.push(bare_ticks(&queue, count) * ns);
                fan.push(bare_fan_ticks(&queue, count) * ns);
                poll.push(poll_ticks(run) * ns);
            });
        });
        let handler = |flags, on_message, output: Option<&Scratch>| {
            handler_ticks(&queue, count, flags, on_message, output) * ns
        };
        sum.push(handler(0, sums, None));
        clock.push(handler(TABLE_USES_CLOCK, sums, None));
        counter.push(handler(0, counts, None));
        log.push(handler(0, logs, None));
        let out = run.scratch("hot-out");
        append.push(handler(0, appends, Some(&out)));
        let idle = |sources, meter| idle_ticks(run, &queue, sources, meter) * ns;
        idle_off.push(idle(1, Meter::Off));
        idle_0.push(idle(0, Meter::Loop));
        idle_1.push(idle(1, Meter::Loop));
        idle_64.push(idle(64, Meter::Loop));
    }
    let mut report = Report::default();
    // What is less than the noise is nothing.
    let over = |of: &[f64], floor: &[f64]| {
        median(&of.iter().zip(floor).map(|(a, b)| a - b).collect::<Vec<_>>()).max(0.0)
    };
    report.put("hot_count", count as f64);
    report.put_rounds("hot_bare", "ns", &bare);
    report.put_rounds("hot_bare_fan_in", "ns", &fan);
    report.put_rounds("hot_message", "ns", &sum);
    report.put("hot_dispatch_over_bare_ns", over(&sum, &bare));
    report.put("hot_clock_ns", over(&clock, &sum));
    report.put("hot_counter_ns", over(&counter, &sum));
    report.put("hot_log_ns", over(&log, &sum));
    report.put("hot_append_ns", over(&append, &sum));
    report.put_rounds("hot_command_poll", "ns", &poll);
    report.put_rounds("hot_idle_turn_no_source", "ns", &idle_0);
    report.put_rounds("hot_idle_turn_1_source_unmetered", "ns", &idle_off);
    report.put_rounds("hot_idle_turn_1_source", "ns", &idle_1);
    report.put_rounds("hot_idle_turn_64_sources", "ns", &idle_64);
    report
}
