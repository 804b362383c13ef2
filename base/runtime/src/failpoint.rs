//! Named places at which a test ends the process.
//!
//! `LATTICE_FAILPOINT="journal.after_write:3"` kills the process at the third hit of that place, without running
//! destructors or flushing anything, as `kill -9` would. The places are compiled into every build: unarmed, one costs a
//! relaxed load of one byte.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Not looked at the environment yet.
const UNKNOWN: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
static ARMED: OnceLock<Armed> = OnceLock::new();

#[derive(Debug)]
struct Armed {
    name: String,
    hits_left: AtomicU64,
}

/// Marks a place by name: `runtime::failpoint!("flush.before_publish")`.
#[macro_export]
macro_rules! failpoint {
    ($name:expr) => {
        if $crate::failpoints_armed() {
            $crate::failpoint_hit($name);
        }
    };
}

/// Whether any failpoint is armed in this process.
#[inline]
pub fn failpoints_armed() -> bool {
    match STATE.load(Ordering::Relaxed) {
        OFF => false,
        ON => true,
        _ => read_environment(),
    }
}

/// Counts one hit of `name`; the process ends here when it is the awaited one. Use [`failpoint!`](crate::failpoint!).
pub fn failpoint_hit(name: &str) {
    if failpoints_armed()
        && let Some(armed) = ARMED.get()
        && armed.name == name
        && armed.hits_left.fetch_sub(1, Ordering::AcqRel) == 1
    {
        exit_at_once();
    }
}

/// Arms the failpoint of this process, as the environment variable does: the `count`-th hit ends it. One failpoint can
/// be armed in the life of a process; returns whether this call did it.
pub fn arm_failpoint(name: &str, count: u64) -> bool {
    let armed = Armed { name: name.to_owned(), hits_left: AtomicU64::new(count.max(1)) };
    let first = ARMED.set(armed).is_ok();
    STATE.store(ON, Ordering::Relaxed);
    first
}

#[cold]
fn read_environment() -> bool {
    let Some((name, count)) = std::env::var("LATTICE_FAILPOINT").ok().as_deref().and_then(parse) else {
        // Another thread may have armed one meanwhile; only the unknown state turns into off.
        let _ = STATE.compare_exchange(UNKNOWN, OFF, Ordering::Relaxed, Ordering::Relaxed);
        return STATE.load(Ordering::Relaxed) == ON;
    };
    arm_failpoint(&name, count);
    true
}

/// Reads `name` or `name:count`.
fn parse(text: &str) -> Option<(String, u64)> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    match text.rsplit_once(':') {
        Some((name, count)) => Some((name.to_owned(), count.parse().ok()?)),
        None => Some((text.to_owned(), 1)),
    }
}

/// Ends the process with status 137, the status a shell shows for a killed one.
#[allow(unsafe_code, reason = "the standard library has no way to exit without running exit handlers")]
fn exit_at_once() -> ! {
    // SAFETY: `_exit` takes an integer, touches no memory of ours and does not return.
    unsafe { libc::_exit(137) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_counts_are_read() {
        assert_eq!(parse("flush.before_publish"), Some(("flush.before_publish".to_owned(), 1)));
        assert_eq!(parse(" journal.after_write:3 "), Some(("journal.after_write".to_owned(), 3)));
        assert_eq!(parse(""), None);
        assert_eq!(parse("name:many"), None);
    }

    /// The child of the next test.
    #[test]
    fn child_hits_a_failpoint() {
        for _ in 0..3 {
            crate::failpoint!("runtime.other");
            crate::failpoint!("runtime.test");
        }
        // Without the variable (an ordinary test run) nothing happens.
        assert!(std::env::var("LATTICE_FAILPOINT").is_err(), "the failpoint did not end the process");
    }

    #[test]
    fn an_armed_failpoint_kills_at_the_counted_hit() {
        let run = |value: &str| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "failpoint::tests::child_hits_a_failpoint"])
                .env("LATTICE_FAILPOINT", value)
                .output()
                .unwrap()
                .status
                .code()
        };
        assert_eq!(run("runtime.test"), Some(137));
        assert_eq!(run("runtime.test:3"), Some(137));
        // The fourth hit never comes: the child lives to fail its assertion.
        assert_eq!(run("runtime.test:4"), Some(101));
    }
}
