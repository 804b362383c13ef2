//! A disk in memory that behaves as badly as a real one may.
//!
//! What is written is seen at once by every reader, as through a page cache. What a crash leaves is decided page by
//! page, length by length and entry by entry: each change that was not synced may be there or not, in any combination,
//! in any of the versions it went through, and a page may be torn into sectors. Only a sync orders things.
//!
//! Clones are handles of one disk. [`SimDisk::fork`] makes an independent copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::disk::{Disk, DiskFile, DiskLock, OpenMode};

/// The unit in which unsynced bytes survive or go.
const PAGE: usize = 4096;
/// The unit in which a page may be torn.
const SECTOR: usize = 512;
/// Versions kept of one unsynced page; older ones are forgotten, which only makes the disk a little kinder.
const VERSIONS: usize = 6;
const ROOT: u64 = 0;

/// A small deterministic random generator (splitmix64), the same on every machine and in every release.
#[derive(Clone, Debug)]
pub struct SimRng(u64);

impl SimRng {
    /// A generator that repeats itself for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; zero when the bound is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }

    /// True `percent` times of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// The kinds of operations a [`Fault`] can hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Opening or creating a file.
    Open,
    /// Reading bytes.
    Read,
    /// Writing bytes, or changing the length.
    Write,
    /// Reserving space.
    Allocate,
    /// Syncing a file.
    Sync,
    /// Syncing a folder.
    SyncDir,
    /// Renaming a file.
    Rename,
    /// Removing a file.
    Remove,
}

/// What a faulty operation reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// The device failed.
    Io,
    /// No space is left.
    NoSpace,
}

/// An error to be reported in the place of some operation. A failing sync also loses what it should have made durable,
/// while readers keep seeing it, as Linux does.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The kind of operation.
    pub op: DiskOp,
    /// Only operations on paths that contain this text; empty for all.
    pub path_contains: String,
    /// So many matching operations succeed before.
    pub after: u64,
    /// What is reported.
    pub error: FaultError,
    /// Whether every later matching operation fails too.
    pub sticky: bool,
}

/// The disk. See the module description.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    resumed: Condvar,
}

#[derive(Clone)]
struct State {
    nodes: BTreeMap<u64, Node>,
    next_node: u64,
    /// Counts crashes and kills; handles of an earlier life fail.
    life: u64,
    off: bool,
    changes: u64,
    off_after: Option<u64>,
    ignored: BTreeSet<String>,
    synced: BTreeMap<String, u64>,
    faults: Vec<Fault>,
    capacity: Option<u64>,
    locks: BTreeSet<PathBuf>,
    /// Syncs of paths that contain one of these wait.
    paused: BTreeSet<String>,
    /// The paths of the syncs that wait.
    waiting: Vec<String>,
}

#[derive(Clone)]
enum Node {
    File(FileNode),
    Dir(DirNode),
}

#[derive(Clone, Default)]
struct FileNode {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// Per page every content it had since the last sync, oldest first.
    pages: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Every length it had since the last sync.
    lengths: Vec<usize>,
}

/// A change of entries that happens as a whole: each name with its new target.
type EntryChange = Vec<(String, Option<u64>)>;

#[derive(Clone, Default)]
struct DirNode {
    current: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<EntryChange>,
}

/// As `Vec::resize` with zeros, but fast in unoptimized builds too, where tests spend their time here.
fn resize(bytes: &mut Vec<u8>, len: usize) {
    let old = bytes.len();
    bytes.truncate(len);
    if len > old {
        bytes.extend_from_slice(&vec![0; len - old]);
    }
}

impl FileNode {
    fn page(&self, page: usize) -> Vec<u8> {
        let start = (page * PAGE).min(self.current.len());
        let end = (start + PAGE).min(self.current.len());
        let mut bytes = vec![0; PAGE];
        bytes[..end - start].copy_from_slice(&self.current[start..end]);
        bytes
    }

