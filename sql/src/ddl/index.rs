//! Indexes: hidden tables, filled from the rows that are there.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use base::SqlState;
use futures::StreamExt;
use storage::ScanSpec;

use super::{new_id, take_definition, writer};
use crate::catalog::{CatalogWriter, Index, IndexEntry, Object, TableEntry};
use crate::dml::index_entries;
use crate::parse::statement as st;
use crate::plan::{Scope, fold};
use crate::transaction::Txn;
use crate::{Error, Result};

pub(super) async fn create(scope: &Scope, create: &st::CreateIndex) -> Result<()> {
    if let Some(method) = create.method.as_deref().filter(|method| *method != "btree") {
        return Err(Error::unsupported(format!("access method \"{method}\"")));
    }
    if !create.include.is_empty() {
        return Err(Error::unsupported("INCLUDE"));
    }
    if create.predicate.is_some() {
        return Err(Error::unsupported("a partial index"));
    }
    if !create.options.is_empty() {
        return Err(Error::unsupported("an index with options"));
    }
    let txn = scope.writing()?.clone();
    let table = scope.table(&create.table)?;
    let mut columns = Vec::with_capacity(create.columns.len());
    for column in &create.columns {
        let sqlparser::ast::Expr::Identifier(name) = &column.expr else {
            return Err(Error::unsupported("an index on an expression"));
        };
        let name = fold(name);
        let at = table.def.position(&name).ok_or_else(|| {
            crate::error::undefined_column(&name, table.def.live().map(|(_, column)| column.name.as_str()))
        })?;
        columns.push(table.def.columns[at].id);
    }
    let (scope, table) = take_definition(scope, &table).await?;
    let mut writer = writer(&scope, &txn);
    let name = match &create.name {
        Some(name) => scope.split_name(name)?.1,
        None => free_name(&writer, &table, &columns, "idx"),
    };
    if create.if_not_exists && writer.catalog().relation(table.def.schema, &name).is_some() {
        return Ok(());
    }
    let index = Index {
        id: new_id(&scope).await?,
        schema: table.def.schema,
        name,
        table: table.def.id,
        columns,
        unique: create.unique,
        constraint: false,
        nulls_distinct: create.nulls_distinct,
        comment: None,
    };
    add(&mut writer, &txn, &table, index).await?;
    txn.set_catalog(writer.catalog().clone());
    Ok(())
}

/// `{table}_{columns}_{suffix}`, with a number if it is taken.
pub(super) fn free_name(writer: &CatalogWriter<'_>, table: &TableEntry, columns: &[u32], suffix: &str) -> String {
    let names: Vec<&str> = columns.iter().map(|&id| table.def.column_name(id)).collect();
    let base = format!("{}_{}_{suffix}", table.def.name, names.join("_"));
    let taken = |name: &str| writer.catalog().relation(table.def.schema, name).is_some();
    if !taken(&base) {
        return base;
    }
    (1..).map(|number| format!("{base}{number}")).find(|name| !taken(name)).unwrap_or(base)
}

/// Adds an index to the catalog and fills it.
pub(super) async fn add(
    writer: &mut CatalogWriter<'_>,
    txn: &Txn,
    table: &Arc<TableEntry>,
    index: Index,
) -> Result<()> {
    let entry = IndexEntry::new(index.clone(), table)?;
    codec::KeyCodec::new(&entry.stored).map_err(|error| {
        Error::state(SqlState::FEATURE_NOT_SUPPORTED, format!("index \"{}\" cannot be made: {error}", index.name))
    })?;
    writer.create(Object::Index(index)).await?;
    txn.storage.define(entry.stored.clone()).map_err(Error::classified)?;
    fill(txn, table, &entry).await
}

async fn fill(txn: &Txn, table: &TableEntry, index: &IndexEntry) -> Result<()> {
    let view = txn.storage.view(&table.stored).map_err(Error::classified)?;
    let mut positions: Vec<usize> = index.positions.iter().chain(&index.key).copied().collect();
    positions.sort_unstable();
    positions.dedup();
    let spec = ScanSpec { batch_rows: 65_536, ..ScanSpec::new(positions.clone()) };
    let many = view.row_count().rows > 50_000;
    let mut bulk = if many { Some(txn.storage.bulk(&index.stored).map_err(Error::classified)?) } else { None };
    for partition in view.partitions(1) {
        let mut stream = view.scan(&partition, &spec);
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(Error::classified)?;
            let columns: Vec<ArrayRef> = (0..table.def.columns.len())
                .map(|at| match positions.iter().position(|&position| position == at) {
                    Some(place) => batch.column(place).clone(),
                    None => arrow::array::new_null_array(table.types[at].data_type(), batch.num_rows()),
                })
                .collect();
            let entries = index_entries(table, index, &columns)?;
            match &mut bulk {
                Some(bulk) => bulk.write(entries).await,
                None => txn.storage.insert(&index.stored, &entries).await,
            }
            .map_err(|error| duplicated(table, index, Some(&columns), error))?;
        }
    }
    if let Some(bulk) = bulk {
        bulk.finish().await.map_err(|error| duplicated(table, index, None, error))?;
    }
    Ok(())
}

fn duplicated(table: &TableEntry, index: &IndexEntry, columns: Option<&[ArrayRef]>, error: storage::Error) -> Error {
    match error {
        storage::Error::DuplicateKey { row, key, .. } => {
            let names: Vec<&str> = index.positions.iter().map(|&at| table.def.columns[at].name.as_str()).collect();
            let shown = match (columns, key) {
                (Some(columns), _) if columns.first().is_some_and(|array| row < array.len()) => crate::dml::show_key(
                    &names,
                    &index.positions.iter().map(|&at| &columns[at]).collect::<Vec<_>>(),
                    row,
                ),
                (_, Some(key)) => {
                    crate::dml::show_key(&names, &key.columns().iter().take(names.len()).collect::<Vec<_>>(), 0)
                }
                _ => format!("({})", names.join(", ")),
            };
            Error::new(base::ErrorKind::AlreadyExists, format!("could not create unique index \"{}\"", index.def.name))
                .with_state(SqlState::UNIQUE_VIOLATION)
                .with_detail(format!("Key {shown} is duplicated."))
        }
        other => Error::classified(other),
    }
}
