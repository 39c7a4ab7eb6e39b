//! The half of a ring that has the sockets.

use crate::error::{Error, ErrorKind, Result};
use crate::os::link::Questions;
use crate::os::packet::{Interface, Members, PacketSocket};
use crate::os::xdp::{self, XdpMemory, XdpSocket};
use crate::os::{clock, process};
use crate::packets::counters::Counters;
use crate::packets::lines::Lines;
use crate::packets::mapped::MappedRing;
use crate::packets::xdp::{Exchange, XdpRing};
use crate::packets::{Frames, Ring, Shape};
use crate::protocol::Strong;
use crate::sync::Arc;

/// What is known of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Up,
    /// There, but down or without a carrier.
    Down,
    /// Up, but with more receive queues than the first, which is the one that an XDP socket gets:
    /// the stack has what comes over the others.
    Partial,
    /// There is none of the name.
    Absent,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Partial => "partial",
            Self::Absent => "absent",
        }
    }

    fn of(interface: &Interface) -> Self {
        if interface.is_running { Self::Up } else { Self::Down }
    }
}

/// By what frames come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A packet socket.
    Packet,
    /// An XDP socket.
    Xdp {
        /// Only if the driver itself runs the program, and not the stack behind it.
        native_only: bool,
    },
}

/// What a ring is to be.
pub struct Options {
    pub backend: Backend,
    pub interface: String,
    pub lines: Lines,
    /// For the kernel, to pick what may be for one of the lines: of classic BPF for a packet
    /// socket, of eBPF for an XDP socket. What it lets pass is looked at again.
    pub program: Vec<u8>,
    pub shape: Shape,
    /// Whether checksums are verified.
    pub verify: bool,
}

/// See the module's header.
pub struct Control {
    interface: String,
    /// With an XDP socket it only asks.
    socket: PacketSocket,
    xdp: Option<Xdp>,
    members: Members,
    counters: Arc<Counters>,
    state: State,
}

/// The XDP socket of a ring, and what a new one needs.
struct Xdp {
    /// `None` after a new one could not be opened.
    socket: Option<XdpSocket>,
    exchange: Arc<Exchange>,
    questions: Questions,
    program: Vec<u8>,
    shape: Shape,
    native_only: bool,
    /// Drops of this socket that were counted.
    drops: u64,
}

impl Xdp {
    fn open(
        questions: Questions,
        beside: &PacketSocket,
        index: u32,
        program: Vec<u8>,
        shape: Shape,
        native_only: bool,
    ) -> std::result::Result<(Self, Arc<XdpMemory>), xdp::StepError> {
        let (socket, memory) = Self::open_socket(beside, index, &program, shape, native_only)?;
        let (exchange, socket) = (Arc::default(), Some(socket));
        Ok((Self { socket, exchange, questions, program, shape, native_only, drops: 0 }, memory))
    }

    fn open_socket(
        beside: &PacketSocket,
        index: u32,
        program: &[u8],
        shape: Shape,
        native_only: bool,
    ) -> std::result::Result<(XdpSocket, Arc<XdpMemory>), xdp::StepError> {
        let Shape { frames, frame_bytes } = shape;
        let opened = xdp::open(beside, index, program, frames, frame_bytes, native_only)?;
        Ok((opened.0, Arc::new(opened.1)))
    }

    /// The interface that the socket is bound to. One that was taken off its interface is closed.
    fn bound(&mut self, counters: &Counters) -> std::io::Result<Option<u32>> {
        let Some(socket) = &self.socket else { return Ok(None) };
        if socket.is_bound()? {
            return Ok(Some(socket.index()));
        }
        self.close(counters)?;
        Ok(None)
    }

    /// Closes the socket; what it has dropped is counted. The kernel keeps a socket, and what it is
    /// bound to, as long as the reader maps its memory.
    fn close(&mut self, counters: &Counters) -> std::io::Result<()> {
        let drops = self.new_drops();
        self.socket = None;
        self.drops = 0;
        counters.drops().add(drops?);
        Ok(())
    }

    /// Opens a new socket in the place of the old one, and leaves its memory to the reader of the
    /// ring. An old one that is still bound is of another interface; if there can be no new one it
    /// stays: closed, it would hold its interface as long as the reader has nothing else to map.
    fn renew(
        &mut self,
        beside: &PacketSocket,
        index: u32,
        counters: &Counters,
    ) -> std::result::Result<(), xdp::StepError> {
        let (socket, memory) =
            Self::open_socket(beside, index, &self.program, self.shape, self.native_only)?;
        let closed = self.close(counters);
        self.socket = Some(socket);
        // What the reader has not come to while two interfaces have gone is lost.
        if let Some(skipped) = self.exchange.new.take::<Strong>() {
            counters.drops().add(skipped.untaken());
        }
        let put = self.exchange.new.put::<Strong>(memory);
        debug_assert!(put.is_ok(), "only this side fills it");
        closed.map_err(|error| ("ask for the drops of", error))
    }

    fn new_drops(&mut self) -> std::io::Result<u64> {
        let Some(socket) = &self.socket else { return Ok(0) };
        let drops = socket.drops()?;
        let more = drops.saturating_sub(self.drops);
        self.drops = drops;
        Ok(more)
    }
}

/// What a step at an interface fails with.
fn refused<'a>(
    interface: &'a str,
    what: &'static str,
) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |source| Error::network(what, interface, source)
}

