//! Memory that the kernels take beside MLX's arrays, counted.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU64, Ordering},
};

/// Bytes of all buffers, the most that they ever were since the last [`reset_peak`], and those of them that are kept for reuse.
static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);
static KEPT: AtomicU64 = AtomicU64::new(0);

/// Numbers that a kernel works with or gives.
pub(super) struct Buffer<T>(Vec<T>);

impl<T: Copy + Default> Buffer<T> {
    /// So many zeros.
    pub fn zeros(len: usize) -> Buffer<T> {
        let buffer = Buffer(vec![T::default(); len]);
        let now = NOW.fetch_add(buffer.bytes(), Ordering::Relaxed) + buffer.bytes();
        PEAK.fetch_max(now, Ordering::Relaxed);
        buffer
    }
}

impl<T> Buffer<T> {
    fn bytes(&self) -> u64 {
        size_of_val(self.0.as_slice()) as u64
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        NOW.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

/// The buffer that a thread keeps.
struct Kept(Buffer<f32>);

impl Kept {
    fn new(buffer: Buffer<f32>) -> Kept {
        KEPT.fetch_add(buffer.bytes(), Ordering::Relaxed);
        Kept(buffer)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.0.bytes(), Ordering::Relaxed);
    }
}

thread_local! {
    static SCRATCH: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Runs `f` with so many numbers, which may be anything, of memory that the thread keeps while about as much is in use: the system takes
/// longer to give much than to fill it.
pub(super) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let kept = SCRATCH.take().filter(|kept| (len..=8 * len).contains(&kept.0.len()));
    let mut kept = kept.unwrap_or_else(|| Kept::new(Buffer::zeros(len)));
    let result = f(&mut kept.0[..len]);
    SCRATCH.set(Some(kept));
    result
}

/// Gives back what this thread keeps.
pub(in crate::device) fn clear_scratch() {
    SCRATCH.take();
}

/// Bytes in use, kept for reuse, and the most of both together since the last [`reset_peak`].
pub(in crate::device) fn memory() -> [u64; 3] {
    let kept = KEPT.load(Ordering::Relaxed);
    [NOW.load(Ordering::Relaxed).saturating_sub(kept), kept, PEAK.load(Ordering::Relaxed)]
}

/// Starts a new measurement of the most.
pub(in crate::device) fn reset_peak() {
    PEAK.store(NOW.load(Ordering::Relaxed), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_follows_what_is_needed() {
        let kept = || SCRATCH.with_borrow(|kept| kept.as_ref().map(|kept| kept.0.len()));
        for (needed, expected) in [(800, 800), (100, 800), (99, 99), (801, 801)] {
            assert_eq!(with_scratch(needed, |scratch| scratch.len()), needed);
            assert_eq!(kept(), Some(expected), "after {needed}");
        }
        clear_scratch();
        assert_eq!(kept(), None);
    }

    #[test]
    fn work_within_work_has_memory_of_its_own() {
        with_scratch(10, |outer| {
            outer.fill(1.0);
            with_scratch(10, |inner| inner.fill(2.0));
            assert!(outer.iter().all(|x| *x == 1.0));
        });
    }
}
