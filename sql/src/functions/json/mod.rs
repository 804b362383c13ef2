//! PostgreSQL's JSON functions and operators over JSON text.
//!
//! `json` is kept as written; `jsonb` is kept in canonical form, and functions that make `jsonb` make it canonical again.

pub(crate) mod text;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type};
use base::SqlState;
use datafusion::logical_expr::ReturnFieldArgs;

use super::call::{Call, Definition, Param, Returns, on, pure, variadic};
use super::{format, input};
use crate::error::{Error, Result};
use crate::types::{EXTENSION, TypeSpec};
use text::{Kind, Value};

/// `json -> key`, `json -> index`.
pub(crate) static GET: Definition = pure(
    &["json_get"],
    &[
        on(&[Param::Json, Param::Text], Returns::Compute(same_json), get),
        on(&[Param::Json, Param::Int], Returns::Compute(same_json), get_at),
    ],
);
/// `json ->> key`, `json ->> index`.
pub(crate) static GET_TEXT: Definition = pure(
    &["json_get_text"],
    &[
        on(&[Param::Json, Param::Text], Returns::Text, get_text),
        on(&[Param::Json, Param::Int], Returns::Text, get_text_at),
    ],
);
/// `json #> path`.
pub(crate) static PATH: Definition = pure(
    &["json_get_path"],
    &[
        on(&[Param::Json, Param::TextList], Returns::Compute(same_json), path),
        on(&[Param::Json, Param::Text], Returns::Compute(same_json), path),
    ],
);
/// `json #>> path`.
pub(crate) static PATH_TEXT: Definition = pure(
    &["json_get_path_text"],
    &[
        on(&[Param::Json, Param::TextList], Returns::Text, path_text),
        on(&[Param::Json, Param::Text], Returns::Text, path_text),
    ],
);
/// `jsonb @> jsonb`.
pub(crate) static CONTAINS: Definition =
    pure(&["jsonb_contains"], &[on(&[Param::Json, Param::Json], Returns::Bool, contains)]);
/// `jsonb ? key`.
pub(crate) static EXISTS: Definition =
    pure(&["jsonb_exists"], &[on(&[Param::Json, Param::Text], Returns::Bool, exists)]);
/// `jsonb ?| keys`.
pub(crate) static EXISTS_ANY: Definition = pure(
    &["jsonb_exists_any"],
    &[
        on(&[Param::Json, Param::TextList], Returns::Bool, exists_any),
        on(&[Param::Json, Param::Text], Returns::Bool, exists_any),
    ],
);
/// `jsonb ?& keys`.
pub(crate) static EXISTS_ALL: Definition = pure(
    &["jsonb_exists_all"],
    &[
        on(&[Param::Json, Param::TextList], Returns::Bool, exists_all),
        on(&[Param::Json, Param::Text], Returns::Bool, exists_all),
    ],
);
/// `jsonb || jsonb`.
pub(crate) static CONCAT: Definition =
    pure(&["jsonb_concat"], &[on(&[Param::Json, Param::Json], Returns::Jsonb, concat)]);
/// `jsonb - key`, `jsonb - index`, `jsonb - keys`.
pub(crate) static DELETE: Definition = pure(
    &["jsonb_delete"],
    &[
        on(&[Param::Json, Param::Text], Returns::Jsonb, delete),
        on(&[Param::Json, Param::Int], Returns::Jsonb, delete_at),
        on(&[Param::Json, Param::TextList], Returns::Jsonb, delete),
    ],
);
/// `jsonb #- path`.
pub(crate) static DELETE_PATH: Definition = pure(
    &["jsonb_delete_path"],
    &[
        on(&[Param::Json, Param::TextList], Returns::Jsonb, delete_path),
        on(&[Param::Json, Param::Text], Returns::Jsonb, delete_path),
    ],
);

static TYPEOF: Definition = pure(&["json_typeof", "jsonb_typeof"], &[on(&[Param::Json], Returns::Text, type_of)]);
static ARRAY_LENGTH: Definition =
    pure(&["json_array_length", "jsonb_array_length"], &[on(&[Param::Json], Returns::Int4, array_length)]);
