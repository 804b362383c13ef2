//! How large a row may be.
//!
//! A row travels whole: through the log or a staged file, into memory, and out to clients. One that is larger than
//! [`EngineOptions::row_bytes_max`](crate::EngineOptions::row_bytes_max) is refused when it comes in, before anything
//! is written of its statement.

use std::ops::Range;

use arrow::array::{Array, ArrayRef};
use base::SqlState;

use crate::catalog::TableEntry;
use crate::{Error, Result};

/// Refuses rows above the limit. Rows of a batch that is small as a whole are not looked at one by one.
pub(super) fn check(table: &TableEntry, columns: &[ArrayRef], limit: usize) -> Result<()> {
    let rows = columns.first().map_or(0, |array| array.len());
    match too_large(columns, 0..rows, limit)? {
        None => Ok(()),
        Some(bytes) => Err(Error::state(
            SqlState::PROGRAM_LIMIT,
            format!("a row of {bytes} bytes for table \"{}\" is above the limit of {limit} bytes", table.def.name),
        )
        .with_hint("store large values in parts, or raise limits.row in the server's configuration")),
    }
}

/// The size of a row above the limit, if there is one: halves that are below it together are left alone.
fn too_large(columns: &[ArrayRef], rows: Range<usize>, limit: usize) -> Result<Option<usize>> {
    if rows.is_empty() || columns.iter().map(|array| array.get_buffer_memory_size()).sum::<usize>() <= limit {
        return Ok(None);
    }
    let mut bytes = 0;
    for array in columns {
        bytes += array.to_data().slice(rows.start, rows.len()).get_slice_memory_size()?;
    }
    if bytes <= limit {
        return Ok(None);
    }
    if rows.len() == 1 {
        return Ok(Some(bytes));
    }
    let middle = rows.start + rows.len() / 2;
    let first = too_large(columns, rows.start..middle, limit)?;
    if first.is_some() { Ok(first) } else { too_large(columns, middle..rows.end, limit) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};

    use super::*;

    #[test]
    fn one_large_row_among_many_is_found() {
        for at in [0, 1, 499, 998, 999] {
            let texts: StringArray =
                (0..1000).map(|row| Some("x".repeat(if row == at { 5000 } else { 100 }))).collect();
            let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(0..1000)), Arc::new(texts)];
            let found = too_large(&columns, 0..1000, 4000).unwrap().unwrap();
            assert!((5000..5100).contains(&found), "row {at}: {found}");
            assert!(too_large(&columns, 0..1000, 6000).unwrap().is_none());
            // A slice is judged by its own rows.
            let rest: Vec<ArrayRef> = columns.iter().map(|array| array.slice(at + 1, 999 - at)).collect();
            assert!(too_large(&rest, 0..999 - at, 4000).unwrap().is_none());
        }
    }
}
