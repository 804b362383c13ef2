//! Keys keep their order, their values and their prefixes, whatever the types.

use std::cmp::Ordering;
use std::ops::RangeBounds;

use arrow::array::{Int32Array, Int64Array, LargeStringArray, StringViewArray};
use base::{Classify, ColumnId, ErrorKind, SchemaVersion, TableId};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::StoredColumn;
use crate::testing::{column, columns, compare, key_types, list_of};

fn some_columns() -> impl Strategy<Value = (Vec<DataType>, Vec<ArrayRef>)> {
    proptest::collection::vec(select(key_types()), 1..4)
        .prop_flat_map(|types| (Just(types.clone()), columns(types, 1..8)))
}

fn compare_rows(columns: &[ArrayRef], left: usize, right: usize) -> Ordering {
    columns.iter().map(|column| compare(column, left, right)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn encoded_order_is_value_order((types, columns) in some_columns()) {
        let keys = KeyCodec::of_types(&types).unwrap().keys_of_columns(&columns).unwrap();
        for left in 0..keys.len() {
            for right in 0..keys.len() {
                prop_assert_eq!(keys[left].cmp(&keys[right]), compare_rows(&columns, left, right), "{:?}", columns);
            }
        }
    }

    #[test]
    fn keys_round_trip((types, columns) in some_columns()) {
        let codec = KeyCodec::of_types(&types).unwrap();
        let keys = codec.keys_of_columns(&columns).unwrap();
        let decoded = codec.decode(&keys).unwrap();
        for (before, after) in columns.iter().zip(&decoded) {
            prop_assert_eq!(before.data_type(), after.data_type());
            let both = arrow::compute::concat(&[before, after]).unwrap();
            for row in 0..keys.len() {
                prop_assert_eq!(compare(&both, row, keys.len() + row), Ordering::Equal);
            }
        }
        prop_assert_eq!(codec.keys_of_columns(&decoded).unwrap(), keys);
    }

    #[test]
    fn prefix_ranges_select_exactly_their_keys((types, columns) in some_columns(), width in 1..4usize) {
        let codec = KeyCodec::of_types(&types).unwrap();
        let keys = codec.keys_of_columns(&columns).unwrap();
        let width = width.min(types.len());
        let prefixes = codec.encode_prefix(&columns[..width]).unwrap();
        for (at, prefix) in prefixes.iter().enumerate() {
            let equal = KeyCodec::prefix_range(prefix);
            let greater = KeyCodec::range(Bound::Excluded(prefix), Bound::Unbounded);
            let not_greater = KeyCodec::range(Bound::Unbounded, Bound::Included(prefix));
            let less = KeyCodec::range(Bound::Unbounded, Bound::Excluded(prefix));
            for (other, key) in keys.iter().enumerate() {
                let order = compare_rows(&columns[..width], other, at);
                prop_assert_eq!(equal.contains(key), order.is_eq());
                prop_assert_eq!(greater.contains(key), order.is_gt());
                prop_assert_eq!(not_greater.contains(key), order.is_le());
                prop_assert_eq!(less.contains(key), order.is_lt());
                if width < types.len() && order.is_eq() {
                    prop_assert_eq!(*key < KeyCodec::before_nulls(prefix), columns[width].is_valid(other));
                }
            }
        }
    }

    #[test]
    fn batches_do_not_matter((types, columns) in some_columns()) {
        let codec = KeyCodec::of_types(&types).unwrap();
        let keys = codec.keys_of_columns(&columns).unwrap();
        for (row, key) in keys.iter().enumerate() {
            let alone: Vec<ArrayRef> = columns.iter().map(|column| column.slice(row, 1)).collect();
            prop_assert_eq!(&codec.keys_of_columns(&alone).unwrap()[0], key);
        }
    }

    #[test]
    fn sort_indices_sort(columns in columns(vec![DataType::Utf8, DataType::Int16], 0..40)) {
        let keys = KeyCodec::of_types(&[DataType::Utf8, DataType::Int16]).unwrap().keys_of_columns(&columns).unwrap();
        let mut expected: Vec<u32> = (0..keys.len() as u32).collect();
        expected.sort_by_key(|&at| &keys[at as usize]);
        let order = KeyCodec::sort_indices(&keys);
        prop_assert_eq!(&order, &expected);
        let sorted: Vec<RowKey> = order.iter().map(|&at| keys[at as usize].clone()).collect();
        prop_assert!(KeyCodec::is_sorted(&sorted));
        prop_assert_eq!(KeyCodec::sort_indices(&sorted), (0..keys.len() as u32).collect::<Vec<_>>());
    }

    #[test]
    fn damaged_keys_never_panic(
        (types, columns) in some_columns(),
        noise: Vec<u8>,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut: prop::sample::Index,
    ) {
        let codec = KeyCodec::of_types(&types).unwrap();
        let _ = codec.decode(&[RowKey(Bytes::from(noise))]);
        for key in codec.keys_of_columns(&columns).unwrap() {
            let mut bytes = key.as_bytes().to_vec();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            let _ = codec.decode(&[RowKey(Bytes::from(bytes.clone()))]);
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(matches!(codec.decode(&[RowKey(Bytes::from(bytes))]), Err(Error::Corrupt(_))));
        }
    }

    #[test]
    fn views_and_dictionaries_are_accepted(texts in column(&DataType::Utf8, 5)) {
        let codec = KeyCodec::of_types(&[DataType::Utf8]).unwrap();
        let keys = codec.keys_of_columns(std::slice::from_ref(&texts)).unwrap();
        let view: ArrayRef = Arc::new(texts.as_string::<i32>().iter().collect::<StringViewArray>());
        let large: ArrayRef = Arc::new(texts.as_string::<i32>().iter().collect::<LargeStringArray>());
        let dictionary = arrow::compute::cast(&texts, &DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))).unwrap();
        for other in [view, large, dictionary] {
            prop_assert_eq!(&codec.keys_of_columns(&[other]).unwrap(), &keys);
        }
    }
}

