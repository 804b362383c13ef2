//! The objects of the catalog as they are stored: one JSON document per object, with a format number.
//!
//! Expressions (defaults, checks, view queries) are kept as SQL text, never as plans: plans do not survive an upgrade.
//! Tables, columns and indexes have permanent ids; names are only labels on them.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use base::{ColumnId, SchemaVersion, TableId};
use codec::{ROW_NO_COLUMN, ROW_TS_COLUMN, StoredColumn, StoredSchema};
use serde::{Deserialize, Serialize};

use super::typing::SqlType;
use crate::{Error, Result};

/// Names an object for ever. Tables and indexes use their `TableId`.
pub(crate) type ObjectId = u32;

/// The version of the JSON documents below.
pub(crate) const OBJECT_FORMAT: u32 = 1;

/// An object as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Object {
    /// A schema.
    Schema(SchemaObject),
    /// A table.
    Table(Table),
    /// A view.
    View(View),
    /// A sequence.
    Sequence(Sequence),
    /// An index, also behind UNIQUE constraints.
    Index(Index),
}

impl Object {
    pub(crate) fn id(&self) -> ObjectId {
        match self {
            Object::Schema(it) => it.id,
            Object::Table(it) => it.id,
            Object::View(it) => it.id,
            Object::Sequence(it) => it.id,
            Object::Index(it) => it.id,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Object::Schema(it) => &it.name,
            Object::Table(it) => &it.name,
            Object::View(it) => &it.name,
            Object::Sequence(it) => &it.name,
            Object::Index(it) => &it.name,
        }
    }

    /// The schema it lives in; 0 for schemas.
    pub(crate) fn schema(&self) -> ObjectId {
        match self {
            Object::Schema(_) => 0,
            Object::Table(it) => it.schema,
            Object::View(it) => it.schema,
            Object::Sequence(it) => it.schema,
            Object::Index(it) => it.schema,
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Object::Schema(_) => "schema",
            Object::Table(_) => "table",
            Object::View(_) => "view",
            Object::Sequence(_) => "sequence",
            Object::Index(_) => "index",
        }
    }
}

/// A schema.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SchemaObject {
    pub(crate) id: ObjectId,
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
    /// The session whose temporary objects live here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
}

/// A table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) id: ObjectId,
    pub(crate) schema: ObjectId,
    pub(crate) name: String,
    pub(crate) version: u32,
    /// In storage order, dropped ones and hidden key columns included.
    pub(crate) columns: Vec<Column>,
    /// The next column id.
    pub(crate) next_column: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) primary_key: Option<PrimaryKey>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) checks: Vec<Check>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) foreign_keys: Vec<ForeignKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    /// `delete` or `drop`, for temporary tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) on_commit: Option<String>,
}

/// A column.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Column {
    pub(crate) id: u32,
    pub(crate) name: String,
    /// The SQL type as text.
    pub(crate) sql_type: String,
    pub(crate) nullable: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) dropped: bool,
    /// An expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) default: Option<String>,
    /// An expression over the other columns, stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generated: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity: Option<Identity>,
    /// What rows written before the column existed read as: an Arrow IPC stream in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) missing: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// An identity column's sequence.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) always: bool,
    pub(crate) sequence: ObjectId,
}

/// A primary key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PrimaryKey {
    pub(crate) name: String,
    /// Column ids, in key order.
    pub(crate) columns: Vec<u32>,
}

/// A CHECK constraint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) expression: String,
}

/// A foreign key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ForeignKey {
    pub(crate) name: String,
    /// Column ids here.
    pub(crate) columns: Vec<u32>,
    /// The referenced table.
    pub(crate) table: ObjectId,
    /// Column ids there.
    pub(crate) referred: Vec<u32>,
    pub(crate) on_delete: Action,
    pub(crate) on_update: Action,
}

/// What a foreign key does when the referenced row goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    NoAction,
    Restrict,
    Cascade,
    SetNull,
    SetDefault,
}

impl Action {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Action::NoAction => "NO ACTION",
            Action::Restrict => "RESTRICT",
            Action::Cascade => "CASCADE",
            Action::SetNull => "SET NULL",
            Action::SetDefault => "SET DEFAULT",
        }
    }

    /// The JDBC number.
    pub(crate) fn rule(self) -> u8 {
        match self {
            Action::Cascade => 0,
            Action::Restrict => 1,
            Action::SetNull => 2,
            Action::NoAction => 3,
            Action::SetDefault => 4,
        }
    }
}

/// A view.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) id: ObjectId,
    pub(crate) schema: ObjectId,
    pub(crate) name: String,
    /// The query as written.
    pub(crate) query: String,
    /// Output names.
    pub(crate) columns: Vec<String>,
    /// Output types as SQL text, for the catalog's listings.
    pub(crate) types: Vec<String>,
    /// What it reads, by id: those cannot be dropped without it.
    pub(crate) depends: Vec<ObjectId>,
    /// The search path it was defined under.
    pub(crate) path: Vec<String>,
    /// What the names in the query mean. Absent from views that were made before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reads: Option<Vec<ViewRead>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) column_comments: Vec<(String, String)>,
}

