//! Opening a store, and the object store below it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::ArrayRef;
use async_trait::async_trait;
use base::{DatasetVersion, TableId};
use bytes::Bytes;
use futures::TryStreamExt;
use lance::session::Session;
use lance_core::cache::LanceCache;
use lance_io::object_store::{ObjectStore as LanceStore, ObjectStoreParams, ObjectStoreProvider, ObjectStoreRegistry};
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, RetryConfig, UpdateVersion};
use parking_lot::Mutex;
use roaring::RoaringBitmap;
use runtime::{Disk, RealDisk};
use url::Url;

use crate::blocks::BlockKey;
use crate::cache::Cache;
use crate::local::LocalStore;
use crate::lookup::ZoneKeys;
use crate::read::OpenFile;
use crate::sums::{Summing, Sums};
use crate::wire::{In, Out};
use crate::{BATCH_ROWS, DatasetPin, Error, FileStats, Result, Role};

/// Under this scheme Lance finds our object store, and nothing of Lance's own code for local files runs.
const SCHEME: &str = "lattice";
const OWNER_OBJECT: &str = "OWNER";
const OWNER_MAGIC: &[u8; 4] = b"LCOW";
const OWNER_VERSION: u8 = 1;
/// How often taking a location is tried while others do the same.
const OWNER_TRIES: usize = 5;
/// Versions of datasets kept open.
const OPEN_PINS: usize = 512;
/// Bytes of deletion vectors kept in memory.
const DELETION_CACHE_BYTES: usize = 64 << 20;

/// How a [`ColumnStore`] is opened.
#[derive(Clone, Debug)]
pub struct ColumnOptions {
    /// The cluster that owns the location.
    pub cluster: String,
    /// Grows when the cluster is restored or moved; a location that was opened with a later epoch refuses an earlier one.
    pub epoch: u64,
    /// Bytes for Lance's cache of manifests and file metadata.
    pub metadata_cache_bytes: usize,
    /// Bytes for decoded key zones.
    pub key_cache_bytes: usize,
    /// Bytes for decoded columns; 0 keeps none.
    pub column_cache_bytes: usize,
    /// Rows of a column that are decoded and kept together.
    pub column_block_rows: u32,
    /// Bytes for file statistics (sidecars).
    pub stats_cache_bytes: usize,
    /// Bytes that one scan of a remote store may have read ahead but not decoded.
    pub io_buffer_bytes: u64,
    /// Readers of data files kept open, with their decoded footers.
    pub open_readers: usize,
    /// File descriptors kept open in a local store.
    pub open_files: usize,
    /// The disk that holds a local store.
    pub disk: Arc<dyn Disk>,
    /// Only look: the owner is checked and nothing is taken over. A local folder still needs its own files (see
    /// [`runtime::OverlayDisk`]).
    pub inspect: bool,
}

impl ColumnOptions {
    /// The defaults, for a cluster.
    pub fn new(cluster: impl Into<String>, epoch: u64) -> Self {
        Self {
            cluster: cluster.into(),
            epoch,
            metadata_cache_bytes: 128 << 20,
            key_cache_bytes: 128 << 20,
            column_cache_bytes: 512 << 20,
            column_block_rows: BATCH_ROWS,
            stats_cache_bytes: 128 << 20,
            io_buffer_bytes: 256 << 20,
            open_readers: 1024,
            open_files: 1024,
            disk: Arc::new(RealDisk::new()),
            inspect: false,
        }
    }
}

