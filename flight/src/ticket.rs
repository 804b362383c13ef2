//! Tickets: what a client must show to fetch a result.
//!
//! A ticket is either a metadata command itself (they have no side effects, so the command is simply run) or a
//! `TicketStatementQuery` whose handle is a [`Ticket`] of ours. A query's ticket names the plan the server holds *and* carries the
//! statement, its parameters and its transaction, so that it can be redeemed again, from another connection of the same user, or
//! after the plan was dropped: a query without side effects is simply planned again. Statements with effects run exactly once, when
//! the ticket is issued; their tickets only name the outcome.
//!
//! A query's ticket names the moment the query reads at, so that whoever redeems it, whenever, reads the same rows: history keeps
//! them. The shares of a large result are row ranges of files as they lay at that moment, which only the server can hold: their
//! tickets live as long as it does so.
//!
//! A ticket grants nothing: redeeming one runs under the caller's own rights, and a forged one can do no more than its holder could
//! do with a statement.
//!
//! # Invariants
//! - TICKET-1 a ticket survives the trip; garbage is an error, not a panic. Test: `tickets_travel`.
//! - TICKET-2 what changes anything is never run by redeeming. Test: `tests::dml_runs_once`.

use arrow::array::RecordBatch;
use arrow_flight::FlightData;
use arrow_flight::sql::{ProstMessageExt, TicketStatementQuery};
use base::CommitTs;
use bytes::Bytes;
use prost::Message;
use sql::Moment;
use uuid::Uuid;

use crate::decode::{DecodeLimits, Decoder};
use crate::error::{Error, Result};

/// The layout version of [`Ticket`].
const VERSION: u32 = 2;
/// Parameters above this size stay on the server: tickets travel through schedulers and logs.
pub(crate) const PARAMETERS_BYTES_MAX: usize = 64 << 10;

/// What to do with a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Kind {
    /// Run the query.
    Query = 0,
    /// Send the outcome that the server holds.
    Held = 1,
    /// There are no rows: send the empty schema.
    Empty = 2,
    /// Send one share of a result that the server holds.
    Share = 3,
}

/// The content of a ticket.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Ticket {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    /// Names the plan or outcome on the server, and the stream when it is cancelled.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) id: Bytes,
    #[prost(enumeration = "Kind", tag = "3")]
    pub(crate) kind: i32,
    /// The session that issued it.
    #[prost(uint64, tag = "4")]
    pub(crate) client: u64,
    #[prost(string, tag = "5")]
    pub(crate) statement: String,
    /// The handle of the transaction the query belongs to.
    #[prost(bytes = "bytes", tag = "6")]
    pub(crate) transaction: Bytes,
    /// The bound values: a schema message and a batch.
    #[prost(message, repeated, tag = "7")]
    pub(crate) parameters: Vec<FlightData>,
    /// Whether `?` means a parameter in the statement.
    #[prost(bool, tag = "8")]
    pub(crate) question_marks: bool,
    /// The ticket alone does not say what to run, because the parameters were too large for it.
    #[prost(bool, tag = "9")]
    pub(crate) incomplete: bool,
    /// The moment to read at, outside transactions: the last commit that is seen, and `now()`, both in microseconds.
    #[prost(int64, optional, tag = "10")]
    pub(crate) snapshot: Option<i64>,
    #[prost(int64, tag = "11")]
    pub(crate) now_us: i64,
    /// Which share.
    #[prost(uint32, tag = "12")]
    pub(crate) share: u32,
}

impl Ticket {
    pub(crate) fn new(id: Uuid, kind: Kind, client: u64) -> Ticket {
        Ticket {
            version: VERSION,
            id: Bytes::copy_from_slice(id.as_bytes()),
            kind: kind as i32,
            client,
            ..Default::default()
        }
    }

    /// The ticket as `FlightEndpoint` carries it.
    pub(crate) fn encode_any(&self) -> Bytes {
        TicketStatementQuery { statement_handle: self.encode_to_vec().into() }.as_any().encode_to_vec().into()
    }

