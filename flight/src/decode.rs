//! Arrow data from clients: bound parameters and bulk loads.
//!
//! Whatever arrives here was written by a stranger. The Arrow crate checks offsets, lengths and UTF-8, but it panics on some wrong
//! metadata and allocates what a compressed buffer *declares*. So every message is measured first (fields, nesting, rows, declared
//! sizes), and is then decoded inside `catch_unwind`: a bad message becomes `INVALID_ARGUMENT`, and the server stays up.
//!
//! # Invariants
//! - DECODE-1 no message, however damaged, takes the process down or makes it allocate more than the limits say.
//!   Test: `truncated_and_flipped_messages_are_errors`, `declared_sizes_are_believed_only_within_limits`.
//! - DECODE-2 what a client encodes arrives unchanged, dictionaries included. Test: `batches_arrive`.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_flight::FlightData;
use arrow_ipc::{MessageHeader, MetadataVersion};
use futures::{Stream, StreamExt};
use tonic::Status;

use crate::error::{Error, Result};

/// How much of what a client declares is believed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecodeLimits {
    /// Fields of a schema, nested ones counted.
    pub(crate) fields_max: usize,
    /// Nesting of types.
    pub(crate) depth_max: usize,
    /// Bytes of one batch after decompression, and of all dictionaries together.
    pub(crate) bytes_max: usize,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { fields_max: 10_000, depth_max: 32, bytes_max: 512 << 20 }
    }
}

/// Turns the messages of one stream into batches.
pub(crate) struct Decoder {
    limits: DecodeLimits,
    schema: Option<SchemaRef>,
    dictionaries: HashMap<i64, ArrayRef>,
}

impl Decoder {
    pub(crate) fn new(limits: DecodeLimits) -> Decoder {
        Decoder { limits, schema: None, dictionaries: HashMap::new() }
    }

    /// The schema, once it has arrived.
    pub(crate) fn schema(&self) -> Option<&SchemaRef> {
        self.schema.as_ref()
    }

    /// Takes one message; answers with a batch if it held one.
    pub(crate) fn push(&mut self, data: FlightData) -> Result<Option<RecordBatch>> {
        if data.data_header.is_empty() {
            // Only a descriptor or application metadata.
            return Ok(None);
        }
        // Nothing of `self` is left half-written by a panic: fields are replaced as a whole, after decoding.
        match catch_unwind(AssertUnwindSafe(|| self.decode(data))) {
            Ok(result) => result,
            Err(_) => Err(Error::Malformed("the message contradicts itself".to_owned())),
        }
    }

    fn decode(&mut self, data: FlightData) -> Result<Option<RecordBatch>> {
        let message = arrow_ipc::root_as_message(&data.data_header)
            .map_err(|error| Error::Malformed(format!("the header is not an Arrow message: {error}")))?;
        let version = message.version();
        if version < MetadataVersion::V4 {
            return Err(Error::Malformed(format!("metadata version {version:?} is too old")));
        }
        match message.header_type() {
            MessageHeader::NONE => Ok(None),
            MessageHeader::Schema => {
                if self.schema.is_some() {
                    return Err(Error::Malformed("the stream has two schemas".to_owned()));
                }
                let schema =
                    message.header_as_schema().ok_or_else(|| Error::Malformed("the schema is missing".to_owned()))?;
                let schema = arrow_ipc::convert::fb_to_schema(schema);
                self.check_schema(&schema)?;
                self.schema = Some(Arc::new(schema));
                Ok(None)
            }
            MessageHeader::DictionaryBatch => {
                let schema = self.schema.clone().ok_or_else(no_schema)?;
                let dictionary = message
                    .header_as_dictionary_batch()
                    .ok_or_else(|| Error::Malformed("the dictionary is missing".to_owned()))?;
                let batch =
                    dictionary.data().ok_or_else(|| Error::Malformed("the dictionary has no values".to_owned()))?;
                self.check_batch(batch, &data.data_body)?;
                let body = Buffer::from(data.data_body.clone());
                arrow_ipc::reader::read_dictionary(&body, dictionary, &schema, &mut self.dictionaries, &version)
                    .map_err(malformed)?;
                let held: usize = self.dictionaries.values().map(|values| values.get_array_memory_size()).sum();
                self.check_bytes(held, "dictionaries")?;
                Ok(None)
            }
            MessageHeader::RecordBatch => {
                let schema = self.schema.clone().ok_or_else(no_schema)?;
                let batch = message
                    .header_as_record_batch()
                    .ok_or_else(|| Error::Malformed("the batch is missing".to_owned()))?;
                self.check_batch(batch, &data.data_body)?;
                let body = Buffer::from(data.data_body.clone());
                let batch =
                    arrow_ipc::reader::read_record_batch(&body, batch, schema, &self.dictionaries, None, &version)
                        .map_err(malformed)?;
                Ok(Some(batch))
            }
            other => {
                let name = other.variant_name().unwrap_or("unknown");
                Err(Error::Malformed(format!("a {name} message does not belong in a stream of batches")))
            }
        }
    }

