//! CREATE TABLE, CREATE TABLE AS, DROP TABLE.

use std::sync::Arc;

use arrow::datatypes::DataType;
use base::SqlState;
use datafusion::common::DFSchema;
use datafusion::logical_expr::{Cast, Expr};
use sqlparser::ast;

use super::{index, needed, new_id, schema, sequence, take_definition, view, writer};
use crate::catalog::{
    Action, CatalogWriter, Check, Column, ForeignKey, Identity, Index, Object, ObjectId, PrimaryKey, Relation, SqlType,
    Table, TableEntry,
};
use crate::dml::Written;
use crate::parse::statement as st;
use crate::plan::{Binder, Overrides, RowExpr, Scope, client_schema, fold};
use crate::session::Produced;
use crate::transaction::Txn;
use crate::{Error, Result};

/// A new column; its identity's sequence is created beside it.
pub(super) async fn column(
    scope: &Scope,
    writer: &mut CatalogWriter<'_>,
    table: (ObjectId, ObjectId, &str),
    id: u32,
    definition: &st::ColumnDefinition,
) -> Result<Column> {
    let (table_id, schema, table_name) = table;
    let name = fold(&definition.name);
    if crate::scan::HIDDEN.contains(&name.as_str()) || name.starts_with("_valid_") {
        return Err(Error::state(
            SqlState::RESERVED_NAME,
            format!("column name \"{name}\" is reserved for the system"),
        ));
    }
    let sql_type = SqlType::from_ast(&definition.data_type)?;
    let mut column = Column {
        id,
        name: name.clone(),
        sql_type: sql_type.name().to_owned(),
        nullable: !definition.not_null,
        dropped: false,
        default: None,
        generated: definition.generated.as_ref().map(ToString::to_string),
        identity: None,
        missing: None,
        comment: None,
    };
    if let Some(default) = &definition.default {
        column.default = Some(check_default(scope, default, &sql_type, &name)?);
    }
    if let Some(identity) = &definition.identity {
        column.identity = Some(
            self::identity(scope, writer, (table_id, schema, table_name), (id, &name), &sql_type, identity).await?,
        );
        column.nullable = false;
    }
    Ok(column)
}

/// Makes the sequence behind an identity column.
pub(super) async fn identity(
    scope: &Scope,
    writer: &mut CatalogWriter<'_>,
    (table_id, schema, table_name): (ObjectId, ObjectId, &str),
    (column_id, column): (u32, &str),
    sql_type: &SqlType,
    identity: &st::Identity,
) -> Result<Identity> {
    check_identity_type(sql_type)?;
    let name = sequence::name_for(writer, schema, table_name, column);
    let mut sequence = sequence::define(new_id(scope).await?, schema, &name, sql_type.name(), &identity.sequence)?;
    sequence.owned_by = Some((table_id, column_id));
    sequence.internal = true;
    let id = sequence.id;
    writer.create(Object::Sequence(sequence)).await?;
    Ok(Identity { always: identity.always, sequence: id })
}

/// Only integers count.
pub(super) fn check_identity_type(sql_type: &SqlType) -> Result<()> {
    if matches!(sql_type.data_type(), DataType::Int16 | DataType::Int32 | DataType::Int64) {
        return Ok(());
    }
    Err(Error::state(SqlState::INVALID_PARAMETER_VALUE, "identity column type must be smallint, integer, or bigint"))
}

/// Checks that a default has its column's type; returns its text.
pub(super) fn check_default(scope: &Scope, default: &ast::Expr, sql_type: &SqlType, name: &str) -> Result<String> {
    let binder = Binder::plain(scope);
    let planned = binder.expr(default.clone(), &DFSchema::empty())?;
    if !planned.column_refs().is_empty() {
        return Err(Error::unsupported("a column reference in DEFAULT"));
    }
    let cast = Expr::Cast(Cast::new_from_field(Box::new(planned), sql_type.field_ref(name)));
    RowCheck::plan(scope, cast).map_err(|error| error.context(format!("default of column \"{name}\"")))?;
    Ok(default.to_string())
}

/// Type-checks an expression that reads nothing.
struct RowCheck;

impl RowCheck {
    fn plan(scope: &Scope, expr: Expr) -> Result<()> {
        let plan = datafusion::logical_expr::LogicalPlanBuilder::empty(true).project(vec![expr])?.build()?;
        scope.state().analyzer().execute_and_check(plan, scope.state().config_options(), |_, _| {})?;
        Ok(())
    }
}