static OBJECT_KEYS: Definition =
    pure(&["json_object_keys", "jsonb_object_keys"], &[on(&[Param::Json], Returns::TextList, object_keys)]);
static ELEMENTS: Definition =
    pure(&["json_array_elements", "jsonb_array_elements"], &[on(&[Param::Json], Returns::JsonList, array_elements)]);
static ELEMENTS_TEXT: Definition = pure(
    &["json_array_elements_text", "jsonb_array_elements_text"],
    &[on(&[Param::Json], Returns::TextList, array_elements_text)],
);
static EXTRACT_PATH: Definition = pure(
    &["json_extract_path", "jsonb_extract_path"],
    &[variadic(&[Param::Json], Param::Text, Returns::Compute(same_json), extract_path)],
);
static EXTRACT_PATH_TEXT: Definition = pure(
    &["json_extract_path_text", "jsonb_extract_path_text"],
    &[variadic(&[Param::Json], Param::Text, Returns::Text, extract_path_text)],
);
static BUILD_OBJECT: Definition =
    pure(&["json_build_object"], &[variadic(&[], Param::Any, Returns::Json, build_object)]);
static BUILD_OBJECT_B: Definition =
    pure(&["jsonb_build_object"], &[variadic(&[], Param::Any, Returns::Jsonb, build_object_b)]);
static BUILD_ARRAY: Definition = pure(&["json_build_array"], &[variadic(&[], Param::Any, Returns::Json, build_array)]);
static BUILD_ARRAY_B: Definition =
    pure(&["jsonb_build_array"], &[variadic(&[], Param::Any, Returns::Jsonb, build_array_b)]);
static OBJECT: Definition = pure(
    &["json_object"],
    &[
        on(&[Param::TextList], Returns::Json, object),
        on(&[Param::Text], Returns::Json, object),
        on(&[Param::TextList, Param::TextList], Returns::Json, object),
        on(&[Param::Text, Param::Text], Returns::Json, object),
    ],
);
static OBJECT_B: Definition = pure(
    &["jsonb_object"],
    &[
        on(&[Param::TextList], Returns::Jsonb, object_b),
        on(&[Param::Text], Returns::Jsonb, object_b),
        on(&[Param::TextList, Param::TextList], Returns::Jsonb, object_b),
        on(&[Param::Text, Param::Text], Returns::Jsonb, object_b),
    ],
);
static TO_JSON: Definition = pure(
    &["to_json", "row_to_json", "array_to_json"],
    &[on(&[Param::Any], Returns::Json, to_json), on(&[Param::Any, Param::Bool], Returns::Json, to_json)],
);
static TO_JSONB: Definition = pure(&["to_jsonb"], &[on(&[Param::Any], Returns::Jsonb, to_jsonb)]);
static STRIP_NULLS: Definition = pure(&["json_strip_nulls"], &[on(&[Param::Json], Returns::Json, strip_nulls)]);
static STRIP_NULLS_B: Definition = pure(&["jsonb_strip_nulls"], &[on(&[Param::Json], Returns::Jsonb, strip_nulls)]);
static PRETTY: Definition = pure(&["jsonb_pretty"], &[on(&[Param::Json], Returns::Text, pretty)]);
static SET: Definition = pure(
    &["jsonb_set"],
    &[
        on(&[Param::Json, Param::TextList, Param::Json], Returns::Jsonb, set),
        on(&[Param::Json, Param::Text, Param::Json], Returns::Jsonb, set),
        on(&[Param::Json, Param::TextList, Param::Json, Param::Bool], Returns::Jsonb, set),
        on(&[Param::Json, Param::Text, Param::Json, Param::Bool], Returns::Jsonb, set),
    ],
);
static INSERT: Definition = pure(
    &["jsonb_insert"],
    &[
        on(&[Param::Json, Param::TextList, Param::Json], Returns::Jsonb, insert),
        on(&[Param::Json, Param::Text, Param::Json], Returns::Jsonb, insert),
        on(&[Param::Json, Param::TextList, Param::Json, Param::Bool], Returns::Jsonb, insert),
        on(&[Param::Json, Param::Text, Param::Json, Param::Bool], Returns::Jsonb, insert),
    ],
);