    fn check_schema(&self, schema: &Schema) -> Result<()> {
        let mut fields = 0;
        for field in schema.fields() {
            self.check_field(field, 1, &mut fields)?;
        }
        Ok(())
    }

    fn check_field(&self, field: &Field, depth: usize, fields: &mut usize) -> Result<()> {
        *fields += 1;
        if *fields > self.limits.fields_max {
            return Err(Error::TooLarge(format!("the schema has more than {} fields", self.limits.fields_max)));
        }
        if depth > self.limits.depth_max {
            return Err(Error::TooLarge(format!("the schema nests deeper than {} types", self.limits.depth_max)));
        }
        self.check_type(field.data_type(), depth, fields)
    }

    fn check_type(&self, data_type: &DataType, depth: usize, fields: &mut usize) -> Result<()> {
        match data_type {
            DataType::List(field)
            | DataType::LargeList(field)
            | DataType::ListView(field)
            | DataType::LargeListView(field)
            | DataType::FixedSizeList(field, _)
            | DataType::Map(field, _) => self.check_field(field, depth + 1, fields),
            DataType::Struct(children) => {
                children.iter().try_for_each(|child| self.check_field(child, depth + 1, fields))
            }
            DataType::Union(children, _) => {
                children.iter().try_for_each(|(_, child)| self.check_field(child, depth + 1, fields))
            }
            DataType::RunEndEncoded(ends, values) => {
                self.check_field(ends, depth + 1, fields)?;
                self.check_field(values, depth + 1, fields)
            }
            DataType::Dictionary(_, values) => self.check_type(values, depth + 1, fields),
            _ => Ok(()),
        }
    }

    /// Adds up what the batch declares, before anything is allocated for it.
    fn check_batch(&self, batch: arrow_ipc::RecordBatch<'_>, body: &[u8]) -> Result<()> {
        let compressed = batch.compression().is_some();
        let mut total: usize = 0;
        for buffer in batch.buffers().into_iter().flatten() {
            let (Ok(offset), Ok(length)) = (usize::try_from(buffer.offset()), usize::try_from(buffer.length())) else {
                return Err(Error::Malformed("a buffer has a negative offset or length".to_owned()));
            };
            let bytes = offset
                .checked_add(length)
                .and_then(|end| body.get(offset..end))
                .ok_or_else(|| Error::Malformed("a buffer lies outside the message; it may be truncated".to_owned()))?;
            let declared = match bytes.first_chunk::<8>() {
                // A compressed buffer starts with its full length; −1 means that it is not compressed after all.
                Some(prefix) if compressed => match i64::from_le_bytes(*prefix) {
                    -1 => length,
                    declared => usize::try_from(declared)
                        .map_err(|_| Error::Malformed("a compressed buffer declares a negative length".to_owned()))?,
                },
                _ => length,
            };
            total = total.saturating_add(declared);
        }
        self.check_bytes(total, "batch")?;
        // Columns without buffers (all NULL, run ends) can claim any number of rows.
        let rows_max = total.max(64 << 10).saturating_mul(16);
        for node in batch.nodes().into_iter().flatten() {
            match usize::try_from(node.length()) {
                Ok(rows) if rows <= rows_max => {}
                _ => return Err(Error::Malformed("a column declares more rows than its bytes can hold".to_owned())),
            }
        }
        match usize::try_from(batch.length()) {
            Ok(rows) if rows <= rows_max => Ok(()),
            _ => Err(Error::Malformed("the batch declares more rows than its bytes can hold".to_owned())),
        }
    }

