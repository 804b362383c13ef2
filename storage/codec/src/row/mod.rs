//! Compact rows.
//!
//! # The bytes of a row
//! ```text
//! u16  columns   how many columns of the schema this row has; later ones read as their `missing` value
//! u8[] nulls     one bit per column, low bit first; set for NULL
//! ...  slots     one per column, at an offset that only the schema and `columns` decide:
//!                  fixed types   the value, little-endian, zero when NULL; decimals of up to 18 digits take 8 bytes
//!                  varying types u32, where the value ends, counted from the start of the row; it starts where the
//!                                previous one ended, the first one after the last slot
//! ...  values    of the varying types, in column order, up to the end of the row
//! ```
//! A list value is `u32 count`, a null bitmap, and then the items: slots as above (ends counted from the last slot), values.
//!
//! So any column of any row is found without looking at the others, and a projection costs what it reads.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use bytes::Bytes;

use crate::types::{check_storable, conform, row_width};
use crate::{Error, Result, StoredSchema};

pub(crate) use decode::decoder;
pub(crate) use encode::Column;

/// Bytes of the column count.
const COUNT_BYTES: usize = 2;
/// Bytes of the end of a varying value.
const END_BYTES: usize = 4;
/// Rows worked on at a time, so that they stay in the cache while one column after the other is read or written.
const BLOCK_ROWS: usize = 256;

/// Encodes whole rows of a schema and decodes any projection of them.
#[derive(Clone, Debug)]
pub struct RowCodec {
    schema: Arc<StoredSchema>,
    layout: Arc<Layout>,
}

/// Where the slots lie, decided by the column types alone.
#[derive(Debug)]
struct Layout {
    /// Per column: the width of its fixed value, `None` if it varies.
    widths: Vec<Option<usize>>,
    /// Per column: its slot, counted from the first slot; then one more: the end of all slots.
    slots: Vec<usize>,
    /// Per number of columns: the slot of the last varying one among them.
    last_end: Vec<Option<usize>>,
    /// Per column: the bytes of its `missing` value, `None` for NULL.
    missing: Vec<Option<Vec<u8>>>,
}

impl Layout {
    fn new(schema: &StoredSchema) -> Result<Self> {
        if schema.columns.len() > usize::from(u16::MAX) {
            return Err(Error::TooLarge(format!(
                "{} columns, at most {} are possible",
                schema.columns.len(),
                u16::MAX
            )));
        }
        let mut layout = Layout { widths: vec![], slots: vec![0], last_end: vec![None], missing: vec![] };
        let mut at = 0;
        for column in &schema.columns {
            check_storable(&column.data_type)?;
            let width = row_width(&column.data_type);
            layout.last_end.push(if width.is_none() { Some(at) } else { layout.last_end[layout.last_end.len() - 1] });
            at += width.unwrap_or(END_BYTES);
            layout.widths.push(width);
            layout.slots.push(at);
            layout.missing.push(match &column.missing {
                Some(value) => crate::value::payload(value, &column.data_type)?,
                None => None,
            });
        }
        Ok(layout)
    }

    fn columns(&self) -> usize {
        self.widths.len()
    }

    /// Where the slots of a row with that many columns start.
    fn base(columns: usize) -> usize {
        COUNT_BYTES + columns.div_ceil(8)
    }

    /// Where the values of varying length start.
    fn fixed_end(&self, columns: usize) -> usize {
        Self::base(columns) + self.slots[columns]
    }
}

impl RowCodec {
    /// A codec for rows of `schema`.
    pub fn new(schema: Arc<StoredSchema>) -> Result<Self> {
        let layout = Arc::new(Layout::new(&schema)?);
        Ok(Self { schema, layout })
    }

    /// The schema whose rows these are.
    pub fn schema(&self) -> &Arc<StoredSchema> {
        &self.schema
    }

    /// Encodes each row of a batch that holds all columns of the schema in its order. All rows share one allocation.
    pub fn encode(&self, rows: &RecordBatch) -> Result<Vec<Bytes>> {
        if rows.num_columns() != self.layout.columns() {
            return Err(Error::Mismatch(format!(
                "table {} stores {} columns, given {}",
                self.schema.table,
                self.layout.columns(),
                rows.num_columns()
            )));
        }
        let arrays = rows
            .columns()
            .iter()
            .zip(&self.schema.columns)
            .map(|(array, column)| conform(array, &column.data_type, || format!("column {}", column.name)))
            .collect::<Result<Vec<_>>>()?;
        let columns = arrays
            .iter()
            .zip(&self.schema.columns)
            .map(|(array, column)| Column::new(array, &column.data_type))
            .collect::<Result<Vec<_>>>()?;
        encode::encode(&self.layout, &columns, rows.num_rows())
    }

    /// Decodes rows into a batch of the columns at `projection` (positions in the schema, in that order). A row written
    /// before a column existed yields that column's `missing` value.
    pub fn decode(&self, rows: &[Bytes], projection: &[usize]) -> Result<RecordBatch> {
        self.decode_slices(rows.iter().map(Bytes::as_ref), projection)
    }

    /// Like [`RowCodec::decode`], from rows that lie in other structures.
    pub fn decode_slices<'a>(
        &self,
        rows: impl IntoIterator<Item = &'a [u8]>,
        projection: &[usize],
    ) -> Result<RecordBatch> {
        let schema = self.projected(projection)?;
        let rows = rows.into_iter();
        let (columns, count) =
            decode::decode(&self.layout, &self.schema, rows, projection).map_err(|error| match error {
                Error::Corrupt(what) => Error::Corrupt(format!("table {}: {what}", self.schema.table)),
                other => other,
            })?;
        for ((column, field), &at) in columns.iter().zip(schema.fields()).zip(projection) {
            if !field.is_nullable() && column.null_count() > 0 {
                let name = &self.schema.columns[at].name;
                return Err(Error::Corrupt(format!(
                    "NULL in column {name} of table {}, which has none",
                    self.schema.table
                )));
            }
        }
        Ok(RecordBatch::try_new_with_options(schema, columns, &RecordBatchOptions::new().with_row_count(Some(count)))?)
    }

    /// The Arrow schema that [`RowCodec::decode`] gives for a projection.
    pub fn projected(&self, projection: &[usize]) -> Result<SchemaRef> {
        let fields = self.schema.arrow().fields();
        if projection.len() == fields.len() && projection.iter().enumerate().all(|(at, &column)| at == column) {
            return Ok(self.schema.arrow().clone());
        }
        let fields = projection
            .iter()
            .map(|&at| {
                fields.get(at).cloned().ok_or_else(|| {
                    Error::Mismatch(format!(
                        "table {} has {} columns, asked for position {at}",
                        self.schema.table,
                        fields.len()
                    ))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(Schema::new(fields)))
    }
}
