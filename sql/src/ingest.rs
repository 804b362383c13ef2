//! Bulk loading of Arrow batches, in the four modes of Flight SQL and ADBC, and of files for COPY.
//!
//! How each column of the table gets its values is decided once per load. A column that comes in its own type is passed through; JSON
//! is the exception, which is checked in any case. The others are converted as an assignment in SQL would convert them.
//!
//! # Invariants
//! - ING-1 a default that may differ by row is computed for every row. Test: `defaults_differ_by_row`.
//! - ING-2 what is stored as JSON is JSON. Test: `loaded_json_is_checked`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array};
use arrow::compute::{CastOptions, cast_with_options, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::FormatOptions;
use base::SqlState;
use datafusion::common::DFSchema;
use futures::StreamExt;

use crate::catalog::typing::is_json;
use crate::catalog::{Relation, Sequence, SqlType, TableEntry};
use crate::dml::{TableWriter, check_assignable};
use crate::door::{BatchStream, IfExists, IfMissing, IngestRequest};
use crate::plan::{Binder, RowExpr, Scope};
use crate::{Error, Result};

/// Loads a stream into a table.
pub(crate) async fn run(
    scope: &Scope,
    request: &IngestRequest,
    schema: &SchemaRef,
    batches: BatchStream,
) -> Result<u64> {
    let txn = scope.writing()?.clone();
    if let Some(catalog) =
        request.catalog.as_deref().filter(|catalog| !catalog.is_empty() && *catalog != crate::catalog::CATALOG_NAME)
    {
        return Err(Error::state(SqlState::INVALID_CATALOG_NAME, format!("database \"{catalog}\" does not exist")));
    }
    let schema_name = request.schema.as_deref().filter(|schema| !schema.is_empty());
    let own = format!("{}{}", crate::catalog::FIRST_SESSION_SCHEMA, scope.session.id);
    let schema_name = if request.temporary { Some(own.as_str()) } else { schema_name };
    let existing = match scope.lookup(schema_name, &request.table) {
        Some(Relation::Table(table)) => Some(table.clone()),
        Some(other) => {
            return Err(Error::state(
                SqlState::WRONG_OBJECT_TYPE,
                format!("\"{}\" is a {}", request.table, other.word()),
            ));
        }
        None => None,
    };
    let existing = match (existing, request.if_exists) {
        (Some(_), IfExists::Fail) => {
            return Err(Error::state(
                SqlState::DUPLICATE_TABLE,
                format!("relation \"{}\" already exists", request.table),
            ));
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
                .map(|field| {
                    Ok((field.name().clone(), SqlType::from_arrow(field)?.name().to_owned(), field.is_nullable()))
                })
                .collect::<Result<Vec<_>>>()?;
            let scope = scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
            crate::ddl::table::create_plain(&scope, schema_name, &request.table, request.temporary, columns, None)
                .await?
        }
    };
    let scope = scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
    load(&scope, &table, schema, batches).await
}

/// Which column of the stream feeds which column of the table, by name; the rest take their defaults.
fn mapping(table: &TableEntry, schema: &SchemaRef) -> Result<Vec<Option<usize>>> {
    let mut from = vec![None; table.visible.len()];
    for (at, field) in schema.fields().iter().enumerate() {
        let place =
            table.arrow.fields().iter().position(|known| known.name() == field.name()).or_else(|| {
                table.arrow.fields().iter().position(|known| known.name().eq_ignore_ascii_case(field.name()))
            });
        let Some(place) = place else {
            return Err(crate::error::undefined_column(
                field.name(),
                table.arrow.fields().iter().map(|field| field.name().as_str()),
            )
            .context(format!("relation \"{}\"", table.def.name)));
        };
        if from[place].replace(at).is_some() {
            return Err(Error::state(
                SqlState::DUPLICATE_COLUMN,
                format!("column \"{}\" specified more than once", field.name()),
            ));
        }
    }
    Ok(from)
}

/// Loads batches into an existing table.
pub(crate) async fn load(
    scope: &Scope,
    table: &Arc<TableEntry>,
    schema: &SchemaRef,
    mut batches: BatchStream,
) -> Result<u64> {
    let from = mapping(table, schema)?;
    let feeds = table
        .visible
        .iter()
        .zip(&from)
        .map(|(&at, source)| match source {
            Some(source) => Feed::given(scope, table, at, *source, schema.field(*source)),
            None => Feed::default(scope, table, at),
        })
        .collect::<Result<Vec<_>>>()?;
    let mut writer = TableWriter::new(scope, table, false).await?;
    let mut rows = 0;
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        let mut columns = Vec::with_capacity(feeds.len());
        for feed in &feeds {
            columns.push(feed.column(scope, &batch, rows).await?);
        }
        writer.insert(&columns).await?;
        rows += batch.num_rows() as u64;
    }
    writer.finish().await?;
    Ok(rows)
}

/// Where a column of the table gets its values.
enum Feed {
    /// A column of the stream, as it is.
    Same(usize),
    /// A column of the stream, read as the column's type.
    Read(usize, Reader),
    /// One value.
    Constant(ArrayRef),
    /// A default that may differ by row.
    Computed(RowExpr),
    /// An identity column's sequence, and the column's type.
    Sequence(Arc<Sequence>, DataType),
}

