//! Calls of the program's callbacks.

use std::{
    cell::Cell,
    sync::OnceLock,
    time::{Duration, Instant},
};

use super::sync::{
    atomic::{AtomicBool, AtomicUsize, Ordering},
    thread, thread_local,
};

/// How long process exit waits for running callbacks.
const EXIT_TIMEOUT: Duration = Duration::from_millis(500);

thread_local! {
    #[allow(clippy::missing_const_for_thread_local)] // shuttle's thread_local has no const form
    static DEPTH: Cell<usize> = Cell::new(0);
}

/// Calls a callback of the program.
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

/// Returns whether the calling thread is inside a callback.
pub fn is_inside() -> bool {
    DEPTH.with(Cell::get) > 0
}

/// Callbacks are allowed until the process exits.
pub struct Calls {
    running: AtomicUsize,
    over: AtomicBool,
    /// When they were ended.
    since: OnceLock<Instant>,
}

impl Calls {
    /// No call has been made yet.
    pub const fn new() -> Calls {
        Calls {
            running: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            since: OnceLock::new(),
        }
    }

    /// Calls a callback, unless callbacks have been ended; then returns `None`.
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        struct Running<'a>(&'a AtomicUsize);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(&self.running);
        // Count first: either this thread sees that callbacks have ended, or the thread that ends
        // them sees this call.
        (!self.are_over()).then(|| enter(f))
    }

    /// Stops further callbacks.
    pub fn end(&self) {
        let _ = self.since.set(Instant::now());
        self.over.store(true, Ordering::SeqCst);
    }

    /// Returns whether callbacks have been ended.
    pub fn are_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Waits for callbacks on other threads after callbacks were ended, but not for one that takes
    /// too long.
    pub fn wait(&self) {
        let others = || self.running.load(Ordering::SeqCst) > usize::from(is_inside());
        while others()
            && self
                .since
                .get()
                .is_some_and(|since| since.elapsed() < EXIT_TIMEOUT)
        {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
