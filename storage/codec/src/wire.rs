//! Small records: the log, checkpoints and file descriptions are written with [`Writer`] and read with [`Reader`].
//!
//! Fixed integers are little-endian; varints hold seven bits per byte, low bits first; byte strings carry a varint length.
//! There are no field tags: whoever defines a record starts it with a version byte.
//!
//! # Invariants
//! - WIRE-1 a reader never reads past its bytes and never allocates more than they could describe: see [`Reader::count`]
//!   (`tests::arbitrary_bytes_never_panic`).
//! - WIRE-2 byte strings that are read share the reader's allocation (`tests::byte_strings_are_shared`).

use bytes::Bytes;

use crate::{Error, Result};

/// Longest varint of 64 bits.
const VARINT_BYTES_MAX: usize = 10;

/// Appends values to a growing buffer.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    buffer: Vec<u8>,
}

macro_rules! fixed {
    ($($name:ident: $type:ty),* $(,)?) => {
        impl Writer {
            $(
                #[doc = concat!("Appends a little-endian `", stringify!($type), "`.")]
                pub fn $name(&mut self, value: $type) -> &mut Self {
                    self.buffer.extend_from_slice(&value.to_le_bytes());
                    self
                }
            )*
        }

        impl Reader {
            $(
                #[doc = concat!("Reads a little-endian `", stringify!($type), "`.")]
                pub fn $name(&mut self) -> Result<$type> {
                    Ok(<$type>::from_le_bytes(self.array()?))
                }
            )*
        }
    };
}

fixed! { u8: u8, u16: u16, u32: u32, u64: u64, u128: u128, i16: i16, i32: i32, i64: i64, i128: i128, f32: f32, f64: f64 }

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty buffer with room.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { buffer: Vec::with_capacity(bytes) }
    }

    /// Appends 0 or 1.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    /// Appends an unsigned varint: one byte below 128.
    pub fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.buffer.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.buffer.push(value as u8);
        self
    }

    /// Appends a signed varint: small absolute values are short.
    pub fn signed(&mut self, value: i64) -> &mut Self {
        self.varint(((value << 1) ^ (value >> 63)) as u64)
    }

    /// Appends a length, count or index.
    pub fn length(&mut self, value: usize) -> &mut Self {
        self.varint(value as u64)
    }

    /// Appends a length and the bytes.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.length(value.len());
        self.raw(value)
    }

    /// Appends a length and the text.
    pub fn str(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    /// Appends a flag and, if there is a value, what `write` appends for it.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
        self
    }

    /// Appends many byte strings: their count, their lengths, then all bytes in one run.
    pub fn slices<T: AsRef<[u8]>>(&mut self, values: &[T]) -> &mut Self {
        self.length(values.len());
        self.buffer.reserve(values.iter().map(|value| value.as_ref().len() + 1).sum());
        for value in values {
            self.length(value.as_ref().len());
        }
        for value in values {
            self.raw(value.as_ref());
        }
        self
    }

    /// Appends bytes without a length.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.buffer.extend_from_slice(value);
        self
    }

    /// Makes room for that many more bytes.
    pub fn reserve(&mut self, bytes: usize) -> &mut Self {
        self.buffer.reserve(bytes);
        self
    }

    /// How many bytes were written.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// What was written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer
    }

    /// What was written, ready to share.
    pub fn finish(self) -> Bytes {
        Bytes::from(self.buffer)
    }

    /// What was written.
    pub fn into_vec(self) -> Vec<u8> {
        self.buffer
    }
}

