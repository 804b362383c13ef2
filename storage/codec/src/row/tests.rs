//! Rows keep their values in every projection and across schema versions, and damage is found, not followed.

use arrow::array::{Array, ArrayRef, Int32Array, Int64Array, ListArray, NullArray, StringArray, StringViewArray};
use arrow::datatypes::{DataType, Int32Type};
use base::{Classify, ColumnId, ErrorKind, SchemaVersion, TableId};
use proptest::prelude::*;

use super::*;
use crate::testing::{all_types, columns, list_of, same};
use crate::wire::{Reader, Writer};
use crate::{ROW_NO_COLUMN, StoredColumn};

fn schema_of(types: &[DataType]) -> Arc<StoredSchema> {
    let columns = types.iter().zip(1..).map(|(data_type, id)| StoredColumn {
        id: ColumnId(id),
        name: format!("column_{id}"),
        data_type: data_type.clone(),
        nullable: true,
        dropped: false,
        missing: None,
    });
    Arc::new(StoredSchema::new(TableId(1000), SchemaVersion(1), columns.collect(), vec![0]))
}

fn some_rows(rows: std::ops::Range<usize>) -> impl Strategy<Value = (Arc<StoredSchema>, RecordBatch)> {
    // A few types at a time keeps the cases small; all of them come up.
    proptest::collection::vec(proptest::sample::select(all_types()), 1..6)
        .prop_flat_map(move |types| (Just(schema_of(&types)), columns(types, rows.clone())))
        .prop_map(|(schema, columns)| {
            let batch = RecordBatch::try_new(schema.arrow().clone(), columns).unwrap();
            (schema, batch)
        })
}

