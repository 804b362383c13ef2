//! SQL types: their names, the Arrow types behind them, and how values move between them.
//!
//! A [`TypeSpec`] is what a column or a cast was declared as. Arrow carries most of it; what Arrow cannot say travels as metadata of the
//! field: `arrow.uuid` and `arrow.json` as extension names (so that clients see them), and [`TYPE`] and [`LENGTH`] for what only we know
//! (`jsonb`, `varchar(10)`).
//!
//! | SQL | Arrow | notes |
//! |---|---|---|
//! | `boolean` | Boolean | |
//! | `smallint`, `integer`, `bigint` | Int16, Int32, Int64 | `tinyint` is `smallint` |
//! | `real`, `double precision`, `float` | Float32, Float64, Float64 | `float(24)` and less is `real` |
//! | `numeric(p, s)` | Decimal128(p, s) | p ≤ 38 |
//! | `numeric` | Decimal128(38, 10) | a decimal has a fixed scale here; PostgreSQL's has none |
//! | `text`, `varchar(n)`, `char(n)` | Utf8 | the length is checked on assignment and cuts in casts; `char` is not padded |
//! | `bytea` | Binary | |
//! | `date`, `time`, `timestamp`, `timestamptz` | Date32, Time64(µs), Timestamp(µs), Timestamp(µs, UTC) | microseconds always |
//! | `interval` | Interval(MonthDayNano) | |
//! | `uuid` | FixedSizeBinary(16) + `arrow.uuid` | |
//! | `json`, `jsonb` | Utf8 + `arrow.json` | `jsonb` is kept in canonical form |
//! | `t[]` | List of t | items may be null; one dimension |
//!
//! # Invariants
//! - TYP-1 every name that [`TypeSpec::name`] or [`TypeSpec::display`] prints is read back by [`TypeSpec::parse`]. Test: `names_read_back`.
//! - TYP-2 a field of a type is recognised as that type. Test: `fields_read_back`.
//!
//! # Failure
//! An unknown name is 42704, a type that is known but not stored is 0A000, a bad length or precision is 22023.
//!
//! # Deliberately absent
//! Domains, enums, composite types; precisions of times other than six digits.

mod coerce;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, TimeUnit};
use base::SqlState;
use datafusion::logical_expr::planner::TypePlanner;
use sqlparser::ast::{self, ArrayElemTypeDef, CharacterLength, ExactNumberInfo, TimezoneInfo};

pub(crate) use coerce::{Coercion, Operators, is_comparison};

use crate::error::{Error, Result};

/// Metadata key of Arrow's extension types.
pub(crate) const EXTENSION: &str = "ARROW:extension:name";
/// Metadata key for the name of a type that shares its Arrow type and extension with another.
pub(crate) const TYPE: &str = "lattice.type";
/// Metadata key for the longest text allowed, in characters.
pub(crate) const LENGTH: &str = "lattice.length";

/// The scale of `numeric` without precision.
pub(crate) const NUMERIC_SCALE: i8 = 10;
/// The largest precision of `numeric`.
pub(crate) const NUMERIC_PRECISION: u8 = 38;

/// A SQL type with its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TypeSpec {
    /// `boolean`.
    Boolean,
    /// `smallint`.
    SmallInt,
    /// `integer`.
    Integer,
    /// `bigint`.
    BigInt,
    /// `real`.
    Real,
    /// `double precision`.
    Double,
    /// `numeric(precision, scale)`.
    Numeric {
        /// Digits in all.
        precision: u8,
        /// Digits after the point.
        scale: i8,
    },
    /// `text`.
    Text,
    /// `varchar` or `varchar(n)`.
    Varchar(Option<u32>),
    /// `char(n)`.
    Char(u32),
    /// `bytea`.
    Bytea,
    /// `date`.
    Date,
    /// `time`.
    Time,
    /// `timestamp`.
    Timestamp,
    /// `timestamptz`.
    TimestampTz,
    /// `interval`.
    Interval,
    /// `uuid`.
    Uuid,
    /// `json`.
    Json,
    /// `jsonb`.
    Jsonb,
    /// `item[]`.
    Array(Box<TypeSpec>),
}