/// Every function of this module.
pub(crate) static ALL: [&Definition; 32] = [
    &GET,
    &GET_TEXT,
    &PATH,
    &PATH_TEXT,
    &CONTAINS,
    &EXISTS,
    &EXISTS_ANY,
    &EXISTS_ALL,
    &CONCAT,
    &DELETE,
    &DELETE_PATH,
    &TYPEOF,
    &ARRAY_LENGTH,
    &OBJECT_KEYS,
    &ELEMENTS,
    &ELEMENTS_TEXT,
    &EXTRACT_PATH,
    &EXTRACT_PATH_TEXT,
    &BUILD_OBJECT,
    &BUILD_OBJECT_B,
    &BUILD_ARRAY,
    &BUILD_ARRAY_B,
    &OBJECT,
    &OBJECT_B,
    &TO_JSON,
    &TO_JSONB,
    &STRIP_NULLS,
    &STRIP_NULLS_B,
    &PRETTY,
    &SET,
    &INSERT,
    &VALID,
];

static VALID: Definition = pure(&["json_valid"], &[on(&[Param::Text], Returns::Bool, valid)]);

/// `json` from `json`, `jsonb` from `jsonb`: a part of a canonical text is canonical.
fn same_json(arguments: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
    let spec = match TypeSpec::from_field(&arguments.arg_fields[0])? {
        TypeSpec::Jsonb => TypeSpec::Jsonb,
        _ => TypeSpec::Json,
    };
    Ok(spec.field_ref("json"))
}

fn get(call: &Call<'_>) -> Result<ArrayRef> {
    let (values, keys) = (call.text(0), call.text(1));
    call.texts(2, |row| Ok(text::member(values.value(row), keys.value(row))?.map(str::to_owned)))
}

fn get_at(call: &Call<'_>) -> Result<ArrayRef> {
    let (values, places) = (call.text(0), call.int(1));
    call.texts(2, |row| Ok(text::element(values.value(row), places.value(row))?.map(str::to_owned)))
}

fn get_text(call: &Call<'_>) -> Result<ArrayRef> {
    let (values, keys) = (call.text(0), call.text(1));
    call.texts(2, |row| text::member(values.value(row), keys.value(row))?.map_or(Ok(None), text::as_text))
}

fn get_text_at(call: &Call<'_>) -> Result<ArrayRef> {
    let (values, places) = (call.text(0), call.int(1));
    call.texts(2, |row| text::element(values.value(row), places.value(row))?.map_or(Ok(None), text::as_text))
}

/// The texts of a list argument, or of a literal `{a,b}`, at one row; `None` if one of them is null.
fn steps(call: &Call<'_>, at: usize, row: usize) -> Result<Option<Vec<String>>> {
    let items = list_items(&call.arrays[at], row)?;
    Ok(items.into_iter().collect())
}

fn list_items(array: &ArrayRef, row: usize) -> Result<Vec<Option<String>>> {
    if let Some(list) = array.as_list_opt::<i32>() {
        let items = list.value(row);
        let items = items.as_string::<i32>();
        return Ok(items.iter().map(|item| item.map(str::to_owned)).collect());
    }
    input::array_items(array.as_string::<i32>().value(row))
}

/// Follows a path of names and places.
fn follow<'a>(mut value: &'a str, steps: &[String]) -> Result<Option<&'a str>> {
    for step in steps {
        let next = match text::kind(value)? {
            Kind::Object => text::member(value, step)?,
            Kind::Array => match step.trim().parse() {
                Ok(at) => text::element(value, at)?,
                Err(_) => None,
            },
            _ => None,
        };
        match next {
            Some(next) => value = next,
            None => return Ok(None),
        }
    }
    Ok(Some(value))
}

fn path(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(2, |row| {
        let Some(steps) = steps(call, 1, row)? else { return Ok(None) };
        Ok(follow(call.text(0).value(row), &steps)?.map(|found| found.trim().to_owned()))
    })
}

fn path_text(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(2, |row| {
        let Some(steps) = steps(call, 1, row)? else { return Ok(None) };
        follow(call.text(0).value(row), &steps)?.map_or(Ok(None), text::as_text)
    })
}

