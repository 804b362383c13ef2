//! ALTER TABLE and renaming.
//!
//! Most changes are catalog rows only. Columns are appended to the stored form and never move; a dropped column stays there,
//! hidden. What changes the stored form of existing rows (another type, another primary key) makes a new table under the old
//! name and copies the rows; older moments still read the old one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use base::SqlState;
use datafusion::logical_expr::{Cast, Expr};
use futures::StreamExt;
use sqlparser::ast;

use super::table::{check_default, check_expressions, check_identity_type, column, constraint, identity, publish};
use super::{index, needed, new_id, take_definition, view, writer};
use crate::catalog::objects::encode_value;
use crate::catalog::{
    CatalogWriter, FIRST_SESSION_SCHEMA, Index, Object, ObjectId, Relation, SqlType, Table, TableEntry,
};
use crate::dml::run_query;
use crate::parse::statement::{self as st, AlterOperation, ObjectKind};
use crate::plan::{Binder, Scope, cast_to_array, fold, identifier, parse_expr, qualified, select, table_factor};
use crate::{Error, Result};

pub(super) async fn run(scope: &Scope, alter: &st::AlterTable) -> Result<()> {
    let table = match scope.table(&alter.name) {
        Ok(table) => table,
        Err(error) if alter.if_exists && error.sqlstate == SqlState::UNDEFINED_TABLE => return Ok(()),
        Err(error) => return Err(error),
    };
    let constraints = alter.operations.iter().flat_map(|operation| match operation {
        AlterOperation::AddConstraint { constraint, .. } => std::slice::from_ref(constraint),
        AlterOperation::AddColumn { constraints, .. } => constraints.as_slice(),
        _ => &[],
    });
    let mut parents = super::table::parents(scope, constraints);
    parents.sort_by_key(|parent| parent.def.id);
    // New foreign keys are checked against what the writers of their tables leave.
    for parent in &parents {
        take_definition(scope, parent).await?;
    }
    let (scope, table) = take_definition(scope, &table).await?;
    let mut id = table.def.id;
    for operation in &alter.operations {
        let txn = scope.writing()?;
        let scope = scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
        let table = scope.catalog.table_by_id(id)?.clone();
        id = apply(&scope, &table, operation).await?;
    }
    Ok(())
}

/// Replaces a table's definition. With `stored`, its stored form changed too.
async fn put(scope: &Scope, mut def: Table, stored: bool) -> Result<Arc<TableEntry>> {
    let txn = scope.writing()?;
    let mut writer = writer(scope, txn);
    if stored {
        def.version += 1;
    }
    let id = def.id;
    writer.replace(Object::Table(def)).await?;
    let entry = writer.catalog().table_by_id(id)?.clone();
    if stored {
        txn.storage.define(entry.stored.clone()).map_err(Error::classified)?;
    }
    txn.set_catalog(writer.catalog().clone());
    Ok(entry)
}

fn find(table: &TableEntry, name: &ast::Ident) -> Result<usize> {
    let name = fold(name);
    table.def.position(&name).ok_or_else(|| {
        crate::error::undefined_column(&name, table.def.live().map(|(_, column)| column.name.as_str()))
            .context(format!("relation \"{}\"", table.def.name))
    })
}

/// Views that read a table keep it from changing under them.
fn refuse_views(scope: &Scope, table: &TableEntry, what: &str) -> Result<()> {
    let views = scope.catalog.dependents(table.def.id);
    if views.is_empty() {
        return Ok(());
    }
    let list: Vec<String> =
        views.iter().map(|view| format!("view {} depends on table {}", view.name(), table.def.name)).collect();
    Err(Error::state(SqlState::FEATURE_NOT_SUPPORTED, format!("cannot {what} of a table used by a view"))
        .with_detail(list.join("\n"))
        .with_hint("drop the views first and create them again"))
}