/// The time zone of `timestamptz`.
pub(crate) fn utc() -> Arc<str> {
    Arc::from("UTC")
}

impl TypeSpec {
    /// `numeric(precision, scale)`, checked.
    pub(crate) fn numeric(precision: u64, scale: i64) -> Result<TypeSpec> {
        let bad = |message: String| Err(Error::state(SqlState::INVALID_PARAMETER_VALUE, message));
        match (u8::try_from(precision), i8::try_from(scale)) {
            (Ok(precision @ 1..=NUMERIC_PRECISION), Ok(scale)) if scale >= 0 && scale.unsigned_abs() <= precision => {
                Ok(TypeSpec::Numeric { precision, scale })
            }
            (Ok(1..=NUMERIC_PRECISION), _) => {
                bad(format!("the scale of numeric must be between 0 and the precision, not {scale}"))
            }
            _ => bad(format!("the precision of numeric must be between 1 and {NUMERIC_PRECISION}, not {precision}")),
        }
    }

    /// The type of a definition or cast.
    pub(crate) fn from_sql(sql: &ast::DataType) -> Result<TypeSpec> {
        use ast::DataType as T;
        let spec = match sql {
            T::Bool | T::Boolean => TypeSpec::Boolean,
            T::TinyInt(_) | T::SmallInt(_) | T::Int2(_) | T::Int16 => TypeSpec::SmallInt,
            T::Int(_) | T::Integer(_) | T::Int4(_) | T::MediumInt(_) | T::Int32 => TypeSpec::Integer,
            T::BigInt(_) | T::Int8(_) | T::Int64 => TypeSpec::BigInt,
            T::Real | T::Float4 | T::Float32 => TypeSpec::Real,
            T::Float(ExactNumberInfo::Precision(bits @ 1..=24)) if *bits > 0 => TypeSpec::Real,
            T::Float(ExactNumberInfo::None | ExactNumberInfo::Precision(25..=53))
            | T::Float8
            | T::Float64
            | T::Double(ExactNumberInfo::None)
            | T::DoublePrecision => TypeSpec::Double,
            T::Numeric(info) | T::Decimal(info) | T::Dec(info) => match info {
                ExactNumberInfo::None => TypeSpec::Numeric { precision: NUMERIC_PRECISION, scale: NUMERIC_SCALE },
                ExactNumberInfo::Precision(precision) => TypeSpec::numeric(*precision, 0)?,
                ExactNumberInfo::PrecisionAndScale(precision, scale) => TypeSpec::numeric(*precision, *scale)?,
            },
            T::Text | T::String(None) | T::Clob(None) => TypeSpec::Text,
            T::Varchar(length) | T::CharacterVarying(length) | T::CharVarying(length) => {
                TypeSpec::Varchar(characters(length)?)
            }
            T::Char(length) | T::Character(length) => TypeSpec::Char(characters(length)?.unwrap_or(1)),
            T::Bytea => TypeSpec::Bytea,
            T::Date => TypeSpec::Date,
            T::Time(precision, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
                micros(precision, "time")?;
                TypeSpec::Time
            }
            T::Timestamp(precision, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => {
                micros(precision, "timestamptz")?;
                TypeSpec::TimestampTz
            }
            T::Timestamp(precision, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
                micros(precision, "timestamp")?;
                TypeSpec::Timestamp
            }
            T::Interval { fields: None, precision: None } => TypeSpec::Interval,
            T::Uuid => TypeSpec::Uuid,
            T::JSON => TypeSpec::Json,
            T::JSONB => TypeSpec::Jsonb,
            T::Array(ArrayElemTypeDef::SquareBracket(item, _) | ArrayElemTypeDef::AngleBracket(item)) => {
                match TypeSpec::from_sql(item)? {
                    TypeSpec::Array(_) => return Err(Error::unsupported("an array of arrays as a type")),
                    item => TypeSpec::Array(Box::new(item)),
                }
            }
            T::Custom(name, modifiers) => return TypeSpec::named(&crate::parse::name_parts(name), modifiers),
            other => return Err(Error::unsupported(format!("the type {other}"))),
        };
        Ok(spec)
    }

    /// A type that sqlparser has no keyword for.
    fn named(parts: &[String], modifiers: &[String]) -> Result<TypeSpec> {
        let name = match parts {
            [name] => name.as_str(),
            [schema, name] if schema == "pg_catalog" => name.as_str(),
            _ => return Err(unknown(&parts.join("."))),
        };
        if modifiers.is_empty()
            && let Some(spec) = TypeSpec::plain(name)
        {
            return Ok(spec);
        }
        match name {
            "vector" | "halfvec" | "sparsevec" | "set" | "enum" | "money" | "xml" | "inet" | "cidr" | "macaddr"
            | "tsvector" | "tsquery" | "regclass" | "regtype" | "regproc" | "regnamespace" => {
                Err(Error::unsupported(format!("the type {name}")))
            }
            "serial" | "bigserial" | "smallserial" | "serial2" | "serial4" | "serial8" => {
                Err(Error::unsupported(format!("the type {name} outside CREATE TABLE")))
            }
            _ => Err(unknown(name)),
        }
    }

    /// A type without parameters by any of its names.
    fn plain(name: &str) -> Option<TypeSpec> {
        Some(match name {
            "boolean" | "bool" => TypeSpec::Boolean,
            "smallint" | "int2" | "tinyint" => TypeSpec::SmallInt,
            "integer" | "int" | "int4" => TypeSpec::Integer,
            // Object ids have 32 bits without sign in PostgreSQL.
            "bigint" | "int8" | "oid" | "xid" => TypeSpec::BigInt,
            "real" | "float4" => TypeSpec::Real,
            "double precision" | "double" | "float8" | "float" => TypeSpec::Double,
            "numeric" | "decimal" => TypeSpec::Numeric { precision: NUMERIC_PRECISION, scale: NUMERIC_SCALE },
            "text" | "name" | "string" => TypeSpec::Text,
            "varchar" | "character varying" => TypeSpec::Varchar(None),
            "char" | "character" | "bpchar" => TypeSpec::Char(1),
            "bytea" => TypeSpec::Bytea,
            "date" => TypeSpec::Date,
            "time" | "time without time zone" => TypeSpec::Time,
            "timestamp" | "timestamp without time zone" => TypeSpec::Timestamp,
            "timestamptz" | "timestamp with time zone" => TypeSpec::TimestampTz,
            "interval" => TypeSpec::Interval,
            "uuid" => TypeSpec::Uuid,
            "json" => TypeSpec::Json,
            "jsonb" => TypeSpec::Jsonb,
            _ => return None,
        })
    }

    /// Reads a name as [`TypeSpec::name`] and [`TypeSpec::display`] print it.
    pub(crate) fn parse(text: &str) -> Result<TypeSpec> {
        let text = text.trim();
        if let Some(item) = text.strip_suffix("[]") {
            return Ok(TypeSpec::Array(Box::new(TypeSpec::parse(item)?)));
        }
        let Some((name, rest)) = text.split_once('(') else {
            return TypeSpec::plain(&text.to_lowercase()).ok_or_else(|| unknown(text));
        };
        let numbers: Vec<i64> = rest
            .trim_end()
            .strip_suffix(')')
            .and_then(|list| list.split(',').map(|number| number.trim().parse().ok()).collect())
            .ok_or_else(|| unknown(text))?;
        match (name.trim().to_lowercase().as_str(), numbers.as_slice()) {
            ("numeric" | "decimal", [precision]) => TypeSpec::numeric(precision.unsigned_abs(), 0),
            ("numeric" | "decimal", [precision, scale]) => TypeSpec::numeric(precision.unsigned_abs(), *scale),
            ("varchar" | "character varying", [length]) => {
                Ok(TypeSpec::Varchar(Some(checked_length(length.unsigned_abs())?)))
            }
            ("char" | "character" | "bpchar", [length]) => Ok(TypeSpec::Char(checked_length(length.unsigned_abs())?)),
            _ => Err(unknown(text)),
        }
    }

    /// The type that a field of ours, or of a client, has.
    pub(crate) fn from_field(field: &Field) -> Result<TypeSpec> {
        let metadata = |key: &str| field.metadata().get(key).map(String::as_str);
        match (metadata(EXTENSION), field.data_type()) {
            (Some("arrow.uuid"), DataType::FixedSizeBinary(16)) => return Ok(TypeSpec::Uuid),
            (Some("arrow.json"), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => {
                return Ok(if metadata(TYPE) == Some("jsonb") { TypeSpec::Jsonb } else { TypeSpec::Json });
            }
            _ => {}
        }
        if let (Some(kind), DataType::Utf8) = (metadata(TYPE), field.data_type()) {
            let length = metadata(LENGTH).and_then(|length| length.parse().ok());
            match kind {
                "varchar" => return Ok(TypeSpec::Varchar(length)),
                "char" => return Ok(TypeSpec::Char(length.unwrap_or(1))),
                _ => {}
            }
        }
        TypeSpec::from_arrow(field.data_type())
    }

    /// The type nearest to an Arrow type: what a client's batch becomes when it creates a table.
    pub(crate) fn from_arrow(data_type: &DataType) -> Result<TypeSpec> {
        Ok(match data_type {
            DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => TypeSpec::Text,
            DataType::Boolean => TypeSpec::Boolean,
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => TypeSpec::SmallInt,
            DataType::Int32 | DataType::UInt16 => TypeSpec::Integer,
            DataType::Int64 | DataType::UInt32 => TypeSpec::BigInt,
            DataType::UInt64 => TypeSpec::Numeric { precision: 20, scale: 0 },
            DataType::Float16 | DataType::Float32 => TypeSpec::Real,
            DataType::Float64 => TypeSpec::Double,
            DataType::Decimal32(precision, scale)
            | DataType::Decimal64(precision, scale)
            | DataType::Decimal128(precision, scale)
            | DataType::Decimal256(precision, scale) => TypeSpec::numeric(u64::from(*precision), i64::from(*scale))?,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                TypeSpec::Bytea
            }
            DataType::Date32 | DataType::Date64 => TypeSpec::Date,
            DataType::Time32(_) | DataType::Time64(_) => TypeSpec::Time,
            DataType::Timestamp(_, None) => TypeSpec::Timestamp,
            DataType::Timestamp(_, Some(_)) => TypeSpec::TimestampTz,
            DataType::Interval(_) | DataType::Duration(_) => TypeSpec::Interval,
            DataType::Dictionary(_, value) => TypeSpec::from_arrow(value)?,
            DataType::RunEndEncoded(_, value) => TypeSpec::from_field(value)?,
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::ListView(item)
            | DataType::LargeListView(item)
            | DataType::FixedSizeList(item, _) => TypeSpec::Array(Box::new(TypeSpec::from_field(item)?)),
            other => return Err(Error::unsupported(format!("the Arrow type {other} in a table"))),
        })
    }

    /// The Arrow type of its values.
    pub(crate) fn data_type(&self) -> DataType {
        match self {
            TypeSpec::Boolean => DataType::Boolean,
            TypeSpec::SmallInt => DataType::Int16,
            TypeSpec::Integer => DataType::Int32,
            TypeSpec::BigInt => DataType::Int64,
            TypeSpec::Real => DataType::Float32,
            TypeSpec::Double => DataType::Float64,
            TypeSpec::Numeric { precision, scale } => DataType::Decimal128(*precision, *scale),
            TypeSpec::Text | TypeSpec::Varchar(_) | TypeSpec::Char(_) | TypeSpec::Json | TypeSpec::Jsonb => {
                DataType::Utf8
            }
            TypeSpec::Bytea => DataType::Binary,
            TypeSpec::Date => DataType::Date32,
            TypeSpec::Time => DataType::Time64(TimeUnit::Microsecond),
            TypeSpec::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            TypeSpec::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some(utc())),
            TypeSpec::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
            TypeSpec::Uuid => DataType::FixedSizeBinary(16),
            TypeSpec::Array(item) => DataType::List(Arc::new(item.field("item", true))),
        }
    }