fn extract<'a>(call: &'a Call<'_>, row: usize) -> Result<Option<&'a str>> {
    let steps: Vec<String> = (1..call.arrays.len()).map(|at| call.text(at).value(row).to_owned()).collect();
    follow(call.text(0).value(row), &steps)
}

fn extract_path(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(call.arrays.len(), |row| Ok(extract(call, row)?.map(str::to_owned)))
}

fn extract_path_text(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(call.arrays.len(), |row| extract(call, row)?.map_or(Ok(None), text::as_text))
}

fn contains(call: &Call<'_>) -> Result<ArrayRef> {
    call.booleans(2, |row| {
        let whole = text::normal(text::parse(call.text(0).value(row))?);
        let part = text::normal(text::parse(call.text(1).value(row))?);
        Ok(Some(text::contains(&whole, &part)))
    })
}

/// Whether a text is a name of an object, or a string element of an array, or the string itself.
fn has(value: &Value<'_>, key: &str) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(name, _)| name == key),
        Value::Array(items) => items.iter().any(|item| matches!(item, Value::String(text) if text == key)),
        Value::String(text) => text == key,
        _ => false,
    }
}

fn exists(call: &Call<'_>) -> Result<ArrayRef> {
    call.booleans(2, |row| Ok(Some(has(&text::parse(call.text(0).value(row))?, call.text(1).value(row)))))
}

fn exists_any(call: &Call<'_>) -> Result<ArrayRef> {
    call.booleans(2, |row| {
        let value = text::parse(call.text(0).value(row))?;
        Ok(Some(list_items(&call.arrays[1], row)?.iter().flatten().any(|key| has(&value, key))))
    })
}

fn exists_all(call: &Call<'_>) -> Result<ArrayRef> {
    call.booleans(2, |row| {
        let value = text::parse(call.text(0).value(row))?;
        Ok(Some(list_items(&call.arrays[1], row)?.iter().flatten().all(|key| has(&value, key))))
    })
}

fn written(value: Value<'_>) -> String {
    let mut out = String::new();
    text::write_canonical(&mut out, &text::normal(value));
    out
}

fn concat(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(2, |row| {
        let left = text::parse(call.text(0).value(row))?;
        let right = text::parse(call.text(1).value(row))?;
        let joined = match (left, right) {
            (Value::Object(mut left), Value::Object(right)) => {
                left.extend(right);
                Value::Object(left)
            }
            (left, right) => {
                let list = |value| match value {
                    Value::Array(items) => items,
                    other => vec![other],
                };
                let mut items = list(left);
                items.extend(list(right));
                Value::Array(items)
            }
        };
        Ok(Some(written(joined)))
    })
}

fn not_on_scalar(what: &str) -> Error {
    Error::invalid(format!("cannot {what} a JSON value that is neither an object nor an array"))
}

fn delete(call: &Call<'_>) -> Result<ArrayRef> {
    let list = call.arrays[1].as_list_opt::<i32>().is_some();
    call.texts(2, |row| {
        let keys: Vec<String> = if list {
            list_items(&call.arrays[1], row)?.into_iter().flatten().collect()
        } else {
            vec![call.text(1).value(row).to_owned()]
        };
        let kept = match text::parse(call.text(0).value(row))? {
            Value::Object(members) => {
                Value::Object(members.into_iter().filter(|(name, _)| !keys.iter().any(|key| key == name)).collect())
            }
            Value::Array(items) => Value::Array(
                items
                    .into_iter()
                    .filter(|item| !matches!(item, Value::String(text) if keys.iter().any(|key| key == text)))
                    .collect(),
            ),
            _ => return Err(not_on_scalar("delete from")),
        };
        Ok(Some(written(kept)))
    })
}

fn delete_at(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(2, |row| match text::parse(call.text(0).value(row))? {
        Value::Array(mut items) => {
            if let Some(at) = place(items.len(), call.int(1).value(row)) {
                items.remove(at);
            }
            Ok(Some(written(Value::Array(items))))
        }
        Value::Object(_) => Err(Error::invalid("cannot delete from a JSON object by place")),
        _ => Err(not_on_scalar("delete from")),
    })
}

