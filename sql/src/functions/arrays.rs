//! Arrays, where DataFusion's functions are missing, count without sign, or stop at the first hit where PostgreSQL does not.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, ListArray, UInt32Array, new_empty_array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type};
use arrow::row::{RowConverter, SortField};
use datafusion::logical_expr::ReturnFieldArgs;

use super::call::{Call, Definition, Param, Returns, on, pure};
use super::format::value_text;
use super::input;
use crate::error::{Error, Result};
use crate::types::TypeSpec;

/// `array && array`.
pub(crate) static OVERLAP: Definition = pure(
    &["array_overlap", "arrayoverlap"],
    &[
        on(&[Param::List, Param::List], Returns::Bool, overlap),
        on(&[Param::List, Param::Text], Returns::Bool, overlap_text),
    ],
);

static LENGTH: Definition = pure(
    &["array_length", "list_length"],
    &[on(&[Param::List, Param::Int], Returns::Int4, length), on(&[Param::List], Returns::Int4, length)],
);
static UPPER: Definition = pure(&["array_upper"], &[on(&[Param::List, Param::Int], Returns::Int4, length)]);
static LOWER: Definition = pure(&["array_lower"], &[on(&[Param::List, Param::Int], Returns::Int4, lower)]);
static CARDINALITY: Definition = pure(&["cardinality"], &[on(&[Param::List], Returns::Int4, cardinality)]);
static NDIMS: Definition = pure(&["array_ndims", "list_ndims"], &[on(&[Param::List], Returns::Int4, ndims)]);
static DIMS: Definition = pure(&["array_dims", "list_dims"], &[on(&[Param::List], Returns::Text, dims)]);
static POSITION: Definition = pure(
    &["array_position", "list_position", "array_indexof", "list_indexof"],
    &[
        on(&[Param::List, Param::Any], Returns::Int4, position),
        on(&[Param::List, Param::Any, Param::Int], Returns::Int4, position),
    ],
);
static POSITIONS: Definition = pure(
    &["array_positions", "list_positions"],
    &[on(&[Param::List, Param::Any], Returns::Compute(integer_list), positions)],
);
static REMOVE: Definition =
    pure(&["array_remove", "list_remove"], &[on(&[Param::List, Param::Any], Returns::Same(0), remove)]);
static REPLACE: Definition =
    pure(&["array_replace", "list_replace"], &[on(&[Param::List, Param::Any, Param::Any], Returns::Same(0), replace)]);
static FILL: Definition =
    pure(&["array_fill"], &[on(&[Param::Any, Param::List], Returns::Compute(list_of_first), fill)]);
static TRIM: Definition = pure(&["trim_array"], &[on(&[Param::List, Param::Int], Returns::Same(0), trim)]);
static TO_STRING: Definition = pure(
    &["array_to_string", "list_to_string", "array_join", "list_join"],
    &[
        on(&[Param::List, Param::Text], Returns::Text, to_string),
        on(&[Param::List, Param::Text, Param::Text], Returns::Text, to_string),
    ],
);
static FROM_STRING: Definition = pure(
    &["string_to_array", "string_to_list"],
    &[
        on(&[Param::Text, Param::Text], Returns::TextList, from_string),
        on(&[Param::Text, Param::Text, Param::Text], Returns::TextList, from_string),
    ],
);
/// What `ARRAY(query)` becomes: no rows are an empty array, not null.
static OR_EMPTY: Definition = pure(&["array_or_empty"], &[on(&[Param::List], Returns::Same(0), or_empty)]);

/// Every function of this module.
pub(crate) static ALL: [&Definition; 16] = [
    &OVERLAP,
    &LENGTH,
    &UPPER,
    &LOWER,
    &CARDINALITY,
    &NDIMS,
    &DIMS,
    &POSITION,
    &POSITIONS,
    &REMOVE,
    &REPLACE,
    &FILL,
    &TRIM,
    &TO_STRING,
    &FROM_STRING,
    &OR_EMPTY,
];