/// One object of the store, for backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The path below the store's root.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// The column tier of one cluster: every table's `current` and `history` datasets below one URL. Cheap to clone.
#[derive(Clone)]
pub struct ColumnStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    url: String,
    shared: bool,
    pub(crate) options: ColumnOptions,
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// The same, when it is a local folder.
    pub(crate) local: Option<Arc<LocalStore>>,
    /// The same, as Lance sees it. Kept here because the registry holds it only weakly.
    pub(crate) lance: Arc<LanceStore>,
    pub(crate) session: Arc<Session>,
    /// What decoders remember of data files.
    pub(crate) decoded: LanceCache,
    pub(crate) pins: Cache<(TableId, Role, DatasetVersion), Arc<DatasetPin>>,
    pub(crate) readers: Cache<Path, Arc<OpenFile>>,
    pub(crate) stats: Cache<Path, Arc<FileStats>>,
    pub(crate) deletions: Cache<Path, Arc<RoaringBitmap>>,
    pub(crate) key_zones: Cache<(Path, u32), Arc<ZoneKeys>>,
    pub(crate) blocks: Cache<BlockKey, ArrayRef>,
    /// Data files of this process that were neither committed nor discarded.
    pub(crate) fresh: Mutex<HashSet<Path>>,
    /// Where the clean-up after cancelled writes goes.
    pub(crate) tasks: tokio::runtime::Handle,
    /// The checksums of data files on their way into sidecars.
    pub(crate) sums: Sums,
    /// Held while a dataset is committed to or swept.
    pub(crate) writers: Mutex<HashMap<(TableId, Role), Arc<tokio::sync::Mutex<()>>>>,
}

impl fmt::Debug for ColumnStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ColumnStore({})", self.inner.url)
    }
}

/// Gives Lance our object store, whatever URL below [`SCHEME`] it asks for.
struct Provider {
    objects: Arc<dyn ObjectStore>,
    shared: bool,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Provider({})", self.objects)
    }
}

#[async_trait]
impl ObjectStoreProvider for Provider {
    async fn new_store(&self, _url: Url, _params: &ObjectStoreParams) -> lance_core::Result<LanceStore> {
        let (block_bytes, parallel_reads) = if self.shared { (64 << 10, 64) } else { (4 << 10, 8) };
        // `memory` makes Lance send everything through the object store, without the heuristics it has for clouds.
        let location = Url::parse("memory:///").map_err(|error| lance_core::Error::invalid_input(error.to_string()))?;
        // Every store of ours lists in path order.
        let lexical = true;
        Ok(LanceStore::new(
            self.objects.clone(),
            location,
            Some(block_bytes),
            None,
            false,
            lexical,
            parallel_reads,
            3,
            None,
        ))
    }
}

impl ColumnStore {
    /// Opens or creates the store at a URL: a folder path, `file://…`, `s3://bucket/prefix` (credentials and endpoint
    /// from the `AWS_*` environment) or `memory://`. Refuses a location that another cluster owns.
    pub async fn open(url: &str, options: ColumnOptions) -> Result<Self> {
        let options = ColumnOptions { column_block_rows: options.column_block_rows.max(1), ..options };
        let (objects, local) = open_objects(url, options.disk.clone(), Access::Own, options.open_files).await?;
        let shared = url.starts_with("s3://");
        let registry = Arc::new(ObjectStoreRegistry::empty());
        let sums = Sums::default();
        let summing: Arc<dyn ObjectStore> = Arc::new(Summing::new(objects.clone(), sums.clone()));
        registry.insert(SCHEME, Arc::new(Provider { objects: summing, shared }));
        // Nothing here uses Lance's indexes yet.
        let session = Arc::new(Session::new(1 << 20, options.metadata_cache_bytes / 2, registry.clone()));
        let root = Url::parse(&format!("{SCHEME}://store/")).map_err(|error| Error::InvalidInput(error.to_string()))?;
        let lance = registry.get_store(root, &ObjectStoreParams::default()).await?;
        let inner = Inner {
            url: url.to_owned(),
            shared,
            objects,
            local,
            lance,
            session,
            decoded: LanceCache::with_capacity(options.metadata_cache_bytes / 2),
            pins: Cache::new(OPEN_PINS),
            readers: Cache::new(options.open_readers),
            stats: Cache::new(options.stats_cache_bytes),
            deletions: Cache::new(DELETION_CACHE_BYTES),
            key_zones: Cache::new(options.key_cache_bytes),
            blocks: Cache::new(options.column_cache_bytes),
            fresh: Mutex::new(HashSet::new()),
            tasks: tokio::runtime::Handle::current(),
            sums,
            writers: Mutex::new(HashMap::new()),
            options,
        };
        let store = Self { inner: Arc::new(inner) };
        if store.inner.options.inspect {
            store.check_owner().await?;
        } else {
            store.take_ownership().await?;
        }
        Ok(store)
    }

