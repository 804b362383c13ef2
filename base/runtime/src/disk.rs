//! The disk interface and the three things everybody does with it.

use std::any::Any;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The sync sites of this file.
const ATOMIC_FILE: &str = "runtime.atomic_file";
const ATOMIC_DIR: &str = "runtime.atomic_dir";
const CREATE_DIR: &str = "runtime.create_dir";

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    ReadWrite,
    /// A file that must not exist yet, to read and write.
    CreateNew,
}

/// A disk. Blocking; any thread may call it.
///
/// A change of a folder (a new, renamed or removed entry) is durable after [`Disk::sync_dir`] of that folder, and not
/// before. Each sync names its *site*, the constant by which tests switch it off.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>>;
    /// Creates a folder and the folders above it. See [`create_dir_durably`] for one that survives.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder, sorted.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Renames a file, replacing the target in one step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Open handles keep working.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Whether a file or folder is there.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Makes the entries of a folder durable.
    fn sync_dir(&self, path: &Path, site: &'static str) -> io::Result<()>;
    /// Takes the lock of a file, which is created when missing. Fails with [`io::ErrorKind::WouldBlock`] when another
    /// process, or another lock of this process, holds it.
    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock>;
    /// Bytes that can still be written on the disk that holds `path`.
    fn free_space(&self, path: &Path) -> io::Result<u64>;
}

/// An open file, read and written by position. Any thread may call it.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the length is zero.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `buffer` from `offset` on; returns less than its length only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`, growing the file when needed.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts the file, or extends it by zeros that need no space yet.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Extends the file to `len` by zeros that own their space. A longer file stays as it is.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Makes the bytes durable, and the length as far as they need it.
    fn sync_data(&self, site: &'static str) -> io::Result<()>;
    /// Makes the bytes and everything known about the file durable.
    fn sync_all(&self, site: &'static str) -> io::Result<()>;
}

/// A lock that is held until it is dropped, or until the process ends.
pub struct DiskLock {
    _guard: Box<dyn Any + Send + Sync>,
}

impl DiskLock {
    /// A lock that is given back when `guard` is dropped.
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Self { _guard: Box::new(guard) }
    }
}

impl fmt::Debug for DiskLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskLock")
    }
}

/// Fills the whole of `buffer`, or fails with [`io::ErrorKind::UnexpectedEof`].
pub fn read_exact_at(file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let read = file.read_at(buffer, offset)?;
    if read < buffer.len() {
        let message = format!("the file ends {} bytes early at offset {}", buffer.len() - read, offset + read as u64);
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
    }
    Ok(())
}

/// All bytes of a file.
pub fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    read_exact_at(&*file, &mut bytes, 0)?;
    Ok(bytes)
}

/// Replaces the file at `path` by `bytes` as a whole: a reader, or a start after a crash, sees the old bytes or the new
/// ones. They are durable when this returns. A file `.<name>.tmp` beside it is used, and overwritten when left over.
pub fn write_atomically(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        let message = format!("{} does not name a file", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    };
    let temporary = parent.join(format!(".{name}.tmp"));
    match disk.remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.open(&temporary, OpenMode::CreateNew)?;
    file.write_at(bytes, 0)?;
    file.sync_all(ATOMIC_FILE)?;
    drop(file);
    disk.rename(&temporary, path)?;
    disk.sync_dir(parent, ATOMIC_DIR)
}

/// Creates a folder and those above it, so that they are there after a crash.
///
/// The folder above the deepest one that exists already is synced too: an earlier call may have been killed between
/// making that one and syncing it.
pub fn create_dir_durably(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let mut missing: Vec<PathBuf> = Vec::new();
    let mut existing = path;
    while !existing.as_os_str().is_empty() && !disk.exists(existing)? {
        missing.push(existing.to_owned());
        match existing.parent() {
            Some(parent) => existing = parent,
            None => break,
        }
    }
    if let Some(parent) = existing.parent() {
        disk.sync_dir(parent, CREATE_DIR)?;
    }
    for folder in missing.iter().rev() {
        disk.create_dir_all(folder)?;
        if let Some(parent) = folder.parent() {
            disk.sync_dir(parent, CREATE_DIR)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimDisk;

    const OLD: &[u8] = b"the old bytes";
    const NEW: [u8; 9000] = [7; 9000];

    fn with_old() -> SimDisk {
        let disk = SimDisk::new();
        create_dir_durably(&disk, Path::new("/data")).unwrap();
        write_atomically(&disk, Path::new("/data/file"), OLD).unwrap();
        disk
    }

    /// Cuts the power at every operation of a replacement and returns what is found afterwards.
    fn after_cuts(ignore: Option<&'static str>) -> Vec<(bool, io::Result<Vec<u8>>)> {
        let mut found = Vec::new();
        for seed in 0..40 {
            for cut in 0.. {
                let disk = with_old();
                if let Some(site) = ignore {
                    disk.ignore_syncs(site);
                }
                disk.power_off_after(cut);
                let returned = write_atomically(&disk, Path::new("/data/file"), &NEW).is_ok();
                disk.crash(seed);
                found.push((returned, read_file(&disk, Path::new("/data/file"))));
                if returned {
                    break;
                }
            }
        }
        found
    }

    #[test]
    fn atomic_write_is_old_or_new_at_every_cut() {
        let found = after_cuts(None);
        assert!(found.len() > 200);
        for (returned, bytes) in found {
            let bytes = bytes.unwrap();
            assert!(bytes == NEW || (bytes == OLD && !returned));
        }
        for site in [ATOMIC_FILE, ATOMIC_DIR] {
            let broken = after_cuts(Some(site)).iter().any(|(returned, bytes)| match bytes {
                Ok(bytes) => bytes != &NEW && (bytes != OLD || *returned),
                Err(_) => true,
            });
            assert!(broken, "{site} is not needed");
        }
    }

    #[test]
    fn durable_folders_survive() {
        let path = Path::new("/a/b/c/d");
        for seed in 0..40 {
            for cut in 0..12 {
                // A first attempt is killed (the machine stays up), a second one returns, then the power goes.
                let disk = SimDisk::new();
                disk.power_off_after(cut);
                let _ = create_dir_durably(&disk, path);
                disk.kill();
                create_dir_durably(&disk, path).unwrap();
                disk.crash(seed);
                assert!(disk.exists(path).unwrap(), "seed {seed}, cut {cut}");
            }
        }
        let lost = (0..40).any(|seed| {
            let disk = SimDisk::new();
            disk.ignore_syncs(CREATE_DIR);
            create_dir_durably(&disk, path).unwrap();
            disk.crash(seed);
            !disk.exists(path).unwrap()
        });
        assert!(lost);
    }
}