    fn check_bytes(&self, bytes: usize, what: &str) -> Result<()> {
        if bytes > self.limits.bytes_max {
            return Err(Error::TooLarge(format!(
                "the {what} would take {bytes} bytes, more than the limit of {}; send smaller batches",
                self.limits.bytes_max
            )));
        }
        Ok(())
    }
}

fn malformed(error: ArrowError) -> Error {
    Error::Malformed(error.to_string())
}

fn no_schema() -> Error {
    Error::Malformed("data arrived before the schema".to_owned())
}

/// The messages of a `DoPut`, the first of which was looked at already.
pub(crate) type Incoming = futures::stream::BoxStream<'static, Result<FlightData, Status>>;

/// Reads on until the schema has arrived; `None` when the stream ends without one.
pub(crate) async fn read_schema(incoming: &mut Incoming, decoder: &mut Decoder) -> Result<Option<SchemaRef>> {
    while decoder.schema().is_none() {
        let Some(data) = incoming.next().await else { return Ok(None) };
        decoder.push(data.map_err(broken_off)?)?;
    }
    Ok(decoder.schema().cloned())
}

/// Reads all batches after the schema that `decoder` has read already; `None` when there is none.
pub(crate) async fn read_all(incoming: &mut Incoming, mut decoder: Decoder) -> Result<Option<RecordBatch>> {
    let mut batches = Vec::new();
    let mut bytes = 0;
    while let Some(data) = incoming.next().await {
        if let Some(batch) = decoder.push(data.map_err(broken_off)?)? {
            bytes += batch.get_array_memory_size();
            decoder.check_bytes(bytes, "bound parameters")?;
            batches.push(batch);
        }
    }
    let Some(schema) = decoder.schema() else { return Ok(None) };
    match batches.len() {
        0 => Ok(Some(RecordBatch::new_empty(Arc::clone(schema)))),
        1 => Ok(batches.pop()),
        _ => Ok(Some(arrow::compute::concat_batches(schema, &batches).map_err(malformed)?)),
    }
}

/// The batches that follow the schema, as the engine's ingest wants them.
pub(crate) fn batches(
    incoming: Incoming,
    decoder: Decoder,
) -> impl Stream<Item = sql::Result<RecordBatch>> + Send + 'static {
    futures::stream::unfold(Some((incoming, decoder)), |state| async move {
        let (mut incoming, mut decoder) = state?;
        loop {
            let step = match incoming.next().await? {
                Ok(data) => decoder.push(data),
                Err(status) => Err(broken_off(status)),
            };
            match step {
                Ok(None) => {}
                Ok(Some(batch)) => return Some((Ok(batch), Some((incoming, decoder)))),
                Err(error) => return Some((Err(for_engine(error)), None)),
            }
        }
    })
}

/// The client's stream ended with an error.
pub(crate) fn broken_off(status: Status) -> Error {
    match status.code() {
        tonic::Code::Cancelled => Error::Cancelled,
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => Error::TooLarge(status.message().to_owned()),
        _ => Error::Protocol(format!("the client's stream broke off: {}", status.message())),
    }
}

