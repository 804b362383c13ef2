//! Catalogs, schemas, tables and keys, in the schemas the protocol prescribes to the letter.
//!
//! # Invariants
//! - META-1 the schemas equal the protocol's in names, types and nullability, because drivers compare them. Test:
//!   `key_schemas_are_the_protocols`; the others come from the Arrow crate's builders.
//! - META-2 a table's columns carry the SQL type's name, precision, scale, remarks and auto-increment as `ARROW:FLIGHT:SQL:*` field
//!   metadata. Test: `columns_describe_themselves`.
//! - META-3 rows are ordered by catalog, schema, table and kind. Held by the builders, which sort.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray, UInt8Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::sql::metadata::{GetCatalogsBuilder, GetDbSchemasBuilder, GetTablesBuilder};
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetTables};
use sql::{ColumnMeta, ForeignKeyColumn, KeyColumn, TableFilter, TableMeta};

use crate::error::{Error, Result};

/// The kinds of tables that `tables` reports.
const TABLE_TYPES: [&str; 4] = ["LOCAL TEMPORARY", "SYSTEM TABLE", "TABLE", "VIEW"];

fn of_builder(error: arrow_flight::error::FlightError) -> Error {
    Error::Internal(error.to_string())
}

/// The answer to `CommandGetCatalogs`.
pub(crate) async fn catalogs(session: &sql::Session) -> Result<RecordBatch> {
    let mut builder = GetCatalogsBuilder::new();
    for catalog in session.catalogs().await? {
        builder.append(catalog);
    }
    builder.build().map_err(of_builder)
}

pub(crate) fn catalogs_schema() -> SchemaRef {
    GetCatalogsBuilder::new().schema()
}

/// The answer to `CommandGetDbSchemas`.
pub(crate) async fn schemas(session: &sql::Session, command: CommandGetDbSchemas) -> Result<RecordBatch> {
    let mut builder = command.clone().into_builder();
    // An empty catalog asks for schemas without one; there are none.
    if command.catalog.as_deref() != Some("") {
        let found = session.schemas(command.catalog.as_deref(), command.db_schema_filter_pattern.as_deref()).await?;
        for (catalog, schema) in found {
            builder.append(catalog, schema);
        }
    }
    builder.build().map_err(of_builder)
}

pub(crate) fn schemas_schema() -> SchemaRef {
    GetDbSchemasBuilder::new(None::<String>, None::<String>).schema()
}

/// The answer to `CommandGetTableTypes`.
pub(crate) fn table_types() -> Result<RecordBatch> {
    let schema = Schema::new(vec![Field::new("table_type", DataType::Utf8, false)]);
    let kinds = StringArray::from_iter_values(TABLE_TYPES);
    Ok(RecordBatch::try_new(Arc::new(schema), vec![Arc::new(kinds)])?)
}

/// The answer to `CommandGetTables`.
pub(crate) async fn tables(session: &sql::Session, command: CommandGetTables) -> Result<RecordBatch> {
    let include_schema = command.include_schema;
    let filter = TableFilter {
        catalog: command.catalog.clone(),
        schema_pattern: command.db_schema_filter_pattern.clone(),
        table_pattern: command.table_name_filter_pattern.clone(),
        types: command.table_types.clone(),
    };
    let none = command.catalog.as_deref() == Some("");
    let mut builder: GetTablesBuilder = command.into();
    if !none {
        for table in session.tables(filter).await? {
            let schema = if include_schema { described(&table) } else { Schema::empty() };
            builder.append(&table.catalog, &table.schema, &table.name, table.kind, &schema).map_err(of_builder)?;
        }
    }
    builder.build().map_err(of_builder)
}

pub(crate) fn tables_schema(include_schema: bool) -> SchemaRef {
    GetTablesBuilder::new(None::<String>, None::<String>, None::<String>, Vec::<String>::new(), include_schema).schema()
}

