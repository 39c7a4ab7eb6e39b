//! What a message costs through a fan-in, with few and with many active sources.

use crate::tool::{Report, Run, median_ratio, ns_per_tick, pin, ticks};
use chronicle_core::{FanIn, MergeMode, Options, Reader, Start, Writer};

const PAYLOAD_BYTES: usize = 64;
const FEW: usize = 8;
const MANY: usize = 512;

/// Writes `count` messages over the sources, every source with every so-manieth, in an order that
/// jumps between sources.
fn write(run: &Run, sources: usize, count: usize) -> Vec<crate::tool::Scratch> {
    let per_source = count / sources;
    let segment_bytes = (per_source * 96 + 65_536).next_power_of_two().max(1 << 16) as u64;
    let options = Options { segment_bytes, ..Options::default() };
    let mut queues = Vec::new();
    for source in 0..sources {
        let queue = run.scratch(&format!("fan-{sources}-{source}"));
        let mut writer = Writer::open(&queue.0, &options).expect("open");
        for i in 0..per_source {
            // An odd multiplier permutes the sources, another way in each turn.
            let turn = (source * 37 + i * 11) % sources;
            let timestamp_ns = (i * sources + turn + 1) as u64;
            let mut payload = [0_u8; PAYLOAD_BYTES];
            payload[..8].copy_from_slice(&timestamp_ns.to_le_bytes());
            writer.append(1, &payload, Some(timestamp_ns)).expect("append");
        }
        queues.push(queue);
    }
    queues
}

/// Merges everything; ticks per message. Checks that all came, in order.
fn drain_ticks(queues: &[crate::tool::Scratch], count: usize) -> f64 {
    let mut fan = FanIn::new(MergeMode::Live);
    for queue in queues {
        let reader = Reader::open(&queue.0, None, Start::Earliest).expect("open");
        reader.segment().map().populate().expect("populate");
        fan.add(reader);
    }
    let mut expected = 1_u64;
    let start = ticks();
    while let Some((_, record)) = fan.next().map_err(|(_, e)| e).expect("read") {
        let word = record.payload()[..8].try_into().expect("8 bytes");
        assert_eq!(u64::from_le_bytes(word), expected);
        expected += 1;
    }
    let ticks = (ticks() - start) as f64 / count as f64;
    assert_eq!(expected, count as u64 + 1);
    ticks
}

pub fn measure(run: &Run) -> Report {
    pin(0);
    let ns = ns_per_tick();
    let count = run.size(1 << 20, 1 << 13);
    let few = write(run, FEW, count);
    let many = write(run, MANY, count);
    let (mut few_ns, mut many_ns) = (Vec::new(), Vec::new());
    for _ in 0..run.size(15, 1) {
        few_ns.push(drain_ticks(&few, count) * ns);
        many_ns.push(drain_ticks(&many, count) * ns);
    }
    let mut report = Report::default();
    report.put("fan_in_count", count as f64);
    report.put_rounds("fan_in_8_sources", "ns", &few_ns);
    report.put_rounds("fan_in_512_sources", "ns", &many_ns);
    report.put("fan_in_512_over_8_ratio", median_ratio(&many_ns, &few_ns));
    report
}
