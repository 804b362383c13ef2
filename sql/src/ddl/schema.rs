//! Schemas, the session's temporary one included.

use base::SqlState;

use super::{new_id, writer};
use crate::catalog::{
    CatalogWriter, FIRST_SESSION_SCHEMA, Object, ObjectId, Relation, SchemaObject, is_virtual_schema,
};
use crate::parse::statement as st;
use crate::plan::{Scope, fold};
use crate::{Error, Result};

pub(super) async fn create(scope: &Scope, create: &st::CreateSchema) -> Result<()> {
    let (_, name) = scope.split_name(&create.name)?;
    if name.starts_with("pg_") || is_virtual_schema(&name) {
        return Err(Error::state(SqlState::RESERVED_NAME, format!("unacceptable schema name \"{name}\""))
            .with_detail("The prefix \"pg_\" and the system's schemas are reserved."));
    }
    let txn = scope.writing()?;
    let mut writer = writer(scope, txn);
    if writer.catalog().schema(&name).is_some() && create.if_not_exists {
        return Ok(());
    }
    let owner = create.owner.as_ref().map_or_else(|| scope.session.principal.name().to_owned(), fold);
    let schema = SchemaObject { id: new_id(scope).await?, name, comment: None, session: None, owner: Some(owner) };
    writer.create(Object::Schema(schema)).await?;
    txn.set_catalog(writer.catalog().clone());
    Ok(())
}

pub(super) async fn drop(scope: &Scope, drop: &st::Drop) -> Result<()> {
    let txn = scope.writing()?.clone();
    for name in &drop.names {
        let (_, name) = scope.split_name(name)?;
        if is_virtual_schema(&name) {
            return Err(Error::state(
                SqlState::INSUFFICIENT_PRIVILEGE,
                format!("cannot drop system schema \"{name}\""),
            ));
        }
        let writer = writer(scope, &txn);
        let Some(schema) = writer.catalog().schema(&name).cloned() else {
            if drop.if_exists {
                continue;
            }
            return Err(Error::state(SqlState::INVALID_SCHEMA_NAME, format!("schema \"{name}\" does not exist")));
        };
        let inside: Vec<Relation> = writer.catalog().relations_of(schema.id).cloned().collect();
        if !inside.is_empty() && !drop.cascade {
            let list: Vec<String> = inside
                .iter()
                .map(|relation| format!("{} {} depends on schema {name}", relation.word(), relation.name()))
                .collect();
            return Err(super::needed(&format!("schema {name}"), &list));
        }
        for relation in inside {
            let catalog = txn.own_catalog().unwrap_or_else(|| scope.catalog.clone());
            let scope = scope.with_catalog(catalog.clone());
            match catalog.relation_by_id(relation.id()) {
                Some(Relation::Table(table)) => super::table::drop(&scope, &table.clone(), true).await?,
                Some(Relation::View(view)) => {
                    let mut writer = self::writer(&scope, &txn);
                    super::view::drop(&mut writer, view.id, &view.name, true).await?;
                    txn.set_catalog(writer.catalog().clone());
                }
                Some(Relation::Sequence(sequence)) => {
                    let mut writer = self::writer(&scope, &txn);
                    writer.remove(sequence.id).await?;
                    txn.set_catalog(writer.catalog().clone());
                }
                Some(Relation::Index(_)) | None => {}
            }
        }
        let mut writer = self::writer(scope, &txn);
        writer.remove(schema.id).await?;
        txn.set_catalog(writer.catalog().clone());
    }
    Ok(())
}

/// The schema that new objects go to, made if it is the session's temporary one.
pub(super) async fn for_new(
    scope: &Scope,
    writer: &mut CatalogWriter<'_>,
    schema: Option<&str>,
    temporary: bool,
) -> Result<ObjectId> {
    let own = format!("{FIRST_SESSION_SCHEMA}{}", scope.session.id);
    let temporary_schema = schema.is_some_and(|schema| schema == "pg_temp" || schema == own);
    if !temporary && !temporary_schema {
        return scope.with_catalog(writer.catalog().clone()).creation_schema(schema);
    }
    if temporary && schema.is_some() && !temporary_schema {
        return Err(Error::state(
            SqlState::INVALID_TABLE_DEFINITION,
            "cannot create temporary relation in non-temporary schema",
        ));
    }
    scope.session.note_temporary();
    if let Some(schema) = writer.catalog().schema(&own) {
        return Ok(schema.id);
    }
    let schema = SchemaObject {
        id: new_id(scope).await?,
        name: own,
        comment: None,
        session: Some(scope.session.id.0),
        owner: Some(scope.session.principal.name().to_owned()),
    };
    let id = schema.id;
    writer.create(Object::Schema(schema)).await?;
    Ok(id)
}

/// Drops the session's temporary objects.
pub(crate) async fn drop_temporary(scope: &Scope) -> Result<()> {
    let txn = scope.writing()?;
    let mut writer = writer(scope, txn);
    let own = format!("{FIRST_SESSION_SCHEMA}{}", scope.session.id);
    if let Some(schema) = writer.catalog().schema(&own).cloned() {
        writer.drop_schema(schema.id).await?;
        txn.set_catalog(writer.catalog().clone());
    }
    Ok(())
}
