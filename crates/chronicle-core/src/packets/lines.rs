//! Lines: which datagrams are ours.

use crate::error::{Error, Result};
use std::net::{Ipv4Addr, SocketAddrV4};

/// More would not fit into the kernel's filter (4,096 instructions).
pub const LINES_MAX: usize = 256;

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
    /// # Errors
    /// If there are none, too many, one twice, or one that no datagram can be sent to.
    pub fn new(lines: &[SocketAddrV4]) -> Result<Self> {
        if lines.is_empty() || lines.len() > LINES_MAX {
            let expected = format!("1 to {LINES_MAX} pairs of an address and a port");
            return Err(Error::bad("number of lines", lines.len(), expected));
        }
        for (place, line) in lines.iter().enumerate() {
            if line.ip().is_unspecified() || line.ip().is_broadcast() || line.port() == 0 {
                let expected = "a multicast group or an address of this host, and a port from 1";
                return Err(Error::bad("line", line, expected));
            }
            if let Some(first) = lines[..place].iter().position(|other| other == line) {
                let found = format!("{line} at {first} and at {place}");
                return Err(Error::bad("lines", found, "each address and port once"));
            }
        }
        let keys = lines.iter().map(|line| key((*line.ip()).into(), line.port())).collect();
        Ok(Self { lines: lines.into(), keys })
    }

    /// The number of the line, if it is one of ours.
    #[inline(always)]
    pub fn find(&self, address: u32, port: u16) -> Option<u16> {
        let wanted = key(address, port);
        // At most LINES_MAX, which fits.
        self.keys.iter().position(|&key| key == wanted).map(|place| place as u16)
    }

    /// Whether any line has the address.
    pub fn has_address(&self, address: u32) -> bool {
        self.keys.iter().any(|&key| key >> 16 == u64::from(address))
    }

    pub fn as_slice(&self) -> &[SocketAddrV4] {
        &self.lines
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
        let lines =
            Lines::new(&[line("239.1.1.1:5"), line("239.1.1.2:5"), line("239.1.1.1:6")]).unwrap();
        let address = u32::from(Ipv4Addr::new(239, 1, 1, 1));
        assert_eq!(lines.find(address, 5), Some(0));
        assert_eq!(lines.find(address + 1, 5), Some(1));
        assert_eq!(lines.find(address, 6), Some(2));
        assert_eq!(lines.find(address + 1, 6), None);
        assert_eq!(lines.groups().len(), 2);
        assert_eq!(lines.unicast().count(), 0);
    }

    #[test]
    fn lines_that_cannot_work_are_refused_with_a_reason() {
        let many: Vec<_> = (1..=257).map(|port| line(&format!("239.1.1.1:{port}"))).collect();
        for (lines, wanted) in [
            (&[][..], "1 to 256"),
            (&many[..], "found=257"),
            (&[line("0.0.0.0:5")][..], "a multicast group"),
            (&[line("255.255.255.255:5")][..], "a multicast group"),
            (&[line("239.1.1.1:0")][..], "a port from 1"),
            (&[line("10.0.0.1:5"), line("10.0.0.1:5")][..], "at 0 and at 1"),
        ] {
            let text = Lines::new(lines).unwrap_err().to_string();
            assert!(text.contains(wanted), "{text}");
        }
    }
}
