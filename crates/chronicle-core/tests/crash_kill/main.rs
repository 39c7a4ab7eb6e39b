//! Kills writers, readers and recoveries with SIGKILL: at every fail point, and at random moments.
//!
//! This binary is its own child (`CHRONICLE_CHILD` in the environment). A child tells what it has
//! committed through a mapped page, the board, which outlives it: after `append` has returned it
//! stores the sequence number there. After each kill the parent opens the queue again and checks
//! that every committed record is there with exactly its bytes, that sequence and epoch go on, and
//! that its own readers, which are open across all kills, have noticed nothing.
//!
//! `CHRONICLE_FIRE=full` for 5,000 kills, otherwise 500. `CHRONICLE_SEED` for another run.

#![expect(clippy::print_stdout, reason = "what was killed and cut is the report")]

mod board;
mod child;
#[path = "../fire/mod.rs"]
mod fire;
mod life;
mod parent;
mod scenarios;

use crate::parent::Fire;
use crate::scenarios::{
    aim_at, creation, one_life, rarest_of_recovery, recovery_after_power_loss,
    retention_before_recovery,
};
use fire::{Rng, scaled};
use std::collections::BTreeMap;
use std::time::Instant;

/// How often a point can be expected while a child writes; lowered as children come to their end
/// without reaching it.
fn first_reach(name: &str) -> u64 {
    match name.split('.').next().unwrap() {
        "append" | "fill" | "batch" => 2_000,
        "index" => 100,
        "roll" | "table" | "segment" | "flush" | "retention" => 20,
        _ => 8,
    }
}

fn main() {
    if let Ok(mode) = std::env::var("CHRONICLE_CHILD") {
        return child::child(&mode);
    }
    // The questions that test runners ask.
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    let goal = scaled(5_000) as u64;
    let seed = fire::seed(20_260_715);
    println!("crash_kill: {goal} kills, CHRONICLE_SEED={seed}");
    let points = fire::named_points();
    let dir = fire::scratch("kill");
    let mut fire = Fire {
        rng: Rng(seed),
        log: dir.join("log"),
        dir: dir.clone(),
        names: 0,
        kills: BTreeMap::new(),
        kills_random: 0,
        kills_by_scenario: BTreeMap::new(),
        scenario: "",
        misses: BTreeMap::new(),
        reach: points.iter().map(|p| (p.clone(), first_reach(p))).collect(),
    };
    let start = Instant::now();
    while fire.total() < goal {
        match fire.rng.below(12) {
            0 if fire.rng.chance(2) => retention_before_recovery(&mut fire),
            0 => creation(&mut fire, goal),
            1 | 2 => {
                let aim = rarest_of_recovery(&mut fire, &points);
                recovery_after_power_loss(&mut fire, &aim);
            }
            _ => one_life(&mut fire, goal),
        }
    }
    // A small run may not have been everywhere.
    for point in &points {
        for _ in 0..30 {
            if !fire.kills.contains_key(point) {
                aim_at(&mut fire, point);
            }
        }
    }
    println!("kills at random moments: {}", fire.kills_random);
    for (name, count) in &fire.kills {
        println!("kills at {name}: {count}");
    }
    println!("kills by scenario: {:?}", fire.kills_by_scenario);
    let missed: Vec<_> = points.iter().filter(|p| !fire.kills.contains_key(*p)).collect();
    let total = fire.total();
    println!(
        "{total} kills, {} of {} points, {:.0?}",
        fire.kills.len(),
        points.len(),
        start.elapsed()
    );
    assert!(missed.is_empty(), "no kill at {missed:?}");
    std::fs::remove_dir_all(&dir).unwrap();
}