/// What a name in a view's query means, found when the view was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ViewRead {
    /// The name as the query has it, folded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) schema: Option<String>,
    pub(crate) name: String,
    /// The text of its AS OF, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) moment: Option<String>,
    /// The object.
    pub(crate) id: ObjectId,
    /// The columns it had.
    pub(crate) columns: Vec<String>,
}

/// A sequence. Its position is a durable counter of the store, outside transactions, as in PostgreSQL.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sequence {
    pub(crate) id: ObjectId,
    pub(crate) schema: ObjectId,
    pub(crate) name: String,
    pub(crate) sql_type: String,
    pub(crate) start: i64,
    pub(crate) increment: i64,
    pub(crate) min: i64,
    pub(crate) max: i64,
    pub(crate) cycle: bool,
    /// Counts restarts: each has a counter of its own, beginning at `base`.
    pub(crate) generation: u32,
    /// The first value of this generation.
    pub(crate) base: i64,
    /// The table and column that own it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owned_by: Option<(ObjectId, u32)>,
    /// Made for an identity column.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) internal: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
}

/// An index: a hidden table. Key columns first, then (unique) a discriminator that is empty unless a key column is NULL,
/// or (not unique) the table's key; the table's key is always there to find the row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Index {
    pub(crate) id: ObjectId,
    pub(crate) schema: ObjectId,
    pub(crate) name: String,
    pub(crate) table: ObjectId,
    /// Column ids of the table.
    pub(crate) columns: Vec<u32>,
    pub(crate) unique: bool,
    /// Behind a UNIQUE constraint of the same name.
    pub(crate) constraint: bool,
    /// NULLs are distinct from each other.
    pub(crate) nulls_distinct: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
}

/// A table with everything derived from it.
#[derive(Debug)]
pub(crate) struct TableEntry {
    pub(crate) def: Table,
    pub(crate) stored: Arc<StoredSchema>,
    /// Storage positions of the visible columns, in order.
    pub(crate) visible: Vec<usize>,
    /// The visible columns in client form.
    pub(crate) arrow: SchemaRef,
    /// Types by storage position.
    pub(crate) types: Vec<SqlType>,
    pub(crate) indexes: Vec<Arc<IndexEntry>>,
    /// Foreign keys of other tables (or this one) that point here: (referencing table, position in its list).
    pub(crate) referenced_by: Vec<(ObjectId, usize)>,
    pub(crate) temporary: bool,
}

/// An index with its hidden table.
#[derive(Clone, Debug)]
pub(crate) struct IndexEntry {
    pub(crate) def: Index,
    pub(crate) stored: Arc<StoredSchema>,
    /// Storage positions of the indexed columns in the table.
    pub(crate) positions: Vec<usize>,
    /// Storage positions of the table's key columns in the table.
    pub(crate) key: Vec<usize>,
    /// The key of `stored` cut to the indexed columns: encodes search prefixes.
    pub(crate) prefix: Arc<StoredSchema>,
}

impl Table {
    /// The position in storage of a live column.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| !column.dropped && !column.is_hidden() && column.name == name)
    }

    pub(crate) fn position_of(&self, id: u32) -> Option<usize> {
        self.columns.iter().position(|column| column.id == id)
    }

    pub(crate) fn column(&self, id: u32) -> Option<&Column> {
        self.columns.iter().find(|column| column.id == id)
    }

    /// The name of a column by id.
    pub(crate) fn column_name(&self, id: u32) -> &str {
        self.column(id).map_or("?", |column| column.name.as_str())
    }

    /// Live, visible columns with their storage positions.
    pub(crate) fn live(&self) -> impl Iterator<Item = (usize, &Column)> {
        self.columns.iter().enumerate().filter(|(_, column)| !column.dropped && !column.is_hidden())
    }

    /// Adds the two hidden key columns.
    pub(crate) fn add_hidden_key(&mut self) {
        for (id, name) in [(ROW_TS_COLUMN, ROW_TS_NAME), (ROW_NO_COLUMN, ROW_NO_NAME)] {
            self.columns.push(Column {
                id: id.0,
                name: name.to_owned(),
                sql_type: "bigint".to_owned(),
                nullable: false,
                dropped: false,
                default: None,
                generated: None,
                identity: None,
                missing: None,
                comment: None,
            });
        }
    }

    /// Storage positions of the key.
    pub(crate) fn key_positions(&self) -> Vec<usize> {
        match &self.primary_key {
            Some(key) => key.columns.iter().filter_map(|&id| self.position_of(id)).collect(),
            None => [ROW_TS_COLUMN.0, ROW_NO_COLUMN.0].iter().filter_map(|&id| self.position_of(id)).collect(),
        }
    }
}

/// Names of the hidden key columns.
pub(crate) const ROW_TS_NAME: &str = "_row_ts";
/// Names of the hidden key columns.
pub(crate) const ROW_NO_NAME: &str = "_row_no";

impl Column {
    /// Whether it is part of the hidden key.
    pub(crate) fn is_hidden(&self) -> bool {
        self.id == ROW_TS_COLUMN.0 || self.id == ROW_NO_COLUMN.0
    }
}

