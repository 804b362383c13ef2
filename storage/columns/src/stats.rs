//! Statistics of a data file, kept in a sidecar beside it.
//!
//! Lance files carry no minima and maxima. The writer computes them per zone of [`ZONE_ROWS`](crate::ZONE_ROWS) rows, with
//! NULL counts, a sketch of distinct values per column, and for files sorted by key the first and last key of each zone
//! and a Bloom filter over all keys. They prune scans, inform the planner, and are the primary index.
//!
//! # On disk
//! `_stats/{data file}.stats`: the magic `LCST`, a body, and the CRC-32C of both (little-endian). The body is a version
//! byte and the fields in the order in which [`encode`] writes them. A change of the body is a new version byte.
//!
//! # Invariants
//! - STATS-1 a zone that is skipped holds no row that passes the filter: `tests::pruning_never_loses_a_row`.
//! - STATS-2 a damaged sidecar is an error, not a wrong answer: `tests::damage_is_noticed`.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray,
    Float32Array, Float64Array, PrimitiveArray, StringArray,
};
use arrow::compute::{
    max, max_binary, max_boolean, max_fixed_size_binary, max_string, min, min_binary, min_boolean,
    min_fixed_size_binary, min_string,
};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    IntervalUnit, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType, UInt8Type,
};
use base::{ColumnId, CommitTs, RowKey, TableId};
use bytes::Bytes;
use codec::ROW_TS_COLUMN;

use crate::bloom::{Bloom, hash_key};
use crate::filter::{CompareOp, ZoneColumn, ZoneFilter, ZonePredicate, ZoneTest};
use crate::physical::{Form, column_of};
use crate::wire::{In, Out};
use crate::{ColumnStore, DistinctSketch, Error, FileMeta, Result, Role, TX_FROM_COLUMN, TX_TO_COLUMN, ZONE_ROWS};

const MAGIC: &[u8; 4] = b"LCST";
/// With the checksum of the data file at the end. Version 1 has none.
const VERSION: u8 = 2;
const VERSION_WITHOUT_CHECKSUM: u8 = 1;
/// Longer strings are cut in bounds.
const BOUND_BYTES: usize = 64;

/// Statistics of one column of one file.
#[derive(Clone, Debug)]
pub struct ColumnStats {
    /// The least value, one row of the logical type; `None` if unknown or all rows are NULL.
    pub min: Option<ArrayRef>,
    /// The greatest value.
    pub max: Option<ArrayRef>,
    /// Whether `min` and `max` occur in the file, and are not merely bounds (long strings are cut).
    pub exact: bool,
    /// NULLs.
    pub nulls: u64,
    /// For estimates of the number of distinct values.
    pub distinct: DistinctSketch,
    /// Bytes the column takes in memory in its logical type, roughly.
    pub bytes: u64,
}

/// Statistics of one file: totals per column, zone maps and the key filter. All rows count, deleted ones too.
#[derive(Debug)]
pub struct FileStats {
    meta: FileMeta,
    zone_rows: u32,
    bloom: Bloom,
    /// First and last key per zone, of a sorted file.
    keys: Vec<(RowKey, RowKey)>,
    columns: Vec<StoredStats>,
    /// The XXH3 (128 bits) of the data file.
    checksum: Option<u128>,
}

#[derive(Debug)]
struct StoredStats {
    name: String,
    form: Form,
    data_type: DataType,
    zones: Vec<Zone>,
    totals: ColumnStats,
}

/// What is known of one column in one zone. No bound although there are values means "unknown".
#[derive(Clone, Debug, Default, PartialEq)]
struct Zone {
    min: Option<Value>,
    max: Option<Value>,
    nulls: u32,
    /// Whether a bound was cut or given up.
    cut: bool,
}

/// A value that can be ordered, without its type.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Int(i128),
    Float(f64),
    Bytes(Vec<u8>),
}

