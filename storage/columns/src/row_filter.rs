//! Conditions that a scan tests before it builds its output.
//!
//! Most of what a selective scan costs is bringing values into their logical form. Rows are therefore tested first, on the
//! columns that the condition reads, and only rows that pass are brought into form. Strings behind codes are tested once
//! per distinct value, not once per row.
//!
//! # Invariants
//! - FILTER-1 hidden rows never reach a condition: `tests::scans_match_a_model`.
//! - FILTER-2 a scan with conditions returns what filtering its output would: `tests::scans_match_a_model`.

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    AnyDictionaryArray, Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, RecordBatch, new_null_array,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use base::BoxError;

use crate::{Error, Result};

/// A condition on rows. It may be asked about rows in any order and number, must answer for each row by the values of that
/// row alone, and must not fail on values that no row holds: a dictionary may keep values that are gone.
pub trait RowFilter: fmt::Debug + Send + Sync {
    /// The columns it reads, as positions in the `columns` of the scan.
    fn columns(&self) -> &[usize];

    /// Which of `rows` rows pass; NULL means no. `None` means that all do. The arrays are of the scan's output types.
    fn test(&self, columns: &[ArrayRef], rows: usize) -> Result<Option<BooleanArray>, BoxError>;
}

/// Tests rows, with the answer `None` when all pass and no NULL in it.
pub(crate) fn test(filter: &dyn RowFilter, columns: &[ArrayRef], rows: usize) -> Result<Option<BooleanArray>> {
    let Some(passed) = filter.test(columns, rows).map_err(Error::Filter)? else { return Ok(None) };
    if passed.len() != rows {
        return Err(Error::InvalidInput(format!("a filter answered for {} rows of {rows}", passed.len())));
    }
    let passed = if passed.null_count() > 0 { arrow::compute::prep_null_mask_filter(&passed) } else { passed };
    Ok((passed.true_count() < rows).then_some(passed))
}

/// Tests strings behind codes by their values; `None` in the outer option where testing row by row costs less.
pub(crate) fn test_codes(filter: &dyn RowFilter, column: &ArrayRef) -> Result<Option<Option<BooleanArray>>> {
    let Some(coded) = column.as_any_dictionary_opt() else { return Ok(None) };
    let values = coded.values();
    if values.len() > coded.keys().len() {
        return Ok(None);
    }
    let passed = test(filter, std::slice::from_ref(values), values.len())?;
    let null_passes = match coded.keys().nulls() {
        Some(_) => test(filter, &[new_null_array(values.data_type(), 1)], 1)?.is_none(),
        None => true,
    };
    if passed.is_none() && null_passes {
        return Ok(Some(None));
    }
    let passes: Vec<bool> = (0..values.len()).map(|at| passed.as_ref().is_none_or(|passed| passed.value(at))).collect();
    let rows = by_code(coded, &passes, null_passes);
    Ok(Some((rows.count_set_bits() < rows.len()).then(|| BooleanArray::new(rows, None))))
}

fn by_code(coded: &dyn AnyDictionaryArray, passes: &[bool], null_passes: bool) -> BooleanBuffer {
    let nulls = coded.keys().nulls();
    let of = |row: usize, code: usize| match nulls {
        Some(nulls) if nulls.is_null(row) => null_passes,
        _ => passes.get(code).copied().unwrap_or(false),
    };
    match coded.keys().data_type() {
        arrow::datatypes::DataType::UInt8 => {
            let codes = coded.keys().as_primitive::<arrow::datatypes::UInt8Type>().values();
            BooleanBuffer::collect_bool(codes.len(), |row| of(row, usize::from(codes[row])))
        }
        arrow::datatypes::DataType::UInt16 => {
            let codes = coded.keys().as_primitive::<arrow::datatypes::UInt16Type>().values();
            BooleanBuffer::collect_bool(codes.len(), |row| of(row, usize::from(codes[row])))
        }
        _ => {
            let codes = coded.normalized_keys();
            BooleanBuffer::collect_bool(codes.len(), |row| of(row, codes[row]))
        }
    }
}

/// Narrows a selection: `passed` answers for the rows that `kept` has, in order.
pub(crate) fn narrow(kept: Option<BooleanArray>, passed: BooleanArray) -> BooleanArray {
    let Some(kept) = kept else { return passed };
    let mut bits = BooleanBufferBuilder::new(kept.len());
    bits.append_n(kept.len(), false);
    for (at, row) in kept.values().set_indices().enumerate() {
        if passed.value(at) {
            bits.set_bit(row, true);
        }
    }
    BooleanArray::new(bits.finish(), None)
}

/// The rows of a batch that pass all filters; their positions count the batch's columns.
pub fn passing(mut batch: RecordBatch, filters: &[Arc<dyn RowFilter>]) -> Result<RecordBatch> {
    for filter in filters {
        if batch.num_rows() == 0 {
            break;
        }
        let columns: Option<Vec<ArrayRef>> =
            filter.columns().iter().map(|&at| batch.columns().get(at).cloned()).collect();
        let columns = columns.ok_or_else(|| Error::InvalidInput("a filter reads a column that is not there".into()))?;
        if let Some(passed) = test(filter.as_ref(), &columns, batch.num_rows())? {
            batch = filter_record_batch(&batch, &passed)?;
        }
    }
    Ok(batch)
}
