//! UPDATE.

use arrow::array::ArrayRef;
use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::logical_expr::{Cast, Expr, LogicalPlan, LogicalPlanBuilder};
use futures::StreamExt;

use super::foreign_keys::spread;
use super::writer::{Met, pick};
use super::{Returning, TableWriter, Target, Written, assignments, check_assignable, hint, locators, plan, run_plan};
use crate::parse::statement as st;
use crate::plan::{Overrides, Planning, Scope, internal_item, select};
use crate::session::learn;
use crate::{Error, Result};

/// The statement as a SELECT: old columns, locator, new values, what RETURNING wants of other relations.
async fn select_rows(
    scope: &Scope,
    update: &st::Update,
    target: &Target,
    returning: &Returning<'_>,
    known: &mut [Option<FieldRef>],
) -> Result<LogicalPlan> {
    let table = &target.table;
    let set = assignments(table, &update.assignments)?;
    let positions = target.all_positions();
    let mut items = target.row_items(&positions);
    for (at, value) in &set {
        hint(known, value, &table.types[*at].field_ref(&table.def.columns[*at].name));
        items.push(internal_item(value.clone(), &format!("n{at}")));
    }
    items.extend(returning.other_items(&update.from)?);
    let mut from = vec![target.from()];
    from.extend(update.from.iter().cloned());
    let query = select(update.with.clone(), items, from, update.selection.clone());
    let scope = if scope.params.is_none() && !known.is_empty() {
        Scope { param_types: std::sync::Arc::new(known.to_vec()), ..scope.clone() }
    } else {
        scope.clone()
    };
    let plan = plan(&scope, query, Overrides::default()).await?;
    learn(&plan, known)?;
    // New values take their columns' types.
    let first_new = positions.len() + 2;
    for (number, (at, _)) in set.iter().enumerate() {
        check_assignable(table, *at, plan.schema().field(first_new + number).data_type())?;
    }
    let exprs: Vec<Expr> = plan
        .schema()
        .columns()
        .into_iter()
        .enumerate()
        .map(|(place, column)| match place.checked_sub(first_new).and_then(|number| set.get(number)) {
            Some((at, _)) => {
                let name = column.name.clone();
                Expr::Cast(Cast::new_from_field(Box::new(Expr::Column(column)), table.types[*at].field_ref(&name)))
                    .alias(name)
            }
            None => Expr::Column(column),
        })
        .collect();
    Ok(LogicalPlanBuilder::from(plan).project(exprs)?.build()?)
}

/// Parameter types, and the schema of RETURNING.
pub(crate) async fn types(
    scope: &Scope,
    update: &st::Update,
    known: &mut [Option<FieldRef>],
) -> Result<Option<SchemaRef>> {
    let target = Target::of_factor(scope, &update.table)?;
    let mut returning = Returning::new(&update.returning, &target);
    let plan = select_rows(scope, update, &target, &returning, known).await?;
    returning.beside(plan.schema(), first_other(update, &target)?);
    returning.types(scope, known).await
}

/// Where the columns of other relations begin in the SELECT.
fn first_other(update: &st::Update, target: &Target) -> Result<usize> {
    Ok(target.all_positions().len() + 2 + assignments(&target.table, &update.assignments)?.len())
}

/// One row by its primary key, without a plan.
async fn point(scope: &Scope, update: &st::Update, target: &Target) -> Result<Option<Written>> {
    if scope.notes.is_watching() || update.with.is_some() || !update.from.is_empty() || !update.returning.is_empty() {
        return Ok(None);
    }
    let (Some(selection), Some((table, alias))) = (&update.selection, crate::fast::plain_table(scope, &update.table))
    else {
        return Ok(None);
    };
    let Some(key) = crate::fast::key(scope, &table, &alias, selection) else {
        return Ok(None);
    };
    let set = assignments(&table, &update.assignments)?;
    if set.iter().any(|(_, value)| crate::fast::has_query(value)) {
        return Ok(None);
    }
    let txn = scope.writing()?;
    let mut writer = TableWriter::new(scope, &table, true).await?;
    // The lock comes first: a row that somebody else is changing is read after they are done, or the statement runs again.
    txn.storage.lock(table.stored.table, std::slice::from_ref(&key)).await.map_err(Error::classified)?;
    let Some((old, locator)) = crate::fast::row(scope, &table, &key, &target.all_positions()).await? else {
        return Ok(Some(Written::nothing("UPDATE")));
    };
    let values = crate::fast::values(scope, &table, &alias, &set, &old)?;
    let mut new = old.clone();
    let positions: Vec<usize> = set.iter().map(|(at, _)| *at).collect();
    for (&position, value) in positions.iter().zip(values) {
        new[position] = value;
    }
    writer.update(&old, new, &[locator], &positions).await?;
    writer.finish().await?;
    Ok(Some(Written { tag: "UPDATE", rows: 1, returned: None }))
}

/// Runs it.
pub(crate) async fn run(scope: &Scope, update: &st::Update) -> Result<Written> {
    scope.writing()?;
    let target = Target::of_factor(scope, &update.table)?;
    if let Some(written) = point(scope, update, &target).await? {
        return Ok(written);
    }
    let set: Vec<usize> = assignments(&target.table, &update.assignments)?.into_iter().map(|(at, _)| at).collect();
    let mut returning = Returning::new(&update.returning, &target);
    let mut planning = Planning::of(scope)?;
    while let Some(inner) = planning.wants() {
        planning.give(select_rows(&inner, update, &target, &returning, &mut []).await?)?;
    }
    let plan = planning.done()?;
    returning.beside(plan.plan.schema(), first_other(update, &target)?);
    returning.plan(scope).await?;
    let mut stream = run_plan(scope, plan).await?;
    let mut writer = TableWriter::new(scope, &target.table, true).await?;
    let positions = target.all_positions();
    let joined = !update.from.is_empty();
    let mut met = Met::default();
    let mut count = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        let mut old = spread(&target.table, &positions, &batch);
        let mut at = locators(&batch, positions.len())?;
        let mut values: Vec<ArrayRef> =
            (0..set.len()).map(|number| batch.column(positions.len() + 2 + number).clone()).collect();
        let mut others = returning.others_of(&batch);
        if joined {
            // A row that joins several others is changed once.
            let fresh = met.fresh(&writer.keys(&old)?);
            if fresh.len() < at.len() {
                old = pick(&old, &fresh)?;
                values = pick(&values, &fresh)?;
                others = pick(&others, &fresh)?;
                at = fresh.iter().map(|&row| at[row]).collect();
            }
        }
        if at.is_empty() {
            continue;
        }
        let mut new = old.clone();
        for (&position, value) in set.iter().zip(values) {
            new[position] = value;
        }
        let new = writer.update(&old, new, &at, &set).await?;
        count += at.len() as u64;
        returning.keep(&new, others)?;
    }
    writer.finish().await?;
    Ok(Written { tag: "UPDATE", rows: count, returned: returning.rows(scope).await? })
}

/// The plan of the rows to change, for EXPLAIN.
pub(crate) async fn explain(scope: &Scope, update: &st::Update) -> Result<LogicalPlan> {
    let target = Target::of_factor(scope, &update.table)?;
    select_rows(scope, update, &target, &Returning::new(&[], &target), &mut []).await
}
