//! What needs a process of its own: this binary, asked for one ignored test.

use crate::support::*;
use chronicle_core::hot::guard::{Guard, GuardMode};
use chronicle_core::os::process::block_signals;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

fn run_child(name: &str) -> (ExitStatus, String) {
    crate::support::run_child(module_path!(), name)
}

/// Puts a filter on this thread that is not ours: it traps getppid, or (`all`) everything.
fn foreign_filter(all: bool) {
    foreign_filter_with(all, 5);
}

fn foreign_filter_with(all: bool, data: u32) {
    put_filter(all, libc::SYS_getppid, libc::SECCOMP_RET_TRAP | data);
}

/// What becomes of calls of that number, or of all.
fn put_filter(all: bool, number: i64, action: u32) {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let trap = op(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    let some = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number as u32),
        trap,
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let every = [trap];
    let filter: &[libc::sock_filter] = if all { &every } else { &some };
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let rc = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program);
        assert_eq!(rc, 0);
    }
}

static FOREIGN: AtomicI64 = AtomicI64::new(0);

extern "C" fn foreign_handler(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: as the kernel passed them.
    unsafe {
        FOREIGN.store(i64::from((*info).si_errno) << 32 | i64::from((*info).si_code), SeqCst);
        let context = &mut *context.cast::<libc::ucontext_t>();
        #[cfg(target_arch = "x86_64")]
        {
            context.uc_mcontext.gregs[libc::REG_RAX as usize] = 4711;
        }
        #[cfg(target_arch = "aarch64")]
        {
            context.uc_mcontext.regs[0] = 4711;
        }
    }
}

child!(child_previous_handler, {
    // SAFETY: plain data; a handler that stores.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = foreign_handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()), 0);
    }
    let outcome = guarded(GuardMode::Observe, 8, |_| call(libc::SYS_getppid, [0; 6]));
    assert_eq!(outcome.reports.len(), 1);
    assert_eq!(FOREIGN.load(SeqCst), 0, "a call of a guarded thread is not the other handler's");
    std::thread::spawn(|| {
        foreign_filter(false);
        assert_eq!(call(libc::SYS_getppid, [0; 6]), Ok(4711));
        assert_eq!(FOREIGN.load(SeqCst), 5 << 32 | 1);
    })
    .join()
    .unwrap();
    // Even if it marks its traps as we mark ours, for whatever place.
    for data in (0..256).map(|place| 0xC700 + place) {
        std::thread::spawn(move || {
            foreign_filter_with(false, data);
            assert_eq!(call(libc::SYS_getppid, [0; 6]), Ok(4711));
            assert_eq!(FOREIGN.load(SeqCst), i64::from(data) << 32 | 1);
        })
        .join()
        .unwrap();
    }
    // A signal that somebody sent.
    FOREIGN.store(-1, SeqCst);
    // SAFETY: sends a signal to this thread.
    unsafe { libc::raise(libc::SIGSYS) };
    assert_ne!(FOREIGN.load(SeqCst), -1);
    // On a guarded thread as well.
    FOREIGN.store(-1, SeqCst);
    guarded(GuardMode::Observe, 8, |_| {
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGSYS) }
    });
    assert_ne!(FOREIGN.load(SeqCst), -1);
    exit(42)
});

#[test]
fn the_handler_that_was_there_before_is_called_for_what_is_not_ours() {
    let (status, text) = run_child("child_previous_handler");
    assert_eq!(status.code(), Some(42), "{text}");
}

child!(child_foreign_trap_without_handler, {
    guarded(GuardMode::Observe, 8, |_| ());
    std::thread::spawn(|| {
        foreign_filter(false);
        let _ = call(libc::SYS_getppid, [0; 6]);
        exit(1)
    })
    .join()
    .unwrap();
});

#[test]
fn a_trap_of_another_filter_without_a_handler_kills_the_process_as_without_a_guard() {
    let (status, text) = run_child("child_foreign_trap_without_handler");
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{text}");
}

child!(child_foreign_trap_of_everything, {
    guarded(GuardMode::Observe, 8, |_| ());
    std::thread::spawn(|| {
        foreign_filter(true);
        let _ = call(libc::SYS_getppid, [0; 6]);
    })
    .join()
    .unwrap();
});