/// A place in a list of this length; negative counts from the end.
fn place(length: usize, at: i64) -> Option<usize> {
    let length_signed = i64::try_from(length).ok()?;
    let at = if at < 0 { length_signed.checked_add(at)? } else { at };
    usize::try_from(at).ok().filter(|at| *at < length)
}

fn delete_path(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(2, |row| {
        let Some(steps) = steps(call, 1, row)? else { return Ok(None) };
        let mut value = text::parse(call.text(0).value(row))?;
        remove(&mut value, &steps);
        Ok(Some(written(value)))
    })
}

fn remove(value: &mut Value<'_>, steps: &[String]) {
    let Some((first, rest)) = steps.split_first() else { return };
    match value {
        Value::Object(members) => {
            if rest.is_empty() {
                members.retain(|(name, _)| name != first);
            } else if let Some((_, inner)) = members.iter_mut().rev().find(|(name, _)| name == first) {
                remove(inner, rest);
            }
        }
        Value::Array(items) => {
            if let Some(at) = first.trim().parse().ok().and_then(|at| place(items.len(), at)) {
                if rest.is_empty() {
                    items.remove(at);
                } else {
                    remove(&mut items[at], rest);
                }
            }
        }
        _ => {}
    }
}

fn set(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(call.arrays.len(), |row| {
        let Some(steps) = steps(call, 1, row)? else { return Ok(None) };
        let create = !call.has(3) || call.bool(3).value(row);
        let mut value = text::parse(call.text(0).value(row))?;
        if !matches!(value, Value::Object(_) | Value::Array(_)) {
            return Err(not_on_scalar("set a path in"));
        }
        let new = text::parse(call.text(2).value(row))?;
        put(&mut value, &steps, &new, create);
        Ok(Some(written(value)))
    })
}

fn put<'a>(value: &mut Value<'a>, steps: &[String], new: &Value<'a>, create: bool) {
    let Some((first, rest)) = steps.split_first() else { return };
    match value {
        Value::Object(members) => match members.iter_mut().rev().find(|(name, _)| name == first) {
            Some((_, inner)) if rest.is_empty() => *inner = new.clone(),
            Some((_, inner)) => put(inner, rest, new, create),
            None if rest.is_empty() && create => members.push((first.clone().into(), new.clone())),
            None => {}
        },
        Value::Array(items) => {
            let Ok(at) = first.trim().parse::<i64>() else { return };
            match place(items.len(), at) {
                Some(at) if rest.is_empty() => items[at] = new.clone(),
                Some(at) => put(&mut items[at], rest, new, create),
                None if rest.is_empty() && create => {
                    if at < 0 {
                        items.insert(0, new.clone());
                    } else {
                        items.push(new.clone());
                    }
                }
                None => {}
            }
        }
        _ => {}
    }
}

fn insert(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(call.arrays.len(), |row| {
        let Some(steps) = steps(call, 1, row)? else { return Ok(None) };
        let after = call.has(3) && call.bool(3).value(row);
        let mut value = text::parse(call.text(0).value(row))?;
        let new = text::parse(call.text(2).value(row))?;
        insert_at(&mut value, &steps, &new, after)?;
        Ok(Some(written(value)))
    })
}

fn insert_at<'a>(value: &mut Value<'a>, steps: &[String], new: &Value<'a>, after: bool) -> Result<()> {
    let Some((first, rest)) = steps.split_first() else { return Ok(()) };
    match value {
        Value::Object(members) => match members.iter_mut().rev().find(|(name, _)| name == first) {
            Some(_) if rest.is_empty() => {
                return Err(
                    Error::invalid("cannot replace an existing key with jsonb_insert").with_hint("use jsonb_set")
                );
            }
            Some((_, inner)) => insert_at(inner, rest, new, after)?,
            None if rest.is_empty() => members.push((first.clone().into(), new.clone())),
            None => {}
        },
        Value::Array(items) => {
            let Ok(at) = first.trim().parse::<i64>() else { return Ok(()) };
            match place(items.len(), at) {
                Some(at) if rest.is_empty() => items.insert(at + usize::from(after), new.clone()),
                Some(at) => insert_at(&mut items[at], rest, new, after)?,
                None if rest.is_empty() && at < 0 => items.insert(0, new.clone()),
                None if rest.is_empty() => items.push(new.clone()),
                None => {}
            }
        }
        _ => {}
    }
    Ok(())
}

