//! Shared file mappings.

use crate::os::process;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Of x86-64, and of aarch64 with pages of 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A shared mapping of `len` bytes of a file, or of what a socket shares. Unmapped when dropped.
pub struct Map {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    /// The count of forks at which it was made, if children do not have it.
    not_in_children: Option<u64>,
}

// SAFETY: a `Map` is an address range; what may be done with the bytes from which thread is up to
// the types that are laid over it, and each of those uses atomics or owns the range.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Maps the file; the caller has checked that it is at least `len` bytes long.
    pub fn new(file: &File, len: usize, writable: bool) -> io::Result<Self> {
        Self::of_descriptor(file.as_fd(), len, 0, writable)
    }

    /// Maps what a descriptor stands for, from an offset that is a multiple of the page size.
    pub fn of_descriptor(
        fd: BorrowedFd<'_>,
        len: usize,
        offset: u64,
        writable: bool,
    ) -> io::Result<Self> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe {
            let at = offset as libc::off_t;
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd.as_raw_fd(), at)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(Self { base, len, writable, not_in_children: None })
    }

    /// From now on a forked child has no such mapping: it would keep what is behind it, a socket for
    /// example, open after we have closed it.
    pub fn keep_from_children(&mut self) -> io::Result<()> {
        process::watch_forks();
        // SAFETY: the whole mapping, which is ours; the advice changes no contents.
        let rc = unsafe { libc::madvise(self.base().cast(), self.len, libc::MADV_DONTFORK) };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        self.not_in_children = Some(process::fork_generation());
        Ok(())
    }

    /// Memory of our own, with all its pages. It stays one with that of forked children, so that what
    /// the kernel was told to write into is not copied away under it.
    pub fn shared_memory(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(Self { base, len, writable: true, not_in_children: None })
    }

    #[inline(always)]
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Enters every page into the page table, so that no later access faults. For writable maps the
    /// pages are made writable (and allocated, so a full disk shows here: ENOSPC, ENOMEM or
    /// EFAULT).
    pub fn populate(&self) -> io::Result<()> {
        self.populate_range(0, self.len)
    }

    /// As [`Map::populate`], for the pages of a range; what lies behind the end is ignored.
    pub fn populate_range(&self, offset: usize, len: usize) -> io::Result<()> {
        let page = super::super::layout::PAGE_BYTES;
        let start = (offset / page * page).min(self.len);
        let len = (offset - offset / page * page).saturating_add(len).min(self.len - start);
        let base = self.base().wrapping_add(start);
        let advice =
            if self.writable { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        // SAFETY: the range is ours; populating does not change contents.
        let rc = unsafe { libc::madvise(base.cast(), len, advice) };
        if rc == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
        // Before Linux 5.14 there is no such advice: touch the pages. They are allocated already
        // (fallocate), so this reads only; the first store to each page then costs a minor fault.
        for at in (0..len).step_by(page) {
            // SAFETY: inside the mapping; volatile so that the read is not optimised away.
            unsafe { base.add(at).read_volatile() };
        }
        Ok(())
    }

    /// Asks for large pages, and tells whether the first page became one. They come only from a
    /// tmpfs that was mounted to give them (`huge=advise`, `within_size` or `always`), only while a
    /// file is new, and make populating it many times cheaper.
    pub fn try_huge(&self, file: &File) -> io::Result<bool> {
        if self.len < HUGE_PAGE_BYTES || !super::fs::is_tmpfs(file)? {
            return Ok(false);
        }
        // SAFETY: advice does not change contents. A kernel without large pages refuses it, which
        // shows below.
        unsafe { libc::madvise(self.base().cast(), self.len, libc::MADV_HUGEPAGE) };
        self.populate_range(0, super::super::layout::PAGE_BYTES)?;
        Ok(super::fs::allocated_bytes(file)? >= HUGE_PAGE_BYTES as u64)
    }

    /// Writes the range back and waits for the device.
    pub fn sync(&self, offset: usize, len: usize) -> io::Result<()> {
        let start = offset / 4096 * 4096;
        let end = (offset + len).min(self.len);
        // SAFETY: the range is inside the mapping and page-aligned at its start.
        let rc = unsafe {
            libc::msync(self.base().add(start).cast(), end.saturating_sub(start), libc::MS_SYNC)
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.not_in_children.is_some_and(|made| made != process::fork_generation()) {
            // In a child: something else may be mapped there by now.
            return;
        }
        // SAFETY: the range was mapped by `new`, and whoever lays types over it holds an `Arc` of
        // the owner.
        unsafe { libc::munmap(self.base().cast(), self.len) };
    }
}
