//! Order-preserving keys.
//!
//! # The bytes of a key
//! Per key column, in key order: one byte, 1 for a value and 2 for NULL (so NULLs come last, as PostgreSQL sorts), then the
//! value in a form whose bytes compare as the values do:
//!
//! | type | bytes |
//! |---|---|
//! | boolean | 0 or 1 |
//! | integers, decimals, dates, times | big-endian with the sign bit flipped; decimals take 16 bytes |
//! | floats | big-endian; positive: sign bit set, negative: all bits flipped; `-0.0` is written as `0.0`, every NaN as one |
//! | uuid | its 16 bytes |
//! | text, binary | each zero byte as `00 ff`, then `00 00` as the end |
//!
//! A NULL of a fixed type is padded with zeros, so that keys of fixed types all have one length. The tag byte is there for
//! columns that are NOT NULL too: keys must not change when an index column's constraint does.

use std::ops::Bound;
use std::sync::Arc;

use arrow::array::types::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, BooleanBufferBuilder, FixedSizeBinaryArray, NullBufferBuilder,
    PrimitiveArray, RecordBatch, StringArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::DataType;
use base::RowKey;
use bytes::Bytes;

use crate::types::{UUID_BYTES, check_key_type, conform};
use crate::{Error, Result, StoredSchema};

const VALUE_TAG: u8 = 1;
const NULL_TAG: u8 = 2;
/// Ends a text; also what the escape of a zero byte starts with.
const TEXT_END: [u8; 2] = [0, 0];
const ZERO_ESCAPED: [u8; 2] = [0, 0xff];

/// Encodes the key columns of a schema so that comparing bytes compares keys (NULLs last, as PostgreSQL sorts).
#[derive(Clone, Debug)]
pub struct KeyCodec {
    parts: Arc<[Part]>,
}

#[derive(Debug)]
struct Part {
    /// Where the column lies in a whole row.
    position: usize,
    name: String,
    data_type: DataType,
}

impl KeyCodec {
    /// A codec for the key of `schema`.
    pub fn new(schema: &StoredSchema) -> Result<Self> {
        let mut parts = Vec::with_capacity(schema.key.len());
        for &position in &schema.key {
            let column = schema.columns.get(position).ok_or_else(|| {
                Error::Mismatch(format!(
                    "key of table {} names position {position} of {}",
                    schema.table,
                    schema.columns.len()
                ))
            })?;
            check_key_type(&column.data_type)?;
            parts.push(Part { position, name: column.name.clone(), data_type: column.data_type.clone() });
        }
        if parts.is_empty() {
            return Err(Error::Mismatch(format!("table {} has no key", schema.table)));
        }
        Ok(Self { parts: parts.into() })
    }

    /// A codec for keys of these types, whose columns are the first ones of a row.
    pub fn of_types(types: &[DataType]) -> Result<Self> {
        let parts = types.iter().enumerate().map(|(position, data_type)| {
            check_key_type(data_type)?;
            Ok(Part { position, name: format!("key {position}"), data_type: data_type.clone() })
        });
        Ok(Self { parts: parts.collect::<Result<Vec<_>>>()?.into() })
    }

    /// How many columns the key has.
    pub fn columns(&self) -> usize {
        self.parts.len()
    }

    /// Encodes the keys of a batch of whole rows (all columns of the schema, in its order). All keys share one allocation.
    pub fn keys(&self, rows: &RecordBatch) -> Result<Vec<RowKey>> {
        let columns = self.parts.iter().map(|part| {
            rows.columns().get(part.position).cloned().ok_or_else(|| {
                Error::Mismatch(format!(
                    "key column {} at {}, given {} columns",
                    part.name,
                    part.position,
                    rows.num_columns()
                ))
            })
        });
        encode(&self.parts, &columns.collect::<Result<Vec<_>>>()?)
    }

    /// Encodes keys from the key columns alone, in key order.
    pub fn keys_of_columns(&self, columns: &[ArrayRef]) -> Result<Vec<RowKey>> {
        if columns.len() != self.parts.len() {
            return Err(Error::Mismatch(format!("a key of {} columns, given {}", self.parts.len(), columns.len())));
        }
        encode(&self.parts, columns)
    }

