//! Memory that the kernels use in addition to MLX's arrays, with a count of it.
//!
//! Kernels run deep inside tasks that several threads share. A kernel that cannot allocate memory
//! therefore unwinds with [`NoMemory`], and the function that returns the array turns that into an
//! error: see [`or_no_memory`].

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicU64, Ordering},
};

use bytemuck::{Zeroable, allocation::try_zeroed_vec};

/// The unwind payload of a kernel that could not allocate so many bytes.
pub(super) struct NoMemory(pub usize);

/// Calls `f`, which runs kernels; fails if one cannot allocate memory.
pub(super) fn or_no_memory<T>(f: impl FnOnce() -> T) -> Result<T, NoMemory> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| match panic.downcast::<NoMemory>() {
        Ok(refused) => *refused,
        Err(panic) => resume_unwind(panic),
    })
}

/// Allocates room for so many numbers. Unwinds if there is no memory for them.
pub(super) fn room<T>(len: usize) -> Vec<T> {
    let mut room = Vec::new();
    if room.try_reserve_exact(len).is_err() {
        resume_unwind(Box::new(NoMemory(len.saturating_mul(size_of::<T>()))));
    }
    room
}

/// Allocates so many zeros. Unwinds if there is no memory for them.
pub(super) fn zeros<T: Zeroable>(len: usize) -> Vec<T> {
    try_zeroed_vec(len)
        .unwrap_or_else(|()| resume_unwind(Box::new(NoMemory(len.saturating_mul(size_of::<T>())))))
}

/// The bytes of all buffers, their peak since the last [`reset_peak`], and those that are kept for
/// reuse.
static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);
static KEPT: AtomicU64 = AtomicU64::new(0);

/// Numbers that a kernel works with or returns.
pub(super) struct Buffer<T>(Vec<T>);

impl<T: Zeroable> Buffer<T> {
    /// Allocates so many zeros. Unwinds if there is no memory for them.
    pub fn zeros(len: usize) -> Buffer<T> {
        let buffer = Buffer(zeros(len));
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

/// Runs `f` with a buffer of so many numbers with any content. The thread keeps its memory while
/// about as much is in use, because getting much memory from the system takes longer than filling
/// it.
pub(super) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let kept = SCRATCH
        .take()
        .filter(|kept| (len..=8 * len).contains(&kept.0.len()));
    let mut kept = kept.unwrap_or_else(|| Kept::new(Buffer::zeros(len)));
    let result = f(&mut kept.0[..len]);
    SCRATCH.set(Some(kept));
    result
}

/// Frees the buffer that this thread keeps.
pub(in crate::device) fn clear_scratch() {
    SCRATCH.take();
}

/// Returns the bytes in use, those kept for reuse, and the peak of both together since the last
/// [`reset_peak`].
pub(in crate::device) fn memory() -> [u64; 3] {
    let kept = KEPT.load(Ordering::Relaxed);
    [
        NOW.load(Ordering::Relaxed).saturating_sub(kept),
        kept,
        PEAK.load(Ordering::Relaxed),
    ]
}

/// Starts a new measurement of the peak.
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
    fn what_gets_no_memory_fails() {
        let zeros = |len| or_no_memory(|| Buffer::<f32>::zeros(len).len());
        for len in [usize::MAX, usize::MAX / 4, isize::MAX as usize / 4] {
            assert!(zeros(len).is_err_and(|refused| refused.0 > 1 << 60));
            assert!(or_no_memory(|| room::<f32>(len).len()).is_err());
        }
        assert!(zeros(0).is_ok_and(|len| len == 0) && zeros(9).is_ok_and(|len| len == 9));
        let other = catch_unwind(|| or_no_memory(|| panic!("another")).is_ok());
        assert_eq!(other.unwrap_err().downcast_ref::<&str>(), Some(&"another"));
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