#[test]
fn a_filter_that_traps_every_call_does_not_hang_the_handler() {
    let (status, text) = run_child("child_foreign_trap_of_everything");
    assert_eq!(status.signal(), Some(libc::SIGILL), "{text}");
}

child!(child_sent_signal, {
    guarded(GuardMode::Observe, 8, |_| ());
    // SAFETY: sends a signal to this thread.
    unsafe { libc::raise(libc::SIGSYS) };
    exit(1)
});

#[test]
fn a_sigsys_that_somebody_sends_kills_the_process_as_without_a_guard() {
    let (status, text) = run_child("child_sent_signal");
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{text}");
}

child!(child_handler_taken_over, {
    guarded(GuardMode::Observe, 8, |_| ());
    // SAFETY: plain data; a handler that stores.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = foreign_handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()), 0);
    }
    let guard = Guard::new(GuardMode::Observe, 8).unwrap();
    let error = std::thread::spawn(move || guard.arm().map(drop)).join().unwrap().unwrap_err();
    assert!(error.to_string().contains("another library has taken over SIGSYS"), "{error}");
    // SAFETY: the default action is no handler that could be in a chain: it is replaced.
    unsafe { libc::signal(libc::SIGSYS, libc::SIG_DFL) };
    let outcome = guarded(GuardMode::Observe, 8, |_| call(libc::SYS_getppid, [0; 6]).is_ok());
    assert!(outcome.value && outcome.reports.len() == 1);
    exit(42)
});

#[test]
fn arming_after_another_library_took_sigsys_is_an_error_that_says_so() {
    let (status, text) = run_child("child_handler_taken_over");
    assert_eq!(status.code(), Some(42), "{text}");
}

/// A guarded thread that spins, in each mode, and the process ends under it.
fn exit_under(mode: GuardMode, by_return: bool) {
    let guard = Guard::new(mode, 8).unwrap();
    let (ready, is_ready) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _blocked = block_signals();
        ready.send(()).unwrap();
        drop(ready);
        let _armed = guard.arm().unwrap();
        loop {
            std::hint::spin_loop();
        }
    });
    is_ready.recv().unwrap();
    std::thread::sleep(Duration::from_millis(5));
    if !by_return {
        // SAFETY: as `return` from main: runs the exit handlers.
        unsafe { libc::exit(42) };
    }
    exit(42)
}

child!(child_exit_off, exit_under(GuardMode::Off, false));
child!(child_exit_observe, exit_under(GuardMode::Observe, false));
child!(child_exit_enforce, exit_under(GuardMode::Enforce, false));
child!(child_hard_exit_enforce, exit_under(GuardMode::Enforce, true));

#[test]
fn the_process_ends_under_a_guarded_thread_in_every_mode() {
    for name in
        ["child_exit_off", "child_exit_observe", "child_exit_enforce", "child_hard_exit_enforce"]
    {
        let (status, text) = run_child(name);
        assert_eq!(status.code(), Some(42), "{name}: {text}");
    }
}

/// The guarded thread itself ends the process, which the filter lets pass.
fn exit_from_guarded(mode: GuardMode) {
    let guard = Guard::new(mode, 8).unwrap();
    std::thread::spawn(move || {
        let _armed = guard.arm().unwrap();
        exit(43)
    })
    .join()
    .unwrap();
}

child!(child_exits_itself_observe, exit_from_guarded(GuardMode::Observe));
child!(child_exits_itself_enforce, exit_from_guarded(GuardMode::Enforce));

#[test]
fn a_guarded_thread_can_end_the_process() {
    for name in ["child_exits_itself_observe", "child_exits_itself_enforce"] {
        let (status, text) = run_child(name);
        assert_eq!(status.code(), Some(43), "{name}: {text}");
    }
}

child!(child_forked, {
    let guard = Guard::new(GuardMode::Observe, 8).unwrap();
    let (ready, is_ready) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _armed = guard.arm().unwrap();
        ready.send(()).unwrap();
        loop {
            std::hint::spin_loop();
        }
    });
    is_ready.recv().unwrap();
    // SAFETY: the child makes calls of the C library that are allowed there, and threads, which
    // glibc allows in practice.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            // The table still holds the parent's thread, whose place is free here.
            let outcome = guarded(GuardMode::Observe, 8, |_| call(libc::SYS_getppid, [0; 6]));
            let unfiltered = seccomp_mode() == 0;
            exit(if outcome.reports.len() == 1 && unfiltered { 44 } else { 1 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        exit(libc::WEXITSTATUS(status))
    }
});

