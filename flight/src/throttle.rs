//! Slowing down whoever guesses passwords.
//!
//! Failures are counted by user *and* peer, so that guessing from one place never keeps the user out of another. After a few
//! free ones, each failure doubles the time until the next attempt of that user from that peer is checked. An attempt that
//! comes earlier waits for its turn, one after the other; when the queue is longer than [`WAIT_MAX`], it is refused unchecked.
//! A right password forgets the failures.
//!
//! # Invariants
//! - THROTTLE-1 attempts of one user from one peer are checked at a bounded rate, however many connections they come over.
//!   Test: `guesses_wait_their_turn`.
//! - THROTTLE-2 other peers, other users, and a right password after its wait are let through. Test: `others_do_not_wait`.
//! - THROTTLE-3 the memory is bounded. Test: `the_memory_is_bounded`.
//!
//! # Deliberately absent
//! Bearer tokens are not throttled: they have too many bits to be guessed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::{Error, Result};

/// Failures without a delay: people mistype.
const FREE: u32 = 3;
/// The delay after the first failure that costs one; it doubles from there.
const DELAY_FIRST: Duration = Duration::from_millis(250);
/// The longest delay between two checks.
const DELAY_MAX: Duration = Duration::from_secs(8);
/// Who would have to wait longer is refused.
const WAIT_MAX: Duration = Duration::from_secs(16);
/// Failures are forgotten after so long without another.
const MEMORY: Duration = Duration::from_secs(900);
/// Users and peers remembered at a time.
const REMEMBERED_MAX: usize = 10_000;

/// Where guesses come from: one host, or for IPv6 one network, which one owner usually has all of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Host(IpAddr),
    Local,
}

impl Place {
    fn of(peer: Option<IpAddr>) -> Place {
        match peer.map(|ip| ip.to_canonical()) {
            Some(IpAddr::V6(ip)) => {
                let [a, b, c, d, ..] = ip.segments();
                Place::Host(IpAddr::from([a, b, c, d, 0, 0, 0, 0]))
            }
            Some(v4) => Place::Host(v4),
            None => Place::Local,
        }
    }
}

#[derive(Debug)]
struct Failures {
    count: u32,
    /// When the next attempt may be checked.
    next: Instant,
    last: Instant,
}

/// A stranger chooses the name; users whose names differ only later wait together.
const USER_CHARS_MAX: usize = 128;

/// The failures that are remembered. A peer is an address, or none for a local socket.
#[derive(Debug, Default)]
pub struct Throttle {
    failures: Mutex<HashMap<(Place, String), Failures>>,
}

fn key(user: &str, peer: Option<IpAddr>) -> (Place, String) {
    (Place::of(peer), user.chars().take(USER_CHARS_MAX).collect())
}

fn delay(count: u32) -> Duration {
    match count.checked_sub(FREE) {
        None => Duration::ZERO,
        Some(doublings) => DELAY_FIRST.saturating_mul(1 << doublings.min(16)).min(DELAY_MAX),
    }
}