impl Value {
    /// Values of one column are of one kind.
    fn compare(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Int(left), Value::Int(right)) => left.cmp(right),
            (Value::Float(left), Value::Float(right)) => left.total_cmp(right),
            (Value::Bytes(left), Value::Bytes(right)) => left.cmp(right),
            _ => Ordering::Equal,
        }
    }

    fn of(array: &ArrayRef, row: usize) -> Option<Value> {
        if array.is_null(row) {
            return None;
        }
        Some(match array.data_type() {
            DataType::Boolean => Value::Int(i128::from(array.as_boolean().value(row))),
            DataType::UInt8 => Value::Int(array.as_primitive::<UInt8Type>().value(row).into()),
            DataType::Int16 => Value::Int(array.as_primitive::<Int16Type>().value(row).into()),
            DataType::Int32 => Value::Int(array.as_primitive::<Int32Type>().value(row).into()),
            DataType::Int64 => Value::Int(array.as_primitive::<Int64Type>().value(row).into()),
            DataType::Date32 => Value::Int(array.as_primitive::<Date32Type>().value(row).into()),
            DataType::Time64(TimeUnit::Microsecond) => {
                Value::Int(array.as_primitive::<Time64MicrosecondType>().value(row).into())
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                Value::Int(array.as_primitive::<TimestampMicrosecondType>().value(row).into())
            }
            DataType::Decimal128(..) => Value::Int(array.as_primitive::<Decimal128Type>().value(row)),
            DataType::Float32 => Value::Float(array.as_primitive::<Float32Type>().value(row).into()),
            DataType::Float64 => Value::Float(array.as_primitive::<Float64Type>().value(row)),
            DataType::Utf8 => Value::Bytes(array.as_string::<i32>().value(row).into()),
            DataType::Binary => Value::Bytes(array.as_binary::<i32>().value(row).into()),
            DataType::FixedSizeBinary(_) => Value::Bytes(array.as_fixed_size_binary().value(row).into()),
            _ => return None,
        })
    }

    /// One row of a type.
    fn to_array(&self, data_type: &DataType) -> Option<ArrayRef> {
        fn primitive<T: ArrowPrimitiveType>(value: i128, data_type: &DataType) -> Option<ArrayRef>
        where
            T::Native: TryFrom<i128>,
        {
            let value = T::Native::try_from(value).ok()?;
            Some(Arc::new(PrimitiveArray::<T>::from_value(value, 1).with_data_type(data_type.clone())))
        }
        match (self, data_type) {
            (Value::Int(value), DataType::Boolean) => Some(Arc::new(BooleanArray::from(vec![*value != 0]))),
            (Value::Int(value), DataType::UInt8) => primitive::<UInt8Type>(*value, data_type),
            (Value::Int(value), DataType::Int16) => primitive::<Int16Type>(*value, data_type),
            (Value::Int(value), DataType::Int32) => primitive::<Int32Type>(*value, data_type),
            (Value::Int(value), DataType::Int64) => primitive::<Int64Type>(*value, data_type),
            (Value::Int(value), DataType::Date32) => primitive::<Date32Type>(*value, data_type),
            (Value::Int(value), DataType::Time64(TimeUnit::Microsecond)) => {
                primitive::<Time64MicrosecondType>(*value, data_type)
            }
            (Value::Int(value), DataType::Timestamp(TimeUnit::Microsecond, _)) => {
                primitive::<TimestampMicrosecondType>(*value, data_type)
            }
            (Value::Int(value), DataType::Decimal128(precision, scale)) => {
                let array = Decimal128Array::from(vec![*value]).with_precision_and_scale(*precision, *scale).ok()?;
                Some(Arc::new(array))
            }
            (Value::Float(value), DataType::Float32) => Some(Arc::new(Float32Array::from(vec![*value as f32]))),
            (Value::Float(value), DataType::Float64) => Some(Arc::new(Float64Array::from(vec![*value]))),
            (Value::Bytes(value), DataType::Utf8) => {
                Some(Arc::new(StringArray::from(vec![std::str::from_utf8(value).ok()?])))
            }
            (Value::Bytes(value), DataType::Binary) => Some(Arc::new(BinaryArray::from(vec![value.as_slice()]))),
            (Value::Bytes(value), DataType::FixedSizeBinary(width)) => {
                Some(Arc::new(FixedSizeBinaryArray::try_new(*width, value.clone().into(), None).ok()?))
            }
            _ => None,
        }
    }

    fn write(&self, out: &mut Out) {
        match self {
            Value::Int(value) => {
                out.u8(0);
                // Zigzag, so that small negative numbers stay short.
                let zigzag = ((value << 1) ^ (value >> 127)) as u128;
                out.u64(zigzag as u64);
                out.u64((zigzag >> 64) as u64);
            }
            Value::Float(value) => {
                out.u8(1);
                out.i64(value.to_bits() as i64);
            }
            Value::Bytes(value) => {
                out.u8(2);
                out.slice(value);
            }
        }
    }

    fn read(input: &mut In) -> Option<Value> {
        Some(match input.u8()? {
            0 => {
                let zigzag = u128::from(input.u64()?) | u128::from(input.u64()?) << 64;
                Value::Int((zigzag >> 1) as i128 ^ -((zigzag & 1) as i128))
            }
            1 => Value::Float(f64::from_bits(input.i64()? as u64)),
            2 => Value::Bytes(input.slice()?.to_vec()),
            _ => return None,
        })
    }
}

