//! The allow-list: what sqlparser accepts but we do not execute is an error that names it.
//!
//! DataFusion plans only some of what sqlparser reads and drops the rest without a word; dropping `FOR UPDATE`, `TABLESAMPLE` or a time
//! clause changes answers. Every node is therefore taken apart *exhaustively* (no `..`): a release of sqlparser that adds a field stops
//! the build here. Statements become our own structs on the way, which cannot hold a refused clause.
//!
//! # Invariants
//! - STR-1 no pattern in this module skips a field of a struct that is taken apart. Held by the compiler.
//! - STR-2 each refused clause is an error that names it. Test: `every_ignored_clause_is_refused`.
//!
//! # Deliberately absent
//! Meaning: names, types and aggregates are checked by the planner.

use std::ops::ControlFlow;

use sqlparser::ast::{
    self as sql, Expr, Ident, ObjectName, Query, SetExpr, Statement as Sql, TableFactor, Visit, VisitMut, Visitor,
};

use super::desugar::Notes;
use super::statement::*;
use super::{fold, grammar, rewrite};
use crate::error::{Error, Result};

// ------------------------------------------------------------------------------------------------------------- entrances

/// A query that is executed as a statement: a `SELECT`, or `WITH … INSERT` and the like.
pub(crate) fn query_statement(query: Box<Query>, notes: &mut Notes) -> Result<StatementAst> {
    if !matches!(*query.body, SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_)) {
        return Ok(StatementAst::Query(self::query(query)?));
    }
    let Query { with, body, order_by, limit_clause, fetch, locks, for_clause, settings, format_clause, pipe_operators } =
        *query;
    refuse(order_by.is_some(), "ORDER BY on a statement that writes")?;
    refuse(limit_clause.is_some() || fetch.is_some(), "LIMIT on a statement that writes")?;
    refuse(!locks.is_empty(), "a locking clause on a statement that writes")?;
    refuse(for_clause.is_some(), "FOR XML and FOR JSON")?;
    refuse(settings.is_some(), "SETTINGS")?;
    refuse(format_clause.is_some(), "FORMAT")?;
    refuse(!pipe_operators.is_empty(), "the pipe operator |>")?;
    match *body {
        SetExpr::Insert(statement)
        | SetExpr::Update(statement)
        | SetExpr::Delete(statement)
        | SetExpr::Merge(statement) => row_statement(with, statement, notes),
        _ => Err(Error::internal("a query changed its shape")),
    }
}

/// A query anywhere.
pub(crate) fn query(mut query: Box<Query>) -> Result<Box<Query>> {
    accept(&mut *query)?;
    Ok(query)
}

/// An expression anywhere.
pub(crate) fn expr(mut expr: Expr) -> Result<Expr> {
    accept(&mut expr)?;
    Ok(expr)
}

fn optional_expr(expr: Option<Expr>) -> Result<Option<Expr>> {
    expr.map(self::expr).transpose()
}

/// Brings a tree into the form the planner understands and checks it.
fn accept<T: Visit + VisitMut>(tree: &mut T) -> Result<()> {
    rewrite::rewrite(tree)?;
    match Visit::visit(tree, &mut Checker::default()) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(*error),
    }
}

fn refuse(is_there: bool, what: &str) -> Result<()> {
    if is_there { Err(Error::unsupported(what)) } else { Ok(()) }
}

// ------------------------------------------------------------------------------------------------------------- changing rows

/// `INSERT`, `UPDATE`, `DELETE`, `MERGE` as sqlparser reads them.
pub(crate) fn row_statement(mut with: Option<sql::With>, statement: Sql, notes: &mut Notes) -> Result<StatementAst> {
    if let Some(with) = &mut with {
        accept(with)?;
        check_with(with)?;
    }
    match statement {
        Sql::Insert(statement) => insert(with, statement, notes),
        Sql::Update(statement) => update(with, statement),
        Sql::Delete(statement) => delete(with, statement),
        Sql::Merge(statement) => sql_merge(with, statement),
        other => Err(grammar::wrong_statement(&other)),
    }
}

fn insert(with: Option<sql::With>, insert: sql::Insert, notes: &mut Notes) -> Result<StatementAst> {
    let sql::Insert {
        insert_token: _,
        optimizer_hints,
        or,
        ignore,
        into,
        table,
        table_alias,
        columns,
        overwrite,
        source,
        assignments,
        partitioned,
        after_columns,
        has_table_keyword,
        on,
        returning,
        output,
        replace_into,
        priority,
        insert_alias,
        settings,
        format_clause,
        multi_table_insert_type,
        multi_table_into_clauses,
        multi_table_when_clauses,
        multi_table_else_clause,
    } = insert;
    refuse(!optimizer_hints.is_empty(), "an optimizer hint")?;
    refuse(or.is_some(), "INSERT OR …")?;
    refuse(ignore, "INSERT IGNORE")?;
    refuse(overwrite, "INSERT OVERWRITE")?;
    refuse(!into, "INSERT without INTO")?;
    refuse(!assignments.is_empty(), "INSERT … SET")?;
    refuse(partitioned.is_some() || !after_columns.is_empty(), "INSERT … PARTITION")?;
    refuse(has_table_keyword, "INSERT INTO TABLE")?;
    refuse(output.is_some(), "OUTPUT")?;
    refuse(replace_into, "REPLACE INTO")?;
    refuse(priority.is_some(), "the priority of an INSERT")?;
    refuse(insert_alias.is_some(), "an alias after VALUES")?;
    refuse(settings.is_some(), "SETTINGS")?;
    refuse(format_clause.is_some(), "FORMAT")?;
    refuse(
        multi_table_insert_type.is_some()
            || !multi_table_into_clauses.is_empty()
            || !multi_table_when_clauses.is_empty()
            || multi_table_else_clause.is_some(),
        "INSERT into several tables",
    )?;
    let table = match table {
        sql::TableObject::TableName(name) => name,
        sql::TableObject::TableFunction(_) => return Err(Error::unsupported("INSERT into a function")),
        sql::TableObject::TableQuery(_) => return Err(Error::unsupported("INSERT into a query")),
    };
    let columns = columns.into_iter().map(column_name).collect::<Result<_>>()?;
    let source = match source {
        Some(source) => InsertSource::Query(query(source)?),
        None => InsertSource::DefaultValues,
    };
    let on_conflict = match on {
        None => None,
        Some(sql::OnInsert::DuplicateKeyUpdate(_)) => {
            return Err(Error::unsupported("ON DUPLICATE KEY UPDATE").with_hint("write ON CONFLICT … DO UPDATE"));
        }
        Some(sql::OnInsert::OnConflict(sql::OnConflict { conflict_target, action })) => {
            let target = conflict_target.map(|target| match target {
                sql::ConflictTarget::Columns(columns) => ConflictTarget::Columns(columns),
                sql::ConflictTarget::OnConstraint(name) => ConflictTarget::Constraint(name),
            });
            let action = match action {
                sql::OnConflictAction::DoNothing => ConflictAction::Nothing,
                sql::OnConflictAction::DoUpdate(sql::DoUpdate { assignments, selection }) => {
                    if target.is_none() {
                        return Err(Error::syntax(
                            "syntax error: ON CONFLICT DO UPDATE needs the columns or the constraint of the conflict",
                        )
                        .with_hint("for example, ON CONFLICT (column)"));
                    }
                    ConflictAction::Update {
                        assignments: self::assignments(assignments)?,
                        selection: optional_expr(selection)?,
                    }
                }
            };
            Some(OnConflict { target, action })
        }
        // The enum is marked as open.
        Some(other) => return Err(Error::unsupported(other.to_string().trim().to_owned())),
    };
    let alias = table_alias.map(|sql::TableAliasWithoutColumns { explicit: _, alias }| alias);
    Ok(StatementAst::Insert(Box::new(Insert {
        with,
        table,
        alias,
        columns,
        overriding: notes.overriding.take(),
        source,
        on_conflict,
        returning: self::returning(returning)?,
    })))
}

fn update(with: Option<sql::With>, update: sql::Update) -> Result<StatementAst> {
    let sql::Update {
        update_token: _,
        optimizer_hints,
        table,
        assignments,
        from,
        selection,
        returning,
        output,
        or,
        order_by,
        limit,
    } = update;
    refuse(!optimizer_hints.is_empty(), "an optimizer hint")?;
    refuse(output.is_some(), "OUTPUT")?;
    refuse(or.is_some(), "UPDATE OR …")?;
    refuse(!order_by.is_empty(), "ORDER BY in UPDATE")?;
    refuse(limit.is_some(), "LIMIT in UPDATE")?;
    let from = match from {
        None => Vec::new(),
        Some(sql::UpdateTableFromKind::AfterSet(from)) => from,
        Some(sql::UpdateTableFromKind::BeforeSet(_)) => return Err(Error::unsupported("FROM before SET")),
    };
    Ok(StatementAst::Update(Box::new(Update {
        with,
        table: target(table, "UPDATE")?,
        assignments: self::assignments(assignments)?,
        from: tables(from)?,
        selection: optional_expr(selection)?,
        returning: self::returning(returning)?,
    })))
}

