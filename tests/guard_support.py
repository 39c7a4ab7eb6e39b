"""C code for guarded threads: compiled once per run, called by address through `GuardTrial`."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from chronicle._core import GuardTrial
from chronicle.hot.guard import GuardReport

SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* Each returns what the call returned, or minus errno. */
#define RESULT(call) do { int64_t rc = (int64_t)(call); return rc == -1 ? -errno : rc; } while (0)

int64_t seed_getpid(void *a) { return getpid(); } /* It knows no errors. */
int64_t seed_clock_gettime(void *a) {
    struct timespec t;
    RESULT(syscall(SYS_clock_gettime, 0, &t));
}
int64_t seed_write(void *a) { RESULT(write((int)(intptr_t)a, "hello", 5)); }
int64_t seed_read(void *a) { char c[4]; RESULT(read((int)(intptr_t)a, c, 4)); }
int64_t seed_openat(void *a) {
    int fd = open("/nowhere/at/all", O_RDONLY);
    return fd < 0 ? -errno : fd;
}
static void *const map_at = (void *)0x5a5a00000000;
int64_t seed_mmap(void *a) {
    void *p = mmap(map_at, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    RESULT(p == map_at ? 77 : (intptr_t)p);
}
int64_t seed_munmap(void *a) { RESULT(munmap(map_at, 4096)); }
int64_t seed_futex(void *a) {
    uint32_t word = 1;
    RESULT(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0));
}
int64_t seed_clock_nanosleep(void *a) {
    struct timespec t = {0, 1000};
    return -clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
}
int64_t seed_sched_yield(void *a) { RESULT(sched_yield()); }
int64_t seed_getrandom(void *a) { char c[8]; RESULT(getrandom(c, 8, 0)); }
int64_t seed_ioctl(void *a) { struct termios t; RESULT(ioctl((int)(intptr_t)a, TCGETS, &t)); }
int64_t seed_madvise(void *a) { RESULT(madvise(NULL, 0, MADV_NORMAL)); }

/* The call site must be ours, and so must the caller. */
static __attribute__((noinline)) int64_t hidden_call(void) {
    int64_t rc;
#if defined(__x86_64__)
    __asm__ volatile("syscall" : "=a"(rc) : "0"(SYS_getppid) : "rcx", "r11", "memory");
#else
    register int64_t x8 __asm__("x8") = SYS_getppid;
    register int64_t x0 __asm__("x0");
    __asm__ volatile("svc #0" : "=r"(x0) : "r"(x8) : "memory");
    rc = x0;
#endif
    return rc;
}
int64_t own_instruction(void *a) { return hidden_call() + 0; }

int64_t none(void *a) {
    volatile uint64_t sum = 0;
    for (uint64_t i = 0; i < (uint64_t)(uintptr_t)a; i++) sum += i;
    return (int64_t)sum;
}

int64_t many_getppid(void *a) {
    for (intptr_t i = 0; i < (intptr_t)a; i++) syscall(SYS_getppid);
    return (intptr_t)a;
}

/* Words that Python reads and writes while the thread runs. */
struct words { volatile int64_t go, progress, errors; };

/* Spins until go is 1. */
int64_t wait_for_go(void *a) {
    struct words *w = a;
    w->progress = 1;
    while (!w->go) ;
    return 5;
}

/* Calls until go is 1, and counts calls that did not do what they should. */
int64_t call_until_go(void *a) {
    struct words *w = a;
    pid_t parent = (pid_t)syscall(SYS_getppid);
    while (!w->go) {
        w->errors += syscall(SYS_getppid) != parent;
        w->progress++;
    }
    return w->errors;
}

/* Heap: n times malloc, calloc, realloc, and one free for each pair. */
static void *volatile sink;
int64_t use_heap(void *a) {
    for (intptr_t i = 0; i < (intptr_t)a; i++) {
        sink = malloc(10);
        sink = realloc(sink, 20);
        free(sink);
        sink = calloc(1, 10);
        free(sink);
    }
    return 0;
}

/* Touches n pages that were not there. */
int64_t touch_pages(void *a) {
    size_t len = (size_t)(uintptr_t)a * 4096;
    volatile char *p = mmap(NULL, len, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise((void *)p, len, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < len; i += 4096) p[i] = 1;
    return munmap((void *)p, len);
}

/* A thread without a guard that runs the function it is given between go and done. */
struct plain {
    int64_t (*function)(void *);
    void *argument;
    volatile int64_t thread_id, go, done, end;
};
static void *plain_thread(void *p) {
    struct plain *plain = p;
    plain->thread_id = syscall(SYS_gettid);
    while (!plain->go) ;
    plain->function(plain->argument);
    plain->done = 1;
    while (!plain->end) ;
    return NULL;
}
int64_t start_plain(struct plain *plain) {
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, plain_thread, plain);
    if (rc == 0) pthread_detach(thread);
    return rc;
}

int64_t try_fork(void *a) {
    pid_t child = fork();
    if (child == 0) _exit(1);
    return child < 0 ? -errno : child;
}
static void *nothing(void *a) { return a; }
int64_t try_thread(void *a) {
    pthread_t thread;
    return -pthread_create(&thread, NULL, nothing, NULL);
}
int64_t try_exec(void *a) {
    char *argv[] = {"true", NULL};
    execv("/bin/true", argv);
    return -errno;
}

int64_t use_stdio(void *a) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    int64_t lines = 0;
    if (!file) return -errno;
    while (fgets(line, sizeof line, file)) lines++;
    fclose(file);
    return lines > 10;
}

/* Two threads and a lock: `hold` is who has it first. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static volatile int64_t is_set;

int64_t lock(void *a) { return pthread_mutex_lock(&mutex); }
int64_t unlock(void *a) { return pthread_mutex_unlock(&mutex); }

/* Takes the lock that somebody else holds, and gives it back. */
int64_t take_lock(void *a) {
    struct words *w = a;
    w->progress = 1;
    return pthread_mutex_lock(&mutex) + pthread_mutex_unlock(&mutex);
}

/* Holds the lock until go is 1, and gives it to who waits for it. */
int64_t hold_lock(void *a) {
    struct words *w = a;
    pthread_mutex_lock(&mutex);
    w->progress = 1;
    while (!w->go) ;
    return pthread_mutex_unlock(&mutex);
}

int64_t clear_condition(void *a) { return is_set = 0; }
int64_t set_condition(void *a) {
    pthread_mutex_lock(&mutex);
    is_set = 1;
    int64_t rc = pthread_cond_broadcast(&condition);
    pthread_mutex_unlock(&mutex);
    return rc;
}
int64_t wait_for_condition(void *a) {
    struct words *w = a;
    int64_t rc = 0;
    pthread_mutex_lock(&mutex);
    w->progress = 1;
    while (!is_set && rc == 0) rc = pthread_cond_wait(&condition, &mutex);
    pthread_mutex_unlock(&mutex);
    return rc;
}

int64_t abort_process(void *a) { abort(); }
int64_t crash(void *a) { return *(volatile int64_t *)8; }

int64_t exit_process(void *a) { exit((int)(intptr_t)a); }
"""