    /// The URL it was opened with.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// Whether other machines can reach the same store, which more than one voter requires.
    pub fn is_shared(&self) -> bool {
        self.inner.shared
    }

    /// Every object below `prefix` (empty for all), in path order.
    pub async fn list_objects(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let prefix = Path::from(prefix);
        let found = self.inner.objects.list(Some(&prefix));
        let mut found: Vec<ObjectInfo> =
            found.map_ok(|meta| ObjectInfo { path: meta.location.to_string(), bytes: meta.size }).try_collect().await?;
        found.sort_by(|left, right| left.path.cmp(&right.path));
        Ok(found)
    }

    /// The bytes of one object.
    pub async fn read_object(&self, path: &str) -> Result<Bytes> {
        self.get(&Path::from(path)).await
    }

    /// Writes one object durably and atomically, replacing what was there.
    pub async fn write_object(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.inner.objects.put(&Path::from(path), bytes.into()).await?;
        Ok(())
    }

    /// Reads the owner object again and fails if the location has changed hands.
    pub async fn check_owner(&self) -> Result<()> {
        let bytes = self.get(&Path::from(OWNER_OBJECT)).await?;
        let (cluster, epoch) = decode_owner(&bytes)?;
        if cluster == self.inner.options.cluster && epoch == self.inner.options.epoch {
            Ok(())
        } else {
            Err(self.foreign(cluster, epoch))
        }
    }