/// Opens a ring on an interface, joins the groups.
///
/// # Errors
/// Whatever the kernel refuses, with what to do about it.
pub fn open(options: Options) -> Result<(Ring, Control)> {
    let Options { backend, interface, lines, program, shape, verify } = options;
    let refused = |what| refused(&interface, what);
    let socket = PacketSocket::open().map_err(refused("open a packet socket for"))?;
    let found = socket.interface(&interface).map_err(refused("look at interface"))?;
    let Some(found) = found else {
        let expected = "the name of an interface, as `ip link` lists them in this namespace";
        return Err(Error::bad("interface", format!("'{interface}'"), expected));
    };
    if !found.is_ethernet {
        let expected = "an interface with Ethernet frames, or the loopback";
        return Err(Error::bad("interface", format!("'{interface}'"), expected));
    }
    let mut members = Members::new(&lines.groups(), lines.unicast())
        .map_err(refused("open sockets to join groups at"))?;
    let (frames, xdp) = match backend {
        Backend::Packet => {
            // Before it is bound: nothing comes in that was not filtered.
            socket.set_filter(&program).map_err(refused("filter what comes in at"))?;
            let frames = MappedRing::new(&socket, shape)?;
            socket.bind(found.index).map_err(refused("bind to"))?;
            (Frames::Mapped(frames), None)
        }
        Backend::Xdp { native_only } => {
            shape.check_xdp()?;
            let questions = Questions::open().map_err(refused("ask about interface"))?;
            let queues = receive_queues(&questions, &interface)?;
            if queues > 1 {
                let found = format!("'xdp' on an interface with {queues} receive queues");
                let expected = "one queue (`ethtool -L INTERFACE combined 1`), or 'packet'";
                return Err(Error::bad("backend", found, expected));
            }
            let opened = Xdp::open(questions, &socket, found.index, program, shape, native_only);
            let (xdp, memory) = opened.map_err(|(what, source)| refused(what)(source))?;
            let ring = XdpRing::new(memory, Arc::clone(&xdp.exchange));
            (Frames::Xdp(Box::new(ring)), Some(xdp))
        }
    };
    members.join(found.index).map_err(refused("join groups at"))?;
    let counters = Arc::<Counters>::default();
    let ring = Ring {
        frames,
        lines,
        counters: Arc::clone(&counters),
        verify,
        frames_count: shape.frames,
        released: 0,
        fork_generation: process::fork_generation(),
    };
    let state = State::of(&found);
    let control = Control { interface, socket, xdp, members, counters, state };
    control.compare_clocks();
    Ok((ring, control))
}

/// How many receive queues an interface has; 0 if it has just gone.
fn receive_queues(questions: &Questions, interface: &str) -> Result<u32> {
    let facts = questions.facts(interface).map_err(refused(interface, "ask about interface"))?;
    Ok(facts.map_or(0, |facts| facts.receive_queues))
}

impl Control {
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What the last look at the interface has found.
    pub fn state(&self) -> State {
        self.state
    }

    fn check_owner(&self) -> Result<()> {
        if self.socket.is_ours() { Ok(()) } else { Err(ErrorKind::Forked.into()) }
    }

    /// Adds to the counts what the kernel has dropped. One system call.
    pub fn count_drops(&mut self) -> Result<()> {
        self.check_owner()?;
        let dropped = match &mut self.xdp {
            Some(xdp) => xdp.new_drops(),
            None => self.socket.take_drops(),
        };
        let refused = refused(&self.interface, "ask for the drops of");
        self.counters.drops().add(dropped.map_err(refused)?);
        Ok(())
    }

    fn compare_clocks(&self) {
        self.counters.clock_offset_ns().set(clock::wall_offset_ns());
    }

    /// Looks at the interface. If another one has its name now, binds to that, and joins there; the
    /// ring and what is in it stay as they are. A few system calls.
    ///
    /// # Errors
    /// What the kernel refused; the next look tries again.
    pub fn look(&mut self) -> Result<State> {
        self.check_owner()?;
        let refused = |what| refused(&self.interface, what);
        let found = self.socket.interface(&self.interface).map_err(refused("look at interface"))?;
        self.compare_clocks();
        let Some(found) = found else {
            self.state = State::Absent;
            if let Some(xdp) = &mut self.xdp {
                // Closed if the interface is gone, even if one with the same index comes; not if it
                // has another name now.
                xdp.bound(&self.counters).map_err(refused("ask for the binding to"))?;
            }
            return Ok(self.state);
        };
        if let Some(xdp) = &self.xdp {
            // What the reader has left behind.
            drop(xdp.exchange.old.take::<Strong>());
        }
        self.mend(found.index)?;
        self.state = self.state_of(&found)?;
        Ok(self.state)
    }

    /// Binds and joins where that is to be done anew. Down and up again is the kernel's affair: the
    /// socket stays bound, the groups joined.
    fn mend(&mut self, index: u32) -> Result<()> {
        let refused = |what| refused(&self.interface, what);
        let bound = match &mut self.xdp {
            Some(xdp) => xdp.bound(&self.counters),
            None => self.socket.bound(),
        };
        let is_bound = bound.map_err(refused("ask for the binding to"))? == Some(index);
        if !is_bound {
            // Joined on one that has gone, even if this one has its index.
            self.members.forget();
            match &mut self.xdp {
                Some(xdp) => {
                    let renewed = xdp.renew(&self.socket, index, &self.counters);
                    renewed.map_err(|(what, source)| refused(what)(source))?;
                }
                None => self.socket.bind(index).map_err(refused("bind again to"))?,
            }
        }
        if self.members.joined() != Some(index) {
            self.members.join(index).map_err(refused("join groups again at"))?;
            self.counters.rebinds().add(1);
        }
        Ok(())
    }

    fn state_of(&self, found: &Interface) -> Result<State> {
        match &self.xdp {
            Some(xdp) if found.is_running => {
                let queues = receive_queues(&xdp.questions, &self.interface)?;
                Ok(if queues > 1 { State::Partial } else { State::Up })
            }
            _ => Ok(State::of(found)),
        }
    }
}
