//! Calls of the program's functions.

use std::{
    cell::Cell,
    sync::OnceLock,
    time::{Duration, Instant},
};

use super::sync::{
    atomic::{AtomicBool, AtomicUsize, Ordering},
    thread, thread_local,
};

/// How long the end of the process waits for functions of the program that are running.
const PATIENCE: Duration = Duration::from_millis(500);

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

/// Calls that are made until the process ends.
pub struct Calls {
    running: AtomicUsize,
    over: AtomicBool,
    /// When they ended.
    since: OnceLock<Instant>,
}

impl Calls {
    /// No call yet.
    pub const fn new() -> Calls {
        Calls {
            running: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            since: OnceLock::new(),
        }
    }

    /// Calls a function of the program, unless calls are over: then returns `None`.
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        struct Running<'a>(&'a AtomicUsize);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(&self.running);
        // Counted first: either this sees that calls are over, or who ends them sees this one.
        (!self.are_over()).then(|| enter(f))
    }

    /// Lets no call begin any more.
    pub fn end(&self) {
        let _ = self.since.set(Instant::now());
        self.over.store(true, Ordering::SeqCst);
    }

    /// Whether no call begins any more.
    pub fn are_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Waits for the calls that other threads are in, where calls are over. One that does not
    /// return for long is not waited for.
    pub fn wait(&self) {
        let others = || self.running.load(Ordering::SeqCst) > usize::from(is_inside());
        while others()
            && self
                .since
                .get()
                .is_some_and(|since| since.elapsed() < PATIENCE)
        {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
