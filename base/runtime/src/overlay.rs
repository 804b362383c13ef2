//! A disk over another one that is only read: what is written stays in memory and is forgotten.
//!
//! It lets code that must write to work (a recovery, say) run on files that must not change. Files that are opened to
//! be written are kept as pages of 4 KiB over their original; renames and removals are remembered by name.
//!
//! # Invariants
//! - OVERLAY-1 the disk below is never changed: `tests::the_disk_below_never_changes`.
//! - OVERLAY-2 through the overlay everything looks as if it had been: `tests::it_behaves_like_a_disk`.
//!
//! # Not here
//! Durability: there is nothing to make durable. Locks of files that exist below are taken there, to keep others out; a
//! lock file that is missing is not made.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile, DiskLock, OpenMode};

const PAGE: u64 = 4096;

/// See the module description.
pub struct OverlayDisk {
    below: Arc<dyn Disk>,
    names: Mutex<Names>,
}

/// What differs from the disk below, by name.
#[derive(Default)]
struct Names {
    files: HashMap<PathBuf, Arc<Pages>>,
    removed: HashSet<PathBuf>,
    folders: BTreeSet<PathBuf>,
}

/// One file that was, or may be, written.
struct Pages {
    original: Option<Box<dyn DiskFile>>,
    content: Mutex<Content>,
}

struct Content {
    len: u64,
    /// Bytes of the original that still show where there is no page.
    showing: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl fmt::Debug for OverlayDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OverlayDisk").field(&self.below).finish()
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OverlayFile")
    }
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

impl OverlayDisk {
    /// Lays an empty overlay over a disk.
    pub fn new(below: Arc<dyn Disk>) -> Self {
        Self { below, names: Mutex::default() }
    }

    /// The pages of a file, which is opened below when it is met for the first time.
    fn pages(&self, names: &mut Names, path: &Path) -> io::Result<Arc<Pages>> {
        if let Some(pages) = names.files.get(path) {
            return Ok(Arc::clone(pages));
        }
        if names.removed.contains(path) {
            return Err(missing(path));
        }
        let original = self.below.open(path, OpenMode::Read)?;
        let len = original.len()?;
        let content = Content { len, showing: len, pages: BTreeMap::new() };
        let pages = Arc::new(Pages { original: Some(original), content: Mutex::new(content) });
        names.files.insert(path.to_owned(), Arc::clone(&pages));
        Ok(pages)
    }

    fn there(&self, names: &Names, path: &Path) -> io::Result<bool> {
        if names.files.contains_key(path) || names.folders.contains(path) {
            return Ok(true);
        }
        Ok(!names.removed.contains(path) && self.below.exists(path)?)
    }

    /// Fails unless the folder of a path is there.
    fn need_folder(&self, names: &Names, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() && !self.there(names, parent)? => Err(missing(parent)),
            _ => Ok(()),
        }
    }
}

