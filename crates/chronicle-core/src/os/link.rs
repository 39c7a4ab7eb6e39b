//! What the kernel says about a network interface beyond its index: the device behind it, and how
//! many receive queues it has.
//!
//! Asked through a socket (rtnetlink(7), and ethtool's request through the same socket), so that the
//! answer is for the network namespace in which that was opened. `/sys/class/net` would show the one
//! in which it was mounted, where another interface may have the name.

use crate::os::packet::{Socket, check, named_request};
use std::io;
use std::os::fd::AsRawFd;

/// An interface, as far as it matters to how its packets are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where on a bus the device is that is behind the interface (`0000:03:00.0`, `virtio2`). `None`
    /// if there is none, as with veth, and before Linux 5.14.
    pub device: Option<String>,
    /// As many as are in use; where the driver does not tell, as many as there can be.
    pub receive_queues: u32,
}

/// A socket that answers questions about interfaces.
pub struct Questions(Socket);

const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
/// Room for any answer about one interface.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// `struct nlmsghdr`, and `struct ifinfomsg` behind it (linux/rtnetlink.h).
const HEADER_BYTES: usize = 16;
const INFO_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// linux/if_link.h; the crate libc has them for other systems only.
const NUM_RX_QUEUES: u16 = 32;
const PARENT_DEV_NAME: u16 = 56;

/// `struct ethtool_channels` (linux/ethtool.h): the request, four limits, four counts.
const CHANNELS_WORDS: usize = 9;
const ETHTOOL_GCHANNELS: u32 = 0x3C;
const RX_COUNT: usize = 5;
const COMBINED_COUNT: usize = 8;

impl Questions {
    pub fn open() -> io::Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        Socket::open(libc::AF_NETLINK, libc::SOCK_RAW).map(Self)
    }

    /// `None` if there is no interface of the name. Two system calls or three.
    pub fn facts(&self, name: &str) -> io::Result<Option<Facts>> {
        let Some(request) = get_link(name) else { return Ok(None) };
        self.send(&request)?;
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        let len = self.receive(&mut answer)?;
        let Some(mut facts) = parse(&answer[..len])? else { return Ok(None) };
        if let Some(queues) = self.channels(name)? {
            facts.receive_queues = queues;
        }
        Ok(Some(facts))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let fd = self.0.as_fd().as_raw_fd();
        // SAFETY: so many readable bytes, which outlive the call.
        let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        let fd = self.0.as_fd().as_raw_fd();
        loop {
            // SAFETY: so many writable bytes, which outlive the call.
            let got =
                unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_TRUNC) };
            match usize::try_from(got) {
                // With MSG_TRUNC it is the length of the answer, even if there was less room.
                Ok(len) if len <= into.len() => return Ok(len),
                Ok(_) => return Err(bad_answer()),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Receive queues in use, if the driver tells.
    fn channels(&self, name: &str) -> io::Result<Option<u32>> {
        let Some(mut request) = named_request(name) else { return Ok(None) };
        let mut channels = [0_u32; CHANNELS_WORDS];
        channels[0] = ETHTOOL_GCHANNELS;
        request.ifr_ifru.ifru_data = channels.as_mut_ptr().cast();
        let fd = self.0.as_fd().as_raw_fd();
        // SAFETY: the request names a structure of the length that the command in it stands for;
        // both outlive the call.
        let rc = unsafe { libc::ioctl(fd, libc::SIOCETHTOOL as libc::Ioctl, &raw mut request) };
        match check(rc) {
            Ok(_) => {
                let queues = channels[RX_COUNT].saturating_add(channels[COMBINED_COUNT]);
                Ok((queues != 0).then_some(queues))
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENODEV) => Ok(None),
                _ => Err(error),
            },
        }
    }
}

/// RTM_GETLINK for a name; `None` for what cannot be one.
fn get_link(name: &str) -> Option<Vec<u8>> {
    named_request(name)?;
    let attribute_bytes = ATTRIBUTE_HEADER_BYTES + name.len() + 1;
    let len = HEADER_BYTES + INFO_BYTES + attribute_bytes.next_multiple_of(4);
    let mut request = Vec::with_capacity(len);
    request.extend_from_slice(&(len as u32).to_ne_bytes());
    request.extend_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    request.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Number and sender, neither of which matters to one question with one answer; then an
    // `ifinfomsg` that says nothing.
    request.resize(HEADER_BYTES + INFO_BYTES, 0);
    request.extend_from_slice(&(attribute_bytes as u16).to_ne_bytes());
    request.extend_from_slice(&libc::IFLA_IFNAME.to_ne_bytes());
    request.extend_from_slice(name.as_bytes());
    request.resize(len, 0);
    Some(request)
}

