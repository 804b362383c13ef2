//! `generate_series`, as a list (in expressions) and as a table (in `FROM`, one batch at a time).
//!
//! Integers, decimals, and moments with an interval as the step. A step of zero is an error; a null argument gives no rows.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arrow::array::types::IntervalMonthDayNano;
use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, Int64Array, ListArray, RecordBatch, TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{
    DataType, Decimal128Type, Field, FieldRef, Int64Type, IntervalMonthDayNanoType, Schema, SchemaRef, TimeUnit,
    TimestampMicrosecondType,
};
use async_trait::async_trait;
use base::SqlState;
use chrono::Months;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{Expr, ReturnFieldArgs, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::memory::{LazyBatchGenerator, LazyMemoryExec};
use parking_lot::RwLock;

use super::call::{Call, Definition, Param, Returns, on, pure};
use super::format::timestamp_of;
use super::interval::Interval;
use crate::error::{Error, Result};
use crate::types::utc;

/// The name of the function and of its column.
pub(crate) const NAME: &str = "generate_series";

/// The series as a list.
pub(crate) static LIST: Definition = pure(
    &[NAME],
    &[
        on(&[Param::Int, Param::Int], Returns::Compute(list_field), list),
        on(&[Param::Int, Param::Int, Param::Int], Returns::Compute(list_field), list),
        on(&[Param::Numeric, Param::Numeric], Returns::Compute(list_field), list),
        on(&[Param::Numeric, Param::Numeric, Param::Numeric], Returns::Compute(list_field), list),
        on(&[Param::Timestamp, Param::Timestamp, Param::Interval], Returns::Compute(list_field), list),
        on(&[Param::TimestampTz, Param::TimestampTz, Param::Interval], Returns::Compute(list_field), list),
    ],
);

/// The most items of a list, which is kept in memory.
const LIST_ITEMS: usize = 10_000_000;

/// A series under way.
#[derive(Clone, Debug)]
enum Series {
    Int {
        next: Option<i64>,
        stop: i64,
        step: i64,
    },
    Decimal {
        next: Option<i128>,
        stop: i128,
        step: i128,
        precision: u8,
        scale: i8,
    },
    /// Moments are counted from the start, so that months do not drift (31 January, 29 February, 31 March).
    Moment {
        start: i64,
        count: i32,
        stop: i64,
        step: Interval,
        zone: Option<Arc<str>>,
        done: bool,
    },
    /// No items, of this type.
    Empty(DataType),
}

fn zero_step() -> Error {
    Error::invalid("step size cannot equal zero")
}

impl Series {
    /// The next items, at most so many; an empty array at the end.
    fn take(&mut self, most: usize) -> Result<ArrayRef> {
        match self {
            Series::Empty(data_type) => Ok(arrow::array::new_empty_array(data_type)),
            Series::Int { next, stop, step } => {
                let mut values = Vec::new();
                while let Some(value) = *next
                    && values.len() < most
                    && if *step > 0 { value <= *stop } else { value >= *stop }
                {
                    values.push(value);
                    *next = value.checked_add(*step);
                }
                Ok(Arc::new(Int64Array::from(values)))
            }
            Series::Decimal { next, stop, step, precision, scale } => {
                let mut values = Vec::new();
                while let Some(value) = *next
                    && values.len() < most
                    && if *step > 0 { value <= *stop } else { value >= *stop }
                {
                    values.push(value);
                    *next = value.checked_add(*step);
                }
                Ok(Arc::new(Decimal128Array::from(values).with_precision_and_scale(*precision, *scale)?))
            }
            Series::Moment { start, count, stop, step, zone, done } => {
                let up = step.total_nanos() > 0;
                let mut values = Vec::new();
                while !*done && values.len() < most {
                    match moment(*start, *step, *count)? {
                        Some(value) if if up { value <= *stop } else { value >= *stop } => values.push(value),
                        _ => {
                            *done = true;
                            break;
                        }
                    }
                    *count += 1;
                }
                Ok(Arc::new(TimestampMicrosecondArray::from(values).with_timezone_opt(zone.clone())))
            }
        }
    }

    fn data_type(&self) -> DataType {
        match self {
            Series::Int { .. } => DataType::Int64,
            Series::Empty(data_type) => data_type.clone(),
            Series::Decimal { precision, scale, .. } => DataType::Decimal128(*precision, *scale),
            Series::Moment { zone, .. } => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        }
    }

    /// A series from constants; `None` stands for null.
    fn from_scalars(scalars: &[ScalarValue]) -> Result<Series> {
        let wrong = || {
            let types: Vec<String> = scalars.iter().map(|scalar| scalar.data_type().to_string()).collect();
            Error::state(
                SqlState::UNDEFINED_FUNCTION,
                format!("function generate_series({}) does not exist", types.join(", ")),
            )
            .with_hint("series are made of integers, numerics, or moments with an interval as the step")
        };
        if !(2..=3).contains(&scalars.len()) {
            return Err(wrong());
        }
        if scalars.iter().any(ScalarValue::is_null) {
            return Ok(Series::Empty(type_of(scalars)));
        }
        let integers: Option<Vec<i64>> = scalars
            .iter()
            .map(|scalar| match scalar.cast_to(&DataType::Int64) {
                Ok(ScalarValue::Int64(value)) if scalar.data_type().is_integer() => value,
                _ => None,
            })
            .collect();
        if let Some(integers) = integers {
            let step = integers.get(2).copied().unwrap_or(1);
            if step == 0 {
                return Err(zero_step());
            }
            return Ok(Series::Int { next: Some(integers[0]), stop: integers[1], step });
        }
        if scalars
            .iter()
            .all(|scalar| scalar.data_type().is_integer() || matches!(scalar.data_type(), DataType::Decimal128(..)))
        {
            return decimals(scalars);
        }
        let [start, stop, step] = scalars else { return Err(wrong()) };
        let step = match step {
            ScalarValue::IntervalMonthDayNano(Some(step)) => Interval::from(*step),
            ScalarValue::Utf8(Some(text)) => Interval::parse(text)?,
            _ => return Err(wrong()),
        };
        let zone = match (start.data_type(), stop.data_type()) {
            (DataType::Timestamp(_, Some(_)), _) | (_, DataType::Timestamp(_, Some(_))) => Some(utc()),
            (DataType::Timestamp(..) | DataType::Date32 | DataType::Date64, _) => None,
            _ => return Err(wrong()),
        };
        let target = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
        let micros = |scalar: &ScalarValue| match scalar.cast_to(&target)? {
            ScalarValue::TimestampMicrosecond(Some(value), _) => Ok(value),
            _ => Err(wrong()),
        };
        moments(micros(start)?, micros(stop)?, step, zone)
    }
}

/// The type of a series of these types.
fn type_of(scalars: &[ScalarValue]) -> DataType {
    let types: Vec<DataType> = scalars.iter().map(ScalarValue::data_type).collect();
    let scale = types.iter().filter_map(|data_type| match data_type {
        DataType::Decimal128(_, scale) => Some(*scale),
        _ => None,
    });
    if let Some(scale) = scale.max() {
        return DataType::Decimal128(38, scale);
    }
    if types.iter().any(|data_type| matches!(data_type, DataType::Timestamp(_, Some(_)))) {
        return DataType::Timestamp(TimeUnit::Microsecond, Some(utc()));
    }
    if types.iter().any(|data_type| matches!(data_type, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64))
    {
        return DataType::Timestamp(TimeUnit::Microsecond, None);
    }
    DataType::Int64
}

fn decimals(scalars: &[ScalarValue]) -> Result<Series> {
    let scale = scalars
        .iter()
        .map(|scalar| match scalar.data_type() {
            DataType::Decimal128(_, scale) => scale,
            _ => 0,
        })
        .max()
        .unwrap_or(0);
    let values = scalars
        .iter()
        .map(|scalar| match scalar.cast_to(&DataType::Decimal128(38, scale))? {
            ScalarValue::Decimal128(Some(value), _, _) => Ok(value),
            _ => Err(Error::internal("a decimal was lost")),
        })
        .collect::<Result<Vec<i128>>>()?;
    let one = 10i128.pow(u32::try_from(scale).unwrap_or(0));
    let step = values.get(2).copied().unwrap_or(one);
    if step == 0 {
        return Err(zero_step());
    }
    Ok(Series::Decimal { next: Some(values[0]), stop: values[1], step, precision: 38, scale })
}

fn moments(start: i64, stop: i64, step: Interval, zone: Option<Arc<str>>) -> Result<Series> {
    if step.total_nanos() == 0 {
        return Err(zero_step());
    }
    Ok(Series::Moment { start, count: 0, stop, step, zone, done: false })
}

/// `start + count × step`; `None` past what a time stamp holds.
fn moment(start: i64, step: Interval, count: i32) -> Result<Option<i64>> {
    let Some(months) = step.months.checked_mul(count) else { return Ok(None) };
    let time = timestamp_of(start)?;
    let shift = Months::new(months.unsigned_abs());
    let moved = if months < 0 { time.checked_sub_months(shift) } else { time.checked_add_months(shift) };
    let rest = i64::from(step.days)
        .checked_mul(86_400_000_000)
        .and_then(|days| days.checked_add(step.nanos / 1000))
        .and_then(|rest| rest.checked_mul(i64::from(count)));
    Ok(match (moved, rest) {
        (Some(moved), Some(rest)) => moved.and_utc().timestamp_micros().checked_add(rest),
        _ => None,
    })
}

// ------------------------------------------------------------------------------------------------------------- as a list

fn list_field(arguments: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    let item = match arguments.arg_fields[0].data_type() {
        DataType::Decimal128(_, first) => {
            let scale = arguments.arg_fields[1..].iter().fold(*first, |scale, field| match field.data_type() {
                DataType::Decimal128(_, other) => scale.max(*other),
                _ => scale,
            });
            DataType::Decimal128(38, scale)
        }
        DataType::Timestamp(_, Some(_)) => DataType::Timestamp(TimeUnit::Microsecond, Some(utc())),
        DataType::Timestamp(_, None) => DataType::Timestamp(TimeUnit::Microsecond, None),
        _ => DataType::Int64,
    };
    Ok(Arc::new(Field::new(NAME, DataType::List(Arc::new(Field::new("item", item, true))), true)))
}

fn list(call: &Call<'_>) -> Result<ArrayRef> {
    let DataType::List(item) = call.returns.data_type() else { return Err(Error::internal("a list is expected")) };
    let mut parts: Vec<ArrayRef> = Vec::with_capacity(call.rows);
    let mut valid = Vec::with_capacity(call.rows);
    for row in 0..call.rows {
        let null = call.arrays.iter().any(|array| array.is_null(row));
        valid.push(!null);
        let mut series = if null { Series::Empty(item.data_type().clone()) } else { at_row(call, row)? };
        let items = series.take(LIST_ITEMS + 1)?;
        if items.len() > LIST_ITEMS {
            return Err(Error::state(SqlState::PROGRAM_LIMIT, format!("the series has more than {LIST_ITEMS} items"))
                .with_hint("use generate_series in FROM"));
        }
        parts.push(if items.data_type() == item.data_type() {
            items
        } else {
            arrow::compute::cast(&items, item.data_type())?
        });
    }
    let lengths: Vec<usize> = parts.iter().map(Array::len).collect();
    let arrays: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
    let values = if arrays.is_empty() {
        arrow::array::new_empty_array(item.data_type())
    } else {
        arrow::compute::concat(&arrays)?
    };
    let list = ListArray::try_new(
        Arc::clone(item),
        OffsetBuffer::from_lengths(lengths),
        values,
        Some(NullBuffer::from(valid)),
    )?;
    Ok(Arc::new(list))
}

fn at_row(call: &Call<'_>, row: usize) -> Result<Series> {
    match call.arrays[0].data_type() {
        DataType::Int64 => {
            let step = if call.has(2) { call.arrays[2].as_primitive::<Int64Type>().value(row) } else { 1 };
            if step == 0 {
                return Err(zero_step());
            }
            Ok(Series::Int { next: Some(call.int(0).value(row)), stop: call.int(1).value(row), step })
        }
        DataType::Decimal128(..) => {
            let scalars: Vec<ScalarValue> = call
                .arrays
                .iter()
                .map(|array| {
                    let array = array.as_primitive::<Decimal128Type>();
                    ScalarValue::Decimal128(Some(array.value(row)), array.precision(), array.scale())
                })
                .collect();
            decimals(&scalars)
        }
        DataType::Timestamp(_, zone) => {
            let micros = |at: usize| call.arrays[at].as_primitive::<TimestampMicrosecondType>().value(row);
            let step: IntervalMonthDayNano = call.arrays[2].as_primitive::<IntervalMonthDayNanoType>().value(row);
            moments(micros(0), micros(1), Interval::from(step), zone.clone())
        }
        other => Err(Error::internal(format!("a series of {other}"))),
    }
}

// ------------------------------------------------------------------------------------------------------------- as a table

/// Whether a table is a series made of constants.
pub(crate) fn is_series(table: &dyn TableProvider) -> bool {
    table.is::<SeriesTable>()
}

/// The table function.
#[derive(Debug)]
pub(crate) struct SeriesFunction;

impl TableFunctionImpl for SeriesFunction {
    fn call_with_args(&self, arguments: TableFunctionArgs<'_, '_>) -> DataFusionResult<Arc<dyn TableProvider>> {
        let scalars = arguments
            .exprs()
            .iter()
            .map(|expr| match expr {
                Expr::Literal(scalar, _) => Ok(scalar.clone()),
                other => Err(Error::unsupported(format!("the argument {other} of generate_series in FROM")).with_hint(
                    "in FROM its arguments must be constants; with columns write SELECT generate_series(…)",
                )),
            })
            .collect::<Result<Vec<_>>>()?;
        let series = Series::from_scalars(&scalars)?;
        let schema = Arc::new(Schema::new(vec![Field::new(NAME, series.data_type(), false)]));
        Ok(Arc::new(SeriesTable { series, schema }))
    }
}

#[derive(Debug)]
struct SeriesTable {
    series: Series,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for SeriesTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let generator = Generator {
            series: self.series.clone(),
            start: self.series.clone(),
            schema: Arc::clone(&self.schema),
            rows: state.config_options().execution.batch_size,
        };
        let exec = LazyMemoryExec::try_new(Arc::clone(&self.schema), vec![Arc::new(RwLock::new(generator))])?;
        Ok(Arc::new(exec.with_projection(projection.cloned())))
    }
}

#[derive(Clone, Debug)]
struct Generator {
    series: Series,
    start: Series,
    schema: SchemaRef,
    rows: usize,
}

impl fmt::Display for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)
    }
}

impl LazyBatchGenerator for Generator {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn generate_next_batch(&mut self) -> DataFusionResult<Option<RecordBatch>> {
        let values = self.series.take(self.rows)?;
        if values.is_empty() {
            return Ok(None);
        }
        Ok(Some(RecordBatch::try_new(Arc::clone(&self.schema), vec![values])?))
    }

    fn reset_state(&self) -> Arc<RwLock<dyn LazyBatchGenerator>> {
        Arc::new(RwLock::new(Generator { series: self.start.clone(), ..self.clone() }))
    }
}