#[test]
fn bytes_are_pinned() {
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int32Array::from(vec![Some(-1), None])), Arc::new(StringArray::from(vec!["a\0b", ""]))];
    let keys = KeyCodec::of_types(&[DataType::Int32, DataType::Utf8]).unwrap().keys_of_columns(&columns).unwrap();
    assert_eq!(format!("{:?}", keys[0]), "k:017fffffff016100ff620000");
    assert_eq!(format!("{:?}", keys[1]), "k:0200000000010000");
}

#[test]
fn wide_batches_share_one_allocation() {
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(0..1000))];
    let keys = KeyCodec::of_types(&[DataType::Int64]).unwrap().keys_of_columns(&columns).unwrap();
    assert!(keys.windows(2).all(|pair| pair[0].as_bytes().as_ptr().wrapping_add(9) == pair[1].as_bytes().as_ptr()));
    assert!(KeyCodec::is_sorted_unique(&keys));
}

#[test]
fn wrong_columns_are_refused() {
    assert_eq!(KeyCodec::of_types(&[list_of(DataType::Int32)]).unwrap_err().kind(), ErrorKind::Unsupported);
    let interval = DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano);
    assert!(matches!(KeyCodec::of_types(&[interval]), Err(Error::UnsupportedType(_))));
    assert!(matches!(KeyCodec::of_types(&[DataType::UInt8]), Err(Error::UnsupportedType(_))));

    let codec = KeyCodec::of_types(&[DataType::Int64, DataType::Int64]).unwrap();
    let longs: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let ints: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
    let short: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    assert!(matches!(codec.keys_of_columns(std::slice::from_ref(&longs)), Err(Error::Mismatch(_))));
    assert!(matches!(codec.keys_of_columns(&[longs.clone(), ints]), Err(Error::Mismatch(_))));
    assert!(matches!(codec.keys_of_columns(&[longs.clone(), short]), Err(Error::Mismatch(_))));
    assert!(matches!(codec.encode_prefix(&[]), Err(Error::Mismatch(_))));
    assert!(codec.keys_of_columns(&[longs.clone(), longs]).is_ok());
}

#[test]
fn hidden_keys_are_ordinary_columns() {
    let column =
        |id, data_type| StoredColumn { id, name: "c".into(), data_type, nullable: true, dropped: false, missing: None };
    let columns = vec![
        column(ColumnId(1), DataType::Utf8),
        column(crate::ROW_TS_COLUMN, DataType::Int64),
        column(crate::ROW_NO_COLUMN, DataType::Int64),
    ];
    let schema = StoredSchema::new(TableId(1000), SchemaVersion(1), columns, vec![1, 2]);
    assert!(schema.has_hidden_key());
    let batch = RecordBatch::try_new(
        schema.arrow().clone(),
        vec![
            Arc::new(StringArray::from(vec!["x", "y"])),
            Arc::new(Int64Array::from(vec![7, 7])),
            Arc::new(Int64Array::from(vec![1, 0])),
        ],
    )
    .unwrap();
    let codec = KeyCodec::new(&schema).unwrap();
    let keys = codec.keys(&batch).unwrap();
    assert!(keys[1] < keys[0]);
    assert_eq!(codec.decode(&keys).unwrap()[1].as_primitive::<Int64Type>().values().as_ref(), &[1, 0]);
}

#[test]
fn the_empty_prefix_selects_everything() {
    let empty = RowKey::default();
    assert_eq!(KeyCodec::prefix_range(&empty), (Bound::Included(empty.clone()), Bound::Unbounded));
    let (start, end) = KeyCodec::range(Bound::Excluded(&empty), Bound::Unbounded);
    assert!(!(start, end).contains(&RowKey(Bytes::from_static(&[NULL_TAG, 0xff, 0xff]))));
}
