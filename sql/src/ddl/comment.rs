//! COMMENT ON.

use base::SqlState;

use super::writer;
use crate::catalog::{Object, Relation};
use crate::parse::statement::{CommentOn, CommentTarget, ObjectKind};
use crate::plan::{Scope, fold};
use crate::{Error, Result};

pub(super) async fn run(scope: &Scope, on: &CommentOn) -> Result<()> {
    let txn = scope.writing()?;
    let mut writer = writer(scope, txn);
    let comment = on.comment.clone();
    let object = match &on.target {
        CommentTarget::Database(_) => return Err(Error::unsupported("COMMENT ON DATABASE")),
        CommentTarget::Object(ObjectKind::Schema, name) => {
            let (_, name) = scope.split_name(name)?;
            let schema = writer.catalog().schema(&name).ok_or_else(|| {
                Error::state(SqlState::INVALID_SCHEMA_NAME, format!("schema \"{name}\" does not exist"))
            })?;
            let mut schema = schema.as_ref().clone();
            schema.comment = comment;
            Object::Schema(schema)
        }
        CommentTarget::Object(kind, name) => match (scope.relation(name)?, kind) {
            (Relation::Table(table), ObjectKind::Table) => {
                let mut def = table.def.clone();
                def.comment = comment;
                Object::Table(def)
            }
            (Relation::View(view), ObjectKind::View) => {
                let mut view = view.as_ref().clone();
                view.comment = comment;
                Object::View(view)
            }
            (Relation::Sequence(sequence), ObjectKind::Sequence) => {
                let mut sequence = sequence.as_ref().clone();
                sequence.comment = comment;
                Object::Sequence(sequence)
            }
            (Relation::Index(index), ObjectKind::Index) => {
                let mut index = index.def.clone();
                index.comment = comment;
                Object::Index(index)
            }
            (other, kind) => {
                return Err(Error::state(
                    SqlState::WRONG_OBJECT_TYPE,
                    format!("\"{}\" is not a {}", other.name(), kind.word()),
                ));
            }
        },
        CommentTarget::Column { table, column } => {
            let name = fold(column);
            match scope.relation(table)? {
                Relation::Table(table) => {
                    let at = table.def.position(&name).ok_or_else(|| {
                        crate::error::undefined_column(&name, table.def.live().map(|(_, column)| column.name.as_str()))
                    })?;
                    let mut def = table.def.clone();
                    def.columns[at].comment = comment;
                    Object::Table(def)
                }
                Relation::View(view) => {
                    if !view.columns.contains(&name) {
                        return Err(crate::error::undefined_column(&name, view.columns.iter().map(String::as_str)));
                    }
                    let mut view = view.as_ref().clone();
                    view.column_comments.retain(|(column, _)| *column != name);
                    view.column_comments.extend(comment.map(|comment| (name, comment)));
                    Object::View(view)
                }
                other => {
                    return Err(Error::state(
                        SqlState::WRONG_OBJECT_TYPE,
                        format!("\"{}\" has no columns", other.name()),
                    ));
                }
            }
        }
    };
    writer.replace(object).await?;
    txn.set_catalog(writer.catalog().clone());
    Ok(())
}
