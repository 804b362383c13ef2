//! The interface, with threads and real files where that matters.

use std::sync::mpsc;

use runtime::RealDisk;

use super::*;

fn wait(request: impl FnOnce(Done) -> Result<()>) {
    let (sender, receiver) = mpsc::channel();
    request(Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
}

#[test]
fn a_real_journal_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("deep/journal");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let (journal, recovered) = Journal::open(Arc::clone(&disk), &dir, small()).unwrap();
    assert_eq!(recovered, Recovered { created: true, ..Recovered::default() });
    assert_eq!(journal.bounds(), (None, None));
    wait(|done| journal.save_vote(Bytes::from_static(b"vote 1"), done));
    for index in 0..100 {
        wait(|done| journal.append(vec![(LogIndex(index), payload(index, 500))], done));
    }
    journal.save_committed(Bytes::from_static(b"99")).unwrap();
    wait(|done| journal.purge(LogIndex(9), Bytes::from_static(b"ten gone"), done));
    assert!(matches!(Journal::open(Arc::clone(&disk), &dir, small()), Err(Error::Locked { .. })));
    let stats = journal.stats();
    assert!(stats.segments >= 3 && stats.cached_bytes <= 4 << 10, "{stats:?}");
    journal.close().unwrap();
    assert!(matches!(journal.save_committed(Bytes::new()), Err(Error::Closed)));
    assert_eq!(journal.read(LogIndex(99)..LogIndex(200)).unwrap().len(), 1, "reading goes on");
    drop(journal);

    let (journal, recovered) = Journal::open(disk, &dir, small()).unwrap();
    assert_eq!(recovered.vote.as_deref(), Some(b"vote 1".as_slice()));
    assert_eq!(recovered.committed.as_deref(), Some(b"99".as_slice()));
    assert_eq!(recovered.purged, Some((LogIndex(9), Bytes::from_static(b"ten gone"))));
    assert_eq!((recovered.first, recovered.last), (Some(LogIndex(10)), Some(LogIndex(99))));
    assert_eq!((recovered.created, recovered.torn_bytes), (false, 0));
    let entries = journal.read(LogIndex(0)..LogIndex(1000)).unwrap();
    let expected: Vec<_> = (10..100).map(|index| (LogIndex(index), payload(index, 500))).collect();
    assert_eq!(entries, expected);
    assert_eq!(journal.read(LogIndex(20)..LogIndex(22)).unwrap(), expected[10..12]);
    assert_eq!(journal.read_limited(LogIndex(20)..LogIndex(90), 1200).unwrap(), expected[10..12]);
    assert_eq!(journal.read_limited(LogIndex(20)..LogIndex(90), 1).unwrap(), expected[10..11]);
}

#[test]
fn readers_see_appends_truncations_and_purges_at_once() {
    let (mut manual, _) = Manual::open(&SimDisk::new()).unwrap();
    let read = |manual: &Manual| {
        let entries = manual.journal.read(LogIndex(0)..LogIndex(u64::MAX)).unwrap();
        entries.into_iter().map(|(index, payload)| (index.0, payload.len())).collect::<Vec<_>>()
    };
    manual.append([(5, payload(5, 10)), (6, payload(6, 20)), (7, payload(7, 30))]);
    assert_eq!(read(&manual), [(5, 10), (6, 20), (7, 30)]);
    manual.journal.truncate_after(Some(LogIndex(5)), Box::new(|_| ())).unwrap();
    manual.append([(6, payload(6, 21))]);
    assert_eq!(read(&manual), [(5, 10), (6, 21)]);
    assert!(manual.answers.take().is_empty(), "nothing is durable yet");
    // The same through the disk, with the cache pushed out.
    manual.writer.pump();
    manual.fill(7, 20, 1000);
    assert_eq!(read(&manual)[..3], [(5, 10), (6, 21), (7, 1000)]);
    manual.journal.purge(LogIndex(20), Bytes::new(), Box::new(|_| ())).unwrap();
    assert_eq!(manual.journal.bounds(), (Some(LogIndex(21)), Some(LogIndex(26))));
    manual.journal.truncate_after(Some(LogIndex(22)), Box::new(|_| ())).unwrap();
    assert_eq!(read(&manual), [(21, 1000), (22, 1000)]);
    manual.append([(23, payload(23, 40))]);
    assert_eq!(read(&manual), [(21, 1000), (22, 1000), (23, 40)]);
    manual.writer.pump();
    assert_eq!(read(&manual), [(21, 1000), (22, 1000), (23, 40)]);
}

