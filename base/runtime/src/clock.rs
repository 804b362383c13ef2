//! Wall time and monotonic time.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::CommitTs;
use parking_lot::Mutex;

/// A source of time.
pub trait Clock: Debug + Send + Sync {
    /// Wall time in microseconds since the Unix epoch. It may jump in either direction.
    fn now(&self) -> CommitTs;
    /// Time since some fixed moment, including time that the machine slept. It never goes back.
    fn monotonic(&self) -> Duration;
}

/// The clock of the machine.
#[derive(Clone, Debug)]
pub struct SystemClock {
    start: Duration,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self { start: since_boot() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> CommitTs {
        let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            // A clock set before 1970 counts backwards from the epoch.
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        };
        CommitTs(micros)
    }

    fn monotonic(&self) -> Duration {
        since_boot().saturating_sub(self.start)
    }
}

/// Unlike [`std::time::Instant`] on Linux, this goes on while the machine is suspended: a laptop that wakes up has not seen
/// its clock jump.
#[allow(unsafe_code, reason = "the standard library does not offer this clock")]
fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid timespec, which the call fills.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    debug_assert_eq!(done, 0, "every Linux since 2.6.39 has this clock");
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// A clock that stands still until it is moved. Clones share the time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    time: Arc<Mutex<(CommitTs, Duration)>>,
}

impl ManualClock {
    /// A clock standing at `now`.
    pub fn new(now: CommitTs) -> Self {
        Self { time: Arc::new(Mutex::new((now, Duration::ZERO))) }
    }

    /// Moves both kinds of time forward.
    pub fn advance(&self, by: Duration) {
        let mut time = self.time.lock();
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        time.0 = CommitTs(time.0.0.saturating_add(micros));
        time.1 += by;
    }

    /// Makes wall time jump, as an operator or a time server does. Monotonic time stays.
    pub fn set_wall(&self, now: CommitTs) {
        self.time.lock().0 = now;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> CommitTs {
        self.time.lock().0
    }

    fn monotonic(&self) -> Duration {
        self.time.lock().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_time_is_after_2020_and_moves() {
        let clock = SystemClock::new();
        assert!(clock.now() > CommitTs(1_577_836_800_000_000));
        let first = clock.monotonic();
        assert!(clock.monotonic() >= first);
    }

    #[test]
    fn manual_time_moves_only_when_told() {
        let clock = ManualClock::new(CommitTs(100));
        let same = clock.clone();
        clock.advance(Duration::from_micros(5));
        assert_eq!((same.now(), same.monotonic()), (CommitTs(105), Duration::from_micros(5)));
        clock.set_wall(CommitTs(7));
        assert_eq!((same.now(), same.monotonic()), (CommitTs(7), Duration::from_micros(5)));
    }
}
