//! The compiled-in part of the catalog: the system tables' schemas, and what a new store starts with.

use std::sync::Arc;

use arrow::datatypes::DataType;
use base::{ColumnId, SchemaVersion, TableId};
use codec::{StoredColumn, StoredSchema};
use storage::{BeginOptions, Store, TransactionHeader};

use super::objects::{Object, SchemaObject};
use super::{Catalog, CatalogCache, CatalogWriter};
use crate::{Error, Result};

/// The one catalog.
pub(crate) const CATALOG_NAME: &str = "lattice";
/// The default schema.
pub(crate) const PUBLIC: &str = "public";
/// Its id.
pub(crate) const PUBLIC_SCHEMA: u32 = 11;
/// Virtual schemas: their views are computed from the catalog.
pub(crate) const LATTICE_SCHEMA: &str = "lattice";
/// See [`LATTICE_SCHEMA`].
pub(crate) const INFORMATION_SCHEMA: &str = "information_schema";
/// See [`LATTICE_SCHEMA`].
pub(crate) const PG_CATALOG: &str = "pg_catalog";
/// The prefix of the schemas that hold temporary objects.
pub(crate) const FIRST_SESSION_SCHEMA: &str = "pg_temp_";

/// Whether a schema is computed.
pub(crate) fn is_virtual_schema(name: &str) -> bool {
    matches!(name, LATTICE_SCHEMA | INFORMATION_SCHEMA | PG_CATALOG)
}

fn system_table(table: u32, columns: &[(&str, DataType)], key: usize) -> Arc<StoredSchema> {
    let columns = columns
        .iter()
        .zip(1..)
        .map(|((name, data_type), id)| StoredColumn {
            id: ColumnId(id),
            name: (*name).to_owned(),
            data_type: data_type.clone(),
            nullable: false,
            dropped: false,
            missing: None,
        })
        .collect();
    Arc::new(StoredSchema::new(TableId(table), SchemaVersion(1), columns, (0..key).collect()))
}

/// `objects`: id → document.
pub(crate) fn objects_schema() -> Arc<StoredSchema> {
    system_table(
        1,
        &[
            ("id", DataType::Int64),
            ("kind", DataType::Utf8),
            ("schema", DataType::Int64),
            ("name", DataType::Utf8),
            ("definition", DataType::Utf8),
        ],
        1,
    )
}

/// `names`: (schema, name) → id.
pub(crate) fn names_schema() -> Arc<StoredSchema> {
    system_table(2, &[("schema", DataType::Int64), ("name", DataType::Utf8), ("object", DataType::Int64)], 2)
}

/// Makes the system tables and the schema `public` in a new store, and drops what sessions of an earlier run left behind.
pub(crate) async fn bootstrap(store: &Store, cache: &CatalogCache) -> Result<()> {
    let snapshot = store.snapshot();
    match snapshot.table(&objects_schema()) {
        Ok(view) if view.row_count().rows > 0 => drop_leftovers(store, cache).await,
        Ok(_) | Err(storage::Error::UnknownTable(_)) => create(store).await,
        Err(error) => Err(Error::classified(error)),
    }
}

async fn create(store: &Store) -> Result<()> {
    let transaction = begin(store).await?;
    transaction.define(objects_schema()).map_err(Error::classified)?;
    transaction.define(names_schema()).map_err(Error::classified)?;
    let mut writer = CatalogWriter::new(&transaction, Arc::new(Catalog::default()));
    let public = SchemaObject {
        id: PUBLIC_SCHEMA,
        name: PUBLIC.to_owned(),
        comment: None,
        session: None,
        owner: Some("admin".to_owned()),
    };
    writer.create(Object::Schema(public)).await?;
    transaction.commit().await.map_err(Error::classified)?;
    Ok(())
}

async fn drop_leftovers(store: &Store, cache: &CatalogCache) -> Result<()> {
    let catalog = cache.at(store, store.now()).await?;
    let leftovers: Vec<_> = catalog.schemas().filter(|schema| schema.session.is_some()).cloned().collect();
    if leftovers.is_empty() {
        return Ok(());
    }
    let transaction = begin(store).await?;
    let mut writer = CatalogWriter::new(&transaction, catalog);
    for schema in leftovers {
        writer.drop_schema(schema.id).await?;
    }
    cache.commit(&transaction).await?;
    Ok(())
}

async fn begin(store: &Store) -> Result<storage::Transaction> {
    let header = TransactionHeader { principal: "system".to_owned(), ..TransactionHeader::default() };
    store.begin(BeginOptions { header, ..BeginOptions::default() }).await.map_err(Error::classified)
}
