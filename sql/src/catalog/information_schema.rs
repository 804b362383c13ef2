//! The system views: computed from the catalog and the engine when a statement names them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;

use super::{
    CATALOG_NAME, FIRST_SESSION_SCHEMA, INFORMATION_SCHEMA, LATTICE_SCHEMA, PG_CATALOG, Relation, Sequence, SqlType,
    TableEntry, View,
};
use crate::Result;
use crate::plan::Scope;

/// A cell.
enum Cell {
    Text(Option<String>),
    Number(Option<i64>),
    Small(Option<i32>),
    Flag(bool),
    Time(i64),
    Share(Option<f64>),
}

fn text(value: impl Into<String>) -> Cell {
    Cell::Text(Some(value.into()))
}

fn maybe(value: Option<String>) -> Cell {
    Cell::Text(value)
}

fn yes_no(value: bool) -> Cell {
    text(if value { "YES" } else { "NO" })
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Number,
    Small,
    Flag,
    Time,
    Share,
}
use Kind::{Flag, Number, Share, Small, Text, Time};

/// The views of a schema, with their columns.
const VIEWS: &[(&str, &str, &[(&str, Kind)])] = &[
    (
        INFORMATION_SCHEMA,
        "schemata",
        &[("catalog_name", Text), ("schema_name", Text), ("schema_owner", Text), ("default_character_set_name", Text)],
    ),
    (
        INFORMATION_SCHEMA,
        "tables",
        &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("table_type", Text),
            ("is_insertable_into", Text),
            ("commit_action", Text),
        ],
    ),
    (
        INFORMATION_SCHEMA,
        "columns",
        &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("column_name", Text),
            ("ordinal_position", Small),
            ("column_default", Text),
            ("is_nullable", Text),
            ("data_type", Text),
            ("character_maximum_length", Small),
            ("numeric_precision", Small),
            ("numeric_precision_radix", Small),
            ("numeric_scale", Small),
            ("datetime_precision", Small),
            ("udt_name", Text),
            ("is_identity", Text),
            ("identity_generation", Text),
            ("is_generated", Text),
            ("generation_expression", Text),
            ("is_updatable", Text),
        ],
    ),
    (
        INFORMATION_SCHEMA,
        "views",
        &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("view_definition", Text),
            ("check_option", Text),
            ("is_updatable", Text),
        ],
    ),
    (
        INFORMATION_SCHEMA,
        "table_constraints",
        &[
            ("constraint_catalog", Text),
            ("constraint_schema", Text),
            ("constraint_name", Text),
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("constraint_type", Text),
            ("is_deferrable", Text),
            ("initially_deferred", Text),
            ("enforced", Text),
        ],
    ),
    (
        INFORMATION_SCHEMA,
        "key_column_usage",
        &[
            ("constraint_catalog", Text),
            ("constraint_schema", Text),
            ("constraint_name", Text),
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("column_name", Text),
            ("ordinal_position", Small),
            ("position_in_unique_constraint", Small),
        ],
    ),
    (
        INFORMATION_SCHEMA,
        "constraint_column_usage",
        &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("column_name", Text),
            ("constraint_catalog", Text),
            ("constraint_schema", Text),
            ("constraint_name", Text),
        ],
    ),
    (
        INFORMATION_SCHEMA,
        "referential_constraints",
        &[
            ("constraint_catalog", Text),
            ("constraint_schema", Text),
            ("constraint_name", Text),
            ("unique_constraint_catalog", Text),
            ("unique_constraint_schema", Text),
            ("unique_constraint_name", Text),
            ("match_option", Text),
            ("update_rule", Text),
            ("delete_rule", Text),
        ],
    ),
    (
        INFORMATION_SCHEMA,
        "check_constraints",
        &[("constraint_catalog", Text), ("constraint_schema", Text), ("constraint_name", Text), ("check_clause", Text)],
    ),
    (
        INFORMATION_SCHEMA,
        "sequences",
        &[
            ("sequence_catalog", Text),
            ("sequence_schema", Text),
            ("sequence_name", Text),
            ("data_type", Text),
            ("start_value", Text),
            ("minimum_value", Text),
            ("maximum_value", Text),
            ("increment", Text),
            ("cycle_option", Text),
        ],
    ),
    (
        LATTICE_SCHEMA,
        "tables",
        &[
            ("table_id", Number),
            ("schema_name", Text),
            ("table_name", Text),
            ("rows", Number),
            ("rows_exact", Flag),
            ("rows_in_row_tier", Number),
            ("row_tier_bytes", Number),
            ("files", Number),
            ("staged_files", Number),
            ("column_rows", Number),
            ("column_bytes", Number),
            ("history_rows", Number),
            ("history_bytes", Number),
            ("cut", Time),
            ("current_version", Number),
            ("history_version", Number),
        ],
    ),
    (
        LATTICE_SCHEMA,
        "indexes",
        &[
            ("index_id", Number),
            ("schema_name", Text),
            ("table_name", Text),
            ("index_name", Text),
            ("columns", Text),
            ("is_unique", Flag),
        ],
    ),
    (
        LATTICE_SCHEMA,
        "queries",
        &[
            ("id", Number),
            ("session", Number),
            ("principal", Text),
            ("state", Text),
            ("started_at", Time),
            ("rows", Number),
            ("progress", Share),
            ("sql", Text),
        ],
    ),
    (LATTICE_SCHEMA, "settings", &[("name", Text), ("setting", Text), ("description", Text)]),
    (LATTICE_SCHEMA, "metrics", &[("name", Text), ("value", Number)]),
    (PG_CATALOG, "pg_namespace", &[("oid", Number), ("nspname", Text)]),
    (
        PG_CATALOG,
        "pg_class",
        &[("oid", Number), ("relname", Text), ("relnamespace", Number), ("relkind", Text), ("reltuples", Number)],
    ),
    (
        PG_CATALOG,
        "pg_attribute",
        &[
            ("attrelid", Number),
            ("attname", Text),
            ("attnum", Small),
            ("attnotnull", Flag),
            ("atttypname", Text),
            ("attisdropped", Flag),
        ],
    ),
    (PG_CATALOG, "pg_tables", &[("schemaname", Text), ("tablename", Text), ("tableowner", Text), ("hasindexes", Flag)]),
    (PG_CATALOG, "pg_views", &[("schemaname", Text), ("viewname", Text), ("definition", Text)]),
    (PG_CATALOG, "pg_indexes", &[("schemaname", Text), ("tablename", Text), ("indexname", Text), ("indexdef", Text)]),
    (PG_CATALOG, "pg_settings", &[("name", Text), ("setting", Text), ("short_desc", Text)]),
    (PG_CATALOG, "pg_database", &[("oid", Number), ("datname", Text)]),
];

