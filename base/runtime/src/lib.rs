//! What the kernel takes from the world, behind traits: time, disks, and places to fail on purpose.
//!
//! Code that must survive a power cut never calls `std::fs` or reads a clock itself. It takes a [`Runtime`] and asks
//! that. [`Runtime::real`] is the machine; a [`SimDisk`] with a [`ManualClock`] is a machine in memory that can be cut
//! off after any operation, loses what was not synced, and repeats itself exactly from a seed.
//!
//! # How it works
//!
//! [`Disk`] is a blocking interface: callers own the threads they block. Every sync call carries a *site*, a constant
//! such as `"journal.batch"` that names why the call is made. The simulated disk records the sites it sees and can be
//! told to ignore one of them, so that a test can walk over all of them and show that each is needed (storage rule 5).
//!
//! [`write_atomically`] replaces a small file as a whole. [`create_dir_durably`] makes a folder that stays after a
//! crash. [`failpoint!`] names a place at which a test may end the process.
//!
//! # Invariants
//! - RUNTIME-1 a file replaced by [`write_atomically`] holds the old or the new bytes after any crash, and the new ones
//!   once the call returned: `disk::tests::atomic_write_is_old_or_new_at_every_cut`.
//! - RUNTIME-2 a folder made by [`create_dir_durably`] is there after any crash once the call returned, even when an
//!   earlier attempt was killed half way: `disk::tests::durable_folders_survive`.
//! - RUNTIME-3 the simulated disk is a function of its calls and its seeds: `sim::tests::same_seed_same_disk`.
//! - RUNTIME-4 what was synced survives every crash, and what was not may go, page by page:
//!   `sim::tests::synced_bytes_stay_and_others_may_go`.
//!
//! # Failure
//!
//! Everything returns [`std::io::Result`]: the callers know what a failure means, this crate does not. A failed sync
//! must never be retried, because the kernel may have dropped the pages; the simulated disk does drop them.
//!
//! # Not here
//!
//! Networks and tasks: replication brings its own seams with its runtime. Asynchronous files: the column tier reaches
//! its files through an object store.

mod clock;
mod disk;
mod failpoint;
mod overlay;
mod real;
mod sim;

use std::sync::Arc;

pub use clock::{Clock, ManualClock, SystemClock};
pub use disk::{Disk, DiskFile, DiskLock, OpenMode, create_dir_durably, read_exact_at, read_file, write_atomically};
pub use failpoint::{arm_failpoint, failpoint_hit, failpoints_armed};
pub use overlay::OverlayDisk;
pub use real::RealDisk;
pub use sim::{DiskOp, Fault, FaultError, SimDisk, SimRng};

/// The world as one value, cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Keeps bytes.
    pub disk: Arc<dyn Disk>,
}

impl Runtime {
    /// The machine this process runs on.
    pub fn real() -> Self {
        Self { clock: Arc::new(SystemClock::new()), disk: Arc::new(RealDisk::new()) }
    }

    /// A machine in memory. Keep the arguments (both are cheap to clone) to steer it.
    pub fn simulated(clock: ManualClock, disk: SimDisk) -> Self {
        Self { clock: Arc::new(clock), disk: Arc::new(disk) }
    }
}
