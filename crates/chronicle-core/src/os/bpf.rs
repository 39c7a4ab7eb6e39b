//! Programs for the kernel's packet filter, assembled here: a few instructions each, so that no
//! compiler and no loader is needed.

use std::net::SocketAddrV4;

/// An instruction of classic BPF (linux/filter.h).
pub type Instruction = libc::sock_filter;

/// Returned by a filter: keep the whole packet, or drop it.
const KEEP: u32 = u32::MAX;
const DROP: u32 = 0;

const TYPE_IPV4: u32 = 0x0800;
const TYPE_VLAN: u32 = 0x8100;
const TYPE_VLAN_SERVICE: u32 = 0x88A8;
const VLAN_TAGS_MAX: u32 = 2;
const PROTOCOL_UDP: u32 = 17;
/// More fragments follow, or this is not the first.
const FRAGMENT_BITS: u32 = 0x3FFF;

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W;
/// At an address of the packet, and at one behind the index register.
const ABSOLUTE: u32 = libc::BPF_ABS;
const INDEXED: u32 = libc::BPF_IND;
const LOAD_SCRATCH: u32 = libc::BPF_LD | libc::BPF_MEM;
const STORE_SCRATCH: u32 = libc::BPF_ST;
const LOAD_INDEX: u32 = libc::BPF_LDX | libc::BPF_IMM;
const INDEX_FROM_A: u32 = libc::BPF_MISC | libc::BPF_TAX;
const ADD_INDEX: u32 = libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const SHIFT_LEFT: u32 = libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// Where the program keeps what it will compare.
const SCRATCH_ADDRESS: u32 = 0;
const SCRATCH_PORT: u32 = 1;

/// A place in a program that jumps may go to before it is known.
#[derive(Clone, Copy)]
pub(super) struct Label(usize);

/// Where the labels of a program stand.
#[derive(Default)]
pub(super) struct Labels(Vec<Option<usize>>);

impl Labels {
    pub(super) fn add(&mut self) -> Label {
        self.0.push(None);
        Label(self.0.len() - 1)
    }

    pub(super) fn place(&mut self, label: Label, at: usize) {
        self.0[label.0] = Some(at);
    }

    /// Instructions that a jump passes over: it counts from the one behind itself.
    pub(super) fn distance(&self, from: usize, to: Label) -> usize {
        let place = self.0[to.0].expect("every label that is used is placed");
        place.checked_sub(from + 1).expect("jumps go forward")
    }
}

/// A program under construction.
#[derive(Default)]
struct Assembler {
    program: Vec<Instruction>,
    labels: Labels,
    /// Instruction, and where it goes to: if so, and if not.
    branches: Vec<(usize, Label, Label)>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn label(&mut self) -> Label {
        self.labels.add()
    }

    fn place(&mut self, label: Label) {
        self.labels.place(label, self.program.len());
    }

    fn plain(&mut self, code: u32, k: u32) {
        self.program.push(Instruction { code: code as u16, jt: 0, jf: 0, k });
    }

    fn jump(&mut self, to: Label) {
        self.jumps.push((self.program.len(), to));
        self.plain(JUMP, 0);
    }

    fn branch(&mut self, code: u32, k: u32, yes: Label, no: Label) {
        self.branches.push((self.program.len(), yes, no));
        self.plain(code, k);
    }

    /// Goes to `yes` if the comparison holds, else on.
    fn branch_if(&mut self, code: u32, k: u32, yes: Label) {
        let next = self.label();
        self.branch(code, k, yes, next);
        self.place(next);
    }

    /// Goes on if the comparison holds, else to `no`.
    fn branch_unless(&mut self, code: u32, k: u32, no: Label) {
        let next = self.label();
        self.branch(code, k, next, no);
        self.place(next);
    }

    fn finish(mut self) -> Vec<Instruction> {
        let labels = self.labels;
        for (from, to) in self.jumps {
            self.program[from].k = labels.distance(from, to) as u32;
        }
        for (from, yes, no) in self.branches {
            let short = |to| u8::try_from(labels.distance(from, to)).expect("branches are short");
            (self.program[from].jt, self.program[from].jf) = (short(yes), short(no));
        }
        self.program
    }
}

/// A filter that drops all.
pub fn drop_all() -> Vec<Instruction> {
    let mut to = Assembler::default();
    to.plain(RETURN, DROP);
    to.finish()
}

