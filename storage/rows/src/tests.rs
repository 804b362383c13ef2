//! The row tier against its model, and against readers and a flush that run while commits are applied.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use base::{CommitTs, RowKey, TableId};
use bytes::Bytes;
use proptest::prelude::*;

use crate::{Counts, Error, RowOp, RowTier, RowTierOptions, TableRows, Version};

fn key(number: u16) -> RowKey {
    RowKey(Bytes::copy_from_slice(&number.to_be_bytes()))
}

fn put(ts: i64, row: &str, update: bool) -> Version {
    Version::put(CommitTs(ts), Bytes::copy_from_slice(row.as_bytes()), update)
}

fn table() -> (RowTier, Arc<TableRows>) {
    let tier = RowTier::new(RowTierOptions::default());
    let table = tier.open(TableId(1000), CommitTs::ZERO);
    (tier, table)
}

#[test]
fn reads_see_their_time() {
    let (_tier, table) = table();
    table.apply(key(1), put(12, "a", false));
    table.apply_all([(key(1), put(40, "b", true)), (key(2), put(40, "x", false))]);
    table.apply(key(1), Version::delete(CommitTs(77)));

    assert_eq!(table.get(&key(1), CommitTs(11)), None);
    assert_eq!(table.get(&key(1), CommitTs(50)), Some(put(40, "b", true)));
    assert!(table.get(&key(1), CommitTs::MAX).unwrap().is_delete());
    assert_eq!(table.newest(&key(1)), Some(CommitTs(77)));
    assert_eq!(table.newest_many(&[key(2), key(3)]), [Some(CommitTs(40)), None]);
    assert_eq!(table.get_many(&[key(3), key(2)], CommitTs(40)), [None, Some(put(40, "x", false))]);
    assert_eq!((table.oldest(), table.newest_ts()), (Some(CommitTs(12)), Some(CommitTs(77))));

    let scan = table.scan(.., CommitTs(50), CommitTs(12)).unwrap();
    assert_eq!(scan.flatten().collect::<Vec<_>>(), [(key(1), put(40, "b", true)), (key(2), put(40, "x", false))]);
    let live = table.scan(.., CommitTs::MAX, CommitTs::ZERO).unwrap().live_only();
    assert_eq!(live.flatten().collect::<Vec<_>>(), [(key(2), put(40, "x", false))]);

    let drained: Vec<_> = table.drain_view(CommitTs(40)).flat_map(|chunk| chunk.keys().to_vec()).collect();
    assert_eq!(drained, [key(1), key(2)]);
    let done = table.truncate(CommitTs(40));
    assert_eq!((done.upto, done.versions), (CommitTs(40), 3));
    assert_eq!(table.versions(&key(1)), [Version::delete(CommitTs(77))]);
    let counts = table.counts();
    assert_eq!((counts.keys, counts.versions, counts.deletes, counts.rows_gained()), (1, 1, 1, -1));
}

#[test]
fn the_past_is_not_applied_again() {
    let tier = RowTier::new(RowTierOptions::default());
    let table = tier.open(TableId(1000), CommitTs(50));
    table.apply_all([(key(1), put(50, "old", false)), (key(2), put(51, "new", false))]);
    assert_eq!((table.len(), table.oldest()), (1, Some(CommitTs(51))));
    // Neither is a version of a commit counted twice.
    table.apply(key(2), put(51, "newer", false));
    assert_eq!((table.counts().versions, table.counts().inserts), (1, 1));
    assert_eq!(table.get(&key(2), CommitTs(51)), Some(put(51, "newer", false)));
}

#[test]
fn odd_ranges_are_empty() {
    let (_tier, table) = table();
    table.apply_all((0..5).map(|number| (key(number), put(1, "r", false))));
    let count = |range: (Bound<RowKey>, Bound<RowKey>)| {
        table.scan(range, CommitTs(9), CommitTs::ZERO).unwrap().flatten().count()
    };
    assert_eq!(count((Bound::Included(key(3)), Bound::Excluded(key(3)))), 0);
    assert_eq!(count((Bound::Excluded(key(3)), Bound::Excluded(key(3)))), 0);
    assert_eq!(count((Bound::Included(key(4)), Bound::Included(key(3)))), 0);
    assert_eq!(count((Bound::Excluded(key(3)), Bound::Excluded(key(4)))), 0);
    assert_eq!(count((Bound::Included(key(3)), Bound::Included(key(3)))), 1);
    assert_eq!(count((Bound::Excluded(key(1)), Bound::Unbounded)), 3);
}

