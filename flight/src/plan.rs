//! A planned statement with what the wire says about it, encoded once: a prepared statement is announced when it is made, at
//! every `GetFlightInfo` and at the head of every stream.

use std::ops::Deref;
use std::sync::OnceLock;

use arrow::datatypes::Schema;
use bytes::Bytes;
use sql::Prepared;

use crate::encode::{schema_bytes, schema_header};
use crate::error::Result;

/// A statement of the engine and its schema in the two forms of the protocol.
pub(crate) struct Plan {
    prepared: Prepared,
    announced: OnceLock<Bytes>,
    header: OnceLock<Bytes>,
}

impl Plan {
    pub(crate) fn new(prepared: Prepared) -> Plan {
        Plan { prepared, announced: OnceLock::new(), header: OnceLock::new() }
    }

    /// The schema as `FlightInfo` and its like carry it.
    pub(crate) fn announced(&self) -> Result<Bytes> {
        if let Some(bytes) = self.announced.get() {
            return Ok(bytes.clone());
        }
        let bytes = match &self.prepared.result_schema {
            Some(schema) => schema_bytes(schema)?,
            None => schema_bytes(&Schema::empty())?,
        };
        Ok(self.announced.get_or_init(|| bytes).clone())
    }

    /// The schema as the first message of a stream carries it.
    pub(crate) fn header(&self) -> Bytes {
        let encode = || match &self.prepared.result_schema {
            Some(schema) => schema_header(schema),
            None => schema_header(&Schema::empty()),
        };
        self.header.get_or_init(encode).clone()
    }
}

impl Deref for Plan {
    type Target = Prepared;

    fn deref(&self) -> &Prepared {
        &self.prepared
    }
}
