//! An ordered map from keys to chains: a tree of pages.
//!
//! ```text
//! pages   "" → page, k:31… → page, k:77… → page      by the least key that belongs in the page
//! page    heads   [ h(k:31…), h(k:40…), … ]          the first sixteen bytes of each key as a number
//!         entries [ (k:31…, chain), (k:40…, chain), … ]
//! ```
//! Looking a key up compares numbers that lie side by side. The key's own bytes, which are slices of log entries and lie anywhere in
//! memory, are touched only when two keys share their first sixteen. A page is also what truncation cleans at once.
//!
//! # Invariants
//! - MAP-1 the keys of a page are at or above its bound and below the next page's bound; the first page's bound is the empty key
//!   (`tests::agrees_with_a_sorted_list` checks it after every step).
//! - MAP-2 no page holds more than [`PAGE_KEYS`], and none but the first is empty (the same).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use base::{CommitTs, RowKey};
use bytes::Bytes;

use crate::Version;
use crate::chain::{Chain, Trimmed};

/// Keys in a page. Tests use few, so that small tables have pages too; measurements do not.
pub(crate) const PAGE_KEYS: usize = if cfg!(all(test, debug_assertions)) { 4 } else { 64 };
/// Neighbours are put together when they do not hold more keys than this, so that the next insertion does not split them again.
const MERGE_KEYS: usize = PAGE_KEYS / 2;
/// Pages that are cleaned under one lock.
const TRIM_PAGES: usize = if cfg!(all(test, debug_assertions)) { 3 } else { 16 };

const HEAD_BYTES: usize = size_of::<u128>();

/// What a key takes beside its bytes and its row's bytes. Pages are filled to two thirds on average.
pub(crate) const ENTRY_BYTES: usize = (size_of::<Entry>() + HEAD_BYTES) * 3 / 2;

#[derive(Debug)]
struct Entry {
    key: RowKey,
    chain: Chain,
}

#[derive(Debug, Default)]
struct Page {
    heads: Vec<u128>,
    entries: Vec<Entry>,
}

/// A key with its head, ordered as the key is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Headed {
    head: u128,
    key: RowKey,
}

impl Headed {
    fn new(key: &RowKey) -> Self {
        Self { head: head(key.as_bytes()), key: key.clone() }
    }

    /// A copy that shares no memory, to be kept for long.
    fn copied(&self) -> Self {
        Self { head: self.head, key: RowKey(Bytes::copy_from_slice(self.key.as_bytes())) }
    }
}

impl Ord for Headed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.head.cmp(&other.head).then_with(|| compare_rest(&self.key, &other.key))
    }
}

impl PartialOrd for Headed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The first bytes of a key as a number that compares as they do.
fn head(key: &[u8]) -> u128 {
    let mut head = [0; HEAD_BYTES];
    match key.first_chunk::<HEAD_BYTES>() {
        Some(first) => head = *first,
        None => head[..key.len()].copy_from_slice(key),
    }
    u128::from_be_bytes(head)
}

/// Compares keys whose heads are equal.
fn compare_rest(left: &RowKey, right: &RowKey) -> Ordering {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() <= HEAD_BYTES && right.len() <= HEAD_BYTES {
        // They differ in zeros at the end at most.
        return left.len().cmp(&right.len());
    }
    left.cmp(right)
}

/// What [`ChainMap::trim`] took out, to be freed outside any lock.
#[derive(Debug, Default)]
pub(crate) struct Trim {
    /// The versions of keys that stay.
    pub(crate) versions: Vec<Version>,
    /// The keys that go, with what is left of their versions.
    pub(crate) chains: Vec<(RowKey, Chain)>,
    /// Keys that were copied, so that they do not keep the batch they came in.
    copied: Vec<RowKey>,
    /// The oldest version of the keys that stay.
    pub(crate) oldest: Option<CommitTs>,
    /// Where to go on; `None` at the end.
    pub(crate) next: Option<RowKey>,
}