impl Feed {
    fn given(scope: &Scope, table: &TableEntry, at: usize, source: usize, field: &Field) -> Result<Self> {
        let wanted = table.types[at].field_ref(&table.def.columns[at].name);
        // JSON is looked at even when it says that it is JSON.
        if field.data_type() == wanted.data_type() && !is_json(&wanted) {
            return Ok(Feed::Same(source));
        }
        // Sixteen bytes without further notice can be an id as well as bytes.
        let bytes = matches!((field.data_type(), wanted.data_type()), (DataType::FixedSizeBinary(_), DataType::Binary));
        if !bytes {
            check_assignable(table, at, field.data_type())?;
        }
        Ok(Feed::Read(source, Reader::new(scope, field, &wanted, table.types[at].display())?))
    }

    fn default(scope: &Scope, table: &TableEntry, at: usize) -> Result<Self> {
        let column = &table.def.columns[at];
        let field = table.types[at].field_ref(&column.name);
        if let Some(identity) = &column.identity {
            if let Some(Relation::Sequence(sequence)) = scope.catalog.relation_by_id(identity.sequence) {
                return Ok(Feed::Sequence(sequence.clone(), field.data_type().clone()));
            }
        }
        let Some(text) = column.default.as_ref().filter(|_| column.generated.is_none()) else {
            return Ok(Feed::Constant(new_null_array(field.data_type(), 1)));
        };
        let binder = Binder::plain(scope);
        let expr = crate::plan::parse_expr(text)?;
        if crate::plan::is_volatile(&binder.expr(expr.clone(), &DFSchema::empty())?)? {
            return Ok(Feed::Computed(RowExpr::compile(&binder, &[], vec![(expr, Some(field))])?));
        }
        Ok(Feed::Constant(crate::plan::cast_to_array(scope, binder.constant(expr)?, &field)?))
    }

    /// The values for the rows of a batch, which `before` rows came before.
    async fn column(&self, scope: &Scope, batch: &RecordBatch, before: u64) -> Result<ArrayRef> {
        let rows = batch.num_rows();
        match self {
            Feed::Same(source) => Ok(batch.column(*source).clone()),
            Feed::Read(source, reader) => reader.read(batch.column(*source), before),
            Feed::Constant(value) => Ok(take(value, &UInt32Array::from(vec![0; rows]), None)?),
            Feed::Computed(expr) => {
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                let none = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?;
                expr.evaluate(&none)?.pop().ok_or_else(|| Error::internal("a default has no value"))
            }
            Feed::Sequence(sequence, data_type) => {
                let values = scope.engine().sequences.next(&scope.engine().store, sequence, rows).await?;
                let values: ArrayRef = Arc::new(Int64Array::from(values));
                Ok(cast_with_options(&values, data_type, &STRICT)?)
            }
        }
    }
}

/// Reads values as those of another type, as an assignment in SQL does: JSON is checked, numbers are rounded, texts are read in
/// PostgreSQL's forms.
struct Reader {
    expr: RowExpr,
    schema: SchemaRef,
    wanted: DataType,
    /// For messages.
    name: String,
    sql_type: String,
}

impl Reader {
    fn new(scope: &Scope, field: &Field, wanted: &Field, sql_type: String) -> Result<Self> {
        let plain = match field.data_type() {
            DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
            DataType::Dictionary(_, value) => value.as_ref().clone(),
            other => other.clone(),
        };
        let mut source = Field::new("given", plain, true);
        if !is_json(field) {
            source.set_metadata(field.metadata().clone());
        }
        let schema = Arc::new(Schema::new(vec![source]));
        let value = sqlparser::ast::Expr::Identifier(crate::plan::identifier("given"));
        let expr = RowExpr::compile(
            &Binder::plain(scope),
            &[("stream", &schema)],
            vec![(value, Some(Arc::new(wanted.clone())))],
        )?;
        Ok(Self { expr, schema, wanted: wanted.data_type().clone(), name: wanted.name().clone(), sql_type })
    }

    fn read(&self, array: &ArrayRef, before: u64) -> Result<ArrayRef> {
        self.convert(array).map_err(|error| {
            // Which row it was is looked for only now.
            let row = (0..array.len())
                .find_map(|row| self.convert(&array.slice(row, 1)).err().map(|error| (row as u64, error)));
            let (row, error) =
                row.map_or((String::new(), error), |(row, error)| (format!(", row {}", before + row + 1), error));
            error.context(format!(
                "column \"{}\" of type {}, given {}{row}",
                self.name,
                self.sql_type,
                array.data_type()
            ))
        })
    }

    fn convert(&self, array: &ArrayRef) -> Result<ArrayRef> {
        let array = cast_with_options(array, self.schema.field(0).data_type(), &STRICT)?;
        let rows = RecordBatch::try_new(self.schema.clone(), vec![array])?;
        let value = self.expr.evaluate(&rows)?.pop().ok_or_else(|| Error::internal("a conversion has no value"))?;
        Ok(cast_with_options(&value, &self.wanted, &STRICT)?)
    }
}

/// Values that do not fit are errors.
const STRICT: CastOptions<'static> = CastOptions { safe: false, format_options: FormatOptions::new() };
