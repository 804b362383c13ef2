//! Publishing dataset versions, and reading them back.
//!
//! A commit is one hand-built `Operation::Update`: new fragments, deletion vectors of touched ones, and fragments that go.
//! It passes through a handler that refuses any version number but the expected one. Lance by itself would rebase a stale
//! commit onto newer versions without a word, and a deposed leader would so duplicate rows.
//!
//! A file with columns that the dataset does not know yet needs a version of its own before: one that changes the schema
//! alone. It is marked, so that recovery looks through it.
//!
//! # Invariants
//! - COMMIT-1 a commit lands on the expected version or not at all: `tests::a_stale_writer_is_refused`,
//!   `tests::one_of_many_committers_wins`.
//! - COMMIT-2 a file that is missing or cut is not adopted: `tests::a_missing_file_is_not_adopted`.
//!
//! # Failure
//! [`Error::Fenced`] means that nothing landed and nothing will. [`Error::Indeterminate`] means that the outcome could not
//! be read back: ask [`ColumnStore::latest`]. After any other error nothing has landed when the call returns; should a
//! request that the network held back land later, the next commit on the same version is fenced and finds it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::num::NonZero;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base::{DatasetVersion, FileId, TableId};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::transaction::{Operation, Transaction, UpdateMode};
use lance::dataset::{CommitBuilder, WriteDestination};
use lance_core::datatypes::{Field as LanceField, Schema as LanceSchema};
use lance_core::utils::deletion::DeletionVector;
use lance_file::versions::data_file_columns;
use lance_io::object_store::ObjectStore as LanceStore;
use lance_table::format::{DataFile, DeletionFile, Fragment, IndexMetadata, Manifest};
use lance_table::io::commit::{
    CommitError, CommitHandler, ConditionalPutCommitHandler, ManifestLocation, ManifestNamingScheme, ManifestWriter,
};
use lance_table::io::deletion::{deletion_file_path, read_deletion_file, write_deletion_file};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use roaring::RoaringBitmap;

use crate::physical::column_of;
use crate::write::FORMAT;
use crate::{ColumnStore, Error, FileMeta, FileState, OP_COLUMN, Result, Role, TX_FROM_COLUMN, TX_TO_COLUMN, TxFrom};

/// Marks a version that changes the schema alone.
const SCHEMA_ONLY: &str = "lattice.schema_only";
/// Deletion vectors written or read, and files opened, at a time.
const PARALLEL: usize = 8;

/// One new version of a dataset.
#[derive(Clone, Debug, Default)]
pub struct Commit<'a> {
    /// Staged files to adopt, in the order in which they become fragments.
    pub add: Vec<FileMeta>,
    /// Rows to delete, by file, in addition to those deleted already. A file that loses its last row is removed.
    pub delete: BTreeMap<FileId, RoaringBitmap>,
    /// Files to drop whole.
    pub remove: Vec<FileId>,
    /// The files of the version the commit builds on.
    pub files: &'a [FileMeta],
    /// Recorded with the version, for recovery.
    pub properties: BTreeMap<String, String>,
}

/// What a commit made, or what a version holds.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The version.
    pub version: DatasetVersion,
    /// All its files, in fragment order.
    pub files: Vec<FileMeta>,
}

/// The newest version of a dataset.
#[derive(Clone, Debug)]
pub struct Latest {
    /// Its number.
    pub version: DatasetVersion,
    /// What [`Commit::properties`] said.
    pub properties: BTreeMap<String, String>,
}

/// One version of one dataset, open for reading.
pub struct DatasetPin {
    table: TableId,
    role: Role,
    dataset: Arc<Dataset>,
    /// Where each fragment's deletion vector lies.
    deletions: HashMap<u64, DeletionFile>,
}

impl fmt::Debug for DatasetPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatasetPin({} of table {} at version {})", self.role, self.table, self.version())
    }
}

impl DatasetPin {
    fn new(table: TableId, role: Role, dataset: Dataset) -> Self {
        let fragments = dataset.manifest().fragments.iter();
        let deletions = fragments.filter_map(|fragment| Some((fragment.id, fragment.deletion_file.clone()?))).collect();
        Self { table, role, dataset: Arc::new(dataset), deletions }
    }

    /// Which version.
    pub fn version(&self) -> DatasetVersion {
        DatasetVersion(self.dataset.manifest().version)
    }

