//! What `\\d` and its relatives show, asked of the system views as any client can.

use super::print::{Format, cells};
use super::{Shell, say};
use crate::client::ClientError;
use crate::names;

/// A list of objects.
#[derive(Clone, Copy, Debug)]
pub(super) enum Listing {
    /// Tables, views and sequences.
    Relations,
    Tables,
    /// Tables with rows and bytes.
    Sizes,
    Views,
    Indexes,
    Sequences,
}

/// The schemas that every database has; not listed unless they are named.
const SYSTEM: &str = "('information_schema', 'lattice', 'pg_catalog')";

impl Listing {
    /// The query behind the list, of columns `schema`, `name` and more.
    fn query(self) -> &'static str {
        match self {
            Listing::Relations => {
                "SELECT table_schema AS schema, table_name AS name, lower(table_type) AS type FROM information_schema.tables \
                 UNION ALL SELECT sequence_schema, sequence_name, 'sequence' FROM information_schema.sequences"
            }
            Listing::Tables => {
                "SELECT table_schema AS schema, table_name AS name, lower(table_type) AS type FROM information_schema.tables \
                 WHERE table_type <> 'VIEW'"
            }
            Listing::Views => {
                "SELECT table_schema AS schema, table_name AS name, lower(table_type) AS type FROM information_schema.tables \
                 WHERE table_type = 'VIEW'"
            }
            Listing::Sizes => {
                "SELECT schema_name AS schema, table_name AS name, rows, row_tier_bytes AS bytes_in_memory, \
                 column_bytes AS bytes_in_files, history_bytes AS bytes_of_history FROM lattice.tables"
            }
            Listing::Indexes => {
                "SELECT schema_name AS schema, index_name AS name, table_name AS table, columns, \
                 CASE WHEN is_unique THEN 'unique' ELSE '' END AS kind FROM lattice.indexes \
                 UNION ALL SELECT c.table_schema, c.constraint_name, c.table_name, \
                 string_agg(k.column_name, ', ' ORDER BY k.ordinal_position), 'primary key' \
                 FROM information_schema.table_constraints c JOIN information_schema.key_column_usage k \
                 ON k.constraint_name = c.constraint_name AND k.table_name = c.table_name AND k.table_schema = c.table_schema \
                 WHERE c.constraint_type = 'PRIMARY KEY' GROUP BY 1, 2, 3"
            }
            Listing::Sequences => {
                "SELECT sequence_schema AS schema, sequence_name AS name, data_type AS type, start_value AS start, \
                 increment, maximum_value AS maximum FROM information_schema.sequences"
            }
        }
    }
}

impl Shell {
    /// Lists objects whose name fits the pattern, if there is one.
    pub(super) async fn list(&mut self, listing: Listing, pattern: &str) -> bool {
        let mut filter = format!("schema NOT IN {SYSTEM}");
        if !pattern.is_empty() {
            match names::path(pattern).as_deref() {
                Ok([name]) => filter = format!("{filter} AND name {}", fits(name)),
                Ok([schema, name] | [_, schema, name]) => {
                    filter = format!("schema {} AND name {}", fits(schema), fits(name));
                }
                Ok(_) => {}
                Err(message) => {
                    self.complain(message);
                    return false;
                }
            }
        }
        self.quietly(&format!("SELECT * FROM ({}) AS listed WHERE {filter} ORDER BY 1, 2", listing.query())).await
    }

    /// Shows a table or view: columns, constraints, indexes, and who refers to it.
    pub(super) async fn describe(&mut self, name: &str) -> bool {
        match self.describe_inner(name).await {
            Ok(ok) => ok,
            Err(error) => {
                self.report(&error);
                false
            }
        }
    }

    async fn describe_inner(&mut self, name: &str) -> Result<bool, ClientError> {
        let (schema, table) = match names::path(name) {
            Ok(mut parts) => {
                let table = parts.pop().unwrap_or_default();
                (parts.pop(), table)
            }
            Err(message) => {
                self.complain(&message);
                return Ok(false);
            }
        };
        let within =
            schema.map(|schema| format!(" AND table_schema = {}", names::literal(&schema))).unwrap_or_default();
        let mut found = self
            .texts(&format!(
                "SELECT table_schema, table_name, table_type FROM information_schema.tables \
                 WHERE table_name = {}{within} ORDER BY table_schema IN {SYSTEM}, 1",
                names::literal(&table)
            ))
            .await?;
        let is_system = |row: &Vec<String>| SYSTEM.contains(&format!("'{}'", row[0]));
        if within.is_empty() && found.first().is_some_and(|first| !is_system(first)) {
            found.retain(|row| !is_system(row));
        }
        if found.is_empty() {
            return self.describe_other(name, &table, &within).await;
        }
        let mut ok = true;
        for row in found {
            ok &= self.describe_one(&row[0], &row[1], &row[2], is_system(&row)).await?;
        }
        Ok(ok)
    }

