//! Changing definitions: catalog rows, storage definitions and the data they need, all in one transaction.
//!
//! A writer holds its table's definition lock shared until it commits; whoever changes the definition takes it exclusively
//! and then moves its snapshot forward, so that nobody writes rows an index does not know of.
//!
//! # Invariants
//! - DDL-1 definitions and the data they need commit or roll back together. Test: `definitions_roll_back`.
//! - DDL-2 no row is committed under a definition that has changed since the row was checked. Test:
//!   `an_index_knows_every_row`.

mod alter;
mod comment;
mod index;
pub(crate) mod schema;
pub(crate) mod sequence;
pub(crate) mod table;
mod view;

use std::sync::Arc;

use base::{ErrorKind, RowKey, SqlState, TableId};

use crate::catalog::{CatalogWriter, Relation, TableEntry};
use crate::parse::statement::{self as st, ObjectKind, StatementAst};
use crate::plan::Scope;
use crate::session::Produced;
use crate::transaction::Txn;
use crate::{Error, Result};

/// Runs a statement that changes definitions.
pub(crate) async fn run(scope: &Scope, statement: &StatementAst) -> Result<Produced> {
    scope.writing()?;
    match statement {
        StatementAst::CreateTable(create) => table::create(scope, create).await?,
        StatementAst::CreateTableAs(create) => return table::create_as(scope, create).await,
        StatementAst::AlterTable(alter) => alter::run(scope, alter).await?,
        StatementAst::CreateSchema(create) => schema::create(scope, create).await?,
        StatementAst::CreateView(create) => view::create(scope, create).await?,
        StatementAst::CreateIndex(create) => index::create(scope, create).await?,
        StatementAst::CreateSequence(create) => sequence::create(scope, create).await?,
        StatementAst::AlterSequence(alter) => sequence::alter(scope, alter).await?,
        StatementAst::Rename(rename) => alter::rename(scope, rename).await?,
        StatementAst::Drop(drop) => self::drop(scope, drop).await?,
        StatementAst::CommentOn(on) => comment::run(scope, on).await?,
        other => return Err(Error::unsupported(other.name())),
    }
    Ok(Produced::Tag(statement.name().to_owned()))
}

/// A catalog writer over the statement's transaction.
pub(crate) fn writer<'a>(scope: &Scope, txn: &'a Arc<Txn>) -> CatalogWriter<'a> {
    CatalogWriter::new(&txn.storage, txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()))
}

/// A new object id, never used before.
pub(crate) async fn new_id(scope: &Scope) -> Result<u32> {
    let number = scope.engine().store.allocate("objects", 1).await.map_err(Error::classified)?;
    u32::try_from(number + 999).map_err(|_| Error::internal("object ids are used up"))
}

fn definition_lock(id: u32) -> RowKey {
    RowKey(id.to_be_bytes().to_vec().into())
}

/// The lock table's name for definitions: the catalog's own table.
const DEFINITIONS: TableId = TableId(1);

/// Called by whoever writes rows of a table: keeps its definition as it is until the transaction ends.
pub(crate) async fn hold_definition(scope: &Scope, txn: &Txn, table: &TableEntry) -> Result<()> {
    txn.locks.lock(DEFINITIONS, &[definition_lock(table.def.id)], false, scope.session.lock_patience()).await?;
    unchanged(scope, txn, table).await
}

/// Called by whoever empties tables or refers to them: waits for their writers, and keeps new ones out until the transaction
/// ends, so that nobody's rows or checks rest on a state that is gone.
pub(crate) async fn seize_definitions(scope: &Scope, tables: &[Arc<TableEntry>]) -> Result<()> {
    let txn = scope.writing()?;
    let keys: Vec<RowKey> = tables.iter().map(|table| definition_lock(table.def.id)).collect();
    txn.locks.lock(DEFINITIONS, &keys, true, scope.session.lock_patience()).await?;
    for table in tables {
        unchanged(scope, txn, table).await?;
    }
    Ok(())
}

/// Fails when the newest definition of a table is not the one that the statement sees.
async fn unchanged(scope: &Scope, txn: &Txn, table: &TableEntry) -> Result<()> {
    if txn.own_catalog().is_some() {
        return Ok(());
    }
    let store = &scope.engine().store;
    let newest = scope.engine().catalog.at(store, store.now()).await?;
    if Arc::ptr_eq(&newest, &scope.catalog) {
        return Ok(());
    }
    let same = match newest.table_by_id(table.def.id) {
        Ok(now) => {
            now.def.version == table.def.version
                && now.indexes.len() == table.indexes.len()
                && now.indexes.iter().zip(&table.indexes).all(|(now, then)| now.def.id == then.def.id)
                && now.referenced_by == table.referenced_by
        }
        Err(_) => false,
    };
    if same {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!("could not serialize access: the definition of \"{}\" has changed", table.def.name),
    ))
}