    pub(crate) fn fragments(&self) -> &[Fragment] {
        &self.dataset.manifest().fragments
    }

    /// The object that holds the version's transaction, when it does not lie in the manifest.
    pub(crate) fn transaction_file(&self) -> Option<&str> {
        self.dataset.manifest().transaction_file.as_deref()
    }
}

/// Refuses every version but one. See COMMIT-1.
#[derive(Debug)]
struct StrictCommitHandler {
    version: u64,
    refused: AtomicBool,
}

#[async_trait::async_trait]
impl CommitHandler for StrictCommitHandler {
    fn is_version_not_found_definitive(&self) -> bool {
        ConditionalPutCommitHandler.is_version_not_found_definitive()
    }

    fn propagate_commit_error_after_success(&self) -> bool {
        ConditionalPutCommitHandler.propagate_commit_error_after_success()
    }

    async fn commit(
        &self,
        manifest: &mut Manifest,
        indices: Option<Vec<IndexMetadata>>,
        base_path: &Path,
        object_store: &LanceStore,
        manifest_writer: ManifestWriter,
        naming_scheme: ManifestNamingScheme,
        transaction: Option<lance_table::format::Transaction>,
    ) -> Result<ManifestLocation, CommitError> {
        if manifest.version != self.version {
            self.refused.store(true, Ordering::Relaxed);
            let message = format!(
                "version {} was to be written, but others have written up to {}",
                self.version,
                manifest.version - 1
            );
            // A "conflict" would make Lance rebase once more.
            return Err(CommitError::OtherError(lance_core::Error::invalid_input(message)));
        }
        let inner = ConditionalPutCommitHandler;
        inner.commit(manifest, indices, base_path, object_store, manifest_writer, naming_scheme, transaction).await
    }
}

impl ColumnStore {
    /// Publishes one version as a true compare-and-swap on the version number: it lands exactly on `expected` or not at
    /// all ([`Error::Fenced`]). The dataset is created by its first commit, for which `expected` is version 0. Version
    /// numbers may skip: a commit that brings new columns takes two.
    #[tracing::instrument(name = "columns.commit", level = "debug", skip_all, fields(%table, %role, %expected))]
    pub async fn commit(
        &self,
        table: TableId,
        role: Role,
        expected: DatasetVersion,
        commit: Commit<'_>,
    ) -> Result<Committed> {
        for meta in &commit.add {
            if meta.role != role {
                return Err(Error::InvalidInput(format!(
                    "file {} lies in {} and cannot join {role}",
                    meta.path, meta.role
                )));
            }
            if meta.tx_from == TxFrom::AtCommit {
                return Err(Error::InvalidInput(format!("file {} has no commit timestamp yet", meta.path)));
            }
        }
        let lock = self.writer(table, role);
        let _writing = lock.lock().await;
        let first = self.commit_on(table, role, expected, &commit).await;
        let Err(Error::Fenced { .. }) = first else { return first };
        // An earlier attempt of ours may have got as far as the schema.
        match self.schema_only_since(table, role, expected).await {
            Ok(Some(version)) => self.commit_on(table, role, version, &commit).await,
            _ => first,
        }
    }

    pub(crate) async fn commit_on(
        &self,
        table: TableId,
        role: Role,
        expected: DatasetVersion,
        commit: &Commit<'_>,
    ) -> Result<Committed> {
        let schemas = self.schemas_to_add(table, &commit.add).await?;
        let (base, version) = if expected == DatasetVersion(0) {
            (None, expected)
        } else {
            let base = self.pin(table, role, expected).await?;
            let base = self.extend_schema(base, &schemas).await?;
            let version = base.version();
            (Some(base), version)
        };
        let schema = match &base {
            Some(base) => base.dataset.schema().clone(),
            None => merged_schema(&first_schema(role)?, &schemas, -1)?.0,
        };
        let mut added = Vec::with_capacity(schemas.len());
        for (meta, fields) in commit.add.iter().zip(&schemas) {
            added.push(new_fragment(meta, fields, &schema)?);
        }
        let Changes { updated, removed } = self.changes(base.as_deref(), commit).await?;
        let operation = match &base {
            Some(_) => Operation::Update {
                removed_fragment_ids: removed,
                updated_fragments: updated,
                new_fragments: added,
                fields_modified: Vec::new(),
                compacted_sstables: Vec::new(),
                fields_for_preserving_frag_bitmap: schema.fields_pre_order().map(|field| field.id as u32).collect(),
                update_mode: Some(UpdateMode::RewriteRows),
                inserted_rows_filter: None,
                updated_fragment_offsets: None,
            },
            None => Operation::Overwrite { fragments: added, schema, config_upsert_values: None, initial_bases: None },
        };
        let properties = commit.properties.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let pin = self.publish(table, role, base.as_deref(), version, operation, properties).await?;
        {
            let mut fresh = self.inner.fresh.lock();
            for meta in &commit.add {
                fresh.remove(&self.data_path(table, role, &meta.path));
            }
        }
        let known = commit.files.iter().chain(&commit.add).map(|meta| (meta.path.as_str(), meta)).collect();
        self.describe(&pin, &known).await
    }

