//! Threads, locks and channels, named in one place: `tests/shuttle.rs` compiles the files that use
//! them with others, which try the orders in which threads can run.

pub use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic, mpsc},
    thread, thread_local,
};