#[test]
fn pins_hold_truncation_back() {
    let (tier, table) = table();
    for ts in 1..=100 {
        table.apply(key(ts as u16 % 10), put(ts, "row", ts > 10));
    }
    let mut scan = table.scan(.., CommitTs(60), CommitTs(30)).unwrap();
    let first = scan.next_chunk(4).unwrap();
    assert_eq!(first.len(), 4);
    assert!(table.held_back().is_none(), "nothing could go yet");
    let before = tokio::time::Instant::now();
    assert_eq!(table.truncate(CommitTs(80)).upto, CommitTs(30));
    assert!(table.held_back().unwrap() <= before);
    let rest: Vec<_> = scan.by_ref().flatten().collect();
    assert!(first.iter().chain(&rest).all(|(_, version)| (51..=60).contains(&version.ts.0)));
    assert_eq!(first.len() + rest.len(), 10);

    let outdated = table.scan(.., CommitTs(60), CommitTs(20)).unwrap_err();
    assert_eq!(outdated, Error::Truncated { above: CommitTs(20), truncated: CommitTs(30) });
    assert!(table.get_above(&key(1), CommitTs(60), CommitTs(20)).is_err());
    assert!(table.get_above(&key(1), CommitTs(60), CommitTs(30)).is_ok());

    assert_eq!(table.oldest(), Some(CommitTs(31)));
    let second = scan_pin(&table);
    drop(scan);
    tier.truncate_deferred();
    assert_eq!(table.truncated(), CommitTs(30), "the second pin still holds");
    drop(second);
    tier.truncate_deferred();
    assert_eq!((table.truncated(), table.oldest(), table.counts().versions), (CommitTs(80), Some(CommitTs(81)), 20));
    table.truncate(CommitTs(200));
    assert_eq!((table.counts(), tier.bytes(), table.oldest(), table.newest_ts()), (Counts::default(), 0, None, None));
}

fn scan_pin(table: &Arc<TableRows>) -> crate::Pin {
    let pin = table.pin(CommitTs(30)).unwrap();
    pin.clone()
}

#[test]
fn dropped_tables_give_their_memory_back() {
    let (tier, table) = table();
    table.apply(key(1), put(1, "row", false));
    assert!(tier.bytes() > 0);
    assert_eq!(tier.bytes(), table.bytes());
    let reader = tier.remove(TableId(1000)).unwrap();
    drop(table);
    assert!(tier.bytes() > 0, "a reader still has it");
    drop(reader);
    assert_eq!(tier.bytes(), 0);
    assert!(tier.tables().is_empty());
}

#[test]
fn keys_that_stay_do_not_keep_their_batch() {
    let (_tier, table) = table();
    let batch = Bytes::from(vec![7u8; 1 << 16]);
    table.apply(RowKey(batch.slice(0..4)), put(1, "row", false));
    table.apply(RowKey(Bytes::copy_from_slice(&batch[..4])), put(2, "row", true));
    assert!(!batch.is_unique());
    table.truncate(CommitTs(1));
    assert!(batch.is_unique(), "the key was a slice of the batch and lives on");
    assert_eq!(table.newest(&RowKey(batch.slice(0..4))), Some(CommitTs(2)));
}