/// A constraint of a table that is being defined. UNIQUE comes back as an index to make.
pub(super) async fn constraint(
    scope: &Scope,
    table: &mut Table,
    definition: &st::ConstraintDefinition,
    catalog: &crate::catalog::Catalog,
) -> Result<Option<Index>> {
    let given = definition.name.as_ref().map(fold);
    let ids = |table: &Table, names: &[ast::Ident]| -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(names.len());
        for name in names {
            let name = fold(name);
            let at = table.position(&name).ok_or_else(|| {
                Error::state(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" named in key does not exist"))
            })?;
            let id = table.columns[at].id;
            if ids.contains(&id) {
                return Err(Error::state(
                    SqlState::DUPLICATE_COLUMN,
                    format!("column \"{name}\" appears twice in a key"),
                ));
            }
            ids.push(id);
        }
        Ok(ids)
    };
    match &definition.rule {
        st::Constraint::PrimaryKey(columns) => {
            if table.primary_key.is_some() {
                return Err(Error::state(
                    SqlState::INVALID_TABLE_DEFINITION,
                    format!("multiple primary keys for table \"{}\" are not allowed", table.name),
                ));
            }
            let columns = ids(table, columns)?;
            for column in &mut table.columns {
                if columns.contains(&column.id) {
                    column.nullable = false;
                }
            }
            let name = given.unwrap_or_else(|| format!("{}_pkey", table.name));
            table.primary_key = Some(PrimaryKey { name, columns });
            Ok(None)
        }
        st::Constraint::Unique { columns, nulls_distinct } => {
            let columns = ids(table, columns)?;
            let names: Vec<&str> = columns.iter().map(|&id| table.column_name(id)).collect();
            let name = given.unwrap_or_else(|| format!("{}_{}_key", table.name, names.join("_")));
            Ok(Some(Index {
                id: new_id(scope).await?,
                schema: table.schema,
                name,
                table: table.id,
                columns,
                unique: true,
                constraint: true,
                nulls_distinct: *nulls_distinct,
                comment: None,
            }))
        }
        st::Constraint::Check(expression) => {
            let mut mentioned = Vec::new();
            let _ = ast::visit_expressions(expression, |expr| {
                if let ast::Expr::Identifier(ident) = expr {
                    let name = fold(ident);
                    if table.position(&name).is_some() && !mentioned.contains(&name) {
                        mentioned.push(name);
                    }
                }
                std::ops::ControlFlow::<()>::Continue(())
            });
            let base = match mentioned.as_slice() {
                [one] => format!("{}_{one}_check", table.name),
                _ => format!("{}_check", table.name),
            };
            let name = given.unwrap_or_else(|| unused(table, &base));
            refuse_taken(table, &name)?;
            table.checks.push(Check { name, expression: expression.to_string() });
            Ok(None)
        }
        st::Constraint::ForeignKey { columns, table: parent, referred, on_delete, on_update } => {
            let columns = ids(table, columns)?;
            let names: Vec<&str> = columns.iter().map(|&id| table.column_name(id)).collect();
            let name = given.unwrap_or_else(|| unused(table, &format!("{}_{}_fkey", table.name, names.join("_"))));
            refuse_taken(table, &name)?;
            // A table may refer to itself before it exists.
            let (schema, parent_name) = scope.split_name(parent)?;
            let own = parent_name == table.name
                && schema.as_deref().is_none_or(|schema| schema == catalog.schema_name(table.schema));
            let known = scope.with_catalog(Arc::new(catalog.with([])?));
            let parent = match known.table(parent) {
                Ok(parent) if !own || parent.def.id == table.id => parent,
                Err(error) if !own => return Err(error),
                _ => Arc::new(TableEntry::new(finished(table))?),
            };
            let referred = if referred.is_empty() {
                parent.def.primary_key.as_ref().map(|key| key.columns.clone()).ok_or_else(|| {
                    Error::state(
                        SqlState::UNDEFINED_OBJECT,
                        format!("there is no primary key for referenced table \"{}\"", parent.def.name),
                    )
                })?
            } else {
                ids(&parent.def, referred)?
            };
            if referred.len() != columns.len() {
                return Err(Error::state(
                    SqlState::INVALID_FOREIGN_KEY,
                    "number of referencing and referenced columns for foreign key disagree",
                ));
            }
            if !own && parent.unique_over(&referred).is_none() {
                return Err(Error::state(
                    SqlState::INVALID_FOREIGN_KEY,
                    format!(
                        "there is no unique constraint matching given keys for referenced table \"{}\"",
                        parent.def.name
                    ),
                ));
            }
            for (&from, &to) in columns.iter().zip(&referred) {
                let from = table.column(from).map(|column| SqlType::parse(&column.sql_type)).transpose()?;
                let to = parent.def.column(to).map(|column| SqlType::parse(&column.sql_type)).transpose()?;
                if let (Some(from), Some(to)) = (from, to) {
                    let numbers = from.data_type().is_integer() && to.data_type().is_integer();
                    if from.data_type() != to.data_type() && !numbers {
                        return Err(Error::state(
                            SqlState::DATATYPE_MISMATCH,
                            format!("foreign key constraint \"{name}\" cannot be implemented"),
                        )
                        .with_detail(format!(
                            "Key columns are of incompatible types: {} and {}.",
                            from.name(),
                            to.name()
                        )));
                    }
                }
            }
            let action = |action: &Option<ast::ReferentialAction>| match action {
                None | Some(ast::ReferentialAction::NoAction) => Action::NoAction,
                Some(ast::ReferentialAction::Restrict) => Action::Restrict,
                Some(ast::ReferentialAction::Cascade) => Action::Cascade,
                Some(ast::ReferentialAction::SetNull) => Action::SetNull,
                Some(ast::ReferentialAction::SetDefault) => Action::SetDefault,
            };
            table.foreign_keys.push(ForeignKey {
                name,
                columns,
                table: if own { table.id } else { parent.def.id },
                referred,
                on_delete: action(on_delete),
                on_update: action(on_update),
            });
            Ok(None)
        }
    }
}

