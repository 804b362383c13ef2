//! Bulk loading of Arrow batches, in the four modes of Flight SQL and ADBC.

use arrow::array::{Array, ArrayRef, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{Field, SchemaRef};
use base::SqlState;
use futures::StreamExt;
use std::sync::Arc;

use crate::catalog::{Relation, SqlType, TableEntry};
use crate::dml::TableWriter;
use crate::door::{BatchStream, IfExists, IfMissing, IngestRequest};
use crate::plan::{Binder, Scope};
use crate::{Error, Result};

/// Loads a stream into a table.
pub(crate) async fn run(scope: &Scope, request: &IngestRequest, schema: &SchemaRef, batches: BatchStream) -> Result<u64> {
    let txn = scope.writing()?.clone();
    if let Some(catalog) = request.catalog.as_deref().filter(|catalog| !catalog.is_empty() && *catalog != crate::catalog::CATALOG_NAME) {
        return Err(Error::state(SqlState::INVALID_CATALOG_NAME, format!("database \"{catalog}\" does not exist")));
    }
    let schema_name = request.schema.as_deref().filter(|schema| !schema.is_empty());
    let own = format!("{}{}", crate::catalog::FIRST_SESSION_SCHEMA, scope.session.id);
    let schema_name = if request.temporary { Some(own.as_str()) } else { schema_name };
    let existing = match scope.lookup(schema_name, &request.table) {
        Some(Relation::Table(table)) => Some(table.clone()),
        Some(other) => return Err(Error::state(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" is a {}", request.table, other.word()))),
        None => None,
    };
    let existing = match (existing, request.if_exists) {
        (Some(_), IfExists::Fail) => {
            return Err(Error::state(SqlState::DUPLICATE_TABLE, format!("relation \"{}\" already exists", request.table)));
        }
        (Some(table), IfExists::Replace) => {
            crate::ddl::table::drop(scope, &table, false).await?;
            None
        }
        (existing, _) => existing,
    };
    let table = match existing {
        Some(table) => table,
        None if request.if_missing == IfMissing::Fail && request.if_exists != IfExists::Replace => {
            return Err(crate::error::undefined_table(&request.table, scope.catalog.relations().map(Relation::name)));
        }
        None => {
            let columns = schema
                .fields()
                .iter()
                .map(|field| Ok((field.name().clone(), SqlType::from_arrow(field)?.name().to_owned(), field.is_nullable())))
                .collect::<Result<Vec<_>>>()?;
            let scope = scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
            crate::ddl::table::create_plain(&scope, schema_name, &request.table, request.temporary, columns, None).await?
        }
    };
    let scope = scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
    load(&scope, &table, schema, batches).await
}

/// Which column of the stream feeds which column of the table, by name; the rest take their defaults.
fn mapping(table: &TableEntry, schema: &SchemaRef) -> Result<Vec<Option<usize>>> {
    let mut from = vec![None; table.visible.len()];
    for (at, field) in schema.fields().iter().enumerate() {
        let place = table
            .arrow
            .fields()
            .iter()
            .position(|known| known.name() == field.name())
            .or_else(|| table.arrow.fields().iter().position(|known| known.name().eq_ignore_ascii_case(field.name())));
        let Some(place) = place else {
            return Err(crate::error::undefined_column(field.name(), table.arrow.fields().iter().map(|field| field.name().as_str()))
                .context(format!("relation \"{}\"", table.def.name)));
        };
        if from[place].replace(at).is_some() {
            return Err(Error::state(SqlState::DUPLICATE_COLUMN, format!("column \"{}\" specified more than once", field.name())));
        }
    }
    Ok(from)
}

/// Loads batches into an existing table.
pub(crate) async fn load(scope: &Scope, table: &Arc<TableEntry>, schema: &SchemaRef, mut batches: BatchStream) -> Result<u64> {
    let from = mapping(table, schema)?;
    let mut writer = TableWriter::new(scope, table, false).await?;
    let mut rows = 0;
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        let mut columns = Vec::with_capacity(from.len());
        for (place, source) in from.iter().enumerate() {
            let at = table.visible[place];
            let field = table.arrow.field(place);
            columns.push(match source {
                Some(source) => convert(batch.column(*source), field)?,
                None => defaults(scope, table, at, batch.num_rows()).await?,
            });
        }
        writer.insert(&columns).await?;
        rows += batch.num_rows() as u64;
    }
    writer.finish().await?;
    Ok(rows)
}

fn convert(array: &ArrayRef, field: &Field) -> Result<ArrayRef> {
    let wanted = field.data_type();
    if array.data_type() == wanted {
        return Ok(array.clone());
    }
    if *wanted == arrow::datatypes::DataType::FixedSizeBinary(16) {
        let texts = cast_with_options(array, &arrow::datatypes::DataType::Utf8, &CastOptions { safe: false, ..Default::default() })?;
        let texts = texts.as_any().downcast_ref::<arrow::array::StringArray>().ok_or_else(|| Error::internal("texts are texts"))?;
        let mut ids = arrow::array::FixedSizeBinaryBuilder::with_capacity(texts.len(), 16);
        for text in texts {
            match text {
                Some(text) => {
                    let id = uuid::Uuid::parse_str(text.trim()).map_err(|_| {
                        Error::state(SqlState::INVALID_TEXT_REPRESENTATION, format!("invalid input syntax for type uuid: \"{text}\""))
                    })?;
                    ids.append_value(id.as_bytes())?;
                }
                None => ids.append_null(),
            }
        }
        return Ok(Arc::new(ids.finish()));
    }
    cast_with_options(array, wanted, &CastOptions { safe: false, ..Default::default() }).map_err(|error| {
        Error::from(error).context(format!("column \"{}\" of type {wanted}, given {}", field.name(), array.data_type()))
    })
}

async fn defaults(scope: &Scope, table: &TableEntry, at: usize, rows: usize) -> Result<ArrayRef> {
    let column = &table.def.columns[at];
    let wanted = table.types[at].data_type();
    if let Some(identity) = &column.identity {
        if let Some(Relation::Sequence(sequence)) = scope.catalog.relation_by_id(identity.sequence) {
            let values = scope.engine().sequences.next(&scope.engine().store, sequence, rows).await?;
            let values: ArrayRef = Arc::new(arrow::array::Int64Array::from(values));
            return Ok(cast_with_options(&values, wanted, &CastOptions { safe: false, ..Default::default() })?);
        }
    }
    match &column.default {
        Some(text) if column.generated.is_none() => {
            let binder = Binder::plain(scope);
            let field = table.types[at].field_ref(&column.name);
            let value = binder.constant(crate::plan::parse_expr(text)?)?;
            let value = crate::plan::cast_to_array(scope, value, &field)?;
            let indices = arrow::array::UInt32Array::from(vec![0; rows]);
            Ok(arrow::compute::take(&value, &indices, None)?)
        }
        _ => Ok(new_null_array(wanted, rows)),
    }
}
