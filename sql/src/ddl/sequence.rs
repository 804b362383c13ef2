//! Sequences. Their position lives outside transactions; RESTART and setval begin a new generation of the counter.

use std::ops::ControlFlow;
use std::sync::Arc;

use base::SqlState;
use sqlparser::ast;
use storage::{BeginOptions, TransactionHeader};

use super::{new_id, schema, writer};
use crate::catalog::{CatalogWriter, Object, ObjectId, Relation, Sequence, SqlType, TableEntry};
use crate::engine::EngineInner;
use crate::parse::statement as st;
use crate::plan::{Scope, fold};
use crate::session::SessionInner;
use crate::{Error, Result};

/// The range of an integer type.
fn range(sql_type: &str) -> Result<(i64, i64)> {
    Ok(match sql_type {
        "smallint" => (i64::from(i16::MIN), i64::from(i16::MAX)),
        "integer" => (i64::from(i32::MIN), i64::from(i32::MAX)),
        "bigint" => (i64::MIN, i64::MAX),
        _ => {
            return Err(Error::state(
                SqlState::INVALID_PARAMETER_VALUE,
                "sequence type must be smallint, integer, or bigint",
            ));
        }
    })
}

/// A sequence from its options.
pub(super) fn define(
    id: ObjectId,
    schema: ObjectId,
    name: &str,
    sql_type: &str,
    options: &st::SequenceOptions,
) -> Result<Sequence> {
    let (least, greatest) = range(sql_type)?;
    let increment = options.increment.unwrap_or(1);
    if increment == 0 {
        return Err(Error::invalid("INCREMENT must not be zero"));
    }
    let min = options.min.flatten().unwrap_or(if increment > 0 { 1 } else { least });
    let max = options.max.flatten().unwrap_or(if increment > 0 { greatest } else { -1 });
    let start = options.start.unwrap_or(if increment > 0 { min } else { max });
    check(name, min, max, start)?;
    Ok(Sequence {
        id,
        schema,
        name: name.to_owned(),
        sql_type: sql_type.to_owned(),
        start,
        increment,
        min,
        max,
        cycle: options.cycle.unwrap_or(false),
        generation: 0,
        base: start,
        owned_by: None,
        internal: false,
        comment: None,
    })
}

fn check(name: &str, min: i64, max: i64, value: i64) -> Result<()> {
    if min > max {
        return Err(Error::invalid(format!("MINVALUE ({min}) must be less than MAXVALUE ({max})")));
    }
    if value < min || value > max {
        return Err(Error::state(
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            format!("value {value} is out of bounds for sequence \"{name}\" ({min}..{max})"),
        ));
    }
    Ok(())
}

/// A free name for the sequence of a column.
pub(super) fn name_for(writer: &CatalogWriter<'_>, schema: ObjectId, table: &str, column: &str) -> String {
    let base = format!("{table}_{column}_seq");
    if writer.catalog().relation(schema, &base).is_none() {
        return base;
    }
    (1..)
        .map(|number| format!("{base}{number}"))
        .find(|name| writer.catalog().relation(schema, name).is_none())
        .unwrap_or(base)
}

fn owner(scope: &Scope, name: &ast::ObjectName) -> Result<(ObjectId, u32)> {
    let mut parts = name.0.clone();
    let column = parts.pop().and_then(|part| part.as_ident().map(fold)).unwrap_or_default();
    let table = scope.table(&ast::ObjectName(parts))?;
    let at = table.def.position(&column).ok_or_else(|| crate::error::undefined_column(&column, std::iter::empty()))?;
    Ok((table.def.id, table.def.columns[at].id))
}

pub(super) async fn create(scope: &Scope, create: &st::CreateSequence) -> Result<()> {
    let txn = scope.writing()?;
    let mut writer = writer(scope, txn);
    let (schema, name) = scope.split_name(&create.name)?;
    let schema = schema::for_new(scope, &mut writer, schema.as_deref(), create.temporary).await?;
    if create.if_not_exists && writer.catalog().relation(schema, &name).is_some() {
        return Ok(());
    }
    let sql_type = match &create.data_type {
        Some(data_type) => SqlType::from_ast(data_type)?.name().to_owned(),
        None => "bigint".to_owned(),
    };
    let mut sequence = define(new_id(scope).await?, schema, &name, &sql_type, &create.options)?;
    sequence.owned_by = create.owned_by.as_ref().map(|name| owner(scope, name)).transpose()?;
    writer.create(Object::Sequence(sequence)).await?;
    txn.set_catalog(writer.catalog().clone());
    Ok(())
}

