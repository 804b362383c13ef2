//! `sum` over integers without overflow: 128 bits inside, `bigint` outside, an error where the total does not fit.
//!
//! DataFusion's own wraps around. Everything but the sum of plain integers is left to it.

use std::mem::size_of;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Int64Array};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type};
use base::SqlState;
use datafusion::common::ScalarValue;
use datafusion::error::Result as DataFusionResult;
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, EmitTo, Expr, GroupsAccumulator, Operator, ReversedUDAF, SetMonotonicity, Signature,
};

use crate::error::Error;

/// The type that carries totals between the phases of an aggregation.
const TOTAL: DataType = DataType::Decimal128(38, 0);

/// `sum`, checked.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct CheckedSum {
    inner: Sum,
}

/// Whether a sum is ours: plain integers, each counted.
fn is_ours(data_type: &DataType, distinct: bool) -> bool {
    !distinct && *data_type == DataType::Int64
}

fn narrow(total: i128) -> DataFusionResult<i64> {
    i64::try_from(total).map_err(|_| Error::state(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "bigint out of range in sum").into())
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> DataFusionResult<DataType> {
        self.inner.return_type(types)
    }

    fn accumulator(&self, arguments: AccumulatorArgs<'_>) -> DataFusionResult<Box<dyn Accumulator>> {
        if is_ours(arguments.return_type(), arguments.is_distinct) {
            Ok(Box::new(Total::default()))
        } else {
            self.inner.accumulator(arguments)
        }
    }

    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> DataFusionResult<Vec<FieldRef>> {
        if is_ours(arguments.return_type(), arguments.is_distinct) {
            Ok(vec![Arc::new(Field::new(format!("{}[sum]", arguments.name), TOTAL, true))])
        } else {
            self.inner.state_fields(arguments)
        }
    }

    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs<'_>) -> bool {
        self.inner.groups_accumulator_supported(arguments)
    }

    fn create_groups_accumulator(&self, arguments: AccumulatorArgs<'_>) -> DataFusionResult<Box<dyn GroupsAccumulator>> {
        if is_ours(arguments.return_type(), arguments.is_distinct) {
            Ok(Box::new(Totals::default()))
        } else {
            self.inner.create_groups_accumulator(arguments)
        }
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs<'_>) -> DataFusionResult<Box<dyn Accumulator>> {
        if is_ours(arguments.return_type(), arguments.is_distinct) {
            Ok(Box::new(Total::default()))
        } else {
            self.inner.create_sliding_accumulator(arguments)
        }
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.inner.reverse_expr()
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.inner.order_sensitivity()
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.inner.set_monotonicity(data_type)
    }

    fn simplify_expr_op_literal(
        &self,
        function: &AggregateFunction,
        argument: &Expr,
        op: Operator,
        literal: &Expr,
        argument_is_left: bool,
    ) -> DataFusionResult<Option<Expr>> {
        self.inner.simplify_expr_op_literal(function, argument, op, literal, argument_is_left)
    }
}

/// One total. It can be taken back from, for windows that slide.
#[derive(Debug, Default)]
struct Total {
    total: i128,
    values: u64,
}

impl Total {
    fn add(&mut self, values: &ArrayRef, sign: i128) {
        let values = values.as_primitive::<Int64Type>();
        // Nulls hold arbitrary values and are passed over.
        let total: i128 = values.iter().flatten().map(i128::from).sum();
        self.total += sign * total;
    }
}

impl Accumulator for Total {
    fn update_batch(&mut self, values: &[ArrayRef]) -> DataFusionResult<()> {
        self.values += (values[0].len() - values[0].null_count()) as u64;
        self.add(&values[0], 1);
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> DataFusionResult<()> {
        self.values -= (values[0].len() - values[0].null_count()) as u64;
        self.add(&values[0], -1);
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> DataFusionResult<ScalarValue> {
        let total = if self.values == 0 { None } else { Some(narrow(self.total)?) };
        Ok(ScalarValue::Int64(total))
    }

    fn state(&mut self) -> DataFusionResult<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Decimal128((self.values > 0).then_some(self.total), 38, 0)])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> DataFusionResult<()> {
        for total in states[0].as_primitive::<Decimal128Type>().iter().flatten() {
            self.total += total;
            self.values += 1;
        }
        Ok(())
    }

    fn size(&self) -> usize {
        size_of::<Self>()
    }
}

/// One total per group.
#[derive(Debug, Default)]
struct Totals {
    totals: Vec<i128>,
    seen: Vec<bool>,
}

impl Totals {
    fn resize(&mut self, groups: usize) {
        self.totals.resize(groups, 0);
        self.seen.resize(groups, false);
    }

    fn put(&mut self, group: usize, value: i128) {
        self.totals[group] += value;
        self.seen[group] = true;
    }

    /// Adds the values that count, each to its group.
    fn add<N: Copy + Into<i128>>(&mut self, values: &[N], valid: impl Fn(usize) -> bool, groups: &[usize]) {
        for (row, (&value, &group)) in values.iter().zip(groups).enumerate() {
            if valid(row) {
                self.put(group, value.into());
            }
        }
    }

    fn emit(&mut self, emit: EmitTo) -> (Vec<i128>, Vec<bool>) {
        (emit.take_needed(&mut self.totals), emit.take_needed(&mut self.seen))
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
        let numbers = values[0].as_primitive::<Int64Type>();
        if numbers.null_count() == 0 && filter.is_none() {
            self.add(numbers.values(), |_| true, groups);
        } else {
            self.add(numbers.values(), counts(&values[0], filter), groups);
        }
        Ok(())
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total_groups: usize,
    ) -> DataFusionResult<()> {
        self.resize(total_groups);
        let totals = values[0].as_primitive::<Decimal128Type>();
        self.add(totals.values(), counts(&values[0], filter), groups);
        Ok(())
    }

    fn evaluate(&mut self, emit: EmitTo) -> DataFusionResult<ArrayRef> {
        let (totals, seen) = self.emit(emit);
        let values = totals
            .into_iter()
            .zip(seen)
            .map(|(total, seen)| if seen { narrow(total).map(Some) } else { Ok(None) })
            .collect::<DataFusionResult<Vec<_>>>()?;
        Ok(Arc::new(Int64Array::from(values)))
    }

    fn state(&mut self, emit: EmitTo) -> DataFusionResult<Vec<ArrayRef>> {
        let (totals, seen) = self.emit(emit);
        let values: Decimal128Array = totals.into_iter().zip(seen).map(|(total, seen)| seen.then_some(total)).collect();
        Ok(vec![Arc::new(values.with_precision_and_scale(38, 0)?)])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> DataFusionResult<Vec<ArrayRef>> {
        let numbers = values[0].as_primitive::<Int64Type>();
        let counts = counts(&values[0], filter);
        let totals: Decimal128Array =
            numbers.values().iter().enumerate().map(|(row, &value)| counts(row).then(|| i128::from(value))).collect();
        Ok(vec![Arc::new(totals.with_precision_and_scale(38, 0)?)])
    }

    fn supports_convert_to_state(&self) -> bool {
        true
    }

    fn size(&self) -> usize {
        self.totals.capacity() * size_of::<i128>() + self.seen.capacity()
    }
}