impl Disk for OverlayDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let mut names = self.names.lock();
        match mode {
            OpenMode::Read if !names.files.contains_key(path) => {
                if names.removed.contains(path) {
                    return Err(missing(path));
                }
                self.below.open(path, OpenMode::Read)
            }
            OpenMode::Read => Ok(Box::new(Reading(self.pages(&mut names, path)?))),
            OpenMode::ReadWrite => Ok(Box::new(Writing(self.pages(&mut names, path)?))),
            OpenMode::CreateNew => {
                if self.there(&names, path)? {
                    let message = format!("{} exists", path.display());
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
                }
                self.need_folder(&names, path)?;
                let content = Content { len: 0, showing: 0, pages: BTreeMap::new() };
                let pages = Arc::new(Pages { original: None, content: Mutex::new(content) });
                names.files.insert(path.to_owned(), Arc::clone(&pages));
                Ok(Box::new(Writing(pages)))
            }
        }
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        let mut folder = Some(path);
        while let Some(path) = folder.filter(|path| !path.as_os_str().is_empty()) {
            if !self.below.exists(path)? {
                names.folders.insert(path.to_owned());
            }
            folder = path.parent();
        }
        Ok(())
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let names = self.names.lock();
        if names.files.contains_key(path) {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is a file", path.display())));
        }
        let mut found: BTreeSet<String> = match self.below.read_dir(path) {
            Ok(found) => found.into_iter().filter(|name| !names.removed.contains(&path.join(name))).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound && names.folders.contains(path) => BTreeSet::new(),
            Err(error) => return Err(error),
        };
        let here = names.files.keys().chain(&names.folders).filter(|other| other.parent() == Some(path));
        found.extend(here.filter_map(|other| Some(other.file_name()?.to_str()?.to_owned())));
        Ok(found.into_iter().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        let pages = self.pages(&mut names, from)?;
        self.need_folder(&names, to)?;
        names.files.remove(from);
        names.removed.insert(from.to_owned());
        names.removed.remove(to);
        names.files.insert(to.to_owned(), pages);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        if !self.there(&names, path)? {
            return Err(missing(path));
        }
        names.files.remove(path);
        names.removed.insert(path.to_owned());
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let names = self.names.lock();
        self.there(&names, path)
    }

    fn sync_dir(&self, _path: &Path, _site: &'static str) -> io::Result<()> {
        Ok(())
    }

    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock> {
        if self.below.exists(path)? { self.below.lock_exclusive(path) } else { Ok(DiskLock::new(())) }
    }

    fn free_space(&self, _path: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

#[derive(Debug)]
struct Reading(Arc<Pages>);

#[derive(Debug)]
struct Writing(Arc<Pages>);

impl Pages {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.content.lock();
        let end = content.len.min(offset + buffer.len() as u64);
        let mut at = offset;
        while at < end {
            let page = at / PAGE;
            let stop = end.min((page + 1) * PAGE);
            let part = &mut buffer[place(at - offset)?..place(stop - offset)?];
            match content.pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[place(at % PAGE)?..place(at % PAGE + stop - at)?]),
                None => self.original_at(&content, part, at)?,
            }
            at = stop;
        }
        place(end.saturating_sub(offset))
    }

    /// What the original has there, as far as it shows; zeros beyond.
    fn original_at(&self, content: &Content, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.fill(0);
        let Some(original) = &self.original else { return Ok(()) };
        let shown = place(content.showing.saturating_sub(offset))?.min(buffer.len());
        if shown > 0 {
            crate::disk::read_exact_at(original.as_ref(), &mut buffer[..shown], offset)?;
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut content = self.content.lock();
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let page = at / PAGE;
            let stop = end.min((page + 1) * PAGE);
            if !content.pages.contains_key(&page) {
                let mut fresh = vec![0; place(PAGE)?].into_boxed_slice();
                self.original_at(&content, &mut fresh, page * PAGE)?;
                content.pages.insert(page, fresh);
            }
            if let Some(kept) = content.pages.get_mut(&page) {
                let part = &bytes[place(at - offset)?..place(stop - offset)?];
                kept[place(at % PAGE)?..place(at % PAGE + stop - at)?].copy_from_slice(part);
            }
            at = stop;
        }
        content.len = content.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: u64) {
        let mut content = self.content.lock();
        if len < content.len {
            content.showing = content.showing.min(len);
            content.pages.retain(|page, _| page * PAGE < len);
            let cut = usize::try_from(len % PAGE).unwrap_or(0);
            if let Some(last) = content.pages.get_mut(&(len / PAGE)) {
                last[cut..].fill(0);
            }
        }
        content.len = len;
    }
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the file is open for reading only")
}