/// A table's Arrow schema with what SQL adds to it as field metadata (META-2).
pub(crate) fn described(table: &TableMeta) -> Schema {
    let fields: Vec<Field> = table
        .arrow
        .fields()
        .iter()
        .enumerate()
        .map(|(position, field)| {
            let mut metadata = field.metadata().clone();
            let mut put = |key: &str, value: String| metadata.insert(format!("ARROW:FLIGHT:SQL:{key}"), value);
            put("CATALOG_NAME", table.catalog.clone());
            put("SCHEMA_NAME", table.schema.clone());
            put("TABLE_NAME", table.name.clone());
            put("IS_SEARCHABLE", "1".to_owned());
            put("IS_READ_ONLY", flag(matches!(table.kind, "VIEW" | "SYSTEM TABLE")));
            put("IS_CASE_SENSITIVE", flag(matches!(field.data_type(), DataType::Utf8)));
            let mut nullable = field.is_nullable();
            if let Some(column) = table.columns.get(position) {
                let ColumnMeta { type_name, precision, scale, auto_increment, remarks, default, .. } = column;
                put("TYPE_NAME", type_name.clone());
                put("IS_AUTO_INCREMENT", flag(*auto_increment));
                if let Some(precision) = precision {
                    put("PRECISION", precision.to_string());
                }
                if let Some(scale) = scale {
                    put("SCALE", scale.to_string());
                }
                if let Some(remarks) = remarks {
                    put("REMARKS", remarks.clone());
                }
                if let Some(default) = default {
                    metadata.insert("LATTICE:COLUMN_DEFAULT".to_owned(), default.clone());
                }
                nullable = column.nullable;
            }
            field.as_ref().clone().with_nullable(nullable).with_metadata(metadata)
        })
        .collect();
    let mut metadata = table.arrow.metadata().clone();
    if let Some(remarks) = &table.remarks {
        metadata.insert("ARROW:FLIGHT:SQL:REMARKS".to_owned(), remarks.clone());
    }
    Schema::new_with_metadata(fields, metadata)
}

fn flag(on: bool) -> String {
    if on { "1" } else { "0" }.to_owned()
}

static PRIMARY_KEYS: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("key_name", DataType::Utf8, true),
    ]))
});

static FOREIGN_KEYS: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
});

pub(crate) fn primary_keys_schema() -> SchemaRef {
    Arc::clone(&PRIMARY_KEYS)
}

pub(crate) fn foreign_keys_schema() -> SchemaRef {
    Arc::clone(&FOREIGN_KEYS)
}

fn texts<'a, T>(rows: &'a [T], get: impl Fn(&'a T) -> &'a str) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows.iter().map(get)))
}

/// The answer to `CommandGetPrimaryKeys`, ordered by table and place in the key.
pub(crate) fn primary_keys(mut keys: Vec<KeyColumn>) -> Result<RecordBatch> {
    keys.sort_by(|a, b| {
        (&a.catalog, &a.schema, &a.table, &a.key_name, a.sequence).cmp(&(
            &b.catalog,
            &b.schema,
            &b.table,
            &b.key_name,
            b.sequence,
        ))
    });
    let columns = vec![
        texts(&keys, |key| &key.catalog),
        texts(&keys, |key| &key.schema),
        texts(&keys, |key| &key.table),
        texts(&keys, |key| &key.column),
        Arc::new(Int32Array::from_iter_values(keys.iter().map(|key| key.sequence))) as ArrayRef,
        texts(&keys, |key| &key.key_name),
    ];
    Ok(RecordBatch::try_new(primary_keys_schema(), columns)?)
}