    /// Notes the content of the pages that hold `start..end`, after a change.
    fn note(&mut self, start: usize, end: usize) {
        for page in start / PAGE..end.div_ceil(PAGE) {
            let content = self.page(page);
            let versions = self.pages.entry(page).or_default();
            if versions.len() == VERSIONS {
                versions.remove(0);
            }
            versions.push(content);
        }
    }

    fn resize(&mut self, len: usize) {
        let old = self.current.len();
        if len == old {
            return;
        }
        resize(&mut self.current, len);
        self.lengths.push(len);
        if len < old {
            self.note(len, old);
        }
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if end > self.current.len() {
            self.resize(end);
        }
        self.current[offset..end].copy_from_slice(bytes);
        self.note(offset, end);
    }

    fn sync(&mut self) {
        resize(&mut self.durable, self.current.len());
        for &page in self.pages.keys() {
            let start = (page * PAGE).min(self.current.len());
            let end = (start + PAGE).min(self.current.len());
            self.durable[start..end].copy_from_slice(&self.current[start..end]);
        }
        self.forget();
    }

    /// Gives up on everything unsynced: it will never be durable.
    fn forget(&mut self) {
        self.pages.clear();
        self.lengths.clear();
    }

    fn crash(&mut self, rng: &mut SimRng) {
        let choice = usize::try_from(rng.below(self.lengths.len() as u64 + 1)).unwrap_or(0);
        let len = if choice == 0 { self.durable.len() } else { self.lengths[choice - 1] };
        resize(&mut self.durable, len);
        for (&page, versions) in &self.pages {
            let start = page * PAGE;
            let end = (start + PAGE).min(len);
            if start >= end {
                continue;
            }
            // Zero keeps what was durable.
            let pick = |rng: &mut SimRng| usize::try_from(rng.below(versions.len() as u64 + 1)).unwrap_or(0);
            let unit = if rng.chance(30) { SECTOR } else { PAGE };
            for from in (start..end).step_by(unit) {
                let to = (from + unit).min(end);
                let version = pick(rng);
                if version > 0 {
                    let content = &versions[version - 1][from - start..to - start];
                    self.durable[from..to].copy_from_slice(content);
                }
            }
        }
        self.current.clone_from(&self.durable);
        self.forget();
    }
}

impl DirNode {
    fn change(&mut self, change: EntryChange) {
        apply(&mut self.current, &change);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.current);
        self.pending.clear();
    }

    fn crash(&mut self, rng: &mut SimRng) {
        for change in std::mem::take(&mut self.pending) {
            if rng.chance(50) {
                apply(&mut self.durable, &change);
            }
        }
        self.current.clone_from(&self.durable);
    }
}

fn apply(entries: &mut BTreeMap<String, u64>, change: &EntryChange) {
    for (name, target) in change {
        match target {
            Some(node) => entries.insert(name.clone(), *node),
            None => entries.remove(name),
        };
    }
}

impl State {
    fn new() -> Self {
        Self {
            nodes: BTreeMap::from([(ROOT, Node::Dir(DirNode::default()))]),
            next_node: ROOT + 1,
            life: 0,
            off: false,
            changes: 0,
            off_after: None,
            ignored: BTreeSet::new(),
            synced: BTreeMap::new(),
            faults: Vec::new(),
            capacity: None,
            locks: BTreeSet::new(),
            paused: BTreeSet::new(),
            waiting: Vec::new(),
        }
    }

    fn add(&mut self, node: Node) -> u64 {
        let id = self.next_node;
        self.next_node += 1;
        self.nodes.insert(id, node);
        id
    }

