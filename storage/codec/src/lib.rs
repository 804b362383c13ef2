//! The form of a row: how a table's rows become bytes for the log and the row tier, and Arrow for everything else.
//!
//! [`StoredSchema`] is what storage knows of a table; [`KeyCodec`] turns primary keys into bytes whose order is the key's
//! order; [`RowCodec`] turns whole rows into compact bytes and back; [`wire`] writes and reads the small records of the log.
//!
//! # How it works
//! Both codecs work on whole Arrow columns: the type is looked at once per column, the loops inside know it. A batch is
//! encoded into one allocation, and each key or row is a slice of it that shares the allocation.
//!
//! # Invariants
//! - CODEC-1 comparing encoded keys compares the keys, column by column, NULL after every value, `-0.0` equal to `0.0`, all
//!   NaN equal and after every number (`key::tests::encoded_order_is_value_order`).
//! - CODEC-2 an encoded key is never a prefix of another key of the same table, so a prefix of its columns selects exactly the
//!   keys that start with those values (`key::tests::prefix_ranges_select_exactly_their_keys`).
//! - CODEC-3 what was encoded decodes to the same values, in any projection (`row::tests::rows_round_trip`), and rows written
//!   before a column existed read as its `missing` value (`row::tests::old_rows_read_missing_values`).
//! - CODEC-4 no bytes whatever make a decoder panic or allocate beyond a small multiple of their length
//!   (`row::tests::arbitrary_bytes_never_panic` and its like in `key`, `schema`, `wire`).
//! - CODEC-5 the bytes depend on the values alone: not on the batch they came in, nor on host byte order
//!   (`row::tests::batches_do_not_matter`, `row::tests::bytes_are_pinned`).
//!
//! # Failure
//! Damage is [`Error::Corrupt`]; a column that is not the schema's is [`Error::Mismatch`], a defect of the caller. Encoding
//! fails only for values outside their type ([`Error::OutOfRange`]) and for rows beyond 4 GiB ([`Error::TooLarge`]).
//!
//! # Not here
//! Checksums: journal, checkpoint and Lance each guard their own bytes. Collations: text compares by its bytes. Constraint
//! checks: NULL in a key or a NOT NULL column is judged by whoever builds the write set.

mod error;
mod key;
mod row;
mod schema;
#[cfg(test)]
mod testing;
mod types;
mod value;
pub mod wire;

pub use error::{Error, Result};
pub use key::KeyCodec;
pub use row::RowCodec;
pub use schema::{ROW_NO_COLUMN, ROW_TS_COLUMN, StoredColumn, StoredSchema};
pub use types::{check_key_type, check_storable, decode_type, encode_type};
pub use value::{decode_value, encode_value};
