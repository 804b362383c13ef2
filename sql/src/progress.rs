//! How far a statement is: the rows its scans have passed, over the rows they will pass.
//!
//! Every scan announces its rows when it is planned and reports them as it reads. Rows that zones let it skip count as
//! passed when the share they lie in has been read, so that a filtered scan arrives at its end too.
//!
//! # Invariants
//! - PROGRESS-1 the fraction never goes back, whatever is planned late or tried again, and says 1 only for a statement that
//!   has ended, which this module does not know: it stops at [`ALMOST`]. Test: `the_fraction_never_goes_back`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Fractions are kept in millionths.
const WHOLE: u64 = 1_000_000;
/// What is shown while everything has been read but the statement has not ended: sorting and committing come after.
const ALMOST: u64 = 990_000;

/// How far one statement is.
#[derive(Debug, Default)]
pub struct Progress {
    expected: AtomicU64,
    passed: AtomicU64,
    /// The highest fraction that was shown.
    shown: AtomicU64,
}

impl Progress {
    /// Between 0 and 1; `None` while nothing is known, as for statements that read no table.
    pub fn fraction(&self) -> Option<f64> {
        let expected = self.expected.load(Ordering::Relaxed);
        if expected == 0 {
            return None;
        }
        let passed = self.passed.load(Ordering::Relaxed).min(expected);
        let now =
            u64::try_from(u128::from(passed) * u128::from(WHOLE) / u128::from(expected)).unwrap_or(WHOLE).min(ALMOST);
        let shown = self.shown.fetch_max(now, Ordering::Relaxed).max(now);
        #[expect(clippy::cast_precision_loss, reason = "at most a million")]
        Some(shown as f64 / WHOLE as f64)
    }

    /// A scan of so many rows was planned.
    pub(crate) fn expect(&self, rows: u64) {
        self.expected.fetch_add(rows, Ordering::Relaxed);
    }

    /// So many rows were read or skipped.
    pub(crate) fn pass(&self, rows: u64) {
        self.passed.fetch_add(rows, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fraction_never_goes_back() {
        let progress = Progress::default();
        assert_eq!(progress.fraction(), None);
        progress.pass(5);
        assert_eq!(progress.fraction(), None, "nothing was announced");
        progress.expect(10);
        assert_eq!(progress.fraction(), Some(0.5));
        progress.expect(90);
        assert_eq!(progress.fraction(), Some(0.5), "a scan that is planned late");
        progress.pass(70);
        assert_eq!(progress.fraction(), Some(0.75));
        progress.pass(1000);
        assert_eq!(progress.fraction(), Some(0.99), "read, but not ended");
    }
}