impl Page {
    /// Where a key is, or where it would go.
    fn find(&self, wanted: &Headed) -> Result<usize, usize> {
        let mut low = self.heads.partition_point(|&head| head < wanted.head);
        let mut high = low + self.heads[low..].partition_point(|&head| head == wanted.head);
        while low < high {
            let middle = low + (high - low) / 2;
            match compare_rest(&self.entries[middle].key, &wanted.key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    fn insert(&mut self, at: usize, head: u128, entry: Entry) {
        self.heads.insert(at, head);
        self.entries.insert(at, entry);
    }

    fn bound(&self) -> Headed {
        Headed { head: self.heads[0], key: self.entries[0].key.clone() }.copied()
    }

    fn split_off(&mut self, at: usize) -> Page {
        Page { heads: self.heads.split_off(at), entries: self.entries.split_off(at) }
    }

    fn append(&mut self, next: Page) {
        self.heads.extend(next.heads);
        self.entries.extend(next.entries);
    }

    /// Takes out the versions of `limit` or before, and the keys that have no others.
    fn trim(&mut self, limit: CommitTs, trim: &mut Trim) {
        let mut goes = [false; PAGE_KEYS];
        for (entry, goes) in self.entries.iter_mut().zip(&mut goes) {
            match entry.chain.trim(limit) {
                Trimmed::All => {
                    *goes = true;
                    continue;
                }
                Trimmed::Nothing => {}
                Trimmed::Some(versions) => {
                    trim.versions.extend(versions);
                    if !entry.chain.owns_key {
                        // The key is a slice of the batch its first version came in, and that version goes.
                        let own = RowKey(Bytes::copy_from_slice(entry.key.as_bytes()));
                        trim.copied.push(std::mem::replace(&mut entry.key, own));
                        entry.chain.owns_key = true;
                    }
                }
            }
            let oldest = entry.chain.oldest_ts();
            trim.oldest = Some(trim.oldest.map_or(oldest, |other| other.min(oldest)));
        }
        let kept = self.entries.len() - goes.iter().filter(|goes| **goes).count();
        if kept == self.entries.len() {
            return;
        }
        let old = std::mem::replace(self, Page { heads: Vec::with_capacity(kept), entries: Vec::with_capacity(kept) });
        for ((head, entry), goes) in old.heads.into_iter().zip(old.entries).zip(goes) {
            if goes {
                trim.chains.push((entry.key, entry.chain));
            } else {
                self.heads.push(head);
                self.entries.push(entry);
            }
        }
    }
}

/// The map.
#[derive(Debug, Default)]
pub(crate) struct ChainMap {
    pages: BTreeMap<Headed, Page>,
}

impl ChainMap {
    fn page(&self, wanted: &Headed) -> Option<&Page> {
        self.pages.range(..=wanted).next_back().map(|(_, page)| page)
    }

    pub(crate) fn get(&self, key: &RowKey) -> Option<&Chain> {
        let wanted = Headed::new(key);
        let page = self.page(&wanted)?;
        let at = page.find(&wanted).ok()?;
        Some(&page.entries[at].chain)
    }

    /// The chain of a key if there is one, and the version back; else the version becomes its first.
    pub(crate) fn get_or_insert(&mut self, key: RowKey, version: Version) -> Option<(&mut Chain, Version)> {
        let wanted = Headed::new(&key);
        self.make_room(&wanted);
        let (_, page) = self.pages.range_mut(..=&wanted).next_back()?;
        match page.find(&wanted) {
            Ok(at) => Some((&mut page.entries[at].chain, version)),
            Err(at) => {
                page.insert(at, wanted.head, Entry { key, chain: Chain::new(version) });
                None
            }
        }
    }

    /// Makes the page where a key is or would go, and splits it if it is full.
    fn make_room(&mut self, wanted: &Headed) {
        let Some((_, page)) = self.pages.range_mut(..=wanted).next_back() else {
            self.pages.insert(Headed::new(&RowKey::default()), Page::default());
            return;
        };
        if page.entries.len() < PAGE_KEYS {
            return;
        }
        let Err(at) = page.find(wanted) else { return };
        if at == PAGE_KEYS {
            // Keys that come in order leave full pages behind.
            self.pages.insert(wanted.copied(), Page::default());
        } else {
            let upper = page.split_off(PAGE_KEYS / 2);
            self.pages.insert(upper.bound(), upper);
        }
    }

    /// Visits keys in order until `visit` says that it has enough; gives whether it did.
    pub(crate) fn visit(
        &self,
        start: Bound<&RowKey>,
        end: Bound<&RowKey>,
        mut visit: impl FnMut(&RowKey, &Chain) -> bool,
    ) -> bool {
        let (pages, mut at) = match start {
            Bound::Unbounded => (self.pages.range::<Headed, _>(..), 0),
            Bound::Included(key) | Bound::Excluded(key) => {
                let wanted = Headed::new(key);
                let Some((bound, page)) = self.pages.range(..=&wanted).next_back() else {
                    return false;
                };
                let at = match page.find(&wanted) {
                    Ok(at) => at + usize::from(matches!(start, Bound::Excluded(_))),
                    Err(at) => at,
                };
                (self.pages.range(bound..), at)
            }
        };
        let end = match end {
            Bound::Unbounded => None,
            Bound::Included(key) => Some((Headed::new(key), Ordering::Greater)),
            Bound::Excluded(key) => Some((Headed::new(key), Ordering::Equal)),
        };
        for (_, page) in pages {
            for (head, entry) in page.heads.iter().zip(&page.entries).skip(at) {
                if let Some((end, beyond)) = &end
                    && head.cmp(&end.head).then_with(|| compare_rest(&entry.key, &end.key)) >= *beyond
                {
                    return false;
                }
                if visit(&entry.key, &entry.chain) {
                    return true;
                }
            }
            at = 0;
        }
        false
    }

    /// Takes out the versions of `limit` or before in the next pages, `from` on.
    pub(crate) fn trim(&mut self, from: Option<&RowKey>, limit: CommitTs) -> Trim {
        let mut trim = Trim::default();
        let start = from.map_or(Bound::Unbounded, |key| Bound::Included(Headed::new(key)));
        // Pages that are empty now, or that fit into the one before: with it, how many keys it has.
        let mut gone = Vec::new();
        let mut last: Option<(&Headed, usize)> = None;
        let mut pages = self.pages.range_mut((start, Bound::Unbounded));
        for (bound, page) in pages.by_ref().take(TRIM_PAGES) {
            page.trim(limit, &mut trim);
            let keys = page.entries.len();
            match &mut last {
                Some((into, total)) if *total + keys <= MERGE_KEYS => {
                    *total += keys;
                    gone.push((bound.clone(), into.clone()));
                }
                _ => last = Some((bound, keys)),
            }
        }
        trim.next = pages.next().map(|(bound, _)| bound.key.clone());
        for (bound, into) in gone {
            if let Some(page) = self.pages.remove(&bound)
                && let Some(into) = self.pages.get_mut(&into)
            {
                into.append(page);
            }
        }
        trim
    }

    /// Panics if an invariant is broken.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let mut bounds = self.pages.keys().skip(1);
        for (number, (bound, page)) in self.pages.iter().enumerate() {
            assert_eq!(bound.head, head(bound.key.as_bytes()));
            assert!(number > 0 || bound.key.as_bytes().is_empty());
            assert!(page.entries.len() <= PAGE_KEYS && page.heads.len() == page.entries.len());
            let keys: Vec<&RowKey> = page.entries.iter().map(|entry| &entry.key).collect();
            assert!(keys.is_sorted_by(|left, right| left < right));
            assert!(keys.iter().zip(&page.heads).all(|(key, other)| head(key.as_bytes()) == *other));
            assert!(keys.iter().all(|key| **key >= bound.key));
            let next = bounds.next();
            assert!(next.is_none_or(|next| keys.iter().all(|key| **key < next.key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Short and long keys, many with common beginnings, many that differ in zeros only.
    fn key() -> impl Strategy<Value = RowKey> {
        let part =
            prop_oneof![Just(vec![]), Just(vec![0; 15]), Just(vec![0; 16]), Just(vec![1; 16]), Just(vec![1; 17])];
        (part, prop::collection::vec(0..3u8, 0..4)).prop_map(|(mut start, rest)| {
            start.extend(rest);
            RowKey(Bytes::from(start))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn agrees_with_a_sorted_list(
            steps in prop::collection::vec((prop::collection::vec(key(), 1..12), 0..8i64), 1..12),
            bounds in (key(), key()),
        ) {
            let mut map = ChainMap::default();
            let mut model = BTreeMap::<RowKey, Vec<i64>>::new();
            let mut now = 0;
            for (keys, back) in steps {
                for key in keys {
                    now += 1;
                    model.entry(key.clone()).or_default().push(now);
                    if let Some((chain, version)) = map.get_or_insert(key, Version::delete(CommitTs(now))) {
                        chain.add(version);
                    }
                    map.check();
                }
                let limit = now - back;
                let mut from = None;
                let mut gone = 0;
                let mut oldest = None;
                loop {
                    let trim = map.trim(from.as_ref(), CommitTs(limit));
                    map.check();
                    gone += trim.versions.len() + trim.chains.iter().map(|(_, chain)| chain.versions().count()).sum::<usize>();
                    oldest = [oldest, trim.oldest].into_iter().flatten().min();
                    match trim.next {
                        Some(next) => from = Some(next),
                        None => break,
                    }
                }
                let before: usize = model.values().map(Vec::len).sum();
                model.values_mut().for_each(|times| times.retain(|&time| time > limit));
                model.retain(|_, times| !times.is_empty());
                prop_assert_eq!(gone, before - model.values().map(Vec::len).sum::<usize>());
                prop_assert_eq!(oldest.map(|ts| ts.0), model.values().flatten().copied().min());

                let (low, high) = if bounds.0 <= bounds.1 { &bounds } else { &(bounds.1.clone(), bounds.0.clone()) };
                for range in [
                    (Bound::Unbounded, Bound::Unbounded),
                    (Bound::Included(low), Bound::Included(high)),
                    (Bound::Excluded(low), Bound::Included(high)),
                    (Bound::Included(low), Bound::Excluded(high)),
                    (Bound::Excluded(low), Bound::Unbounded),
                    (Bound::Unbounded, Bound::Excluded(high)),
                ] {
                    let mut found = vec![];
                    map.visit(range.0, range.1, |key, chain| {
                        found.push((key.clone(), chain.versions().map(|version| version.ts.0).collect()));
                        false
                    });
                    prop_assert_eq!(found, model.range::<RowKey, _>(range).map(|(key, times)| (key.clone(), times.clone())).collect::<Vec<_>>());
                }
                for key in [low, high] {
                    let newest = map.get(key).map(|chain| chain.newest().ts.0);
                    prop_assert_eq!(newest, model.get(key).and_then(|times| times.last().copied()));
                }
            }
        }
    }
}
