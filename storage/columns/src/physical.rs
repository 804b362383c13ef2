//! The forms in which columns lie in data files.
//!
//! A file stores column `n` as field `c{n}`: most types as they are, decimals of up to 18 digits as Int64 (a third of the
//! size and twice the speed), intervals as 16 bytes. A string column with few distinct values lies in field `c{n}d8` or
//! `c{n}d16` instead, as a dictionary. Readers look at the file's own schema to learn which form it has; everybody else
//! sees logical types only. All fields are nullable, so that a file may lack any of them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, Int32Array, Int64Array,
    IntervalMonthDayNanoArray, ListArray, StringArray, UInt8Array, UInt16Array, new_null_array,
};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, IntervalMonthDayNanoType, IntervalUnit};
use base::ColumnId;

use crate::{Error, Result, dictionary_type};

/// Bytes of a stored interval: months, days (both i32) and nanoseconds (i64), little-endian.
const INTERVAL_BYTES: i32 = 16;
/// Fewer rows are not worth a dictionary.
const SAMPLE_ROWS_LEAST: usize = 1024;
/// Up to so many distinct values in the sample, 8-bit codes are tried; some room is left for those that come later.
const NARROW_VALUES: usize = 200;
/// Up to so many, 16-bit codes.
const WIDE_VALUES: usize = 16 * 1024;
/// The most digits whose unscaled value fits 64 bits.
const NARROW_DIGITS: u8 = 18;

/// The form in which a column lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Form {
    /// [`stored_type`].
    Plain,
    /// Strings behind 8-bit codes.
    Dictionary8,
    /// Strings behind 16-bit codes.
    Dictionary16,
}

impl Form {
    pub(crate) const ALL: [Form; 3] = [Form::Plain, Form::Dictionary8, Form::Dictionary16];

    /// The field that holds a column in this form. Forms have fields of their own because a dataset gives a field one
    /// type for ever, while each file chooses anew.
    pub(crate) fn field(self, id: ColumnId) -> String {
        match self {
            Form::Plain => format!("c{id}"),
            Form::Dictionary8 => format!("c{id}d8"),
            Form::Dictionary16 => format!("c{id}d16"),
        }
    }

    pub(crate) fn stored_type(self, logical: &DataType) -> DataType {
        let coded = |codes: DataType| DataType::Dictionary(Box::new(codes), Box::new(DataType::Utf8));
        match self {
            Form::Plain => stored_type(logical),
            Form::Dictionary8 => coded(DataType::UInt8),
            Form::Dictionary16 => coded(DataType::UInt16),
        }
    }
}

/// The column that a field belongs to; `None` for system fields.
pub(crate) fn column_of(name: &str) -> Option<ColumnId> {
    let rest = name.strip_prefix('c')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
    digits.parse().ok().map(ColumnId)
}

/// The plain stored type of a logical type.
pub(crate) fn stored_type(logical: &DataType) -> DataType {
    match logical {
        DataType::Decimal128(precision, _) if *precision <= NARROW_DIGITS => DataType::Int64,
        DataType::Interval(IntervalUnit::MonthDayNano) => DataType::FixedSizeBinary(INTERVAL_BYTES),
        DataType::List(item) if matches!(item.data_type(), DataType::Interval(_)) => {
            DataType::List(Arc::new(Field::new(item.name(), stored_type(item.data_type()), item.is_nullable())))
        }
        other => other.clone(),
    }
}

/// Brings an array of a logical type into its plain stored form.
pub(crate) fn to_stored(values: &ArrayRef) -> Result<ArrayRef> {
    match values.data_type() {
        DataType::Decimal128(precision, _) if *precision <= NARROW_DIGITS => {
            let wide = values.as_primitive::<arrow::datatypes::Decimal128Type>();
            let narrow: ScalarBuffer<i64> = wide.values().iter().map(|value| *value as i64).collect();
            // The place of a NULL may hold anything.
            let fits = (0..wide.len()).all(|row| wide.is_null(row) || i128::from(narrow[row]) == wide.value(row));
            if !fits {
                return Err(Error::InvalidInput(format!("a value does not fit {}", values.data_type())));
            }
            Ok(Arc::new(Int64Array::new(narrow, wide.nulls().cloned())))
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let intervals = values.as_primitive::<IntervalMonthDayNanoType>();
            let mut bytes = Vec::with_capacity(intervals.len() * INTERVAL_BYTES as usize);
            for value in intervals.values() {
                bytes.extend_from_slice(&value.months.to_le_bytes());
                bytes.extend_from_slice(&value.days.to_le_bytes());
                bytes.extend_from_slice(&value.nanoseconds.to_le_bytes());
            }
            Ok(Arc::new(FixedSizeBinaryArray::try_new(
                INTERVAL_BYTES,
                Buffer::from_vec(bytes),
                intervals.nulls().cloned(),
            )?))
        }
        DataType::List(item) if matches!(item.data_type(), DataType::Interval(_)) => {
            let lists = values.as_list::<i32>();
            let items = to_stored(lists.values())?;
            let field = Arc::new(Field::new(item.name(), items.data_type().clone(), item.is_nullable()));
            Ok(Arc::new(ListArray::try_new(field, lists.offsets().clone(), items, lists.nulls().cloned())?))
        }
        _ => Ok(values.clone()),
    }
}