/// Storage rule: one sync per batch, however many wait.
#[test]
fn appends_that_wait_together_share_one_sync() {
    let disk = SimDisk::new();
    // No marks, so that the counts are exact.
    let options = JournalOptions { mark_after: Duration::from_secs(3600), ..small() };
    let (journal, _) = Journal::open(Arc::new(disk.clone()), Path::new(DIR), options).unwrap();
    while disk.files().iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "segment")).count() < 2 {
        std::thread::yield_now();
    }
    let before = journal.stats();
    let (sender, receiver) = mpsc::channel();
    let append = |index: u64| {
        let sender = sender.clone();
        let done = Box::new(move |result: std::io::Result<()>| sender.send((index, result.is_ok())).unwrap());
        journal.append(vec![(LogIndex(index), payload(index, 50))], done).unwrap();
    };
    disk.pause_syncs(true);
    append(1);
    while disk.waiting_syncs() == 0 {
        std::thread::yield_now();
    }
    // The first is being synced: these queue up behind it.
    append(2);
    append(3);
    append(4);
    assert!(receiver.try_recv().is_err(), "nothing is confirmed before its sync");
    disk.pause_syncs(false);
    let answers: Vec<_> = (0..4).map(|_| receiver.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
    assert_eq!(answers, [(1, true), (2, true), (3, true), (4, true)]);
    let after = journal.stats();
    assert_eq!((after.syncs - before.syncs, after.batches - before.batches), (2, 2));
    assert_eq!(after.requests - before.requests, 4);
    journal.close().unwrap();
}

#[test]
fn holes_and_oversize_are_refused() {
    let (mut manual, _) = Manual::open(&SimDisk::new()).unwrap();
    let append = |manual: &Manual, index: u64, bytes: usize| {
        manual.journal.append(vec![(LogIndex(index), payload(index, bytes))], Box::new(|_| ()))
    };
    append(&manual, 7, 1).unwrap();
    assert!(matches!(append(&manual, 9, 1), Err(Error::Gap { expected: LogIndex(8), got: LogIndex(9) })));
    assert!(matches!(append(&manual, 7, 1), Err(Error::Gap { .. })));
    let limit = manual.journal.max_entry_bytes();
    append(&manual, 8, limit).unwrap();
    assert!(matches!(append(&manual, 9, limit + 1), Err(Error::TooLarge { .. })));
    let long = Bytes::from(vec![0; crate::MAX_META_BYTES + 1]);
    assert!(matches!(manual.journal.save_vote(long, Box::new(|_| ())), Err(Error::TooLarge { .. })));
    let longest = Bytes::from(vec![1; crate::MAX_META_BYTES]);
    manual.journal.save_vote(longest.clone(), Box::new(|_| ())).unwrap();
    manual.journal.save_committed(longest.clone()).unwrap();
    manual.journal.purge(LogIndex(7), longest, Box::new(|_| ())).unwrap();
    assert!(matches!(
        manual.journal.truncate_after(Some(LogIndex(6)), Box::new(|_| ())),
        Err(Error::Purged { index: LogIndex(6), purged: LogIndex(7) })
    ));
    // The longest entries with the longest state fit, one per segment.
    append(&manual, 9, limit).unwrap();
    append(&manual, 10, limit).unwrap();
    manual.writer.pump();
    assert_eq!(manual.journal.bounds(), (Some(LogIndex(8)), Some(LogIndex(10))));
}

#[test]
fn purged_segments_are_removed_and_a_roll_empties_the_rest() {
    let disk = SimDisk::new();
    let (mut manual, _) = Manual::open(&disk).unwrap();
    manual.fill(1, 60, 1000);
    let count = |disk: &SimDisk| disk.files().iter().filter(|(path, _)| path.ends_with("lock").eq(&false)).count();
    let full = count(&disk);
    assert!(full >= 6, "{full}");
    manual.journal.purge(LogIndex(59), Bytes::new(), Box::new(|_| ())).unwrap();
    manual.writer.pump();
    assert_eq!(count(&disk), 2, "the active one and the reserve");
    let holds = |disk: &SimDisk, index: u64| {
        let needle = payload(index, 1000);
        disk.files().iter().any(|(path, _)| {
            let bytes = runtime::read_file(disk, path).unwrap();
            bytes.windows(1000).any(|window| window == needle)
        })
    };
    assert!(holds(&disk, 59));
    manual.journal.roll(Box::new(|_| ())).unwrap();
    manual.journal.purge(LogIndex(60), Bytes::new(), Box::new(|_| ())).unwrap();
    manual.writer.pump();
    assert!(!(1..=60).any(|index| holds(&disk, index)));
    manual.fill(61, 3, 100);
    manual.close();
    let (_, recovered) = Manual::open(&disk).unwrap();
    assert_eq!((recovered.first, recovered.last), (Some(LogIndex(61)), Some(LogIndex(63))));
}

