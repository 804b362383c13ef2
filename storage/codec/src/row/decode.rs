//! Rows to Arrow columns.

use std::marker::PhantomData;
use std::sync::Arc;

use arrow::array::types::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    IntervalMonthDayNanoType, Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, FixedSizeBinaryArray, ListArray, NullBufferBuilder,
    PrimitiveArray, StringArray,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, IntervalMonthDayNano};

use super::{BLOCK_ROWS, COUNT_BYTES, END_BYTES, Layout};
use crate::types::{NARROW_DECIMAL_PRECISION_MAX, row_width};
use crate::{Error, Result, StoredSchema};

/// A row whose header has been checked.
struct Row<'a> {
    bytes: &'a [u8],
    columns: usize,
    /// Where its slots start.
    base: usize,
    /// Where its slots end and the varying values start.
    fixed_end: usize,
}

/// Where a column lies in a row.
struct Place<'a> {
    column: usize,
    slot: usize,
    /// The width of a fixed value.
    width: usize,
    /// For varying values: the slot that holds where this value starts, if it is not the first.
    start: Option<usize>,
    missing: Option<&'a [u8]>,
}

impl<'a> Row<'a> {
    fn new(layout: &Layout, bytes: &'a [u8]) -> Result<Self> {
        let Some((count, _)) = bytes.split_first_chunk::<COUNT_BYTES>() else {
            return Err(Error::Corrupt(format!("row of {} bytes", bytes.len())));
        };
        let columns = usize::from(u16::from_le_bytes(*count));
        if columns > layout.columns() {
            return Err(Error::Corrupt(format!("row of {columns} columns, the schema has {}", layout.columns())));
        }
        let base = Layout::base(columns);
        let fixed_end = layout.fixed_end(columns);
        if bytes.len() < fixed_end {
            return Err(Error::Corrupt(format!("row of {} bytes, {columns} columns take {fixed_end}", bytes.len())));
        }
        let row = Self { bytes, columns, base, fixed_end };
        let end = layout.last_end[columns].map_or(Ok(fixed_end), |slot| row.end(slot))?;
        if end != bytes.len() {
            return Err(Error::Corrupt(format!("row of {} bytes ends at {end}", bytes.len())));
        }
        Ok(row)
    }

    fn is_null(&self, column: usize) -> bool {
        self.bytes[COUNT_BYTES + column / 8] & (1 << (column % 8)) != 0
    }

    fn end(&self, slot: usize) -> Result<usize> {
        let at = self.base + slot;
        match self.bytes.get(at..at + END_BYTES).and_then(|bytes| bytes.first_chunk()) {
            Some(bytes) => Ok(u32::from_le_bytes(*bytes) as usize),
            None => Err(Error::Corrupt(format!("row of {} bytes has no slot at {at}", self.bytes.len()))),
        }
    }

    #[inline]
    fn fixed<'b>(&'b self, place: &Place<'b>) -> Result<Option<&'b [u8]>> {
        if place.column >= self.columns {
            return Ok(place.missing);
        }
        if self.is_null(place.column) {
            return Ok(None);
        }
        let at = self.base + place.slot;
        match self.bytes.get(at..at + place.width) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(Error::Corrupt(format!("row of {} bytes has no slot at {at}", self.bytes.len()))),
        }
    }

    #[inline]
    fn varying<'b>(&'b self, place: &Place<'b>) -> Result<Option<&'b [u8]>> {
        if place.column >= self.columns {
            return Ok(place.missing);
        }
        if self.is_null(place.column) {
            return Ok(None);
        }
        let start = match place.start {
            Some(slot) => self.end(slot)?,
            None => self.fixed_end,
        };
        let end = self.end(place.slot)?;
        match self.bytes.get(start..end) {
            Some(bytes) if start >= self.fixed_end => Ok(Some(bytes)),
            _ => Err(Error::Corrupt(format!("value from {start} to {end} in a row of {} bytes", self.bytes.len()))),
        }
    }
}