/// The names of a schema's views.
pub(crate) fn names(schema: &str) -> impl Iterator<Item = &'static str> {
    VIEWS.iter().filter(move |(of, _, _)| *of == schema).map(|(_, name, _)| *name)
}

/// All views with their Arrow columns.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str, Arc<Schema>)> {
    VIEWS.iter().map(|(schema, name, columns)| (*schema, *name, schema_of(columns)))
}

fn schema_of(columns: &[(&str, Kind)]) -> Arc<Schema> {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, kind)| {
            let data_type = match kind {
                Text => DataType::Utf8,
                Number => DataType::Int64,
                Small => DataType::Int32,
                Flag => DataType::Boolean,
                Time => DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some(Arc::from("UTC"))),
                Share => DataType::Float64,
            };
            Field::new(*name, data_type, true)
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// A system view's rows, if there is such a view.
pub(crate) fn provider(scope: &Scope, schema: &str, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
    let Some((_, _, columns)) = VIEWS.iter().find(|(of, known, _)| *of == schema && *known == name) else {
        return Ok(None);
    };
    let rows = rows(scope, schema, name);
    Ok(Some(Arc::new(table(columns, rows)?)))
}

fn table(columns: &[(&str, Kind)], rows: Vec<Vec<Cell>>) -> Result<MemTable> {
    let schema = schema_of(columns);
    let mut rows: Vec<_> = rows.into_iter().map(Vec::into_iter).collect();
    let arrays: Vec<ArrayRef> = columns
        .iter()
        .map(|(_, kind)| {
            let cells: Vec<Option<Cell>> = rows.iter_mut().map(Iterator::next).collect();
            let array: ArrayRef = match kind {
                Text => Arc::new(
                    cells
                        .into_iter()
                        .map(|cell| match cell {
                            Some(Cell::Text(text)) => text,
                            _ => None,
                        })
                        .collect::<StringArray>(),
                ),
                Number => Arc::new(
                    cells
                        .into_iter()
                        .map(|cell| match cell {
                            Some(Cell::Number(number)) => number,
                            _ => None,
                        })
                        .collect::<Int64Array>(),
                ),
                Small => Arc::new(
                    cells
                        .into_iter()
                        .map(|cell| match cell {
                            Some(Cell::Small(number)) => number,
                            _ => None,
                        })
                        .collect::<Int32Array>(),
                ),
                Flag => Arc::new(
                    cells
                        .into_iter()
                        .map(|cell| match cell {
                            Some(Cell::Flag(flag)) => Some(flag),
                            _ => None,
                        })
                        .collect::<BooleanArray>(),
                ),
                Time => Arc::new(
                    cells
                        .into_iter()
                        .map(|cell| match cell {
                            Some(Cell::Time(time)) => Some(time),
                            _ => None,
                        })
                        .collect::<TimestampMicrosecondArray>()
                        .with_timezone("UTC"),
                ),
                Share => Arc::new(
                    cells
                        .into_iter()
                        .map(|cell| match cell {
                            Some(Cell::Share(share)) => share,
                            _ => None,
                        })
                        .collect::<Float64Array>(),
                ),
            };
            array
        })
        .collect();
    let batch = RecordBatch::try_new(schema.clone(), arrays)?;
    Ok(MemTable::try_new(schema, vec![vec![batch]])?)
}

