//! The closed set of error kinds, and the SQLSTATE codes they map to.

use std::fmt;

/// Any error, boxed, for `#[source]` chains that cross crates.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What the caller can do about an error. Matched without a wildcard at each boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong and will stay wrong.
    InvalidInput,
    /// A named object does not exist.
    NotFound,
    /// A named object exists already.
    AlreadyExists,
    /// The caller did not prove who they are.
    Unauthenticated,
    /// The caller may not do this.
    Denied,
    /// Another transaction won; retry the whole transaction.
    Conflict,
    /// The outcome is unknown: retry with the same request id.
    Indeterminate,
    /// Not now or not here: retry later or elsewhere.
    Unavailable,
    /// Stopped on request or by a timeout.
    Cancelled,
    /// A named limit was reached.
    Exhausted,
    /// Valid, but not something we do.
    Unsupported,
    /// Stored bytes are damaged.
    Corrupt,
    /// A defect of ours.
    Internal,
}

impl ErrorKind {
    /// The SQLSTATE used when an error names no finer one.
    pub fn default_sqlstate(self) -> SqlState {
        match self {
            ErrorKind::InvalidInput => SqlState::INVALID_PARAMETER_VALUE,
            ErrorKind::NotFound => SqlState::UNDEFINED_TABLE,
            ErrorKind::AlreadyExists => SqlState::DUPLICATE_TABLE,
            ErrorKind::Unauthenticated => SqlState::INVALID_AUTHORIZATION,
            ErrorKind::Denied => SqlState::INSUFFICIENT_PRIVILEGE,
            ErrorKind::Conflict => SqlState::SERIALIZATION_FAILURE,
            ErrorKind::Indeterminate => SqlState::STATEMENT_COMPLETION_UNKNOWN,
            ErrorKind::Unavailable => SqlState::CANNOT_CONNECT_NOW,
            ErrorKind::Cancelled => SqlState::QUERY_CANCELED,
            ErrorKind::Exhausted => SqlState::INSUFFICIENT_RESOURCES,
            ErrorKind::Unsupported => SqlState::FEATURE_NOT_SUPPORTED,
            ErrorKind::Corrupt => SqlState::DATA_CORRUPTED,
            ErrorKind::Internal => SqlState::INTERNAL_ERROR,
        }
    }
}

/// An error that knows its kind and its SQLSTATE.
pub trait Classify {
    /// What the caller can do.
    fn kind(&self) -> ErrorKind;
    /// The five-character code, as PostgreSQL's appendix A lists them.
    fn sqlstate(&self) -> SqlState {
        self.kind().default_sqlstate()
    }
}

/// A five-character SQLSTATE code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub [u8; 5]);

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl SqlState {
            $($(#[$doc])* pub const $name: SqlState = SqlState(*$code);)*
        }
    };
}

