//! Backups: a copy of the state at one commit, taken while the store works.
//!
//! # How it works
//! 1. From here on nothing is removed from the column tier (a [`Hold`]); the row tier and the log are not held up.
//! 2. Everything that the tables consist of now is copied. This is the long part, and its outcome need not be
//!    consistent.
//! 3. A checkpoint is written. It is pinned between two log entries, so it is the state at one commit: the files of
//!    every table, which rows of them are superseded, and every row that no file holds yet, which is the tail of the
//!    log.
//! 4. Files that came in since step 2 are copied, then the checkpoint, then the manifest with everybody's checksum.
//!
//! Objects of the column tier never change. One that an earlier backup at the same place has, with the same size and
//! checksum, is not sent again; what the new manifest does not name is removed after it is written.
//!
//! # Invariants
//! - BACKUP-1 a restored backup is the state at one commit, whatever ran meanwhile:
//!   `tests/backup.rs::a_backup_under_writers_is_one_moment`.
//! - BACKUP-2 any changed byte of a backup is noticed before it is served:
//!   `tests/backup.rs::every_damage_is_found`.
//! - BACKUP-3 a backup that was interrupted is not taken for one, and does not spoil the one before it:
//!   `tests/backup.rs::an_interrupted_backup_is_refused`,
//!   `tests/backup.rs::a_backup_that_dies_leaves_the_one_before_it_whole`. Whoever stops waiting for a backup
//!   interrupts it while objects are copied; the manifest and what follows it are written to the end.
//! - BACKUP-4 a restored database and its original cannot own one column tier: the restored one is a cluster of its
//!   own, and takes an empty location only (`tests/backup.rs::a_restored_database_is_another_one`).
//!
//! # Failure
//! A place that cannot be used is [`Error::Place`], damage is [`Error::Corrupt`] and names the object, and a store that
//! is away is reported as such after some twenty seconds. The database itself is not affected by a failed backup.
//!
//! # Not here
//! Encryption and several points in time at one place: give each its own URL.

mod manifest;
mod restore;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{CommitTs, TableId};
use columns::{Depot, Digest, Role};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::oneshot;

use self::manifest::{CHECKPOINT, COLUMNS, Entry, IDENTITY, MANIFEST, Manifest, identity, parse_identity};
use crate::checkpoint::Pinned;
use crate::state::Published;
use crate::store::{Core, Store};
use crate::{Error, Result};

/// Objects copied at a time.
const PARALLEL: usize = 4;

/// How often, and how long after each other, a folder is tried that is locked.
const FREE_TRIES: usize = 20;
const FREE_PERIOD: Duration = Duration::from_millis(100);

/// How far a backup or a restore is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Objects looked at.
    pub objects: u64,
    /// How many there are, as far as it is known.
    pub objects_total: u64,
    /// Bytes copied or compared.
    pub bytes: u64,
}

/// Is told how far it is, often.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// What a backup or a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupReport {
    /// The state is everything committed up to here.
    pub at: CommitTs,
    /// Objects the backup consists of.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that were copied; the others were there already.
    pub copied_objects: u64,
    /// Their bytes.
    pub copied_bytes: u64,
}

/// While it lives, nothing is removed from the column tier.
pub(crate) struct Hold(Arc<Core>);

