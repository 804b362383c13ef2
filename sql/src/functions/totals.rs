//! Totals without overflow, for `sum` and `avg`: 128 bits inside, an error where a total or a result does not fit.
//!
//! # Invariants
//! - TOT-1 a total that does not fit is an error, never another number. Test: `tests/slt/suite/types/decimals.slt`.

use std::collections::HashSet;
use std::mem::size_of;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Int64Array, UInt64Array};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type, UInt64Type};
use base::SqlState;
use datafusion::common::ScalarValue;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};

use super::math::{divided, power_of_ten};
use crate::error::{Error, Result};

/// What becomes of a total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The sum of integers, a `bigint`.
    Whole,
    /// The sum of decimals, of this precision and scale.
    Sum { precision: u8, scale: i8 },
    /// The mean of decimals of the scale `from`, of this precision and scale.
    Mean { from: i8, precision: u8, scale: i8 },
}

fn out_of_range(what: &str) -> Error {
    Error::state(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, what.to_owned())
}

fn too_large() -> Error {
    out_of_range("numeric out of range: a total has more than 38 digits")
}

impl Finish {
    /// The type of the total between the phases of an aggregation.
    fn total_type(self) -> DataType {
        match self {
            Finish::Whole => DataType::Decimal128(38, 0),
            Finish::Sum { precision, scale } => DataType::Decimal128(precision, scale),
            Finish::Mean { from, .. } => DataType::Decimal128(38, from),
        }
    }

    fn total_scale(self) -> (u8, i8) {
        match self.total_type() {
            DataType::Decimal128(precision, scale) => (precision, scale),
            _ => (38, 0),
        }
    }

    fn counts(self) -> bool {
        matches!(self, Finish::Mean { .. })
    }

    /// What goes between the phases of an aggregation.
    pub(crate) fn state_fields(self, name: &str) -> Vec<FieldRef> {
        let total = Arc::new(Field::new(format!("{name}[sum]"), self.total_type(), true));
        if self.counts() {
            vec![Arc::new(Field::new(format!("{name}[count]"), DataType::UInt64, true)), total]
        } else {
            vec![total]
        }
    }

    /// The same where every value counts once.
    pub(crate) fn distinct_state_fields(self, name: &str) -> Vec<FieldRef> {
        vec![Arc::new(Field::new_list(
            format!("{name}[distinct]"),
            Field::new_list_field(self.total_type(), true),
            false,
        ))]
    }

    /// The result for a total of so many values.
    fn result(self, total: i128, values: u64) -> Result<Option<i128>> {
        if values == 0 {
            return Ok(None);
        }
        Ok(Some(match self {
            Finish::Whole if i64::try_from(total).is_err() => return Err(out_of_range("bigint out of range in sum")),
            Finish::Whole => total,
            Finish::Sum { precision, .. } if total.unsigned_abs() >= power_of_ten(precision).unsigned_abs() => {
                return Err(too_large());
            }
            Finish::Sum { .. } => total,
            Finish::Mean { from, precision, scale } => {
                divided(total, i128::from(values), i32::from(scale) - i32::from(from), precision)?
            }
        }))
    }

    fn results(self, totals: Vec<i128>, values: Vec<u64>) -> DataFusionResult<ArrayRef> {
        let results = totals.into_iter().zip(values).map(|(total, values)| self.result(total, values));
        Ok(match self {
            Finish::Whole => {
                // `result` has found that they fit.
                let whole = results.map(|total| Ok(total?.and_then(|total| i64::try_from(total).ok())));
                Arc::new(whole.collect::<Result<Int64Array>>()?)
            }
            Finish::Sum { precision, scale } | Finish::Mean { precision, scale, .. } => {
                Arc::new(results.collect::<Result<Decimal128Array>>()?.with_precision_and_scale(precision, scale)?)
            }
        })
    }

    fn result_scalar(self, total: i128, values: u64) -> DataFusionResult<ScalarValue> {
        ScalarValue::try_from_array(&self.results(vec![total], vec![values])?, 0)
    }
}