/// The bounds of a part of a column.
fn bounds(values: &ArrayRef) -> Zone {
    let nulls = values.null_count() as u32;
    let ints = |min: Option<i128>, max: Option<i128>| Zone {
        min: min.map(Value::Int),
        max: max.map(Value::Int),
        nulls,
        cut: false,
    };
    macro_rules! primitive {
        ($kind:ty) => {{
            let values = values.as_primitive::<$kind>();
            ints(min(values).map(i128::from), max(values).map(i128::from))
        }};
    }
    match values.data_type() {
        DataType::Boolean => {
            let values = values.as_boolean();
            ints(min_boolean(values).map(i128::from), max_boolean(values).map(i128::from))
        }
        DataType::UInt8 => primitive!(UInt8Type),
        DataType::Int16 => primitive!(Int16Type),
        DataType::Int32 => primitive!(Int32Type),
        DataType::Int64 => primitive!(Int64Type),
        DataType::Date32 => primitive!(Date32Type),
        DataType::Time64(TimeUnit::Microsecond) => primitive!(Time64MicrosecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => primitive!(TimestampMicrosecondType),
        DataType::Decimal128(..) => primitive!(Decimal128Type),
        DataType::Float32 => floats(values.as_primitive::<Float32Type>().iter().flatten().map(f64::from), nulls),
        DataType::Float64 => floats(values.as_primitive::<Float64Type>().iter().flatten(), nulls),
        DataType::Utf8 => {
            let values = values.as_string::<i32>();
            texts(min_string(values).map(str::as_bytes), max_string(values).map(str::as_bytes), true, nulls)
        }
        DataType::Binary => {
            let values = values.as_binary::<i32>();
            texts(min_binary(values), max_binary(values), false, nulls)
        }
        DataType::FixedSizeBinary(_) => {
            let values = values.as_fixed_size_binary();
            texts(min_fixed_size_binary(values), max_fixed_size_binary(values), false, nulls)
        }
        _ => Zone { nulls, cut: true, ..Zone::default() },
    }
}

/// Comparisons differ in where they put NaN, so a zone that holds one has no bounds; and the two zeros are equal to some
/// and ordered to others, so a bound of zero stands for both.
fn floats(values: impl Iterator<Item = f64>, nulls: u32) -> Zone {
    let mut range: Option<(f64, f64)> = None;
    for value in values {
        if value.is_nan() {
            return Zone { nulls, cut: true, ..Zone::default() };
        }
        range = Some(range.map_or((value, value), |(min, max)| (min.min(value), max.max(value))));
    }
    let min = range.map(|(min, _)| Value::Float(if min == 0.0 { -0.0 } else { min }));
    let max = range.map(|(_, max)| Value::Float(if max == 0.0 { 0.0 } else { max }));
    Zone { min, max, nulls, cut: false }
}

fn texts(min: Option<&[u8]>, max: Option<&[u8]>, utf8: bool, nulls: u32) -> Zone {
    let (Some(min), Some(max)) = (min, max) else { return Zone { nulls, ..Zone::default() } };
    let cut = min.len() > BOUND_BYTES || max.len() > BOUND_BYTES;
    let min = Value::Bytes(min[..cut_at(min, utf8)].to_vec());
    let max = if max.len() > BOUND_BYTES { above(&max[..cut_at(max, utf8)], utf8) } else { Some(max.to_vec()) };
    Zone { min: Some(min), max: max.map(Value::Bytes), nulls, cut }
}

/// Where a bound is cut: not within a character.
fn cut_at(bytes: &[u8], utf8: bool) -> usize {
    let mut end = bytes.len().min(BOUND_BYTES);
    while utf8 && end > 0 && end < bytes.len() && bytes[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    end
}

/// The least short value above everything that starts with `prefix`, if there is one.
fn above(prefix: &[u8], utf8: bool) -> Option<Vec<u8>> {
    if utf8 {
        let mut text = std::str::from_utf8(prefix).ok()?.to_owned();
        while let Some(last) = text.pop() {
            let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
            if let Some(next) = next {
                text.push(next);
                return Some(text.into_bytes());
            }
        }
        return None;
    }
    let mut bytes = prefix.to_vec();
    while let Some(last) = bytes.pop() {
        if last < u8::MAX {
            bytes.push(last + 1);
            return Some(bytes);
        }
    }
    None
}

impl Zone {
    fn write(&self, out: &mut Out) {
        out.u8(u8::from(self.min.is_some()) | u8::from(self.max.is_some()) << 1 | u8::from(self.cut) << 2);
        out.u64(u64::from(self.nulls));
        for value in [&self.min, &self.max].into_iter().flatten() {
            value.write(out);
        }
    }

    /// Takes in more rows; `had` and `rows` are how many there were and how many come.
    fn extend(&mut self, had: u32, other: Zone, rows: u32) {
        let unknown = |zone: &Zone, rows: u32| (zone.min.is_none(), zone.max.is_none(), zone.nulls == rows);
        let (mine, theirs) = (unknown(self, had), unknown(&other, rows));
        self.min = pick(self.min.take(), mine.0 && !mine.2, other.min, theirs.0 && !theirs.2, Ordering::Less);
        self.max = pick(self.max.take(), mine.1 && !mine.2, other.max, theirs.1 && !theirs.2, Ordering::Greater);
        self.nulls += other.nulls;
        self.cut |= other.cut;
    }

    /// Whether some of the zone's rows may pass.
    fn may_pass(&self, rows: u32, test: &Test) -> bool {
        let at_most = |value: &Value| self.min.as_ref().is_none_or(|min| min.compare(value).is_le());
        let at_least = |value: &Value| self.max.as_ref().is_none_or(|max| max.compare(value).is_ge());
        match test {
            Test::IsNull => self.nulls > 0,
            _ if self.nulls == rows => false,
            Test::Always | Test::IsNotNull => true,
            Test::Never => false,
            Test::Compare(CompareOp::Eq, value) => at_most(value) && at_least(value),
            Test::Compare(CompareOp::Le, value) => at_most(value),
            Test::Compare(CompareOp::Ge, value) => at_least(value),
            Test::Compare(CompareOp::Lt, value) => self.min.as_ref().is_none_or(|min| min.compare(value).is_lt()),
            Test::Compare(CompareOp::Gt, value) => self.max.as_ref().is_none_or(|max| max.compare(value).is_gt()),
            Test::In(values) => {
                let first =
                    self.min.as_ref().map_or(0, |min| values.partition_point(|value| value.compare(min).is_lt()));
                values.get(first).is_some_and(at_least)
            }
        }
    }
}

fn pick(
    mine: Option<Value>,
    mine_unknown: bool,
    theirs: Option<Value>,
    theirs_unknown: bool,
    wanted: Ordering,
) -> Option<Value> {
    if mine_unknown || theirs_unknown {
        return None;
    }
    match (mine, theirs) {
        (Some(mine), Some(theirs)) => Some(if theirs.compare(&mine) == wanted { theirs } else { mine }),
        (mine, theirs) => mine.or(theirs),
    }
}

/// A test with its literals unpacked.
enum Test {
    Always,
    Never,
    IsNull,
    IsNotNull,
    Compare(CompareOp, Value),
    /// Ascending.
    In(Vec<Value>),
}

impl Test {
    fn new(test: &ZoneTest, data_type: &DataType) -> Self {
        let is_nan = |value: &Value| matches!(value, Value::Float(value) if value.is_nan());
        match test {
            ZoneTest::IsNull => Test::IsNull,
            ZoneTest::IsNotNull => Test::IsNotNull,
            ZoneTest::Compare(_, literal) | ZoneTest::In(literal) if literal.data_type() != data_type => Test::Always,
            ZoneTest::Compare(op, literal) => {
                if literal.len() != 1 {
                    return Test::Always;
                }
                match Value::of(literal, 0) {
                    Some(value) if is_nan(&value) => Test::Always,
                    Some(value) => Test::Compare(*op, value),
                    None if literal.is_null(0) => Test::Never,
                    None => Test::Always,
                }
            }
            ZoneTest::In(literals) => {
                let mut values = Vec::with_capacity(literals.len());
                for row in 0..literals.len() {
                    match Value::of(literals, row) {
                        Some(value) if is_nan(&value) => return Test::Always,
                        Some(value) => values.push(value),
                        None if literals.is_null(row) => {}
                        None => return Test::Always,
                    }
                }
                // Zeros compare as equal.
                for value in &mut values {
                    if matches!(value, Value::Float(zero) if *zero == 0.0) {
                        *value = Value::Float(0.0);
                    }
                }
                values.sort_by(Value::compare);
                Test::In(values)
            }
        }
    }
}

impl FileStats {
    /// Says what the data file's bytes are known by.
    pub(crate) fn with_checksum(self, checksum: Option<u128>) -> Self {
        Self { checksum, ..self }
    }

    pub(crate) fn checksum(&self) -> Option<u128> {
        self.checksum
    }

    /// The statistics of one file under the description of another.
    #[cfg(test)]
    pub(crate) fn clone_for_test(&self, meta: FileMeta, checksum: Option<u128>) -> Self {
        let mut other = decode("sidecar", encode(self).into()).expect("what was written can be read");
        other.meta = meta;
        other.checksum = checksum;
        other
    }

    /// The fields of the file, in its order.
    pub(crate) fn described(&self) -> Vec<(String, Form, DataType)> {
        self.columns.iter().map(|column| (column.name.clone(), column.form, column.data_type.clone())).collect()
    }

    /// What is said here of columns that `other`, made from the same file, says otherwise. Columns that `other` lacks are
    /// left out.
    pub(crate) fn difference(&self, other: &FileStats) -> Option<String> {
        if self.keys != other.keys {
            return Some("the keys of its zones".to_owned());
        }
        if self.bloom.as_bytes() != other.bloom.as_bytes() {
            return Some("the key filter".to_owned());
        }
        for column in &other.columns {
            let Some(said) = self.columns.iter().find(|known| known.name == column.name) else { continue };
            let bytes = |column: &StoredStats| {
                let mut out = Out::default();
                column.totals.distinct.write(&mut out);
                column.zones.iter().for_each(|zone| zone.write(&mut out));
                out.bytes
            };
            if bytes(said) != bytes(column) {
                return Some(format!("the statistics of column {}", column.name));
            }
        }
        None
    }

    /// The file as its writer described it: staged, and without a commit timestamp if it had none yet.
    pub fn meta(&self) -> &FileMeta {
        &self.meta
    }

    /// Physical rows.
    pub fn rows(&self) -> u32 {
        self.meta.rows
    }

    /// A column's totals; `None` when the file lacks the column (all rows then read as its `missing` value).
    pub fn column(&self, id: ColumnId) -> Option<&ColumnStats> {
        self.columns.iter().find(|column| column_of(&column.name) == Some(id)).map(|column| &column.totals)
    }

    /// Whether the file stores a string column as a dictionary.
    pub fn is_dictionary(&self, id: ColumnId) -> bool {
        self.columns.iter().any(|column| column.form != Form::Plain && column_of(&column.name) == Some(id))
    }

    /// The rows that can satisfy `filter`, as ascending ranges of whole zones.
    pub fn prune(&self, meta: &FileMeta, filter: &ZoneFilter) -> Vec<Range<u32>> {
        let zones = self.zone_count();
        let mut keep = vec![true; zones];
        for predicate in &filter.predicates {
            self.prune_one(meta, predicate, &mut keep);
        }
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for zone in (0..zones).filter(|&zone| keep[zone]) {
            let rows = self.zone_range(zone);
            match ranges.last_mut() {
                Some(last) if last.end == rows.start => last.end = rows.end,
                _ => ranges.push(rows),
            }
        }
        ranges
    }

    fn prune_one(&self, meta: &FileMeta, predicate: &ZonePredicate, keep: &mut [bool]) {
        let constant = match predicate.column {
            ZoneColumn::TxFrom => meta.constant_tx_from(),
            ZoneColumn::Column(ROW_TS_COLUMN) if meta.row_ts_left_out => meta.constant_tx_from(),
            ZoneColumn::TxTo if meta.role == Role::Current => Some(CommitTs::MAX),
            _ => None,
        };
        if let Some(ts) = constant {
            let value = Some(Value::Int(ts.0.into()));
            let zone = Zone { min: value.clone(), max: value, nulls: 0, cut: false };
            if !zone.may_pass(1, &Test::new(&predicate.test, &DataType::Int64)) {
                keep.fill(false);
            }
            return;
        }
        let column = self.columns.iter().find(|column| match predicate.column {
            ZoneColumn::Column(id) => column_of(&column.name) == Some(id),
            ZoneColumn::TxFrom => column.name == TX_FROM_COLUMN,
            ZoneColumn::TxTo => column.name == TX_TO_COLUMN,
        });
        let Some(column) = column else { return };
        let test = Test::new(&predicate.test, &column.data_type);
        for (zone, keep) in keep.iter_mut().enumerate().filter(|(_, keep)| **keep) {
            *keep = column.zones[zone].may_pass(self.zone_range(zone).len() as u32, &test);
        }
    }

    pub(crate) fn zone_count(&self) -> usize {
        self.meta.rows.div_ceil(self.zone_rows) as usize
    }

    pub(crate) fn zone_range(&self, zone: usize) -> Range<u32> {
        let start = zone as u32 * self.zone_rows;
        start..(start + self.zone_rows).min(self.meta.rows)
    }

    /// False only if the file surely does not hold a key. For files that store all columns of their keys.
    pub fn may_hold(&self, key: &RowKey) -> bool {
        self.zone_of(key).is_some()
    }

    /// The zone that holds a key, if any does. The key is in the form in which the sidecar holds keys.
    pub(crate) fn zone_of(&self, key: &RowKey) -> Option<usize> {
        if !self.bloom.may_contain(hash_key(key.as_bytes())) {
            return None;
        }
        let zone = self.keys.partition_point(|(_, last)| last < key);
        self.keys.get(zone).filter(|(first, _)| first <= key).map(|_| zone)
    }

    /// Roughly what it takes in memory.
    pub(crate) fn weight(&self) -> usize {
        let zones = self.zone_count();
        let keys: usize =
            self.keys.iter().map(|(first, last)| 96 + first.as_bytes().len() + last.as_bytes().len()).sum();
        512 + self.bloom.as_bytes().len() + keys + self.columns.len() * (2048 + zones * 128)
    }
}

/// Collects the statistics of one file while it is written.
#[derive(Debug)]
pub(crate) struct StatsBuilder {
    zone_rows: u32,
    columns: Vec<ColumnBuilder>,
    key_hashes: Vec<u64>,
    keys: Vec<(RowKey, RowKey)>,
    /// The least and the greatest key.
    key_range: Option<(RowKey, RowKey)>,
    rows: u32,
    sorted: bool,
}

#[derive(Debug)]
struct ColumnBuilder {
    name: String,
    form: Form,
    data_type: DataType,
    zones: Vec<Zone>,
    sketch: DistinctSketch,
    bytes: u64,
}

impl StatsBuilder {
    pub(crate) fn new(columns: impl Iterator<Item = (String, Form, DataType)>) -> Self {
        let columns = columns
            .map(|(name, form, data_type)| ColumnBuilder {
                name,
                form,
                data_type,
                zones: Vec::new(),
                sketch: DistinctSketch::default(),
                bytes: 0,
            })
            .collect();
        Self {
            zone_rows: ZONE_ROWS,
            columns,
            key_hashes: Vec::new(),
            keys: Vec::new(),
            key_range: None,
            rows: 0,
            sorted: true,
        }
    }

    pub(crate) fn rows(&self) -> u32 {
        self.rows
    }

    /// Whether all keys so far ascend strictly.
    pub(crate) fn is_sorted(&self) -> bool {
        self.sorted
    }

    /// Takes rows in: one array per column in its logical type, and the keys.
    pub(crate) fn push(&mut self, columns: &[ArrayRef], keys: &[RowKey]) {
        for (column, values) in self.columns.iter_mut().zip(columns) {
            column.sketch.add_column(values);
            column.bytes += memory_bytes(values);
        }
        self.sorted &= keys.is_sorted_by(|left, right| left < right);
        if let (Some((_, last)), Some(first)) = (self.keys.last(), keys.first()) {
            self.sorted &= last < first;
        }
        if let (Some(min), Some(max)) = (keys.iter().min(), keys.iter().max()) {
            self.key_range = Some(match self.key_range.take() {
                None => (min.clone(), max.clone()),
                Some((least, greatest)) => (least.min(min.clone()), greatest.max(max.clone())),
            });
        }
        self.key_hashes.extend(keys.iter().map(|key| hash_key(key.as_bytes())));
        let mut done = 0;
        while done < keys.len() {
            let had = self.rows % self.zone_rows;
            let rows = ((self.zone_rows - had) as usize).min(keys.len() - done);
            for (column, values) in self.columns.iter_mut().zip(columns) {
                let part = bounds(&values.slice(done, rows));
                match column.zones.last_mut() {
                    Some(zone) if had > 0 => zone.extend(had, part, rows as u32),
                    _ => column.zones.push(part),
                }
            }
            let last = keys[done + rows - 1].clone();
            match self.keys.last_mut() {
                Some(zone) if had > 0 => zone.1 = last,
                _ => self.keys.push((keys[done].clone(), last)),
            }
            done += rows;
            self.rows += rows as u32;
        }
    }

    /// The least and greatest key.
    pub(crate) fn key_range(&self) -> (RowKey, RowKey) {
        self.key_range.clone().unwrap_or_default()
    }

    /// The least and greatest value of an Int64 column.
    pub(crate) fn int_range(&self, name: &str) -> Option<(i64, i64)> {
        let column = self.columns.iter().find(|column| column.name == name)?;
        let int = |value: &Option<Value>| match value {
            Some(Value::Int(value)) => i64::try_from(*value).ok(),
            _ => None,
        };
        let min = column.zones.iter().filter_map(|zone| int(&zone.min)).min()?;
        let max = column.zones.iter().filter_map(|zone| int(&zone.max)).max()?;
        Some((min, max))
    }

    pub(crate) fn finish(self, meta: FileMeta) -> FileStats {
        let (rows, zone_rows) = (self.rows, self.zone_rows);
        let columns = self.columns.into_iter().map(|column| {
            let ColumnBuilder { name, form, data_type, zones, sketch, bytes } = column;
            let totals = totals(&data_type, &zones, rows, zone_rows, sketch, bytes);
            StoredStats { name, form, data_type, zones, totals }
        });
        FileStats {
            zone_rows,
            bloom: if self.sorted { Bloom::build(&self.key_hashes) } else { Bloom::default() },
            keys: if self.sorted { self.keys } else { Vec::new() },
            columns: columns.collect(),
            meta,
            checksum: None,
        }
    }
}

fn memory_bytes(values: &ArrayRef) -> u64 {
    let rows = values.len() as u64;
    match values.data_type() {
        DataType::Utf8 => {
            let offsets = values.as_string::<i32>().value_offsets();
            4 * rows + u64::from((offsets[offsets.len() - 1] - offsets[0]).unsigned_abs())
        }
        DataType::Binary => {
            let offsets = values.as_binary::<i32>().value_offsets();
            4 * rows + u64::from((offsets[offsets.len() - 1] - offsets[0]).unsigned_abs())
        }
        DataType::Boolean => rows.div_ceil(8),
        other => match other.primitive_width() {
            Some(width) => rows * width as u64,
            None => values.to_data().get_slice_memory_size().map_or(16 * rows, |bytes| bytes as u64),
        },
    }
}

fn totals(
    data_type: &DataType,
    zones: &[Zone],
    rows: u32,
    zone_rows: u32,
    distinct: DistinctSketch,
    bytes: u64,
) -> ColumnStats {
    let mut total = Zone { nulls: 0, ..Zone::default() };
    let mut had = 0;
    for zone in zones {
        let part = zone_rows.min(rows - had);
        total.extend(had, zone.clone(), part);
        had += part;
    }
    ColumnStats {
        min: total.min.and_then(|value| value.to_array(data_type)),
        max: total.max.and_then(|value| value.to_array(data_type)),
        exact: !total.cut,
        nulls: total.nulls.into(),
        distinct,
        bytes,
    }
}

/// The bytes of a sidecar.
pub(crate) fn encode(stats: &FileStats) -> Vec<u8> {
    let mut out = Out::default();
    out.bytes.extend_from_slice(MAGIC);
    out.u8(if stats.checksum.is_some() { VERSION } else { VERSION_WITHOUT_CHECKSUM });
    out.slice(&stats.meta.encode());
    out.u64(u64::from(stats.zone_rows));
    out.slice(stats.bloom.as_bytes());
    out.u64(stats.keys.len() as u64);
    for (first, last) in &stats.keys {
        out.slice(first.as_bytes());
        out.slice(last.as_bytes());
    }
    out.u64(stats.columns.len() as u64);
    for column in &stats.columns {
        out.slice(column.name.as_bytes());
        out.u8(match column.form {
            Form::Plain => 0,
            Form::Dictionary8 => 1,
            Form::Dictionary16 => 2,
        });
        write_type(&mut out, &column.data_type);
        out.u64(column.totals.bytes);
        column.totals.distinct.write(&mut out);
        for zone in &column.zones {
            zone.write(&mut out);
        }
    }
    if let Some(checksum) = stats.checksum {
        out.bytes.extend_from_slice(&checksum.to_le_bytes());
    }
    let checksum = crc32c::crc32c(&out.bytes);
    out.bytes.extend_from_slice(&checksum.to_le_bytes());
    out.bytes
}

/// Reads [`encode`].
pub(crate) fn decode(path: &str, bytes: Bytes) -> Result<FileStats> {
    let Some((body, checksum)) = bytes.split_last_chunk::<4>() else {
        return Err(Error::corrupt(path, "shorter than its checksum"));
    };
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return Err(Error::corrupt(path, "checksum mismatch"));
    }
    let body = bytes.slice(..body.len());
    let summed = match body.strip_prefix(MAGIC.as_slice()).and_then(|rest| rest.first()) {
        Some(&VERSION) => true,
        Some(&VERSION_WITHOUT_CHECKSUM) => false,
        Some(version) => return Err(Error::corrupt(path, format!("format version {version} is not known"))),
        None => return Err(Error::corrupt(path, "not a statistics file")),
    };
    let mut input = In::new(body.slice(MAGIC.len() + 1..));
    let read = read_body(&mut input).and_then(|stats| {
        let checksum = if summed { Some(u128::from_le_bytes(input.array()?)) } else { None };
        input.bytes.is_empty().then(|| stats.with_checksum(checksum))
    });
    read.ok_or_else(|| Error::corrupt(path, "fields do not add up"))
}

fn read_body(input: &mut In) -> Option<FileStats> {
    let meta = FileMeta::decode(&input.slice()?).ok()?;
    let zone_rows = input.u32().filter(|rows| *rows > 0)?;
    let bloom = Bloom::from_bytes(input.slice()?)?;
    let zone_count = meta.rows.div_ceil(zone_rows) as usize;
    let key_count = usize::try_from(input.u64()?).ok()?;
    if key_count != 0 && key_count != zone_count {
        return None;
    }
    let mut keys = Vec::with_capacity(key_count);
    for _ in 0..key_count {
        keys.push((RowKey(input.slice()?), RowKey(input.slice()?)));
    }
    let mut columns = Vec::new();
    for _ in 0..input.u64()? {
        let name = input.string()?;
        let form = match input.u8()? {
            0 => Form::Plain,
            1 => Form::Dictionary8,
            2 => Form::Dictionary16,
            _ => return None,
        };
        let data_type = read_type(input)?;
        let bytes = input.u64()?;
        let distinct = DistinctSketch::read(input)?;
        let mut zones = Vec::with_capacity(zone_count);
        for _ in 0..zone_count {
            let flags = input.u8()?;
            let nulls = input.u32()?;
            let min = if flags & 1 != 0 { Some(Value::read(input)?) } else { None };
            let max = if flags & 2 != 0 { Some(Value::read(input)?) } else { None };
            zones.push(Zone { min, max, nulls, cut: flags & 4 != 0 });
        }
        let totals = totals(&data_type, &zones, meta.rows, zone_rows, distinct, bytes);
        columns.push(StoredStats { name, form, data_type, zones, totals });
    }
    Some(FileStats { meta, zone_rows, bloom, keys, columns, checksum: None })
}

fn write_type(out: &mut Out, data_type: &DataType) {
    match data_type {
        DataType::Boolean => out.u8(1),
        DataType::UInt8 => out.u8(2),
        DataType::Int16 => out.u8(3),
        DataType::Int32 => out.u8(4),
        DataType::Int64 => out.u8(5),
        DataType::Float32 => out.u8(6),
        DataType::Float64 => out.u8(7),
        DataType::Decimal128(precision, scale) => {
            out.u8(8);
            out.u8(*precision);
            out.u8(*scale as u8);
        }
        DataType::Utf8 => out.u8(9),
        DataType::Binary => out.u8(10),
        DataType::Date32 => out.u8(11),
        DataType::Time64(TimeUnit::Microsecond) => out.u8(12),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            out.u8(13);
            out.slice(zone.as_deref().unwrap_or_default().as_bytes());
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => out.u8(14),
        DataType::FixedSizeBinary(width) => {
            out.u8(15);
            out.u64(width.unsigned_abs().into());
        }
        DataType::List(item) => {
            out.u8(16);
            write_type(out, item.data_type());
        }
        // Has no bounds and no literals, so nobody asks what it is.
        _ => out.u8(0),
    }
}

fn read_type(input: &mut In) -> Option<DataType> {
    Some(match input.u8()? {
        0 => DataType::Null,
        1 => DataType::Boolean,
        2 => DataType::UInt8,
        3 => DataType::Int16,
        4 => DataType::Int32,
        5 => DataType::Int64,
        6 => DataType::Float32,
        7 => DataType::Float64,
        8 => DataType::Decimal128(input.u8()?, input.u8()? as i8),
        9 => DataType::Utf8,
        10 => DataType::Binary,
        11 => DataType::Date32,
        12 => DataType::Time64(TimeUnit::Microsecond),
        13 => {
            let zone = input.string()?;
            DataType::Timestamp(TimeUnit::Microsecond, (!zone.is_empty()).then(|| zone.into()))
        }
        14 => DataType::Interval(IntervalUnit::MonthDayNano),
        15 => DataType::FixedSizeBinary(i32::try_from(input.u32()?).ok()?),
        16 => DataType::List(Arc::new(Field::new("item", read_type(input)?, true))),
        _ => return None,
    })
}

impl ColumnStore {
    /// The statistics of a file, cached.
    pub async fn stats(&self, table: TableId, meta: &FileMeta) -> Result<Arc<FileStats>> {
        self.stats_of(table, meta.role, &meta.path).await
    }

    pub(crate) async fn stats_of(&self, table: TableId, role: Role, name: &str) -> Result<Arc<FileStats>> {
        let path = self.sidecar_path(table, role, name);
        if let Some(stats) = self.inner.stats.get(&path) {
            return Ok(stats);
        }
        let bytes = self.get(&path).await?;
        let stats = Arc::new(decode(path.as_ref(), bytes)?);
        self.inner.stats.insert(path, stats.clone(), stats.weight());
        Ok(stats)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, Scalar};
    use arrow::compute::kernels::cmp;
    use base::{FileId, SchemaVersion};
    use proptest::prelude::*;

    use super::*;
    use crate::{FileState, TxFrom};

    fn meta(rows: u32) -> FileMeta {
        FileMeta {
            file: FileId(1),
            role: Role::Current,
            path: "x.lance".into(),
            state: FileState::Staged,
            rows,
            bytes: 1,
            tx_from: TxFrom::Constant(CommitTs(50)),
            constant_op: Some(0),
            key_sorted: true,
            min_key: RowKey::default(),
            max_key: RowKey::default(),
            min_ts: CommitTs(50),
            max_ts: CommitTs(50),
            min_closed: CommitTs::MAX,
            max_closed: CommitTs::MAX,
            schema_version: SchemaVersion(1),
            row_ts_left_out: false,
        }
    }

    /// Statistics of one column, in zones of 16 rows, that came in pieces of 7.
    fn stats_of(column: &ArrayRef) -> FileStats {
        let described = ("c1".to_owned(), Form::Plain, column.data_type().clone());
        let mut builder = StatsBuilder::new(std::iter::once(described));
        builder.zone_rows = 16;
        let mut at = 0;
        while at < column.len() {
            let rows = (column.len() - at).min(7);
            let keys: Vec<RowKey> =
                (at..at + rows).map(|row| RowKey((row as u64).to_be_bytes().to_vec().into())).collect();
            builder.push(&[column.slice(at, rows)], &keys);
            at += rows;
        }
        builder.finish(meta(column.len() as u32))
    }

    /// A column of some type, its values drawn from `seeds`; a few of them are odd.
    fn column_of_kind(kind: u8, seeds: &[Option<i16>]) -> ArrayRef {
        let ints = || seeds.iter().map(|seed| seed.map(i64::from));
        match kind {
            0 => Arc::new(ints().collect::<Int64Array>()),
            1 => Arc::new(
                ints()
                    .map(|seed| seed.map(|seed| i128::from(seed) << 70))
                    .collect::<Decimal128Array>()
                    .with_precision_and_scale(38, 3)
                    .unwrap(),
            ),
            2 => Arc::new(
                ints()
                    .map(|seed| {
                        seed.map(|seed| match seed {
                            7 => f64::NAN,
                            8 => -f64::NAN,
                            9 => -0.0,
                            10 => f64::NEG_INFINITY,
                            seed => seed as f64 / 8.0,
                        })
                    })
                    .collect::<Float64Array>(),
            ),
            3 => Arc::new(ints().map(|seed| seed.map(|seed| seed as f32)).collect::<Float32Array>()),
            4 => Arc::new(
                ints()
                    .map(|seed| {
                        seed.map(|seed| match seed % 4 {
                            // Long ones that differ only behind the cut, and ones that cannot be counted up.
                            0 => format!("{}{seed:05}", "é".repeat(40)),
                            1 => "\u{10ffff}".repeat(20),
                            _ => format!("{seed}"),
                        })
                    })
                    .collect::<StringArray>(),
            ),
            5 => Arc::new(
                ints()
                    .map(|seed| {
                        seed.map(|seed| {
                            if seed % 3 == 0 {
                                vec![u8::MAX; 70]
                            } else {
                                [vec![seed as u8; 66], seed.to_be_bytes().to_vec()].concat()
                            }
                        })
                    })
                    .collect::<BinaryArray>(),
            ),
            6 => Arc::new(ints().map(|seed| seed.map(|seed| seed % 2 == 0)).collect::<BooleanArray>()),
            _ => Arc::new(
                FixedSizeBinaryArray::try_from_sparse_iter_with_size(
                    ints().map(|seed| seed.map(|seed| (seed as i128).to_be_bytes())),
                    16,
                )
                .unwrap(),
            ),
        }
    }

    /// The rows that pass by anybody's rules: by the total order of floats, or by arithmetic.
    fn passes(column: &ArrayRef, op: CompareOp, literal: &ArrayRef) -> Vec<bool> {
        let scalar = Scalar::new(literal.clone());
        let total = match op {
            CompareOp::Eq => cmp::eq(column, &scalar),
            CompareOp::Lt => cmp::lt(column, &scalar),
            CompareOp::Le => cmp::lt_eq(column, &scalar),
            CompareOp::Gt => cmp::gt(column, &scalar),
            CompareOp::Ge => cmp::gt_eq(column, &scalar),
        };
        let total = total.unwrap();
        (0..column.len())
            .map(|row| {
                let arithmetic = match (Value::of(column, row), Value::of(literal, 0)) {
                    (Some(Value::Float(value)), Some(Value::Float(literal))) => match op {
                        CompareOp::Eq => value == literal,
                        CompareOp::Lt => value < literal,
                        CompareOp::Le => value <= literal,
                        CompareOp::Gt => value > literal,
                        CompareOp::Ge => value >= literal,
                    },
                    _ => false,
                };
                arithmetic || (total.is_valid(row) && total.value(row))
            })
            .collect()
    }

    fn seeds() -> impl Strategy<Value = Vec<Option<i16>>> {
        // Runs of like values, so that zones differ.
        let run = (proptest::option::weighted(0.8, -30i16..30), 1usize..30);
        proptest::collection::vec(run, 1..12)
            .prop_map(|runs| runs.into_iter().flat_map(|(seed, rows)| vec![seed; rows]).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn pruning_never_loses_a_row(kind in 0u8..8, seeds in seeds(), literals in proptest::collection::vec(proptest::option::weighted(0.9, -30i16..30), 1..4), op in 0usize..7) {
            let column = column_of_kind(kind, &seeds);
            let stats = decode("x", encode(&stats_of(&column)).into()).unwrap();
            let literal = column_of_kind(kind, &literals[..1]);
            let list = column_of_kind(kind, &literals);
            let target = ZoneColumn::Column(ColumnId(1));
            let (filter, wanted) = match op {
                5 => {
                    let wanted = (0..literals.len()).map(|at| passes(&column, CompareOp::Eq, &list.slice(at, 1)));
                    let wanted = wanted.reduce(|left, right| left.iter().zip(&right).map(|(a, b)| *a || *b).collect()).unwrap();
                    (ZoneFilter::all().and_in(target, list), wanted)
                }
                6 => (ZoneFilter::all().and_null(target, true), (0..column.len()).map(|row| column.is_null(row)).collect()),
                op => {
                    let op = [CompareOp::Eq, CompareOp::Lt, CompareOp::Le, CompareOp::Gt, CompareOp::Ge][op];
                    (ZoneFilter::all().and_compare(target, op, literal.clone()), passes(&column, op, &literal))
                }
            };
            let ranges = stats.prune(&meta(column.len() as u32), &filter);
            for (row, wanted) in wanted.iter().enumerate() {
                prop_assert!(!wanted || ranges.iter().any(|range| range.contains(&(row as u32))), "row {} is lost: {:?}", row, ranges);
            }
            // And the totals are what they are called.
            let totals = stats.column(ColumnId(1)).unwrap();
            prop_assert_eq!(totals.nulls as usize, column.null_count());
            for row in (0..column.len()).filter(|row| column.is_valid(*row)) {
                let value = column.slice(row, 1);
                if let Some(min) = &totals.min {
                    prop_assert!(passes(min, CompareOp::Le, &value)[0]);
                }
                if let Some(max) = &totals.max {
                    prop_assert!(passes(max, CompareOp::Ge, &value)[0]);
                }
            }
            if totals.exact && column.null_count() < column.len() {
                for bound in [&totals.min, &totals.max] {
                    prop_assert!(passes(&column, CompareOp::Eq, bound.as_ref().unwrap()).contains(&true));
                }
            }
        }
    }

    #[test]
    fn whole_zones_are_skipped() {
        let column: ArrayRef = Arc::new((0..100i64).map(Some).collect::<Int64Array>());
        let stats = stats_of(&column);
        let at = |value: i64| -> ArrayRef { Arc::new(Int64Array::from(vec![value])) };
        let target = ZoneColumn::Column(ColumnId(1));
        let prune = |filter: ZoneFilter| stats.prune(&meta(100), &filter);
        assert_eq!(prune(ZoneFilter::all()), [0..100]);
        assert_eq!(
            prune(ZoneFilter::all().and_compare(target, CompareOp::Ge, at(40)).and_compare(
                target,
                CompareOp::Lt,
                at(48)
            )),
            [32..48]
        );
        assert_eq!(prune(ZoneFilter::all().and_in(target, Arc::new(Int64Array::from(vec![3, 99])))), [0..16, 96..100]);
        assert!(prune(ZoneFilter::all().and_null(target, true)).is_empty());
        assert!(
            prune(ZoneFilter::all().and_compare(target, CompareOp::Eq, Arc::new(Int64Array::from(vec![None]))))
                .is_empty()
        );
        // What is not understood skips nothing.
        assert_eq!(
            prune(ZoneFilter::all().and_compare(target, CompareOp::Eq, Arc::new(StringArray::from(vec!["3"])))),
            [0..100]
        );
        assert_eq!(
            prune(ZoneFilter::all().and_compare(ZoneColumn::Column(ColumnId(2)), CompareOp::Eq, at(3))),
            [0..100]
        );
        // Constants.
        assert_eq!(prune(ZoneFilter::all().and_compare(ZoneColumn::TxFrom, CompareOp::Le, at(50))), [0..100]);
        assert!(prune(ZoneFilter::all().and_compare(ZoneColumn::TxFrom, CompareOp::Lt, at(50))).is_empty());
        assert_eq!(prune(ZoneFilter::all().and_compare(ZoneColumn::TxTo, CompareOp::Gt, at(i64::MAX - 1))), [0..100]);
    }

    #[test]
    fn damage_is_noticed() {
        let column = column_of_kind(4, &(0..100).map(Some).collect::<Vec<_>>());
        let bytes = encode(&stats_of(&column));
        assert!(decode("x", bytes.clone().into()).is_ok());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(matches!(decode("x", damaged.into()), Err(Error::Corrupt { .. })), "byte {at}");
        }
        for len in 0..bytes.len() {
            assert!(decode("x", bytes[..len].to_vec().into()).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn every_absent_key_is_likely_turned_away() {
        let column: ArrayRef = Arc::new((0..1000i64).map(Some).collect::<Int64Array>());
        let stats = stats_of(&column);
        let key = |key: u64| RowKey(key.to_be_bytes().to_vec().into());
        assert!((0..1000).all(|row| stats.zone_of(&key(row)) == Some(row as usize / 16)));
        assert!((1000..2000).all(|row| stats.zone_of(&key(row)).is_none()));
    }
}
