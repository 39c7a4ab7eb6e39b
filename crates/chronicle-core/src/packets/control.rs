//! The half of a ring that has the sockets.

use crate::error::{Error, ErrorKind, Result};
use crate::os::packet::{Interface, Members, PacketSocket};
use crate::os::process;
use crate::packets::counters::Counters;
use crate::packets::lines::Lines;
use crate::packets::mapped::MappedRing;
use crate::packets::{Ring, Shape};
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

/// What a ring is to be.
pub struct Options {
    pub interface: String,
    pub lines: Lines,
    pub shape: Shape,
    /// Whether checksums are verified.
    pub verify: bool,
}

/// See the module's header.
pub struct Control {
    interface: String,
    socket: PacketSocket,
    members: Members,
    counters: Arc<Counters>,
    state: State,
}

/// Opens a ring on an interface, joins the groups.
///
/// # Errors
/// Whatever the kernel refuses, with what to do about it.
pub fn open(options: Options) -> Result<(Ring, Control)> {
    let Options { interface, lines, shape, verify } = options;
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
    // Before it is bound: nothing comes in that was not filtered.
    socket.set_filter(lines.as_slice()).map_err(refused("filter what comes in at"))?;
    let frames = MappedRing::new(&socket, shape)?;
    let mut members = Members::new(&lines.groups(), lines.unicast())
        .map_err(refused("open sockets to join groups at"))?;
    socket.bind(found.index).map_err(refused("bind to"))?;
    members.join(found.index).map_err(refused("join groups at"))?;
    let counters = Arc::<Counters>::default();
    let lines = Arc::new(lines);
    let ring = Ring {
        frames,
        lines,
        counters: Arc::clone(&counters),
        verify,
        released: 0,
        fork_generation: process::fork_generation(),
    };
    let state = State::of(&found);
    Ok((ring, Control { interface, socket, members, counters, state }))
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
        let dropped = self.socket.take_drops();
        let refused = |source| Error::network("ask for the drops of", &*self.interface, source);
        self.counters.drops().add(dropped.map_err(refused)?);
        Ok(())
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
        let Some(found) = found else {
            self.state = State::Absent;
            return Ok(self.state);
        };
        // Down and up again is the kernel's affair: the socket stays bound, the groups joined.
        let bound = self.socket.bound().map_err(refused("ask for the binding to"))?;
        if bound != Some(found.index) || self.members.joined() != bound {
            self.socket.bind(found.index).map_err(refused("bind again to"))?;
            self.members.join(found.index).map_err(refused("join groups again at"))?;
            self.counters.rebinds().add(1);
        }
        self.state = State::of(&found);
        Ok(self.state)
    }
}
