//! Conflicts with large transactions, found outside of the sequencer (storage rule 9).
//!
//! First committer wins, row by row. Rows that went through the row tier have their newest commit in memory, where the
//! sequencer looks. Rows of large transactions lie in files, and finding out whether a file holds a key may take a read. So
//! a session checks its write set before it hands it over:
//!
//! - keys that it inserts, against files that large transactions committed since;
//! - keys that others wrote since, against files that it commits itself;
//! - its own files against theirs.
//!
//! The check covers everything up to a moment, [`CommitOrder::validated`]. What comes after that is the sequencer's, which
//! knows key ranges and Bloom filters and sends the write set back here when those cannot rule a conflict out.
//!
//! # Invariants
//! - VALID-1 two transactions that inserted one key do not both commit, whichever of them was large, and wherever flushes and
//!   merges have put the rows meanwhile (`large_and_small_writers_conflict_on_the_very_key`).
//! - VALID-2 transactions on different keys do not conflict (`a_bulk_load_and_small_writers_on_other_keys_do_not_conflict`).

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use base::{CommitTs, RowKey};
use codec::KeyCodec;
use columns::FileMeta;
use futures::StreamExt;

use crate::sequencer::{CommitOrder, Predecessor, TableCommit};
use crate::store::Core;
use crate::view::{Locator, ScanSpec, TableView};
use crate::{Error, Result};

/// Keys of others' files that are looked up at a time.
const LOOKUP_KEYS: usize = 64 * 1024;

/// Checks a write set against everything visible now. Fails with [`Error::WriteConflict`].
pub(crate) async fn validate(core: &Arc<Core>, order: &mut CommitOrder) -> Result<()> {
    let since = order.validated;
    let at = core.state.last();
    for writes in &mut order.tables {
        // Hidden keys are handed out once, and after a truncation nothing is left to meet.
        if writes.truncate || writes.schema.has_hidden_key() || writes.table.newest() <= since {
            continue;
        }
        if writes.table.newest_large() > since {
            inserted_rows(core, writes, at).await?;
        }
        if !writes.staged.is_empty() {
            if writes.staged_stats.is_empty() {
                for meta in &writes.staged {
                    let stats = core.columns.stats(writes.schema.table, meta).await.map_err(Error::part)?;
                    writes.staged_stats.push(stats);
                }
            }
            let later = keys_written(writes, since)?;
            staged_hold_none(core, writes, later).await?;
            if writes.table.newest_large() > since {
                staged_against_files(core, writes, since, at).await?;
            }
        }
    }
    order.validated = at;
    Ok(())
}

fn conflict(writes: &TableCommit) -> Error {
    Error::WriteConflict { table: writes.table.id }
}

fn covers(meta: &FileMeta, key: &RowKey) -> bool {
    meta.min_key <= *key && *key <= meta.max_key
}

/// Inserted keys must not be there: they were not when the statement looked.
async fn inserted_rows(core: &Arc<Core>, writes: &TableCommit, at: CommitTs) -> Result<()> {
    let inserted = writes.rows.iter().filter(|(_, _, predecessor)| *predecessor == Predecessor::Nothing);
    let keys: Vec<RowKey> = inserted.map(|(key, ..)| key.clone()).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let found = TableView::new(core, &writes.schema, at, None).find(&keys).await?;
    // A row that this transaction removed itself, before it inserted the key again, is masked by it.
    let removed = |locator: &Locator| {
        writes.masks.iter().any(|(file, rows)| *file == locator.file && rows.contains(locator.offset))
    };
    if found.iter().flatten().any(|found| !removed(&found.locator)) {
        return Err(conflict(writes));
    }
    Ok(())
}

/// Keys that went through the row tier since, as far as the transaction's files may hold them.
fn keys_written(writes: &TableCommit, since: CommitTs) -> Result<Vec<RowKey>> {
    let table = &writes.table;
    let may_hold = |key: &RowKey| {
        writes.staged.iter().zip(&writes.staged_stats).any(|(meta, stats)| covers(meta, key) && stats.may_hold(key))
    };
    let mut keys = Vec::new();
    // Held together, so that no flush moves versions from the one to the other in between.
    let inner = table.inner.read();
    let scan = table.rows.scan(.., CommitTs::MAX, since.max(inner.published.cut)).map_err(Error::part)?;
    for chunk in scan {
        keys.extend(chunk.iter().filter(|(key, _)| may_hold(key)).map(|(key, _)| key.clone()));
    }
    for (_, _, prepared) in &inner.recent {
        let flushed = prepared.flushed.iter().filter(|(key, ts)| *ts > since && may_hold(key));
        keys.extend(flushed.map(|(key, _)| key.clone()));
    }
    Ok(keys)
}

/// Fails if a staged file holds one of the keys.
async fn staged_hold_none(core: &Arc<Core>, writes: &TableCommit, keys: Vec<RowKey>) -> Result<()> {
    for meta in &writes.staged {
        let covered: Vec<RowKey> = keys.iter().filter(|key| covers(meta, key)).cloned().collect();
        if covered.is_empty() {
            continue;
        }
        let found = core.columns.lookup(meta, &writes.schema, &covered).await.map_err(Error::part)?;
        if found.iter().any(Option::is_some) {
            return Err(conflict(writes));
        }
    }
    Ok(())
}

/// Compares the transaction's files with rows of later large transactions, wherever these lie by now.
async fn staged_against_files(core: &Arc<Core>, writes: &TableCommit, since: CommitTs, at: CommitTs) -> Result<()> {
    let view = TableView::new(core, &writes.schema, at, None);
    let later = view.files_where(|meta| {
        let overlaps = |staged: &FileMeta| staged.min_key <= meta.max_key && meta.min_key <= staged.max_key;
        meta.max_ts > since && writes.staged.iter().any(overlaps)
    });
    let codec = KeyCodec::new(&writes.schema)?;
    let key_columns = writes.schema.key.len();
    let mut spec = ScanSpec::new(writes.schema.key.clone());
    spec.system.tx_from = true;
    let mut batches = view.scan(&later, &spec);
    let mut keys: Vec<RowKey> = Vec::new();
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        let from = batch.column(key_columns).as_primitive::<TimestampMicrosecondType>();
        for (row, key) in codec.keys_of_columns(&batch.columns()[..key_columns])?.into_iter().enumerate() {
            if from.value(row) > since.0 {
                keys.push(key);
            }
        }
        if keys.len() >= LOOKUP_KEYS {
            staged_hold_none(core, writes, std::mem::take(&mut keys)).await?;
        }
    }
    staged_hold_none(core, writes, keys).await
}
