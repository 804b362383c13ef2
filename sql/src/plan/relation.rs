//! Time travel: `t AT(system_at => e)`, which every temporal spelling arrives as. And the rows that RETURNING is about.

use std::sync::Arc;

use datafusion::common::DataFusionError;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use sqlparser::ast::{self, TableFactor, TableVersion};

use super::context::{Core, ROWS};
use crate::parse::{TableModifiers, TimeRange};
use crate::{Error, Result};

/// Resolves versioned tables against the moments the binder pinned.
#[derive(Debug)]
pub(super) struct TimeTravel {
    pub(super) core: Arc<Core>,
}

/// The moment a table version names; any other version is refused by name.
pub(super) fn system_time(version: &TableVersion) -> Result<ast::Expr> {
    let modifiers = TableModifiers::from_version(version)?;
    if let Some(what) = modifiers.beyond_as_of() {
        return Err(Error::unsupported(what));
    }
    match modifiers.system {
        Some(TimeRange::AsOf(moment)) => Ok(moment),
        Some(_) | None => Err(Error::unsupported("a table version without a moment")),
    }
}

impl RelationPlanner for TimeTravel {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> DataFusionResult<RelationPlanning> {
        if let (TableFactor::Table { name, alias: None, version: None, args: None, .. }, Some(rows)) =
            (&relation, &self.core.rows)
            && matches!(name.0.as_slice(), [part] if part.as_ident().is_some_and(|ident| ident.value == ROWS))
        {
            return Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(rows.clone(), None))));
        }
        let TableFactor::Table { name, alias, version: Some(version), args: None, .. } = &relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let expr = system_time(version)?;
        let moment = expr.to_string();
        let (catalog, reader) = self
            .core
            .moments
            .get(&moment)
            .cloned()
            .ok_or_else(|| DataFusionError::from(Error::internal(format!("the moment {expr} was not pinned"))))?;
        let reference = context.object_name_to_table_reference(name.clone())?;
        let source = self.core.at(moment, catalog, reader).source(&reference)?;
        let plan = LogicalPlanBuilder::scan(reference, source, None)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias.clone()))))
    }
}