fn integer_list(_: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    Ok(TypeSpec::Array(Box::new(TypeSpec::Integer)).field_ref("array_positions"))
}

fn list_of_first(arguments: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    let item = arguments.arg_fields[0].as_ref().clone().with_name("item").with_nullable(true);
    Ok(Arc::new(Field::new("array_fill", DataType::List(Arc::new(item)), true)))
}

fn count(length: usize) -> Result<i32> {
    i32::try_from(length).map_err(|_| Error::internal("an array is too long"))
}

fn item_type(list: &ListArray) -> DataType {
    list.value_type()
}

/// Only the first dimension has a length here, and an empty array has none.
fn length(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    call.values::<Int32Type>(call.arrays.len(), |row| {
        let length = list.value(row).len();
        let first = !call.has(1) || call.int(1).value(row) == 1;
        if first && length > 0 {
            return count(length).map(Some);
        }
        // The second dimension of nested lists.
        if call.has(1)
            && call.int(1).value(row) == 2
            && let Some(inner) = list.value(row).as_any().downcast_ref::<ListArray>()
            && !inner.is_empty()
        {
            return count(inner.value(0).len()).map(Some);
        }
        Ok(None)
    })
}

fn lower(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    call.values::<Int32Type>(2, |row| Ok((call.int(1).value(row) == 1 && !list.value(row).is_empty()).then_some(1)))
}

fn cardinality(call: &Call<'_>) -> Result<ArrayRef> {
    fn total(items: &ArrayRef) -> usize {
        match items.as_any().downcast_ref::<ListArray>() {
            Some(inner) => (0..inner.len()).map(|row| total(&inner.value(row))).sum(),
            None => items.len(),
        }
    }
    let list = call.list(0);
    call.values::<Int32Type>(1, |row| count(total(&list.value(row))).map(Some))
}

fn depth(data_type: &DataType) -> i32 {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            1 + depth(item.data_type())
        }
        _ => 0,
    }
}

fn ndims(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    let dimensions = depth(list.data_type());
    call.values::<Int32Type>(1, |row| Ok((!list.value(row).is_empty()).then_some(dimensions)))
}

fn dims(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    call.texts(1, |row| {
        let mut out = String::new();
        let mut items = list.value(row);
        if items.is_empty() {
            return Ok(None);
        }
        loop {
            out.push_str(&format!("[1:{}]", items.len()));
            items = match items.as_any().downcast_ref::<ListArray>() {
                Some(inner) if !inner.is_empty() => inner.value(0),
                _ => return Ok(Some(out)),
            };
        }
    })
}

/// Which items of an array equal a value, nulls equalling nulls.
fn equal_items(items: &ArrayRef, value: &ArrayRef, row: usize) -> Result<Vec<bool>> {
    let value = value.slice(row, 1);
    let value = if value.data_type() == items.data_type() { value } else { cast(&value, items.data_type())? };
    let converter = RowConverter::new(vec![SortField::new(items.data_type().clone())])?;
    let rows = converter.convert_columns(std::slice::from_ref(items))?;
    let wanted = converter.convert_columns(&[value])?;
    let wanted = wanted.row(0);
    Ok(rows.iter().map(|row| row == wanted).collect())
}

fn position(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    call.values::<Int32Type>(1, |row| {
        let from = if call.has(2) { usize::try_from(call.int(2).value(row) - 1).unwrap_or(0) } else { 0 };
        let hits = equal_items(&list.value(row), &call.arrays[1], row)?;
        hits.iter().enumerate().skip(from).find(|(_, hit)| **hit).map(|(at, _)| count(at + 1)).transpose()
    })
}

fn positions(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    let DataType::List(item) = call.returns.data_type() else {
        return Err(Error::internal("array_positions returns no array"));
    };
    let mut builder = arrow::array::ListBuilder::new(arrow::array::Int32Builder::new()).with_field(Arc::clone(item));
    for row in 0..call.rows {
        if list.is_null(row) {
            builder.append_null();
            continue;
        }
        for (at, hit) in equal_items(&list.value(row), &call.arrays[1], row)?.into_iter().enumerate() {
            if hit {
                builder.values().append_value(count(at + 1)?);
            }
        }
        builder.append(true);
    }
    Ok(Arc::new(builder.finish()))
}