#[test]
fn a_process_forked_beside_a_guarded_thread_is_free_and_can_guard_its_own() {
    let (status, text) = run_child("child_forked");
    assert_eq!(status.code(), Some(44), "{text}");
}

/// By the 32-bit way into the kernel, with a number of the 32-bit table (20 is getpid).
#[cfg(target_arch = "x86_64")]
fn call_32_bit(number: i64) -> i64 {
    let result: i64;
    // SAFETY: the call takes nothing and changes the registers that are named; the two that the
    // compiler keeps for itself are put back.
    unsafe {
        std::arch::asm!(
            "push rbx", "push rbp", "mov ebx, 11", "mov ebp, 16", "int 0x80", "pop rbp", "pop rbx",
            inout("rax") number => result, in("rcx") 12_u64, in("rdx") 13_u64, in("rsi") 14_u64,
            in("rdi") 1_u64 << 32 | 15,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result
}

#[cfg(target_arch = "x86_64")]
child!(child_32_bit, {
    // Ends by a signal here where the kernel has no such way.
    assert_eq!(call_32_bit(20), i64::from(std::process::id()));
    for mode in BOTH {
        let outcome = guarded(mode, 8, |guard| (call_32_bit(20), guard.must_stop()));
        let refused = -i64::from(libc::EPERM);
        // umask, whose number is that of a call which may come from anywhere.
        assert_eq!(guarded(mode, 8, |_| call_32_bit(libc::SYS_exit)).value, refused);
        assert_eq!(outcome.value, (refused, mode == GuardMode::Enforce));
        let [report] = outcome.reports[..] else { panic!("{:?}", outcome.reports) };
        assert_eq!((report.number, report.arch), (20, 0x4000_0003));
        assert_eq!(report.args, [11, 12, 13, 14, 15, 16]);
        assert_eq!(report.action, chronicle_core::hot::guard::GuardAction::Refused);
    }
    exit(42)
});

#[cfg(target_arch = "x86_64")]
#[test]
fn a_32_bit_call_is_refused_in_both_modes_since_its_number_means_another_call() {
    let (status, text) = run_child("child_32_bit");
    if status.signal() == Some(libc::SIGSEGV) {
        eprintln!("skipped: this kernel makes no 32-bit calls (CONFIG_IA32_EMULATION)");
        return;
    }
    assert_eq!(status.code(), Some(42), "{text}");
}

child!(child_copies_forbidden, {
    extern "C" fn call_in_handler(_: i32) {
        call(libc::SYS_getppid, [0; 6]).unwrap();
    }
    handle(libc::SIGUSR1, call_in_handler, libc::SA_ONSTACK);
    let guard = Guard::new(GuardMode::Observe, 8).unwrap();
    let on_thread = Arc::clone(&guard);
    std::thread::spawn(move || {
        let forbidden = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        put_filter(false, libc::SYS_process_vm_readv, forbidden);
        let _armed = on_thread.arm().unwrap();
        // Emulated, so it reads memory of the caller.
        let usr2 = 1_u64 << (libc::SIGUSR2 - 1);
        let block = [libc::SIG_BLOCK as usize, at(&usr2), 0, 8, 0, 0];
        assert_eq!(call(libc::SYS_rt_sigprocmask, block), Ok(0));
        let args = [std::process::id() as usize, thread_id(), libc::SIGUSR1 as usize, 0, 0, 0];
        assert_eq!(call(libc::SYS_tgkill, args), Ok(0));
    })
    .join()
    .unwrap();
    let mut found = Vec::new();
    guard.drain(|report| {
        found.push((i64::from(report.number), report.stack.iter().any(|word| *word != 0)));
    });
    // The handler's call came from another stack than the thread's own.
    let expected = [
        (libc::SYS_rt_sigprocmask, true),
        (libc::SYS_getpid, true),
        (libc::SYS_gettid, true),
        (libc::SYS_tgkill, true),
        (libc::SYS_getppid, false),
    ];
    assert_eq!(found, expected);
    exit(42)
});

#[test]
fn where_copies_are_forbidden_only_the_thread_s_own_stack_is_read() {
    let (status, text) = run_child("child_copies_forbidden");
    assert_eq!(status.code(), Some(42), "{text}");
}
