//! What a guard costs a thread that makes no system call, and what a reported call costs.

use crate::tool::{Report, Run, median_ratio, ns_per_tick, pin, ticks};
use chronicle_core::hot::guard::{Guard, GuardMode};
use chronicle_core::sync::Arc;
use std::hint::black_box;

/// What the rounds of one mode gave: ticks per turn of a loop, ticks per call.
struct Costs {
    turn: f64,
    call: f64,
}

/// A loop as a hot thread's: some arithmetic, some memory, one look at the guard per turn. Then
/// calls that do nothing. On a thread of its own, because a filter stays on its thread.
fn costs(mode: GuardMode, turns: usize, calls: usize) -> Costs {
    let guard = Guard::new(mode, 16).expect("guard");
    let on_thread = Arc::clone(&guard);
    let thread = std::thread::spawn(move || {
        pin(0);
        let table = black_box([7_u64; 512]);
        let _armed = on_thread.arm().expect("arm");
        let mut state = 1_u64;
        let start = ticks();
        for _ in 0..turns {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state ^= table[(state >> 55) as usize];
            if on_thread.must_stop() {
                break;
            }
        }
        let turn = (ticks() - start) as f64 / turns as f64;
        black_box(state);
        let start = ticks();
        for _ in 0..calls {
            // SAFETY: no arguments.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        Costs { turn, call: (ticks() - start) as f64 / calls as f64 }
    });
    let costs = thread.join().expect("join");
    let expected = if mode == GuardMode::Off { 0 } else { calls as u64 };
    assert_eq!(guard.counts().seen, expected, "the loop makes no call");
    costs
}

pub fn measure(run: &Run) -> Report {
    let turns = run.size(10_000_000, 10_000);
    let calls = run.size(2_000, 10);
    let ns = ns_per_tick();
    let modes = [GuardMode::Off, GuardMode::Observe, GuardMode::Enforce];
    let mut turn: [Vec<f64>; 3] = Default::default();
    let mut call: [Vec<f64>; 3] = Default::default();
    for round in 0..run.size(31, 1) {
        // Each mode is first as often as the others.
        for at in 0..modes.len() {
            let index = (round + at) % modes.len();
            let found = costs(modes[index], turns, calls);
            turn[index].push(found.turn * ns);
            call[index].push(found.call * ns);
        }
    }
    let mut report = Report::default();
    report.put("guard_turns_count", turns as f64);
    for (index, name) in ["off", "observe", "enforce"].into_iter().enumerate() {
        report.put_rounds(&format!("guard_{name}_turn"), "ns", &turn[index]);
        report.put_rounds(&format!("guard_{name}_call"), "ns", &call[index]);
    }
    report.put("guard_observe_over_off_turn_ratio", median_ratio(&turn[1], &turn[0]));
    report.put("guard_enforce_over_off_turn_ratio", median_ratio(&turn[2], &turn[0]));
    report
}