/// Brings a stored array, of any form, into a logical type; `dictionary` asks for the dictionary form of strings.
pub(crate) fn to_logical(values: &ArrayRef, logical: &DataType, dictionary: bool) -> Result<ArrayRef> {
    if dictionary {
        return to_dictionary(values);
    }
    if values.data_type() == logical {
        return Ok(values.clone());
    }
    match (values.data_type(), logical) {
        (DataType::Int64, DataType::Decimal128(precision, scale)) => {
            let narrow = values.as_primitive::<Int64Type>();
            let wide: ScalarBuffer<i128> = narrow.values().iter().map(|value| i128::from(*value)).collect();
            Ok(Arc::new(
                Decimal128Array::new(wide, narrow.nulls().cloned()).with_precision_and_scale(*precision, *scale)?,
            ))
        }
        (DataType::FixedSizeBinary(INTERVAL_BYTES), DataType::Interval(IntervalUnit::MonthDayNano)) => {
            let stored = values.as_fixed_size_binary();
            let intervals = (0..stored.len()).map(|row| stored.is_valid(row).then(|| interval(stored.value(row))));
            Ok(Arc::new(intervals.collect::<IntervalMonthDayNanoArray>()))
        }
        (DataType::List(_), DataType::List(item)) if matches!(item.data_type(), DataType::Interval(_)) => {
            let lists = values.as_list::<i32>();
            let items = to_logical(lists.values(), item.data_type(), false)?;
            Ok(Arc::new(ListArray::try_new(item.clone(), lists.offsets().clone(), items, lists.nulls().cloned())?))
        }
        // Dictionary to Utf8; also evens out what Lance changes in nested field properties.
        (_, _) => Ok(cast(values, logical)?),
    }
}

fn to_dictionary(values: &ArrayRef) -> Result<ArrayRef> {
    let wide = cast(values, &dictionary_type())?;
    let coded = wide.as_dictionary::<Int32Type>();
    if coded.values().null_count() == 0 {
        return Ok(wide);
    }
    // Lance gives NULL a code of its own; readers of dictionaries expect it among the codes.
    let codes: Int32Array =
        coded.keys().iter().map(|code| code.filter(|&code| coded.values().is_valid(code as usize))).collect();
    Ok(Arc::new(DictionaryArray::try_new(codes, coded.values().clone())?))
}

fn interval(bytes: &[u8]) -> arrow::datatypes::IntervalMonthDayNano {
    let part = |range: std::ops::Range<usize>| bytes.get(range).unwrap_or_default();
    let small = |bytes: &[u8]| bytes.try_into().map_or(0, i32::from_le_bytes);
    let large = |bytes: &[u8]| bytes.try_into().map_or(0, i64::from_le_bytes);
    arrow::datatypes::IntervalMonthDayNano::new(small(part(0..4)), small(part(4..8)), large(part(8..16)))
}

/// `rows` times the one value of `value`, or NULL.
pub(crate) fn repeat(value: Option<&ArrayRef>, logical: &DataType, rows: usize) -> Result<ArrayRef> {
    match value {
        Some(value) if value.len() == 1 && value.data_type() == logical => {
            Ok(arrow::compute::take(value, &arrow::array::UInt32Array::from(vec![0; rows]), None)?)
        }
        Some(value) => Err(Error::InvalidInput(format!(
            "a default for older rows has {} rows of {} where one of {logical} is needed",
            value.len(),
            value.data_type()
        ))),
        None => Ok(new_null_array(logical, rows)),
    }
}

/// Gives the strings of one column of one file their codes.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    codes: HashMap<Box<str>, u16>,
    texts: Vec<Box<str>>,
    /// The values so far, shared by all batches that add none: Lance joins batches with one dictionary for nothing.
    values: Option<ArrayRef>,
}