/// A list array from one list per row.
fn lists(item: &DataType, field: &DataType, rows: Vec<Option<ArrayRef>>) -> Result<ArrayRef> {
    let DataType::List(item_field) = field else { return Err(Error::internal("a list is expected")) };
    let nulls = NullBuffer::from(rows.iter().map(Option::is_some).collect::<Vec<_>>());
    let lengths: Vec<usize> = rows.iter().map(|row| row.as_ref().map_or(0, Array::len)).collect();
    let parts: Vec<&dyn Array> = rows.iter().flatten().map(AsRef::as_ref).collect();
    let values = if parts.is_empty() { new_empty_array(item) } else { arrow::compute::concat(&parts)? };
    Ok(Arc::new(ListArray::try_new(Arc::clone(item_field), OffsetBuffer::from_lengths(lengths), values, Some(nulls))?))
}

fn remove(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    let mut rows = Vec::with_capacity(call.rows);
    for row in 0..call.rows {
        rows.push(if list.is_null(row) {
            None
        } else {
            let items = list.value(row);
            let keep: BooleanArray =
                equal_items(&items, &call.arrays[1], row)?.into_iter().map(|hit| Some(!hit)).collect();
            Some(arrow::compute::filter(&items, &keep)?)
        });
    }
    lists(&item_type(list), call.returns.data_type(), rows)
}

fn replace(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    let item = item_type(list);
    let mut rows = Vec::with_capacity(call.rows);
    for row in 0..call.rows {
        rows.push(if list.is_null(row) {
            None
        } else {
            let items = list.value(row);
            let hits = equal_items(&items, &call.arrays[1], row)?;
            let new = cast(&call.arrays[2].slice(row, 1), &item)?;
            let both = arrow::compute::concat(&[items.as_ref(), new.as_ref()])?;
            let last = u32::try_from(items.len()).map_err(|_| Error::internal("an array is too long"))?;
            let picks: UInt32Array =
                hits.into_iter().zip(0u32..).map(|(hit, at)| if hit { last } else { at }).collect();
            Some(take(&both, &picks, None)?)
        });
    }
    lists(&item, call.returns.data_type(), rows)
}

/// `array_fill(value, ARRAY[n])`: one dimension.
fn fill(call: &Call<'_>) -> Result<ArrayRef> {
    let sizes = call.list(1);
    let mut rows = Vec::with_capacity(call.rows);
    for row in 0..call.rows {
        if sizes.is_null(row) {
            return Err(Error::invalid("the dimensions of array_fill cannot be null"));
        }
        let dimensions = cast(&sizes.value(row), &DataType::Int64)?;
        let dimensions = dimensions
            .as_any()
            .downcast_ref::<arrow::array::Int64Array>()
            .map(|array| array.values().to_vec())
            .unwrap_or_default();
        let [length] = dimensions.as_slice() else {
            return Err(Error::unsupported("array_fill with other than one dimension"));
        };
        let length = usize::try_from(*length).map_err(|_| Error::invalid("the dimension of array_fill is negative"))?;
        if length > 1 << 27 {
            return Err(Error::state(base::SqlState::PROGRAM_LIMIT, "the array is too large"));
        }
        let pick = UInt32Array::from(vec![u32::try_from(row).unwrap_or(0); length]);
        rows.push(Some(take(&call.arrays[0], &pick, None)?));
    }
    lists(call.arrays[0].data_type(), call.returns.data_type(), rows)
}

