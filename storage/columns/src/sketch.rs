//! How many distinct values a column has, roughly, in one KiB: HyperLogLog with linear counting for small sets.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;
use xxhash_rust::xxh3::xxh3_64;

use crate::wire::{In, Out};

/// Bits of the hash that pick a register.
const PRECISION: u32 = 10;
const REGISTERS: usize = 1 << PRECISION;
/// Up to so many used registers are written one by one.
const SPARSE: usize = 320;

/// Estimates the number of distinct values, NULL not counted, within a few percent. Sketches of several files merge
/// without loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistinctSketch {
    registers: Vec<u8>,
}

impl Default for DistinctSketch {
    fn default() -> Self {
        Self { registers: vec![0; REGISTERS] }
    }
}

impl DistinctSketch {
    /// The estimate.
    pub fn estimate(&self) -> u64 {
        let registers = REGISTERS as f64;
        let sum: f64 = self.registers.iter().map(|&rank| (-f64::from(rank)).exp2()).sum();
        let raw = 0.7213 / (1.0 + 1.079 / registers) * registers * registers / sum;
        let empty = self.registers.iter().filter(|&&rank| rank == 0).count();
        if raw <= 2.5 * registers && empty > 0 {
            (registers * (registers / empty as f64).ln()).round() as u64
        } else {
            raw.round() as u64
        }
    }

    /// Adds another sketch's values.
    pub fn merge(&mut self, other: &DistinctSketch) {
        for (mine, theirs) in self.registers.iter_mut().zip(&other.registers) {
            *mine = (*mine).max(*theirs);
        }
    }

    pub(crate) fn add_hash(&mut self, hash: u64) {
        let register = (hash >> (64 - PRECISION)) as usize;
        let rank = ((hash << PRECISION) | (1 << (PRECISION - 1))).leading_zeros() as u8 + 1;
        let slot = &mut self.registers[register];
        *slot = (*slot).max(rank);
    }

    /// Adds the values of a column. Nested types are left out: nobody asks how many distinct lists there are.
    pub(crate) fn add_column(&mut self, values: &ArrayRef) {
        match values.data_type() {
            DataType::Boolean => {
                let values = values.as_boolean();
                for value in values.iter().flatten() {
                    self.add_hash(xxh3_64(&[u8::from(value)]));
                }
            }
            DataType::Utf8 => {
                let values = values.as_string::<i32>();
                for value in values.iter().flatten() {
                    self.add_hash(xxh3_64(value.as_bytes()));
                }
            }
            DataType::Binary => {
                let values = values.as_binary::<i32>();
                for value in values.iter().flatten() {
                    self.add_hash(xxh3_64(value));
                }
            }
            data_type => {
                if let Some(width) = fixed_width(data_type) {
                    self.add_fixed(values, width);
                }
            }
        }
    }

    fn add_fixed(&mut self, values: &ArrayRef, width: usize) {
        let data = values.to_data();
        let Some(buffer) = data.buffers().first() else { return };
        let start = data.offset() * width;
        let bytes = &buffer.as_slice()[start..start + data.len() * width];
        for (row, value) in bytes.chunks_exact(width).enumerate() {
            if data.is_valid(row) {
                self.add_hash(xxh3_64(value));
            }
        }
    }

    /// Few values leave most registers empty, so only the others are written.
    pub(crate) fn write(&self, out: &mut Out) {
        let used: Vec<(usize, u8)> = self.registers.iter().copied().enumerate().filter(|&(_, rank)| rank > 0).collect();
        out.u64(used.len() as u64);
        if used.len() > SPARSE {
            out.slice(&self.registers);
            return;
        }
        for (register, rank) in used {
            out.u64(register as u64);
            out.u8(rank);
        }
    }

    pub(crate) fn read(input: &mut In) -> Option<Self> {
        let used = usize::try_from(input.u64()?).ok()?;
        if used > SPARSE {
            let registers = input.slice()?.to_vec();
            return (registers.len() == REGISTERS).then_some(Self { registers });
        }
        let mut sketch = Self::default();
        for _ in 0..used {
            let register = usize::try_from(input.u64()?).ok()?;
            *sketch.registers.get_mut(register)? = input.u8()?;
        }
        Some(sketch)
    }
}

fn fixed_width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::FixedSizeBinary(width) => usize::try_from(*width).ok(),
        other => other.primitive_width(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, StringArray};

    use super::*;

    #[test]
    fn estimates_within_ten_percent() {
        for count in [0i32, 1, 7, 100, 1000, 20_000, 300_000] {
            let mut sketch = DistinctSketch::default();
            let values: ArrayRef = Arc::new((0..count).flat_map(|n| [Some(n), None, Some(n)]).collect::<Int32Array>());
            sketch.add_column(&values);
            let estimate = sketch.estimate() as f64;
            assert!(
                (estimate - f64::from(count)).abs() <= 0.1 * f64::from(count) + 0.5,
                "{count} estimated as {estimate}"
            );
        }
    }

    #[test]
    fn merging_is_adding() {
        let texts = |range: std::ops::Range<u32>| -> ArrayRef {
            Arc::new(range.map(|n| Some(n.to_string())).collect::<StringArray>())
        };
        let (mut all, mut left, mut right) =
            (DistinctSketch::default(), DistinctSketch::default(), DistinctSketch::default());
        all.add_column(&texts(0..5000));
        left.add_column(&texts(0..3000));
        right.add_column(&texts(2000..5000).slice(0, 3000));
        left.merge(&right);
        assert_eq!(left, all);
        let mut small = DistinctSketch::default();
        small.add_column(&texts(0..9));
        for sketch in [DistinctSketch::default(), small, all] {
            let mut out = Out::default();
            sketch.write(&mut out);
            assert_eq!(DistinctSketch::read(&mut In::new(out.bytes.into())), Some(sketch));
        }
    }
}
