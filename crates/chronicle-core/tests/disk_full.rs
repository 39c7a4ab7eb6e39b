//! File systems that say no: full, read-only, or holding files of somebody else.
//!
//! Each test that needs a file system of its own runs in a child process with its own mount
//! namespace (as root, or in a user namespace); what is mounted there goes when the child goes.
//! Where the kernel allows neither, the test says so and is skipped.

#![allow(clippy::print_stdout)] // Seeds and counts, for who repeats a run.

use chronicle_core::queue::provision::Chores;
use chronicle_core::queue::{inspect, retention};
use chronicle_core::wait::{WaitStrategy, Waited, wait_any};
use chronicle_core::{ErrorKind, Options, Provisioner, Reader, RetentionPolicy, Start, Writer};
use std::ffi::CString;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const OPTIONS: Options =
    Options { segment_bytes: 1 << 16, checksum: true, segments_max: 64, group_readable: false };
const TMPFS_BYTES: u64 = 8 << 16;

// --- A mount namespace for a child ---

const NO_PRIVILEGE: i32 = 78;

/// Runs between fork and exec: a new mount namespace, in a new user namespace if we are not root.
fn unshare_mounts(user: u32, group: u32) -> std::io::Result<()> {
    // SAFETY: a plain system call.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0 {
        return Ok(());
    }
    // SAFETY: as above.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

fn mount(
    source: &str,
    target: &Path,
    kind: &str,
    flags: libc::c_ulong,
    data: &str,
) -> std::io::Result<()> {
    let text = |s: &[u8]| CString::new(s).unwrap();
    let (source, kind, data) =
        (text(source.as_bytes()), text(kind.as_bytes()), text(data.as_bytes()));
    let target = text(target.as_os_str().as_encoded_bytes());
    // SAFETY: NUL-terminated strings.
    let rc = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    };
    if rc == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Mounts a small memory file system on a new directory. Ends the process where that is not
/// allowed.
fn small_file_system() -> PathBuf {
    let path = PathBuf::from(std::env::var_os("CHRONICLE_MOUNT_POINT").unwrap());
    let mounted = mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "")
        .and_then(|()| mount("chronicle", &path, "tmpfs", 0, &format!("size={TMPFS_BYTES}")));
    if let Err(error) = mounted {
        eprintln!("cannot mount: {error}");
        std::process::exit(NO_PRIVILEGE);
    }
    path
}

fn is_child() -> bool {
    std::env::var_os("CHRONICLE_MOUNT_POINT").is_some()
}

/// Runs an ignored test of this binary in its own mount namespace.
fn run_mounted(name: &str) {
    let point = std::env::temp_dir().join(format!("chronicle-mount-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&point).unwrap();
    // SAFETY: no arguments, no failure.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"])
        .env("CHRONICLE_MOUNT_POINT", &point)
        .stdin(Stdio::null());
    // SAFETY: system calls, and short writes to /proc of a process that has one thread and no locks
    // held.
    unsafe { command.pre_exec(move || unshare_mounts(user, group)) };
    let output = command.output();
    std::fs::remove_dir(&point).unwrap();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: no mount namespace here: {error}");
            return;
        }
    };
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(NO_PRIVILEGE) {
        println!("skipped: {text}");
        return;
    }
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stdout));
}

// --- A full disk ---

fn payload(sequence: u64) -> [u8; 512] {
    std::array::from_fn(|i| (sequence as usize * 31 + i) as u8)
}

fn append_until_full(writer: &mut Writer) -> chronicle_core::Error {
    for _ in 0..100_000 {
        let sequence = writer.next_sequence();
        if let Err(error) = writer.append(3, &payload(sequence), Some(sequence)) {
            assert_eq!(writer.next_sequence(), sequence, "a refused append takes no number");
            return error;
        }
    }
    panic!("the disk does not become full");
}

fn assert_full(error: &chronicle_core::Error) {
    assert!(
        matches!(error.kind(), ErrorKind::DiskFull { needed_bytes, .. } if *needed_bytes == OPTIONS.segment_bytes),
        "{error}"
    );
    assert!(error.to_string().contains("nothing was lost"), "{error}");
}

fn read_through(reader: &mut Reader, next: &mut u64, end: u64) {
    while let Some(record) = reader.next().unwrap() {
        assert_eq!(record.raw.sequence, *next);
        assert_eq!(record.payload(), payload(*next));
        *next += 1;
    }
    assert_eq!(*next, end, "everything that was appended is there");
}

