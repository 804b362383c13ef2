//! What the log carries: the commands of the state machine, in our own encoding.
//!
//! A command is `version u8 · kind u8 · body`. Bodies are written with [`codec::wire`]; unknown versions and kinds are
//! damage, never skipped.

use std::sync::Arc;

use base::{CommitTs, DatasetVersion, FileId, RequestId, RowKey, SessionId, TableId};
use bytes::Bytes;
use codec::StoredSchema;
use codec::wire::{Reader, Writer};
use columns::FileMeta;
use roaring::RoaringBitmap;
use rows::RowOp;

use crate::{Error, Result, TransactionHeader};

const COMMAND_VERSION: u8 = 1;

/// One entry of the log.
#[derive(Debug)]
pub(crate) enum Command {
    /// Transactions that share one entry, in commit order.
    Group(Vec<Commit>),
    /// New columnar versions of one table become visible.
    Publish(Publish),
    /// No later commit may be stamped at or before this moment.
    Tick(CommitTs),
    /// Hands out numbers of a durable counter.
    Allocate {
        /// The counter's name.
        counter: String,
        /// How many.
        count: u64,
    },
    /// The history of a dropped table cannot be read any more; its files go.
    Forget(TableId),
}

/// The effects of one transaction.
#[derive(Debug, Default)]
pub(crate) struct Commit {
    pub(crate) ts: CommitTs,
    pub(crate) request: Option<RequestId>,
    pub(crate) header: TransactionHeader,
    pub(crate) defines: Vec<Arc<StoredSchema>>,
    pub(crate) drops: Vec<TableId>,
    pub(crate) tables: Vec<TableEffects>,
}

/// What a transaction does to one table.
#[derive(Debug, Default)]
pub(crate) struct TableEffects {
    pub(crate) table: TableId,
    /// Every row visible before is gone; comes before the effects below.
    pub(crate) truncate: bool,
    /// Row versions for the row tier, in key order.
    pub(crate) rows: Vec<(RowKey, RowOp)>,
    /// Files written by the transaction itself.
    pub(crate) staged: Vec<FileMeta>,
    /// Columnar rows that `staged` supersedes.
    pub(crate) masks: Vec<(FileId, Arc<RoaringBitmap>)>,
}

/// The outcome of a flush or a merge.
#[derive(Clone, Debug, Default)]
pub(crate) struct Publish {
    pub(crate) table: TableId,
    /// Row-tier versions and mask entries up to here are in the datasets.
    pub(crate) cut: CommitTs,
    pub(crate) current_version: DatasetVersion,
    pub(crate) history_version: DatasetVersion,
    /// New files of `current`, and files whose description changed.
    pub(crate) current: Vec<FileMeta>,
    /// Files that `current` or `history` no longer has.
    pub(crate) removed: Vec<FileId>,
    /// New files of `history`.
    pub(crate) history: Vec<FileMeta>,
}

const GROUP: u8 = 1;
const PUBLISH: u8 = 2;
const TICK: u8 = 3;
const ALLOCATE: u8 = 4;
const FORGET: u8 = 5;

