//! An object store in a local folder: descriptors stay open, and whatever is acknowledged is durable.
//!
//! Objects are files below a root folder. A write goes to a file in `.tmp`, is synced, and is renamed into place, and the
//! folder is synced: after a crash an object is there whole or not at all, and it is there if the write returned.
//! `.lock` keeps other processes out, so that "create unless it exists" can be decided by a mutex.
//!
//! # Invariants
//! - LOCAL-1 an acknowledged object survives a crash, and no object is ever seen half written:
//!   `tests::every_sync_is_needed`.
//! - LOCAL-2 an object whose removal was acknowledged does not come back: `tests::removed_objects_stay_removed`.
//! - LOCAL-3 of several creators of one object exactly one succeeds: `tests::one_creator_wins`.
//! - LOCAL-4 listings are in path order and never show temporary files: `tests::lists_in_order`.
//! - LOCAL-5 an object that is on its way to the disk when its writer goes does not appear later:
//!   `tests::nothing_appears_that_nobody_waits_for`.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyMode, CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart,
};
use parking_lot::Mutex;
use runtime::{Disk, DiskFile, DiskLock, OpenMode, create_dir_durably, read_exact_at};

use crate::cache::Cache;

const STORE: &str = "local";
/// The folder of unfinished writes.
const TEMPORARY: &str = ".tmp";
/// The file whose lock keeps other processes out.
const LOCK: &str = ".lock";

/// The sync sites of this file.
const OBJECT_FILE: &str = "columns.object_file";
const OBJECT_DIR: &str = "columns.object_dir";
const REMOVED_DIR: &str = "columns.removed_dir";

/// A folder as an object store.
pub(crate) struct LocalStore {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    files: Cache<Path, Arc<dyn DiskFile>>,
    /// Folders known to be durable.
    folders: Mutex<HashSet<PathBuf>>,
    /// Held while an object is created only if it does not exist.
    creating: Mutex<()>,
    next_temporary: AtomicU64,
    /// Absent when the folder is only read.
    lock: Option<DiskLock>,
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalStore({})", self.shared.root.display())
    }
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "local folder {}", self.shared.root.display())
    }
}

fn failed(path: &Path, error: io::Error) -> object_store::Error {
    let path = path.to_string();
    match error.kind() {
        io::ErrorKind::NotFound => object_store::Error::NotFound { path, source: error.into() },
        io::ErrorKind::AlreadyExists => object_store::Error::AlreadyExists { path, source: error.into() },
        io::ErrorKind::PermissionDenied => object_store::Error::PermissionDenied { path, source: error.into() },
        _ => object_store::Error::Generic { store: STORE, source: error.into() },
    }
}

/// Whether a folder could not be read because it is a file. Disks put it in one of two ways.
fn is_no_folder(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput)
}

/// Whether somebody still waits for a write. Work on a thread goes on when the future that waits for it is dropped.
struct Wanted(Weak<()>);

impl Wanted {
    fn check(&self) -> io::Result<()> {
        if self.0.strong_count() > 0 {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the write was cancelled"))
    }
}

/// Runs disk work on a thread that may block.
async fn blocking<T: Send + 'static>(path: Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| failed(&path, error)),
        Err(error) => Err(object_store::Error::JoinError { source: error }),
    }
}

/// As [`blocking`], for work that gives something its name.
async fn publishing(path: Path, work: impl FnOnce(&Wanted) -> io::Result<()> + Send + 'static) -> Result<()> {
    let waits = Arc::new(());
    let wanted = Wanted(Arc::downgrade(&waits));
    let done = blocking(path, move || work(&wanted)).await;
    drop(waits);
    done
}