fn fill_and_make_room(provisioned: bool) {
    let root = small_file_system();
    let path = root.join("queue");
    let mut writer = Writer::open(&path, &OPTIONS).unwrap();
    let mut reader = Reader::open(&path, Some("r"), Start::Resume).unwrap();
    let provisioner = provisioned.then(|| Provisioner::new().unwrap());
    if let Some(provisioner) = &provisioner {
        provisioner.attach_writer(&writer, Chores::default());
        provisioner.attach_reader(&reader);
    }
    let ballast = root.join("ballast");
    let mut next = 1;
    for round in 0..4 {
        let error = append_until_full(&mut writer);
        assert_full(&error);
        // It stays so, and nothing half-built is left lying about.
        assert_full(&append_until_full(&mut writer));
        if !provisioned {
            let names = std::fs::read_dir(path.join("segments")).unwrap();
            assert!(names.flatten().all(|n| !n.file_name().to_string_lossy().ends_with(".tmp")));
        }
        read_through(&mut reader, &mut next, writer.next_sequence());
        reader.commit();
        if round == 0 {
            // Closing and opening needs no room.
            let epoch = writer.epoch();
            drop(writer);
            writer = Writer::open(&path, &OPTIONS).unwrap();
            assert_eq!((writer.next_sequence(), writer.epoch()), (next, epoch + 1));
            if let Some(provisioner) = &provisioner {
                provisioner.attach_writer(&writer, Chores::default());
            }
            assert_full(&append_until_full(&mut writer));
        }
        // Room is made, once by retention, otherwise by more disk.
        if round == 1 {
            let policy = RetentionPolicy { bytes_max: Some(2 << 16), age_ns_max: None };
            assert!(retention::apply(writer.queue(), &policy).unwrap().segments_deleted > 0);
        } else {
            let size = format!("size={}", TMPFS_BYTES * (2 + round));
            mount("chronicle", &root, "tmpfs", libc::MS_REMOUNT, &size).unwrap();
        }
        let before = writer.next_sequence();
        writer.append(3, &payload(before), Some(before)).unwrap();
    }
    // A batch that meets the full disk in the middle: what came before is published, and the writer
    // says how much.
    std::fs::write(&ballast, []).unwrap();
    let batch: Vec<u8> =
        (0..20_000_u64).flat_map(|i| payload(writer.next_sequence() + i)).collect();
    let first = writer.next_sequence();
    let error = writer.append_many(3, &batch, 512, Some(1)).unwrap_err();
    assert_full(&error);
    assert!(writer.next_sequence() > first);
    read_through(&mut reader, &mut next, writer.next_sequence());
    drop((reader, writer, provisioner));
    let report = inspect::verify(&path, |_, _| {}).unwrap();
    assert!(report.damage.is_empty() && report.next_sequence == next, "{report:?}");
}

#[test]
#[ignore = "run by the driver, in a process of its own"]
fn child_fills_the_disk() {
    if is_child() {
        fill_and_make_room(false);
    }
}

#[test]
#[ignore = "run by the driver, in a process of its own"]
fn child_fills_the_disk_with_a_provisioner() {
    if is_child() {
        fill_and_make_room(true);
    }
}