    /// What the Arrow type does not say.
    fn metadata(&self) -> HashMap<String, String> {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        match self {
            TypeSpec::Uuid => HashMap::from([pair(EXTENSION, "arrow.uuid")]),
            TypeSpec::Json => HashMap::from([pair(EXTENSION, "arrow.json")]),
            TypeSpec::Jsonb => HashMap::from([pair(EXTENSION, "arrow.json"), pair(TYPE, "jsonb")]),
            TypeSpec::Varchar(Some(length)) => {
                HashMap::from([pair(TYPE, "varchar"), pair(LENGTH, &length.to_string())])
            }
            TypeSpec::Char(length) => HashMap::from([pair(TYPE, "char"), pair(LENGTH, &length.to_string())]),
            _ => HashMap::new(),
        }
    }

    /// A field of this type, with its metadata.
    pub(crate) fn field(&self, name: &str, nullable: bool) -> Field {
        Field::new(name, self.data_type(), nullable).with_metadata(self.metadata())
    }

    /// A nullable field of this type, as casts and parameters want it.
    pub(crate) fn field_ref(&self, name: &str) -> FieldRef {
        Arc::new(self.field(name, true))
    }

    /// The longest text allowed, in characters.
    pub(crate) fn length(&self) -> Option<usize> {
        match self {
            TypeSpec::Varchar(Some(length)) | TypeSpec::Char(length) => usize::try_from(*length).ok(),
            _ => None,
        }
    }

