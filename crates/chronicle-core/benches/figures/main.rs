//! The figures that only Rust can take. Run by `benches/run.py`; by hand:
//!
//! ```text
//! cargo bench --package chronicle-core --bench figures -- append --dir /dev/shm/x [--quick]
//! ```
//!
//! Each benchmark checks its own results (counts, sums, order) and prints one JSON object. Floors
//! are measured in the same rounds as what is compared with them.

#![allow(clippy::print_stdout)] // The result is what it prints.

mod append;
mod echo;
mod fan;
mod guard;
mod hot;
mod latency;
mod packets;
mod places;
mod roll;
mod throughput;
mod tool;

use std::ffi::OsString;
use std::path::PathBuf;
use tool::Run;

/// What a benchmark passes on when it starts itself as another process.
fn child_arguments(run: &Run, name: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![name.into(), "--dir".into(), run.dir.clone().into()];
    if run.quick {
        arguments.push("--quick".into());
    }
    arguments
}

fn main() {
    let mut names = Vec::new();
    let mut run = Run { dir: PathBuf::from("/dev/shm/chronicle-figures"), quick: false };
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--dir") => run.dir = arguments.next().expect("--dir PATH").into(),
            Some("--quick") => run.quick = true,
            // What `cargo bench` adds.
            Some("--bench") => {}
            _ => names.push(argument),
        }
    }
    std::fs::create_dir_all(&run.dir).expect("create --dir");
    if names.len() > 1 {
        tool::die_with_parent();
    }
    let page = names.get(1).map(PathBuf::from).unwrap_or_default();
    let other = names.get(2).map(PathBuf::from).unwrap_or_default();
    let text = |at: usize| names.get(at).and_then(|name| name.to_str()).unwrap_or_default();
    let report = match names.first().and_then(|name| name.to_str()) {
        Some("append") => append::measure(&run),
        Some("latency") => latency::measure(&run),
        Some("latency-child") => return latency::child(&run, &page),
        Some("throughput") => throughput::measure(&run),
        Some("throughput-child") => return throughput::child(&run, &page),
        Some("echo") => echo::measure(&run, &page, &other),
        Some("fan") => fan::measure(&run),
        Some("hot") => hot::measure(&run),
        Some("open") => places::measure_open(&run),
        Some("seek") => places::measure_seek(&run),
        Some("roll") => roll::measure(&run),
        Some("guard") => guard::measure(&run),
        Some("packets") => packets::measure(&run, text(1), text(2), text(3), text(4)),
        other => {
            eprintln!(
                "{other:?}: append, latency, throughput, fan, hot, open, seek, roll, guard or packets"
            );
            std::process::exit(2);
        }
    };
    println!("{}", report.json());
}