/// Each commit moves one unit between two of the rows, so that the sum over any snapshot is zero.
#[test]
fn readers_are_consistent_while_writers_apply() {
    const ROWS: u16 = 2000;
    const COMMITS: i64 = 3000;
    let (_tier, table) = table();
    let row = |value: i64| Bytes::copy_from_slice(&value.to_le_bytes());
    table.apply_all((0..ROWS).map(|number| (key(number), Version::put(CommitTs(1), row(0), false))));
    let applied = AtomicI64::new(1);
    let done = AtomicBool::new(false);
    // What stands for the column tier.
    let columns = parking_lot::RwLock::new((CommitTs::ZERO, BTreeMap::<RowKey, Bytes>::new()));

    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut values = vec![0i64; usize::from(ROWS)];
            for ts in 2..COMMITS {
                let (from, to) = ((ts * 7919 % i64::from(ROWS)) as u16, (ts * 104_729 % i64::from(ROWS)) as u16);
                values[usize::from(from)] -= 1;
                values[usize::from(to)] += 1;
                let changed = [from, to]
                    .map(|number| (key(number), Version::put(CommitTs(ts), row(values[usize::from(number)]), true)));
                table.apply_all(changed);
                applied.store(ts, Ordering::Release);
            }
            done.store(true, Ordering::Release);
        });
        // The flush keeps the newest version of each row up to a cut in `columns`.
        let (columns, applied, done, table) = (&columns, &applied, &done, &table);
        scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                let cut = CommitTs(applied.load(Ordering::Acquire));
                let mut next = columns.read().1.clone();
                for chunk in table.drain_view(cut) {
                    for (key, versions) in chunk.iter() {
                        next.insert(key.clone(), versions.last().unwrap().row().unwrap().clone());
                    }
                }
                *columns.write() = (cut, next);
                table.truncate(cut);
                std::thread::yield_now();
            }
        });
        for chunk_rows in [1, 64, 5000] {
            scope.spawn(move || {
                let mut rounds = 0;
                while !done.load(Ordering::Acquire) || rounds == 0 {
                    // A view: the timestamp, the cut, and a pin on it, taken again if a flush was faster.
                    let (mut scan, mut rows) = loop {
                        let (cut, rows) = columns.read().clone();
                        let at = CommitTs(applied.load(Ordering::Acquire));
                        match table.scan(.., at, cut) {
                            Ok(scan) => break (scan, rows),
                            Err(Error::Truncated { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    };
                    let mut previous = None;
                    while let Some(chunk) = scan.next_chunk(chunk_rows) {
                        for (key, version) in chunk {
                            assert!(previous < Some(key.clone()));
                            previous = Some(key.clone());
                            rows.insert(key, version.row().unwrap().clone());
                        }
                    }
                    let sum: i64 = rows.values().map(|row| i64::from_le_bytes(row[..].try_into().unwrap())).sum();
                    assert_eq!((rows.len(), sum), (usize::from(ROWS), 0));
                    rounds += 1;
                }
            });
        }
    });
    table.truncate(CommitTs::MAX);
    assert_eq!(table.counts(), Counts::default());
}

#[test]
fn large_rows_make_short_chunks() {
    let (_tier, table) = table();
    let row = Bytes::from(vec![0; 10 << 20]);
    table.apply_all((0..5).map(|number| (key(number), Version::put(CommitTs(1), row.clone(), false))));
    let sizes: Vec<usize> = table.scan(.., CommitTs(1), CommitTs::ZERO).unwrap().map(|rows| rows.len()).collect();
    assert_eq!(sizes, [2, 2, 1]);
    assert_eq!(table.drain_view(CommitTs(1)).map(|rows| rows.len()).collect::<Vec<_>>(), sizes);
}

#[derive(Clone, Debug)]
enum Step {
    /// One commit: what it does to which keys.
    Commit(Vec<(u16, Option<String>)>),
    Get(u16, i64),
    Scan {
        from: u16,
        to: u16,
        back: i64,
        above: i64,
        chunk: usize,
    },
    Drain {
        back: i64,
        chunk: usize,
    },
    Truncate {
        back: i64,
    },
    Pin,
    Unpin,
    /// Starts a scan that goes on while the later steps run.
    Open {
        back: i64,
        above: i64,
    },
    Advance(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..12u16;
    let step = prop_oneof![
        6 => prop::collection::vec((key.clone(), prop::option::weighted(0.8, "[a-c]{0,3}")), 1..6).prop_map(Step::Commit),
        2 => (key.clone(), 0..12i64).prop_map(|(key, back)| Step::Get(key, back)),
        2 => (key.clone(), key, 0..12i64, 0..12i64, 1..5usize)
            .prop_map(|(from, to, back, above, chunk)| Step::Scan { from, to, back, above, chunk }),
        1 => (0..12i64, 1..5usize).prop_map(|(back, chunk)| Step::Drain { back, chunk }),
        1 => (0..12i64).prop_map(|back| Step::Truncate { back }),
        1 => Just(Step::Pin),
        1 => Just(Step::Unpin),
        1 => (0..12i64, 0..12i64).prop_map(|(back, above)| Step::Open { back, above }),
        2 => (1..5usize).prop_map(Step::Advance),
    ];
    prop::collection::vec(step, 1..60)
}

/// The simplest thing that could be right.
#[derive(Default)]
struct Model {
    rows: BTreeMap<u16, Vec<Version>>,
    now: i64,
    truncated: i64,
    wanted: i64,
    pins: Vec<i64>,
}

impl Model {
    fn newest(&self, key: u16, at: i64) -> Option<Version> {
        self.rows.get(&key)?.iter().rev().find(|version| version.ts.0 <= at).cloned()
    }

    fn scan(&self, range: std::ops::Range<u16>, at: i64, above: i64) -> Vec<(RowKey, Version)> {
        self.rows
            .keys()
            .filter(|number| range.contains(number))
            .filter_map(|number| Some((key(*number), self.newest(*number, at).filter(|version| version.ts.0 > above)?)))
            .collect()
    }