pub(super) async fn alter(scope: &Scope, alter: &st::AlterSequence) -> Result<()> {
    let txn = scope.writing()?;
    let sequence = match scope.relation(&alter.name) {
        Ok(Relation::Sequence(sequence)) => sequence.clone(),
        Ok(other) => {
            return Err(Error::state(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" is not a sequence", other.name())));
        }
        Err(_) if alter.if_exists => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut new = changed(scope, &sequence, &alter.options, alter.restart).await?;
    if let Some(owned_by) = &alter.owned_by {
        new.owned_by = owned_by.as_ref().map(|name| owner(scope, name)).transpose()?;
    }
    let mut writer = writer(scope, txn);
    writer.replace(Object::Sequence(new)).await?;
    txn.set_catalog(writer.catalog().clone());
    Ok(())
}

/// The columns whose defaults call `nextval` with the name of a sequence.
pub(super) fn defaults(scope: &Scope, sequence: &Sequence) -> Result<Vec<(Arc<TableEntry>, usize)>> {
    let mut found = Vec::new();
    for table in scope.catalog.tables() {
        for (at, column) in table.def.columns.iter().enumerate() {
            if let Some(text) = &column.default
                && !column.dropped
                && text.to_lowercase().contains("nextval")
                && counts_by(scope, &crate::plan::parse_expr(text)?, sequence)
            {
                found.push((table.clone(), at));
            }
        }
    }
    Ok(found)
}

