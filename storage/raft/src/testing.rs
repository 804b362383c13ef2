//! What the tests of this crate share: a state machine that is easy to check, and a place for it to live.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base::{BoxError, LogIndex, Term};
use bytes::Bytes;
use futures::future::BoxFuture;
use journal::{Journal, JournalOptions, Recovered};
use parking_lot::Mutex;
use runtime::{Disk, RealDisk, SimDisk, create_dir_durably, read_file, write_atomically};
use tempfile::TempDir;

use crate::error::Result;
use crate::machine::{CheckpointRef, StateMachine};
use crate::node::{Raft, RaftOptions};

/// Remembers every command in order. Its checkpoint is a file: marker length, marker, then one command per line.
pub(crate) struct Ledger {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Every command applied, in order.
    lines: Vec<String>,
    /// The indexes that were applied since the machine was made, to see what was replayed.
    applied: Vec<u64>,
    current: Option<CheckpointRef>,
    fail_checkpoints: bool,
}

impl Ledger {
    /// Opens the ledger of a folder: loads its checkpoint.
    pub(crate) fn open(disk: &Arc<dyn Disk>, dir: &Path) -> Arc<Ledger> {
        let mut state = State::default();
        let path = dir.join("checkpoint");
        create_dir_durably(&**disk, dir).unwrap();
        if disk.exists(&path).unwrap() {
            let (marker, lines) = split(&read_file(&**disk, &path).unwrap());
            state.lines = lines;
            state.current = Some(CheckpointRef { marker, path: path.clone() });
        }
        Arc::new(Ledger { disk: disk.clone(), path, state: Arc::new(Mutex::new(state)) })
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.state.lock().lines.clone()
    }

    pub(crate) fn applied(&self) -> Vec<u64> {
        self.state.lock().applied.clone()
    }

    pub(crate) fn fail_checkpoints(&self, fail: bool) {
        self.state.lock().fail_checkpoints = fail;
    }
}

fn split(contents: &[u8]) -> (Bytes, Vec<String>) {
    let length = u32::from_le_bytes(contents[..4].try_into().unwrap()) as usize;
    let marker = Bytes::copy_from_slice(&contents[4..4 + length]);
    let text = std::str::from_utf8(&contents[4 + length..]).unwrap();
    (marker, text.lines().map(str::to_string).collect())
}

fn join(marker: &[u8], lines: &[String]) -> Vec<u8> {
    let mut contents = u32::try_from(marker.len()).unwrap().to_le_bytes().to_vec();
    contents.extend_from_slice(marker);
    for line in lines {
        contents.extend_from_slice(line.as_bytes());
        contents.push(b'\n');
    }
    contents
}

#[async_trait]
impl StateMachine for Ledger {
    fn apply(&self, index: LogIndex, term: Term, command: Bytes) -> Bytes {
        let command = String::from_utf8(command.to_vec()).unwrap();
        assert!(command != "panic", "asked to panic");
        let mut state = self.state.lock();
        state.lines.push(command.clone());
        state.applied.push(index.0);
        format!("{term}.{index} {command} #{}", state.lines.len()).into()
    }

    fn checkpoint(&self, marker: Bytes) -> BoxFuture<'static, Result<CheckpointRef, BoxError>> {
        let lines = self.lines();
        let state = self.state.clone();
        let (disk, path) = (self.disk.clone(), self.path.clone());
        Box::pin(async move {
            // Commands are applied meanwhile: the file must hold what was pinned above.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            if state.lock().fail_checkpoints {
                return Err("no space left".into());
            }
            write_atomically(&*disk, &path, &join(&marker, &lines))?;
            let checkpoint = CheckpointRef { marker, path };
            state.lock().current = Some(checkpoint.clone());
            Ok(checkpoint)
        })
    }

    fn current_checkpoint(&self) -> Option<CheckpointRef> {
        self.state.lock().current.clone()
    }

    async fn read_checkpoint(&self, checkpoint: &CheckpointRef) -> Result<Bytes, BoxError> {
        Ok(read_file(&*self.disk, &checkpoint.path)?.into())
    }

    async fn install(&self, marker: Bytes, contents: Bytes) -> Result<CheckpointRef, BoxError> {
        let (inside, lines) = split(&contents);
        assert_eq!(inside, marker);
        write_atomically(&*self.disk, &self.path, &contents)?;
        let checkpoint = CheckpointRef { marker, path: self.path.clone() };
        let mut state = self.state.lock();
        state.lines = lines;
        state.current = Some(checkpoint.clone());
        Ok(checkpoint)
    }
}

/// The disk of one member, and the folder on it. Outlives what is opened on it.
pub(crate) struct Home {
    pub(crate) sim: SimDisk,
    pub(crate) disk: Arc<dyn Disk>,
    dir: PathBuf,
    _temporary: Option<TempDir>,
}

impl Home {
    /// On a simulated disk.
    pub(crate) fn new() -> Home {
        let sim = SimDisk::new();
        Home { disk: Arc::new(sim.clone()), sim, dir: PathBuf::from("/member"), _temporary: None }
    }

    /// On the machine's disk, in a folder that goes with the value.
    pub(crate) fn real() -> Home {
        let temporary = tempfile::tempdir().unwrap();
        Home {
            disk: Arc::new(RealDisk::new()),
            dir: temporary.path().to_path_buf(),
            _temporary: Some(temporary),
            ..Home::new()
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the journal alone.
    pub(crate) fn try_journal(&self) -> journal::Result<(Journal, Recovered)> {
        let options = JournalOptions { segment_bytes: 1 << 20, journal_id: Some(1), ..JournalOptions::default() };
        Journal::open(self.disk.clone(), &self.dir.join("journal"), options)
    }

    /// Opens the member.
    pub(crate) async fn open(&self, options: RaftOptions) -> Result<(Raft, Arc<Ledger>)> {
        let (raft, ledger, _) = self.open_with_journal(options).await?;
        Ok((raft, ledger))
    }

    /// Opens the member and keeps an eye on its journal.
    pub(crate) async fn open_with_journal(&self, options: RaftOptions) -> Result<(Raft, Arc<Ledger>, Journal)> {
        let ledger = Ledger::open(&self.disk, self.dir());
        let (journal, recovered) = self.try_journal().unwrap();
        Ok((Raft::open(journal.clone(), recovered, ledger.clone(), options).await?, ledger, journal))
    }
}
