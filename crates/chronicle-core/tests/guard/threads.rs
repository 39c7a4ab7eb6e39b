//! Whose calls are concerned, and how guarded threads end.

use crate::support::*;
use chronicle_core::hot::guard::{Guard, GuardMode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

#[test]
fn other_threads_are_not_filtered() {
    let outcome = guarded(GuardMode::Enforce, 8, |_| {
        static GO: AtomicU32 = AtomicU32::new(0);
        GO.store(1, SeqCst);
    });
    assert!(outcome.reports.is_empty());
    assert_eq!(seccomp_mode(), 0);
    std::thread::spawn(|| assert_eq!(seccomp_mode(), 0)).join().unwrap();
}

#[test]
fn a_guarded_thread_ends_cleanly_in_every_mode_with_its_destructors() {
    struct Noisy(std::sync::mpsc::Sender<u32>);
    impl Drop for Noisy {
        fn drop(&mut self) {
            std::fs::metadata("/").unwrap();
            self.0.send(1).unwrap();
        }
    }
    thread_local! {
        static LAST: std::cell::RefCell<Option<Noisy>> = const { std::cell::RefCell::new(None) };
    }
    for mode in [GuardMode::Off, GuardMode::Observe, GuardMode::Enforce] {
        let (send, receive) = std::sync::mpsc::channel();
        let outcome = guarded(mode, 8, move |_| LAST.set(Some(Noisy(send))));
        assert_eq!(receive.recv(), Ok(1));
        assert!(outcome.reports.is_empty(), "what comes after the guard is not its business");
    }
}

#[test]
fn a_thread_that_ends_while_still_guarded_ends_cleanly() {
    for mode in BOTH {
        let guard = Guard::new(mode, 64).unwrap();
        let on_thread = Arc::clone(&guard);
        std::thread::spawn(move || std::mem::forget(on_thread.arm().unwrap())).join().unwrap();
        // Its place is taken over, and its supervisor freed, by some later thread.
        assert!(guard.counts().seen > 0);
    }
}

#[test]
fn places_of_ended_threads_are_used_again() {
    for _ in 0..600 {
        let outcome = guarded(GuardMode::Observe, 1, |_| call(libc::SYS_getppid, [0; 6]).is_ok());
        assert!(outcome.value);
        assert_eq!(outcome.reports.len(), 1);
    }
}

#[test]
fn a_thread_can_be_guarded_again_but_not_twice_at_once() {
    let (first, second) =
        (Guard::new(GuardMode::Observe, 8).unwrap(), Guard::new(GuardMode::Enforce, 8).unwrap());
    let (one, two) = (Arc::clone(&first), Arc::clone(&second));
    std::thread::spawn(move || {
        let armed = one.arm().unwrap();
        assert!(two.arm().is_err(), "one thread, two guards");
        drop(armed);
        let mut before = 0;
        one.drain(|_| before += 1);
        call(libc::SYS_getppid, [0; 6]).unwrap();
        assert_eq!(one.drain(|_| ()), 0, "between two guards nothing is reported");
        let armed = two.arm().unwrap();
        assert_eq!(call(libc::SYS_getppid, [0; 6]), Err(libc::EPERM));
        drop(armed);
        call(libc::SYS_getppid, [0; 6]).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(second.counts().seen, 1);
}

#[test]
fn one_guard_serves_one_thread_once() {
    let guard = Guard::new(GuardMode::Observe, 8).unwrap();
    for used in [false, true] {
        let on_thread = Arc::clone(&guard);
        std::thread::spawn(move || assert_eq!(on_thread.arm().is_err(), used)).join().unwrap();
    }
}

#[test]
fn a_bad_capacity_is_refused() {
    for capacity in [0, (1 << 16) + 1, usize::MAX] {
        assert!(Guard::new(GuardMode::Observe, capacity).is_err());
    }
}

#[test]
fn a_thread_without_privileges_can_be_guarded_and_says_what_it_gave_up() {
    let guard = Guard::new(GuardMode::Observe, 8).unwrap();
    let on_thread = Arc::clone(&guard);
    std::thread::spawn(move || {
        // SAFETY: plain data for capset(2), version 3; this thread only.
        unsafe {
            let header = [0x2008_0522_u32, 0];
            let none = [0_u32; 6];
            assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()), 0);
        }
        let armed = on_thread.arm().unwrap();
        assert!(armed.no_new_privs());
        call(libc::SYS_getppid, [0; 6]).unwrap();
        drop(armed);
        // It has not got it back.
        let second = Guard::new(GuardMode::Observe, 8).unwrap();
        assert!(second.arm().unwrap().no_new_privs());
    })
    .join()
    .unwrap();
    assert_eq!(guard.counts().seen, 1);
}
