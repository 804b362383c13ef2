//! The set of types storage keeps, and how each is written in records.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};

use crate::wire::{Reader, Writer};
use crate::{Error, Result};

/// The number of bytes of a UUID, the one `FixedSizeBinary` that is stored.
pub(crate) const UUID_BYTES: i32 = 16;

/// Decimals up to this precision fit an `i64` and are written as one.
pub(crate) const NARROW_DECIMAL_PRECISION_MAX: u8 = 18;

/// How deep lists may nest: damage must not exhaust the stack.
const LIST_DEPTH_MAX: usize = 8;

/// Checks that values of a type can be stored.
pub fn check_storable(data_type: &DataType) -> Result<()> {
    check_nested(data_type, 0)
}

fn check_nested(data_type: &DataType, depth: usize) -> Result<()> {
    match data_type {
        DataType::List(item) if depth < LIST_DEPTH_MAX => check_nested(item.data_type(), depth + 1),
        DataType::Interval(IntervalUnit::MonthDayNano) => Ok(()),
        other => check_key_type(other),
    }
}

/// Checks that values of a type can be part of a key.
pub fn check_key_type(data_type: &DataType) -> Result<()> {
    match data_type {
        DataType::Boolean
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Decimal128(_, _)
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32
        | DataType::Time64(TimeUnit::Microsecond)
        | DataType::Timestamp(TimeUnit::Microsecond, None)
        | DataType::FixedSizeBinary(UUID_BYTES) => Ok(()),
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if zone.as_ref() == "UTC" => Ok(()),
        other => Err(Error::UnsupportedType(other.to_string())),
    }
}

/// The width of a value in a row's fixed part; `None` for types of varying length.
pub(crate) fn row_width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Boolean => Some(1),
        DataType::Int16 => Some(2),
        DataType::Int32 | DataType::Float32 | DataType::Date32 => Some(4),
        DataType::Int64 | DataType::Float64 | DataType::Time64(_) | DataType::Timestamp(_, _) => Some(8),
        DataType::Decimal128(precision, _) if *precision <= NARROW_DECIMAL_PRECISION_MAX => Some(8),
        DataType::Decimal128(_, _) | DataType::Interval(_) => Some(16),
        DataType::FixedSizeBinary(width) => usize::try_from(*width).ok(),
        _ => None,
    }
}

/// Writes a type.
pub fn encode_type(writer: &mut Writer, data_type: &DataType) -> Result<()> {
    check_storable(data_type)?;
    match data_type {
        DataType::Boolean => writer.u8(1),
        DataType::Int16 => writer.u8(2),
        DataType::Int32 => writer.u8(3),
        DataType::Int64 => writer.u8(4),
        DataType::Float32 => writer.u8(5),
        DataType::Float64 => writer.u8(6),
        DataType::Decimal128(precision, scale) => writer.u8(7).u8(*precision).u8(*scale as u8),
        DataType::Utf8 => writer.u8(8),
        DataType::Binary => writer.u8(9),
        DataType::Date32 => writer.u8(10),
        DataType::Time64(_) => writer.u8(11),
        DataType::Timestamp(_, None) => writer.u8(12),
        DataType::Timestamp(_, Some(_)) => writer.u8(13),
        DataType::Interval(_) => writer.u8(14),
        DataType::FixedSizeBinary(_) => writer.u8(15),
        DataType::List(item) => {
            writer.u8(16);
            return encode_type(writer, item.data_type());
        }
        other => return Err(Error::UnsupportedType(other.to_string())),
    };
    Ok(())
}

/// Reads a type that [`encode_type`] wrote.
pub fn decode_type(reader: &mut Reader) -> Result<DataType> {
    decode_nested(reader, 0)
}

fn decode_nested(reader: &mut Reader, depth: usize) -> Result<DataType> {
    Ok(match reader.u8()? {
        1 => DataType::Boolean,
        2 => DataType::Int16,
        3 => DataType::Int32,
        4 => DataType::Int64,
        5 => DataType::Float32,
        6 => DataType::Float64,
        7 => {
            let (precision, scale) = (reader.u8()?, reader.u8()? as i8);
            if precision == 0 || precision > 38 || i16::from(scale) > i16::from(precision) {
                return Err(Error::Corrupt(format!("decimal({precision}, {scale})")));
            }
            DataType::Decimal128(precision, scale)
        }
        8 => DataType::Utf8,
        9 => DataType::Binary,
        10 => DataType::Date32,
        11 => DataType::Time64(TimeUnit::Microsecond),
        12 => DataType::Timestamp(TimeUnit::Microsecond, None),
        13 => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
        14 => DataType::Interval(IntervalUnit::MonthDayNano),
        15 => DataType::FixedSizeBinary(UUID_BYTES),
        16 if depth < LIST_DEPTH_MAX => {
            DataType::List(Arc::new(Field::new("item", decode_nested(reader, depth + 1)?, true)))
        }
        other => return Err(Error::Corrupt(format!("type of code {other}"))),
    })
}

/// Gives a column the form its stored type asks for. The values of an accepted column mean the same in either form: text and
/// bytes may come as views, with large offsets or dictionary-encoded, instants with another display zone, lists with other
/// item names. Any other difference is a defect of the caller, never cast away.
pub(crate) fn conform<'a>(
    column: &'a ArrayRef,
    wanted: &DataType,
    what: impl Fn() -> String,
) -> Result<Cow<'a, ArrayRef>> {
    let given = column.data_type();
    if given == wanted || (same_meaning(given, wanted) && same_layout(given, wanted)) {
        return Ok(Cow::Borrowed(column));
    }
    if *given == DataType::Null || same_meaning(given, wanted) {
        return Ok(Cow::Owned(cast(column, wanted)?));
    }
    Err(Error::Mismatch(format!("{} is of type {wanted}, given {given}", what())))
}

fn same_layout(given: &DataType, wanted: &DataType) -> bool {
    match (given, wanted) {
        (DataType::Timestamp(_, _), DataType::Timestamp(_, _)) => true,
        (DataType::List(given), DataType::List(wanted)) => same_layout(given.data_type(), wanted.data_type()),
        _ => given == wanted,
    }
}

fn same_meaning(given: &DataType, wanted: &DataType) -> bool {
    match (given, wanted) {
        (DataType::Dictionary(_, values), _) => same_meaning(values, wanted),
        (DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8, DataType::Utf8) => true,
        (DataType::Binary | DataType::BinaryView | DataType::LargeBinary, DataType::Binary) => true,
        (DataType::Timestamp(TimeUnit::Microsecond, Some(_)), DataType::Timestamp(TimeUnit::Microsecond, Some(_))) => {
            true
        }
        (DataType::List(given) | DataType::LargeList(given) | DataType::ListView(given), DataType::List(wanted)) => {
            *given.data_type() == DataType::Null || same_meaning(given.data_type(), wanted.data_type())
        }
        _ => given == wanted,
    }
}
