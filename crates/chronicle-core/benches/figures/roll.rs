//! Appends that roll, against all others, with a provisioner attached, at a fixed rate.
//!
//! Each repetition takes the worst append at a roll and the 99.9 % quantile of the others. The
//! machine's own noise (interrupts, a hypervisor) hits rolls as it hits everything; it makes single
//! worst cases arbitrary, so the figure is the median over repetitions, and the worst of all stands
//! beside it.

use crate::tool::{Report, Run, histogram, median, ns_per_tick, pin, ticks};
use chronicle_core::queue::provision::Chores;
use chronicle_core::sync::Ordering;
use chronicle_core::{Options, Provisioner, Writer};

const PAYLOAD_BYTES: usize = 64;
const SEGMENT_SHIFT: u32 = 20;
const RATE_PER_S: f64 = 1_000_000.0;

pub fn measure(run: &Run) -> Report {
    pin(1);
    let provisioner = Provisioner::new().expect("provisioner");
    pin(0);
    let ns = ns_per_tick();
    let interval = (1e9 / RATE_PER_S / ns) as u64;
    let rolls_per_repetition = run.size(10, 3) as u64;
    let repetitions = run.size(40, 2);
    let options = Options { segment_bytes: 1 << SEGMENT_SHIFT, ..Options::default() };
    let payload = [7_u8; PAYLOAD_BYTES];
    let (mut all_rolls, mut all_others) = (histogram(), histogram());
    let (mut ratios, mut worsts) = (Vec::new(), Vec::new());
    let mut rolls_inline = 0;
    for _ in 0..repetitions {
        let queue = run.scratch("roll");
        let mut writer = Writer::open(&queue.0, &options).expect("open");
        provisioner.attach_writer(&writer, Chores::default());
        let (mut rolls, mut others) = (histogram(), histogram());
        let (mut segment, mut inline) = (0, 0);
        let mut due = ticks();
        while rolls.len() < rolls_per_repetition {
            while ticks() < due {}
            due += interval;
            let start = ticks();
            writer.append(1, &payload, None).expect("append");
            let took_ns = ((ticks() - start) as f64 * ns) as u64;
            let now = writer.next_position() >> SEGMENT_SHIFT;
            if now == segment {
                others.saturating_record(took_ns.max(1));
                continue;
            }
            segment = now;
            let inline_now = writer.queue().control().rolls_inline.load(Ordering::Acquire);
            if inline_now == inline {
                rolls.saturating_record(took_ns.max(1));
            } else {
                // The worker did not get a core in time: a roll without provisioner.
                inline = inline_now;
                due = ticks();
            }
        }
        let control = writer.queue().control();
        assert_eq!(control.rolls.load(Ordering::Acquire), rolls_per_repetition);
        assert_eq!(writer.next_sequence() - 1, rolls.len() + others.len() + inline);
        rolls_inline += inline;
        worsts.push(rolls.max() as f64);
        ratios.push(rolls.max() as f64 / others.value_at_quantile(0.999) as f64);
        all_rolls.add(&rolls).expect("same bounds");
        all_others.add(&others).expect("same bounds");
    }
    let mut report = Report::default();
    report.put("roll_rate_per_s", RATE_PER_S);
    report.put("roll_repetitions_count", repetitions as f64);
    report.put("rolls_inline_count", rolls_inline as f64);
    report.put_quantiles("append_at_roll", &all_rolls);
    report.put_quantiles("append_elsewhere", &all_others);
    report.put_rounds("append_at_roll_worst_of_repetition", "ns", &worsts);
    report.put("append_at_roll_worst_over_p999_ratio", median(&ratios));
    report
}