/// An error of the wire inside the engine, so that the load is undone.
fn for_engine(error: Error) -> sql::Error {
    match error {
        Error::Sql { error, .. } => *error,
        other => {
            use base::Classify;
            sql::Error::new(other.kind(), other.to_string()).with_state(other.sqlstate())
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, Int32Array, Int64Array, StringArray};
    use arrow::datatypes::Int32Type;
    use arrow_ipc::writer::IpcWriteOptions;
    use bytes::Bytes;

    use super::*;

    fn sample() -> RecordBatch {
        let names: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("b"), Some("a")].into_iter().collect();
        RecordBatch::try_from_iter_with_nullable(vec![
            ("n", Arc::new(Int64Array::from(vec![1, 2, 3, 4])) as ArrayRef, false),
            ("s", Arc::new(StringArray::from(vec![Some("x"), None, Some("zz"), Some("")])) as ArrayRef, true),
            ("d", Arc::new(names) as ArrayRef, true),
        ])
        .unwrap()
    }

    fn messages(batch: &RecordBatch, options: IpcWriteOptions) -> Vec<FlightData> {
        use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
        let stream = FlightDataEncoderBuilder::new()
            .with_options(options)
            .with_dictionary_handling(DictionaryHandling::Resend)
            .build(futures::stream::iter(vec![Ok(batch.clone())]));
        futures::executor::block_on(stream.map(Result::unwrap).collect())
    }

    fn decode(messages: Vec<FlightData>) -> Result<Vec<RecordBatch>> {
        let mut decoder = Decoder::new(DecodeLimits::default());
        let mut batches = Vec::new();
        for message in messages {
            batches.extend(decoder.push(message)?);
        }
        Ok(batches)
    }

    #[test]
    fn batches_arrive() {
        let batch = sample();
        for compression in [None, Some(arrow_ipc::CompressionType::ZSTD), Some(arrow_ipc::CompressionType::LZ4_FRAME)] {
            let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
            assert_eq!(decode(messages(&batch, options)).unwrap(), vec![batch.clone()]);
        }
    }

    #[test]
    fn order_matters() {
        let mut parts = messages(&sample(), IpcWriteOptions::default());
        let schema = parts.remove(0);
        assert!(matches!(decode(parts), Err(Error::Malformed(_))));
        assert!(matches!(decode(vec![schema.clone(), schema]), Err(Error::Malformed(_))));
        assert!(decode(vec![FlightData::default()]).unwrap().is_empty());
    }

    #[test]
    fn truncated_and_flipped_messages_are_errors() {
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let options = IpcWriteOptions::default().try_with_compression(Some(arrow_ipc::CompressionType::ZSTD)).unwrap();
        for options in [IpcWriteOptions::default(), options] {
            let whole = messages(&sample(), options);
            for at in 0..whole.len() {
                for part in ["header", "body"] {
                    let bytes =
                        if part == "header" { whole[at].data_header.clone() } else { whole[at].data_body.clone() };
                    for position in 0..bytes.len() {
                        for damage in [None, Some(0xff_u8), Some(0x80), Some(0x01)] {
                            let damaged: Bytes = match damage {
                                None => bytes.slice(..position),
                                Some(mask) => {
                                    let mut copy = bytes.to_vec();
                                    copy[position] ^= mask;
                                    copy.into()
                                }
                            };
                            let mut messages = whole.clone();
                            if part == "header" {
                                messages[at].data_header = damaged;
                            } else {
                                messages[at].data_body = damaged;
                            }
                            // Some damage only changes values; what counts is that nothing aborts.
                            if let Err(error) = decode(messages) {
                                assert!(matches!(error, Error::Malformed(_) | Error::TooLarge(_)), "{error}");
                            }
                        }
                    }
                }
            }
        }
        std::panic::set_hook(quiet);
    }

    #[test]
    fn declared_sizes_are_believed_only_within_limits() {
        let batch =
            RecordBatch::try_from_iter(vec![("n", Arc::new(Int32Array::from(vec![7; 4096])) as ArrayRef)]).unwrap();
        let options = IpcWriteOptions::default().try_with_compression(Some(arrow_ipc::CompressionType::ZSTD)).unwrap();
        let mut parts = messages(&batch, options);
        let body = parts[1].data_body.to_vec();
        let at = (0..body.len() - 8)
            .find(|at| i64::from_le_bytes(body[*at..at + 8].try_into().unwrap()) == 4096 * 4)
            .expect("the compressed buffer declares its length");
        let mut bomb = body.clone();
        bomb[at..at + 8].copy_from_slice(&(1_i64 << 50).to_le_bytes());
        parts[1].data_body = bomb.into();
        assert!(matches!(decode(parts), Err(Error::TooLarge(_))));
    }

    #[test]
    fn deep_and_wide_schemas_are_refused() {
        let mut field = Field::new("x", DataType::Int32, true);
        for _ in 0..40 {
            field = Field::new("l", DataType::List(Arc::new(field)), true);
        }
        let decoder = Decoder::new(DecodeLimits::default());
        assert!(matches!(decoder.check_schema(&Schema::new(vec![field])), Err(Error::TooLarge(_))));
        let wide: Vec<Field> = (0..10_001).map(|n| Field::new(format!("c{n}"), DataType::Int32, true)).collect();
        assert!(matches!(decoder.check_schema(&Schema::new(wide)), Err(Error::TooLarge(_))));
    }
}
