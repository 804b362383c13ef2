//! Damage at rest: every byte that was confirmed is either intact or missed loudly.

use std::path::PathBuf;

use runtime::{OpenMode, SimRng, read_file};

use super::*;
use crate::segment::{FIRST_RECORD, file_name};

fn path(number: u64) -> PathBuf {
    Path::new(DIR).join(file_name(number))
}

/// A journal over several segments with every kind of record, and what it holds. The process is gone, and its last
/// batch is marked, as it is some milliseconds after it.
fn filled() -> (SimDisk, Contents) {
    let disk = SimDisk::new();
    let (mut manual, _) = Manual::open(&disk).unwrap();
    manual.journal.save_vote(Bytes::from_static(b"vote"), Box::new(|_| ())).unwrap();
    manual.fill(1, 30, 1000);
    manual.journal.save_committed(Bytes::from_static(b"committed")).unwrap();
    manual.journal.truncate_after(Some(LogIndex(28)), Box::new(|_| ())).unwrap();
    manual.journal.purge(LogIndex(3), Bytes::from_static(b"marker"), Box::new(|_| ())).unwrap();
    manual.writer.pump();
    manual.fill(29, 6, 333);
    manual.writer.mark().unwrap();
    disk.kill();
    let (manual, recovered) = Manual::open(&disk.fork()).unwrap();
    (disk, Contents::of(&manual.journal, &recovered).unwrap())
}

