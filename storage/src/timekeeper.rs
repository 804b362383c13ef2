//! The time of commits: the wall clock, as long as it can be believed.
//!
//! A commit's timestamp is logged and stays; one that lies hours ahead makes "now" run ahead of everybody's clock for as
//! long. So wall time is compared with a clock that nobody sets: when it has moved further than the time that passed, by
//! more than a limit, it is not believed. Small steps, as time servers make them, are.
//!
//! # Invariants
//! - TIME-1 a jump beyond the limit reaches no timestamp. Tests: `tests::jumps_are_refused`, `tests::steps_and_slow_drift_are_not`.
//! - TIME-2 a clock far behind the newest commit is found before anything is committed. Test: `tests::a_clock_that_is_behind_is_refused`.
//!
//! # Failure
//! [`Error::Unavailable`]; commits go on as soon as the clock is right again. Whoever knows that the new time is the right one
//! restarts the server: what passed while it did not run cannot be compared with anything.

use std::sync::Arc;
use std::time::Duration;

use base::CommitTs;
use runtime::Clock;

use crate::{Error, Result};

/// Reads the clock for commits.
#[derive(Debug)]
pub(crate) struct Timekeeper {
    clock: Arc<dyn Clock>,
    /// The largest jump that is believed; none is refused without it.
    jump_max: Option<Duration>,
    /// Both clocks when they were last believed.
    believed: (CommitTs, Duration),
}

impl Timekeeper {
    /// Begins to watch the clock. `newest` is the newest commit that is known.
    pub(crate) fn new(clock: Arc<dyn Clock>, jump_max: Option<Duration>, newest: CommitTs) -> Result<Self> {
        let believed = (clock.now(), clock.monotonic());
        if let Some(limit) = jump_max {
            let behind = difference(newest, believed.0);
            if behind > limit {
                return Err(Error::Unavailable(format!(
                    "the system clock says {}, but the newest commit is of {newest}, {} later: set the clock right, \
                     or set storage.clock_jump above the difference",
                    believed.0,
                    shown(behind),
                )));
            }
        }
        Ok(Self { clock, jump_max, believed })
    }

    /// The time.
    pub(crate) fn now(&mut self) -> Result<CommitTs> {
        let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
        if let Some(limit) = self.jump_max {
            let passed = monotonic.saturating_sub(self.believed.1);
            let ahead = difference(now, self.believed.0).saturating_sub(passed);
            if ahead > limit {
                return Err(Error::Unavailable(format!(
                    "the system clock jumped {} ahead, to {now}: nothing is committed with such a time; set the clock right, \
                     or restart the server if the new time is right",
                    shown(ahead),
                )));
            }
        }
        self.believed = (now, monotonic);
        Ok(now)
    }
}

/// How much later one moment is than another.
fn difference(later: CommitTs, earlier: CommitTs) -> Duration {
    Duration::from_micros(u64::try_from(later.0.saturating_sub(earlier.0)).unwrap_or(0))
}

fn shown(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match minutes {
        0 => format!("{} s", time.as_secs()),
        1..120 => format!("{minutes} min"),
        120..2880 => format!("{} h", minutes / 60),
        _ => format!("{} days", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use runtime::ManualClock;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn after(clock: &ManualClock, seconds: i64) -> CommitTs {
        CommitTs(clock.now().0 + seconds * 1_000_000)
    }

    #[test]
    fn jumps_are_refused() {
        let clock = ManualClock::new(CommitTs(1_000_000_000_000_000));
        let mut keeper = Timekeeper::new(Arc::new(clock.clone()), Some(HOUR), clock.now()).unwrap();
        let right = clock.now();
        clock.set_wall(after(&clock, 3 * 3600));
        for _ in 0..3 {
            let error = keeper.now().unwrap_err().to_string();
            assert!(error.contains("jumped 3 h ahead") && error.contains("restart"), "{error}");
            clock.advance(Duration::from_secs(60));
        }
        // Set right, it is believed again.
        clock.set_wall(CommitTs(right.0 + 180_000_000));
        assert_eq!(keeper.now().unwrap(), CommitTs(right.0 + 180_000_000));
        let mut careless = Timekeeper::new(Arc::new(clock.clone()), None, clock.now()).unwrap();
        clock.set_wall(after(&clock, 1_000_000));
        assert_eq!(careless.now().unwrap(), clock.now());
    }

    #[test]
    fn steps_and_slow_drift_are_not() {
        let clock = ManualClock::new(CommitTs(1_000_000_000_000_000));
        let mut keeper = Timekeeper::new(Arc::new(clock.clone()), Some(HOUR), clock.now()).unwrap();
        for _ in 0..10 {
            clock.set_wall(after(&clock, 1800));
            keeper.now().unwrap();
            clock.advance(HOUR * 50);
            keeper.now().unwrap();
            clock.set_wall(after(&clock, -7200));
            keeper.now().unwrap();
        }
    }

    #[test]
    fn a_clock_that_is_behind_is_refused() {
        let clock = ManualClock::new(CommitTs(1_000_000_000_000_000));
        let start = |newest| Timekeeper::new(Arc::new(clock.clone()), Some(HOUR), newest);
        start(after(&clock, 3000)).unwrap();
        start(CommitTs(0)).unwrap();
        let error = start(after(&clock, 40 * 86_400)).unwrap_err().to_string();
        assert!(error.contains("40 days later") && error.contains("storage.clock_jump"), "{error}");
    }
}