/// Called by whoever changes the definition of an existing table: waits for its writers, then sees everything they wrote.
pub(crate) async fn take_definition(scope: &Scope, table: &Arc<TableEntry>) -> Result<(Scope, Arc<TableEntry>)> {
    let txn = scope.writing()?;
    txn.locks.lock(DEFINITIONS, &[definition_lock(table.def.id)], true, scope.session.lock_patience()).await?;
    if txn.own_catalog().is_some() || txn.storage.has_writes() {
        // The snapshot cannot move any more. An index filled from it, or a constraint checked against it, would miss the rows
        // that others have committed since; changed definitions are found by the conflict check of the catalog's rows.
        let info = scope.engine().store.table_info(table.stored.table);
        if info.is_some_and(|info| info.newest > txn.storage.snapshot_ts()) {
            let text = format!(
                "could not serialize access: rows of \"{}\" have changed since the transaction began",
                table.def.name
            );
            return Err(Error::new(ErrorKind::Conflict, text)
                .with_hint("run it again, or change the definition before the transaction writes"));
        }
        return Ok((scope.clone(), table.clone()));
    }
    txn.storage.refresh_snapshot().map_err(Error::classified)?;
    let store = &scope.engine().store;
    let catalog = scope.engine().catalog.at(store, txn.storage.snapshot_ts()).await?;
    let table = catalog
        .table_by_id(table.def.id)
        .map_err(|_| crate::error::undefined_table(&table.def.name, std::iter::empty::<&str>()))?
        .clone();
    Ok((scope.with_catalog(catalog), table))
}

/// The error for something that others still need.
pub(crate) fn needed(what: &str, by: &[String]) -> Error {
    Error::state(SqlState::DEPENDENT_OBJECTS, format!("cannot drop {what} because other objects depend on it"))
        .with_detail(by.join("\n"))
        .with_hint("Use DROP ... CASCADE to drop the dependent objects too.")
}

/// The error of a name that nothing has, in the words of what was to be dropped.
fn named(error: Error, kind: ObjectKind, name: &sqlparser::ast::ObjectName) -> Error {
    let shown = name.0.iter().filter_map(|part| part.as_ident().map(crate::plan::fold)).collect::<Vec<_>>().join(".");
    let message = format!("{} \"{shown}\" does not exist", kind.word());
    match kind {
        ObjectKind::Index => Error::state(SqlState::UNDEFINED_OBJECT, message),
        ObjectKind::View | ObjectKind::Sequence => Error::state(SqlState::UNDEFINED_TABLE, message),
        _ => error,
    }
}

async fn drop(scope: &Scope, drop: &st::Drop) -> Result<()> {
    let txn = scope.writing()?.clone();
    if drop.kind == ObjectKind::Schema {
        return schema::drop(scope, drop).await;
    }
    for name in &drop.names {
        let scope = scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
        let relation = match scope.relation(name) {
            Ok(relation) => relation.clone(),
            Err(error)
                if drop.if_exists
                    && matches!(error.sqlstate, SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME) =>
            {
                continue;
            }
            Err(error) if error.sqlstate == SqlState::UNDEFINED_TABLE => return Err(named(error, drop.kind, name)),
            Err(error) => return Err(error),
        };
        let right = matches!(
            (&relation, drop.kind),
            (Relation::Table(_), ObjectKind::Table)
                | (Relation::View(_), ObjectKind::View)
                | (Relation::Index(_), ObjectKind::Index)
                | (Relation::Sequence(_), ObjectKind::Sequence)
        );
        if !right {
            return Err(Error::state(
                SqlState::WRONG_OBJECT_TYPE,
                format!("\"{}\" is not a {}", relation.name(), drop.kind.word()),
            )
            .with_hint(format!(
                "Use DROP {} to remove a {}.",
                relation.word().to_uppercase(),
                relation.word()
            )));
        }
        match relation {
            Relation::Table(table) => table::drop(&scope, &table, drop.cascade).await?,
            Relation::View(view) => {
                let mut writer = writer(&scope, &txn);
                view::drop(&mut writer, view.id, &format!("view {}", view.name), drop.cascade).await?;
                txn.set_catalog(writer.catalog().clone());
            }
            Relation::Index(index) => {
                if index.def.constraint {
                    return Err(needed(
                        &format!("index {}", index.def.name),
                        &[format!("constraint {} requires index {}", index.def.name, index.def.name)],
                    )
                    .with_hint("drop the constraint with ALTER TABLE … DROP CONSTRAINT"));
                }
                let owner = scope.catalog.table_by_id(index.def.table)?.clone();
                let (scope, _) = take_definition(&scope, &owner).await?;
                let mut writer = writer(&scope, &txn);
                writer.drop_index(index.def.id).await?;
                txn.set_catalog(writer.catalog().clone());
            }
            Relation::Sequence(sequence) => {
                let users: Vec<String> = scope
                    .catalog
                    .tables()
                    .flat_map(|table| {
                        table.def.live().filter_map(|(_, column)| {
                            let identity =
                                column.identity.as_ref().is_some_and(|identity| identity.sequence == sequence.id);
                            identity.then(|| {
                                format!(
                                    "default value for column {} of table {} depends on sequence {}",
                                    column.name, table.def.name, sequence.name
                                )
                            })
                        })
                    })
                    .collect();
                let counting = sequence::defaults(&scope, &sequence)?;
                if !users.is_empty() || (!counting.is_empty() && !drop.cascade) {
                    let defaults = counting.iter().map(|(table, at)| {
                        let column = &table.def.columns[*at].name;
                        format!(
                            "default value for column {column} of table {} depends on sequence {}",
                            table.def.name, sequence.name
                        )
                    });
                    let users: Vec<String> = users.into_iter().chain(defaults).collect();
                    return Err(needed(&format!("sequence {}", sequence.name), &users));
                }
                let scope = sequence::drop_defaults(&scope, counting).await?;
                let mut writer = writer(&scope, &txn);
                writer.remove(sequence.id).await?;
                txn.set_catalog(writer.catalog().clone());
            }
        }
    }
    Ok(())
}