/// The tables that new foreign keys refer to. One that does not exist is the new table itself, or reported later.
pub(super) fn parents<'a>(
    scope: &Scope,
    constraints: impl IntoIterator<Item = &'a st::ConstraintDefinition>,
) -> Vec<Arc<TableEntry>> {
    let parent = |constraint: &st::ConstraintDefinition| match &constraint.rule {
        st::Constraint::ForeignKey { table, .. } => scope.table(table).ok(),
        _ => None,
    };
    constraints.into_iter().filter_map(parent).collect()
}

fn refuse_taken(table: &Table, name: &str) -> Result<()> {
    let taken = table.checks.iter().any(|check| check.name == name)
        || table.foreign_keys.iter().any(|key| key.name == name)
        || table.primary_key.as_ref().is_some_and(|key| key.name == name);
    if taken {
        return Err(Error::state(
            SqlState::DUPLICATE_OBJECT,
            format!("constraint \"{name}\" for relation \"{}\" already exists", table.name),
        ));
    }
    Ok(())
}

fn unused(table: &Table, base: &str) -> String {
    let taken = |name: &str| refuse_taken(table, name).is_err();
    if !taken(base) {
        return base.to_owned();
    }
    (1..).map(|number| format!("{base}{number}")).find(|name| !taken(name)).unwrap_or_else(|| base.to_owned())
}

/// The table with a hidden key if it needs one.
fn finished(table: &Table) -> Table {
    let mut table = table.clone();
    if table.primary_key.is_none() && !table.columns.iter().any(Column::is_hidden) {
        table.add_hidden_key();
    }
    table
}

/// Puts a defined table with its unique constraints into the catalog and into storage.
pub(super) async fn publish(
    writer: &mut CatalogWriter<'_>,
    txn: &Txn,
    table: Table,
    indexes: Vec<Index>,
) -> Result<Arc<TableEntry>> {
    let table = finished(&table);
    let id = table.id;
    let entry = TableEntry::new(table.clone())?;
    codec::KeyCodec::new(&entry.stored).map_err(|error| {
        Error::state(
            SqlState::FEATURE_NOT_SUPPORTED,
            format!("the primary key of \"{}\" cannot be stored: {error}", table.name),
        )
    })?;
    txn.storage.define(entry.stored.clone()).map_err(Error::classified)?;
    writer.create(Object::Table(table)).await?;
    let entry = writer.catalog().table_by_id(id)?.clone();
    for index in indexes {
        index::add(writer, txn, &entry, index).await?;
    }
    Ok(writer.catalog().table_by_id(id)?.clone())
}

fn refuse_options(options: &[st::TableOption]) -> Result<()> {
    match options.first() {
        Some(option) => Err(Error::unsupported(format!("the table option \"{}\"", option.name))),
        None => Ok(()),
    }
}

fn on_commit(temporary: bool, action: Option<st::OnCommit>) -> Result<Option<String>> {
    match action {
        None | Some(st::OnCommit::PreserveRows) => Ok(None),
        Some(_) if !temporary => {
            Err(Error::state(SqlState::INVALID_TABLE_DEFINITION, "ON COMMIT can only be used on temporary tables"))
        }
        Some(st::OnCommit::DeleteRows) => Ok(Some("delete".to_owned())),
        Some(st::OnCommit::Drop) => Err(Error::unsupported("ON COMMIT DROP")),
    }
}