    /// There is no table of the name: a sequence, or one whose name must be quoted?
    async fn describe_other(&mut self, name: &str, table: &str, within: &str) -> Result<bool, ClientError> {
        let here = within.replace("table_schema", "sequence_schema");
        let filter = format!("WHERE sequence_name = {}{here}", names::literal(table));
        let sequence = format!("SELECT * FROM information_schema.sequences {filter}");
        if !self.texts(&sequence).await?.is_empty() {
            return Ok(self
                .quietly(&format!(
                    "SELECT sequence_name AS sequence, data_type AS type, start_value AS start, minimum_value AS minimum, \
                     maximum_value AS maximum, increment, cycle_option AS cycles FROM information_schema.sequences {filter}"
                ))
                .await);
        }
        let alike = self
            .texts(&format!(
                "SELECT table_schema, table_name FROM information_schema.tables \
                 WHERE lower(table_name) = {}{within} ORDER BY 1, 2",
                names::literal(&table.to_lowercase())
            ))
            .await?;
        let hint = match alike.first() {
            Some(row) => format!("did you mean \\d {}? Names with capital letters need quotes", names::quoted(&row[1])),
            None => "\\d lists them".to_owned(),
        };
        self.complain(&format!("there is no table or view named `{name}`; {hint}"));
        Ok(false)
    }

    async fn describe_one(&mut self, schema: &str, table: &str, kind: &str, system: bool) -> Result<bool, ClientError> {
        let people = self.format == Format::Table;
        if people {
            let noun = match kind {
                "BASE TABLE" => "Table",
                "LOCAL TEMPORARY" => "Temporary table",
                _ => "View",
            };
            say(&format!("{noun} {}.{}\n", names::quoted(schema), names::quoted(table)));
        }
        let (schema_text, table_text) = (names::literal(schema), names::literal(table));
        let shown = self
            .quietly(&format!(
                "SELECT c.column_name AS column, \
                 coalesce(a.atttypname, c.udt_name || CASE \
                 WHEN c.data_type IN ('numeric', 'decimal') AND c.numeric_precision IS NOT NULL \
                 THEN '(' || c.numeric_precision || ',' || c.numeric_scale || ')' \
                 WHEN c.character_maximum_length IS NOT NULL THEN '(' || c.character_maximum_length || ')' ELSE '' END) AS type, \
                 CASE c.is_nullable WHEN 'NO' THEN 'not null' ELSE '' END AS nullable, \
                 CASE WHEN c.is_identity = 'YES' THEN 'generated ' || lower(c.identity_generation) || ' as identity' \
                 WHEN c.is_generated = 'ALWAYS' THEN 'generated always as (' || c.generation_expression || ') stored' \
                 ELSE coalesce(c.column_default, '') END AS default \
                 FROM information_schema.columns c LEFT JOIN (SELECT n.nspname, r.relname, a.attname, a.atttypname \
                 FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class r ON r.oid = a.attrelid \
                 JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace) a \
                 ON a.nspname = c.table_schema AND a.relname = c.table_name AND a.attname = c.column_name \
                 WHERE c.table_schema = {schema_text} AND c.table_name = {table_text} ORDER BY c.ordinal_position"
            ))
            .await;
        if !people || system {
            return Ok(shown);
        }
        let name = format!("{}.{}", names::always_quoted(schema), names::always_quoted(table));
        if kind == "VIEW" {
            let definition = self.texts(&format!("SHOW CREATE VIEW {name}")).await?;
            let lines = definition.into_iter().map(|mut row| row.pop().unwrap_or_default());
            section("Definition", lines);
            return Ok(shown);
        }
        let definition = self.texts(&format!("SHOW CREATE TABLE {name}")).await?;
        section("Constraints", definition.iter().flat_map(|row| constraints(&row[0])));
        let indexes = self
            .texts(&format!(
                "SELECT index_name, CASE WHEN is_unique THEN ' UNIQUE' ELSE '' END, columns FROM lattice.indexes \
                 WHERE schema_name = {schema_text} AND table_name = {table_text} ORDER BY 1"
            ))
            .await?;
        let shown_index = |row: Vec<String>| format!("{}{} ({})", names::quoted(&row[0]), row[1], row[2]);
        section("Indexes", indexes.into_iter().map(shown_index));
        let referring = self
            .texts(&format!(
                "SELECT DISTINCT k.table_schema, k.table_name, k.constraint_name \
                 FROM information_schema.constraint_column_usage u JOIN information_schema.table_constraints k \
                 ON k.constraint_schema = u.constraint_schema AND k.constraint_name = u.constraint_name \
                 WHERE k.constraint_type = 'FOREIGN KEY' AND u.table_schema = {schema_text} AND u.table_name = {table_text} \
                 ORDER BY 1, 2, 3"
            ))
            .await?;
        let shown_reference = |row: Vec<String>| {
            format!("{}.{} by {}", names::quoted(&row[0]), names::quoted(&row[1]), names::quoted(&row[2]))
        };
        section("Referred to from", referring.into_iter().map(shown_reference));
        Ok(shown)
    }