fn delete(with: Option<sql::With>, delete: sql::Delete) -> Result<StatementAst> {
    let sql::Delete {
        delete_token: _,
        optimizer_hints,
        tables: names,
        from,
        using,
        selection,
        returning,
        output,
        order_by,
        limit,
    } = delete;
    refuse(!optimizer_hints.is_empty(), "an optimizer hint")?;
    refuse(!names.is_empty(), "DELETE from several tables")?;
    refuse(output.is_some(), "OUTPUT")?;
    refuse(!order_by.is_empty(), "ORDER BY in DELETE")?;
    refuse(limit.is_some(), "LIMIT in DELETE")?;
    let mut from = match from {
        sql::FromTable::WithFromKeyword(from) => from,
        sql::FromTable::WithoutKeyword(_) => return Err(Error::unsupported("DELETE without FROM")),
    };
    refuse(from.len() != 1, "DELETE from several tables")?;
    let table = from.swap_remove(0);
    Ok(StatementAst::Delete(Box::new(Delete {
        with,
        table: target(table, "DELETE")?,
        using: tables(using.unwrap_or_default())?,
        selection: optional_expr(selection)?,
        returning: self::returning(returning)?,
    })))
}

/// `WITH … MERGE`, which sqlparser reads.
fn sql_merge(with: Option<sql::With>, merge: sql::Merge) -> Result<StatementAst> {
    let sql::Merge { merge_token: _, optimizer_hints, into, table, source, on, clauses, output } = merge;
    refuse(!optimizer_hints.is_empty(), "an optimizer hint")?;
    refuse(!into, "MERGE without INTO")?;
    let returning = match output {
        None => Vec::new(),
        Some(sql::OutputClause::Returning { returning_token: _, select_items }) => select_items,
        Some(sql::OutputClause::Output { .. }) => return Err(Error::unsupported("OUTPUT")),
    };
    let clauses = clauses
        .into_iter()
        .map(|sql::MergeClause { when_token: _, clause_kind, predicate, action }| {
            let when = match clause_kind {
                sql::MergeClauseKind::Matched => MergeWhen::Matched,
                sql::MergeClauseKind::NotMatched | sql::MergeClauseKind::NotMatchedByTarget => MergeWhen::NotMatched,
                sql::MergeClauseKind::NotMatchedBySource => MergeWhen::NotMatchedBySource,
            };
            let action = match action {
                sql::MergeAction::Delete { delete_token: _ } => MergeAction::Delete,
                sql::MergeAction::Update(sql::MergeUpdateExpr {
                    update_token: _,
                    assignments,
                    update_predicate,
                    delete_predicate,
                }) => {
                    refuse(update_predicate.is_some() || delete_predicate.is_some(), "WHERE in an action of MERGE")?;
                    MergeAction::Update(self::assignments(assignments)?)
                }
                sql::MergeAction::Insert(sql::MergeInsertExpr {
                    insert_token: _,
                    columns,
                    kind_token: _,
                    kind,
                    insert_predicate,
                }) => {
                    refuse(insert_predicate.is_some(), "WHERE in an action of MERGE")?;
                    let sql::MergeInsertKind::Values(sql::Values { explicit_row, value_keyword, mut rows }) = kind
                    else {
                        return Err(Error::unsupported("INSERT ROW in MERGE"));
                    };
                    refuse(explicit_row || value_keyword, "ROW in VALUES")?;
                    refuse(rows.len() != 1, "several rows in an action of MERGE")?;
                    let columns = columns.into_iter().map(column_name).collect::<Result<_>>()?;
                    MergeAction::Insert { columns, overriding: None, values: Some(rows.swap_remove(0).content) }
                }
            };
            Ok(MergeClause { when, condition: predicate, action })
        })
        .collect::<Result<Vec<_>>>()?;
    self::merge(Merge { with, table, source, on: *on, clauses, returning })
}

/// Checks what is inside a `MERGE`.
pub(crate) fn merge(mut merge: Merge) -> Result<StatementAst> {
    let Merge { with, table, source, on, clauses, returning } = &mut merge;
    if let Some(with) = with {
        accept(with)?;
        check_with(with)?;
    }
    *table = target(sql::TableWithJoins { relation: std::mem::replace(table, dummy()), joins: Vec::new() }, "MERGE")?;
    accept(source)?;
    accept(on)?;
    for MergeClause { when: _, condition, action } in clauses {
        if let Some(condition) = condition {
            accept(condition)?;
        }
        match action {
            // Assignments were checked when they were read.
            MergeAction::Delete | MergeAction::Nothing | MergeAction::Update(_) => {}
            MergeAction::Insert { columns: _, overriding: _, values } => {
                for value in values.iter_mut().flatten() {
                    accept(value)?;
                }
            }
        }
    }
    rewrite::name_items(returning, true);
    for item in returning {
        check_item(item)?;
    }
    Ok(StatementAst::Merge(Box::new(merge)))
}

/// A table factor to leave behind when one is moved out.
fn dummy() -> TableFactor {
    TableFactor::Derived { lateral: false, subquery: Box::new(rewrite::empty_query()), alias: None, sample: None }
}

/// The table that `UPDATE`, `DELETE` or `MERGE` changes: a plain table, perhaps with alias and time clause.
fn target(table: sql::TableWithJoins, statement: &str) -> Result<TableFactor> {
    let sql::TableWithJoins { mut relation, joins } = table;
    refuse(!joins.is_empty(), &format!("a join as the target of {statement}"))?;
    accept(&mut relation)?;
    match &relation {
        TableFactor::Table { args: None, alias, .. } => {
            if let Some(alias) = alias {
                refuse(!alias.columns.is_empty(), &format!("column aliases on the target of {statement}"))?;
            }
            Ok(relation)
        }
        _ => Err(Error::state(base::SqlState::WRONG_OBJECT_TYPE, format!("the target of {statement} must be a table"))),
    }
}

fn tables(mut tables: Vec<sql::TableWithJoins>) -> Result<Vec<sql::TableWithJoins>> {
    for table in &mut tables {
        accept(table)?;
        check_joins(table)?;
    }
    Ok(tables)
}

fn returning(items: Option<Vec<sql::SelectItem>>) -> Result<Vec<sql::SelectItem>> {
    let mut items = items.unwrap_or_default();
    rewrite::name_items(&mut items, true);
    for item in &mut items {
        check_item(item)?;
    }
    Ok(items)
}

fn check_item(item: &mut sql::SelectItem) -> Result<()> {
    accept(item)?;
    check_select_item(item)
}

/// Assignments with tuples split: `(a, b) = (1, 2)` is two.
pub(crate) fn assignments(list: Vec<sql::Assignment>) -> Result<Vec<Assignment>> {
    let mut split = Vec::with_capacity(list.len());
    for sql::Assignment { target, value } in list {
        match target {
            sql::AssignmentTarget::ColumnName(name) => {
                split.push(Assignment { column: column_name(name)?, value: expr(value)? })
            }
            sql::AssignmentTarget::Tuple(names) => {
                let values = match value {
                    Expr::Tuple(values) => values,
                    Expr::Nested(value) if names.len() == 1 => vec![*value],
                    Expr::Function(function) if function.name.to_string().eq_ignore_ascii_case("row") => {
                        match function.args {
                            sql::FunctionArguments::List(list) => list
                                .args
                                .into_iter()
                                .map(|argument| match argument {
                                    sql::FunctionArg::Unnamed(sql::FunctionArgExpr::Expr(value)) => Ok(value),
                                    other => Err(Error::unsupported(format!("{other} in ROW"))),
                                })
                                .collect::<Result<_>>()?,
                            _ => return Err(Error::unsupported("ROW without values")),
                        }
                    }
                    Expr::Subquery(_) => {
                        return Err(Error::unsupported("assigning a subquery to several columns")
                            .with_hint("use UPDATE … FROM, or one subquery per column"));
                    }
                    value if names.len() == 1 => vec![value],
                    other => return Err(Error::unsupported(format!("assigning {other} to several columns"))),
                };
                if values.len() != names.len() {
                    return Err(Error::syntax(format!(
                        "syntax error: {} columns are assigned {} values",
                        names.len(),
                        values.len()
                    )));
                }
                for (name, value) in names.into_iter().zip(values) {
                    split.push(Assignment { column: column_name(name)?, value: expr(value)? });
                }
            }
        }
    }
    Ok(split)
}

/// A column of the target: one plain identifier.
fn column_name(name: ObjectName) -> Result<Ident> {
    match name.0.as_slice() {
        [sql::ObjectNamePart::Identifier(ident)] => Ok(ident.clone()),
        _ => Err(Error::syntax(format!("syntax error: {name} must be a column of the table, without qualifier"))),
    }
}

