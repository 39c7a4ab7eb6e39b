//! What a handler publishes under replay: kept in memory until it has been compared.
//!
//! Numbers are given as the handler's own writer gave them, because it sees them.

/// A message that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub output: u32,
    pub type_id: u16,
    pub sequence: u64,
    pub timestamp_ns: u64,
    start: usize,
    end: usize,
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct Capture {
    /// By output: the number that is given next; 0 without a writer.
    next: Vec<u64>,
    records: Vec<Appended>,
    bytes: Vec<u8>,
}

impl Capture {
    /// For so many outputs, all without a writer.
    pub fn new(outputs: usize) -> Self {
        Self { next: vec![0; outputs], ..Self::default() }
    }

    /// Whether the output had a writer.
    pub fn takes(&self, output: u32) -> bool {
        self.next.get(output as usize).is_some_and(|&next| next != 0)
    }

    /// The output has a writer from now on that gives this number next, or none (0).
    pub fn set_next(&mut self, output: usize, sequence: u64) {
        self.next[output] = sequence;
    }

    /// Gives the number that the output gives next; 0 without a writer.
    pub fn next(&self, output: usize) -> u64 {
        self.next[output]
    }

    pub(super) fn append(
        &mut self,
        output: u32,
        type_id: u16,
        payload: &[u8],
        timestamp_ns: u64,
    ) -> u64 {
        let next = &mut self.next[output as usize];
        let sequence = *next;
        *next = next.wrapping_add(1);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(payload);
        let end = self.bytes.len();
        self.records.push(Appended { output, type_id, sequence, timestamp_ns, start, end });
        sequence
    }

    /// What was published since the last [`Capture::clear`], oldest first.
    pub fn records(&self) -> &[Appended] {
        &self.records
    }

    pub fn payload(&self, record: &Appended) -> &[u8] {
        &self.bytes[record.start..record.end]
    }

    /// Forgets what was published; numbers go on.
    pub fn clear(&mut self) {
        self.records.clear();
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_as_the_writer_gave_them() {
        let mut capture = Capture::new(2);
        assert!(!capture.takes(0) && !capture.takes(1) && !capture.takes(2));
        capture.set_next(1, 41);
        assert!(capture.takes(1));
        assert_eq!(capture.append(1, 7, b"first", 3), 41);
        assert_eq!(capture.append(1, 8, b"", 4), 42);
        let records = capture.records().to_vec();
        assert_eq!((records[0].sequence, records[0].type_id, records[0].timestamp_ns), (41, 7, 3));
        assert_eq!(
            (capture.payload(&records[0]), capture.payload(&records[1])),
            (&b"first"[..], &b""[..])
        );
        capture.clear();
        assert!(capture.records().is_empty());
        assert_eq!(capture.next(1), 43);
    }
}
