//! XDP sockets (Documentation/networking/af_xdp.rst): memory that the kernel copies frames into, the
//! rings over which frames go to and fro, and the program that picks ours.
//!
//! Copy mode on queue 0: enough where there is one queue, and offered by every driver. The program
//! hangs on a BPF link, which is a descriptor: it goes when the socket does, or the process.

use crate::os::map::Map;
use crate::os::packet::{PacketSocket, Socket, check};
use crate::os::process::OwnDescriptor;
use crate::protocol::{Strong, frame_status, give_frame_back};
use crate::sync::AtomicU32;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What the kernel leaves free before each frame (XDP_PACKET_HEADROOM).
pub const HEADROOM_BYTES: usize = 256;

/// One entry of the ring of received frames: `struct xdp_desc`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Within the memory.
    pub address: u64,
    pub len_bytes: u32,
    pub options: u32,
}

/// A ring in memory that the kernel shares: a power of two of entries, a count of what has been put
/// into it and one of what has been taken from it.
pub struct SharedRing<T> {
    map: Map,
    producer: usize,
    consumer: usize,
    entries: usize,
    /// Entries less one.
    mask: usize,
    of: PhantomData<T>,
}

impl<T> SharedRing<T> {
    /// Lays a ring over the mapping, where the kernel says that it is.
    fn new(map: Map, at: &libc::xdp_ring_offset, count: usize) -> io::Result<Self> {
        let find = |offset: u64, align: usize, len: Option<usize>| {
            let offset = usize::try_from(offset).ok()?;
            let end = offset.checked_add(len?)?;
            (offset.is_multiple_of(align) && end <= map.len()).then_some(offset)
        };
        let word = size_of::<AtomicU32>();
        let places = (
            find(at.producer, word, Some(word)),
            find(at.consumer, word, Some(word)),
            find(at.desc, align_of::<T>(), size_of::<T>().checked_mul(count)),
        );
        let (Some(producer), Some(consumer), Some(entries)) = places else {
            return Err(io::Error::other("the kernel's rings are not where they can be"));
        };
        if !count.is_power_of_two() {
            return Err(io::Error::other("rings have a power of two of entries"));
        }
        Ok(Self { map, producer, consumer, entries, mask: count - 1, of: PhantomData })
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `new` has checked that 32 bits stand there, aligned, inside the mapping, which
        // lives as long as we do; kernel and we store there as one word.
        unsafe { AtomicU32::from_ptr(self.map.base().add(offset).cast()) }
    }

    /// How many entries were put in, modulo 2^32.
    #[inline(always)]
    pub fn put(&self) -> &AtomicU32 {
        self.word(self.producer)
    }

    /// How many entries were taken out, modulo 2^32.
    #[inline(always)]
    pub fn taken(&self) -> &AtomicU32 {
        self.word(self.consumer)
    }

    /// Where the entry of that count is. Whose it is, the counts say.
    #[inline(always)]
    pub fn entry(&self, count: u32) -> *mut T {
        // SAFETY: `new` has checked that so many entries are inside the mapping.
        unsafe { self.map.base().add(self.entries).cast::<T>().add(count as usize & self.mask) }
    }
}

/// What the reader of an XDP socket needs; without the socket.
pub struct XdpMemory {
    pub frames: Map,
    pub received: SharedRing<Descriptor>,
    pub free: SharedRing<u64>,
    pub frame_count: usize,
    pub frame_bytes: usize,
}

/// The socket, and the program that feeds it. Dropped, both are gone.
pub struct XdpSocket {
    socket: Socket,
    _link: OwnDescriptor,
    index: u32,
}

/// An error of one of the steps, with the step.
pub type StepError = (&'static str, io::Error);

fn step<T>(what: &'static str, result: io::Result<T>) -> Result<T, StepError> {
    result.map_err(|error| (what, error))
}

/// Opens an XDP socket on an interface, fed by a program whose map is put in here. The interface is
/// of the network namespace that `beside` is of; that must be the calling thread's, in which the
/// kernel looks for it.
///
/// # Errors
/// EPERM without CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF; EBUSY if there is an XDP program already;
/// EOPNOTSUPP and others where the driver does not offer it; EXDEV in another namespace.
pub fn open(
    beside: &PacketSocket,
    index: u32,
    program: &[u8],
    frame_count: usize,
    frame_bytes: usize,
    native_only: bool,
) -> Result<(XdpSocket, XdpMemory), StepError> {
    let socket = step("open an XDP socket for", Socket::open(libc::AF_XDP, libc::SOCK_RAW))?;
    if !step("open an XDP socket for", socket.is_beside(&beside.0))? {
        let elsewhere = io::Error::from_raw_os_error(libc::EXDEV);
        return Err(("open an XDP socket for", elsewhere));
    }
    let memory =
        step("make the memory of an XDP socket for", memory(&socket, frame_count, frame_bytes))?;
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_COPY,
        sxdp_ifindex: index,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    step("bind an XDP socket to", bind_patiently(&socket, &address))?;
    // Before the first frame comes.
    memory.give_all();
    let map = step("make the map of an XDP program for", bpf::socket_map(&socket))?;
    let program = step("load an XDP program for", bpf::load(program, &map))?;
    let link = bpf::attach(&program, index, native_only);
    let link = step("attach an XDP program to", link)?;
    Ok((XdpSocket { socket, _link: link, index }, memory))
}

/// The kernel takes a closed socket off its queue in its own time, and until then the queue is busy.
fn bind_patiently(socket: &Socket, address: &libc::sockaddr_xdp) -> io::Result<()> {
    const TRIES: u32 = 50;
    const NAP: Duration = Duration::from_millis(2);
    for _ in 0..TRIES {
        match socket.bind(address) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(NAP),
            bound => return bound,
        }
    }
    socket.bind(address)
}