/// A sequence read as a table, as PostgreSQL allows.
pub(crate) fn sequence(scope: &Scope, sequence: &Sequence) -> Result<Arc<dyn TableProvider>> {
    let last = scope.session.current_sequence(sequence.id).unwrap_or(sequence.base);
    let row = vec![Cell::Number(Some(last)), Cell::Flag(scope.session.current_sequence(sequence.id).is_some())];
    Ok(Arc::new(table(&[("last_value", Number), ("is_called", Flag)], vec![row])?))
}

/// Schemas this session may see: not the temporary ones of others.
fn shown(scope: &Scope, schema: u32) -> Option<String> {
    let name = scope.catalog.schema_name(schema);
    let own = format!("{FIRST_SESSION_SCHEMA}{}", scope.session.id);
    (!name.starts_with(FIRST_SESSION_SCHEMA) || name == own).then(|| name.to_owned())
}

fn shown_tables(scope: &Scope) -> impl Iterator<Item = (String, &Arc<TableEntry>)> {
    scope.catalog.tables().filter_map(|table| Some((shown(scope, table.def.schema)?, table)))
}

fn shown_views(scope: &Scope) -> impl Iterator<Item = (String, &Arc<View>)> {
    scope.catalog.relations().filter_map(|relation| match relation {
        Relation::View(view) => Some((shown(scope, view.schema)?, view)),
        _ => None,
    })
}

/// The SQL standard's words for types.
fn standard_name(name: &str) -> String {
    let base = name.split('(').next().unwrap_or(name);
    match base {
        _ if name.ends_with("[]") => "ARRAY",
        "varchar" => "character varying",
        "char" => "character",
        "timestamp" => "timestamp without time zone",
        "timestamptz" => "timestamp with time zone",
        "time" => "time without time zone",
        other => other,
    }
    .to_owned()
}

struct ColumnFacts<'a> {
    schema: &'a str,
    table: &'a str,
    name: &'a str,
    ordinal: usize,
    sql_type: &'a str,
    nullable: bool,
    default: Option<String>,
    identity: Option<bool>,
    generated: Option<String>,
    updatable: bool,
}

