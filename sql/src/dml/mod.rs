//! Changing rows.
//!
//! Every statement is planned as a SELECT: of the new rows (INSERT), or of keys, locators, old values and new values (UPDATE,
//! DELETE, MERGE). Its batches feed the [`TableWriter`], which checks constraints and writes rows, index entries and the
//! consequences of foreign keys into one transaction. DataFusion never writes.
//!
//! # Invariants
//! - DML-1 a row and its index entries change together. Test: `an_index_follows_its_table`.
//! - DML-2 a statement does not see its own writes: its SELECT reads a view pinned before the first write.
//! - DML-3 foreign keys hold whenever a statement has ended. Test: `foreign_keys_hold`.

mod conflict;
mod constraints;
pub(crate) mod delete;
mod foreign_keys;
pub(crate) mod insert;
mod literals;
pub(crate) mod merge;
mod returning;
mod size;
pub(crate) mod update;
mod writer;

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use base::{FileId, SqlState};
use sqlparser::ast;
use storage::Locator;

use crate::catalog::TableEntry;
use crate::door::BatchStream;
use crate::parse::statement as st;
use crate::plan::{Binder, Overrides, ReadyPlan, Scope, authorize, fold, identifier, table_factor};
use crate::session::Produced;
use crate::transaction::Txn;
use crate::{Error, Result};

pub(crate) use constraints::show_key;
pub(crate) use foreign_keys::spread;
use returning::Returning;
pub(crate) use writer::{TableWriter, index_entries};

/// What a writing statement did.
pub(crate) struct Written {
    pub(crate) tag: &'static str,
    pub(crate) rows: u64,
    /// For RETURNING.
    pub(crate) returned: Option<(SchemaRef, Vec<RecordBatch>)>,
}

impl Written {
    pub(crate) fn nothing(tag: &'static str) -> Self {
        Self { tag, rows: 0, returned: None }
    }

    /// Adds another execution of the same statement.
    pub(crate) fn add(&mut self, other: Written) {
        self.rows += other.rows;
        match (&mut self.returned, other.returned) {
            (Some((_, batches)), Some((_, more))) => batches.extend(more),
            (slot @ None, more) => *slot = more,
            (Some(_), None) => {}
        }
    }
}

/// The table a statement changes, and the name it goes by in the statement.
pub(super) struct Target {
    pub(super) table: Arc<TableEntry>,
    pub(super) name: ast::ObjectName,
    pub(super) alias: ast::Ident,
}

impl Target {
    pub(super) fn of_factor(scope: &Scope, factor: &ast::TableFactor) -> Result<Self> {
        match factor {
            ast::TableFactor::Table { name, alias, version: None, args: None, .. } => {
                Self::named(scope, name, alias.as_ref().map(|alias| alias.name.clone()))
            }
            ast::TableFactor::Table { version: Some(_), .. } => Err(Error::unsupported(
                crate::parse::TableModifiers::of(factor)?.beyond_as_of().unwrap_or("changing the past"),
            )),
            other => Err(Error::state(SqlState::WRONG_OBJECT_TYPE, format!("{other} cannot be changed"))),
        }
    }

    pub(super) fn named(scope: &Scope, name: &ast::ObjectName, alias: Option<ast::Ident>) -> Result<Self> {
        let table = scope.table(name)?;
        let alias = alias.map_or_else(|| identifier(&table.def.name), |alias| identifier(&fold(&alias)));
        Ok(Self { table, name: name.clone(), alias })
    }

    pub(super) fn factor(&self) -> ast::TableFactor {
        table_factor(self.name.clone(), Some(self.alias.clone()))
    }

    pub(super) fn from(&self) -> ast::TableWithJoins {
        ast::TableWithJoins { relation: self.factor(), joins: Vec::new() }
    }

    /// Select items for the stored columns at `positions`, then the locator.
    pub(super) fn row_items(&self, positions: &[usize]) -> Vec<ast::SelectItem> {
        let mut items: Vec<_> = positions
            .iter()
            .map(|&at| {
                crate::plan::internal_item(
                    crate::plan::qualified(&self.alias, &self.table.def.columns[at].name),
                    &format!("o{at}"),
                )
            })
            .collect();
        items.push(crate::plan::internal_item(crate::plan::qualified(&self.alias, "_file"), "f"));
        items.push(crate::plan::internal_item(crate::plan::qualified(&self.alias, "_offset"), "x"));
        items
    }

    /// Storage positions of every column that has values.
    pub(super) fn all_positions(&self) -> Vec<usize> {
        (0..self.table.def.columns.len()).filter(|&at| !self.table.def.columns[at].dropped).collect()
    }
}

/// Reads the locator columns that follow `at` others.
pub(super) fn locators(batch: &RecordBatch, at: usize) -> Result<Vec<Locator>> {
    let wrong = || Error::internal("a locator column has the wrong type");
    let files = batch.column(at).as_any().downcast_ref::<UInt64Array>().ok_or_else(wrong)?;
    let offsets = batch.column(at + 1).as_any().downcast_ref::<UInt32Array>().ok_or_else(wrong)?;
    Ok((0..batch.num_rows())
        .map(|row| Locator { file: FileId(files.value(row)), offset: offsets.value(row) })
        .collect())
}

