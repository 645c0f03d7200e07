//! Tokens of pictures that were seen before.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use mlx_rs::Array;

use crate::image::PictureHash;

/// Bytes held by all caches of the process.
static HELD: AtomicU64 = AtomicU64::new(0);

/// Bytes of tokens of pictures seen before, of all models in this process.
pub fn image_cache_bytes() -> u64 {
    HELD.load(Ordering::Relaxed)
}

/// Keeps the tokens of the pictures that were used last, up to a number of bytes.
#[derive(Debug, Default)]
pub struct ImageCache {
    budget: u64,
    bytes: u64,
    /// Used last, last. A picture takes megabytes, so that there are never many to look through.
    entries: VecDeque<(PictureHash, Array)>,
}

impl ImageCache {
    /// An empty cache that holds at most `budget` bytes.
    pub fn new(budget: u64) -> ImageCache {
        ImageCache { budget, bytes: 0, entries: VecDeque::new() }
    }

    /// The tokens of a picture, where they are still here.
    pub fn get(&mut self, picture: PictureHash) -> Option<Array> {
        let at = self.entries.iter().position(|(key, _)| *key == picture)?;
        let entry = self.entries.remove(at)?;
        let tokens = entry.1.clone();
        self.entries.push_back(entry);
        Some(tokens)
    }

    /// Keeps the tokens of a picture that is not here yet; lets go of those not used for longest.
    pub fn insert(&mut self, picture: PictureHash, tokens: Array) {
        let bytes = tokens.nbytes() as u64;
        if bytes > self.budget {
            return;
        }
        while self.bytes + bytes > self.budget
            && let Some((_, old)) = self.entries.pop_front()
        {
            self.set_bytes(self.bytes - old.nbytes() as u64);
        }
        self.set_bytes(self.bytes + bytes);
        self.entries.push_back((picture, tokens));
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.set_bytes(0);
    }

    fn set_bytes(&mut self, bytes: u64) {
        HELD.fetch_add(bytes.wrapping_sub(self.bytes), Ordering::Relaxed);
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
    use crate::image::{Picture, PixelFormat};

    fn picture(gray: u8) -> PictureHash {
        Picture::from_pixels(&[gray; 4], 2, 2, 2, PixelFormat::Gray8).unwrap().hash()
    }

    /// 40 bytes.
    fn tokens(value: f32) -> Array {
        Array::from_slice(&[value; 10], &[1, 2, 5])
    }

    fn value(cache: &mut ImageCache, gray: u8) -> Option<f32> {
        cache.get(picture(gray)).map(|tokens| tokens.as_slice::<f32>()[0])
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let mut cache = ImageCache::new(100);
        cache.insert(picture(1), tokens(1.0));
        cache.insert(picture(2), tokens(2.0));
        assert_eq!((value(&mut cache, 1), cache.bytes()), (Some(1.0), 80));
        cache.insert(picture(3), tokens(3.0));
        assert_eq!((value(&mut cache, 1), value(&mut cache, 2), value(&mut cache, 3)), (Some(1.0), None, Some(3.0)));
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

    /// The same bytes in another shape, or one bit apart, are another picture.
    #[test]
    fn pictures_of_one_size_are_told_apart() {
        let wide = Picture::from_pixels(&[7; 4], 4, 1, 4, PixelFormat::Gray8).unwrap();
        let tall = Picture::from_pixels(&[7; 4], 1, 4, 1, PixelFormat::Gray8).unwrap();
        assert_ne!(wide.hash(), tall.hash());
        assert_ne!(picture(6), picture(7));
        assert_eq!(picture(7), picture(7));
    }
}
