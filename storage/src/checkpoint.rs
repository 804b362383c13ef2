//! The checkpoint file, and the state machine that the log drives.
//!
//! `checkpoint` in the data folder holds everything that the log up to a point adds up to: counters, remembered requests,
//! per table its definitions, published files, masks, and the rows that no dataset holds yet. A start reads it and replays
//! the log after it; the log before it is purged. It is written to a temporary name, synced and renamed.
//!
//! It is [sealed](crate::sealed) with the magic `LATTCKPT`; its body is written with [`codec::wire`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use base::{BoxError, CommitTs, DatasetVersion, FileId, LogIndex, RequestId, SessionId, TableId, Term};
use bytes::Bytes;
use codec::StoredSchema;
use codec::wire::{Reader, Writer};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use raft::{CheckpointRef, StateMachine};
use rows::{RowOp, Version};
use runtime::Runtime;
use tokio::sync::oneshot;

use crate::command::{decode_bitmap, decode_files, decode_row, encode_bitmap, encode_files, encode_row};
use crate::mask::{FileMask, Masks};
use crate::sealed::Form;
use crate::state::{Published, State, Table};
use crate::{Error, Result};

const NAME: &str = "checkpoint";
const FORM: Form = Form { magic: *b"LATTCKPT", format: 1, name: "a checkpoint" };
/// Rows written at a time.
const CHUNK_VERSIONS: usize = 64 * 1024;

/// Those who want the state that the next checkpoint is made of.
pub(crate) type Watchers = Arc<Mutex<Vec<oneshot::Sender<Arc<Pinned>>>>>;

/// The state machine as the Raft layer sees it.
#[derive(Debug)]
pub(crate) struct Machine {
    state: Arc<State>,
    runtime: Runtime,
    folder: PathBuf,
    current: Arc<Mutex<Option<CheckpointRef>>>,
    watchers: Watchers,
}

impl Machine {
    pub(crate) fn new(
        state: Arc<State>,
        runtime: Runtime,
        folder: PathBuf,
        marker: Option<Bytes>,
        watchers: Watchers,
    ) -> Self {
        let current = marker.map(|marker| CheckpointRef { marker, path: folder.join(NAME) });
        Self { state, runtime, folder, current: Arc::new(Mutex::new(current)), watchers }
    }
}

#[async_trait]
impl StateMachine for Machine {
    fn apply(&self, index: LogIndex, term: Term, command: Bytes) -> Bytes {
        self.state.apply(index, term, command)
    }

    fn checkpoint(&self, marker: Bytes) -> BoxFuture<'static, Result<CheckpointRef, BoxError>> {
        let pinned = Arc::new(Pinned::take(&self.state, marker.clone()));
        for watcher in self.watchers.lock().drain(..) {
            // Whoever has given up waiting does not want it any more.
            let _ = watcher.send(Arc::clone(&pinned));
        }
        let (runtime, path) = (self.runtime.clone(), self.folder.join(NAME));
        let current = Arc::clone(&self.current);
        Box::pin(async move {
            let written = tokio::task::spawn_blocking(move || -> Result<CheckpointRef, BoxError> {
                let bytes = pinned.encode()?;
                runtime::failpoint_hit("checkpoint.encoded");
                runtime::write_atomically(runtime.disk.as_ref(), &path, &bytes)?;
                runtime::failpoint_hit("checkpoint.written");
                Ok(CheckpointRef { marker, path })
            })
            .await??;
            *current.lock() = Some(written.clone());
            Ok(written)
        })
    }

    fn current_checkpoint(&self) -> Option<CheckpointRef> {
        self.current.lock().clone()
    }

    async fn read_checkpoint(&self, checkpoint: &CheckpointRef) -> Result<Bytes, BoxError> {
        Ok(Bytes::from(runtime::read_file(self.runtime.disk.as_ref(), &checkpoint.path)?))
    }

    async fn install(&self, _marker: Bytes, _contents: Bytes) -> Result<CheckpointRef, BoxError> {
        Err("this node cannot take over a checkpoint: more than one voter is not supported yet".into())
    }
}

/// The state at one log position, held while the file is written.
#[derive(Debug)]
pub(crate) struct Pinned {
    marker: Bytes,
    /// Everything committed up to here is in it.
    pub(crate) last: CommitTs,
    applied: u64,
    counters: Vec<(String, u64)>,
    requests: Vec<(RequestId, CommitTs)>,
    pub(crate) tables: Vec<PinnedTable>,
}

