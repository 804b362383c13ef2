//! What the server says of itself (`GetSqlInfo`) and of its types (`GetXdbcTypeInfo`).
//!
//! The child of the union that a value sits in matters: the JDBC driver casts and the ODBC driver reads memory by it. Where the
//! protocol's text and those drivers disagree, the drivers win (SQL-INFO-1).
//!
//! # Invariants
//! - SQL-INFO-1 identifier case, quoted identifier case, null ordering and default isolation (503, 505, 507, 562) are 64-bit, because
//!   both drivers read them so; bit masks are 32-bit. Test: `values_sit_where_drivers_look`.
//! - SQL-INFO-2 an empty list of ids means all of them. Test: `ids_select`.
//! - SQL-INFO-3 the map of conversions has fields named `key` and `value`. Test: `values_sit_where_drivers_look`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, MapArray, RecordBatch, StructArray, UnionArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, UInt32Type};
use arrow_flight::sql::metadata::{
    SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::{
    Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlOuterJoinsSupportLevel, SqlSupportedCaseSensitivity,
    SqlSupportedElementActions, SqlSupportedGroupBy, SqlSupportedResultSetConcurrency, SqlSupportedResultSetType,
    SqlSupportedSubqueries, SqlSupportedTransaction, SqlSupportedUnions, SqlSupportsConvert,
    SqlTransactionIsolationLevel, SupportedSqlGrammar, XdbcDataType, XdbcDatetimeSubcode,
};

use crate::error::{Error, Result};

/// Words that are reserved here and not in SQL-92, as JDBC's `getSQLKeywords` wants them.
const KEYWORDS: &[&str] = &[
    "ANALYZE",
    "ANN",
    "ASOF",
    "AT",
    "BEFORE",
    "CHANGES",
    "CONFLICT",
    "COPY",
    "DESCRIBE",
    "DETERMINISTIC",
    "DO",
    "EXCLUDE",
    "EXPLAIN",
    "GENERATED",
    "IDENTITY",
    "IF",
    "ILIKE",
    "INDEX",
    "LATERAL",
    "LIMIT",
    "MATERIALIZED",
    "MERGE",
    "NOTHING",
    "OFFSET",
    "OVERLAPS",
    "PERIOD",
    "PORTION",
    "QUALIFY",
    "RECURSIVE",
    "REGEXP",
    "RETURNING",
    "SAVEPOINT",
    "SEQUENCE",
    "SHOW",
    "SYSTEM_TIME",
    "TABLESAMPLE",
    "TEMPORARY",
    "TRUNCATE",
    "UNNEST",
    "VACUUM",
    "VALID_TIME",
    "WINDOW",
];
const NUMERIC_FUNCTIONS: &[&str] = &[
    "abs",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "ceil",
    "ceiling",
    "cos",
    "cosh",
    "cot",
    "degrees",
    "div",
    "exp",
    "factorial",
    "floor",
    "gcd",
    "greatest",
    "isnan",
    "iszero",
    "lcm",
    "least",
    "ln",
    "log",
    "log10",
    "log2",
    "mod",
    "nanvl",
    "pi",
    "power",
    "radians",
    "random",
    "round",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
];
const STRING_FUNCTIONS: &[&str] = &[
    "ascii",
    "bit_length",
    "btrim",
    "char_length",
    "chr",
    "concat",
    "concat_ws",
    "contains",
    "ends_with",
    "initcap",
    "left",
    "length",
    "levenshtein",
    "lower",
    "lpad",
    "ltrim",
    "md5",
    "octet_length",
    "overlay",
    "position",
    "regexp_count",
    "regexp_like",
    "regexp_match",
    "regexp_replace",
    "repeat",
    "replace",
    "reverse",
    "right",
    "rpad",
    "rtrim",
    "sha256",
    "split_part",
    "starts_with",
    "string_agg",
    "strpos",
    "substr",
    "substring",
    "to_char",
    "to_hex",
    "translate",
    "trim",
    "upper",
];
const SYSTEM_FUNCTIONS: &[&str] =
    &["coalesce", "current_database", "current_schema", "current_user", "nullif", "session_user", "version"];
const DATETIME_FUNCTIONS: &[&str] = &[
    "age",
    "current_date",
    "current_time",
    "current_timestamp",
    "date_bin",
    "date_part",
    "date_trunc",
    "extract",
    "from_unixtime",
    "make_date",
    "now",
    "to_date",
    "to_timestamp",
];

/// What the server reports about itself, made once.
pub(crate) struct ServerInfo {
    sql: RecordBatch,
    xdbc: XdbcTypeInfoData,
}

impl ServerInfo {
    /// `timeouts` are the statement's and the transaction's, in milliseconds, 0 for none.
    pub(crate) fn new(version: &str, timeouts: (i32, i32)) -> Result<ServerInfo> {
        let all = sql_info(version, timeouts)?.record_batch([]).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(ServerInfo { sql: with_java_names(&all)?, xdbc: xdbc_info()? })
    }

    /// The values of some ids, or of all when none is named (SQL-INFO-2).
    pub(crate) fn sql(&self, ids: &[u32]) -> Result<RecordBatch> {
        if ids.is_empty() {
            return Ok(self.sql.clone());
        }
        let names = self.sql.column(0).as_primitive::<UInt32Type>();
        let chosen = BooleanArray::from_unary(names, |name| ids.contains(&name));
        Ok(filter_record_batch(&self.sql, &chosen)?)
    }

    pub(crate) fn xdbc(&self, data_type: Option<i32>) -> Result<RecordBatch> {
        self.xdbc.record_batch(data_type).map_err(|error| Error::Internal(error.to_string()))
    }
}

/// Renames the fields of the map inside the union from `keys` and `values`, as Arrow's builder has them, to `key` and `value`: Java
/// finds them by name (SQL-INFO-3).
fn with_java_names(batch: &RecordBatch) -> Result<RecordBatch> {
    let union = batch.column(1).as_union().clone();
    let (fields, type_ids, offsets, mut children) = union.into_parts();
    let mut renamed: Vec<(i8, FieldRef)> = fields.iter().map(|(id, field)| (id, Arc::clone(field))).collect();
    for (child, (_, field)) in children.iter_mut().zip(&mut renamed) {
        let Some(map) = child.as_any().downcast_ref::<MapArray>() else { continue };
        let (_, map_offsets, entries, nulls, ordered) = map.clone().into_parts();
        let (entry_fields, columns, entry_nulls) = entries.into_parts();
        let named = ["key", "value"].iter().zip(entry_fields.iter());
        let entry_fields: Fields = named.map(|(name, field)| field.as_ref().clone().with_name(*name)).collect();
        let entries = StructArray::try_new(entry_fields.clone(), columns, entry_nulls)?;
        let entry = Arc::new(Field::new("entries", DataType::Struct(entry_fields), false));
        let map = MapArray::try_new(entry, map_offsets, entries, nulls, ordered)?;
        *field = Arc::new(field.as_ref().clone().with_data_type(map.data_type().clone()));
        *child = Arc::new(map);
    }
    let union = UnionArray::try_new(renamed.into_iter().collect(), type_ids, offsets, children)?;
    let name = batch.schema().field(0).clone();
    let value = batch.schema().field(1).clone().with_data_type(union.data_type().clone());
    let schema = Schema::new(vec![name, value]);
    Ok(RecordBatch::try_new(Arc::new(schema), vec![Arc::clone(batch.column(0)), Arc::new(union)])?)
}

/// A bit mask of enum numbers.
fn mask(numbers: &[i32]) -> i32 {
    numbers.iter().fold(0, |mask, number| mask | 1 << number)
}

fn sql_info(version: &str, (statement_ms, transaction_ms): (i32, i32)) -> Result<SqlInfoData> {
    use SqlInfo as I;
    let mut info = SqlInfoDataBuilder::new();

    info.append(I::FlightSqlServerName, "LatticeDB");
    info.append(I::FlightSqlServerVersion, version);
    info.append(I::FlightSqlServerArrowVersion, arrow::ARROW_VERSION);
    info.append(I::FlightSqlServerReadOnly, false);
    info.append(I::FlightSqlServerSql, true);
    info.append(I::FlightSqlServerSubstrait, false);
    info.append(I::FlightSqlServerTransaction, SqlSupportedTransaction::Savepoint as i32);
    info.append(I::FlightSqlServerCancel, true);
    info.append(I::FlightSqlServerBulkIngestion, true);
    info.append(I::FlightSqlServerIngestTransactionsSupported, true);
    info.append(I::FlightSqlServerStatementTimeout, statement_ms);
    info.append(I::FlightSqlServerTransactionTimeout, transaction_ms);

    info.append(I::SqlDdlCatalog, false);
    info.append(I::SqlDdlSchema, true);
    info.append(I::SqlDdlTable, true);
    info.append(I::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i64);
    info.append(I::SqlIdentifierQuoteChar, "\"");
    info.append(I::SqlQuotedIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityUnknown as i64);
    info.append(I::SqlAllTablesAreSelectable, true);
    info.append(I::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i64);
    info.append(I::SqlKeywords, KEYWORDS);
    info.append(I::SqlNumericFunctions, NUMERIC_FUNCTIONS);
    info.append(I::SqlStringFunctions, STRING_FUNCTIONS);
    info.append(I::SqlSystemFunctions, SYSTEM_FUNCTIONS);
    info.append(I::SqlDatetimeFunctions, DATETIME_FUNCTIONS);
    info.append(I::SqlSearchStringEscape, "\\");
    info.append(I::SqlExtraNameCharacters, "$");
    info.append(I::SqlSupportsColumnAliasing, true);
    info.append(I::SqlNullPlusNullIsNull, true);
    info.append(I::SqlSupportsConvert, conversions());
    info.append(I::SqlSupportsTableCorrelationNames, true);
    info.append(I::SqlSupportsDifferentTableCorrelationNames, false);
    info.append(I::SqlSupportsExpressionsInOrderBy, true);
    info.append(I::SqlSupportsOrderByUnrelated, true);
    info.append(
        I::SqlSupportedGroupBy,
        mask(&[SqlSupportedGroupBy::SqlGroupByUnrelated as i32, SqlSupportedGroupBy::SqlGroupByBeyondSelect as i32]),
    );
    info.append(I::SqlSupportsLikeEscapeClause, true);
    info.append(I::SqlSupportsNonNullableColumns, true);
    info.append(
        I::SqlSupportedGrammar,
        mask(&[SupportedSqlGrammar::SqlMinimumGrammar as i32, SupportedSqlGrammar::SqlCoreGrammar as i32]),
    );
    // Entry level of SQL-92.
    info.append(I::SqlAnsi92SupportedLevel, mask(&[0]));
    info.append(I::SqlSupportsIntegrityEnhancementFacility, true);
    info.append(
        I::SqlOuterJoinsSupportLevel,
        mask(&[
            SqlOuterJoinsSupportLevel::SqlLimitedOuterJoins as i32,
            SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32,
        ]),
    );
    info.append(I::SqlSchemaTerm, "schema");
    info.append(I::SqlProcedureTerm, "procedure");
    info.append(I::SqlCatalogTerm, "catalog");
    info.append(I::SqlCatalogAtStart, true);
    info.append(
        I::SqlSchemasSupportedActions,
        mask(&[SqlSupportedElementActions::SqlElementInIndexDefinitions as i32]),
    );
    info.append(I::SqlCatalogsSupportedActions, 0_i32);
    info.append(I::SqlSupportedPositionedCommands, 0_i32);
    info.append(I::SqlSelectForUpdateSupported, false);
    info.append(I::SqlStoredProceduresSupported, false);
    info.append(
        I::SqlSupportedSubqueries,
        mask(&[
            SqlSupportedSubqueries::SqlSubqueriesInComparisons as i32,
            SqlSupportedSubqueries::SqlSubqueriesInExists as i32,
            SqlSupportedSubqueries::SqlSubqueriesInIns as i32,
        ]),
    );
    info.append(I::SqlCorrelatedSubqueriesSupported, true);
    info.append(
        I::SqlSupportedUnions,
        mask(&[SqlSupportedUnions::SqlUnion as i32, SqlSupportedUnions::SqlUnionAll as i32]),
    );

    // Limits; 0 means that there is none, or that it is not known.
    for unlimited in [
        I::SqlMaxBinaryLiteralLength,
        I::SqlMaxCharLiteralLength,
        I::SqlMaxColumnsInGroupBy,
        I::SqlMaxColumnsInIndex,
        I::SqlMaxColumnsInOrderBy,
        I::SqlMaxColumnsInSelect,
        I::SqlMaxColumnsInTable,
        I::SqlMaxConnections,
        I::SqlMaxCursorNameLength,
        I::SqlMaxIndexLength,
        I::SqlMaxProcedureNameLength,
        I::SqlMaxRowSize,
        I::SqlMaxStatementLength,
        I::SqlMaxStatements,
        I::SqlMaxTablesInSelect,
        I::SqlMaxUsernameLength,
    ] {
        info.append(unlimited, 0_i64);
    }
    for name_length in
        [I::SqlMaxColumnNameLength, I::SqlDbSchemaNameLength, I::SqlMaxCatalogNameLength, I::SqlMaxTableNameLength]
    {
        info.append(name_length, 0_i64);
    }
    info.append(I::SqlMaxRowSizeIncludesBlobs, true);

    info.append(I::SqlDefaultTransactionIsolation, SqlTransactionIsolationLevel::SqlTransactionRepeatableRead as i64);
    info.append(I::SqlTransactionsSupported, true);
    info.append(
        I::SqlSupportedTransactionsIsolationLevels,
        mask(&[
            SqlTransactionIsolationLevel::SqlTransactionReadUncommitted as i32,
            SqlTransactionIsolationLevel::SqlTransactionReadCommitted as i32,
            SqlTransactionIsolationLevel::SqlTransactionRepeatableRead as i32,
        ]),
    );
    info.append(I::SqlDataDefinitionCausesTransactionCommit, false);
    info.append(I::SqlDataDefinitionsInTransactionsIgnored, false);
    info.append(I::SqlSupportedResultSetTypes, mask(&[SqlSupportedResultSetType::SqlResultSetTypeForwardOnly as i32]));
    let read_only = mask(&[SqlSupportedResultSetConcurrency::SqlResultSetConcurrencyReadOnly as i32]);
    info.append(I::SqlSupportedConcurrenciesForResultSetUnspecified, 0_i32);
    info.append(I::SqlSupportedConcurrenciesForResultSetForwardOnly, read_only);
    info.append(I::SqlSupportedConcurrenciesForResultSetScrollSensitive, 0_i32);
    info.append(I::SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0_i32);
    info.append(I::SqlBatchUpdatesSupported, true);
    info.append(I::SqlSavepointsSupported, true);
    info.append(I::SqlNamedParametersSupported, false);
    info.append(I::SqlLocatorsUpdateCopy, false);
    info.append(I::SqlStoredFunctionsUsingCallSyntaxSupported, false);

    info.build().map_err(|error| Error::Internal(error.to_string()))
}

/// From which types to which others `CAST` goes.
fn conversions() -> BTreeMap<i32, Vec<i32>> {
    use SqlSupportsConvert as C;
    let numbers = [
        C::SqlConvertBigint,
        C::SqlConvertDecimal,
        C::SqlConvertFloat,
        C::SqlConvertInteger,
        C::SqlConvertNumeric,
        C::SqlConvertReal,
        C::SqlConvertSmallint,
    ];
    let texts = [C::SqlConvertChar, C::SqlConvertVarchar, C::SqlConvertLongvarchar];
    let times = [C::SqlConvertDate, C::SqlConvertTimestamp];
    let mut map = BTreeMap::new();
    let mut from = |types: &[C], to: &[&[C]]| {
        let to: Vec<i32> = to.iter().flat_map(|group| group.iter().map(|kind| *kind as i32)).collect();
        for kind in types {
            map.insert(*kind as i32, to.clone());
        }
    };
    from(&numbers, &[&numbers, &texts]);
    from(&texts, &[&numbers, &texts, &times, &[C::SqlConvertBit, C::SqlConvertTime]]);
    from(&times, &[&times, &texts]);
    from(&[C::SqlConvertTime], &[&texts]);
    from(&[C::SqlConvertBit], &[&texts, &[C::SqlConvertInteger]]);
    map
}

fn xdbc_info() -> Result<XdbcTypeInfoData> {
    use XdbcDataType as T;
    let plain = |name: &str, data_type: XdbcDataType| XdbcTypeInfo {
        type_name: name.to_owned(),
        data_type,
        column_size: None,
        literal_prefix: None,
        literal_suffix: None,
        create_params: None,
        nullable: Nullable::NullabilityNullable,
        case_sensitive: false,
        searchable: Searchable::Full,
        unsigned_attribute: None,
        fixed_prec_scale: false,
        auto_increment: Some(false),
        local_type_name: Some(name.to_owned()),
        minimum_scale: None,
        maximum_scale: None,
        sql_data_type: data_type,
        datetime_subcode: None,
        num_prec_radix: None,
        interval_precision: None,
    };
    let number = |name: &str, data_type, digits, radix| XdbcTypeInfo {
        column_size: Some(digits),
        unsigned_attribute: Some(false),
        searchable: Searchable::Basic,
        minimum_scale: Some(0),
        maximum_scale: Some(0),
        num_prec_radix: Some(radix),
        ..plain(name, data_type)
    };
    let quoted = |info: XdbcTypeInfo| XdbcTypeInfo {
        literal_prefix: Some("'".to_owned()),
        literal_suffix: Some("'".to_owned()),
        ..info
    };
    let moment = |name: &str, data_type, size, subcode| {
        quoted(XdbcTypeInfo {
            column_size: Some(size),
            searchable: Searchable::Basic,
            minimum_scale: Some(0),
            maximum_scale: Some(6),
            sql_data_type: T::XdbcDatetime,
            datetime_subcode: Some(subcode),
            ..plain(name, data_type)
        })
    };
    let mut types = XdbcTypeInfoDataBuilder::new();
    // Ordered by the type's number, as the protocol asks; the best match of a number comes first.
    types.append(quoted(plain("UUID", T::XdbcUnknownType)));
    types.append(quoted(plain("JSON", T::XdbcUnknownType)));
    types.append(plain("BOOLEAN", T::XdbcUnknownType));
    types.append(quoted(plain("BYTEA", T::XdbcUnknownType)));
    types.append(XdbcTypeInfo {
        maximum_scale: Some(38),
        create_params: params(&["precision", "scale"]),
        ..number("NUMERIC", T::XdbcNumeric, 38, 10)
    });
    types.append(XdbcTypeInfo {
        maximum_scale: Some(38),
        create_params: params(&["precision", "scale"]),
        ..number("DECIMAL", T::XdbcDecimal, 38, 10)
    });
    types.append(number("INTEGER", T::XdbcInteger, 10, 10));
    types.append(number("BIGINT", T::XdbcInteger, 19, 10));
    types.append(number("SMALLINT", T::XdbcSmallint, 5, 10));
    types.append(number("REAL", T::XdbcReal, 24, 2));
    types.append(number("DOUBLE PRECISION", T::XdbcDouble, 53, 2));
    types.append(quoted(XdbcTypeInfo { searchable: Searchable::Basic, ..plain("INTERVAL", T::XdbcInterval) }));
    types.append(quoted(XdbcTypeInfo { case_sensitive: true, ..plain("TEXT", T::XdbcVarchar) }));
    types.append(quoted(XdbcTypeInfo {
        case_sensitive: true,
        create_params: params(&["length"]),
        ..plain("VARCHAR", T::XdbcVarchar)
    }));
    types.append(moment("DATE", T::XdbcDate, 10, XdbcDatetimeSubcode::XdbcSubcodeYear));
    types.append(moment("TIME", T::XdbcTime, 15, XdbcDatetimeSubcode::XdbcSubcodeTime));
    types.append(moment("TIMESTAMP", T::XdbcTimestamp, 26, XdbcDatetimeSubcode::XdbcSubcodeTimestamp));
    types.append(moment(
        "TIMESTAMP WITH TIME ZONE",
        T::XdbcTimestamp,
        32,
        XdbcDatetimeSubcode::XdbcSubcodeTimestampWithTimezone,
    ));
    types.build().map_err(|error| Error::Internal(error.to_string()))
}

fn params(names: &[&str]) -> Option<Vec<String>> {
    Some(names.iter().map(|name| (*name).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, Int64Array, StringArray, UInt32Array};

    use super::*;

    fn info() -> ServerInfo {
        ServerInfo::new("1.2.3", (0, 5)).unwrap()
    }

    fn child(id: SqlInfo) -> (i8, arrow::array::ArrayRef) {
        let batch = info().sql(&[id as u32]).unwrap();
        assert_eq!(batch.num_rows(), 1);
        let union = batch.column(1).as_any().downcast_ref::<UnionArray>().unwrap();
        (union.type_id(0), union.value(0))
    }

    #[test]
    fn values_sit_where_drivers_look() {
        for id in [
            SqlInfo::SqlIdentifierCase,
            SqlInfo::SqlQuotedIdentifierCase,
            SqlInfo::SqlNullOrdering,
            SqlInfo::SqlDefaultTransactionIsolation,
            SqlInfo::SqlMaxTableNameLength,
        ] {
            let (slot, value) = child(id);
            assert_eq!(slot, 2, "{id:?}");
            assert!(value.as_any().is::<Int64Array>());
        }
        for id in [
            SqlInfo::FlightSqlServerTransaction,
            SqlInfo::SqlSupportedGroupBy,
            SqlInfo::SqlOuterJoinsSupportLevel,
            SqlInfo::SqlSupportedPositionedCommands,
            SqlInfo::SqlSupportedSubqueries,
            SqlInfo::SqlSupportedUnions,
            SqlInfo::SqlSupportedTransactionsIsolationLevels,
            SqlInfo::SqlSupportedGrammar,
            SqlInfo::SqlSupportedResultSetTypes,
        ] {
            assert_eq!(child(id).0, 3, "{id:?}");
        }
        let (_, transactions) = child(SqlInfo::FlightSqlServerTransaction);
        assert_eq!(transactions.as_any().downcast_ref::<Int32Array>().unwrap().value(0), 2);
        let (slot, name) = child(SqlInfo::FlightSqlServerName);
        assert_eq!(slot, 0);
        assert_eq!(name.as_any().downcast_ref::<StringArray>().unwrap().value(0), "LatticeDB");
        assert_eq!(child(SqlInfo::SqlKeywords).0, 4);
        let (slot, convert) = child(SqlInfo::SqlSupportsConvert);
        assert_eq!(slot, 5);
        let convert = convert.as_map();
        let names: Vec<&str> = convert.entries().fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, ["key", "value"]);
        assert!(convert.entries().len() > 10);
    }

    #[test]
    fn ids_select() {
        let all = info().sql(&[]).unwrap();
        let ids = all.column(0).as_any().downcast_ref::<UInt32Array>().unwrap();
        assert!(all.num_rows() > 80, "{}", all.num_rows());
        assert!(ids.values().windows(2).all(|pair| pair[0] < pair[1]), "ordered and unique");
        assert_eq!(info().sql(&[0, 8]).unwrap().num_rows(), 2);
        assert_eq!(info().sql(&[9999]).unwrap().num_rows(), 0);
    }

    #[test]
    fn types_are_ordered_and_selectable() {
        let all = info().xdbc(None).unwrap();
        let numbers = all.column(1).as_any().downcast_ref::<Int32Array>().unwrap();
        assert!(numbers.values().windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(info().xdbc(Some(XdbcDataType::XdbcInteger as i32)).unwrap().num_rows(), 2);
    }
}
