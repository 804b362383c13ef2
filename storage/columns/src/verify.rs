//! Comparing what is stored with what is said of it: checksums, footers, statistics, versions.
//!
//! Nothing here trusts a cache. A data file is compared with the checksum in its sidecar, then decoded whole, and its
//! statistics are computed again; a version is compared with the list of files that the log has for it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::Int64Type;
use base::{DatasetVersion, TableId};
use codec::{KeyCodec, ROW_TS_COLUMN, StoredSchema};
use futures::StreamExt;

use crate::commit::properties_of;
use crate::lookup::ROW_TS_PLACEHOLDER;
use crate::stats::{StatsBuilder, decode};
use crate::{
    ColumnStore, Error, FileMeta, FileState, FileStats, OP_COLUMN, Result, Role, ScanSpec, SystemColumns,
    TX_FROM_COLUMN, TX_TO_COLUMN, TxFrom,
};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The object.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

impl ColumnStore {
    /// Reads a file and its sidecar whole. Returns what is wrong, and how many bytes were read.
    pub async fn verify_file(&self, schema: &Arc<StoredSchema>, meta: &FileMeta) -> (Vec<Finding>, u64) {
        let data = self.data_path(schema.table, meta.role, &meta.path).to_string();
        let sidecar = self.sidecar_path(schema.table, meta.role, &meta.path);
        let mut findings = Vec::new();
        let mut found = |path: &str, what: String| findings.push(Finding { path: path.to_owned(), what });
        let stats = match self.get(&sidecar).await.and_then(|bytes| decode(sidecar.as_ref(), bytes)) {
            Ok(stats) => Some(stats),
            Err(error) => {
                found(sidecar.as_ref(), reason(error));
                None
            }
        };
        let digest = match self.depot().digest(&data).await {
            Ok(digest) => digest,
            Err(error) => {
                found(&data, reason(error));
                return (findings, 0);
            }
        };
        if digest.bytes != meta.bytes {
            found(&data, format!("it has {} bytes where {} were written", digest.bytes, meta.bytes));
            return (findings, digest.bytes);
        }
        let sum = stats.as_ref().and_then(FileStats::checksum);
        if sum.is_some_and(|sum| sum != digest.hash) {
            found(&data, "its checksum does not match".to_owned());
            return (findings, digest.bytes);
        }
        if let Some(stats) = &stats {
            if let Some(field) = differs(stats.meta(), meta) {
                found(sidecar.as_ref(), format!("it describes another file: {field} differs from the log"));
            }
            match self.rebuild(schema, meta, stats).await {
                Ok((rebuilt, disorder)) => {
                    if let Some(what) = disorder {
                        found(&data, what);
                    }
                    if let Some(what) = stats.difference(&rebuilt) {
                        found(sidecar.as_ref(), format!("{what} differ from the rows of the file"));
                    }
                }
                Err(error) => found(&data, format!("it cannot be decoded: {error}")),
            }
        }
        (findings, digest.bytes)
    }

    /// Computes the statistics of a file from its rows, and tells when the rows themselves break a rule.
    async fn rebuild(
        &self,
        schema: &Arc<StoredSchema>,
        meta: &FileMeta,
        stats: &FileStats,
    ) -> Result<(FileStats, Option<String>)> {
        let described = stats.described();
        let names: HashSet<&str> = described.iter().map(|(name, _, _)| name.as_str()).collect();
        let mut columns = Vec::new();
        let mut layout = Vec::new();
        let system = SystemColumns {
            tx_from: names.contains(TX_FROM_COLUMN),
            tx_to: names.contains(TX_TO_COLUMN),
            op: names.contains(OP_COLUMN),
        };
        for (name, form, data_type) in &described {
            let id = crate::physical::column_of(name);
            let at = id.and_then(|id| schema.columns.iter().position(|column| column.id == id));
            // A column whose type has no statistics, or has another type by now, is read but not compared.
            let at = at.filter(|&at| schema.columns[at].data_type == *data_type);
            if let Some(at) = at {
                columns.push(at);
                layout.push((name.clone(), *form, data_type.clone()));
            }
        }
        let counted = columns.len();
        let mut key_at = Vec::with_capacity(schema.key.len());
        for &position in &schema.key {
            if schema.columns[position].id == ROW_TS_COLUMN && meta.row_ts_left_out {
                key_at.push(None);
                continue;
            }
            let at = columns.iter().position(|&column| column == position).unwrap_or_else(|| {
                columns.push(position);
                columns.len() - 1
            });
            key_at.push(Some(at));
        }
        for (name, form, data_type) in &described {
            if [TX_FROM_COLUMN, OP_COLUMN, TX_TO_COLUMN].contains(&name.as_str()) {
                layout.push((name.clone(), *form, data_type.clone()));
            }
        }
        let mut builder = StatsBuilder::new(layout.into_iter());
        let codec = KeyCodec::new(schema)?;
        let all = columns.len();
        let mut spec = ScanSpec::columns(columns);
        spec.system = system;
        let mut scan = self.scan_file(None, meta, schema, spec);
        let mut disorder = None;
        while let Some(batch) = scan.next().await {
            let batch = batch?;
            let keys: Vec<ArrayRef> = key_at
                .iter()
                .map(|at| match at {
                    Some(at) => Arc::clone(batch.column(*at)),
                    None => Arc::new(Int64Array::from(vec![ROW_TS_PLACEHOLDER.0; batch.num_rows()])) as ArrayRef,
                })
                .collect();
            let keys = codec.keys_of_columns(&keys)?;
            // The scan has its system columns in an order of its own; statistics have that of the file.
            let mut arrays: Vec<ArrayRef> = batch.columns()[..counted].to_vec();
            let place = |name: &str| {
                let before = match name {
                    TX_FROM_COLUMN => 0,
                    TX_TO_COLUMN => usize::from(system.tx_from),
                    _ => usize::from(system.tx_from) + usize::from(system.tx_to),
                };
                Arc::clone(batch.column(all + before))
            };
            for (name, _, _) in &described {
                if [TX_FROM_COLUMN, OP_COLUMN, TX_TO_COLUMN].contains(&name.as_str()) {
                    arrays.push(place(name));
                }
            }
            if system.tx_from && system.tx_to {
                let (from, to) = (place(TX_FROM_COLUMN), place(TX_TO_COLUMN));
                let (from, to) = (from.as_primitive::<Int64Type>(), to.as_primitive::<Int64Type>());
                if from.values().iter().zip(to.values()).any(|(from, to)| from >= to) {
                    disorder = Some("a row of it ends before it begins".to_owned());
                }
            }
            builder.push(&arrays, &keys);
        }
        if meta.key_sorted && !builder.is_sorted() {
            disorder = Some("its rows do not ascend by primary key".to_owned());
        }
        if builder.rows() != meta.rows {
            disorder = Some(format!("it has {} rows where {} were written", builder.rows(), meta.rows));
        }
        Ok((builder.finish(meta.clone()), disorder))
    }

