//! Lines: which datagrams are ours.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Addresses and ports; the number of a line is its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    lines: Box<[SocketAddrV4]>,
    /// The same as `address << 16 | port`: one comparison each.
    keys: Box<[u64]>,
}

fn key(address: u32, port: u16) -> u64 {
    u64::from(address) << 16 | u64::from(port)
}

impl Lines {
    /// Which lines can be is for the caller to say; of one that stands twice the first counts, and
    /// 65,536 have a number.
    pub fn new(lines: &[SocketAddrV4]) -> Self {
        let keys = lines.iter().map(|line| key((*line.ip()).into(), line.port())).collect();
        Self { lines: lines.into(), keys }
    }

    /// The number of the line, if it is one of ours.
    #[inline(always)]
    pub fn find(&self, address: u32, port: u16) -> Option<u16> {
        let wanted = key(address, port);
        // It fits: see `new`.
        self.keys.iter().position(|&key| key == wanted).map(|place| place as u16)
    }

    /// Whether any line has the address.
    pub fn has_address(&self, address: u32) -> bool {
        self.keys.iter().any(|&key| key >> 16 == u64::from(address))
    }

    /// The multicast groups, each once.
    pub fn groups(&self) -> Vec<Ipv4Addr> {
        let mut groups: Vec<_> =
            self.lines.iter().map(|line| *line.ip()).filter(Ipv4Addr::is_multicast).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// The lines that are no multicast groups.
    pub fn unicast(&self) -> impl Iterator<Item = SocketAddrV4> {
        self.lines.iter().filter(|line| !line.ip().is_multicast()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    #[test]
    fn a_line_is_found_by_address_and_port_together() {
        let lines = Lines::new(&[line("239.1.1.1:5"), line("239.1.1.2:5"), line("239.1.1.1:6")]);
        let address = u32::from(Ipv4Addr::new(239, 1, 1, 1));
        assert_eq!(lines.find(address, 5), Some(0));
        assert_eq!(lines.find(address + 1, 5), Some(1));
        assert_eq!(lines.find(address, 6), Some(2));
        assert_eq!(lines.find(address + 1, 6), None);
        assert_eq!(lines.groups().len(), 2);
        assert_eq!(lines.unicast().count(), 0);
    }
}
