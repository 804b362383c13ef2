//! Views: the query's text, its columns, and what its names mean.
//!
//! A view over temporary tables or views is temporary itself, as in PostgreSQL.

use base::SqlState;
use datafusion::logical_expr::LogicalPlan;

use super::{needed, new_id, schema, writer};
use crate::catalog::{CatalogWriter, Object, ObjectId, Relation, SqlType, View};
use crate::parse::statement as st;
use crate::plan::{Binder, Overrides, Scope, client_schema, depends, fold};
use crate::{Error, Result};

pub(super) async fn create(scope: &Scope, create: &st::CreateView) -> Result<()> {
    let txn = scope.writing()?;
    let mut writer = writer(scope, txn);
    let mut query = create.query.as_ref().clone();
    let binder = Binder::for_query(scope, &mut query, Overrides::default(), false).await?;
    let reads = binder.reads(&query);
    let depends = depends(&scope.catalog, &reads);
    // What reads temporary tables goes when they go.
    let temporary = create.temporary || depends.iter().any(|id| scope.is_temporary(*id));
    let (schema, name) = scope.split_name(&create.name)?;
    let schema = schema::for_new(scope, &mut writer, schema.as_deref(), temporary).await?;
    let existing = writer.catalog().relation(schema, &name).cloned();
    if existing.is_some() && create.if_not_exists {
        return Ok(());
    }
    let plan = binder.query(query)?;
    if !plan.get_parameter_fields()?.is_empty() {
        return Err(Error::state(SqlState::UNDEFINED_PARAMETER, "there are no parameters in a view"));
    }
    let plan = scope.state().optimize(&plan)?;
    let (columns, types) = output(&plan, &create.columns)?;
    let id = match &existing {
        Some(Relation::View(old)) if create.or_replace => {
            let keeps =
                old.columns.len() <= columns.len() && old.columns.iter().zip(&columns).all(|(old, new)| old == new);
            if !keeps {
                return Err(Error::state(
                    SqlState::INVALID_TABLE_DEFINITION,
                    "cannot drop or rename columns of a view",
                )
                .with_hint("CREATE OR REPLACE VIEW can only add columns at the end"));
            }
            if depends.contains(&old.id) {
                return Err(Error::state(
                    SqlState::INVALID_TABLE_DEFINITION,
                    format!("view \"{name}\" would read itself"),
                ));
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
        path: scope.path.clone(),
        reads: Some(reads),
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
            return Err(Error::state(
                SqlState::DUPLICATE_COLUMN,
                format!("column \"{name}\" specified more than once"),
            ));
        }
        columns.push(name);
        types
            .push(SqlType::from_arrow(field).map_or_else(|_| "text".to_owned(), |sql_type| sql_type.name().to_owned()));
    }
    Ok((columns, types))
}

/// Drops a view, and with `cascade` the views over it.
pub(super) async fn drop(writer: &mut CatalogWriter<'_>, id: ObjectId, what: &str, cascade: bool) -> Result<()> {
    let dependents = writer.catalog().dependents(id);
    if !dependents.is_empty() && !cascade {
        let list: Vec<String> =
            dependents.iter().map(|view| format!("view {} depends on {what}", view.name())).collect();
        return Err(needed(what, &list));
    }
    for view in dependents {
        Box::pin(drop(writer, view.id(), view.name(), true)).await?;
    }
    writer.remove(id).await
}

#[cfg(test)]
mod tests {
    use base::Principal;
    use storage::{BeginOptions, Store, StoreOptions};

    use crate::catalog::{CatalogWriter, Object, Relation};
    use crate::{Engine, EngineOptions, Outcome, Session, SessionOptions};

    async fn count(session: &Session, sql: &str) -> crate::Result<Vec<i64>> {
        let mut found = Vec::new();
        for outcome in session.run(sql).await? {
            let Outcome::Rows(rows) = outcome else { continue };
            for batch in rows.collect().await? {
                let numbers = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Int64)?;
                found.extend(numbers.as_any().downcast_ref::<arrow::array::Int64Array>().unwrap().values());
            }
        }
        Ok(found)
    }

    /// Makes views as they were before the catalog kept what their names mean.
    async fn forget(engine: &Engine, store: &Store) {
        let catalog = engine.inner.catalog.of(store, &store.snapshot()).await.unwrap();
        let transaction = store.begin(BeginOptions::default()).await.unwrap();
        let mut writer = CatalogWriter::new(&transaction, catalog.clone());
        for relation in catalog.relations() {
            if let Relation::View(view) = relation {
                let mut view = view.as_ref().clone();
                view.reads = None;
                writer.replace(Object::View(view)).await.unwrap();
            }
        }
        engine.inner.catalog.commit(&transaction).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn old_views_do_not_shift() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(runtime::Runtime::real(), StoreOptions::new(folder.path().to_owned())).await.unwrap();
        let engine = Engine::open(store.clone(), EngineOptions::default()).await.unwrap();
        let session = engine.session(Principal::admin(), SessionOptions::default());
        session
            .run(
                "create table a (id int primary key); create table b (id int primary key, x int);
                 insert into a values (1); insert into b values (1, 20);
                 create view plain as select a.*, b.x from a join b on a.id = b.id;
                 create view named (p, q) as select a.*, b.x from a join b on a.id = b.id",
            )
            .await
            .unwrap();
        forget(&engine, &store).await;
        session.run("alter table a add column y int default 30").await.unwrap();
        assert_eq!(count(&session, "select x from plain").await.unwrap(), [20]);
        // Which of the columns `q` was cannot be told.
        let error = count(&session, "select q from named").await.unwrap_err();
        assert_eq!(error.sqlstate, base::SqlState::OBJECT_NOT_IN_STATE, "{error}");
        assert!(error.hint.is_some_and(|hint| hint.contains("CREATE OR REPLACE VIEW")));
        // The reader's own tables are not the view's.
        session.run("create temporary table b (id int, x int); insert into b values (1, 99)").await.unwrap();
        assert_eq!(count(&session, "select x from plain").await.unwrap(), [20]);
        store.shutdown().await.unwrap();
    }
}
