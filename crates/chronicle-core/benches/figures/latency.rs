//! One-way latency between two processes on two cores, against the cache-line round trip between
//! the same cores.
//!
//! The sender stamps each message with the time at which it *should* be sent (a fixed rate), so a
//! message that waits behind a late one counts its wait (no coordinated omission). The clock of
//! both processes is the CPU's invariant time-stamp counter.

use crate::tool::{
    Report, Run, SharedPage, histogram, median, median_ratio, ns_per_tick, pin, ticks,
};
use chronicle_core::layout::Geometry;
use chronicle_core::queue::provision::Chores;
use chronicle_core::sync::Ordering;
use chronicle_core::{Options, Provisioner, Reader, Start, Writer};
use std::path::Path;
use std::process::Command;

const PAYLOAD_BYTES: usize = 64;
const SEGMENT_SHIFT: u32 = 23;
const PING: usize = 0;
const PARENT: usize = 2;
const CHILD: usize = 4;
const TRIPS_PER_BATCH: u64 = 100;

struct Sizes {
    rounds: usize,
    batches: u64,
    messages: u64,
    rate_per_s: u64,
}

fn sizes(run: &Run) -> Sizes {
    Sizes {
        rounds: run.size(60, 2),
        batches: run.size(200, 10) as u64,
        messages: run.size(50_000, 1_000) as u64,
        rate_per_s: 100_000,
    }
}

/// Nanoseconds of one round trip: the median over batches.
fn ping(page: &SharedPage, batches: u64, ns: f64) -> f64 {
    let word = page.word(PING);
    let mut value = word.load(Ordering::Acquire);
    let mut trips = Vec::new();
    for _ in 0..batches {
        let start = ticks();
        for _ in 0..TRIPS_PER_BATCH {
            word.store(value + 1, Ordering::Release);
            value += 2;
            while word.load(Ordering::Acquire) != value {}
        }
        trips.push((ticks() - start) as f64 * ns / TRIPS_PER_BATCH as f64);
    }
    median(&trips)
}

fn pong(page: &SharedPage, batches: u64) {
    let word = page.word(PING);
    let mut value = word.load(Ordering::Acquire) & !1;
    for _ in 0..batches * TRIPS_PER_BATCH {
        while word.load(Ordering::Acquire) != value + 1 {}
        value += 2;
        word.store(value, Ordering::Release);
    }
}

/// The process at the other end: answers pings, then sends messages, as often as there are rounds.
pub fn child(run: &Run, page_path: &Path) {
    pin(1);
    let provisioner = Provisioner::new().expect("provisioner");
    pin(0);
    let page = SharedPage::open(page_path);
    let sizes = sizes(run);
    let interval = (1e9 / sizes.rate_per_s as f64 / ns_per_tick()) as u64;
    let mut writer = Writer::open(&run.dir.join("latency"), &options()).expect("open");
    provisioner.attach_writer(&writer, Chores::default());
    let mut payload = [0_u8; PAYLOAD_BYTES];
    let mut meetings = 0;
    for _ in 0..sizes.rounds {
        meetings += 1;
        page.meet(CHILD, PARENT, meetings);
        pong(&page, sizes.batches);
        meetings += 1;
        page.meet(CHILD, PARENT, meetings);
        let mut due = ticks() + 1_000 * interval;
        for _ in 0..sizes.messages {
            while ticks() < due {}
            payload[..8].copy_from_slice(&due.to_le_bytes());
            writer.append(1, &payload, None).expect("append");
            due += interval;
        }
    }
    meetings += 1;
    page.meet(CHILD, PARENT, meetings);
}

fn options() -> Options {
    Options { segment_bytes: 1 << SEGMENT_SHIFT, ..Options::default() }
}

pub fn measure(run: &Run) -> Report {
    let queue = run.scratch("latency");
    let page_file = run.scratch("latency-page");
    let page = SharedPage::open(&page_file.0);
    drop(Writer::open(&queue.0, &options()).expect("create"));
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .args(crate::child_arguments(run, "latency-child"))
        .arg(&page_file.0)
        .spawn()
        .expect("spawn");
    pin(0);
    let provisioner = Provisioner::new().expect("provisioner");
    pin(1);
    let sizes = sizes(run);
    let ns = ns_per_tick();
    let mut reader = Reader::open(&queue.0, Some("latency"), Start::Latest).expect("open");
    provisioner.attach_reader(&reader);
    let data_offset = Geometry { segment_shift: SEGMENT_SHIFT }.data_offset();
    let (mut all, mut at_rolls) = (histogram(), histogram());
    let (mut trips, mut medians) = (Vec::new(), Vec::new());
    let mut meetings = 0;
    for _ in 0..sizes.rounds {
        meetings += 1;
        page.meet(PARENT, CHILD, meetings);
        let trip_ns = ping(&page, sizes.batches, ns);
        meetings += 1;
        page.meet(PARENT, CHILD, meetings);
        let mut round = histogram();
        for _ in 0..sizes.messages {
            let (sent, is_first) = loop {
                if let Some(record) = reader.next().expect("read") {
                    let stamp = record.payload()[..8].try_into().expect("8 bytes");
                    break (u64::from_le_bytes(stamp), record.raw.offset == data_offset);
                }
            };
            let late_ns = (ticks().saturating_sub(sent) as f64 * ns) as u64;
            let kind = if is_first { &mut at_rolls } else { &mut round };
            kind.saturating_record(late_ns.max(1));
        }
        trips.push(trip_ns);
        medians.push(round.value_at_quantile(0.5) as f64);
        all.add(&round).expect("same bounds");
    }
    meetings += 1;
    page.meet(PARENT, CHILD, meetings);
    assert!(child.wait().expect("child").success());
    let total = sizes.rounds as u64 * sizes.messages;
    assert_eq!(all.len() + at_rolls.len(), total);
    assert_eq!(reader.next_sequence(), total + 1);
    assert!(reader.next().expect("read").is_none());
    let halves: Vec<f64> = trips.iter().map(|t| t / 2.0).collect();
    let mut report = Report::default();
    report.put("rate_per_s", sizes.rate_per_s as f64);
    report.put_rounds("cache_line_round_trip", "ns", &trips);
    report.put_quantiles("one_way_rust", &all);
    report.put_rounds("one_way_rust_p50", "ns", &medians);
    report.put_quantiles("one_way_rust_at_roll", &at_rolls);
    report.put("one_way_rust_p50_over_half_round_trip_ratio", median_ratio(&medians, &halves));
    report
}
