//! Making a database from a backup.
//!
//! The manifest is read first; without one there is no backup. Every object is compared with its checksum on its way,
//! and the folder becomes a database by the last write, that of its identity: a restore that was interrupted leaves a
//! folder that is refused. The restored database is a cluster of its own, so that it cannot touch what belongs to the
//! original.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use base::LogIndex;
use columns::{ColumnOptions, ColumnStore, Depot};
use futures::{StreamExt, TryStreamExt, stream};
use runtime::Runtime;

use super::manifest::{COLUMNS, IDENTITY, MANIFEST, Manifest, parse_identity};
use super::{BackupReport, Counted, OnProgress, PARALLEL, at};
use crate::folder::{Folder, Unfinished};
use crate::state::State;
use crate::store::Store;
use crate::{Error, Result, StoreOptions, checkpoint};

impl Store {
    /// Makes a data folder, and a column tier where the options say, from a backup. Both must be empty or not exist.
    /// The folder can be opened afterwards with the same options.
    pub async fn restore(
        runtime: &Runtime,
        url: &str,
        options: &StoreOptions,
        progress: OnProgress,
    ) -> Result<BackupReport> {
        let backup = Backup::open(runtime, url).await?;
        let contents = backup.checkpoint().await?;
        // The folder first: of a database that is there already, its column tier would be blamed.
        Folder::check_free(runtime, &options.data)?;
        check_columns(runtime, options).await?;
        let unfinished = Folder::restore(runtime, &options.data)?;
        let columns = take_columns(runtime, options, &unfinished).await?;
        let to = columns.depot();
        let counted = backup.counted(progress);
        let backup = &backup;
        let copies = backup.manifest.objects.iter().map(|entry| {
            let (from, to, counted) = (backup.place.clone(), to.clone(), Arc::clone(&counted));
            async move {
                let path = entry.path.strip_prefix(COLUMNS).ok_or_else(|| {
                    Error::Corrupt(format!("{MANIFEST} names {}, which is no object of a column tier", entry.path))
                })?;
                from.copy(&entry.path, &to, path, Some(entry.digest)).await.map_err(|error| backup.damage(error))?;
                counted.add(entry.digest.bytes);
                Ok::<_, Error>(())
            }
        });
        let copies: Vec<_> = copies.collect();
        stream::iter(copies).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
        runtime::failpoint_hit("restore.copied");
        begin_log(runtime, options, contents.marker).await?;
        checkpoint::write(runtime, &options.data, &contents.bytes)?;
        runtime::failpoint_hit("restore.checkpoint");
        unfinished.finish(runtime)?;
        Ok(backup.report())
    }

    /// Reads all of a backup and compares it with its checksums, without restoring it.
    pub async fn verify_backup(runtime: &Runtime, url: &str, progress: OnProgress) -> Result<BackupReport> {
        let backup = Backup::open(runtime, url).await?;
        backup.checkpoint().await?;
        let counted = backup.counted(progress);
        let backup = &backup;
        let checks = backup.manifest.objects.iter().map(|entry| {
            let (from, counted) = (backup.place.clone(), Arc::clone(&counted));
            async move {
                let found = from.digest(&entry.path).await.map_err(|error| backup.damage(error))?;
                if found != entry.digest {
                    return Err(Error::Corrupt(format!("{} of the backup: its checksum does not match", entry.path)));
                }
                counted.add(found.bytes);
                Ok::<_, Error>(())
            }
        });
        let checks: Vec<_> = checks.collect();
        stream::iter(checks).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
        Ok(BackupReport { copied_objects: 0, copied_bytes: 0, ..backup.report() })
    }
}

/// A backup that is complete, as its manifest says.
struct Backup {
    place: Depot,
    manifest: Manifest,
}

/// A checkpoint that was read and can be read again.
struct Contents {
    bytes: Vec<u8>,
    marker: bytes::Bytes,
}