fn empty(scope: &Scope, id: ObjectId, schema: ObjectId, name: &str) -> Table {
    Table {
        id,
        schema,
        name: name.to_owned(),
        version: 1,
        columns: Vec::new(),
        next_column: 1,
        primary_key: None,
        checks: Vec::new(),
        foreign_keys: Vec::new(),
        comment: None,
        owner: Some(scope.session.principal.name().to_owned()),
        on_commit: None,
    }
}

pub(super) async fn create(scope: &Scope, create: &st::CreateTable) -> Result<()> {
    refuse_options(&create.options)?;
    // A row that a writer of theirs is removing would be missing as soon as it commits.
    super::seize_definitions(scope, &parents(scope, &create.constraints)).await?;
    let txn = scope.writing()?.clone();
    let mut writer = writer(scope, &txn);
    let (schema, name) = scope.split_name(&create.name)?;
    let schema = schema::for_new(scope, &mut writer, schema.as_deref(), create.temporary).await?;
    if create.if_not_exists && writer.catalog().relation(schema, &name).is_some() {
        txn.set_catalog(writer.catalog().clone());
        return Ok(());
    }
    if writer.catalog().relation(schema, &name).is_some() {
        return Err(Error::state(SqlState::DUPLICATE_TABLE, format!("relation \"{name}\" already exists")));
    }
    let mut table = empty(scope, new_id(scope).await?, schema, &name);
    table.on_commit = on_commit(create.temporary, create.on_commit)?;
    if let Some(like) = &create.like {
        let other = scope.table(&like.name)?;
        for (_, column) in other.def.live() {
            let id = table.next_column;
            table.next_column += 1;
            table.columns.push(Column {
                id,
                default: if like.defaults { column.default.clone() } else { None },
                generated: None,
                identity: None,
                missing: None,
                comment: None,
                ..column.clone()
            });
        }
    }
    let scope = &scope.with_catalog(writer.catalog().clone());
    for definition in &create.columns {
        let id = table.next_column;
        table.next_column += 1;
        let column = column(scope, &mut writer, (table.id, schema, &name), id, definition).await?;
        if table.position(&column.name).is_some() {
            return Err(Error::state(
                SqlState::DUPLICATE_COLUMN,
                format!("column \"{}\" specified more than once", column.name),
            ));
        }
        table.columns.push(column);
    }
    let mut indexes = Vec::new();
    // Keys first: foreign keys of the table to itself refer to them.
    let rank = |definition: &&st::ConstraintDefinition| match definition.rule {
        st::Constraint::PrimaryKey(_) => 0,
        st::Constraint::Unique { .. } => 1,
        st::Constraint::Check(_) => 2,
        st::Constraint::ForeignKey { .. } => 3,
    };
    let mut constraints: Vec<&st::ConstraintDefinition> = create.constraints.iter().collect();
    constraints.sort_by_key(rank);
    for definition in constraints {
        let catalog = writer.catalog().clone();
        if let Some(index) = constraint(scope, &mut table, definition, &catalog).await? {
            indexes.push(index);
        }
    }
    check_expressions(scope, &table)?;
    let entry = publish(&mut writer, &txn, table, indexes).await?;
    for key in entry.def.foreign_keys.iter().filter(|key| key.table == entry.def.id) {
        if entry.unique_over(&key.referred).is_none() {
            return Err(Error::state(
                SqlState::INVALID_FOREIGN_KEY,
                format!(
                    "there is no unique constraint matching given keys for referenced table \"{}\"",
                    entry.def.name
                ),
            ));
        }
    }
    txn.set_catalog(writer.catalog().clone());
    Ok(())
}

/// Compiles checks and generated columns, to refuse what cannot run.
pub(super) fn check_expressions(scope: &Scope, table: &Table) -> Result<()> {
    let entry = TableEntry::new(finished(table))?;
    let binder = Binder::plain(scope);
    for check in &table.checks {
        let compiled = RowExpr::compile(
            &binder,
            &[(&table.name, &entry.arrow)],
            vec![(crate::plan::parse_expr(&check.expression)?, None)],
        )?;
        compiled.condition(0, &arrow::array::RecordBatch::new_empty(entry.arrow.clone()))?;
    }
    for (at, column) in table.live() {
        if let Some(generated) = &column.generated {
            let field = entry.types[at].field_ref(&column.name);
            RowExpr::compile(
                &binder,
                &[(&table.name, &entry.arrow)],
                vec![(crate::plan::parse_expr(generated)?, Some(field))],
            )?;
        }
    }
    Ok(())
}

