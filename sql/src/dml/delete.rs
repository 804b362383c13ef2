//! DELETE.

use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::logical_expr::LogicalPlan;
use futures::StreamExt;

use super::foreign_keys::spread;
use super::insert::keep;
use super::writer::{Met, pick};
use super::{Returning, TableWriter, Target, Written, locators, plan, run_plan};
use crate::{Error, Result};
use crate::parse::statement as st;
use crate::plan::{Overrides, Scope, select};
use crate::session::learn;

/// The statement as a SELECT: the columns at `positions`, then the locator.
async fn select_rows(scope: &Scope, delete: &st::Delete, target: &Target, positions: &[usize]) -> Result<LogicalPlan> {
    let mut from = vec![target.from()];
    from.extend(delete.using.iter().cloned());
    let query = select(delete.with.clone(), target.row_items(positions), from, delete.selection.clone());
    plan(scope, query, Overrides::default()).await
}

/// Parameter types, and the schema of RETURNING.
pub(crate) async fn types(scope: &Scope, delete: &st::Delete, known: &mut [Option<FieldRef>]) -> Result<Option<SchemaRef>> {
    let target = Target::of_factor(scope, &delete.table)?;
    let plan = select_rows(scope, delete, &target, &target.table.stored.key).await?;
    learn(&plan, known)?;
    Returning { items: &delete.returning, target: &target }.types(scope, known).await
}

/// One row by its primary key, without a plan.
async fn point(scope: &Scope, delete: &st::Delete) -> Result<Option<Written>> {
    if delete.with.is_some() || !delete.using.is_empty() || !delete.returning.is_empty() {
        return Ok(None);
    }
    let (Some(selection), Some((table, alias))) = (&delete.selection, crate::fast::plain_table(scope, &delete.table)) else {
        return Ok(None);
    };
    let Some(key) = crate::fast::key(scope, &table, &alias, selection) else {
        return Ok(None);
    };
    let txn = scope.writing()?;
    let mut writer = TableWriter::new(scope, &table, true).await?;
    txn.storage.lock(table.stored.table, std::slice::from_ref(&key)).await.map_err(Error::classified)?;
    let needed = writer.needed_to_delete();
    let Some((old, locator)) = crate::fast::row(scope, &table, &key, &needed).await? else {
        return Ok(Some(Written::nothing("DELETE")));
    };
    writer.delete(&old, &[locator]).await?;
    writer.finish().await?;
    Ok(Some(Written { tag: "DELETE", rows: 1, returned: None }))
}

/// Runs it.
pub(crate) async fn run(scope: &Scope, delete: &st::Delete) -> Result<Written> {
    scope.writing()?;
    let target = Target::of_factor(scope, &delete.table)?;
    if let Some(written) = point(scope, delete).await? {
        return Ok(written);
    }
    let mut writer = TableWriter::new(scope, &target.table, true).await?;
    let returning = Returning { items: &delete.returning, target: &target };
    let positions = if returning.wanted() { target.all_positions() } else { writer.needed_to_delete() };
    let plan = select_rows(scope, delete, &target, &positions).await?;
    let mut stream = run_plan(scope, plan).await?;
    let joined = !delete.using.is_empty();
    let mut met = Met::default();
    let mut count = 0;
    let mut returned: Vec<RecordBatch> = Vec::new();
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        let mut old = spread(&target.table, &positions, &batch);
        let mut at = locators(&batch, positions.len())?;
        if joined {
            let fresh = met.fresh(&writer.keys(&old)?);
            if fresh.len() < at.len() {
                old = pick(&old, &fresh)?;
                at = fresh.iter().map(|&row| at[row]).collect();
            }
        }
        if at.is_empty() {
            continue;
        }
        writer.delete(&old, &at).await?;
        count += at.len() as u64;
        keep(&returning, &target.table, &old, &mut returned)?;
    }
    writer.finish().await?;
    Ok(Written { tag: "DELETE", rows: count, returned: returning.rows(scope, returned).await? })
}

/// The plan of the rows to delete, for EXPLAIN.
pub(crate) async fn explain(scope: &Scope, delete: &st::Delete) -> Result<LogicalPlan> {
    let target = Target::of_factor(scope, &delete.table)?;
    select_rows(scope, delete, &target, &target.table.stored.key).await
}
