//! The one error of the SQL crate: what failed, its SQLSTATE, and what the caller can try.
//!
//! Every layer below speaks its own error type; this module folds them into [`Error`], so that the wire only has to copy fields.
//! Library errors are read by *variant* where they carry one and by their message only where they do not (DataFusion reports a
//! missing function or a grouping mistake as plain text).
//!
//! # Invariants
//! - ERR-1 an error that crosses DataFusion (as `DataFusionError::External`, shared, wrapped in context, nested in an Arrow error)
//!   comes back with its own SQLSTATE. Test: `an_error_survives_the_trip_through_datafusion`.
//! - ERR-2 arithmetic, casts, missing names and exhausted limits have PostgreSQL's codes. Test: `codes_follow_postgresql`.
//!
//! # Failure
//! An error nobody classified is `XX000` (a defect of ours) when the library calls it internal, `42000`-class otherwise.
//!
//! # Deliberately absent
//! No translation of messages and no stack traces: DataFusion's optional back trace is dropped.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use arrow::error::ArrowError;
use base::{Classify, ErrorKind, SqlState};
use datafusion::common::{Column, SchemaError};
use datafusion::error::DataFusionError;
use sqlparser::parser::ParserError;

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed statement, ready for the wire. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Error {
    /// What failed, on which object: one line, lower case.
    pub message: String,
    /// The five-character code.
    pub sqlstate: SqlState,
    /// What the caller can do about it.
    pub kind: ErrorKind,
    /// A second sentence with the particulars.
    pub detail: Option<String>,
    /// What to try.
    pub hint: Option<String>,
    /// Where in the statement, in characters from 1.
    pub position: Option<usize>,
    /// The error below.
    pub source: Option<Arc<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// An error of this kind, with the code that the kind has by default.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error {
            message: message.into(),
            sqlstate: kind.default_sqlstate(),
            kind,
            detail: None,
            hint: None,
            position: None,
            source: None,
        }
    }

    /// An error with this code; the kind follows from the code.
    pub fn state(sqlstate: SqlState, message: impl Into<String>) -> Error {
        Error { sqlstate, ..Error::new(kind_of(sqlstate), message) }
    }

    /// A syntax error (42601).
    pub fn syntax(message: impl Into<String>) -> Error {
        Error::state(SqlState::SYNTAX_ERROR, message)
    }

    /// Valid syntax that is not executed (0A000). `what` names the syntax.
    pub fn unsupported(what: impl fmt::Display) -> Error {
        Error::state(SqlState::FEATURE_NOT_SUPPORTED, format!("{what} is not supported"))
    }

    /// A parameter or setting with a bad value (22023).
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::state(SqlState::INVALID_PARAMETER_VALUE, message)
    }

    /// A defect of ours (XX000).
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Internal, message)
    }

    /// An error of a lower layer that knows its own kind and code.
    pub fn classified<E: Classify + StdError + Send + Sync + 'static>(error: E) -> Error {
        let mut it = Error::new(error.kind(), chain(&error));
        it.sqlstate = error.sqlstate();
        it.source = Some(Arc::new(error));
        it
    }

    /// Replaces the code.
    #[must_use]
    pub fn with_state(mut self, sqlstate: SqlState) -> Error {
        self.sqlstate = sqlstate;
        self
    }

    /// Replaces the kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Error {
        self.kind = kind;
        self
    }

    /// Adds particulars.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Error {
        self.detail = Some(detail.into());
        self
    }

    /// Adds what to try.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the place in the statement, in characters from 1, unless a more precise one is there already.
    #[must_use]
    pub fn at(mut self, position: usize) -> Error {
        self.position.get_or_insert(position);
        self
    }

    /// Adds the error below.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Error {
        self.source = Some(Arc::new(source));
        self
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The error as DataFusion carries it; [`From`] finds it again on the way out.
    pub fn into_datafusion(self) -> DataFusionError {
        DataFusionError::External(Box::new(self))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        self.kind
    }

    fn sqlstate(&self) -> SqlState {
        self.sqlstate
    }
}

impl From<Error> for DataFusionError {
    fn from(error: Error) -> DataFusionError {
        error.into_datafusion()
    }
}