    fn dir(&mut self, id: u64, path: &Path) -> io::Result<&mut DirNode> {
        match self.nodes.get_mut(&id) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(not_a(path, "folder")),
            None => Err(not_found(path)),
        }
    }

    fn file(&mut self, id: u64, path: &Path) -> io::Result<&mut FileNode> {
        match self.nodes.get_mut(&id) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => Err(not_a(path, "file")),
            None => Err(not_found(path)),
        }
    }

    fn find(&mut self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for name in names(path)? {
            at = *self.dir(at, path)?.current.get(&name).ok_or_else(|| not_found(path))?;
        }
        Ok(at)
    }

    /// The folder that holds `path`, and the last name.
    fn parent(&mut self, path: &Path) -> io::Result<(u64, String)> {
        let mut names = names(path)?;
        let name = names.pop().ok_or_else(|| not_a(path, "file"))?;
        let mut at = ROOT;
        for part in names {
            at = *self.dir(at, path)?.current.get(&part).ok_or_else(|| not_found(path))?;
        }
        Ok((at, name))
    }

    /// Fails when the power is off, or when a fault waits for this operation.
    fn check(&mut self, op: DiskOp, path: &Path) -> io::Result<()> {
        if self.off {
            return Err(power_off());
        }
        let path = path.to_string_lossy();
        let mut hit = None;
        for (at, fault) in self.faults.iter_mut().enumerate() {
            if fault.op == op && path.contains(&fault.path_contains) {
                if fault.after > 0 {
                    fault.after -= 1;
                } else if hit.is_none() {
                    hit = Some((at, fault.error, fault.sticky));
                }
            }
        }
        let Some((at, error, sticky)) = hit else { return Ok(()) };
        if !sticky {
            self.faults.remove(at);
        }
        Err(match error {
            FaultError::Io => io::Error::other("simulated device error"),
            FaultError::NoSpace => no_space(),
        })
    }

    /// Counts a change, which is the one that does not happen when the power goes now.
    fn change(&mut self) -> io::Result<()> {
        if self.off_after == Some(self.changes) {
            self.off = true;
            self.off_after = None;
            return Err(power_off());
        }
        self.changes += 1;
        Ok(())
    }

    /// Bytes of all files that have a name.
    fn used(&self) -> u64 {
        let mut pages = 0;
        let mut todo = vec![ROOT];
        while let Some(id) = todo.pop() {
            match self.nodes.get(&id) {
                Some(Node::File(file)) => pages += file.current.len().div_ceil(PAGE),
                Some(Node::Dir(dir)) => todo.extend(dir.current.values()),
                None => {}
            }
        }
        (pages * PAGE) as u64
    }

    fn free(&self) -> u64 {
        match self.capacity {
            Some(capacity) => capacity.saturating_sub(self.used()),
            None => u64::MAX,
        }
    }

    /// Fails when growing a file from `old` to `new` bytes does not fit.
    fn check_room(&self, old: usize, new: usize) -> io::Result<()> {
        if self.capacity.is_none() {
            return Ok(());
        }
        let more = new.div_ceil(PAGE).saturating_sub(old.div_ceil(PAGE)) * PAGE;
        if more as u64 > self.free() { Err(no_space()) } else { Ok(()) }
    }

    /// Removes files and folders that no entry leads to. Only after a crash or a kill: before, handles keep them.
    fn sweep(&mut self) {
        let mut kept = BTreeSet::new();
        let mut todo = vec![ROOT];
        while let Some(id) = todo.pop() {
            if kept.insert(id)
                && let Some(Node::Dir(dir)) = self.nodes.get(&id)
            {
                todo.extend(dir.current.values().chain(dir.durable.values()));
                todo.extend(dir.pending.iter().flatten().filter_map(|(_, target)| *target));
            }
        }
        self.nodes.retain(|id, _| kept.contains(id));
    }

    fn start_next_life(&mut self) {
        self.life += 1;
        self.off = false;
        self.off_after = None;
        self.locks.clear();
        self.sweep();
    }
}

impl SimDisk {
    /// An empty disk without limits.
    pub fn new() -> Self {
        Self::with_state(State::new())
    }

