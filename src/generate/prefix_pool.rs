//! A pool of ended conversations, whose keys and values a later one may continue.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use super::Source;
use crate::nn::{KVCache, Row};

/// The bytes in all pools of the process.
static POOLED_BYTES: AtomicU64 = AtomicU64::new(0);

/// Returns the bytes of pooled keys and values, for all models in this process.
pub fn prefix_pool_bytes() -> u64 {
    POOLED_BYTES.load(Ordering::Relaxed)
}

/// A row and the feature in it. Equal rows after equal rows have equal keys and values.
pub type CachedRow = (Row, Source);

/// The rows that a conversation has read, with their keys and values.
pub struct Prefix {
    /// Only conversations of the same scope may continue it.
    pub scope: u64,
    /// The rows.
    pub rows: Vec<CachedRow>,
    /// Their keys and values, one cache per layer.
    pub cache: Vec<KVCache>,
}

impl Prefix {
    fn bytes(&self) -> u64 {
        let arrays = self.cache.iter().flat_map(KVCache::arrays);
        arrays.map(|array| array.nbytes() as u64).sum()
    }
}

/// Keeps the conversations that ended last, up to a number of bytes.
pub struct PrefixPool {
    budget: u64,
    bytes: u64,
    /// Least recently used first. A conversation takes megabytes, so there are never many entries
    /// to search.
    entries: VecDeque<Prefix>,
}

impl PrefixPool {
    /// Creates an empty pool of at most `budget` bytes.
    pub fn new(budget: u64) -> PrefixPool {
        PrefixPool {
            budget,
            bytes: 0,
            entries: VecDeque::new(),
        }
    }

    /// Adds a conversation; removes those that it continues, and the least recently used ones.
    pub fn insert(&mut self, prefix: Prefix) {
        let bytes = prefix.bytes();
        if prefix.rows.is_empty() || bytes > self.budget {
            return;
        }
        let kin = |other: &Prefix| {
            (other.scope == prefix.scope).then(|| common(&other.rows, &prefix.rows))
        };
        if let Some(at) = self
            .entries
            .iter()
            .position(|other| kin(other) == Some(prefix.rows.len()))
        {
            // A longer conversation starts with the same rows.
            self.touch(at);
            return;
        }
        self.entries
            .retain(|other| kin(other) != Some(other.rows.len()));
        self.count();
        while self.bytes + bytes > self.budget && self.evict() {}
        self.entries.push_back(prefix);
        self.count();
    }

    /// Returns the number of rows that the best conversation of this scope has in common with
    /// `rows`, at their start.
    pub fn longest(&self, scope: u64, rows: &[CachedRow]) -> usize {
        self.best(scope, rows).map_or(0, |(_, length)| length)
    }

    /// Returns the best conversation for `rows`: moves it out if `rows` continue all of it,
    /// otherwise copies it.
    pub fn take(&mut self, scope: u64, rows: &[CachedRow]) -> Option<Prefix> {
        let (at, length) = self.best(scope, rows)?;
        if self.entries[at].rows.len() == length {
            let prefix = self.entries.remove(at);
            self.count();
            return prefix;
        }
        let prefix = self.touch(at)?;
        Some(Prefix {
            scope,
            rows: prefix.rows[..length].to_vec(),
            cache: prefix.cache.clone(),
        })
    }

    /// Removes the least recently used conversation; returns whether there was one.
    pub fn evict(&mut self) -> bool {
        let evicted = self.entries.pop_front().is_some();
        self.count();
        evicted
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.count();
    }

    fn best(&self, scope: u64, rows: &[CachedRow]) -> Option<(usize, usize)> {
        let entries = self.entries.iter().enumerate();
        entries
            .filter(|(_, prefix)| prefix.scope == scope)
            .map(|(at, prefix)| (at, common(&prefix.rows, rows)))
            .max_by_key(|(_, length)| *length)
            .filter(|(_, length)| *length > 0)
    }

