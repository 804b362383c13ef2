//! Columns of any storable type, for property tests.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::types::{
    ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    IntervalMonthDayNanoType, Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray, PrimitiveArray, StringArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, IntervalMonthDayNano, IntervalUnit, TimeUnit};
use proptest::collection::vec;
use proptest::prelude::*;

pub(crate) fn key_types() -> Vec<DataType> {
    vec![
        DataType::Boolean,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::Float32,
        DataType::Float64,
        DataType::Decimal128(15, 2),
        DataType::Decimal128(38, 10),
        DataType::Utf8,
        DataType::Binary,
        DataType::Date32,
        DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::FixedSizeBinary(16),
    ]
}

pub(crate) fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", item, true)))
}

pub(crate) fn all_types() -> Vec<DataType> {
    let mut types = key_types();
    types.push(DataType::Interval(IntervalUnit::MonthDayNano));
    types.extend(types.clone().into_iter().map(list_of));
    types.push(list_of(list_of(DataType::Utf8)));
    types
}

fn natives<T: ArrowPrimitiveType>(
    data_type: &DataType,
    rows: usize,
    value: impl Strategy<Value = T::Native> + 'static,
) -> BoxedStrategy<ArrayRef> {
    let data_type = data_type.clone();
    vec(prop::option::weighted(0.8, value), rows)
        .prop_map(move |values| {
            Arc::new(PrimitiveArray::<T>::from_iter(values).with_data_type(data_type.clone())) as ArrayRef
        })
        .boxed()
}

fn integers(bits: u32) -> BoxedStrategy<i64> {
    let (min, max) = (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits));
    prop_oneof![3 => -3..4i64, 1 => Just(min), 1 => Just(max), 3 => min..=max].boxed()
}

fn texts() -> impl Strategy<Value = String> {
    // Zero, one and high characters next to common ones: that is where an escape goes wrong.
    vec(prop_oneof![Just('\0'), Just('\u{1}'), Just('a'), Just('b'), Just('é'), Just('\u{10ffff}')], 0..5)
        .prop_map(|chars| chars.into_iter().collect())
}

/// A column of `rows` values, NULLs and the edges of the type among them.
pub(crate) fn column(data_type: &DataType, rows: usize) -> BoxedStrategy<ArrayRef> {
    match data_type {
        DataType::Boolean => {
            vec(any::<Option<bool>>(), rows).prop_map(|values| Arc::new(BooleanArray::from(values)) as ArrayRef).boxed()
        }
        DataType::Int16 => natives::<Int16Type>(data_type, rows, integers(16).prop_map(|value| value as i16)),
        DataType::Int32 => natives::<Int32Type>(data_type, rows, integers(32).prop_map(|value| value as i32)),
        DataType::Date32 => natives::<Date32Type>(data_type, rows, integers(32).prop_map(|value| value as i32)),
        DataType::Int64 => natives::<Int64Type>(data_type, rows, integers(64)),
        DataType::Time64(_) => natives::<Time64MicrosecondType>(data_type, rows, integers(64)),
        DataType::Timestamp(_, _) => natives::<TimestampMicrosecondType>(data_type, rows, integers(64)),
        DataType::Float32 => {
            let edges =
                [0.0, -0.0, 1.0, -1.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE];
            natives::<Float32Type>(
                data_type,
                rows,
                prop_oneof![prop::sample::select(edges.to_vec()), any::<u32>().prop_map(f32::from_bits)],
            )
        }
        DataType::Float64 => {
            let edges =
                [0.0, -0.0, 1.0, -1.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE];
            natives::<Float64Type>(
                data_type,
                rows,
                prop_oneof![prop::sample::select(edges.to_vec()), any::<u64>().prop_map(f64::from_bits)],
            )
        }
        DataType::Decimal128(precision, _) if *precision <= 18 => {
            natives::<Decimal128Type>(data_type, rows, integers(50).prop_map(i128::from))
        }
        DataType::Decimal128(_, _) => {
            natives::<Decimal128Type>(data_type, rows, prop_oneof![integers(64).prop_map(i128::from), any::<i128>()])
        }
        DataType::Interval(_) => natives::<IntervalMonthDayNanoType>(
            data_type,
            rows,
            any::<(i32, i32, i64)>().prop_map(|(months, days, nanos)| IntervalMonthDayNano::new(months, days, nanos)),
        ),
        DataType::Utf8 => vec(prop::option::weighted(0.8, texts()), rows)
            .prop_map(|values| Arc::new(StringArray::from_iter(values)) as ArrayRef)
            .boxed(),
        DataType::Binary => {
            vec(prop::option::weighted(0.8, vec(prop_oneof![Just(0), Just(1), Just(0xff), any::<u8>()], 0..5)), rows)
                .prop_map(|values| Arc::new(BinaryArray::from_iter(values)) as ArrayRef)
                .boxed()
        }
        DataType::FixedSizeBinary(width) => {
            let width = *width;
            vec(any::<Option<[u8; 16]>>(), rows)
                .prop_map(move |values| {
                    Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(values.into_iter(), width).unwrap())
                        as ArrayRef
                })
                .boxed()
        }
        DataType::List(field) => {
            let field = field.clone();
            vec((0..4usize, prop::bool::weighted(0.8)), rows)
                .prop_flat_map(move |lists| {
                    let items = lists.iter().map(|(length, _)| length).sum();
                    (Just(lists), column(field.data_type(), items), Just(field.clone()))
                })
                .prop_map(|(lists, items, field)| {
                    let ends = OffsetBuffer::from_lengths(lists.iter().map(|(length, _)| *length));
                    // A NULL list may well have items in Arrow.
                    let nulls = NullBuffer::from_iter(lists.iter().map(|(_, valid)| *valid));
                    Arc::new(ListArray::new(field, ends, items, Some(nulls))) as ArrayRef
                })
                .boxed()
        }
        other => unreachable!("no columns of type {other}"),
    }
}