fn all(schema: &StoredSchema) -> Vec<usize> {
    (0..schema.columns.len()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn rows_round_trip(
        (schema, batch) in some_rows(0..12),
        projection in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let codec = RowCodec::new(schema.clone()).unwrap();
        let rows = codec.encode(&batch).unwrap();
        prop_assert_eq!(rows.len(), batch.num_rows());
        let decoded = codec.decode(&rows, &all(&schema)).unwrap();
        prop_assert_eq!(decoded.schema(), schema.arrow().clone());
        for (before, after) in batch.columns().iter().zip(decoded.columns()) {
            prop_assert!(same(before, after), "{:?} became {:?}", before, after);
        }
        let projection: Vec<usize> = projection.iter().map(|at| at.index(schema.columns.len())).collect();
        let some = codec.decode(&rows, &projection).unwrap();
        prop_assert_eq!(some.num_rows(), batch.num_rows());
        for (column, &at) in some.columns().iter().zip(&projection) {
            prop_assert!(same(column, batch.column(at)));
        }
    }

    #[test]
    fn batches_do_not_matter((schema, batch) in some_rows(1..6)) {
        let codec = RowCodec::new(schema).unwrap();
        for (at, row) in codec.encode(&batch).unwrap().iter().enumerate() {
            prop_assert_eq!(&codec.encode(&batch.slice(at, 1)).unwrap()[0], row);
        }
    }

    #[test]
    fn old_rows_read_missing_values((schema, batch) in some_rows(2..6), kept: prop::sample::Index) {
        // The first row gives the values that the columns of later definitions have for rows of the earlier one.
        let kept = kept.index(schema.columns.len() + 1);
        let old_schema = StoredSchema::new(schema.table, schema.version, schema.columns[..kept].to_vec(), vec![0]);
        let mut columns = schema.columns.clone();
        for (column, values) in columns[kept..].iter_mut().zip(&batch.columns()[kept..]) {
            column.missing = Some(values.slice(0, 1));
        }
        let new_schema = Arc::new(StoredSchema::new(schema.table, SchemaVersion(2), columns, vec![0]));
        let old = RowCodec::new(Arc::new(old_schema)).unwrap();
        let new = RowCodec::new(new_schema.clone()).unwrap();
        let mut rows = old.encode(&batch.project(&(0..kept).collect::<Vec<_>>()).unwrap()).unwrap();
        rows.extend(new.encode(&batch).unwrap());
        let decoded = new.decode(&rows, &all(&new_schema)).unwrap();
        let expected_missing = batch.slice(0, 1);
        for at in 0..schema.columns.len() {
            let column = decoded.column(at);
            prop_assert!(same(&column.slice(batch.num_rows(), batch.num_rows()), batch.column(at)));
            for row in 0..batch.num_rows() {
                let expected = if at < kept { batch.column(at).slice(row, 1) } else { expected_missing.column(at).clone() };
                prop_assert!(same(&column.slice(row, 1), &expected));
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        (schema, batch) in some_rows(1..4),
        noise: Vec<u8>,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut: prop::sample::Index,
    ) {
        let codec = RowCodec::new(schema.clone()).unwrap();
        let all = all(&schema);
        let judge = |bytes: Vec<u8>| judge_one(&codec, &all, bytes);
        judge(noise.clone())?;
        // With a header that is right, the rest is looked at.
        let mut headed = (schema.columns.len() as u16).to_le_bytes().to_vec();
        headed.extend(noise);
        judge(headed)?;
        for row in codec.encode(&batch).unwrap() {
            let mut bytes = row.to_vec();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
                judge(bytes.clone())?;
            }
            bytes.truncate(cut.index(bytes.len()));
            judge(bytes)?;
            let mut short = row.to_vec();
            short.pop();
            prop_assert!(matches!(codec.decode(&[short.into()], &all), Err(Error::Corrupt(_))));
            let mut long = row.to_vec();
            long.push(0);
            prop_assert!(matches!(codec.decode(&[long.into()], &all), Err(Error::Corrupt(_))));
        }
    }

    #[test]
    fn schemas_and_values_round_trip((schema, batch) in some_rows(1..3)) {
        let mut columns = schema.columns.clone();
        for (column, values) in columns.iter_mut().zip(batch.columns()) {
            let value = values.slice(0, 1);
            let mut writer = Writer::new();
            crate::encode_value(&mut writer, &value).unwrap();
            let mut reader = Reader::new(writer.finish());
            prop_assert!(same(&crate::decode_value(&mut reader).unwrap(), &value));
            reader.finish().unwrap();
            column.missing = (!value.is_null(0)).then_some(value);
            column.dropped = column.missing.is_some();
        }
        // Lists cannot be keys, so the key is a column of its own.
        let key = StoredColumn { id: ROW_NO_COLUMN, data_type: DataType::Int64, missing: None, ..columns[0].clone() };
        columns.push(key);
        let key = vec![columns.len() - 1];
        let schema = StoredSchema::new(TableId(7), SchemaVersion(9), columns, key);
        let decoded = StoredSchema::decode(schema.encode().unwrap()).unwrap();
        prop_assert_eq!((decoded.table, decoded.version, &decoded.key), (schema.table, schema.version, &schema.key));
        prop_assert_eq!(decoded.arrow(), schema.arrow());
        for (before, after) in schema.columns.iter().zip(&decoded.columns) {
            prop_assert_eq!((before.id, &before.name, before.nullable, before.dropped), (after.id, &after.name, after.nullable, after.dropped));
            match (&before.missing, &after.missing) {
                (Some(before), Some(after)) => prop_assert!(same(before, after)),
                (before, after) => prop_assert!(before.is_none() && after.is_none()),
            }
        }
    }

    #[test]
    fn damaged_schemas_never_panic(noise: Vec<u8>, at: prop::sample::Index, byte: u8) {
        let _ = StoredSchema::decode(Bytes::from(noise.clone()));
        let _ = crate::decode_value(&mut Reader::new(noise.into()));
        let schema = schema_of(&[DataType::Int64, DataType::Utf8, list_of(DataType::Int32)]);
        let mut bytes = schema.encode().unwrap().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = StoredSchema::decode(bytes.clone().into());
        bytes.truncate(at);
        prop_assert!(matches!(StoredSchema::decode(bytes.into()), Err(Error::Corrupt(_))));
    }
}

fn judge_one(codec: &RowCodec, projection: &[usize], bytes: Vec<u8>) -> Result<(), TestCaseError> {
    match codec.decode(&[Bytes::from(bytes)], projection) {
        Ok(batch) => prop_assert_eq!(batch.num_rows(), 1),
        Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error),
    }
    Ok(())
}

fn batch(schema: &StoredSchema, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema.arrow().clone(), columns).unwrap()
}