impl From<Error> for ArrowError {
    fn from(error: Error) -> ArrowError {
        ArrowError::ExternalError(Box::new(error))
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Error {
        from_datafusion(error)
    }
}

impl From<ArrowError> for Error {
    fn from(error: ArrowError) -> Error {
        from_arrow(error)
    }
}

impl From<ParserError> for Error {
    fn from(error: ParserError) -> Error {
        match error {
            ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
                Error::syntax(format!("syntax error: {}", tidy(strip(&message, "sql parser error: "))))
            }
            ParserError::RecursionLimitExceeded => too_complex(),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        let (state, kind) = match error.kind() {
            std::io::ErrorKind::NotFound => (SqlState::UNDEFINED_FILE, ErrorKind::NotFound),
            std::io::ErrorKind::StorageFull => (SqlState::DISK_FULL, ErrorKind::Exhausted),
            std::io::ErrorKind::PermissionDenied => (SqlState::IO_ERROR, ErrorKind::Denied),
            _ => (SqlState::IO_ERROR, ErrorKind::Unavailable),
        };
        Error { sqlstate: state, ..Error::new(kind, format!("input or output failed: {error}")) }.with_source(error)
    }
}

/// The error for a statement that nests deeper, or costs more to parse, than we allow.
pub(crate) fn too_complex() -> Error {
    Error::new(ErrorKind::Exhausted, "the statement nests too deeply or is too large to parse")
        .with_state(SqlState::STATEMENT_TOO_COMPLEX)
        .with_hint("split the statement, or move nested parts into WITH queries")
}

/// "column … does not exist", with the nearest of the names that do exist as a hint.
pub(crate) fn undefined_column<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Error {
    missing(SqlState::UNDEFINED_COLUMN, "column", name, candidates)
}

/// "table … does not exist", with the nearest of the names that do exist as a hint.
pub(crate) fn undefined_table<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Error {
    missing(SqlState::UNDEFINED_TABLE, "table", name, candidates)
}

/// "function … does not exist", with the nearest of the names that do exist as a hint.
pub(crate) fn undefined_function<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Error {
    missing(SqlState::UNDEFINED_FUNCTION, "function", name, candidates)
}

fn missing<'a>(state: SqlState, what: &str, name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Error {
    let error = Error::state(state, format!("{what} {} does not exist", quoted(name)));
    let all: Vec<&str> = candidates.into_iter().collect();
    // A sort sees an output column and the table's column behind it, which is one column to the user.
    let mut candidates: Vec<&str> = Vec::with_capacity(all.len());
    for &candidate in &all {
        let behind = |other: &&str| other.rsplit_once('.').is_some_and(|(_, bare)| bare == candidate);
        if !candidates.contains(&candidate) && !all.iter().any(behind) {
            candidates.push(candidate);
        }
    }
    match nearest(name, candidates.iter().copied()) {
        Some(near) => error.with_hint(format!("did you mean {}?", quoted(near))),
        None if what == "column" && !candidates.is_empty() && candidates.len() <= 24 => {
            error.with_hint(format!("the columns are {}", candidates.join(", ")))
        }
        None => error,
    }
}

/// The candidate that a typing mistake may have meant: equal but for case, or within a third of its length in edits.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.rsplit('.').next().unwrap_or(name).to_lowercase();
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let bare = candidate.rsplit('.').next().unwrap_or(candidate).to_lowercase();
        let distance = edits(&wanted, &bare);
        let limit = (wanted.chars().count().max(bare.chars().count()) / 3).max(1);
        if distance <= limit && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// The number of single-character edits, a swap of neighbours being one, between two short names.
fn edits(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// A name in double quotes, as messages show it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.trim_matches('"'))
}