states! {
    /// Wrong number of columns or values.
    SYNTAX_ERROR = b"42601";
    /// No such table or view.
    UNDEFINED_TABLE = b"42P01";
    /// No such column.
    UNDEFINED_COLUMN = b"42703";
    /// No such function.
    UNDEFINED_FUNCTION = b"42883";
    /// No such type, sequence, constraint or other object.
    UNDEFINED_OBJECT = b"42704";
    /// No such schema.
    INVALID_SCHEMA_NAME = b"3F000";
    /// No such catalog.
    INVALID_CATALOG_NAME = b"3D000";
    /// No such parameter.
    UNDEFINED_PARAMETER = b"42P02";
    /// The table exists.
    DUPLICATE_TABLE = b"42P07";
    /// The column exists.
    DUPLICATE_COLUMN = b"42701";
    /// The schema exists.
    DUPLICATE_SCHEMA = b"42P06";
    /// Another object exists.
    DUPLICATE_OBJECT = b"42710";
    /// A column name fits several tables.
    AMBIGUOUS_COLUMN = b"42702";
    /// Types do not fit together.
    DATATYPE_MISMATCH = b"42804";
    /// A value cannot be cast to a type.
    CANNOT_COERCE = b"42846";
    /// Not allowed on this kind of object.
    WRONG_OBJECT_TYPE = b"42809";
    /// Column outside GROUP BY and the like.
    GROUPING_ERROR = b"42803";
    /// A definition contradicts itself.
    INVALID_TABLE_DEFINITION = b"42P16";
    /// A reserved name.
    RESERVED_NAME = b"42939";
    /// ON CONFLICT or REFERENCES without a matching unique constraint.
    INVALID_COLUMN_REFERENCE = b"42P10";
    /// Wrong foreign key definition.
    INVALID_FOREIGN_KEY = b"42830";
    /// NULL in a NOT NULL column.
    NOT_NULL_VIOLATION = b"23502";
    /// No referenced row, or still referenced.
    FOREIGN_KEY_VIOLATION = b"23503";
    /// The key exists already.
    UNIQUE_VIOLATION = b"23505";
    /// A CHECK is false.
    CHECK_VIOLATION = b"23514";
    /// ON CONFLICT DO UPDATE or MERGE touches one row twice.
    CARDINALITY_VIOLATION = b"21000";
    /// A number does not fit.
    NUMERIC_VALUE_OUT_OF_RANGE = b"22003";
    /// Division by zero.
    DIVISION_BY_ZERO = b"22012";
    /// A text is longer than VARCHAR(n).
    STRING_TOO_LONG = b"22001";
    /// A text does not read as the type.
    INVALID_TEXT_REPRESENTATION = b"22P02";
    /// A text does not read as a date or time.
    INVALID_DATETIME = b"22007";
    /// A date or time is out of range.
    DATETIME_OVERFLOW = b"22008";
    /// A parameter or setting has a bad value.
    INVALID_PARAMETER_VALUE = b"22023";
    /// A message breaks the protocol.
    PROTOCOL_VIOLATION = b"08P01";
    /// A COPY file cannot be read as declared.
    BAD_COPY_FILE = b"22P04";
    /// Statement in a failed transaction.
    IN_FAILED_TRANSACTION = b"25P02";
    /// BEGIN inside a transaction.
    ACTIVE_TRANSACTION = b"25001";
    /// COMMIT outside a transaction.
    NO_ACTIVE_TRANSACTION = b"25P01";
    /// A write in a READ ONLY transaction.
    READ_ONLY_TRANSACTION = b"25006";
    /// No such savepoint.
    INVALID_SAVEPOINT = b"3B001";
    /// No such prepared statement.
    INVALID_STATEMENT_NAME = b"26000";
    /// No such cursor or ticket.
    INVALID_CURSOR_NAME = b"34000";
    /// The object is still needed by others.
    DEPENDENT_OBJECTS = b"2BP01";
    /// Retry the transaction.
    SERIALIZATION_FAILURE = b"40001";
    /// Outcome unknown.
    STATEMENT_COMPLETION_UNKNOWN = b"40003";
    /// Two transactions wait for each other.
    DEADLOCK_DETECTED = b"40P01";
    /// The lock did not come in time.
    LOCK_NOT_AVAILABLE = b"55P03";
    /// The object is not in the right state.
    OBJECT_NOT_IN_STATE = b"55000";
    /// A named limit.
    INSUFFICIENT_RESOURCES = b"53000";
    /// The disk is full.
    DISK_FULL = b"53100";
    /// No memory within the limit.
    OUT_OF_MEMORY = b"53200";
    /// Too many connections.
    TOO_MANY_CONNECTIONS = b"53300";
    /// A configured limit.
    CONFIGURATION_LIMIT = b"53400";
    /// A statement or row is too large.
    PROGRAM_LIMIT = b"54000";
    /// The statement nests too deep.
    STATEMENT_TOO_COMPLEX = b"54001";
    /// Cancelled by the user or a timeout.
    QUERY_CANCELED = b"57014";
    /// Starting, stopping or not the leader.
    CANNOT_CONNECT_NOW = b"57P03";
    /// The server is shutting down.
    ADMIN_SHUTDOWN = b"57P01";
    /// I/O failed.
    IO_ERROR = b"58030";
    /// No such file.
    UNDEFINED_FILE = b"58P01";
    /// Not allowed.
    INSUFFICIENT_PRIVILEGE = b"42501";
    /// Wrong user or password.
    INVALID_PASSWORD = b"28P01";
    /// No or wrong authorization.
    INVALID_AUTHORIZATION = b"28000";
    /// Not supported.
    FEATURE_NOT_SUPPORTED = b"0A000";
    /// Damaged data.
    DATA_CORRUPTED = b"XX001";
    /// A defect of ours.
    INTERNAL_ERROR = b"XX000";
    /// A time travel target that cannot be answered.
    SNAPSHOT_TOO_OLD = b"72000";
}

impl SqlState {
    /// The code as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