impl LocalStore {
    /// Opens a folder, which is created when missing.
    pub(crate) fn open(disk: Arc<dyn Disk>, root: PathBuf, open_files: usize) -> io::Result<Self> {
        let temporary = root.join(TEMPORARY);
        create_dir_durably(&*disk, &temporary)?;
        let lock = disk.lock_exclusive(&root.join(LOCK))?;
        for name in disk.read_dir(&temporary)? {
            disk.remove_file(&temporary.join(name))?;
        }
        Ok(Self::over(disk, root, open_files, Some(lock)))
    }

    /// Opens a folder to read from it: nothing is created, locked or cleaned, and writes are refused.
    pub(crate) fn open_to_read(disk: Arc<dyn Disk>, root: PathBuf, open_files: usize) -> Self {
        Self::over(disk, root, open_files, None)
    }

    fn over(disk: Arc<dyn Disk>, root: PathBuf, open_files: usize, lock: Option<DiskLock>) -> Self {
        let shared = Shared {
            disk,
            root,
            files: Cache::new(open_files),
            folders: Mutex::new(HashSet::new()),
            creating: Mutex::new(()),
            next_temporary: AtomicU64::new(0),
            lock,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The open file of an object, for readers that keep it.
    pub(crate) async fn file(&self, location: &Path) -> Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.shared.files.get(location) {
            return Ok(file);
        }
        let (shared, path) = (self.shared.clone(), location.clone());
        blocking(location.clone(), move || shared.file(&path)).await
    }
}

impl Shared {
    fn writable(&self) -> io::Result<()> {
        match self.lock {
            Some(_) => Ok(()),
            None => {
                let message = format!("{} is open for reading only", self.root.display());
                Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
            }
        }
    }

    fn path(&self, location: &Path) -> PathBuf {
        let mut path = self.root.clone();
        path.extend(location.parts().map(|part| part.as_ref().to_owned()));
        path
    }

    fn file(&self, location: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.files.get(location) {
            return Ok(file);
        }
        let file: Arc<dyn DiskFile> = Arc::from(self.disk.open(&self.path(location), OpenMode::Read)?);
        self.files.insert(location.clone(), file.clone(), 1);
        Ok(file)
    }