    /// The short name, as the catalog keeps it: `integer`, `numeric(15,2)`, `varchar(10)`, `timestamptz`, `text[]`.
    pub(crate) fn name(&self) -> String {
        match self {
            TypeSpec::Varchar(None) => "varchar".to_owned(),
            TypeSpec::Varchar(Some(length)) => format!("varchar({length})"),
            TypeSpec::Char(length) => format!("char({length})"),
            TypeSpec::Time => "time".to_owned(),
            TypeSpec::Timestamp => "timestamp".to_owned(),
            TypeSpec::TimestampTz => "timestamptz".to_owned(),
            TypeSpec::Array(item) => format!("{}[]", item.name()),
            other => other.display(),
        }
    }

    /// The name as PostgreSQL displays it: `character varying(10)`, `timestamp with time zone`.
    pub(crate) fn display(&self) -> String {
        match self {
            TypeSpec::Boolean => "boolean".to_owned(),
            TypeSpec::SmallInt => "smallint".to_owned(),
            TypeSpec::Integer => "integer".to_owned(),
            TypeSpec::BigInt => "bigint".to_owned(),
            TypeSpec::Real => "real".to_owned(),
            TypeSpec::Double => "double precision".to_owned(),
            TypeSpec::Numeric { precision, scale } => format!("numeric({precision},{scale})"),
            TypeSpec::Text => "text".to_owned(),
            TypeSpec::Varchar(None) => "character varying".to_owned(),
            TypeSpec::Varchar(Some(length)) => format!("character varying({length})"),
            TypeSpec::Char(length) => format!("character({length})"),
            TypeSpec::Bytea => "bytea".to_owned(),
            TypeSpec::Date => "date".to_owned(),
            TypeSpec::Time => "time without time zone".to_owned(),
            TypeSpec::Timestamp => "timestamp without time zone".to_owned(),
            TypeSpec::TimestampTz => "timestamp with time zone".to_owned(),
            TypeSpec::Interval => "interval".to_owned(),
            TypeSpec::Uuid => "uuid".to_owned(),
            TypeSpec::Json => "json".to_owned(),
            TypeSpec::Jsonb => "jsonb".to_owned(),
            TypeSpec::Array(item) => format!("{}[]", item.display()),
        }
    }