fn type_of(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(1, |row| Ok(Some(text::kind(call.text(0).value(row))?.name().to_owned())))
}

fn array_length(call: &Call<'_>) -> Result<ArrayRef> {
    call.values::<Int32Type>(1, |row| {
        let length = text::elements(call.text(0).value(row))?.len();
        i32::try_from(length).map(Some).map_err(|_| Error::internal("a JSON array is too long"))
    })
}

fn object_keys(call: &Call<'_>) -> Result<ArrayRef> {
    call.text_lists(1, |row| {
        Ok(Some(text::members(call.text(0).value(row))?.into_iter().map(|(name, _)| Some(name.into_owned())).collect()))
    })
}

fn array_elements(call: &Call<'_>) -> Result<ArrayRef> {
    call.text_lists(1, |row| {
        Ok(Some(text::elements(call.text(0).value(row))?.into_iter().map(|value| Some(value.to_owned())).collect()))
    })
}

fn array_elements_text(call: &Call<'_>) -> Result<ArrayRef> {
    call.text_lists(1, |row| {
        text::elements(call.text(0).value(row))?.into_iter().map(text::as_text).collect::<Result<_>>().map(Some)
    })
}

/// Appends any value as JSON.
pub(crate) fn write_json(out: &mut String, array: &dyn Array, field: &Field, row: usize) -> Result<()> {
    if array.is_null(row) || array.data_type().is_null() {
        out.push_str("null");
        return Ok(());
    }
    let is_json = field.metadata().get(EXTENSION).is_some_and(|name| name == "arrow.json");
    match array.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View if is_json => {
            format::write_value(out, array, field, row)?
        }
        DataType::Boolean => format::write_value(out, array, field, row)?,
        other if other.is_numeric() => {
            let start = out.len();
            format::write_value(out, array, field, row)?;
            // JSON has no word for these.
            if matches!(&out[start..], "NaN" | "Infinity" | "-Infinity") {
                let word = out.split_off(start);
                text::write_string(out, &word);
            }
        }
        DataType::Timestamp(..) => {
            let mut moment = String::new();
            format::write_value(&mut moment, array, field, row)?;
            let mut moment = moment.replacen(' ', "T", 1);
            if moment.ends_with("+00") {
                moment.push_str(":00");
            }
            text::write_string(out, &moment);
        }
        DataType::List(item) => write_list(out, &array.as_list::<i32>().value(row), item)?,
        DataType::LargeList(item) => write_list(out, &array.as_list::<i64>().value(row), item)?,
        DataType::FixedSizeList(item, _) => write_list(out, &array.as_fixed_size_list().value(row), item)?,
        DataType::Struct(fields) => {
            let parts = array.as_struct();
            out.push('{');
            for (at, field) in fields.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                text::write_string(out, field.name());
                out.push(':');
                write_json(out, parts.column(at), field, row)?;
            }
            out.push('}');
        }
        _ => {
            let mut value = String::new();
            format::write_value(&mut value, array, field, row)?;
            text::write_string(out, &value);
        }
    }
    Ok(())
}

fn write_list(out: &mut String, items: &ArrayRef, field: &Field) -> Result<()> {
    out.push('[');
    for row in 0..items.len() {
        if row > 0 {
            out.push(',');
        }
        write_json(out, items, field, row)?;
    }
    out.push(']');
    Ok(())
}

fn to_json(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(1, |row| {
        let mut out = String::new();
        write_json(&mut out, &call.arrays[0], &call.fields[0], row)?;
        Ok(Some(out))
    })
}

fn to_jsonb(call: &Call<'_>) -> Result<ArrayRef> {
    canonical(&to_json(call)?)
}

/// JSON texts in canonical form.
fn canonical(array: &ArrayRef) -> Result<ArrayRef> {
    let texts = array.as_string::<i32>();
    let values = texts.iter().map(|text| text.map(text::canonical).transpose()).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(StringArray::from(values)))
}