    /// Encodes the first columns of keys: bytes that every key with those values starts with, and no other key does. See
    /// [`KeyCodec::prefix_range`].
    pub fn encode_prefix(&self, columns: &[ArrayRef]) -> Result<Vec<RowKey>> {
        match self.parts.get(..columns.len()) {
            Some(parts) if !parts.is_empty() => encode(parts, columns),
            _ => {
                Err(Error::Mismatch(format!("a prefix of {} columns of a key of {}", columns.len(), self.parts.len())))
            }
        }
    }

    /// Decodes keys back to their columns, in key order.
    pub fn decode(&self, keys: &[RowKey]) -> Result<Vec<ArrayRef>> {
        let mut cursor = Cursor { keys, at: vec![0; keys.len()] };
        let columns = self.parts.iter().map(|part| cursor.column(&part.data_type)).collect::<Result<Vec<_>>>()?;
        match keys.iter().zip(&cursor.at).find(|(key, at)| key.as_bytes().len() != **at) {
            Some((key, at)) => Err(Error::Corrupt(format!("key {key:?} ends at {at}"))),
            None => Ok(columns),
        }
    }

    /// The keys that start with an encoded prefix.
    pub fn prefix_range(prefix: &RowKey) -> (Bound<RowKey>, Bound<RowKey>) {
        Self::range(Bound::Included(prefix), Bound::Included(prefix))
    }

    /// The keys whose first columns lie between two encoded prefixes. An excluded prefix excludes, an included one includes all
    /// keys that start with it.
    pub fn range(lower: Bound<&RowKey>, upper: Bound<&RowKey>) -> (Bound<RowKey>, Bound<RowKey>) {
        let lower = match lower {
            Bound::Unbounded => Bound::Unbounded,
            Bound::Included(prefix) => Bound::Included(prefix.clone()),
            Bound::Excluded(prefix) => match after(prefix) {
                Some(next) => Bound::Included(next),
                // Only the empty prefix has nothing after it, and nothing is beyond all keys: an empty range.
                None => Bound::Excluded(RowKey(Bytes::from_static(&[u8::MAX]))),
            },
        };
        let upper = match upper {
            Bound::Unbounded => Bound::Unbounded,
            Bound::Excluded(prefix) => Bound::Excluded(prefix.clone()),
            Bound::Included(prefix) => after(prefix).map_or(Bound::Unbounded, Bound::Excluded),
        };
        (lower, upper)
    }

    /// The first place after all keys that start with `prefix` and have a value, not NULL, in the column after it. A comparison
    /// with an open upper end stops here, because it is not true for NULL.
    pub fn before_nulls(prefix: &RowKey) -> RowKey {
        let mut bytes = Vec::with_capacity(prefix.as_bytes().len() + 1);
        bytes.extend_from_slice(prefix.as_bytes());
        bytes.push(NULL_TAG);
        RowKey(Bytes::from(bytes))
    }

    /// Whether keys ascend; equal neighbours are allowed.
    pub fn is_sorted(keys: &[RowKey]) -> bool {
        keys.is_sorted()
    }

    /// Whether keys ascend and none appears twice.
    pub fn is_sorted_unique(keys: &[RowKey]) -> bool {
        keys.is_sorted_by(|left, right| left < right)
    }

    /// The positions of keys in ascending order; equal keys keep their order.
    pub fn sort_indices(keys: &[RowKey]) -> Vec<u32> {
        let mut order: Vec<(u64, u32)> = keys.iter().zip(0u32..).map(|(key, at)| (head(key), at)).collect();
        if !Self::is_sorted(keys) {
            // Most comparisons are decided by the first bytes, which lie side by side here.
            order.sort_unstable_by(|left, right| {
                left.0
                    .cmp(&right.0)
                    .then_with(|| keys[left.1 as usize].cmp(&keys[right.1 as usize]))
                    .then(left.1.cmp(&right.1))
            });
        }
        order.into_iter().map(|(_, at)| at).collect()
    }
}

