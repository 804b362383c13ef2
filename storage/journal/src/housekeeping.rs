//! The keeper: a thread that prepares the next segments and removes old ones, so that the writer waits for neither.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::segment::{self, Segment};
use crate::shared::Shared;

pub(crate) struct Housekeeping {
    state: Mutex<Keep>,
    changed: Condvar,
}

struct Keep {
    ready: VecDeque<Arc<Segment>>,
    wanted: usize,
    next_number: u64,
    remove: VecDeque<PathBuf>,
    /// A segment is being prepared right now.
    working: bool,
    /// The last attempt to prepare one found the disk full.
    full: bool,
    retry: bool,
    /// Whether a thread does the work.
    running: bool,
    stopped: bool,
}

impl Housekeeping {
    /// Starts with the segments that are ready and the number of the one after them.
    pub(crate) fn new(ready: VecDeque<Arc<Segment>>, next_number: u64, wanted: usize) -> Self {
        let state = Keep {
            ready,
            wanted,
            next_number,
            remove: VecDeque::new(),
            working: false,
            full: false,
            retry: false,
            running: false,
            stopped: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(crate) fn reserve_missing(&self) -> bool {
        self.state.lock().full
    }

    /// Asks for another attempt after the disk was full.
    pub(crate) fn retry(&self) {
        self.state.lock().retry = true;
        self.changed.notify_all();
    }

    pub(crate) fn remove(&self, paths: impl IntoIterator<Item = PathBuf>) {
        self.state.lock().remove.extend(paths);
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }
}

impl Shared {
    /// The next segment. Waits while the keeper prepares it, and prepares it here when the keeper does not.
    pub(crate) fn take_segment(&self) -> Result<Arc<Segment>> {
        let keeping = &self.housekeeping;
        let mut state = keeping.state.lock();
        loop {
            if let Some(segment) = state.ready.pop_front() {
                keeping.changed.notify_all();
                return Ok(segment);
            }
            let coming = state.running && !state.stopped && !state.full && state.wanted > 0;
            if !state.working && !coming {
                break;
            }
            keeping.changed.wait(&mut state);
        }
        let number = state.next_number;
        state.working = true;
        drop(state);
        let created = self.create_segment(number);
        let mut state = keeping.state.lock();
        state.working = false;
        if created.is_ok() {
            state.next_number += 1;
            state.full = false;
        }
        keeping.changed.notify_all();
        created
    }

    fn create_segment(&self, number: u64) -> Result<Arc<Segment>> {
        segment::create(&*self.disk, &self.dir, self.journal, number, self.options.segment_bytes)
    }

    /// The keeper's thread. Ends when told to, after the removals that wait.
    pub(crate) fn run_housekeeping(&self) {
        self.housekeeping.state.lock().running = true;
        let _end = OnEnd(self);
        while self.keep_house(true) {}
    }

    /// Does one piece of work, or waits for it. Returns whether there may be more.
    pub(crate) fn keep_house(&self, wait: bool) -> bool {
        let keeping = &self.housekeeping;
        let mut state = keeping.state.lock();
        let number = loop {
            if let Some(path) = state.remove.pop_front() {
                drop(state);
                return match self.disk.remove_file(&path) {
                    Err(source) if source.kind() != io::ErrorKind::NotFound => {
                        self.fail(&Error::Io { action: "remove", path, source });
                        false
                    }
                    _ => true,
                };
            }
            if state.stopped {
                return false;
            }
            if state.ready.len() < state.wanted && !state.working && (!state.full || state.retry) {
                state.retry = false;
                break state.next_number;
            }
            if !wait {
                return false;
            }
            keeping.changed.wait(&mut state);
        };
        state.working = true;
        drop(state);
        let created = self.create_segment(number);
        let mut state = keeping.state.lock();
        state.working = false;
        let more = match created {
            Ok(segment) => {
                state.ready.push_back(segment);
                state.next_number += 1;
                state.full = false;
                true
            }
            Err(error) if error.is_full() => {
                state.full = true;
                true
            }
            Err(error) => {
                drop(state);
                self.fail(&error);
                false
            }
        };
        keeping.changed.notify_all();
        more
    }
}

/// Tells the writer that nobody prepares segments any more, also after a panic.
struct OnEnd<'a>(&'a Shared);

impl Drop for OnEnd<'_> {
    fn drop(&mut self) {
        let mut state = self.0.housekeeping.state.lock();
        state.running = false;
        if std::thread::panicking() {
            state.working = false;
            drop(state);
            self.0.fail(&Error::Poisoned { reason: "the keeper thread panicked".to_owned() });
        }
        self.0.housekeeping.changed.notify_all();
    }
}