// ------------------------------------------------------------------------------------------------------------- definitions

/// `CREATE TABLE`, with what desugaring cut out of it.
pub(crate) fn create_table(
    table: sql::CreateTable,
    with_data: Option<bool>,
    notes: &mut Notes,
) -> Result<StatementAst> {
    let sql::CreateTable {
        or_replace,
        temporary,
        external,
        dynamic,
        global,
        if_not_exists,
        transient,
        volatile,
        iceberg,
        snapshot,
        name,
        columns,
        constraints,
        hive_distribution,
        hive_formats,
        table_options,
        file_format,
        location,
        query,
        without_rowid,
        like,
        clone,
        version,
        comment,
        on_commit,
        on_cluster,
        primary_key,
        order_by,
        partition_by,
        cluster_by,
        clustered_by,
        inherits,
        partition_of,
        for_values,
        strict,
        copy_grants,
        enable_schema_evolution,
        change_tracking,
        data_retention_time_in_days,
        max_data_extension_time_in_days,
        default_ddl_collation,
        with_aggregation_policy,
        with_row_access_policy,
        with_storage_lifecycle_policy,
        with_tags,
        external_volume,
        base_location,
        catalog,
        catalog_sync,
        storage_serialization_policy,
        target_lag,
        warehouse,
        refresh_mode,
        initialize,
        require_user,
        diststyle,
        distkey,
        sortkey,
        backup,
    } = table;
    let refused = [
        (or_replace, "CREATE OR REPLACE TABLE"),
        (external || location.is_some() || file_format.is_some(), "an external table"),
        (
            dynamic || target_lag.is_some() || warehouse.is_some() || refresh_mode.is_some() || initialize.is_some(),
            "a dynamic table",
        ),
        (global.is_some(), "GLOBAL and LOCAL on a table"),
        (transient, "TRANSIENT"),
        (volatile, "VOLATILE"),
        (
            iceberg
                || external_volume.is_some()
                || base_location.is_some()
                || catalog.is_some()
                || catalog_sync.is_some(),
            "an Iceberg table",
        ),
        (snapshot || clone.is_some() || version.is_some(), "CLONE and snapshot tables"),
        (!matches!(hive_distribution, sql::HiveDistributionStyle::NONE), "PARTITIONED BY and SKEWED BY"),
        (hive_formats.is_some_and(|formats| formats != sql::HiveFormat::default()), "ROW FORMAT and STORED AS"),
        (without_rowid, "WITHOUT ROWID"),
        (comment.is_some(), "COMMENT on a table"),
        (on_cluster.is_some(), "ON CLUSTER"),
        (primary_key.is_some(), "PRIMARY KEY after the columns"),
        (order_by.is_some(), "ORDER BY on a table"),
        (partition_by.is_some() || partition_of.is_some() || for_values.is_some(), "partitions"),
        (cluster_by.is_some() || clustered_by.is_some(), "CLUSTER BY"),
        (inherits.is_some(), "INHERITS"),
        (strict, "STRICT"),
        (copy_grants, "COPY GRANTS"),
        (enable_schema_evolution.is_some(), "ENABLE_SCHEMA_EVOLUTION"),
        (change_tracking.is_some(), "CHANGE_TRACKING"),
        (
            data_retention_time_in_days.is_some() || max_data_extension_time_in_days.is_some(),
            "DATA_RETENTION_TIME_IN_DAYS",
        ),
        (default_ddl_collation.is_some(), "DEFAULT_DDL_COLLATION"),
        (
            with_aggregation_policy.is_some()
                || with_row_access_policy.is_some()
                || with_storage_lifecycle_policy.is_some(),
            "a policy in CREATE TABLE",
        ),
        (with_tags.is_some(), "TAG"),
        (storage_serialization_policy.is_some(), "STORAGE_SERIALIZATION_POLICY"),
        (require_user, "REQUIRE USER"),
        (diststyle.is_some() || distkey.is_some() || sortkey.is_some(), "DISTKEY and SORTKEY"),
        (backup.is_some(), "BACKUP"),
    ];
    for (is_there, what) in refused {
        refuse(is_there, what)?;
    }
    super::check_names(&name)?;
    let options = match table_options {
        sql::CreateTableOptions::None => Vec::new(),
        sql::CreateTableOptions::With(options) => self::options(options)?,
        sql::CreateTableOptions::Options(_) => return Err(Error::unsupported("OPTIONS on a table")),
        sql::CreateTableOptions::Plain(_) => return Err(Error::unsupported("options without WITH on a table")),
        sql::CreateTableOptions::TableProperties(_) => return Err(Error::unsupported("TBLPROPERTIES")),
    };
    let on_commit = on_commit.map(|on_commit| match on_commit {
        sql::OnCommit::DeleteRows => OnCommit::DeleteRows,
        sql::OnCommit::PreserveRows => OnCommit::PreserveRows,
        sql::OnCommit::Drop => OnCommit::Drop,
    });
    if on_commit.is_some() && !temporary {
        return Err(Error::state(base::SqlState::INVALID_TABLE_DEFINITION, "ON COMMIT is only for temporary tables"));
    }
    let periods = std::mem::take(&mut notes.periods);
    let system_versioning = std::mem::take(&mut notes.system_versioning);
    if let Some(query) = query {
        refuse(!periods.is_empty() || system_versioning, "a period on CREATE TABLE … AS")?;
        refuse(!constraints.is_empty() || like.is_some(), "constraints on CREATE TABLE … AS")?;
        let columns = columns
            .into_iter()
            .map(|sql::ColumnDef { name, data_type, options }| {
                refuse(
                    data_type != sql::DataType::Unspecified || !options.is_empty(),
                    "column types on CREATE TABLE … AS",
                )?;
                Ok(name)
            })
            .collect::<Result<_>>()?;
        return Ok(StatementAst::CreateTableAs(Box::new(CreateTableAs {
            name,
            temporary,
            if_not_exists,
            columns,
            query: self::query(query)?,
            options,
            on_commit,
            with_data: with_data.unwrap_or(true),
        })));
    }
    if with_data.is_some() {
        return Err(Error::syntax("syntax error: WITH DATA needs a query"));
    }
    let like = match like {
        None => None,
        Some(
            sql::CreateTableLikeKind::Parenthesized(sql::CreateTableLike { name, defaults })
            | sql::CreateTableLikeKind::Plain(sql::CreateTableLike { name, defaults }),
        ) => Some(LikeTable { name, defaults: matches!(defaults, Some(sql::CreateTableLikeDefaults::Including)) }),
    };
    let mut clauses = Vec::new();
    let (columns, constraints) = definitions(columns, constraints, &mut clauses)?;
    clauses.extend(periods.into_iter().map(|(name, from, to)| TableClause::Period { name, from, to }));
    if system_versioning {
        clauses.push(TableClause::SystemVersioning);
    }
    let table = CreateTable { name, temporary, if_not_exists, columns, constraints, like, options, on_commit };
    if clauses.is_empty() {
        Ok(StatementAst::CreateTable(Box::new(table)))
    } else {
        Ok(StatementAst::Extension(Box::new(Extension::CreateTable { table: Box::new(table), clauses })))
    }
}

/// Columns and constraints without the clauses that come later.
pub(crate) fn columns(
    columns: Vec<sql::ColumnDef>,
    constraints: Vec<sql::TableConstraint>,
) -> Result<(Vec<ColumnDefinition>, Vec<ConstraintDefinition>)> {
    let mut clauses = Vec::new();
    let parts = definitions(columns, constraints, &mut clauses)?;
    match clauses.first() {
        None => Ok(parts),
        Some(clause) => Err(Error::unsupported(clause.name())),
    }
}

fn definitions(
    columns: Vec<sql::ColumnDef>,
    constraints: Vec<sql::TableConstraint>,
    clauses: &mut Vec<TableClause>,
) -> Result<(Vec<ColumnDefinition>, Vec<ConstraintDefinition>)> {
    let mut rules = Vec::new();
    let mut definitions = Vec::with_capacity(columns.len());
    for definition in columns {
        definitions.push(column(definition, &mut rules, clauses)?);
    }
    for constraint in constraints {
        rules.push(table_constraint(constraint)?);
    }
    // PRIMARY KEY implies NOT NULL.
    for rule in &rules {
        if let Constraint::PrimaryKey(names) = &rule.rule {
            for definition in &mut definitions {
                if names.iter().any(|name| fold(name) == fold(&definition.name)) {
                    definition.not_null = true;
                }
            }
        }
    }
    Ok((definitions, rules))
}