/// Decodes the columns at `projection`, and counts the rows.
pub(super) fn decode<'a>(
    layout: &Layout,
    schema: &StoredSchema,
    mut rows: impl Iterator<Item = &'a [u8]>,
    projection: &[usize],
) -> Result<(Vec<ArrayRef>, usize)> {
    let expected = rows.size_hint().0;
    let mut decoders = Vec::with_capacity(projection.len());
    for &column in projection {
        decoders.push(decoder(&schema.columns[column].data_type, expected)?);
    }
    let mut count = 0;
    let mut block = Vec::with_capacity(BLOCK_ROWS);
    loop {
        block.clear();
        for bytes in rows.by_ref().take(BLOCK_ROWS) {
            block.push(Row::new(layout, bytes)?);
        }
        if block.is_empty() {
            break;
        }
        count += block.len();
        for (decoder, &column) in decoders.iter_mut().zip(projection) {
            let place = Place {
                column,
                slot: layout.slots[column],
                width: layout.widths[column].unwrap_or(END_BYTES),
                start: layout.last_end[column],
                missing: layout.missing[column].as_deref(),
            };
            match layout.widths[column] {
                Some(_) => decoder.append_fixed(&block, &place)?,
                None => decoder.append_varying(&block, &place)?,
            }
        }
    }
    let columns = decoders.into_iter().map(|decoder| decoder.finish()).collect::<Result<Vec<_>>>()?;
    Ok((columns, count))
}

/// Gathers the values of one column.
pub(crate) trait Decoder {
    /// Appends one value, as [`super::Column::payload`] gives it; `None` for NULL.
    fn push(&mut self, value: Option<&[u8]>) -> Result<()>;

