//! The few primitives that this crate's own files are made of: little-endian numbers, varints and length-prefixed bytes.

use bytes::{Buf, BufMut, Bytes};

/// Appends primitives to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Out {
    pub(crate) bytes: Vec<u8>,
}

impl Out {
    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.put_u8(value);
    }

    pub(crate) fn u64(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.put_u8(value as u8);
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.bytes.put_i64_le(value);
    }

    pub(crate) fn slice(&mut self, value: &[u8]) {
        self.u64(value.len() as u64);
        self.bytes.put_slice(value);
    }
}

/// Reads what [`Out`] wrote; `None` means that the bytes are not ours.
#[derive(Debug)]
pub(crate) struct In {
    pub(crate) bytes: Bytes,
}

impl In {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { bytes }
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.bytes.try_get_u8().ok()
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        u32::try_from(self.u64()?).ok()
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.bytes.try_get_i64_le().ok()
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = *self.bytes.first_chunk::<N>()?;
        self.bytes.advance(N);
        Some(array)
    }

    pub(crate) fn slice(&mut self) -> Option<Bytes> {
        let len = usize::try_from(self.u64()?).ok()?;
        (len <= self.bytes.len()).then(|| self.bytes.split_to(len))
    }

    pub(crate) fn string(&mut self) -> Option<String> {
        String::from_utf8(self.slice()?.to_vec()).ok()
    }
}
