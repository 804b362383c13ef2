//! What a backup consists of: the identity of its place, and the list of its objects.
//!
//! # At the place
//! ```text
//! BACKUP                       whose backups these are; written first
//! MANIFEST                     what the backup consists of; written last
//! checkpoint-{commit}-{hash}   the state at the backup's commit, as a checkpoint file
//! columns/…                    the objects of the column tier that the state names, under their own paths
//! ```
//! `BACKUP` is text. `MANIFEST` is [sealed](crate::sealed) with the magic `LATTBKUP`; its body is written with
//! [`codec::wire`].

use base::CommitTs;
use bytes::Bytes;
use codec::wire::{Reader, Writer};
use columns::Digest;

use crate::sealed::{Flaw, Form};
use crate::{Error, Result};

pub(super) const IDENTITY: &str = "BACKUP";
pub(super) const MANIFEST: &str = "MANIFEST";
/// What the names of checkpoints begin with; a manifest names its own in full.
pub(super) const CHECKPOINT: &str = "checkpoint-";
/// The folder of the column tier's objects.
pub(super) const COLUMNS: &str = "columns/";

const FORMAT: u32 = 1;
const FORM: Form = Form { magic: *b"LATTBKUP", format: FORMAT, name: "the manifest of a backup" };

/// One object of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its path at the place.
    pub(super) path: String,
    pub(super) digest: Digest,
}

/// The list of a backup's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    /// The database that was backed up.
    pub(super) cluster: String,
    /// The state is everything committed up to here.
    pub(super) at: CommitTs,
    /// When it was taken, by the clock of the server.
    pub(super) taken: CommitTs,
    /// The version of the server that took it.
    pub(super) version: String,
    pub(super) checkpoint: Entry,
    /// In path order.
    pub(super) objects: Vec<Entry>,
}

impl Manifest {
    pub(super) fn encode(&self) -> Bytes {
        let mut body = FORM.begin(64 + 80 * self.objects.len());
        body.str(&self.cluster).i64(self.at.0).i64(self.taken.0).str(&self.version);
        put_entry(&mut body, &self.checkpoint);
        body.length(self.objects.len());
        for entry in &self.objects {
            put_entry(&mut body, entry);
        }
        Form::seal(body).into()
    }

    /// Reads a manifest; the error says what is wrong with it.
    pub(super) fn decode(bytes: &Bytes) -> Result<Self> {
        let body = FORM.open(bytes).map_err(|flaw| match flaw {
            Flaw::Format { .. } => {
                Error::Place(format!("the backup has {flaw}: restore it with the version that took it"))
            }
            flaw => Error::Corrupt(format!("{MANIFEST}: {flaw}")),
        })?;
        Self::read(&mut Reader::new(body)).map_err(|error| Error::Corrupt(format!("{MANIFEST}: {error}")))
    }

    fn read(input: &mut Reader) -> Result<Self> {
        let cluster = input.string()?;
        let at = CommitTs(input.i64()?);
        let taken = CommitTs(input.i64()?);
        let version = input.string()?;
        let checkpoint = take_entry(input)?;
        let count = input.count(18)?;
        let objects = (0..count).map(|_| take_entry(input)).collect::<Result<Vec<_>>>()?;
        input.finish()?;
        Ok(Self { cluster, at, taken, version, checkpoint, objects })
    }

    /// Everything but the manifest itself.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.objects.iter().chain(std::iter::once(&self.checkpoint))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entries().map(|entry| entry.digest.bytes).sum()
    }
}

fn put_entry(out: &mut Writer, entry: &Entry) {
    out.str(&entry.path).varint(entry.digest.bytes).raw(&entry.digest.hash.to_le_bytes());
}

fn take_entry(input: &mut Reader) -> Result<Entry> {
    let path = input.string()?;
    let bytes = input.varint()?;
    let hash = u128::from_le_bytes(input.array()?);
    Ok(Entry { path, digest: Digest { bytes, hash } })
}

/// The text of the place's identity.
pub(super) fn identity(cluster: &str) -> Bytes {
    format!("latticedb backup\nformat {FORMAT}\ncluster {cluster}\n").into()
}

/// The cluster whose backups a place holds.
pub(super) fn parse_identity(bytes: &[u8]) -> Result<String> {
    let damaged = || Error::Corrupt(format!("{IDENTITY}: not the identity of a place of backups"));
    let text = std::str::from_utf8(bytes).map_err(|_| damaged())?;
    let rest = text.strip_prefix("latticedb backup\nformat ").ok_or_else(damaged)?;
    let (format, rest) = rest.split_once('\n').ok_or_else(damaged)?;
    if format != FORMAT.to_string() {
        return Err(Error::Place(format!(
            "the place holds backups of format {format}; this version knows format {FORMAT}"
        )));
    }
    let cluster = rest.strip_prefix("cluster ").and_then(|rest| rest.strip_suffix('\n')).ok_or_else(damaged)?;
    Ok(cluster.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let entry =
            |path: &str, bytes| Entry { path: path.into(), digest: Digest { bytes, hash: u128::from(bytes) << 90 } };
        Manifest {
            cluster: "c1".into(),
            at: CommitTs(77),
            taken: CommitTs(78),
            version: "0.1".into(),
            checkpoint: entry("checkpoint-77", 10),
            objects: vec![entry("columns/a", 1), entry("columns/b", 2_000_000)],
        }
    }

    #[test]
    fn every_damaged_byte_of_a_manifest_is_noticed() {
        let bytes = manifest().encode();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest());
        for at in 0..bytes.len() {
            for mask in [1, 0x80, 0xff] {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= mask;
                assert!(Manifest::decode(&damaged.into()).is_err(), "byte {at}");
            }
            assert!(Manifest::decode(&bytes.slice(..at)).is_err(), "cut at {at}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Manifest::decode(&longer.into()).is_err());
    }

    #[test]
    fn every_damaged_byte_of_an_identity_is_noticed() {
        let bytes = identity("abc");
        assert_eq!(parse_identity(&bytes).unwrap(), "abc");
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            // A changed cluster is one that the manifest does not name.
            assert_ne!(parse_identity(&damaged).ok().as_deref(), Some("abc"), "byte {at}");
        }
    }
}
