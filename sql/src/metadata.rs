//! What drivers ask about the catalog, in Arrow-friendly form.

use std::sync::Arc;

use arrow::datatypes::Schema;

use crate::Result;
use crate::catalog::{
    CATALOG_NAME, FIRST_SESSION_SCHEMA, INFORMATION_SCHEMA, LATTICE_SCHEMA, PG_CATALOG, Relation, SqlType, TableEntry,
    information_schema,
};
use crate::door::{ColumnMeta, ForeignKeyColumn, KeyColumn, TableFilter, TableMeta};
use crate::plan::Scope;
use crate::session::Session;

/// Whether a text matches a SQL LIKE pattern (`%`, `_`, `\` escapes).
pub(crate) fn like(text: &str, pattern: &str) -> bool {
    fn matches(text: &[char], pattern: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('%', rest)) => (0..=text.len()).any(|skip| matches(&text[skip..], rest)),
            Some(('_', rest)) => text.split_first().is_some_and(|(_, text)| matches(text, rest)),
            Some(('\\', rest)) if !rest.is_empty() => text.first() == rest.first() && matches(&text[1..], &rest[1..]),
            Some((expected, rest)) => text.first() == Some(expected) && matches(&text[1..], rest),
        }
    }
    // Runs of % would make the search exponential.
    let mut collapsed: Vec<char> = Vec::with_capacity(pattern.len());
    for c in pattern.chars() {
        if c == '%' && collapsed.last() == Some(&'%') {
            continue;
        }
        collapsed.push(c);
    }
    matches(&text.chars().collect::<Vec<_>>(), &collapsed)
}

fn passes(text: &str, pattern: Option<&str>) -> bool {
    pattern.is_none_or(|pattern| like(text, pattern))
}

fn own_catalog(catalog: Option<&str>) -> bool {
    catalog.is_none_or(|catalog| catalog.is_empty() || catalog == CATALOG_NAME)
}

fn schema_shown(scope: &Scope, name: &str) -> bool {
    !name.starts_with(FIRST_SESSION_SCHEMA) || name == format!("{FIRST_SESSION_SCHEMA}{}", scope.session.id)
}

/// A column as drivers see it.
pub(crate) fn column_meta(sql_type: &SqlType, nullable: bool) -> ColumnMeta {
    let (precision, scale) = sql_type.precision();
    ColumnMeta { type_name: sql_type.name().to_owned(), precision, scale, nullable, ..ColumnMeta::default() }
}

fn table_meta(scope: &Scope, table: &TableEntry) -> TableMeta {
    let columns = table
        .visible
        .iter()
        .map(|&at| {
            let column = &table.def.columns[at];
            ColumnMeta {
                auto_increment: column.identity.is_some(),
                remarks: column.comment.clone(),
                default: column.default.clone(),
                ..column_meta(&table.types[at], column.nullable)
            }
        })
        .collect();
    TableMeta {
        catalog: CATALOG_NAME.to_owned(),
        schema: scope.catalog.schema_name(table.def.schema).to_owned(),
        name: table.def.name.clone(),
        kind: if table.temporary { "LOCAL TEMPORARY" } else { "TABLE" },
        arrow: table.arrow.clone(),
        columns,
        remarks: table.def.comment.clone(),
    }
}

impl Session {
    /// The catalogs.
    pub async fn catalogs(&self) -> Result<Vec<String>> {
        Ok(vec![CATALOG_NAME.to_owned()])
    }

    /// The schemas that match: (catalog, schema), in order.
    pub async fn schemas(&self, catalog: Option<&str>, pattern: Option<&str>) -> Result<Vec<(String, String)>> {
        if !own_catalog(catalog) {
            return Ok(Vec::new());
        }
        let scope = self.metadata_scope().await?;
        let mut names: Vec<String> = scope
            .catalog
            .schemas()
            .map(|schema| schema.name.clone())
            .filter(|name| schema_shown(&scope, name))
            .collect();
        names.extend([INFORMATION_SCHEMA, LATTICE_SCHEMA, PG_CATALOG].map(str::to_owned));
        names.retain(|name| passes(name, pattern));
        names.sort();
        Ok(names.into_iter().map(|name| (CATALOG_NAME.to_owned(), name)).collect())
    }

