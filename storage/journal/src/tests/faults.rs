//! Disks that fail while the journal runs.

use runtime::{DiskOp, Fault, FaultError};

use super::*;

/// A journal that counts what it tells its owner.
fn open(disk: &SimDisk) -> (Manual, Arc<Mutex<Vec<String>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&told);
    let on_fatal = move |error: &Error| list.lock().push(error.with_cause());
    let options = JournalOptions { on_fatal: Some(Arc::new(on_fatal)), ..small() };
    (Manual::open_with(disk, options).unwrap().0, told)
}

fn fault(op: DiskOp, error: FaultError) -> Fault {
    Fault { op, path_contains: "segment".to_owned(), after: 0, error, sticky: false }
}

#[test]
fn a_failed_sync_poisons_and_is_never_retried() {
    for seed in 0..30 {
        let disk = SimDisk::new();
        let (mut manual, told) = open(&disk);
        manual.fill(1, 3, 100);
        disk.inject(fault(DiskOp::Sync, FaultError::Io));
        // Over several pages, so that what is appended later does not write them all again.
        manual.append([(4, payload(4, 8000))]);
        manual.journal.save_vote(Bytes::from_static(b"v"), manual.answers.callback(1)).unwrap();
        manual.writer.pump();
        assert_eq!(manual.answers.take(), [(0, false), (1, false)]);
        assert_eq!(told.lock().len(), 1, "{told:?}");
        assert!(told.lock()[0].contains("cannot sync"), "{told:?}");
        let syncs = disk.sync_sites()["journal.batch"];
        // The disk would work again, but nothing is asked of it any more.
        let refused = manual.journal.append(vec![(LogIndex(5), payload(5, 1))], Box::new(|_| ()));
        assert!(matches!(refused, Err(Error::Poisoned { .. })));
        assert!(matches!(manual.journal.save_committed(Bytes::new()), Err(Error::Poisoned { .. })));
        assert!(matches!(manual.journal.read(LogIndex(1)..LogIndex(2)), Err(Error::Poisoned { .. })));
        assert!(matches!(manual.journal.close(), Err(Error::Poisoned { .. })));
        manual.writer.finish();
        assert_eq!(disk.sync_sites()["journal.batch"], syncs);

        // The process starts again on a machine whose page cache still shows the lost pages. What it finds there it
        // must make durable, or else not report.
        disk.kill();
        let (mut manual, recovered) = Manual::open(&disk).unwrap();
        assert_eq!(recovered.last, Some(LogIndex(4)));
        manual.fill(5, 1, 100);
        disk.crash(seed);
        let (_, recovered) = Manual::open(&disk).unwrap();
        assert_eq!(recovered.last, Some(LogIndex(5)));
        assert_eq!(recovered.vote.as_deref(), Some(b"v".as_slice()));
    }
}

#[test]
fn every_kind_of_error_stops_the_journal_and_loses_nothing() {
    for (op, after) in
        [(DiskOp::Write, 0), (DiskOp::Write, 2), (DiskOp::Sync, 1), (DiskOp::Rename, 0), (DiskOp::Allocate, 0)]
    {
        let disk = SimDisk::new();
        let (mut manual, told) = open(&disk);
        disk.inject(Fault { after, ..fault(op, FaultError::Io) });
        let mut confirmed = 0;
        for index in 1..60 {
            let asked =
                manual.journal.append(vec![(LogIndex(index), payload(index, 1000))], manual.answers.callback(0));
            if asked.is_err() {
                break;
            }
            manual.writer.pump();
            if manual.answers.take() == [(0, true)] {
                confirmed = index;
            }
        }
        assert!(confirmed < 59, "{op:?} never failed");
        assert_eq!(told.lock().len(), 1);
        disk.clear_faults();
        disk.crash(confirmed);
        let (_, recovered) = Manual::open(&disk).unwrap();
        let last = recovered.last.map_or(0, |index| index.0);
        assert!(last == confirmed || last == confirmed + 1, "{op:?}: {last}, {confirmed} confirmed");
    }
}

#[test]
fn a_full_disk_is_seen_before_it_hurts() {
    let disk = SimDisk::new();
    let (mut manual, told) = open(&disk);
    manual.fill(1, 1, 1000);
    assert!(!manual.journal.free_space_low());
    // Room for nothing but what the journal owns: one segment and one in reserve.
    disk.set_capacity(Some(2 * (20 << 10)));
    manual.fill(2, 12, 1000);
    std::thread::sleep(Duration::from_millis(120));
    assert!(manual.journal.free_space_low(), "the reserve was used and there is no new one");
    // What was proposed before that has its place.
    manual.fill(14, 8, 1000);
    assert!(told.lock().is_empty());
    // A flush makes room: the log is purged and the journal goes on.
    manual.journal.purge(LogIndex(21), Bytes::new(), Box::new(|_| ())).unwrap();
    manual.writer.pump();
    std::thread::sleep(Duration::from_millis(120));
    assert!(manual.journal.free_space_low(), "asks for a new attempt");
    while manual.writer.shared.keep_house(false) {}
    assert!(!manual.journal.free_space_low());
    manual.fill(22, 10, 1000);
    // Nobody looks, and the disk is full.
    for index in 32..80 {
        if manual.journal.append(vec![(LogIndex(index), payload(index, 1000))], Box::new(|_| ())).is_err() {
            break;
        }
        manual.writer.pump();
    }
    assert_eq!(told.lock().len(), 1);
    assert!(told.lock()[0].contains("no space left"), "{told:?}");
}

#[test]
fn low_water_counts_the_disk_as_full_early() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(1 << 20));
    let options = JournalOptions { low_water_bytes: 512 << 10, ..small() };
    let (manual, _) = Manual::open_with(&disk, options).unwrap();
    assert!(!manual.journal.free_space_low());
    let file = disk.open(Path::new("/data/other"), runtime::OpenMode::CreateNew).unwrap();
    file.allocate(700 << 10).unwrap();
    std::thread::sleep(Duration::from_millis(120));
    assert!(manual.journal.free_space_low());
}

#[test]
fn a_panicking_callback_poisons_the_journal() {
    let disk = SimDisk::new();
    let failed = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&failed);
    let options = JournalOptions { on_fatal: Some(Arc::new(move |_: &Error| *counter.lock() += 1)), ..small() };
    let (journal, _) = Journal::open(Arc::new(disk), Path::new(DIR), options).unwrap();
    journal.flush(Box::new(|_| panic!("a defect of the caller"))).unwrap();
    assert!(matches!(journal.close(), Err(Error::Poisoned { .. })));
    assert_eq!(*failed.lock(), 1);
}