async fn apply(scope: &Scope, table: &Arc<TableEntry>, operation: &AlterOperation) -> Result<ObjectId> {
    let txn = scope.writing()?.clone();
    let id = table.def.id;
    let mut def = table.def.clone();
    match operation {
        AlterOperation::AddColumn { if_not_exists, column: definition, constraints } => {
            if def.position(&fold(&definition.name)).is_some() {
                if *if_not_exists {
                    return Ok(id);
                }
                return Err(Error::state(
                    SqlState::DUPLICATE_COLUMN,
                    format!("column \"{}\" of relation \"{}\" already exists", fold(&definition.name), def.name),
                ));
            }
            return add_column(scope, table, definition, constraints).await;
        }
        AlterOperation::DropColumn { name, if_exists, cascade } => {
            if def.position(&fold(name)).is_none() && *if_exists {
                return Ok(id);
            }
            drop_column(scope, table, find(table, name)?, *cascade).await?;
        }
        AlterOperation::RenameColumn { from, to } => {
            let at = find(table, from)?;
            let to = fold(to);
            if def.position(&to).is_some() {
                return Err(Error::state(
                    SqlState::DUPLICATE_COLUMN,
                    format!("column \"{to}\" of relation \"{}\" already exists", def.name),
                ));
            }
            if crate::scan::HIDDEN.contains(&to.as_str()) {
                return Err(Error::state(
                    SqlState::RESERVED_NAME,
                    format!("column name \"{to}\" is reserved for the system"),
                ));
            }
            refuse_views(scope, table, "rename a column")?;
            let old = std::mem::replace(&mut def.columns[at].name, to.clone());
            for check in &mut def.checks {
                check.expression = rename_in(&check.expression, &old, &to)?;
            }
            for column in &mut def.columns {
                if let Some(generated) = &mut column.generated {
                    *generated = rename_in(generated, &old, &to)?;
                }
            }
            put(scope, def, true).await?;
        }
        AlterOperation::RenameTable(to) => {
            refuse_views(scope, table, "rename")?;
            def.name = scope.split_name(to)?.1;
            put(scope, def, false).await?;
        }
        AlterOperation::RenameConstraint { from, to } => {
            let (from, to) = (fold(from), fold(to));
            if let Some(key) = def.primary_key.as_mut().filter(|key| key.name == from) {
                key.name = to;
            } else if let Some(check) = def.checks.iter_mut().find(|check| check.name == from) {
                check.name = to;
            } else if let Some(key) = def.foreign_keys.iter_mut().find(|key| key.name == from) {
                key.name = to;
            } else if let Some(index) =
                table.indexes.iter().find(|index| index.def.constraint && index.def.name == from)
            {
                let mut writer = writer(scope, &txn);
                writer.replace(Object::Index(Index { name: to, ..index.def.clone() })).await?;
                txn.set_catalog(writer.catalog().clone());
                return Ok(id);
            } else {
                return Err(no_constraint(table, &from));
            }
            put(scope, def, false).await?;
        }
        AlterOperation::AddConstraint { constraint: definition, not_valid } => {
            return add_constraint(scope, table, definition, *not_valid).await;
        }
        AlterOperation::DropConstraint { name, if_exists, cascade } => {
            return drop_constraint(scope, table, &fold(name), *if_exists, *cascade).await;
        }
        AlterOperation::ValidateConstraint(name) => {
            let name = fold(name);
            let known = def.checks.iter().any(|check| check.name == name)
                || def.foreign_keys.iter().any(|key| key.name == name);
            if !known {
                return Err(no_constraint(table, &name));
            }
            if let Some(check) = def.checks.iter().find(|check| check.name == name) {
                validate_check(scope, table, &check.name, &check.expression).await?;
            }
            if let Some(at) = def.foreign_keys.iter().position(|key| key.name == name) {
                validate_foreign_key(scope, table, at).await?;
            }
        }
        AlterOperation::SetNotNull { column, not_null } => {
            let at = find(table, column)?;
            if *not_null {
                validate_not_null(scope, table, at).await?;
            } else if def.primary_key.as_ref().is_some_and(|key| key.columns.contains(&def.columns[at].id)) {
                return Err(Error::state(
                    SqlState::INVALID_TABLE_DEFINITION,
                    format!("column \"{}\" is in a primary key", def.columns[at].name),
                ));
            }
            def.columns[at].nullable = !not_null;
            put(scope, def, true).await?;
        }
        AlterOperation::SetDefault { column, default } => {
            let at = find(table, column)?;
            def.columns[at].default = default
                .as_ref()
                .map(|default| check_default(scope, default, &table.types[at], &table.def.columns[at].name))
                .transpose()?;
            put(scope, def, false).await?;
        }
        AlterOperation::SetType { column, data_type, using } => {
            return set_type(scope, table, find(table, column)?, data_type, using.as_ref()).await;
        }
        AlterOperation::AddIdentity { column, identity: definition } => {
            let at = find(table, column)?;
            check_identity_type(&table.types[at])?;
            let refused = |what: &str| {
                let text =
                    format!("column \"{}\" of relation \"{}\" {what}", table.def.columns[at].name, table.def.name);
                Error::state(SqlState::OBJECT_NOT_IN_STATE, text)
            };
            if def.columns[at].identity.is_some() {
                return Err(refused("is already an identity column"));
            }
            if def.columns[at].default.is_some() {
                return Err(refused("already has a default value"));
            }
            if def.columns[at].nullable {
                return Err(Error::state(
                    SqlState::OBJECT_NOT_IN_STATE,
                    format!(
                        "column \"{}\" of relation \"{}\" must be declared NOT NULL before identity can be added",
                        def.columns[at].name, def.name
                    ),
                ));
            }
            let mut writer = writer(scope, &txn);
            let place = (def.columns[at].id, def.columns[at].name.as_str());
            let identity =
                identity(scope, &mut writer, (id, def.schema, &def.name), place, &table.types[at], definition).await?;
            txn.set_catalog(writer.catalog().clone());
            def.columns[at].identity = Some(identity);
            let scope = scope.with_catalog(writer.catalog().clone());
            put(&scope, def, false).await?;
        }
        AlterOperation::AlterIdentity { column, always, options, restart } => {
            let at = find(table, column)?;
            let Some(identity) = &mut def.columns[at].identity else {
                return Err(Error::state(
                    SqlState::OBJECT_NOT_IN_STATE,
                    format!(
                        "column \"{}\" of relation \"{}\" is not an identity column",
                        table.def.columns[at].name, table.def.name
                    ),
                ));
            };
            identity.always = always.unwrap_or(identity.always);
            let mut writer = writer(scope, &txn);
            let Some(Relation::Sequence(sequence)) = writer.catalog().relation_by_id(identity.sequence).cloned() else {
                return Err(Error::internal(format!("sequence {} is gone", identity.sequence)));
            };
            let changed = super::sequence::changed(scope, &sequence, options, *restart).await?;
            writer.replace(Object::Sequence(changed)).await?;
            txn.set_catalog(writer.catalog().clone());
            put(&scope.with_catalog(writer.catalog().clone()), def, false).await?;
        }
        AlterOperation::DropIdentity { column, if_exists } => {
            let at = find(table, column)?;
            match def.columns[at].identity.take() {
                Some(identity) => {
                    let mut writer = writer(scope, &txn);
                    writer.remove(identity.sequence).await?;
                    txn.set_catalog(writer.catalog().clone());
                    let scope = scope.with_catalog(writer.catalog().clone());
                    put(&scope, def, false).await?;
                }
                None if *if_exists => {}
                None => {
                    return Err(Error::state(
                        SqlState::OBJECT_NOT_IN_STATE,
                        format!(
                            "column \"{}\" of relation \"{}\" is not an identity column",
                            table.def.columns[at].name, table.def.name
                        ),
                    ));
                }
            }
        }
        AlterOperation::SetSchema(name) => {
            refuse_views(scope, table, "move")?;
            let schema = scope.creation_schema(Some(&fold(name)))?;
            let temporary = scope.catalog.schema_name(schema).starts_with(FIRST_SESSION_SCHEMA);
            if table.temporary || temporary {
                return Err(Error::state(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "cannot move objects into or out of temporary schemas",
                ));
            }
            let mut writer = writer(scope, &txn);
            for index in &table.indexes {
                writer.replace(Object::Index(Index { schema, ..index.def.clone() })).await?;
            }
            for sequence in scope.catalog.owned_sequences(id) {
                let mut sequence = sequence.as_ref().clone();
                sequence.schema = schema;
                writer.replace(Object::Sequence(sequence)).await?;
            }
            txn.set_catalog(writer.catalog().clone());
            def.schema = schema;
            put(&scope.with_catalog(writer.catalog().clone()), def, false).await?;
        }
        AlterOperation::OwnerTo(owner) => {
            let own = scope.session.principal.name();
            let owner = if matches!(owner.as_str(), "current_user" | "session_user" | "current_role") {
                own
            } else {
                owner.as_str()
            };
            if owner != own && owner != base::Principal::admin().name() {
                return Err(Error::state(SqlState::UNDEFINED_OBJECT, format!("role \"{owner}\" does not exist")));
            }
            def.owner = Some(owner.to_owned());
            put(scope, def, false).await?;
        }
        AlterOperation::SetOptions(options) => {
            let name = options.first().map_or("", |option| option.name.as_str());
            return Err(Error::unsupported(format!("the table option \"{name}\"")));
        }
        AlterOperation::SetMerge { .. } => return Err(Error::unsupported("SET MERGE")),
    }
    Ok(id)
}