/// Columns of the given types and one number of rows.
pub(crate) fn columns(types: Vec<DataType>, rows: std::ops::Range<usize>) -> BoxedStrategy<Vec<ArrayRef>> {
    rows.prop_flat_map(move |rows| types.iter().map(|data_type| column(data_type, rows)).collect::<Vec<_>>()).boxed()
}

/// How two values compare, by rules that share nothing with the encoding: NULL last, `-0.0` equal to `0.0`, NaN greatest.
pub(crate) fn compare(array: &ArrayRef, left: usize, right: usize) -> Ordering {
    fn natives<T: ArrowPrimitiveType>(array: &ArrayRef, left: usize, right: usize) -> Ordering {
        let array = array.as_primitive::<T>();
        let (left, right) = (array.value(left), array.value(right));
        left.partial_cmp(&right).unwrap_or_else(|| {
            // Only NaN does not compare with itself.
            #[allow(clippy::eq_op, reason = "this is what makes a NaN")]
            (left != left).cmp(&(right != right))
        })
    }
    match (array.is_null(left), array.is_null(right)) {
        (true, true) => return Ordering::Equal,
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(left).cmp(&array.as_boolean().value(right)),
        DataType::Int16 => natives::<Int16Type>(array, left, right),
        DataType::Int32 => natives::<Int32Type>(array, left, right),
        DataType::Date32 => natives::<Date32Type>(array, left, right),
        DataType::Int64 => natives::<Int64Type>(array, left, right),
        DataType::Time64(_) => natives::<Time64MicrosecondType>(array, left, right),
        DataType::Timestamp(_, _) => natives::<TimestampMicrosecondType>(array, left, right),
        DataType::Float32 => natives::<Float32Type>(array, left, right),
        DataType::Float64 => natives::<Float64Type>(array, left, right),
        DataType::Decimal128(_, _) => natives::<Decimal128Type>(array, left, right),
        DataType::Utf8 => array.as_string::<i32>().value(left).cmp(array.as_string::<i32>().value(right)),
        DataType::Binary => array.as_binary::<i32>().value(left).cmp(array.as_binary::<i32>().value(right)),
        DataType::FixedSizeBinary(_) => {
            array.as_fixed_size_binary().value(left).cmp(array.as_fixed_size_binary().value(right))
        }
        other => unreachable!("no order of type {other}"),
    }
}

/// Whether two arrays hold the same values, bit by bit.
pub(crate) fn same(left: &ArrayRef, right: &ArrayRef) -> bool {
    // Debug output tells all NaN alike, so compare the data; Arrow's equality takes floats by their bits.
    left.to_data() == right.to_data()
}
