//! PostgreSQL's functions that DataFusion lacks, or has with another meaning. The list is in `README.md` beside this file.

pub(crate) mod aggregates;
pub(crate) mod arrays;
pub(crate) mod call;
pub(crate) mod convert;
pub(crate) mod datetime;
mod format;
pub(crate) mod input;
mod interval;
pub(crate) mod json;
pub(crate) mod math;
mod series;
pub(crate) mod single;
mod strings;
mod sum;
mod template;
#[cfg(test)]
mod tests;
mod totals;

use std::sync::Arc;

use datafusion::error::Result as DataFusionResult;
use datafusion::execution::SessionState;
use datafusion::logical_expr::ScalarUDF;
use datafusion::logical_expr::registry::FunctionRegistry;

use crate::plan::SubqueryValues;
use crate::types::{Coercion, Operators};
use call::Function;
pub(crate) use series::is_series;

/// Every scalar function, ours before DataFusion's of the same name.
pub(crate) fn scalars() -> Vec<ScalarUDF> {
    let mut all: Vec<ScalarUDF> = convert::ALL
        .iter()
        .chain(json::ALL.iter())
        .chain(datetime::ALL.iter())
        .chain(arrays::ALL.iter())
        .chain(strings::ALL.iter())
        .chain(math::ALL.iter())
        .chain(aggregates::ALL.iter())
        .chain([&series::LIST].iter())
        .map(|&definition| Function::udf(definition))
        .collect();
    all.extend(datetime::clocks());
    all.push(datafusion::functions::math::ceil().as_ref().clone().with_aliases(["ceiling"]));
    all
}

/// The text of an interval as DataFusion's parser reads it.
pub(crate) fn plain_interval(text: &str) -> crate::error::Result<String> {
    let it = interval::Interval::parse(text)?;
    Ok(format!("{} months {} days {} nanoseconds", it.months, it.days, it.nanos))
}

/// Adds functions, operators, conversions and predicates as values to the state that every statement starts from.
pub(crate) fn register(state: &mut SessionState) -> DataFusionResult<()> {
    for function in scalars() {
        state.register_udf(Arc::new(function))?;
    }
    for function in aggregates::udafs() {
        state.register_udaf(Arc::new(function))?;
    }
    state.register_udtf(series::NAME, Arc::new(series::SeriesFunction));
    state.register_expr_planner(Arc::new(Operators))?;
    state.register_function_rewrite(Arc::new(Coercion))?;
    state.add_analyzer_rule(Arc::new(SubqueryValues));
    Ok(())
}