/// A filter that lets pass what may be a datagram for one of the lines: IPv4, UDP, address and port,
/// behind at most two VLAN tags. A packet of which the port cannot be told (a fragment, or a header
/// too short to be one) passes by its address. A load behind the end of a packet drops it.
pub fn lines_filter(lines: &[SocketAddrV4]) -> Vec<Instruction> {
    let mut to = Assembler::default();
    let (drop, other, by_port, by_address) = (to.label(), to.label(), to.label(), to.label());
    // The kernel refuses a program that might load what it has not stored, and does not see that
    // nothing goes on behind a return.
    to.plain(STORE_SCRATCH, SCRATCH_ADDRESS);
    to.plain(STORE_SCRATCH, SCRATCH_PORT);
    find_ip(&mut to, drop);
    to.plain(LOAD_BYTE | INDEXED, 0);
    to.plain(AND, 0xF0);
    to.branch_unless(IF_EQUAL, 0x40, drop);
    to.plain(LOAD_BYTE | INDEXED, 9);
    to.branch_unless(IF_EQUAL, PROTOCOL_UDP, drop);
    to.plain(LOAD_WORD | INDEXED, 16);
    to.plain(STORE_SCRATCH, SCRATCH_ADDRESS);
    to.plain(LOAD_HALF | INDEXED, 6);
    to.branch_if(IF_ANY_BIT, FRAGMENT_BITS, by_address);
    to.plain(LOAD_BYTE | INDEXED, 0);
    to.plain(AND, 0x0F);
    to.branch(IF_AT_LEAST, 5, other, by_address);
    // What follows is longer than a branch reaches.
    to.place(other);
    to.jump(by_port);
    to.place(drop);
    to.plain(RETURN, DROP);
    to.place(by_address);
    compare_addresses(&mut to, lines);
    to.place(by_port);
    compare_ports(&mut to, lines);
    to.finish()
}

/// Finds the beginning of the IPv4 header; the index register then holds it.
fn find_ip(to: &mut Assembler, drop: Label) {
    let found = to.label();
    for tags in 0..=VLAN_TAGS_MAX {
        let (is_ip, next) = (to.label(), to.label());
        let start = 14 + 4 * tags;
        to.plain(LOAD_HALF | ABSOLUTE, start - 2);
        to.branch_if(IF_EQUAL, TYPE_IPV4, is_ip);
        if tags == VLAN_TAGS_MAX {
            to.jump(drop);
        } else {
            to.branch_if(IF_EQUAL, TYPE_VLAN, next);
            to.branch(IF_EQUAL, TYPE_VLAN_SERVICE, next, drop);
        }
        to.place(is_ip);
        to.plain(LOAD_INDEX, start);
        to.jump(found);
        to.place(next);
    }
    to.place(found);
}

/// Ends the program: keeps what is for the address of one of the lines.
fn compare_addresses(to: &mut Assembler, lines: &[SocketAddrV4]) {
    let mut addresses: Vec<u32> = lines.iter().map(|line| (*line.ip()).into()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    to.plain(LOAD_SCRATCH, SCRATCH_ADDRESS);
    for address in addresses {
        let next = to.label();
        to.branch_unless(IF_EQUAL, address, next);
        to.plain(RETURN, KEEP);
        to.place(next);
    }
    to.plain(RETURN, DROP);
}

/// Ends the program: keeps what is for one of the lines. The length of the IP header is in the
/// accumulator, in words.
fn compare_ports(to: &mut Assembler, lines: &[SocketAddrV4]) {
    to.plain(SHIFT_LEFT, 2);
    to.plain(ADD_INDEX, 0);
    to.plain(INDEX_FROM_A, 0);
    to.plain(LOAD_HALF | INDEXED, 2);
    to.plain(STORE_SCRATCH, SCRATCH_PORT);
    for line in lines {
        let next = to.label();
        to.plain(LOAD_SCRATCH, SCRATCH_ADDRESS);
        to.branch_unless(IF_EQUAL, (*line.ip()).into(), next);
        to.plain(LOAD_SCRATCH, SCRATCH_PORT);
        to.branch_unless(IF_EQUAL, line.port().into(), next);
        to.plain(RETURN, KEEP);
        to.place(next);
    }
    to.plain(RETURN, DROP);
}
