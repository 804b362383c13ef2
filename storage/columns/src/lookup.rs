//! Rows by key.
//!
//! The statistics of a sorted file are its index: the Bloom filter turns most absent keys away, the zones' first and last
//! keys name the one zone that can hold a key, and the keys of that zone are read, decoded, kept, and searched.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use base::{CommitTs, RowKey};
use codec::{KeyCodec, ROW_TS_COLUMN, StoredSchema};
use lance_io::ReadBatchParams;

use crate::meta::replace_row_ts;
use crate::read::{OpenFile, Shape};
use crate::{ColumnStore, Error, FileMeta, FileStats, Result, SystemColumns};

/// What stands for `_row_ts` in the sidecar of a file that leaves it out.
pub(crate) const ROW_TS_PLACEHOLDER: CommitTs = CommitTs(0);

/// The keys of one zone, end to end.
#[derive(Debug)]
pub(crate) struct ZoneKeys {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl ZoneKeys {
    fn new(keys: &[RowKey]) -> Self {
        let mut bytes = Vec::with_capacity(keys.iter().map(|key| key.as_bytes().len()).sum());
        let mut ends = Vec::with_capacity(keys.len());
        for key in keys {
            bytes.extend_from_slice(key.as_bytes());
            ends.push(bytes.len() as u32);
        }
        Self { bytes, ends }
    }

    fn key(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        &self.bytes[start..self.ends[at] as usize]
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.key(middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(middle as u32),
            }
        }
        None
    }

    fn weight(&self) -> usize {
        64 + self.bytes.capacity() + 4 * self.ends.capacity()
    }
}

impl ColumnStore {
    /// The physical row number of each key, `None` where the file has no such key. The file must be sorted by key.
    /// Deletion vectors and masks are the caller's: a row found here may be superseded.
    pub async fn lookup(
        &self,
        meta: &FileMeta,
        schema: &Arc<StoredSchema>,
        keys: &[RowKey],
    ) -> Result<Vec<Option<u32>>> {
        if !meta.key_sorted {
            return Err(Error::InvalidInput(format!(
                "file {} is not sorted by key and cannot be searched by it",
                meta.path
            )));
        }
        let mut found = vec![None; keys.len()];
        let candidates: Vec<usize> =
            (0..keys.len()).filter(|&at| meta.min_key <= keys[at] && keys[at] <= meta.max_key).collect();
        if candidates.is_empty() {
            return Ok(found);
        }
        let stored = stored_keys(meta, schema, keys, &candidates)?;
        let stats = self.stats(schema.table, meta).await?;
        let mut wanted: Vec<(usize, usize, &RowKey)> = Vec::new();
        for (&at, key) in candidates.iter().zip(&stored) {
            if let Some(key) = key
                && let Some(zone) = stats.zone_of(key)
            {
                wanted.push((zone, at, key));
            }
        }
        wanted.sort_by_key(|&(zone, at, _)| (zone, at));
        let mut file = None;
        let mut open: Option<(usize, Arc<ZoneKeys>)> = None;
        for (zone, at, key) in wanted {
            let zone_keys = match &open {
                Some((number, zone_keys)) if *number == zone => zone_keys.clone(),
                _ => self.zone_keys(meta, schema, &stats, zone, &mut file).await?,
            };
            let start = stats.zone_range(zone).start;
            found[at] = zone_keys.find(key.as_bytes()).map(|row| start + row);
            open = Some((zone, zone_keys));
        }
        Ok(found)
    }

    /// The decoded keys of a zone, cached.
    async fn zone_keys(
        &self,
        meta: &FileMeta,
        schema: &Arc<StoredSchema>,
        stats: &FileStats,
        zone: usize,
        file: &mut Option<Arc<OpenFile>>,
    ) -> Result<Arc<ZoneKeys>> {
        let cached = (self.data_path(schema.table, meta.role, &meta.path), zone as u32);
        if let Some(keys) = self.inner.key_zones.get(&cached) {
            return Ok(keys);
        }
        let file = match file {
            Some(file) => file.clone(),
            None => file.insert(self.open_file(schema.table, meta).await?).clone(),
        };
        // Whatever the constant is by now, the sidecar's keys hold the placeholder.
        let mut placed = meta.clone();
        if placed.row_ts_left_out {
            placed.tx_from = crate::TxFrom::Constant(ROW_TS_PLACEHOLDER);
        }
        let shape = Shape::new(&file, &placed, schema, &schema.key, &[], SystemColumns::default(), false)?;
        let rows = stats.zone_range(zone);
        let count = rows.len();
        let read = if shape.fields.is_empty() {
            None
        } else {
            let params = ReadBatchParams::Range(rows.start as usize..rows.end as usize);
            Some(self.read_whole(&file, &shape.fields, params, count as u32).await?)
        };
        let columns = shape.finish(read, Vec::new, count, None)?;
        let keys = KeyCodec::new(schema)?.keys_of_columns(columns.columns())?;
        if keys.len() != count {
            return Err(Error::corrupt(meta.path.clone(), "a zone of keys has the wrong length"));
        }
        let keys = Arc::new(ZoneKeys::new(&keys));
        self.inner.key_zones.insert(cached, keys.clone(), keys.weight());
        Ok(keys)
    }
}

/// The keys at `candidates` as the sidecar holds them; `None` for one that the file cannot hold.
fn stored_keys(
    meta: &FileMeta,
    schema: &StoredSchema,
    keys: &[RowKey],
    candidates: &[usize],
) -> Result<Vec<Option<RowKey>>> {
    let chosen: Vec<RowKey> = candidates.iter().map(|&at| keys[at].clone()).collect();
    if !meta.row_ts_left_out {
        return Ok(chosen.into_iter().map(Some).collect());
    }
    let Some(ts) = meta.constant_tx_from() else {
        return Err(Error::InvalidInput(format!("file {} has no commit timestamp yet", meta.path)));
    };
    let columns = KeyCodec::new(schema)?.decode(&chosen)?;
    let at = schema.key.iter().position(|&position| schema.columns[position].id == ROW_TS_COLUMN);
    let stamps: Option<&ArrayRef> = at.and_then(|at| columns.get(at));
    let stamps = stamps.and_then(|column| column.as_any().downcast_ref::<Int64Array>());
    let stamps = stamps.ok_or_else(|| Error::InvalidInput(format!("table {} has no hidden key", schema.table)))?;
    let placed = replace_row_ts(schema, &chosen, ROW_TS_PLACEHOLDER)?;
    Ok(placed.into_iter().zip(stamps.values()).map(|(key, &stamp)| (stamp == ts.0).then_some(key)).collect())
}