/// The kind that a code implies: exact codes first, then the class (the first two characters).
pub(crate) fn kind_of(state: SqlState) -> ErrorKind {
    match state {
        SqlState::UNDEFINED_TABLE
        | SqlState::UNDEFINED_COLUMN
        | SqlState::UNDEFINED_FUNCTION
        | SqlState::UNDEFINED_OBJECT
        | SqlState::UNDEFINED_PARAMETER
        | SqlState::INVALID_SCHEMA_NAME
        | SqlState::INVALID_CATALOG_NAME
        | SqlState::INVALID_SAVEPOINT
        | SqlState::INVALID_STATEMENT_NAME
        | SqlState::INVALID_CURSOR_NAME
        | SqlState::UNDEFINED_FILE => ErrorKind::NotFound,
        SqlState::DUPLICATE_TABLE
        | SqlState::DUPLICATE_COLUMN
        | SqlState::DUPLICATE_SCHEMA
        | SqlState::DUPLICATE_OBJECT
        | SqlState::UNIQUE_VIOLATION => ErrorKind::AlreadyExists,
        SqlState::INSUFFICIENT_PRIVILEGE => ErrorKind::Denied,
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION => ErrorKind::Unauthenticated,
        SqlState::SERIALIZATION_FAILURE | SqlState::DEADLOCK_DETECTED | SqlState::LOCK_NOT_AVAILABLE => {
            ErrorKind::Conflict
        }
        SqlState::STATEMENT_COMPLETION_UNKNOWN => ErrorKind::Indeterminate,
        SqlState::QUERY_CANCELED => ErrorKind::Cancelled,
        SqlState::CANNOT_CONNECT_NOW | SqlState::ADMIN_SHUTDOWN | SqlState::IO_ERROR => ErrorKind::Unavailable,
        SqlState::FEATURE_NOT_SUPPORTED => ErrorKind::Unsupported,
        SqlState::DATA_CORRUPTED => ErrorKind::Corrupt,
        SqlState::INTERNAL_ERROR => ErrorKind::Internal,
        other => match &other.0[..2] {
            b"53" | b"54" => ErrorKind::Exhausted,
            b"XX" => ErrorKind::Internal,
            _ => ErrorKind::InvalidInput,
        },
    }
}

/// A message with the messages of its sources, each said once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = source.source();
    }
    text
}

fn from_datafusion(error: DataFusionError) -> Error {
    match error {
        DataFusionError::ArrowError(error, _) => from_arrow(*error),
        DataFusionError::ParquetError(error) => Error::state(SqlState::BAD_COPY_FILE, format!("parquet: {error}")),
        DataFusionError::ObjectStore(error) => {
            let (kind, state) = match error.as_ref() {
                object_store_missing if object_store_missing.to_string().contains("not found") => {
                    (ErrorKind::NotFound, SqlState::UNDEFINED_FILE)
                }
                _ => (ErrorKind::Unavailable, SqlState::IO_ERROR),
            };
            Error::new(kind, format!("object store: {error}")).with_state(state)
        }
        DataFusionError::IoError(error) => error.into(),
        DataFusionError::SQL(error, _) => (*error).into(),
        DataFusionError::NotImplemented(message) => {
            let message = tidy(strip(&message, "This feature is not implemented: "));
            if let Some(error) = correlated(&message) {
                return error;
            }
            let said = message.contains("not supported") || message.contains("not implemented");
            let message = if said { message } else { format!("not supported: {message}") };
            Error::state(SqlState::FEATURE_NOT_SUPPORTED, message)
        }
        DataFusionError::Internal(message) => from_internal(&message),
        DataFusionError::Plan(message) => from_plan(&message),
        DataFusionError::Configuration(message) => Error::invalid(tidy(&message)),
        DataFusionError::SchemaError(error, _) => from_schema(*error),
        DataFusionError::Execution(message) => from_execution(&message),
        DataFusionError::ExecutionJoin(error) => {
            if error.is_cancelled() {
                Error::new(ErrorKind::Cancelled, "the query was cancelled")
            } else {
                Error::internal(format!("a query task stopped: {error}"))
            }
        }
        DataFusionError::ResourcesExhausted(message) => {
            let message = tidy(&message);
            let disk = message.contains("disk") || message.contains("spill");
            let state = if disk { SqlState::DISK_FULL } else { SqlState::OUT_OF_MEMORY };
            Error::new(ErrorKind::Exhausted, format!("the query needs more memory than it may use: {message}"))
                .with_state(state)
                .with_hint("narrow the query, or raise the memory limit")
        }
        DataFusionError::External(error) => from_external(error),
        // The context is the name of the planner's rule that was at work, which helps nobody.
        DataFusionError::Context(_, error) => from_datafusion(*error),
        DataFusionError::Substrait(message) => Error::unsupported(format!("substrait plan ({})", tidy(&message))),
        DataFusionError::Diagnostic(_, error) => from_datafusion(*error),
        DataFusionError::Collection(mut errors) => {
            if errors.is_empty() {
                Error::internal("an empty list of errors")
            } else {
                from_datafusion(errors.swap_remove(0))
            }
        }
        DataFusionError::Shared(error) => match Arc::try_unwrap(error) {
            Ok(error) => from_datafusion(error),
            Err(shared) => from_shared(&shared),
        },
        DataFusionError::Ffi(message) => Error::internal(tidy(&message)),
    }
}

