//! What a program holds: [`Model`], [`Session`], [`Embedding`]. They may be used from any thread, in any number.
//!
//! All MLX work happens on one thread that the library owns. Operations queue for it and each takes one turn: a session's is one chunk of a
//! prompt or one token, so that sessions advance side by side.

pub(crate) mod callback;
mod engine;
mod log;
mod model;
mod op;
mod outbox;
mod queue;
mod session;
mod slot;
mod stream;
mod sync;
mod tokenize;

pub use engine::{resume, suspend};
pub use log::{LogSink, set_log};
pub use model::{Embedding, LoadOptions, MemoryEstimate, Model, ModelInfo, trim_memory};
pub use op::{Cancel, Op, Stage};
pub use session::{Session, StreamOptions};

/// Locks what is only read or replaced as a whole, or mended by who changes it: a panic while it was held has left it sound.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