impl DiskFile for Reading {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.content.lock().len)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn allocate(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_data(&self, _site: &'static str) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self, _site: &'static str) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for Writing {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.content.lock().len)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut content = self.0.content.lock();
        content.len = content.len.max(len);
        Ok(())
    }

    fn sync_data(&self, _site: &'static str) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self, _site: &'static str) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RealDisk, SimDisk, SimRng, read_file, write_atomically};

    fn snapshot(disk: &dyn Disk, folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        for name in disk.read_dir(folder).unwrap() {
            let path = folder.join(name);
            match disk.read_dir(&path) {
                Ok(_) => {
                    found.extend(snapshot(disk, &path));
                    found.insert(path, None);
                }
                Err(_) => {
                    let bytes = read_file(disk, &path).unwrap();
                    found.insert(path, Some(bytes));
                }
            }
        }
        found
    }

    /// One random change, made on any disk in the same way.
    fn change(disk: &dyn Disk, root: &Path, rng: &mut SimRng) {
        let pick = |rng: &mut SimRng| root.join(format!("d{}/f{}", rng.below(3), rng.below(3)));
        let path = pick(rng);
        let bytes: Vec<u8> = (0..rng.below(9000)).map(|at| (at % 251) as u8).collect();
        let offset = rng.below(9000);
        match rng.below(7) {
            0 => drop(disk.create_dir_all(path.parent().unwrap())),
            1 => drop(write_atomically(disk, &path, &bytes)),
            2 => drop(disk.rename(&path, &pick(rng))),
            3 => drop(disk.remove_file(&path)),
            4 => {
                if let Ok(file) = disk.open(&path, OpenMode::ReadWrite) {
                    file.set_len(offset).unwrap();
                }
            }
            5 => {
                if let Ok(file) = disk.open(&path, OpenMode::ReadWrite) {
                    file.allocate(offset).unwrap();
                }
            }
            _ => {
                if let Ok(file) = disk.open(&path, OpenMode::ReadWrite) {
                    file.write_at(&bytes, offset).unwrap();
                }
            }
        }
    }

    #[test]
    fn it_behaves_like_a_disk() {
        let root = Path::new("/root");
        for seed in 0..40 {
            let (plain, below) = (SimDisk::new(), SimDisk::new());
            let mut rng = SimRng::new(seed);
            for disk in [&plain, &below] {
                disk.create_dir_all(root).unwrap();
                let mut same = SimRng::new(seed + 1000);
                for _ in 0..40 {
                    change(disk, root, &mut same);
                }
            }
            let over = OverlayDisk::new(Arc::new(below.clone()));
            let untouched = snapshot(&below, root);
            for step in 0..60 {
                let next = rng.next_u64();
                change(&plain, root, &mut SimRng::new(next));
                change(&over, root, &mut SimRng::new(next));
                assert_eq!(snapshot(&over, root), snapshot(&plain, root), "seed {seed}, step {step}");
            }
            assert_eq!(snapshot(&below, root), untouched, "seed {seed}");
        }
    }

    #[test]
    fn the_disk_below_never_changes() {
        let folder = tempfile::tempdir().unwrap();
        let real = RealDisk::new();
        write_atomically(&real, &folder.path().join("file"), b"original").unwrap();
        let over = OverlayDisk::new(Arc::new(real));
        over.create_dir_all(&folder.path().join("new/deep")).unwrap();
        write_atomically(&over, &folder.path().join("new/deep/file"), b"x").unwrap();
        write_atomically(&over, &folder.path().join("file"), b"changed").unwrap();
        over.lock_exclusive(&folder.path().join("lock")).unwrap();
        assert_eq!(read_file(&over, &folder.path().join("file")).unwrap(), b"changed");
        over.remove_file(&folder.path().join("file")).unwrap();
        assert!(!over.exists(&folder.path().join("file")).unwrap());
        assert_eq!(over.read_dir(folder.path()).unwrap(), ["new"]);
        assert_eq!(real.read_dir(folder.path()).unwrap(), ["file"]);
        assert_eq!(read_file(&real, &folder.path().join("file")).unwrap(), b"original");
        // A lock that exists is taken, so that a check keeps a server out, and the other way round.
        let lock = folder.path().join("there");
        drop(real.lock_exclusive(&lock).unwrap());
        let held = over.lock_exclusive(&lock).unwrap();
        assert_eq!(real.lock_exclusive(&lock).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        let _held = real.lock_exclusive(&lock).unwrap();
        assert_eq!(over.lock_exclusive(&lock).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