    /// Sends a prepared operation through the strict handler.
    async fn publish(
        &self,
        table: TableId,
        role: Role,
        base: Option<&DatasetPin>,
        expected: DatasetVersion,
        operation: Operation,
        properties: HashMap<String, String>,
    ) -> Result<Arc<DatasetPin>> {
        let handler = Arc::new(StrictCommitHandler { version: expected.0 + 1, refused: AtomicBool::new(false) });
        let uri = self.dataset_uri(table, role);
        let destination = match base {
            Some(base) => WriteDestination::Dataset(base.dataset.clone()),
            None => WriteDestination::Uri(&uri),
        };
        let mut transaction = Transaction::new(expected.0, operation, None);
        // The builder's own setting for this reaches batch commits only.
        transaction.transaction_properties = Some(Arc::new(properties));
        let uuid = transaction.uuid.clone();
        let builder = CommitBuilder::new(destination)
            .with_session(self.inner.session.clone())
            .with_commit_handler(handler.clone())
            .with_storage_format(FORMAT)
            .use_stable_row_ids(false)
            .with_max_retries(0)
            .with_skip_auto_cleanup(true);
        let error = match Box::pin(builder.execute(transaction)).await {
            Ok(dataset) => {
                let pin = Arc::new(DatasetPin::new(table, role, dataset));
                self.inner.pins.insert((table, role, pin.version()), pin.clone(), 1);
                return Ok(pin);
            }
            Err(error) => error,
        };
        let fenced = Error::Fenced { table, role, expected };
        if handler.refused.load(Ordering::Relaxed) {
            return Err(fenced);
        }
        // Whatever went wrong, what counts is whether the version is there, and whose it is.
        match self.load(table, role, None).await {
            Ok(Some(dataset)) if dataset.manifest().version > expected.0 => {
                let version = DatasetVersion(expected.0 + 1);
                let landed = self.load(table, role, Some(version)).await;
                let transaction = match &landed {
                    Ok(Some(dataset)) => dataset.read_transaction().await.ok().flatten(),
                    _ => None,
                };
                match transaction {
                    Some(transaction) if transaction.uuid == uuid => self.pin(table, role, version).await,
                    Some(_) => Err(fenced),
                    None => Err(Error::Indeterminate { table, role, expected, source: error.into() }),
                }
            }
            Ok(_) => Err(error.into()),
            Err(_) => Err(Error::Indeterminate { table, role, expected, source: error.into() }),
        }
    }

    /// The fields of the files to add. Opening them checks that they are there and whole, and warms them for readers.
    async fn schemas_to_add(&self, table: TableId, files: &[FileMeta]) -> Result<Vec<LanceSchema>> {
        // Boxed one by one: a closure over a borrowed item would keep callers from being `Send`.
        let schemas: Vec<BoxFuture<'_, Result<LanceSchema>>> =
            files.iter().map(|meta| self.schema_to_add(table, meta).boxed()).collect();
        stream::iter(schemas).buffered(PARALLEL).try_collect().await
    }

