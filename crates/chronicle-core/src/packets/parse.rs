//! One frame: is it a datagram of ours, where is its payload, and if it is not to be had, why.
//!
//! A pure function over the bytes that the kernel has stored. Every length that a packet claims is
//! compared with what is there before it is used, and every read is a checked one: what a packet
//! contains cannot make it read outside of the frame. Ethernet II with at most two VLAN tags (IEEE
//! 802.1Q and 802.1ad), IPv4 (RFC 791), UDP (RFC 768); nothing else is ours.

use crate::packets::lines::Lines;

const ETHERNET_HEADER_BYTES: usize = 14;
const VLAN_TAG_BYTES: usize = 4;
const VLAN_TAGS_MAX: u8 = 2;
const IP_HEADER_BYTES_MIN: usize = 20;
const UDP_HEADER_BYTES: usize = 8;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_VLAN: u16 = 0x8100;
const TYPE_VLAN_SERVICE: u16 = 0x88A8;
const PROTOCOL_UDP: u8 = 17;
/// More fragments follow, or this is not the first.
const FRAGMENT_BITS: u16 = 0x3FFF;

/// What is known of the UDP checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing.
    Unknown,
    /// The device has verified it.
    Verified,
    /// The packet comes from this host's own stack, which has left it to a device to fill it in.
    NotFilledIn,
    /// Nothing, and it may be as the stack leaves it to a device: the sum over the pseudo header.
    PerhapsNotFilledIn,
}

/// What came with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// Length of the frame as it came; the bytes at hand may be fewer.
    pub len_bytes: usize,
    pub checksum: Checksum,
    /// Whether a VLAN tag was taken out of the frame.
    pub tag_taken_out: bool,
}

/// Why a frame gives no datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drop {
    /// Something else, or for somebody else.
    NotOurs,
    /// For us, but its lengths contradict each other.
    Malformed,
    /// For us, but a part of a datagram.
    Fragment,
    /// For us, but longer than a frame of the ring.
    Truncated,
    /// For us, but damaged.
    BadChecksum,
}

/// A datagram's payload within its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub line: u16,
    pub start: usize,
    pub len_bytes: usize,
}

#[inline(always)]
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([field[0], field[1]]))
}

#[inline(always)]
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes([field[0], field[1], field[2], field[3]]))
}

/// Where the IPv4 header begins, if there is one.
#[inline(always)]
fn ip_start(frame: &[u8], about: &About) -> Option<usize> {
    let mut start = ETHERNET_HEADER_BYTES;
    let mut tags = u8::from(about.tag_taken_out);
    loop {
        match u16_at(frame, start - 2)? {
            TYPE_IPV4 => return Some(start),
            TYPE_VLAN | TYPE_VLAN_SERVICE if tags < VLAN_TAGS_MAX => {
                tags += 1;
                start += VLAN_TAG_BYTES;
            }
            _ => return None,
        }
    }
}

/// Finds the datagram in a frame.
///
/// # Errors
/// Why there is none. Headers that were not stored at all make a frame `NotOurs`: whose it is
/// stands in them.
#[inline]
pub fn parse(frame: &[u8], about: &About, lines: &Lines, verify: bool) -> Result<Found, Drop> {
    let start = ip_start(frame, about).ok_or(Drop::NotOurs)?;
    let ip = frame.get(start..).ok_or(Drop::NotOurs)?;
    let first = *ip.first().ok_or(Drop::NotOurs)?;
    let address = u32_at(ip, 16).ok_or(Drop::NotOurs)?;
    if first >> 4 != 4 || ip[9] != PROTOCOL_UDP {
        return Err(Drop::NotOurs);
    }
    let fragment = u16_at(ip, 6).ok_or(Drop::NotOurs)? & FRAGMENT_BITS;
    let ip_header = usize::from(first & 15) * 4;
    let ip_total = usize::from(u16_at(ip, 2).ok_or(Drop::NotOurs)?);
    if fragment != 0 || ip_header < IP_HEADER_BYTES_MIN {
        // Its port stands in the first part only, or nowhere: it is ours by its address.
        let reason = if fragment != 0 { Drop::Fragment } else { Drop::Malformed };
        return Err(if lines.has_address(address) { reason } else { Drop::NotOurs });
    }
    let port = u16_at(ip, ip_header + 2).ok_or(Drop::NotOurs)?;
    let line = lines.find(address, port).ok_or(Drop::NotOurs)?;
    let ip_bytes = about.len_bytes.saturating_sub(start);
    if ip_total < ip_header + UDP_HEADER_BYTES || ip_total > ip_bytes {
        return Err(Drop::Malformed);
    }
    let header = ip.get(..ip_header).ok_or(Drop::NotOurs)?;
    if verify && folded(sum(header)) != u16::MAX {
        return Err(Drop::BadChecksum);
    }
    let udp_total = usize::from(u16_at(ip, ip_header + 4).ok_or(Drop::NotOurs)?);
    if udp_total < UDP_HEADER_BYTES || udp_total > ip_total - ip_header {
        return Err(Drop::Malformed);
    }
    let udp = ip.get(ip_header..ip_header + udp_total).ok_or(Drop::Truncated)?;
    let is_right = match about.checksum {
        _ if !verify => true,
        Checksum::Verified | Checksum::NotFilledIn => true,
        Checksum::Unknown => udp_checksum_is_right(ip, udp, false),
        Checksum::PerhapsNotFilledIn => udp_checksum_is_right(ip, udp, true),
    };
    if !is_right {
        return Err(Drop::BadChecksum);
    }
    let payload = start + ip_header + UDP_HEADER_BYTES;
    Ok(Found { line, start: payload, len_bytes: udp_total - UDP_HEADER_BYTES })
}

/// RFC 768: over a pseudo header, header and payload; a checksum of zero says that there is none.
/// With `may_be_partial` that over the pseudo header alone will do.
#[inline]
fn udp_checksum_is_right(ip: &[u8], udp: &[u8], may_be_partial: bool) -> bool {
    if udp[6] == 0 && udp[7] == 0 {
        return true;
    }
    // The words of the sum are in the machine's order: so is what stands for the pseudo header.
    let pseudo = sum(&ip[12..20])
        + u64::from(u16::from(PROTOCOL_UDP).to_be())
        + u64::from((udp.len() as u16).to_be());
    folded(pseudo + sum(udp)) == u16::MAX
        || (may_be_partial && folded(pseudo) == u16::from_ne_bytes([udp[6], udp[7]]))
}

/// The sum of the words of 16 bits, in the machine's order; an odd byte at the end counts as if a
/// zero followed. Ones' complement sums do not depend on the order of bytes (RFC 1071), so words of
/// 32 bits will do, and the whole is folded at the end.
#[inline]
fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    // At most 2^15 words of 32 bits: no overflow.
    let whole: u64 =
        words.by_ref().map(|w| u64::from(u32::from_ne_bytes([w[0], w[1], w[2], w[3]]))).sum();
    let mut rest = [0; 4];
    rest[..words.remainder().len()].copy_from_slice(words.remainder());
    whole + u64::from(u32::from_ne_bytes(rest))
}

#[inline]
fn folded(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}