    /// The name without parameters, as `pg_typeof` says it.
    pub(crate) fn base_name(&self) -> String {
        match self {
            TypeSpec::Numeric { .. } => "numeric".to_owned(),
            TypeSpec::Varchar(_) => "character varying".to_owned(),
            TypeSpec::Char(_) => "character".to_owned(),
            TypeSpec::Array(item) => format!("{}[]", item.base_name()),
            other => other.display(),
        }
    }

    /// Digits or characters, and digits after the point, as JDBC and the information schema ask for them.
    pub(crate) fn precision(&self) -> (Option<i32>, Option<i32>) {
        match self {
            TypeSpec::SmallInt => (Some(5), Some(0)),
            TypeSpec::Integer => (Some(10), Some(0)),
            TypeSpec::BigInt => (Some(19), Some(0)),
            TypeSpec::Real => (Some(8), None),
            TypeSpec::Double => (Some(17), None),
            TypeSpec::Numeric { precision, scale } => (Some(i32::from(*precision)), Some(i32::from(*scale))),
            TypeSpec::Varchar(Some(length)) | TypeSpec::Char(length) => (i32::try_from(*length).ok(), None),
            _ => (None, None),
        }
    }

    /// Whether it is `json` or `jsonb`.
    pub(crate) fn is_json(&self) -> bool {
        matches!(self, TypeSpec::Json | TypeSpec::Jsonb)
    }