    fn truncate(&mut self) {
        let upto = self.pins.iter().copied().min().map_or(self.wanted, |pin| pin.min(self.wanted)).max(self.truncated);
        self.truncated = upto;
        for versions in self.rows.values_mut() {
            versions.retain(|version| version.ts.0 > upto);
        }
        self.rows.retain(|_, versions| !versions.is_empty());
    }

    fn check(&self, table: &TableRows) -> Result<(), TestCaseError> {
        let versions = || self.rows.values().flatten();
        let counts = table.counts();
        prop_assert_eq!(counts.keys, self.rows.len());
        prop_assert_eq!(counts.versions, versions().count());
        prop_assert_eq!(counts.deletes, versions().filter(|version| version.is_delete()).count());
        prop_assert_eq!(
            counts.updates,
            versions().filter(|version| matches!(version.op, RowOp::Put { update: true, .. })).count()
        );
        prop_assert_eq!(counts.inserts + counts.updates + counts.deletes, counts.versions);
        prop_assert_eq!(table.oldest(), versions().map(|version| version.ts).min());
        prop_assert_eq!(table.newest_ts(), versions().map(|version| version.ts).max());
        prop_assert_eq!(table.truncated().0, self.truncated);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn agrees_with_the_model(steps in steps()) {
        let (tier, table) = table();
        let mut model = Model::default();
        let mut pins = Vec::new();
        let mut open: Option<(crate::Scan, Vec<(RowKey, Version)>, i64)> = None;
        for step in steps {
            match step {
                Step::Commit(changes) => {
                    model.now += 1;
                    let ts = CommitTs(model.now);
                    let mut versions = BTreeMap::new();
                    for (number, value) in changes {
                        let existed = model.newest(number, model.now - 1).is_some_and(|version| !version.is_delete());
                        versions.insert(number, match value {
                            Some(value) => Version::put(ts, value.into(), existed),
                            None => Version::delete(ts),
                        });
                    }
                    for (number, version) in &versions {
                        model.rows.entry(*number).or_default().push(version.clone());
                    }
                    table.apply_all(versions.into_iter().map(|(number, version)| (key(number), version)));
                }
                Step::Get(number, back) => {
                    let at = model.now - back;
                    prop_assert_eq!(table.get(&key(number), CommitTs(at)), model.newest(number, at));
                    let all = model.rows.get(&number).cloned().unwrap_or_default();
                    prop_assert_eq!(table.newest(&key(number)), all.last().map(|version| version.ts));
                    prop_assert_eq!(table.versions(&key(number)), all);
                }
                Step::Scan { from, to, back, above, chunk } => {
                    let (at, above) = (model.now - back, model.truncated + above);
                    let mut scan = table.scan(key(from)..key(to), CommitTs(at), CommitTs(above)).unwrap();
                    let mut found = Vec::new();
                    while let Some(rows) = scan.next_chunk(chunk) {
                        prop_assert!(!rows.is_empty() && rows.len() <= chunk);
                        found.extend(rows);
                    }
                    prop_assert_eq!(found, model.scan(from..to, at, above));
                }
                Step::Drain { back, chunk } => {
                    let upto = CommitTs(model.now - back);
                    let mut drain = table.drain_view(upto);
                    let mut found = Vec::new();
                    while let Some(chains) = drain.next_chunk(chunk) {
                        prop_assert_eq!(chains.iter().count(), chains.len());
                        found.extend(chains.iter().map(|(key, versions)| (key.clone(), versions.to_vec())));
                    }
                    let expected: Vec<_> = model.rows.iter()
                        .map(|(number, versions)| (key(*number), versions.iter().filter(|version| version.ts <= upto).cloned().collect::<Vec<_>>()))
                        .filter(|(_, versions)| !versions.is_empty())
                        .collect();
                    prop_assert_eq!(found, expected);
                }
                Step::Truncate { back } => {
                    model.wanted = model.wanted.max(model.now - back);
                    model.truncate();
                    let before = table.counts();
                    let done = table.truncate(CommitTs(model.now - back));
                    prop_assert_eq!(done.upto.0, model.truncated);
                    prop_assert_eq!(before.versions - done.versions, table.counts().versions);
                    prop_assert_eq!(before.bytes - done.bytes, table.counts().bytes);
                }
                Step::Open { back, above } if open.is_none() => {
                    let (at, above) = (model.now - back, model.truncated + above);
                    let scan = table.scan(.., CommitTs(at), CommitTs(above)).unwrap();
                    model.pins.push(above);
                    open = Some((scan, model.scan(0..u16::MAX, at, above), above));
                }
                Step::Open { .. } => {}
                Step::Advance(chunk) => {
                    if let Some((scan, expected, above)) = &mut open {
                        let rows = scan.next_chunk(chunk).unwrap_or_default();
                        prop_assert_eq!(rows.len(), chunk.min(expected.len()));
                        prop_assert_eq!(&expected[..rows.len()], &rows);
                        expected.drain(..rows.len());
                        if expected.is_empty() {
                            model.pins.remove(model.pins.iter().position(|pin| pin == above).unwrap());
                            open = None;
                            tier.truncate_deferred();
                            model.truncate();
                        }
                    }
                }
                Step::Pin => {
                    model.pins.push(model.truncated);
                    pins.push(table.pin_all());
                }
                Step::Unpin => {
                    if let Some(pin) = pins.pop() {
                        let pin: crate::Pin = pin;
                        model.pins.remove(model.pins.iter().position(|other| *other == pin.above().0).unwrap());
                        drop(pin);
                        tier.truncate_deferred();
                        model.truncate();
                    }
                }
            }
            model.check(&table)?;
            prop_assert_eq!(tier.bytes(), table.bytes());
        }
        drop((pins, open));
        table.truncate(CommitTs::MAX);
        prop_assert_eq!((table.counts(), tier.bytes()), (Counts::default(), 0));
    }
}

#[test]
fn large_tables_are_truncated_in_chunks() {
    let (tier, table) = table();
    table.apply_all((0..10_000).map(|number| (key(number), put(1 + i64::from(number % 3), "row", false))));
    table.apply_all((0..10_000).step_by(2).map(|number| (key(number), put(9, "row", true))));
    let done = table.truncate(CommitTs(2));
    assert_eq!(done.versions, (0..10_000).filter(|number| number % 3 < 2).count());
    assert_eq!(table.oldest(), Some(CommitTs(3)));
    let expected = (0..10_000).filter(|number| number % 3 == 2 || number % 2 == 0).count();
    assert_eq!(table.len(), expected);
    assert_eq!(table.scan(.., CommitTs(9), CommitTs(2)).unwrap().flatten().count(), expected);
    assert_eq!(tier.bytes(), table.bytes());
}

#[test]
#[ignore = "measures, in whatever profile it is built"]
fn throughput() {
    const ROWS: u32 = 500_000;
    let (_tier, table) = table();
    // As in log entries: each key lies beside its row, and entries of a hundred rows are allocations of their own.
    let (mut keys, mut rows) = (Vec::new(), Vec::new());
    for entry in 0..ROWS / 100 {
        let mut bytes = vec![7u8; 100 * 160];
        for number in 0..100 {
            let at = number as usize * 160;
            bytes[at..at + 9].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0]);
            bytes[at + 5..at + 9].copy_from_slice(&(entry * 100 + number).wrapping_mul(2_654_435_761).to_be_bytes());
        }
        let bytes = Bytes::from(bytes);
        keys.extend((0..100).map(|number| RowKey(bytes.slice(number * 160..number * 160 + 9))));
        rows.extend((0..100).map(|number| bytes.slice(number * 160 + 10..number * 160 + 160)));
    }
    let report = |what: &str, work: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        work();
        println!("{what:<40} {:>8.2} million/s", f64::from(ROWS) / start.elapsed().as_secs_f64() / 1e6);
    };
    let versions = |ts: i64| {
        let version =
            move |(key, row): (&RowKey, &Bytes)| (key.clone(), Version::put(CommitTs(ts), row.clone(), ts > 1));
        keys.iter().zip(&rows).map(version)
    };
    report("apply new rows in random order", &mut || table.apply_all(versions(1)));
    report("apply second versions", &mut || table.apply_all(versions(2)));
    report("get", &mut || assert!(keys.iter().all(|key| table.get(key, CommitTs(2)).is_some())));
    report("newest", &mut || assert!(keys.iter().all(|key| table.newest(key).is_some())));
    report("scan", &mut || {
        assert_eq!(
            table.scan(.., CommitTs(1), CommitTs::ZERO).unwrap().map(|rows| rows.len()).sum::<usize>(),
            keys.len()
        )
    });
    report("drain", &mut || {
        assert_eq!(table.drain_view(CommitTs(2)).map(|rows| rows.len()).sum::<usize>(), keys.len())
    });
    report("truncate first versions", &mut || assert_eq!(table.truncate(CommitTs(1)).versions, keys.len()));
    println!("{} bytes per row of 150", table.bytes() / keys.len());
    report("truncate everything", &mut || assert_eq!(table.truncate(CommitTs(2)).versions, keys.len()));
}
