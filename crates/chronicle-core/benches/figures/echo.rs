//! Two hops: a message goes to a hot thread on another core, and what its handler publishes comes
//! back. The hot thread is somebody else's (`benches/hot.py` runs a compiled handler there); this
//! side writes its source and reads its output, both on one core.
//!
//! One hop is measured in the same rig, in turns with it: the cores are the same, and so is the
//! moment. A second thread of this process takes the hot thread's place, on its core, reads what is
//! sent to a queue of its own and says when it had it.

use crate::tool::{Report, Run, histogram, median_ratio, ns_per_tick, pin, ticks};
use chronicle_core::queue::provision::Chores;
use chronicle_core::sync::{Arc, AtomicU64, Ordering};
use chronicle_core::{Options, Provisioner, Reader, Start, Writer};
use std::path::Path;

const PAYLOAD_BYTES: usize = 64;
const SEGMENT_BYTES: u64 = 1 << 23;
const RATE_PER_S: u64 = 50_000;
/// The type that the handler takes, and the one that it publishes.
const PING: u16 = 1;

/// Tells the taker of one hop that its round is over.
const LAST: u64 = u64::MAX;

struct Ends {
    writer: Writer,
    reader: Reader,
}

fn open(provisioner: &Provisioner, there: &Path, back: &Path) -> Ends {
    let options = Options { segment_bytes: SEGMENT_BYTES, ..Options::default() };
    let writer = Writer::open(there, &options).expect("open the source");
    provisioner.attach_writer(&writer, Chores::default());
    let reader = Reader::open(back, Some("echo"), Start::Latest).expect("open the output");
    provisioner.attach_reader(&reader);
    Ends { writer, reader }
}

/// Sends at a fixed rate; the median time until each answer is there, in ticks.
fn two_hops(ends: &mut Ends, count: u64, interval: u64) -> u64 {
    let mut times = histogram();
    let mut payload = [0_u8; PAYLOAD_BYTES];
    let mut due = ticks() + 100 * interval;
    for _ in 0..count {
        while ticks() < due {}
        payload[..8].copy_from_slice(&due.to_le_bytes());
        ends.writer.append(PING, &payload, None).expect("append");
        let sent = loop {
            if let Some(record) = ends.reader.next().expect("read") {
                break u64::from_le_bytes(record.payload()[..8].try_into().expect("8 bytes"));
            }
        };
        assert_eq!(sent, due, "the answer to another message");
        times.saturating_record(ticks().saturating_sub(due).max(1));
        due += interval;
    }
    times.value_at_quantile(0.5)
}

/// Sends at the same rate to a reader of our own on the other core; the median time until it has
/// each message, in ticks.
fn one_hop(writer: &mut Writer, mut reader: Reader, count: u64, interval: u64) -> u64 {
    let ready = Arc::new(AtomicU64::new(0));
    let theirs = Arc::clone(&ready);
    let taker = std::thread::spawn(move || {
        pin(1);
        theirs.store(1, Ordering::Release);
        let mut times = histogram();
        loop {
            let Some(record) = reader.next().expect("read") else { continue };
            let due = u64::from_le_bytes(record.payload()[..8].try_into().expect("8 bytes"));
            if due == LAST {
                return times.value_at_quantile(0.5);
            }
            times.saturating_record(ticks().saturating_sub(due).max(1));
        }
    });
    while ready.load(Ordering::Acquire) == 0 {
        std::hint::spin_loop();
    }
    let mut payload = [0_u8; PAYLOAD_BYTES];
    let mut due = ticks() + 100 * interval;
    for _ in 0..count {
        while ticks() < due {}
        payload[..8].copy_from_slice(&due.to_le_bytes());
        writer.append(PING, &payload, None).expect("append");
        due += interval;
    }
    payload[..8].copy_from_slice(&LAST.to_le_bytes());
    writer.append(PING, &payload, None).expect("append");
    taker.join().expect("the taker")
}

/// Waits for `go` on standard input before each round of two hops, and says on standard output when
/// it is over: between rounds the hot thread must leave its core to the taker of one hop.
pub fn measure(run: &Run, there: &Path, back: &Path) -> Report {
    let ns = ns_per_tick();
    let interval = (1e9 / RATE_PER_S as f64 / ns) as u64;
    let count = run.size(20_000, 500) as u64;
    pin(1);
    let provisioner = Provisioner::new().expect("provisioner");
    pin(0);
    let queue = run.scratch("echo-one-hop");
    let mut ends = open(&provisioner, there, back);
    let options = Options { segment_bytes: SEGMENT_BYTES, ..Options::default() };
    let mut alone = Writer::open(&queue.0, &options).expect("open");
    provisioner.attach_writer(&alone, Chores::default());
    let (mut two, mut one) = (Vec::new(), Vec::new());
    let mut line = String::new();
    for _ in 0..run.size(15, 2) {
        let reader = Reader::open(&queue.0, None, Start::Latest).expect("open");
        provisioner.attach_reader(&reader);
        one.push(one_hop(&mut alone, reader, count, interval) as f64 * ns);
        eprintln!("two");
        line.clear();
        std::io::stdin().read_line(&mut line).expect("go");
        two.push(two_hops(&mut ends, count, interval) as f64 * ns);
        eprintln!("one");
        line.clear();
        std::io::stdin().read_line(&mut line).expect("go");
    }
    let mut report = Report::default();
    report.put("hot_hops_rate_per_s", RATE_PER_S as f64);
    report.put_rounds("hot_one_hop_p50", "ns", &one);
    report.put_rounds("hot_two_hops_p50", "ns", &two);
    report.put("hot_two_hops_over_one_ratio", median_ratio(&two, &one));
    report
}