    pub(crate) fn decode_handle(handle: &[u8]) -> Result<Ticket> {
        let malformed = || Error::Protocol("the ticket is not one of this server's".to_owned());
        let ticket = Ticket::decode(handle).map_err(|_| malformed())?;
        if ticket.version != VERSION || ticket.id.len() != 16 {
            return Err(malformed());
        }
        Ok(ticket)
    }

    /// Reads a ticket from the bytes of a Flight ticket, if it is one of a statement.
    pub(crate) fn decode_any(bytes: &[u8]) -> Result<Option<Ticket>> {
        let any = arrow_flight::sql::Any::decode(bytes)?;
        match any.unpack::<TicketStatementQuery>() {
            Ok(Some(statement)) => Ok(Some(Ticket::decode_handle(&statement.statement_handle)?)),
            Ok(None) => Ok(None),
            Err(error) => Err(Error::Protocol(error.to_string())),
        }
    }

    /// The moment that the query reads at.
    pub(crate) fn moment(&self) -> Option<Moment> {
        self.snapshot.map(|snapshot| Moment { snapshot: CommitTs(snapshot), now_us: self.now_us })
    }

    pub(crate) fn set_moment(&mut self, moment: Option<Moment>) {
        self.snapshot = moment.map(|moment| moment.snapshot.0);
        self.now_us = moment.map_or(0, |moment| moment.now_us);
    }

    pub(crate) fn uuid(&self) -> Uuid {
        Uuid::from_slice(&self.id).unwrap_or(Uuid::nil())
    }
}

/// Parameters as messages, or nothing when they are too large to travel in a ticket.
pub(crate) fn encode_parameters(batch: &RecordBatch) -> Option<Vec<FlightData>> {
    if batch.get_array_memory_size() > 4 * PARAMETERS_BYTES_MAX {
        return None;
    }
    let messages = crate::encode::whole(batch).ok()?;
    let bytes: usize = messages.iter().map(Message::encoded_len).sum();
    (bytes <= PARAMETERS_BYTES_MAX).then_some(messages)
}

/// The parameters of a ticket. Whoever made the ticket, they are read as carefully as anything else from outside.
pub(crate) fn decode_parameters(messages: Vec<FlightData>, limits: DecodeLimits) -> Result<Option<RecordBatch>> {
    let mut decoder = Decoder::new(limits);
    let mut found = None;
    for message in messages {
        if let Some(batch) = decoder.push(message)? {
            if found.is_some() {
                return Err(Error::Protocol("the ticket has two sets of parameters".to_owned()));
            }
            found = Some(batch);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    #[test]
    fn tickets_travel() {
        let mut ticket = Ticket::new(Uuid::new_v4(), Kind::Query, 9);
        ticket.statement = "SELECT 1".to_owned();
        ticket.question_marks = true;
        let moment = Moment { snapshot: CommitTs(17), now_us: -5 };
        ticket.set_moment(Some(moment));
        let values = RecordBatch::try_from_iter(vec![("$1", Arc::new(Int64Array::from(vec![7])) as ArrayRef)]).unwrap();
        ticket.parameters = encode_parameters(&values).unwrap();
        let back = Ticket::decode_any(&ticket.encode_any()).unwrap().unwrap();
        assert_eq!(back, ticket);
        assert_eq!(back.kind(), Kind::Query);
        assert_eq!(back.moment(), Some(moment));
        assert_eq!(Ticket::new(Uuid::new_v4(), Kind::Query, 9).moment(), None);
        assert_eq!(decode_parameters(back.parameters, DecodeLimits::default()).unwrap(), Some(values));

        assert!(matches!(Ticket::decode_handle(b"garbage"), Err(Error::Protocol(_))));
        assert!(matches!(Ticket::decode_handle(b""), Err(Error::Protocol(_))));
        let other = arrow_flight::sql::CommandGetCatalogs {}.as_any().encode_to_vec();
        assert!(Ticket::decode_any(&other).unwrap().is_none());
        let large = Int64Array::from_iter_values(0..100_000);
        let large = RecordBatch::try_from_iter(vec![("$1", Arc::new(large) as ArrayRef)]).unwrap();
        assert!(encode_parameters(&large).is_none());
        ticket.version = 99;
        assert!(Ticket::decode_any(&ticket.encode_any()).is_err());
    }
}
