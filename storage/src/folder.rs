//! The data folder: its identity and its lock.
//!
//! `LATTICE` names the format and the cluster; `lock` is held exclusively by the process that has the folder open. A folder
//! that is not empty and has no `LATTICE` is somebody else's and is refused, never overwritten.

use std::path::{Path, PathBuf};

use runtime::{DiskLock, Runtime};

use crate::{Error, Result};

/// The format of the folder that this build reads and writes.
const FORMAT: &str = "1";
const IDENTITY: &str = "LATTICE";
const LOCK: &str = "lock";

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
            let text = format!("latticedb data folder\nformat {FORMAT}\ncluster {cluster}\n");
            runtime::write_atomically(disk, &identity, text.as_bytes())
                .map_err(|error| failed("write", error))?;
            cluster
        };
        Ok(Self { cluster, _lock: lock })
    }

    pub(crate) fn cluster(&self) -> String {
        self.cluster.clone()
    }

    /// A single node owns its column tier for good.
    pub(crate) fn epoch(&self) -> u64 {
        1
    }
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
