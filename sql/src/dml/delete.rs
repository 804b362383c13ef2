//! DELETE.

use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::logical_expr::LogicalPlan;
use futures::StreamExt;

use super::foreign_keys::spread;
use super::writer::{Met, pick};
use super::{Returning, TableWriter, Target, Written, locators, plan, run_plan};
use crate::parse::statement as st;
use crate::plan::{Overrides, Planning, Scope, select};
use crate::session::learn;
use crate::{Error, Result};

/// The statement as a SELECT: the columns at `positions`, the locator, what RETURNING wants of other relations.
async fn select_rows(
    scope: &Scope,
    delete: &st::Delete,
    target: &Target,
    positions: &[usize],
    returning: &Returning<'_>,
) -> Result<LogicalPlan> {
    let mut from = vec![target.from()];
    from.extend(delete.using.iter().cloned());
    let mut items = target.row_items(positions);
    items.extend(returning.other_items(&delete.using)?);
    let query = select(delete.with.clone(), items, from, delete.selection.clone());
    plan(scope, query, Overrides::default()).await
}

/// Parameter types, and the schema of RETURNING.
pub(crate) async fn types(
    scope: &Scope,
    delete: &st::Delete,
    known: &mut [Option<FieldRef>],
) -> Result<Option<SchemaRef>> {
    let target = Target::of_factor(scope, &delete.table)?;
    let mut returning = Returning::new(&delete.returning, &target);
    let positions = &target.table.stored.key;
    let plan = select_rows(scope, delete, &target, positions, &returning).await?;
    learn(&plan, known)?;
    returning.beside(plan.schema(), positions.len() + 2);
    returning.types(scope, known).await
}

/// One row by its primary key, without a plan.
async fn point(scope: &Scope, delete: &st::Delete) -> Result<Option<Written>> {
    if scope.notes.is_watching() || delete.with.is_some() || !delete.using.is_empty() || !delete.returning.is_empty() {
        return Ok(None);
    }
    let (Some(selection), Some((table, alias))) = (&delete.selection, crate::fast::plain_table(scope, &delete.table))
    else {
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
    let mut returning = Returning::new(&delete.returning, &target);
    let positions = if returning.wanted() { target.all_positions() } else { writer.needed_to_delete() };
    let mut planning = Planning::of(scope)?;
    while let Some(inner) = planning.wants() {
        planning.give(select_rows(&inner, delete, &target, &positions, &returning).await?)?;
    }
    let plan = planning.done()?;
    returning.beside(plan.plan.schema(), positions.len() + 2);
    returning.plan(scope).await?;
    let mut stream = run_plan(scope, plan).await?;
    let joined = !delete.using.is_empty();
    let mut met = Met::default();
    let mut count = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        let mut old = spread(&target.table, &positions, &batch);
        let mut at = locators(&batch, positions.len())?;
        let mut others = returning.others_of(&batch);
        if joined {
            let fresh = met.fresh(&writer.keys(&old)?);
            if fresh.len() < at.len() {
                old = pick(&old, &fresh)?;
                others = pick(&others, &fresh)?;
                at = fresh.iter().map(|&row| at[row]).collect();
            }
        }
        if at.is_empty() {
            continue;
        }
        writer.delete(&old, &at).await?;
        count += at.len() as u64;
        returning.keep(&old, others)?;
    }
    writer.finish().await?;
    Ok(Written { tag: "DELETE", rows: count, returned: returning.rows(scope).await? })
}

/// The plan of the rows to delete, for EXPLAIN.
pub(crate) async fn explain(scope: &Scope, delete: &st::Delete) -> Result<LogicalPlan> {
    let target = Target::of_factor(scope, &delete.table)?;
    select_rows(scope, delete, &target, &target.table.stored.key, &Returning::new(&[], &target)).await
}
