//! The writer: turns requests into records, writes and syncs them in batches, and answers in order.
//!
//! The writer itself has no thread and no timer; [`Writer::run`] gives it both, and tests move it by hand.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use base::LogIndex;
use parking_lot::MutexGuard;
use runtime::{Disk, DiskLock, create_dir_durably, failpoint, read_exact_at};

use crate::error::{Error, Result};
use crate::housekeeping::Housekeeping;
use crate::record::{self, Kind, Link, State, record_bytes};
use crate::recovery::{self, Found};
use crate::segment::{self, FIRST_RECORD, Segment};
use crate::shared::{Front, Location, Locations, Moved, Op, Request, Shared};
use crate::{Done, JournalOptions, Recovered};

/// Syncs by site. Each is proven needed by a test that switches it off.
const SYNC_BATCH: &str = "journal.batch";
const SYNC_FULL_SEGMENT: &str = "journal.full_segment";
const SYNC_OPEN: &str = "journal.open";
const SYNC_OPEN_ENTRIES: &str = "journal.open_entries";
const SYNC_RECOVERED: &str = "journal.recovered";
const SYNC_MARK: &str = "journal.mark";

const SEGMENT_BYTES_MIN: u64 = 20 << 10;
const SEGMENT_BYTES_MAX: u64 = 2 << 30;

/// Bytes to be written in one piece.
struct Run {
    segment: Arc<Segment>,
    offset: u64,
    bytes: Vec<u8>,
}

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    active: Arc<Segment>,
    /// Where the next record goes in the active segment.
    offset: u64,
    /// The checksum and the number of the last record.
    chain: u32,
    sequence: u64,
    /// The number of the last record that is known to be durable.
    durable: u64,
    epoch: u32,
    /// What a state record would say now.
    state: State,
    runs: Vec<Run>,
    /// Segments written to since they were synced, in order.
    dirty: Vec<Arc<Segment>>,
    moved: Vec<Moved>,
    opened: Vec<Arc<Segment>>,
    records: u64,
    /// The number up to which a mark calls records durable, and how many marks were written.
    marked: u64,
    marks: usize,
    _lock: DiskLock,
}

/// What the thread does next.
enum Next {
    Batch(Vec<Request>),
    Mark,
    SyncMark,
    Close,
    Failed(Vec<Request>),
}