/// Eight bytes of a key that compare as the key does, or are equal. The first byte is a tag and almost always the same.
fn head(key: &RowKey) -> u64 {
    let bytes = key.as_bytes();
    let mut head = [0; 8];
    let length = bytes.len().min(8);
    head[..length].copy_from_slice(&bytes[..length]);
    u64::from_be_bytes(head)
}

/// The least bytes above everything that starts with `prefix`; `None` if there are none.
fn after(prefix: &RowKey) -> Option<RowKey> {
    let bytes = prefix.as_bytes();
    let last = bytes.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut next = bytes[..=last].to_vec();
    next[last] += 1;
    Some(RowKey(Bytes::from(next)))
}

/// The bytes of a value after its tag; `None` for types of varying length.
fn key_width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Boolean => Some(1),
        DataType::Int16 => Some(2),
        DataType::Int32 | DataType::Float32 | DataType::Date32 => Some(4),
        DataType::Int64 | DataType::Float64 | DataType::Time64(_) | DataType::Timestamp(_, _) => Some(8),
        DataType::Decimal128(_, _) | DataType::FixedSizeBinary(_) => Some(16),
        _ => None,
    }
}

fn order_i16(value: i16) -> [u8; 2] {
    (value as u16 ^ 1 << 15).to_be_bytes()
}

fn order_i32(value: i32) -> [u8; 4] {
    (value as u32 ^ 1 << 31).to_be_bytes()
}

fn order_i64(value: i64) -> [u8; 8] {
    (value as u64 ^ 1 << 63).to_be_bytes()
}

fn order_i128(value: i128) -> [u8; 16] {
    (value as u128 ^ 1 << 127).to_be_bytes()
}

fn order_f32(value: f32) -> [u8; 4] {
    let value = if value == 0.0 {
        0.0
    } else if value.is_nan() {
        f32::NAN.abs()
    } else {
        value
    };
    let bits = value.to_bits();
    (if bits >> 31 == 1 { !bits } else { bits ^ 1 << 31 }).to_be_bytes()
}

fn order_f64(value: f64) -> [u8; 8] {
    let value = if value == 0.0 {
        0.0
    } else if value.is_nan() {
        f64::NAN.abs()
    } else {
        value
    };
    let bits = value.to_bits();
    (if bits >> 63 == 1 { !bits } else { bits ^ 1 << 63 }).to_be_bytes()
}

fn value_i16(bytes: [u8; 2]) -> i16 {
    (u16::from_be_bytes(bytes) ^ 1 << 15) as i16
}

fn value_i32(bytes: [u8; 4]) -> i32 {
    (u32::from_be_bytes(bytes) ^ 1 << 31) as i32
}

fn value_i64(bytes: [u8; 8]) -> i64 {
    (u64::from_be_bytes(bytes) ^ 1 << 63) as i64
}

fn value_i128(bytes: [u8; 16]) -> i128 {
    (u128::from_be_bytes(bytes) ^ 1 << 127) as i128
}

fn value_f32(bytes: [u8; 4]) -> f32 {
    let bits = u32::from_be_bytes(bytes);
    f32::from_bits(if bits >> 31 == 0 { !bits } else { bits ^ 1 << 31 })
}

fn value_f64(bytes: [u8; 8]) -> f64 {
    let bits = u64::from_be_bytes(bytes);
    f64::from_bits(if bits >> 63 == 0 { !bits } else { bits ^ 1 << 63 })
}

