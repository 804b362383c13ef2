//! Single values: defaults, statistics, literals in records.

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::DataType;

use crate::row::{Column, decoder};
use crate::types::{check_storable, conform, decode_type, encode_type};
use crate::wire::{Reader, Writer};
use crate::{Error, Result};

/// The bytes of a one-row array as a row holds them; `None` for NULL.
pub(crate) fn payload(value: &ArrayRef, data_type: &DataType) -> Result<Option<Vec<u8>>> {
    check_storable(data_type)?;
    if value.len() != 1 {
        return Err(Error::Mismatch(format!("an array of {} rows where one value is due", value.len())));
    }
    let value = conform(value, data_type, || "the value".to_owned())?;
    Column::new(&value, data_type)?.payload(0)
}

/// The one-row array of bytes that [`payload`] gave.
pub(crate) fn from_payload(bytes: Option<&[u8]>, data_type: &DataType) -> Result<ArrayRef> {
    let mut decoder = decoder(data_type, 1)?;
    decoder.push(bytes)?;
    decoder.finish()
}

/// Writes a one-row array: its type and its value.
pub fn encode_value(writer: &mut Writer, value: &ArrayRef) -> Result<()> {
    let payload = payload(value, value.data_type())?;
    encode_type(writer, value.data_type())?;
    writer.option(payload, |writer, bytes| {
        writer.bytes(&bytes);
    });
    Ok(())
}

/// Reads a one-row array that [`encode_value`] wrote.
pub fn decode_value(reader: &mut Reader) -> Result<ArrayRef> {
    let data_type = decode_type(reader)?;
    let payload = reader.option(Reader::bytes)?;
    from_payload(payload.as_deref(), &data_type)
}