    fn with_state(state: State) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::new(state), resumed: Condvar::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }

    /// An independent copy of the disk as it is now. Open handles stay with this one.
    pub fn fork(&self) -> Self {
        let mut state = self.state().clone();
        state.paused.clear();
        state.waiting.clear();
        state.start_next_life();
        Self::with_state(state)
    }

    /// Cuts the power and starts the machine again: a random part of what was not synced is gone, and every handle and
    /// lock of before is dead. The same seed on the same disk leaves the same bytes.
    pub fn crash(&self, seed: u64) {
        let mut state = self.state();
        let mut rng = SimRng::new(seed);
        for node in state.nodes.values_mut() {
            match node {
                Node::File(file) => file.crash(&mut rng),
                Node::Dir(dir) => dir.crash(&mut rng),
            }
        }
        state.start_next_life();
    }

    /// Ends the process but not the machine: everything written stays visible, what was not synced can still be lost by
    /// a later crash, and every handle and lock is dead.
    pub fn kill(&self) {
        self.state().start_next_life();
    }

    /// Lets `changes` more changes happen; the one after them fails, and so does every operation until a crash or kill.
    pub fn power_off_after(&self, changes: u64) {
        let mut state = self.state();
        state.off_after = Some(state.changes + changes);
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// Changes made so far: writes, lengths, syncs, and entries made, renamed and removed.
    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// From now on the syncs of `site` return at once and do nothing.
    pub fn ignore_syncs(&self, site: &str) {
        self.state().ignored.insert(site.to_owned());
    }

    /// How often each sync site was called and succeeded, ignored ones included.
    pub fn sync_sites(&self) -> BTreeMap<String, u64> {
        self.state().synced.clone()
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Limits the bytes of all files together, counted in whole pages.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Makes syncs wait, or lets all that wait go on.
    pub fn pause_syncs(&self, paused: bool) {
        if paused {
            self.pause_syncs_of("", true);
        } else {
            self.state().paused.clear();
            self.shared.resumed.notify_all();
        }
    }

    /// Makes syncs of paths that contain a text wait, or lets them go on.
    pub fn pause_syncs_of(&self, path_contains: &str, paused: bool) {
        let mut state = self.state();
        if paused {
            state.paused.insert(path_contains.to_owned());
        } else {
            state.paused.remove(path_contains);
            self.shared.resumed.notify_all();
        }
    }

    /// How many syncs wait because of [`SimDisk::pause_syncs`] or [`SimDisk::pause_syncs_of`].
    pub fn waiting_syncs(&self) -> usize {
        self.waiting_syncs_of("")
    }

    /// How many of them are of paths that contain a text.
    pub fn waiting_syncs_of(&self, path_contains: &str) -> usize {
        self.state().waiting.iter().filter(|path| path.contains(path_contains)).count()
    }

    /// Damages one byte for ever: its bits under `mask` are turned.
    pub fn flip(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let mut state = self.state();
        let id = state.find(path)?;
        let file = state.file(id, path)?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        for bytes in [&mut file.current, &mut file.durable] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= mask;
            }
        }
        for version in file.pages.get_mut(&(at / PAGE)).into_iter().flatten() {
            version[at % PAGE] ^= mask;
        }
        Ok(())
    }

    /// Every file with its length, sorted by path.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state();
        let mut found = Vec::new();
        let mut todo = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, id)) = todo.pop() {
            match state.nodes.get(&id) {
                Some(Node::File(file)) => found.push((path, file.current.len() as u64)),
                Some(Node::Dir(dir)) => todo.extend(dir.current.iter().map(|(name, id)| (path.join(name), *id))),
                None => {}
            }
        }
        found.sort();
        found
    }

    fn run_sync(
        &self,
        op: DiskOp,
        path: &Path,
        site: &str,
        life: Option<u64>,
        sync: impl Fn(&mut State, bool) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut state = self.state();
        let name = path.to_string_lossy();
        while state.paused.iter().any(|part| name.contains(part.as_str())) {
            state.waiting.push(name.clone().into_owned());
            self.shared.resumed.wait(&mut state);
            if let Some(at) = state.waiting.iter().position(|waiting| *waiting == name) {
                state.waiting.swap_remove(at);
            }
        }
        if life.is_some_and(|life| life != state.life) {
            return Err(power_off());
        }
        state.change()?;
        if let Err(error) = state.check(op, path) {
            if !state.off {
                // The pages that could not be written are marked clean.
                sync(&mut state, false)?;
            }
            return Err(error);
        }
        *state.synced.entry(site.to_owned()).or_default() += 1;
        if state.ignored.contains(site) {
            return Ok(());
        }
        sync(&mut state, true)
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.check(DiskOp::Open, path)?;
        let (parent, name) = state.parent(path)?;
        let found = state.dir(parent, path)?.current.get(&name).copied();
        let id = match (found, mode) {
            (Some(_), OpenMode::CreateNew) => {
                let message = format!("{} exists already", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
            (Some(id), _) => {
                state.file(id, path)?;
                id
            }
            (None, OpenMode::CreateNew) => {
                state.change()?;
                let id = state.add(Node::File(FileNode::default()));
                state.dir(parent, path)?.change(vec![(name, Some(id))]);
                id
            }
            (None, _) => return Err(not_found(path)),
        };
        let life = state.life;
        drop(state);
        let writable = mode != OpenMode::Read;
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned(), id, life, writable }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check(DiskOp::Open, path)?;
        let mut at = ROOT;
        for name in names(path)? {
            at = match state.dir(at, path)?.current.get(&name).copied() {
                Some(id) => {
                    state.dir(id, path)?;
                    id
                }
                None => {
                    state.change()?;
                    let id = state.add(Node::Dir(DirNode::default()));
                    state.dir(at, path)?.change(vec![(name, Some(id))]);
                    id
                }
            };
        }
        Ok(())
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state();
        state.check(DiskOp::Open, path)?;
        let id = state.find(path)?;
        Ok(state.dir(id, path)?.current.keys().cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check(DiskOp::Rename, from)?;
        let id = state.find(from)?;
        let (from_dir, from_name) = state.parent(from)?;
        let (to_dir, to_name) = state.parent(to)?;
        state.change()?;
        if from_dir == to_dir {
            state.dir(to_dir, to)?.change(vec![(from_name, None), (to_name, Some(id))]);
        } else {
            state.dir(to_dir, to)?.change(vec![(to_name, Some(id))]);
            state.dir(from_dir, from)?.change(vec![(from_name, None)]);
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.check(DiskOp::Remove, path)?;
        let id = state.find(path)?;
        state.file(id, path)?;
        let (dir, name) = state.parent(path)?;
        state.change()?;
        state.dir(dir, path)?.change(vec![(name, None)]);
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.state();
        state.check(DiskOp::Open, path)?;
        match state.find(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn sync_dir(&self, path: &Path, site: &'static str) -> io::Result<()> {
        self.run_sync(DiskOp::SyncDir, path, site, None, |state, works| {
            let id = state.find(path)?;
            let dir = state.dir(id, path)?;
            if works {
                dir.sync();
            } else {
                dir.pending.clear();
            }
            Ok(())
        })
    }

    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock> {
        if !self.exists(path)? {
            self.open(path, OpenMode::CreateNew)?;
        }
        let mut state = self.state();
        if !state.locks.insert(path.to_owned()) {
            let message = format!("{} is locked already", path.display());
            return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
        }
        Ok(DiskLock::new(SimLock { disk: self.clone(), path: path.to_owned(), life: state.life }))
    }

    fn free_space(&self, _path: &Path) -> io::Result<u64> {
        let state = self.state();
        if state.off { Err(power_off()) } else { Ok(state.free()) }
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    life: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    id: u64,
    life: u64,
    writable: bool,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SimFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.life == self.life { Ok(state) } else { Err(power_off()) }
    }

    /// Checks everything that can forbid a change to `len` bytes, and counts it.
    fn begin_change(&self, op: DiskOp, len: Option<usize>) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state()?;
        if !self.writable {
            let message = format!("{} is open to read only", self.path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        state.check(op, &self.path)?;
        if let Some(len) = len {
            let old = state.file(self.id, &self.path)?.current.len();
            state.check_room(old, len)?;
        }
        state.change()?;
        Ok(state)
    }

    fn sync(&self, site: &str) -> io::Result<()> {
        self.disk.run_sync(DiskOp::Sync, &self.path, site, Some(self.life), |state, works| {
            let file = state.file(self.id, &self.path)?;
            if works {
                file.sync();
            } else {
                file.forget();
            }
            Ok(())
        })
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut state = self.state()?;
        state.check(DiskOp::Read, &self.path)?;
        Ok(state.file(self.id, &self.path)?.current.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state()?;
        state.check(DiskOp::Read, &self.path)?;
        let bytes = &state.file(self.id, &self.path)?.current;
        let start = usize::try_from(offset).map_err(io::Error::other)?.min(bytes.len());
        let read = buffer.len().min(bytes.len() - start);
        buffer[..read].copy_from_slice(&bytes[start..start + read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let mut state = self.begin_change(DiskOp::Write, Some(offset + bytes.len()))?;
        state.file(self.id, &self.path)?.write(bytes, offset);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut state = self.begin_change(DiskOp::Write, None)?;
        state.file(self.id, &self.path)?.resize(len);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut state = self.begin_change(DiskOp::Allocate, Some(len))?;
        let file = state.file(self.id, &self.path)?;
        if len > file.current.len() {
            file.resize(len);
        }
        Ok(())
    }

    fn sync_data(&self, site: &'static str) -> io::Result<()> {
        self.sync(site)
    }

    fn sync_all(&self, site: &'static str) -> io::Result<()> {
        self.sync(site)
    }
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name.to_string_lossy().into_owned()),
            Component::ParentDir | Component::Prefix(_) => {
                let message = format!("{} is not a plain path", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        }
    }
    Ok(names)
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

fn not_a(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a {what}", path.display()))
}

fn no_space() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no space left on the simulated disk")
}

fn power_off() -> io::Error {
    io::Error::other("the simulated machine is off")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{create_dir_durably, read_file};

    fn file(disk: &SimDisk, path: &str) -> Box<dyn DiskFile> {
        disk.open(Path::new(path), OpenMode::CreateNew).unwrap()
    }

    fn some_work(disk: &SimDisk) {
        create_dir_durably(disk, Path::new("/d")).unwrap();
        for name in ["/d/a", "/d/b", "/d/c"] {
            let file = file(disk, name);
            file.write_at(&[1; 20_000], 0).unwrap();
            file.sync_data("test.file").unwrap();
            for page in 0..5 {
                file.write_at(&[2 + page; 3000], u64::from(page) * 3500).unwrap();
            }
        }
        disk.sync_dir(Path::new("/d"), "test.dir").unwrap();
        disk.rename(Path::new("/d/a"), Path::new("/d/z")).unwrap();
        disk.remove_file(Path::new("/d/b")).unwrap();
    }

    fn contents(disk: &SimDisk) -> Vec<(PathBuf, Vec<u8>)> {
        disk.files().into_iter().map(|(path, _)| (path.clone(), read_file(disk, &path).unwrap())).collect()
    }

    #[test]
    fn same_seed_same_disk() {
        let crash = |seed| {
            let disk = SimDisk::new();
            some_work(&disk);
            disk.crash(seed);
            contents(&disk)
        };
        assert_eq!(crash(1), crash(1));
        let different = (0..50).map(crash).collect::<BTreeSet<_>>();
        assert!(different.len() > 40);
    }

    #[test]
    fn synced_bytes_stay_and_others_may_go() {
        let mut lost = 0;
        let mut kept = 0;
        for seed in 0..200 {
            let disk = SimDisk::new();
            let file = file(&disk, "/f");
            disk.sync_dir(Path::new("/"), "test.dir").unwrap();
            file.write_at(&[1; 8192], 0).unwrap();
            file.sync_data("test.file").unwrap();
            file.write_at(&[2; 8192], 8192).unwrap();
            disk.crash(seed);
            let bytes = read_file(&disk, Path::new("/f")).unwrap();
            assert_eq!(bytes[..8192], [1; 8192]);
            if bytes[8192..] == [2; 8192] {
                kept += 1
            } else {
                lost += 1
            }
            assert!(file.write_at(b"x", 0).is_err(), "handles die with their machine");
        }
        assert!(lost > 20 && kept > 5, "lost {lost}, kept {kept}");
    }

    #[test]
    fn entries_need_their_folder_synced() {
        let survives = |synced: bool| {
            (0..50)
                .filter(|&seed| {
                    let disk = SimDisk::new();
                    let file = file(&disk, "/f");
                    file.write_at(b"x", 0).unwrap();
                    file.sync_all("test.file").unwrap();
                    if synced {
                        disk.sync_dir(Path::new("/"), "test.dir").unwrap();
                    }
                    disk.crash(seed);
                    disk.exists(Path::new("/f")).unwrap()
                })
                .count()
        };
        assert_eq!(survives(true), 50);
        assert!((5..45).contains(&survives(false)));
    }

    #[test]
    fn a_failed_sync_loses_what_it_should_have_kept() {
        for seed in 0..20 {
            let disk = SimDisk::new();
            let file = file(&disk, "/f");
            disk.sync_dir(Path::new("/"), "test.dir").unwrap();
            file.write_at(&[1; 100], 0).unwrap();
            let error = FaultError::Io;
            disk.inject(Fault { op: DiskOp::Sync, path_contains: "f".into(), after: 0, error, sticky: false });
            file.sync_data("test.file").unwrap_err();
            // The retry that must not be made: it succeeds and means nothing.
            file.sync_data("test.file").unwrap();
            assert_eq!(read_file(&disk, Path::new("/f")).unwrap(), [1; 100]);
            disk.crash(seed);
            assert!(read_file(&disk, Path::new("/f")).unwrap().iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn space_ends_and_faults_count() {
        let disk = SimDisk::new();
        disk.set_capacity(Some(3 * 4096));
        let file = file(&disk, "/f");
        file.allocate(2 * 4096).unwrap();
        assert_eq!(disk.free_space(Path::new("/")).unwrap(), 4096);
        assert_eq!(file.allocate(4 * 4096).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_at(&[1; 8192], 0).unwrap();
        let error = FaultError::NoSpace;
        disk.inject(Fault { op: DiskOp::Write, path_contains: String::new(), after: 1, error, sticky: false });
        file.write_at(b"x", 0).unwrap();
        assert_eq!(file.write_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_at(b"x", 0).unwrap();
    }

    #[test]
    fn a_kill_keeps_what_was_written_but_not_for_ever() {
        let disk = SimDisk::new();
        let file = file(&disk, "/f");
        disk.sync_dir(Path::new("/"), "test.dir").unwrap();
        let lock = disk.lock_exclusive(Path::new("/lock")).unwrap();
        assert!(disk.lock_exclusive(Path::new("/lock")).is_err());
        file.write_at(&[1; 4096], 0).unwrap();
        disk.kill();
        let _new = disk.lock_exclusive(Path::new("/lock")).unwrap();
        drop(lock);
        assert!(disk.lock_exclusive(Path::new("/lock")).is_err(), "an old lock frees nothing");
        assert_eq!(read_file(&disk, Path::new("/f")).unwrap(), [1; 4096]);
        let lost = (0..20).any(|seed| {
            let copy = disk.fork();
            copy.crash(seed);
            read_file(&copy, Path::new("/f")).unwrap() != [1; 4096]
        });
        assert!(lost);
    }
}