fn no_constraint(table: &TableEntry, name: &str) -> Error {
    Error::state(
        SqlState::UNDEFINED_OBJECT,
        format!("constraint \"{name}\" of relation \"{}\" does not exist", table.def.name),
    )
}

/// Renames a column inside an expression.
fn rename_in(text: &str, from: &str, to: &str) -> Result<String> {
    let mut expr = parse_expr(text)?;
    let _ = ast::visit_expressions_mut(&mut expr, |expr| {
        match expr {
            ast::Expr::Identifier(ident) if fold(ident) == from => *ident = identifier(to),
            ast::Expr::CompoundIdentifier(idents) => {
                if let Some(last) = idents.last_mut().filter(|last| fold(last) == from) {
                    *last = identifier(to);
                }
            }
            _ => {}
        }
        ControlFlow::<()>::Continue(())
    });
    Ok(expr.to_string())
}

fn mentions(text: &str, name: &str) -> Result<bool> {
    let expr = parse_expr(text)?;
    Ok(ast::visit_expressions(&expr, |expr| {
        let last = match expr {
            ast::Expr::Identifier(ident) => Some(ident),
            ast::Expr::CompoundIdentifier(idents) => idents.last(),
            _ => None,
        };
        if last.is_some_and(|ident| fold(ident) == name) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .is_break())
}

async fn add_column(
    scope: &Scope,
    table: &Arc<TableEntry>,
    definition: &st::ColumnDefinition,
    constraints: &[st::ConstraintDefinition],
) -> Result<ObjectId> {
    let txn = scope.writing()?.clone();
    let mut def = table.def.clone();
    let mut writer = writer(scope, &txn);
    let number = def.next_column;
    def.next_column += 1;
    let mut new = column(scope, &mut writer, (def.id, def.schema, &def.name), number, definition).await?;
    txn.set_catalog(writer.catalog().clone());
    let scope = &scope.with_catalog(writer.catalog().clone());
    let sql_type = SqlType::parse(&new.sql_type)?;
    let is_empty = txn.storage.view(&table.stored).map_err(Error::classified)?.row_count().rows == 0;
    let required = !new.nullable;
    // Rows that are there get the default: as a constant kept with the column, or, when it differs by row, by an UPDATE.
    let mut fill: Option<ast::Expr> = None;
    if let Some(default) = &definition.default {
        let binder = Binder::plain(scope);
        if crate::plan::is_volatile(&binder.expr(default.clone(), &datafusion::common::DFSchema::empty())?)? {
            fill = Some(default.clone());
        } else {
            let value = binder.constant(default.clone())?;
            if !value.is_null() {
                new.missing = Some(encode_value(&cast_to_array(scope, value, &sql_type.field_ref(&new.name))?)?);
            }
        }
    } else if let Some(identity) = &new.identity {
        fill = Some(parse_expr(&format!("{}({})", crate::plan::NEXT_IDENTITY, identity.sequence))?);
    } else if let Some(generated) = &definition.generated {
        fill = Some(generated.clone());
    }
    if required && !is_empty && new.missing.is_none() && fill.is_none() {
        return Err(Error::state(
            SqlState::NOT_NULL_VIOLATION,
            format!("column \"{}\" of relation \"{}\" contains null values", new.name, def.name),
        ));
    }
    let name = new.name.clone();
    let generated = new.generated.take();
    if fill.is_some() && required {
        new.nullable = true;
    }
    def.columns.push(new);
    let entry = put(scope, def, true).await?;
    if let Some(value) = fill.filter(|_| !is_empty) {
        let scope = scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
        let schema = scope.catalog.schema_name(entry.def.schema).to_owned();
        let update = st::Update {
            with: None,
            table: table_factor(ast::ObjectName::from(vec![identifier(&schema), identifier(&entry.def.name)]), None),
            assignments: vec![st::Assignment { column: identifier(&name), value }],
            from: Vec::new(),
            selection: None,
            returning: Vec::new(),
        };
        crate::dml::update::run(&scope, &update).await?;
    }
    if generated.is_some() || (required && entry.def.columns.last().is_some_and(|column| column.nullable)) {
        let scope = scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
        let mut def = entry.def.clone();
        if let Some(at) = def.position_of(number) {
            def.columns[at].nullable = !required;
            def.columns[at].generated = generated;
        }
        put(&scope, def, true).await?;
    }
    let mut id = entry.def.id;
    for definition in constraints {
        let scope = scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
        let table = scope.catalog.table_by_id(id)?.clone();
        id = Box::pin(add_constraint(&scope, &table, definition, false)).await?;
    }
    Ok(id)
}

async fn drop_column(scope: &Scope, table: &Arc<TableEntry>, at: usize, cascade: bool) -> Result<()> {
    let txn = scope.writing()?.clone();
    let mut def = table.def.clone();
    let (column, name) = (def.columns[at].id, def.columns[at].name.clone());
    if def.primary_key.as_ref().is_some_and(|key| key.columns.contains(&column)) {
        return Err(Error::unsupported(format!("dropping column \"{name}\", which is part of the primary key,"))
            .with_hint("drop the primary key first with ALTER TABLE … DROP CONSTRAINT"));
    }
    let mut writer = writer(scope, &txn);
    let views = writer.catalog().dependents(def.id);
    let mut list: Vec<String> = views
        .iter()
        .map(|view| format!("view {} depends on column {name} of table {}", view.name(), def.name))
        .collect();
    for (child, number) in &table.referenced_by {
        let child = writer.catalog().table_by_id(*child)?;
        let key = &child.def.foreign_keys[*number];
        if key.referred.contains(&column) {
            list.push(format!(
                "constraint {} on table {} depends on column {name} of table {}",
                key.name, child.def.name, def.name
            ));
        }
    }
    if !list.is_empty() && !cascade {
        return Err(needed(&format!("column {name} of table {}", def.name), &list));
    }
    for view in views {
        view::drop(&mut writer, view.id(), view.name(), true).await?;
    }
    let children: Vec<ObjectId> =
        table.referenced_by.iter().map(|(child, _)| *child).filter(|child| *child != def.id).collect();
    for child in children {
        let mut child = writer.catalog().table_by_id(child)?.def.clone();
        let before = child.foreign_keys.len();
        child.foreign_keys.retain(|key| key.table != def.id || !key.referred.contains(&column));
        if child.foreign_keys.len() < before {
            writer.replace(Object::Table(child)).await?;
        }
    }
    for index in table.indexes.iter().filter(|index| index.def.columns.contains(&column)) {
        writer.drop_index(index.def.id).await?;
    }
    for sequence in writer.catalog().owned_sequences(def.id) {
        if sequence.owned_by == Some((def.id, column)) {
            writer.remove(sequence.id).await?;
        }
    }
    txn.set_catalog(writer.catalog().clone());
    let mut checks = Vec::new();
    for check in std::mem::take(&mut def.checks) {
        if !mentions(&check.expression, &name)? {
            checks.push(check);
        }
    }
    def.checks = checks;
    def.foreign_keys
        .retain(|key| !key.columns.contains(&column) && (key.table != def.id || !key.referred.contains(&column)));
    for other in &def.columns {
        if let Some(generated) = &other.generated {
            if other.id != column && mentions(generated, &name)? {
                return Err(needed(
                    &format!("column {name} of table {}", def.name),
                    &[format!("column {} of table {} depends on column {name}", other.name, def.name)],
                ));
            }
        }
    }
    let dropped = &mut def.columns[at];
    dropped.dropped = true;
    dropped.nullable = true;
    dropped.name = format!("........dropped.{column}........");
    dropped.default = None;
    dropped.generated = None;
    dropped.identity = None;
    put(&scope.with_catalog(writer.catalog().clone()), def, true).await?;
    Ok(())
}

async fn add_constraint(
    scope: &Scope,
    table: &Arc<TableEntry>,
    definition: &st::ConstraintDefinition,
    not_valid: bool,
) -> Result<ObjectId> {
    let txn = scope.writing()?.clone();
    let mut def = table.def.clone();
    let catalog = scope.catalog.clone();
    let before = (def.checks.len(), def.foreign_keys.len());
    let made = constraint(scope, &mut def, definition, &catalog).await?;
    if let Some(index) = made {
        let mut writer = writer(scope, &txn);
        index::add(&mut writer, &txn, table, index).await?;
        txn.set_catalog(writer.catalog().clone());
        return Ok(def.id);
    }
    if def.checks.len() > before.0 {
        check_expressions(scope, &def)?;
        let check = &def.checks[before.0];
        if !not_valid {
            validate_check(scope, table, &check.name, &check.expression).await?;
        }
        let id = def.id;
        put(scope, def, false).await?;
        return Ok(id);
    }
    if def.foreign_keys.len() > before.1 {
        let (id, at) = (def.id, before.1);
        let entry = put(scope, def, false).await?;
        if !not_valid {
            let scope = scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
            validate_foreign_key(&scope, &entry, at).await?;
        }
        return Ok(id);
    }
    // A primary key is how rows are stored: they move to a new table.
    for &column in def.primary_key.iter().flat_map(|key| &key.columns) {
        if let Some(at) = table.def.position_of(column) {
            validate_not_null(scope, table, at).await?;
        }
    }
    def.columns.retain(|column| !column.is_hidden());
    rebuild(scope, table, def, BTreeMap::new()).await
}

async fn drop_constraint(
    scope: &Scope,
    table: &Arc<TableEntry>,
    name: &str,
    if_exists: bool,
    cascade: bool,
) -> Result<ObjectId> {
    let txn = scope.writing()?.clone();
    let mut def = table.def.clone();
    let id = def.id;
    // Foreign keys stand on keys: they go first.
    let columns =
        match (&def.primary_key, table.indexes.iter().find(|index| index.def.constraint && index.def.name == name)) {
            (Some(key), _) if key.name == name => Some(key.columns.clone()),
            (_, Some(index)) => Some(index.def.columns.clone()),
            _ => None,
        };
    if let Some(columns) = &columns {
        let same = |other: &[u32]| other.len() == columns.len() && other.iter().all(|id| columns.contains(id));
        let mut writer = writer(scope, &txn);
        let mut list = Vec::new();
        for (child, number) in &table.referenced_by {
            let child = writer.catalog().table_by_id(*child)?;
            let key = &child.def.foreign_keys[*number];
            if same(&key.referred) {
                list.push(format!("constraint {} on table {} depends on constraint {name}", key.name, child.def.name));
            }
        }
        if !list.is_empty() && !cascade {
            return Err(needed(&format!("constraint {name} on table {}", def.name), &list));
        }
        let mut children: Vec<ObjectId> = table.referenced_by.iter().map(|(child, _)| *child).collect();
        children.dedup();
        for child in children {
            let mut child_def =
                if child == id { def.clone() } else { writer.catalog().table_by_id(child)?.def.clone() };
            child_def.foreign_keys.retain(|key| key.table != id || !same(&key.referred));
            if child == id {
                def = child_def.clone();
            }
            writer.replace(Object::Table(child_def)).await?;
        }
        txn.set_catalog(writer.catalog().clone());
    }
    let scope = &scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
    let table = scope.catalog.table_by_id(id)?.clone();
    if def.primary_key.as_ref().is_some_and(|key| key.name == name) {
        def.primary_key = None;
        return rebuild(scope, &table, def, BTreeMap::new()).await;
    }
    if let Some(index) = table.indexes.iter().find(|index| index.def.constraint && index.def.name == name) {
        let mut writer = writer(scope, &txn);
        writer.drop_index(index.def.id).await?;
        txn.set_catalog(writer.catalog().clone());
        return Ok(id);
    }
    let before = def.checks.len() + def.foreign_keys.len();
    def.checks.retain(|check| check.name != name);
    def.foreign_keys.retain(|key| key.name != name);
    if def.checks.len() + def.foreign_keys.len() == before {
        return if if_exists { Ok(id) } else { Err(no_constraint(&table, name)) };
    }
    put(scope, def, false).await?;
    Ok(id)
}

async fn set_type(
    scope: &Scope,
    table: &Arc<TableEntry>,
    at: usize,
    data_type: &ast::DataType,
    using: Option<&ast::Expr>,
) -> Result<ObjectId> {
    refuse_views(scope, table, "alter the type of a column")?;
    let mut def = table.def.clone();
    let (old, new) = (table.types[at].clone(), SqlType::from_ast(data_type)?);
    let id = def.id;
    let longer = match (old.length(), new.length()) {
        (_, None) => true,
        (Some(old), Some(new)) => new >= old,
        (None, Some(_)) => false,
    };
    let same_form =
        old.data_type() == new.data_type() && old.field("", true).metadata() == new.field("", true).metadata();
    def.columns[at].sql_type = new.name().to_owned();
    if let Some(default) = &def.columns[at].default {
        check_default(scope, &parse_expr(default)?, &new, &def.columns[at].name)?;
    }
    if same_form && longer && using.is_none() {
        put(scope, def, true).await?;
        return Ok(id);
    }
    let value = match using {
        Some(using) => using.clone(),
        None => ast::Expr::Identifier(identifier(&def.columns[at].name)),
    };
    let values = BTreeMap::from([(at, value)]);
    rebuild(scope, table, def, values).await
}

/// Makes a new table with this definition, moves the rows over, and puts it in the old one's place. `values` are new values by
/// position in the old table.
async fn rebuild(
    scope: &Scope,
    table: &Arc<TableEntry>,
    mut def: Table,
    values: BTreeMap<usize, ast::Expr>,
) -> Result<ObjectId> {
    let txn = scope.writing()?.clone();
    let old_id = table.def.id;
    let new_id_ = new_id(scope).await?;
    // The SELECT runs over the old table, in the order of the new one's columns.
    let alias = identifier(&table.def.name);
    let live: Vec<usize> = table.visible.clone();
    let items = live
        .iter()
        .map(|&at| {
            let name = &table.def.columns[at].name;
            let value = values.get(&at).cloned().unwrap_or_else(|| qualified(&alias, name));
            crate::plan::item(value, name)
        })
        .collect();
    let schema = scope.catalog.schema_name(table.def.schema).to_owned();
    let name = ast::ObjectName::from(vec![identifier(&schema), identifier(&table.def.name)]);
    let from = ast::TableWithJoins { relation: table_factor(name, Some(alias)), joins: Vec::new() };
    let plan =
        crate::dml::plan(scope, select(None, items, vec![from], None), crate::plan::Overrides::default()).await?;
    let columns = plan.schema().columns();
    let exprs: Vec<Expr> = columns
        .into_iter()
        .zip(&live)
        .map(|(column, &at)| {
            let sql_type = SqlType::parse(
                &def.columns
                    .iter()
                    .find(|new| new.id == table.def.columns[at].id)
                    .map_or("text", |new| new.sql_type.as_str()),
            )?;
            let name = table.def.columns[at].name.clone();
            Ok(Expr::Cast(Cast::new_from_field(Box::new(Expr::Column(column)), sql_type.field_ref(&name))).alias(name))
        })
        .collect::<Result<_>>()?;
    let plan = datafusion::logical_expr::LogicalPlanBuilder::from(plan).project(exprs)?.build()?;

    let mut writer = writer(scope, &txn);
    let indexes: Vec<Index> = table.indexes.iter().map(|index| index.def.clone()).collect();
    let sequences = writer.catalog().owned_sequences(old_id);
    let children: Vec<ObjectId> = {
        let mut children: Vec<ObjectId> =
            table.referenced_by.iter().map(|(child, _)| *child).filter(|child| *child != old_id).collect();
        children.dedup();
        children
    };
    for sequence in &sequences {
        let mut moved = sequence.as_ref().clone();
        moved.owned_by = moved.owned_by.map(|(_, column)| (new_id_, column));
        writer.replace(Object::Sequence(moved)).await?;
    }
    for index in &indexes {
        writer.drop_index(index.id).await?;
    }
    def.id = new_id_;
    def.version = 1;
    def.columns.retain(|column| !column.dropped && !column.is_hidden());
    for column in &mut def.columns {
        column.missing = None;
    }
    for key in def.foreign_keys.iter_mut().filter(|key| key.table == old_id) {
        key.table = new_id_;
    }
    // The old table gives up its name before the new one takes it; its rows are read by the plan made above.
    writer.remove(old_id).await?;
    let generated: Vec<(u32, String)> = def
        .columns
        .iter_mut()
        .filter_map(|column| column.generated.take().map(|generated| (column.id, generated)))
        .collect();
    let entry = publish(&mut writer, &txn, def, Vec::new()).await?;
    for child in children {
        let mut child = writer.catalog().table_by_id(child)?.def.clone();
        for key in child.foreign_keys.iter_mut().filter(|key| key.table == old_id) {
            key.table = new_id_;
        }
        writer.replace(Object::Table(child)).await?;
    }
    for view in writer.catalog().dependents(old_id) {
        let Relation::View(view) = view else { continue };
        let mut view = view.as_ref().clone();
        let reads = view.reads.iter_mut().flatten().map(|read| &mut read.id);
        for id in view.depends.iter_mut().chain(reads).filter(|id| **id == old_id) {
            *id = new_id_;
        }
        writer.replace(Object::View(view)).await?;
    }
    txn.set_catalog(writer.catalog().clone());
    let inner = scope.with_catalog(writer.catalog().clone());
    crate::dml::insert::insert_plan(&inner, &entry, plan).await?;
    txn.storage.drop_table(base::TableId(old_id)).map_err(Error::classified)?;
    if !generated.is_empty() {
        let mut def = entry.def.clone();
        for (id, text) in generated {
            if let Some(at) = def.position_of(id) {
                def.columns[at].generated = Some(text);
            }
        }
        writer.replace(Object::Table(def)).await?;
    }
    let entry = writer.catalog().table_by_id(new_id_)?.clone();
    for old in indexes {
        let index = Index { id: new_id(scope).await?, table: new_id_, ..old };
        index::add(&mut writer, &txn, &entry, index).await?;
    }
    txn.set_catalog(writer.catalog().clone());
    Ok(new_id_)
}

/// Fails if a query returns a row.
async fn none(scope: &Scope, query: ast::Query, error: impl FnOnce() -> Error) -> Result<()> {
    let mut stream = run_query(scope, query).await?;
    while let Some(batch) = stream.next().await {
        if batch?.num_rows() > 0 {
            return Err(error());
        }
    }
    Ok(())
}

fn rows_where(scope: &Scope, table: &TableEntry, condition: ast::Expr) -> Result<ast::Query> {
    let schema = scope.catalog.schema_name(table.def.schema).to_owned();
    let name = ast::ObjectName::from(vec![identifier(&schema), identifier(&table.def.name)]);
    let from =
        ast::TableWithJoins { relation: table_factor(name, Some(identifier(&table.def.name))), joins: Vec::new() };
    let mut query = select(None, vec![crate::plan::item(parse_expr("1")?, "one")], vec![from], Some(condition));
    query.limit_clause = crate::plan::parse_query("SELECT 1 LIMIT 1")?.limit_clause;
    Ok(query)
}

async fn validate_check(scope: &Scope, table: &TableEntry, name: &str, expression: &str) -> Result<()> {
    let condition = parse_expr(&format!("NOT ({expression})"))?;
    none(scope, rows_where(scope, table, condition)?, || {
        Error::state(
            SqlState::CHECK_VIOLATION,
            format!("check constraint \"{name}\" of relation \"{}\" is violated by some row", table.def.name),
        )
    })
    .await
}

async fn validate_not_null(scope: &Scope, table: &TableEntry, at: usize) -> Result<()> {
    let column = &table.def.columns[at].name;
    let condition = ast::Expr::IsNull(Box::new(ast::Expr::Identifier(identifier(column))));
    none(scope, rows_where(scope, table, condition)?, || {
        Error::state(
            SqlState::NOT_NULL_VIOLATION,
            format!("column \"{column}\" of relation \"{}\" contains null values", table.def.name),
        )
    })
    .await
}

async fn validate_foreign_key(scope: &Scope, table: &TableEntry, at: usize) -> Result<()> {
    let key = &table.def.foreign_keys[at];
    let parent = scope.catalog.table_by_id(key.table)?;
    let quote = |name: &str| identifier(name).to_string();
    let full = |table: &TableEntry| {
        format!("{}.{}", quote(scope.catalog.schema_name(table.def.schema)), quote(&table.def.name))
    };
    let pairs: Vec<(String, String)> = key
        .columns
        .iter()
        .zip(&key.referred)
        .map(|(&from, &to)| (quote(table.def.column_name(from)), quote(parent.def.column_name(to))))
        .collect();
    let join: Vec<String> = pairs.iter().map(|(from, to)| format!("c.{from} = p.{to}")).collect();
    let given: Vec<String> = pairs.iter().map(|(from, _)| format!("c.{from} IS NOT NULL")).collect();
    let text = format!(
        "SELECT 1 FROM {} AS c LEFT JOIN {} AS p ON {} WHERE {} AND p.{} IS NULL LIMIT 1",
        full(table),
        full(parent),
        join.join(" AND "),
        given.join(" AND "),
        pairs[0].1
    );
    none(scope, crate::plan::parse_query(&text)?, || {
        Error::state(
            SqlState::FOREIGN_KEY_VIOLATION,
            format!(
                "insert or update on table \"{}\" violates foreign key constraint \"{}\"",
                table.def.name, key.name
            ),
        )
    })
    .await
}

/// `ALTER … RENAME TO`.
pub(super) async fn rename(scope: &Scope, rename: &st::Rename) -> Result<()> {
    let txn = scope.writing()?.clone();
    if rename.kind == ObjectKind::Schema {
        let (_, name) = scope.split_name(&rename.name)?;
        let mut writer = writer(scope, &txn);
        let Some(schema) = writer.catalog().schema(&name).cloned() else {
            return Err(Error::state(SqlState::INVALID_SCHEMA_NAME, format!("schema \"{name}\" does not exist")));
        };
        let mut schema = schema.as_ref().clone();
        schema.name = scope.split_name(&rename.to)?.1;
        writer.replace(Object::Schema(schema)).await?;
        txn.set_catalog(writer.catalog().clone());
        return Ok(());
    }
    let relation = match scope.relation(&rename.name) {
        Ok(relation) => relation.clone(),
        Err(error) if rename.if_exists && error.sqlstate == SqlState::UNDEFINED_TABLE => return Ok(()),
        Err(error) => return Err(error),
    };
    let name = scope.split_name(&rename.to)?.1;
    let object = match (relation, rename.kind) {
        (Relation::Table(table), ObjectKind::Table) => {
            let operation = AlterOperation::RenameTable(rename.to.clone());
            let (scope, table) = take_definition(scope, &table).await?;
            apply(&scope, &table, &operation).await?;
            return Ok(());
        }
        (Relation::View(view), ObjectKind::View) => {
            if !scope.catalog.dependents(view.id).is_empty() {
                return Err(Error::state(SqlState::FEATURE_NOT_SUPPORTED, "cannot rename a view used by a view"));
            }
            let mut view = view.as_ref().clone();
            view.name = name;
            Object::View(view)
        }
        (Relation::Index(index), ObjectKind::Index) => Object::Index(Index { name, ..index.def.clone() }),
        (Relation::Sequence(sequence), ObjectKind::Sequence) => {
            let mut sequence = sequence.as_ref().clone();
            sequence.name = name;
            Object::Sequence(sequence)
        }
        (other, kind) => {
            return Err(Error::state(
                SqlState::WRONG_OBJECT_TYPE,
                format!("\"{}\" is not a {}", other.name(), kind.word()),
            ));
        }
    };
    let mut writer: CatalogWriter<'_> = writer(scope, &txn);
    writer.replace(object).await?;
    txn.set_catalog(writer.catalog().clone());
    Ok(())
}
