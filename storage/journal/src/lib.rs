#![doc = include_str!("../README.md")]

mod error;
mod housekeeping;
mod record;
mod recovery;
mod segment;
mod shared;
mod writer;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use base::LogIndex;
use bytes::Bytes;
use parking_lot::Mutex;
use runtime::Disk;

pub use error::{Error, Result};
use shared::{Op, Shared};
use writer::Writer;

/// Called once, from the writer thread, when the request it came with is durable or has failed. It must be quick and
/// must not wait for the journal.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Called once when the journal fails. The process should end: nothing more becomes durable.
pub type OnFatal = Arc<dyn Fn(&Error) + Send + Sync>;

/// The longest vote, committed position and purge marker, in bytes.
pub const MAX_META_BYTES: usize = 1024;

/// How a journal is kept.
#[derive(Clone)]
pub struct JournalOptions {
    /// The size of one segment file. At least 20 KiB, at most 2 GiB; segments that exist keep their size.
    pub segment_bytes: u64,
    /// Empty segments kept ready behind the one that is written, so that a full disk never stops a running commit.
    pub reserve_segments: usize,
    /// The journal calls the disk full below this much free space, which leaves room for a flush to make some.
    pub low_water_bytes: u64,
    /// Entries kept in memory at the end of the log, by bytes of payload. Unwritten entries are kept beyond it.
    pub cache_bytes: usize,
    /// Requests are written and synced together up to this many bytes.
    pub batch_bytes: usize,
    /// After a pause of this length the writer marks what is durable, so that later damage to the last batch can be told
    /// from a torn write.
    pub mark_after: Duration,
    /// After a further pause of this length it makes the mark durable too.
    pub sync_mark_after: Duration,
    /// Is told about the first failure.
    pub on_fatal: Option<OnFatal>,
    /// The id of a journal that is created; random when missing. For tests that must repeat exactly.
    pub journal_id: Option<u64>,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            reserve_segments: 1,
            low_water_bytes: 256 << 20,
            cache_bytes: 64 << 20,
            batch_bytes: 16 << 20,
            mark_after: Duration::from_millis(20),
            sync_mark_after: Duration::from_millis(500),
            on_fatal: None,
            journal_id: None,
        }
    }
}

impl fmt::Debug for JournalOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalOptions")
            .field("segment_bytes", &self.segment_bytes)
            .field("reserve_segments", &self.reserve_segments)
            .field("low_water_bytes", &self.low_water_bytes)
            .field("cache_bytes", &self.cache_bytes)
            .finish_non_exhaustive()
    }
}

/// What a journal held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last vote.
    pub vote: Option<Bytes>,
    /// The last committed position.
    pub committed: Option<Bytes>,
    /// The last purged index, and the marker that came with it.
    pub purged: Option<(LogIndex, Bytes)>,
    /// The first entry.
    pub first: Option<LogIndex>,
    /// The last entry.
    pub last: Option<LogIndex>,
    /// Whether the folder held no journal before.
    pub created: bool,
    /// Bytes behind the last whole record that a crash left unfinished. Nothing in them was ever confirmed.
    pub torn_bytes: u64,
}

/// Counters since the journal was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Data syncs of segment files, by the writer.
    pub syncs: u64,
    /// Batches written, each with one sync (two when it ends a segment).
    pub batches: u64,
    /// Records written.
    pub records: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Requests that came in.
    pub requests: u64,
    /// Segment files in use, the reserve not counted.
    pub segments: usize,
    /// Bytes of entries held in memory.
    pub cached_bytes: usize,
}

