//! Which keys a file surely does not hold.
//!
//! A blocked Bloom filter: a hash picks one 64-byte block, so that a probe touches one cache line, and seven bits in it.
//! At ten bits per key about one absent key in a hundred passes.

use bytes::Bytes;

const BLOCK_BYTES: usize = 64;
const BITS_PER_KEY: usize = 10;
const PROBES: u32 = 7;

/// The hash of a key, as it is stored for ever.
pub(crate) fn hash_key(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// A filter as it lies in the sidecar.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bloom {
    bits: Bytes,
}

fn block_of(hash: u64, blocks: usize) -> usize {
    // The high half picks the block without a division, the low half picks the bits.
    ((hash >> 32) * blocks as u64 >> 32) as usize
}

fn positions(hash: u64) -> impl Iterator<Item = (usize, u8)> {
    let low = hash as u32;
    let step = low.rotate_left(15).wrapping_mul(0x9e37_79b1) | 1;
    (0..PROBES).map(move |probe| {
        let bit = (low.wrapping_add(probe.wrapping_mul(step)) >> 23) as usize;
        (bit / 8, 1 << (bit % 8))
    })
}

impl Bloom {
    /// A filter of these hashes.
    pub(crate) fn build(hashes: &[u64]) -> Self {
        let blocks = (hashes.len() * BITS_PER_KEY).div_ceil(8 * BLOCK_BYTES).max(1);
        let mut bits = vec![0u8; blocks * BLOCK_BYTES];
        for &hash in hashes {
            let block = block_of(hash, blocks) * BLOCK_BYTES;
            for (byte, bit) in positions(hash) {
                bits[block + byte] |= bit;
            }
        }
        Self { bits: bits.into() }
    }

    /// A stored filter; `None` when the size is wrong. An empty one passes every key.
    pub(crate) fn from_bytes(bits: Bytes) -> Option<Self> {
        bits.len().is_multiple_of(BLOCK_BYTES).then_some(Self { bits })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// False only if no key with this hash was put in.
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        if self.bits.is_empty() {
            return true;
        }
        let block = block_of(hash, self.bits.len() / BLOCK_BYTES) * BLOCK_BYTES;
        positions(hash).all(|(byte, bit)| self.bits[block + byte] & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_every_key_and_few_others() {
        for count in [0u64, 1, 10, 1000, 100_000] {
            let hashes: Vec<u64> = (0..count).map(|key| hash_key(&key.to_le_bytes())).collect();
            let bloom = Bloom::from_bytes(Bytes::copy_from_slice(Bloom::build(&hashes).as_bytes())).unwrap();
            assert!(hashes.iter().all(|&hash| bloom.may_contain(hash)));
            let wrong = (count..count + 10_000).filter(|key| bloom.may_contain(hash_key(&key.to_le_bytes()))).count();
            assert!(wrong < 300, "{wrong} of 10000 pass with {count} keys");
        }
        assert!(Bloom::default().may_contain(7));
        assert!(Bloom::from_bytes(Bytes::from_static(&[0; 63])).is_none());
    }
}