/// Reads values back in the order they were written. Every failure is [`Error::Corrupt`].
#[derive(Clone, Debug)]
pub struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// Reads a copy of `bytes`; for callers that only borrow them.
    pub fn copy_of(bytes: &[u8]) -> Self {
        Self::new(Bytes::copy_from_slice(bytes))
    }

    fn take(&mut self, length: usize) -> Result<std::ops::Range<usize>> {
        if length > self.remaining() {
            return Err(Error::Corrupt(format!("{length} bytes wanted at {}, {} left", self.at, self.remaining())));
        }
        let range = self.at..self.at + length;
        self.at = range.end;
        Ok(range)
    }

    /// Reads a fixed number of bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let range = self.take(N)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[range]);
        Ok(array)
    }

    /// Reads 0 or 1; anything else is damage.
    pub fn bool(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::Corrupt(format!("flag of value {other} at {}", self.at - 1))),
        }
    }

    /// Reads an unsigned varint.
    pub fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for step in 0..VARINT_BYTES_MAX {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if step == VARINT_BYTES_MAX - 1 && bits > 1 {
                break;
            }
            value |= bits << (7 * step);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Error::Corrupt(format!("endless varint before {}", self.at)))
    }

    /// Reads a signed varint.
    pub fn signed(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Reads a length or index.
    pub fn length(&mut self) -> Result<usize> {
        usize::try_from(self.varint()?).map_err(|_| Error::corrupt("length beyond the address space"))
    }

    /// Reads the count of a list whose items take at least `item_bytes_min` bytes each, so that damage cannot ask for more
    /// memory than the bytes could describe.
    pub fn count(&mut self, item_bytes_min: usize) -> Result<usize> {
        let count = self.length()?;
        if count.saturating_mul(item_bytes_min.max(1)) > self.remaining() {
            return Err(Error::Corrupt(format!(
                "count of {count} before {}, {} bytes left",
                self.at,
                self.remaining()
            )));
        }
        Ok(count)
    }

    /// Reads a length and that many bytes, sharing the allocation.
    pub fn bytes(&mut self) -> Result<Bytes> {
        let length = self.length()?;
        self.raw(length)
    }

    /// Reads a length and that many bytes, borrowed.
    pub fn slice(&mut self) -> Result<&[u8]> {
        let length = self.length()?;
        let range = self.take(length)?;
        Ok(&self.bytes[range])
    }

    /// Reads a text.
    pub fn str(&mut self) -> Result<&str> {
        let at = self.at;
        std::str::from_utf8(self.slice()?).map_err(|_| Error::Corrupt(format!("text at {at} is not UTF-8")))
    }

    /// Reads a text, owned.
    pub fn string(&mut self) -> Result<String> {
        self.str().map(str::to_owned)
    }

    /// Reads what [`Writer::option`] wrote.
    pub fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.bool()? { read(self).map(Some) } else { Ok(None) }
    }

    /// Reads what [`Writer::slices`] wrote; all share one allocation.
    pub fn slices(&mut self) -> Result<Vec<Bytes>> {
        let count = self.count(1)?;
        let mut lengths = Vec::with_capacity(count);
        for _ in 0..count {
            lengths.push(self.length()?);
        }
        lengths.into_iter().map(|length| self.raw(length)).collect()
    }

    /// Reads bytes without a length, sharing the allocation.
    pub fn raw(&mut self, length: usize) -> Result<Bytes> {
        let range = self.take(length)?;
        Ok(self.bytes.slice(range))
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// How many bytes were read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    /// Reads all that is left, sharing the allocation.
    pub fn rest(&mut self) -> Bytes {
        let rest = self.bytes.slice(self.at..);
        self.at = self.bytes.len();
        rest
    }

    /// Ends the record: bytes left over are damage.
    pub fn finish(&self) -> Result<()> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(Error::Corrupt(format!("{left} bytes left over after a record of {}", self.at))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_round_trip() {
        let mut writer = Writer::new();
        writer
            .u8(7)
            .u16(65_535)
            .u32(1 << 31)
            .u64(u64::MAX)
            .i16(-2)
            .i32(i32::MIN)
            .i64(-1)
            .i128(i128::MIN)
            .f64(-0.0)
            .bool(true);
        writer.str("grüße").bytes(b"").raw(b"xyz").option(Some(5u32), |w, v| {
            w.u32(v);
        });
        writer.option(None::<u32>, |w, v| {
            w.u32(v);
        });
        writer.slices(&[b"a".as_slice(), b"", b"ccc"]);
        let mut reader = Reader::new(writer.finish());
        assert_eq!(reader.u8().unwrap(), 7);
        assert_eq!(reader.u16().unwrap(), 65_535);
        assert_eq!(reader.u32().unwrap(), 1 << 31);
        assert_eq!(reader.u64().unwrap(), u64::MAX);
        assert_eq!(reader.i16().unwrap(), -2);
        assert_eq!(reader.i32().unwrap(), i32::MIN);
        assert_eq!(reader.i64().unwrap(), -1);
        assert_eq!(reader.i128().unwrap(), i128::MIN);
        assert_eq!(reader.f64().unwrap().to_bits(), (-0.0f64).to_bits());
        assert!(reader.bool().unwrap());
        assert_eq!(reader.str().unwrap(), "grüße");
        assert!(reader.bytes().unwrap().is_empty());
        assert_eq!(reader.raw(3).unwrap().as_ref(), b"xyz");
        assert_eq!(reader.option(Reader::u32).unwrap(), Some(5));
        assert_eq!(reader.option(Reader::u32).unwrap(), None);
        assert_eq!(reader.slices().unwrap(), vec![Bytes::from("a"), Bytes::new(), Bytes::from("ccc")]);
        reader.finish().unwrap();
        assert!(matches!(reader.u8(), Err(Error::Corrupt(_))));
    }

    #[test]
    fn byte_strings_are_shared() {
        let mut writer = Writer::new();
        writer.bytes(b"hello");
        let bytes = writer.finish();
        let inside = bytes.as_ptr() as usize + 1;
        assert_eq!(Reader::new(bytes.clone()).bytes().unwrap().as_ptr() as usize, inside);
    }

    #[test]
    fn counts_are_bounded_by_the_bytes_left() {
        let mut writer = Writer::new();
        writer.varint(u64::MAX);
        assert!(matches!(Reader::new(writer.finish()).slices(), Err(Error::Corrupt(_))));
        assert!(matches!(Reader::copy_of(&[0xff; 10]).varint(), Err(Error::Corrupt(_))));
    }

    proptest! {
        #[test]
        fn varints_round_trip(unsigned: u64, signed: i64) {
            let mut writer = Writer::new();
            writer.varint(unsigned).signed(signed);
            let mut reader = Reader::new(writer.finish());
            prop_assert_eq!(reader.varint().unwrap(), unsigned);
            prop_assert_eq!(reader.signed().unwrap(), signed);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let mut reader = Reader::copy_of(&bytes);
            while reader.str().is_ok() && reader.varint().is_ok() && reader.slices().is_ok() && !reader.is_empty() {}
            let _ = Reader::copy_of(&bytes).slices();
            let _ = Reader::copy_of(&bytes).option(Reader::string);
        }
    }
}
