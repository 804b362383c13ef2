//! Segment files: names, the header block, and how one comes into being.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut};
use runtime::{Disk, DiskFile, OpenMode, read_exact_at};

use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"LATTJRNL";
/// The format this program writes and reads.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Records start here; the first block before holds the header, the second the marks.
pub(crate) const FIRST_RECORD: u64 = 8192;
/// The two places of marks, in sectors of their own. They are used in turn.
const MARKS: [u64; 2] = [4096, 4608];
const MARK_MAGIC: &[u8; 4] = b"LJM1";
const MARK_BYTES: usize = 24;
const HEADER_BYTES: usize = 48;
/// The length of a segment is a multiple of this.
pub(crate) const BLOCK: u64 = 4096;

/// The file and folder syncs that make a new segment durable before anything is written to it.
const SYNC_NEW_FILE: &str = "journal.new_segment_file";
const SYNC_NEW_ENTRY: &str = "journal.new_segment_entry";

/// One open segment file. The file goes with the last handle, even when it was removed before.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) capacity: u64,
    pub(crate) file: Box<dyn DiskFile>,
}

impl Segment {
    /// Writes down that the records up to `sequence` are durable. `turn` picks one of the two places.
    pub(crate) fn write_mark(&self, salt: u32, turn: usize, sequence: u64) -> Result<()> {
        let mut out = Vec::with_capacity(MARK_BYTES);
        out.put_slice(MARK_MAGIC);
        out.put_u32_le(0);
        out.put_u64_le(sequence);
        out.put_u64_le(self.number);
        let crc = crc32c::crc32c_append(salt, &out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        self.file.write_at(&out, MARKS[turn % MARKS.len()]).map_err(Error::io("write", &self.path))
    }
}

/// The largest sequence that a mark in these bytes of a segment calls durable; zero without a readable mark.
pub(crate) fn read_marks(number: u64, salt: u32, bytes: &[u8]) -> u64 {
    let read = |at: u64| {
        let at = usize::try_from(at).ok()?;
        let mut mark = bytes.get(at..at + MARK_BYTES)?;
        let rest = mark.strip_prefix(MARK_MAGIC)?;
        let (crc, covered) = rest.split_at_checked(4)?;
        if crc != crc32c::crc32c_append(salt, covered).to_le_bytes() {
            return None;
        }
        mark.advance(8);
        let sequence = mark.get_u64_le();
        (mark.get_u64_le() == number).then_some(sequence)
    };
    MARKS.into_iter().filter_map(read).max().unwrap_or(0)
}

/// `000000000000002a.segment` for 42.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number:016x}.segment")
}

pub(crate) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".segment")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (file_name(number) == name).then_some(number)
}

/// Whether a file is what an interrupted creation leaves behind.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.strip_suffix(".new").is_some_and(|name| parse_name(name).is_some())
}

fn encode_header(journal: u64, number: u64, capacity: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.put_slice(MAGIC);
    out.put_u32_le(FORMAT_VERSION);
    out.put_u32_le(u32::try_from(FIRST_RECORD).expect("a small constant"));
    out.put_u64_le(journal);
    out.put_u64_le(number);
    out.put_u64_le(capacity);
    out.put_u32_le(crc32c::crc32c(&out));
    out.put_u32_le(0);
    out
}

/// Creates a segment full of zeros. When this returns, file and entry are durable: a crash during creation leaves a
/// temporary name, never a segment without its header.
pub(crate) fn create(disk: &dyn Disk, dir: &Path, journal: u64, number: u64, capacity: u64) -> Result<Arc<Segment>> {
    let path = dir.join(file_name(number));
    let temporary = dir.join(format!("{}.new", file_name(number)));
    let file = match disk.open(&temporary, OpenMode::CreateNew) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            disk.remove_file(&temporary).map_err(Error::io("remove", &temporary))?;
            disk.open(&temporary, OpenMode::CreateNew)
        }
        opened => opened,
    }
    .map_err(Error::io("create", &temporary))?;
    let filled = file
        .allocate(capacity)
        .and_then(|()| file.write_at(&encode_header(journal, number, capacity), 0))
        .and_then(|()| file.sync_all(SYNC_NEW_FILE));
    if let Err(source) = filled {
        // A full disk must get the reserved part back. When removing fails too, the next start does it.
        let _ = disk.remove_file(&temporary);
        return Err(Error::Io { action: "reserve space for", path: temporary, source });
    }
    disk.rename(&temporary, &path).map_err(Error::io("rename", &temporary))?;
    disk.sync_dir(dir, SYNC_NEW_ENTRY).map_err(Error::io("sync folder", dir))?;
    Ok(Arc::new(Segment { number, path, capacity, file }))
}

/// Opens an existing segment and returns it with the id of its journal. Files take their name only when their header is
/// durable, so a bad header is damage.
pub(crate) fn open(disk: &dyn Disk, dir: &Path, number: u64) -> Result<(Arc<Segment>, u64)> {
    let path = dir.join(file_name(number));
    let corrupt = |detail: String| Error::Corrupt { file: path.clone(), offset: 0, detail };
    let file = disk.open(&path, OpenMode::ReadWrite).map_err(Error::io("open", &path))?;
    let len = file.len().map_err(Error::io("read the length of", &path))?;
    if len < FIRST_RECORD {
        return Err(corrupt(format!("the file has {len} bytes, less than its header")));
    }
    let mut header = [0; HEADER_BYTES];
    read_exact_at(&*file, &mut header, 0).map_err(Error::io("read", &path))?;
    if header[..8] != *MAGIC {
        return Err(corrupt("it does not start as a journal segment does".to_owned()));
    }
    let mut rest = &header[8..];
    let version = rest.get_u32_le();
    let first_record = rest.get_u32_le();
    let journal = rest.get_u64_le();
    let found = rest.get_u64_le();
    let capacity = rest.get_u64_le();
    if crc32c::crc32c(&header[..40]) != rest.get_u32_le() {
        return Err(corrupt("the checksum of the segment header is wrong".to_owned()));
    }
    if version != FORMAT_VERSION {
        return Err(Error::Version { file: path, version });
    }
    if found != number || u64::from(first_record) != FIRST_RECORD {
        return Err(corrupt(format!("it is segment {found}, its name says {number}")));
    }
    if len < capacity {
        return Err(corrupt(format!("the file has {len} bytes, its header says {capacity}")));
    }
    Ok((Arc::new(Segment { number, path, capacity, file }), journal))
}