/// `json_build_object(name, value, …)`.
fn build_object(call: &Call<'_>) -> Result<ArrayRef> {
    if !call.arrays.len().is_multiple_of(2) {
        return Err(Error::invalid("json_build_object takes names and values in turn, an even number of arguments"));
    }
    call.texts(0, |row| {
        let mut out = String::from("{");
        for at in (0..call.arrays.len()).step_by(2) {
            if at > 0 {
                out.push_str(", ");
            }
            let Some(name) = format::value_text(&call.arrays[at], &call.fields[at], row)? else {
                return Err(Error::invalid(format!(
                    "argument {} of json_build_object is null, and a name cannot be null",
                    at + 1
                )));
            };
            text::write_string(&mut out, &name);
            out.push_str(" : ");
            write_json(&mut out, &call.arrays[at + 1], &call.fields[at + 1], row)?;
        }
        out.push('}');
        Ok(Some(out))
    })
}

fn build_object_b(call: &Call<'_>) -> Result<ArrayRef> {
    canonical(&build_object(call)?)
}

fn build_array(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(0, |row| {
        let mut out = String::from("[");
        for (at, (array, field)) in call.arrays.iter().zip(call.fields).enumerate() {
            if at > 0 {
                out.push_str(", ");
            }
            write_json(&mut out, array, field, row)?;
        }
        out.push(']');
        Ok(Some(out))
    })
}

fn build_array_b(call: &Call<'_>) -> Result<ArrayRef> {
    canonical(&build_array(call)?)
}

/// `json_object('{name,value,…}')` or `json_object(names, values)`.
fn object(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(call.arrays.len(), |row| {
        let first = list_items(&call.arrays[0], row)?;
        let pairs: Vec<(Option<String>, Option<String>)> = if call.has(1) {
            let second = list_items(&call.arrays[1], row)?;
            if first.len() != second.len() {
                return Err(Error::state(
                    SqlState::INVALID_PARAMETER_VALUE,
                    "json_object was given lists of different lengths",
                ));
            }
            first.into_iter().zip(second).collect()
        } else {
            if !first.len().is_multiple_of(2) {
                return Err(Error::invalid("json_object takes names and values in turn, an even number of them"));
            }
            first.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
        };
        let mut out = String::from("{");
        for (at, (name, value)) in pairs.into_iter().enumerate() {
            if at > 0 {
                out.push_str(", ");
            }
            let Some(name) = name else { return Err(Error::invalid("a name in json_object is null")) };
            text::write_string(&mut out, &name);
            out.push_str(" : ");
            match value {
                Some(value) => text::write_string(&mut out, &value),
                None => out.push_str("null"),
            }
        }
        out.push('}');
        Ok(Some(out))
    })
}

fn object_b(call: &Call<'_>) -> Result<ArrayRef> {
    canonical(&object(call)?)
}

fn strip_nulls(call: &Call<'_>) -> Result<ArrayRef> {
    fn strip(value: Value<'_>) -> Value<'_> {
        match value {
            Value::Object(members) => Value::Object(
                members
                    .into_iter()
                    .filter(|(_, value)| !matches!(value, Value::Null))
                    .map(|(name, value)| (name, strip(value)))
                    .collect(),
            ),
            Value::Array(items) => Value::Array(items.into_iter().map(strip).collect()),
            other => other,
        }
    }
    call.texts(1, |row| {
        let mut out = String::new();
        text::write_canonical(&mut out, &strip(text::parse(call.text(0).value(row))?));
        Ok(Some(out))
    })
}

fn pretty(call: &Call<'_>) -> Result<ArrayRef> {
    call.texts(1, |row| {
        let mut out = String::new();
        text::write_pretty(&mut out, &text::normal(text::parse(call.text(0).value(row))?), 0);
        Ok(Some(out))
    })
}

fn valid(call: &Call<'_>) -> Result<ArrayRef> {
    call.booleans(1, |row| Ok(Some(text::check(call.text(0).value(row)).is_ok())))
}

/// `to_json`, for aggregates that are built on it.
pub(crate) fn to_json_definition() -> &'static Definition {
    &TO_JSON
}