impl XdpMemory {
    /// Frames that were received and not taken. P12.
    pub fn untaken(&self) -> u64 {
        let put = frame_status::<Strong>(self.received.put());
        put.wrapping_sub(frame_status::<Strong>(self.received.taken())).into()
    }

    /// Gives all frames to the kernel. P13.
    fn give_all(&self) {
        for frame in 0..self.frame_count {
            // SAFETY: the ring has as many entries as there are frames, and the kernel does not read
            // this one before the count says so.
            unsafe { self.free.entry(frame as u32).write((frame * self.frame_bytes) as u64) };
        }
        give_frame_back::<Strong>(self.free.put(), self.frame_count as u32);
    }
}

#[cfg(test)]
impl XdpMemory {
    /// Of nobody's but ours; both rings have come to `count` and are empty.
    pub fn without_kernel(frame_count: usize, frame_bytes: usize, count: u32) -> io::Result<Self> {
        let at = libc::xdp_ring_offset { producer: 0, consumer: 64, desc: 128, flags: 4 };
        let map = || Map::shared_memory(128 + frame_count * size_of::<Descriptor>());
        let memory = Self {
            frames: Map::shared_memory(frame_count * frame_bytes)?,
            received: SharedRing::new(map()?, &at, frame_count)?,
            free: SharedRing::new(map()?, &at, frame_count)?,
            frame_count,
            frame_bytes,
        };
        for word in [memory.received.put(), memory.received.taken(), memory.free.put()] {
            give_frame_back::<Strong>(word, count);
        }
        Ok(memory)
    }
}

impl XdpSocket {
    /// Of the interface that it was opened on.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether it still gets what comes in at the interface. Not since that has gone, or was in
    /// another namespace meanwhile, even if it is back with the same index: the kernel has unbound
    /// the socket then, and says so once. The caller must remember.
    pub fn is_bound(&self) -> io::Result<bool> {
        self.socket.get(libc::SOL_SOCKET, libc::SO_ERROR).map(|error: libc::c_int| error == 0)
    }

    /// Frames that found no room since the socket was opened.
    pub fn drops(&self) -> io::Result<u64> {
        let counts: libc::xdp_statistics = self.socket.get(libc::SOL_XDP, libc::XDP_STATISTICS)?;
        Ok(counts.rx_dropped + counts.rx_ring_full)
    }
}

