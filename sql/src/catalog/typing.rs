//! SQL types as the catalog writes them: a canonical text, and the Arrow form behind it.
//!
//! `numeric` without precision is `numeric(38,9)`: storage has no unbounded decimals.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, TimeUnit};
use base::SqlState;
use sqlparser::ast::{self, ArrayElemTypeDef, CharacterLength, ExactNumberInfo, TimezoneInfo};

use crate::{Error, Result};

/// Metadata key of Arrow extension types.
pub(crate) const EXTENSION: &str = "ARROW:extension:name";

/// A SQL type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SqlType {
    name: String,
    data_type: DataType,
    extension: Option<&'static str>,
    /// The longest text allowed, in characters.
    length: Option<usize>,
}

impl SqlType {
    fn plain(name: &str, data_type: DataType) -> Self {
        Self { name: name.to_owned(), data_type, extension: None, length: None }
    }

    fn decimal(precision: u8, scale: i8) -> Result<Self> {
        if precision == 0 || precision > 38 {
            return Err(Error::state(SqlState::INVALID_PARAMETER_VALUE, format!("numeric precision {precision} must be between 1 and 38")));
        }
        if scale < 0 || i16::from(scale) > i16::from(precision) {
            return Err(Error::state(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("numeric scale {scale} must be between 0 and precision {precision}"),
            ));
        }
        Ok(Self::plain(&format!("numeric({precision},{scale})"), DataType::Decimal128(precision, scale)))
    }

    fn text(name: &str, length: Option<u64>) -> Self {
        let length = length.and_then(|length| usize::try_from(length).ok());
        let name = length.map_or_else(|| name.to_owned(), |length| format!("{name}({length})"));
        Self { name, data_type: DataType::Utf8, extension: None, length }
    }

    fn array(&self) -> Self {
        let item = Arc::new(Field::new("item", self.data_type.clone(), true).with_metadata(self.metadata()));
        Self::plain(&format!("{}[]", self.name), DataType::List(item))
    }

    /// The canonical text.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The Arrow type.
    pub(crate) fn data_type(&self) -> &DataType {
        &self.data_type
    }

    /// The longest text allowed.
    pub(crate) fn length(&self) -> Option<usize> {
        self.length
    }

    fn metadata(&self) -> HashMap<String, String> {
        self.extension.map(|name| HashMap::from([(EXTENSION.to_owned(), name.to_owned())])).unwrap_or_default()
    }

    /// A field of this type.
    pub(crate) fn field(&self, name: &str, nullable: bool) -> Field {
        Field::new(name, self.data_type.clone(), nullable).with_metadata(self.metadata())
    }

    /// A nullable field, as casts want it.
    pub(crate) fn field_ref(&self, name: &str) -> FieldRef {
        Arc::new(self.field(name, true))
    }

    /// Digits or characters, and digits after the point, as JDBC asks for them.
    pub(crate) fn precision(&self) -> (Option<i32>, Option<i32>) {
        match &self.data_type {
            DataType::Int16 => (Some(5), Some(0)),
            DataType::Int32 => (Some(10), Some(0)),
            DataType::Int64 => (Some(19), Some(0)),
            DataType::Float32 => (Some(8), None),
            DataType::Float64 => (Some(17), None),
            DataType::Decimal128(precision, scale) => (Some(i32::from(*precision)), Some(i32::from(*scale))),
            DataType::Utf8 => (self.length.and_then(|length| i32::try_from(length).ok()), None),
            _ => (None, None),
        }
    }

