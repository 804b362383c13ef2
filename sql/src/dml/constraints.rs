//! What a row must satisfy by itself, and the messages when it does not.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Float32Type, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base::SqlState;

use crate::catalog::{IndexEntry, TableEntry};
use crate::plan::{Binder, RowExpr, Scope};
use crate::{Error, Result};

/// CHECK constraints and generated columns of a table, compiled.
#[derive(Debug)]
pub(super) struct RowRules {
    checks: RowExpr,
    /// Storage positions of generated columns, in the order of `generated`.
    generated_at: Vec<usize>,
    generated: RowExpr,
    /// Storage positions of floats.
    floats: Vec<usize>,
    /// Storage positions of texts with a greatest length.
    lengths: Vec<(usize, usize)>,
    /// Bytes a row may have.
    row_bytes_max: usize,
}

fn is_longer(text: &str, length: usize) -> bool {
    text.len() > length && text.chars().count() > length
}

/// Texts without the spaces at their end that are beyond the greatest length, as the standard has it; `None` where there are none.
fn without_spaces_beyond(array: &ArrayRef, length: usize) -> Option<ArrayRef> {
    let texts = array.as_any().downcast_ref::<StringArray>()?;
    if !texts.iter().flatten().any(|text| is_longer(text, length)) {
        return None;
    }
    let fitting = texts.iter().map(|text| {
        text.map(|text| match text.char_indices().nth(length) {
            Some((end, _)) if text[end..].bytes().all(|byte| byte == b' ') => &text[..end],
            _ => text,
        })
    });
    Some(Arc::new(fitting.collect::<StringArray>()))
}

impl RowRules {
    pub(super) fn new(scope: &Scope, table: &TableEntry) -> Result<Self> {
        let binder = Binder::plain(scope);
        let relations = [(table.def.name.as_str(), table.arrow.as_ref())];
        let checks = table
            .def
            .checks
            .iter()
            .map(|check| Ok((crate::plan::parse_expr(&check.expression)?, None)))
            .collect::<Result<Vec<_>>>()?;
        let mut generated_at = Vec::new();
        let mut generated = Vec::new();
        let mut lengths = Vec::new();
        let mut floats = Vec::new();
        for &at in &table.visible {
            let column = &table.def.columns[at];
            if let Some(text) = &column.generated {
                generated_at.push(at);
                generated.push((crate::plan::parse_expr(text)?, Some(table.types[at].field_ref(&column.name))));
            }
            if let Some(length) = table.types[at].length() {
                lengths.push((at, length));
            }
            if table.types[at].data_type().is_floating() {
                floats.push(at);
            }
        }
        Ok(Self {
            checks: RowExpr::compile(&binder, &relations, checks)?,
            generated_at,
            generated: RowExpr::compile(&binder, &relations, generated)?,
            floats,
            lengths,
            row_bytes_max: scope.engine().options.row_bytes_max,
        })
    }

    /// Completes whole rows, given by storage position: computes generated columns, and brings values into the form they
    /// are kept in.
    pub(super) fn complete(&self, table: &TableEntry, columns: &mut [ArrayRef]) -> Result<()> {
        if !self.generated_at.is_empty() {
            let rows = visible_rows(table, columns)?;
            for (&at, array) in self.generated_at.iter().zip(self.generated.evaluate(&rows)?) {
                columns[at] = array;
            }
        }
        for &(at, length) in &self.lengths {
            if let Some(fitting) = without_spaces_beyond(&columns[at], length) {
                columns[at] = fitting;
            }
        }
        for &at in &self.floats {
            if let Some(plain) = one_zero(&columns[at]) {
                columns[at] = plain;
            }
        }
        Ok(())
    }

    /// Checks whole rows, given by storage position.
    pub(super) fn check(&self, table: &TableEntry, columns: &[ArrayRef]) -> Result<()> {
        super::size::check(table, columns, self.row_bytes_max)?;
        for &at in &table.visible {
            let column = &table.def.columns[at];
            if column.nullable || columns[at].null_count() == 0 {
                continue;
            }
            let row = (0..columns[at].len()).find(|&row| columns[at].is_null(row)).unwrap_or(0);
            return Err(Error::state(
                SqlState::NOT_NULL_VIOLATION,
                format!(
                    "null value in column \"{}\" of relation \"{}\" violates not-null constraint",
                    column.name, table.def.name
                ),
            )
            .with_detail(failing_row(table, columns, row)));
        }
        for &(at, length) in &self.lengths {
            let Some(texts) = columns[at].as_any().downcast_ref::<StringArray>() else { continue };
            let too_long = texts.iter().flatten().any(|text| is_longer(text, length));
            if too_long {
                return Err(Error::state(
                    SqlState::STRING_TOO_LONG,
                    format!("value too long for type {}", table.types[at].display()),
                ));
            }
        }
        if self.checks.len() > 0 {
            let rows = visible_rows(table, columns)?;
            for (at, check) in table.def.checks.iter().enumerate() {
                let holds = self.checks.condition(at, &rows)?;
                // NULL passes, as the standard says.
                if let Some(row) = (0..holds.len()).find(|&row| holds.is_valid(row) && !holds.value(row)) {
                    return Err(Error::state(
                        SqlState::CHECK_VIOLATION,
                        format!(
                            "new row for relation \"{}\" violates check constraint \"{}\"",
                            table.def.name, check.name
                        ),
                    )
                    .with_detail(failing_row(table, columns, row)));
                }
            }
        }
        Ok(())
    }
}

