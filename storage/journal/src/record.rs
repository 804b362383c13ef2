//! Records: the bytes of one header and its payload. See the README for the layout.

use bytes::{Buf, BufMut, Bytes};

/// The first four bytes of a record, "LJR1".
const MAGIC: u32 = u32::from_le_bytes(*b"LJR1");
/// The length of a record header.
pub(crate) const HEADER_BYTES: usize = 56;
/// Records start at multiples of this.
pub(crate) const ALIGN: usize = 8;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Everything that records before this one said, in short: the first record of a segment, and of each start.
    State = 1,
    /// A log entry at `index`.
    Entry = 2,
    /// The vote.
    Vote = 3,
    /// The committed position.
    Committed = 4,
    /// Entries from `index` on are gone; payload `[1]`. With payload `[0]`, all entries are.
    Truncate = 5,
    /// Entries up to `index` are not needed any more; the payload is the caller's marker.
    Purge = 6,
    /// The segment ends here and goes on in segment `index`.
    End = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::State,
            2 => Kind::Entry,
            3 => Kind::Vote,
            4 => Kind::Committed,
            5 => Kind::Truncate,
            6 => Kind::Purge,
            7 => Kind::End,
            _ => return None,
        })
    }
}

/// A decoded header whose own checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) crc: u32,
    pub(crate) previous: u32,
    pub(crate) payload_crc: u32,
    pub(crate) len: u32,
    pub(crate) kind: Kind,
    pub(crate) group: u16,
    pub(crate) epoch: u32,
    pub(crate) sequence: u64,
    pub(crate) synced: u64,
    pub(crate) index: u64,
}

/// The part of a header its writer chooses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) previous: u32,
    pub(crate) epoch: u32,
    pub(crate) sequence: u64,
    pub(crate) synced: u64,
}

/// The bytes a record takes in its segment, padding included.
pub(crate) fn record_bytes(payload: usize) -> usize {
    (HEADER_BYTES + payload).next_multiple_of(ALIGN)
}

/// Appends a record to `out` and returns the checksum of its header, the link for the next.
pub(crate) fn encode(out: &mut Vec<u8>, salt: u32, link: Link, kind: Kind, index: u64, payload: &[u8]) -> u32 {
    let start = out.len();
    out.put_u32_le(MAGIC);
    out.put_u32_le(0);
    out.put_u32_le(link.previous);
    out.put_u32_le(crc32c::crc32c(payload));
    out.put_u32_le(u32::try_from(payload.len()).expect("segments, and so records, are below 4 GiB"));
    out.put_u8(kind as u8);
    out.put_u8(0);
    // One group is used now; the field keeps its place.
    out.put_u16_le(0);
    out.put_u32_le(link.epoch);
    out.put_u32_le(0);
    out.put_u64_le(link.sequence);
    out.put_u64_le(link.synced);
    out.put_u64_le(index);
    let crc = crc32c::crc32c_append(salt, &out[start + 8..start + HEADER_BYTES]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
    out.resize(start + record_bytes(payload.len()), 0);
    crc
}

/// Reads a header, or `None` when these bytes are not one of this journal.
pub(crate) fn decode(bytes: &[u8], salt: u32) -> Option<Header> {
    let whole = bytes.get(..HEADER_BYTES)?;
    let mut rest = whole;
    if rest.get_u32_le() != MAGIC {
        return None;
    }
    let crc = rest.get_u32_le();
    if crc32c::crc32c_append(salt, rest) != crc {
        return None;
    }
    let previous = rest.get_u32_le();
    let payload_crc = rest.get_u32_le();
    let len = rest.get_u32_le();
    let kind = rest.get_u8();
    rest.advance(1);
    let group = rest.get_u16_le();
    let epoch = rest.get_u32_le();
    rest.advance(4);
    let sequence = rest.get_u64_le();
    let synced = rest.get_u64_le();
    let index = rest.get_u64_le();
    // The checksum is right, so an unknown kind was written by a later version, which the format version tells first.
    let kind = Kind::from_byte(kind)?;
    Some(Header { crc, previous, payload_crc, len, kind, group, epoch, sequence, synced, index })
}

/// The payload of a header found at the start of `bytes`, when it is whole and its checksum is right.
pub(crate) fn payload<'a>(header: &Header, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let end = HEADER_BYTES.checked_add(usize::try_from(header.len).ok()?)?;
    let payload = bytes.get(HEADER_BYTES..end)?;
    (crc32c::crc32c(payload) == header.payload_crc).then_some(payload)
}

/// The indexes of the entries that are there: `first` up to, not including, `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) first: u64,
    pub(crate) end: u64,
    /// Whether the next entry must have the index `end`. False only while there is nothing to follow.
    pub(crate) anchored: bool,
}