#[test]
fn bytes_are_pinned() {
    let schema = schema_of(&[DataType::Int32, DataType::Utf8, DataType::Decimal128(10, 2), list_of(DataType::Int32)]);
    let decimal = arrow::array::Decimal128Array::from(vec![-5, 0]).with_precision_and_scale(10, 2).unwrap();
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None]);
    let batch = batch(
        &schema,
        vec![
            Arc::new(Int32Array::from(vec![Some(258), None])),
            Arc::new(StringArray::from(vec!["hi", ""])),
            Arc::new(decimal),
            Arc::new(lists),
        ],
    );
    let rows = RowCodec::new(schema).unwrap().encode(&batch).unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(
        hex(&rows[0]),
        concat!(
            "0400",
            "00",
            "02010000",
            "19000000",
            "fbffffffffffffff",
            "26000000",
            "6869",
            "02000000",
            "02",
            "01000000",
            "00000000"
        )
    );
    assert_eq!(hex(&rows[1]), concat!("0400", "09", "00000000", "17000000", "0000000000000000", "17000000"));
}

#[test]
fn rows_of_more_columns_than_known_are_refused() {
    let wide = schema_of(&[DataType::Int32, DataType::Int32]);
    let rows = RowCodec::new(wide.clone()).unwrap();
    let rows = rows
        .encode(&batch(&wide, vec![Arc::new(Int32Array::from(vec![1])), Arc::new(Int32Array::from(vec![2]))]))
        .unwrap();
    let narrow = RowCodec::new(schema_of(&[DataType::Int32])).unwrap();
    assert!(matches!(narrow.decode(&rows, &[0]), Err(Error::Corrupt(_))));
}

#[test]
fn columns_must_be_those_of_the_schema() {
    let schema = schema_of(&[DataType::Int64, DataType::Utf8]);
    let codec = RowCodec::new(schema).unwrap();
    let longs: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let one = RecordBatch::try_from_iter([("a", longs.clone())]).unwrap();
    assert!(matches!(codec.encode(&one), Err(Error::Mismatch(_))));
    let wrong = RecordBatch::try_from_iter([("a", longs.clone()), ("b", longs.clone())]).unwrap();
    assert!(matches!(codec.encode(&wrong), Err(Error::Mismatch(_))));
    assert!(matches!(codec.decode(&[], &[2]), Err(Error::Mismatch(_))));
    // Views are as good as strings, and an untyped NULL column stands for any, as a dropped column's does.
    let view: ArrayRef = Arc::new(StringViewArray::from(vec!["x"]));
    let rows = codec.encode(&RecordBatch::try_from_iter([("a", longs.clone()), ("b", view)]).unwrap()).unwrap();
    assert_eq!(codec.decode(&rows, &[1]).unwrap().column(0).as_ref(), &StringArray::from(vec!["x"]) as &dyn Array);
    let null: ArrayRef = Arc::new(NullArray::new(1));
    let fields = [("a", longs, false), ("b", null, true)];
    let rows = codec.encode(&RecordBatch::try_from_iter_with_nullable(fields).unwrap()).unwrap();
    assert_eq!(codec.decode(&rows, &[1]).unwrap().column(0).null_count(), 1);
}

#[test]
fn narrow_decimals_that_do_not_fit_are_refused() {
    let schema = schema_of(&[DataType::Decimal128(18, 0)]);
    let wide =
        arrow::array::Decimal128Array::from(vec![i128::from(i64::MAX) + 1]).with_precision_and_scale(18, 0).unwrap();
    let error = RowCodec::new(schema.clone()).unwrap().encode(&batch(&schema, vec![Arc::new(wide)])).unwrap_err();
    assert_eq!(error.sqlstate().as_str(), "22003");
}