@cache
def library() -> ctypes.CDLL:
    """Compile the code above. The file stays to the end of the run: reports read its symbols."""
    folder = tempfile.mkdtemp(prefix="chronicle-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source, target = Path(folder, "seeds.c"), Path(folder, "seeds.so")
    source.write_text(SOURCE)
    subprocess.run(
        ["cc", "-O1", "-g", "-fPIC", "-shared", "-pthread", "-o", target, source], check=True
    )
    return ctypes.CDLL(str(target))


def address(name: str) -> int:
    """Address of a function of the library."""
    found = ctypes.cast(getattr(library(), name), ctypes.c_void_p).value
    assert found
    return found


class Words(ctypes.Structure):
    """`struct words`: how Python and a running C function talk."""

    _fields_ = (
        ("go", ctypes.c_int64),
        ("progress", ctypes.c_int64),
        ("errors", ctypes.c_int64),
    )


class Plain(ctypes.Structure):
    """`struct plain`: a thread without a guard, and what it does between `go` and `done`."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("argument", ctypes.c_void_p),
        ("thread_id", ctypes.c_int64),
        ("go", ctypes.c_int64),
        ("done", ctypes.c_int64),
        ("end", ctypes.c_int64),
    )


def start(
    name: str, argument: int = 0, *, mode: str = "observe", capacity: int = 256
) -> GuardTrial:
    return GuardTrial(address(name), argument, mode=mode, capacity=capacity)


def run(
    name: str, argument: int = 0, *, mode: str = "observe", capacity: int = 256
) -> tuple[int, list[GuardReport], GuardTrial]:
    """Run a function to its end on a guarded thread: its result, the reports, the trial."""
    trial = start(name, argument, mode=mode, capacity=capacity)
    result = trial.join()
    return result, [GuardReport.from_native(report) for report in trial.drain()], trial