fn column(
    column: sql::ColumnDef,
    rules: &mut Vec<ConstraintDefinition>,
    clauses: &mut Vec<TableClause>,
) -> Result<ColumnDefinition> {
    let sql::ColumnDef { name, data_type, options } = column;
    super::check_name(&name)?;
    let (data_type, serial) = serial(data_type);
    let mut definition = ColumnDefinition {
        name: name.clone(),
        data_type,
        not_null: serial,
        default: None,
        identity: serial.then(|| Identity { always: false, sequence: SequenceOptions::default() }),
        generated: None,
    };
    let mut nullable = false;
    for sql::ColumnOptionDef { name: constraint, option } in options {
        let rule = match option {
            sql::ColumnOption::Null => {
                nullable = true;
                continue;
            }
            sql::ColumnOption::NotNull => {
                definition.not_null = true;
                continue;
            }
            sql::ColumnOption::Default(value) => {
                if definition.default.replace(expr(value)?).is_some() {
                    return Err(Error::syntax(format!("syntax error: several defaults for column {name}")));
                }
                continue;
            }
            sql::ColumnOption::PrimaryKey(sql::PrimaryKeyConstraint {
                name: _,
                index_name,
                index_type,
                columns,
                index_options,
                characteristics,
            }) => {
                refuse(
                    index_name.is_some() || index_type.is_some() || !columns.is_empty() || !index_options.is_empty(),
                    "an index on PRIMARY KEY",
                )?;
                check_characteristics(characteristics)?;
                definition.not_null = true;
                Constraint::PrimaryKey(vec![name.clone()])
            }
            sql::ColumnOption::Unique(sql::UniqueConstraint {
                name: _,
                index_name,
                index_type_display,
                index_type,
                columns,
                index_options,
                characteristics,
                nulls_distinct,
            }) => {
                refuse(
                    index_name.is_some()
                        || index_type.is_some()
                        || !columns.is_empty()
                        || !index_options.is_empty()
                        || index_type_display != sql::KeyOrIndexDisplay::None,
                    "an index on UNIQUE",
                )?;
                check_characteristics(characteristics)?;
                Constraint::Unique {
                    columns: vec![name.clone()],
                    nulls_distinct: nulls_distinct != sql::NullsDistinctOption::NotDistinct,
                }
            }
            sql::ColumnOption::ForeignKey(foreign) => {
                let mut definition = foreign_key(foreign)?;
                if let Constraint::ForeignKey { columns, .. } = &mut definition.rule {
                    *columns = vec![name.clone()];
                }
                definition.rule
            }
            sql::ColumnOption::Check(sql::CheckConstraint { name: _, expr: condition, enforced }) => {
                refuse(enforced == Some(false), "NOT ENFORCED")?;
                Constraint::Check(expr(*condition)?)
            }
            sql::ColumnOption::DialectSpecific(tokens) => {
                let clause = grammar::column_clause(&name, &tokens).map_err(|stop| match stop {
                    grammar::Stop::Syntax(error) => Error::from(error),
                    grammar::Stop::Refused(error) => *error,
                })?;
                match clause {
                    grammar::ColumnClause::Later(clause) => clauses.push(clause),
                    grammar::ColumnClause::Identity(identity) => {
                        definition.not_null = true;
                        if definition.identity.replace(identity).is_some() {
                            return Err(Error::syntax(format!(
                                "syntax error: column {name} is an identity column twice"
                            )));
                        }
                    }
                }
                continue;
            }
            sql::ColumnOption::Collation(collation) => {
                check_collation(&collation)?;
                continue;
            }
            sql::ColumnOption::Generated {
                generated_as,
                sequence_options,
                generation_expr,
                generation_expr_mode: _,
                generated_keyword: _,
            } => {
                refuse(sequence_options.is_some(), "this form of an identity column")?;
                match (generated_as, generation_expr) {
                    (sql::GeneratedAs::ExpStored, Some(value)) => definition.generated = Some(expr(value)?),
                    _ => return Err(Error::unsupported("a generated column that is not STORED")),
                }
                continue;
            }
            sql::ColumnOption::Materialized(_) => return Err(Error::unsupported("MATERIALIZED on a column")),
            sql::ColumnOption::Ephemeral(_) => return Err(Error::unsupported("EPHEMERAL on a column")),
            sql::ColumnOption::Alias(_) => return Err(Error::unsupported("ALIAS on a column")),
            sql::ColumnOption::CharacterSet(_) => return Err(Error::unsupported("CHARACTER SET on a column")),
            sql::ColumnOption::Comment(_) => {
                return Err(Error::unsupported("COMMENT on a column").with_hint("use the statement COMMENT ON COLUMN"));
            }
            sql::ColumnOption::OnUpdate(_) => return Err(Error::unsupported("ON UPDATE on a column")),
            sql::ColumnOption::Options(_) => return Err(Error::unsupported("OPTIONS on a column")),
            sql::ColumnOption::Identity(_) => {
                return Err(Error::unsupported("IDENTITY(…)").with_hint("write GENERATED ALWAYS AS IDENTITY"));
            }
            sql::ColumnOption::OnConflict(_) => return Err(Error::unsupported("ON CONFLICT on a column")),
            sql::ColumnOption::Policy(_) => return Err(Error::unsupported("a policy on a column")),
            sql::ColumnOption::Tags(_) => return Err(Error::unsupported("TAG on a column")),
            sql::ColumnOption::Srid(_) => return Err(Error::unsupported("SRID on a column")),
            sql::ColumnOption::Invisible => return Err(Error::unsupported("INVISIBLE on a column")),
        };
        rules.push(ConstraintDefinition { name: constraint, rule });
    }
    if nullable && definition.not_null {
        return Err(Error::syntax(format!("syntax error: column {name} is both NULL and NOT NULL")));
    }
    if definition.default.is_some() && (definition.identity.is_some() || definition.generated.is_some()) {
        return Err(Error::syntax(format!("syntax error: column {name} has a default and is generated")));
    }
    Ok(definition)
}

/// `SERIAL` and its sizes are integers that count.
fn serial(data_type: sql::DataType) -> (sql::DataType, bool) {
    if let sql::DataType::Custom(name, modifiers) = &data_type
        && modifiers.is_empty()
    {
        match name.to_string().to_lowercase().as_str() {
            "serial" | "serial4" => return (sql::DataType::Integer(None), true),
            "bigserial" | "serial8" => return (sql::DataType::BigInt(None), true),
            "smallserial" | "serial2" => return (sql::DataType::SmallInt(None), true),
            _ => {}
        }
    }
    (data_type, false)
}

fn check_characteristics(characteristics: Option<sql::ConstraintCharacteristics>) -> Result<()> {
    let Some(sql::ConstraintCharacteristics { deferrable, initially, enforced }) = characteristics else {
        return Ok(());
    };
    refuse(deferrable == Some(true), "DEFERRABLE")?;
    refuse(matches!(initially, Some(sql::DeferrableInitial::Deferred)), "INITIALLY DEFERRED")?;
    refuse(enforced == Some(false), "NOT ENFORCED")
}

/// Strings compare by bytes; collations that say the same are accepted.
fn check_collation(collation: &ObjectName) -> Result<()> {
    if rewrite::is_byte_order(collation) {
        return Ok(());
    }
    Err(Error::unsupported(format!("COLLATE {collation}"))
        .with_hint("strings compare by bytes, which is COLLATE \"C\""))
}

fn table_constraint(constraint: sql::TableConstraint) -> Result<ConstraintDefinition> {
    match constraint {
        sql::TableConstraint::PrimaryKey(sql::PrimaryKeyConstraint {
            name,
            index_name,
            index_type,
            columns,
            index_options,
            characteristics,
        }) => {
            refuse(
                index_name.is_some() || index_type.is_some() || !index_options.is_empty(),
                "an index on PRIMARY KEY",
            )?;
            check_characteristics(characteristics)?;
            Ok(ConstraintDefinition { name, rule: Constraint::PrimaryKey(index_columns(columns)?) })
        }
        sql::TableConstraint::Unique(sql::UniqueConstraint {
            name,
            index_name,
            index_type_display,
            index_type,
            columns,
            index_options,
            characteristics,
            nulls_distinct,
        }) => {
            refuse(
                index_name.is_some()
                    || index_type.is_some()
                    || !index_options.is_empty()
                    || index_type_display != sql::KeyOrIndexDisplay::None,
                "an index on UNIQUE",
            )?;
            check_characteristics(characteristics)?;
            let nulls_distinct = nulls_distinct != sql::NullsDistinctOption::NotDistinct;
            Ok(ConstraintDefinition {
                name,
                rule: Constraint::Unique { columns: index_columns(columns)?, nulls_distinct },
            })
        }
        sql::TableConstraint::ForeignKey(foreign) => foreign_key(foreign),
        sql::TableConstraint::Check(sql::CheckConstraint { name, expr: condition, enforced }) => {
            refuse(enforced == Some(false), "NOT ENFORCED")?;
            Ok(ConstraintDefinition { name, rule: Constraint::Check(expr(*condition)?) })
        }
        sql::TableConstraint::Index(_) => {
            Err(Error::unsupported("INDEX in CREATE TABLE").with_hint("use the statement CREATE INDEX"))
        }
        sql::TableConstraint::FulltextOrSpatial(_) => Err(Error::unsupported("FULLTEXT and SPATIAL indexes")),
        sql::TableConstraint::PrimaryKeyUsingIndex(_) => Err(Error::unsupported("PRIMARY KEY USING INDEX")),
        sql::TableConstraint::UniqueUsingIndex(_) => Err(Error::unsupported("UNIQUE USING INDEX")),
    }
}

