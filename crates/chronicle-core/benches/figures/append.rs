//! What an append costs, against copying the same bytes into fresh, prefaulted memory.

use crate::tool::{Report, Run, fresh_map, median_ratio, ns_per_tick, pin, ticks};
use chronicle_core::layout::record_stride;
use chronicle_core::os::clock::Clock;
use chronicle_core::sync::full_fence;
use chronicle_core::{Options, Reader, Start, Writer};
use std::hint::black_box;

const PAYLOAD_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 64 << 20;

/// Sixty-four different payloads, so that neither side can keep one in registers.
fn payloads() -> Vec<[u8; PAYLOAD_BYTES]> {
    (0..64_u8).map(|i| [i; PAYLOAD_BYTES]).collect()
}

/// Copies `count` payloads `spacing` bytes apart into fresh memory; ticks per payload.
fn copy_ticks(run: &Run, count: usize, spacing: usize) -> f64 {
    let file = run.scratch("copy-floor");
    let map = fresh_map(&file.0, SEGMENT_BYTES);
    let payloads = black_box(payloads());
    let base = map.base();
    let start = ticks();
    for i in 0..count {
        let from = &payloads[i % 64];
        // SAFETY: `count * spacing` is at most the map's length (asserted by the caller).
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), base.add(i * spacing), PAYLOAD_BYTES);
        }
    }
    let ticks = (ticks() - start) as f64 / count as f64;
    black_box(base);
    ticks
}

/// What two parts of an append cost by themselves: no append can be faster than either.
fn part_ticks(count: usize, part: impl Fn(&mut Clock)) -> f64 {
    let mut clock = Clock::new();
    let start = ticks();
    for _ in 0..count {
        part(&mut clock);
    }
    (ticks() - start) as f64 / count as f64
}

#[derive(Clone, Copy)]
enum How {
    /// One call per message, time from the clock.
    Clock,
    /// One call per message, time given by the caller.
    Given,
    /// One call for all.
    Batch,
}

/// Appends into a fresh segment; ticks per message. Reads everything back and checks it.
fn append_ticks(run: &Run, count: usize, checksum: bool, how: How) -> f64 {
    let path = run.scratch("append");
    let options = Options { segment_bytes: SEGMENT_BYTES as u64, checksum, ..Options::default() };
    let mut writer = Writer::open(&path.0, &options).expect("open");
    let payloads = black_box(payloads());
    let many: Vec<u8> = payloads.concat().repeat(256);
    let start = ticks();
    match how {
        How::Clock => {
            for i in 0..count {
                writer.append(1, &payloads[i % 64], None).expect("append");
            }
        }
        How::Given => {
            for i in 0..count {
                writer.append(1, &payloads[i % 64], Some(i as u64)).expect("append");
            }
        }
        How::Batch => {
            let mut left = count;
            while left > 0 {
                let n = left.min(many.len() / PAYLOAD_BYTES);
                let bytes = &many[..n * PAYLOAD_BYTES];
                writer.append_many(1, bytes, PAYLOAD_BYTES, None).expect("append");
                left -= n;
            }
        }
    }
    let ticks = (ticks() - start) as f64 / count as f64;
    assert_eq!(writer.next_sequence(), count as u64 + 1);
    assert_eq!(writer.next_position() >> 26, 0, "the round must not roll");
    let mut reader = Reader::open(&path.0, None, Start::Earliest).expect("open");
    for i in 0..count {
        let record = reader.next().expect("read").expect("there");
        assert_eq!(record.raw.sequence, i as u64 + 1);
        assert_eq!(record.payload(), payloads[i % 64]);
    }
    assert!(reader.next().expect("read").is_none());
    ticks
}

pub fn measure(run: &Run) -> Report {
    pin(0);
    let fits = (SEGMENT_BYTES - (1 << 20)) / record_stride(PAYLOAD_BYTES);
    let count = run.size(fits, 5_000);
    let ns = ns_per_tick();
    let mut rounds: [Vec<f64>; 8] = Default::default();
    for _ in 0..run.size(15, 1) {
        let round = [
            copy_ticks(run, count, PAYLOAD_BYTES),
            append_ticks(run, count, false, How::Clock),
            copy_ticks(run, count, record_stride(PAYLOAD_BYTES)),
            append_ticks(run, count, false, How::Given),
            append_ticks(run, count, true, How::Clock),
            append_ticks(run, count, false, How::Batch),
            part_ticks(count, |clock| {
                black_box(clock.now_ns());
            }),
            part_ticks(count, |_| full_fence()),
        ];
        for (all, ticks) in rounds.iter_mut().zip(round) {
            all.push(ticks * ns);
        }
    }
    let [floor, clock, spaced, given, checksum, many, clock_alone, fence_alone] = &rounds;
    let mut report = Report::default();
    report.put("append_count", count as f64);
    report.put_rounds("copy_floor", "ns", floor);
    report.put_rounds("copy_spaced", "ns", spaced);
    report.put_rounds("clock_alone", "ns", clock_alone);
    report.put_rounds("fence_alone", "ns", fence_alone);
    report.put_rounds("append_rust", "ns", clock);
    report.put_rounds("append_rust_given_time", "ns", given);
    report.put_rounds("append_rust_checksum", "ns", checksum);
    report.put_rounds("append_many_rust", "ns", many);
    report.put("clock_alone_over_copy_ratio", median_ratio(clock_alone, floor));
    report.put("fence_alone_over_copy_ratio", median_ratio(fence_alone, floor));
    report.put("append_rust_over_copy_ratio", median_ratio(clock, floor));
    report.put("append_rust_over_spaced_ratio", median_ratio(clock, spaced));
    report.put("append_rust_given_time_over_copy_ratio", median_ratio(given, floor));
    report.put("append_rust_checksum_over_copy_ratio", median_ratio(checksum, floor));
    report.put("append_many_rust_over_copy_ratio", median_ratio(many, floor));
    report
}
