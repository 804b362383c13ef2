//! SHOW.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use base::SqlState;

use crate::catalog::{
    CATALOG_NAME, FIRST_SESSION_SCHEMA, INFORMATION_SCHEMA, LATTICE_SCHEMA, PG_CATALOG, Relation, TableEntry,
};
use crate::metadata::like;
use crate::parse::statement::{self as st, ObjectKind};
use crate::plan::Scope;
use crate::session::Produced;
use crate::{Error, Result};

fn columns(show: &st::Show) -> Vec<&str> {
    match show {
        st::Show::Variable(name) => vec![name.as_str()],
        st::Show::All => vec!["name", "setting", "description"],
        st::Show::Tables { .. } => vec!["table_schema", "table_name", "table_type"],
        st::Show::Columns { .. } => vec!["column_name", "data_type", "is_nullable", "column_default"],
        st::Show::Schemas { .. } => vec!["schema_name"],
        st::Show::Catalogs => vec!["catalog_name"],
        st::Show::Functions { .. } => vec!["function_name"],
        st::Show::Create { .. } => vec!["definition"],
    }
}

/// The columns of a SHOW.
pub(crate) fn schema(show: &st::Show) -> SchemaRef {
    Arc::new(Schema::new(
        columns(show).into_iter().map(|name| Field::new(name, DataType::Utf8, true)).collect::<Vec<_>>(),
    ))
}

fn produce(show: &st::Show, rows: Vec<Vec<Option<String>>>) -> Result<Produced> {
    let schema = schema(show);
    let arrays = (0..schema.fields().len())
        .map(|at| Arc::new(rows.iter().map(|row| row[at].clone()).collect::<StringArray>()) as _)
        .collect();
    Ok(Produced::batches(schema.clone(), vec![RecordBatch::try_new(schema, arrays)?]))
}

/// Runs a SHOW.
pub(crate) async fn run(scope: &Scope, show: &st::Show) -> Result<Produced> {
    let session = &scope.session;
    let passes = |name: &str, pattern: &Option<String>| pattern.as_deref().is_none_or(|pattern| like(name, pattern));
    let rows = match show {
        st::Show::Variable(name) => {
            let interactive = scope.txn.as_ref().filter(|txn| txn.interactive);
            let value = match (name.as_str(), interactive) {
                ("transaction_read_only", Some(txn)) => if txn.is_read_only() { "on" } else { "off" }.to_owned(),
                _ => session.settings.read().get(name)?.to_owned(),
            };
            vec![vec![Some(value)]]
        }
        st::Show::All => session
            .settings
            .read()
            .all()
            .into_iter()
            .map(|(name, value, description)| {
                vec![Some(name.to_owned()), Some(value.to_owned()), Some(description.to_owned())]
            })
            .collect(),
        st::Show::Tables { schema, like } => {
            let wanted = schema.as_ref().map(|schema| scope.split_name(schema)).transpose()?.map(|(_, name)| name);
            if let Some(wanted) = &wanted {
                if scope.catalog.schema(wanted).is_none() && !crate::catalog::is_virtual_schema(wanted) {
                    return Err(Error::state(
                        SqlState::INVALID_SCHEMA_NAME,
                        format!("schema \"{wanted}\" does not exist"),
                    ));
                }
            }
            let path = scope.full_path();
            let mut rows: Vec<Vec<Option<String>>> = scope
                .catalog
                .relations()
                .filter_map(|relation| {
                    let kind = match relation {
                        Relation::Table(table) if table.temporary => "LOCAL TEMPORARY",
                        Relation::Table(_) => "BASE TABLE",
                        Relation::View(_) => "VIEW",
                        _ => return None,
                    };
                    let schema = scope.catalog.schema_name(relation.schema());
                    let right = match &wanted {
                        Some(wanted) => wanted == schema,
                        None => path.iter().any(|known| known == schema),
                    };
                    (right && passes(relation.name(), like))
                        .then(|| vec![Some(schema.to_owned()), Some(relation.name().to_owned()), Some(kind.to_owned())])
                })
                .collect();
            if let Some(wanted) = wanted.filter(|wanted| crate::catalog::is_virtual_schema(wanted)) {
                for name in crate::catalog::information_schema::names(&wanted).filter(|name| passes(name, like)) {
                    rows.push(vec![Some(wanted.clone()), Some(name.to_owned()), Some("VIEW".to_owned())]);
                }
            }
            rows
        }
        st::Show::Columns { table, like } => match scope.relation(table)? {
            Relation::Table(table) => table
                .visible
                .iter()
                .map(|&at| &table.def.columns[at])
                .filter(|column| passes(&column.name, like))
                .map(|column| {
                    let nullable = if column.nullable { "YES" } else { "NO" };
                    vec![
                        Some(column.name.clone()),
                        Some(column.sql_type.clone()),
                        Some(nullable.to_owned()),
                        column.default.clone(),
                    ]
                })
                .collect(),
            Relation::View(view) => view
                .columns
                .iter()
                .zip(&view.types)
                .filter(|(name, _)| passes(name, like))
                .map(|(name, sql_type)| vec![Some(name.clone()), Some(sql_type.clone()), Some("YES".to_owned()), None])
                .collect(),
            other => {
                return Err(Error::state(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" has no columns", other.name())));
            }
        },
        st::Show::Schemas { like } => {
            let own = format!("{FIRST_SESSION_SCHEMA}{}", session.id);
            let mut names: Vec<String> = scope
                .catalog
                .schemas()
                .map(|schema| schema.name.clone())
                .filter(|name| !name.starts_with(FIRST_SESSION_SCHEMA) || *name == own)
                .chain([INFORMATION_SCHEMA, LATTICE_SCHEMA, PG_CATALOG].map(str::to_owned))
                .filter(|name| passes(name, like))
                .collect();
            names.sort();
            names.into_iter().map(|name| vec![Some(name)]).collect()
        }
        st::Show::Catalogs => vec![vec![Some(CATALOG_NAME.to_owned())]],
        st::Show::Functions { like } => {
            let state = scope.state();
            let mut names: Vec<String> = state
                .scalar_functions()
                .keys()
                .chain(state.aggregate_functions().keys())
                .chain(state.window_functions().keys())
                .chain(state.table_functions().keys())
                .filter(|name| passes(name, like))
                .cloned()
                .collect();
            names.sort();
            names.dedup();
            names.into_iter().map(|name| vec![Some(name)]).collect()
        }
        st::Show::Create { kind, name } => {
            let text = match (scope.relation(name)?, kind) {
                (Relation::Table(table), ObjectKind::Table) => create_table(scope, table),
                (Relation::View(view), ObjectKind::View) => {
                    let quoted: Vec<String> = view.columns.iter().map(|column| quote(column)).collect();
                    format!(
                        "CREATE VIEW {}.{} ({}) AS {}",
                        quote(scope.catalog.schema_name(view.schema)),
                        quote(&view.name),
                        quoted.join(", "),
                        view.query
                    )
                }
                (other, kind) => {
                    return Err(Error::state(
                        SqlState::WRONG_OBJECT_TYPE,
                        format!("\"{}\" is not a {}", other.name(), kind.word()),
                    ));
                }
            };
            vec![vec![Some(text)]]
        }
    };
    produce(show, rows)
}