/// The values that are there, widened.
fn widened(array: &ArrayRef, mut each: impl FnMut(i128)) {
    match array.data_type() {
        DataType::Int64 => array.as_primitive::<Int64Type>().iter().flatten().for_each(|value| each(value.into())),
        _ => array.as_primitive::<Decimal128Type>().iter().flatten().for_each(each),
    }
}

/// One total. It can be taken back from, for windows that slide.
#[derive(Debug)]
pub(crate) struct Total {
    finish: Finish,
    total: i128,
    values: u64,
}

impl Total {
    pub(crate) fn new(finish: Finish) -> Self {
        Self { finish, total: 0, values: 0 }
    }

    fn add(&mut self, values: &ArrayRef, combine: fn(i128, i128) -> (i128, bool)) -> DataFusionResult<()> {
        let mut overflow = false;
        widened(values, |value| {
            let (total, over) = combine(self.total, value);
            self.total = total;
            overflow |= over;
        });
        if overflow { Err(too_large().into()) } else { Ok(()) }
    }
}

fn there(values: &ArrayRef) -> u64 {
    (values.len() - values.null_count()) as u64
}

impl Accumulator for Total {
    fn update_batch(&mut self, values: &[ArrayRef]) -> DataFusionResult<()> {
        self.values += there(&values[0]);
        self.add(&values[0], i128::overflowing_add)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> DataFusionResult<()> {
        self.values -= there(&values[0]);
        self.add(&values[0], i128::overflowing_sub)
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> DataFusionResult<ScalarValue> {
        self.finish.result_scalar(self.total, self.values)
    }

    fn state(&mut self) -> DataFusionResult<Vec<ScalarValue>> {
        let (precision, scale) = self.finish.total_scale();
        let total = ScalarValue::Decimal128((self.values > 0).then_some(self.total), precision, scale);
        Ok(if self.finish.counts() { vec![ScalarValue::UInt64(Some(self.values)), total] } else { vec![total] })
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> DataFusionResult<()> {
        let totals = if self.finish.counts() {
            self.values += states[0].as_primitive::<UInt64Type>().iter().flatten().sum::<u64>();
            &states[1]
        } else {
            self.values += there(&states[0]);
            &states[0]
        };
        self.add(totals, i128::overflowing_add)
    }

    fn size(&self) -> usize {
        size_of::<Self>()
    }
}

/// One total where every value counts once.
#[derive(Debug)]
pub(crate) struct Distinct {
    finish: Finish,
    seen: HashSet<i128>,
}

impl Distinct {
    pub(crate) fn new(finish: Finish) -> Self {
        Self { finish, seen: HashSet::new() }
    }
}

impl Accumulator for Distinct {
    fn update_batch(&mut self, values: &[ArrayRef]) -> DataFusionResult<()> {
        widened(&values[0], |value| {
            self.seen.insert(value);
        });
        Ok(())
    }

    fn evaluate(&mut self) -> DataFusionResult<ScalarValue> {
        let total = self.seen.iter().try_fold(0i128, |total, &value| total.checked_add(value)).ok_or_else(too_large)?;
        self.finish.result_scalar(total, self.seen.len() as u64)
    }

    fn state(&mut self) -> DataFusionResult<Vec<ScalarValue>> {
        let (precision, scale) = self.finish.total_scale();
        let values: Vec<ScalarValue> =
            self.seen.iter().map(|&value| ScalarValue::Decimal128(Some(value), precision, scale)).collect();
        Ok(vec![ScalarValue::List(ScalarValue::new_list_nullable(&values, &self.finish.total_type()))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> DataFusionResult<()> {
        for list in states[0].as_list::<i32>().iter().flatten() {
            self.update_batch(&[list])?;
        }
        Ok(())
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.seen.capacity() * size_of::<i128>()
    }
}

/// One total per group.
#[derive(Debug)]
pub(crate) struct Totals {
    finish: Finish,
    totals: Vec<i128>,
    values: Vec<u64>,
}

impl Totals {
    pub(crate) fn new(finish: Finish) -> Self {
        Self { finish, totals: Vec::new(), values: Vec::new() }
    }

    fn resize(&mut self, groups: usize) {
        self.totals.resize(groups, 0);
        self.values.resize(groups, 0);
    }

    /// Adds the values that count, each to its group. Overflow is looked at once, behind the loop.
    fn add<N: Copy + Into<i128>>(
        &mut self,
        values: &[N],
        valid: impl Fn(usize) -> bool,
        groups: &[usize],
        of: impl Fn(usize) -> u64,
    ) -> DataFusionResult<()> {
        let mut overflow = false;
        for (row, (&value, &group)) in values.iter().zip(groups).enumerate() {
            if valid(row) {
                let (total, over) = self.totals[group].overflowing_add(value.into());
                self.totals[group] = total;
                self.values[group] += of(row);
                overflow |= over;
            }
        }
        if overflow { Err(too_large().into()) } else { Ok(()) }
    }

    fn emit(&mut self, emit: EmitTo) -> (Vec<i128>, Vec<u64>) {
        (emit.take_needed(&mut self.totals), emit.take_needed(&mut self.values))
    }

    /// Totals and how many values they have, as they go between the phases.
    fn states(&self, totals: Decimal128Array, values: impl FnOnce() -> UInt64Array) -> DataFusionResult<Vec<ArrayRef>> {
        let (precision, scale) = self.finish.total_scale();
        let totals: ArrayRef = Arc::new(totals.with_precision_and_scale(precision, scale)?);
        Ok(if self.finish.counts() { vec![Arc::new(values()), totals] } else { vec![totals] })
    }
}

/// Whether a row counts: the value is there and the filter is true.
fn counts<'a>(values: &'a dyn Array, filter: Option<&'a BooleanArray>) -> impl Fn(usize) -> bool + 'a {
    move |row| values.is_valid(row) && filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

impl GroupsAccumulator for Totals {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total_groups: usize,
    ) -> DataFusionResult<()> {
        self.resize(total_groups);
        let all = values[0].null_count() == 0 && filter.is_none();
        if let Some(numbers) = values[0].as_primitive_opt::<Int64Type>() {
            return if all {
                self.add(numbers.values(), |_| true, groups, |_| 1)
            } else {
                self.add(numbers.values(), counts(&values[0], filter), groups, |_| 1)
            };
        }
        let numbers = values[0].as_primitive::<Decimal128Type>();
        if all {
            self.add(numbers.values(), |_| true, groups, |_| 1)
        } else {
            self.add(numbers.values(), counts(&values[0], filter), groups, |_| 1)
        }
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total_groups: usize,
    ) -> DataFusionResult<()> {
        self.resize(total_groups);
        if self.finish.counts() {
            let (numbers, totals) =
                (values[0].as_primitive::<UInt64Type>(), values[1].as_primitive::<Decimal128Type>());
            self.add(totals.values(), counts(&values[1], filter), groups, |row| numbers.value(row))
        } else {
            let totals = values[0].as_primitive::<Decimal128Type>();
            self.add(totals.values(), counts(&values[0], filter), groups, |_| 1)
        }
    }

    fn evaluate(&mut self, emit: EmitTo) -> DataFusionResult<ArrayRef> {
        let (totals, values) = self.emit(emit);
        self.finish.results(totals, values)
    }

    fn state(&mut self, emit: EmitTo) -> DataFusionResult<Vec<ArrayRef>> {
        let (totals, values) = self.emit(emit);
        let present: Decimal128Array =
            totals.iter().zip(&values).map(|(&total, &values)| (values > 0).then_some(total)).collect();
        self.states(present, || UInt64Array::from(values))
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> DataFusionResult<Vec<ArrayRef>> {
        let counts = counts(&values[0], filter);
        let rows = 0..values[0].len();
        let totals: Decimal128Array = if let Some(numbers) = values[0].as_primitive_opt::<Int64Type>() {
            rows.clone().map(|row| counts(row).then(|| i128::from(numbers.value(row)))).collect()
        } else {
            let numbers = values[0].as_primitive::<Decimal128Type>();
            rows.clone().map(|row| counts(row).then(|| numbers.value(row))).collect()
        };
        self.states(totals, || rows.map(|row| Some(u64::from(counts(row)))).collect())
    }

    fn supports_convert_to_state(&self) -> bool {
        true
    }

    fn size(&self) -> usize {
        self.totals.capacity() * size_of::<i128>() + self.values.capacity() * size_of::<u64>()
    }
}