/// One table of it.
#[derive(Debug)]
pub(crate) struct PinnedTable {
    pub(crate) id: TableId,
    newest: CommitTs,
    schemas: Vec<(CommitTs, Arc<StoredSchema>)>,
    dropped: Option<CommitTs>,
    pub(crate) published: Arc<Published>,
    masks: Arc<Masks>,
    rows: rows::Pin,
}

impl Pinned {
    fn take(state: &State, marker: Bytes) -> Self {
        let tables = state
            .all_tables()
            .into_iter()
            .map(|table| {
                let inner = table.inner.read();
                PinnedTable {
                    id: table.id,
                    newest: table.newest(),
                    schemas: inner.schemas.clone(),
                    dropped: inner.dropped,
                    published: Arc::clone(&inner.published),
                    masks: Arc::clone(&inner.masks),
                    rows: table.rows.pin_all(),
                }
            })
            .collect();
        let requests = {
            let requests = state.requests.lock();
            requests.order.iter().filter_map(|id| Some((*id, *requests.outcomes.get(id)?))).collect()
        };
        Self {
            marker,
            last: state.last(),
            applied: state.applied.load(Ordering::Acquire),
            counters: state.counters.lock().iter().map(|(name, next)| (name.clone(), *next)).collect(),
            requests,
            tables,
        }
    }

    /// The bytes of the checkpoint file.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let mut body = FORM.begin(1 << 20);
        body.bytes(&self.marker).i64(self.last.0).varint(self.applied);
        body.length(self.counters.len());
        for (name, next) in &self.counters {
            body.str(name).varint(*next);
        }
        body.length(self.requests.len());
        for (request, ts) in &self.requests {
            body.varint(request.session.0).varint(request.sequence).i64(ts.0);
        }
        body.length(self.tables.len());
        for table in &self.tables {
            table.encode(&mut body, self.last)?;
        }
        Ok(Form::seal(body))
    }
}

impl PinnedTable {
    fn encode(&self, out: &mut Writer, last: CommitTs) -> Result<()> {
        out.u32(self.id.0).i64(self.newest.0);
        out.length(self.schemas.len());
        for (ts, schema) in &self.schemas {
            out.i64(ts.0).bytes(&schema.encode()?);
        }
        out.option(self.dropped, |out, ts| {
            out.i64(ts.0);
        });
        let published = &self.published;
        out.i64(published.cut.0).varint(published.current_version.0).varint(published.history_version.0);
        for files in [&published.current, &published.history, &published.staged] {
            let files: Vec<_> = files.iter().map(|meta| columns::FileMeta::clone(meta)).collect();
            encode_files(out, &files);
        }
        let mut masks: Vec<_> = self.masks.iter().collect();
        masks.sort_by_key(|(file, _)| **file);
        out.length(masks.len());
        for (file, mask) in masks {
            let (points, layers) = mask.export(last);
            out.varint(file.0).length(points.len());
            for (offset, ts) in points {
                out.u32(offset).i64(ts.0);
            }
            out.length(layers.len());
            for (ts, rows) in layers {
                out.i64(ts.0).bytes(&encode_bitmap(&rows));
            }
        }
        // Chunks of versions, ended by an empty one.
        let mut drain = self.rows.table().drain_view(last);
        while let Some(chains) = drain.next_chunk(CHUNK_VERSIONS) {
            let unpublished: Vec<_> = chains
                .iter()
                .flat_map(|(key, versions)| versions.iter().map(move |version| (key, version)))
                .filter(|(_, version)| version.ts > published.cut)
                .collect();
            if unpublished.is_empty() {
                continue;
            }
            out.length(unpublished.len());
            for (key, version) in unpublished {
                out.i64(version.ts.0);
                encode_row(out, key, &version.op);
            }
        }
        out.length(0);
        Ok(())
    }

