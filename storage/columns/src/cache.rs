//! A bounded cache: entries carry a weight, and the total never exceeds a budget.
//!
//! Eviction is second chance ("clock"): a hit marks an entry, and the hand spares marked entries once. Scans that touch
//! each entry a single time therefore do not push out what look-ups return to.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;

use parking_lot::Mutex;

struct Entry<V> {
    value: V,
    weight: usize,
    marked: bool,
    /// Tells a key that was inserted again from its stale place in the queue.
    turn: u64,
}

struct State<K, V> {
    entries: HashMap<K, Entry<V>>,
    queue: VecDeque<(K, u64)>,
    weight: usize,
    turn: u64,
}

/// A cache of cheap-to-clone values.
pub(crate) struct Cache<K, V> {
    state: Mutex<State<K, V>>,
    budget: usize,
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(f, "Cache {{ entries: {}, weight: {}, budget: {} }}", state.entries.len(), state.weight, self.budget)
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    pub(crate) fn new(budget: usize) -> Self {
        let state = State { entries: HashMap::new(), queue: VecDeque::new(), weight: 0, turn: 0 };
        Self { state: Mutex::new(state), budget }
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let mut state = self.state.lock();
        let entry = state.entries.get_mut(key)?;
        entry.marked = true;
        Some(entry.value.clone())
    }

    /// Adds or replaces an entry. One that is heavier than the whole budget is not kept.
    pub(crate) fn insert(&self, key: K, value: V, weight: usize) {
        let mut evicted = Vec::new();
        {
            let mut state = self.state.lock();
            if let Some(old) = state.entries.remove(&key) {
                state.weight -= old.weight;
                evicted.push(old.value);
            }
            if weight > self.budget {
                return;
            }
            state.turn += 1;
            let turn = state.turn;
            state.weight += weight;
            state.queue.push_back((key.clone(), turn));
            state.entries.insert(key, Entry { value, weight, marked: false, turn });
            while state.weight > self.budget {
                let Some((key, turn)) = state.queue.pop_front() else { break };
                let Some(entry) = state.entries.get_mut(&key) else { continue };
                if entry.turn != turn {
                    continue;
                }
                if entry.marked {
                    entry.marked = false;
                    state.queue.push_back((key, turn));
                } else if let Some(entry) = state.entries.remove(&key) {
                    state.weight -= entry.weight;
                    evicted.push(entry.value);
                }
            }
            // Removed and replaced keys leave stale places behind; more of them than entries is too many.
            if state.queue.len() > 2 * state.entries.len() + 16 {
                let State { entries, queue, .. } = &mut *state;
                queue.retain(|(key, turn)| entries.get(key).is_some_and(|entry| entry.turn == *turn));
            }
        }
        // Values are dropped outside the lock: freeing a large one takes a while.
        drop(evicted);
    }

    pub(crate) fn remove(&self, key: &K) {
        let mut state = self.state.lock();
        let removed = state.entries.remove(key);
        if let Some(entry) = &removed {
            state.weight -= entry.weight;
        }
        drop(state);
        drop(removed);
    }

    /// Removes every entry whose key passes the test.
    pub(crate) fn remove_if(&self, test: impl Fn(&K) -> bool) {
        let mut state = self.state.lock();
        let keys: Vec<K> = state.entries.keys().filter(|key| test(key)).cloned().collect();
        for key in keys {
            if let Some(entry) = state.entries.remove(&key) {
                state.weight -= entry.weight;
            }
        }
    }

    #[cfg(test)]
    fn weight(&self) -> usize {
        self.state.lock().weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_holds_and_hits_survive() {
        let cache = Cache::new(100);
        cache.insert(0, "hot", 10);
        for key in 1..200 {
            assert!(cache.get(&0).is_some(), "{key}");
            cache.insert(key, "cold", 10);
            assert!(cache.weight() <= 100);
        }
        cache.insert(1000, "too heavy", 101);
        assert!(cache.get(&1000).is_none());
    }

    #[test]
    fn replacing_and_removing_keep_the_weight_right() {
        let cache = Cache::new(100);
        for round in 0..1000 {
            cache.insert(round % 3, round, 1 + round % 7);
        }
        cache.remove(&0);
        assert!(cache.get(&0).is_none());
        cache.remove_if(|key| *key == 1);
        assert!(cache.get(&1).is_none());
        cache.remove(&2);
        assert_eq!(cache.weight(), 0);
        assert!(cache.state.lock().queue.len() < 40);
    }
}