fn encode(parts: &[Part], columns: &[ArrayRef]) -> Result<Vec<RowKey>> {
    let rows = columns.first().map_or(0, |column| column.len());
    if let Some(other) = columns.iter().find(|column| column.len() != rows) {
        return Err(Error::Mismatch(format!("key columns of {rows} and {} rows", other.len())));
    }
    let columns = columns
        .iter()
        .zip(parts)
        .map(|(column, part)| conform(column, &part.data_type, || format!("key column {}", part.name)))
        .collect::<Result<Vec<_>>>()?;
    let typed = || columns.iter().zip(parts).map(|(column, part)| (column.as_ref(), &part.data_type));

    let fixed_bytes: usize = parts.iter().filter_map(|part| key_width(&part.data_type)).map(|width| width + 1).sum();
    let mut lengths = vec![fixed_bytes; rows];
    for (column, data_type) in typed() {
        match data_type {
            DataType::Utf8 => {
                let column = column.as_string::<i32>();
                add_text_lengths(&mut lengths, column.value_offsets(), column.value_data(), nulls_of(column));
            }
            DataType::Binary => {
                let column = column.as_binary::<i32>();
                add_text_lengths(&mut lengths, column.value_offsets(), column.value_data(), nulls_of(column));
            }
            _ => {}
        }
    }
    let mut starts = Vec::with_capacity(rows + 1);
    let mut end = 0;
    for length in lengths {
        starts.push(end);
        end += length;
    }
    let mut target = Target { buffer: vec![0; end], at: starts.clone() };
    starts.push(end);
    for (column, data_type) in typed() {
        target.column(column, data_type)?;
    }
    let buffer = Bytes::from(target.buffer);
    Ok(starts.windows(2).map(|pair| RowKey(buffer.slice(pair[0]..pair[1]))).collect())
}

fn nulls_of(array: &dyn Array) -> Option<&NullBuffer> {
    array.nulls().filter(|nulls| nulls.null_count() > 0)
}

fn text<'a>(ends: &[i32], bytes: &'a [u8], at: usize) -> &'a [u8] {
    // Arrow's offsets are never negative nor falling, which its constructors check.
    &bytes[ends[at] as usize..ends[at + 1] as usize]
}

/// Whether any text of a column holds a zero byte. Almost none does, and then no text has to be looked at byte by byte.
fn has_zero(ends: &[i32], bytes: &[u8]) -> bool {
    match (ends.first(), ends.last()) {
        (Some(&first), Some(&last)) => bytes[first as usize..last as usize].contains(&0),
        _ => false,
    }
}

fn add_text_lengths(lengths: &mut [usize], ends: &[i32], bytes: &[u8], nulls: Option<&NullBuffer>) {
    let escapes = has_zero(ends, bytes);
    for (at, length) in lengths.iter_mut().enumerate() {
        *length += 1;
        if !nulls.is_some_and(|nulls| nulls.is_null(at)) {
            let text = text(ends, bytes, at);
            *length += text.len() + TEXT_END.len();
            if escapes {
                *length += text.iter().filter(|&&byte| byte == 0).count();
            }
        }
    }
}

/// All keys of a batch while they are written, one column after the other.
struct Target {
    buffer: Vec<u8>,
    /// Per key: where its next column goes.
    at: Vec<usize>,
}

impl Target {
    fn column(&mut self, column: &ArrayRef, data_type: &DataType) -> Result<()> {
        let nulls = nulls_of(column);
        match data_type {
            DataType::Boolean => {
                let values = column.as_boolean().values();
                self.fixed(nulls, |at| [u8::from(values.value(at))]);
            }
            DataType::Int16 => self.native::<Int16Type, 2>(column, order_i16),
            DataType::Int32 => self.native::<Int32Type, 4>(column, order_i32),
            DataType::Date32 => self.native::<Date32Type, 4>(column, order_i32),
            DataType::Int64 => self.native::<Int64Type, 8>(column, order_i64),
            DataType::Time64(_) => self.native::<Time64MicrosecondType, 8>(column, order_i64),
            DataType::Timestamp(_, _) => self.native::<TimestampMicrosecondType, 8>(column, order_i64),
            DataType::Float32 => self.native::<Float32Type, 4>(column, order_f32),
            DataType::Float64 => self.native::<Float64Type, 8>(column, order_f64),
            DataType::Decimal128(_, _) => self.native::<Decimal128Type, 16>(column, order_i128),
            DataType::FixedSizeBinary(_) => {
                let (values, _) = column.as_fixed_size_binary().value_data().as_chunks::<16>();
                self.fixed(nulls, |at| values[at]);
            }
            DataType::Utf8 => {
                let column = column.as_string::<i32>();
                self.texts(nulls, column.value_offsets(), column.value_data());
            }
            DataType::Binary => {
                let column = column.as_binary::<i32>();
                self.texts(nulls, column.value_offsets(), column.value_data());
            }
            other => return Err(Error::UnsupportedType(other.to_string())),
        }
        Ok(())
    }