    fn temporary(&self) -> PathBuf {
        self.root.join(TEMPORARY).join(self.next_temporary.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Puts a finished temporary file in its place.
    fn publish(
        &self,
        file: &dyn DiskFile,
        temporary: &PathBuf,
        location: &Path,
        create: bool,
        wanted: &Wanted,
    ) -> io::Result<()> {
        let published = self.publish_or_fail(file, temporary, location, create, wanted);
        if published.is_err() {
            // The file may have gone to its place already; then there is nothing left to remove.
            let _ = self.disk.remove_file(temporary);
        }
        published
    }

    fn publish_or_fail(
        &self,
        file: &dyn DiskFile,
        temporary: &PathBuf,
        location: &Path,
        create: bool,
        wanted: &Wanted,
    ) -> io::Result<()> {
        // LOCAL-1: bytes before the name, the name before the acknowledgement.
        file.sync_all(OBJECT_FILE)?;
        wanted.check()?;
        let path = self.path(location);
        let parent = path.parent().unwrap_or(&self.root).to_owned();
        if !self.folders.lock().contains(&parent) {
            create_dir_durably(&*self.disk, &parent)?;
            self.folders.lock().insert(parent.clone());
        }
        if create {
            let _creating = self.creating.lock();
            if self.disk.exists(&path)? {
                let message = format!("{location} exists");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
            self.disk.rename(temporary, &path)?;
        } else {
            self.disk.rename(temporary, &path)?;
        }
        self.files.remove(location);
        self.disk.sync_dir(&parent, OBJECT_DIR)
    }

    fn put(&self, location: &Path, payload: &PutPayload, create: bool, wanted: &Wanted) -> io::Result<()> {
        self.writable()?;
        let temporary = self.temporary();
        let file = self.disk.open(&temporary, OpenMode::CreateNew)?;
        let mut offset = 0;
        for part in payload {
            if let Err(error) = file.write_at(part, offset) {
                let _ = self.disk.remove_file(&temporary);
                return Err(error);
            }
            offset += part.len() as u64;
        }
        self.publish(&*file, &temporary, location, create, wanted)
    }

    fn read(&self, location: &Path, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
        let file = self.file(location)?;
        ranges.iter().map(|range| read_range(&*file, range)).collect()
    }

    /// The objects below a folder, in path order.
    fn walk(&self, prefix: &Path) -> io::Result<Vec<Path>> {
        let mut found = Vec::new();
        let mut pending: Vec<Path> =
            self.names(prefix)?.iter().map(|name| prefix.clone().join(name.as_str())).collect();
        while let Some(path) = pending.pop() {
            match self.disk.read_dir(&self.path(&path)) {
                Ok(names) => pending.extend(names.iter().map(|name| path.clone().join(name.as_str()))),
                Err(error) if is_no_folder(&error) => found.push(path),
                // Removed since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        found.sort();
        Ok(found)
    }

    /// The names in a folder, none when it does not exist.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = match self.disk.read_dir(&self.path(folder)) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_no_folder(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        if folder.as_ref().is_empty() {
            names.retain(|name| name != TEMPORARY && name != LOCK);
        }
        Ok(names)
    }

    fn meta(&self, location: &Path) -> io::Result<ObjectMeta> {
        // Not through the cache: a listing must not push out the files that are being read.
        let size = match self.files.get(location) {
            Some(file) => file.len()?,
            None => self.disk.open(&self.path(location), OpenMode::Read)?.len()?,
        };
        Ok(meta(location, size))
    }
}

pub(crate) fn read_range(file: &dyn DiskFile, range: &Range<u64>) -> io::Result<Bytes> {
    let len = usize::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    read_exact_at(file, &mut bytes, range.start)?;
    Ok(Bytes::from(bytes))
}

/// Nothing that reads these objects asks for their age or tag: they are immutable, but for the owner object.
fn meta(location: &Path, size: u64) -> ObjectMeta {
    ObjectMeta { location: location.clone(), last_modified: Default::default(), size, e_tag: None, version: None }
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let create = match options.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => {
                return Err(object_store::Error::NotImplemented {
                    operation: "conditional update".into(),
                    implementer: STORE.into(),
                });
            }
        };
        let (shared, path) = (self.shared.clone(), location.clone());
        publishing(location.clone(), move |wanted| shared.put(&path, &payload, create, wanted)).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let shared = self.shared.clone();
        let temporary = shared.temporary();
        let path = temporary.clone();
        let file = blocking(location.clone(), {
            let shared = shared.clone();
            move || {
                shared.writable()?;
                shared.disk.open(&path, OpenMode::CreateNew)
            }
        })
        .await?;
        Ok(Box::new(Upload {
            shared,
            file: Arc::from(file),
            temporary,
            location: location.clone(),
            offset: 0,
            done: false,
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (shared, path) = (self.shared.clone(), location.clone());
        let (range, size, bytes) = blocking(location.clone(), move || {
            let file = shared.file(&path)?;
            let size = file.len()?;
            let range = match options.range {
                None => 0..size,
                Some(GetRange::Bounded(range)) => range.start..range.end.min(size),
                Some(GetRange::Offset(start)) => start..size,
                Some(GetRange::Suffix(len)) => size.saturating_sub(len)..size,
            };
            if range.start > range.end {
                let message = format!("range {}..{} of {size} bytes", range.start, range.end);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            let bytes = if options.head { Bytes::new() } else { read_range(&*file, &range)? };
            Ok((range, size, bytes))
        })
        .await?;
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(async move { Ok(bytes) }).boxed()),
            meta: meta(location, size),
            range,
            attributes: Attributes::new(),
            extensions: Default::default(),
        })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let (shared, path, ranges) = (self.shared.clone(), location.clone(), ranges.to_vec());
        blocking(location.clone(), move || shared.read(&path, &ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let shared = self.shared.clone();
        locations
            .chunks(256)
            .then(move |batch| {
                let shared = shared.clone();
                async move {
                    let removed = tokio::task::spawn_blocking(move || {
                        shared.writable()?;
                        let mut folders = HashSet::new();
                        let removed: Vec<Result<Path>> = batch
                            .into_iter()
                            .map(|location| {
                                let location = location?;
                                let path = shared.path(&location);
                                shared.files.remove(&location);
                                shared.disk.remove_file(&path).map_err(|error| failed(&location, error))?;
                                folders.extend(path.parent().map(PathBuf::from));
                                Ok(location)
                            })
                            .collect();
                        // Erased rows must not come back after a crash.
                        for folder in folders {
                            shared.disk.sync_dir(&folder, REMOVED_DIR)?;
                        }
                        io::Result::Ok(removed)
                    });
                    match removed.await {
                        Ok(Ok(removed)) => removed,
                        Ok(Err(error)) => vec![Err(failed(&Path::default(), error))],
                        Err(error) => vec![Err(object_store::Error::JoinError { source: error })],
                    }
                }
            })
            .flat_map(stream::iter)
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let shared = self.shared.clone();
        let prefix = prefix.cloned().unwrap_or_default();
        let walker = shared.clone();
        stream::once(blocking(prefix.clone(), move || walker.walk(&prefix)))
            .map_ok(|paths| stream::iter(paths.into_iter().map(Ok)))
            .try_flatten()
            // Sizes come one by one, because whoever looks for the newest version reads the first entry alone.
            .and_then(move |path| {
                let (shared, asked) = (shared.clone(), path.clone());
                blocking(path, move || shared.meta(&asked))
            })
            .filter(|meta| {
                let vanished = matches!(meta, Err(object_store::Error::NotFound { .. }));
                async move { !vanished }
            })
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        let shared = self.shared.clone();
        blocking(prefix.clone(), move || {
            let mut result =
                ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() };
            for name in shared.names(&prefix)? {
                let path = prefix.clone().join(name.as_str());
                match shared.disk.read_dir(&shared.path(&path)) {
                    Ok(_) => result.common_prefixes.push(path),
                    Err(error) if is_no_folder(&error) => result.objects.push(shared.meta(&path)?),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(result)
        })
        .await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let bytes = self.get(from).await?.bytes().await?;
        let mode = match options.mode {
            CopyMode::Overwrite => PutMode::Overwrite,
            CopyMode::Create => PutMode::Create,
        };
        self.put_opts(to, bytes.into(), mode.into()).await?;
        Ok(())
    }
}

/// An object that arrives in parts.
struct Upload {
    shared: Arc<Shared>,
    file: Arc<dyn DiskFile>,
    temporary: PathBuf,
    location: Path,
    offset: u64,
    done: bool,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upload({})", self.location)
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        // The place of a part is settled when it is handed over; when it is written does not matter.
        let (file, mut offset) = (self.file.clone(), self.offset);
        self.offset += data.content_length() as u64;
        Box::pin(blocking(self.location.clone(), move || {
            for part in &data {
                file.write_at(part, offset)?;
                offset += part.len() as u64;
            }
            Ok(())
        }))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.done = true;
        let (shared, file) = (self.shared.clone(), self.file.clone());
        let (temporary, location) = (self.temporary.clone(), self.location.clone());
        publishing(self.location.clone(), move |wanted| shared.publish(&*file, &temporary, &location, false, wanted))
            .await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn abort(&mut self) -> Result<()> {
        self.done = true;
        let (shared, temporary) = (self.shared.clone(), self.temporary.clone());
        blocking(self.location.clone(), move || shared.disk.remove_file(&temporary)).await
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.done {
            // A cancelled write; a restart would remove the file too.
            let _ = self.shared.disk.remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use runtime::SimDisk;

    use super::*;

    fn store(disk: &SimDisk) -> LocalStore {
        LocalStore::open(Arc::new(disk.clone()), PathBuf::from("/data/store"), 8).unwrap()
    }

    async fn write(store: &LocalStore) -> Result<()> {
        store.put(&Path::from("t/data/small"), Bytes::from_static(b"small").into()).await?;
        let mut upload = store.put_multipart(&Path::from("t/data/large")).await?;
        let parts: Vec<UploadPart> = (0..3).map(|part| upload.put_part(vec![part; 5000].into())).collect();
        // Parts may be written in any order.
        for part in parts.into_iter().rev() {
            part.await?;
        }
        upload.complete().await?;
        store.put_opts(&Path::from("t/versions/1"), Bytes::from_static(b"one").into(), PutMode::Create.into()).await?;
        Ok(())
    }

    async fn check(store: &LocalStore, all: bool) -> bool {
        let large: Vec<u8> = (0..3).flat_map(|part| vec![part; 5000]).collect();
        let expected =
            [("t/data/small", b"small".to_vec()), ("t/data/large", large), ("t/versions/1", b"one".to_vec())];
        for (path, bytes) in expected {
            match store.get(&Path::from(path)).await {
                Ok(found) => {
                    if found.bytes().await.ok().as_deref() != Some(bytes.as_slice()) {
                        return false;
                    }
                }
                Err(object_store::Error::NotFound { .. }) if !all => {}
                Err(_) => return false,
            }
        }
        true
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_appears_that_nobody_waits_for() {
        let disk = SimDisk::new();
        let store = store(&disk);
        let until = async |waiting: usize, temporary: usize| {
            for _ in 0..1000 {
                let there = disk.files().iter().filter(|(path, _)| path.starts_with("/data/store/.tmp")).count();
                if disk.waiting_syncs() == waiting && there == temporary {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            panic!("{} syncs wait, not {waiting}; {:?}", disk.waiting_syncs(), disk.files());
        };
        let path = Path::from("t/data/small");
        let mut upload = store.put_multipart(&path).await.unwrap();
        upload.put_part(vec![1; 5000].into()).await.unwrap();
        // Besides the upload, which is there until it is complete.
        for (whole, before, after) in [(true, 2, 1), (false, 1, 0)] {
            disk.pause_syncs(true);
            let put = async {
                match whole {
                    true => store.put(&path, Bytes::from_static(b"small").into()).await.map(drop),
                    false => upload.complete().await.map(drop),
                }
            };
            tokio::select! {
                biased;
                _ = put => {
                    disk.pause_syncs(false);
                    panic!("it waits for the disk");
                }
                () = until(1, before) => {}
            }
            disk.pause_syncs(false);
            until(0, after).await;
            assert!(matches!(store.get(&path).await, Err(object_store::Error::NotFound { .. })), "whole: {whole}");
        }
    }

    async fn survives(ignore: Option<&'static str>) -> bool {
        for seed in 0..12 {
            for cut in 0.. {
                let disk = SimDisk::new();
                drop(store(&disk));
                if let Some(site) = ignore {
                    disk.ignore_syncs(site);
                }
                disk.power_off_after(cut);
                let written = match LocalStore::open(Arc::new(disk.clone()), PathBuf::from("/data/store"), 8) {
                    Ok(store) => write(&store).await.is_ok(),
                    Err(_) => false,
                };
                disk.crash(seed);
                if !check(&store(&disk), written).await {
                    return false;
                }
                if written {
                    break;
                }
            }
        }
        true
    }

    #[tokio::test]
    async fn every_sync_is_needed() {
        assert!(survives(None).await);
        for site in [OBJECT_FILE, OBJECT_DIR] {
            assert!(!survives(Some(site)).await, "{site} is not needed");
        }
    }

    #[tokio::test]
    async fn removed_objects_stay_removed() {
        let mut returned = [false; 2];
        for (returned, ignore) in returned.iter_mut().zip([None, Some(REMOVED_DIR)]) {
            for seed in 0..20 {
                let disk = SimDisk::new();
                let first = store(&disk);
                let path = Path::from("t/data/x");
                first.put(&path, Bytes::from_static(b"erased").into()).await.unwrap();
                if let Some(site) = ignore {
                    disk.ignore_syncs(site);
                }
                first.delete(&path).await.unwrap();
                drop(first);
                disk.crash(seed);
                *returned |= store(&disk).get(&path).await.is_ok();
            }
        }
        assert_eq!(returned, [false, true]);
    }

    #[tokio::test]
    async fn one_creator_wins() {
        let store = Arc::new(store(&SimDisk::new()));
        let path = Path::from("a/b");
        let puts = (0..16).map(|n| {
            let (store, path) = (store.clone(), path.clone());
            tokio::spawn(
                async move { store.put_opts(&path, Bytes::from(vec![n]).into(), PutMode::Create.into()).await },
            )
        });
        let results = futures::future::join_all(puts).await;
        let won = results.into_iter().filter(|result| matches!(result, Ok(Ok(_)))).count();
        assert_eq!(won, 1);
        let refused = store.put_opts(&path, Bytes::new().into(), PutMode::Create.into()).await;
        assert!(matches!(refused, Err(object_store::Error::AlreadyExists { .. })));
    }

    #[tokio::test]
    async fn lists_in_order() {
        let disk = SimDisk::new();
        let store = store(&disk);
        for path in ["a/z", "a/b/c", "a/b-c", "b", "a/b/a"] {
            store.put(&Path::from(path), Bytes::from(path).into()).await.unwrap();
        }
        let listed: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
        let paths: Vec<&str> = listed.iter().map(|meta| meta.location.as_ref()).collect();
        let mut sorted = paths.clone();
        sorted.sort();
        assert_eq!(paths, sorted);
        assert_eq!(paths.len(), 5);
        assert_eq!(listed[0].size, listed[0].location.as_ref().len() as u64);
        let one = store.list_with_delimiter(Some(&Path::from("a"))).await.unwrap();
        assert_eq!(one.common_prefixes, [Path::from("a/b")]);
        assert_eq!(one.objects.len(), 2);
        assert!(store.list(Some(&Path::from("none"))).next().await.is_none());
        store.delete(&Path::from("a/b/a")).await.unwrap();
        assert!(matches!(store.get(&Path::from("a/b/a")).await, Err(object_store::Error::NotFound { .. })));
        assert!(matches!(store.delete(&Path::from("a/b/a")).await, Err(object_store::Error::NotFound { .. })));
    }

    #[tokio::test]
    async fn ranges_heads_and_overwrites() {
        let store = store(&SimDisk::new());
        let path = Path::from("x");
        store.put(&path, Bytes::from_static(b"0123456789").into()).await.unwrap();
        assert_eq!(store.head(&path).await.unwrap().size, 10);
        assert_eq!(store.get_range(&path, 2..5).await.unwrap(), "234");
        assert_eq!(store.get_ranges(&path, &[0..1, 9..10, 4..4]).await.unwrap(), ["0", "9", ""]);
        let suffix = GetOptions { range: Some(GetRange::Suffix(3)), ..Default::default() };
        assert_eq!(store.get_opts(&path, suffix).await.unwrap().bytes().await.unwrap(), "789");
        store.put(&path, Bytes::from_static(b"abc").into()).await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "abc");
        store.copy(&path, &Path::from("y")).await.unwrap();
        assert_eq!(store.get(&Path::from("y")).await.unwrap().bytes().await.unwrap(), "abc");
    }

    #[tokio::test]
    async fn a_second_process_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(runtime::RealDisk::new());
        let first = LocalStore::open(disk.clone(), dir.path().join("s"), 8).unwrap();
        assert_eq!(
            LocalStore::open(disk.clone(), dir.path().join("s"), 8).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(first);
        LocalStore::open(disk, dir.path().join("s"), 8).unwrap();
    }
}
