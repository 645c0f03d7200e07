//! A cache of encoded pictures.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{models::MediaKey, nn::Features};

/// The bytes in all caches of the process.
static CACHED_BYTES: AtomicU64 = AtomicU64::new(0);

/// Returns the bytes of cached features, for all models in this process.
pub fn image_cache_bytes() -> u64 {
    CACHED_BYTES.load(Ordering::Relaxed)
}

/// Keeps the features of the most recently used pictures, up to a number of bytes.
#[derive(Debug, Default)]
pub struct ImageCache {
    budget: u64,
    bytes: u64,
    /// Least recently used first. A picture takes megabytes, so there are never many entries to
    /// search.
    entries: VecDeque<(MediaKey, Features)>,
}

impl ImageCache {
    /// Creates an empty cache of at most `budget` bytes.
    pub fn new(budget: u64) -> ImageCache {
        ImageCache {
            budget,
            bytes: 0,
            entries: VecDeque::new(),
        }
    }

    /// Returns the features of a picture, if they are cached.
    pub fn get(&mut self, key: MediaKey) -> Option<Features> {
        let at = self.entries.iter().position(|(other, _)| *other == key)?;
        let entry = self.entries.remove(at)?;
        let features = entry.1.clone();
        self.entries.push_back(entry);
        Some(features)
    }

    /// Adds the features of a picture that is not cached yet; removes the least recently used ones.
    pub fn insert(&mut self, key: MediaKey, features: Features) {
        let bytes = features.bytes();
        if bytes > self.budget {
            return;
        }
        while self.bytes + bytes > self.budget
            && let Some((_, old)) = self.entries.pop_front()
        {
            self.set_bytes(self.bytes - old.bytes());
        }
        self.set_bytes(self.bytes + bytes);
        self.entries.push_back((key, features));
    }

    /// Returns the number of bytes in the cache.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.set_bytes(0);
    }

    fn set_bytes(&mut self, bytes: u64) {
        CACHED_BYTES.fetch_add(bytes.wrapping_sub(self.bytes), Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for ImageCache {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::ops::floats,
        image::{Picture, PixelFormat},
        models::MediaPlan,
    };

    fn plan(edge: usize) -> MediaPlan {
        MediaPlan {
            grids: Vec::new(),
            pixels: [edge; 2],
            markup: String::new(),
            runs: vec![2],
            times: Vec::new(),
        }
    }

    fn picture(gray: u8) -> MediaKey {
        let picture = Picture::from_pixels(&[gray; 4], 2, 2, 2, PixelFormat::Gray8).unwrap();
        MediaKey::new(picture.hash(), &plan(2))
    }

    /// 40 bytes.
    fn tokens(value: f32) -> Features {
        Features {
            rows: floats(&[value; 10], &[2, 5]),
        }
    }

    fn value(cache: &mut ImageCache, gray: u8) -> Option<f32> {
        cache
            .get(picture(gray))
            .map(|features| features.rows.as_slice::<f32>()[0])
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let mut cache = ImageCache::new(100);
        cache.insert(picture(1), tokens(1.0));
        cache.insert(picture(2), tokens(2.0));
        assert_eq!((value(&mut cache, 1), cache.bytes()), (Some(1.0), 80));
        cache.insert(picture(3), tokens(3.0));
        assert_eq!(
            (
                value(&mut cache, 1),
                value(&mut cache, 2),
                value(&mut cache, 3)
            ),
            (Some(1.0), None, Some(3.0))
        );
        assert_eq!(cache.bytes(), 80);
        cache.clear();
        assert_eq!((value(&mut cache, 1), cache.bytes()), (None, 0));
    }

    #[test]
    fn what_is_larger_than_the_budget_is_not_kept() {
        let mut cache = ImageCache::new(39);
        cache.insert(picture(1), tokens(1.0));
        assert_eq!((value(&mut cache, 1), cache.bytes()), (None, 0));
    }

    /// The same bytes with another shape, or a difference of one bit, make another picture.
    #[test]
    fn pictures_of_one_size_are_told_apart() {
        let wide = Picture::from_pixels(&[7; 4], 4, 1, 4, PixelFormat::Gray8).unwrap();
        let tall = Picture::from_pixels(&[7; 4], 1, 4, 1, PixelFormat::Gray8).unwrap();
        assert_ne!(wide.hash(), tall.hash());
        assert_ne!(picture(6), picture(7));
        assert_eq!(picture(7), picture(7));
        // So does other processing.
        assert_ne!(
            MediaKey::new(wide.hash(), &plan(2)),
            MediaKey::new(wide.hash(), &plan(4))
        );
    }
}