    fn native<T: ArrowPrimitiveType, const WIDTH: usize>(
        &mut self,
        column: &ArrayRef,
        order: impl Fn(T::Native) -> [u8; WIDTH],
    ) {
        let values = column.as_primitive::<T>().values();
        self.fixed(nulls_of(column), |at| order(values[at]));
    }

    fn fixed<const WIDTH: usize>(&mut self, nulls: Option<&NullBuffer>, value: impl Fn(usize) -> [u8; WIDTH]) {
        for (number, at) in self.at.iter_mut().enumerate() {
            let out = &mut self.buffer[*at..*at + 1 + WIDTH];
            *at += 1 + WIDTH;
            if nulls.is_some_and(|nulls| nulls.is_null(number)) {
                out[0] = NULL_TAG;
            } else {
                out[0] = VALUE_TAG;
                out[1..].copy_from_slice(&value(number));
            }
        }
    }

    fn texts(&mut self, nulls: Option<&NullBuffer>, ends: &[i32], bytes: &[u8]) {
        let escapes = has_zero(ends, bytes);
        for (number, at) in self.at.iter_mut().enumerate() {
            if nulls.is_some_and(|nulls| nulls.is_null(number)) {
                self.buffer[*at] = NULL_TAG;
                *at += 1;
                continue;
            }
            self.buffer[*at] = VALUE_TAG;
            *at += 1;
            let text = text(ends, bytes, number);
            if escapes && text.contains(&0) {
                for &byte in text {
                    self.buffer[*at] = byte;
                    *at += 1;
                    if byte == 0 {
                        self.buffer[*at] = ZERO_ESCAPED[1];
                        *at += 1;
                    }
                }
            } else {
                self.buffer[*at..*at + text.len()].copy_from_slice(text);
                *at += text.len();
            }
            self.buffer[*at..*at + TEXT_END.len()].copy_from_slice(&TEXT_END);
            *at += TEXT_END.len();
        }
    }
}

/// Keys while they are read, one column after the other.
struct Cursor<'a> {
    keys: &'a [RowKey],
    /// Per key: where its next column starts.
    at: Vec<usize>,
}

