//! The board: what a child tells, in a mapped page that outlives it.

use chronicle_core::os::map::Map;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Words of the board.
#[derive(Clone, Copy)]
pub enum Word {
    /// The last record whose append has returned.
    Committed,
    /// Around a reader's commit: the sequence number it stores, before and after.
    CursorTried,
    CursorDone,
    /// What a recovery that came to its end has reported.
    Position,
    NextSequence,
    BytesDiscarded,
    SetAside,
}

pub struct Board {
    pub path: PathBuf,
    map: Map,
}

impl Board {
    pub fn open(path: &Path) -> Self {
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(4096).unwrap();
        Self { path: path.to_owned(), map: Map::new(&file, 4096, true).unwrap() }
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        // SAFETY: the page holds 512 words; the base is page-aligned.
        unsafe { &*self.map.base().cast::<AtomicU64>().add(word as usize) }
    }

    pub fn get(&self, word: Word) -> u64 {
        self.word(word).load(SeqCst)
    }

    pub fn set(&self, word: Word, value: u64) {
        self.word(word).store(value, SeqCst);
    }
}