impl Encoder {
    /// Codes a batch; `None` when the form has no code left, and then nothing has changed but that some codes are taken.
    pub(crate) fn encode(&mut self, values: &ArrayRef, form: Form) -> Result<Option<ArrayRef>> {
        let limit = match form {
            Form::Dictionary8 => usize::from(u8::MAX),
            Form::Dictionary16 => usize::from(u16::MAX),
            Form::Plain => return Ok(Some(values.clone())),
        };
        let texts = values.as_string::<i32>();
        let mut codes = Vec::with_capacity(texts.len());
        let mut last: Option<(&str, u16)> = None;
        for row in 0..texts.len() {
            if texts.is_null(row) {
                codes.push(0);
                continue;
            }
            let text = texts.value(row);
            let code = match last {
                Some((before, code)) if before == text => code,
                _ => match self.codes.get(text) {
                    Some(&code) => code,
                    None if self.texts.len() == limit => return Ok(None),
                    None => {
                        let code = self.texts.len() as u16;
                        self.codes.insert(text.into(), code);
                        self.texts.push(text.into());
                        self.values = None;
                        code
                    }
                },
            };
            last = Some((text, code));
            codes.push(code);
        }
        // A dictionary of nothing but NULLs still needs something for its codes to point at.
        let known = || -> ArrayRef {
            Arc::new(if self.texts.is_empty() {
                StringArray::from(vec![""])
            } else {
                StringArray::from_iter_values(&self.texts)
            })
        };
        let dictionary = match &self.values {
            Some(values) => values.clone(),
            None => known(),
        };
        self.values = Some(dictionary.clone());
        let nulls = texts.nulls().cloned();
        Ok(Some(match form {
            Form::Dictionary8 => {
                let codes: ScalarBuffer<u8> = codes.iter().map(|&code| code as u8).collect();
                Arc::new(DictionaryArray::try_new(UInt8Array::new(codes, nulls), dictionary)?)
            }
            _ => Arc::new(DictionaryArray::try_new(UInt16Array::new(codes.into(), nulls), dictionary)?),
        }))
    }
}

/// The form for a column whose first rows are `sample`: the narrowest dictionary of at least `least` bits of code that
/// it is likely to fit, if that pays.
pub(crate) fn choose_form(sample: &[&ArrayRef], least: Form) -> Form {
    let rows: usize = sample.iter().map(|values| values.len()).sum();
    let is_text = sample.iter().all(|values| values.data_type() == &DataType::Utf8);
    if !is_text || rows < SAMPLE_ROWS_LEAST || least == Form::Plain {
        return Form::Plain;
    }
    let mut distinct: std::collections::HashSet<&str> = std::collections::HashSet::new();
    for values in sample {
        let mut last = None;
        for text in values.as_string::<i32>().iter().flatten() {
            if last != Some(text) {
                distinct.insert(text);
                last = Some(text);
            }
            if distinct.len() > (rows / 16).min(WIDE_VALUES) {
                return Form::Plain;
            }
        }
    }
    if distinct.len() <= NARROW_VALUES && least == Form::Dictionary8 { Form::Dictionary8 } else { Form::Dictionary16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: impl Iterator<Item = u32>) -> ArrayRef {
        Arc::new(values.map(|value| Some(value.to_string())).collect::<StringArray>())
    }

    #[test]
    fn forms_follow_the_number_of_values() {
        let few = texts((0..4000).map(|n| n % 200));
        let some = texts((0..4000).map(|n| n % 230));
        let many = texts(0..4000);
        assert_eq!(choose_form(&[&few], Form::Dictionary8), Form::Dictionary8);
        assert_eq!(choose_form(&[&few, &some], Form::Dictionary8), Form::Dictionary16);
        assert_eq!(choose_form(&[&few], Form::Dictionary16), Form::Dictionary16);
        assert_eq!(choose_form(&[&few], Form::Plain), Form::Plain);
        assert_eq!(choose_form(&[&many], Form::Dictionary8), Form::Plain);
        assert_eq!(choose_form(&[&texts(0..3)], Form::Dictionary8), Form::Plain);
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1; 4000]));
        assert_eq!(choose_form(&[&numbers], Form::Dictionary8), Form::Plain);
    }

    #[test]
    fn codes_run_out_at_the_limit() {
        for (form, limit) in [(Form::Dictionary8, 255), (Form::Dictionary16, 65_535)] {
            let mut encoder = Encoder::default();
            let first = encoder.encode(&texts(0..limit), form).unwrap().unwrap();
            assert_eq!(&to_logical(&first, &DataType::Utf8, false).unwrap(), &texts(0..limit));
            let again = encoder.encode(&texts(0..5), form).unwrap().unwrap();
            assert!(Arc::ptr_eq(again.as_any_dictionary().values(), first.as_any_dictionary().values()));
            assert!(encoder.encode(&texts(limit..limit + 1), form).unwrap().is_none());
        }
        let nothing = new_null_array(&DataType::Utf8, 3);
        let coded = Encoder::default().encode(&nothing, Form::Dictionary8).unwrap().unwrap();
        assert_eq!(&to_logical(&coded, &DataType::Utf8, false).unwrap(), &nothing);
        assert_eq!(to_logical(&coded, &DataType::Utf8, true).unwrap().null_count(), 3);
    }

    #[test]
    fn field_names_are_read_back() {
        for form in Form::ALL {
            assert_eq!(column_of(&form.field(ColumnId(4_294_967_294))), Some(ColumnId(4_294_967_294)));
        }
        assert_eq!(column_of("_tx_from"), None);
        assert_eq!(column_of("cx"), None);
    }

    #[test]
    fn a_decimal_that_is_too_large_is_refused() {
        let values: ArrayRef =
            Arc::new(Decimal128Array::from(vec![i128::MAX]).with_precision_and_scale(18, 0).unwrap());
        assert!(matches!(to_stored(&values), Err(Error::InvalidInput(_))));
    }
}