impl Cursor<'_> {
    fn column(&mut self, data_type: &DataType) -> Result<ArrayRef> {
        match data_type {
            DataType::Boolean => self.booleans(),
            DataType::Int16 => self.native::<Int16Type, 2>(data_type, value_i16),
            DataType::Int32 => self.native::<Int32Type, 4>(data_type, value_i32),
            DataType::Date32 => self.native::<Date32Type, 4>(data_type, value_i32),
            DataType::Int64 => self.native::<Int64Type, 8>(data_type, value_i64),
            DataType::Time64(_) => self.native::<Time64MicrosecondType, 8>(data_type, value_i64),
            DataType::Timestamp(_, _) => self.native::<TimestampMicrosecondType, 8>(data_type, value_i64),
            DataType::Float32 => self.native::<Float32Type, 4>(data_type, value_f32),
            DataType::Float64 => self.native::<Float64Type, 8>(data_type, value_f64),
            DataType::Decimal128(_, _) => self.native::<Decimal128Type, 16>(data_type, value_i128),
            DataType::FixedSizeBinary(_) => {
                let mut values = Vec::with_capacity(self.keys.len() * 16);
                let nulls = self.fixed::<16>(|value| {
                    values.extend_from_slice(&value.unwrap_or_default());
                    Ok(())
                })?;
                Ok(Arc::new(FixedSizeBinaryArray::try_new(UUID_BYTES, Buffer::from_vec(values), nulls)?))
            }
            DataType::Utf8 => {
                let (ends, values, nulls) = self.texts()?;
                match StringArray::try_new(ends, values, nulls) {
                    Ok(array) => Ok(Arc::new(array)),
                    Err(error) => Err(Error::Corrupt(format!("text in a key is not UTF-8: {error}"))),
                }
            }
            DataType::Binary => {
                let (ends, values, nulls) = self.texts()?;
                Ok(Arc::new(BinaryArray::try_new(ends, values, nulls)?))
            }
            other => Err(Error::UnsupportedType(other.to_string())),
        }
    }

    fn native<T: ArrowPrimitiveType, const WIDTH: usize>(
        &mut self,
        data_type: &DataType,
        read: impl Fn([u8; WIDTH]) -> T::Native,
    ) -> Result<ArrayRef> {
        let mut values = Vec::with_capacity(self.keys.len());
        let nulls = self.fixed::<WIDTH>(|value| {
            values.push(value.map_or_else(T::Native::default, &read));
            Ok(())
        })?;
        let array = PrimitiveArray::<T>::new(ScalarBuffer::from(values), nulls);
        Ok(Arc::new(array.with_data_type(data_type.clone())))
    }

    fn booleans(&mut self) -> Result<ArrayRef> {
        let mut values = BooleanBufferBuilder::new(self.keys.len());
        let nulls = self.fixed::<1>(|value| match value {
            Some([bit]) if bit > 1 => Err(Error::Corrupt(format!("boolean of value {bit} in a key"))),
            other => {
                values.append(other == Some([1]));
                Ok(())
            }
        })?;
        Ok(Arc::new(BooleanArray::new(values.finish(), nulls)))
    }

    fn fixed<const WIDTH: usize>(
        &mut self,
        mut push: impl FnMut(Option<[u8; WIDTH]>) -> Result<()>,
    ) -> Result<Option<NullBuffer>> {
        let mut nulls = NullBufferBuilder::new(self.keys.len());
        for (key, at) in self.keys.iter().zip(&mut self.at) {
            let bytes = key.as_bytes();
            let (valid, rest) = tag(bytes, *at)?;
            let value = rest.first_chunk::<WIDTH>().ok_or_else(|| too_short(bytes))?;
            *at += 1 + WIDTH;
            nulls.append(valid);
            push(valid.then_some(*value))?;
        }
        Ok(nulls.finish())
    }

    fn texts(&mut self) -> Result<(OffsetBuffer<i32>, Buffer, Option<NullBuffer>)> {
        let mut values = Vec::new();
        let mut ends = Vec::with_capacity(self.keys.len() + 1);
        ends.push(0i32);
        let mut nulls = NullBufferBuilder::new(self.keys.len());
        for (key, at) in self.keys.iter().zip(&mut self.at) {
            let bytes = key.as_bytes();
            let (valid, mut rest) = tag(bytes, *at)?;
            nulls.append(valid);
            while valid {
                let zero = rest.iter().position(|&byte| byte == 0).ok_or_else(|| too_short(bytes))?;
                values.extend_from_slice(&rest[..zero]);
                let (pair, after) = rest[zero..].split_first_chunk::<2>().ok_or_else(|| too_short(bytes))?;
                rest = after;
                match *pair {
                    TEXT_END => break,
                    ZERO_ESCAPED => values.push(0),
                    _ => return Err(Error::Corrupt(format!("escape {pair:02x?} in a key"))),
                }
            }
            *at = bytes.len() - rest.len();
            ends.push(
                i32::try_from(values.len())
                    .map_err(|_| Error::TooLarge("key texts of more than 2 GiB in one batch".into()))?,
            );
        }
        Ok((OffsetBuffer::new(ScalarBuffer::from(ends)), Buffer::from_vec(values), nulls.finish()))
    }
}

/// Whether a value follows the tag at `at`, and the bytes after the tag.
fn tag(bytes: &[u8], at: usize) -> Result<(bool, &[u8])> {
    match bytes.get(at..).and_then(<[u8]>::split_first) {
        Some((&VALUE_TAG, rest)) => Ok((true, rest)),
        Some((&NULL_TAG, rest)) => Ok((false, rest)),
        Some((tag, _)) => Err(Error::Corrupt(format!("tag of value {tag} in a key"))),
        None => Err(too_short(bytes)),
    }
}

fn too_short(bytes: &[u8]) -> Error {
    Error::Corrupt(format!("key of {} bytes is too short", bytes.len()))
}

#[cfg(test)]
mod tests;
