//! Files below one directory, by descriptor: no path is walked twice, and no symbolic link is
//! followed.

use crate::error::{Error, ErrorKind, Result};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An open directory.
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

fn c_name(name: &str) -> CString {
    CString::new(name).unwrap_or_else(|_| c"\x01".into())
}

fn check(rc: libc::c_int) -> io::Result<libc::c_int> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

impl Dir {
    /// Opens a directory that exists. The last component must not be a symbolic link.
    pub fn open(path: &Path) -> Result<Self> {
        let c_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| Error::bad("path", path.display(), "a path without NUL bytes"))?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: a NUL-terminated path.
        let fd = check(unsafe { libc::open(c_path.as_ptr(), flags) })
            .map_err(|e| Error::io("open directory", path.display().to_string(), e))?;
        // SAFETY: `open` gave us this descriptor, nobody else has it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn display(&self) -> String {
        self.path.display().to_string()
    }

    pub fn join(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    pub fn subdir(&self, name: &str) -> Result<Self> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let fd = self
            .openat(name, flags, 0)
            .map_err(|e| Error::io("open directory", self.join(name), e))?;
        Ok(Self { fd, path: self.path.join(name) })
    }

    /// Makes a directory; it may exist.
    pub fn make_subdir(&self, name: &str, mode: u32) -> Result<()> {
        // SAFETY: a NUL-terminated name below our own descriptor.
        let rc = unsafe { libc::mkdirat(self.fd.as_raw_fd(), c_name(name).as_ptr(), mode) };
        match check(rc) {
            Err(e) if e.raw_os_error() != Some(libc::EEXIST) => {
                Err(Error::io("create directory", self.join(name), e))
            }
            _ => Ok(()),
        }
    }

    fn openat(&self, name: &str, flags: libc::c_int, mode: u32) -> io::Result<OwnedFd> {
        // SAFETY: a NUL-terminated name below our own descriptor.
        let fd = check(unsafe {
            libc::openat(self.fd.as_raw_fd(), c_name(name).as_ptr(), flags, mode)
        })?;
        // SAFETY: `openat` gave us this descriptor, nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub fn open_file(&self, name: &str, writable: bool) -> Result<File> {
        let access = if writable { libc::O_RDWR } else { libc::O_RDONLY };
        self.openat(name, access | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK, 0)
            .map(File::from)
            .map_err(|e| Error::io("open", self.join(name), e))
            .and_then(|file| self.regular(name, file))
    }

    /// A FIFO or a device in the place of a file would block or lie.
    fn regular(&self, name: &str, file: File) -> Result<File> {
        let meta = file.metadata().map_err(|e| Error::io("look at", self.join(name), e))?;
        if meta.is_file() {
            return Ok(file);
        }
        Err(ErrorKind::NotAQueue { path: self.join(name), why: "not a regular file".into() }.into())
    }

    /// Opens for reading and writing; creates the file if it is not there.
    pub fn open_or_create(&self, name: &str, mode: u32) -> Result<File> {
        let flags =
            libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
        self.openat(name, flags, mode)
            .map(File::from)
            .map_err(|e| Error::io("create", self.join(name), e))
            .and_then(|file| self.regular(name, file))
    }

    /// Creates a file that must not exist.
    pub fn create_new(&self, name: &str, mode: u32) -> Result<File> {
        let flags =
            libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        self.openat(name, flags, mode)
            .map(File::from)
            .map_err(|e| Error::io("create", self.join(name), e))
    }

    /// Renames within the directory and replaces what is there.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.rename_with(from, to, 0).map_err(|e| Error::io("rename", self.join(from), e))
    }

    /// Renames within the directory; `false` if the target exists.
    pub fn rename_new(&self, from: &str, to: &str) -> Result<bool> {
        match self.rename_with(from, to, libc::RENAME_NOREPLACE) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(Error::io("rename", self.join(from), e)),
        }
    }

    fn rename_with(&self, from: &str, to: &str, flags: libc::c_uint) -> io::Result<()> {
        let (from, to) = (c_name(from), c_name(to));
        let fd = self.fd.as_raw_fd();
        // SAFETY: NUL-terminated names below our own descriptor.
        check(unsafe { libc::renameat2(fd, from.as_ptr(), fd, to.as_ptr(), flags) })?;
        Ok(())
    }

    /// Removes a file; it may be gone already.
    pub fn remove(&self, name: &str) -> Result<()> {
        // SAFETY: a NUL-terminated name below our own descriptor.
        match check(unsafe { libc::unlinkat(self.fd.as_raw_fd(), c_name(name).as_ptr(), 0) }) {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => {
                Err(Error::io("remove", self.join(name), e))
            }
            _ => Ok(()),
        }
    }

    /// Names of the entries, unordered. Names that are not UTF-8 are not ours and are left out.
    pub fn list(&self) -> Result<Vec<String>> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let entries = std::fs::read_dir(path).map_err(|e| Error::io("list", self.display(), e))?;
        let mut names = Vec::new();
        for entry in entries {
            let name: OsString =
                entry.map_err(|e| Error::io("list", self.display(), e))?.file_name();
            if let Ok(name) = String::from_utf8(name.into_vec()) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Makes renames and removals durable.
    pub fn sync(&self) -> Result<()> {
        // SAFETY: our own descriptor.
        check(unsafe { libc::fsync(self.fd.as_raw_fd()) })
            .map(drop)
            .map_err(|e| Error::io("sync", self.display(), e))
    }

    /// Whether the directory was removed while we hold it.
    pub fn is_removed(&self) -> bool {
        // SAFETY: `stat` is plain data, filled by the call.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: our own descriptor, a valid out pointer.
        let rc = unsafe { libc::fstat(self.fd.as_raw_fd(), &mut stat) };
        rc == 0 && stat.st_nlink == 0
    }
}