/// A shared error cannot be taken apart by value: our own error inside it is cloned, anything else is classified by its text.
fn from_shared(error: &DataFusionError) -> Error {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(here) = next {
        if let Some(ours) = here.downcast_ref::<Error>() {
            return ours.clone();
        }
        match here.downcast_ref::<DataFusionError>() {
            Some(DataFusionError::External(inner)) => {
                if let Some(ours) = inner.downcast_ref::<Error>() {
                    return ours.clone();
                }
                next = Some(inner.as_ref());
            }
            Some(DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner)) => {
                next = Some(inner.as_ref())
            }
            Some(DataFusionError::Shared(inner)) => next = Some(inner.as_ref()),
            Some(DataFusionError::ArrowError(inner, _)) => return from_arrow_ref(inner),
            Some(DataFusionError::ResourcesExhausted(message)) => {
                return from_datafusion(DataFusionError::ResourcesExhausted(message.clone()));
            }
            Some(DataFusionError::NotImplemented(message)) => {
                return from_datafusion(DataFusionError::NotImplemented(message.clone()));
            }
            Some(DataFusionError::Plan(message)) => return from_plan(message),
            Some(DataFusionError::Execution(message)) => return from_execution(message),
            Some(DataFusionError::Internal(message)) => return from_internal(message),
            _ => next = here.source(),
        }
    }
    from_execution(&error.to_string())
}

/// An error that some code of ours, or of a lower crate, sent through DataFusion or Arrow.
fn from_external(error: Box<dyn StdError + Send + Sync>) -> Error {
    let error = match error.downcast::<Error>() {
        Ok(ours) => return *ours,
        Err(error) => error,
    };
    let error = match error.downcast::<DataFusionError>() {
        Ok(inner) => return from_datafusion(*inner),
        Err(error) => error,
    };
    let error = match error.downcast::<ArrowError>() {
        Ok(inner) => return from_arrow(*inner),
        Err(error) => error,
    };
    let error = match error.downcast::<storage::Error>() {
        Ok(inner) => return Error::classified(*inner),
        Err(error) => error,
    };
    let error = match error.downcast::<std::io::Error>() {
        Ok(inner) => return (*inner).into(),
        Err(error) => error,
    };
    Error::new(ErrorKind::Internal, chain(error.as_ref()))
}

fn from_schema(error: SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let name = flat(&field);
            let candidates: Vec<String> = valid_fields.iter().map(flat).collect();
            undefined_column(&name, candidates.iter().map(String::as_str))
        }
        SchemaError::AmbiguousReference { field } => {
            Error::state(SqlState::AMBIGUOUS_COLUMN, format!("column reference {} is ambiguous", quoted(&flat(&field))))
                .with_hint("put the table's name or alias before it")
        }
        SchemaError::DuplicateQualifiedField { qualifier, name } => Error::state(
            SqlState::DUPLICATE_COLUMN,
            format!("column {} occurs more than once", quoted(&format!("{}.{name}", qualifier.table()))),
        ),
        SchemaError::DuplicateUnqualifiedField { name } => {
            Error::state(SqlState::DUPLICATE_COLUMN, format!("column {} occurs more than once", quoted(&name)))
        }
    }
}

/// `table.column` without catalog and schema, which the user rarely wrote.
fn flat(column: &Column) -> String {
    match &column.relation {
        Some(relation) => format!("{}.{}", relation.table(), column.name),
        None => column.name.clone(),
    }
}

/// A call that no signature of a function takes: DataFusion lists what each would have wanted.
fn unfit_call(text: &str) -> Option<Error> {
    let (_, call) = text.split_once("Function '")?;
    let (function, rest) = call.split_once("' failed to match any signature")?;
    let (_, received) = rest.split_once("but received ")?;
    let logical = received.split([' ', ',']).next()?.to_lowercase();
    let argument = match logical.as_str() {
        "string" => "text",
        other => other,
    };
    let message = format!("function {function}({argument}) does not exist");
    Some(
        Error::state(SqlState::UNDEFINED_FUNCTION, message)
            .with_hint("no function of this name takes these types; an explicit cast may help"),
    )
}