#[test]
fn segments_of_another_size_are_read_and_left_behind() {
    let disk = SimDisk::new();
    let (mut manual, _) = Manual::open(&disk).unwrap();
    manual.fill(1, 20, 1000);
    manual.close();
    let (mut manual, _) = Manual::open_with(&disk, JournalOptions { segment_bytes: 64 << 10, ..small() }).unwrap();
    // Larger than the segments that are there.
    manual.fill(21, 3, 40_000);
    manual.close();
    let (manual, recovered) = Manual::open(&disk).unwrap();
    assert_eq!((recovered.first, recovered.last), (Some(LogIndex(1)), Some(LogIndex(23))));
    assert_eq!(manual.journal.read(LogIndex(22)..LogIndex(23)).unwrap()[0].1, payload(22, 40_000));
}

#[test]
fn many_threads_write_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let options = JournalOptions { segment_bytes: 64 << 10, ..small() };
    let (journal, _) = Journal::open(disk, &dir.path().join("journal"), options).unwrap();
    let next = Mutex::new(1_u64);
    let confirmed = Arc::new(Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let mut next = next.lock();
                    let index = *next;
                    let confirmed = Arc::clone(&confirmed);
                    let done = Box::new(move |result: std::io::Result<()>| {
                        result.unwrap();
                        confirmed.lock().push(index);
                    });
                    journal.append(vec![(LogIndex(index), payload(index, 700))], done).unwrap();
                    *next += 1;
                    drop(next);
                    let found = journal.read(LogIndex(index / 2)..LogIndex(index / 2 + 3)).unwrap();
                    found.iter().for_each(|(index, bytes)| assert_eq!(*bytes, payload(index.0, 700)));
                }
            });
        }
    });
    wait(|done| journal.flush(done));
    assert_eq!(*confirmed.lock(), (1..=400).collect::<Vec<_>>(), "callbacks run in order");
    let stats = journal.stats();
    assert!(stats.batches < 400, "{stats:?}");
    // The last handle goes inside a callback, and the journal closes all the same.
    let own = journal.clone();
    let (sender, receiver) = mpsc::channel::<()>();
    let done = move |_| {
        let _ = receiver.recv();
        drop(own);
    };
    journal.flush(Box::new(done)).unwrap();
    drop(journal);
    drop(sender);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let (_, recovered) = loop {
        match Journal::open(Arc::clone(&disk), &dir.path().join("journal"), small()) {
            Err(Error::Locked { .. }) => std::thread::sleep(Duration::from_millis(1)),
            opened => break opened.unwrap(),
        }
    };
    assert_eq!(recovered.last, Some(LogIndex(400)));
}

/// The child of the next test: appends to the journal that an environment variable names, and says what was confirmed.
#[test]
fn child_appends_until_it_is_killed() {
    let Ok(dir) = std::env::var("LATTICE_TEST_JOURNAL") else { return };
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    let (journal, recovered) = Journal::open(disk, Path::new(&dir), small()).unwrap();
    let next = recovered.last.map_or(1, |last| last.0 + 1);
    for index in next..next + 60 {
        wait(|done| journal.append(vec![(LogIndex(index), payload(index, 900))], done));
        println!("confirmed {index}");
        if index % 10 == 0 {
            wait(|done| journal.purge(LogIndex(index - 5), Bytes::new(), done));
        }
    }
}

#[test]
fn a_process_killed_at_any_failpoint_loses_nothing_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("journal");
    let mut confirmed = 0;
    let points = ["journal.before_write", "journal.before_sync", "journal.after_sync", "journal.before_remove"];
    for (round, point) in points.iter().cycle().take(12).enumerate() {
        let count = if *point == "journal.before_remove" { 2 } else { 7 + 3 * round };
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "tests::basic::child_appends_until_it_is_killed"])
            .env("LATTICE_TEST_JOURNAL", &dir)
            .env("LATTICE_FAILPOINT", format!("{point}:{count}"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(137), "{point}: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = said.lines().filter_map(|line| line.strip_prefix("confirmed ")?.parse::<u64>().ok()).max();
        confirmed = said.unwrap_or(0).max(confirmed);
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
        let (journal, recovered) = Journal::open(disk, &dir, small()).unwrap();
        let last = recovered.last.or(recovered.purged.map(|(index, _)| index)).map_or(0, |index| index.0);
        assert!(last >= confirmed, "{point}: {last}, {confirmed} confirmed");
        let entries = journal.read(LogIndex(0)..LogIndex(u64::MAX)).unwrap();
        entries.iter().for_each(|(index, bytes)| assert_eq!(*bytes, payload(index.0, 900)));
        confirmed = last;
    }
    assert!(confirmed > 60, "{confirmed}");
}