    /// Whether it is a text.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, TypeSpec::Text | TypeSpec::Varchar(_) | TypeSpec::Char(_))
    }
}

impl fmt::Display for TypeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display())
    }
}

fn unknown(name: &str) -> Error {
    Error::state(SqlState::UNDEFINED_OBJECT, format!("type \"{name}\" does not exist"))
}

fn characters(length: &Option<CharacterLength>) -> Result<Option<u32>> {
    match length {
        None | Some(CharacterLength::Max) => Ok(None),
        Some(CharacterLength::IntegerLength { length, unit: None | Some(ast::CharLengthUnits::Characters) }) => {
            checked_length(*length).map(Some)
        }
        Some(CharacterLength::IntegerLength { .. }) => Err(Error::unsupported("a length in bytes")),
    }
}

/// PostgreSQL's limit.
fn checked_length(length: u64) -> Result<u32> {
    match u32::try_from(length) {
        Ok(length @ 1..=10_485_760) => Ok(length),
        _ => Err(Error::state(
            SqlState::INVALID_PARAMETER_VALUE,
            format!("the length of a text type must be between 1 and 10485760, not {length}"),
        )),
    }
}

/// Times have microseconds; a smaller precision would have to round every value.
fn micros(precision: &Option<u64>, name: &str) -> Result<()> {
    match precision {
        None | Some(6) => Ok(()),
        Some(digits) => {
            Err(Error::unsupported(format!("{name}({digits})"))
                .with_hint("times keep microseconds, which is precision 6"))
        }
    }
}

/// Maps SQL types in casts for DataFusion's planner.
#[derive(Debug)]
struct Types;

impl TypePlanner for Types {
    fn plan_type_field(&self, sql_type: &ast::DataType) -> datafusion::error::Result<Option<FieldRef>> {
        Ok(Some(TypeSpec::from_sql(sql_type)?.field_ref("")))
    }
}

