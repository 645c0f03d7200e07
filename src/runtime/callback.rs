//! Whether this thread is inside a function of the program that the library called.

use std::cell::Cell;

use super::sync::thread_local;

thread_local! {
    #[allow(clippy::missing_const_for_thread_local)] // shuttle's thread_local has no const form
    static DEPTH: Cell<usize> = Cell::new(0);
}

/// Calls a function of the program.
pub fn enter<R>(f: impl FnOnce() -> R) -> R {
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            DEPTH.with(|depth| depth.set(depth.get() - 1));
        }
    }
    DEPTH.with(|depth| depth.set(depth.get() + 1));
    let _inside = Inside;
    f()
}

/// Whether the calling thread is in such a function.
pub fn is_inside() -> bool {
    DEPTH.with(Cell::get) > 0
}
