//! Arrow columns to rows.

use std::ops::Range;

use arrow::array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type, IntervalMonthDayNanoType,
    Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::{DataType, IntervalMonthDayNano};
use bytes::Bytes;

use super::{BLOCK_ROWS, COUNT_BYTES, END_BYTES, Layout};
use crate::types::{NARROW_DECIMAL_PRECISION_MAX, row_width};
use crate::{Error, Result};

/// A column whose type has been looked at: what the loops below run over.
pub(crate) struct Column<'a> {
    values: Values<'a>,
    nulls: Option<&'a NullBuffer>,
}

enum Values<'a> {
    Bool(&'a BooleanBuffer),
    I16(&'a [i16]),
    I32(&'a [i32]),
    I64(&'a [i64]),
    F32(&'a [f32]),
    F64(&'a [f64]),
    /// Decimals that are written as an `i64`.
    Narrow(&'a [i128]),
    Wide(&'a [i128]),
    Interval(&'a [IntervalMonthDayNano]),
    Fixed {
        bytes: &'a [u8],
        width: usize,
    },
    /// Text and bytes: value `i` is `bytes[ends[i]..ends[i + 1]]`.
    Var {
        ends: &'a [i32],
        bytes: &'a [u8],
    },
    List {
        ends: &'a [i32],
        items: Box<Column<'a>>,
        item_width: Option<usize>,
    },
}

impl<'a> Column<'a> {
    /// Looks at the type of an array, which must be laid out as `data_type` says.
    pub(crate) fn new(array: &'a ArrayRef, data_type: &DataType) -> Result<Self> {
        let values = match data_type {
            DataType::Boolean => Values::Bool(array.as_boolean().values()),
            DataType::Int16 => Values::I16(array.as_primitive::<Int16Type>().values()),
            DataType::Int32 => Values::I32(array.as_primitive::<Int32Type>().values()),
            DataType::Date32 => Values::I32(array.as_primitive::<Date32Type>().values()),
            DataType::Int64 => Values::I64(array.as_primitive::<Int64Type>().values()),
            DataType::Time64(_) => Values::I64(array.as_primitive::<Time64MicrosecondType>().values()),
            DataType::Timestamp(_, _) => Values::I64(array.as_primitive::<TimestampMicrosecondType>().values()),
            DataType::Float32 => Values::F32(array.as_primitive::<Float32Type>().values()),
            DataType::Float64 => Values::F64(array.as_primitive::<Float64Type>().values()),
            DataType::Decimal128(precision, _) => {
                let values = array.as_primitive::<Decimal128Type>().values();
                if *precision <= NARROW_DECIMAL_PRECISION_MAX { Values::Narrow(values) } else { Values::Wide(values) }
            }
            DataType::Interval(_) => Values::Interval(array.as_primitive::<IntervalMonthDayNanoType>().values()),
            DataType::FixedSizeBinary(width) => {
                let array = array.as_fixed_size_binary();
                Values::Fixed { bytes: array.value_data(), width: usize::try_from(*width).unwrap_or(0) }
            }
            DataType::Utf8 => {
                let array = array.as_string::<i32>();
                Values::Var { ends: array.value_offsets(), bytes: array.value_data() }
            }
            DataType::Binary => {
                let array = array.as_binary::<i32>();
                Values::Var { ends: array.value_offsets(), bytes: array.value_data() }
            }
            DataType::List(item) => {
                let array = array.as_list::<i32>();
                Values::List {
                    ends: array.value_offsets(),
                    items: Box::new(Column::new(array.values(), item.data_type())?),
                    item_width: row_width(item.data_type()),
                }
            }
            other => return Err(Error::UnsupportedType(other.to_string())),
        };
        Ok(Self { values, nulls: array.nulls().filter(|nulls| nulls.null_count() > 0) })
    }

    pub(crate) fn is_null(&self, at: usize) -> bool {
        self.nulls.is_some_and(|nulls| nulls.is_null(at))
    }

    /// The bytes of one value as a slot (fixed types) or as a varying value holds them; `None` for NULL.
    pub(crate) fn payload(&self, at: usize) -> Result<Option<Vec<u8>>> {
        if self.is_null(at) {
            return Ok(None);
        }
        let mut bytes = vec![0; self.payload_bytes(at)];
        self.put(at, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// How long [`Column::put`] makes a value that is not NULL.
    fn payload_bytes(&self, at: usize) -> usize {
        match &self.values {
            Values::Bool(_) => 1,
            Values::I16(_) => 2,
            Values::I32(_) | Values::F32(_) => 4,
            Values::I64(_) | Values::F64(_) | Values::Narrow(_) => 8,
            Values::Wide(_) | Values::Interval(_) => 16,
            Values::Fixed { width, .. } => *width,
            Values::Var { ends, .. } => span(ends, at).len(),
            Values::List { ends, items, item_width } => {
                let items_span = span(ends, at);
                let head = 4 + items_span.len().div_ceil(8) + items_span.len() * item_width.unwrap_or(END_BYTES);
                match item_width {
                    Some(_) => head,
                    None => {
                        head + items_span
                            .filter(|&item| !items.is_null(item))
                            .map(|item| items.payload_bytes(item))
                            .sum::<usize>()
                    }
                }
            }
        }
    }

    /// Writes a value that is not NULL over `out`, which is as long as [`Column::payload_bytes`] says and zero.
    fn put(&self, at: usize, out: &mut [u8]) -> Result<()> {
        match &self.values {
            Values::Bool(values) => out[0] = u8::from(values.value(at)),
            Values::I16(values) => out.copy_from_slice(&values[at].to_le_bytes()),
            Values::I32(values) => out.copy_from_slice(&values[at].to_le_bytes()),
            Values::I64(values) => out.copy_from_slice(&values[at].to_le_bytes()),
            Values::F32(values) => out.copy_from_slice(&values[at].to_le_bytes()),
            Values::F64(values) => out.copy_from_slice(&values[at].to_le_bytes()),
            Values::Narrow(values) => out.copy_from_slice(&narrow(values[at])?.to_le_bytes()),
            Values::Wide(values) => out.copy_from_slice(&values[at].to_le_bytes()),
            Values::Interval(values) => out.copy_from_slice(&interval(values[at])),
            Values::Fixed { bytes, width } => out.copy_from_slice(&bytes[at * width..(at + 1) * width]),
            Values::Var { ends, bytes } => out.copy_from_slice(&bytes[span(ends, at)]),
            Values::List { ends, items, item_width } => return put_list(items, span(ends, at), *item_width, out),
        }
        Ok(())
    }
}

fn put_list(items: &Column<'_>, span: Range<usize>, item_width: Option<usize>, out: &mut [u8]) -> Result<()> {
    let count = span.len();
    out[..4].copy_from_slice(&offset(count)?.to_le_bytes());
    let slots = 4 + count.div_ceil(8);
    let width = item_width.unwrap_or(END_BYTES);
    let values = slots + count * width;
    let mut end = values;
    for (number, item) in span.enumerate() {
        let slot = slots + number * width..slots + (number + 1) * width;
        let null = items.is_null(item);
        if null {
            out[4 + number / 8] |= 1 << (number % 8);
        }
        if item_width.is_some() {
            if !null {
                items.put(item, &mut out[slot])?;
            }
            continue;
        }
        if !null {
            let start = end;
            end += items.payload_bytes(item);
            items.put(item, &mut out[start..end])?;
        }
        out[slot].copy_from_slice(&offset(end - values)?.to_le_bytes());
    }
    Ok(())
}

fn span(ends: &[i32], at: usize) -> Range<usize> {
    // Arrow's offsets are never negative nor falling, which its constructors check.
    ends[at] as usize..ends[at + 1] as usize
}

fn narrow(value: i128) -> Result<i64> {
    i64::try_from(value).map_err(|_| {
        Error::OutOfRange(format!(
            "decimal of unscaled value {value} has more than {NARROW_DECIMAL_PRECISION_MAX} digits"
        ))
    })
}

fn interval(value: IntervalMonthDayNano) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&value.months.to_le_bytes());
    bytes[4..8].copy_from_slice(&value.days.to_le_bytes());
    bytes[8..].copy_from_slice(&value.nanoseconds.to_le_bytes());
    bytes
}

fn offset(value: usize) -> Result<u32> {
    u32::try_from(value)
        .map_err(|_| Error::TooLarge(format!("a row of {value} bytes, at most {} are possible", u32::MAX)))
}

/// Encodes all rows into one allocation: lengths first, then block by block, column by column.
pub(super) fn encode(layout: &Layout, columns: &[Column<'_>], rows: usize) -> Result<Vec<Bytes>> {
    let starts = starts(layout, columns, rows)?;
    let mut buffer = vec![0u8; starts[rows]];
    let count = (columns.len() as u16).to_le_bytes();
    let fixed_end = layout.fixed_end(columns.len());
    let mut ends = [0u32; BLOCK_ROWS];
    for first in (0..rows).step_by(BLOCK_ROWS) {
        let block = &starts[first..rows.min(first + BLOCK_ROWS)];
        for &start in block {
            buffer[start..start + COUNT_BYTES].copy_from_slice(&count);
        }
        // `starts` has checked that a row's length fits 32 bits, so its ends do.
        ends.fill(fixed_end as u32);
        for (at, column) in columns.iter().enumerate() {
            let mut target = Block {
                buffer: &mut buffer,
                starts: block,
                first,
                null_byte: COUNT_BYTES + at / 8,
                null_bit: 1 << (at % 8),
                slot: Layout::base(columns.len()) + layout.slots[at],
            };
            target.write(column, &mut ends)?;
        }
    }
    let buffer = Bytes::from(buffer);
    Ok(starts.windows(2).map(|pair| buffer.slice(pair[0]..pair[1])).collect())
}

/// Where each row starts, and where the last one ends.
fn starts(layout: &Layout, columns: &[Column<'_>], rows: usize) -> Result<Vec<usize>> {
    let fixed_end = layout.fixed_end(columns.len());
    let mut lengths = vec![fixed_end; rows];
    for (column, _) in columns.iter().zip(&layout.widths).filter(|(_, width)| width.is_none()) {
        match (&column.values, column.nulls) {
            (Values::Var { ends, .. }, None) => {
                for (length, pair) in lengths.iter_mut().zip(ends.windows(2)) {
                    *length += (pair[1] - pair[0]) as usize;
                }
            }
            _ => {
                for (at, length) in lengths.iter_mut().enumerate() {
                    if !column.is_null(at) {
                        *length += column.payload_bytes(at);
                    }
                }
            }
        }
    }
    let mut starts = Vec::with_capacity(rows + 1);
    let mut at = 0usize;
    for length in lengths {
        offset(length)?;
        starts.push(at);
        at += length;
    }
    starts.push(at);
    Ok(starts)
}

/// One column of one block of rows, while it is written.
struct Block<'a> {
    buffer: &'a mut [u8],
    starts: &'a [usize],
    /// The row number of the block's first row.
    first: usize,
    null_byte: usize,
    null_bit: u8,
    slot: usize,
}

impl Block<'_> {
    fn write(&mut self, column: &Column<'_>, ends: &mut [u32; BLOCK_ROWS]) -> Result<()> {
        let nulls = column.nulls;
        match &column.values {
            Values::Bool(values) => self.fixed(nulls, |at| [u8::from(values.value(at))]),
            Values::I16(values) => self.fixed(nulls, |at| values[at].to_le_bytes()),
            Values::I32(values) => self.fixed(nulls, |at| values[at].to_le_bytes()),
            Values::I64(values) => self.fixed(nulls, |at| values[at].to_le_bytes()),
            Values::F32(values) => self.fixed(nulls, |at| values[at].to_le_bytes()),
            Values::F64(values) => self.fixed(nulls, |at| values[at].to_le_bytes()),
            Values::Wide(values) => self.fixed(nulls, |at| values[at].to_le_bytes()),
            Values::Interval(values) => self.fixed(nulls, |at| interval(values[at])),
            Values::Narrow(values) => {
                let rows = self.first..self.first + self.starts.len();
                for at in rows {
                    if !column.is_null(at) {
                        narrow(values[at])?;
                    }
                }
                self.fixed(nulls, |at| (values[at] as i64).to_le_bytes());
            }
            Values::Fixed { bytes, width } => self.each(nulls, |row, slot, at| {
                row[slot..slot + width].copy_from_slice(&bytes[at * width..(at + 1) * width]);
            }),
            Values::Var { ends: offsets, bytes } => {
                for (number, &start) in self.starts.iter().enumerate() {
                    let at = self.first + number;
                    let row = &mut self.buffer[start..];
                    let mut end = ends[number];
                    if nulls.is_some_and(|nulls| nulls.is_null(at)) {
                        row[self.null_byte] |= self.null_bit;
                    } else {
                        let value = &bytes[span(offsets, at)];
                        let from = end as usize;
                        row[from..from + value.len()].copy_from_slice(value);
                        end += value.len() as u32;
                        ends[number] = end;
                    }
                    row[self.slot..self.slot + END_BYTES].copy_from_slice(&end.to_le_bytes());
                }
            }
            Values::List { .. } => {
                for (number, &start) in self.starts.iter().enumerate() {
                    let at = self.first + number;
                    let row = &mut self.buffer[start..];
                    let from = ends[number] as usize;
                    let mut end = from;
                    if column.is_null(at) {
                        row[self.null_byte] |= self.null_bit;
                    } else {
                        end += column.payload_bytes(at);
                        column.put(at, &mut row[from..end])?;
                        ends[number] = end as u32;
                    }
                    row[self.slot..self.slot + END_BYTES].copy_from_slice(&(end as u32).to_le_bytes());
                }
            }
        }
        Ok(())
    }

    fn fixed<const WIDTH: usize>(&mut self, nulls: Option<&NullBuffer>, value: impl Fn(usize) -> [u8; WIDTH]) {
        self.each(nulls, |row, slot, at| row[slot..slot + WIDTH].copy_from_slice(&value(at)));
    }

    /// Runs `put(bytes from the row's start on, slot, row number)` for every row that is not NULL and marks the others.
    #[inline]
    fn each(&mut self, nulls: Option<&NullBuffer>, put: impl Fn(&mut [u8], usize, usize)) {
        match nulls {
            None => {
                for (number, &start) in self.starts.iter().enumerate() {
                    put(&mut self.buffer[start..], self.slot, self.first + number);
                }
            }
            Some(nulls) => {
                for (number, &start) in self.starts.iter().enumerate() {
                    let row = &mut self.buffer[start..];
                    if nulls.is_null(self.first + number) {
                        row[self.null_byte] |= self.null_bit;
                    } else {
                        put(row, self.slot, self.first + number);
                    }
                }
            }
        }
    }
}