    /// Marks a conversation as the most recently used one.
    fn touch(&mut self, at: usize) -> Option<&Prefix> {
        let prefix = self.entries.remove(at)?;
        self.entries.push_back(prefix);
        self.entries.back()
    }

    fn count(&mut self) {
        let bytes = self.entries.iter().map(Prefix::bytes).sum::<u64>();
        POOLED_BYTES.fetch_add(bytes.wrapping_sub(self.bytes), Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for PrefixPool {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Returns the number of equal rows at the start.
pub fn common(rows: &[CachedRow], others: &[CachedRow]) -> usize {
    let pairs = rows.iter().zip(others);
    pairs.take_while(|(row, other)| row == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::ops::floats, nn::KeyValueCache};

    /// The bytes of the keys and values of a test conversation: one block of positions.
    const BLOCK: u64 = 256 * 2 * 4 * 2;

    fn conversation(scope: u64, ids: &[u32]) -> Prefix {
        let rows = ids.iter().enumerate();
        let rows = rows
            .map(|(i, id)| (Row::causal(*id, [i as i32; 3], i), None))
            .collect();
        let mut cache = KVCache::new();
        let values: Vec<f32> = ids.iter().flat_map(|id| [*id as f32; 2]).collect();
        let block = floats(&values, &[1, 1, ids.len() as i32, 2]);
        cache.update_and_fetch(block.clone(), block).unwrap();
        Prefix {
            scope,
            rows,
            cache: vec![cache],
        }
    }

    fn rows(ids: &[u32]) -> Vec<CachedRow> {
        conversation(0, ids).rows
    }

    #[test]
    fn a_conversation_is_continued() {
        let mut pool = PrefixPool::new(4 * BLOCK);
        pool.insert(conversation(0, &[1, 2, 3]));
        assert_eq!(pool.longest(0, &rows(&[1, 2, 3, 4])), 3);
        assert_eq!(pool.longest(1, &rows(&[1, 2, 3, 4])), 0);
        assert_eq!(pool.longest(0, &rows(&[2, 2, 3])), 0);
        // A part of it is copied, the whole is moved.
        assert_eq!(pool.take(0, &rows(&[1, 2, 4])).unwrap().rows.len(), 2);
        assert_eq!(pool.take(0, &rows(&[1, 2, 3, 4])).unwrap().rows.len(), 3);
        assert!(pool.take(0, &rows(&[1, 2, 3])).is_none());
        assert_eq!(pool.bytes, 0);
    }

    #[test]
    fn a_conversation_is_kept_once() {
        let mut pool = PrefixPool::new(4 * BLOCK);
        pool.insert(conversation(0, &[1, 2, 3]));
        pool.insert(conversation(0, &[1, 2, 3, 4]));
        pool.insert(conversation(0, &[1, 2]));
        assert_eq!(pool.entries.len(), 1);
        pool.insert(conversation(1, &[1, 2]));
        pool.insert(conversation(0, &[1, 2, 5]));
        assert_eq!(pool.entries.len(), 3);
        assert_eq!(pool.bytes, 3 * BLOCK);
    }

    #[test]
    fn the_least_recently_used_one_goes_first() {
        let mut pool = PrefixPool::new(2 * BLOCK);
        pool.insert(conversation(0, &[1, 2]));
        pool.insert(conversation(0, &[3, 4]));
        assert!(pool.take(0, &rows(&[1, 9])).is_some());
        pool.insert(conversation(0, &[5, 6]));
        assert_eq!(pool.longest(0, &rows(&[3, 4])), 0);
        assert_eq!(pool.longest(0, &rows(&[1, 2])), 2);
        assert!(pool.evict() && pool.evict() && !pool.evict());
        PrefixPool::new(BLOCK - 1).insert(conversation(0, &[1]));
        let mut none = PrefixPool::new(0);
        none.insert(conversation(0, &[1]));
        assert!(none.entries.is_empty());
    }
}