impl Bounds {
    pub(crate) fn is_empty(&self) -> bool {
        self.first == self.end
    }

    pub(crate) fn append(&mut self, index: u64) {
        if !self.anchored {
            *self = Bounds { first: index, end: index, anchored: true };
        }
        self.end = index + 1;
    }

    /// Removes the entries from `end` on.
    pub(crate) fn truncate(&mut self, end: u64) {
        self.end = self.end.min(end).max(self.first);
    }

    /// Removes all entries that are left; the next one may be any, unless something was purged.
    pub(crate) fn clear(&mut self, purged: bool) {
        *self = if purged { Bounds { end: self.first, ..*self } } else { Bounds::default() };
    }

    pub(crate) fn purge(&mut self, upto: u64) {
        self.first = self.first.max(upto + 1);
        self.end = self.end.max(self.first);
        self.anchored = true;
    }
}

/// What a [`Kind::State`] record holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) bounds: Bounds,
    pub(crate) vote: Option<Bytes>,
    pub(crate) committed: Option<Bytes>,
    pub(crate) purged: Option<(u64, Bytes)>,
}

/// Stands for a missing value where a length is expected.
const NONE: u32 = u32::MAX;

impl State {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64_le(self.bounds.first);
        out.put_u64_le(self.bounds.end);
        out.put_u64_le(u64::from(self.bounds.anchored));
        out.put_u64_le(self.purged.as_ref().map_or(0, |(index, _)| *index));
        for bytes in [self.vote.as_ref(), self.committed.as_ref(), self.purged.as_ref().map(|(_, marker)| marker)] {
            match bytes {
                Some(bytes) => {
                    out.put_u32_le(u32::try_from(bytes.len()).expect("limited to MAX_META_BYTES when it came in"));
                    out.put_slice(bytes);
                }
                None => out.put_u32_le(NONE),
            }
        }
        out
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Option<State> {
        let first = bytes.try_get_u64_le().ok()?;
        let end = bytes.try_get_u64_le().ok()?;
        let anchored = bytes.try_get_u64_le().ok()? != 0;
        let purged = bytes.try_get_u64_le().ok()?;
        let mut next = || -> Option<Option<Bytes>> {
            let len = bytes.try_get_u32_le().ok()?;
            if len == NONE {
                return Some(None);
            }
            let (value, rest) = bytes.split_at_checked(usize::try_from(len).ok()?)?;
            bytes = rest;
            Some(Some(Bytes::copy_from_slice(value)))
        };
        let (vote, committed, marker) = (next()?, next()?, next()?);
        let bounds = Bounds { first, end, anchored };
        (first <= end).then_some(State { bounds, vote, committed, purged: marker.map(|marker| (purged, marker)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { previous: 7, epoch: 3, sequence: 11, synced: 9 };

    /// Pins format version 1 to the byte: a change here needs a new version and a reader for the old one.
    #[test]
    fn the_layout_is_as_documented() {
        let mut out = Vec::new();
        let crc = encode(&mut out, 5, LINK, Kind::Entry, 0x0102, b"hello");
        let mut expected = Vec::new();
        expected.extend_from_slice(b"LJR1");
        expected.extend_from_slice(&crc.to_le_bytes());
        expected.extend_from_slice(&[7, 0, 0, 0]);
        expected.extend_from_slice(&0x9A71_BB4C_u32.to_le_bytes());
        expected.extend_from_slice(&[5, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend_from_slice(&[11, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        expected.extend_from_slice(b"hello\0\0\0");
        assert_eq!(out, expected);
        assert_eq!(out.len(), record_bytes(5));
        let header = decode(&out, 5).unwrap();
        assert_eq!((header.sequence, header.synced, header.index, header.kind), (11, 9, 0x0102, Kind::Entry));
        assert_eq!(payload(&header, &out), Some(b"hello".as_slice()));
        assert_eq!(decode(&out, 6), None, "the salt is part of the checksum");
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut out = Vec::new();
        encode(&mut out, 5, LINK, Kind::Vote, 0, b"payload!");
        for bit in 0..out.len() * 8 {
            let mut damaged = out.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let seen = decode(&damaged, 5).and_then(|header| payload(&header, &damaged).map(<[u8]>::to_vec));
            assert_eq!(seen, None, "bit {bit}");
        }
    }

    #[test]
    fn state_comes_back() {
        let bounds = Bounds { first: 4, end: 9, anchored: true };
        let bytes = Some(Bytes::from_static(b"v"));
        let whole = State { bounds, vote: bytes.clone(), committed: None, purged: Some((3, Bytes::new())) };
        for state in [State::default(), whole] {
            assert_eq!(State::decode(&state.encode()), Some(state.clone()));
            assert_eq!(State::decode(&state.encode()[1..]), None);
        }
    }
}
