//! The data folder: its identity and its lock.
//!
//! `LATTICE` names the format and the cluster; `lock` is held exclusively by the process that has the folder open. A folder
//! that is not empty and has no `LATTICE` is somebody else's and is refused, never overwritten. `RESTORING` lies in a folder
//! that is being made from a backup; it goes, and then `LATTICE` comes, as the last step.

use std::path::{Path, PathBuf};

use runtime::{DiskLock, Runtime};

use crate::{Error, Result};

/// The format of the folder that this build reads and writes.
const FORMAT: &str = "1";
const IDENTITY: &str = "LATTICE";
const LOCK: &str = "lock";
const RESTORING: &str = "RESTORING";

/// An open data folder.
#[derive(Debug)]
pub(crate) struct Folder {
    cluster: String,
    _lock: DiskLock,
}

impl Folder {
    pub(crate) fn open(runtime: &Runtime, path: &Path) -> Result<Self> {
        let disk = runtime.disk.as_ref();
        let failed = |what: &str, error: std::io::Error| {
            Error::Folder(format!("cannot {what} data folder {}: {error}", path.display()))
        };
        let identity: PathBuf = path.join(IDENTITY);
        if disk.exists(path).map_err(|error| failed("look at", error))? {
            if !disk.exists(&identity).map_err(|error| failed("look at", error))? {
                let names = disk.read_dir(path).map_err(|error| failed("list", error))?;
                if names.iter().any(|name| name == RESTORING) {
                    return Err(Error::Folder(format!(
                        "the restore of a backup into {} was not finished: remove the folder and run `lattice restore` again",
                        path.display()
                    )));
                }
                if names.iter().any(|name| name != LOCK && name != ".LATTICE.tmp") {
                    return Err(Error::Folder(format!(
                        "{} is not empty and not a LatticeDB data folder: choose another folder with --data",
                        path.display()
                    )));
                }
            }
        } else {
            runtime::create_dir_durably(disk, path).map_err(|error| failed("create", error))?;
        }
        let lock = disk.lock_exclusive(&path.join(LOCK)).map_err(|error| {
            Error::Folder(format!(
                "data folder {} is in use by another process ({error}): stop it or choose another folder with --data",
                path.display()
            ))
        })?;
        let cluster = if disk.exists(&identity).map_err(|error| failed("look at", error))? {
            let bytes = runtime::read_file(disk, &identity).map_err(|error| failed("read", error))?;
            parse(path, &bytes)?
        } else {
            let cluster = new_cluster_id(runtime);
            runtime::write_atomically(disk, &identity, identity_text(&cluster).as_bytes())
                .map_err(|error| failed("write", error))?;
            cluster
        };
        Ok(Self { cluster, _lock: lock })
    }

    /// Refuses a folder that holds anything: a backup is restored into an empty or new one.
    pub(crate) fn check_free(runtime: &Runtime, path: &Path) -> Result<()> {
        let disk = runtime.disk.as_ref();
        let failed = |what: &str, error: std::io::Error| {
            Error::Folder(format!("cannot {what} data folder {}: {error}", path.display()))
        };
        if !disk.exists(path).map_err(|error| failed("look at", error))? {
            return Ok(());
        }
        let names = disk.read_dir(path).map_err(|error| failed("list", error))?;
        if names.is_empty() {
            return Ok(());
        }
        let (what, advice) = if names.iter().any(|name| name == IDENTITY) {
            ("is a database already", "restore into an empty or new folder")
        } else if names.iter().any(|name| name == RESTORING) {
            ("holds a restore that was not finished", "remove it, or restore into a new folder")
        } else {
            ("is not empty", "restore into an empty or new folder")
        };
        Err(Error::Folder(format!(
            "{} {what}: {advice} (--data); nothing is restored over what is there",
            path.display()
        )))
    }

    /// Begins to make a folder from a backup: takes an empty or new one, and marks it.
    pub(crate) fn restore(runtime: &Runtime, path: &Path) -> Result<Unfinished> {
        let disk = runtime.disk.as_ref();
        let failed = |what: &str, error: std::io::Error| {
            Error::Folder(format!("cannot {what} data folder {}: {error}", path.display()))
        };
        Self::check_free(runtime, path)?;
        if !disk.exists(path).map_err(|error| failed("look at", error))? {
            runtime::create_dir_durably(disk, path).map_err(|error| failed("create", error))?;
        }
        let lock = disk.lock_exclusive(&path.join(LOCK)).map_err(|error| failed("lock", error))?;
        runtime::write_atomically(disk, &path.join(RESTORING), b"a backup is being restored into this folder\n")
            .map_err(|error| failed("write to", error))?;
        Ok(Unfinished { path: path.to_owned(), cluster: new_cluster_id(runtime), _lock: lock })
    }

    pub(crate) fn cluster(&self) -> String {
        self.cluster.clone()
    }

    /// A single node owns its column tier for good.
    pub(crate) fn epoch(&self) -> u64 {
        1
    }
}

/// A folder that is being made from a backup. It is a database once [`Unfinished::finish`] returns.
#[derive(Debug)]
pub(crate) struct Unfinished {
    path: PathBuf,
    cluster: String,
    _lock: DiskLock,
}

/// The sync site of the end of a restore.
const RESTORED: &str = "storage.restored";

impl Unfinished {
    /// The id of the database it will be: a new one.
    pub(crate) fn cluster(&self) -> String {
        self.cluster.clone()
    }

    pub(crate) fn epoch(&self) -> u64 {
        1
    }

    pub(crate) fn finish(self, runtime: &Runtime) -> Result<()> {
        let disk = runtime.disk.as_ref();
        let failed = |error: std::io::Error| {
            Error::Folder(format!("cannot finish data folder {}: {error}", self.path.display()))
        };
        disk.remove_file(&self.path.join(RESTORING)).map_err(failed)?;
        disk.sync_dir(&self.path, RESTORED).map_err(failed)?;
        runtime::write_atomically(disk, &self.path.join(IDENTITY), identity_text(&self.cluster).as_bytes())
            .map_err(failed)
    }
}

fn identity_text(cluster: &str) -> String {
    format!("latticedb data folder\nformat {FORMAT}\ncluster {cluster}\n")
}

fn parse(path: &Path, bytes: &[u8]) -> Result<String> {
    let damaged = || Error::Corrupt(format!("{}: not a LatticeDB identity file", path.join(IDENTITY).display()));
    let text = std::str::from_utf8(bytes).map_err(|_| damaged())?;
    let mut lines = text.lines();
    if lines.next() != Some("latticedb data folder") {
        return Err(damaged());
    }
    let format = lines.next().and_then(|line| line.strip_prefix("format ")).ok_or_else(damaged)?;
    if format != FORMAT {
        return Err(Error::Folder(format!(
            "data folder {} has format {format}; this build reads format {FORMAT}",
            path.display()
        )));
    }
    let cluster = lines.next().and_then(|line| line.strip_prefix("cluster ")).ok_or_else(damaged)?;
    Ok(cluster.to_owned())
}

/// An id that no other cluster on the same object store is likely to have: the moment of creation and the process.
fn new_cluster_id(runtime: &Runtime) -> String {
    format!("{:016x}{:08x}", runtime.clock.now().0, std::process::id())
}
