//! The XDP program of a ring: ours go to its socket, everything else to the stack.
//!
//! Assembled by hand, as the classic filter in [`super::bpf`], and stricter than that: what a packet
//! socket gets is a copy, but what goes to an XDP socket is gone for everybody else. So a packet of
//! which the port cannot be told is left to the stack. The kernel's verifier checks each access to
//! the packet against its end.

use crate::os::bpf::{Label, Labels};
use std::net::SocketAddrV4;

/// `struct bpf_insn` (linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Behind the time of arrival in front of a frame, if the program has put it there.
pub const STAMP_MAGIC: u64 = 0x6368_726f_6e69_636c;
/// Of the time and the mark.
pub const STAMP_BYTES: usize = 16;

const LOAD_BYTE: u8 = 0x71;
const LOAD_HALF: u8 = 0x69;
const LOAD_WORD: u8 = 0x61;
const STORE_LONG: u8 = 0x7b;
const LOAD_IMMEDIATE: u8 = 0x18;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD_IMMEDIATE: u8 = 0x07;
const AND: u8 = 0x57;
const JUMP: u8 = 0x05;
const IF_EQUAL: u8 = 0x15;
const IF_NOT_EQUAL: u8 = 0x55;
/// Of the low 32 bits only: the immediate is signed.
const IF_NOT_EQUAL_WORD: u8 = 0x56;
const IF_ABOVE: u8 = 0x2d;
const IF_ANY_BIT: u8 = 0x45;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Source register of [`LOAD_IMMEDIATE`]: the immediate is the descriptor of a map.
const OF_MAP: u8 = 1;

const HELPER_CLOCK: i32 = 5;
const HELPER_REDIRECT: i32 = 51;
const HELPER_ROOM_IN_FRONT: i32 = 54;
const XDP_PASS: i32 = 2;

/// Fields of `struct xdp_md`.
const CONTEXT_DATA: i16 = 0;
const CONTEXT_END: i16 = 4;
const CONTEXT_IN_FRONT: i16 = 8;
const CONTEXT_QUEUE: i16 = 16;

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const ADDRESS: u8 = 4;
const PORT: u8 = 5;
/// Where the header stands that is looked at.
const AT: u8 = 6;
const END: u8 = 7;
const NOW: u8 = 8;
const CONTEXT: u8 = 9;

#[derive(Default)]
struct Assembler {
    program: Vec<Instruction>,
    labels: Labels,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn label(&mut self) -> Label {
        self.labels.add()
    }

    fn place(&mut self, label: Label) {
        self.labels.place(label, self.program.len());
    }

    fn emit(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        self.program.push(Instruction { code, registers: to | from << 4, offset, immediate });
    }

    fn set(&mut self, to: u8, immediate: i32) {
        self.emit(MOVE_IMMEDIATE, to, 0, 0, immediate);
    }

    fn copy(&mut self, to: u8, from: u8) {
        self.emit(MOVE, to, from, 0, 0);
    }

    fn load(&mut self, code: u8, to: u8, from: u8, offset: i16) {
        self.emit(code, to, from, offset, 0);
    }

    /// Loads 64 bits that stand in the program.
    fn load_long(&mut self, to: u8, kind: u8, value: u64) {
        self.emit(LOAD_IMMEDIATE, to, kind, 0, value as i32);
        self.emit(0, 0, 0, 0, (value >> 32) as i32);
    }

    fn jump_if(&mut self, code: u8, of: u8, immediate: i32, to: Label) {
        self.jumps.push((self.program.len(), to));
        self.emit(code, of, 0, 0, immediate);
    }

    /// Goes to the label unless so many bytes from [`AT`] on are in the packet.
    fn need(&mut self, bytes: i32, otherwise: Label) {
        self.copy(R2, AT);
        self.emit(ADD_IMMEDIATE, R2, 0, 0, bytes);
        self.jumps.push((self.program.len(), otherwise));
        self.emit(IF_ABOVE, R2, END, 0, 0);
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (from, to) in self.jumps {
            let distance = self.labels.distance(from, to);
            self.program[from].offset = i16::try_from(distance).expect("programs are short");
        }
        self.program
    }
}

/// A field of a packet, as a load on this machine gives it.
fn wire16(value: u16) -> i32 {
    value.to_be().into()
}