fn column_row(facts: ColumnFacts<'_>) -> Vec<Cell> {
    let parsed = SqlType::parse(facts.sql_type).ok();
    let data_type = parsed.as_ref().map(|parsed| parsed.data_type().clone());
    let (precision, scale) = parsed.as_ref().map_or((None, None), SqlType::precision);
    let length = parsed.as_ref().and_then(SqlType::length).and_then(|length| i32::try_from(length).ok());
    let numeric = data_type.as_ref().is_some_and(DataType::is_numeric);
    let time = matches!(data_type, Some(DataType::Timestamp(..) | DataType::Time64(_) | DataType::Interval(_)));
    vec![
        text(CATALOG_NAME),
        text(facts.schema),
        text(facts.table),
        text(facts.name),
        Cell::Small(i32::try_from(facts.ordinal).ok()),
        maybe(facts.default),
        yes_no(facts.nullable),
        text(standard_name(facts.sql_type)),
        Cell::Small(length),
        Cell::Small(if numeric { precision } else { None }),
        Cell::Small(numeric.then_some(10)),
        Cell::Small(if numeric { scale } else { None }),
        Cell::Small(time.then_some(6)),
        text(facts.sql_type.split('(').next().unwrap_or(facts.sql_type)),
        yes_no(facts.identity.is_some()),
        maybe(facts.identity.map(|always| if always { "ALWAYS" } else { "BY DEFAULT" }.to_owned())),
        text(if facts.generated.is_some() { "ALWAYS" } else { "NEVER" }),
        maybe(facts.generated),
        yes_no(facts.updatable),
    ]
}

/// A constraint: (schema, table, name, type, columns).
struct ConstraintFacts {
    schema: String,
    table: Arc<TableEntry>,
    name: String,
    kind: &'static str,
    columns: Vec<u32>,
    foreign: Option<usize>,
    clause: Option<String>,
}

fn constraints(scope: &Scope) -> Vec<ConstraintFacts> {
    let mut all = Vec::new();
    for (schema, table) in shown_tables(scope) {
        let mut push = |name: &str, kind, columns: &[u32], foreign, clause| {
            all.push(ConstraintFacts {
                schema: schema.clone(),
                table: table.clone(),
                name: name.to_owned(),
                kind,
                columns: columns.to_vec(),
                foreign,
                clause,
            });
        };
        if let Some(key) = &table.def.primary_key {
            push(&key.name, "PRIMARY KEY", &key.columns, None, None);
        }
        for index in table.indexes.iter().filter(|index| index.def.constraint) {
            push(&index.def.name, "UNIQUE", &index.def.columns, None, None);
        }
        for (at, key) in table.def.foreign_keys.iter().enumerate() {
            push(&key.name, "FOREIGN KEY", &key.columns, Some(at), None);
        }
        for check in &table.def.checks {
            push(&check.name, "CHECK", &[], None, Some(check.expression.clone()));
        }
    }
    all
}

/// The name of the key that a foreign key stands on.
pub(crate) fn referred_key(scope: &Scope, key: &super::ForeignKey) -> Option<(String, String)> {
    let parent = scope.catalog.table_by_id(key.table).ok()?;
    let name = match parent.unique_over(&key.referred)? {
        super::UniqueKey::Primary(key) => key.name.clone(),
        super::UniqueKey::Index(index) => index.def.name.clone(),
    };
    Some((scope.catalog.schema_name(parent.def.schema).to_owned(), name))
}

