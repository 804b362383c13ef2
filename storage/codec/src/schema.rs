//! What storage knows of a table.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use base::{ColumnId, SchemaVersion, TableId};
use bytes::Bytes;

use crate::types::{check_key_type, check_storable, decode_type, encode_type};
use crate::value::{from_payload, payload};
use crate::wire::{Reader, Writer};
use crate::{Error, Result};

/// Hidden key column of a table without a primary key: the commit timestamp of the row's first version.
pub const ROW_TS_COLUMN: ColumnId = ColumnId(u32::MAX - 1);
/// Hidden key column of a table without a primary key: the ordinal of the row within its first transaction.
pub const ROW_NO_COLUMN: ColumnId = ColumnId(u32::MAX);

/// The format of an encoded schema; its first byte.
const SCHEMA_FORMAT: u8 = 1;
/// An encoded column takes at least: id, length of the name, two flags, type, flag of `missing`.
const COLUMN_BYTES_MIN: usize = 9;

/// One column as storage sees it.
#[derive(Clone, Debug)]
pub struct StoredColumn {
    /// Permanent id.
    pub id: ColumnId,
    /// The name for messages only; storage never looks a column up by it.
    pub name: String,
    /// The Arrow type.
    pub data_type: DataType,
    /// Whether NULL may be stored, or ever could: versions from before a `SET NOT NULL` are still read with this schema, and a NULL
    /// where this is false is taken for damage.
    pub nullable: bool,
    /// Hidden since `ALTER TABLE … DROP COLUMN`; its position stays taken.
    pub dropped: bool,
    /// What versions written before the column existed read as: a one-row array, `None` for NULL.
    pub missing: Option<ArrayRef>,
}

/// The stored form of a table: an append-only list of columns, so that positions never change their meaning.
#[derive(Clone, Debug)]
pub struct StoredSchema {
    /// The table.
    pub table: TableId,
    /// Counts definitions.
    pub version: SchemaVersion,
    /// All columns ever, hidden key columns included.
    pub columns: Vec<StoredColumn>,
    /// Positions of the primary key columns, in key order; never empty.
    pub key: Vec<usize>,
    arrow: SchemaRef,
}

impl StoredSchema {
    /// Builds the schema and its Arrow form, whose fields are named `c{id}`.
    pub fn new(table: TableId, version: SchemaVersion, columns: Vec<StoredColumn>, key: Vec<usize>) -> Self {
        let fields: Vec<Field> = columns
            .iter()
            .map(|column| {
                Field::new(format!("c{}", column.id), column.data_type.clone(), column.nullable || column.dropped)
            })
            .collect();
        let arrow = Arc::new(Schema::new(fields));
        Self { table, version, columns, key, arrow }
    }

    /// The Arrow schema of whole rows.
    pub fn arrow(&self) -> &SchemaRef {
        &self.arrow
    }

    /// The position of a column.
    pub fn position(&self, id: ColumnId) -> Option<usize> {
        self.columns.iter().position(|column| column.id == id)
    }

    /// Checks what [`StoredSchema::new`] takes on trust: types that can be stored, a key of distinct columns that can be part of
    /// one, permanent ids that differ.
    pub fn check(&self) -> Result<()> {
        for (at, column) in self.columns.iter().enumerate() {
            check_storable(&column.data_type)?;
            if self.position(column.id) != Some(at) {
                return Err(Error::Mismatch(format!("table {} has column id {} twice", self.table, column.id)));
            }
        }
        if self.key.is_empty() {
            return Err(Error::Mismatch(format!("table {} has no key", self.table)));
        }
        for (at, position) in self.key.iter().enumerate() {
            match self.columns.get(*position) {
                Some(column) if !self.key[..at].contains(position) => check_key_type(&column.data_type)?,
                _ => {
                    return Err(Error::Mismatch(format!(
                        "key of table {} names position {position} wrongly",
                        self.table
                    )));
                }
            }
        }
        Ok(())
    }

    /// Appends the schema to a record.
    pub fn encode_to(&self, writer: &mut Writer) -> Result<()> {
        writer.u8(SCHEMA_FORMAT).u32(self.table.0).u32(self.version.0).length(self.columns.len());
        for column in &self.columns {
            writer.u32(column.id.0).str(&column.name).bool(column.nullable).bool(column.dropped);
            encode_type(writer, &column.data_type)?;
            let missing = match &column.missing {
                Some(value) => payload(value, &column.data_type)?,
                None => None,
            };
            writer.option(missing, |writer, bytes| {
                writer.bytes(&bytes);
            });
        }
        writer.length(self.key.len());
        for &position in &self.key {
            writer.length(position);
        }
        Ok(())
    }

    /// Reads a schema that [`StoredSchema::encode_to`] appended.
    pub fn decode_from(reader: &mut Reader) -> Result<Self> {
        let format = reader.u8()?;
        if format != SCHEMA_FORMAT {
            return Err(Error::Corrupt(format!("stored schema of format {format}, {SCHEMA_FORMAT} is known")));
        }
        let (table, version) = (TableId(reader.u32()?), SchemaVersion(reader.u32()?));
        let count = reader.count(COLUMN_BYTES_MIN)?;
        let mut columns = Vec::with_capacity(count);
        for _ in 0..count {
            let id = ColumnId(reader.u32()?);
            let name = reader.string()?;
            let (nullable, dropped) = (reader.bool()?, reader.bool()?);
            let data_type = decode_type(reader)?;
            let missing = match reader.option(Reader::bytes)? {
                Some(bytes) => Some(from_payload(Some(&bytes), &data_type)?),
                None => None,
            };
            columns.push(StoredColumn { id, name, data_type, nullable, dropped, missing });
        }
        let count = reader.count(1)?;
        let mut key = Vec::with_capacity(count);
        for _ in 0..count {
            key.push(reader.length()?);
        }
        let schema = Self::new(table, version, columns, key);
        schema.check().map_err(|error| Error::Corrupt(format!("stored schema: {error}")))?;
        Ok(schema)
    }

    /// The schema as bytes.
    pub fn encode(&self) -> Result<Bytes> {
        let mut writer = Writer::new();
        self.encode_to(&mut writer)?;
        Ok(writer.finish())
    }

    /// Reads what [`StoredSchema::encode`] wrote.
    pub fn decode(bytes: Bytes) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let schema = Self::decode_from(&mut reader)?;
        reader.finish()?;
        Ok(schema)
    }

    /// Whether rows are keyed by the hidden row id.
    pub fn has_hidden_key(&self) -> bool {
        self.key.first().is_some_and(|&at| self.columns[at].id == ROW_TS_COLUMN)
    }
}