/// Makes a table from names and types, for CREATE TABLE AS and ingest.
pub(crate) async fn create_plain(
    scope: &Scope,
    schema: Option<&str>,
    name: &str,
    temporary: bool,
    columns: Vec<(String, String, bool)>,
    on_commit: Option<String>,
) -> Result<Arc<TableEntry>> {
    let txn = scope.writing()?.clone();
    let mut writer = writer(scope, &txn);
    let schema = schema::for_new(scope, &mut writer, schema, temporary).await?;
    let mut table = empty(scope, new_id(scope).await?, schema, name);
    table.on_commit = on_commit;
    for (name, sql_type, nullable) in columns {
        if crate::scan::HIDDEN.contains(&name.as_str()) || name.starts_with("_valid_") {
            return Err(Error::state(
                SqlState::RESERVED_NAME,
                format!("column name \"{name}\" is reserved for the system"),
            ));
        }
        let id = table.next_column;
        table.next_column += 1;
        table.columns.push(Column {
            id,
            name,
            sql_type,
            nullable,
            dropped: false,
            default: None,
            generated: None,
            identity: None,
            missing: None,
            comment: None,
        });
    }
    let entry = publish(&mut writer, &txn, table, Vec::new()).await?;
    txn.set_catalog(writer.catalog().clone());
    Ok(entry)
}

pub(super) async fn create_as(scope: &Scope, create: &st::CreateTableAs) -> Result<Produced> {
    refuse_options(&create.options)?;
    let txn = scope.writing()?.clone();
    let (schema, name) = scope.split_name(&create.name)?;
    if create.if_not_exists && scope.lookup(schema.as_deref(), &name).is_some() {
        return Ok(Produced::Tag("CREATE TABLE AS".to_owned()));
    }
    let mut query = create.query.as_ref().clone();
    let binder = Binder::for_query(scope, &mut query, Overrides::default(), false).await?;
    let plan = binder.query(query)?;
    let (names, types) = view::output(&scope.state().optimize(&plan)?, &create.columns)?;
    let columns = names.into_iter().zip(types).map(|(name, sql_type)| (name, sql_type, true)).collect();
    let on_commit = on_commit(create.temporary, create.on_commit)?;
    let table = create_plain(scope, schema.as_deref(), &name, create.temporary, columns, on_commit).await?;
    let mut rows = 0;
    if create.with_data {
        let _ = client_schema(plan.schema().as_arrow());
        let scope = scope.with_catalog(txn.own_catalog().unwrap_or_else(|| scope.catalog.clone()));
        rows = crate::dml::insert::insert_plan(&scope, &table, plan).await?;
    }
    Ok(Produced::Written(Written { tag: "CREATE TABLE AS", rows, returned: None }))
}

/// Drops a table with everything that is its own; with `cascade`, also views over it and foreign keys to it.
pub(crate) async fn drop(scope: &Scope, table: &Arc<TableEntry>, cascade: bool) -> Result<()> {
    let txn = scope.writing()?.clone();
    let (scope, table) = take_definition(scope, table).await?;
    let mut writer = writer(&scope, &txn);
    let id = table.def.id;
    let mut list: Vec<String> = writer
        .catalog()
        .dependents(id)
        .iter()
        .map(|view| format!("view {} depends on table {}", view.name(), table.def.name))
        .collect();
    let mut children: Vec<ObjectId> =
        table.referenced_by.iter().map(|(child, _)| *child).filter(|child| *child != id).collect();
    children.dedup();
    for child in &children {
        let child = writer.catalog().table_by_id(*child)?;
        for key in child.def.foreign_keys.iter().filter(|key| key.table == id) {
            list.push(format!(
                "constraint {} on table {} depends on table {}",
                key.name, child.def.name, table.def.name
            ));
        }
    }
    if !list.is_empty() && !cascade {
        return Err(needed(&format!("table {}", table.def.name), &list));
    }
    for view in writer.catalog().dependents(id) {
        if let Relation::View(view) = view {
            view::drop(&mut writer, view.id, &view.name, true).await?;
        }
    }
    for child in children {
        let mut def = writer.catalog().table_by_id(child)?.def.clone();
        def.foreign_keys.retain(|key| key.table != id);
        writer.replace(Object::Table(def)).await?;
    }
    writer.drop_table(id).await?;
    txn.set_catalog(writer.catalog().clone());
    Ok(())
}
