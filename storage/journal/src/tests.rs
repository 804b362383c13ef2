//! Tests, by what they are after. Most move the writer by hand on a simulated disk, so that they repeat exactly.

mod basic;
mod crash;
mod damage;
mod faults;
mod fixture;
mod model;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::LogIndex;
use bytes::Bytes;
use parking_lot::Mutex;
use runtime::{Disk, SimDisk};

use crate::writer::Writer;
use crate::{Done, Error, Journal, JournalOptions, Recovered, Result};

const DIR: &str = "/data/journal";

fn small() -> JournalOptions {
    JournalOptions {
        segment_bytes: 20 << 10,
        low_water_bytes: 0,
        cache_bytes: 4 << 10,
        journal_id: Some(0x1234_5678_9abc_def0),
        ..JournalOptions::default()
    }
}

/// A journal whose writer the test moves.
struct Manual {
    journal: Journal,
    writer: Writer,
    answers: Answers,
}

/// The outcomes of requests, in the order in which their callbacks ran.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<Vec<(usize, bool)>>>);

impl Answers {
    fn callback(&self, request: usize) -> Done {
        let list = Arc::clone(&self.0);
        Box::new(move |result| list.lock().push((request, result.is_ok())))
    }

    fn take(&self) -> Vec<(usize, bool)> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Manual {
    fn open(disk: &SimDisk) -> Result<(Manual, Recovered)> {
        Manual::open_with(disk, small())
    }

    fn open_with(disk: &SimDisk, options: JournalOptions) -> Result<(Manual, Recovered)> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let (journal, writer, recovered) = Journal::open_unstarted(disk, Path::new(DIR), options)?;
        while writer.shared.keep_house(false) {}
        Ok((Manual { journal, writer, answers: Answers::default() }, recovered))
    }

    fn append(&mut self, entries: impl IntoIterator<Item = (u64, Bytes)>) {
        let entries = entries.into_iter().map(|(index, payload)| (LogIndex(index), payload)).collect();
        self.journal.append(entries, self.answers.callback(0)).unwrap();
    }

    /// Appends `count` entries of `bytes` bytes, each in a batch of its own.
    fn fill(&mut self, first: u64, count: u64, bytes: usize) {
        for index in first..first + count {
            self.append([(index, payload(index, bytes))]);
            assert!(self.writer.pump());
        }
        assert!(self.answers.take().iter().all(|(_, ok)| *ok));
    }

    fn close(mut self) {
        self.writer.finish();
    }
}

fn payload(index: u64, bytes: usize) -> Bytes {
    let mut content = [(index as u8).wrapping_mul(31) | 1].repeat(bytes);
    let number = index.to_le_bytes();
    let len = number.len().min(bytes);
    content[..len].copy_from_slice(&number[..len]);
    content.into()
}

/// Everything a journal holds.
#[derive(Clone, Default)]
struct Contents {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
    entries: BTreeMap<u64, Bytes>,
    /// The index that must come next, once there is one. Not seen from outside, and so not compared.
    next: Option<u64>,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<_> = self.entries.iter().map(|(index, payload)| (index, payload.len())).collect();
        write!(f, "vote {:?}, committed {:?}, purged {:?}, ", self.vote, self.committed, self.purged)?;
        write!(f, "entries (index, bytes) {entries:?}")
    }
}

impl PartialEq for Contents {
    fn eq(&self, other: &Self) -> bool {
        let seen = |contents: &Self| (contents.vote.clone(), contents.committed.clone(), contents.purged.clone());
        seen(self) == seen(other) && self.entries == other.entries
    }
}

impl Contents {
    fn of(journal: &Journal, recovered: &Recovered) -> Result<Contents> {
        let entries = journal.read(LogIndex(0)..LogIndex(u64::MAX))?;
        let entries: BTreeMap<u64, Bytes> = entries.into_iter().map(|(index, payload)| (index.0, payload)).collect();
        let bounds = (entries.keys().next().copied(), entries.keys().last().copied());
        assert_eq!((recovered.first.map(|index| index.0), recovered.last.map(|index| index.0)), bounds);
        let purged = recovered.purged.clone().map(|(index, marker)| (index.0, marker));
        Ok(Contents {
            vote: recovered.vote.clone(),
            committed: recovered.committed.clone(),
            purged,
            entries,
            next: None,
        })
    }

    fn append(&mut self, index: u64, payload: Bytes) {
        self.entries.insert(index, payload);
        self.next = Some(index + 1);
    }

    fn truncate_after(&mut self, last: Option<u64>) {
        let first = self.entries.keys().next().copied().or(self.next);
        match last {
            Some(last) => {
                self.entries.retain(|index, _| *index <= last);
                self.next = self.next.map(|next| next.min(last + 1)).max(first);
            }
            None => {
                self.entries.clear();
                self.next = self.purged.as_ref().map(|(purged, _)| purged + 1);
            }
        }
    }

    fn purge(&mut self, upto: u64, marker: Bytes) {
        self.entries.retain(|index, _| *index > upto);
        self.purged = Some((upto, marker));
        self.next = self.next.max(Some(upto + 1));
    }
}
