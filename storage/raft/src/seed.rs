//! An empty log that begins right behind a checkpoint, for a folder that is restored from a backup.
//!
//! A checkpoint says which entry was applied last and who the members are. The log behind it must go on with higher
//! terms, so the vote of that entry's term is written down before anything else.

use base::LogIndex;
use bytes::Bytes;
use journal::{Journal, Recovered};
use openraft::storage::RaftLogStorage;

use crate::codec;
use crate::error::{Error, Result};
use crate::log::LogStore;
use crate::types::Vote;

/// Makes an empty journal go on behind the last entry of a checkpoint, whose marker this is. Returns when that is
/// durable.
pub async fn begin_behind(journal: &Journal, marker: Bytes) -> Result<()> {
    if let (_, Some(LogIndex(last))) = journal.bounds() {
        return Err(Error::Options(format!("the journal is not empty: it ends with entry {last}")));
    }
    let (applied, membership) = codec::decode_marker(marker)?;
    let Some(applied) = applied else { return Ok(()) };
    let failed = |error: std::io::Error| Error::Fatal { reason: format!("the journal cannot be begun: {error}") };
    let mut log = LogStore::new(journal.clone(), Recovered::default())?;
    let node = membership.membership().voter_ids().next().unwrap_or_default();
    log.save_vote(&Vote::new(*applied.leader_id, node)).await.map_err(failed)?;
    log.purge(applied).await.map_err(failed)?;
    log.flush().await.map_err(failed)
}