/// Opens a copy of the disk. Returns what it holds, or the place of the damage; then nothing was changed.
fn reopen(disk: &SimDisk) -> std::result::Result<Contents, (PathBuf, u64)> {
    let copy = disk.fork();
    match Manual::open(&copy) {
        Ok((manual, recovered)) => Ok(Contents::of(&manual.journal, &recovered).unwrap()),
        Err(Error::Corrupt { file, offset, .. }) => {
            let segments = |disk: &SimDisk| {
                let files = disk.files().into_iter().filter(|(path, _)| !path.ends_with("lock"));
                files.map(|(path, _)| (path.clone(), read_file(disk, &path).unwrap())).collect::<Vec<_>>()
            };
            assert!(segments(&copy) == segments(disk), "a refused start leaves everything as it is");
            Err((file, offset))
        }
        Err(Error::Version { file, .. }) => Err((file, 0)),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_flipped_byte_is_detected_or_harmless() {
    let (disk, contents) = filled();
    assert_eq!(reopen(&disk), Ok(contents.clone()));
    let mut rng = SimRng::new(1);
    let (mut detected, mut harmless) = (0, 0);
    let files: Vec<_> = disk.files().into_iter().filter(|(path, _)| !path.ends_with("lock")).collect();
    assert!(files.len() >= 4, "{files:?}");
    for (path, len) in files {
        let bytes = read_file(&disk, &path).unwrap();
        let mut at = 0;
        while at < len {
            let mask = 1 << rng.below(8);
            disk.flip(&path, at, mask).unwrap();
            match reopen(&disk) {
                Ok(found) => {
                    assert_eq!(found, contents, "{} at {at}", path.display());
                    harmless += 1;
                }
                Err((file, offset)) => {
                    assert_eq!(file, path, "offset {at}");
                    assert!(offset <= at && at < offset + 1100, "damage at {at} is reported at {offset}");
                    detected += 1;
                }
            }
            disk.flip(&path, at, mask).unwrap();
            // Every byte of headers and of what differs from its neighbour matters; payloads and zeros are sampled.
            let dense = at < 64 || (4096..4128).contains(&at) || (at >= FIRST_RECORD && at < FIRST_RECORD + 700);
            let empty = bytes[at as usize..].iter().take(64).all(|&byte| byte == 0);
            at += if dense {
                1
            } else if empty {
                61
            } else {
                7
            };
        }
    }
    assert!(detected > 3000 && harmless > 200, "{detected} {harmless}");
}

#[test]
fn zeroed_and_swapped_pages_are_detected() {
    let (disk, contents) = filled();
    let used: Vec<PathBuf> =
        disk.files().into_iter().map(|(path, _)| path).filter(|path| !path.ends_with("lock")).collect();
    let pages: Vec<(PathBuf, u64, Vec<u8>)> = used
        .iter()
        .flat_map(|path| {
            let bytes = read_file(&disk, path).unwrap();
            (0..5).map(move |page| (path.clone(), page * 4096, bytes[page as usize * 4096..][..4096].to_vec()))
        })
        .collect();
    for (path, at, page) in &pages {
        for (_, _, other) in &pages {
            let copy = disk.fork();
            copy.open(path, OpenMode::ReadWrite).unwrap().write_at(other, *at).unwrap();
            match reopen(&copy) {
                Ok(found) => assert_eq!(found, contents, "{} at {at}", path.display()),
                Err((file, _)) => assert_eq!(&file, path),
            }
        }
        let copy = disk.fork();
        copy.open(path, OpenMode::ReadWrite).unwrap().write_at(&[0; 4096], *at).unwrap();
        // Marks only say what is known without them, as long as nothing else is damaged.
        let live = page[..64].iter().any(|&byte| byte != 0) && *at != 4096;
        assert_eq!(reopen(&copy).is_err(), live, "{} at {at}", path.display());
    }
}

#[test]
fn missing_and_short_files_are_detected() {
    let (disk, contents) = filled();
    let numbers: Vec<u64> = (0..20).filter(|number| disk.exists(&path(*number)).unwrap()).collect();
    let (&reserve, used) = numbers.split_last().unwrap();
    for &number in used {
        let copy = disk.fork();
        copy.remove_file(&path(number)).unwrap();
        assert!(reopen(&copy).is_err(), "segment {number} of {numbers:?}");
        let copy = disk.fork();
        copy.open(&path(number), OpenMode::ReadWrite).unwrap().set_len(16_000).unwrap();
        assert_eq!(reopen(&copy), Err((path(number), 0)));
    }
    let copy = disk.fork();
    copy.remove_file(&path(reserve)).unwrap();
    assert_eq!(reopen(&copy), Ok(contents), "the reserve holds nothing");
    // All but the reserve.
    let copy = disk.fork();
    used.iter().for_each(|number| copy.remove_file(&path(*number)).unwrap());
    assert_eq!(reopen(&copy), Err((path(reserve), FIRST_RECORD)));
}

#[test]
fn files_of_others_are_refused() {
    let (disk, _) = filled();
    let other = SimDisk::new();
    let options = JournalOptions { journal_id: Some(7), ..small() };
    let (mut manual, _) = Manual::open_with(&other, options).unwrap();
    manual.fill(1, 30, 1000);
    let foreign = read_file(&other, &path(2)).unwrap();
    let copy = disk.fork();
    copy.open(&path(2), OpenMode::ReadWrite).unwrap().write_at(&foreign, 0).unwrap();
    assert_eq!(reopen(&copy), Err((path(2), 0)));

    // A later format, with its checksum.
    let mut header = read_file(&disk, &path(1)).unwrap()[..48].to_vec();
    header[8] = 2;
    let crc = crc32c::crc32c(&header[..40]).to_le_bytes();
    header[40..44].copy_from_slice(&crc);
    let copy = disk.fork();
    copy.open(&path(1), OpenMode::ReadWrite).unwrap().write_at(&header, 0).unwrap();
    assert!(matches!(Manual::open(&copy), Err(Error::Version { version: 2, .. })));
}

/// A crash in the middle of a batch may leave its end without its middle. Nothing of it was confirmed, so this is not
/// damage.
#[test]
fn a_hole_in_the_last_batch_is_a_torn_tail() {
    let disk = SimDisk::new();
    let (mut manual, _) = Manual::open_with(&disk, JournalOptions { reserve_segments: 4, ..small() }).unwrap();
    manual.fill(1, 2, 100);
    let torn_from = read_file(&disk, &path(1)).unwrap().iter().rposition(|&byte| byte != 0).unwrap();
    // Thirty entries over three segments; the sync never comes back.
    manual.append((3..33).map(|index| (index, payload(index, 1000))));
    disk.power_off_after(3);
    manual.writer.pump();
    assert_eq!(manual.answers.take(), [(0, false)]);
    disk.kill();
    assert_eq!(reopen(&disk).unwrap().entries.len(), 32, "nothing is lost yet");
    for number in 1..=3 {
        for page in 2..5 {
            let copy = disk.fork();
            let at = page * 4096;
            if number == 1 && at < torn_from as u64 {
                continue;
            }
            copy.open(&path(number), OpenMode::ReadWrite).unwrap().write_at(&[0; 4096], at).unwrap();
            let found = reopen(&copy).unwrap();
            let last = *found.entries.keys().last().unwrap();
            assert!((2..33).contains(&last), "{last}");
            // The journal goes on, crashes and comes back without what was behind the hole.
            let (mut manual, recovered) = Manual::open(&copy).unwrap();
            assert!(recovered.torn_bytes > 0);
            manual.fill(last + 1, 1, 1000);
            copy.crash(page);
            assert_eq!(reopen(&copy).unwrap().entries.len() as u64, last + 1);
        }
    }
}

/// Payloads belong to users, who may send anything, also what looks like records.
#[test]
fn payloads_that_look_like_records_prove_nothing() {
    let disk = SimDisk::new();
    let (mut manual, _) = Manual::open(&disk).unwrap();
    manual.fill(1, 3, 100);
    let link = crate::record::Link { previous: 0, epoch: 1, sequence: 1000, synced: 999 };
    let mut forged = Vec::new();
    for salt in [0, crate::shared::salt(0), crate::shared::salt(7)] {
        for _ in 0..20 {
            crate::record::encode(&mut forged, salt, link, crate::record::Kind::Entry, 4, b"forged");
        }
    }
    // And true copies of what the journal holds.
    forged.extend_from_slice(&read_file(&disk, &path(1)).unwrap()[FIRST_RECORD as usize..][..2000]);
    let start = read_file(&disk, &path(1)).unwrap().iter().rposition(|&byte| byte != 0).unwrap() as u64;
    manual.append([(4, Bytes::from(vec![1; 100])), (5, Bytes::from(forged))]);
    disk.power_off_after(1);
    manual.writer.pump();
    disk.kill();
    // The record before the forged ones is torn.
    disk.open(&path(1), OpenMode::ReadWrite).unwrap().write_at(&[0; 64], start + 60).unwrap();
    assert_eq!(reopen(&disk).unwrap().entries.len(), 3);
}

/// The records alone give damage away, everywhere but in the last batch.
#[test]
fn damage_before_the_last_batch_is_seen_without_marks() {
    let disk = SimDisk::new();
    let (mut manual, _) = Manual::open(&disk).unwrap();
    let used = |disk: &SimDisk, number| {
        let bytes = read_file(disk, &path(number)).unwrap_or_default();
        bytes.iter().rposition(|&byte| byte != 0)
    };
    let mut last_batch = 0;
    for index in 1..=30 {
        last_batch = used(&disk, 3).map_or(0, |at| at as u64 + 1);
        manual.fill(index, 1, 1000);
    }
    disk.kill();
    assert!(last_batch > FIRST_RECORD);
    for number in 1..=3 {
        for at in (FIRST_RECORD..20 << 10).step_by(97) {
            disk.flip(&path(number), at, 16).unwrap();
            match reopen(&disk) {
                Err((file, _)) => assert_eq!(file, path(number)),
                Ok(found) if number < 3 || at < last_batch - 8 => {
                    // Between the last record of a segment and its end there is nothing to damage.
                    assert!(number < 3 && used(&disk, number) == Some(at as usize), "{number} {at}");
                    assert_eq!(found.entries.len(), 30);
                }
                Ok(found) => assert!((29..=30).contains(&found.entries.len())),
            }
            disk.flip(&path(number), at, 16).unwrap();
        }
    }
}

/// What a torn batch left behind the cut is never taken for a continuation, even if its checksums happened to fit.
#[test]
fn records_of_an_earlier_epoch_do_not_follow() {
    for epoch in [1, 2] {
        let disk = SimDisk::new();
        let (mut manual, _) = Manual::open(&disk).unwrap();
        manual.fill(1, 3, 100);
        disk.kill();
        let (manual, _) = Manual::open(&disk).unwrap();
        let bytes = read_file(&disk, &path(1)).unwrap();
        // The second start wrote the last record, in epoch 2; a record that fits it follows, in this epoch or the first.
        let salt = manual.writer.shared.salt;
        let last = (FIRST_RECORD as usize..bytes.len())
            .step_by(8)
            .filter_map(|at| crate::record::decode(&bytes[at..], salt).map(|header| (at, header)));
        let (at, last) = last.last().unwrap();
        assert_eq!((last.epoch, last.sequence), (2, 5));
        let end = at + crate::record::record_bytes(last.len as usize);
        let link = crate::record::Link { previous: last.crc, epoch, sequence: 6, synced: 4 };
        let mut record = Vec::new();
        crate::record::encode(&mut record, salt, link, crate::record::Kind::Entry, 4, b"more");
        disk.open(&path(1), OpenMode::ReadWrite).unwrap().write_at(&record, end as u64).unwrap();
        disk.kill();
        assert_eq!(reopen(&disk).unwrap().entries.len(), if epoch == 2 { 4 } else { 3 });
    }
}

/// JOURNAL-8: even the last confirmed batch is covered against damage once the journal had time for a mark, and after a
/// pause this holds across a crash.
#[test]
fn a_synced_mark_outlives_a_crash() {
    let missed = |ignore: bool| {
        (0..60).any(|seed| {
            let disk = SimDisk::new();
            if ignore {
                disk.ignore_syncs("journal.mark");
            }
            let (mut manual, _) = Manual::open(&disk).unwrap();
            manual.fill(1, 5, 100);
            let at = read_file(&disk, &path(1)).unwrap().iter().rposition(|&byte| byte != 0).unwrap() as u64;
            manual.writer.mark().unwrap();
            manual.writer.sync_mark().unwrap();
            disk.crash(seed);
            disk.flip(&path(1), at, 1).unwrap();
            reopen(&disk).is_ok()
        })
    };
    assert!(!missed(false));
    assert!(missed(true), "the sync of the mark is not needed");
}

#[test]
fn damage_found_while_reading_stops_the_journal() {
    let disk = SimDisk::new();
    let failures = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&failures);
    let options = JournalOptions { on_fatal: Some(Arc::new(move |_: &Error| *counter.lock() += 1)), ..small() };
    let (mut manual, _) = Manual::open_with(&disk, options).unwrap();
    manual.fill(1, 30, 1000);
    disk.flip(&path(1), FIRST_RECORD + 2000, 4).unwrap();
    let read = manual.journal.read(LogIndex(1)..LogIndex(9));
    assert!(matches!(read, Err(Error::Corrupt { file, .. }) if file == path(1)));
    assert_eq!(*failures.lock(), 1);
    assert!(matches!(manual.journal.read(LogIndex(29)..LogIndex(30)), Err(Error::Poisoned { .. })));
}