/// The column that a grouped query shows without grouping by it.
fn ungrouped(text: &str) -> Option<Error> {
    let (before, _) = text.split_once("\" must appear in the GROUP BY clause")?;
    let (_, column) = before.rsplit_once('"')?;
    let parts: Vec<&str> = column.split('.').collect();
    let shown = parts[parts.len().saturating_sub(2)..].join(".");
    let message =
        format!("column {} must appear in the GROUP BY clause or be used in an aggregate function", quoted(&shown));
    Some(Error::state(SqlState::GROUPING_ERROR, message))
}

/// Subqueries that refer to the outer query in a way that no join has.
fn correlated(message: &str) -> Option<Error> {
    let lower = message.to_lowercase();
    let unplanned = lower.starts_with("physical plan does not support logical expression");
    let value = lower.contains("correlated scalar subquery") || (unplanned && lower.contains("scalarsubquery"));
    let other = lower.contains("accessing outer reference columns is not allowed")
        || (unplanned && ["outerreferencecolumn", "insubquery", "exists("].iter().any(|shape| lower.contains(shape)));
    if value {
        return Some(
            Error::unsupported("a scalar subquery that refers to the outer query by more than equalities in its WHERE, or has another LIMIT than 1,")
                .with_hint("join the table instead; the first row per outer row is row_number() OVER (PARTITION BY … ORDER BY …) = 1"),
        );
    }
    other.then(|| {
        Error::unsupported("a subquery that refers to the outer query in this place")
            .with_hint("refer to the outer query only in the subquery's WHERE, or join the table instead")
    })
}

/// DataFusion's planning errors are text; the few shapes below are stable enough to be told apart.
fn from_plan(message: &str) -> Error {
    let text = tidy(strip(message, "Error during planning: "));
    if let Some(error) = correlated(&text).or_else(|| unfit_call(&text)).or_else(|| ungrouped(&text)) {
        return error;
    }
    let lower = text.to_lowercase();
    if let Some(rest) = lower.strip_prefix("invalid function ") {
        let mut names = rest.split('\'').skip(1).step_by(2);
        let name = names.next().unwrap_or_default();
        let error = Error::state(SqlState::UNDEFINED_FUNCTION, format!("function {} does not exist", quoted(name)));
        return match names.next() {
            Some(near) if nearest(name, [near]).is_some() => error.with_hint(format!("did you mean {}?", quoted(near))),
            _ => error,
        };
    }
    if (lower.starts_with("table ") && lower.contains("not found")) || lower.starts_with("table not found") {
        let name = text.split(['\'', '"']).nth(1).map_or_else(|| text.clone(), str::to_owned);
        return Error::state(SqlState::UNDEFINED_TABLE, format!("table {} does not exist", quoted(&name)));
    }
    if lower.contains("must appear in the group by clause")
        || lower.contains("must be in group by")
        || lower.contains("aggregate functions are not allowed")
        || lower.contains("could not be resolved from available columns")
    {
        return Error::state(SqlState::GROUPING_ERROR, text);
    }
    let wrong_arguments = [
        "no function matches",
        "failed to coerce arguments",
        "user-defined coercion failed",
        "arguments but received",
        "argument(s) but received",
        "arguments but",
        "argument but received",
        "function '",
        "does not support zero arguments",
        "cannot infer common argument type",
        "cannot coerce arithmetic expression",
        "cannot infer common string type",
        "cannot infer common type",
    ];
    if wrong_arguments.iter().any(|shape| lower.contains(shape)) {
        return Error::state(SqlState::UNDEFINED_FUNCTION, first_line(&text))
            .with_hint("no such operator or function for these types; an explicit cast may help");
    }
    if lower.contains("different number of columns")
        || lower.contains("number of fields")
        || lower.contains("column count doesn't match")
        || lower.contains("columns specified")
    {
        return Error::state(SqlState::SYNTAX_ERROR, text);
    }
    if lower.contains("cannot automatically convert")
        || lower.contains("common type")
        || lower.contains("to common types")
        || lower.contains("incompatible inputs for union")
        || lower.contains("must be boolean")
        || lower.contains("cannot create filter with non-boolean")
        || lower.contains("can't cast")
    {
        return Error::state(SqlState::DATATYPE_MISMATCH, text);
    }
    if lower.contains("specified more than once") {
        return Error::state(SqlState::DUPLICATE_OBJECT, text);
    }
    if lower.contains("not supported") || lower.contains("unsupported") || lower.contains("not implemented") {
        return Error::state(SqlState::FEATURE_NOT_SUPPORTED, text);
    }
    if lower.contains("placeholder") {
        return Error::state(SqlState::UNDEFINED_PARAMETER, text);
    }
    Error::state(SqlState::SYNTAX_ERROR, text)
}

