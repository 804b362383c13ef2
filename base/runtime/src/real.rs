//! The disks of the machine.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::disk::{Disk, DiskFile, DiskLock, OpenMode};

/// How much is written at a time when a file is filled with zeros.
const FILL_BYTES: usize = 1 << 20;

/// Real files through the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk {
    _private: (),
}

impl RealDisk {
    /// The disks of this machine.
    pub fn new() -> Self {
        Self { _private: () }
    }
}

#[derive(Debug)]
struct RealFile(File);

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        match mode {
            OpenMode::Read => options.read(true),
            OpenMode::ReadWrite => options.read(true).write(true),
            OpenMode::CreateNew => options.read(true).write(true).create_new(true),
        };
        Ok(Box::new(RealFile(options.open(path)?)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn sync_dir(&self, path: &Path, _site: &'static str) -> io::Result<()> {
        // The parent of a bare relative name is the empty path.
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        File::open(path)?.sync_all()
    }

    fn lock_exclusive(&self, path: &Path) -> io::Result<DiskLock> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if !fs4::fs_std::FileExt::try_lock_exclusive(&file)? {
            let message = format!("{} is locked by another process", path.display());
            return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
        }
        // Closing the file gives the lock back.
        Ok(DiskLock::new(file))
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        fs4::available_space(path)
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len <= old {
            return Ok(());
        }
        // Reserving first makes a full disk show at once, and keeps the file in few pieces.
        fs4::fs_std::FileExt::allocate(&self.0, len)?;
        // Written zeros, because the first write into a reserved but unwritten block makes the file system log a change
        // of its own, which the next sync would wait for.
        let zeros = vec![0; FILL_BYTES];
        let mut offset = old;
        while offset < len {
            let part = usize::try_from(len - offset).unwrap_or(FILL_BYTES).min(FILL_BYTES);
            self.0.write_all_at(&zeros[..part], offset)?;
            offset += part as u64;
        }
        Ok(())
    }

    fn sync_data(&self, _site: &'static str) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self, _site: &'static str) -> io::Result<()> {
        self.0.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{read_file, write_atomically};

    #[test]
    fn files_are_read_written_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new();
        let path = dir.path().join("a/b/file");
        crate::create_dir_durably(&disk, path.parent().unwrap()).unwrap();
        let file = disk.open(&path, OpenMode::CreateNew).unwrap();
        file.allocate(3 * FILL_BYTES as u64 / 2).unwrap();
        file.write_at(b"hello", 10).unwrap();
        file.sync_data("test.file").unwrap();
        let mut buffer = [1; 20];
        assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 20);
        assert_eq!(&buffer, b"\0\0\0\0\0\0\0\0\0\0hello\0\0\0\0\0");
        assert_eq!(file.len().unwrap(), 3 * FILL_BYTES as u64 / 2);
        file.set_len(12).unwrap();
        assert_eq!(file.read_at(&mut buffer, 8).unwrap(), 4);
        assert_eq!(disk.open(&path, OpenMode::CreateNew).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        write_atomically(&disk, &dir.path().join("a/b/small"), b"one").unwrap();
        write_atomically(&disk, &dir.path().join("a/b/small"), b"two").unwrap();
        assert_eq!(read_file(&disk, &dir.path().join("a/b/small")).unwrap(), b"two");
        assert_eq!(disk.read_dir(&dir.path().join("a/b")).unwrap(), ["file", "small"]);
        assert!(disk.free_space(dir.path()).unwrap() > 0);
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new();
        let path = dir.path().join("lock");
        let held = disk.lock_exclusive(&path).unwrap();
        assert_eq!(disk.lock_exclusive(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        disk.lock_exclusive(&path).unwrap();
    }
}