    /// Compares a version with the files that it is said to have.
    pub async fn verify_version(
        &self,
        table: TableId,
        role: Role,
        version: DatasetVersion,
        files: &[Arc<FileMeta>],
    ) -> Vec<Finding> {
        let path = format!("{} version {version}", self.dataset_path(table, role));
        let mut findings = Vec::new();
        let mut found = |what: String| findings.push(Finding { path: path.clone(), what });
        let committed: HashMap<&str, (u32, u32)> = files
            .iter()
            .filter_map(|meta| match meta.state {
                FileState::Committed { fragment, deleted } => Some((meta.path.as_str(), (fragment, deleted))),
                FileState::Staged => None,
            })
            .collect();
        if version == DatasetVersion(0) {
            if !committed.is_empty() {
                found(format!("{} files belong to no version", committed.len()));
            }
            return findings;
        }
        let pin = match self.pin(table, role, version).await {
            Ok(pin) => pin,
            Err(error) => {
                found(format!("it cannot be opened: {}", reason(error)));
                return findings;
            }
        };
        if let Err(error) = properties_of(&pin).await {
            found(format!("its transaction cannot be read: {error}"));
        }
        let mut there = HashSet::new();
        for fragment in pin.fragments() {
            for file in &fragment.files {
                there.insert(file.path.as_str());
                let Some((id, deleted)) = committed.get(file.path.as_str()) else {
                    found(format!("it has file {}, which the log does not know", file.path));
                    continue;
                };
                if u64::from(*id) != fragment.id {
                    found(format!("file {} is fragment {}, the log says {id}", file.path, fragment.id));
                    continue;
                }
                match self.deletion_vector(&pin, fragment.id).await {
                    Ok(rows) => {
                        let gone = rows.map_or(0, |rows| rows.len());
                        if gone != u64::from(*deleted) {
                            found(format!("{gone} rows of file {} are deleted, the log says {deleted}", file.path));
                        }
                    }
                    Err(error) => found(format!("the deletion vector of file {} cannot be read: {error}", file.path)),
                }
            }
        }
        for name in committed.keys().filter(|name| !there.contains(*name)) {
            found(format!("it lacks file {name}"));
        }
        findings
    }
}

/// An error about an object that is named already.
fn reason(error: Error) -> String {
    match error {
        Error::Corrupt { what, .. } => what,
        Error::Missing(_) => "it is missing".to_owned(),
        other => other.to_string(),
    }
}

/// The first field in which a file's sidecar and the log differ. What a commit settles later is left out.
fn differs(sidecar: &FileMeta, log: &FileMeta) -> Option<&'static str> {
    let stored = sidecar.tx_from == TxFrom::Stored;
    let pairs = [
        ("the file id", sidecar.file == log.file),
        ("the dataset", sidecar.role == log.role),
        ("the name", sidecar.path == log.path),
        ("the number of rows", sidecar.rows == log.rows),
        ("the size", sidecar.bytes == log.bytes),
        ("the order", sidecar.key_sorted == log.key_sorted),
        ("the operation", sidecar.constant_op == log.constant_op),
        ("the least key", sidecar.min_key == log.min_key || log.row_ts_left_out),
        ("the greatest key", sidecar.max_key == log.max_key || log.row_ts_left_out),
        ("the least commit", !stored || sidecar.min_ts == log.min_ts),
        ("the greatest commit", !stored || sidecar.max_ts == log.max_ts),
        ("the least end", sidecar.min_closed == log.min_closed),
        ("the greatest end", sidecar.max_closed == log.max_closed),
    ];
    pairs.into_iter().find(|(_, same)| !same).map(|(field, _)| field)
}