impl Command {
    pub(crate) fn encode(&self) -> Result<Bytes> {
        let mut out = Writer::with_capacity(256);
        out.u8(COMMAND_VERSION);
        match self {
            Command::Group(commits) => {
                out.u8(GROUP).length(commits.len());
                for commit in commits {
                    encode_commit(&mut out, commit)?;
                }
            }
            Command::Publish(publish) => {
                out.u8(PUBLISH);
                encode_publish(&mut out, publish);
            }
            Command::Tick(ts) => {
                out.u8(TICK).i64(ts.0);
            }
            Command::Allocate { counter, count } => {
                out.u8(ALLOCATE).str(counter).varint(*count);
            }
            Command::Forget(table) => {
                out.u8(FORGET).u32(table.0);
            }
        }
        Ok(out.finish())
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self> {
        let mut input = Reader::new(bytes);
        let version = input.u8()?;
        if version != COMMAND_VERSION {
            return Err(Error::Corrupt(format!(
                "log command of version {version}, this build reads {COMMAND_VERSION}"
            )));
        }
        let command = match input.u8()? {
            GROUP => {
                let count = input.count(1)?;
                Command::Group((0..count).map(|_| decode_commit(&mut input)).collect::<Result<_>>()?)
            }
            PUBLISH => Command::Publish(decode_publish(&mut input)?),
            TICK => Command::Tick(CommitTs(input.i64()?)),
            ALLOCATE => Command::Allocate { counter: input.string()?, count: input.varint()? },
            FORGET => Command::Forget(TableId(input.u32()?)),
            kind => return Err(Error::Corrupt(format!("log command of unknown kind {kind}"))),
        };
        input.finish()?;
        Ok(command)
    }
}

fn encode_commit(out: &mut Writer, commit: &Commit) -> Result<()> {
    out.i64(commit.ts.0);
    out.option(commit.request, |out, request| {
        out.varint(request.session.0).varint(request.sequence);
    });
    encode_header(out, &commit.header);
    out.length(commit.defines.len());
    for schema in &commit.defines {
        out.bytes(&schema.encode()?);
    }
    out.length(commit.drops.len());
    for table in &commit.drops {
        out.u32(table.0);
    }
    out.length(commit.tables.len());
    for effects in &commit.tables {
        out.u32(effects.table.0).bool(effects.truncate).length(effects.rows.len());
        for (key, op) in &effects.rows {
            encode_row(out, key, op);
        }
        encode_files(out, &effects.staged);
        out.length(effects.masks.len());
        for (file, rows) in &effects.masks {
            out.varint(file.0).bytes(&encode_bitmap(rows));
        }
    }
    Ok(())
}

fn decode_commit(input: &mut Reader) -> Result<Commit> {
    let ts = CommitTs(input.i64()?);
    let request =
        input.option(|input| Ok(RequestId { session: SessionId(input.varint()?), sequence: input.varint()? }))?;
    let header = decode_header(input)?;
    let count = input.count(1)?;
    let defines =
        (0..count).map(|_| Ok(Arc::new(StoredSchema::decode(input.bytes()?)?))).collect::<Result<Vec<_>>>()?;
    let count = input.count(4)?;
    let drops = (0..count).map(|_| Ok(TableId(input.u32()?))).collect::<Result<Vec<_>>>()?;
    let count = input.count(5)?;
    let mut tables = Vec::with_capacity(count);
    for _ in 0..count {
        let table = TableId(input.u32()?);
        let truncate = input.bool()?;
        let count = input.count(2)?;
        let rows = (0..count).map(|_| decode_row(input)).collect::<Result<Vec<_>>>()?;
        let staged = decode_files(input)?;
        let count = input.count(2)?;
        let masks = (0..count)
            .map(|_| Ok((FileId(input.varint()?), Arc::new(decode_bitmap(&input.bytes()?)?))))
            .collect::<Result<Vec<_>>>()?;
        tables.push(TableEffects { table, truncate, rows, staged, masks });
    }
    Ok(Commit { ts, request, header, defines, drops, tables })
}

const ROW_INSERT: u8 = 0;
const ROW_UPDATE: u8 = 1;
const ROW_DELETE: u8 = 2;

pub(crate) fn encode_row(out: &mut Writer, key: &RowKey, op: &RowOp) {
    out.bytes(key.as_bytes());
    match op {
        RowOp::Put { row, update } => {
            out.u8(if *update { ROW_UPDATE } else { ROW_INSERT }).bytes(row);
        }
        RowOp::Delete => {
            out.u8(ROW_DELETE);
        }
    }
}

pub(crate) fn decode_row(input: &mut Reader) -> Result<(RowKey, RowOp)> {
    let key = RowKey(input.bytes()?);
    let op = match input.u8()? {
        ROW_INSERT => RowOp::Put { row: input.bytes()?, update: false },
        ROW_UPDATE => RowOp::Put { row: input.bytes()?, update: true },
        ROW_DELETE => RowOp::Delete,
        op => return Err(Error::Corrupt(format!("row operation {op}"))),
    };
    Ok((key, op))
}

fn encode_header(out: &mut Writer, header: &TransactionHeader) {
    out.str(&header.principal);
    for text in [&header.source, &header.pipeline, &header.statement] {
        out.option(text.as_deref(), |out, text| {
            out.str(text);
        });
    }
}

fn decode_header(input: &mut Reader) -> Result<TransactionHeader> {
    Ok(TransactionHeader {
        principal: input.string()?,
        source: input.option(Reader::string)?,
        pipeline: input.option(Reader::string)?,
        statement: input.option(Reader::string)?,
    })
}

pub(crate) fn encode_files(out: &mut Writer, files: &[FileMeta]) {
    out.length(files.len());
    for file in files {
        out.bytes(&file.encode());
    }
}

pub(crate) fn decode_files(input: &mut Reader) -> Result<Vec<FileMeta>> {
    let count = input.count(1)?;
    (0..count).map(|_| FileMeta::decode(&input.bytes()?).map_err(Error::part)).collect()
}

pub(crate) fn encode_bitmap(rows: &RoaringBitmap) -> Vec<u8> {
    let mut compact = rows.clone();
    compact.optimize();
    let mut bytes = Vec::with_capacity(compact.serialized_size());
    compact.serialize_into(&mut bytes).expect("writing to memory does not fail");
    bytes
}

pub(crate) fn decode_bitmap(bytes: &[u8]) -> Result<RoaringBitmap> {
    RoaringBitmap::deserialize_from(bytes).map_err(|error| Error::Corrupt(format!("row mask: {error}")))
}

pub(crate) fn encode_publish(out: &mut Writer, publish: &Publish) {
    out.u32(publish.table.0).i64(publish.cut.0).varint(publish.current_version.0).varint(publish.history_version.0);
    encode_files(out, &publish.current);
    out.length(publish.removed.len());
    for file in &publish.removed {
        out.varint(file.0);
    }
    encode_files(out, &publish.history);
}

fn decode_publish(input: &mut Reader) -> Result<Publish> {
    let table = TableId(input.u32()?);
    let cut = CommitTs(input.i64()?);
    let current_version = DatasetVersion(input.varint()?);
    let history_version = DatasetVersion(input.varint()?);
    let current = decode_files(input)?;
    let count = input.count(1)?;
    let removed = (0..count).map(|_| Ok(FileId(input.varint()?))).collect::<Result<Vec<_>>>()?;
    let history = decode_files(input)?;
    Ok(Publish { table, cut, current_version, history_version, current, removed, history })
}