impl TableEntry {
    /// Derives everything but indexes and references.
    pub(crate) fn new(def: Table) -> Result<Self> {
        let types = def.columns.iter().map(|column| SqlType::parse(&column.sql_type)).collect::<Result<Vec<_>>>()?;
        let columns = def
            .columns
            .iter()
            .zip(&types)
            .map(|(column, sql_type)| {
                Ok(StoredColumn {
                    id: ColumnId(column.id),
                    name: column.name.clone(),
                    data_type: sql_type.data_type().clone(),
                    nullable: column.nullable,
                    dropped: column.dropped,
                    missing: column.missing.as_deref().map(decode_value).transpose()?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let stored =
            Arc::new(StoredSchema::new(TableId(def.id), SchemaVersion(def.version), columns, def.key_positions()));
        let visible: Vec<usize> = def.live().map(|(position, _)| position).collect();
        let arrow = Arc::new(Schema::new(
            visible
                .iter()
                .map(|&at| types[at].field(&def.columns[at].name, def.columns[at].nullable))
                .collect::<Vec<_>>(),
        ));
        Ok(Self {
            def,
            stored,
            visible,
            arrow,
            types,
            indexes: Vec::new(),
            referenced_by: Vec::new(),
            temporary: false,
        })
    }

    pub(crate) fn id(&self) -> TableId {
        TableId(self.def.id)
    }

    /// The name of a key or unique constraint made of exactly these columns, in any order.
    pub(crate) fn unique_over(&self, columns: &[u32]) -> Option<UniqueKey<'_>> {
        let same = |other: &[u32]| other.len() == columns.len() && other.iter().all(|id| columns.contains(id));
        if let Some(key) = self.def.primary_key.as_ref().filter(|key| same(&key.columns)) {
            return Some(UniqueKey::Primary(key));
        }
        self.indexes.iter().find(|index| index.def.unique && same(&index.def.columns)).map(UniqueKey::Index)
    }
}

/// What makes a set of columns unique.
#[derive(Clone, Copy, Debug)]
pub(crate) enum UniqueKey<'a> {
    Primary(&'a PrimaryKey),
    Index(&'a Arc<IndexEntry>),
}

impl IndexEntry {
    /// The hidden table of an index over `table`.
    pub(crate) fn new(def: Index, table: &TableEntry) -> Result<Self> {
        let positions = def
            .columns
            .iter()
            .map(|&id| {
                table
                    .def
                    .position_of(id)
                    .ok_or_else(|| Error::internal(format!("index {} names a missing column", def.name)))
            })
            .collect::<Result<Vec<_>>>()?;
        let key = table.def.key_positions();
        let mut columns = Vec::new();
        let mut push = |name: &str, data_type: &DataType, nullable: bool| {
            let id = u32::try_from(columns.len()).unwrap_or(u32::MAX - 2) + 1;
            columns.push(StoredColumn {
                id: ColumnId(id),
                name: name.to_owned(),
                data_type: data_type.clone(),
                nullable,
                dropped: false,
                missing: None,
            });
        };
        for &at in &positions {
            push(&table.def.columns[at].name, table.types[at].data_type(), true);
        }
        if def.unique {
            push("_null", &DataType::Binary, false);
        }
        for &at in &key {
            push(&format!("_key_{}", table.def.columns[at].name), table.types[at].data_type(), false);
        }
        let width = columns.len();
        let count = positions.len();
        let id = TableId(def.id);
        let version = SchemaVersion(1);
        let stored_key: Vec<usize> = if def.unique { (0..=count).collect() } else { (0..width).collect() };
        let prefix = Arc::new(StoredSchema::new(id, version, columns[..count].to_vec(), (0..count).collect()));
        let stored = Arc::new(StoredSchema::new(id, version, columns, stored_key));
        Ok(Self { def, stored, positions, key, prefix })
    }
}

/// One value as text for a JSON document.
pub(crate) fn encode_value(value: &ArrayRef) -> Result<String> {
    let schema = Arc::new(Schema::new(vec![Field::new("v", value.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![value.clone()])?;
    let mut bytes = Vec::new();
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(&mut bytes, &schema)?;
    writer.write(&batch)?;
    writer.finish()?;
    drop(writer);
    use std::fmt::Write as _;
    Ok(bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// Reads what [`encode_value`] wrote.
pub(crate) fn decode_value(text: &str) -> Result<ArrayRef> {
    let damaged = || Error::internal("a stored default value is damaged");
    let bytes = (0..text.len() / 2)
        .map(|at| text.get(at * 2..at * 2 + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(damaged))
        .collect::<Result<Vec<u8>>>()?;
    let mut reader = arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None)?;
    let batch = reader.next().ok_or_else(damaged)??;
    Ok(batch.column(0).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Int32Array;

    #[test]
    fn a_default_value_survives_its_text() {
        let value: ArrayRef = Arc::new(Int32Array::from(vec![7]));
        let back = decode_value(&encode_value(&value).unwrap()).unwrap();
        assert_eq!(&back, &value);
    }
}