#[test]
fn null_where_none_may_be_is_damage() {
    let mut columns = schema_of(&[DataType::Int32]).columns.clone();
    columns[0].nullable = false;
    let strict = Arc::new(StoredSchema::new(TableId(1), SchemaVersion(1), columns, vec![0]));
    let codec = RowCodec::new(strict).unwrap();
    assert!(matches!(codec.decode(&[Bytes::from_static(&[1, 0, 1, 0, 0, 0, 0])], &[0]), Err(Error::Corrupt(_))));
}

#[test]
fn rows_without_columns_are_counted() {
    let schema = schema_of(&[DataType::Int32]);
    let codec = RowCodec::new(schema.clone()).unwrap();
    let rows = codec.encode(&batch(&schema, vec![Arc::new(Int32Array::from(vec![1, 2, 3]))])).unwrap();
    assert_eq!(codec.decode(&rows, &[]).unwrap().num_rows(), 3);
}

/// Rows like those of an order line: four integers, four decimals, four texts, three dates.
#[test]
#[ignore = "measures, in whatever profile it is built"]
fn throughput() {
    use arrow::array::{Date32Array, Decimal128Array};

    const ROWS: usize = 200_000;
    let mut types = vec![DataType::Int64, DataType::Int64, DataType::Int64, DataType::Int32];
    types.extend([
        DataType::Decimal128(15, 2),
        DataType::Decimal128(15, 2),
        DataType::Decimal128(15, 2),
        DataType::Decimal128(15, 2),
    ]);
    types.extend([
        DataType::Utf8,
        DataType::Utf8,
        DataType::Utf8,
        DataType::Utf8,
        DataType::Date32,
        DataType::Date32,
        DataType::Date32,
    ]);
    let schema = schema_of(&types);
    let columns = types.iter().enumerate().map(|(at, data_type)| -> ArrayRef {
        let numbers = 0..ROWS as i64;
        match data_type {
            DataType::Int64 => Arc::new(Int64Array::from_iter_values(numbers)),
            DataType::Int32 => Arc::new(Int32Array::from_iter_values(0..ROWS as i32)),
            DataType::Date32 => Arc::new(Date32Array::from_iter_values(0..ROWS as i32)),
            DataType::Utf8 => Arc::new(StringArray::from_iter_values(
                numbers.map(|number| format!("{number:0width$}", width = 1 + (at - 8) * 9)),
            )),
            _ => Arc::new(
                Decimal128Array::from_iter_values(numbers.map(i128::from)).with_precision_and_scale(15, 2).unwrap(),
            ),
        }
    });
    let batch = batch(&schema, columns.collect());
    let rows_codec = RowCodec::new(schema.clone()).unwrap();
    let keys_codec = crate::KeyCodec::new(&schema).unwrap();
    let text_keys = crate::KeyCodec::of_types(&[DataType::Utf8, DataType::Int64]).unwrap();
    let rows = rows_codec.encode(&batch).unwrap();
    let all = all(&schema);
    let report = |what: &str, work: &dyn Fn()| {
        let mut best = f64::MAX;
        for _ in 0..5 {
            let start = std::time::Instant::now();
            work();
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{what:<40} {:>8.2} million rows/s", ROWS as f64 / best / 1e6);
    };
    println!("{} bytes per row", rows.iter().map(Bytes::len).sum::<usize>() / ROWS);
    report("encode rows of 15 columns", &|| drop(rows_codec.encode(&batch).unwrap()));
    report("decode rows of 15 columns", &|| drop(rows_codec.decode(&rows, &all).unwrap()));
    report("decode 2 of 15 columns", &|| drop(rows_codec.decode(&rows, &[0, 5]).unwrap()));
    let keys = keys_codec.keys(&batch).unwrap();
    report("encode integer keys", &|| drop(keys_codec.keys(&batch).unwrap()));
    report("decode integer keys", &|| drop(keys_codec.decode(&keys).unwrap()));
    let text_columns = [batch.column(9).clone(), batch.column(0).clone()];
    let keys = text_keys.keys_of_columns(&text_columns).unwrap();
    report("encode text and integer keys", &|| drop(text_keys.keys_of_columns(&text_columns).unwrap()));
    report("decode text and integer keys", &|| drop(text_keys.decode(&keys).unwrap()));
}