impl Writer {
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        mut options: JournalOptions,
    ) -> Result<(Arc<Shared>, Writer, Recovered)> {
        options.segment_bytes =
            options.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX).next_multiple_of(segment::BLOCK);
        create_dir_durably(&*disk, dir).map_err(Error::io("create folder", dir))?;
        let lock = disk.lock_exclusive(&dir.join("lock")).map_err(|source| match source.kind() {
            std::io::ErrorKind::WouldBlock => Error::Locked { dir: dir.to_owned(), source },
            _ => Error::Io { action: "lock", path: dir.to_owned(), source },
        })?;
        let found = recovery::recover(&*disk, dir)?;
        // A process may have died between creating a segment and making its entry durable.
        disk.sync_dir(dir, SYNC_OPEN_ENTRIES).map_err(Error::io("sync folder", dir))?;
        let found = match found {
            Some(found) => found,
            None => create(&*disk, dir, &options)?,
        };
        // JOURNAL-5: what is reported as there must not be lost later. Nobody may have synced it yet, or a sync has failed:
        // then the pages look clean, and only writing them again brings them to the disk.
        for (segment, range) in &found.unproven {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
            read_exact_at(&*segment.file, &mut bytes, range.start).map_err(Error::io("read", &segment.path))?;
            segment.file.write_at(&bytes, range.start).map_err(Error::io("write", &segment.path))?;
            segment.file.sync_data(SYNC_RECOVERED).map_err(Error::io("sync", &segment.path))?;
        }

        let recovered = Recovered {
            vote: found.state.vote.clone(),
            committed: found.state.committed.clone(),
            purged: found.state.purged.as_ref().map(|(index, marker)| (LogIndex(*index), marker.clone())),
            first: (!found.state.bounds.is_empty()).then_some(LogIndex(found.state.bounds.first)),
            last: (!found.state.bounds.is_empty()).then(|| LogIndex(found.state.bounds.end - 1)),
            created: found.sequence == 0,
            torn_bytes: found.torn_bytes,
        };
        let last_number = found.reserve.back().map_or(found.active.number, |segment| segment.number);
        let housekeeping = Housekeeping::new(found.reserve, last_number + 1, options.reserve_segments);
        let shared = Arc::new(Shared::new(
            disk,
            dir.to_owned(),
            found.journal,
            options,
            found.state.bounds,
            found.state.purged.as_ref().map(|(index, _)| *index),
            found.locations,
            found.segments,
            housekeeping,
        ));
        let mut writer = Writer {
            shared: Arc::clone(&shared),
            active: found.active,
            offset: found.offset,
            chain: found.chain,
            sequence: found.sequence,
            durable: found.sequence,
            epoch: found.epoch,
            state: found.state,
            runs: Vec::new(),
            dirty: Vec::new(),
            moved: Vec::new(),
            opened: Vec::new(),
            records: 0,
            marked: 0,
            marks: 0,
            _lock: lock,
        };
        writer.start_epoch()?;
        shared.housekeeping.remove(found.leftover);
        writer.remove_unneeded();
        Ok((shared, writer, recovered))
    }

    /// Begins a new epoch with a state record, so that nothing a crash left behind the end can join the chain again.
    fn start_epoch(&mut self) -> Result<()> {
        let state = self.state.encode();
        if !self.fits(state.len()) {
            self.end_segment()?;
        }
        self.epoch += 1;
        self.put(Kind::State, 0, &state);
        self.write_runs()?;
        self.publish(0);
        self.sync(SYNC_OPEN)
    }

    fn fits(&self, payload: usize) -> bool {
        let needed = record_bytes(payload) + record_bytes(0);
        self.offset + needed as u64 <= self.active.capacity
    }

    /// Adds a record, in the next segment when this one is full. Returns where it lies.
    fn add(&mut self, kind: Kind, index: u64, payload: &[u8]) -> Result<Location> {
        // More than once only where segments of an earlier, smaller size wait in the reserve.
        while !self.fits(payload.len()) {
            self.roll()?;
        }
        Ok(self.put(kind, index, payload))
    }

    fn roll(&mut self) -> Result<()> {
        self.end_segment()?;
        let state = self.state.encode();
        self.put(Kind::State, 0, &state);
        Ok(())
    }

    /// Ends the active segment and takes the next one. The caller writes its state record.
    fn end_segment(&mut self) -> Result<()> {
        let next = self.shared.take_segment()?;
        self.put(Kind::End, next.number, &[]);
        self.active = Arc::clone(&next);
        self.offset = FIRST_RECORD;
        self.opened.push(next);
        Ok(())
    }

    fn put(&mut self, kind: Kind, index: u64, payload: &[u8]) -> Location {
        if self.runs.last().is_none_or(|run| run.segment.number != self.active.number) {
            let segment = Arc::clone(&self.active);
            self.runs.push(Run { segment, offset: self.offset, bytes: Vec::new() });
        }
        let run = self.runs.last_mut().expect("pushed above when there was none");
        let link = Link { previous: self.chain, epoch: self.epoch, sequence: self.sequence + 1, synced: self.durable };
        self.chain = record::encode(&mut run.bytes, self.shared.salt, link, kind, index, payload);
        let location = Location {
            segment: self.active.number,
            offset: u32::try_from(self.offset).expect("segments are below 4 GiB"),
            len: u32::try_from(payload.len()).expect("segments are below 4 GiB"),
        };
        self.sequence += 1;
        self.records += 1;
        self.offset += record_bytes(payload.len()) as u64;
        location
    }

    fn write_runs(&mut self) -> Result<()> {
        let mut bytes = 0;
        for run in self.runs.drain(..) {
            run.segment.file.write_at(&run.bytes, run.offset).map_err(Error::io("write", &run.segment.path))?;
            bytes += run.bytes.len() as u64;
            if self.dirty.last().is_none_or(|segment| segment.number != run.segment.number) {
                self.dirty.push(run.segment);
            }
        }
        let mut front = self.shared.front.lock();
        front.stats.bytes += bytes;
        front.stats.records += std::mem::take(&mut self.records);
        Ok(())
    }

    /// Lets readers find on disk what was written.
    fn publish(&mut self, requests: usize) {
        let moved = std::mem::take(&mut self.moved);
        let opened = std::mem::take(&mut self.opened);
        self.shared.written(requests, moved, opened);
    }

    /// Makes everything written durable.
    fn sync(&mut self, site: &'static str) -> Result<()> {
        let count = self.dirty.len();
        for (at, segment) in self.dirty.drain(..).enumerate() {
            // Old segments first: then a durable record always has all before it. That is not needed for safety, but
            // leaves less torn.
            let site = if at + 1 < count { SYNC_FULL_SEGMENT } else { site };
            segment.file.sync_data(site).map_err(Error::io("sync", &segment.path))?;
        }
        if count > 0 {
            self.durable = self.sequence;
            self.shared.front.lock().stats.syncs += count as u64;
        }
        Ok(())
    }

    /// Writes a batch and answers it. After an error the journal is poisoned and everything is answered with it.
    pub(crate) fn process(&mut self, batch: Vec<Request>) {
        let mut callbacks = Vec::with_capacity(batch.len());
        let result = self.write_batch(batch, &mut callbacks);
        match result {
            Ok(purged) => {
                callbacks.into_iter().for_each(|done| done(Ok(())));
                if purged {
                    self.remove_unneeded();
                }
            }
            Err(error) => {
                self.shared.fail(&error);
                callbacks.into_iter().for_each(|done| done(Err(error.to_io())));
            }
        }
    }

    /// Returns whether segments may have become unneeded.
    fn write_batch(&mut self, batch: Vec<Request>, callbacks: &mut Vec<Done>) -> Result<bool> {
        let requests = batch.len();
        let mut ops = Vec::with_capacity(requests);
        for Request { op, done } in batch {
            callbacks.extend(done);
            ops.push(op);
        }
        // JOURNAL-7: only a committed position has no callback, and only a batch of nothing else is not synced.
        let must_sync = !callbacks.is_empty();
        let mut purged = false;
        let mut ops = ops.into_iter().peekable();
        while let Some(op) = ops.next() {
            match op {
                Op::Append { first, payloads } => {
                    for (index, payload) in (first..).zip(&payloads) {
                        let location = self.add(Kind::Entry, index, payload)?;
                        self.state.bounds.append(index);
                        self.moved.push(Moved::Wrote(index, location));
                    }
                }
                Op::Vote(vote) => {
                    self.add(Kind::Vote, 0, &vote)?;
                    self.state.vote = Some(vote);
                }
                Op::Committed(_) if matches!(ops.peek(), Some(Op::Committed(_))) => {}
                Op::Committed(committed) => {
                    self.add(Kind::Committed, 0, &committed)?;
                    self.state.committed = Some(committed);
                }
                Op::Truncate(Some(end)) => {
                    self.add(Kind::Truncate, end, &[1])?;
                    self.state.bounds.truncate(end);
                    self.moved.push(Moved::Truncated(self.state.bounds.end));
                }
                Op::Truncate(None) => {
                    self.add(Kind::Truncate, 0, &[0])?;
                    self.state.bounds.clear(self.state.purged.is_some());
                    self.moved.push(Moved::Cleared);
                }
                Op::Purge(upto, marker) => {
                    self.add(Kind::Purge, upto, &marker)?;
                    self.state.bounds.purge(upto);
                    self.state.purged = Some((upto, marker));
                    self.moved.push(Moved::Purged(self.state.bounds.first));
                    purged = true;
                }
                Op::Roll => self.roll()?,
                Op::Flush => {}
            }
        }
        failpoint!("journal.before_write");
        self.write_runs()?;
        self.publish(requests);
        failpoint!("journal.before_sync");
        if must_sync && !self.dirty.is_empty() {
            self.sync(SYNC_BATCH)?;
            self.shared.front.lock().stats.batches += 1;
        }
        failpoint!("journal.after_sync");
        Ok(purged)
    }

    /// Removes the segments before the first entry: their other records are summed up in the state record of each later
    /// segment. Only called when the purge is durable.
    fn remove_unneeded(&mut self) {
        failpoint!("journal.before_remove");
        let mut front = self.shared.front.lock();
        let keep = front.locations.first_segment().unwrap_or(self.active.number).min(self.active.number);
        let kept = front.segments.split_off(&keep);
        let removed = std::mem::replace(&mut front.segments, kept);
        drop(front);
        self.shared.housekeeping.remove(removed.into_values().map(|segment| segment.path.clone()));
    }

    /// Marks what is durable, without making the mark durable.
    pub(crate) fn mark(&mut self) -> Result<()> {
        if self.marked < self.durable {
            self.active.write_mark(self.shared.salt, self.marks, self.durable)?;
            self.marked = self.durable;
            self.marks += 1;
            if self.dirty.last().is_none_or(|segment| segment.number != self.active.number) {
                self.dirty.push(Arc::clone(&self.active));
            }
        }
        Ok(())
    }

    /// Makes the mark durable.
    pub(crate) fn sync_mark(&mut self) -> Result<()> {
        self.sync(SYNC_MARK)
    }

    /// Takes everything that waits, as one batch.
    fn take_batch(&self, front: &mut MutexGuard<'_, Front>) -> Vec<Request> {
        let mut bytes = 0;
        let mut batch = Vec::new();
        while let Some(request) = front.queue.front() {
            bytes += request.op.bytes();
            if !batch.is_empty() && bytes > self.shared.options.batch_bytes {
                break;
            }
            batch.extend(front.queue.pop_front());
        }
        batch
    }

    fn next(&self) -> Next {
        let options = &self.shared.options;
        let mut front = self.shared.front.lock();
        loop {
            if front.check().is_err() {
                return Next::Failed(front.queue.drain(..).collect());
            }
            if !front.queue.is_empty() {
                return Next::Batch(self.take_batch(&mut front));
            }
            if front.closing {
                return Next::Close;
            }
            let (pause, next) = if self.marked < self.durable {
                (options.mark_after, Next::Mark)
            } else if !self.dirty.is_empty() {
                (options.sync_mark_after, Next::SyncMark)
            } else {
                self.shared.requested.wait(&mut front);
                continue;
            };
            // A wake-up without a request starts the pause again, which is early enough.
            if self.shared.requested.wait_for(&mut front, pause).timed_out() && front.queue.is_empty() {
                return next;
            }
        }
    }

    /// One step of the thread. Returns whether there is another.
    fn step(&mut self, next: Next) -> bool {
        let result = match next {
            Next::Batch(batch) => {
                self.process(batch);
                Ok(())
            }
            Next::Mark => self.mark(),
            Next::SyncMark => self.sync_mark(),
            Next::Close => {
                let closed = self.mark().and_then(|()| self.sync_mark());
                if let Err(error) = &closed {
                    self.shared.fail(error);
                }
                return false;
            }
            Next::Failed(requests) => {
                let error = self.shared.check().err().unwrap_or(Error::Closed);
                requests.into_iter().filter_map(|request| request.done).for_each(|done| done(Err(error.to_io())));
                return false;
            }
        };
        if let Err(error) = result {
            self.shared.fail(&error);
        }
        true
    }

    /// The writer's thread.
    pub(crate) fn run(&mut self) {
        let _end = OnEnd(Arc::clone(&self.shared));
        loop {
            let next = self.next();
            if !self.step(next) {
                return;
            }
        }
    }

    /// Does what the thread and the keeper would do now, without pauses. Returns whether there was a batch.
    #[cfg(test)]
    pub(crate) fn pump(&mut self) -> bool {
        let next = {
            let mut front = self.shared.front.lock();
            if front.queue.is_empty() {
                return false;
            } else if front.check().is_err() {
                Next::Failed(front.queue.drain(..).collect())
            } else {
                Next::Batch(self.take_batch(&mut front))
            }
        };
        self.step(next);
        while self.shared.keep_house(false) {}
        true
    }

    /// Does what the thread does when it is told to close.
    #[cfg(test)]
    pub(crate) fn finish(&mut self) {
        while self.pump() {}
        if self.shared.check().is_ok() {
            self.step(Next::Close);
        }
    }
}

/// Ends the keeper with the writer, and the journal when the writer panicked.
struct OnEnd(Arc<Shared>);

impl Drop for OnEnd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(&Error::Poisoned { reason: "the writer thread panicked".to_owned() });
            let waiting: Vec<Request> = self.0.front.lock().queue.drain(..).collect();
            // Callbacks are dropped without a call: one of them has just panicked.
            drop(waiting);
        }
        self.0.housekeeping.stop();
    }
}

/// Makes the first segment of a new journal.
fn create(disk: &dyn Disk, dir: &Path, options: &JournalOptions) -> Result<Found> {
    let journal = options.journal_id.unwrap_or_else(rand::random);
    let active = segment::create(disk, dir, journal, 1, options.segment_bytes)?;
    Ok(Found {
        journal,
        state: State::default(),
        locations: Locations::default(),
        segments: BTreeMap::from([(1, Arc::clone(&active))]),
        reserve: VecDeque::new(),
        active,
        offset: FIRST_RECORD,
        chain: 0,
        sequence: 0,
        epoch: 0,
        unproven: Vec::new(),
        leftover: Vec::new(),
        torn_bytes: 0,
    })
}