/// Plans a query built by a statement, with system columns exposed.
pub(crate) async fn plan(
    scope: &Scope,
    mut query: ast::Query,
    overrides: Overrides,
) -> Result<datafusion::logical_expr::LogicalPlan> {
    let binder = Binder::for_query(scope, &mut query, overrides, true).await?;
    binder.query(query)
}

/// Runs a plan.
pub(super) async fn run_plan(scope: &Scope, plan: impl Into<ReadyPlan>) -> Result<BatchStream> {
    let (physical, stream) = authorize(plan, &scope.session.principal)?.stream(scope.state()).await?;
    scope.notes.ran(&physical);
    Ok(stream)
}

/// Runs a query built by a statement, with system columns exposed.
pub(crate) async fn run_query(scope: &Scope, query: ast::Query) -> Result<BatchStream> {
    let plan = plan(scope, query, Overrides::default()).await?;
    run_plan(scope, plan).await
}

/// Notes the type of a parameter that stands alone where a column's value is expected.
pub(super) fn hint(known: &mut [Option<FieldRef>], expr: &ast::Expr, field: &FieldRef) {
    let mut expr = expr;
    while let ast::Expr::Nested(inner) = expr {
        expr = inner;
    }
    if let ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Placeholder(name), .. }) = expr {
        let at = name.trim_start_matches('$').parse::<usize>().ok().and_then(|at| at.checked_sub(1));
        if let Some(slot) = at.and_then(|at| known.get_mut(at)) {
            slot.get_or_insert_with(|| field.clone());
        }
    }
}

/// A column's default as an expression: its DEFAULT, its sequence, or NULL.
pub(super) fn default_of(column: &crate::catalog::Column) -> Result<ast::Expr> {
    if let Some(identity) = &column.identity {
        return crate::plan::parse_expr(&format!("{}({})", crate::plan::NEXT_IDENTITY, identity.sequence));
    }
    match &column.default {
        Some(text) => crate::plan::parse_expr(text),
        None => crate::plan::parse_expr("NULL"),
    }
}

/// What makes a value one of a column's type, inside a syntax tree.
#[derive(Clone, Debug)]
pub(super) enum Conversion {
    /// `CAST(… AS type)`; a literal text is read by a function if there is one, in PostgreSQL's forms and with its errors.
    Cast(ast::DataType, Option<&'static str>),
    /// JSON is checked, and brought into form, by functions.
    Call(&'static str),
}

impl Conversion {
    pub(super) fn of(sql_type: &crate::catalog::SqlType) -> Result<Self> {
        let reader = match sql_type.name() {
            "json" => return Ok(Conversion::Call("json_in")),
            "jsonb" => return Ok(Conversion::Call("jsonb_in")),
            "date" => Some("date_in"),
            "time" => Some("time_in"),
            "timestamp" => Some("timestamp_in"),
            "timestamptz" => Some("timestamptz_in"),
            "interval" => Some("interval_in"),
            _ => None,
        };
        let dialect = sqlparser::dialect::PostgreSqlDialect {};
        let data_type =
            sqlparser::parser::Parser::new(&dialect).try_with_sql(sql_type.assigned_name())?.parse_data_type()?;
        Ok(Conversion::Cast(data_type, reader))
    }

    pub(super) fn apply(&self, expr: ast::Expr) -> Result<ast::Expr> {
        let text = matches!(&expr, ast::Expr::Value(value) if matches!(value.value, ast::Value::SingleQuotedString(_)));
        match self {
            Conversion::Call(name) | Conversion::Cast(_, Some(name)) if text => call(name, expr),
            Conversion::Call(name) => call(name, expr),
            Conversion::Cast(data_type, _) => Ok(ast::Expr::Cast {
                kind: ast::CastKind::Cast,
                array: false,
                expr: Box::new(expr),
                data_type: data_type.clone(),
                format: None,
            }),
        }
    }
}

fn call(name: &str, argument: ast::Expr) -> Result<ast::Expr> {
    let mut call = crate::plan::parse_expr(&format!("{name}(NULL)"))?;
    if let ast::Expr::Function(function) = &mut call {
        if let ast::FunctionArguments::List(list) = &mut function.args {
            list.args = vec![ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(argument))];
        }
    }
    Ok(call)
}

/// Fails when a value's type may not be assigned to a column without a cast, as PostgreSQL has it. Texts may: a literal has no
/// type of its own yet.
pub(crate) fn check_assignable(table: &TableEntry, at: usize, from: &DataType) -> Result<()> {
    #[derive(PartialEq)]
    enum Family {
        Any,
        Boolean,
        Number,
        Text,
        Day,
        Time,
        Interval,
        Bytes,
        Uuid,
        List,
        Json,
        Other,
    }
    fn family(data_type: &DataType) -> Family {
        match data_type {
            DataType::Null => Family::Any,
            DataType::Dictionary(_, value) => family(value),
            DataType::Boolean => Family::Boolean,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Family::Text,
            DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => Family::Day,
            DataType::Time32(_) | DataType::Time64(_) => Family::Time,
            DataType::Interval(_) | DataType::Duration(_) => Family::Interval,
            DataType::FixedSizeBinary(16) => Family::Uuid,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                Family::Bytes
            }
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) | DataType::ListView(_) => {
                Family::List
            }
            other if other.is_numeric() => Family::Number,
            _ => Family::Other,
        }
    }
    let wanted = if matches!(table.types[at].name(), "json" | "jsonb") {
        Family::Json
    } else {
        family(table.types[at].data_type())
    };
    let given = family(from);
    let fits = match (&given, &wanted) {
        (Family::Any | Family::Text | Family::Other, _) | (_, Family::Text) => true,
        // A time of day from a moment, an id from its bytes.
        (Family::Day, Family::Time) | (Family::Bytes, Family::Uuid) | (Family::Time, Family::Interval) => true,
        (given, wanted) => given == wanted,
    };
    if fits {
        return Ok(());
    }
    let name = crate::types::TypeSpec::from_arrow(from).map_or_else(|_| from.to_string(), |spec| spec.display());
    Err(Error::state(
        SqlState::DATATYPE_MISMATCH,
        format!(
            "column \"{}\" is of type {} but expression is of type {name}",
            table.def.columns[at].name,
            table.types[at].display()
        ),
    )
    .with_hint("You will need to rewrite or cast the expression."))
}