/// The planner for type names.
pub(crate) fn type_planner() -> Arc<dyn TypePlanner> {
    Arc::new(Types)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(text: &str) -> Result<TypeSpec> {
        let expr = crate::parse::parse_expr(&format!("CAST(x AS {text})"))?;
        let ast::Expr::Cast { data_type, .. } = expr else { panic!("no cast: {expr}") };
        TypeSpec::from_sql(&data_type)
    }

    fn all() -> Vec<TypeSpec> {
        let mut all = vec![
            TypeSpec::Boolean,
            TypeSpec::SmallInt,
            TypeSpec::Integer,
            TypeSpec::BigInt,
            TypeSpec::Real,
            TypeSpec::Double,
            TypeSpec::Numeric { precision: 15, scale: 2 },
            TypeSpec::Text,
            TypeSpec::Varchar(Some(10)),
            TypeSpec::Char(3),
            TypeSpec::Bytea,
            TypeSpec::Date,
            TypeSpec::Time,
            TypeSpec::Timestamp,
            TypeSpec::TimestampTz,
            TypeSpec::Interval,
            TypeSpec::Uuid,
            TypeSpec::Json,
            TypeSpec::Jsonb,
        ];
        all.extend(all.clone().into_iter().map(|item| TypeSpec::Array(Box::new(item))));
        all
    }

    #[test]
    fn names_read_back() {
        for spec in all().into_iter().chain([TypeSpec::Varchar(None)]) {
            assert_eq!(TypeSpec::parse(&spec.name()).unwrap(), spec, "{}", spec.name());
            assert_eq!(TypeSpec::parse(&spec.display()).unwrap(), spec, "{}", spec.display());
        }
        assert_eq!(TypeSpec::parse("character varying(10)").unwrap().display(), "character varying(10)");
        assert!(TypeSpec::parse("numeric(40,2)").is_err());
        assert!(TypeSpec::parse("nonsense").is_err());
    }

    #[test]
    fn fields_read_back() {
        for spec in all() {
            assert_eq!(TypeSpec::from_field(&spec.field("c", true)).unwrap(), spec, "{spec}");
        }
    }

    #[test]
    fn sql_names_are_known() {
        let cases = [
            ("int", TypeSpec::Integer),
            ("int4", TypeSpec::Integer),
            ("int8", TypeSpec::BigInt),
            ("float", TypeSpec::Double),
            ("float(10)", TypeSpec::Real),
            ("float(30)", TypeSpec::Double),
            ("decimal", TypeSpec::Numeric { precision: 38, scale: 10 }),
            ("numeric(5)", TypeSpec::Numeric { precision: 5, scale: 0 }),
            ("decimal(18,2)", TypeSpec::Numeric { precision: 18, scale: 2 }),
            ("varchar", TypeSpec::Varchar(None)),
            ("character varying(7)", TypeSpec::Varchar(Some(7))),
            ("char", TypeSpec::Char(1)),
            ("bpchar", TypeSpec::Char(1)),
            ("timestamptz", TypeSpec::TimestampTz),
            ("timestamp with time zone", TypeSpec::TimestampTz),
            ("timestamp(6)", TypeSpec::Timestamp),
            ("time", TypeSpec::Time),
            ("text[]", TypeSpec::Array(Box::new(TypeSpec::Text))),
            ("int array", TypeSpec::Array(Box::new(TypeSpec::Integer))),
            ("pg_catalog.int4", TypeSpec::Integer),
            ("bytea", TypeSpec::Bytea),
        ];
        for (text, spec) in cases {
            match sql(text) {
                Ok(found) => assert_eq!(found, spec, "{text}"),
                // sqlparser does not read the word ARRAY after a type.
                Err(error) => assert_eq!(text, "int array", "{text}: {error}"),
            }
        }
        assert_eq!(sql("nonsense").unwrap_err().sqlstate, SqlState::UNDEFINED_OBJECT);
        for text in ["timestamp(3)", "vector(3)", "time with time zone", "regclass"] {
            assert_eq!(sql(text).unwrap_err().sqlstate, SqlState::FEATURE_NOT_SUPPORTED, "{text}");
        }
        for text in ["numeric(50, 2)", "numeric(3, 5)", "varchar(0)"] {
            assert_eq!(sql(text).unwrap_err().sqlstate, SqlState::INVALID_PARAMETER_VALUE, "{text}");
        }
    }
}
