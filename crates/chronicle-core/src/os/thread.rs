//! What a hot thread asks of the kernel about itself, before its loop starts: a core of its own, a
//! name, a real-time policy, memory that stays where it is.
//!
//! Every function acts on the calling thread (or on memory of its process) and may be refused. The
//! error then says what was refused, which privilege is missing and how to get it; whether to go on
//! without is the caller's decision.

use std::io;

/// Longest name of a thread that the kernel keeps (TASK_COMM_LEN is 16, with the final zero).
pub const NAME_LEN_BYTES_MAX: usize = 15;

/// Cores that a mask has room for; the largest kernels are built for 8,192.
const CORES_MAX: usize = 8_192;

type CoreMask = [u64; CORES_MAX / 64];

/// The kernel's id of the calling thread, as in `/proc/self/task`. One system call.
pub fn current_id() -> u32 {
    // SAFETY: no arguments; always succeeds.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// Runs the calling thread on this core only.
///
/// # Errors
/// If the core does not exist, is offline, or is not among those that the process may use.
pub fn pin(core: usize) -> io::Result<()> {
    let mut mask: CoreMask = [0; CORES_MAX / 64];
    if let Some(word) = mask.get_mut(core / 64) {
        *word = 1 << (core % 64);
        // SAFETY: the mask outlives the call and has the length that is given; 0 is this thread.
        let rc = unsafe { libc::sched_setaffinity(0, size_of_val(&mask), mask.as_ptr().cast()) };
        if rc == 0 {
            return Ok(());
        }
    }
    let error = match core / 64 < mask.len() {
        true => io::Error::last_os_error(),
        false => io::Error::from_raw_os_error(libc::EINVAL),
    };
    let usable = affinity().map_or_else(|_| "unknown".to_owned(), |cores| ranges(&cores));
    Err(refused(
        &format!("cannot run the thread on one core: core={core} usable={usable}"),
        "choose a core that is online and in this process's cpuset \
         (systemd: AllowedCPUs=, container: --cpuset-cpus)",
        error,
    ))
}

/// The cores that the calling thread may run on, in ascending order.
pub fn affinity() -> io::Result<Vec<usize>> {
    let mut mask: CoreMask = [0; CORES_MAX / 64];
    // SAFETY: the mask outlives the call and has the length that is given; 0 is this thread.
    let rc = unsafe { libc::sched_getaffinity(0, size_of_val(&mask), mask.as_mut_ptr().cast()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((0..CORES_MAX).filter(|core| mask[core / 64] >> (core % 64) & 1 == 1).collect())
}

/// `0-3,6`: as the kernel writes lists of cores.
fn ranges(cores: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => parts.push((core, core)),
        }
    }
    let texts: Vec<String> = parts
        .iter()
        .map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") })
        .collect();
    texts.join(",")
}

/// Gives the calling thread a name that `top -H` shows: at most 15 bytes of it, cut between
/// characters, and up to the first zero.
pub fn set_name(name: &str) -> io::Result<()> {
    let name = name.split('\0').next().unwrap_or_default();
    let end = (0..=NAME_LEN_BYTES_MAX.min(name.len())).rfind(|&end| name.is_char_boundary(end));
    let mut text = [0_u8; NAME_LEN_BYTES_MAX + 1];
    let bytes = &name.as_bytes()[..end.unwrap_or(0)];
    text[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: PR_SET_NAME reads 16 bytes at most; the text is that long and ends in a zero.
    let rc = unsafe { libc::prctl(libc::PR_SET_NAME, text.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Real-time scheduling: the calling thread runs until it blocks or one of a higher priority (1 to
/// 99) wants the core.
pub fn set_fifo(priority: i32) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameter outlives the call; 0 is this thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &param) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    let what = format!("cannot use SCHED_FIFO: priority={priority}");
    if error.raw_os_error() == Some(libc::EINVAL) {
        return Err(refused(&what, "give a priority of 1 to 99", error));
    }
    let remedy = "grant CAP_SYS_NICE, or raise RLIMIT_RTPRIO to the priority \
                  (systemd: LimitRTPRIO=, shell: ulimit -r)";
    Err(refused(&what, remedy, error))
}

/// The scheduling policy (`SCHED_OTHER` is 0, `SCHED_FIFO` 1) and priority of the calling thread.
pub fn policy() -> io::Result<(i32, i32)> {
    let mut param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter outlives the call; 0 is this thread.
    let policy = unsafe { libc::sched_getscheduler(0) };
    // SAFETY: as above.
    let rc = unsafe { libc::sched_getparam(0, &mut param) };
    if policy < 0 || rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((policy, param.sched_priority))
}

/// Keeps a range in memory and faults it in. Whole pages; empty ranges are no error.
pub fn lock_memory(start: *const u8, len_bytes: usize) -> io::Result<()> {
    // SAFETY: mlock reads no memory of ours; a range that is not mapped is an error.
    if len_bytes == 0 || unsafe { libc::mlock(start.cast(), len_bytes) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit outlives the call.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    let what = format!(
        "cannot lock memory: len_bytes={len_bytes} limit_bytes={}",
        if limit.rlim_cur == libc::RLIM_INFINITY {
            "none".into()
        } else {
            limit.rlim_cur.to_string()
        }
    );
    let remedy = "raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=infinity, shell: ulimit -l unlimited) \
                  or grant CAP_IPC_LOCK";
    Err(refused(&what, remedy, error))
}

/// Locks what the calling thread uses of its stack and `len_bytes` below: the part that a loop
/// which starts here may reach.
pub fn lock_stack(len_bytes: usize) -> io::Result<()> {
    let (start, len) =
        used_and_below(std::ptr::from_ref(&len_bytes) as usize, len_bytes, stack_bounds()?);
    lock_memory(start as *const u8, len)
}

/// From `len_bytes` below an address to the end of the stack. Nothing of it if the address is of
/// another one: sanitizers keep variables elsewhere.
fn used_and_below(here: usize, len_bytes: usize, (low, high): (usize, usize)) -> (usize, usize) {
    if !(low..=high).contains(&here) {
        return (high, 0);
    }
    let start = here.saturating_sub(len_bytes).max(low);
    (start, high - start)
}

/// Faults in the stack below the caller, up to `len_bytes`, but leaves the last 64 KiB above its
/// end alone.
pub fn prefault_stack(len_bytes: usize) -> io::Result<()> {
    let (low, _) = stack_bounds()?;
    let here = std::ptr::from_ref(&len_bytes) as usize;
    touch(len_bytes.min(here.saturating_sub(low + SPARE_BYTES)) / PAGE_BYTES);
    Ok(())
}

/// Clears 16 KiB of stack below the caller: return addresses that earlier calls have left there, and
/// that reports of later calls would show as callers. Makes no system call.
pub fn clear_stack() {
    touch(4);
}

const PAGE_BYTES: usize = 4096;
const SPARE_BYTES: usize = 64 * 1024;

/// One page of stack per call. What is done with the page only has to be more than the optimizer
/// can take away.
#[inline(never)]
fn touch(pages: usize) {
    let mut page = [0_u8; PAGE_BYTES];
    std::hint::black_box(&mut page);
    if pages > 1 {
        touch(pages - 1);
    }
    std::hint::black_box(&page);
}

/// Lowest and one past the highest address of the calling thread's stack, without guard pages.
pub(super) fn stack_bounds() -> io::Result<(usize, usize)> {
    let mut base = std::ptr::null_mut();
    let mut len = 0;
    // SAFETY: the attributes are filled in by the first call, read by the second and freed by the
    // third, and only if the first succeeded.
    unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        let rc = libc::pthread_getattr_np(libc::pthread_self(), &mut attributes);
        if rc != 0 {
            return Err(io::Error::from_raw_os_error(rc));
        }
        libc::pthread_attr_getstack(&attributes, &mut base, &mut len);
        libc::pthread_attr_destroy(&mut attributes);
    }
    Ok((base as usize, base as usize + len))
}

/// Keeps the kind of the error; its text says what failed, why, and what to do.
fn refused(what: &str, remedy: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own, so that the test harness's stays as it is.
    fn on_a_thread(run: impl FnOnce() + Send + 'static) {
        std::thread::spawn(run).join().unwrap();
    }

    #[test]
    fn a_pinned_thread_may_run_on_that_core_only() {
        on_a_thread(|| {
            let last = *affinity().unwrap().last().unwrap();
            pin(last).unwrap();
            assert_eq!(affinity().unwrap(), [last]);
        });
    }

    #[test]
    fn a_core_that_does_not_exist_is_refused_with_the_usable_ones() {
        on_a_thread(|| {
            for core in [CORES_MAX - 1, CORES_MAX, usize::MAX] {
                let before = affinity().unwrap();
                let text = pin(core).unwrap_err().to_string();
                assert!(
                    text.contains(&format!("core={core} usable={}", ranges(&before))),
                    "{text}"
                );
                assert_eq!(affinity().unwrap(), before);
            }
        });
    }

    #[test]
    fn lists_of_cores_read_as_the_kernel_writes_them() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
    }

    #[test]
    fn names_are_cut_to_what_the_kernel_keeps_between_characters() {
        on_a_thread(|| {
            let path = format!("/proc/self/task/{}/comm", current_id());
            for (name, kept) in [
                ("chr-hot:a", "chr-hot:a"),
                ("chr-hot:a-long-name", "chr-hot:a-long-"),
                ("chr-hot:abcdefé", "chr-hot:abcdef"),
                ("a\0b", "a"),
                ("", ""),
            ] {
                set_name(name).unwrap();
                assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{kept}\n"));
            }
        });
    }

    #[test]
    fn a_priority_out_of_range_is_refused_with_the_range() {
        on_a_thread(|| {
            let text = set_fifo(1000).unwrap_err().to_string();
            assert!(text.contains("priority=1000") && text.contains("1 to 99"), "{text}");
            assert_eq!(policy().unwrap().0, libc::SCHED_OTHER);
        });
    }

    #[test]
    fn without_privilege_the_refusal_names_it() {
        on_a_thread(|| {
            // SAFETY: plain data for capset(2), version 3: this thread gives up its effective
            // capabilities; it ends right after.
            unsafe {
                let header = [0x2008_0522_u32, 0];
                let none = [0_u32; 6];
                assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()), 0);
            }
            let text = set_fifo(10).unwrap_err().to_string();
            assert!(text.contains("CAP_SYS_NICE") && text.contains("RLIMIT_RTPRIO"), "{text}");
            let much = 1_usize << 40;
            let text = lock_memory(std::ptr::null(), much).unwrap_err().to_string();
            assert!(text.contains("CAP_IPC_LOCK") && text.contains("RLIMIT_MEMLOCK"), "{text}");
        });
    }

    #[test]
    fn a_prefaulted_stack_takes_no_fault_when_it_is_used() {
        /// Minor faults of this thread: field 10 of proc_pid_stat(5).
        fn faults() -> u64 {
            let stat =
                std::fs::read_to_string(format!("/proc/self/task/{}/stat", current_id())).unwrap();
            stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(7).unwrap().parse().unwrap()
        }
        on_a_thread(|| {
            faults(); // Its own first faults.
            let before = faults();
            prefault_stack(512 * 1024).unwrap();
            let prefaulted = faults();
            touch(100);
            assert!(prefaulted > before, "prefaulting touches pages");
            assert_eq!(faults(), prefaulted);
            // More than there is stops before the guard page.
            prefault_stack(usize::MAX).unwrap();
        });
    }

    #[test]
    fn the_stack_and_a_buffer_can_be_locked() {
        on_a_thread(|| {
            let buffer = vec![1_u8; 8192];
            lock_memory(buffer.as_ptr(), buffer.len()).unwrap();
            lock_memory(std::ptr::null(), 0).unwrap();
            // SAFETY: the range is the one that was locked.
            unsafe { libc::munlock(buffer.as_ptr().cast(), buffer.len()) };
            lock_stack(16 * 1024).unwrap();
        });
    }

    #[test]
    fn what_is_locked_of_a_stack_lies_in_it() {
        let bounds = (0x10_000, 0x20_000);
        assert_eq!(used_and_below(0x1F_000, 0x1000, bounds), (0x1E_000, 0x2000));
        assert_eq!(used_and_below(0x10_800, 0x1000, bounds), (0x10_000, 0x10_000));
        assert_eq!(used_and_below(0x900_000, 0x1000, bounds), (0x20_000, 0));
        assert_eq!(used_and_below(0x20_800, 0x1000, bounds), (0x20_000, 0));
        assert_eq!(used_and_below(0, usize::MAX, bounds), (0x20_000, 0));
        assert_eq!(used_and_below(0x1F_000, usize::MAX, bounds), (0x10_000, 0x10_000));
    }

    #[test]
    fn a_cleared_stack_holds_nothing_of_earlier_calls() {
        #[inline(never)]
        fn leave_words() {
            std::hint::black_box(&mut [LEFT; 1024]);
        }
        const LEFT: usize = 0x5AFE_57AC;
        on_a_thread(|| {
            let here = 0_usize;
            let below = std::ptr::from_ref(&here) as usize - 12 * 1024;
            let count = || {
                let mut words = vec![0_usize; 1024];
                let ours = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: 8192 };
                let theirs = libc::iovec { iov_base: below as *mut _, iov_len: 8192 };
                // SAFETY: the kernel copies from the stack below, which is mapped, into a buffer of
                // that length.
                let copied =
                    unsafe { libc::process_vm_readv(libc::getpid(), &ours, 1, &theirs, 1, 0) };
                assert_eq!(copied, 8192);
                words.iter().filter(|word| **word == LEFT).count()
            };
            prefault_stack(16 * 1024).unwrap();
            leave_words();
            assert!(count() > 100);
            clear_stack();
            assert_eq!(count(), 0);
        });
    }
}