fn trim(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    let mut rows = Vec::with_capacity(call.rows);
    for row in 0..call.rows {
        rows.push(if list.is_null(row) || call.int(1).is_null(row) {
            None
        } else {
            let items = list.value(row);
            let drop = usize::try_from(call.int(1).value(row)).ok().filter(|drop| *drop <= items.len());
            let drop = drop.ok_or_else(|| {
                Error::invalid("the number of elements to trim must be between 0 and the length of the array")
            })?;
            Some(items.slice(0, items.len() - drop))
        });
    }
    lists(&item_type(list), call.returns.data_type(), rows)
}

fn to_string(call: &Call<'_>) -> Result<ArrayRef> {
    fn parts(items: &ArrayRef, field: &Field, null: Option<&str>, out: &mut Vec<String>) -> Result<()> {
        if let (Some(inner), DataType::List(item)) = (items.as_any().downcast_ref::<ListArray>(), items.data_type()) {
            for row in 0..inner.len() {
                parts(&inner.value(row), item, null, out)?;
            }
            return Ok(());
        }
        for row in 0..items.len() {
            match value_text(items, field, row)? {
                Some(text) => out.push(text),
                None => out.extend(null.map(str::to_owned)),
            }
        }
        Ok(())
    }
    let list = call.list(0);
    let DataType::List(item) = list.data_type() else { return Err(Error::internal("a list is expected")) };
    call.texts(2, |row| {
        let null = (call.has(2) && call.text(2).is_valid(row)).then(|| call.text(2).value(row));
        let mut texts = Vec::new();
        parts(&list.value(row), item, null, &mut texts)?;
        Ok(Some(texts.join(call.text(1).value(row))))
    })
}

fn from_string(call: &Call<'_>) -> Result<ArrayRef> {
    call.text_lists(1, |row| {
        let text = call.text(0).value(row);
        let null = (call.has(2) && call.text(2).is_valid(row)).then(|| call.text(2).value(row));
        let item = |part: &str| if Some(part) == null { None } else { Some(part.to_owned()) };
        if text.is_empty() {
            return Ok(Some(Vec::new()));
        }
        // Without a delimiter every character is an item; an empty one does not split.
        if call.text(1).is_null(row) {
            return Ok(Some(text.chars().map(|ch| item(ch.encode_utf8(&mut [0; 4]))).collect()));
        }
        let delimiter = call.text(1).value(row);
        if delimiter.is_empty() {
            return Ok(Some(vec![item(text)]));
        }
        Ok(Some(text.split(delimiter).map(item).collect()))
    })
}

/// Whether two lists have an item in common; nulls have none.
fn common(left: &ArrayRef, right: &ArrayRef) -> Result<bool> {
    let right = if left.data_type() == right.data_type() { Arc::clone(right) } else { cast(right, left.data_type())? };
    let converter = RowConverter::new(vec![SortField::new(left.data_type().clone())])?;
    let left_rows = converter.convert_columns(std::slice::from_ref(left))?;
    let right_rows = converter.convert_columns(std::slice::from_ref(&right))?;
    let known: std::collections::BTreeSet<_> =
        left_rows.iter().enumerate().filter(|(at, _)| left.is_valid(*at)).map(|(_, row)| row).collect();
    Ok(right_rows.iter().enumerate().any(|(at, row)| right.is_valid(at) && known.contains(&row)))
}

fn overlap(call: &Call<'_>) -> Result<ArrayRef> {
    call.booleans(2, |row| common(&call.list(0).value(row), &call.list(1).value(row)).map(Some))
}

/// The right side as a literal `{a,b}`.
fn overlap_text(call: &Call<'_>) -> Result<ArrayRef> {
    call.booleans(2, |row| {
        let items = input::texts(input::array_items(call.text(1).value(row))?);
        common(&call.list(0).value(row), &items).map(Some)
    })
}

fn or_empty(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.list(0);
    if list.null_count() == 0 {
        return Ok(Arc::clone(&call.arrays[0]));
    }
    let rows = (0..call.rows)
        .map(|row| Some(if list.is_null(row) { new_empty_array(&item_type(list)) } else { list.value(row) }))
        .collect();
    lists(&item_type(list), call.returns.data_type(), rows)
}
