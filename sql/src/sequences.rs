//! Sequences: durable counters of the store, handed out from blocks kept in memory.
//!
//! As in PostgreSQL, a sequence never goes back: a rolled-back transaction, a crash or a restart leaves gaps.
//!
//! # Invariants
//! - SEQ-1 a value is handed out once per generation. Test: `values_are_handed_out_once`.

use std::collections::HashMap;

use base::SqlState;
use parking_lot::Mutex;
use storage::Store;

use crate::catalog::{ObjectId, Sequence};
use crate::{Error, Result};

/// The least number of values reserved at once: a reservation is a commit.
const BLOCK: u64 = 64;
/// The greatest.
const BLOCK_MAX: u64 = 65_536;

#[derive(Debug, Default)]
struct Block {
    next: u64,
    end: u64,
    /// Doubles while the sequence is busy.
    size: u64,
}

/// Blocks by sequence and generation.
#[derive(Debug, Default)]
pub(crate) struct Sequences {
    blocks: Mutex<HashMap<(ObjectId, u32), Block>>,
}

impl Sequences {
    fn take(&self, sequence: &Sequence, count: u64, into: &mut Vec<u64>) -> u64 {
        let mut blocks = self.blocks.lock();
        let block = blocks.entry((sequence.id, sequence.generation)).or_default();
        let taken = count.min(block.end - block.next);
        into.extend(block.next..block.next + taken);
        block.next += taken;
        taken
    }

    /// Reserves at least `count` more values.
    async fn reserve(&self, store: &Store, sequence: &Sequence, count: u64) -> Result<(u64, u64)> {
        let size = {
            let mut blocks = self.blocks.lock();
            let block = blocks.entry((sequence.id, sequence.generation)).or_default();
            block.size = (block.size * 2).clamp(BLOCK, BLOCK_MAX);
            block.size.max(count)
        };
        let counter = format!("sequence.{}.{}", sequence.id, sequence.generation);
        let first = store.allocate(&counter, size).await.map_err(Error::classified)?;
        Ok((first, size))
    }

    fn put(&self, sequence: &Sequence, next: u64, end: u64) {
        let mut blocks = self.blocks.lock();
        let block = blocks.entry((sequence.id, sequence.generation)).or_default();
        // Two reservations may race: keep the larger rest, the other becomes a gap.
        if end - next > block.end - block.next {
            block.next = next;
            block.end = end;
        }
    }

    /// The next `count` values.
    pub(crate) async fn next(&self, store: &Store, sequence: &Sequence, count: usize) -> Result<Vec<i64>> {
        let wanted = count as u64;
        let mut places = Vec::with_capacity(count);
        let taken = self.take(sequence, wanted, &mut places);
        if taken < wanted {
            let rest = wanted - taken;
            let (first, size) = self.reserve(store, sequence, rest).await?;
            places.extend(first..first + rest);
            self.put(sequence, first + rest, first + size);
        }
        places.into_iter().map(|place| value(sequence, place)).collect()
    }

    /// The same from code that cannot wait, such as a function inside a plan.
    pub(crate) fn next_blocking(&self, store: &Store, sequence: &Sequence, count: usize) -> Result<Vec<i64>> {
        let wanted = count as u64;
        let mut places = Vec::with_capacity(count);
        let taken = self.take(sequence, wanted, &mut places);
        if taken < wanted {
            let rest = wanted - taken;
            let (first, size) = block_on(self.reserve(store, sequence, rest))?;
            places.extend(first..first + rest);
            self.put(sequence, first + rest, first + size);
        }
        places.into_iter().map(|place| value(sequence, place)).collect()
    }

    /// Makes sure that `count` values can be had without waiting.
    pub(crate) async fn prefill(&self, store: &Store, sequence: &Sequence, count: u64) -> Result<()> {
        let rest = {
            let mut blocks = self.blocks.lock();
            let block = blocks.entry((sequence.id, sequence.generation)).or_default();
            block.end - block.next
        };
        if rest < count {
            let (first, size) = self.reserve(store, sequence, count).await?;
            self.put(sequence, first, first + size);
        }
        Ok(())
    }
}

/// Runs a future from synchronous code on a worker thread of a multi-threaded runtime.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(|| handle.block_on(work))
        }
        _ => Err(Error::internal("sequences inside queries need a multi-threaded runtime")),
    }
}

/// The value at a place of the durable counter, which starts at 1.
fn value(sequence: &Sequence, place: u64) -> Result<i64> {
    let step = i128::from(sequence.increment);
    let index = i128::from(place) - 1;
    let (first, last, again) = if step > 0 {
        (i128::from(sequence.base), i128::from(sequence.max), i128::from(sequence.min))
    } else {
        (i128::from(sequence.base), i128::from(sequence.min), i128::from(sequence.max))
    };
    let run = (last - first) / step + 1;
    let at = if index < run {
        first + index * step
    } else if sequence.cycle {
        let round = (last - again) / step + 1;
        again + (index - run) % round * step
    } else {
        let (word, bound) = if step > 0 { ("maximum", sequence.max) } else { ("minimum", sequence.min) };
        return Err(Error::state(
            SqlState([b'2', b'2', b'0', b'0', b'H']),
            format!("nextval: reached {word} value of sequence \"{}\" ({bound})", sequence.name),
        ));
    };
    i64::try_from(at).map_err(|_| Error::internal("a sequence left its range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(increment: i64, min: i64, max: i64, base: i64, cycle: bool) -> Sequence {
        Sequence {
            id: 1,
            schema: 1,
            name: "s".to_owned(),
            sql_type: "bigint".to_owned(),
            start: base,
            increment,
            min,
            max,
            cycle,
            generation: 0,
            base,
            owned_by: None,
            internal: false,
            comment: None,
        }
    }

    #[test]
    fn values_are_handed_out_once() {
        let up = sequence(2, 1, 7, 3, true);
        let values: Vec<i64> = (1..=6).map(|place| value(&up, place).unwrap()).collect();
        assert_eq!(values, [3, 5, 7, 1, 3, 5]);
        let down = sequence(-1, -2, -1, -1, false);
        assert_eq!(value(&down, 2).unwrap(), -2);
        assert!(value(&down, 3).is_err());
    }
}
