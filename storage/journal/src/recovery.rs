//! Reads a journal folder after a start: follows the chain of records, and decides what its end is.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use runtime::{Disk, read_exact_at};

use crate::error::{Error, Result};
use crate::record::{self, ALIGN, Header, Kind, State, record_bytes};
use crate::segment::{self, FIRST_RECORD, Segment};
use crate::shared::{Location, Locations, Moved, salt};

/// The unit in which empty space is skipped.
const PAGE: usize = 4096;

/// What a folder holds.
pub(crate) struct Found {
    pub(crate) journal: u64,
    pub(crate) state: State,
    pub(crate) locations: Locations,
    /// The segments of the chain, up to the active one.
    pub(crate) segments: BTreeMap<u64, Arc<Segment>>,
    /// The segments behind the active one.
    pub(crate) reserve: VecDeque<Arc<Segment>>,
    /// The next record goes here.
    pub(crate) active: Arc<Segment>,
    pub(crate) offset: u64,
    /// The checksum, number and epoch of the last record.
    pub(crate) chain: u32,
    pub(crate) sequence: u64,
    pub(crate) epoch: u32,
    /// Where the last records lie that no later one says to be durable: when the process died but the machine did not,
    /// they may be in memory only.
    pub(crate) unproven: Vec<(Arc<Segment>, Range<u64>)>,
    /// Files that an interrupted creation or removal left.
    pub(crate) leftover: Vec<PathBuf>,
    pub(crate) torn_bytes: u64,
}

/// Where the chain stands while it is read.
struct Chain {
    salt: u32,
    /// The last good record: checksum, number, epoch.
    last: Option<(u32, u64, u32)>,
    /// The number of the very first record must be 1.
    from_start: bool,
    state: State,
    locations: Locations,
    /// The records after the largest number that some record says is durable: number, segment, place.
    unproven: VecDeque<(u64, Arc<Segment>, Range<u64>)>,
}

/// Reads the folder, or returns `None` when it holds no segment.
pub(crate) fn recover(disk: &dyn Disk, dir: &Path) -> Result<Option<Found>> {
    let names = disk.read_dir(dir).map_err(Error::io("list", dir))?;
    let mut leftover: Vec<PathBuf> =
        names.iter().filter(|name| segment::is_temporary(name)).map(|name| dir.join(name)).collect();
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment::parse_name(name)).collect();
    numbers.sort_unstable();
    let Some(run) = last_run(&numbers) else { return Ok(None) };
    // Removal goes from old to new but its steps may reach the disk in any order: what lies before a missing segment
    // was to be removed too, which the check for missing entries below confirms.
    leftover.extend(numbers[..numbers.len() - run.len()].iter().map(|&number| dir.join(segment::file_name(number))));

    let mut segments = Vec::with_capacity(run.len());
    let mut journal = None;
    for &number in run {
        let (segment, id) = segment::open(disk, dir, number)?;
        if *journal.get_or_insert(id) != id {
            let detail = "it belongs to another journal".to_owned();
            return Err(Error::Corrupt { file: segment.path.clone(), offset: 0, detail });
        }
        segments.push(segment);
    }
    let journal = journal.unwrap_or_default();

    let mut chain = Chain {
        salt: salt(journal),
        last: None,
        from_start: run[0] == 1,
        state: State::default(),
        locations: Locations::default(),
        unproven: VecDeque::new(),
    };
    let mut at = 0;
    // The number that the marks of all segments say to be durable.
    let mut marked = 0;
    let (offset, torn_bytes) = loop {
        let segment = &segments[at];
        let bytes = read_segment(segment)?;
        marked = segment::read_marks(segment.number, chain.salt, &bytes).max(marked);
        let (end, ended) = chain.follow(segment, &bytes)?;
        if ended {
            at += 1;
            if at == segments.len() {
                let number = segment.number + 1;
                let detail = format!("segment {} goes on in it, and it is missing", segment.number);
                return Err(Error::Corrupt { file: dir.join(segment::file_name(number)), offset: 0, detail });
            }
            continue;
        }
        // JOURNAL-3: the chain ends here. Either nothing behind was ever confirmed, or this is damage.
        if chain.last.is_none() && !chain.from_start {
            let detail = "the first segment has no readable first record".to_owned();
            return Err(Error::Corrupt { file: segment.path.clone(), offset: end as u64, detail });
        }
        let missing = chain.last.map_or(1, |(_, sequence, _)| sequence + 1);
        let mut proof = find_proof(&bytes, end, chain.salt, missing);
        for later in &segments[at + 1..] {
            let bytes = read_segment(later)?;
            marked = segment::read_marks(later.number, chain.salt, &bytes).max(marked);
            proof = proof.or_else(|| find_proof(&bytes, FIRST_RECORD as usize, chain.salt, missing));
        }
        let detail = match proof {
            Some(header) => format!("record {missing} was durable when record {} was written", header.sequence),
            None if marked >= missing => format!("record {missing} was marked as durable, as all up to {marked}"),
            None => String::new(),
        };
        if !detail.is_empty() {
            return Err(Error::Corrupt { file: segment.path.clone(), offset: end as u64, detail });
        }
        let torn = used_bytes(&bytes[end..]) as u64;
        break (end as u64, torn);
    };

    chain.check_entries(dir, run[0])?;
    let unproven = chain.unproven_ranges();
    let reserve = segments.split_off(at + 1).into();
    let active = Arc::clone(&segments[at]);
    let (chain_crc, sequence, epoch) = chain.last.unwrap_or_default();
    Ok(Some(Found {
        journal,
        state: chain.state,
        locations: chain.locations,
        segments: segments.into_iter().map(|segment| (segment.number, segment)).collect(),
        reserve,
        active,
        offset,
        chain: chain_crc,
        sequence,
        epoch,
        unproven,
        leftover,
        torn_bytes,
    }))
}