    /// Reads the canonical text.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if let Some(item) = text.strip_suffix("[]") {
            return Ok(Self::parse(item)?.array());
        }
        let (name, arguments) = match text.split_once('(') {
            Some((name, rest)) => {
                (name, rest.trim_end_matches(')').split(',').filter_map(|number| number.trim().parse::<u64>().ok()).collect())
            }
            None => (text, Vec::new()),
        };
        Ok(match name {
            "boolean" => Self::plain(name, DataType::Boolean),
            "smallint" => Self::plain(name, DataType::Int16),
            "integer" => Self::plain(name, DataType::Int32),
            "bigint" => Self::plain(name, DataType::Int64),
            "real" => Self::plain(name, DataType::Float32),
            "double precision" => Self::plain(name, DataType::Float64),
            "numeric" => {
                let at = |index: usize, other: u64| u8::try_from(arguments.get(index).copied().unwrap_or(other)).unwrap_or(u8::MAX);
                Self::decimal(at(0, 38), i8::try_from(at(1, 9)).unwrap_or(i8::MAX))?
            }
            "text" => Self::text(name, None),
            "varchar" | "char" => Self::text(name, arguments.first().copied()),
            "bytea" => Self::plain(name, DataType::Binary),
            "date" => Self::plain(name, DataType::Date32),
            "time" => Self::plain(name, DataType::Time64(TimeUnit::Microsecond)),
            "timestamp" => Self::plain(name, DataType::Timestamp(TimeUnit::Microsecond, None)),
            "timestamptz" => Self::plain(name, DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))),
            "interval" => Self::plain(name, DataType::Interval(IntervalUnit::MonthDayNano)),
            "uuid" => Self { extension: Some("arrow.uuid"), ..Self::plain(name, DataType::FixedSizeBinary(16)) },
            "json" | "jsonb" => Self { extension: Some("arrow.json"), ..Self::plain(name, DataType::Utf8) },
            other => return Err(Error::state(SqlState::UNDEFINED_OBJECT, format!("type \"{other}\" does not exist"))),
        })
    }

    /// Reads a type of a statement.
    pub(crate) fn from_ast(sql: &ast::DataType) -> Result<Self> {
        use ast::DataType as T;
        let number = |info: &ExactNumberInfo| match info {
            ExactNumberInfo::None => Self::decimal(38, 9),
            ExactNumberInfo::Precision(precision) => Self::decimal(u8::try_from(*precision).unwrap_or(u8::MAX), 0),
            ExactNumberInfo::PrecisionAndScale(precision, scale) => {
                Self::decimal(u8::try_from(*precision).unwrap_or(u8::MAX), i8::try_from(*scale).unwrap_or(i8::MAX))
            }
        };
        let length = |info: &Option<CharacterLength>| match info {
            Some(CharacterLength::IntegerLength { length, .. }) => Some(*length),
            Some(CharacterLength::Max) | None => None,
        };
        Ok(match sql {
            T::Bool | T::Boolean => Self::parse("boolean")?,
            T::TinyInt(_) | T::SmallInt(_) | T::Int2(_) | T::Int16 => Self::parse("smallint")?,
            T::Int(_) | T::Integer(_) | T::Int4(_) | T::MediumInt(_) | T::Int32 => Self::parse("integer")?,
            T::BigInt(_) | T::Int8(_) | T::Int64 => Self::parse("bigint")?,
            T::Real | T::Float4 | T::Float32 => Self::parse("real")?,
            T::Float(ExactNumberInfo::Precision(bits)) if *bits <= 24 => Self::parse("real")?,
            T::Float(_) | T::Float8 | T::Float64 | T::Double(_) | T::DoublePrecision => Self::parse("double precision")?,
            T::Numeric(info) | T::Decimal(info) | T::Dec(info) => number(info)?,
            T::Text | T::String(_) | T::TinyText | T::MediumText | T::LongText | T::Clob(_) => Self::parse("text")?,
            T::Varchar(info) | T::CharacterVarying(info) | T::CharVarying(info) | T::Nvarchar(info) => Self::text("varchar", length(info)),
            T::Char(info) | T::Character(info) => Self::text("char", Some(length(info).unwrap_or(1))),
            T::Bytea | T::Blob(_) | T::Binary(_) | T::Varbinary(_) | T::Bytes(_) => Self::parse("bytea")?,
            T::Date | T::Date32 => Self::parse("date")?,
            T::Time(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => Self::parse("time")?,
            T::Timestamp(_, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => Self::parse("timestamptz")?,
            T::Timestamp(_, _) | T::Datetime(_) | T::TimestampNtz(_) => Self::parse("timestamp")?,
            T::Interval { .. } => Self::parse("interval")?,
            T::Uuid => Self::parse("uuid")?,
            T::JSON => Self::parse("json")?,
            T::JSONB => Self::parse("jsonb")?,
            T::Array(ArrayElemTypeDef::AngleBracket(item) | ArrayElemTypeDef::SquareBracket(item, _) | ArrayElemTypeDef::Parenthesis(item)) => {
                Self::from_ast(item)?.array()
            }
            T::Custom(name, _) => match name.to_string().to_lowercase().as_str() {
                "timestamptz" => Self::parse("timestamptz")?,
                "bool" => Self::parse("boolean")?,
                "name" => Self::parse("text")?,
                other => return Err(Error::state(SqlState::UNDEFINED_OBJECT, format!("type \"{other}\" does not exist"))),
            },
            other => return Err(Error::unsupported(format!("type {other}"))),
        })
    }

    /// The type for Arrow data of a client.
    pub(crate) fn from_arrow(field: &Field) -> Result<Self> {
        match field.metadata().get(EXTENSION).map(String::as_str) {
            Some("arrow.uuid") if *field.data_type() == DataType::FixedSizeBinary(16) => return Self::parse("uuid"),
            Some("arrow.json") => return Self::parse("json"),
            _ => {}
        }
        Ok(match field.data_type() {
            DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::parse("text")?,
            DataType::Boolean => Self::parse("boolean")?,
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => Self::parse("smallint")?,
            DataType::Int32 | DataType::UInt16 => Self::parse("integer")?,
            DataType::Int64 | DataType::UInt32 => Self::parse("bigint")?,
            DataType::UInt64 => Self::decimal(20, 0)?,
            DataType::Float16 | DataType::Float32 => Self::parse("real")?,
            DataType::Float64 => Self::parse("double precision")?,
            DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) | DataType::Decimal128(precision, scale) => {
                Self::decimal(*precision, *scale)?
            }
            DataType::Decimal256(precision, scale) => Self::decimal((*precision).min(38), *scale)?,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => Self::parse("bytea")?,
            DataType::Date32 | DataType::Date64 => Self::parse("date")?,
            DataType::Time32(_) | DataType::Time64(_) => Self::parse("time")?,
            DataType::Timestamp(_, None) => Self::parse("timestamp")?,
            DataType::Timestamp(_, Some(_)) => Self::parse("timestamptz")?,
            DataType::Interval(_) | DataType::Duration(_) => Self::parse("interval")?,
            DataType::Dictionary(_, value) => Self::from_arrow(&Field::new(field.name(), value.as_ref().clone(), true))?,
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) | DataType::ListView(item) => {
                Self::from_arrow(item)?.array()
            }
            other => return Err(Error::unsupported(format!("storing Arrow type {other}"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_names_read_back() {
        for name in ["boolean", "numeric(18,2)", "varchar(20)", "text", "timestamptz", "uuid", "jsonb", "integer[]", "double precision"] {
            assert_eq!(SqlType::parse(name).unwrap().name(), name);
        }
        assert!(SqlType::parse("numeric(40,2)").is_err());
    }
}