#[cold]
fn bad_answer() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer of the kernel's that makes no sense")
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Reads an answer to RTM_GETLINK. Every length in it is compared with what is there.
fn parse(answer: &[u8]) -> io::Result<Option<Facts>> {
    let len = bytes_at(answer, 0).map(u32::from_ne_bytes).ok_or_else(bad_answer)? as usize;
    let kind = bytes_at(answer, 4).map(u16::from_ne_bytes).ok_or_else(bad_answer)?;
    let answer = answer.get(..len).ok_or_else(bad_answer)?;
    if kind == NLMSG_ERROR {
        let number = bytes_at(answer, HEADER_BYTES).map(i32::from_ne_bytes);
        return match number.map(|number| number.saturating_neg()) {
            Some(libc::ENODEV) => Ok(None),
            Some(number) if number > 0 => Err(io::Error::from_raw_os_error(number)),
            _ => Err(bad_answer()),
        };
    }
    if kind != libc::RTM_NEWLINK {
        return Err(bad_answer());
    }
    let mut facts = Facts::default();
    let mut rest = answer.get(HEADER_BYTES + INFO_BYTES..).ok_or_else(bad_answer)?;
    while let (Some(len), Some(kind)) = (bytes_at(rest, 0), bytes_at(rest, 2)) {
        let len = usize::from(u16::from_ne_bytes(len));
        let value = rest.get(ATTRIBUTE_HEADER_BYTES..len).ok_or_else(bad_answer)?;
        match u16::from_ne_bytes(kind) {
            NUM_RX_QUEUES => {
                let queues = bytes_at(value, 0).map(u32::from_ne_bytes);
                facts.receive_queues = queues.ok_or_else(bad_answer)?;
            }
            PARENT_DEV_NAME => {
                let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
                facts.device = Some(String::from_utf8_lossy(text).into_owned());
            }
            _ => {}
        }
        // The last one need not be padded.
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Some(facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_one_queue_and_no_device_and_an_unknown_name_has_nothing() {
        let questions = Questions::open().unwrap();
        // Twice: what is left of an answer would be the next one.
        for _ in 0..2 {
            let facts = questions.facts("lo").unwrap();
            assert_eq!(facts, Some(Facts { device: None, receive_queues: 1 }));
            for name in ["no-such-one", "a-name-that-is-too-long", "", "a\0b"] {
                assert_eq!(questions.facts(name).unwrap(), None, "{name:?}");
            }
        }
    }

    fn answer(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut answer = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        answer.extend_from_slice(&kind.to_ne_bytes());
        answer.resize(HEADER_BYTES, 0);
        answer.extend_from_slice(body);
        answer
    }

    fn link(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; INFO_BYTES];
        for (kind, value) in attributes {
            body.extend_from_slice(&((ATTRIBUTE_HEADER_BYTES + value.len()) as u16).to_ne_bytes());
            body.extend_from_slice(&kind.to_ne_bytes());
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        answer(libc::RTM_NEWLINK, &body)
    }

    #[test]
    fn device_and_queues_are_found_among_other_attributes() {
        let queues = 63_u32.to_ne_bytes();
        let bytes = link(&[
            (3, b"eth1\0"),
            (NUM_RX_QUEUES, &queues),
            (200, &[]),
            (PARENT_DEV_NAME, b"0000:03:00.0\0"),
        ]);
        let device = Some("0000:03:00.0".to_owned());
        assert_eq!(parse(&bytes).unwrap(), Some(Facts { device, receive_queues: 63 }));
    }

    #[test]
    fn answers_that_end_too_early_or_lie_about_their_lengths_are_refused() {
        let whole = link(&[(NUM_RX_QUEUES, &1_u32.to_ne_bytes()), (PARENT_DEV_NAME, b"virtio2\0")]);
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "{len}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 7, 0x7F, 0xFF] {
                let mut bent = whole.clone();
                bent[at] = value;
                // It need only come back.
                let _ = parse(&bent);
            }
        }
        assert!(parse(&link(&[(NUM_RX_QUEUES, &[1, 0])])).is_err());
        assert!(parse(&answer(NLMSG_ERROR, &[])).is_err());
        assert!(parse(&answer(NLMSG_ERROR, &i32::MIN.to_ne_bytes())).is_err());
        assert!(parse(&answer(99, &[0; 32])).is_err());
        assert_eq!(parse(&answer(NLMSG_ERROR, &(-libc::ENODEV).to_ne_bytes())).unwrap(), None);
        let refused = parse(&answer(NLMSG_ERROR, &(-libc::EPERM).to_ne_bytes())).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    }
}