    async fn schema_to_add(&self, table: TableId, meta: &FileMeta) -> Result<LanceSchema> {
        let path = self.data_path(table, meta.role, &meta.path);
        let found = self.inner.objects.head(&path).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => Error::Missing(path.to_string()),
            error => error.into(),
        })?;
        if found.size != meta.bytes {
            return Err(Error::corrupt(
                path.to_string(),
                format!("{} bytes where {} were written", found.size, meta.bytes),
            ));
        }
        self.stats(table, meta).await?;
        let file = self.open_file(table, meta).await?;
        Ok(file.reader.schema().as_ref().clone())
    }

    /// Makes the dataset know every field of the files, by a version of its own if one is new.
    async fn extend_schema(&self, base: Arc<DatasetPin>, files: &[LanceSchema]) -> Result<Arc<DatasetPin>> {
        let manifest = base.dataset.manifest();
        let (schema, grown) = merged_schema(base.dataset.schema(), files, manifest.max_field_id())?;
        if !grown {
            return Ok(base);
        }
        let operation =
            Operation::Merge { fragments: manifest.fragments.as_ref().clone(), schema, preserves_nullability: true };
        let mark = HashMap::from([(SCHEMA_ONLY.to_owned(), "1".to_owned())]);
        self.publish(base.table, base.role, Some(&base), base.version(), operation, mark).await
    }

    /// The newest version, if nothing but schemas came after `expected`.
    async fn schema_only_since(
        &self,
        table: TableId,
        role: Role,
        expected: DatasetVersion,
    ) -> Result<Option<DatasetVersion>> {
        let Some(latest) = self.load(table, role, None).await? else { return Ok(None) };
        let newest = latest.manifest().version;
        if newest <= expected.0 || expected.0 == 0 {
            return Ok(None);
        }
        for version in expected.0 + 1..=newest {
            let Some(dataset) = self.load(table, role, Some(DatasetVersion(version))).await? else { return Ok(None) };
            if !is_schema_only(&properties(&dataset).await?) {
                return Ok(None);
            }
        }
        Ok(Some(DatasetVersion(newest)))
    }

    /// The fragments that lose rows.
    async fn changes(&self, base: Option<&DatasetPin>, commit: &Commit<'_>) -> Result<Changes> {
        let mut changes = Changes::default();
        let by_id: HashMap<FileId, &FileMeta> = commit.files.iter().map(|meta| (meta.file, meta)).collect();
        let find = |file: FileId| {
            let meta = by_id.get(&file);
            meta.copied().ok_or_else(|| {
                Error::InvalidInput(format!("file {file} is not among the files of the version committed on"))
            })
        };
        let fragments: HashMap<&str, &Fragment> = base.map_or_else(HashMap::new, |base| by_path(base.fragments()));
        let fragment_of = |meta: &FileMeta| {
            let fragment = fragments.get(meta.path.as_str());
            fragment.copied().ok_or_else(|| {
                Error::InvalidInput(format!("file {} is not part of the version committed on", meta.path))
            })
        };
        let mut removed = BTreeSet::new();
        for &file in &commit.remove {
            removed.insert(fragment_of(find(file)?)?.id);
        }
        let Some(base) = base else {
            for &file in commit.delete.keys() {
                fragment_of(find(file)?)?;
            }
            return Ok(changes);
        };
        let mut touched = Vec::new();
        for (&file, rows) in commit.delete.iter().filter(|(_, rows)| !rows.is_empty()) {
            let meta = find(file)?;
            let fragment = fragment_of(meta)?;
            if rows.max().is_some_and(|last| last >= meta.rows) {
                return Err(Error::InvalidInput(format!(
                    "a row beyond the end of file {} was to be deleted",
                    meta.path
                )));
            }
            if !removed.contains(&fragment.id) {
                touched.push((meta, fragment, rows));
            }
        }
        let writes: Vec<BoxFuture<'_, Result<(u64, Option<Fragment>)>>> = touched
            .into_iter()
            .map(|(meta, fragment, rows)| self.delete_rows(base, meta, fragment, rows).boxed())
            .collect();
        let written: Vec<(u64, Option<Fragment>)> = stream::iter(writes).buffered(PARALLEL).try_collect().await?;
        for (id, fragment) in written {
            match fragment {
                Some(fragment) => changes.updated.push(fragment),
                None => {
                    removed.insert(id);
                }
            }
        }
        changes.removed = removed.into_iter().collect();
        Ok(changes)
    }

    /// A fragment with more rows deleted; `None` when none is left.
    async fn delete_rows(
        &self,
        base: &DatasetPin,
        meta: &FileMeta,
        fragment: &Fragment,
        rows: &RoaringBitmap,
    ) -> Result<(u64, Option<Fragment>)> {
        let mut deleted = rows.clone();
        if let Some(before) = self.deletion_vector(base, fragment.id).await? {
            deleted |= &*before;
        }
        if deleted.len() >= u64::from(meta.rows) {
            return Ok((fragment.id, None));
        }
        deleted.optimize();
        let path = self.dataset_path(base.table, base.role);
        let vector = DeletionVector::Bitmap(deleted.clone());
        let file = write_deletion_file(&path, fragment.id, base.version().0, &vector, &self.inner.lance).await?;
        if let Some(file) = &file {
            let path = deletion_file_path(&path, fragment.id, file);
            let weight = deleted.serialized_size() + 256;
            self.inner.deletions.insert(path, Arc::new(deleted), weight);
        }
        Ok((fragment.id, Some(Fragment { deletion_file: file, ..fragment.clone() })))
    }

    /// The newest version and its properties; `None` when the dataset does not exist.
    pub async fn latest(&self, table: TableId, role: Role) -> Result<Option<Latest>> {
        let Some(newest) = self.load(table, role, None).await? else { return Ok(None) };
        let version = DatasetVersion(newest.manifest().version);
        let mut found = properties(&newest).await?;
        let mut before = version.0;
        while is_schema_only(&found) {
            before -= 1;
            let dataset = self.load(table, role, Some(DatasetVersion(before))).await?;
            let dataset =
                dataset.ok_or_else(|| Error::Missing(format!("version {before} of {role} of table {table}")))?;
            found = properties(&dataset).await?;
        }
        Ok(Some(Latest { version, properties: found }))
    }

    /// Makes the content of an older version the newest one again, undoing commits that were never published. `expected` is
    /// the newest version; `version` 0 stands for a dataset without files. Returns the version that now has the content.
    pub async fn restore(
        &self,
        table: TableId,
        role: Role,
        expected: DatasetVersion,
        version: DatasetVersion,
    ) -> Result<DatasetVersion> {
        let lock = self.writer(table, role);
        let _writing = lock.lock().await;
        let base = self.pin(table, role, expected).await?;
        let operation = if version == DatasetVersion(0) {
            Operation::Update {
                removed_fragment_ids: base.fragments().iter().map(|fragment| fragment.id).collect(),
                updated_fragments: Vec::new(),
                new_fragments: Vec::new(),
                fields_modified: Vec::new(),
                compacted_sstables: Vec::new(),
                fields_for_preserving_frag_bitmap: base
                    .dataset
                    .schema()
                    .fields_pre_order()
                    .map(|field| field.id as u32)
                    .collect(),
                update_mode: Some(UpdateMode::RewriteRows),
                inserted_rows_filter: None,
                updated_fragment_offsets: None,
            }
        } else {
            Operation::Restore { version: version.0 }
        };
        let pin = self.publish(table, role, Some(&base), expected, operation, HashMap::new()).await?;
        Ok(pin.version())
    }

    /// The files of a version, for adopting a commit that was never published: files among `known` keep their
    /// description (with the fragment and deletion count of this version), others are described by their sidecar. The
    /// sidecar of a file that was written before its transaction had a timestamp does not know it: such files must be
    /// among `known`.
    pub async fn files_at(
        &self,
        table: TableId,
        role: Role,
        version: DatasetVersion,
        known: &[FileMeta],
    ) -> Result<Committed> {
        let pin = self.pin(table, role, version).await?;
        let known = known.iter().map(|meta| (meta.path.as_str(), meta)).collect();
        self.describe(&pin, &known).await
    }

    /// Whether a manifest ends as one does: where its message begins, two version numbers and a magic. True when there is
    /// no such object, which others report.
    async fn has_manifest_footer(&self, path: &Path) -> Result<bool> {
        const FOOTER: u64 = 16;
        let options = GetOptions { range: Some(GetRange::Suffix(FOOTER)), ..GetOptions::default() };
        let found = match self.inner.objects.get_opts(path, options).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let size = found.meta.size;
        let footer = found.bytes().await?;
        let start = footer.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        Ok(size > FOOTER
            && footer.ends_with(lance_file::format::MAGIC)
            && start.is_some_and(|start| start < size - FOOTER))
    }

    async fn describe(&self, pin: &DatasetPin, known: &HashMap<&str, &FileMeta>) -> Result<Committed> {
        let mut files = Vec::with_capacity(pin.fragments().len());
        for fragment in pin.fragments() {
            let path =
                path_of(fragment).ok_or_else(|| Error::corrupt(format!("{pin:?}"), "a fragment without a file"))?;
            let mut meta = match known.get(path) {
                Some(meta) => (*meta).clone(),
                None => self.stats_of(pin.table, pin.role, path).await?.meta().clone(),
            };
            let deleted = match pin.deletions.get(&fragment.id) {
                None => 0,
                Some(DeletionFile { num_deleted_rows: Some(rows), .. }) => *rows as u32,
                Some(_) => self.deletion_vector(pin, fragment.id).await?.map_or(0, |rows| rows.len() as u32),
            };
            let fragment = u32::try_from(fragment.id)
                .map_err(|_| Error::corrupt(format!("{pin:?}"), "fragment numbers are used up"))?;
            meta.state = FileState::Committed { fragment, deleted };
            files.push(meta);
        }
        Ok(Committed { version: pin.version(), files })
    }

    /// Opens a version. Cached, so that pinning the published version again costs nothing.
    pub async fn pin(&self, table: TableId, role: Role, version: DatasetVersion) -> Result<Arc<DatasetPin>> {
        if let Some(pin) = self.inner.pins.get(&(table, role, version)) {
            return Ok(pin);
        }
        let dataset = self.load(table, role, Some(version)).await?;
        let dataset = dataset.ok_or_else(|| Error::Missing(format!("version {version} of {role} of table {table}")))?;
        let pin = Arc::new(DatasetPin::new(table, role, dataset));
        self.inner.pins.insert((table, role, version), pin.clone(), 1);
        Ok(pin)
    }

    /// The rows of a committed file that the pinned version hides; `None` when there are none.
    pub async fn deleted_rows(&self, pin: &DatasetPin, meta: &FileMeta) -> Result<Option<Arc<RoaringBitmap>>> {
        match meta.state {
            FileState::Staged => Ok(None),
            FileState::Committed { fragment, .. } => self.deletion_vector(pin, fragment.into()).await,
        }
    }

    pub(crate) async fn deletion_vector(&self, pin: &DatasetPin, fragment: u64) -> Result<Option<Arc<RoaringBitmap>>> {
        let Some(file) = pin.deletions.get(&fragment) else { return Ok(None) };
        let folder = self.dataset_path(pin.table, pin.role);
        let path = deletion_file_path(&folder, fragment, file);
        if let Some(rows) = self.inner.deletions.get(&path) {
            return Ok(Some(rows));
        }
        let read =
            AssertUnwindSafe(read_deletion_file(fragment, file, &folder, &self.inner.lance)).catch_unwind().await;
        let rows: RoaringBitmap = match read.map_err(|_| Error::corrupt(path.as_ref(), "it cannot be read"))?? {
            DeletionVector::NoDeletions => RoaringBitmap::new(),
            DeletionVector::Set(rows) => rows.into_iter().collect(),
            DeletionVector::Bitmap(rows) => rows,
        };
        let rows = Arc::new(rows);
        self.inner.deletions.insert(path, rows.clone(), rows.serialized_size() + 256);
        Ok(Some(rows))
    }

    /// Opens a version, or the newest one; `None` when there is none.
    pub(crate) async fn load(
        &self,
        table: TableId,
        role: Role,
        version: Option<DatasetVersion>,
    ) -> Result<Option<Dataset>> {
        let mut builder = DatasetBuilder::from_uri(self.dataset_uri(table, role))
            .with_session(self.inner.session.clone())
            .with_commit_handler(Arc::new(ConditionalPutCommitHandler));
        let mut named = self.dataset_path(table, role).to_string();
        if let Some(version) = version {
            builder = builder.with_version(version.0);
            let path = ManifestNamingScheme::V2.manifest_path(&self.dataset_path(table, role), version.0);
            if !self.has_manifest_footer(&path).await? {
                return Err(Error::corrupt(path.as_ref(), "not a manifest, or cut short"));
            }
            named = path.to_string();
        }
        // Lance trusts what it reads: damaged numbers can make it panic.
        let loaded = AssertUnwindSafe(Box::pin(builder.load())).catch_unwind().await;
        match loaded.map_err(|_| Error::corrupt(named, "it cannot be read"))? {
            Ok(dataset) => Ok(Some(dataset)),
            Err(
                lance_core::Error::DatasetNotFound { .. }
                | lance_core::Error::NotFound { .. }
                | lance_core::Error::VersionNotFound { .. },
            ) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[derive(Default)]
struct Changes {
    updated: Vec<Fragment>,
    removed: Vec<u64>,
}

fn path_of(fragment: &Fragment) -> Option<&str> {
    fragment.files.first().map(|file| file.path.as_str())
}

fn by_path(fragments: &[Fragment]) -> HashMap<&str, &Fragment> {
    fragments.iter().filter_map(|fragment| Some((path_of(fragment)?, fragment))).collect()
}

/// What a version's transaction says.
pub(crate) async fn properties_of(pin: &DatasetPin) -> Result<BTreeMap<String, String>> {
    properties(&pin.dataset).await
}

async fn properties(dataset: &Dataset) -> Result<BTreeMap<String, String>> {
    let transaction = dataset.read_transaction().await?;
    let properties = transaction.and_then(|transaction| transaction.transaction_properties);
    Ok(properties.map_or_else(BTreeMap::new, |properties| {
        properties.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }))
}

fn is_schema_only(properties: &BTreeMap<String, String>) -> bool {
    properties.contains_key(SCHEMA_ONLY)
}

/// What every dataset has from the start, so that it can be created without a file.
fn first_schema(role: Role) -> Result<LanceSchema> {
    use arrow::datatypes::{DataType, Field, Schema};
    let mut fields =
        vec![Field::new(TX_FROM_COLUMN, DataType::Int64, true), Field::new(OP_COLUMN, DataType::UInt8, true)];
    if role == Role::History {
        fields.push(Field::new(TX_TO_COLUMN, DataType::Int64, true));
    }
    Ok(LanceSchema::try_from(&Schema::new(fields))?)
}

/// A schema with the fields that files have and it lacks, and whether there are any.
fn merged_schema(schema: &LanceSchema, files: &[LanceSchema], max_field_id: i32) -> Result<(LanceSchema, bool)> {
    let mut merged = schema.clone();
    let mut names: HashSet<String> = merged.fields.iter().map(|field| field.name.clone()).collect();
    let mut fields: Vec<&LanceField> = files.iter().flat_map(|file| &file.fields).collect();
    // Whatever the order of files, a new dataset has its columns in the table's order.
    fields.sort_by_key(|field| column_of(&field.name));
    for field in fields {
        if names.insert(field.name.clone()) {
            let mut field = field.clone();
            forget_ids(&mut field);
            merged.fields.push(field);
        } else if let Some(known) = merged.fields.iter().find(|known| known.name == field.name)
            && known.logical_type != field.logical_type
        {
            let message = format!(
                "field {} is {} in a file and {} in its dataset",
                field.name, field.logical_type, known.logical_type
            );
            return Err(Error::InvalidInput(message));
        }
    }
    let grown = merged.fields.len() > schema.fields.len();
    merged.set_field_id((max_field_id >= 0).then_some(max_field_id));
    Ok((merged, grown))
}

fn forget_ids(field: &mut LanceField) {
    field.id = -1;
    field.parent_id = -1;
    field.children.iter_mut().for_each(forget_ids);
}

/// A fragment of one staged file, whose fields are named by the dataset's field ids.
fn new_fragment(meta: &FileMeta, file: &LanceSchema, dataset: &LanceSchema) -> Result<Fragment> {
    let version = FORMAT.resolve();
    let mut fields = Vec::with_capacity(file.fields.len());
    for field in &file.fields {
        let known = dataset.fields.iter().find(|known| known.name == field.name);
        fields.push(
            known.cloned().ok_or_else(|| Error::InvalidInput(format!("field {} is not in the dataset", field.name)))?,
        );
    }
    let named = LanceSchema { fields, metadata: Default::default() };
    let (ids, columns) = data_file_columns(version, &named);
    let data = DataFile::new(meta.path.clone(), ids, columns, version, NonZero::new(meta.bytes), None);
    let mut fragment = Fragment::new(0);
    fragment.files = vec![data];
    fragment.physical_rows = Some(meta.rows as usize);
    Ok(fragment)
}

#[cfg(test)]
impl ColumnStore {
    /// Gets as far as a commit that stops after the schema.
    pub(crate) async fn extend_schema_for_test(&self, base: Arc<DatasetPin>, files: &[LanceSchema]) -> DatasetVersion {
        self.extend_schema(base, files).await.expect("the schema grows").version()
    }
}
