//! Objects as plain bytes: from one place to another, with their checksums.
//!
//! A backup is a copy of immutable objects. A [`Depot`] is any place that holds objects: the column tier itself, a
//! folder, or a bucket. Copies go piece by piece, so that a large object never lies in memory, and are compared with
//! what is expected before they take their name.
//!
//! # Invariants
//! - TRANSFER-1 an object whose bytes are not the expected ones never appears at its destination:
//!   `tests::a_damaged_object_is_not_copied`.
//! - TRANSFER-2 a depot that is opened to read changes nothing: `tests::reading_changes_nothing`.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use base::{DatasetVersion, TableId};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use lance_table::io::commit::ManifestNamingScheme;
use lance_table::io::deletion::deletion_file_path;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode};
use runtime::Disk;
use xxhash_rust::xxh3::Xxh3;

use crate::store::{Access, open_objects};
use crate::{ColumnStore, Error, FileMeta, ObjectInfo, Result, Role};

/// Bytes read, and sent, at a time.
const PIECE_BYTES: u64 = 8 << 20;

/// What an object's bytes are known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// How many.
    pub bytes: u64,
    /// Their XXH3, 128 bits.
    pub hash: u128,
}

impl Digest {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, hash: xxhash_rust::xxh3::xxh3_128(bytes) }
    }
}

/// A place that holds objects. Cheap to clone.
#[derive(Clone)]
pub struct Depot {
    url: String,
    objects: Arc<dyn ObjectStore>,
}

impl fmt::Debug for Depot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Depot({})", self.url)
    }
}

impl ColumnStore {
    /// The objects of this store.
    pub fn depot(&self) -> Depot {
        Depot { url: self.url().to_owned(), objects: Arc::clone(&self.inner.objects) }
    }

    /// The paths of everything that a store needs to open one version of a dataset and to read these files of it.
    /// Version 0 is a dataset that does not exist yet; its files are staged ones.
    pub async fn objects_of(
        &self,
        table: TableId,
        role: Role,
        version: DatasetVersion,
        files: &[Arc<FileMeta>],
    ) -> Result<Vec<String>> {
        let mut paths: Vec<Path> = Vec::new();
        for meta in files.iter().filter(|meta| meta.role == role) {
            paths.push(self.data_path(table, role, &meta.path));
            paths.push(self.sidecar_path(table, role, &meta.path));
        }
        if version > DatasetVersion(0) {
            let folder = self.dataset_path(table, role);
            let pin = self.pin(table, role, version).await?;
            for fragment in pin.fragments() {
                for file in &fragment.files {
                    paths.push(self.data_path(table, role, &file.path));
                }
                paths.extend(fragment.deletion_file.iter().map(|file| deletion_file_path(&folder, fragment.id, file)));
            }
            paths.push(ManifestNamingScheme::V2.manifest_path(&folder, version.0));
            if let Some(name) = pin.transaction_file() {
                paths.push(folder.clone().join("_transactions").join(name));
            }
        }
        let mut paths: Vec<String> = paths.into_iter().map(String::from).collect();
        paths.sort_unstable();
        paths.dedup();
        Ok(paths)
    }
}

impl Depot {
    /// Opens a place to write to: a folder (created when missing), `file://…` or `s3://bucket/prefix`.
    pub async fn open(url: &str, disk: Arc<dyn Disk>) -> Result<Self> {
        let (objects, _) = open_objects(url, disk, Access::Write, 64).await?;
        Ok(Self { url: url.to_owned(), objects })
    }