/// A name, quoted if it must be.
fn quote(name: &str) -> String {
    let plain = name.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn create_table(scope: &Scope, table: &TableEntry) -> String {
    let list = |ids: &[u32]| ids.iter().map(|&id| quote(table.def.column_name(id))).collect::<Vec<_>>().join(", ");
    let mut lines = Vec::new();
    for (_, column) in table.def.live() {
        let mut line = format!("  {} {}", quote(&column.name), column.sql_type);
        if let Some(generated) = &column.generated {
            let _ = write!(line, " GENERATED ALWAYS AS ({generated}) STORED");
        }
        if let Some(identity) = &column.identity {
            let _ = write!(line, " GENERATED {} AS IDENTITY", if identity.always { "ALWAYS" } else { "BY DEFAULT" });
        }
        if let Some(default) = &column.default {
            let _ = write!(line, " DEFAULT {default}");
        }
        if !column.nullable {
            line.push_str(" NOT NULL");
        }
        lines.push(line);
    }
    if let Some(key) = &table.def.primary_key {
        lines.push(format!("  CONSTRAINT {} PRIMARY KEY ({})", quote(&key.name), list(&key.columns)));
    }
    for index in table.indexes.iter().filter(|index| index.def.constraint) {
        lines.push(format!("  CONSTRAINT {} UNIQUE ({})", quote(&index.def.name), list(&index.def.columns)));
    }
    for check in &table.def.checks {
        lines.push(format!("  CONSTRAINT {} CHECK ({})", quote(&check.name), check.expression));
    }
    for key in &table.def.foreign_keys {
        if let Ok(parent) = scope.catalog.table_by_id(key.table) {
            let referred: Vec<String> = key.referred.iter().map(|&id| quote(parent.def.column_name(id))).collect();
            lines.push(format!(
                "  CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {}.{} ({}) ON UPDATE {} ON DELETE {}",
                quote(&key.name),
                list(&key.columns),
                quote(scope.catalog.schema_name(parent.def.schema)),
                quote(&parent.def.name),
                referred.join(", "),
                key.on_update.word(),
                key.on_delete.word()
            ));
        }
    }
    let temporary = if table.temporary { "TEMPORARY " } else { "" };
    let schema = if table.temporary {
        String::new()
    } else {
        format!("{}.", quote(scope.catalog.schema_name(table.def.schema)))
    };
    format!("CREATE {temporary}TABLE {schema}{} (\n{}\n)", quote(&table.def.name), lines.join(",\n"))
}