fn rows(scope: &Scope, schema: &str, name: &str) -> Vec<Vec<Cell>> {
    let catalog = &scope.catalog;
    let number = |value: u64| Cell::Number(i64::try_from(value).ok());
    let count = |value: usize| Cell::Number(i64::try_from(value).ok());
    match (schema, name) {
        (INFORMATION_SCHEMA, "schemata") => {
            let mut rows: Vec<Vec<Cell>> = catalog
                .schemas()
                .filter(|schema| shown(scope, schema.id).is_some())
                .map(|schema| vec![text(CATALOG_NAME), text(&*schema.name), maybe(schema.owner.clone()), maybe(None)])
                .collect();
            for schema in [INFORMATION_SCHEMA, LATTICE_SCHEMA, PG_CATALOG] {
                rows.push(vec![text(CATALOG_NAME), text(schema), text("system"), maybe(None)]);
            }
            rows
        }
        (INFORMATION_SCHEMA, "tables") => {
            let mut rows = Vec::new();
            for (schema, table) in shown_tables(scope) {
                let kind = if table.temporary { "LOCAL TEMPORARY" } else { "BASE TABLE" };
                rows.push(vec![
                    text(CATALOG_NAME),
                    text(schema),
                    text(&*table.def.name),
                    text(kind),
                    yes_no(true),
                    maybe(table.def.on_commit.clone()),
                ]);
            }
            for (schema, view) in shown_views(scope) {
                rows.push(vec![
                    text(CATALOG_NAME),
                    text(schema),
                    text(&*view.name),
                    text("VIEW"),
                    yes_no(false),
                    maybe(None),
                ]);
            }
            for (schema, name, _) in VIEWS {
                rows.push(vec![
                    text(CATALOG_NAME),
                    text(*schema),
                    text(*name),
                    text("VIEW"),
                    yes_no(false),
                    maybe(None),
                ]);
            }
            rows
        }
        (INFORMATION_SCHEMA, "columns") => {
            let mut rows = Vec::new();
            for (schema, table) in shown_tables(scope) {
                for (ordinal, &at) in table.visible.iter().enumerate() {
                    let column = &table.def.columns[at];
                    rows.push(column_row(ColumnFacts {
                        schema: &schema,
                        table: &table.def.name,
                        name: &column.name,
                        ordinal: ordinal + 1,
                        sql_type: &column.sql_type,
                        nullable: column.nullable,
                        default: column.default.clone(),
                        identity: column.identity.as_ref().map(|identity| identity.always),
                        generated: column.generated.clone(),
                        updatable: column.generated.is_none(),
                    }));
                }
            }
            for (schema, view) in shown_views(scope) {
                for (ordinal, (name, sql_type)) in view.columns.iter().zip(&view.types).enumerate() {
                    rows.push(column_row(ColumnFacts {
                        schema: &schema,
                        table: &view.name,
                        name,
                        ordinal: ordinal + 1,
                        sql_type,
                        nullable: true,
                        default: None,
                        identity: None,
                        generated: None,
                        updatable: false,
                    }));
                }
            }
            for (schema, name, arrow) in all() {
                for (ordinal, field) in arrow.fields().iter().enumerate() {
                    let sql_type = SqlType::from_arrow(field)
                        .map_or_else(|_| "text".to_owned(), |sql_type| sql_type.name().to_owned());
                    rows.push(column_row(ColumnFacts {
                        schema,
                        table: name,
                        name: field.name(),
                        ordinal: ordinal + 1,
                        sql_type: &sql_type,
                        nullable: true,
                        default: None,
                        identity: None,
                        generated: None,
                        updatable: false,
                    }));
                }
            }
            rows
        }
        (INFORMATION_SCHEMA, "views") => shown_views(scope)
            .map(|(schema, view)| {
                vec![
                    text(CATALOG_NAME),
                    text(schema),
                    text(&*view.name),
                    text(&*view.query),
                    text("NONE"),
                    yes_no(false),
                ]
            })
            .collect(),
        (INFORMATION_SCHEMA, "table_constraints") => constraints(scope)
            .into_iter()
            .map(|it| {
                vec![
                    text(CATALOG_NAME),
                    text(&*it.schema),
                    text(it.name),
                    text(CATALOG_NAME),
                    text(&*it.schema),
                    text(&*it.table.def.name),
                    text(it.kind),
                    yes_no(false),
                    yes_no(false),
                    yes_no(true),
                ]
            })
            .collect(),
        (INFORMATION_SCHEMA, "key_column_usage") => constraints(scope)
            .into_iter()
            .flat_map(|it| {
                it.columns
                    .iter()
                    .enumerate()
                    .map(|(at, &id)| {
                        let place = i32::try_from(at + 1).ok();
                        vec![
                            text(CATALOG_NAME),
                            text(&*it.schema),
                            text(&*it.name),
                            text(CATALOG_NAME),
                            text(&*it.schema),
                            text(&*it.table.def.name),
                            text(it.table.def.column_name(id)),
                            Cell::Small(place),
                            Cell::Small(it.foreign.and(place)),
                        ]
                    })
                    .collect::<Vec<_>>()
            })
            .collect(),
        (INFORMATION_SCHEMA, "constraint_column_usage") => constraints(scope)
            .into_iter()
            .flat_map(|it| {
                let (table, columns) = match it.foreign.map(|at| &it.table.def.foreign_keys[at]) {
                    Some(key) => match catalog.table_by_id(key.table) {
                        Ok(parent) => (parent.clone(), key.referred.clone()),
                        Err(_) => (it.table.clone(), Vec::new()),
                    },
                    None => (it.table.clone(), it.columns.clone()),
                };
                let schema = catalog.schema_name(table.def.schema).to_owned();
                columns
                    .iter()
                    .map(|&id| {
                        vec![
                            text(CATALOG_NAME),
                            text(&*schema),
                            text(&*table.def.name),
                            text(table.def.column_name(id)),
                            text(CATALOG_NAME),
                            text(&*it.schema),
                            text(&*it.name),
                        ]
                    })
                    .collect::<Vec<_>>()
            })
            .collect(),
        (INFORMATION_SCHEMA, "referential_constraints") => constraints(scope)
            .into_iter()
            .filter_map(|it| {
                let key = &it.table.def.foreign_keys[it.foreign?];
                let (schema, name) = referred_key(scope, key).unzip();
                Some(vec![
                    text(CATALOG_NAME),
                    text(&*it.schema),
                    text(&*it.name),
                    text(CATALOG_NAME),
                    maybe(schema),
                    maybe(name),
                    text("NONE"),
                    text(key.on_update.word()),
                    text(key.on_delete.word()),
                ])
            })
            .collect(),
        (INFORMATION_SCHEMA, "check_constraints") => constraints(scope)
            .into_iter()
            .filter_map(|it| Some(vec![text(CATALOG_NAME), text(it.schema), text(it.name), text(it.clause?)]))
            .collect(),
        (INFORMATION_SCHEMA, "sequences") => catalog
            .relations()
            .filter_map(|relation| match relation {
                Relation::Sequence(it) => Some(vec![
                    text(CATALOG_NAME),
                    text(shown(scope, it.schema)?),
                    text(&*it.name),
                    text(&*it.sql_type),
                    text(it.start.to_string()),
                    text(it.min.to_string()),
                    text(it.max.to_string()),
                    text(it.increment.to_string()),
                    yes_no(it.cycle),
                ]),
                _ => None,
            })
            .collect(),
        (LATTICE_SCHEMA, "tables") => shown_tables(scope)
            .map(|(schema, table)| {
                let info = scope.engine().store.table_info(table.id()).unwrap_or_default();
                let counted = scope.reader.view(&table.stored).map(|view| view.row_count());
                vec![
                    Cell::Number(Some(i64::from(table.def.id))),
                    text(schema),
                    text(&*table.def.name),
                    counted.as_ref().map_or(Cell::Number(None), |it| count(it.rows)),
                    Cell::Flag(counted.as_ref().is_ok_and(|it| it.exact)),
                    count(info.rows_in_row_tier),
                    count(info.row_tier_bytes),
                    count(info.files),
                    count(info.staged_files),
                    number(info.column_rows),
                    number(info.column_bytes),
                    number(info.history_rows),
                    number(info.history_bytes),
                    Cell::Time(info.cut.0),
                    number(info.current_version),
                    number(info.history_version),
                ]
            })
            .collect(),
        (LATTICE_SCHEMA, "indexes") => shown_tables(scope)
            .flat_map(|(schema, table)| {
                table
                    .indexes
                    .iter()
                    .map(|index| {
                        let columns: Vec<&str> =
                            index.def.columns.iter().map(|&id| table.def.column_name(id)).collect();
                        vec![
                            Cell::Number(Some(i64::from(index.def.id))),
                            text(&*schema),
                            text(&*table.def.name),
                            text(&*index.def.name),
                            text(columns.join(", ")),
                            Cell::Flag(index.def.unique),
                        ]
                    })
                    .collect::<Vec<_>>()
            })
            .collect(),
        (LATTICE_SCHEMA, "queries") => {
            let principal = &scope.session.principal;
            scope
                .engine()
                .queries
                .list()
                .into_iter()
                .filter(|query| principal.is_admin() || query.principal == principal.name())
                .map(|query| {
                    let started = query.started_at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                    vec![
                        number(query.id),
                        number(query.session.0),
                        text(query.principal),
                        text(query.state),
                        Cell::Time(i64::try_from(started.as_micros()).unwrap_or(i64::MAX)),
                        number(query.rows),
                        Cell::Share(query.progress),
                        text(&*query.sql),
                    ]
                })
                .collect()
        }
        (LATTICE_SCHEMA, "settings") | (PG_CATALOG, "pg_settings") => scope
            .session
            .settings
            .read()
            .all()
            .into_iter()
            .map(|(name, value, description)| vec![text(name), text(value), text(description)])
            .collect(),
        (LATTICE_SCHEMA, "metrics") => {
            let stats = scope.engine().store.stats();
            let counters = &scope.engine().queries.counters;
            let read = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
            let metrics: BTreeMap<&str, u64> = BTreeMap::from([
                ("statements", read(&counters.statements)),
                ("failed", read(&counters.failed)),
                ("cancelled", read(&counters.cancelled)),
                ("rows_sent", read(&counters.rows_sent)),
                ("rows_written", read(&counters.rows_written)),
                ("sessions", read(&counters.sessions)),
                ("conflicts", read(&counters.conflicts)),
                ("store_commits", stats.commits),
                ("store_conflicts", stats.conflicts),
                ("store_flushes", stats.flushes),
                ("store_log_bytes", stats.log_bytes),
                ("row_tier_bytes", stats.row_tier_bytes as u64),
            ]);
            metrics.into_iter().map(|(name, value)| vec![text(name), number(value)]).collect()
        }
        (PG_CATALOG, "pg_namespace") => {
            let mut rows: Vec<Vec<Cell>> = catalog
                .schemas()
                .filter(|schema| shown(scope, schema.id).is_some())
                .map(|schema| vec![Cell::Number(Some(i64::from(schema.id))), text(&*schema.name)])
                .collect();
            for (id, schema) in [(12, INFORMATION_SCHEMA), (10, LATTICE_SCHEMA), (13, PG_CATALOG)] {
                rows.push(vec![Cell::Number(Some(id)), text(schema)]);
            }
            rows
        }
        (PG_CATALOG, "pg_class") => catalog
            .relations()
            .filter(|relation| shown(scope, relation.schema()).is_some())
            .map(|relation| {
                let (kind, rows) = match relation {
                    Relation::Table(table) => (
                        "r",
                        scope
                            .reader
                            .view(&table.stored)
                            .map_or(-1, |view| i64::try_from(view.row_count().rows).unwrap_or(-1)),
                    ),
                    Relation::View(_) => ("v", 0),
                    Relation::Sequence(_) => ("S", 1),
                    Relation::Index(_) => ("i", 0),
                };
                vec![
                    Cell::Number(Some(i64::from(relation.id()))),
                    text(relation.name()),
                    Cell::Number(Some(i64::from(relation.schema()))),
                    text(kind),
                    Cell::Number(Some(rows)),
                ]
            })
            .collect(),
        (PG_CATALOG, "pg_attribute") => shown_tables(scope)
            .flat_map(|(_, table)| {
                table
                    .visible
                    .iter()
                    .enumerate()
                    .map(|(ordinal, &at)| {
                        let column = &table.def.columns[at];
                        vec![
                            Cell::Number(Some(i64::from(table.def.id))),
                            text(&*column.name),
                            Cell::Small(i32::try_from(ordinal + 1).ok()),
                            Cell::Flag(!column.nullable),
                            text(&*column.sql_type),
                            Cell::Flag(false),
                        ]
                    })
                    .collect::<Vec<_>>()
            })
            .collect(),
        (PG_CATALOG, "pg_tables") => shown_tables(scope)
            .map(|(schema, table)| {
                let indexed = table.def.primary_key.is_some() || !table.indexes.is_empty();
                vec![text(schema), text(&*table.def.name), maybe(table.def.owner.clone()), Cell::Flag(indexed)]
            })
            .collect(),
        (PG_CATALOG, "pg_views") => {
            shown_views(scope).map(|(schema, view)| vec![text(schema), text(&*view.name), text(&*view.query)]).collect()
        }
        (PG_CATALOG, "pg_indexes") => shown_tables(scope)
            .flat_map(|(schema, table)| {
                table
                    .indexes
                    .iter()
                    .map(|index| {
                        let columns: Vec<&str> =
                            index.def.columns.iter().map(|&id| table.def.column_name(id)).collect();
                        let unique = if index.def.unique { "UNIQUE " } else { "" };
                        let definition = format!(
                            "CREATE {unique}INDEX {} ON {schema}.{} USING btree ({})",
                            index.def.name,
                            table.def.name,
                            columns.join(", ")
                        );
                        vec![text(&*schema), text(&*table.def.name), text(&*index.def.name), text(definition)]
                    })
                    .collect::<Vec<_>>()
            })
            .collect(),
        (PG_CATALOG, "pg_database") => vec![vec![Cell::Number(Some(1)), text(CATALOG_NAME)]],
        _ => Vec::new(),
    }
}