/// Whether an expression has the name of a sequence in a text, as `nextval` takes it.
fn counts_by(scope: &Scope, expr: &ast::Expr, sequence: &Sequence) -> bool {
    ast::visit_expressions(expr, |expr| {
        let ast::Expr::Value(value) = expr else { return ControlFlow::Continue(()) };
        let ast::Value::SingleQuotedString(text) = &value.value else { return ControlFlow::Continue(()) };
        let names: Vec<String> = match crate::plan::parse_expr(text) {
            Ok(ast::Expr::Identifier(name)) => vec![fold(&name)],
            Ok(ast::Expr::CompoundIdentifier(names)) => names.iter().map(fold).collect(),
            _ => return ControlFlow::Continue(()),
        };
        let found = match names.as_slice() {
            [.., schema, name] => scope.lookup(Some(schema), name),
            [name] => scope.lookup(None, name),
            [] => None,
        };
        match found {
            Some(Relation::Sequence(named)) if named.id == sequence.id => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    })
    .is_break()
}

/// Takes these columns' defaults away.
pub(super) async fn drop_defaults(scope: &Scope, columns: Vec<(Arc<TableEntry>, usize)>) -> Result<Scope> {
    let txn = scope.writing()?;
    let mut scope = scope.clone();
    for (table, at) in columns {
        let (newer, table) = super::take_definition(&scope, &table).await?;
        let mut def = table.def.clone();
        def.columns[at].default = None;
        let mut writer = writer(&newer, txn);
        writer.replace(Object::Table(def)).await?;
        let catalog = writer.catalog().clone();
        txn.set_catalog(catalog.clone());
        scope = newer.with_catalog(catalog);
    }
    Ok(scope)
}

/// A sequence with other options.
pub(super) async fn changed(
    scope: &Scope,
    sequence: &Sequence,
    options: &st::SequenceOptions,
    restart: Option<Option<i64>>,
) -> Result<Sequence> {
    let engine = scope.engine();
    let mut new = sequence.clone();
    let (least, greatest) = range(&new.sql_type)?;
    if let Some(increment) = options.increment {
        new.increment = increment;
    }
    if let Some(min) = options.min {
        new.min = min.unwrap_or(if new.increment > 0 { 1 } else { least });
    }
    if let Some(max) = options.max {
        new.max = max.unwrap_or(if new.increment > 0 { greatest } else { -1 });
    }
    if let Some(start) = options.start {
        new.start = start;
    }
    if let Some(cycle) = options.cycle {
        new.cycle = cycle;
    }
    let counting = options.increment.is_some() || options.min.is_some() || options.max.is_some();
    if counting && restart.is_none() {
        // The counter's meaning changes: go on from the next value under the old meaning.
        let next = engine.sequences.next(&engine.store, sequence, 1).await?;
        new.base = next.first().copied().unwrap_or(new.start);
    }
    if let Some(restart) = restart {
        new.base = restart.unwrap_or(new.start);
    }
    if counting || restart.is_some() {
        new.generation = generation(engine, sequence).await?;
    }
    check(&new.name, new.min, new.max, new.base)?;
    Ok(new)
}

/// The number of a new generation. Each is used once, also when the transaction that begins it rolls back: its counter may have
/// been used by then.
async fn generation(engine: &EngineInner, sequence: &Sequence) -> Result<u32> {
    let counter = format!("sequence.{}.generation", sequence.id);
    let mut next = engine.store.allocate(&counter, 1).await.map_err(Error::classified)?;
    let before = u64::from(sequence.generation);
    if next <= before {
        // Generations of a sequence that was made before they had a counter.
        let more = before + 1 - next;
        next = engine.store.allocate(&counter, more).await.map_err(Error::classified)? + more - 1;
    }
    u32::try_from(next).map_err(|_| {
        Error::state(SqlState::PROGRAM_LIMIT, format!("sequence \"{}\" was restarted too often", sequence.name))
    })
}

/// Begins a new generation inside the statement's transaction.
pub(crate) async fn restart(scope: &Scope, sequence: &Sequence, value: i64) -> Result<()> {
    let txn = scope.writing()?;
    let mut writer = writer(scope, txn);
    let generation = generation(scope.engine(), sequence).await?;
    let new = Sequence { base: value, generation, ..sequence.clone() };
    writer.replace(Object::Sequence(new)).await?;
    txn.set_catalog(writer.catalog().clone());
    Ok(())
}

/// How often `setval` is tried: it loses only against others that move the same sequence.
const TRIES: usize = 64;

/// `setval`, in a transaction of its own as PostgreSQL does it. Of several at once, each has its turn.
pub(crate) fn set_blocking(session: &SessionInner, sequence: &Sequence, value: i64, called: bool) -> Result<()> {
    check(&sequence.name, sequence.min, sequence.max, value)?;
    crate::sequences::block_on(async {
        let mut tries = 0;
        loop {
            tries += 1;
            match set(session, sequence, value, called).await {
                Err(error) if error.sqlstate == SqlState::SERIALIZATION_FAILURE && tries < TRIES => {}
                result => return result,
            }
        }
    })
}

/// Polled to its end by [`set_blocking`]: a commit of definitions that is dropped would leave the cache of definitions behind.
async fn set(session: &SessionInner, sequence: &Sequence, value: i64, called: bool) -> Result<()> {
    let engine = &session.engine;
    let header = TransactionHeader { principal: session.principal.name().to_owned(), ..TransactionHeader::default() };
    let transaction =
        engine.store.begin(BeginOptions { header, ..BeginOptions::default() }).await.map_err(Error::classified)?;
    let catalog = engine.catalog.at(&engine.store, transaction.snapshot_ts()).await?;
    let Some(Relation::Sequence(current)) = catalog.relation_by_id(sequence.id) else {
        return Err(Error::state(SqlState::UNDEFINED_TABLE, format!("relation \"{}\" does not exist", sequence.name)));
    };
    let mut new = current.as_ref().clone();
    new.generation = generation(engine, &current).await?;
    new.base = if called { value.saturating_add(new.increment) } else { value };
    let mut writer = CatalogWriter::new(&transaction, catalog.clone());
    writer.replace(Object::Sequence(new)).await?;
    engine.catalog.commit(&transaction).await?;
    Ok(())
}
