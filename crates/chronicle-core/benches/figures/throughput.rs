//! Sustained throughput: one writer process, one reader process, two cores, provisioners attached.
//!
//! The provisioners share the two cores with the writer and the reader: what they cost is part of
//! the figure.

use crate::tool::{Report, Run, SharedPage, ns_per_tick, pin, ticks};
use chronicle_core::queue::provision::Chores;
use chronicle_core::{Options, Provisioner, Reader, Start, Writer};
use std::path::Path;
use std::process::Command;

const PAYLOAD_BYTES: usize = 64;
const BATCH: u64 = 512;
const PARENT: usize = 2;
const CHILD: usize = 4;

fn options() -> Options {
    Options::default()
}

fn messages(run: &Run) -> u64 {
    run.size(30_000_000, 20_000) as u64
}

fn rounds(run: &Run) -> u64 {
    run.size(5, 1) as u64
}

/// Which call the writer uses.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Append,
    AppendMany,
}

const HOWS: [How; 2] = [How::Append, How::AppendMany];

fn queue_name(how: How, round: u64) -> String {
    let kind = if how == How::Append { "one" } else { "many" };
    format!("throughput-{kind}-{round}")
}

fn write(run: &Run, how: How, writer: &mut Writer) {
    let mut payload = [0_u8; PAYLOAD_BYTES];
    match how {
        How::Append => {
            for i in 0..messages(run) {
                payload[..8].copy_from_slice(&i.to_le_bytes());
                writer.append(1, &payload, None).expect("append");
            }
        }
        How::AppendMany => {
            let mut batch = vec![0_u8; PAYLOAD_BYTES * BATCH as usize];
            let mut i = 0;
            while i < messages(run) {
                let n = BATCH.min(messages(run) - i);
                for (k, item) in batch.chunks_exact_mut(PAYLOAD_BYTES).enumerate() {
                    item[..8].copy_from_slice(&(i + k as u64).to_le_bytes());
                }
                let bytes = &batch[..n as usize * PAYLOAD_BYTES];
                writer.append_many(1, bytes, PAYLOAD_BYTES, None).expect("append");
                i += n;
            }
        }
    }
}

/// The writing process.
pub fn child(run: &Run, page_path: &Path) {
    let page = SharedPage::open(page_path);
    let provisioner = Provisioner::new().expect("provisioner");
    pin(0);
    let mut meetings = 0;
    for round in 0..rounds(run) {
        for how in HOWS {
            let path = run.dir.join(queue_name(how, round));
            meetings += 1;
            page.meet(CHILD, PARENT, meetings);
            let mut writer = Writer::open(&path, &options()).expect("open");
            provisioner.attach_writer(&writer, Chores::default());
            while !writer.is_provisioned() {
                std::thread::yield_now();
            }
            meetings += 1;
            page.meet(CHILD, PARENT, meetings);
            write(run, how, &mut writer);
            meetings += 1;
            page.meet(CHILD, PARENT, meetings);
        }
    }
}

/// Reads everything; messages per second from the first to the last.
fn read(run: &Run, reader: &mut Reader, ns: f64) -> f64 {
    let count = messages(run);
    let mut sum = 0_u64;
    let mut start = 0;
    for i in 0..count {
        loop {
            if let Some(record) = reader.next().expect("read") {
                let word = record.payload()[..8].try_into().expect("8 bytes");
                sum = sum.wrapping_add(u64::from_le_bytes(word));
                break;
            }
        }
        if i == 0 {
            start = ticks();
        }
    }
    let seconds = (ticks() - start) as f64 * ns / 1e9;
    assert_eq!(sum, count * (count - 1) / 2);
    assert_eq!(reader.next_sequence(), count + 1);
    count as f64 / seconds
}

pub fn measure(run: &Run) -> Report {
    let page_file = run.scratch("throughput-page");
    let page = SharedPage::open(&page_file.0);
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .args(crate::child_arguments(run, "throughput-child"))
        .arg(&page_file.0)
        .spawn()
        .expect("spawn");
    let provisioner = Provisioner::new().expect("provisioner");
    let ns = ns_per_tick();
    pin(1);
    let mut meetings = 0;
    let mut rates = [Vec::new(), Vec::new()];
    let (mut rolls, mut rolls_inline) = (0, 0);
    for round in 0..rounds(run) {
        for (how, rates) in HOWS.into_iter().zip(&mut rates) {
            let queue = run.scratch(&queue_name(how, round));
            drop(Writer::open(&queue.0, &options()).expect("create"));
            let mut reader = Reader::open(&queue.0, Some("r"), Start::Resume).expect("open");
            provisioner.attach_reader(&reader);
            // The writer opens, then starts.
            for _ in 0..2 {
                meetings += 1;
                page.meet(PARENT, CHILD, meetings);
            }
            rates.push(read(run, &mut reader, ns));
            let control = reader.queue().control();
            rolls += control.rolls.load(chronicle_core::sync::Ordering::Acquire);
            rolls_inline += control.rolls_inline.load(chronicle_core::sync::Ordering::Acquire);
            meetings += 1;
            page.meet(PARENT, CHILD, meetings);
        }
    }
    assert!(child.wait().expect("child").success());
    let mut report = Report::default();
    report.put("throughput_count", messages(run) as f64);
    report.put_rounds("throughput_append", "per_s", &rates[0]);
    report.put_rounds("throughput_append_many", "per_s", &rates[1]);
    report.put("throughput_rolls_count", rolls as f64);
    report.put("throughput_rolls_inline_count", rolls_inline as f64);
    report
}