#[test]
#[ignore = "run by the driver, in a process of its own"]
fn child_opens_on_a_full_disk() {
    if !is_child() {
        return;
    }
    let root = small_file_system();
    let existing = root.join("existing");
    drop(Writer::open(&existing, &OPTIONS).unwrap());
    // Little by little less room: every open succeeds or says that the disk is full, and leaves
    // nothing that a later one trips over.
    let path = root.join("queue");
    let mut outcomes = [0, 0];
    for kept_bytes in (0..3 << 16).step_by(4096) {
        let _ = std::fs::remove_dir_all(&path);
        let ballast = std::fs::File::create(root.join("ballast")).unwrap();
        let used: u64 = 3 << 16;
        // Take what is there, then give back what this round may use.
        let mut len = TMPFS_BYTES - used;
        while chronicle_core::os::fs::allocate(&ballast, len + 4096).is_ok() {
            len += 4096;
        }
        ballast.set_len(len.saturating_sub(kept_bytes)).unwrap();
        match Writer::open(&path, &OPTIONS) {
            Ok(mut writer) => {
                writer.append(1, b"fits", None).unwrap();
                outcomes[0] += 1;
            }
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::DiskFull { .. }),
                    "{kept_bytes}: {error}"
                );
                outcomes[1] += 1;
            }
        }
        // A reader that cannot have a cursor is told the same; one without a name needs no room.
        match Reader::open(&existing, Some(&format!("r{kept_bytes}")), Start::Earliest) {
            Ok(_) => {}
            Err(error) => assert!(matches!(error.kind(), ErrorKind::DiskFull { .. }), "{error}"),
        }
        Reader::open(&existing, None, Start::Earliest).unwrap();
        drop(ballast);
        std::fs::remove_file(root.join("ballast")).unwrap();
        let mut writer = Writer::open(&path, &OPTIONS).unwrap();
        writer.append(1, b"there is room", None).unwrap();
        for entry in std::fs::read_dir(existing.join("readers")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

#[test]
fn a_full_disk_is_a_typed_error_that_loses_nothing_and_goes_away_with_room() {
    run_mounted("child_fills_the_disk");
}

#[test]
fn a_full_disk_with_a_provisioner_is_the_same_error_and_goes_away_with_room() {
    run_mounted("child_fills_the_disk_with_a_provisioner");
}

#[test]
fn opening_on_a_full_disk_is_a_typed_error_at_every_amount_of_room() {
    run_mounted("child_opens_on_a_full_disk");
}

// --- A read-only mount ---

#[test]
#[ignore = "run by the driver, in a process of its own"]
fn child_reads_a_read_only_mount() {
    if !is_child() {
        return;
    }
    let root = small_file_system();
    let (path, view) = (root.join("queue"), root.join("view"));
    std::fs::create_dir(&view).unwrap();
    let mut writer = Writer::open(&path, &OPTIONS).unwrap();
    for sequence in 1..=300 {
        writer.append(3, &payload(sequence), Some(sequence)).unwrap();
    }
    drop(Reader::open(&path, Some("known"), Start::Resume).unwrap());
    let text = path.display().to_string();
    mount(&text, &view, "", libc::MS_BIND, "").unwrap();
    mount("none", &view, "", libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY, "").unwrap();
    // A name does not help: there is nowhere to keep a place. It is a reader all the same.
    for (name, start) in
        [(Some("known"), Start::Resume), (Some("new"), Start::Earliest), (None, Start::Earliest)]
    {
        let mut reader = Reader::open(&view, name, start).unwrap();
        assert!(!reader.is_registered() && !reader.queue().is_writable());
        let mut next = 1;
        read_through(&mut reader, &mut next, 301);
        reader.commit();
        for sequence in [1, 150, 300] {
            reader.seek(Start::Sequence(sequence)).unwrap();
            assert_eq!(reader.next().unwrap().unwrap().raw.sequence, sequence);
        }
    }
    assert!(inspect::verify(&view, |_, _| {}).unwrap().damage.is_empty());
    assert_eq!(inspect::info(&view).unwrap().readers.len(), 1);
    // Waiting works without the doorbell: by looking again and again.
    let mut reader = Reader::open(&view, None, Start::Latest).unwrap();
    let sleep = |reader: &mut Reader, timeout| {
        wait_any(&[reader.wait_target()], WaitStrategy::Sleep, Some(timeout))
    };
    assert_eq!(sleep(&mut reader, Duration::from_millis(5)).unwrap(), Waited::TimedOut);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            writer.append(3, &payload(301), Some(301)).unwrap();
        });
        assert_eq!(sleep(&mut reader, Duration::from_secs(60)).unwrap(), Waited::Ready);
    });
    let mut next = 301;
    read_through(&mut reader, &mut next, 302);
    drop(writer);
    let refused = Writer::open(&view, &OPTIONS).err().unwrap();
    assert_eq!(refused.errno(), Some(libc::EROFS), "{refused}");
    let refused = Writer::open(&view.join("new"), &OPTIONS).err().unwrap();
    assert_eq!(refused.errno(), Some(libc::EROFS), "{refused}");
}

#[test]
fn a_read_only_mount_can_be_read_and_waited_on() {
    run_mounted("child_reads_a_read_only_mount");
}

// --- Files of another version or kind ---

struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn queue(name: &str) -> Temp {
    let path =
        std::env::temp_dir().join(format!("chronicle-foreign-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    let mut writer = Writer::open(&path, &OPTIONS).unwrap();
    writer.append(1, b"one", Some(1)).unwrap();
    drop(Reader::open(&path, Some("r"), Start::Resume).unwrap());
    Temp(path)
}

fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// Reader and writer both refuse, and say what was found and what was expected.
fn assert_refused(path: &Path, field: &str, found: &str, expected: &str) {
    let reader = Reader::open(path, Some("r"), Start::Resume).err();
    let writer = Writer::open(path, &OPTIONS).err();
    // A cursor is the reader's affair.
    let errors = if field.starts_with("cursor:") { vec![reader] } else { vec![reader, writer] };
    for error in errors {
        let error = error.unwrap_or_else(|| panic!("{field} was not refused"));
        let ErrorKind::Format { field: f, found: x, expected: y, .. } = error.kind() else {
            panic!("{field}: {error}");
        };
        assert_eq!(*f, field.trim_start_matches("cursor:"));
        assert!(x.contains(found) && y.contains(expected), "{error}");
        let text = error.to_string();
        assert!(text.contains(found) && text.contains(expected), "{text}");
    }
}

#[test]
fn a_file_of_another_version_is_refused_with_what_was_found_and_expected() {
    for (name, file, field) in [
        ("control", "control", "version"),
        ("table", "segments.table", "version"),
        ("segment", "segments/00000000000000000000.seg", "version"),
        ("cursor", "readers/r.cursor", "cursor:version"),
    ] {
        let temp = queue(&format!("version-{name}"));
        write_at(&temp.0.join(file), 8, &7_u32.to_le_bytes());
        assert_refused(&temp.0, field, "7", "1");
    }
}

#[test]
fn a_foreign_file_is_refused_with_what_was_found_and_expected() {
    for (name, file, magic) in [
        ("control", "control", "CHRNCTL1"),
        ("table", "segments.table", "CHRNTBL1"),
        ("segment", "segments/00000000000000000000.seg", "CHRNSEG1"),
        ("cursor", "readers/r.cursor", "CHRNCUR1"),
    ] {
        let cursor = if name == "cursor" { "cursor:" } else { "" };
        let temp = queue(&format!("foreign-{name}"));
        let len = std::fs::metadata(temp.0.join(file)).unwrap().len();
        let mut text = b"PNG file".to_vec();
        text.resize(len as usize, b'x');
        std::fs::write(temp.0.join(file), &text).unwrap();
        assert_refused(&temp.0, &format!("{cursor}magic"), "PNG file", magic);
        std::fs::write(temp.0.join(file), &text[..100]).unwrap();
        assert_refused(&temp.0, &format!("{cursor}file_bytes"), "100", &len.to_string());
    }
}

#[test]
fn a_file_of_another_queue_is_refused() {
    let (here, other) = (queue("mixed-here"), queue("mixed-other"));
    for file in ["segments.table", "segments/00000000000000000000.seg"] {
        let ours = std::fs::read(here.0.join(file)).unwrap();
        std::fs::copy(other.0.join(file), here.0.join(file)).unwrap();
        assert_refused(&here.0, "queue_id", "[", "[");
        std::fs::write(here.0.join(file), ours).unwrap();
    }
    assert!(Writer::open(&here.0, &OPTIONS).is_ok());
}

#[test]
fn a_directory_of_other_files_does_not_become_a_queue() {
    let temp = queue("foreign-directory");
    let path = temp.0.join("photos");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("holiday.jpg"), b"...").unwrap();
    for error in [
        Reader::open(&path, None, Start::Earliest).err().unwrap(),
        Writer::open(&path, &OPTIONS).err().unwrap(),
    ] {
        assert!(matches!(error.kind(), ErrorKind::NotAQueue { .. }), "{error}");
    }
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1, "nothing was added");
}

#[test]
fn a_queue_that_lost_its_control_file_is_not_made_anew_over_its_segments() {
    let temp = queue("orphans");
    let control = std::fs::read(temp.0.join("control")).unwrap();
    std::fs::remove_file(temp.0.join("control")).unwrap();
    let error = Writer::open(&temp.0, &OPTIONS).err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::NotAQueue { .. }), "{error}");
    // Restored, it is the queue that it was.
    std::fs::write(temp.0.join("control"), control).unwrap();
    assert_eq!(Writer::open(&temp.0, &OPTIONS).unwrap().next_sequence(), 2);
}