fn from_execution(message: &str) -> Error {
    let text = tidy(strip(message, "Execution error: "));
    let lower = text.to_lowercase();
    if lower.contains("divide by zero") || lower.contains("division by zero") {
        return division_by_zero();
    }
    if lower.contains("overflow") || lower.contains("out of range") {
        let state = if ["timestamp", "date", "interval"].iter().any(|word| lower.contains(word)) {
            SqlState::DATETIME_OVERFLOW
        } else {
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE
        };
        return Error::state(state, text);
    }
    if lower.contains("subquery returned more than one row") {
        return Error::state(
            SqlState::CARDINALITY_VIOLATION,
            "more than one row returned by a subquery used as an expression",
        );
    }
    if lower.contains("error parsing timestamp") || lower.contains("error parsing date") {
        return Error::state(SqlState::INVALID_DATETIME, text);
    }
    if lower.contains("cannot cast") || lower.contains("error parsing") || lower.contains("failed to parse") {
        return Error::state(SqlState::INVALID_TEXT_REPRESENTATION, text);
    }
    Error::state(SqlState::INVALID_PARAMETER_VALUE, text)
}

/// "Internal" errors of DataFusion: a few are the user's (a bad pattern, an unsupported cast), the rest are defects.
fn from_internal(message: &str) -> Error {
    let text = tidy(strip(message, "Internal error: "));
    if let Some(error) = unfit_call(&text) {
        return error;
    }
    let text = text.split(". This issue was likely caused").next().unwrap_or(&text).to_owned();
    let text = text.split(".\nThis issue was likely caused").next().unwrap_or(&text).to_owned();
    Error::internal(text)
}

fn division_by_zero() -> Error {
    Error::state(SqlState::DIVISION_BY_ZERO, "division by zero")
}

fn from_arrow(error: ArrowError) -> Error {
    match error {
        ArrowError::ExternalError(inner) => from_external(inner),
        ArrowError::IoError(_, inner) => inner.into(),
        other => from_arrow_ref(&other),
    }
}

fn from_arrow_ref(error: &ArrowError) -> Error {
    match error {
        ArrowError::NotYetImplemented(message) => Error::state(SqlState::FEATURE_NOT_SUPPORTED, tidy(message)),
        ArrowError::ExternalError(inner) => match inner.downcast_ref::<Error>() {
            Some(ours) => ours.clone(),
            None => Error::internal(chain(inner.as_ref())),
        },
        ArrowError::CastError(message) => from_cast(message),
        ArrowError::ParseError(message) => from_cast(message),
        ArrowError::MemoryError(message) => {
            Error::new(ErrorKind::Exhausted, tidy(message)).with_state(SqlState::OUT_OF_MEMORY)
        }
        ArrowError::DivideByZero => division_by_zero(),
        ArrowError::ArithmeticOverflow(message) => {
            let state = if message.contains("Date arithmetic") || message.contains("imestamp") {
                SqlState::DATETIME_OVERFLOW
            } else {
                SqlState::NUMERIC_VALUE_OUT_OF_RANGE
            };
            Error::state(state, format!("value out of range: {}", tidy(message)))
        }
        ArrowError::ComputeError(message) | ArrowError::InvalidArgumentError(message) => {
            let lower = message.to_lowercase();
            if lower.contains("overflow")
                || lower.contains("too large to store")
                || lower.contains("too small to store")
            {
                Error::state(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("value out of range: {}", tidy(message)))
            } else if lower.contains("divide by zero") {
                division_by_zero()
            } else if lower.contains("contains null values") || lower.contains("non-nullable") {
                Error::state(SqlState::NOT_NULL_VIOLATION, tidy(message))
            } else {
                from_execution(message)
            }
        }
        ArrowError::CsvError(message) | ArrowError::JsonError(message) | ArrowError::AvroError(message) => {
            Error::state(SqlState::BAD_COPY_FILE, tidy(message))
        }
        ArrowError::ParquetError(message) => Error::state(SqlState::BAD_COPY_FILE, format!("parquet: {message}")),
        ArrowError::IpcError(message) => Error::state(SqlState::PROTOCOL_VIOLATION, tidy(message)),
        ArrowError::SchemaError(message) => Error::state(SqlState::DATATYPE_MISMATCH, tidy(message)),
        ArrowError::IoError(message, _) => {
            Error::new(ErrorKind::Unavailable, tidy(message)).with_state(SqlState::IO_ERROR)
        }
        ArrowError::OffsetOverflowError(bytes) => {
            Error::new(ErrorKind::Exhausted, format!("a batch of text or binary values is too large ({bytes} bytes)"))
                .with_state(SqlState::PROGRAM_LIMIT)
        }
        ArrowError::CDataInterface(_)
        | ArrowError::DictionaryKeyOverflowError
        | ArrowError::RunEndIndexOverflowError => Error::internal(error.to_string()),
    }
}

