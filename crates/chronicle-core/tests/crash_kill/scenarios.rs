//! Who is killed where: writers, readers, creations and recoveries.

use crate::board::{Board, Word};
use crate::child::{Orders, append, options, report};
use crate::fire::{self, SEGMENT_BYTES};
use crate::life::{HANG, Life, Sleeper, is_gap};
use crate::parent::{End, Fire};
use chronicle_core::layout::Geometry;
use chronicle_core::queue::dir::QueueDir;
use chronicle_core::queue::segment::Segment;
use chronicle_core::queue::{durable, retention, seek};
use chronicle_core::{GapReason, Reader, RetentionPolicy, Start, Writer};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

/// A writer is killed at the point that was hit least, at some occurrence of it.
fn kill_at_point(fire: &mut Fire, life: &mut Life) -> End {
    let kills = |name: &str| fire.kills.get(name).copied().unwrap_or(0);
    // Of a random half, so that one which is hard to reach does not take all the attempts.
    let mut rng = fire.rng.clone();
    let (name, &reach) = fire
        .reach
        .iter()
        .filter(|(_, reach)| **reach > 0)
        .min_by_key(|(name, _)| (rng.below(2), kills(name)))
        .expect("some point is reachable");
    let name = name.clone();
    let n = fire.rng.small(reach);
    life.orders.seed = fire.rng.next();
    life.orders.operations = 300;
    let end = fire.run(&life.orders, &life.board, &format!("{name}:{n}"));
    if end == End::Finished {
        let misses = fire.misses.entry(name.clone()).or_default();
        *misses += u64::from(n == 1);
        fire.reach.insert(name, if *misses < 12 { n.max(2) - 1 } else { 0 });
    }
    end
}

/// A writer is killed between a commit and the wake-up that follows, while a reader sleeps.
fn kill_before_wake(fire: &mut Fire, life: &mut Life) -> End {
    let points =
        ["append.committed", "batch.committed", "ring.cleared", "ring.moved", "roll.marked"];
    let point = points[fire.rng.below(5) as usize];
    let n = fire.rng.small(8);
    let seed = fire.rng.next();
    let orders = Orders { seed, operations: 30, pauses: true, ..life.orders.clone() };
    fire.run(&orders, &life.board, &format!("{point}:{n}"))
}

