//! Packet sockets: packet(7) with a ring of TPACKET_V2 frames in memory that the kernel shares, and
//! the silent UDP sockets that join multicast groups for it.
//!
//! Everything is asked through the sockets themselves, so it is answered for the network namespace
//! that they were opened in, whichever thread asks.

use crate::os::map::Map;
use crate::os::process::OwnDescriptor;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What stands before each frame (linux/if_packet.h).
pub type FrameHeader = libc::tpacket2_hdr;

/// Bits of [`FrameHeader::tp_status`].
pub const STATUS_KERNEL: u32 = libc::TP_STATUS_KERNEL;
pub const STATUS_USER: u32 = libc::TP_STATUS_USER;
pub const STATUS_CHECKSUM_NOT_READY: u32 = libc::TP_STATUS_CSUMNOTREADY;
pub const STATUS_CHECKSUM_VALID: u32 = libc::TP_STATUS_CSUM_VALID;
pub const STATUS_VLAN_VALID: u32 = libc::TP_STATUS_VLAN_VALID;

/// asm-generic/socket.h; not in the crate libc.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `struct tpacket_req`; the libc crate has another structure under that name.
#[repr(C)]
struct RingRequest {
    block_bytes: u32,
    blocks: u32,
    frame_bytes: u32,
    frames: u32,
}

/// Of classic BPF (linux/filter.h).
const INSTRUCTION_BYTES: usize = size_of::<libc::sock_filter>();
/// A filter that keeps no byte of anything: `return 0`.
const DROP_ALL: [u8; INSTRUCTION_BYTES] =
    [(libc::BPF_RET | libc::BPF_K) as u8, 0, 0, 0, 0, 0, 0, 0];

pub(super) fn check(rc: libc::c_int) -> io::Result<libc::c_int> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// What to do about an error of the calls in this module.
pub fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "packets need CAP_NET_RAW (XDP also CAP_NET_ADMIN and CAP_BPF): run as root, or grant it \
             (systemd: AmbientCapabilities=, container: --cap-add NET_RAW, or setcap cap_net_raw+ep \
             on the interpreter)"
        }
        Some(libc::ENOMEM) => "use fewer or smaller frames",
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program or socket is there; take it away, or use 'packet'"
        }
        Some(libc::EOPNOTSUPP | libc::ERANGE | libc::ENOSPC) => {
            "the driver does not offer that, or not with this MTU or number of queues; use 'packet'"
        }
        Some(libc::EXDEV) => {
            "this thread is in another network namespace than the ring; look after it from there"
        }
        Some(libc::ENOBUFS) => {
            "too many groups for one socket: raise net.ipv4.igmp_max_memberships; or too much \
             memory for an XDP socket without CAP_IPC_LOCK: use fewer or smaller frames, or raise \
             RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=infinity, shell: ulimit -l)"
        }
        Some(libc::ENODEV | libc::ENXIO | libc::EADDRNOTAVAIL) => {
            "see that the interface exists in this network namespace (`ip link`)"
        }
        Some(libc::ENOPROTOOPT) => "this needs Linux 4.20 or newer with packet sockets",
        Some(libc::EAFNOSUPPORT) => {
            "this needs packet sockets (CONFIG_PACKET), and with XDP also AF_XDP and AF_NETLINK, in \
             the kernel and in the sandbox (systemd: RestrictAddressFamilies=)"
        }
        _ => "see packet(7) for what the kernel means by that",
    }
}

/// A request about the interface of the name; `None` if no interface can have it.
pub(super) fn named_request(name: &str) -> Option<libc::ifreq> {
    // SAFETY: plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(request)
}

/// What the kernel may fill in.
///
/// # Safety
/// Whatever bytes it has, zeros included, it is a value: integers without padding between them.
pub(super) unsafe trait Plain {}

