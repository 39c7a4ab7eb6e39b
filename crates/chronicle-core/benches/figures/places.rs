//! Opening for reading, with few and many segments; finding one message of very many.

use crate::tool::{Report, Run, histogram, median, ns_per_tick, pin, ticks};
use chronicle_core::{Options, Reader, Start, Writer};
use std::path::Path;

const STARTS: [(&str, Start); 2] = [("earliest", Start::Earliest), ("latest", Start::Latest)];

fn fill(path: &Path, segments: u64) {
    let options = Options { segment_bytes: 1 << 16, ..Options::default() };
    let mut writer = Writer::open(path, &options).expect("open");
    while (writer.next_position() >> 16) + 1 < segments {
        writer.append(1, &[0; 1024], None).expect("append");
    }
    writer.append(1, &[7; 64], None).expect("append");
}

fn open_ns(path: &Path, start: Start, name: Option<&str>, ns: f64) -> f64 {
    let before = ticks();
    let mut reader = Reader::open(path, name, start).expect("open");
    let after = ticks();
    assert_eq!(reader.next().expect("read").is_some(), start != Start::Latest);
    (after - before) as f64 * ns
}

/// Opens in turns; the median for each size.
pub fn measure_open(run: &Run) -> Report {
    pin(0);
    let ns = ns_per_tick();
    let segments = run.size(1_000, 20) as u64;
    let (one, many) = (run.scratch("open-1"), run.scratch("open-many"));
    fill(&one.0, 1);
    fill(&many.0, segments);
    let mut report = Report::default();
    report.put("open_segments_count", segments as f64);
    let mut worst = 0.0_f64;
    for (word, start) in STARTS {
        for (kind, name) in [("registered", Some("bench")), ("unregistered", None)] {
            let (mut one_ns, mut many_ns) = (Vec::new(), Vec::new());
            for _ in 0..run.size(2_000, 5) {
                one_ns.push(open_ns(&one.0, start, name, ns));
                many_ns.push(open_ns(&many.0, start, name, ns));
            }
            report.put_rounds(&format!("open_{word}_{kind}_1_segment"), "ns", &one_ns);
            report.put_rounds(&format!("open_{word}_{kind}_many_segments"), "ns", &many_ns);
            worst = worst.max(median(&many_ns) / median(&one_ns));
        }
    }
    report.put("open_many_over_1_worst_ratio", worst);
    report
}

/// Seeks to random messages, by number and by time; each must land exactly.
pub fn measure_seek(run: &Run) -> Report {
    pin(0);
    let ns = ns_per_tick();
    let count = run.size(100_000_000, 100_000) as u64;
    let queue = run.scratch("seek");
    let segment_bytes = run.size(64 << 20, 1 << 17) as u64;
    let options = Options { segment_bytes, ..Options::default() };
    let mut writer = Writer::open(&queue.0, &options).expect("open");
    for i in 1..=count {
        // Ten nanoseconds apart.
        writer.append(1, &i.to_le_bytes(), Some(i * 10)).expect("append");
    }
    assert_eq!(writer.next_sequence(), count + 1);
    let mut reader = Reader::open(&queue.0, None, Start::Earliest).expect("open");
    let (mut by_sequence, mut by_time) = (histogram(), histogram());
    let mut random = 88_172_645_463_325_252_u64;
    for i in 0..run.size(20_000, 200) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let wanted = random % count + 1;
        let is_time = i % 2 == 1;
        let start = if is_time { Start::Time(wanted * 10 - 3) } else { Start::Sequence(wanted) };
        let before = ticks();
        reader.seek(start).expect("seek");
        let took_ns = ((ticks() - before) as f64 * ns) as u64;
        let record = reader.next().expect("read").expect("there");
        assert_eq!(record.raw.sequence, wanted);
        assert_eq!(record.payload(), wanted.to_le_bytes());
        let kind = if is_time { &mut by_time } else { &mut by_sequence };
        kind.saturating_record(took_ns.max(1));
    }
    let mut report = Report::default();
    report.put("seek_messages_count", count as f64);
    report.put_quantiles("seek_by_sequence", &by_sequence);
    report.put_quantiles("seek_by_time", &by_time);
    report
}