    /// Appends a fixed column of many rows. One virtual call per block: inside, `push` is known and inlined.
    #[allow(private_interfaces, reason = "the trait leaves this module only for `push` and `finish`")]
    fn append_fixed(&mut self, rows: &[Row<'_>], place: &Place<'_>) -> Result<()> {
        for row in rows {
            self.push(row.fixed(place)?)?;
        }
        Ok(())
    }

    /// Appends a varying column of many rows.
    #[allow(private_interfaces, reason = "the trait leaves this module only for `push` and `finish`")]
    fn append_varying(&mut self, rows: &[Row<'_>], place: &Place<'_>) -> Result<()> {
        for row in rows {
            self.push(row.varying(place)?)?;
        }
        Ok(())
    }

    /// Ends the column.
    fn finish(self: Box<Self>) -> Result<ArrayRef>;
}

/// A decoder for values of a storable type.
pub(crate) fn decoder(data_type: &DataType, capacity: usize) -> Result<Box<dyn Decoder>> {
    Ok(match data_type {
        DataType::Boolean => {
            Box::new(Booleans { values: BooleanBufferBuilder::new(capacity), nulls: NullBufferBuilder::new(capacity) })
        }
        DataType::Int16 => primitive::<Int16Type, 2>(data_type, capacity, i16::from_le_bytes),
        DataType::Int32 => primitive::<Int32Type, 4>(data_type, capacity, i32::from_le_bytes),
        DataType::Date32 => primitive::<Date32Type, 4>(data_type, capacity, i32::from_le_bytes),
        DataType::Int64 => primitive::<Int64Type, 8>(data_type, capacity, i64::from_le_bytes),
        DataType::Time64(_) => primitive::<Time64MicrosecondType, 8>(data_type, capacity, i64::from_le_bytes),
        DataType::Timestamp(_, _) => primitive::<TimestampMicrosecondType, 8>(data_type, capacity, i64::from_le_bytes),
        DataType::Float32 => primitive::<Float32Type, 4>(data_type, capacity, f32::from_le_bytes),
        DataType::Float64 => primitive::<Float64Type, 8>(data_type, capacity, f64::from_le_bytes),
        DataType::Decimal128(precision, _) if *precision <= NARROW_DECIMAL_PRECISION_MAX => {
            primitive::<Decimal128Type, 8>(data_type, capacity, |bytes| i128::from(i64::from_le_bytes(bytes)))
        }
        DataType::Decimal128(_, _) => primitive::<Decimal128Type, 16>(data_type, capacity, i128::from_le_bytes),
        DataType::Interval(_) => primitive::<IntervalMonthDayNanoType, 16>(data_type, capacity, interval),
        DataType::FixedSizeBinary(width) => {
            let width_bytes = usize::try_from(*width).unwrap_or(0);
            Box::new(Fixed {
                width: *width,
                values: Vec::with_capacity(capacity * width_bytes),
                nulls: NullBufferBuilder::new(capacity),
            })
        }
        DataType::Utf8 => Box::new(Varying::<true>::new(capacity)),
        DataType::Binary => Box::new(Varying::<false>::new(capacity)),
        DataType::List(item) => Box::new(Lists {
            field: item.clone(),
            item_width: row_width(item.data_type()),
            items: decoder(item.data_type(), capacity)?,
            item_count: 0,
            ends: ends(capacity),
            nulls: NullBufferBuilder::new(capacity),
        }),
        other => return Err(Error::UnsupportedType(other.to_string())),
    })
}

fn interval(bytes: [u8; 16]) -> IntervalMonthDayNano {
    let bits = u128::from_le_bytes(bytes);
    // The low half holds months and days, the high half nanoseconds.
    IntervalMonthDayNano::new(bits as i32, (bits >> 32) as i32, (bits >> 64) as i64)
}

fn primitive<T: ArrowPrimitiveType, const WIDTH: usize>(
    data_type: &DataType,
    capacity: usize,
    read: impl Fn([u8; WIDTH]) -> T::Native + 'static,
) -> Box<dyn Decoder> {
    Box::new(Primitive::<T, _, WIDTH> {
        data_type: data_type.clone(),
        values: Vec::with_capacity(capacity),
        nulls: NullBufferBuilder::new(capacity),
        read,
        marker: PhantomData,
    })
}

struct Primitive<T: ArrowPrimitiveType, F, const WIDTH: usize> {
    data_type: DataType,
    values: Vec<T::Native>,
    nulls: NullBufferBuilder,
    read: F,
    marker: PhantomData<T>,
}

impl<T: ArrowPrimitiveType, F: Fn([u8; WIDTH]) -> T::Native, const WIDTH: usize> Decoder for Primitive<T, F, WIDTH> {
    #[inline]
    fn push(&mut self, value: Option<&[u8]>) -> Result<()> {
        let Some(value) = value else {
            self.values.push(T::Native::default());
            self.nulls.append_null();
            return Ok(());
        };
        let bytes = <[u8; WIDTH]>::try_from(value).map_err(|_| wrong_width(WIDTH, value.len()))?;
        self.values.push((self.read)(bytes));
        self.nulls.append_non_null();
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<ArrayRef> {
        let array = PrimitiveArray::<T>::new(ScalarBuffer::from(self.values), self.nulls.finish());
        Ok(Arc::new(array.with_data_type(self.data_type)))
    }
}

struct Booleans {
    values: BooleanBufferBuilder,
    nulls: NullBufferBuilder,
}

impl Decoder for Booleans {
    #[inline]
    fn push(&mut self, value: Option<&[u8]>) -> Result<()> {
        match value {
            None => {
                self.values.append(false);
                self.nulls.append_null();
            }
            Some(&[bit @ (0 | 1)]) => {
                self.values.append(bit == 1);
                self.nulls.append_non_null();
            }
            Some(other) => return Err(Error::Corrupt(format!("boolean of bytes {other:?}"))),
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<ArrayRef> {
        Ok(Arc::new(BooleanArray::new(self.values.finish(), self.nulls.finish())))
    }
}

struct Fixed {
    width: i32,
    values: Vec<u8>,
    nulls: NullBufferBuilder,
}

impl Decoder for Fixed {
    #[inline]
    fn push(&mut self, value: Option<&[u8]>) -> Result<()> {
        let width = self.width as usize;
        match value {
            None => {
                self.values.resize(self.values.len() + width, 0);
                self.nulls.append_null();
            }
            Some(value) if value.len() == width => {
                self.values.extend_from_slice(value);
                self.nulls.append_non_null();
            }
            Some(value) => return Err(wrong_width(width, value.len())),
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<ArrayRef> {
        Ok(Arc::new(FixedSizeBinaryArray::try_new(self.width, Buffer::from_vec(self.values), self.nulls.finish())?))
    }
}

/// Text or bytes.
struct Varying<const TEXT: bool> {
    values: Vec<u8>,
    ends: Vec<i32>,
    nulls: NullBufferBuilder,
}

impl<const TEXT: bool> Varying<TEXT> {
    fn new(capacity: usize) -> Self {
        Self { values: Vec::new(), ends: ends(capacity), nulls: NullBufferBuilder::new(capacity) }
    }
}

impl<const TEXT: bool> Decoder for Varying<TEXT> {
    #[inline]
    fn push(&mut self, value: Option<&[u8]>) -> Result<()> {
        match value {
            None => self.nulls.append_null(),
            Some(value) => {
                self.values.extend_from_slice(value);
                self.nulls.append_non_null();
            }
        }
        self.ends.push(end(self.values.len())?);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<ArrayRef> {
        let ends = OffsetBuffer::new(ScalarBuffer::from(self.ends));
        let (values, nulls) = (Buffer::from_vec(self.values), self.nulls.finish());
        if !TEXT {
            return Ok(Arc::new(BinaryArray::try_new(ends, values, nulls)?));
        }
        match StringArray::try_new(ends, values, nulls) {
            Ok(array) => Ok(Arc::new(array)),
            Err(error) => Err(Error::Corrupt(format!("text is not UTF-8: {error}"))),
        }
    }
}

struct Lists {
    field: FieldRef,
    item_width: Option<usize>,
    items: Box<dyn Decoder>,
    item_count: usize,
    ends: Vec<i32>,
    nulls: NullBufferBuilder,
}

impl Lists {
    /// Appends the items of one list; `None` when its bytes do not hold together.
    fn items(&mut self, value: &[u8]) -> Option<Result<()>> {
        let (count, rest) = value.split_first_chunk::<4>()?;
        let count = u32::from_le_bytes(*count) as usize;
        let (nulls, rest) = rest.split_at_checked(count.div_ceil(8))?;
        let width = self.item_width.unwrap_or(END_BYTES);
        let (slots, values) = rest.split_at_checked(count.checked_mul(width)?)?;
        let mut start = 0;
        for (number, slot) in slots.chunks_exact(width).enumerate() {
            let null = nulls[number / 8] & (1 << (number % 8)) != 0;
            let bytes = if self.item_width.is_some() {
                slot
            } else {
                let end = u32::from_le_bytes(*slot.first_chunk()?) as usize;
                let bytes = values.get(start..end)?;
                start = end;
                bytes
            };
            if let Err(error) = self.items.push((!null).then_some(bytes)) {
                return Some(Err(error));
            }
        }
        self.item_count += count;
        (start == values.len()).then_some(Ok(()))
    }
}

impl Decoder for Lists {
    fn push(&mut self, value: Option<&[u8]>) -> Result<()> {
        match value {
            None => self.nulls.append_null(),
            Some(value) => {
                self.items(value).unwrap_or_else(|| Err(Error::Corrupt(format!("list of {} bytes", value.len()))))?;
                self.nulls.append_non_null();
            }
        }
        self.ends.push(end(self.item_count)?);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<ArrayRef> {
        let ends = OffsetBuffer::new(ScalarBuffer::from(self.ends));
        match ListArray::try_new(self.field, ends, self.items.finish()?, self.nulls.finish()) {
            Ok(array) => Ok(Arc::new(array)),
            Err(error) => Err(Error::Corrupt(format!("list: {error}"))),
        }
    }
}

fn ends(capacity: usize) -> Vec<i32> {
    let mut ends = Vec::with_capacity(capacity + 1);
    ends.push(0);
    ends
}

fn end(length: usize) -> Result<i32> {
    i32::try_from(length)
        .map_err(|_| Error::TooLarge("a column of more than 2 GiB in one batch; decode fewer rows at once".into()))
}

fn wrong_width(wanted: usize, given: usize) -> Error {
    Error::Corrupt(format!("value of {given} bytes where {wanted} are due"))
}