    /// Reads one table into the state.
    fn restore(input: &mut Reader, state: &State) -> Result<()> {
        let id = TableId(input.u32()?);
        let newest = CommitTs(input.i64()?);
        let count = input.count(8)?;
        let mut schemas = Vec::with_capacity(count);
        for _ in 0..count {
            let ts = CommitTs(input.i64()?);
            schemas.push((ts, Arc::new(StoredSchema::decode(input.bytes()?)?)));
        }
        let dropped = input.option(|input| Ok(CommitTs(input.i64()?)))?;
        let cut = CommitTs(input.i64()?);
        let current_version = DatasetVersion(input.varint()?);
        let history_version = DatasetVersion(input.varint()?);
        let mut lists = Vec::with_capacity(3);
        for _ in 0..3 {
            lists.push(decode_files(input)?.into_iter().map(Arc::new).collect::<Vec<_>>());
        }
        let (staged, history, current) = (lists.pop(), lists.pop(), lists.pop());
        let mut masks = Masks::new();
        for _ in 0..input.count(3)? {
            let file = FileId(input.varint()?);
            let mask = FileMask::default();
            for _ in 0..input.count(12)? {
                let offset = input.u32()?;
                mask.add(offset, CommitTs(input.i64()?));
            }
            for _ in 0..input.count(9)? {
                let ts = CommitTs(input.i64()?);
                mask.add_layer(Arc::new(decode_bitmap(&input.bytes()?)?), ts);
            }
            masks.insert(file, Arc::new(mask));
        }
        let rows = state.row_tier.open(id, cut);
        let table = Arc::new(Table::new(id, Arc::clone(&rows)));
        table.touch(newest);
        {
            let mut inner = table.inner.write();
            inner.schemas = schemas;
            inner.dropped = dropped;
            inner.masks = Arc::new(masks);
            inner.published = Arc::new(Published {
                epoch: 0,
                cut,
                current_version,
                history_version,
                current: current.unwrap_or_default(),
                history: history.unwrap_or_default(),
                staged: staged.unwrap_or_default(),
            });
        }
        loop {
            let count = input.count(2)?;
            if count == 0 {
                break;
            }
            for _ in 0..count {
                let ts = CommitTs(input.i64()?);
                let (key, op): (_, RowOp) = decode_row(input)?;
                rows.apply(key, Version { ts, op });
            }
        }
        state.tables.write().insert(id, table);
        Ok(())
    }
}

/// Reads the checkpoint of a data folder, if there is one, into an empty state. Returns its marker.
pub(crate) fn load(runtime: &Runtime, folder: &Path, state: &State) -> Result<Option<Bytes>> {
    let path = folder.join(NAME);
    let disk = runtime.disk.as_ref();
    let failed = |error: std::io::Error| Error::Folder(format!("cannot read {}: {error}", path.display()));
    if !disk.exists(&path).map_err(failed)? {
        return Ok(None);
    }
    let bytes = runtime::read_file(disk, &path).map_err(failed)?;
    read(&bytes.into(), &path, state).map(Some)
}

/// Reads the bytes of a checkpoint file into an empty state. Returns its marker.
pub(crate) fn read(bytes: &Bytes, path: &Path, state: &State) -> Result<Bytes> {
    let body = FORM.open(bytes).map_err(|what| Error::Corrupt(format!("{}: {what}", path.display())))?;
    restore(body, state).map_err(|error| Error::Corrupt(format!("{}: {error}", path.display())))
}

/// Puts the bytes of a checkpoint file into a data folder, durably.
pub(crate) fn write(runtime: &Runtime, folder: &Path, bytes: &[u8]) -> Result<()> {
    let path = folder.join(NAME);
    runtime::write_atomically(runtime.disk.as_ref(), &path, bytes)
        .map_err(|error| Error::Folder(format!("cannot write {}: {error}", path.display())))
}

fn restore(body: Bytes, state: &State) -> Result<Bytes> {
    let mut input = Reader::new(body);
    let marker = input.bytes()?;
    state.set_last(CommitTs(input.i64()?));
    state.applied.store(input.varint()?, Ordering::Release);
    for _ in 0..input.count(2)? {
        let name = input.string()?;
        state.counters.lock().insert(name, input.varint()?);
    }
    for _ in 0..input.count(10)? {
        let request = RequestId { session: SessionId(input.varint()?), sequence: input.varint()? };
        state.requests.lock().remember(request, CommitTs(input.i64()?));
    }
    for _ in 0..input.count(16)? {
        PinnedTable::restore(&mut input, state)?;
    }
    input.finish()?;
    Ok(marker)
}
