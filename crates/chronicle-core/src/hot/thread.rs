//! The hot thread from the outside: starting it, asking it to stop, getting everything back.
//!
//! What the loop needs is allocated, locked and faulted in before it starts; the thread itself only
//! moves a box in and out. So the loop's end makes nothing and frees nothing: whoever joins the
//! thread takes the box apart.

use crate::error::Error;
use crate::hot::command::{self, Ack, CommandSender};
use crate::hot::failure::{Cause, Failure};
use crate::hot::guard::Guard;
use crate::hot::heap::Counted;
use crate::hot::journal::Journal;
use crate::hot::log::{LogRecord, LogWriter};
use crate::hot::meter::State;
use crate::hot::run::{Ended, Loop, LoopOptions, Parts};
use crate::hot::services::Services;
use crate::hot::shared::Shared;
use crate::hot::{HandlerTable, abi, block};
use crate::os::{clock, process, thread};
use crate::packets::Ring;
use crate::queue::reader::Reader;
use crate::queue::writer::Writer;
use crate::sync::Arc;
use rtrb::Consumer;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Stack of the thread, and how much of it below the loop is locked or faulted in.
const STACK_BYTES: usize = 2 << 20;
const STACK_LOCKED_BYTES: usize = 256 << 10;
/// How long a starter sleeps between looks.
const NAP: Duration = Duration::from_micros(50);

/// What a hot thread is to be.
pub struct Options {
    /// The role name, after `chr-hot:`.
    pub name: String,
    pub core: Option<usize>,
    pub fifo_priority: Option<i32>,
    pub lock_memory: bool,
    /// Whether a privilege that is missing makes the start fail.
    pub strict: bool,
    pub commands_max: usize,
    pub log_records: usize,
    pub guard: Arc<Guard>,
    pub run: LoopOptions,
}

/// A handler and what it starts with.
pub struct Program<'a> {
    pub table: HandlerTable,
    pub state: &'a [u8],
    pub outputs: usize,
    pub counters: usize,
    /// A block of a counters file, by its offset, for the counts; otherwise they are on the heap.
    pub counters_file: Option<(File, usize)>,
}

/// What is handed to the thread, and comes back.
#[derive(Default)]
pub struct Cargo {
    /// Each with the ticket that it shall be known by, and its tag.
    pub readers: Vec<(u64, u32, Reader)>,
    pub writers: Vec<(u32, Writer)>,
    /// Their places are their numbers.
    pub rings: Vec<Ring>,
    /// With the bytes of its head record.
    pub journal: Option<(Writer, Vec<u8>)>,
}

/// Why a start failed.
#[derive(Debug)]
pub enum StartError {
    /// More sources or outputs than there is room for.
    TooMany {
        what: &'static str,
        found: usize,
        limit: usize,
    },
    Journal(Error),
    /// The block of the counters file cannot be mapped.
    Counters(std::io::Error),
    /// A journal holds what comes from queues; packets would be missing.
    JournalWithRings,
    Spawn(std::io::Error),
    /// `on_start` failed.
    Failed(Failure),
}

/// A start that failed, and everything that was handed over.
pub struct NotStarted {
    pub error: StartError,
    pub cargo: Cargo,
}

fn not_started(error: StartError, cargo: Cargo) -> Box<NotStarted> {
    Box::new(NotStarted { error, cargo })
}

/// A hot thread. Its parts may be used by different threads; each by one at a time.
pub struct HotThread {
    pub shared: Arc<Shared>,
    pub commands: CommandSender,
    pub acks: Consumer<Ack>,
    pub logs: Consumer<LogRecord>,
    /// What the kernel refused.
    pub warnings: Vec<String>,
    /// `None` once it was joined.
    thread: Option<JoinHandle<Box<Loop>>>,
    fork_generation: u64,
}