impl Throttle {
    /// Waits until an attempt may be checked; says whether it had to wait. [`Error::Throttled`] when the wait is too long.
    pub async fn admit(&self, user: &str, peer: Option<IpAddr>) -> Result<bool> {
        let turn = {
            let mut all = self.failures.lock();
            if all.is_empty() {
                return Ok(false);
            }
            let Some(failures) = all.get_mut(&key(user, peer)) else {
                return Ok(false);
            };
            let now = Instant::now();
            let turn = failures.next.max(now);
            if turn - now > WAIT_MAX {
                return Err(Error::Throttled((turn - now).as_secs()));
            }
            // Whoever comes next queues up behind.
            failures.next = turn + delay(failures.count);
            (turn > now).then_some(turn)
        };
        match turn {
            Some(turn) => {
                tokio::time::sleep_until(turn).await;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Remembers a failure; says how many there are.
    pub fn failed(&self, user: &str, peer: Option<IpAddr>) -> u32 {
        let now = Instant::now();
        let mut all = self.failures.lock();
        if all.len() >= REMEMBERED_MAX {
            forget_oldest(&mut all, now);
        }
        let failures = all.entry(key(user, peer)).or_insert(Failures { count: 0, next: now, last: now });
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
        failures.next = failures.next.max(now + delay(failures.count));
        failures.count
    }

    /// Forgets failures: the password was right.
    pub fn succeeded(&self, user: &str, peer: Option<IpAddr>) {
        let mut all = self.failures.lock();
        if !all.is_empty() {
            all.remove(&key(user, peer));
        }
    }

    /// Forgets what is long ago.
    pub fn expire(&self) {
        let now = Instant::now();
        self.failures.lock().retain(|_, failures| now.duration_since(failures.last) < MEMORY);
    }
}

/// Makes room: what is long ago goes, or else a tenth, the oldest first.
fn forget_oldest(all: &mut HashMap<(Place, String), Failures>, now: Instant) {
    all.retain(|_, failures| now.duration_since(failures.last) < MEMORY);
    if all.len() < REMEMBERED_MAX {
        return;
    }
    let mut ages: Vec<Instant> = all.values().map(|failures| failures.last).collect();
    let (_, border, _) = ages.select_nth_unstable(REMEMBERED_MAX / 10);
    let border = *border;
    all.retain(|_, failures| failures.last > border);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_wait_their_turn() {
        let throttle = Throttle::default();
        let here = peer("10.0.0.1");
        for count in 1..=3 {
            assert!(!throttle.admit("admin", here).await.unwrap());
            assert_eq!(throttle.failed("admin", here), count);
        }
        let mut waits = Vec::new();
        for _ in 0..8 {
            let before = Instant::now();
            assert!(throttle.admit("admin", here).await.unwrap());
            throttle.failed("admin", here);
            waits.push(before.elapsed().as_millis());
        }
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
        // Many at once do not help: two fit into the longest wait, the others are refused.
        let attempts = (0..50).map(|_| throttle.admit("admin", here));
        let outcomes = futures::future::join_all(attempts).await;
        let refused = outcomes.iter().filter(|outcome| matches!(outcome, Err(Error::Throttled(_)))).count();
        assert!((47..=49).contains(&refused), "{refused} refused");
        // A right password, after its wait, ends it.
        tokio::time::sleep(Duration::from_secs(20)).await;
        throttle.admit("admin", here).await.unwrap();
        throttle.succeeded("admin", here);
        assert!(!throttle.admit("admin", here).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn others_do_not_wait() {
        let throttle = Throttle::default();
        for _ in 0..20 {
            throttle.failed("admin", peer("10.0.0.1"));
            throttle.failed("admin", peer("2001:db8::1"));
            throttle.failed("admin", None);
        }
        assert!(!throttle.admit("admin", peer("10.0.0.2")).await.unwrap(), "another peer");
        assert!(!throttle.admit("alice", peer("10.0.0.1")).await.unwrap(), "another user");
        assert!(!throttle.admit("admin", peer("2001:db8:0:1::1")).await.unwrap(), "another network");
        let (network, host) = tokio::join!(
            throttle.admit("admin", peer("2001:db8::2")),
            throttle.admit("admin", peer("::ffff:10.0.0.1"))
        );
        assert!(network.unwrap() && host.unwrap(), "the same network, the same host");
        tokio::time::sleep(MEMORY).await;
        throttle.expire();
        assert!(throttle.failures.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_is_bounded() {
        let throttle = Throttle::default();
        throttle.failed(&"é".repeat(100_000), None);
        assert!(throttle.failures.lock().keys().all(|(_, user)| user.len() <= 2 * USER_CHARS_MAX));
        for number in 0..REMEMBERED_MAX + 500 {
            throttle.failed(&format!("user{number}"), peer("10.0.0.1"));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let all = throttle.failures.lock();
        assert!(all.len() <= REMEMBERED_MAX);
        let newest = format!("user{}", REMEMBERED_MAX + 499);
        assert!(all.contains_key(&key(&newest, peer("10.0.0.1"))));
    }
}
