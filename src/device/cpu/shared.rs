//! A result that several threads write, each its own part.
#![allow(unsafe_code)]

use std::marker::PhantomData;

/// A slice whose parts are written by different threads.
pub(super) struct Shared<'a, T> {
    data: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the slice is borrowed mutably for as long as this lives, and `write` and `part` restrict
// what threads do with it.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T: Copy> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Shared<'a, T> {
        Shared {
            data: slice.as_mut_ptr(),
            len: slice.len(),
            borrow: PhantomData,
        }
    }

    /// Writes numbers at a position. Concurrent tasks must write to different positions.
    pub fn write(&self, at: usize, values: &[T]) {
        self.part(at, values.len()).copy_from_slice(values);
    }

    /// Returns a part to be written. Concurrent tasks must take parts that do not overlap.
    #[allow(clippy::mut_from_ref)]
    pub fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: the range is inside the slice, which nobody else borrows; the callers, all in
        // this folder, divide it among the tasks by number.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), len) }
    }
}
