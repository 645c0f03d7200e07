//! A pool of ended conversations, whose keys and values a later one may continue.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
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

/// Keeps the conversations that ended last, up to a number of bytes.
pub struct PrefixPool {
    budget: u64,
    bytes: u64,
    /// Least recently used first.
    entries: VecDeque<Entry>,
}

struct Entry {
    prefix: Prefix,
    bytes: u64,
    marks: Vec<u64>,
}

/// A conversation in the pool, until the pool changes.
pub struct Match {
    at: usize,
    /// The number of rows in common.
    pub length: usize,
}

/// The number of rows between two marks.
const BLOCK: usize = 32;

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
        let arrays = prefix.cache.iter().flat_map(KVCache::arrays);
        let bytes = arrays.map(|array| array.nbytes() as u64).sum();
        if prefix.rows.is_empty() || bytes > self.budget {
            return;
        }
        let marks = marks(&prefix.rows);
        let kin = |other: &Entry| {
            (other.prefix.scope == prefix.scope).then(|| other.common(&prefix.rows, &marks))
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
            .retain(|other| kin(other) != Some(other.prefix.rows.len()));
        self.count();
        while self.bytes + bytes > self.budget && self.evict() {}
        self.entries.push_back(Entry {
            prefix,
            bytes,
            marks,
        });
        self.count();
    }

    /// Returns the conversation of this scope that has the most rows in common with `rows`, at their
    /// start.
    pub fn longest(&self, scope: u64, rows: &[CachedRow]) -> Option<Match> {
        if self.entries.is_empty() {
            return None;
        }
        let marks = marks(rows);
        let entries = self.entries.iter().enumerate();
        let (at, _) = entries
            .filter(|(_, entry)| entry.prefix.scope == scope)
            .map(|(at, entry)| (at, entry.common(rows, &marks)))
            .max_by_key(|(_, length)| *length)?;
        // Every row is compared before it is reused: marks of different rows may be equal.
        let length = common(&self.entries[at].prefix.rows, rows);
        (length > 0).then_some(Match { at, length })
    }

    /// Returns the keys and values of a match: moves them out if the whole conversation matches,
    /// otherwise copies them.
    pub fn take(&mut self, Match { at, length }: Match) -> Option<Vec<KVCache>> {
        if self.entries.get(at)?.prefix.rows.len() == length {
            let entry = self.entries.remove(at)?;
            self.count();
            return Some(entry.prefix.cache);
        }
        self.touch(at);
        Some(self.entries.back()?.prefix.cache.clone())
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

    /// Marks a conversation as the most recently used one.
    fn touch(&mut self, at: usize) {
        if let Some(entry) = self.entries.remove(at) {
            self.entries.push_back(entry);
        }
    }

    fn count(&mut self) {
        let bytes = self.entries.iter().map(|entry| entry.bytes).sum::<u64>();
        POOLED_BYTES.fetch_add(bytes.wrapping_sub(self.bytes), Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Entry {
    /// Returns the number of rows in common with `rows`, which have these marks. Equal marks count
    /// as equal rows: a small model's pool has a thousand conversations with the same beginning.
    fn common(&self, rows: &[CachedRow], marks: &[u64]) -> usize {
        let pairs = self.marks.iter().zip(marks);
        let from = BLOCK * pairs.take_while(|(mark, other)| mark == other).count();
        from + common(&self.prefix.rows[from..], &rows[from..])
    }
}

/// Returns a hash of all rows up to the end of each block.
fn marks(rows: &[CachedRow]) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    let blocks = rows.chunks_exact(BLOCK);
    blocks
        .map(|block| {
            block.hash(&mut hasher);
            hasher.finish()
        })
        .collect()
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
    const BYTES: u64 = 256 * 2 * 4 * 2;

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

    /// The number of rows that the pool has for a conversation.
    fn longest(pool: &PrefixPool, scope: u64, ids: &[u32]) -> usize {
        pool.longest(scope, &rows(ids))
            .map_or(0, |found| found.length)
    }

    /// Takes the best match for a conversation; returns its length, and the positions in its cache.
    fn take(pool: &mut PrefixPool, ids: &[u32]) -> Option<(usize, usize)> {
        let found = pool.longest(0, &rows(ids))?;
        let length = found.length;
        let cache = pool.take(found).unwrap();
        Some((length, cache[0].offset() as usize))
    }

    #[test]
    fn a_conversation_is_continued() {
        let mut pool = PrefixPool::new(4 * BYTES);
        pool.insert(conversation(0, &[1, 2, 3]));
        assert_eq!(longest(&pool, 0, &[1, 2, 3, 4]), 3);
        assert_eq!(longest(&pool, 1, &[1, 2, 3, 4]), 0);
        assert_eq!(longest(&pool, 0, &[2, 2, 3]), 0);
        // A part of it is copied, the whole is moved.
        assert_eq!(take(&mut pool, &[1, 2, 4]), Some((2, 3)));
        assert_eq!(take(&mut pool, &[1, 2, 3, 4]), Some((3, 3)));
        assert_eq!(take(&mut pool, &[1, 2, 3]), None);
        assert_eq!(pool.bytes, 0);
    }

    #[test]
    fn long_conversations_are_compared_to_the_end() {
        let ids: Vec<u32> = (0..200).collect();
        for different in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 100, 199] {
            let mut pool = PrefixPool::new(8 * BYTES);
            pool.insert(conversation(0, &ids));
            let mut others = ids.clone();
            others[different] = 999;
            pool.insert(conversation(0, &others[..different + 1]));
            let mut asked = others.clone();
            asked.push(7);
            assert_eq!(longest(&pool, 0, &asked), different + 1);
            assert_eq!(longest(&pool, 0, &ids), 200);
            assert_eq!(take(&mut pool, &ids[..150]), Some((150, 200)));
        }
    }

    #[test]
    fn a_conversation_is_kept_once() {
        let mut pool = PrefixPool::new(4 * BYTES);
        pool.insert(conversation(0, &[1, 2, 3]));
        pool.insert(conversation(0, &[1, 2, 3, 4]));
        pool.insert(conversation(0, &[1, 2]));
        assert_eq!(pool.entries.len(), 1);
        pool.insert(conversation(1, &[1, 2]));
        pool.insert(conversation(0, &[1, 2, 5]));
        assert_eq!(pool.entries.len(), 3);
        assert_eq!(pool.bytes, 3 * BYTES);
    }

    #[test]
    fn the_least_recently_used_one_goes_first() {
        let mut pool = PrefixPool::new(2 * BYTES);
        pool.insert(conversation(0, &[1, 2]));
        pool.insert(conversation(0, &[3, 4]));
        assert!(take(&mut pool, &[1, 9]).is_some());
        pool.insert(conversation(0, &[5, 6]));
        assert_eq!(longest(&pool, 0, &[3, 4]), 0);
        assert_eq!(longest(&pool, 0, &[1, 2]), 2);
        assert!(pool.evict() && pool.evict() && !pool.evict());
        PrefixPool::new(BYTES - 1).insert(conversation(0, &[1]));
        let mut none = PrefixPool::new(0);
        none.insert(conversation(0, &[1]));
        assert!(none.entries.is_empty());
    }
}