impl Backup {
    async fn open(runtime: &Runtime, url: &str) -> Result<Self> {
        let place = Depot::open_to_read(url, Arc::clone(&runtime.disk)).await.map_err(at(url))?;
        let Some(owner) = place.get(IDENTITY).await.map_err(at(url))? else {
            return Err(Error::Place(format!("there is no backup at {url}: check the address")));
        };
        let owner = parse_identity(&owner)?;
        let Some(bytes) = place.get(MANIFEST).await.map_err(at(url))? else {
            return Err(Error::Place(format!(
                "the backup at {url} was never finished, it has no {MANIFEST}: take it again, or use another one"
            )));
        };
        let manifest = Manifest::decode(&bytes)?;
        if manifest.cluster != owner {
            return Err(Error::Corrupt(format!("{IDENTITY} and {MANIFEST} at {url} are of different databases")));
        }
        Ok(Self { place, manifest })
    }

    /// Reads the checkpoint, all of it, before anything is made of it.
    async fn checkpoint(&self) -> Result<Contents> {
        let entry = &self.manifest.checkpoint;
        let found = self.place.get(&entry.path).await.map_err(at(self.place.url()))?;
        let bytes = found.ok_or_else(|| Error::Corrupt(format!("{} of the backup is missing", entry.path)))?;
        if columns::Digest::of(&bytes) != entry.digest {
            return Err(Error::Corrupt(format!("{} of the backup: its checksum does not match", entry.path)));
        }
        let state = State::new(Arc::new(rows::RowTier::new(rows::RowTierOptions::with_limit(usize::MAX >> 1))));
        let marker = checkpoint::read(&bytes, Path::new(&entry.path), &state)?;
        if state.last() != self.manifest.at {
            return Err(Error::Corrupt(format!(
                "{} of the backup is not of the moment that {MANIFEST} names",
                entry.path
            )));
        }
        Ok(Contents { bytes: bytes.to_vec(), marker })
    }

    fn counted(&self, progress: OnProgress) -> Arc<Counted> {
        let total = AtomicU64::new(self.manifest.objects.len() as u64);
        Arc::new(Counted { objects: AtomicU64::new(0), total, bytes: AtomicU64::new(0), progress })
    }

    fn report(&self) -> BackupReport {
        let (objects, bytes) = (self.manifest.entries().count() as u64, self.manifest.bytes());
        BackupReport { at: self.manifest.at, objects, bytes, copied_objects: objects, copied_bytes: bytes }
    }

    /// Says of damage that it is the backup's.
    fn damage(&self, error: columns::Error) -> Error {
        match error {
            columns::Error::Missing(path) => Error::Corrupt(format!("{path} of the backup is missing")),
            columns::Error::Corrupt { path, what } => Error::Corrupt(format!("{path} of the backup: {what}")),
            other => at(self.place.url())(other),
        }
    }
}

/// Makes sure that the location of the new column tier holds nothing.
async fn check_columns(runtime: &Runtime, options: &StoreOptions) -> Result<()> {
    let url = options.columns_location();
    let there = Depot::open_to_read(&url, Arc::clone(&runtime.disk)).await.map_err(Error::part)?;
    if !there.is_empty().await.map_err(Error::part)? {
        return Err(Error::Place(format!(
            "the column tier {url} is not empty: choose an empty location with --set storage.columns=URL"
        )));
    }
    Ok(())
}

/// Takes the location of the new column tier for the new database.
async fn take_columns(runtime: &Runtime, options: &StoreOptions, folder: &Unfinished) -> Result<ColumnStore> {
    let url = options.columns_location();
    let mut settings = ColumnOptions::new(folder.cluster(), folder.epoch());
    settings.disk = Arc::clone(&runtime.disk);
    ColumnStore::open(&url, settings).await.map_err(Error::part)
}

/// Makes an empty log that goes on behind the checkpoint.
async fn begin_log(runtime: &Runtime, options: &StoreOptions, marker: bytes::Bytes) -> Result<()> {
    let mut settings = journal::JournalOptions::default();
    settings.segment_bytes = options.segment_bytes;
    let folder = options.data.join("journal");
    let (journal, recovered) =
        journal::Journal::open(Arc::clone(&runtime.disk), &folder, settings).map_err(Error::part)?;
    if recovered.last.is_some_and(|LogIndex(last)| last > 0) {
        return Err(Error::Place(format!("{} is not empty", folder.display())));
    }
    raft::begin_behind(&journal, marker).await.map_err(Error::part)?;
    tokio::task::spawn_blocking(move || journal.close())
        .await
        .map_err(|error| Error::Unavailable(format!("closing the new log stopped: {error}")))?
        .map_err(Error::part)
}
