//! `sum` over integers and decimals without overflow, and `avg` over decimals with digits enough: see [`totals`](super::totals).
//!
//! DataFusion's `sum` wraps around, and its `avg` keeps four digits more than its argument and cuts the rest off. What is not decided
//! here is left to them.

use arrow::datatypes::{DataType, FieldRef};
use datafusion::error::Result as DataFusionResult;
use datafusion::functions_aggregate::average::Avg;
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, Expr, GroupsAccumulator, Operator, ReversedUDAF, SetMonotonicity, Signature,
};

use super::math::mean_type;
use super::totals::{Distinct, Finish, Total, Totals};

/// Sums of decimals with more digits than this are checked. With fewer, 128 bits hold the sum of 10¹² rows.
const UNCHECKED_DIGITS: u8 = 26;

/// `sum`, checked.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct CheckedSum {
    inner: Sum,
}

/// What a sum is, if it is ours.
fn finish_of_sum(argument: Option<&FieldRef>, returns: &DataType, distinct: bool) -> Option<Finish> {
    match (argument?.data_type(), returns) {
        (DataType::Int64, DataType::Int64) if !distinct => Some(Finish::Whole),
        (DataType::Decimal128(digits, _), DataType::Decimal128(precision, scale)) if *digits > UNCHECKED_DIGITS => {
            Some(Finish::Sum { precision: *precision, scale: *scale })
        }
        _ => None,
    }
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
        match finish_of_sum(arguments.expr_fields.first(), arguments.return_type(), arguments.is_distinct) {
            Some(finish) if arguments.is_distinct => Ok(Box::new(Distinct::new(finish))),
            Some(finish) => Ok(Box::new(Total::new(finish))),
            None => self.inner.accumulator(arguments),
        }
    }

    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> DataFusionResult<Vec<FieldRef>> {
        match finish_of_sum(arguments.input_fields.first(), arguments.return_type(), arguments.is_distinct) {
            Some(finish) if arguments.is_distinct => Ok(finish.distinct_state_fields(arguments.name)),
            Some(finish) => Ok(finish.state_fields(arguments.name)),
            None => self.inner.state_fields(arguments),
        }
    }

    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs<'_>) -> bool {
        self.inner.groups_accumulator_supported(arguments)
    }

    fn create_groups_accumulator(
        &self,
        arguments: AccumulatorArgs<'_>,
    ) -> DataFusionResult<Box<dyn GroupsAccumulator>> {
        match finish_of_sum(arguments.expr_fields.first(), arguments.return_type(), arguments.is_distinct) {
            Some(finish) => Ok(Box::new(Totals::new(finish))),
            None => self.inner.create_groups_accumulator(arguments),
        }
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs<'_>) -> DataFusionResult<Box<dyn Accumulator>> {
        match finish_of_sum(arguments.expr_fields.first(), arguments.return_type(), arguments.is_distinct) {
            Some(finish) if !arguments.is_distinct => Ok(Box::new(Total::new(finish))),
            _ => self.inner.create_sliding_accumulator(arguments),
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

/// `avg`, whose means of decimals have at least 16 digits behind the point where they have room, and are rounded.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct RoundedAvg {
    inner: Avg,
}

/// What a mean is, if it is ours.
fn finish_of_mean(argument: Option<&FieldRef>, returns: &DataType) -> Option<Finish> {
    match (argument?.data_type(), returns) {
        (DataType::Decimal128(_, from), DataType::Decimal128(precision, scale)) => {
            Some(Finish::Mean { from: *from, precision: *precision, scale: *scale })
        }
        _ => None,
    }
}

impl AggregateUDFImpl for RoundedAvg {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> DataFusionResult<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> DataFusionResult<DataType> {
        match types {
            [DataType::Decimal128(precision, scale)] => Ok(mean_type(*precision, *scale)),
            _ => self.inner.return_type(types),
        }
    }

    fn accumulator(&self, arguments: AccumulatorArgs<'_>) -> DataFusionResult<Box<dyn Accumulator>> {
        match finish_of_mean(arguments.expr_fields.first(), arguments.return_type()) {
            Some(finish) if arguments.is_distinct => Ok(Box::new(Distinct::new(finish))),
            Some(finish) => Ok(Box::new(Total::new(finish))),
            None => self.inner.accumulator(arguments),
        }
    }

    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> DataFusionResult<Vec<FieldRef>> {
        match finish_of_mean(arguments.input_fields.first(), arguments.return_type()) {
            Some(finish) if arguments.is_distinct => Ok(finish.distinct_state_fields(arguments.name)),
            Some(finish) => Ok(finish.state_fields(arguments.name)),
            None => self.inner.state_fields(arguments),
        }
    }

    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs<'_>) -> bool {
        self.inner.groups_accumulator_supported(arguments)
    }

    fn create_groups_accumulator(
        &self,
        arguments: AccumulatorArgs<'_>,
    ) -> DataFusionResult<Box<dyn GroupsAccumulator>> {
        match finish_of_mean(arguments.expr_fields.first(), arguments.return_type()) {
            Some(finish) => Ok(Box::new(Totals::new(finish))),
            None => self.inner.create_groups_accumulator(arguments),
        }
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs<'_>) -> DataFusionResult<Box<dyn Accumulator>> {
        match finish_of_mean(arguments.expr_fields.first(), arguments.return_type()) {
            Some(finish) if !arguments.is_distinct => Ok(Box::new(Total::new(finish))),
            _ => self.inner.create_sliding_accumulator(arguments),
        }
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.inner.reverse_expr()
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.inner.order_sensitivity()
    }
}
