//! The half of a ring that has the sockets.

use crate::error::{Error, ErrorKind, Result};
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
    /// There is none of the name.
    Absent,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
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
    lines: Arc<Lines>,
    shape: Shape,
    native_only: bool,
    /// Drops of this socket that were counted.
    drops: u64,
}

impl Xdp {
    fn open(
        index: u32,
        lines: &Arc<Lines>,
        shape: Shape,
        native_only: bool,
    ) -> std::result::Result<(Self, Arc<XdpMemory>), xdp::StepError> {
        let Shape { frames, frame_bytes } = shape;
        let (socket, memory) =
            xdp::open(index, lines.as_slice(), frames, frame_bytes, native_only)?;
        let (lines, exchange) = (Arc::clone(lines), Arc::default());
        let socket = Some(socket);
        Ok((Self { socket, exchange, lines, shape, native_only, drops: 0 }, Arc::new(memory)))
    }

    /// Opens a new socket, and leaves its memory to the reader of the ring.
    fn renew(
        &mut self,
        index: u32,
        counters: &Counters,
    ) -> std::result::Result<(), xdp::StepError> {
        self.socket = None;
        self.drops = 0;
        // What the reader has not come to while two interfaces have gone is lost.
        if let Some(skipped) = self.exchange.new.take::<Strong>() {
            counters.drops().add(skipped.untaken());
        }
        let (other, memory) = Self::open(index, &self.lines, self.shape, self.native_only)?;
        self.socket = other.socket;
        let put = self.exchange.new.put::<Strong>(memory);
        debug_assert!(put.is_ok(), "only this side fills it");
        Ok(())
    }

    fn new_drops(&mut self) -> std::io::Result<u64> {
        let Some(socket) = &self.socket else { return Ok(0) };
        let drops = socket.drops()?;
        let more = drops.saturating_sub(self.drops);
        self.drops = drops;
        Ok(more)
    }
}

/// Opens a ring on an interface, joins the groups.
///
/// # Errors
/// Whatever the kernel refuses, with what to do about it.
pub fn open(options: Options) -> Result<(Ring, Control)> {
    let Options { backend, interface, lines, shape, verify } = options;
    let refused = |what| {
        let interface = interface.clone();
        move |source| Error::network(what, interface.clone(), source)
    };
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
    let lines = Arc::new(lines);
    let (frames, xdp) = match backend {
        Backend::Packet => {
            // Before it is bound: nothing comes in that was not filtered.
            socket.set_filter(lines.as_slice()).map_err(refused("filter what comes in at"))?;
            let frames = MappedRing::new(&socket, shape)?;
            socket.bind(found.index).map_err(refused("bind to"))?;
            (Frames::Mapped(frames), None)
        }
        Backend::Xdp { native_only } => {
            shape.check_xdp()?;
            let opened = Xdp::open(found.index, &lines, shape, native_only);
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
        let refused = |source| Error::network("ask for the drops of", &*self.interface, source);
        self.counters.drops().add(dropped.map_err(refused)?);
        Ok(())
    }

    fn compare_clocks(&self) {
        let offset_ns = clock::wall_ns().wrapping_sub(clock::monotonic_ns());
        self.counters.clock_offset_ns().set(offset_ns);
    }

    /// Looks at the interface. If another one has its name now, binds to that, and joins there; the
    /// ring and what is in it stay as they are. A few system calls.
    ///
    /// # Errors
    /// What the kernel refused; the next look tries again.
    pub fn look(&mut self) -> Result<State> {
        self.check_owner()?;
        let refused = |what| {
            let interface = self.interface.clone();
            move |source| Error::network(what, interface.clone(), source)
        };
        let found = self.socket.interface(&self.interface).map_err(refused("look at interface"))?;
        self.compare_clocks();
        let Some(found) = found else {
            self.state = State::Absent;
            if let Some(xdp) = &mut self.xdp {
                // It is of an interface that is gone, even if one with the same index comes.
                xdp.socket = None;
            }
            return Ok(self.state);
        };
        if let Some(xdp) = &self.xdp {
            // What the reader has left behind.
            drop(xdp.exchange.old.take::<Strong>());
        }
        // Down and up again is the kernel's affair: the socket stays bound, the groups joined.
        let bound = match &self.xdp {
            Some(xdp) => xdp.socket.as_ref().map(XdpSocket::index),
            None => self.socket.bound().map_err(refused("ask for the binding to"))?,
        };
        if bound != Some(found.index) || self.members.joined() != bound {
            match &mut self.xdp {
                Some(xdp) => {
                    xdp.renew(found.index, &self.counters)
                        .map_err(|(what, source)| refused(what)(source))?;
                }
                None => self.socket.bind(found.index).map_err(refused("bind again to"))?,
            }
            self.members.join(found.index).map_err(refused("join groups again at"))?;
            self.counters.rebinds().add(1);
        }
        self.state = State::of(&found);
        Ok(self.state)
    }
}
