//! Hostile frames: whatever a packet contains, the parser stays inside of it.
//!
//! What is right is compared with a naive parser on real packets by the tests in Python.

use chronicle_core::packets::lines::Lines;
use chronicle_core::packets::parse::{About, Checksum, Drop, Found, parse};
use proptest::prelude::*;

const LINES: [&str; 3] = ["239.1.1.1:5000", "239.1.1.2:5000", "10.0.0.7:9"];

fn lines() -> Lines {
    Lines::new(&LINES.map(|line| line.parse().unwrap()))
}

/// A frame for the first line, all right but for the checksum, which is left out.
fn frame(tags: usize, options: usize, payload: usize) -> Vec<u8> {
    let mut frame = vec![0x02; 12];
    for _ in 0..tags {
        frame.extend([0x81, 0x00, 0x00, 0x05]);
    }
    frame.extend([0x08, 0x00]);
    let total = (20 + options * 4 + 8 + payload) as u16;
    let mut ip = vec![0x45 + options as u8, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 7, 0x40, 0, 16, 17, 0, 0, 10, 0, 0, 1, 239, 1, 1, 1]);
    ip.extend(vec![0; options * 4]);
    frame.extend(ip);
    frame.extend(40_000_u16.to_be_bytes());
    frame.extend(5000_u16.to_be_bytes());
    frame.extend((8 + payload as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..payload).map(|n| n as u8));
    frame
}

fn about(len_bytes: usize) -> About {
    About { len_bytes, checksum: Checksum::Unknown, tag_taken_out: false }
}

#[test]
fn the_payload_is_found_behind_tags_and_options() {
    for (tags, options, payload) in [(0, 0, 0), (1, 0, 9), (2, 10, 1400), (0, 3, 1)] {
        let frame = frame(tags, options, payload);
        let found = parse(&frame, &about(frame.len()), &lines(), false).unwrap();
        assert_eq!(found, Found { line: 0, start: frame.len() - payload, len_bytes: payload });
    }
}

#[test]
fn a_frame_of_which_only_a_part_was_stored_is_truncated_and_padding_is_not() {
    let whole = frame(0, 0, 100);
    let cut = &whole[..whole.len() - 1];
    assert_eq!(parse(cut, &about(whole.len()), &lines(), false), Err(Drop::Truncated));
    assert!(parse(&whole, &about(whole.len() + 500), &lines(), false).is_ok());
}

#[test]
fn a_checksum_that_the_device_has_verified_or_left_out_is_not_looked_at() {
    let mut frame = frame(0, 0, 9);
    let udp = frame.len() - 9 - 8;
    frame[udp + 7] = 1;
    let mut about = about(frame.len());
    let verdict = |about: &About| parse(&frame, about, &lines(), true);
    // The IP header's own checksum is wrong as well, and is looked at in any case.
    assert_eq!(verdict(&about), Err(Drop::BadChecksum));
    let ip_sum = frame[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let ip_sum: u32 = ip_sum.sum();
    let ip_sum = !((ip_sum & 0xFFFF) + (ip_sum >> 16)) as u16;
    let mut frame = frame.clone();
    frame[24..26].copy_from_slice(&ip_sum.to_be_bytes());
    let verdict = |about: &About| parse(&frame, about, &lines(), true);
    assert_eq!(verdict(&about), Err(Drop::BadChecksum));
    for checksum in [Checksum::Verified, Checksum::NotFilledIn] {
        about.checksum = checksum;
        assert!(verdict(&about).is_ok());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_content_leads_out_of_the_frame(
        shape in (0..=3_usize, 0..=10_usize, 0..80_usize),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        kept in any::<prop::sample::Index>(),
        more in 0..3000_usize,
        tag_taken_out: bool,
        verify: bool,
    ) {
        let mut frame = frame(shape.0, shape.1, shape.2);
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        let whole = frame.len() + more;
        if more % 3 == 0 {
            frame.truncate(kept.index(frame.len() + 1));
        }
        let about = About { tag_taken_out, ..about(whole) };
        if let Ok(found) = parse(&frame, &about, &lines(), verify) {
            prop_assert!(found.start + found.len_bytes <= frame.len());
            prop_assert!(found.start >= 14 + 20 + 8);
            prop_assert!(usize::from(found.line) < LINES.len());
        }
    }

    #[test]
    fn noise_is_survived(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        len_bytes in any::<usize>(),
        verify: bool,
    ) {
        let _ = parse(&noise, &about(len_bytes), &lines(), verify);
    }
}
