//! The floor of everything that comes off the wire: a process that reads a ring and does nothing
//! else. It touches each packet (its first and its last byte), and takes the time since the kernel
//! put it into the ring.

use crate::tool::{Report, Run, histogram, pin};
use chronicle_core::os::clock::{monotonic_ns, wall_ns};
use chronicle_core::packets::control::{self, Backend, Options};
use chronicle_core::packets::lines::Lines;
use chronicle_core::packets::{Next, Shape};
use std::hint::black_box;
use std::io::Write;

const PATIENCE_NS: u64 = 60_000_000_000;
/// Not counted: caches and clocks have to get going.
const WARM_UP: u64 = 100;

/// Reads `interface` until `count` datagrams of `line` have come, which the filter (in hexadecimal)
/// lets pass. Prints `ready` when it listens.
pub fn measure(_: &Run, interface: &str, line: &str, filter: &str, count: &str) -> Report {
    pin(1);
    let count: u64 = count.parse().expect("a count");
    let lines = Lines::new(&[line.parse().expect("an address and a port")]);
    let program = filter.as_bytes().chunks(2).map(|two| {
        let two = std::str::from_utf8(two).expect("hexadecimal digits");
        u8::from_str_radix(two, 16).expect("hexadecimal digits")
    });
    let program = program.collect();
    let shape = Shape::new(4096, 2048).expect("a shape");
    let (backend, interface) = (Backend::Packet, interface.to_owned());
    let options = Options { backend, interface, lines, program, shape, verify: true };
    let (mut ring, mut control) = control::open(options).expect("open the ring");
    println!("ready");
    std::io::stdout().flush().expect("say so");
    let mut seen = histogram();
    let mut last_ns = monotonic_ns();
    let mut number = 0;
    while number < count {
        let Next::Datagram(datagram) = ring.peek() else {
            assert!(monotonic_ns() - last_ns < PATIENCE_NS, "no datagram for a minute");
            continue;
        };
        if datagram.len_bytes > 0 {
            // SAFETY: the ring holds the payload until the release below.
            black_box(unsafe { datagram.payload.add(datagram.len_bytes - 1).read_volatile() });
            // SAFETY: as above.
            black_box(unsafe { datagram.payload.read_volatile() });
        }
        let taken_ns = wall_ns();
        number = datagram.number;
        ring.release(&datagram);
        if number > WARM_UP {
            seen.record(taken_ns.saturating_sub(datagram.timestamp_ns).max(1)).expect("in range");
        }
        last_ns = monotonic_ns();
    }
    control.count_drops().expect("ask for drops");
    assert_eq!(ring.counters().drops().get(), 0, "the ring was full");
    let mut report = Report::default();
    report.put_quantiles("packet_ring_read", &seen);
    report
}
