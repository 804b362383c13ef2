//! A table for unit tests: one key column of whole numbers.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::DataType;
use base::{ColumnId, SchemaVersion, TableId};
use codec::{StoredColumn, StoredSchema};

/// Table 1000 with the column `id`, its key.
pub(crate) fn table_of_keys() -> Arc<StoredSchema> {
    let column = StoredColumn {
        id: ColumnId(1),
        name: "id".into(),
        data_type: DataType::Int64,
        nullable: false,
        dropped: false,
        missing: None,
    };
    Arc::new(StoredSchema::new(TableId(1000), SchemaVersion(1), vec![column], vec![0]))
}

/// Rows of it.
pub(crate) fn keys(schema: &StoredSchema, ids: Range<i64>) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
    RecordBatch::try_new(Arc::clone(schema.arrow()), vec![ids]).expect("one column")
}