    async fn take_ownership(&self) -> Result<()> {
        let path = Path::from(OWNER_OBJECT);
        let options = &self.inner.options;
        let ours = encode_owner(&options.cluster, options.epoch);
        for _ in 0..OWNER_TRIES {
            let found = match self.inner.objects.get(&path).await {
                Ok(found) => Some(found),
                Err(object_store::Error::NotFound { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            let mode = match found {
                None => PutMode::Create,
                Some(found) => {
                    let version =
                        UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
                    let (cluster, epoch) = decode_owner(&found.bytes().await?)?;
                    if cluster != options.cluster || epoch > options.epoch {
                        return Err(self.foreign(cluster, epoch));
                    }
                    if epoch == options.epoch {
                        return Ok(());
                    }
                    // A local folder is locked against other processes, so nobody can come between.
                    if self.inner.local.is_some() { PutMode::Overwrite } else { PutMode::Update(version) }
                }
            };
            match self.inner.objects.put_opts(&path, ours.clone().into(), mode.into()).await {
                Ok(_) => return Ok(()),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::InvalidInput(format!("others keep changing the owner of {}", self.inner.url)))
    }

    fn foreign(&self, found_cluster: String, found_epoch: u64) -> Error {
        Error::Foreign {
            url: self.inner.url.clone(),
            found_cluster,
            found_epoch,
            cluster: self.inner.options.cluster.clone(),
            epoch: self.inner.options.epoch,
        }
    }

    pub(crate) async fn get(&self, path: &Path) -> Result<Bytes> {
        match self.inner.objects.get(path).await {
            Ok(found) => Ok(found.bytes().await?),
            Err(object_store::Error::NotFound { .. }) => Err(Error::Missing(path.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn table_path(&self, table: TableId) -> Path {
        Path::from(format!("t{table}"))
    }

    pub(crate) fn dataset_path(&self, table: TableId, role: Role) -> Path {
        self.table_path(table).join(role.folder())
    }

    pub(crate) fn dataset_uri(&self, table: TableId, role: Role) -> String {
        format!("{SCHEME}://store/{}", self.dataset_path(table, role))
    }

    pub(crate) fn data_path(&self, table: TableId, role: Role, name: &str) -> Path {
        self.dataset_path(table, role).join("data").join(name)
    }

    pub(crate) fn stats_folder(&self, table: TableId, role: Role) -> Path {
        self.dataset_path(table, role).join("_stats")
    }

    pub(crate) fn sidecar_path(&self, table: TableId, role: Role, name: &str) -> Path {
        self.stats_folder(table, role).join(format!("{name}.stats"))
    }

    /// The lock of a dataset, for whoever changes what it consists of.
    pub(crate) fn writer(&self, table: TableId, role: Role) -> Arc<tokio::sync::Mutex<()>> {
        self.inner.writers.lock().entry((table, role)).or_default().clone()
    }
}

/// What a place of objects is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// As the column tier of this process, which waits for a store that is away.
    Own,
    /// To write objects, by somebody who waits for the outcome.
    Write,
    /// To read objects; nothing is created or locked.
    Read,
}

/// How long somebody who waits for the outcome is told to wait for a store that is away.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn open_objects(
    url: &str,
    disk: Arc<dyn Disk>,
    access: Access,
    open_files: usize,
) -> Result<(Arc<dyn ObjectStore>, Option<Arc<LocalStore>>)> {
    let unusable = || {
        Error::InvalidInput(format!("column store url {url}: give a folder, file://, s3://bucket/prefix or memory://"))
    };
    let folder = match Url::parse(url) {
        Ok(url) if url.scheme() == "s3" => return Ok((open_s3(&url, access)?, None)),
        Ok(url) if url.scheme() == "memory" => return Ok((Arc::new(InMemory::new()), None)),
        Ok(url) if url.scheme() == "file" => url.to_file_path().map_err(|()| unusable())?,
        Ok(_) => return Err(unusable()),
        Err(_) if url.is_empty() => return Err(unusable()),
        Err(_) => PathBuf::from(url),
    };
    let opened = tokio::task::spawn_blocking(move || match access {
        Access::Own | Access::Write => LocalStore::open(disk, folder, open_files),
        Access::Read => Ok(LocalStore::open_to_read(disk, folder, open_files)),
    })
    .await;
    let store = match opened {
        Ok(Ok(store)) => Arc::new(store),
        Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => return Err(Error::Locked { url: url.to_owned() }),
        Ok(Err(error)) => return Err(object_store::Error::Generic { store: "local", source: error.into() }.into()),
        Err(error) => return Err(object_store::Error::JoinError { source: error }.into()),
    };
    Ok((store.clone(), Some(store)))
}

fn open_s3(url: &Url, access: Access) -> Result<Arc<dyn ObjectStore>> {
    let bucket = url.host_str().ok_or_else(|| Error::InvalidInput(format!("{url} names no bucket")))?;
    let plain = ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"]
        .iter()
        .any(|name| std::env::var(name).is_ok_and(|endpoint| endpoint.starts_with("http://")));
    let mut builder =
        AmazonS3Builder::from_env().with_bucket_name(bucket).with_conditional_put(S3ConditionalPut::ETagMatch);
    if plain {
        // Whoever configures an endpoint without TLS means it.
        builder = builder.with_allow_http(true);
    }
    if access != Access::Own {
        let retry = RetryConfig { max_retries: 6, retry_timeout: PATIENCE, ..RetryConfig::default() };
        builder = builder.with_retry(retry);
    }
    let prefix = Path::from_url_path(url.path()).map_err(object_store::Error::from)?;
    Ok(Arc::new(PrefixStore::new(builder.build()?, prefix)))
}

pub(crate) fn encode_owner(cluster: &str, epoch: u64) -> Bytes {
    let mut out = Out::default();
    out.bytes.extend_from_slice(OWNER_MAGIC);
    out.u8(OWNER_VERSION);
    out.slice(cluster.as_bytes());
    out.u64(epoch);
    let checksum = crc32c::crc32c(&out.bytes);
    out.bytes.extend_from_slice(&checksum.to_le_bytes());
    out.bytes.into()
}

fn decode_owner(bytes: &Bytes) -> Result<(String, u64)> {
    let corrupt = || Error::corrupt(OWNER_OBJECT, "not an owner object this version writes");
    let (body, checksum) = bytes.split_last_chunk::<4>().ok_or_else(corrupt)?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return Err(Error::corrupt(OWNER_OBJECT, "checksum mismatch"));
    }
    let fields = body
        .strip_prefix(OWNER_MAGIC.as_slice())
        .and_then(|rest| rest.strip_prefix(&[OWNER_VERSION]))
        .ok_or_else(corrupt)?;
    let mut input = In::new(Bytes::copy_from_slice(fields));
    input.string().zip(input.u64()).ok_or_else(corrupt)
}