    /// Opens a place to read from. A folder is neither created nor locked.
    pub async fn open_to_read(url: &str, disk: Arc<dyn Disk>) -> Result<Self> {
        let (objects, _) = open_objects(url, disk, Access::Read, 64).await?;
        Ok(Self { url: url.to_owned(), objects })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The local folder that a URL names, if it names one.
    pub fn local_folder(url: &str) -> Option<PathBuf> {
        match url::Url::parse(url) {
            Ok(parsed) if parsed.scheme() == "file" => parsed.to_file_path().ok(),
            Ok(_) => None,
            Err(_) => Some(PathBuf::from(url)),
        }
    }

    /// Every object, in path order.
    pub async fn list(&self) -> Result<Vec<ObjectInfo>> {
        let found: Vec<ObjectMeta> = self.objects.list(None).try_collect().await?;
        let mut found: Vec<ObjectInfo> =
            found.into_iter().map(|meta| ObjectInfo { path: meta.location.to_string(), bytes: meta.size }).collect();
        found.sort_by(|left, right| left.path.cmp(&right.path));
        Ok(found)
    }

    /// Whether it holds nothing.
    pub async fn is_empty(&self) -> Result<bool> {
        Ok(self.objects.list(None).try_next().await?.is_none())
    }

    /// A small object, whole; `None` when it is not there.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>> {
        match self.objects.get(&Path::from(path)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a small object durably and atomically, in place of what was there.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.objects.put(&Path::from(path), bytes.into()).await?;
        Ok(())
    }

    /// Writes a small object unless there is one: then it says so.
    pub async fn put_new(&self, path: &str, bytes: Bytes) -> Result<bool> {
        match self.objects.put_opts(&Path::from(path), bytes.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes objects; those that are gone already are no error.
    pub async fn delete(&self, paths: Vec<String>) -> Result<()> {
        let paths = stream::iter(paths.into_iter().map(|path| Ok(Path::from(path))));
        let mut deleted = self.objects.delete_stream(paths.boxed());
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn size(&self, path: &Path) -> Result<u64> {
        match self.objects.head(path).await {
            Ok(meta) => Ok(meta.size),
            Err(object_store::Error::NotFound { .. }) => Err(Error::Missing(path.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    async fn piece(&self, path: &Path, range: Range<u64>) -> Result<Bytes> {
        let length = range.end - range.start;
        let bytes = match self.objects.get_range(path, range).await {
            Ok(bytes) => bytes,
            Err(object_store::Error::NotFound { .. }) => return Err(Error::Missing(path.to_string())),
            Err(error) => return Err(error.into()),
        };
        if bytes.len() as u64 == length {
            Ok(bytes)
        } else {
            Err(Error::corrupt(path.as_ref(), "the object ends early"))
        }
    }

    /// Reads an object and tells what its bytes are.
    pub async fn digest(&self, path: &str) -> Result<Digest> {
        let path = Path::from(path);
        let size = self.size(&path).await?;
        let mut hasher = Xxh3::new();
        for range in pieces(size) {
            hasher.update(&self.piece(&path, range).await?);
        }
        Ok(Digest { bytes: size, hash: hasher.digest128() })
    }

    /// Copies an object to another depot, durably. With `expected`, the copy is made only if the bytes are those.
    pub async fn copy(&self, path: &str, to: &Depot, to_path: &str, expected: Option<Digest>) -> Result<Digest> {
        let (from_path, to_path) = (Path::from(path), Path::from(to_path));
        let size = self.size(&from_path).await?;
        let check = |found: Digest| match expected {
            Some(expected) if expected.bytes != found.bytes => {
                Err(Error::corrupt(path, format!("it has {} bytes, {} are expected", found.bytes, expected.bytes)))
            }
            Some(expected) if expected != found => Err(Error::corrupt(path, "its checksum does not match")),
            _ => Ok(found),
        };
        if expected.is_some_and(|expected| expected.bytes != size) {
            return check(Digest { bytes: size, hash: 0 });
        }
        if size <= PIECE_BYTES {
            let mut bytes = BytesMut::new();
            for range in pieces(size) {
                bytes.extend_from_slice(&self.piece(&from_path, range).await?);
            }
            let found = check(Digest::of(&bytes))?;
            to.objects.put(&to_path, bytes.freeze().into()).await?;
            return Ok(found);
        }
        let mut hasher = Xxh3::new();
        let mut upload = to.objects.put_multipart(&to_path).await?;
        let sent = async {
            for range in pieces(size) {
                let bytes = self.piece(&from_path, range).await?;
                hasher.update(&bytes);
                upload.put_part(bytes.into()).await?;
            }
            check(Digest { bytes: size, hash: hasher.digest128() })
        }
        .await;
        match sent {
            Ok(found) => {
                upload.complete().await?;
                Ok(found)
            }
            Err(error) => {
                if let Err(left) = upload.abort().await {
                    tracing::debug!(%to_path, error = %left, "the parts of a failed copy stay");
                }
                Err(error)
            }
        }
    }
}

fn pieces(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(PIECE_BYTES)).map(move |piece| piece * PIECE_BYTES..size.min((piece + 1) * PIECE_BYTES))
}

#[cfg(test)]
mod tests {
    use std::path::Path as FilePath;

    use runtime::{OpenMode, RealDisk};

    use super::*;

    async fn depot(folder: &FilePath) -> Depot {
        Depot::open(&folder.to_string_lossy(), Arc::new(RealDisk::new())).await.unwrap()
    }

    #[tokio::test]
    async fn a_damaged_object_is_not_copied() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (depot(&folder.path().join("a")).await, depot(&folder.path().join("b")).await);
        // One that travels whole, one that travels in pieces, and an empty one.
        for (path, size) in [("x/small", 1000), ("x/large", 2 * PIECE_BYTES as usize + 17), ("x/empty", 0)] {
            let bytes: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
            from.put(path, bytes.clone().into()).await.unwrap();
            let digest = Digest::of(&bytes);
            assert_eq!(from.digest(path).await.unwrap(), digest);
            assert_eq!(from.copy(path, &to, path, Some(digest)).await.unwrap(), digest);
            assert_eq!(to.get(path).await.unwrap().unwrap(), bytes);
            to.delete(vec![path.to_owned()]).await.unwrap();
            for wrong in [Digest { bytes: digest.bytes + 1, ..digest }, Digest { hash: digest.hash ^ 1, ..digest }] {
                let error = from.copy(path, &to, path, Some(wrong)).await.unwrap_err();
                assert!(matches!(&error, Error::Corrupt { path: named, .. } if named == path), "{error}");
                assert!(to.get(path).await.unwrap().is_none(), "{path} arrived");
            }
        }
        let missing = from.copy("x/none", &to, "x/none", None).await.unwrap_err();
        assert!(matches!(missing, Error::Missing(_)), "{missing}");
        assert!(to.is_empty().await.unwrap());
    }

    #[tokio::test]
    async fn reading_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
        let missing = folder.path().join("none");
        let reader = Depot::open_to_read(&missing.to_string_lossy(), disk.clone()).await.unwrap();
        assert!(reader.is_empty().await.unwrap());
        assert!(!missing.exists());
        let there = folder.path().join("there");
        disk.create_dir_all(&there).unwrap();
        disk.open(&there.join("object"), OpenMode::CreateNew).unwrap().write_at(b"abc", 0).unwrap();
        let reader = Depot::open_to_read(&there.to_string_lossy(), disk.clone()).await.unwrap();
        assert_eq!(reader.list().await.unwrap(), [ObjectInfo { path: "object".into(), bytes: 3 }]);
        assert_eq!(reader.digest("object").await.unwrap(), Digest::of(b"abc"));
        let writer = depot(&folder.path().join("written")).await;
        writer.put("object", Bytes::from_static(b"abc")).await.unwrap();
        for place in [&there, &folder.path().join("written")] {
            let reader = Depot::open_to_read(&place.to_string_lossy(), disk.clone()).await.unwrap();
            assert!(reader.put("other", Bytes::from_static(b"x")).await.is_err());
            assert!(reader.copy("object", &reader, "other", None).await.is_err());
            assert!(reader.delete(vec!["object".into()]).await.is_err());
            assert_eq!(reader.list().await.unwrap().len(), 1);
        }
        assert_eq!(disk.read_dir(&there).unwrap(), ["object"]);
    }
}
