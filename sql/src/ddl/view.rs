//! Views: the query's text, its columns, and what it reads.

use base::SqlState;
use datafusion::logical_expr::LogicalPlan;

use super::{needed, new_id, schema, writer};
use crate::catalog::{CatalogWriter, Object, ObjectId, Relation, SqlType, View};
use crate::parse::statement as st;
use crate::plan::{Binder, Overrides, Scope, client_schema, fold, relations_of};
use crate::{Error, Result};

pub(super) async fn create(scope: &Scope, create: &st::CreateView) -> Result<()> {
    let txn = scope.writing()?;
    let mut writer = writer(scope, txn);
    let (schema, name) = scope.split_name(&create.name)?;
    let schema = schema::for_new(scope, &mut writer, schema.as_deref(), create.temporary).await?;
    let existing = writer.catalog().relation(schema, &name).cloned();
    if existing.is_some() && create.if_not_exists {
        return Ok(());
    }
    let mut query = create.query.as_ref().clone();
    let binder = Binder::for_query(scope, &mut query, Overrides::default(), false).await?;
    let plan = binder.query(query)?;
    if !plan.get_parameter_fields()?.is_empty() {
        return Err(Error::state(SqlState::UNDEFINED_PARAMETER, "there are no parameters in a view"));
    }
    let plan = scope.state().optimize(&plan)?;
    let (columns, types) = output(&plan, &create.columns)?;
    let depends = relations_of(scope, &create.query_text)?;
    let id = match &existing {
        Some(Relation::View(old)) if create.or_replace => {
            let keeps = old.columns.len() <= columns.len() && old.columns.iter().zip(&columns).all(|(old, new)| old == new);
            if !keeps {
                return Err(Error::state(SqlState::INVALID_TABLE_DEFINITION, "cannot drop or rename columns of a view")
                    .with_hint("CREATE OR REPLACE VIEW can only add columns at the end"));
            }
            if depends.contains(&old.id) {
                return Err(Error::state(SqlState::INVALID_TABLE_DEFINITION, format!("view \"{name}\" would read itself")));
            }
            old.id
        }
        Some(other) if create.or_replace => {
            return Err(Error::state(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" is not a view", other.name())));
        }
        _ => new_id(scope).await?,
    };
    let view = View {
        id,
        schema,
        name,
        query: create.query_text.to_string(),
        columns,
        types,
        depends,
        path: scope.full_path(),
        comment: None,
        column_comments: Vec::new(),
    };
    if matches!(existing, Some(Relation::View(_))) && create.or_replace {
        writer.replace(Object::View(view)).await?;
    } else {
        writer.create(Object::View(view)).await?;
    }
    txn.set_catalog(writer.catalog().clone());
    Ok(())
}

/// Output names and types of a query under new names.
pub(super) fn output(plan: &LogicalPlan, names: &[sqlparser::ast::Ident]) -> Result<(Vec<String>, Vec<String>)> {
    let schema = client_schema(plan.schema().as_arrow());
    if names.len() > schema.fields().len() {
        return Err(Error::syntax("more column names than columns"));
    }
    let mut columns: Vec<String> = Vec::with_capacity(schema.fields().len());
    let mut types = Vec::with_capacity(schema.fields().len());
    for (at, field) in schema.fields().iter().enumerate() {
        let name = names.get(at).map_or_else(|| field.name().clone(), fold);
        if columns.contains(&name) {
            return Err(Error::state(SqlState::DUPLICATE_COLUMN, format!("column \"{name}\" specified more than once")));
        }
        columns.push(name);
        types.push(SqlType::from_arrow(field).map_or_else(|_| "text".to_owned(), |sql_type| sql_type.name().to_owned()));
    }
    Ok((columns, types))
}

/// Drops a view, and with `cascade` the views over it.
pub(super) async fn drop(writer: &mut CatalogWriter<'_>, id: ObjectId, what: &str, cascade: bool) -> Result<()> {
    let dependents = writer.catalog().dependents(id);
    if !dependents.is_empty() && !cascade {
        let list: Vec<String> = dependents.iter().map(|view| format!("view {} depends on {what}", view.name())).collect();
        return Err(needed(what, &list));
    }
    for view in dependents {
        Box::pin(drop(writer, view.id(), view.name(), true)).await?;
    }
    writer.remove(id).await
}