/// The numbers at the end that follow each other.
fn last_run(numbers: &[u64]) -> Option<&[u64]> {
    let mut start = numbers.len().checked_sub(1)?;
    while start > 0 && numbers[start - 1] + 1 == numbers[start] {
        start -= 1;
    }
    Some(&numbers[start..])
}

fn read_segment(segment: &Segment) -> Result<Vec<u8>> {
    let len = usize::try_from(segment.capacity).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len];
    read_exact_at(&*segment.file, &mut bytes, 0).map_err(Error::io("read", &segment.path))?;
    Ok(bytes)
}

/// Looks for a record of this journal, from `offset` on, which says that record `missing` was durable.
///
/// Headers have a checksum of their own, salted by the id of the journal, so that neither leftovers nor payloads
/// that look like records count. Leftovers of an earlier torn batch are real records, but they were written before
/// `missing` was, so they do not say this.
fn find_proof(bytes: &[u8], offset: usize, salt: u32, missing: u64) -> Option<Header> {
    let mut at = offset;
    while at < bytes.len() {
        if at.is_multiple_of(PAGE) && bytes.get(at..at + PAGE).is_some_and(|page| page == [0; PAGE]) {
            at += PAGE;
            continue;
        }
        if let Some(header) = record::decode(&bytes[at..], salt)
            && header.synced >= missing
        {
            return Some(header);
        }
        at += ALIGN;
    }
    None
}

