//! Protocol messages that the Arrow crate does not carry yet, written by hand from the protocol definition: the session actions,
//! the prepared statement result with `is_update`, and gRPC's rich error details.
//!
//! # Invariants
//! - MSG-1 tags and types are those of `Flight.proto`, `FlightSql.proto` and `google/rpc`. Test: `wire_bytes_are_stable`.

use std::collections::HashMap;

use arrow_flight::sql::Any;
use bytes::Bytes;
use prost::Message;

/// The type URL of [`PreparedStatementResult`], shared with the Arrow crate's shorter message.
pub(crate) const PREPARED_STATEMENT_RESULT_URL: &str =
    "type.googleapis.com/arrow.flight.protocol.sql.ActionCreatePreparedStatementResult";

/// `ActionCreatePreparedStatementResult` with the field that tells updates from queries.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PreparedStatementResult {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) prepared_statement_handle: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) dataset_schema: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) parameter_schema: Bytes,
    /// Explicitly present, because clients treat absence as "guess from the dataset schema".
    #[prost(bool, optional, tag = "4")]
    pub(crate) is_update: Option<bool>,
}

impl PreparedStatementResult {
    /// The message as the action's answer carries it.
    pub(crate) fn as_any(&self) -> Any {
        Any { type_url: PREPARED_STATEMENT_RESULT_URL.to_owned(), value: self.encode_to_vec().into() }
    }
}

/// The value of one session option; absent means "unset".
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SessionOptionValue {
    #[prost(oneof = "session_option_value::Value", tags = "1, 2, 3, 4, 5")]
    pub(crate) value: Option<session_option_value::Value>,
}

/// The types a session option can have.
pub(crate) mod session_option_value {
    /// A list of texts.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct StringList {
        #[prost(string, repeated, tag = "1")]
        pub(crate) values: Vec<String>,
    }

    /// One of five types.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(crate) enum Value {
        #[prost(string, tag = "1")]
        Text(String),
        #[prost(bool, tag = "2")]
        Flag(bool),
        #[prost(sfixed64, tag = "3")]
        Number(i64),
        #[prost(double, tag = "4")]
        Double(f64),
        #[prost(message, tag = "5")]
        List(StringList),
    }
}

/// `SetSessionOptionsRequest`; travels bare, not in an `Any`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SetSessionOptionsRequest {
    #[prost(map = "string, message", tag = "1")]
    pub(crate) session_options: HashMap<String, SessionOptionValue>,
}

/// Why one option was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum SetSessionOptionError {
    Unspecified = 0,
    InvalidName = 1,
    InvalidValue = 2,
    Error = 3,
}

/// The refusal of one option.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SetSessionOptionFailure {
    #[prost(enumeration = "SetSessionOptionError", tag = "1")]
    pub(crate) value: i32,
}

/// `SetSessionOptionsResult`: only the options that were refused.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub(crate) errors: HashMap<String, SetSessionOptionFailure>,
}

/// `GetSessionOptionsResult`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub(crate) session_options: HashMap<String, SessionOptionValue>,
}

/// How closing went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum CloseSessionStatus {
    Unspecified = 0,
    Closed = 1,
    Closing = 2,
    NotCloseable = 3,
}

/// `CloseSessionResult`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CloseSessionResult {
    #[prost(enumeration = "CloseSessionStatus", tag = "1")]
    pub(crate) status: i32,
}

/// `google.rpc.Status`, the content of `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(crate) details: Vec<Any>,
}

/// `google.rpc.ErrorInfo`: the SQLSTATE as the reason, the particulars as metadata.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ErrorInfo {
    #[prost(string, tag = "1")]
    pub(crate) reason: String,
    #[prost(string, tag = "2")]
    pub(crate) domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) metadata: std::collections::BTreeMap<String, String>,
}

impl ErrorInfo {
    /// The type URL of the message.
    pub(crate) const URL: &'static str = "type.googleapis.com/google.rpc.ErrorInfo";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_bytes_are_stable() {
        let result = PreparedStatementResult {
            prepared_statement_handle: Bytes::from_static(b"h"),
            is_update: Some(false),
            ..Default::default()
        };
        // Field 1 length-delimited "h"; field 4 varint 0, present although false.
        assert_eq!(result.encode_to_vec(), [0x0a, 1, b'h', 0x20, 0]);

        let value = SessionOptionValue { value: Some(session_option_value::Value::Number(1)) };
        assert_eq!(value.encode_to_vec(), [0x19, 1, 0, 0, 0, 0, 0, 0, 0]);

        let close = CloseSessionResult { status: CloseSessionStatus::Closed as i32 };
        assert_eq!(close.encode_to_vec(), [0x08, 1]);
    }
}