fn memory(socket: &Socket, frame_count: usize, frame_bytes: usize) -> io::Result<XdpMemory> {
    let mut frames = Map::shared_memory(frame_count * frame_bytes)?;
    frames.keep_from_children()?;
    let registration = libc::xdp_umem_reg {
        addr: frames.base() as u64,
        len: frames.len() as u64,
        chunk_size: frame_bytes as u32,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    let entries = frame_count as libc::c_int;
    socket.set(libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)?;
    socket.set(libc::SOL_XDP, libc::XDP_UMEM_FILL_RING, &entries)?;
    // Nothing is sent, but the kernel wants the ring.
    socket.set(libc::SOL_XDP, libc::XDP_UMEM_COMPLETION_RING, &2_i32)?;
    socket.set(libc::SOL_XDP, libc::XDP_RX_RING, &entries)?;
    let offsets: libc::xdp_mmap_offsets = socket.get(libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)?;
    let received = ring(socket, &offsets.rx, libc::XDP_PGOFF_RX_RING as u64, frame_count)?;
    let free = ring(socket, &offsets.fr, libc::XDP_UMEM_PGOFF_FILL_RING, frame_count)?;
    Ok(XdpMemory { frames, received, free, frame_count, frame_bytes })
}

fn ring<T>(
    socket: &Socket,
    at: &libc::xdp_ring_offset,
    page: u64,
    count: usize,
) -> io::Result<SharedRing<T>> {
    let len = at.desc as usize + count * size_of::<T>();
    let mut map = Map::of_descriptor(socket.as_fd(), len, page, true)?;
    map.keep_from_children()?;
    SharedRing::new(map, at, count)
}

/// bpf(2), of which the libc crate has the number only.
mod bpf {
    use super::*;

    const MAP_CREATE: libc::c_int = 0;
    const MAP_UPDATE: libc::c_int = 2;
    const PROGRAM_LOAD: libc::c_int = 5;
    const LOADS_MAX: usize = 5;
    const LINK_CREATE: libc::c_int = 28;
    const MAP_OF_XDP_SOCKETS: u32 = 17;
    const PROGRAM_XDP: u32 = 6;
    const ATTACH_XDP: u32 = 37;
    /// XDP_FLAGS_DRV_MODE (linux/if_link.h): in the driver, or not at all.
    const NATIVE_ONLY: u32 = 1 << 2;

    /// `struct bpf_insn`: code, registers (the source in the high half), offset, immediate.
    const INSTRUCTION_BYTES: usize = 8;
    /// BPF_LD | BPF_IMM | BPF_DW, from BPF_PSEUDO_MAP_FD.
    const LOAD_IMMEDIATE: u8 = 0x18;
    const OF_MAP: u8 = 1;

    #[repr(C)]
    struct MapCreate {
        kind: u32,
        key_bytes: u32,
        value_bytes: u32,
        entries: u32,
    }

    #[repr(C)]
    struct MapUpdate {
        map: u32,
        spare: u32,
        key: u64,
        value: u64,
        flags: u64,
    }

    #[repr(C)]
    struct ProgramLoad {
        kind: u32,
        instructions: u32,
        program: u64,
        license: u64,
        log_level: u32,
        log_bytes: u32,
        log: u64,
    }

    #[repr(C)]
    struct LinkCreate {
        program: u32,
        interface: u32,
        attach: u32,
        flags: u32,
    }

    fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
        let attributes: *const T = attributes;
        // SAFETY: attributes of that length, which outlive the call, as does what they point at;
        // the kernel only reads them, and takes what is missing at the end as zeros.
        let rc = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
        check(rc as libc::c_int)
    }

    fn descriptor<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
        let fd = call(command, attributes)?;
        // SAFETY: such a command gives a new descriptor, closed on exec, that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// A map from queue 0 to the socket.
    pub fn socket_map(socket: &Socket) -> io::Result<OwnedFd> {
        let kind = MAP_OF_XDP_SOCKETS;
        let create = MapCreate { kind, key_bytes: 4, value_bytes: 4, entries: 1 };
        let map = descriptor(MAP_CREATE, &create)?;
        let (key, value) = (0_u32, socket.as_fd().as_raw_fd());
        let update = MapUpdate {
            map: map.as_raw_fd() as u32,
            spare: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        call(MAP_UPDATE, &update)?;
        Ok(map)
    }

    /// Loads a program; wherever that loads a map, it is this one. The program keeps the map.
    pub fn load(program: &[u8], map: &OwnedFd) -> io::Result<OwnedFd> {
        let mut program = program.to_vec();
        for instruction in program.chunks_exact_mut(INSTRUCTION_BYTES) {
            if instruction[0] == LOAD_IMMEDIATE && instruction[1] >> 4 == OF_MAP {
                instruction[4..].copy_from_slice(&map.as_raw_fd().to_ne_bytes());
            }
        }
        let license = c"Dual MIT/GPL";
        let load = ProgramLoad {
            kind: PROGRAM_XDP,
            instructions: (program.len() / INSTRUCTION_BYTES) as u32,
            program: program.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_bytes: 0,
            log: 0,
        };
        // The verifier stops with EAGAIN when a signal is pending; tried again as libbpf does.
        let mut loaded = descriptor(PROGRAM_LOAD, &load);
        for _ in 1..LOADS_MAX {
            match &loaded {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                _ => break,
            }
            loaded = descriptor(PROGRAM_LOAD, &load);
        }
        loaded
    }

    /// The link keeps the program.
    pub fn attach(
        program: &OwnedFd,
        interface: u32,
        native_only: bool,
    ) -> io::Result<OwnDescriptor> {
        let flags = if native_only { NATIVE_ONLY } else { 0 };
        let program = program.as_raw_fd() as u32;
        let link = LinkCreate { program, interface, attach: ATTACH_XDP, flags };
        // A forked child must not keep the program on the interface.
        OwnDescriptor::new(descriptor(LINK_CREATE, &link)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_would_not_lie_in_its_mapping_is_refused() {
        let ring = |producer, consumer, desc, count| {
            let at = libc::xdp_ring_offset { producer, consumer, desc, flags: 0 };
            SharedRing::<Descriptor>::new(Map::shared_memory(4096).unwrap(), &at, count)
        };
        assert!(ring(0, 64, 128, 128).is_ok());
        for (producer, consumer, desc, count) in [
            (4096, 64, 128, 128),
            (4093, 64, 128, 128),
            (2, 64, 128, 128),
            (0, u64::MAX, 128, 128),
            (0, 64, 4096 - 127 * 16, 128),
            (0, 64, 130, 128),
            (0, 64, u64::MAX - 7, 128),
            (0, 64, 128, 256),
            (0, 64, 128, usize::MAX),
            (0, 64, 128, 100),
            (0, 64, 128, 0),
        ] {
            assert!(ring(producer, consumer, desc, count).is_err(), "{producer} {consumer} {desc}");
        }
    }
}