fn foreign_key(foreign: sql::ForeignKeyConstraint) -> Result<ConstraintDefinition> {
    let sql::ForeignKeyConstraint {
        name,
        index_name,
        columns,
        foreign_table,
        referred_columns,
        on_delete,
        on_update,
        match_kind,
        characteristics,
    } = foreign;
    refuse(index_name.is_some(), "an index on FOREIGN KEY")?;
    refuse(
        matches!(
            match_kind,
            Some(sql::ConstraintReferenceMatchKind::Full | sql::ConstraintReferenceMatchKind::Partial)
        ),
        "MATCH FULL and MATCH PARTIAL",
    )?;
    check_characteristics(characteristics)?;
    let rule =
        Constraint::ForeignKey { columns, table: foreign_table, referred: referred_columns, on_delete, on_update };
    Ok(ConstraintDefinition { name, rule })
}

/// The columns of a key: plain names, in the default order.
fn index_columns(columns: Vec<sql::IndexColumn>) -> Result<Vec<Ident>> {
    columns
        .into_iter()
        .map(|sql::IndexColumn { column, operator_class }| {
            refuse(operator_class.is_some(), "an operator class in a key")?;
            let sql::OrderByExpr { expr, options: sql::OrderByOptions { asc, nulls_first }, with_fill } = column;
            refuse(asc.is_some() || nulls_first.is_some() || with_fill.is_some(), "an order in a key")?;
            match expr {
                Expr::Identifier(name) => Ok(name),
                other => Err(Error::unsupported(format!("the expression {other} in a key"))),
            }
        })
        .collect()
}

/// `WITH (name = value)`.
fn options(options: Vec<sql::SqlOption>) -> Result<Vec<TableOption>> {
    options
        .into_iter()
        .map(|option| match option {
            sql::SqlOption::KeyValue { key, value } => Ok(TableOption { name: fold(&key), value: Some(expr(value)?) }),
            sql::SqlOption::Ident(name) => Ok(TableOption { name: fold(&name), value: None }),
            sql::SqlOption::Clustered(_)
            | sql::SqlOption::Partition { .. }
            | sql::SqlOption::Comment(_)
            | sql::SqlOption::TableSpace(_)
            | sql::SqlOption::NamedParenthesizedList(_) => Err(Error::unsupported(format!("the option {option}"))),
        })
        .collect()
}

/// `CREATE INDEX`.
pub(crate) fn create_index(index: sql::CreateIndex) -> Result<StatementAst> {
    let sql::CreateIndex {
        name,
        table_name,
        using,
        columns,
        unique,
        concurrently,
        if_not_exists,
        include,
        nulls_distinct,
        with,
        predicate,
        index_options,
        alter_options,
    } = index;
    refuse(!index_options.is_empty() || !alter_options.is_empty(), "options after an index")?;
    let columns = columns
        .into_iter()
        .map(|sql::IndexColumn { mut column, operator_class }| {
            refuse(operator_class.is_some(), "an operator class in an index")?;
            accept(&mut column)?;
            check_order(&column)?;
            Ok(column)
        })
        .collect::<Result<_>>()?;
    let options = with
        .into_iter()
        .map(|option| match option {
            Expr::BinaryOp { left, op: sql::BinaryOperator::Eq, right } => match *left {
                Expr::Identifier(name) => Ok(TableOption { name: fold(&name), value: Some(expr(*right)?) }),
                other => Err(Error::unsupported(format!("the index option {other}"))),
            },
            Expr::Identifier(name) => Ok(TableOption { name: fold(&name), value: None }),
            other => Err(Error::unsupported(format!("the index option {other}"))),
        })
        .collect::<Result<_>>()?;
    Ok(StatementAst::CreateIndex(Box::new(CreateIndex {
        name,
        unique,
        if_not_exists,
        concurrently,
        table: table_name,
        method: using.map(|method| method.to_string().to_lowercase()),
        columns,
        include,
        options,
        predicate: optional_expr(predicate)?,
        nulls_distinct: nulls_distinct.unwrap_or(true),
    })))
}

/// One change of a table as sqlparser reads it.
pub(crate) fn alter_operation(operation: sql::AlterTableOperation) -> Result<AlterOperation> {
    use sql::AlterTableOperation as Op;
    let cascades = |behavior: Option<sql::DropBehavior>| matches!(behavior, Some(sql::DropBehavior::Cascade));
    match operation {
        Op::AddColumn { column_keyword: _, if_not_exists, column_def, column_position } => {
            refuse(column_position.is_some(), "FIRST and AFTER")?;
            let (mut columns, constraints) = columns(vec![column_def], Vec::new())?;
            let column = columns.pop().ok_or_else(|| Error::internal("ADD COLUMN lost its column"))?;
            Ok(AlterOperation::AddColumn { if_not_exists, column, constraints })
        }
        Op::DropColumn { has_column_keyword: _, mut column_names, if_exists, drop_behavior } => {
            refuse(column_names.len() != 1, "DROP COLUMN with several columns")?;
            Ok(AlterOperation::DropColumn {
                name: column_names.swap_remove(0),
                if_exists,
                cascade: cascades(drop_behavior),
            })
        }
        Op::RenameColumn { old_column_name, new_column_name } => {
            Ok(AlterOperation::RenameColumn { from: old_column_name, to: new_column_name })
        }
        Op::RenameTable { table_name: sql::RenameTableNameKind::To(name) } => Ok(AlterOperation::RenameTable(name)),
        Op::RenameTable { table_name: sql::RenameTableNameKind::As(_) } => Err(Error::unsupported("RENAME AS")),
        Op::RenameConstraint { old_name, new_name } => {
            Ok(AlterOperation::RenameConstraint { from: old_name, to: new_name })
        }
        Op::AddConstraint { constraint, not_valid } => {
            Ok(AlterOperation::AddConstraint { constraint: table_constraint(constraint)?, not_valid })
        }
        Op::DropConstraint { if_exists, name, drop_behavior } => {
            Ok(AlterOperation::DropConstraint { name, if_exists, cascade: cascades(drop_behavior) })
        }
        Op::ValidateConstraint { name } => Ok(AlterOperation::ValidateConstraint(name)),
        Op::AlterColumn { column_name: column, op } => match op {
            sql::AlterColumnOperation::SetNotNull => Ok(AlterOperation::SetNotNull { column, not_null: true }),
            sql::AlterColumnOperation::DropNotNull => Ok(AlterOperation::SetNotNull { column, not_null: false }),
            sql::AlterColumnOperation::SetDefault { value } => {
                Ok(AlterOperation::SetDefault { column, default: Some(expr(value)?) })
            }
            sql::AlterColumnOperation::DropDefault => Ok(AlterOperation::SetDefault { column, default: None }),
            sql::AlterColumnOperation::SetDataType { data_type, using, had_set: _ } => {
                Ok(AlterOperation::SetType { column, data_type, using: optional_expr(using)? })
            }
            sql::AlterColumnOperation::AddGenerated { generated_as: _, sequence_options: _ } => {
                Err(Error::unsupported("this form of an identity column"))
            }
        },
        Op::OwnerTo { new_owner } => {
            let owner = match new_owner {
                sql::Owner::Ident(name) => fold(&name),
                other => other.to_string().to_lowercase(),
            };
            Ok(AlterOperation::OwnerTo(owner))
        }
        Op::SetOptionsParens { options } => Ok(AlterOperation::SetOptions(self::options(options)?)),
        Op::AddProjection { .. }
        | Op::DropProjection { .. }
        | Op::MaterializeProjection { .. }
        | Op::ClearProjection { .. }
        | Op::DisableRowLevelSecurity
        | Op::DisableRule { .. }
        | Op::DisableTrigger { .. }
        | Op::AttachPartition { .. }
        | Op::DetachPartition { .. }
        | Op::FreezePartition { .. }
        | Op::UnfreezePartition { .. }
        | Op::DropPrimaryKey { .. }
        | Op::DropForeignKey { .. }
        | Op::DropIndex { .. }
        | Op::EnableAlwaysRule { .. }
        | Op::EnableAlwaysTrigger { .. }
        | Op::EnableReplicaRule { .. }
        | Op::EnableReplicaTrigger { .. }
        | Op::EnableRowLevelSecurity
        | Op::ForceRowLevelSecurity
        | Op::NoForceRowLevelSecurity
        | Op::EnableRule { .. }
        | Op::EnableTrigger { .. }
        | Op::RenamePartitions { .. }
        | Op::ReplicaIdentity { .. }
        | Op::AddPartitions { .. }
        | Op::DropPartitions { .. }
        | Op::ChangeColumn { .. }
        | Op::ModifyColumn { .. }
        | Op::SwapWith { .. }
        | Op::SetTblProperties { .. }
        | Op::ClusterBy { .. }
        | Op::DropClusteringKey
        | Op::AlterSortKey { .. }
        | Op::SuspendRecluster
        | Op::ResumeRecluster
        | Op::Refresh { .. }
        | Op::Suspend
        | Op::Resume
        | Op::Algorithm { .. }
        | Op::Lock { .. }
        | Op::AutoIncrement { .. } => Err(Error::unsupported(format!("ALTER TABLE … {operation}"))),
    }
}

