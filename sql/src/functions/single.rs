//! The value of a scalar subquery: of no row it is NULL, of more than one an error, and only where the value is asked for.
//!
//! A subquery that refers to the outer query becomes a join, which has the rows of all outer rows at once. [`SoleRow`] keeps one value
//! per group and whether there were more, and [`Value`], which stands in the outer query, refuses a group with more: rows that no
//! outer row asks for are no error.
//!
//! # Invariants
//! - SUB-1 [`Value`] may be NULL, whatever it is made of, so that nothing decides `IS NULL` while planning.
//!   Test: `tests/slt/suite/select/scalar_subqueries.slt`.
//! - SUB-2 a second row is an error for the outer row that sees it, and for no other. The same test.

use std::mem::size_of;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StructArray};
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use base::SqlState;
use datafusion::common::ScalarValue;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, ColumnarValue, EmitTo, GroupsAccumulator, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDFImpl, Signature, Volatility,
};

use crate::error::Error;

/// The outer query's side: gives a subquery's value its type and lets it be NULL.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Value {
    field: FieldRef,
    /// The argument is what [`SoleRow`] returns.
    checked: bool,
    signature: Signature,
}

impl Value {
    /// Of a value with this field.
    pub(crate) fn new(field: &Field, checked: bool) -> Self {
        Self {
            field: Arc::new(field.clone().with_nullable(true)),
            checked,
            signature: Signature::any(1, Volatility::Immutable),
        }
    }
}

impl ScalarUDFImpl for Value {
    fn name(&self) -> &str {
        "subquery_value"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Ok(self.field.data_type().clone())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> DataFusionResult<FieldRef> {
        Ok(Arc::clone(&self.field))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let value =
            arguments.args.into_iter().next().ok_or_else(|| Error::internal("a subquery's value is missing"))?;
        if !self.checked {
            return Ok(value);
        }
        let array = value.into_array(arguments.number_rows)?;
        let found = array.as_struct();
        let more = found.column(1).as_boolean();
        if (0..found.len()).any(|row| found.is_valid(row) && more.is_valid(row) && more.value(row)) {
            return Err(too_many().into());
        }
        // Where no row was found there is no struct, and what lies under it does not count.
        let values = found.column(0);
        let nulls = arrow::buffer::NullBuffer::union(values.nulls(), found.nulls());
        let data = values.to_data().into_builder().nulls(nulls).build()?;
        Ok(ColumnarValue::Array(arrow::array::make_array(data)))
    }
}

fn too_many() -> Error {
    Error::state(SqlState::CARDINALITY_VIOLATION, "more than one row returned by a subquery used as an expression")
}

/// The subquery's side: the value of a group's first row, and whether there were more rows.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct SoleRow {
    signature: Signature,
}

impl Default for SoleRow {
    fn default() -> Self {
        Self { signature: Signature::any(1, Volatility::Immutable) }
    }
}

/// What a group has, as a struct.
fn fields(data_type: &DataType) -> Fields {
    Fields::from(vec![Field::new("value", data_type.clone(), true), Field::new("more", DataType::Boolean, true)])
}

impl AggregateUDFImpl for SoleRow {
    fn name(&self) -> &str {
        "sole_row"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> DataFusionResult<DataType> {
        Ok(DataType::Struct(fields(types.first().unwrap_or(&DataType::Null))))
    }

    fn accumulator(&self, arguments: AccumulatorArgs<'_>) -> DataFusionResult<Box<dyn Accumulator>> {
        Ok(Box::new(One(Rows::new(arguments.return_type())?)))
    }

    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> DataFusionResult<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[sole_row]", arguments.name), arguments.return_type().clone(), true))])
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(
        &self,
        arguments: AccumulatorArgs<'_>,
    ) -> DataFusionResult<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Rows::new(arguments.return_type())?))
    }
}

/// What every group has so far. A group without a row has nothing.
#[derive(Debug)]
struct Rows {
    fields: Fields,
    values: Vec<Option<(ScalarValue, bool)>>,
    /// Bytes of the values beyond their own size.
    held: usize,
}

impl Rows {
    fn new(data_type: &DataType) -> DataFusionResult<Self> {
        let DataType::Struct(fields) = data_type else {
            return Err(Error::internal("sole_row returns a struct").into());
        };
        Ok(Self { fields: fields.clone(), values: Vec::new(), held: 0 })
    }

    fn put(&mut self, group: usize, array: &ArrayRef, row: usize, more: bool) -> DataFusionResult<()> {
        match &mut self.values[group] {
            Some((_, several)) => *several = true,
            empty => {
                let value = ScalarValue::try_from_array(array, row)?.compacted();
                self.held += value.size() - size_of::<ScalarValue>();
                *empty = Some((value, more));
            }
        }
        Ok(())
    }

    fn emit(&mut self, emit: EmitTo) -> DataFusionResult<ArrayRef> {
        let taken = emit.take_needed(&mut self.values);
        if self.values.is_empty() {
            self.held = 0;
        }
        let valid: Vec<bool> = taken.iter().map(Option::is_some).collect();
        let more: BooleanArray =
            taken.iter().map(|value| Some(value.as_ref().is_some_and(|(_, more)| *more))).collect();
        let data_type = self.fields[0].data_type();
        let none = ScalarValue::try_from(data_type)?;
        let values = if taken.is_empty() {
            arrow::array::new_empty_array(data_type)
        } else {
            ScalarValue::iter_to_array(
                taken.into_iter().map(|value| value.map_or_else(|| none.clone(), |(value, _)| value)),
            )?
        };
        Ok(Arc::new(StructArray::try_new(self.fields.clone(), vec![values, Arc::new(more)], Some(valid.into()))?))
    }
}

impl GroupsAccumulator for Rows {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total_groups: usize,
    ) -> DataFusionResult<()> {
        self.values.resize(total_groups, None);
        for (row, &group) in groups.iter().enumerate() {
            if filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                self.put(group, &values[0], row, false)?;
            }
        }
        Ok(())
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        _: Option<&BooleanArray>,
        total_groups: usize,
    ) -> DataFusionResult<()> {
        self.values.resize(total_groups, None);
        let states = values[0].as_struct();
        let more = states.column(1).as_boolean();
        for (row, &group) in groups.iter().enumerate() {
            if states.is_valid(row) {
                self.put(group, states.column(0), row, more.value(row))?;
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit: EmitTo) -> DataFusionResult<ArrayRef> {
        self.emit(emit)
    }

    fn state(&mut self, emit: EmitTo) -> DataFusionResult<Vec<ArrayRef>> {
        Ok(vec![self.emit(emit)?])
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<Option<(ScalarValue, bool)>>() + self.held
    }
}

/// The same for a query without groups.
#[derive(Debug)]
struct One(Rows);

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> DataFusionResult<()> {
        self.0.update_batch(values, &vec![0; values[0].len()], None, 1)
    }

    fn evaluate(&mut self) -> DataFusionResult<ScalarValue> {
        self.0.values.resize(1, None);
        ScalarValue::try_from_array(&self.0.emit(EmitTo::All)?, 0)
    }

    fn state(&mut self) -> DataFusionResult<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> DataFusionResult<()> {
        self.0.merge_batch(states, &vec![0; states[0].len()], None, 1)
    }

    fn size(&self) -> usize {
        GroupsAccumulator::size(&self.0)
    }
}
