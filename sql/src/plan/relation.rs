//! Time travel: `t AT(system_at => e)`, which every temporal spelling arrives as.

use std::sync::Arc;

use datafusion::common::DataFusionError;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use sqlparser::ast::{self, FunctionArg, FunctionArgExpr, FunctionArguments, TableFactor, TableVersion};

use super::context::Core;
use super::fold;
use crate::{Error, Result};

/// Resolves versioned tables against the moments the binder pinned.
#[derive(Debug)]
pub(super) struct TimeTravel {
    pub(super) core: Arc<Core>,
}

/// The expression of `AT(system_at => e)`; any other version is refused by name.
pub(super) fn system_time(version: &TableVersion) -> Result<&ast::Expr> {
    let TableVersion::Function(ast::Expr::Function(function)) = version else {
        return Err(Error::unsupported(format!("the table version {version}")));
    };
    let FunctionArguments::List(arguments) = &function.args else {
        return Err(Error::unsupported(format!("the table version {version}")));
    };
    let mut moment = None;
    for argument in &arguments.args {
        let (name, value) = match argument {
            FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), .. } => (fold(name), value),
            FunctionArg::ExprNamed { name: ast::Expr::Identifier(name), arg: FunctionArgExpr::Expr(value), .. } => (fold(name), value),
            other => return Err(Error::unsupported(format!("the table modifier {other}"))),
        };
        match name.as_str() {
            "system_at" => moment = Some(value),
            "valid_at" | "valid_from" | "valid_to" | "valid_all" => return Err(Error::unsupported("valid time")),
            "system_from" | "system_to" | "system_all" | "system_between" => return Err(Error::unsupported("a range of system time")),
            "portion_from" | "portion_to" => return Err(Error::unsupported("FOR PORTION OF")),
            "stream" => return Err(Error::unsupported("STREAM OF")),
            "ann" => return Err(Error::unsupported("JOIN ANN")),
            other => return Err(Error::unsupported(format!("the table modifier {other}"))),
        }
    }
    moment.ok_or_else(|| Error::unsupported("a table version without a moment"))
}

impl RelationPlanner for TimeTravel {
    fn plan_relation(&self, relation: TableFactor, context: &mut dyn RelationPlannerContext) -> DataFusionResult<RelationPlanning> {
        let TableFactor::Table { name, alias, version: Some(version), args: None, .. } = &relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let expr = system_time(version)?;
        let (catalog, reader) = self
            .core
            .moments
            .get(&expr.to_string())
            .cloned()
            .ok_or_else(|| DataFusionError::from(Error::internal(format!("the moment {expr} was not pinned"))))?;
        let reference = context.object_name_to_table_reference(name.clone())?;
        let source = self.core.at(catalog, reader).source(&reference)?;
        let plan = LogicalPlanBuilder::scan(reference, source, None)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias.clone()))))
    }
}
