//! The fast path of `INSERT … VALUES`: literals and parameters become columns without a plan.
//!
//! Anything that is not plainly a literal, and any literal that does not convert plainly, sends the statement the long way,
//! which also words the error.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, Int64Array, PrimitiveArray, StringArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Date32Type, Field, TimeUnit, TimestampMicrosecondType};
use datafusion::common::ScalarValue;
use sqlparser::ast;

use crate::Result;
use crate::catalog::typing::is_json;
use crate::catalog::{Relation, TableEntry};
use crate::functions::input;
use crate::parse::statement as st;
use crate::plan::{Binder, Scope};

/// A cell.
enum Cell<'a> {
    Null,
    Text(&'a str),
    Number(String),
    Flag(bool),
    Value(&'a ScalarValue),
    Default,
}

fn cell<'a>(expr: &'a ast::Expr, params: &'a [ScalarValue]) -> Option<Cell<'a>> {
    if crate::parse::is_default(expr) {
        return Some(Cell::Default);
    }
    match expr {
        ast::Expr::Nested(inner) => cell(inner, params),
        ast::Expr::Value(value) => match &value.value {
            ast::Value::Null => Some(Cell::Null),
            ast::Value::Boolean(flag) => Some(Cell::Flag(*flag)),
            ast::Value::Number(number, _) => Some(Cell::Number(number.clone())),
            ast::Value::SingleQuotedString(text) => Some(Cell::Text(text)),
            ast::Value::Placeholder(name) => {
                let at = name.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)?;
                let value = params.get(at)?;
                Some(if value.is_null() { Cell::Null } else { Cell::Value(value) })
            }
            _ => None,
        },
        ast::Expr::UnaryOp { op: ast::UnaryOperator::Minus, expr } => match cell(expr, params)? {
            Cell::Number(number) => Some(Cell::Number(format!("-{number}"))),
            _ => None,
        },
        _ => None,
    }
}

/// The visible columns of the rows to insert, or `None` to go the long way.
pub(super) async fn columns(
    scope: &Scope,
    insert: &st::Insert,
    table: &TableEntry,
    given: &impl Fn(&TableEntry, &st::Insert, Option<usize>) -> Result<Vec<usize>>,
) -> Result<Option<Vec<ArrayRef>>> {
    if scope.notes.is_watching() || insert.with.is_some() || insert.overriding.is_some() {
        return Ok(None);
    }
    let Some(rows) = super::insert::rows_of(&insert.source) else {
        return Ok(None);
    };
    let width = rows.first().map_or(0, |row| row.len());
    if rows.iter().any(|row| row.len() != width) {
        return Ok(None);
    }
    let Ok(places) = given(table, insert, Some(width)) else {
        return Ok(None);
    };
    let none = Vec::new();
    let params = scope.params.as_deref().unwrap_or(&none);
    let mut columns: Vec<Option<ArrayRef>> = vec![None; table.visible.len()];
    // Identities last: a value taken from a sequence is gone, whichever way the statement goes in the end.
    let mut order: Vec<usize> = (0..table.visible.len()).collect();
    order.sort_by_key(|&place| table.def.columns[table.visible[place]].identity.is_some());
    for place in order {
        let at = table.visible[place];
        let column = &table.def.columns[at];
        let data_type = table.types[at].data_type();
        if column.generated.is_some() {
            if places.contains(&place) {
                return Ok(None);
            }
            columns[place] = Some(arrow::array::new_null_array(data_type, rows.len()));
            continue;
        }
        let from = places.iter().position(|&given| given == place);
        let cells = match from {
            Some(from) => match rows.iter().map(|row| cell(&row[from], params)).collect::<Option<Vec<_>>>() {
                Some(cells) => cells,
                None => return Ok(None),
            },
            None => rows.iter().map(|_| Cell::Default).collect(),
        };
        let defaults = cells.iter().filter(|cell| matches!(cell, Cell::Default)).count();
        let array = if defaults == cells.len() {
            default_column(scope, table, at, rows.len()).await?
        } else if defaults == 0 && column.identity.as_ref().is_none_or(|identity| !identity.always) {
            convert(&cells, data_type, &table.types[at].field("v", true))
        } else {
            None
        };
        match array {
            Some(array) => columns[place] = Some(array),
            None => return Ok(None),
        }
    }
    Ok(columns.into_iter().collect())
}

/// A column of defaults, if it needs no plan: an identity, a constant or nothing.
async fn default_column(scope: &Scope, table: &TableEntry, at: usize, rows: usize) -> Result<Option<ArrayRef>> {
    let column = &table.def.columns[at];
    let data_type = table.types[at].data_type();
    if let Some(identity) = &column.identity {
        let Some(Relation::Sequence(sequence)) = scope.catalog.relation_by_id(identity.sequence) else {
            return Ok(None);
        };
        let values = scope.engine().sequences.next(&scope.engine().store, sequence, rows).await?;
        if let Some(&last) = values.last() {
            scope.session.note_sequence(sequence.id, last);
        }
        return Ok(plain_cast(&(Arc::new(Int64Array::from(values)) as ArrayRef), data_type));
    }
    let Some(text) = &column.default else {
        return Ok(Some(arrow::array::new_null_array(data_type, rows)));
    };
    let expr = crate::plan::parse_expr(text)?;
    // Only what is the same for every row: literals and the statement's time.
    let stable = match &expr {
        ast::Expr::Value(_) => true,
        ast::Expr::UnaryOp { expr, .. } => matches!(expr.as_ref(), ast::Expr::Value(_)),
        ast::Expr::Function(function) => {
            matches!(
                function.name.to_string().to_lowercase().as_str(),
                "now" | "current_timestamp" | "current_date" | "transaction_timestamp"
            )
        }
        _ => false,
    };
    if !stable {
        return Ok(None);
    }
    let value = Binder::plain(scope).constant(expr)?;
    let one = value.to_array_of_size(rows)?;
    Ok(match value {
        ScalarValue::Utf8(_) | ScalarValue::Utf8View(_) => {
            text_cast(&one, data_type, &table.types[at].field("v", true))
        }
        _ => plain_cast(&one, data_type),
    })
}