/// Whether no directory names the file any more.
pub fn is_unlinked(file: &File) -> bool {
    file.metadata().is_ok_and(|m| m.nlink() == 0)
}

/// Whether two descriptors are of one file.
pub fn is_same(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

pub fn file_len(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// Most bytes that one `fallocate` is asked for. A signal ends the call and undoes it (a tmpfs does
/// so), and Python installs its handlers without SA_RESTART: under a fast timer a long call would
/// never come to its end.
const ALLOCATE_BYTES_MAX: u64 = 4 << 20;

/// What the file takes on its file system.
pub fn allocated_bytes(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks() * 512)
}

/// Whether the file lives in memory.
pub fn is_tmpfs(file: &File) -> io::Result<bool> {
    // SAFETY: `statfs` is plain data, filled by the call.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: our own descriptor, a valid out pointer.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &mut stat) })?;
    Ok(stat.f_type == libc::TMPFS_MAGIC)
}

/// Makes the file `len` bytes long with all blocks allocated, or fails (ENOSPC) with nothing
/// promised.
pub fn allocate(file: &File, len: u64) -> io::Result<()> {
    let mut at = 0;
    while at < len {
        let bytes = (len - at).min(ALLOCATE_BYTES_MAX);
        // SAFETY: our own descriptor.
        let rc = unsafe {
            libc::fallocate(file.as_raw_fd(), 0, at as libc::off_t, bytes as libc::off_t)
        };
        if rc == 0 {
            at += bytes;
            continue;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP) => return write_zeros(file, len),
            _ => return Err(error),
        }
    }
    Ok(())
}

/// For file systems that cannot preallocate (some network file systems): slow, and the same.
fn write_zeros(file: &File, len: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let zeros = vec![0_u8; 1 << 20];
    let mut at = 0;
    while at < len {
        let n = (len - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..n as usize], at)?;
        at += n;
    }
    Ok(())
}

/// An open-file-description lock on one byte of a file, held until dropped or until the process
/// dies.
///
/// A forked child would hold a copy of the description, and with it the lock beyond its parent's
/// death; so the descriptors of all locks are registered and the child closes its copies as it
/// starts.
pub struct ByteLock {
    file: ManuallyDrop<File>,
    byte: i64,
    registered: super::process::CloseInChild,
}

fn flock(kind: libc::c_int, byte: i64) -> libc::flock {
    // SAFETY: `flock` is plain data; `l_pid` must be zero for these locks.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

impl ByteLock {
    /// Takes the lock if it is free; never waits. The file must be open for writing.
    pub fn try_take(file: File, byte: i64) -> io::Result<Result<Self, File>> {
        let lock = flock(libc::F_WRLCK, byte);
        // Before the lock is taken: a child that another thread forks in between would keep it.
        let registered = super::process::CloseInChild::register(file.as_raw_fd())?;
        // SAFETY: our own descriptor, a valid lock description.
        let rc = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
        if rc == 0 {
            return Ok(Ok(Self { file: ManuallyDrop::new(file), byte, registered }));
        }
        let error = io::Error::last_os_error();
        registered.forget();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Ok(Err(file)),
            _ => Err(error),
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for ByteLock {
    fn drop(&mut self) {
        if !self.registered.is_ours() {
            // A forked child: its copy of the descriptor is closed already, the number may be
            // another file now.
            return;
        }
        self.registered.forget();
        let lock = flock(libc::F_UNLCK, self.byte);
        // SAFETY: our own descriptor, a valid lock description.
        unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
        // SAFETY: dropped once, here; not used after.
        unsafe { ManuallyDrop::drop(&mut self.file) };
    }
}

/// Whether somebody holds the lock on this byte. Needs no write access.
pub fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = flock(libc::F_WRLCK, byte);
    // SAFETY: our own descriptor, a valid lock description that the call fills.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) })?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Whether an error means that the disk, the quota or the memory file system is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM | libc::EFAULT | libc::EFBIG)
    )
}

/// Whether an error means that we may not write here.
pub fn is_read_only(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EROFS | libc::EACCES | libc::EPERM))
}

/// The error of a file system that is mounted read-only.
pub fn read_only() -> io::Error {
    io::Error::from_raw_os_error(libc::EROFS)
}
