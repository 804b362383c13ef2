//! The client form of results: plain Arrow types that every driver reads, the same at prepare, in FlightInfo and in the stream.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, Schema, SchemaRef, TimeUnit};
use futures::{StreamExt, TryStreamExt};

use super::names::strip;
use crate::Result;
use crate::catalog::typing::EXTENSION;
use crate::door::BatchStream;

fn client_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Null | DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(_, value) => client_type(value),
        DataType::RunEndEncoded(_, value) => client_type(value.data_type()),
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Decimal256(precision, scale) => DataType::Decimal128((*precision).min(38), *scale),
        DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(_, zone) => {
            DataType::Timestamp(TimeUnit::Microsecond, zone.as_ref().map(|_| Arc::from("UTC")))
        }
        DataType::Interval(_) | DataType::Duration(_) => DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => DataType::List(Arc::new(
            Field::new("item", client_type(item.data_type()), true).with_metadata(extension(item)),
        )),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(client_field).collect()),
        other => other.clone(),
    }
}

fn extension(field: &Field) -> std::collections::HashMap<String, String> {
    field
        .metadata()
        .iter()
        .filter(|(key, _)| key.as_str() == EXTENSION || key.as_str() == "ARROW:extension:metadata")
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn client_field(field: &FieldRef) -> FieldRef {
    Arc::new(
        Field::new(strip(field.name()), client_type(field.data_type()), field.is_nullable())
            .with_metadata(extension(field)),
    )
}

/// The schema clients see.
pub(crate) fn client_schema(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().iter().map(client_field).collect::<Vec<_>>()))
}

/// Brings batches into client form.
#[derive(Clone, Debug)]
pub(crate) struct ClientForm {
    schema: SchemaRef,
}

impl ClientForm {
    /// The form of a plan's output.
    pub(crate) fn of(schema: &Schema) -> Self {
        Self { schema: client_schema(schema) }
    }

    /// A form that was announced before.
    pub(crate) fn announced(schema: SchemaRef) -> Self {
        Self { schema }
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(crate) fn batch(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let arrays = batch
            .columns()
            .iter()
            .zip(self.schema.fields())
            .map(|(array, field)| convert(array, field.data_type()))
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)?)
    }

    pub(crate) fn stream(self, stream: BatchStream) -> BatchStream {
        stream.and_then(move |batch| futures::future::ready(self.batch(&batch))).boxed()
    }
}

fn convert(array: &ArrayRef, wanted: &DataType) -> Result<ArrayRef> {
    if array.data_type() == wanted {
        return Ok(array.clone());
    }
    Ok(cast_with_options(array, wanted, &CastOptions { safe: false, ..CastOptions::default() })?)
}
