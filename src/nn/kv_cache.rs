//! Keys and values of earlier positions, one cache per layer.

use crate::{
    Error, Result,
    device::{
        Tensor,
        ops::{concat, slice, write, zeros},
    },
};

/// The cache interface of a decoder layer.
pub trait KeyValueCache {
    /// Returns the number of positions in the cache.
    fn offset(&self) -> i32;

    /// Appends `[batch, kv heads, tokens, head width]` and returns the whole content, in the order
    /// of positions.
    fn update_and_fetch(&mut self, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)>;

    /// Removes the positions from `offset` on. Does nothing if there are fewer.
    fn truncate(&mut self, offset: i32) -> Result<()>;
}

/// A cache that grows in blocks of [`KVCache::STEP`] positions and is written in place.
#[derive(Debug, Clone, Default)]
pub struct KVCache {
    /// Keys and values, `[batch, kv heads, capacity, head width]`.
    arrays: Option<(Tensor, Tensor)>,
    offset: i32,
}

impl KVCache {
    /// The number of positions that are allocated at a time.
    pub const STEP: i32 = 256;

    /// Creates an empty cache.
    pub fn new() -> KVCache {
        KVCache::default()
    }

    /// Removes the positions from `offset` on. Does nothing if there are fewer.
    pub fn truncate(&mut self, offset: i32) {
        self.offset = self.offset.min(offset.max(0));
    }

    /// Returns the arrays in the cache, for evaluation.
    pub fn arrays(&self) -> impl Iterator<Item = &Tensor> {
        self.arrays.iter().flat_map(|(keys, values)| [keys, values])
    }

    /// Reserves room for `tokens` more positions.
    fn reserve(&mut self, keys: &Tensor, values: &Tensor, tokens: i32) -> Result<()> {
        let capacity = self.arrays.as_ref().map_or(0, |(keys, _)| keys.dim(2));
        let needed = self.offset + tokens;
        if needed <= capacity {
            return Ok(());
        }
        let capacity = (needed + Self::STEP - 1) / Self::STEP * Self::STEP;
        let grow = |old: Option<&Tensor>, like: &Tensor| -> Result<Tensor> {
            let room = zeros(
                &[
                    like.dim(0),
                    like.dim(1),
                    capacity - self.offset,
                    like.dim(3),
                ],
                like.dtype(),
            )?;
            match old {
                Some(old) if self.offset > 0 => {
                    concat(&[&slice(old, 2, 0..self.offset)?, &room], 2)
                }
                _ => Ok(room),
            }
        };
        let old = self.arrays.take();
        self.arrays = Some((
            grow(old.as_ref().map(|(k, _)| k), keys)?,
            grow(old.as_ref().map(|(_, v)| v), values)?,
        ));
        Ok(())
    }
}

impl KeyValueCache for KVCache {
    fn offset(&self) -> i32 {
        self.offset
    }

    fn update_and_fetch(&mut self, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        let end = self.offset + keys.dim(2);
        self.reserve(&keys, &values, keys.dim(2))?;
        let Some((cached_keys, cached_values)) = &mut self.arrays else {
            return Err(Error::InvalidState("the KV cache has no room".into()));
        };
        write(cached_keys, self.offset..end, &keys)?;
        write(cached_values, self.offset..end, &values)?;
        self.offset = end;
        Ok((
            slice(cached_keys, 2, 0..end)?,
            slice(cached_values, 2, 0..end)?,
        ))
    }

    fn truncate(&mut self, offset: i32) -> Result<()> {
        KVCache::truncate(self, offset);
        Ok(())
    }
}

/// The simplest cache: concatenates, which copies everything at each step.
#[derive(Debug, Clone, Default)]
pub struct ConcatKeyValueCache {
    arrays: Option<(Tensor, Tensor)>,
}

impl ConcatKeyValueCache {
    /// Creates an empty cache.
    pub fn new() -> ConcatKeyValueCache {
        ConcatKeyValueCache::default()
    }
}

impl KeyValueCache for ConcatKeyValueCache {
    fn offset(&self) -> i32 {
        self.arrays.as_ref().map_or(0, |(keys, _)| keys.dim(2))
    }

    fn update_and_fetch(&mut self, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        let joined = match self.arrays.take() {
            None => (keys, values),
            Some((k, v)) => (concat(&[&k, &keys], 2)?, concat(&[&v, &values], 2)?),
        };
        self.arrays = Some(joined.clone());
        Ok(joined)
    }

    fn truncate(&mut self, offset: i32) -> Result<()> {
        let offset = offset.max(0);
        if let Some((keys, values)) = self
            .arrays
            .take()
            .filter(|(keys, _)| offset > 0 && keys.dim(2) > 0)
        {
            let end = offset.min(keys.dim(2));
            self.arrays = Some((slice(&keys, 2, 0..end)?, slice(&values, 2, 0..end)?));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(from: i32, tokens: i32) -> Tensor {
        let values: Vec<f32> = (from..from + tokens)
            .flat_map(|i| [i as f32, -i as f32])
            .collect();
        Tensor::from_slice(&values, &[1, 1, tokens, 2])
    }

    /// The two caches must have the same content, across block boundaries and after truncation.
    #[test]
    fn the_caches_agree() {
        let (mut stepped, mut joined) = (KVCache::new(), ConcatKeyValueCache::new());
        let mut at = 0;
        for tokens in [1, 200, 60, 1, 300] {
            let (k, v) = stepped
                .update_and_fetch(block(at, tokens), block(at + 1000, tokens))
                .unwrap();
            let (k2, v2) = joined
                .update_and_fetch(block(at, tokens), block(at + 1000, tokens))
                .unwrap();
            assert_eq!(
                k.to_vec_cast::<f32>().unwrap(),
                k2.to_vec_cast::<f32>().unwrap()
            );
            assert_eq!(
                v.to_vec_cast::<f32>().unwrap(),
                v2.to_vec_cast::<f32>().unwrap()
            );
            at += tokens;
            assert_eq!((stepped.offset(), joined.offset()), (at, at));
        }
    }

    #[test]
    fn truncation_forgets_the_end_only() {
        check_truncation(&mut KVCache::new());
        check_truncation(&mut ConcatKeyValueCache::new());
    }

    fn check_truncation(cache: &mut impl KeyValueCache) {
        cache
            .update_and_fetch(block(0, 300), block(0, 300))
            .unwrap();
        cache.truncate(400).unwrap();
        assert_eq!(cache.offset(), 300);
        cache.truncate(10).unwrap();
        let (keys, _) = cache.update_and_fetch(block(50, 2), block(50, 2)).unwrap();
        let keys = keys.to_vec_cast::<f32>().unwrap();
        assert_eq!(keys.len(), 24);
        assert_eq!(keys[18..], [9.0, -9.0, 50.0, -50.0, 51.0, -51.0]);
        cache.truncate(0).unwrap();
        assert_eq!(cache.offset(), 0);
    }

    /// A clone keeps its content when the original is written further.
    #[test]
    fn a_clone_is_independent() {
        let mut cache = KVCache::new();
        cache.update_and_fetch(block(0, 4), block(0, 4)).unwrap();
        let mut fork = cache.clone();
        cache
            .update_and_fetch(block(100, 1), block(100, 1))
            .unwrap();
        let (keys, _) = fork.update_and_fetch(block(7, 1), block(7, 1)).unwrap();
        assert_eq!(
            keys.to_vec_cast::<f32>().unwrap()[6..],
            [3.0, -3.0, 7.0, -7.0]
        );
    }
}
