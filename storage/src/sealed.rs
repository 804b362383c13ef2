//! Files of ours that are written whole and guard themselves: the checkpoint, the manifest of a backup.
//!
//! # On disk
//! magic (8 bytes) · format u32 · length of the body u64 · body · crc32c u32 over everything before it; little-endian.
//!
//! # Invariants
//! - SEALED-1 what opens is what was sealed: a file that was cut, continued or changed in any byte is refused
//!   (`tests::damage_is_found`).

use bytes::Bytes;
use codec::wire::{Reader, Writer};

const HEADER: usize = 20;

/// One kind of file.
#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) magic: [u8; 8],
    pub(crate) format: u32,
    /// With its article, as in "not a checkpoint".
    pub(crate) name: &'static str,
}

/// Why a file does not open.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("the file is cut short")]
    Cut,
    #[error("not {0}")]
    Foreign(&'static str),
    #[error("format {found}; this version reads format {readable}")]
    Format { found: u32, readable: u32 },
    #[error("bytes follow its end")]
    Continued,
    #[error("the checksum does not match")]
    Checksum,
}

impl Form {
    /// A file to write the body to.
    pub(crate) fn begin(&self, capacity: usize) -> Writer {
        let mut file = Writer::with_capacity(capacity + HEADER + 4);
        file.raw(&self.magic).u32(self.format).u64(0);
        file
    }

    /// The bytes of the file, once the body is written.
    pub(crate) fn seal(file: Writer) -> Vec<u8> {
        let mut file = file.into_vec();
        let length = (file.len() - HEADER) as u64;
        file[HEADER - 8..HEADER].copy_from_slice(&length.to_le_bytes());
        let crc = crc32c::crc32c(&file);
        file.extend_from_slice(&crc.to_le_bytes());
        file
    }

    /// The body of a file, which shares its bytes.
    pub(crate) fn open(&self, file: &Bytes) -> Result<Bytes, Flaw> {
        let mut header = Reader::new(file.clone());
        let magic: [u8; 8] = header.array().map_err(|_| Flaw::Cut)?;
        if magic != self.magic {
            return Err(Flaw::Foreign(self.name));
        }
        let found = header.u32().map_err(|_| Flaw::Cut)?;
        if found != self.format {
            return Err(Flaw::Format { found, readable: self.format });
        }
        let length = header.u64().map_err(|_| Flaw::Cut)?;
        let there = header.remaining().checked_sub(4).ok_or(Flaw::Cut)?;
        match length.cmp(&(there as u64)) {
            std::cmp::Ordering::Greater => return Err(Flaw::Cut),
            std::cmp::Ordering::Less => return Err(Flaw::Continued),
            std::cmp::Ordering::Equal => {}
        }
        let (sealed, crc) = file.split_last_chunk::<4>().ok_or(Flaw::Cut)?;
        if crc32c::crc32c(sealed) != u32::from_le_bytes(*crc) {
            return Err(Flaw::Checksum);
        }
        Ok(file.slice(HEADER..sealed.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTE: Form = Form { magic: *b"LATTNOTE", format: 3, name: "a note" };

    fn note(body: &[u8]) -> Vec<u8> {
        let mut file = NOTE.begin(0);
        file.raw(body);
        Form::seal(file)
    }

    fn open(file: &[u8]) -> Result<Bytes, Flaw> {
        NOTE.open(&Bytes::copy_from_slice(file))
    }

    #[test]
    fn what_was_sealed_opens() {
        assert_eq!(open(&note(b"")).unwrap(), Bytes::new());
        assert_eq!(open(&note(b"body")).unwrap(), Bytes::from_static(b"body"));
        // The form on disk, byte for byte.
        assert_eq!(&note(b"body")[..24], b"LATTNOTE\x03\0\0\0\x04\0\0\0\0\0\0\0body");
    }

    #[test]
    fn damage_is_found() {
        let file = note(b"body");
        for length in 0..file.len() {
            assert_eq!(open(&file[..length]), Err(Flaw::Cut), "{length} bytes");
        }
        assert_eq!(open(&[file.as_slice(), b"x"].concat()), Err(Flaw::Continued));
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut changed = file.clone();
                changed[at] ^= 1 << bit;
                let flaw = open(&changed).unwrap_err();
                match at {
                    0..8 => assert_eq!(flaw, Flaw::Foreign("a note")),
                    8..12 => assert_eq!(flaw, Flaw::Format { found: 3 ^ 1 << (bit + 8 * (at - 8)), readable: 3 }),
                    12..20 => assert!(matches!(flaw, Flaw::Cut | Flaw::Continued), "{flaw}"),
                    _ => assert_eq!(flaw, Flaw::Checksum),
                }
            }
        }
    }
}