impl Hold {
    fn new(core: &Arc<Core>) -> Self {
        core.compactor.holds.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(core))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.compactor.holds.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Store {
    /// Copies the state at one commit to a folder or `s3://bucket/prefix`, while the store works.
    pub async fn backup(&self, url: &str, progress: OnProgress) -> Result<BackupReport> {
        let core = &self.core;
        let Ok(one) = Arc::clone(&core.backing_up).try_lock_owned() else {
            return Err(Error::Place("another backup is running: wait until it has ended".into()));
        };
        let place = open_place(core, url).await?;
        let cluster = core.cluster.clone();
        let before = match place.get(MANIFEST).await.map_err(at(url))? {
            // A manifest that is damaged cannot say what is there; the new one replaces it.
            Some(bytes) => Manifest::decode(&bytes).ok(),
            None => None,
        };
        let mut copier = Copier {
            from: core.columns.depot(),
            known: before.iter().flat_map(Manifest::entries).map(|entry| (entry.path.clone(), entry.digest)).collect(),
            there: place.list().await.map_err(at(url))?.into_iter().map(|object| (object.path, object.bytes)).collect(),
            place,
            done: BTreeMap::new(),
            copied_objects: 0,
            copied_bytes: 0,
            counted: Arc::new(Counted {
                objects: AtomicU64::new(0),
                total: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                progress,
            }),
        };
        // A backup whose server was restored from another one must not be mixed with the files of that one.
        if before.as_ref().is_some_and(|before| before.cluster != cluster) {
            return Err(foreign(url));
        }
        let hold = Hold::new(core);
        runtime::failpoint_hit("backup.begun");
        let ahead = core.state.all_tables().into_iter().map(|table| (table.id, table.published())).collect();
        copier.tables(core, ahead).await?;
        runtime::failpoint_hit("backup.copied_ahead");

        let pinned = core.pinned_checkpoint().await?;
        let last = pinned.last;
        let (bytes, tables) = tokio::task::spawn_blocking(move || {
            let bytes = pinned.encode()?;
            // The rows in memory are let go here: they would fill the row tier while files are copied.
            let tables = pinned.tables.iter().map(|table| (table.id, Arc::clone(&table.published))).collect();
            Ok::<_, Error>((bytes, tables))
        })
        .await
        .map_err(|error| Error::Unavailable(format!("the checkpoint of a backup stopped: {error}")))??;
        let paths = copier.tables(core, tables).await?;
        runtime::failpoint_hit("backup.copied");

        let url = url.to_owned();
        // What makes the new backup the one at the place is not left half done: a request that is on its way when the
        // caller goes would land on the backup after this one.
        core.to_the_end({
            let core = Arc::clone(core);
            async move {
                let report = copier.finish(&core, &url, last, bytes, paths).await;
                drop((hold, one));
                report
            }
        })
        .await
    }
}

impl Core {
    /// Writes a checkpoint and returns the state that it was made of.
    async fn pinned_checkpoint(&self) -> Result<Arc<Pinned>> {
        let (send, receive) = oneshot::channel();
        self.watchers.lock().push(send);
        self.checkpoint().await?;
        receive.await.map_err(|_| Error::Unavailable("the checkpoint of a backup was not made".into()))
    }
}

/// Adds the place to an error of the store below.
fn at(url: &str) -> impl Fn(columns::Error) -> Error {
    move |error| {
        let named = matches!(error, columns::Error::Missing(_) | columns::Error::Corrupt { .. });
        match Error::part(error) {
            // Damage names its object.
            part if named => part,
            Error::Part { message, kind, sqlstate, source } => Error::Part {
                message: format!(
                    "the place of the backup, {url}, failed: {message}: check that it can be reached, and the AWS_* variables of an s3 place"
                ),
                kind,
                sqlstate,
                source,
            },
            other => other,
        }
    }
}

fn foreign(url: &str) -> Error {
    Error::Place(format!("{url} holds backups of another database: choose another place"))
}

/// Opens the place of a backup and makes sure that it is one, and of this database.
async fn open_place(core: &Core, url: &str) -> Result<Depot> {
    let disk = Arc::clone(&core.runtime.disk);
    if let Some(folder) = Depot::local_folder(url) {
        if !folder.is_absolute() {
            return Err(Error::Place(format!(
                "{url} is not an absolute path: name the folder from the root of the disk on"
            )));
        }
        let inside = |outer: &std::path::Path| {
            folder.starts_with(std::path::absolute(outer).unwrap_or_else(|_| outer.to_owned()))
        };
        let columns = Depot::local_folder(core.columns.url());
        if inside(&core.options.data) || columns.is_some_and(|columns| inside(&columns)) {
            return Err(Error::Place(format!("{url} lies inside the database: choose a place outside of it")));
        }
    } else if core.columns.url().trim_end_matches('/') == url.trim_end_matches('/') {
        return Err(Error::Place(format!("{url} is the column tier of this database: choose another place")));
    }
    // Looked at before anything is created there.
    let reader = Depot::open_to_read(url, Arc::clone(&disk)).await.map_err(at(url))?;
    match reader.get(IDENTITY).await.map_err(at(url))? {
        Some(bytes) => {
            if parse_identity(&bytes)? != core.cluster {
                return Err(foreign(url));
            }
        }
        None => {
            if !reader.is_empty().await.map_err(at(url))? {
                return Err(Error::Place(format!("{url} is not empty and holds no backups: choose an empty place")));
            }
        }
    }
    let place = open_when_free(url, disk).await.map_err(at(url))?;
    if !place.put_new(IDENTITY, identity(&core.cluster)).await.map_err(at(url))? {
        // Another one may have been faster.
        let found = place.get(IDENTITY).await.map_err(at(url))?.unwrap_or_default();
        if parse_identity(&found)? != core.cluster {
            return Err(foreign(url));
        }
    }
    Ok(place)
}

/// A backup that was cancelled lets its folder go a moment later.
async fn open_when_free(url: &str, disk: Arc<dyn runtime::Disk>) -> columns::Result<Depot> {
    for _ in 0..FREE_TRIES {
        match Depot::open(url, Arc::clone(&disk)).await {
            Err(columns::Error::Locked { .. }) => tokio::time::sleep(FREE_PERIOD).await,
            opened => return opened,
        }
    }
    Depot::open(url, disk).await
}

/// Where the checkpoint of a backup lies. What it holds tells it apart: when nothing was committed since the backup
/// before, rows may still have moved to the column tier, and that one needs its own checkpoint until the new manifest
/// is there.
fn checkpoint_path(at: CommitTs, digest: &Digest) -> String {
    format!("{CHECKPOINT}{}-{:032x}", at.0, digest.hash)
}

/// Counts what is done, over all copies that run at once.
struct Counted {
    objects: AtomicU64,
    total: AtomicU64,
    bytes: AtomicU64,
    progress: OnProgress,
}

impl Counted {
    fn add(&self, bytes: u64) {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let objects = self.objects.fetch_add(1, Ordering::Relaxed) + 1;
        (self.progress)(Progress { objects, objects_total: self.total.load(Ordering::Relaxed), bytes });
    }
}

/// Brings objects of the column tier to the place of the backup.
struct Copier {
    from: Depot,
    place: Depot,
    /// What the backup before says of its objects.
    known: HashMap<String, Digest>,
    /// What lies at the place, with sizes.
    there: HashMap<String, u64>,
    /// What is settled, by its path at the place.
    done: BTreeMap<String, Digest>,
    copied_objects: u64,
    copied_bytes: u64,
    counted: Arc<Counted>,
}

impl Copier {
    /// Copies everything these publications consist of; returns the paths.
    async fn tables(&mut self, core: &Core, tables: Vec<(TableId, Arc<Published>)>) -> Result<Vec<String>> {
        let mut paths = Vec::new();
        for (table, published) in tables {
            for role in Role::ALL {
                let (version, files) = published.files_of(role);
                paths.extend(core.columns.objects_of(table, role, version, &files).await.map_err(Error::part)?);
            }
        }
        paths.sort_unstable();
        paths.dedup();
        let missing: Vec<String> =
            paths.iter().filter(|path| !self.done.contains_key(&format!("{COLUMNS}{path}"))).cloned().collect();
        self.counted.total.fetch_add(missing.len() as u64, Ordering::Relaxed);
        let copies = missing.into_iter().map(|path| {
            let to = format!("{COLUMNS}{path}");
            let known = self.known.get(&to).copied();
            let there = self.there.get(&to).copied();
            let (from, place, counted) = (self.from.clone(), self.place.clone(), Arc::clone(&self.counted));
            async move {
                let mut digest = None;
                if let Some(size) = there {
                    let now = from.digest(&path).await.map_err(Error::part)?;
                    if known.is_some_and(|known| known != now) {
                        return Err(Error::Corrupt(format!(
                            "{path} of the column tier is not what was backed up before, and such files never change: \
                             stop the server and run `lattice check`"
                        )));
                    }
                    let same = match known {
                        Some(known) => known.bytes == size,
                        // Left by a backup that was not finished.
                        None => now.bytes == size && place.digest(&to).await.map_err(at(place.url()))? == now,
                    };
                    digest = same.then_some(now);
                }
                let (digest, copied) = match digest {
                    Some(digest) => (digest, false),
                    None => (from.copy(&path, &place, &to, known).await.map_err(at(place.url()))?, true),
                };
                counted.add(digest.bytes);
                Ok::<_, Error>((to, digest, copied))
            }
        });
        let copies: Vec<_> = copies.collect();
        let mut running = stream::iter(copies).buffer_unordered(PARALLEL);
        while let Some((path, digest, copied)) = running.try_next().await? {
            if copied {
                self.copied_objects += 1;
                self.copied_bytes += digest.bytes;
            }
            self.done.insert(path, digest);
        }
        Ok(paths)
    }

