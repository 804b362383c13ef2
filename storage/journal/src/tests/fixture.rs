//! A folder written by format version 1 is kept, byte for byte.

use runtime::{RealDisk, read_file};

use super::*;

fn folder() -> std::path::PathBuf {
    Path::new("tests/fixtures/version-1").to_owned()
}

/// Fixed for ever, as the folder is.
fn append(manual: &mut Manual, indexes: std::ops::RangeInclusive<u64>) {
    for index in indexes {
        manual.append([(index, entry(index))]);
        manual.writer.pump();
    }
}

fn entry(index: u64) -> Bytes {
    Bytes::from(format!("entry {index} ").repeat(20))
}

/// Every kind of record, in two lives, over two segments.
fn write() -> SimDisk {
    let disk = SimDisk::new();
    let (mut manual, _) = Manual::open_with(&disk, JournalOptions { reserve_segments: 0, ..small() }).unwrap();
    manual.journal.save_vote(Bytes::from_static(b"vote"), Box::new(|_| ())).unwrap();
    append(&mut manual, 1..=8);
    manual.journal.truncate_after(Some(LogIndex(6)), Box::new(|_| ())).unwrap();
    manual.journal.purge(LogIndex(2), Bytes::from_static(b"marker"), Box::new(|_| ())).unwrap();
    manual.close();
    disk.kill();
    let (mut manual, _) = Manual::open_with(&disk, JournalOptions { reserve_segments: 0, ..small() }).unwrap();
    manual.journal.roll(Box::new(|_| ())).unwrap();
    append(&mut manual, 7..=8);
    manual.journal.save_committed(Bytes::from_static(b"committed")).unwrap();
    manual.close();
    disk.kill();
    disk
}

#[test]
fn version_1_can_be_read() {
    // On a copy: opening writes.
    let real = RealDisk::new();
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    let mut bytes = 0;
    for number in 1..=2 {
        let name = crate::segment::file_name(number);
        let content = read_file(&real, &folder().join(&name)).unwrap();
        let file = disk.open(&Path::new(DIR).join(&name), runtime::OpenMode::CreateNew).unwrap();
        file.write_at(&content, 0).unwrap();
        bytes += content.len();
    }
    assert_eq!(bytes, 2 * (20 << 10));
    let (manual, recovered) = Manual::open(&disk).unwrap();
    assert_eq!(recovered.vote.as_deref(), Some(b"vote".as_slice()));
    assert_eq!(recovered.committed.as_deref(), Some(b"committed".as_slice()));
    assert_eq!(recovered.purged, Some((LogIndex(2), Bytes::from_static(b"marker"))));
    let entries = manual.journal.read(LogIndex(0)..LogIndex(100)).unwrap();
    let expected: Vec<_> = (3..=8).map(|index| (LogIndex(index), entry(index))).collect();
    assert_eq!(entries, expected);
}

/// Writing the same today gives the same bytes. When this fails, the format has changed: it needs a new version number,
/// a folder of its own here, and code that reads both. Set `LATTICE_WRITE_FIXTURES` to write the folder.
#[test]
fn version_1_is_written_as_it_was() {
    let disk = write();
    for (path, _) in disk.files().into_iter().filter(|(path, _)| !path.ends_with("lock")) {
        let kept = folder().join(path.file_name().unwrap());
        let bytes = read_file(&disk, &path).unwrap();
        if std::env::var("LATTICE_WRITE_FIXTURES").is_ok() {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&kept, &bytes).unwrap();
        }
        assert!(read_file(&RealDisk::new(), &kept).unwrap() == bytes, "{}", kept.display());
    }
}
