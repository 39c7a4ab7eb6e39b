//! The shortest way through everything: if this fails, look here first.

use chronicle_core::queue::provision::Chores;
use chronicle_core::{FanIn, MergeMode, Options, Provisioner, Reader, Start, Writer};

fn temp(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("chronicle-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

#[test]
fn what_is_appended_is_read_back_across_rolls_and_restarts() {
    let path = temp("smoke");
    let options = Options { segment_bytes: 1 << 16, checksum: true, ..Options::default() };
    let mut writer = Writer::open(&path, &options).unwrap();
    let mut reader = Reader::open(&path, Some("r"), Start::Resume).unwrap();
    for i in 0..10_000_u64 {
        if i == 5_000 {
            drop(writer);
            writer = Writer::open(&path, &options).unwrap();
        }
        assert_eq!(writer.append(7, &i.to_le_bytes(), Some(i)).unwrap(), i + 1);
        let record = reader.next().unwrap().unwrap();
        assert_eq!(record.raw.sequence, i + 1);
        assert_eq!(record.payload(), i.to_le_bytes());
        assert_eq!(record.raw.timestamp_ns, i);
    }
    assert!(reader.next().unwrap().is_none());
    for i in [1, 2, 4_999, 10_000] {
        reader.seek(Start::Sequence(i)).unwrap();
        assert_eq!(reader.next().unwrap().unwrap().raw.sequence, i);
        reader.seek(Start::Time(i - 1)).unwrap();
        assert_eq!(reader.next().unwrap().unwrap().raw.sequence, i);
    }
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_fan_in_merges_and_a_provisioner_serves_the_rolls() {
    let (a, b) = (temp("fan-a"), temp("fan-b"));
    let options = Options { segment_bytes: 1 << 16, ..Options::default() };
    let mut writers = [Writer::open(&a, &options).unwrap(), Writer::open(&b, &options).unwrap()];
    let provisioner = Provisioner::new().unwrap();
    let mut fan = FanIn::new(MergeMode::Live);
    for path in [&a, &b] {
        let reader = Reader::open(path, Some("f"), Start::Resume).unwrap();
        provisioner.attach_reader(&reader);
        fan.add(reader);
    }
    for writer in &writers {
        provisioner.attach_writer(writer, Chores::default());
    }
    for i in 0..10_000_u64 {
        writers[(i % 2) as usize].append(1, &i.to_le_bytes(), Some(i)).unwrap();
        if i % 500 == 499 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
    for i in 0..10_000_u64 {
        let (source, record) = fan.next().map_err(|e| e.1).unwrap().unwrap();
        assert_eq!((source as u64, record.raw.timestamp_ns), (i % 2, i));
    }
    assert!(fan.next().map_err(|e| e.1).unwrap().is_none());
    fan.commit();
    for path in [a, b] {
        std::fs::remove_dir_all(&path).unwrap();
    }
}