/// Casts: out of range, a wrong date, or a text that does not read as the type.
fn from_cast(message: &str) -> Error {
    let text = tidy(message);
    let lower = text.to_lowercase();
    // Arrow: Can't cast value 70000 to type Int16.
    if let Some((_, name)) = text.strip_prefix("can't cast value ").and_then(|rest| rest.rsplit_once(" to type ")) {
        return Error::state(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("{} out of range", type_word(name)));
    }
    if lower.contains("overflow")
        || lower.contains("out of range")
        || lower.contains("can't cast value")
        || lower.contains("too large to store")
        || lower.contains("too small to store")
        || lower.contains("is too large")
    {
        return Error::state(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, text);
    }
    if ["timestamp", "date", "time", "interval"].iter().any(|word| lower.contains(word)) {
        return Error::state(SqlState::INVALID_DATETIME, text);
    }
    if lower.contains("not supported") {
        return Error::state(SqlState::CANNOT_COERCE, text);
    }
    // Arrow: Cannot cast string 'x' to value of Int32 type.
    if let Some(rest) = text.strip_prefix("cannot cast string '")
        && let Some((value, rest)) = rest.rsplit_once("' to value of ")
    {
        let name = type_word(rest.trim_end_matches(" type"));
        if matches!(name, "smallint" | "integer" | "bigint") && is_whole(value) {
            let text = format!("value \"{value}\" is out of range for type {name}");
            return Error::state(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, text);
        }
        return Error::state(
            SqlState::INVALID_TEXT_REPRESENTATION,
            format!("invalid input syntax for type {name}: \"{value}\""),
        );
    }
    Error::state(SqlState::INVALID_TEXT_REPRESENTATION, text)
}

/// Whether a text is an integer of some size.
fn is_whole(text: &str) -> bool {
    let digits = text.trim().trim_start_matches(['+', '-']);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// PostgreSQL's word for the Arrow types that occur in cast errors.
fn type_word(arrow: &str) -> &str {
    match arrow {
        "Int16" => "smallint",
        "Int32" => "integer",
        "Int64" => "bigint",
        "Float32" => "real",
        "Float64" => "double precision",
        "Boolean" => "boolean",
        other if other.starts_with("Decimal") => "numeric",
        other => other,
    }
}

fn strip<'a>(text: &'a str, prefix: &str) -> &'a str {
    text.strip_prefix(prefix).unwrap_or(text)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or(text).trim_end_matches('.').to_owned()
}