/// Starts a hot thread. Blocks until its loop runs, or its start failed.
///
/// # Errors
/// [`NotStarted`], with everything that was handed over.
pub fn start(
    program: Program<'_>,
    options: Options,
    cargo: Cargo,
) -> Result<HotThread, Box<NotStarted>> {
    if let Err(error) = check(&program, &options, &cargo) {
        return Err(not_started(error, cargo));
    }
    let counts = match place_counts(&program) {
        Ok(counts) => counts,
        Err(error) => return Err(not_started(StartError::Counters(error), cargo)),
    };
    let Cargo { readers, writers, rings, journal } = cargo;
    let journal = match journal.map(|(writer, head)| Journal::begin(writer, &head)).transpose() {
        Ok(journal) => journal,
        Err(refused) => {
            let (error, writer) = *refused;
            let cargo = Cargo { readers, writers, rings, journal: Some((writer, Vec::new())) };
            return Err(not_started(StartError::Journal(error), cargo));
        }
    };
    let shared = Arc::new(Shared::new(program.state, counts));
    let page = shared.page.clone();
    page.set_state(State::Starting);
    let mut ranges = shared.ranges();
    let (log, logs) = LogWriter::new(options.log_records, page.clone(), &mut ranges);
    let (commands, taken) = command::commands(options.commands_max, page.clone(), &mut ranges);
    let (ack_sender, acks) =
        command::acks(2 * options.commands_max, options.run.sources_max, &mut ranges);
    // Under a journal what is published must be a function of what is written down.
    let uses_clock = program.table.flags & abi::TABLE_USES_CLOCK != 0 || journal.is_some();
    let mut services = Services::new(program.outputs, uses_clock, log, page);
    for (output, mut writer) in writers {
        writer.set_hot(true);
        services.outputs[output as usize] = Some(writer);
    }
    let table = program.table;
    let parts = Parts {
        table,
        shared: Arc::clone(&shared),
        services,
        commands: taken,
        acks: ack_sender,
        rings,
        journal,
        guard: Arc::clone(&options.guard),
    };
    let mut run = Box::new(Loop::new(parts, options.run));
    for (ticket, tag, mut reader) in readers {
        reader.set_hot(true);
        // There is room: `check` has counted.
        drop(run.add_first(ticket, tag, reader));
    }
    let setup = Setup { options, ranges, shared: Arc::clone(&shared) };
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let thread = match spawn(run, setup, Arc::clone(&warnings)) {
        Ok(thread) => thread,
        Err((error, run)) => {
            return Err(not_started(StartError::Spawn(error), unload(run.into_ended()).0));
        }
    };
    while shared.page.state() == State::Starting && !thread.is_finished() {
        std::thread::sleep(NAP);
    }
    let warnings = std::mem::take(&mut *lock(&warnings));
    let fork_generation = process::fork_generation();
    let hot =
        HotThread { shared, commands, acks, logs, warnings, thread: Some(thread), fork_generation };
    hot.check_started()
}

fn place_counts(program: &Program<'_>) -> std::io::Result<block::Parts> {
    match &program.counters_file {
        Some((file, offset)) => block::Parts::in_file(file, *offset, program.counters),
        None => Ok(block::Parts::on_heap(program.counters)),
    }
}

fn check(program: &Program<'_>, options: &Options, cargo: &Cargo) -> Result<(), StartError> {
    let (found, limit) = (cargo.readers.len(), options.run.sources_max);
    if found > limit {
        return Err(StartError::TooMany { what: "readers", found, limit });
    }
    let (found, limit) = (program.counters, block::COUNTERS_MAX);
    if found > limit {
        return Err(StartError::TooMany { what: "counters", found, limit });
    }
    let highest = cargo.writers.iter().map(|w| w.0 as usize + 1).max().unwrap_or(0);
    if highest > program.outputs {
        let (found, limit) = (highest, program.outputs);
        return Err(StartError::TooMany { what: "outputs", found, limit });
    }
    if cargo.journal.is_some() && !cargo.rings.is_empty() {
        return Err(StartError::JournalWithRings);
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread does for itself before its loop starts.
struct Setup {
    options: Options,
    /// Memory to keep in place.
    ranges: Vec<Range>,
    shared: Arc<Shared>,
}

/// Where something starts and how long it is.
#[derive(Clone, Copy)]
pub struct Range(pub *const u8, pub usize);

// SAFETY: an address and a length, for the kernel; nothing is read through it.
unsafe impl Send for Range {}

type Spawned = Result<JoinHandle<Box<Loop>>, (std::io::Error, Box<Loop>)>;

fn spawn(run: Box<Loop>, setup: Setup, warnings: Arc<Mutex<Vec<String>>>) -> Spawned {
    let name = format!("chr-hot:{}", setup.options.name.replace('\0', ""));
    // So that a thread that cannot be started does not take the loop along.
    let place = Arc::new(Mutex::new(Some(run)));
    let theirs = Arc::clone(&place);
    process::watch_forks();
    // Measured once per process; whoever asks meanwhile waits in the kernel.
    clock::meter_ns_per_tick_q32();
    // Inherited by the thread, which never takes a signal.
    let blocked = process::block_signals();
    let spawned = std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
        let run = lock(&theirs).take();
        drop(theirs);
        // The starter takes it back only if there is no thread.
        let run = run.unwrap_or_else(|| unreachable!("the loop was put there before"));
        body(run, setup, warnings)
    });
    drop(blocked);
    spawned.map_err(|error| {
        let run = lock(&place).take();
        (error, run.unwrap_or_else(|| unreachable!("no thread has taken it")))
    })
}