    /// The tables and views that match, by kind, schema and name.
    pub async fn tables(&self, filter: TableFilter) -> Result<Vec<TableMeta>> {
        if !own_catalog(filter.catalog.as_deref()) {
            return Ok(Vec::new());
        }
        let scope = self.metadata_scope().await?;
        let mut found = Vec::new();
        for relation in scope.catalog.relations() {
            let meta = match relation {
                Relation::Table(table) => table_meta(&scope, table),
                Relation::View(view) => {
                    let types = view.types.iter().map(|text| SqlType::parse(text)).collect::<Result<Vec<_>>>()?;
                    let fields: Vec<_> =
                        view.columns.iter().zip(&types).map(|(name, sql_type)| sql_type.field(name, true)).collect();
                    let columns = view
                        .columns
                        .iter()
                        .zip(&types)
                        .map(|(name, sql_type)| ColumnMeta {
                            remarks: view
                                .column_comments
                                .iter()
                                .find(|(column, _)| column == name)
                                .map(|(_, text)| text.clone()),
                            ..column_meta(sql_type, true)
                        })
                        .collect();
                    TableMeta {
                        catalog: CATALOG_NAME.to_owned(),
                        schema: scope.catalog.schema_name(view.schema).to_owned(),
                        name: view.name.clone(),
                        kind: "VIEW",
                        arrow: Arc::new(Schema::new(fields)),
                        columns,
                        remarks: view.comment.clone(),
                    }
                }
                Relation::Sequence(_) | Relation::Index(_) => continue,
            };
            if schema_shown(&scope, &meta.schema) {
                found.push(meta);
            }
        }
        for (schema, name, arrow) in information_schema::all() {
            let columns = arrow
                .fields()
                .iter()
                .map(|field| Ok(column_meta(&SqlType::from_arrow(field)?, true)))
                .collect::<Result<Vec<_>>>()?;
            found.push(TableMeta {
                catalog: CATALOG_NAME.to_owned(),
                schema: schema.to_owned(),
                name: name.to_owned(),
                kind: "SYSTEM TABLE",
                arrow,
                columns,
                remarks: None,
            });
        }
        found.retain(|meta| {
            passes(&meta.schema, filter.schema_pattern.as_deref())
                && passes(&meta.name, filter.table_pattern.as_deref())
                && (filter.types.is_empty() || filter.types.iter().any(|kind| kind.eq_ignore_ascii_case(meta.kind)))
        });
        found.sort_by(|a, b| (a.kind, &a.schema, &a.name).cmp(&(b.kind, &b.schema, &b.name)));
        Ok(found)
    }

    fn find(scope: &Scope, catalog: Option<&str>, schema: Option<&str>, table: &str) -> Option<Arc<TableEntry>> {
        if !own_catalog(catalog) {
            return None;
        }
        match scope.lookup(schema.filter(|schema| !schema.is_empty()), table) {
            Some(Relation::Table(table)) => Some(table.clone()),
            _ => None,
        }
    }

    /// The CHECK constraints of a table: name and condition.
    pub async fn check_constraints(
        &self,
        catalog: Option<&str>,
        schema: Option<&str>,
        table: &str,
    ) -> Result<Vec<(String, String)>> {
        let scope = self.metadata_scope().await?;
        let table = Self::find(&scope, catalog, schema, table);
        let checks = table.iter().flat_map(|table| &table.def.checks);
        Ok(checks.map(|check| (check.name.clone(), check.expression.clone())).collect())
    }