/// The program for these lines, with the map that holds the socket.
pub fn lines_program(lines: &[SocketAddrV4], map: i32) -> Vec<Instruction> {
    let mut to = Assembler::default();
    let (pass, ours) = (to.label(), to.label());
    to.copy(CONTEXT, R1);
    to.load(LOAD_WORD, AT, R1, CONTEXT_DATA);
    to.load(LOAD_WORD, END, R1, CONTEXT_END);
    find_ip(&mut to, pass);
    to.need(20, pass);
    to.load(LOAD_BYTE, R2, AT, 0);
    to.copy(R3, R2);
    to.emit(AND, R3, 0, 0, 0xF0);
    to.jump_if(IF_NOT_EQUAL, R3, 0x40, pass);
    to.load(LOAD_BYTE, R3, AT, 9);
    to.jump_if(IF_NOT_EQUAL, R3, 17, pass);
    to.load(LOAD_WORD, ADDRESS, AT, 16);
    to.load(LOAD_HALF, R3, AT, 6);
    // Only the first part of a datagram has the port; the others may be for anybody at the address.
    to.jump_if(IF_ANY_BIT, R3, wire16(0x1FFF), pass);
    skip_ip(&mut to, pass);
    to.need(4, pass);
    to.load(LOAD_HALF, PORT, AT, 2);
    for line in lines {
        let next = to.label();
        let address = u32::from(*line.ip()).to_be() as i32;
        to.jump_if(IF_NOT_EQUAL_WORD, ADDRESS, address, next);
        to.jump_if(IF_EQUAL, PORT, wire16(line.port()), ours);
        to.place(next);
    }
    to.place(pass);
    to.set(R0, XDP_PASS);
    to.emit(EXIT, 0, 0, 0, 0);
    to.place(ours);
    hand_over(&mut to, map);
    to.finish()
}

/// Finds the beginning of the IPv4 header, behind at most two VLAN tags.
fn find_ip(to: &mut Assembler, pass: Label) {
    let found = to.label();
    for tags in 0..=2 {
        let tag = to.label();
        to.need(14, pass);
        to.load(LOAD_HALF, R3, AT, 12);
        to.jump_if(IF_EQUAL, R3, wire16(0x0800), found);
        if tags < 2 {
            to.jump_if(IF_EQUAL, R3, wire16(0x8100), tag);
            to.jump_if(IF_NOT_EQUAL, R3, wire16(0x88A8), pass);
        } else {
            to.jump_if(JUMP, 0, 0, pass);
        }
        to.place(tag);
        if tags < 2 {
            to.emit(ADD_IMMEDIATE, AT, 0, 0, 4);
        }
    }
    to.place(found);
    to.emit(ADD_IMMEDIATE, AT, 0, 0, 14);
}

/// Goes on behind the IPv4 header, whose first byte is in R2. By steps of known length: to add what
/// stands in a packet to its address takes CAP_PERFMON, which nothing else here does.
fn skip_ip(to: &mut Assembler, pass: Label) {
    let behind = to.label();
    for words in 5..=15 {
        let next = to.label();
        to.jump_if(IF_NOT_EQUAL, R2, 0x40 | words, next);
        to.emit(ADD_IMMEDIATE, AT, 0, 0, 4 * words);
        to.jump_if(JUMP, 0, 0, behind);
        to.place(next);
    }
    to.jump_if(JUMP, 0, 0, pass);
    to.place(behind);
}

/// Puts the time of arrival in front of the frame, if there is room for it, and the frame into the
/// socket. Without a socket the stack gets it.
fn hand_over(to: &mut Assembler, map: i32) {
    let redirect = to.label();
    to.emit(CALL, 0, 0, 0, HELPER_CLOCK);
    to.copy(NOW, R0);
    to.copy(R1, CONTEXT);
    to.set(R2, -(STAMP_BYTES as i32));
    to.emit(CALL, 0, 0, 0, HELPER_ROOM_IN_FRONT);
    to.jump_if(IF_NOT_EQUAL, R0, 0, redirect);
    to.load(LOAD_WORD, AT, CONTEXT, CONTEXT_IN_FRONT);
    to.load(LOAD_WORD, END, CONTEXT, CONTEXT_DATA);
    to.need(STAMP_BYTES as i32, redirect);
    to.emit(STORE_LONG, AT, NOW, 0, 0);
    to.load_long(R3, 0, STAMP_MAGIC);
    to.emit(STORE_LONG, AT, R3, 8, 0);
    to.place(redirect);
    to.load(LOAD_WORD, R2, CONTEXT, CONTEXT_QUEUE);
    to.load_long(R1, OF_MAP, map as u64);
    to.set(R3, XDP_PASS);
    to.emit(CALL, 0, 0, 0, HELPER_REDIRECT);
    to.emit(EXIT, 0, 0, 0, 0);
}
