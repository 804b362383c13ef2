//! Removing what nobody reads any more.
//!
//! Lance's own clean-up is not used: it deletes what no manifest names, and we read files that none names yet, or none
//! names any more.

use std::collections::HashSet;

use base::{DatasetVersion, TableId};
use futures::{StreamExt, TryStreamExt, stream};
use lance_table::io::commit::ManifestNamingScheme;
use lance_table::io::deletion::deletion_file_path;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};

use crate::blocks::file_key;
use crate::{ColumnStore, DatasetPin, FileMeta, Result, Role};

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl ColumnStore {
    /// Removes the manifests of all versions before one, except of those to be kept. Their data stays until
    /// [`ColumnStore::sweep`]. The newest version is never removed. Checks the owner first.
    pub async fn drop_versions(
        &self,
        table: TableId,
        role: Role,
        before: DatasetVersion,
        keep: &HashSet<DatasetVersion>,
    ) -> Result<()> {
        self.check_owner().await?;
        let lock = self.writer(table, role);
        let _writing = lock.lock().await;
        let mut dropped = self.versions(table, role).await?;
        dropped.pop();
        dropped.retain(|version| *version < before.0 && !keep.contains(&DatasetVersion(*version)));
        let folder = self.dataset_path(table, role);
        let paths: Vec<Path> =
            dropped.iter().map(|version| ManifestNamingScheme::V2.manifest_path(&folder, *version)).collect();
        self.inner.pins.remove_if(|(t, r, version)| (*t, *r) == (table, role) && dropped.contains(&version.0));
        self.delete(paths).await
    }

    /// The newest version of a dataset by its number alone, which takes one listing; `None` when there is none.
    pub async fn newest_version(&self, table: TableId, role: Role) -> Result<Option<DatasetVersion>> {
        Ok(self.versions(table, role).await?.last().copied().map(DatasetVersion))
    }

    /// The versions that exist, ascending.
    async fn versions(&self, table: TableId, role: Role) -> Result<Vec<u64>> {
        let folder = self.dataset_path(table, role).join("_versions");
        let found: Vec<ObjectMeta> = self.inner.objects.list(Some(&folder)).try_collect().await?;
        let mut versions: Vec<u64> =
            found.iter().filter_map(|meta| ManifestNamingScheme::V2.parse_version(meta.location.filename()?)).collect();
        versions.sort_unstable();
        Ok(versions)
    }

    /// Removes data files and sidecars whose [`FileMeta::path`] is not in `keep`, and deletion vectors and transactions
    /// that no remaining version names. `keep` must hold the files of every version that is still read, and every staged
    /// file that the log knows. Files this process has written and neither committed nor discarded are spared. Checks
    /// the owner first.
    pub async fn sweep(&self, table: TableId, role: Role, keep: &HashSet<String>) -> Result<Swept> {
        self.check_owner().await?;
        let lock = self.writer(table, role);
        let _writing = lock.lock().await;
        let folder = self.dataset_path(table, role);
        let versions = self.versions(table, role).await?;
        let mut named: HashSet<Path> = HashSet::new();
        for &version in &versions {
            let pin: std::sync::Arc<DatasetPin> = self.pin(table, role, DatasetVersion(version)).await?;
            for fragment in pin.fragments() {
                named.extend(fragment.files.iter().map(|file| self.data_path(table, role, &file.path)));
                named.extend(fragment.deletion_file.iter().map(|file| deletion_file_path(&folder, fragment.id, file)));
            }
        }
        for name in keep {
            named.insert(self.data_path(table, role, name));
        }
        // Listed before `fresh` is read: a file that is begun in between is not in the listing.
        let found: Vec<ObjectMeta> = self.inner.objects.list(Some(&folder)).try_collect().await?;
        named.extend(self.inner.fresh.lock().iter().cloned());
        let oldest = versions.first().copied().unwrap_or(0);
        let mut swept = Swept::default();
        let mut paths = Vec::new();
        for meta in found {
            let Some(kind) = meta.location.prefix_match(&folder).and_then(|mut parts| parts.next()) else { continue };
            let name = meta.location.filename().unwrap_or_default();
            let wanted = match kind.as_ref() {
                "data" | "_deletions" => named.contains(&meta.location),
                "_stats" => {
                    name.strip_suffix(".stats").is_some_and(|name| named.contains(&self.data_path(table, role, name)))
                }
                // Named after the version read; the next one may still be there.
                "_transactions" => name
                    .split('-')
                    .next()
                    .and_then(|version| version.parse::<u64>().ok())
                    .is_none_or(|read| read + 1 >= oldest),
                _ => true,
            };
            if !wanted {
                swept.objects += 1;
                swept.bytes += meta.size;
                paths.push(meta.location);
            }
        }
        self.delete(paths).await?;
        Ok(swept)
    }

    /// Removes staged files at once, such as those of a transaction that was rolled back.
    pub async fn discard(&self, table: TableId, files: &[FileMeta]) -> Result<()> {
        let mut paths = Vec::with_capacity(2 * files.len());
        for meta in files {
            let data = self.data_path(table, meta.role, &meta.path);
            self.inner.fresh.lock().remove(&data);
            paths.push(data);
            paths.push(self.sidecar_path(table, meta.role, &meta.path));
        }
        self.delete(paths).await
    }

    /// Lets go of files that this process has written and will not commit: the next sweep may remove them. Unlike
    /// [`ColumnStore::discard`] this is safe when it is not known whether a commit of them has landed.
    pub fn release(&self, table: TableId, files: &[FileMeta]) {
        let mut fresh = self.inner.fresh.lock();
        for meta in files {
            fresh.remove(&self.data_path(table, meta.role, &meta.path));
        }
    }

    /// Removes everything a table has. Checks the owner first.
    pub async fn delete_table(&self, table: TableId) -> Result<()> {
        self.check_owner().await?;
        let locks = Role::ALL.map(|role| self.writer(table, role));
        let _writing = futures::future::join_all(locks.iter().map(|lock| lock.lock())).await;
        let folder = self.table_path(table);
        let found: Vec<ObjectMeta> = self.inner.objects.list(Some(&folder)).try_collect().await?;
        self.inner.pins.remove_if(|(other, _, _)| *other == table);
        self.inner.fresh.lock().retain(|path| !path.prefix_matches(&folder));
        self.delete(found.into_iter().map(|meta| meta.location).collect()).await
    }

    /// Removes what tables have that are not `known` and never got as far as a dataset version: files of transactions that
    /// created a table, filled it and did not commit. For a start, before anybody writes. Checks the owner first.
    pub async fn delete_unknown_tables(&self, known: &HashSet<TableId>) -> Result<Vec<TableId>> {
        let mut deleted = Vec::new();
        for folder in self.inner.objects.list_with_delimiter(None).await?.common_prefixes {
            let id = folder.filename().and_then(|name| name.strip_prefix('t')).and_then(|id| id.parse().ok());
            let Some(table) = id.map(TableId).filter(|table| !known.contains(table)) else { continue };
            let mut versions = 0;
            for role in Role::ALL {
                versions += self.versions(table, role).await?.len();
            }
            // A local folder stays when its last object goes.
            if versions == 0 && self.inner.objects.list(Some(&folder)).next().await.is_some() {
                self.delete_table(table).await?;
                deleted.push(table);
            }
        }
        Ok(deleted)
    }

    /// The tables that have something in the store.
    pub async fn tables(&self) -> Result<Vec<TableId>> {
        let mut tables = Vec::new();
        for folder in self.inner.objects.list_with_delimiter(None).await?.common_prefixes {
            let id = folder.filename().and_then(|name| name.strip_prefix('t')).and_then(|id| id.parse().ok());
            let Some(table) = id.map(TableId) else { continue };
            // A local folder stays when its last object goes.
            if self.inner.objects.list(Some(&folder)).next().await.is_some() {
                tables.push(table);
            }
        }
        tables.sort_unstable();
        Ok(tables)
    }

    /// Removes one data file and its sidecar as far as they exist; what cannot be removed is left to a sweep.
    pub(crate) async fn remove_file(&self, table: TableId, role: Role, name: &str) {
        let data = self.data_path(table, role, name);
        self.inner.fresh.lock().remove(&data);
        if let Err(error) = self.delete(vec![data, self.sidecar_path(table, role, name)]).await {
            tracing::debug!(%table, %role, name, %error, "a file of a failed write stays until it is swept");
        }
    }

    async fn delete(&self, paths: Vec<Path>) -> Result<()> {
        for path in &paths {
            self.inner.readers.remove(path);
            self.inner.stats.remove(path);
            self.inner.deletions.remove(path);
        }
        let gone: HashSet<&Path> = paths.iter().collect();
        self.inner.key_zones.remove_if(|(path, _)| gone.contains(path));
        let gone: HashSet<u128> = paths.iter().map(file_key).collect();
        self.inner.blocks.remove_if(|(file, _, _)| gone.contains(file));
        let mut deleted = self.inner.objects.delete_stream(stream::iter(paths.into_iter().map(Ok)).boxed());
        while let Some(result) = deleted.next().await {
            match result {
                // Somebody else was faster, or a write never got that far.
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