/// The length without the zeros at the end. Page by page, because most of it is zeros.
fn used_bytes(mut bytes: &[u8]) -> usize {
    while let Some((rest, page)) = bytes.split_last_chunk::<PAGE>()
        && *page == [0; PAGE]
    {
        bytes = rest;
    }
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

impl Chain {
    /// Follows the chain through one segment. Returns where it stopped, and whether an end record says that it goes on
    /// in the next segment.
    fn follow(&mut self, segment: &Arc<Segment>, bytes: &[u8]) -> Result<(usize, bool)> {
        let mut offset = FIRST_RECORD as usize;
        loop {
            let Some((header, payload)) = self.next(bytes, offset) else { return Ok((offset, false)) };
            if offset == FIRST_RECORD as usize && header.kind != Kind::State {
                return Ok((offset, false));
            }
            // From here on the record is ours and whole: what does not fit is a defect or damage, and never torn.
            let corrupt = |detail: String| Error::Corrupt { file: segment.path.clone(), offset: offset as u64, detail };
            self.apply(segment, offset, &header, payload).map_err(corrupt)?;
            self.last = Some((header.crc, header.sequence, header.epoch));
            let start = offset as u64;
            offset += record_bytes(payload.len());
            while self.unproven.front().is_some_and(|(sequence, ..)| *sequence <= header.synced) {
                self.unproven.pop_front();
            }
            self.unproven.push_back((header.sequence, Arc::clone(segment), start..offset as u64));
            if header.kind == Kind::End {
                return Ok((offset, true));
            }
        }
    }

    /// The record at `offset`, if it is whole and the next of the chain.
    fn next<'a>(&self, bytes: &'a [u8], offset: usize) -> Option<(Header, &'a [u8])> {
        let rest = bytes.get(offset..)?;
        let header = record::decode(rest, self.salt)?;
        let payload = record::payload(&header, rest)?;
        let follows = match self.last {
            Some((crc, sequence, epoch)) => {
                let starts = header.kind == Kind::State && header.epoch == epoch + 1;
                header.previous == crc && header.sequence == sequence + 1 && (header.epoch == epoch || starts)
            }
            // The first record of the oldest segment has nothing to follow, unless it is the first of all.
            None => header.kind == Kind::State && (!self.from_start || header.sequence == 1),
        };
        (follows && header.synced < header.sequence).then_some((header, payload))
    }

    fn apply(&mut self, segment: &Segment, offset: usize, header: &Header, payload: &[u8]) -> Result<(), String> {
        if header.group != 0 {
            return Err(format!("record {} belongs to group {}", header.sequence, header.group));
        }
        let index = header.index;
        match header.kind {
            Kind::State => {
                let state = State::decode(payload).ok_or("the state record cannot be read")?;
                if self.last.is_none() {
                    self.state = state;
                } else if self.state != state {
                    return Err("the state record disagrees with the records before it".to_owned());
                }
            }
            Kind::Entry => {
                let bounds = &mut self.state.bounds;
                if bounds.anchored && index != bounds.end {
                    return Err(format!("entry {index} follows entry {}", bounds.end.wrapping_sub(1)));
                }
                bounds.append(index);
                let offset = u32::try_from(offset).map_err(|_| "the segment is too long")?;
                let location = Location { segment: segment.number, offset, len: header.len };
                self.locations.apply(Moved::Wrote(index, location));
            }
            Kind::Vote => self.state.vote = Some(Bytes::copy_from_slice(payload)),
            Kind::Committed => self.state.committed = Some(Bytes::copy_from_slice(payload)),
            Kind::Truncate if payload == [0] => {
                self.state.bounds.clear(self.state.purged.is_some());
                self.locations.apply(Moved::Cleared);
            }
            Kind::Truncate => {
                self.state.bounds.truncate(index);
                self.locations.apply(Moved::Truncated(self.state.bounds.end));
            }
            Kind::Purge => {
                self.state.bounds.purge(index);
                self.state.purged = Some((index, Bytes::copy_from_slice(payload)));
                self.locations.apply(Moved::Purged(self.state.bounds.first));
            }
            Kind::End if index != segment.number + 1 => {
                return Err(format!("segment {} goes on in segment {index}", segment.number));
            }
            Kind::End => {}
        }
        Ok(())
    }

    /// The unproven records, one range per segment.
    fn unproven_ranges(&mut self) -> Vec<(Arc<Segment>, Range<u64>)> {
        let mut ranges: Vec<(Arc<Segment>, Range<u64>)> = Vec::new();
        for (_, segment, place) in self.unproven.drain(..) {
            match ranges.last_mut() {
                Some((last, range)) if last.number == segment.number => range.end = place.end,
                _ => ranges.push((segment, place)),
            }
        }
        ranges
    }

    /// JOURNAL-4: the entries that should be there are there.
    fn check_entries(&self, dir: &Path, first_segment: u64) -> Result<()> {
        let bounds = self.state.bounds;
        if bounds.is_empty() || self.locations.range() == Some((bounds.first, bounds.end)) {
            return Ok(());
        }
        let missing = segment::file_name(first_segment.saturating_sub(1));
        let detail = format!("the entries from {} on are missing", bounds.first);
        Err(Error::Corrupt { file: dir.join(missing), offset: 0, detail })
    }
}