/// A writer is killed once its readers have seen so many records.
fn kill_at_random(fire: &mut Fire, life: &mut Life) -> End {
    life.orders.seed = fire.rng.next();
    life.orders.operations = u64::MAX;
    let until = life.seen + fire.rng.small(4_000) - 1;
    let mut child = fire.spawn(&life.orders, &life.board, None);
    let start = Instant::now();
    while life.seen < until {
        life.drain();
        assert!(start.elapsed() < HANG, "the child does not write");
        assert!(child.try_wait().unwrap().is_none(), "the child has failed");
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    fire.ended(status, true)
}

/// A reader is killed around its commits, or while it creates its cursor.
fn kill_reader(fire: &mut Fire, life: &mut Life) {
    let mut writer = Writer::open(&life.orders.queue, &options(life.orders.checksum)).unwrap();
    for _ in 0..20 {
        append(&mut writer, 40);
    }
    life.epoch = writer.epoch();
    drop(writer);
    let is_new = fire.rng.chance(3);
    fire.names += 1;
    let name = if is_new { format!("cur{}", fire.names) } else { "cur".to_owned() };
    let before = if is_new { 1 } else { life.cursor };
    life.board.set(Word::CursorTried, before);
    life.board.set(Word::CursorDone, before);
    let fail = match fire.rng.below(4) {
        0 => format!("*:{}", 1 + fire.rng.below(12)),
        _ => format!("cursor.sequence:{}", fire.rng.small(300)),
    };
    let seed = fire.rng.next();
    let orders =
        Orders { mode: "read", seed, operations: 200, reader: name.clone(), ..life.orders.clone() };
    fire.run(&orders, &life.board, &fail);
    let (done, tried) = (life.board.get(Word::CursorDone), life.board.get(Word::CursorTried));
    let mut reader = Reader::open(&life.orders.queue, Some(&name), Start::Resume).unwrap();
    let at = reader.next_sequence();
    assert!(at == done || at == tried, "resumed at {at}, committed {done}, or {tried}");
    for i in 0..5 {
        match reader.next() {
            Ok(Some(r)) => {
                fire::check_record(r.raw.sequence, r.raw.type_id, r.payload());
            }
            Ok(None) => break,
            Err(e) => assert!(i == 0 && is_gap(&e, GapReason::Retention), "{e}"),
        }
    }
    reader.commit();
    if !is_new {
        life.cursor = reader.next_sequence();
    }
}

/// A provisioner's flush comes in the middle of a roll, and the machine reboots: the marker before
/// the durable position is missing.
fn flush_and_forget(fire: &mut Fire, life: &Life) {
    let queue = QueueDir::open(&life.orders.queue, true).unwrap();
    let place = seek::tail(&queue).unwrap();
    durable::flush_to(&queue, place.position(), place.sequence).unwrap();
    fire::forget_boot(&life.orders.queue);
    let orders = Orders { mode: "open", ..life.orders.clone() };
    fire.run(&orders, &life.board, "recovery.durable_marked:1");
}

pub fn one_life(fire: &mut Fire, goal: u64) {
    let checksum = fire.rng.chance(2);
    let mut life = Life::start(fire, checksum);
    for _ in 0..25 {
        if fire.total() >= goal {
            break;
        }
        if fire.rng.chance(6) {
            fire.scenario = "reader";
            kill_reader(fire, &mut life);
            life.settle(&mut fire.rng);
            continue;
        }
        fire.scenario = "writer";
        let end = if life.sleeper.is_some() && fire.rng.chance(4) {
            kill_before_wake(fire, &mut life)
        } else if fire.rng.chance(4) {
            kill_at_random(fire, &mut life)
        } else {
            kill_at_point(fire, &mut life)
        };
        let in_roll = matches!(&end, End::Killed(point) if point.starts_with("roll."));
        fire.scenario = "recovery";
        if in_roll && life.orders.checksum && fire.rng.chance(2) {
            flush_and_forget(fire, &life);
        }
        if life.orders.checksum && fire.rng.chance(if in_roll { 3 } else { 20 }) {
            fire::forget_boot(&life.orders.queue);
            fire.chain(&life.orders, &life.board, 4);
        } else if (in_roll && fire.rng.chance(3)) || fire.rng.chance(20) {
            fire.chain(&life.orders, &life.board, 2);
        }
        life.settle(&mut fire.rng);
    }
    life.end();
}

/// A queue's creation is killed at every point in turn; each time another writer finishes it.
pub fn creation(fire: &mut Fire, goal: u64) {
    fire.scenario = "creation";
    let board = Board::open(&fire.new_path("board"));
    let checksum = fire.rng.chance(2);
    for at in 1.. {
        let queue = fire.new_path("created").join("with").join("parents");
        board.set(Word::Committed, 0);
        let orders = Orders {
            mode: "create",
            queue: queue.clone(),
            seed: 0,
            operations: 0,
            checksum,
            provisioned: false,
            pauses: false,
            reader: String::new(),
        };
        let end = fire.run(&orders, &board, &format!("*:{at}"));
        if fire.rng.chance(8) {
            fire.chain(&orders, &board, 4);
        }
        let mut writer = Writer::open(&queue, &options(checksum)).unwrap();
        let next = writer.next_sequence();
        assert!(next > board.get(Word::Committed) && next <= 4, "next={next}");
        append(&mut writer, 99);
        let all = fire::scan(&queue);
        assert_eq!(all.len() as u64, next);
        fire::check_seeks(&queue, &all, &mut fire.rng, 2);
        let mut reader = Reader::open(&queue, Some("cur"), Start::Resume).unwrap();
        while let Some(record) = reader.next().unwrap() {
            assert!(record.raw.sequence <= next);
        }
        assert_eq!(reader.next_sequence(), next + 1);
        std::fs::remove_dir_all(queue.parent().unwrap().parent().unwrap()).unwrap();
        if end == End::Finished || fire.total() >= goal {
            return;
        }
    }
}

/// A queue as a power loss may leave it: flushed up to a point, damaged behind it.
fn damaged_queue(fire: &mut Fire, headless: bool) -> (PathBuf, u64) {
    let queue = fire.new_path("power");
    let mut writer = Writer::open(&queue, &options(true)).unwrap();
    let never_flushed = headless || fire.rng.chance(4);
    let flushed_at = if never_flushed { 0 } else { fire.rng.below(600) };
    for i in 0..900_u64 {
        append(&mut writer, 200 + fire.rng.below(200) as usize);
        if i + 1 == flushed_at {
            assert_eq!(writer.flush().unwrap(), flushed_at);
        }
    }
    let mut reader = Reader::open(&queue, Some("cur"), Start::Latest).unwrap();
    assert!(reader.next().unwrap().is_none());
    reader.commit();
    let dir = QueueDir::open(&queue, true).unwrap();
    let geometry: Geometry = dir.geometry;
    let tail = dir.tail_segment();
    let place = seek::find(&dir, Start::Sequence(flushed_at + 1)).unwrap();
    // The prepared next segment, which holds nothing.
    Segment::prepare(&dir, tail + 1).unwrap();
    drop((writer, reader));
    let spoil = |index: u64, offset: usize, len: usize| {
        let segment = Segment::open(&dir, index, true).unwrap();
        // SAFETY: in range by the callers below; nobody else has the queue open.
        unsafe { segment.base().add(offset).write_bytes(0, len) };
    };
    if headless || (never_flushed && fire.rng.chance(2)) {
        // Not even the first header has reached the disk.
        spoil(0, 0, 4096);
    } else {
        let first = place.segment.index;
        let index = first + fire.rng.below(tail - first + 1);
        let from = if index == first { place.offset } else { geometry.data_offset() };
        let sealed = dir.table_entry(index).unwrap().end_offset.load(SeqCst) as usize;
        let end = if index == tail { seek::tail(&dir).unwrap().offset } else { sealed };
        let at = from + fire.rng.below((end - from) as u64 / 8) as usize * 8;
        spoil(index, at, (geometry.segment_bytes() - at).min(4096));
        if index < tail && fire.rng.chance(2) {
            spoil(tail, 0, 4096);
        }
    }
    fire::forget_boot(&queue);
    (queue, flushed_at)
}

/// A recovery after a power loss is killed at every point in turn, and ends where one that was left
/// alone ends.
pub fn recovery_after_power_loss(fire: &mut Fire, aim: &str) {
    fire.scenario = "recovery after power loss";
    let (queue, flushed) = damaged_queue(fire, aim == "recovery.fresh");
    let alone = fire.new_path("alone");
    fire::copy_tree(&queue, &alone);
    let expected = Board::open(&fire.new_path("board"));
    report(&expected, &Writer::open(&alone, &options(true)).unwrap());
    let board = Board::open(&fire.new_path("board"));
    let orders = Orders {
        mode: "open",
        queue: queue.clone(),
        seed: 0,
        operations: 0,
        checksum: true,
        provisioned: false,
        pauses: false,
        reader: String::new(),
    };
    // First where few were yet, then everywhere.
    fire.run(&orders, &board, &format!("{aim}:1"));
    let points = fire.chain(&orders, &board, 1);
    assert_ne!(expected.get(Word::BytesDiscarded), u64::MAX, "the cut was not reported");
    // With the new epoch the work was done, and whoever came later found a queue in order.
    let was_done = points.iter().any(|p| p.starts_with("open.") && p != "open.recovered");
    let all = [Word::Position, Word::NextSequence, Word::BytesDiscarded, Word::SetAside];
    for word in &all[..if was_done { 2 } else { 4 }] {
        assert_eq!(board.get(*word), expected.get(*word), "after {points:?}");
    }
    assert_eq!(kept_files(&queue), kept_files(&alone), "after {points:?}");
    let (ours, theirs) = (fire::scan(&queue), fire::scan(&alone));
    assert_eq!(ours, theirs);
    assert!(ours.len() as u64 >= flushed);
    // The reader whose cursor stands behind the cut is told, even if the numbers are in use again.
    let mut writer = Writer::open(&queue, &options(true)).unwrap();
    assert!(writer.recovery().cut.is_none());
    let next = writer.next_sequence();
    for _ in 0..fire.rng.below(2) * 1_000 {
        append(&mut writer, 20);
    }
    append(&mut writer, 20);
    let mut reader = Reader::open(&queue, Some("cur"), Start::Resume).unwrap();
    let told = reader.next().err().expect("a gap");
    assert!(is_gap(&told, GapReason::Cut), "{told}");
    assert_eq!(reader.next().unwrap().unwrap().raw.sequence, next);
    std::fs::remove_dir_all(&queue).unwrap();
    std::fs::remove_dir_all(&alone).unwrap();
}

/// Retention runs while the last full segment has no marker yet. Whoever stands at its end,
/// unregistered, must get on.
pub fn retention_before_recovery(fire: &mut Fire) {
    fire.scenario = "retention before recovery";
    let mut life = Life::start(fire, false);
    // The registered reader would hold the segment.
    drop(std::mem::replace(
        &mut life.live,
        Reader::open(&life.orders.queue, None, Start::Earliest).unwrap(),
    ));
    let sleeper = life.sleeper.get_or_insert_with(|| Sleeper::start(&life.orders.queue));
    let n = 1 + fire.rng.below(3);
    let orders = Orders { seed: fire.rng.next(), operations: 300, ..life.orders.clone() };
    fire.run(&orders, &life.board, &format!("roll.tail:{n}"));
    let queue = QueueDir::open(&life.orders.queue, true).unwrap();
    let all = RetentionPolicy { bytes_max: Some(SEGMENT_BYTES), age_ns_max: None };
    retention::apply(&queue, &all).unwrap();
    let mut writer = Writer::open(&life.orders.queue, &options(false)).unwrap();
    append(&mut writer, 10);
    sleeper.must_see(writer.next_sequence() - 1);
    drop(writer);
    life.end();
}

pub fn rarest_of_recovery(fire: &mut Fire, points: &[String]) -> String {
    let rng = &mut fire.rng;
    let kills = |name: &str| fire.kills.get(name).copied().unwrap_or(0);
    let ours = points.iter().filter(|p| p.starts_with("recovery.") || *p == "cursor.cut_marked");
    ours.min_by_key(|p| (kills(p), rng.next())).expect("recovery has fail points").clone()
}

/// Kills at this point, or comes near it.
pub fn aim_at(fire: &mut Fire, point: &str) {
    let before = match point {
        "recovery.roll_zeroed" | "recovery.roll_marked" | "recovery.durable_marked" => "roll.tail",
        "recovery.next_reset" => "roll.entered",
        "recovery.entry_mended" => "roll.sealed",
        "recovery.tail" | "recovery.zeroed" | "recovery.zeros_synced" => "append.filled",
        "cursor.cut_marked" => return recovery_after_power_loss(fire, point),
        _ if point.starts_with("recovery.") => return recovery_after_power_loss(fire, point),
        _ => point,
    };
    fire.scenario = "aimed";
    let mut life = Life::start(fire, true);
    let of_creation = ["create.", "file.", "cursor."].iter().any(|p| before.starts_with(p));
    let (mode, queue) = if of_creation {
        ("create", fire.new_path("aimed"))
    } else {
        ("write", life.orders.queue.clone())
    };
    let orders = Orders { mode, queue, operations: 300, ..life.orders.clone() };
    let orders = Orders { seed: fire.rng.next(), ..orders };
    let board = Board::open(&fire.new_path("board"));
    if point.starts_with("retention.") {
        // There must be something to delete.
        fire.run(&orders, &life.board, "nowhere:1");
        life.drain();
        life.live.commit();
    }
    fire.run(&orders, &board, &format!("{before}:1"));
    if point == "recovery.durable_marked" {
        flush_and_forget(fire, &life);
    } else if before != point {
        fire.run(&Orders { mode: "open", ..orders }, &board, &format!("{point}:1"));
    }
    life.settle(&mut fire.rng);
    life.end();
}

/// Name and size of what was set aside.
fn kept_files(queue: &Path) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir(queue.join("segments")).unwrap().map(Result::unwrap);
    let mut kept: Vec<_> = entries
        .map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len()))
        .filter(|(name, _)| name.ends_with(".cut"))
        .collect();
    kept.sort_unstable();
    kept
}
