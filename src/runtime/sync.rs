//! Threads, locks and channels, imported in one place: `threads/threads.rs` compiles the files that
//! use them against shuttle's versions, which try the possible orders of threads.

pub use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic, mpsc},
    thread, thread_local,
};
