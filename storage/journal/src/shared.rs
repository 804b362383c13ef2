//! What callers, the writer and the keeper share: the queue, the view of the log that readers see, and the first
//! failure.
//!
//! One mutex guards the queue together with that view, so that the order in which requests change the view is the order
//! in which they reach the disk. It is never held across I/O.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::LogIndex;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use runtime::{Disk, read_exact_at};

use crate::error::{Error, Result};
use crate::housekeeping::Housekeeping;
use crate::record::{self, Bounds, Kind, record_bytes};
use crate::segment::{FIRST_RECORD, Segment};
use crate::{Done, JournalOptions, MAX_META_BYTES, Stats};

/// Old entries are read from disk in pieces of about this size.
const READ_BYTES: usize = 4 << 20;
/// Free space is asked for at most this often.
const SPACE_CHECK_EVERY: Duration = Duration::from_millis(100);

/// A request to the writer.
#[derive(Debug)]
pub(crate) enum Op {
    Append {
        first: u64,
        payloads: Vec<Bytes>,
    },
    Vote(Bytes),
    Committed(Bytes),
    /// The entries from here on go; all of them when missing.
    Truncate(Option<u64>),
    Purge(u64, Bytes),
    Roll,
    Flush,
}

impl Op {
    /// About how many bytes the request adds to a batch.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Op::Append { payloads, .. } => payloads.iter().map(|payload| record_bytes(payload.len())).sum(),
            _ => record_bytes(0),
        }
    }
}

pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) done: Option<Done>,
}

/// Where the record of an entry lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Location {
    pub(crate) segment: u64,
    pub(crate) offset: u32,
    /// Of the payload.
    pub(crate) len: u32,
}

/// A change of the locations that the writer made.
#[derive(Debug)]
pub(crate) enum Moved {
    Wrote(u64, Location),
    /// The entries from here on went.
    Truncated(u64),
    /// All entries went.
    Cleared,
    /// The entries before this one went.
    Purged(u64),
}

#[derive(Debug)]
struct Cached {
    /// The number of the request that brought it.
    request: u64,
    payload: Bytes,
}

/// The locations of all written entries, in the order of their indexes.
#[derive(Debug, Default)]
pub(crate) struct Locations {
    first: u64,
    list: VecDeque<Location>,
}

impl Locations {
    pub(crate) fn apply(&mut self, moved: Moved) {
        match moved {
            Moved::Wrote(index, location) => {
                if self.list.is_empty() {
                    self.first = index;
                }
                debug_assert_eq!(index, self.first + self.list.len() as u64);
                self.list.push_back(location);
            }
            Moved::Truncated(end) => self.list.truncate(usize::try_from(end.saturating_sub(self.first)).unwrap_or(0)),
            Moved::Cleared => self.list.clear(),
            Moved::Purged(first) => {
                while self.first < first && self.list.pop_front().is_some() {
                    self.first += 1;
                }
            }
        }
    }

    fn get(&self, index: u64) -> Option<Location> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.list.get(at).copied()
    }

    /// The segment of the first entry.
    pub(crate) fn first_segment(&self) -> Option<u64> {
        self.list.front().map(|location| location.segment)
    }

    /// The indexes that are there: first, and one past the last.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        (!self.list.is_empty()).then(|| (self.first, self.first + self.list.len() as u64))
    }
}

/// What the mutex guards.
pub(crate) struct Front {
    pub(crate) queue: VecDeque<Request>,
    /// Counts requests.
    requests: u64,
    /// Requests up to this one are written, if not synced.
    written: u64,
    pub(crate) closing: bool,
    failure: Option<String>,
    /// What readers see.
    bounds: Bounds,
    purged: Option<u64>,
    /// The last entries of `bounds`: from `cache_first` on, which is the end while it is empty.
    cache: VecDeque<Cached>,
    cache_first: u64,
    cached_bytes: usize,
    pub(crate) locations: Locations,
    pub(crate) segments: BTreeMap<u64, Arc<Segment>>,
    pub(crate) stats: Stats,
    space_checked: Option<(Instant, bool)>,
}

pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) journal: u64,
    pub(crate) salt: u32,
    pub(crate) options: JournalOptions,
    pub(crate) front: Mutex<Front>,
    /// Signals a request, or the end.
    pub(crate) requested: Condvar,
    pub(crate) housekeeping: Housekeeping,
}

impl Shared {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        journal: u64,
        options: JournalOptions,
        bounds: Bounds,
        purged: Option<u64>,
        locations: Locations,
        segments: BTreeMap<u64, Arc<Segment>>,
        housekeeping: Housekeeping,
    ) -> Self {
        let front = Front {
            queue: VecDeque::new(),
            requests: 0,
            written: 0,
            closing: false,
            failure: None,
            bounds,
            purged,
            cache: VecDeque::new(),
            cache_first: bounds.end,
            cached_bytes: 0,
            locations,
            segments,
            stats: Stats::default(),
            space_checked: None,
        };
        Self {
            disk,
            dir,
            journal,
            salt: salt(journal),
            options,
            front: Mutex::new(front),
            requested: Condvar::new(),
            housekeeping,
        }
    }

    pub(crate) fn append(&self, entries: Vec<(LogIndex, Bytes)>, done: Done) -> Result<()> {
        let mut front = self.front.lock();
        front.check_open()?;
        let mut bounds = front.bounds;
        for (index, _) in &entries {
            if bounds.anchored && index.0 != bounds.end {
                return Err(Error::Gap { expected: LogIndex(bounds.end), got: *index });
            }
            bounds.append(index.0);
        }
        front.bounds = bounds;
        if front.cache.is_empty() {
            front.cache_first = entries.first().map_or(bounds.end, |(index, _)| index.0);
        }
        let request = front.requests;
        let first = entries.first().map_or(0, |(index, _)| index.0);
        let mut payloads = Vec::with_capacity(entries.len());
        for (_, payload) in entries {
            front.cached_bytes += payload.len();
            front.cache.push_back(Cached { request, payload: payload.clone() });
            payloads.push(payload);
        }
        self.push(&mut front, Op::Append { first, payloads }, Some(done));
        Ok(())
    }

    pub(crate) fn truncate_after(&self, last: Option<LogIndex>, done: Done) -> Result<()> {
        let mut front = self.front.lock();
        front.check_open()?;
        let end = match (last, front.purged) {
            (None, _) => None,
            (Some(index), Some(purged)) if index.0 < purged => {
                return Err(Error::Purged { index, purged: LogIndex(purged) });
            }
            (Some(index), _) => Some(index.0 + 1),
        };
        match end {
            Some(end) => front.bounds.truncate(end),
            None => {
                let purged = front.purged.is_some();
                front.bounds.clear(purged);
            }
        }
        front.fit_cache();
        self.push(&mut front, Op::Truncate(end), Some(done));
        Ok(())
    }

    pub(crate) fn purge(&self, upto: LogIndex, marker: Bytes, done: Done) -> Result<()> {
        let mut front = self.front.lock();
        front.check_open()?;
        if let Some(purged) = front.purged
            && upto.0 < purged
        {
            return Err(Error::Purged { index: upto, purged: LogIndex(purged) });
        }
        front.purged = Some(upto.0);
        front.bounds.purge(upto.0);
        front.fit_cache();
        self.push(&mut front, Op::Purge(upto.0, marker), Some(done));
        Ok(())
    }

    pub(crate) fn enqueue(&self, op: Op, done: Option<Done>) -> Result<()> {
        let mut front = self.front.lock();
        front.check_open()?;
        self.push(&mut front, op, done);
        Ok(())
    }

    fn push(&self, front: &mut Front, op: Op, done: Option<Done>) {
        front.requests += 1;
        front.stats.requests += 1;
        front.queue.push_back(Request { op, done });
        self.requested.notify_one();
    }

    /// Notes what the writer wrote and forgets entries that the cache has no room for.
    pub(crate) fn written(&self, requests: usize, moved: Vec<Moved>, segments: Vec<Arc<Segment>>) {
        let mut front = self.front.lock();
        for change in moved {
            front.locations.apply(change);
        }
        for segment in segments {
            front.segments.insert(segment.number, segment);
        }
        front.written += requests as u64;
        while front.cached_bytes > self.options.cache_bytes
            && front.cache.front().is_some_and(|cached| cached.request < front.written)
        {
            front.drop_oldest();
        }
    }

    pub(crate) fn read(&self, range: Range<LogIndex>, max_bytes: usize) -> Result<Vec<(LogIndex, Bytes)>> {
        let mut on_disk = Vec::new();
        let mut cached = Vec::new();
        {
            let front = self.front.lock();
            front.check()?;
            let first = range.start.0.max(front.bounds.first);
            let end = range.end.0.min(front.bounds.end);
            let mut bytes = 0_usize;
            for index in first..end {
                let entry = front.cached(index);
                let location = if entry.is_none() { front.locations.get(index) } else { None };
                let len = match (&entry, location) {
                    (Some(payload), _) => payload.len(),
                    (None, Some(location)) => location.len as usize,
                    (None, None) => {
                        // JOURNAL-6: an entry leaves the cache only when its location is known.
                        let detail = format!("entry {index} has no place in the journal");
                        return Err(Error::Corrupt { file: self.dir.clone(), offset: 0, detail });
                    }
                };
                bytes = bytes.saturating_add(len);
                if bytes > max_bytes && index > first {
                    break;
                }
                if let Some(payload) = entry {
                    cached.push((LogIndex(index), payload));
                } else if let Some(location) = location {
                    let segment = front.segments.get(&location.segment).cloned();
                    on_disk.push((index, location, segment));
                }
            }
        }
        if on_disk.is_empty() {
            return Ok(cached);
        }
        let mut found = Vec::with_capacity(on_disk.len() + cached.len());
        let mut rest = on_disk.as_slice();
        while let Some((_, start, Some(segment))) = rest.first() {
            let end_of = |location: &Location| location.offset as usize + record_bytes(location.len as usize);
            let near = |at: &&(u64, Location, Option<Arc<Segment>>)| {
                let together = at.1.segment == start.segment && at.1.offset >= start.offset;
                together && end_of(&at.1) - start.offset as usize <= READ_BYTES.max(record_bytes(start.len as usize))
            };
            let count = rest.iter().take_while(near).count().max(1);
            let (run, later) = rest.split_at(count);
            let end = run.last().map_or(0, |(_, location, _)| end_of(location));
            self.read_run(segment, start.offset, end, run, &mut found).inspect_err(|error| self.fail(error))?;
            rest = later;
        }
        if let Some((index, location, _)) = rest.first() {
            let detail = format!("entry {index} lies in segment {}, which is gone", location.segment);
            let error = Error::Corrupt { file: self.dir.clone(), offset: u64::from(location.offset), detail };
            self.fail(&error);
            return Err(error);
        }
        found.append(&mut cached);
        Ok(found)
    }

    /// Reads neighbouring records of one segment at once, and checks each.
    fn read_run(
        &self,
        segment: &Segment,
        start: u32,
        end: usize,
        run: &[(u64, Location, Option<Arc<Segment>>)],
        found: &mut Vec<(LogIndex, Bytes)>,
    ) -> Result<()> {
        let mut buffer = vec![0; end - start as usize];
        read_exact_at(&*segment.file, &mut buffer, u64::from(start)).map_err(Error::io("read", &segment.path))?;
        let buffer = Bytes::from(buffer);
        for (index, location, _) in run {
            let at = (location.offset - start) as usize;
            let payload = record::decode(&buffer[at..], self.salt)
                .filter(|header| (header.kind, header.index, header.len) == (Kind::Entry, *index, location.len))
                .and_then(|header| record::payload(&header, &buffer[at..]));
            let Some(payload) = payload else {
                let detail = format!("entry {index} was written here and reads differently now");
                return Err(Error::Corrupt { file: segment.path.clone(), offset: u64::from(location.offset), detail });
            };
            found.push((LogIndex(*index), buffer.slice_ref(payload)));
        }
        Ok(())
    }

    pub(crate) fn bounds(&self) -> (Option<LogIndex>, Option<LogIndex>) {
        let bounds = self.front.lock().bounds;
        if bounds.is_empty() {
            return (None, None);
        }
        (Some(LogIndex(bounds.first)), Some(LogIndex(bounds.end - 1)))
    }

    pub(crate) fn max_entry_bytes(&self) -> usize {
        let capacity = usize::try_from(self.options.segment_bytes).unwrap_or(usize::MAX);
        // A state record, an end record and the entry must fit together.
        let fixed = FIRST_RECORD as usize + record_bytes(3 * MAX_META_BYTES + 64) + 2 * record_bytes(8);
        capacity.saturating_sub(fixed)
    }

    pub(crate) fn free_space_low(&self) -> bool {
        let missing = self.housekeeping.reserve_missing();
        if let Some((at, low)) = self.front.lock().space_checked
            && at.elapsed() < SPACE_CHECK_EVERY
        {
            return low || missing;
        }
        // A disk that cannot say is no reason to refuse: writing will tell.
        let free = self.disk.free_space(&self.dir).unwrap_or(u64::MAX);
        let low = free < self.options.low_water_bytes;
        self.front.lock().space_checked = Some((Instant::now(), low));
        if missing && free >= self.options.segment_bytes {
            self.housekeeping.retry();
        }
        low || missing
    }

    pub(crate) fn stats(&self) -> Stats {
        let front = self.front.lock();
        Stats { segments: front.segments.len(), cached_bytes: front.cached_bytes, ..front.stats }
    }

    pub(crate) fn begin_close(&self) {
        self.front.lock().closing = true;
        self.requested.notify_all();
        // The keeper ends after the writer, which may still need a segment.
    }

    /// The first failure, if any.
    pub(crate) fn check(&self) -> Result<()> {
        self.front.lock().check()
    }

    /// Stops the journal for good. The first caller's error counts, and is told to the owner.
    pub(crate) fn fail(&self, error: &Error) {
        {
            let mut front = self.front.lock();
            if front.failure.is_some() {
                return;
            }
            front.failure = Some(error.with_cause());
        }
        self.requested.notify_all();
        self.housekeeping.stop();
        tracing::error!(error = error.with_cause(), "the journal failed and stops");
        if let Some(on_fatal) = &self.options.on_fatal {
            on_fatal(error);
        }
    }
}