/// House style: lower-case first letter (names in capitals stay), no final full stop, no back trace.
pub(crate) fn tidy(text: &str) -> String {
    let text = text.split("\n\nbacktrace:").next().unwrap_or(text).trim().trim_end_matches('.');
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(first), Some(second)) if first.is_uppercase() && !second.is_uppercase() => {
            first.to_lowercase().chain(text.chars().skip(1)).collect()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::common::TableReference;

    #[test]
    fn an_error_survives_the_trip_through_datafusion() {
        let ours = || Error::state(SqlState::UNIQUE_VIOLATION, "key exists").with_detail("(id)=(1)");
        let trips: Vec<DataFusionError> = vec![
            ours().into(),
            DataFusionError::Context("while writing rows".into(), Box::new(ours().into())),
            DataFusionError::Shared(Arc::new(ours().into())),
            DataFusionError::ArrowError(Box::new(ours().into()), None),
            DataFusionError::Collection(vec![ours().into()]),
            DataFusionError::External(Box::new(DataFusionError::External(Box::new(ours())))),
        ];
        for trip in trips {
            let back = Error::from(trip);
            assert_eq!(back.sqlstate, SqlState::UNIQUE_VIOLATION);
            assert_eq!(back.kind, ErrorKind::AlreadyExists);
            assert_eq!(back.detail.as_deref(), Some("(id)=(1)"));
        }
        let shared = Arc::new(DataFusionError::from(ours()));
        let keep = Arc::clone(&shared);
        assert_eq!(Error::from(DataFusionError::Shared(shared)).sqlstate, SqlState::UNIQUE_VIOLATION);
        drop(keep);
    }

    #[test]
    fn codes_follow_postgresql() {
        let cases: Vec<(Error, SqlState)> = vec![
            (ArrowError::DivideByZero.into(), SqlState::DIVISION_BY_ZERO),
            (
                ArrowError::ArithmeticOverflow("Overflow happened on: 1 + 2".into()).into(),
                SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            ),
            (
                ArrowError::CastError("Cannot cast string 'x' to value of Int32 type".into()).into(),
                SqlState::INVALID_TEXT_REPRESENTATION,
            ),
            (
                ArrowError::CastError("Can't cast value 70000 to type Int16".into()).into(),
                SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            ),
            (
                ArrowError::ParseError("Error parsing timestamp from 'x': error parsing date".into()).into(),
                SqlState::INVALID_DATETIME,
            ),
            (DataFusionError::ResourcesExhausted("pool".into()).into(), SqlState::OUT_OF_MEMORY),
            (DataFusionError::NotImplemented("thing".into()).into(), SqlState::FEATURE_NOT_SUPPORTED),
            (DataFusionError::Plan("table 'lattice.public.t' not found".into()).into(), SqlState::UNDEFINED_TABLE),
            (
                DataFusionError::Plan("Invalid function 'flor'.\nDid you mean 'floor'?".into()).into(),
                SqlState::UNDEFINED_FUNCTION,
            ),
            (ParserError::RecursionLimitExceeded.into(), SqlState::STATEMENT_TOO_COMPLEX),
        ];
        for (error, state) in cases {
            assert_eq!(error.sqlstate, state, "{error}");
        }
        let cast = Error::from(ArrowError::CastError("Cannot cast string 'x' to value of Int32 type".into()));
        assert_eq!(cast.message, "invalid input syntax for type integer: \"x\"");
        let large = Error::from(ArrowError::CastError("Cannot cast string '70000' to value of Int16 type".into()));
        assert_eq!(
            (large.sqlstate, large.message.as_str()),
            (SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value \"70000\" is out of range for type smallint")
        );
        let large = Error::from(ArrowError::CastError("Can't cast value 70000 to type Int16".into()));
        assert_eq!(large.message, "smallint out of range");
    }

    #[test]
    fn a_missing_column_gets_a_hint() {
        let column = |name: &str| Column::new(Some(TableReference::full("lattice", "public", "orders")), name);
        let error = Error::from(DataFusionError::SchemaError(
            Box::new(SchemaError::FieldNotFound {
                field: Box::new(Column::new_unqualified("custmer")),
                valid_fields: vec![column("id"), column("customer")],
            }),
            Box::new(None),
        ));
        assert_eq!(error.sqlstate, SqlState::UNDEFINED_COLUMN);
        assert_eq!(error.message, "column \"custmer\" does not exist");
        assert_eq!(error.hint.as_deref(), Some("did you mean \"orders.customer\"?"));
        let error = undefined_column("zzz", ["id", "name"]);
        assert_eq!(error.hint.as_deref(), Some("the columns are id, name"));
        assert_eq!(nearest("oredrs", ["customers", "orders"]), Some("orders"));
        assert_eq!(nearest("x", ["customers"]), None);
    }
}