    /// Writes the checkpoint and the manifest of a backup whose objects are copied, and removes what the one before it
    /// had.
    async fn finish(
        &mut self,
        core: &Core,
        url: &str,
        last: CommitTs,
        bytes: Vec<u8>,
        paths: Vec<String>,
    ) -> Result<BackupReport> {
        let digest = Digest::of(&bytes);
        let checkpoint = Entry { path: checkpoint_path(last, &digest), digest };
        let size = bytes.len() as u64;
        self.place.put(&checkpoint.path, bytes.into()).await.map_err(at(url))?;
        self.copied_objects += 1;
        self.copied_bytes += size;
        runtime::failpoint_hit("backup.checkpoint");
        let mut objects = Vec::with_capacity(paths.len());
        for path in paths {
            let path = format!("{COLUMNS}{path}");
            let digest = *self.done.get(&path).ok_or_else(|| Error::Corrupt(format!("{path} was not copied")))?;
            objects.push(Entry { path, digest });
        }
        let manifest = Manifest {
            cluster: core.cluster.clone(),
            at: last,
            taken: core.runtime.clock.now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            checkpoint,
            objects,
        };
        self.place.put(MANIFEST, manifest.encode()).await.map_err(at(url))?;
        runtime::failpoint_hit("backup.manifest");
        self.remove_unnamed(&manifest).await.map_err(at(url))?;
        Ok(BackupReport {
            at: manifest.at,
            objects: manifest.entries().count() as u64,
            bytes: manifest.bytes(),
            copied_objects: self.copied_objects,
            copied_bytes: self.copied_bytes,
        })
    }

    /// Removes what a finished backup does not consist of.
    async fn remove_unnamed(&self, manifest: &Manifest) -> columns::Result<()> {
        let named: HashSet<&str> =
            manifest.entries().map(|entry| entry.path.as_str()).chain([IDENTITY, MANIFEST]).collect();
        let old: Vec<String> = self
            .place
            .list()
            .await?
            .into_iter()
            .map(|object| object.path)
            .filter(|path| path.starts_with(COLUMNS) || path.starts_with(CHECKPOINT))
            .filter(|path| !named.contains(path.as_str()))
            .collect();
        self.place.delete(old).await
    }
}
