//! The Raft log over the journal.
//!
//! Reading decodes entries as they come; the journal keeps the newest ones in memory, which is where both followers and
//! the apply loop find them. Only a follower far behind, or a start, reads the disk, in pieces.

use std::collections::Bound;
use std::fmt::Debug;
use std::io;
use std::ops::{Range, RangeBounds};
use std::sync::Arc;

use base::LogIndex;
use bytes::Bytes;
use futures::Stream;
use journal::{Done, Journal, Recovered};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;

use crate::codec;
use crate::error::{Error, Result};
use crate::types::{Entry, LogId, TypeConfig, Vote};

/// How many bytes of entries are read at once, for a message to a follower or a piece of a replay. One entry may be
/// larger and then goes alone.
const PIECE_BYTES: usize = 1 << 20;

/// Log storage and log reader in one, cheap to clone.
#[derive(Clone)]
pub(crate) struct LogStore {
    journal: Journal,
    positions: Arc<Mutex<Positions>>,
}

/// The small values that openraft reads back, kept decoded.
#[derive(Clone, Copy)]
struct Positions {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
}

impl LogStore {
    /// Takes over a journal and what it held.
    pub(crate) fn new(journal: Journal, recovered: Recovered) -> Result<LogStore> {
        let marker = recovered.purged.map(|(_, marker)| marker);
        let positions = Positions {
            vote: recovered.vote.map(codec::decode_vote).transpose()?,
            committed: recovered.committed.map(codec::decode_position).transpose()?.flatten(),
            purged: marker.map(codec::decode_position).transpose()?.flatten(),
        };
        Ok(LogStore { journal, positions: Arc::new(Mutex::new(positions)) })
    }

    /// Waits until everything asked for so far is durable.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        finish(|done| self.journal.flush(done)).await
    }

    /// Writes what is outstanding and stops the journal. Blocks.
    pub(crate) fn close(&self) -> journal::Result<()> {
        self.journal.close()
    }

    /// The longest command that fits into an entry.
    pub(crate) fn max_command_bytes(&self) -> usize {
        self.journal.max_entry_bytes().saturating_sub(codec::ENTRY_HEADER)
    }

    fn positions(&self) -> Positions {
        *self.positions.lock()
    }

    /// Cuts a range down to the entries that exist.
    fn clamp(&self, range: impl RangeBounds<u64>) -> Range<u64> {
        let (Some(first), Some(last)) = self.journal.bounds() else { return 0..0 };
        let start = match range.start_bound() {
            Bound::Included(at) => *at,
            Bound::Excluded(at) => at.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(at) => at.saturating_add(1),
            Bound::Excluded(at) => *at,
            Bound::Unbounded => u64::MAX,
        };
        start.max(first.0)..end.min(last.0.saturating_add(1))
    }

    /// Reads existing entries, the first one and then as many as fit. A gap is an error: a follower or the state
    /// machine would skip a commit.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let stored = self.journal.read_limited(LogIndex(range.start)..LogIndex(range.end), max_bytes)?;
        // A purge or a truncation meanwhile may have taken entries from either end, and nothing else may have.
        let there = self.clamp(range.clone());
        let start = stored.first().map_or(range.end, |(index, _)| index.0);
        let end = stored.last().map_or(range.start, |(index, _)| index.0.saturating_add(1));
        if !there.is_empty() && (start > there.start || (max_bytes == usize::MAX && end < there.end)) {
            return Err(damaged(format!("entries {start}..{end} were found where {there:?} should be")));
        }
        let mut entries = Vec::with_capacity(stored.len());
        for (expected, (index, bytes)) in (start..).zip(stored) {
            let entry = codec::decode_entry(bytes).map_err(invalid)?;
            if index.0 != expected || entry.log_id.index != expected {
                let found = entry.log_id.index;
                return Err(damaged(format!("entry {found} was found, stored as {index}, where {expected} should be")));
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.read(self.clamp(range), usize::MAX)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // In pieces, so that a long range (a replay) never lies in memory as a whole.
        let range = self.clamp(range);
        let pieces = futures::stream::unfold((self.clone(), range), |(log, mut range)| async move {
            let items: Vec<io::Result<Entry>> = match log.read(range.clone(), PIECE_BYTES) {
                Ok(entries) => {
                    range.start = entries.last()?.log_id.index + 1;
                    entries.into_iter().map(Ok).collect()
                }
                Err(error) => {
                    range.start = range.end;
                    vec![Err(error)]
                }
            };
            Some((futures::stream::iter(items), (log, range)))
        });
        Box::pin(futures::StreamExt::flatten(pieces))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(self.clamp(start..end), PIECE_BYTES)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.positions().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let purged = self.positions().purged;
        let last = match self.journal.bounds().1 {
            Some(last) => self.read(last.0..last.0 + 1, usize::MAX)?.pop().map(|entry| entry.log_id),
            None => None,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        finish(|done| self.journal.save_vote(codec::encode_vote(vote), done)).await?;
        self.positions.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // Rides on the next sync. Lost, a start replays a little less before it is elected, and the rest after.
        self.journal.save_committed(codec::encode_position(&committed))?;
        self.positions.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.positions().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let encoded: Vec<(LogIndex, Bytes)> =
            entries.into_iter().map(|entry| (LogIndex(entry.log_id.index), codec::encode_entry(&entry))).collect();
        // Returns at once: the next append is encoded and queued while this one is being synced, and the journal
        // syncs everything queued together.
        Ok(self.journal.append(encoded, Box::new(move |outcome| callback.io_completed(outcome)))?)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        finish(|done| self.journal.truncate_after(last.map(|id| LogIndex(id.index)), done)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        if self.positions().purged >= Some(upto) {
            return Ok(());
        }
        // Not waited for, since openraft would take no proposals meanwhile. A cut lost in a crash only leaves a longer
        // log, later writes stay behind it in the journal, and a failure shows in the next of them.
        let marker = codec::encode_position(&Some(upto));
        self.journal.purge(LogIndex(upto.index), marker, Box::new(|_| {}))?;
        self.positions.lock().purged = Some(upto);
        Ok(())
    }
}

/// Runs a write of the journal to its end.
async fn finish(start: impl FnOnce(Done) -> journal::Result<()>) -> io::Result<()> {
    let (send, receive) = tokio::sync::oneshot::channel();
    start(Box::new(move |outcome| {
        // The receiver is only gone when the raft core has been dropped, and then nobody asks.
        let _ = send.send(outcome);
    }))?;
    receive.await.unwrap_or_else(|_| Err(io::Error::other("the journal stopped before the write was done")))
}

/// A decoding error as openraft wants it.
fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn damaged(detail: String) -> io::Error {
    invalid(Error::Corrupt { what: "the log", detail })
}
