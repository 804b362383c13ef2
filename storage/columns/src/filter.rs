//! What a scan may skip: a conjunction of simple tests, checked against zone statistics only.

use arrow::array::ArrayRef;
use base::ColumnId;

/// A comparison of a column with a literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    /// Equal.
    Eq,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
}

/// Which values a test looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneColumn {
    /// A column of the table.
    Column(ColumnId),
    /// `_tx_from`, literals are Int64.
    TxFrom,
    /// `_tx_to`, literals are Int64; in `current` every row has `i64::MAX`.
    TxTo,
}

/// One test. NULL passes no test but [`ZoneTest::IsNull`].
#[derive(Clone, Debug)]
pub enum ZoneTest {
    /// Column op literal. The literal is a one-row array of the column's logical type; a NULL literal matches nothing.
    Compare(CompareOp, ArrayRef),
    /// Equal to one of the rows of an array of the column's logical type.
    In(ArrayRef),
    /// IS NULL.
    IsNull,
    /// IS NOT NULL.
    IsNotNull,
}

/// A test of one column.
#[derive(Clone, Debug)]
pub struct ZonePredicate {
    /// What is tested.
    pub column: ZoneColumn,
    /// How.
    pub test: ZoneTest,
}

/// All of these hold for every row the caller wants. Zones that can hold no such row are skipped; rows of other zones
/// come back untested. A test on a column without statistics, or with a literal of another type, skips nothing.
#[derive(Clone, Debug, Default)]
pub struct ZoneFilter {
    /// The conjunction.
    pub predicates: Vec<ZonePredicate>,
}

impl ZoneFilter {
    /// Keeps everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// Adds a comparison.
    pub fn and_compare(mut self, column: ZoneColumn, op: CompareOp, literal: ArrayRef) -> Self {
        self.predicates.push(ZonePredicate { column, test: ZoneTest::Compare(op, literal) });
        self
    }

    /// Adds a membership test.
    pub fn and_in(mut self, column: ZoneColumn, values: ArrayRef) -> Self {
        self.predicates.push(ZonePredicate { column, test: ZoneTest::In(values) });
        self
    }

    /// Adds IS NULL or IS NOT NULL.
    pub fn and_null(mut self, column: ZoneColumn, is_null: bool) -> Self {
        let test = if is_null { ZoneTest::IsNull } else { ZoneTest::IsNotNull };
        self.predicates.push(ZonePredicate { column, test });
        self
    }
}