// SAFETY: an integer.
unsafe impl Plain for libc::c_int {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: two integers.
unsafe impl Plain for libc::tpacket_stats {}
// SAFETY: integers of 64 bits.
unsafe impl Plain for libc::xdp_statistics {}
// SAFETY: integers of 64 bits.
unsafe impl Plain for libc::xdp_mmap_offsets {}

/// A socket of one process: a forked child closes its copy as it starts.
pub(super) struct Socket {
    fd: OwnDescriptor,
}

impl Socket {
    pub fn open(family: libc::c_int, kind: libc::c_int) -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: `socket` gave us this descriptor, nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd: OwnDescriptor::new(fd)? })
    }

    pub fn set<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        let value: *const T = value;
        // SAFETY: a value of that length, which outlives the call; the kernel only reads it.
        let rc = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, value.cast(), len) };
        check(rc).map(drop)
    }

    /// Asks for an option. What the kernel leaves out, an older one for example, is zero.
    pub fn get<T: Plain>(&self, level: libc::c_int, option: libc::c_int) -> io::Result<T> {
        // SAFETY: zeros are a value of it, as its implementation promises.
        let mut value: T = unsafe { std::mem::zeroed() };
        let mut len = size_of::<T>() as libc::socklen_t;
        let to: *mut T = &mut value;
        // SAFETY: value and length outlive the call, which stores at most so much; whatever it
        // stores is a value.
        let rc =
            unsafe { libc::getsockopt(self.fd.as_raw_fd(), level, option, to.cast(), &mut len) };
        check(rc).map(|_| value)
    }

    pub fn bind<T>(&self, address: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        let address: *const T = address;
        // SAFETY: an address of that length, which outlives the call; the kernel only reads it.
        check(unsafe { libc::bind(self.fd.as_raw_fd(), address.cast(), len) }).map(drop)
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether both sockets are of one network namespace. Kernels before 5.14 do not tell; there it
    /// is taken for granted.
    pub fn is_beside(&self, other: &Self) -> io::Result<bool> {
        let cookie = |socket: &Self| match socket.get(libc::SOL_SOCKET, SO_NETNS_COOKIE) {
            Ok(cookie) => Ok(cookie),
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(0_u64),
            Err(error) => Err(error),
        };
        Ok(cookie(self)? == cookie(other)?)
    }

    /// A program of classic BPF: instructions of [`INSTRUCTION_BYTES`] each.
    fn set_filter(&self, program: &[u8]) -> io::Result<()> {
        let count = program.len() / INSTRUCTION_BYTES;
        let filter = libc::sock_fprog {
            len: u16::try_from(count).map_err(|_| io::Error::other("filter too long"))?,
            filter: program.as_ptr().cast_mut().cast(),
        };
        // The kernel copies the program and only reads it.
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
    }

    /// One of the questions about an interface; `None` if there is none of the name.
    fn interface_request(
        &self,
        name: &str,
        question: libc::Ioctl,
    ) -> io::Result<Option<libc::ifreq>> {
        let Some(mut request) = named_request(name) else { return Ok(None) };
        // SAFETY: such a request is what the question takes; the name is terminated.
        let rc = unsafe { libc::ioctl(self.fd.as_raw_fd(), question, &raw mut request) };
        match check(rc) {
            Ok(_) => Ok(Some(request)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// An interface at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    /// Up, and with a carrier.
    pub is_running: bool,
    /// Frames have an Ethernet header.
    pub is_ethernet: bool,
    pub mtu_bytes: usize,
}

/// A packet socket. It receives nothing before it is bound.
pub struct PacketSocket(pub(super) Socket);

impl PacketSocket {
    /// # Errors
    /// EPERM without CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        Socket::open(libc::AF_PACKET, libc::SOCK_RAW).map(Self)
    }

    /// Whether this process opened it, and not the parent it was forked from.
    pub fn is_ours(&self) -> bool {
        self.0.fd.is_ours()
    }

    pub fn interface(&self, name: &str) -> io::Result<Option<Interface>> {
        let Some(index) = self.0.interface_request(name, libc::SIOCGIFINDEX)? else {
            return Ok(None);
        };
        let Some(flags) = self.0.interface_request(name, libc::SIOCGIFFLAGS)? else {
            return Ok(None);
        };
        let Some(hardware) = self.0.interface_request(name, libc::SIOCGIFHWADDR)? else {
            return Ok(None);
        };
        let Some(mtu) = self.0.interface_request(name, libc::SIOCGIFMTU)? else {
            return Ok(None);
        };
        const RUNNING: libc::c_int = libc::IFF_UP | libc::IFF_RUNNING;
        // SAFETY: each answer is read as what its question gives.
        let (index, flags, kind, mtu) = unsafe {
            (
                index.ifr_ifru.ifru_ifindex,
                libc::c_int::from(flags.ifr_ifru.ifru_flags),
                hardware.ifr_ifru.ifru_hwaddr.sa_family,
                mtu.ifr_ifru.ifru_mtu,
            )
        };
        Ok(Some(Interface {
            index: index as u32,
            is_running: flags & RUNNING == RUNNING,
            is_ethernet: matches!(kind, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK),
            mtu_bytes: mtu as usize,
        }))
    }

    /// Lets pass only what the program does, and nothing that this host sends.
    pub fn set_filter(&self, program: &[u8]) -> io::Result<()> {
        self.0.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        self.0.set_filter(program)
    }

    /// Makes the ring and maps it: `frames` of `frame_bytes` each, one behind the other. A forked
    /// child does not have it.
    ///
    /// # Errors
    /// EINVAL for sizes that cannot be, ENOMEM.
    pub fn map_ring(
        &self,
        frames: usize,
        frame_bytes: usize,
        block_bytes: usize,
    ) -> io::Result<Map> {
        let version = libc::tpacket_versions::TPACKET_V2 as libc::c_int;
        self.0.set(libc::SOL_PACKET, libc::PACKET_VERSION, &version)?;
        let len = frames * frame_bytes;
        let request = RingRequest {
            block_bytes: block_bytes as u32,
            blocks: (len / block_bytes) as u32,
            frame_bytes: frame_bytes as u32,
            frames: frames as u32,
        };
        self.0.set(libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let mut map = Map::of_descriptor(self.0.fd.as_fd(), len, 0, true)?;
        map.keep_from_children()?;
        Ok(map)
    }

    /// From now on takes what comes in at the interface.
    pub fn bind(&self, index: u32) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: index as libc::c_int,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        self.0.bind(&address)
    }

    /// The index of the interface that it is bound to; `None` since that has gone.
    pub fn bound(&self) -> io::Result<Option<u32>> {
        // SAFETY: plain data, for which zeros are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: address and length outlive the call, which stores at most so much.
        let rc = unsafe {
            libc::getsockname(self.0.fd.as_raw_fd(), (&raw mut address).cast(), &mut len)
        };
        check(rc)?;
        Ok(u32::try_from(address.sll_ifindex).ok().filter(|&index| index != 0))
    }

    /// Packets that found no free frame since the last call: the kernel then counts anew.
    pub fn take_drops(&self) -> io::Result<u64> {
        let counts: libc::tpacket_stats = self.0.get(libc::SOL_PACKET, libc::PACKET_STATISTICS)?;
        Ok(counts.tp_drops.into())
    }
}

/// Groups that one socket may join (igmp_max_memberships, whose default this is).
const GROUPS_PER_SOCKET: usize = 20;

/// Sockets that make the groups and ports of a ring known to the kernel, and receive nothing.
///
/// A socket that is bound to no port is given no datagram. Ports of our own addresses are bound, so
/// that the kernel does not answer that nobody listens; those sockets drop all.
pub struct Members {
    sockets: Vec<(Socket, Vec<Ipv4Addr>)>,
    _ports: Vec<Socket>,
    /// The interface that the groups were joined on.
    joined: Option<u32>,
}

fn membership(group: Ipv4Addr, index: u32) -> libc::ip_mreqn {
    libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: u32::from(group).to_be() },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: index as libc::c_int,
    }
}