// ------------------------------------------------------------------------------------------------------------- queries

/// How deep expressions may nest once chains are balanced: what comes later clones, plans and drops trees recursively.
const EXPRESSION_DEPTH: usize = 250;

/// Visits every node of a tree; the derived traversal reaches nested queries, tables and expressions.
#[derive(Default)]
struct Checker {
    depth: usize,
}

type Flow = ControlFlow<Box<Error>>;

fn flow(result: Result<()>) -> Flow {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(Box::new(error)),
    }
}

impl Visitor for Checker {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &Query) -> Flow {
        flow(check_query(query))
    }

    fn pre_visit_select(&mut self, select: &sql::Select) -> Flow {
        flow(check_select(select))
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> Flow {
        flow(check_table_factor(factor))
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> Flow {
        self.depth += 1;
        if self.depth > EXPRESSION_DEPTH {
            return flow(Err(crate::error::too_complex()));
        }
        flow(check_expr(expr))
    }

    fn post_visit_expr(&mut self, _: &Expr) -> Flow {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

fn check_query(query: &Query) -> Result<()> {
    let Query { with, body, order_by, limit_clause, fetch, locks, for_clause, settings, format_clause, pipe_operators } =
        query;
    if let Some(with) = with {
        check_with(with)?;
    }
    check_set_expr(body)?;
    if let Some(sql::OrderBy { kind, interpolate }) = order_by {
        refuse(interpolate.is_some(), "INTERPOLATE")?;
        match kind {
            sql::OrderByKind::All(_) => return Err(Error::unsupported("ORDER BY ALL")),
            sql::OrderByKind::Expressions(list) => list.iter().try_for_each(check_order)?,
        }
    }
    match limit_clause {
        None => {}
        Some(sql::LimitClause::LimitOffset { limit: _, offset, limit_by }) => {
            refuse(!limit_by.is_empty(), "LIMIT … BY")?;
            if let Some(sql::Offset { value: _, rows: _ }) = offset {}
        }
        Some(sql::LimitClause::OffsetCommaLimit { offset: _, limit: _ }) => {
            return Err(Error::unsupported("LIMIT offset, count").with_hint("write LIMIT count OFFSET offset"));
        }
    }
    if let Some(sql::Fetch { with_ties, percent, quantity: _ }) = fetch {
        refuse(*with_ties, "FETCH … WITH TIES")?;
        refuse(*percent, "FETCH … PERCENT")?;
        return Err(Error::unsupported("FETCH together with LIMIT"));
    }
    if let Some(lock) = locks.first() {
        let what = match lock.lock_type {
            sql::LockType::Share => "FOR SHARE",
            sql::LockType::Update => "FOR UPDATE",
        };
        return Err(Error::unsupported(what).with_hint("rows are locked by the statement that writes them"));
    }
    refuse(for_clause.is_some(), "FOR XML and FOR JSON")?;
    refuse(settings.is_some(), "SETTINGS")?;
    refuse(format_clause.is_some(), "FORMAT")?;
    refuse(!pipe_operators.is_empty(), "the pipe operator |>")
}

fn check_with(with: &sql::With) -> Result<()> {
    let sql::With { with_token: _, recursive: _, cte_tables } = with;
    for sql::Cte { alias, query, from, materialized, closing_paren_token: _ } in cte_tables {
        check_alias(Some(alias))?;
        refuse(from.is_some(), "FROM in WITH")?;
        refuse(matches!(materialized, Some(sql::CteAsMaterialized::Materialized)), "AS MATERIALIZED")?;
        refuse(
            matches!(*query.body, SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_)),
            "a statement that writes inside WITH",
        )?;
    }
    Ok(())
}

fn check_set_expr(body: &SetExpr) -> Result<()> {
    match body {
        SetExpr::Select(_) | SetExpr::Query(_) => Ok(()),
        SetExpr::SetOperation { left, op, set_quantifier, right } => {
            refuse(matches!(op, sql::SetOperator::Minus), "MINUS")?;
            match set_quantifier {
                sql::SetQuantifier::All | sql::SetQuantifier::Distinct | sql::SetQuantifier::None => {}
                sql::SetQuantifier::ByName | sql::SetQuantifier::AllByName | sql::SetQuantifier::DistinctByName => {
                    return Err(Error::unsupported("BY NAME"));
                }
            }
            check_set_expr(left)?;
            check_set_expr(right)
        }
        SetExpr::Values(sql::Values { explicit_row, value_keyword, rows: _ }) => {
            refuse(*explicit_row, "ROW in VALUES")?;
            refuse(*value_keyword, "VALUE in place of VALUES")
        }
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
            Err(Error::unsupported("a statement that writes inside a query"))
        }
        SetExpr::Table(_) => Err(Error::unsupported("TABLE in this place").with_hint("write SELECT * FROM …")),
    }
}

fn check_order(order: &sql::OrderByExpr) -> Result<()> {
    let sql::OrderByExpr { expr: _, options: sql::OrderByOptions { asc: _, nulls_first: _ }, with_fill } = order;
    refuse(with_fill.is_some(), "WITH FILL")
}

fn check_select(select: &sql::Select) -> Result<()> {
    let sql::Select {
        select_token: _,
        optimizer_hints,
        distinct: _,
        select_modifiers,
        top,
        top_before_distinct: _,
        projection,
        exclude,
        into,
        from,
        lateral_views,
        prewhere,
        selection: _,
        connect_by,
        group_by,
        cluster_by,
        distribute_by,
        sort_by,
        having: _,
        named_window,
        qualify: _,
        window_before_qualify: _,
        value_table_mode,
        flavor,
    } = select;
    refuse(!optimizer_hints.is_empty(), "an optimizer hint")?;
    refuse(select_modifiers.as_ref().is_some_and(sql::SelectModifiers::is_any_set), "a modifier after SELECT")?;
    refuse(top.is_some(), "TOP")?;
    refuse(exclude.is_some(), "EXCLUDE")?;
    refuse(into.is_some(), "SELECT INTO")?;
    refuse(!lateral_views.is_empty(), "LATERAL VIEW")?;
    refuse(prewhere.is_some(), "PREWHERE")?;
    refuse(!connect_by.is_empty(), "CONNECT BY")?;
    refuse(!cluster_by.is_empty(), "CLUSTER BY")?;
    refuse(!distribute_by.is_empty(), "DISTRIBUTE BY")?;
    refuse(!sort_by.is_empty(), "SORT BY")?;
    refuse(value_table_mode.is_some(), "SELECT AS VALUE and AS STRUCT")?;
    refuse(!matches!(flavor, sql::SelectFlavor::Standard), "FROM before SELECT")?;
    match group_by {
        sql::GroupByExpr::All(_) => return Err(Error::unsupported("GROUP BY ALL")),
        sql::GroupByExpr::Expressions(_, modifiers) => refuse(!modifiers.is_empty(), "a modifier after GROUP BY")?,
    }
    for sql::NamedWindowDefinition(_, window) in named_window {
        if let sql::NamedWindowExpr::WindowSpec(window) = window {
            check_window(window)?;
        }
    }
    projection.iter().try_for_each(check_select_item)?;
    from.iter().try_for_each(check_joins)
}

fn check_select_item(item: &sql::SelectItem) -> Result<()> {
    match item {
        sql::SelectItem::UnnamedExpr(_) => Ok(()),
        sql::SelectItem::ExprWithAlias { expr: _, alias } => check_string_alias(alias),
        sql::SelectItem::ExprWithAliases { expr: _, aliases: _ } => {
            Err(Error::unsupported("several aliases for one expression"))
        }
        sql::SelectItem::QualifiedWildcard(kind, options) => {
            if let sql::SelectItemQualifiedWildcardKind::Expr(expr) = kind {
                return Err(Error::unsupported(format!("({expr}).*")));
            }
            check_wildcard(options)
        }
        sql::SelectItem::Wildcard(options) => check_wildcard(options),
    }
}

/// `vector '[1, 2]'` reads as a column with a string for an alias.
fn check_string_alias(alias: &Ident) -> Result<()> {
    if alias.quote_style == Some('\'') {
        return Err(Error::syntax(format!("syntax error: '{}' is not a name", alias.value))
            .with_hint("names are quoted with \"…\"; a value of another type is written '…'::type"));
    }
    Ok(())
}

fn check_wildcard(options: &sql::WildcardAdditionalOptions) -> Result<()> {
    let sql::WildcardAdditionalOptions {
        wildcard_token: _,
        opt_ilike,
        opt_exclude,
        opt_except,
        opt_replace,
        opt_rename,
        opt_alias,
    } = options;
    refuse(opt_ilike.is_some(), "* ILIKE")?;
    refuse(opt_exclude.is_some(), "* EXCLUDE")?;
    refuse(opt_except.is_some(), "* EXCEPT")?;
    refuse(opt_replace.is_some(), "* REPLACE")?;
    refuse(opt_rename.is_some(), "* RENAME")?;
    refuse(opt_alias.is_some(), "* AS alias")
}

/// The joins behind a table.
fn check_joins(table: &sql::TableWithJoins) -> Result<()> {
    let sql::TableWithJoins { relation: _, joins } = table;
    for sql::Join { relation: _, global, join_operator } in joins {
        refuse(*global, "GLOBAL JOIN")?;
        let constraint = match join_operator {
            sql::JoinOperator::Join(constraint)
            | sql::JoinOperator::Inner(constraint)
            | sql::JoinOperator::Left(constraint)
            | sql::JoinOperator::LeftOuter(constraint)
            | sql::JoinOperator::Right(constraint)
            | sql::JoinOperator::RightOuter(constraint)
            | sql::JoinOperator::FullOuter(constraint) => constraint,
            sql::JoinOperator::CrossJoin(constraint) => {
                refuse(!matches!(constraint, sql::JoinConstraint::None), "a condition on CROSS JOIN")?;
                continue;
            }
            sql::JoinOperator::Semi(_) | sql::JoinOperator::LeftSemi(_) | sql::JoinOperator::RightSemi(_) => {
                return Err(Error::unsupported("SEMI JOIN").with_hint("write WHERE EXISTS (…)"));
            }
            sql::JoinOperator::Anti(_) | sql::JoinOperator::LeftAnti(_) | sql::JoinOperator::RightAnti(_) => {
                return Err(Error::unsupported("ANTI JOIN").with_hint("write WHERE NOT EXISTS (…)"));
            }
            sql::JoinOperator::CrossApply | sql::JoinOperator::OuterApply => return Err(Error::unsupported("APPLY")),
            sql::JoinOperator::AsOf { match_condition: _, constraint: _ } => {
                return Err(Error::unsupported("ASOF JOIN"));
            }
            sql::JoinOperator::StraightJoin(_) => return Err(Error::unsupported("STRAIGHT_JOIN")),
            sql::JoinOperator::ArrayJoin | sql::JoinOperator::LeftArrayJoin | sql::JoinOperator::InnerArrayJoin => {
                return Err(Error::unsupported("ARRAY JOIN"));
            }
        };
        match constraint {
            sql::JoinConstraint::On(_) | sql::JoinConstraint::Using(_) | sql::JoinConstraint::Natural => {}
            sql::JoinConstraint::None => {
                return Err(
                    Error::syntax("syntax error: a join needs ON, USING or NATURAL").with_hint("or write CROSS JOIN")
                );
            }
        }
    }
    Ok(())
}

fn check_alias(alias: Option<&sql::TableAlias>) -> Result<()> {
    let Some(sql::TableAlias { explicit: _, name, columns, at }) = alias else { return Ok(()) };
    refuse(at.is_some(), "AT after an alias")?;
    super::check_name(name)?;
    check_string_alias(name)?;
    for sql::TableAliasColumnDef { name: _, data_type } in columns {
        refuse(data_type.is_some(), "types in a column alias list")?;
    }
    Ok(())
}

fn check_table_factor(factor: &TableFactor) -> Result<()> {
    match factor {
        TableFactor::Table {
            name,
            alias,
            args,
            with_hints,
            version,
            with_ordinality,
            partitions,
            json_path,
            sample,
            index_hints,
        } => {
            check_alias(alias.as_ref())?;
            super::check_names(name)?;
            if let Some(sql::TableFunctionArgs { args: _, settings }) = args {
                refuse(settings.is_some(), "SETTINGS")?;
            }
            refuse(!with_hints.is_empty(), "WITH (hints) on a table")?;
            refuse(*with_ordinality, "WITH ORDINALITY on a table")?;
            refuse(!partitions.is_empty(), "PARTITION on a table")?;
            refuse(json_path.is_some(), "a path on a table")?;
            refuse(sample.is_some(), "TABLESAMPLE")?;
            refuse(!index_hints.is_empty(), "an index hint")?;
            if let Some(version) = version {
                refuse(args.is_some(), "a time clause on a function")?;
                super::TableModifiers::from_version(version)?;
            }
            Ok(())
        }
        TableFactor::Derived { lateral: _, subquery: _, alias, sample } => {
            check_alias(alias.as_ref())?;
            refuse(sample.is_some(), "TABLESAMPLE")
        }
        TableFactor::Function { lateral: _, name: _, args: _, with_ordinality, alias } => {
            refuse(*with_ordinality, "WITH ORDINALITY on this function")?;
            check_alias(alias.as_ref())
        }
        TableFactor::UNNEST { alias, array_exprs: _, with_offset, with_offset_alias, with_ordinality } => {
            refuse(*with_offset || with_offset_alias.is_some(), "WITH OFFSET")?;
            refuse(*with_ordinality, "WITH ORDINALITY on this UNNEST")?;
            check_alias(alias.as_ref())
        }
        TableFactor::NestedJoin { table_with_joins, alias } => {
            check_alias(alias.as_ref())?;
            check_joins(table_with_joins)
        }
        TableFactor::TableFunction { .. } => Err(Error::unsupported("TABLE(…) in FROM")),
        TableFactor::JsonTable { .. } => Err(Error::unsupported("JSON_TABLE")),
        TableFactor::OpenJsonTable { .. } => Err(Error::unsupported("OPENJSON")),
        TableFactor::Pivot { .. } => Err(Error::unsupported("PIVOT")),
        TableFactor::Unpivot { .. } => Err(Error::unsupported("UNPIVOT")),
        TableFactor::MatchRecognize { .. } => Err(Error::unsupported("MATCH_RECOGNIZE")),
        TableFactor::XmlTable { .. } => Err(Error::unsupported("XMLTABLE")),
        TableFactor::SemanticView { .. } => Err(Error::unsupported("SEMANTIC_VIEW")),
    }
}

fn check_window(window: &sql::WindowSpec) -> Result<()> {
    let sql::WindowSpec { window_name, partition_by: _, order_by, window_frame } = window;
    refuse(window_name.is_some(), "a window that extends another")?;
    if let Some(sql::WindowFrame { units: _, start_bound: _, end_bound: _ }) = window_frame {}
    order_by.iter().try_for_each(check_order)
}

fn check_function(function: &sql::Function) -> Result<()> {
    let sql::Function { name, uses_odbc_syntax: _, parameters, args, filter: _, null_treatment: _, over, within_group } =
        function;
    refuse(!matches!(parameters, sql::FunctionArguments::None), "parameters before the arguments of a function")?;
    match args {
        sql::FunctionArguments::None => {}
        sql::FunctionArguments::Subquery(_) => {
            return Err(Error::unsupported(format!("a query as the argument of {name}")));
        }
        sql::FunctionArguments::List(sql::FunctionArgumentList { duplicate_treatment: _, args, clauses }) => {
            for argument in args {
                let value = match argument {
                    sql::FunctionArg::Unnamed(value) => value,
                    sql::FunctionArg::Named { name: _, arg, operator: _ } => arg,
                    sql::FunctionArg::ExprNamed { .. } => {
                        return Err(Error::unsupported(format!("an expression as the name of an argument of {name}")));
                    }
                };
                match value {
                    sql::FunctionArgExpr::Expr(_) | sql::FunctionArgExpr::Wildcard => {}
                    sql::FunctionArgExpr::QualifiedWildcard(table) => {
                        return Err(Error::unsupported(format!("{name}({table})")));
                    }
                    sql::FunctionArgExpr::WildcardWithOptions(_) => {
                        return Err(Error::unsupported(format!("a wildcard with options in {name}")));
                    }
                }
            }
            for clause in clauses {
                match clause {
                    sql::FunctionArgumentClause::OrderBy(order) => order.iter().try_for_each(check_order)?,
                    sql::FunctionArgumentClause::IgnoreOrRespectNulls(_) => {}
                    sql::FunctionArgumentClause::Limit(_) => {
                        return Err(Error::unsupported(format!("LIMIT in {name}")));
                    }
                    sql::FunctionArgumentClause::OnOverflow(_) => {
                        return Err(Error::unsupported(format!("ON OVERFLOW in {name}")));
                    }
                    sql::FunctionArgumentClause::Having(_) => {
                        return Err(Error::unsupported(format!("HAVING in {name}")));
                    }
                    sql::FunctionArgumentClause::Separator(_) => {
                        return Err(Error::unsupported(format!("SEPARATOR in {name}")));
                    }
                    sql::FunctionArgumentClause::JsonNullClause(_) => {
                        return Err(Error::unsupported(format!("NULL ON NULL and ABSENT ON NULL in {name}")));
                    }
                    sql::FunctionArgumentClause::JsonReturningClause(_) => {
                        return Err(Error::unsupported(format!("RETURNING in {name}")));
                    }
                }
            }
        }
    }
    if let Some(sql::WindowType::WindowSpec(window)) = over {
        check_window(window)?;
    }
    within_group.iter().try_for_each(check_order)
}

fn check_expr(expr: &Expr) -> Result<()> {
    match expr {
        Expr::Identifier(name) => super::check_name(name),
        Expr::CompoundIdentifier(_)
        | Expr::CompoundFieldAccess { root: _, access_chain: _ }
        | Expr::IsFalse(_)
        | Expr::IsNotFalse(_)
        | Expr::IsTrue(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotUnknown(_)
        | Expr::IsDistinctFrom(_, _)
        | Expr::IsNotDistinctFrom(_, _)
        | Expr::InList { expr: _, list: _, negated: _ }
        | Expr::InSubquery { expr: _, subquery: _, negated: _ }
        | Expr::Between { expr: _, negated: _, low: _, high: _ }
        | Expr::AnyOp { left: _, compare_op: _, right: _, is_some: _ }
        | Expr::AllOp { left: _, compare_op: _, right: _ }
        | Expr::SimilarTo { negated: _, expr: _, pattern: _, escape_char: _ }
        | Expr::Position { expr: _, r#in: _ }
        | Expr::Substring { expr: _, substring_from: _, substring_for: _, special: _, shorthand: _ }
        | Expr::Overlay { expr: _, overlay_what: _, overlay_from: _, overlay_for: _ }
        | Expr::Nested(_)
        | Expr::Value(_)
        | Expr::Case { case_token: _, end_token: _, operand: _, conditions: _, else_result: _ }
        | Expr::Exists { subquery: _, negated: _ }
        | Expr::Subquery(_)
        | Expr::GroupingSets(_)
        | Expr::Cube(_)
        | Expr::Rollup(_)
        | Expr::Tuple(_) => Ok(()),
        Expr::BinaryOp { left: _, op, right: _ } => check_operator(op),
        Expr::UnaryOp { op, expr: _ } => match op {
            sql::UnaryOperator::Plus
            | sql::UnaryOperator::Minus
            | sql::UnaryOperator::Not
            | sql::UnaryOperator::BitwiseNot => Ok(()),
            other => Err(Error::unsupported(format!("the operator {other}"))),
        },
        Expr::Like { negated: _, any, expr: _, pattern: _, escape_char: _ } => refuse(*any, "LIKE ANY"),
        Expr::ILike { negated: _, any, expr: _, pattern: _, escape_char: _ } => refuse(*any, "ILIKE ANY"),
        // The type planner refuses the types we do not have.
        Expr::Cast { kind: _, expr: _, data_type: _, array, format } => {
            refuse(*array, "CAST … ARRAY")?;
            refuse(format.is_some(), "CAST … FORMAT")?;
            Ok(())
        }
        Expr::TypedString(sql::TypedString { data_type: _, value: _, uses_odbc_syntax: _ }) => Ok(()),
        Expr::Extract { field: _, syntax, expr: _ } => {
            refuse(matches!(syntax, sql::ExtractSyntax::Comma), "EXTRACT with a comma")
        }
        Expr::Ceil { expr: _, field } | Expr::Floor { expr: _, field } => match field {
            sql::CeilFloorKind::DateTimeField(sql::DateTimeField::NoDateTime) => Ok(()),
            _ => Err(Error::unsupported("CEIL and FLOOR with a field or scale")),
        },
        Expr::Trim { trim_where: _, trim_what, expr: _, trim_characters } => {
            refuse(trim_what.is_some() && trim_characters.is_some(), "TRIM with two lists of characters")?;
            refuse(trim_characters.as_ref().is_some_and(|list| list.len() > 1), "TRIM with several lists of characters")
        }
        Expr::Function(function) => check_function(function),
        Expr::Array(sql::Array { elem, named }) => {
            refuse(elem.iter().any(|item| matches!(item, Expr::Array(_))), "an array of arrays")?;
            if *named { Ok(()) } else { Err(Error::syntax("syntax error: an array is written ARRAY[…]")) }
        }
        Expr::Interval(sql::Interval {
            value: _,
            leading_field: _,
            leading_precision,
            last_field,
            fractional_seconds_precision,
        }) => {
            refuse(leading_precision.is_some() || fractional_seconds_precision.is_some(), "a precision in INTERVAL")?;
            refuse(last_field.is_some(), "a range of fields in INTERVAL")
        }
        Expr::AtTimeZone { .. } => Err(Error::internal("AT TIME ZONE was not rewritten")),
        Expr::Collate { expr: _, collation } => check_collation(collation),
        Expr::JsonAccess { .. } => {
            Err(Error::unsupported("access to JSON with a colon").with_hint("write value -> 'key'"))
        }
        Expr::IsNormalized { .. } => Err(Error::unsupported("IS NORMALIZED")),
        Expr::InUnnest { .. } => Err(Error::unsupported("IN UNNEST").with_hint("write value = ANY(array)")),
        Expr::RLike { .. } => Err(Error::unsupported("RLIKE and REGEXP").with_hint("write value ~ 'pattern'")),
        Expr::Convert { .. } => Err(Error::unsupported("CONVERT").with_hint("write CAST(value AS type)")),
        Expr::Prefixed { prefix, .. } => Err(Error::unsupported(format!("a string with the prefix {prefix}"))),
        Expr::Struct { .. } => Err(Error::unsupported("STRUCT")),
        Expr::Named { .. } => Err(Error::unsupported("AS inside an expression")),
        Expr::Dictionary(_) => Err(Error::unsupported("a dictionary literal")),
        Expr::Map(_) => Err(Error::unsupported("a map literal")),
        Expr::MatchAgainst { .. } => Err(Error::unsupported("MATCH … AGAINST")),
        Expr::Wildcard(_) | Expr::QualifiedWildcard(_, _) => Err(Error::syntax("syntax error: * in an expression")),
        Expr::OuterJoin(_) => Err(Error::unsupported("the outer join operator (+)").with_hint("write LEFT JOIN")),
        Expr::Prior(_) => Err(Error::unsupported("PRIOR")),
        Expr::Lambda(_) => Err(Error::unsupported("a lambda")),
        Expr::MemberOf(_) => Err(Error::unsupported("MEMBER OF")),
    }
}

/// Operators that the planner or our own expression planner knows.
fn check_operator(op: &sql::BinaryOperator) -> Result<()> {
    use sql::BinaryOperator as Op;
    match op {
        Op::Plus
        | Op::Minus
        | Op::Multiply
        | Op::Divide
        | Op::Modulo
        | Op::StringConcat
        | Op::Gt
        | Op::Lt
        | Op::GtEq
        | Op::LtEq
        | Op::Spaceship
        | Op::Eq
        | Op::NotEq
        | Op::And
        | Op::Or
        | Op::BitwiseOr
        | Op::BitwiseAnd
        | Op::BitwiseXor
        | Op::PGBitwiseXor
        | Op::PGBitwiseShiftLeft
        | Op::PGBitwiseShiftRight
        | Op::PGExp
        | Op::PGRegexMatch
        | Op::PGRegexIMatch
        | Op::PGRegexNotMatch
        | Op::PGRegexNotIMatch
        | Op::PGLikeMatch
        | Op::PGILikeMatch
        | Op::PGNotLikeMatch
        | Op::PGNotILikeMatch
        | Op::PGStartsWith
        | Op::PGOverlap
        | Op::Arrow
        | Op::LongArrow
        | Op::HashArrow
        | Op::HashLongArrow
        | Op::AtArrow
        | Op::ArrowAt
        | Op::HashMinus
        | Op::Question
        | Op::QuestionAnd
        | Op::QuestionPipe
        | Op::LtDashGt
        | Op::Overlaps => Ok(()),
        Op::Custom(text) if matches!(text.as_str(), "<#>" | "<=>" | "<->") => Ok(()),
        other => Err(Error::unsupported(format!("the operator {other}"))),
    }
}