/// Floats with one zero, if there are two: -0.0 equals 0.0, but comparisons go by bits.
fn one_zero(array: &ArrayRef) -> Option<ArrayRef> {
    // Adding zero takes the sign off a zero and changes nothing else.
    if let Some(doubles) = array.as_primitive_opt::<Float64Type>() {
        let negative = (-0.0_f64).to_bits();
        let found = doubles.values().iter().fold(false, |found, value| found | (value.to_bits() == negative));
        return found.then(|| Arc::new(doubles.unary::<_, Float64Type>(|value| value + 0.0)) as ArrayRef);
    }
    let reals = array.as_primitive_opt::<Float32Type>()?;
    let negative = (-0.0_f32).to_bits();
    let found = reals.values().iter().fold(false, |found, value| found | (value.to_bits() == negative));
    found.then(|| Arc::new(reals.unary::<_, Float32Type>(|value| value + 0.0)) as ArrayRef)
}

/// The visible columns as a batch that takes NULL anywhere.
fn visible_rows(table: &TableEntry, columns: &[ArrayRef]) -> Result<RecordBatch> {
    let fields: Vec<_> = table.arrow.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    let schema = Arc::new(arrow::datatypes::Schema::new(fields));
    Ok(RecordBatch::try_new(schema, table.visible.iter().map(|&at| columns[at].clone()).collect())?)
}

fn failing_row(table: &TableEntry, columns: &[ArrayRef], row: usize) -> String {
    let values: Vec<String> = table.visible.iter().map(|&at| show(&columns[at], row)).collect();
    format!("Failing row contains ({}).", values.join(", "))
}

/// A value as messages show it.
pub(super) fn show(array: &ArrayRef, row: usize) -> String {
    if array.is_null(row) {
        return "null".to_owned();
    }
    if let Some(bytes) = array.as_any().downcast_ref::<arrow::array::FixedSizeBinaryArray>() {
        if let Ok(id) = uuid::Uuid::from_slice(bytes.value(row)) {
            return id.to_string();
        }
    }
    let options = FormatOptions::default().with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"));
    ArrayFormatter::try_new(array, &options)
        .map_or_else(|_| "?".to_owned(), |formatter| formatter.value(row).to_string())
}

/// `(a, b)=(1, 2)`.
pub(crate) fn show_key(names: &[&str], arrays: &[&ArrayRef], row: usize) -> String {
    let values: Vec<String> = arrays.iter().map(|array| show(array, row)).collect();
    format!("({})=({})", names.join(", "), values.join(", "))
}

/// The error for a primary key that exists.
pub(super) fn duplicate_key(table: &TableEntry, columns: &[ArrayRef], row: usize) -> Error {
    let name = table.def.primary_key.as_ref().map_or("", |key| key.name.as_str());
    let names: Vec<&str> = table.stored.key.iter().map(|&at| table.def.columns[at].name.as_str()).collect();
    let arrays: Vec<&ArrayRef> = table.stored.key.iter().map(|&at| &columns[at]).collect();
    violation(name, &show_key(&names, &arrays, row))
}

/// The error for a unique key that exists.
pub(super) fn duplicate_in_index(table: &TableEntry, index: &IndexEntry, columns: &[ArrayRef], row: usize) -> Error {
    let names: Vec<&str> = index.positions.iter().map(|&at| table.def.columns[at].name.as_str()).collect();
    let arrays: Vec<&ArrayRef> = index.positions.iter().map(|&at| &columns[at]).collect();
    violation(&index.def.name, &show_key(&names, &arrays, row))
}

pub(super) fn violation(constraint: &str, key: &str) -> Error {
    Error::new(
        base::ErrorKind::AlreadyExists,
        format!("duplicate key value violates unique constraint \"{constraint}\""),
    )
    .with_state(SqlState::UNIQUE_VIOLATION)
    .with_detail(format!("Key {key} already exists."))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float32Array, Float64Array};

    use super::*;

    #[test]
    fn zeros_lose_their_sign() {
        let doubles: ArrayRef =
            Arc::new(Float64Array::from(vec![Some(-0.0), None, Some(-1.5), Some(f64::NAN), Some(0.0)]));
        let plain = one_zero(&doubles).unwrap();
        let plain = plain.as_primitive::<Float64Type>();
        assert_eq!(plain.value(0).to_bits(), 0);
        assert!(plain.is_null(1) && plain.value(3).is_nan());
        assert_eq!((plain.value(2), plain.value(4).to_bits()), (-1.5, 0));
        let reals: ArrayRef = Arc::new(Float32Array::from(vec![1.0, -0.0]));
        assert_eq!(one_zero(&reals).unwrap().as_primitive::<Float32Type>().value(1).to_bits(), 0);
        // What is in order already is not copied.
        assert!(one_zero(&(Arc::new(Float64Array::from(vec![0.0, 2.0])) as ArrayRef)).is_none());
        assert!(one_zero(&(Arc::new(StringArray::from(vec!["-0"])) as ArrayRef)).is_none());
    }
}