    /// The rows of a query as texts; NULL is empty.
    async fn texts(&mut self, sql: &str) -> Result<Vec<Vec<String>>, ClientError> {
        let (_, batches) = self.client.rows(sql).await?;
        let mut rows = Vec::new();
        for batch in &batches {
            let values = cells(batch).map_err(|error| ClientError { message: error.to_string(), sqlstate: None })?;
            rows.extend(values.into_iter().map(|row| row.into_iter().map(Option::unwrap_or_default).collect()));
        }
        Ok(rows)
    }
}

/// A comparison of a name with a pattern, in which `*` and `?` stand for what they do in a shell.
fn fits(pattern: &str) -> String {
    if !pattern.contains(['*', '?']) {
        return format!("= {}", names::literal(pattern));
    }
    let escaped = pattern.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    format!("LIKE {}", names::literal(&escaped.replace('*', "%").replace('?', "_")))
}

fn section(title: &str, lines: impl Iterator<Item = String>) {
    let lines: Vec<String> = lines.map(|line| format!("    {line}\n")).collect();
    if !lines.is_empty() {
        say(&format!("{title}:\n{}", lines.concat()));
    }
}

/// The constraints in a table's definition, without the actions of foreign keys that do nothing.
fn constraints(definition: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in definition.lines() {
        match line.strip_prefix("  CONSTRAINT ") {
            Some(constraint) => found.push(constraint.to_owned()),
            // A text in a CHECK may hold a line break.
            None => match found.last_mut() {
                Some(open) if line != ")" => {
                    open.push('\n');
                    open.push_str(line);
                }
                _ => {}
            },
        }
    }
    let tidy = |text: String| {
        let text = text.strip_suffix(',').unwrap_or(&text).to_owned();
        text.replace(" ON UPDATE NO ACTION", "").replace(" ON DELETE NO ACTION", "")
    };
    found.into_iter().map(tidy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_read_from_the_definition() {
        let definition = "CREATE TABLE public.t (\n  id bigint NOT NULL,\n  CONSTRAINT t_pkey PRIMARY KEY (id),\n  \
                          CONSTRAINT c CHECK (a <> 'x\ny'),\n  CONSTRAINT f FOREIGN KEY (a) REFERENCES public.p (id) \
                          ON UPDATE NO ACTION ON DELETE CASCADE\n)";
        assert_eq!(
            constraints(definition),
            [
                "t_pkey PRIMARY KEY (id)",
                "c CHECK (a <> 'x\ny')",
                "f FOREIGN KEY (a) REFERENCES public.p (id) ON DELETE CASCADE"
            ]
        );
        assert!(constraints("CREATE TABLE t (\n  id bigint\n)").is_empty());
    }

    #[test]
    fn patterns_are_those_of_a_shell() {
        assert_eq!(fits("orders"), "= 'orders'");
        assert_eq!(fits("o_d*?"), "LIKE 'o\\_d%_'");
    }
}