impl Front {
    pub(crate) fn check(&self) -> Result<()> {
        match &self.failure {
            Some(reason) => Err(Error::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn check_open(&self) -> Result<()> {
        self.check()?;
        if self.closing { Err(Error::Closed) } else { Ok(()) }
    }

    fn cached(&self, index: u64) -> Option<Bytes> {
        let at = usize::try_from(index.checked_sub(self.cache_first)?).ok()?;
        self.cache.get(at).map(|cached| cached.payload.clone())
    }

    fn drop_oldest(&mut self) {
        if let Some(cached) = self.cache.pop_front() {
            self.cached_bytes -= cached.payload.len();
            self.cache_first += 1;
        }
    }

    /// Drops what fell out of the bounds.
    fn fit_cache(&mut self) {
        while self.cache_first + self.cache.len() as u64 > self.bounds.end
            && let Some(cached) = self.cache.pop_back()
        {
            self.cached_bytes -= cached.payload.len();
        }
        while self.cache_first < self.bounds.first && !self.cache.is_empty() {
            self.drop_oldest();
        }
        if self.cache.is_empty() {
            self.cache_first = self.bounds.end;
        }
    }
}

/// The seed of the checksums of one journal: records of another one, or made up by somebody who does not know its id,
/// do not pass.
pub(crate) fn salt(journal: u64) -> u32 {
    crc32c::crc32c(&journal.to_le_bytes())
}