/// The life of the thread.
fn body(mut run: Box<Loop>, setup: Setup, warnings: Arc<Mutex<Vec<String>>>) -> Box<Loop> {
    let shared = Arc::clone(&setup.shared);
    let page = &shared.page;
    page.thread_id.set(thread::current_id().into());
    page.started_ns.set(clock::wall_ns());
    let refused = setup.prepare();
    if setup.options.strict && !refused.is_empty() {
        run.failure = Some(Failure::of_loop(Cause::Refused(refused.join("; "))));
    }
    *lock(&warnings) = refused;
    // Everything of ours is freed before the loop starts.
    drop((setup, warnings));
    let lived = catch_unwind(AssertUnwindSafe(|| live(&mut run, &shared)));
    if let Err(panic) = lived {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
        let text = text.unwrap_or_else(|| "a panic without a message".to_owned());
        run.failure = Some(Failure::of_loop(Cause::Panic(text)));
    }
    run.end();
    page.set_state(if run.failure.is_some() { State::Failed } else { State::Stopped });
    run
}

fn live(run: &mut Loop, shared: &Arc<Shared>) {
    if run.failure.is_some() {
        return;
    }
    run.start();
    if run.failure.is_some() {
        return;
    }
    let Some(guarded) = run.arm() else { return };
    let counted = Counted::new(shared.page.clone());
    shared.page.set_state(State::Running);
    // Reports read the stack for return addresses: none of before.
    thread::clear_stack();
    run.run();
    run.stop();
    drop((counted, guarded));
}

impl Setup {
    /// Asks the kernel for what the thread wants; returns what was refused.
    fn prepare(&self) -> Vec<String> {
        let mut refused = Vec::new();
        let mut ask = |result: std::io::Result<()>| {
            refused.extend(result.err().map(|error| error.to_string()));
        };
        if let Some(core) = self.options.core {
            ask(thread::pin(core));
        }
        if let Some(priority) = self.options.fifo_priority {
            ask(thread::set_fifo(priority));
        }
        if self.options.lock_memory {
            let mut ranges = self.ranges.iter();
            let locked = ranges.try_for_each(|range| thread::lock_memory(range.0, range.1));
            ask(locked.and_then(|()| thread::lock_stack(STACK_LOCKED_BYTES)));
        }
        ask(thread::prefault_stack(STACK_LOCKED_BYTES));
        refused
    }
}

/// The cargo of a loop that has ended, and why it ended if not cleanly.
fn unload(ended: Ended) -> (Cargo, Option<Failure>) {
    let cargo = Cargo {
        readers: ended.readers.into_iter().map(|(ticket, _, reader)| (ticket, 0, reader)).collect(),
        writers: ended.writers,
        rings: ended.rings,
        journal: ended.journal.map(|journal| (journal.into_writer(), Vec::new())),
    };
    (cargo, ended.failure)
}

impl HotThread {
    fn check_started(mut self) -> Result<Self, Box<NotStarted>> {
        // A thread that runs has passed `on_start`; one that has failed since is seen later.
        let failed_early = self.shared.page.turns.get() == 0
            && matches!(self.shared.page.state(), State::Failed | State::Starting);
        if !failed_early {
            return Ok(self);
        }
        let (cargo, failure) = unload(self.join());
        let unknown = || Failure::of_loop(Cause::Panic("the thread ended as it started".into()));
        Err(not_started(StartError::Failed(failure.unwrap_or_else(unknown)), cargo))
    }

    /// Asks the thread to stop after the message it is at; does not wait. Commands that it has not
    /// taken come back from [`HotThread::join`].
    pub fn ask_to_stop(&self) {
        self.shared.page.ask_to_stop();
    }

    /// Wakes the thread if it sleeps: it then looks at everything once. Two stores and a system call
    /// at most.
    pub fn nudge(&self) {
        self.shared.page.ring();
    }

    /// Whether the thread has ended, or is about to: [`HotThread::join`] will not wait for long.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end of the thread and gives everything back. Empty if it was joined before, or
    /// if this process was forked from the one that has the thread.
    pub fn join(&mut self) -> Ended {
        let Some(thread) = self.thread.take() else { return Ended::default() };
        if self.is_inherited() {
            std::mem::forget(thread);
            return Ended::default();
        }
        match thread.join() {
            Ok(run) => run.into_ended(),
            // The body catches what panics in it; the loop is lost.
            Err(_) => {
                let cause = Cause::Panic("the thread panicked outside of its loop".into());
                Ended { failure: Some(Failure::of_loop(cause)), ..Ended::default() }
            }
        }
    }

    /// Whether this process was forked from the one that has the thread.
    pub fn is_inherited(&self) -> bool {
        self.fork_generation != process::fork_generation()
    }
}

impl Drop for HotThread {
    fn drop(&mut self) {
        if self.thread.is_some() && !self.is_inherited() {
            self.ask_to_stop();
        }
        drop(self.join());
    }
}