/// The log on disk. Cheap to clone; the last clone that goes closes it.
#[derive(Clone)]
pub struct Journal {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Journal {
    /// Opens the journal in `dir`, creating both when missing, and says what it holds.
    ///
    /// A batch that a crash left half written is cut off. Everything else that is wrong is an error, and then nothing
    /// in the folder was changed.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: JournalOptions) -> Result<(Journal, Recovered)> {
        let (journal, mut writer, recovered) = Journal::open_unstarted(disk, dir, options)?;
        let shared = Arc::clone(&journal.handle.shared);
        let keeper = Arc::clone(&shared);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
            spawned.map_err(Error::io("start a thread for", dir))
        };
        let mut threads = journal.handle.threads.lock();
        threads.push(spawn("journal-writer", Box::new(move || writer.run()))?);
        threads.push(spawn("journal-keeper", Box::new(move || keeper.run_housekeeping()))?);
        drop(threads);
        Ok((journal, recovered))
    }

    /// Opens without threads: the caller moves the writer.
    fn open_unstarted(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: JournalOptions,
    ) -> Result<(Journal, Writer, Recovered)> {
        let (shared, writer, recovered) = Writer::open(disk, dir, options)?;
        let journal = Journal { handle: Arc::new(Handle { shared, threads: Mutex::new(Vec::new()) }) };
        Ok((journal, writer, recovered))
    }

    /// Adds entries behind the last one. They can be read when this returns; `done` runs when they are durable.
    ///
    /// Callbacks run in the order of the requests. When this returns an error, `done` never runs.
    pub fn append(&self, entries: Vec<(LogIndex, Bytes)>, done: Done) -> Result<()> {
        let limit = self.max_entry_bytes();
        if let Some((_, large)) = entries.iter().find(|(_, payload)| payload.len() > limit) {
            return Err(Error::TooLarge { bytes: large.len(), limit });
        }
        self.shared().append(entries, done)
    }

    /// Replaces the vote; `done` runs when it is durable, together with everything requested before.
    pub fn save_vote(&self, vote: Bytes, done: Done) -> Result<()> {
        check_meta(&vote)?;
        self.shared().enqueue(Op::Vote(vote), Some(done))
    }

    /// Replaces the committed position. It becomes durable with the next request that does, or after a pause.
    pub fn save_committed(&self, committed: Bytes) -> Result<()> {
        check_meta(&committed)?;
        self.shared().enqueue(Op::Committed(committed), None)
    }

    /// Removes the entries after `last`, or all of them. Readers stop seeing them at once.
    pub fn truncate_after(&self, last: Option<LogIndex>, done: Done) -> Result<()> {
        self.shared().truncate_after(last, done)
    }

    /// Gives up the entries up to `upto`, which may lie behind the last one: then the log is empty and goes on after
    /// it. `marker` comes back in [`Recovered::purged`]. Segments without entries are removed soon after `done`.
    pub fn purge(&self, upto: LogIndex, marker: Bytes, done: Done) -> Result<()> {
        check_meta(&marker)?;
        self.shared().purge(upto, marker, done)
    }

    /// Starts a new segment, so that the next purge can remove the file that is written now. For callers that must be
    /// sure that purged bytes are gone.
    pub fn roll(&self, done: Done) -> Result<()> {
        self.shared().enqueue(Op::Roll, Some(done))
    }

    /// Runs `done` when everything requested before is durable.
    pub fn flush(&self, done: Done) -> Result<()> {
        self.shared().enqueue(Op::Flush, Some(done))
    }

    /// The entries of `range` that are there, in order: all of them, whether durable yet or not.
    pub fn read(&self, range: Range<LogIndex>) -> Result<Vec<(LogIndex, Bytes)>> {
        self.shared().read(range, usize::MAX)
    }

    /// As [`Journal::read`], but stops before the payloads go beyond `max_bytes`. The first entry always comes.
    pub fn read_limited(&self, range: Range<LogIndex>, max_bytes: usize) -> Result<Vec<(LogIndex, Bytes)>> {
        self.shared().read(range, max_bytes)
    }

    /// The first and the last entry.
    pub fn bounds(&self) -> (Option<LogIndex>, Option<LogIndex>) {
        self.shared().bounds()
    }

    /// The longest entry that [`Journal::append`] takes. Check before proposing: replicated entries cannot be refused.
    pub fn max_entry_bytes(&self) -> usize {
        self.shared().max_entry_bytes()
    }

    /// Whether the disk is, or will soon be, too full for more log. Check before proposing (storage rule 4): what is
    /// proposed already has its place in the current segment and the reserve.
    pub fn free_space_low(&self) -> bool {
        self.shared().free_space_low()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.shared().stats()
    }

    /// Writes and syncs what was requested, stops the threads and returns the first failure, if there was one. Later
    /// requests fail; entries can still be read.
    pub fn close(&self) -> Result<()> {
        self.handle.close();
        self.shared().check()
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }
}

impl Handle {
    fn close(&self) {
        self.shared.begin_close();
        let threads = std::mem::take(&mut *self.threads.lock());
        // A callback may drop the last clone. The writer cannot wait for itself; it ends after the callback, and the
        // keeper after it.
        if threads.iter().any(|thread| thread.thread().id() == thread::current().id()) {
            return;
        }
        for thread in threads {
            // A panic of the thread has poisoned the journal, which the caller is told.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("bounds", &self.bounds()).finish_non_exhaustive()
    }
}

fn check_meta(bytes: &Bytes) -> Result<()> {
    if bytes.len() > MAX_META_BYTES {
        return Err(Error::TooLarge { bytes: bytes.len(), limit: MAX_META_BYTES });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