impl Members {
    /// Joins nothing yet.
    pub fn new(
        groups: &[Ipv4Addr],
        unicast: impl Iterator<Item = SocketAddrV4>,
    ) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for some in groups.chunks(GROUPS_PER_SOCKET) {
            sockets.push((Socket::open(libc::AF_INET, libc::SOCK_DGRAM)?, some.to_vec()));
        }
        let mut ports = Vec::new();
        for line in unicast {
            ports.extend(occupy(line)?);
        }
        Ok(Self { sockets, _ports: ports, joined: None })
    }

    /// Leaves all groups where they were joined; nothing counts as joined from now on.
    pub fn forget(&mut self) {
        if let Some(before) = self.joined.take() {
            self.leave(before);
        }
    }

    /// The interface on which all groups are joined.
    pub fn joined(&self) -> Option<u32> {
        self.joined
    }

    /// Joins all groups on the interface, and leaves them where they were joined before.
    pub fn join(&mut self, index: u32) -> io::Result<()> {
        self.forget();
        for (socket, groups) in &self.sockets {
            for &group in groups {
                let request = membership(group, index);
                let joined = socket.set(libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &request);
                if let Err(error) = joined {
                    self.leave(index);
                    return Err(error);
                }
            }
        }
        self.joined = Some(index);
        Ok(())
    }

    fn leave(&self, index: u32) {
        for (socket, groups) in &self.sockets {
            for &group in groups {
                // What was not joined, or has gone together with the interface, is no error.
                let request = membership(group, index);
                let _ = socket.set(libc::IPPROTO_IP, libc::IP_DROP_MEMBERSHIP, &request);
            }
        }
    }
}

/// Binds the port, if it is one of ours and nobody else has it.
fn occupy(line: SocketAddrV4) -> io::Result<Option<Socket>> {
    let socket = Socket::open(libc::AF_INET, libc::SOCK_DGRAM)?;
    socket.set_filter(&DROP_ALL)?;
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: line.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*line.ip()).to_be() },
        sin_zero: [0; 8],
    };
    match socket.bind(&address) {
        Ok(_) => Ok(Some(socket)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL) => Ok(None),
            _ => Err(error),
        },
    }
}