/// The answer to the three commands about foreign keys. Imported keys are ordered by the referenced table, the others by the
/// referencing one.
pub(crate) fn foreign_keys(mut keys: Vec<ForeignKeyColumn>, imported: bool) -> Result<RecordBatch> {
    keys.sort_by(|a, b| {
        let of = |key: &ForeignKeyColumn| {
            let (catalog, schema, table) = if imported {
                (&key.pk_catalog, &key.pk_schema, &key.pk_table)
            } else {
                (&key.fk_catalog, &key.fk_schema, &key.fk_table)
            };
            (catalog.clone(), schema.clone(), table.clone(), key.fk_name.clone(), key.sequence)
        };
        of(a).cmp(&of(b))
    });
    let rule =
        |get: fn(&ForeignKeyColumn) -> u8| Arc::new(UInt8Array::from_iter_values(keys.iter().map(get))) as ArrayRef;
    let columns = vec![
        texts(&keys, |key| &key.pk_catalog),
        texts(&keys, |key| &key.pk_schema),
        texts(&keys, |key| &key.pk_table),
        texts(&keys, |key| &key.pk_column),
        texts(&keys, |key| &key.fk_catalog),
        texts(&keys, |key| &key.fk_schema),
        texts(&keys, |key| &key.fk_table),
        texts(&keys, |key| &key.fk_column),
        Arc::new(Int32Array::from_iter_values(keys.iter().map(|key| key.sequence))) as ArrayRef,
        texts(&keys, |key| &key.fk_name),
        texts(&keys, |key| &key.pk_name),
        rule(|key| key.update_rule),
        rule(|key| key.delete_rule),
    ];
    Ok(RecordBatch::try_new(foreign_keys_schema(), columns)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_schemas_are_the_protocols() {
        let line = |schema: SchemaRef| {
            schema
                .fields()
                .iter()
                .map(|field| {
                    format!("{}:{}{}", field.name(), field.data_type(), if field.is_nullable() { "?" } else { "" })
                })
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            line(primary_keys_schema()),
            "catalog_name:Utf8? db_schema_name:Utf8? table_name:Utf8 column_name:Utf8 key_sequence:Int32 key_name:Utf8?"
        );
        assert_eq!(
            line(foreign_keys_schema()),
            "pk_catalog_name:Utf8? pk_db_schema_name:Utf8? pk_table_name:Utf8 pk_column_name:Utf8 fk_catalog_name:Utf8? \
             fk_db_schema_name:Utf8? fk_table_name:Utf8 fk_column_name:Utf8 key_sequence:Int32 fk_key_name:Utf8? \
             pk_key_name:Utf8? update_rule:UInt8 delete_rule:UInt8"
        );
    }

    fn key(table: &str, column: &str, sequence: i32) -> KeyColumn {
        KeyColumn {
            catalog: "lattice".into(),
            schema: "public".into(),
            table: table.into(),
            column: column.into(),
            sequence,
            key_name: format!("{table}_pkey"),
        }
    }

    #[test]
    fn keys_are_ordered() {
        let batch = primary_keys(vec![key("b", "y", 2), key("b", "x", 1), key("a", "z", 1)]).unwrap();
        let columns = batch.column(3).as_any().downcast_ref::<StringArray>().unwrap();
        assert_eq!(columns.iter().flatten().collect::<Vec<_>>(), ["z", "x", "y"]);
        assert_eq!(foreign_keys(Vec::new(), true).unwrap().num_rows(), 0);
    }

    #[test]
    fn columns_describe_themselves() {
        let table = TableMeta {
            catalog: "lattice".into(),
            schema: "public".into(),
            name: "t".into(),
            kind: "TABLE",
            arrow: Arc::new(Schema::new(vec![Field::new("price", DataType::Decimal128(18, 2), true)])),
            columns: vec![ColumnMeta {
                type_name: "numeric(18,2)".into(),
                precision: Some(18),
                scale: Some(2),
                nullable: false,
                remarks: Some("in cents".into()),
                default: Some("0".into()),
                ..ColumnMeta::default()
            }],
            remarks: None,
        };
        let schema = described(&table);
        let field = schema.field(0);
        let get = |key: &str| field.metadata().get(&format!("ARROW:FLIGHT:SQL:{key}")).map(String::as_str);
        assert!(!field.is_nullable());
        assert_eq!(get("TYPE_NAME"), Some("numeric(18,2)"));
        assert_eq!(get("PRECISION"), Some("18"));
        assert_eq!(get("SCALE"), Some("2"));
        assert_eq!(get("REMARKS"), Some("in cents"));
        assert_eq!(get("IS_AUTO_INCREMENT"), Some("0"));
        assert_eq!(field.metadata().get("LATTICE:COLUMN_DEFAULT").map(String::as_str), Some("0"));
    }

    #[test]
    fn table_types_are_sorted() {
        assert!(TABLE_TYPES.is_sorted());
        assert_eq!(table_types().unwrap().num_rows(), TABLE_TYPES.len());
    }
}