/// Finds a column to assign to.
pub(super) fn assignable(table: &TableEntry, name: &ast::Ident) -> Result<usize> {
    let name = fold(name);
    table.def.position(&name).ok_or_else(|| {
        let error = crate::error::undefined_column(&name, table.def.live().map(|(_, column)| column.name.as_str()));
        Error { message: format!("column \"{name}\" of relation \"{}\" does not exist", table.def.name), ..error }
    })
}

/// The columns that assignments set, checked: position and value, DEFAULT written out.
pub(super) fn assignments(table: &TableEntry, list: &[st::Assignment]) -> Result<Vec<(usize, ast::Expr)>> {
    let mut set: Vec<(usize, ast::Expr)> = Vec::with_capacity(list.len());
    for assignment in list {
        let at = assignable(table, &assignment.column)?;
        let column = &table.def.columns[at];
        if set.iter().any(|(known, _)| *known == at) {
            return Err(Error::syntax(format!("multiple assignments to same column \"{}\"", column.name)));
        }
        let is_default = crate::parse::is_default(&assignment.value);
        if !is_default
            && (column.generated.is_some() || column.identity.as_ref().is_some_and(|identity| identity.always))
        {
            return Err(Error::state(
                SqlState([b'4', b'2', b'8', b'C', b'9']),
                format!("column \"{}\" can only be updated to DEFAULT", column.name),
            ));
        }
        if column.generated.is_some() {
            continue;
        }
        let value = if is_default { default_of(column)? } else { assignment.value.clone() };
        set.push((at, value));
    }
    Ok(set)
}

/// `TRUNCATE`.
pub(crate) async fn truncate(scope: &Scope, truncate: &st::Truncate) -> Result<Produced> {
    let txn = scope.writing()?;
    let mut tables: Vec<Arc<TableEntry>> = Vec::new();
    for name in &truncate.tables {
        match scope.table(name) {
            Ok(table) => tables.push(table),
            Err(error) if truncate.if_exists && error.sqlstate == SqlState::UNDEFINED_TABLE => {}
            Err(error) => return Err(error),
        }
    }
    let mut at = 0;
    while at < tables.len() {
        let table = tables[at].clone();
        for (child, _) in &table.referenced_by {
            if tables.iter().any(|table| table.def.id == *child) {
                continue;
            }
            let child = scope.catalog.table_by_id(*child)?.clone();
            if !truncate.cascade {
                return Err(Error::unsupported("truncating a table referenced in a foreign key constraint")
                    .with_detail(format!("Table \"{}\" references \"{}\".", child.def.name, table.def.name))
                    .with_hint("truncate it at the same time, or use TRUNCATE … CASCADE"));
            }
            tables.push(child);
        }
        at += 1;
    }
    crate::ddl::seize_definitions(scope, &tables).await?;
    for table in &tables {
        truncate_table(txn, table).await?;
        if truncate.restart_identity {
            for sequence in scope.catalog.owned_sequences(table.def.id) {
                crate::ddl::sequence::restart(scope, &sequence, sequence.start).await?;
            }
        }
    }
    Ok(Produced::Tag("TRUNCATE TABLE".to_owned()))
}

/// Empties a table and its indexes.
pub(crate) async fn truncate_table(txn: &Txn, table: &TableEntry) -> Result<()> {
    txn.storage.truncate(&table.stored).await.map_err(Error::classified)?;
    for index in &table.indexes {
        txn.storage.truncate(&index.stored).await.map_err(Error::classified)?;
    }
    Ok(())
}