fn plain_cast(array: &ArrayRef, data_type: &DataType) -> Option<ArrayRef> {
    if array.data_type() == data_type {
        return Some(array.clone());
    }
    cast_with_options(array, data_type, &CastOptions { safe: false, ..CastOptions::default() }).ok()
}

/// Texts to a type that is read here as everywhere. What does not read goes the long way.
fn text_cast(array: &ArrayRef, data_type: &DataType, field: &Field) -> Option<ArrayRef> {
    let texts = plain_cast(array, &DataType::Utf8)?;
    let texts = texts.as_any().downcast_ref::<StringArray>()?;
    match data_type {
        // JSON is checked and brought into canonical form by its own functions.
        DataType::Utf8 if is_json(field) => None,
        DataType::Utf8 => Some(Arc::new(texts.clone())),
        DataType::FixedSizeBinary(16) => {
            let mut builder = arrow::array::FixedSizeBinaryBuilder::with_capacity(texts.len(), 16);
            for text in texts {
                match text {
                    Some(text) => builder.append_value(uuid::Uuid::parse_str(text.trim()).ok()?.as_bytes()).ok()?,
                    None => builder.append_null(),
                }
            }
            Some(Arc::new(builder.finish()))
        }
        DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Float32 | DataType::Float64 => {
            plain_cast(&(Arc::new(texts.clone()) as ArrayRef), data_type)
        }
        DataType::Date32 => Some(Arc::new(read::<Date32Type>(texts, input::date)?)),
        DataType::Timestamp(TimeUnit::Microsecond, None) => {
            Some(Arc::new(read::<TimestampMicrosecondType>(texts, input::timestamp)?))
        }
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
            let moments = read::<TimestampMicrosecondType>(texts, input::timestamptz)?;
            Some(Arc::new(moments.with_data_type(data_type.clone())))
        }
        DataType::Decimal128(_, scale) => {
            // Digits beyond the scale are rounded, exponents and words go the long way.
            let plain = texts.iter().flatten().all(|text| {
                let digits = text.trim_start_matches(['-', '+']);
                !digits.is_empty()
                    && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
                    && digits
                        .split_once('.')
                        .is_none_or(|(_, fraction)| fraction.len() <= usize::try_from(*scale).unwrap_or(0))
            });
            plain.then(|| plain_cast(&(Arc::new(texts.clone()) as ArrayRef), data_type)).flatten()
        }
        _ => None,
    }
}

/// Texts as PostgreSQL reads them.
fn read<T: ArrowPrimitiveType>(texts: &StringArray, read: fn(&str) -> Result<T::Native>) -> Option<PrimitiveArray<T>> {
    let values = texts.iter().map(|text| text.map(read).transpose()).collect::<Result<Vec<Option<T::Native>>>>();
    // The long way words the error.
    values.ok().map(PrimitiveArray::from_iter)
}

fn convert(cells: &[Cell<'_>], data_type: &DataType, field: &Field) -> Option<ArrayRef> {
    if cells.iter().all(|cell| matches!(cell, Cell::Null | Cell::Value(_))) {
        let values = cells
            .iter()
            .map(|cell| match cell {
                Cell::Value(value) if value.data_type() == *data_type => Some((*value).clone()),
                Cell::Value(_) => None,
                _ => ScalarValue::try_from(data_type).ok(),
            })
            .collect::<Option<Vec<_>>>()?;
        if is_json(field) {
            return None;
        }
        let array = ScalarValue::iter_to_array(values).ok()?;
        return (array.data_type() == data_type).then_some(array);
    }
    if *data_type == DataType::Boolean {
        let flags = cells
            .iter()
            .map(|cell| match cell {
                Cell::Null => Some(None),
                Cell::Flag(flag) => Some(Some(*flag)),
                _ => None,
            })
            .collect::<Option<Vec<Option<bool>>>>();
        return flags.map(|flags| Arc::new(arrow::array::BooleanArray::from(flags)) as ArrayRef);
    }
    let whole = matches!(data_type, DataType::Int16 | DataType::Int32 | DataType::Int64);
    let numeric = whole || matches!(data_type, DataType::Float32 | DataType::Float64 | DataType::Decimal128(_, _));
    let texts = cells
        .iter()
        .map(|cell| match cell {
            Cell::Null => Some(None),
            Cell::Number(number) if numeric => (!whole
                || number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'))
            .then(|| Some(number.clone())),
            Cell::Text(text) if !numeric => Some(Some((*text).to_owned())),
            _ => None,
        })
        .collect::<Option<Vec<Option<String>>>>()?;
    text_cast(&(Arc::new(StringArray::from(texts)) as ArrayRef), data_type, field)
}