    /// The columns of a table's primary key, in key order.
    pub async fn primary_keys(
        &self,
        catalog: Option<&str>,
        schema: Option<&str>,
        table: &str,
    ) -> Result<Vec<KeyColumn>> {
        let scope = self.metadata_scope().await?;
        let Some(table) = Self::find(&scope, catalog, schema, table) else {
            return Ok(Vec::new());
        };
        let Some(key) = &table.def.primary_key else {
            return Ok(Vec::new());
        };
        Ok(key
            .columns
            .iter()
            .zip(1..)
            .map(|(&id, sequence)| KeyColumn {
                catalog: CATALOG_NAME.to_owned(),
                schema: scope.catalog.schema_name(table.def.schema).to_owned(),
                table: table.def.name.clone(),
                column: table.def.column_name(id).to_owned(),
                sequence,
                key_name: key.name.clone(),
            })
            .collect())
    }

    /// The foreign keys of a table.
    pub async fn imported_keys(
        &self,
        catalog: Option<&str>,
        schema: Option<&str>,
        table: &str,
    ) -> Result<Vec<ForeignKeyColumn>> {
        let scope = self.metadata_scope().await?;
        Ok(match Self::find(&scope, catalog, schema, table) {
            Some(table) => (0..table.def.foreign_keys.len()).flat_map(|at| foreign_key(&scope, &table, at)).collect(),
            None => Vec::new(),
        })
    }

    /// The foreign keys that refer to a table.
    pub async fn exported_keys(
        &self,
        catalog: Option<&str>,
        schema: Option<&str>,
        table: &str,
    ) -> Result<Vec<ForeignKeyColumn>> {
        let scope = self.metadata_scope().await?;
        let Some(table) = Self::find(&scope, catalog, schema, table) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for &(child, at) in &table.referenced_by {
            found.extend(foreign_key(&scope, scope.catalog.table_by_id(child)?, at));
        }
        Ok(found)
    }

    /// The foreign keys of one table that refer to another: (catalog, schema, table) of each.
    pub async fn cross_reference(
        &self,
        primary: (Option<&str>, Option<&str>, &str),
        foreign: (Option<&str>, Option<&str>, &str),
    ) -> Result<Vec<ForeignKeyColumn>> {
        let scope = self.metadata_scope().await?;
        let parent = Self::find(&scope, primary.0, primary.1, primary.2);
        let child = Self::find(&scope, foreign.0, foreign.1, foreign.2);
        Ok(match (parent, child) {
            (Some(parent), Some(child)) => (0..child.def.foreign_keys.len())
                .filter(|&at| child.def.foreign_keys[at].table == parent.def.id)
                .flat_map(|at| foreign_key(&scope, &child, at))
                .collect(),
            _ => Vec::new(),
        })
    }
}

fn foreign_key(scope: &Scope, child: &TableEntry, at: usize) -> Vec<ForeignKeyColumn> {
    let key = &child.def.foreign_keys[at];
    let Ok(parent) = scope.catalog.table_by_id(key.table) else {
        return Vec::new();
    };
    let pk_name = information_schema::referred_key(scope, key).map_or_else(String::new, |(_, name)| name);
    key.columns
        .iter()
        .zip(&key.referred)
        .zip(1..)
        .map(|((&from, &to), sequence)| ForeignKeyColumn {
            pk_catalog: CATALOG_NAME.to_owned(),
            pk_schema: scope.catalog.schema_name(parent.def.schema).to_owned(),
            pk_table: parent.def.name.clone(),
            pk_column: parent.def.column_name(to).to_owned(),
            fk_catalog: CATALOG_NAME.to_owned(),
            fk_schema: scope.catalog.schema_name(child.def.schema).to_owned(),
            fk_table: child.def.name.clone(),
            fk_column: child.def.column_name(from).to_owned(),
            sequence,
            fk_name: key.name.clone(),
            pk_name: pk_name.clone(),
            update_rule: key.on_update.rule(),
            delete_rule: key.on_delete.rule(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::like;

    #[test]
    fn patterns_match_as_sql_says() {
        assert!(like("orders", "ord%"));
        assert!(like("orders", "_rders"));
        assert!(!like("orders", "order"));
        assert!(like("a_b", "a\\_b"));
        assert!(!like("axb", "a\\_b"));
    }
}
