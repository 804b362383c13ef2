//! What a conjunction of filters tells before any row is read: zones to skip, keys to fetch, an index to ask.
//!
//! Everything here is advice. Filters are pushed as *inexact*, DataFusion tests every row again, so a conclusion that is too
//! weak costs time and never an answer. A conclusion that is too strong would lose rows: only `column op literal` of the
//! column's own type is used.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::DataType;
use base::RowKey;
use codec::{KeyCodec, StoredSchema};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use storage::{ZoneCondition, ZoneFilter, ZoneOp};

use crate::catalog::{IndexEntry, TableEntry};

/// More keys than this are scanned for, not looked up.
const KEYS_MAX: usize = 1024;

/// A test of one column with literals.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    /// Storage position.
    pub(crate) position: usize,
    pub(crate) op: ZoneOp,
    pub(crate) values: Vec<ArrayRef>,
}

/// Turns filters into tests, as far as they are simple. `position` maps a column name to its storage position and type.
pub(super) fn tests(filters: &[Expr], position: &impl Fn(&str) -> Option<(usize, DataType)>) -> Vec<Test> {
    filters.iter().flat_map(|filter| split(filter)).filter_map(|filter| test(filter, position)).collect()
}

fn split(filter: &Expr) -> Vec<&Expr> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            let mut all = split(left);
            all.extend(split(right));
            all
        }
        other => vec![other],
    }
}

/// Whether [`tests`] can use a filter.
pub(super) fn is_simple(filter: &Expr, position: &impl Fn(&str) -> Option<(usize, DataType)>) -> bool {
    split(filter).into_iter().any(|filter| test(filter, position).is_some())
}

fn test(filter: &Expr, position: &impl Fn(&str) -> Option<(usize, DataType)>) -> Option<Test> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (column, op, literal) = match (left.as_ref(), right.as_ref()) {
                (Expr::Column(column), Expr::Literal(literal, _)) => (column, *op, literal),
                (Expr::Literal(literal, _), Expr::Column(column)) => (column, op.swap()?, literal),
                _ => return None,
            };
            let (position, data_type) = position(&column.name)?;
            let op = match op {
                Operator::Eq => ZoneOp::Eq,
                Operator::Lt => ZoneOp::Lt,
                Operator::LtEq => ZoneOp::LtEq,
                Operator::Gt => ZoneOp::Gt,
                Operator::GtEq => ZoneOp::GtEq,
                _ => return None,
            };
            Some(Test { position, op, values: vec![exact_literal(literal, &data_type)?] })
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            let Expr::Column(column) = expr.as_ref() else {
                return None;
            };
            let (position, data_type) = position(&column.name)?;
            let values = list
                .iter()
                .map(|item| match item {
                    Expr::Literal(literal, _) => exact_literal(literal, &data_type),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()?;
            Some(Test { position, op: ZoneOp::In, values })
        }
        Expr::IsNull(inner) | Expr::IsNotNull(inner) => {
            let Expr::Column(column) = inner.as_ref() else {
                return None;
            };
            let (position, _) = position(&column.name)?;
            let op = if matches!(filter, Expr::IsNull(_)) { ZoneOp::IsNull } else { ZoneOp::IsNotNull };
            Some(Test { position, op, values: Vec::new() })
        }
        _ => None,
    }
}

/// A literal as a one-row array, if it is of the column's type and not NULL.
fn exact_literal(literal: &ScalarValue, data_type: &DataType) -> Option<ArrayRef> {
    if literal.is_null() {
        return None;
    }
    let same = match (literal.data_type(), data_type) {
        (DataType::Utf8View | DataType::LargeUtf8, DataType::Utf8)
        | (DataType::BinaryView | DataType::LargeBinary, DataType::Binary) => true,
        (DataType::Timestamp(a, Some(_)), DataType::Timestamp(b, Some(_))) => a == *b,
        (given, wanted) => given == *wanted,
    };
    same.then(|| one_row(literal, data_type)).flatten()
}

/// A value as a one-row array of a type.
pub(crate) fn one_row(literal: &ScalarValue, data_type: &DataType) -> Option<ArrayRef> {
    let array = literal.to_array_of_size(1).ok()?;
    if array.data_type() == data_type { Some(array) } else { arrow::compute::cast(&array, data_type).ok() }
}

/// The tests as a zone filter.
pub(super) fn zones(tests: &[Test]) -> Option<ZoneFilter> {
    let conditions: Vec<_> = tests
        .iter()
        .map(|test| ZoneCondition { column: test.position, op: test.op, values: test.values.clone() })
        .collect();
    (!conditions.is_empty()).then_some(ZoneFilter { conditions })
}

fn equalities(tests: &[Test]) -> BTreeMap<usize, &Test> {
    let mut found: BTreeMap<usize, &Test> = BTreeMap::new();
    for test in tests.iter().filter(|test| matches!(test.op, ZoneOp::Eq | ZoneOp::In)) {
        let better = found.get(&test.position).is_none_or(|known| test.values.len() < known.values.len());
        if better {
            found.insert(test.position, test);
        }
    }
    found
}

/// All combinations of the values of some columns, encoded as keys of `schema`.
fn combine(schema: &StoredSchema, columns: &[&Test]) -> Option<Vec<RowKey>> {
    let count: usize = columns.iter().try_fold(1_usize, |count, test| count.checked_mul(test.values.len()))?;
    if count == 0 || count > KEYS_MAX {
        return None;
    }
    let mut arrays: Vec<Vec<ArrayRef>> = vec![Vec::new(); columns.len()];
    for row in 0..count {
        let mut rest = row;
        for (array, test) in arrays.iter_mut().zip(columns) {
            array.push(test.values[rest % test.values.len()].clone());
            rest /= test.values.len();
        }
    }
    let arrays = arrays
        .iter()
        .map(|parts| {
            let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
            arrow::compute::concat(&parts).ok()
        })
        .collect::<Option<Vec<_>>>()?;
    let mut keys = KeyCodec::new(schema).ok()?.keys_of_columns(&arrays).ok()?;
    keys.sort();
    keys.dedup();
    Some(keys)
}

/// The primary keys that a row must have one of.
pub(super) fn primary_keys(table: &TableEntry, tests: &[Test]) -> Option<Vec<RowKey>> {
    let equal = equalities(tests);
    let columns = table.stored.key.iter().map(|at| equal.get(at).copied()).collect::<Option<Vec<_>>>()?;
    combine(&table.stored, &columns)
}

/// An index to ask, and the prefixes to ask it for.
pub(super) struct IndexChoice {
    pub(super) index: Arc<IndexEntry>,
    pub(super) prefixes: Vec<RowKey>,
    /// How many leading columns are fixed.
    pub(super) columns: usize,
}

/// The index with the most leading columns fixed.
pub(super) fn index(table: &TableEntry, tests: &[Test]) -> Option<IndexChoice> {
    let equal = equalities(tests);
    let mut best: Option<IndexChoice> = None;
    for index in &table.indexes {
        let columns: Vec<&Test> = index.positions.iter().map_while(|at| equal.get(at).copied()).collect();
        if columns.is_empty() || best.as_ref().is_some_and(|best| best.columns >= columns.len()) {
            continue;
        }
        let cut = StoredSchema::new(
            index.prefix.table,
            index.prefix.version,
            index.prefix.columns[..columns.len()].to_vec(),
            (0..columns.len()).collect(),
        );
        if let Some(prefixes) = combine(&cut, &columns) {
            best = Some(IndexChoice { index: index.clone(), prefixes, columns: columns.len() });
        }
    }
    best
}
